//! Rooms that live on the other server, and what it says of them when it is honest.

use std::collections::BTreeMap;

use doorstep::internals::ScriptedRequest;
use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::handshake::sign_new_event;
use doorstep::protocol::room_version::{EventIdFormat, RoomVersion, room_version};
use doorstep::protocol::signatures::sign::{SigningKey, sign_event, sign_json};
use doorstep::protocol::{EventId, Pdu, ServerName};
use serde_json::{Map, Value, json};

use super::house::{CAROL, PEER, references};

/// A time in the past of every test.
const THEN: i64 = 1_700_000_000_000;
/// And one in the future.
const LATER: i64 = 4_102_444_800_000;
const MESSAGES: usize = 6;

/// A room of carol's, with some history.
pub struct PeerRoom {
    pub id: String,
    pub version: RoomVersion,
    pub alias: String,
    state: BTreeMap<(String, String), Pdu>,
    /// All of its events, oldest first.
    pub events: Vec<Pdu>,
}

impl PeerRoom {
    pub fn new(key: &SigningKey, version: &str, rule: &str) -> Self {
        let version = room_version(version).expect("a known version");
        let (id, alias) = (format!("!{}{rule}:{PEER}", version.id), format!("#{}:{PEER}", version.id));
        let mut room = Self { id, version, alias, state: BTreeMap::new(), events: Vec::new() };
        room.add(key, "m.room.create", Some(""), json!({ "room_version": version.id, "creator": CAROL }));
        if version.room_id_is_create_hash {
            room.id = room.events[0].room_id().to_string();
        }
        room.add(key, "m.room.member", Some(CAROL), json!({ "membership": "join", "displayname": "Carol" }));
        let mut levels = json!({ "users": { CAROL: 100 }, "events": { "m.room.name": 50 } });
        if version.room_id_is_create_hash {
            // Creators are above all levels.
            levels["users"] = json!({});
        }
        room.add(key, "m.room.power_levels", Some(""), levels);
        room.add(key, "m.room.join_rules", Some(""), json!({ "join_rule": rule }));
        room.add(key, "m.room.name", Some(""), json!({ "name": "Carol's" }));
        for n in 0..MESSAGES {
            room.add(key, "m.room.message", None, json!({ "msgtype": "m.text", "body": n.to_string() }));
        }
        room
    }

    fn add(&mut self, key: &SigningKey, kind: &str, state_key: Option<&str>, content: Value) {
        let event = sign_new_event(self.draft(kind, CAROL, state_key, content), &peer(), key, self.version);
        let event = event.expect("an event");
        if let Some(state_key) = state_key {
            self.state.insert((kind.to_owned(), state_key.to_owned()), event.clone());
        }
        self.events.push(event);
    }

    /// Lets a state event that was signed become part of the room.
    pub fn take(&mut self, event: &Value) {
        let event = event.as_object().and_then(|event| Pdu::from_object(event.clone(), self.version).ok());
        if let Some(event) = event {
            let key = (event.event_type().to_owned(), event.state_key().unwrap_or_default().to_owned());
            self.state.insert(key, event.clone());
            self.events.push(event);
        }
    }

    /// An event at the room's end. Not signed.
    pub fn draft(
        &self,
        kind: &str,
        sender: &str,
        state_key: Option<&str>,
        content: Value,
    ) -> Map<String, Value> {
        let content = content.as_object().cloned().unwrap_or_default();
        let wanted = auth_types(kind, sender, state_key, &content, self.version);
        let auth: Vec<EventId> =
            wanted.iter().filter_map(|key| self.state.get(key)).map(|pdu| pdu.event_id().clone()).collect();
        let prev: Vec<EventId> = self.events.last().map(|pdu| pdu.event_id().clone()).into_iter().collect();
        let count = i64::try_from(self.events.len()).unwrap_or(0);
        let mut event = json!({
            "type": kind, "sender": sender, "content": content, "origin_server_ts": THEN + count, "depth": count + 1,
            "prev_events": references(&prev, self.version), "auth_events": references(&auth, self.version),
        });
        if !(self.version.room_id_is_create_hash && kind == "m.room.create") {
            event["room_id"] = json!(self.id);
        }
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        event.as_object_mut().map(std::mem::take).unwrap_or_default()
    }

    fn state(&self) -> Vec<Value> {
        self.state.values().map(|pdu| Value::Object(pdu.to_object())).collect()
    }

    fn ids(&self) -> Vec<&EventId> {
        self.state.values().map(Pdu::event_id).collect()
    }

    fn summary(&self) -> Value {
        json!({
            "room_id": self.id, "name": "Carol's", "num_joined_members": 1, "guest_can_join": false,
            "world_readable": true, "join_rule": "public", "room_type": "m.space", "canonical_alias": self.alias,
            "children_state": [{
                "type": "m.space.child", "sender": CAROL, "state_key": "!child:peer.example", "origin_server_ts": THEN,
                "content": { "via": [PEER], "order": "a", "suggested": true },
            }],
        })
    }
}

pub fn peer() -> ServerName {
    ServerName::parse(PEER).expect("a name")
}

fn decoded(segment: &str) -> String {
    let mut bytes = segment.bytes();
    let mut out = Vec::new();
    while let Some(byte) = bytes.next() {
        let mut digit = || bytes.next().and_then(|b| char::from(b).to_digit(16)).unwrap_or(0);
        out.push(if byte == b'%' { u8::try_from(digit() * 16 + digit()).unwrap_or(b'?') } else { byte });
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// What an honest server answers: the status and the body.
pub fn honest(asked: &ScriptedRequest, rooms: &[PeerRoom], key: &SigningKey) -> (u16, Value) {
    let path = decoded(asked.target.split('?').next().unwrap_or_default());
    let body: Value = serde_json::from_slice(&asked.body).unwrap_or_default();
    let room = rooms.iter().find(|room| path.contains(&room.id)).unwrap_or(&rooms[0]);
    let all = || room.events.iter().map(|pdu| Value::Object(pdu.to_object())).collect::<Vec<_>>();
    let user = path.rsplit('/').next().unwrap_or_default();
    let last = path.rsplit('/').next().unwrap_or_default();
    let template = |membership: &str| {
        let event = room.draft("m.room.member", user, Some(user), json!({ "membership": membership }));
        json!({ "room_version": room.version.id, "event": event })
    };
    let answer = match path.split('/').collect::<Vec<_>>().as_slice() {
        [_, "_matrix", "key", "v2", "server"] => statement(key),
        [_, "_matrix", "key", "v2", "query"] => json!({ "server_keys": [statement(key)] }),
        [.., "make_join", _, _] => template("join"),
        [.., "make_knock", _, _] => template("knock"),
        [.., "make_leave", _, _] => template("leave"),
        [.., "send_join", _, _] => {
            json!({ "state": room.state(), "auth_chain": room.state(), "members_omitted": false, "event": body })
        }
        [.., "send_knock", _, _] => json!({ "knock_room_state": room.state() }),
        [.., "send_leave", _, _] => json!({}),
        [.., "invite", _, _] => {
            let mut event = body.get("event").cloned().unwrap_or_default();
            let version = body["room_version"].as_str().and_then(room_version).unwrap_or(room.version);
            if let Some(event) = event.as_object_mut() {
                sign_event(event, &peer(), key, version);
            }
            json!({ "event": event })
        }
        [.., "send", _] => json!({ "pdus": {} }),
        [.., "get_missing_events", _] => json!({ "events": all() }),
        [.., "backfill", _] => json!({ "origin": PEER, "origin_server_ts": THEN, "pdus": all() }),
        [.., "event", _] => {
            let found =
                rooms.iter().flat_map(|room| &room.events).find(|pdu| pdu.event_id().as_str() == last);
            match found {
                Some(found) => json!({ "pdus": [found.to_object()] }),
                None => return (404, json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
            }
        }
        [.., "state", _] => json!({ "pdus": room.state(), "auth_chain": room.state() }),
        [.., "state_ids", _] => json!({ "pdu_ids": room.ids(), "auth_chain_ids": room.ids() }),
        [.., "event_auth", _, _] => json!({ "auth_chain": room.state() }),
        [.., "timestamp_to_event", _] => {
            json!({ "event_id": room.events[5].event_id(), "origin_server_ts": room.events[5].origin_server_ts() })
        }
        [.., "query", "directory"] => json!({ "room_id": room.id, "servers": [PEER] }),
        [.., "query", "profile"] => json!({ "displayname": "Carol", "avatar_url": "mxc://peer.example/a" }),
        [.., "publicRooms"] => {
            json!({ "chunk": rooms.iter().map(PeerRoom::summary).collect::<Vec<_>>(), "next_batch": "n",
                "total_room_count_estimate": rooms.len() })
        }
        [.., "hierarchy", _] => {
            let mut child = room.summary();
            child["room_id"] = json!("!child:peer.example");
            json!({ "room": room.summary(), "children": [child], "inaccessible_children": ["!x:peer.example"] })
        }
        [.., "user", "keys", "query"] => json!({
            "device_keys": { CAROL: { "D": {
                "user_id": CAROL, "device_id": "D", "algorithms": ["m.megolm.v1.aes-sha2"],
                "keys": { "ed25519:D": "a", "curve25519:D": "b" }, "signatures": { CAROL: { "ed25519:D": "s" } },
                "unsigned": { "device_display_name": "phone" },
            } } },
            "master_keys": { CAROL: cross_signing_key("master") },
            "self_signing_keys": { CAROL: cross_signing_key("self_signing") },
        }),
        [.., "user", "keys", "claim"] => json!({
            "one_time_keys": { CAROL: { "D": { "signed_curve25519:AAAA": { "key": "k", "signatures": {} } } } }
        }),
        [.., "user", "devices", _] => json!({
            "master_key": cross_signing_key("master"), "self_signing_key": cross_signing_key("self_signing"),
            "user_id": user, "stream_id": 3,
            "devices": [{ "device_id": "D", "device_display_name": "phone",
                "keys": { "user_id": user, "device_id": "D", "algorithms": [], "keys": {}, "signatures": {} } }],
        }),
        [.., "sign"] => json!({ PEER: { "ed25519:policy_server": "AAAA" } }),
        [.., "hash_details"] => json!({ "algorithms": ["sha256", "none"], "lookup_pepper": "p" }),
        [.., "lookup"] => json!({ "mappings": {} }),
        [.., "store-invite"] => json!({
            "token": "token", "display_name": "c...@e...",
            "public_keys": [{ "public_key": key.public_base64(), "key_validity_url": "https://id.example/isvalid" }],
        }),
        [.., "isvalid"] => json!({ "valid": true }),
        _ => return (404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })),
    };
    (200, answer)
}

/// A cross-signing key of carol's.
fn cross_signing_key(usage: &str) -> Value {
    let public = SigningKey::generate([usage.len() as u8; 32], "any").public_base64();
    json!({ "user_id": CAROL, "usage": [usage], "keys": { format!("ed25519:{public}"): public } })
}

fn statement(key: &SigningKey) -> Value {
    let mut statement = json!({
        "server_name": PEER, "valid_until_ts": LATER, "old_verify_keys": {},
        "verify_keys": { key.key_id(): { "key": key.public_base64() } },
    });
    sign_json(statement.as_object_mut().expect("an object"), &peer(), key);
    statement
}

/// Signs an event anew, whatever it has become. None if it is none.
pub fn signed_again(event: &Value, key: &SigningKey, version: RoomVersion) -> Option<Value> {
    let mut event = event.as_object()?.clone();
    event.remove("hashes");
    if version.event_id_format == EventIdFormat::InEvent {
        event.remove("event_id");
    }
    let event = sign_new_event(event, &peer(), key, version).ok()?;
    Some(Value::Object(event.to_object()))
}
