//! Resolving the states of a room's forks into one, within a budget: the pure algorithms are in
//! [`crate::protocol::state_res`], here they meet the database. Reads, decides, writes nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::protocol::room_version::StateResolution;
use crate::protocol::state_res::{self, StateMap, StateTuple, Unconflicted};
use crate::protocol::{EventId, Pdu, RoomVersion};
use crate::service::events::state_view::StateView;
use crate::store::cache::resolutions::Fingerprint;
use crate::store::rooms::snapshots::Difference;
use crate::store::rooms::state::NamedDelta;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, EventKey, Room, SnapshotId, StateTupleId, Status};

/// How much may be done for a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum ResolutionBudget {
    /// Whatever it takes.
    Unlimited,
    /// State resolution only where it looks at little: on the writer's thread, which must not be held up.
    Bounded,
    /// No state resolution.
    None,
}

/// How many differences between states a bounded resolution takes on, and at how many events it looks.
const BOUNDED_DIFFERENCES_MAX: usize = 200;

const BOUNDED_EVENTS_MAX: usize = 300;

/// An event counts once more for each so many bytes.
const EVENT_WEIGHT_BYTES: usize = 4096;

fn weight_of(event: &Pdu) -> usize {
    1 + event.json().len() / EVENT_WEIGHT_BYTES
}

/// Whether two states are the same: an assertion of debug builds, and so of every test.
pub(super) fn is_same_state(db: &Db<'_>, one: Option<&StateRef>, other: &StateRef) -> Result<bool> {
    let whole = |state: &StateRef| -> Result<StateMap> {
        let mut map = db.state_map_at(state.base)?;
        apply_change(&mut map, state.change.clone());
        Ok(map)
    };
    Ok(one.map(whole).transpose()? == Some(whole(other)?))
}

/// A whole state as a difference to a snapshot that is likely to be close.
pub(super) fn state_near(db: &Db<'_>, near: SnapshotId, state: &StateMap) -> Result<StateRef> {
    Ok(StateRef { base: near, change: difference(&db.state_map_at(near)?, state) })
}

fn difference(from: &StateMap, to: &StateMap) -> NamedDelta {
    let mut change = NamedDelta::new();
    for (key, id) in to {
        if from.get(key) != Some(id) {
            change.insert(key.clone(), Some(id.clone()));
        }
    }
    for key in from.keys().filter(|key| !to.contains_key(*key)) {
        change.insert(key.clone(), None);
    }
    change
}

/// One of the states that are resolved: a state, and an event on top that is not stored yet.
pub(in crate::service) struct StateSet<'a> {
    pub state: StateRef,
    pub unstored: Option<&'a Pdu>,
}

impl StateSet<'_> {
    fn is(&self, other: &StateSet<'_>) -> bool {
        self.state.base == other.state.base
            && self.state.change == other.state.change
            && self.unstored.map(Pdu::event_id) == other.unstored.map(Pdu::event_id)
    }

    /// The state as a snapshot and a difference to it.
    fn into_state(self) -> StateRef {
        let mut state = self.state;
        if let Some(((event_type, state_key), id)) = self.unstored.and_then(entry_of) {
            state.change.insert((event_type, state_key), Some(id));
        }
        state
    }
}

fn entry_of(pdu: &Pdu) -> Option<(state_res::StateTuple, EventId)> {
    let key = (pdu.event_type_arc().clone(), pdu.state_key_arc()?.clone());
    Some((key, pdu.event_id().clone()))
}

/// Resolves states into one. Most of the time they turn out to be the same. None if they are not, and resolving them is
/// more work than wanted.
pub(in crate::service) fn resolve(
    db: &Db<'_>,
    version: RoomVersion,
    sets: Vec<StateSet<'_>>,
    budget: ResolutionBudget,
) -> Result<Option<StateRef>> {
    let mut distinct: Vec<StateSet<'_>> = Vec::new();
    for set in sets {
        if !distinct.iter().any(|other| other.is(&set)) {
            distinct.push(set);
        }
    }
    let Some(first) = distinct.first() else { return Err(Error::internal("no states to resolve")) };
    let base = first.state.base;
    if distinct.len() == 1 {
        return Ok(Some(distinct.remove(0).into_state()));
    }
    let fingerprint = fingerprint(version, &distinct);
    if let Some(known) = db.resolution(&fingerprint) {
        return Ok(Some(known));
    }
    if budget == ResolutionBudget::None {
        return Ok(None);
    }
    let mut unstored: BTreeMap<EventId, Pdu> = BTreeMap::new();
    let mut changes = Vec::with_capacity(distinct.len());
    for set in distinct {
        let Some(mut change) = named_difference(db, base, set.state.base, budget)? else { return Ok(None) };
        unstored.extend(set.unstored.map(|pdu| (pdu.event_id().clone(), pdu.clone())));
        change.extend(set.into_state().change);
        changes.push(change);
    }
    let differences: usize = changes.iter().map(NamedDelta::len).sum();
    let change = match (version.state_resolution, budget) {
        (StateResolution::V1, ResolutionBudget::Unlimited) => {
            Some(resolve_whole(db, version, base, changes, &unstored)?)
        }
        (StateResolution::V1, _) => None,
        (_, ResolutionBudget::Bounded) if differences > BOUNDED_DIFFERENCES_MAX => None,
        _ => resolve_changes(db, version, base, &changes, &unstored, budget)?,
    };
    let Some(change) = change else { return Ok(None) };
    let resolved = StateRef { base, change };
    db.keep_resolution(fingerprint, &resolved);
    Ok(Some(resolved))
}

/// What the current state has under a type and a state key.
struct Undisputed {
    event_type: String,
    state_key: String,
    id: Option<EventId>,
}

/// What the current state becomes if somebody comes in, or knocks, whom none of these states knows, and these differ in
/// nothing but other newcomers, all of whom the current state has: their union, which is what resolving them comes to
/// (`protocol/state_res/fast_path.rs` says why). None if it is not so simple, or would take more than a bounded
/// resolution. `sets`: the states after all that will be forward extremities, `newcomer` on top of the first.
pub(super) fn with_newcomer(
    db: &Db<'_>,
    room: &Room,
    sets: &[StateSet<'_>],
    newcomer: &Pdu,
) -> Result<Option<StateRef>> {
    let (Some(current), Some(entry)) = (room.state, entry_of(newcomer)) else { return Ok(None) };
    // In version 2.1 what lies between the newcomers counts too, of which nothing is known here.
    if room.version.state_resolution != StateResolution::V2
        || newcomer.sender().as_str() != &*entry.0.1
        || db.state_event_key(room.key, &entry.0.0, &entry.0.1)?.is_some()
    {
        return Ok(None);
    }
    let failure = RefCell::new(None);
    // Each newcomer asks for the same few.
    let asked: RefCell<Vec<Undisputed>> = RefCell::default();
    let undisputed = |event_type: &str, state_key: &str| {
        let is_it = |known: &&Undisputed| known.event_type == event_type && known.state_key == state_key;
        if let Some(known) = asked.borrow().iter().find(is_it) {
            return known.id.clone();
        }
        let key = db.state_event_key(room.key, event_type, state_key);
        let id = key.and_then(|key| key.map(|key| db.event_id(key)).transpose());
        let id = id.unwrap_or_else(|e| {
            failure.borrow_mut().get_or_insert(e);
            None
        });
        let (event_type, state_key) = (event_type.to_owned(), state_key.to_owned());
        asked.borrow_mut().push(Undisputed { event_type, state_key, id: id.clone() });
        id
    };
    if !state_res::is_newcomer(newcomer, &entry.0.1, &undisputed)
        || StateView::current(db, room.key).authorise(&db.auth_checker(room.version), newcomer)?.is_err()
    {
        return failure.into_inner().map_or(Ok(None), Err);
    }
    // Who is missing, by which event, in how many of the states.
    let mut missing: BTreeMap<StateTupleId, (EventKey, usize)> = BTreeMap::new();
    for set in sets {
        if !set.state.change.is_empty() {
            return Ok(None);
        }
        let differences = db.state_differences(current, set.state.base)?;
        if differences.len() > BOUNDED_DIFFERENCES_MAX {
            return Ok(None);
        }
        for Difference { tuple_id, old, new } in differences {
            let (Some(event), None) = (old, new) else { return Ok(None) };
            missing.entry(tuple_id).or_insert((event, 0)).1 += 1;
        }
    }
    // Each state may lack others of them.
    if missing.len() > BOUNDED_DIFFERENCES_MAX {
        return Ok(None);
    }
    let mut left = BOUNDED_EVENTS_MAX;
    for (key, count) in missing.into_values() {
        let other = db.pdu_by_key(key)?;
        db.count_examined(weight_of(&other));
        let Some(rest) = left.checked_sub(weight_of(&other)) else { return Ok(None) };
        left = rest;
        let is_newcomer = state_res::is_newcomer_like(&other, newcomer)
            || state_res::is_newcomer(&other, other.sender().as_str(), &undisputed);
        if !is_newcomer || count == sets.len() {
            return failure.into_inner().map_or(Ok(None), Err);
        }
    }
    let ((event_type, state_key), id) = entry;
    let change = NamedDelta::from([((event_type, state_key), Some(id))]);
    failure.into_inner().map_or(Ok(Some(StateRef { base: current, change })), Err)
}

/// What tells these states from all others, in whatever order they are.
fn fingerprint(version: RoomVersion, sets: &[StateSet<'_>]) -> Fingerprint {
    let part = |hasher: &mut Sha256, part: &str| {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    };
    let of_set = |set: &StateSet<'_>| -> Fingerprint {
        let mut hasher = Sha256::new();
        hasher.update(set.state.base.to_be_bytes());
        part(&mut hasher, set.unstored.map_or("", |pdu| pdu.event_id().as_str()));
        for ((event_type, state_key), id) in &set.state.change {
            part(&mut hasher, event_type);
            part(&mut hasher, state_key);
            part(&mut hasher, id.as_ref().map_or("", |id| id.as_str()));
        }
        hasher.finalize().into()
    };
    let mut sets: Vec<Fingerprint> = sets.iter().map(of_set).collect();
    sets.sort_unstable();
    let mut hasher = Sha256::new();
    part(&mut hasher, version.id);
    sets.iter().for_each(|set| hasher.update(set));
    hasher.finalize().into()
}

/// What a resolution asks the database, which may fail, as the pure resolution wants it.
struct EventLookups<'a> {
    db: &'a Db<'a>,
    /// Events that are not stored yet.
    unstored: &'a BTreeMap<EventId, Pdu>,
    failure: RefCell<Option<Error>>,
    /// How many events it may look at still.
    left: Cell<usize>,
    is_too_much: Cell<bool>,
}

impl<'a> EventLookups<'a> {
    fn new(db: &'a Db<'a>, unstored: &'a BTreeMap<EventId, Pdu>, budget: ResolutionBudget) -> Self {
        let left =
            Cell::new(if budget == ResolutionBudget::Unlimited { usize::MAX } else { BOUNDED_EVENTS_MAX });
        Self { db, unstored, failure: RefCell::default(), left, is_too_much: Cell::new(false) }
    }

    fn answer<T: Default>(&self, found: Result<T>) -> T {
        found.unwrap_or_else(|e| {
            self.failure.borrow_mut().get_or_insert(e);
            T::default()
        })
    }

    /// None also when it is too much: then it comes to an end soon, and what comes out is not looked at.
    fn event(&self, id: &EventId) -> Option<Pdu> {
        if self.left.get() == 0 {
            self.is_too_much.set(true);
            return None;
        }
        let found = self.unstored.get(id).cloned().or_else(|| self.answer(self.db.pdu(id)));
        let weight = found.as_ref().map_or(1, weight_of);
        self.left.set(self.left.get().saturating_sub(weight));
        self.db.count_examined(weight);
        found
    }

    fn is_rejected(&self, id: &EventId) -> bool {
        matches!(self.answer(self.db.event_status(id)), Some((Status::Rejected, _)))
    }

    fn finish<T>(self, found: T) -> Result<T> {
        self.failure.into_inner().map_or(Ok(found), Err)
    }
}

/// Resolves states given as changes to a snapshot, looking at no more of the room than the resolution asks for. None if
/// that is the whole room, and only a bounded budget is wanted.
fn resolve_changes(
    db: &Db<'_>,
    version: RoomVersion,
    base: SnapshotId,
    changes: &[NamedDelta],
    unstored: &BTreeMap<EventId, Pdu>,
    budget: ResolutionBudget,
) -> Result<Option<NamedDelta>> {
    // What the snapshot has for every key that one of the sides changes.
    let mut base_ids: BTreeMap<StateTuple, Option<EventId>> = BTreeMap::new();
    for key in changes.iter().flat_map(NamedDelta::keys) {
        if !base_ids.contains_key(key) {
            base_ids.insert(key.clone(), db.state_id_in(base, &key.0, &key.1)?);
        }
    }
    let set = |change: &NamedDelta| -> StateMap {
        let value = |(key, base): (&StateTuple, &Option<EventId>)| {
            Some((key.clone(), change.get(key).unwrap_or(base).clone()?))
        };
        base_ids.iter().filter_map(value).collect()
    };
    let sets: Vec<StateMap> = changes.iter().map(set).collect();
    let lookups = EventLookups::new(db, unstored, budget);
    let looked_up: RefCell<HashMap<StateTuple, Option<EventId>>> = RefCell::default();
    let get = |key: &StateTuple| {
        if base_ids.contains_key(key) {
            return None;
        }
        if let Some(known) = looked_up.borrow().get(key) {
            return known.clone();
        }
        let found = lookups.answer(db.state_id_in(base, &key.0, &key.1));
        looked_up.borrow_mut().insert(key.clone(), found.clone());
        found
    };
    let all = || {
        if budget != ResolutionBudget::Unlimited {
            lookups.is_too_much.set(true);
            return StateMap::new();
        }
        let mut all = lookups.answer(db.state_map_at(base));
        all.retain(|key, _| !base_ids.contains_key(key));
        all
    };
    let unconflicted = Unconflicted { get: &get, all: &all };
    let (fetch, rejected) = (|id: &EventId| lookups.event(id), |id: &EventId| lookups.is_rejected(id));
    let resolved = state_res::resolve_differences(version, &sets, unconflicted, &fetch, &rejected);
    let is_too_much = lookups.is_too_much.get();
    lookups.finish(())?;
    if is_too_much {
        return Ok(None);
    }
    let mut change = NamedDelta::new();
    for (key, base) in &base_ids {
        let now = resolved.get(key);
        if now != base.as_ref() {
            change.insert(key.clone(), now.cloned());
        }
    }
    let new = resolved.into_iter().filter(|(key, _)| !base_ids.contains_key(key));
    change.extend(new.map(|(key, id)| (key, Some(id))));
    Ok(Some(change))
}

/// [`resolve_changes`] for the algorithm of room version 1, which looks at whole states.
fn resolve_whole(
    db: &Db<'_>,
    version: RoomVersion,
    base: SnapshotId,
    changes: Vec<NamedDelta>,
    unstored: &BTreeMap<EventId, Pdu>,
) -> Result<NamedDelta> {
    let unconflicted = db.state_map_at(base)?;
    let mut sets = vec![unconflicted.clone(); changes.len()];
    for (set, change) in sets.iter_mut().zip(changes) {
        apply_change(set, change);
    }
    let lookups = EventLookups::new(db, unstored, ResolutionBudget::Unlimited);
    let (fetch, rejected) = (|id: &EventId| lookups.event(id), |id: &EventId| lookups.is_rejected(id));
    let resolved = state_res::resolve(version, &sets, &fetch, &rejected)?;
    lookups.finish(difference(&unconflicted, &resolved))
}

fn apply_change(set: &mut StateMap, change: NamedDelta) {
    for (key, event) in change {
        match event {
            Some(id) => set.insert(key, id),
            None => set.remove(&key),
        };
    }
}

/// The difference between two snapshots by names and ids. None if it is more than wanted.
fn named_difference(
    db: &Db<'_>,
    from: SnapshotId,
    to: SnapshotId,
    budget: ResolutionBudget,
) -> Result<Option<NamedDelta>> {
    let difference = db.state_difference(from, to)?;
    if budget != ResolutionBudget::Unlimited && difference.len() > BOUNDED_DIFFERENCES_MAX {
        return Ok(None);
    }
    let mut change = NamedDelta::new();
    for (tuple_id, event) in difference {
        let id = event.map(|key| db.event_id(key)).transpose()?;
        change.insert(db.state_tuple(tuple_id)?, id);
    }
    Ok(Some(change))
}
