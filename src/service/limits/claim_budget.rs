//! How many one-time keys other servers may take of a device. Each is given out once, and whoever takes them all leaves the
//! device to its fallback key, with which conversations are less well protected. So each server has a share, and those
//! that share no room with the device's user a small one, of a common one: names have no end. Whoever has used theirs up
//! gets the fallback key; of devices that have none, a server that shares a room goes on being given what is not needed
//! for others' shares.

use std::sync::Mutex;

use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::locks::lock;
use crate::protocol::{ServerName, UserId};

/// So many at once, and one more after so long.
#[derive(Clone, Copy)]
struct ClaimAllowance {
    burst: i64,
    refill_ms: Millis,
}

/// A server in a room with the user: one key for each device there is what it needs, and those come one by one, or many
/// on the day on which they come into a large room.
const NEIGHBOUR: ClaimAllowance = ClaimAllowance { burst: 50, refill_ms: 60_000 };
/// Any other server: somebody there is about to invite the user, with a few devices.
const STRANGER: ClaimAllowance = ClaimAllowance { burst: 5, refill_ms: 15 * 60_000 };
/// All of those together.
const STRANGERS: ClaimAllowance = ClaimAllowance { burst: 20, refill_ms: 5 * 60_000 };
/// Shares that are remembered. Those that are full go first, which changes nothing for anybody.
const SHARES_MAX: usize = 20_000;

/// Who takes of whose device: a server, or (none) all strangers.
type ShareKey = (Option<ServerName>, UserId, String);

/// What is left, in the time that it takes to be filled.
#[derive(Default, Clone, Copy)]
struct Share {
    /// When it is full again.
    full_at: Steady,
}

/// The shares of all servers.
#[derive(Default)]
pub struct ClaimBudget(Mutex<BoundedMap<ShareKey, Share, SHARES_MAX>>);

impl ClaimBudget {
    /// Whether a server may take one more key of a device, which is counted then.
    pub(in crate::service) fn take(
        &self,
        server: &ServerName,
        (user, device): (&UserId, &str),
        is_neighbour: bool,
        now: Steady,
    ) -> bool {
        let key = |of: Option<&ServerName>| (of.cloned(), user.clone(), device.to_owned());
        let of_server = (key(Some(server)), if is_neighbour { NEIGHBOUR } else { STRANGER });
        let of_all = (!is_neighbour).then(|| (key(None), STRANGERS));
        let shares: Vec<(ShareKey, ClaimAllowance)> =
            [Some(of_server), of_all].into_iter().flatten().collect();
        let mut known = lock(&self.0);
        let after = |share: Option<&Share>, allowed: ClaimAllowance| {
            let full_at = share.map_or(now, |share| share.full_at.max(now)) + allowed.refill_ms;
            (full_at - now <= allowed.burst * allowed.refill_ms).then_some(Share { full_at })
        };
        let taken: Vec<Share> =
            shares.iter().filter_map(|(key, allowed)| after(known.get(key), *allowed)).collect();
        if taken.len() < shares.len() {
            return false;
        }
        for ((key, _), share) in shares.into_iter().zip(taken) {
            known.insert(
                key,
                share,
                |share| if share.full_at <= now { Worth::Nothing } else { Worth::Little },
            );
        }
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServerName {
        ServerName::parse(name).expect("a name")
    }

    #[test]
    fn each_server_has_a_share_of_each_device_and_strangers_a_common_one() {
        let (budget, bob) = (ClaimBudget::default(), UserId::parse("@bob:us.example").expect("a user id"));
        let taken = |server: &str, device: &str, is_neighbour: bool, now: Millis| {
            let may = || budget.take(&name(server), (&bob, device), is_neighbour, Steady::at(now));
            (0..100).filter(|_| may()).count()
        };
        assert_eq!(taken("friend.example", "D", true, 0), 50);
        assert_eq!(taken("other.example", "D", true, 0), 50);
        let strangers: Vec<usize> = (0..6).map(|n| taken(&format!("s{n}.example"), "D", false, 0)).collect();
        assert_eq!(strangers, [5, 5, 5, 5, 0, 0]);
        assert_eq!(taken("s5.example", "E", false, 0), 5, "of another device");
        // By and by there are more.
        assert_eq!(taken("friend.example", "D", true, 60_000), 1);
        assert_eq!(taken("s5.example", "D", false, 5 * 60_000), 1);
        assert_eq!(taken("friend.example", "D", true, 24 * 3_600_000), 50);
    }

    #[test]
    fn ever_new_names_make_the_budget_forget_and_not_grow() {
        let (budget, bob) = (ClaimBudget::default(), UserId::parse("@bob:us.example").expect("a user id"));
        for n in 0..30_000 {
            budget.take(&name("a.example"), (&bob, &n.to_string()), true, Steady::at(0));
        }
        assert!(lock(&budget.0).len() <= SHARES_MAX);
    }
}
