//! Answers that are large: an initial sync of somebody who is in many rooms is megabytes, and many clients may ask for
//! one at once (after a restart, say). A few are made and written at a time, so that memory is bounded by these few and
//! not by how many ask; the processors are busy with a few as well. The next turn goes to who has the fewest answers
//! under way, unread ones included, so that nobody takes everybody's turns by asking on many connections.
//!
//! Who reads slowly may have a slow line, and is left alone until somebody who has nothing at all has waited for them for
//! long. Then the answer that was read slowest is broken off and let go of: whoever holds turns by reading next to nothing
//! loses them before those who read what their line takes. Its reader may ask again, and waits like others.

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
/// For so long one who has nothing under way waits for those who read slowly.
const PATIENCE: Duration = Duration::from_secs(30);
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
    patience: Duration,
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
    /// How long it is, and how much of it nobody has read.
    bytes: usize,
    bytes_left: usize,
    /// The answer itself, as its reader has it.
    answer: KeptAnswer,
}

/// None: it was broken off, or is not made.
type KeptAnswer = Arc<Mutex<Option<Box<dyn Read + Send>>>>;

impl Default for LargeAnswers {
    fn default() -> Self {
        Self::new(thread::available_parallelism().map_or(2, std::num::NonZero::get).max(2), PATIENCE)
    }
}

impl LargeAnswers {
    fn new(most: usize, patience: Duration) -> Self {
        Self(Arc::new(SharedTurns { most, patience, turns: Mutex::default(), ended: Condvar::new() }))
    }

    /// A turn for `who`, waited for while it is `wanted`. Errors: 429 `M_LIMIT_EXCEEDED` if there is none for long, or too
    /// many of theirs wait already.
    pub fn turn(&self, who: &UserId, wanted: impl Fn() -> bool) -> Result<AnswerTurn> {
        let began = Instant::now();
        let until = began + TURN_TIMEOUT;
        let mut turns = lock(&self.0.turns);
        if turns.line.iter().filter(|(_, other)| other == who).count() >= WAITING_OF_USER_MAX {
            return Err(too_many());
        }
        turns.begun += 1;
        let number = turns.begun;
        turns.line.push((number, who.clone()));
        let has_turn = loop {
            if turns.next() == Some(number) {
                if turns.is_free(self.0.most) {
                    break true;
                }
                if began.elapsed() >= self.0.patience
                    && turns.count_of(who) == 0
                    && turns.break_one_off(self.0.most)
                {
                    continue;
                }
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || !wanted() {
                break false;
            }
            turns = wait_timeout(&self.0.ended, turns, left.min(STILL_WANTED_INTERVAL));
        };
        turns.line.retain(|(other, _)| *other != number);
        if has_turn {
            let (who, answer) = (who.clone(), KeptAnswer::default());
            turns.taken.insert(number, TakenTurn { who, made: None, bytes: 0, bytes_left: 0, answer });
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
        let bytes_left: usize = self.taken.values().map(|turn| turn.bytes_left).sum();
        self.under_way() < most && self.taken.len() < KEPT_PER_TURN_MAX * most && bytes_left <= KEPT_BYTES_MAX
    }

    /// Those that are made, or were a moment ago.
    fn under_way(&self) -> usize {
        self.taken.values().filter(|turn| !turn.is_slow()).count()
    }

    /// Ends the turn of the answer that was read slowest. False: it is not slow readers who are waited for.
    fn break_one_off(&mut self, most: usize) -> bool {
        if self.under_way() >= most {
            return false;
        }
        let slow = self.taken.iter().filter(|(_, turn)| turn.is_slow());
        let slowest =
            slow.min_by_key(|(_, turn)| (turn.bytes_a_second(), turn.made)).map(|(number, _)| *number);
        let Some(turn) = slowest.and_then(|number| self.taken.remove(&number)) else { return false };
        log::debug!("{} reads a large answer slowly, which is broken off for others", turn.who);
        *lock(&turn.answer) = None;
        true
    }

    fn count_of(&self, who: &UserId) -> usize {
        self.taken.values().filter(|turn| turn.who == *who).count()
    }

    /// Who of those who wait is next.
    fn next(&self) -> Option<u64> {
        let may = self.line.iter().filter(|(_, who)| self.count_of(who) < KEPT_OF_USER_MAX);
        may.min_by_key(|(number, who)| (self.count_of(who), *number)).map(|(number, _)| *number)
    }
}

impl TakenTurn {
    fn is_slow(&self) -> bool {
        self.made.is_some_and(|made| made.elapsed() >= SLOW_READER_TIMEOUT)
    }

    fn bytes_a_second(&self) -> u128 {
        let millis = self.made.map_or(0, |made| made.elapsed().as_millis());
        (self.bytes - self.bytes_left) as u128 * 1000 / millis.max(1)
    }
}

/// A turn; over when it is dropped.
pub struct AnswerTurn {
    shared: Arc<SharedTurns>,
    number: u64,
}

impl AnswerTurn {
    /// The answer to be read, of so many bytes; with its last one, or when nobody reads on, the turn is over. What was read
    /// of it is to be let go of meanwhile. It ends with an error where it was broken off.
    pub fn read(self, bytes: usize, answer: impl Read + Send + 'static) -> AnswerOfTurn {
        let kept: KeptAnswer = Arc::new(Mutex::new(Some(Box::new(answer))));
        if let Some(turn) = lock(&self.shared.turns).taken.get_mut(&self.number) {
            (turn.made, turn.bytes, turn.bytes_left) = (Some(Instant::now()), bytes, bytes);
            turn.answer = kept.clone();
        }
        AnswerOfTurn { answer: kept, turn: self }
    }
}

impl Drop for AnswerTurn {
    fn drop(&mut self) {
        lock(&self.shared.turns).taken.remove(&self.number);
        self.shared.ended.notify_all();
    }
}

/// An answer whose turn is over when it is dropped.
pub struct AnswerOfTurn {
    answer: KeptAnswer,
    turn: AnswerTurn,
}

impl Read for AnswerOfTurn {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let count = match lock(&self.answer).as_mut() {
            Some(answer) => answer.read(buf)?,
            None => return Err(io::ErrorKind::ConnectionAborted.into()),
        };
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
        let (all, at_once, most) = (LargeAnswers::new(2, PATIENCE), AtomicUsize::new(0), AtomicUsize::new(0));
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
        let all = LargeAnswers::new(1, PATIENCE);
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
        let all = LargeAnswers::new(2, PATIENCE);
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
        let all = LargeAnswers::new(2, PATIENCE);
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
        let all = LargeAnswers::new(2, PATIENCE);
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

    #[test]
    fn who_has_nothing_waits_for_slow_readers_only_for_a_while_and_the_slowest_lose_theirs() {
        for bytes in [10_000, KEPT_BYTES_MAX / 2] {
            let all = LargeAnswers::new(2, Duration::from_millis(100));
            let long_ago =
                Instant::now().checked_sub(SLOW_READER_TIMEOUT).expect("the clock has run for longer");
            let mut slow = Vec::new();
            while let Ok(turn) = all.turn(&user(&format!("u{}", slow.len() / 2)), || false) {
                slow.push(turn.read(bytes, io::repeat(7)));
                lock(&all.0.turns).taken.values_mut().for_each(|turn| turn.made = Some(long_ago));
            }
            // All but one read something, and one of them more than others.
            let at = slow.len() / 2;
            let mut some = vec![0; 1000];
            for (n, answer) in slow.iter_mut().enumerate().filter(|(n, _)| *n != at) {
                answer.read_exact(&mut some[..100 * (1 + n)]).expect("read");
            }
            let began = Instant::now();
            let wanted = || began.elapsed() < Duration::from_secs(20);
            let turn = all.turn(&user("honest"), wanted).expect("a turn");
            assert!(slow[at].read(&mut some).is_err(), "it is read by nobody");
            for (n, answer) in slow.iter_mut().enumerate().filter(|(n, _)| *n != at) {
                assert!(answer.read(&mut some).is_ok(), "{n} is read");
            }
            drop((turn, slow));
            assert!(lock(&all.0.turns).taken.is_empty());
        }
    }

    #[test]
    fn nobody_is_broken_off_for_who_has_an_answer_already_or_waits_for_those_at_work() {
        let all = LargeAnswers::new(2, Duration::ZERO);
        let at_work = [all.turn(&user("a"), || true), all.turn(&user("b"), || true)];
        assert!(all.turn(&user("c"), || false).is_err(), "both are at work");
        drop(at_work);
        let long_ago = Instant::now().checked_sub(SLOW_READER_TIMEOUT).expect("the clock has run for longer");
        let mut slow = Vec::new();
        for name in ["a", "b", "c"] {
            let turn = all.turn(&user(name), || false).expect("a turn");
            slow.push(turn.read(KEPT_BYTES_MAX / 2, io::repeat(7)));
            lock(&all.0.turns).taken.values_mut().for_each(|turn| turn.made = Some(long_ago));
        }
        assert!(all.turn(&user("a"), || false).is_err(), "they have one");
        assert!(slow.iter_mut().all(|answer| answer.read(&mut [0; 10]).is_ok()));
    }
}
