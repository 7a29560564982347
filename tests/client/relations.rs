//! Relations between events over a real socket: threads, edits, references, reactions; how they are bundled for each
//! reader, listed, filtered, refused and taken back.

use crate::common::client::{V3, filter, one_list, room_path, slide, sync};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// Sends an event and gives its id.
#[track_caller]
fn send(user: &TestUser, room: &str, kind: &str, content: Value) -> String {
    let (status, answer) = try_send(user, room, kind, content);
    assert_eq!(status, 200, "{answer}");
    answer["event_id"].as_str().expect("an event id").to_owned()
}

fn try_send(user: &TestUser, room: &str, kind: &str, content: Value) -> (u16, Value) {
    let txn = doorstep::random::token();
    user.request("PUT", &room_path(room, &format!("send/{kind}/{txn}")), Some(content))
}

fn related(rel_type: &str, parent: &str) -> Value {
    json!({ "rel_type": rel_type, "event_id": parent })
}

#[track_caller]
fn reply(user: &TestUser, room: &str, root: &str, body: &str) -> String {
    let content = json!({ "msgtype": "m.text", "body": body, "m.relates_to": related("m.thread", root) });
    send(user, room, "m.room.message", content)
}

fn edit_content(of: &str, body: &str) -> Value {
    let new = json!({ "msgtype": "m.text", "body": body });
    json!({ "msgtype": "m.text", "body": format!("* {body}"), "m.new_content": new,
        "m.relates_to": related("m.replace", of) })
}

#[track_caller]
fn edit(user: &TestUser, room: &str, of: &str, body: &str) -> String {
    send(user, room, "m.room.message", edit_content(of, body))
}

#[track_caller]
fn reference(user: &TestUser, room: &str, of: &str) -> String {
    send(user, room, "org.example.vote", json!({ "m.relates_to": related("m.reference", of) }))
}

fn reaction(of: &str, key: &str) -> Value {
    json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": of, "key": key } })
}

#[track_caller]
fn redact(user: &TestUser, room: &str, event: &str) -> String {
    let txn = doorstep::random::token();
    let answer = user.put(&room_path(room, &format!("redact/{}/{txn}", segment(event))), json!({}));
    answer["event_id"].as_str().expect("an event id").to_owned()
}

fn ignore(user: &TestUser, ignored: &[&TestUser]) {
    let users: serde_json::Map<String, Value> =
        ignored.iter().map(|user| (user.id().to_owned(), json!({}))).collect();
    let path = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(user.id()));
    user.put(&path, json!({ "ignored_users": users }));
}

#[track_caller]
fn event(user: &TestUser, room: &str, id: &str) -> Value {
    user.get(&room_path(room, &format!("event/{}", segment(id))))
}

#[track_caller]
fn bundle(user: &TestUser, room: &str, id: &str) -> Value {
    event(user, room, id)["unsigned"]["m.relations"].clone()
}

fn relations_path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/relations/{rest}", segment(room))
}

/// The ids in an answer with a chunk.
fn ids(answer: &Value) -> Vec<String> {
    let chunk = answer["chunk"].as_array().unwrap_or_else(|| panic!("no chunk in {answer}"));
    chunk.iter().map(|event| event["event_id"].as_str().expect("an event id").to_owned()).collect()
}

#[track_caller]
fn relations(user: &TestUser, room: &str, rest: &str) -> Vec<String> {
    ids(&user.get(&relations_path(room, rest)))
}

#[track_caller]
fn threads(user: &TestUser, room: &str, query: &str) -> Value {
    user.get(&format!("/_matrix/client/v1/rooms/{}/threads{query}", segment(room)))
}

/// Alice and Bob in a room of Alice's.
fn two_in_a_room(server: &TestServer) -> (TestUser, TestUser, String) {
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    (alice, bob, room)
}

#[test]
fn a_thread_is_told_with_its_root_as_each_reader_has_it() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let carol = server.user("carol");
    carol.join(&room);
    let root = alice.send(&room, "root");
    assert_eq!(bundle(&alice, &room, &root), Value::Null);
    reply(&bob, &room, &root, "first");
    let last = reply(&bob, &room, &root, "second");
    edit(&bob, &room, &last, "second, edited");
    for (reader, participated) in [(&alice, true), (&bob, true), (&carol, false)] {
        let thread = &bundle(reader, &room, &root)["m.thread"];
        assert_eq!(thread["count"], 2);
        assert_eq!(thread["current_user_participated"], participated, "{}", reader.id());
        assert_eq!(thread["latest_event"]["event_id"], last);
        let within = &thread["latest_event"]["unsigned"]["m.relations"];
        assert_eq!(within["m.replace"]["content"]["m.new_content"]["body"], "second, edited");
        // Whoever sent it knows it again by the transaction id, and nobody else learns that.
        let own = reader.id() == bob.id();
        assert_eq!(thread["latest_event"]["unsigned"].get("transaction_id").is_some(), own);
        assert_eq!(within["m.replace"]["unsigned"].get("transaction_id").is_some(), own);
    }
    // Dave has nothing to do with it, and ignores Bob.
    ignore(&carol, &[&bob]);
    assert_eq!(bundle(&carol, &room, &root), Value::Null);
    let mine = reply(&carol, &room, &root, "third");
    reply(&bob, &room, &root, "fourth");
    let thread = &bundle(&carol, &room, &root)["m.thread"];
    assert_eq!((&thread["count"], &thread["latest_event"]["event_id"]), (&json!(1), &json!(mine)));
    assert_eq!(bundle(&alice, &room, &root)["m.thread"]["count"], 4);
}

#[test]
fn only_a_valid_edit_is_told_and_the_latest_of_them_whole() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let original = alice.send(&room, "original");
    let told = |reader: &TestUser| bundle(reader, &room, &original)["m.replace"]["event_id"].clone();
    edit(&bob, &room, &original, "not his");
    assert_eq!(told(&alice), Value::Null);
    let first = edit(&alice, &room, &original, "first");
    // Another type, no new content, a state event, an edit of an edit: none of these is one.
    let content = edit_content(&original, "another type");
    send(&alice, &room, "org.example.message", content);
    send(
        &alice,
        &room,
        "m.room.message",
        json!({ "body": "x", "m.relates_to": related("m.replace", &original) }),
    );
    alice.set_state(&room, "m.room.message", "state", edit_content(&original, "state"));
    edit(&alice, &room, &first, "an edit of an edit");
    assert_eq!(told(&alice), json!(first));
    assert_eq!(bundle(&alice, &room, &first), Value::Null);
    let second = edit(&alice, &room, &original, "second");
    let shown = event(&bob, &room, &original);
    assert_eq!(shown["content"]["body"], "original", "the server changes no content");
    let replace = &shown["unsigned"]["m.relations"]["m.replace"];
    assert_eq!(replace["event_id"], second);
    assert_eq!(replace["content"]["m.new_content"]["body"], "second");
    assert_eq!((&replace["sender"], &replace["type"]), (&json!(alice.id()), &json!("m.room.message")));
    assert!(replace["unsigned"].get("transaction_id").is_none());
    assert!(
        event(&alice, &room, &original)["unsigned"]["m.relations"]["m.replace"]["unsigned"]["transaction_id"]
            .is_string()
    );
    // A redacted edit is none any more, and the one before counts again; of a redacted event none does.
    redact(&alice, &room, &second);
    assert_eq!(told(&bob), json!(first));
    redact(&alice, &room, &original);
    assert_eq!(bundle(&bob, &room, &original), Value::Null);
}

#[test]
fn an_edit_of_an_encrypted_event_is_one_without_new_content_in_the_clear() {
    let server = TestServer::start();
    let (alice, _, room) = two_in_a_room(&server);
    let encrypted = json!({ "algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "AwgAE", "session_id": "s" });
    let original = send(&alice, &room, "m.room.encrypted", encrypted.clone());
    let plain = edit(&alice, &room, &original, "in the clear");
    assert_eq!(bundle(&alice, &room, &original)["m.replace"], Value::Null, "{plain} has another type");
    let mut content = encrypted;
    content["m.relates_to"] = related("m.replace", &original);
    let edited = send(&alice, &room, "m.room.encrypted", content);
    assert_eq!(bundle(&alice, &room, &original)["m.replace"]["event_id"], edited);
}

#[test]
fn references_are_listed_and_reactions_are_left_to_clients() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let poll = alice.send(&room, "poll");
    let votes = [reference(&alice, &room, &poll), reference(&bob, &room, &poll)];
    send(&bob, &room, "m.reaction", reaction(&poll, "👍"));
    let list = |ids: &[&String]| ids.iter().map(|id| json!({ "event_id": id })).collect::<Vec<_>>();
    assert_eq!(
        bundle(&alice, &room, &poll),
        json!({ "m.reference": { "chunk": list(&[&votes[0], &votes[1]]) } })
    );
    redact(&alice, &room, &votes[0]);
    assert_eq!(bundle(&alice, &room, &poll)["m.reference"]["chunk"], json!(list(&[&votes[1]])));
    ignore(&alice, &[&bob]);
    assert_eq!(bundle(&alice, &room, &poll), Value::Null);
    // State has no bundles.
    let topic = alice.set_state(&room, "m.room.topic", "", json!({ "topic": "t" }));
    reference(&alice, &room, &topic);
    assert_eq!(bundle(&bob, &room, &topic), Value::Null);
}

#[test]
fn bundles_are_in_every_answer_that_the_specification_names() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let root = alice.send(&room, "root");
    let said = reply(&bob, &room, &root, "reply");
    let edited = edit(&bob, &room, &said, "edited");
    let of = |events: &Value, id: &str| {
        let events = events.as_array().unwrap_or_else(|| panic!("no events in {events}"));
        let event = events.iter().find(|event| event["event_id"] == id);
        event.unwrap_or_else(|| panic!("no {id} in {events:?}"))["unsigned"]["m.relations"].clone()
    };
    let check = |events: &Value| {
        assert_eq!(of(events, &root)["m.thread"]["latest_event"]["event_id"], said);
        assert_eq!(of(events, &said)["m.replace"]["event_id"], edited);
    };
    check(&alice.get(&room_path(&room, "messages?dir=b"))["chunk"]);
    let context = alice.get(&room_path(&room, &format!("context/{}", segment(&said))));
    assert_eq!(context["event"]["unsigned"]["m.relations"]["m.replace"]["event_id"], edited);
    check(&json!([context["event"], context["events_before"][0]]));
    let answer = alice.get(&relations_path(&room, &segment(&root)));
    assert_eq!(of(&answer["chunk"], &said)["m.replace"]["event_id"], edited);
    let listed = threads(&alice, &room, "");
    let within = &listed["chunk"][0]["unsigned"]["m.relations"]["m.thread"]["latest_event"]["unsigned"];
    assert_eq!(within["m.relations"]["m.replace"]["event_id"], edited);
    // `/sync` tells them where its timeline is limited: then there is what the client does not have.
    let limited = sync(&alice, &filter(&json!({ "room": { "timeline": { "limit": 3 } } })));
    let timeline = &limited["rooms"]["join"][&room]["timeline"];
    assert_eq!(timeline["limited"], true);
    check(&timeline["events"]);
    let whole = sync(&alice, &filter(&json!({ "room": { "timeline": { "limit": 50 } } })));
    let timeline = &whole["rooms"]["join"][&room]["timeline"];
    assert_eq!((&timeline["limited"], of(&timeline["events"], &root)), (&json!(false), Value::Null));
    let sliding = slide(&alice, None, &one_list(1, 3, &json!([])));
    check(&sliding["rooms"][&room]["timeline"]);
    // The raw format has no place for them.
    let raw = sync(
        &alice,
        &filter(&json!({ "event_format": "federation", "room": { "timeline": { "limit": 3 } } })),
    );
    assert!(!raw["rooms"]["join"][&room]["timeline"].to_string().contains("m.relations"));
}

#[test]
fn who_waits_is_told_of_relations_without_anybody_elses_bundle() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let carol = server.user("carol");
    carol.join(&room);
    ignore(&carol, &[&bob]);
    for user in [&alice, &carol] {
        user.initial_sync();
    }
    let (root, said) = std::thread::scope(|scope| {
        let waiting: Vec<_> = [&alice, &carol]
            .map(|user| {
                let room = &room;
                scope.spawn(move || {
                    user.sync_until("what is said last", |answer| {
                        let events = answer["rooms"]["join"][room]["timeline"]["events"].as_array()?;
                        assert!(
                            events.iter().all(|e| e["unsigned"].get("m.relations").is_none()),
                            "{events:?}"
                        );
                        events.iter().any(|e| e["content"]["body"] == "last").then_some(())
                    });
                })
            })
            .into_iter()
            .collect();
        let root = alice.send(&room, "root");
        let said = reply(&bob, &room, &root, "reply");
        alice.send(&room, "last");
        waiting.into_iter().for_each(|user| user.join().expect("a thread"));
        (root, said)
    });
    assert_eq!(bundle(&alice, &room, &root)["m.thread"]["latest_event"]["event_id"], said);
    assert_eq!(bundle(&carol, &room, &root), Value::Null);
}

#[test]
fn relations_are_paged_in_both_directions_and_filtered() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let root = alice.send(&room, "root");
    let said: Vec<String> = (0..5).map(|n| reply(&bob, &room, &root, &format!("{n}"))).collect();
    let vote = reference(&alice, &room, &root);
    let liked = send(&bob, &room, "m.reaction", reaction(&root, "👍"));
    let id = segment(&root);
    let mut all = said.clone();
    all.extend([vote.clone(), liked.clone()]);
    let reversed = |ids: &[String]| ids.iter().rev().cloned().collect::<Vec<_>>();
    assert_eq!(relations(&alice, &room, &id), reversed(&all));
    assert_eq!(relations(&alice, &room, &format!("{id}?dir=f")), all);
    assert_eq!(relations(&alice, &room, &format!("{id}/m.thread")), reversed(&said));
    assert_eq!(relations(&alice, &room, &format!("{id}/m.annotation/m.reaction")), [liked.as_str()]);
    assert_eq!(relations(&alice, &room, &format!("{id}/m.annotation/m.room.message")), [""; 0]);
    for dir in ["b", "f"] {
        let (mut seen, mut from) = (Vec::new(), String::new());
        loop {
            let page = alice.get(&relations_path(&room, &format!("{id}?dir={dir}&limit=2{from}")));
            assert_eq!(page.get("prev_batch").is_some(), !from.is_empty());
            assert!(page.get("recursion_depth").is_none() && ids(&page).len() <= 2);
            seen.extend(ids(&page));
            let Some(next) = page["next_batch"].as_str() else { break };
            from = format!("&from={}", segment(next));
        }
        assert_eq!(seen, if dir == "f" { all.clone() } else { reversed(&all) });
    }
    // Tokens of `/messages` and `/sync` stand for the same places.
    let batch = alice.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    let later = reply(&bob, &room, &root, "later");
    let batch = segment(&batch);
    assert_eq!(relations(&alice, &room, &format!("{id}?to={batch}")), [later.as_str()]);
    assert_eq!(relations(&alice, &room, &format!("{id}?dir=f&from={batch}")), [later.as_str()]);
    assert_eq!(relations(&alice, &room, &format!("{id}?from={batch}")), reversed(&all));
    for (wrong, status) in [
        (format!("{id}?limit=0"), 400),
        (format!("{id}?dir=x"), 400),
        (format!("{id}?from=nonsense"), 400),
        (format!("{id}?recurse=perhaps"), 400),
        ("$nothing".to_owned(), 404),
    ] {
        assert_eq!(alice.request("GET", &relations_path(&room, &wrong), None).0, status, "{wrong}");
    }
    let stranger = server.user("stranger");
    let secret = alice.create_room_with(json!({ "preset": "private_chat" }));
    let told = alice.send(&secret, "secret");
    assert_eq!(stranger.request("GET", &relations_path(&secret, &segment(&told)), None).0, 404);
    // What is in another room is not asked for through this one.
    assert_eq!(alice.request("GET", &relations_path(&room, &segment(&told)), None).0, 404);
}

#[test]
fn with_recursion_what_relates_by_way_of_others_is_told_three_events_deep() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let root = alice.send(&room, "root");
    let said = reply(&bob, &room, &root, "reply");
    let other = reply(&alice, &room, &root, "other");
    let vote = reference(&alice, &room, &said);
    let on_vote = reference(&bob, &room, &vote);
    let too_far = reference(&alice, &room, &on_vote);
    let edited = edit(&alice, &room, &other, "edited");
    let id = segment(&root);
    let path = |rest: &str| relations_path(&room, &format!("{id}{rest}"));
    let answer = alice.get(&path("?recurse=true"));
    let all = [&edited, &on_vote, &vote, &other, &said].map(String::clone);
    assert_eq!((&answer["recursion_depth"], ids(&answer)), (&json!(3), all.to_vec()), "but not {too_far}");
    let answer = alice.get(&path("?recurse=false"));
    assert_eq!((&answer["recursion_depth"], ids(&answer)), (&json!(0), vec![other.clone(), said.clone()]));
    let mut reversed = all.to_vec();
    reversed.reverse();
    let (mut seen, mut from) = (Vec::new(), String::new());
    loop {
        let page = alice.get(&path(&format!("?recurse=true&dir=f&limit=2{from}")));
        seen.extend(ids(&page));
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={}", segment(next));
    }
    assert_eq!(seen, reversed);
    // "Events that would match the filter, but whose only relation … is through a non-matching intermediate event, will
    // not be included."
    assert_eq!(ids(&alice.get(&path("/m.thread?recurse=true"))), [other.as_str(), said.as_str()]);
    assert_eq!(ids(&alice.get(&path("/m.reference?recurse=true"))), [""; 0]);
    let vote_id = segment(&said);
    assert_eq!(
        relations(&alice, &room, &format!("{vote_id}/m.reference?recurse=true")),
        [too_far.as_str(), on_vote.as_str(), vote.as_str()]
    );
    redact(&bob, &room, &on_vote);
    assert_eq!(relations(&alice, &room, &format!("{vote_id}?recurse=true")), [vote.as_str()]);
}

#[test]
fn what_is_redacted_or_ignored_is_no_relation_and_a_redacted_parent_keeps_its_own() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let root = alice.send(&room, "root");
    let said = reply(&bob, &room, &root, "reply");
    let liked = send(&bob, &room, "m.reaction", reaction(&root, "👍"));
    let mine = reply(&alice, &room, &root, "mine");
    redact(&bob, &room, &liked);
    assert_eq!(relations(&bob, &room, &segment(&root)), [mine.as_str(), said.as_str()]);
    redact(&alice, &room, &root);
    assert_eq!(relations(&bob, &room, &segment(&root)), [mine.as_str(), said.as_str()]);
    assert_eq!(bundle(&bob, &room, &root)["m.thread"]["count"], 2);
    assert_eq!(ids(&threads(&bob, &room, "")), [root.as_str()]);
    ignore(&alice, &[&bob]);
    assert_eq!(relations(&alice, &room, &segment(&root)), [mine.as_str()]);
}

#[test]
fn threads_come_by_their_latest_reply_and_go_with_their_last_one() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let roots: Vec<String> = (0..4).map(|n| alice.send(&room, &format!("root {n}"))).collect();
    assert_eq!(ids(&threads(&alice, &room, "")), [""; 0]);
    for root in &roots {
        reply(&bob, &room, root, "first");
    }
    let by = |order: &[usize]| order.iter().map(|n| roots[*n].clone()).collect::<Vec<_>>();
    assert_eq!(ids(&threads(&alice, &room, "")), by(&[3, 2, 1, 0]));
    let again = reply(&alice, &room, &roots[1], "again");
    assert_eq!(ids(&threads(&alice, &room, "")), by(&[1, 3, 2, 0]));
    let (mut seen, mut from) = (Vec::new(), String::new());
    loop {
        let page = threads(&alice, &room, &format!("?limit=3{from}"));
        seen.extend(ids(&page));
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={}", segment(next));
    }
    assert_eq!(seen, by(&[1, 3, 2, 0]));
    redact(&alice, &room, &again);
    assert_eq!(ids(&threads(&alice, &room, "")), by(&[3, 2, 1, 0]), "it moves when its latest reply goes");
    let first = relations(&alice, &room, &segment(&roots[2]));
    redact(&bob, &room, &first[0]);
    assert_eq!(ids(&threads(&alice, &room, "")), by(&[3, 1, 0]), "it goes with its last reply");
    assert_eq!(bundle(&alice, &room, &roots[2]), Value::Null);
    // Only Alice began threads, so Bob took part by his replies alone.
    let bobs = bob.send(&room, "Bob's");
    reply(&alice, &room, &bobs, "hers");
    let carols = server.user("carol");
    carols.join(&room);
    let own = carols.send(&room, "Carol's");
    reply(&carols, &room, &own, "hers");
    assert_eq!(ids(&threads(&carols, &room, "?include=participated")), [own.as_str()]);
    assert_eq!(ids(&threads(&bob, &room, "?include=participated"))[0], bobs);
    assert_eq!(ids(&threads(&alice, &room, "?include=all")).len(), 5);
    for (wrong, status) in [("?include=x", 400), ("?limit=0", 400), ("?from=x", 400)] {
        let path = format!("/_matrix/client/v1/rooms/{}/threads{wrong}", segment(&room));
        assert_eq!(alice.request("GET", &path, None).0, status);
    }
    let secret = alice.create_room_with(json!({ "preset": "private_chat" }));
    let path = format!("/_matrix/client/v1/rooms/{}/threads", segment(&secret));
    assert_eq!(bob.request("GET", &path, None).0, 403);
}

#[test]
fn who_ignores_somebody_has_threads_in_the_order_of_what_they_see() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let carol = server.user("carol");
    carol.join(&room);
    let roots: Vec<String> = (0..3).map(|n| alice.send(&room, &format!("root {n}"))).collect();
    for root in &roots {
        reply(&alice, &room, root, "seen");
    }
    let bobs = bob.send(&room, "Bob's");
    reply(&alice, &room, &bobs, "in Bob's");
    let only_his = alice.send(&room, "only Bob replies");
    reply(&bob, &room, &only_his, "his");
    reply(&bob, &room, &roots[0], "his");
    ignore(&carol, &[&bob]);
    let expected = [&roots[2], &roots[1], &roots[0]].map(String::clone);
    let page = threads(&carol, &room, "");
    assert_eq!(ids(&page), expected);
    for thread in page["chunk"].as_array().expect("threads") {
        assert_eq!(thread["unsigned"]["m.relations"]["m.thread"]["latest_event"]["sender"], alice.id());
        assert_eq!(thread["unsigned"]["m.relations"]["m.thread"]["count"], 1);
    }
    let first = threads(&carol, &room, "?limit=2");
    let next = format!("?from={}", segment(first["next_batch"].as_str().expect("more")));
    assert_eq!([ids(&first), ids(&threads(&carol, &room, &next))].concat(), expected);
    assert_eq!(ids(&threads(&alice, &room, ""))[..2], [roots[0].clone(), only_his]);
}

#[test]
fn nobody_is_told_of_what_was_said_when_they_could_not_see_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (bob, carol) = (server.user("bob"), server.user("carol"));
    let joined = json!([{ "type": "m.room.history_visibility", "state_key": "",
        "content": { "history_visibility": "joined" } }]);
    let room = alice.create_room_with(json!({ "preset": "public_chat", "initial_state": joined }));
    carol.join(&room);
    let before = alice.send(&room, "before Bob");
    reply(&alice, &room, &before, "before Bob too");
    bob.join(&room);
    let root = alice.send(&room, "root");
    let seen = reply(&alice, &room, &root, "seen");
    reply(&alice, &room, &before, "in a thread whose root Bob does not see");
    assert_eq!(ids(&threads(&bob, &room, "")), [root.as_str()]);
    assert_eq!(ids(&threads(&carol, &room, "")), [before.as_str(), root.as_str()]);
    assert_eq!(bob.request("GET", &relations_path(&room, &segment(&before)), None).0, 404);
    bob.leave(&room);
    reply(&alice, &room, &root, "after Bob");
    reference(&alice, &room, &root);
    edit(&alice, &room, &root, "after Bob");
    assert_eq!(relations(&bob, &room, &segment(&root)), [seen.as_str()]);
    let told = bundle(&bob, &room, &root);
    assert_eq!(told.as_object().map(serde_json::Map::len), Some(1), "{told}");
    assert_eq!(told["m.thread"]["latest_event"]["event_id"], seen);
    assert_eq!(told["m.thread"]["count"], 1);
    assert_eq!(ids(&threads(&bob, &room, "")), [root.as_str()]);
    assert_eq!(bundle(&carol, &room, &root)["m.thread"]["count"], 2);
}

#[test]
fn a_second_reaction_of_the_same_kind_is_refused_until_the_first_is_redacted() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let target = alice.send(&room, "target");
    let first = send(&alice, &room, "m.reaction", reaction(&target, "👍"));
    let (status, answer) = try_send(&alice, &room, "m.reaction", reaction(&target, "👍"));
    assert_eq!((status, &answer["errcode"]), (400, &json!("M_DUPLICATE_ANNOTATION")));
    assert_eq!(relations(&alice, &room, &segment(&target)), [first.as_str()], "nothing is half written");
    // Another key, another type, another user and another event are no repeats.
    send(&alice, &room, "m.reaction", reaction(&target, "👎"));
    send(&alice, &room, "org.example.reaction", reaction(&target, "👍"));
    send(&bob, &room, "m.reaction", reaction(&target, "👍"));
    let other = alice.send(&room, "other");
    send(&alice, &room, "m.reaction", reaction(&other, "👍"));
    redact(&alice, &room, &first);
    send(&alice, &room, "m.reaction", reaction(&target, "👍"));
    // A repeat of the transaction is no second reaction.
    let path = room_path(&room, "send/m.reaction/once");
    let sent = bob.put(&path, reaction(&other, "👎"));
    assert_eq!(bob.put(&path, reaction(&other, "👎")), sent);
    // Of many at once one is the first.
    let answers: Vec<u16> = std::thread::scope(|scope| {
        let send = || try_send(&bob, &room, "m.reaction", reaction(&other, "🎉")).0;
        let sending: Vec<_> = (0..8).map(|_| scope.spawn(send)).collect();
        sending.into_iter().map(|sent| sent.join().expect("a thread")).collect()
    });
    assert_eq!(answers.iter().filter(|status| **status == 200).count(), 1, "{answers:?}");
}

#[test]
fn no_thread_begins_at_an_event_that_relates_to_another() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let root = alice.send(&room, "root");
    let said = reply(&bob, &room, &root, "reply");
    let liked = send(&bob, &room, "m.reaction", reaction(&root, "👍"));
    let edited = edit(&alice, &room, &root, "edited");
    let before = relations(&alice, &room, &segment(&root));
    for parent in [&said, &liked, &edited] {
        let content = json!({ "body": "nested", "m.relates_to": related("m.thread", parent) });
        let (status, answer) = try_send(&alice, &room, "m.room.message", content);
        assert_eq!((status, &answer["errcode"]), (400, &json!("M_UNKNOWN")), "{answer}");
        assert_eq!(bundle(&alice, &room, parent), Value::Null);
    }
    assert_eq!(relations(&alice, &room, &segment(&root)), before);
    // A mere reply has no `rel_type`, and so it is not in the way.
    let content = json!({ "body": "re", "m.relates_to": { "m.in_reply_to": { "event_id": root } } });
    let answer = send(&bob, &room, "m.room.message", content);
    reply(&alice, &room, &answer, "in its thread");
    assert_eq!(bundle(&alice, &room, &answer)["m.thread"]["count"], 1);
    assert_eq!(relations(&alice, &room, &segment(&root)), before, "a reply is no relation");
}

#[test]
fn no_relation_reaches_into_another_room_and_odd_ones_are_none() {
    let server = TestServer::start();
    let (alice, _, room) = two_in_a_room(&server);
    let elsewhere = alice.create_room();
    let target = alice.send(&elsewhere, "elsewhere");
    reply(&alice, &room, &target, "across");
    edit(&alice, &room, &target, "across");
    reference(&alice, &room, &target);
    assert_eq!(bundle(&alice, &elsewhere, &target), Value::Null);
    assert_eq!(relations(&alice, &elsewhere, &segment(&target)), [""; 0]);
    assert_eq!(ids(&threads(&alice, &room, "")), [""; 0]);
    assert_eq!(ids(&threads(&alice, &elsewhere, "")), [""; 0]);
    let here = alice.send(&room, "here");
    for odd in [
        json!(null),
        json!("m.thread"),
        json!([]),
        json!(7),
        json!({ "rel_type": "m.thread" }),
        json!({ "event_id": here }),
        json!({ "rel_type": ["m.thread"], "event_id": here }),
        json!({ "rel_type": "m.thread", "event_id": { "event_id": here } }),
        json!({ "rel_type": "x".repeat(300), "event_id": here }),
        json!({ "rel_type": "", "event_id": here }),
        json!({ "rel_type": "m.thread", "event_id": "$nobody-has-this" }),
    ] {
        send(&alice, &room, "m.room.message", json!({ "body": "odd", "m.relates_to": odd }));
    }
    send(
        &alice,
        &room,
        "m.reaction",
        json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": here, "key": [1] } }),
    );
    assert_eq!(bundle(&alice, &room, &here), Value::Null);
    assert_eq!(ids(&threads(&alice, &room, "")), [""; 0]);
    assert_eq!(relations(&alice, &room, &segment(&here)).len(), 1);
    let page = alice.get(&room_path(&room, "messages?dir=b&limit=100"));
    assert!(page["chunk"].as_array().is_some_and(|chunk| chunk.len() > 15), "all of it is told");
}

#[test]
fn clients_that_ask_for_relations_under_unstable_get_the_event_itself_too() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let root = alice.send(&room, "the root");
    let answer = reply(&bob, &room, &root, "an answer");
    edit(&alice, &room, &root, "the root, edited");
    let path = |version: &str| {
        let (room, root) = (segment(&room), segment(&root));
        format!("/_matrix/client/{version}/rooms/{room}/relations/{root}/m.thread?limit=5")
    };
    let (page, usual) = (alice.get(&path("unstable")), alice.get(&path("v1")));
    assert_eq!((ids(&page), ids(&usual)), (vec![answer.clone()], vec![answer]));
    let original = &page["original_event"];
    assert_eq!((&original["event_id"], &original["content"]["body"]), (&json!(root), &json!("the root")));
    assert!(original["unsigned"].get("m.relations").is_none(), "{original}");
    assert!(usual.get("original_event").is_none(), "{usual}");
    let carol = server.user("carol");
    assert_eq!(carol.request("GET", &path("unstable"), None).0, 404);
}

#[test]
fn history_is_filtered_by_what_relates_to_it() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let roots: Vec<String> = (0..3).map(|n| alice.send(&room, &format!("{n}"))).collect();
    reply(&bob, &room, &roots[0], "Bob's");
    reply(&alice, &room, &roots[1], "Alice's");
    send(&bob, &room, "m.reaction", reaction(&roots[2], "👍"));
    let found = |asked: Value| {
        let query = filter(&asked);
        ids(&alice.get(&room_path(&room, &format!("messages?dir=f&{query}"))))
    };
    assert_eq!(found(json!({ "related_by_rel_types": ["m.thread"] })), [roots[0].clone(), roots[1].clone()]);
    assert_eq!(found(json!({ "related_by_senders": [bob.id()] })), [roots[0].clone(), roots[2].clone()]);
    let both = json!({ "related_by_senders": [bob.id()], "related_by_rel_types": ["m.thread"] });
    assert_eq!(found(both), [roots[0].as_str()]);
    assert_eq!(found(json!({ "related_by_rel_types": [] })), [""; 0]);
    let path =
        room_path(&room, &format!("messages?dir=f&{}", filter(&json!({ "related_by_senders": ["bob"] }))));
    assert_eq!(alice.request("GET", &path, None).0, 400);
    let many: Vec<String> = (0..12).map(|n| format!("org.example.{n}")).collect();
    let query = filter(&json!({ "related_by_rel_types": many }));
    assert_eq!(alice.request("GET", &room_path(&room, &format!("messages?dir=f&{query}")), None).0, 400);
}

#[test]
fn a_filter_by_relations_knows_only_those_that_its_reader_may_see() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let carol = server.user("carol");
    carol.join(&room);
    let roots: Vec<String> = (0..2).map(|n| alice.send(&room, &format!("{n}"))).collect();
    send(&carol, &room, "m.reaction", reaction(&roots[0], "👍"));
    let found = |user: &TestUser, asked: Value| {
        ids(&user.get(&room_path(&room, &format!("messages?dir=f&{}", filter(&asked)))))
    };
    let asked = [
        json!({ "related_by_rel_types": ["m.annotation", "m.reference"] }),
        json!({ "related_by_senders": [carol.id()] }),
        json!({ "related_by_senders": [carol.id()], "related_by_rel_types": ["m.annotation"] }),
    ];
    for asked in &asked {
        assert_eq!(found(&bob, asked.clone()), [roots[0].as_str()], "{asked}");
    }
    ignore(&bob, &[&carol]);
    for asked in &asked {
        assert_eq!(found(&bob, asked.clone()), [""; 0], "by whom one ignores: {asked}");
    }
    ignore(&bob, &[]);
    bob.leave(&room);
    send(&carol, &room, "m.reaction", reaction(&roots[1], "👍"));
    for asked in &asked {
        assert_eq!(found(&bob, asked.clone()), [roots[0].as_str()], "after one left: {asked}");
        assert_eq!(found(&alice, asked.clone()), [roots[0].clone(), roots[1].clone()], "{asked}");
    }
}

#[test]
fn a_thread_is_not_counted_by_what_was_said_in_it_when_its_reader_could_not_see_it() {
    let server = TestServer::start();
    let (alice, bob, room) = two_in_a_room(&server);
    let (carol, dave) = (server.user("carol"), server.user("dave"));
    dave.join(&room);
    let setting = |setting: &str| {
        alice.set_state(&room, "m.room.history_visibility", "", json!({ "history_visibility": setting }))
    };
    let root = alice.send(&room, "root");
    reply(&bob, &room, &root, "seen by all");
    setting("joined");
    for n in 0..3 {
        reply(&alice, &room, &root, &format!("hidden {n}"));
        reply(&dave, &room, &root, &format!("hidden too {n}"));
    }
    setting("shared");
    carol.join(&room);
    let count = |user: &TestUser| bundle(user, &room, &root)["m.thread"]["count"].clone();
    assert_eq!((count(&carol), count(&bob)), (json!(1), json!(7)));
    reply(&bob, &room, &root, "seen by all");
    reply(&dave, &room, &root, "seen by all");
    assert_eq!((count(&carol), count(&bob)), (json!(3), json!(9)));
    ignore(&carol, &[&dave]);
    ignore(&bob, &[&dave]);
    assert_eq!((count(&carol), count(&bob)), (json!(2), json!(5)));
}

#[test]
fn clients_that_look_for_threads_find_what_they_look_for() {
    let server = TestServer::start();
    let versions = server.user("alice").get("/_matrix/client/versions");
    for feature in ["org.matrix.msc3440.stable", "org.matrix.msc3856.stable", "org.matrix.msc3715.stable"] {
        assert_eq!(versions["unstable_features"][feature], true, "{feature}");
    }
    assert!(versions["versions"].as_array().is_some_and(|versions| versions.contains(&json!("v1.4"))));
}

#[test]
fn what_was_erased_relates_to_nothing_for_those_who_come_later() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (id, token) = server.homeserver().accounts().register_user("bob", Some("pw")).expect("an account");
    let bob = TestUser::new(server.url(), id.as_str(), &token);
    let room = alice.create_room();
    bob.join(&room);
    let root = alice.send(&room, "root");
    let mine = reply(&alice, &room, &root, "mine");
    let his = reply(&bob, &room, &root, "his");
    let his_root = bob.send(&room, "his root");
    edit(&bob, &room, &his_root, "edited");
    let other = alice.send(&room, "only Bob replies");
    reply(&bob, &room, &other, "his too");
    let identifier = json!({ "type": "m.id.user", "user": bob.id() });
    let auth = json!({ "type": "m.login.password", "identifier": identifier, "password": "pw" });
    bob.post(&format!("{V3}/account/deactivate"), json!({ "auth": auth, "erase": true }));
    let dave = server.user("dave");
    dave.join(&room);
    assert_eq!(bundle(&dave, &room, &root)["m.thread"]["latest_event"]["event_id"], mine);
    assert_eq!(bundle(&dave, &room, &his_root), Value::Null);
    assert_eq!(relations(&dave, &room, &segment(&root)), [mine.as_str()]);
    assert_eq!(ids(&threads(&dave, &room, "")), [root.as_str()]);
    assert_eq!(relations(&alice, &room, &segment(&root)), [his.as_str(), mine.as_str()]);
    assert_eq!(bundle(&alice, &room, &his_root)["m.replace"]["content"]["m.new_content"]["body"], "edited");
    assert_eq!(ids(&threads(&alice, &room, "")), [other.as_str(), root.as_str()]);
}
