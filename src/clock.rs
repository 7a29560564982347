//! The one clock. Everything that asks for the time asks here, so that a test can move it by hand.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

pub use crate::protocol::Millis;

/// So far the clock can be moved: what is reckoned from its times stays within what a number in JSON may be (2^53 - 1).
const AHEAD_MS_MAX: Millis = 1 << 52;

/// A clock that was set by no more than this was not set: so much is put right all the time.
const SET_SLACK_MS: Millis = 5_000;

/// A moment by [`Clock::steady`]. How long it is from one to another is in milliseconds; what the calendar says is no moment of
/// this kind and can be compared with none, nor can what a restart has ended. The first there is lies before all others.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Steady(Millis);

impl std::ops::Add<Millis> for Steady {
    type Output = Self;

    fn add(self, ms: Millis) -> Self {
        Self(self.0.saturating_add(ms))
    }
}

impl std::ops::Sub for Steady {
    type Output = Millis;

    fn sub(self, earlier: Self) -> Millis {
        self.0.saturating_sub(earlier.0)
    }
}

#[cfg(test)]
impl Steady {
    /// The moment so long after the first.
    pub(crate) const fn at(ms: Millis) -> Self {
        Self(ms)
    }
}

/// Real time plus an offset that tests can move. Cheap to clone; clones are the same clock.
///
/// It shows two times. [`Clock::now_ms`] is that of the calendar: what others are told, and what is kept on disk. Whoever runs the
/// machine may set it, or the network does: forward, and back again. So what lasts only as long as this process is counted by
/// [`Clock::steady`], which nobody sets.
#[derive(Clone)]
pub struct Clock(Arc<ClockState>);

struct ClockState {
    /// When it was made, by both.
    began: Instant,
    began_ms: Millis,
    /// So far it was advanced: time has passed.
    ahead_ms: AtomicI64,
    /// So far it was set: no time has.
    set_ms: AtomicI64,
}

impl Default for Clock {
    fn default() -> Self {
        let [ahead_ms, set_ms] = [0, 0].map(AtomicI64::new);
        Self(Arc::new(ClockState { began: Instant::now(), began_ms: real_ms(), ahead_ms, set_ms }))
    }
}

#[allow(clippy::disallowed_methods, reason = "this is the one place that may ask the system")]
fn real_ms() -> Millis {
    let real = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    Millis::try_from(real.as_millis()).unwrap_or(Millis::MAX)
}

impl Clock {
    /// A clock that shows real time.
    pub fn new() -> Self {
        Self::default()
    }

    /// Wall-clock time in milliseconds since the Unix epoch.
    pub fn now_ms(&self) -> Millis {
        real_ms() + self.0.ahead_ms.load(Ordering::Relaxed) + self.0.set_ms.load(Ordering::Relaxed)
    }

    /// The time that goes on whatever the wall clock is set to: for how long something has lasted in this process. It is not told
    /// to anybody, and means nothing after a restart.
    pub fn steady(&self) -> Steady {
        let since = Millis::try_from(self.0.began.elapsed().as_millis()).unwrap_or(Millis::MAX);
        Steady(self.0.began_ms + since + self.0.ahead_ms.load(Ordering::Relaxed))
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
        self.0.ahead_ms.fetch_update(Ordering::Relaxed, Ordering::Relaxed, moved).is_ok()
    }

    /// Sets the wall clock so many milliseconds wrong, for tests: to be wrong, it is set by whoever runs the machine.
    pub fn set_wrong_by(&self, ms: Millis) {
        self.0.set_ms.store(ms, Ordering::Relaxed);
    }
}

/// Notices that the wall clock was set.
pub struct ClockWatch {
    /// How far it stood before the steady one.
    ahead_ms: Millis,
}

impl ClockWatch {
    /// Looks from now on.
    pub fn new(clock: &Clock) -> Self {
        Self { ahead_ms: clock.now_ms() - clock.steady().0 }
    }

    /// By how much the clock was set since the last look; less than nothing: it was set back. None: it was not, or by very little.
    pub fn look(&mut self, clock: &Clock) -> Option<Millis> {
        let ahead = clock.now_ms() - clock.steady().0;
        let set = ahead - std::mem::replace(&mut self.ahead_ms, ahead);
        (set.abs() > SET_SLACK_MS).then_some(set)
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

    #[test]
    fn a_clock_that_is_set_is_noticed_once_and_the_steady_time_goes_on() {
        let clock = Clock::new();
        let mut watch = ClockWatch::new(&clock);
        let hour = 3_600_000;
        clock.advance(Duration::from_secs(86_400));
        assert_eq!(watch.look(&clock), None, "time that passed");
        let steady = clock.steady();
        clock.set_wrong_by(3 * hour);
        let set = watch.look(&clock).expect("noticed");
        assert!((set - 3 * hour).abs() < 1_000, "{set}");
        assert_eq!(watch.look(&clock), None);
        clock.set_wrong_by(0);
        let set = watch.look(&clock).expect("noticed");
        assert!((set + 3 * hour).abs() < 1_000, "{set}");
        assert!((0..hour).contains(&(clock.steady() - steady)));
    }
}
