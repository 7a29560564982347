//! The connections that are open, as the server's books have them, and which of them goes when all slots are taken.
//!
//! First the one that has been idle for longest. Then those that are held up by their other end, whose head or body is slow to
//! come or who are slow to read their reply: of whoever has most of them, the one that has been held up for longest. So it is
//! that who holds slots by being slow loses theirs before anybody does who has a bad line. What a handler works for is never
//! given up.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpStream};
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::address::group;
use crate::http::transport::bounds::RequestOwner;
use crate::http::transport::server::ServerState;
use crate::locks::lock;

/// Who has been held up by their other end for so long, in milliseconds, may be given up for a new connection when every slot is
/// taken.
const HELD_UP_MIN_MS: u64 = 2000;

/// The phases of a connection; `WORKING` is none in which it may be cut for another's sake.
const IDLE: u8 = 0;
const HEAD: u8 = 1;
const WORKING: u8 = 2;
const WRITING: u8 = 3;
const RETIRED: u8 = 4;

#[derive(Default)]
pub(super) struct Registry {
    pub(super) open: HashMap<u64, Arc<OpenConnection>>,
    pub(super) by_address: HashMap<IpAddr, usize>,
    last_id: u64,
}

/// One connection, as the server's books have it.
pub(super) struct OpenConnection {
    id: u64,
    pub(super) address: SocketAddr,
    /// It came by the local socket.
    pub(super) is_local: bool,
    pub(super) tcp: Arc<TcpStream>,
    phase: AtomicU8,
    /// When the phase began, in milliseconds since the server started.
    since: AtomicU64,
    /// For how many milliseconds replies have waited to be read so far.
    blocked: AtomicU64,
    /// Whom the last request was made for.
    owner: Mutex<Arc<RequestOwner>>,
}

impl OpenConnection {
    fn change(&self, from: u8, to: u8) -> bool {
        self.phase.compare_exchange(from, to, Ordering::SeqCst, Ordering::SeqCst).is_ok()
    }

    /// Takes the connection out of service if no handler works for it. True: it may be cut.
    pub(super) fn retire(&self) -> bool {
        [IDLE, HEAD, WRITING].into_iter().any(|phase| self.change(phase, RETIRED))
    }

    /// For how many milliseconds its other end has held it up, if it does.
    fn held_up(&self, now: u64) -> Option<u64> {
        let here = now.saturating_sub(self.since.load(Ordering::Relaxed));
        match self.phase.load(Ordering::Relaxed) {
            HEAD => Some(here),
            // However often they read a little meanwhile, and whatever the replies are that they do not read.
            WRITING => Some(here + self.blocked.load(Ordering::Relaxed)),
            _ => None,
        }
    }
}

impl Registry {
    /// One more connection.
    pub(super) fn add(
        &mut self,
        tcp: TcpStream,
        (address, is_local): (SocketAddr, bool),
        now: u64,
    ) -> Arc<OpenConnection> {
        self.last_id += 1;
        let key = group(address.ip());
        let peer = Arc::new(OpenConnection {
            id: self.last_id,
            address,
            is_local,
            tcp: Arc::new(tcp),
            // Not idle: who has just come has a moment to speak before room may be made at their cost.
            phase: AtomicU8::new(HEAD),
            since: AtomicU64::new(now),
            blocked: AtomicU64::new(0),
            owner: Mutex::new(Arc::new(RequestOwner::Address(key))),
        });
        self.open.insert(peer.id, peer.clone());
        *self.by_address.entry(key).or_default() += 1;
        peer
    }

    /// The connection that goes first, of this address group only if one is given. None: all are at work.
    pub(super) fn first_to_go(&self, now: u64, only: Option<IpAddr>) -> Option<Arc<OpenConnection>> {
        let may_go =
            |peer: &&Arc<OpenConnection>| only.is_none_or(|group_of| group(peer.address.ip()) == group_of);
        let those = || self.open.values().filter(may_go);
        let idle = those().filter(|peer| peer.phase.load(Ordering::Relaxed) == IDLE);
        if let Some(idle) = idle.min_by_key(|peer| peer.since.load(Ordering::Relaxed)) {
            return Some(idle.clone());
        }
        self.first_held_up(now, only)
    }

    /// Of those that are held up by their other end the one that goes first, of this address group only if one is given.
    pub(super) fn first_held_up(&self, now: u64, only: Option<IpAddr>) -> Option<Arc<OpenConnection>> {
        let may_go =
            |peer: &&Arc<OpenConnection>| only.is_none_or(|group_of| group(peer.address.ip()) == group_of);
        // Of each owner how many are held up, and the one that has been for longest.
        let mut held_up: HashMap<Arc<RequestOwner>, (usize, u64, &Arc<OpenConnection>)> = HashMap::new();
        for peer in self.open.values().filter(may_go) {
            let Some(for_ms) = peer.held_up(now).filter(|for_ms| *for_ms >= HELD_UP_MIN_MS) else { continue };
            let (count, longest, which) = held_up.entry(lock(&peer.owner).clone()).or_insert((0, 0, peer));
            *count += 1;
            if for_ms > *longest {
                (*longest, *which) = (for_ms, peer);
            }
        }
        let first = held_up.into_values().max_by_key(|(count, longest, _)| (*count, *longest))?;
        Some(first.2.clone())
    }

    /// Who has the most connections, and how many.
    pub(super) fn largest_holder(&self) -> Option<(Arc<RequestOwner>, usize)> {
        let mut held: HashMap<Arc<RequestOwner>, usize> = HashMap::new();
        for peer in self.open.values() {
            *held.entry(lock(&peer.owner).clone()).or_default() += 1;
        }
        held.into_iter().max_by_key(|(_, count)| *count)
    }
}

/// One connection of those that may be open; dropping it frees the slot.
pub(super) struct ConnectionSlot {
    pub(super) peer: Arc<OpenConnection>,
    pub(super) shared: Arc<ServerState>,
}

impl ConnectionSlot {
    /// Between requests. False: the connection was given up.
    pub(super) fn idle(&self) -> bool {
        self.peer.since.store(self.shared.millis(), Ordering::Relaxed);
        let from = self.peer.phase.load(Ordering::SeqCst);
        from != RETIRED && self.peer.change(from, IDLE)
    }

    /// Bytes of a head have come. False: the connection was given up.
    pub(super) fn head(&self) -> bool {
        self.peer.since.store(self.shared.millis(), Ordering::Relaxed);
        self.peer.phase.load(Ordering::SeqCst) == HEAD || self.peer.change(IDLE, HEAD)
    }

    /// Whether the connection was given up for another's sake.
    pub(super) fn is_retired(&self) -> bool {
        self.peer.phase.load(Ordering::SeqCst) == RETIRED
    }

    /// The request is complete: while it is worked for nobody cuts the connection. False: it was given up.
    pub(super) fn working(&self) -> bool {
        self.peer.change(HEAD, WORKING)
    }

    /// A piece of the reply goes to the other end, which may take its time to read it. False: the connection was given up.
    pub(super) fn begin_piece(&self) -> bool {
        if self.peer.phase.load(Ordering::SeqCst) == WORKING {
            self.peer.since.store(self.shared.millis(), Ordering::Relaxed);
            self.peer.change(WORKING, WRITING);
        }
        !self.is_retired()
    }

    /// The piece is on its way, after so long. False: the connection was given up.
    pub(super) fn end_piece(&self, blocked: Duration) -> bool {
        let blocked = u64::try_from(blocked.as_millis()).unwrap_or(u64::MAX);
        self.peer.blocked.fetch_add(blocked, Ordering::Relaxed);
        self.peer.change(WRITING, WORKING) || !self.is_retired()
    }

    /// Whom the request is made for that comes next, or has come.
    pub(super) fn belongs_to(&self, owner: RequestOwner) {
        let mut known = lock(&self.peer.owner);
        if **known != owner {
            *known = Arc::new(owner);
        }
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        let mut registry = lock(&self.shared.registry);
        registry.open.remove(&self.peer.id);
        let key = group(self.peer.address.ip());
        if let Some(count) = registry.by_address.get_mut(&key) {
            *count -= 1;
            if *count == 0 {
                registry.by_address.remove(&key);
            }
        }
        drop(registry);
        self.shared.slot_freed.notify_all();
    }
}
