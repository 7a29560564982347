//! Delivery to push gateways. What is to be sent is in the database and nowhere else: each pusher has a cursor in the one
//! stream, which moves when the gateway has answered. Wakes are hints; a restart looks at every pusher.
//!
//! One request at a time for each pusher, so that what comes last is what the app's icon shows. A few threads look and send,
//! made when there is work and gone when there is none. Gateways are what users say, so one of them, all that are one
//! user's, and all of which nothing is known or which failed last time, may hold only some of the threads: a slow or dead
//! gateway delays nobody else.

use std::collections::{BTreeSet, HashMap, HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use super::next::{GatewayRequest, LookAt, Next, Passed, next};
use super::payload::PusherData;
use crate::backoff::Backoff;
use crate::clock::{Clock, Millis};
use crate::error::Result;
use crate::federation::push_gateway::gateway_host;
use crate::locks::{lock, wait_timeout};
use crate::protocol::UserId;
use crate::service::Homeserver;
use crate::store::Changes;
use crate::store::accounts::pushers::{PusherFailure, PusherKey};

/// Threads in all; those that one gateway may hold, and one user, whose gateways may have as many names as they like; and
/// those for pushers that failed last time or have sent nothing yet.
const THREADS_MAX: usize = 16;
const THREADS_OF_GATEWAY_MAX: usize = 4;
const THREADS_OF_USER_MAX: usize = 4;
const UNPROVEN_THREADS_MAX: usize = 10;
const STACK_BYTES: usize = 512 * 1024;
/// A thread without work ends after this; the first one stays.
const IDLE_THREAD_TIMEOUT: Duration = Duration::from_secs(20);
/// How long a stop waits for the threads to end.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// Pauses of a pusher whose gateway does not take what it is sent.
pub(in crate::service) const PAUSES: Backoff = Backoff::doubling(1_000, 3_600_000);
/// After something changed for a user, the number at their icons is looked at so much later: it often changes again.
const BADGE_DELAY_MS: Millis = 1_500;
/// When a pusher is looked at again that could not be read or written.
const AFTER_OWN_FAILURE_MS: Millis = 5_000;

/// In place of the key of a pusher: all of them are to be read.
const ALL: PusherKey = 0;

/// The threads that deliver. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct PushSender(Arc<SenderShared>);

struct SenderShared {
    clock: Clock,
    state: Mutex<SenderState>,
    work: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct SenderState {
    homeserver: Weak<Homeserver>,
    /// Of each user who has pushers.
    users: HashMap<UserId, Vec<PusherKey>>,
    pushers: HashMap<PusherKey, PusherActivity>,
    /// Those that are to be looked at.
    line: VecDeque<PusherKey>,
    /// Those that are to be looked at some day.
    due: BTreeSet<(Millis, PusherKey)>,
    /// Users whose pushers are to be read from the database.
    unread: HashSet<UserId>,
    load_all: bool,
    /// The threads that are at pushers, also at such as were removed meanwhile: a thread is taken until it comes back.
    busy: HashMap<PusherKey, Busy>,
    /// Of those, the ones at each gateway, and at the pushers of each user.
    gateways: HashMap<String, usize>,
    owners: HashMap<UserId, usize>,
    unproven: usize,
    alive: usize,
    idle: usize,
    stopping: bool,
}

/// What a pusher is at.
struct PusherActivity {
    user: UserId,
    gateway: String,
    /// Whether its gateway took what it was sent last.
    proven: bool,
    in_line: bool,
    /// Something came meanwhile.
    again: bool,
    /// Up to where there is nothing to be sent; the row may not say so yet.
    known: i64,
    /// Whether the number at the icon is to be looked at, too; and when it will be.
    badge: bool,
    badge_at: Option<Millis>,
}

/// A thread that is at a pusher.
struct Busy {
    user: UserId,
    gateway: String,
    unproven: bool,
}

enum SenderTask {
    /// All pushers are read, or those of a user.
    Load(Option<UserId>),
    /// A pusher is looked at; whether the number at the icon is, too; up to where there is nothing to be sent.
    Look(PusherKey, bool, i64),
    End,
}

impl PushSender {
    /// Sends nothing yet.
    pub fn new(clock: &Clock) -> Self {
        Self(Arc::new(SenderShared {
            clock: clock.clone(),
            state: Mutex::default(),
            work: Condvar::new(),
            ended: Condvar::new(),
        }))
    }

    /// Starts sending, first of all what earlier runs left. Where nobody has a pusher there is no thread for it yet.
    pub fn start(&self, homeserver: &Arc<Homeserver>) -> Result<()> {
        let anybody = homeserver.store.read(|db| db.is_anybody_notified())?;
        let mut state = lock(&self.0.state);
        state.homeserver = Arc::downgrade(homeserver);
        state.load_all = anybody;
        if anybody || !state.unread.is_empty() { self.spawn(&mut state) } else { Ok(()) }
    }

    /// Ends the threads. Requests under way count neither as taken nor as failed; who waits in one is cut off elsewhere.
    pub fn stop(&self) {
        let mut state = lock(&self.0.state);
        state.stopping = true;
        self.0.work.notify_all();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while state.alive > 0 && Instant::now() < deadline {
            state = wait_timeout(&self.0.ended, state, deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Takes in what a commit changed. Never blocks for long: it is called on the thread that tells of commits.
    pub fn committed(&self, changes: &Changes) {
        let mut state = lock(&self.0.state);
        if state.users.is_empty() {
            return;
        }
        let now = self.0.clock.now_ms();
        let mut moved = false;
        for user in changes.all_users() {
            for key in state.users.get(user).cloned().unwrap_or_default() {
                state.news(key, now + BADGE_DELAY_MS);
                moved = true;
            }
        }
        drop(state);
        if moved {
            self.0.work.notify_one();
        }
    }

    /// A user's pushers were set or removed.
    pub fn pushers_changed(&self, user: &UserId) {
        let mut state = lock(&self.0.state);
        state.unread.insert(user.clone());
        let started = state.homeserver.strong_count() > 0;
        if state.alive == 0
            && started
            && !state.stopping
            && let Err(e) = self.spawn(&mut state)
        {
            log::warn!("no thread for push yet: {e}");
        }
        self.0.work.notify_one();
    }

    /// The wall clock was moved: what is due by now is due.
    pub fn clock_moved(&self) {
        self.0.work.notify_all();
    }

    /// The wall clock was set back: nothing waits until it is there again.
    pub fn clock_set_back(&self) {
        let now = self.0.clock.now_ms();
        let mut state = lock(&self.0.state);
        // What is not due yet is told so.
        let early = state.due.split_off(&(now, ALL));
        for (_, key) in early {
            state.due.insert((now, key));
            if let Some(pusher) = state.pushers.get_mut(&key) {
                pusher.badge_at = pusher.badge_at.map(|at| at.min(now));
            }
        }
        // Whoever is at one may have read before what it waits for.
        let busy: Vec<_> = state.busy.keys().copied().collect();
        busy.into_iter().for_each(|key| state.stand_in_line(key));
        drop(state);
        self.0.work.notify_all();
    }

    fn spawn(&self, state: &mut SenderState) -> Result<()> {
        let sender = self.clone();
        let stays = state.alive == 0;
        let thread = std::thread::Builder::new().name("push".into()).stack_size(STACK_BYTES);
        thread.spawn(move || sender.work(stays))?;
        state.alive += 1;
        Ok(())
    }

    fn work(&self, stays: bool) {
        loop {
            let task = self.next_task(stays);
            // The homeserver is held only while it is needed: it may go while this thread waits.
            let homeserver = lock(&self.0.state).homeserver.clone();
            let Some(hs) = homeserver.upgrade() else { break };
            match task {
                SenderTask::Load(user) => {
                    if catch_unwind(AssertUnwindSafe(|| self.load(&hs, user))).is_err() {
                        self.load_later();
                    }
                }
                SenderTask::Look(key, badge, known) => {
                    let looked = catch_unwind(AssertUnwindSafe(|| self.look(&hs, key, badge, known)));
                    drop(hs);
                    let outcome = looked.unwrap_or_else(|_| Looked::later(self.0.clock.now_ms()));
                    lock(&self.0.state).finished(key, &outcome);
                    self.0.work.notify_one();
                }
                SenderTask::End => break,
            }
        }
        lock(&self.0.state).alive -= 1;
        self.0.ended.notify_all();
        // Who is left sleeps for as long as was right when it lay down; this one may have known better.
        self.0.work.notify_one();
    }

    /// Waits for something to do.
    fn next_task(&self, stays: bool) -> SenderTask {
        let mut state = lock(&self.0.state);
        let idle_since = Instant::now();
        loop {
            if state.stopping {
                return SenderTask::End;
            }
            state.take_up_what_is_due(self.0.clock.now_ms());
            if let Some(task) = state.pick() {
                // While this thread is busy, another one looks after what is left.
                if state.idle > 0 {
                    self.0.work.notify_one();
                } else if !state.line.is_empty()
                    && state.alive < THREADS_MAX
                    && let Err(e) = self.spawn(&mut state)
                {
                    log::warn!("no further thread for push: {e}");
                }
                return task;
            }
            if !stays && idle_since.elapsed() >= IDLE_THREAD_TIMEOUT {
                return SenderTask::End;
            }
            let mut pause = if stays { Duration::from_secs(600) } else { IDLE_THREAD_TIMEOUT };
            if let Some((due, _)) = state.due.first() {
                let left = u64::try_from(due - self.0.clock.now_ms()).unwrap_or(0);
                pause = pause.min(Duration::from_millis(left + 1));
            }
            state.idle += 1;
            state = wait_timeout(&self.0.work, state, pause);
            state.idle -= 1;
        }
    }

    /// Reads which pushers there are; each is looked at.
    fn load(&self, hs: &Homeserver, user: Option<UserId>) {
        let read = hs.store.read(|db| {
            let users = user.clone().map_or_else(|| db.users_with_pushers(), |user| Ok(vec![user]))?;
            users.into_iter().map(|user| Ok((db.pushers_of(&user)?, user))).collect::<Result<Vec<_>>>()
        });
        let mut state = lock(&self.0.state);
        let users = match read {
            Ok(users) => users,
            Err(error) => {
                log::log!(error.level(log::Level::Error), "the pushers cannot be read: {error}");
                drop(state);
                return self.load_later();
            }
        };
        for (pushers, user) in users {
            let enabled: Vec<_> = pushers.into_iter().filter(|pusher| pusher.set.enabled).collect();
            let gone = state.users.remove(&user).unwrap_or_default();
            let gone = gone.into_iter().filter(|key| enabled.iter().all(|pusher| pusher.key != *key));
            gone.for_each(|key| state.forget(key));
            for pusher in &enabled {
                let gateway = gateway_host(PusherData::of(pusher).url());
                let activity = state.pushers.entry(pusher.key).or_insert_with(|| PusherActivity::new(&user));
                activity.gateway = gateway;
                activity.badge = true;
                state.stand_in_line(pusher.key);
            }
            if !enabled.is_empty() {
                state.users.insert(user, enabled.iter().map(|pusher| pusher.key).collect());
            }
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Has all pushers be read again after a while.
    fn load_later(&self) {
        lock(&self.0.state).due.insert((self.0.clock.now_ms() + AFTER_OWN_FAILURE_MS, ALL));
    }

    fn is_stopping(&self) -> bool {
        lock(&self.0.state).stopping
    }

    /// Sends whatever a pusher has to send, one after the other.
    fn look(&self, hs: &Homeserver, key: PusherKey, badge: bool, known: i64) -> Looked {
        let mut proven = None;
        loop {
            if self.is_stopping() {
                return Looked { proven, ..Looked::default() };
            }
            let now = self.0.clock.now_ms();
            let position = hs.store.position();
            let at = LookAt { now, known, position, badge };
            let done = match hs.store.read(|db| next(db, key, at)) {
                Ok(Next::Gone) => return Looked { gone: true, ..Looked::default() },
                Ok(Next::Wait(until)) => {
                    return Looked { proven, badge, again_at: Some(until), ..Looked::default() };
                }
                Ok(Next::Nothing { passed: None, wake_at }) => {
                    return Looked { proven, known: position, again_at: wake_at, ..Looked::default() };
                }
                Ok(Next::Nothing { passed: Some(passed), wake_at }) => {
                    let more = passed.more;
                    pass(hs, key, passed, now).map(|()| (!more).then_some(wake_at))
                }
                Ok(Next::Send(request)) => match self.send(hs, *request, position) {
                    Ok(Sent::Taken) => {
                        proven = Some(true);
                        Ok(None)
                    }
                    // What was not taken may have been the number.
                    Ok(Sent::Refused(at)) => {
                        let proven = Some(false);
                        return Looked { proven, badge: true, again_at: Some(at), ..Looked::default() };
                    }
                    Ok(Sent::CutOff) => return Looked::default(),
                    Err(error) => Err(error),
                },
                Err(error) => Err(error),
            };
            match done {
                Ok(None) => {}
                Ok(Some(again_at)) => {
                    return Looked { proven, known: position, again_at, ..Looked::default() };
                }
                Err(error) => {
                    log::log!(error.level(log::Level::Error), "a pusher cannot be looked after: {error}");
                    return Looked::later(now);
                }
            }
        }
    }

    fn send(&self, hs: &Homeserver, request: GatewayRequest, position: i64) -> Result<Sent> {
        let GatewayRequest { pusher, url, body, cursor, otherwise, given_up, badge, bells } = request;
        let (key, set_ms, pushkey) = (pusher.key, pusher.set_ms, pusher.set.pushkey.clone());
        let answer = hs.federation.notify_gateway(&url, &body);
        let now = self.0.clock.now_ms();
        match answer {
            // It can speak of what it was sent, and of nothing else.
            Ok(rejected) if rejected.contains(&pushkey) => {
                log::info!("a push gateway knows a device of {} no more", pusher.set.user_id);
                hs.store.write(move |tx| tx.delete_rejected_pusher(key, set_ms))?;
                Ok(Sent::Taken)
            }
            Ok(_) => {
                hs.store.write_lightly(move |tx| {
                    tx.pusher_delivered(key, cursor, badge)?;
                    bells.iter().try_for_each(|bell| tx.set_bell(key, bell, now))
                })?;
                Ok(Sent::Taken)
            }
            Err(_) if self.is_stopping() => Ok(Sent::CutOff),
            Err(error) => {
                let failures = pusher.failures.saturating_add(1);
                let retry_ms = now + PAUSES.pause_ms(failures);
                log::info!(
                    "the push gateway {} does not take what it is sent ({failures} in a row): {error}",
                    gateway_host(&url)
                );
                let failing_since = pusher.failing_since.filter(|_| !given_up).unwrap_or((now, position));
                let failure = PusherFailure { cursor: otherwise, failures, retry_ms, failing_since };
                hs.store.write_lightly(move |tx| tx.pusher_failed(key, set_ms, &failure))?;
                Ok(Sent::Refused(retry_ms))
            }
        }
    }
}

/// What became of a request.
enum Sent {
    Taken,
    /// It is tried again then.
    Refused(Millis),
    /// This server stops.
    CutOff,
}

/// What became of a look.
#[derive(Default)]
struct Looked {
    gone: bool,
    /// Whether the gateway took the last request, if there was one.
    proven: Option<bool>,
    /// Up to where there is nothing to be sent.
    known: i64,
    /// Whether the number is still to be looked at.
    badge: bool,
    again_at: Option<Millis>,
}

impl Looked {
    fn later(now: Millis) -> Self {
        Self { badge: true, again_at: Some(now + AFTER_OWN_FAILURE_MS), ..Self::default() }
    }
}

fn pass(hs: &Homeserver, key: PusherKey, passed: Passed, now: Millis) -> Result<()> {
    let Passed { cursor, bells, .. } = passed;
    hs.store.write_lightly(move |tx| {
        tx.move_pusher_cursor(key, cursor)?;
        bells.iter().try_for_each(|bell| tx.set_bell(key, bell, now))
    })
}

impl PusherActivity {
    fn new(user: &UserId) -> Self {
        Self {
            user: user.clone(),
            gateway: String::new(),
            proven: false,
            in_line: false,
            again: false,
            known: 0,
            badge: false,
            badge_at: None,
        }
    }
}

impl SenderState {
    /// Something changed for the user of a pusher.
    fn news(&mut self, key: PusherKey, badge_at: Millis) {
        let Some(pusher) = self.pushers.get_mut(&key) else { return };
        if pusher.badge_at.is_none() {
            pusher.badge_at = Some(badge_at);
            self.due.insert((badge_at, key));
        }
        self.stand_in_line(key);
    }

    fn stand_in_line(&mut self, key: PusherKey) {
        let Some(pusher) = self.pushers.get_mut(&key) else { return };
        if self.busy.contains_key(&key) {
            pusher.again = true;
        } else if !std::mem::replace(&mut pusher.in_line, true) {
            self.line.push_back(key);
        }
    }

    fn take_up_what_is_due(&mut self, now: Millis) {
        while self.due.first().is_some_and(|(due, _)| *due <= now) {
            let Some((due, key)) = self.due.pop_first() else { return };
            self.load_all |= key == ALL;
            let Some(pusher) = self.pushers.get_mut(&key) else { continue };
            if pusher.badge_at == Some(due) {
                (pusher.badge, pusher.badge_at) = (true, None);
            }
            self.stand_in_line(key);
        }
    }

    /// The next thing to do, if there is any that may be done now.
    fn pick(&mut self) -> Option<SenderTask> {
        if std::mem::take(&mut self.load_all) {
            return Some(SenderTask::Load(None));
        }
        if let Some(user) = self.unread.iter().next().cloned() {
            self.unread.remove(&user);
            return Some(SenderTask::Load(Some(user)));
        }
        loop {
            let at = self.line.iter().position(|key| self.may_look(*key))?;
            let key = self.line.remove(at)?;
            let Some(pusher) = self.pushers.get_mut(&key) else { continue };
            pusher.in_line = false;
            let (user, gateway) = (pusher.user.clone(), pusher.gateway.clone());
            let unproven = !pusher.proven;
            let look = SenderTask::Look(key, std::mem::take(&mut pusher.badge), pusher.known);
            self.unproven += usize::from(unproven);
            *self.gateways.entry(gateway.clone()).or_default() += 1;
            *self.owners.entry(user.clone()).or_default() += 1;
            self.busy.insert(key, Busy { user, gateway, unproven });
            return Some(look);
        }
    }

    /// Whether there is a thread for the pusher beside those of others like it.
    fn may_look(&self, key: PusherKey) -> bool {
        self.pushers.get(&key).is_none_or(|pusher| {
            self.gateways.get(&pusher.gateway).is_none_or(|busy| *busy < THREADS_OF_GATEWAY_MAX)
                && self.owners.get(&pusher.user).is_none_or(|busy| *busy < THREADS_OF_USER_MAX)
                && (pusher.proven || self.unproven < UNPROVEN_THREADS_MAX)
        })
    }

    fn finished(&mut self, key: PusherKey, looked: &Looked) {
        self.leave(key);
        let Some(pusher) = self.pushers.get_mut(&key) else { return };
        pusher.proven = looked.proven.unwrap_or(pusher.proven);
        pusher.badge |= looked.badge;
        pusher.known = pusher.known.max(looked.known);
        let again = std::mem::take(&mut pusher.again);
        let user = pusher.user.clone();
        if looked.gone {
            self.forget(key);
            self.unread.insert(user);
            return;
        }
        self.due.extend(looked.again_at.map(|at| (at, key)));
        if again && looked.proven != Some(false) {
            self.stand_in_line(key);
        }
    }

    /// The thread that was at a pusher has come back.
    fn leave(&mut self, key: PusherKey) {
        let Some(Busy { user, gateway, unproven }) = self.busy.remove(&key) else { return };
        self.unproven -= usize::from(unproven);
        one_less(&mut self.gateways, &gateway);
        one_less(&mut self.owners, &user);
    }

    /// A pusher that is not there any more. Who is at it will find that out.
    fn forget(&mut self, key: PusherKey) {
        self.pushers.remove(&key);
    }
}

fn one_less<K: Eq + std::hash::Hash>(counts: &mut HashMap<K, usize>, key: &K) {
    if let Some(count) = counts.get_mut(key) {
        *count -= 1;
        if *count == 0 {
            counts.remove(key);
        }
    }
}
