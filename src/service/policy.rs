//! Policy servers as we meet them (server-server API, "Policy Servers"): in a room that uses one, our events are signed
//! by it before anybody sees them, and events of others that lack its signature are soft-failed. We are none ourselves.
//!
//! The policy server is asked before an event is judged, holding nothing; the judgement then looks only at whether the
//! signature is there. History is not judged by it, as it is not by the room's current state: what is fetched to fill a
//! hole was in the room before.

use std::collections::HashMap;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Homeserver;
use crate::error::{ErrCode, Error, Result};
use crate::federation::client::{CallError, Refusal};
use crate::protocol::event_auth::AuthError;
use crate::protocol::policy_server::{self, PolicyServer};
use crate::protocol::{Pdu, ServerName};
use crate::store::{Db, Room};

/// How many events of one transaction are asked about at the same time.
const AT_ONCE: usize = 8;
/// For how long the events of one transaction may wait for the policy server. Those that it has not signed by then are
/// soft-failed.
const PATIENCE: Duration = Duration::from_secs(30);
/// For how long a policy server that could not be reached is not asked about events of others.
const SILENCE: Duration = Duration::from_secs(60);
/// So many silent policy servers are remembered.
const MOST_SILENT: usize = 1000;

/// The policy servers that could not be reached, each with the time at which it is asked again.
#[derive(Default)]
pub struct Silent(Mutex<HashMap<ServerName, Instant>>);

impl Silent {
    fn is_silent(&self, server: &ServerName, now: Instant) -> bool {
        let silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.get(server).is_some_and(|until| *until > now)
    }

    fn note(&self, server: &ServerName, now: Instant) {
        let mut silent = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        silent.retain(|_, until| *until > now);
        if silent.len() < MOST_SILENT {
            silent.insert(server.clone(), now + SILENCE);
        }
    }
}

/// The policy server that a room uses: its current state names one that has a joined user in it.
fn of_room(db: &Db<'_>, room: &Room) -> Result<Option<PolicyServer>> {
    let Some(setting) = db.state_event(room.key, policy_server::SETTING, "")? else { return Ok(None) };
    match PolicyServer::from_content(&setting.content()) {
        Some(policy) if db.is_resident(room.key, &policy.via)? => Ok(Some(policy)),
        _ => Ok(None),
    }
}

/// The policy server that has yet to sign an event; none if the room uses none or the event needs no signature (any
/// more).
pub(crate) fn lacking(db: &Db<'_>, room: &Room, event: &Pdu) -> Result<Option<PolicyServer>> {
    if !policy_server::is_checked(event) {
        return Ok(None);
    }
    Ok(of_room(db, room)?.filter(|policy| !policy.has_signed(event)))
}

/// Step 7 of the checks on receipt: "Is validated by the Policy Server, if the room is using a Policy Server, otherwise
/// it is soft failed."
pub(crate) fn verdict(db: &Db<'_>, room: &Room, event: &Pdu) -> Result<Result<(), AuthError>> {
    Ok(match lacking(db, room, event)? {
        None => Ok(()),
        Some(policy) => {
            let why = format!("the room's policy server {} has not signed the event", policy.via);
            Err(AuthError::unnumbered(room.version, why))
        }
    })
}

impl Homeserver {
    /// An event that we are about to bring into its room, with the signature of the room's policy server if it uses one.
    /// Errors: what the policy server says; 502 and 504 if that is nothing of use.
    pub(crate) fn with_policy_signature(&self, event: Pdu) -> Result<Pdu> {
        let policy = self.store.read(|db| match db.room(event.room_id())? {
            Some(room) if !is_in_room(db, &event)? => lacking(db, &room, &event),
            _ => Ok(None),
        })?;
        match policy {
            Some(policy) => self.ask_policy_server(&policy, &event),
            None => Ok(event),
        }
    }

    /// Asks a policy server for its signature of an event. Errors: its refusal as it said it ("that error SHOULD be
    /// provided to the client verbatim"), 502 for an answer without a valid signature, 504 if it is not reached.
    pub(crate) fn ask_policy_server(&self, policy: &PolicyServer, event: &Pdu) -> Result<Pdu> {
        let via = &policy.via;
        if via == self.server_name() {
            return Err(Error::forbidden("The room's policy server is this server, which is none"));
        }
        let answer = self.federation.policy_sign(via, event.json()).map_err(|e| as_told(e, via))?;
        policy.with_signature(event, &answer).ok_or_else(|| {
            Error::bad_gateway(format!("The room's policy server {via} gave no valid signature"))
        })
    }

    /// Events of others, each with the signature of the room's policy server where it was missing and is to be had. "If
    /// the Policy Server's signature is invalid or missing, the homeserver SHOULD ask for a new signature."
    pub(crate) fn with_policy_signatures(&self, room: &Room, mut events: Vec<Pdu>) -> Result<Vec<Pdu>> {
        let Some((policy, unsigned)) = self.store.read(|db| {
            let Some(policy) = of_room(db, room)? else { return Ok(None) };
            let mut unsigned = Vec::new();
            for (index, event) in events.iter().enumerate() {
                if policy_server::is_checked(event) && !policy.has_signed(event) && !is_in_room(db, event)? {
                    unsigned.push(index);
                }
            }
            Ok(Some((policy, unsigned)))
        })?
        else {
            return Ok(events);
        };
        let until = self.clock.instant() + PATIENCE;
        let next = AtomicUsize::new(0);
        let signed = Mutex::new(Vec::new());
        let work = || {
            while let Some(index) = unsigned.get(next.fetch_add(1, Ordering::Relaxed)) {
                let now = self.clock.instant();
                if now >= until || self.policy_servers.is_silent(&policy.via, now) {
                    return;
                }
                match self.ask_policy_server(&policy, &events[*index]) {
                    Ok(event) => {
                        signed.lock().unwrap_or_else(PoisonError::into_inner).push((*index, event));
                    }
                    Err(e) => {
                        log::info!("{} is not signed by {}: {e}", events[*index].event_id(), policy.via);
                        if e.status() == 504 {
                            self.policy_servers.note(&policy.via, self.clock.instant());
                        }
                    }
                }
            }
        };
        std::thread::scope(|scope| {
            // This thread is one of them.
            for _ in 1..unsigned.len().min(AT_ONCE) {
                let thread = std::thread::Builder::new().name("policy".into()).stack_size(512 * 1024);
                if let Err(e) = thread.spawn_scoped(scope, work) {
                    log::warn!("no thread to ask a policy server with: {e}");
                    break;
                }
            }
            work();
        });
        for (index, event) in signed.into_inner().unwrap_or_else(PoisonError::into_inner) {
            events[index] = event;
        }
        Ok(events)
    }
}

/// Whether the event has its place in the room already, so that nothing has to be decided about it.
fn is_in_room(db: &Db<'_>, event: &Pdu) -> Result<bool> {
    Ok(db.event_status(event.event_id())?.is_some_and(|(_, outlier)| !outlier))
}

/// A policy server's refusal as our client is to hear it: in its own words, unless it speaks of our standing with it, or
/// would have the client believe something about its own account.
fn as_told(error: CallError, via: &ServerName) -> Error {
    use ErrCode::{BadJson, Forbidden, LimitExceeded, NotJson, TooLarge};
    let code =
        error.errcode().filter(|code| [BadJson, Forbidden, LimitExceeded, NotJson, TooLarge].contains(code));
    let wait = error.retry_after();
    match (error, code) {
        (CallError::Refused(refusal), Some(code)) if (400..500).contains(&refusal.status) => {
            let Refusal { status, message, .. } = *refusal;
            let told = Error::new(code, message).with_status(if status == 401 { 403 } else { status });
            match wait {
                Some(wait) => {
                    told.with_field("retry_after_ms", u64::try_from(wait.as_millis()).unwrap_or(u64::MAX))
                }
                None => told,
            }
        }
        (CallError::Refused(refusal), _) => {
            let why = refusal.message;
            Error::bad_gateway(format!("The room's policy server {via} did not sign the event: {why}"))
        }
        (other, _) => other.into_client_error(via),
    }
}
