//! Locks in one way: what they guard stays in use when a thread has panicked while it held one.
//!
//! No state of this house is left half changed across a call that may panic: each change under a lock is a few assignments
//! or one call of a map. So a poisoned lock says only that some request failed, and that request has had its answer: the
//! others go on.

use std::sync::{
    Condvar, Mutex, MutexGuard, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard, WaitTimeoutResult,
};
use std::time::Duration;

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

/// Waits until the condition is over, so long at most.
pub fn wait_timeout_while<'m, T>(
    changed: &Condvar,
    guard: MutexGuard<'m, T>,
    timeout: Duration,
    condition: impl FnMut(&mut T) -> bool,
) -> MutexGuard<'m, T> {
    timed(changed.wait_timeout_while(guard, timeout, condition))
}

fn timed<'m, T>(
    waited: Result<
        (MutexGuard<'m, T>, WaitTimeoutResult),
        PoisonError<(MutexGuard<'m, T>, WaitTimeoutResult)>,
    >,
) -> MutexGuard<'m, T> {
    waited.unwrap_or_else(PoisonError::into_inner).0
}
