//! Rooms that let no guests in any more.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, LEASE_MS, Lease, SchedulerShared, WORKERS_MAX, spawn};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;

/// Has the guests of one room leave, on a thread of its own: there may be many.
pub(super) fn remove_guests(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).working >= WORKERS_MAX {
        return Ok(());
    }
    let Some(room) = hs.store.read(|db| db.due_guest_removal(now))? else { return Ok(()) };
    hs.store.write(move |tx| tx.put_off_guest_removal(room, now + LEASE_MS))?;
    spawn(shared, hs, move |hs| {
        let done = hs.remove_guests(room);
        let what = "a room's guests cannot leave";
        Lease::until(now + LEASE_MS).end(hs, done, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_guest_removal(room, now + AFTER_FAILURE_MS)
        });
    })
}
