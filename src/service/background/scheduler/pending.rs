//! Events that wait for what they need. Those of rooms that we are in come first of all from servers of these rooms; those of
//! rooms that we are not in may come from anybody, who names servers whose keys are asked for, and have slots apart.

use std::panic::{self, AssertUnwindSafe};
use std::sync::Arc;

use super::failures::log_unwritten;
use super::{AFTER_FAILURE_MS, SchedulerShared, SchedulerState, UNWRITTEN_REST};
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;
use crate::service::Homeserver;
use crate::store::RoomKey;

/// In how many rooms that we are in events that wait are pursued at once.
const FETCHERS_MAX: usize = 6;
/// In how many that we are not in, and in how many of these where what waits longest came from the same server.
const REMOTE_FETCHERS_MAX: usize = 4;
const REMOTE_FETCHERS_OF_SERVER_MAX: usize = 1;
/// So many rooms are read for each of those slots: some are not taken up since their server has its share.
const READ_FOR_EACH: usize = 8;

/// Whether no room can be taken up, whatever is due.
pub(super) fn all_taken(state: &SchedulerState) -> bool {
    state.fetching.len() >= FETCHERS_MAX && state.fetching_remote.len() >= REMOTE_FETCHERS_MAX
}

/// Pursues the events that wait in the rooms where some are due, as far as there are slots.
pub(super) fn pursue_pending_events(
    shared: &Arc<SchedulerShared>,
    hs: &Arc<Homeserver>,
    now: Millis,
) -> Result<()> {
    let busy = lock(&shared.state).fetching.clone();
    let free = FETCHERS_MAX.saturating_sub(busy.len());
    if free > 0 {
        let due = hs.store.read(|db| db.rooms_with_due_pending(now, FETCHERS_MAX + busy.len()))?;
        for room in due.into_iter().filter(|room| !busy.contains(room)).take(free) {
            lock(&shared.state).fetching.insert(room);
            pursue(shared, hs, room);
        }
    }
    if lock(&shared.state).fetching_remote.len() >= REMOTE_FETCHERS_MAX {
        return Ok(());
    }
    // One more of each, for one that is at work and due again.
    let of_server = REMOTE_FETCHERS_OF_SERVER_MAX + 1;
    let limit = REMOTE_FETCHERS_MAX * READ_FOR_EACH;
    for (room, server) in hs.store.read(|db| db.remote_rooms_with_due_pending(now, of_server, limit))? {
        {
            let mut state = lock(&shared.state);
            let busy = &state.fetching_remote;
            let of_server = busy.iter().filter(|(_, other)| *other == server).count();
            if busy.len() >= REMOTE_FETCHERS_MAX
                || of_server >= REMOTE_FETCHERS_OF_SERVER_MAX
                || busy.iter().any(|(other, _)| *other == room)
            {
                continue;
            }
            state.fetching_remote.push((room, server));
        }
        pursue(shared, hs, room);
    }
    Ok(())
}

/// A room whose waiting events are pursued, given back also when its thread panics.
struct FetchingGuard(Arc<SchedulerShared>, RoomKey);

impl Drop for FetchingGuard {
    fn drop(&mut self) {
        let mut state = lock(&self.0.state);
        state.fetching.remove(&self.1);
        state.fetching_remote.retain(|(room, _)| *room != self.1);
        drop(state);
        self.0.wake();
    }
}

/// Pursues the waiting events of a room, which is noted already, on a thread of its own.
fn pursue(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, room: RoomKey) {
    let (fetching, hs) = (FetchingGuard(shared.clone(), room), hs.clone());
    shared.begin("waiting", move || {
        let pursued = panic::catch_unwind(AssertUnwindSafe(|| hs.incoming().pursue_pending(room)));
        let put_off = match pursued {
            Ok(Ok(())) => Ok(()),
            failed => {
                if let Ok(Err(error)) = failed {
                    log::log!(error.level(log::Level::Error), "waiting events could not be pursued: {error}");
                }
                let now = hs.clock.now_ms();
                hs.store.write(move |tx| tx.retry_pending_later(room, None, now + AFTER_FAILURE_MS))
            }
        };
        drop(hs);
        if let Err(error) = put_off {
            log_unwritten(&error);
            // Nothing can be written. The room stays taken for a while, or it would be due again at once.
            fetching.0.rest(UNWRITTEN_REST);
        }
        drop(fetching);
    });
}
