//! Whom we are asking for events, and whom it is no use to ask: so that a slow server holds up its own events only, and
//! is not asked the same by several threads, nor again for what it gave already.

use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::locks::{KeyGuard, KeyedLock, lock};
use crate::protocol::signatures::verify::Proof;
use crate::protocol::{RoomId, ServerName};
use crate::service::events::fetch::auth_chains::UndecidedEvents;
use crate::service::events::fetch::unfilled::UnfilledGaps;
use crate::store::RoomKey;

/// How many fetches ask one server at once.
const FETCHES_PER_SERVER_MAX: usize = 4;
/// Pauses after fetches to a server that did not answer in time.
const PEER_BACKOFF: Backoff = Backoff::doubling(5_000, 300_000);
/// Servers whose pauses are remembered.
const PEERS_MAX: usize = 4096;
/// Rooms that wait for keys are remembered so long after that was last seen.
const KEYLESS_KEPT_MS: Millis = 3 * 3_600_000;
/// How many such rooms are remembered.
const KEYLESS_ROOMS_MAX: usize = 1000;
/// For so long nobody is asked again to vouch for what one server gives of a room.
const WORD_PAUSE_MS: Millis = 60_000;
/// In how many rooms undecided events are kept until the next attempt, their bytes in each, and for how long.
const UNDECIDED_ROOMS_MAX: usize = 8;
const UNDECIDED_KEPT_BYTES_MAX: usize = 2 << 20;
const UNDECIDED_KEPT: Duration = Duration::from_secs(300);

/// What is being fetched, and what was fetched in vain.
#[derive(Default)]
pub struct FetchLimits {
    busy: KeyedLock<FetchKey>,
    pub(super) unfilled: UnfilledGaps,
    peers: Mutex<BoundedMap<ServerName, PeerState, PEERS_MAX>>,
    /// For which server's events in which room others were asked in vain, and until when they are left in peace.
    quiet: Mutex<BoundedMap<(RoomKey, ServerName), Steady, PEERS_MAX>>,
    /// What an attempt that came to nothing has left for the next one in its room, and since when.
    undecided: Mutex<BoundedMap<RoomId, (UndecidedEvents, Instant), UNDECIDED_ROOMS_MAX>>,
    /// Rooms that wait for keys which nobody can be asked for, as was said in the log, and when that was last seen.
    keyless: Mutex<BoundedMap<RoomKey, Steady, KEYLESS_ROOMS_MAX>>,
    /// For what a server gives of a room, until when nobody is asked to vouch any more.
    asked_for_word: Mutex<BoundedMap<(RoomKey, ServerName), Steady, PEERS_MAX>>,
}

/// For which room something is being fetched from which server.
type FetchKey = (RoomKey, ServerName);

#[derive(Default)]
struct PeerState {
    under_way: usize,
    failures: u32,
    not_before: Option<Instant>,
}

impl FetchLimits {
    /// Waits until nobody else fetches the same. None if that takes too long.
    pub(in crate::service) fn begin(
        &self,
        room: RoomKey,
        peer: &ServerName,
        until: Instant,
    ) -> Option<FetchGuard<'_>> {
        self.busy.lock_until((room, peer.clone()), until)
    }

    /// Permission to ask a server. None if enough is asked of it, or it did not answer lately.
    pub(in crate::service) fn ask(&self, peer: &ServerName) -> Option<PeerPermit<'_>> {
        let (mut peers, now) = (self.peers(), Instant::now());
        // The names that others made up must not keep this one from being asked.
        let state = peers.get_or_default(peer.clone(), |p| match p.not_before {
            _ if p.under_way > 0 => Worth::InUse,
            Some(at) if at > now => Worth::Little,
            _ => Worth::Nothing,
        });
        if state.under_way >= FETCHES_PER_SERVER_MAX || state.not_before.is_some_and(|at| at > Instant::now())
        {
            return None;
        }
        state.under_way += 1;
        Some(PeerPermit { limits: self, peer: peer.clone(), answered: false })
    }

    /// Until when it is no use to ask a server, if it is not.
    pub(in crate::service) fn pauses_until(&self, peer: &ServerName) -> Option<Instant> {
        self.peers().get(peer).and_then(|p| p.not_before).filter(|at| *at > Instant::now())
    }

    /// Whether a server did not answer when it was asked last.
    pub(in crate::service) fn has_failed(&self, server: &ServerName) -> bool {
        self.peers().get(server).is_some_and(|state| state.failures > 0)
    }

    /// Notes that the servers of a room were asked in vain for what a server's events there refer to.
    pub(in crate::service) fn note_quiet(
        &self,
        room: RoomKey,
        origin: &ServerName,
        until: Steady,
        now: Steady,
    ) {
        let mut quiet = lock(&self.quiet);
        quiet.retain(|_, until| *until > now);
        quiet.try_insert((room, origin.clone()), until);
    }

    /// For how long those servers are left in peace, if they are: whoever makes up events must not make us bother others.
    pub(in crate::service) fn quiet_for(
        &self,
        room: RoomKey,
        origin: &ServerName,
        now: Steady,
    ) -> Option<Millis> {
        let quiet = lock(&self.quiet);
        quiet.get(&(room, origin.clone())).map(|until| *until - now).filter(|left| *left > 0)
    }

    /// Notes that a room waits for keys that nobody can be asked for. Whether that is new.
    pub(in crate::service) fn is_newly_keyless(&self, room: RoomKey, now: Steady) -> bool {
        let mut keyless = lock(&self.keyless);
        let is_over = |last: &Steady| now - *last > KEYLESS_KEPT_MS;
        let is_known = keyless.get(&room).is_some_and(|last| !is_over(last));
        keyless.insert(room, now, |last| if is_over(last) { Worth::Nothing } else { Worth::Little });
        !is_known
    }

    /// Whether others may be asked to vouch for what a server gives of a room, which is done herewith: whoever makes up
    /// events must not make us bother them.
    pub(in crate::service) fn may_ask_for_word(&self, room: RoomKey, peer: &ServerName, now: Steady) -> bool {
        let (mut asked, key) = (lock(&self.asked_for_word), (room, peer.clone()));
        asked.retain(|_, until| *until > now);
        !asked.contains_key(&key) && asked.try_insert(key, now + WORD_PAUSE_MS)
    }

    /// A server has spoken to us: whatever could not be had without it is worth asking for again.
    pub(in crate::service) fn peer_spoke(&self, server: &ServerName) {
        self.unfilled.peer_spoke(server);
    }

    /// What was left for this attempt in a room: who gives a long chain event by event need not begin anew.
    pub(in crate::service) fn take_undecided(&self, room: &RoomId) -> UndecidedEvents {
        let mut undecided = lock(&self.undecided);
        undecided.retain(|_, (_, since)| since.elapsed() < UNDECIDED_KEPT);
        undecided.remove(room).map(|(events, _)| events).unwrap_or_default()
    }

    /// Leaves undecided events of a room for the next attempt: such as nobody else could give otherwise, whole ones with
    /// signatures that are certain.
    pub(in crate::service) fn keep_undecided(&self, room: &RoomId, mut events: UndecidedEvents) {
        let mut bytes = 0;
        events.retain(|_, event| {
            let is_kept = event.is_whole() && event.proof() == Proof::Certain;
            bytes += if is_kept { event.json().len() } else { 0 };
            is_kept && bytes <= UNDECIDED_KEPT_BYTES_MAX
        });
        if !events.is_empty() {
            let kept = (events, Instant::now());
            lock(&self.undecided).insert(room.clone(), kept, |_| Worth::Little);
        }
    }

    fn peers(&self) -> MutexGuard<'_, BoundedMap<ServerName, PeerState, PEERS_MAX>> {
        lock(&self.peers)
    }
}

/// The right to fetch something for a room from a server.
type FetchGuard<'e> = KeyGuard<'e, FetchKey>;

/// A server that is being asked. Unless it is said that it answered, it is left alone for a while afterwards.
pub(in crate::service) struct PeerPermit<'e> {
    limits: &'e FetchLimits,
    peer: ServerName,
    answered: bool,
}

impl PeerPermit<'_> {
    /// It answered, whatever it said.
    pub(in crate::service) fn answered(mut self) {
        self.answered = true;
    }
}

impl Drop for PeerPermit<'_> {
    fn drop(&mut self) {
        let mut peers = self.limits.peers();
        let Some(state) = peers.get_mut(&self.peer) else { return };
        state.under_way = state.under_way.saturating_sub(1);
        if self.answered {
            state.failures = 0;
            state.not_before = None;
            if state.under_way == 0 {
                peers.remove(&self.peer);
            }
            return;
        }
        state.failures = state.failures.saturating_add(1);
        state.not_before = Some(Instant::now() + PEER_BACKOFF.pause(state.failures));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_server_that_does_not_answer_is_left_alone_and_one_that_does_is_asked_a_few_times_at_once() {
        let limits = FetchLimits::default();
        let (silent, good) = (name("silent.example"), name("good.example"));
        drop(limits.ask(&silent).expect("it may be asked"));
        assert!(limits.ask(&silent).is_none() && limits.pauses_until(&silent).is_some());
        assert!(limits.has_failed(&silent) && !limits.has_failed(&good));
        let all: Vec<_> =
            (0..FETCHES_PER_SERVER_MAX).map(|_| limits.ask(&good).expect("it may be asked")).collect();
        assert!(limits.ask(&good).is_none());
        all.into_iter().for_each(PeerPermit::answered);
        limits.ask(&good).expect("it may be asked").answered();
        assert!(limits.pauses_until(&good).is_none());
    }

    #[test]
    fn however_many_servers_did_not_answer_others_are_asked() {
        let limits = FetchLimits::default();
        for n in 0..3 * PEERS_MAX {
            drop(limits.ask(&name(&format!("s{n}.example"))).expect("it may be asked"));
        }
        assert!(limits.peers().len() <= PEERS_MAX);
        assert!(
            limits.ask(&name("s1.example")).is_some() || limits.pauses_until(&name("s1.example")).is_some()
        );
    }

    fn name(name: &str) -> ServerName {
        ServerName::parse(name).expect("a name")
    }
}
