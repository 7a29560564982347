//! History that clients page back to: the gaps in a room's timeline, and how they are filled from other servers.

use std::time::{Duration, Instant};

use super::gap::{connected, in_order, placed};
use super::{Fetch, STATES_ASKED_MAX};
use crate::error::Result;
use crate::federation::CallError;
use crate::order;
use crate::protocol::{EventId, Pdu, ServerName, VerifiedPdu};
use crate::service::events::Events;
use crate::service::events::accept::{EventSource, Received};
use crate::store::{Place, Room};

/// For how long one request may keep us asking.
const BACKFILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How much history is fetched at once.
const BACKFILL_PAGE_EVENTS: usize = 100;
/// How many servers are asked for history.
const SERVERS_ASKED_MAX: usize = 5;
/// How long each of them may let us wait, so that the next one's turn comes.
const SERVER_ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

impl Events<'_> {
    /// Fetches history that clients ask for: what lies in the nearest gap at or before a place in the timeline. True
    /// if something came, so that looking again is worth it. Servers of the room are asked in turn; that none of them
    /// answers is no error.
    pub fn backfill(&self, room: &Room, before: Place) -> Result<bool> {
        let until = Instant::now() + BACKFILL_TIMEOUT;
        let gaps = self.store.read(|db| db.gaps_between(room.key, Place::START, before, STATES_ASKED_MAX))?;
        let Some(place) = gaps.first().map(|gap| gap.before) else { return Ok(false) };
        if self.fetch_limits.is_unfilled((room.key, place)) {
            return Ok(false);
        }
        let wanted: Vec<EventId> =
            gaps.into_iter().filter(|gap| gap.before == place).map(|gap| gap.event_id).collect();
        let Some(_turn) = self.fetch_limits.begin(room.key, self.server_name(), until) else {
            return Ok(false);
        };
        if self.store.read(|db| Ok(db.gap(room.key, &wanted[0])?.is_none()))? {
            return Ok(true);
        }
        for peer in &self.backfill_servers(room)? {
            let left = until.saturating_duration_since(Instant::now()).min(SERVER_ANSWER_TIMEOUT);
            if left.is_zero() {
                break;
            }
            let permit = self.fetch_limits.ask(peer);
            let answer = self.federation.backfill(peer, &room.room_id, &wanted, BACKFILL_PAGE_EVENTS, left);
            if let Some(permit) = permit
                && !answer.as_ref().is_err_and(CallError::is_unreachable)
            {
                permit.answered();
            }
            let Ok(events) = answer else { continue };
            let mut fetch = Fetch::new(self, peer, room, until);
            let mut events = fetch.leading_to(&wanted, fetch.checked(&events))?;
            if self.with_policy_signatures(&mut [(room, &mut events)], Some(until))? > 0 {
                // Another time: others would give us the same.
                return Ok(false);
            }
            if fetch.receive_history(&events, place)? {
                return Ok(true);
            }
        }
        self.fetch_limits.note_unfilled((room.key, place));
        Ok(false)
    }

    /// The servers of a room that are worth asking for its history, best first: those that have been in it for longest,
    /// and after them those that seem to be out of reach.
    pub(in crate::service) fn backfill_servers(&self, room: &Room) -> Result<Vec<ServerName>> {
        let mut servers = self.store.read(|db| db.resident_servers(room.key))?;
        servers.retain(|server| server != self.server_name());
        order::sort_by_cached_key(&mut servers, |server| {
            self.fetch_limits.pauses_until(server).is_some() || self.outgoing.is_pausing(server)
        });
        servers.truncate(SERVERS_ASKED_MAX);
        Ok(servers)
    }
}

impl Events<'_> {
    /// Fetches one event from amid the gap right before a place: first the history nearest to the place, which may have
    /// it, else the event alone with the state before it. True if the event has its place in the timeline now.
    pub(in crate::service) fn fetch_past_event(
        &self,
        room: &Room,
        peer: &ServerName,
        id: &EventId,
        gap: Place,
    ) -> Result<bool> {
        let is_placed = || self.store.read(|db| Ok(db.event(id)?.is_some_and(|event| event.place.is_some())));
        if is_placed()? || (self.backfill(room, gap)? && is_placed()?) {
            return Ok(true);
        }
        let until = Instant::now() + BACKFILL_TIMEOUT;
        let Some(_turn) = self.fetch_limits.begin(room.key, self.server_name(), until) else {
            return Ok(false);
        };
        // What was fetched meanwhile has made the gap smaller, or two of it.
        let gap = self.store.read(|db| db.gaps_between(room.key, Place::START, gap, 1))?;
        let Some(gap) = gap.first().map(|gap| gap.before) else { return is_placed() };
        let Some(place) = self.store.read(|db| db.place_amid(room.key, gap))? else { return Ok(false) };
        let mut fetch = Fetch::new(self, peer, room, until);
        fetch.states_left = 1;
        let mut events = fetch.fetch_events(std::slice::from_ref(id))?;
        if self.with_policy_signatures(&mut [(room, &mut events)], Some(until))? > 0 {
            return Ok(false);
        }
        for event in &events {
            fetch.receive_past_event(event, place)?;
        }
        is_placed()
    }
}

impl Fetch<'_> {
    /// Those of the events that lead to the wanted ones, oldest first.
    fn leading_to(&self, wanted: &[EventId], events: Vec<VerifiedPdu>) -> Result<Vec<VerifiedPdu>> {
        let events = in_order(events, Pdu::prev_events);
        let known = self.hs.store.read(|db| placed(db, &events))?;
        Ok(connected(events, wanted, &known))
    }

    /// Puts fetched history before the event whose gap it fills: the newest right before it, older ones further. True
    /// if anything was new.
    fn receive_history(&mut self, events: &[VerifiedPdu], place: Place) -> Result<bool> {
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let below = self.hs.store.read(|db| db.room_below(self.room.key, place, count))?;
        let mut came = false;
        for (index, event) in (0..).zip(events) {
            came |=
                self.receive_past_event(event, Place { stream: place.stream, sub: below - count + index })?;
        }
        Ok(came)
    }

    /// Receives one event of the past. True if it was new.
    fn receive_past_event(&mut self, event: &VerifiedPdu, place: Place) -> Result<bool> {
        let source = EventSource::Backfill(place);
        let mut received = self.hs.events().receive_event(event, source, None);
        if let Ok(Received::NeedsAuth(ids)) = &received {
            let ids = ids.clone();
            self.fetch_auth_events(event, &ids)?;
            received = self.hs.events().receive_event(event, source, None);
        }
        if matches!(received, Ok(Received::NeedsPrev)) && self.states_left > 0 {
            self.states_left -= 1;
            received = self.receive_with_state(event, source);
        }
        Ok(matches!(received, Ok(Received::Stored { already: false, .. })))
    }
}
