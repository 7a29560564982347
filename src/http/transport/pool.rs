//! The threads of connections, in two pools: workers run handlers, parkers wait.
//!
//! A thread that has run handlers has a deep stack and an allocator's cache full of their leftovers: some 50 KiB that
//! would stay for as long as it then waits for news, times a thousand waiting clients. So a connection that has to wait
//! is handed to a thread that does nothing but wait, and back when there is something to do. A parked connection costs
//! about 15 KiB, and the workers are only as many as there are handlers at work: a few at once, more when those few are
//! all held up by something slow. Of the idle ones the last to fall idle is the first to work again, so that after a
//! storm the others end.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::allocator;
use crate::http::transport::connection::Connection;
use crate::http::transport::server::ServerState;
use crate::locks::{lock, wait, wait_timeout, wait_until};
use crate::machine::process_limit_bytes;

/// How long a thread without a connection stays.
const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(5);
/// And how long it keeps what the allocator has for its next one.
const REST_AFTER: Duration = Duration::from_millis(50);
/// Stack of a worker: address space only, a page counts when it is touched. Unoptimised code has frames several times
/// as large.
const WORKER_STACK_BYTES: usize = if cfg!(debug_assertions) { 4 << 20 } else { 1 << 20 };
// What many are told at once is written from here; debug builds then look into the database to compare.
const PARKER_STACK_BYTES: usize = if cfg!(debug_assertions) { 4 << 20 } else { 256 << 10 };
/// So many workers are begun without a question, or four a processor.
pub(super) const READY_WORKERS: usize = 16;
/// Beyond, more are begun when no worker has taken anything for the one time (several at once: all are held up), or
/// something has waited for the other (one by one: perhaps the machine is just busy).
const STUCK_TIMEOUT: Duration = Duration::from_millis(5);
const QUEUED_TIMEOUT: Duration = Duration::from_millis(250);
/// How many are begun at once when nothing moves.
const RELIEF_WORKERS: usize = 8;
/// Of what the process may have by its own limit, one part of so many is for the stacks of workers, and of parkers: beyond, no
/// thread is begun, since what would fail then is whatever asks for memory next.
const PARTS_FOR_WORKERS: usize = 8;
const PARTS_FOR_PARKERS: usize = 4;

/// What a pool's threads do with a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Role {
    /// Read requests, run handlers, write replies.
    Work,
    /// Wait for news or for the next request.
    Park,
}

/// The threads of one role, never more than there are connections.
pub(super) struct ThreadPool {
    role: Role,
    /// So many threads are begun as soon as there is something for them.
    few: usize,
    /// And never more than these.
    most: usize,
    state: Mutex<PoolState>,
    /// A thread ended.
    ended: Condvar,
    /// More is queued than there are threads for.
    crowded: Condvar,
}

struct PoolState {
    /// What no thread has taken yet, with the time since when.
    queue: VecDeque<(Instant, Connection)>,
    /// When a thread last took something.
    moved: Instant,
    idle: Vec<Arc<Seat>>,
    threads: usize,
    spawned: u64,
    handles: Vec<thread::JoinHandle<()>>,
    /// The thread that begins more of them when all are held up; there is none before something has waited.
    relief: Option<thread::JoinHandle<()>>,
    stopping: bool,
}

/// Where an idle thread is given its next connection. Only touched under the pool's lock.
struct Seat {
    thread: Thread,
    given: Mutex<Option<Connection>>,
}

impl ThreadPool {
    pub(super) fn new(role: Role) -> Self {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let limit = process_limit_bytes();
        let (few, most) = match role {
            Role::Work => {
                let few = READY_WORKERS.max(4 * processors);
                (few, few.max(limit / PARTS_FOR_WORKERS / WORKER_STACK_BYTES))
            }
            Role::Park => (usize::MAX, READY_WORKERS.max(limit / PARTS_FOR_PARKERS / PARKER_STACK_BYTES)),
        };
        let state = PoolState {
            queue: VecDeque::new(),
            moved: Instant::now(),
            idle: Vec::new(),
            threads: 0,
            spawned: 0,
            handles: Vec::new(),
            relief: None,
            stopping: false,
        };
        Self { role, few, most, state: Mutex::new(state), ended: Condvar::new(), crowded: Condvar::new() }
    }

    /// Gives the connection to a thread: an idle one, a new one, or the first that is done with what it does.
    pub(super) fn submit(&self, shared: &Arc<ServerState>, connection: Connection) {
        let mut state = lock(&self.state);
        if let Some(seat) = state.idle.pop() {
            *lock(&seat.given) = Some(connection);
            // Not under the lock, which is the first thing that the thread wants.
            drop(state);
            seat.thread.unpark();
            return;
        }
        state.queue.push_back((Instant::now(), connection));
        if state.threads >= self.few && !state.stopping {
            self.call_relief(&mut state, shared);
            return;
        }
        let given_up = self.begin_thread(&mut state, shared);
        drop(state);
        drop(given_up);
    }

    /// Whether something waits for a thread.
    pub(super) fn is_crowded(&self) -> bool {
        !lock(&self.state).queue.is_empty()
    }

    /// One more thread. Returns the connection that is to be closed because there can be none for it.
    fn begin_thread(&self, state: &mut PoolState, shared: &Arc<ServerState>) -> Option<Connection> {
        if state.handles.len() > 2 * state.threads + 16 {
            state.handles.retain(|handle| !handle.is_finished());
        }
        if state.threads >= self.most {
            return self.without_thread(state, shared);
        }
        state.spawned += 1;
        let (name, stack) = match self.role {
            Role::Work => (format!("http-{}", state.spawned), WORKER_STACK_BYTES),
            Role::Park => (format!("wait-{}", state.spawned), PARKER_STACK_BYTES),
        };
        let (role, held) = (self.role, shared.clone());
        match thread::Builder::new().name(name).stack_size(stack).spawn(move || serve(&held, role)) {
            Ok(handle) => {
                state.threads += 1;
                state.handles.push(handle);
                None
            }
            Err(e) => {
                shared.warn_of_no_thread(&e);
                self.without_thread(state, shared)
            }
        }
    }

    /// There is no thread for what came last. Who is there takes it later, if need be one whose other end holds it up, or an idle
    /// connection gives up its thread; else this one is closed, and may come again.
    fn without_thread(&self, state: &mut PoolState, shared: &Arc<ServerState>) -> Option<Connection> {
        let hope = match self.role {
            Role::Work => {
                shared.evict_held_up();
                state.threads > 0
            }
            Role::Park => shared.evict_one(),
        };
        if hope { None } else { state.queue.pop_back().map(|(_, connection)| connection) }
    }

    fn call_relief(&self, state: &mut PoolState, shared: &Arc<ServerState>) {
        if state.relief.is_none() {
            let (role, held) = (self.role, shared.clone());
            let relieve = move || held.pool(role).relieve(&held);
            match thread::Builder::new().name("relief".to_owned()).spawn(relieve) {
                Ok(relief) => state.relief = Some(relief),
                // Those that are there take what waits, later.
                Err(e) => log::warn!("no thread to relieve those of connections: {e}"),
            }
        }
        self.crowded.notify_one();
    }

    /// Begins more threads while all are held up, until the pool stops. Runs on a thread of its own.
    fn relieve(&self, shared: &Arc<ServerState>) {
        let mut state = lock(&self.state);
        while !state.stopping {
            let Some((since, _)) = state.queue.front() else {
                state = wait(&self.crowded, state);
                continue;
            };
            let stuck = state.moved.max(*since).elapsed() > STUCK_TIMEOUT;
            let relief = if stuck && state.threads < self.most {
                RELIEF_WORKERS.min(state.queue.len())
            } else if stuck {
                1
            } else {
                usize::from(since.elapsed() > QUEUED_TIMEOUT)
            };
            for _ in 0..relief {
                let given_up = self.begin_thread(&mut state, shared);
                drop(state);
                drop(given_up);
                state = lock(&self.state);
            }
            state = wait_timeout(&self.crowded, state, STUCK_TIMEOUT);
        }
    }

    /// The next connection for this thread; none: it may go.
    fn take(&self) -> Option<Connection> {
        let mut state = lock(&self.state);
        if let Some((_, connection)) = state.queue.pop_front() {
            state.moved = Instant::now();
            return Some(connection);
        }
        let seat = Arc::new(Seat { thread: thread::current(), given: Mutex::new(None) });
        let idle_since = Instant::now();
        // Nobody wakes in between who has nothing to give back.
        let mut rests = !allocator::gives_back();
        state.idle.push(seat.clone());
        loop {
            if let Some(connection) = lock(&seat.given).take() {
                state.moved = Instant::now();
                return Some(connection);
            }
            let idle = idle_since.elapsed();
            let left = IDLE_THREAD_TIMEOUT.saturating_sub(idle);
            if left.is_zero() || state.stopping {
                state.idle.retain(|other| !Arc::ptr_eq(other, &seat));
                state.threads -= 1;
                self.ended.notify_all();
                return None;
            }
            drop(state);
            if !rests && idle >= REST_AFTER {
                rests = true;
                allocator::rest();
            }
            thread::park_timeout(if rests { left } else { REST_AFTER });
            state = lock(&self.state);
        }
    }

    /// Sends the threads home and waits for them, so that what they hold (the database) is let go. Those that are
    /// still in a handler at the deadline are left to end by themselves.
    pub(super) fn end(&self, deadline: Instant) {
        let mut state = lock(&self.state);
        state.stopping = true;
        state.idle.iter().for_each(|seat| seat.thread.unpark());
        self.crowded.notify_all();
        if let Some(relief) = state.relief.take() {
            drop(state);
            let _ = relief.join();
            state = lock(&self.state);
        }
        while state.threads > 0 {
            let Ok(woken) = wait_until(&self.ended, state, deadline) else { return };
            state = woken;
        }
        let handles = std::mem::take(&mut state.handles);
        drop(state);
        for handle in handles {
            let _ = handle.join();
        }
    }
}

fn serve(shared: &Arc<ServerState>, role: Role) {
    while let Some(connection) = shared.pool(role).take() {
        let step = AssertUnwindSafe(|| match role {
            Role::Work => connection.work().map(|c| (Role::Park, c)),
            Role::Park => connection.park().map(|c| (Role::Work, c)),
        });
        match catch_unwind(step) {
            Ok(Some((next, connection))) => shared.pool(next).submit(shared, connection),
            Ok(None) => {}
            // Handlers' panics are caught where they happen; this keeps the books right if the layer itself errs.
            Err(_) => log::error!("a connection's thread panicked outside of any handler"),
        }
    }
}
