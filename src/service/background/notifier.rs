//! Who waits for news, and how they learn of it: a wake per user, each waiting thread parked on its own.
//!
//! Wakes are hints and rows are the truth. A waiter says up to which stream position it has looked (`after`); the
//! notifier remembers for each user the last position that concerned them, so news that arrived between the look
//! and the wait end the wait at once. Nothing has to be registered beforehand, and nothing can be missed. A wake
//! that comes for nothing only costs a look.

use std::collections::HashMap;
use std::collections::hash_map::DefaultHasher;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::Instant;

use crate::locks::lock;
use crate::protocol::UserId;

/// Users are spread over this many locks, so that a thousand waiters do not queue at one.
const SHARDS: usize = 16;

/// A user nobody waits for is forgotten once a shard holds more than this many; forgetting is safe because every
/// forgotten position is covered by the shard's `floor`.
const SHARD_USERS_MAX: usize = 4096;

/// Why a wait ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Woken {
    /// Something that concerns the user was committed behind the position given.
    News,
    /// The deadline passed.
    TimedOut,
    /// The server is stopping: answer with what there is.
    Stopping,
}

/// The meeting point of commits and waiting requests.
pub struct Notifier {
    shards: [Mutex<Shard>; SHARDS],
    stopping: AtomicBool,
    waiting: AtomicUsize,
}

#[derive(Default)]
struct Shard {
    users: HashMap<UserId, Watch>,
    /// The highest position of any user that was dropped from `users`.
    floor: i64,
}

#[derive(Default)]
struct Watch {
    /// The last position that concerned this user.
    moved: i64,
    waiters: Vec<Waiter>,
}

/// One parked thread. The flag tells a wake from a spurious return of `park`, and makes removal exact.
#[derive(Clone)]
struct Waiter {
    thread: Thread,
    woken: Arc<AtomicBool>,
}

impl Default for Notifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Notifier {
    /// A notifier with nobody waiting.
    pub fn new() -> Self {
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            stopping: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
        }
    }

    /// Tells the waiting requests of these users that position `position` concerns them. Called after the commit is
    /// visible to readers and never before. Costs one lock and one unpark for each user that waits.
    pub fn publish<'u>(&self, position: i64, users: impl IntoIterator<Item = &'u UserId>) {
        for user in users {
            let woken = {
                let mut shard = self.shard(user);
                if shard.users.len() > SHARD_USERS_MAX {
                    shard.forget_the_idle();
                }
                match shard.users.get_mut(user) {
                    Some(watch) => {
                        watch.moved = watch.moved.max(position);
                        std::mem::take(&mut watch.waiters)
                    }
                    None => {
                        shard.users.insert(user.clone(), Watch { moved: position, waiters: Vec::new() });
                        Vec::new()
                    }
                }
            };
            for waiter in woken {
                waiter.wake();
            }
        }
    }

    /// Waits until something later than stream position `after` concerns the user, until `until`, or until the
    /// server stops. May also return `News` when there is none for this client: look, and wait again.
    pub fn wait(&self, user: &UserId, after: i64, until: Instant) -> Woken {
        let waiter = Waiter { thread: thread::current(), woken: Arc::new(AtomicBool::new(false)) };
        {
            let mut shard = self.shard(user);
            let known = shard.users.get(user).map_or(shard.floor, |watch| watch.moved);
            if known > after {
                return Woken::News;
            }
            // Checked under the lock: `stop` takes every lock after it has set the flag.
            if self.stopping.load(Ordering::SeqCst) {
                return Woken::Stopping;
            }
            // A user met for the first time starts from the floor, which is not news for this waiter.
            let floor = shard.floor;
            let watch = shard
                .users
                .entry(user.clone())
                .or_insert_with(|| Watch { moved: floor, waiters: Vec::new() });
            watch.waiters.push(waiter.clone());
        }
        self.waiting.fetch_add(1, Ordering::Relaxed);
        let woken = waiter.park(until);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        if !woken {
            self.withdraw(user, &waiter);
            return Woken::TimedOut;
        }
        if self.stopping.load(Ordering::SeqCst) { Woken::Stopping } else { Woken::News }
    }

    /// How many requests wait at this moment.
    pub fn waiting(&self) -> usize {
        self.waiting.load(Ordering::Relaxed)
    }

    /// Ends every wait, now and from now on.
    pub fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        for shard in &self.shards {
            let waiters: Vec<Waiter> =
                lock(shard).users.values_mut().flat_map(|watch| std::mem::take(&mut watch.waiters)).collect();
            for waiter in waiters {
                waiter.wake();
            }
        }
    }

    fn withdraw(&self, user: &UserId, waiter: &Waiter) {
        if let Some(watch) = self.shard(user).users.get_mut(user) {
            watch.waiters.retain(|other| !Arc::ptr_eq(&other.woken, &waiter.woken));
        }
    }

    fn shard(&self, user: &UserId) -> MutexGuard<'_, Shard> {
        let mut hasher = DefaultHasher::new();
        user.hash(&mut hasher);
        // The remainder is below 16.
        #[allow(clippy::cast_possible_truncation)]
        lock(&self.shards[(hasher.finish() % SHARDS as u64) as usize])
    }
}

impl Shard {
    fn forget_the_idle(&mut self) {
        let Self { users, floor } = self;
        users.retain(|_, watch| {
            let idle = watch.waiters.is_empty();
            if idle {
                *floor = (*floor).max(watch.moved);
            }
            !idle
        });
    }
}

impl Waiter {
    fn wake(&self) {
        self.woken.store(true, Ordering::Release);
        self.thread.unpark();
    }

    /// True once woken, false when the deadline passed first.
    fn park(&self, until: Instant) -> bool {
        loop {
            if self.woken.load(Ordering::Acquire) {
                return true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return false;
            }
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(&format!("@{name}:example.org")).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    #[test]
    fn news_that_came_before_the_wait_end_it_at_once() {
        let notifier = Notifier::new();
        notifier.publish(7, [&user("alice")]);
        assert_eq!(notifier.wait(&user("alice"), 6, soon()), Woken::News);
        assert_eq!(notifier.wait(&user("alice"), 7, Instant::now()), Woken::TimedOut);
    }

    #[test]
    fn a_wait_without_news_ends_at_its_deadline_and_leaves_nothing_behind() {
        let notifier = Notifier::new();
        let until = Instant::now() + Duration::from_millis(5);
        assert_eq!(notifier.wait(&user("alice"), 0, until), Woken::TimedOut);
        assert!(notifier.shard(&user("alice")).users[&user("alice")].waiters.is_empty());
        assert_eq!(notifier.waiting(), 0);
    }

    #[test]
    fn only_those_concerned_are_woken() {
        let notifier = Notifier::new();
        thread::scope(|scope| {
            let alice = scope.spawn(|| notifier.wait(&user("alice"), 0, soon()));
            let bob = scope.spawn(|| notifier.wait(&user("bob"), 0, soon()));
            while notifier.waiting() < 2 {
                thread::yield_now();
            }
            notifier.publish(1, [&user("alice")]);
            assert_eq!(alice.join().unwrap(), Woken::News);
            assert_eq!(notifier.waiting(), 1);
            notifier.publish(2, [&user("bob")]);
            assert_eq!(bob.join().unwrap(), Woken::News);
        });
    }

    #[test]
    fn every_waiting_request_of_one_user_is_woken() {
        let notifier = Notifier::new();
        thread::scope(|scope| {
            let waits: Vec<_> =
                (0..8).map(|_| scope.spawn(|| notifier.wait(&user("alice"), 3, soon()))).collect();
            while notifier.waiting() < 8 {
                thread::yield_now();
            }
            notifier.publish(4, [&user("alice")]);
            assert!(waits.into_iter().all(|wait| wait.join().unwrap() == Woken::News));
        });
    }

    #[test]
    fn stopping_ends_every_wait_now_and_later() {
        let notifier = Notifier::new();
        thread::scope(|scope| {
            let wait = scope.spawn(|| notifier.wait(&user("alice"), 0, soon()));
            while notifier.waiting() < 1 {
                thread::yield_now();
            }
            notifier.stop();
            assert_eq!(wait.join().unwrap(), Woken::Stopping);
        });
        assert_eq!(notifier.wait(&user("bob"), 0, soon()), Woken::Stopping);
    }

    #[test]
    fn forgotten_users_still_hear_of_what_they_may_have_missed() {
        let mut shard = Shard::default();
        shard.users.insert(user("alice"), Watch { moved: 9, waiters: Vec::new() });
        shard.forget_the_idle();
        assert!(shard.users.is_empty());
        assert_eq!(shard.floor, 9);
    }
}
