//! Rooms that let no guests in any more.

use std::sync::Arc;

use super::{LEASE_MS, SchedulerShared, WORKERS_MAX, spawn};
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
        if let Err(error) = hs.remove_guests(room) {
            log::log!(error.level(log::Level::Error), "a room's guests cannot leave: {error}");
        }
    })
}
