//! What resolving states came to, and what it took.
//!
//! States do not change once they are written, so whatever some of them came to they always come to: a fork is resolved
//! once and not again for every event that follows. What readers find out all share; what the writer finds out
//! it keeps to itself, since a state that it has just made may be undone and its number given out again.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};

use crate::locks::lock;
use crate::protocol::state_res::StateTuple;
use crate::store::cache::bounded::AgingMap;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, Store};

/// A hash of the states that are resolved, and of the room version.
pub type Fingerprint = [u8; 32];

/// What is remembered, in bytes.
const BYTES_MAX: usize = 8 << 20;

pub(in crate::store) struct ResolutionCache {
    known: Mutex<AgingMap<Fingerprint, Arc<StateRef>>>,
    looked_at: AtomicU64,
}

impl Default for ResolutionCache {
    fn default() -> Self {
        Self { known: Mutex::new(AgingMap::new(BYTES_MAX)), looked_at: AtomicU64::new(0) }
    }
}

/// What it takes to remember a state, about.
pub(in crate::store) fn size_of(state: &StateRef) -> usize {
    let entry = |((event_type, state_key), id): (&StateTuple, _)| {
        150 + event_type.len() + state_key.len() + usize::from(Option::is_some(id)) * 80
    };
    200 + state.change.iter().map(entry).sum::<usize>()
}

impl Db<'_> {
    /// What these states came to, if that is remembered.
    pub(crate) fn resolution(&self, of: &Fingerprint) -> Option<StateRef> {
        let shared = || lock(&self.shared.resolutions.known).get(of);
        self.recall(|cache| cache.events.resolution(of)).or_else(shared).map(|state| (*state).clone())
    }

    /// Remembers what states came to.
    pub(crate) fn keep_resolution(&self, of: Fingerprint, state: &StateRef) {
        let (size, state) = (size_of(state), Arc::new(state.clone()));
        if self.epoch.is_some() {
            let mut known = lock(&self.shared.resolutions.known);
            known.put(of, state, size);
        } else {
            self.remember(|cache| cache.events.keep_resolution(of, state, size));
        }
    }

    /// Counts events that a verdict had us look at.
    pub(crate) fn count_examined(&self, events: usize) {
        self.examined.set(self.examined.get() + events);
        let events = u64::try_from(events).unwrap_or(u64::MAX);
        self.shared.resolutions.looked_at.fetch_add(events, Ordering::Relaxed);
    }

    /// How many events were looked at for verdicts since this snapshot, or this turn of the writer's, began.
    pub(crate) fn events_examined(&self) -> usize {
        self.examined.get()
    }
}

impl Store {
    /// How many events were looked at for verdicts since the start: what forks have cost.
    pub fn events_examined(&self) -> u64 {
        self.shared.resolutions.looked_at.load(Ordering::Relaxed)
    }
}
