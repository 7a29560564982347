//! The bounds of the connection layer: how much of everything there may be, and two crowds that cannot starve each other.

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::server::lock;

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

/// The shares of both crowds.
pub(super) struct Bounds {
    clients: Bound,
    servers: Bound,
    in_flight: usize,
    turn_time: Duration,
    body_memory: usize,
    closed: AtomicBool,
}

/// One crowd's share: requests in handlers, and bytes of bodies.
struct Bound {
    in_flight: Mutex<usize>,
    freed: Condvar,
    body_bytes: AtomicUsize,
}

impl Bound {
    fn new() -> Self {
        Self { in_flight: Mutex::new(0), freed: Condvar::new(), body_bytes: AtomicUsize::new(0) }
    }
}

/// A request's permission to be in a handler; dropping it lets the next one in.
pub(super) struct Permit<'s>(Option<&'s Bound>);

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        if let Some(bound) = self.0 {
            *lock(&bound.in_flight) -= 1;
            bound.freed.notify_one();
        }
    }
}

/// Bytes of body that a request holds in memory; dropping it gives them back.
pub(super) struct BodyMemory<'s> {
    bound: Option<&'s Bound>,
    held: usize,
    most: usize,
}

impl BodyMemory<'_> {
    /// Accounts for a body of now this many bytes. False: the crowd's share is used up.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        const FREE: usize = 16 << 10;
        const STEP: usize = 64 << 10;
        let Some(bound) = self.bound else { return true };
        let wanted = if bytes <= FREE { 0 } else { bytes.next_multiple_of(STEP) };
        if wanted > self.held {
            let more = wanted - self.held;
            let before = bound.body_bytes.fetch_add(more, Ordering::SeqCst);
            self.held = wanted;
            return before + more <= self.most;
        }
        true
    }
}

impl Drop for BodyMemory<'_> {
    fn drop(&mut self) {
        if let Some(bound) = self.bound {
            bound.body_bytes.fetch_sub(self.held, Ordering::SeqCst);
        }
    }
}

impl Bounds {
    pub(super) fn new(limits: &Limits) -> Self {
        let Limits { in_flight, turn_time, body_memory, .. } = *limits;
        let (clients, servers) = (Bound::new(), Bound::new());
        Self { clients, servers, in_flight, turn_time, body_memory, closed: AtomicBool::new(false) }
    }

    fn bound(&self, crowd: Crowd) -> Option<&Bound> {
        match crowd {
            Crowd::Clients => Some(&self.clients),
            Crowd::Servers => Some(&self.servers),
            Crowd::Uncounted => None,
        }
    }

    /// Waits for the crowd's turn. `None`: the time for that is up, or the server stops.
    pub(super) fn permit(&self, crowd: Crowd) -> Option<Permit<'_>> {
        let Some(bound) = self.bound(crowd) else { return Some(Permit(None)) };
        let deadline = Instant::now() + self.turn_time;
        let mut in_flight = lock(&bound.in_flight);
        while *in_flight >= self.in_flight {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() || self.closed.load(Ordering::SeqCst) {
                return None;
            }
            in_flight = bound.freed.wait_timeout(in_flight, left).unwrap_or_else(PoisonError::into_inner).0;
        }
        *in_flight += 1;
        Some(Permit(Some(bound)))
    }

    /// Nobody waits for a turn any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for bound in [&self.clients, &self.servers] {
            // Under the lock, so that nobody is between looking at the flag and waiting.
            let _in_flight = lock(&bound.in_flight);
            bound.freed.notify_all();
        }
    }

    /// An account of the body that is about to be read.
    pub(super) fn body_memory(&self, crowd: Crowd) -> BodyMemory<'_> {
        BodyMemory { bound: self.bound(crowd), held: 0, most: self.body_memory }
    }
}
