//! Which servers did not answer lately, whatever it was that they were asked. Whoever waits for us waits for such a server
//! once, and not again with each question: it is left alone for a while, or asked after others. Nothing that has to be
//! delivered is held back for it (`service/outgoing/` has its own pauses), and who speaks to us is not silent.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::error::Error;
use crate::federation::CallResult;
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::service::Homeserver;

/// Pauses after questions that were not answered.
const PAUSES: Backoff = Backoff::doubling(15_000, 10 * 60_000);
/// Servers of which this is remembered.
const SERVERS_MAX: usize = 2000;
/// Who did not answer within this time is silent; who had less time may have been slow, and is asked after others for so
/// long.
pub(in crate::service) const SILENT_AFTER: Duration = Duration::from_secs(5);
const SLOW_FOR_MS: Millis = 60_000;
/// A call that ends so shortly before its time was ended by that.
const TIMER_SLACK: Duration = Duration::from_millis(100);
/// Time for somebody who is thought to be silent and is asked all the same.
const PROBE_TIMEOUT: Duration = Duration::from_secs(3);

/// The servers that did not answer, and until when they are not asked again.
#[derive(Default)]
pub struct SilentServers {
    servers: Mutex<BoundedMap<ServerName, Silence, SERVERS_MAX>>,
    /// Whether there are any, so that a request from a peer usually costs no lock.
    any: AtomicBool,
}

#[derive(Default)]
struct Silence {
    until: Steady,
    failures: u32,
    slow_until: Steady,
}

impl Silence {
    fn worth(&self, now: Steady) -> Worth {
        if self.until.max(self.slow_until) > now { Worth::Little } else { Worth::Nothing }
    }
}

impl SilentServers {
    /// Whether a server is to be left alone.
    pub(in crate::service) fn is_silent(&self, server: &ServerName, now: Steady) -> bool {
        self.any.load(Ordering::Relaxed)
            && lock(&self.servers).get(server).is_some_and(|silence| silence.until > now)
    }

    /// Whether a server may take its time, or all the time that there is.
    fn may_be_silent(&self, server: &ServerName, now: Steady) -> bool {
        self.any.load(Ordering::Relaxed)
            && lock(&self.servers).get(server).is_some_and(|s| s.until.max(s.slow_until) > now)
    }

    /// The server was not to be reached.
    pub(in crate::service) fn failed(&self, server: &ServerName, now: Steady) {
        let mut servers = lock(&self.servers);
        let silence = servers.get_or_default(server.clone(), |silence| silence.worth(now));
        // Several asked at once: it is one failure.
        if silence.until <= now {
            silence.failures = silence.failures.saturating_add(1);
            silence.until = now + PAUSES.pause_ms(silence.failures);
        }
        self.any.store(true, Ordering::Relaxed);
    }

    /// The server had little time, and did not answer in that.
    fn was_slow(&self, server: &ServerName, now: Steady) {
        let mut servers = lock(&self.servers);
        let silence = servers.get_or_default(server.clone(), |silence| silence.worth(now));
        silence.slow_until = now + SLOW_FOR_MS;
        self.any.store(true, Ordering::Relaxed);
    }

    /// The server answers, or speaks to us.
    pub(crate) fn answered(&self, server: &ServerName) {
        if self.any.load(Ordering::Relaxed) {
            let mut servers = lock(&self.servers);
            servers.remove(server);
            self.any.store(!servers.is_empty(), Ordering::Relaxed);
        }
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
        within: Duration,
        ask: impl FnOnce(Duration) -> CallResult<A>,
    ) -> CallResult<A> {
        let began = Instant::now();
        let answer = ask(within);
        let now = self.clock.steady();
        match &answer {
            Err(e) if e.is_unreachable() && within < SILENT_AFTER && took_all_of(within, began) => {
                self.silent_servers.was_slow(server, now);
            }
            Err(e) if e.is_unreachable() => self.silent_servers.failed(server, now),
            _ => self.silent_servers.answered(server),
        }
        answer
    }

    /// How long a server is waited for by somebody who wants to know of it and of no other: not for long if it is silent.
    pub(in crate::service) fn patience_with(&self, server: &ServerName, most: Duration) -> Duration {
        match self.silent_servers.is_silent(server, self.clock.steady()) {
            true => most.min(PROBE_TIMEOUT),
            false => most,
        }
    }

    /// A server has spoken to us: whoever waits for that hears of it.
    pub(crate) fn peer_spoke(&self, server: &ServerName) {
        self.outgoing.peer_spoke(server);
        self.scheduler.peer_spoke(self, server);
        self.silent_servers.answered(server);
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

    #[test]
    fn who_had_little_time_is_asked_after_others_and_who_had_enough_is_left_alone_until_they_speak() {
        let (silent, server) = (SilentServers::default(), ServerName::parse("b.org").unwrap());
        let state = |ms| {
            let now = Steady::at(ms);
            (silent.is_silent(&server, now), silent.may_be_silent(&server, now))
        };
        assert_eq!(state(0), (false, false));
        silent.was_slow(&server, Steady::at(0));
        assert_eq!(state(1), (false, true));
        assert_eq!(state(SLOW_FOR_MS), (false, false));
        silent.failed(&server, Steady::at(SLOW_FOR_MS));
        silent.failed(&server, Steady::at(SLOW_FOR_MS + 1));
        assert_eq!(state(SLOW_FOR_MS + 14_999), (true, true));
        assert_eq!(state(SLOW_FOR_MS + 15_000), (false, false), "one failure, however many hear of it");
        silent.failed(&server, Steady::at(SLOW_FOR_MS + 15_000));
        assert_eq!(state(SLOW_FOR_MS + 44_999), (true, true));
        silent.answered(&server);
        assert_eq!(state(SLOW_FOR_MS + 44_999), (false, false));
    }
}
