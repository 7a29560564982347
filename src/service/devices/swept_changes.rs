//! The sweep of changes of devices that are of interest to nobody: once a month those are gone through that are as old, a
//! portion at a time.

use std::sync::Mutex;

use super::Devices;
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::store::devices::swept_changes::{KEPT_MS, NextSweep};

/// Changes of one portion: for each it is looked whether anybody here shares a room with the user.
const PORTION_ROWS: usize = 100;
/// After a start nothing is looked at for so long: a server that runs for a test has nothing to sweep.
const AFTER_START_MS: Millis = 3_600_000;

/// How far the round is.
#[derive(Default)]
pub struct ChangesSweep {
    round: Mutex<Round>,
}

#[derive(Default)]
struct Round {
    /// Behind which position it goes on.
    after: i64,
    /// When; none: the server has just been started.
    due: Option<Millis>,
}

impl Devices<'_> {
    /// Goes on with the round, if it is due. When there is something to do again.
    pub fn sweep_device_changes(&self, now: Millis) -> Result<Option<Millis>> {
        let mut round = lock(&self.changes_sweep.round);
        // A clock that was ahead and was put right is no reason to wait longer.
        let due = round.due.map_or(now + AFTER_START_MS, |due| due.min(now + KEPT_MS));
        round.due = Some(due);
        if now < due {
            return Ok(Some(due));
        }
        let (planned, position) =
            self.store.read(|db| Ok((db.next_changes_sweep()?, db.snapshot_position()?)))?;
        let later = NextSweep { upto: position, due_ms: now + KEPT_MS };
        round.due = Some(match planned {
            Some(planned) if now < planned.due_ms => planned.due_ms.min(later.due_ms),
            Some(planned) => {
                let from = (round.after, planned.upto);
                let portion = self.store.read(|db| db.changes_to_sweep(from, PORTION_ROWS))?;
                let next = portion.next;
                // What a power cut takes of it the next round does again.
                self.store.write_lightly(move |tx| {
                    if !portion.users.is_empty() {
                        tx.sweep_device_changes(&portion.users, planned.upto)?;
                    }
                    if next.is_none() { tx.plan_changes_sweep(later) } else { Ok(()) }
                })?;
                round.after = next.unwrap_or(0);
                if next.is_some() { now } else { later.due_ms }
            }
            None => {
                self.store.write_lightly(move |tx| tx.plan_changes_sweep(later))?;
                later.due_ms
            }
        });
        Ok(round.due)
    }
}
