//! Folding the write-ahead log into the database, on a thread of its own: on a slow disk that takes seconds, and nobody
//! who writes should wait for it.
//!
//! SQLite starts a log over only when all of it is in the database and nobody reads what is in it, which is never so
//! while somebody writes and others read. So the thread does the bulk while all goes on, then keeps new readers out
//! until those who are there have left, and the writer does the little that came meanwhile. Nobody waits longer than a
//! read takes.
//!
//! When nobody has written for a while, the log is folded too: then the database file alone is all there is, for
//! whoever copies it.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::{Connection, OpenFlags, ffi};

use crate::error::Result;
use crate::locks::{lock, wait_timeout_while};
use crate::store::engine::connection::{look_at, set_nothing_aside};
use crate::store::engine::gate::Gate;
use crate::store::engine::sqlite_error::disk_failure;

/// The log is folded into the database when it has so many pages: 12 MB. The pages of indexes by hash are written again
/// and again meanwhile, and reach the database once.
const LOG_PAGES: i64 = 3000;
/// Where somebody's long read keeps the log from being started over, it is tried again whenever it has grown by so
/// much.
const LOG_PAGES_RETRY: i64 = LOG_PAGES / 4;
/// A log of so many pages is not let grow: the writer waits for the disk.
const LOG_PAGES_MAX: i64 = 4 * LOG_PAGES;

/// The thread does the bulk so often until it leaves no more than a little.
const ROUNDS_MAX: usize = 5;
const LOG_PAGES_FEW: i64 = 100;

/// For how long new readers are kept out, waiting for those inside: usually, and when the log has become too long.
const READERS_LEAVE_TIMEOUT: Duration = Duration::from_millis(100);
const READERS_LEAVE_LONG_TIMEOUT: Duration = Duration::from_millis(500);
/// When some did not leave in time, they are left in peace for so long.
const GATE_PAUSE: Duration = Duration::from_secs(1);
/// The writer does the rest at its next commit; if none comes in this time, the thread does.
const WRITER_COMES_TIMEOUT: Duration = Duration::from_millis(20);
/// For how long the writer waits for the thread, when the log has become too long.
const FOLD_TIMEOUT: Duration = Duration::from_secs(1);

/// When nobody has written for so long, what there is is folded.
const IDLE_PAUSE: Duration = Duration::from_secs(2);

/// What the thread is at.
#[derive(Clone, Copy, PartialEq, Eq)]
enum FoldStage {
    Idle,
    /// It has been told that the log is long.
    Busy,
    /// It has folded what there was when it began.
    Done,
}

/// What the writer and the thread tell each other.
struct LogState {
    /// How many pages the log had after the last commit.
    pages: AtomicI64,
    /// How many commits there were.
    commits: AtomicU64,
    /// Whether there is anything to be folded.
    unfolded: AtomicBool,
    stage: Mutex<FoldStage>,
    changed: Condvar,
}

impl LogState {
    fn stage(&self) -> MutexGuard<'_, FoldStage> {
        lock(&self.stage)
    }

    fn set(&self, stage: FoldStage) {
        *self.stage() = stage;
        self.changed.notify_all();
    }

    /// Waits until the thread, or the writer, has gone on from a stage.
    fn wait_while(&self, stage: FoldStage, patience: Duration) -> FoldStage {
        let guard = self.stage();
        *wait_timeout_while(&self.changed, guard, patience, |now| *now == stage)
    }
}

/// The thread, as the writer sees it. Dropping it waits for the thread.
pub(in crate::store) struct Checkpointer {
    path: PathBuf,
    durable: bool,
    readers: Arc<Gate>,
    shared: Arc<LogState>,
    /// How long the log must be for the next attempt.
    next: i64,
    /// The thread, and what rings for it; there is none before there is something to fold.
    thread: Option<(SyncSender<()>, JoinHandle<()>)>,
}

impl Checkpointer {
    /// Takes over from SQLite, which would have each commit that finds the log long do it all.
    pub(in crate::store) fn new(
        writer: &mut Connection,
        path: &Path,
        durable: bool,
        readers: Arc<Gate>,
    ) -> Result<Self> {
        let shared = Arc::new(LogState {
            pages: AtomicI64::new(0),
            commits: AtomicU64::new(0),
            unfolded: AtomicBool::new(false),
            stage: Mutex::new(FoldStage::Idle),
            changed: Condvar::new(),
        });
        let seen = shared.clone();
        writer.wal_hook(Some(move |_: &mut _, pages| {
            seen.pages.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        }))?;
        Ok(Self { path: path.to_owned(), durable, readers, shared, next: LOG_PAGES, thread: None })
    }

    /// To be called after each commit.
    pub(in crate::store) fn look_after(&mut self, writer: &Connection) {
        let shared = self.shared.clone();
        shared.commits.fetch_add(1, Ordering::Relaxed);
        // Nobody copies a database that is worth nothing.
        if self.durable && !shared.unfolded.swap(true, Ordering::AcqRel) && !self.ring() {
            shared.unfolded.store(false, Ordering::Release);
        }
        let pages = shared.pages.load(Ordering::Relaxed);
        let mut stage = *shared.stage();
        if pages < LOG_PAGES {
            self.next = LOG_PAGES;
            if stage == FoldStage::Done {
                shared.set(FoldStage::Idle);
            }
            return;
        }
        if stage == FoldStage::Idle && pages >= self.next {
            self.next = pages + LOG_PAGES_RETRY;
            stage = FoldStage::Busy;
            shared.set(stage);
            if !self.ring() {
                stage = FoldStage::Done;
            } else if pages >= LOG_PAGES_MAX {
                stage = shared.wait_while(FoldStage::Busy, FOLD_TIMEOUT);
            }
        } else if stage == FoldStage::Busy && pages >= LOG_PAGES_MAX.max(self.next) {
            self.next = pages + LOG_PAGES_RETRY;
            stage = shared.wait_while(FoldStage::Busy, FOLD_TIMEOUT);
        }
        if stage == FoldStage::Done {
            report(fold(writer));
            shared.set(FoldStage::Idle);
        }
    }

    /// Has the thread look. False: there is none, so the writer has to do it.
    fn ring(&mut self) -> bool {
        if self.thread.is_none() {
            match self.start() {
                Ok(thread) => self.thread = Some(thread),
                Err(e) => log::warn!("no thread to fold the write-ahead log: {e}"),
            }
        }
        // A bell that has rung already will be heard.
        self.thread.as_ref().map(|(bell, _)| bell.try_send(())).is_some()
    }

    fn start(&self) -> std::io::Result<(SyncSender<()>, JoinHandle<()>)> {
        let (bell, rings) = sync_channel(1);
        let worker = CheckpointThread {
            path: self.path.clone(),
            durable: self.durable,
            shared: self.shared.clone(),
            readers: self.readers.clone(),
            in_peace_until: None,
            connection: None,
        };
        let body = move || worker.work(&rings);
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(body)?;
        Ok((bell, thread))
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        if let Some((bell, thread)) = self.thread.take() {
            drop(bell);
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct CheckpointThread {
    path: PathBuf,
    durable: bool,
    shared: Arc<LogState>,
    readers: Arc<Gate>,
    in_peace_until: Option<Instant>,
    /// Opened when it is first needed.
    connection: Option<Connection>,
}

impl CheckpointThread {
    fn work(mut self, rings: &Receiver<()>) {
        while rings.recv().is_ok() {
            loop {
                if *self.shared.stage() == FoldStage::Busy {
                    self.fold_long_log();
                }
                let commits = self.shared.commits.load(Ordering::Relaxed);
                match rings.recv_timeout(IDLE_PAUSE) {
                    Ok(()) => continue,
                    Err(RecvTimeoutError::Disconnected) => return,
                    Err(RecvTimeoutError::Timeout) => {}
                }
                if self.shared.commits.load(Ordering::Relaxed) != commits {
                    continue;
                }
                self.shared.unfolded.store(false, Ordering::Release);
                match report(self.fold()) {
                    Some(folded) if folded.left > 0 => self.shared.unfolded.store(true, Ordering::Release),
                    _ => break,
                }
            }
        }
    }

    /// All of it, so that it starts over, or as much as those who read let us.
    fn fold_long_log(&mut self) {
        for _ in 0..ROUNDS_MAX {
            match report(self.fold()) {
                Some(folded) if self.shared.pages.load(Ordering::Relaxed) - folded.done > LOG_PAGES_FEW => {}
                _ => break,
            }
        }
        let gate = Arc::clone(&self.readers);
        let is_too_long = self.shared.pages.load(Ordering::Relaxed) >= LOG_PAGES_MAX;
        let closed = match self.in_peace_until {
            Some(until) if Instant::now() < until => None,
            _ => gate.close(if is_too_long { READERS_LEAVE_LONG_TIMEOUT } else { READERS_LEAVE_TIMEOUT }),
        };
        if closed.is_none() {
            let (now, peace) = (Instant::now(), self.in_peace_until);
            self.in_peace_until = peace.filter(|until| now < *until).or(Some(now + GATE_PAUSE));
        }
        self.shared.set(FoldStage::Done);
        if closed.is_some()
            && self.shared.wait_while(FoldStage::Done, WRITER_COMES_TIMEOUT) == FoldStage::Done
        {
            // Nobody writes.
            report(self.fold());
            self.shared.set(FoldStage::Idle);
        }
    }

    fn fold(&mut self) -> rusqlite::Result<Folded> {
        match &self.connection {
            Some(connection) => fold(connection),
            None => {
                let opened = open(&self.path, self.durable)?;
                fold(self.connection.insert(opened))
            }
        }
    }
}

/// A connection for the thread. It reads no schema, which would weigh more than all else that it needs.
fn open(path: &Path, durable: bool) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let connection = Connection::open_with_flags(path, flags)?;
    set_nothing_aside(&connection);
    if !durable {
        // Else it waits for the disk, as every connection does to begin with.
        connection.pragma_update(None, "synchronous", "OFF")?;
    }
    look_at(&connection)?;
    connection.execute_batch("PRAGMA shrink_memory")?;
    Ok(connection)
}

/// What a fold came to, in pages of the log.
struct Folded {
    done: i64,
    left: i64,
}

/// As far as nobody has to wait for it. The statement for it would have the connection read the schema first.
fn fold(connection: &Connection) -> rusqlite::Result<Folded> {
    let (mut log, mut done) = (-1, -1);
    // SAFETY: the connection is open and nobody else uses it meanwhile; the name ends with a zero, and is looked at, as both
    // numbers are written, before the call returns.
    let code = unsafe {
        ffi::sqlite3_wal_checkpoint_v2(
            connection.handle(),
            c"main".as_ptr(),
            ffi::SQLITE_CHECKPOINT_PASSIVE,
            &raw mut log,
            &raw mut done,
        )
    };
    match code {
        // Busy: somebody else is at it.
        ffi::SQLITE_OK | ffi::SQLITE_BUSY => {
            Ok(Folded { done: i64::from(done), left: i64::from(log - done) })
        }
        code => Err(rusqlite::Error::SqliteFailure(ffi::Error::new(code), None)),
    }
}

fn report(folded: rusqlite::Result<Folded>) -> Option<Folded> {
    // Of a full disk the writer tells, as soon as it needs more room.
    let level =
        |e: &rusqlite::Error| if disk_failure(e).is_some() { log::Level::Debug } else { log::Level::Warn };
    let told = |e: &rusqlite::Error| {
        log::log!(level(e), "the write-ahead log could not be folded into the database: {e}");
    };
    folded.inspect_err(told).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::tests::Folder;
    use crate::store::{Location, Options, Store};

    /// The bytes that a connection has in memory for something.
    fn held(connection: &Connection, what: i32) -> i32 {
        let (mut now, mut most) = (-1, -1);
        // SAFETY: the connection is open, and both numbers outlive the call.
        let code =
            unsafe { ffi::sqlite3_db_status(connection.handle(), what, &raw mut now, &raw mut most, 0) };
        assert_eq!(code, ffi::SQLITE_OK);
        now
    }

    #[test]
    fn who_folds_the_log_waits_for_the_disk_and_reads_no_schema() {
        let folder = Folder::new();
        let (name, at) = (ServerName::parse("example.org").unwrap(), Location::Folder(folder.0.clone()));
        let store = Store::open(at, &name, Box::new(|_| {}), &Options::default()).unwrap();
        store.write(|tx| tx.execute("UPDATE server SET stream = stream + 1", &[])).unwrap();
        let connection = open(store.readers.path(), true).unwrap();
        let folded = fold(&connection).unwrap();
        assert!(folded.done > 0 && folded.left == 0, "{} done, {} left", folded.done, folded.left);
        assert_eq!(held(&connection, ffi::SQLITE_DBSTATUS_SCHEMA_USED), 0);
        assert!(held(&connection, ffi::SQLITE_DBSTATUS_CACHE_USED) < 8192);
        let synchronous: i64 = connection.query_row("PRAGMA synchronous", [], |row| row.get(0)).unwrap();
        assert_eq!(synchronous, 2, "full");
        // Now it has been read: the figure above means something.
        assert!(held(&connection, ffi::SQLITE_DBSTATUS_SCHEMA_USED) > 10_000);
    }
}
