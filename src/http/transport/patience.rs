//! How slowly the other end may send and read.

use std::time::{Duration, Instant};

use crate::http::transport::registry::ConnectionSlot;

/// Who has taken so many bytes of replies quickly has earned time to be slow by them, and by no more.
const EARNING_BYTES_MAX: usize = 256 << 10;

/// By when so much of a body has to have come at the slowest rate.
pub(super) fn transfer_deadline(slot: &ConnectionSlot, started: Instant, so_far: usize) -> Instant {
    let limits = &slot.shared.limits;
    started + limits.transfer_grace + at_rate(so_far, limits.transfer_rate)
}

/// How long so many bytes take, at this rate in bytes a second.
fn at_rate(bytes: usize, rate: usize) -> Duration {
    Duration::from_secs_f64(bytes as f64 / rate.max(1) as f64)
}

/// For how long the replies of a connection may still wait to be read: all of them together, so that many small ones are no way
/// to be slower than with one. What was read earns time by its slowest rate; who has taken much of it quickly has earned no
/// time to take nothing.
pub(super) struct Patience {
    grace: Duration,
    left: Duration,
}

impl Patience {
    pub(super) fn new(grace: Duration) -> Self {
        Self { grace, left: grace }
    }

    /// By when what is written now has to have been taken.
    pub(super) fn deadline(&self, now: Instant) -> Instant {
        now + self.left
    }

    /// So many bytes have waited so long.
    pub(super) fn waited(&mut self, blocked: Duration, bytes: usize, rate: usize) {
        let most = self.grace + at_rate(EARNING_BYTES_MAX, rate);
        self.left = (self.left.saturating_sub(blocked) + at_rate(bytes, rate)).min(most);
    }

    /// Nothing was to be read for so long.
    pub(super) fn rested(&mut self, time: Duration) {
        self.left = self.left.max((self.left + time).min(self.grace));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies_that_are_hardly_read_use_up_one_patience_however_many_they_are() {
        let second = Duration::from_secs(1);
        let mut patience = Patience::new(20 * second);
        let count = (1..).find(|_| {
            patience.waited(second, 200, 2048);
            patience.left < second
        });
        assert!(count.is_some_and(|count| count < 25), "{count:?}");
        // Who reads earns time, and who takes nothing for a while gives some.
        patience.rested(100 * second);
        assert_eq!(patience.left, 20 * second);
        (0..1000).for_each(|_| patience.waited(Duration::from_millis(1), 1 << 20, 2048));
        assert_eq!(patience.left, 148 * second);
        patience.rested(second);
        assert_eq!(patience.left, 148 * second);
        // A phone with a bad line, for a file of a megabyte.
        (0..1000).for_each(|_| patience.waited(second / 2, 1 << 10, 2048));
        assert!(patience.left > 20 * second);
    }
}
