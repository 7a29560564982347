//! The one clock. Everything that asks for the time asks here, so that a test can move it by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use crate::protocol::Millis;

/// So far the clock can be moved: what is reckoned from its times stays within what a number in JSON may be (2^53 - 1).
const AHEAD_MS_MAX: Millis = 1 << 52;

/// Real time plus an offset that tests can advance. Cheap to clone; clones share the offset.
#[derive(Clone, Default)]
pub struct Clock {
    ahead_ms: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that shows real time.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wall-clock time in milliseconds since the Unix epoch.
    #[allow(clippy::disallowed_methods, reason = "this is the one place that may ask the system")]
    pub fn now_ms(&self) -> Millis {
        let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        Millis::try_from(real.as_millis()).unwrap_or(Millis::MAX) + self.ahead_ms.load(Ordering::Relaxed)
    }

    /// Monotonic time for deadlines of sockets and waits; not moved by `advance`.
    pub fn instant(&self) -> Instant {
        Instant::now()
    }

    /// Moves the wall clock forward, for tests: what is due by then becomes due.
    ///
    /// # Panics
    /// If it would stand more than a hundred thousand years ahead.
    #[track_caller]
    pub fn advance(&self, by: Duration) {
        assert!(self.try_advance(by), "the clock cannot be moved so far ahead");
    }

    /// The same for who goes on without it. False: that is too far, and it stands where it stood.
    pub fn try_advance(&self, by: Duration) -> bool {
        let by = Millis::try_from(by.as_millis()).unwrap_or(Millis::MAX);
        let moved = |ahead: Millis| ahead.checked_add(by).filter(|ahead| *ahead <= AHEAD_MS_MAX);
        self.ahead_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_advanced_clock_shows_in_every_clone() {
        let clock = Clock::new();
        let before = clock.clone().now_ms();
        clock.advance(Duration::from_secs(3600));
        assert!(clock.now_ms() >= before + 3_600_000);
    }

    #[test]
    fn a_clock_that_cannot_be_moved_so_far_stands_where_it_stood() {
        let clock = Clock::new();
        let century = Duration::from_secs(100 * 366 * 86_400);
        let moved = (0..100_000).take_while(|_| clock.try_advance(century)).count();
        assert!((1_000..100_000).contains(&moved), "{moved}");
        let stands = clock.now_ms();
        assert!(!clock.try_advance(Duration::MAX) && !clock.try_advance(century));
        assert!((stands..stands + 3_600_000).contains(&clock.now_ms()));
        assert!(stands < (1 << 53) - 1);
    }
}
