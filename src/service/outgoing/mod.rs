//! Delivery to other servers. What we owe is in the database and nowhere else: every wake may be lost, and catching up
//! after a restart or an outage is the same as delivering what was just made.
//!
//! Each destination has a cursor in the one stream. A transaction carries the next owed events beyond it, in order, at
//! most 50, and the cursor moves when the peer has answered. One transaction at a time to each destination; the next
//! in line is another destination's. A few threads do this, made when there is work and gone when there is none.
//! Destinations that failed last time, or of which nothing is known, may hold only some of them, so that they cannot
//! keep what reachable servers are owed.
//!
//! Who comes back after an outage is not sent everything: of a room in which it missed much it gets the last events,
//! before which there is then a hole. It fetches the state there, and the rest when somebody reads back so far.

mod edus;
mod queue;
mod transaction;

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

pub(in crate::service) use self::edus::device_list_update;
use super::Homeserver;
use crate::clock::{Clock, Millis};
use crate::error::Result;
use crate::federation::CallError;
use crate::locks::{lock, wait_timeout};
use crate::protocol::ServerName;
use crate::protocol::edu::Edu;
use crate::service::outgoing::queue::{Doing, Job, State};
use crate::service::outgoing::transaction::{Owed, Transaction, WaitingEdus, send};
use crate::store::servers::destinations::Destination;
use crate::store::servers::owed::OwedEdu;
use crate::store::{Changes, RoomKey};

/// "Transactions are limited in size; they can have at most 50 PDUs and 100 EDUs."
const MAX_PDUS: usize = 50;
const MAX_EDUS: usize = 100;
/// Of these, what may be device lists that the server is told because it shares a room with the user from now on.
const MAX_DEVICE_LISTS: usize = 50;
/// Bytes of durable ephemeral messages in one transaction, unless a single one has more: others refuse what is too large.
const MAX_EDU_BYTES: usize = 2 << 20;
/// Ephemeral messages that wait in memory for one destination; the oldest go.
const MAX_WAITING_EDUS: usize = 400;
/// Threads in all, those that unproven destinations may hold, and of these those for destinations that failed.
const MAX_THREADS: usize = 32;
const MAX_UNPROVEN: usize = 20;
const MAX_FAILING: usize = 12;
/// Whoever was away gets all that it missed in a room up to so many events, and of more only the last few.
const MOST_MISSED: usize = 250;
const LAST_FEW: usize = 50;
/// Time for a peer to take a transaction in: less where the last one did not arrive, since it holds a thread.
const WITHIN: Duration = Duration::from_secs(60);
const WITHIN_UNPROVEN: Duration = Duration::from_secs(20);
const STACK: usize = 512 * 1024;
/// How long a stop waits for the threads to end.
const STOP_WITHIN: Duration = Duration::from_millis(500);
/// A thread without work ends after this; the first one stays.
const IDLE: Duration = Duration::from_secs(20);
/// A peer that speaks to us but cannot be reached is not tried at its every word.
const PAUSE_OF_SPEAKER: Millis = 2_000;
const LONGEST_PAUSE_OF_SPEAKER: Millis = 60_000;
/// Cursors are written together, this long after the first of them moved.
const FLUSH_AFTER: Duration = Duration::from_secs(2);
/// Servers that failed for so long are forgotten if we have nothing to do with them any more.
const FORGOTTEN_AFTER: Millis = 30 * 24 * 3_600_000;
/// Idle destinations that are kept in memory.
const MAX_IDLE_PEERS: usize = 8192;

/// The threads that deliver, and what they were told. Cheap to clone; clones are the same sender.
#[derive(Clone)]
pub struct Sender(Arc<Shared>);

struct Shared {
    clock: Clock,
    own_name: ServerName,
    state: Mutex<State>,
    work: Condvar,
    ended: Condvar,
    /// A transaction has come to its end.
    delivered: Condvar,
    /// How many destinations pause, so that a request from a peer usually costs no lock.
    pausing: AtomicUsize,
}

impl Sender {
    /// A sender that does nothing yet; wakes are kept.
    pub fn new(own_name: &ServerName, clock: &Clock) -> Self {
        Self(Arc::new(Shared {
            clock: clock.clone(),
            own_name: own_name.clone(),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
            delivered: Condvar::new(),
            pausing: AtomicUsize::new(0),
        }))
    }

    /// Starts delivering, first of all what earlier runs left.
    pub fn start(&self, homeserver: &Arc<Homeserver>) -> Result<()> {
        let mut state = lock(&self.0.state);
        state.homeserver = Arc::downgrade(homeserver);
        state.look_around = true;
        self.spawn(&mut state)
    }

    /// Ends the threads and writes the cursors. Transactions under way count neither as delivered nor as failed: whoever
    /// waits for another server comes back at once.
    pub fn stop(&self) {
        let mut state = lock(&self.0.state);
        state.stopping = true;
        self.0.work.notify_all();
        if let Some(hs) = state.homeserver.upgrade() {
            hs.federation.shutdown();
            let deadline = Instant::now() + STOP_WITHIN;
            while state.alive > 0 && Instant::now() < deadline {
                let left = deadline.saturating_duration_since(Instant::now());
                state = wait_timeout(&self.0.ended, state, left);
            }
            drop(state);
            self.flush(&hs);
        }
    }

    /// Takes in what a commit changed. Never blocks for long: it is called on the database's writing thread.
    pub fn committed(&self, changes: &Changes) {
        if changes.outgoing_rooms.is_empty() && changes.destinations.is_empty() {
            return;
        }
        let mut state = lock(&self.0.state);
        state.rooms.extend(&changes.outgoing_rooms);
        for server in &changes.destinations {
            self.wake(&mut state, server);
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// A request of this server has arrived: it is likely to take one of ours, and if we had given up on it for a
    /// while, now is the time.
    pub fn peer_spoke(&self, server: &ServerName) {
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        if !state.peers.contains_key(server) && state.peers.len() >= MAX_IDLE_PEERS {
            return;
        }
        let peer = state.peers.entry(server.clone()).or_default();
        if peer.kept.failures == 0 {
            if !std::mem::replace(&mut peer.spoke, true) && peer.doing == Doing::Waiting {
                state.step_out(server);
                state.line_up(server);
                drop(state);
                self.0.work.notify_one();
            }
            return;
        }
        if peer.doing != Doing::Pausing {
            return;
        }
        let pause = PAUSE_OF_SPEAKER * Millis::from(peer.kept.failures - 1);
        let sooner = peer.last_attempt_ms + pause.min(LONGEST_PAUSE_OF_SPEAKER);
        if sooner < peer.kept.retry_ms {
            let before = std::mem::replace(&mut peer.kept.retry_ms, sooner.max(now));
            let after = peer.kept.retry_ms;
            state.due.remove(&(before, server.clone()));
            state.due.insert((after, server.clone()));
            drop(state);
            self.0.work.notify_one();
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
            && lock(&self.0.state).peers.get(server).is_some_and(|p| p.kept.failures > 0)
    }

    /// Waits until a server has been sent what it is owed up to this stream position, so long at most. It is not waited for
    /// where it cannot be reached.
    pub fn wait_for_delivery(&self, server: &ServerName, upto: i64, within: Duration) {
        let until = Instant::now() + within;
        let mut state = lock(&self.0.state);
        loop {
            let Some(peer) = state.peers.get(server).filter(|peer| peer.kept.failures == 0) else { return };
            let left = until.saturating_duration_since(Instant::now());
            if peer.kept.cursor >= upto || state.stopping || left.is_zero() {
                return;
            }
            state = wait_timeout(&self.0.delivered, state, left);
        }
    }

    /// Sends an ephemeral message if the destination can be reached now; it is worth nothing later. Durable ones are
    /// rows (`store/servers/owed.rs`).
    pub fn send_edu(&self, server: &ServerName, edu: Edu) {
        let mut state = lock(&self.0.state);
        let peer = state.peers.entry(server.clone()).or_default();
        if peer.kept.failures > 0 {
            return;
        }
        if edu.replaces.is_some() {
            peer.edus.retain(|waiting| waiting.replaces != edu.replaces);
        }
        if peer.edus.len() >= MAX_WAITING_EDUS {
            peer.edus.pop_front();
        }
        peer.edus.push_back(edu);
        self.wake(&mut state, server);
        drop(state);
        self.0.work.notify_one();
    }

    /// Puts a destination in line, unless it is there already, pauses, or is us.
    fn wake(&self, state: &mut State, server: &ServerName) {
        if *server == self.0.own_name {
            return;
        }
        let peer = state.peers.entry(server.clone()).or_default();
        match peer.doing {
            Doing::Nothing if peer.loaded => state.line_up(server),
            Doing::Nothing => {
                state.unknown.insert(server.clone());
            }
            Doing::Sending => peer.again = true,
            Doing::Waiting | Doing::Pausing => {}
        }
    }

    fn spawn(&self, state: &mut State) -> Result<()> {
        let sender = self.clone();
        let stays = state.alive == 0;
        let thread = std::thread::Builder::new().name("sender".into()).stack_size(STACK);
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
                Job::LookAround => self.look_around(&hs),
                Job::Spread(rooms, servers) => self.spread(&hs, &rooms, servers),
                Job::Flush => self.flush(&hs),
                Job::Send(server) => self.serve(hs, &server),
                Job::End => break,
            }
        }
        lock(&self.0.state).alive -= 1;
        self.0.ended.notify_all();
    }

    /// Waits for something to do.
    fn next_job(&self, stays: bool) -> Job {
        let mut state = lock(&self.0.state);
        let idle_since = Instant::now();
        loop {
            if state.stopping {
                return Job::End;
            }
            self.take_in_what_is_due(&mut state);
            if let Some(job) = state.pick() {
                // While this thread is busy, another one looks after what is left.
                if state.has_work() {
                    if state.idle > 0 {
                        self.0.work.notify_one();
                    } else if state.alive < MAX_THREADS
                        && let Err(e) = self.spawn(&mut state)
                    {
                        log::warn!("no further thread for sending: {e}");
                    }
                }
                return job;
            }
            if !stays && idle_since.elapsed() >= IDLE {
                return Job::End;
            }
            let pause = self.pause(&state, stays);
            state.idle += 1;
            state = wait_timeout(&self.0.work, state, pause);
            state.idle -= 1;
        }
    }

    /// How long to sleep if nobody wakes us.
    fn pause(&self, state: &State, stays: bool) -> Duration {
        let mut pause = if stays { Duration::from_secs(600) } else { IDLE };
        if let Some((due, _)) = state.due.first() {
            let left = u64::try_from(due - self.0.clock.now_ms()).unwrap_or(0);
            pause = pause.min(Duration::from_millis(left + 1));
        }
        if let Some(at) = state.flush_at {
            pause = pause.min(at.saturating_duration_since(Instant::now()));
        }
        pause
    }

    fn take_in_what_is_due(&self, state: &mut State) {
        let now = self.0.clock.now_ms();
        while state.due.first().is_some_and(|(due, _)| *due <= now) {
            let Some((_, server)) = state.due.pop_first() else { return };
            if state.peers.get(&server).is_some_and(|p| p.doing == Doing::Pausing) {
                self.0.pausing.fetch_sub(1, Ordering::Relaxed);
                state.line_up(&server);
            }
        }
    }

    /// Finds out who is owed what, and who is not to be tried yet.
    fn look_around(&self, hs: &Homeserver) {
        let found = hs.store.read(|db| Ok((db.failing_destinations()?, db.owed_servers()?)));
        let (failing, owed) = match found {
            Ok(found) => found,
            Err(e) => return log::error!("what is owed to other servers cannot be read: {e}"),
        };
        let before = self.0.clock.now_ms() - FORGOTTEN_AFTER;
        if failing.iter().any(|(_, kept)| kept.retry_ms < before)
            && let Err(e) = hs.store.write_lightly(move |tx| tx.forget_destinations(before))
        {
            log::log!(e.level(log::Level::Warn), "servers that are gone cannot be forgotten: {e}");
        }
        let mut state = lock(&self.0.state);
        for (server, kept) in failing {
            let peer = state.peers.entry(server.clone()).or_default();
            if peer.loaded {
                continue;
            }
            peer.learn(kept);
            self.let_pause(&mut state, &server);
        }
        for server in owed {
            self.wake(&mut state, &server);
        }
        drop(state);
        self.0.work.notify_all();
    }

    fn let_pause(&self, state: &mut State, server: &ServerName) {
        if let Some(peer) = state.peers.get_mut(server) {
            peer.doing = Doing::Pausing;
            let due = peer.kept.retry_ms;
            state.due.insert((due, server.clone()));
            self.0.pausing.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// Wakes the servers of rooms, and these servers, after reading what is kept of those that are not known yet.
    fn spread(&self, hs: &Homeserver, rooms: &[RoomKey], mut servers: Vec<ServerName>) {
        let found = hs.store.read(|db| {
            for room in rooms {
                servers.extend(db.destinations_of_room(*room)?);
            }
            let unknown: Vec<ServerName> = {
                let state = lock(&self.0.state);
                let is_known = |server: &ServerName| state.peers.get(server).is_some_and(|p| p.loaded);
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
        let mut state = lock(&self.0.state);
        for (kept, server) in learned {
            let peer = state.peers.entry(server).or_default();
            if !peer.loaded {
                peer.learn(kept);
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
            let of = |s: ServerName| state.peers.get(&s).map(|p| (s, p.kept.clone(), p.edus_upto));
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
        if state.peers.len() > MAX_IDLE_PEERS {
            let State { peers, unflushed, .. } = &mut *state;
            peers.retain(|name, p| {
                p.doing != Doing::Nothing || !p.edus.is_empty() || unflushed.contains(name)
            });
        }
    }

    /// One transaction to one destination.
    fn serve(&self, hs: Arc<Homeserver>, server: &ServerName) {
        let transaction = self.prepare(&hs, server).unwrap_or_else(|e| {
            log::log!(e.level(log::Level::Error), "what is owed to {server} cannot be read: {e}");
            None
        });
        let outcome = transaction.map(|transaction| {
            let client = Arc::clone(&hs.federation);
            drop(hs);
            // A defect must not take this destination out of service for good.
            let answer =
                catch_unwind(AssertUnwindSafe(|| send(&client, &self.0.clock, server, &transaction)));
            let answer = answer.unwrap_or_else(|_| Err(CallError::bad("sending panicked")));
            (transaction, answer)
        });
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        let Some(peer) = state.peers.get_mut(server) else { return };
        let line = peer.line;
        peer.doing = Doing::Nothing;
        let again = std::mem::take(&mut peer.again);
        state.busy[line as usize] -= 1;
        self.0.delivered.notify_all();
        let Some((transaction, answer)) = outcome else {
            if again {
                self.wake(&mut state, server);
            }
            state.flush_by(FLUSH_AFTER);
            return;
        };
        if state.stopping && answer.is_err() {
            return;
        }
        let (more, pauses) = state.conclude(server, &transaction, answer, now);
        state.flush_by(FLUSH_AFTER);
        if pauses {
            self.let_pause(&mut state, server);
        } else if more || again {
            self.wake(&mut state, server);
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Once a destination that was away has taken in the transaction that had failed: of the rooms in which it missed
    /// much it is owed no more than the last events. They rest on the others, so that it learns of those.
    fn leave_out_what_is_too_much(&self, hs: &Homeserver, server: &ServerName) -> Result<()> {
        let cursor = match lock(&self.0.state).peers.get_mut(server) {
            Some(peer) if peer.was_away && peer.kept.attempt_upto.is_none() => {
                peer.was_away = false;
                peer.kept.cursor
            }
            _ => return Ok(()),
        };
        let long = hs.store.read(|db| db.long_backlogs(server, cursor, MOST_MISSED, LAST_FEW))?;
        if long.is_empty() {
            return Ok(());
        }
        log::info!(
            "{server} was away: of {} rooms in which it missed much it gets the last events",
            long.len()
        );
        let server = server.clone();
        hs.store.write(move |tx| tx.shorten_backlogs(&server, cursor, &long))
    }

    /// Puts the next transaction together; none if nothing is owed.
    fn prepare(&self, hs: &Homeserver, server: &ServerName) -> Result<Option<Transaction>> {
        if !hs.config.peers.allows(server.as_str()) {
            // It stays owed, for the day when we talk to it again.
            return Ok(None);
        }
        self.leave_out_what_is_too_much(hs, server)?;
        let (kept, edus_upto, max_pdus, failed_edus, within) = {
            let mut state = lock(&self.0.state);
            let peer = state.peers.entry(server.clone()).or_default();
            let within = if peer.reached { WITHIN } else { WITHIN_UNPROVEN };
            (peer.kept.clone(), peer.edus_upto, peer.max_pdus, peer.failed_edus.clone(), within)
        };
        let is_repeat = failed_edus.is_some() || kept.attempt_upto.is_some();
        let position = hs.store.position();
        let (mut owed, durable) = hs.store.read(|db| {
            let upto = kept.attempt_upto.unwrap_or(position);
            let owed = Owed::read(db, server, (kept.cursor, upto), max_pdus)?;
            // A repeat goes without what has become owed since it failed, ephemeral messages too.
            let durable = match is_repeat {
                true => Vec::new(),
                false => db.owed_edus(server, edus_upto, position, MAX_EDUS)?,
            };
            Ok((owed, durable))
        })?;
        let device_lists = std::mem::take(&mut owed.device_lists);
        let (edus, more_edus) = match failed_edus {
            Some(failed) => (failed, false),
            None => self.gather_edus(server, device_lists, durable, (edus_upto, is_repeat)),
        };
        let more = kept.attempt_upto.is_some() || owed.more || more_edus;
        let Owed { events, upto, .. } = owed;
        if !events.is_empty() || !edus.edus.is_empty() {
            return Ok(Some(Transaction { upto, events, edus, more, within }));
        }
        // Nothing owed up to here: next time the search begins here.
        let mut state = lock(&self.0.state);
        if let Some(peer) = state.peers.get_mut(server) {
            peer.kept.cursor = peer.kept.cursor.max(upto);
            peer.failed_edus = None;
            peer.again |= more;
            if peer.kept.attempt_upto.take().is_some() {
                // The transaction that failed in an earlier run had nothing but ephemeral messages: look what is left.
                peer.again = true;
            } else if peer.kept.failures > 0 {
                peer.kept.failures = 0;
                state.unflushed.insert(server.clone());
            }
        }
        Ok(None)
    }

    /// The ephemeral part of a transaction: the device lists, as many of the durable messages as fit, and of those that
    /// wait in memory. After a restart nothing is known of the latter two parts of what failed: the repeat goes without.
    /// Also whether there are more.
    fn gather_edus(
        &self,
        server: &ServerName,
        device_lists: Vec<String>,
        mut durable: Vec<OwedEdu>,
        (edus_upto, is_repeat): (i64, bool),
    ) -> (WaitingEdus, bool) {
        let most = MAX_EDUS - device_lists.len();
        let sums = durable.iter().scan(0, |sum, owed| {
            *sum += owed.edu.len();
            Some(*sum)
        });
        let fitting = sums.take_while(|sum| *sum <= MAX_EDU_BYTES).count().clamp(1, most);
        let mut more = fitting < durable.len() || durable.len() == MAX_EDUS;
        durable.truncate(fitting);
        let durable_upto = durable.last().map_or(edus_upto, |e| e.stream);
        let mut edus: Vec<String> = durable.into_iter().map(|e| e.edu).collect();
        for list in device_lists {
            // The change may have come after the join.
            if !edus.contains(&list) {
                edus.push(list);
            }
        }
        let mut state = lock(&self.0.state);
        state.serial += 1;
        let serial = state.serial;
        if let Some(peer) = state.peers.get_mut(server).filter(|_| !is_repeat) {
            let room = (MAX_EDUS - edus.len()).min(peer.edus.len());
            edus.extend(peer.edus.drain(..room).map(|e| e.json));
            more |= !peer.edus.is_empty();
        }
        (WaitingEdus { edus, durable_upto, serial }, more)
    }
}

#[cfg(test)]
mod tests;
