//! Opening a database: what is asked of it, in a folder or in memory, what every connection is told, and what the
//! operator is told of one that cannot be used.

use std::ffi::{c_int, c_void};
use std::fs;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ServerName;
use crate::store::engine::checkpoint::Checkpointer;
use crate::store::engine::commit_feed::OnCommit;
use crate::store::engine::folder::{self, FILE};
use crate::store::engine::migrate;
use crate::store::engine::readers::Readers;
use crate::store::engine::space::PagesFile;
use crate::store::engine::sqlite_error::disk_failure;
use crate::store::engine::template;
use crate::store::engine::writer::Writer;
use crate::store::{Store, StoreState};

/// Where the database lives.
#[derive(Debug, Clone)]
pub enum Location {
    /// A folder that holds `doorstep.db`; created (mode 0700) if it does not exist.
    Folder(PathBuf),
    /// Nowhere: gone with the process, however the process ends. For fixtures.
    Memory,
    /// The same, beginning with what another one held.
    MemoryAgain(Arc<ScratchFolder>),
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

/// The page cache of the writer.
const WRITER_CACHE_KIB: i64 = 8000;
/// The page cache of a connection that was told of none.
pub(super) const USUAL_CACHE_KIB: i64 = 2000;

/// Positions that are passed over at each start: clients may have been told of some that a power cut took back, because
/// only light commits had written them. There is no shortage of positions.
const POSITIONS_PASSED_OVER: i64 = 20_000;

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
        let (folder, scratch) = match location {
            Location::Folder(folder) => (folder, None),
            Location::Memory => {
                let scratch = Arc::new(ScratchFolder::new()?);
                template::write_to(&scratch.0.join(FILE))?;
                (scratch.0.clone(), Some(scratch))
            }
            Location::MemoryAgain(scratch) => (scratch.0.clone(), Some(scratch)),
        };
        let lock = if scratch.is_none() { Some(folder::lock(&folder)?) } else { None };
        let path = folder.join(FILE);
        let mut connection = match &lock {
            Some(lock) => folder::open(&folder, lock, server_name, options)?,
            None => {
                let mut connection = open_for_writing(&path, options)?;
                migrate::prepare(&mut connection, &path, server_name, true)?;
                migrate::pin(&connection, server_name).map_err(|e| unusable(&path, &e))?;
                connection
            }
        };
        let position = pass_over(&connection).map_err(|e| unusable(&path, &e))?;
        let shared = StoreState::new(&connection, server_name, position).map_err(|e| unusable(&path, &e))?;
        let shared = Arc::new(shared);
        let readers = Readers::new(path.clone(), options, scratch.is_some(), shared.clone())?;
        if !options.durable {
            keep_few_pages(&connection, WRITER_CACHE_KIB).map_err(|e| unusable(&path, &e))?;
        }
        let checkpointer = match &scratch {
            None => Some(Checkpointer::new(&mut connection, &path, options.durable, readers.gate())?),
            // Nothing waits for a disk there.
            Some(_) => None,
        };
        // From here on only open handles lead to a scratch database; nothing is left behind, even by a kill.
        drop(scratch);
        let writer = Writer::start(connection, checkpointer, shared.clone(), on_commit, options.durable)?;
        let pages = PagesFile::default();
        Ok(Store { readers, writer, shared, pages, _lock: lock })
    }

    /// A copy of all there is, for another store in memory to begin with.
    pub fn copy_to_memory(&self) -> Result<Location> {
        let scratch = ScratchFolder::new()?;
        self.readers.copy_to(&scratch.0.join(FILE))?;
        Ok(Location::MemoryAgain(Arc::new(scratch)))
    }

    /// The name of the server whose database is in this folder. Errors: sentences for the operator.
    pub fn name_of(folder: &Path) -> Result<ServerName> {
        let path = folder.join(FILE);
        let open = Connection::open_with_flags(&path, OpenFlags::SQLITE_OPEN_READ_ONLY);
        let name = open.and_then(|connection| migrate::pinned_name(&connection));
        let name = name.map_err(|e| unusable(&path, &e))?;
        name.and_then(|name| ServerName::parse(&name).ok())
            .ok_or_else(|| refusal(format!("{} belongs to no server", path.display())))
    }
}

/// Begins behind every position that may ever have been given out; gives the last one that is taken.
fn pass_over(connection: &Connection) -> rusqlite::Result<i64> {
    connection.execute("UPDATE server SET stream = stream + ?1 WHERE stream > 0", [POSITIONS_PASSED_OVER])?;
    connection.query_row("SELECT stream FROM server", [], |row| row.get(0))
}

pub(super) fn open_for_writing(path: &Path, options: &Options) -> Result<Connection> {
    let flags =
        OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags).map_err(|e| unusable(path, &e))?;
    if connection.is_readonly("main").map_err(|e| unusable(path, &e))? {
        return Err(refusal(format!(
            "The database {} is read-only: Doorstep must be able to write it",
            path.display()
        )));
    }
    configure(&connection, WRITER_CACHE_KIB).map_err(|e| unusable(path, &e))?;
    let synchronous = if options.durable { "FULL" } else { "OFF" };
    connection.pragma_update(None, "synchronous", synchronous).map_err(|e| unusable(path, &e))?;
    Ok(connection)
}

/// What every connection is told. `cache_kib` bounds its page cache.
pub(super) fn configure(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.busy_timeout(std::time::Duration::from_secs(5))?;
    if cache_kib != USUAL_CACHE_KIB {
        // To be told that is what a connection reads the whole schema for, if it has not yet.
        connection.pragma_update(None, "cache_size", -cache_kib)?;
    }
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

/// Has a connection that was just opened keep few of the pages that it read the schema from, and begin its cache with one page
/// instead of twenty. For databases that are worth nothing: a process may have hundreds of them, most of which do little.
pub(super) fn keep_few_pages(connection: &Connection, cache_kib: i64) -> rusqlite::Result<()> {
    connection.pragma_update(None, "cache_size", 1)?;
    connection.execute_batch("PRAGMA shrink_memory")?;
    look_at(connection)?;
    connection.pragma_update(None, "cache_size", -cache_kib)
}

/// Has a connection that nobody may ever use do without the memory that each sets aside for what it parses.
pub(super) fn set_nothing_aside(connection: &Connection) {
    const OPTION: c_int = rusqlite::ffi::SQLITE_DBCONFIG_LOOKASIDE;
    let none = ptr::null_mut::<c_void>();
    // SAFETY: the connection is open, and these are the arguments that the option takes: memory, if it is to use some that is
    // there, the size of a piece and the number of pieces. It says so and changes nothing if the memory is in use.
    unsafe {
        rusqlite::ffi::sqlite3_db_config(connection.handle(), OPTION, none, 0 as c_int, 0 as c_int);
    }
}

/// Reads the first page, and no schema: by that the write-ahead log is opened.
pub(super) fn look_at(connection: &Connection) -> rusqlite::Result<()> {
    connection.query_row("PRAGMA schema_version", [], |_| Ok(()))
}

/// An error for the operator: a sentence, and no HTTP behind it.
pub(super) fn refusal(sentence: String) -> Error {
    Error::new(ErrCode::Unknown, sentence)
}

pub(super) fn unusable(path: &Path, e: &rusqlite::Error) -> Error {
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
#[derive(Debug)]
pub struct ScratchFolder(PathBuf);

impl ScratchFolder {
    /// A fresh one, in the kernel's memory file system where there is one. A real file will be in it, because SQLite's own
    /// in-memory databases let readers and the writer block each other.
    pub(super) fn new() -> Result<Self> {
        scratch_folder().map(Self)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Names of scratch folders begin with this.
const SCRATCH_PREFIX: &str = "doorstep-memory-";
/// No scratch folder is there for longer, but those of who was killed meanwhile.
const SCRATCH_TIMEOUT: Duration = Duration::from_secs(600);
const SCRATCH_BASE: &str = "/dev/shm";

/// Deletes the scratch folders of those who were killed while they opened one.
pub fn sweep_memory() {
    for base in [PathBuf::from(SCRATCH_BASE), std::env::temp_dir()] {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let is_scratch = entry.file_name().to_str().is_some_and(|name| name.starts_with(SCRATCH_PREFIX));
            // Somebody else's cannot be deleted, and whose time lies in the future is new.
            let age =
                entry.metadata().and_then(|data| data.modified()).map(|at| at.elapsed().unwrap_or_default());
            if is_scratch && age.is_ok_and(|age| age > SCRATCH_TIMEOUT) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn scratch_folder() -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut last = None;
    for base in [PathBuf::from(SCRATCH_BASE), std::env::temp_dir()] {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|e| Error::internal(e.to_string()))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name =
            format!("{SCRATCH_PREFIX}{}-{number}-{:016x}", std::process::id(), u64::from_ne_bytes(random));
        let folder = base.join(name);
        match fs::DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) => last = Some(e),
        }
    }
    Err(refusal("There is no folder for temporary files".into())
        .with_cause(last.unwrap_or_else(|| std::io::Error::other("?"))))
}
