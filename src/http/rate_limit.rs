//! How often somebody may ask: a token bucket for each class of requests and each user (or address, when nobody is
//! logged in).

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::address::group;
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::UserId;
use crate::store::accounts::OwnRate;

/// Which rate limit counts a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Rate {
    /// Reading and everything cheap.
    Read,
    /// Sending events and changing things.
    Write,
    /// Joins, knocks, invites, new rooms: what reaches other servers. And reports, which reach people.
    Join,
    /// Upgrades of rooms: one may be thousands of events in one transaction, while everybody's writing waits.
    Upgrade,
    /// Log in, and everything that checks a password.
    Login,
    /// New accounts.
    Register,
    /// Restarting, cancelling and sending delayed events, which a call does for each of its members every few seconds.
    DelayedEvents,
    /// Other servers' requests.
    Federation,
}

/// A user whose requests are counted.
pub(super) struct Counted {
    pub(super) user: UserId,
    /// How often they may ask, if that is not as for everybody.
    pub(super) own_rate: Option<OwnRate>,
    /// Whether they may ask as often as they like.
    pub(super) is_unlimited: bool,
}

/// A bucket that holds `burst` requests and is filled with `per_second`.
#[derive(Clone, Copy)]
struct RateAllowance {
    per_second: f64,
    burst: f64,
}

/// What a class may do. Generous for people, tight for who guesses passwords or makes accounts.
const fn allowance(rate: Rate) -> RateAllowance {
    let (per_second, burst) = match rate {
        Rate::Read => (50.0, 500.0),
        Rate::Write => (10.0, 100.0),
        Rate::Join => (1.0, 20.0),
        Rate::Upgrade => (0.1, 10.0),
        Rate::Login => (0.2, 10.0),
        Rate::Register => (0.05, 10.0),
        Rate::DelayedEvents => (50.0, 500.0),
        Rate::Federation => (100.0, 1000.0),
    };
    RateAllowance { per_second, burst }
}

/// What a class may do for a user who has a rate of their own: that is for what they send and change, as in Synapse. None:
/// whatever they like, except for guessing passwords.
fn own_allowance(rate: Rate, own: OwnRate) -> Option<RateAllowance> {
    match (own.per_second, rate) {
        (_, Rate::Login | Rate::Register) => Some(allowance(rate)),
        (0, _) => None,
        // A bucket that holds nothing would let nothing through, however long somebody waits.
        (_, Rate::Write) => {
            Some(RateAllowance { per_second: f64::from(own.per_second), burst: f64::from(own.burst.max(1)) })
        }
        _ => Some(allowance(rate)),
    }
}

/// Most buckets that are kept. Full ones are forgotten first, which changes nothing for anybody.
const BUCKETS_MAX: usize = 50_000;

#[derive(Clone, PartialEq, Eq, Hash)]
enum RateKey {
    User(UserId),
    Address(IpAddr),
}

/// What is left in a bucket, as of a time.
struct Bucket {
    left: f64,
    at: Instant,
    allowed: RateAllowance,
}

/// All buckets. Bounded in memory.
pub(super) struct RateLimiter {
    buckets: Mutex<HashMap<(Rate, RateKey), Bucket>>,
}

impl RateLimiter {
    pub(super) fn new() -> Self {
        Self { buckets: Mutex::default() }
    }

    /// Counts one request. Errors: 429 `M_LIMIT_EXCEEDED` with `retry_after_ms`.
    pub(super) fn count(&self, rate: Rate, user: Option<&Counted>, ip: IpAddr, now: Instant) -> Result<()> {
        if user.is_some_and(|counted| counted.is_unlimited) {
            return Ok(());
        }
        let who = match user {
            Some(counted) => RateKey::User(counted.user.clone()),
            None => RateKey::Address(group(ip)),
        };
        let allowed = match user.and_then(|counted| counted.own_rate) {
            Some(own) => own_allowance(rate, own),
            None => Some(allowance(rate)),
        };
        let Some(allowed) = allowed else { return Ok(()) };
        let mut buckets = lock(&self.buckets);
        if buckets.len() >= BUCKETS_MAX {
            make_room(&mut buckets, now);
        }
        let bucket = buckets.entry((rate, who)).or_insert(Bucket { left: allowed.burst, at: now, allowed });
        bucket.allowed = allowed;
        bucket.left = filled(bucket, now);
        bucket.at = now;
        if bucket.left >= 1.0 {
            bucket.left -= 1.0;
            return Ok(());
        }
        let wait = Duration::from_secs_f64((1.0 - bucket.left) / allowed.per_second);
        let wait_ms = u64::try_from(wait.as_millis()).unwrap_or(u64::MAX).max(1);
        Err(Error::new(ErrCode::LimitExceeded, "Too many requests").with_field("retry_after_ms", wait_ms))
    }
}

fn filled(bucket: &Bucket, now: Instant) -> f64 {
    let gained = now.saturating_duration_since(bucket.at).as_secs_f64() * bucket.allowed.per_second;
    (bucket.left + gained).min(bucket.allowed.burst)
}

fn make_room(buckets: &mut HashMap<(Rate, RateKey), Bucket>, now: Instant) {
    buckets.retain(|_, bucket| filled(bucket, now) < bucket.allowed.burst);
    if buckets.len() >= BUCKETS_MAX {
        // So many empty buckets at once are an attack from many addresses: start again rather than grow.
        buckets.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 1));

    #[test]
    fn an_empty_bucket_says_when_there_is_a_drop_again() {
        let limiter = RateLimiter::new();
        let start = Instant::now();
        for _ in 0..10 {
            limiter.count(Rate::Login, None, IP, start).unwrap();
        }
        let error = limiter.count(Rate::Login, None, IP, start).unwrap_err();
        assert_eq!(error.status(), 429);
        assert_eq!(error.field("retry_after_ms").unwrap(), 5000);
        limiter.count(Rate::Login, None, IP, start + Duration::from_secs(5)).unwrap();
        limiter.count(Rate::Login, None, IP, start + Duration::from_secs(5)).unwrap_err();
    }

    #[test]
    fn users_addresses_and_classes_have_buckets_of_their_own() {
        let limiter = RateLimiter::new();
        let now = Instant::now();
        let alice = UserId::parse("@alice:example.org").unwrap();
        while limiter.count(Rate::Login, None, IP, now).is_ok() {}
        limiter
            .count(Rate::Login, Some(&Counted { user: alice, own_rate: None, is_unlimited: false }), IP, now)
            .unwrap();
        limiter.count(Rate::Read, None, IP, now).unwrap();
        limiter.count(Rate::Login, None, "192.0.2.2".parse().unwrap(), now).unwrap();
    }

    #[test]
    fn who_has_a_rate_of_their_own_is_counted_by_that_from_when_on_they_have_it() {
        let (limiter, start) = (RateLimiter::new(), Instant::now());
        let user = UserId::parse("@bot:example.org").unwrap();
        let as_bot = |per_second, burst| Counted {
            user: user.clone(),
            own_rate: Some(OwnRate { per_second, burst }),
            is_unlimited: false,
        };
        let sent = |who: &Counted, at: Instant| {
            (0..1000).take_while(|_| limiter.count(Rate::Write, Some(who), IP, at).is_ok()).count()
        };
        let usual = Counted { user: user.clone(), own_rate: None, is_unlimited: false };
        assert_eq!(sent(&usual, start), 100);
        assert_eq!(sent(&as_bot(0, 0), start), 1000, "as often as they like");
        let later = start + Duration::from_secs(10);
        assert_eq!(sent(&as_bot(2, 5), later), 5);
        assert_eq!(sent(&as_bot(2, 5), later + Duration::from_secs(1)), 2);
        assert_eq!(sent(&as_bot(2, 0), later + Duration::from_secs(2)), 1, "never none at all");
        assert_eq!(sent(&as_bot(u32::MAX, u32::MAX), later + Duration::from_secs(3)), 1000);
        assert_eq!(sent(&usual, later + Duration::from_secs(60)), 100);
        // What reaches others is counted as everybody's, unless nothing is; guesses always are.
        let counted = |rate: Rate, who: &Counted| {
            (0..100).take_while(|_| limiter.count(rate, Some(who), IP, start).is_ok()).count()
        };
        assert_eq!((counted(Rate::Join, &as_bot(1000, 1000)), counted(Rate::Join, &as_bot(0, 0))), (20, 100));
        assert_eq!((counted(Rate::Login, &as_bot(1000, 1000)), counted(Rate::Login, &as_bot(0, 0))), (10, 0));
    }

    #[test]
    fn the_buckets_stay_bounded_however_many_addresses_ask() {
        let limiter = RateLimiter::new();
        let now = Instant::now();
        for n in 0..120_000_u32 {
            let _ = limiter.count(Rate::Read, None, IpAddr::V4(n.into()), now);
        }
        assert!(lock(&limiter.buckets).len() <= BUCKETS_MAX);
    }
}
