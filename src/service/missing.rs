//! Events that others refer to and that we do not have: fetched from the server that referred to them, within bounds.
//!
//! A hole of a few events is filled (`get_missing_events`). Behind a larger one the event is judged by the state that
//! the other server says was before it (`state_ids`), resolved with the states that we know; what lies in the hole can
//! be fetched later (`backfill`), when a client pages back to it. One errand a room at a time.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::Homeserver;
use super::ingest::{Taken, Terms};
use crate::error::{Error, Result};
use crate::federation::calls::RawEvent;
use crate::protocol::event_auth;
use crate::protocol::state_res::StateMap;
use crate::protocol::{EventId, Pdu, ServerName};
use crate::store::{Db, Place, Room, RoomKey, Status};

/// For how long one event may keep us asking.
const PATIENCE: Duration = Duration::from_secs(120);
/// How many events a hole may have to be filled at once.
const HOLE: usize = 50;
/// How many events of a hole may have their state asked for: places where other branches begin.
const MOST_STATES: usize = 3;
/// Up to so many missing events of a state are fetched one by one, more as a whole.
const ONE_BY_ONE: usize = 30;
/// How many events are stored in one commit.
const CHUNK: usize = 200;
/// How much history is fetched at once.
const PAGE: usize = 100;
/// For how long a hole that nobody could fill is left alone.
const AGAIN: Duration = Duration::from_secs(300);
/// How many such holes are remembered.
const MOST_IN_VAIN: usize = 1000;
/// How many servers are asked for history.
const MOST_ASKED: usize = 5;

/// For which room something is being fetched from which server. A slow server holds up its own events only.
#[derive(Default)]
pub struct Errands {
    busy: Mutex<HashSet<Walk>>,
    done: Condvar,
    /// Holes that nobody could fill, and when that was found out: not asked for again at once.
    in_vain: Mutex<HashMap<(RoomKey, Place), Instant>>,
}

type Walk = (RoomKey, ServerName);

impl Errands {
    /// Waits until nobody else fetches the same. None if that takes too long.
    fn begin(&self, room: RoomKey, peer: &ServerName, until: Instant) -> Option<Turn<'_>> {
        let walk = (room, peer.clone());
        let mut busy = self.busy.lock().unwrap_or_else(PoisonError::into_inner);
        while !busy.insert(walk.clone()) {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            busy = self.done.wait_timeout(busy, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        Some(Turn { errands: self, walk })
    }
}

impl Errands {
    fn was_in_vain(&self, hole: (RoomKey, Place)) -> bool {
        let in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        in_vain.get(&hole).is_some_and(|when| when.elapsed() < AGAIN)
    }

    fn note_in_vain(&self, hole: (RoomKey, Place)) {
        let mut in_vain = self.in_vain.lock().unwrap_or_else(PoisonError::into_inner);
        if in_vain.len() >= MOST_IN_VAIN {
            in_vain.clear();
        }
        in_vain.insert(hole, Instant::now());
    }
}

struct Turn<'e> {
    errands: &'e Errands,
    walk: Walk,
}

impl Drop for Turn<'_> {
    fn drop(&mut self) {
        self.errands.busy.lock().unwrap_or_else(PoisonError::into_inner).remove(&self.walk);
        self.errands.done.notify_all();
    }
}

/// One walk to another server, for one event.
struct Errand<'a> {
    hs: &'a Homeserver,
    peer: &'a ServerName,
    room: Room,
    until: Instant,
    states_left: usize,
}

impl Homeserver {
    /// Takes in an event after fetching what it refers to.
    pub(crate) fn take_in_with_missing(&self, origin: &ServerName, pdu: &Pdu) -> Result<Taken> {
        let until = Instant::now() + PATIENCE;
        let room = self.store.read(|db| db.known_room(pdu.room_id()))?;
        let busy = || Error::bad_gateway("Too much is being fetched for this room");
        let _turn = self.errands.begin(room.key, origin, until).ok_or_else(busy)?;
        let mut errand = Errand { hs: self, peer: origin, room, until, states_left: MOST_STATES };
        let (mut asked_for_auth, mut asked_for_events) = (false, false);
        loop {
            // Whoever was here before us may have brought it along.
            match self.take_in(pdu, Terms::Relayed, None)? {
                Taken::NeedsAuth(ids) if !asked_for_auth => {
                    asked_for_auth = true;
                    errand.fetch_auth_events(pdu, &ids)?;
                }
                Taken::NeedsPrev if !asked_for_events => {
                    asked_for_events = true;
                    errand.fill_hole(pdu)?;
                }
                Taken::NeedsPrev => return errand.take_in_with_state(pdu, Terms::Relayed),
                taken => return Ok(taken),
            }
        }
    }
}

impl Errand<'_> {
    fn check_time(&self) -> Result<()> {
        if Instant::now() < self.until {
            return Ok(());
        }
        Err(Error::bad_gateway(format!("{} takes too long to give what an event refers to", self.peer)))
    }

    /// The events of an answer that pass the first checks and belong to the room; what does not is left out.
    fn checked(&self, events: &[RawEvent]) -> Vec<Pdu> {
        let bytes: Vec<&[u8]> = events.iter().map(|event| event.get().as_bytes()).collect();
        let checked = self.hs.check_pdus(&bytes, self.room.version);
        checked
            .into_iter()
            .filter_map(|pdu| {
                pdu.inspect_err(|e| log::debug!("{} sent an event that fails: {e}", self.peer)).ok()
            })
            .filter(|pdu| pdu.room_id() == &self.room.room_id)
            .collect()
    }

    /// Fetches what lies between our forward extremities and the event, and takes it in, oldest first.
    fn fill_hole(&mut self, pdu: &Pdu) -> Result<()> {
        self.check_time()?;
        let heads = self.hs.store.read(|db| db.heads(self.room.key))?;
        let earliest: Vec<EventId> = heads.into_iter().map(|head| head.event_id).take(HOLE).collect();
        let latest = std::slice::from_ref(pdu.event_id());
        let room_id = &self.room.room_id;
        let answer = self.hs.federation.get_missing_events(self.peer, room_id, &earliest, latest, HOLE, 0);
        let events = match answer {
            Ok(events) => events,
            Err(e) => {
                // There is another way: the state before the event.
                log::info!(
                    "{} gives no missing events: {}",
                    self.peer,
                    e.into_client_error(self.peer).message()
                );
                return Ok(());
            }
        };
        let found = self.checked(&events).into_iter().filter(|event| event.event_id() != pdu.event_id());
        let found = self.hs.with_policy_signatures(&self.room, found.collect())?;
        for event in in_order(found, Pdu::prev_events) {
            self.check_time()?;
            self.take_in_along(&event)?;
        }
        Ok(())
    }

    /// Takes in an event that was fetched for another one. What cannot be had for it is not asked for twice.
    fn take_in_along(&mut self, event: &Pdu) -> Result<()> {
        let mut taken = self.hs.take_in(event, Terms::Relayed, None);
        if let Ok(Taken::NeedsAuth(ids)) = &taken {
            let ids = ids.clone();
            self.fetch_auth_events(event, &ids)?;
            taken = self.hs.take_in(event, Terms::Relayed, None);
        }
        if matches!(taken, Ok(Taken::NeedsPrev)) && self.states_left > 0 {
            self.states_left -= 1;
            taken = self.take_in_with_state(event, Terms::Relayed);
        }
        match taken {
            // Our own trouble; the other server's events may be refused one by one.
            Err(e) if e.status() == 500 => Err(e),
            _ => Ok(()),
        }
    }

    /// Takes in an event by the state that the other server says was before it.
    fn take_in_with_state(&mut self, pdu: &Pdu, terms: Terms) -> Result<Taken> {
        let given = self.fetch_state(pdu.event_id())?;
        match self.hs.take_in(pdu, terms, Some(&given))? {
            Taken::NeedsAuth(ids) => {
                self.fetch_auth_events(pdu, &ids)?;
                self.hs.take_in(pdu, terms, Some(&given))
            }
            taken => Ok(taken),
        }
    }

    /// The state before an event as the other server has it, all of its events stored. What fails the checks is left
    /// out.
    fn fetch_state(&self, at: &EventId) -> Result<StateMap> {
        self.check_time()?;
        let (peer, room_id) = (self.peer, &self.room.room_id);
        let ids = self.hs.federation.state_ids(peer, room_id, at).map_err(|e| e.into_client_error(peer))?;
        let mut all = ids.pdu_ids.clone();
        all.extend(ids.auth_chain_ids);
        let lacking = self.lacking(&all)?;
        if lacking.len() > ONE_BY_ONE {
            let whole = self.hs.federation.state(peer, room_id, at).map_err(|e| e.into_client_error(peer))?;
            let mut events = self.checked(&whole.auth_chain);
            events.extend(self.checked(&whole.pdus));
            self.store_outliers(events)?;
        } else {
            self.store_outliers(self.fetch_events(&lacking)?)?;
        }
        self.hs.store.read(|db| state_of(db, &self.room, &ids.pdu_ids))
    }

    /// Fetches the auth events of an event, and theirs, and stores them with the verdict on each.
    fn fetch_auth_events(&self, pdu: &Pdu, missing: &[EventId]) -> Result<()> {
        self.check_time()?;
        let answer = self.hs.federation.event_auth(self.peer, &self.room.room_id, pdu.event_id());
        match answer {
            Ok(chain) => self.store_outliers(self.checked(&chain))?,
            Err(e) => {
                log::info!("{} gives no auth chain: {}", self.peer, e.into_client_error(self.peer).message());
            }
        }
        let mut lacking = self.lacking(missing)?;
        let mut events = Vec::new();
        while !lacking.is_empty() && events.len() < ONE_BY_ONE {
            let found = self.fetch_events(&lacking)?;
            let next: Vec<EventId> = found.iter().flat_map(|event| event.auth_events().to_vec()).collect();
            events.extend(found);
            lacking = self.lacking(&next)?;
            lacking.retain(|id| events.iter().all(|event: &Pdu| event.event_id() != id));
        }
        self.store_outliers(events)
    }

    /// Those of the events that we do not have at all, each once.
    fn lacking(&self, ids: &[EventId]) -> Result<Vec<EventId>> {
        let mut lacking = self.hs.store.read(|db| {
            let known = db.has_events(ids)?;
            Ok(ids
                .iter()
                .zip(known)
                .filter(|(_, known)| !known)
                .map(|(id, _)| id.clone())
                .collect::<Vec<_>>())
        })?;
        lacking.sort_unstable();
        lacking.dedup();
        Ok(lacking)
    }

    /// Fetches events one by one. What is not to be had, or is not what was asked for, is left out.
    fn fetch_events(&self, ids: &[EventId]) -> Result<Vec<Pdu>> {
        let mut events = Vec::new();
        for id in ids.iter().take(ONE_BY_ONE) {
            self.check_time()?;
            match self.hs.federation.event(self.peer, id) {
                Ok(event) => {
                    events.extend(self.checked(&[event]).into_iter().filter(|event| event.event_id() == id));
                }
                Err(e) if e.is_transient() => return Err(e.into_client_error(self.peer)),
                Err(_) => {}
            }
        }
        Ok(events)
    }

    /// Stores events that are only referred to, each judged by its own auth events. Those whose auth events are not to
    /// be had are left out: nothing can be said of them.
    fn store_outliers(&self, events: Vec<Pdu>) -> Result<()> {
        let events = in_order(events, Pdu::auth_events);
        for chunk in events.chunks(CHUNK) {
            let (chunk, room) = (chunk.to_vec(), self.room.key);
            self.hs.store.write(move |tx| {
                let create = tx.state_event(room, "m.room.create", "")?;
                for pdu in &chunk {
                    if tx.event_key(pdu.event_id())?.is_none()
                        && let Some(status) = outlier_status(tx, pdu, create.as_ref())?
                    {
                        tx.insert_outlier(room, pdu, status)?;
                    }
                }
                Ok(())
            })?;
        }
        Ok(())
    }
}

/// The verdict on an event by its own auth events; none if they are not all here.
fn outlier_status(db: &Db<'_>, pdu: &Pdu, create: Option<&Pdu>) -> Result<Option<Status>> {
    if pdu.event_type() == "m.room.create" {
        let same = create.is_some_and(|create| create.event_id() == pdu.event_id());
        return Ok(Some(if same { Status::Accepted } else { Status::Rejected }));
    }
    let (mut auth, mut rejected) = (Vec::new(), HashSet::new());
    for id in pdu.auth_events() {
        let Some(event) = db.event(id)? else { return Ok(None) };
        if event.status == Status::Rejected {
            rejected.insert(id.clone());
        }
        auth.push(event.pdu);
    }
    if pdu.version().room_id_is_create_hash {
        auth.extend(create.cloned());
    }
    let verdict = event_auth::check_auth_events(pdu, &auth, &|id| rejected.contains(id), pdu.version())
        .and_then(|()| event_auth::check_against_auth_events(pdu, &auth, pdu.version()));
    Ok(Some(if verdict.is_ok() { Status::Accepted } else { Status::Rejected }))
}

/// The state that these events make, as far as we have them and they were not rejected.
fn state_of(db: &Db<'_>, room: &Room, ids: &[EventId]) -> Result<StateMap> {
    let mut state = StateMap::new();
    for id in ids {
        let Some(event) = db.event(id)? else { continue };
        let fits = event.room == room.key && event.status != Status::Rejected;
        if let (true, Some(state_key)) = (fits, event.pdu.state_key_arc()) {
            state.insert((event.pdu.event_type_arc().clone(), state_key.clone()), id.clone());
        }
    }
    Ok(state)
}

/// Sorts events so that each comes after those of the others that it refers to; among equals by depth. What refers to
/// itself in a circle is left out.
fn in_order(events: Vec<Pdu>, references: fn(&Pdu) -> &[EventId]) -> Vec<Pdu> {
    let mut by_id: HashMap<EventId, Pdu> = HashMap::new();
    for event in events {
        by_id.entry(event.event_id().clone()).or_insert(event);
    }
    let mut waiting: HashMap<EventId, usize> = HashMap::new();
    let mut followers: HashMap<EventId, Vec<EventId>> = HashMap::new();
    let mut ready: BTreeMap<(i64, EventId), ()> = BTreeMap::new();
    for (id, event) in &by_id {
        let mut before: Vec<&EventId> =
            references(event).iter().filter(|id| by_id.contains_key(*id)).collect();
        before.sort_unstable();
        before.dedup();
        for earlier in &before {
            followers.entry((*earlier).clone()).or_default().push(id.clone());
        }
        match before.len() {
            0 => {
                ready.insert((event.depth(), id.clone()), ());
            }
            count => {
                waiting.insert(id.clone(), count);
            }
        }
    }
    let mut sorted = Vec::with_capacity(by_id.len());
    while let Some(((_, id), ())) = ready.pop_first() {
        for follower in followers.remove(&id).unwrap_or_default() {
            let Some(count) = waiting.get_mut(&follower) else { continue };
            *count -= 1;
            if *count == 0
                && let Some(event) = by_id.get(&follower)
            {
                ready.insert((event.depth(), follower), ());
            }
        }
        sorted.extend(by_id.remove(&id));
    }
    sorted
}

impl Homeserver {
    /// Fetches history that clients ask for: what lies in the nearest hole at or before a place in the timeline. True
    /// if something came, so that looking again is worth it. Servers of the room are asked in turn; that none of them
    /// answers is no error.
    pub fn backfill(&self, room: &Room, before: Place) -> Result<bool> {
        let until = Instant::now() + PATIENCE / 4;
        let gaps = self.store.read(|db| db.gaps_between(room.key, Place::START, before, MOST_STATES))?;
        let Some(place) = gaps.first().map(|gap| gap.before) else { return Ok(false) };
        if self.errands.was_in_vain((room.key, place)) {
            return Ok(false);
        }
        let wanted: Vec<EventId> =
            gaps.into_iter().filter(|gap| gap.before == place).map(|gap| gap.event_id).collect();
        let Some(_turn) = self.errands.begin(room.key, self.server_name(), until) else { return Ok(false) };
        if self.store.read(|db| Ok(db.gap(room.key, &wanted[0])?.is_none()))? {
            return Ok(true);
        }
        let servers = self.store.read(|db| db.resident_servers(room.key))?;
        for peer in servers.iter().filter(|server| *server != self.server_name()).take(MOST_ASKED) {
            if Instant::now() >= until {
                break;
            }
            let Ok(events) = self.federation.backfill(peer, &room.room_id, &wanted, PAGE) else { continue };
            let mut errand = Errand { hs: self, peer, room: room.clone(), until, states_left: MOST_STATES };
            let events = errand.checked(&events);
            if errand.take_in_history(events, &wanted, place)? {
                return Ok(true);
            }
        }
        self.errands.note_in_vain((room.key, place));
        Ok(false)
    }
}

impl Homeserver {
    /// Fetches one event from amid the hole right before a place: first the history nearest to the place, which may have
    /// it, else the event alone with the state before it. True if the event has its place in the timeline now.
    pub(crate) fn fetch_past_event(
        &self,
        room: &Room,
        peer: &ServerName,
        id: &EventId,
        hole: Place,
    ) -> Result<bool> {
        let is_placed = || self.store.read(|db| Ok(db.event(id)?.is_some_and(|event| event.place.is_some())));
        if is_placed()? || (self.backfill(room, hole)? && is_placed()?) {
            return Ok(true);
        }
        let until = Instant::now() + PATIENCE / 4;
        let Some(_turn) = self.errands.begin(room.key, self.server_name(), until) else { return Ok(false) };
        // What was fetched meanwhile has made the hole smaller, or two of it.
        let hole = self.store.read(|db| db.gaps_between(room.key, Place::START, hole, 1))?;
        let Some(hole) = hole.first().map(|gap| gap.before) else { return is_placed() };
        let Some(place) = self.store.read(|db| db.place_amid(room.key, hole))? else { return Ok(false) };
        let mut errand = Errand { hs: self, peer, room: room.clone(), until, states_left: 1 };
        for event in errand.fetch_events(std::slice::from_ref(id))? {
            errand.take_in_past(&event, place)?;
        }
        is_placed()
    }
}

impl Errand<'_> {
    /// Puts fetched history before the event whose hole it fills: the newest right before it, older ones further.
    fn take_in_history(&mut self, events: Vec<Pdu>, wanted: &[EventId], place: Place) -> Result<bool> {
        let events = in_order(events, Pdu::prev_events);
        let known = self.hs.store.read(|db| placed(db, &events))?;
        let events = connected(events, wanted, &known);
        let count = i64::try_from(events.len()).unwrap_or(i64::MAX);
        let below = self.hs.store.read(|db| db.room_below(self.room.key, place, count))?;
        let mut came = false;
        for (index, event) in (0..).zip(&events) {
            came |= self.take_in_past(event, Place { stream: place.stream, sub: below - count + index })?;
        }
        Ok(came)
    }

    /// Takes in one event of the past. True if it was new and is accepted.
    fn take_in_past(&mut self, event: &Pdu, place: Place) -> Result<bool> {
        let terms = Terms::History(place);
        let mut taken = self.hs.take_in(event, terms, None);
        if let Ok(Taken::NeedsAuth(ids)) = &taken {
            let ids = ids.clone();
            self.fetch_auth_events(event, &ids)?;
            taken = self.hs.take_in(event, terms, None);
        }
        if matches!(taken, Ok(Taken::NeedsPrev)) && self.states_left > 0 {
            self.states_left -= 1;
            taken = self.take_in_with_state(event, terms);
        }
        Ok(matches!(taken, Ok(Taken::Stored { status: Status::Accepted, already: false, .. })))
    }
}

/// Those of the events that have their place in the graph already.
fn placed(db: &Db<'_>, events: &[Pdu]) -> Result<HashSet<EventId>> {
    let mut known = HashSet::new();
    for event in events {
        if db.event_status(event.event_id())?.is_some_and(|(_, outlier)| !outlier) {
            known.insert(event.event_id().clone());
        }
    }
    Ok(known)
}

/// Those of the events that lead back from the wanted ones, up to those that are known: a server may send others, which
/// have no place there. What lies before a known event is for the hole before that one.
fn connected(sorted: Vec<Pdu>, wanted: &[EventId], known: &HashSet<EventId>) -> Vec<Pdu> {
    let mut reached: HashSet<EventId> = wanted.iter().cloned().collect();
    for event in sorted.iter().rev() {
        if reached.contains(event.event_id()) && !known.contains(event.event_id()) {
            reached.extend(event.prev_events().iter().cloned());
        }
    }
    sorted.into_iter().filter(|event| reached.contains(event.event_id())).collect()
}
