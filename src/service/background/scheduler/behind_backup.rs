//! Rooms whose servers are asked what was said since the backup that the database comes from.

use std::sync::Arc;

use super::{SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// Asks for one room, on a thread of its own; half of the threads are left to what users wait for.
pub(super) fn ask_for_lost_events(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    if lock(&shared.state).at_work() >= WORKERS_MAX / 2 {
        return Ok(());
    }
    let Some((room, attempts)) = hs.store.read(|db| db.due_room_behind_backup(now))? else { return Ok(()) };
    let Some(working) = WorkingGuard::new(shared, format!("events of {room:?}"), WORKERS_MAX / 2) else {
        return Ok(());
    };
    let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_room_behind_backup(room, until, attempts);
    take_up(shared, hs, ("due", working), now, put_off, move |hs, _| {
        if let Err(error) = hs.events().ask_for_lost_events(room, attempts) {
            log::log!(error.level(log::Level::Error), "a room is not asked for what was lost: {error}");
        }
    })
}
