//! Rooms that users have still to leave whose accounts are closed.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, LEASE_MS, Lease, SchedulerShared, WORKERS_MAX, spawn};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;

/// Has one of them leave their rooms, on a thread of its own; half of the threads are left to what users wait for.
pub(super) fn leave_rooms(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).working >= WORKERS_MAX / 2 {
        return Ok(());
    }
    let Some(user) = hs.store.read(|db| db.due_deactivation(now))? else { return Ok(()) };
    let (leased, until) = (user.clone(), now + LEASE_MS);
    hs.store.write(move |tx| tx.put_off_deactivation(&leased, until))?;
    spawn(shared, hs, move |hs| {
        let left = hs.pursue_deactivation(&user);
        let what = format!("{user} was deactivated and cannot leave their rooms");
        Lease::until(until).end(hs, left, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_deactivation(&user, now + AFTER_FAILURE_MS)
        });
    })
}
