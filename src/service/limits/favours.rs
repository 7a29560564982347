//! Requests to other servers that we make as a favour: for who asks us without a name, for servers, for our users out of
//! curiosity. Whoever names a server that never answers makes us wait as long as we have patience, so favours have places of
//! their own (`places`): a few for who has no name and fewer for each address, more for our users. Handshakes, delivery, and
//! the keys of servers that speak to us are no favours, and never wait behind one.

use std::fmt;
use std::net::IpAddr;
use std::panic::{self, AssertUnwindSafe};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::address::group;
use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait_until};
use crate::protocol::{ServerName, UserId};
use crate::service::Homeserver;
use crate::service::limits::places::{Place, Places};

/// Favours under way at once for who has no name: of all, and of one address.
const MOST_UNNAMED: usize = 16;
const MOST_OF_ADDRESS: usize = 4;
/// The same for other servers.
const MOST_OF_PEERS: usize = 16;
const MOST_OF_PEER: usize = 4;
/// The same for our users, whose clients look for many profiles at a time.
const MOST_OF_USERS: usize = 48;
const MOST_OF_USER: usize = 12;
/// How long who asks waits for a place, and for the answer from elsewhere.
const WAIT_UNNAMED: Duration = Duration::from_secs(3);
const WAIT_USER: Duration = Duration::from_secs(10);
const ANSWER_UNNAMED: Duration = Duration::from_secs(10);
const ANSWER_USER: Duration = Duration::from_secs(20);
/// When who found no place should come again.
const COME_AGAIN_MS: i64 = 5_000;
/// How long a stop waits for favours that are done in the background.
const GRACE: Duration = Duration::from_millis(500);

/// On whose behalf something is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Who {
    /// Somebody without a name at this address.
    Address(IpAddr),
    /// Another server.
    Peer(ServerName),
    /// One of our users.
    User(UserId),
}

/// Who asks us, and whether they are still there to hear the answer.
#[derive(Clone)]
pub struct Asker {
    who: Who,
    gone: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.who.fmt(f)
    }
}

impl Asker {
    /// Who asks. Addresses that one host usually has together (a /64 of IPv6) are one.
    pub fn new(who: Who) -> Self {
        let who = match who {
            Who::Address(ip) => Who::Address(group(ip)),
            named => named,
        };
        Self { who, gone: None }
    }

    /// The same, with a way to find out that they have hung up.
    #[must_use]
    pub fn until(self, gone: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { gone: Some(Arc::new(gone)), ..self }
    }

    pub(in crate::service) fn who(&self) -> &Who {
        &self.who
    }

    /// Whether nobody waits for the answer any more.
    pub(in crate::service) fn is_gone(&self) -> bool {
        self.gone.as_ref().is_some_and(|gone| gone())
    }
}

/// The places of all favours.
pub struct Favours {
    unnamed: Places<Who>,
    later: Places<Who>,
    peers: Places<Who>,
    users: Places<Who>,
    background: Arc<Background>,
}

/// Favours whose asker has had the answer already.
#[derive(Default)]
struct Background {
    state: Mutex<AtWork>,
    changed: Condvar,
}

#[derive(Default)]
struct AtWork {
    jobs: usize,
    stopping: bool,
}

impl Default for Favours {
    fn default() -> Self {
        Self {
            unnamed: Places::new(MOST_UNNAMED, MOST_OF_ADDRESS),
            later: Places::new(MOST_UNNAMED, MOST_OF_ADDRESS),
            peers: Places::new(MOST_OF_PEERS, MOST_OF_PEER),
            users: Places::new(MOST_OF_USERS, MOST_OF_USER),
            background: Arc::default(),
        }
    }
}

/// Permission to ask elsewhere on somebody's behalf; over when dropped.
pub(in crate::service) struct Favour {
    _place: Place<Who>,
    /// Time for the answer from elsewhere.
    pub(in crate::service) within: Duration,
}

impl Favours {
    /// A place for what `asker` wants, waited for in line. Errors: 429 `M_LIMIT_EXCEEDED`.
    pub(in crate::service) fn ask(&self, asker: &Asker) -> Result<Favour> {
        let (places, wait, within) = match asker.who {
            Who::Address(_) => (&self.unnamed, WAIT_UNNAMED, ANSWER_UNNAMED),
            Who::Peer(_) => (&self.peers, WAIT_UNNAMED, ANSWER_UNNAMED),
            Who::User(_) => (&self.users, WAIT_USER, ANSWER_USER),
        };
        let place = places.take(&asker.who, Instant::now() + wait, || !asker.is_gone());
        Ok(Favour { _place: place.ok_or_else(no_place)?, within })
    }

    /// Does something in the background, on a thread of its own, in a place apart: who asked has the answer already. The
    /// job is told how long it may wait for each answer from elsewhere. Errors: 429 `M_LIMIT_EXCEEDED`; 500 if there is no
    /// thread.
    pub(in crate::service) fn later(
        &self,
        hs: &Arc<Homeserver>,
        asker: &Asker,
        job: impl FnOnce(&Homeserver, Duration) + Send + 'static,
    ) -> Result<()> {
        let place = self.later.take(&asker.who, Instant::now(), || true).ok_or_else(no_place)?;
        let working = Working::new(&self.background);
        let hs = hs.clone();
        std::thread::Builder::new().name("favour".to_owned()).spawn(move || {
            if panic::catch_unwind(AssertUnwindSafe(|| job(&hs, ANSWER_UNNAMED))).is_err() {
                log::error!("a favour in the background panicked");
            }
            // In this order: who waits for the end of the work wants the homeserver back.
            drop((place, hs));
            drop(working);
        })?;
        Ok(())
    }

    /// Waits a moment for what is done in the background, whose requests are cut off by now.
    pub(in crate::service) fn stop(&self) {
        lock(&self.background.state).stopping = true;
        self.background.changed.notify_all();
        self.wait(GRACE, |state| state.jobs == 0);
    }

    /// A pause of a job in the background. False: the server stops.
    pub(in crate::service) fn rest(&self, how_long: Duration) -> bool {
        !self.wait(how_long, |state| state.stopping)
    }

    /// How many jobs are at work in the background.
    pub fn at_work(&self) -> usize {
        lock(&self.background.state).jobs
    }

    /// Waits until something holds, at most so long; whether it does.
    fn wait(&self, how_long: Duration, holds: impl Fn(&AtWork) -> bool) -> bool {
        let until = Instant::now() + how_long;
        let mut state = lock(&self.background.state);
        while !holds(&state) {
            let Ok(woken) = wait_until(&self.background.changed, state, until) else { return false };
            state = woken;
        }
        true
    }
}

fn no_place() -> Error {
    Error::new(ErrCode::LimitExceeded, "This server asks enough of others for you already")
        .with_field("retry_after_ms", COME_AGAIN_MS)
}

/// One that is counted as at work.
struct Working(Arc<Background>);

impl Working {
    fn new(background: &Arc<Background>) -> Self {
        lock(&background.state).jobs += 1;
        Self(background.clone())
    }
}

impl Drop for Working {
    fn drop(&mut self) {
        lock(&self.0.state).jobs -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_name_gets_a_few_favours_at_a_time_and_takes_none_from_users_and_servers() {
        let favours = Favours::default();
        let at = |n: u8| Asker::new(Who::Address([192, 0, 2, n].into())).until(|| true);
        let mut held: Vec<_> = (0..9).filter_map(|_| favours.ask(&at(1)).ok()).collect();
        assert_eq!(held.len(), MOST_OF_ADDRESS);
        held.extend((2..99).filter_map(|n| favours.ask(&at(n)).ok()));
        assert_eq!(held.len(), MOST_UNNAMED);
        let refusal = favours.ask(&at(100)).err().expect("no place is left");
        assert_eq!((refusal.status(), refusal.errcode()), (429, ErrCode::LimitExceeded));
        assert!(refusal.field("retry_after_ms").is_some());
        let named = |who: Who| favours.ask(&Asker::new(who).until(|| true));
        assert!(named(Who::User(UserId::parse("@alice:us.example").expect("a user id"))).is_ok());
        assert!(named(Who::Peer(ServerName::parse("peer.example").expect("a name"))).is_ok());
    }

    #[test]
    fn one_host_has_one_share_however_many_addresses_of_its_network_it_takes() {
        let who = |ip: &str| Asker::new(Who::Address(ip.parse().expect("an address"))).who().clone();
        assert_eq!(who("2001:db8::1"), who("2001:db8::2:3"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
        assert_eq!(who("::ffff:192.0.2.1"), who("192.0.2.1"));
    }
}
