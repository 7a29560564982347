//! The gate that readers pass: now and then new ones are kept out until those inside have left.
//!
//! SQLite starts its log over only in a moment in which nobody reads what is in it. While reads overlap there is no
//! such moment, and the log would grow without end.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::locks::{lock, wait, wait_timeout};

#[derive(Default)]
pub(in crate::store) struct Gate {
    state: Mutex<GateState>,
    changed: Condvar,
}

#[derive(Default)]
struct GateState {
    closed: bool,
    inside: usize,
}

impl Gate {
    fn state(&self) -> MutexGuard<'_, GateState> {
        lock(&self.state)
    }

    /// Waits while the gate is closed.
    pub(in crate::store) fn enter(&self) {
        let mut state = self.state();
        while state.closed {
            state = wait(&self.changed, state);
        }
        state.inside += 1;
    }

    pub(in crate::store) fn leave(&self) {
        let mut state = self.state();
        state.inside -= 1;
        if state.inside == 0 && state.closed {
            self.changed.notify_all();
        }
    }

    /// Lets nobody in, and waits until nobody is inside: then it stays closed until what is returned is dropped. None
    /// if somebody stays for too long; then it is open again.
    pub(in crate::store) fn close(&self, patience: Duration) -> Option<ClosedGate<'_>> {
        let until = Instant::now() + patience;
        let mut state = self.state();
        state.closed = true;
        let closed = ClosedGate(self);
        while state.inside > 0 {
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() {
                drop(state);
                return None;
            }
            state = wait_timeout(&self.changed, state, left);
        }
        drop(state);
        Some(closed)
    }
}

/// The gate is closed.
pub(in crate::store) struct ClosedGate<'g>(&'g Gate);

impl Drop for ClosedGate<'_> {
    fn drop(&mut self) {
        self.0.state().closed = false;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn those_inside_are_waited_for_and_those_outside_come_in_when_it_opens() {
        let gate = Gate::default();
        gate.enter();
        assert!(gate.close(Duration::from_millis(1)).is_none(), "somebody is inside");
        gate.enter();
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| drop(gate.close(Duration::from_secs(60)).expect("they leave")));
            while !gate.state().closed {
                std::thread::yield_now();
            }
            let late = scope.spawn(|| gate.enter());
            gate.leave();
            gate.leave();
            waiting.join().expect("no panic");
            late.join().expect("no panic");
        });
        assert_eq!(gate.state().inside, 1);
    }
}
