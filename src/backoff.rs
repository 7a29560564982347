//! Pauses between attempts that fail: each longer than the one before, up to a longest.

use std::time::Duration;

use crate::clock::Millis;

/// How long to wait after so many failures. Each user of one has its own, as a constant that says why it is so long.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Backoff {
    /// The pause after the first failure.
    pub first_ms: Millis,
    /// How many times as long each further pause is.
    pub factor: Millis,
    /// No pause is longer.
    pub longest_ms: Millis,
}

impl Backoff {
    /// Pauses that double, from the first up to the longest.
    pub const fn doubling(first_ms: Millis, longest_ms: Millis) -> Self {
        Self { first_ms, factor: 2, longest_ms }
    }

    /// The pause after this many failures in a row: none after none. However many there were, it is no longer than the
    /// longest.
    pub fn pause_ms(&self, failures: u32) -> Millis {
        match failures {
            0 => 0,
            n => self.first_ms.saturating_mul(self.factor.saturating_pow(n - 1)).min(self.longest_ms),
        }
    }

    /// [`Backoff::pause_ms`] for those who count by the monotonic clock.
    pub fn pause(&self, failures: u32) -> Duration {
        Duration::from_millis(self.pause_ms(failures).unsigned_abs())
    }

    /// The pause that follows one of this length.
    pub fn after_ms(&self, pause_ms: Millis) -> Millis {
        pause_ms.saturating_mul(self.factor).clamp(self.first_ms, self.longest_ms)
    }

    /// The pause, a fifth longer or shorter by `chance`, so that what failed at the same time is not tried at the same
    /// time.
    pub fn spread_ms(&self, failures: u32, chance: u8) -> Millis {
        let fifth = self.pause_ms(failures) / 5;
        fifth * 4 + fifth.saturating_mul(2 * Millis::from(chance)) / 255
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PAUSES: Backoff = Backoff::doubling(5_000, 60_000);

    #[test]
    fn pauses_double_up_to_the_longest_however_many_failures_there_were() {
        let pauses: Vec<_> = (0..7).map(|failures| PAUSES.pause_ms(failures)).collect();
        assert_eq!(pauses, [0, 5_000, 10_000, 20_000, 40_000, 60_000, 60_000]);
        assert_eq!(PAUSES.pause_ms(u32::MAX), 60_000);
        assert_eq!(PAUSES.pause(2), Duration::from_secs(10));
        let steep = Backoff { first_ms: 3, factor: 4, longest_ms: Millis::MAX };
        assert_eq!([1, 2, 3].map(|failures| steep.pause_ms(failures)), [3, 12, 48]);
        assert_eq!(steep.pause_ms(u32::MAX), Millis::MAX);
    }

    #[test]
    fn each_pause_leads_to_the_next() {
        let mut pause = 0;
        for failures in 1..10 {
            pause = PAUSES.after_ms(pause);
            assert_eq!(pause, PAUSES.pause_ms(failures), "after {failures}");
        }
    }

    #[test]
    fn chance_makes_a_pause_a_fifth_longer_or_shorter_and_no_more() {
        assert_eq!(PAUSES.spread_ms(2, 0), 8_000);
        assert_eq!(PAUSES.spread_ms(2, 255), 12_000);
        assert!((0..=255).all(|chance| (8_000..=12_000).contains(&PAUSES.spread_ms(2, chance))));
        assert_eq!(PAUSES.spread_ms(0, 255), 0);
        assert!(Backoff::doubling(1, Millis::MAX).spread_ms(u32::MAX, 255) > 0);
    }
}
