//! What clients may not send, by whichever door they try: at once, as state, later, or with a new room.

use std::time::Duration;

use crate::common::client::{V3, room_path};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const DELAYED: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";

fn put(user: &TestUser, path: &str, content: &Value) -> (u16, String) {
    let (status, answer) = user.request("PUT", path, Some(content.clone()));
    (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
}

fn create(user: &TestUser, body: Value) -> (u16, String) {
    let (status, answer) = user.request("POST", &format!("{V3}/createRoom"), Some(body));
    (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
}

fn says(status: u16, errcode: &str) -> (u16, String) {
    (status, errcode.to_owned())
}

fn later(path: &str) -> String {
    format!("{path}?org.matrix.msc4140.delay=1000")
}

/// Lets everything come due that is to be sent later.
fn let_come_due(server: &TestServer, user: &TestUser) {
    server.advance(Duration::from_secs(2));
    wait_until("nothing is to be sent any more", || user.get(DELAYED)["scheduled"] == json!([]));
}

fn content(user: &TestUser, room: &str, event: &str) -> Value {
    user.get(&room_path(room, &format!("event/{}", segment(event))))["content"].clone()
}

#[test]
fn a_redaction_is_asked_for_its_right_by_whichever_door_it_comes() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for version in ["1", "10", "11", "12"] {
        let room = alice.create_room_with(json!({
            "preset": "public_chat", "room_version": version,
            "power_level_content_override": { "events": { "m.room.redaction": 0 } },
        }));
        bob.join(&room);
        let of_alice = alice.send(&room, "from alice");
        let state = |key: &str| room_path(&room, &format!("state/m.room.redaction/{}", segment(key)));
        let doors = [room_path(&room, "send/m.room.redaction/t1"), state(""), state(bob.id())];
        for door in &doors {
            let what = format!("version {version}, {door}");
            let redacts = |event: &str| json!({ "redacts": event });
            assert_eq!(put(&bob, door, &redacts(&of_alice)), says(403, "M_FORBIDDEN"), "{what}");
            assert_eq!(put(&bob, door, &redacts("$none")), says(404, "M_NOT_FOUND"), "{what}");
            assert_eq!(put(&bob, door, &json!({})), says(400, "M_MISSING_PARAM"), "{what}");
            assert_eq!(put(&bob, &later(door), &json!({})), says(400, "M_MISSING_PARAM"), "{what}");
            assert_eq!(put(&bob, &later(door), &redacts(&of_alice)), says(200, ""), "{what}");
        }
        let_come_due(&server, &bob);
        assert_eq!(content(&bob, &room, &of_alice)["body"], "from alice", "version {version}");
        assert_eq!(bob.state(&room, "m.room.redaction", ""), None);
        // Who may, may by each of them; and other servers take it for what it is.
        for (door, who) in [(state(""), &alice), (state(bob.id()), &bob)] {
            for door in [door.clone(), later(&door)] {
                let of_bob = bob.send(&room, "from bob");
                assert_eq!(put(who, &door, &json!({ "redacts": of_bob })), says(200, ""), "{door}");
                let_come_due(&server, who);
                assert_eq!(content(&alice, &room, &of_bob), json!({}), "version {version}, {door}");
            }
        }
    }
}

#[test]
fn a_new_rooms_state_is_none_that_could_not_be_sent_into_it() {
    let server = TestServer::start();
    let (alice, mallory) = (server.user("alice"), server.user("mallory"));
    let name = |localpart: &str| format!("#{localpart}:{}", server.name());
    let with = |event_type: &str, content: Value| {
        json!({ "preset": "public_chat", "visibility": "public", "room_alias_name": "own",
        "initial_state": [{ "type": event_type, "content": content }] })
    };
    let room = alice.create_room_with(json!({ "room_alias_name": "team" }));
    let redacted = alice.send(&room, "a message");
    let shows = |content: Value| create(&mallory, with("m.room.canonical_alias", content));
    for alias in [name("team"), name("nobodys"), "#team:elsewhere.example".to_owned()] {
        assert_eq!(shows(json!({ "alias": alias })), says(400, "M_BAD_ALIAS"), "{alias}");
        let beside = json!({ "alias": name("own"), "alt_aliases": [alias] });
        assert_eq!(shows(beside), says(400, "M_BAD_ALIAS"), "{alias}");
    }
    assert_eq!(shows(json!({ "alias": "team" })), says(400, "M_INVALID_PARAM"));
    assert_eq!(shows(json!({ "alt_aliases": name("own") })), says(400, "M_INVALID_PARAM"));
    let redaction = create(&mallory, with("m.room.redaction", json!({ "redacts": redacted })));
    assert_eq!(redaction, says(400, "M_INVALID_ROOM_STATE"));
    assert_eq!(mallory.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([]));
    // The alias that it is made with leads to it.
    assert_eq!(shows(json!({ "alias": name("own"), "alt_aliases": [name("own")] })), says(200, ""));
    assert_eq!(alice.get(&format!("{V3}/publicRooms"))["chunk"][0]["canonical_alias"], name("own"));
}

#[test]
fn what_is_refused_at_once_is_refused_when_it_is_to_be_sent_later() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (room, other) = (alice.create_room(), alice.create_room_with(json!({ "room_alias_name": "other" })));
    let state = |kind: &str| room_path(&room, &format!("state/{kind}/"));
    let tombstone = json!({ "body": "x", "replacement_room": room });
    let shut_out = json!({ "allow": ["elsewhere.example"] });
    let not_one = room_path(&room, &format!("state/m.room.member/{}", segment(alice.id())));
    for (path, content, said) in [
        (room_path(&room, "send/m.room.tombstone/t"), tombstone.clone(), says(400, "M_INVALID_PARAM")),
        (state("m.room.tombstone"), tombstone, says(400, "M_INVALID_PARAM")),
        (state("m.room.server_acl"), shut_out, says(400, "M_BAD_JSON")),
        (state("m.room.canonical_alias"), json!({ "alias": 7 }), says(400, "M_INVALID_PARAM")),
        (not_one, json!({ "membership": "guest" }), says(400, "M_BAD_JSON")),
    ] {
        for path in [path.clone(), later(&path)] {
            assert_eq!(put(&alice, &path, &content), said, "{path}");
        }
    }
    // Where an alias leads is asked at once, and again when it is to be shown.
    let alias = |localpart: &str| json!({ "alias": format!("#{localpart}:{}", server.name()) });
    let shown = state("m.room.canonical_alias");
    for path in [shown.clone(), later(&shown)] {
        assert_eq!(put(&alice, &path, &alias("other")), says(400, "M_BAD_ALIAS"), "{path}");
    }
    let own = format!("{V3}/directory/room/{}", segment(&format!("#own:{}", server.name())));
    alice.put(&own, json!({ "room_id": room }));
    assert_eq!(put(&alice, &later(&shown), &alias("own")), says(200, ""));
    assert_eq!(alice.request("DELETE", &own, None).0, 200);
    let_come_due(&server, &alice);
    assert_eq!(alice.state(&room, "m.room.canonical_alias", ""), None);
    assert!(alice.state(&other, "m.room.canonical_alias", "").is_some());
}

#[test]
fn a_second_reaction_of_the_same_kind_is_refused_as_state_too() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let message = alice.send(&room, "a message");
    let like = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": message, "key": "+1" } });
    let state = |key: &str| room_path(&room, &format!("state/m.reaction/{key}"));
    assert_eq!(put(&alice, &state("first"), &like), says(200, ""));
    assert_eq!(put(&alice, &state("first"), &like), says(200, ""), "nothing would change");
    assert_eq!(put(&alice, &state("second"), &like), says(400, "M_DUPLICATE_ANNOTATION"));
    assert_eq!(
        put(&alice, &room_path(&room, "send/m.reaction/t"), &like),
        says(400, "M_DUPLICATE_ANNOTATION")
    );
}
