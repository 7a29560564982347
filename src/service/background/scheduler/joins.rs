//! Joins of those whose knock was accepted.

use std::sync::Arc;

use super::{DueRow, SchedulerShared, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// How many are joined at once, beside other work, and how many times one user.
pub(super) const JOINERS_MAX: usize = 8;
const JOINERS_OF_USER_MAX: usize = 2;

/// Joins those whose knock was accepted, side by side, on threads of their own: a large room takes a while.
pub(super) fn join_who_was_let_in(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    let due = hs.store.read(|db| db.owed_joins_due(now, JOINERS_OF_USER_MAX, JOINERS_MAX * 4))?;
    for (room, user) in due {
        {
            let mut state = lock(&shared.state);
            let of_user = state.joining.iter().filter(|(_, busy)| *busy == user).count();
            let is_busy = state.joining.iter().any(|(of, who)| *of == room && *who == user);
            if is_busy || state.joining.len() >= JOINERS_MAX || of_user >= JOINERS_OF_USER_MAX {
                continue;
            }
            state.joining.push((room.clone(), user.clone()));
        }
        let row = (room.clone(), user.clone());
        let joining = JoiningGuard(shared.clone(), row.clone());
        let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_owed_join(&row.0, &row.1, until, false);
        take_up(shared, hs, ("joining", joining), now, put_off, move |hs, lease| {
            let pursued = hs.membership().pursue_owed_join(&room, &user);
            let what = format!("the join of {user} to {room} cannot be kept");
            lease.end(hs, pursued, (&what, log::Level::Error), move |tx, leased, now| {
                tx.owed_join_failed((&room, &user), leased, now)
            });
        })?;
    }
    Ok(())
}

/// Somebody who is being joined, given back also when its thread panics.
struct JoiningGuard(Arc<SchedulerShared>, DueRow);

impl Drop for JoiningGuard {
    fn drop(&mut self) {
        lock(&self.0.state).joining.retain(|busy| *busy != self.1);
        self.0.wake();
    }
}
