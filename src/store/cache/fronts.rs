//! What rooms show of themselves to somebody outside, in memory: a stranger's knock asks for nothing else before the
//! transaction that takes it in, and a reader that has to look finds its page cache emptied by each commit.
//!
//! As with `sessions`: whatever changes a room's settings empties this cache after its commit and before anybody is told
//! of it, so nobody who asks later is shown what was before. Members come and go without that, and nothing in here is about
//! them.

use std::sync::{Arc, Mutex};

use crate::locks::lock;
use crate::protocol::rooms::server_acl::ServerAcl;
use crate::protocol::{Pdu, RoomId};
use crate::store::cache::bounded::AgingMap;
use crate::store::{Room, Store};

/// Bytes, roughly.
const BYTES_MAX: usize = 512 << 10;

/// The front of a room that this server is in.
#[derive(Debug)]
pub struct RoomFront {
    /// The room; its counts and its state are those of some time.
    pub room: Room,
    /// Its server ACL.
    pub acl: Option<ServerAcl>,
    /// The events that somebody outside is shown.
    pub shown: Vec<Pdu>,
}

impl RoomFront {
    fn bytes(&self) -> usize {
        let acl = self.acl.as_ref().map_or(0, ServerAcl::bytes);
        self.shown.iter().fold(500 + acl, |sum, event| sum + 400 + event.json().len())
    }
}

/// The fronts of rooms, shared by all readers.
pub(in crate::store) struct FrontCache(Mutex<CachedFronts>);

struct CachedFronts {
    /// How often it was emptied: what was read before may not be put in after.
    emptied: u64,
    fronts: AgingMap<RoomId, Arc<RoomFront>>,
}

impl Default for FrontCache {
    fn default() -> Self {
        Self(Mutex::new(CachedFronts { emptied: 0, fronts: AgingMap::new(BYTES_MAX) }))
    }
}

impl FrontCache {
    /// To be called once it is committed that a room's settings changed.
    pub(in crate::store) fn empty(&self) {
        let mut known = lock(&self.0);
        known.emptied += 1;
        known.fronts.clear();
    }
}

impl Store {
    /// The front of a room as of some moment during this call; or, if it is not remembered, what is to be given to
    /// [`Store::keep_front`] with it, once it was read in a snapshot that is opened later.
    pub fn front(&self, room: &RoomId) -> Result<Arc<RoomFront>, u64> {
        let mut known = lock(&self.shared.fronts.0);
        known.fronts.get(room).ok_or(known.emptied)
    }

    /// Remembers the front of a room, unless something changed meanwhile.
    pub fn keep_front(&self, emptied: u64, front: RoomFront) {
        let mut known = lock(&self.shared.fronts.0);
        if known.emptied == emptied {
            let (id, bytes) = (front.room.room_id.clone(), front.bytes());
            known.fronts.put(id, Arc::new(front), bytes);
        }
    }
}
