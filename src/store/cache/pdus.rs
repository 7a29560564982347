//! The events that readers keep in memory, so that those which everybody asks for are read and parsed once.
//!
//! Only what is committed comes in here, and an event does not change once it is stored, unless it is redacted: then
//! the cache begins anew. A reader whose snapshot is from before that may not put the unredacted event back, so each
//! epoch takes in only what was read in it.

use std::sync::{Mutex, MutexGuard};

use crate::locks::lock;
use crate::protocol::Pdu;
use crate::store::EventKey;
use crate::store::cache::bounded::AgingMap;
use crate::store::cache::row_hasher::ByRow;

/// Bytes, roughly.
const BYTES_MAX: usize = 2 << 20;

/// Events by their rows, shared by all readers.
pub(in crate::store) struct PduCache(Mutex<CachedPdus>);

/// What is cached since an event was redacted last.
struct CachedPdus {
    epoch: u64,
    pdus: AgingMap<EventKey, Pdu, ByRow>,
}

impl Default for PduCache {
    fn default() -> Self {
        Self(Mutex::new(CachedPdus { epoch: 0, pdus: AgingMap::new(BYTES_MAX) }))
    }
}

impl PduCache {
    fn inner(&self) -> MutexGuard<'_, CachedPdus> {
        lock(&self.0)
    }

    /// To be asked before a snapshot is opened.
    pub(in crate::store) fn epoch(&self) -> u64 {
        self.inner().epoch
    }

    /// The event with this row, for a reader that began in this epoch.
    pub(in crate::store) fn get(&self, epoch: u64, key: EventKey) -> Option<Pdu> {
        let mut inner = self.inner();
        if inner.epoch == epoch { inner.pdus.get(&key) } else { None }
    }

    pub(in crate::store) fn put(&self, epoch: u64, key: EventKey, pdu: &Pdu) {
        let mut inner = self.inner();
        if inner.epoch == epoch {
            inner.pdus.put(key, pdu.clone(), 400 + pdu.json().len());
        }
    }

    /// To be called once it is committed that an event was redacted.
    pub(in crate::store) fn begin_anew(&self) {
        let mut inner = self.inner();
        inner.epoch += 1;
        inner.pdus.clear();
    }
}
