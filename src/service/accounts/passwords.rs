//! Passwords: how one is kept, how many are worked on at a time, and how often one may be tried for an account.
//!
//! Hashing one costs 19 MiB and a good part of a processor's second, so there is one line for it, bounded in length, in
//! which no address has more than a share. Failed tries are counted for each account beside the limits for each address
//! that `http/rate_limit.rs` has: by the address that tries, by its network, and by all who are strangers to the
//! account. An address from which one of the account's devices was seen is none, nor is who has the token of one: they
//! have counts of their own and are not held up by what strangers try, so that nobody locks somebody else out of their
//! account.

use std::collections::HashMap;
use std::fmt;
use std::net::IpAddr;
use std::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

use argon2::password_hash::{PasswordHasher, PasswordVerifier};
use argon2::{Algorithm, Argon2, Params, Version};

use crate::address::{group, network};
use crate::clock::{Millis, Steady};
use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait, wait_timeout};
use crate::protocol::UserId;
use crate::random;
use crate::service::accounts::Accounts;
use crate::service::accounts::moderation::locked;
use crate::store::Db;
use crate::store::accounts::Account;

/// The work for one password: 19 MiB and two passes, which a Raspberry Pi does in a fraction of a second. (The least
/// that OWASP recommends for argon2id.)
const HASH_MEMORY_KIB: u32 = 19 * 1024;
const HASH_PASSES: u32 = 2;
/// Longest password in bytes: nobody types more, and hashing must not be a way to load the server.
const PASSWORD_BYTES_MAX: usize = 512;

/// A hash that no password has: checked where there is no account, so that guessing takes the same time.
const NOBODYS_HASH: &str =
    "$argon2id$v=19$m=19456,t=2,p=1$bm90IGFueWJvZHkncw$QOdOZQsoAOxXnxGsYr2SNdG8Efe3zlArPkUbCUAyCHk";

/// What of passwords is kept in memory.
#[derive(Debug, Default)]
pub struct Passwords {
    queue: PasswordQueue,
    tries: FailedTries,
}

fn come_back_in(ms: Millis, message: &'static str) -> Error {
    Error::new(ErrCode::LimitExceeded, message).with_field("retry_after_ms", ms.max(1))
}

/// That somebody knew the password of an account. It proves nothing any more once the account has another one, is locked or was
/// closed: a password is reset to keep out who knows the old one, and what they had begun with it.
#[derive(Clone)]
pub struct PasswordProof {
    user: UserId,
    /// As it was kept then. None is kept twice in the same form.
    hash: String,
}

/// Not the hash, which is a secret.
impl fmt::Debug for PasswordProof {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the password of {}", self.user)
    }
}

impl PasswordProof {
    /// Whose password it was.
    pub fn user(&self) -> &UserId {
        &self.user
    }

    /// Whether it is their password still. What is done because of it asks in its own transaction.
    pub(in crate::service) fn is_good(&self, db: &Db<'_>) -> Result<bool> {
        let account =
            db.account(&self.user)?.filter(|account| !account.deactivated && !account.standing.locked);
        Ok(account.is_some_and(|account| account.password.as_ref() == Some(&self.hash)))
    }

    /// Errors: 403 `M_FORBIDDEN`, as for a wrong password.
    pub(in crate::service) fn check(&self, db: &Db<'_>) -> Result<()> {
        if self.is_good(db)? { Ok(()) } else { Err(wrong_password()) }
    }
}

fn wrong_password() -> Error {
    Error::forbidden("Wrong user name or password")
}

// ----- one at a time -----

/// So many passwords are worked on at once, so that a crowd at the door costs one hash's memory.
const HASHED_AT_ONCE_MAX: usize = 1;
/// So many wait at most, and so many of one address.
const WAITING_MAX: usize = 64;
const WAITING_OF_ADDRESS_MAX: usize = 8;
/// No password waits longer than this.
const QUEUE_TIMEOUT: Duration = Duration::from_secs(20);
/// When somebody is told to come back who found the line too long.
const QUEUE_RETRY_AFTER_MS: Millis = 2000;

/// Who waits for their password to be worked on.
#[derive(Debug, Default)]
struct PasswordQueue {
    state: Mutex<PasswordQueueState>,
    moved: Condvar,
}

#[derive(Debug, Default)]
struct PasswordQueueState {
    at_work: usize,
    last: u64,
    /// Ticket and address, the first first.
    queue: Vec<(u64, IpAddr)>,
}

/// How many of a network and of an address wait; the network counts first, since who has one may have many addresses.
type QueuedCounts = (usize, usize);

impl PasswordQueueState {
    fn of(&self, address: IpAddr) -> usize {
        self.queue.iter().filter(|(_, of)| *of == address).count()
    }

    fn of_network(&self, address: IpAddr) -> usize {
        let of = network(address);
        self.queue.iter().filter(|(_, address)| network(*address) == of).count()
    }

    fn in_line(&self, address: IpAddr) -> QueuedCounts {
        (self.of_network(address), self.of(address))
    }

    /// Takes a ticket for this address. In a line that is full, of the network that has most in it the last of the
    /// address that has most makes place for one of a network that has fewer, or for an address of the same that has.
    /// None: no place.
    fn join(&mut self, address: IpAddr) -> Option<u64> {
        let (of_network, mine) = self.in_line(address);
        if mine >= WAITING_OF_ADDRESS_MAX {
            return None;
        }
        if self.queue.len() >= WAITING_MAX {
            let (most, whose) = self.queue.iter().map(|(_, of)| (self.in_line(*of), *of)).max()?;
            let fewer_of_one = (most.0 == of_network || most.0 == of_network + 1) && most.1 > mine + 1;
            if most.0 <= of_network + 1 && !fewer_of_one {
                return None;
            }
            let last = self.queue.iter().rposition(|(_, of)| *of == whose)?;
            self.queue.remove(last);
        }
        self.last += 1;
        self.queue.push((self.last, address));
        Some(self.last)
    }
}

/// The permission to work on one password; dropping it lets the next one in.
struct HashingPermit<'q>(&'q PasswordQueue);

impl Drop for HashingPermit<'_> {
    fn drop(&mut self) {
        lock(&self.0.state).at_work -= 1;
        self.0.moved.notify_all();
    }
}

impl PasswordQueue {
    /// Waits for a turn; with `from`, within the bounds of the line. Errors: 429 `M_LIMIT_EXCEEDED`.
    fn enter(&self, from: Option<IpAddr>) -> Result<HashingPermit<'_>> {
        let too_long = || come_back_in(QUEUE_RETRY_AFTER_MS, "Too many passwords are being checked");
        let mut state = lock(&self.state);
        let Some(address) = from.map(group) else {
            while state.at_work >= HASHED_AT_ONCE_MAX {
                state = wait(&self.moved, state);
            }
            state.at_work += 1;
            return Ok(HashingPermit(self));
        };
        let ticket = state.join(address).ok_or_else(too_long)?;
        // Who was made to give up their place is told at once.
        self.moved.notify_all();
        let deadline = Instant::now() + QUEUE_TIMEOUT;
        loop {
            let Some(at) = state.queue.iter().position(|(of, _)| *of == ticket) else {
                return Err(too_long());
            };
            if at == 0 && state.at_work < HASHED_AT_ONCE_MAX {
                state.queue.remove(0);
                state.at_work += 1;
                return Ok(HashingPermit(self));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                state.queue.remove(at);
                self.moved.notify_all();
                return Err(too_long());
            }
            state = wait_timeout(&self.moved, state, left);
        }
    }
}

// ----- failed tries -----

/// How many tries may fail in a row, and how long it takes until one more may.
#[derive(Debug, Clone, Copy)]
struct TryAllowance {
    most: f64,
    each_ms: f64,
}

/// Whose failed tries at an account are counted together.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum CountedBy {
    /// One address that the account was used from lately.
    Known(IpAddr),
    /// Any other address.
    Address(IpAddr),
    /// Whoever has the token of one of the account's devices, from wherever: who stole one gets no more tries by
    /// moving.
    Holder,
    /// The other addresses of a network: who has one may have many.
    Network(IpAddr),
    /// Every address but the known ones. Its rest is 21 600 guesses a day, made from many networks.
    Strangers,
}

/// What somebody who tries a password is to the account.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Familiarity {
    /// At an address from which one of its devices was seen.
    Known,
    /// At another, but with the access token of one of its devices.
    Holder,
    Stranger,
}

impl CountedBy {
    fn allowance(self) -> TryAllowance {
        match self {
            Self::Known(_) | Self::Holder | Self::Address(_) => TryAllowance { most: 8.0, each_ms: 30_000.0 },
            Self::Network(_) => TryAllowance { most: 16.0, each_ms: 10_000.0 },
            Self::Strangers => TryAllowance { most: 30.0, each_ms: 4000.0 },
        }
    }
}

/// What is left, as of a time.
#[derive(Debug, Clone, Copy)]
struct FailureCount {
    left: f64,
    at: Steady,
}

impl FailureCount {
    fn filled(self, allowed: TryAllowance, now: Steady) -> Self {
        let gained = (now - self.at).max(0) as f64 / allowed.each_ms;
        Self { left: (self.left + gained).min(allowed.most), at: now }
    }
}

/// Most counts that are kept.
const COUNTS_MAX: usize = 20_000;

/// Failed tries at accounts, whether there are such accounts or not.
#[derive(Debug, Default)]
struct FailedTries(Mutex<HashMap<(UserId, CountedBy), FailureCount>>);

/// A try that counts as failed until it is said to have succeeded.
struct CountedTry<'t> {
    tries: &'t FailedTries,
    user: &'t UserId,
    whose: Vec<CountedBy>,
}

impl FailedTries {
    /// Counts a try as failed, before it is made: of many at once none may slip through. Errors: 429
    /// `M_LIMIT_EXCEEDED`.
    fn begin<'t>(
        &'t self,
        user: &'t UserId,
        from: IpAddr,
        standing: Familiarity,
        now: Steady,
    ) -> Result<CountedTry<'t>> {
        let address = group(from);
        let whose = match standing {
            Familiarity::Known => vec![CountedBy::Known(address)],
            Familiarity::Holder => vec![CountedBy::Holder],
            Familiarity::Stranger => {
                vec![CountedBy::Address(address), CountedBy::Network(network(from)), CountedBy::Strangers]
            }
        };
        let mut counts = lock(&self.0);
        let mut wait: f64 = 0.0;
        for who in &whose {
            let allowed = who.allowance();
            if let Some(count) = counts.get(&(user.clone(), *who)) {
                wait = wait.max((1.0 - count.filled(allowed, now).left) * allowed.each_ms);
            }
        }
        if wait > 0.0 {
            return Err(come_back_in(wait.ceil() as Millis, "Too many wrong passwords for this account"));
        }
        make_room(&mut counts, now, whose.len());
        for who in &whose {
            let allowed = who.allowance();
            let fresh = FailureCount { left: allowed.most, at: now };
            let count = counts.entry((user.clone(), *who)).or_insert(fresh);
            *count = count.filled(allowed, now);
            count.left -= 1.0;
        }
        Ok(CountedTry { tries: self, user, whose })
    }
}

impl CountedTry<'_> {
    /// The password was right, or was not looked at: nothing failed.
    fn did_not_fail(self) {
        let mut counts = lock(&self.tries.0);
        for who in &self.whose {
            if let Some(count) = counts.get_mut(&(self.user.clone(), *who)) {
                count.left = (count.left + 1.0).min(who.allowance().most);
            }
        }
    }
}

/// Makes room for some more counts. Full ones are forgotten first, which changes nothing for anybody, and then those of
/// which most is left: an account that is being guessed at keeps its count, however many others are made up.
fn make_room(counts: &mut HashMap<(UserId, CountedBy), FailureCount>, now: Steady, more: usize) {
    if counts.len() + more <= COUNTS_MAX {
        return;
    }
    let share = |(_, who): &(UserId, CountedBy), count: &FailureCount| {
        count.filled(who.allowance(), now).left / who.allowance().most
    };
    counts.retain(|key, count| share(key, count) < 1.0);
    if counts.len() > COUNTS_MAX / 2 {
        let mut shares: Vec<f64> = counts.iter().map(|(key, count)| share(key, count)).collect();
        let half = COUNTS_MAX / 2;
        let (_, limit, _) = shares.select_nth_unstable_by(half, f64::total_cmp);
        let limit = *limit;
        let mut at_limit = half - shares.iter().filter(|share| **share < limit).count();
        counts.retain(|key, count| {
            let share = share(key, count);
            let among_equals = share == limit && at_limit > 0;
            at_limit -= usize::from(among_equals);
            share < limit || among_equals
        });
    }
}

// ----- what the homeserver does with them -----

impl Accounts<'_> {
    /// Checks a user's password for somebody at an address (none: on this machine, not limited), in the same time
    /// whether or not there is such an account. Errors: 403 `M_FORBIDDEN` if it is not theirs, or there is no such
    /// account, or it is deactivated; 401 `M_USER_LOCKED`; 429 `M_LIMIT_EXCEEDED` after too many failures, or if too many are being
    /// checked.
    pub fn check_password(
        &self,
        user: &UserId,
        password: &str,
        from: Option<IpAddr>,
    ) -> Result<PasswordProof> {
        self.check_password_of(user, password, from, false)
    }

    /// [`Self::check_password`] for somebody who may have shown an access token of this account (`holder`): no stranger
    /// to it.
    pub(in crate::service) fn check_password_of(
        &self,
        user: &UserId,
        password: &str,
        from: Option<IpAddr>,
        holder: bool,
    ) -> Result<PasswordProof> {
        let from = from.filter(|_| self.config.rate_limits);
        let (account, devices) = self.store.read(|db| Ok((db.account(user)?, db.devices(user)?)))?;
        let attempt = match from {
            Some(from) => {
                let seen_at = |ip: &str| ip.parse().is_ok_and(|ip| group(ip) == group(from));
                let known = devices.iter().any(|device| device.last_seen_ip.as_deref().is_some_and(seen_at));
                let standing = match (known, holder) {
                    (true, _) => Familiarity::Known,
                    (false, true) => Familiarity::Holder,
                    (false, false) => Familiarity::Stranger,
                };
                Some(self.passwords.tries.begin(user, from, standing, self.clock.steady())?)
            }
            None => None,
        };
        let stored = account.as_ref().and_then(|a| a.password.as_deref());
        let right = match self.passwords.queue.enter(from) {
            Ok(_permit) => {
                self.hasher()?.verify_password(password.as_bytes(), stored.unwrap_or(NOBODYS_HASH)).is_ok()
            }
            Err(full) => {
                if let Some(attempt) = attempt {
                    attempt.did_not_fail();
                }
                return Err(full);
            }
        };
        let account = account.filter(|account| right && !account.deactivated);
        let Some(Account { user_id, password: Some(hash), standing, .. }) = account else {
            return Err(wrong_password());
        };
        if let Some(attempt) = attempt {
            attempt.did_not_fail();
        }
        // Only who knows the password is told.
        if standing.locked {
            return Err(locked());
        }
        Ok(PasswordProof { user: user_id, hash })
    }

    /// The hash of a new password, for somebody at an address (none: on this machine). Errors: 400 `M_WEAK_PASSWORD`,
    /// 429 `M_LIMIT_EXCEEDED` if too many are being worked on.
    pub(in crate::service) fn hash_password(&self, password: &str, from: Option<IpAddr>) -> Result<String> {
        check_strength(password)?;
        let _permit = self.passwords.queue.enter(from.filter(|_| self.config.rate_limits))?;
        let salt: [u8; 16] = random::bytes();
        let hash = self.hasher()?.hash_password_with_salt(password.as_bytes(), &salt);
        Ok(hash.map_err(|e| Error::internal(e.to_string()))?.to_string())
    }

    fn hasher(&self) -> Result<Argon2<'static>> {
        let (memory_kib, passes) = if self.config.cheap_passwords {
            (Params::MIN_M_COST, 1)
        } else {
            (HASH_MEMORY_KIB, HASH_PASSES)
        };
        let params = Params::new(memory_kib, passes, 1, None);
        let params = params.map_err(|e| Error::internal(e.to_string()))?;
        Ok(Argon2::new(Algorithm::Argon2id, Version::V0x13, params))
    }
}

/// Errors: 400 `M_WEAK_PASSWORD` for what cannot be a password.
pub(in crate::service) fn check_strength(password: &str) -> Result<()> {
    match password.len() {
        1..=PASSWORD_BYTES_MAX => Ok(()),
        _ => Err(Error::new(ErrCode::WeakPassword, "A password has 1 to 512 bytes")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::Config;
    use crate::protocol::ServerName;

    const NOW: Steady = Steady::at(1_000_000);

    fn ip(text: &str) -> IpAddr {
        text.parse().unwrap()
    }

    fn alice() -> UserId {
        UserId::parse("@alice:example.org").unwrap()
    }

    /// How many tries this address has left at the account.
    fn left(tries: &FailedTries, from: &str, known: bool, now: Steady) -> usize {
        let standing = if known { Familiarity::Known } else { Familiarity::Stranger };
        (0..1000).take_while(|_| tries.begin(&alice(), ip(from), standing, now).is_ok()).count()
    }

    #[test]
    fn the_hash_that_nobody_has_costs_as_much_as_a_real_one() {
        let hs = crate::testing::secluded(Config::for_name(ServerName::parse("example.org").unwrap()));
        let real = hs.accounts().hash_password("x", None).unwrap();
        let cost = |hash: &str| hash.split('$').take(4).collect::<Vec<_>>().join("$");
        assert_eq!(cost(&real), cost(NOBODYS_HASH));
        assert!(hs.accounts().hasher().unwrap().verify_password(b"x", real.as_str()).is_ok());
        // Well-formed, so that the work is done before the answer is no.
        let refused = hs.accounts().hasher().unwrap().verify_password(b"x", NOBODYS_HASH).unwrap_err();
        assert!(matches!(refused, argon2::password_hash::Error::PasswordInvalid), "{refused:?}");
    }

    #[test]
    fn tries_are_counted_for_the_address_its_network_and_all_strangers_and_come_back() {
        let tries = FailedTries::default();
        assert_eq!(left(&tries, "192.0.2.1", false, NOW), 8);
        assert_eq!(left(&tries, "192.0.2.1", false, NOW), 0);
        // The rest of its network has what the first left of it.
        assert_eq!(left(&tries, "192.0.3.1", false, NOW), 8);
        assert_eq!(left(&tries, "192.0.4.1", false, NOW), 0);
        // All strangers together.
        let others: usize = (1..100).map(|n| left(&tries, &format!("{n}.2.3.4"), false, NOW)).sum();
        assert_eq!(others, 30 - 16);
        let refused = tries.begin(&alice(), ip("203.0.113.1"), Familiarity::Stranger, NOW).err().unwrap();
        assert_eq!((refused.status(), refused.errcode()), (429, ErrCode::LimitExceeded));
        assert_eq!(refused.field("retry_after_ms").unwrap(), 4000);
        assert!(tries.begin(&alice(), ip("203.0.113.1"), Familiarity::Stranger, NOW + 4000).is_ok());
        // Time that goes backwards gives nothing and takes nothing.
        assert!(tries.begin(&alice(), ip("203.0.113.1"), Familiarity::Stranger, Steady::at(0)).is_err());
        assert_eq!(left(&tries, "192.0.2.1", false, NOW + 3_600_000), 8);
    }

    #[test]
    fn no_stranger_takes_the_tries_of_an_address_that_the_account_was_used_from() {
        let tries = FailedTries::default();
        for n in 1..100 {
            left(&tries, &format!("{n}.2.3.4"), false, NOW);
        }
        assert_eq!(left(&tries, "192.0.2.1", true, NOW), 8);
        let other = UserId::parse("@bob:example.org").unwrap();
        assert!(tries.begin(&other, ip("1.2.3.4"), Familiarity::Stranger, NOW).is_ok(), "other accounts too");
        // Who has a token is held up by none of them either, and has no more tries for being in many places.
        let alice = alice();
        let held = (1..100)
            .filter(|n| tries.begin(&alice, ip(&format!("{n}.9.9.9")), Familiarity::Holder, NOW).is_ok());
        assert_eq!(held.count(), 8);
    }

    #[test]
    fn a_try_that_succeeded_was_none() {
        let (tries, alice) = (FailedTries::default(), alice());
        for _ in 0..100 {
            tries.begin(&alice, ip("192.0.2.1"), Familiarity::Stranger, NOW).unwrap().did_not_fail();
        }
        assert_eq!(left(&tries, "192.0.2.1", false, NOW), 8);
    }

    #[test]
    fn made_up_accounts_do_not_make_the_count_of_a_real_one_forgotten() {
        let tries = FailedTries::default();
        left(&tries, "192.0.2.1", false, NOW);
        for n in 0..3 * COUNTS_MAX {
            let user = UserId::parse(&format!("@user{n}:example.org")).unwrap();
            let from = IpAddr::V4((n as u32).into());
            tries.begin(&user, from, Familiarity::Stranger, NOW).unwrap();
        }
        assert!(lock(&tries.0).len() <= COUNTS_MAX);
        assert_eq!(left(&tries, "192.0.2.1", false, NOW), 0);
    }

    #[test]
    fn a_line_that_is_full_makes_place_for_whom_has_fewer_in_it() {
        let mut waiting = PasswordQueueState::default();
        let addresses: Vec<IpAddr> = (1..9).map(|n| ip(&format!("192.0.2.{n}"))).collect();
        for address in &addresses {
            for _ in 0..WAITING_OF_ADDRESS_MAX {
                assert!(waiting.join(*address).is_some());
            }
            assert!(waiting.join(*address).is_none(), "an address has its share and no more");
        }
        assert_eq!(waiting.queue.len(), WAITING_MAX);
        for n in 1..7 {
            assert!(waiting.join(ip(&format!("198.51.100.{n}"))).is_some(), "{n}");
            assert_eq!(waiting.queue.len(), WAITING_MAX);
        }
        let first = (1, addresses[0]);
        assert_eq!(waiting.queue[0], first, "who waits longest does not lose their place to a newcomer");
    }

    #[test]
    fn a_network_that_fills_the_line_with_many_addresses_makes_place_for_others() {
        let mut waiting = PasswordQueueState::default();
        let of_many = |n: usize| ip(&format!("2001:db8:0:{n:x}::"));
        for n in 0..WAITING_MAX {
            assert!(waiting.join(of_many(n)).is_some(), "{n}");
        }
        assert!(waiting.join(of_many(1000)).is_none(), "its addresses have a place each already");
        for n in 0..10 {
            let joined = waiting.join(ip(&format!("198.51.100.{n}"))).expect("a place");
            assert_eq!(waiting.queue.last(), Some(&(joined, ip(&format!("198.51.100.{n}")))));
            assert!(waiting.join(of_many(2000 + n)).is_none(), "nor does it take the place of another");
        }
        assert_eq!(waiting.of_network(ip("198.51.100.1")), 10);
        assert_eq!(waiting.queue.len(), WAITING_MAX);
        assert_eq!(waiting.queue[0], (1, of_many(0)), "the first of it do not lose theirs");
    }

    #[test]
    fn who_finds_the_line_too_long_is_told_to_come_back_and_the_others_get_their_permit() {
        let queue = PasswordQueue::default();
        let held = queue.enter(Some(ip("192.0.2.1"))).unwrap();
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..WAITING_OF_ADDRESS_MAX)
                .map(|_| scope.spawn(|| queue.enter(Some(ip("192.0.2.1"))).is_ok()))
                .collect();
            while lock(&queue.state).queue.len() < WAITING_OF_ADDRESS_MAX {
                std::thread::yield_now();
            }
            assert_eq!(queue.enter(Some(ip("192.0.2.1"))).err().unwrap().status(), 429);
            drop(held);
            assert!(waiting.into_iter().all(|thread| thread.join().unwrap()));
        });
        assert!(queue.enter(None).is_ok());
    }
}
