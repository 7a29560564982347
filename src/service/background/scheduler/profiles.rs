//! Rooms that have still to be told of a new name or avatar.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// Tells the rooms of one user, on a thread of its own: there may be thousands.
pub(super) fn tell_rooms(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    if lock(&shared.state).at_work() >= WORKERS_MAX {
        return Ok(());
    }
    let found = hs.store.read(|db| match db.due_owed_profile(now)? {
        Some(user) => Ok(db.owed_profile(&user)?.map(|owed| (user, owed.stream))),
        None => Ok(None),
    });
    let Some((user, stream)) = found? else { return Ok(()) };
    let Some(working) = WorkingGuard::new(shared, format!("profile of {user}"), WORKERS_MAX) else {
        return Ok(());
    };
    let leased = user.clone();
    let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_owed_profile(&leased, stream, (until, false));
    take_up(shared, hs, ("due", working), now, put_off, move |hs, lease| {
        let told = hs.accounts().pursue_owed_profile(&user);
        let what = format!("the rooms of {user} are not told of their new profile");
        lease.end(hs, told, (&what, log::Level::Error), move |tx, _, now| {
            tx.put_off_owed_profile(&user, stream, (now + AFTER_FAILURE_MS, true))
        });
    })
}
