//! Rooms that are being deleted.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, LEASE_MS, Lease, SchedulerShared, WORKERS_MAX, spawn};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;

/// Goes on with the deletion of a room, on a thread of its own: a large room takes a while.
pub(super) fn delete_rooms(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).working >= WORKERS_MAX {
        return Ok(());
    }
    let Some(delete_id) = hs.store.read(|db| db.due_room_deletion(now))? else { return Ok(()) };
    let leased = delete_id.clone();
    hs.store.write(move |tx| tx.put_off_room_deletion(&leased, now + LEASE_MS))?;
    spawn(shared, hs, move |hs| {
        let done = hs.admin().pursue_room_deletion(&delete_id);
        let what = "a room is not deleted yet";
        Lease::until(now + LEASE_MS).end(hs, done, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_room_deletion(&delete_id, now + AFTER_FAILURE_MS)
        });
    })
}
