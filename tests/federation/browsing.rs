//! Finding one's way: by date, in directories, through spaces; on this server and through others.

use std::time::Duration;

use crate::common::client::room_path;
use crate::common::peer::Peer;
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
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
    let (a, b) = (TestServer::start(), TestServer::start_by_address());
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
    // Bob's server is turned away and has nothing older.
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
fn a_room_that_does_not_federate_is_in_its_own_servers_directory_only() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let publish = |federate: bool| {
        alice.create_room_with(json!({
            "preset": "public_chat", "visibility": "public", "creation_content": { "m.federate": federate },
        }))
    };
    let rooms: Vec<String> = [true, false, true, false, true].map(publish).into();
    let open = [&rooms[0], &rooms[2], &rooms[4]];
    let here = alice.get("/_matrix/client/v3/publicRooms");
    assert_eq!((listed(&here).len(), &here["total_room_count_estimate"]), (5, &json!(5)));
    // Page after page: none is shorter for what is left out, and the number is that of what is there for them.
    let path = format!("/_matrix/client/v3/publicRooms?server={}&limit=2", segment(a.name()));
    let first = bob.get(&path);
    let rest = bob.get(&format!("{path}&since={}", first["next_batch"].as_str().expect("a second page")));
    assert_eq!((listed(&first).len(), &first["total_room_count_estimate"]), (2, &json!(3)));
    assert_eq!((listed(&rest).len(), rest.get("next_batch")), (1, None));
    let seen: Vec<&str> = listed(&first).into_iter().chain(listed(&rest)).collect();
    assert!(open.iter().all(|room| seen.contains(&room.as_str())), "{seen:?}");
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

#[test]
fn a_directory_that_cannot_be_searched_is_read_and_searched_here() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = |id: &str, name: &str, kind: Option<&str>| {
        let mut room = json!({
            "room_id": id, "num_joined_members": 3, "world_readable": false, "guest_can_join": true, "name": name,
        });
        if let Some(kind) = kind {
            room["room_type"] = json!(kind);
        }
        room
    };
    let rooms = json!([
        room("!a:b.org", "Apples", None),
        room("!p:b.org", "pears", None),
        room("!s:b.org", "apple trees", Some("m.space")),
    ]);
    let no_search = [
        (404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })),
        (405, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })),
        (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
        (404, json!({})),
    ];
    for (status, error) in no_search {
        let peer = Peer::start();
        let (refusal, list) = (error.clone(), json!({ "chunk": rooms, "next_batch": "on" }));
        peer.answer("/publicRooms", move |asked| match asked.method.as_str() {
            "POST" => Reply::json(&refusal).with_status(status),
            _ => Reply::json(&list),
        });
        let path = format!("/_matrix/client/v3/publicRooms?server={}", segment(peer.name().as_str()));
        let search = |filter: Value| alice.post(&path, json!({ "limit": 9, "since": "s", "filter": filter }));
        let page = search(json!({ "generic_search_term": "APPLE" }));
        assert_eq!((listed(&page), &page["next_batch"]), (vec!["!a:b.org", "!s:b.org"], &json!("on")));
        let page = search(json!({ "generic_search_term": "apple", "room_types": [null] }));
        assert_eq!(listed(&page), ["!a:b.org"], "{error}");
        let asked: Vec<(String, String)> =
            peer.asked("/publicRooms").into_iter().map(|asked| (asked.method, asked.target)).collect();
        let path = "/_matrix/federation/v1/publicRooms";
        let once =
            [("POST".to_owned(), path.to_owned()), ("GET".to_owned(), format!("{path}?limit=9&since=s"))];
        assert_eq!(asked, [once.clone(), once].concat());
    }
    // Who says no says it to a search as to anything.
    let peer = Peer::start();
    peer.answer_json("/publicRooms", 403, json!({ "errcode": "M_FORBIDDEN", "error": "members only" }));
    let path = format!("/_matrix/client/v3/publicRooms?server={}", segment(peer.name().as_str()));
    assert_eq!(alice.request("POST", &path, Some(json!({ "filter": {} }))).0, 403);
    assert_eq!(peer.asked("/publicRooms").len(), 1);
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

// ----- spaces -----

fn space(user: &TestUser, name: &str, options: Value) -> String {
    let mut all = json!({ "preset": "public_chat", "name": name, "creation_content": { "type": "m.space" } });
    all.as_object_mut().expect("an object").extend(options.as_object().expect("an object").clone());
    user.create_room_with(all)
}

fn room(user: &TestUser, name: &str, rule: Value) -> String {
    let state = json!([{ "type": "m.room.join_rules", "state_key": "", "content": rule }]);
    user.create_room_with(json!({ "preset": "private_chat", "name": name, "initial_state": state }))
}

fn public() -> Value {
    json!({ "join_rule": "public" })
}

fn link(user: &TestUser, space: &str, child: &str, via: &str, more: Value) {
    let mut content = json!({ "via": [via] });
    content.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
    user.set_state(space, "m.space.child", child, content);
}

fn hierarchy_path(root: &str, query: &str) -> String {
    format!("/_matrix/client/v1/rooms/{}/hierarchy?{query}", segment(root))
}

/// The names of the rooms below a room, in the order given.
fn tree(user: &TestUser, root: &str, query: &str) -> Vec<String> {
    names(&user.get(&hierarchy_path(root, query)))
}

fn names(page: &Value) -> Vec<String> {
    let rooms = page["rooms"].as_array().expect("rooms");
    rooms.iter().map(|room| room["name"].as_str().expect("a name").to_owned()).collect()
}

#[test]
fn a_space_is_walked_depth_first_in_the_order_of_its_children() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let here = server.name();
    let root = space(&alice, "root", json!({}));
    let sub = space(&alice, "sub", json!({}));
    let [a, b, c, d] = ["a", "b", "c", "d"].map(|name| room(&alice, name, public()));
    link(&alice, &root, &b, here, json!({ "order": "2", "suggested": true }));
    link(&alice, &root, &sub, here, json!({ "order": "1", "suggested": true }));
    link(&alice, &root, &a, here, json!({}));
    // What has no order comes in the order of its making, which has to differ.
    link(&alice, &sub, &c, here, json!({ "suggested": false }));
    server.advance(Duration::from_millis(2));
    link(&alice, &sub, &d, here, json!({ "suggested": true }));
    server.advance(Duration::from_millis(2));
    // A circle, a room twice, a link that was taken back, and one in a room that is no space.
    link(&alice, &sub, &root, here, json!({}));
    link(&alice, &sub, &b, here, json!({}));
    alice.set_state(&root, "m.space.child", "!gone:example.org", json!({}));
    link(&alice, &a, "!nowhere:example.org", here, json!({}));

    assert_eq!(tree(&bob, &root, ""), ["root", "sub", "c", "d", "b", "a"]);
    assert_eq!(tree(&bob, &root, "max_depth=1"), ["root", "sub", "b", "a"]);
    assert_eq!(tree(&bob, &root, "max_depth=0"), ["root"]);
    assert_eq!(tree(&bob, &root, "suggested_only=true"), ["root", "sub", "d", "b"]);
    let page = bob.get(&hierarchy_path(&root, ""));
    assert!(page.get("next_batch").is_none());
    let shown = &page["rooms"][0];
    assert_eq!((&shown["room_type"], &shown["join_rule"]), (&json!("m.space"), &json!("public")));
    let children = shown["children_state"].as_array().expect("children");
    let keys: Vec<&str> = children.iter().map(|c| c["state_key"].as_str().expect("a room")).collect();
    assert_eq!(keys, [sub.as_str(), &b, &a]);
    assert_eq!(children[0]["sender"], alice.id());
    assert!(children[0]["origin_server_ts"].is_i64() && children[0]["content"]["via"].is_array());
    assert_eq!(page["rooms"][5]["children_state"], json!([]));

    // In pages, whatever their size.
    for limit in 1..=6 {
        let (mut all, mut from) = (Vec::new(), String::new());
        loop {
            let page = bob.get(&hierarchy_path(&root, &format!("limit={limit}&max_depth=2{from}")));
            assert!(names(&page).len() <= limit);
            all.extend(names(&page));
            match page["next_batch"].as_str() {
                Some(token) => from = format!("&from={}", segment(token)),
                None => break,
            }
        }
        assert_eq!(all, ["root", "sub", "c", "d", "b", "a"], "{limit} a page");
    }
    let token = bob.get(&hierarchy_path(&root, "limit=2&max_depth=1"))["next_batch"].clone();
    let token = segment(token.as_str().expect("a token"));
    assert_eq!(tree(&bob, &root, &format!("from={token}")), ["b", "a"]);
    for query in [
        format!("from={token}&max_depth=2"),
        format!("from={token}&suggested_only=true"),
        "from=nonsense".to_owned(),
        "limit=0".to_owned(),
        "limit=-1".to_owned(),
        "max_depth=-1".to_owned(),
        "suggested_only=yes".to_owned(),
    ] {
        let (status, body) = bob.request("GET", &hierarchy_path(&root, &query), None);
        assert_eq!((status, &body["errcode"]), (400, &json!("M_INVALID_PARAM")), "{query}");
    }
    let nowhere = format!("!no:{}", server.name());
    assert_eq!(bob.request("GET", &hierarchy_path(&nowhere, ""), None).0, 403);
}

/// A space with a room of each kind, to which the user belongs as far as that matters.
fn rooms_of_each_kind(alice: &TestUser, root: &str, here: &str, invited: &str) {
    let allow = |room: &str| json!([{ "type": "m.room_membership", "room_id": room }]);
    let elsewhere = room(alice, "elsewhere", public());
    let kinds = [
        ("public", public()),
        ("invite only", json!({ "join_rule": "invite" })),
        ("knock", json!({ "join_rule": "knock" })),
        ("for members", json!({ "join_rule": "restricted", "allow": allow(root) })),
        ("for others", json!({ "join_rule": "restricted", "allow": allow(&elsewhere) })),
        ("for others or knock", json!({ "join_rule": "knock_restricted", "allow": allow(&elsewhere) })),
        ("readable", json!({ "join_rule": "invite" })),
        ("invited", json!({ "join_rule": "invite" })),
        ("banned", public()),
    ];
    for (n, (name, rule)) in kinds.into_iter().enumerate() {
        let id = room(alice, name, rule);
        match name {
            "readable" => {
                let setting = json!({ "history_visibility": "world_readable" });
                drop(alice.set_state(&id, "m.room.history_visibility", "", setting));
            }
            "invited" => alice.invite(&id, invited),
            "banned" => alice.act_on("ban", &id, invited),
            _ => {}
        }
        link(alice, root, &id, here, json!({ "order": n.to_string() }));
    }
}

#[test]
fn a_hierarchy_shows_the_rooms_that_one_could_enter_and_no_others() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let root = space(&alice, "root", json!({}));
    rooms_of_each_kind(&alice, &root, server.name(), bob.id());
    let outside = ["root", "public", "knock", "for others or knock", "readable", "invited"];
    assert_eq!(tree(&bob, &root, ""), outside);
    bob.join(&root);
    let inside = ["root", "public", "knock", "for members", "for others or knock", "readable", "invited"];
    assert_eq!(tree(&bob, &root, ""), inside);
    assert_eq!(tree(&alice, &root, "").len(), 10);
    let secret = space(&alice, "secret", json!({ "preset": "private_chat" }));
    assert_eq!(bob.request("GET", &hierarchy_path(&secret, ""), None).1["errcode"], "M_FORBIDDEN");
}

#[test]
fn rooms_of_other_servers_are_part_of_a_hierarchy() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let root = space(&alice, "root", json!({}));
    let sub = space(&alice, "sub", json!({}));
    let deep = room(&alice, "deep", public());
    let of_bob = room(&bob, "of bob", public());
    rooms_of_each_kind(&alice, &root, a.name(), bob.id());
    link(&alice, &root, &sub, a.name(), json!({ "order": "x" }));
    link(&alice, &sub, &deep, a.name(), json!({}));
    link(&alice, &sub, &of_bob, b.name(), json!({}));
    bob.join_via(&root, &[a.name()]);
    invited_room(&bob);
    let expected = [
        "root",
        "public",
        "knock",
        "for members",
        "for others or knock",
        "readable",
        "invited",
        "banned",
        "sub",
        "deep",
        "of bob",
    ];
    // That a user of ours is banned elsewhere is between that user and the room's servers.
    assert_eq!(tree(&bob, &root, ""), expected);
    let alices = tree(&alice, &root, "");
    assert_eq!(&alices[alices.len() - 3..], ["sub", "deep", "of bob"]);
    // With the other server away, what it said is still known for a while; then only our own rooms are.
    drop(a);
    assert_eq!(tree(&bob, &root, ""), expected);
    b.advance(Duration::from_secs(600));
    assert_eq!(tree(&bob, &root, ""), ["root"]);
}

/// Waits for the one invite that the user gets.
fn invited_room(user: &TestUser) {
    user.sync_until("an invite", |sync| {
        sync["rooms"]["invite"].as_object().filter(|r| !r.is_empty()).map(drop)
    });
}

#[test]
fn another_server_is_told_of_the_rooms_that_its_users_could_enter() {
    let server = TestServer::start();
    let (alice, peer) = (server.user("alice"), Peer::start());
    let root = space(&alice, "root", json!({}));
    let secret = room(&alice, "secret", json!({ "join_rule": "invite" }));
    let open = room(&alice, "open", public());
    let closed = alice.create_room_with(
        json!({ "preset": "public_chat", "name": "closed", "creation_content": { "m.federate": false } }),
    );
    for (child, more) in [(&secret, json!({})), (&open, json!({ "suggested": true })), (&closed, json!({}))] {
        link(&alice, &root, child, server.name(), more);
    }
    link(&alice, &root, "!unknown:example.org", "example.org", json!({}));
    let ask = |room: &str, query: &str| {
        let path = format!("/_matrix/federation/v1/hierarchy/{}{query}", segment(room));
        peer.ask(server.name(), "GET", &path, None)
    };
    let (status, answer) = ask(&root, "");
    assert_eq!((status, &answer["room"]["name"]), (200, &json!("root")));
    assert_eq!(answer["room"]["children_state"].as_array().map(Vec::len), Some(4));
    let children = answer["children"].as_array().expect("children");
    assert_eq!((children.len(), &children[0]["room_id"]), (1, &json!(open)));
    let barred = answer["inaccessible_children"].as_array().expect("a list");
    assert!(barred.len() == 2 && barred.contains(&json!(secret)) && barred.contains(&json!(closed)));
    let (_, suggested) = ask(&root, "?suggested_only=true");
    assert_eq!(suggested["room"]["children_state"].as_array().map(Vec::len), Some(1));
    assert_eq!(suggested["inaccessible_children"], json!([]));
    for hidden in [secret.as_str(), "!unknown:example.org"] {
        let (status, body) = ask(hidden, "");
        assert_eq!((status, &body["errcode"]), (404, &json!("M_NOT_FOUND")));
    }
    let denied = json!({ "allow": ["*"], "deny": ["127.0.0.1"] });
    alice.set_state(&root, "m.room.server_acl", "", denied);
    assert_eq!(ask(&root, "").0, 404, "the access list keeps it out");
}

#[test]
fn what_a_server_says_of_rooms_that_it_was_not_asked_about_is_not_believed() {
    let server = TestServer::start();
    let (alice, peer) = (server.user("alice"), Peer::start());
    let root = space(&alice, "root", json!({}));
    let via = peer.name().as_str();
    link(&alice, &root, "!asked:example.org", via, json!({}));
    let told = |id: &str, name: &str, children: Value| {
        json!({
            "room_id": id, "name": name, "num_joined_members": 1, "world_readable": true, "guest_can_join": false,
            "room_type": "m.space", "children_state": children,
        })
    };
    let child = json!({
        "type": "m.space.child", "state_key": "!child:example.org", "sender": "@a:example.org",
        "origin_server_ts": 1, "content": { "via": [via] },
    });
    peer.answer_json("/hierarchy/", 200, json!({
        "room": told("!other:example.org", "another room", json!([])), "children": [], "inaccessible_children": [],
    }));
    assert_eq!(tree(&alice, &root, ""), ["root"]);
    peer.answer_json("/hierarchy/", 200, json!({
        "room": told("!asked:example.org", "asked", json!([child, 7, {}])),
        "children": [told("!child:example.org", "child", json!([])), told("!stray:example.org", "stray", json!([])), 5],
        "inaccessible_children": [root, 5],
    }));
    assert_eq!(tree(&alice, &root, ""), ["root", "asked", "child"]);
}

// ----- room summaries -----

#[test]
fn a_room_is_summed_up_for_those_who_could_enter_it() {
    let (a, b) = TestServer::pair();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), a.user("carol"));
    let nobody = TestUser::new(a.url(), "(nobody)", "");
    let open = alice.create_room_with(json!({
        "preset": "public_chat", "name": "open", "topic": "of all", "room_alias_name": "open", "room_version": "10",
        "initial_state": [{ "type": "m.room.encryption", "state_key": "", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }],
    }));
    let alias = format!("#open:{}", a.name());
    let path = |room: &str, query: &str| format!("/_matrix/client/v1/room_summary/{}{query}", segment(room));
    let via = format!("?via={}", segment(a.name()));
    for (user, query, membership) in
        [(&alice, "", "join"), (&carol, "", "leave"), (&bob, via.as_str(), "leave"), (&nobody, "", "")]
    {
        for name in [&open, &alias] {
            let said = user.get(&path(name, query));
            assert_eq!(
                (&said["room_id"], &said["name"], &said["topic"]),
                (&json!(open), &json!("open"), &json!("of all"))
            );
            assert_eq!((&said["num_joined_members"], &said["join_rule"]), (&json!(1), &json!("public")));
            assert_eq!(
                (&said["encryption"], &said["room_version"]),
                (&json!("m.megolm.v1.aes-sha2"), &json!("10"))
            );
            assert_eq!(said["membership"].as_str().unwrap_or_default(), membership);
            assert!(said.get("children_state").is_none());
        }
    }
    for unstable in ["summary/{}", "rooms/{}/summary"] {
        let path =
            format!("/_matrix/client/unstable/im.nheko.summary/{}", unstable.replace("{}", &segment(&alias)));
        let said = bob.get(&path);
        assert_eq!(
            (&said["name"], &said["im.nheko.summary.encryption"]),
            (&json!("open"), &json!("m.megolm.v1.aes-sha2"))
        );
        assert_eq!(said["im.nheko.summary.room_version"], "10");
    }
    let secret = room(&alice, "secret", json!({ "join_rule": "invite" }));
    let not_found = |user: &TestUser, room: &str, query: &str| {
        let (status, body) = user.request("GET", &path(room, query), None);
        assert_eq!((status, &body["errcode"]), (404, &json!("M_NOT_FOUND")), "{} {room}", user.id());
    };
    not_found(&carol, &secret, "");
    not_found(&bob, &secret, &via);
    not_found(&nobody, &secret, "");
    not_found(&carol, &format!("!nowhere:{}", a.name()), "");
    assert_eq!(carol.request("GET", &path("!nowhere:example.org", ""), None).0, 504, "nobody says");
    not_found(&bob, "!nowhere:example.org", &via);
    not_found(&nobody, &format!("#none:{}", a.name()), "");
    alice.invite(&secret, bob.id());
    alice.invite(&secret, carol.id());
    bob.wait_for_room("invite", &secret);
    for user in [&bob, &carol] {
        let said = user.get(&path(&secret, ""));
        assert_eq!((&said["name"], &said["membership"]), (&json!("secret"), &json!("invite")));
    }
    assert_eq!(bob.request("GET", &path("nonsense", ""), None).0, 400);
}

#[test]
fn the_servers_of_many_new_aliases_of_a_room_are_asked_side_by_side() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let room = alice.create_room();
    let aliases: Vec<String> = (0..4).map(|n| format!("#a{n}:{}", peer.name())).collect();
    let gate = Gate::default();
    peer.answer_behind(
        &gate,
        "/query/directory",
        200,
        json!({ "room_id": room, "servers": [server.name()] }),
    );
    let show = |aliases: &[String]| {
        let path = room_path(&room, "state/m.room.canonical_alias");
        alice.request("PUT", &path, Some(json!({ "alt_aliases": aliases })))
    };
    std::thread::scope(|scope| {
        let shown = scope.spawn(|| show(&aliases));
        wait_until("all are asked for", || peer.asked("/query/directory").len() == aliases.len());
        gate.open();
        assert_eq!(shown.join().expect("no panic").0, 200);
    });
    // One that is wrong is one too many, wherever it stands.
    let elsewhere = alice.create_room();
    peer.answer_json(
        "/query/directory?room_alias=%23a9",
        200,
        json!({ "room_id": elsewhere, "servers": [] }),
    );
    let wrong =
        [aliases.clone(), vec![format!("#a9:{}", peer.name()), format!("#b:{}", peer.name())]].concat();
    let (status, said) = show(&wrong);
    assert_eq!((status, &said["errcode"]), (400, &json!("M_BAD_ALIAS")));
    assert!(said["error"].as_str().is_some_and(|error| error.contains("#a9:")), "{said}");
}
