//! Delivery to other servers. What we owe is in the database and nowhere else: every wake may be lost, and catching up
//! after a restart or an outage is the same as delivering what was just made.
//!
//! Each destination has a cursor in the one stream. A transaction carries the next owed events beyond it, in order, at
//! most 50, and the cursor moves when the peer has answered. One transaction at a time to each destination; the next
//! in line is another destination's. A few threads do this, made when there is work and gone when there is none.
//! Destinations that failed last time, or of which nothing is known, may hold only some of them, so that they cannot
//! keep what reachable servers are owed. So may those that take long: some are large, some far away, and some want us to
//! wait. If it is our own line that is slow, all are, and have those threads to themselves.
//!
//! Who comes back after an outage is not sent everything: of a room in which it missed much it gets the last events,
//! before which there is then a gap. It fetches the state there, and the rest when somebody reads back so far. Of what is
//! fleeting it gets up to where our users have read by now, which stays true until they read on.
//!
//! - here: the threads, and what wakes them; `queue`: who is next, who pauses; `prepare`: what goes next to a destination;
//!   `transaction`: what is in one, and its sending.
//! - `edus`: EDUs that several subjects send; `presence`: whose it is news to a server.

mod edus;
mod prepare;
pub(super) mod presence;
mod queue;
mod transaction;

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(in crate::service) use self::edus::{
    ShownOwnKeys, device_list_update, shown_own_keys, signed, signing_key_update, told_receipt,
};
pub(in crate::service) use self::presence::{SERVERS_IN_ROOM_MAX, ToldPresence};
use super::Homeserver;
use crate::clock::{Clock, Millis};
use crate::error::Result;
use crate::federation::CallError;
use crate::locks::{lock, wait_timeout};
use crate::metrics::Ending;
use crate::protocol::ServerName;
use crate::protocol::edu::Edu;
use crate::service::outgoing::queue::{DestinationActivity, Lane, OutgoingTask, QueueState};
use crate::service::outgoing::transaction::send;
use crate::store::servers::destinations::Destination;
use crate::store::{Changes, RoomKey};

/// "Transactions are limited in size; they can have at most 50 PDUs and 100 EDUs."
const PDUS_MAX: usize = 50;
const EDUS_MAX: usize = 100;
/// Of these, what may be device lists that the server is told because it shares a room with the user from now on.
const DEVICE_LISTS_MAX: usize = 50;
/// Of the receipts that a server may have lost it gets so many, the last ones, in so many messages.
const LOST_RECEIPTS_MAX: usize = 100;
const LOST_RECEIPTS_EDUS_MAX: usize = 20;
/// Bytes of durable ephemeral messages in one transaction, unless a single one has more: others refuse what is too
/// large.
const EDU_BYTES_MAX: usize = 2 << 20;
/// Rooms that a server has come into, of which it has not been told yet who is there: of more it is not told.
const ENTERED_ROOMS_MAX: usize = 20;
/// Ephemeral messages that wait in memory for one destination; the oldest go.
const WAITING_EDUS_MAX: usize = 400;
/// Threads in all, those that unproven destinations may hold, and of these those for destinations that failed; beside
/// those, what slow ones may hold.
const THREADS_MAX: usize = 40;
const UNPROVEN_THREADS_MAX: usize = 20;
const FAILING_THREADS_MAX: usize = 12;
const SLOW_THREADS_MAX: usize = 12;
/// Nobody is known to be slow before they are: for so many threads that proven destinations hold for so long that they are,
/// there are others.
const RELIEF_THREADS_MAX: usize = 32;
/// Who takes so long over a transaction is slow, and stays so for so many times as long, and until they were fast again: a
/// thread of those for the fast is held for a small part of the time by whoever is both by turns.
const SLOW_AFTER: Duration = Duration::from_secs(5);
const SLOW_TIMES_AS_LONG: u32 = 20;
/// Whoever was away gets all that it missed in a room up to so many events, and of more only the last few.
const MISSED_EVENTS_MAX: usize = 250;
const MISSED_EVENTS_KEPT: usize = 50;
/// Time for a peer to take a transaction in: less where the last one did not arrive, since it holds a thread.
const TRANSACTION_TIMEOUT: Duration = Duration::from_secs(60);
const UNPROVEN_TRANSACTION_TIMEOUT: Duration = Duration::from_secs(20);
const STACK_BYTES: usize = 512 * 1024;
/// How long a stop waits for the threads to end.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// A thread without work ends after this; the first one stays.
const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(20);
/// A peer that speaks to us but cannot be reached is not tried at its every word.
const SPEAKER_PAUSE_MS: Millis = 2_000;
const SPEAKER_PAUSE_MS_MAX: Millis = 60_000;
/// Cursors are written together, this long after the first of them moved.
const FLUSH_INTERVAL: Duration = Duration::from_secs(2);
/// Servers that failed for so long are forgotten if we have nothing to do with them any more.
const FORGOTTEN_AFTER_MS: Millis = 30 * 24 * 3_600_000;
/// Idle destinations that are kept in memory.
const IDLE_DESTINATIONS_MAX: usize = 8192;

/// The threads that deliver, and what they were told. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct Outgoing(Arc<OutgoingShared>);

struct OutgoingShared {
    clock: Clock,
    own_name: ServerName,
    state: Mutex<QueueState>,
    work: Condvar,
    ended: Condvar,
    /// A transaction has come to its end.
    delivered: Condvar,
    /// How many destinations pause, so that a request from a peer usually costs no lock.
    pausing: AtomicUsize,
}

impl Outgoing {
    /// Delivers nothing yet; wakes are kept.
    pub fn new(own_name: &ServerName, clock: &Clock) -> Self {
        Self(Arc::new(OutgoingShared {
            clock: clock.clone(),
            own_name: own_name.clone(),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            delivered: Condvar::new(),
            pausing: AtomicUsize::new(0),
        }))
    }

    /// Starts delivering, first of all what earlier runs left. Who has nothing to do with other servers has no thread for
    /// it yet.
    pub fn start(&self, homeserver: &Arc<Homeserver>) -> Result<()> {
        let may_owe = homeserver.store.read(|db| db.may_owe_servers())?;
        let mut state = lock(&self.0.state);
        state.homeserver = Arc::downgrade(homeserver);
        state.load_owed = may_owe;
        if state.has_work() { self.spawn(&mut state) } else { Ok(()) }
    }

    /// Ends the threads and writes the cursors. Transactions under way count neither as delivered nor as failed:
    /// whoever waits for another server comes back at once.
    pub fn stop(&self) {
        let mut state = lock(&self.0.state);
        state.stopping = true;
        self.0.work.notify_all();
        if let Some(hs) = state.homeserver.upgrade() {
            hs.federation.shutdown();
            let deadline = Instant::now() + STOP_TIMEOUT;
            while state.alive > 0 && Instant::now() < deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                state = wait_timeout(&self.0.ended, state, left);
            }
            state.remember_lost_receipts();
            drop(state);
            self.flush(&hs);
        }
    }

    /// Takes in what a commit changed. Never blocks for long: it is called on the thread that tells of commits.
    pub fn committed(&self, changes: &Changes) {
        let Changes { outgoing_rooms, destinations, newcomers, .. } = changes;
        if outgoing_rooms.is_empty() && destinations.is_empty() && newcomers.is_empty() {
            return;
        }
        let mut state = lock(&self.0.state);
        state.rooms.extend(outgoing_rooms);
        for server in destinations {
            self.wake(&mut state, server);
        }
        for (room, server) in newcomers {
            let peer = state.destinations.entry(server.clone()).or_default();
            if peer.kept.failures == 0 && peer.entered_rooms.len() < ENTERED_ROOMS_MAX {
                peer.entered_rooms.insert(*room);
                self.wake(&mut state, server);
            }
        }
        self.call_thread(&mut state);
    }

    /// A request of this server has arrived: it is likely to take a transaction, and if it was given up for a
    /// while, now is the time.
    pub fn peer_spoke(&self, server: &ServerName) {
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        if !state.destinations.contains_key(server) && state.destinations.len() >= IDLE_DESTINATIONS_MAX {
            return;
        }
        let peer = state.destinations.entry(server.clone()).or_default();
        if peer.kept.failures == 0 {
            if !std::mem::replace(&mut peer.spoke, true) && peer.doing == DestinationActivity::Waiting {
                state.dequeue(server);
                state.enqueue(server);
                self.call_thread(&mut state);
            }
            return;
        }
        peer.spoke_ms = now;
        if peer.doing != DestinationActivity::Pausing {
            return;
        }
        let pause = SPEAKER_PAUSE_MS * Millis::from(peer.kept.failures - 1);
        let sooner = peer.last_attempt_ms + pause.min(SPEAKER_PAUSE_MS_MAX);
        if sooner < peer.kept.retry_ms {
            let before = std::mem::replace(&mut peer.kept.retry_ms, sooner.max(now));
            let after = peer.kept.retry_ms;
            state.due.remove(&(before, server.clone()));
            state.due.insert((after, server.clone()));
            self.call_thread(&mut state);
        }
    }

    /// The wall clock was moved: what is due by now is due.
    pub fn clock_moved(&self) {
        self.0.work.notify_all();
    }

    /// Whether our last transaction to this server failed and the next is yet to come: a hint for those who can choose
    /// whom to ask.
    pub fn is_pausing(&self, server: &ServerName) -> bool {
        self.0.pausing.load(Ordering::Relaxed) > 0
            && lock(&self.0.state).destinations.get(server).is_some_and(|p| p.kept.failures > 0)
    }

    /// The servers whose last transaction failed, and how each stands.
    pub fn failing(&self) -> Vec<(ServerName, Destination)> {
        let state = lock(&self.0.state);
        let failing = state.destinations.iter().filter(|(_, peer)| peer.kept.failures > 0);
        failing.map(|(server, peer)| (server.clone(), peer.kept.clone())).collect()
    }

    /// The servers of which it is known here how they stand, each with when its last transaction was tried if that failed.
    pub fn standings(&self) -> HashMap<ServerName, (Destination, Millis)> {
        let state = lock(&self.0.state);
        let known = state.destinations.iter().filter(|(_, peer)| peer.loaded);
        known.map(|(name, peer)| (name.clone(), (peer.kept.clone(), peer.last_attempt_at()))).collect()
    }

    /// The same of one server; none: that is not known here.
    pub fn standing(&self, server: &ServerName) -> Option<(Destination, Millis)> {
        let state = lock(&self.0.state);
        let peer = state.destinations.get(server).filter(|peer| peer.loaded)?;
        Some((peer.kept.clone(), peer.last_attempt_at()))
    }

    /// A server that pauses after failures is tried now. Whether it did pause.
    pub fn try_now(&self, server: &ServerName) -> bool {
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        let paused = state.destinations.get_mut(server).filter(|peer| peer.kept.failures > 0);
        let Some(peer) = paused else { return false };
        if peer.doing == DestinationActivity::Pausing && peer.kept.retry_ms > now {
            let before = std::mem::replace(&mut peer.kept.retry_ms, now);
            state.due.remove(&(before, server.clone()));
            state.due.insert((now, server.clone()));
            self.call_thread(&mut state);
        }
        true
    }

    /// When our last transaction to this server failed; none if it arrived, if there was none, or if the server has spoken
    /// to us since. After a restart it is only about known.
    pub fn failed_at(&self, server: &ServerName) -> Option<Millis> {
        let state = lock(&self.0.state);
        let peer = state.destinations.get(server).filter(|peer| peer.kept.failures > 0)?;
        Some(peer.last_attempt_at()).filter(|at| *at >= peer.spoke_ms)
    }

    /// Whether our last transaction to this server arrived, or it has spoken to us since we know it.
    pub fn is_proven(&self, server: &ServerName) -> bool {
        let state = lock(&self.0.state);
        state.destinations.get(server).is_some_and(|peer| peer.lane_now() == Lane::Proven)
    }

    /// Waits until a server has been sent what it is owed up to this stream position, so long at most. It is not waited
    /// for where it cannot be reached.
    pub fn wait_for_delivery(&self, server: &ServerName, upto: i64, within: Duration) {
        let until = Instant::now() + within;
        let mut state = lock(&self.0.state);
        loop {
            let Some(peer) = state.destinations.get(server).filter(|peer| peer.kept.failures == 0) else {
                return;
            };
            let left = until.saturating_duration_since(Instant::now());
            if peer.kept.cursor >= upto || state.stopping || left.is_zero() {
                return;
            }
            state = wait_timeout(&self.0.delivered, state, left);
        }
    }

    /// Sends an ephemeral message if the destination can be reached now; it is worth nothing later. Durable ones are
    /// rows (`store/servers/owed.rs`), and where users have read is looked up for who comes back (`lost_receipts`).
    pub fn send_edu(&self, server: &ServerName, edu: Edu) {
        let mut state = lock(&self.0.state);
        let peer = state.destinations.entry(server.clone()).or_default();
        if peer.kept.failures > 0 {
            return;
        }
        if edu.replaces.is_some() {
            peer.edus.retain(|waiting| waiting.replaces != edu.replaces);
        }
        if peer.edus.len() >= WAITING_EDUS_MAX {
            peer.edus.pop_front();
        }
        peer.edus.push_back(edu);
        self.wake(&mut state, server);
        self.call_thread(&mut state);
    }

    /// Has a thread look after what there is to do. The first one is begun when it is first needed.
    fn call_thread(&self, state: &mut QueueState) {
        let started = state.homeserver.strong_count() > 0;
        if state.alive == 0
            && started
            && !state.stopping
            && let Err(e) = self.spawn(state)
        {
            log::warn!("no thread for sending yet: {e}");
        }
        self.0.work.notify_one();
    }

    /// Makes a thread where all are busy, some have been for long, and somebody waits. Asked now and then by the timer, since
    /// nobody else is left to see it.
    pub fn relieve(&self) {
        let mut state = lock(&self.0.state);
        let all_busy = state.alive >= THREADS_MAX && state.idle == 0 && !state.stopping;
        if all_busy
            && state.has_work()
            && state.alive < state.threads_max(self.0.clock.instant())
            && let Err(e) = self.spawn(&mut state)
        {
            log::warn!("no further thread for sending: {e}");
        }
    }

    /// Puts a destination in line, unless it is there already, pauses, or is us.
    fn wake(&self, state: &mut QueueState, server: &ServerName) {
        if *server == self.0.own_name {
            return;
        }
        let peer = state.destinations.entry(server.clone()).or_default();
        match peer.doing {
            DestinationActivity::Nothing if peer.loaded => state.enqueue(server),
            DestinationActivity::Nothing => {
                state.unknown.insert(server.clone());
            }
            DestinationActivity::Sending => peer.again = true,
            DestinationActivity::Waiting | DestinationActivity::Pausing => {}
        }
    }

    fn spawn(&self, state: &mut QueueState) -> Result<()> {
        let sender = self.clone();
        let stays = state.alive == 0;
        let thread = std::thread::Builder::new().name("outgoing".into()).stack_size(STACK_BYTES);
        thread.spawn(move || sender.work(stays))?;
        state.alive += 1;
        Ok(())
    }

    fn work(&self, stays: bool) {
        loop {
            let job = self.next_job(stays);
            // The homeserver is held only while it is needed: it may go while this thread waits.
            let homeserver = lock(&self.0.state).homeserver.clone();
            let Some(hs) = homeserver.upgrade() else { break };
            match job {
                OutgoingTask::LoadOwed => self.load_owed(&hs),
                OutgoingTask::WakeServers(rooms, servers) => self.wake_servers_of(&hs, &rooms, servers),
                OutgoingTask::Flush => self.flush(&hs),
                OutgoingTask::Send(server) => self.deliver(hs, &server),
                OutgoingTask::End => break,
            }
        }
        lock(&self.0.state).alive -= 1;
        self.0.ended.notify_all();
        // Who is left sleeps for as long as was right when it lay down; this one may have known better.
        self.0.work.notify_one();
    }

    /// Waits for something to do.
    fn next_job(&self, stays: bool) -> OutgoingTask {
        let mut state = lock(&self.0.state);
        let idle_since = Instant::now();
        loop {
            if state.stopping {
                return OutgoingTask::End;
            }
            self.enqueue_what_is_due(&mut state);
            let now = self.0.clock.instant();
            if let Some(job) = state.pick(now) {
                // While this thread is busy, another one looks after what is left.
                if state.has_work() {
                    if state.idle > 0 {
                        self.0.work.notify_one();
                    } else if state.alive < state.threads_max(now)
                        && let Err(e) = self.spawn(&mut state)
                    {
                        log::warn!("no further thread for sending: {e}");
                    }
                }
                return job;
            }
            if !stays && idle_since.elapsed() >= IDLE_THREAD_TIMEOUT {
                return OutgoingTask::End;
            }
            let pause = self.pause(&state, stays);
            state.idle += 1;
            state = wait_timeout(&self.0.work, state, pause);
            state.idle -= 1;
        }
    }

    /// How long to sleep if nobody wakes us.
    fn pause(&self, state: &QueueState, stays: bool) -> Duration {
        let mut pause = if stays { Duration::from_secs(600) } else { IDLE_THREAD_TIMEOUT };
        if let Some((due, _)) = state.due.first() {
            let left = u64::try_from(due - self.0.clock.now_ms()).unwrap_or(0);
            pause = pause.min(Duration::from_millis(left + 1));
        }
        if let Some(at) = state.flush_at {
            pause = pause.min(at.saturating_duration_since(Instant::now()));
        }
        pause
    }

    fn enqueue_what_is_due(&self, state: &mut QueueState) {
        let now = self.0.clock.now_ms();
        while state.due.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, server)) = state.due.pop_first() else { return };
            if state.destinations.get(&server).is_some_and(|p| p.doing == DestinationActivity::Pausing) {
                self.0.pausing.fetch_sub(1, Ordering::Relaxed);
                state.enqueue(&server);
            }
        }
    }

    /// Finds out who is owed what, and who is not to be tried yet.
    fn load_owed(&self, hs: &Homeserver) {
        let found = hs.store.read(|db| Ok((db.failing_destinations()?, db.owed_servers()?)));
        let (failing, owed) = match found {
            Ok(found) => found,
            Err(e) => return log::error!("what is owed to other servers cannot be read: {e}"),
        };
        let now = self.0.clock.now_ms();
        let before = now - FORGOTTEN_AFTER_MS;
        if failing.iter().any(|(_, kept)| kept.retry_ms < before)
            && let Err(e) = hs.store.write_lightly(move |tx| tx.forget_destinations(before))
        {
            log::log!(e.level(log::Level::Warn), "servers that are gone cannot be forgotten: {e}");
        }
        let mut state = lock(&self.0.state);
        for (server, kept) in failing {
            let peer = state.destinations.entry(server.clone()).or_default();
            if peer.loaded {
                continue;
            }
            peer.learn(kept, now);
            self.begin_pause(&mut state, &server);
        }
        for server in owed {
            self.wake(&mut state, &server);
        }
        drop(state);
        self.0.work.notify_all();
    }

    fn begin_pause(&self, state: &mut QueueState, server: &ServerName) {
        if let Some(peer) = state.destinations.get_mut(server) {
            peer.doing = DestinationActivity::Pausing;
            let due = peer.kept.retry_ms;
            state.due.insert((due, server.clone()));
            self.0.pausing.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes the servers of rooms, and these servers, after reading what is kept of those that are not known yet.
    fn wake_servers_of(&self, hs: &Homeserver, rooms: &[RoomKey], mut servers: Vec<ServerName>) {
        let found = hs.store.read(|db| {
            for room in rooms {
                servers.extend(db.destinations_of_room(*room)?);
            }
            let unknown: Vec<ServerName> = {
                let state = lock(&self.0.state);
                let is_known = |server: &ServerName| state.destinations.get(server).is_some_and(|p| p.loaded);
                servers.iter().filter(|server| !is_known(server)).cloned().collect()
            };
            unknown
                .into_iter()
                .map(|server| Ok((db.destination(&server)?, server)))
                .collect::<Result<Vec<_>>>()
        });
        let learned = match found {
            Ok(learned) => learned,
            Err(e) => return log::error!("the servers of a room cannot be read: {e}"),
        };
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        for (kept, server) in learned {
            let peer = state.destinations.entry(server).or_default();
            if !peer.loaded {
                peer.learn(kept, now);
            }
        }
        for server in &servers {
            self.wake(&mut state, server);
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Writes the cursors and pauses that changed, all in one transaction.
    fn flush(&self, hs: &Homeserver) {
        let changed: Vec<(ServerName, Destination, i64)> = {
            let mut state = lock(&self.0.state);
            state.flush_at = None;
            let servers = std::mem::take(&mut state.unflushed);
            let of = |s: ServerName| state.destinations.get(&s).map(|p| (s, p.kept.clone(), p.edus_upto));
            servers.into_iter().filter_map(of).collect()
        };
        if changed.is_empty() {
            return;
        }
        let written = hs.store.write(move |tx| {
            changed.iter().try_for_each(|(server, kept, edus)| tx.save_destination(server, kept, *edus))
        });
        if let Err(e) = written {
            log::log!(e.level(log::Level::Warn), "how far other servers are cannot be written: {e}");
        }
        let mut state = lock(&self.0.state);
        if state.destinations.len() > IDLE_DESTINATIONS_MAX {
            let QueueState { destinations, unflushed, .. } = &mut *state;
            destinations.retain(|name, p| {
                p.doing != DestinationActivity::Nothing || !p.edus.is_empty() || unflushed.contains(name)
            });
        }
    }

    /// One transaction to one destination.
    fn deliver(&self, hs: Arc<Homeserver>, server: &ServerName) {
        let transaction = self.prepare(&hs, server).unwrap_or_else(|e| {
            log::log!(e.level(log::Level::Error), "what is owed to {server} cannot be read: {e}");
            None
        });
        let outcome = transaction.map(|transaction| {
            let (client, metrics) = (Arc::clone(&hs.federation), hs.metrics.clone());
            drop(hs);
            // A defect must not take this destination out of service for good.
            let answer =
                catch_unwind(AssertUnwindSafe(|| send(&client, &self.0.clock, server, &transaction)));
            let answer = answer.unwrap_or_else(|_| Err(CallError::bad("sending panicked")));
            if let Some(metrics) = metrics {
                metrics.transactions_out.add(Ending::of_call(&answer));
            }
            (transaction, answer)
        });
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        let Some(peer) = state.destinations.get_mut(server) else { return };
        let (lane, was_failing) = (peer.lane, peer.kept.failures > 0);
        peer.doing = DestinationActivity::Nothing;
        let again = std::mem::take(&mut peer.again);
        state.busy[lane as usize] -= 1;
        let began = state.under_way.remove(server);
        self.0.delivered.notify_all();
        let Some((transaction, answer)) = outcome else {
            if again {
                self.wake(&mut state, server);
            }
            state.flush_by(FLUSH_INTERVAL);
            return;
        };
        if state.stopping && answer.is_err() {
            state.receipts_may_be_lost(server);
            return;
        }
        let recovered = answer.is_ok() && was_failing;
        let took = began.map_or(Duration::ZERO, |(began, _)| self.0.clock.instant().duration_since(began));
        let (more, pauses) = state.conclude(server, &transaction, answer, now);
        if let Some(peer) = state.destinations.get_mut(server) {
            peer.took(took, self.0.clock.steady());
        }
        state.flush_by(FLUSH_INTERVAL);
        if pauses {
            self.begin_pause(&mut state, server);
        } else if more || again {
            self.wake(&mut state, server);
        }
        let hs = state.homeserver.clone();
        drop(state);
        self.0.work.notify_one();
        if recovered && let Some(hs) = hs.upgrade() {
            // As good as if it had spoken.
            hs.scheduler.peer_spoke(&hs, server);
            hs.silent_servers.spoke(server);
        }
    }
}

#[cfg(test)]
mod tests;
