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

// ----- directories -----

fn listed(page: &Value) -> Vec<&str> {
    let chunk = page["chunk"].as_array().expect("a chunk");
    chunk.iter().map(|room| room["room_id"].as_str().expect("a room id")).collect()
}

#[test]
fn another_servers_directory_is_read_searched_and_paged() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let publish = |name: &str, kind: Option<&str>| {
        let creation = kind.map_or(json!({}), |kind| json!({ "type": kind }));
        alice.create_room_with(json!({
            "preset": "public_chat", "visibility": "public", "name": name, "topic": "things", "creation_content": creation,
        }))
    };
    let rooms = [publish("apples", None), publish("pears", None), publish("fruit", Some("m.space"))];
    alice.create_room_with(json!({ "preset": "public_chat", "name": "unlisted" }));
    bob.create_room_with(json!({ "preset": "public_chat", "visibility": "public", "name": "of bob" }));

    let path = format!("/_matrix/client/v3/publicRooms?server={}", segment(a.name()));
    let all = bob.get(&path);
    assert_eq!(all, alice.get("/_matrix/client/v3/publicRooms"));
    assert_eq!(
        (all["chunk"].as_array().map(Vec::len), &all["total_room_count_estimate"]),
        (Some(3), &json!(3))
    );
    // Page after page, and back.
    let mut seen = Vec::new();
    let (mut since, mut last) = (String::new(), json!({}));
    for _ in 0..3 {
        last = bob.get(&format!("{path}&limit=1&since={since}"));
        seen.extend(listed(&last).into_iter().map(str::to_owned));
        since = last["next_batch"].as_str().unwrap_or_default().to_owned();
    }
    assert!(last.get("next_batch").is_none());
    let back = bob.get(&format!("{path}&limit=1&since={}", last["prev_batch"].as_str().expect("a way back")));
    assert_eq!(listed(&back), [seen[1].as_str()]);
    seen.sort();
    let mut expected = rooms.to_vec();
    expected.sort();
    assert_eq!(seen, expected);
    let found = |filter: Value| {
        let page = bob.post(&path, json!({ "filter": filter }));
        listed(&page).into_iter().map(str::to_owned).collect::<Vec<_>>()
    };
    assert_eq!(found(json!({ "generic_search_term": "PEAR" })), [rooms[1].as_str()]);
    assert_eq!(found(json!({ "room_types": ["m.space"] })), [rooms[2].as_str()]);
    assert_eq!(found(json!({ "room_types": [null] })).len(), 2);
    assert_eq!(found(json!({ "generic_search_term": "fruit", "room_types": [null] })), Vec::<String>::new());
    assert_eq!(found(json!({})).len(), 3);

    assert_eq!(bob.request("GET", "/_matrix/client/v3/publicRooms?server=not/a/name", None).0, 400);
    let (status, body) = bob.request("GET", &format!("{path}&since=nonsense"), None);
    assert!(status == 400 || status == 502, "{status} {body}");
    assert_eq!(
        listed(&bob.get(&format!("/_matrix/client/v3/publicRooms?server={}", segment(b.name())))).len(),
        1
    );
}

#[test]
fn a_directory_is_given_to_other_servers_without_a_limit_unless_they_set_one() {
    let server = TestServer::start();
    let (alice, peer) = (server.user("alice"), Peer::start());
    for n in 0..3 {
        let name = format!("room {n}");
        alice.create_room_with(json!({ "preset": "public_chat", "visibility": "public", "name": name }));
    }
    let path = "/_matrix/federation/v1/publicRooms";
    for (method, query, body, count) in [
        ("GET", "", None, 3),
        ("GET", "?limit=0", None, 3),
        ("GET", "?limit=2", None, 2),
        ("POST", "", Some(json!({})), 3),
        ("POST", "", Some(json!({ "limit": 1 })), 1),
        ("POST", "", Some(json!({ "filter": { "generic_search_term": "m 2" } })), 1),
        ("GET", "?third_party_instance_id=irc", None, 0),
    ] {
        let (status, page) = peer.ask(server.name(), method, &format!("{path}{query}"), body.as_ref());
        assert_eq!((status, listed(&page).len()), (200, count), "{method} {query} {body:?}: {page}");
    }
    assert_eq!(alice.request("GET", path, None).0, 401, "only servers ask so");
    assert_eq!(peer.ask(server.name(), "GET", &format!("{path}?since=x"), None).0, 400);
}

#[test]
fn what_another_servers_directory_has_that_is_no_room_is_left_out() {
    let server = TestServer::start();
    let (alice, peer) = (server.user("alice"), Peer::start());
    let room = json!({
        "room_id": "!a:b.org", "num_joined_members": 3, "world_readable": false, "guest_can_join": true, "name": "good",
    });
    let rooms = json!([room, 5, null, { "room_id": "x" }, { "room_id": "!c:d.org" }]);
    peer.answer_json("/publicRooms", 200, json!({ "chunk": rooms, "next_batch": "on" }));
    let path = format!("/_matrix/client/v3/publicRooms?server={}", segment(peer.name().as_str()));
    let page = alice.get(&format!("{path}&limit=7&since=s%26t"));
    assert_eq!(listed(&page), ["!a:b.org"]);
    assert_eq!((&page["next_batch"], &page["chunk"][0]["join_rule"]), (&json!("on"), &json!("public")));
    assert_eq!(
        peer.asked("/publicRooms")[0].target,
        "/_matrix/federation/v1/publicRooms?limit=7&since=s%26t"
    );
    peer.answer_json("/publicRooms", 200, json!({ "rooms": [] }));
    assert_eq!(alice.request("GET", &path, None).0, 502);
    peer.answer_json("/publicRooms", 403, json!({ "errcode": "M_FORBIDDEN", "error": "members only" }));
    assert_eq!(alice.request("GET", &path, None).0, 403);
}

// ----- queries -----

#[test]
fn a_query_of_an_unknown_type_is_not_recognized() {
    let (server, peer) = (TestServer::start(), Peer::start());
    for query in ["weather", "directory2", "profile%2Fx"] {
        let (status, body) =
            peer.ask(server.name(), "GET", &format!("/_matrix/federation/v1/query/{query}?x=1"), None);
        assert_eq!((status, &body["errcode"]), (404, &json!("M_UNRECOGNIZED")), "{query}");
    }
    let unsigned = server.user("alice").request("GET", "/_matrix/federation/v1/query/weather", None);
    assert_eq!(unsigned.0, 401);
}

// ----- OpenID -----

#[test]
fn a_third_party_learns_who_made_an_openid_token_and_only_while_it_is_good() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let nobody = TestUser::new(server.url(), "(nobody)", "");
    let path =
        |user: &TestUser| format!("/_matrix/client/v3/user/{}/openid/request_token", segment(user.id()));
    let made = alice.post(&path(&alice), json!({}));
    assert_eq!((&made["token_type"], &made["matrix_server_name"]), (&json!("Bearer"), &json!(server.name())));
    assert_eq!(made["expires_in"], 3600);
    let token = made["access_token"].as_str().expect("a token");
    let userinfo = |token: &str| {
        nobody.request("GET", &format!("/_matrix/federation/v1/openid/userinfo?access_token={token}"), None)
    };
    assert_eq!(userinfo(token), (200, json!({ "sub": alice.id() })));
    assert_eq!(userinfo(token).0, 200, "it is good for more than one question");
    // Nor is it good for anything else, nor is an access token good for this.
    let thief = TestUser::new(server.url(), alice.id(), token);
    assert_eq!(thief.request("GET", "/_matrix/client/v3/account/whoami", None).0, 401);
    for wrong in [alice.token(), "nonsense"] {
        let (status, body) = userinfo(wrong);
        assert_eq!((status, &body["errcode"]), (401, &json!("M_UNKNOWN_TOKEN")));
    }
    assert_eq!(userinfo("").1["errcode"], "M_MISSING_TOKEN");
    assert_eq!(bob.request("POST", &path(&alice), Some(json!({}))).0, 403, "only for oneself");
    assert_eq!(nobody.request("POST", &path(&alice), Some(json!({}))).0, 401);
    server.advance(Duration::from_secs(3599));
    assert_eq!(userinfo(token).0, 200);
    server.advance(Duration::from_secs(2));
    assert_eq!(userinfo(token).0, 401);
}
