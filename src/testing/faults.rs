//! What a test lets go wrong at its server, and what it learns of who asked it what.
//!
//! A fault is a rule for requests of a method and a path. `*` (or an empty text) is any method. A pattern of a path is
//! some of its segments in a row, as `/createRoom` is of `/_matrix/client/v3/createRoom`; `*` or `{anything}` stands for
//! one segment, and what follows does not matter: `/rooms/*/send` is every message that a client sends.
//!
//! Only a [`TestServer`] has these: its router is served through a [`Watched`], and its requests to other servers ask
//! [`Faults::is_cut_off`] first. Any other launch has neither.

use std::borrow::Cow;
use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::json;
use tiny_http::Method;

use super::TestServer;
use crate::error::{ErrCode, Error};
use crate::http::{Admission, BodyUse, Outcome, Poll, Quota, Reply, Request, Service, Tell, WakeTurn};
use crate::locks::{lock, wait_until};
use crate::protocol::{ServerName, UserId};

/// So many requests are remembered, the last ones.
const REQUESTS_KEPT_MAX: usize = 1000;
/// No request waits for longer.
const DELAY_MAX: Duration = Duration::from_secs(365 * 86_400);
/// The header of a request by which a test only looks whether something has come.
pub(super) const LOOKING: &str = "x-doorstep-test-looks";
/// So many faults may wait for their requests.
const FAULTS_MAX: usize = 1000;

/// A request that was made to a test's server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SeenRequest {
    /// The method.
    pub method: String,
    /// The path as it was sent, percent-encoded, without the query.
    pub path: String,
    /// What it was answered with; none: it is not answered yet, or its connection ended before.
    pub status: Option<u16>,
}

/// A pattern of paths: see the head of this file.
#[derive(Debug, Clone, PartialEq, Eq)]
struct PathPattern(Vec<Option<String>>);

impl PathPattern {
    fn new(text: &str) -> Self {
        let text = text.split('?').next().unwrap_or_default().trim_matches('/');
        let segment = |segment: &str| {
            let is_any = segment == "*" || (segment.starts_with('{') && segment.ends_with('}'));
            (!is_any).then(|| decoded(segment).into_owned())
        };
        Self(text.split('/').filter(|part| !part.is_empty()).map(segment).collect())
    }

    fn matches(&self, path: &str) -> bool {
        let path: Vec<Cow<'_, str>> = path.trim_start_matches('/').split('/').map(decoded).collect();
        let is_here = |row: &[Cow<'_, str>]| {
            row.iter().zip(&self.0).all(|(got, wanted)| wanted.as_ref().is_none_or(|wanted| wanted == got))
        };
        self.0.is_empty() || path.windows(self.0.len()).any(is_here)
    }
}

fn decoded(segment: &str) -> Cow<'_, str> {
    crate::http::decode_segment(segment).unwrap_or(Cow::Borrowed(segment))
}

/// What becomes of a request.
#[derive(Debug, Clone)]
enum Fault {
    /// It is answered with this, once.
    Answer { status: u16, errcode: String },
    /// It is told to come back in so many milliseconds, once.
    Limit { retry_after_ms: u64 },
    /// It waits so long before anything is done.
    Delay(Duration),
}

impl Fault {
    fn reply(&self) -> Reply {
        match self {
            Self::Limit { retry_after_ms } => {
                let error = Error::new(ErrCode::LimitExceeded, "Too many requests, says the test");
                Reply::error(&error.with_field("retry_after_ms", *retry_after_ms))
            }
            Self::Answer { status, errcode } => {
                let error = "This request fails because the test wants it to";
                Reply::json_status(*status, &json!({ "errcode": errcode, "error": error }))
            }
            Self::Delay(_) => Reply::empty(),
        }
    }
}

#[derive(Debug)]
struct FaultRule {
    method: String,
    path: PathPattern,
    fault: Fault,
}

impl FaultRule {
    /// What a browser asks before the request itself counts only where it is named.
    fn matches(&self, method: &Method, path: &str) -> bool {
        let is_method = match self.method.as_str() {
            "" | "*" => *method != Method::Options,
            name => name.eq_ignore_ascii_case(method.as_str()),
        };
        is_method && self.path.matches(path)
    }
}

/// The faults of one test's server, which outlive its restarts.
#[derive(Debug, Default)]
pub struct Faults {
    state: Mutex<FaultsState>,
    /// A launch stops: nobody is kept waiting.
    stopping: Condvar,
}

#[derive(Debug, Default)]
struct FaultsState {
    rules: Vec<FaultRule>,
    cut_off: BTreeSet<ServerName>,
    /// The last requests, and the number of the first of them.
    requests: VecDeque<SeenRequest>,
    first: u64,
}

impl Faults {
    #[track_caller]
    fn add(&self, method: &str, path: &str, fault: Fault) {
        let rule = FaultRule { method: method.to_owned(), path: PathPattern::new(path), fault };
        let mut state = lock(&self.state);
        let has_room = state.rules.len() < FAULTS_MAX;
        if has_room {
            state.rules.push(rule);
        }
        drop(state);
        assert!(has_room, "{FAULTS_MAX} faults wait for their requests already");
    }

    /// Takes the first rule that answers this request, and looks how long it has to wait.
    fn take(&self, method: &Method, path: &str) -> (Duration, Option<Fault>) {
        let mut state = lock(&self.state);
        let mut delay = Duration::ZERO;
        let mut answers = None;
        for (at, rule) in state.rules.iter().enumerate().filter(|(_, rule)| rule.matches(method, path)) {
            match rule.fault {
                Fault::Delay(by) => delay = delay.max(by),
                _ if answers.is_none() => answers = Some(at),
                _ => {}
            }
        }
        (delay, answers.map(|at| state.rules.remove(at).fault))
    }

    /// Writes down that this is asked; its number.
    fn note(&self, method: &Method, path: &str) -> u64 {
        let mut state = lock(&self.state);
        if state.requests.len() >= REQUESTS_KEPT_MAX {
            state.requests.pop_front();
            state.first += 1;
        }
        let (method, path) = (method.as_str().to_owned(), path.to_owned());
        state.requests.push_back(SeenRequest { method, path, status: None });
        state.first + state.requests.len() as u64 - 1
    }

    fn note_status(&self, number: u64, status: u16) {
        let mut state = lock(&self.state);
        let at = number.checked_sub(state.first).and_then(|at| usize::try_from(at).ok());
        if let Some(request) = at.and_then(|at| state.requests.get_mut(at)) {
            request.status = Some(status);
        }
    }

    /// Whether the way to this server is cut.
    pub(super) fn is_cut_off(&self, server: &ServerName) -> bool {
        lock(&self.state).cut_off.contains(server)
    }

    /// The last requests, in order.
    pub(super) fn requests(&self) -> Vec<SeenRequest> {
        lock(&self.state).requests.iter().cloned().collect()
    }

    fn pause(&self, by: Duration, ended: &AtomicBool) {
        if by.is_zero() {
            return;
        }
        let until = Instant::now() + by.min(DELAY_MAX);
        let mut state = lock(&self.state);
        while !ended.load(Ordering::Relaxed) {
            let Ok(woken) = wait_until(&self.stopping, state, until) else { return };
            state = woken;
        }
    }
}

/// A router with what a test wants of it in front.
pub(super) struct Watched {
    inner: Arc<dyn Service>,
    faults: Arc<Faults>,
    ended: Arc<AtomicBool>,
}

impl Watched {
    /// This service, with these faults.
    pub(super) fn new(inner: Arc<dyn Service>, faults: Arc<Faults>) -> Self {
        Self { inner, faults, ended: Arc::default() }
    }
}

impl Service for Watched {
    fn admit(self: Arc<Self>, head: &mut Request) -> Result<Admission, Reply> {
        if head.header(LOOKING).is_some() {
            return Arc::clone(&self.inner).admit(head);
        }
        let number = self.faults.note(head.method(), head.path());
        let (delay, fault) = self.faults.take(head.method(), head.path());
        let admitted = match fault {
            Some(fault) => Ok(Admission {
                body: BodyUse::Handed(Box::new(|_| Ok(()))),
                quota: Quota::Uncounted,
                call: Box::new(move |_, _| Outcome::Reply(fault.reply())),
            }),
            None => Arc::clone(&self.inner).admit(head),
        };
        match admitted {
            Err(reply) => {
                self.faults.pause(delay, &self.ended);
                self.faults.note_status(number, reply.status());
                Err(reply)
            }
            Ok(admission) => {
                let call = admission.call;
                let watched = move |request: &Request, poll| {
                    if poll == Poll::First {
                        self.faults.pause(delay, &self.ended);
                    }
                    let outcome = call(request, poll);
                    match &outcome {
                        Outcome::Reply(reply) => self.faults.note_status(number, reply.status()),
                        Outcome::Wait { .. } => {
                            let faults = Arc::clone(&self.faults);
                            request
                                .watch_light_answer(move |reply| faults.note_status(number, reply.status()));
                        }
                    }
                    outcome
                };
                Ok(Admission { call: Box::new(watched), ..admission })
            }
        }
    }

    fn is_for_browsers(&self, target: &str) -> bool {
        self.inner.is_for_browsers(target)
    }

    fn wait(&self, user: &UserId, after: i64, until: Instant) -> Option<Poll> {
        self.inner.wait(user, after, until)
    }

    fn wait_in_turn(
        &self,
        user: &UserId,
        after: i64,
        until: Instant,
        tell: &Tell,
    ) -> (Option<Poll>, Option<WakeTurn>) {
        self.inner.wait_in_turn(user, after, until, tell)
    }

    fn interrupt(&self) {
        self.ended.store(true, Ordering::Relaxed);
        // So that nobody is between looking at the flag and waiting.
        drop(lock(&self.faults.state));
        self.faults.stopping.notify_all();
        self.inner.interrupt();
    }

    fn hurry(&self) {
        self.inner.hurry();
    }
}

/// Faults, each for requests of a method and a path: `server.fail_next("POST", "/createRoom", 500, "M_UNKNOWN")`.
/// A pattern of a path is some of its segments in a row, with `*` for any one of them: `/sync`, `/rooms/*/send`.
impl TestServer {
    /// The next request like this is answered with this status and error, and nothing of it is done.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// server.fail_next("POST", "/createRoom", 500, "M_UNKNOWN");
    /// let create = || alice.request("POST", "/_matrix/client/v3/createRoom", None).0;
    /// assert_eq!([create(), create()], [500, 200]);
    /// ```
    ///
    /// # Panics
    /// If this is no status of an answer (200 to 599), or a thousand faults wait for their requests.
    #[track_caller]
    pub fn fail_next(&self, method: &str, path: &str, status: u16, errcode: &str) {
        assert!((200..=599).contains(&status), "the status of an answer is 200 to 599, and not {status}");
        self.faults.add(method, path, Fault::Answer { status, errcode: errcode.to_owned() });
    }

    /// The next request like this is told to come back in so many milliseconds (429 `M_LIMIT_EXCEEDED`), and nothing of
    /// it is done.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// server.limit_next("GET", "/account/whoami", 1500);
    /// let (status, answer) = alice.request("GET", "/_matrix/client/v3/account/whoami", None);
    /// assert_eq!((status, answer["retry_after_ms"].as_i64()), (429, Some(1500)));
    /// ```
    ///
    /// # Panics
    /// If a thousand faults wait for their requests.
    #[track_caller]
    pub fn limit_next(&self, method: &str, path: &str, retry_after_ms: u64) {
        self.faults.add(method, path, Fault::Limit { retry_after_ms });
    }

    /// From now on every request like this waits so long before anything of it is done; no time ends that.
    ///
    /// ```
    /// use std::time::{Duration, Instant};
    ///
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// server.delay("GET", "/account/whoami", Duration::from_millis(100));
    /// let began = Instant::now();
    /// alice.device_id();
    /// assert!(began.elapsed() >= Duration::from_millis(100));
    /// ```
    ///
    /// # Panics
    /// If a thousand faults wait for their requests.
    #[track_caller]
    pub fn delay(&self, method: &str, path: &str, by: Duration) {
        let pattern = PathPattern::new(path);
        lock(&self.faults.state).rules.retain(|rule| {
            !(matches!(rule.fault, Fault::Delay(_)) && rule.method == method && rule.path == pattern)
        });
        if !by.is_zero() {
            self.faults.add(method, path, Fault::Delay(by));
        }
    }

    /// Forgets every fault that waits for its request, and every delay. What is cut off stays so.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// server.fail_next("GET", "/account/whoami", 500, "M_UNKNOWN");
    /// server.clear_faults();
    /// alice.device_id();
    /// ```
    pub fn clear_faults(&self) {
        lock(&self.faults.state).rules.clear();
    }

    /// Cuts the way between this server and another one of the test: each finds the other unreachable, until
    /// [`Self::mend`]. Requests that are under way are answered.
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// let (alice, bob) = (here.user("alice"), there.user("bob"));
    /// let room = alice.room_with(&[&bob], &[]);
    /// here.cut_off(&there);
    /// alice.send(&room, "can you hear me?");
    /// here.mend(&there);
    /// bob.wait_for(&room, |event| event["content"]["body"] == "can you hear me?");
    /// ```
    pub fn cut_off(&self, other: &Self) {
        for (one, another) in [(self, other), (other, self)] {
            lock(&one.faults.state).cut_off.insert(another.config.server_name.clone());
        }
    }

    /// Undoes [`Self::cut_off`]; what the two owe each other goes out at once, unless it failed so often by now that it
    /// waits for its time ([`Self::advance`] brings that).
    ///
    /// ```
    /// let (here, there) = doorstep::TestServer::pair();
    /// here.cut_off(&there);
    /// here.mend(&there);
    /// let (alice, bob) = (here.user("alice"), there.user("bob"));
    /// alice.room_with(&[&bob], &["here we are"]);
    /// ```
    pub fn mend(&self, other: &Self) {
        for (one, another) in [(self, other), (other, self)] {
            lock(&one.faults.state).cut_off.remove(&another.config.server_name);
        }
        for (one, another) in [(self, other), (other, self)] {
            if let Some(running) = &one.running {
                running.homeserver.outgoing.peer_spoke(&another.config.server_name);
                running.homeserver.silent_servers.spoke(&another.config.server_name);
            }
        }
    }

    /// What was asked of this server, in order: the last 1000 requests.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// alice.create_room();
    /// let asked = server.requests().pop().unwrap();
    /// assert_eq!((asked.path.as_str(), asked.status), ("/_matrix/client/v3/createRoom", Some(200)));
    /// ```
    pub fn requests(&self) -> Vec<SeenRequest> {
        self.faults.requests()
    }

    /// Forgets what was asked so far.
    ///
    /// ```
    /// let server = doorstep::TestServer::start();
    /// let alice = server.user("alice");
    /// alice.create_room();
    /// server.forget_requests();
    /// assert!(server.requests().is_empty());
    /// ```
    pub fn forget_requests(&self) {
        let mut state = lock(&self.faults.state);
        state.first += state.requests.len() as u64;
        state.requests.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_is_some_segments_in_a_row() {
        let cases = [
            ("/createRoom", "/_matrix/client/v3/createRoom", true),
            ("createRoom", "/_matrix/client/v3/createRoom", true),
            ("/create", "/_matrix/client/v3/createRoom", false),
            ("/rooms/*/send", "/_matrix/client/v3/rooms/%21a%3Ab/send/m.room.message/1", true),
            ("/rooms/{roomId}/send", "/_matrix/client/v3/rooms/!a:b/send/m.x/1", true),
            ("/rooms/!a:b/send", "/_matrix/client/v3/rooms/%21a%3Ab/send/m.x/1", true),
            ("/rooms/%21a%3Ab/send", "/_matrix/client/v3/rooms/!a:b/send/m.x/1", true),
            ("/rooms/!c:b/send", "/_matrix/client/v3/rooms/%21a%3Ab/send/m.x/1", false),
            ("/rooms/send", "/_matrix/client/v3/rooms/!a:b/send/m.x/1", false),
            ("/_matrix/client/v3/sync?since=1", "/_matrix/client/v3/sync", true),
            ("/v3/sync/more", "/_matrix/client/v3/sync", false),
            ("", "/anything", true),
            ("/", "/", true),
            ("*", "/", true),
        ];
        for (pattern, path, matches) in cases {
            assert_eq!(PathPattern::new(pattern).matches(path), matches, "{pattern} {path}");
        }
    }

    #[test]
    fn the_record_keeps_the_last_and_an_answer_finds_its_request() {
        let faults = Faults::default();
        let numbers: Vec<u64> =
            (0..REQUESTS_KEPT_MAX + 5).map(|n| faults.note(&Method::Get, &format!("/{n}"))).collect();
        faults.note_status(numbers[4], 404);
        faults.note_status(numbers[5], 200);
        let state = lock(&faults.state);
        assert_eq!(state.requests.len(), REQUESTS_KEPT_MAX);
        let first = SeenRequest { method: "GET".to_owned(), path: "/5".to_owned(), status: Some(200) };
        assert_eq!(state.requests[0], first);
        assert!(state.requests.iter().skip(1).all(|request| request.status.is_none()));
    }
}
