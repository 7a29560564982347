//! Events of other servers: from checked bytes to their place in the room, or to a refusal.
//!
//! Format, signatures and hash have been checked when a `VerifiedPdu` comes here; what remains is authorised in
//! `authorise.rs`, against a snapshot, and once more in the transaction if the room has moved on meanwhile.

use std::time::{Duration, Instant};

use super::authorise;
use super::entry::check_handed_in;
use super::newcomers::{newcomer_of, owe_what_came_beside};
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, Pdu, ServerName, VerifiedPdu};
use crate::service::events::Events;
use crate::service::events::authorise::{AuthContext, Decision, Verdict};
use crate::service::events::resolve::ResolutionBudget;
use crate::store::rooms::append::Append;
use crate::store::rooms::state::StateRef;
use crate::store::{EventKey, Place, Room, Status, Tx};

/// What became of an event that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// We had it before, and nothing has changed.
    pub already: bool,
}

/// An event of ours that is in its room, for what else belongs into the same transaction.
#[derive(Clone)]
pub struct Sent {
    /// Its id.
    pub event_id: EventId,
    /// The event.
    pub pdu: Pdu,
    /// The event's row.
    pub key: EventKey,
}

/// What became of an event that was received.
pub(in crate::service) enum Received {
    /// It is stored, or was before.
    Stored { status: Status, already: bool, reason: Option<Error> },
    /// First these auth events are needed.
    NeedsAuth(Vec<EventId>),
    /// First its previous events are needed, or the state before it.
    NeedsPrev,
    /// Its room, or its server, has caused so much work that this one waits, for so long; or the room does not know of
    /// its late extremities yet, which the event may rest on.
    NeedsTime(Duration),
}

/// Where an event comes from, which says what may be stored of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum EventSource {
    /// It came with a transaction: whatever the verdict, it is stored; unless it is rejected and of a server that is
    /// not in the room.
    Transaction,
    /// It is history that fills a gap, with the place that it gets in the timeline.
    Backfill(Place),
    /// The same, from before we came into the room, and the policy server does not answer.
    BackfillUnjudged(Place),
    /// It was handed to us in a handshake, to bring it into the room: we pass it on, and refuse it unless it passes
    /// everything.
    Handshake,
}

impl EventSource {
    /// The place of what is history.
    fn history(self) -> Option<Place> {
        match self {
            Self::Backfill(place) | Self::BackfillUnjudged(place) => Some(place),
            Self::Transaction | Self::Handshake => None,
        }
    }
}

impl Events<'_> {
    /// Receives an event that was signed elsewhere and handed to us with `send_join`, `send_knock` or `send_leave`; the
    /// caller has checked its form and signatures. It is passed on to the other servers of the room. A repeat is
    /// answered as the first time. Errors: 403 `M_FORBIDDEN` unless it passes every check.
    pub fn accept_signed(&self, pdu: VerifiedPdu, from: &ServerName, kind: Membership) -> Result<Accepted> {
        if pdu.membership() != Some(kind) || pdu.sender().server_name() != from.as_str() {
            return Err(Error::forbidden("The event is not what it was handed in as"));
        }
        self.receive_own(&pdu)
    }

    /// Puts an event of ours into its room that was signed before ([`Events::draft_event`]). Errors: 403
    /// `M_FORBIDDEN` if the room has moved on so far that it is not allowed any more.
    pub fn commit_signed(&self, pdu: VerifiedPdu) -> Result<Accepted> {
        self.receive_own(&pdu)
    }

    fn receive_own(&self, pdu: &VerifiedPdu) -> Result<Accepted> {
        match self.receive_event(pdu, EventSource::Handshake, None)? {
            Received::Stored { status: Status::Accepted, already, .. } => Ok(Accepted { already }),
            Received::Stored { reason, .. } => {
                Err(reason.unwrap_or_else(|| Error::forbidden("The room does not allow this event")))
            }
            Received::NeedsTime(rest) => Err(too_much_work(rest)),
            Received::NeedsAuth(_) | Received::NeedsPrev => {
                Err(Error::forbidden("The event refers to events that this server does not know"))
            }
        }
    }

    /// Authorises an event and stores it with its verdict. What needs little or no state resolution is authorised in
    /// the transaction alone: the writer remembers what it takes, and in a room where several servers speak at once a
    /// verdict would be outdated as soon as it was found. What needs more is authorised beforehand, and once more in
    /// the transaction if the room has moved on: what the states before the event came to is remembered. If the room
    /// never stands still, or has caused too much work, its current state follows later. History, and events with a
    /// state of their own, of which nobody remembers anything, are authorised beforehand at once.
    pub(in crate::service) fn receive_event(
        &self,
        pdu: &VerifiedPdu,
        source: EventSource,
        given: Option<&StateRef>,
    ) -> Result<Received> {
        // Nothing is asked of the database where there is nothing to find.
        let stored = if pdu.is_whole() { None } else { self.store.read(|db| db.wholest(pdu))? };
        let pdu = stored.as_ref().unwrap_or(pdu);
        let received = self.authorise_and_store(pdu, source, given)?;
        let Received::Stored { already: true, status, .. } = received else { return Ok(received) };
        if !self.store.read(|db| db.lacks_content_of(pdu))? {
            return Ok(received);
        }
        let whole = pdu.clone();
        let unlearnt = self.store.write(move |tx| match status {
            Status::Rejected => tx.unlearn_rejected(&whole),
            _ => tx.complete_event(&whole).map(|()| false),
        })?;
        if unlearnt { self.authorise_and_store(pdu, source, given) } else { Ok(received) }
    }

    fn authorise_and_store(
        &self,
        pdu: &VerifiedPdu,
        source: EventSource,
        given: Option<&StateRef>,
    ) -> Result<Received> {
        let history = source.history().is_some();
        let policy_of_then = matches!(source, EventSource::BackfillUnjudged(_));
        let server = pdu.sender().server();
        for attempt in 0..=AUTHORISE_ATTEMPTS_MAX {
            let rest = self.resolution_allowance.pause(pdu.room_id(), &server);
            let (mut decision, mut budget) = (None, ResolutionBudget::Bounded);
            if rest.is_some() {
                budget = ResolutionBudget::None;
            } else if attempt > 0 || history || given.is_some() {
                match self.authorise_beforehand(
                    pdu,
                    AuthContext { policy_of_then, ..AuthContext::fully(given, history) },
                    attempt > 0,
                )? {
                    Verdict::Decided(verdict) => decision = Some(verdict),
                    Verdict::NeedsWork | Verdict::IsBehind => {}
                    other => return undecided(other),
                }
            }
            let later = rest.is_some() || attempt == AUTHORISE_ATTEMPTS_MAX;
            let until_caught_up =
                self.resolution_allowance.pause_of_late(pdu.room_id()).unwrap_or_default() + RETRY_PAUSE;
            let (event, given) = (pdu.clone(), given.cloned());
            let take = move |tx: &mut Tx<'_>| {
                if let Some(decision) = decision
                    && is_current(tx, &event, &decision)?
                {
                    return store_decision(tx, &event, *decision, source)
                        .map(|received| (Some(received), tx.events_examined()));
                }
                let received = match authorise::authorise(
                    tx,
                    &event,
                    AuthContext { given: given.as_ref(), history, policy_of_then, budget, later },
                )? {
                    Verdict::Decided(decision) => Some(store_decision(tx, &event, *decision, source)?),
                    Verdict::NeedsWork => None,
                    Verdict::IsBehind => Some(Received::NeedsTime(until_caught_up)),
                    other => Some(undecided(other)?),
                };
                Ok((received, tx.events_examined()))
            };
            // History that is lost can be fetched again.
            let (received, events_examined) =
                if history { self.store.write_lightly(take) } else { self.store.write(take) }?;
            self.resolution_allowance.spend(pdu.room_id(), Some(&server), events_examined);
            match (received, rest) {
                (Some(received), _) => return Ok(received),
                (None, Some(rest)) => return Ok(Received::NeedsTime(rest)),
                (None, None) => {}
            }
        }
        Ok(Received::NeedsTime(RETRY_PAUSE))
    }

    /// A verdict by what is here now, whatever it takes if `fully`; else without resolving anything.
    pub(in crate::service) fn authorise_beforehand(
        &self,
        pdu: &Pdu,
        context: AuthContext<'_>,
        fully: bool,
    ) -> Result<Verdict> {
        let budget = if fully { ResolutionBudget::Unlimited } else { ResolutionBudget::None };
        let turn = fully.then(|| self.resolution_allowance.wait_for_turn());
        let (verdict, events_examined) = self.store.read(|db| {
            Ok((authorise::authorise(db, pdu, AuthContext { budget, ..context })?, db.events_examined()))
        })?;
        drop(turn);
        self.resolution_allowance.spend(pdu.room_id(), Some(&pdu.sender().server()), events_examined);
        Ok(verdict)
    }

    /// Receives as many of these events of a room, in their order, as need nothing fetched and little resolved, in one
    /// commit or a few; says what became of them.
    pub(in crate::service) fn receive_batch(&self, pdus: &[VerifiedPdu]) -> Result<Vec<Result<Received>>> {
        let mut all = Vec::with_capacity(pdus.len());
        while let Some(first) = pdus.get(all.len()) {
            let (room, server) = (first.room_id().clone(), first.sender().server());
            let is_spent = self.resolution_allowance.pause(&room, &server).is_some();
            let budget = if is_spent { ResolutionBudget::None } else { ResolutionBudget::Bounded };
            let context = AuthContext { budget, later: is_spent, ..AuthContext::live(None) };
            let rest = pdus[all.len()..].to_vec();
            let (received, stopped, events_examined) = self.store.write(move |tx| {
                let (received, stopped) = receive_some(tx, &rest, context)?;
                Ok((received, stopped, tx.events_examined()))
            })?;
            self.resolution_allowance.spend(&room, Some(&server), events_examined);
            all.extend(received);
            if stopped {
                break;
            }
        }
        Ok(all)
    }
}

/// How often an event is authorised beforehand, if it takes much resolution of states and the room moves on meanwhile.
const AUTHORISE_ATTEMPTS_MAX: usize = 3;
/// When one is tried again whose room moved on each time, and has no place for one more late extremity; or whose room
/// is behind.
const RETRY_PAUSE: Duration = Duration::from_secs(1);
/// For how long one commit receives events.
const BATCH_TIMEOUT: Duration = Duration::from_millis(20);

/// What they are told who hand in an event of a room that has caused too much work.
pub(in crate::service) fn too_much_work(rest: Duration) -> Error {
    let ms = i64::try_from(rest.as_millis()).unwrap_or(i64::MAX).max(1);
    Error::new(ErrCode::LimitExceeded, "The room has caused too much work, please try again later")
        .with_field("retry_after_ms", ms)
}

/// Whether the room is still as the event was authorised by, and the event still new.
fn is_current(tx: &Tx<'_>, pdu: &Pdu, decision: &Decision) -> Result<bool> {
    Ok(tx.extremity_keys(decision.room.key)? == decision.extremities
        && tx.event_status(pdu.event_id())?.is_none_or(|(_, outlier)| outlier))
}

/// The verdict on an event of which we may have another copy. One that is whole, where ours is not, takes its place; if
/// ours was rejected, the whole one is authorised as if it had come first.
pub(in crate::service) fn authorise_copy(
    tx: &mut Tx<'_>,
    pdu: &VerifiedPdu,
    context: AuthContext<'_>,
) -> Result<Verdict> {
    let verdict = authorise::authorise(tx, pdu, context)?;
    if !matches!(verdict, Verdict::Known(_)) {
        return Ok(verdict);
    }
    tx.complete_event(pdu)?;
    if tx.unlearn_rejected(pdu)? { authorise::authorise(tx, pdu, context) } else { Ok(verdict) }
}

/// Receives some of these events. Whether it stopped at one that needs more than this.
fn receive_some(
    tx: &mut Tx<'_>,
    pdus: &[VerifiedPdu],
    context: AuthContext<'_>,
) -> Result<(Vec<Result<Received>>, bool)> {
    let begun = Instant::now();
    let mut received = Vec::with_capacity(pdus.len());
    for pdu in pdus {
        if !received.is_empty() && begun.elapsed() > BATCH_TIMEOUT {
            return Ok((received, false));
        }
        let stored = tx.wholest(pdu)?;
        let pdu = stored.as_ref().unwrap_or(pdu);
        match authorise_copy(tx, pdu, context)? {
            Verdict::Decided(decision) => {
                received.push(Ok(store_decision(tx, pdu, *decision, EventSource::Transaction)?))
            }
            verdict @ (Verdict::Known(_) | Verdict::Refused(_)) => received.push(undecided(verdict)),
            Verdict::MissingAuth(_) | Verdict::MissingPrev | Verdict::NeedsWork | Verdict::IsBehind => {
                return Ok((received, true));
            }
        }
    }
    Ok((received, false))
}

/// Puts an event of ours into its room, wherever the room is by now. Errors: 403 `M_FORBIDDEN` if the room does not
/// allow it any more, 429 `M_LIMIT_EXCEEDED` if the room's forks take more work to tell than there is time for.
pub(in crate::service) fn append_signed(tx: &mut Tx<'_>, pdu: &VerifiedPdu) -> Result<Sent> {
    let context = AuthContext { budget: ResolutionBudget::Bounded, later: true, ..AuthContext::live(None) };
    let received = match authorise::authorise(tx, pdu, context)? {
        Verdict::Decided(decision) => store_decision(tx, pdu, *decision, EventSource::Handshake)?,
        Verdict::NeedsWork | Verdict::IsBehind => return Err(too_much_work(RETRY_PAUSE)),
        other => undecided(other)?,
    };
    let refused = match received {
        Received::Stored { status: Status::Accepted, .. } => None,
        Received::Stored { reason, .. } => Some(reason),
        Received::NeedsAuth(_) | Received::NeedsPrev | Received::NeedsTime(_) => Some(None),
    };
    if let Some(reason) = refused {
        return Err(reason.unwrap_or_else(|| Error::forbidden("The room does not allow this event")));
    }
    let stored = tx.event(pdu.event_id())?.ok_or_else(|| Error::internal("an event went missing"))?;
    if stored.place.is_none() {
        return Err(Error::internal("an event of ours without a place"));
    }
    Ok(Sent { event_id: pdu.event_id().clone(), pdu: Pdu::clone(pdu), key: stored.key })
}

fn undecided(verdict: Verdict) -> Result<Received> {
    match verdict {
        Verdict::Known(status) => Ok(Received::Stored { status, already: true, reason: None }),
        Verdict::MissingAuth(ids) => Ok(Received::NeedsAuth(ids)),
        Verdict::MissingPrev => Ok(Received::NeedsPrev),
        Verdict::Refused(error) => Err(error),
        Verdict::NeedsWork | Verdict::IsBehind | Verdict::Decided(_) => {
            Err(Error::internal("a verdict that was not asked for"))
        }
    }
}

fn reason(decision: &Decision) -> Option<Error> {
    decision.reason.clone().map(Error::from)
}

/// Stores an event with the verdict that was just found by what this transaction sees.
pub(in crate::service) fn store_decision(
    tx: &mut Tx<'_>,
    pdu: &VerifiedPdu,
    decision: Decision,
    source: EventSource,
) -> Result<Received> {
    let (status, reason) = (decision.status, reason(&decision));
    let outgoing = source == EventSource::Handshake;
    if outgoing && status != Status::Accepted {
        return Ok(Received::Stored { status, already: false, reason });
    }
    let room: Room = tx.room_by_key(decision.room.key)?;
    if outgoing {
        // The room may have shut the server out since the handshake began, or whoever runs this server the room.
        check_handed_in(tx, &room, pdu)?;
    }
    if source == EventSource::Transaction
        && status == Status::Rejected
        && !tx.is_resident(room.key, &pdu.sender().server())?
    {
        // Nobody refers to it who has a say in the room. Kept it would only let anybody fill the disk.
        return Ok(Received::Stored { status, already: false, reason });
    }
    let newcomer = match source {
        EventSource::Handshake => newcomer_of(tx, &room, pdu)?,
        EventSource::Transaction | EventSource::Backfill(_) | EventSource::BackfillUnjudged(_) => None,
    };
    tx.append(&Append {
        room: &room,
        pdu,
        status,
        outgoing,
        state_before: decision.state_before,
        given: decision.given,
        old_extremities: &decision.extremities,
        kept_extremities: decision.kept,
        overtakes: decision.overtakes,
        becomes_extremity: decision.becomes_extremity,
        current: decision.current,
        missing: decision.missing,
        history: source.history(),
    })?;
    if let Some(server) = newcomer {
        owe_what_came_beside(tx, &room, pdu, &server)?;
    }
    if let Some(reason) = &reason {
        log::info!("{} in {} is {:?}: {}", pdu.event_id(), room.room_id, status, reason.message());
    }
    Ok(Received::Stored { status, already: false, reason })
}
