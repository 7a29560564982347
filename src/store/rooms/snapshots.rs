//! Room states as a tree of differences (see `snapshots` in `schema.sql`): any state from a handful of rows.
//!
//! A snapshot's number counts the steps from its root. Its row has what changed since the ancestor whose number is the
//! same without the lowest set bit, as a Fenwick tree has it; the ancestors that a new row needs for that are exactly
//! those that lead from its predecessor to that ancestor. Forks need nothing special: they are branches of the tree.

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock};

use rusqlite::{OptionalExtension, params};

use crate::error::{Error, Result};
use crate::store::{Db, EventKey, RoomKey, SnapshotId, StateTupleId, Tx};

/// Memberships have the tuple ids beyond this one, so that what else a room's state has lies together, however many
/// members there are. Tuple ids have five bytes.
pub(crate) const LAST_OTHER_TUPLE_ID: StateTupleId = 1 << 38;

/// What changes from one state to another: type and state key → its event, or none any more.
pub type Delta = BTreeMap<StateTupleId, Option<EventKey>>;

/// What a snapshot's row says of a tuple: its event, or that there is none any more.
type DeltaEntry = (StateTupleId, Option<EventKey>);

const ENTRY_BYTES: usize = 10;

fn encode(delta: &Delta) -> Vec<u8> {
    let mut blob = Vec::with_capacity(delta.len() * ENTRY_BYTES);
    for (tuple_id, event) in delta {
        blob.extend_from_slice(&tuple_id.to_be_bytes()[3..]);
        blob.extend_from_slice(&event.unwrap_or(0).to_be_bytes()[3..]);
    }
    blob
}

fn five_bytes(bytes: &[u8]) -> i64 {
    bytes.iter().take(5).fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn entries(blob: &[u8]) -> impl Iterator<Item = DeltaEntry> + '_ {
    blob.chunks_exact(ENTRY_BYTES).map(|entry| {
        let event = five_bytes(&entry[5..]);
        (five_bytes(entry), (event != 0).then_some(event))
    })
}

/// Two lists of entries, each in order, as one: where both speak of a tuple the first has the last word.
fn overlay(newer: Vec<DeltaEntry>, older: Vec<DeltaEntry>) -> Vec<DeltaEntry> {
    let mut all = Vec::with_capacity(newer.len() + older.len());
    let mut newer = newer.into_iter().peekable();
    for entry in older {
        while let Some(before) = newer.next_if(|(tuple_id, _)| *tuple_id < entry.0) {
            all.push(before);
        }
        all.push(newer.next_if(|(tuple_id, _)| *tuple_id == entry.0).unwrap_or(entry));
    }
    all.extend(newer);
    all
}

/// The same as [`Db::find_in`] for a delta that is one value.
fn find(blob: &[u8], tuple_id: StateTupleId) -> Option<Option<EventKey>> {
    let (mut low, mut high) = (0, blob.len() / ENTRY_BYTES);
    while low < high {
        let middle = (low + high) / 2;
        let entry = &blob[middle * ENTRY_BYTES..(middle + 1) * ENTRY_BYTES];
        match five_bytes(entry).cmp(&tuple_id) {
            std::cmp::Ordering::Less => low = middle + 1,
            std::cmp::Ordering::Greater => high = middle,
            std::cmp::Ordering::Equal => {
                let event = five_bytes(&entry[5..]);
                return Some((event != 0).then_some(event));
            }
        }
    }
    None
}

pub(in crate::store) struct SnapshotRow {
    pub(in crate::store) snapshot: SnapshotId,
    number: i64,
    parent: Option<SnapshotId>,
    /// None if the entries have rows of their own.
    delta: Option<Vec<u8>>,
    /// The last tuple of those entries, once the writer asked.
    last_entry: OnceLock<StateTupleId>,
    /// Whether it may stand among those that no event has: not if it was made in this run and never noted there, or an event
    /// was seen to have it.
    may_be_spare: AtomicBool,
}

impl SnapshotRow {
    /// What it takes to remember it.
    pub(in crate::store) fn bytes(&self) -> usize {
        120 + self.delta.as_ref().map_or(0, Vec::len)
    }

    /// Whether it may stand among those that no event has.
    pub(in crate::store) fn may_be_spare(&self) -> bool {
        self.may_be_spare.load(Ordering::Relaxed)
    }

    /// It stands among them now, or not any more.
    pub(in crate::store) fn set_may_be_spare(&self, may_be: bool) {
        self.may_be_spare.store(may_be, Ordering::Relaxed);
    }
}

/// How a snapshot was made: from which one, by which change. Only the writer remembers this, and only of late
/// snapshots: between neighbours it is the short way.
pub(in crate::store) struct SnapshotStep {
    from: SnapshotId,
    change: Vec<DeltaEntry>,
    /// What the former had in place of each of these, once somebody asked: looking that up is most of what it takes to tell
    /// how two snapshots differ, and the same steps are gone again with every event of a forked room.
    before: OnceLock<Vec<Option<EventKey>>>,
}

impl SnapshotStep {
    /// What it takes to remember it.
    pub(in crate::store) fn bytes(&self) -> usize {
        120 + 60 * self.change.len()
    }
}

/// What two states have in one place.
#[derive(Clone, Copy)]
pub struct Difference {
    /// The place: type and state key.
    pub tuple_id: StateTupleId,
    /// What the one has there.
    pub old: Option<EventKey>,
    /// What the other has.
    pub new: Option<EventKey>,
}

/// What is found out about one place on the way from two snapshots to a third that both come from.
#[derive(Default)]
struct OnBothWays {
    /// What the third has.
    common: Option<EventKey>,
    /// What the two have, where they differ from that.
    old: Option<Option<EventKey>>,
    new: Option<Option<EventKey>>,
}

/// How many steps are gone at most to see how two snapshots differ.
const STEPS_MAX: usize = 200;

/// A delta with more entries than this has them as rows, so that looking one up does not read them all.
const INLINE_ENTRIES_MAX: usize = 300;

/// The number of the ancestor that a snapshot's delta is against.
fn parent_number(number: i64) -> i64 {
    number & (number - 1)
}

impl Db<'_> {
    fn snapshot_row(&self, snapshot: SnapshotId) -> Result<Arc<SnapshotRow>> {
        if let Some(row) = self.recall(|cache| cache.events.row(snapshot)) {
            return Ok(row);
        }
        let mut statement =
            self.conn().prepare_cached("SELECT number, parent, delta FROM snapshots WHERE snapshot = ?1")?;
        let row = Arc::new(statement.query_row([snapshot], |r| {
            Ok(SnapshotRow {
                snapshot,
                number: r.get(0)?,
                parent: r.get(1)?,
                delta: r.get(2)?,
                last_entry: OnceLock::new(),
                may_be_spare: AtomicBool::new(true),
            })
        })?);
        self.remember(|cache| cache.events.keep_row(row.clone()));
        Ok(row)
    }

    /// Looks one tuple up in a row: `Some(None)` says that nothing is there any more, `None` that the row does not
    /// speak of it.
    fn find_in(&self, row: &SnapshotRow, tuple_id: StateTupleId) -> Result<Option<Option<EventKey>>> {
        if let Some(delta) = &row.delta {
            return Ok(find(delta, tuple_id));
        }
        if self.cache.is_some() && tuple_id > self.last_entry(row)? {
            // A newcomer's, whose number was given out later.
            return Ok(None);
        }
        if let Some(known) = self.recall(|cache| cache.events.entry(row.snapshot, tuple_id)) {
            return Ok(known);
        }
        let mut statement = self
            .conn()
            .prepare_cached("SELECT event_key FROM snapshot_entries WHERE snapshot = ?1 AND tuple_id = ?2")?;
        let found: Option<EventKey> =
            statement.query_row([row.snapshot, tuple_id], |r| r.get(0)).optional()?;
        let found = found.map(|event| (event != 0).then_some(event));
        self.remember(|cache| cache.events.keep_entry(row.snapshot, tuple_id, found));
        Ok(found)
    }

    /// The last tuple of a row whose entries have rows of their own.
    fn last_entry(&self, row: &SnapshotRow) -> Result<StateTupleId> {
        if let Some(last) = row.last_entry.get() {
            return Ok(*last);
        }
        let mut statement =
            self.conn().prepare_cached("SELECT max(tuple_id) FROM snapshot_entries WHERE snapshot = ?1")?;
        let last: Option<StateTupleId> = statement.query_row([row.snapshot], |r| r.get(0))?;
        Ok(*row.last_entry.get_or_init(|| last.unwrap_or(0)))
    }

    /// All entries of a row, by tuple id.
    fn entries_of(&self, row: &SnapshotRow) -> Result<Vec<DeltaEntry>> {
        self.entries_upto(row, StateTupleId::MAX)
    }

    /// The entries of a row for tuple ids up to this one, in their order.
    fn entries_upto(&self, row: &SnapshotRow, last: StateTupleId) -> Result<Vec<DeltaEntry>> {
        if let Some(delta) = &row.delta {
            let mut all: Vec<_> = entries(delta).collect();
            all.truncate(all.partition_point(|(tuple_id, _)| *tuple_id <= last));
            return Ok(all);
        }
        self.rows(
            "SELECT tuple_id, event_key FROM snapshot_entries
             WHERE snapshot = ?1 AND tuple_id <= ?2 ORDER BY tuple_id",
            params![row.snapshot, last],
            |r| {
                let event: EventKey = r.get(1)?;
                Ok((r.get(0)?, (event != 0).then_some(event)))
            },
        )
    }

    /// One event of a state, without putting the whole state together.
    pub fn state_row_at(&self, snapshot: SnapshotId, tuple_id: StateTupleId) -> Result<Option<EventKey>> {
        let mut next = Some(snapshot);
        while let Some(snapshot) = next {
            let row = self.snapshot_row(snapshot)?;
            if let Some(found) = self.find_in(&row, tuple_id)? {
                return Ok(found);
            }
            next = row.parent;
        }
        Ok(None)
    }

    /// A whole state: type and state key → event.
    pub fn state_rows_at(&self, snapshot: SnapshotId) -> Result<BTreeMap<StateTupleId, EventKey>> {
        Ok(self.state_rows_upto(snapshot, StateTupleId::MAX)?.into_iter().collect())
    }

    /// The events of a whole state, the memberships last.
    pub fn state_events_at(&self, snapshot: SnapshotId) -> Result<Vec<EventKey>> {
        Ok(self.state_rows_upto(snapshot, StateTupleId::MAX)?.into_iter().map(|(_, event)| event).collect())
    }

    /// The events of a state without its memberships, whose number does not matter.
    pub fn state_events_but_members_at(&self, snapshot: SnapshotId) -> Result<Vec<EventKey>> {
        Ok(self.state_rows_upto(snapshot, LAST_OTHER_TUPLE_ID)?.into_iter().map(|(_, event)| event).collect())
    }

    /// The entries of a state for tuple ids up to this one, in their order.
    fn state_rows_upto(
        &self,
        snapshot: SnapshotId,
        last: StateTupleId,
    ) -> Result<Vec<(StateTupleId, EventKey)>> {
        // The newest rows are the smallest.
        let (mut entries, mut next) = (Vec::new(), Some(snapshot));
        while let Some(snapshot) = next {
            let row = self.snapshot_row(snapshot)?;
            entries = overlay(entries, self.entries_upto(&row, last)?);
            next = row.parent;
        }
        Ok(entries.into_iter().filter_map(|(tuple_id, event)| Some((tuple_id, event?))).collect())
    }

    /// A snapshot's number and parent.
    pub(in crate::store) fn snapshot_link(&self, snapshot: SnapshotId) -> Result<(i64, Option<SnapshotId>)> {
        if let Some(row) = self.recall(|cache| cache.events.row(snapshot)) {
            return Ok((row.number, row.parent));
        }
        let mut statement =
            self.conn().prepare_cached("SELECT number, parent FROM snapshots WHERE snapshot = ?1")?;
        Ok(statement.query_row([snapshot], |r| Ok((r.get(0)?, r.get(1)?)))?)
    }

    /// The rows that a state is put together from, the newest first.
    fn snapshot_path(&self, snapshot: SnapshotId) -> Result<Vec<SnapshotId>> {
        let (mut path, mut next) = (Vec::new(), Some(snapshot));
        while let Some(snapshot) = next {
            path.push(snapshot);
            next = self.snapshot_link(snapshot)?.1;
        }
        Ok(path)
    }

    /// What the rows of a path say together, the first having the last word.
    fn changes_along(&self, path: &[SnapshotId]) -> Result<Delta> {
        let mut delta = Delta::new();
        for snapshot in path.iter().rev() {
            let row = self.snapshot_row(*snapshot)?;
            delta.extend(self.entries_of(&row)?);
        }
        Ok(delta)
    }

    /// What must change in state `from` to get state `to`.
    pub fn state_difference(&self, from: SnapshotId, to: SnapshotId) -> Result<Delta> {
        let differences = self.state_differences(from, to)?;
        Ok(differences.into_iter().map(|difference| (difference.tuple_id, difference.new)).collect())
    }

    /// Where two states differ, by type and state key.
    pub fn state_differences(&self, from: SnapshotId, to: SnapshotId) -> Result<Vec<Difference>> {
        if from == to {
            return Ok(Vec::new());
        }
        match self.difference_by_steps(from, to)? {
            Some(differences) => Ok(differences),
            None => self.difference_by_rows(from, to),
        }
    }

    /// The difference between snapshots that were made one from the other, or both from a third, not many steps ago.
    /// None if the writer does not remember how.
    fn difference_by_steps(&self, from: SnapshotId, to: SnapshotId) -> Result<Option<Vec<Difference>>> {
        if self.cache.is_none() {
            return Ok(None);
        }
        // From both ends towards the root, always from the one that is further from it, until they meet.
        let (mut from, mut to) = ((from, self.snapshot_link(from)?.0), (to, self.snapshot_link(to)?.0));
        let mut found: BTreeMap<StateTupleId, OnBothWays> = BTreeMap::new();
        for _ in 0..STEPS_MAX {
            if from.0 == to.0 {
                let difference = |(tuple_id, found): (StateTupleId, OnBothWays)| {
                    let OnBothWays { common, old, new } = found;
                    let (old, new) = (old.unwrap_or(common), new.unwrap_or(common));
                    (old != new).then_some(Difference { tuple_id, old, new })
                };
                return Ok(Some(found.into_iter().filter_map(difference).collect()));
            }
            let is_old = from.1 >= to.1;
            let at = if is_old { &mut from } else { &mut to };
            let Some(step) = self.recall(|cache| cache.events.step(at.0)) else { return Ok(None) };
            for ((tuple_id, event), before) in step.change.iter().zip(self.before_step(&step)?) {
                let place = found.entry(*tuple_id).or_default();
                // The step that is nearest to the third says what that has, the one that is nearest to the end what that has.
                place.common = *before;
                let end = if is_old { &mut place.old } else { &mut place.new };
                end.get_or_insert(*event);
            }
            *at = (step.from, at.1 - 1);
        }
        Ok(None)
    }

    /// What the state before a step had in the places that it changed.
    fn before_step<'s>(&self, step: &'s SnapshotStep) -> Result<&'s [Option<EventKey>]> {
        if step.before.get().is_none() {
            let had = step.change.iter().map(|(tuple_id, _)| self.state_row_at(step.from, *tuple_id));
            let _ = step.before.set(had.collect::<Result<_>>()?);
        }
        Ok(step.before.get().map_or(&[], Vec::as_slice))
    }

    /// The same for any two, found through their nearest common row.
    fn difference_by_rows(&self, from: SnapshotId, to: SnapshotId) -> Result<Vec<Difference>> {
        let (mut from_path, mut to_path) = (self.snapshot_path(from)?, self.snapshot_path(to)?);
        // What both build on, seen from the root, says the same on both sides, and is looked at only where one side
        // alone speaks of a tuple. It may be large.
        let mut common = None;
        while let (Some(a), Some(b)) = (from_path.last(), to_path.last())
            && a == b
        {
            common = from_path.pop();
            to_path.pop();
        }
        self.difference_above(common, &self.changes_along(&from_path)?, &self.changes_along(&to_path)?)
    }

    /// The difference of two states that are given as changes to a third, or to nothing.
    fn difference_above(
        &self,
        common: Option<SnapshotId>,
        before: &Delta,
        after: &Delta,
    ) -> Result<Vec<Difference>> {
        let beneath = |tuple_id: StateTupleId| match common {
            Some(common) => self.state_row_at(common, tuple_id),
            None => Ok(None),
        };
        let only_after = after.keys().filter(|tuple_id| !before.contains_key(tuple_id));
        let mut differences = Vec::new();
        for tuple_id in before.keys().chain(only_after) {
            let old = before.get(tuple_id).map_or_else(|| beneath(*tuple_id), |event| Ok(*event))?;
            let new = after.get(tuple_id).map_or_else(|| beneath(*tuple_id), |event| Ok(*event))?;
            if old != new {
                differences.push(Difference { tuple_id: *tuple_id, old, new });
            }
        }
        Ok(differences)
    }
}

impl Tx<'_> {
    /// A new state from nothing.
    pub fn root_snapshot(&mut self, state: &BTreeMap<StateTupleId, EventKey>) -> Result<SnapshotId> {
        let delta: Delta = state.iter().map(|(tuple_id, event)| (*tuple_id, Some(*event))).collect();
        self.insert_snapshot(0, None, &delta)
    }

    /// The room's current state as one that follows no other.
    pub(in crate::store) fn root_snapshot_of_current(
        &mut self,
        room: RoomKey,
        size: usize,
    ) -> Result<SnapshotId> {
        if size <= INLINE_ENTRIES_MAX {
            return self.root_snapshot(&self.current_state_rows(room)?.into_iter().collect());
        }
        let snapshot = self.insert_snapshot_row(0, None, None)?;
        let copy = "INSERT INTO snapshot_entries (snapshot, tuple_id, event_key)
             SELECT ?1, tuple_id, event_key FROM current_state WHERE room_key = ?2 ORDER BY tuple_id";
        self.execute(copy, params![snapshot, room])?;
        Ok(snapshot)
    }

    /// The state that results from another by a change. An empty change makes no row.
    pub fn snapshot_after(&mut self, previous: SnapshotId, change: &Delta) -> Result<SnapshotId> {
        if change.is_empty() {
            return Ok(previous);
        }
        let (mut number_here, mut parent) = self.snapshot_link(previous)?;
        let number = number_here + 1;
        let target = parent_number(number);
        // From the predecessor back to the ancestor that the new row builds on, which is not looked into itself.
        let (mut between, mut at) = (Vec::new(), previous);
        while number_here > target {
            between.push(at);
            at = parent.ok_or_else(|| Error::internal("a snapshot without its parent"))?;
            (number_here, parent) = self.snapshot_link(at)?;
        }
        let mut delta = self.changes_along(&between)?;
        delta.extend(change.iter().map(|(tuple_id, event)| (*tuple_id, *event)));
        self.count_child_of_spare_state(at, 1)?;
        let snapshot = self.insert_snapshot(number, Some(at), &delta)?;
        self.remember(|cache| {
            let change = change.iter().map(|(tuple_id, event)| (*tuple_id, *event)).collect();
            cache
                .events
                .keep_step(snapshot, SnapshotStep { from: previous, change, before: OnceLock::new() });
        });
        Ok(snapshot)
    }

    fn insert_snapshot_row(
        &mut self,
        number: i64,
        parent: Option<SnapshotId>,
        delta: Option<Vec<u8>>,
    ) -> Result<SnapshotId> {
        // As one row of values: what is selected from the table that it goes into is put into a table of its own first.
        self.execute(
            "INSERT INTO snapshots (snapshot, number, parent, delta) VALUES (
               (SELECT max(snapshot, coalesce((SELECT max(snapshot) FROM snapshots), 0)) + 1 FROM retired_keys),
               ?1, ?2, ?3)",
            params![number, parent, delta],
        )?;
        let snapshot = self.conn().last_insert_rowid();
        let (last_entry, may_be_spare) = (OnceLock::new(), AtomicBool::new(false));
        let row = SnapshotRow { snapshot, number, parent, delta, last_entry, may_be_spare };
        self.remember(|cache| cache.events.keep_row(Arc::new(row)));
        Ok(snapshot)
    }

    fn insert_snapshot(
        &mut self,
        number: i64,
        parent: Option<SnapshotId>,
        delta: &Delta,
    ) -> Result<SnapshotId> {
        let large = delta.len() > INLINE_ENTRIES_MAX;
        let snapshot = self.insert_snapshot_row(number, parent, (!large).then(|| encode(delta)))?;
        if large {
            let mut insert = self.conn().prepare_cached(
                "INSERT INTO snapshot_entries (snapshot, tuple_id, event_key) VALUES (?1, ?2, ?3)",
            )?;
            for (tuple_id, event) in delta {
                insert.execute(params![snapshot, tuple_id, event.unwrap_or(0)])?;
            }
        }
        Ok(snapshot)
    }
}
