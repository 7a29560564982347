//! The verdict on an event of another server, and what it makes of its room. Reads, decides, writes nothing.
//!
//! The checks are those of the server-server API, "Checks performed on receipt of a PDU", from the fourth on; the first
//! three (format, signatures, hash) have passed when a `Pdu` comes here. The head of this folder lists them all.

use std::collections::{BTreeSet, HashSet};

use super::policy_server;
use crate::error::{Error, Result};
use crate::order::Gather;
use crate::protocol::event_auth::{self, AuthError};
use crate::protocol::pdu::PREV_EVENTS_MAX;
use crate::protocol::room_version::{EventIdFormat, StateResolution};
use crate::protocol::state_res::StateMap;
use crate::protocol::{EventId, Pdu, RoomId};
use crate::service::events::extremities::{GraphPlace, may_be_late, place_in_graph};
use crate::service::events::resolve::{
    ResolutionBudget, StateSet, is_same_state, resolve, state_near, with_newcomer,
};
use crate::service::events::state_view::StateView;
use crate::store::rooms::append::Current;
use crate::store::rooms::events::PreviousEvent;
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
    /// Previous events have to be fetched, or the state before the event asked for: of somebody else, if somebody has
    /// said already what it was, and that does not allow the event.
    MissingPrev,
    /// States would have to be resolved, which was not wanted.
    NeedsWork,
    /// The room's current state does not allow it, and does not know of the room's late extremities yet.
    IsBehind,
    /// The rules were applied to it.
    Decided(Box<Decision>),
}

/// What was decided about an event by a room's forward extremities as they were at one moment, for the store to append.
pub(in crate::service) struct Decision {
    pub room: Room,
    pub status: Status,
    /// Why it was not accepted.
    pub reason: Option<AuthError>,
    pub state_before: StateRef,
    /// Whether that is nothing but what another server said.
    pub given: bool,
    /// The room's forward extremities.
    pub extremities: Vec<EventKey>,
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

/// By what an event is authorised, and how much may be done for that.
#[derive(Clone, Copy)]
pub(in crate::service) struct AuthContext<'a> {
    /// The state before it according to another server, for an event whose previous events are not to be had, or came
    /// with nothing but such states themselves. All of its events are stored.
    pub given: Option<&'a StateRef>,
    /// Whether it is history, which changes nothing that is current.
    pub history: bool,
    /// Whether it is held against the policy server that the room had then, and not the one that it has.
    pub policy_of_then: bool,
    /// How much may be done.
    pub budget: ResolutionBudget,
    /// Whether the room's current state may follow later, if that is more.
    pub later: bool,
}

impl<'a> AuthContext<'a> {
    /// The usual one, for an event that has just come.
    pub(in crate::service) fn live(given: Option<&'a StateRef>) -> Self {
        Self::fully(given, false)
    }

    /// Whatever it takes.
    pub(in crate::service) fn fully(given: Option<&'a StateRef>, history: bool) -> Self {
        let budget = ResolutionBudget::Unlimited;
        Self { given, history, policy_of_then: false, budget, later: false }
    }
}

/// Checks 4 to 7 on receipt of a PDU, and what the event makes of its room.
pub(in crate::service) fn authorise(db: &Db<'_>, pdu: &Pdu, context: AuthContext<'_>) -> Result<Verdict> {
    let AuthContext { given, history, policy_of_then, budget, later } = context;
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
    let extremities = db.extremity_keys(room.key)?;
    let ends = RoomExtremities { room: &room, extremities: &extremities };
    let mut before = match state_before(db, &ends, pdu, given, budget)? {
        StateBefore::State(state) => state,
        unknown => return Ok(unknown.into_verdict()),
    };
    let by_auth_events = allowed_by_auth_events(db, &room, pdu, &auth)?;
    let mut by_state_before = allowed_by_state_before(db, &room, pdu, &before.state)?;
    if by_auth_events.is_ok()
        && by_state_before.is_err()
        && !history
        && is_of_unknown_member(db, &room, pdu, &before)?
    {
        before = match state_with_word(db, &room, before, given, budget)? {
            StateBefore::State(state) => state,
            unknown => return Ok(unknown.into_verdict()),
        };
        by_state_before = allowed_by_state_before(db, &room, pdu, &before.state)?;
    }
    let StateOfEvent { state: state_before, missing, given } = before;
    if by_auth_events.is_ok() && by_state_before.is_err() && (given || !missing.is_empty()) {
        // Check 5 asks for the state before the event, not for what somebody says of it who may want it gone: nobody
        // is kept out by the word of another server.
        return Ok(Verdict::MissingPrev);
    }
    let (status, reason) = match by_auth_events.and(by_state_before) {
        Err(reason) => (Status::Rejected, Some(reason)),
        Ok(()) => {
            let by_now = allowed_by_current_state(db, &room, pdu, (&state_before, given), context)?;
            let Some(by_now) = by_now else { return Ok(Verdict::NeedsWork) };
            if by_now.is_err() && !db.late_extremities(room.key)?.is_empty() {
                // Whose join is late would be heard by all others, and never by us.
                return Ok(Verdict::IsBehind);
            }
            let then = policy_of_then.then_some(&state_before);
            match by_now.and(policy_server::verdict(db, &room, pdu, then)?) {
                Err(reason) => (Status::SoftFailed, Some(reason)),
                Ok(()) => (Status::Accepted, None),
            }
        }
    };
    // What others that we have refer to is no forward extremity; but they were authorised without it, so that a state
    // event stays one until an event joins it with them. Otherwise whoever is faster could leave a ban out of the
    // state.
    let becomes_extremity = !history && (pdu.is_state() || db.gap(room.key, pdu.event_id())?.is_none());
    let GraphPlace { kept, overtakes, followed, is_late } = place_in_graph(db, &room, pdu, &extremities)?;
    let is_end = status == Status::Accepted && becomes_extremity;
    let current = match (is_end, is_late) {
        (false, _) => Some(Current::Unchanged),
        (true, true) => None,
        (true, false) => current_after(db, &ends, &state_before, pdu, &kept, budget)?,
    };
    let current = match current {
        Some(current) => current,
        // What follows late extremities is late itself.
        None if (later || is_late) && may_be_late(db, &room, &overtakes)? => Current::Later(followed),
        None => return Ok(Verdict::NeedsWork),
    };
    let overtakes = if is_end { overtakes } else { Vec::new() };
    Ok(Verdict::Decided(Box::new(Decision {
        room,
        status,
        reason,
        state_before,
        given,
        extremities,
        kept,
        becomes_extremity,
        current,
        overtakes,
        missing,
    })))
}

/// Whether the event that we have by this id is this one. In room versions 1 and 2 a server chooses the ids of its
/// events, and may choose one twice: what is authorised must be what is stored.
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

/// Check 4: "Passes authorisation rules based on the event's auth events, otherwise it is rejected."
fn allowed_by_auth_events(
    db: &Db<'_>,
    room: &Room,
    pdu: &Pdu,
    auth: &[Pdu],
) -> Result<Result<(), AuthError>> {
    let mut rejected = HashSet::new();
    for event in auth {
        // A room has one create event: another one is of some other room of this id.
        let is_strange = event.is("m.room.create", "") && !is_create_of(db, room, event.event_id())?;
        if is_strange || matches!(db.event_status(event.event_id())?, Some((Status::Rejected, _))) {
            rejected.insert(event.event_id().clone());
        }
    }
    Ok(event_auth::check_auth_events(pdu, auth, &|id| rejected.contains(id), pdu.version())
        .and_then(|()| db.auth_checker(pdu.version()).check_against_auth_events(pdu, auth)))
}

/// Whether this is the room's create event; of a room that has none yet, any may be.
pub(in crate::service) fn is_create_of(db: &Db<'_>, room: &Room, id: &EventId) -> Result<bool> {
    let own = db.state_event_key(room.key, "m.room.create", "")?;
    Ok(own.is_none() || own == db.event_key(id)?)
}

/// Check 5: "Passes authorisation rules based on the state before the event, otherwise it is rejected."
fn allowed_by_state_before(
    db: &Db<'_>,
    room: &Room,
    pdu: &Pdu,
    state: &StateRef,
) -> Result<Result<(), AuthError>> {
    if is_current(room, state) {
        // The current state, from the table that is made for such questions.
        return StateView::current(db, room.key).authorise(&db.auth_checker(room.version), pdu);
    }
    StateView::new(|event_type, state_key| db.state_event_of(state, event_type, state_key))
        .authorise(&db.auth_checker(room.version), pdu)
}

/// Check 6: "Passes authorisation rules based on the current state of the room, otherwise it is soft failed." None if that
/// is more work than wanted.
fn allowed_by_current_state(
    db: &Db<'_>,
    room: &Room,
    pdu: &Pdu,
    (state_before, given): (&StateRef, bool),
    context: AuthContext<'_>,
) -> Result<Option<Result<(), AuthError>>> {
    // What was allowed then is history, whatever the room is like today.
    if context.history || is_current(room, state_before) {
        return Ok(Some(Ok(())));
    }
    let allowed = StateView::current(db, room.key).authorise(&db.auth_checker(room.version), pdu)?;
    if allowed.is_ok() || !given || room.version.state_resolution == StateResolution::V1 {
        return Ok(Some(allowed));
    }
    // The current state need not know yet of what others have to say: what both come to decides, as it would once the event
    // is in. (By the first algorithm a state has whatever one of the two lacks.)
    let current = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
    let sets = vec![set_of(StateRef::snapshot(current)), set_of(state_before.clone())];
    let Some(both) = resolve(db, room.version, sets, context.budget)? else { return Ok(None) };
    allowed_by_state_before(db, room, pdu, &both).map(Some)
}

fn is_current(room: &Room, state: &StateRef) -> bool {
    state.change.is_empty() && Some(state.base) == room.state
}

/// What is found out about the state before an event.
enum StateBefore {
    /// The state.
    State(StateOfEvent),
    /// Some of the previous events are not here.
    Missing,
    /// The states after the previous events differ.
    NeedsWork,
}

/// The state before an event.
struct StateOfEvent {
    state: StateRef,
    /// The previous events that we go without.
    missing: Vec<EventId>,
    /// Whether it is nothing but what another server said, of it or of the states that it was made of.
    given: bool,
}

impl StateBefore {
    /// What there is to say of an event where the state before it is not known.
    fn into_verdict(self) -> Verdict {
        match self {
            Self::NeedsWork => Verdict::NeedsWork,
            Self::State(_) | Self::Missing => Verdict::MissingPrev,
        }
    }
}

fn set_of<'e>(state: StateRef) -> StateSet<'e> {
    StateSet { state, unstored: None }
}

/// Whether an event's sender came in by what could not be had when the state before it was worked out, and was taken by
/// somebody's word since: that state does not know of them.
fn is_of_unknown_member(db: &Db<'_>, room: &Room, pdu: &Pdu, before: &StateOfEvent) -> Result<bool> {
    let sender = pdu.sender().as_str();
    if before.given
        || !before.missing.is_empty()
        || db.state_event_of(&before.state, "m.room.member", sender)?.is_some()
    {
        return Ok(false);
    }
    for id in pdu.auth_events() {
        if db.pdu(id)?.is_some_and(|event| event.is("m.room.member", sender)) {
            return Ok(matches!(db.event_status(id)?, Some((Status::Accepted, true)))
                && db.rests_on_word(room.key, id)?);
        }
    }
    Ok(false)
}

/// The state before an event as it was worked out, resolved with what another server says of it.
fn state_with_word(
    db: &Db<'_>,
    room: &Room,
    before: StateOfEvent,
    given: Option<&StateRef>,
    budget: ResolutionBudget,
) -> Result<StateBefore> {
    let Some(given) = given else { return Ok(StateBefore::Missing) };
    let sets = vec![set_of(given.clone()), set_of(before.state)];
    Ok(match resolve(db, room.version, sets, budget)? {
        Some(state) => StateBefore::State(StateOfEvent { state, missing: before.missing, given: true }),
        None => StateBefore::NeedsWork,
    })
}

/// A room with its forward extremities, as an event finds it.
#[derive(Clone, Copy)]
pub(in crate::service) struct RoomExtremities<'a> {
    pub room: &'a Room,
    pub extremities: &'a [EventKey],
}

impl RoomExtremities<'_> {
    /// The room's current state, if it is what these states come to: other events have brought the room the same.
    fn resolved(&self, db: &Db<'_>, sets: &[StateSet<'_>]) -> Result<Option<StateRef>> {
        // With more forks than an event can join, the current state is not what resolving them all would come to.
        let is_snapshot = |set: &StateSet<'_>| set.unstored.is_none() && set.state.change.is_empty();
        if !(2..=PREV_EVENTS_MAX).contains(&self.extremities.len()) || !sets.iter().all(is_snapshot) {
            return Ok(None);
        }
        let here: BTreeSet<SnapshotId> = sets.iter().map(|set| set.state.base).gather();
        let there: BTreeSet<SnapshotId> =
            db.forward_extremities(self.room.key)?.iter().map(|extremity| extremity.state_after).gather();
        Ok((here == there).then_some(self.room.state).flatten().map(StateRef::snapshot))
    }

    fn resolve(
        &self,
        db: &Db<'_>,
        sets: Vec<StateSet<'_>>,
        budget: ResolutionBudget,
    ) -> Result<Option<StateRef>> {
        match self.resolved(db, &sets)? {
            Some(state) => Ok(Some(state)),
            None => resolve(db, self.room.version, sets, budget),
        }
    }
}

/// The state before an event: that after its previous events, resolved if they differ. What another server says of it
/// is looked at if some of these are not here, or if all that is known of their states is what somebody said.
fn state_before(
    db: &Db<'_>,
    ends: &RoomExtremities<'_>,
    pdu: &Pdu,
    given: Option<&StateRef>,
    budget: ResolutionBudget,
) -> Result<StateBefore> {
    let RoomExtremities { room, extremities } = *ends;
    let current = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
    let (mut known, mut states, mut missing) = (Vec::new(), Vec::new(), Vec::new());
    let mut all_given = true;
    for id in pdu.prev_events() {
        match db.previous_event(id)? {
            Some(PreviousEvent { room: its, key, state_after: Some(state), given }) if its == room.key => {
                known.push(key);
                states.push(state);
                all_given &= given;
            }
            // An outlier is as good as unknown here.
            _ => missing.push(id.clone()),
        }
    }
    let mut sets: Vec<StateSet<'_>> =
        states.into_iter().map(|state| set_of(StateRef::snapshot(state))).collect();
    if let Some(given) = given.filter(|_| all_given || !missing.is_empty()) {
        // What another server says of the state counts no more than what we know of the other previous events.
        sets.insert(0, set_of(given.clone()));
        return Ok(match resolve(db, room.version, sets, budget)? {
            Some(state) => StateBefore::State(StateOfEvent { state, missing, given: all_given }),
            None => StateBefore::NeedsWork,
        });
    }
    if !missing.is_empty() {
        return Ok(match state_beside(db, room, pdu, missing)? {
            Some(state) => StateBefore::State(state),
            None => StateBefore::Missing,
        });
    }
    let found = |state| StateBefore::State(StateOfEvent { state, missing: Vec::new(), given: all_given });
    known.sort_unstable();
    known.dedup();
    if known.is_empty() {
        // Only the create event follows nothing.
        let state = state_near(db, current, &StateMap::new())?;
        return Ok(StateBefore::State(StateOfEvent { state, missing, given: false }));
    }
    if known == extremities {
        // The usual case, and the state after all forward extremities is known.
        return Ok(found(StateRef::snapshot(current)));
    }
    if let Some(settled) = db.state_after_extremities(&known) {
        // They were all forward extremities once: who sent the event saw the room as it was then.
        let settled = StateRef::snapshot(settled);
        if cfg!(debug_assertions) {
            let afresh = resolve(db, room.version, sets, ResolutionBudget::Bounded)?;
            let same =
                afresh.as_ref().map_or(Ok(true), |afresh| is_same_state(db, Some(afresh), &settled))?;
            assert!(same, "a settled state is not what it was");
        }
        return Ok(found(settled));
    }
    Ok(match ends.resolve(db, sets, budget)? {
        Some(state) => found(state),
        None => StateBefore::NeedsWork,
    })
}

/// The state before an event that follows the very events which another follows, all or some of them unknown to us:
/// such is what was made at the moment of our join. Its server may tell us no more, if it put the joining user out.
fn state_beside(db: &Db<'_>, room: &Room, pdu: &Pdu, missing: Vec<EventId>) -> Result<Option<StateOfEvent>> {
    let Some(first) = missing.first() else { return Ok(None) };
    let follows = |event: &Pdu| event.prev_events().iter().cloned().collect::<HashSet<EventId>>();
    let other = db.event_before_gap(room.key, first)?;
    let Some(other) = other.filter(|other| follows(&other.pdu) == follows(pdu)) else { return Ok(None) };
    let state = other.state_before.map(StateRef::snapshot);
    Ok(state.map(|state| StateOfEvent { state, missing, given: other.given }))
}

/// A state that another server gave, for [`AuthContext::given`].
pub(in crate::service) fn given_state(db: &Db<'_>, room: &RoomId, given: &StateMap) -> Result<StateRef> {
    let current = db.known_room(room)?.state.ok_or_else(|| Error::internal("a room without a state"))?;
    state_near(db, current, given)
}

/// The current state once the event is accepted: the state after it, resolved with those after the other extremities.
/// None if that is more work than wanted.
pub(in crate::service) fn current_after(
    db: &Db<'_>,
    ends: &RoomExtremities<'_>,
    state_before: &StateRef,
    pdu: &Pdu,
    kept: &[EventKey],
    budget: ResolutionBudget,
) -> Result<Option<Current>> {
    if kept.is_empty() {
        return Ok(Some(Current::AfterThis));
    }
    let room = ends.room;
    let mut sets = vec![StateSet { state: state_before.clone(), unstored: pdu.is_state().then_some(pdu) }];
    if kept.len() > PREV_EVENTS_MAX {
        // More forks than an event can join: each would cost a copy of the state. The current state stands for them,
        // which is what they came to when the last of them came.
        let current = room.state.ok_or_else(|| Error::internal("a room without a state"))?;
        sets.push(StateSet { state: StateRef::snapshot(current), unstored: None });
        return Ok(resolve(db, room.version, sets, budget)?.map(Current::Resolved));
    }
    for extremity in
        db.forward_extremities(room.key)?.into_iter().filter(|extremity| kept.contains(&extremity.key))
    {
        sets.push(StateSet { state: StateRef::snapshot(extremity.state_after), unstored: None });
    }
    if budget != ResolutionBudget::None
        && let Some(state) = with_newcomer(db, room, &sets, pdu)?
    {
        if cfg!(debug_assertions) {
            let afresh = resolve(db, room.version, sets, ResolutionBudget::Bounded)?;
            let same = afresh.as_ref().map_or(Ok(true), |afresh| is_same_state(db, Some(afresh), &state))?;
            assert!(same, "a newcomer makes another state than resolving does");
        }
        return Ok(Some(Current::Resolved(state)));
    }
    Ok(ends.resolve(db, sets, budget)?.map(Current::Resolved))
}
