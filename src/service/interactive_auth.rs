//! User-interactive authentication (client-server API, "User-Interactive Authentication API"): a client proves, stage by
//! stage, that it may do one thing; and the nonces of registrations with the shared secret.
//!
//! What is under way lives in memory only: after a restart a client is asked again.

use std::collections::HashMap;
use std::sync::{Mutex, MutexGuard, PoisonError};

use serde_json::{Map, Value, json};

use super::{Homeserver, random};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;

/// How long a client has from its first request to the last stage.
const SESSION_LIFE_MS: Millis = 30 * 60 * 1000;
/// How long a nonce is good.
const NONCE_LIFE_MS: Millis = 60 * 1000;
/// Most sessions and nonces at once; beyond, the oldest are forgotten.
const MOST: usize = 4096;

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

/// What was proved; `Homeserver::auth_is_spent` ends it once the thing is done.
#[derive(Debug, Clone)]
pub struct Proof {
    /// The session it was proved in.
    session: String,
    /// The user whose password was given.
    pub user: Option<UserId>,
    /// The registration token that was given.
    pub registration_token: Option<String>,
}

/// Where a client stands.
#[derive(Debug)]
pub enum Progress {
    /// All stages of a flow are complete: do it.
    Proved(Proof),
    /// Answer 401 with this body.
    Ask(Value),
}

/// What one client is to prove, and what it has proved so far.
#[derive(Debug, Clone)]
struct Session {
    /// What it may do in the end, and on whose behalf: a session for one thing is none for another.
    purpose: String,
    completed: Vec<Stage>,
    user: Option<UserId>,
    registration_token: Option<String>,
    began_ms: Millis,
}

/// Everything under way, bounded.
#[derive(Debug, Default)]
pub struct PendingAuth {
    sessions: Mutex<HashMap<String, Session>>,
    nonces: Mutex<HashMap<String, Millis>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Forgets what is older than `life`, and if that is not enough the oldest.
fn make_room<T>(all: &mut HashMap<String, T>, now: Millis, life: Millis, began: impl Fn(&T) -> Millis) {
    if all.len() < MOST {
        return;
    }
    all.retain(|_, entry| now - began(entry) < life);
    while all.len() >= MOST {
        let Some(oldest) = all.iter().min_by_key(|(_, entry)| began(entry)).map(|(id, _)| id.clone()) else {
            return;
        };
        all.remove(&oldest);
    }
}

impl Homeserver {
    /// Takes one step of authentication for `action` (any name for the thing to be done). `requester` is whose token
    /// the request carries, `auth` the request's `auth` field. Each flow is a list of stages to complete in order.
    pub fn authenticate_interactively(
        &self,
        action: &str,
        flows: &[&[Stage]],
        requester: Option<&UserId>,
        auth: Option<&Value>,
    ) -> Result<Progress> {
        let now = self.clock.now_ms();
        let auth = match auth {
            None | Some(Value::Null) => None,
            Some(Value::Object(auth)) => Some(auth),
            Some(_) => return Err(Error::bad_json("auth must be an object")),
        };
        let purpose = format!("{action} {}", requester.map_or("", UserId::as_str));
        let named = auth.and_then(|a| a.get("session")).and_then(Value::as_str);
        let known =
            named.and_then(|id| Some((id.to_owned(), lock(&self.pending_auth.sessions).get(id)?.clone())));
        let (id, mut session) = known
            .filter(|(_, s)| s.purpose == purpose && now - s.began_ms < SESSION_LIFE_MS)
            .unwrap_or_else(|| {
                let session = Session {
                    purpose,
                    completed: Vec::new(),
                    user: None,
                    registration_token: None,
                    began_ms: now,
                };
                (random::token(), session)
            });

        let mut refusal = None;
        if let Some(auth) = auth
            && auth.contains_key("type")
        {
            refusal = self.take_stage(&mut session, flows, requester, auth)?.err();
        }
        let proved = auth.is_some() && flows.iter().any(|flow| session.completed == *flow);
        {
            let mut sessions = lock(&self.pending_auth.sessions);
            make_room(&mut sessions, now, SESSION_LIFE_MS, |s| s.began_ms);
            sessions.insert(id.clone(), session.clone());
        }
        if proved && refusal.is_none() {
            let Session { user, registration_token, .. } = session;
            return Ok(Progress::Proved(Proof { session: id, user, registration_token }));
        }
        Ok(Progress::Ask(challenge(&id, flows, &session.completed, refusal.as_ref())))
    }

    /// Tries the stage that `auth` names. The inner error is for the client, who may try again.
    fn take_stage(
        &self,
        session: &mut Session,
        flows: &[&[Stage]],
        requester: Option<&UserId>,
        auth: &Map<String, Value>,
    ) -> Result<Result<()>> {
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
                match self.check_password(&user, text("password").unwrap_or_default()) {
                    Ok(_) => session.user = Some(user),
                    Err(e) if e.errcode() == ErrCode::Forbidden => return Ok(Err(e)),
                    Err(e) => return Err(e),
                }
            }
        }
        session.completed.push(stage);
        Ok(Ok(()))
    }

    /// The thing that was proved is done: the session cannot be used for it again.
    pub fn auth_is_spent(&self, proof: &Proof) {
        lock(&self.pending_auth.sessions).remove(&proof.session);
    }

    /// A nonce that is good for one registration within a minute.
    pub fn new_nonce(&self) -> String {
        let (nonce, now) = (random::token(), self.clock.now_ms());
        let mut nonces = lock(&self.pending_auth.nonces);
        make_room(&mut nonces, now, NONCE_LIFE_MS, |made| *made);
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

/// The user that an `identifier` of type `m.id.user` names, by full id or by localpart, or the older field `user`.
/// None: it names nobody whom this server could know.
pub fn user_of_identifier(object: &Map<String, Value>, server: &str) -> Option<UserId> {
    let name = match object.get("identifier") {
        Some(identifier) if identifier["type"] == "m.id.user" => identifier["user"].as_str()?,
        Some(_) => return None,
        None => object.get("user")?.as_str()?,
    };
    if name.starts_with('@') {
        return UserId::parse(name).ok().filter(|user| user.server_name() == server);
    }
    UserId::parse(&format!("@{name}:{server}")).ok().filter(|user| user.localpart() == name)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::time::Duration;

    use super::*;
    use crate::clock::Clock;
    use crate::config::Config;

    const PASSWORD: &[&[Stage]] = &[&[Stage::Password]];

    fn homeserver() -> Arc<Homeserver> {
        Homeserver::open(Config::for_name(ServerName::parse("example.org").unwrap()), Clock::new()).unwrap()
    }

    use crate::protocol::ServerName;

    fn step(hs: &Homeserver, flows: &[&[Stage]], user: Option<&UserId>, auth: Value) -> Progress {
        hs.authenticate_interactively("test", flows, user, Some(&auth).filter(|a| !a.is_null())).unwrap()
    }

    fn asked(progress: Progress) -> Value {
        match progress {
            Progress::Ask(body) => body,
            Progress::Proved(proof) => panic!("proved: {proof:?}"),
        }
    }

    #[test]
    fn nothing_succeeds_without_auth_not_even_where_nothing_is_asked() {
        let hs = homeserver();
        let body = asked(step(&hs, &[&[Stage::Dummy]], None, Value::Null));
        assert_eq!(body["flows"], json!([{ "stages": ["m.login.dummy"] }]));
        let auth = json!({ "type": "m.login.dummy", "session": body["session"] });
        assert!(matches!(step(&hs, &[&[Stage::Dummy]], None, auth), Progress::Proved(_)));
    }

    #[test]
    fn stages_are_taken_in_order_and_a_complete_one_is_not_taken_again() {
        let hs = homeserver();
        hs.add_registration_token("let-me-in", Some(1), None).unwrap();
        let flows: &[&[Stage]] = &[&[Stage::RegistrationToken, Stage::Dummy]];
        let session = asked(step(&hs, flows, None, Value::Null))["session"].clone();
        let auth = |stage: &str| json!({ "type": stage, "token": "let-me-in", "session": session });
        let body = asked(step(&hs, flows, None, auth("m.login.dummy")));
        assert_eq!(body["errcode"], "M_UNRECOGNIZED");
        let wrong = json!({ "type": "m.login.registration_token", "token": "wrong", "session": session });
        assert_eq!(asked(step(&hs, flows, None, wrong))["errcode"], "M_UNAUTHORIZED");
        for _ in 0..2 {
            let body = asked(step(&hs, flows, None, auth("m.login.registration_token")));
            assert_eq!(body["completed"], json!(["m.login.registration_token"]));
            assert_eq!(body.get("errcode"), None);
        }
        let Progress::Proved(proof) = step(&hs, flows, None, auth("m.login.dummy")) else { panic!() };
        assert_eq!(proof.registration_token.as_deref(), Some("let-me-in"));
        assert!(matches!(step(&hs, flows, None, json!({ "session": session })), Progress::Proved(_)));
        hs.auth_is_spent(&proof);
        asked(step(&hs, flows, None, json!({ "session": session })));
    }

    #[test]
    fn a_password_proves_only_the_account_that_the_request_is_about() {
        let hs = homeserver();
        let (alice, _) = hs.register_user("alice", Some("open sesame")).unwrap();
        hs.register_user("eve", Some("mine")).unwrap();
        let auth = |user: &str, password: &str| {
            json!({ "type": "m.login.password", "password": password,
                    "identifier": { "type": "m.id.user", "user": user } })
        };
        for (user, password) in [("alice", "wrong"), ("eve", "mine"), ("@alice:elsewhere", "open sesame")] {
            let body = asked(step(&hs, PASSWORD, Some(&alice), auth(user, password)));
            assert_eq!(body["errcode"], "M_FORBIDDEN", "{user}");
        }
        for user in ["alice", "@alice:example.org"] {
            let progress = step(&hs, PASSWORD, Some(&alice), auth(user, "open sesame"));
            assert!(
                matches!(progress, Progress::Proved(proof) if proof.user.as_ref() == Some(&alice)),
                "{user}"
            );
        }
        let bare = json!({ "type": "m.login.password", "password": "open sesame" });
        assert!(matches!(step(&hs, PASSWORD, Some(&alice), bare.clone()), Progress::Proved(_)));
        asked(step(&hs, PASSWORD, None, bare));
    }

    #[test]
    fn a_session_is_good_for_its_own_purpose_and_for_half_an_hour() {
        let hs = homeserver();
        let flows: &[&[Stage]] = &[&[Stage::Dummy]];
        let Progress::Proved(proof) = step(&hs, flows, None, json!({ "type": "m.login.dummy" })) else {
            panic!()
        };
        let auth = json!({ "session": proof.session });
        let other = hs.authenticate_interactively("other", flows, None, Some(&auth)).unwrap();
        assert_ne!(asked(other)["session"], proof.session);
        hs.clock.advance(Duration::from_secs(3600));
        asked(step(&hs, flows, None, auth));
    }

    #[test]
    fn what_is_under_way_is_bounded() {
        let hs = homeserver();
        for _ in 0..MOST + 100 {
            step(&hs, PASSWORD, None, Value::Null);
        }
        assert!(lock(&hs.pending_auth.sessions).len() <= MOST);
    }

    #[test]
    fn a_nonce_is_good_once_and_for_a_minute() {
        let hs = homeserver();
        let nonce = hs.new_nonce();
        assert!(hs.use_nonce(&nonce) && !hs.use_nonce(&nonce) && !hs.use_nonce("made up"));
        let nonce = hs.new_nonce();
        hs.clock.advance(Duration::from_secs(60));
        assert!(!hs.use_nonce(&nonce));
    }
}
