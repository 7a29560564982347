//! `/sync` over a real socket: what a client is told, what it is not told twice, and how it waits.
//!
//! - `joined`: the rooms that a user is in: timelines, gaps, state.
//! - `applied`: what a client makes of state and timeline together.
//! - `not_joined`: invites, knocks, and rooms that end for a user.
//! - `filters`: what a client does not want, and whom a user ignores.
//! - `members`: members that are loaded lazily.
//! - `waiting`: how a sync waits, goes on from another, and begins anew.
//! - `elsewhere`: rooms and users of other servers.

mod applied;
mod elsewhere;
mod filters;
mod joined;
mod members;
mod not_joined;
mod waiting;

use std::time::{Duration, Instant};

use crate::common::client::{V3, filter, room_path, sync};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn next(answer: &Value) -> String {
    format!("since={}", answer["next_batch"].as_str().expect("next_batch"))
}

fn types(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    events.iter().map(|e| e["type"].as_str().expect("a type")).collect()
}

fn bodies(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    events.iter().filter_map(|e| e["content"]["body"].as_str()).collect()
}

fn members(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    let of = events.iter().filter(|e| e["type"] == "m.room.member");
    let mut members: Vec<_> = of.map(|e| e["state_key"].as_str().expect("a state key")).collect();
    members.sort_unstable();
    members
}

fn rooms(answer: &Value, section: &str) -> Vec<String> {
    answer["rooms"][section].as_object().map(|rooms| rooms.keys().cloned().collect()).unwrap_or_default()
}
