//! The event of a room's timeline that is nearest to a time, for clients and for other servers.

use crate::error::{Error, Result};
use crate::store::{Db, Room, StoredEvent};

/// How many events that the asker may not see are passed over.
const PASSED_MAX: usize = 1000;
/// How many events are looked at in one go.
const EVENTS_PER_READ_MAX: usize = 20;

/// A time, and on which side of it to look.
#[derive(Debug, Clone, Copy)]
pub struct TimestampQuery {
    /// In milliseconds since the epoch.
    pub ts: i64,
    /// Events of this time or later; else of this time or earlier.
    pub forwards: bool,
}

impl TimestampQuery {
    /// How far away another time is, in milliseconds.
    pub(in crate::service) fn distance(self, ts: i64) -> u64 {
        self.ts.abs_diff(ts)
    }

    /// 404 `M_NOT_FOUND`.
    pub(in crate::service) fn nothing(self) -> Error {
        let direction = if self.forwards { "forward" } else { "backward" };
        Error::not_found(format!("Unable to find event from {} in {direction} direction", self.ts))
    }
}

/// The event of a room's timeline that is nearest to a time among those that may be seen.
pub(in crate::service) fn nearest_event(
    db: &Db<'_>,
    room: &Room,
    when: TimestampQuery,
    mut sees: impl FnMut(&StoredEvent) -> Result<bool>,
) -> Result<Option<StoredEvent>> {
    for skip in (0..PASSED_MAX).step_by(EVENTS_PER_READ_MAX) {
        let keys = db.events_by_time(room.key, (when.ts, when.forwards), skip, EVENTS_PER_READ_MAX)?;
        let last = keys.len() < EVENTS_PER_READ_MAX;
        for key in keys {
            let event = db.event_by_key(key)?;
            if sees(&event)? {
                return Ok(Some(event));
            }
        }
        if last {
            break;
        }
    }
    Ok(None)
}
