//! How often other servers are asked for files: each a bounded number of times in a while, whoever wants them, since who
//! writes addresses into messages has all who read them ask. Of what one server may be asked, nobody has more than a half.

use std::sync::Mutex;
use std::time::{Duration, Instant};

use crate::bounded::{BoundedMap, Worth};
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::service::limits::request_permits::AskerId;

/// So many times a server is asked at once, by all: a room with pictures of all its members is opened.
const OF_SERVER_MAX: u32 = 1200;
/// And by one asker.
const OF_ASKER_MAX: u32 = OF_SERVER_MAX / 2;
/// In so long a time all of them are to be had again, a few at a time.
const WINDOW: Duration = Duration::from_secs(300);
/// How many servers are remembered, and how many of their askers.
const REMEMBERED_MAX: usize = 8192;

/// What was asked of servers lately.
#[derive(Default)]
pub(super) struct FetchRate(Mutex<BoundedMap<(ServerName, Option<AskerId>), Asked, REMEMBERED_MAX>>);

/// So many times, less what time has given back.
#[derive(Clone, Copy)]
struct Asked {
    times: f64,
    at: Instant,
}

impl Asked {
    fn left(self, most: u32, now: Instant) -> f64 {
        let given = now.saturating_duration_since(self.at).as_secs_f64() / WINDOW.as_secs_f64();
        (self.times - given * f64::from(most)).max(0.0)
    }
}

impl FetchRate {
    /// Counts one more request of a server. Errors: 429 `M_LIMIT_EXCEEDED` if there were too many.
    pub(super) fn count(&self, server: &ServerName, asker: &AskerId, now: Instant) -> Result<()> {
        let mut asked = lock(&self.0);
        let kinds = [(None, OF_SERVER_MAX), (Some(asker.clone()), OF_ASKER_MAX)];
        let mut counted = Vec::with_capacity(kinds.len());
        for (who, most) in kinds {
            let key = (server.clone(), who);
            let times = asked.get(&key).map_or(0.0, |asked| asked.left(most, now));
            if times + 1.0 > f64::from(most) {
                let seconds = (times + 1.0 - f64::from(most)) / f64::from(most) * WINDOW.as_secs_f64();
                let error = format!("{server} is asked for too many files");
                let wait = (seconds * 1000.0).ceil() as u64;
                return Err(Error::new(ErrCode::LimitExceeded, error).with_field("retry_after_ms", wait));
            }
            counted.push((key, Asked { times: times + 1.0, at: now }));
        }
        for (key, one) in counted {
            asked.insert(key, one, |asked| match asked.left(OF_SERVER_MAX, now) {
                left if left < 1.0 => Worth::Nothing,
                left if left < f64::from(OF_ASKER_MAX) / 2.0 => Worth::Little,
                _ => Worth::More,
            });
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::UserId;

    #[test]
    fn a_server_is_asked_so_often_in_a_while_and_nobody_takes_more_than_half_of_it() {
        let (rate, now) = (FetchRate::default(), Instant::now());
        let server = |name: &str| ServerName::parse(name).expect("a name");
        let user = |n: usize| AskerId::User(UserId::parse(&format!("@u{n}:us.example")).expect("an id"));
        let count = |name: &str, n: usize, at: Instant| {
            (0..5000).take_while(|_| rate.count(&server(name), &user(n), at).is_ok()).count()
        };
        assert_eq!(count("a.example", 0, now), 600);
        let refused = rate.count(&server("a.example"), &user(0), now).expect_err("enough");
        assert_eq!((refused.status(), refused.errcode()), (429, ErrCode::LimitExceeded));
        let wait = refused.field("retry_after_ms").and_then(|ms| ms.as_u64()).expect("a time");
        assert!((1..=1000).contains(&wait), "{wait}");
        assert_eq!(count("a.example", 1, now), 600, "the other half");
        assert_eq!(count("a.example", 2, now), 0, "of all together");
        assert_eq!(count("b.example", 0, now), 600, "another server");
        let later = now + Duration::from_millis(wait);
        assert_eq!(count("a.example", 0, later), 1);
        assert_eq!(count("a.example", 0, now + 2 * WINDOW), 600);
    }
}
