//! Bodies that are large: how much of their text there may be at once, and how much may be built of it.
//!
//! The text of all bodies is bounded in two accounts: what is ordinary of each owner's, and what is beyond. When one is full,
//! who holds most of it by a body that has not come whole loses that, the oldest first, so that nobody keeps others out by
//! sending most of a body and then waiting. A user has room for what is ordinary whatever others hold.
//!
//! What is read of JSON takes a multiple of its text, bounded for each request by the text's length
//! ([`crate::protocol::json::weight_max`]). For all requests together it is bounded here: before a large body is given to
//! its handler the request takes a turn that weighs as much as may be built of it, and gives it back with its answer, or
//! most of it before, when it has built what it will and waits for others ([`TreeMemory::shrink`]). The next turn goes to who has
//! the least at work, so that nobody takes everybody's by asking on many connections; and who has nothing at work need not
//! wait behind larger ones with a body of ordinary size.
//!
//! Whoever waits here holds nothing that one with a turn could wait for: no place among the handlers, no lock, no slot.

use std::collections::{BTreeMap, HashMap};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::error::{ErrCode, Error};
use crate::http::transport::bounds::RequestOwner;
use crate::locks::{lock, wait_timeout};
use crate::protocol::json::weight_max;

/// Bodies up to so much are not counted.
const UNCOUNTED_BYTES_MAX: usize = 16 << 10;
/// So much is ordinary: an event is no larger, nor are most requests of clients.
const ORDINARY_BYTES_MAX: usize = 64 << 10;
/// What texts grow by in the accounts.
const ACCOUNT_STEP_BYTES: usize = 64 << 10;
/// Of all text the part that one owner may have, unless that is less than the largest body of all.
const SHARE_OF_TEXT: usize = 4;
const SHARE_OF_TEXT_BYTES_MIN: usize = 12 << 20;
/// Who has held no more than others loses a body only when it has been under way for so long.
const UNDER_WAY_MIN: Duration = Duration::from_secs(2);
/// So long one waits for the memory of a body that is given up.
const GIVEN_UP_TIMEOUT: Duration = Duration::from_secs(2);
/// Of all that is built the part that one owner may have, unless it is of one body.
const SHARE_OF_TREES: usize = 2;
/// So long one waits for a turn.
const TURN_TIMEOUT: Duration = Duration::from_secs(20);
/// Requests of one owner, and of all, that wait for a turn: each of them keeps a thread.
const WAITING_OF_OWNER_MAX: usize = 16;
const WAITING_MAX: usize = 512;
/// How often who waits looks whether they are still wanted.
const STILL_WANTED_INTERVAL: Duration = Duration::from_millis(250);

/// How much may be built of a body with this text, in bytes.
pub type Weigh = fn(&[u8]) -> usize;

/// The accounts of one quota.
pub(super) struct LargeBodies {
    /// For what is ordinary of texts, and for what is beyond.
    text_max: usize,
    /// For what is built in turns, and for what is built beside them of ordinary bodies.
    trees_max: usize,
    accounts: Mutex<BodyAccounts>,
    changed: Condvar,
}

#[derive(Default)]
struct BodyAccounts {
    all: BodyAccount,
    /// Of all texts what is ordinary.
    ordinary_text_bytes: usize,
    /// Those of who has any. None: who has no share, being many.
    of_owner: HashMap<Option<RequestOwner>, BodyAccount>,
    /// The bodies that have not come whole, by the order in which they began.
    coming: BTreeMap<u64, ComingBody>,
    /// Requests that wait for the memory of a body that is given up.
    waiting_for_text: usize,
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
    /// And beside the turns, of ordinary bodies.
    ordinary_trees_bytes: usize,
    waiting: usize,
}

impl BodyAccount {
    fn at_work(&self) -> usize {
        self.trees_bytes + self.ordinary_trees_bytes
    }
}

/// A body that has not come whole.
struct ComingBody {
    owner: Option<RequestOwner>,
    since: Instant,
    text_bytes: usize,
    cut: Arc<CutOff>,
}

/// How a body is given up while it comes.
struct CutOff {
    is_cut: AtomicBool,
    socket: Option<Arc<TcpStream>>,
}

struct WaitingBody {
    number: u64,
    owner: Option<RequestOwner>,
    weight: usize,
    /// It is of ordinary size, and of somebody who has a share.
    is_ordinary: bool,
}

/// What of an owner's text is ordinary.
fn ordinary_part(owner: Option<&RequestOwner>, text_bytes: usize) -> usize {
    owner.map_or(0, |_| text_bytes.min(ORDINARY_BYTES_MAX))
}

fn is_user(owner: Option<&RequestOwner>) -> bool {
    matches!(owner, Some(RequestOwner::User(_)))
}

impl BodyAccounts {
    fn of(&self, owner: Option<&RequestOwner>) -> BodyAccount {
        self.of_owner.get(&owner.cloned()).copied().unwrap_or_default()
    }

    /// Changes both accounts, and forgets one with nothing in it.
    fn change(&mut self, owner: Option<&RequestOwner>, change: impl Fn(&mut BodyAccount)) {
        change(&mut self.all);
        let of_owner = self.of_owner.entry(owner.cloned()).or_default();
        let before = ordinary_part(owner, of_owner.text_bytes);
        change(of_owner);
        let after = ordinary_part(owner, of_owner.text_bytes);
        if *of_owner == BodyAccount::default() {
            self.of_owner.remove(&owner.cloned());
        }
        self.ordinary_text_bytes = self.ordinary_text_bytes + after - before;
    }

    /// Whether anybody may be waiting for a change.
    fn is_waited_for(&self) -> bool {
        !self.line.is_empty() || self.waiting_for_text > 0
    }

    /// By how much each account of texts would be too full with so many bytes more of this owner's: what is ordinary, and what
    /// is beyond.
    fn excess(&self, owner: Option<&RequestOwner>, more: usize, text_max: usize) -> (usize, usize) {
        let had = self.of(owner).text_bytes;
        let ordinary = ordinary_part(owner, had + more) - ordinary_part(owner, had);
        let beyond = self.all.text_bytes - self.ordinary_text_bytes;
        let over =
            |has: usize, more: usize| if more == 0 { 0 } else { (has + more).saturating_sub(text_max) };
        // Users have room for what is ordinary in any case: addresses, and the names of servers, cost nothing.
        let of_ordinary = if is_user(owner) { 0 } else { over(self.ordinary_text_bytes, ordinary) };
        (of_ordinary, over(beyond, more - ordinary))
    }

    /// Gives up bodies that are still coming, of whoever holds most, until so much will be free for this owner to have so much
    /// of. False: there is nobody to give way.
    fn cut(&mut self, owner: Option<&RequestOwner>, wanted: usize, excess: (usize, usize)) -> bool {
        let mut left = excess;
        for body in self.coming.values().filter(|body| body.cut.is_cut.load(Ordering::Relaxed)) {
            self.take_off(&mut left, body);
        }
        while left != (0, 0) {
            let Some(body) = self.first_to_go(owner, wanted, left) else { return false };
            body.cut.is_cut.store(true, Ordering::SeqCst);
            if let Some(socket) = &body.cut.socket {
                // Its thread notices, and still has something to say.
                let _ = socket.shutdown(Shutdown::Read);
            }
            self.take_off(&mut left, body);
        }
        true
    }

    /// Takes off what will be free when this body is given up.
    fn take_off(&self, (ordinary, beyond): &mut (usize, usize), body: &ComingBody) {
        let has = self.of(body.owner.as_ref()).text_bytes;
        let stays = has.saturating_sub(body.text_bytes);
        let of_ordinary = ordinary_part(body.owner.as_ref(), has) - ordinary_part(body.owner.as_ref(), stays);
        *ordinary = ordinary.saturating_sub(of_ordinary);
        *beyond = beyond.saturating_sub(body.text_bytes - of_ordinary);
    }

    /// The body that gives way to one of this owner, who will hold so much then: of whoever holds most, if that is not less, the
    /// oldest. Users give way to nobody but users, and for what is ordinary to nobody.
    fn first_to_go(
        &self,
        owner: Option<&RequestOwner>,
        wanted: usize,
        left: (usize, usize),
    ) -> Option<&ComingBody> {
        let may_go = |body: &&ComingBody| {
            let (of, holds) = (body.owner.as_ref(), self.of(body.owner.as_ref()).text_bytes);
            let mut helped = left;
            self.take_off(&mut helped, body);
            let gives_way = match (is_user(owner), is_user(of)) {
                (false, true) => false,
                (true, false) => true,
                _ => holds > wanted || (holds == wanted && body.since.elapsed() >= UNDER_WAY_MIN),
            };
            let is_others = of != owner || of.is_none();
            let is_kept = is_user(of) && holds <= ORDINARY_BYTES_MAX;
            let is_cut = body.cut.is_cut.load(Ordering::Relaxed);
            gives_way && is_others && helped != left && !is_kept && !is_cut
        };
        let rank = |body: &&ComingBody| {
            let of = body.owner.as_ref();
            (is_user(of), usize::MAX - self.of(of).text_bytes, body.since)
        };
        self.coming.values().filter(may_go).min_by_key(rank)
    }

    /// Whether a body of ordinary size may be built beside the turns.
    fn may_begin_beside(&self, body: &WaitingBody, trees_max: usize) -> bool {
        let owner = body.owner.as_ref();
        let there_is_room = is_user(owner) || self.all.ordinary_trees_bytes + body.weight <= trees_max;
        body.is_ordinary && self.of(owner).at_work() == 0 && there_is_room
    }

    /// Whether the one of this number may have a turn.
    fn may_begin(&self, number: u64, trees_max: usize) -> Option<Beside> {
        let own = self.line.iter().find(|waiting| waiting.number == number)?;
        if self.may_begin_beside(own, trees_max) {
            return Some(Beside(true));
        }
        let fits = |waiting: &&WaitingBody| {
            let has = self.of(waiting.owner.as_ref()).at_work();
            let each = if waiting.owner.is_some() { trees_max / SHARE_OF_TREES } else { trees_max };
            has == 0 || has + waiting.weight <= each
        };
        let order = |waiting: &&WaitingBody| (self.of(waiting.owner.as_ref()).at_work(), waiting.number);
        let next = self.line.iter().filter(fits).min_by_key(order);
        let there_is_room = self.all.trees_bytes == 0 || self.all.trees_bytes + own.weight <= trees_max;
        (there_is_room && next.is_some_and(|next| next.number == number)).then_some(Beside(false))
    }
}

/// Whether what is built is so beside the turns.
#[derive(Clone, Copy)]
struct Beside(bool);

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

    /// Changes the accounts, and tells who waits for that.
    fn change(&self, change: impl FnOnce(&mut BodyAccounts)) {
        let mut accounts = lock(&self.accounts);
        change(&mut accounts);
        let is_waited_for = accounts.is_waited_for();
        drop(accounts);
        if is_waited_for {
            self.changed.notify_all();
        }
    }
}

/// What may be built for a request; dropping it gives it back.
pub(super) struct TreeMemory {
    bodies: Arc<LargeBodies>,
    owner: Option<RequestOwner>,
    beside: Beside,
    tree_bytes: Mutex<usize>,
}

impl TreeMemory {
    /// From now on no more than so much is held of what was built, whatever is built anew included.
    pub(super) fn shrink(&self, most: usize) {
        let mut tree_bytes = lock(&self.tree_bytes);
        let less = tree_bytes.saturating_sub(most);
        if less == 0 {
            return;
        }
        *tree_bytes -= less;
        self.bodies.change(|accounts| {
            accounts.change(self.owner.as_ref(), |account| match self.beside {
                Beside(true) => account.ordinary_trees_bytes -= less,
                Beside(false) => account.trees_bytes -= less,
            });
        });
    }
}

impl Drop for TreeMemory {
    fn drop(&mut self) {
        self.shrink(0);
    }
}

/// What one request has of its quota for its body; dropping it gives it back.
pub(super) struct BodyMemory {
    bodies: Option<Arc<LargeBodies>>,
    owner: Option<RequestOwner>,
    text_bytes: usize,
    /// Which of the bodies it is that have not come whole, if it is counted.
    coming: Option<u64>,
    cut: Arc<CutOff>,
    trees: Option<Arc<TreeMemory>>,
}

impl BodyMemory {
    /// `bodies` none: the body is not counted. The owner is none for who is many. The socket is where it comes from.
    pub(super) fn new(
        bodies: Option<Arc<LargeBodies>>,
        owner: Option<RequestOwner>,
        socket: Option<Arc<TcpStream>>,
    ) -> Self {
        let cut = Arc::new(CutOff { is_cut: AtomicBool::new(false), socket });
        Self { bodies, owner, text_bytes: 0, coming: None, cut, trees: None }
    }

    /// Accounts for a body of now this many bytes. False: the quota, or the owner's share of it, is used up, or the body is given
    /// up for another's sake.
    pub(super) fn grow_to(&mut self, bytes: usize) -> bool {
        let Some(bodies) = self.bodies.clone() else { return true };
        let wanted =
            if bytes <= UNCOUNTED_BYTES_MAX { 0 } else { bytes.next_multiple_of(ACCOUNT_STEP_BYTES) };
        if wanted <= self.text_bytes {
            return !self.is_cut();
        }
        let (more, owner) = (wanted - self.text_bytes, self.owner.as_ref());
        let each = (bodies.text_max / SHARE_OF_TEXT).max(SHARE_OF_TEXT_BYTES_MIN);
        let until = Instant::now() + GIVEN_UP_TIMEOUT;
        let mut accounts = lock(&bodies.accounts);
        loop {
            let will_hold = accounts.of(owner).text_bytes + more;
            if self.is_cut() || (owner.is_some() && will_hold > each.max(ORDINARY_BYTES_MAX)) {
                return false;
            }
            let excess = accounts.excess(owner, more, bodies.text_max);
            if excess == (0, 0) {
                break;
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || accounts.closed || !accounts.cut(owner, will_hold, excess) {
                return false;
            }
            accounts.waiting_for_text += 1;
            accounts = wait_timeout(&bodies.changed, accounts, left);
            accounts.waiting_for_text -= 1;
        }
        accounts.change(owner, |account| account.text_bytes += more);
        self.text_bytes = wanted;
        let number = *self.coming.get_or_insert_with(|| {
            accounts.begun += 1;
            accounts.begun
        });
        let begun = accounts.coming.entry(number).or_insert_with(|| ComingBody {
            owner: self.owner.clone(),
            since: Instant::now(),
            text_bytes: 0,
            cut: self.cut.clone(),
        });
        begun.text_bytes = wanted;
        true
    }

    /// Whether the body is given up for another's sake.
    pub(super) fn is_cut(&self) -> bool {
        self.cut.is_cut.load(Ordering::SeqCst)
    }

    /// The body has come whole: it is not given up any more.
    pub(super) fn has_come(&mut self) {
        if let (Some(bodies), Some(number)) = (&self.bodies, self.coming.take()) {
            lock(&bodies.accounts).coming.remove(&number);
        }
    }

    /// Takes a turn for a body, of which so much may be built, waited for while it is `wanted`. Errors: 429 `M_LIMIT_EXCEEDED` if too many of
    /// the owner's wait already, 503 `M_LIMIT_EXCEEDED` if there is none for long.
    pub(super) fn take_turn(
        &mut self,
        text: &[u8],
        weigh: Weigh,
        wanted: impl Fn() -> bool,
    ) -> Result<(), Error> {
        let Some(bodies) = self.bodies.clone().filter(|_| text.len() > UNCOUNTED_BYTES_MAX) else {
            return Ok(());
        };
        let (owner, weight) = (self.owner.clone(), weigh(text));
        let until = Instant::now() + TURN_TIMEOUT;
        let mut accounts = lock(&bodies.accounts);
        accounts.begun += 1;
        let number = accounts.begun;
        let is_ordinary = text.len() <= ORDINARY_BYTES_MAX && owner.is_some();
        let body = WaitingBody { number, owner: owner.clone(), weight, is_ordinary };
        if !accounts.may_begin_beside(&body, bodies.trees_max) {
            if owner.is_some() && accounts.of(owner.as_ref()).waiting >= WAITING_OF_OWNER_MAX {
                return Err(busy("Too many large requests of yours at once").with_status(429));
            }
            if accounts.all.waiting >= WAITING_MAX {
                return Err(busy("Too many large requests at once"));
            }
        }
        accounts.line.push(body);
        accounts.change(owner.as_ref(), |account| account.waiting += 1);
        let turn = loop {
            if let Some(beside) = accounts.may_begin(number, bodies.trees_max) {
                break Some(beside);
            }
            let left = until.saturating_duration_since(Instant::now());
            if left.is_zero() || accounts.closed || !wanted() {
                break None;
            }
            accounts = wait_timeout(&bodies.changed, accounts, left.min(STILL_WANTED_INTERVAL));
        };
        accounts.line.retain(|waiting| waiting.number != number);
        accounts.change(owner.as_ref(), |account| {
            account.waiting -= 1;
            match turn {
                Some(Beside(true)) => account.ordinary_trees_bytes += weight,
                Some(Beside(false)) => account.trees_bytes += weight,
                None => {}
            }
        });
        let is_waited_for = accounts.is_waited_for();
        drop(accounts);
        if is_waited_for {
            // Whoever is next now does not know it yet.
            bodies.changed.notify_all();
        }
        let beside = turn.ok_or_else(|| busy("Too many large requests at once"))?;
        self.trees = Some(Arc::new(TreeMemory { bodies, owner, beside, tree_bytes: Mutex::new(weight) }));
        Ok(())
    }

    /// What may be built in the turn that was taken, if it takes one.
    pub(super) fn trees(&self) -> Option<Arc<TreeMemory>> {
        self.trees.clone()
    }

    /// Nothing is built any more. The text stays.
    pub(super) fn end_turn(&mut self) {
        self.trees.iter().for_each(|trees| trees.shrink(0));
    }
}

impl Drop for BodyMemory {
    fn drop(&mut self) {
        self.end_turn();
        let (text_bytes, coming) = (self.text_bytes, self.coming);
        let Some(bodies) = self.bodies.as_ref().filter(|_| text_bytes > 0) else { return };
        bodies.change(|accounts| {
            if let Some(number) = coming {
                accounts.coming.remove(&number);
            }
            accounts.change(self.owner.as_ref(), |account| account.text_bytes -= text_bytes);
        });
    }
}

/// What may be built of a body that is read as a whole.
pub(in crate::http) fn weight_of_whole(text: &[u8]) -> usize {
    weight_max(text.len())
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

    impl BodyMemory {
        fn turn_for(&mut self, text_bytes: usize, wanted: impl Fn() -> bool) -> Result<(), Error> {
            self.take_turn(&vec![b' '; text_bytes], weight_of_whole, wanted)
        }
    }

    fn bodies(trees_max: usize) -> Arc<LargeBodies> {
        Arc::new(LargeBodies::new(32 * MIB, trees_max))
    }

    fn memory(bodies: &Arc<LargeBodies>, name: &str) -> BodyMemory {
        BodyMemory::new(Some(bodies.clone()), owner(name), None)
    }

    #[test]
    fn what_is_built_at_once_is_bounded_and_all_have_their_turn_in_the_end() {
        let (bodies, at_once, most) = (bodies(64 * MIB), AtomicUsize::new(0), AtomicUsize::new(0));
        thread::scope(|scope| {
            for n in 0..30 {
                let (bodies, at_once, most) = (&bodies, &at_once, &most);
                scope.spawn(move || {
                    let mut memory = memory(bodies, &format!("u{}", n % 3));
                    memory.turn_for(MIB, || true).expect("a turn");
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
        first.turn_for(MIB, || true).expect("a turn");
        assert!(memory(&bodies, "greedy").turn_for(MIB, || false).is_err(), "their share is used up");
        memory(&bodies, "honest").turn_for(MIB, || false).expect("theirs is not");
        let mut second = memory(&bodies, "other");
        second.turn_for(MIB, || true).expect("a turn");
        let order = Mutex::new(Vec::new());
        thread::scope(|scope| {
            let wait = |name: &'static str| {
                let (bodies, order) = (&bodies, &order);
                let before = lock(&bodies.accounts).line.len();
                scope.spawn(move || {
                    let mut memory = memory(bodies, name);
                    memory.turn_for(MIB, || true).expect("a turn");
                    lock(order).push(name);
                });
                while lock(&bodies.accounts).line.len() == before {
                    thread::yield_now();
                }
            };
            for _ in 0..WAITING_OF_OWNER_MAX {
                wait("greedy");
            }
            let refused = memory(&bodies, "greedy").turn_for(MIB, || true).expect_err("too many wait");
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
        greedy.turn_for(12 * MIB, || true).expect("a turn");
        let mut second = memory(&bodies, "second");
        assert!(second.grow_to(12 * MIB) && !second.grow_to(13 * MIB), "a share is of the largest body");
        assert!(!memory(&bodies, "third").grow_to(12 * MIB), "there is no memory for one more");
        let others: Vec<BodyMemory> = (0..40)
            .map(|n| {
                let mut memory = memory(&bodies, &format!("u{n}"));
                assert!(memory.grow_to(ORDINARY_BYTES_MAX));
                memory.turn_for(ORDINARY_BYTES_MAX, || false).expect("no turn is needed");
                memory
            })
            .collect();
        assert!(memory(&bodies, "u1").turn_for(ORDINARY_BYTES_MAX, || false).is_err(), "they have one");
        assert!(memory(&bodies, "u40").turn_for(MIB, || false).is_err(), "it is large");
        drop((greedy, second, others));
        assert!(lock(&bodies.accounts).of_owner.is_empty());
    }

    #[test]
    fn who_is_many_has_no_share_and_what_waits_for_news_has_no_turn() {
        let bodies = bodies(16 * MIB);
        let mut many = BodyMemory::new(Some(bodies.clone()), None, None);
        assert!(many.grow_to(32 * MIB) && !many.grow_to(33 * MIB));
        many.turn_for(12 * MIB, || true).expect("a turn");
        let mut next = BodyMemory::new(Some(bodies.clone()), None, None);
        assert!(next.turn_for(MIB, || false).is_err());
        many.end_turn();
        next.turn_for(MIB, || false).expect("a turn");
        assert_eq!(bodies.text_bytes(), 32 * MIB);
        drop(many);
        assert_eq!(bodies.text_bytes(), 0);
        bodies.close();
        let refused = BodyMemory::new(Some(bodies.clone()), None, None).turn_for(12 * MIB, || true);
        assert_eq!(refused.expect_err("the server stops").status(), 503);
    }

    fn of_address(bodies: &Arc<LargeBodies>, n: u8) -> BodyMemory {
        let owner = RequestOwner::Address([192, 0, 2, n].into());
        BodyMemory::new(Some(bodies.clone()), Some(owner), None)
    }

    /// Has one grow while the memory of another that is cut for it is given back.
    fn grows_at_the_cost_of(memory: &mut BodyMemory, bytes: usize, other: BodyMemory) -> bool {
        thread::scope(|scope| {
            scope.spawn(move || {
                let until = Instant::now() + GIVEN_UP_TIMEOUT;
                while !other.is_cut() && Instant::now() < until {
                    thread::yield_now();
                }
                drop(other);
            });
            memory.grow_to(bytes)
        })
    }

    #[test]
    fn who_holds_most_by_a_body_that_does_not_come_whole_gives_way_and_users_to_nobody_without_a_name() {
        let bodies = bodies(16 * MIB);
        let mut held: Vec<BodyMemory> = (0..3).map(|n| of_address(&bodies, n)).collect();
        let sizes = [12 * MIB, 12 * MIB, 8 * MIB];
        assert!(held.iter_mut().zip(sizes).all(|(memory, bytes)| memory.grow_to(bytes)));
        let mut honest = of_address(&bodies, 9);
        assert!(honest.grow_to(ORDINARY_BYTES_MAX));
        let first = held.remove(0);
        assert!(grows_at_the_cost_of(&mut honest, MIB, first));
        assert!(!held.iter().any(BodyMemory::is_cut), "what is free is enough");
        // What has come whole is not given up, nor is a user for an address, however much they hold.
        held[0].has_come();
        held[1].has_come();
        let mut user = memory(&bodies, "user");
        assert!(user.grow_to(11 * MIB));
        assert!(!of_address(&bodies, 7).grow_to(4 * MIB) && !user.is_cut());
        // And an address for a user, however little it holds.
        let mut other = memory(&bodies, "other");
        assert!(grows_at_the_cost_of(&mut other, MIB, honest));
    }

    #[test]
    fn ordinary_bodies_of_addresses_are_bounded_all_together_and_users_have_room_in_any_case() {
        let bodies = Arc::new(LargeBodies::new(MIB, 16 * MIB));
        let mut held: Vec<BodyMemory> = (0..17).map(|n| of_address(&bodies, n)).collect();
        let taken = held.iter_mut().filter_map(|memory| memory.grow_to(ORDINARY_BYTES_MAX).then_some(()));
        assert_eq!(taken.count(), 16);
        let mut users: Vec<BodyMemory> = (0..40).map(|n| memory(&bodies, &format!("u{n}"))).collect();
        assert!(users.iter_mut().all(|memory| memory.grow_to(ORDINARY_BYTES_MAX)));
    }

    #[test]
    fn who_waits_with_what_they_have_built_leaves_the_rest_of_their_turn_to_others() {
        let bodies = bodies(16 * MIB);
        let mut waits = memory(&bodies, "waits");
        waits.turn_for(12 * MIB, || true).expect("a turn");
        let turn = waits.trees().expect("a turn");
        assert!(memory(&bodies, "next").turn_for(12 * MIB / 32, || false).is_err());
        turn.shrink(4 * MIB);
        turn.shrink(8 * MIB);
        let mut next = memory(&bodies, "next");
        next.turn_for(11 * MIB / 32, || false).expect("a turn");
        drop((waits, next));
        turn.shrink(0);
        assert!(lock(&bodies.accounts).of_owner.is_empty());
    }

    #[test]
    fn what_is_ordinary_is_built_beside_one_that_needs_all_the_room_and_neither_waits_for_the_other() {
        let bodies = bodies(16 * MIB);
        let mut ordinary = memory(&bodies, "a");
        ordinary.turn_for(ORDINARY_BYTES_MAX, || false).expect("a turn");
        let mut all = memory(&bodies, "b");
        all.turn_for(12 * MIB, || false).expect("a turn");
        // Those who wait are no reason to refuse one that need not.
        lock(&bodies.accounts).all.waiting = WAITING_MAX;
        memory(&bodies, "c").turn_for(ORDINARY_BYTES_MAX, || false).expect("a turn");
        assert!(memory(&bodies, "c").turn_for(MIB, || false).is_err());
        lock(&bodies.accounts).all.waiting = 0;
        // Addresses have so much beside the turns and no more.
        let mut many: Vec<BodyMemory> = (0..9).map(|n| of_address(&bodies, n)).collect();
        let begun =
            many.iter_mut().filter_map(|memory| memory.turn_for(ORDINARY_BYTES_MAX, || false).ok()).count();
        assert_eq!(begun, (16 * MIB - weight_max(ORDINARY_BYTES_MAX)) / weight_max(ORDINARY_BYTES_MAX));
    }
}
