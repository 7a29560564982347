//! Room states as a tree of differences (see `snapshots` in `schema.sql`): any state from a handful of rows.
//!
//! A snapshot's number counts the steps from its root. Its row has what changed since the ancestor whose number is the
//! same without the lowest set bit, as a Fenwick tree has it; the ancestors that a new row needs for that are exactly
//! those that lead from its predecessor to that ancestor. Forks need nothing special: they are branches of the tree.

use std::collections::BTreeMap;

use rusqlite::params;

use super::{Db, EventKey, Slot, SnapshotId, Tx};
use crate::error::{Error, Result};

/// What changes from one state to another: slot → its event, or none any more.
pub type Delta = BTreeMap<Slot, Option<EventKey>>;

const ENTRY: usize = 10;

fn encode(delta: &Delta) -> Vec<u8> {
    let mut blob = Vec::with_capacity(delta.len() * ENTRY);
    for (slot, event) in delta {
        blob.extend_from_slice(&slot.to_be_bytes()[3..]);
        blob.extend_from_slice(&event.unwrap_or(0).to_be_bytes()[3..]);
    }
    blob
}

fn five_bytes(bytes: &[u8]) -> i64 {
    bytes.iter().take(5).fold(0, |number, byte| number << 8 | i64::from(*byte))
}

fn entries(blob: &[u8]) -> impl Iterator<Item = (Slot, Option<EventKey>)> + '_ {
    blob.chunks_exact(ENTRY).map(|entry| {
        let event = five_bytes(&entry[5..]);
        (five_bytes(entry), (event != 0).then_some(event))
    })
}

/// Looks one slot up in a delta: `Some(None)` says that the slot was emptied, `None` that the delta does not speak of it.
fn find(blob: &[u8], slot: Slot) -> Option<Option<EventKey>> {
    let (mut low, mut high) = (0, blob.len() / ENTRY);
    while low < high {
        let middle = (low + high) / 2;
        let entry = &blob[middle * ENTRY..(middle + 1) * ENTRY];
        match five_bytes(entry).cmp(&slot) {
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

struct Row {
    number: i64,
    parent: Option<SnapshotId>,
    delta: Vec<u8>,
}

/// The number of the ancestor that a snapshot's delta is against.
fn parent_number(number: i64) -> i64 {
    number & (number - 1)
}

impl Db<'_> {
    fn snapshot_row(&self, snapshot: SnapshotId) -> Result<Row> {
        let mut statement =
            self.conn().prepare_cached("SELECT number, parent, delta FROM snapshots WHERE snapshot = ?1")?;
        Ok(statement
            .query_row([snapshot], |r| Ok(Row { number: r.get(0)?, parent: r.get(1)?, delta: r.get(2)? }))?)
    }

    /// One slot of a state, without putting the whole state together.
    pub fn slot_at(&self, snapshot: SnapshotId, slot: Slot) -> Result<Option<EventKey>> {
        let mut next = Some(snapshot);
        while let Some(snapshot) = next {
            let row = self.snapshot_row(snapshot)?;
            if let Some(found) = find(&row.delta, slot) {
                return Ok(found);
            }
            next = row.parent;
        }
        Ok(None)
    }

    /// A whole state: slot → event.
    pub fn slots_at(&self, snapshot: SnapshotId) -> Result<BTreeMap<Slot, EventKey>> {
        let mut rows = Vec::new();
        let mut next = Some(snapshot);
        while let Some(snapshot) = next {
            let row = self.snapshot_row(snapshot)?;
            next = row.parent;
            rows.push(row);
        }
        let mut state = BTreeMap::new();
        for row in rows.iter().rev() {
            // A root is sorted already; a map that grows at its end is cheap to fill.
            for (slot, event) in entries(&row.delta) {
                match event {
                    Some(event) => state.insert(slot, event),
                    None => state.remove(&slot),
                };
            }
        }
        Ok(state)
    }

    /// What must change in state `from` to get state `to`, found through their nearest common row.
    pub fn state_difference(&self, from: SnapshotId, to: SnapshotId) -> Result<Delta> {
        if from == to {
            return Ok(Delta::new());
        }
        let path = |snapshot: SnapshotId| -> Result<Vec<(SnapshotId, Vec<u8>)>> {
            let (mut rows, mut next) = (Vec::new(), Some(snapshot));
            while let Some(snapshot) = next {
                let row = self.snapshot_row(snapshot)?;
                next = row.parent;
                rows.push((snapshot, row.delta));
            }
            Ok(rows)
        };
        let (mut from_rows, mut to_rows) = (path(from)?, path(to)?);
        // What both build on, seen from the root, says the same on both sides.
        let mut common = Vec::new();
        while let (Some(a), Some(b)) = (from_rows.last(), to_rows.last())
            && a.0 == b.0
        {
            common.extend(from_rows.pop());
            to_rows.pop();
        }
        let on_top = |rows: &[(SnapshotId, Vec<u8>)]| {
            let mut delta = Delta::new();
            for (_, blob) in rows.iter().rev() {
                delta.extend(entries(blob));
            }
            delta
        };
        let (before, after) = (on_top(&from_rows), on_top(&to_rows));
        let beneath = |slot: Slot| common.iter().rev().find_map(|(_, blob)| find(blob, slot)).flatten();
        let mut difference = Delta::new();
        for slot in before.keys().chain(after.keys()) {
            let old = before.get(slot).copied().unwrap_or_else(|| beneath(*slot));
            let new = after.get(slot).copied().unwrap_or_else(|| beneath(*slot));
            if old != new {
                difference.insert(*slot, new);
            }
        }
        Ok(difference)
    }
}

impl Tx<'_> {
    /// A new state from nothing.
    pub fn root_snapshot(&mut self, state: &BTreeMap<Slot, EventKey>) -> Result<SnapshotId> {
        let delta: Delta = state.iter().map(|(slot, event)| (*slot, Some(*event))).collect();
        self.insert_snapshot(0, None, &delta)
    }

    /// The state that results from another by a change. An empty change makes no row.
    pub fn snapshot_after(&mut self, previous: SnapshotId, change: &Delta) -> Result<SnapshotId> {
        if change.is_empty() {
            return Ok(previous);
        }
        let row = self.snapshot_row(previous)?;
        let number = row.number + 1;
        let target = parent_number(number);
        // From the predecessor back to the ancestor that the new row builds on.
        let mut between = Vec::new();
        let (mut at, mut row) = (previous, row);
        while row.number > target {
            let parent = row.parent.ok_or_else(|| Error::internal("a snapshot without its parent"))?;
            between.push(std::mem::take(&mut row.delta));
            at = parent;
            row = self.snapshot_row(parent)?;
        }
        let mut delta = Delta::new();
        for blob in between.iter().rev() {
            delta.extend(entries(blob));
        }
        delta.extend(change.iter().map(|(slot, event)| (*slot, *event)));
        self.insert_snapshot(number, Some(at), &delta)
    }

    fn insert_snapshot(
        &mut self,
        number: i64,
        parent: Option<SnapshotId>,
        delta: &Delta,
    ) -> Result<SnapshotId> {
        self.conn()
            .prepare_cached("INSERT INTO snapshots (number, parent, delta) VALUES (?1, ?2, ?3)")?
            .execute(params![number, parent, encode(delta)])?;
        Ok(self.conn().last_insert_rowid())
    }
}
