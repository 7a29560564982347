//! The numbers of state tuples that readers have asked for: they never change once they are committed, and each look into
//! a room asks for the same few.

use std::collections::HashMap;
use std::sync::Mutex;

use crate::locks::lock;
use crate::store::StateTupleId;

/// Tuples that are remembered; then it begins anew.
const TUPLES_MAX: usize = 8192;

/// By event type, then by state key.
#[derive(Default)]
pub(in crate::store) struct TupleIds(Mutex<KnownTuples>);

#[derive(Default)]
struct KnownTuples {
    ids: HashMap<String, HashMap<String, StateTupleId>>,
    count: usize,
}

impl TupleIds {
    /// The number, if it is remembered.
    pub(in crate::store) fn get(&self, event_type: &str, state_key: &str) -> Option<StateTupleId> {
        lock(&self.0).ids.get(event_type)?.get(state_key).copied()
    }

    /// To be called with what was read from what is committed.
    pub(in crate::store) fn keep(&self, event_type: &str, state_key: &str, tuple_id: StateTupleId) {
        let mut known = lock(&self.0);
        if known.count >= TUPLES_MAX {
            *known = KnownTuples::default();
        }
        known.count += 1;
        known.ids.entry(event_type.to_owned()).or_default().insert(state_key.to_owned(), tuple_id);
    }
}
