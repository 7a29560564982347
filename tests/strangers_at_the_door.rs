//! What strangers may do at the doors of our users and rooms: invite and knock, but not fill the house with it, nor keep
//! others out.

mod common;

use common::peer::{FakeRoom, Peer, now_ms};
use doorstep::TestServer;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::{RoomId, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// An invite to a room of the peer's of which nothing is known; what the server says of it.
fn invite(
    peer: &Peer,
    server: &TestServer,
    inviter: &UserId,
    to: (&str, &TestUser),
    shown: &Value,
) -> (u16, Value) {
    let version = room_version("11").expect("a known version");
    let room = RoomId::parse(&format!("!{}:{}", to.0, peer.name())).expect("a room id");
    let event = json!({
        "type": "m.room.member", "state_key": to.1.id(), "sender": inviter, "room_id": room,
        "content": { "membership": "invite" }, "origin_server_ts": now_ms(), "depth": 7,
        "prev_events": ["$before"], "auth_events": [],
    });
    let event = peer.sign(event.as_object().expect("an object").clone(), version);
    let body = json!({ "room_version": "11", "event": event.to_object(), "invite_room_state": shown });
    peer.put_event(server.name(), "v2/invite", &room, &event, &body)
}

fn stripped(event_type: &str, state_key: &str, content: Value) -> Value {
    json!({ "type": event_type, "state_key": state_key, "sender": "@a:b.example", "content": content })
}

/// Close to a megabyte of everything.
fn shown_at_length() -> Value {
    let mut shown = vec![
        stripped("m.room.topic", "", json!({ "topic": "x".repeat(60_000) })),
        stripped("m.room.name", "", json!({ "name": "At length" })),
        stripped("m.room.create", "", json!({ "type": "m.space" })),
    ];
    shown.extend(
        (0..14).map(|n| stripped("org.example.junk", &n.to_string(), json!({ "x": "x".repeat(60_000) }))),
    );
    Value::Array(shown)
}

fn is_limited((status, body): &(u16, Value)) -> bool {
    let limited = *status == 429;
    assert!(!limited || body["errcode"] == "M_LIMIT_EXCEEDED", "{body}");
    assert!(!limited || body["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{body}");
    limited
}

fn invites(sync: &Value) -> usize {
    sync["rooms"]["invite"].as_object().map_or(0, serde_json::Map::len)
}

#[test]
fn a_flood_of_invites_from_one_server_is_bounded_and_keeps_no_other_out() {
    let server = TestServer::start();
    let (bob, carol) = (server.user("bob"), server.user("carol"));
    let (evil, friend) = (Peer::start(), Peer::start());
    let shown = shown_at_length();
    let mut taken = 0;
    for n in 0..60 {
        let inviter = evil.user(&format!("spam{}", n / 2));
        let said = invite(&evil, &server, &inviter, (&format!("r{n}"), &bob), &shown);
        assert!(said.0 == 200 || is_limited(&said), "{said:?}");
        taken += usize::from(said.0 == 200);
    }
    assert!((20..50).contains(&taken), "{taken}");
    let honest = friend.user("honest");
    let said = invite(&friend, &server, &honest, ("party", &bob), &shown);
    assert_eq!(said.0, 200, "{said:?}");
    let said = invite(&evil, &server, &evil.user("spam0"), ("other", &carol), &shown);
    assert_eq!(said.0, 200, "another user has places of their own: {said:?}");

    let sync = bob.initial_sync();
    assert_eq!(invites(&sync), taken + 1);
    assert!(sync.to_string().len() < (taken + 1) * 4096, "what is not recommended, or too long, is not kept");
    let party = &sync["rooms"]["invite"][&format!("!party:{}", friend.name())]["invite_state"]["events"];
    let types: Vec<_> = party.as_array().expect("events").iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(types, ["m.room.create", "m.room.name", "m.room.member"]);
    assert_eq!(party[0]["content"]["type"], "m.space");
    let since = sync["next_batch"].as_str().expect("a token").to_owned();
    let later = bob.get(&format!("/_matrix/client/v3/sync?since={since}&timeout=0"));
    assert!(later.get("rooms").is_none(), "{later}");

    // A place is free again once the user has answered.
    let said = invite(&evil, &server, &evil.user("spam0"), ("again", &bob), &shown);
    assert!(is_limited(&said), "{said:?}");
    bob.leave(&format!("!r0:{}", evil.name()));
    bob.leave(&format!("!r1:{}", evil.name()));
    let said = invite(&evil, &server, &evil.user("spam0"), ("again", &bob), &shown);
    assert_eq!(said.0, 200, "{said:?}");
}

#[test]
fn one_inviter_takes_few_of_the_places_of_their_server() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let spammer = peer.user("spammer");
    let said =
        |n: usize, inviter: &UserId| invite(&peer, &server, inviter, (&format!("r{n}"), &bob), &json!([]));
    let taken = (0..15).filter(|n| said(*n, &spammer).0 == 200).count();
    assert_eq!(taken, 10);
    assert!(is_limited(&said(20, &spammer)));
    // One that was there before is renewed.
    assert_eq!(said(3, &spammer).0, 200);
    assert_eq!(said(21, &peer.user("neighbour")).0, 200);
}

#[test]
fn who_shares_a_room_with_the_user_may_invite_to_many_and_is_heard_in_a_flood() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let friend = Peer::start();
    let room = FakeRoom::joined_by(&friend, "11", &bob);
    let others: Vec<Peer> = (0..3).map(|_| Peer::start()).collect();
    for (n, peer) in others.iter().enumerate() {
        for m in 0..60 {
            let inviter = peer.user(&format!("u{m}"));
            let said = invite(peer, &server, &inviter, (&format!("r{n}x{m}"), &bob), &json!([]));
            assert!(said.0 == 200 || is_limited(&said), "{said:?}");
        }
    }
    let taken = (0..30)
        .filter(|n| invite(&friend, &server, &room.creator, (&format!("r{n}"), &bob), &json!([])).0 == 200)
        .count();
    assert_eq!(taken, 30);
}

#[test]
fn an_invite_that_the_invitees_server_has_no_place_for_says_so_to_our_user() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Peer::start();
    let room = alice.create_room();
    peer.answer_json(
        "/invite/",
        429,
        json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "no", "retry_after_ms": 7000 }),
    );
    let path = format!("/_matrix/client/v3/rooms/{}/invite", segment(&room));
    let said = alice.request("POST", &path, Some(json!({ "user_id": peer.user("bob") })));
    assert!(is_limited(&said), "{said:?}");
    assert_eq!(said.1["retry_after_ms"], 7000);
    assert_eq!(alice.membership_of(&room, peer.user("bob").as_str()), None);
}
