//! What is owed and not asked of by anybody who waits: pieces of work of which each may take a while, done one of a kind at a time by
//! the workers' threads. Which is due, and how far each came, is in its rows; here is what differs from one kind to the next.

use std::sync::Arc;

use super::{AFTER_FAILURE_MS, SchedulerShared, WORKERS_MAX, WorkingGuard, take_up};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::store::{Db, RoomKey, Tx};

/// Half of the threads are left to what users wait for.
const WORKERS_FOR_FEW: usize = WORKERS_MAX / 2;

/// A kind of such work. `W` is a piece of it.
pub(super) struct Owed<W> {
    /// By which the log knows a piece, and by which it is done by one thread only.
    name: fn(&W) -> String,
    /// None is taken up while so many workers are at something.
    workers_max: usize,
    /// What is due first.
    due: fn(&Db<'_>, Millis) -> Result<Option<W>>,
    /// Nobody takes it up before then; true: it failed, and nobody has written that down.
    put_off: fn(&mut Tx<'_>, &W, (Millis, bool)) -> Result<()>,
    /// Goes on with it, and writes down how far it came, and when it is gone on with.
    pursue: fn(&Homeserver, &W) -> Result<()>,
}

/// Rooms that let no guests in any more: who is there leaves.
pub(super) static GUESTS: Owed<RoomKey> = Owed {
    name: |room| format!("the leaving of the guests of {room:?}"),
    workers_max: WORKERS_MAX,
    due: |db, now| db.due_guest_removal(now),
    put_off: |tx, room, (until, _)| tx.put_off_guest_removal(*room, until),
    pursue: |hs, room| hs.remove_guests(*room),
};

/// Rooms that are being deleted. `W` is the id of the deletion.
pub(super) static DELETIONS: Owed<String> = Owed {
    name: |delete_id| format!("the deletion {delete_id} of a room"),
    workers_max: WORKERS_MAX,
    due: |db, now| db.due_room_deletion(now),
    put_off: |tx, delete_id, (until, _)| tx.put_off_room_deletion(delete_id, until),
    pursue: |hs, delete_id| hs.admin().pursue_room_deletion(delete_id),
};

/// Bans that follow a room that was upgraded.
pub(super) static BANS: Owed<RoomId> = Owed {
    name: |room| format!("the carrying over of the bans of {room}"),
    workers_max: WORKERS_MAX,
    due: |db, now| db.due_owed_bans(now),
    put_off: |tx, room, (until, failed)| tx.put_off_owed_bans(room, until, failed),
    pursue: |hs, room| hs.rooms().carry_bans(room),
};

/// What follows those who were in a room before it replaced another.
pub(super) static UPGRADES: Owed<RoomKey> = Owed {
    name: |room| format!("what follows the members of {room:?} from the room that it replaces"),
    workers_max: WORKERS_MAX,
    due: |db, now| db.due_owed_upgrade(now),
    put_off: |tx, room, (until, _)| tx.put_off_owed_upgrade(*room, until),
    pursue: |hs, room| hs.membership().follow_owed_upgrade(*room),
};

/// Rooms that have still to be told of a new name or avatar. `W` is whose, and the position of the change.
pub(super) static PROFILES: Owed<(UserId, i64)> = Owed {
    name: |(user, _)| format!("the telling of the rooms of {user} of their new profile"),
    workers_max: WORKERS_MAX,
    due: |db, now| match db.due_owed_profile(now)? {
        Some(user) => Ok(db.owed_profile(&user)?.map(|owed| (user, owed.stream))),
        None => Ok(None),
    },
    put_off: |tx, (user, stream), due| tx.put_off_owed_profile(user, *stream, due),
    pursue: |hs, (user, _)| hs.accounts().pursue_owed_profile(user),
};

/// Rooms that users have still to leave whose accounts are closed.
pub(super) static DEACTIVATIONS: Owed<UserId> = Owed {
    name: |user| format!("the leaving of the rooms of {user}, who was deactivated,"),
    workers_max: WORKERS_FOR_FEW,
    due: |db, now| db.due_deactivation(now),
    put_off: |tx, user, (until, _)| tx.put_off_deactivation(user, until),
    pursue: |hs, user| hs.pursue_deactivation(user),
};

/// Rooms whose servers are asked what was said since the backup that the database comes from. `W` has how often that was tried.
pub(super) static LOST_EVENTS: Owed<(RoomKey, u32)> = Owed {
    name: |(room, _)| format!("the asking for the lost events of {room:?}"),
    workers_max: WORKERS_FOR_FEW,
    due: |db, now| db.due_room_behind_backup(now),
    put_off: |tx, (room, attempts), (until, failed)| match failed {
        // It has said when it is tried again, unless nothing could be written.
        true => Ok(()),
        false => tx.put_off_room_behind_backup(*room, until, *attempts),
    },
    pursue: |hs, (room, attempts)| hs.events().ask_for_lost_events(*room, *attempts),
};

/// Takes up the piece of this kind that is due first, on a thread of its own.
pub(super) fn take_up_first<W: Clone + Send + 'static>(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
    owed: &'static Owed<W>,
) -> Result<()> {
    if lock(&shared.state).at_work() >= owed.workers_max {
        return Ok(());
    }
    let Some(piece) = hs.store.read(|db| (owed.due)(db, now))? else { return Ok(()) };
    let name = (owed.name)(&piece);
    let Some(working) = WorkingGuard::new(shared, name.clone(), owed.workers_max) else { return Ok(()) };
    let leased = piece.clone();
    let put_off = move |tx: &mut Tx<'_>, until| (owed.put_off)(tx, &leased, (until, false));
    take_up(shared, hs, ("due", working), now, put_off, move |hs, lease| {
        let pursued = (owed.pursue)(hs, &piece);
        let what = format!("{name} is put off");
        lease.end(hs, pursued, (&what, log::Level::Error), move |tx, _, now| {
            (owed.put_off)(tx, &piece, (now + AFTER_FAILURE_MS, true))
        });
    })
}
