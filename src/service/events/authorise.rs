//! The verdict on an event that comes from outside, and what it makes of its room. Reads, decides, writes nothing.
//!
//! The steps are those of the server-server API, "Checks performed on receipt of a PDU", from the fourth on; the first
//! three (format, signatures, hash) have been taken when a `Pdu` comes here.

use std::collections::{BTreeSet, HashSet};

use super::policy_server;
use crate::error::{Error, Result};
use crate::protocol::event_auth::{self, AuthError};
use crate::protocol::pdu::PREV_EVENTS_MAX;
use crate::protocol::room_version::EventIdFormat;
use crate::protocol::state_res::StateMap;
use crate::protocol::{EventId, Pdu, RoomId};
use crate::service::events::extremities::{Places, may_be_late, places};
use crate::service::events::resolve::{Effort, Side, is_same_state, resolve, state_near};
use crate::service::events::state_view::StateView;
use crate::store::rooms::append::Current;
use crate::store::rooms::not_resident;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, EventKey, Room, SnapshotId, Status};

/// What came out.
pub(in crate::service) enum Verdict {
    /// It has no business here: nothing is stored of it.
    Refused(Error),
    /// We have it, and this became of it then.
    Known(Status),
    /// These auth events have to be fetched before anything can be said.
    MissingAuth(Vec<EventId>),
    /// Previous events have to be fetched, or the state before the event asked for.
    MissingPrev,
    /// States would have to be resolved, which was not wanted.
    NeedsWork,
    /// The room's current state does not allow it, and does not know of the room's late extremities yet.
    IsBehind,
    /// It was judged.
    Judged(Box<Judged>),
}

/// An event that was judged by a room's forward extremities as they were at one moment.
pub(in crate::service) struct Judged {
    pub room: Room,
    pub status: Status,
    /// Why it was not accepted.
    pub reason: Option<AuthError>,
    pub state_before: StateRef,
    /// The room's forward extremities.
    pub heads: Vec<EventKey>,
    /// Those that stay beside the event.
    pub kept: Vec<EventKey>,
    /// Whether it becomes one itself: not if others that we have refer to it, unless it is a state event.
    pub becomes_extremity: bool,
    pub current: Current,
    /// Late extremities that it follows.
    pub overtakes: Vec<EventKey>,
    /// Previous events that we do not have, and go without.
    pub missing: Vec<EventId>,
}

/// How an event is to be judged.
#[derive(Clone, Copy)]
pub(in crate::service) struct Hearing<'a> {
    /// The state before it according to another server, for an event whose previous events are not to be had. All of
    /// its events are stored.
    pub given: Option<&'a StateRef>,
    /// Whether it is history, which changes nothing that is current.
    pub history: bool,
    /// How much may be done.
    pub effort: Effort,
    /// Whether the room's current state may follow later, if that is more.
    pub later: bool,
}

impl<'a> Hearing<'a> {
    /// The usual one, for an event that has just come.
    pub(in crate::service) fn live(given: Option<&'a StateRef>) -> Self {
        Self { given, history: false, effort: Effort::Full, later: false }
    }

    /// Whatever it takes.
    pub(in crate::service) fn fully(given: Option<&'a StateRef>, history: bool) -> Self {
        Self { given, history, effort: Effort::Full, later: false }
    }
}

/// Judges an event.
pub(in crate::service) fn judge(db: &Db<'_>, pdu: &Pdu, hearing: Hearing<'_>) -> Result<Verdict> {
    let Hearing { given, history, effort, later } = hearing;
    let Some(room) = db.resident_room(pdu.room_id())? else {
        return Ok(Verdict::Refused(not_resident()));
    };
    if let Some((status, outlier)) = db.event_status(pdu.event_id())? {
        if !is_same(db, &room, pdu)? {
            return Ok(Verdict::Refused(Error::forbidden("Another event has this event id")));
        }
        if !outlier || status == Status::Rejected {
            return Ok(Verdict::Known(status));
        }
    }
    if pdu.event_type() == "m.room.create" {
        // A room that came to us with its state has its create event without a place, until history leads back to it.
        let own = db.state_event_key(room.key, "m.room.create", "")?;
        if !history || own.is_none() || own != db.event_key(pdu.event_id())? {
            return Ok(Verdict::Refused(Error::forbidden("The room has its create event already")));
        }
    } else if pdu.prev_events().is_empty() {
        // Without a state before it no rule would let it pass, and what no state is would have to be written down.
        return Ok(Verdict::Refused(Error::forbidden("Only the create event follows no other")));
    }
    let auth = match auth_events(db, &room, pdu)? {
        Ok(auth) => auth,
        Err(missing) => return Ok(Verdict::MissingAuth(missing)),
    };
    let heads = db.extremity_keys(room.key)?;
    let around = Around { room: &room, heads: &heads };
    let (state_before, missing) = match state_before(db, &around, pdu, given, effort)? {
        Before::State(state, missing) => (state, missing),
        Before::Missing => return Ok(Verdict::MissingPrev),
        Before::NeedsWork => return Ok(Verdict::NeedsWork),
    };
    let (status, reason) = match by_auth_events(db, pdu, &auth)?.and(by_state(db, &room, pdu, &state_before)?)
    {
        Err(reason) => (Status::Rejected, Some(reason)),
        Ok(()) => {
            // What was allowed then is history, whatever the room is like today.
            let by_now = if history { Ok(()) } else { by_current_state(db, &room, pdu, &state_before)? };
            if by_now.is_err() && !db.late_extremities(room.key)?.is_empty() {
                // Whose join is late would be heard by all others, and never by us.
                return Ok(Verdict::IsBehind);
            }
            match by_now.and(policy_server::verdict(db, &room, pdu)?) {
                Err(reason) => (Status::SoftFailed, Some(reason)),
                Ok(()) => (Status::Accepted, None),
            }
        }
    };
    // What others that we have refer to is no forward extremity; but they were judged without it, so that a state event
    // stays one until an event joins it with them. Otherwise whoever is faster could leave a ban out of the state.
    let becomes_extremity = !history && (pdu.is_state() || db.gap(room.key, pdu.event_id())?.is_none());
    let Places { kept, overtakes, followed, is_late } = places(db, &room, pdu, &heads)?;
    let is_end = status == Status::Accepted && becomes_extremity;
    let current = match (is_end, is_late) {
        (false, _) => Some(Current::Unchanged),
        (true, true) => None,
        (true, false) => current_after(db, &around, &state_before, pdu, &kept, effort)?,
    };
    let current = match current {
        Some(current) => current,
        // What follows late extremities is late itself.
        None if (later || is_late) && may_be_late(db, &room, &overtakes)? => Current::Later(followed),
        None => return Ok(Verdict::NeedsWork),
    };
    let overtakes = if is_end { overtakes } else { Vec::new() };
    Ok(Verdict::Judged(Box::new(Judged {
        room,
        status,
        reason,
        state_before,
        heads,
        kept,
        becomes_extremity,
        current,
        overtakes,
        missing,
    })))
}

/// Whether the event that we have by this id is this one. In room versions 1 and 2 a server chooses the ids of its
/// events, and may choose one twice: what is judged must be what is stored.
fn is_same(db: &Db<'_>, room: &Room, pdu: &Pdu) -> Result<bool> {
    if pdu.version().event_id_format != EventIdFormat::InEvent {
        return Ok(true);
    }
    let Some(stored) = db.event(pdu.event_id())? else { return Ok(true) };
    let hash = |pdu: &Pdu| pdu.canonical().reference_hash(pdu.version());
    Ok(stored.room == room.key && hash(&stored.pdu) == hash(pdu))
}

/// The auth events, and from room version 12 on the create event; or which we do not have.
fn auth_events(db: &Db<'_>, room: &Room, pdu: &Pdu) -> Result<Result<Vec<Pdu>, Vec<EventId>>> {
    let (mut auth, mut missing) = (Vec::new(), Vec::new());
    for id in pdu.auth_events() {
        match db.pdu(id)? {
            Some(event) => auth.push(event),
            None => missing.push(id.clone()),
        }
    }
    if room.version.room_id_is_create_hash && pdu.event_type() != "m.room.create" {
        auth.extend(db.state_event(room.key, "m.room.create", "")?);
    }
    Ok(if missing.is_empty() { Ok(auth) } else { Err(missing) })
}

/// Step 4: "Passes authorisation rules based on the event's auth events, otherwise it is rejected."
fn by_auth_events(db: &Db<'_>, pdu: &Pdu, auth: &[Pdu]) -> Result<Result<(), AuthError>> {
    let mut rejected = HashSet::new();
    for event in auth {
        if matches!(db.event_status(event.event_id())?, Some((Status::Rejected, _))) {
            rejected.insert(event.event_id().clone());
        }
    }
    Ok(event_auth::check_auth_events(pdu, auth, &|id| rejected.contains(id), pdu.version())
        .and_then(|()| db.auth_checker(pdu.version()).check_against_auth_events(pdu, auth)))
}

/// Step 5: "Passes authorisation rules based on the state before the event, otherwise it is rejected."
fn by_state(db: &Db<'_>, room: &Room, pdu: &Pdu, state: &StateRef) -> Result<Result<(), AuthError>> {
    if is_current(room, state) {
        // The same, from the table that is made for such questions.
        return StateView::current(db, room.key).judge(&db.auth_checker(room.version), pdu);
    }
    StateView::new(|event_type, state_key| db.state_event_of(state, event_type, state_key))
        .judge(&db.auth_checker(room.version), pdu)
}

/// Step 6: "Passes authorisation rules based on the current state of the room, otherwise it is soft failed."
fn by_current_state(
    db: &Db<'_>,
    room: &Room,
    pdu: &Pdu,
    state_before: &StateRef,
) -> Result<Result<(), AuthError>> {
    if is_current(room, state_before) {
        return Ok(Ok(()));
    }
    StateView::current(db, room.key).judge(&db.auth_checker(room.version), pdu)
}

fn is_current(room: &Room, state: &StateRef) -> bool {
    state.change.is_empty() && Some(state.base) == room.state
}

/// What is found out about the state before an event.
enum Before {
    /// The state, and the previous events that we go without.
    State(StateRef, Vec<EventId>),
    /// Some of the previous events are not here.
    Missing,
    /// The states after the previous events differ.
    NeedsWork,
}

/// A room with its forward extremities, as an event finds it.
#[derive(Clone, Copy)]
pub(in crate::service) struct Around<'a> {
    pub room: &'a Room,
    pub heads: &'a [EventKey],
}

impl Around<'_> {
    /// The room's current state, if it is what these states come to: other events have brought the room the same.
    fn resolved(&self, db: &Db<'_>, sides: &[Side<'_>]) -> Result<Option<StateRef>> {
        // With more branches than an event can join, the current state is not what resolving them all would come to.
        let is_snapshot = |side: &Side<'_>| side.plus.is_none() && side.state.change.is_empty();
        if !(2..=PREV_EVENTS_MAX).contains(&self.heads.len()) || !sides.iter().all(is_snapshot) {
            return Ok(None);
        }
        let here: BTreeSet<SnapshotId> = sides.iter().map(|side| side.state.base).collect();
        let there: BTreeSet<SnapshotId> =
            db.forward_extremities(self.room.key)?.iter().map(|head| head.state_after).collect();
        Ok((here == there).then_some(self.room.state).flatten().map(StateRef::snapshot))
    }

    fn resolve(&self, db: &Db<'_>, sides: Vec<Side<'_>>, effort: Effort) -> Result<Option<StateRef>> {
        match self.resolved(db, &sides)? {
            Some(state) => Ok(Some(state)),
            None => resolve(db, self.room.version, sides, effort),
        }
    }
}

/// The state before an event: that after its previous events, resolved if they differ.
fn state_before(
    db: &Db<'_>,
    around: &Around<'_>,
    pdu: &Pdu,
    given: Option<&StateRef>,
    effort: Effort,
) -> Result<Before> {
    let Around { room, heads } = *around;
    let current = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
    let (mut known, mut states, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    for id in pdu.prev_events() {
        match db.event_states(id)? {
            Some((room_key, key, Some(state))) if room_key == room.key => {
                known.push(key);
                states.push(state);
            }
            // An outlier is as good as unknown here.
            _ => missing.push(id.clone()),
        }
    }
    let side = |state| Side { state: StateRef::snapshot(state), plus: None };
    let mut sides: Vec<Side<'_>> = states.into_iter().map(side).collect();
    if !missing.is_empty() {
        let Some(given) = given else {
            return Ok(match beside(db, room, pdu, &missing)? {
                Some(state) => Before::State(StateRef::snapshot(state), missing),
                None => Before::Missing,
            });
        };
        // What another server says of the state counts no more than what we know of the other previous events.
        sides.insert(0, Side { state: given.clone(), plus: None });
        return Ok(match resolve(db, room.version, sides, effort)? {
            Some(state) => Before::State(state, missing),
            None => Before::NeedsWork,
        });
    }
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        // Only the create event follows nothing.
        return Ok(Before::State(state_near(db, current, &StateMap::new())?, missing));
    }
    if known == heads {
        // The usual case, and the state after all forward extremities is known.
        return Ok(Before::State(StateRef::snapshot(current), missing));
    }
    if let Some(settled) = db.state_after_extremities(&known) {
        // They were all forward extremities once: who sent the event saw the room as it was then.
        let settled = StateRef::snapshot(settled);
        if cfg!(debug_assertions) {
            let afresh = resolve(db, room.version, sides, Effort::Modest)?;
            let same =
                afresh.as_ref().map_or(Ok(true), |afresh| is_same_state(db, Some(afresh), &settled))?;
            assert!(same, "a settled state is not what it was");
        }
        return Ok(Before::State(settled, missing));
    }
    Ok(match around.resolve(db, sides, effort)? {
        Some(state) => Before::State(state, missing),
        None => Before::NeedsWork,
    })
}

/// The state before an event that follows the very events which another follows, all or some of them unknown to us: such is
/// what was made at the moment of our join. Its server may tell us no more, if it put the joining user out.
fn beside(db: &Db<'_>, room: &Room, pdu: &Pdu, missing: &[EventId]) -> Result<Option<SnapshotId>> {
    let Some(first) = missing.first() else { return Ok(None) };
    let follows = |event: &Pdu| event.prev_events().iter().cloned().collect::<HashSet<EventId>>();
    let other = db.event_before_gap(room.key, first)?;
    Ok(other.filter(|other| follows(&other.pdu) == follows(pdu)).and_then(|other| other.state_before))
}

/// A state that another server gave, for [`Hearing::given`].
pub(in crate::service) fn given_state(db: &Db<'_>, room: &RoomId, given: &StateMap) -> Result<StateRef> {
    let current = db.known_room(room)?.state.ok_or_else(|| Error::internal("a room without a state"))?;
    state_near(db, current, given)
}

/// The current state once the event is accepted: the state after it, resolved with those after the other heads. None
/// if that is more work than wanted.
pub(in crate::service) fn current_after(
    db: &Db<'_>,
    around: &Around<'_>,
    state_before: &StateRef,
    pdu: &Pdu,
    kept: &[EventKey],
    effort: Effort,
) -> Result<Option<Current>> {
    if kept.is_empty() {
        return Ok(Some(Current::AfterThis));
    }
    let room = around.room;
    let mut sides = vec![Side { state: state_before.clone(), plus: pdu.is_state().then_some(pdu) }];
    if kept.len() > PREV_EVENTS_MAX {
        // More branches than an event can join: each would cost a copy of the state. The current state stands for them,
        // which is what they came to when the last of them came.
        let current = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
        sides.push(Side { state: StateRef::snapshot(current), plus: None });
        return Ok(resolve(db, room.version, sides, effort)?.map(Current::Resolved));
    }
    for head in db.forward_extremities(room.key)?.into_iter().filter(|head| kept.contains(&head.key)) {
        sides.push(Side { state: StateRef::snapshot(head.state_after), plus: None });
    }
    Ok(around.resolve(db, sides, effort)?.map(Current::Resolved))
}
