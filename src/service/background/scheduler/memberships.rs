//! Memberships in rooms that we are not in: what users did there and the rooms' servers have still to be told, and invites
//! that are looked up because something speaks against them.

use std::sync::Arc;

use super::{SchedulerShared, SchedulerState, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::Tx;
use crate::store::rooms::remote_memberships::{DueMembership, DueShares};

/// How many knocks, joins and leaves are told at once; of these, how many where the same server is asked first, and of one
/// user. Servers have as many names as they like: it is our users who have something told, so that no crowd of names holds
/// more than the users' shares whom it troubles.
const TELLERS_MAX: usize = 16;
const TELLERS_OF_SERVER_MAX: usize = 2;
const TELLERS_OF_USER_MAX: usize = 4;
/// How many invites are looked up at once, beside those. Whoever sends an invite, and something that speaks against it, has
/// us do that.
const LOOK_UPS_MAX: usize = 8;
const LOOK_UPS_OF_SERVER_MAX: usize = 1;
/// So many rows are read for each slot: some are not taken up since their server, or user, has its share.
const READ_FOR_EACH: usize = 16;

/// A membership that a thread is at.
#[derive(Clone, PartialEq, Eq)]
pub(super) struct PursuedMembership {
    due: DueMembership,
    looked_up: bool,
}

/// The slots of one kind.
struct Slots {
    looked_up: bool,
    most: usize,
    of_server: usize,
    of_user: usize,
}

const KINDS: [Slots; 2] = [
    Slots {
        looked_up: false,
        most: TELLERS_MAX,
        of_server: TELLERS_OF_SERVER_MAX,
        of_user: TELLERS_OF_USER_MAX,
    },
    Slots { looked_up: true, most: LOOK_UPS_MAX, of_server: LOOK_UPS_OF_SERVER_MAX, of_user: LOOK_UPS_MAX },
];

impl Slots {
    fn taken<'s>(&self, state: &'s SchedulerState) -> impl Iterator<Item = &'s DueMembership> {
        let looked_up = self.looked_up;
        state.pursuing.iter().filter(move |busy| busy.looked_up == looked_up).map(|busy| &busy.due)
    }

    fn are_taken(&self, state: &SchedulerState) -> bool {
        self.taken(state).count() >= self.most
    }

    /// Whether there is one for this.
    fn has_one_for(&self, state: &SchedulerState, due: &DueMembership) -> bool {
        let is_busy =
            state.pursuing.iter().any(|busy| busy.due.room == due.room && busy.due.user == due.user);
        let of_server = self.taken(state).filter(|busy| busy.server == due.server).count();
        let of_user = self.taken(state).filter(|busy| busy.user == due.user).count();
        !is_busy && !self.are_taken(state) && of_server < self.of_server && of_user < self.of_user
    }
}

/// Whether nothing can be taken up, whatever is due.
pub(super) fn all_taken(state: &SchedulerState) -> bool {
    KINDS.iter().all(|slots| slots.are_taken(state))
}

/// Takes up what is due, as far as there are slots for it, on threads of their own: most of it waits for other servers.
pub(super) fn pursue_memberships(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    for slots in &KINDS {
        if slots.are_taken(&lock(&shared.state)) {
            continue;
        }
        // Of one user more than their share, since some of it may be for servers that have theirs.
        let limit = slots.most * READ_FOR_EACH;
        let shares = DueShares { of_server: slots.of_server, of_user: slots.most, limit };
        for due in hs.store.read(|db| db.remote_memberships_due(now, slots.looked_up, shares))? {
            let pursued = PursuedMembership { due, looked_up: slots.looked_up };
            {
                let mut state = lock(&shared.state);
                if !slots.has_one_for(&state, &pursued.due) {
                    continue;
                }
                state.pursuing.push(pursued.clone());
            }
            pursue(shared, hs, pursued, now)?;
        }
    }
    Ok(())
}

fn pursue(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    pursued: PursuedMembership,
    now: Millis,
) -> Result<()> {
    let pursuing = PursuingGuard(shared.clone(), pursued.clone());
    let DueMembership { room, user, .. } = pursued.due;
    let (leased_room, leased_user) = (room.clone(), user.clone());
    let put_off = move |tx: &mut Tx<'_>, until| tx.lease_remote_membership(&leased_room, &leased_user, until);
    take_up(shared, hs, ("due", pursuing), now, put_off, move |hs, lease| {
        let pursued = hs.membership().pursue_membership(&room, &user);
        let what = format!("{room} for {user}");
        lease.end(hs, pursued, (&what, log::Level::Info), move |tx, leased, now| {
            tx.remote_membership_failed((&room, &user), leased, now)
        });
    })
}

/// A membership that a thread is at, given back also when it panics.
struct PursuingGuard(Arc<SchedulerShared>, PursuedMembership);

impl Drop for PursuingGuard {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        if let Some(at) = state.pursuing.iter().position(|busy| *busy == self.1) {
            state.pursuing.swap_remove(at);
        }
        drop(state);
        self.0.wake();
    }
}
