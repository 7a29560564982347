//! Invites of other servers' users that could not be handed out when they were made.

use std::sync::Arc;

use super::{DueRow, SchedulerShared, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;

/// How many are handed out at once, beside other work, and how many of them to one server.
pub(super) const INVITERS_MAX: usize = 8;
const INVITERS_OF_SERVER_MAX: usize = 3;

/// Hands out the invites that are due, side by side, on threads of their own: a server that does not answer keeps one
/// for a while.
pub(super) fn hand_out_invites(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    let due = hs.store.read(|db| db.owed_invites_due(now, INVITERS_OF_SERVER_MAX, INVITERS_MAX * 4))?;
    for (room, invitee, server) in due {
        {
            let mut state = lock(&shared.state);
            let to_one = state.inviting.iter().filter(|(_, busy)| *busy == server).count();
            let is_busy = state.inviting.iter().any(|((of, who), _)| *of == room && *who == invitee);
            if is_busy || state.inviting.len() >= INVITERS_MAX || to_one >= INVITERS_OF_SERVER_MAX {
                continue;
            }
            state.inviting.push(((room.clone(), invitee.clone()), server));
        }
        let row = (room.clone(), invitee.clone());
        let inviting = InvitingGuard(shared.clone(), row.clone());
        let put_off = move |tx: &mut Tx<'_>, until| tx.put_off_owed_invite(&row.0, &row.1, until, false);
        take_up(shared, hs, ("inviting", inviting), now, put_off, move |hs, lease| {
            let delivered = hs.membership().deliver_owed_invite(&room, &invitee);
            let what = format!("the invite of {invitee} to {room} cannot be kept");
            lease.end(hs, delivered, (&what, log::Level::Error), move |tx, leased, now| {
                tx.owed_invite_failed((&room, &invitee), leased, now)
            });
        })?;
    }
    Ok(())
}

/// An invite that is being handed out, given back also when its thread panics.
struct InvitingGuard(Arc<SchedulerShared>, DueRow);

impl Drop for InvitingGuard {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.inviting.retain(|(row, _)| *row != self.1);
        drop(state);
        self.0.invited.notify_all();
        self.0.wake();
    }
}
