//! What a user of a test sees of rooms, waits for, and says when it does not come.
//!
//! Looking and waiting is done beside the user's own `/sync`: it moves nothing on that [`TestUser::sync`] or
//! [`TestUser::next_message`] would have given, no fault of the test is spent on it, and it is in no record of requests.

use std::fmt::Write as _;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::TestUser;
use super::user::{Purpose, room_path, segment, text};

/// The longest that a single request waits for news; then what is wanted is looked at all the same.
const NEWS_TIMEOUT: Duration = Duration::from_secs(1);
/// Of a room, so many events are told at the end of a failure, of the server, so many requests, and of each so much text.
const EVENTS_TOLD_MAX: usize = 30;
const REQUESTS_TOLD_MAX: usize = 20;
const EVENT_TEXT_MAX: usize = 300;
/// So much is told of what `/sync` said, of all of it or of rooms.
const SEEN_TEXT_MAX: usize = 10_000;
const ROOMS_TEXT_MAX: usize = 2_000;

/// A filter that leaves no message out.
const ALL_NEWS: &str = r#"{"room":{"timeline":{"limit":1000}}}"#;

/// The end of what somebody has seen, from where news are waited for.
struct NewsCursor {
    since: Option<String>,
    until: Instant,
}

/// What people see of a room, and what they wait for.
impl TestUser {
    /// The room's timeline as this user sees it, from the beginning, in the format for clients: state and messages.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// let room = alice.room_with(&[], &["hello"]);
    /// let events = alice.events(&room);
    /// assert_eq!(events[0]["type"], "m.room.create");
    /// assert_eq!(events.last().unwrap()["content"]["body"], "hello");
    /// ```
    ///
    /// # Panics
    /// If the user may not see the room.
    #[track_caller]
    pub fn events(&self, room: &str) -> Vec<Value> {
        match self.look_at_events(room) {
            Ok(events) => events,
            Err(refused) => self.fail(&format!("{} cannot see {room}: {refused}", self.id()), None),
        }
    }

    /// Waits for an event in the room's timeline that fits, and gives it; of those that are there, the first. It does not
    /// matter whether it came before or comes after.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &["ping"]);
    /// bob.send(&room, "pong");
    /// let pong = alice.wait_for(&room, |event| event["content"]["body"] == "pong");
    /// assert_eq!(pong["sender"], bob.id());
    /// ```
    ///
    /// # Panics
    /// If none has come when the server's patience is at an end: with the room's timeline and what the server was asked.
    #[track_caller]
    pub fn wait_for(&self, room: &str, mut fits: impl FnMut(&Value) -> bool) -> Value {
        let mut cursor = self.news_cursor();
        loop {
            let events = self.look_at_events(room).unwrap_or_default();
            if let Some(event) = events.into_iter().find(&mut fits) {
                return event;
            }
            if !self.wait_for_news(&mut cursor) {
                self.fail(&format!("{} never saw such an event in {room}", self.id()), Some(room));
            }
        }
    }

    /// Waits until a user is this in the room (`join`, `invite`, `knock`, `leave`, `ban`), as this user's server sees it.
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// let (alice, bob) = (here.user("alice"), there.user("bob"));
    /// let room = alice.create_room();
    /// alice.invite(&room, bob.id());
    /// bob.wait_for_membership(&room, bob.id(), "invite");
    /// bob.join(&room);
    /// alice.wait_for_membership(&room, bob.id(), "join");
    /// ```
    ///
    /// # Panics
    /// If it does not come to that while the server's patience lasts: with what the user was instead, the room's timeline
    /// and what the server was asked.
    #[track_caller]
    pub fn wait_for_membership(&self, room: &str, user: &str, membership: &str) {
        let mut cursor = self.news_cursor();
        loop {
            let is = self.look_at_membership(room, user);
            if is.as_deref() == Some(membership) {
                return;
            }
            if !self.wait_for_news(&mut cursor) {
                let is = is.unwrap_or_else(|| "nothing".to_owned());
                let what = format!("{} never saw {user} with {membership} in {room}: it is {is}", self.id());
                self.fail(&what, Some(room));
            }
        }
    }

    /// Who knocks on the room and waits for an answer, as this member sees it: the user ids, the first knock first.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// alice.set_state(&room, "m.room.join_rules", "", serde_json::json!({ "join_rule": "knock" }));
    /// bob.knock_via(&room, &[server.name()]);
    /// assert_eq!(alice.knocks(&room), [bob.id()]);
    /// alice.invite(&room, bob.id());
    /// assert!(alice.knocks(&room).is_empty());
    /// ```
    ///
    /// # Panics
    /// If the user may not see the room's members.
    #[track_caller]
    pub fn knocks(&self, room: &str) -> Vec<String> {
        let path = room_path(room, "members?membership=knock");
        let (status, answer) = self.ask(Purpose::Looking, "GET", &path, None);
        if status != 200 {
            self.fail(&format!("{} cannot see who knocks on {room}: {status} {answer}", self.id()), None);
        }
        let mut knocks = answer["chunk"].as_array().cloned().unwrap_or_default();
        knocks.sort_by_key(|knock| knock["origin_server_ts"].as_i64());
        knocks.iter().map(|knock| text(knock, "state_key")).collect()
    }

    /// The ids of the rooms that this user is invited to.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// alice.invite(&room, bob.id());
    /// assert_eq!(bob.invites(), [room.as_str()]);
    /// bob.leave(&room);
    /// assert!(bob.invites().is_empty());
    /// ```
    #[track_caller]
    pub fn invites(&self) -> Vec<String> {
        let (status, answer) = self.look_at_rooms();
        if status != 200 {
            self.fail(&format!("{} cannot sync: {status} {answer}", self.id()), None);
        }
        let invites = answer["rooms"]["invite"].as_object();
        invites.into_iter().flatten().map(|(room, _)| room.clone()).collect()
    }

    /// Syncs until `look` finds what it looks for; panics with what was seen when it does not come.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &["hello"]);
    /// let typing = format!("/_matrix/client/v3/rooms/{room}/typing/{}", alice.id());
    /// alice.put(&typing, serde_json::json!({ "typing": true, "timeout": 30_000 }));
    /// bob.sync_until("alice typing", |answer| {
    ///     let events = answer["rooms"]["join"][&room]["ephemeral"]["events"].as_array()?;
    ///     events.iter().find(|event| event["type"] == "m.typing").cloned()
    /// });
    /// ```
    #[track_caller]
    pub fn sync_until<T>(&self, what: &str, look: impl FnMut(&Value) -> Option<T>) -> T {
        self.sync_until_in(what, None, "", look)
    }

    #[track_caller]
    fn sync_until_in<T>(
        &self,
        what: &str,
        room: Option<&str>,
        filter: &str,
        mut look: impl FnMut(&Value) -> Option<T>,
    ) -> T {
        let (started, patience) = (Instant::now(), self.patience());
        let mut seen = Vec::new();
        loop {
            let left = patience.saturating_sub(started.elapsed());
            let answer = self.sync_with(left.min(Duration::from_secs(2)), filter);
            if let Some(found) = look(&answer) {
                return found;
            }
            seen.push(if room.is_some() { answer["rooms"].clone() } else { answer });
            if left.is_zero() {
                break;
            }
        }
        let most = if room.is_some() { ROOMS_TEXT_MAX } else { SEEN_TEXT_MAX };
        let seen = shortened(&Value::Array(seen).to_string(), most);
        self.fail(&format!("{} never saw {what}; it saw {seen}", self.id()), room)
    }

    /// Waits until the room is in this section of `/sync` (`join`, `invite`, `knock`, `leave`); its entry.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.create_room();
    /// alice.invite(&room, bob.id());
    /// let invite = bob.wait_for_room("invite", &room);
    /// assert!(invite["invite_state"]["events"].is_array());
    /// ```
    #[track_caller]
    pub fn wait_for_room(&self, section: &str, room: &str) -> Value {
        self.sync_until_in(&format!("{room} in rooms.{section}"), Some(room), "", |answer| {
            answer["rooms"][section].get(room).cloned()
        })
    }

    /// Waits for the next text message of another user in the room; its body. Messages that come together are given one
    /// after the other.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let (alice, bob) = (server.user("alice"), server.user("bob"));
    /// let room = alice.room_with(&[&bob], &["one", "two"]);
    /// assert_eq!([bob.next_message(&room), bob.next_message(&room)], ["one", "two"]);
    /// ```
    #[track_caller]
    pub fn next_message(&self, room: &str) -> String {
        if let Some(body) = self.heard().get_mut(room).and_then(|bodies| bodies.pop_front()) {
            return body;
        }
        // Of what comes nothing is passed over; of what is there when the first sync begins, what any client is shown.
        let filter = if self.has_synced() { ALL_NEWS } else { "" };
        self.sync_until_in(&format!("a message in {room}"), Some(room), filter, |answer| {
            let mut heard = self.heard();
            for (room, entry) in answer["rooms"]["join"].as_object().into_iter().flatten() {
                let events = entry["timeline"]["events"].as_array().into_iter().flatten();
                let messages = events.filter(|e| e["type"] == "m.room.message" && e["sender"] != self.id());
                let bodies = messages.filter_map(|e| e["content"]["body"].as_str().map(str::to_owned));
                heard.entry(room.clone()).or_default().extend(bodies);
            }
            heard.get_mut(room)?.pop_front()
        })
    }

    /// The whole timeline, the oldest event first, or why it cannot be seen.
    #[track_caller]
    fn look_at_events(&self, room: &str) -> Result<Vec<Value>, String> {
        let (mut events, mut from) = (Vec::new(), String::new());
        loop {
            let path = room_path(room, &format!("messages?dir=b&limit=1000{from}"));
            let (status, mut page) = self.ask(Purpose::Looking, "GET", &path, None);
            if status != 200 {
                return Err(format!("{status} {page}"));
            }
            if let Value::Array(chunk) = page["chunk"].take() {
                events.extend(chunk);
            }
            match page["end"].as_str() {
                Some(end) => from = format!("&from={}", segment(end)),
                None => break,
            }
        }
        events.reverse();
        Ok(events)
    }

    /// What somebody is in a room: by its state, or of this user, who may not see that, by the part of `/sync` that the
    /// room is in.
    #[track_caller]
    fn look_at_membership(&self, room: &str, user: &str) -> Option<String> {
        let path = room_path(room, &format!("state/m.room.member/{}", segment(user)));
        let (status, content) = self.ask(Purpose::Looking, "GET", &path, None);
        if status == 200 {
            return content["membership"].as_str().map(str::to_owned);
        }
        if user != self.id() {
            return None;
        }
        let (_, answer) = self.look_at_rooms();
        let is_in = |section: &&str| answer["rooms"][*section].get(room).is_some();
        let section = ["join", "invite", "knock", "leave"].into_iter().find(is_in)?;
        let entry = &answer["rooms"][section][room];
        let events = ["state", "timeline"].into_iter().filter_map(|part| entry[part]["events"].as_array());
        let own = events.flatten().rfind(|e| e["type"] == "m.room.member" && e["state_key"] == user);
        let told = own.and_then(|event| event["content"]["membership"].as_str());
        Some(told.unwrap_or(section).to_owned())
    }

    /// A `/sync` from the beginning, beside the user's own.
    #[track_caller]
    fn look_at_rooms(&self) -> (u16, Value) {
        let filter = json!({
            "room": { "include_leave": true, "timeline": { "limit": 1 } },
            "presence": { "limit": 0 },
        });
        let path = format!("/_matrix/client/v3/sync?timeout=0&filter={}", segment(&filter.to_string()));
        self.ask(Purpose::Looking, "GET", &path, None)
    }

    #[track_caller]
    fn news_cursor(&self) -> NewsCursor {
        let until = Instant::now().checked_add(self.patience());
        // Who is so patient waits for as long as any test runs.
        let until = until.unwrap_or_else(|| Instant::now() + Duration::from_secs(86_400));
        let (_, answer) = self.look_at_rooms();
        NewsCursor { since: answer["next_batch"].as_str().map(str::to_owned), until }
    }

    /// Waits until something is new to this user, for a moment at most. False: the patience is at its end.
    #[track_caller]
    fn wait_for_news(&self, cursor: &mut NewsCursor) -> bool {
        let left = cursor.until.saturating_duration_since(Instant::now());
        let since = cursor.since.as_ref().map(|since| format!("&since={}", segment(since)));
        let timeout = left.min(NEWS_TIMEOUT).as_millis();
        let path = format!("/_matrix/client/v3/sync?timeout={timeout}{}", since.unwrap_or_default());
        if !left.is_zero() {
            let (_, answer) = self.ask(Purpose::Looking, "GET", &path, None);
            cursor.since = answer["next_batch"].as_str().map(str::to_owned).or(cursor.since.take());
        }
        !left.is_zero()
    }

    /// Panics with this, and with what there is to be known about it.
    #[track_caller]
    pub(super) fn fail(&self, what: &str, room: Option<&str>) -> ! {
        let timeline = match room {
            Some(room) => self.timeline_text(room),
            None => String::new(),
        };
        panic!("{what}{timeline}{}", self.requests_text())
    }

    /// The end of the room's timeline, a line an event.
    #[track_caller]
    fn timeline_text(&self, room: &str) -> String {
        let events = match self.look_at_events(room) {
            Ok(events) => events,
            Err(refused) => return format!("\n{} cannot see {room}: {refused}", self.id()),
        };
        let skipped = events.len().saturating_sub(EVENTS_TOLD_MAX);
        let mut out = format!("\n{room} as {} sees it, {} events:", self.id(), events.len());
        for event in &events[skipped..] {
            let state_key = event["state_key"].as_str().map(|key| format!(" {key:?}")).unwrap_or_default();
            let of = |key: &str| event[key].as_str().unwrap_or("?").to_owned();
            let content = shortened(&event["content"].to_string(), EVENT_TEXT_MAX);
            // Writing to a text does not fail.
            let _ =
                write!(out, "\n  {} {} {}{state_key} {content}", of("event_id"), of("sender"), of("type"));
        }
        out
    }

    /// What the user's server was asked last, a line a request.
    fn requests_text(&self) -> String {
        let requests = self.requests_of_server();
        let skipped = requests.len().saturating_sub(REQUESTS_TOLD_MAX);
        let mut out = String::new();
        for (number, request) in requests[skipped..].iter().enumerate() {
            if number == 0 {
                out.push_str("\nIts server was asked last:");
            }
            let status = request.status.map_or_else(|| "no answer".to_owned(), |status| status.to_string());
            let _ = write!(out, "\n  {} {} {status}", request.method, request.path);
        }
        out
    }
}

/// The text, or its beginning and how much there is of it.
fn shortened(text: &str, most: usize) -> String {
    match text.char_indices().nth(most) {
        Some((at, _)) => format!("{}… ({} bytes)", &text[..at], text.len()),
        None => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::shortened;

    #[test]
    fn a_text_is_cut_between_characters() {
        assert_eq!(shortened("née", 3), "née");
        assert_eq!(shortened("née", 2), "né… (4 bytes)");
        assert_eq!(shortened("", 0), "");
    }
}
