//! Search over a real socket: what is found, by whom, in which order, and what is refused.

use std::collections::BTreeSet;

use crate::common::client::{V3, post, room_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn search_at(user: &TestUser, next: Option<&str>, criteria: &Value) -> Value {
    let next = next.map_or_else(String::new, |next| format!("?next_batch={}", segment(next)));
    let body = json!({ "search_categories": { "room_events": criteria } });
    let answer = user.post(&format!("{V3}/search{next}"), body);
    answer["search_categories"]["room_events"].clone()
}

fn search(user: &TestUser, criteria: &Value) -> Value {
    search_at(user, None, criteria)
}

fn refusal(user: &TestUser, path: &str, criteria: &Value) -> (u16, Value) {
    let (status, answer) = post(user, path, json!({ "search_categories": { "room_events": criteria } }));
    (status, answer["errcode"].clone())
}

/// What is found, by the texts.
fn found(user: &TestUser, term: &str) -> Vec<String> {
    texts(&search(user, &json!({ "search_term": term, "order_by": "recent" })))
}

fn texts(answer: &Value) -> Vec<String> {
    let results = answer["results"].as_array().expect("results");
    let text = |result: &Value| {
        let content = &result["result"]["content"];
        let text = ["body", "name", "topic"].iter().find_map(|key| content[key].as_str());
        text.unwrap_or("(none)").to_owned()
    };
    results.iter().map(text).collect()
}

fn edit(user: &TestUser, room: &str, event: &str, body: &str) -> String {
    let content = json!({ "msgtype": "m.text", "body": format!("* {body}"),
        "m.new_content": { "msgtype": "m.text", "body": body },
        "m.relates_to": { "rel_type": "m.replace", "event_id": event } });
    let path = room_path(room, &format!("send/m.room.message/{}", segment(&format!("edit-{event}-{body}"))));
    user.put(&path, content)["event_id"].as_str().expect("an id").to_owned()
}

fn redact(user: &TestUser, room: &str, event: &str) {
    user.put(&room_path(room, &format!("redact/{}/{}", segment(event), segment(event))), json!({}));
}

#[test]
fn words_find_messages_names_and_topics_and_keys_say_which() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({ "name": "Penguin club", "topic": "All about the penguin" }));
    alice.send(&room, "a penguin walks in");
    assert_eq!(found(&alice, "penguin").len(), 3);
    for (key, text) in [
        ("content.body", "a penguin walks in"),
        ("content.name", "Penguin club"),
        ("content.topic", "All about the penguin"),
    ] {
        let answer = search(&alice, &json!({ "search_term": "PENGUIN", "keys": [key] }));
        assert_eq!(texts(&answer), [text]);
        assert_eq!((answer["count"].as_u64(), answer.get("next_batch")), (Some(1), None));
        assert!(answer["highlights"].as_array().unwrap().contains(&json!("penguin")), "{answer}");
        assert_eq!(answer["results"][0]["result"]["room_id"], room);
        assert!(answer["results"][0]["rank"].as_f64().unwrap() > 0.0);
    }
    let filter = |filter: Value| search(&alice, &json!({ "search_term": "penguin", "filter": filter }));
    assert_eq!(texts(&filter(json!({ "types": ["m.room.name"] }))), ["Penguin club"]);
    assert_eq!(filter(json!({ "not_senders": [alice.id()] }))["count"], 0);
    assert_eq!(filter(json!({ "rooms": ["!elsewhere:example.org"] }))["count"], 0);
    assert_eq!(filter(json!({ "not_rooms": [room] }))["count"], 0);
    assert_eq!(filter(json!({ "rooms": [room] }))["count"], 3);
    // Later names stand beside the old ones: each was said.
    alice.set_state(&room, "m.room.name", "", json!({ "name": "Walrus club" }));
    assert_eq!(found(&alice, "walrus"), ["Walrus club"]);
}

#[test]
fn words_are_found_whatever_their_accents_endings_script_and_the_query_has_no_operators() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    for text in [
        "Das Café am Platz",
        "we are meeting tomorrow",
        "東京都に行きます",
        "ไปเที่ยวกันไหม",
        "서울에서 만나요",
        "a well-known thing",
    ] {
        alice.send(&room, text);
    }
    for (term, text) in [
        ("cafe", "Das Café am Platz"),
        ("CAFÉ", "Das Café am Platz"),
        ("cafe\u{301}", "Das Café am Platz"),
        ("meet", "we are meeting tomorrow"),
        ("tomorrow meeting", "we are meeting tomorrow"),
        ("\"are meeting\"", "we are meeting tomorrow"),
        ("東京", "東京都に行きます"),
        ("京都", "東京都に行きます"),
        ("行き", "東京都に行きます"),
        ("都", "東京都に行きます"),
        ("す", "東京都に行きます"),
        ("เที่ยว", "ไปเที่ยวกันไหม"),
        ("서울", "서울에서 만나요"),
        ("만나", "서울에서 만나요"),
        ("well-known", "a well-known thing"),
        ("known", "a well-known thing"),
    ] {
        assert_eq!(found(&alice, term), [text], "{term}");
    }
    for none in [
        "\"meeting are\"",
        "東都",
        "eeting",
        "cafe meeting",
        "NOT cafe",
        "body:cafe",
        "cafe OR meeting",
        "",
        "  ",
        "!?*\"'",
        "room",
        "1",
    ] {
        assert_eq!(found(&alice, none), [""; 0], "{none}");
    }
    for odd in [
        "^caf",
        "cafe*",
        "{body}: cafe",
        "(cafe",
        "cafe)",
        "-cafe",
        "cafe\"",
        "\"\"\" cafe",
        "ca\0fe",
        "; DROP TABLE events; --",
    ] {
        found(&alice, odd);
    }
}

#[test]
fn every_word_of_a_script_with_marks_inside_its_words_is_found_as_it_is_written() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let texts = [
        "मुझे हिन्दी में पढ़ना और लिखना बहुत अच्छा लगता है क्योंकि यह मेरी मातृभाषा है। धन्यवाद",
        "नमस्कार तुम्ही कसे आहात वाढदिवसाच्या शुभेच्छा",
        "আমি বাংলায় কথা বলতে পছন্দ করি বন্ধু শুভ জন্মদিন সন্ধ্যা",
        "నమస్కారం మీరు ఎలా ఉన్నారు ధన్యవాదాలు పుట్టినరోజు శుభాకాంక్షలు",
        "வணக்கம் நீங்கள் எப்படி இருக்கிறீர்கள் நன்றி பிறந்தநாள் வாழ்த்துக்கள்",
        "ನೀವು ಹೇಗಿದ್ದೀರಾ ಧನ್ಯವಾದಗಳು ಹುಟ್ಟುಹಬ್ಬದ ಶುಭಾಶಯಗಳು",
        "നമസ്കാരം സുഖമാണോ നന്ദി ജന്മദിനാശംസകൾ",
        "ආයුබෝවන් ස්තූතියි ශ්\u{200d}රී සුභ උපන්දිනයක්",
        "ਪੰਜਾਬੀ ਸਤਿ ਸ੍ਰੀ ਅਕਾਲ",
        "ગુજરાતી મિત્રો",
        "မင်္ဂလာပါ နေကောင်းလား",
        "ភាសាខ្មែរ សួស្តី។",
        "བོད་ཡིག བཀྲ་ཤིས",
        "می\u{200c}خواهم خانه\u{200c}ای بخرم",
        "𞤀𞤣𞤤𞤢𞤥 𞤆𞤵𞤤𞤢𞤪",
    ];
    for text in texts {
        alice.send(&room, text);
    }
    for text in texts {
        for word in text.split_whitespace() {
            assert!(found(&alice, word).contains(&text.to_owned()), "{word}");
            assert!(found(&alice, &format!("\"{word}\"")).contains(&text.to_owned()), "{word} in quotes");
        }
    }
    // A word that another begins with is found in it, as in any script; another word is not.
    assert_eq!(found(&alice, "हिन्द"), [texts[0]]);
    assert_eq!(found(&alice, "हिन"), [texts[0]]);
    assert_eq!(found(&alice, "हिन्दू"), [""; 0]);
    let answer = search(&alice, &json!({ "search_term": "हिन्द" }));
    assert!(answer["highlights"].as_array().unwrap().contains(&json!("हिन्दी")), "{answer}");
}

#[test]
fn a_word_is_found_in_the_other_ways_in_which_it_may_be_written() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    for (text, terms) in [
        ("ο Γιώργος ήρθε", &["ΓΙΩΡΓΟΣ", "γιωργος", "Γιώργος", "ηρθε", "ΉΡΘΕ", "Γιώργο"][..]),
        ("in der Hauptstraße 3", &["hauptstrasse", "HAUPTSTRASSE", "hauptstraße", "HAUPTSTRAẞE"]),
        ("Masse und Gruss", &["Maße", "Gruß", "\"maße und gruß\""]),
        ("Işık İzmir", &["ışık", "IŞIK", "isik", "izmir", "IZMIR", "İzmir", "ızmır"]),
        ("ещё ёлка", &["еще", "ЕЩЁ", "елка", "е\u{308}лка"]),
        ("мой чай", &["мои\u{306}", "ЧАЙ"]),
        ("Łódź og smørrebrød", &["lodz", "ŁÓDŹ", "smorrebrod", "SMØRREBRØD"]),
        ("שָׁלוֹם עולם", &["שלום", "שָׁלוֹם"]),
        ("الْعَرَبِيَّة", &["العربية", "الْعَرَبِيَّة", "العـربية"]),
        ("❤\u{fe0f}love 1\u{fe0f}\u{20e3}", &["love", "\"love 1\""]),
    ] {
        alice.send(&room, text);
        for term in terms {
            assert_eq!(found(&alice, term), [text], "{term}");
        }
    }
    for other in ["мои", "чаи"] {
        assert_eq!(found(&alice, other), [""; 0], "{other}");
    }
}

#[test]
fn results_come_by_time_or_by_rank_in_pages_that_repeat_and_leave_out_nothing() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let rooms = [alice.create_room(), alice.create_room()];
    let mut sent = Vec::new();
    for (number, room) in rooms.iter().cycle().take(30).enumerate() {
        bob.join(room);
        let speaker = if number % 3 == 0 { &bob } else { &alice };
        speaker.send(room, &format!("a heron, number {number}"));
        sent.push(format!("a heron, number {number}"));
    }
    sent.reverse();
    let criteria = json!({ "search_term": "heron", "order_by": "recent", "filter": { "limit": 7 },
        "groupings": { "group_by": [{ "key": "room_id" }, { "key": "sender" }] } });
    let (mut all, mut next, mut groups) = (Vec::new(), None::<String>, None);
    loop {
        let answer = search_at(&alice, next.as_deref(), &criteria);
        assert_eq!(answer["count"], 30);
        groups.get_or_insert(answer["groups"].clone());
        all.extend(texts(&answer));
        next = answer["next_batch"].as_str().map(str::to_owned);
        if next.is_none() {
            break;
        }
        // What is said meanwhile does not move the pages.
        alice.send(&rooms[0], "nothing to be found");
    }
    assert_eq!(all, sent);

    // A group goes on by itself.
    let groups = groups.expect("groups");
    for (key, name, total) in [
        ("room_id", rooms[0].as_str(), 15),
        ("room_id", rooms[1].as_str(), 15),
        ("sender", alice.id(), 20),
        ("sender", bob.id(), 10),
    ] {
        let group = &groups[key][name];
        let mut seen: Vec<Value> = group["results"].as_array().expect("a group").clone();
        assert!(group["order"].as_u64().is_some_and(|order| (1..=2).contains(&order)));
        let mut next = group["next_batch"].as_str().map(str::to_owned);
        while let Some(token) = next {
            let answer = search_at(&alice, Some(&token), &criteria);
            for result in answer["results"].as_array().expect("results") {
                assert_eq!(result["result"][key], name);
                seen.push(result["result"]["event_id"].clone());
            }
            next = answer["next_batch"].as_str().map(str::to_owned);
        }
        let distinct: BTreeSet<&str> = seen.iter().filter_map(Value::as_str).collect();
        assert_eq!((distinct.len(), seen.len()), (total, total), "{name}");
    }

    alice.send(&rooms[0], "heron heron heron");
    let best = search(&alice, &json!({ "search_term": "heron" }));
    assert_eq!(texts(&best)[0], "heron heron heron", "by rank, which is the usual order");
}

#[test]
fn nobody_finds_what_they_may_not_see() {
    let server = TestServer::start();
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), server.user("eve"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "initial_state": [
        { "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } }] }));
    alice.send(&room, "otter before");
    bob.join(&room);
    alice.send(&room, "otter meanwhile");
    assert_eq!(found(&bob, "otter"), ["otter meanwhile"]);
    bob.leave(&room);
    alice.send(&room, "otter afterwards");
    assert_eq!(found(&bob, "otter"), ["otter meanwhile"], "a room that was left");
    assert_eq!(found(&alice, "otter").len(), 3);
    let answer = search(&eve, &json!({ "search_term": "otter", "filter": { "rooms": [room] } }));
    assert_eq!((answer["count"].as_u64(), texts(&answer)), (Some(0), vec![]));
    alice.invite(&room, eve.id());
    assert_eq!(found(&eve, "otter"), [""; 0], "an invite is no membership");
    bob.post(&room_path(&room, "forget"), json!({}));
    assert_eq!(found(&bob, "otter"), [""; 0], "a room that was forgotten");

    // In an encrypted room nothing is searched, whatever was said in it before.
    alice.set_state(&room, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    assert_eq!(found(&alice, "otter"), [""; 0]);
}

#[test]
fn whoever_has_left_finds_nothing_by_what_a_message_was_changed_into_afterwards() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    let (mut of_alice, mut of_carol) = (Vec::new(), Vec::new());
    for user in [&bob, &carol] {
        user.join(&room);
    }
    for number in 0..2 {
        of_alice.push(alice.send(&room, &format!("the meadow {number}")));
        of_carol.push(carol.send(&room, &format!("the brook {number}")));
    }
    edit(&alice, &room, &of_alice[0], "the gate is by the brook");
    bob.leave(&room);
    alice.post(&room_path(&room, "ban"), json!({ "user_id": bob.id() }));
    edit(&alice, &room, &of_alice[0], "the password is xylophone");
    edit(&carol, &room, &of_carol[1], "the password is zither");
    assert_eq!(found(&alice, "password").len(), 2);
    for order in ["rank", "recent"] {
        for hidden in ["password", "xylophone", "xyl", "zither", "\"the password\"", "password brook"] {
            let answer = search(
                &bob,
                &json!({ "search_term": hidden, "order_by": order,
                "event_context": {}, "groupings": { "group_by": [{ "key": "sender" }] } }),
            );
            assert_eq!((answer["count"].as_u64(), texts(&answer)), (Some(0), vec![]), "{hidden}: {answer}");
            let highlights = answer["highlights"].to_string();
            assert!(hidden == "xylophone" || !highlights.contains("xylophone"), "{highlights}");
        }
        // Words that were there before are no secret, and those beside them stay one.
        let answer = search(&bob, &json!({ "search_term": "the", "order_by": order }));
        let highlights = answer["highlights"].to_string();
        assert_eq!(answer["count"], 4, "{answer}");
        assert!(!answer.to_string().contains("password") && !highlights.contains("password"), "{answer}");
    }
}

#[test]
fn a_forged_group_does_not_tell_who_sent_an_event_that_one_may_not_see() {
    let server = TestServer::start();
    let (alice, eve) = (server.user("alice"), server.user("eve"));
    let shared = alice.create_room();
    eve.join(&shared);
    alice.send(&shared, "a newt");
    let secret = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.send(&secret, "nothing for Eve");
    let criteria = json!({ "search_term": "newt", "order_by": "recent" });
    let mut told = 0;
    for row in 1..200 {
        let token = format!("9223372036854775807_0_0_s{row}");
        let body = json!({ "search_categories": { "room_events": &criteria } });
        let (status, answer) = post(&eve, &format!("search?next_batch={token}"), body);
        let none = json!({ "results": answer["search_categories"]["room_events"]["results"] });
        told += usize::from(status == 200 && none["results"] != json!([]));
        assert_eq!(status, 200, "what is there and what is not are one: {answer}");
    }
    let visible = eve.get(&room_path(&shared, "messages?dir=f&limit=100"));
    let of_alice = visible["chunk"].as_array().unwrap().iter().filter(|event| event["sender"] == alice.id());
    assert_eq!(told, of_alice.count(), "only by events that she sees");
}

#[test]
fn whom_one_ignores_and_what_was_redacted_is_not_found_and_an_edit_stands_for_what_it_changed() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let of_bob = bob.send(&room, "the badger digs");
    let of_alice = alice.send(&room, "my badger sleeps");
    assert_eq!(found(&alice, "badger"), ["my badger sleeps", "the badger digs"]);

    edit(&bob, &room, &of_bob, "the marmot digs");
    let marmot = search(&alice, &json!({ "search_term": "marmot" }));
    assert_eq!(marmot["results"][0]["result"]["event_id"], of_bob, "the message, and not its edit: {marmot}");
    assert_eq!(found(&alice, "badger"), ["my badger sleeps"]);
    // Nobody changes what others said.
    edit(&bob, &room, &of_alice, "my vole sleeps");
    assert_eq!(found(&alice, "badger"), ["my badger sleeps"]);

    let ignored = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(alice.id()));
    alice.put(&ignored, json!({ "ignored_users": { bob.id(): {} } }));
    assert_eq!(found(&alice, "marmot"), [""; 0]);
    alice.put(&ignored, json!({ "ignored_users": {} }));
    assert_eq!(found(&alice, "marmot").len(), 1);

    let later = edit(&bob, &room, &of_bob, "the lynx digs");
    assert_eq!((found(&alice, "lynx").len(), found(&alice, "marmot").len()), (1, 0));
    redact(&bob, &room, &later);
    assert_eq!((found(&alice, "lynx").len(), found(&alice, "marmot").len()), (0, 1), "the edit before it");
    redact(&bob, &room, &of_bob);
    for gone in ["badger digs", "marmot", "lynx"] {
        assert_eq!(found(&alice, gone), [""; 0], "{gone}");
    }
    redact(&alice, &room, &of_alice);
    assert_eq!(found(&alice, "badger"), [""; 0]);
}

#[test]
fn a_result_comes_with_what_surrounds_it_and_the_rooms_state_where_it_is_asked_for() {
    let server = TestServer::start();
    let alice = server.user("alice");
    alice
        .put(&format!("{V3}/profile/{}/displayname", segment(alice.id())), json!({ "displayname": "Alice" }));
    let room = alice.create_room();
    for text in ["one", "two", "the capybara", "three", "four"] {
        alice.send(&room, text);
    }
    let answer = search(
        &alice,
        &json!({ "search_term": "capybara", "include_state": true,
        "event_context": { "before_limit": 1, "after_limit": 10_000, "include_profile": true } }),
    );
    let context = &answer["results"][0]["context"];
    assert_eq!(context["events_before"][0]["content"]["body"], "two");
    assert_eq!(context["events_before"].as_array().unwrap().len(), 1);
    let after: Vec<&str> = context["events_after"]
        .as_array()
        .unwrap()
        .iter()
        .filter_map(|e| e["content"]["body"].as_str())
        .collect();
    assert_eq!(after, ["three", "four"]);
    assert_eq!(context["profile_info"][alice.id()]["displayname"], "Alice");
    let page = |token: &str, dir: &str| {
        alice.get(&room_path(&room, &format!("messages?dir={dir}&limit=1&from={}", segment(token))))
    };
    assert_eq!(page(context["start"].as_str().unwrap(), "b")["chunk"][0]["content"]["body"], "one");
    assert_eq!(page(context["end"].as_str().unwrap(), "f")["chunk"], json!([]));
    let state = answer["state"][&room].as_array().expect("a state");
    assert!(state.iter().any(|event| event["type"] == "m.room.create"));
    assert!(state.iter().any(|event| event["type"] == "m.room.member" && event["state_key"] == alice.id()));
    let plain = search(&alice, &json!({ "search_term": "capybara" }));
    assert!(plain["results"][0].get("context").is_none() && plain.get("state").is_none());
    let none = search(
        &alice,
        &json!({ "search_term": "capybara", "event_context": { "before_limit": 0, "after_limit": 0 } }),
    );
    assert_eq!(none["results"][0]["context"]["events_before"], json!([]));
}

#[test]
fn the_room_that_a_room_was_upgraded_from_is_searched_with_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let old = alice.create_room();
    alice.send(&old, "an ibex of old");
    let new = alice.create_room_with(json!({ "creation_content": {
        "predecessor": { "room_id": old, "event_id": "$tombstone" } } }));
    alice.send(&new, "an ibex of today");
    let within = |room: &str| {
        texts(&search(
            &alice,
            &json!({ "search_term": "ibex", "order_by": "recent", "filter": { "rooms": [room] } }),
        ))
    };
    assert_eq!(within(&new), ["an ibex of today", "an ibex of old"]);
    assert_eq!(within(&old), ["an ibex of old"]);
}

#[test]
fn a_search_that_makes_no_sense_is_refused_and_a_forged_token_shows_nothing_more() {
    let server = TestServer::start();
    let (alice, eve) = (server.user("alice"), server.user("eve"));
    let room = alice.create_room();
    let event = alice.send(&room, "the secret newt");
    let invalid = |criteria: Value| {
        assert_eq!(refusal(&eve, "search", &criteria), (400, json!("M_INVALID_PARAM")), "{criteria}")
    };
    invalid(json!({ "search_term": "x".repeat(10_000) }));
    invalid(json!({ "search_term": "a b ".repeat(200) }));
    invalid(json!({ "search_term": "newt", "keys": ["content.secret"] }));
    invalid(json!({ "search_term": "newt", "filter": { "limit": 0 } }));
    for criteria in [
        json!({}),
        json!({ "search_term": 7 }),
        json!({ "search_term": "newt", "order_by": "magic" }),
        json!({ "search_term": "newt", "filter": { "rooms": ["general"] } }),
        json!({ "search_term": "newt", "filter": { "limit": -1 } }),
        json!({ "search_term": "newt", "event_context": { "before_limit": -1 } }),
        json!({ "search_term": "newt", "groupings": { "group_by": [{ "key": "moon" }] } }),
    ] {
        assert_eq!(refusal(&eve, "search", &criteria), (400, json!("M_BAD_JSON")), "{criteria}");
    }
    let thousand: Vec<&str> = std::iter::repeat_n("content.body", 1000).collect();
    assert_eq!(search(&eve, &json!({ "search_term": "newt", "keys": thousand }))["count"], 0);
    let rooms: Vec<String> = (0..3000).map(|n| format!("!r{n}:example.org")).chain([room.clone()]).collect();
    assert_eq!(search(&eve, &json!({ "search_term": "newt", "filter": { "rooms": rooms } }))["count"], 0);
    let found = search(&alice, &json!({ "search_term": "newt" }));
    assert_eq!(found["results"][0]["result"]["event_id"], event);
    for token in ["", "x", "1_1", "1_1_1_q1", "99999999999999999999_0_0"] {
        let path = format!("search?next_batch={token}");
        assert_eq!(
            refusal(&eve, &path, &json!({ "search_term": "newt" })),
            (400, json!("M_INVALID_PARAM")),
            "{token}"
        );
    }
    for token in [
        "9223372036854775807_0_0",
        "9223372036854775807_0_0_r1",
        "9223372036854775807_0_0_s1",
        "0_0_0",
        "1_9223372036854775807_9223372036854775807",
    ] {
        let path = format!("{V3}/search?next_batch={token}");
        let body = json!({ "search_categories": { "room_events": { "search_term": "newt" } } });
        let answer = eve.post(&path, body);
        assert_eq!(answer["search_categories"]["room_events"]["results"], json!([]), "{token}: {answer}");
    }
    assert_eq!(
        eve.post(&format!("{V3}/search"), json!({ "search_categories": {} })),
        json!({ "search_categories": {} })
    );
}

#[test]
fn no_more_of_a_text_is_indexed_than_a_bounded_part() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    alice.send(&room, &format!("gnu {} okapi", "and so on ".repeat(2000)));
    assert_eq!((found(&alice, "gnu").len(), found(&alice, "okapi").len()), (1, 0));
}

#[test]
fn what_another_server_says_and_what_is_fetched_later_is_found_as_well() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room();
    alice.send(&room, "an eel of the past");
    bob.join_via(&room, &[here.name()]);
    alice.send(&room, "an eel that is sent");
    bob.sync_until("the message", |sync| {
        sync["rooms"]["join"][&room]["timeline"]["events"]
            .as_array()?
            .iter()
            .find(|e| e["content"]["body"] == "an eel that is sent")
            .cloned()
    });
    assert_eq!(found(&bob, "eel"), ["an eel that is sent"]);
    let page = bob.get(&room_path(&room, "messages?dir=b&limit=50"));
    assert!(page["chunk"].as_array().unwrap().iter().any(|e| e["content"]["body"] == "an eel of the past"));
    assert_eq!(found(&bob, "eel"), ["an eel that is sent", "an eel of the past"], "by time, not as it came");
}
