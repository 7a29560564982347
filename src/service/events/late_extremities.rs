//! Catching up with late extremities: events that were stored when there was no time to resolve the state of their
//! room.
//!
//! One room after the other, as its allowance has it (`limits/resolution_allowance.rs`), and all that came until then
//! at once. That a room is behind is a row, so nothing is forgotten by a restart.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Condvar, Mutex, Weak};
use std::thread;
use std::time::{Duration, Instant};

use super::resolve;
use crate::error::{Error, Result};
use crate::locks::{lock, wait_timeout, wait_timeout_while};
use crate::order::Gather;
use crate::protocol::pdu::PREV_EVENTS_MAX;
use crate::service::Homeserver;
use crate::service::events::Events;
use crate::service::events::resolve::{ResolutionBudget, StateSet};
use crate::store::rooms::late_extremities::{LateExtremity, extremities_with};
use crate::store::rooms::state::StateRef;
use crate::store::{Changes, Db, EventKey, Room, RoomKey, SnapshotId};

/// Late extremities that are caught up with at once.
const CAUGHT_UP_AT_ONCE_MAX: usize = 10;
/// When a room has moved on meanwhile, or something of ours failed.
const MORE_PAUSE: Duration = Duration::from_millis(100);
const FAILURE_PAUSE: Duration = Duration::from_secs(30);

/// The thread that catches up. Clones are the same.
#[derive(Clone, Default)]
pub struct CatchUpWorker {
    shared: Arc<BehindShared>,
}

#[derive(Default)]
struct BehindShared {
    state: Mutex<BehindRooms>,
    moved: Condvar,
}

#[derive(Default)]
struct BehindRooms {
    /// The rooms that are behind, and when they have their turn.
    rooms: HashMap<RoomKey, Instant>,
    /// None before the start.
    homeserver: Weak<Homeserver>,
    running: bool,
    stop: bool,
}

impl CatchUpWorker {
    /// Hears what a commit changed. Never blocks for long.
    pub(in crate::service) fn committed(&self, changes: &Changes) {
        self.are_behind(changes.behind.iter().copied());
    }

    fn are_behind(&self, rooms: impl Iterator<Item = RoomKey>) {
        let mut state = lock(&self.shared.state);
        for room in rooms {
            state.rooms.entry(room).or_insert_with(Instant::now);
        }
        if !state.rooms.is_empty()
            && !state.running
            && let Err(e) = self.begin(&mut state)
        {
            log::warn!("no thread to catch up yet: {e}");
        }
        drop(state);
        self.shared.moved.notify_all();
    }

    /// From now on rooms that are behind are caught up with, on a thread that is begun with the first of them.
    pub(in crate::service) fn start(&self, hs: &Arc<Homeserver>) -> Result<()> {
        lock(&self.shared.state).homeserver = Arc::downgrade(hs);
        self.are_behind(hs.store.read(|db| db.rooms_with_late_extremities())?.into_iter());
        Ok(())
    }

    /// Begins the thread. It keeps only a weak hold of the homeserver, and ends with it.
    fn begin(&self, state: &mut BehindRooms) -> std::io::Result<()> {
        if state.stop || state.homeserver.strong_count() == 0 {
            return Ok(());
        }
        let (shared, weak) = (self.shared.clone(), state.homeserver.clone());
        thread::Builder::new().name("catch-up".to_owned()).spawn(move || {
            run(&shared, &weak);
            lock(&shared.state).running = false;
            shared.moved.notify_all();
        })?;
        state.running = true;
        Ok(())
    }

    /// Stops the thread, and waits a moment for it.
    pub(in crate::service) fn stop(&self) {
        const STOP_TIMEOUT: Duration = Duration::from_millis(500);
        let mut state = lock(&self.shared.state);
        state.stop = true;
        self.shared.moved.notify_all();
        drop(wait_timeout_while(&self.shared.moved, state, STOP_TIMEOUT, |state| state.running));
    }
}

fn run(shared: &BehindShared, weak: &Weak<Homeserver>) {
    let mut state = lock(&shared.state);
    loop {
        if state.stop {
            return;
        }
        let now = Instant::now();
        let next = state.rooms.iter().min_by_key(|(_, at)| **at).map(|(room, at)| (*room, *at));
        let Some((room, at)) = next else {
            // Whoever drops the homeserver without a word is noticed some day.
            state = wait_timeout(&shared.moved, state, Duration::from_secs(60));
            if weak.strong_count() == 0 {
                return;
            }
            continue;
        };
        if at > now {
            state = wait_timeout(&shared.moved, state, at - now);
            continue;
        }
        state.rooms.remove(&room);
        drop(state);
        let Some(hs) = weak.upgrade() else { return };
        let again = hs.events().catch_up(room).unwrap_or_else(|e| {
            log::log!(
                e.level(log::Level::Error),
                "the state of room {room} could not be brought up to date: {e}"
            );
            Some(FAILURE_PAUSE)
        });
        drop(hs);
        state = lock(&shared.state);
        if let Some(pause) = again {
            state.rooms.insert(room, Instant::now() + pause);
        }
    }
}

/// What a room comes to with some of its late extremities.
struct CaughtUp {
    room: Room,
    late: Vec<LateExtremity>,
    /// The states that were resolved.
    states: BTreeSet<SnapshotId>,
    state: StateRef,
}

impl Events<'_> {
    /// Brings the current state of a room up to date, as far as the room's allowance goes. Gives when to come again, if
    /// there is more to do.
    pub(in crate::service) fn catch_up(&self, key: RoomKey) -> Result<Option<Duration>> {
        let room_id = self.store.read(|db| db.room_by_key(key))?.room_id;
        if let Some(rest) = self.resolution_allowance.pause_of_late(&room_id) {
            return Ok(Some(rest));
        }
        let late = self.store.write(move |tx| {
            if tx.room_by_key(key)?.resident {
                return tx.take_late_extremities(key, CAUGHT_UP_AT_ONCE_MAX);
            }
            // Whoever of us comes back gets the room's state from others.
            tx.forget_late_extremities(key)?;
            Ok(Vec::new())
        })?;
        if late.is_empty() {
            return Ok(None);
        }
        let (caught, events_examined) = {
            let _turn = self.resolution_allowance.wait_for_turn();
            self.store.read(|db| Ok((resolve_late(db, key, late)?, db.events_examined())))?
        };
        self.resolution_allowance.spend_on_late(&room_id, events_examined);
        let (done, more) = self.store.write(move |tx| {
            let done = commit_caught_up(tx, &caught)?;
            Ok((done, !tx.late_extremities(key)?.is_empty()))
        })?;
        Ok((more || !done).then_some(MORE_PAUSE))
    }
}

fn resolve_late(db: &Db<'_>, key: RoomKey, late: Vec<LateExtremity>) -> Result<CaughtUp> {
    let room = db.room_by_key(key)?;
    let states = states_of(db, &room, &late)?;
    let set = |state: &SnapshotId| StateSet { state: StateRef::snapshot(*state), unstored: None };
    let sets = states.iter().map(set).collect();
    let state = resolve::resolve(db, room.version, sets, ResolutionBudget::Unlimited)?;
    let state = state.ok_or_else(|| Error::internal("nothing resolved"))?;
    Ok(CaughtUp { room, late, states, state })
}

/// The states after what would be the room's forward extremities. Of more forks than an event can join, the current
/// state stands for those that are forward extremities already, as it does for any event.
fn states_of(db: &Db<'_>, room: &Room, late: &[LateExtremity]) -> Result<BTreeSet<SnapshotId>> {
    let extremities = extremities_with(&db.forward_extremities(room.key)?, late);
    if extremities.len() > PREV_EVENTS_MAX + CAUGHT_UP_AT_ONCE_MAX {
        return Ok(late.iter().map(|late| late.state_after).chain(room.state).gather());
    }
    Ok(extremities.into_iter().map(|(_, state)| state).gather())
}

/// Makes them forward extremities, if the room is still as it was looked at, or alike. False: it is not.
fn commit_caught_up(tx: &mut crate::store::Tx<'_>, caught: &CaughtUp) -> Result<bool> {
    let room = tx.room_by_key(caught.room.key)?;
    let there = tx.late_extremities(room.key)?;
    let is_there = |received: &LateExtremity| there.iter().any(|late| late.key == received.key);
    if !room.resident
        || !caught.late.iter().all(is_there)
        || states_of(tx, &room, &caught.late)? != caught.states
    {
        return Ok(false);
    }
    let extremities: Vec<EventKey> = extremities_with(&tx.forward_extremities(room.key)?, &caught.late)
        .into_iter()
        .map(|(key, _)| key)
        .collect();
    let late: Vec<EventKey> = caught.late.iter().map(|late| late.key).collect();
    tx.catch_up(&room, &late, &extremities, &caught.state)?;
    Ok(true)
}
