//! The sweep of notifications: once a day all of them are gone through, a portion at a time, and what was read a month ago goes.

use std::sync::Mutex;

use super::Push;
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::store::push::sweep::{READ_KEPT_MS, SweepPlace};

/// Rows of one portion: a few milliseconds of the timer, and of the writer where all of them go.
const PORTION_ROWS: usize = 1000;
/// From the end of one round to the next.
const ROUND_MS: Millis = 24 * 3_600_000;

/// How far the round is.
#[derive(Default)]
pub struct NotificationSweep {
    round: Mutex<Round>,
}

#[derive(Default)]
struct Round {
    /// Where it goes on; none: it has not begun.
    at: Option<SweepPlace>,
    /// When it begins.
    due: Millis,
}

impl Push<'_> {
    /// Goes on with the round, if it is due. When there is something to do again.
    pub fn sweep_notifications(&self, now: Millis) -> Result<Option<Millis>> {
        let mut round = lock(&self.notification_sweep.round);
        // A clock that was ahead and was put right is no reason to wait.
        round.due = round.due.min(now + ROUND_MS);
        if now < round.due {
            return Ok(Some(round.due));
        }
        let from = round.at.take().unwrap_or(SweepPlace::START);
        let before = now - READ_KEPT_MS;
        let portion = self.store.read(|db| db.notifications_to_sweep(&from, before, PORTION_ROWS))?;
        let next = portion.next.clone();
        if !portion.is_empty() {
            // What a power cut takes of it the next round does again.
            self.store.write_lightly(move |tx| tx.sweep_notifications(&portion))?;
        }
        round.due = if next.is_some() { now } else { now + ROUND_MS };
        round.at = next;
        Ok(Some(round.due))
    }
}
