//! Auth events that we lack: the ways to come by them, one after the other, from one server. What is fetched is
//! authorised by its own auth events and stored as an outlier; what cannot be authorised yet is kept until it can, or
//! the fetch is over.

use std::collections::{HashMap, HashSet};

use super::gap::in_order;
use super::{Fetch, ONE_BY_ONE_FALLBACK_MAX, ONE_BY_ONE_MAX};
use crate::error::Result;
use crate::protocol::{EventId, Pdu, VerifiedPdu};
use crate::store::{Db, Status};

/// Of how many missing auth events their own chains are asked for.
const CHAINS_ASKED_MAX: usize = 4;
/// Events that were fetched and rest on others that were not yet: so many are kept until those come, and their bytes.
const UNDECIDED_MAX: usize = 2000;
const UNDECIDED_BYTES_MAX: usize = 16 << 20;
/// How many events are stored in one commit.
const COMMIT_OUTLIERS_MAX: usize = 200;

/// Checked events that were fetched and cannot be authorised yet, since they rest on others that were not to be had so
/// far.
pub(in crate::service) type UndecidedEvents = HashMap<EventId, VerifiedPdu>;

/// The ways to come by the auth events of an event.
pub(in crate::service) const AUTH_FETCH_METHODS: [AuthFetchMethod; 5] = [
    AuthFetchMethod::Chain,
    AuthFetchMethod::Gap,
    AuthFetchMethod::State,
    AuthFetchMethod::Chains,
    AuthFetchMethod::EventByEvent,
];

/// One of them.
#[derive(Clone, Copy)]
pub(in crate::service) enum AuthFetchMethod {
    /// `event_auth`, and what it leaves out by `event`.
    Chain,
    /// With what lies between our forward extremities and the event.
    Gap,
    /// With the state before the event, by `state_ids`.
    State,
    /// `event_auth` of what is missing: for a server that does not have the event itself.
    Chains,
    /// `event`, as often as it takes.
    EventByEvent,
}

impl Fetch<'_> {
    /// Goes one of the ways to auth events that we lack. That it leads to nothing is no error, unless the server is
    /// out of reach or takes up all the time (504).
    pub(in crate::service) fn fetch_auth_by(
        &mut self,
        method: AuthFetchMethod,
        pdu: &Pdu,
        missing: &[EventId],
    ) -> Result<()> {
        let gone = match method {
            AuthFetchMethod::Chain => self.fetch_auth_events(pdu, missing),
            // It is asked for by who has the event in hand.
            AuthFetchMethod::Gap => Ok(()),
            AuthFetchMethod::State => self.fetch_state(pdu.event_id()).map(drop),
            AuthFetchMethod::Chains => self.fetch_chains_of(missing),
            AuthFetchMethod::EventByEvent => self.fetch_chain_by_event(missing, ONE_BY_ONE_FALLBACK_MAX),
        };
        match gone {
            Err(e) if !matches!(e.status(), 500 | 504) => {
                log::debug!("{} does not give all that {} rests on: {e}", self.peer, pdu.event_id());
                Ok(())
            }
            gone => gone,
        }
    }

    /// Fetches the auth events of an event, and theirs, and stores them with the verdict on each.
    pub(in crate::service) fn fetch_auth_events(&mut self, pdu: &Pdu, missing: &[EventId]) -> Result<()> {
        self.fetch_chain_of(pdu.event_id())?;
        self.fetch_chain_by_event(missing, ONE_BY_ONE_MAX)
    }

    /// What a server gives of the auth chain of an event.
    fn fetch_chain_of(&mut self, id: &EventId) -> Result<()> {
        let left = self.left()?;
        match self.hs.federation.event_auth(self.peer, &self.room.room_id, id, left) {
            Ok(chain) => self.store_outliers(self.checked(&chain)),
            Err(e) => {
                log::info!("{} gives no auth chain: {}", self.peer, e.into_client_error(self.peer).message());
                Ok(())
            }
        }
    }

    /// The auth chains of what is missing, and of what that lacks; and that itself.
    fn fetch_chains_of(&mut self, missing: &[EventId]) -> Result<()> {
        let mut wanted = self.lacking(missing)?;
        wanted.extend(self.wanting(missing)?);
        let mut asked = HashSet::new();
        for id in wanted.into_iter().filter(|id| asked.insert(id.clone())).take(CHAINS_ASKED_MAX) {
            self.fetch_chain_of(&id)?;
        }
        self.fetch_chain_by_event(missing, ONE_BY_ONE_MAX)
    }

    /// Fetches what these events are and what they rest on, one event after the other, generation by generation.
    fn fetch_chain_by_event(&mut self, missing: &[EventId], most: usize) -> Result<()> {
        let fetched = self.fetch_generations(missing, most);
        // Whatever came before it failed is good.
        self.store_outliers(Vec::new()).and(fetched)
    }

    fn fetch_generations(&mut self, missing: &[EventId], most: usize) -> Result<()> {
        let mut asked = 0;
        loop {
            let mut wanted = self.wanting(missing)?;
            wanted.retain(|id| !self.not_there.contains(id));
            wanted.truncate(most - asked);
            if wanted.is_empty() {
                return Ok(());
            }
            asked += wanted.len();
            for id in wanted {
                let found = self.fetch_events(std::slice::from_ref(&id))?;
                if found.is_empty() {
                    self.not_there.insert(id);
                }
                self.keep_undecided(found);
            }
        }
    }

    /// Which events have to be fetched so that these can be authorised: those of them, and of what the undecided ones
    /// among them rest on, that we have neither stored nor kept undecided.
    pub(in crate::service) fn wanting(&self, missing: &[EventId]) -> Result<Vec<EventId>> {
        let (mut wanted, mut seen) = (Vec::new(), HashSet::new());
        let mut generation = self.lacking(missing)?;
        while !generation.is_empty() {
            let mut next = Vec::new();
            for id in generation.into_iter().filter(|id| seen.insert(id.clone())) {
                match self.undecided.get(&id) {
                    Some(undecided) => next.extend_from_slice(undecided.auth_events()),
                    None => wanted.push(id),
                }
            }
            next.retain(|id| !seen.contains(id));
            generation = self.lacking(&next)?;
        }
        Ok(wanted)
    }

    /// Keeps events until what they rest on is here.
    fn keep_undecided(&mut self, events: Vec<VerifiedPdu>) {
        self.undecided.extend(events.into_iter().map(|event| (event.event_id().clone(), event)));
    }

    /// Stores events that are only referred to, and those of the undecided ones that these were lacking for, each
    /// authorised by its own auth events. Those whose auth events are not to be had stay undecided: nothing can be
    /// said of them.
    pub(in crate::service) fn store_outliers(&mut self, events: Vec<VerifiedPdu>) -> Result<()> {
        self.keep_undecided(events);
        let events = in_order(std::mem::take(&mut self.undecided).into_values().collect(), Pdu::auth_events);
        let mut bytes = 0;
        for chunk in events.chunks(COMMIT_OUTLIERS_MAX) {
            let (chunk, room) = (chunk.to_vec(), self.room.key);
            let undecided = self.hs.store.write(move |tx| {
                let create = tx.state_event(room, "m.room.create", "")?;
                let mut undecided = Vec::new();
                for pdu in chunk {
                    if tx.event_key(pdu.event_id())?.is_some() {
                        tx.complete_event(&pdu)?;
                        continue;
                    }
                    match outlier_status(tx, &pdu, create.as_ref())? {
                        Some(status) => tx.insert_outlier(room, &pdu, status).map(drop)?,
                        None => undecided.push(pdu),
                    }
                }
                Ok(undecided)
            })?;
            for pdu in undecided {
                bytes += pdu.json().len();
                if self.undecided.len() < UNDECIDED_MAX && bytes <= UNDECIDED_BYTES_MAX {
                    self.undecided.insert(pdu.event_id().clone(), pdu);
                }
            }
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
    let verdict = db.verdict_by_auth_events(pdu, create)?;
    Ok(verdict.map(|verdict| if verdict.is_ok() { Status::Accepted } else { Status::Rejected }))
}
