//! Events that others refer to and that we do not have: fetched from the servers of the room, within bounds.
//!
//! A gap is filled from our forward extremities on (`get_missing_events`, again and again while it goes on). Behind
//! one that is too large, or that nobody fills, the event is authorised by the state that another server says was
//! before it (`state_ids`, then `event` or `state`), resolved with the states that we know. Such a state may let an
//! event in that its auth events allow, and rejects none: the next server may say otherwise, and what was missing may
//! come. What lies in the gap can be fetched later (`backfill.rs`), when a client pages back to it. Auth events come in
//! every way that there is, the cheapest first: `event_auth`, a few by `event`, with the gap, with the state before the
//! event, many by `event`; what one way or one server gives in parts is put together. What is fetched is checked like anything that comes, in
//! bulk. An event for which nobody has what it needs waits (`incoming/pending.rs`).
//!
//! - here: one fetch, and the state before an event; `gap`: what lies between; `auth_chains`: the ways to auth events;
//!   `backfill`: history for clients; `shown`: what is shown of the past, verified or not; `unfilled`: gaps that nobody
//!   fills; `lost`: what a backup had not yet; `shut_out`: the removal of our last user, of which nobody tells us more;
//!   `vouched`: auth events of servers that are gone; `vouchers`: by whose word; `limits`: what is being fetched, and whom it is no use to ask.

pub(in crate::service) mod auth_chains;
pub mod backfill;
mod gap;
pub mod limits;
mod lost;
mod shown;
mod shut_out;
mod unfilled;
mod vouched;
mod vouchers;

use std::cell::RefCell;
use std::collections::HashSet;
use std::time::{Duration, Instant};

use super::authorise;
use crate::error::{ErrCode, Error, Result};
use crate::federation::CallError;
use crate::federation::calls::RawEvent;
use crate::order;
use crate::protocol::state_res::StateMap;
use crate::protocol::{EventId, ServerName, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::events::Events;
use crate::service::events::accept::{EventSource, Received, too_much_work};
use crate::service::events::fetch::auth_chains::{AUTH_FETCH_METHODS, AuthFetchMethod, UndecidedEvents};
use crate::service::events::fetch::shown::{Links, state_across};
use crate::service::events::fetch::vouched::KeylessEvents;
use crate::service::events::server_acl::RoomAcl;
use crate::service::keys::verify::Checked;
use crate::store::rooms::not_resident;
use crate::store::{Db, Room, Status};

/// How many events of a gap may have their state asked for: places where other forks begin.
pub(in crate::service) const STATES_ASKED_MAX: usize = 3;
/// Up to so many missing events of a state or an auth chain are fetched one by one, more as a whole.
pub(in crate::service) const ONE_BY_ONE_MAX: usize = 30;
/// Where the whole is not to be had, this many are fetched one by one after all, for everything that one event needs.
pub(in crate::service) const ONE_BY_ONE_FALLBACK_MAX: usize = 500;
/// How many events are stored in one commit, with a place.
const COMMIT_EVENTS_MAX: usize = 50;
/// How many servers are asked for one event before it is put off.
const SERVERS_ASKED_MAX: usize = 4;

/// For how long one event may keep us asking for what it refers to.
const RECEIVE_TIMEOUT: Duration = Duration::from_secs(120);

/// What is fetched from one server, for one event.
pub(in crate::service) struct Fetch<'a> {
    pub(in crate::service) hs: &'a Homeserver,
    pub(in crate::service) peer: &'a ServerName,
    pub(in crate::service) room: Room,
    until: Instant,
    pub(in crate::service) states_left: usize,
    events_left: usize,
    pub(in crate::service) undecided: UndecidedEvents,
    /// What the server was asked for and does not have.
    pub(in crate::service) not_there: HashSet<EventId>,
    keyless: RefCell<KeylessEvents>,
    /// Whether it says that we are not in the room.
    shuts_us_out: bool,
}

/// What came of asking for what an event refers to.
pub(in crate::service) enum Fetched {
    /// The event was received, or refused for good.
    Received(Result<Received>),
    /// Nobody has what it needs, or has it in time. `asked`: whether anybody could be asked at all.
    Nothing { asked: bool },
}

impl Events<'_> {
    /// Receives a checked event that a server of the room sent us, fetching what it refers to if need be. Errors: 403
    /// `M_FORBIDDEN` if it is rejected, 404 `M_NOT_FOUND` for an unknown room, 502 if what it refers to is not to be
    /// had.
    pub fn receive_pdu(&self, origin: &ServerName, pdu: VerifiedPdu) -> Result<()> {
        if !self.store.read(|db| Ok(db.resident_room(pdu.room_id())?.is_some()))? {
            return Err(not_resident());
        }
        let mut outcome = self.receive_event(&pdu, EventSource::Transaction, None)?;
        if matches!(outcome, Received::NeedsAuth(_) | Received::NeedsPrev) {
            let room = self.store.read(|db| db.known_room(pdu.room_id()))?;
            let servers = self.servers_to_ask(&room, (origin, &pdu), 0)?;
            if let Fetched::Received(received) =
                self.receive_with_missing(&servers, &pdu, Instant::now() + RECEIVE_TIMEOUT)?
            {
                outcome = received?;
            }
        }
        match outcome {
            Received::Stored { status: Status::Rejected, reason, .. } => {
                Err(reason.unwrap_or_else(|| Error::forbidden("The event was rejected before")))
            }
            Received::Stored { .. } => Ok(()),
            Received::NeedsTime(rest) => Err(too_much_work(rest)),
            Received::NeedsAuth(_) | Received::NeedsPrev => {
                Err(Error::bad_gateway(format!("{origin} does not have what the event refers to")))
            }
        }
    }

    /// Receives an event after fetching what it refers to: from these servers in turn, until one has it. Errors: 500.
    pub(in crate::service) fn receive_with_missing(
        &self,
        servers: &[ServerName],
        pdu: &VerifiedPdu,
        until: Instant,
    ) -> Result<Fetched> {
        let room = self.store.read(|db| db.known_room(pdu.room_id()))?;
        let (mut asked, mut is_shut_out) = (false, false);
        let mut undecided = self.fetch_limits.take_undecided(&room.room_id);
        for (index, peer) in servers.iter().enumerate() {
            let Some(permit) = self.fetch_limits.ask(peer) else { continue };
            let Some(_turn) = self.fetch_limits.begin(room.key, peer, until) else {
                // Another fetch holds it, and is told whether it answers.
                permit.answered();
                continue;
            };
            asked = true;
            // Whoever lets us wait leaves half of the time for the others.
            let left = until.saturating_duration_since(Instant::now());
            let share = if index + 1 < servers.len() { left / 2 } else { left };
            let mut fetch = Fetch::new(self, peer, &room, Instant::now() + share);
            fetch.undecided = undecided;
            let received = fetch.receive_with_missing(pdu);
            is_shut_out |= fetch.shuts_us_out;
            undecided = fetch.undecided;
            match received {
                Err(e) if e.is_own_failure() => return Err(e),
                Err(e) => {
                    log::debug!("{} is not to be had with the help of {peer}: {e}", pdu.event_id());
                    // Whoever is not reached, or uses up the time, is not asked again at once.
                    if e.status() != 504 {
                        permit.answered();
                    }
                }
                Ok(Received::NeedsAuth(_) | Received::NeedsPrev) => permit.answered(),
                Ok(received) => {
                    permit.answered();
                    return Ok(Fetched::Received(Ok(received)));
                }
            }
            if Instant::now() >= until {
                break;
            }
        }
        // What was fetched in parts may suffice by now, or have shown that the event has no business here.
        let received = self.receive_event(pdu, EventSource::Transaction, None);
        if matches!(received, Ok(Received::NeedsAuth(_) | Received::NeedsPrev)) {
            self.fetch_limits.keep_undecided(&room.room_id, undecided);
        }
        match received {
            Err(e) if e.is_own_failure() => Err(e),
            Ok(Received::NeedsPrev) if is_shut_out => match self.receive_last_word(pdu)? {
                Some(received) => Ok(Fetched::Received(Ok(received))),
                None => Ok(Fetched::Nothing { asked }),
            },
            Ok(Received::NeedsAuth(_) | Received::NeedsPrev) => Ok(Fetched::Nothing { asked }),
            received => Ok(Fetched::Received(received)),
        }
    }

    /// Whom to ask for what an event refers to: its sender's server, if that is in the room, which has what it rests on
    /// and no reason to have it rejected; the one that sent it; then the others in the room, beginning with another one
    /// at every attempt. Not those that the room keeps out, or that did not answer lately.
    pub(in crate::service) fn servers_to_ask(
        &self,
        room: &Room,
        (origin, pdu): (&ServerName, &VerifiedPdu),
        attempts: u32,
    ) -> Result<Vec<ServerName>> {
        let (acl, residents) =
            self.store.read(|db| Ok((RoomAcl::of(db, room)?, db.resident_servers(room.key)?)))?;
        let mut servers = vec![pdu.sender().server(), origin.clone()];
        if !residents.contains(&servers[0]) {
            servers.reverse();
        }
        let first = usize::try_from(attempts).unwrap_or(0) % residents.len().max(1);
        servers.extend(residents.iter().cycle().skip(first).take(residents.len()).cloned());
        let mut seen = HashSet::new();
        servers.retain(|server| {
            server != self.server_name()
                && seen.insert(server.clone())
                && acl.allows(server)
                && self.fetch_limits.pauses_until(server).is_none()
        });
        // A server that does not take what we send hardly answers, but may be the only one: it comes last.
        order::sort_by_key(&mut servers, |server| server != origin && self.outgoing.is_pausing(server));
        servers.truncate(SERVERS_ASKED_MAX);
        Ok(servers)
    }
}

impl<'a> Fetch<'a> {
    pub(in crate::service) fn new(
        hs: &'a Homeserver,
        peer: &'a ServerName,
        room: &Room,
        until: Instant,
    ) -> Self {
        let (states_left, events_left) = (STATES_ASKED_MAX, ONE_BY_ONE_FALLBACK_MAX);
        Self {
            hs,
            peer,
            room: room.clone(),
            until,
            states_left,
            events_left,
            undecided: UndecidedEvents::new(),
            not_there: HashSet::new(),
            keyless: RefCell::default(),
            shuts_us_out: false,
        }
    }

    fn receive_with_missing(&mut self, pdu: &VerifiedPdu) -> Result<Received> {
        let (mut methods, mut asked_for_events) = (AUTH_FETCH_METHODS.into_iter(), false);
        let mut asked_for_word = false;
        loop {
            // Whoever was here before us may have brought it along.
            match self.hs.events().receive_event(pdu, EventSource::Transaction, None)? {
                Received::NeedsAuth(ids) => match methods.next() {
                    Some(AuthFetchMethod::Gap) if asked_for_events || !self.has_gap(pdu)? => {}
                    Some(AuthFetchMethod::Gap) => {
                        asked_for_events = true;
                        self.fill_gap(pdu)?;
                    }
                    Some(method) => self.fetch_auth_by(method, pdu, &ids)?,
                    None if !asked_for_word && self.take_by_word(&ids)? => asked_for_word = true,
                    None => return Ok(Received::NeedsAuth(ids)),
                },
                Received::NeedsPrev if !asked_for_events && self.has_gap(pdu)? => {
                    asked_for_events = true;
                    self.fill_gap(pdu)?;
                }
                Received::NeedsPrev => return self.receive_with_state(pdu, EventSource::Transaction),
                received => return Ok(received),
            }
        }
    }

    /// Takes down that the server says that we are not in the room, if that is what it says.
    pub(in crate::service) fn note_refusal(&mut self, error: &CallError) {
        self.shuts_us_out |= error.errcode() == Some(ErrCode::Forbidden);
    }

    /// The time that is left. Errors: 504 if it is over.
    pub(in crate::service) fn left(&self) -> Result<Duration> {
        let left = self.until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            let message = format!("{} takes too long to give what an event refers to", self.peer);
            return Err(Error::bad_gateway(message).with_status(504));
        }
        Ok(left)
    }

    /// The events of an answer that pass the first checks and belong to the room; what does not is left out.
    pub(in crate::service) fn checked(&self, events: &[RawEvent]) -> Vec<VerifiedPdu> {
        let bytes: Vec<&[u8]> = events.iter().map(|event| event.get().as_bytes()).collect();
        let left = self.until.saturating_duration_since(Instant::now());
        let checked = self.hs.keys().check_received(self.peer, &bytes, self.room.version, left);
        let passed = checked.into_iter().filter_map(|checked| match checked {
            Checked::Passed(pdu) => Some(pdu),
            Checked::NoKey(pdu, _) => {
                log::debug!("{} cannot be checked for want of a key", pdu.event_id());
                self.keyless.borrow_mut().add(&pdu);
                None
            }
            Checked::Dropped(e) => {
                log::debug!("{} sent an event that fails: {e}", self.peer);
                None
            }
        });
        passed.filter(|pdu| pdu.room_id() == &self.room.room_id).collect()
    }

    /// Receives events that were fetched for another one, as many as possible in one commit. `links`: how what was fetched
    /// hangs together.
    fn receive_fetched(&mut self, events: &[VerifiedPdu], links: &Links) -> Result<()> {
        let mut rest = events;
        while !rest.is_empty() {
            self.left()?;
            let batch = &rest[..rest.len().min(COMMIT_EVENTS_MAX)];
            let whole = batch.len();
            let received = self.hs.events().receive_batch(batch)?;
            for failed in received.iter().filter_map(|received| received.as_ref().err()) {
                log::debug!("{} sent an event for another one that is refused: {failed}", self.peer);
            }
            rest = &rest[received.len().min(rest.len())..];
            if received.len() < whole
                && let Some((heavy, left)) = rest.split_first()
            {
                self.receive_single(heavy, links)?;
                rest = left;
            }
        }
        Ok(())
    }

    /// Receives an event that was fetched for another one. What cannot be had for it is not asked for twice.
    fn receive_single(&mut self, event: &VerifiedPdu, links: &Links) -> Result<()> {
        match self.receive_linked(event, EventSource::Transaction, links) {
            // Our own trouble; the other server's events may be refused one by one.
            Err(e) if e.is_own_failure() => Err(e),
            _ => Ok(()),
        }
    }

    /// Receives an event that was fetched with others: with the auth events that it takes, and where it follows something
    /// that is not here, with the state before that, or else with the one that the other server says, a few times.
    fn receive_linked(
        &mut self,
        event: &VerifiedPdu,
        source: EventSource,
        links: &Links,
    ) -> Result<Received> {
        let events = self.hs.events();
        let mut received = events.receive_event(event, source, None)?;
        if let Received::NeedsAuth(ids) = received {
            self.fetch_auth_events(event, &ids)?;
            received = events.receive_event(event, source, None)?;
        }
        if matches!(received, Received::NeedsPrev) {
            let state = |db: &Db<'_>| state_across(db, &self.room, (event, source), links);
            if let Some(state) = self.hs.store.read(state)? {
                received = events.receive_event(event, source, Some(&state))?;
            }
        }
        if matches!(received, Received::NeedsPrev) && self.states_left > 0 {
            self.states_left -= 1;
            received = self.receive_with_state(event, source)?;
        }
        Ok(received)
    }

    /// Receives an event by the state that the other server says was before it. One that is not in the room has no say
    /// in what the room's state was: it could put as many memberships of its own users there as it likes, which the
    /// rules let anybody have (knocks, say). Then the servers of the room are asked, sooner or later.
    pub(in crate::service) fn receive_with_state(
        &mut self,
        pdu: &VerifiedPdu,
        source: EventSource,
    ) -> Result<Received> {
        if source == EventSource::Transaction
            && !self.hs.store.read(|db| db.is_resident(self.room.key, self.peer))?
        {
            return Ok(Received::NeedsPrev);
        }
        let given = self.fetch_state(pdu.event_id())?;
        let given = self.hs.store.read(|db| authorise::given_state(db, pdu.room_id(), &given))?;
        let mut received = self.hs.events().receive_event(pdu, source, Some(&given))?;
        if let Received::NeedsAuth(ids) = received {
            self.fetch_auth_events(pdu, &ids)?;
            received = self.hs.events().receive_event(pdu, source, Some(&given))?;
        }
        Ok(received)
    }

    /// The state before an event as the other server has it, all of its events stored. What fails the checks, or is not
    /// to be had, is left out.
    pub(in crate::service) fn fetch_state(&mut self, at: &EventId) -> Result<StateMap> {
        let (peer, room_id, federation) = (self.peer, self.room.room_id.clone(), &self.hs.federation);
        let ids = match federation.state_ids(peer, &room_id, at, self.left()?) {
            Ok(ids) => ids,
            Err(e) => {
                self.note_refusal(&e);
                return Err(e.into_client_error(peer));
            }
        };
        let mut all = ids.pdu_ids.clone();
        all.extend(ids.auth_chain_ids);
        let lacking = self.wanting(&all)?;
        let are_few = lacking.len() <= ONE_BY_ONE_MAX;
        if are_few {
            self.fetch_outliers(&lacking)?;
        }
        if !are_few || !self.wanting(&all)?.is_empty() {
            match federation.state(peer, &room_id, at, self.left()?) {
                Ok(whole) => {
                    let mut events = self.checked(&whole.auth_chain);
                    events.extend(self.checked(&whole.pdus));
                    self.store_outliers(events)?;
                }
                Err(e) => {
                    let error = e.into_client_error(peer);
                    if error.status() == 504 || lacking.len() > self.events_left {
                        return Err(error);
                    }
                    if !are_few {
                        self.fetch_outliers(&lacking)?;
                    }
                }
            }
        }
        self.hs.store.read(|db| state_of(db, &self.room, &ids.pdu_ids))
    }

    fn fetch_outliers(&mut self, ids: &[EventId]) -> Result<()> {
        let events = self.fetch_events(ids)?;
        self.store_outliers(events)
    }

    /// Those of the events that we do not have at all, each once.
    pub(in crate::service) fn lacking(&self, ids: &[EventId]) -> Result<Vec<EventId>> {
        let mut lacking = self.hs.store.read(|db| {
            let known = db.has_events(ids)?;
            Ok(ids
                .iter()
                .zip(known)
                .filter(|(_, known)| !known)
                .map(|(id, _)| id.clone())
                .collect::<Vec<_>>())
        })?;
        order::sort(&mut lacking);
        lacking.dedup();
        Ok(lacking)
    }

    /// Fetches events one by one. What is not to be had, or is not what was asked for, is left out.
    pub(in crate::service) fn fetch_events(&mut self, ids: &[EventId]) -> Result<Vec<VerifiedPdu>> {
        let mut events = Vec::new();
        for id in ids {
            if self.events_left == 0 {
                break;
            }
            self.events_left -= 1;
            match self.hs.federation.event(self.peer, id, self.left()?) {
                Ok(event) => {
                    events.extend(self.checked(&[event]).into_iter().filter(|event| event.event_id() == id));
                }
                Err(e) if e.is_transient() => return Err(e.into_client_error(self.peer)),
                Err(_) => {}
            }
        }
        Ok(events)
    }
}

/// The state that these events make, as far as we have them and they were not rejected.
fn state_of(db: &Db<'_>, room: &Room, ids: &[EventId]) -> Result<StateMap> {
    let mut state = StateMap::new();
    for id in ids {
        let Some(event) = db.event(id)? else { continue };
        let is_strange = event.pdu.is("m.room.create", "") && !authorise::is_create_of(db, room, id)?;
        let fits = event.room == room.key && event.status != Status::Rejected && !is_strange;
        if let (true, Some(state_key)) = (fits, event.pdu.state_key_arc()) {
            state.insert((event.pdu.event_type_arc().clone(), state_key.clone()), id.clone());
        }
    }
    Ok(state)
}
