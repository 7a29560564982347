//! Bans that follow a room that was upgraded.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// Goes on with the bans of one room, on a thread of its own: there may be thousands.
pub(super) fn carry_bans(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).at_work() >= WORKERS_MAX {
        return Ok(());
    }
    let Some(room) = hs.store.read(|db| db.due_owed_bans(now))? else { return Ok(()) };
    let Some(working) = WorkingGuard::new(shared, format!("bans of {room}"), WORKERS_MAX) else {
        return Ok(());
    };
    let leased = room.clone();
    let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_owed_bans(&leased, until, false);
    take_up(shared, hs, ("due", working), now, put_off, move |hs, lease| {
        let carried = hs.rooms().carry_bans(&room);
        let what = format!("the bans of {room} are not carried over");
        lease.end(hs, carried, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_owed_bans(&room, now + AFTER_FAILURE_MS, true)
        });
    })
}
