//! User-interactive authentication (client-server API, "User-Interactive Authentication API"): a client proves, stage by
//! stage, that it may do one thing, and then that thing is done, once; and the nonces of registrations with the shared
//! secret.
//!
//! [`Accounts::interactively`] is the only way through. A session goes from *open* (stages are taken, and what the
//! client's requests said is remembered for those that leave it out) to *running* before anything is done, so that of many
//! requests that prove the same one acts; and from there to *done*, with the answer, which a client gets again whose answer
//! was lost. What failed for the client's own fault is open again.
//!
//! All of it lives in memory only: after a restart a client is asked again.

use crate::service::accounts::Accounts;
use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use super::token_hash;
use crate::address::group;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait_timeout};
use crate::protocol::UserId;
use crate::protocol::json::parse_object;
use crate::random;
use crate::store::accounts::TokenHash;

/// How long a client has from its first request to the last stage.
const SESSION_LIFE_MS: Millis = 30 * 60 * 1000;
/// How long an answer is kept for a client that did not get it.
const ANSWER_LIFE_MS: Millis = 10 * 60 * 1000;
/// How long a nonce is good.
const NONCE_LIFE_MS: Millis = 60 * 1000;
/// Most sessions and nonces at once; beyond, the oldest of whoever has most are forgotten.
const MOST: usize = 4096;
/// Most sessions of one address.
const MOST_OF_ONE: usize = 1024;
/// What is remembered of the requests of one session, in bytes of JSON; who says more has to repeat it.
const MOST_SAID: usize = 16 << 10;
/// And of all of them.
const MOST_SAID_BY_ALL: usize = 8 << 20;
/// Most requests that wait for another one of their session.
const MOST_WAITING: usize = 64;
/// How long one waits.
const LONGEST_WAIT: Duration = Duration::from_secs(10);

/// One thing that a client can prove.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Nothing at all.
    Dummy,
    /// The password of the account.
    Password,
    /// A registration token.
    RegistrationToken,
}

impl Stage {
    /// The name on the wire.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Dummy => "m.login.dummy",
            Self::Password => "m.login.password",
            Self::RegistrationToken => "m.login.registration_token",
        }
    }
}

/// What may be done only by who has proved that they may.
#[derive(Debug, Clone, Copy)]
pub struct Action<'a> {
    /// Any name for it: a session for one thing is none for another.
    pub name: &'static str,
    /// What is to be proved: each flow is a list of stages to complete in order.
    pub flows: &'a [&'a [Stage]],
    /// Parameters that a repeated request may change and still be the same.
    pub incidental: &'static [&'static str],
}

/// Who asks for it.
#[derive(Clone, Copy)]
pub struct Asker<'a> {
    /// Whose token the request carries.
    pub user: Option<&'a UserId>,
    /// That token.
    pub token: Option<&'a str>,
    /// Whether the token has ended with the very thing that was done: then only the answer can be had again.
    pub ended: bool,
    /// Where from.
    pub from: IpAddr,
}

/// What was proved.
#[derive(Clone)]
pub struct Proof {
    /// The user whose password was given.
    pub user: Option<UserId>,
    /// The registration token that was given.
    pub registration_token: Option<String>,
}

/// What the client is told.
pub enum Told {
    /// It is done, now or before: the answer, JSON.
    Done(String),
    /// Answer 401 with this body.
    Ask(Value),
}

/// What one client is to prove, and what it has proved so far.
#[derive(Clone, Default)]
struct Open {
    completed: Vec<Stage>,
    user: Option<UserId>,
    registration_token: Option<String>,
    /// The parameters of the requests so far, JSON; empty: none, or too much to be remembered. There may be a password
    /// among them, so it goes as soon as the session runs.
    said: String,
}

enum Phase {
    Open(Open),
    /// It is being done, with these parameters.
    Running(Fingerprints),
    /// It was done, with these parameters and this answer.
    Done(Fingerprints, String),
}

/// Each parameter of a request as its hash with the session's id, which nobody else knows.
type Fingerprints = HashMap<String, [u8; 32]>;

struct Session {
    /// What it may do in the end, and on whose behalf.
    purpose: String,
    address: IpAddr,
    began_ms: Millis,
    /// When it is forgotten.
    until_ms: Millis,
    /// The token of who began it: it may end with what is done.
    token: Option<(TokenHash, UserId)>,
    phase: Phase,
}

impl Session {
    fn said(&self) -> usize {
        match &self.phase {
            Phase::Open(open) => open.said.len(),
            Phase::Running(_) | Phase::Done(..) => 0,
        }
    }
}

/// Everything under way, bounded. Passwords and tokens are in it, so that none of it can be written to a log.
#[derive(Default)]
pub struct PendingAuth {
    sessions: Mutex<Sessions>,
    /// A session is running no more.
    ended: Condvar,
    nonces: Mutex<HashMap<String, Millis>>,
}

#[derive(Default)]
struct Sessions {
    all: HashMap<String, Session>,
    /// Requests that wait for another one of their session.
    waiting: usize,
}

impl Sessions {
    /// The session of this id, if it has this purpose and its time is not over.
    fn get(&mut self, id: &str, purpose: &str, now: Millis) -> Option<&mut Session> {
        self.all.get_mut(id).filter(|session| session.purpose == purpose && now < session.until_ms)
    }

    /// Makes room for one more of this address.
    fn make_room(&mut self, address: IpAddr, now: Millis) {
        let said: usize = self.all.values().map(Session::said).sum();
        let of = |all: &HashMap<String, Session>, address: IpAddr| {
            all.values().filter(|session| session.address == address).count()
        };
        if self.all.len() < MOST && said <= MOST_SAID_BY_ALL && of(&self.all, address) < MOST_OF_ONE {
            return;
        }
        self.all.retain(|_, session| now < session.until_ms);
        while of(&self.all, address) >= MOST_OF_ONE {
            self.forget_oldest_of(address);
        }
        while self.all.len() >= MOST || self.all.values().map(Session::said).sum::<usize>() > MOST_SAID_BY_ALL
        {
            let mut counts: HashMap<IpAddr, usize> = HashMap::new();
            for session in self.all.values() {
                *counts.entry(session.address).or_default() += 1;
            }
            let Some((most, _)) = counts.into_iter().max_by_key(|(_, count)| *count) else { return };
            self.forget_oldest_of(most);
        }
    }

    fn forget_oldest_of(&mut self, address: IpAddr) {
        let of_it = self.all.iter().filter(|(_, session)| session.address == address);
        let oldest = of_it.min_by_key(|(_, session)| session.began_ms).map(|(id, _)| id.clone());
        if let Some(oldest) = oldest {
            self.all.remove(&oldest);
        }
    }
}

fn fingerprints(id: &str, params: &Map<String, Value>) -> Fingerprints {
    let hash = |name: &str, value: &Value| -> [u8; 32] {
        // An id has no zero bytes, and neither has JSON.
        Sha256::digest([id, name, &value.to_string()].join("\0").as_bytes()).into()
    };
    params.iter().map(|(name, value)| (name.clone(), hash(name, value))).collect()
}

/// Whether a request asks for what was asked for before: what it names must be what it was, and what it leaves out is.
fn is_same(id: &str, params: &Map<String, Value>, before: &Fingerprints, action: &Action<'_>) -> bool {
    let named = fingerprints(id, params);
    named.iter().all(|(name, hash)| {
        action.incidental.contains(&name.as_str()) || before.get(name).is_some_and(|was| was == hash)
    })
}

/// Whom a request finds in the session that it names.
enum Found {
    Nobody,
    Open(Open),
    Done(String),
}

/// The running of a session. Dropped without an end, because it failed or panicked, the session is spent.
struct Running<'p> {
    pending: &'p PendingAuth,
    id: &'p str,
}

impl Running<'_> {
    fn end(self, phase: Phase, until_ms: Millis) {
        if let Some(session) = lock(&self.pending.sessions).all.get_mut(self.id) {
            (session.phase, session.until_ms) = (phase, until_ms);
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        let mut sessions = lock(&self.pending.sessions);
        if matches!(sessions.all.get(self.id).map(|session| &session.phase), Some(Phase::Running(_))) {
            sessions.all.remove(self.id);
        }
        self.pending.ended.notify_all();
    }
}

impl PendingAuth {
    /// Looks a session up for a request; one that is running is waited for. Errors: 429 `M_LIMIT_EXCEEDED` if that takes
    /// too long.
    fn find(
        &self,
        id: Option<&str>,
        purpose: &str,
        params: &Map<String, Value>,
        action: &Action<'_>,
        now: Millis,
    ) -> Result<Found> {
        let Some(id) = id else { return Ok(Found::Nobody) };
        let deadline = Instant::now() + LONGEST_WAIT;
        let mut sessions = lock(&self.sessions);
        loop {
            let found = match sessions.get(id, purpose, now).map(|session| &session.phase) {
                None => Found::Nobody,
                Some(Phase::Open(open)) => Found::Open(open.clone()),
                Some(Phase::Running(before) | Phase::Done(before, _))
                    if !is_same(id, params, before, action) =>
                {
                    Found::Nobody
                }
                Some(Phase::Done(_, answer)) => Found::Done(answer.clone()),
                Some(Phase::Running(_)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() || sessions.waiting >= MOST_WAITING {
                        let busy = Error::new(ErrCode::LimitExceeded, "This is being done");
                        return Err(busy.with_field("retry_after_ms", 1000));
                    }
                    sessions.waiting += 1;
                    sessions = wait_timeout(&self.ended, sessions, left);
                    sessions.waiting -= 1;
                    continue;
                }
            };
            return Ok(found);
        }
    }

    /// Whose token this was, if it ended with something that was done lately and whose answer is still kept.
    pub fn ended_token(&self, token: &str, now: Millis) -> Option<UserId> {
        let hash = token_hash(token);
        let sessions = lock(&self.sessions);
        let done = sessions.all.values().filter(|s| matches!(s.phase, Phase::Done(..)) && now < s.until_ms);
        let mut tokens = done.filter_map(|session| session.token.as_ref());
        tokens.find(|(token, _)| *token == hash).map(|(_, user)| user.clone())
    }
}

impl Accounts<'_> {
    /// Does `deed` for a client that has proved that it may, or says what it has to prove still. `params` is the request's
    /// body, `auth` in it. What an earlier request of the session said counts where this one leaves it out; `check` reads
    /// the parameters, and refuses before anything is asked what could not be done anyway. Errors: those of `check` and
    /// `deed`, 400 `M_BAD_JSON`, 429 `M_LIMIT_EXCEEDED`, 401 `M_UNKNOWN_TOKEN` for an asker whose token has ended.
    pub fn interactively<P>(
        &self,
        action: &Action<'_>,
        asker: Asker<'_>,
        mut params: Map<String, Value>,
        check: impl FnOnce(&Map<String, Value>) -> Result<P>,
        deed: impl FnOnce(P, &Proof) -> Result<Value>,
    ) -> Result<Told> {
        let auth = match params.remove("auth") {
            None | Some(Value::Null) => None,
            Some(Value::Object(auth)) => Some(auth),
            Some(_) => return Err(Error::bad_json("auth must be an object")),
        };
        // Several clients write `null` for what they leave out.
        params.retain(|_, value| !value.is_null());
        let purpose = format!("{} {}", action.name, asker.user.map_or("", UserId::as_str));
        let named = auth.as_ref().and_then(|auth| auth.get("session")).and_then(Value::as_str);
        let named = named.filter(|id| !id.is_empty());
        let found = self.pending_auth.find(named, &purpose, &params, action, self.clock.now_ms())?;
        // What is sent for a session that is spent, or none of ours, proves nothing: it begins anew, without it.
        let auth = auth.as_ref().filter(|_| named.is_none() || matches!(found, Found::Open(_)));
        let (named, mut open) = match found {
            Found::Done(answer) => return Ok(Told::Done(answer)),
            Found::Open(open) => (named.map(str::to_owned), open),
            Found::Nobody => (None, Open::default()),
        };
        if asker.ended {
            let unknown = Error::new(ErrCode::UnknownToken, "Unknown access token");
            return Err(unknown.with_field("soft_logout", false));
        }
        if let Ok(before) = parse_object(open.said.as_bytes()) {
            for (name, value) in before {
                params.entry(name).or_insert(value);
            }
        }
        open.said = Some(Value::from(params.clone()).to_string())
            .filter(|s| s.len() <= MOST_SAID)
            .unwrap_or_default();
        let checked = check(&params)?;
        let refusal = match auth {
            Some(auth) if auth.contains_key("type") => {
                self.take_stage(&mut open, action.flows, &asker, auth)?.err()
            }
            _ => None,
        };
        let proved = auth.is_some() && refusal.is_none();
        let proved = proved && action.flows.iter().any(|flow| open.completed == *flow);
        let id = named.clone().unwrap_or_else(random::token);
        let ask = challenge(&id, action.flows, &open.completed, refusal.as_ref());
        let proof = Proof { user: open.user.clone(), registration_token: open.registration_token.clone() };
        let again = open.clone();
        let before = proved.then(|| fingerprints(&id, &params));
        let phase = before.clone().map_or(Phase::Open(open), Phase::Running);
        if !self.go_on(&id, named.is_some(), &purpose, &asker, phase) {
            // Another request of the session was faster.
            return match self.pending_auth.find(Some(&id), &purpose, &params, action, self.clock.now_ms())? {
                Found::Done(answer) => Ok(Told::Done(answer)),
                Found::Open(_) | Found::Nobody => Ok(Told::Ask(ask)),
            };
        }
        let Some(before) = before else { return Ok(Told::Ask(ask)) };
        let running = Running { pending: &self.pending_auth, id: &id };
        let error = match deed(checked, &proof) {
            Ok(mut answer) => {
                // Some libraries go by the longest flow, and read of the answer that is the result already what they need
                // for their last stage. They get the same again for that.
                let goes_on = |flow: &&[Stage]| {
                    flow.len() > again.completed.len() && flow.starts_with(&again.completed)
                };
                if let (Value::Object(answer), Value::Object(ask)) = (&mut answer, ask)
                    && action.flows.iter().any(goes_on)
                {
                    ask.into_iter().for_each(|(name, value)| {
                        answer.entry(name).or_insert(value);
                    });
                }
                let answer = answer.to_string();
                running.end(Phase::Done(before, answer.clone()), self.clock.now_ms() + ANSWER_LIFE_MS);
                return Ok(Told::Done(answer));
            }
            Err(error) => error,
        };
        let until_ms = self.clock.now_ms() + SESSION_LIFE_MS;
        match error.status() {
            // What was proved is good no more: a registration token that somebody else has used up meanwhile.
            401 => {
                running.end(Phase::Open(Open { said: again.said, ..Open::default() }), until_ms);
                Ok(Told::Ask(challenge(&id, action.flows, &[], Some(&error))))
            }
            // Nothing was done, and the client can mend it: a taken name, a weak password.
            400..500 => {
                running.end(Phase::Open(again), until_ms);
                Err(error)
            }
            // Whether anything was done is not known.
            _ => Err(error),
        }
    }

    /// Puts a session into its next phase, unless another request did meanwhile. `known`: there is one of this id.
    fn go_on(&self, id: &str, known: bool, purpose: &str, asker: &Asker<'_>, mut phase: Phase) -> bool {
        let (now, address) = (self.clock.now_ms(), group(asker.from));
        let mut sessions = lock(&self.pending_auth.sessions);
        if known {
            let said: usize = sessions.all.values().map(Session::said).sum();
            if let Phase::Open(open) = &mut phase
                && said + open.said.len() > MOST_SAID_BY_ALL
            {
                open.said = String::new();
            }
            let Some(session) = sessions.get(id, purpose, now) else { return false };
            let Phase::Open(before) = &session.phase else { return false };
            // Of two requests that each completed a stage the later one knows nothing of the other's.
            if let Phase::Open(open) = &phase
                && open.completed.len() < before.completed.len()
            {
                return false;
            }
            session.phase = phase;
            return true;
        }
        sessions.make_room(address, now);
        let token = asker.token.zip(asker.user).map(|(token, user)| (token_hash(token), user.clone()));
        let until_ms = now + SESSION_LIFE_MS;
        let session = Session { purpose: purpose.to_owned(), address, began_ms: now, until_ms, token, phase };
        sessions.all.insert(id.to_owned(), session);
        true
    }

    /// Tries the stage that `auth` names. The inner error is for the client, who may try again.
    fn take_stage(
        &self,
        session: &mut Open,
        flows: &[&[Stage]],
        asker: &Asker<'_>,
        auth: &Map<String, Value>,
    ) -> Result<Result<()>> {
        let requester = asker.user;
        let text = |name: &str| auth.get(name).and_then(Value::as_str);
        let wanted = text("type").unwrap_or_default();
        // A stage is next if some flow begins with what is complete and goes on with it.
        let next = |flow: &&[Stage]| match flow.strip_prefix(session.completed.as_slice()) {
            Some([stage, ..]) if stage.as_str() == wanted => Some(*stage),
            _ => None,
        };
        let Some(stage) = flows.iter().find_map(next) else {
            let repeated = session.completed.iter().any(|stage| stage.as_str() == wanted);
            let unknown = Error::new(ErrCode::Unrecognized, "This stage is not asked for now");
            return Ok(if repeated { Ok(()) } else { Err(unknown) });
        };
        match stage {
            Stage::Dummy => {}
            Stage::RegistrationToken => {
                let token = text("token").unwrap_or_default();
                if !self.registration_token_is_valid(token)? {
                    return Ok(Err(Error::new(
                        ErrCode::Unauthorized,
                        "This registration token is not valid",
                    )));
                }
                session.registration_token = Some(token.to_owned());
            }
            Stage::Password => {
                let user = match user_of_identifier(auth, self.server_name().as_str()) {
                    Some(user) => Some(user),
                    // The request's token says who it is.
                    None if !auth.contains_key("identifier") && !auth.contains_key("user") => {
                        requester.cloned()
                    }
                    None => None,
                };
                let user = user.filter(|user| requester.is_none_or(|requester| requester == user));
                let Some(user) = user else {
                    return Ok(Err(Error::forbidden("This is not the user whose account it is about")));
                };
                let (password, from) = (text("password").unwrap_or_default(), Some(asker.from));
                // Who it is about was made sure of: if there is a requester, it is their account.
                match self.check_password_of(&user, password, from, requester.is_some()) {
                    Ok(_) => session.user = Some(user),
                    Err(e) if e.errcode() == ErrCode::Forbidden => return Ok(Err(e)),
                    Err(e) => return Err(e),
                }
            }
        }
        session.completed.push(stage);
        Ok(Ok(()))
    }

    /// A nonce that is good for one registration within a minute.
    pub fn new_nonce(&self) -> String {
        let (nonce, now) = (random::token(), self.clock.now_ms());
        let mut nonces = lock(&self.pending_auth.nonces);
        if nonces.len() >= MOST {
            nonces.retain(|_, made| now - *made < NONCE_LIFE_MS);
        }
        if nonces.len() >= MOST
            && let Some(oldest) = nonces.iter().min_by_key(|(_, made)| **made).map(|(nonce, _)| nonce.clone())
        {
            nonces.remove(&oldest);
        }
        nonces.insert(nonce.clone(), now);
        nonce
    }

    /// Whether this nonce was given out within the last minute and not used since; it is used now.
    pub fn use_nonce(&self, nonce: &str) -> bool {
        let made = lock(&self.pending_auth.nonces).remove(nonce);
        made.is_some_and(|made| self.clock.now_ms() - made < NONCE_LIFE_MS)
    }
}

fn challenge(session: &str, flows: &[&[Stage]], completed: &[Stage], refusal: Option<&Error>) -> Value {
    let names = |stages: &[Stage]| stages.iter().map(|s| s.as_str()).collect::<Vec<_>>();
    let flows: Vec<Value> = flows.iter().map(|flow| json!({ "stages": names(flow) })).collect();
    let mut body = json!({ "flows": flows, "params": {}, "session": session });
    if !completed.is_empty() {
        body["completed"] = json!(names(completed));
    }
    if let Some(refusal) = refusal {
        body["errcode"] = refusal.errcode().as_str().into();
        body["error"] = refusal.message().into();
    }
    body
}

/// The user that an `identifier` of type `m.id.user` names, by full id or by localpart, or the older field `user`. Capitals
/// are taken for what they are on a keyboard that begins sentences: no user of ours has any. None: it names nobody whom
/// this server could know.
pub fn user_of_identifier(object: &Map<String, Value>, server: &str) -> Option<UserId> {
    let name = match object.get("identifier") {
        Some(identifier) if identifier["type"] == "m.id.user" => identifier["user"].as_str()?,
        Some(_) => return None,
        None => object.get("user")?.as_str()?,
    };
    let localpart = match name.strip_prefix('@') {
        Some(id) => {
            let (localpart, of) = id.split_once(':')?;
            Some(localpart).filter(|_| of.eq_ignore_ascii_case(server))?
        }
        None => name,
    };
    let localpart = localpart.to_ascii_lowercase();
    UserId::parse(&format!("@{localpart}:{server}")).ok().filter(|user| user.localpart() == localpart)
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;
    use crate::config::Config;
    use crate::protocol::ServerName;
    use crate::service::Homeserver;

    const PASSWORD: &[&[Stage]] = &[&[Stage::Password]];
    const DUMMY: &[&[Stage]] = &[&[Stage::Dummy]];
    const TOKEN: &[&[Stage]] = &[&[Stage::RegistrationToken, Stage::Dummy]];
    const NAME: &str = "test";

    fn homeserver() -> Arc<Homeserver> {
        crate::testing::secluded(Config::for_name(ServerName::parse("example.org").unwrap()))
    }

    fn asker(user: Option<&UserId>) -> Asker<'_> {
        Asker { user, token: None, ended: false, from: Ipv4Addr::LOCALHOST.into() }
    }

    /// One request; what is done is to say what was asked for and what was proved.
    fn request(
        hs: &Homeserver,
        name: &'static str,
        flows: &[&[Stage]],
        user: Option<&UserId>,
        body: Value,
    ) -> Result<Told> {
        let action = Action { name, flows, incidental: &["note"] };
        let Value::Object(body) = body else { panic!("no object") };
        let read = |params: &Map<String, Value>| Ok(params.clone());
        hs.accounts().interactively(&action, asker(user), body, read, |params, proof| {
            Ok(json!({ "params": params, "user": proof.user, "token": proof.registration_token }))
        })
    }

    fn step(hs: &Homeserver, flows: &[&[Stage]], user: Option<&UserId>, auth: Value) -> Told {
        request(hs, NAME, flows, user, json!({ "auth": auth })).unwrap()
    }

    #[track_caller]
    fn asked(told: Told) -> Value {
        match told {
            Told::Ask(body) => body,
            Told::Done(answer) => panic!("done: {answer}"),
        }
    }

    #[track_caller]
    fn done(told: Told) -> Value {
        match told {
            Told::Done(answer) => serde_json::from_str(&answer).unwrap(),
            Told::Ask(body) => panic!("asked: {body}"),
        }
    }

    #[test]
    fn nothing_succeeds_without_auth_not_even_where_nothing_is_asked() {
        let hs = homeserver();
        let body = asked(step(&hs, DUMMY, None, Value::Null));
        assert_eq!(body["flows"], json!([{ "stages": ["m.login.dummy"] }]));
        done(step(&hs, DUMMY, None, json!({ "type": "m.login.dummy", "session": body["session"] })));
    }

    #[test]
    fn stages_are_taken_in_order_and_a_complete_one_is_not_taken_again() {
        let hs = homeserver();
        hs.accounts().add_registration_token("let-me-in", Some(1), None).unwrap();
        let session = asked(step(&hs, TOKEN, None, Value::Null))["session"].clone();
        let auth = |stage: &str| json!({ "type": stage, "token": "let-me-in", "session": session });
        let body = asked(step(&hs, TOKEN, None, auth("m.login.dummy")));
        assert_eq!(body["errcode"], "M_UNRECOGNIZED");
        let wrong = json!({ "type": "m.login.registration_token", "token": "wrong", "session": session });
        assert_eq!(asked(step(&hs, TOKEN, None, wrong))["errcode"], "M_UNAUTHORIZED");
        for _ in 0..2 {
            let body = asked(step(&hs, TOKEN, None, auth("m.login.registration_token")));
            assert_eq!(body["completed"], json!(["m.login.registration_token"]));
            assert_eq!(body.get("errcode"), None);
        }
        assert_eq!(done(step(&hs, TOKEN, None, auth("m.login.dummy")))["token"], "let-me-in");
        // The stages are complete: any repeat has the answer.
        for stage in ["m.login.dummy", "m.login.registration_token"] {
            assert_eq!(done(step(&hs, TOKEN, None, auth(stage)))["token"], "let-me-in");
        }
        assert_eq!(done(step(&hs, TOKEN, None, json!({ "session": session })))["token"], "let-me-in");
    }

    #[test]
    fn a_password_proves_only_the_account_that_the_request_is_about() {
        let hs = homeserver();
        let (alice, _) = hs.accounts().register_user("alice", Some("open sesame")).unwrap();
        hs.accounts().register_user("eve", Some("mine")).unwrap();
        let auth = |user: &str, password: &str| {
            json!({ "type": "m.login.password", "password": password,
                    "identifier": { "type": "m.id.user", "user": user } })
        };
        for (user, password) in [("alice", "wrong"), ("eve", "mine"), ("@alice:elsewhere", "open sesame")] {
            let body = asked(step(&hs, PASSWORD, Some(&alice), auth(user, password)));
            assert_eq!(body["errcode"], "M_FORBIDDEN", "{user}");
        }
        for user in ["alice", "@alice:example.org", "Alice", "@ALICE:Example.ORG"] {
            let answer = done(step(&hs, PASSWORD, Some(&alice), auth(user, "open sesame")));
            assert_eq!(answer["user"], alice.as_str(), "{user}");
        }
        let bare = json!({ "type": "m.login.password", "password": "open sesame" });
        done(step(&hs, PASSWORD, Some(&alice), bare.clone()));
        asked(step(&hs, PASSWORD, None, bare));
    }

    #[test]
    fn a_session_is_good_for_its_own_purpose_and_for_half_an_hour() {
        let hs = homeserver();
        let (alice, _) = hs.accounts().register_user("alice", None).unwrap();
        let session = asked(step(&hs, DUMMY, None, Value::Null))["session"].clone();
        let body = json!({ "auth": { "type": "m.login.dummy", "session": session } });
        for (name, user) in [("other", None), (NAME, Some(&alice))] {
            let other = asked(request(&hs, name, DUMMY, user, body.clone()).unwrap());
            assert_ne!(other["session"], session);
            assert_eq!(other.get("completed"), None, "{other}");
        }
        hs.clock.advance(Duration::from_secs(1800));
        let late = asked(request(&hs, NAME, DUMMY, None, body).unwrap());
        assert_ne!(late["session"], session);
    }

    #[test]
    fn one_session_does_one_thing_however_many_requests_prove_it_at_once() {
        let hs = homeserver();
        let session = asked(step(&hs, DUMMY, None, Value::Null))["session"].clone();
        let (deeds, action) = (AtomicUsize::new(0), Action { name: NAME, flows: DUMMY, incidental: &[] });
        let gate = std::sync::Barrier::new(16);
        let answers: Vec<(usize, Told)> = std::thread::scope(|scope| {
            let send = |n: usize| {
                let auth = json!({ "type": "m.login.dummy", "session": session });
                let Value::Object(body) = json!({ "name": n % 2, "auth": auth }) else { panic!() };
                gate.wait();
                let read = |params: &Map<String, Value>| Ok(params["name"].clone());
                let told = hs.accounts().interactively(&action, asker(None), body, read, |name, _| {
                    deeds.fetch_add(1, Ordering::SeqCst);
                    std::thread::yield_now();
                    Ok(name)
                });
                (n % 2, told.unwrap())
            };
            let threads: Vec<_> = (0..16).map(|n| scope.spawn(move || send(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(deeds.load(Ordering::SeqCst), 1);
        let winner =
            answers.iter().find_map(|(n, told)| matches!(told, Told::Done(_)).then_some(*n)).unwrap();
        for (n, told) in answers {
            match told {
                // Who asked for the same is told what came of it, and whoever asked for something else is not.
                Told::Done(answer) => assert_eq!((n, answer), (winner, winner.to_string())),
                Told::Ask(_) => assert_ne!(n, winner),
            }
        }
    }

    #[test]
    fn what_earlier_requests_said_counts_where_a_later_one_leaves_it_out() {
        let hs = homeserver();
        hs.accounts().add_registration_token("let-me-in", None, None).unwrap();
        let send = |body: Value| request(&hs, NAME, TOKEN, None, body).unwrap();
        let session = asked(send(json!({ "name": "a", "secret": "s" })))["session"].clone();
        let token = json!({ "type": "m.login.registration_token", "token": "let-me-in", "session": session });
        asked(send(json!({ "name": "b", "more": 1, "secret": null, "auth": token })));
        let answer = done(send(json!({ "auth": { "type": "m.login.dummy", "session": session } })));
        assert_eq!(answer["params"], json!({ "name": "b", "secret": "s", "more": 1 }));
        // Too much to be remembered has to be said again.
        let session = asked(send(json!({ "name": "x".repeat(MOST_SAID) })))["session"].clone();
        let token = json!({ "type": "m.login.registration_token", "token": "let-me-in", "session": session });
        asked(send(json!({ "auth": token })));
        let answer = done(send(json!({ "auth": { "type": "m.login.dummy", "session": session } })));
        assert_eq!(answer["params"], json!({}));
    }

    #[test]
    fn a_lost_answer_is_given_again_to_who_asks_for_the_same_and_for_ten_minutes() {
        let hs = homeserver();
        let session = asked(step(&hs, DUMMY, None, Value::Null))["session"].clone();
        let auth = json!({ "type": "m.login.dummy", "session": session });
        let send = |body: Value| request(&hs, NAME, DUMMY, None, body).unwrap();
        let first = done(send(json!({ "name": "a", "auth": auth })));
        for body in [
            json!({ "name": "a", "auth": auth }),
            json!({ "auth": auth }),
            json!({ "auth": { "session": session } }),
            json!({ "name": "a", "note": "changed", "auth": auth }),
        ] {
            assert_eq!(done(send(body)), first);
        }
        for body in [json!({ "name": "b", "auth": auth }), json!({ "name": "a", "more": 1, "auth": auth })] {
            asked(send(body));
        }
        hs.clock.advance(Duration::from_secs(600));
        asked(send(json!({ "name": "a", "auth": auth })));
    }

    #[test]
    fn what_failed_for_the_clients_own_fault_may_be_tried_again_and_what_broke_may_not() {
        let hs = homeserver();
        let action = Action { name: NAME, flows: DUMMY, incidental: &[] };
        let send = |auth: &Value, outcome: Result<Value>| {
            let body = Map::from_iter([("auth".to_owned(), auth.clone())]);
            hs.accounts().interactively(&action, asker(None), body, |_| Ok(()), |(), _| outcome)
        };
        let session = asked(send(&Value::Null, Ok(json!({}))).unwrap())["session"].clone();
        let auth = json!({ "type": "m.login.dummy", "session": session });
        let taken = Error::new(ErrCode::UserInUse, "taken");
        assert_eq!(send(&auth, Err(taken)).err().unwrap().errcode(), ErrCode::UserInUse);
        let body = asked(send(&auth, Err(Error::new(ErrCode::Unauthorized, "used up"))).unwrap());
        assert_eq!((&body["session"], &body["errcode"]), (&session, &json!("M_UNAUTHORIZED")));
        assert_eq!(body.get("completed"), None);
        assert_eq!(send(&auth, Err(Error::internal("fire"))).err().unwrap().status(), 500);
        asked(send(&auth, Ok(json!({}))).unwrap());
    }

    #[test]
    fn what_is_under_way_is_bounded_and_no_address_pushes_the_others_out() {
        let hs = homeserver();
        let action = Action { name: NAME, flows: PASSWORD, incidental: &[] };
        let begin = |from: u32, said: usize| {
            let asker = Asker { from: Ipv4Addr::from_bits(from).into(), ..asker(None) };
            let body = Map::from_iter([("said".to_owned(), "x".repeat(said).into())]);
            let told = hs.accounts().interactively(&action, asker, body, |_| Ok(()), |(), _| Ok(json!({})));
            asked(told.unwrap())["session"].as_str().unwrap().to_owned()
        };
        let honest = begin(1, 10);
        for _ in 0..MOST + 100 {
            begin(2, 0);
        }
        for n in 0..2000 {
            begin(100 + n % 30, 15_000);
        }
        let sessions = lock(&hs.pending_auth.sessions);
        assert!(sessions.all.len() <= MOST);
        assert!(sessions.all.values().map(Session::said).sum::<usize>() <= MOST_SAID_BY_ALL + MOST_SAID);
        assert!(sessions.all.contains_key(&honest));
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let hs = homeserver();
        let nonce = hs.accounts().new_nonce();
        assert!(
            hs.accounts().use_nonce(&nonce)
                && !hs.accounts().use_nonce(&nonce)
                && !hs.accounts().use_nonce("made up")
        );
        let nonce = hs.accounts().new_nonce();
        hs.clock.advance(Duration::from_secs(60));
        assert!(!hs.accounts().use_nonce(&nonce));
    }
}
