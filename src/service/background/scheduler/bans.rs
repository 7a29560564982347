//! Bans that follow a room that was upgraded.

use std::sync::Arc;

use super::{LEASE_MS, SchedulerShared, WORKERS_MAX, spawn};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;

/// Goes on with the bans of one room, on a thread of its own: there may be thousands.
pub(super) fn carry_bans(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).working >= WORKERS_MAX {
        return Ok(());
    }
    let Some(room) = hs.store.read(|db| db.due_owed_bans(now))? else { return Ok(()) };
    let leased = room.clone();
    hs.store.write(move |tx| tx.put_off_owed_bans(&leased, now + LEASE_MS, false))?;
    spawn(shared, hs, move |hs| {
        if let Err(error) = hs.rooms().carry_bans(&room) {
            log::log!(error.level(log::Level::Error), "the bans of {room} are not carried over: {error}");
        }
    })
}
