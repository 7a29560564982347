//! Random rooms: who is there, what they might send, what the room has come to.

use std::collections::{BTreeMap, HashMap, HashSet};

use crate::common::random::Random;
use doorstep::protocol::event_auth;
use doorstep::protocol::room_version::RoomVersion;
use doorstep::protocol::signatures::sign::{SigningKey, sign_json};
use doorstep::protocol::state_res::StateMap;
use doorstep::protocol::{EventId, Pdu, ServerName};
use serde_json::{Map, Value, json};

pub const USERS: [&str; 7] = [
    "@creator:one.example",
    "@second:one.example",
    "@mod:two.example",
    "@user:two.example:8448",
    "@other:three.example",
    "@guest:[::1]",
    "@last:two.example",
];

const LEVELS: [i64; 12] = [-1, 0, 1, 25, 49, 50, 51, 75, 99, 100, 101, 1000];
const NAMED: [&str; 7] =
    ["users_default", "events_default", "state_default", "ban", "redact", "kick", "invite"];

/// A state by type and state key, in an order that is the same in every run.
pub type State = BTreeMap<(String, String), Pdu>;

/// An event before it has its place in a room.
pub struct Draft {
    pub event_type: String,
    pub sender: String,
    pub state_key: Option<String>,
    pub content: Value,
}

impl Draft {
    fn state(event_type: &str, sender: &str, state_key: &str, content: Value) -> Self {
        let state_key = Some(state_key.to_owned());
        Self { event_type: event_type.to_owned(), sender: sender.to_owned(), state_key, content }
    }

    pub fn member(sender: &str, target: &str, membership: &str) -> Self {
        Self::state("m.room.member", sender, target, json!({ "membership": membership }))
    }
}

/// A room and everything that was ever made for it.
pub struct World {
    pub version: RoomVersion,
    pub random: Random,
    pub events: HashMap<EventId, Pdu>,
    pub rejected: HashSet<EventId>,
    pub create: Pdu,
    clock: i64,
    identity_key: SigningKey,
}

impl World {
    /// A new room with nothing but its create event.
    pub fn new(version: RoomVersion, seed: u64) -> Self {
        let mut random = Random::new(seed);
        let mut content = json!({ "room_version": version.id });
        if version.creator_in_content {
            content["creator"] = USERS[0].into();
        }
        if version.privileged_creators && random.chance(50) {
            content["additional_creators"] = json!([USERS[2]]);
        }
        if random.chance(8) {
            content["m.federate"] = false.into();
        }
        let mut object = json!({
            "type": "m.room.create", "sender": USERS[0], "state_key": "", "content": content, "depth": 1,
            "origin_server_ts": 1_600_000_000_000_i64 + (seed % 1000) as i64, "prev_events": [],
            "auth_events": [], "hashes": { "sha256": "" }, "signatures": {},
        });
        if !version.room_id_is_create_hash {
            object["room_id"] = format!("!room{seed}:one.example").into();
        }
        let create = pdu(object, version);
        let identity_key = SigningKey::from_seed("ed25519:0", [7; 32]).expect("a key");
        Self {
            version,
            random,
            events: HashMap::from([(create.event_id().clone(), create.clone())]),
            rejected: HashSet::new(),
            clock: create.origin_server_ts(),
            create,
            identity_key,
        }
    }

    /// The state after the create event.
    pub fn first_state(&self) -> State {
        State::from([(key(&self.create), self.create.clone())])
    }

    /// Makes the event, citing what it should of `state`. It is remembered whether it is allowed or not.
    pub fn make(&mut self, draft: &Draft, state: &State, prev: &Pdu) -> Pdu {
        let auth = self.selection(draft, state);
        self.make_citing(draft, &auth, &[prev.event_id().clone()])
    }

    pub fn selection(&self, draft: &Draft, state: &State) -> Vec<EventId> {
        let content = draft.content.as_object().cloned().unwrap_or_default();
        let types = event_auth::auth_types(
            &draft.event_type,
            &draft.sender,
            draft.state_key.as_deref(),
            &content,
            self.version,
        );
        types.iter().filter_map(|key| state.get(key)).map(|event| event.event_id().clone()).collect()
    }

    pub fn make_citing(&mut self, draft: &Draft, auth: &[EventId], prev: &[EventId]) -> Pdu {
        self.clock += self.random.below(4) as i64 - i64::from(self.random.chance(10)) * 5;
        let mut object = json!({
            "type": draft.event_type, "sender": draft.sender, "content": draft.content, "depth": 2,
            "origin_server_ts": self.clock, "prev_events": prev, "auth_events": auth,
            "room_id": self.create.room_id(), "hashes": { "sha256": self.random.next_u64().to_string() },
            "signatures": {},
        });
        if let Some(state_key) = &draft.state_key {
            object["state_key"] = state_key.as_str().into();
        }
        let event = pdu(object, self.version);
        self.events.insert(event.event_id().clone(), event.clone());
        event
    }

    /// Something that somebody might send, wise or not.
    pub fn draft(&mut self, state: &State) -> Draft {
        match self.random.below(20) {
            0..=8 => self.member_draft(state),
            9..=13 => self.power_levels_draft(state),
            14 | 15 => {
                let rules = ["public", "invite", "knock", "restricted", "knock_restricted", "private"];
                let rule = self.random.pick(&rules);
                let allow = json!([{ "type": "m.room_membership", "room_id": "!other:one.example" }]);
                let content = json!({ "join_rule": rule, "allow": allow });
                Draft::state("m.room.join_rules", self.random.pick(&USERS), "", content)
            }
            16 => self.third_party_invite_draft(),
            17 => {
                let state_key =
                    self.random.pick(&["", "x", USERS[0], USERS[3], "@", "@user:two.example:8448x"]);
                Draft::state("org.example.state", self.random.pick(&USERS), state_key, json!({}))
            }
            18 => {
                let kind = self.random.pick(&["m.room.topic", "m.room.name", "m.room.aliases"]);
                Draft::state(kind, self.random.pick(&USERS), "", json!({ "topic": "t" }))
            }
            _ => Draft {
                event_type: self.random.pick(&["m.room.message", "m.room.redaction"]).to_owned(),
                sender: self.random.pick(&USERS).to_owned(),
                state_key: None,
                content: json!({ "body": "hello" }),
            },
        }
    }

    fn member_draft(&mut self, state: &State) -> Draft {
        let random = &mut self.random;
        let sender = random.pick(&USERS);
        let target = if random.chance(45) { sender } else { random.pick(&USERS) };
        let memberships = if sender == target && random.chance(70) {
            &["join", "leave", "knock", "join"][..]
        } else {
            &["join", "invite", "leave", "ban", "knock", "frobnicate"][..]
        };
        let membership = random.pick(memberships);
        let mut draft = Draft::member(sender, target, membership);
        if membership == "join" && random.chance(40) {
            draft.content["join_authorised_via_users_server"] = random.pick(&USERS).into();
        }
        if membership == "invite" && random.chance(30) {
            let tokens: Vec<&Pdu> =
                state.values().filter(|event| event.event_type() == "m.room.third_party_invite").collect();
            let (token, issuer) = match tokens.is_empty() {
                true => ("none".to_owned(), sender.to_owned()),
                false => {
                    let event = tokens[random.below(tokens.len())];
                    (event.state_key().unwrap_or_default().to_owned(), event.sender().to_string())
                }
            };
            if random.chance(70) {
                draft.sender = issuer;
            }
            let mxid = if random.chance(85) { target } else { random.pick(&USERS) };
            let mut signed =
                Map::from_iter([("mxid".to_owned(), mxid.into()), ("token".to_owned(), token.into())]);
            let server = ServerName::parse("id.example").expect("a server name");
            sign_json(&mut signed, &server, &self.identity_key);
            if self.random.chance(15) {
                signed.insert("extra".to_owned(), 1.into());
            }
            let invite = json!({ "display_name": "x", "signed": signed });
            draft.content["third_party_invite"] = invite;
        }
        if self.random.chance(2) {
            draft.content = json!({ "displayname": "no membership" });
        }
        if self.random.chance(2) {
            draft.state_key = Some("not a user".to_owned());
        }
        draft
    }

    fn third_party_invite_draft(&mut self) -> Draft {
        let sender = self.random.pick(&USERS);
        let token = self.random.pick(&["token1", "token2"]);
        let other = SigningKey::from_seed("ed25519:0", [8; 32]).expect("a key").public_base64();
        let ours = self.identity_key.public_base64();
        let mut content = json!({ "display_name": "x", "key_validity_url": "https://id.example/valid" });
        match self.random.below(3) {
            0 => content["public_key"] = ours.into(),
            1 => {
                content["public_key"] = other.into();
                content["public_keys"] = json!([{ "public_key": ours }]);
            }
            _ => content["public_key"] = other.into(),
        }
        Draft::state("m.room.third_party_invite", sender, token, content)
    }

    /// The levels in force with a few changes, or others altogether.
    pub fn power_levels_draft(&mut self, state: &State) -> Draft {
        let current = state.get(&("m.room.power_levels".to_owned(), String::new()));
        let mut content = match current {
            Some(event) if !self.random.chance(5) => Value::Object(event.content()),
            _ => self.usual_power_levels(),
        };
        for _ in 0..1 + self.random.below(3) {
            self.change_power_levels(&mut content);
        }
        Draft::state("m.room.power_levels", self.random.pick(&USERS), "", content)
    }

    pub fn usual_power_levels(&self) -> Value {
        let mut users = json!({ USERS[2]: 50, USERS[1]: 75 });
        if self.version.privileged_creators {
            users = json!({ USERS[1]: 75 });
        } else {
            users[USERS[0]] = 100.into();
        }
        json!({
            "users": users, "users_default": 0, "events_default": 0, "state_default": 50, "ban": 50, "kick": 50,
            "redact": 50, "invite": 0, "events": { "m.room.topic": 0, "m.room.power_levels": 50 },
            "notifications": { "room": 50 },
        })
    }

    fn change_power_levels(&mut self, content: &mut Value) {
        let level = self.level();
        let strict = self.version.integer_power_levels;
        let random = &mut self.random;
        match random.below(12) {
            0..=2 => content[random.pick(&NAMED)] = level,
            3 => {
                let name = random.pick(&NAMED);
                content.as_object_mut().expect("an object").remove(name);
            }
            4..=6 => {
                if random.chance(97) {
                    table(content, "users").insert(random.pick(&USERS).to_owned(), level);
                } else {
                    table(content, "users").insert(random.pick(&["nobody", "@nobody"]).to_owned(), level);
                }
            }
            7 => {
                table(content, "users").remove(random.pick(&USERS));
            }
            8 | 9 => {
                let kind =
                    random.pick(&["m.room.topic", "m.room.message", "m.room.power_levels", "org.example.x"]);
                let events = table(content, "events");
                if random.chance(60) {
                    events.insert(kind.to_owned(), level);
                } else {
                    events.remove(kind);
                }
            }
            10 => {
                let notifications = table(content, "notifications");
                if random.chance(60) {
                    notifications.insert(random.pick(&["room", "x"]).to_owned(), level);
                } else {
                    notifications.remove("room");
                }
            }
            _ if random.chance(10) => {
                // As with single levels: before version 10 only `users` has to be an object.
                let tables = if strict { &["users", "events", "notifications"][..] } else { &["users"] };
                content[random.pick(tables)] = json!([]);
            }
            _ => content["org.example.custom"] = level,
        }
    }

    /// A level; now and then as text. No level at all only where the rules speak of that: before version 10 they
    /// leave first power levels with such values alone, ruma does not.
    fn level(&mut self) -> Value {
        let level = LEVELS[self.random.below(LEVELS.len())];
        let strict = self.version.integer_power_levels && self.random.chance(30);
        match self.random.below(40) {
            0 => json!(level.to_string()),
            1 => json!(format!(" {level} ")),
            2 if strict => json!("lots"),
            3 if strict => json!([level]),
            _ => json!(level),
        }
    }
}

fn table<'c>(content: &'c mut Value, name: &str) -> &'c mut Map<String, Value> {
    if !content[name].is_object() {
        content[name] = json!({});
    }
    content[name].as_object_mut().expect("an object")
}

fn pdu(object: Value, version: RoomVersion) -> Pdu {
    let Value::Object(object) = object else { panic!("not an object") };
    Pdu::from_object(object, version).expect("a well-formed event")
}

/// Where a state event stands in a state.
pub fn key(event: &Pdu) -> (String, String) {
    (event.event_type().to_owned(), event.state_key().expect("a state event").to_owned())
}

/// A state as state resolution takes it.
pub fn state_map(state: &State) -> StateMap {
    state
        .iter()
        .map(|((kind, key), event)| ((kind.as_str().into(), key.as_str().into()), event.event_id().clone()))
        .collect()
}
