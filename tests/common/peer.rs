//! Another server that does exactly what a test tells it to: real TLS, real signatures, and any answer at all. With a
//! room of its own making to invite to, and to let others into.

use std::collections::BTreeMap;
use std::net::TcpListener;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, OnceLock};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use super::wait::{Gate, wait_until};
use arc_swap::ArcSwap;
use doorstep::clock::Clock;
use doorstep::config::TlsFiles;
use doorstep::internals::{
    Admission, BodyUse, Certificate, ConnectionLimits, ListenSpec, Outcome, Poll, Quota, Reply, Request,
    Server, Service,
};
use doorstep::internals::{CallError, Client, ClientSettings, PeerRequest};
use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::room_version::{RoomVersion, room_version};
use doorstep::protocol::signatures::sign::{self, SigningKey};
use doorstep::protocol::{EventId, Pdu, RoomId, ServerName, UserId, handshake};
use doorstep::testing::{TestUser, certificates, segment};
use serde_json::{Map, Value, json};

/// What every peer calls its key.
const KEY_VERSION: &str = "script";

/// A request that the peer was asked.
#[derive(Clone)]
pub struct Asked {
    /// The method.
    pub method: String,
    /// Path and query, as sent.
    pub target: String,
    /// The body, `null` if it is no JSON.
    pub body: Value,
}

type Answer = Arc<dyn Fn(&Asked) -> Reply + Send + Sync>;

struct Script {
    name: ServerName,
    key: SigningKey,
    /// The key since it began anew.
    next_key: OnceLock<SigningKey>,
    hides_keys: AtomicBool,
    answers: Mutex<Vec<(String, Answer)>>,
    asked: Mutex<Vec<Asked>>,
}

/// The peer.
pub struct Peer {
    script: Arc<Script>,
    client: Client,
    signer: Arc<ArcSwap<SigningKey>>,
    /// It serves for as long as it is there.
    _server: Server,
}

impl Peer {
    /// Starts a peer that knows nothing but its own keys.
    pub fn start() -> Self {
        let listener = TcpListener::bind(("127.0.0.1", 0)).expect("loopback has a free port");
        let files = certificates();
        let tls = TlsFiles { cert: files.cert.clone(), key: files.key.clone() };
        Self::start_on(listener, tls, files.ca.clone())
    }

    /// The same on a socket of the caller's, with a certificate of an authority that both sides trust.
    pub fn start_on(listener: TcpListener, tls: TlsFiles, ca: PathBuf) -> Self {
        let port = listener.local_addr().expect("a bound socket has an address").port();
        // Not `localhost` like ours, so that a server ACL can tell them apart, which looks at no ports.
        let name = ServerName::parse(&format!("127.0.0.1:{port}")).expect("a server name");
        let mut seed = [7; 32];
        seed[..2].copy_from_slice(&port.to_be_bytes());
        let key = || SigningKey::generate(seed, KEY_VERSION);
        let script = Arc::new(Script {
            name: name.clone(),
            key: key(),
            next_key: OnceLock::new(),
            hides_keys: AtomicBool::new(false),
            answers: Mutex::default(),
            asked: Mutex::default(),
        });
        let listen = ListenSpec::bound(listener, Some(Certificate::Files(tls))).expect("a bound socket");
        let server =
            Server::serve(script.clone(), ConnectionLimits::default(), &[listen]).expect("the peer listens");
        let settings = ClientSettings {
            server_name: name,
            trust_ca: vec![ca],
            allow_private_addresses: true,
            names: Default::default(),
            clock: Clock::new(),
        };
        let signer = Arc::new(ArcSwap::from_pointee(key()));
        let client = Client::new(settings, signer.clone()).expect("a client");
        Self { script, client, signer, _server: server }
    }

    /// Its name.
    pub fn name(&self) -> &ServerName {
        &self.script.name
    }

    /// A user of it.
    pub fn user(&self, localpart: &str) -> UserId {
        UserId::parse(&format!("@{localpart}:{}", self.name())).expect("a user id")
    }

    /// From now on requests whose path has this part are answered so. What was said last counts first.
    pub fn answer(&self, part: &str, answer: impl Fn(&Asked) -> Reply + Send + Sync + 'static) {
        self.script
            .answers
            .lock()
            .expect("no test panics here")
            .insert(0, (part.to_owned(), Arc::new(answer)));
    }

    /// What was said last of requests with this part counts no more.
    pub fn forget_answer(&self, part: &str) {
        let mut answers = self.script.answers.lock().expect("no test panics here");
        let last = answers.iter().position(|(of, _)| of == part).expect("something was said of them");
        answers.remove(last);
    }

    /// The same with one JSON body.
    pub fn answer_json(&self, part: &str, status: u16, body: Value) {
        self.answer(part, move |_| Reply::json_status(status, &body));
    }

    /// The same once a gate is open; who asks before has to wait.
    pub fn answer_behind(&self, gate: &Gate, part: &str, status: u16, body: Value) {
        let gate = gate.clone();
        self.answer(part, move |_| {
            gate.pass();
            Reply::json_status(status, &body)
        });
    }

    /// From now on it lets a user into a room of its own, and takes what it is sent there.
    pub fn let_in(&self, room: &FakeRoom, user: &str) {
        self.answer_json("make_join", 200, room.template(user, "join"));
        self.answer_json("send_join", 200, room.join_answer());
        self.take_transactions();
    }

    /// From now on it takes whatever it is sent.
    pub fn take_transactions(&self) {
        self.answer_json("/send/", 200, json!({ "pdus": {} }));
    }

    /// From now on it takes a user's knock upon a room of its own.
    pub fn let_knock(&self, room: &FakeRoom, user: &str) {
        self.answer_json("make_knock", 200, room.template(user, "knock"));
        self.answer_json("send_knock", 200, json!({ "knock_room_state": room.shown() }));
    }

    /// From now on it takes a user's leave from a room of its own.
    pub fn let_leave(&self, room: &FakeRoom, user: &str) {
        self.answer_json("make_leave", 200, room.template(user, "leave"));
        self.answer_json("send_leave", 200, json!({}));
    }

    /// From now on it has another key, under the same id, as a server that lost all that it had. Once only.
    pub fn begin_anew(&self) {
        let key = || SigningKey::generate([8; 32], KEY_VERSION);
        assert!(self.script.next_key.set(key()).is_ok(), "it has begun anew before");
        self.signer.store(Arc::new(key()));
    }

    /// Whether it says its keys, or an internal error.
    pub fn hide_keys(&self, hide: bool) {
        self.script.hides_keys.store(hide, Ordering::SeqCst);
    }

    /// Everything that it was asked so far on paths with this part.
    pub fn asked(&self, part: &str) -> Vec<Asked> {
        let asked = self.script.asked.lock().expect("no test panics here");
        asked.iter().filter(|a| a.target.contains(part)).cloned().collect()
    }

    /// Waits until it was asked something on a path with this part.
    #[track_caller]
    pub fn wait_for(&self, part: &str) -> Asked {
        let mut found = None;
        wait_until(&format!("{} is asked for {part}", self.name()), || {
            found = self.asked(part).pop();
            found.is_some()
        });
        found.expect("just found")
    }

    /// Asks another server, signed; its status and body.
    pub fn ask(&self, server: &str, method: &str, path: &str, body: Option<&Value>) -> (u16, Value) {
        let answer = self.try_to_ask(server, method, path, body);
        answer.unwrap_or_else(|e| panic!("{method} {path} at {server}: {e}"))
    }

    /// The same where the other server may not be there.
    pub fn try_to_ask(
        &self,
        server: &str,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, Value), CallError> {
        let destination = ServerName::parse(server).expect("a server name");
        let body = body.map(|b| serde_json::to_vec(b).expect("JSON"));
        let request = PeerRequest {
            method,
            destination: &destination,
            path_and_query: path.to_owned(),
            body: body.as_deref(),
            timeout: Duration::from_secs(30),
            max_bytes: 64 << 20,
        };
        match self.client.request(request) {
            Ok(response) => Ok((response.status, serde_json::from_slice(&response.body).expect("JSON"))),
            Err(CallError::Refused(refusal)) => Ok((refusal.status, Value::Object(refusal.body))),
            Err(other) => Err(other),
        }
    }

    /// `GET` of another server, signed; its status, and its body as it is.
    pub fn ask_for_bytes(&self, server: &str, path: &str) -> (u16, Vec<u8>) {
        let destination = ServerName::parse(server).expect("a server name");
        let request = PeerRequest {
            method: "GET",
            destination: &destination,
            path_and_query: path.to_owned(),
            body: None,
            timeout: Duration::from_secs(60),
            max_bytes: 64 << 20,
        };
        match self.client.request(request) {
            Ok(response) => (response.status, response.body),
            Err(CallError::Refused(refusal)) => {
                (refusal.status, Value::Object(refusal.body).to_string().into())
            }
            Err(other) => panic!("{path} at {server}: {other}"),
        }
    }

    /// As [`Peer::ask`] with a body, of a server that may be dead: none if there is no answer.
    pub fn try_put(&self, server: &str, path: &str, body: &Value) -> Option<(u16, Value)> {
        let destination = ServerName::parse(server).expect("a server name");
        let body = serde_json::to_vec(body).expect("JSON");
        let request = PeerRequest {
            method: "PUT",
            destination: &destination,
            path_and_query: path.to_owned(),
            body: Some(&body),
            timeout: Duration::from_secs(10),
            max_bytes: 1 << 20,
        };
        match self.client.request(request) {
            Ok(response) => Some((response.status, serde_json::from_slice(&response.body).ok()?)),
            Err(CallError::Refused(refusal)) => Some((refusal.status, Value::Object(refusal.body))),
            Err(_) => None,
        }
    }

    /// Signs an event of its own.
    pub fn sign(&self, event: Map<String, Value>, version: RoomVersion) -> Pdu {
        handshake::sign_new_event(event, self.name(), self.script.key(), version).expect("an event")
    }

    /// Its key.
    pub fn signing_key(&self) -> &SigningKey {
        self.script.key()
    }

    /// From now on it is a notary, and says that these are the keys of a server, whose first signed that.
    pub fn vouch_for(&self, of: &ServerName, keys: &[&SigningKey]) {
        let verify_keys: Map<String, Value> =
            keys.iter().map(|key| (key.key_id().to_owned(), json!({ "key": key.public_base64() }))).collect();
        let statement = json!({
            "server_name": of, "valid_until_ts": now_ms() + 86_400_000, "old_verify_keys": {},
            "verify_keys": verify_keys,
        });
        let mut statement = statement.as_object().expect("an object").clone();
        sign::sign_json(&mut statement, of, keys[0]);
        self.sign_object(&mut statement);
        self.answer_json("/key/v2/query", 200, json!({ "server_keys": [statement] }));
    }

    /// Adds its signature to any object.
    pub fn sign_object(&self, object: &mut Map<String, Value>) {
        sign::sign_json(object, self.name(), self.script.key());
    }

    /// Adds its signature to somebody's event.
    pub fn countersign(&self, event: &Value, version: RoomVersion) -> Value {
        let mut object = event.as_object().expect("an event is an object").clone();
        sign::sign_event(&mut object, self.name(), self.script.key(), version);
        Value::Object(object)
    }

    /// `PUT /_matrix/federation/v1/{call}/{room}/{event}` with an event.
    pub fn put_event(
        &self,
        server: &str,
        call: &str,
        room: &RoomId,
        event: &Pdu,
        body: &Value,
    ) -> (u16, Value) {
        let id = segment(event.event_id().as_str());
        self.ask(
            server,
            "PUT",
            &format!("/_matrix/federation/{call}/{}/{id}", segment(room.as_str())),
            Some(body),
        )
    }

    /// Asks a server for a template and hands the event in: `kind` is `join`, `knock` or `leave`. The event, and what the
    /// server says of it.
    #[track_caller]
    pub fn hand_in(&self, server: &str, kind: &str, room: &str, user: &UserId) -> (Pdu, (u16, Value)) {
        let all = (1..=12).map(|version| format!("ver={version}")).collect::<Vec<_>>().join("&");
        let path =
            format!("/_matrix/federation/v1/make_{kind}/{}/{}?{all}", segment(room), segment(user.as_str()));
        let (status, made) = self.ask(server, "GET", &path, None);
        assert_eq!(status, 200, "make_{kind}: {made}");
        let version = made["room_version"].as_str().and_then(room_version);
        let mut event = made["event"].as_object().expect("a template is an object").clone();
        event.insert("origin_server_ts".into(), now_ms().into());
        let event = self.sign(event, version.expect("a known version"));
        let call = if kind == "knock" { "v1/send_knock".to_owned() } else { format!("v2/send_{kind}") };
        let body = Value::Object(event.to_object());
        let room = RoomId::parse(room).expect("a room id");
        let answer = self.put_event(server, &call, &room, &event, &body);
        (event, answer)
    }

    /// A transaction with these events.
    pub fn send_transaction(&self, server: &str, txn: &str, pdus: &[&Pdu]) -> (u16, Value) {
        self.try_to_send(server, txn, pdus).unwrap_or_else(|e| panic!("transaction {txn} to {server}: {e}"))
    }

    /// A transaction of nothing but ephemeral messages, which the other server takes.
    #[track_caller]
    pub fn send_edus(&self, server: &str, txn: &str, edus: &[Value]) {
        let body = json!({ "origin": self.name(), "origin_server_ts": now_ms(), "pdus": [], "edus": edus });
        let (status, answer) =
            self.ask(server, "PUT", &format!("/_matrix/federation/v1/send/{txn}"), Some(&body));
        assert_eq!(status, 200, "{answer}");
    }

    /// The same where the other server may not be there.
    pub fn try_to_send(&self, server: &str, txn: &str, pdus: &[&Pdu]) -> Result<(u16, Value), CallError> {
        let pdus: Vec<Value> = pdus.iter().map(|p| Value::Object(p.to_object())).collect();
        let body = json!({ "origin": self.name(), "origin_server_ts": now_ms(), "pdus": pdus, "edus": [] });
        self.try_to_ask(server, "PUT", &format!("/_matrix/federation/v1/send/{txn}"), Some(&body))
    }

    /// From now on it gives these events to whoever asks for missing ones, at most so many at a time, or for one event.
    pub fn serve_events(&self, events: &[Pdu], at_once: usize) {
        let by_id: BTreeMap<String, Pdu> =
            events.iter().map(|event| (event.event_id().to_string(), event.clone())).collect();
        let by_id = Arc::new(by_id);
        self.answer("/get_missing_events/", {
            let by_id = by_id.clone();
            move |asked| {
                let ids = |key: &str| -> Vec<String> {
                    serde_json::from_value(asked.body[key].clone()).expect("event ids")
                };
                let mut seen: Vec<String> = ids("earliest_events");
                let (mut next, mut found) = (ids("latest_events"), Vec::new());
                while let Some(id) = next.pop() {
                    let prev = by_id.get(&id).map(Pdu::prev_events).unwrap_or_default();
                    for id in prev.iter().map(ToString::to_string) {
                        if let Some(event) = by_id.get(&id)
                            && found.len() < at_once
                            && !seen.contains(&id)
                        {
                            found.push(Value::Object(event.to_object()));
                            seen.push(id.clone());
                            next.push(id);
                        }
                    }
                }
                found.reverse();
                Reply::json(&json!({ "events": found }))
            }
        });
        let name = self.name().clone();
        self.answer("/event/", move |asked| {
            let found = by_id.iter().find(|(id, _)| asked.target.ends_with(&segment(id)));
            match found {
                Some((_, event)) => Reply::json(
                    &json!({ "origin": name, "origin_server_ts": 0, "pdus": [event.to_object()] }),
                ),
                None => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
            }
        });
    }
}

impl Service for Script {
    fn admit(self: Arc<Self>, _head: &mut Request) -> Result<Admission, Reply> {
        Ok(Admission {
            body: BodyUse::Whole(64 << 20),
            quota: Quota::Uncounted,
            call: Box::new(move |request, _| self.answer(request)),
        })
    }

    fn wait(&self, _user: &UserId, _after: i64, _until: Instant) -> Option<Poll> {
        Some(Poll::Last)
    }

    fn interrupt(&self) {}
}

impl Script {
    fn answer(&self, request: &Request) -> Outcome {
        if request.path() == "/_matrix/key/v2/server" && !self.hides_keys.load(Ordering::SeqCst) {
            return Outcome::Reply(Reply::json(&self.own_keys()));
        }
        let asked = Asked {
            method: request.method().to_string(),
            target: request.target().to_owned(),
            body: serde_json::from_slice(request.body()).unwrap_or_default(),
        };
        self.asked.lock().expect("no test panics here").push(asked.clone());
        let answers = self.answers.lock().expect("no test panics here").clone();
        let answer = answers.into_iter().find(|(part, _)| asked.target.contains(part.as_str()));
        Outcome::Reply(answer.map_or_else(
            || Reply::json_status(404, &json!({ "errcode": "M_UNRECOGNIZED", "error": "not in the script" })),
            |(_, answer)| answer(&asked),
        ))
    }

    fn key(&self) -> &SigningKey {
        self.next_key.get().unwrap_or(&self.key)
    }

    fn own_keys(&self) -> Value {
        let mut keys = json!({
            "server_name": self.name, "valid_until_ts": now_ms() + 86_400_000, "old_verify_keys": {},
            "verify_keys": { self.key().key_id(): { "key": self.key().public_base64() } },
        });
        sign::sign_json(keys.as_object_mut().expect("an object"), &self.name, self.key());
        keys
    }
}

/// Milliseconds since the epoch.
#[allow(clippy::disallowed_methods, reason = "a test's own clock")]
pub fn now_ms() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("after 1970");
    i64::try_from(now.as_millis()).expect("before the year 292 million")
}

/// A room that lives on a scripted peer.
#[derive(Clone)]
pub struct FakeRoom {
    /// Its id.
    pub id: RoomId,
    /// Its version.
    pub version: RoomVersion,
    /// Who made it.
    pub creator: UserId,
    /// Its state, by type and state key.
    pub state: BTreeMap<(String, String), Pdu>,
    /// Its last event.
    pub last: EventId,
    depth: i64,
}

impl FakeRoom {
    /// A room with its first events and this join rule.
    pub fn new(peer: &Peer, version: &str, join_rule: &str) -> Self {
        let version = room_version(version).expect("a known version");
        let creator = peer.user("creator");
        let mut create = json!({
            "type": "m.room.create", "state_key": "", "sender": creator, "origin_server_ts": now_ms(), "depth": 1,
            "content": { "room_version": version.id }, "prev_events": [], "auth_events": [],
        });
        if version.creator_in_content {
            create["content"]["creator"] = json!(creator);
        }
        if !version.room_id_is_create_hash {
            create["room_id"] = json!(format!("!fake{}:{}", now_ms(), peer.name()));
        }
        let create = peer.sign(create.as_object().expect("an object").clone(), version);
        let mut room = Self {
            id: create.room_id().clone(),
            version,
            creator: creator.clone(),
            state: BTreeMap::new(),
            last: create.event_id().clone(),
            depth: 1,
        };
        room.state.insert(("m.room.create".into(), String::new()), create);
        room.add(peer, "m.room.member", creator.as_str(), &creator, json!({ "membership": "join" }));
        room.add(peer, "m.room.power_levels", "", &creator, json!({ "users": if version.privileged_creators { json!({}) } else { json!({ creator.as_str(): 100 }) } }));
        room.add(peer, "m.room.join_rules", "", &creator, json!({ "join_rule": join_rule }));
        room.add(peer, "m.room.name", "", &creator, json!({ "name": "fake" }));
        room
    }

    /// A public room of the peer's, which a user of another server has joined. The join is its end.
    pub fn joined_by(peer: &Peer, version: &str, user: &TestUser) -> Self {
        let mut room = Self::new(peer, version, "public");
        room.join(peer, user);
        room
    }

    /// A room of another server's, which a user of the peer's has joined. The join is its end.
    #[track_caller]
    pub fn entered(peer: &Peer, server: &str, room: &str, user: &UserId) -> Self {
        let (join, (status, said)) = peer.hand_in(server, "join", room, user);
        assert_eq!(status, 200, "{said}");
        let mut entered = Self {
            id: join.room_id().clone(),
            version: join.version(),
            creator: user.clone(),
            state: BTreeMap::new(),
            last: join.event_id().clone(),
            depth: 0,
        };
        for event in said["state"].as_array().into_iter().flatten() {
            entered.take(entered.read(event));
        }
        entered.take(join);
        entered
    }

    /// The user of another server joins it, with which it ends.
    pub fn join(&mut self, peer: &Peer, user: &TestUser) {
        peer.let_in(self, user.id());
        user.join_via(self.id.as_str(), &[peer.name().as_str()]);
        let join = self.read(&peer.wait_for("send_join").body);
        assert_eq!(join.state_key(), Some(user.id()));
        self.take(join);
    }

    /// An event at the room's end, signed by the peer, which does not become part of the room.
    pub fn draft(&self, peer: &Peer, kind: &str, state_key: &str, sender: &UserId, content: Value) -> Pdu {
        let mut event = self.unsigned(kind, state_key, sender, content);
        event.insert("origin".into(), json!(peer.name()));
        peer.sign(event, self.version)
    }

    /// A state event at the room's end.
    pub fn add(&mut self, peer: &Peer, kind: &str, state_key: &str, sender: &UserId, content: Value) -> Pdu {
        let event = self.draft(peer, kind, state_key, sender, content);
        self.take(event.clone());
        event
    }

    /// A message of the creator's at the room's end, which it becomes.
    pub fn say(&mut self, peer: &Peer, text: &str) -> Pdu {
        let mut event = self.unsigned("m.room.message", "", &self.creator, json!({ "body": text }));
        event.remove("state_key");
        let event = peer.sign(event, self.version);
        self.last = event.event_id().clone();
        self.depth += 1;
        event
    }

    /// Makes an event the room's end, and part of its state.
    pub fn take(&mut self, event: Pdu) {
        self.last = event.event_id().clone();
        self.depth = event.depth().max(self.depth + 1);
        let key = (event.event_type().to_owned(), event.state_key().unwrap_or_default().to_owned());
        self.state.insert(key, event);
    }

    /// An event at the room's end, as it is before anybody signs it.
    pub fn unsigned(
        &self,
        kind: &str,
        state_key: &str,
        sender: &UserId,
        content: Value,
    ) -> Map<String, Value> {
        let content = content.as_object().expect("content is an object").clone();
        let wanted = auth_types(kind, sender.as_str(), Some(state_key), &content, self.version);
        let auth: Vec<&EventId> =
            wanted.iter().filter_map(|key| self.state.get(key)).map(Pdu::event_id).collect();
        let event = json!({
            "type": kind, "state_key": state_key, "sender": sender, "content": content, "room_id": self.id,
            "origin_server_ts": now_ms(), "depth": self.depth + 1, "prev_events": [self.last], "auth_events": auth,
        });
        event.as_object().expect("an object").clone()
    }

    /// A member event of somebody's about somebody at the room's end, signed by any peer, which does not become part of
    /// the room.
    pub fn membership(&self, signer: &Peer, sender: &UserId, of: &str, membership: &str) -> Pdu {
        self.draft(signer, "m.room.member", of, sender, json!({ "membership": membership }))
    }

    /// Invites a user of a server, which takes the invite. It becomes part of the room.
    #[track_caller]
    pub fn invite(&mut self, peer: &Peer, server: &str, user: &str) -> Pdu {
        let invite = self.membership(peer, &self.creator, user, "invite");
        let (status, answer) =
            peer.put_event(server, "v2/invite", &self.id, &invite, &self.invite_body(&invite));
        assert_eq!(status, 200, "{answer}");
        self.take(invite.clone());
        invite
    }

    /// An event of this room as it stands in a request or an answer.
    pub fn read(&self, event: &Value) -> Pdu {
        let event = event.as_object().expect("an event is an object").clone();
        Pdu::from_object(event, self.version).expect("an event")
    }

    /// The answer to `make_join`, `make_knock`, `make_leave`.
    pub fn template(&self, user: &str, membership: &str) -> Value {
        let user = UserId::parse(user).expect("a user id");
        let event = self.unsigned("m.room.member", user.as_str(), &user, json!({ "membership": membership }));
        json!({ "room_version": self.version.id, "event": event })
    }

    /// The answer to `send_join`.
    pub fn join_answer(&self) -> Value {
        let state: Vec<Value> = self.state.values().map(|p| Value::Object(p.to_object())).collect();
        json!({ "state": state, "auth_chain": state, "members_omitted": false })
    }

    /// `invite_room_state` and `knock_room_state`.
    pub fn shown(&self) -> Value {
        let shown = ["m.room.create", "m.room.name", "m.room.join_rules"];
        let events = shown.iter().filter_map(|kind| self.state.get(&((*kind).to_owned(), String::new())));
        events.map(|p| Value::Object(p.to_object())).collect()
    }

    /// The body of a version 2 invite.
    pub fn invite_body(&self, invite: &Pdu) -> Value {
        json!({ "room_version": self.version.id, "event": invite.to_object(), "invite_room_state": self.shown() })
    }
}
