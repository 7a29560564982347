//! Events between real servers over loopback TLS: in order, through outages, restarts and new keys.

use std::time::{Duration, Instant};

use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

#[track_caller]
fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !is_so() {
        assert!(Instant::now() < deadline, "it never came to pass that {what}");
        std::thread::park_timeout(Duration::from_millis(20));
    }
}

/// The texts of all messages in a room as a user sees them, oldest first.
fn messages(user: &TestUser, room: &str) -> Vec<String> {
    let (mut all, mut from) = (Vec::new(), None::<String>);
    loop {
        let from_part = from.as_ref().map(|f| format!("&from={}", segment(f))).unwrap_or_default();
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100{from_part}", segment(room));
        let page = user.get(&path);
        let chunk = page["chunk"].as_array().expect("a chunk");
        let texts = chunk.iter().filter(|e| e["type"] == "m.room.message");
        all.extend(texts.map(|e| e["content"]["body"].as_str().expect("a text").to_owned()));
        match page["end"].as_str() {
            Some(end) if !chunk.is_empty() => from = Some(end.to_owned()),
            _ => break,
        }
    }
    all.reverse();
    all
}

fn has_event(server: &TestServer, event: &str) -> bool {
    let id = doorstep::protocol::EventId::parse(event).expect("an event id");
    server.homeserver().store.read(|db| db.event(&id)).expect("read").is_some()
}

#[test]
fn messages_arrive_on_the_other_server_in_order_both_ways() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    let expected: Vec<String> = (0..130).map(|n| format!("message {n}")).collect();
    for text in &expected {
        alice.send(&room, text);
    }
    until("bob has them all", || messages(&bob, &room) == expected);
    bob.send(&room, "and back");
    until("alice has the answer", || messages(&alice, &room).last().map(String::as_str) == Some("and back"));
}

#[test]
fn what_was_said_while_a_server_was_away_reaches_it_when_it_speaks_again() {
    let (a, mut b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    alice.send(&room, "before");
    until("bob has the first", || messages(&bob, &room) == ["before"]);
    b.stop();
    for n in 0..5 {
        alice.send(&room, &format!("away {n}"));
    }
    let away = doorstep::protocol::ServerName::parse(b.name()).expect("a name");
    until("alice's server notices", || a.homeserver().sender.is_pausing(&away));
    b.resume();
    bob.send(&room, "I am back");
    until("bob has what he missed", || {
        let seen = messages(&bob, &room);
        (0..5).all(|n| seen.contains(&format!("away {n}"))) && seen.len() == 7
    });
    until("alice has his word", || messages(&alice, &room).contains(&"I am back".to_owned()));
}

#[test]
fn what_was_not_delivered_survives_a_restart_of_the_sender() {
    let (mut a, mut b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    b.stop();
    for n in 0..3 {
        alice.send(&room, &format!("away {n}"));
    }
    let away = doorstep::protocol::ServerName::parse(b.name()).expect("a name");
    until("alice's server notices", || a.homeserver().sender.is_pausing(&away));
    a.restart();
    b.resume();
    until("the pause is remembered", || a.homeserver().sender.is_pausing(&away));
    a.advance(Duration::from_secs(60));
    until("bob has them all", || messages(&bob, &room) == ["away 0", "away 1", "away 2"]);
}

#[test]
fn what_was_missed_in_a_long_outage_is_there_to_be_read() {
    let (a, mut b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    alice.send(&room, "before");
    until("bob has the first", || messages(&bob, &room) == ["before"]);
    b.stop();
    let mut expected = vec!["before".to_owned()];
    for n in 0..400 {
        expected.push(format!("away {n}"));
        alice.send(&room, &expected[n + 1]);
        if n == 200 {
            alice.set_state(&room, "m.room.topic", "", json!({ "topic": "changed meanwhile" }));
        }
    }
    let away = doorstep::protocol::ServerName::parse(b.name()).expect("a name");
    until("alice's server notices", || a.homeserver().sender.is_pausing(&away));
    b.resume();
    a.advance(Duration::from_secs(60));
    until("bob has the last", || {
        let page = bob.get(&format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1", segment(&room)));
        page["chunk"][0]["content"]["body"] == "away 399"
    });
    assert_eq!(messages(&bob, &room), expected);
    assert_eq!(bob.state(&room, "m.room.topic", "").expect("a topic")["topic"], "changed meanwhile");
}

#[test]
fn after_a_change_of_keys_old_and_new_events_are_believed() {
    let (a, b) = TestServer::pair();
    let c = TestServer::start();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), c.user("carol"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    alice.send(&room, "with the old key");
    until("bob has it", || messages(&bob, &room).len() == 1);
    a.homeserver().rotate_signing_key().expect("a new key");
    alice.send(&room, "with the new key");
    until("bob has it too", || messages(&bob, &room).len() == 2);
    // The state that carol's server checks was signed with the old one.
    carol.join_via(&room, &[a.name()]);
    alice.send(&room, "welcome");
    until("all have it", || {
        [&bob, &carol].iter().all(|user| messages(user, &room).last().map(String::as_str) == Some("welcome"))
    });
}

#[test]
fn three_servers_hear_of_each_other_and_a_server_without_members_hears_no_more() {
    let (a, b) = TestServer::pair();
    let c = TestServer::start();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), c.user("carol"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    carol.join_via(&room, &[b.name()]);
    for (user, text) in [(&alice, "from a"), (&bob, "from b"), (&carol, "from c")] {
        user.send(&room, text);
        until("everybody has it", || {
            [&alice, &bob, &carol].iter().all(|u| messages(u, &room).last().map(String::as_str) == Some(text))
        });
    }
    bob.leave(&room);
    let seen_left = |user: &TestUser| user.membership_of(&room, bob.id()).as_deref() == Some("leave");
    until("all know that bob left", || seen_left(&alice) && seen_left(&carol));
    let secret = alice.send(&room, "without bob");
    until("carol has it", || messages(&carol, &room).last().map(String::as_str) == Some("without bob"));
    assert!(!has_event(&b, &secret), "bob's server is owed nothing any more");
}

#[test]
fn a_server_that_cannot_be_reached_does_not_hold_up_the_others() {
    let (a, b) = TestServer::pair();
    let mut c = TestServer::start();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), c.user("carol"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    carol.join_via(&room, &[a.name()]);
    c.stop();
    for n in 0..10 {
        alice.send(&room, &format!("message {n}"));
    }
    until("bob has them all", || messages(&bob, &room).len() == 10);
    c.resume();
    a.advance(Duration::from_secs(24 * 3600));
    until("carol has them all", || messages(&carol, &room).len() == 10);
}

#[test]
fn an_unsigned_or_wrongly_signed_request_is_unauthorized() {
    let server = TestServer::start();
    let user = server.user("alice");
    // The client's token is no signature.
    let (status, body) = user.request("PUT", "/_matrix/federation/v1/send/1", Some(json!({ "pdus": [] })));
    assert_eq!((status, &body["errcode"]), (401, &Value::from("M_UNAUTHORIZED")));
}
