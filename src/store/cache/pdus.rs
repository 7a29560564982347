//! What the readers remember of events, so that those which everybody asks for are read and parsed once.
//!
//! Only what is committed comes in here, and an event does not change once it is stored, unless it is redacted: then the
//! memory begins anew. A reader whose snapshot is from before that may not put the unredacted event back, so each epoch
//! takes in only what was read in it.

use std::sync::{Mutex, MutexGuard};

use crate::locks::lock;
use crate::protocol::Pdu;
use crate::store::EventKey;
use crate::store::cache::bounded::Aging;

/// Bytes, roughly.
const MOST: usize = 2 << 20;

pub(in crate::store) struct PduMemory(Mutex<Inner>);

struct Inner {
    epoch: u64,
    pdus: Aging<EventKey, Pdu>,
}

impl Default for PduMemory {
    fn default() -> Self {
        Self(Mutex::new(Inner { epoch: 0, pdus: Aging::new(MOST) }))
    }
}

impl PduMemory {
    fn inner(&self) -> MutexGuard<'_, Inner> {
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
