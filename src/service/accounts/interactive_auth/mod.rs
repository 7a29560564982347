//! User-interactive authentication (client-server API, "User-Interactive Authentication API"): a client proves, stage
//! by stage, that it may do one thing, and then that thing is done, once.
//!
//! [`Accounts::interactively`] is the only way through. A session goes from *open* (stages are taken, and what the
//! client's requests said is remembered for those that leave it out) to *running* before anything is done, so that of
//! many requests that prove the same one acts; and from there to *done*, with the answer, which a client gets again
//! whose answer was lost. What failed for the client's own fault is open again.
//!
//! All of it lives in memory only: after a restart a client is asked again.
//!
//! - `stages`: what can be proved, and what is asked for still.
//! - `fallback`: a stage that is completed in a browser, for a client that does not know it.
//! - `sessions`: what is under way, and its bounds.
//! - `answers`: who gets an answer again.

mod answers;
mod fallback;
mod sessions;
mod stages;

use std::net::IpAddr;

use serde_json::{Map, Value};

pub use self::fallback::AskedStage;
pub use self::sessions::UiaSessions;
pub use self::stages::{Stage, identified_user, user_of_identifier};

use self::answers::{acted_upon, fingerprints, resumed};
use self::sessions::{
    ActionGuard, FoundSession, SAID_BYTES_BY_ALL_MAX, SAID_BYTES_MAX, SessionPhase, UiaSession,
};
use self::stages::{StageProgress, challenge};
use crate::address::group;
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::UserId;
use crate::random;
use crate::service::accounts::passwords::PasswordProof;
use crate::service::accounts::{Accounts, token_hash};

/// How long a client has from its first request to the last stage.
const SESSION_LIFE_MS: Millis = 30 * 60 * 1000;
/// How long an answer is kept for a client that did not get it.
const ANSWER_LIFE_MS: Millis = 10 * 60 * 1000;

/// What may be done only by who has proved that they may.
#[derive(Debug, Clone, Copy)]
pub struct GuardedAction {
    /// A name for it, which people are shown as what they allow: a session for one thing is none for another.
    pub name: &'static str,
    /// What is to be proved: each flow is a list of stages to complete in order.
    pub flows: &'static [&'static [Stage]],
    /// Parameters that a repeated request may change and still be the same.
    pub incidental: &'static [&'static str],
    /// Parameters that say what is acted upon: what a stage was completed for cannot become something else by them.
    pub fixed: &'static [&'static str],
}

/// Who asks for it.
#[derive(Clone, Copy)]
pub struct UiaClient<'a> {
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
    /// The password that was given.
    pub password: Option<PasswordProof>,
    /// The registration token that was given.
    pub registration_token: Option<String>,
}

/// What the client is told.
pub enum AuthOutcome {
    /// It is done, now or before: the answer, JSON.
    Done(String),
    /// Answer 401 with this body.
    Ask(Value),
}

/// The result, with what the client is asked for where a longer flow goes on from here: some libraries go by the longest one,
/// and read of the result what they need for its last stage. They get the same again for that.
fn with_what_goes_on(mut answer: Value, ask: Value, flows: &[&[Stage]], completed: &[Stage]) -> Value {
    let goes_on = |flow: &&[Stage]| flow.len() > completed.len() && flow.starts_with(completed);
    if let (Value::Object(answer), Value::Object(ask)) = (&mut answer, ask)
        && flows.iter().any(goes_on)
    {
        ask.into_iter().for_each(|(name, value)| {
            answer.entry(name).or_insert(value);
        });
    }
    answer
}

impl Accounts<'_> {
    /// Does `deed` for a client that has proved that it may, or says what it has to prove still. `params` is the
    /// request's body, `auth` in it. What an earlier request of the session said counts where this one leaves it out;
    /// `check` reads the parameters, and refuses before anything is asked what could not be done anyway. Errors: those
    /// of `check` and `deed`, 400 `M_BAD_JSON`, 429 `M_LIMIT_EXCEEDED`, 401 `M_UNKNOWN_TOKEN` for an asker whose token
    /// has ended.
    pub fn interactively<P>(
        &self,
        action: &GuardedAction,
        client: UiaClient<'_>,
        mut params: Map<String, Value>,
        check: impl FnOnce(&Map<String, Value>) -> Result<P>,
        deed: impl FnOnce(P, &Proof) -> Result<Value>,
    ) -> Result<AuthOutcome> {
        let auth = match params.remove("auth") {
            None | Some(Value::Null) => None,
            Some(Value::Object(auth)) => Some(auth),
            Some(_) => return Err(Error::bad_json("auth must be an object")),
        };
        // Several clients write `null` for what they leave out.
        params.retain(|_, value| !value.is_null());
        let purpose = format!("{} {}", action.name, client.user.map_or("", UserId::as_str));
        let named = auth.as_ref().and_then(|auth| auth.get("session")).and_then(Value::as_str);
        let named = named.filter(|id| !id.is_empty());
        let found = self.uia_sessions.find(named, &purpose, &params, action, self.clock.steady())?;
        let going_on = match found {
            FoundSession::Done(answer) => return Ok(AuthOutcome::Done(answer)),
            FoundSession::Open(open) => named.and_then(|id| resumed(id, open, &params, action)),
            FoundSession::Nobody => None,
        };
        // What is sent for a session that is spent, or of no session of this server, or for something else than its own,
        // proves nothing: it begins anew, without it.
        let auth = auth.as_ref().filter(|_| named.is_none() || going_on.is_some());
        let named = named.filter(|_| going_on.is_some()).map(str::to_owned);
        if client.ended {
            let unknown = Error::new(ErrCode::UnknownToken, "Unknown access token");
            return Err(unknown.with_field("soft_logout", false));
        }
        let (mut open, params) = match going_on {
            Some((open, params)) => (self.store.read(|db| open.still_good(db))?, params),
            None => (StageProgress::default(), params),
        };
        let id = named.clone().unwrap_or_else(random::token);
        open.acts_upon = Some(acted_upon(&id, &params, action));
        open.said = Some(Value::from(params.clone()).to_string())
            .filter(|s| s.len() <= SAID_BYTES_MAX)
            .unwrap_or_default();
        let checked = check(&params)?;
        let refusal = match auth {
            Some(auth) if auth.contains_key("type") => {
                self.take_stage(&mut open, action.flows, &client, auth)?.err()
            }
            _ => None,
        };
        let proved = auth.is_some() && refusal.is_none();
        let proved = proved && action.flows.iter().any(|flow| open.completed == *flow);
        let ask = challenge(&id, action.flows, &open.completed, refusal.as_ref());
        let proof =
            Proof { password: open.password.clone(), registration_token: open.registration_token.clone() };
        let again = open.clone();
        let before = proved.then(|| fingerprints(&id, &params));
        let phase = before.clone().map_or(SessionPhase::Open(open), SessionPhase::Running);
        if !self.go_on(&id, named.is_some(), (action, &purpose), &client, phase) {
            // Another request of the session was faster.
            return match self.uia_sessions.find(Some(&id), &purpose, &params, action, self.clock.steady())? {
                FoundSession::Done(answer) => Ok(AuthOutcome::Done(answer)),
                FoundSession::Open(_) | FoundSession::Nobody => Ok(AuthOutcome::Ask(ask)),
            };
        }
        let Some(before) = before else { return Ok(AuthOutcome::Ask(ask)) };
        let running = ActionGuard { pending: &self.uia_sessions, id: &id };
        let error = match deed(checked, &proof) {
            Ok(answer) => {
                let answer = with_what_goes_on(answer, ask, action.flows, &again.completed).to_string();
                running.end(SessionPhase::Done(before, answer.clone()), self.clock.steady() + ANSWER_LIFE_MS);
                return Ok(AuthOutcome::Done(answer));
            }
            Err(error) => error,
        };
        let until = self.clock.steady() + SESSION_LIFE_MS;
        match error.status() {
            // What was proved is good no more: a registration token that somebody else has used up meanwhile.
            401 => {
                running.end(SessionPhase::Open(again.unproved()), until);
                Ok(AuthOutcome::Ask(challenge(&id, action.flows, &[], Some(&error))))
            }
            // Nothing was done, and the client can mend it: a taken name, a weak password.
            400..500 => {
                running.end(SessionPhase::Open(StageProgress { acts_upon: None, ..again }), until);
                Err(error)
            }
            // Whether anything was done is not known.
            _ => Err(error),
        }
    }

    /// Puts a session into its next phase, unless another request did meanwhile. `known`: there is one of this id.
    fn go_on(
        &self,
        id: &str,
        known: bool,
        (action, purpose): (&GuardedAction, &str),
        client: &UiaClient<'_>,
        mut phase: SessionPhase,
    ) -> bool {
        let (now, address) = (self.clock.steady(), group(client.from));
        let mut sessions = lock(&self.uia_sessions.sessions);
        if known {
            let said: usize = sessions.all.values().map(UiaSession::said).sum();
            if let SessionPhase::Open(open) = &mut phase
                && said + open.said.len() > SAID_BYTES_BY_ALL_MAX
            {
                open.said = String::new();
            }
            let Some(session) = sessions.get(id, purpose, now) else { return false };
            let SessionPhase::Open(before) = &session.phase else { return false };
            // Of two requests that each completed a stage the later one knows nothing of the other's, nor of what somebody was
            // shown meanwhile.
            if let SessionPhase::Open(open) = &phase
                && (open.completed.len() < before.completed.len() || before.is_shown && !open.is_shown)
            {
                return false;
            }
            session.phase = phase;
            return true;
        }
        sessions.make_room(address, now);
        let token = client.token.zip(client.user).map(|(token, user)| (token_hash(token), user.clone()));
        let until = now + SESSION_LIFE_MS;
        let (name, flows, purpose) = (action.name, action.flows, purpose.to_owned());
        let session = UiaSession { purpose, name, flows, address, began: now, until, token, phase };
        sessions.all.insert(id.to_owned(), session);
        true
    }
}

#[cfg(test)]
mod tests;
