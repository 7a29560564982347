//! `/events` and `/initialSync`, by which clients were told of things before there was `/sync`, and by which who is not in a room looks
//! into it.

use crate::common::client::{V3, post, room_path};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A look that does not wait.
fn look(user: &TestUser, from: &str, more: &str) -> Value {
    user.get(&format!("{V3}/events?timeout=0&from={from}{more}"))
}

fn now(user: &TestUser) -> String {
    user.get(&format!("{V3}/events?timeout=0"))["end"].as_str().expect("a token").to_owned()
}

fn end(answer: &Value) -> &str {
    answer["end"].as_str().expect("a token")
}

fn events<'a>(answer: &'a Value, room: &str) -> Vec<&'a Value> {
    let chunk = answer["chunk"].as_array().expect("a chunk");
    chunk.iter().filter(|event| event["room_id"] == room && event.get("event_id").is_some()).collect()
}

fn bodies(answer: &Value, room: &str) -> Vec<String> {
    let bodies = events(answer, room).into_iter().filter_map(|event| event["content"]["body"].as_str());
    bodies.map(str::to_owned).collect()
}

fn world_readable(user: &TestUser) -> String {
    user.create_room_with(json!({ "initial_state": [{ "type": "m.room.history_visibility", "state_key": "",
        "content": { "history_visibility": "world_readable" } }] }))
}

#[test]
fn the_event_stream_goes_on_where_it_ended_and_tells_each_event_once_in_order() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (one, other) = (alice.create_room(), alice.create_room());
    bob.join(&one);
    let begin = now(&alice);
    assert_eq!(look(&alice, &begin, ""), json!({ "start": begin, "end": begin, "chunk": [] }));
    for n in 0..130 {
        bob.send(&one, &n.to_string());
        alice.send(&other, &n.to_string());
    }
    let (mut from, mut told, mut looks) = (begin.clone(), Vec::new(), 0);
    loop {
        let answer = look(&alice, &from, "");
        assert_eq!(answer["start"], from.as_str());
        from = end(&answer).to_owned();
        let chunk = answer["chunk"].as_array().expect("a chunk").clone();
        assert!(chunk.len() <= 100);
        looks += 1;
        if chunk.is_empty() {
            break;
        }
        told.extend(chunk.into_iter().filter(|event| event.get("event_id").is_some()));
    }
    assert_eq!((told.len(), looks), (260, 4));
    let told: Vec<&str> = told.iter().filter_map(|event| event["content"]["body"].as_str()).collect();
    let expected: Vec<String> = (0..260).map(|n| (n / 2).to_string()).collect();
    assert_eq!(told, expected);
    // In one room alone, of its member.
    let answer = look(&alice, &begin, &format!("&room_id={}", segment(&other)));
    assert_eq!((bodies(&answer, &other).len(), bodies(&answer, &one).len()), (100, 0));
    let event = events(&answer, &other)[0];
    assert_eq!((&event["sender"], &event["unsigned"]["membership"]), (&json!(alice.id()), &json!("join")));
    let by_id = alice.get(&format!("{V3}/events/{}", segment(event["event_id"].as_str().expect("an id"))));
    assert_eq!((&by_id["room_id"], &by_id["content"]), (&json!(other), &event["content"]));
    // Who is not in a room hears nothing of it; what is no token of ours is refused.
    assert!(bodies(&look(&bob, &begin, ""), &other).is_empty());
    for (path, status, errcode) in [
        (format!("{V3}/events?from=nonsense"), 400, "M_INVALID_PARAM"),
        (format!("{V3}/events?timeout=-1"), 400, "M_INVALID_PARAM"),
        (format!("{V3}/events?room_id=nonsense"), 400, "M_INVALID_PARAM"),
        (format!("{V3}/events?timeout=0&room_id={}", segment(&other)), 403, "M_FORBIDDEN"),
        (format!("{V3}/events?timeout=0&room_id=%21none%3A{}", segment(server.name())), 403, "M_FORBIDDEN"),
    ] {
        let (said, answer) = bob.request("GET", &path, None);
        assert_eq!((said, &answer["errcode"]), (status, &json!(errcode)), "{path}");
    }
}

#[test]
fn a_look_at_the_event_stream_waits_for_what_comes() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let from = now(&alice);
    let before = std::time::Instant::now();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| alice.get(&format!("{V3}/events?timeout=600000&from={from}")));
        wait_until("the request waits", || server.homeserver().notifier.waiting() > 0);
        bob.send(&room, "there you are");
        assert_eq!(bodies(&waiting.join().expect("an answer"), &room), ["there you are"]);
    });
    assert!(before.elapsed().as_secs() < 300);
}

#[test]
fn who_looks_into_a_room_from_outside_is_woken_by_it_and_by_nothing_else_and_sees_what_anybody_may() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (open, other) = (world_readable(&alice), world_readable(&alice));
    let looked = bob.get(&room_path(&open, "initialSync"));
    let from = looked["messages"]["end"].as_str().expect("a token").to_owned();
    let of_room = format!("&room_id={}", segment(&open));
    let path = format!("{V3}/events?timeout=600000&from={from}{of_room}");
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bob.get(&path));
        wait_until("the request waits", || server.homeserver().notifier.waiting() > 0);
        alice.send(&other, "elsewhere");
        assert!(!waiting.is_finished());
        alice.send(&open, "hello out there");
        let answer = waiting.join().expect("an answer");
        assert_eq!(bodies(&answer, &open), ["hello out there"]);
        assert!(events(&answer, &other).is_empty());
    });
    alice.set_state(&open, "m.room.history_visibility", "", json!({ "history_visibility": "shared" }));
    alice.send(&open, "among us");
    let (status, said) = bob.request("GET", &format!("{V3}/events?timeout=0&from={from}{of_room}"), None);
    assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")));
    alice.set_state(
        &open,
        "m.room.history_visibility",
        "",
        json!({ "history_visibility": "world_readable" }),
    );
    alice.send(&open, "hello again");
    let answer = look(&bob, &from, &of_room);
    assert_eq!(bodies(&answer, &open), ["hello out there", "hello again"]);
    // Typing and receipts are for members.
    let typing = room_path(&open, &format!("typing/{}", segment(alice.id())));
    alice.put(&typing, json!({ "typing": true, "timeout": 60_000 }));
    let answer = look(&bob, end(&answer), &of_room);
    assert_eq!(answer["chunk"], json!([]));
}

#[test]
fn the_event_stream_has_invites_leaves_and_what_is_fleeting_in_the_rooms_that_one_is_in() {
    let (server, there) = TestServer::pair();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), there.user("carol"));
    let begin = now(&bob);
    let (room, elsewhere) = (alice.create_room(), carol.create_room());
    alice.send(&room, "before he came");
    alice.invite(&room, bob.id());
    carol.invite(&elsewhere, bob.id());
    bob.wait_for_room("invite", &elsewhere);
    let answer = look(&bob, &begin, "");
    for (room, by) in [(&room, &alice), (&elsewhere, &carol)] {
        let invite = events(&answer, room);
        assert_eq!(invite.len(), 1, "{answer}");
        assert_eq!((&invite[0]["sender"], &invite[0]["state_key"]), (&json!(by.id()), &json!(bob.id())));
        assert_eq!(invite[0]["content"]["membership"], "invite");
        assert!(invite[0]["event_id"].is_string() && invite[0]["origin_server_ts"].is_i64());
    }
    bob.join(&room);
    let from = end(&answer).to_owned();
    let answer = look(&bob, &from, "");
    assert_eq!(events(&answer, &room)[0]["content"]["membership"], "join");
    let said = alice.send(&room, "hello");
    let typing = room_path(&room, &format!("typing/{}", segment(alice.id())));
    alice.put(&typing, json!({ "typing": true, "timeout": 60_000 }));
    alice.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&said))), json!({}));
    let presence = format!("{V3}/presence/{}/status", segment(alice.id()));
    alice.put(&presence, json!({ "presence": "online", "status_msg": "here" }));
    let answer = look(&bob, end(&answer), "");
    let of = |kind: &str| answer["chunk"].as_array().expect("a chunk").iter().find(|e| e["type"] == kind);
    let typing = of("m.typing").expect("typing");
    assert_eq!((&typing["room_id"], &typing["content"]["user_ids"]), (&json!(room), &json!([alice.id()])));
    let receipt = of("m.receipt").expect("a receipt");
    assert!(receipt["content"][&said]["m.read"][alice.id()].is_object(), "{receipt}");
    assert_eq!(of("m.presence").expect("presence")["sender"], alice.id());
    let from = end(&answer).to_owned();
    alice.send(&room, "the last that he hears");
    assert_eq!(
        post(&alice, &format!("rooms/{}/kick", segment(&room)), json!({ "user_id": bob.id() })).0,
        200
    );
    alice.send(&room, "without him");
    let answer = look(&bob, &from, "");
    let heard: Vec<&str> = events(&answer, &room).iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(heard, ["m.room.message", "m.room.member"], "{answer}");
}

#[test]
fn an_initial_sync_has_every_room_with_its_messages_and_its_state_and_the_stream_goes_on_from_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (joined, invited, left) = (bob.create_room(), bob.create_room(), bob.create_room());
    for room in [&joined, &invited, &left] {
        bob.invite(room, alice.id());
    }
    alice.join(&joined);
    alice.join(&left);
    bob.send(&left, "while she was there");
    alice.leave(&left);
    bob.send(&left, "without her");
    for n in 0..15 {
        bob.send(&joined, &n.to_string());
    }
    bob.set_state(&joined, "m.room.topic", "", json!({ "topic": "t" }));
    let of_account = format!("{V3}/user/{}", segment(alice.id()));
    alice.put(&format!("{of_account}/account_data/org.example"), json!({ "a": 1 }));
    alice
        .put(&format!("{of_account}/rooms/{}/account_data/org.example", segment(&joined)), json!({ "b": 2 }));
    let all = alice.get(&format!("{V3}/initialSync?limit=3"));
    let find = |all: &Value, room: &str| {
        all["rooms"].as_array().expect("rooms").iter().find(|entry| entry["room_id"] == room).cloned()
    };
    let room = find(&all, &joined).expect("the room");
    assert_eq!((&room["membership"], &room["visibility"]), (&json!("join"), &json!("private")));
    let chunk = room["messages"]["chunk"].as_array().expect("messages");
    assert_eq!(chunk.len(), 3);
    assert_eq!((&chunk[1]["content"]["body"], &chunk[2]["type"]), (&json!("14"), &json!("m.room.topic")));
    assert!(chunk.iter().all(|event| event["room_id"] == joined.as_str()));
    let state = room["state"].as_array().expect("state");
    assert!(state.iter().any(|event| event["type"] == "m.room.topic" && event["room_id"] == joined.as_str()));
    assert!(state.iter().any(|event| event["state_key"] == alice.id()));
    assert_eq!(room["account_data"], json!([{ "type": "org.example", "content": { "b": 2 } }]));
    let earlier = room["messages"]["start"].as_str().expect("there is more");
    let page = alice.get(&room_path(&joined, &format!("messages?dir=b&limit=1&from={earlier}")));
    assert_eq!(page["chunk"][0]["content"]["body"], "12");
    let invite = find(&all, &invited).expect("the invite");
    assert_eq!((&invite["membership"], &invite["invite"]["sender"]), (&json!("invite"), &json!(bob.id())));
    assert!(invite.get("messages").is_none() && invite.get("state").is_none());
    assert!(find(&all, &left).is_none());
    assert!(all["account_data"].as_array().expect("data").iter().any(|e| e["type"] == "m.push_rules"));
    assert!(all["account_data"].as_array().expect("data").iter().any(|e| e["type"] == "org.example"));
    assert!(all["presence"].is_array());
    bob.send(&joined, "after that");
    assert_eq!(bodies(&look(&alice, end(&all), ""), &joined), ["after that"]);

    let all = alice.get(&format!("{V3}/initialSync?archived=true"));
    let archived = find(&all, &left).expect("the room that she left");
    assert_eq!(archived["membership"], "leave");
    let said = archived["messages"]["chunk"].to_string();
    assert!(said.contains("while she was there") && !said.contains("without her"), "{said}");
    let own = archived["state"].as_array().expect("state").iter().find(|e| e["state_key"] == alice.id());
    assert_eq!(own.expect("her leave")["content"]["membership"], "leave");
}
