//! Which servers did not answer lately. Whoever waits for us waits for such a server once, and not again with each question:
//! it is left alone for a while, or asked after others. Nothing that has to be delivered is held back for it
//! (`service/outgoing/` has its own pauses), and who speaks to us is not silent.
//!
//! Silence stops what it speaks of. Where nobody could be connected to, that is everything; whoever was connected to and did
//! not answer is left alone with questions of that kind and no others, since a server that takes long over a large space has
//! the keys of its users at hand. How little time one asker had says nothing about a server: it counts where there was
//! enough.

use std::collections::HashSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::Error;
use crate::federation::{CallError, CallResult};
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::service::Homeserver;

/// Pauses after questions that were not answered.
const PAUSES: Backoff = Backoff::doubling(15_000, 10 * 60_000);
/// Servers of which this is remembered.
const SERVERS_MAX: usize = 2000;
/// Who did not answer within this time is silent; who had less time may have been slow, and is asked after others for so
/// long; who had hardly any may be as far away as servers are.
pub(in crate::service) const SILENT_AFTER: Duration = Duration::from_secs(5);
const SLOW_AFTER: Duration = Duration::from_secs(1);
const SLOW_FOR_MS: Millis = 60_000;
/// A call that ends so shortly before its time was ended by that.
const TIMER_SLACK: Duration = Duration::from_millis(100);
/// Time for somebody who is thought to be silent and is asked all the same; and how long after they failed last somebody who
/// could do without them asks.
pub(in crate::service) const PROBE_TIMEOUT: Duration = Duration::from_secs(3);
const PROBE_PAUSE_MS: Millis = 30_000;

/// What a server is asked for: who is silent about one of these may answer the others.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::service) enum AskedFor {
    /// The keys of its users' devices, and one-time keys.
    Keys,
    /// The keys that it signs with, for which there are pauses of their own (`service/keys/attempts.rs`).
    SigningKeys,
    /// A whole list of a user's devices.
    DeviceList,
    Profile,
    /// A room's summary, and the rooms of a space.
    Space,
    /// A page of its room directory, or what one of its aliases stands for.
    Directory,
    /// An event near to a time.
    Event,
    /// A template, with which a handshake begins.
    Template,
}

/// How many kinds of questions there are.
const KINDS: usize = AskedFor::Template as usize + 1;

/// The servers that did not answer, and until when they are not asked again.
#[derive(Default)]
pub struct SilentServers {
    servers: Mutex<BoundedMap<ServerName, Silence, SERVERS_MAX>>,
    /// Those that are being asked all the same.
    probed: Mutex<HashSet<ServerName>>,
    /// Whether there are any, so that a request from a peer usually costs no lock.
    any: AtomicBool,
}

/// For how long somebody is left alone, and after how many failures.
#[derive(Default)]
struct Pause {
    until: Steady,
    failures: u32,
}

impl Pause {
    fn fail(&mut self, now: Steady) {
        // Several asked at once: it is one failure.
        if self.until <= now {
            self.failures = self.failures.saturating_add(1);
            self.until = now + PAUSES.pause_ms(self.failures);
        }
    }
}

#[derive(Default)]
struct Silence {
    /// Since nobody could be connected to.
    unconnected: Pause,
    /// Since questions of a kind were not answered.
    unanswered: [Pause; KINDS],
    slow_until: Steady,
    failed_at: Steady,
}

impl Silence {
    fn about(&self, what: AskedFor, now: Steady) -> bool {
        self.unconnected.until.max(self.unanswered[what as usize].until) > now
    }

    fn about_anything(&self, now: Steady) -> bool {
        let unanswered = self.unanswered.iter().map(|pause| pause.until).max().unwrap_or_default();
        self.unconnected.until.max(self.slow_until).max(unanswered) > now
    }

    fn worth(&self, now: Steady) -> Worth {
        if self.about_anything(now) { Worth::Little } else { Worth::Nothing }
    }
}

/// What a call that failed says of the server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum SilenceHeard {
    /// Nobody could be connected to.
    Unconnected,
    /// There was time enough for an answer.
    Unanswered,
    /// There was some time.
    Slow,
}

impl SilenceHeard {
    /// `enough`: in so much time it would have answered.
    fn of(error: &CallError, (within, enough): (Duration, Duration), took_all: bool) -> Option<Self> {
        let cut_short = took_all && within < enough;
        match error {
            error if !error.is_unreachable() => None,
            _ if cut_short => (within >= SLOW_AFTER).then_some(Self::Slow),
            error if error.is_unconnected() => Some(Self::Unconnected),
            _ => Some(Self::Unanswered),
        }
    }
}

impl SilentServers {
    /// Whether a server is to be left alone with this.
    pub(in crate::service) fn is_silent(&self, server: &ServerName, what: AskedFor, now: Steady) -> bool {
        self.any.load(Ordering::Relaxed)
            && lock(&self.servers).get(server).is_some_and(|silence| silence.about(what, now))
    }

    /// Whether a server may take its time, or all the time that there is.
    fn may_be_silent(&self, server: &ServerName, now: Steady) -> bool {
        self.any.load(Ordering::Relaxed)
            && lock(&self.servers).get(server).is_some_and(|silence| silence.about_anything(now))
    }

    /// Leave to ask a server all the same that is silent, for [`PROBE_TIMEOUT`]: one at a time. `insists`: whoever wants to
    /// know can do nothing without it.
    pub(in crate::service) fn probe(
        &self,
        server: &ServerName,
        insists: bool,
        now: Steady,
    ) -> Option<SilenceProbe<'_>> {
        let failed_at = lock(&self.servers).get(server).map(|silence| silence.failed_at);
        let due = insists || failed_at.is_none_or(|at| now >= at + PROBE_PAUSE_MS);
        let begins = due && lock(&self.probed).insert(server.clone());
        begins.then(|| SilenceProbe { probed: &self.probed, server: server.clone() })
    }

    fn failed(&self, server: &ServerName, what: AskedFor, heard: SilenceHeard, now: Steady) {
        let mut servers = lock(&self.servers);
        let silence = servers.get_or_default(server.clone(), |silence| silence.worth(now));
        silence.failed_at = now;
        match heard {
            SilenceHeard::Unconnected => silence.unconnected.fail(now),
            SilenceHeard::Unanswered => silence.unanswered[what as usize].fail(now),
            SilenceHeard::Slow => silence.slow_until = now + SLOW_FOR_MS,
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// The server answers this.
    fn answered(&self, server: &ServerName, what: AskedFor) {
        if self.any.load(Ordering::Relaxed) {
            let mut servers = lock(&self.servers);
            let Some(silence) = servers.get_mut(server) else { return };
            silence.unconnected = Pause::default();
            silence.unanswered[what as usize] = Pause::default();
            silence.slow_until = Steady::default();
            // How often it was silent about other things is not forgotten for it.
            if silence.unanswered.iter().all(|pause| pause.failures == 0) {
                servers.remove(server);
            }
            self.any.store(!servers.is_empty(), Ordering::Relaxed);
        }
    }

    /// The server speaks to us, or takes what we send.
    pub(crate) fn spoke(&self, server: &ServerName) {
        if self.any.load(Ordering::Relaxed) {
            let mut servers = lock(&self.servers);
            servers.remove(server);
            self.any.store(!servers.is_empty(), Ordering::Relaxed);
        }
    }
}

/// Somebody asks a silent server; over when dropped.
pub(in crate::service) struct SilenceProbe<'a> {
    probed: &'a Mutex<HashSet<ServerName>>,
    server: ServerName,
}

impl Drop for SilenceProbe<'_> {
    fn drop(&mut self) {
        lock(self.probed).remove(&self.server);
    }
}

/// How likely a server is to answer, in falling order.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(in crate::service) enum Likelihood {
    /// It took what we sent last, or has spoken to us.
    Proven,
    Unknown,
    /// It did not answer lately, or not soon, or takes no transactions.
    Doubtful,
}

impl Homeserver {
    /// How likely a server is to answer: a hint for who can choose whom to ask first.
    pub(in crate::service) fn likelihood(&self, server: &ServerName) -> Likelihood {
        if self.silent_servers.may_be_silent(server, self.clock.steady()) || self.outgoing.is_pausing(server)
        {
            Likelihood::Doubtful
        } else if self.outgoing.is_proven(server) {
            Likelihood::Proven
        } else {
            Likelihood::Unknown
        }
    }

    /// Asks a server something, and remembers whether it answered.
    pub(in crate::service) fn ask_peer<A>(
        &self,
        server: &ServerName,
        what: AskedFor,
        within: Duration,
        ask: impl FnOnce(Duration) -> CallResult<A>,
    ) -> CallResult<A> {
        // Of who takes nothing from us either, less is enough.
        let enough = if self.outgoing.is_pausing(server) { PROBE_TIMEOUT } else { SILENT_AFTER };
        let began = Instant::now();
        let answer = ask(within);
        let (took_all, now) = (took_all_of(within, began), self.clock.steady());
        let error = answer.as_ref().err().filter(|error| error.is_unreachable());
        match error.map(|error| SilenceHeard::of(error, (within, enough), took_all)) {
            None => self.silent_servers.answered(server, what),
            Some(Some(heard)) => self.silent_servers.failed(server, what, heard, now),
            Some(None) => {}
        }
        answer
    }

    /// How long a server is waited for by somebody who wants to know of it and of no other: not for long if it is silent
    /// about that.
    pub(in crate::service) fn patience_with(
        &self,
        server: &ServerName,
        what: AskedFor,
        most: Duration,
    ) -> Duration {
        match self.silent_servers.is_silent(server, what, self.clock.steady()) {
            true => most.min(PROBE_TIMEOUT),
            false => most,
        }
    }

    /// A server has spoken to us: whoever waits for that hears of it.
    pub(crate) fn peer_spoke(&self, server: &ServerName) {
        self.outgoing.peer_spoke(server);
        self.scheduler.peer_spoke(self, server);
        self.silent_servers.spoke(server);
        self.fetch_limits.peer_spoke(server);
        self.key_ring.attempts.peer_spoke(server);
    }
}

/// Whether a call that began then ended because its time was over.
pub(in crate::service) fn took_all_of(within: Duration, began: Instant) -> bool {
    began.elapsed() + TIMER_SLACK >= within
}

/// What is told of a server that was not asked, or did not answer. 504.
pub(in crate::service) fn unanswered(server: &ServerName, why: &str) -> Error {
    Error::bad_gateway(format!("{server} {why}")).with_status(504)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn server() -> ServerName {
        ServerName::parse("b.org").unwrap()
    }

    #[test]
    fn who_had_little_time_is_asked_after_others_and_who_had_enough_is_left_alone_until_they_speak() {
        let (silent, server) = (SilentServers::default(), server());
        let state = |ms| {
            let now = Steady::at(ms);
            (silent.is_silent(&server, AskedFor::Space, now), silent.may_be_silent(&server, now))
        };
        let fail = |heard, ms| silent.failed(&server, AskedFor::Space, heard, Steady::at(ms));
        assert_eq!(state(0), (false, false));
        fail(SilenceHeard::Slow, 0);
        assert_eq!(state(1), (false, true));
        assert_eq!(state(SLOW_FOR_MS), (false, false));
        fail(SilenceHeard::Unanswered, SLOW_FOR_MS);
        fail(SilenceHeard::Unanswered, SLOW_FOR_MS + 1);
        assert_eq!(state(SLOW_FOR_MS + 14_999), (true, true));
        assert_eq!(state(SLOW_FOR_MS + 15_000), (false, false), "one failure, however many hear of it");
        fail(SilenceHeard::Unanswered, SLOW_FOR_MS + 15_000);
        assert_eq!(state(SLOW_FOR_MS + 44_999), (true, true));
        silent.spoke(&server);
        assert_eq!(state(SLOW_FOR_MS + 44_999), (false, false));
    }

    #[test]
    fn silence_about_one_thing_is_none_about_another_unless_nobody_could_be_connected_to() {
        let (silent, server) = (SilentServers::default(), server());
        let now = Steady::at(1);
        let about = |what| silent.is_silent(&server, what, now);
        silent.failed(&server, AskedFor::Space, SilenceHeard::Unanswered, now);
        assert!(about(AskedFor::Space) && !about(AskedFor::Keys) && silent.may_be_silent(&server, now));
        silent.answered(&server, AskedFor::Keys);
        assert!(about(AskedFor::Space), "that it has keys says nothing of its spaces");
        silent.failed(&server, AskedFor::Space, SilenceHeard::Unconnected, now);
        assert!(about(AskedFor::Keys) && about(AskedFor::Profile));
        silent.answered(&server, AskedFor::Space);
        assert!(!about(AskedFor::Keys) && !silent.may_be_silent(&server, now));
    }

    #[test]
    fn who_is_silent_is_asked_all_the_same_by_one_at_a_time_and_not_soon_by_who_can_do_without() {
        let (silent, server) = (SilentServers::default(), server());
        for _ in 0..3 {
            silent.failed(&server, AskedFor::Space, SilenceHeard::Unanswered, Steady::at(1));
        }
        let asks = |insists, ms| silent.probe(&server, insists, Steady::at(ms));
        assert!(asks(false, PROBE_PAUSE_MS).is_none());
        let probe = asks(true, 2).expect("whoever insists");
        assert!(asks(true, 2).is_none() && asks(false, PROBE_PAUSE_MS + 1).is_none());
        drop(probe);
        assert!(asks(false, PROBE_PAUSE_MS + 1).is_some());
    }

    #[test]
    fn of_a_server_counts_what_failed_by_itself_or_had_enough_time() {
        let enough = SILENT_AFTER;
        let heard = |error: &CallError, within, took_all| SilenceHeard::of(error, (within, enough), took_all);
        let late = CallError::Unreachable("no answer in time".into());
        let refused = CallError::Unconnected("refused".into());
        let some = Duration::from_secs(2);
        for error in [&late, &refused] {
            assert_eq!(heard(error, Duration::from_millis(1), true), None);
            assert_eq!(heard(error, some, true), Some(SilenceHeard::Slow));
        }
        assert_eq!(heard(&late, enough, true), Some(SilenceHeard::Unanswered));
        assert_eq!(heard(&late, some, false), Some(SilenceHeard::Unanswered));
        assert_eq!(heard(&refused, enough, true), Some(SilenceHeard::Unconnected));
        assert_eq!(heard(&refused, some, false), Some(SilenceHeard::Unconnected));
        assert_eq!(heard(&CallError::bad("nonsense"), enough, true), None);
    }
}
