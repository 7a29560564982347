//! The event of a room that is nearest to a time: "jump to date".
//!
//! The times are what the senders' servers say of their events, so they need not rise along the timeline.

use crate::error::{Error, Result};
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::rooms::Rooms;
use crate::service::rooms::view::{Access, RoomView, readable_room};
use crate::store::{Db, Place, Room, StoredEvent};

/// How many events that the asker may not see are passed over.
const MOST_PASSED: usize = 1000;
/// How many events are looked at in one go.
const BATCH: usize = 20;

/// A time, and on which side of it to look.
#[derive(Debug, Clone, Copy)]
pub struct Moment {
    /// In milliseconds since the epoch.
    pub ts: i64,
    /// Events of this time or later; else of this time or earlier.
    pub forwards: bool,
}

impl Moment {
    /// How far away another time is, in milliseconds.
    fn distance(self, ts: i64) -> u64 {
        self.ts.abs_diff(ts)
    }

    /// 404 `M_NOT_FOUND`.
    pub(in crate::service) fn nothing(self) -> Error {
        let direction = if self.forwards { "forward" } else { "backward" };
        Error::not_found(format!("Unable to find event from {} in {direction} direction", self.ts))
    }
}

/// The event of a room's timeline that is nearest to a time among those that may be seen.
pub(in crate::service) fn nearest(
    db: &Db<'_>,
    room: &Room,
    when: Moment,
    mut sees: impl FnMut(&StoredEvent) -> Result<bool>,
) -> Result<Option<StoredEvent>> {
    for skip in (0..MOST_PASSED).step_by(BATCH) {
        let keys = db.events_by_time(room.key, (when.ts, when.forwards), skip, BATCH)?;
        let last = keys.len() < BATCH;
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

/// Where the history that we have around a time has a hole: the place of the event after it.
fn hole_around(db: &Db<'_>, room: &Room, ts: i64) -> Result<Option<Place>> {
    let beside = |forwards| -> Result<Option<Place>> {
        Ok(nearest(db, room, Moment { ts, forwards }, |_| Ok(true))?.and_then(|event| event.place))
    };
    let low = beside(false)?.unwrap_or(Place::START);
    let high = beside(true)?.unwrap_or(Place::END);
    // A hole lies right before the event that names it; that of the earlier event is behind it.
    let low = Place { stream: low.stream, sub: low.sub.saturating_add(1) };
    if low > high {
        return Ok(None);
    }
    Ok(db.gaps_between(room.key, low, high, 1)?.first().map(|gap| gap.before))
}

impl Rooms<'_> {
    /// The event nearest to a time that the user may see, and its own time. Where our history has a hole around that
    /// time, other servers of the room are asked for a nearer one, which is then fetched. Errors: 404 `M_NOT_FOUND`, 403
    /// `M_FORBIDDEN`.
    pub fn event_near(&self, user: &UserId, room_id: &RoomId, when: Moment) -> Result<(EventId, i64)> {
        let look = |db: &Db<'_>| {
            let room = readable_room(db, room_id)?;
            let view = RoomView::new(db, &room, user)?;
            view.require_readable()?;
            let found = nearest(db, &room, when, |event| Ok(view.look(event)?.visible))?;
            // Only members make us ask others.
            let asks = room.resident && matches!(view.access, Access::Joined { .. });
            let hole = if asks { hole_around(db, &room, when.ts)? } else { None };
            let found = found.map(|event| (event.pdu.event_id().clone(), event.pdu.origin_server_ts()));
            Ok((found, hole.map(|hole| (room, hole))))
        };
        let (found, hole) = self.store.read(look)?;
        let best = found.as_ref().map(|(_, ts)| when.distance(*ts));
        if let Some((room, hole)) = hole
            && best != Some(0)
            && self.fetch_nearer(user, &room, when, (best, hole))?
        {
            return self.store.read(look)?.0.ok_or_else(|| when.nothing());
        }
        found.ok_or_else(|| when.nothing())
    }

    /// Asks other servers for an event nearer than `best` and fetches it. True if one came.
    fn fetch_nearer(
        &self,
        user: &UserId,
        room: &Room,
        when: Moment,
        (best, hole): (Option<u64>, Place),
    ) -> Result<bool> {
        let _permit = self.request_permits.ask(&Asker::new(AskerId::User(user.clone())))?;
        // "A good heuristic for which servers to try first is to sort by servers that have been in the room the
        // longest."
        for peer in &self.events().whom_to_ask_for_history(room)? {
            let said = self.federation.timestamp_to_event(peer, &room.room_id, when.ts, when.forwards);
            let (id, ts) = match said {
                Ok(said) => said,
                Err(e) => {
                    log::debug!("{}", e.into_client_error(peer).message());
                    continue;
                }
            };
            if best.is_some_and(|best| when.distance(ts) >= best) {
                continue;
            }
            // What one server cannot give another may.
            match self.events().fetch_past_event(room, peer, &id, hole) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(e) if e.status() == 500 => return Err(e),
                Err(e) => log::debug!("{id} does not come from {peer}: {e}"),
            }
        }
        Ok(false)
    }
}
