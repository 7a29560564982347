//! Who waits for news, and how they learn of it: a wake per user, each waiting thread parked on its own.
//!
//! Wakes are hints and rows are the truth. A waiter says up to which stream position it has looked (`after`); the
//! notifier remembers for each user the last position that concerned them, so news that arrived between the look
//! and the wait end the wait at once. Nothing has to be registered beforehand, and nothing can be missed. A wake
//! that comes for nothing only costs a look.
//!
//! Of a thousand who wait for the same only a few are woken at a time: all of them at once would stand in each other's way at
//! every lock, on processors that cannot run them anyway. And waking a thread takes longer than saying what there is to say to
//! most. So each who was woken, once it is done, tells those who are next for them, where they left word how ([`Tell`]); they are
//! woken when they know already. Who left none gets the turn.
//!
//! Who looks into a room without being in it is no audience of the room. As long as their request waits they are noted as watching
//! it, from before they look, and are woken as users by what comes into it.

use std::collections::hash_map::DefaultHasher;
use std::collections::{HashMap, HashSet, VecDeque};
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::thread::{self, Thread};
use std::time::{Duration, Instant};

use crate::bounded::{BoundedMap, Worth};
use crate::clock::Millis;
use crate::locks::lock;
use crate::protocol::UserId;
use crate::store::RoomKey;

/// Users are spread over this many locks, so that a thousand waiters do not queue at one.
const SHARDS: usize = 16;

/// A user nobody waits for is forgotten once a shard holds more than this many; forgetting is safe because every
/// forgotten position is covered by the shard's `floor`.
const SHARD_USERS_MAX: usize = 4096;

/// Rooms that one user watches at the same time, and those that are watched by anybody. Who watches more has to wait for their time
/// to be up.
const WATCHED_OF_USER_MAX: usize = 32;
const WATCHERS_MAX: usize = 8192;

/// Wakes that are worth little are no closer together than this.
const GATHER_INTERVAL: Duration = Duration::from_secs(1);

/// So many of those who were woken are at work for each processor, and a few at least.
const TURNS_EACH_PROCESSOR: usize = 2;
const TURNS_MIN: usize = 4;

/// So many others are told by one who was woken, who then has to see to their own connection. That long, and no longer, those who
/// were told sleep on: their clients have better to do than to ask again at once.
const TOLD_IN_TURN_MAX: usize = 128;

/// So many who are to be woken get into the line together.
const LINED_UP_TOGETHER: usize = 16;

/// Tells somebody who waits what there is for them, without waiting for anything. False: they have to look for themselves.
pub type Tell = Arc<dyn Fn() -> bool + Send + Sync>;

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
    crowd: Arc<Crowd>,
    stopping: AtomicBool,
    waiting: AtomicUsize,
    /// Who watches rooms that they are not in: for each user until when.
    watchers: Mutex<BoundedMap<UserId, HashMap<RoomKey, Instant>, WATCHERS_MAX>>,
    /// Whether there are any.
    watched: AtomicBool,
    gathered: Mutex<GatheredWakes>,
}

/// Wakes that others are to join.
#[derive(Default)]
struct GatheredWakes {
    users: HashSet<UserId>,
    position: i64,
    /// When the next may be.
    next: Option<Instant>,
}

/// Those who are to be woken.
struct Crowd {
    turns_max: usize,
    queue: Mutex<WakeQueue>,
}

#[derive(Default)]
struct WakeQueue {
    waiters: VecDeque<Waiter>,
    /// How many were woken and are not done.
    turns: usize,
}

/// The turn of one who was woken with news. Dropping it tells the next, or wakes them: to be done before anything that may
/// take longer than a look.
pub struct Turn(Arc<Crowd>);

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

/// One parked thread. What has become of its wait tells a wake from a spurious return of `park`, and makes removal exact.
#[derive(Clone)]
struct Waiter {
    thread: Thread,
    state: Arc<AtomicU8>,
    tell: Option<Tell>,
}

/// It waits.
const WAITS: u8 = 0;
/// It has news, and a turn.
const HAS_TURN: u8 = 1;
/// The server stops.
const STOPS: u8 = 2;
/// Its time was up.
const LEFT: u8 = 3;
/// Another is about to tell it.
const IS_TOLD: u8 = 4;
/// It has news, told or not, and no turn.
const HAS_NEWS: u8 = 5;

impl Default for Notifier {
    fn default() -> Self {
        Self::new()
    }
}

impl Notifier {
    /// A notifier with nobody waiting.
    pub fn new() -> Self {
        let processors = thread::available_parallelism().map_or(1, std::num::NonZero::get);
        let turns_max = (processors * TURNS_EACH_PROCESSOR).max(TURNS_MIN);
        Self {
            shards: std::array::from_fn(|_| Mutex::default()),
            crowd: Arc::new(Crowd { turns_max, queue: Mutex::default() }),
            stopping: AtomicBool::new(false),
            waiting: AtomicUsize::new(0),
            watchers: Mutex::default(),
            watched: AtomicBool::new(false),
            gathered: Mutex::default(),
        }
    }

    /// The user's waiting requests are to hear of what comes into a room, until then. To be called before the room is looked at: what
    /// comes after that concerns them.
    pub fn watch_room(&self, user: &UserId, room: RoomKey, until: Instant) {
        let now = Instant::now();
        let mut watchers = lock(&self.watchers);
        let is_over = |rooms: &HashMap<RoomKey, Instant>| match rooms.values().all(|until| *until < now) {
            true => Worth::Nothing,
            false => Worth::Little,
        };
        let rooms = watchers.get_or_default(user.clone(), is_over);
        rooms.retain(|_, until| *until >= now);
        if rooms.len() >= WATCHED_OF_USER_MAX && !rooms.contains_key(&room) {
            let first = rooms.iter().min_by_key(|(_, until)| **until).map(|(room, _)| *room);
            first.map(|first| rooms.remove(&first));
        }
        let known = rooms.entry(room).or_insert(until);
        *known = (*known).max(until);
        self.watched.store(true, Ordering::SeqCst);
    }

    /// [`Notifier::publish`] to those who watch one of these rooms. Costs nothing where nobody does.
    pub fn publish_rooms(&self, position: i64, changed: &HashSet<RoomKey>) {
        if changed.is_empty() || !self.watched.load(Ordering::SeqCst) {
            return;
        }
        let (now, mut concerned) = (Instant::now(), Vec::new());
        let mut watchers = lock(&self.watchers);
        watchers.retain(|user, rooms| {
            rooms.retain(|_, until| *until >= now);
            if rooms.keys().any(|room| changed.contains(room)) {
                concerned.push(user.clone());
            }
            !rooms.is_empty()
        });
        self.watched.store(!watchers.is_empty(), Ordering::SeqCst);
        drop(watchers);
        self.publish(position, &concerned);
    }

    /// Tells the waiting requests of these users that position `position` concerns them. Called after the commit is
    /// visible to readers and never before. Costs a lock for each user, and few are woken from here.
    pub fn publish<'u>(&self, position: i64, users: impl IntoIterator<Item = &'u UserId>) {
        let mut woken = Vec::new();
        for user in users {
            let mut shard = self.shard(user);
            if shard.users.len() > SHARD_USERS_MAX {
                shard.forget_the_idle();
            }
            match shard.users.get_mut(user) {
                Some(watch) => {
                    watch.moved = watch.moved.max(position);
                    woken.append(&mut watch.waiters);
                }
                None => {
                    shard.users.insert(user.clone(), Watch { moved: position, waiters: Vec::new() });
                }
            }
            drop(shard);
            // The first are at it while the others are looked for.
            if woken.len() >= LINED_UP_TOGETHER {
                self.line_up(&mut woken);
            }
        }
        self.line_up(&mut woken);
    }

    fn line_up(&self, woken: &mut Vec<Waiter>) {
        if woken.is_empty() {
            return;
        }
        let mut queue = lock(&self.crowd.queue);
        // Checked under the lock: `stop` takes it after it has set the flag.
        if self.stopping.load(Ordering::SeqCst) {
            woken.drain(..).for_each(|waiter| waiter.wake(STOPS));
        } else {
            queue.waiters.extend(woken.drain(..));
            self.crowd.wake_next(queue);
        }
    }

    /// [`Notifier::publish`] of what is worth no wake of its own each time: at once if there was none such for a while, else
    /// together with what comes until then. For how long something is held then: this is to be called again after that, with
    /// nothing new if there is nothing.
    pub fn publish_gathered(&self, position: i64, users: &HashSet<UserId>) -> Option<Millis> {
        let mut gathered = lock(&self.gathered);
        if users.is_empty() && gathered.users.is_empty() {
            return None;
        }
        gathered.position = gathered.position.max(position);
        gathered.users.extend(users.iter().cloned());
        let now = Instant::now();
        if let Some(rest) = gathered.next.map(|next| next.saturating_duration_since(now))
            && !rest.is_zero()
        {
            return Some(Millis::try_from(rest.as_millis()).unwrap_or(Millis::MAX));
        }
        gathered.next = Some(now + GATHER_INTERVAL);
        let (position, users) = (gathered.position, std::mem::take(&mut gathered.users));
        drop(gathered);
        self.publish(position, &users);
        None
    }

    /// Waits until something later than stream position `after` concerns the user, until `until`, or until the
    /// server stops. May also return `News` when there is none for this client: look, and wait again. Who was woken may have a
    /// turn, for which others wait. Meanwhile `tell` may be called, once and on another thread, and has returned when this does.
    pub fn wait(
        &self,
        user: &UserId,
        after: i64,
        until: Instant,
        tell: Option<&Tell>,
    ) -> (Woken, Option<Turn>) {
        let state = Arc::new(AtomicU8::new(WAITS));
        let waiter = Waiter { thread: thread::current(), state, tell: tell.cloned() };
        {
            let mut shard = self.shard(user);
            let known = shard.users.get(user).map_or(shard.floor, |watch| watch.moved);
            if known > after {
                return (Woken::News, None);
            }
            // Checked under the lock: `stop` takes every lock after it has set the flag.
            if self.stopping.load(Ordering::SeqCst) {
                return (Woken::Stopping, None);
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
        let state = waiter.park(until);
        self.waiting.fetch_sub(1, Ordering::Relaxed);
        match state {
            HAS_TURN => {
                let turn = Some(Turn(self.crowd.clone()));
                (if self.stopping.load(Ordering::SeqCst) { Woken::Stopping } else { Woken::News }, turn)
            }
            HAS_NEWS => (Woken::News, None),
            STOPS => (Woken::Stopping, None),
            _ => {
                self.withdraw(user, &waiter);
                (Woken::TimedOut, None)
            }
        }
    }

    /// [`Notifier::wait`] for who wants to know only whether to look again.
    pub fn has_news(&self, user: &UserId, after: i64, until: Instant) -> bool {
        self.wait(user, after, until, None).0 == Woken::News
    }

    /// Ends the wait for this user that is told by this, as if its time was up.
    pub fn end_wait(&self, user: &UserId, tell: &Tell) {
        let is_told = |waiter: &Waiter| waiter.tell.as_ref().is_some_and(|other| Arc::ptr_eq(other, tell));
        let shard = self.shard(user);
        let found = shard.users.get(user).and_then(|watch| watch.waiters.iter().find(|one| is_told(one)));
        let found = found.cloned();
        drop(shard);
        found.into_iter().for_each(|waiter| waiter.wake(LEFT));
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
                waiter.wake(STOPS);
            }
        }
        let in_line = std::mem::take(&mut lock(&self.crowd.queue).waiters);
        for waiter in in_line {
            waiter.wake(STOPS);
        }
    }

    fn withdraw(&self, user: &UserId, waiter: &Waiter) {
        if let Some(watch) = self.shard(user).users.get_mut(user) {
            watch.waiters.retain(|other| !Arc::ptr_eq(&other.state, &waiter.state));
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

impl Crowd {
    /// Wakes those who are next, as far as there are turns.
    fn wake_next<'c>(&'c self, mut queue: MutexGuard<'c, WakeQueue>) {
        while queue.turns < self.turns_max
            && let Some(next) = queue.waiters.pop_front()
        {
            if next.take_turn() {
                queue.turns += 1;
                // Not under the lock, which is the first thing that a thread wants that is done.
                drop(queue);
                next.thread.unpark();
                queue = lock(&self.queue);
            }
        }
    }
}

impl Crowd {
    /// Tells those who are next, until nobody is left, or the next has to be woken and gets the turn.
    fn go_on(&self) {
        let mut told: Vec<Waiter> = Vec::new();
        loop {
            let mut queue = lock(&self.queue);
            let next = match queue.waiters.front() {
                Some(next) if next.tell.is_some() && told.len() < TOLD_IN_TURN_MAX => {
                    queue.waiters.pop_front()
                }
                _ => None,
            };
            let Some(next) = next else {
                queue.turns -= 1;
                self.wake_next(queue);
                break;
            };
            drop(queue);
            if next.end(IS_TOLD).is_ok() {
                let knows = next.tell.as_ref().is_some_and(|tell| tell());
                next.state.store(HAS_NEWS, Ordering::Release);
                match knows {
                    true => told.push(next),
                    false => next.thread.unpark(),
                }
            }
        }
        told.iter().for_each(|waiter| waiter.thread.unpark());
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        self.0.go_on();
    }
}

impl Waiter {
    /// Ends the wait, if it was not over.
    fn end(&self, state: u8) -> Result<u8, u8> {
        self.state.compare_exchange(WAITS, state, Ordering::AcqRel, Ordering::Acquire)
    }

    /// Gives it a turn. Whoever does wakes it then. False: it waits no more.
    fn take_turn(&self) -> bool {
        self.end(HAS_TURN).is_ok()
    }

    fn wake(&self, state: u8) {
        if self.end(state).is_ok() {
            self.thread.unpark();
        }
    }

    /// What has become of the wait when it was ended, or when the deadline has passed.
    fn park(&self, until: Instant) -> u8 {
        loop {
            match self.state.load(Ordering::Acquire) {
                WAITS => {}
                IS_TOLD => {
                    thread::park();
                    continue;
                }
                state => return state,
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() && self.end(LEFT).is_ok() {
                return LEFT;
            }
            thread::park_timeout(left);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(&format!("@{name}:example.org")).unwrap()
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(20)
    }

    fn wait(notifier: &Notifier, name: &str, after: i64, until: Instant) -> Woken {
        notifier.wait(&user(name), after, until, None).0
    }

    #[test]
    fn a_wait_can_be_ended_alone() {
        let notifier = Notifier::new();
        let tells: [Tell; 2] = [Arc::new(|| false), Arc::new(|| true)];
        thread::scope(|scope| {
            let waits = tells
                .each_ref()
                .map(|tell| scope.spawn(|| notifier.wait(&user("alice"), 0, soon(), Some(tell)).0));
            while notifier.waiting() < 2 {
                thread::yield_now();
            }
            notifier.end_wait(&user("alice"), &tells[0]);
            while notifier.waiting() > 1 {
                thread::yield_now();
            }
            notifier.end_wait(&user("alice"), &tells[0]);
            notifier.publish(1, [&user("alice")]);
            let [first, second] = waits.map(|wait| wait.join().expect("no panic"));
            assert_eq!((first, second), (Woken::TimedOut, Woken::News));
        });
    }

    #[test]
    fn news_that_came_before_the_wait_end_it_at_once() {
        let notifier = Notifier::new();
        notifier.publish(7, [&user("alice")]);
        assert_eq!(wait(&notifier, "alice", 6, soon()), Woken::News);
        assert_eq!(wait(&notifier, "alice", 7, Instant::now()), Woken::TimedOut);
    }

    #[test]
    fn a_wait_without_news_ends_at_its_deadline_and_leaves_nothing_behind() {
        let notifier = Notifier::new();
        let until = Instant::now() + Duration::from_millis(5);
        assert_eq!(wait(&notifier, "alice", 0, until), Woken::TimedOut);
        assert!(notifier.shard(&user("alice")).users[&user("alice")].waiters.is_empty());
        assert_eq!(notifier.waiting(), 0);
    }

    #[test]
    fn only_those_concerned_are_woken() {
        let notifier = Notifier::new();
        thread::scope(|scope| {
            let alice = scope.spawn(|| wait(&notifier, "alice", 0, soon()));
            let bob = scope.spawn(|| wait(&notifier, "bob", 0, soon()));
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
    fn who_watches_a_room_is_woken_by_what_comes_into_it_as_long_as_they_said() {
        let notifier = Notifier::new();
        let (alice, bob) = (user("alice"), user("bob"));
        notifier.watch_room(&alice, 1, soon());
        notifier.watch_room(
            &bob,
            1,
            Instant::now().checked_sub(Duration::from_secs(1)).expect("a while ago"),
        );
        notifier.publish_rooms(5, &HashSet::from([1, 2]));
        assert_eq!(wait(&notifier, "alice", 4, soon()), Woken::News);
        assert_eq!(wait(&notifier, "bob", 4, Instant::now()), Woken::TimedOut);
        notifier.publish_rooms(6, &HashSet::from([2]));
        assert_eq!(wait(&notifier, "alice", 5, Instant::now()), Woken::TimedOut);
        for room in 0..1000 {
            notifier.watch_room(&alice, room, soon());
        }
        assert!(lock(&notifier.watchers).get(&alice).is_some_and(|rooms| rooms.len() == WATCHED_OF_USER_MAX));
        assert_eq!(lock(&notifier.watchers).len(), 1);
    }

    #[test]
    fn what_is_worth_little_wakes_once_a_while_and_is_held_for_the_next_time() {
        let notifier = Notifier::new();
        let gather = |position, users: &[&str]| {
            notifier.publish_gathered(position, &users.iter().map(|name| user(name)).collect())
        };
        let is_told = |name: &str, after| wait(&notifier, name, after, Instant::now()) == Woken::News;
        assert_eq!(gather(0, &[]), None, "there is nothing to call for again");
        assert_eq!(gather(5, &["alice"]), None, "the first is no crowd");
        assert!(is_told("alice", 4));
        assert!(gather(6, &["alice", "bob"]).is_some_and(|rest| rest <= 1000));
        assert!(gather(7, &["bob"]).is_some());
        assert!(gather(0, &[]).is_some(), "called too early");
        assert!(!is_told("alice", 5) && !is_told("bob", 0));
        lock(&notifier.gathered).next = Some(Instant::now());
        assert_eq!(gather(0, &[]), None);
        assert!(is_told("alice", 6) && is_told("bob", 6) && !is_told("bob", 7));
        assert_eq!(gather(0, &[]), None);
    }

    #[test]
    fn every_waiting_request_of_one_user_is_woken() {
        let notifier = Notifier::new();
        thread::scope(|scope| {
            let waits: Vec<_> = (0..8).map(|_| scope.spawn(|| wait(&notifier, "alice", 3, soon()))).collect();
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
            let wait = scope.spawn(|| wait(&notifier, "alice", 0, soon()));
            while notifier.waiting() < 1 {
                thread::yield_now();
            }
            notifier.stop();
            assert_eq!(wait.join().unwrap(), Woken::Stopping);
        });
        assert_eq!(wait(&notifier, "bob", 0, soon()), Woken::Stopping);
    }

    #[test]
    fn of_a_crowd_a_few_are_woken_at_a_time_and_each_who_is_done_lets_the_next_come() {
        let (notifier, crowd) = (Notifier::new(), 50);
        let most = notifier.crowd.turns_max;
        let (woken, done) = (AtomicUsize::new(0), AtomicBool::new(false));
        thread::scope(|scope| {
            for _ in 0..crowd {
                scope.spawn(|| {
                    let (news, turn) = notifier.wait(&user("alice"), 0, soon(), None);
                    assert_eq!(news, Woken::News);
                    woken.fetch_add(1, Ordering::SeqCst);
                    while !done.load(Ordering::SeqCst) {
                        thread::yield_now();
                    }
                    drop(turn);
                });
            }
            while notifier.waiting() < crowd {
                thread::yield_now();
            }
            notifier.publish(1, [&user("alice")]);
            while woken.load(Ordering::SeqCst) < most {
                thread::yield_now();
            }
            assert_eq!(notifier.waiting(), crowd - most);
            assert_eq!(lock(&notifier.crowd.queue).waiters.len(), crowd - most);
            done.store(true, Ordering::SeqCst);
        });
        assert_eq!(woken.load(Ordering::SeqCst), crowd);
        let queue = lock(&notifier.crowd.queue);
        assert_eq!((queue.turns, queue.waiters.len()), (0, 0));
    }

    #[test]
    fn who_left_word_how_is_told_once_by_one_who_was_woken_and_wakes_when_they_know() {
        let (notifier, crowd) = (Notifier::new(), 3 * TOLD_IN_TURN_MAX);
        let (by_others, looks) = (AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for number in 0..crowd {
                let (notifier, by_others, looks) = (&notifier, &by_others, &looks);
                scope.spawn(move || {
                    let told = Arc::new(Mutex::new(Vec::new()));
                    let (place, knows) = (told.clone(), number % 3 > 0);
                    let tell: Tell = Arc::new(move || {
                        lock(&place).push(thread::current().id());
                        knows
                    });
                    let (news, turn) = notifier.wait(&user("alice"), 0, soon(), Some(&tell));
                    assert_eq!(news, Woken::News);
                    let told = std::mem::take(&mut *lock(&told));
                    match told[..] {
                        [] => assert!(turn.is_some(), "nobody told them, so they are to tell others"),
                        [by] => {
                            assert!(turn.is_none() && by != thread::current().id());
                            (if knows { by_others } else { looks }).fetch_add(1, Ordering::SeqCst);
                        }
                        _ => panic!("told more than once"),
                    }
                });
            }
            while notifier.waiting() < crowd {
                thread::yield_now();
            }
            notifier.publish(1, [&user("alice")]);
        });
        // Only the first few had to be woken first, and one now and then.
        assert!(by_others.load(Ordering::SeqCst) > crowd / 2 && looks.load(Ordering::SeqCst) > crowd / 4);
        let queue = lock(&notifier.crowd.queue);
        assert_eq!((queue.turns, queue.waiters.len(), notifier.waiting()), (0, 0, 0));
    }

    #[test]
    fn who_is_being_told_when_their_time_is_up_waits_until_they_are() {
        let notifier = Notifier::new();
        let (begun, told) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicBool::new(false)));
        let until = Instant::now() + Duration::from_millis(100);
        let tell: Tell = {
            let (begun, told) = (begun.clone(), told.clone());
            Arc::new(move || {
                begun.store(true, Ordering::SeqCst);
                // Until the other's time is up at any rate.
                while Instant::now() < until + Duration::from_millis(50) {
                    thread::yield_now();
                }
                told.store(true, Ordering::SeqCst);
                true
            })
        };
        lock(&notifier.crowd.queue).turns = notifier.crowd.turns_max;
        let turn = Turn(notifier.crowd.clone());
        thread::scope(|scope| {
            let alice = scope.spawn(|| {
                let news = notifier.wait(&user("alice"), 0, until, Some(&tell)).0;
                (news, begun.load(Ordering::SeqCst), told.load(Ordering::SeqCst))
            });
            while notifier.waiting() < 1 && Instant::now() < until {
                thread::yield_now();
            }
            notifier.publish(1, [&user("alice")]);
            drop(turn);
            let (news, begun, told) = alice.join().unwrap();
            // On a machine that is very busy she may have gone before.
            assert!(
                (news, begun, told) == (Woken::News, true, true) || (news, begun) == (Woken::TimedOut, false)
            );
        });
    }

    #[test]
    fn who_leaves_the_line_keeps_nobody_from_being_woken() {
        let notifier = Notifier::new();
        let turns: Vec<Turn> = (0..notifier.crowd.turns_max)
            .map(|_| {
                lock(&notifier.crowd.queue).turns += 1;
                Turn(notifier.crowd.clone())
            })
            .collect();
        let short = Instant::now() + Duration::from_secs(1);
        thread::scope(|scope| {
            let gone: Vec<_> = (0..3).map(|_| scope.spawn(|| wait(&notifier, "alice", 0, short))).collect();
            let bob = scope.spawn(|| wait(&notifier, "bob", 0, soon()));
            while notifier.waiting() < 4 && Instant::now() < short {
                thread::yield_now();
            }
            notifier.publish(1, [&user("alice"), &user("bob")]);
            assert!(gone.into_iter().all(|wait| wait.join().unwrap() == Woken::TimedOut));
            assert!(!bob.is_finished(), "all turns are taken");
            drop(turns);
            assert_eq!(bob.join().unwrap(), Woken::News);
        });
        assert_eq!(lock(&notifier.crowd.queue).turns, 0);
    }

    #[test]
    fn who_stands_in_line_when_the_server_stops_is_told() {
        let notifier = Notifier::new();
        lock(&notifier.crowd.queue).turns = notifier.crowd.turns_max;
        thread::scope(|scope| {
            let alice = scope.spawn(|| wait(&notifier, "alice", 0, soon()));
            while notifier.waiting() < 1 {
                thread::yield_now();
            }
            notifier.publish(1, [&user("alice")]);
            notifier.stop();
            assert_eq!(alice.join().unwrap(), Woken::Stopping);
        });
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
