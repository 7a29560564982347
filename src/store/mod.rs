//! The database: the only place with SQL. One writer thread, a few readers, one stream.
//!
//! `Store::write` hands a closure to the writer and blocks until what it wrote is on disk; `Store::read` runs a closure
//! on one consistent snapshot. The methods on [`Db`] (reading) and [`Tx`] (writing) are spread over the files of this
//! folder, one file a group of tables; `schema.sql` documents the data, under the names of these folders:
//!
//! - `rooms`: rooms, their events, state and members, also of rooms that this server is not in;
//! - `servers`: other servers, their keys, and what is owed to them;
//! - `accounts`: local users, their devices and tokens, and what their clients keep here;
//! - `devices`: messages to devices, device lists, key backups;
//! - `ephemeral`: typing, receipts, presence;
//! - `media`: what each mxc:// URI stands for, and which files there are;
//! - `push`: of what users are notified, and what is unread;
//! - `appservices`: what bridges and bots keep here.
//!
//! `sizes` says what rooms and users take. `engine` opens the database, writes, reads and tells of commits; `cache` is what is kept in memory; `bounds` says
//! of each table who fills it and what keeps it short, and a test holds it against the schema. Nothing here knows HTTP, the
//! network, or why something is written.
//!
//! One rule is asked here all the same: whether the auth events allow the whole copy of an event whose redacted form is
//! stored (`rooms/whole_copies.rs`). Content is put into a row in the transaction that finds it redacted, from wherever the
//! copy comes, so no caller can have asked before.

pub(crate) mod accounts;
pub(crate) mod appservices;
#[cfg(test)]
mod bounds;
pub(crate) mod cache;
pub(crate) mod devices;
pub(crate) mod engine;
pub(crate) mod ephemeral;
pub(crate) mod media;
pub(crate) mod push;
pub(crate) mod rooms;
pub(crate) mod servers;
pub(crate) mod sizes;

use std::cell::{Cell, RefCell};
use std::ops::Deref;
use std::rc::Rc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::sync::{Arc, OnceLock};
use std::time::Instant;

use rusqlite::Connection;

use crate::clock::Millis;
use crate::error::Result;
use crate::metrics::WriterCounts;
use crate::protocol::event_auth::AuthChecker;
use crate::protocol::ids::server_of;
use crate::protocol::push_rules::{RuleSet, UserRules};
use crate::protocol::{RoomVersion, ServerName, UserId};
use crate::store::accounts::TokenHash;
use crate::store::accounts::devices::Session;
use crate::store::cache::WriterCache;
use crate::store::cache::fronts::FrontCache;
use crate::store::cache::news::RecentNews;
use crate::store::cache::pdus::PduCache;
use crate::store::cache::presences::{PresenceChange, RecentPresences};
use crate::store::cache::resolutions::ResolutionCache;
use crate::store::cache::sessions::SessionCache;
use crate::store::cache::tuple_ids::TupleIds;
use crate::store::engine::readers::{Readers, refuse_nesting};
use crate::store::engine::writer::Writer;
use crate::store::ephemeral::presence::Presence;
use crate::store::rooms::OtherServers;
use crate::store::rooms::state::ForeseenState;

pub use engine::commit_feed::Changes;
pub use engine::connection::Options;
pub use engine::copy::DatabaseCopy;
pub use engine::migrate::VERSION as SCHEMA_VERSION;
pub use engine::open::Location;
pub use engine::scratch::sweep_memory;
pub use rooms::Room;
pub use rooms::events::{Place, Status, StoredEvent};

/// The row id of a room.
pub type RoomKey = i64;
/// The row id of an event.
pub type EventKey = i64;
/// The row id of a state snapshot.
pub type SnapshotId = i64;
/// The row id of a (type, state key) tuple.
pub type StateTupleId = i64;

/// What readers and the writer share.
pub(crate) struct StoreState {
    server_name: ServerName,
    position: AtomicI64,
    /// Positions that a restored backup does not know of: behind the first, before the second.
    lost: Vec<(i64, i64)>,
    sessions: SessionCache,
    fronts: FrontCache,
    pdus: PduCache,
    resolutions: ResolutionCache,
    news: RecentNews,
    presences: RecentPresences,
    /// No device begins behind this position.
    last_device: AtomicI64,
    /// What the writer did, if anybody wants to know.
    counts: OnceLock<Arc<WriterCounts>>,
    /// Whether there may be any late extremities.
    any_late_extremities: AtomicBool,
    /// Whether any of our users may have asked to be erased.
    any_erased_users: AtomicBool,
    /// Whether any of our users may be guests.
    any_guests: AtomicBool,
    /// Whether any rooms may be shut.
    any_shut_rooms: AtomicBool,
    /// Up to where changes of devices may have gone.
    changes_swept_upto: AtomicI64,
    /// The numbers of the state tuples that are asked for.
    tuple_ids: TupleIds,
    /// Whether the predefined push rules are with those that make a call ring, and these rules, compiled.
    call_rules: AtomicBool,
    predefined_rules: [OnceLock<Arc<RuleSet>>; 2],
}

impl StoreState {
    fn new(connection: &Connection, server_name: &ServerName, position: i64) -> rusqlite::Result<Self> {
        let any_erased_users = accounts::are_any_erased(connection)?;
        let any_guests = accounts::guests::are_there_any(connection)?;
        let any_shut_rooms = rooms::blocked_rooms::are_any_shut(connection)?;
        let any_late_extremities = rooms::late_extremities::are_there_any(connection)?;
        let changes_swept_upto = devices::swept_changes::swept_upto(connection)?;
        Ok(Self {
            server_name: server_name.clone(),
            position: AtomicI64::new(position),
            lost: engine::restored::lost_positions(connection)?,
            sessions: SessionCache::default(),
            fronts: FrontCache::default(),
            pdus: PduCache::default(),
            resolutions: ResolutionCache::default(),
            news: RecentNews::new(position),
            presences: RecentPresences::new(position),
            last_device: AtomicI64::new(position),
            counts: OnceLock::new(),
            any_late_extremities: AtomicBool::new(any_late_extremities),
            any_erased_users: AtomicBool::new(any_erased_users),
            any_guests: AtomicBool::new(any_guests),
            any_shut_rooms: AtomicBool::new(any_shut_rooms),
            changes_swept_upto: AtomicI64::new(changes_swept_upto),
            tuple_ids: TupleIds::default(),
            call_rules: AtomicBool::new(false),
            predefined_rules: Default::default(),
        })
    }

    fn has_call_rules(&self) -> bool {
        self.call_rules.load(Ordering::Relaxed)
    }

    fn was_lost(&self, position: i64) -> bool {
        self.lost.iter().any(|(after, upto)| *after < position && position < *upto)
    }

    /// The rules of a user who changed none of them.
    fn predefined_rules(&self) -> Arc<RuleSet> {
        let calls = self.has_call_rules();
        let compile = || {
            // Whose they are is told when they are asked: this only has to be the same in both places.
            let anybody = UserId::parse("@anybody:localhost");
            let ruleset = anybody
                .map(|user| RuleSet::compile(&UserRules::default().ruleset(&user, calls), user.as_str()));
            Arc::new(ruleset.unwrap_or_default())
        };
        self.predefined_rules[usize::from(calls)].get_or_init(compile).clone()
    }
}

/// The open database. Dropping it finishes the queued writes, closes the files and releases the lock.
pub struct Store {
    // The order of the fields is the order of closing: readers first, so that the writer, closing last, can fold the
    // write-ahead log into the database; then the file of whoever looks at its pages, and the lock after everything.
    readers: Readers,
    writer: Writer,
    shared: Arc<StoreState>,
    pages: engine::space::PagesFile,
    _lock: Option<engine::folder::FolderLock>,
}

impl Store {
    /// Runs `f` in a savepoint on the writer's thread and returns when its group is on disk. If `f` fails or panics,
    /// what it did is undone, and nobody else's work. Closures must be short and never wait for anything.
    #[track_caller]
    pub fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        refuse_nesting("a write")?;
        self.writer.write(true, f)
    }

    /// [`Store::write`] for what is worth little: it outlives this process, but a power cut may take the last of it.
    /// Other than `write` it costs no wait for the disk.
    #[track_caller]
    pub fn write_lightly<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        refuse_nesting("a write")?;
        self.writer.write(false, f)
    }

    /// Runs `f` on one consistent snapshot. Holds one of few connections, so: short, and no waiting inside.
    pub fn read<T>(&self, f: impl FnOnce(&Db<'_>) -> Result<T>) -> Result<T> {
        self.readers.read(f)
    }

    /// [`Store::read`] for what may take long. Errors: also 429 `M_LIMIT_EXCEEDED` for what it asks the database behind
    /// `until`.
    pub fn read_until<T>(&self, until: Instant, f: impl FnOnce(&Db<'_>) -> Result<T>) -> Result<T> {
        self.readers.read_until(until, f)
    }

    /// The session of an access token, as of some moment during this call.
    pub fn session(&self, access: &TokenHash) -> Result<Option<Session>> {
        self.shared.sessions.get(access, || self.read(|db| db.session_by_access(access)))
    }

    /// The published stream position. Take it *before* the `read` whose answer it stands for.
    pub fn position(&self) -> i64 {
        self.shared.position.load(Ordering::Acquire)
    }

    /// The same for whoever has no hold of the store, as often as they want to know.
    pub fn positions(&self) -> impl Fn() -> i64 + Send + use<> {
        let shared = self.shared.clone();
        move || shared.position.load(Ordering::Acquire)
    }

    /// Has the writer counted from now on; for once, before anybody writes.
    pub fn count_writes(&self) {
        let _ = self.shared.counts.set(Arc::default());
    }

    /// What was counted of the writer.
    pub fn counts(&self) -> Option<&WriterCounts> {
        self.shared.counts.get().map(|counts| &**counts)
    }

    /// Whether somebody who was told this position may have seen what is not here: it is yet to come, or was given out before
    /// this database was restored from an older backup.
    pub fn is_foreign(&self, position: i64) -> bool {
        position > self.position() || self.shared.was_lost(position)
    }

    /// Whether the predefined push rules are with those that make a call ring (MSC4075).
    pub fn set_call_rules(&self, calls: bool) {
        self.shared.call_rules.store(calls, Ordering::Relaxed);
    }
}

/// A snapshot to read from.
pub struct Db<'c> {
    connection: &'c Connection,
    shared: &'c StoreState,
    /// The writer has one.
    cache: Option<&'c WriterCache>,
    /// Of a reader: when it began, as the cache that readers share counts it.
    epoch: Option<u64>,
    /// How many events were looked at for verdicts.
    examined: Cell<usize>,
    /// Of a reader: what was looked up for it at once.
    foreseen: RefCell<Vec<ForeseenState>>,
}

impl<'c> Db<'c> {
    fn new(connection: &'c Connection, shared: &'c StoreState, cache: Option<&'c WriterCache>) -> Self {
        Self { connection, shared, cache, epoch: None, examined: Cell::new(0), foreseen: RefCell::default() }
    }

    /// For a reader, whose snapshot is not open yet.
    fn reader(connection: &'c Connection, shared: &'c StoreState) -> Self {
        let epoch = Some(shared.pdus.epoch());
        Self { epoch, ..Self::new(connection, shared, None) }
    }

    /// What the writer remembers, or nothing.
    fn recall<T>(&self, what: impl FnOnce(&WriterCache) -> Option<T>) -> Option<T> {
        self.cache.and_then(what)
    }

    /// Has the writer remember something, or forget it.
    fn remember(&self, what: impl FnOnce(&WriterCache)) {
        if let Some(cache) = self.cache {
            what(cache);
        }
    }

    /// What checks events by the authorisation rules of this room version; it may remember what it has read before.
    pub fn auth_checker(&self, version: RoomVersion) -> Rc<AuthChecker> {
        self.recall(|cache| Some(cache.auth_checker(version)))
            .unwrap_or_else(|| Rc::new(AuthChecker::new(version)))
    }

    /// The local users who are joined to the room, in order.
    fn audience(&self, room: RoomKey) -> Result<Arc<[UserId]>> {
        if let Some(audience) = self.recall(|cache| cache.audience(room)) {
            return Ok(audience);
        }
        let audience: Arc<[UserId]> = self.joined_local_users(room)?.into();
        self.remember(|cache| cache.keep_audience(room, audience.clone()));
        Ok(audience)
    }

    /// The connection, for the files of this folder.
    pub(crate) fn conn(&self) -> &'c Connection {
        self.connection
    }

    /// Whether a position was given out before this database was restored from an older backup.
    pub fn was_lost(&self, position: i64) -> bool {
        self.shared.was_lost(position)
    }

    /// How large the database is, without its log.
    pub fn file_bytes(&self) -> Result<i64> {
        let size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
        Ok(self.connection.prepare_cached(size)?.query_row([], |row| row.get(0))?)
    }

    /// This server's name.
    pub fn server_name(&self) -> &'c ServerName {
        &self.shared.server_name
    }

    /// Whether the user belongs to this server.
    pub fn is_local(&self, user: &str) -> bool {
        server_of(user) == self.server_name().as_str()
    }
}

/// A transaction that is being written: everything a `Db` reads, and the methods that write.
pub struct Tx<'c> {
    db: Db<'c>,
    stream: i64,
    changes: Changes,
}

impl<'c> Deref for Tx<'c> {
    type Target = Db<'c>;
    fn deref(&self) -> &Db<'c> {
        &self.db
    }
}

impl Tx<'_> {
    /// The next position of the stream. Positions of a closure that fails are handed out again.
    pub fn next_stream(&mut self) -> i64 {
        self.stream += 1;
        self.stream
    }

    /// The stream position that was handed out last.
    pub fn stream(&self) -> i64 {
        self.stream
    }

    /// After the commit, wakes this user's waiting `/sync`. Whatever a `/sync` tells of is told of by this or by
    /// [`Tx::wake_room`]: one that goes on from a moment ago looks nowhere else (`cache/news.rs`).
    pub fn wake_user(&mut self, user: &UserId) {
        if !self.changes.users.contains(user) {
            self.changes.users.insert(user.clone());
        }
    }

    /// After the commit, tells that the room has a new event or other state, and wakes all local users who are joined
    /// to it.
    pub fn room_changed(&mut self, room: RoomKey) -> Result<()> {
        self.changes.rooms.insert(room);
        self.wake_room(room)
    }

    /// After the commit, wakes all local users who are joined to the room.
    pub fn wake_room(&mut self, room: RoomKey) -> Result<()> {
        let audience = self.audience(room)?;
        self.changes.tell_audience(room, audience);
        Ok(())
    }

    /// After the commit, tells the sender that the room has something for other servers. It is not woken where no other
    /// was ever in the room than the one that this comes from (`by`).
    pub fn owes(&mut self, room: RoomKey, by: &str) -> Result<()> {
        let others = match self.recall(|cache| cache.other_servers(room)) {
            Some(others) => others,
            None => {
                let others = self.db.other_servers(room)?;
                self.remember(|cache| cache.keep_other_servers(room, others.clone()));
                others
            }
        };
        let is_owed = match others {
            OtherServers::None => false,
            OtherServers::One(server) => *server != *by,
            OtherServers::Several => true,
        };
        if is_owed {
            self.changes.outgoing_rooms.insert(room);
        }
        Ok(())
    }

    /// After the commit, tells the sender that this server is owed something.
    pub fn wake_destination(&mut self, server: &ServerName) {
        if !self.changes.destinations.contains(server) {
            self.changes.destinations.insert(server.clone());
        }
    }

    /// After the commit, tells the sender that a server has come into a room. Nobody knows one whose name is none.
    pub(crate) fn came_into(&mut self, room: RoomKey, server: &str) {
        if let Ok(server) = ServerName::parse(server) {
            self.changes.newcomers.insert((room, server));
        }
    }

    /// After the commit, tells the timer that something is due now.
    pub(crate) fn wake_timer(&mut self) {
        self.is_due(Millis::MIN);
    }

    /// After the commit, tells the timer that something is due at this time. Said by whatever writes such a time: what is due
    /// before the timer next looks by itself would wait for that. Debug builds see to it (`engine/due_rows.rs`).
    pub(crate) fn is_due(&mut self, at: Millis) {
        self.changes.due = Some(self.changes.due.map_or(at, |known| known.min(at)));
    }

    /// After the commit, has the forks of the room merged.
    pub(crate) fn room_is_forked(&mut self, room: RoomKey) {
        self.changes.forked.insert(room);
    }

    /// After the commit, has the room's current state catch up with what came.
    pub(crate) fn room_is_behind(&mut self, room: RoomKey) {
        self.changes.behind.insert(room);
    }

    /// Somebody's presence changed at this position. These, who may see it, are woken soon after the commit; who else may is
    /// told with whatever comes next.
    pub(crate) fn presence_changed(
        &mut self,
        (stream, user, presence): (i64, &UserId, &Presence),
        woken: Vec<UserId>,
    ) {
        let change = PresenceChange::new(stream, user.clone(), presence.clone());
        self.changes.presences.push(Arc::new(change));
        self.changes.woken_soon.extend(woken);
    }

    /// To be called by whatever adds a device.
    pub(crate) fn device_begins(&mut self) {
        let stream = self.next_stream();
        self.db.shared.last_device.fetch_max(stream, Ordering::AcqRel);
    }

    /// Whether there may be devices that there were not yet at a position.
    pub fn are_devices_newer_than(&self, position: i64) -> bool {
        self.db.shared.last_device.load(Ordering::Acquire) > position
    }

    /// To be called by whatever changes something that a [`Session`] tells.
    pub(crate) fn sessions_changed(&mut self) {
        self.changes.sessions = true;
    }

    /// To be called by whatever changes what a room shows to somebody outside.
    pub(in crate::store) fn front_changed(&mut self) {
        self.changes.fronts = true;
    }
}

#[cfg(test)]
mod tests;
