//! Turns to search: a search goes through much of the database and keeps one of its few readers as long, so half of them
//! are left to everything else, and each user has one search at a time.

use std::time::{Duration, Instant};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};

/// Searches at a time: in all, and of one user.
const SEARCHES_MAX: usize = 2;
const SEARCHES_PER_USER_MAX: usize = 1;
/// Who waits for a turn, each with a thread: in all, and of one user. A client that searches while somebody types asks with
/// every letter.
const WAITING_MAX: usize = 32;
const WAITING_PER_USER_MAX: usize = 4;
/// So long one waits for a turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// When who got none should come again.
const RETRY_AFTER_MS: i64 = 3_000;
/// After so long a search answers with what it has found,
const SEARCH_TIMEOUT: Duration = Duration::from_secs(2);
/// and after so long what it asks the database is broken off.
const QUERY_TIMEOUT: Duration = Duration::from_secs(10);

/// The turns of all who search.
pub struct SearchTurns(FairSlots<UserId>);

impl Default for SearchTurns {
    fn default() -> Self {
        Self(FairSlots::with_line(SEARCHES_MAX, SEARCHES_PER_USER_MAX, WAITING_MAX, WAITING_PER_USER_MAX))
    }
}

/// A turn; over when it is dropped.
pub struct SearchTurn {
    _slot: FairSlot<UserId>,
    began: Instant,
}

impl SearchTurn {
    /// Begins the search itself: what was done before is not counted.
    pub fn begin(&mut self) {
        self.began = Instant::now();
    }

    /// Whether the search is to end with what it has.
    pub fn is_over(&self) -> bool {
        self.began.elapsed() >= SEARCH_TIMEOUT
    }

    /// When nothing is asked of the database any more.
    pub fn ends(&self) -> Instant {
        self.began + QUERY_TIMEOUT
    }
}

impl SearchTurns {
    /// A turn for a user, waited for while it is `wanted`. Errors: 429 `M_LIMIT_EXCEEDED` if there is none for long, or too
    /// many wait already.
    pub fn turn(&self, user: &UserId, wanted: impl Fn() -> bool) -> Result<SearchTurn> {
        match self.0.take(user, Instant::now() + TURN_TIMEOUT, wanted) {
            Some(slot) => Ok(SearchTurn { _slot: slot, began: Instant::now() }),
            None => {
                let error = Error::new(ErrCode::LimitExceeded, "Too many searches at once");
                Err(error.with_field("retry_after_ms", RETRY_AFTER_MS))
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn user(n: usize) -> UserId {
        UserId::parse(&format!("@u{n}:a.example")).expect("an id")
    }

    #[test]
    fn one_who_searches_without_end_has_one_turn_at_a_time_and_leaves_one_to_others() {
        let turns = SearchTurns::default();
        let held = turns.turn(&user(0), || true).expect("a turn");
        let refused = turns.turn(&user(0), || false).err().expect("one at a time");
        assert_eq!((refused.status(), refused.errcode()), (429, ErrCode::LimitExceeded));
        assert!(refused.field("retry_after_ms").is_some());
        let other = turns.turn(&user(1), || false).expect("somebody else's turn");
        assert_eq!(
            turns.turn(&user(2), || false).err().map(|e| e.status()),
            Some(429),
            "half of the readers"
        );
        drop((held, other));
        assert!(turns.turn(&user(0), || false).is_ok() && turns.turn(&user(2), || false).is_ok());
    }
}
