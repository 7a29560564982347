//! Rooms out of bytes: events of every kind, mostly sound, often not, of users of several servers, with a grasp of what
//! state they were made in. Nothing in them is signed.

use std::collections::{BTreeMap, HashMap, HashSet};

use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::room_version::{EventIdFormat, RoomVersion, all};
use doorstep::protocol::state_res::StateMap;
use doorstep::protocol::{EventId, Pdu};
use serde_json::{Map, Value, json};

use super::source::Source;

pub const USERS: [&str; 6] =
    ["@a:one.example", "@b:one.example", "@c:two.example", "@d:two.example:8448", "@e:[::1]", "@:three"];
const STATE_KEYS: [&str; 9] =
    ["", USERS[0], USERS[1], USERS[2], USERS[3], USERS[4], "@", "token", "@a:one.example:x"];
const TYPES: [&str; 12] = [
    "m.room.member",
    "m.room.power_levels",
    "m.room.join_rules",
    "m.room.topic",
    "m.room.third_party_invite",
    "m.room.redaction",
    "m.room.message",
    "m.room.aliases",
    "m.room.create",
    "m.room.server_acl",
    "m.room.history_visibility",
    "org.example.x",
];
const MEMBERSHIPS: [&str; 6] = ["join", "leave", "invite", "ban", "knock", "other"];
const LEVELS: [i64; 8] = [0, 50, 100, 49, 51, -1, 9_007_199_254_740_991, -9_007_199_254_740_991];
const LEVEL_NAMES: [&str; 7] =
    ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];

/// A state by type and state key.
pub type State = BTreeMap<(String, String), Pdu>;

/// Everything that was made for one room.
pub struct Room<'d> {
    pub version: RoomVersion,
    pub source: Source<'d>,
    pub events: HashMap<EventId, Pdu>,
    pub order: Vec<EventId>,
    pub rejected: HashSet<EventId>,
    pub create: Pdu,
}

impl<'d> Room<'d> {
    /// The first byte is the room version.
    pub fn new(data: &'d [u8]) -> Option<Self> {
        let mut source = Source::new(data);
        let version = &all()[source.below(all().len())];
        let mut content = json!({ "room_version": version.id, "creator": USERS[0] });
        match source.below(8) {
            1 => content["m.federate"] = json!(false),
            2 => content["additional_creators"] = json!([USERS[1]]),
            3 => content["additional_creators"] = odd(&mut source),
            4 => content["creator"] = odd(&mut source),
            _ => {}
        }
        let mut object = json!({
            "type": "m.room.create", "sender": USERS[0], "state_key": "", "content": content, "depth": 1,
            "origin_server_ts": 1, "prev_events": [], "auth_events": [], "hashes": {}, "signatures": {},
        });
        if version.event_id_format == EventIdFormat::InEvent {
            object["event_id"] = json!(numbered(0));
        }
        if !version.room_id_is_create_hash {
            object["room_id"] = json!("!room:one.example");
        }
        let create = Pdu::from_object(object.as_object()?.clone(), version).ok()?;
        let id = create.event_id().clone();
        let events = HashMap::from([(id.clone(), create.clone())]);
        Some(Self { version, source, events, order: vec![id], rejected: HashSet::new(), create })
    }

    pub fn first_state(&self) -> State {
        State::from([(key(&self.create), self.create.clone())])
    }

    /// One more event, made in this state or claiming so. None where the bytes made something that is no event.
    pub fn event(&mut self, state: &State) -> Option<Pdu> {
        let kind = self.source.pick(&TYPES);
        let sender = self.source.pick(&USERS);
        let mut state_key = match kind {
            "m.room.message" | "m.room.redaction" => None,
            "m.room.member" if self.source.chance(100) => Some(self.source.pick(&STATE_KEYS)),
            "m.room.member" => Some(sender),
            "m.room.third_party_invite" => Some("token"),
            _ => Some(""),
        };
        if self.source.chance(20) {
            state_key = [None, Some(self.source.pick(&STATE_KEYS))][self.source.below(2)];
        }
        let content = self.content(kind, sender, state);
        let shape = content.as_object().cloned().unwrap_or_default();
        let wanted = auth_types(kind, sender, state_key, &shape, self.version);
        let mut auth: Vec<String> = wanted
            .iter()
            .filter_map(|key| state.get(key))
            .map(|event| event.event_id().to_string())
            .collect();
        while self.source.chance(30) && auth.len() < 12 {
            let other = self.any_id();
            match self.source.below(3) {
                0 => auth.push(other),
                1 => drop(auth.pop()),
                _ => auth = vec![other],
            }
        }
        let mut prev = vec![self.order[self.order.len() - 1].to_string()];
        while self.source.chance(40) && prev.len() < 4 {
            prev.push(self.any_id());
        }
        let mut object = json!({
            "type": kind, "sender": sender, "content": content, "depth": 1 + self.source.below(20),
            "origin_server_ts": self.source.below(6), "hashes": { "sha256": self.order.len().to_string() }, "signatures": {},
            "prev_events": self.references(&prev), "auth_events": self.references(&auth),
            "room_id": self.create.room_id(),
        });
        if self.source.chance(8) {
            object["room_id"] = json!("!other:one.example");
        }
        if let Some(state_key) = state_key {
            object["state_key"] = json!(state_key);
        }
        if kind == "m.room.create" && self.version.room_id_is_create_hash {
            object.as_object_mut()?.remove("room_id");
        }
        if kind == "m.room.redaction" {
            object["redacts"] = json!(self.any_id());
        }
        if self.version.event_id_format == EventIdFormat::InEvent {
            object["event_id"] = json!(numbered(self.order.len()));
        }
        let event = Pdu::from_object(object.as_object()?.clone(), self.version).ok()?;
        if self.source.chance(16) {
            self.rejected.insert(event.event_id().clone());
        }
        self.order.push(event.event_id().clone());
        // Now and then nobody has it.
        if !self.source.chance(12) {
            self.events.insert(event.event_id().clone(), event.clone());
        }
        Some(event)
    }

    /// The id of an event that there is; where ids are chosen by servers, also of one that is yet to come, so that
    /// events may cite each other in circles.
    fn any_id(&mut self) -> String {
        let range = self.order.len() + 3;
        let at = self.source.below(range.min(250));
        match self.order.get(at) {
            Some(id) => id.to_string(),
            None if self.version.event_id_format == EventIdFormat::InEvent => numbered(at),
            None => self.order[at % self.order.len()].to_string(),
        }
    }

    fn references(&self, ids: &[String]) -> Value {
        if self.version.event_id_format == EventIdFormat::InEvent {
            ids.iter().map(|id| json!([id, { "sha256": "" }])).collect()
        } else {
            json!(ids)
        }
    }

    fn content(&mut self, kind: &str, sender: &str, state: &State) -> Value {
        let source = &mut self.source;
        let mut content = match kind {
            "m.room.member" => member(source, sender),
            "m.room.power_levels" => power_levels(source, state),
            "m.room.join_rules" => {
                let rules = ["public", "invite", "knock", "restricted", "knock_restricted", "private", "odd"];
                json!({ "join_rule": source.pick(&rules), "allow": [{ "type": "m.room_membership", "room_id": "!a:b" }] })
            }
            "m.room.third_party_invite" => {
                json!({ "public_key": "odd", "public_keys": [{ "public_key": "" }] })
            }
            "m.room.create" => json!({ "creator": sender, "room_version": self.version.id }),
            _ => json!({ "topic": source.byte() }),
        };
        if source.chance(24) {
            let keys: Vec<String> =
                content.as_object().into_iter().flatten().map(|(k, _)| k.clone()).collect();
            if !keys.is_empty() {
                let key = &keys[source.below(keys.len())];
                content[key] = odd(source);
            }
        }
        content
    }
}

fn member(source: &mut Source<'_>, sender: &str) -> Value {
    let mut content = json!({ "membership": source.pick(&MEMBERSHIPS) });
    match source.below(8) {
        1 => content["join_authorised_via_users_server"] = json!(source.pick(&USERS)),
        2 => {
            let mxid = source.pick(&STATE_KEYS);
            let token = if source.chance(30) { "other" } else { "token" };
            content["third_party_invite"] = json!({
                "display_name": sender,
                "signed": { "mxid": mxid, "token": token, "signatures": { "id.example": { "ed25519:0": "AAAA" } } },
            });
        }
        3 => content["third_party_invite"] = json!({ "signed": odd(source) }),
        4 => content["join_authorised_via_users_server"] = odd(source),
        _ => {}
    }
    content
}

/// The levels of this state with changes.
fn power_levels(source: &mut Source<'_>, state: &State) -> Value {
    let current = state.get(&("m.room.power_levels".to_owned(), String::new()));
    let mut content = match current {
        Some(event) if !source.chance(30) => Value::Object(event.content()),
        _ => json!({ "users": { USERS[0]: 100 }, "events": {}, "notifications": {} }),
    };
    for _ in 0..=source.below(4) {
        let level = if source.chance(20) { odd(source) } else { json!(source.pick(&LEVELS)) };
        match source.below(5) {
            0 => content[source.pick(&LEVEL_NAMES)] = level,
            1 => table(&mut content, "users", source.pick(&USERS), level),
            2 => table(&mut content, "events", source.pick(&TYPES), level),
            3 => table(&mut content, "notifications", "room", level),
            _ => {
                if let Some(content) = content.as_object_mut() {
                    content.remove(source.pick(&LEVEL_NAMES));
                }
            }
        }
    }
    content
}

fn table(content: &mut Value, name: &str, key: &str, level: Value) {
    if let Some(table) = content[name].as_object_mut() {
        table.insert(key.to_owned(), level);
    } else {
        content[name] = Value::Object(Map::from_iter([(key.to_owned(), level)]));
    }
}

/// What nobody expects where it stands.
fn odd(source: &mut Source<'_>) -> Value {
    match source.below(12) {
        0 => Value::Null,
        1 => json!(true),
        2 => json!("50"),
        3 => json!(" +0100 "),
        4 => json!([]),
        5 => json!({}),
        6 => json!(["@a:one.example", 7]),
        7 => json!({ "@a:one.example": "99999999999999999999", "nobody": 1 }),
        8 => json!(1.5),
        9 => json!(i64::MIN),
        10 => json!(u64::MAX),
        _ => json!(""),
    }
}

fn numbered(number: usize) -> String {
    format!("${number}:one.example")
}

/// Where a state event stands in a state.
pub fn key(event: &Pdu) -> (String, String) {
    (event.event_type().to_owned(), event.state_key().unwrap_or_default().to_owned())
}

/// A state as state resolution takes it.
pub fn state_map(state: &State) -> StateMap {
    let ids = state
        .iter()
        .map(|((kind, key), event)| ((kind.as_str().into(), key.as_str().into()), event.event_id().clone()));
    ids.collect()
}
