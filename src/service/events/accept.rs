//! Events from outside: from checked bytes to their place in the room, or to a refusal.
//!
//! Format, signatures and hash have been checked when a `VerifiedPdu` comes here; what remains is judged in
//! `judge`, against a snapshot, and once more in the transaction if the room has moved on meanwhile.

use crate::service::events::Events;
use std::time::{Duration, Instant};

use super::authorise;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::state_res::StateMap;
use crate::protocol::{EventId, Pdu, ServerName, VerifiedPdu};
use crate::service::events::authorise::{Hearing, Judged, Verdict};
use crate::service::events::resolve::Effort;
use crate::store::rooms::append::Append;
use crate::store::{EventKey, Place, Room, RoomKey, Status, Tx};

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
    /// The room's row.
    pub room: RoomKey,
    /// The event's row.
    pub key: EventKey,
    /// Its stream position.
    pub stream: i64,
}

/// What it says of an event that was judged.
pub(in crate::service) enum Taken {
    /// It is stored, or was before.
    Stored { status: Status, already: bool, reason: Option<Error> },
    /// First these auth events are needed.
    NeedsAuth(Vec<EventId>),
    /// First its previous events are needed, or the state before it.
    NeedsPrev,
    /// Its room, or its server, has caused so much work that this one waits, for so long; or the room does not know of its
    /// late extremities yet, which the event may rest on.
    NeedsTime(Duration),
}

/// On whose behalf an event is taken in, and what may be stored of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum Terms {
    /// It came with a transaction: whatever the verdict, it is stored; unless it is rejected and of a server that is not in
    /// the room.
    Relayed,
    /// It is history that fills a hole, with the place that it gets in the timeline.
    History(Place),
    /// It was handed to us to bring it into the room: we pass it on, and refuse it unless it passes everything.
    HandedIn,
}

impl Events<'_> {
    /// Takes in an event that was signed elsewhere and handed to us with `send_join`, `send_knock` or `send_leave`; the
    /// caller has checked its form and signatures. It is passed on to the other servers of the room. A repeat is
    /// answered as the first time. Errors: 403 `M_FORBIDDEN` unless it passes every check.
    pub fn accept_signed(&self, pdu: VerifiedPdu, from: &ServerName, kind: Membership) -> Result<Accepted> {
        if pdu.membership() != Some(kind) || pdu.sender().server_name() != from.as_str() {
            return Err(Error::forbidden("The event is not what it was handed in as"));
        }
        self.take_in_own(&pdu)
    }

    /// Puts an event of ours into its room that was signed before ([`Events::draft_event`]). Errors: 403
    /// `M_FORBIDDEN` if the room has moved on so far that it is not allowed any more.
    pub fn commit_signed(&self, pdu: VerifiedPdu) -> Result<Accepted> {
        self.take_in_own(&pdu)
    }

    fn take_in_own(&self, pdu: &VerifiedPdu) -> Result<Accepted> {
        match self.take_in(pdu, Terms::HandedIn, None)? {
            Taken::Stored { status: Status::Accepted, already, .. } => Ok(Accepted { already }),
            Taken::Stored { reason, .. } => {
                Err(reason.unwrap_or_else(|| Error::forbidden("The room does not allow this event")))
            }
            Taken::NeedsTime(rest) => Err(too_much(rest)),
            Taken::NeedsAuth(_) | Taken::NeedsPrev => {
                Err(Error::forbidden("The event refers to events that this server does not know"))
            }
        }
    }

    /// Judges an event and stores it with its verdict. What needs little or no state resolution is judged in the
    /// transaction alone: the writer remembers what it takes, and in a room where several servers speak at once a verdict
    /// would be outdated as soon as it was found. What needs more is judged beforehand, and once more in the transaction if
    /// the room has moved on: what the states before the event came to is remembered. If the room never stands still, or
    /// has caused too much work, its current state follows later. History, and events with a state of their own, of which
    /// nobody remembers anything, are judged beforehand at once.
    pub(in crate::service) fn take_in(
        &self,
        pdu: &VerifiedPdu,
        terms: Terms,
        given: Option<&StateMap>,
    ) -> Result<Taken> {
        let stored = self.store.read(|db| db.wholest(pdu))?;
        let pdu = stored.as_ref().unwrap_or(pdu);
        let taken = self.judge_and_store(pdu, terms, given)?;
        let Taken::Stored { already: true, status, .. } = taken else { return Ok(taken) };
        if !self.store.read(|db| db.lacks_content_of(pdu))? {
            return Ok(taken);
        }
        let whole = pdu.clone();
        let unlearnt = self.store.write(move |tx| match status {
            Status::Rejected => tx.unlearn_rejected(&whole),
            _ => tx.complete_event(&whole).map(|()| false),
        })?;
        if unlearnt { self.judge_and_store(pdu, terms, given) } else { Ok(taken) }
    }

    fn judge_and_store(&self, pdu: &VerifiedPdu, terms: Terms, given: Option<&StateMap>) -> Result<Taken> {
        let history = matches!(terms, Terms::History(_));
        let given = match given {
            Some(given) => {
                self.store.read(|db| authorise::given_state(db, pdu.room_id(), given)).map(Some)?
            }
            None => None,
        };
        let server = pdu.sender().server();
        for attempt in 0..=ATTEMPTS {
            let rest = self.resolution_allowance.pause(pdu.room_id(), &server);
            let (mut judged, mut effort) = (None, Effort::Modest);
            if rest.is_some() {
                effort = Effort::Light;
            } else if attempt > 0 || history || given.is_some() {
                match self.judge_beforehand(pdu, Hearing::fully(given.as_ref(), history), attempt > 0)? {
                    Verdict::Judged(verdict) => judged = Some(verdict),
                    Verdict::NeedsWork | Verdict::IsBehind => {}
                    other => return unjudged(other),
                }
            }
            let later = rest.is_some() || attempt == ATTEMPTS;
            let until_caught_up =
                self.resolution_allowance.pause_of_late(pdu.room_id()).unwrap_or_default() + NEVER_STILL;
            let (event, given) = (pdu.clone(), given.clone());
            let take = move |tx: &mut Tx<'_>| {
                if let Some(judged) = judged
                    && is_current(tx, &event, &judged)?
                {
                    return store_judged(tx, &event, *judged, terms)
                        .map(|taken| (Some(taken), tx.events_examined()));
                }
                let taken = match authorise::judge(
                    tx,
                    &event,
                    Hearing { given: given.as_ref(), history, effort, later },
                )? {
                    Verdict::Judged(judged) => Some(store_judged(tx, &event, *judged, terms)?),
                    Verdict::NeedsWork => None,
                    Verdict::IsBehind => Some(Taken::NeedsTime(until_caught_up)),
                    other => Some(unjudged(other)?),
                };
                Ok((taken, tx.events_examined()))
            };
            // History that is lost can be fetched again.
            let (taken, toil) =
                if history { self.store.write_lightly(take) } else { self.store.write(take) }?;
            self.resolution_allowance.spend(pdu.room_id(), Some(&server), toil);
            match (taken, rest) {
                (Some(taken), _) => return Ok(taken),
                (None, Some(rest)) => return Ok(Taken::NeedsTime(rest)),
                (None, None) => {}
            }
        }
        Ok(Taken::NeedsTime(NEVER_STILL))
    }

    /// A verdict by what is here now, whatever it takes if `fully`; else without resolving anything.
    pub(in crate::service) fn judge_beforehand(
        &self,
        pdu: &Pdu,
        hearing: Hearing<'_>,
        fully: bool,
    ) -> Result<Verdict> {
        let effort = if fully { Effort::Full } else { Effort::Light };
        let turn = fully.then(|| self.resolution_allowance.wait_for_turn());
        let (verdict, toil) = self.store.read(|db| {
            Ok((authorise::judge(db, pdu, Hearing { effort, ..hearing })?, db.events_examined()))
        })?;
        drop(turn);
        self.resolution_allowance.spend(pdu.room_id(), Some(&pdu.sender().server()), toil);
        Ok(verdict)
    }

    /// Takes in as many of these events of a room, in their order, as need nothing fetched and little resolved, in one
    /// commit or a few; says what became of them.
    pub(in crate::service) fn take_in_light(&self, pdus: &[VerifiedPdu]) -> Result<Vec<Result<Taken>>> {
        let mut all = Vec::with_capacity(pdus.len());
        while let Some(first) = pdus.get(all.len()) {
            let (room, server) = (first.room_id().clone(), first.sender().server());
            let is_spent = self.resolution_allowance.pause(&room, &server).is_some();
            let effort = if is_spent { Effort::Light } else { Effort::Modest };
            let hearing = Hearing { effort, later: is_spent, ..Hearing::live(None) };
            let rest = pdus[all.len()..].to_vec();
            let (taken, stopped, toil) = self.store.write(move |tx| {
                let (taken, stopped) = take_in_some(tx, &rest, hearing)?;
                Ok((taken, stopped, tx.events_examined()))
            })?;
            self.resolution_allowance.spend(&room, Some(&server), toil);
            all.extend(taken);
            if stopped {
                break;
            }
        }
        Ok(all)
    }
}

/// How often an event is judged beforehand, if it takes much resolution of states and the room moves on meanwhile.
const ATTEMPTS: usize = 3;
/// When one is tried again whose room moved on each time, and has no place for one more late extremity; or whose room is
/// behind.
const NEVER_STILL: Duration = Duration::from_secs(1);
/// For how long one commit takes in events.
const SLICE: Duration = Duration::from_millis(20);

/// What they are told who hand in an event of a room that has caused too much work.
pub(in crate::service) fn too_much(rest: Duration) -> Error {
    let ms = i64::try_from(rest.as_millis()).unwrap_or(i64::MAX).max(1);
    Error::new(ErrCode::LimitExceeded, "The room has caused too much work, please try again later")
        .with_field("retry_after_ms", ms)
}

/// Whether the room is still as the event was judged by, and the event still new.
fn is_current(tx: &Tx<'_>, pdu: &Pdu, judged: &Judged) -> Result<bool> {
    Ok(tx.extremity_keys(judged.room.key)? == judged.heads
        && tx.event_status(pdu.event_id())?.is_none_or(|(_, outlier)| outlier))
}

/// The verdict on an event of which we may have another copy. One that is whole, where ours is not, takes its place; if
/// ours was rejected, the whole one is judged as if it had come first.
pub(in crate::service) fn judge_copy(
    tx: &mut Tx<'_>,
    pdu: &VerifiedPdu,
    hearing: Hearing<'_>,
) -> Result<Verdict> {
    let verdict = authorise::judge(tx, pdu, hearing)?;
    if !matches!(verdict, Verdict::Known(_)) {
        return Ok(verdict);
    }
    tx.complete_event(pdu)?;
    if tx.unlearn_rejected(pdu)? { authorise::judge(tx, pdu, hearing) } else { Ok(verdict) }
}

/// Takes in some of these events. Whether it stopped at one that needs more than this.
fn take_in_some(
    tx: &mut Tx<'_>,
    pdus: &[VerifiedPdu],
    hearing: Hearing<'_>,
) -> Result<(Vec<Result<Taken>>, bool)> {
    let begun = Instant::now();
    let mut taken = Vec::with_capacity(pdus.len());
    for pdu in pdus {
        if !taken.is_empty() && begun.elapsed() > SLICE {
            return Ok((taken, false));
        }
        let stored = tx.wholest(pdu)?;
        let pdu = stored.as_ref().unwrap_or(pdu);
        match judge_copy(tx, pdu, hearing)? {
            Verdict::Judged(judged) => taken.push(Ok(store_judged(tx, pdu, *judged, Terms::Relayed)?)),
            verdict @ (Verdict::Known(_) | Verdict::Refused(_)) => taken.push(unjudged(verdict)),
            Verdict::MissingAuth(_) | Verdict::MissingPrev | Verdict::NeedsWork | Verdict::IsBehind => {
                return Ok((taken, true));
            }
        }
    }
    Ok((taken, false))
}

/// Puts an event of ours into its room, wherever the room is by now. Errors: 403 `M_FORBIDDEN` if the room does not allow
/// it any more, 429 `M_LIMIT_EXCEEDED` if the room's branches take more work to tell than there is time for.
pub(in crate::service) fn put_in(tx: &mut Tx<'_>, pdu: &VerifiedPdu) -> Result<Sent> {
    let hearing = Hearing { effort: Effort::Modest, later: true, ..Hearing::live(None) };
    let taken = match authorise::judge(tx, pdu, hearing)? {
        Verdict::Judged(judged) => store_judged(tx, pdu, *judged, Terms::HandedIn)?,
        Verdict::NeedsWork | Verdict::IsBehind => return Err(too_much(NEVER_STILL)),
        other => unjudged(other)?,
    };
    let refused = match taken {
        Taken::Stored { status: Status::Accepted, .. } => None,
        Taken::Stored { reason, .. } => Some(reason),
        Taken::NeedsAuth(_) | Taken::NeedsPrev | Taken::NeedsTime(_) => Some(None),
    };
    if let Some(reason) = refused {
        return Err(reason.unwrap_or_else(|| Error::forbidden("The room does not allow this event")));
    }
    let stored = tx.event(pdu.event_id())?.ok_or_else(|| Error::internal("an event went missing"))?;
    let place = stored.place.ok_or_else(|| Error::internal("an event of ours without a place"))?;
    let (room, key, stream) = (stored.room, stored.key, place.stream);
    Ok(Sent { event_id: pdu.event_id().clone(), pdu: Pdu::clone(pdu), room, key, stream })
}

fn unjudged(verdict: Verdict) -> Result<Taken> {
    match verdict {
        Verdict::Known(status) => Ok(Taken::Stored { status, already: true, reason: None }),
        Verdict::MissingAuth(ids) => Ok(Taken::NeedsAuth(ids)),
        Verdict::MissingPrev => Ok(Taken::NeedsPrev),
        Verdict::Refused(error) => Err(error),
        Verdict::NeedsWork | Verdict::IsBehind | Verdict::Judged(_) => {
            Err(Error::internal("a verdict that was not asked for"))
        }
    }
}

fn reason(judged: &Judged) -> Option<Error> {
    judged.reason.clone().map(Error::from)
}

/// Stores an event with the verdict that was just found by what this transaction sees.
pub(in crate::service) fn store_judged(
    tx: &mut Tx<'_>,
    pdu: &VerifiedPdu,
    judged: Judged,
    terms: Terms,
) -> Result<Taken> {
    let (status, reason) = (judged.status, reason(&judged));
    let outgoing = terms == Terms::HandedIn;
    if outgoing && status != Status::Accepted {
        return Ok(Taken::Stored { status, already: false, reason });
    }
    let room: Room = tx.room_by_key(judged.room.key)?;
    if terms == Terms::Relayed
        && status == Status::Rejected
        && !tx.is_resident(room.key, &pdu.sender().server())?
    {
        // Nobody refers to it who has a say in the room. Kept it would only let anybody fill the disk.
        return Ok(Taken::Stored { status, already: false, reason });
    }
    tx.append(&Append {
        room: &room,
        pdu,
        status,
        outgoing,
        state_before: judged.state_before,
        old_extremities: &judged.heads,
        kept_extremities: judged.kept,
        overtakes: judged.overtakes,
        becomes_extremity: judged.becomes_extremity,
        current: judged.current,
        missing: judged.missing,
        history: if let Terms::History(place) = terms { Some(place) } else { None },
    })?;
    if let Some(reason) = &reason {
        log::info!("{} in {} is {:?}: {}", pdu.event_id(), room.room_id, status, reason.message());
    }
    Ok(Taken::Stored { status, already: false, reason })
}
