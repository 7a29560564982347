//! Delivery to application services. What is to be told is in the database: one position in the stream, behind which it is still
//! to be decided whom an event concerns, and a queue for each service. Wakes are hints; a restart looks at everything.
//!
//! Where no service is registered there is no thread and nothing is done. Otherwise one thread decides, and each service has one
//! while it is being sent something, so that one that hangs holds up nobody. What a service does not take is tried again after
//! pauses, at the time that its row names to the timer.

use std::collections::{HashSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::time::{Duration, Instant};

use serde_json::Value;
use serde_json::value::to_raw_value;

use super::deliver::{Delivery, deliver};
use super::interest::{Interest, Services, ToldService};
use crate::clock::{Clock, Millis};
use crate::error::{Error, Result};
use crate::locks::{lock, wait, wait_timeout};
use crate::protocol::UserId;
use crate::protocol::appservice::Appservice;
use crate::service::Homeserver;
use crate::service::rooms::client_format::Json;
use crate::store::Changes;
use crate::store::appservices::queue::{BegunServices, ServiceRow};

const STACK_BYTES: usize = 512 * 1024;
/// How long a stop waits for the threads to end.
const STOP_TIMEOUT: Duration = Duration::from_millis(500);
/// After so long what failed on this server is tried again.
const AFTER_OWN_FAILURE: Duration = Duration::from_secs(5);
const AFTER_OWN_FAILURE_MS: Millis = 5_000;
/// Of what is fleeting so much waits for a service, and nothing that is larger.
const EPHEMERAL_MAX: usize = 100;
const EPHEMERAL_BYTES_MAX: usize = 128 << 10;
/// What was to be told to a service that is registered no more is kept for so long, in case it comes back.
pub(in crate::service) const FORGOTTEN_AFTER_MS: Millis = 7 * 24 * 3_600_000;
/// So many rows of it go in one commit.
const FORGOTTEN_AT_ONCE_MAX: usize = 500;
/// A position that moved no further is not written for that alone.
const UNWRITTEN_POSITIONS_MAX: i64 = 1000;

/// The threads that decide and deliver. Cheap to clone; clones are the same.
#[derive(Clone)]
pub struct ServiceSender(Arc<SenderShared>);

struct SenderShared {
    clock: Clock,
    /// Whether there is any service that is told anything.
    any: AtomicBool,
    state: Mutex<SenderState>,
    news: Condvar,
    ended: Condvar,
}

#[derive(Default)]
struct SenderState {
    homeserver: Weak<Homeserver>,
    services: Arc<[ToldService]>,
    activities: Vec<ServiceActivity>,
    /// Something happened since the last look at the stream.
    moved: bool,
    /// To whom, beside what happened in rooms.
    users: HashSet<UserId>,
    alive: usize,
    stopping: bool,
}

/// What is going on with one service.
#[derive(Default)]
struct ServiceActivity {
    /// A thread is at it.
    busy: bool,
    /// Something came meanwhile.
    again: bool,
    /// What was put off is to be tried all the same.
    forced: bool,
    /// Something failed on this server.
    stuck: bool,
    /// It has not taken what it was sent last: what is fleeting is not kept for it.
    down: bool,
    ephemeral: VecDeque<Json>,
}

impl ServiceSender {
    /// Sends nothing yet.
    pub fn new(clock: &Clock) -> Self {
        Self(Arc::new(SenderShared {
            clock: clock.clone(),
            any: AtomicBool::new(false),
            state: Mutex::default(),
            news: Condvar::new(),
            ended: Condvar::new(),
        }))
    }

    /// Starts deciding and sending, first of all what earlier runs left; where no service is to be told anything, nothing.
    pub fn start(&self, homeserver: &Arc<Homeserver>) -> Result<()> {
        let told = || homeserver.appservices.iter().filter(|service| service.url.is_some());
        let ids: Vec<String> = told().map(|service| service.id.clone()).collect();
        if ids.is_empty() && !homeserver.store.read(|db| db.knows_appservices())? {
            return Ok(());
        }
        let (none, forget_due) = (ids.is_empty(), self.0.clock.now_ms() + FORGOTTEN_AFTER_MS);
        let begun = homeserver.store.write(move |tx| tx.begin_appservices(&ids, forget_due))?;
        let BegunServices { rows, progress, left } = begun;
        for (id, waiting) in left {
            log::warn!(
                "the application service {id:?} is not registered any more: the {waiting} events that wait for it are \
                 kept for a week, and it is told nothing of what happens meanwhile"
            );
        }
        if none {
            return Ok(());
        }
        let of = |(row, service): (ServiceRow, &Arc<Appservice>)| {
            let ServiceRow { key, since, .. } = row;
            ToldService { key, since, service: Arc::clone(service) }
        };
        let services: Arc<[ToldService]> = rows.into_iter().zip(told()).map(of).collect();
        let mut state = lock(&self.0.state);
        state.homeserver = Arc::downgrade(homeserver);
        state.activities.resize_with(services.len(), ServiceActivity::default);
        state.moved = true;
        state.services = Arc::clone(&services);
        self.0.any.store(true, Ordering::Relaxed);
        let sender = self.clone();
        let interest = Interest::new(Arc::clone(&services));
        self.spawn(&mut state, "services", move || sender.decide(interest, progress))?;
        (0..services.len()).for_each(|number| self.poke(&mut state, number, false));
        Ok(())
    }

    /// Ends the threads. Requests under way count neither as taken nor as failed; who waits in one is cut off elsewhere.
    pub fn stop(&self) {
        let mut state = lock(&self.0.state);
        state.stopping = true;
        self.0.news.notify_all();
        let deadline = Instant::now() + STOP_TIMEOUT;
        while state.alive > 0 && Instant::now() < deadline {
            state = wait_timeout(&self.0.ended, state, deadline.saturating_duration_since(Instant::now()));
        }
    }

    /// Takes in what a commit changed. Never blocks for long: it is called on the thread that tells of commits.
    pub fn committed(&self, changes: &Changes) {
        if !self.0.any.load(Ordering::Relaxed) || !changes.concern_clients() {
            return;
        }
        let mut state = lock(&self.0.state);
        state.moved = true;
        for user in changes.woken_users() {
            if !state.users.contains(user) {
                state.users.insert(user.clone());
            }
        }
        drop(state);
        self.0.news.notify_all();
    }

    /// What was put off of a service, for instance since it was not there, is tried now.
    pub fn retry(&self, id: &str) {
        let mut state = lock(&self.0.state);
        let number = state.services.iter().position(|told| told.service.id == id);
        if let Some(number) = number {
            self.poke(&mut state, number, true);
        }
    }

    /// Takes up what is due. When the next thing is.
    pub fn take_up_due(&self, hs: &Homeserver, now: Millis) -> Result<Option<Millis>> {
        self.forget(hs, now)?;
        if !self.0.any.load(Ordering::Relaxed) {
            return hs.store.read(|db| db.next_appservice_due());
        }
        let due = hs.store.read(|db| db.due_appservices(now))?;
        if !due.is_empty() {
            let taken_up = due.clone();
            hs.store.write_lightly(move |tx| {
                taken_up.into_iter().try_for_each(|service| tx.take_up_appservice(service))
            })?;
        }
        let mut state = lock(&self.0.state);
        for number in 0..state.activities.len() {
            let is_due = due.contains(&state.services[number].key);
            if std::mem::take(&mut state.activities[number].stuck) || is_due {
                self.poke(&mut state, number, false);
            }
        }
        drop(state);
        hs.store.read(|db| db.next_appservice_due())
    }

    /// How many services take what they are sent, and how many have not taken it last.
    pub fn by_state(&self) -> [(&'static str, usize); 2] {
        let state = lock(&self.0.state);
        let failing = state.activities.iter().filter(|activity| activity.down).count();
        [("served", state.activities.len() - failing), ("failing", failing)]
    }

    /// Forgets services that have been registered no more for long.
    fn forget(&self, hs: &Homeserver, now: Millis) -> Result<()> {
        for (service, id) in hs.store.read(|db| db.forgotten_appservices(now))? {
            while hs.store.write(move |tx| tx.forget_appservice(service, FORGOTTEN_AT_ONCE_MAX))? {}
            log::info!("what was to be told to the application service {id:?} is forgotten");
        }
        Ok(())
    }

    /// Whether it was told to stop.
    pub(super) fn is_stopping(&self) -> bool {
        lock(&self.0.state).stopping
    }

    fn spawn(&self, state: &mut SenderState, name: &str, body: impl FnOnce() + Send + 'static) -> Result<()> {
        let shared = Arc::clone(&self.0);
        let thread = std::thread::Builder::new().name(name.to_owned()).stack_size(STACK_BYTES);
        thread.spawn(move || {
            if catch_unwind(AssertUnwindSafe(body)).is_err() {
                log::error!("a thread for application services panicked");
            }
            lock(&shared.state).alive -= 1;
            shared.ended.notify_all();
        })?;
        state.alive += 1;
        Ok(())
    }

    /// Has a service looked after.
    fn poke(&self, state: &mut SenderState, number: usize, forced: bool) {
        let Some(activity) = state.activities.get_mut(number).filter(|_| !state.stopping) else { return };
        activity.again = true;
        activity.forced |= forced;
        if std::mem::replace(&mut activity.busy, true) {
            return;
        }
        let sender = self.clone();
        if let Err(error) = self.spawn(state, "service", move || sender.work(number)) {
            log::warn!("no thread for an application service yet: {error}");
            let activity = &mut state.activities[number];
            (activity.busy, activity.stuck) = (false, true);
        }
    }

    /// Decides whom what happens concerns, for as long as the server runs.
    fn decide(&self, mut interest: Interest, progress: i64) {
        let (mut at, mut written) = (progress, progress);
        // After a start nobody knows what came last.
        let mut invites = true;
        loop {
            let (hs, users) = {
                let mut state = lock(&self.0.state);
                while !state.moved && !state.stopping {
                    state = wait(&self.0.news, state);
                }
                if state.stopping {
                    return;
                }
                state.moved = false;
                (state.homeserver.upgrade(), std::mem::take(&mut state.users))
            };
            let Some(hs) = hs else { return };
            invites |= !users.is_empty();
            match self.decide_all(&hs, &mut interest, invites, (&mut at, &mut written)) {
                Ok(()) => {
                    invites = false;
                    self.poke_for_devices(&interest, &users);
                }
                Err(error) => {
                    log::log!(
                        error.level(log::Level::Error),
                        "whom new events concern cannot be decided: {error}"
                    );
                    drop(hs);
                    let mut state = lock(&self.0.state);
                    state.moved = true;
                    state.users.extend(users);
                    let until = Instant::now() + AFTER_OWN_FAILURE;
                    while !state.stopping && Instant::now() < until {
                        let left = until.saturating_duration_since(Instant::now());
                        state = wait_timeout(&self.0.news, state, left);
                    }
                }
            }
        }
    }

    /// Goes on to the end of the stream.
    fn decide_all(
        &self,
        hs: &Homeserver,
        interest: &mut Interest,
        invites: bool,
        (at, written): (&mut i64, &mut i64),
    ) -> Result<()> {
        loop {
            let now = self.0.clock.now_ms();
            let decision = hs.store.read(|db| interest.decide(db, *at, invites, now))?;
            let upto = decision.upto;
            if !decision.queued.is_empty() || upto > *written + UNWRITTEN_POSITIONS_MAX {
                let queued = decision.queued;
                // What the disk does not get is decided again: the events were there before.
                hs.store.write_lightly(move |tx| tx.queue_for_appservices(&queued, upto))?;
                *written = upto;
            }
            *at = upto;
            self.keep_ephemeral(decision.ephemeral);
            self.poke_all(&decision.told);
            if !decision.more || self.is_stopping() {
                return Ok(());
            }
        }
    }

    /// Keeps what is fleeting until the next transaction, if the service is there.
    fn keep_ephemeral(&self, ephemeral: Vec<(usize, Value)>) {
        let mut state = lock(&self.0.state);
        for (number, event) in ephemeral {
            let Some(event) =
                to_raw_value(&event).ok().filter(|event| event.get().len() <= EPHEMERAL_BYTES_MAX)
            else {
                continue;
            };
            let activity = &mut state.activities[number];
            if activity.down {
                continue;
            }
            if activity.ephemeral.len() >= EPHEMERAL_MAX {
                activity.ephemeral.pop_front();
            }
            activity.ephemeral.push_back(event);
            self.poke(&mut state, number, false);
        }
    }

    /// Takes out the first of it, up to so many bytes.
    fn take_ephemeral(&self, number: usize, mut bytes: usize) -> Vec<Json> {
        let mut taken = Vec::new();
        let waiting = &mut lock(&self.0.state).activities[number].ephemeral;
        while let Some(event) = waiting.pop_front() {
            if event.get().len() > bytes {
                waiting.push_front(event);
                break;
            }
            bytes -= event.get().len();
            taken.push(event);
        }
        taken
    }

    /// The services whose users' devices may have got something.
    fn poke_for_devices(&self, interest: &Interest, users: &HashSet<UserId>) {
        let mut concerned = Services::new();
        users.iter().for_each(|user| concerned.extend(interest.of_user(user.as_str())));
        let services = Arc::clone(&lock(&self.0.state).services);
        concerned.retain(|number| services[*number].service.msc3202);
        self.poke_all(&concerned);
    }

    fn poke_all(&self, services: &Services) {
        let mut state = lock(&self.0.state);
        services.iter().for_each(|number| self.poke(&mut state, *number, false));
    }

    /// Sends a service what there is, one transaction after the other.
    fn work(&self, number: usize) {
        loop {
            let (hs, told, forced) = {
                let mut state = lock(&self.0.state);
                let (hs, told) = (state.homeserver.upgrade(), state.services[number].clone());
                let activity = &mut state.activities[number];
                activity.again = false;
                (hs.filter(|_| !state.stopping), told, std::mem::take(&mut state.activities[number].forced))
            };
            let done = match &hs {
                Some(hs) => catch_unwind(AssertUnwindSafe(|| {
                    deliver(hs, &told, forced, |bytes| self.take_ephemeral(number, bytes))
                }))
                .unwrap_or_else(|_| Err(Error::internal("a panic"))),
                None => Ok(Delivery::Nothing),
            };
            let mut state = lock(&self.0.state);
            let stopping = state.stopping || hs.is_none();
            let activity = &mut state.activities[number];
            let goes_on = match &done {
                Ok(Delivery::Taken) => {
                    activity.down = false;
                    true
                }
                // It has not said that it is there again, but is asked at once.
                Ok(Delivery::MadeSmaller) => true,
                Ok(Delivery::Nothing) => activity.again,
                Ok(Delivery::PutOff) => {
                    activity.down = true;
                    activity.ephemeral.clear();
                    activity.forced
                }
                Err(error) => {
                    let id = &told.service.id;
                    log::log!(
                        error.level(log::Level::Error),
                        "the application service {id:?} cannot be looked after: {error}"
                    );
                    activity.stuck = true;
                    false
                }
            };
            if !goes_on || stopping {
                activity.busy = false;
                let stuck = activity.stuck;
                drop(state);
                if let (true, Some(hs)) = (stuck, hs) {
                    hs.scheduler.no_later_than(self.0.clock.now_ms() + AFTER_OWN_FAILURE_MS);
                }
                return;
            }
        }
    }
}
