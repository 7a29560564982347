//! Sliding sync over a real socket: which rooms a client is told of, and what of each. The numbers are those of the
//! rules
//! at the head of `src/service/sync/sliding/mod.rs`.
//!
//! - `connections`: tokens, waits and bounds of a connection.
//! - `lists`: which rooms a list shows, and in what order.
//! - `rooms`: what is told of a room that the user is in.
//! - `not_joined`: invites, knocks, and rooms that end for a user.
//! - `extensions`: what is told beside rooms; `accepted`: the dialect that was accepted.

mod accepted;
mod connections;
mod extensions;
mod lists;
mod not_joined;
mod rooms;

use std::time::{Duration, Instant};

use crate::common::client::{SLIDING, V3, one_list, room_path, slide, sliding_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// What no request may take that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_secs(10);

fn room_ids(answer: &Value) -> Vec<&str> {
    answer["rooms"].as_object().expect("rooms").keys().map(String::as_str).collect()
}

fn events<'a>(room: &'a Value, section: &str) -> Vec<&'a Value> {
    room[section].as_array().into_iter().flatten().collect()
}

fn bodies(room: &Value) -> Vec<&str> {
    events(room, "timeline").iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

/// Type and state key of the state events.
fn tuples(room: &Value) -> Vec<(String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().expect("text").to_owned();
    let mut tuples: Vec<_> =
        events(room, "required_state").iter().map(|e| (text(e, "type"), text(e, "state_key"))).collect();
    tuples.sort();
    tuples
}

fn members(room: &Value) -> Vec<String> {
    tuples(room).into_iter().filter(|(t, _)| t == "m.room.member").map(|(_, user)| user).collect()
}

fn with_pos(user: &TestUser, pos: &str, body: &Value) -> (u16, Value) {
    user.request("POST", &format!("{SLIDING}?pos={}", segment(pos)), Some(body.clone()))
}
