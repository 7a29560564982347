//! Policy servers as we meet them (server-server API, "Policy Servers"): in a room that uses one, our events are signed
//! by it before anybody sees them, and events of others that lack its signature are soft-failed. We are none ourselves.
//!
//! The policy server is asked before an event is authorised, holding nothing; the check then looks only at whether
//! the signature is there. That goes for history too, as what it has refused is shown to nobody who comes later: who had a
//! message refused could send another one behind it. But policy servers die, and a room's past does not end with them:
//! where it does not answer, what was said before we came into the room is held against the policy server that the room
//! had at that event, whose key its state has. What fills a later gap may have been made for it: of that, an event that
//! nobody says yes or no to waits, as one that cannot be verified does, and what is before it is received. Events without a place, the state and the auth events that others refer to, are not asked about: a
//! soft failure keeps an event from clients and from being built upon, and these are neither shown nor built upon
//! before they have a place.
//!
//! Who waits for our answer to a transaction must not wait for ever: all policy servers of its rooms are asked side by
//! side, for a bounded time, and one that fails is left alone for a while.

use std::collections::{BTreeMap, HashSet};
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::bounded::BoundedMap;
use crate::clock::{Millis, Steady};
use crate::error::{ErrCode, Error, Result};
use crate::federation::{CallError, PeerError};
use crate::locks::{self, lock};
use crate::protocol::event_auth::AuthError;
use crate::protocol::rooms::policy_server::{self, PolicyServer};
use crate::protocol::{EventId, Pdu, ServerName, VerifiedPdu};
use crate::service::events::Events;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, Room};

/// For how long events that came together may wait for their policy servers. Those that are not signed by then are
/// soft-failed.
const SIGNATURES_TIMEOUT: Duration = Duration::from_secs(10);
/// And an event that a local user sends, or that is handed to us: policy servers may look at what an event refers to,
/// media for example.
const SENDER_SIGNATURE_TIMEOUT: Duration = Duration::from_secs(30);
/// Who had at least this time to answer, and did not, is taken to be out of reach.
const FAIR_ANSWER_TIMEOUT: Duration = Duration::from_secs(5);
/// How many events one policy server is asked about at the same time: fewer if there are more policy servers than
/// [`FEW_SERVERS_MAX`].
const ASKED_AT_ONCE_MAX: usize = 4;
const FEW_SERVERS_MAX: usize = 8;
/// For how long a policy server that failed is not asked about events of others.
const SILENT_BACKOFF: Backoff = Backoff::doubling(60_000, 16 * 60_000);
/// So many silent policy servers are remembered.
const SILENT_MAX: usize = 1000;

/// The policy servers that failed lately.
#[derive(Default)]
pub struct PolicyBackoff(Mutex<BoundedMap<ServerName, PolicyPause, SILENT_MAX>>);

struct PolicyPause {
    until: Steady,
    pause: Millis,
}

impl PolicyBackoff {
    fn is_silent(&self, server: &ServerName, now: Steady) -> bool {
        let silent = lock(&self.0);
        silent.get(server).is_some_and(|silence| silence.until > now)
    }

    /// A policy server did not do its duty.
    fn failed(&self, server: &ServerName, now: Steady) {
        let mut silent = lock(&self.0);
        // Who fails again soon after it is asked again is left alone for longer.
        silent.retain(|_, silence| silence.until + silence.pause > now);
        let pause = match silent.get(server) {
            // Several were asked at once: it is one failure.
            Some(silence) if silence.until > now => return,
            Some(silence) => SILENT_BACKOFF.after_ms(silence.pause),
            None => SILENT_BACKOFF.first_ms,
        };
        silent.try_insert(server.clone(), PolicyPause { until: now + pause, pause });
    }

    fn answered(&self, server: &ServerName) {
        lock(&self.0).remove(server);
    }
}

/// Why an event has no signature.
struct UnsignedEvent {
    why: Error,
    /// It may have one some other time: the policy server has not said no.
    undecided: bool,
}

/// The policy server that a room uses: its current state names one that has a joined user in it.
pub(in crate::service) fn policy_server_of(db: &Db<'_>, room: &Room) -> Result<Option<PolicyServer>> {
    let Some(setting) = db.state_event(room.key, policy_server::POLICY_EVENT_TYPE, "")? else {
        return Ok(None);
    };
    match PolicyServer::from_content(&setting.content()) {
        Some(policy) if db.is_resident(room.key, &policy.via)? => Ok(Some(policy)),
        _ => Ok(None),
    }
}

/// The policy server that has yet to sign an event; none if the room uses none or the event needs no signature (any
/// more).
pub(in crate::service) fn policy_server_to_ask(
    db: &Db<'_>,
    room: &Room,
    event: &Pdu,
) -> Result<Option<PolicyServer>> {
    if !policy_server::is_checked(event) {
        return Ok(None);
    }
    Ok(policy_server_of(db, room)?.filter(|policy| !policy.has_signed(event)))
}

/// Check 7 on receipt: "Is validated by the Policy Server, if the room is using a Policy Server, otherwise
/// it is soft failed." `then`: the state before an event of the past about which the policy server does not say anything.
pub(in crate::service) fn verdict(
    db: &Db<'_>,
    room: &Room,
    event: &Pdu,
    then: Option<&StateRef>,
) -> Result<Result<(), AuthError>> {
    let now = policy_server_to_ask(db, room, event)?;
    let lacking = match then {
        Some(state) if now.is_some() => {
            let setting = db.state_event_of(state, policy_server::POLICY_EVENT_TYPE, "")?;
            let policy = setting.and_then(|setting| PolicyServer::from_content(&setting.content()));
            policy.filter(|policy| !policy.has_signed(event))
        }
        _ => now,
    };
    Ok(match lacking {
        None => Ok(()),
        Some(policy) => {
            let why = format!("the room's policy server {} has not signed the event", policy.via);
            Err(AuthError::unnumbered(room.version, why))
        }
    })
}

impl Events<'_> {
    /// An event that we are about to bring into its room, with the signature of the room's policy server if it uses
    /// one. Errors: what the policy server says; 502 and 504 if that is nothing of use.
    pub(in crate::service) fn with_policy_signature(&self, event: VerifiedPdu) -> Result<VerifiedPdu> {
        let policy = self.store.read(|db| match db.room(event.room_id())? {
            Some(room) => policy_server_of(db, &room),
            None => Ok(None),
        })?;
        self.with_signature_of(policy.as_ref(), event)
    }

    /// [`Self::with_policy_signature`] for who knows which policy server the room uses.
    pub(in crate::service) fn with_signature_of(
        &self,
        policy: Option<&PolicyServer>,
        event: VerifiedPdu,
    ) -> Result<VerifiedPdu> {
        let lacks = |policy: &&PolicyServer| policy_server::is_checked(&event) && !policy.has_signed(&event);
        match policy.filter(lacks) {
            Some(policy) if !self.store.read(|db| is_in_room(db, &event))? => {
                self.ask_policy_server(policy, &event)
            }
            _ => Ok(event),
        }
    }

    /// Asks a policy server for its signature of an event. Errors: its refusal as it said it ("that error SHOULD be
    /// provided to the client verbatim"), 502 for an answer without a valid signature, 504 if it is not reached.
    pub(in crate::service) fn ask_policy_server(
        &self,
        policy: &PolicyServer,
        event: &VerifiedPdu,
    ) -> Result<VerifiedPdu> {
        self.ask_for_signature(policy, event, SENDER_SIGNATURE_TIMEOUT).map_err(|unsigned| unsigned.why)
    }

    fn ask_for_signature(
        &self,
        policy: &PolicyServer,
        event: &VerifiedPdu,
        within: Duration,
    ) -> std::result::Result<VerifiedPdu, UnsignedEvent> {
        let (via, silent, began) = (&policy.via, &self.policy_backoff, Instant::now());
        let settled = |why| UnsignedEvent { why, undecided: false };
        if via == self.server_name() {
            let why = "The room's policy server is this server, which is none";
            return Err(settled(Error::forbidden(why)));
        }
        match self.federation.policy_sign(via, event.json(), within) {
            Ok(answer) => {
                silent.answered(via);
                policy.with_signature(event, &answer).ok_or_else(|| {
                    let why = format!("The room's policy server {via} gave no valid signature");
                    settled(Error::bad_gateway(why))
                })
            }
            Err(e) => {
                let undecided = e.is_transient();
                if !undecided {
                    silent.answered(via);
                } else if e.refusal().is_none_or(|refusal| refusal.status != 429)
                    && (within >= FAIR_ANSWER_TIMEOUT || began.elapsed() < within)
                {
                    silent.failed(via, self.clock.steady());
                }
                Err(UnsignedEvent { why: as_told(e, via), undecided })
            }
        }
    }

    /// Gives events of others, room by room, the signatures of the rooms' policy servers where they are missing and
    /// are to be had. "If the Policy Server's signature is invalid or missing, the homeserver SHOULD ask for a new
    /// signature." Returns those that are still without because nobody said yes or no, and who would have to.
    pub(in crate::service) fn with_policy_signatures(
        &self,
        rooms: &mut [(&Room, &mut [VerifiedPdu])],
        until: Option<Instant>,
    ) -> Result<Vec<UndecidedEvent>> {
        let requests = self.store.read(|db| lacking_signatures(db, rooms))?;
        if requests.is_empty() {
            return Ok(Vec::new());
        }
        let patience = Instant::now() + SIGNATURES_TIMEOUT;
        let until = until.map_or(patience, |until| until.min(patience));
        let mut queues: BTreeMap<&ServerName, PolicyQueue<'_>> = BTreeMap::new();
        for request in &requests {
            queues
                .entry(&request.policy.via)
                .or_default()
                .requests
                .push((request, &rooms[request.room].1[request.event]));
        }
        let at_once = if queues.len() > FEW_SERVERS_MAX { 1 } else { ASKED_AT_ONCE_MAX };
        let (mut first, settled) = (None, Mutex::new(Vec::new()));
        std::thread::scope(|scope| {
            for queue in queues.values() {
                for _ in 0..queue.requests.len().min(at_once) {
                    let work = || self.ask_in_turn(queue, until, &settled);
                    if first.is_none() {
                        // This thread is one of them.
                        first = Some(work);
                        continue;
                    }
                    let thread = std::thread::Builder::new().name("policy".into()).stack_size(512 * 1024);
                    if let Err(e) = thread.spawn_scoped(scope, work) {
                        log::warn!("no thread to ask a policy server with: {e}");
                    }
                }
            }
            if let Some(work) = first {
                work();
            }
        });
        let settled = locks::into_inner(settled);
        let decided: HashSet<(usize, usize)> = settled.iter().map(|(at, _)| *at).collect();
        let left = requests.iter().filter(|request| !decided.contains(&(request.room, request.event)));
        let undecided = left.map(|request| UndecidedEvent {
            event_id: rooms[request.room].1[request.event].event_id().clone(),
            policy_server: request.policy.via.clone(),
        });
        let undecided = undecided.collect();
        for ((room, index), signed) in settled {
            if let Some(event) = signed {
                rooms[room].1[index] = event;
            }
        }
        Ok(undecided)
    }

    /// Asks one policy server about one event after the other, until there are none or it is no use. Adds those that it has
    /// decided upon, signed if it has.
    fn ask_in_turn(&self, queue: &PolicyQueue<'_>, until: Instant, settled: &Mutex<Vec<SettledRequest>>) {
        while let Some((request, event)) = queue.requests.get(queue.next.fetch_add(1, Ordering::Relaxed)) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || self.policy_backoff.is_silent(&request.policy.via, self.clock.steady()) {
                break;
            }
            match self.ask_for_signature(&request.policy, event, left) {
                Ok(event) => lock(settled).push(((request.room, request.event), Some(event))),
                Err(UnsignedEvent { why, undecided }) => {
                    log::info!("{} is not signed by {}: {why}", event.event_id(), request.policy.via);
                    if !undecided {
                        lock(settled).push(((request.room, request.event), None));
                    }
                }
            }
        }
    }
}

/// An event of which a policy server would have to say whether it is recommended, and has not.
pub(in crate::service) struct UndecidedEvent {
    pub event_id: EventId,
    pub policy_server: ServerName,
}

/// Which event it was, and the event if it is signed.
type SettledRequest = ((usize, usize), Option<VerifiedPdu>);

/// An event that lacks its room's policy server's signature: the index of the room, and that of the event in it.
struct SignatureRequest {
    policy: PolicyServer,
    room: usize,
    event: usize,
}

/// What one policy server is to be asked about.
#[derive(Default)]
struct PolicyQueue<'j> {
    requests: Vec<(&'j SignatureRequest, &'j VerifiedPdu)>,
    next: AtomicUsize,
}

fn lacking_signatures(db: &Db<'_>, rooms: &[(&Room, &mut [VerifiedPdu])]) -> Result<Vec<SignatureRequest>> {
    let mut requests = Vec::new();
    for (index, (room, events)) in rooms.iter().enumerate() {
        let Some(policy) = policy_server_of(db, room)? else { continue };
        for (number, event) in events.iter().enumerate() {
            if policy_server::is_checked(event) && !policy.has_signed(event) && !is_in_room(db, event)? {
                requests.push(SignatureRequest { policy: policy.clone(), room: index, event: number });
            }
        }
    }
    Ok(requests)
}

/// Whether the event has its place in the room already, so that nothing has to be decided about it.
fn is_in_room(db: &Db<'_>, event: &Pdu) -> Result<bool> {
    Ok(db.event_status(event.event_id())?.is_some_and(|(_, outlier)| !outlier))
}

/// A policy server's refusal as our client is to hear it: in its own words, unless it speaks of our standing with it,
/// or would have the client believe something about its own account.
fn as_told(error: CallError, via: &ServerName) -> Error {
    use ErrCode::{BadJson, Forbidden, LimitExceeded, NotJson, TooLarge};
    let code =
        error.errcode().filter(|code| [BadJson, Forbidden, LimitExceeded, NotJson, TooLarge].contains(code));
    let wait = error.retry_after();
    match (error, code) {
        (CallError::Refused(refusal), Some(code)) if (400..500).contains(&refusal.status) => {
            let PeerError { status, message, .. } = *refusal;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_policy_server_that_fails_again_and_again_is_left_alone_for_longer_and_longer() {
        let (silent, server) =
            (PolicyBackoff::default(), ServerName::parse("policy.example").expect("a name"));
        let mut now = Steady::at(0);
        for pause in [1, 2, 4, 8, 16, 16].map(|minutes| minutes * 60_000) {
            assert!(!silent.is_silent(&server, now));
            silent.failed(&server, now);
            silent.failed(&server, now + 1);
            assert!(silent.is_silent(&server, now + (pause - 1)), "one failure, however many hear of it");
            now = now + pause;
        }
        silent.answered(&server);
        silent.failed(&server, now);
        assert!(!silent.is_silent(&server, now + SILENT_BACKOFF.first_ms), "what was before is forgotten");
    }
}
