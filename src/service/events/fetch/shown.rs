//! What another server shows of a room's past: events that are verified, and among them such as are not, since the keys of
//! servers that are gone are not to be had any more, or since a signature is wrong.
//!
//! Those are not kept, not shown to anybody, and no event rests on them. But they do not end the history: from room
//! version 3 on an event's id is the hash of what it says of its place in the graph, so that whoever cites it says
//! with it what comes before. Where the id is no hash (versions 1 and 2) a server could write anything there; it
//! could as well say anything of the state before an event, or leave out what it likes, and every event that it shows
//! behind it still has to be signed, and allowed by its auth events.
//!
//! The state after an event that is no state event is the state before it, so that what follows one that cannot be
//! verified mostly needs nobody's word for its own. Where a state event cannot be verified it is not in the states that
//! follow: nor would it be in those that another server says, whose events are checked like any.

use std::collections::{HashMap, HashSet};
use std::ops::Deref;
use std::time::Duration;

use super::Fetch;
use super::gap::{in_order, reached_from};
use crate::error::Result;
use crate::federation::calls::RawEvent;
use crate::order;
use crate::protocol::room_version::EventIdFormat;
use crate::protocol::{EventId, Pdu, ServerName, VerifiedPdu};
use crate::service::events::accept::EventSource;
use crate::service::events::policy_server::UndecidedEvent;
use crate::service::events::resolve::{ResolutionBudget, StateSet, resolve};
use crate::service::keys::verify::Checked;
use crate::store::rooms::state::StateRef;
use crate::store::{Db, Room, SnapshotId};

/// How many events that cannot be verified are walked over in one go: a server can make up as many as it likes.
pub(super) const UNVERIFIED_MAX: usize = 1000;
/// Of how many of them the past is asked for at once.
const ENDS_ASKED_MAX: usize = 20;

/// An event that was shown.
pub(super) enum ShownEvent {
    Verified(VerifiedPdu),
    /// One that is not verified, and the servers whose keys could not be had for it.
    Unverified(Pdu, Vec<ServerName>),
}

impl Deref for ShownEvent {
    type Target = Pdu;

    fn deref(&self) -> &Pdu {
        match self {
            Self::Verified(pdu) => pdu,
            Self::Unverified(pdu, _) => pdu,
        }
    }
}

/// The events that were shown and lead back from those that were wanted.
pub(super) struct ShownHistory {
    /// Those that are verified, oldest first.
    pub events: Vec<VerifiedPdu>,
    /// Whether we lack any of them.
    pub is_news: bool,
    /// How all of them hang together.
    pub links: Links,
    /// How many places they take in the timeline: those that are not verified yet have theirs left free.
    pub places: i64,
    /// Those that are not verified, oldest first, with the servers whose keys could not be had.
    unverified: Vec<(Pdu, Vec<ServerName>)>,
    /// What these follow and nobody has shown yet.
    pub ends: Vec<EventId>,
}

/// Of each event how it hangs together with the others.
pub(super) type Links = HashMap<EventId, Link>;

/// What it takes to walk over an event that is not here.
pub(super) struct Link {
    prev_events: Vec<EventId>,
    is_state: bool,
    /// How many of the others that we lack come before it.
    pub index: i64,
}

impl Fetch<'_> {
    /// The events of an answer that belong to the room and are none but what they seem to be, verified or not. What we
    /// have verified before is, whoever vouched for it.
    pub(super) fn shown(&self, events: &[RawEvent], within: Duration) -> Result<Vec<ShownEvent>> {
        let bytes: Vec<&[u8]> = events.iter().map(|event| event.get().as_bytes()).collect();
        let checked = self.hs.keys().check_received(self.peer, &bytes, self.room.version, within);
        let mut shown = Vec::with_capacity(events.len());
        for (checked, bytes) in checked.into_iter().zip(bytes) {
            let (pdu, awaited) = match checked {
                Checked::Passed(pdu) => {
                    shown.push(ShownEvent::Verified(pdu));
                    continue;
                }
                Checked::NoKey(pdu, servers) => {
                    self.keyless.borrow_mut().add(&pdu);
                    (pdu, servers)
                }
                Checked::Dropped(e) => {
                    log::debug!("{} sent an event that fails: {e}", self.peer);
                    let Ok(pdu) = Pdu::parse(bytes, self.room.version) else { continue };
                    (pdu, Vec::new())
                }
            };
            let known = self.hs.store.read(|db| db.verified_event(&self.room, pdu.event_id()))?;
            shown.push(known.map_or(ShownEvent::Unverified(pdu, awaited), ShownEvent::Verified));
        }
        shown.retain(|event| event.room_id() == &self.room.room_id);
        Ok(shown)
    }

    /// Those of the events that lead back from the wanted ones.
    pub(super) fn leading_to(&self, wanted: &[EventId], shown: Vec<ShownEvent>) -> Result<ShownHistory> {
        let shown = in_order(shown, Pdu::prev_events);
        self.hs.store.read(|db| {
            let (reached, known) = reached_from(db, wanted, &shown)?;
            let mut history = ShownHistory {
                events: Vec::new(),
                is_news: false,
                links: Links::new(),
                places: 0,
                unverified: Vec::new(),
                ends: Vec::new(),
            };
            let mut cited = Vec::new();
            for event in shown.into_iter().filter(|event| reached.contains(event.event_id())) {
                let (id, prev_events) = (event.event_id().clone(), event.prev_events().to_vec());
                let link = Link { prev_events, is_state: event.is_state(), index: history.places };
                history.places += i64::from(!known.contains(&id));
                history.links.insert(id.clone(), link);
                match event {
                    ShownEvent::Verified(pdu) => {
                        history.is_news |= !known.contains(&id);
                        history.events.push(pdu);
                    }
                    ShownEvent::Unverified(pdu, awaited) => {
                        cited.extend_from_slice(pdu.prev_events());
                        history.unverified.push((pdu, awaited));
                    }
                }
            }
            cited.retain(|id| !history.links.contains_key(id));
            order::sort(&mut cited);
            cited.dedup();
            history.ends = db.unplaced(&cited)?;
            history.ends.truncate(ENDS_ASKED_MAX);
            Ok(history)
        })
    }
}

impl ShownHistory {
    /// How many of the events are not verified.
    pub(super) fn unverified(&self) -> usize {
        self.unverified.len()
    }

    /// The servers whose keys could not be had.
    pub(super) fn keys_of(&self) -> Vec<ServerName> {
        let mut servers: Vec<ServerName> =
            self.unverified.iter().flat_map(|(_, servers)| servers.iter().cloned()).collect();
        order::sort(&mut servers);
        servers.dedup();
        servers
    }

    /// Takes events for such as cannot be verified: nothing is said of them yet, and what is before them is received.
    pub(super) fn set_aside(&mut self, undecided: &[UndecidedEvent]) {
        let awaited = |event: &VerifiedPdu| {
            let found = undecided.iter().find(|undecided| undecided.event_id == *event.event_id());
            found.map(|undecided| undecided.policy_server.clone())
        };
        for event in std::mem::take(&mut self.events) {
            match awaited(&event) {
                Some(policy_server) => self.unverified.push((Pdu::clone(&event), vec![policy_server])),
                None => self.events.push(event),
            }
        }
        order::sort_by_key(&mut self.unverified, |(event, _)| {
            self.links.get(event.event_id()).map_or(0, |link| link.index)
        });
    }

    /// All of the events, to be put together with others.
    pub(super) fn into_shown(self) -> Vec<ShownEvent> {
        let unverified =
            self.unverified.into_iter().map(|(pdu, awaited)| ShownEvent::Unverified(pdu, awaited));
        self.events.into_iter().map(ShownEvent::Verified).chain(unverified).collect()
    }

    /// The gaps at events that cannot be verified for want of a key, behind which nothing is lacking; each with the servers
    /// whose key that is.
    pub(super) fn closed_gaps(&self, db: &Db<'_>, room: &Room) -> Result<Vec<(EventId, Vec<ServerName>)>> {
        let (mut passed, mut gaps): (HashSet<&EventId>, _) = (HashSet::new(), Vec::new());
        for (event, awaited) in &self.unverified {
            let id = event.event_id();
            if !db.unplaced(event.prev_events())?.iter().all(|id| passed.contains(id)) {
                continue;
            }
            passed.insert(id);
            if !awaited.is_empty() && db.gap(room.key, id)?.is_some() {
                gaps.push((id.clone(), awaited.clone()));
            }
        }
        Ok(gaps)
    }
}

/// The state before an event that follows others which cannot be verified, by the states from before these. None if
/// something else is lacking, or if that would be more work than is wanted. What has just been said counts by itself only:
/// it is looked for no further than events whose ids say what they are, and that are no state events.
pub(super) fn state_across(
    db: &Db<'_>,
    room: &Room,
    (pdu, source): (&Pdu, EventSource),
    links: &Links,
) -> Result<Option<StateRef>> {
    let is_news = source == EventSource::Transaction;
    if is_news && room.version.event_id_format == EventIdFormat::InEvent {
        return Ok(None);
    }
    let mut next: Vec<&EventId> = pdu.prev_events().iter().collect();
    let (mut seen, mut states): (HashSet<&EventId>, Vec<SnapshotId>) = (HashSet::new(), Vec::new());
    while let Some(id) = next.pop() {
        if !seen.insert(id) {
            continue;
        }
        let state = db.previous_event(id)?.filter(|event| event.room == room.key);
        match (state.and_then(|event| event.state_after), links.get(id)) {
            (Some(state), _) => states.push(state),
            (None, Some(link)) if !(link.prev_events.is_empty() || is_news && link.is_state) => {
                next.extend(&link.prev_events);
            }
            (None, _) => return Ok(None),
        }
    }
    order::sort(&mut states);
    states.dedup();
    let sets = states.into_iter().map(|state| StateSet { state: StateRef::snapshot(state), unstored: None });
    resolve(db, room.version, sets.collect(), ResolutionBudget::Bounded)
}
