//! What becomes of an event that another server sends us: the checks on receipt of a PDU, what waits for what, and that
//! nothing that we answered for is lost, however fast it comes and whatever happens to us meanwhile.
//!
//! The numbers are the steps of the server-server API, "Checks performed on receipt of a PDU".
//!
//! - `pending`: what waits, for what, and for how long.
//! - `auth_chains`: auth events and states that have to be fetched.
//! - `given_states`: what one server says of the state before an event.
//! - `judged`: what is rejected, soft-failed, and judged again.
//! - `floods`: events by the thousand.
//! - `vouched`: what rests on servers that acted while we were away, and are gone.
//! - `altered`: events that a relay had altered, and their true copies.

mod altered;
mod auth_chains;
mod floods;
mod given_states;
mod judged;
mod pending;
mod vouched;

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::ProcessServer;
use crate::common::client::room_path;
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{Scene, bodies, heads, objects, read_back, stored};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::NewPendingEvent;
use doorstep::internals::Reply;
use doorstep::internals::Status;
use doorstep::protocol::signatures::sign::{KeyAt, SigningKey};
use doorstep::protocol::signatures::verify;
use doorstep::protocol::{EventId, Pdu, UserId, VerifiedPdu};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn accepted(scene: &Scene, pdu: &Pdu) -> bool {
    scene.status(pdu) == Some(Status::Accepted)
}

fn waiting(scene: &Scene) -> usize {
    let (hs, name) = (scene.server.homeserver(), scene.peer.name());
    let queue = hs.store.read(|db| db.pending_counts(db.known_room(&scene.room.id)?.key, name));
    queue.expect("the database reads").in_room
}

/// A peer that is in the room, to the knowledge of the server that is tested.
fn resident(scene: &mut Scene, localpart: &str) -> Peer {
    let peer = Peer::start();
    peer.take_transactions();
    let join = scene.join_of(&peer, localpart);
    assert_eq!(scene.send(&format!("join-{localpart}"), &[&join])[join.event_id().as_str()], json!({}));
    peer
}

/// Messages of the creator, each following the one before.
fn chain(peer: &Peer, room: &FakeRoom, after: &EventId, count: usize, name: &str) -> Vec<Pdu> {
    let auth = ["m.room.create", "m.room.power_levels", "m.room.member"].iter().filter_map(|kind| {
        let key = if *kind == "m.room.member" { room.creator.to_string() } else { String::new() };
        let hidden = *kind == "m.room.create" && room.version.room_id_is_create_hash;
        room.state.get(&((*kind).to_owned(), key)).filter(|_| !hidden).map(Pdu::event_id)
    });
    let auth: Vec<&EventId> = auth.collect();
    let mut last = after.clone();
    let message = |n: usize| {
        let event = json!({
            "type": "m.room.message", "sender": room.creator, "room_id": room.id, "auth_events": auth,
            "content": { "body": format!("{name} {n}") }, "prev_events": [last], "depth": 100 + n,
            "origin_server_ts": now_ms(),
        });
        let event = peer.sign(event.as_object().expect("an object").clone(), room.version);
        last = event.event_id().clone();
        event
    };
    (0..count).map(message).collect()
}
