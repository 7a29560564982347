//! What the writer remembers of the graph of events: events by their ids, states by their numbers, and what sets of forward
//! extremities came to.
//!
//! All of it is about rows that do not change once they are written (the two exceptions, a redaction and an outlier that
//! finds its place, make it forget). It is part of the writer's memory and is forgotten with it when a closure is undone.

use std::cell::RefCell;
use std::sync::Arc;

use crate::error::Result;
use crate::protocol::{EventId, Pdu};
use crate::store::cache::bounded::Aging;
use crate::store::cache::resolutions::Fingerprint;
use crate::store::rooms::append::StateRef;
use crate::store::rooms::snapshots::{Row, Step};
use crate::store::{Db, EventKey, RoomKey, Slot, SnapshotId, Status};

/// An event as far as those that follow or cite it need to know it.
#[derive(Clone)]
pub(in crate::store) struct Known {
    pub key: EventKey,
    pub room: RoomKey,
    pub status: Status,
    /// None for outliers.
    pub state_after: Option<SnapshotId>,
    pub pdu: Pdu,
}

/// A slot's event type and state key.
pub(crate) type SlotName = (Arc<str>, Arc<str>);

pub(in crate::store) struct GraphMemory {
    events: RefCell<Aging<EventId, Known>>,
    ids: RefCell<Aging<EventKey, EventId>>,
    names: RefCell<Aging<Slot, SlotName>>,
    slots: RefCell<Aging<String, Slot>>,
    rows: RefCell<Aging<SnapshotId, Arc<Row>>>,
    steps: RefCell<Aging<SnapshotId, Arc<Step>>>,
    settled: RefCell<Aging<Box<[EventKey]>, SnapshotId>>,
    resolutions: RefCell<Aging<Fingerprint, Arc<StateRef>>>,
}

impl Default for GraphMemory {
    fn default() -> Self {
        Self {
            events: RefCell::new(Aging::new(2 << 20)),
            ids: RefCell::new(Aging::new(512 << 10)),
            names: RefCell::new(Aging::new(512 << 10)),
            slots: RefCell::new(Aging::new(512 << 10)),
            rows: RefCell::new(Aging::new(1 << 20)),
            steps: RefCell::new(Aging::new(512 << 10)),
            settled: RefCell::new(Aging::new(256 << 10)),
            resolutions: RefCell::new(Aging::new(1 << 20)),
        }
    }
}

impl GraphMemory {
    pub(in crate::store) fn event(&self, id: &EventId) -> Option<Known> {
        self.events.borrow_mut().get(id)
    }

    pub(in crate::store) fn keep_event(&self, event: &Known) {
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

    pub(in crate::store) fn slot_name(&self, slot: Slot) -> Option<SlotName> {
        self.names.borrow_mut().get(&slot)
    }

    pub(in crate::store) fn slot(&self, event_type: &str, state_key: &str) -> Option<Slot> {
        self.slots.borrow_mut().get(&full_name(event_type, state_key))
    }

    pub(in crate::store) fn keep_slot(&self, slot: Slot, event_type: &str, state_key: &str) {
        let size = 100 + event_type.len() + state_key.len();
        self.names.borrow_mut().put(slot, (event_type.into(), state_key.into()), size);
        self.slots.borrow_mut().put(full_name(event_type, state_key), slot, size);
    }

    pub(in crate::store) fn row(&self, snapshot: SnapshotId) -> Option<Arc<Row>> {
        self.rows.borrow_mut().get(&snapshot)
    }

    pub(in crate::store) fn keep_row(&self, row: Arc<Row>) {
        let size = row.bytes();
        self.rows.borrow_mut().put(row.snapshot, row, size);
    }

    pub(in crate::store) fn step(&self, to: SnapshotId) -> Option<Arc<Step>> {
        self.steps.borrow_mut().get(&to)
    }

    pub(in crate::store) fn keep_step(&self, to: SnapshotId, step: Step) {
        let size = step.bytes();
        self.steps.borrow_mut().put(to, Arc::new(step), size);
    }

    /// The state after these events, which were once all of a room's forward extremities. `heads`: in order.
    pub(in crate::store) fn settled(&self, heads: &[EventKey]) -> Option<SnapshotId> {
        self.settled.borrow_mut().get(heads)
    }

    pub(in crate::store) fn keep_settled(&self, heads: &[EventKey], state: SnapshotId) {
        self.settled.borrow_mut().put(heads.into(), state, 100 + 8 * heads.len());
    }

    /// What resolving states came to.
    pub(in crate::store) fn resolution(&self, of: &Fingerprint) -> Option<Arc<StateRef>> {
        self.resolutions.borrow_mut().get(of)
    }

    pub(in crate::store) fn keep_resolution(&self, of: Fingerprint, state: Arc<StateRef>, size: usize) {
        self.resolutions.borrow_mut().put(of, state, size);
    }

    pub(in crate::store) fn forget_all(&self) {
        self.events.borrow_mut().clear();
        self.ids.borrow_mut().clear();
        self.names.borrow_mut().clear();
        self.slots.borrow_mut().clear();
        self.rows.borrow_mut().clear();
        self.steps.borrow_mut().clear();
        self.settled.borrow_mut().clear();
        self.resolutions.borrow_mut().clear();
    }

    /// Compares what is remembered of events with what is stored: for debug builds.
    pub(in crate::store) fn is_true(&self, db: &Db<'_>) -> Result<bool> {
        for known in self.events.borrow().some() {
            let stored = db.event(known.pdu.event_id())?;
            let same = stored.is_some_and(|stored| {
                stored.key == known.key
                    && stored.status == known.status
                    && stored.state_after == known.state_after
                    && stored.pdu.json() == known.pdu.json()
            });
            if !same {
                return Ok(false);
            }
        }
        Ok(true)
    }
}

fn full_name(event_type: &str, state_key: &str) -> String {
    // With its length in front it can be read in one way only.
    format!("{} {event_type}{state_key}", event_type.len())
}
