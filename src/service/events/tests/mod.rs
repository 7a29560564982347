//! The room engine on a homeserver without listeners: rooms, forks, refusals, redactions, crashes.
//!
//! - `sent`: events that are made here: sent, refused, drafted for others.
//! - `forks`: rooms that fork, and are joined again; `newcomers`: those who come in at the same moment.
//! - `redactions`: redactions, and what they redact.
//! - `servers`: who comes and goes, and what their servers are owed and shown.
//! - `received`: events of others that are odd.

mod forks;
mod newcomers;
mod received;
mod redactions;
mod sent;
mod servers;

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::config::Config;
use crate::error::{ErrCode, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::room_version::{self, EventIdFormat};
use crate::protocol::signatures::hash;
use crate::protocol::signatures::sign::SigningKey;
use crate::protocol::{EventId, Pdu, RoomId, RoomVersion, ServerName, UserId, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::events::draft::Draft;
use crate::service::rooms::create::CreateRoom;
use crate::store::{EventKey, Status, StoredEvent};

pub(in crate::service) fn homeserver() -> Arc<Homeserver> {
    homeserver_named("here.example")
}

fn homeserver_named(name: &str) -> Arc<Homeserver> {
    let name = ServerName::parse(name).unwrap();
    Homeserver::open(Config::for_name(name), Clock::new()).unwrap()
}

fn user(id: &str) -> UserId {
    UserId::parse(id).unwrap()
}

pub(in crate::service) fn alice() -> UserId {
    user("@alice:here.example")
}

fn bob() -> UserId {
    user("@bob:there.example")
}

fn there() -> ServerName {
    ServerName::parse("there.example").unwrap()
}

fn object(value: Value) -> Map<String, Value> {
    match value {
        Value::Object(map) => map,
        _ => panic!("not an object"),
    }
}

/// A public room of Alice's.
pub(in crate::service) fn room(hs: &Homeserver, version: &str) -> RoomId {
    let version = room_version::room_version(version).unwrap();
    let wishes: CreateRoom =
        serde_json::from_value(json!({ "preset": "public_chat", "name": "Kitchen" })).unwrap();
    let events = wishes.plan(&alice(), &Map::new(), version, None).unwrap();
    hs.rooms().create_room_with(version, &alice(), &events, |_, _| Ok(())).unwrap()
}

pub(in crate::service) fn draft(
    room: &RoomId,
    sender: &UserId,
    event_type: &str,
    state_key: Option<&str>,
    content: Value,
) -> Draft {
    Draft {
        room: room.clone(),
        sender: sender.clone(),
        event_type: event_type.into(),
        state_key: state_key.map(str::to_owned),
        content: object(content),
        redacts: None,
        origin_server_ts: None,
    }
}

fn message(room: &RoomId, sender: &UserId, text: &str) -> Draft {
    draft(room, sender, "m.room.message", None, json!({ "msgtype": "m.text", "body": text }))
}

/// Another server, of which there is only its hand: it writes what it is told.
struct Other {
    key: SigningKey,
    version: RoomVersion,
    room: RoomId,
    time: i64,
}

impl Other {
    fn new(room: &RoomId, version: &str) -> Other {
        let version = room_version::room_version(version).unwrap();
        Other {
            key: SigningKey::generate([7; 32], "other"),
            version,
            room: room.clone(),
            time: 1_700_000_000_000,
        }
    }

    /// An event by a user of there.example with the auth events that the state after `after` asks for.
    fn event(
        &mut self,
        hs: &Homeserver,
        after: &[&EventId],
        sender: &UserId,
        (event_type, state_key): (&str, Option<&str>),
        content: Value,
    ) -> VerifiedPdu {
        let content = object(content);
        let wanted = crate::protocol::event_auth::auth_types(
            event_type,
            sender.as_str(),
            state_key,
            &content,
            self.version,
        );
        let (auth, depth, hashes) = hs
            .store
            .read(|db| {
                let prev: Vec<StoredEvent> = after.iter().map(|id| db.event(id).unwrap().unwrap()).collect();
                let state = prev[0].state_after.unwrap();
                let auth: Vec<Pdu> =
                    wanted.iter().filter_map(|(t, k)| db.state_event_in(state, t, k).unwrap()).collect();
                let depth = prev.iter().map(|p| p.pdu.depth()).max().unwrap() + 1;
                Ok((auth, depth, prev.into_iter().map(|p| p.pdu).collect::<Vec<_>>()))
            })
            .unwrap();
        let reference = |pdu: &Pdu| match self.version.event_id_format {
            EventIdFormat::InEvent => json!([pdu.event_id(), { "sha256": "x" }]),
            _ => json!(pdu.event_id()),
        };
        self.time += 1000;
        let mut event = object(json!({
            "type": event_type, "sender": sender, "room_id": self.room, "content": content, "depth": depth,
            "origin_server_ts": self.time, "signatures": {},
            "prev_events": hashes.iter().map(reference).collect::<Vec<_>>(),
            "auth_events": auth.iter().map(reference).collect::<Vec<_>>(),
        }));
        if let Some(state_key) = state_key {
            event.insert("state_key".into(), state_key.into());
        }
        if self.version.event_id_format == EventIdFormat::InEvent {
            event.insert("event_id".into(), format!("${}:there.example", self.time).into());
        }
        hash::add_content_hash(&mut event);
        verified(Pdu::from_object(event, self.version).unwrap(), &there(), &self.key)
    }

    fn join(&mut self, hs: &Homeserver, user: &UserId) -> EventId {
        let extremity = only_extremity(hs, &self.room);
        let join = self.event(
            hs,
            &[&extremity],
            user,
            ("m.room.member", Some(user.as_str())),
            json!({ "membership": "join" }),
        );
        assert!(!hs.events().accept_signed(join.clone(), &there(), Membership::Join).unwrap().already);
        join.event_id().clone()
    }
}

fn extremities(hs: &Homeserver, room: &RoomId) -> Vec<EventId> {
    let read = |db: &crate::store::Db<'_>| {
        let room = db.known_room(room)?;
        db.forward_extremities(room.key)
            .map(|extremities| extremities.into_iter().map(|e| e.event_id).collect())
    };
    hs.store.read(read).unwrap()
}

fn only_extremity(hs: &Homeserver, room: &RoomId) -> EventId {
    let extremities = extremities(hs, room);
    assert_eq!(extremities.len(), 1);
    extremities.into_iter().next().unwrap()
}

fn stored(hs: &Homeserver, id: &EventId) -> StoredEvent {
    hs.store.read(|db| Ok(db.event(id)?.unwrap())).unwrap()
}

fn state(hs: &Homeserver, room: &RoomId, event_type: &str, state_key: &str) -> Option<Pdu> {
    hs.store.read(|db| db.state_event(db.known_room(room)?.key, event_type, state_key)).unwrap()
}

fn membership(hs: &Homeserver, room: &RoomId, user: &UserId) -> Option<Membership> {
    hs.store.read(|db| db.membership(db.known_room(room)?.key, user)).unwrap()
}

/// What the tables that follow the current state say must be what the snapshot of the current state says.
fn assert_consistent(hs: &Homeserver, room: &RoomId) {
    hs.store
        .read(|db| {
            let room = db.known_room(room)?;
            let rows = db.state_rows_at(room.state.unwrap())?;
            assert_eq!(rows, db.current_state_rows(room.key)?);
            let joined = db.members(room.key, Some(Membership::Join))?.len() as u64;
            let invited = db.members(room.key, Some(Membership::Invite))?.len() as u64;
            assert_eq!((room.joined, room.invited), (joined, invited));
            let mut servers: Vec<String> = db
                .members(room.key, Some(Membership::Join))?
                .iter()
                .map(|m| m.user_id.server_name().to_owned())
                .collect();
            servers.sort();
            servers.dedup();
            let mut resident: Vec<String> =
                db.resident_servers(room.key)?.iter().map(|s| s.to_string()).collect();
            resident.sort();
            assert_eq!(servers, resident);
            assert_eq!(room.resident, servers.contains(&hs.server_name().to_string()));
            Ok(())
        })
        .unwrap();
}

fn verified(pdu: Pdu, server: &ServerName, key: &SigningKey) -> VerifiedPdu {
    VerifiedPdu::unchecked(pdu.signed(server, key).unwrap())
}

fn receive(hs: &Homeserver, pdu: &VerifiedPdu) -> Result<()> {
    hs.events().receive_pdu(&there(), pdu.clone())
}
