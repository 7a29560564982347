//! A homeserver to put requests to: with two accounts, rooms of several versions, and another server whose user is in
//! them. It reaches nobody else, or nobody but whom a script plays.

use std::collections::BTreeMap;
use std::sync::Arc;

use doorstep::Homeserver;
use doorstep::config::{Config, Registration};
use doorstep::internals::AnswerScript;
use doorstep::internals::{BodyUse, Outcome, Poll, Reply, Request, Router, Service};
use doorstep::internals::{StatementSource, StoredKey};
use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::handshake::sign_new_event;
use doorstep::protocol::room_version::{EventIdFormat, RoomVersion, room_version};
use doorstep::protocol::signatures::sign::{SigningKey, sign_json};
use doorstep::protocol::signatures::x_matrix;
use doorstep::protocol::{EventId, RoomId, ServerName};
use doorstep::testing::{scripted, secluded, segment};
use serde_json::{Map, Value, json};
use tiny_http::Method;

pub const OWN: &str = "own.example";
pub const PEER: &str = "peer.example";
pub const ALICE: &str = "@alice:own.example";
pub const BOB: &str = "@bob:own.example";
/// Of the other server, in every room.
pub const CAROL: &str = "@carol:peer.example";
/// Of the other server, in no room.
pub const DAVE: &str = "@dave:peer.example";

/// Bob's.
pub const PASSWORD: &str = "p4ssw0rd";

/// One for each format of event ids and room ids.
const VERSIONS: [&str; 3] = ["1", "10", "12"];
/// So many ids of events are known to whoever asks.
const MOST_EVENTS: usize = 32;

/// Who asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AskerId {
    Nobody,
    /// An administrator, who made the rooms.
    Alice,
    Bob,
    /// The other server, with its signature.
    Peer,
    WrongToken,
    WrongSignature,
}

/// A request.
pub struct Ask {
    pub method: Method,
    pub target: String,
    pub who: AskerId,
    pub body: Vec<u8>,
}

/// A room that alice made.
#[derive(Clone)]
pub struct Room {
    pub id: RoomId,
    pub version: RoomVersion,
    pub alias: String,
}

pub struct House {
    hs: Arc<Homeserver>,
    router: Arc<Router>,
    alice: String,
    bob: String,
    key: SigningKey,
    pub rooms: Vec<Room>,
    /// Ids of events that there are.
    pub events: Vec<String>,
    /// Alice's device.
    pub device: String,
    /// What the last replies gave out to be sent back, by its name.
    pub given: BTreeMap<&'static str, String>,
}

/// What replies give out to be sent back.
const GIVEN: [&str; 4] = ["session", "refresh_token", "access_token", "next_batch"];

impl House {
    pub fn new() -> Self {
        Self::of(secluded(config()))
    }

    /// The same, for which this script plays all other servers.
    pub fn scripted(script: Arc<AnswerScript>) -> Self {
        Self::of(scripted(config(), script))
    }

    fn of(hs: Arc<Homeserver>) -> Self {
        let key = key();
        introduce(&hs, &key);
        let (alice, bob) = (account(&hs, "alice", None), account(&hs, "bob", Some(PASSWORD)));
        let router = Arc::new(Router::new(hs.clone()));
        let (rooms, events, device, given) = Default::default();
        let mut house = Self { hs, router, alice, bob, key, rooms, events, device, given };
        for version in VERSIONS {
            house.furnish(version);
        }
        house.furnish_alone();
        let me = house.expect(
            Method::Get,
            "/_matrix/client/v3/account/whoami".into(),
            AskerId::Alice,
            &Value::Null,
        );
        house.device = me["device_id"].as_str().expect("a device").to_owned();
        house
    }

    /// The homeserver itself.
    pub fn homeserver(&self) -> &Homeserver {
        &self.hs
    }

    /// A room with alice alone, at which one can knock.
    fn furnish_alone(&mut self) {
        let rules =
            json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
        let body = json!({ "room_version": "11", "initial_state": [rules] });
        let made = self.expect(Method::Post, "/_matrix/client/v3/createRoom".into(), AskerId::Alice, &body);
        let id = RoomId::parse(made["room_id"].as_str().expect("a room id")).expect("a room id");
        let version = room_version("11").expect("a known version");
        self.rooms.push(Room { id, version, alias: format!("#new:{OWN}") });
    }

    /// One more room with everybody.
    fn furnish(&mut self, version: &str) {
        let body = json!({ "preset": "public_chat", "room_version": version, "room_alias_name": version });
        let made = self.expect(Method::Post, "/_matrix/client/v3/createRoom".into(), AskerId::Alice, &body);
        let id = made["room_id"].as_str().expect("a room id");
        let join = format!("/_matrix/client/v3/join/{}", segment(id));
        self.expect(Method::Post, join, AskerId::Bob, &json!({}));

        let path = format!("{}/{}", segment(id), segment(CAROL));
        let path = format!("/_matrix/federation/v1/make_join/{path}?ver={version}");
        let mut made = self.expect(Method::Get, path, AskerId::Peer, &Value::Null);
        let version = room_version(version).expect("a known version");
        let template = made["event"].as_object_mut().map(std::mem::take).expect("a template");
        let event = sign_new_event(template, &name(PEER), &self.key, version).expect("an event");
        let path = format!("{}/{}", segment(id), segment(event.event_id().as_str()));
        let path = format!("/_matrix/federation/v2/send_join/{path}");
        self.expect(Method::Put, path, AskerId::Peer, &Value::Object(event.to_object()));

        let room_id = RoomId::parse(id).expect("a room id");
        let state = self.hs.store.read(|db| db.current_state(db.known_room(&room_id)?.key));
        let state = state.expect("the room has a state");
        self.events.extend(state.iter().map(|event| event.event_id().to_string()));
        self.rooms.push(Room { id: room_id, version, alias: format!("#{}:{OWN}", version.id) });
    }

    fn expect(&mut self, method: Method, target: String, who: AskerId, body: &Value) -> Value {
        let what = format!("{method} {target}");
        let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
        let reply = self.ask(Ask { method, target, who, body });
        let body = serde_json::from_slice(reply.body_bytes().unwrap_or_default()).unwrap_or(Value::Null);
        assert_eq!(reply.status(), 200, "{what}: {body}");
        body
    }

    /// Puts a request to the router the way a connection does.
    pub fn ask(&mut self, ask: Ask) -> Reply {
        let headers = self.authorization(&ask).map(|value| ("Authorization".to_owned(), value));
        let nowhere = ([192, 0, 2, 1], 1).into();
        let Ask { method, target, body, .. } = ask;
        let mut request = match Request::new(method, target, headers.into_iter().collect(), nowhere) {
            Ok(request) => request,
            Err(e) => return Reply::error(&e),
        };
        let admission = match self.router.clone().admit(&mut request) {
            Ok(admission) => admission,
            Err(reply) => return reply,
        };
        let mut body = body;
        let request = match admission.body {
            BodyUse::Whole(bytes_max) => {
                body.truncate(bytes_max);
                request.with_body(body)
            }
            BodyUse::Introduced(bytes_max, look, _) => match look(&request) {
                Ok(()) => {
                    body.truncate(bytes_max);
                    request.with_body(body)
                }
                Err(reply) => return reply,
            },
            BodyUse::Handed(mut sink) => match body.chunks(7).try_for_each(&mut sink) {
                Ok(()) => request,
                Err(e) => return Reply::error(&e),
            },
        };
        let mut outcome = (admission.call)(&request, Poll::First);
        if matches!(outcome, Outcome::Wait { .. }) {
            outcome = (admission.call)(&request, Poll::Last);
        }
        match outcome {
            Outcome::Reply(reply) => reply,
            Outcome::Wait { .. } => panic!("it waits although its time is up"),
        }
    }

    fn authorization(&self, ask: &Ask) -> Option<String> {
        let content = Some(ask.body.as_slice()).filter(|body| !body.is_empty());
        let method = ask.method.as_str();
        let sign = |uri: &str| {
            let signed = x_matrix::build(method, uri, &name(PEER), &name(OWN), content, &self.key);
            // What is no JSON cannot be signed, and is sent all the same.
            signed.or_else(|_| x_matrix::build(method, uri, &name(PEER), &name(OWN), None, &self.key)).ok()
        };
        match ask.who {
            AskerId::Nobody => None,
            AskerId::Alice => Some(format!("Bearer {}", self.alice)),
            AskerId::Bob => Some(format!("Bearer {}", self.bob)),
            AskerId::WrongToken => Some("Bearer nobody's".to_owned()),
            AskerId::Peer => sign(&ask.target),
            AskerId::WrongSignature => sign("/"),
        }
    }

    /// Remembers what a reply gives out, for those who ask later.
    pub fn heard(&mut self, reply: &Value) {
        for name in GIVEN {
            if let Some(text) = reply.get(name).and_then(Value::as_str) {
                self.given.insert(name, text.to_owned());
            }
        }
        if let Some(id) = reply.get("event_id").and_then(Value::as_str) {
            self.learn(id.to_owned());
        }
    }

    /// Remembers an event for those who ask later.
    pub fn learn(&mut self, event: String) {
        if self.events.len() >= MOST_EVENTS {
            self.events.remove(MOST_EVENTS / 2);
        }
        self.events.push(event);
    }

    /// An event of the other server's, as it should be made by now: on top of the room's graph, with the events that
    /// allow it. Not signed.
    pub fn draft(
        &self,
        room: &Room,
        sender: &str,
        (kind, state_key): (&str, Option<&str>),
        content: Value,
    ) -> Map<String, Value> {
        let content = content.as_object().cloned().unwrap_or_default();
        let wanted = auth_types(kind, sender, state_key, &content, room.version);
        let ends = self.hs.store.read(|db| {
            // A room that there is not, has nothing to be on top of.
            let Some(known) = db.room(&room.id)? else { return Ok((Vec::new(), Vec::new(), 0)) };
            let heads = db.forward_extremities(known.key)?;
            let mut auth = Vec::new();
            for (kind, state_key) in &wanted {
                let event = db.state_event(known.key, kind, state_key)?;
                auth.extend(event.map(|event| event.event_id().clone()));
            }
            let depth = heads.iter().map(|head| head.depth).max().unwrap_or(0).saturating_add(1);
            Ok((heads.into_iter().map(|head| head.event_id).collect(), auth, depth))
        });
        let (prev, auth, depth): (Vec<EventId>, Vec<EventId>, i64) = ends.expect("the database reads");
        let mut event = json!({
            "type": kind, "sender": sender, "content": content, "room_id": room.id, "depth": depth,
            "origin_server_ts": self.hs.clock.now_ms(),
            "prev_events": references(&prev, room.version), "auth_events": references(&auth, room.version),
        });
        if let Some(state_key) = state_key {
            event["state_key"] = json!(state_key);
        }
        event.as_object_mut().map(std::mem::take).unwrap_or_default()
    }

    /// The event with its id, hash and the other server's signature, if it is an event at all.
    pub fn signed(&self, event: &Map<String, Value>, version: RoomVersion) -> Option<(String, Value)> {
        let event = sign_new_event(event.clone(), &name(PEER), &self.key, version).ok()?;
        Some((event.event_id().to_string(), Value::Object(event.to_object())))
    }
}

pub fn references(ids: &[EventId], version: RoomVersion) -> Value {
    if version.event_id_format == EventIdFormat::InEvent {
        ids.iter().map(|id| json!([id, { "sha256": "" }])).collect()
    } else {
        json!(ids)
    }
}

fn config() -> Config {
    let mut config = Config::for_name(name(OWN));
    config.durable = false;
    config.rate_limits = false;
    config.registration = Registration::Open;
    config.registration_secret = Some("secret".to_owned());
    config
}

/// The other server's key.
pub fn key() -> SigningKey {
    SigningKey::from_seed("ed25519:k", [7; 32]).expect("a key")
}

fn name(name: &str) -> ServerName {
    ServerName::parse(name).expect("a server name")
}

fn account(hs: &Homeserver, localpart: &str, password: Option<&str>) -> String {
    hs.accounts().register_user(localpart, password).expect("an account").1
}

/// Has the homeserver know the other server's key.
fn introduce(hs: &Homeserver, key: &SigningKey) {
    let now = hs.clock.now_ms();
    let until = now + 6 * 24 * 3_600_000;
    let mut statement = json!({
        "server_name": PEER, "valid_until_ts": until, "old_verify_keys": {},
        "verify_keys": { key.key_id(): { "key": key.public_base64() } },
    });
    sign_json(statement.as_object_mut().expect("an object"), &name(PEER), key);
    let stored = StoredKey {
        key_id: key.key_id().to_owned(),
        public_key: key.public_base64(),
        valid_until_ms: until,
        retired: false,
        stated_ms: now,
    };
    let statement = statement.to_string().into_bytes();
    let source = StatementSource { direct: true, stranger: false };
    let saved =
        hs.store.write(move |tx| tx.save_server_keys(&name(PEER), &[stored], &statement, now, source));
    saved.expect("the database writes");
}
