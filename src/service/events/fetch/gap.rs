//! Gaps: events that others follow and that we do not have. What lies between our forward extremities and an event is
//! asked for (`get_missing_events`) and put in order.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;

use super::Fetch;
use super::shown::{ShownEvent, UNVERIFIED_MAX};
use crate::error::Result;
use crate::order;
use crate::protocol::{EventId, Pdu, VerifiedPdu};
use crate::store::Db;

/// How many missing events are asked for at once. Some servers give no more than 10 or 20.
const GAP_PAGE_EVENTS: usize = 50;
/// How often more of the same gap is asked for, and how much of it is held in memory until it can be received.
const GAP_PAGES_MAX: usize = 100;
const GAP_EVENTS_MAX: usize = 2000;
const GAP_BYTES_MAX: usize = 16 << 20;

impl Fetch<'_> {
    pub(super) fn has_gap(&self, pdu: &Pdu) -> Result<bool> {
        self.hs.store.read(|db| Ok(!db.unplaced(pdu.prev_events())?.is_empty()))
    }

    /// Fetches what lies between our forward extremities and the event, and receives it, oldest first.
    pub(super) fn fill_gap(&mut self, pdu: &VerifiedPdu) -> Result<()> {
        let extremities = self.hs.store.read(|db| db.forward_extremities(self.room.key))?;
        let earliest: Vec<EventId> =
            extremities.into_iter().rev().map(|extremity| extremity.event_id).take(GAP_PAGE_EVENTS).collect();
        let mut latest = vec![pdu.event_id().clone()];
        let (mut found, mut bytes): (HashMap<EventId, ShownEvent>, usize) = (HashMap::new(), 0);
        let mut unverified = 0;
        for _ in 0..GAP_PAGES_MAX {
            let (room_id, left) = (&self.room.room_id, self.left()?);
            let answer = self.hs.federation.get_missing_events(
                self.peer,
                room_id,
                &earliest,
                &latest,
                GAP_PAGE_EVENTS,
                left,
            );
            let events = match answer {
                Ok(events) => events,
                Err(e) => {
                    self.note_refusal(&e);
                    let error = e.into_client_error(self.peer);
                    if error.status() == 504 {
                        return Err(error);
                    }
                    // There is another way: the state before the event.
                    log::info!("{} gives no missing events: {}", self.peer, error.message());
                    break;
                }
            };
            let before = found.len();
            let shown = self.shown(&events, self.left()?)?;
            for event in shown.into_iter().filter(|e| e.event_id() != pdu.event_id()) {
                bytes += event.json().len();
                let is_unverified = matches!(event, ShownEvent::Unverified(..));
                if found.insert(event.event_id().clone(), event).is_none() && is_unverified {
                    unverified += 1;
                }
            }
            let is_enough = found.len() >= GAP_EVENTS_MAX || unverified >= UNVERIFIED_MAX;
            if found.len() == before || is_enough || bytes >= GAP_BYTES_MAX {
                break;
            }
            latest = self.gap_ends(&found)?;
            if latest.is_empty() {
                break;
            }
        }
        let mut history = self.leading_to(pdu.prev_events(), found.into_values().collect())?;
        let events = &mut history.events;
        for event in events.iter() {
            self.hs.knock_budget.count_knock_from(self.hs, self.peer, &self.room, event, true)?;
        }
        self.hs.events().with_policy_signatures(&mut [(&self.room, events)], Some(self.until))?;
        self.receive_fetched(&history.events, &history.links)
    }

    /// Those of the events that follow others which are neither here nor among them, the deepest first.
    fn gap_ends(&self, found: &HashMap<EventId, ShownEvent>) -> Result<Vec<EventId>> {
        let mut ends: Vec<&ShownEvent> = Vec::new();
        self.hs.store.read(|db| {
            for event in found.values() {
                let unplaced = db.unplaced(event.prev_events())?;
                if unplaced.iter().any(|id| !found.contains_key(id)) {
                    ends.push(event);
                }
            }
            Ok(())
        })?;
        order::sort_by_key(&mut ends, |event| std::cmp::Reverse(event.depth()));
        Ok(ends.into_iter().take(GAP_PAGE_EVENTS).map(|event| event.event_id().clone()).collect())
    }
}

/// Sorts events so that each comes after those of the others that it refers to; among equals by depth. What refers to
/// itself in a circle is left out.
pub(super) fn in_order<E: Deref<Target = Pdu>>(events: Vec<E>, references: fn(&Pdu) -> &[EventId]) -> Vec<E> {
    let mut by_id: HashMap<EventId, E> = HashMap::new();
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

/// Of events in order the ids of those that lead back from the wanted ones, up to those that have their place in the graph
/// already, and which these are. A server may send others, which have no place there. What lies before a known event is for
/// the gap before that one.
pub(super) fn reached_from<E: Deref<Target = Pdu>>(
    db: &Db<'_>,
    wanted: &[EventId],
    sorted: &[E],
) -> Result<(HashSet<EventId>, HashSet<EventId>)> {
    let mut reached: HashSet<EventId> = wanted.iter().cloned().collect();
    let mut known = HashSet::new();
    for event in sorted.iter().rev() {
        if !reached.contains(event.event_id()) {
            continue;
        }
        if db.event_status(event.event_id())?.is_some_and(|(_, outlier)| !outlier) {
            known.insert(event.event_id().clone());
        } else {
            reached.extend(event.prev_events().iter().cloned());
        }
    }
    Ok((reached, known))
}
