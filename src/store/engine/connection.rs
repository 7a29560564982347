//! A connection to a database: what every one is told, and what the operator is told of a database that cannot be used.

use std::ffi::{c_int, c_void};
use std::path::Path;
use std::ptr;
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, OpenFlags};

use crate::error::{ErrCode, Error, Result};
use crate::store::engine::sqlite_error::disk_failure;

/// What may differ from one database to the next.
#[derive(Debug, Clone)]
pub struct Options {
    /// Whether a commit waits for the disk. Off only where the data is worth nothing (fixtures).
    pub durable: bool,
    /// Whether a database that nobody was ever served by may get another name.
    pub may_rename: bool,
    /// How many threads may read at once; each costs at most 2 MB of page cache.
    pub readers: usize,
}

impl Default for Options {
    fn default() -> Self {
        Self { durable: true, may_rename: false, readers: 4 }
    }
}

/// The page cache of the writer.
pub(super) const WRITER_CACHE_KIB: i64 = 8000;
/// The page cache of a connection that was told of none.
pub(super) const USUAL_CACHE_KIB: i64 = 2000;

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
    connection.busy_timeout(Duration::from_secs(5))?;
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
/// instead of twenty: a server that nobody uses is to take little, and a process of tests may have hundreds of them.
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
        Some(Code::DatabaseCorrupt) => format!(
            "The database {path} is malformed ({e}): keep a copy of its folder, and have `doorstep restore` make a new one of \
             the last backup"
        ),
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
