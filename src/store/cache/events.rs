//! What the writer keeps in memory of the graph of events: events by their ids, states by their numbers, and what sets
//! of forward extremities came to.
//!
//! All of it is about rows that do not change once they are written (the two exceptions, a redaction and an outlier
//! that finds its place, make it forget). It is part of the writer's cache and is forgotten with it when a closure is
//! undone.

use std::cell::{Cell, RefCell};
use std::sync::Arc;

use crate::error::Result;
use crate::protocol::EventId;
use crate::protocol::state_res::StateTuple;
use crate::store::cache::bounded::AgingMap;
use crate::store::cache::resolutions::Fingerprint;
use crate::store::cache::row_hasher::ByRow;
use crate::store::rooms::events::CachedEvent;
use crate::store::rooms::snapshots::{SnapshotRow, SnapshotStep};
use crate::store::rooms::state::StateRef;
use crate::store::{Db, EventKey, SnapshotId, StateTupleId};

/// What a state's row says of a tuple: its event, or that there is none any more; none: nothing.
type SnapshotEntry = Option<Option<EventKey>>;

/// The part of the writer's cache that is about events and states.
pub(in crate::store) struct EventCache {
    events: RefCell<AgingMap<EventId, CachedEvent>>,
    ids: RefCell<AgingMap<EventKey, EventId, ByRow>>,
    tuples: RefCell<AgingMap<StateTupleId, StateTuple, ByRow>>,
    tuple_ids: RefCell<AgingMap<Box<[u8]>, StateTupleId>>,
    /// The tuple that was last found not to be there: a newcomer's, which is asked for again in a moment.
    absent_tuple: RefCell<Vec<u8>>,
    /// The full name of the tuple that was asked for last.
    asked_tuple: RefCell<Vec<u8>>,
    /// The number that the next membership's tuple is given.
    next_member_tuple: Cell<Option<StateTupleId>>,
    rows: RefCell<AgingMap<SnapshotId, Arc<SnapshotRow>, ByRow>>,
    /// What was looked up in states that are too large to be kept whole.
    entries: RefCell<AgingMap<(SnapshotId, StateTupleId), SnapshotEntry, ByRow>>,
    steps: RefCell<AgingMap<SnapshotId, Arc<SnapshotStep>, ByRow>>,
    states_after: RefCell<AgingMap<Box<[EventKey]>, SnapshotId>>,
    resolutions: RefCell<AgingMap<Fingerprint, Arc<StateRef>>>,
}

impl Default for EventCache {
    fn default() -> Self {
        Self {
            events: RefCell::new(AgingMap::new(2 << 20)),
            ids: RefCell::new(AgingMap::new(512 << 10)),
            tuples: RefCell::new(AgingMap::new(512 << 10)),
            tuple_ids: RefCell::new(AgingMap::new(512 << 10)),
            absent_tuple: RefCell::default(),
            asked_tuple: RefCell::default(),
            next_member_tuple: Cell::default(),
            rows: RefCell::new(AgingMap::new(1 << 20)),
            entries: RefCell::new(AgingMap::new(64 << 10)),
            steps: RefCell::new(AgingMap::new(512 << 10)),
            states_after: RefCell::new(AgingMap::new(256 << 10)),
            resolutions: RefCell::new(AgingMap::new(1 << 20)),
        }
    }
}

impl EventCache {
    pub(in crate::store) fn event(&self, id: &EventId) -> Option<CachedEvent> {
        self.events.borrow_mut().get(id)
    }

    pub(in crate::store) fn keep_event(&self, event: &CachedEvent) {
        let id = event.pdu.event_id();
        self.events.borrow_mut().put(id.clone(), event.clone(), 400 + event.pdu.json().len());
        self.keep_id(event.key, id);
    }

    /// It was redacted, or found its place.
    pub(in crate::store) fn forget_event(&self, id: &EventId) {
        self.events.borrow_mut().remove(id);
    }

    pub(in crate::store) fn id(&self, key: EventKey) -> Option<EventId> {
        self.ids.borrow_mut().get(&key)
    }

    pub(in crate::store) fn keep_id(&self, key: EventKey, id: &EventId) {
        self.ids.borrow_mut().put(key, id.clone(), 120);
    }

    pub(in crate::store) fn state_tuple(&self, tuple_id: StateTupleId) -> Option<StateTuple> {
        self.tuples.borrow_mut().get(&tuple_id)
    }

    /// The number of a tuple; none if there is no such tuple. The outer `None`: it is not remembered.
    pub(in crate::store) fn state_tuple_id(
        &self,
        event_type: &str,
        state_key: &str,
    ) -> Option<Option<StateTupleId>> {
        let mut name = self.asked_tuple.borrow_mut();
        write_full_name(&mut name, event_type, state_key);
        let known = self.tuple_ids.borrow_mut().get(name.as_slice());
        known.map(Some).or_else(|| (*self.absent_tuple.borrow() == *name).then_some(None))
    }

    /// There is no such tuple.
    pub(in crate::store) fn keep_absent_tuple(&self, event_type: &str, state_key: &str) {
        write_full_name(&mut self.absent_tuple.borrow_mut(), event_type, state_key);
    }

    /// There are some more tuples.
    pub(in crate::store) fn forget_absent_tuple(&self) {
        self.absent_tuple.borrow_mut().clear();
    }

    pub(in crate::store) fn next_member_tuple(&self) -> Option<StateTupleId> {
        self.next_member_tuple.get()
    }

    pub(in crate::store) fn keep_next_member_tuple(&self, next: Option<StateTupleId>) {
        self.next_member_tuple.set(next);
    }

    pub(in crate::store) fn keep_state_tuple(
        &self,
        tuple_id: StateTupleId,
        event_type: &str,
        state_key: &str,
    ) {
        let size = 100 + event_type.len() + state_key.len();
        self.forget_absent_tuple();
        self.tuples.borrow_mut().put(tuple_id, (event_type.into(), state_key.into()), size);
        let mut name = Vec::with_capacity(8 + event_type.len() + state_key.len());
        write_full_name(&mut name, event_type, state_key);
        self.tuple_ids.borrow_mut().put(name.into(), tuple_id, size);
    }

    pub(in crate::store) fn row(&self, snapshot: SnapshotId) -> Option<Arc<SnapshotRow>> {
        self.rows.borrow_mut().get(&snapshot)
    }

    pub(in crate::store) fn keep_row(&self, row: Arc<SnapshotRow>) {
        let size = row.bytes();
        self.rows.borrow_mut().put(row.snapshot, row, size);
    }

    /// The outer `None`: it is not remembered.
    pub(in crate::store) fn entry(
        &self,
        snapshot: SnapshotId,
        tuple_id: StateTupleId,
    ) -> Option<SnapshotEntry> {
        self.entries.borrow_mut().get(&(snapshot, tuple_id))
    }

    pub(in crate::store) fn keep_entry(
        &self,
        snapshot: SnapshotId,
        tuple_id: StateTupleId,
        entry: SnapshotEntry,
    ) {
        self.entries.borrow_mut().put((snapshot, tuple_id), entry, 80);
    }

    pub(in crate::store) fn step(&self, to: SnapshotId) -> Option<Arc<SnapshotStep>> {
        self.steps.borrow_mut().get(&to)
    }

    pub(in crate::store) fn keep_step(&self, to: SnapshotId, step: SnapshotStep) {
        let size = step.bytes();
        self.steps.borrow_mut().put(to, Arc::new(step), size);
    }

    /// The state after these events, which were once all of a room's forward extremities. `extremities`: in order.
    pub(in crate::store) fn state_after(&self, extremities: &[EventKey]) -> Option<SnapshotId> {
        self.states_after.borrow_mut().get(extremities)
    }

    pub(in crate::store) fn keep_state_after(&self, extremities: &[EventKey], state: SnapshotId) {
        self.states_after.borrow_mut().put(extremities.into(), state, 100 + 8 * extremities.len());
    }

    /// What resolving states came to.
    pub(in crate::store) fn resolution(&self, of: &Fingerprint) -> Option<Arc<StateRef>> {
        self.resolutions.borrow_mut().get(of)
    }

    pub(in crate::store) fn keep_resolution(&self, of: Fingerprint, state: Arc<StateRef>, size: usize) {
        self.resolutions.borrow_mut().put(of, state, size);
    }

    /// Some states are gone that nothing has any more.
    pub(in crate::store) fn forget_states(&self) {
        self.rows.borrow_mut().clear();
        self.entries.borrow_mut().clear();
        self.steps.borrow_mut().clear();
        self.states_after.borrow_mut().clear();
        self.resolutions.borrow_mut().clear();
    }

    pub(in crate::store) fn forget_all(&self) {
        self.events.borrow_mut().clear();
        self.ids.borrow_mut().clear();
        self.tuples.borrow_mut().clear();
        self.tuple_ids.borrow_mut().clear();
        self.forget_absent_tuple();
        self.next_member_tuple.set(None);
        self.forget_states();
    }

    /// Compares what is remembered of events with what is stored: for debug builds.
    pub(in crate::store) fn is_true(&self, db: &Db<'_>) -> Result<bool> {
        for known in self.events.borrow().some() {
            let stored = db.event(known.pdu.event_id())?;
            let same = stored.is_some_and(|stored| {
                stored.key == known.key
                    && stored.status == known.status
                    && stored.state_after == known.state_after
                    && stored.given == known.given
                    && stored.pdu.json() == known.pdu.json()
            });
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn write_full_name(name: &mut Vec<u8>, event_type: &str, state_key: &str) {
    name.clear();
    // With its length in front it can be read in one way only.
    name.extend_from_slice(&event_type.len().to_be_bytes());
    name.extend_from_slice(event_type.as_bytes());
    name.extend_from_slice(state_key.as_bytes());
}
