//! A peer that lies, in every step of every handshake: nothing of it is signed, believed, shown or half written, and
//! our own client gets an answer that says what happened.
//!
//! - `templates`: templates that ask us to sign something else, and events that are handed in.
//! - `knocks`: knocks, and answers to them.
//! - `invites`: invites, theirs and ours.
//! - `joins`: joins, and leaves that meet them.
//! - `removals`: what others, in the room or not, end for our users.

mod invites;
mod joins;
mod knocks;
mod removals;
mod templates;

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
