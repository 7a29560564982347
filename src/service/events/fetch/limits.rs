//! Whom we are asking for events, and whom it is no use to ask: so that a slow server holds up its own events only, and
//! is not asked the same by several threads.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::Millis;
use crate::locks::{KeyGuard, KeyedLock, lock};
use crate::protocol::ServerName;
use crate::store::{Place, RoomKey};

/// For how long a hole that nobody could fill is left alone.
const AGAIN: Duration = Duration::from_secs(300);
/// How many such holes are remembered.
const MOST_IN_VAIN: usize = 1000;
/// How many errands lead to one server at once.
const MOST_TO_ONE: usize = 4;
/// Pauses after errands to a server that did not answer in time.
const PAUSES: Backoff = Backoff::doubling(5_000, 300_000);
/// Servers whose pauses are remembered.
const MOST_PEERS: usize = 4096;

/// What is being fetched, and what was fetched in vain.
#[derive(Default)]
pub struct Errands {
    busy: KeyedLock<Walk>,
    /// Holes that nobody could fill, and when that was found out: not asked for again at once.
    in_vain: Mutex<BoundedMap<(RoomKey, Place), Instant, MOST_IN_VAIN>>,
    peers: Mutex<BoundedMap<ServerName, Peer, MOST_PEERS>>,
    /// For which server's events in which room others were asked in vain, and until when they are left in peace.
    calm: Mutex<BoundedMap<(RoomKey, ServerName), Millis, MOST_PEERS>>,
}

/// For which room something is being fetched from which server.
type Walk = (RoomKey, ServerName);

#[derive(Default)]
struct Peer {
    asking: usize,
    failures: u32,
    not_before: Option<Instant>,
}

impl Errands {
    /// Waits until nobody else fetches the same. None if that takes too long.
    pub(in crate::service) fn begin(
        &self,
        room: RoomKey,
        peer: &ServerName,
        until: Instant,
    ) -> Option<Turn<'_>> {
        self.busy.lock_until((room, peer.clone()), until)
    }

    /// Permission to ask a server. None if enough is asked of it, or it did not answer lately.
    pub(in crate::service) fn ask(&self, peer: &ServerName) -> Option<Asking<'_>> {
        let (mut peers, now) = (self.peers(), Instant::now());
        // The names that others made up must not keep this one from being asked.
        let state = peers.get_or_default(peer.clone(), |p| match p.not_before {
            _ if p.asking > 0 => Worth::InUse,
            Some(at) if at > now => Worth::Little,
            _ => Worth::Nothing,
        });
        if state.asking >= MOST_TO_ONE || state.not_before.is_some_and(|at| at > Instant::now()) {
            return None;
        }
        state.asking += 1;
        Some(Asking { errands: self, peer: peer.clone(), answered: false })
    }

    /// Until when it is no use to ask a server, if it is not.
    pub(in crate::service) fn pauses_until(&self, peer: &ServerName) -> Option<Instant> {
        self.peers().get(peer).and_then(|p| p.not_before).filter(|at| *at > Instant::now())
    }

    /// Notes that the servers of a room were asked in vain for what a server's events there refer to.
    pub(in crate::service) fn note_calm(
        &self,
        room: RoomKey,
        origin: &ServerName,
        until: Millis,
        now: Millis,
    ) {
        let mut calm = lock(&self.calm);
        calm.retain(|_, until| *until > now);
        calm.try_insert((room, origin.clone()), until);
    }

    /// Until when those servers are left in peace, if they are: whoever makes up events must not make us bother others.
    pub(in crate::service) fn calm_until(
        &self,
        room: RoomKey,
        origin: &ServerName,
        now: Millis,
    ) -> Option<Millis> {
        let calm = lock(&self.calm);
        calm.get(&(room, origin.clone())).copied().filter(|until| *until > now)
    }

    pub(in crate::service) fn was_in_vain(&self, hole: (RoomKey, Place)) -> bool {
        let in_vain = lock(&self.in_vain);
        in_vain.get(&hole).is_some_and(|when| when.elapsed() < AGAIN)
    }

    pub(in crate::service) fn note_in_vain(&self, hole: (RoomKey, Place)) {
        let mut in_vain = lock(&self.in_vain);
        let is_over = |when: &Instant| when.elapsed() >= AGAIN;
        in_vain.insert(
            hole,
            Instant::now(),
            |when| if is_over(when) { Worth::Nothing } else { Worth::Little },
        );
    }

    fn peers(&self) -> MutexGuard<'_, BoundedMap<ServerName, Peer, MOST_PEERS>> {
        lock(&self.peers)
    }
}

/// The right to fetch something for a room from a server.
type Turn<'e> = KeyGuard<'e, Walk>;

/// A server that is being asked. Unless it is said that it answered, it is left alone for a while afterwards.
pub(in crate::service) struct Asking<'e> {
    errands: &'e Errands,
    peer: ServerName,
    answered: bool,
}

impl Asking<'_> {
    /// It answered, whatever it said.
    pub(in crate::service) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        let mut peers = self.errands.peers();
        let Some(state) = peers.get_mut(&self.peer) else { return };
        state.asking = state.asking.saturating_sub(1);
        if self.answered {
            state.failures = 0;
            state.not_before = None;
            if state.asking == 0 {
                peers.remove(&self.peer);
            }
            return;
        }
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + PAUSES.pause(state.failures));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_left_alone_and_one_that_does_is_asked_a_few_times_at_once() {
        let errands = Errands::default();
        let (silent, good) = (name("silent.example"), name("good.example"));
        drop(errands.ask(&silent).expect("it may be asked"));
        assert!(errands.ask(&silent).is_none() && errands.pauses_until(&silent).is_some());
        let all: Vec<_> = (0..MOST_TO_ONE).map(|_| errands.ask(&good).expect("it may be asked")).collect();
        assert!(errands.ask(&good).is_none());
        all.into_iter().for_each(Asking::answered);
        errands.ask(&good).expect("it may be asked").answered();
        assert!(errands.pauses_until(&good).is_none());
    }

    #[test]
    fn however_many_servers_did_not_answer_others_are_asked() {
        let errands = Errands::default();
        for n in 0..3 * MOST_PEERS {
            drop(errands.ask(&name(&format!("s{n}.example"))).expect("it may be asked"));
        }
        assert!(errands.peers().len() <= MOST_PEERS);
        assert!(
            errands.ask(&name("s1.example")).is_some() || errands.pauses_until(&name("s1.example")).is_some()
        );
    }

    fn name(name: &str) -> ServerName {
        ServerName::parse(name).expect("a name")
    }
}
