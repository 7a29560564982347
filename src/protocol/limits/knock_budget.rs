//! How many knocks a room takes, and whose. A knock is a state event of the room for ever, and so is its withdrawal:
//! unlike a message, anybody may make one who is not even let in. The specification sets no bound.
//!
//! Counted are the knocks that were taken within the last hour (a knock that is withdrawn and made again is a second
//! one) by their knocker, their server and in all, and those that wait for an answer; servers have shares of both,
//! see [`super::fair_share`]. Whoever was refused waits for a day. Pure: what is counted, and where, is the caller's.

use super::fair_share::{ServerStanding, has_place};
use crate::protocol::UserId;
use crate::protocol::ids::server_of;

/// For how long a knock counts, in milliseconds.
pub const HOUR_MS: i64 = 3_600_000;
/// How long somebody waits whose knock was refused, in milliseconds.
const REFUSED_KNOCK_PAUSE_MS: i64 = 24 * HOUR_MS;

/// What the settings allow. 0 stands for no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct KnockLimits {
    /// Knocks upon one room within an hour.
    pub per_hour: usize,
    /// Knocks that wait for the answer of one room.
    pub waiting: usize,
}

impl KnockLimits {
    /// Whether anything is limited.
    pub fn are_any(self) -> bool {
        self != Self::default()
    }

    /// How many of the knocks upon one room within an hour one knocker may make.
    pub fn of_one_knocker(self) -> usize {
        (self.per_hour / 20).max(1)
    }

    /// How many knocks one user may make within an hour, upon whatever rooms.
    pub fn of_one_user(self) -> usize {
        (self.per_hour / 5).max(1)
    }
}

/// What there is when somebody wants to knock upon a room.
#[derive(Debug, Clone, Copy)]
pub struct KnockFacts<'a> {
    /// The time, in milliseconds.
    pub now: i64,
    /// Who wants to knock.
    pub knocker: &'a UserId,
    /// What their server is to the room.
    pub standing: ServerStanding,
    /// The knocks of the last hour upon this room, oldest first: when, and whose.
    pub lately: &'a [(i64, &'a str)],
    /// Who else waits for an answer.
    pub waiting: &'a [&'a str],
    /// When the knocker was refused, if that is what they are to the room.
    pub refused_at: Option<i64>,
}

/// Not now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Wait {
    /// When it may be tried again, in milliseconds from now.
    pub ms: i64,
    /// Why, as a sentence.
    pub why: &'static str,
}

/// Whether one more knock may be made.
pub fn check_budget(limits: KnockLimits, facts: &KnockFacts<'_>) -> Result<(), Wait> {
    let KnockFacts { now, knocker, standing, lately, waiting, refused_at } = *facts;
    let server = knocker.server_name();
    if limits.per_hour > 0 {
        // Whoever refused them may have a clock that is ahead.
        if let Some(left) =
            refused_at.map(|at| at.min(now) + REFUSED_KNOCK_PAUSE_MS - now).filter(|left| *left > 0)
        {
            return Err(Wait { ms: left, why: "Your knock was refused" });
        }
        let own = lately.iter().filter(|(_, user)| *user == knocker.as_str());
        if let Some(ms) = over(own.map(|(at, _)| *at), limits.of_one_knocker(), now) {
            return Err(Wait { ms, why: "You knocked too often" });
        }
        let servers = lately.iter().map(|(_, user)| server_of(user));
        if !has_place(limits.per_hour, servers, server, standing) {
            let of_server = lately.iter().find(|(_, user)| server_of(user) == server);
            let oldest = of_server.or(lately.first()).map_or(now, |(at, _)| *at);
            let ms = (oldest + HOUR_MS - now).max(1);
            return Err(Wait { ms, why: "There were too many knocks upon this room lately" });
        }
    }
    if limits.waiting > 0
        && !has_place(limits.waiting, waiting.iter().map(|user| server_of(user)), server, standing)
    {
        return Err(Wait { ms: HOUR_MS, why: "Too many knocks upon this room wait for an answer" });
    }
    Ok(())
}

/// For how long to wait if one may do something only so often within an hour. `times`: when it was done, oldest first.
pub fn over(times: impl Iterator<Item = i64>, most: usize, now: i64) -> Option<i64> {
    let times: Vec<i64> = times.collect();
    let first_to_go = times.get(times.len().checked_sub(most)?)?;
    Some((first_to_go + HOUR_MS - now).max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMITS: KnockLimits = KnockLimits { per_hour: 100, waiting: 100 };
    const NOW: i64 = 100 * HOUR_MS;

    fn asked<'a>(
        knocker: &'a UserId,
        lately: &'a [(i64, &'a str)],
        waiting: &'a [&'a str],
    ) -> KnockFacts<'a> {
        KnockFacts {
            now: NOW,
            knocker,
            standing: ServerStanding::Stranger,
            lately,
            waiting,
            refused_at: None,
        }
    }

    fn user(id: &str) -> UserId {
        UserId::parse(id).expect("a user id")
    }

    #[test]
    fn one_knocker_may_come_back_a_few_times_and_waits_for_the_first_to_be_forgotten() {
        let bob = user("@bob:b.org");
        let lately: Vec<(i64, &str)> = (0..5).map(|n| (NOW - 50_000 + n, "@bob:b.org")).collect();
        assert_eq!(check_budget(LIMITS, &asked(&bob, &lately[..4], &[])), Ok(()));
        let wait = check_budget(LIMITS, &asked(&bob, &lately, &[])).expect_err("too often");
        assert_eq!(wait.ms, HOUR_MS - 50_000);
        assert_eq!(
            check_budget(LIMITS, &asked(&user("@carol:b.org"), &lately, &[])),
            Ok(()),
            "not their neighbour"
        );
        assert_eq!(check_budget(KnockLimits { per_hour: 0, ..LIMITS }, &asked(&bob, &lately, &[])), Ok(()));
    }

    #[test]
    fn one_server_keeps_no_other_out_by_the_hour_nor_by_what_waits() {
        let names: Vec<String> = (0..99).map(|n| format!("@u{n}:evil.org")).collect();
        let lately: Vec<(i64, &str)> = names.iter().map(|name| (NOW - 1000, name.as_str())).collect();
        let waiting: Vec<&str> = names.iter().map(String::as_str).collect();
        let (evil, honest) = (user("@new:evil.org"), user("@bob:b.org"));
        for (knocker, may) in [(&evil, false), (&honest, true)] {
            assert_eq!(check_budget(LIMITS, &asked(knocker, &lately, &[])).is_ok(), may);
            assert_eq!(check_budget(LIMITS, &asked(knocker, &[], &waiting)).is_ok(), may);
        }
        let wait = check_budget(LIMITS, &asked(&evil, &lately, &[])).expect_err("too many");
        assert_eq!(wait.ms, HOUR_MS - 1000);
        assert!(check_budget(LIMITS, &asked(&evil, &[], &waiting[..14])).is_ok());
        assert!(check_budget(LIMITS, &asked(&evil, &[], &waiting[..15])).is_err());
        assert!(check_budget(KnockLimits { waiting: 0, ..LIMITS }, &asked(&evil, &[], &waiting)).is_ok());
    }

    #[test]
    fn who_was_refused_waits_for_a_day_whatever_the_clock_of_who_refused_them() {
        let bob = user("@bob:b.org");
        let refused =
            |at: i64| check_budget(LIMITS, &KnockFacts { refused_at: Some(at), ..asked(&bob, &[], &[]) });
        assert_eq!(refused(NOW - HOUR_MS).expect_err("soon after").ms, 23 * HOUR_MS);
        assert_eq!(refused(NOW + 500 * HOUR_MS).expect_err("ahead").ms, REFUSED_KNOCK_PAUSE_MS);
        assert_eq!(refused(NOW - REFUSED_KNOCK_PAUSE_MS), Ok(()));
    }
}
