//! The bounds of the connection layer: how much of everything there may be, two quotas, so that neither clients nor other
//! servers can starve the others, and of each quota a share for whomever requests are made for, so that nobody can use one up.

use std::collections::HashMap;
use std::fmt;
use std::net::{IpAddr, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::address::TrustedProxies;
use crate::http::transport::large_bodies::{BodyMemory, LargeBodies};
use crate::locks::{lock, wait, wait_timeout};
use crate::machine::part_of_memory;
use crate::protocol::{ServerName, UserId};

/// The fewest woken requests that may look again at once.
const WOKEN_AT_ONCE_MIN: usize = 8;

/// Of a quota, the part that requests for one user or address may have, and what they may have in any case.
const SHARE_OF_QUOTA: usize = 32;
const SHARE_MIN: usize = 8;

/// Of the memory that there is, one part of so many is for the text of bodies of one quota, and one for what is built of it:
/// with both quotas, all that is made of it and the rest of the server that leaves room on a machine of 512 MiB.
const PARTS_FOR_TEXT: usize = 16;
const PARTS_FOR_TREES: usize = 16;
/// There is room for the largest of bodies in any case, and for what may be built of it.
const BODY_MEMORY_MIN: usize = 16 << 20;
const TEXT_MEMORY_MAX: usize = 128 << 20;
const TREE_MEMORY_MAX: usize = 64 << 20;

/// Whom a request is made for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub(in crate::http) enum RequestOwner {
    /// Somebody without a name at this address, or at one of its group.
    Address(IpAddr),
    /// A local user.
    User(UserId),
    /// Another server, which has signed it and waits. What it has worked for is counted by its address: that it has
    /// signed is found out within, and names cost nothing, so that one address would have as many shares as it likes.
    Server(ServerName),
}

impl fmt::Display for RequestOwner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Address(ip) => ip.fmt(f),
            Self::User(user) => user.fmt(f),
            Self::Server(server) => server.fmt(f),
        }
    }
}

/// Whose requests share a bound.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Quota {
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
pub struct ConnectionLimits {
    /// Most connections at once.
    pub connections: usize,
    /// Most connections at once from one address (a /64 of IPv6). Loopback is exempt, as reverse
    /// proxies are that are trusted.
    pub per_address: usize,
    /// These.
    pub proxies: TrustedProxies,
    /// Most requests of one quota in handlers at once; and apart from them most that wait for news.
    pub in_flight: usize,
    /// How long a request may wait for its quota's turn before it is told 503.
    pub quota_timeout: Duration,
    /// Time for a whole head, TLS handshake included.
    pub head_timeout: Duration,
    /// How long a connection may stay between requests.
    pub idle_timeout: Duration,
    /// Time for a whole body or reply, before the rate below counts.
    pub transfer_grace: Duration,
    /// Slowest body or reply beyond the grace, in bytes a second.
    pub transfer_rate: usize,
    /// Time for a whole body that is kept, whatever it has earned by its rate.
    pub body_timeout: Duration,
    /// How long nothing of one may come.
    pub silence_timeout: Duration,
    /// Memory for the text of request bodies of one quota, in bytes, once for what is ordinary of each owner's and once for
    /// what is beyond; bodies up to 16 KiB are not counted.
    pub body_memory: usize,
    /// And for what is built of it, once in turns and once beside them.
    pub body_tree_memory: usize,
    /// How often a waiting request looks whether its client is still there.
    pub hang_up_check_interval: Duration,
    /// How long a request that waits has its place in a share before another of the same may have it.
    pub long_wait: Duration,
    /// How long one waits that comes when there is none.
    pub brief_wait: Duration,
}

impl Default for ConnectionLimits {
    fn default() -> Self {
        Self {
            connections: 8192,
            per_address: 256,
            proxies: TrustedProxies::default(),
            in_flight: 4096,
            quota_timeout: Duration::from_secs(3),
            head_timeout: Duration::from_secs(10),
            idle_timeout: Duration::from_secs(90),
            transfer_grace: Duration::from_secs(20),
            transfer_rate: 2048,
            body_timeout: Duration::from_secs(120),
            silence_timeout: Duration::from_secs(30),
            body_memory: part_of_memory(PARTS_FOR_TEXT, BODY_MEMORY_MIN, TEXT_MEMORY_MAX),
            body_tree_memory: part_of_memory(PARTS_FOR_TREES, BODY_MEMORY_MIN, TREE_MEMORY_MAX),
            hang_up_check_interval: Duration::from_secs(5),
            long_wait: Duration::from_secs(30),
            brief_wait: Duration::from_secs(5),
        }
    }
}

/// One of the shares.
#[derive(Debug, Clone, Copy)]
enum QuotaShare {
    Clients,
    Servers,
    /// Requests that have waited and are looked at again: of a thousand that are woken by one event, a few at a time.
    Woken,
}

/// The shares of both quotas.
pub(super) struct Bounds {
    clients: QuotaBound,
    servers: QuotaBound,
    woken: QuotaBound,
    bodies_of_clients: Arc<LargeBodies>,
    bodies_of_servers: Arc<LargeBodies>,
    quota_timeout: Duration,
    closed: AtomicBool,
}

/// The requests of a share.
#[derive(Default)]
struct InFlight {
    /// In handlers.
    count: usize,
    /// Of them, those for each who has a share.
    of_owner: HashMap<RequestOwner, usize>,
    /// Waiting for a turn: to wake nobody costs a call of the system all the same.
    waiting: usize,
}

/// One share: requests in handlers.
struct QuotaBound {
    most: usize,
    /// For each owner.
    each: usize,
    in_flight: Mutex<InFlight>,
    freed: Condvar,
    /// One of an owner who had all of their share.
    freed_of_owner: Condvar,
}

impl QuotaBound {
    fn new(most: usize) -> Self {
        Self {
            most,
            each: (most / SHARE_OF_QUOTA).max(SHARE_MIN),
            in_flight: Mutex::default(),
            freed: Condvar::new(),
            freed_of_owner: Condvar::new(),
        }
    }

    /// What has to be freed before one more of this owner may be in a handler. None: nothing.
    fn wants(&self, in_flight: &InFlight, owner: Option<&RequestOwner>) -> Option<&Condvar> {
        if in_flight.count >= self.most {
            return Some(&self.freed);
        }
        let of_owner = owner.and_then(|owner| in_flight.of_owner.get(owner)).copied().unwrap_or(0);
        (of_owner >= self.each).then_some(&self.freed_of_owner)
    }
}

/// A request's permission to be in a handler; dropping it lets the next one in.
pub(super) struct Permit(#[allow(dead_code, reason = "held")] Option<HeldPermit>);

struct HeldPermit {
    bounds: Arc<Bounds>,
    share: QuotaShare,
    owner: Option<RequestOwner>,
}

impl Drop for HeldPermit {
    fn drop(&mut self) {
        let bound = self.bounds.bound(self.share);
        let mut in_flight = lock(&bound.in_flight);
        in_flight.count -= 1;
        let mut had_all = false;
        if let Some(owner) = &self.owner
            && let Some(count) = in_flight.of_owner.get_mut(owner)
        {
            had_all = *count >= bound.each;
            *count -= 1;
            if *count == 0 {
                in_flight.of_owner.remove(owner);
            }
        }
        let is_wanted = in_flight.waiting > 0;
        drop(in_flight);
        if is_wanted {
            bound.freed.notify_one();
        }
        if is_wanted && had_all {
            bound.freed_of_owner.notify_all();
        }
    }
}

impl Bounds {
    pub(super) fn new(limits: &ConnectionLimits) -> Self {
        let ConnectionLimits { in_flight, quota_timeout, body_memory, body_tree_memory, .. } = *limits;
        let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
        Self {
            clients: QuotaBound::new(in_flight),
            servers: QuotaBound::new(in_flight),
            woken: QuotaBound::new((2 * processors).max(WOKEN_AT_ONCE_MIN)),
            bodies_of_clients: Arc::new(LargeBodies::new(body_memory, body_tree_memory)),
            bodies_of_servers: Arc::new(LargeBodies::new(body_memory, body_tree_memory)),
            quota_timeout,
            closed: AtomicBool::new(false),
        }
    }

    fn bound(&self, share: QuotaShare) -> &QuotaBound {
        match share {
            QuotaShare::Clients => &self.clients,
            QuotaShare::Servers => &self.servers,
            QuotaShare::Woken => &self.woken,
        }
    }

    /// Waits for a turn, until the deadline if there is one. None: it has passed, or the server stops.
    fn enter(
        self: &Arc<Self>,
        share: QuotaShare,
        owner: Option<RequestOwner>,
        deadline: Option<Instant>,
    ) -> Option<HeldPermit> {
        let bound = self.bound(share);
        let mut in_flight = lock(&bound.in_flight);
        while let Some(wanted) = bound.wants(&in_flight, owner.as_ref()) {
            if self.closed.load(Ordering::SeqCst) {
                return None;
            }
            let left = deadline.map(|deadline| deadline.saturating_duration_since(Instant::now()));
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            if in_flight.count < bound.most {
                // What may have woken this one is for others.
                bound.freed.notify_one();
            }
            in_flight.waiting += 1;
            in_flight = match left {
                None => wait(wanted, in_flight),
                Some(left) => wait_timeout(wanted, in_flight, left),
            };
            in_flight.waiting -= 1;
        }
        in_flight.count += 1;
        if let Some(owner) = &owner {
            *in_flight.of_owner.entry(owner.clone()).or_default() += 1;
        }
        Some(HeldPermit { bounds: self.clone(), share, owner })
    }

    /// Waits for the quota's turn, and for that of the owner's share if they have one. `None`: the time for that is up, or the
    /// server stops.
    pub(super) fn permit(self: &Arc<Self>, quota: Quota, owner: Option<RequestOwner>) -> Option<Permit> {
        let Some(share) = quota.share() else { return Some(Permit(None)) };
        let deadline = Instant::now() + self.quota_timeout;
        self.enter(share, owner, Some(deadline)).map(|held| Permit(Some(held)))
    }

    /// Waits until a request that was woken may look again. Nobody is turned away here.
    pub(super) fn permit_woken(self: &Arc<Self>) -> Permit {
        Permit(self.enter(QuotaShare::Woken, None, None))
    }

    /// Nobody waits for a turn any more.
    pub(super) fn close(&self) {
        self.closed.store(true, Ordering::SeqCst);
        for bound in [&self.clients, &self.servers, &self.woken] {
            // Under the lock, so that nobody is between looking at the flag and waiting.
            let _in_flight = lock(&bound.in_flight);
            bound.freed.notify_all();
            bound.freed_of_owner.notify_all();
        }
        self.bodies_of_clients.close();
        self.bodies_of_servers.close();
    }

    /// What the text of all bodies of both quotas hold.
    pub(super) fn body_bytes(&self) -> usize {
        self.bodies_of_clients.text_bytes() + self.bodies_of_servers.text_bytes()
    }

    /// An account of the body that is about to be read.
    pub(super) fn body_memory(
        &self,
        quota: Quota,
        owner: Option<RequestOwner>,
        socket: Option<Arc<TcpStream>>,
    ) -> BodyMemory {
        let bodies = match quota {
            Quota::Clients => Some(self.bodies_of_clients.clone()),
            Quota::Servers => Some(self.bodies_of_servers.clone()),
            Quota::Uncounted => None,
        };
        BodyMemory::new(bodies, owner, socket)
    }
}

impl Quota {
    fn share(self) -> Option<QuotaShare> {
        match self {
            Self::Clients => Some(QuotaShare::Clients),
            Self::Servers => Some(QuotaShare::Servers),
            Self::Uncounted => None,
        }
    }
}
