//! The database: the only place with SQL. One writer thread, a few readers, one stream.
//!
//! `Store::write` hands a closure to the writer and blocks until what it wrote is on disk; `Store::read` runs a closure
//! on one consistent snapshot. The methods on [`Db`] (reading) and [`Tx`] (writing) are spread over the files of this
//! folder, one file a group of tables; `schema.sql` documents the data. Nothing here knows HTTP, the network, or why
//! something is written.

pub mod accounts;
pub mod bounds;
pub(crate) mod cache;
pub mod devices;
pub mod engine;
pub mod ephemeral;
pub mod rooms;
pub mod servers;

use std::cell::Cell;
use std::collections::{HashMap, HashSet};
use std::fs::{self, File};
use std::ops::Deref;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::event_auth::AuthChecker;
use crate::protocol::{RoomVersion, ServerName, UserId};
use crate::store::engine::sqlite_error::disk_failure;

use crate::store::accounts::TokenHash;
use crate::store::accounts::devices::Session;
use crate::store::cache::Memory;
use crate::store::cache::pdus::PduMemory;
use crate::store::cache::resolutions::Resolutions;
use crate::store::cache::sessions::SessionMemory;
use crate::store::engine::checkpoint::Checkpointer;
use crate::store::engine::folder::FILE;

pub use crate::store::rooms::events::{Place, Status, StoredEvent};
pub use rooms::Room;

/// The row id of a room.
pub type RoomKey = i64;
/// The row id of an event.
pub type EventKey = i64;
/// The row id of a state snapshot.
pub type SnapshotId = i64;
/// The row id of a (type, state key) pair.
pub type Slot = i64;

/// Where the database lives.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder that holds `doorstep.db`; created (mode 0700) if it does not exist.
    Folder(PathBuf),
    /// Nowhere: gone with the process, however the process ends. For fixtures.
    Memory,
}

/// What may differ from one database to the next.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether a commit waits for the disk. Off only where the data is worth nothing (fixtures).
    pub durable: bool,
    /// How many threads may read at once; each costs at most 2 MB of page cache.
    pub readers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { durable: true, readers: 4 }
    }
}

/// What a group of commits changed, for those who wait. Hints: whoever misses them loses time, never data.
#[derive(Debug, Default)]
pub struct Changes {
    /// The published stream position: everything up to here is on disk.
    pub position: i64,
    /// Our users whose `/sync` has something new, beside those of `audiences`.
    pub users: HashSet<UserId>,
    /// Rooms that all of us who are in them have something new of, each with these users.
    pub audiences: HashMap<RoomKey, Arc<[UserId]>>,
    /// Rooms with an event that we owe to other servers.
    pub outgoing_rooms: HashSet<RoomKey>,
    /// Servers that are owed something beside room events.
    pub destinations: HashSet<ServerName>,
    /// Rooms with a new event or other state.
    pub rooms: HashSet<RoomKey>,
    /// Whether something is due now that the timer looks after.
    pub due: bool,
    /// Rooms with more branches than is good.
    pub forked: HashSet<RoomKey>,
    /// Rooms whose current state does not know of all that came.
    pub behind: HashSet<RoomKey>,
    /// Whether a session, its device or its user has changed.
    sessions: bool,
    /// Whether an event has changed, which a redaction does.
    redacted: bool,
}

impl Changes {
    /// All of our users whose `/sync` has something new. Some come more than once.
    pub fn all_users(&self) -> impl Iterator<Item = &UserId> {
        self.users.iter().chain(self.audiences.values().flat_map(|audience| audience.iter()))
    }

    fn tell_audience(&mut self, room: RoomKey, audience: Arc<[UserId]>) {
        if let Some(before) = self.audiences.insert(room, audience.clone())
            && !Arc::ptr_eq(&before, &audience)
        {
            self.users.extend(before.iter().cloned());
        }
    }

    /// Adds what changed later.
    fn absorb(&mut self, other: Changes) {
        self.position = self.position.max(other.position);
        self.users.extend(other.users);
        for (room, audience) in other.audiences {
            self.tell_audience(room, audience);
        }
        self.outgoing_rooms.extend(other.outgoing_rooms);
        self.destinations.extend(other.destinations);
        self.rooms.extend(other.rooms);
        self.due |= other.due;
        self.forked.extend(other.forked);
        self.behind.extend(other.behind);
        self.sessions |= other.sessions;
        self.redacted |= other.redacted;
    }
}

/// Called after each commit, on a thread of its own, so that it holds nobody up. Commits that follow each other closely are
/// told of together.
pub type OnCommit = Box<dyn Fn(&Changes) + Send + Sync>;

/// What readers and the writer share.
pub(crate) struct Shared {
    server_name: ServerName,
    position: AtomicI64,
    sessions: SessionMemory,
    pdus: PduMemory,
    resolutions: Resolutions,
    /// Whether there may be any late heads.
    any_late_heads: AtomicBool,
}

/// The open database. Dropping it finishes the queued writes, closes the files and releases the lock.
pub struct Store {
    // The order of the fields is the order of closing: readers first, so that the writer, closing last, can fold the
    // write-ahead log into the database; the lock after everything.
    readers: crate::store::engine::readers::Readers,
    writer: crate::store::engine::writer::Writer,
    shared: Arc<Shared>,
    _lock: Option<File>,
}

/// Positions that are passed over at each start: clients may have been told of some that a power cut took back, because
/// only light commits had written them. There is no shortage of positions.
const PASSED_OVER: i64 = 20_000;

impl Store {
    /// Opens the database, creating or migrating it if need be. `server_name` is pinned on the first opening.
    ///
    /// Errors are sentences for the operator: not our file, made by a newer Doorstep, another server's name, already
    /// open in another process, not writable. In each case nothing was changed.
    pub fn open(
        location: Location,
        server_name: &ServerName,
        on_commit: OnCommit,
        options: &Options,
    ) -> Result<Store> {
        let (folder, lock) = match &location {
            Location::Folder(folder) => (folder.clone(), Some(crate::store::engine::folder::lock(folder)?)),
            Location::Memory => (scratch_folder()?, None),
        };
        let scratch = matches!(location, Location::Memory).then(|| Scratch(folder.clone()));
        let path = folder.join(FILE);
        let mut connection = match &lock {
            Some(lock) => crate::store::engine::folder::open(&folder, lock, server_name, options)?,
            None => {
                let mut connection = open_for_writing(&path, options)?;
                crate::store::engine::migrate::prepare(&mut connection, &path, server_name, true)?;
                connection
            }
        };
        let position = pass_over(&connection).map_err(|e| unusable(&path, &e))?;
        let any_late_heads = crate::store::rooms::late_extremities::are_there_any(&connection)
            .map_err(|e| unusable(&path, &e))?;
        let shared = Arc::new(Shared {
            server_name: server_name.clone(),
            position: AtomicI64::new(position),
            sessions: SessionMemory::default(),
            pdus: PduMemory::default(),
            resolutions: Resolutions::default(),
            any_late_heads: AtomicBool::new(any_late_heads),
        });
        let readers = crate::store::engine::readers::Readers::new(
            path.clone(),
            options.readers.max(1),
            scratch.is_some(),
            shared.clone(),
        )?;
        let checkpointer = match &scratch {
            None => Some(Checkpointer::start(&mut connection, &path, options.durable, readers.gate())?),
            // Nothing waits for a disk there.
            Some(_) => None,
        };
        // From here on only open handles lead to a scratch database; nothing is left behind, even by a kill.
        drop(scratch);
        let writer = crate::store::engine::writer::Writer::start(
            connection,
            checkpointer,
            shared.clone(),
            on_commit,
            options.durable,
        )?;
        Ok(Store { readers, writer, shared, _lock: lock })
    }

    /// The name of the server whose database is in this folder. Errors: sentences for the operator.
    pub fn name_of(folder: &Path) -> Result<ServerName> {
        let path = folder.join(FILE);
        let open = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let name = open.and_then(|connection| crate::store::engine::migrate::pinned_name(&connection));
        let name = name.map_err(|e| unusable(&path, &e))?;
        name.and_then(|name| ServerName::parse(&name).ok())
            .ok_or_else(|| refusal(format!("{} belongs to no server", path.display())))
    }

    /// Runs `f` in a savepoint on the writer's thread and returns when its group is on disk. If `f` fails or panics,
    /// what it did is undone, and nobody else's work. Closures must be short and never wait for anything.
    #[track_caller]
    pub fn write<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        crate::store::engine::readers::refuse_nesting("a write")?;
        self.writer.write(true, f)
    }

    /// The same for what is worth little: it outlives this process, but a power cut may take the last of it. Other than
    /// `write` it costs no wait for the disk.
    #[track_caller]
    pub fn write_lightly<T: Send + 'static>(
        &self,
        f: impl FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        crate::store::engine::readers::refuse_nesting("a write")?;
        self.writer.write(false, f)
    }

    /// Runs `f` on one consistent snapshot. Holds one of few connections, so: short, and no waiting inside.
    pub fn read<T>(&self, f: impl FnOnce(&Db<'_>) -> Result<T>) -> Result<T> {
        self.readers.read(f)
    }

    /// The session of an access token, as of some moment during this call.
    pub fn session(&self, access: &TokenHash) -> Result<Option<Session>> {
        self.shared.sessions.get(access, || self.read(|db| db.session_by_access(access)))
    }

    /// The published stream position. Take it *before* the `read` whose answer it stands for.
    pub fn position(&self) -> i64 {
        self.shared.position.load(Ordering::Acquire)
    }

    /// The name that is pinned in this database.
    pub fn server_name(&self) -> &ServerName {
        &self.shared.server_name
    }
}

/// A snapshot to read from.
pub struct Db<'c> {
    connection: &'c Connection,
    shared: &'c Shared,
    /// The writer has one.
    memory: Option<&'c Memory>,
    /// Of a reader: when it began, as the memory that readers share counts it.
    epoch: Option<u64>,
    /// How many events were looked at for verdicts.
    toil: Cell<usize>,
}

impl<'c> Db<'c> {
    fn new(connection: &'c Connection, shared: &'c Shared, memory: Option<&'c Memory>) -> Self {
        Self { connection, shared, memory, epoch: None, toil: Cell::new(0) }
    }

    /// For a reader, whose snapshot is not open yet.
    fn reader(connection: &'c Connection, shared: &'c Shared) -> Self {
        Self { connection, shared, memory: None, epoch: Some(shared.pdus.epoch()), toil: Cell::new(0) }
    }

    /// What the writer remembers, or nothing.
    fn recall<T>(&self, what: impl FnOnce(&Memory) -> Option<T>) -> Option<T> {
        self.memory.and_then(what)
    }

    /// Has the writer remember something, or forget it.
    fn remember(&self, what: impl FnOnce(&Memory)) {
        if let Some(memory) = self.memory {
            what(memory);
        }
    }

    /// One who judges events of this room version, and may remember what it has read before.
    pub fn judge(&self, version: RoomVersion) -> Rc<AuthChecker> {
        self.recall(|memory| Some(memory.judge(version)))
            .unwrap_or_else(|| Rc::new(AuthChecker::new(version)))
    }

    /// The connection, for the files of this folder.
    pub(crate) fn conn(&self) -> &'c Connection {
        self.connection
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
    pub fn is_ours(&self, user: &str) -> bool {
        user.split_once(':').is_some_and(|(_, server)| server == self.server_name().as_str())
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

    /// After the commit, wakes this user's waiting `/sync`.
    pub fn wake_user(&mut self, user: &UserId) {
        if !self.changes.users.contains(user) {
            self.changes.users.insert(user.clone());
        }
    }

    /// After the commit, tells that the room has a new event or other state, and wakes all of us who are joined to it.
    pub fn room_changed(&mut self, room: RoomKey) -> Result<()> {
        self.changes.rooms.insert(room);
        self.wake_room(room)
    }

    /// After the commit, wakes all of us who are joined to the room.
    pub fn wake_room(&mut self, room: RoomKey) -> Result<()> {
        let audience = match self.recall(|memory| memory.audience(room)) {
            Some(audience) => audience,
            None => {
                let audience: Arc<[UserId]> = self.db.joined_local_users(room)?.into();
                self.remember(|memory| memory.keep_audience(room, audience.clone()));
                audience
            }
        };
        self.changes.tell_audience(room, audience);
        Ok(())
    }

    /// After the commit, tells the sender that the room has an event for other servers. It is not woken for rooms that no
    /// other server was ever in.
    pub fn owes(&mut self, room: RoomKey) -> Result<()> {
        let alone = match self.recall(|memory| memory.alone(room)) {
            Some(alone) => alone,
            None => {
                let alone = self.db.was_always_alone(room)?;
                self.remember(|memory| memory.keep_alone(room, alone));
                alone
            }
        };
        if !alone {
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

    /// After the commit, tells the timer that something is due now.
    pub(crate) fn wake_timer(&mut self) {
        self.changes.due = true;
    }

    /// After the commit, has the branches of the room joined.
    pub(crate) fn room_is_forked(&mut self, room: RoomKey) {
        self.changes.forked.insert(room);
    }

    /// After the commit, has the room's current state catch up with what came.
    pub(crate) fn room_is_behind(&mut self, room: RoomKey) {
        self.changes.behind.insert(room);
    }

    /// To be called by whatever changes something that a [`Session`] tells.
    pub(crate) fn sessions_changed(&mut self) {
        self.changes.sessions = true;
    }
}

/// Begins behind every position that may ever have been given out; gives the last one that is taken.
fn pass_over(connection: &Connection) -> rusqlite::Result<i64> {
    connection.execute("UPDATE server SET stream = stream + ?1 WHERE stream > 0", [PASSED_OVER])?;
    connection.query_row("SELECT stream FROM server", [], |row| row.get(0))
}

fn open_for_writing(path: &Path, options: &Options) -> Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| unusable(path, &e))?;
    if connection.is_readonly("main").map_err(|e| unusable(path, &e))? {
        return Err(refusal(format!(
            "The database {} is read-only: Doorstep must be able to write it",
            path.display()
        )));
    }
    configure(&connection, 8000).map_err(|e| unusable(path, &e))?;
    let synchronous = if options.durable { "FULL" } else { "OFF" };
    connection.pragma_update(None, "synchronous", synchronous).map_err(|e| unusable(path, &e))?;
    Ok(connection)
}

/// What every connection is told. `cache_kib` bounds its page cache.
fn configure(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    connection.pragma_update(None, "cache_size", -cache_kib)?;
    connection.pragma_update(None, "mmap_size", 0)?;
    connection.pragma_update(None, "temp_store", "MEMORY")?;
    connection.pragma_update(None, "foreign_keys", true)?;
    connection.pragma_update(None, "trusted_schema", false)?;
    // Plans must not depend on bound values: else SQLite plans a statement anew each time that the statement cache has
    // cleared its bindings, which costs many times what running it does.
    connection.set_db_config(DbConfig::SQLITE_DBCONFIG_ENABLE_QPSG, true)?;
    connection.set_prepared_statement_cache_capacity(160);
    Ok(())
}

/// An error for the operator: a sentence, and no HTTP behind it.
fn refusal(sentence: String) -> Error {
    Error::new(ErrCode::Unknown, sentence)
}

fn unusable(path: &Path, e: &rusqlite::Error) -> Error {
    use rusqlite::ErrorCode as Code;
    let path = path.display();
    refusal(match e.sqlite_error_code() {
        Some(Code::DiskFull) => format!("The disk with {path} is full: make room, and start again"),
        Some(Code::ReadOnly) => {
            format!("The database {path} is read-only: Doorstep must be able to write it")
        }
        Some(Code::CannotOpen | Code::PermissionDenied) => {
            format!("The database {path} cannot be opened: missing, or no permission")
        }
        Some(Code::NotADatabase) => format!("{path} is not a Doorstep database"),
        Some(Code::DatabaseBusy | Code::DatabaseLocked) => {
            format!("The database {path} is in use by another process")
        }
        _ if disk_failure(e).is_some() => {
            format!("The disk with {path} takes nothing ({e}): see that there is room, and start again")
        }
        _ => format!("The database {path} cannot be used: {e}"),
    })
}

/// A folder that goes when this is dropped.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A fresh folder for a database that lives in memory: in the kernel's memory file system where there is one. A real
/// file, because SQLite's own in-memory databases let readers and the writer block each other.
fn scratch_folder() -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut last = None;
    for base in [PathBuf::from("/dev/shm"), std::env::temp_dir()] {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|e| Error::internal(e.to_string()))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("doorstep-{}-{number}-{:016x}", std::process::id(), u64::from_ne_bytes(random));
        let folder = base.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) => last = Some(e),
        }
    }
    Err(refusal("There is no folder for temporary files".into())
        .with_cause(last.unwrap_or_else(|| std::io::Error::other("?"))))
}

#[cfg(test)]
mod tests;
