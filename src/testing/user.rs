//! A client for tests: one account on a `TestServer`, speaking the client-server API over a real socket.

use std::borrow::Cow;
use std::collections::{HashMap, VecDeque};
use std::io::Write;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use serde_json::{Value, json};

use super::faults::{Faults, LOOKING, SeenRequest};
use super::patience::{Patience, patience};
use crate::locks::lock;
use crate::protocol::json::tree;
use crate::protocol::media::web_url::percent_encoded;

/// The longest that a server takes for an answer, and a wait for news in it.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// What is written and read at a time.
const BUFFER_BYTES: usize = 16 << 10;

/// A logged-in account. Methods panic with the server's answer in the message, at the line of the test that called them,
/// when it is not what a test would want; `request` gives the bare status and body for tests about refusals.
pub struct TestUser {
    agent: ureq::Agent,
    url: String,
    user_id: String,
    token: String,
    since: Mutex<Option<String>>,
    /// Messages of others that `/sync` told together with one that was given, by room.
    heard: Mutex<HashMap<String, VecDeque<String>>>,
    patience: Patience,
    /// What its server was asked, where that is a server of the test.
    faults: Option<Arc<Faults>>,
}

/// What a request is made for.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Purpose {
    /// The test wants it made.
    Acting,
    /// It looks whether something has come: faults and records of the test are not meant for it.
    Looking,
}

/// Percent-encodes one path segment.
pub fn segment(text: &str) -> String {
    percent_encoded(text)
}

/// An agent for plain HTTP on loopback that hands every status to the caller.
pub(super) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(patience(ANSWER_TIMEOUT)))
        // A tenth of the usual, for each of a hundred users.
        .input_buffer_size(BUFFER_BYTES)
        .output_buffer_size(BUFFER_BYTES)
        .max_redirects(0)
        .proxy(None)
        .build()
        .into()
}

impl TestUser {
    /// An account that is logged in already, on any homeserver at this base URL.
    ///
    /// ```
    /// use doorstep::testing::TestUser;
    ///
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// let same = TestUser::new(server.url(), alice.id(), alice.token());
    /// assert_eq!(same.device_id(), alice.device_id());
    /// ```
    #[track_caller]
    pub fn new(url: &str, user_id: &str, token: &str) -> Self {
        Self {
            agent: agent(),
            url: url.to_owned(),
            user_id: user_id.to_owned(),
            token: token.to_owned(),
            since: Mutex::default(),
            heard: Mutex::default(),
            patience: Patience::default(),
            faults: None,
        }
    }

    /// One that has its server's patience, and knows what that was asked.
    pub(super) fn of(self, patience: &Patience, faults: &Arc<Faults>) -> Self {
        Self { patience: patience.clone(), faults: Some(Arc::clone(faults)), ..self }
    }

    /// Registers an account with open registration on any homeserver at this base URL. The password is the localpart.
    ///
    /// ```
    /// use doorstep::testing::TestUser;
    ///
    /// let server = doorstep::TestServer::start();
    /// let alice = TestUser::register(server.url(), "alice");
    /// assert_eq!(alice.id(), format!("@alice:{}", server.name()));
    /// ```
    ///
    /// # Panics
    /// If the server does not give out the account.
    #[track_caller]
    pub fn register(url: &str, localpart: &str) -> Self {
        let mut user = Self::new(url, "(nobody yet)", "");
        let body =
            json!({ "username": localpart, "password": localpart, "auth": { "type": "m.login.dummy" } });
        let answer = user.post("/_matrix/client/v3/register", body);
        user.user_id = text(&answer, "user_id");
        user.token = text(&answer, "access_token");
        user
    }

    fn since(&self) -> MutexGuard<'_, Option<String>> {
        lock(&self.since)
    }

    pub(super) fn has_synced(&self) -> bool {
        self.since().is_some()
    }

    pub(super) fn heard(&self) -> MutexGuard<'_, HashMap<String, VecDeque<String>>> {
        lock(&self.heard)
    }

    #[track_caller]
    pub(super) fn patience(&self) -> Duration {
        self.patience.get()
    }

    pub(super) fn requests_of_server(&self) -> Vec<SeenRequest> {
        self.faults.as_ref().map(|faults| faults.requests()).unwrap_or_default()
    }

    /// The full user id.
    pub fn id(&self) -> &str {
        &self.user_id
    }

    /// The access token.
    pub fn token(&self) -> &str {
        &self.token
    }

    /// The base URL of this user's server, which other clients log in to.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// One request as this user: `path` begins with `/_matrix`; the status and the JSON body come back.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// let (status, answer) = alice.request("GET", "/_matrix/client/v3/rooms/!none:a.example/state", None);
    /// assert_eq!((status, answer["errcode"].as_str()), (403, Some("M_FORBIDDEN")));
    /// ```
    ///
    /// # Panics
    /// If there is no answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        self.ask(Purpose::Acting, method, path, body)
    }

    #[track_caller]
    pub(super) fn ask(
        &self,
        purpose: Purpose,
        method: &str,
        path: &str,
        body: Option<Value>,
    ) -> (u16, Value) {
        match self.answer(purpose, method, path, body.as_ref()) {
            Ok((status, text)) => {
                let answer = tree(&text).unwrap_or(Value::String(text));
                record(method, path, body.as_ref(), status, &answer);
                (status, answer)
            }
            Err(e) => panic!("{} {method} {path}: {e}", self.user_id),
        }
    }

    fn answer(
        &self,
        purpose: Purpose,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> Result<(u16, String), ureq::Error> {
        let mut request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        if !self.token.is_empty() {
            request = request.header("authorization", format!("Bearer {}", self.token));
        }
        if purpose == Purpose::Looking {
            request = request.header(LOOKING, "yes");
        }
        let mut answer = match body {
            Some(body) => self.agent.run(request.body(body.to_string())?)?,
            None if matches!(method, "GET" | "DELETE" | "OPTIONS" | "HEAD") => {
                self.agent.run(request.body(())?)?
            }
            None => self.agent.run(request.body("{}".to_owned())?)?,
        };
        let status = answer.status().as_u16();
        Ok((status, answer.body_mut().with_config().limit(256 << 20).read_to_string()?))
    }

    #[track_caller]
    fn expect(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.request(method, path, body);
        if status != 200 {
            let what = format!("{} {method} {path}: {status} {answer}", self.user_id);
            self.fail(&what, room_in(path).as_deref());
        }
        answer
    }

    /// `GET`; the body of a 200.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// assert_eq!(bob.get("/_matrix/client/v3/account/whoami")["user_id"], bob.id());
    /// ```
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.expect("GET", path, None)
    }

    /// `POST`; the body of a 200.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// alice.post("/_matrix/client/v3/user_directory/search", serde_json::json!({ "search_term": "bob" }));
    /// ```
    #[track_caller]
    pub fn post(&self, path: &str, body: Value) -> Value {
        self.expect("POST", path, Some(body))
    }

    /// `PUT`; the body of a 200.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let name = format!("/_matrix/client/v3/profile/{}/displayname", alice.id());
    /// alice.put(&name, serde_json::json!({ "displayname": "Alice" }));
    /// ```
    #[track_caller]
    pub fn put(&self, path: &str, body: Value) -> Value {
        self.expect("PUT", path, Some(body))
    }

    /// A public room of the server's default version; its id.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// bob.join(&alice.create_room());
    /// ```
    #[track_caller]
    pub fn create_room(&self) -> String {
        self.create_room_with(json!({ "preset": "public_chat" }))
    }

    /// A room made with these `createRoom` options; its id.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room_with(serde_json::json!({ "preset": "private_chat", "invite": [bob.id()] }));
    /// assert_eq!(bob.invites(), [room]);
    /// ```
    #[track_caller]
    pub fn create_room_with(&self, options: Value) -> String {
        text(&self.post("/_matrix/client/v3/createRoom", options), "room_id")
    }

    /// A public room of this user's with these members, of whatever server, and these messages of this user's in it, in
    /// their order; its id. When it is given, every member sees all of it.
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// let (alice, bob, carol) = (here.user("alice"), here.user("bob"), there.user("carol"));
    /// let room = alice.room_with(&[&bob, &carol], &["good morning", "is anybody here?"]);
    /// assert_eq!(carol.events(&room).last().unwrap()["content"]["body"], "is anybody here?");
    /// ```
    #[track_caller]
    pub fn room_with(&self, members: &[&Self], messages: &[&str]) -> String {
        let room = self.create_room();
        let server = self.user_id.split_once(':').map_or("", |(_, server)| server);
        for member in members {
            member.join_via(&room, &[server]);
            self.wait_for_membership(&room, &member.user_id, "join");
        }
        let mut last = String::new();
        for message in messages {
            last = self.send(&room, message);
        }
        for member in members {
            for other in members {
                member.wait_for_membership(&room, &other.user_id, "join");
            }
            if !last.is_empty() {
                member.wait_for(&room, |event| event["event_id"] == last.as_str());
            }
        }
        room
    }

    /// Joins a room by id or alias, through these servers if this one is not in it; the room's id.
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// let room = here.user("alice").create_room();
    /// there.user("bob").join_via(&room, &[here.name()]);
    /// ```
    #[track_caller]
    pub fn join_via(&self, room: &str, via: &[&str]) -> String {
        let path = format!("/_matrix/client/v3/join/{}{}", segment(room), via_query(via));
        text(&self.post(&path, json!({})), "room_id")
    }

    /// Joins a room that this user's server knows or was invited to.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// assert_eq!(bob.join(&room), room);
    /// ```
    #[track_caller]
    pub fn join(&self, room: &str) -> String {
        self.join_via(room, &[])
    }

    /// Knocks on a room through these servers.
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// let (alice, bob) = (here.user("alice"), there.user("bob"));
    /// let room = alice.create_room();
    /// alice.set_state(&room, "m.room.join_rules", "", serde_json::json!({ "join_rule": "knock" }));
    /// bob.knock_via(&room, &[here.name()]);
    /// alice.wait_for_membership(&room, bob.id(), "knock");
    /// ```
    #[track_caller]
    pub fn knock_via(&self, room: &str, via: &[&str]) -> String {
        let path = format!("/_matrix/client/v3/knock/{}{}", segment(room), via_query(via));
        text(&self.post(&path, json!({})), "room_id")
    }

    /// Invites a user, kicks, bans, unbans: `POST /rooms/{room}/{verb}` with a target.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &[]);
    /// alice.act_on("ban", &room, bob.id());
    /// assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("ban"));
    /// ```
    #[track_caller]
    pub fn act_on(&self, verb: &str, room: &str, target: &str) {
        self.post(&room_path(room, verb), json!({ "user_id": target }));
    }

    /// Invites a user.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// alice.invite(&room, bob.id());
    /// assert_eq!(bob.invites(), [room]);
    /// ```
    #[track_caller]
    pub fn invite(&self, room: &str, target: &str) {
        self.act_on("invite", room, target);
    }

    /// Leaves a room, rejects an invite or withdraws a knock.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &[]);
    /// bob.leave(&room);
    /// assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("leave"));
    /// ```
    #[track_caller]
    pub fn leave(&self, room: &str) {
        self.post(&room_path(room, "leave"), json!({}));
    }

    /// Sends a text message; its event id.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &[]);
    /// let event_id = bob.send(&room, "hello");
    /// alice.wait_for(&room, |event| event["event_id"] == event_id.as_str());
    /// ```
    #[track_caller]
    pub fn send(&self, room: &str, body: &str) -> String {
        self.send_event(room, "m.room.message", json!({ "msgtype": "m.text", "body": body }))
    }

    /// Sends an event that is no state; its event id.
    ///
    /// ```
    /// use serde_json::json;
    ///
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// let room = alice.create_room();
    /// let hello = alice.send(&room, "hello");
    /// let thumb = json!({ "rel_type": "m.annotation", "event_id": hello, "key": "👍" });
    /// alice.send_event(&room, "m.reaction", json!({ "m.relates_to": thumb }));
    /// ```
    #[track_caller]
    pub fn send_event(&self, room: &str, event_type: &str, content: Value) -> String {
        let path = room_path(room, &format!("send/{}/{}", segment(event_type), crate::random::token()));
        text(&self.put(&path, content), "event_id")
    }

    /// Sets a state event; its event id.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// alice.set_state(&room, "m.room.topic", "", serde_json::json!({ "topic": "doors" }));
    /// assert_eq!(alice.state(&room, "m.room.topic", "").unwrap()["topic"], "doors");
    /// ```
    #[track_caller]
    pub fn set_state(&self, room: &str, kind: &str, state_key: &str, content: Value) -> String {
        let path = room_path(room, &format!("state/{}/{}", segment(kind), segment(state_key)));
        text(&self.put(&path, content), "event_id")
    }

    /// The content of a current state event, if there is one.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// assert!(alice.state(&room, "m.room.create", "").is_some());
    /// assert!(alice.state(&room, "m.room.topic", "").is_none());
    /// ```
    #[track_caller]
    pub fn state(&self, room: &str, kind: &str, state_key: &str) -> Option<Value> {
        let path = room_path(room, &format!("state/{}/{}", segment(kind), segment(state_key)));
        let (status, content) = self.request("GET", &path, None);
        (status == 200).then_some(content)
    }

    /// A user's membership as this user's server sees it, for example `join`.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &[]);
    /// assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("join"));
    /// ```
    #[track_caller]
    pub fn membership_of(&self, room: &str, user: &str) -> Option<String> {
        let content = self.state(room, "m.room.member", user)?;
        content["membership"].as_str().map(str::to_owned)
    }

    /// One `/sync` from where the last one ended, waiting up to `timeout`.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// let answer = alice.sync(std::time::Duration::ZERO);
    /// assert!(answer["rooms"]["join"].get(&room).is_some());
    /// ```
    #[track_caller]
    pub fn sync(&self, timeout: Duration) -> Value {
        self.sync_with(timeout, "")
    }

    /// The same with a filter, unless that is empty.
    #[track_caller]
    pub(super) fn sync_with(&self, timeout: Duration, filter: &str) -> Value {
        let mut path = format!("/_matrix/client/v3/sync?timeout={}", timeout.as_millis());
        for (name, value) in [("since", self.since().as_deref().unwrap_or_default()), ("filter", filter)] {
            if !value.is_empty() {
                path = format!("{path}&{name}={}", segment(value));
            }
        }
        let answer = self.get(&path);
        *self.since() = Some(text(&answer, "next_batch"));
        answer
    }

    /// A `/sync` from the beginning, which forgets where the last one ended.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// for _ in 0..2 {
    ///     assert!(alice.initial_sync()["rooms"]["join"].get(&room).is_some());
    /// }
    /// ```
    #[track_caller]
    pub fn initial_sync(&self) -> Value {
        *self.since() = None;
        self.heard().clear();
        self.sync(Duration::ZERO)
    }
}

/// Appends an exchange as a line of JSON to the file that `DOORSTEP_EXCHANGES` names, if it names one: for checking
/// what the tests saw against a description of the API.
fn record(method: &str, path: &str, sent: Option<&Value>, status: u16, answer: &Value) {
    let Some(file) = std::env::var_os("DOORSTEP_EXCHANGES") else { return };
    let line = json!({
        "method": method, "path": path, "status": status, "request_body": sent, "response_body": answer,
    });
    let file = std::fs::OpenOptions::new().create(true).append(true).open(&file);
    // One write a line, so that the lines of parallel tests do not mix.
    let written = file.and_then(|mut file| file.write_all(format!("{line}\n").as_bytes()));
    written.unwrap_or_else(|e| panic!("DOORSTEP_EXCHANGES: {e}"));
}

pub(super) fn room_path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", segment(room))
}

fn via_query(via: &[&str]) -> String {
    let pairs: Vec<String> =
        via.iter().map(|v| format!("via={}&server_name={}", segment(v), segment(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

/// The room that a path is about.
fn room_in(path: &str) -> Option<String> {
    let room = path.split("/rooms/").nth(1)?.split(['/', '?']).next()?;
    crate::http::decode_segment(room).ok().map(Cow::into_owned)
}

#[track_caller]
pub(super) fn text(value: &Value, key: &str) -> String {
    match value[key].as_str() {
        Some(text) => text.to_owned(),
        None => panic!("no text {key:?} in {value}"),
    }
}
