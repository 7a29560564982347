//! Bodies that are large: how much of their text there may be at once, and how much may be built of it.
//!
//! What is read of JSON takes a multiple of its text, bounded for each request by the text's length
//! ([`crate::protocol::json::weight_max`]). For all requests together it is bounded here: before a large body is given to
//! its handler the request takes a turn that weighs as much as may be built of it, and gives it back with its answer. The
//! next turn goes to who has the least at work, so that nobody takes everybody's by asking on many connections; and who has
//! nothing at work need not wait at all with a body of ordinary size.
//!
//! Whoever waits here holds nothing that one with a turn could wait for: no place among the handlers, no lock, no slot.

use std::collections::HashMap;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{ErrCode, Error};
use crate::http::transport::bounds::RequestOwner;
use crate::locks::{lock, wait_timeout};
use crate::protocol::json::weight_max;

/// Bodies up to so much are not counted.
const UNCOUNTED_BYTES_MAX: usize = 16 << 10;
/// Who has no more than so much, and nothing at work, is served whatever others have: an event is no larger, nor are most
/// requests of clients.
const ORDINARY_BYTES_MAX: usize = 64 << 10;
/// What texts grow by in the accounts.
const ACCOUNT_STEP_BYTES: usize = 64 << 10;
/// Of all text the part that one owner may have, unless that is less than the largest body of all.
const SHARE_OF_TEXT: usize = 4;
const SHARE_OF_TEXT_BYTES_MIN: usize = 12 << 20;
/// Of all that is built the part that one owner may have, unless it is of one body.
const SHARE_OF_TREES: usize = 2;
/// So long one waits for a turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of one owner, and of all, that wait for a turn: each of them keeps a thread.
const WAITING_OF_OWNER_MAX: usize = 16;
const WAITING_MAX: usize = 512;
/// How often who waits looks whether they are still wanted.
const STILL_WANTED_INTERVAL: Duration = Duration::from_millis(250);

/// The accounts of one quota.
pub(super) struct LargeBodies {
    text_max: usize,
    trees_max: usize,
    accounts: Mutex<BodyAccounts>,
    changed: Condvar,
}

#[derive(Default)]
struct BodyAccounts {
    all: BodyAccount,
    /// Those of who has any. None: who has no share, being many.
    of_owner: HashMap<Option<RequestOwner>, BodyAccount>,
    /// Who waits for a turn, in the order in which they came.
    line: Vec<WaitingBody>,
    begun: u64,
    closed: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
struct BodyAccount {
    text_bytes: usize,
    /// What may be built for those who have a turn.
    trees_bytes: usize,
    waiting: usize,
}

struct WaitingBody {
    number: u64,
    owner: Option<RequestOwner>,
    weight: usize,
    /// It is of ordinary size, and of somebody who has a share.
    is_ordinary: bool,
}

impl BodyAccounts {
    fn of(&self, owner: Option<&RequestOwner>) -> BodyAccount {
        self.of_owner.get(&owner.cloned()).copied().unwrap_or_default()
    }

    /// Changes both accounts, and forgets one with nothing in it.
    fn change(&mut self, owner: Option<&RequestOwner>, change: impl Fn(&mut BodyAccount)) {
        change(&mut self.all);
        let of_owner = self.of_owner.entry(owner.cloned()).or_default();
        change(of_owner);
        if *of_owner == BodyAccount::default() {
            self.of_owner.remove(&owner.cloned());
        }
    }

    /// Whether the one of this number may have a turn.
    fn may_begin(&self, number: u64, trees_max: usize) -> bool {
        let Some(own) = self.line.iter().find(|waiting| waiting.number == number) else { return false };
        if own.is_ordinary && self.of(own.owner.as_ref()).trees_bytes == 0 {
            return true;
        }
        let fits = |waiting: &&WaitingBody| {
            let has = self.of(waiting.owner.as_ref()).trees_bytes;
            let each = if waiting.owner.is_some() { trees_max / SHARE_OF_TREES } else { trees_max };
            has == 0 || has + waiting.weight <= each
        };
        let order = |waiting: &&WaitingBody| (self.of(waiting.owner.as_ref()).trees_bytes, waiting.number);
        let next = self.line.iter().filter(fits).min_by_key(order);
        let there_is_room = self.all.trees_bytes == 0 || self.all.trees_bytes + own.weight <= trees_max;
        there_is_room && next.is_some_and(|next| next.number == number)
    }
}

impl LargeBodies {
    pub(super) fn new(text_max: usize, trees_max: usize) -> Self {
        Self { text_max, trees_max, accounts: Mutex::default(), changed: Condvar::new() }
    }

    /// Bytes of all texts.
    pub(super) fn text_bytes(&self) -> usize {
        lock(&self.accounts).all.text_bytes
    }

    /// Nobody waits for a turn any more.
    pub(super) fn close(&self) {
        lock(&self.accounts).closed = true;
        self.changed.notify_all();
    }
}

/// What one request has of its quota for its body; dropping it gives it back.
pub(super) struct BodyMemory {
    bodies: Option<Arc<LargeBodies>>,
    owner: Option<RequestOwner>,
    text_bytes: usize,
    tree_bytes: usize,
}

impl BodyMemory {
    /// None: the body is not counted. The owner is none for who is many.
    pub(super) fn new(bodies: Option<Arc<LargeBodies>>, owner: Option<RequestOwner>) -> Self {
        Self { bodies, owner, text_bytes: 0, tree_bytes: 0 }
    }

    /// Accounts for a body of now this many bytes. False: the quota, or the owner's share of it, is used up.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let Some(bodies) = &self.bodies else { return true };
        let wanted =
            if bytes <= UNCOUNTED_BYTES_MAX { 0 } else { bytes.next_multiple_of(ACCOUNT_STEP_BYTES) };
        if wanted <= self.text_bytes {
            return true;
        }
        let (more, owner) = (wanted - self.text_bytes, self.owner.as_ref());
        self.text_bytes = wanted;
        let mut accounts = lock(&bodies.accounts);
        accounts.change(owner, |account| account.text_bytes += more);
        let (all, of_owner) = (accounts.all.text_bytes, accounts.of(owner).text_bytes);
        if owner.is_none() {
            return all <= bodies.text_max;
        }
        let each = (bodies.text_max / SHARE_OF_TEXT).max(SHARE_OF_TEXT_BYTES_MIN);
        of_owner <= ORDINARY_BYTES_MAX || (all <= bodies.text_max && of_owner <= each)
    }

    /// Takes a turn for a body of so many bytes, waited for while it is `wanted`. Errors: 429 `M_LIMIT_EXCEEDED` if too many of
    /// the owner's wait already, 503 `M_LIMIT_EXCEEDED` if there is none for long.
    pub(super) fn take_turn(&mut self, text_bytes: usize, wanted: impl Fn() -> bool) -> Result<(), Error> {
        let Some(bodies) = self.bodies.clone().filter(|_| text_bytes > UNCOUNTED_BYTES_MAX) else {
            return Ok(());
        };
        let (owner, weight) = (self.owner.clone(), weight_max(text_bytes));
        let until = Instant::now() + TURN_TIMEOUT;
        let mut accounts = lock(&bodies.accounts);
        if owner.is_some() && accounts.of(owner.as_ref()).waiting >= WAITING_OF_OWNER_MAX {
            return Err(busy("Too many large requests of yours at once").with_status(429));
        }
        if accounts.all.waiting >= WAITING_MAX {
            return Err(busy("Too many large requests at once"));
        }
        accounts.begun += 1;
        let number = accounts.begun;
        let is_ordinary = text_bytes <= ORDINARY_BYTES_MAX && owner.is_some();
        accounts.line.push(WaitingBody { number, owner: owner.clone(), weight, is_ordinary });
        accounts.change(owner.as_ref(), |account| account.waiting += 1);
        let has_turn = loop {
            if accounts.may_begin(number, bodies.trees_max) {
                break true;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || accounts.closed || !wanted() {
                break false;
            }
            accounts = wait_timeout(&bodies.changed, accounts, left.min(STILL_WANTED_INTERVAL));
        };
        accounts.line.retain(|waiting| waiting.number != number);
        let taken = if has_turn { weight } else { 0 };
        accounts.change(owner.as_ref(), |account| {
            account.waiting -= 1;
            account.trees_bytes += taken;
        });
        self.tree_bytes = taken;
        let is_waited_for = !accounts.line.is_empty();
        drop(accounts);
        if is_waited_for {
            // Whoever is next now does not know it yet.
            bodies.changed.notify_all();
        }
        if has_turn { Ok(()) } else { Err(busy("Too many large requests at once")) }
    }

    /// Nothing is built any more. The text stays.
    pub(super) fn end_turn(&mut self) {
        self.give_back(0);
    }

    fn give_back(&mut self, text_bytes: usize) {
        let tree_bytes = std::mem::take(&mut self.tree_bytes);
        let Some(bodies) = self.bodies.as_ref().filter(|_| text_bytes + tree_bytes > 0) else { return };
        let mut accounts = lock(&bodies.accounts);
        accounts.change(self.owner.as_ref(), |account| {
            account.text_bytes -= text_bytes;
            account.trees_bytes -= tree_bytes;
        });
        let is_waited_for = !accounts.line.is_empty();
        drop(accounts);
        if is_waited_for {
            bodies.changed.notify_all();
        }
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        self.give_back(self.text_bytes);
    }
}

fn busy(why: &'static str) -> Error {
    let error = Error::new(ErrCode::LimitExceeded, format!("{why}, try again in a moment"));
    error.with_status(503).with_field("retry_after_ms", 2000)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::thread;

    use super::*;
    use crate::protocol::UserId;

    const MIB: usize = 1 << 20;

    fn owner(name: &str) -> Option<RequestOwner> {
        Some(RequestOwner::User(UserId::parse(&format!("@{name}:a.example")).expect("an id")))
    }

    fn bodies(trees_max: usize) -> Arc<LargeBodies> {
        Arc::new(LargeBodies::new(32 * MIB, trees_max))
    }

    fn memory(bodies: &Arc<LargeBodies>, name: &str) -> BodyMemory {
        BodyMemory::new(Some(bodies.clone()), owner(name))
    }

    #[test]
    fn what_is_built_at_once_is_bounded_and_all_have_their_turn_in_the_end() {
        let (bodies, at_once, most) = (bodies(64 * MIB), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for n in 0..30 {
                let (bodies, at_once, most) = (&bodies, &at_once, &most);
                scope.spawn(move || {
                    let mut memory = memory(bodies, &format!("u{}", n % 3));
                    memory.take_turn(MIB, || true).expect("a turn");
                    most.fetch_max(at_once.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
                    thread::yield_now();
                    at_once.fetch_sub(1, Ordering::SeqCst);
                });
            }
        });
        assert!(most.load(Ordering::SeqCst) <= 64 * MIB / weight_max(MIB));
        let accounts = lock(&bodies.accounts);
        assert!(accounts.all == BodyAccount::default() && accounts.of_owner.is_empty());
    }

    #[test]
    fn who_asks_on_many_connections_waits_behind_who_asks_once_and_is_refused_in_the_end() {
        let bodies = bodies(2 * weight_max(MIB));
        let mut first = memory(&bodies, "greedy");
        first.take_turn(MIB, || true).expect("a turn");
        assert!(memory(&bodies, "greedy").take_turn(MIB, || false).is_err(), "their share is used up");
        memory(&bodies, "honest").take_turn(MIB, || false).expect("theirs is not");
        let mut second = memory(&bodies, "other");
        second.take_turn(MIB, || true).expect("a turn");
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let wait = |name: &'static str| {
                let (bodies, order) = (&bodies, &order);
                let before = lock(&bodies.accounts).line.len();
                scope.spawn(move || {
                    let mut memory = memory(bodies, name);
                    memory.take_turn(MIB, || true).expect("a turn");
                    lock(order).push(name);
                });
                while lock(&bodies.accounts).line.len() == before {
                    thread::yield_now();
                }
            };
            for _ in 0..WAITING_OF_OWNER_MAX {
                wait("greedy");
            }
            let refused = memory(&bodies, "greedy").take_turn(MIB, || true).expect_err("too many wait");
            assert_eq!((refused.status(), refused.field("retry_after_ms").is_some()), (429, true));
            wait("honest");
            drop(second);
            while !lock(&order).contains(&"honest") {
                thread::yield_now();
            }
            drop(first);
        });
        let order = lock(&order);
        assert_eq!((order[0], order.len()), ("honest", WAITING_OF_OWNER_MAX + 1));
    }

    #[test]
    fn forty_others_go_on_with_ordinary_bodies_while_all_turns_are_taken() {
        let bodies = bodies(16 * MIB);
        let mut greedy = memory(&bodies, "greedy");
        assert!(greedy.grow_to(12 * MIB));
        greedy.take_turn(12 * MIB, || true).expect("a turn");
        let mut second = memory(&bodies, "second");
        assert!(second.grow_to(12 * MIB) && !second.grow_to(13 * MIB), "a share is of the largest body");
        assert!(!memory(&bodies, "third").grow_to(12 * MIB), "there is no memory for one more");
        let others: Vec<BodyMemory> = (0..40)
            .map(|n| {
                let mut memory = memory(&bodies, &format!("u{n}"));
                assert!(memory.grow_to(ORDINARY_BYTES_MAX));
                memory.take_turn(ORDINARY_BYTES_MAX, || false).expect("no turn is needed");
                memory
            })
            .collect();
        assert!(memory(&bodies, "u1").take_turn(ORDINARY_BYTES_MAX, || false).is_err(), "they have one");
        assert!(memory(&bodies, "u40").take_turn(MIB, || false).is_err(), "it is large");
        drop((greedy, second, others));
        assert!(lock(&bodies.accounts).of_owner.is_empty());
    }

    #[test]
    fn who_is_many_has_no_share_and_what_waits_for_news_has_no_turn() {
        let bodies = bodies(16 * MIB);
        let mut many = BodyMemory::new(Some(bodies.clone()), None);
        assert!(many.grow_to(32 * MIB) && !many.grow_to(33 * MIB));
        many.take_turn(12 * MIB, || true).expect("a turn");
        let mut next = BodyMemory::new(Some(bodies.clone()), None);
        assert!(next.take_turn(MIB, || false).is_err());
        many.end_turn();
        next.take_turn(MIB, || false).expect("a turn");
        assert!(bodies.text_bytes() > 32 * MIB);
        drop(many);
        assert_eq!(bodies.text_bytes(), 0);
        bodies.close();
        let refused = BodyMemory::new(Some(bodies.clone()), None).take_turn(12 * MIB, || true);
        assert_eq!(refused.expect_err("the server stops").status(), 503);
    }
}
