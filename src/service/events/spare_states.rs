//! States that nothing needs any more go by themselves (`store/rooms/spare_snapshots.rs` knows them).
//!
//! What is being decided on an event may rest on a state that was its room's current one when the decision was begun, and is
//! nobody's once it is made. So a state goes when it was found to be spare twice, an hour apart: no decision takes that long. What
//! was found is remembered in memory only; a start begins anew. It goes in portions, each whole by itself.

use std::sync::Mutex;

use super::Events;
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::store::SnapshotId;

/// How often it is looked for them.
const LOOK_INTERVAL_MS: Millis = 3_600_000;
/// So many are remembered from one time to the next: the others wait.
const REMEMBERED_MAX: usize = 20_000;
/// Rows that one commit takes away, and the pause until the next one.
const ROWS_AT_ONCE_MAX: usize = 200;
const PORTION_PAUSE_MS: Millis = 250;

/// What was found, and what goes.
#[derive(Default)]
pub struct SpareStates(Mutex<FoundStates>);

#[derive(Default)]
struct FoundStates {
    next_look: Millis,
    /// What was spare when it was last looked, in order.
    found: Vec<SnapshotId>,
    /// What was spare twice, the last one first, and when some of it goes.
    going: Vec<SnapshotId>,
    next_portion: Millis,
}

impl Events<'_> {
    /// Takes away some of what has to go. When there is something to do again.
    pub fn sweep_spare_states(&self, now: Millis) -> Result<Option<Millis>> {
        let mut states = lock(&self.spare_states.0);
        // A clock that was ahead and was put right is no reason to wait.
        states.next_look = states.next_look.min(now + LOOK_INTERVAL_MS);
        if now >= states.next_look {
            let found = self.store.read(|db| db.spare_states(REMEMBERED_MAX))?;
            let before = std::mem::replace(&mut states.found, found);
            states.going =
                before.into_iter().filter(|state| states.found.binary_search(state).is_ok()).rev().collect();
            states.next_look = now + LOOK_INTERVAL_MS;
            states.next_portion = now;
        }
        if states.going.is_empty() {
            return Ok(Some(states.next_look));
        }
        if now >= states.next_portion.min(now + PORTION_PAUSE_MS) {
            let portion: Vec<SnapshotId> =
                states.going.iter().rev().take(ROWS_AT_ONCE_MAX).copied().collect();
            let done =
                self.store.write_lightly(move |tx| tx.remove_spare_states(&portion, ROWS_AT_ONCE_MAX))?;
            let left = states.going.len() - done;
            states.going.truncate(left);
            states.next_portion = now + PORTION_PAUSE_MS;
        }
        Ok(Some(states.next_portion.min(states.next_look)))
    }
}
