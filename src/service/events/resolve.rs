//! Resolving the states of a room's forks into one, within a budget: the pure algorithms are in
//! [`crate::protocol::state_res`], here they meet the database. Reads, decides, writes nothing.

use std::cell::{Cell, RefCell};
use std::collections::{BTreeMap, HashMap};

use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::protocol::room_version::StateResolution;
use crate::protocol::state_res::{self, StateKey, StateMap, Unconflicted};
use crate::protocol::{EventId, Pdu, RoomVersion};
use crate::store::cache::resolutions::Fingerprint;
use crate::store::rooms::state::NamedDelta;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, SnapshotId, Status};

/// How much may be done for a verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum Effort {
    /// Whatever it takes.
    Full,
    /// State resolution only where it looks at little: on the writer's thread, which must not be held up.
    Modest,
    /// No state resolution.
    Light,
}

/// How many differences between states a modest resolution takes on, and at how many events it looks.
const MODEST: usize = 200;

const MODEST_LOOK: usize = 300;

/// An event counts once more for each so many bytes.
const LARGE: usize = 4096;

/// Whether two states are the same: an assertion of debug builds, and so of every test.
pub(super) fn is_same_state(db: &Db<'_>, one: Option<&StateRef>, other: &StateRef) -> Result<bool> {
    let whole = |state: &StateRef| -> Result<StateMap> {
        let mut map = db.state_map_at(state.base)?;
        apply(&mut map, state.change.clone());
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
pub(in crate::service) struct Side<'a> {
    pub state: StateRef,
    pub plus: Option<&'a Pdu>,
}

impl Side<'_> {
    fn is(&self, other: &Side<'_>) -> bool {
        self.state.base == other.state.base
            && self.state.change == other.state.change
            && self.plus.map(Pdu::event_id) == other.plus.map(Pdu::event_id)
    }

    /// The state as a snapshot and a difference to it.
    fn into_state(self) -> StateRef {
        let mut state = self.state;
        if let Some(((event_type, state_key), id)) = self.plus.and_then(entry_of) {
            state.change.insert((event_type, state_key), Some(id));
        }
        state
    }
}

fn entry_of(pdu: &Pdu) -> Option<(state_res::StateKey, EventId)> {
    let key = (pdu.event_type_arc().clone(), pdu.state_key_arc()?.clone());
    Some((key, pdu.event_id().clone()))
}

/// Resolves states into one. Most of the time they turn out to be the same. None if they are not, and resolving them is
/// more work than wanted.
pub(in crate::service) fn resolve(
    db: &Db<'_>,
    version: RoomVersion,
    sides: Vec<Side<'_>>,
    effort: Effort,
) -> Result<Option<StateRef>> {
    let mut distinct: Vec<Side<'_>> = Vec::new();
    for side in sides {
        if !distinct.iter().any(|other| other.is(&side)) {
            distinct.push(side);
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
    if effort == Effort::Light {
        return Ok(None);
    }
    let mut plus: BTreeMap<EventId, Pdu> = BTreeMap::new();
    let mut changes = Vec::with_capacity(distinct.len());
    for side in distinct {
        let Some(mut change) = named(db, base, side.state.base, effort)? else { return Ok(None) };
        plus.extend(side.plus.map(|pdu| (pdu.event_id().clone(), pdu.clone())));
        change.extend(side.into_state().change);
        changes.push(change);
    }
    let differences: usize = changes.iter().map(NamedDelta::len).sum();
    let change = match (version.state_resolution, effort) {
        (StateResolution::V1, Effort::Full) => Some(resolve_whole(db, version, base, changes, &plus)?),
        (StateResolution::V1, _) => None,
        (_, Effort::Modest) if differences > MODEST => None,
        _ => resolve_changes(db, version, base, &changes, &plus, effort)?,
    };
    let Some(change) = change else { return Ok(None) };
    let resolved = StateRef { base, change };
    db.keep_resolution(fingerprint, &resolved);
    Ok(Some(resolved))
}

/// What tells these states from all others, in whatever order they are.
fn fingerprint(version: RoomVersion, sides: &[Side<'_>]) -> Fingerprint {
    let part = |hasher: &mut Sha256, part: &str| {
        hasher.update((part.len() as u64).to_be_bytes());
        hasher.update(part);
    };
    let of_side = |side: &Side<'_>| -> Fingerprint {
        let mut hasher = Sha256::new();
        hasher.update(side.state.base.to_be_bytes());
        part(&mut hasher, side.plus.map_or("", |pdu| pdu.event_id().as_str()));
        for ((event_type, state_key), id) in &side.state.change {
            part(&mut hasher, event_type);
            part(&mut hasher, state_key);
            part(&mut hasher, id.as_ref().map_or("", |id| id.as_str()));
        }
        hasher.finalize().into()
    };
    let mut sides: Vec<Fingerprint> = sides.iter().map(of_side).collect();
    sides.sort_unstable();
    let mut hasher = Sha256::new();
    part(&mut hasher, version.id);
    sides.iter().for_each(|side| hasher.update(side));
    hasher.finalize().into()
}

/// What a resolution asks the database, which may fail, as the pure resolution wants it.
struct Questions<'a> {
    db: &'a Db<'a>,
    /// Events that are not stored yet.
    plus: &'a BTreeMap<EventId, Pdu>,
    failure: RefCell<Option<Error>>,
    /// How many events it may look at still.
    left: Cell<usize>,
    is_too_much: Cell<bool>,
}

impl<'a> Questions<'a> {
    fn new(db: &'a Db<'a>, plus: &'a BTreeMap<EventId, Pdu>, effort: Effort) -> Self {
        let left = Cell::new(if effort == Effort::Full { usize::MAX } else { MODEST_LOOK });
        Self { db, plus, failure: RefCell::default(), left, is_too_much: Cell::new(false) }
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
        let found = self.plus.get(id).cloned().or_else(|| self.answer(self.db.pdu(id)));
        let weight = 1 + found.as_ref().map_or(0, |pdu| pdu.json().len() / LARGE);
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
/// that is the whole room, and only a modest effort is wanted.
fn resolve_changes(
    db: &Db<'_>,
    version: RoomVersion,
    base: SnapshotId,
    changes: &[NamedDelta],
    plus: &BTreeMap<EventId, Pdu>,
    effort: Effort,
) -> Result<Option<NamedDelta>> {
    // What the snapshot has for every key that one of the sides changes.
    let mut beneath: BTreeMap<StateKey, Option<EventId>> = BTreeMap::new();
    for key in changes.iter().flat_map(NamedDelta::keys) {
        if !beneath.contains_key(key) {
            beneath.insert(key.clone(), db.state_id_in(base, &key.0, &key.1)?);
        }
    }
    let side = |change: &NamedDelta| -> StateMap {
        let value = |(key, base): (&StateKey, &Option<EventId>)| {
            Some((key.clone(), change.get(key).unwrap_or(base).clone()?))
        };
        beneath.iter().filter_map(value).collect()
    };
    let sets: Vec<StateMap> = changes.iter().map(side).collect();
    let questions = Questions::new(db, plus, effort);
    let looked_up: RefCell<HashMap<StateKey, Option<EventId>>> = RefCell::default();
    let get = |key: &StateKey| {
        if beneath.contains_key(key) {
            return None;
        }
        if let Some(known) = looked_up.borrow().get(key) {
            return known.clone();
        }
        let found = questions.answer(db.state_id_in(base, &key.0, &key.1));
        looked_up.borrow_mut().insert(key.clone(), found.clone());
        found
    };
    let all = || {
        if effort != Effort::Full {
            questions.is_too_much.set(true);
            return StateMap::new();
        }
        let mut all = questions.answer(db.state_map_at(base));
        all.retain(|key, _| !beneath.contains_key(key));
        all
    };
    let ground = Unconflicted { get: &get, all: &all };
    let (fetch, rejected) = (|id: &EventId| questions.event(id), |id: &EventId| questions.is_rejected(id));
    let resolved = state_res::resolve_differences(version, &sets, ground, &fetch, &rejected);
    let is_too_much = questions.is_too_much.get();
    questions.finish(())?;
    if is_too_much {
        return Ok(None);
    }
    let mut change = NamedDelta::new();
    for (key, base) in &beneath {
        let now = resolved.get(key);
        if now != base.as_ref() {
            change.insert(key.clone(), now.cloned());
        }
    }
    let new = resolved.into_iter().filter(|(key, _)| !beneath.contains_key(key));
    change.extend(new.map(|(key, id)| (key, Some(id))));
    Ok(Some(change))
}

/// The same for the algorithm of room version 1, which looks at whole states.
fn resolve_whole(
    db: &Db<'_>,
    version: RoomVersion,
    base: SnapshotId,
    changes: Vec<NamedDelta>,
    plus: &BTreeMap<EventId, Pdu>,
) -> Result<NamedDelta> {
    let ground = db.state_map_at(base)?;
    let mut sets = vec![ground.clone(); changes.len()];
    for (set, change) in sets.iter_mut().zip(changes) {
        apply(set, change);
    }
    let questions = Questions::new(db, plus, Effort::Full);
    let (fetch, rejected) = (|id: &EventId| questions.event(id), |id: &EventId| questions.is_rejected(id));
    let resolved = state_res::resolve(version, &sets, &fetch, &rejected)?;
    questions.finish(difference(&ground, &resolved))
}

fn apply(set: &mut StateMap, change: NamedDelta) {
    for (key, event) in change {
        match event {
            Some(id) => set.insert(key, id),
            None => set.remove(&key),
        };
    }
}

/// The difference between two snapshots by names and ids. None if it is more than wanted.
fn named(db: &Db<'_>, from: SnapshotId, to: SnapshotId, effort: Effort) -> Result<Option<NamedDelta>> {
    let difference = db.state_difference(from, to)?;
    if effort != Effort::Full && difference.len() > MODEST {
        return Ok(None);
    }
    let mut change = NamedDelta::new();
    for (slot, event) in difference {
        let id = event.map(|key| db.event_id(key)).transpose()?;
        change.insert(db.slot_name(slot)?, id);
    }
    Ok(Some(change))
}
