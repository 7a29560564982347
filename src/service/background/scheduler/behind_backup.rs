//! Rooms whose servers are asked what was said since the backup that the database comes from.

use std::sync::Arc;

use super::{LEASE_MS, SchedulerShared, WORKERS_MAX, spawn};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;

/// Asks for one room, on a thread of its own; half of the threads are left to what users wait for.
pub(super) fn ask_for_lost_events(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    if lock(&shared.state).working >= WORKERS_MAX / 2 {
        return Ok(());
    }
    let Some((room, attempts)) = hs.store.read(|db| db.due_room_behind_backup(now))? else { return Ok(()) };
    hs.store.write(move |tx| tx.put_off_room_behind_backup(room, now + LEASE_MS, attempts))?;
    spawn(shared, hs, move |hs| {
        if let Err(error) = hs.events().ask_for_lost_events(room, attempts) {
            log::log!(error.level(log::Level::Error), "a room is not asked for what was lost: {error}");
        }
    })
}
