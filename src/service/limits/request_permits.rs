//! Permits for requests to other servers that we make for others: for who asks us without a name, for servers, for our
//! users out of curiosity. Whoever names a server that never answers makes us wait as long as we have patience, so such
//! requests have slots of their own (`fair_slots.rs`): a few for who has no name and fewer for each address, more for
//! local users. Handshakes, delivery, and the keys of servers that speak to us need no permit, and never wait behind
//! one.

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
use crate::service::limits::fair_slots::{FairSlot, FairSlots};

/// Requests under way at once for who has no name: of all, and of one address.
const UNNAMED_MAX: usize = 16;
const UNNAMED_PER_ADDRESS_MAX: usize = 4;
/// Requests under way at once for other servers: of all, and of one.
const PEERS_MAX: usize = 16;
const PEERS_PER_SERVER_MAX: usize = 4;
/// Requests under way at once for local users, whose clients look for many profiles at a time: of all, and of one.
const USERS_MAX: usize = 48;
const USERS_PER_USER_MAX: usize = 12;
/// Servers that are asked at once for keys, which our users cannot encrypt without: for all, and for one.
const KEYS_MAX: usize = 64;
const KEYS_PER_USER_MAX: usize = 16;
/// How long who asks waits for a slot, and for the answer from elsewhere.
const UNNAMED_SLOT_TIMEOUT: Duration = Duration::from_secs(3);
const USER_SLOT_TIMEOUT: Duration = Duration::from_secs(10);
const UNNAMED_ANSWER_TIMEOUT: Duration = Duration::from_secs(10);
const USER_ANSWER_TIMEOUT: Duration = Duration::from_secs(20);
/// When who found no slot should come again.
const RETRY_AFTER_MS: i64 = 5_000;
/// How long a stop waits for the jobs in the background.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);

/// On whose behalf something is done.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum AskerId {
    /// Somebody without a name at this address.
    Address(IpAddr),
    /// Another server.
    Peer(ServerName),
    /// A local user.
    User(UserId),
}

/// Who asks us, and whether they are still there to hear the answer.
#[derive(Clone)]
pub struct Asker {
    who: AskerId,
    gone: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
}

impl fmt::Debug for Asker {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.who.fmt(f)
    }
}

impl Asker {
    /// Who asks. Addresses that one host usually has together (a /64 of IPv6) are one.
    pub fn new(who: AskerId) -> Self {
        let who = match who {
            AskerId::Address(ip) => AskerId::Address(group(ip)),
            named => named,
        };
        Self { who, gone: None }
    }

    /// Who asks, with a way to find out that they have hung up.
    #[must_use]
    pub fn until(self, gone: impl Fn() -> bool + Send + Sync + 'static) -> Self {
        Self { gone: Some(Arc::new(gone)), ..self }
    }

    pub(in crate::service) fn who(&self) -> &AskerId {
        &self.who
    }

    /// Whether nobody waits for the answer any more.
    pub(in crate::service) fn is_gone(&self) -> bool {
        self.gone.as_ref().is_some_and(|gone| gone())
    }
}

/// The slots of all requests that are made for others.
pub struct RequestPermits {
    unnamed: FairSlots<AskerId>,
    later: FairSlots<AskerId>,
    peers: FairSlots<AskerId>,
    users: FairSlots<AskerId>,
    keys: FairSlots<AskerId>,
    background: Arc<BackgroundJobs>,
}

/// Requests whose asker has had the answer already.
#[derive(Default)]
struct BackgroundJobs {
    state: Mutex<JobCount>,
    changed: Condvar,
}

#[derive(Default)]
struct JobCount {
    jobs: usize,
    stopping: bool,
}

impl Default for RequestPermits {
    fn default() -> Self {
        Self {
            unnamed: FairSlots::new(UNNAMED_MAX, UNNAMED_PER_ADDRESS_MAX),
            later: FairSlots::new(UNNAMED_MAX, UNNAMED_PER_ADDRESS_MAX),
            peers: FairSlots::new(PEERS_MAX, PEERS_PER_SERVER_MAX),
            users: FairSlots::new(USERS_MAX, USERS_PER_USER_MAX),
            keys: FairSlots::new(KEYS_MAX, KEYS_PER_USER_MAX),
            background: Arc::default(),
        }
    }
}

/// Permission to ask elsewhere on somebody's behalf; over when dropped.
pub(in crate::service) struct RequestPermit {
    _slot: FairSlot<AskerId>,
    /// Time for the answer from elsewhere.
    pub(in crate::service) within: Duration,
}

impl RequestPermits {
    /// A permit for what `asker` wants, waited for in line. Errors: 429 `M_LIMIT_EXCEEDED`.
    pub(in crate::service) fn ask(&self, asker: &Asker) -> Result<RequestPermit> {
        self.ask_until(asker, None)
    }

    /// [`RequestPermits::ask`], waited for until then at most.
    pub(in crate::service) fn ask_until(
        &self,
        asker: &Asker,
        until: Option<Instant>,
    ) -> Result<RequestPermit> {
        let (slots, wait, within) = match asker.who {
            AskerId::Address(_) => (&self.unnamed, UNNAMED_SLOT_TIMEOUT, UNNAMED_ANSWER_TIMEOUT),
            AskerId::Peer(_) => (&self.peers, UNNAMED_SLOT_TIMEOUT, UNNAMED_ANSWER_TIMEOUT),
            AskerId::User(_) => (&self.users, USER_SLOT_TIMEOUT, USER_ANSWER_TIMEOUT),
        };
        let longest = Instant::now() + wait;
        let until = until.map_or(longest, |until| until.min(longest));
        let slot = slots.take(&asker.who, until, || !asker.is_gone());
        Ok(RequestPermit { _slot: slot.ok_or_else(no_permit)?, within })
    }

    /// A slot for asking one server for keys of its users, waited for in line until then; none if there is none by then.
    pub(in crate::service) fn ask_for_keys(
        &self,
        asker: &Asker,
        until: Instant,
    ) -> Option<FairSlot<AskerId>> {
        self.keys.take(&asker.who, until, || !asker.is_gone())
    }

    /// Does something in the background, on a thread of its own, in a slot apart: who asked has the answer already.
    /// The job is told how long it may wait for each answer from elsewhere. Errors: 429 `M_LIMIT_EXCEEDED`; 500 if
    /// there is no thread.
    pub(in crate::service) fn later(
        &self,
        hs: &Arc<Homeserver>,
        asker: &Asker,
        job: impl FnOnce(&Homeserver, Duration) + Send + 'static,
    ) -> Result<()> {
        let slot = self.later.take(&asker.who, Instant::now(), || true).ok_or_else(no_permit)?;
        let running = RunningJob::new(&self.background);
        let hs = hs.clone();
        std::thread::Builder::new().name("request".to_owned()).spawn(move || {
            if panic::catch_unwind(AssertUnwindSafe(|| job(&hs, UNNAMED_ANSWER_TIMEOUT))).is_err() {
                log::error!("a request in the background panicked");
            }
            // In this order: who waits for the end of the work wants the homeserver back.
            drop((slot, hs));
            drop(running);
        })?;
        Ok(())
    }

    /// Waits a moment for what is done in the background, whose requests are cut off by now.
    pub(in crate::service) fn stop(&self) {
        lock(&self.background.state).stopping = true;
        self.background.changed.notify_all();
        self.wait(STOP_TIMEOUT, |state| state.jobs == 0);
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
    fn wait(&self, how_long: Duration, holds: impl Fn(&JobCount) -> bool) -> bool {
        let until = Instant::now() + how_long;
        let mut state = lock(&self.background.state);
        while !holds(&state) {
            let Ok(woken) = wait_until(&self.background.changed, state, until) else { return false };
            state = woken;
        }
        true
    }
}

fn no_permit() -> Error {
    Error::new(ErrCode::LimitExceeded, "This server asks enough of others for you already")
        .with_field("retry_after_ms", RETRY_AFTER_MS)
}

/// One that is counted as at work.
struct RunningJob(Arc<BackgroundJobs>);

impl RunningJob {
    fn new(background: &Arc<BackgroundJobs>) -> Self {
        lock(&background.state).jobs += 1;
        Self(background.clone())
    }
}

impl Drop for RunningJob {
    fn drop(&mut self) {
        lock(&self.0.state).jobs -= 1;
        self.0.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_has_no_name_gets_a_few_requests_at_a_time_and_takes_none_from_users_and_servers() {
        let permits = RequestPermits::default();
        let at = |n: u8| Asker::new(AskerId::Address([192, 0, 2, n].into())).until(|| true);
        let mut held: Vec<_> = (0..9).filter_map(|_| permits.ask(&at(1)).ok()).collect();
        assert_eq!(held.len(), UNNAMED_PER_ADDRESS_MAX);
        held.extend((2..99).filter_map(|n| permits.ask(&at(n)).ok()));
        assert_eq!(held.len(), UNNAMED_MAX);
        let refusal = permits.ask(&at(100)).err().expect("no slot is left");
        assert_eq!((refusal.status(), refusal.errcode()), (429, ErrCode::LimitExceeded));
        assert!(refusal.field("retry_after_ms").is_some());
        let named = |who: AskerId| permits.ask(&Asker::new(who).until(|| true));
        assert!(named(AskerId::User(UserId::parse("@alice:us.example").expect("a user id"))).is_ok());
        assert!(named(AskerId::Peer(ServerName::parse("peer.example").expect("a name"))).is_ok());
    }

    #[test]
    fn one_host_has_one_share_however_many_addresses_of_its_network_it_takes() {
        let who = |ip: &str| Asker::new(AskerId::Address(ip.parse().expect("an address"))).who().clone();
        assert_eq!(who("2001:db8::1"), who("2001:db8::2:3"));
        assert_ne!(who("2001:db8::1"), who("2001:db8:0:1::1"));
        assert_eq!(who("::ffff:192.0.2.1"), who("192.0.2.1"));
    }
}
