//! Becoming resident: the import of the room that `send_join` gave, as a whole. Until this server enters the room nothing of
//! it is anybody's: what the answer shows has passed every check, but which room it is rests on the word of the server that
//! shows it, and so does the signature of a server that cannot be asked any more.

use std::collections::HashMap;
use std::hash::{BuildHasher, RandomState};
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::{RoomId, RoomVersion, VerifiedPdu};
use crate::random;
use crate::service::Homeserver;
use crate::service::keys::doubts::Doubts;
use crate::service::keys::verify::check;
use crate::service::membership::Memberships;
use crate::store::rooms::append::{Append, Current};
use crate::store::rooms::deletions::{DeletionStage, RoomDeletion};
use crate::store::rooms::room_import::StagedEvents;
use crate::store::rooms::state::StateRef;
use crate::store::rooms::vouched_events::Contradiction;
use crate::store::{RoomKey, Status, Store, Tx};

/// Up to so many events, and bytes of them, are kept in memory until this server enters the room.
const HELD_EVENTS_MAX: usize = 1000;
const HELD_BYTES_MAX: usize = 4 << 20;
/// How many events are staged at once: others write in between. So many are deleted at once.
const EVENTS_PER_WRITE_MAX: usize = 1000;
/// So many events that rest on another server's word, and that are not shown again, are checked once more, in this time.
const CHECKED_AGAIN_MAX: usize = 500;
const CHECK_AGAIN_TIMEOUT: Duration = Duration::from_secs(30);
/// For how long a join waits until what there is of the room from before has gone, and how often it looks.
const PURGE_TIMEOUT: Duration = Duration::from_secs(600);
const PURGE_LOOK_INTERVAL: Duration = Duration::from_millis(100);

/// A whole room at hand, every event of it checked: format, signatures, hash, and the auth rules against its auth
/// events.
#[derive(Clone)]
pub struct ImportedRoom {
    /// The room's version.
    pub version: RoomVersion,
    /// The room.
    pub room_id: RoomId,
    /// The events that the state rests on, beside the state itself.
    pub auth_chain: Vec<VerifiedPdu>,
    /// The state before the join.
    pub state: Vec<VerifiedPdu>,
    /// Our join.
    pub join: VerifiedPdu,
}

/// A room that is being imported. Its events are nobody's until this server becomes resident in one transaction at the
/// end. If that never comes, nothing of them stays.
pub struct RoomImport<'h> {
    hs: &'h Homeserver,
    room_id: RoomId,
    version: RoomVersion,
    staged: StagedEvents,
    /// Those that came since, each with whether it is part of the state.
    held: Vec<(VerifiedPdu, bool)>,
    held_bytes: usize,
    events: usize,
    /// Whether whoever joins waits until what there is of the room from before has gone. The timer's threads do not: they are
    /// few, and it takes one of them to have it go.
    pub(super) waits: bool,
    /// What has its event in the state already, and which: hashes, with which nobody can reckon.
    places: HashMap<u64, u64>,
    hasher: RandomState,
}

/// What imports have left behind, to be deleted in the background.
#[derive(Debug)]
pub struct ImportLeftovers {
    ended: Mutex<Vec<StagedEvents>>,
    /// The number of the first event that was staged since we started. What lies before it was never entered.
    first: Arc<AtomicI64>,
    /// Whether that was looked for.
    found: AtomicBool,
}

impl Default for ImportLeftovers {
    fn default() -> Self {
        Self {
            ended: Mutex::default(),
            first: Arc::new(AtomicI64::new(i64::MAX)),
            found: AtomicBool::new(false),
        }
    }
}

impl ImportLeftovers {
    fn add(&self, staged: StagedEvents) {
        if !staged.is_empty() {
            lock(&self.ended).push(staged);
        }
    }

    /// Whether there are any.
    pub(in crate::service) fn any(&self) -> bool {
        !lock(&self.ended).is_empty()
    }

    /// What is stored of imports from before we started was never entered.
    pub(in crate::service) fn find(&self, store: &Store) -> Result<()> {
        if !self.found.load(Ordering::Relaxed) {
            // Whoever stages says so before anybody can see it.
            let all = store.read(|db| db.all_staged_events())?;
            self.add(all.before(self.first.load(Ordering::SeqCst)));
            self.found.store(true, Ordering::Relaxed);
        }
        Ok(())
    }

    /// Deletes them, a portion at a time, as long as it may go on.
    pub(in crate::service) fn delete(&self, store: &Store, goes_on: impl Fn() -> bool) -> Result<()> {
        while goes_on() {
            let Some(staged) = lock(&self.ended).last().copied() else { return Ok(()) };
            if store.write_lightly(move |tx| tx.delete_staged_events(staged, EVENTS_PER_WRITE_MAX))? {
                lock(&self.ended).retain(|other| *other != staged);
            }
        }
        Ok(())
    }
}

/// What came of a room that was to be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportOutcome {
    /// This server is in the room now.
    BecameResident,
    /// It was in the room already: another local user came in meanwhile, and the room has a state of its own here.
    /// Nothing was done.
    WasResident,
}

impl<'h> Memberships<'h> {
    /// Begins the import of a room.
    pub fn begin_import(self, room_id: &RoomId, version: RoomVersion) -> RoomImport<'h> {
        RoomImport {
            hs: self.hs,
            room_id: room_id.clone(),
            version,
            staged: StagedEvents::default(),
            held: Vec::new(),
            held_bytes: 0,
            events: 0,
            waits: true,
            places: HashMap::new(),
            hasher: RandomState::new(),
        }
    }

    /// Imports a room that is at hand as a whole. `extra` is in the transaction that makes this server resident.
    pub fn import_room(
        self,
        room: ImportedRoom,
        extra: impl FnOnce(&mut Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<ImportOutcome> {
        let mut import = self.begin_import(&room.room_id, room.version);
        import.add(room.auth_chain.into_iter().map(|event| (event, false)).collect())?;
        import.add(room.state.into_iter().map(|event| (event, true)).collect())?;
        import.finish(room.join, extra)
    }
}

impl Drop for RoomImport<'_> {
    fn drop(&mut self) {
        self.hs.import_leftovers.add(self.staged);
        if self.hs.import_leftovers.any() {
            self.hs.scheduler.wake();
        }
    }
}

impl RoomImport<'_> {
    /// Takes some of the room's events: format, signatures, hash, and the auth rules against their auth events were
    /// checked. Those of the state before our join come with `true`, others only have these rest on them. Errors: 502 if two
    /// events of the state are for one type and state key.
    pub fn add(&mut self, events: Vec<(VerifiedPdu, bool)>) -> Result<()> {
        for (event, _) in events.iter().filter(|(_, in_state)| *in_state) {
            let Some(state_key) = event.state_key() else { continue };
            let place = self.hasher.hash_one((event.event_type(), state_key));
            let id = self.hasher.hash_one(event.event_id().as_str());
            // It is seen at the end as well, when much has been done, and what was here before may have gone.
            if *self.places.entry(place).or_insert(id) != id {
                return Err(Error::bad_gateway("The room's state has two events of one type and state key"));
            }
        }
        self.events += events.len();
        self.held_bytes += events.iter().map(|(event, _)| event.json().len()).sum::<usize>();
        self.held.extend(events);
        while self.held.len() > HELD_EVENTS_MAX || self.held_bytes > HELD_BYTES_MAX {
            let later = self.held.split_off(self.held.len().min(EVENTS_PER_WRITE_MAX));
            let (before, events) = (self.staged, std::mem::replace(&mut self.held, later));
            // A power cut takes the join with it too.
            let first = self.hs.import_leftovers.first.clone();
            self.staged = self.hs.store.write_lightly(move |tx| {
                let staged = tx.stage_events(before, &events)?;
                first.fetch_min(staged.first(), Ordering::SeqCst);
                Ok(staged)
            })?;
            self.held_bytes = self.held.iter().map(|(event, _)| event.json().len()).sum();
        }
        Ok(())
    }

    /// Makes this server resident: the room's state that of the events so far, our join on top of it, and what
    /// `extra` does, all in one transaction. What there was of the room from before goes first, if the two do not go together.
    pub fn finish(
        mut self,
        join: VerifiedPdu,
        extra: impl FnOnce(&mut Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<ImportOutcome> {
        self.make_way()?;
        let (room_id, version) = (self.room_id.clone(), self.version);
        let (staged, held) = (self.staged, std::mem::take(&mut self.held));
        let outcome = self.hs.store.write(move |tx| {
            if tx.resident_room(&room_id)?.is_some() {
                return Ok(ImportOutcome::WasResident);
            }
            // Others may have come in and left meanwhile who knew it as another one.
            if tx.is_past_going(&room_id)? || tx.contradiction(&room_id, staged, &held)?.is_some() {
                return Err(not_yet());
            }
            let room = tx.make_room(&room_id, version)?.key;
            become_resident(tx, room, (staged, &held), &join)?;
            tx.hasten_pending_in(room)?;
            extra(tx)?;
            Ok(ImportOutcome::BecameResident)
        })?;
        if outcome == ImportOutcome::BecameResident {
            log::info!("{} is a room of this server now, with {} events", self.room_id, self.events);
        }
        Ok(outcome)
    }

    /// Sees that what we have of the room from before counts only as far as it should. What was believed on the word of the
    /// server by which we came in then is checked once more where it is not shown now, since its servers may be back. If
    /// something remains, or it was another room altogether, all of it goes: states, and events that rest on it. What is going
    /// already, for somebody else or before a restart, is waited for.
    fn make_way(&self) -> Result<()> {
        self.wait_for_purge()?;
        let look = || self.hs.store.read(|db| db.contradiction(&self.room_id, self.staged, &self.held));
        let Some(found) = look()? else { return Ok(()) };
        if !found.is_another_room && found.vouched.len() <= CHECKED_AGAIN_MAX {
            self.check_again(&found)?;
            if look()?.is_none() {
                return Ok(());
            }
        }
        log::warn!(
            "{}: what there is from before rests on the word of another server than the one that shows it now, and goes",
            self.room_id
        );
        self.purge()
    }

    fn check_again(&self, found: &Contradiction) -> Result<()> {
        let (room, version) = (found.room.key, found.room.version);
        let events = self.hs.store.read(|db| {
            let read = |key| Ok((key, db.pdu_by_key(key)?));
            found.vouched.iter().copied().map(read).collect::<Result<Vec<_>>>()
        })?;
        let texts: Vec<&[u8]> = events.iter().map(|(_, pdu)| pdu.json()).collect();
        let keys = self.hs.keys().keys_for(&texts, version, &[], CHECK_AGAIN_TIMEOUT);
        let is_certain = |text: &[u8]| check(text, version, &keys, &Doubts::default()).is_ok();
        let certain = events.iter().filter(|(_, pdu)| is_certain(pdu.json())).map(|(key, _)| *key);
        let certain: Vec<_> = certain.collect();
        self.hs.store.write(move |tx| tx.events_are_certain(room, &certain))
    }

    /// Has the timer delete what there is of the room, as an administrator could: it goes on with that whatever becomes of us.
    /// Errors: 403 `M_FORBIDDEN` if an administrator does so already; 500 if it takes too long, nobody does it now, or this is
    /// not waited for.
    fn purge(&self) -> Result<()> {
        let now: Millis = self.hs.clock.now_ms();
        let row = RoomDeletion {
            delete_id: random::letters(16),
            room_id: self.room_id.clone(),
            order: r#"{"block":false,"purge":true,"force_purge":false}"#.to_owned(),
            result: r#"{"kicked_users":[],"failed_to_kick_users":[],"local_aliases":[]}"#.to_owned(),
            stage: DeletionStage::Purging,
            error: None,
            entered_anew: true,
        };
        self.hs.store.write(move |tx| {
            if !tx.add_room_deletion(&row, now, now)? && !tx.is_past_going(&row.room_id)? {
                return Err(Error::forbidden("This room is being deleted on this server"));
            }
            Ok(())
        })?;
        self.hs.scheduler.wake();
        self.wait_for_purge()
    }

    /// Waits for the end of a purge that is under way so that the room can be entered, whoever began it.
    fn wait_for_purge(&self) -> Result<()> {
        let until = Instant::now() + PURGE_TIMEOUT;
        while self.hs.store.read(|db| db.is_past_going(&self.room_id))? {
            if !self.waits || Instant::now() >= until || !self.hs.scheduler.is_running() {
                return Err(not_yet());
            }
            self.hs.scheduler.rest(PURGE_LOOK_INTERVAL);
        }
        Ok(())
    }
}

/// A failure of our own: the join is good, and is taken up again.
fn not_yet() -> Error {
    const WHY: &str = "What there is of this room from before has to go first: it is entered after that";
    Error::new(ErrCode::Unknown, WHY).with_status(500)
}

/// Makes the state of the answer the room's state, and puts the join on top of it.
fn become_resident(
    tx: &mut Tx<'_>,
    room: RoomKey,
    (staged, held): (StagedEvents, &[(VerifiedPdu, bool)]),
    join: &VerifiedPdu,
) -> Result<()> {
    if matches!(tx.event_status(join.event_id())?, Some((_, false))) {
        return Err(Error::forbidden("The join is an old one"));
    }
    let at = tx.next_stream();
    let known = tx.room_by_key(room)?;
    tx.leave_behind(&known, staged, held)?;
    let state = tx.import_events(room, staged, held)?;
    let snapshot = tx.import_state(room, state, at)?;
    let mut missing = Vec::new();
    for id in join.prev_events() {
        if !matches!(tx.event_status(id)?, Some((_, false))) {
            missing.push(id.clone());
        }
    }
    tx.forget_late_extremities(room)?;
    let (room, old_extremities) = (tx.room_by_key(room)?, tx.extremity_keys(room)?);
    tx.append(&Append {
        room: &room,
        pdu: join,
        status: Status::Accepted,
        outgoing: false,
        state_before: StateRef::snapshot(snapshot),
        // What the room is to us rests on it.
        given: false,
        old_extremities: &old_extremities,
        kept_extremities: Vec::new(),
        overtakes: Vec::new(),
        becomes_extremity: true,
        current: Current::AfterThis,
        missing,
        history: None,
    })?;
    Ok(())
}
