//! What a client does not want, and whom a user ignores.

use super::*;

#[test]
fn ignored_users_are_not_heard_but_their_state_is_seen() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (room, other) = (alice.create_room(), alice.create_room());
    bob.join(&room);
    let list = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    bob.put(&list, json!({"ignored_users": {alice.id(): {}}}));
    let before = sync(&bob, "");
    alice.send(&room, "noise");
    alice.set_state(&room, "m.room.name", "", json!({"name": "Still here"}));
    alice.invite(&other, bob.id());
    let answer = sync(&bob, &next(&before));
    assert_eq!(types(&answer["rooms"]["join"][&room]["timeline"]), ["m.room.name"]);
    assert_eq!(rooms(&answer, "invite"), Vec::<String>::new());
    bob.put(&list, json!({"ignored_users": {}}));
    let fresh = sync(&bob, "");
    assert!(bodies(&fresh["rooms"]["join"][&room]["timeline"]).contains(&"noise"));
    assert_eq!(rooms(&fresh, "invite"), [other], "the invite was not lost");
}

#[test]
fn ignored_users_are_not_heard_wherever_one_listens() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    bob.join(&room);
    carol.join(&room);
    let noise = alice.send(&room, "noise");
    let event = carol.send(&room, "hello");
    let list = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    let typing = |user: &TestUser| {
        user.put(
            &room_path(&room, &format!("typing/{}", segment(user.id()))),
            json!({"typing": true, "timeout": 60_000}),
        );
        user.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&event))), json!({}));
    };
    for user in [&alice, &carol] {
        typing(user);
        // They are there.
        sync(user, "");
    }
    let heard = || {
        let answer = sync(&bob, "");
        let fleeting = answer["rooms"]["join"][&room]["ephemeral"].to_string();
        let page = bob.get(&room_path(&room, "messages?dir=b&limit=100"));
        let context = bob.get(&room_path(&room, &format!("context/{}", segment(&event))));
        let (status, _) = bob.request("GET", &room_path(&room, &format!("event/{}", segment(&noise))), None);
        let (around, _) =
            bob.request("GET", &room_path(&room, &format!("context/{}", segment(&noise))), None);
        let near =
            format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=9999999999999&dir=b", segment(&room));
        let near = bob.get(&near)["event_id"].clone();
        let mut of_alice = Vec::new();
        if fleeting.contains(alice.id()) {
            of_alice.push("ephemeral");
        }
        if answer["presence"].to_string().contains(alice.id()) {
            of_alice.push("presence");
        }
        if page.to_string().contains("noise") {
            of_alice.push("messages");
        }
        if context["events_before"].to_string().contains("noise") {
            of_alice.push("context");
        }
        if status == 200 && around == 200 {
            of_alice.push("event");
        }
        assert_eq!(status, around);
        assert!(fleeting.contains(carol.id()), "{answer}");
        assert!(page["chunk"].to_string().contains("m.room.power_levels"), "state is seen: {page}");
        (of_alice, near)
    };
    let all = vec!["ephemeral", "presence", "messages", "context", "event"];
    assert_eq!(heard(), (all.clone(), json!(event)));
    let last = alice.send(&room, "noise again");
    assert_eq!(heard().1, json!(last));
    // One's own name in the list means nothing.
    bob.put(&list, json!({"ignored_users": {alice.id(): {}, bob.id(): {}}}));
    assert_eq!(heard(), (vec![], json!(event)));
    // What happens from now on is not told either.
    let before = sync(&bob, "");
    bob.send(&room, "mine");
    alice.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&event))), json!({}));
    let answer = sync(&bob, &next(&before));
    assert_eq!(bodies(&answer["rooms"]["join"][&room]["timeline"]), ["mine"]);
    assert!(!answer.to_string().contains(alice.id()), "{answer}");
    assert!(bob.get(&room_path(&room, "messages?dir=b")).to_string().contains("mine"));
    bob.put(&list, json!({"ignored_users": {}}));
    assert_eq!(heard().0, all);
}

#[test]
fn filters_choose_rooms_events_and_fields() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (one, two) = (alice.create_room(), alice.create_room());
    alice.send(&one, "hello");
    let only = sync(&alice, &filter(&json!({"room": {"rooms": [one, two], "not_rooms": [two]}})));
    assert_eq!(rooms(&only, "join"), std::slice::from_ref(&one));
    let few = filter(&json!({
        "room": {"timeline": {"limit": 1, "types": ["m.room.mess*"]}, "state": {"types": []}},
        "event_fields": ["content.body"],
    }));
    let few = sync(&alice, &few);
    let joined = &few["rooms"]["join"][&one];
    assert_eq!(joined["state"]["events"], json!([]));
    assert_eq!(joined["timeline"]["events"][0]["content"], json!({"body": "hello"}));
    assert!(joined["timeline"]["events"][0].get("unsigned").is_none());
    let federation = sync(&alice, &filter(&json!({"event_format": "federation"})));
    let event = &federation["rooms"]["join"][&one]["timeline"]["events"][1];
    assert!(event["signatures"].is_object() && event["auth_events"].is_array());
    // A stored filter is the same as one written out.
    let path = format!("{V3}/user/{}/filter", segment(alice.id()));
    let id = alice.post(&path, json!({"room": {"rooms": [two]}}))["filter_id"].as_str().unwrap().to_owned();
    assert_eq!(rooms(&sync(&alice, &format!("filter={id}")), "join"), [two]);
}

#[test]
fn a_limit_of_none_gets_none_of_the_events_and_all_of_the_state() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "One"}));
    bob.join(&room);
    let none = json!({"limit": 0});
    let wish = json!({"presence": none, "account_data": none,
                      "room": {"timeline": none, "ephemeral": none, "account_data": none}});
    let stored = alice.post(&format!("{V3}/user/{}/filter", segment(alice.id())), wish.clone());
    let stored = format!("filter={}", stored["filter_id"].as_str().expect("a filter id"));
    let queries = [filter(&wish), stored, format!("{}&use_state_after=true", filter(&wish))];
    for (n, query) in queries.iter().enumerate() {
        let section = if query.contains("state_after") { "state_after" } else { "state" };
        let name = format!("Name {n}");
        let state = |answer: &Value, kind: &str| -> Vec<Value> {
            let events = &answer["rooms"]["join"][&room][section]["events"];
            let of = events.as_array().expect("a list").iter().filter(|e| e["type"] == kind);
            of.map(|e| e["content"].clone()).collect()
        };
        let first = sync(&alice, query);
        assert_eq!(state(&first, "m.room.create").len(), 1, "{first}");
        let quiet = sync(&alice, &format!("{query}&{}", next(&first)));
        assert!(quiet.get("rooms").is_none(), "nothing happened: {quiet}");
        bob.send(&room, "unseen");
        alice.set_state(&room, "m.room.name", "", json!({"name": name}));
        let body = json!({"typing": true, "timeout": 30_000});
        bob.put(&room_path(&room, &format!("typing/{}", segment(bob.id()))), body);
        alice.put(&format!("{V3}/user/{}/account_data/org.example", segment(alice.id())), json!({"n": n}));
        alice.put(
            &format!("{V3}/user/{}/rooms/{room}/account_data/org.example", segment(alice.id())),
            json!({"n": n}),
        );
        let fresh = sync(&alice, query);
        for (answer, names) in [
            (&first, None),
            (&fresh, Some(&name)),
            (&sync(&alice, &format!("{query}&{}", next(&first))), Some(&name)),
        ] {
            let joined = &answer["rooms"]["join"][&room];
            assert_eq!(joined["timeline"]["events"], json!([]), "{query}: {answer}");
            assert_eq!(joined["timeline"]["limited"], true, "{query}: {answer}");
            assert!(joined.get("ephemeral").is_none() && joined.get("account_data").is_none(), "{answer}");
            assert!(answer.get("presence").is_none() && answer.get("account_data").is_none(), "{answer}");
            if let Some(name) = names {
                assert_eq!(state(answer, "m.room.name"), [json!({"name": name})], "{query}: {answer}");
                let from = segment(joined["timeline"]["prev_batch"].as_str().expect("prev_batch"));
                let page = alice.get(&room_path(&room, &format!("messages?dir=b&limit=2&from={from}")));
                let kinds: Vec<_> = page["chunk"].as_array().unwrap().iter().map(|e| &e["type"]).collect();
                assert_eq!(kinds, ["m.room.name", "m.room.message"], "{page}");
            }
        }
    }
}

#[test]
fn a_page_of_none_says_where_to_go_on_and_a_context_of_none_has_its_event() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let event = alice.send(&room, "hello");
    let none = filter(&json!({"limit": 0}));
    for query in ["limit=0".to_owned(), none.clone(), format!("limit=5&{none}")] {
        for (dir, first) in [("b", "m.room.message"), ("f", "m.room.create")] {
            let page = alice.get(&room_path(&room, &format!("messages?dir={dir}&{query}")));
            assert_eq!(page["chunk"], json!([]), "{query}: {page}");
            let from = segment(page["end"].as_str().expect("there is more"));
            let page = alice.get(&room_path(&room, &format!("messages?dir={dir}&limit=1&from={from}")));
            assert_eq!(page["chunk"][0]["type"], first, "{query}: {page}");
        }
        let context = alice.get(&room_path(&room, &format!("context/{}?{query}", segment(&event))));
        assert_eq!(context["event"]["event_id"], event);
        assert_eq!((&context["events_before"], &context["events_after"]), (&json!([]), &json!([])));
    }
}
