//! The one timer: it finds what is due in the database and has it done by a few threads. What is due is a row with a
//! time, so a crash forgets nothing, and a wake that is lost costs only time.
//!
//! A job that is taken up is first put off by a while, so that whatever happens to the thread that does it, it comes up
//! again, and never twice at once.

mod delayed;
mod failures;
mod imports;
mod invites;
mod joins;
mod memberships;
mod owed;
mod pending;
mod set_clock;

use std::collections::{HashMap, HashSet};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use self::failures::take_up;
use crate::bounded::BoundedMap;
use crate::clock::{Clock, ClockWatch, Millis};
use crate::error::Result;
use crate::locks::{lock, wait_timeout, wait_until};
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::background::scheduler::memberships::PursuedMembership;
use crate::store::{Changes, RoomKey};

/// How many jobs are done at once of those that have no slots of their own, and how many of these join the branches of
/// rooms, which may be much work, and whose servers make them.
const WORKERS_MAX: usize = 4;
const MERGERS_MAX: usize = 2;
/// How many device lists are fetched at once, beside those.
const LIST_FETCHERS_MAX: usize = 12;
/// How many of them from one server.
const LIST_FETCHERS_OF_SERVER_MAX: usize = 2;
/// For how long a job is left alone if something failed on this server.
const AFTER_FAILURE_MS: Millis = 60_000;
/// How long such a room stays taken if not even that could be written down.
const UNWRITTEN_REST: Duration = Duration::from_secs(5);
/// When the database is looked at again that could not be read, and what is due is taken up again for which there was no thread.
const AFTER_FAILED_LOOK_MS: Millis = 5_000;
/// How often the clock is looked at, if nothing is due before. Nothing else happens then, unless something is due.
const CLOCK_INTERVAL_MS: Millis = 250;
const CLOCK_INTERVAL: Duration = Duration::from_millis(CLOCK_INTERVAL_MS.unsigned_abs());
/// How long until the database is looked at again although nothing is known to be due.
const LOOK_INTERVAL_MS: Millis = 60_000;

/// For how long a job is put off when it is taken up: longer than a job may take.
const LEASE_MS: Millis = 30 * 60 * 1000;

/// The timer. Dropping it does not stop its threads; `stop` does. Clones are the same timer.
#[derive(Clone, Default)]
pub struct Scheduler {
    shared: Arc<SchedulerShared>,
}

#[derive(Default)]
struct SchedulerShared {
    state: Mutex<SchedulerState>,
    moved: Condvar,
    /// An invite was handed out, or could not be.
    invited: Condvar,
    any_waiting: AtomicBool,
    /// There was no thread for something since the last look.
    lacks_threads: AtomicBool,
    /// No thread can be begun.
    #[cfg(test)]
    refuses_threads: AtomicBool,
}

#[derive(Default)]
struct SchedulerState {
    /// Something may be due that was not known when the database was last looked at.
    look: bool,
    /// When something is due that was not known then.
    look_by: Option<Millis>,
    stop: bool,
    /// What is being done, by names of its own, beside the joining of branches.
    working: Vec<String>,
    merging: usize,
    /// Memberships elsewhere of which something is told, or asked, a thread for each.
    pursuing: Vec<PursuedMembership>,
    /// The users whose device lists are being fetched, a thread for each.
    listing: Vec<UserId>,
    /// Rooms whose waiting events are being pursued, one thread each.
    fetching: HashSet<RoomKey>,
    /// Those of them that we are not in, with a server that sent something of what waits there.
    fetching_remote: Vec<(RoomKey, ServerName)>,
    /// The invites that are being handed out, a thread for each, and to which servers.
    inviting: Vec<(DueRow, ServerName)>,
    /// The users who are being joined, with the room, a thread for each.
    joining: Vec<DueRow>,
    /// The delayed events that are being sent, a thread for each, and whose they are.
    sending: HashMap<String, UserId>,
    /// Rooms whose branches are to be joined. A hint: the next event in such a room says it again.
    forked: HashSet<RoomKey>,
    /// The timer's own thread runs.
    ticking: bool,
    /// Jobs that wait for a server to come back, by the server's name. A convenience: they are due some day anyway.
    waiting: BoundedMap<ServerName, AwaitedServer, AWAITED_SERVERS_MAX>,
}

impl SchedulerState {
    /// How many of the workers' threads there are.
    fn at_work(&self) -> usize {
        self.working.len() + self.merging
    }

    /// Whether anything is being done.
    fn is_busy(&self) -> bool {
        self.at_work() > 0
            || !self.listing.is_empty()
            || !self.pursuing.is_empty()
            || !self.fetching.is_empty()
            || !self.fetching_remote.is_empty()
            || !self.inviting.is_empty()
            || !self.joining.is_empty()
            || !self.sending.is_empty()
    }
}

/// A row of the database that is due.
type DueRow = (RoomId, UserId);

/// What waits for one server.
struct AwaitedServer {
    since: Instant,
    jobs: HashSet<DueRow>,
    /// Whether device lists of its users are to be fetched.
    device_lists: bool,
}

impl AwaitedServer {
    fn new() -> Self {
        Self { since: Instant::now(), jobs: HashSet::new(), device_lists: false }
    }
}

/// A server that speaks, but does not do what is asked of it, is not asked more often than this.
const AWAITED_SERVER_REST: Duration = Duration::from_secs(5);

/// Of how many servers it is remembered that jobs wait for them.
const AWAITED_SERVERS_MAX: usize = 1000;

impl SchedulerShared {
    /// Waits for so long, or until the stop. False: that came.
    fn rest(&self, how_long: Duration) -> bool {
        let until = Instant::now() + how_long;
        let mut state = lock(&self.state);
        while !state.stop {
            let Ok(woken) = wait_until(&self.moved, state, until) else { return true };
            state = woken;
        }
        false
    }

    fn wake(&self) {
        let mut state = lock(&self.state);
        state.look = true;
        drop(state);
        self.moved.notify_all();
    }

    /// Has something done by a thread of its own. False: there is none to be had now, and what the job held was given back.
    fn begin(&self, name: &str, job: impl FnOnce() + Send + 'static) -> bool {
        let thread = thread::Builder::new().name(name.to_owned());
        #[cfg(test)]
        let thread = match self.refuses_threads.load(Ordering::Relaxed) {
            true => thread.stack_size(usize::MAX / 2),
            false => thread,
        };
        let Err(error) = thread.spawn(job) else { return true };
        if !self.lacks_threads.swap(true, Ordering::Relaxed) {
            log::warn!("no thread yet for what is due: {error}");
        }
        false
    }
}

impl Scheduler {
    /// Starts the timer's thread. It keeps only a weak hold of the homeserver, and ends with it.
    pub fn start(&self, hs: &Arc<Homeserver>) -> Result<()> {
        let (shared, weak, clock) = (self.shared.clone(), Arc::downgrade(hs), hs.clock.clone());
        let watch = ClockWatch::new(&clock);
        lock(&shared.state).ticking = true;
        thread::Builder::new().name("timer".to_owned()).spawn(move || {
            run(&shared, &weak, &clock, watch);
            lock(&shared.state).ticking = false;
            shared.moved.notify_all();
        })?;
        Ok(())
    }

    /// Waits for so long before another server is asked again, or until the stop. False: there is no again.
    pub fn rest(&self, how_long: Duration) -> bool {
        self.shared.rest(how_long)
    }

    /// Whether anything is done in the background.
    pub fn is_running(&self) -> bool {
        let state = lock(&self.shared.state);
        state.ticking && !state.stop
    }

    /// Whether it was told to stop.
    pub fn is_stopping(&self) -> bool {
        lock(&self.shared.state).stop
    }

    /// Says that something may be due sooner than the timer knows.
    pub fn wake(&self) {
        self.shared.wake();
    }

    /// Says that something is due at this time, which the timer may not know yet. It need not be looked for before.
    pub fn no_later_than(&self, at: Millis) {
        let mut state = lock(&self.shared.state);
        state.look_by = Some(state.look_by.map_or(at, |known| known.min(at)));
    }

    /// Takes in what a commit changed. Never blocks for long: it is called on the thread that tells of commits.
    pub fn committed(&self, changes: &Changes, now: Millis) {
        lock(&self.shared.state).forked.extend(&changes.forked);
        match changes.due {
            // The timer sleeps at its next look at the clock what is left of it.
            Some(due) if due > now + CLOCK_INTERVAL_MS && changes.forked.is_empty() => {
                self.no_later_than(due)
            }
            _ => self.wake(),
        }
    }

    /// Remembers that a job could not be done because these servers could not be reached.
    pub fn waits_for(&self, servers: &[ServerName], room: &RoomId, user: &UserId) {
        let mut state = lock(&self.shared.state);
        for server in servers {
            if let Some(waiting) = state.waiting.try_get_or_insert_with(server.clone(), AwaitedServer::new) {
                waiting.jobs.insert((room.clone(), user.clone()));
            }
        }
        self.shared.any_waiting.store(!state.waiting.is_empty(), Ordering::Relaxed);
    }

    /// Remembers that device lists could not be fetched because this server could not be reached.
    pub fn lists_wait_for(&self, server: &ServerName) {
        let mut state = lock(&self.shared.state);
        if let Some(waiting) = state.waiting.try_get_or_insert_with(server.clone(), AwaitedServer::new) {
            waiting.device_lists = true;
        }
        self.shared.any_waiting.store(!state.waiting.is_empty(), Ordering::Relaxed);
    }

    /// A server spoke to us: what waited for it is due now. Cheap where nothing waits.
    pub fn peer_spoke(&self, hs: &Homeserver, server: &ServerName) {
        if !self.shared.any_waiting.load(Ordering::Relaxed) {
            return;
        }
        let AwaitedServer { jobs, device_lists, .. } = {
            let mut state = lock(&self.shared.state);
            if state.waiting.get(server).is_none_or(|waiting| waiting.since.elapsed() < AWAITED_SERVER_REST) {
                return;
            }
            let Some(waiting) = state.waiting.remove(server) else { return };
            waiting
        };
        let (now, speaker) = (hs.clock.now_ms(), server.clone());
        let hurried = hs.store.write(move |tx| {
            if device_lists {
                tx.hasten_device_lists(&speaker, now)?;
            }
            jobs.iter().try_for_each(|(room, user)| {
                tx.hasten_remote_membership(room, user, now)?;
                tx.hasten_owed_invite(room, user, now)?;
                tx.hasten_owed_join(room, user, now)
            })
        });
        match hurried {
            Ok(()) => self.wake(),
            Err(error) => log::log!(
                error.level(log::Level::Error),
                "what waited for {server} could not be hastened: {error}"
            ),
        }
    }

    /// Waits until something about invites holds, but no longer than until then, and not beyond the stop.
    pub fn wait_for_invites(&self, until: Instant, mut holds: impl FnMut() -> bool) {
        while !holds() {
            let left = until.saturating_duration_since(Instant::now());
            let state = lock(&self.shared.state);
            if left.is_zero() || state.stop || !state.ticking {
                return;
            }
            // One that is done between the look and the wait costs no more than this.
            drop(wait_timeout(&self.shared.invited, state, left.min(CLOCK_INTERVAL)));
        }
    }

    /// Stops the timer, and waits a moment for the jobs that are under way (whose requests are cut off by then). Those
    /// that have not come to an end are repeated after the next start.
    pub fn stop(&self) {
        const STOP_TIMEOUT: Duration = Duration::from_millis(500);
        let mut state = lock(&self.shared.state);
        state.stop = true;
        self.shared.moved.notify_all();
        self.shared.invited.notify_all();
        let until = Instant::now() + STOP_TIMEOUT;
        while state.is_busy() || state.ticking {
            let Ok(woken) = wait_until(&self.shared.moved, state, until) else { return };
            state = woken;
        }
    }
}

/// How long the timer sleeps before it looks at the clock. What is overdue waits for threads, and is no reason to hurry.
fn nap(now: Millis, due: Option<Millis>) -> Duration {
    match u64::try_from(due.map_or(0, |due| due.saturating_sub(now))) {
        Ok(left @ 1..) => CLOCK_INTERVAL.min(Duration::from_millis(left)),
        _ => CLOCK_INTERVAL,
    }
}

fn run(shared: &Arc<SchedulerShared>, weak: &Weak<Homeserver>, clock: &Clock, mut watch: ClockWatch) {
    let mut next = Some(Millis::MIN);
    // When what is put off is looked to once more, which could not be done.
    let started = weak.upgrade().filter(|hs| !set_clock::hasten_after_start(hs));
    let mut hasten_at = started.map(|_| Instant::now() + UNWRITTEN_REST);
    loop {
        {
            let mut state = lock(&shared.state);
            if state.stop {
                return;
            }
            if !state.look {
                let due = next.into_iter().chain(state.look_by).min();
                state = wait_timeout(&shared.moved, state, nap(clock.now_ms(), due));
            }
            if state.stop {
                return;
            }
            if state.at_work() >= WORKERS_MAX
                && state.listing.len() >= LIST_FETCHERS_MAX
                && memberships::all_taken(&state)
                && pending::all_taken(&state)
                && state.inviting.len() >= invites::INVITERS_MAX
                && state.joining.len() >= joins::JOINERS_MAX
                && state.sending.len() >= delayed::SENDERS_MAX
            {
                // Whoever finishes wakes us.
                state.look = false;
                next = Some(Millis::MIN);
                continue;
            }
            if std::mem::take(&mut state.look) {
                next = Some(Millis::MIN);
            }
        }
        let Some(hs) = weak.upgrade() else { return };
        hs.outgoing.relieve();
        if set_clock::tell_of_it(&mut watch, &hs) {
            hasten_at = Some(Instant::now());
        }
        if hasten_at.is_some_and(|at| at <= Instant::now()) {
            let later = Instant::now() + UNWRITTEN_REST;
            hasten_at = Some(later).filter(|_| !set_clock::hasten_all(&hs));
            next = Some(Millis::MIN);
        }
        let now = hs.clock.now_ms();
        {
            let mut state = lock(&shared.state);
            let known = state.look_by.take_if(|at| *at <= now);
            if known.is_none() && next.is_some_and(|next| now < next) {
                continue;
            }
        }
        let found = look(shared, &hs, now);
        let failed = found.is_err() || shared.lacks_threads.swap(false, Ordering::Relaxed);
        next = Some(match found {
            Ok(Some(due)) => due.min(now + LOOK_INTERVAL_MS),
            Ok(None) => now + LOOK_INTERVAL_MS,
            Err(error) => {
                log::log!(error.level(log::Level::Error), "the timer could not look at what is due: {error}");
                now + AFTER_FAILED_LOOK_MS
            }
        });
        if failed {
            // What could not be begun has woken the timer, and would over and over.
            lock(&shared.state).look = false;
            next = Some(now + AFTER_FAILED_LOOK_MS);
        }
    }
}

/// Takes up what is due, as far as there are threads for it, and returns when the next thing is.
fn look(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<Option<Millis>> {
    memberships::pursue_memberships(shared, hs, now)?;
    fetch_device_lists(shared, hs, now)?;
    merge_forks(shared, hs);
    pending::pursue_pending_events(shared, hs, now)?;
    owed::take_up_first(shared, hs, now, &owed::GUESTS)?;
    owed::take_up_first(shared, hs, now, &owed::DELETIONS)?;
    imports::delete_leftovers(shared, hs)?;
    owed::take_up_first(shared, hs, now, &owed::BANS)?;
    owed::take_up_first(shared, hs, now, &owed::UPGRADES)?;
    owed::take_up_first(shared, hs, now, &owed::PROFILES)?;
    owed::take_up_first(shared, hs, now, &owed::DEACTIVATIONS)?;
    owed::take_up_first(shared, hs, now, &owed::LOST_EVENTS)?;
    invites::hand_out_invites(shared, hs, now)?;
    joins::join_who_was_let_in(shared, hs, now)?;
    delayed::send_delayed_events(shared, hs, now)?;
    let next_service = hs.service_sender.take_up_due(hs, now)?;
    let more_keys = hs.devices().empty_deleted_key_backups()?;
    let more_to_delete = (hs.devices().empty_ended_lines()? || more_keys).then_some(now);
    let more_to_index = hs.rooms().index_texts_if_behind()?.then_some(now);
    let next = hs.store.read(|db| {
        Ok([
            db.next_remote_membership_due()?,
            db.next_pending_due()?,
            db.next_device_list_due()?,
            db.next_owed_invite_due()?,
            db.next_owed_join_due()?,
            db.next_delayed_event_due()?,
            db.next_guest_removal_due()?,
            db.next_room_deletion_due()?,
            db.next_owed_bans_due()?,
            db.next_owed_upgrade_due()?,
            db.next_owed_profile_due()?,
            db.next_deactivation_due()?,
            db.next_room_behind_backup_due()?,
        ])
    })?;
    Ok(next
        .into_iter()
        .chain([hs.ephemeral().expire_typing(now)?, hs.ephemeral().expire_presence(now)?, more_to_delete])
        .chain([hs.syncing().sweep_sliding_connections(now)?, hs.media().sweep_media(now)?])
        .chain([more_to_index, hs.push().sweep_notifications(now)?, hs.events().sweep_spare_states(now)?])
        .chain([hs.devices().sweep_device_changes(now)?, next_service])
        .chain([hs.rooms().sweep_spaces().map(|rest| now + rest)])
        .chain([hs.notifier.publish_gathered(0, &HashSet::new()).map(|rest| now + rest)])
        .flatten()
        .min())
}

/// Fetches the device lists that are due, on threads of their own: they may be many, and nothing else waits for them.
fn fetch_device_lists(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>, now: Millis) -> Result<()> {
    let mut busy = lock(&shared.state).listing.clone();
    // Those that are being fetched may be due again, and come first.
    let (of_server, most) = (2 * LIST_FETCHERS_OF_SERVER_MAX, 8 * LIST_FETCHERS_MAX);
    let due = hs.devices().device_lists_to_fetch(now, (of_server, most), |user| {
        let of_server = busy.iter().filter(|other| other.server_name() == user.server_name()).count();
        let may =
            busy.len() < LIST_FETCHERS_MAX && of_server < LIST_FETCHERS_OF_SERVER_MAX && !busy.contains(user);
        if may {
            busy.push(user.clone());
        }
        may
    })?;
    for user in due {
        lock(&shared.state).listing.push(user.clone());
        let (listing, hs) = (ListingGuard(shared.clone(), user.clone()), hs.clone());
        let begun = shared.begin("lists", move || {
            if let Err(error) = hs.devices().fetch_device_list(&user) {
                log::log!(error.level(log::Level::Error), "the devices of {user} cannot be kept: {error}");
            }
            drop(hs);
            drop(listing);
        });
        if !begun {
            break;
        }
    }
    Ok(())
}

/// A device list that is being fetched, given back also when its thread panics.
struct ListingGuard(Arc<SchedulerShared>, UserId);

impl Drop for ListingGuard {
    fn drop(&mut self) {
        lock(&self.0.state).listing.retain(|user| *user != self.1);
        self.0.wake();
    }
}

/// Something that is being worked at, counted out also when the thread panics.
struct WorkingGuard(Arc<SchedulerShared>, String);

impl WorkingGuard {
    /// None: it is being done already, or `most` are at work.
    fn new(shared: &Arc<SchedulerShared>, what: String, most: usize) -> Option<Self> {
        let mut state = lock(&shared.state);
        if state.at_work() >= most || state.working.contains(&what) {
            return None;
        }
        state.working.push(what.clone());
        Some(Self(shared.clone(), what))
    }
}

impl Drop for WorkingGuard {
    fn drop(&mut self) {
        lock(&self.0.state).working.retain(|what| *what != self.1);
        self.0.wake();
    }
}

/// Joins the branches of rooms, on a thread of its own.
fn merge_forks(shared: &Arc<SchedulerShared>, hs: &Arc<Homeserver>) {
    let forked = {
        let mut state = lock(&shared.state);
        if state.at_work() >= WORKERS_MAX || state.merging >= MERGERS_MAX || state.forked.is_empty() {
            return;
        }
        state.merging += 1;
        std::mem::take(&mut state.forked)
    };
    let (merging, worker, rooms) = (MergingGuard(shared.clone()), hs.clone(), forked.clone());
    let begun = shared.begin("due", move || {
        rooms.into_iter().for_each(|room| worker.events().merge_forks(room));
        // In this order: who waits for the end of the work wants the homeserver back.
        drop(worker);
        drop(merging);
    });
    if !begun {
        lock(&shared.state).forked.extend(forked);
    }
}

/// Branches that are being joined, given back also when the thread panics.
struct MergingGuard(Arc<SchedulerShared>);

impl Drop for MergingGuard {
    fn drop(&mut self) {
        lock(&self.0.state).merging -= 1;
        self.0.wake();
    }
}
