//! Rooms that let no guests in any more.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// Has the guests of one room leave, on a thread of its own: there may be many.
pub(super) fn remove_guests(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).at_work() >= WORKERS_MAX {
        return Ok(());
    }
    let Some(room) = hs.store.read(|db| db.due_guest_removal(now))? else { return Ok(()) };
    let Some(working) = WorkingGuard::new(shared, format!("guests of {room:?}"), WORKERS_MAX) else {
        return Ok(());
    };
    let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_guest_removal(room, until);
    take_up(shared, hs, ("due", working), now, put_off, move |hs, lease| {
        let done = hs.remove_guests(room);
        let what = "a room's guests cannot leave";
        lease.end(hs, done, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_guest_removal(room, now + AFTER_FAILURE_MS)
        });
    })
}
