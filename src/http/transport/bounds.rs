//! The bounds of the connection layer: how much of everything there may be, and two crowds that cannot starve each other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::locks::{lock, wait, wait_timeout};

/// The fewest woken requests that may look again at once.
const MOST_WOKEN: usize = 8;

/// Whose requests share a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Crowd {
    /// Users' clients.
    Clients,
    /// Other servers.
    Servers,
    /// Requests that are answered without asking another server: never made to wait, because they are what another
    /// server may need before it can answer us.
    Uncounted,
}

/// Every bound of the connection layer.
#[derive(Debug, Clone)]
pub struct Limits {
    /// Most connections at once.
    pub connections: usize,
    /// Most connections at once from one address (a /64 of IPv6). Loopback is exempt: a reverse proxy lives there.
    pub per_address: usize,
    /// Most requests of one crowd in handlers at once, waiting ones included.
    pub in_flight: usize,
    /// How long a request may wait for its crowd's turn before it is told 503.
    pub turn_time: Duration,
    /// Time for a whole head, TLS handshake included.
    pub head_time: Duration,
    /// How long a connection may stay between requests.
    pub idle_time: Duration,
    /// Time for a whole body or reply, before the rate below counts.
    pub transfer_grace: Duration,
    /// Slowest body or reply beyond the grace, in bytes a second.
    pub transfer_rate: usize,
    /// Memory for request bodies of one crowd, in bytes; bodies up to 16 KiB are not counted.
    pub body_memory: usize,
    /// How often a waiting request looks whether its client is still there.
    pub hang_up_check: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            connections: 8192,
            per_address: 256,
            in_flight: 4096,
            turn_time: Duration::from_secs(3),
            head_time: Duration::from_secs(10),
            idle_time: Duration::from_secs(90),
            transfer_grace: Duration::from_secs(20),
            transfer_rate: 2048,
            body_memory: 128 << 20,
            hang_up_check: Duration::from_secs(5),
        }
    }
}

/// Which share.
#[derive(Debug, Clone, Copy)]
enum Which {
    Clients,
    Servers,
    /// Requests that have waited and are looked at again: of a thousand that are woken by one event, a few at a time.
    Woken,
}

/// The shares of both crowds.
pub(in crate::http) struct Bounds {
    clients: Bound,
    servers: Bound,
    woken: Bound,
    turn_time: Duration,
    body_memory: usize,
    closed: AtomicBool,
}

/// One crowd's share: requests in handlers, and bytes of bodies.
struct Bound {
    most: usize,
    in_flight: Mutex<usize>,
    freed: Condvar,
    body_bytes: AtomicUsize,
}

impl Bound {
    fn new(most: usize) -> Self {
        Self { most, in_flight: Mutex::new(0), freed: Condvar::new(), body_bytes: AtomicUsize::new(0) }
    }
}

/// A request's permission to be in a handler; dropping it lets the next one in.
pub(in crate::http) struct Permit(Option<(Arc<Bounds>, Which)>);

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some((bounds, which)) = &self.0 {
            let bound = bounds.bound(*which);
            *lock(&bound.in_flight) -= 1;
            bound.freed.notify_one();
        }
    }
}

/// Bytes of body that a request holds in memory; dropping it gives them back.
pub(in crate::http) struct BodyMemory {
    bounds: Option<(Arc<Bounds>, Which)>,
    held: usize,
}

impl BodyMemory {
    /// Accounts for a body of now this many bytes. False: the crowd's share is used up.
    pub(in crate::http) fn grow_to(&mut self, bytes: usize) -> bool {
        const FREE: usize = 16 << 10;
        const STEP: usize = 64 << 10;
        let Some((bounds, which)) = &self.bounds else { return true };
        let wanted = if bytes <= FREE { 0 } else { bytes.next_multiple_of(STEP) };
        if wanted > self.held {
            let more = wanted - self.held;
            let before = bounds.bound(*which).body_bytes.fetch_add(more, Ordering::SeqCst);
            self.held = wanted;
            return before + more <= bounds.body_memory;
        }
        true
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        if let Some((bounds, which)) = &self.bounds {
            bounds.bound(*which).body_bytes.fetch_sub(self.held, Ordering::SeqCst);
        }
    }
}

impl Bounds {
    pub(in crate::http) fn new(limits: &Limits) -> Self {
        let Limits { in_flight, turn_time, body_memory, .. } = *limits;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            clients: Bound::new(in_flight),
            servers: Bound::new(in_flight),
            woken: Bound::new((2 * processors).max(MOST_WOKEN)),
            turn_time,
            body_memory,
            closed: AtomicBool::new(false),
        }
    }

    fn bound(&self, which: Which) -> &Bound {
        match which {
            Which::Clients => &self.clients,
            Which::Servers => &self.servers,
            Which::Woken => &self.woken,
        }
    }

    /// Waits for a turn, until the deadline if there is one. False: it has passed, or the server stops.
    fn enter(&self, which: Which, deadline: Option<Instant>) -> bool {
        let bound = self.bound(which);
        let mut in_flight = lock(&bound.in_flight);
        while *in_flight >= bound.most {
            if self.closed.load(Ordering::SeqCst) {
                return false;
            }
            in_flight = match deadline {
                None => wait(&bound.freed, in_flight),
                Some(deadline) => {
                    let left = deadline.saturating_duration_since(Instant::now());
                    if left.is_zero() {
                        return false;
                    }
                    wait_timeout(&bound.freed, in_flight, left)
                }
            };
        }
        *in_flight += 1;
        true
    }

    /// Waits for the crowd's turn. `None`: the time for that is up, or the server stops.
    pub(in crate::http) fn permit(self: &Arc<Self>, crowd: Crowd) -> Option<Permit> {
        let Some(which) = crowd.share() else { return Some(Permit(None)) };
        let deadline = Instant::now() + self.turn_time;
        self.enter(which, Some(deadline)).then(|| Permit(Some((self.clone(), which))))
    }

    /// Waits until a request that was woken may look again. Nobody is turned away here.
    pub(in crate::http) fn permit_woken(self: &Arc<Self>) -> Permit {
        Permit(self.enter(Which::Woken, None).then(|| (self.clone(), Which::Woken)))
    }

    /// Nobody waits for a turn any more.
    pub(in crate::http) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for bound in [&self.clients, &self.servers, &self.woken] {
            // Under the lock, so that nobody is between looking at the flag and waiting.
            let _in_flight = lock(&bound.in_flight);
            bound.freed.notify_all();
        }
    }

    /// What all bodies of both crowds hold.
    pub(in crate::http) fn body_bytes(&self) -> usize {
        [&self.clients, &self.servers].iter().map(|bound| bound.body_bytes.load(Ordering::SeqCst)).sum()
    }

    /// An account of the body that is about to be read.
    pub(in crate::http) fn body_memory(self: &Arc<Self>, crowd: Crowd) -> BodyMemory {
        BodyMemory { bounds: crowd.share().map(|which| (self.clone(), which)), held: 0 }
    }
}

impl Crowd {
    fn share(self) -> Option<Which> {
        match self {
            Self::Clients => Some(Which::Clients),
            Self::Servers => Some(Which::Servers),
            Self::Uncounted => None,
        }
    }
}
