//! A peer that lies, in every step of every handshake: nothing of it is signed, believed, shown or half written, and
//! our own client gets an answer that says what happened.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::{join, post};
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::room_version;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn knock(user: &TestUser, room: &str, peer: &Peer) -> (u16, Value) {
    post(
        user,
        &format!("knock/{}?via={}", segment(room), segment(peer.name().as_str())),
        json!({ "reason": "please" }),
    )
}

fn is_in(user: &TestUser, section: &str, room: &str) -> bool {
    user.initial_sync()["rooms"][section].get(room).is_some()
}

/// A server with one user, and a peer with a room that has this join rule.
fn stage(join_rule: &str) -> (TestServer, TestUser, Peer, FakeRoom) {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let room = FakeRoom::new(&peer, "11", join_rule);
    (server, bob, peer, room)
}

/// The user knocks, and the peer takes it. The knock becomes part of the room.
fn knock_is_taken(user: &TestUser, room: &mut FakeRoom, peer: &Peer) {
    peer.let_knock(room, user.id());
    assert_eq!(knock(user, room.id.as_str(), peer).0, 200);
    user.wait_for_room("knock", room.id.as_str());
    room.take(room.read(&peer.wait_for("send_knock").body));
}

/// Has the peer take the user's join, but answer only when the gate is open.
fn let_in_slowly(peer: &Peer, room: &FakeRoom, user: &TestUser) -> Gate {
    let gate = Gate::default();
    peer.let_in(room, user.id());
    peer.answer_behind(&gate, "send_join", 200, room.join_answer());
    gate
}

fn html() -> Reply {
    Reply::bytes("text/html", b"<html><body>Welcome to nginx!</body></html>".to_vec())
}

/// Invites the user to the fake room, over the real endpoint.
fn invite(peer: &Peer, room: &FakeRoom, server: &str, user: &str) -> (u16, Value) {
    let event = room.membership(peer, &room.creator, user, "invite");
    peer.put_event(server, "v2/invite", &room.id, &event, &room.invite_body(&event))
}

// ----- templates -----

#[test]
fn a_template_that_asks_us_to_sign_something_else_is_not_signed() {
    let (_server, bob, peer, room) = stage("knock");
    let good = room.template(bob.id(), "knock");
    let with = |path: &[&str], value: Value| {
        let mut bad = good.clone();
        let mut place = &mut bad;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        bad
    };
    let lies = [
        with(&["event", "room_id"], json!("!other:example.org")),
        with(&["event", "sender"], json!("@somebody:example.org")),
        with(&["event", "state_key"], json!("@somebody:example.org")),
        with(&["event", "state_key"], json!("")),
        with(&["event", "type"], json!("m.room.power_levels")),
        with(&["event", "content", "membership"], json!("join")),
        with(&["event", "content"], json!("knock")),
        with(&["event", "auth_events"], json!("none")),
        with(&["event", "prev_events"], Value::Null),
        with(&["event"], json!([])),
        with(&["room_version"], json!("6")),
        with(&["room_version"], json!("org.example.unheard_of")),
        with(&["room_version"], json!(11)),
        json!({}),
        json!([200, good]),
    ];
    for lie in lies {
        peer.answer_json("make_knock", 200, lie.clone());
        let (status, body) = knock(&bob, room.id.as_str(), &peer);
        assert!(status >= 500, "{lie}: {status} {body}");
    }
    peer.answer("make_knock", |_| html());
    assert!(knock(&bob, room.id.as_str(), &peer).0 >= 500);
    assert!(peer.asked("send_knock").is_empty());
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn of_a_template_nothing_is_signed_but_its_place_in_the_room() {
    let (server, bob, peer, room) = stage("knock");
    let mut template = room.template(bob.id(), "knock");
    template["event"]["content"]["displayname"] = json!("A fool");
    template["event"]["content"]["join_authorised_via_users_server"] = json!("@root:example.org");
    template["event"]["redacts"] = json!("$something");
    template["event"]["origin"] = json!("example.org");
    template["event"]["origin_server_ts"] = json!(1);
    template["event"]["unsigned"] = json!({ "age": 5 });
    peer.answer_json("make_knock", 200, template);
    peer.answer_json("send_knock", 200, json!({ "knock_room_state": room.shown() }));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    let asked = peer.wait_for("send_knock").body;
    assert_eq!(asked["content"]["membership"], "knock");
    assert_eq!(asked["content"]["reason"], "please");
    assert_ne!(asked["content"]["displayname"], "A fool");
    assert!(asked["content"].get("join_authorised_via_users_server").is_none());
    assert!(asked.get("redacts").is_none() && asked.get("unsigned").is_none());
    assert_eq!(asked["origin"], server.name());
    assert!(asked["origin_server_ts"].as_i64().is_some_and(|ts| (ts - now_ms()).abs() < 60_000));
    assert!(asked["signatures"][server.name()].is_object());
    bob.wait_for_room("knock", room.id.as_str());
}

#[test]
fn a_refusal_that_speaks_of_the_room_is_passed_on_and_everything_else_is_our_own_words() {
    let (_server, bob, peer, room) = stage("knock");
    for (status, errcode, expected) in [
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
        (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
        (400, "M_MISSING_PARAM", (502, "M_UNKNOWN")),
        (400, "M_INVALID_PARAM", (502, "M_UNKNOWN")),
        (401, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
        (404, "M_UNRECOGNIZED", (502, "M_UNKNOWN")),
        (429, "M_LIMIT_EXCEEDED", (429, "M_LIMIT_EXCEEDED")),
        (403, "M_LIMIT_EXCEEDED", (429, "M_LIMIT_EXCEEDED")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
        (418, "ORG.EXAMPLE.TEAPOT", (502, "M_UNKNOWN")),
    ] {
        peer.answer_json(
            "make_knock",
            status,
            json!({ "errcode": errcode, "error": "no", "room_version": "x" }),
        );
        let (status, body) = knock(&bob, room.id.as_str(), &peer);
        assert_eq!((status, body["errcode"].as_str()), (expected.0, Some(expected.1)), "{errcode}: {body}");
        assert!(body.get("room_version").is_none());
    }
    let incompatible =
        json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "no", "room_version": "org.odd" });
    peer.answer_json("make_", 400, incompatible);
    for path in ["knock", "join"] {
        let via = segment(peer.name().as_str());
        let (status, body) =
            post(&bob, &format!("{path}/{}?via={via}", segment(room.id.as_str())), json!({}));
        assert_eq!((status, &body["errcode"]), (400, &json!("M_INCOMPATIBLE_ROOM_VERSION")));
        assert_eq!(body["room_version"], "org.odd");
    }
}

#[test]
fn a_knock_refused_at_the_door_leaves_nothing_and_can_be_made_again() {
    let (_server, bob, peer, room) = stage("knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.answer_json("send_knock", 403, json!({ "errcode": "M_FORBIDDEN", "error": "no" }));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).1["errcode"], "M_FORBIDDEN");
    assert!(!is_in(&bob, "knock", room.id.as_str()) && !is_in(&bob, "leave", room.id.as_str()));
    // Entries of another room, and entries that are none, are not shown to clients.
    let other = FakeRoom::new(&peer, "11", "public");
    let mut shown = room.shown().as_array().expect("a list").clone();
    shown.extend(other.shown().as_array().expect("a list").clone());
    shown.extend([json!({ "type": 5 }), json!("text"), json!({ "type": "m.room.topic", "content": {} })]);
    let expected = room.shown().as_array().expect("a list").len();
    peer.answer_json("send_knock", 200, json!({ "knock_room_state": shown }));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    let knocked = bob.wait_for_room("knock", room.id.as_str());
    let events = knocked["knock_state"]["events"].as_array().expect("a list");
    assert_eq!(events.iter().filter(|e| e["type"] != "m.room.member").count(), expected, "{events:?}");
}

#[test]
fn a_knock_that_no_server_answers_is_told_so_and_handed_in_again_later() {
    let (server, bob, peer, room) = stage("knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    for (status, body) in [(503, json!({ "errcode": "M_UNKNOWN", "error": "busy" })), (401, json!({}))] {
        peer.answer_json("send_knock", status, body);
        let (status, body) = knock(&bob, room.id.as_str(), &peer);
        assert_eq!((status, &body["errcode"]), (502, &json!("M_UNKNOWN")), "{body}");
        assert!(!is_in(&bob, "knock", room.id.as_str()));
    }
    peer.answer_json("send_knock", 200, json!({ "knock_room_state": room.shown() }));
    wait_until("the knock is shown", || {
        server.advance(Duration::from_secs(60));
        is_in(&bob, "knock", room.id.as_str())
    });
    let targets: Vec<String> = peer.asked("send_knock").into_iter().map(|asked| asked.target).collect();
    assert!(targets.iter().all(|target| target == &targets[0]), "not the same event: {targets:?}");
    assert_eq!(peer.asked("make_knock").len(), 1, "one knock needs one template");
}

#[test]
fn a_knock_that_was_taken_stands_whatever_else_the_answer_says() {
    let (_server, bob, peer, room) = stage("knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.let_leave(&room, bob.id());
    let many: Vec<Value> = (0..1000).map(|n| json!({ "type": "x", "state_key": n.to_string() })).collect();
    for body in [json!([]), json!({}), json!({ "knock_room_state": 5 }), json!({ "knock_room_state": many })]
    {
        peer.answer_json("send_knock", 200, body);
        assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
        assert!(is_in(&bob, "knock", room.id.as_str()));
        // It can be withdrawn, and the room hears of it.
        let told = peer.asked("send_leave").len();
        bob.leave(room.id.as_str());
        wait_until("the room is told", || peer.asked("send_leave").len() > told);
    }
    peer.answer("send_knock", |_| html());
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    assert!(is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn a_leave_that_was_taken_is_not_told_again_whatever_the_answer_says() {
    let (server, bob, peer, mut room) = stage("invite");
    peer.let_leave(&room, bob.id());
    peer.answer("send_leave", |_| html());
    room.invite(&peer, server.name(), bob.id());
    bob.leave(room.id.as_str());
    peer.wait_for("send_leave");
    let id = doorstep::protocol::UserId::parse(bob.id()).expect("a user id");
    wait_until("the leave is done", || {
        let row = server.homeserver().store.read(|db| db.remote_membership(&room.id, &id));
        row.expect("the database reads").is_some_and(|row| row.due_ms.is_none())
    });
    assert_eq!(peer.asked("send_leave").len(), 1);
}

// ----- invites to us -----

#[test]
fn an_invite_that_is_not_what_it_says_is_not_signed_or_shown() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, other) = (Peer::start(), Peer::start());
    for version in ["10", "12"] {
        let room = FakeRoom::new(&peer, version, "invite");
        let member =
            |state_key: &str, membership: &str| room.membership(&peer, &room.creator, state_key, membership);
        let good = member(bob.id(), "invite");
        let put = |event: &doorstep::protocol::Pdu, body: &Value| {
            peer.put_event(server.name(), "v2/invite", &room.id, event, body)
        };
        let mut cases: Vec<(&str, Value, &str)> = Vec::new();
        let body_of = |event: &doorstep::protocol::Pdu| room.invite_body(event);
        let (join, stranger) = (member(bob.id(), "join"), member("@bob:example.org", "invite"));
        for (what, event) in [("a join", &join), ("somebody else's user", &stranger)] {
            let (status, answer) = put(event, &body_of(event));
            assert_eq!((status, &answer["errcode"]), (400, &json!("M_INVALID_PARAM")), "{what}: {answer}");
        }
        let topic = room.draft(&peer, "m.room.topic", "", &room.creator, json!({ "membership": "invite" }));
        assert_eq!(put(&topic, &body_of(&topic)).1["errcode"], "M_INVALID_PARAM");
        let elsewhere = room.membership(&other, &other.user("eve"), bob.id(), "invite");
        assert_eq!(put(&elsewhere, &body_of(&elsewhere)).1["errcode"], "M_INVALID_PARAM");
        let wrong_signer = room.membership(&other, &room.creator, bob.id(), "invite");
        assert_eq!(put(&wrong_signer, &body_of(&wrong_signer)).1["errcode"], "M_INVALID_PARAM");
        let mut tampered = body_of(&good);
        tampered["event"]["content"]["displayname"] = json!("changed after signing");
        cases.push(("tampered", tampered, "M_INVALID_PARAM"));
        let mut unknown = body_of(&good);
        unknown["room_version"] = json!("org.example.unheard_of");
        cases.push(("unknown version", unknown, "M_INCOMPATIBLE_ROOM_VERSION"));
        let mut no_event = body_of(&good);
        no_event.as_object_mut().expect("an object").remove("event");
        cases.push(("no event", no_event, "M_BAD_JSON"));
        if version == "12" {
            let mut bare = body_of(&good);
            bare["invite_room_state"] = json!([]);
            cases.push(("no create event", bare, "M_INVALID_PARAM"));
            let mut foreign = body_of(&good);
            foreign["invite_room_state"] = FakeRoom::new(&other, "12", "invite").shown();
            cases.push(("another room's state", foreign, "M_INVALID_PARAM"));
        }
        for (what, body, errcode) in cases {
            let (status, answer) = put(&good, &body);
            assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{what}: {answer}");
        }
        let wrong_path = peer.put_event(server.name(), "v2/invite", &room.id, &join, &body_of(&good));
        assert_eq!(wrong_path.1["errcode"], "M_INVALID_PARAM", "event id of the path");
        let nobody = member(&format!("@nobody:{}", server.name()), "invite");
        assert_eq!(put(&nobody, &body_of(&nobody)).0, 403);
        assert!(!is_in(&bob, "invite", room.id.as_str()));

        let (status, answer) = put(&good, &body_of(&good));
        assert_eq!(status, 200, "{answer}");
        let mut expected = Value::Object(good.to_object());
        expected["signatures"][server.name()] = answer["event"]["signatures"][server.name()].clone();
        assert!(expected["signatures"][server.name()].is_object());
        assert_eq!(answer["event"], expected, "our signature and nothing else");
        bob.wait_for_room("invite", room.id.as_str());
    }
}

#[test]
fn an_invite_that_comes_again_after_it_was_rejected_stays_rejected() {
    let (server, bob, peer, room) = stage("invite");
    let event = room.membership(&peer, &room.creator, bob.id(), "invite");
    let put = || peer.put_event(server.name(), "v2/invite", &room.id, &event, &room.invite_body(&event)).0;
    assert_eq!(put(), 200);
    bob.wait_for_room("invite", room.id.as_str());
    assert_eq!(put(), 200);
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
    assert_eq!(put(), 200);
    assert!(!is_in(&bob, "invite", room.id.as_str()));
    // A new one is new.
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    bob.wait_for_room("invite", room.id.as_str());
}

#[test]
fn invites_that_disagree_about_the_version_of_the_room_lock_nobody_out() {
    let (server, bob, peer, room) = stage("invite");
    // Of version 1, whose events refer to others in another form.
    let old = room_version::room_version("1").expect("a known version");
    let old_invite = |depth: i64| {
        let event = json!({
            "type": "m.room.member", "state_key": bob.id(), "sender": room.creator, "room_id": room.id,
            "content": { "membership": "invite" }, "origin": peer.name(), "origin_server_ts": now_ms(),
            "depth": depth, "prev_events": [["$before:example.org", { "sha256": "x" }]], "auth_events": [],
        });
        let event = peer.sign(event.as_object().expect("an object").clone(), old);
        let body = json!({ "room_version": "1", "event": event.to_object(), "invite_room_state": [] });
        peer.put_event(server.name(), "v2/invite", &room.id, &event, &body)
    };
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()));
    assert_eq!(old_invite(7).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()), "the newer event, after one of the other form");
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()), "and back");
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
}

#[test]
fn stripped_state_of_four_fields_is_taken_where_servers_still_send_it() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    for version in ["11", "12"] {
        let room = FakeRoom::new(&peer, version, "invite");
        let event = room.membership(&peer, &room.creator, bob.id(), "invite");
        let mut body = room.invite_body(&event);
        for entry in body["invite_room_state"].as_array_mut().expect("a list") {
            // Of version 12 the create event is whole everywhere, since the room's id is made of it.
            if version == "12" && entry["type"] == "m.room.create" {
                continue;
            }
            *entry = json!({
                "type": entry["type"], "state_key": "", "sender": entry["sender"], "content": entry["content"],
            });
        }
        let (status, answer) = peer.put_event(server.name(), "v2/invite", &room.id, &event, &body);
        assert_eq!(status, 200, "version {version}: {answer}");
        let invited = bob.wait_for_room("invite", room.id.as_str());
        let events = invited["invite_state"]["events"].as_array().expect("a list");
        assert!(events.iter().any(|e| e["type"] == "m.room.create"));
        assert!(events.iter().any(|e| e["content"]["name"] == "fake"));
    }
}

#[test]
fn an_invite_by_version_1_of_the_request_is_taken_too() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let id = format!("!old:{}", peer.name());
    let creator = peer.user("creator");
    let version = doorstep::protocol::room_version::room_version("1").expect("version 1");
    let event = json!({
        "type": "m.room.member", "state_key": bob.id(), "sender": creator, "room_id": id, "depth": 5,
        "content": { "membership": "invite" }, "origin_server_ts": now_ms(), "origin": peer.name(),
        "prev_events": [["$a:example.org", { "sha256": "abc" }]], "auth_events": [["$b:example.org", { "sha256": "abc" }]],
    });
    let event = peer.sign(event.as_object().expect("an object").clone(), version);
    let mut body = Value::Object(event.to_object());
    body["unsigned"] = json!({ "invite_room_state": [
        { "type": "m.room.name", "state_key": "", "sender": creator, "content": { "name": "Old" } },
    ]});
    let room = doorstep::protocol::RoomId::parse(&id).expect("a room id");
    let (status, answer) = peer.put_event(server.name(), "v1/invite", &room, &event, &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer[0], 200);
    assert!(answer[1]["event"]["signatures"][server.name()].is_object());
    let invited = bob.wait_for_room("invite", &id);
    assert!(
        invited["invite_state"]["events"]
            .as_array()
            .is_some_and(|e| e.iter().any(|e| e["content"]["name"] == "Old"))
    );
}

// ----- answers to joins -----

/// Answers to `send_join` that are not the room that a user with an invite joins.
fn rooms_that_are_none(
    room: &FakeRoom,
    (peer, forger): (&Peer, &Peer),
    without_invite: Value,
) -> Vec<(&'static str, Value)> {
    let good = room.join_answer();
    let version = room.version.id;
    let other = FakeRoom::new(peer, version, "public");
    let only = |keep: &dyn Fn(&Value) -> bool| {
        let state: Vec<Value> =
            good["state"].as_array().expect("a list").iter().filter(|e| keep(e)).cloned().collect();
        json!({ "state": state, "auth_chain": state })
    };
    let twice = {
        let mut twice = good.clone();
        let name = room.draft(peer, "m.room.name", "", &room.creator, json!({ "name": "second" }));
        twice["state"].as_array_mut().expect("a list").push(Value::Object(name.to_object()));
        twice
    };
    let mut forged = FakeRoom::new(forger, version, "public");
    forged.id = room.id.clone();
    let mut another_event = good.clone();
    another_event["event"] =
        Value::Object(room.state[&("m.room.name".to_owned(), String::new())].to_object());
    let mut without_members = good.clone();
    without_members["members_omitted"] = json!(true);
    vec![
        ("nothing", json!({})),
        ("without its members", without_members),
        ("empty", json!({ "state": [], "auth_chain": [] })),
        ("text", json!({ "state": "all", "auth_chain": [] })),
        ("another room", other.join_answer()),
        ("a forged room", forged.join_answer()),
        ("no invite", without_invite),
        ("no create event", only(&|e| e["type"] != "m.room.create")),
        ("no join rules and so no invite", only(&|e| e["type"] == "m.room.create")),
        ("two names", twice),
        ("another event for ours", another_event),
    ]
}

#[test]
fn a_room_that_is_not_the_one_we_joined_is_not_adopted_and_left_again() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, forger) = (Peer::start(), Peer::start());
    let incremental = |since: &Value| {
        let since = segment(since.as_str().expect("a token"));
        bob.get(&format!("/_matrix/client/v3/sync?since={since}"))
    };
    for (version, which) in ["10", "12"].into_iter().flat_map(|version| (0..12).map(move |n| (version, n))) {
        let mut room = FakeRoom::new(&peer, version, "invite");
        let event = room.membership(&peer, &room.creator, bob.id(), "invite");
        let (status, answer) =
            peer.put_event(server.name(), "v2/invite", &room.id, &event, &room.invite_body(&event));
        assert_eq!(status, 200, "{answer}");
        bob.wait_for_room("invite", room.id.as_str());
        // As it is before the invite is in it: a join is not allowed there.
        let without_invite = room.join_answer();
        room.take(event);
        let lies = rooms_that_are_none(&room, (&peer, &forger), without_invite);
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        peer.answer_json("send_join", 403, json!({ "errcode": "M_FORBIDDEN", "error": "taken back" }));
        assert_eq!(join(&bob, room.id.as_str(), None).1["errcode"], "M_FORBIDDEN");
        assert!(is_in(&bob, "invite", room.id.as_str()));

        let before = bob.initial_sync()["next_batch"].clone();
        let told = peer.asked("send_leave").len();
        let what = match lies.into_iter().nth(which) {
            Some((what, lie)) => {
                peer.answer_json("send_join", 200, lie);
                what
            }
            None => {
                peer.answer("send_join", |_| html());
                "html"
            }
        };
        let answer_to_leave = Gate::default();
        peer.answer_json("send_leave", 200, json!({}));
        peer.answer_behind(&answer_to_leave, "make_leave", 200, room.template(bob.id(), "leave"));
        let (status, body) = join(&bob, room.id.as_str(), None);
        assert_eq!(status, 502, "{what}: {body}");
        assert!(body["error"].as_str().is_some_and(|e| e.contains("left again")), "{what}: {body}");
        // The other server has us in the room: that ends at once for our user, and there when it is told.
        let news = incremental(&before);
        let event = &news["rooms"]["leave"][room.id.as_str()]["timeline"]["events"][0];
        assert_eq!(event["content"]["membership"], "leave", "{what}: {news}");
        assert!(!is_in(&bob, "invite", room.id.as_str()), "{what}: the invite is used up");
        assert!(!is_in(&bob, "join", room.id.as_str()), "{what}: the room was adopted");
        bob.leave(room.id.as_str());
        answer_to_leave.open();
        wait_until("the room is told", || peer.asked("send_leave").len() > told);

        // And it can be entered again by who is let in.
        room.state.remove(&("m.room.member".to_owned(), bob.id().to_owned()));
        room.invite(&peer, server.name(), bob.id());
        let good = room.join_answer();
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));

        // Events that are badly signed are left out, and the room is entered without them.
        let mut mixed = good.clone();
        let mut bad_name =
            room.draft(&forger, "m.room.topic", "", &room.creator, json!({ "topic": "forged" })).to_object();
        bad_name.remove("unsigned");
        mixed["state"].as_array_mut().expect("a list").push(Value::Object(bad_name));
        peer.answer_json("send_join", 200, mixed);
        let (status, body) = join(&bob, room.id.as_str(), None);
        assert_eq!(status, 200, "version {version}: {body}");
        assert!(bob.state(room.id.as_str(), "m.room.topic", "").is_none());
        assert_eq!(bob.membership_of(room.id.as_str(), bob.id()).as_deref(), Some("join"));
        assert!(!is_in(&bob, "invite", room.id.as_str()));
    }
}

#[test]
fn of_several_servers_one_that_lets_us_in_suffices_though_another_took_the_join_in_vain() {
    let (_server, bob, peer, room) = stage("public");
    let good = Peer::start();
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    peer.answer("send_join", |_| html());
    good.let_in(&room, bob.id());
    let via = [segment(peer.name().as_str()), segment(good.name().as_str())];
    let path = format!("join/{}?via={}&via={}", segment(room.id.as_str()), via[0], via[1]);
    let (status, body) = post(&bob, &path, json!({}));
    assert_eq!(status, 200, "{body}");
    assert!(!peer.asked("send_join").is_empty() && !good.asked("send_join").is_empty());
    assert_eq!(bob.membership_of(room.id.as_str(), bob.id()).as_deref(), Some("join"));
    assert!(peer.asked("make_leave").is_empty() && good.asked("make_leave").is_empty());
}

#[test]
fn a_join_of_which_nobody_says_whether_it_was_taken_can_be_left_and_is_left_in_the_end() {
    for by_hand in [true, false] {
        let (server, bob, peer, room) = stage("public");
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        peer.answer_json("send_join", 503, json!({ "errcode": "M_UNKNOWN", "error": "busy" }));
        peer.let_leave(&room, bob.id());
        let path = format!("join/{}?via={}", segment(room.id.as_str()), segment(peer.name().as_str()));
        assert!(post(&bob, &path, json!({})).0 >= 500);
        assert!(peer.asked("make_leave").is_empty());
        if by_hand {
            bob.leave(room.id.as_str());
            peer.wait_for("send_leave");
        } else {
            // It is handed in again and again, for a week.
            wait_until("it is left", || {
                server.advance(Duration::from_secs(3 * 3600));
                !peer.asked("send_leave").is_empty()
            });
            assert!(peer.asked("send_join").len() > 10, "{}", peer.asked("send_join").len());
        }
        assert!(!is_in(&bob, "join", room.id.as_str()));
    }
}

// ----- answers to invites -----

#[test]
fn an_invite_that_comes_back_as_something_else_never_happened() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (peer, other) = (Arc::new(Peer::start()), Arc::new(Peer::start()));
    for version in ["6", "12"] {
        let room = alice.create_room_with(json!({ "preset": "private_chat", "room_version": version }));
        let rules = doorstep::protocol::room_version::room_version(version).expect("a version");
        let target = peer.user("guest");
        let invite =
            || post(&alice, &format!("rooms/{}/invite", segment(&room)), json!({ "user_id": target }));
        let back = |answer: Box<dyn Fn(Value) -> Value + Send + Sync>| {
            peer.answer("v2/invite", move |asked| {
                Reply::json(&json!({ "event": answer(asked.body["event"].clone()) }))
            });
        };
        let (signer, forger) = (peer.clone(), other.clone());
        back(Box::new(|event| event));
        assert_eq!(invite().0, 502, "not signed");
        back(Box::new(move |event| forger.countersign(&event, rules)));
        assert_eq!(invite().0, 502, "signed by somebody else");
        back(Box::new({
            let signer = signer.clone();
            move |mut event| {
                event["content"]["displayname"] = json!("changed");
                signer.countersign(&event, rules)
            }
        }));
        assert_eq!(invite().0, 502, "changed");
        back(Box::new({
            let (signer, name) = (signer.clone(), peer.name().clone());
            move |event| {
                let mut event = signer.countersign(&event, rules);
                let signature = &mut event["signatures"][name.as_str()]["ed25519:script"];
                *signature =
                    json!(signature.as_str().expect("a signature").chars().rev().collect::<String>());
                event
            }
        }));
        assert_eq!(invite().0, 502, "a wrong signature");
        back(Box::new(|_| json!({ "type": "m.room.member" })));
        assert_eq!(invite().0, 502, "another event");
        peer.answer("v2/invite", |_| html());
        assert_eq!(invite().0, 502, "HTML");
        for (status, errcode, expected) in [
            (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
            (403, "M_INVITE_BLOCKED", (403, "M_INVITE_BLOCKED")),
            (400, "M_INCOMPATIBLE_ROOM_VERSION", (400, "M_UNSUPPORTED_ROOM_VERSION")),
            (400, "M_UNSUPPORTED_ROOM_VERSION", (400, "M_UNSUPPORTED_ROOM_VERSION")),
            (400, "M_INVALID_PARAM", (502, "M_UNKNOWN")),
            (404, "M_UNRECOGNIZED", (502, "M_UNKNOWN")),
        ] {
            peer.answer_json("v2/invite", status, json!({ "errcode": errcode, "error": "no" }));
            let (status, body) = invite();
            assert_eq!((status, body["errcode"].as_str()), (expected.0, Some(expected.1)), "{errcode}");
        }
        assert_eq!(alice.membership_of(&room, target.as_str()), None, "an invite was committed");
        assert!(peer.asked("v1/invite").is_empty());
        back(Box::new(move |event| {
            let mut event = signer.countersign(&event, rules);
            event["unsigned"] = json!({ "age": 3 });
            event
        }));
        let (status, body) = invite();
        assert_eq!(status, 200, "{body}");
        assert_eq!(alice.membership_of(&room, target.as_str()).as_deref(), Some("invite"));
    }
}

#[test]
fn a_server_that_knows_no_version_2_of_invites_is_asked_by_version_1_in_old_rooms() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Arc::new(Peer::start());
    for version in ["1", "2"] {
        let room = alice.create_room_with(json!({ "preset": "private_chat", "room_version": version }));
        let rules = doorstep::protocol::room_version::room_version(version).expect("a version");
        let signer = peer.clone();
        peer.answer("v1/invite", move |asked| {
            assert!(asked.body["unsigned"]["invite_room_state"].as_array().is_some_and(|s| !s.is_empty()));
            Reply::json(&json!([200, { "event": signer.countersign(&asked.body, rules) }]))
        });
        alice.invite(&room, peer.user("guest").as_str());
        assert_eq!(alice.membership_of(&room, peer.user("guest").as_str()).as_deref(), Some("invite"));
    }
}

// ----- what a peer hands in -----

#[test]
fn whoever_asks_for_a_template_is_told_exactly_why_not() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Peer::start();
    let room = alice.create_room_with(json!({
        "room_version": "11",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    let guest = peer.user("guest");
    let make = |verb: &str, room: &str, user: &str, query: &str| {
        let path = format!("/_matrix/federation/v1/make_{verb}/{}/{}{query}", segment(room), segment(user));
        let (status, body) = peer.ask(server.name(), "GET", &path, None);
        (status, body["errcode"].as_str().unwrap_or_default().to_owned(), body)
    };
    for verb in ["join", "knock", "leave"] {
        let (status, errcode, _) = make(verb, "!nowhere:example.org", guest.as_str(), "?ver=11");
        assert_eq!((status, errcode.as_str()), (404, "M_NOT_FOUND"), "{verb}");
        let (status, errcode, _) = make(verb, &room, "@guest:example.org", "?ver=11");
        assert_eq!((status, errcode.as_str()), (403, "M_FORBIDDEN"), "{verb}");
        assert_eq!(make(verb, "nonsense", guest.as_str(), "?ver=11").0, 400);
        assert_eq!(make(verb, &room, "nonsense", "?ver=11").0, 400);
    }
    for (verb, query) in [("join", "?ver=10&ver=9"), ("join", ""), ("knock", "?ver=1")] {
        let (status, errcode, body) = make(verb, &room, guest.as_str(), query);
        assert_eq!((status, errcode.as_str()), (400, "M_INCOMPATIBLE_ROOM_VERSION"), "{verb}{query}");
        assert_eq!(body["room_version"], "11");
    }
    assert_eq!(make("knock", &room, guest.as_str(), "").1, "M_MISSING_PARAM");
    assert_eq!(make("join", &room, guest.as_str(), "?ver=11").1, "M_FORBIDDEN");
    assert_eq!(make("leave", &room, guest.as_str(), "").1, "M_FORBIDDEN");
    let (status, _, template) = make("knock", &room, guest.as_str(), "?ver=10&ver=11");
    assert_eq!(status, 200, "{template}");
    assert_eq!(template["room_version"], "11");
    let event = &template["event"];
    assert_eq!(event["content"]["membership"], "knock");
    assert_eq!(
        (event["sender"].as_str(), event["state_key"].as_str()),
        (Some(guest.as_str()), Some(guest.as_str()))
    );
    assert!(
        event.get("signatures").is_none() && event.get("hashes").is_none() && event.get("event_id").is_none()
    );
}

#[test]
fn an_event_handed_in_must_be_exactly_the_one_that_the_path_speaks_of() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (peer, other) = (Peer::start(), Peer::start());
    let room = alice.create_room_with(json!({
        "room_version": "11",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    let version = doorstep::protocol::room_version::room_version("11").expect("version 11");
    let room_id = doorstep::protocol::RoomId::parse(&room).expect("a room id");
    let guest = peer.user("guest");
    let path =
        format!("/_matrix/federation/v1/make_knock/{}/{}?ver=11", segment(&room), segment(guest.as_str()));
    let template =
        peer.ask(server.name(), "GET", &path, None).1["event"].as_object().expect("a template").clone();
    let variant = |change: &dyn Fn(&mut Value)| {
        let mut event = Value::Object(template.clone());
        change(&mut event);
        event.as_object().expect("an object").clone()
    };
    let refused = |what: &str, (status, body): (u16, Value)| {
        assert_eq!((status, body["errcode"].as_str()), (400, Some("M_INVALID_PARAM")), "{what}: {body}");
    };
    let send = |event: &doorstep::protocol::Pdu| {
        let body = Value::Object(event.to_object());
        peer.put_event(server.name(), "v1/send_knock", &room_id, event, &body)
    };
    let good = peer.sign(template.clone(), version);
    for (what, event) in [
        ("a join", variant(&|e| e["content"]["membership"] = json!("join"))),
        ("a topic", variant(&|e| e["type"] = json!("m.room.topic"))),
        ("of another room", variant(&|e| e["room_id"] = json!("!other:example.org"))),
        ("for another user", variant(&|e| e["state_key"] = json!("@else:example.org"))),
        (
            "by another server's user",
            variant(&|e| {
                e["sender"] = json!("@else:example.org");
                e["state_key"] = json!("@else:example.org");
            }),
        ),
    ] {
        refused(what, send(&peer.sign(event, version)));
    }
    refused("signed by another server", send(&other.sign(template.clone(), version)));
    let mut tampered = Value::Object(good.to_object());
    tampered["content"]["reason"] = json!("changed after signing");
    refused("tampered", peer.put_event(server.name(), "v1/send_knock", &room_id, &good, &tampered));
    let another = peer.sign(variant(&|e| e["origin_server_ts"] = json!(5)), version);
    refused(
        "the event id of the path",
        peer.put_event(server.name(), "v1/send_knock", &room_id, &another, &Value::Object(good.to_object())),
    );
    let no_json = peer.put_event(server.name(), "v1/send_knock", &room_id, &good, &json!([1]));
    assert_eq!((no_json.0, no_json.1["errcode"].as_str()), (400, Some("M_BAD_JSON")));
    assert_eq!(alice.membership_of(&room, guest.as_str()), None);

    let (status, first) = send(&good);
    assert_eq!(status, 200, "{first}");
    assert_eq!(alice.membership_of(&room, guest.as_str()).as_deref(), Some("knock"));
    let shown = first["knock_room_state"].as_array().expect("knock_room_state");
    let create = shown.iter().find(|e| e["type"] == "m.room.create").expect("the create event");
    assert!(create["signatures"].is_object(), "whole events, as federation has them since v1.16");
    let (status, second) = send(&good);
    assert_eq!((status, &second), (200, &first), "a repeat gets the same answer");
    // The same event by the sibling endpoints is none of theirs.
    let body = Value::Object(good.to_object());
    for call in ["v2/send_join", "v2/send_leave", "v1/send_join", "v1/send_leave"] {
        refused(call, peer.put_event(server.name(), call, &room_id, &good, &body));
    }
}

// ----- removals of our users -----

#[test]
fn only_the_room_can_refuse_a_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    let stranger = Peer::start();
    peer.let_knock(&room, bob.id());
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    bob.wait_for_room("knock", room.id.as_str());

    // A server that has nothing to do with the room.
    let forged = room.membership(&stranger, &stranger.user("eve"), bob.id(), "leave");
    assert_eq!(stranger.send_transaction(server.name(), "t1", &[&forged]).0, 200);
    // The right sender, the wrong signature; the user's own leave, which they did not make.
    let forged = room.membership(&stranger, &room.creator, bob.id(), "leave");
    assert_eq!(stranger.send_transaction(server.name(), "t2", &[&forged]).0, 200);
    let bob_id = doorstep::protocol::UserId::parse(bob.id()).expect("a user id");
    let forged = room.membership(&peer, &bob_id, bob.id(), "leave");
    assert_eq!(peer.send_transaction(server.name(), "t3", &[&forged]).0, 200);
    let harmless = room.membership(&peer, &room.creator, bob.id(), "knock");
    assert_eq!(peer.send_transaction(server.name(), "t4", &[&harmless]).0, 200);
    assert!(is_in(&bob, "knock", room.id.as_str()));

    room.take(room.read(&peer.wait_for("send_knock").body));
    let refusal = room.membership(&peer, &room.creator, bob.id(), "leave");
    let (status, answer) = peer.send_transaction(server.name(), "t5", &[&refusal]);
    assert_eq!((status, &answer["pdus"][refusal.event_id().as_str()]), (200, &json!({})), "{answer}");
    bob.wait_for_room("leave", room.id.as_str());
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn a_server_that_was_asked_in_vain_cannot_refuse_a_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    let stranger = Peer::start();
    stranger.answer_json("make_knock", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no such room" }));
    peer.let_knock(&room, bob.id());
    let via = |peer: &Peer| segment(peer.name().as_str()).clone();
    let path = format!("knock/{}?via={}&via={}", segment(room.id.as_str()), via(&stranger), via(&peer));
    assert_eq!(post(&bob, &path, json!({})).0, 200);
    bob.wait_for_room("knock", room.id.as_str());
    stranger.wait_for("make_knock");
    // It knows of the knock, and that is all it knows.
    for topic in ["later", "and later"] {
        let creator = room.creator.clone();
        room.add(&peer, "m.room.topic", "", &creator, json!({ "topic": topic }));
    }
    let leave = |by: &Peer, user: &str| room.membership(by, &by.user(user), bob.id(), "leave");
    let forged = leave(&stranger, "eve");
    let (status, answer) = stranger.send_transaction(server.name(), "t1", &[&forged]);
    assert_eq!(status, 200);
    assert!(answer["pdus"][forged.event_id().as_str()]["error"].is_string(), "{answer}");
    assert!(is_in(&bob, "knock", room.id.as_str()));
    // The server that took the knock may.
    assert_eq!(peer.send_transaction(server.name(), "t1", &[&leave(&peer, "creator")]).0, 200);
    bob.wait_for_room("leave", room.id.as_str());
}

#[test]
fn a_late_refusal_of_a_knock_does_not_take_the_invite_away() {
    let (server, bob, peer, mut room) = stage("knock");
    knock_is_taken(&bob, &mut room, &peer);
    let refusal = room.membership(&peer, &room.creator, bob.id(), "leave");
    room.take(refusal.clone());
    // The room changes its mind, and the invite is faster than the refusal.
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    bob.wait_for_room("invite", room.id.as_str());
    assert_eq!(peer.send_transaction(server.name(), "t1", &[&refusal]).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()));
}

#[test]
fn a_withdrawal_tries_the_servers_until_one_takes_it() {
    let (server, bob, peer, mut room) = stage("knock");
    knock_is_taken(&bob, &mut room, &peer);
    peer.answer_json("make_leave", 500, json!({ "errcode": "M_UNKNOWN", "error": "busy" }));
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
    peer.wait_for("make_leave");
    assert!(peer.asked("send_leave").is_empty());
    peer.let_leave(&room, bob.id());
    wait_until("the leave is handed in", || {
        server.advance(Duration::from_secs(3600));
        !peer.asked("send_leave").is_empty()
    });
    let leave = peer.wait_for("send_leave").body;
    assert_eq!(
        (leave["content"]["membership"].as_str(), leave["sender"].as_str()),
        (Some("leave"), Some(bob.id()))
    );
    let told = peer.asked("send_leave").len();
    server.advance(Duration::from_secs(24 * 3600));
    assert_eq!(peer.asked("send_leave").len(), told, "said once, and not again");
}

// ----- what crosses on the way -----

/// A peer whose room takes knocks and leaves, but answers a knock only when the gate is open.
fn slow_to_take_knocks(bob: &TestUser) -> (Arc<Peer>, FakeRoom, Gate) {
    let peer = Arc::new(Peer::start());
    let room = FakeRoom::new(&peer, "11", "knock");
    let gate = Gate::default();
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.let_leave(&room, bob.id());
    peer.answer_behind(&gate, "send_knock", 200, json!({ "knock_room_state": room.shown() }));
    (peer, room, gate)
}

#[test]
fn a_knock_that_is_withdrawn_while_it_is_on_its_way_ends_withdrawn() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, room, gate) = slow_to_take_knocks(&bob);
    bob.initial_sync();
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let knocking = scope.spawn(|| knock(&again, room.id.as_str(), &peer).0);
        peer.wait_for("send_knock");
        bob.leave(room.id.as_str());
        bob.wait_for_room("leave", room.id.as_str());
        gate.open();
        assert_eq!(knocking.join().expect("no panic"), 200);
    });
    peer.wait_for("send_leave");
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn an_invite_that_is_faster_than_the_answer_to_the_knock_stays() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, mut room, gate) = slow_to_take_knocks(&bob);
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let id = room.id.clone();
        let (peer_of_thread, again) = (peer.clone(), &again);
        let knocking = scope.spawn(move || knock(again, id.as_str(), &peer_of_thread).0);
        room.take(room.read(&peer.wait_for("send_knock").body));
        assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
        gate.open();
        assert_eq!(knocking.join().expect("no panic"), 200);
    });
    let sync = bob.initial_sync();
    assert!(sync["rooms"]["knock"].get(room.id.as_str()).is_none());
    let events = &sync["rooms"]["invite"][room.id.as_str()]["invite_state"]["events"];
    let own = events.as_array().expect("invite state").iter().find(|e| e["state_key"] == bob.id());
    assert_eq!(own.expect("the invite")["unsigned"]["prev_content"]["membership"], "knock");
}

#[test]
fn a_join_that_is_given_up_while_it_is_on_its_way_ends_as_a_leave_in_the_room() {
    let (server, bob, peer, mut room) = stage("invite");
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    let gate = let_in_slowly(&peer, &room, &bob);
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(&again, room.id.as_str(), None).0);
        peer.wait_for("send_join");
        bob.leave(room.id.as_str());
        bob.wait_for_room("leave", room.id.as_str());
        gate.open();
        joining.join().expect("no panic");
    });
    wait_until("the room is told of the leave", || {
        let sent = peer.asked("/send/");
        let pdus: Vec<&Value> =
            sent.iter().flat_map(|t| t.body["pdus"].as_array().into_iter().flatten()).collect();
        pdus.iter().any(|pdu| pdu["state_key"] == bob.id() && pdu["content"]["membership"] == "leave")
    });
    let sync = bob.initial_sync();
    for section in ["join", "invite", "knock"] {
        assert!(sync["rooms"][section].get(room.id.as_str()).is_none(), "{section}");
    }
}

#[test]
fn a_removal_that_the_room_does_not_allow_does_not_spoil_the_join_that_it_overtook() {
    let (server, bob, peer, mut room) = stage("invite");
    let stranger = Peer::start();
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    let gate = let_in_slowly(&peer, &room, &bob);
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(&again, room.id.as_str(), None));
        peer.wait_for("send_join");
        // Somebody who has seen the invite, and is not in the room.
        let eve = stranger.user("eve");
        let kick = room.membership(&stranger, &eve, bob.id(), "leave");
        assert_eq!(stranger.send_transaction(server.name(), "t1", &[&kick]).0, 200);
        gate.open();
        let (status, answer) = joining.join().expect("no panic");
        assert_eq!(status, 200, "{answer}");
    });
    assert!(is_in(&bob, "join", room.id.as_str()));
}

#[test]
fn a_refusal_that_is_delivered_twice_does_not_end_the_next_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    knock_is_taken(&bob, &mut room, &peer);
    let refusal =
        room.add(&peer, "m.room.member", bob.id(), &room.creator.clone(), json!({ "membership": "leave" }));
    assert_eq!(peer.send_transaction(server.name(), "t1", &[&refusal]).0, 200);
    bob.wait_for_room("leave", room.id.as_str());

    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    bob.wait_for_room("knock", room.id.as_str());
    assert_eq!(peer.send_transaction(server.name(), "t2", &[&refusal]).0, 200);
    assert!(is_in(&bob, "knock", room.id.as_str()), "the old refusal ended the new knock");
    // Nor does it keep the room from hearing that this knock is withdrawn.
    peer.answer_json("make_leave", 500, json!({ "errcode": "M_UNKNOWN", "error": "busy" }));
    bob.leave(room.id.as_str());
    peer.wait_for("make_leave");
    assert_eq!(peer.send_transaction(server.name(), "t3", &[&refusal]).0, 200);
    peer.let_leave(&room, bob.id());
    wait_until("the leave is handed in", || {
        server.advance(Duration::from_secs(3600));
        !peer.asked("send_leave").is_empty()
    });
}

#[test]
fn an_invite_that_was_signed_in_the_room_and_comes_after_we_left_it_is_taken() {
    let server = TestServer::start();
    let (bob, carol) = (server.user("bob"), server.user("carol"));
    let peer = Peer::start();
    let room = FakeRoom::joined_by(&peer, "11", &carol);
    let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
    let (status, answer) =
        peer.put_event(server.name(), "v2/invite", &room.id, &invite, &room.invite_body(&invite));
    assert_eq!(status, 200, "{answer}");
    let signed = room.read(&answer["event"]);
    carol.leave(room.id.as_str());
    assert!(!is_in(&bob, "invite", room.id.as_str()));
    // Without our signature anybody could send it.
    let (_, answer) = peer.send_transaction(server.name(), "t1", &[&invite]);
    assert!(answer["pdus"][invite.event_id().as_str()]["error"].is_string(), "{answer}");
    let (_, answer) = peer.send_transaction(server.name(), "t2", &[&signed]);
    assert_eq!(answer["pdus"][invite.event_id().as_str()], json!({}), "{answer}");
    let invited = bob.wait_for_room("invite", room.id.as_str());
    let events = invited["invite_state"]["events"].as_array().expect("a list");
    assert!(events.iter().any(|e| e["content"]["name"] == "fake"), "{events:?}");
}

#[test]
fn what_a_knocker_or_an_invitee_is_shown_of_a_room_is_signed_or_not_shown() {
    let server = TestServer::start();
    for (number, damage) in ["signature", "content", "none"].into_iter().enumerate() {
        let peer = Peer::start();
        let room = FakeRoom::new(&peer, "12", "knock");
        let mut shown = room.shown();
        let name = shown.as_array_mut().and_then(|all| all.iter_mut().find(|e| e["type"] == "m.room.name"));
        let name = name.expect("a name");
        match damage {
            "signature" => {
                name["signatures"] = json!({ peer.name().as_str(): { "ed25519:policy_server": "AAAA" } });
            }
            "content" => name["content"]["name"] = json!("forged"),
            _ => {}
        }
        let knocker = server.user(&format!("knocker{number}"));
        peer.let_knock(&room, knocker.id());
        peer.answer_json("send_knock", 200, json!({ "knock_room_state": shown }));
        assert_eq!(knock(&knocker, room.id.as_str(), &peer).0, 200);
        let sync = knocker.wait_for_room("knock", room.id.as_str());
        let state = sync["knock_state"]["events"].as_array().expect("a list").clone();
        let names: Vec<_> =
            state.iter().filter(|e| e["type"] == "m.room.name").map(|e| &e["content"]).collect();
        let expected = match damage {
            "signature" => vec![],
            "content" => vec![json!({})],
            _ => vec![json!({ "name": "fake" })],
        };
        assert_eq!(names, expected.iter().collect::<Vec<_>>(), "{damage}: {sync}");
        let invitee = server.user(&format!("invitee{number}"));
        let event = room.membership(&peer, &room.creator, invitee.id(), "invite");
        let mut body = room.invite_body(&event);
        body["invite_room_state"] = shown;
        let (status, answer) = peer.put_event(server.name(), "v2/invite", &room.id, &event, &body);
        assert_eq!(status, if damage == "signature" { 400 } else { 200 }, "{damage}: {answer}");
        if damage != "signature" {
            let sync = invitee.wait_for_room("invite", room.id.as_str()).to_string();
            assert!(!sync.contains("forged"), "{sync}");
        }
    }
}

#[test]
fn a_join_that_lands_after_the_user_has_left_is_left_again() {
    let (server, bob, peer, room) = stage("public");
    peer.let_in(&room, bob.id());
    peer.answer_json("send_join", 504, json!({ "errcode": "M_UNKNOWN", "error": "a proxy lost patience" }));
    assert!(join(&bob, room.id.as_str(), None).0 >= 500);
    let no = json!({ "errcode": "M_FORBIDDEN", "error": "not in the room" });
    peer.answer_json("make_leave", 403, no);
    bob.leave(room.id.as_str());
    peer.wait_for("make_leave");
    // Now the join is in the room after all.
    peer.let_leave(&room, bob.id());
    wait_until("the room is told of the leave", || {
        server.advance(Duration::from_secs(10));
        !peer.asked("send_leave").is_empty()
    });
}

/// The create event is shown although its server is gone, since the room id is its hash.
#[test]
fn what_servers_that_are_gone_made_of_a_room_is_left_out_and_keeps_no_invite_and_no_knock_away() {
    let server = TestServer::start();
    for (number, damage) in ["none", "silent", "unsigned", "create"].into_iter().enumerate() {
        let (peer, gone, gate) = (Peer::start(), Peer::start(), Gate::default());
        gone.hide_keys(true);
        if damage == "silent" {
            gone.answer_behind(&gate, "/key/v2/server", 404, json!({}));
        }
        // The maker of the room and of its name is gone; who invites is not.
        let mut room = FakeRoom::new(&gone, "12", "knock");
        let inviter = peer.user("inviter");
        room.add(&peer, "m.room.member", inviter.as_str(), &inviter, json!({ "membership": "join" }));
        room.add(&peer, "m.room.topic", "", &inviter, json!({ "topic": "still here" }));
        let mut shown = room.shown();
        let topic = room.state[&("m.room.topic".to_owned(), String::new())].to_object();
        let all = shown.as_array_mut().expect("a list");
        all.push(Value::Object(topic));
        for event in all.iter_mut() {
            match (damage, event["type"].as_str()) {
                ("unsigned", Some("m.room.topic")) => event["signatures"] = json!({}),
                // Then it is that of another room.
                ("create", Some("m.room.create")) => event["content"]["org.example.forged"] = json!(true),
                _ => {}
            }
        }
        let invitee = server.user(&format!("invitee{number}"));
        let event = room.membership(&peer, &inviter, invitee.id(), "invite");
        let mut body = room.invite_body(&event);
        body["invite_room_state"] = shown.clone();
        let (status, answer) = peer.put_event(server.name(), "v2/invite", &room.id, &event, &body);
        gate.open();
        if matches!(damage, "unsigned" | "create") {
            assert_eq!((status, &answer["errcode"]), (400, &json!("M_INVALID_PARAM")), "{damage}: {answer}");
            continue;
        }
        assert_eq!(status, 200, "{answer}");
        let types = |events: &Value| -> Vec<String> {
            let kept = events.as_array().expect("a list").iter().filter(|e| e["type"] != "m.room.member");
            kept.map(|e| e["type"].as_str().expect("a type").to_owned()).collect()
        };
        let sync = invitee.wait_for_room("invite", room.id.as_str());
        assert_eq!(types(&sync["invite_state"]["events"]), ["m.room.create", "m.room.topic"], "{sync}");
        let knocker = server.user(&format!("the-knocker{number}"));
        peer.let_knock(&room, knocker.id());
        peer.answer_json("send_knock", 200, json!({ "knock_room_state": shown }));
        assert_eq!(knock(&knocker, room.id.as_str(), &peer).0, 200);
        let sync = knocker.wait_for_room("knock", room.id.as_str());
        assert_eq!(types(&sync["knock_state"]["events"]), ["m.room.create", "m.room.topic"], "{sync}");
    }
}
