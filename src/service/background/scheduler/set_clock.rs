//! A clock that was set. One that was ahead, as of a machine that keeps no time while it is off, has put off what failed under it
//! until it would be there again: that is done when it is set right, as after a start. What a clock that is set forward brings
//! about is only that what has an end by the calendar ends by it.

use std::time::Duration;

use crate::clock::{ClockWatch, Millis};
use crate::error::Result;
use crate::service::Homeserver;
use crate::store::Tx;

/// Looks whether the clock was set, and tells the log. True: it was set back.
pub(super) fn tell_of_it(watch: &mut ClockWatch, hs: &Homeserver) -> bool {
    let Some(set) = watch.look(&hs.clock) else { return false };
    let by = Duration::from_millis(set.unsigned_abs());
    match set < 0 {
        true => log::warn!("the clock was set back by {by:.0?}: what was put off by it is done now"),
        false => log::info!("the clock was set forward by {by:.0?}"),
    }
    set < 0
}

/// The clock was set back: what was put off by a clock that was ahead is not left until it is there again. False: that could not be
/// written.
pub(super) fn put_right(hs: &Homeserver) -> bool {
    let now = hs.clock.now_ms();
    let written = hs.store.write(move |tx| {
        tx.put_lateness_right(now)?;
        hasten(tx, now)
    });
    hs.ephemeral().clock_set_back(now);
    hs.outgoing.clock_set_back();
    hs.push_sender.clock_set_back();
    if let Err(error) = &written {
        log::log!(error.level(log::Level::Error), "what the clock had put off is not done yet: {error}");
    }
    written.is_ok()
}

/// Has everything that is due some day be due now: nobody is at it, or who is has noted that.
pub(super) fn hasten(tx: &mut Tx<'_>, now: Millis) -> Result<()> {
    tx.wake_timer();
    tx.hasten_remote_memberships(now)?;
    tx.hasten_all_pending(now)?;
    tx.hasten_owed_invites(now)?;
    tx.hasten_owed_joins(now)?;
    tx.hasten_all_device_lists(now)?;
    tx.hasten_rooms_behind_backup(now)?;
    tx.hasten_room_deletions(now)?;
    tx.hasten_guest_removals(now)?;
    tx.hasten_owed_bans(now)?;
    tx.hasten_owed_profiles(now)?;
    tx.hasten_deactivations(now)
}
