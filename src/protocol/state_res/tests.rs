//! Hostile graphs: what only a lying server makes.

use std::collections::{HashMap, HashSet};

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
        self.add_by(CREATOR, name, (event_type, state_key), content, auth)
    }

    fn add_by(
        &mut self,
        sender: &str,
        name: &str,
        (event_type, state_key): (&str, &str),
        content: Value,
        auth: &[&str],
    ) -> EventId {
        let id = |name: &str| format!("${name}:one.example");
        let auth: Vec<Value> = auth.iter().map(|name| json!([id(name), { "sha256": "x" }])).collect();
        let object = json!({
            "event_id": id(name), "room_id": "!room:one.example", "type": event_type, "sender": sender,
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

/// All that some events rest on, themselves included.
fn chain<'e>(room: &'e Room, of: impl Iterator<Item = &'e EventId>) -> HashSet<&'e EventId> {
    let (mut found, mut todo) = (HashSet::new(), of.collect::<Vec<_>>());
    while let Some(id) = todo.pop() {
        if found.insert(id) {
            todo.extend(room.0[id].auth_events());
        }
    }
    found
}

#[test]
fn the_shortcuts_of_the_graph_find_what_the_definitions_say() {
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let mut decided_by_agreed_state = 0;
    for _ in 0..300 {
        let mut room = Room::new();
        let names: Vec<String> = (0..40).map(|n| format!("e{n}")).collect();
        for n in 0..names.len() {
            let kind = ["m.room.member", "m.room.power_levels", "m.room.topic", "x", "y"][random(5)];
            // Now and then an event cites a later one, so that there are circles.
            let limit = if random(20) == 0 { names.len() } else { n };
            let auth: Vec<&str> =
                (0..random(4)).filter(|_| limit > 0).map(|_| names[random(limit)].as_str()).collect();
            room.add(&names[n], kind, &random(6).to_string(), json!({}), &auth);
        }
        let rest: Vec<usize> = (0..12).map(|_| random(names.len())).collect();
        let sets: Vec<StateMap> = (0..2 + random(3))
            .map(|_| {
                let mut chosen: Vec<&str> = rest.iter().map(|&n| names[n].as_str()).collect();
                chosen.extend((0..random(4)).map(|_| names[random(names.len())].as_str()));
                room.state(&chosen)
            })
            .collect();

        let chains: Vec<_> = sets.iter().map(|set| chain(&room, set.values())).collect();
        let in_all = |id: &EventId| chains.iter().all(|chain| chain.contains(id));
        let difference: HashSet<&EventId> =
            chains.iter().flatten().copied().filter(|id| !in_all(id)).collect();
        let is_conflicted =
            |(key, id): &(&StateTuple, &EventId)| sets.iter().any(|s| s.get(*key) != Some(*id));
        let conflicted: HashSet<&EventId> =
            sets.iter().flatten().filter(is_conflicted).map(|(_, id)| id).collect();
        let subgraph: HashSet<&EventId> = chain(&room, conflicted.iter().copied())
            .into_iter()
            .filter(|id| chain(&room, std::iter::once(*id)).iter().any(|id| conflicted.contains(*id)))
            .collect();

        let refs: Vec<&StateMap> = sets.iter().collect();
        let fetch = |id: &EventId| room.0.get(id).cloned();
        let mut resolution = Resolution::new(version(), &refs, None, &fetch, &|_| false, false);
        let full: HashSet<EventId> = resolution
            .full_conflicted_set()
            .into_iter()
            .map(|node| resolution.graph.id(node).clone())
            .collect();
        let expected: HashSet<EventId> = conflicted.union(&difference).map(|&id| id.clone()).collect();
        assert_eq!(full, expected);

        let nodes: Vec<Node> = conflicted.iter().map(|id| resolution.graph.node(id)).collect();
        let found = resolution.graph.conflicted_subgraph(&nodes);
        let found: HashSet<&EventId> = found.into_iter().map(|node| resolution.graph.id(node)).collect();
        // Within a circle a walk cannot see what leads where; only room version 12 asks, whose ids are hashes.
        if (0..names.len()).all(|n| !has_circle(&room, &names[n])) {
            assert_eq!(found, subgraph);
        }
        // The same from the differences alone.
        let mut beneath = sets[0].clone();
        beneath.retain(|key, id| sets.iter().all(|set| set.get(key) == Some(&*id)));
        let differing = |set: &StateMap| {
            set.iter()
                .filter(|(key, _)| !beneath.contains_key(*key))
                .map(|(k, v)| (k.clone(), v.clone()))
                .collect()
        };
        let parts: Vec<StateMap> = sets.iter().map(differing).collect();
        let rest = Unconflicted { get: &|key| beneath.get(key).cloned(), all: &|| beneath.clone() };
        let mut whole = resolve_differences(version(), &parts, rest, &fetch, &|_| false);
        whole.extend(beneath.clone());
        assert_eq!(whole, room.resolve(&sets));

        let agreed_chain = chain(&room, resolution.unconflicted.map.values());
        let near = chain(&room, conflicted.iter().copied());
        decided_by_agreed_state += usize::from(near.iter().any(|id| {
            agreed_chain.contains(*id)
                && !difference.contains(*id)
                && !resolution.unconflicted.map.values().any(|a| a == *id)
        }));
    }
    assert!(decided_by_agreed_state > 50, "the walk down from the agreed state is hardly tested");
}

fn has_circle(room: &Room, name: &str) -> bool {
    let start = &room.0[format!("${name}:one.example").as_str()];
    chain(room, start.auth_events().iter()).contains(start.event_id())
}

#[test]
fn newcomers_in_different_branches_come_in_as_whole_resolution_has_it() {
    let mut seed = 7_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let (mut short, mut refused) = (0, 0);
    for round in 0..2000 {
        let mut room = Room::new();
        let rules = |rule: &str| json!({ "join_rule": rule });
        room.add("p0", "m.room.power_levels", "", levels(50), &["create", "join"]);
        room.add("r0", "m.room.join_rules", "", rules("public"), &["create", "join", "p0"]);
        // Power levels that rest on a user who is a newcomer to some of the branches.
        room.add_by(
            "@u0:x",
            "old",
            ("m.room.member", "@u0:x"),
            json!({ "membership": "join" }),
            &["create", "p0", "r0"],
        );
        let resting: &[&str] =
            if random(6) == 0 { &["create", "join", "p0", "old"] } else { &["create", "join", "p0"] };
        room.add("p1", "m.room.power_levels", "", levels(60), resting);
        let rule = ["public", "invite"][usize::from(random(5) == 0)];
        room.add("r1", "m.room.join_rules", "", rules(rule), &["create", "join", "p1"]);
        let powers = ["p0", "p1"];
        let doors = ["r0", "r1"];
        let mut names = vec!["old".to_owned()];
        for n in 1..6 {
            let (name, user) = (format!("n{n}"), format!("@u{}:x", random(8)));
            let membership = ["join", "join", "join", "join", "leave", "knock"][random(6)];
            let power = powers[usize::from(random(8) != 0)];
            let door = doors[usize::from(random(8) != 0)];
            let mut auth = vec!["create", power, door];
            if random(12) == 0 {
                auth.push("old");
            }
            if random(15) == 0 {
                auth.remove(random(auth.len()));
            }
            room.add_by(&user, &name, ("m.room.member", &user), json!({ "membership": membership }), &auth);
            names.push(name);
        }
        let disputed = random(10) == 0;
        let sets: Vec<StateMap> = (0..2 + random(4))
            .map(|_| {
                let power = powers[usize::from(!disputed || random(2) == 0)];
                let mut chosen = vec!["create", "join", power, "r1"];
                chosen.extend((0..random(4)).map(|_| names[random(names.len())].as_str()));
                room.state(&chosen)
            })
            .collect();
        let refs: Vec<&StateMap> = sets.iter().collect();
        let fetch = |id: &EventId| room.0.get(id).cloned();
        let bad = format!("$n{}:one.example", random(12));
        let rejected = |id: &EventId| id.as_str() == bad;
        let resolution = || Resolution::new(version(), &refs, None, &fetch, &rejected, round % 2 == 0);
        let mut whole = resolution();
        whole.resolve_conflicts();
        let expected = whole.finish();
        let mut attempt = resolution();
        if !attempt.conflicts.is_empty() && attempt.fast_path().is_some() {
            short += 1;
            let keys: HashSet<&StateTuple> = sets.iter().flat_map(StateMap::keys).collect();
            refused += usize::from(keys.len() > expected.len());
        }
        assert_eq!(resolution().run(), expected, "round {round}");
    }
    assert!(short > 100 && refused > 10, "the shortcut is hardly tested: {short}, {refused}");
}
