//! Hostile graphs: what only a lying server makes.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::protocol::room_version::room_version;

const CREATOR: &str = "@creator:one.example";

/// Events of room version 2, where events name themselves and so can cite each other in a circle.
struct Room(HashMap<EventId, Pdu>);

impl Room {
    fn add(
        &mut self,
        name: &str,
        event_type: &str,
        state_key: &str,
        content: Value,
        auth: &[&str],
    ) -> EventId {
        let id = |name: &str| format!("${name}:one.example");
        let auth: Vec<Value> = auth.iter().map(|name| json!([id(name), { "sha256": "x" }])).collect();
        let object = json!({
            "event_id": id(name), "room_id": "!room:one.example", "type": event_type, "sender": CREATOR,
            "state_key": state_key, "content": content, "depth": self.0.len(),
            "origin_server_ts": self.0.len(), "prev_events": [], "auth_events": auth, "hashes": {}, "signatures": {},
        });
        let Value::Object(object) = object else { unreachable!("it is one") };
        let event = Pdu::from_object(object, version()).expect("an event");
        let id = event.event_id().clone();
        self.0.insert(id.clone(), event);
        id
    }

    fn new() -> Self {
        let mut room = Self(HashMap::new());
        room.add("create", "m.room.create", "", json!({ "creator": CREATOR }), &[]);
        room.add("join", "m.room.member", CREATOR, json!({ "membership": "join" }), &["create"]);
        room
    }

    fn state(&self, names: &[&str]) -> StateMap {
        let event = |name: &&str| &self.0[format!("${name}:one.example").as_str()];
        names.iter().map(event).map(|e| (graph::state_key(e).expect("state"), e.event_id().clone())).collect()
    }

    fn resolve(&self, sets: &[StateMap]) -> StateMap {
        let resolved = resolve(version(), sets, &|id| self.0.get(id).cloned(), &|_| false);
        resolved.expect("a state")
    }
}

fn version() -> RoomVersion {
    room_version("2").expect("a room version")
}

fn levels(ban: i64) -> Value {
    json!({ "ban": ban, "users": { CREATOR: 100 } })
}

#[test]
fn power_levels_that_cite_each_other_in_a_circle_end_in_a_state() {
    let mut room = Room::new();
    room.add("p1", "m.room.power_levels", "", levels(1), &["create", "join", "p2"]);
    room.add("p2", "m.room.power_levels", "", levels(2), &["create", "join", "p3"]);
    room.add("p3", "m.room.power_levels", "", levels(3), &["create", "join", "p1"]);
    room.add("t1", "m.room.topic", "", json!({}), &["create", "join", "p1"]);
    room.add("t2", "m.room.topic", "", json!({}), &["create", "join", "p2"]);
    room.add("self", "m.room.name", "", json!({}), &["create", "join", "p1", "self"]);
    let a = room.state(&["create", "join", "p1", "t1", "self"]);
    let b = room.state(&["create", "join", "p2", "t2"]);
    let resolved = room.resolve(&[a.clone(), b.clone()]);
    assert_eq!(resolved, room.resolve(&[b, a]));
    assert_eq!(resolved.len(), 5, "every key has a value: {resolved:?}");
}

#[test]
fn a_very_long_chain_of_power_levels_needs_no_deep_stack() {
    let mut room = Room::new();
    let count = 10_000;
    room.add("p0", "m.room.power_levels", "", levels(0), &["create", "join"]);
    for n in 1..count {
        let before = format!("p{}", n - 1);
        room.add(&format!("p{n}"), "m.room.power_levels", "", levels(n % 100), &["create", "join", &before]);
    }
    let last = format!("p{}", count - 1);
    room.add("t1", "m.room.topic", "", json!({}), &["create", "join", "p0"]);
    room.add("t2", "m.room.topic", "", json!({}), &["create", "join", &last]);
    let a = room.state(&["create", "join", "p0", "t1"]);
    let b = room.state(&["create", "join", &last, "t2"]);
    // The stack of a test's thread has 2 MiB: recursion to this depth would not fit.
    let resolved = room.resolve(&[a, b.clone()]);
    assert_eq!(resolved, b);
}

#[test]
fn unknown_and_foreign_events_take_no_part() {
    let mut room = Room::new();
    room.add("p1", "m.room.power_levels", "", levels(1), &["create", "join"]);
    room.add("t1", "m.room.topic", "", json!({}), &["create", "join", "p1", "unknown"]);
    let a = room.state(&["create", "join", "p1", "t1"]);
    let mut b = room.state(&["create", "join", "p1"]);
    let topic = ("m.room.topic".into(), "".into());
    b.insert(topic, EventId::parse("$nobody-has-it:one.example").expect("an id"));
    assert_eq!(room.resolve(&[a.clone(), b]), a);

    let mut object = room.0["$t1:one.example"].to_object();
    object["room_id"] = "!other:one.example".into();
    object["event_id"] = "$foreign:one.example".into();
    object["origin_server_ts"] = 99.into();
    let foreign = Pdu::from_object(object, version()).expect("an event");
    let mut c = a.clone();
    c.insert(("m.room.topic".into(), "".into()), foreign.event_id().clone());
    room.0.insert(foreign.event_id().clone(), foreign);
    assert_eq!(room.resolve(&[a.clone(), c]), a);
}

#[test]
fn rejected_events_come_into_no_state() {
    let mut room = Room::new();
    room.add("p1", "m.room.power_levels", "", levels(1), &["create", "join"]);
    room.add("t1", "m.room.topic", "", json!({ "topic": "1" }), &["create", "join", "p1"]);
    let later = room.add("t2", "m.room.topic", "", json!({ "topic": "2" }), &["create", "join", "p1"]);
    let a = room.state(&["create", "join", "p1", "t1"]);
    let b = room.state(&["create", "join", "p1", "t2"]);
    let sets = [a.clone(), b.clone()];
    assert_eq!(room.resolve(&sets), b, "the later topic wins");
    let resolved = resolve(version(), &sets, &|id| room.0.get(id).cloned(), &|id| *id == later);
    assert_eq!(resolved.expect("a state"), a);
}

#[test]
fn one_state_or_none_is_nothing_to_resolve() {
    let room = Room::new();
    let a = room.state(&["create", "join"]);
    assert_eq!(room.resolve(&[]), StateMap::new());
    assert_eq!(room.resolve(&[a.clone(), a.clone(), a.clone()]), a);
    let version_1 = room_version("1").expect("a room version");
    assert_eq!(resolve(version_1, std::slice::from_ref(&a), &|_| None, &|_| false).expect("a state"), a);
}
