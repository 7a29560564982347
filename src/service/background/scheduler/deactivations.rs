//! Rooms that users have still to leave whose accounts are closed.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// Has one of them leave their rooms, on a thread of its own; half of the threads are left to what users wait for.
pub(super) fn leave_rooms(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).at_work() >= WORKERS_MAX / 2 {
        return Ok(());
    }
    let Some(user) = hs.store.read(|db| db.due_deactivation(now))? else { return Ok(()) };
    let Some(working) = WorkingGuard::new(shared, format!("rooms of {user}"), WORKERS_MAX / 2) else {
        return Ok(());
    };
    let leased = user.clone();
    let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_deactivation(&leased, until);
    take_up(shared, hs, ("due", working), now, put_off, move |hs, lease| {
        let left = hs.pursue_deactivation(&user);
        let what = format!("{user} was deactivated and cannot leave their rooms");
        lease.end(hs, left, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_deactivation(&user, now + AFTER_FAILURE_MS)
        });
    })
}
