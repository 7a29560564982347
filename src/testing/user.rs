//! A client for tests: one account on a `TestServer`, speaking the client-server API over a real socket.

use std::io::Write;
use std::sync::Mutex;
use std::time::Duration;

use crate::locks::lock;
use crate::protocol::json::tree;
use serde_json::{Value, json};

/// How long `TestUser` waits for something to show up in `/sync` before it panics.
const REPLY_TIMEOUT: Duration = Duration::from_secs(20);

/// A logged-in account. Methods panic with the server's answer in the message when it is not what a test would
/// want; `request` gives the bare status and body for tests about refusals.
pub struct TestUser {
    agent: ureq::Agent,
    url: String,
    user_id: String,
    token: String,
    since: Mutex<Option<String>>,
}

/// Percent-encodes one path segment.
pub fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => out.push(byte.into()),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

/// An agent for plain HTTP on loopback that hands every status to the caller.
pub(super) fn agent() -> ureq::Agent {
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .timeout_global(Some(Duration::from_secs(60)))
        .max_redirects(0)
        .proxy(None)
        .build()
        .into()
}

impl TestUser {
    /// An account that is logged in already.
    pub fn new(url: &str, user_id: &str, token: &str) -> Self {
        let (url, user_id, token) = (url.to_owned(), user_id.to_owned(), token.to_owned());
        Self { agent: agent(), url, user_id, token, since: Mutex::new(None) }
    }

    /// Registers an account with open registration on any homeserver at this base URL.
    ///
    /// # Panics
    /// If the server does not give out the account.
    pub fn register(url: &str, localpart: &str) -> Self {
        let mut user = Self::new(url, "(nobody yet)", "");
        let body =
            json!({ "username": localpart, "password": localpart, "auth": { "type": "m.login.dummy" } });
        let answer = user.post("/_matrix/client/v3/register", body);
        user.user_id = text(&answer, "user_id");
        user.token = text(&answer, "access_token");
        user
    }

    fn since(&self) -> std::sync::MutexGuard<'_, Option<String>> {
        lock(&self.since)
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
    pub fn request(&self, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
        let request = ureq::http::Request::builder().method(method).uri(format!("{}{path}", self.url));
        let request = if self.token.is_empty() {
            request
        } else {
            request.header("authorization", format!("Bearer {}", self.token))
        };
        let sent = body.clone();
        let answer = match body {
            Some(body) => self.agent.run(request.body(body.to_string()).expect("a request of a test")),
            None if matches!(method, "GET" | "DELETE" | "OPTIONS" | "HEAD") => {
                self.agent.run(request.body(()).expect("a request of a test"))
            }
            None => self.agent.run(request.body("{}".to_owned()).expect("a request of a test")),
        };
        let mut answer = answer.unwrap_or_else(|e| panic!("{method} {path}: {e}"));
        let status = answer.status().as_u16();
        let text = answer.body_mut().with_config().limit(256 << 20).read_to_string();
        let text = text.unwrap_or_else(|e| panic!("{method} {path}: {status}, then {e}"));
        let answer = tree(&text).unwrap_or(Value::String(text));
        record(method, path, sent.as_ref(), status, &answer);
        (status, answer)
    }

    fn expect(&self, method: &str, path: &str, body: Option<Value>) -> Value {
        let (status, answer) = self.request(method, path, body);
        assert!(status == 200, "{} {method} {path}: {status} {answer}", self.user_id);
        answer
    }

    /// `GET`; the body of a 200.
    #[track_caller]
    pub fn get(&self, path: &str) -> Value {
        self.expect("GET", path, None)
    }

    /// `POST`; the body of a 200.
    #[track_caller]
    pub fn post(&self, path: &str, body: Value) -> Value {
        self.expect("POST", path, Some(body))
    }

    /// `PUT`; the body of a 200.
    #[track_caller]
    pub fn put(&self, path: &str, body: Value) -> Value {
        self.expect("PUT", path, Some(body))
    }

    /// A public room of the server's default version; its id.
    #[track_caller]
    pub fn create_room(&self) -> String {
        self.create_room_with(json!({ "preset": "public_chat" }))
    }

    /// A room made with these `createRoom` options; its id.
    #[track_caller]
    pub fn create_room_with(&self, options: Value) -> String {
        text(&self.post("/_matrix/client/v3/createRoom", options), "room_id")
    }

    /// Joins a room by id or alias, through these servers if this one is not in it; the room's id.
    #[track_caller]
    pub fn join_via(&self, room: &str, via: &[&str]) -> String {
        let path = format!("/_matrix/client/v3/join/{}{}", segment(room), via_query(via));
        text(&self.post(&path, json!({})), "room_id")
    }

    /// Joins a room that this user's server knows or was invited to.
    #[track_caller]
    pub fn join(&self, room: &str) -> String {
        self.join_via(room, &[])
    }

    /// Knocks on a room through these servers.
    #[track_caller]
    pub fn knock_via(&self, room: &str, via: &[&str]) -> String {
        let path = format!("/_matrix/client/v3/knock/{}{}", segment(room), via_query(via));
        text(&self.post(&path, json!({})), "room_id")
    }

    /// Invites a user, kicks, bans, unbans: `POST /rooms/{room}/{verb}` with a target.
    #[track_caller]
    pub fn act_on(&self, verb: &str, room: &str, target: &str) {
        self.post(&room_path(room, verb), json!({ "user_id": target }));
    }

    /// Invites a user.
    #[track_caller]
    pub fn invite(&self, room: &str, target: &str) {
        self.act_on("invite", room, target);
    }

    /// Leaves a room, rejects an invite or withdraws a knock.
    #[track_caller]
    pub fn leave(&self, room: &str) {
        self.post(&room_path(room, "leave"), json!({}));
    }

    /// Sends a text message; its event id.
    #[track_caller]
    pub fn send(&self, room: &str, body: &str) -> String {
        let path = room_path(room, &format!("send/m.room.message/{}", crate::random::token()));
        text(&self.put(&path, json!({ "msgtype": "m.text", "body": body })), "event_id")
    }

    /// Sets a state event; its event id.
    #[track_caller]
    pub fn set_state(&self, room: &str, kind: &str, state_key: &str, content: Value) -> String {
        let path = room_path(room, &format!("state/{}/{}", segment(kind), segment(state_key)));
        text(&self.put(&path, content), "event_id")
    }

    /// The content of a current state event, if there is one.
    pub fn state(&self, room: &str, kind: &str, state_key: &str) -> Option<Value> {
        let path = room_path(room, &format!("state/{}/{}", segment(kind), segment(state_key)));
        let (status, content) = self.request("GET", &path, None);
        (status == 200).then_some(content)
    }

    /// A user's membership as this user's server sees it, for example `join`.
    pub fn membership_of(&self, room: &str, user: &str) -> Option<String> {
        let content = self.state(room, "m.room.member", user)?;
        content["membership"].as_str().map(str::to_owned)
    }

    /// One `/sync` from where the last one ended, waiting up to `timeout`.
    #[track_caller]
    pub fn sync(&self, timeout: Duration) -> Value {
        let since = self.since().as_ref().map(|s| format!("&since={}", segment(s))).unwrap_or_default();
        let answer = self.get(&format!("/_matrix/client/v3/sync?timeout={}{since}", timeout.as_millis()));
        *self.since() = Some(text(&answer, "next_batch"));
        answer
    }

    /// A `/sync` from the beginning, which forgets where the last one ended.
    #[track_caller]
    pub fn initial_sync(&self) -> Value {
        *self.since() = None;
        self.sync(Duration::ZERO)
    }

    /// Syncs until `look` finds what it looks for; panics with what was seen when it does not come.
    #[track_caller]
    pub fn sync_until<T>(&self, what: &str, mut look: impl FnMut(&Value) -> Option<T>) -> T {
        let started = std::time::Instant::now();
        let mut seen = Vec::new();
        while started.elapsed() < REPLY_TIMEOUT {
            let answer = self.sync(Duration::from_secs(2));
            if let Some(found) = look(&answer) {
                return found;
            }
            seen.push(answer);
        }
        panic!("{} never saw {what}; it saw {}", self.user_id, Value::Array(seen));
    }

    /// Waits until the room is in this section of `/sync` (`join`, `invite`, `knock`, `leave`); its entry.
    #[track_caller]
    pub fn wait_for_room(&self, section: &str, room: &str) -> Value {
        self.sync_until(&format!("{room} in rooms.{section}"), |s| s["rooms"][section].get(room).cloned())
    }

    /// Waits for the next text message of another user in the room; its body.
    #[track_caller]
    pub fn next_message(&self, room: &str) -> String {
        self.sync_until(&format!("a message in {room}"), |answer| {
            let events = answer["rooms"]["join"][room]["timeline"]["events"].as_array()?;
            let message =
                events.iter().find(|e| e["type"] == "m.room.message" && e["sender"] != self.user_id)?;
            Some(text(&message["content"], "body"))
        })
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

fn room_path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", segment(room))
}

fn via_query(via: &[&str]) -> String {
    let pairs: Vec<String> =
        via.iter().map(|v| format!("via={}&server_name={}", segment(v), segment(v))).collect();
    if pairs.is_empty() { String::new() } else { format!("?{}", pairs.join("&")) }
}

#[track_caller]
fn text(value: &Value, key: &str) -> String {
    value[key].as_str().unwrap_or_else(|| panic!("no text {key:?} in {value}")).to_owned()
}
