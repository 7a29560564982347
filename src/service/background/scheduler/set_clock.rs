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

/// After a start nobody is at anything: what was under way at the last stop, or was put off by a clock that was ahead by then, is done
/// now. False: that could not be written.
pub(super) fn hasten_after_start(hs: &Homeserver) -> bool {
    hasten(hs, |tx, now| Ok(tx.is_anything_put_off(now)? || !tx.unfinished_deactivations()?.is_empty()))
}

/// The clock was set back: what was put off is not left until it is there again. Nobody is at it, or who is has noted that. False: that
/// could not be written.
pub(super) fn hasten_all(hs: &Homeserver) -> bool {
    hasten(hs, |_, _| Ok(true))
}

/// Has everything be done now that was put off, if there is reason to.
fn hasten(hs: &Homeserver, is_called_for: fn(&Tx<'_>, Millis) -> Result<bool>) -> bool {
    let now = hs.clock.now_ms();
    // Asked on the writer's connection, too: while the server starts there may be no other yet.
    let hastened = hs.store.write(move |tx| {
        let is_called_for = is_called_for(tx, now)?;
        if is_called_for {
            tx.hasten_all(now)?;
            tx.hasten_deactivations(now)?;
        }
        Ok(is_called_for)
    });
    if hastened.as_ref().is_ok_and(|hastened| !hastened) {
        return true;
    }
    hs.ephemeral().clock_set_back(now);
    hs.outgoing.clock_set_back();
    hs.push_sender.clock_set_back();
    if let Err(error) = &hastened {
        log::log!(error.level(log::Level::Error), "what was put off is not done yet: {error}");
    }
    hastened.is_ok()
}

#[cfg(test)]
mod tests {
    use crate::service::accounts::login_tokens::LOGIN_TOKEN_LIFE_MS;
    use crate::service::accounts::openid::TOKEN_LIFE_MS;
    use crate::service::appservices::sender::FORGOTTEN_AFTER_MS;
    use crate::service::ephemeral::{presence, typing};
    use crate::service::media::upload::PENDING_EXPIRY_MS;
    use crate::service::push::{next::BELL_PAUSE_MS, sender::PAUSES};
    use crate::store::devices::swept_changes::KEPT_MS;
    use crate::store::engine::set_clock::furthest;

    #[test]
    fn a_start_takes_no_time_for_one_of_a_wrong_clock_that_a_right_one_has_written() {
        let written = [
            ("delayed_events", "due_ms", None),
            ("login_tokens", "expires_ms", Some(LOGIN_TOKEN_LIFE_MS)),
            ("openid_tokens", "expires_ms", Some(TOKEN_LIFE_MS)),
            ("pushers", "retry_ms", Some(PAUSES.longest_ms)),
            ("bells", "until_ms", Some(BELL_PAUSE_MS)),
            ("to_device_shares", "since_ms", Some(0)),
            ("device_changes_sweep", "next_ms", Some(KEPT_MS)),
            ("typing", "until_ms", Some(typing::TIMEOUT_MS_MAX)),
            ("typing", "told_ms", Some(0)),
            ("presence", "until_ms", Some(presence::REMOTE_GONE_AFTER_MS)),
            ("media", "expires_ms", Some(PENDING_EXPIRY_MS)),
            ("appservices", "forget_due_ms", Some(FORGOTTEN_AFTER_MS)),
        ];
        assert!(furthest().eq(written), "{:?}", furthest().collect::<Vec<_>>());
    }
}
