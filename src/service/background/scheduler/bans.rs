//! Bans that follow a room that was upgraded.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, LEASE_MS, Lease, SchedulerShared, WORKERS_MAX, spawn};
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
    let (leased, until) = (room.clone(), now + LEASE_MS);
    hs.store.write(move |tx| tx.put_off_owed_bans(&leased, until, false))?;
    spawn(shared, hs, move |hs| {
        let carried = hs.rooms().carry_bans(&room);
        let what = format!("the bans of {room} are not carried over");
        Lease::until(until).end(hs, carried, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_owed_bans(&room, now + AFTER_FAILURE_MS, true)
        });
    })
}
