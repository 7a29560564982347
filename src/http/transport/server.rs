//! The threads behind the listeners, and the bounds that keep clients and other servers from starving each other.
//!
//! One accept thread for all ports, and one for the local socket, survive every error. Each connection is served by one
//! thread at a time (`connection` does that, on the threads of `pool`). At the cap the connection that has been idle for
//! longest is closed, failing that one of those that are slow to send or to read (`registry`), never one for which a
//! handler works. Requests of clients and of other servers are counted apart, so that neither can hold every thread in a
//! handler, and two servers that call each other cannot lock each other up.

use std::io::{self, PipeReader, PipeWriter};
use std::net::{IpAddr, Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::address::group;
use crate::clock::Clock;
use crate::error::Result;
use crate::http::transport::bounds::{Bounds, ConnectionLimits, RequestOwner};
use crate::http::transport::connection::Connection;
use crate::http::transport::listeners::{ListenSpec, Listener, bind};
use crate::http::transport::pool::{READY_WORKERS, Role, ThreadPool};
use crate::http::transport::registry::{ConnectionSlot, OpenConnection, Registry};
use crate::http::transport::service::Service;
use crate::http::transport::socket::{interest, poll};
use crate::http::transport::tls::Tls;
use crate::http::transport::waits::Waits;
use crate::locks::{lock, wait_timeout, wait_until};

/// The pause after an accept error that waiting may cure (no descriptors, no memory), unless a slot frees earlier.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How often the operator is told that all connections are at work.
const CROWD_WARNING_INTERVAL_MS: u64 = 10 * 60 * 1000;
/// How long `stop` lets running requests finish, how long those have to give their answers that waited for others then,
/// and how long cut ones have to notice.
const STOP_GRACE_TIMEOUT: Duration = Duration::from_millis(600);
const STOP_HURRY_TIMEOUT: Duration = Duration::from_millis(300);
const STOP_CUT_TIMEOUT: Duration = Duration::from_millis(300);

/// Running listeners. Dropping it stops them.
pub struct Server {
    shared: Arc<ServerState>,
    addresses: Vec<SocketAddr>,
    certificates: Vec<Arc<Tls>>,
    acceptors: Mutex<Vec<thread::JoinHandle<()>>>,
    /// Closed to tell the accept threads to end, which hear of it at the other end of the pipe.
    stop: Mutex<Option<PipeWriter>>,
    ended: PipeReader,
}

impl Server {
    /// Serves anything, within these limits. The limits shrink to what the process may have open. Ports are bound here,
    /// not before. Errors: an address that cannot be bound, a certificate that cannot be used.
    pub fn serve(
        service: Arc<dyn Service>,
        mut limits: ConnectionLimits,
        listeners: &[ListenSpec],
    ) -> Result<Self> {
        let descriptors = usize::try_from(raise_descriptor_limit()).unwrap_or(usize::MAX);
        // The rest is for the database and for requests to other servers.
        limits.connections =
            limits.connections.min(descriptors - (descriptors / 4).max(64).min(descriptors / 2));
        limits.in_flight = limits.in_flight.min((limits.connections / 2).max(1));
        let shared = Arc::new(ServerState::new(service, limits));

        let mut bound = Vec::new();
        for spec in listeners {
            bound.extend(bind(spec)?);
        }
        let (mut addresses, mut certificates) = (Vec::new(), Vec::new());
        for listener in &bound {
            if let Listener::Tcp(listener, tls) = listener {
                addresses.push(listener.local_addr()?);
                certificates.extend(tls.clone());
            }
        }
        let (ended, stop) = io::pipe()?;
        // Who comes by the local socket never waits for those who come by the ports.
        let (local, ports) = bound.into_iter().partition(|listener| matches!(listener, Listener::Local(_)));
        let mut acceptors = Vec::new();
        for (name, listeners) in [("accept", ports), ("accept-local", local)] {
            let listeners: Vec<Listener> = listeners;
            let (accepting, told) = (shared.clone(), ended.try_clone()?);
            if !listeners.is_empty() {
                let accept = move || accept_all(&accepting, &listeners, &told);
                acceptors.push(thread::Builder::new().name(name.to_owned()).spawn(accept)?);
            }
        }
        Ok(Self {
            shared,
            addresses,
            certificates,
            acceptors: Mutex::new(acceptors),
            stop: Mutex::new(Some(stop)),
            ended,
        })
    }

    /// Serves a connection that somebody else accepted, in the clear. Any stream socket will do; `address` counts as
    /// that of its other end. Errors: the socket cannot be used.
    pub fn serve_connection(&self, stream: TcpStream, address: SocketAddr) -> io::Result<()> {
        begin(&self.shared, stream, Origin { address, is_local: false }, None, &self.ended)
    }

    /// The addresses that are listened on, in the order given, with the real ports; local sockets have none.
    pub fn local_addrs(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Reads every certificate file again, for SIGHUP. Connections stay.
    pub fn reload_certificates(&self) {
        self.certificates.iter().for_each(|tls| tls.reload());
    }

    /// The same by a thread of its own: who hears signals waits for no disk.
    pub fn reload_certificates_aside(&self) {
        let certificates = self.certificates.clone();
        let reload = move || certificates.iter().for_each(|tls| tls.reload());
        if let Err(e) = thread::Builder::new().name("certificate".to_owned()).spawn(reload) {
            log::warn!("the TLS certificate is not read again: {e}");
        }
    }

    /// How many connections are open, for tests and the curious.
    pub fn connections(&self) -> usize {
        lock(&self.shared.registry).open.len()
    }

    /// How many bytes of request bodies are held in memory (small ones are not counted).
    pub fn body_bytes(&self) -> usize {
        self.shared.bounds.body_bytes()
    }

    /// Accepts nothing more, lets running requests finish for a moment, then has those answered that wait for other
    /// servers, and cuts what is left. At once if no request is being answered, else within about a second.
    pub fn stop(&self) {
        if lock(&self.stop).take().is_none() {
            return;
        }
        for acceptor in lock(&self.acceptors).drain(..) {
            let _ = acceptor.join();
        }
        let shared = &self.shared;
        shared.stopping.store(true, Ordering::SeqCst);
        shared.bounds.close();
        shared.service.interrupt();
        shared.cut(|peer| peer.retire());
        let mut deadline = Instant::now() + STOP_GRACE_TIMEOUT;
        let mut empty = shared.wait_until_empty(deadline);
        if !empty {
            shared.service.hurry();
            deadline = Instant::now() + STOP_HURRY_TIMEOUT;
            empty = shared.wait_until_empty(deadline);
        }
        if !empty {
            shared.cut(|_| true);
            shared.service.interrupt();
            deadline = Instant::now() + STOP_CUT_TIMEOUT;
            shared.wait_until_empty(deadline);
        }
        shared.parkers.end(deadline);
        shared.workers.end(deadline);
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop();
    }
}

/// What all threads of one server share.
pub(super) struct ServerState {
    pub(super) service: Arc<dyn Service>,
    pub(super) limits: ConnectionLimits,
    /// What replies are dated by.
    pub(super) clock: Clock,
    stopping: AtomicBool,
    started: Instant,
    pub(super) registry: Mutex<Registry>,
    /// A connection ended.
    pub(super) slot_freed: Condvar,
    /// When the operator was told last that all connections are at work, as `started` counts.
    warned: AtomicU64,
    /// And that there is no thread for one.
    warned_of_threads: AtomicU64,
    workers: ThreadPool,
    parkers: ThreadPool,
    /// Workers that stay with a connection on which nothing has come.
    lingering: AtomicUsize,
    pub(super) bounds: Arc<Bounds>,
    pub(super) waits: Arc<Waits>,
}

/// One of the workers that may linger with a connection for a moment.
pub(super) struct Lingering<'s>(&'s AtomicUsize);

impl Drop for Lingering<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::AcqRel);
    }
}

/// Where a connection comes from.
#[derive(Clone, Copy)]
struct Origin {
    address: SocketAddr,
    /// It came by the local socket.
    is_local: bool,
}

impl ServerState {
    fn new(service: Arc<dyn Service>, limits: ConnectionLimits) -> Self {
        Self {
            bounds: Arc::new(Bounds::new(&limits)),
            waits: Arc::new(Waits::new(&limits)),
            service,
            limits,
            clock: Clock::new(),
            stopping: AtomicBool::new(false),
            started: Instant::now(),
            registry: Mutex::default(),
            slot_freed: Condvar::new(),
            warned: AtomicU64::new(0),
            warned_of_threads: AtomicU64::new(0),
            workers: ThreadPool::new(Role::Work),
            parkers: ThreadPool::new(Role::Park),
            lingering: AtomicUsize::new(0),
        }
    }

    /// Permission for a worker to wait a moment for its connection's next request: half of them may, as long as nobody
    /// waits for one.
    pub(super) fn lingering(&self) -> Option<Lingering<'_>> {
        let others = self.lingering.fetch_add(1, Ordering::AcqRel);
        let lingering = Lingering(&self.lingering);
        (others < READY_WORKERS / 2 && !self.workers.is_crowded()).then_some(lingering)
    }

    pub(super) fn is_stopping(&self) -> bool {
        self.stopping.load(Ordering::Relaxed)
    }

    /// Whether many may come from this address, of whom we know nothing more: from this machine, or by a proxy that is trusted.
    fn is_many(&self, ip: IpAddr) -> bool {
        group(ip).is_loopback() || self.limits.proxies.trusts(ip)
    }

    /// Whether all that is made for this owner is for one and the same, who has a share like others.
    pub(super) fn has_share(&self, owner: &RequestOwner) -> bool {
        !matches!(owner, RequestOwner::Address(ip) if self.is_many(*ip))
    }

    /// Milliseconds since the server started.
    pub(super) fn millis(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    /// Shuts the sockets of those connections down; their threads notice.
    fn cut(&self, which: impl Fn(&OpenConnection) -> bool) {
        for peer in lock(&self.registry).open.values() {
            if which(peer) {
                let _ = peer.tcp.shutdown(Shutdown::Both);
            }
        }
    }

    fn wait_until_empty(&self, deadline: Instant) -> bool {
        let mut registry = lock(&self.registry);
        while !registry.open.is_empty() {
            let Ok(woken) = wait_until(&self.slot_freed, registry, deadline) else { return false };
            registry = woken;
        }
        true
    }

    /// Closes a connection that may be closed for another's sake, of this address group only if one is given. False: all are
    /// at work.
    fn evict(&self, registry: &Registry, only: Option<IpAddr>) -> bool {
        self.close_first(|now| registry.first_to_go(now, only))
    }

    fn close_first(&self, first: impl Fn(u64) -> Option<Arc<OpenConnection>>) -> bool {
        while let Some(peer) = first(self.millis()) {
            if peer.retire() {
                let _ = peer.tcp.shutdown(Shutdown::Both);
                return true;
            }
        }
        false
    }

    /// Tells the operator, now and then, that the machine gives no thread for a connection.
    pub(super) fn warn_of_no_thread(&self, e: &io::Error) {
        if self.is_due(&self.warned_of_threads) {
            log::warn!(
                "the machine gives no thread for a connection, which waits for another's or is closed: {e}"
            );
        }
    }

    /// Whether so long has passed since a warning that it may be given again, which it is then.
    fn is_due(&self, warned: &AtomicU64) -> bool {
        let (now, last) = (self.millis(), warned.load(Ordering::Relaxed));
        let is_due = last == 0 || now.saturating_sub(last) >= CROWD_WARNING_INTERVAL_MS;
        if is_due {
            warned.store(now.max(1), Ordering::Relaxed);
        }
        is_due
    }

    /// Tells the operator, now and then, that all slots are at work, and who has most of them.
    fn warn_of_crowd(&self, registry: &Registry) {
        if self.is_due(&self.warned)
            && let Some((owner, count)) = registry.largest_holder()
        {
            let all = registry.open.len();
            log::warn!(
                "all {all} connections are at work, and new ones wait; most, {count}, are for {owner}"
            );
        }
    }

    /// A slot for a new connection, made by closing another if need be. Waits while every connection is at
    /// work: new ones then queue up in the kernel. Local ones have a place in any case, and a thread that accepts them and
    /// nothing else. `None`: the server stops, or the address has its share.
    fn enter(
        self: &Arc<Self>,
        tcp: TcpStream,
        Origin { address, is_local }: Origin,
        ended: &PipeReader,
    ) -> Option<ConnectionSlot> {
        let key = group(address.ip());
        let mut registry = lock(&self.registry);
        let count = registry.by_address.get(&key).copied().unwrap_or(0);
        if count >= self.limits.per_address
            && !self.is_many(address.ip())
            && !self.evict(&registry, Some(key))
        {
            return None;
        }
        while registry.open.len() >= self.limits.connections && !is_local {
            if !self.evict(&registry, None) {
                self.warn_of_crowd(&registry);
            }
            registry = wait_timeout(&self.slot_freed, registry, ACCEPT_PAUSE);
            if is_ended(ended) {
                return None;
            }
        }
        let peer = registry.add(tcp, (address, is_local), self.millis());
        Some(ConnectionSlot { peer, shared: self.clone() })
    }

    /// Closes an idle connection, whosever it is. False: all are at work.
    pub(super) fn evict_one(&self) -> bool {
        self.evict(&lock(&self.registry), None)
    }

    /// Closes a connection that keeps a thread and is held up by its other end, if there is one.
    pub(super) fn evict_held_up(&self) {
        let registry = lock(&self.registry);
        self.close_first(|now| registry.first_held_up(now, None));
    }

    pub(super) fn pool(&self, role: Role) -> &ThreadPool {
        match role {
            Role::Work => &self.workers,
            Role::Park => &self.parkers,
        }
    }
}

fn is_ended(ended: &PipeReader) -> bool {
    poll(&mut [interest(ended.as_raw_fd(), libc::POLLIN)], Some(Instant::now())).unwrap_or(true)
}

/// Accepts until the pipe is closed, whatever goes wrong with single connections.
fn accept_all(shared: &Arc<ServerState>, listeners: &[Listener], ended: &PipeReader) {
    let mut exhausted = false;
    loop {
        let mut fds = vec![interest(ended.as_raw_fd(), libc::POLLIN)];
        fds.extend(listeners.iter().map(|listener| interest(listener.as_raw_fd(), libc::POLLIN)));
        let polled = poll(&mut fds, None);
        if is_ended(ended) {
            return;
        }
        if polled.is_err() {
            pause(shared);
            continue;
        }
        let ready = listeners.iter().zip(&fds[1..]).filter(|(_, fd)| fd.revents != 0);
        for (listener, _) in ready {
            match accept_one(shared, listener, ended) {
                Ok(()) => exhausted = false,
                Err(e) if matches!(e.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(e) if is_exhaustion(&e) => {
                    if !std::mem::replace(&mut exhausted, true) {
                        log::warn!("cannot accept connections now: {e}");
                    }
                    let registry = lock(&shared.registry);
                    shared.evict(&registry, None);
                    drop(registry);
                    pause(shared);
                }
                // The connection that was next is gone already; the one after it is not to blame.
                Err(e) => log::debug!("accept: {e}"),
            }
        }
    }
}

/// Accepts the connection that is next, and begins to serve it. Errors: of accepting it.
fn accept_one(shared: &Arc<ServerState>, listener: &Listener, ended: &PipeReader) -> io::Result<()> {
    let (tcp, origin, tls) = match listener {
        Listener::Tcp(listener, tls) => {
            let (tcp, address) = listener.accept()?;
            // Without it small answers wait for nothing; and who is gone already needs none.
            let _ = tcp.set_nodelay(true);
            (tcp, Origin { address, is_local: false }, tls.as_ref())
        }
        Listener::Local(socket) => {
            let Some(stream) = socket.accept()? else { return Ok(()) };
            let address = SocketAddr::from((Ipv4Addr::LOCALHOST, 0));
            (stream, Origin { address, is_local: true }, None)
        }
    };
    if let Err(e) = begin(shared, tcp, origin, tls, ended) {
        log::debug!("a connection from {} ended before it began: {e}", origin.address);
    }
    Ok(())
}

fn is_exhaustion(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::EMFILE | libc::ENFILE | libc::ENOBUFS | libc::ENOMEM))
}

/// Waits a moment, or until a connection ends.
fn pause(shared: &ServerState) {
    let registry = lock(&shared.registry);
    let _ = shared.slot_freed.wait_timeout(registry, ACCEPT_PAUSE);
}

fn begin(
    shared: &Arc<ServerState>,
    tcp: TcpStream,
    origin: Origin,
    tls: Option<&Arc<Tls>>,
    ended: &PipeReader,
) -> io::Result<()> {
    tcp.set_nonblocking(true)?;
    let Some(slot) = shared.enter(tcp, origin, ended) else { return Ok(()) };
    shared.workers.submit(shared, Connection::new(slot, tls.map(Tls::config))?);
    Ok(())
}

/// Raises the soft limit of open files to the hard one; returns what it is now.
fn raise_descriptor_limit() -> u64 {
    let mut limit = libc::rlimit { rlim_cur: 0, rlim_max: 0 };
    // SAFETY: the kernel writes one `rlimit` to the pointer, which is to a live local.
    if unsafe { libc::getrlimit(libc::RLIMIT_NOFILE, &mut limit) } != 0 {
        return 1024;
    }
    let before = limit.rlim_cur;
    limit.rlim_cur = limit.rlim_max;
    // SAFETY: the kernel only reads the live local.
    #[allow(clippy::unnecessary_cast, reason = "the type of a limit differs between systems")]
    if unsafe { libc::setrlimit(libc::RLIMIT_NOFILE, &limit) } == 0 {
        limit.rlim_cur as u64
    } else {
        before as u64
    }
}
