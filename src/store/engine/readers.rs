//! The read-only connections: a fixed number, lent out for one snapshot at a time.

use std::cell::Cell;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::Instant;

use rusqlite::{Connection, OpenFlags};

use crate::error::{Error, Result};
use crate::locks::{lock, wait};
use crate::store::engine::connection::{
    Options, USUAL_CACHE_KIB, configure, keep_few_pages, look_at, set_nothing_aside,
};
use crate::store::engine::gate::Gate;
use crate::store::{Db, StoreState};

/// After so many steps of SQLite's machine, some hundreds of microseconds, it is asked whether time is up.
const STEPS_BETWEEN_LOOKS: i32 = 10_000;

thread_local! {
    /// Whether this thread is inside a `read`, or is the writer. Either could wait for itself if it asked again.
    static INSIDE: Cell<bool> = const { Cell::new(false) };
}

/// Marks the writer's thread, for good.
pub(in crate::store) fn mark_writer_thread() {
    INSIDE.set(true);
}

/// An error instead of a deadlock: `read` and `write` are not to be called from inside either.
pub(in crate::store) fn refuse_nesting(what: &str) -> Result<()> {
    if INSIDE.get() {
        debug_assert!(false, "{what} was asked for inside a read or a write");
        return Err(Error::internal(format!("{what} was asked for inside a read or a write")));
    }
    Ok(())
}

pub(in crate::store) struct Readers {
    path: PathBuf,
    shared: Arc<StoreState>,
    pool: Mutex<ReaderPool>,
    returned: Condvar,
    gate: Arc<Gate>,
}

struct ReaderPool {
    idle: Vec<Connection>,
    unopened: usize,
    /// How many wait for one: to wake nobody costs a call of the system all the same.
    waiting: usize,
}

impl Readers {
    /// `eager` opens all of them now (a scratch database has no name later on); otherwise each when first needed.
    pub(in crate::store) fn new(
        path: PathBuf,
        options: &Options,
        eager: bool,
        shared: Arc<StoreState>,
    ) -> Result<Readers> {
        let count = options.readers.max(1);
        let mut pool = ReaderPool { idle: Vec::with_capacity(count), unopened: count, waiting: 0 };
        if eager {
            for number in 1..=count {
                let connection = open(&path)?;
                // The write-ahead log is opened by name. Each reads the schema for itself when it is first used, and only the
                // last is, unless there is more than one to be read at a time.
                if number < count {
                    set_nothing_aside(&connection);
                    look_at(&connection)?;
                    connection.execute_batch("PRAGMA shrink_memory")?;
                } else {
                    keep_few_pages(&connection, USUAL_CACHE_KIB)?;
                }
                pool.idle.push(connection);
            }
            pool.unopened = 0;
        }
        let (pool, returned) = (Mutex::new(pool), Condvar::new());
        Ok(Readers { path, shared, pool, returned, gate: Arc::default() })
    }

    /// The database. One in memory has no such file any more.
    pub(in crate::store) fn path(&self) -> &Path {
        &self.path
    }

    /// What all of them pass.
    pub(in crate::store) fn gate(&self) -> Arc<Gate> {
        self.gate.clone()
    }

    pub(in crate::store) fn read<T>(&self, f: impl FnOnce(&Db<'_>) -> Result<T>) -> Result<T> {
        let lent = self.begin()?;
        f(&Db::reader(lent.connection(), &self.shared))
    }

    /// A connection on which a snapshot was begun. Apart from `read`, which is compiled anew for each closure.
    fn begin(&self) -> Result<LentReader<'_>> {
        refuse_nesting("a read")?;
        let lent = self.lend()?;
        lent.connection().prepare_cached("BEGIN")?.execute([])?;
        Ok(lent)
    }

    /// [`Readers::read`] for what may take long: from then on whatever is asked of the database is broken off, with an error
    /// of its own.
    pub(in crate::store) fn read_until<T>(
        &self,
        until: Instant,
        f: impl FnOnce(&Db<'_>) -> Result<T>,
    ) -> Result<T> {
        refuse_nesting("a read")?;
        let mut lent = self.lend()?;
        lent.end_at(until)?;
        let connection = lent.connection();
        connection.prepare_cached("BEGIN")?.execute([])?;
        f(&Db::reader(connection, &self.shared))
    }

    /// Writes all that is there to a new database at this path.
    pub(in crate::store) fn copy_to(&self, path: &Path) -> Result<()> {
        refuse_nesting("a copy")?;
        let lent = self.lend()?;
        let path = path.to_str().ok_or_else(|| Error::internal("a folder whose name is not UTF-8"))?;
        lent.connection().execute("VACUUM INTO ?1", [path])?;
        Ok(())
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let connection = open(&self.path)?;
        keep_few_pages(&connection, USUAL_CACHE_KIB)?;
        Ok(connection)
    }

    fn lend(&self) -> Result<LentReader<'_>> {
        let mut pool = lock(&self.pool);
        let connection = loop {
            if let Some(connection) = pool.idle.pop() {
                break connection;
            }
            if pool.unopened > 0 {
                pool.unopened -= 1;
                drop(pool);
                match self.open() {
                    Ok(connection) => break connection,
                    Err(e) => {
                        lock(&self.pool).unopened += 1;
                        self.returned.notify_one();
                        return Err(e.into());
                    }
                }
            }
            pool.waiting += 1;
            pool = wait(&self.returned, pool);
            pool.waiting -= 1;
        };
        self.gate.enter();
        INSIDE.set(true);
        Ok(LentReader { readers: self, connection: Some(connection), has_end: false })
    }
}

/// A connection on loan; dropping it, also in a panic, ends its snapshot and gives it back.
struct LentReader<'r> {
    readers: &'r Readers,
    connection: Option<Connection>,
    /// Whether what it is asked is broken off at some time.
    has_end: bool,
}

impl LentReader<'_> {
    fn end_at(&mut self, until: Instant) -> Result<()> {
        self.has_end = true;
        if let Some(connection) = &mut self.connection {
            connection.progress_handler(STEPS_BETWEEN_LOOKS, Some(move || Instant::now() > until))?;
        }
        Ok(())
    }

    fn connection(&self) -> &Connection {
        self.connection.as_ref().expect("taken only by drop")
    }
}

impl Drop for LentReader<'_> {
    fn drop(&mut self) {
        INSIDE.set(false);
        let Some(mut connection) = self.connection.take() else { return };
        let is_free = !self.has_end || connection.progress_handler(0, None::<fn() -> bool>).is_ok();
        let ended = is_free
            && (connection.is_autocommit()
                || connection.prepare_cached("ROLLBACK").and_then(|mut s| s.execute([])).is_ok());
        let connection = ended.then_some(connection);
        self.readers.gate.leave();
        let mut pool = lock(&self.readers.pool);
        match connection {
            Some(connection) => pool.idle.push(connection),
            None => pool.unopened += 1,
        }
        let is_wanted = pool.waiting > 0;
        drop(pool);
        if is_wanted {
            self.readers.returned.notify_one();
        }
    }
}

fn open(path: &PathBuf) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    configure(&connection, USUAL_CACHE_KIB)?;
    Ok(connection)
}
