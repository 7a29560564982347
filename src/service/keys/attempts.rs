//! Which servers are being asked for their keys, and which are not to be asked before when. One request to a server is
//! under way at a time, whoever waits for it; one that does not answer, or whose answers do not help, is asked ever
//! more seldom.
//!
//! Anybody can name servers without end, and make them slow. So strangers are asked in slots apart, by who wants them
//! asked: none keeps the keys of our rooms' servers from being fetched, or those that others want.

use std::sync::{Condvar, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use crate::backoff::Backoff;
use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Clock, Millis, Steady};
use crate::locks::{lock, wait_until};
use crate::protocol::ServerName;
use crate::service::limits::fair_slots::{FairSlot, FairSlots};
use crate::service::limits::request_permits::{Asker, AskerId};

/// Requests for keys that may be under way: of servers that are in rooms with us, and for events that local users need.
const ATTEMPTS_MAX: usize = 64;
/// Those of strangers who speak to us, and those for events that strangers signed, with the share of each address, and
/// of each server that sends such events: anybody can name servers, and make them slow.
const REQUEST_ATTEMPTS_MAX: usize = 24;
const REQUEST_ATTEMPTS_PER_ADDRESS_MAX: usize = 8;
const RECEIVED_ATTEMPTS_MAX: usize = 24;
const RECEIVED_ATTEMPTS_PER_SERVER_MAX: usize = 8;
/// Those that we make as a notary, and the share of each address.
const NOTARY_ATTEMPTS_MAX: usize = 8;
pub(in crate::service) const NOTARY_ATTEMPTS_PER_ADDRESS_MAX: usize = 3;
/// Time for the answer of a stranger while others wait for the slot.
const CROWDED_TIMEOUT: Duration = Duration::from_secs(5);
/// Pauses between requests to a server that do not help.
const ATTEMPT_BACKOFF: Backoff = Backoff::doubling(5_000, 3_600_000);
/// Who was given less time to answer is not silent for that.
const SILENCE_TIMEOUT_MIN: Duration = Duration::from_secs(5);
/// So long after the last time a server is not asked once more.
const ONCE_MORE_PAUSE_MS: Millis = 60_000;
/// The longest pause when the server itself is speaking to us right now.
const SPEAKER_PAUSE_MAX_MS: Millis = 15_000;
/// So long who was just asked is left alone by those who find signatures wrong that were made in its name.
pub(in crate::service) const DOUBT_PAUSE_MS: Millis = 5 * 60_000;
/// After so many useless answers in a row the pause grows no more: 40 seconds.
const USELESS_COUNTED_MAX: u32 = 4;
/// Servers whose pauses are remembered.
const PAUSES_MAX: usize = 8192;

/// Why keys are wanted, which says how patient to be, and whose slot it takes.
#[derive(Debug, Clone, Copy)]
pub(in crate::service) enum KeyPurpose<'a> {
    /// A request that the server has just made, as whoever made it says.
    Request(&'a Asker),
    /// Events that this server sent us, of whatever kind: in a transaction, a handshake, an answer.
    Received(&'a ServerName),
    /// Events that a local user wants to know: of a room that they join, the answer to a handshake that they began.
    Events,
    /// A question to us as a notary.
    Notary(&'a Asker),
}

/// A server that is to be asked for its keys, and why.
#[derive(Debug, Clone, Copy)]
pub(in crate::service) struct KeyQuestion<'a> {
    pub(in crate::service) server: &'a ServerName,
    /// Whether it is in a room with us.
    pub(in crate::service) neighbour: bool,
    /// Its keys are known, and signatures in its name are wrong by them. Anybody can make some.
    pub(in crate::service) doubted: bool,
    pub(in crate::service) purpose: KeyPurpose<'a>,
}

/// What is known of each server. Pauses that are over are forgotten first, then those of strangers.
type AttemptMap = BoundedMap<ServerName, KeyAttempt, PAUSES_MAX>;

/// All attempts, running and past.
pub(in crate::service) struct KeyAttempts {
    state: Mutex<AttemptMap>,
    ended: Condvar,
    neighbours: FairSlots<AskerId>,
    own: FairSlots<AskerId>,
    speakers: FairSlots<AskerId>,
    received: FairSlots<AskerId>,
    notary: FairSlots<AskerId>,
}

impl Default for KeyAttempts {
    fn default() -> Self {
        Self {
            state: Mutex::default(),
            ended: Condvar::new(),
            neighbours: FairSlots::new(ATTEMPTS_MAX, 1),
            own: FairSlots::new(ATTEMPTS_MAX, 1),
            speakers: FairSlots::new(REQUEST_ATTEMPTS_MAX, REQUEST_ATTEMPTS_PER_ADDRESS_MAX),
            received: FairSlots::new(RECEIVED_ATTEMPTS_MAX, RECEIVED_ATTEMPTS_PER_SERVER_MAX),
            notary: FairSlots::new(NOTARY_ATTEMPTS_MAX, NOTARY_ATTEMPTS_PER_ADDRESS_MAX),
        }
    }
}

#[derive(Default)]
struct KeyAttempt {
    running: bool,
    /// Whether it was in a room with us when it was last asked.
    neighbour: bool,
    failures: u32,
    /// How often in a row it stated nothing, although it had the time, and since when.
    silences: u32,
    silent_since: Steady,
    last: Steady,
    next: Steady,
    /// When it last stated its keys.
    stated: Option<Instant>,
}

/// What came of asking a server.
#[derive(Clone, Copy)]
pub(in crate::service) enum AttemptOutcome {
    /// It gave the keys that were wanted.
    Helped,
    /// It gave a good statement, without them.
    Useless,
    Failed,
}

/// Whether a server may be asked.
pub(in crate::service) enum AttemptPermission<'a> {
    Go(RunningAttempt<'a>),
    /// Somebody else asked meanwhile: look again.
    Asked,
    /// It did not help lately.
    NotNow,
    /// Too many others are being asked.
    NoSlot,
}

impl KeyAttempts {
    /// Waits for a server's turn to be asked, and for a slot to ask it in: that of our rooms' servers if it is a
    /// neighbour and there is no key of it, else that of who wants it asked.
    pub(in crate::service) fn begin<'a>(
        &'a self,
        question: KeyQuestion<'_>,
        clock: &'a Clock,
        deadline: Instant,
    ) -> AttemptPermission<'a> {
        let KeyQuestion { server, neighbour, doubted, purpose } = question;
        let early = |all: &AttemptMap| {
            let next = all.get(server).map(|attempt| attempt.next_for(&question)).unwrap_or_default();
            clock.steady() < next
        };
        {
            let all = lock(&self.state);
            if all.get(server).is_some_and(|a| a.running) {
                return self.wait_for_end(all, server, deadline);
            }
            if early(&all) {
                return AttemptPermission::NotNow;
            }
        }
        let always = || true;
        let (slots, who, asker) = match purpose {
            _ if neighbour && !doubted => (&self.neighbours, AskerId::Peer(server.clone()), None),
            KeyPurpose::Events => (&self.own, AskerId::Peer(server.clone()), None),
            KeyPurpose::Received(origin) => (&self.received, AskerId::Peer(origin.clone()), None),
            KeyPurpose::Request(asker) => (&self.speakers, asker.who().clone(), Some(asker)),
            KeyPurpose::Notary(asker) => (&self.notary, asker.who().clone(), Some(asker)),
        };
        let slot = match asker {
            Some(asker) => slots.take(&who, deadline, || !asker.is_gone()),
            None => slots.take(&who, deadline, always),
        };
        let Some(slot) = slot else { return AttemptPermission::NoSlot };
        let hurry = !neighbour && !matches!(purpose, KeyPurpose::Events) && slots.is_crowded();
        let mut all = lock(&self.state);
        // While this one waited for its slot, somebody else may have begun.
        if all.get(server).is_some_and(|a| a.running) {
            drop(slot);
            return self.wait_for_end(all, server, deadline);
        }
        if early(&all) {
            return AttemptPermission::NotNow;
        }
        let now = clock.steady();
        let attempt = all.get_or_default(server.clone(), |attempt| attempt.worth(now));
        attempt.running = true;
        attempt.neighbour = neighbour;
        let until = if hurry { deadline.min(Instant::now() + CROWDED_TIMEOUT) } else { deadline };
        let server = server.clone();
        AttemptPermission::Go(RunningAttempt {
            attempts: self,
            server,
            clock,
            begun: Instant::now(),
            until,
            outcome: AttemptOutcome::Failed,
            _slot: slot,
        })
    }

    /// Whether it is not too early to ask, or somebody is asking.
    pub(in crate::service) fn may_ask(&self, question: &KeyQuestion<'_>, clock: &Clock) -> bool {
        let all = lock(&self.state);
        all.get(question.server).is_none_or(|a| a.running || a.next_for(question) <= clock.steady())
    }

    /// A slot for something else that takes as long, for a request whose sender is a stranger.
    pub(in crate::service) fn slot_for_request(
        &self,
        asker: &Asker,
        deadline: Instant,
    ) -> Option<FairSlot<AskerId>> {
        self.speakers.take(asker.who(), deadline, || !asker.is_gone())
    }

    fn wait_for_end<'a>(
        &'a self,
        mut all: MutexGuard<'a, AttemptMap>,
        server: &ServerName,
        deadline: Instant,
    ) -> AttemptPermission<'a> {
        while all.get(server).is_some_and(|a| a.running) {
            let Ok(woken) = wait_until(&self.ended, all, deadline) else { return AttemptPermission::NotNow };
            all = woken;
        }
        AttemptPermission::Asked
    }

    fn end(&self, server: &ServerName, (outcome, had_time): (AttemptOutcome, bool), now: Steady) {
        let mut all = lock(&self.state);
        if let Some(attempt) = all.get_mut(server) {
            attempt.running = false;
            attempt.last = now;
            if !matches!(outcome, AttemptOutcome::Failed) {
                attempt.stated = Some(Instant::now());
            }
            match outcome {
                AttemptOutcome::Failed if had_time => attempt.is_silent(now),
                AttemptOutcome::Failed => {}
                AttemptOutcome::Helped | AttemptOutcome::Useless => attempt.silences = 0,
            }
            attempt.failures = match outcome {
                AttemptOutcome::Helped => 0,
                // Anybody can make us ask for keys that do not exist: that must not keep us from asking for new ones.
                AttemptOutcome::Useless => (attempt.failures + 1).min(USELESS_COUNTED_MAX),
                AttemptOutcome::Failed => attempt.failures.saturating_add(1),
            };
            attempt.next = now + ATTEMPT_BACKOFF.pause_ms(attempt.failures);
        }
        drop(all);
        self.ended.notify_all();
    }
}

impl KeyAttempt {
    fn is_silent(&mut self, now: Steady) {
        if self.silences == 0 {
            self.silent_since = now;
        }
        self.silences = self.silences.saturating_add(1);
    }

    /// Who is asked a little sooner than need be costs one request; and of strangers there is no end.
    fn worth(&self, now: Steady) -> Worth {
        match self.next.max(self.last + DOUBT_PAUSE_MS) > now {
            _ if self.running => Worth::InUse,
            false => Worth::Nothing,
            true if self.neighbour => Worth::More,
            true => Worth::Little,
        }
    }

    /// Before when the server is not to be asked.
    fn next_for(&self, question: &KeyQuestion<'_>) -> Steady {
        let next = match question.purpose {
            KeyPurpose::Request(_) => self.next.min(self.last + SPEAKER_PAUSE_MAX_MS),
            _ => self.next,
        };
        if question.doubted { next.max(self.last + DOUBT_PAUSE_MS) } else { next }
    }
}

impl KeyAttempts {
    /// Whether the server stated nothing the last times that it was asked, so many of them at least and for so long.
    pub(in crate::service) fn is_silent(
        &self,
        server: &ServerName,
        (times, for_ms): (u32, Millis),
        now: Steady,
    ) -> bool {
        let all = lock(&self.state);
        let attempt = all.get(server).filter(|attempt| attempt.silences >= times);
        attempt.is_some_and(|attempt| now - attempt.silent_since >= for_ms)
    }

    /// A silent server may be asked once more, unless that was done just now.
    pub(super) fn hasten(&self, server: &ServerName) {
        if let Some(attempt) = lock(&self.state).get_mut(server) {
            attempt.next = attempt.next.min(attempt.last + ONCE_MORE_PAUSE_MS);
        }
    }

    /// The server itself has spoken to us: it is not gone.
    pub(in crate::service) fn peer_spoke(&self, server: &ServerName) {
        if let Some(attempt) = lock(&self.state).get_mut(server) {
            attempt.silences = 0;
        }
    }

    /// Whether the server has stated its keys since then, so that one that it did not state does not exist.
    pub(in crate::service) fn has_stated_since(&self, server: &ServerName, since: Instant) -> bool {
        let all = lock(&self.state);
        all.get(server).and_then(|a| a.stated).is_some_and(|at| at >= since)
    }
}

/// A server that is being asked. Ends the attempt even if the asking thread panics.
pub(in crate::service) struct RunningAttempt<'a> {
    attempts: &'a KeyAttempts,
    server: ServerName,
    clock: &'a Clock,
    begun: Instant,
    /// Until when its answer is waited for.
    pub(in crate::service) until: Instant,
    pub(in crate::service) outcome: AttemptOutcome,
    _slot: FairSlot<AskerId>,
}

impl Drop for RunningAttempt<'_> {
    fn drop(&mut self) {
        // Whoever takes up our time does not make others silent.
        let had_time = Instant::now() < self.until || self.begun.elapsed() >= SILENCE_TIMEOUT_MIN;
        self.attempts.end(&self.server, (self.outcome, had_time), self.clock.steady());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn name(name: &str) -> ServerName {
        ServerName::parse(name).expect("a name")
    }

    fn asker(n: u8) -> Asker {
        Asker::new(AskerId::Address([192, 0, 2, n].into())).until(|| true)
    }

    #[test]
    fn strangers_of_each_kind_leave_room_for_each_other_and_for_our_rooms_servers() {
        let (attempts, clock) = (KeyAttempts::default(), Clock::new());
        let begin = |server: &str, neighbour: bool, purpose: KeyPurpose<'_>| {
            let soon = Instant::now() + Duration::from_millis(5);
            let server = &name(server);
            let question = KeyQuestion { server, neighbour, doubted: false, purpose };
            match attempts.begin(question, &clock, soon) {
                AttemptPermission::Go(under_way) => Some(under_way),
                _ => None,
            }
        };
        let mut held = Vec::new();
        for (kind, most, each) in [
            ("notary", NOTARY_ATTEMPTS_MAX, NOTARY_ATTEMPTS_PER_ADDRESS_MAX),
            ("speaker", REQUEST_ATTEMPTS_MAX, REQUEST_ATTEMPTS_PER_ADDRESS_MAX),
            ("received", RECEIVED_ATTEMPTS_MAX, RECEIVED_ATTEMPTS_PER_SERVER_MAX),
        ] {
            let mut ask = |n: usize, from: u8| {
                let (asker, origin) = (asker(from), name(&format!("o{from}.example")));
                let purpose = match kind {
                    "notary" => KeyPurpose::Notary(&asker),
                    "speaker" => KeyPurpose::Request(&asker),
                    _ => KeyPurpose::Received(&origin),
                };
                let under_way = begin(&format!("{kind}{from}-{n}.example"), false, purpose);
                let began = under_way.is_some();
                held.extend(under_way);
                began
            };
            assert_eq!((0..20).filter(|n| ask(*n, 1)).count(), each, "{kind}");
            let others: usize = (2..20).map(|from| (0..2).filter(|n| ask(*n, from)).count()).sum();
            assert_eq!(each + others, most, "{kind}");
        }
        let asker = asker(1);
        let neighbours =
            (0..10).filter_map(|n| begin(&format!("f{n}.example"), true, KeyPurpose::Request(&asker)));
        assert_eq!(neighbours.collect::<Vec<_>>().len(), 10);
        let own = (0..10).filter_map(|n| begin(&format!("j{n}.example"), false, KeyPurpose::Events));
        assert_eq!(own.collect::<Vec<_>>().len(), 10);
    }

    #[test]
    fn however_many_servers_do_not_answer_others_are_asked_and_those_of_our_rooms_have_their_pauses() {
        let (attempts, clock) = (KeyAttempts::default(), Clock::new());
        let ask = |server: &str, neighbour: bool| {
            let (server, purpose) = (&name(server), KeyPurpose::Events);
            let question = KeyQuestion { server, neighbour, doubted: false, purpose };
            matches!(attempts.begin(question, &clock, Instant::now()), AttemptPermission::Go(_))
        };
        assert!(ask("friend.example", true));
        for n in 0..3 * PAUSES_MAX {
            assert!(ask(&format!("s{n}.example"), false), "{n}");
        }
        assert!(lock(&attempts.state).len() <= PAUSES_MAX);
        assert!(!ask("friend.example", true), "it is still not to be asked again");
    }

    #[test]
    fn who_had_no_time_to_answer_is_not_silent_and_who_speaks_is_not_gone() {
        let (attempts, clock) = (KeyAttempts::default(), Clock::new());
        let server = &name("s.example");
        let ask = |within: Duration| {
            let question =
                KeyQuestion { server, neighbour: true, doubted: false, purpose: KeyPurpose::Events };
            clock.advance(Duration::from_secs(3600));
            let begun = attempts.begin(question, &clock, Instant::now() + within);
            matches!(begun, AttemptPermission::Go(_))
        };
        let is_silent = |for_ms: Millis| attempts.is_silent(server, (3, for_ms), clock.steady());
        assert!((0..5).all(|_| ask(Duration::ZERO)));
        assert!(!is_silent(0), "it had no time");
        assert!((0..3).all(|_| ask(Duration::from_secs(60))));
        assert!(is_silent(2 * 3_600_000) && !is_silent(3 * 3_600_000), "since the first of the three");
        attempts.peer_spoke(server);
        assert!(!is_silent(0));
        // However lately it was asked, it is asked once more before others are believed.
        assert!((0..12).all(|_| ask(Duration::from_secs(60))));
        clock.advance(Duration::from_secs(61));
        let question = KeyQuestion { server, neighbour: true, doubted: false, purpose: KeyPurpose::Events };
        assert!(!attempts.may_ask(&question, &clock));
        attempts.hasten(server);
        assert!(attempts.may_ask(&question, &clock));
    }
}
