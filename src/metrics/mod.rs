//! Numbers for who watches the server: counted by atomics where things happen, and only if `--metrics` is given. No number
//! tells of a user or a room: labels are routes of the table, statuses, outcomes and kinds.
//!
//! `exposition`: how they are written for Prometheus.

pub mod exposition;

use std::array;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering::Relaxed};
use std::time::Duration;

use crate::error::Error;
use crate::federation::CallError;

/// Upper bounds of the buckets of all durations, in microseconds, and as they are written.
pub const BUCKETS: [(u64, &str); 12] = [
    (1_000, "0.001"),
    (2_500, "0.0025"),
    (5_000, "0.005"),
    (10_000, "0.01"),
    (25_000, "0.025"),
    (50_000, "0.05"),
    (100_000, "0.1"),
    (250_000, "0.25"),
    (500_000, "0.5"),
    (1_000_000, "1"),
    (2_500_000, "2.5"),
    (10_000_000, "10"),
];

/// How often something took how long.
#[derive(Default)]
pub struct Histogram {
    /// One for each bucket, and one for what took longer.
    counts: [AtomicU64; BUCKETS.len() + 1],
    sum_us: AtomicU64,
}

impl Histogram {
    /// Counts one.
    pub fn add(&self, took: Duration) {
        let us = u64::try_from(took.as_micros()).unwrap_or(u64::MAX >> 1);
        let at = BUCKETS.iter().position(|(most, _)| us <= *most).unwrap_or(BUCKETS.len());
        self.counts[at].fetch_add(1, Relaxed);
        self.sum_us.fetch_add(us, Relaxed);
    }

    /// The counts, none of them containing another, and the sum in microseconds.
    pub fn read(&self) -> ([u64; BUCKETS.len() + 1], u64) {
        (array::from_fn(|at| self.counts[at].load(Relaxed)), self.sum_us.load(Relaxed))
    }
}

/// How something between servers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ending {
    /// Well.
    Done,
    /// Somebody said no.
    Refused,
    /// It was too often.
    Limited,
    /// Nobody answered.
    Unreachable,
    /// Something failed.
    Failed,
}

impl Ending {
    /// All of them with their labels, in the order of the counts.
    pub const ALL: [(Self, &'static str); 5] = [
        (Self::Done, "done"),
        (Self::Refused, "refused"),
        (Self::Limited, "limited"),
        (Self::Unreachable, "unreachable"),
        (Self::Failed, "failed"),
    ];

    /// That of a verb of ours.
    pub fn of<T>(result: &Result<T, Error>) -> Self {
        match result.as_ref().map_err(Error::status) {
            Ok(_) => Self::Done,
            Err(429) => Self::Limited,
            Err(502 | 504) => Self::Unreachable,
            Err(500..) => Self::Failed,
            Err(_) => Self::Refused,
        }
    }

    /// That of a call to another server.
    pub fn of_call<T>(result: &Result<T, CallError>) -> Self {
        match result {
            Ok(_) => Self::Done,
            Err(e) if e.is_unreachable() => Self::Unreachable,
            Err(e) => match e.refusal().map(|refusal| refusal.status) {
                Some(429) => Self::Limited,
                Some(..=499) => Self::Refused,
                _ => Self::Failed,
            },
        }
    }
}

/// How often something ended in which way.
#[derive(Default)]
pub struct Endings([AtomicU64; Ending::ALL.len()]);

impl Endings {
    /// Counts one.
    pub fn add(&self, ending: Ending) {
        self.0[ending as usize].fetch_add(1, Relaxed);
    }

    /// Each label with its count.
    pub fn read(&self) -> impl Iterator<Item = (&'static str, u64)> + '_ {
        Ending::ALL.iter().map(|(ending, label)| (*label, self.0[*ending as usize].load(Relaxed)))
    }
}

/// What the database's writer did.
#[derive(Default)]
pub struct WriterCounts {
    /// Closures that wait for it.
    pub queued: AtomicI64,
    /// Closures that had their turn.
    pub writes: AtomicU64,
    /// Commits that were lost.
    pub lost: AtomicU64,
    /// How long commits took, from the first closure to the disk.
    pub commits: Histogram,
}

/// What is counted, but for requests and commits.
#[derive(Default)]
pub struct Metrics {
    /// Transactions that we sent.
    pub transactions_out: Endings,
    /// Transactions that we were sent.
    pub transactions_in: Endings,
    /// Transactions that application services were sent.
    pub service_transactions: Endings,
    /// Knocks of local users.
    pub knocks_out: Endings,
    /// Knocks of others upon rooms here.
    pub knocks_in: Endings,
    /// Invites by local users.
    pub invites_out: Endings,
    /// Invites of local users by others.
    pub invites_in: Endings,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_duration_is_counted_in_the_first_bucket_that_it_fits_in() {
        let histogram = Histogram::default();
        for us in [0, 1_000, 1_001, 10_000_000, 10_000_001, u64::MAX] {
            histogram.add(Duration::from_micros(us));
        }
        let (counts, _) = histogram.read();
        assert_eq!((counts[0], counts[1], counts[11], counts[12]), (2, 1, 1, 2));
        assert!(BUCKETS.is_sorted());
    }

    #[test]
    fn endings_are_told_by_their_status() {
        let of = |error: Error| Ending::of::<()>(&Err(error));
        assert_eq!(Ending::of(&Ok(5)), Ending::Done);
        assert_eq!(of(Error::forbidden("no")), Ending::Refused);
        assert_eq!(of(Error::bad_gateway("away")), Ending::Unreachable);
        assert_eq!(of(Error::internal("broken")), Ending::Failed);
        assert_eq!(of(Error::new(crate::error::ErrCode::LimitExceeded, "slowly")), Ending::Limited);
        for (at, (ending, _)) in Ending::ALL.iter().enumerate() {
            assert_eq!(*ending as usize, at);
        }
    }
}
