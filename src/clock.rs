//! The one clock. Everything that asks for the time asks here, so that a test can move it by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use crate::protocol::Millis;

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
    pub fn advance(&self, by: Duration) {
        let by = i64::try_from(by.as_millis()).unwrap_or(i64::MAX);
        self.ahead_ms.fetch_add(by, Ordering::Relaxed);
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
}
