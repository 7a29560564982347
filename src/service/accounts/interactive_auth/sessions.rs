//! The sessions that are under way, bounded in number and in what they remember; and how one request finds what another
//! of its session left.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use serde_json::{Map, Value};

use super::GuardedAction;
use super::answers::{Fingerprints, is_same};
use super::stages::{Stage, StageProgress};
use crate::clock::Steady;
use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait_timeout};
use crate::protocol::UserId;
use crate::service::accounts::token_hash;
use crate::store::accounts::TokenHash;

/// Most sessions at once; beyond, the oldest of whoever has most are forgotten.
pub(super) const SESSIONS_MAX: usize = 4096;
/// Most sessions of one address.
const SESSIONS_OF_ADDRESS_MAX: usize = 1024;
/// What is remembered of the requests of one session, in bytes of JSON; who says more has to repeat it.
pub(super) const SAID_BYTES_MAX: usize = 16 << 10;
/// What is remembered of all sessions together, in bytes.
pub(super) const SAID_BYTES_BY_ALL_MAX: usize = 8 << 20;
/// Most requests that wait for another one of their session.
const WAITING_MAX: usize = 64;
/// How long a request waits for another one of its session.
const WAIT_TIMEOUT: Duration = Duration::from_secs(10);

/// How far a session is.
pub(super) enum SessionPhase {
    Open(StageProgress),
    /// It is being done, with these parameters.
    Running(Fingerprints),
    /// It was done, with these parameters and this answer.
    Done(Fingerprints, String),
}

/// One client on its way to one thing.
pub(super) struct UiaSession {
    /// What it may do in the end, and on whose behalf.
    pub(super) purpose: String,
    /// What that is, for people, and what is to be proved for it.
    pub(super) name: &'static str,
    pub(super) flows: &'static [&'static [Stage]],
    pub(super) address: IpAddr,
    pub(super) began: Steady,
    /// When it is forgotten.
    pub(super) until: Steady,
    /// The token of who began it: it may end with what is done.
    pub(super) token: Option<(TokenHash, UserId)>,
    pub(super) phase: SessionPhase,
}

impl UiaSession {
    /// How many bytes of its requests are remembered.
    pub(super) fn said(&self) -> usize {
        match &self.phase {
            SessionPhase::Open(open) => open.said.len(),
            SessionPhase::Running(_) | SessionPhase::Done(..) => 0,
        }
    }
}

/// Everything under way, bounded. Passwords and tokens are in it, so that none of it can be written to a log.
#[derive(Default)]
pub struct UiaSessions {
    pub(super) sessions: Mutex<SessionTable>,
    /// A session is running no more.
    ended: Condvar,
}

/// The sessions by id.
#[derive(Default)]
pub(super) struct SessionTable {
    pub(super) all: HashMap<String, UiaSession>,
    /// Requests that wait for another one of their session.
    waiting: usize,
}

impl SessionTable {
    /// The session of this id, if it has this purpose and its time is not over.
    pub(super) fn get(&mut self, id: &str, purpose: &str, now: Steady) -> Option<&mut UiaSession> {
        self.all.get_mut(id).filter(|session| session.purpose == purpose && now < session.until)
    }

    /// Makes room for one more of this address.
    pub(super) fn make_room(&mut self, address: IpAddr, now: Steady) {
        let said: usize = self.all.values().map(UiaSession::said).sum();
        let of = |all: &HashMap<String, UiaSession>, address: IpAddr| {
            all.values().filter(|session| session.address == address).count()
        };
        if self.all.len() < SESSIONS_MAX
            && said <= SAID_BYTES_BY_ALL_MAX
            && of(&self.all, address) < SESSIONS_OF_ADDRESS_MAX
        {
            return;
        }
        self.all.retain(|_, session| now < session.until);
        while of(&self.all, address) >= SESSIONS_OF_ADDRESS_MAX {
            self.forget_oldest_of(address);
        }
        while self.all.len() >= SESSIONS_MAX
            || self.all.values().map(UiaSession::said).sum::<usize>() > SAID_BYTES_BY_ALL_MAX
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
        let oldest = of_it.min_by_key(|(_, session)| session.began).map(|(id, _)| id.clone());
        if let Some(oldest) = oldest {
            self.all.remove(&oldest);
        }
    }
}

/// Whom a request finds in the session that it names.
pub(super) enum FoundSession {
    Nobody,
    Open(StageProgress),
    Done(String),
}

/// The running of a session. Dropped without an end, because it failed or panicked, the session is spent.
pub(super) struct ActionGuard<'p> {
    pub(super) pending: &'p UiaSessions,
    pub(super) id: &'p str,
}

impl ActionGuard<'_> {
    /// Puts the session into the phase that its action led to.
    pub(super) fn end(self, phase: SessionPhase, until: Steady) {
        if let Some(session) = lock(&self.pending.sessions).all.get_mut(self.id) {
            (session.phase, session.until) = (phase, until);
        }
    }
}

impl Drop for ActionGuard<'_> {
    fn drop(&mut self) {
        let mut sessions = lock(&self.pending.sessions);
        if matches!(sessions.all.get(self.id).map(|session| &session.phase), Some(SessionPhase::Running(_))) {
            sessions.all.remove(self.id);
        }
        self.pending.ended.notify_all();
    }
}

impl UiaSessions {
    /// Looks a session up for a request; one that is running is waited for. Errors: 429 `M_LIMIT_EXCEEDED` if that
    /// takes too long.
    pub(super) fn find(
        &self,
        id: Option<&str>,
        purpose: &str,
        params: &Map<String, Value>,
        action: &GuardedAction,
        now: Steady,
    ) -> Result<FoundSession> {
        let Some(id) = id else { return Ok(FoundSession::Nobody) };
        let deadline = Instant::now() + WAIT_TIMEOUT;
        let mut sessions = lock(&self.sessions);
        loop {
            let found = match sessions.get(id, purpose, now).map(|session| &session.phase) {
                None => FoundSession::Nobody,
                Some(SessionPhase::Open(open)) => FoundSession::Open(open.clone()),
                Some(SessionPhase::Running(before) | SessionPhase::Done(before, _))
                    if !is_same(id, params, before, action) =>
                {
                    FoundSession::Nobody
                }
                Some(SessionPhase::Done(_, answer)) => FoundSession::Done(answer.clone()),
                Some(SessionPhase::Running(_)) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() || sessions.waiting >= WAITING_MAX {
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
    pub fn ended_token(&self, token: &str, now: Steady) -> Option<UserId> {
        let hash = token_hash(token);
        let sessions = lock(&self.sessions);
        let done =
            sessions.all.values().filter(|s| matches!(s.phase, SessionPhase::Done(..)) && now < s.until);
        let mut tokens = done.filter_map(|session| session.token.as_ref());
        tokens.find(|(token, _)| *token == hash).map(|(_, user)| user.clone())
    }
}
