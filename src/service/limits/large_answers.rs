//! Answers that are large: an initial sync of somebody who is in many rooms is megabytes, and many clients may ask for
//! one at once (after a restart, say). A few are made and written at a time, so that memory is bounded by these few and
//! not by how many ask; the processors are busy with a few as well. The next turn goes to who has the fewest answers
//! under way, unread ones included, so that nobody takes everybody's turns by asking on many connections.

use std::collections::HashMap;
use std::io::{self, Read};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait_timeout};
use crate::protocol::UserId;

/// Whoever reads slowly keeps others waiting for so long after the answer was made, and no longer.
const SLOW_READER_TIMEOUT: Duration = Duration::from_secs(3);
/// So long one waits for a turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(120);
/// Answers that are there, with those that are read slowly, for each that may be under way; and those of one user.
const KEPT_PER_TURN_MAX: usize = 4;
const KEPT_OF_USER_MAX: usize = 2;
/// Nobody begins as long as the answers that are there have more bytes left than this.
const KEPT_BYTES_MAX: usize = 64 << 20;
/// Requests of one user that wait for a turn: each of them keeps a thread.
const WAITING_OF_USER_MAX: usize = 16;
/// How often who waits looks whether they are still wanted.
const STILL_WANTED_INTERVAL: Duration = Duration::from_millis(250);

/// The turns of large answers.
pub struct LargeAnswers(Arc<SharedTurns>);

struct SharedTurns {
    most: usize,
    turns: Mutex<LargeTurns>,
    ended: Condvar,
}

#[derive(Default)]
struct LargeTurns {
    begun: u64,
    /// Those that are not over.
    taken: HashMap<u64, TakenTurn>,
    /// Who waits, in the order in which they came.
    line: Vec<(u64, UserId)>,
}

struct TakenTurn {
    who: UserId,
    /// Since when the answer is there.
    made: Option<Instant>,
    /// How much of it nobody has read.
    bytes_left: usize,
}

impl Default for LargeAnswers {
    fn default() -> Self {
        Self::new(thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2))
    }
}

impl LargeAnswers {
    fn new(most: usize) -> Self {
        Self(Arc::new(SharedTurns { most, turns: Mutex::default(), ended: Condvar::new() }))
    }

    /// A turn for `who`, waited for while it is `wanted`. Errors: 429 `M_LIMIT_EXCEEDED` if there is none for long, or too
    /// many of theirs wait already.
    pub fn turn(&self, who: &UserId, wanted: impl Fn() -> bool) -> Result<AnswerTurn> {
        let until = Instant::now() + TURN_TIMEOUT;
        let mut turns = lock(&self.0.turns);
        if turns.line.iter().filter(|(_, other)| other == who).count() >= WAITING_OF_USER_MAX {
            return Err(too_many());
        }
        turns.begun += 1;
        let number = turns.begun;
        turns.line.push((number, who.clone()));
        let has_turn = loop {
            if turns.is_free(self.0.most) && turns.next() == Some(number) {
                break true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !wanted() {
                break false;
            }
            turns = wait_timeout(&self.0.ended, turns, left.min(STILL_WANTED_INTERVAL));
        };
        turns.line.retain(|(other, _)| *other != number);
        if has_turn {
            turns.taken.insert(number, TakenTurn { who: who.clone(), made: None, bytes_left: 0 });
        }
        drop(turns);
        // Whoever is next now does not know it yet.
        self.0.ended.notify_all();
        match has_turn {
            true => Ok(AnswerTurn { shared: self.0.clone(), number }),
            false => Err(too_many()),
        }
    }
}

fn too_many() -> Error {
    let error = Error::new(ErrCode::LimitExceeded, "Too many ask for everything at once");
    error.with_field("retry_after_ms", 10_000)
}

impl LargeTurns {
    fn is_free(&self, most: usize) -> bool {
        let slow = |turn: &&TakenTurn| turn.made.is_some_and(|made| made.elapsed() >= SLOW_READER_TIMEOUT);
        let under_way = self.taken.values().filter(|turn| !slow(turn)).count();
        let bytes_left: usize = self.taken.values().map(|turn| turn.bytes_left).sum();
        under_way < most && self.taken.len() < KEPT_PER_TURN_MAX * most && bytes_left <= KEPT_BYTES_MAX
    }

    /// Who of those who wait is next.
    fn next(&self) -> Option<u64> {
        let has = |who: &UserId| self.taken.values().filter(|turn| turn.who == *who).count();
        let may = self.line.iter().filter(|(_, who)| has(who) < KEPT_OF_USER_MAX);
        may.min_by_key(|(number, who)| (has(who), *number)).map(|(number, _)| *number)
    }
}

/// A turn; over when it is dropped.
pub struct AnswerTurn {
    shared: Arc<SharedTurns>,
    number: u64,
}

impl AnswerTurn {
    /// The answer to be read, of so many bytes; with its last one, or when nobody reads on, the turn is over. What was read
    /// of it is to be let go of meanwhile.
    pub fn read<R: Read>(self, bytes: usize, answer: R) -> AnswerOfTurn<R> {
        if let Some(turn) = lock(&self.shared.turns).taken.get_mut(&self.number) {
            (turn.made, turn.bytes_left) = (Some(Instant::now()), bytes);
        }
        AnswerOfTurn { answer, turn: self }
    }
}

impl Drop for AnswerTurn {
    fn drop(&mut self) {
        lock(&self.shared.turns).taken.remove(&self.number);
        self.shared.ended.notify_all();
    }
}

/// An answer whose turn is over when it is dropped.
pub struct AnswerOfTurn<R> {
    answer: R,
    turn: AnswerTurn,
}

impl<R: Read> Read for AnswerOfTurn<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = self.answer.read(buf)?;
        if let Some(turn) = lock(&self.turn.shared.turns).taken.get_mut(&self.turn.number) {
            turn.bytes_left = turn.bytes_left.saturating_sub(count);
        }
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Cursor;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use super::*;

    fn user(name: &str) -> UserId {
        UserId::parse(&format!("@{name}:a.example")).expect("an id")
    }

    #[test]
    fn a_few_answers_are_made_and_read_at_a_time_and_all_in_the_end() {
        let (all, at_once, most) = (LargeAnswers::new(2), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for n in 0..20 {
                let (all, at_once, most) = (&all, &at_once, &most);
                scope.spawn(move || {
                    let turn = all.turn(&user(&format!("u{}", n % 3)), || true).expect("a turn");
                    most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    let (mut read, mut reader) =
                        (Vec::new(), turn.read(100_000, Cursor::new(vec![7; 100_000])));
                    reader.read_to_end(&mut read).expect("read");
                    assert_eq!(read.len(), 100_000);
                    at_once.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 2);
        assert!(lock(&all.0.turns).taken.is_empty());
    }

    #[test]
    fn who_hangs_up_waits_no_more_and_a_slow_reader_holds_nobody_up_for_long() {
        let all = LargeAnswers::new(1);
        let turn = all.turn(&user("alice"), || true).expect("a turn");
        let refused = all.turn(&user("alice"), || false).map(drop).expect_err("nobody wants it");
        assert_eq!(refused.status(), 429);
        let slow = turn.read(10, Cursor::new(vec![7; 10]));
        let long_ago = Instant::now().checked_sub(SLOW_READER_TIMEOUT).expect("the clock has run for longer");
        lock(&all.0.turns).taken.values_mut().for_each(|turn| turn.made = Some(long_ago));
        let next = all.turn(&user("alice"), || false).expect("a turn beside the slow reader's");
        assert_eq!(
            all.turn(&user("alice"), || false).map(drop).expect_err("that one is at work").status(),
            429
        );
        drop((slow, next));
        assert!(lock(&all.0.turns).taken.is_empty());
    }

    #[test]
    fn who_asks_on_many_connections_waits_behind_who_asks_once() {
        let all = LargeAnswers::new(2);
        let first = [all.turn(&user("greedy"), || true), all.turn(&user("greedy"), || true)];
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let wait = |name: &'static str| {
                let (all, order) = (&all, &order);
                let before = lock(&all.0.turns).line.len();
                scope.spawn(move || {
                    let turn = all.turn(&user(name), || true).expect("a turn");
                    lock(order).push(name);
                    drop(turn);
                });
                while lock(&all.0.turns).line.len() == before {
                    thread::yield_now();
                }
            };
            for _ in 0..WAITING_OF_USER_MAX {
                wait("greedy");
            }
            let refused = all.turn(&user("greedy"), || true).map(drop).expect_err("too many wait");
            assert_eq!(refused.status(), 429);
            wait("honest");
            let [one, other] = first;
            drop(one);
            while !lock(&order).contains(&"honest") {
                thread::yield_now();
            }
            drop(other);
        });
        let order = lock(&order);
        assert_eq!((order[0], order.len()), ("honest", WAITING_OF_USER_MAX + 1));
    }

    #[test]
    fn answers_that_nobody_reads_are_few_whoever_asks_for_them() {
        let all = LargeAnswers::new(2);
        let long_ago = Instant::now().checked_sub(SLOW_READER_TIMEOUT).expect("the clock has run for longer");
        let mut unread = Vec::new();
        for n in 0..100 {
            for _ in 0..3 {
                unread.extend(
                    all.turn(&user(&format!("u{n}")), || false)
                        .map(|turn| turn.read(10, Cursor::new(vec![7; 10]))),
                );
                lock(&all.0.turns).taken.values_mut().for_each(|turn| turn.made = Some(long_ago));
            }
            assert!(unread.len() <= 2 * (n + 1));
        }
        assert_eq!(unread.len(), 2 * KEPT_PER_TURN_MAX);
    }

    #[test]
    fn as_long_as_much_is_left_of_what_is_read_slowly_nobody_begins() {
        let all = LargeAnswers::new(2);
        let long_ago = Instant::now().checked_sub(SLOW_READER_TIMEOUT).expect("the clock has run for longer");
        let mut slow = Vec::new();
        for name in ["a", "b", "c"] {
            let turn = all.turn(&user(name), || false).expect("a turn");
            slow.push(turn.read(KEPT_BYTES_MAX / 2, io::repeat(7)));
            lock(&all.0.turns).taken.values_mut().for_each(|turn| turn.made = Some(long_ago));
        }
        let refused = all.turn(&user("d"), || false).map(drop).expect_err("there is too much already");
        assert_eq!(refused.status(), 429);
        let mut some = vec![0; KEPT_BYTES_MAX / 4];
        slow[0].read_exact(&mut some).expect("read");
        assert!(all.turn(&user("d"), || false).is_err(), "there still is");
        slow[1].read_exact(&mut some).expect("read");
        all.turn(&user("d"), || false).map(drop).expect("what was read counts no more");
    }
}
