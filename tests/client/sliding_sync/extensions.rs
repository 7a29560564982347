//! The extensions of sliding sync: what is told beside rooms, when, and that it wakes a request that waits.

use std::time::Duration;

use crate::common::client::{V3, one_list, room_path, slide, sliding_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn with(extensions: Value) -> Value {
    let mut body = one_list(20, 5, &json!([]));
    body["extensions"] = extensions;
    body
}

fn device_of(user: &TestUser) -> String {
    user.get(&format!("{V3}/account/whoami"))["device_id"].as_str().expect("a device").to_owned()
}

fn send_to_device(from: &TestUser, to: &TestUser, text: &str) {
    let path = format!("{V3}/sendToDevice/a.b/{text}");
    from.put(&path, json!({ "messages": { to.id(): { device_of(to): { "text": text } } } }));
}

fn texts(answer: &Value) -> Vec<&str> {
    let events = answer["extensions"]["to_device"]["events"].as_array().expect("events");
    events.iter().map(|event| event["content"]["text"].as_str().expect("a text")).collect()
}

/// What a request that waits is answered once `f` has happened.
fn woken_by(server: &TestServer, user: &TestUser, last: &Value, body: &Value, f: impl FnOnce()) -> Value {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| user.post(&sliding_path(Some(last), 60_000), body.clone()));
        while server.homeserver().notifier.waiting() == 0 {
            std::thread::yield_now();
        }
        f();
        waiting.join().expect("an answer")
    })
}

#[test]
fn messages_to_the_device_are_kept_until_the_next_token_proves_that_they_came() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let body = |since: Option<&Value>| {
        let mut body = json!({ "conn_id": "encryption", "extensions": { "to_device": { "enabled": true } } });
        if let Some(since) = since {
            body["extensions"]["to_device"]["since"] = since.clone();
        }
        body
    };
    let next = |answer: &Value| answer["extensions"]["to_device"]["next_batch"].clone();
    let first = slide(&alice, None, &body(None));
    assert_eq!(texts(&first), [""; 0]);
    assert!(next(&first).is_string(), "always");
    let second =
        woken_by(&server, &alice, &first, &body(Some(&next(&first))), || send_to_device(&bob, &alice, "1"));
    assert_eq!(texts(&second), ["1"]);
    send_to_device(&bob, &alice, "2");
    // The answer was lost; and the connection with it: the token for messages is one of its own.
    let again = slide(&alice, None, &body(Some(&next(&first))));
    assert_eq!(texts(&again), ["1", "2"]);
    let third = slide(&alice, None, &body(Some(&next(&second))));
    assert_eq!(texts(&third), ["2"]);
    let fourth = slide(&alice, Some(&third), &body(Some(&next(&third))));
    assert_eq!(texts(&fourth), [""; 0]);
    // What was proved is gone, for everybody.
    assert_eq!(texts(&slide(&alice, None, &body(None))), [""; 0]);
    assert!(alice.get(&format!("{V3}/sync")).get("to_device").is_none());
    // A token of the future proves nothing.
    send_to_device(&bob, &alice, "3");
    let future = json!("999999999999");
    let answer = slide(&alice, None, &body(Some(&future)));
    assert_eq!((texts(&answer), next(&answer)), (vec![], future));
    assert_eq!(texts(&slide(&alice, None, &body(Some(&next(&fourth))))), ["3"]);
}

#[test]
fn more_messages_than_the_limit_come_with_the_next_request_which_does_not_wait() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for n in 0..5 {
        send_to_device(&bob, &alice, &n.to_string());
    }
    let mut body = json!({ "extensions": { "to_device": { "enabled": true, "limit": 2 } } });
    let (mut all, mut last) = (Vec::new(), None);
    for _ in 0..3 {
        let answer = alice.post(&sliding_path(last.as_ref(), 60_000), body.clone());
        all.extend(texts(&answer).into_iter().map(str::to_owned));
        body["extensions"]["to_device"]["since"] = answer["extensions"]["to_device"]["next_batch"].clone();
        last = Some(answer);
    }
    assert_eq!(all, ["0", "1", "2", "3", "4"]);
}

#[test]
fn key_counts_are_in_every_answer_and_device_lists_only_where_something_was_asked_before() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    let body = json!({ "conn_id": "encryption", "extensions": { "e2ee": { "enabled": true } } });
    let first = slide(&alice, None, &body);
    let e2ee = &first["extensions"]["e2ee"];
    assert_eq!(e2ee["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
    assert_eq!(e2ee["device_unused_fallback_key_types"], json!([]));
    assert!(e2ee.get("device_lists").is_none());
    let second = woken_by(&server, &alice, &first, &body, || drop(bob.join(&room)));
    assert_eq!(second["extensions"]["e2ee"]["device_lists"]["changed"], json!([bob.id()]));
    let third = slide(&alice, Some(&second), &body);
    assert_eq!(third["extensions"]["e2ee"]["device_one_time_keys_count"]["signed_curve25519"], 0);
    bob.leave(&room);
    let fourth = slide(&alice, Some(&third), &body);
    assert_eq!(fourth["extensions"]["e2ee"]["device_lists"]["left"], json!([bob.id()]));
    assert_eq!(fourth["rooms"], json!({}), "no room was asked for");
}

#[test]
fn a_device_whose_keys_are_claimed_is_told_so_at_once() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let keys = alice.upload_keys(&["a", "b"]);
    let device = keys.device_id();
    let body = json!({ "conn_id": "encryption", "extensions": { "e2ee": { "enabled": true } } });
    let mut last = slide(&alice, None, &body);
    let count = |answer: &Value| {
        answer["extensions"]["e2ee"]["device_one_time_keys_count"]["signed_curve25519"].clone()
    };
    assert_eq!(count(&last), 2);
    let at_once = |started: std::time::Instant| assert!(started.elapsed() < Duration::from_secs(30));
    for left in [1, 0] {
        let started = std::time::Instant::now();
        last = woken_by(&server, &alice, &last, &body, || drop(bob.claim_key(alice.id(), device)));
        assert_eq!(count(&last), left);
        at_once(started);
    }
    let upload = || {
        alice.post(&format!("{V3}/keys/upload"), json!({ "one_time_keys": keys.one_time_keys(&["c"]) }));
    };
    last = woken_by(&server, &alice, &last, &body, upload);
    assert_eq!(count(&last), 1);
    // What it knows is no news.
    let started = std::time::Instant::now();
    alice.post(&sliding_path(Some(&last), 300), body);
    assert!(started.elapsed() >= Duration::from_millis(300));
}

#[test]
fn account_data_is_told_whole_at_first_and_then_as_it_changes_and_wakes() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let global = format!("{V3}/user/{}/account_data/a.b", alice.id());
    let of_room = format!("{V3}/user/{}/rooms/{room}/account_data/m.marked_unread", alice.id());
    alice.put(&global, json!({ "n": 1 }));
    alice.put(&of_room, json!({ "unread": true }));
    alice.put(&format!("{V3}/user/{}/rooms/{room}/tags/u.t", alice.id()), json!({}));
    let body = with(json!({ "account_data": { "enabled": true } }));
    let first = slide(&alice, None, &body);
    let types = |events: &Value| -> Vec<String> {
        let events = events.as_array().expect("events").iter();
        events.map(|event| event["type"].as_str().expect("a type").to_owned()).collect()
    };
    let data = &first["extensions"]["account_data"];
    assert_eq!(types(&data["global"]), ["m.push_rules", "a.b"]);
    assert_eq!(types(&data["rooms"][&room]), ["m.marked_unread", "m.tag"]);
    let second = woken_by(&server, &alice, &first, &body, || drop(alice.put(&global, json!({ "n": 2 }))));
    let data = &second["extensions"]["account_data"];
    assert_eq!(data["global"], json!([{ "type": "a.b", "content": { "n": 2 } }]));
    assert_eq!(second["rooms"], json!({}));
    let third =
        woken_by(&server, &alice, &second, &body, || drop(alice.put(&of_room, json!({ "unread": false }))));
    let data = &third["extensions"]["account_data"];
    assert_eq!(
        (types(&data["global"]), types(&data["rooms"][&room])),
        (vec![], vec!["m.marked_unread".to_owned()])
    );
    // Asked for later, it is told whole all the same.
    let late = slide(&alice, None, &with(json!({})));
    let late = slide(&alice, Some(&late), &body);
    assert_eq!(types(&late["extensions"]["account_data"]["global"]), ["m.push_rules", "a.b"]);
    assert_eq!(late["extensions"]["account_data"]["rooms"][&room].as_array().map(Vec::len), Some(2));
}

#[test]
fn receipts_of_a_new_room_are_those_of_its_timeline_and_the_own_ones() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    let (old, new) = {
        bob.join(&room);
        carol.join(&room);
        let old = alice.send(&room, "old");
        (0..5).for_each(|n| drop(alice.send(&room, &n.to_string())));
        (old, alice.send(&room, "new"))
    };
    let read = |user: &TestUser, kind: &str, event: &str| {
        user.post(&room_path(&room, &format!("receipt/{kind}/{}", segment(event))), json!({}));
    };
    read(&alice, "m.read.private", &old);
    read(&bob, "m.read", &old);
    read(&carol, "m.read", &new);
    let body = with(json!({ "receipts": { "enabled": true, "rooms": ["*"] } }));
    let first = slide(&alice, None, &body);
    let receipts = &first["extensions"]["receipts"]["rooms"][&room];
    assert_eq!(receipts["type"], "m.receipt");
    let content = &receipts["content"];
    assert!(content[&old]["m.read.private"][alice.id()]["ts"].is_i64());
    assert!(content[&old].get("m.read").is_none(), "bob's is about an event that the client does not have");
    assert!(content[&new]["m.read"][carol.id()].is_object());
    // Later all changes are told, the room itself is not, and nobody's private one is.
    let second = woken_by(&server, &alice, &first, &body, || read(&bob, "m.read", &new));
    assert!(
        second["extensions"]["receipts"]["rooms"][&room]["content"][&new]["m.read"][bob.id()].is_object()
    );
    assert_eq!(second["rooms"], json!({}));
    let of_bob = slide(&bob, None, &body);
    assert!(!of_bob["extensions"]["receipts"].to_string().contains("private"));
    let third = slide(&alice, Some(&second), &body);
    assert_eq!(third["extensions"]["receipts"]["rooms"], json!({}));
}

#[test]
fn of_two_receipts_of_a_user_at_one_event_that_is_told_which_covers_more() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let root = alice.send(&room, "root");
    let body = with(json!({ "receipts": { "enabled": true } }));
    let mut last = slide(&alice, None, &body);
    for threads in [["", &root], [&root, ""], ["main", ""], ["", "main"]] {
        let mut content = json!({ "msgtype": "m.text", "body": "x" });
        if threads.contains(&root.as_str()) {
            content["m.relates_to"] = json!({ "rel_type": "m.thread", "event_id": root });
        }
        let event = alice.send_event(&room, "m.room.message", content);
        for thread in threads {
            let thread = if thread.is_empty() { json!({}) } else { json!({ "thread_id": thread }) };
            bob.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&event))), thread);
        }
        last = slide(&alice, Some(&last), &body);
        let content = &last["extensions"]["receipts"]["rooms"][&room]["content"];
        let receipt = &content[&event]["m.read"][bob.id()];
        assert!(receipt["ts"].is_i64() && receipt.get("thread_id").is_none(), "{threads:?}: {content}");
    }
}

#[test]
fn the_first_receipt_in_a_room_is_told_to_those_who_know_the_room() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let event = alice.send(&room, "m");
    let body = with(json!({ "receipts": { "enabled": true } }));
    let first = slide(&alice, None, &body);
    bob.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&event))), json!({}));
    let second = slide(&alice, Some(&first), &body);
    assert!(
        second["extensions"]["receipts"]["rooms"][&room]["content"][&event]["m.read"][bob.id()].is_object()
    );
}

#[test]
fn who_is_typing_is_told_as_a_whole_list_also_when_it_is_empty_and_never_at_first() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let typing = |timeout: u64| {
        let path = room_path(&room, &format!("typing/{}", bob.id()));
        bob.put(&path, json!({ "typing": timeout > 0, "timeout": timeout }));
    };
    typing(30_000);
    let body = with(json!({ "typing": { "enabled": true } }));
    let first = slide(&alice, None, &body);
    assert_eq!(first["extensions"]["typing"]["rooms"], json!({}));
    let list = |answer: &Value| answer["extensions"]["typing"]["rooms"][&room]["content"]["user_ids"].clone();
    let second = woken_by(&server, &alice, &first, &body, || typing(0));
    assert_eq!(list(&second), json!([]));
    let third = woken_by(&server, &alice, &second, &body, || typing(5_000));
    assert_eq!(list(&third), json!([bob.id()]));
    // What ends by itself wakes as well.
    let fourth = woken_by(&server, &alice, &third, &body, || server.advance(Duration::from_secs(60)));
    assert_eq!(list(&fourth), json!([]));
    // And nothing once the user is out (rule 14).
    bob.send(&room, "m");
    let fifth = slide(&alice, Some(&fourth), &body);
    alice.leave(&room);
    typing(30_000);
    let sixth = slide(&alice, Some(&fifth), &body);
    assert_eq!(sixth["extensions"]["typing"]["rooms"], json!({}));
}

#[test]
fn who_comes_back_is_told_who_is_typing_also_if_it_is_nobody_any_more() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let typing = |types: bool| {
        let path = room_path(&room, &format!("typing/{}", bob.id()));
        bob.put(&path, json!({ "typing": types, "timeout": 30_000 }));
    };
    let body = with(json!({ "typing": { "enabled": true } }));
    let list = |answer: &Value| answer["extensions"]["typing"]["rooms"][&room]["content"]["user_ids"].clone();
    let mut last = slide(&alice, None, &body);
    typing(true);
    last = slide(&alice, Some(&last), &body);
    assert_eq!(list(&last), json!([bob.id()]));
    for back_at_once in [false, true] {
        alice.leave(&room);
        typing(false);
        if !back_at_once {
            last = slide(&alice, Some(&last), &body);
        }
        alice.join(&room);
        last = slide(&alice, Some(&last), &body);
        assert_eq!(list(&last), json!([]), "{back_at_once}");
        typing(true);
        last = slide(&alice, Some(&last), &body);
        assert_eq!(list(&last), json!([bob.id()]));
    }
    // Who types when one comes in is told as well.
    alice.leave(&room);
    last = slide(&alice, Some(&last), &body);
    alice.join(&room);
    assert_eq!(list(&slide(&alice, Some(&last), &body)), json!([bob.id()]));
}

#[test]
fn an_extension_is_about_the_lists_and_rooms_that_it_names() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (listed, subscribed) = (alice.create_room(), alice.create_room());
    for room in [&listed, &subscribed] {
        alice.put(&format!("{V3}/user/{}/rooms/{room}/account_data/a.b", alice.id()), json!({}));
    }
    alice.send(&listed, "top");
    let told = |scope: Value| -> Vec<String> {
        let mut extension = scope;
        extension["enabled"] = json!(true);
        let mut body = one_list(1, 1, &json!([]));
        body["room_subscriptions"][&subscribed] = json!({ "timeline_limit": 1, "required_state": [] });
        body["extensions"] = json!({ "account_data": extension });
        let answer = slide(&alice, None, &body);
        let rooms = answer["extensions"]["account_data"]["rooms"].as_object().expect("rooms");
        rooms.keys().cloned().collect()
    };
    let mut both = [listed.clone(), subscribed.clone()];
    both.sort();
    assert_eq!(told(json!({})), both);
    assert_eq!(told(json!({ "lists": ["*"], "rooms": ["*"] })), both);
    assert_eq!(told(json!({ "lists": [], "rooms": [] })), [""; 0]);
    assert_eq!(told(json!({ "lists": ["all"], "rooms": [] })), [listed.as_str()]);
    assert_eq!(told(json!({ "lists": ["other"] })), [subscribed.as_str()]);
    assert_eq!(told(json!({ "lists": [], "rooms": [&listed] })), [listed.as_str()]);
}

#[test]
fn receipts_at_the_events_of_a_timeline_that_goes_further_back_come_with_them() {
    let server = TestServer::start();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let room = alice.create_room();
    bob.join(&room);
    carol.join(&room);
    let sent: Vec<String> = (0..10).map(|n| alice.send(&room, &n.to_string())).collect();
    carol.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&sent[7]))), json!({}));
    let body = |limit: u64| {
        let mut body = one_list(20, limit, &json!([]));
        body["extensions"] = json!({ "receipts": { "enabled": true } });
        body
    };
    let receipts = |answer: &Value| answer["extensions"]["receipts"]["rooms"][&room]["content"].clone();
    let first = slide(&bob, None, &body(1));
    assert_eq!(receipts(&first), Value::Null);
    let expanded = slide(&bob, Some(&first), &body(20));
    assert!(receipts(&expanded)[&sent[7]]["m.read"][carol.id()].is_object(), "{expanded}");
    let after = slide(&bob, Some(&expanded), &body(20));
    assert_eq!(receipts(&after), Value::Null);
}

#[test]
fn who_comes_back_into_a_room_is_told_how_far_others_have_read_meanwhile() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&room);
    let read = |event: &str| {
        alice.post(&room_path(&room, &format!("receipt/m.read/{}", segment(event))), json!({}));
    };
    let mut body = one_list(20, 2, &json!([]));
    body["extensions"] = json!({ "receipts": { "enabled": true } });
    read(&alice.send(&room, "one"));
    let first = slide(&bob, None, &body);
    bob.leave(&room);
    let left = slide(&bob, Some(&first), &body);
    let two = alice.send(&room, "two");
    read(&two);
    (0..4).for_each(|n| drop(alice.send(&room, &n.to_string())));
    bob.join(&room);
    let back = slide(&bob, Some(&left), &body);
    let content = &back["extensions"]["receipts"]["rooms"][&room]["content"];
    assert!(content[&two]["m.read"][alice.id()].is_object(), "{back}");
}
