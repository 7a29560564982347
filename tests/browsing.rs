//! Finding one's way: by date, in directories, through spaces; on this server and through others.

mod common;

use std::time::Duration;

use common::peer::Peer;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const MINUTE: Duration = Duration::from_secs(60);

// ----- timestamp_to_event -----

fn near(user: &TestUser, room: &str, ts: i64, dir: &str) -> (u16, Value) {
    let path = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts={ts}&dir={dir}", segment(room));
    user.request("GET", &path, None)
}

/// Messages a minute apart: their ids and times, oldest first.
fn minutes(server: &TestServer, user: &TestUser, room: &str, count: usize) -> Vec<(String, i64)> {
    let sent = (0..count).map(|n| {
        server.advance(MINUTE);
        let id = user.send(room, &format!("minute {n}"));
        let event = user.get(&format!("/_matrix/client/v3/rooms/{}/event/{}", segment(room), segment(&id)));
        (id, event["origin_server_ts"].as_i64().expect("a time"))
    });
    sent.collect()
}

/// The texts of all messages in a room as a user sees them, oldest first.
fn texts(user: &TestUser, room: &str) -> Vec<String> {
    let (mut all, mut from) = (Vec::new(), String::new());
    loop {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=60&from={from}", segment(room));
        let page = user.get(&path);
        for event in page["chunk"].as_array().expect("a chunk") {
            all.extend(event["content"]["body"].as_str().map(str::to_owned));
        }
        match page["end"].as_str() {
            Some(end) => from = segment(end),
            None => break,
        }
    }
    all.reverse();
    all
}

#[test]
fn the_event_nearest_to_a_time_is_found_on_either_side_of_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let sent = minutes(&server, &alice, &room, 3);
    let ts = &sent[1].1;
    for (at, dir, expected) in [
        (*ts, "f", Some(&sent[1])),
        (*ts, "b", Some(&sent[1])),
        (ts + 1, "f", Some(&sent[2])),
        (ts - 1, "b", Some(&sent[0])),
        (sent[2].1 + 1, "f", None),
        (0, "b", None),
        (i64::MIN, "b", None),
        (i64::MAX, "f", None),
        (i64::MAX, "b", Some(&sent[2])),
    ] {
        let (status, found) = near(&alice, &room, at, dir);
        match expected {
            Some((id, ts)) => assert_eq!(found, json!({ "event_id": id, "origin_server_ts": ts })),
            None => assert_eq!((status, &found["errcode"]), (404, &json!("M_NOT_FOUND")), "{at} {dir}"),
        }
    }
    let first = near(&alice, &room, 0, "f").1;
    let path = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        segment(&room),
        segment(first["event_id"].as_str().expect("an id"))
    );
    assert_eq!(alice.get(&path)["type"], "m.room.create");

    assert_eq!(near(&bob, &room, *ts, "f").0, 403);
    assert_eq!(near(&alice, "!nowhere:example.org", *ts, "f").0, 403);
    let base = format!("/_matrix/client/v1/rooms/{}/timestamp_to_event", segment(&room));
    for (query, code) in [
        ("dir=f", "M_MISSING_PARAM"),
        ("ts=1", "M_MISSING_PARAM"),
        ("ts=soon&dir=f", "M_INVALID_PARAM"),
        ("ts=1&dir=x", "M_INVALID_PARAM"),
    ] {
        let (status, body) = alice.request("GET", &format!("{base}?{query}"), None);
        assert_eq!((status, &body["errcode"]), (400, &json!(code)), "{query}");
    }
    // Who left sees what was there until then.
    bob.join(&room);
    bob.leave(&room);
    minutes(&server, &alice, &room, 1);
    let (_, last) = near(&bob, &room, i64::MAX, "b");
    let ts_of_leave = last["origin_server_ts"].as_i64().expect("a time");
    assert_eq!(near(&bob, &room, ts_of_leave + 1, "f").0, 404);
    assert_eq!(near(&bob, &room, sent[2].1 + 1, "f").0, 200);
}

#[test]
fn an_event_from_before_our_time_in_a_room_is_fetched_by_its_date_and_has_its_place() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    let sent = minutes(&a, &alice, &room, 250);
    b.advance(MINUTE * 250);
    bob.join_via(&room, &[a.name()]);
    // More than a page before all that bob's server has.
    for n in [20, 60] {
        let (id, ts) = &sent[n];
        let expected = (200, json!({ "event_id": id, "origin_server_ts": ts }));
        assert_eq!(near(&bob, &room, ts - 1000, "f"), expected);
        assert_eq!(near(&bob, &room, ts + 1000, "b"), expected);
        let path = format!("/_matrix/client/v3/rooms/{}/context/{}", segment(&room), segment(id));
        assert_eq!(bob.get(&path)["event"]["content"]["body"], format!("minute {n}"));
    }
    let expected: Vec<String> = (0..250).map(|n| format!("minute {n}")).collect();
    assert_eq!(texts(&bob, &room), expected);
}

#[test]
fn a_date_tells_nothing_of_history_that_one_may_not_see() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.history_visibility", "", json!({ "history_visibility": "joined" }));
    let sent = minutes(&a, &alice, &room, 3);
    b.advance(MINUTE * 3);
    bob.join_via(&room, &[a.name()]);
    let said = near(&bob, &room, sent[1].1, "b").1;
    assert!(sent.iter().all(|(id, _)| said["event_id"] != id.as_str()), "{said}");
    let (_, after) = near(&bob, &room, sent[1].1, "f");
    assert!(sent.iter().all(|(id, _)| after["event_id"] != id.as_str()), "{after}");
}

#[test]
fn only_servers_in_the_room_that_its_access_list_lets_in_learn_of_events_by_date() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    let sent = minutes(&a, &alice, &room, 2);
    let peer = Peer::start();
    let path = format!("/_matrix/federation/v1/timestamp_to_event/{}?ts=0&dir=f", segment(&room));
    assert_eq!(peer.ask(a.name(), "GET", &path, None).0, 403);
    let nowhere = "/_matrix/federation/v1/timestamp_to_event/%21no:where.org?ts=0&dir=f";
    assert_eq!(peer.ask(a.name(), "GET", nowhere, None).0, 404);
    b.advance(MINUTE * 2);
    bob.join_via(&room, &[a.name()]);
    let denied = json!({ "allow": ["*"], "deny": [b.name().split(':').next()], "allow_ip_literals": true });
    alice.set_state(&room, "m.room.server_acl", "", denied);
    // Bob's server, whose name is that of alice's as the access list sees it, is turned away and has nothing older.
    assert_eq!(near(&bob, &room, sent[0].1, "b").0, 404);
}
