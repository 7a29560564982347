//! Locks in one way: what they guard stays in use when a thread has panicked while it held one.
//!
//! No state of this house is left half changed across a call that may panic: each change under a lock is a few
//! assignments or one call of a map. So a poisoned lock says only that some request failed, and that request has had
//! its answer: the others go on.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{
    Condvar, LockResult, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard,
    WaitTimeoutResult,
};
use std::time::{Duration, Instant};

/// The mutex, whoever panicked holding it.
pub fn lock<T: ?Sized>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// What the mutex guarded, now that nobody else has it.
pub fn into_inner<T>(mutex: Mutex<T>) -> T {
    mutex.into_inner().unwrap_or_else(PoisonError::into_inner)
}

/// The lock for reading, whoever panicked holding it.
pub fn read<T: ?Sized>(lock: &RwLock<T>) -> RwLockReadGuard<'_, T> {
    lock.read().unwrap_or_else(PoisonError::into_inner)
}

/// The lock for writing, whoever panicked holding it.
pub fn write<T: ?Sized>(lock: &RwLock<T>) -> RwLockWriteGuard<'_, T> {
    lock.write().unwrap_or_else(PoisonError::into_inner)
}

/// Waits until it is notified. May wake for nothing: look again.
pub fn wait<'m, T>(changed: &Condvar, guard: MutexGuard<'m, T>) -> MutexGuard<'m, T> {
    changed.wait(guard).unwrap_or_else(PoisonError::into_inner)
}

/// Waits until it is notified, so long at most. May wake for nothing: look again.
pub fn wait_timeout<'m, T>(
    changed: &Condvar,
    guard: MutexGuard<'m, T>,
    timeout: Duration,
) -> MutexGuard<'m, T> {
    timed(changed.wait_timeout(guard, timeout))
}

/// Waits until it is notified; not beyond a moment, of which it is an error that it has come. May wake for nothing:
/// look again.
pub fn wait_until<'m, T>(
    changed: &Condvar,
    guard: MutexGuard<'m, T>,
    until: Instant,
) -> Result<MutexGuard<'m, T>, MutexGuard<'m, T>> {
    let left = until.saturating_duration_since(Instant::now());
    if left.is_zero() { Err(guard) } else { Ok(wait_timeout(changed, guard, left)) }
}

/// Waits until the condition is over, so long at most.
pub fn wait_timeout_while<'m, T>(
    changed: &Condvar,
    guard: MutexGuard<'m, T>,
    timeout: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    timed(changed.wait_timeout_while(guard, timeout, condition))
}

fn timed<'m, T>(waited: LockResult<(MutexGuard<'m, T>, WaitTimeoutResult)>) -> MutexGuard<'m, T> {
    waited.unwrap_or_else(PoisonError::into_inner).0
}

/// A lock for each key, without a limit of keys: at most one holds that of a key, whoever else wants it waits, and
/// others go on. Only a convenience: what must hold after a crash is held by the rows in the database.
///
/// Others may wait for the end of a hold without wanting it: for a moment, and never many of them.
pub struct KeyedLock<K> {
    state: Mutex<Held<K>>,
    freed: Condvar,
}

struct Held<K> {
    /// Those that somebody holds.
    held: HashMap<K, Hold>,
    /// How many were taken, and how many have ended.
    taken: u64,
    ended: u64,
}

struct Hold {
    number: u64,
    /// How many wait for its end without wanting it.
    onlookers: usize,
}

/// What one holds of a [`KeyedLock`]; over when dropped.
pub struct KeyGuard<'l, K: Eq + Hash> {
    of: &'l KeyedLock<K>,
    key: K,
}

impl<K> Default for KeyedLock<K> {
    fn default() -> Self {
        Self { state: Mutex::new(Held { held: HashMap::new(), taken: 0, ended: 0 }), freed: Condvar::new() }
    }
}

impl<K: Clone + Eq + Hash> KeyedLock<K> {
    /// Waits for whoever holds this one. None if that takes too long.
    pub fn lock_until(&self, key: K, until: Instant) -> Option<KeyGuard<'_, K>> {
        let mut state = lock(&self.state);
        while !state.take(&key) {
            state = wait_until(&self.freed, state, until).ok()?;
        }
        Some(KeyGuard { of: self, key })
    }

    /// The lock of the key if nobody holds it.
    pub fn try_lock(&self, key: K) -> Option<KeyGuard<'_, K>> {
        let is_free = lock(&self.state).take(&key);
        // Not `then_some`: a guard that is made and dropped would end the other's hold.
        is_free.then(|| KeyGuard { of: self, key })
    }
}

impl<K: Eq + Hash> KeyedLock<K> {
    /// Whether somebody holds this one.
    pub fn is_held(&self, key: &K) -> bool {
        lock(&self.state).held.contains_key(key)
    }

    /// Waits for the end of the present hold, unless so many do already: they can hold no more threads by it. Whether
    /// somebody held it and that has ended in time.
    pub fn wait_for_end(&self, key: &K, until: Instant, most_onlookers: usize) -> bool {
        let mut state = lock(&self.state);
        let number = match state.held.get_mut(key) {
            Some(hold) if hold.onlookers < most_onlookers => {
                hold.onlookers += 1;
                hold.number
            }
            _ => return false,
        };
        // Another hold may follow at once, and is not waited for.
        while state.held.get(key).is_some_and(|hold| hold.number == number) {
            match wait_until(&self.freed, state, until) {
                Ok(woken) => state = woken,
                Err(mut state) => {
                    state.held.get_mut(key).into_iter().for_each(|hold| hold.onlookers -= 1);
                    return false;
                }
            }
        }
        true
    }

    /// Looks again whenever a hold has ended, until there is something to see or the time is up.
    pub fn watch<T, E>(
        &self,
        until: Instant,
        mut look: impl FnMut() -> Result<Option<T>, E>,
    ) -> Result<Option<T>, E> {
        loop {
            let seen = lock(&self.state).ended;
            if let Some(found) = look()? {
                return Ok(Some(found));
            }
            let mut state = lock(&self.state);
            while state.ended == seen {
                match wait_until(&self.freed, state, until) {
                    Ok(woken) => state = woken,
                    Err(_) => return Ok(None),
                }
            }
        }
    }
}

impl<K: Clone + Eq + Hash> Held<K> {
    /// Takes one if nobody holds it.
    fn take(&mut self, key: &K) -> bool {
        let is_free = !self.held.contains_key(key);
        if is_free {
            self.taken += 1;
            self.held.insert(key.clone(), Hold { number: self.taken, onlookers: 0 });
        }
        is_free
    }
}

impl<K: Eq + Hash> Drop for KeyGuard<'_, K> {
    fn drop(&mut self) {
        let mut state = lock(&self.of.state);
        state.held.remove(&self.key);
        state.ended += 1;
        drop(state);
        self.of.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Arc;

    const SOON: Duration = Duration::from_millis(1);
    const LONG: Duration = Duration::from_secs(60);

    fn within(time: Duration) -> Instant {
        Instant::now() + time
    }

    #[test]
    fn a_lock_goes_on_after_a_thread_that_panicked_with_it() {
        let (mutex, shared) = (Mutex::new(1), RwLock::new(1));
        let died = std::thread::scope(|scope| {
            let holding = scope.spawn(|| {
                let (_one, _other) = (lock(&mutex), write(&shared));
                panic!("on purpose");
            });
            holding.join().is_err()
        });
        assert!(died && mutex.is_poisoned() && shared.is_poisoned());
        *lock(&mutex) += 1;
        *write(&shared) += 1;
        let changed = Condvar::new();
        assert_eq!(*wait_timeout(&changed, lock(&mutex), SOON), 2);
        assert_eq!(*wait_timeout_while(&changed, lock(&mutex), SOON, |_| true), 2);
        assert_eq!((*read(&shared), into_inner(mutex)), (2, 2));
    }

    #[test]
    fn one_holds_a_key_at_a_time_and_other_keys_are_free() {
        let locks = KeyedLock::default();
        let first = locks.lock_until(1, within(LONG)).expect("nobody holds it");
        assert!(locks.try_lock(1).is_none() && locks.lock_until(1, within(SOON)).is_none());
        assert!(locks.try_lock(2).is_some());
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| locks.lock_until(1, within(LONG)).is_some());
            drop(first);
            assert!(waiting.join().expect("no panic"));
        });
        assert!(locks.try_lock(1).is_some());
        assert!(lock(&locks.state).held.is_empty(), "what nobody holds takes no memory");
    }

    #[test]
    fn a_thread_that_panics_holds_nothing_any_more() {
        let locks = KeyedLock::default();
        std::thread::scope(|scope| {
            let holding = scope.spawn(|| {
                let _held = locks.try_lock("key");
                panic!("on purpose");
            });
            assert!(holding.join().is_err());
        });
        assert!(locks.try_lock("key").is_some());
    }

    #[test]
    fn the_end_of_a_hold_is_waited_for_by_a_few_and_not_for_ever() {
        const MOST: usize = 4;
        let locks = Arc::new(KeyedLock::default());
        assert!(!locks.wait_for_end(&1, within(LONG), MOST), "nobody has it");
        let first = locks.try_lock(1).expect("nobody has it");
        assert!(!locks.wait_for_end(&1, within(SOON), MOST));
        let onlookers: Vec<_> = (0..MOST)
            .map(|_| {
                let locks = locks.clone();
                std::thread::spawn(move || locks.wait_for_end(&1, within(LONG), MOST))
            })
            .collect();
        let waiting = || lock(&locks.state).held.values().map(|hold| hold.onlookers).sum::<usize>();
        while waiting() < MOST {
            std::thread::yield_now();
        }
        assert!(!locks.wait_for_end(&1, within(LONG), MOST), "one too many");
        drop(first);
        assert!(onlookers.into_iter().all(|one| one.join().unwrap()));
    }

    #[test]
    fn whoever_watches_looks_again_at_the_end_of_a_hold_and_only_then() {
        let locks = KeyedLock::default();
        let mut held = locks.try_lock(1);
        let mut looks = 0;
        let seen = locks.watch(within(LONG), || {
            looks += 1;
            drop(held.take().filter(|_| looks == 1));
            Ok::<_, ()>((looks == 2).then_some(looks))
        });
        assert_eq!(seen, Ok(Some(2)));
        assert_eq!(locks.watch(Instant::now(), || Ok::<Option<()>, ()>(None)), Ok(None));
    }
}
