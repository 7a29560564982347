//! Events from outside: from checked bytes to their place in the room, or to a refusal.
//!
//! Format, signatures and hash have been checked when a `VerifiedPdu` comes here; what remains is judged in
//! `judge`, against a snapshot, and once more in the transaction if the room has moved on meanwhile.

use std::time::{Duration, Instant};

use super::Homeserver;
use super::compose::Sent;
use super::judge::{self, Effort, Hearing, Judged, Verdict};
use super::missing::Fetched;
use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::state_res::StateMap;
use crate::protocol::{EventId, Pdu, ServerName, VerifiedPdu};
use crate::store::append::Append;
use crate::store::events::is_whole_copy_of;
use crate::store::{Place, Room, Status, Tx};

/// For how long one event may keep us asking for what it refers to.
const PATIENCE: Duration = Duration::from_secs(120);

/// What became of an event that was handed in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Accepted {
    /// We had it before, and nothing has changed.
    pub already: bool,
}

/// What it says of an event that was judged.
pub(crate) enum Taken {
    /// It is stored, or was before.
    Stored { status: Status, already: bool, reason: Option<Error> },
    /// First these auth events are needed.
    NeedsAuth(Vec<EventId>),
    /// First its previous events are needed, or the state before it.
    NeedsPrev,
}

/// On whose behalf an event is taken in, and what may be stored of it.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Terms {
    /// It came with a transaction: whatever the verdict, it is stored; unless it is rejected and of a server that is not in
    /// the room.
    Relayed,
    /// It is history that fills a hole, with the place that it gets in the timeline.
    History(Place),
    /// It was handed to us to bring it into the room: we pass it on, and refuse it unless it passes everything.
    HandedIn,
}

impl Homeserver {
    /// Takes in an event that was signed elsewhere and handed to us with `send_join`, `send_knock` or `send_leave`; the
    /// caller has checked its form and signatures. It is passed on to the other servers of the room. A repeat is
    /// answered as the first time. Errors: 403 `M_FORBIDDEN` unless it passes every check.
    pub fn accept_signed(&self, pdu: VerifiedPdu, from: &ServerName, kind: Membership) -> Result<Accepted> {
        if pdu.membership() != Some(kind) || pdu.sender().server_name() != from.as_str() {
            return Err(Error::forbidden("The event is not what it was handed in as"));
        }
        self.take_in_own(&pdu)
    }

    /// Puts an event of ours into its room that was signed before ([`Homeserver::draft_event`]). Errors: 403
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
            Taken::NeedsAuth(_) | Taken::NeedsPrev => {
                Err(Error::forbidden("The event refers to events that this server does not know"))
            }
        }
    }

    /// Takes in a checked event that a server of the room sent us, fetching what it refers to if need be. Errors: 403
    /// `M_FORBIDDEN` if it is rejected, 404 `M_NOT_FOUND` for an unknown room, 502 if what it refers to is not to be had.
    pub fn receive_pdu(&self, origin: &ServerName, pdu: VerifiedPdu) -> Result<()> {
        if !self.store.read(|db| Ok(db.room(pdu.room_id())?.is_some_and(|room| room.resident)))? {
            return Err(Error::not_found("This server is not in the room"));
        }
        let mut outcome = self.take_in(&pdu, Terms::Relayed, None)?;
        if matches!(outcome, Taken::NeedsAuth(_) | Taken::NeedsPrev) {
            let room = self.store.read(|db| db.known_room(pdu.room_id()))?;
            let servers = self.sources(&room, (origin, &pdu), 0)?;
            if let Fetched::Taken(taken) =
                self.take_in_with_missing(&servers, &pdu, Instant::now() + PATIENCE)?
            {
                outcome = taken?;
            }
        }
        match outcome {
            Taken::Stored { status: Status::Rejected, reason, .. } => {
                Err(reason.unwrap_or_else(|| Error::forbidden("The event was rejected before")))
            }
            Taken::Stored { .. } => Ok(()),
            Taken::NeedsAuth(_) | Taken::NeedsPrev => {
                Err(Error::bad_gateway(format!("{origin} does not have what the event refers to")))
            }
        }
    }

    /// Judges an event and stores it with its verdict. What needs little or no state resolution is judged in the
    /// transaction alone: the writer remembers what it takes, and in a room where several servers speak at once a verdict
    /// would be outdated as soon as it was found. What needs more is judged beforehand, and in the transaction only if the
    /// room never stands still. So are history and
    /// events with a state of their own, of which nobody remembers anything.
    pub(crate) fn take_in(&self, pdu: &VerifiedPdu, terms: Terms, given: Option<&StateMap>) -> Result<Taken> {
        let taken = self.judge_and_store(pdu, terms, given)?;
        if matches!(taken, Taken::Stored { already: true, .. })
            && self
                .store
                .read(|db| Ok(db.event(pdu.event_id())?.is_some_and(|e| is_whole_copy_of(pdu, &e))))?
        {
            let whole = pdu.clone();
            self.store.write(move |tx| tx.complete_event(&whole))?;
        }
        Ok(taken)
    }

    fn judge_and_store(&self, pdu: &VerifiedPdu, terms: Terms, given: Option<&StateMap>) -> Result<Taken> {
        let history = matches!(terms, Terms::History(_));
        for attempt in 0..=ATTEMPTS {
            let judged = match (attempt, history) {
                (0, false) if given.is_none() => None,
                _ => {
                    let effort = if attempt == 0 { Effort::Light } else { Effort::Full };
                    match self.store.read(|db| judge::judge(db, pdu, Hearing { given, history, effort }))? {
                        Verdict::Judged(judged) => Some(judged),
                        Verdict::NeedsWork if attempt == 0 => None,
                        other => return unjudged(other),
                    }
                }
            };
            let (pdu, given) = (pdu.clone(), given.cloned());
            let effort = if attempt < ATTEMPTS { Effort::Modest } else { Effort::Full };
            let take = move |tx: &mut Tx<'_>| {
                if let Some(judged) = judged
                    && is_current(tx, &pdu, &judged)?
                {
                    return store_judged(tx, &pdu, *judged, terms).map(Some);
                }
                let hearing = Hearing { given: given.as_ref(), history, effort };
                match judge::judge(tx, &pdu, hearing)? {
                    Verdict::Judged(judged) => store_judged(tx, &pdu, *judged, terms).map(Some),
                    Verdict::NeedsWork => Ok(None),
                    other => unjudged(other).map(Some),
                }
            };
            // History that is lost can be fetched again.
            let taken = if history { self.store.write_lightly(take) } else { self.store.write(take) }?;
            if let Some(taken) = taken {
                return Ok(taken);
            }
        }
        Err(Error::internal("an event that could not be judged"))
    }
}

/// How often an event is judged beforehand, if it takes much resolution of states and the room moves on meanwhile.
const ATTEMPTS: usize = 3;

/// Whether the room is still as the event was judged by, and the event still new.
fn is_current(tx: &Tx<'_>, pdu: &Pdu, judged: &Judged) -> Result<bool> {
    Ok(tx.extremities(judged.room.key)? == judged.heads
        && tx.event_status(pdu.event_id())?.is_none_or(|(_, outlier)| outlier))
}

/// Takes in as many of a transaction's events, in their order, as need nothing fetched and little resolved; says what
/// became of them. One commit for all of them.
pub(crate) fn take_in_light(tx: &mut Tx<'_>, pdus: &[VerifiedPdu]) -> Result<Vec<Result<Taken>>> {
    let mut taken = Vec::with_capacity(pdus.len());
    for pdu in pdus {
        match judge::judge(tx, pdu, Hearing { effort: Effort::Modest, ..Hearing::live(None) })? {
            Verdict::Judged(judged) => taken.push(Ok(store_judged(tx, pdu, *judged, Terms::Relayed)?)),
            verdict @ Verdict::Known(_) => {
                tx.complete_event(pdu)?;
                taken.push(unjudged(verdict));
            }
            verdict @ Verdict::Refused(_) => taken.push(unjudged(verdict)),
            Verdict::MissingAuth(_) | Verdict::MissingPrev | Verdict::NeedsWork => break,
        }
    }
    Ok(taken)
}

/// Puts an event of ours into its room, wherever the room is by now. Errors: 403 `M_FORBIDDEN` if the room does not allow
/// it any more.
pub(crate) fn put_in(tx: &mut Tx<'_>, pdu: &VerifiedPdu) -> Result<Sent> {
    let taken = match judge::judge(tx, pdu, Hearing::live(None))? {
        Verdict::Judged(judged) => store_judged(tx, pdu, *judged, Terms::HandedIn)?,
        other => unjudged(other)?,
    };
    let refused = match taken {
        Taken::Stored { status: Status::Accepted, .. } => None,
        Taken::Stored { reason, .. } => Some(reason),
        Taken::NeedsAuth(_) | Taken::NeedsPrev => Some(None),
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
        Verdict::NeedsWork | Verdict::Judged(_) => Err(Error::internal("a verdict that was not asked for")),
    }
}

fn reason(judged: &Judged) -> Option<Error> {
    judged.reason.clone().map(Error::from)
}

/// Stores an event with the verdict that was just found by what this transaction sees.
pub(crate) fn store_judged(
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
        old_heads: &judged.heads,
        kept_heads: judged.kept,
        becomes_head: judged.becomes_head,
        current: judged.current,
        missing: judged.missing,
        history: if let Terms::History(place) = terms { Some(place) } else { None },
    })?;
    if let Some(reason) = &reason {
        log::info!("{} in {} is {:?}: {}", pdu.event_id(), room.room_id, status, reason.message());
    }
    Ok(Taken::Stored { status, already: false, reason })
}
