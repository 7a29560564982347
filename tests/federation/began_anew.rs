//! Servers that lost all that they had and begin anew, with a key of the same id.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::room_path;
use crate::common::peer::{FakeRoom, Peer};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::room_version::room_version;
use serde_json::json;

/// Longer than a server is left alone after it has said its keys.
const A_WHILE: Duration = Duration::from_secs(6 * 60);

#[test]
fn a_server_that_begins_anew_is_heard_at_once_and_what_it_said_before_stays_good() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let mut room = FakeRoom::joined_by(&peer, "11", &alice);
    let before = room.say(&peer, "before");
    peer.begin_anew();
    server.advance(A_WHILE);
    let after = room.say(&peer, "after");
    peer.serve_events(&[before, after.clone()], 10);
    let (status, answer) = peer.send_transaction(server.name(), "t1", &[&after]);
    assert_eq!((status, &answer["pdus"][after.event_id().as_str()]), (200, &json!({})), "{answer}");
    assert_eq!(alice.next_message(room.id.as_str()), "before");
    assert_eq!(alice.next_message(room.id.as_str()), "after");
}

#[test]
fn who_joins_a_room_finds_those_in_it_whose_server_began_anew() {
    let (server, host, other) = (TestServer::start(), Peer::start(), Peer::start());
    let alice = server.user("alice");
    let (status, _) = other.ask(server.name(), "GET", "/_matrix/federation/v1/publicRooms", None);
    assert_eq!(status, 200, "its first key is known");
    other.begin_anew();
    server.advance(A_WHILE);
    let (mut room, carol) = (FakeRoom::new(&host, "11", "public"), other.user("carol"));
    room.add(&other, "m.room.member", carol.as_str(), &carol, json!({ "membership": "join" }));
    host.let_in(&room, alice.id());
    alice.join_via(room.id.as_str(), &[host.name().as_str()]);
    let members = alice.get(&room_path(room.id.as_str(), "joined_members"));
    assert!(members["joined"][carol.as_str()].is_object(), "{members}");
}

#[test]
fn an_invite_reaches_who_began_anew() {
    let (server, peer) = (TestServer::start(), Arc::new(Peer::start()));
    let alice = server.user("alice");
    let (status, _) = peer.ask(server.name(), "GET", "/_matrix/federation/v1/publicRooms", None);
    assert_eq!(status, 200, "its first key is known");
    peer.begin_anew();
    server.advance(A_WHILE);
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    let carol = peer.user("carol");
    peer.take_transactions();
    let signer = Arc::downgrade(&peer);
    peer.answer("/invite/", move |asked| {
        let rules =
            room_version(asked.body["room_version"].as_str().expect("a version")).expect("a known one");
        let signer = signer.upgrade().expect("it runs");
        Reply::json(&json!({ "event": signer.countersign(&asked.body["event"], rules) }))
    });
    alice.post(&room_path(&room, "invite"), json!({ "user_id": carol }));
    let member = alice.get(&room_path(&room, &format!("state/m.room.member/{carol}")));
    assert_eq!(member["membership"], "invite");
}
