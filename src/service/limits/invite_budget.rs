//! How many invites one server may send one local user within an hour, to whatever rooms: what waits for an answer is
//! bounded elsewhere (`membership/invite_place.rs`), but an invite may take the place of another, or be taken back,
//! and each is work and may ring at a phone.
//!
//! It is remembered in memory alone: a restart begins a new hour, and gives nobody more than one hour's share more. Names are
//! cheap, and each has a share: so many names as are remembered at a time can be had, and what each of them may have waiting
//! at once is bounded all the same.

use std::sync::Mutex;

use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::limits::fair_share::ServerStanding;
use crate::protocol::{ServerName, UserId};

const HOUR_MS: Millis = 3_600_000;
/// How many invites a server that shares no room with the user may send them in an hour, and one that does.
const OF_STRANGER_MAX: u32 = 40;
const OF_KNOWN_MAX: u32 = 200;
/// Of how many it is remembered.
const COUNTED_MAX: usize = 8192;

/// The invites of an hour.
#[derive(Default)]
struct InvitesCount {
    since: Steady,
    count: u32,
}

/// Who invited whom how often.
#[derive(Default)]
pub struct InviteBudget(Mutex<BoundedMap<(UserId, ServerName), InvitesCount, COUNTED_MAX>>);

impl InviteBudget {
    /// Counts one more invite of this server. Errors: 429 `M_LIMIT_EXCEEDED` with `retry_after_ms`.
    pub(in crate::service) fn count(
        &self,
        invitee: &UserId,
        server: &ServerName,
        standing: ServerStanding,
        now: Steady,
    ) -> Result<()> {
        let most = if standing == ServerStanding::Stranger { OF_STRANGER_MAX } else { OF_KNOWN_MAX };
        let worth = |counted: &InvitesCount| {
            if counted.since + HOUR_MS > now { Worth::Little } else { Worth::Nothing }
        };
        let mut all = lock(&self.0);
        let counted = all.get_or_default((invitee.clone(), server.clone()), worth);
        if worth(counted) == Worth::Nothing {
            *counted = InvitesCount { since: now, count: 0 };
        }
        if counted.count >= most {
            let message = format!("Too many of your invites came for {invitee} within the hour");
            let rest = counted.since + HOUR_MS - now;
            return Err(Error::new(ErrCode::LimitExceeded, message).with_field("retry_after_ms", rest));
        }
        counted.count += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_server_has_its_share_of_a_users_hour_and_no_other_pays_for_it() {
        let budget = InviteBudget::default();
        let [bob, carol] = ["@bob:a.org", "@carol:a.org"].map(|id| UserId::parse(id).unwrap());
        let [evil, good] = ["evil.org", "good.org"].map(|name| ServerName::parse(name).unwrap());
        let count =
            |user, server, standing, now| budget.count(user, server, standing, Steady::at(now)).is_ok();
        let taken = (0..500).filter(|n| count(&bob, &evil, ServerStanding::Stranger, 1_000 + n)).count();
        assert_eq!(taken, OF_STRANGER_MAX as usize);
        assert!(count(&bob, &good, ServerStanding::Stranger, 2_000));
        assert!(count(&carol, &evil, ServerStanding::Stranger, 2_000));
        assert!(count(&bob, &evil, ServerStanding::Known, 2_000), "who is known has more");
        let refused = budget.count(&bob, &evil, ServerStanding::Stranger, Steady::at(2_000)).unwrap_err();
        assert_eq!((refused.status(), refused.errcode()), (429, ErrCode::LimitExceeded));
        assert!(count(&bob, &evil, ServerStanding::Stranger, 1_000 + HOUR_MS), "the next hour");
    }
}
