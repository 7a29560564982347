//! How long the pure parts take: figures to read, nothing is asserted about them. Run with
//! `cargo test --release --test figures protocol_speed -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "the figures are what this is run for")]

use std::collections::HashMap;
use std::time::Duration;

use doorstep::protocol::event_auth::{self, AuthChecker};
use doorstep::protocol::room_version::{RoomVersion, room_version};
use doorstep::protocol::signatures::sign::{self, KeyAt, SigningKey};
use doorstep::protocol::signatures::verify;
use doorstep::protocol::state_res::{self, StateMap};
use doorstep::protocol::unchecked_event::UncheckedEvent;
use doorstep::protocol::{EventId, Pdu, ServerName};
use serde_json::{Value, json};

const CREATOR: &str = "@creator:one.example";

/// A room in the making. Events are unsigned: signatures are not what is measured.
struct Room {
    version: RoomVersion,
    events: HashMap<EventId, Pdu>,
    room_id: Option<String>,
    clock: i64,
}

impl Room {
    fn new(version: &str, state: &mut StateMap) -> Self {
        let version = room_version(version).expect("a room version");
        let room_id = (!version.room_id_is_create_hash).then(|| "!room:one.example".to_owned());
        let mut room = Self { version, events: HashMap::new(), room_id, clock: 1_700_000_000_000 };
        let create = room.add(state, "m.room.create", CREATOR, "", json!({ "creator": CREATOR }));
        room.room_id = Some(create.room_id().to_string());
        room
    }

    fn add(
        &mut self,
        state: &mut StateMap,
        event_type: &str,
        sender: &str,
        state_key: &str,
        content: Value,
    ) -> Pdu {
        let types = event_auth::auth_types(
            event_type,
            sender,
            Some(state_key),
            content.as_object().expect("an object"),
            self.version,
        );
        let auth: Vec<&EventId> =
            types.iter().filter_map(|(t, k)| state.get(&(t.as_str().into(), k.as_str().into()))).collect();
        self.clock += 1;
        let mut object = json!({
            "type": event_type, "sender": sender, "state_key": state_key, "content": content, "depth": 1,
            "origin_server_ts": self.clock, "auth_events": auth, "prev_events": [],
            "hashes": { "sha256": "x" }, "signatures": {},
        });
        if let Some(room_id) = &self.room_id {
            object["room_id"] = room_id.as_str().into();
        }
        let Value::Object(object) = object else { unreachable!() };
        let event = Pdu::from_object(object, self.version).expect("an event");
        self.events.insert(event.event_id().clone(), event.clone());
        state.insert((event_type.into(), state_key.into()), event.event_id().clone());
        event
    }

    fn join(&mut self, state: &mut StateMap, user: &str) -> Pdu {
        self.add(state, "m.room.member", user, user, json!({ "membership": "join" }))
    }

    /// A public room with so many members, of whom so many have levels of their own.
    fn with_members(version: &str, members: usize, levels: usize) -> (Self, StateMap) {
        let mut state = StateMap::new();
        let mut room = Self::new(version, &mut state);
        room.join(&mut state, CREATOR);
        let mut users: serde_json::Map<String, Value> = (0..levels).map(|n| (user(n), 50.into())).collect();
        if !room.version.privileged_creators {
            users.insert(CREATOR.to_owned(), 100.into());
        }
        let content = json!({ "users": users, "events": { "m.room.topic": 0 } });
        room.add(&mut state, "m.room.power_levels", CREATOR, "", content);
        room.add(&mut state, "m.room.join_rules", CREATOR, "", json!({ "join_rule": "public" }));
        for n in 0..members {
            room.join(&mut state, &user(n));
        }
        (room, state)
    }

    fn lookup(&self, state: &StateMap, kind: &str, key: &str) -> Option<Pdu> {
        self.events.get(state.get(&(kind.into(), key.into()))?).cloned()
    }
}

fn user(n: usize) -> String {
    format!("@user{n}:server{}.example", n % 100)
}

/// Processor time of this thread, so that a busy machine does not spoil the figures.
fn cpu_time() -> Duration {
    let mut time = libc::timespec { tv_sec: 0, tv_nsec: 0 };
    // SAFETY: the pointer is to a value of the right type that outlives the call.
    let result = unsafe { libc::clock_gettime(libc::CLOCK_THREAD_CPUTIME_ID, &raw mut time) };
    assert_eq!(result, 0, "this system has no clock of threads");
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

fn per_round(what: &str, rounds: u32, mut f: impl FnMut()) {
    f();
    let start = cpu_time();
    for _ in 0..rounds {
        f();
    }
    println!("{what:<66} {:>12.2?}", (cpu_time() - start) / rounds);
}

#[test]
#[ignore = "prints figures"]
fn how_long_an_event_takes_to_judge() {
    for levels in [3, 1000] {
        let (mut room, mut state) = Room::with_members("11", 10, levels);
        let mut after = state.clone();
        let join = room.join(&mut after, "@new:two.example");
        let ban = room.add(&mut after, "m.room.member", CREATOR, &user(3), json!({ "membership": "ban" }));
        let topic = room.add(&mut state, "m.room.topic", &user(1), "", json!({ "topic": "x" }));
        for (name, event) in [("join", &join), ("ban", &ban), ("topic", &topic)] {
            let auth: Vec<Pdu> = event.auth_events().iter().map(|id| room.events[id].clone()).collect();
            let check = |judge: Option<&AuthChecker>| {
                let lookup = |kind: &str, key: &str| auth.iter().find(|e| e.is(kind, key)).cloned();
                match judge {
                    None => event_auth::check(event, room.version, &lookup),
                    Some(judge) => judge.check(event, &lookup),
                }
                .expect("allowed");
            };
            let what = |how: &str| format!("{name}, {levels} power levels, {how}");
            per_round(&what("auth event list"), 2000, || {
                event_auth::check_auth_events(event, &auth, &|_| false, room.version).expect("allowed");
            });
            per_round(&what("against a state"), 2000, || check(None));
            let judge = AuthChecker::new(room.version);
            per_round(&what("against a state, one of many"), 2000, || check(Some(&judge)));
        }
    }
}

#[test]
#[ignore = "prints figures"]
fn how_long_an_event_takes_to_check() {
    let (mut room, mut state) = Room::with_members("11", 10, 3);
    let join = room.join(&mut state, "@new:two.example");
    let (server, key) =
        (ServerName::parse("two.example").expect("a name"), SigningKey::generate([1; 32], "k"));
    let signed = sign::seal(&join.to_object(), &server, &key, room.version).expect("an event");
    let known = KeyAt::stated(key.verify_key(), i64::MAX);
    let keys = |_: &str, _: &str| Some(known);
    let what = |how: &str| format!("a join of {} bytes, {how}", signed.json().len());
    per_round(&what("looked at"), 20_000, || {
        UncheckedEvent::at(signed.json()).expect("an event");
    });
    per_round(&what("parsed"), 20_000, || {
        Pdu::parse(signed.json(), room.version).expect("an event");
    });
    per_round(&what("read from the database"), 20_000, || {
        Pdu::trusted(signed.event_id().clone(), signed.json().to_vec(), room.version).expect("an event");
    });
    per_round(&what("verified"), 5000, || drop(verify::verify_event(&signed, &keys).expect("signed")));
    per_round(&what("parsed, verified and hashed"), 5000, || {
        verify::check_received(signed.json(), room.version, &keys).expect("a good event");
    });
    per_round(&what("sealed"), 5000, || {
        sign::seal(&join.to_object(), &server, &key, room.version).expect("an event");
    });
}

#[test]
#[ignore = "prints figures"]
fn how_long_a_state_takes_to_resolve() {
    for version in ["11", "12"] {
        for members in [1_000, 20_000] {
            let (mut room, base) = Room::with_members(version, members, 20);
            let rounds = if members > 5000 { 3 } else { 50 };
            let what = |how: &str| format!("version {version}, {members} members, {how}");

            let (mut a, mut b) = (base.clone(), base.clone());
            room.add(&mut a, "m.room.topic", CREATOR, "", json!({ "topic": "a" }));
            room.add(&mut b, "m.room.topic", &user(1), "", json!({ "topic": "b" }));
            room.add(&mut a, "m.room.member", CREATOR, &user(2), json!({ "membership": "ban" }));
            room.add(&mut b, "m.room.name", &user(2), "", json!({ "name": "n" }));
            measure(&what("a few conflicts"), rounds, &room, &[a.clone(), b.clone()]);

            // A former membership that nothing in the common state may rest on, or may.
            let leave = json!({ "membership": "leave" });
            room.add(&mut a, "m.room.member", &user(7), &user(7), leave);
            room.join(&mut a, &user(7));
            measure(
                &what("a few conflicts and one former membership"),
                rounds,
                &room,
                &[a.clone(), b.clone()],
            );

            for n in 100..200 {
                let content = json!({ "membership": "join", "displayname": format!("{n}") });
                room.add(&mut a, "m.room.member", &user(n), &user(n), content);
            }
            measure(&what("100 changed memberships"), rounds, &room, &[a.clone(), b.clone()]);

            for n in 0..200 {
                let content = room.lookup(&a, "m.room.power_levels", "").expect("power levels").content();
                let mut content = Value::Object(content);
                content["users"][user(n)] = 10.into();
                room.add(&mut a, "m.room.power_levels", CREATOR, "", content);
            }
            measure(&what("and 200 changes of power levels"), rounds, &room, &[a.clone(), b.clone()]);

            let (mut a, mut b) = (base.clone(), base);
            for n in 0..members {
                let content = json!({ "membership": "join", "displayname": "a" });
                room.add(&mut a, "m.room.member", &user(n), &user(n), content);
                let content = json!({ "membership": "join", "displayname": "b" });
                room.add(&mut b, "m.room.member", &user(n), &user(n), content);
            }
            measure(&what("all memberships in conflict"), rounds, &room, &[a, b]);
        }
    }
}

fn measure(what: &str, rounds: u32, room: &Room, sets: &[StateMap]) {
    let fetch = |id: &EventId| room.events.get(id).cloned();
    per_round(what, rounds, || {
        state_res::resolve(room.version, sets, &fetch, &|_| false).expect("a state");
    });
}
