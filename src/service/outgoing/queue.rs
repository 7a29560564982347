//! Who is in line, who pauses, and what becomes of a destination when a transaction arrived or failed.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::sync::Weak;
use std::time::{Duration, Instant};

use super::{
    EDUS_MAX, FAILING_THREADS_MAX, FLUSH_INTERVAL, Outgoing, PDUS_MAX, RELIEF_THREADS_MAX, SLOW_AFTER,
    SLOW_THREADS_MAX, SLOW_TIMES_AS_LONG, THREADS_MAX, UNPROVEN_THREADS_MAX,
};
use crate::backoff::Backoff;
use crate::clock::{Millis, Steady};
use crate::error::ErrCode;
use crate::federation::{CallError, CallResult};
use crate::locks::lock;
use crate::protocol::ServerName;
use crate::protocol::edu::Edu;
use crate::random;
use crate::service::Homeserver;
use crate::service::outgoing::transaction::{OutgoingTransaction, TransactionEdus};
use crate::store::RoomKey;
use crate::store::servers::destinations::Destination;

/// Pauses after failures, each a fifth longer or shorter by chance.
const PAUSES: Backoff = Backoff::doubling(4_000, 24 * 3_600_000);
/// After a start nobody pauses for longer than their failures say, unless they have asked for it and it is no longer than this: a
/// clock that was ahead may have set a time that is far off.
const ASKED_PAUSE_MS_MAX: Millis = 3_600_000;

/// Everything that the threads share. A destination is in at most one of the lanes, once.
#[derive(Default)]
pub(super) struct QueueState {
    pub(super) stopping: bool,
    pub(super) homeserver: Weak<Homeserver>,
    pub(super) alive: usize,
    pub(super) idle: usize,
    /// At the start: find out from the database who is owed what.
    pub(super) load_owed: bool,
    /// Rooms with something new for their servers, and servers with something of their own of which it is not known yet
    /// how they fared last time.
    pub(super) rooms: HashSet<RoomKey>,
    pub(super) unknown: HashSet<ServerName>,
    pub(super) destinations: HashMap<ServerName, DestinationState>,
    /// Who waits, by [`Lane`], and how many of each are being served.
    pub(super) lanes: [VecDeque<ServerName>; 4],
    pub(super) busy: [usize; 4],
    /// Those that are being served: since when, and as what.
    pub(super) under_way: HashMap<ServerName, (Instant, Lane)>,
    pub(super) picks: usize,
    pub(super) due: BTreeSet<(Millis, ServerName)>,
    pub(super) unflushed: HashSet<ServerName>,
    pub(super) flush_at: Option<Instant>,
    pub(super) serial: u64,
}

/// What is known of a destination.
#[derive(Default)]
pub(super) struct DestinationState {
    pub(super) doing: DestinationActivity,
    /// Woken while it was being served.
    pub(super) again: bool,
    pub(super) loaded: bool,
    pub(super) kept: Destination,
    pub(super) edus_upto: i64,
    pub(super) last_attempt_ms: Millis,
    /// When it made a request of us last although our last transaction had failed.
    pub(super) spoke_ms: Millis,
    /// Whether its last transaction arrived.
    pub(super) reached: bool,
    /// Whether it has made a request of us, so that it is likely to answer one.
    pub(super) spoke: bool,
    /// Whether it is slow, and until when it is in any case.
    pub(super) slow: bool,
    pub(super) slow_until: Steady,
    /// The lane that it stands in, or came from.
    pub(super) lane: Lane,
    /// It failed, and has not been looked at since for how much it missed.
    pub(super) was_away: bool,
    /// The ephemeral part of the transaction that failed: a repeat must be the same.
    pub(super) failed_edus: Option<TransactionEdus>,
    pub(super) edus: VecDeque<Edu>,
    /// Rooms that it has come into, of which it is still to be told who is there.
    pub(super) entered_rooms: BTreeSet<RoomKey>,
    /// Where a transaction was refused as a whole, how it is found out what is to blame.
    pub(super) search: CulpritSearch,
}

/// How it is found out what it is in a transaction that a peer refuses as a whole: the ephemeral messages go apart from the
/// events, and both in ever smaller portions, until what is refused is a single one.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum CulpritSearch {
    #[default]
    None,
    /// Durable ephemeral messages alone, so many at most, up to that position.
    Edus { most: usize, upto: i64 },
    /// Then events alone, so many at most.
    Events { most: usize },
}

impl CulpritSearch {
    pub(super) fn max_pdus(self) -> usize {
        match self {
            Self::Events { most } => most,
            _ => PDUS_MAX,
        }
    }
}

/// What a destination is doing; it is in a lane, in `due`, or with a thread accordingly.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum DestinationActivity {
    #[default]
    Nothing,
    Waiting,
    Pausing,
    Sending,
}

/// How likely a destination is to answer. Those who may not can hold only some of the threads.
#[derive(Default, Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Lane {
    /// Its last transaction arrived, or it has spoken to us since we know it.
    Proven,
    /// Nothing is known of it.
    #[default]
    Fresh,
    /// Its last transaction did not arrive.
    Failing,
    /// It answers, and takes long over it.
    Slow,
}

/// All of them, those first who keep a thread for the shortest time.
const LANES: [Lane; 4] = [Lane::Proven, Lane::Fresh, Lane::Slow, Lane::Failing];

/// What a thread does next.
pub(super) enum OutgoingTask {
    LoadOwed,
    WakeServers(Vec<RoomKey>, Vec<ServerName>),
    Send(ServerName),
    Flush,
    End,
}

impl Outgoing {
    /// How many of the servers that are known at present are waited for, sent to, behind, or up to date.
    pub fn by_activity(&self) -> [(&'static str, usize); 4] {
        let (mut idle, mut waiting, mut sending, mut failing) = (0, 0, 0, 0);
        for peer in lock(&self.0.state).destinations.values() {
            let count = match peer.doing {
                DestinationActivity::Pausing => &mut failing,
                _ if peer.kept.failures > 0 => &mut failing,
                DestinationActivity::Sending => &mut sending,
                DestinationActivity::Waiting => &mut waiting,
                DestinationActivity::Nothing => &mut idle,
            };
            *count += 1;
        }
        [("idle", idle), ("waiting", waiting), ("sending", sending), ("failing", failing)]
    }

    /// The wall clock was set back: nobody waits until it is there again.
    pub fn clock_set_back(&self) {
        let mut state = lock(&self.0.state);
        state.clock_set_back(self.0.clock.now_ms());
        state.flush_by(FLUSH_INTERVAL);
        drop(state);
        self.0.work.notify_all();
    }
}

impl QueueState {
    /// Notes how a transaction fared. Gives whether there is more to send, and whether the destination has to pause.
    pub(super) fn conclude(
        &mut self,
        server: &ServerName,
        transaction: &OutgoingTransaction,
        answer: CallResult<()>,
        now: Millis,
    ) -> (bool, bool) {
        let Some(peer) = self.destinations.get_mut(server) else { return (false, false) };
        self.unflushed.insert(server.clone());
        peer.last_attempt_ms = now;
        match answer {
            Ok(()) => {
                peer.delivered(transaction);
                (transaction.more, false)
            }
            Err(e) if peer.narrows_down(server, transaction, &e) => (true, false),
            Err(e) => {
                peer.failed(transaction, &e, now);
                let (failures, pause) = (peer.kept.failures, (peer.kept.retry_ms - now) / 1000);
                log::info!(
                    "{server} did not take a transaction ({failures} in a row, next in {pause} s): {e}"
                );
                (false, true)
            }
        }
    }

    /// The wall clock was set back.
    pub(super) fn clock_set_back(&mut self, now: Millis) {
        self.due.clear();
        for (server, peer) in &mut self.destinations {
            if peer.clock_set_back(now) {
                self.unflushed.insert(server.clone());
            }
            if peer.doing == DestinationActivity::Pausing {
                self.due.insert((peer.kept.retry_ms, server.clone()));
            }
        }
    }

    /// Has what changed written within this time, if anything did.
    pub(super) fn flush_by(&mut self, within: Duration) {
        if self.flush_at.is_none() && !self.unflushed.is_empty() {
            self.flush_at = Some(Instant::now() + within);
        }
    }

    /// At a stop: to whom messages were still to be sent, or on their way, may lack receipts.
    pub(super) fn remember_lost_receipts(&mut self) {
        let is_at_rest = |peer: &DestinationState| {
            let is_idle = matches!(peer.doing, DestinationActivity::Nothing | DestinationActivity::Pausing);
            is_idle && peer.edus.is_empty() || !peer.loaded
        };
        let others = self.destinations.iter().filter(|(_, peer)| !is_at_rest(peer));
        let others: Vec<ServerName> = others.map(|(server, _)| server.clone()).collect();
        others.iter().for_each(|server| self.receipts_may_be_lost(server));
    }

    /// A destination may lack receipts, which is to be written down.
    pub(super) fn receipts_may_be_lost(&mut self, server: &ServerName) {
        if let Some(peer) = self.destinations.get_mut(server) {
            peer.may_lack_receipts();
            self.unflushed.insert(server.clone());
        }
    }

    /// Puts a destination in its lane.
    pub(super) fn enqueue(&mut self, server: &ServerName) {
        let peer = self.destinations.entry(server.clone()).or_default();
        (peer.doing, peer.lane) = (DestinationActivity::Waiting, peer.lane_now());
        self.lanes[peer.lane as usize].push_back(server.clone());
    }

    /// Takes a destination that waits out of its lane.
    pub(super) fn dequeue(&mut self, server: &ServerName) {
        let Some(peer) =
            self.destinations.get_mut(server).filter(|p| p.doing == DestinationActivity::Waiting)
        else {
            return;
        };
        peer.doing = DestinationActivity::Nothing;
        self.lanes[peer.lane as usize].retain(|waiting| waiting != server);
    }

    /// Whether one more of this lane may be served.
    fn may(&self, lane: Lane) -> bool {
        let [_, fresh, failing, slow] = self.busy;
        match lane {
            Lane::Proven => true,
            Lane::Fresh => fresh + failing < UNPROVEN_THREADS_MAX,
            Lane::Failing => failing < FAILING_THREADS_MAX && fresh + failing < UNPROVEN_THREADS_MAX,
            Lane::Slow => slow < SLOW_THREADS_MAX,
        }
    }

    /// How many threads there may be: one more for each that a proven destination has held for long.
    pub(super) fn threads_max(&self, now: Instant) -> usize {
        let held = |(began, lane): &&(Instant, Lane)| {
            *lane == Lane::Proven && now.duration_since(*began) > SLOW_AFTER
        };
        THREADS_MAX + self.under_way.values().filter(held).count().min(RELIEF_THREADS_MAX)
    }

    fn waits(&self, lane: Lane) -> bool {
        self.may(lane) && !self.lanes[lane as usize].is_empty()
    }

    /// Whether a thread that asked now would get something to do.
    pub(super) fn has_work(&self) -> bool {
        self.load_owed
            || !self.rooms.is_empty()
            || !self.unknown.is_empty()
            || LANES.into_iter().any(|lane| self.waits(lane))
    }

    /// The next thing to do.
    pub(super) fn pick(&mut self, now: Instant) -> Option<OutgoingTask> {
        if std::mem::take(&mut self.load_owed) {
            return Some(OutgoingTask::LoadOwed);
        }
        if !self.rooms.is_empty() || !self.unknown.is_empty() {
            return Some(OutgoingTask::WakeServers(
                self.rooms.drain().collect(),
                self.unknown.drain().collect(),
            ));
        }
        if self.flush_at.is_some_and(|at| at <= now) {
            self.flush_at = None;
            return Some(OutgoingTask::Flush);
        }
        self.picks = self.picks.wrapping_add(1);
        // Now and then the others come first, so that busy servers cannot put them off for ever.
        let order = match self.picks % 8 {
            0 | 4 => [Lane::Failing, Lane::Slow, Lane::Fresh, Lane::Proven],
            2 => [Lane::Fresh, Lane::Proven, Lane::Slow, Lane::Failing],
            6 => [Lane::Slow, Lane::Fresh, Lane::Proven, Lane::Failing],
            _ => LANES,
        };
        let lane = order.into_iter().find(|lane| self.waits(*lane))?;
        let server = self.lanes[lane as usize].pop_front()?;
        self.destinations.entry(server.clone()).or_default().doing = DestinationActivity::Sending;
        self.busy[lane as usize] += 1;
        self.under_way.insert(server.clone(), (now, lane));
        Some(OutgoingTask::Send(server))
    }
}

impl DestinationState {
    /// Takes in what is kept of it.
    pub(super) fn learn(&mut self, mut kept: Destination, now: Millis) {
        // What cannot have been is told by a clock that was ahead, and so was the time of the next try.
        let asked = if kept.failing_since_ms > now { 0 } else { ASKED_PAUSE_MS_MAX };
        kept.retry_ms = kept.retry_ms.min(now + longest_pause_ms(kept.failures).max(asked));
        kept.failing_since_ms = kept.failing_since_ms.min(now);
        self.loaded = true;
        self.was_away = kept.failures > 0;
        // Something was delivered once, and nothing failed since.
        self.reached = kept.failures == 0 && kept.cursor > 0;
        self.kept = kept;
        if self.kept.cursor > 0 {
            // What waited in memory at the last stop is gone.
            self.may_lack_receipts();
        }
    }

    /// Of the receipts behind what was delivered some may not arrive.
    fn may_lack_receipts(&mut self) {
        self.kept.receipts_from.get_or_insert(self.kept.cursor);
    }

    /// The clock was set back: what happened did not happen later than now, and the pause is no longer than its failures say.
    /// Whether what is kept has changed.
    pub(super) fn clock_set_back(&mut self, now: Millis) -> bool {
        let before = (self.kept.retry_ms, self.kept.failing_since_ms);
        self.kept.retry_ms = before.0.min(now + longest_pause_ms(self.kept.failures));
        self.kept.failing_since_ms = before.1.min(now);
        self.spoke_ms = self.spoke_ms.min(now);
        self.last_attempt_ms = self.last_attempt_ms.min(now);
        (self.kept.retry_ms, self.kept.failing_since_ms) != before
    }

    /// When it was tried last, as far as that is known: of what failed before a restart, how long it was to pause is.
    pub(super) fn last_attempt_at(&self) -> Millis {
        match self.last_attempt_ms {
            0 => self.kept.retry_ms - PAUSES.pause_ms(self.kept.failures),
            at => at,
        }
    }

    pub(super) fn lane_now(&self) -> Lane {
        match (self.kept.failures, self.reached || self.spoke) {
            (0, true) if self.slow => Lane::Slow,
            (0, true) => Lane::Proven,
            (0, false) => Lane::Fresh,
            _ => Lane::Failing,
        }
    }

    /// So long it took over a transaction, or over failing to take it.
    pub(super) fn took(&mut self, took: Duration, now: Steady) {
        if took > SLOW_AFTER {
            self.slow = true;
            let for_ms = (took * SLOW_TIMES_AS_LONG).as_millis();
            self.slow_until = now + Millis::try_from(for_ms).unwrap_or(Millis::MAX / 2);
        } else if now >= self.slow_until {
            self.slow = false;
        }
    }

    pub(super) fn delivered(&mut self, transaction: &OutgoingTransaction) {
        if let Some(upto) = transaction.edus.receipts_upto {
            // Those that came while it failed are not among them.
            self.kept.receipts_from = (self.kept.failures > 0).then_some(upto);
        }
        self.kept.cursor = self.kept.cursor.max(transaction.upto);
        self.kept.attempt_upto = None;
        self.kept.failures = 0;
        self.kept.retry_ms = 0;
        self.kept.failing_since_ms = 0;
        self.edus_upto = self.edus_upto.max(transaction.edus.durable_upto);
        self.failed_edus = None;
        self.reached = true;
        self.search = match self.search {
            CulpritSearch::Edus { upto, .. } => self.search_edus(EDUS_MAX, upto),
            CulpritSearch::None | CulpritSearch::Events { .. } => CulpritSearch::None,
        };
    }

    /// The search among ephemeral messages, or what comes after it.
    fn search_edus(&self, most: usize, upto: i64) -> CulpritSearch {
        match self.edus_upto < upto {
            true => CulpritSearch::Edus { most, upto },
            false => CulpritSearch::Events { most: PDUS_MAX },
        }
    }

    pub(super) fn failed(&mut self, transaction: &OutgoingTransaction, e: &CallError, now: Millis) {
        if self.kept.failures == 0 {
            self.kept.failing_since_ms = now;
        }
        self.kept.failures = self.kept.failures.saturating_add(1);
        self.kept.attempt_upto = Some(transaction.upto);
        self.failed_edus = Some(transaction.edus.clone());
        self.may_lack_receipts();
        self.edus.clear();
        (self.reached, self.spoke, self.was_away) = (false, false, true);
        let pause = PAUSES.spread_ms(self.kept.failures, random::bytes::<1>()[0]);
        let asked = e.retry_after().map_or(0, |d| Millis::try_from(d.as_millis()).unwrap_or(Millis::MAX));
        self.kept.retry_ms = now + pause.max(asked.min(PAUSES.longest_ms));
    }

    /// Whether the peer says that the transaction itself is bad, so that repeating it would hold up everything behind
    /// it for ever. Then its parts go in ever smaller portions, and what is refused all by itself is given up: one event, or
    /// one ephemeral message.
    fn narrows_down(
        &mut self,
        server: &ServerName,
        transaction: &OutgoingTransaction,
        e: &CallError,
    ) -> bool {
        if !is_about_content(e) {
            return false;
        }
        self.kept.attempt_upto = None;
        self.failed_edus = None;
        self.reached = true;
        let TransactionEdus { durable, durable_upto, .. } = transaction.edus;
        let events = transaction.events.len();
        let others = transaction.edus.edus.len() - durable;
        self.search = match (events, durable, others) {
            // What is worth nothing later goes without a search.
            (0 | 1, 0, 0) | (0, 0, _) => {
                let event = transaction.events.first().map_or("ephemeral messages", |e| e.event_id.as_str());
                log::warn!("{server} refuses {event}, which is not sent again: {e}");
                self.kept.cursor = self.kept.cursor.max(transaction.upto);
                if transaction.edus.receipts_upto.is_some() {
                    self.kept.receipts_from = None;
                }
                CulpritSearch::None
            }
            (0, 1, 0) => {
                log::warn!("{server} refuses an ephemeral message, which is not sent again: {e}");
                self.edus_upto = self.edus_upto.max(durable_upto);
                match self.search {
                    CulpritSearch::Edus { upto, .. } => self.search_edus(EDUS_MAX, upto),
                    _ => CulpritSearch::None,
                }
            }
            (0, many, 0) => {
                let upto = match self.search {
                    CulpritSearch::Edus { upto, .. } => upto,
                    _ => durable_upto,
                };
                CulpritSearch::Edus { most: many / 2, upto }
            }
            (many, 0, 0) => CulpritSearch::Events { most: many / 2 },
            // Each kind alone, before anything is held against a single one.
            (most, 0, _) => CulpritSearch::Events { most },
            (_, most, _) => CulpritSearch::Edus { most, upto: durable_upto },
        };
        if self.search != CulpritSearch::None {
            log::info!("{server} refuses a transaction ({e}); its parts go in smaller ones");
        }
        true
    }
}

fn longest_pause_ms(failures: u32) -> Millis {
    PAUSES.spread_ms(failures, u8::MAX)
}

/// Whether an error says that there is something wrong with what was sent, or that it is too much at once: proxies say
/// the latter by the status alone.
fn is_about_content(e: &CallError) -> bool {
    let by_code = matches!(
        e.errcode(),
        Some(
            ErrCode::BadJson
                | ErrCode::NotJson
                | ErrCode::TooLarge
                | ErrCode::InvalidParam
                | ErrCode::MissingParam
        )
    );
    by_code || e.refusal().is_some_and(|refusal| refusal.status == 413)
}
