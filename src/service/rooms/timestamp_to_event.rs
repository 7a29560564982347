//! The event of a room that is nearest to a time: "jump to date".
//!
//! The times are what the senders' servers say of their events, so they need not rise along the timeline.

use crate::error::Result;
use crate::order;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::events::Events;
use crate::service::events::nearest_event::{TimestampQuery, nearest_event};
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::limits::silent_servers::{AskedFor, Likelihood, SILENT_AFTER};
use crate::service::rooms::Rooms;
use crate::service::rooms::view::{Access, RoomView, readable_room};
use crate::store::{Db, Place, Room};

/// Where the history that we have around a time has a gap that may be filled: the place of the event after it.
fn gap_around(events: Events<'_>, db: &Db<'_>, room: &Room, ts: i64) -> Result<Option<Place>> {
    let beside = |forwards| -> Result<Option<Place>> {
        Ok(nearest_event(db, room, TimestampQuery { ts, forwards }, |_| Ok(true))?
            .and_then(|event| event.place))
    };
    let low = beside(false)?.unwrap_or(Place::START);
    let high = beside(true)?.unwrap_or(Place::END);
    // A gap lies right before the event that names it; that of the earlier event is behind it.
    let low = Place { stream: low.stream, sub: low.sub.saturating_add(1) };
    if low > high {
        return Ok(None);
    }
    events.open_gap(db, room.key, (low, high), true, &|_, _| Ok(false))
}

impl Rooms<'_> {
    /// The event nearest to a time that the user may see, and its own time. Where our history has a gap around that
    /// time, other servers of the room are asked for a nearer one, which is then fetched. Errors: 404 `M_NOT_FOUND`,
    /// 403 `M_FORBIDDEN`.
    pub fn event_near(
        &self,
        user: &UserId,
        room_id: &RoomId,
        when: TimestampQuery,
    ) -> Result<(EventId, i64)> {
        let look = |db: &Db<'_>| {
            let room = readable_room(db, room_id)?;
            let view = RoomView::new(db, &room, user)?;
            view.require_readable()?;
            let found = nearest_event(db, &room, when, |event| Ok(view.look(event)?.visible))?;
            // Only members make us ask others.
            let asks = room.resident && matches!(view.access, Access::Joined { .. });
            let gap = if asks { gap_around(self.events(), db, &room, when.ts)? } else { None };
            let found = found.map(|event| (event.pdu.event_id().clone(), event.pdu.origin_server_ts()));
            Ok((found, gap.map(|gap| (room, gap))))
        };
        let (found, gap) = self.store.read(look)?;
        let best = found.as_ref().map(|(_, ts)| when.distance(*ts));
        if let Some((room, gap)) = gap
            && best != Some(0)
            && self.fetch_nearer(user, &room, when, (best, gap))?
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
        when: TimestampQuery,
        (best, gap): (Option<u64>, Place),
    ) -> Result<bool> {
        let _permit = self.request_permits.ask(&Asker::new(AskerId::User(user.clone())))?;
        // "A good heuristic for which servers to try first is to sort by servers that have been in the room the
        // longest."
        let mut servers = self.events().backfill_servers(room, 0)?;
        order::sort_by_cached_key(&mut servers, |server| self.likelihood(server) == Likelihood::Doubtful);
        for peer in &servers {
            let within = self.patience_with(peer, AskedFor::Event, SILENT_AFTER);
            let said = self.ask_peer(peer, AskedFor::Event, within, |within| {
                let TimestampQuery { ts, forwards } = when;
                self.federation.timestamp_to_event(peer, &room.room_id, ts, forwards, within)
            });
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
            match self.events().fetch_past_event(room, peer, &id, gap) {
                Ok(true) => return Ok(true),
                Ok(false) => {}
                Err(e) if e.is_own_failure() => return Err(e),
                Err(e) => log::debug!("{id} does not come from {peer}: {e}"),
            }
        }
        Ok(false)
    }
}
