//! History that clients page back to: the gaps in a room's timeline, and how they are filled from other servers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::shown::{Links, ShownHistory, UNVERIFIED_MAX};
use super::{Fetch, STATES_ASKED_MAX};
use crate::error::Result;
use crate::federation::CallError;
use crate::federation::calls::RawEvent;
use crate::order;
use crate::protocol::{EventId, ServerName};
use crate::service::events::Events;
use crate::service::events::accept::{EventSource, Received};
use crate::service::events::policy_server::UndecidedEvent;
use crate::store::{Db, Place, Room, RoomKey};

/// For how long one request may keep us asking.
const BACKFILL_TIMEOUT: Duration = Duration::from_secs(30);
/// How much history is fetched at once.
const BACKFILL_PAGE_EVENTS: usize = 100;
/// How many servers are asked for history.
const SERVERS_ASKED_MAX: usize = 5;
/// How long each of them may let us wait, so that the next one's turn comes; and how long the keys of what it shows are looked
/// for.
const SERVER_ANSWER_TIMEOUT: Duration = Duration::from_secs(8);

/// What came of trying to fill a gap.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum GapFilled {
    /// Something came, so that looking again is worth it.
    Some,
    /// Servers answered, and have nothing for it: it is passed over for a while.
    Nothing,
    /// Nobody could be asked, or what came could not be received just now.
    NotNow,
}

impl Events<'_> {
    /// Fetches history: what lies in the nearest gap at or before a place in the timeline. True if something came.
    /// Servers of the room are asked in turn; that none of them answers is no error.
    pub fn backfill(&self, room: &Room, before: Place) -> Result<bool> {
        let between = (Place::START, before);
        let gap = self.store.read(|db| self.open_gap(db, room.key, between, true, &|_, _| Ok(false)))?;
        match gap {
            Some(place) => Ok(self.fill_history(room, place)? == GapFilled::Some),
            None => Ok(false),
        }
    }

    /// The place of the gap that one comes to first between two places, both inclusive, unless it is known that nobody can
    /// fill it, or it is passed over by what is said of its place and whether nobody could be asked for it just before.
    pub(in crate::service) fn open_gap(
        &self,
        db: &Db<'_>,
        room: RoomKey,
        between: (Place, Place),
        backwards: bool,
        is_passed: &dyn Fn(Place, bool) -> Result<bool>,
    ) -> Result<Option<Place>> {
        let (now, unfilled) = (self.clock.steady(), &self.fetch_limits.unfilled);
        db.first_gap(room, between, backwards, |gap| {
            let key = (room, gap.event_id.clone());
            Ok(unfilled.is_unfillable(&key, now) || is_passed(gap.before, unfilled.is_unreached(&key, now))?)
        })
    }

    /// Fetches some of what lies in the gap right before a place, from its end on.
    pub(in crate::service) fn fill_history(&self, room: &Room, place: Place) -> Result<GapFilled> {
        let (until, unfilled) = (Instant::now() + BACKFILL_TIMEOUT, &self.fetch_limits.unfilled);
        let wanted = || -> Result<Vec<EventId>> {
            let now = self.clock.steady();
            let gaps = self.store.read(|db| db.gaps_between(room.key, place, place, STATES_ASKED_MAX))?;
            let ids = gaps.into_iter().map(|gap| gap.event_id);
            Ok(ids.filter(|id| !unfilled.is_unfillable(&(room.key, id.clone()), now)).collect())
        };
        let before = wanted()?;
        let Some(_turn) = self.fetch_limits.begin(room.key, self.server_name(), until) else {
            return Ok(GapFilled::NotNow);
        };
        let wanted = wanted()?;
        if wanted.is_empty() || wanted != before {
            // Somebody else has filled it meanwhile, or found out that nobody can.
            return Ok(GapFilled::Some);
        }
        let is_unreached = |id: &EventId| unfilled.is_unreached(&(room.key, id.clone()), self.clock.steady());
        if wanted.iter().any(is_unreached) {
            return Ok(GapFilled::NotNow);
        }
        let (mut has_answered, mut awaited) = (false, Vec::new());
        let attempts = wanted.first().map_or(0, |id| unfilled.attempts(&(room.key, id.clone())));
        for peer in self.backfill_servers(room, attempts)? {
            if has_answered && self.fetch_limits.pauses_until(&peer).is_some() {
                awaited.push(peer);
                continue;
            }
            match self.fill_history_from(&peer, room, (&wanted, place), until)? {
                FromPeer::Some => return Ok(GapFilled::Some),
                FromPeer::Unsigned(policy_server) => {
                    return Ok(self.note_unfilled(room, wanted, &[policy_server], false));
                }
                FromPeer::Nothing(keys_of) => {
                    has_answered = true;
                    awaited.extend(keys_of);
                }
                FromPeer::Refused => {}
                FromPeer::NotNow => awaited.push(peer),
            }
        }
        let is_settled = has_answered || awaited.is_empty();
        Ok(self.note_unfilled(room, wanted, &awaited, is_settled))
    }

    /// Notes that gaps could not be filled, since servers have nothing for them (`is_settled`), or nobody could be asked.
    fn note_unfilled(
        &self,
        room: &Room,
        gaps: Vec<EventId>,
        awaited: &[ServerName],
        is_settled: bool,
    ) -> GapFilled {
        let (now, unfilled) = (self.clock.steady(), &self.fetch_limits.unfilled);
        let mut filled = GapFilled::Nothing;
        for id in gaps {
            if is_settled {
                unfilled.note_unfillable((room.key, id), awaited, now);
            } else if !unfilled.note_unreached((room.key, id), awaited, now) {
                filled = GapFilled::NotNow;
            }
        }
        filled
    }

    fn fill_history_from(
        &self,
        peer: &ServerName,
        room: &Room,
        (wanted, place): (&[EventId], Place),
        until: Instant,
    ) -> Result<FromPeer> {
        let mut fetch = Fetch::new(self, peer, room, until);
        let mut history = match fetch.ask_for_history(wanted) {
            Ok(history) => history?,
            Err(e) if e.is_transient() => return Ok(FromPeer::NotNow),
            Err(e) => {
                log::debug!("{}", e.into_client_error(peer).message());
                return Ok(FromPeer::Refused);
            }
        };
        let undecided = self.with_policy_signatures(&mut [(room, &mut history.events)], Some(until))?;
        let is_past =
            undecided.is_empty() || self.store.read(|db| db.is_from_before_join(room.key, place))?;
        if !is_past {
            history.set_aside(&undecided);
        }
        let (came, is_delayed) = fetch.receive_history(&history, place, &undecided)?;
        if !is_past && let Some(undecided) = undecided.first() {
            // Another time: others would give us the same.
            return Ok(if came {
                FromPeer::Some
            } else {
                FromPeer::Unsigned(undecided.policy_server.clone())
            });
        }
        let now = self.clock.steady();
        for (id, keys_of) in self.store.read(|db| history.closed_gaps(db, room))? {
            self.fetch_limits.unfilled.note_unfillable((room.key, id), &keys_of, now);
        }
        Ok(match (came, is_delayed) {
            (true, _) => FromPeer::Some,
            (false, true) => FromPeer::NotNow,
            (false, false) => FromPeer::Nothing(history.keys_of()),
        })
    }

    /// The servers of a room that are worth asking for its history, best first: those that have been in it for longest,
    /// and after them those that seem to be out of reach; others of both at each further attempt.
    pub(in crate::service) fn backfill_servers(&self, room: &Room, attempts: u32) -> Result<Vec<ServerName>> {
        let mut servers = self.store.read(|db| db.resident_servers(room.key))?;
        servers.retain(|server| server != self.server_name());
        let is_away =
            |server: &ServerName| self.fetch_limits.has_failed(server) || self.outgoing.is_pausing(server);
        order::sort_by_cached_key(&mut servers, is_away);
        let asked = usize::try_from(attempts).unwrap_or(0).saturating_mul(SERVERS_ASKED_MAX);
        let there = servers.iter().take_while(|server| !is_away(server)).count();
        let (there, away) = servers.split_at_mut(there);
        for servers in [there, away].into_iter().filter(|servers| servers.len() > SERVERS_ASKED_MAX) {
            servers.rotate_left(asked % servers.len());
        }
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
        let source = match self.with_policy_signatures(&mut [(room, &mut events)], Some(until))?.is_empty() {
            true => EventSource::Backfill(place),
            false if self.store.read(|db| db.is_from_before_join(room.key, place))? => {
                EventSource::BackfillUnjudged(place)
            }
            false => return Ok(false),
        };
        for event in &events {
            fetch.receive_linked(event, source, &Links::new())?;
        }
        is_placed()
    }
}

/// What came of asking one server.
enum FromPeer {
    Some,
    /// It answered, and has nothing new; with the servers whose keys could not be had for what it showed.
    Nothing(Vec<ServerName>),
    /// It does not give us any.
    Refused,
    NotNow,
    /// What came needs the signature of a policy server, which is not to be had now.
    Unsigned(ServerName),
}

impl Fetch<'_> {
    /// What the server shows of what leads to these events: more and more of it as long as there is nothing but what cannot be
    /// verified, up to a bound.
    fn ask_for_history(
        &mut self,
        wanted: &[EventId],
    ) -> std::result::Result<Result<ShownHistory>, CallError> {
        let (mut asked_for, mut shown, mut count) = (wanted.to_vec(), Vec::new(), 0);
        loop {
            let answer = self.ask_for_page(&asked_for);
            let page = match answer {
                Ok(page) => self.shown(&page, self.left_of_answer()),
                Err(e) if shown.is_empty() => return Err(e),
                Err(_) => Ok(Vec::new()),
            };
            let history = page.and_then(|page| {
                shown.extend(page);
                self.leading_to(wanted, std::mem::take(&mut shown))
            });
            let history = match history {
                Ok(history) => history,
                Err(e) => return Ok(Err(e)),
            };
            let is_at_end = history.ends.is_empty() || history.links.len() <= count;
            if history.is_news || is_at_end || history.unverified() >= UNVERIFIED_MAX {
                return Ok(Ok(history));
            }
            count = history.links.len();
            asked_for = history.ends.clone();
            shown = history.into_shown();
        }
    }

    fn left_of_answer(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now()).min(SERVER_ANSWER_TIMEOUT)
    }

    fn ask_for_page(&self, wanted: &[EventId]) -> std::result::Result<Vec<RawEvent>, CallError> {
        let (hs, left) = (self.hs, self.left_of_answer());
        let permit = hs.fetch_limits.ask(self.peer);
        let answer =
            hs.federation.backfill(self.peer, &self.room.room_id, wanted, BACKFILL_PAGE_EVENTS, left);
        if let Some(permit) = permit
            && !answer.as_ref().is_err_and(CallError::is_unreachable)
        {
            permit.answered();
        }
        answer
    }

    /// Puts fetched history before the event whose gap it fills: the newest right before it, older ones further. Whether
    /// anything was new, and whether something may come another time.
    fn receive_history(
        &mut self,
        history: &ShownHistory,
        place: Place,
        undecided: &[UndecidedEvent],
    ) -> Result<(bool, bool)> {
        let undecided: HashSet<&EventId> = undecided.iter().map(|event| &event.event_id).collect();
        let count = history.places;
        let below = self.hs.store.read(|db| db.room_below(self.room.key, place, count))?;
        let (mut came, mut is_delayed) = (false, false);
        for event in &history.events {
            let index = history.links.get(event.event_id()).map_or(0, |link| link.index);
            let place = Place { stream: place.stream, sub: below - count + index };
            let source = match undecided.contains(event.event_id()) {
                true => EventSource::BackfillUnjudged(place),
                false => EventSource::Backfill(place),
            };
            match self.receive_linked(event, source, &history.links) {
                Ok(Received::Stored { already, .. }) => came |= !already,
                Ok(Received::NeedsTime(_)) => is_delayed = true,
                Ok(Received::NeedsAuth(_) | Received::NeedsPrev) => {}
                Err(e) => {
                    log::debug!("{} does not come from {}: {e}", event.event_id(), self.peer);
                    is_delayed |= e.is_own_failure() || e.status() == 504;
                }
            }
        }
        Ok((came, is_delayed))
    }
}
