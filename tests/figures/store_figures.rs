//! Figures of the write path and of large rooms, printed and never asserted. Not run by default:
//! `cargo test --release --test figures store_figures -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "figures are there to be read")]

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::process::cpu_ms;
use doorstep::Homeserver;
use doorstep::clock::Clock;
use doorstep::config::{Config, Data};
use doorstep::internals::CreateRoom;
use doorstep::internals::Draft;
use doorstep::internals::ImportedRoom;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::{EventId, RoomId, ServerName, UserId, VerifiedPdu, room_version};
use doorstep::testing::temporary_folder;
use serde_json::{Map, Value, json};

fn open(durable: bool) -> (Arc<Homeserver>, std::path::PathBuf) {
    let folder = temporary_folder("figures");
    let mut config = Config::for_name(ServerName::parse("here.example").expect("a name"));
    config.data = Data::Folder(folder.clone());
    config.durable = durable;
    (Homeserver::open(config, Clock::new()).expect("it opens"), folder)
}

fn alice() -> UserId {
    UserId::parse("@alice:here.example").expect("a user id")
}

fn room(hs: &Homeserver) -> RoomId {
    let version = room_version::default_version();
    let wishes: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).expect("wishes");
    let events = wishes.plan(&alice(), &Map::new(), version, None).expect("a plan");
    hs.rooms().create_room_with(version, &alice(), &events, |_, _| Ok(())).expect("a room")
}

fn object(value: Value) -> Map<String, Value> {
    value.as_object().expect("an object").clone()
}

fn message(room: &RoomId, number: usize) -> Draft {
    Draft {
        room: room.clone(),
        sender: alice(),
        event_type: "m.room.message".into(),
        state_key: None,
        content: object(
            json!({ "msgtype": "m.text", "body": format!("a message of ordinary length, number {number}") }),
        ),
        redacts: None,
        origin_server_ts: None,
    }
}

#[test]
#[ignore = "prints figures"]
fn events_a_second() {
    for durable in [true, false] {
        let (hs, folder) = open(durable);
        for (callers, rooms) in [(1, 1), (8, 1), (8, 8), (32, 1)] {
            let rooms: Vec<RoomId> = (0..rooms).map(|_| room(&hs)).collect();
            let each = if durable { 200 } else { 4000 } / callers.min(8);
            let (started, cpu) = (Instant::now(), cpu_ms());
            std::thread::scope(|scope| {
                for caller in 0..callers {
                    let (hs, room) = (&hs, &rooms[caller % rooms.len()]);
                    scope.spawn(move || {
                        (0..each).for_each(|n| drop(hs.events().send(message(room, n)).expect("sent")))
                    });
                }
            });
            let rate = (callers * each) as f64 / started.elapsed().as_secs_f64();
            let cpu = (cpu_ms() - cpu) * 1000.0 / (callers * each) as f64;
            println!(
                "durable={durable} callers={callers} rooms={}: {rate:.0} events/s, {cpu:.0} us of CPU each",
                rooms.len()
            );
        }
        let (bytes, events) =
            hs.store.read(|db| Ok((db.file_bytes()?, db.snapshot_position()?))).expect("it reads");
        println!("durable={durable}: {} bytes an event on disk", bytes / events.max(1));
        drop(hs);
        let started = Instant::now();
        let mut config = Config::for_name(ServerName::parse("here.example").expect("a name"));
        config.data = Data::Folder(folder.clone());
        let again = Homeserver::open(config, Clock::new()).expect("it opens");
        println!("durable={durable}: opened again in {:?}", started.elapsed());
        drop(again);
        let _ = std::fs::remove_dir_all(folder);
    }
}

/// A room elsewhere with many members.
struct Large {
    key: SigningKey,
    server: ServerName,
    room: RoomId,
    state: Vec<VerifiedPdu>,
    last: EventId,
    depth: i64,
}

impl Large {
    fn new(members: usize) -> Large {
        let (key, server) =
            (SigningKey::generate([9; 32], "l"), ServerName::parse("there.example").expect("a name"));
        let owner = "@owner:there.example";
        let create = object(json!({
            "type": "m.room.create", "state_key": "", "sender": owner, "content": { "room_version": "12" },
            "prev_events": [], "auth_events": [], "depth": 1, "origin_server_ts": 1,
        }));
        let create = sign(&create, &key);
        let mut large = Large {
            key,
            server,
            room: create.room_id().clone(),
            last: create.event_id().clone(),
            state: vec![create],
            depth: 1,
        };
        large.add("m.room.member", owner, owner, json!({ "membership": "join" }), &[]);
        large.add("m.room.power_levels", "", owner, json!({}), &[1]);
        large.add("m.room.join_rules", "", owner, json!({ "join_rule": "public" }), &[1, 2]);
        for number in 0..members {
            let user = format!("@user{number}:server{}.example", number % 500);
            large.add(
                "m.room.member",
                &user,
                &user,
                json!({ "membership": "join", "displayname": "Somebody" }),
                &[2, 3],
            );
        }
        large
    }

    fn add(&mut self, kind: &str, state_key: &str, sender: &str, content: Value, auth: &[usize]) {
        let event = self.event(kind, state_key, sender, content, auth, &self.last.clone());
        self.last = event.event_id().clone();
        self.state.push(event);
    }

    fn event(
        &mut self,
        kind: &str,
        key: &str,
        sender: &str,
        content: Value,
        auth: &[usize],
        prev: &EventId,
    ) -> VerifiedPdu {
        self.depth += 1;
        let auth: Vec<&EventId> = auth.iter().map(|i| self.state[*i].event_id()).collect();
        let event = object(json!({
            "type": kind, "state_key": key, "sender": sender, "room_id": self.room, "content": content,
            "prev_events": [prev], "auth_events": auth, "depth": self.depth, "origin_server_ts": self.depth,
        }));
        sign(&event, &self.key)
    }
}

/// Signed in the name of the sender's server, whichever it is.
fn sign(event: &Map<String, Value>, key: &SigningKey) -> VerifiedPdu {
    let sender = event["sender"].as_str().and_then(|sender| UserId::parse(sender).ok()).expect("a sender");
    VerifiedPdu::seal(event, &sender.server(), key, room_version::default_version()).expect("an event")
}

#[test]
#[ignore = "prints figures"]
fn a_room_of_fifty_thousand() {
    let mut large = Large::new(50_000);
    let (hs, folder) = open(false);
    let join = large.event(
        "m.room.member",
        alice().as_str(),
        alice().as_str(),
        json!({ "membership": "join" }),
        &[2, 3],
        &large.last.clone(),
    );
    let adopted = ImportedRoom {
        version: room_version::default_version(),
        room_id: large.room.clone(),
        auth_chain: Vec::new(),
        state: large.state.clone(),
        join: join.clone(),
    };
    let timed = |what: &str, f: &mut dyn FnMut()| {
        let (started, cpu) = (Instant::now(), cpu_ms());
        f();
        let took: Duration = started.elapsed();
        println!("{what}: {took:?}, {:.0} ms of CPU", cpu_ms() - cpu);
    };
    let mut adopted = Some(adopted);
    timed("adopted", &mut || {
        hs.membership().import_room(adopted.take().expect("once"), |_| Ok(())).map(drop).expect("adopted")
    });
    let bytes = || hs.store.read(|db| db.file_bytes()).expect("it reads");
    println!("{} MB on disk", bytes() / 1_000_000);
    timed("100 messages of ours", &mut || {
        (0..100).for_each(|n| drop(hs.events().send(message(&large.room, n)).expect("sent")));
    });
    timed("members", &mut || {
        let members = hs.store.read(|db| db.members(db.known_room(&large.room)?.key, None)).expect("members");
        assert_eq!(members.len(), 50_002);
    });
    timed("current state with its events", &mut || {
        let state = hs.store.read(|db| db.current_state(db.known_room(&large.room)?.key)).expect("state");
        assert_eq!(state.len(), 50_005);
    });
    timed("state and auth chain for a join", &mut || {
        let room = hs.store.read(|db| db.known_room(&large.room)).expect("the room");
        assert_eq!(hs.events().state_for_join(&room, &join, false).expect("state").state.len(), 50_004);
    });
    let before = bytes();
    timed("1000 joins in a line", &mut || {
        for number in 0..1000 {
            let user = format!("@new{number}:there.example");
            let head = hs
                .store
                .read(|db| Ok(db.forward_extremities(db.known_room(&large.room)?.key)?[0].event_id.clone()));
            let head = head.expect("a head");
            let join =
                large.event("m.room.member", &user, &user, json!({ "membership": "join" }), &[2, 3], &head);
            hs.events().receive_pdu(&large.server.clone(), join).expect("received");
        }
    });
    println!("{} bytes a state event", (bytes() - before) / 1000);
    let head = hs
        .store
        .read(|db| Ok(db.forward_extremities(db.known_room(&large.room)?.key)?[0].event_id.clone()))
        .expect("a head");
    let fork = |large: &mut Large, user: &str| {
        large.event("m.room.member", user, user, json!({ "membership": "join" }), &[2, 3], &head)
    };
    let (left, right) = (fork(&mut large, "@left:there.example"), fork(&mut large, "@right:there.example"));
    timed("one side of a fork", &mut || {
        hs.events().receive_pdu(&large.server.clone(), left.clone()).expect("received")
    });
    timed("the other side: states resolved", &mut || {
        hs.events().receive_pdu(&large.server.clone(), right.clone()).expect("received");
    });
    timed("a message that merges them", &mut || {
        drop(hs.events().send(message(&large.room, 0)).expect("sent"))
    });
    drop(hs);
    let _ = std::fs::remove_dir_all(folder);
}
