//! Entering a room: from the answer to `send_join` to a room of this server.
//!
//! The answer may be large, so each of its events is looked at in passing: checked, judged, stored, forgotten. Only
//! those that others rest on are kept until all are judged (see `check`). While some are checked on all processors,
//! those before them are being stored.

use std::collections::HashMap;
use std::sync::mpsc::{Receiver, sync_channel};
use std::time::{Duration, Instant};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::federation::calls::JoinAnswer;
use crate::order;
use crate::protocol::event_auth::AuthChecker;
use crate::protocol::ids::server_of;
use crate::protocol::unchecked_event::UncheckedEvent;
use crate::protocol::{Pdu, RoomId, ServerName, VerifiedPdu};
use crate::service::keys::attempts::KeyPurpose;
use crate::service::keys::doubts::Doubts;
use crate::service::keys::fetch::FoundKeys;
use crate::service::keys::verify::{check, in_bulk};
use crate::service::membership::Memberships;
use crate::service::membership::join::check::{AuthGraph, Classifier};
use crate::service::membership::join::import::RoomImport;

/// Events that are checked together.
const EVENTS_PER_BATCH_MAX: usize = 500;
/// Batches that may wait to be stored.
const BATCHES_WAITING_MAX: usize = 2;
/// Time to find the keys of the events that a room rests on, which are worth waiting for: until then their own servers
/// have been asked in vain, and only then is the resident's word enough. And of the other events, of which any old room
/// has many whose servers are gone: the worst that a false key can do there is a member who never joined.
const AUTH_EVENT_KEYS_TIMEOUT: Duration = Duration::from_secs(90);
const OTHER_KEYS_TIMEOUT: Duration = Duration::from_secs(15);
/// How many of the servers that a room's events are of may be asked for the keys of others.
const SENDERS_KEPT_MAX: usize = 20;
/// How often the log says how far it is.
const REPORT_INTERVAL: Duration = Duration::from_secs(3);

/// Checked events, each with whether it is part of the state.
type Batch = Vec<(VerifiedPdu, bool)>;

impl<'h> Memberships<'h> {
    /// Checks the room that another server shows us, and stores its events; what fails is left out. Gives the room,
    /// ready to become resident in. Errors: why it is no room that our join may enter, in words for the log; 500 if
    /// something of ours fails.
    pub(in crate::service::membership) fn receive_room(
        self,
        join: &Pdu,
        peer: &ServerName,
        answer: JoinAnswer<'_>,
    ) -> Result<RoomImport<'h>> {
        let (room_id, version, in_state) = (join.room_id(), join.version(), answer.state.len());
        let events: Vec<&[u8]> =
            answer.state.iter().chain(answer.auth_chain.iter()).map(|event| event.get().as_bytes()).collect();
        drop(answer);
        let mut progress = Progress::new(room_id, events.len());
        let mut classifier = Classifier::new(join);
        let mut senders = Senders::default();
        let wanted = self.keys().wanted_keys(&events, version, |index, event| {
            senders.add(event.as_ref());
            classifier.add(index, event);
        });
        let classified = classifier.finish();
        progress.note("keys", 0);
        let carrying: Vec<&[u8]> = classified.auth_events.iter().map(|index| events[*index]).collect();
        let carrying = self.keys().wanted_keys(&carrying, version, |_, _| {});
        let residents = senders.with(peer, self.server_name());
        let mut keys =
            self.keys().gather_keys(&carrying, &residents, KeyPurpose::Events, AUTH_EVENT_KEYS_TIMEOUT);
        let rest: Vec<_> = wanted.into_iter().filter(|wanted| !keys.has(wanted)).collect();
        keys.extend(self.keys().gather_keys(&rest, &residents, KeyPurpose::Events, OTHER_KEYS_TIMEOUT));
        let checking = Checking { events: &events, in_state, join };
        let (by, until) = (KeyPurpose::Received(peer), Instant::now() + OTHER_KEYS_TIMEOUT);

        let good = self.keys().check_with(&mut keys, by, until, |keys, doubts| {
            checking.all_of(&classified.auth_events, (keys, doubts))
        });
        let mut dropped = classified.auth_events.len() - good.len();
        let mut auth_graph = AuthGraph::check(join, good)?;
        dropped += auth_graph.dropped();
        progress.note("events", classified.auth_events.len());
        let import = self.begin_import(room_id, version);
        let (batches, queue) = sync_channel(BATCHES_WAITING_MAX);
        let import = std::thread::scope(|scope| {
            let store = std::thread::Builder::new().name("join-store".into());
            let storing = store.spawn_scoped(scope, move || store_all(import, &queue))?;
            let mut done = classified.auth_events.len();
            for part in classified.others.chunks(EVENTS_PER_BATCH_MAX) {
                let mut good = self.keys().check_with(&mut keys, by, until, |keys, doubts| {
                    checking.allowed_of(part, &auth_graph, (keys, doubts))
                });
                dropped += part.len() - good.len();
                done += part.len();
                // No other rests on these: outside the state they are there for nothing.
                good.retain(|(_, in_state)| *in_state);
                auth_graph.note_resting(&good);
                if batches.send(good).is_err() {
                    // The store failed, and says why below.
                    break;
                }
                progress.note("events", done);
            }
            // If the store failed, it says why below.
            let _ = batches.send(auth_graph.events());
            drop(batches);
            storing.join().unwrap_or_else(|_| Err(Error::internal("storing a room panicked")))
        })?;
        progress.end(dropped);
        Ok(import)
    }
}

fn store_all<'h>(mut import: RoomImport<'h>, batches: &Receiver<Batch>) -> Result<RoomImport<'h>> {
    for batch in batches {
        import.add(batch)?;
    }
    Ok(import)
}

/// What it takes to check the events of an answer.
struct Checking<'a> {
    events: &'a [&'a [u8]],
    /// So many of the events are the state; the auth chain follows.
    in_state: usize,
    join: &'a Pdu,
}

impl Checking<'_> {
    fn one(&self, index: usize, (keys, doubts): (&FoundKeys, &Doubts)) -> Option<(VerifiedPdu, bool)> {
        let pdu = check(self.events.get(index)?, self.join.version(), keys, doubts);
        let pdu =
            pdu.inspect_err(|why| log::debug!("an event of {}: {}", self.join.room_id(), why.message()));
        Some((pdu.ok()?, index < self.in_state))
    }

    /// The good ones of these events.
    fn all_of(&self, indices: &[usize], keys: (&FoundKeys, &Doubts)) -> Batch {
        in_bulk(indices, |index| self.one(*index, keys)).into_iter().flatten().collect()
    }

    /// The good ones that the room allows. Each thread remembers the power levels that it has read.
    fn allowed_of(&self, indices: &[usize], auth_graph: &AuthGraph, keys: (&FoundKeys, &Doubts)) -> Batch {
        let checker = || AuthChecker::new(self.join.version());
        let checked = indices.par_iter().map_init(checker, |checker, index| {
            self.one(*index, keys).filter(|(pdu, _)| auth_graph.allow(checker, pdu))
        });
        checked.flatten().collect()
    }
}

/// The servers of those who made a room's events, as it is shown, each with how many.
#[derive(Default)]
struct Senders(HashMap<Box<str>, usize>);

impl Senders {
    fn add(&mut self, event: Option<&UncheckedEvent<'_>>) {
        let Some(event) = event else { return };
        let server = server_of(&event.sender);
        match self.0.get_mut(server) {
            Some(events) => *events += 1,
            None => drop(self.0.insert(server.into(), 1)),
        }
    }

    /// The server that shows the room, and the others by what they have to do with it, most first.
    fn with(self, peer: &ServerName, us: &ServerName) -> Vec<ServerName> {
        let mut others: Vec<_> = self.0.into_iter().collect();
        order::sort_by(&mut others, |(a, of_a), (b, of_b)| of_b.cmp(of_a).then_with(|| a.cmp(b)));
        let others = others.into_iter().filter_map(|(server, _)| ServerName::parse(&server).ok());
        let others = others.filter(|server| server != peer && server != us);
        std::iter::once(peer.clone()).chain(others.take(SENDERS_KEPT_MAX)).collect()
    }
}

/// Says in the log how far it is, now and then.
struct Progress<'a> {
    room_id: &'a RoomId,
    of: usize,
    began: Instant,
    said: Instant,
}

impl<'a> Progress<'a> {
    fn new(room_id: &'a RoomId, of: usize) -> Self {
        let now = Instant::now();
        Self { room_id, of, began: now, said: now }
    }

    fn note(&mut self, what: &str, done: usize) {
        if self.said.elapsed() >= REPORT_INTERVAL {
            self.said = Instant::now();
            log::info!("joining {}: {what}, {done} of {} events checked", self.room_id, self.of);
        }
    }

    fn end(&self, dropped: usize) {
        let (room_id, of, took) = (self.room_id, self.of, self.began.elapsed());
        log::info!("joining {room_id}: {of} events checked and stored in {took:.1?}");
        if dropped > 0 {
            log::warn!(
                "{dropped} events of {room_id} were forged, not allowed or rest on missing ones: left out"
            );
        }
    }
}
