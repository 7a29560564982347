//! Rooms that are being deleted.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// Goes on with the deletion of a room, on a thread of its own: a large room takes a while.
pub(super) fn delete_rooms(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).at_work() >= WORKERS_MAX {
        return Ok(());
    }
    let Some(delete_id) = hs.store.read(|db| db.due_room_deletion(now))? else { return Ok(()) };
    let leased = delete_id.clone();
    let Some(working) = WorkingGuard::new(shared, format!("deletion {delete_id}"), WORKERS_MAX) else {
        return Ok(());
    };
    let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_room_deletion(&leased, until);
    take_up(shared, hs, ("due", working), now, put_off, move |hs, lease| {
        let done = hs.admin().pursue_room_deletion(&delete_id);
        let what = "a room is not deleted yet";
        lease.end(hs, done, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_room_deletion(&delete_id, now + AFTER_FAILURE_MS)
        });
    })
}
