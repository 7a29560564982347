//! Folding the write-ahead log into the database, on a thread of its own: on a slow disk that takes seconds, and nobody
//! who writes should wait for it.
//!
//! SQLite starts a log over only when all of it is in the database, which it never is while somebody writes. So the thread
//! does the bulk while writing goes on, and the writer, when the thread is done, the little that came meanwhile.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU8, Ordering};
use std::sync::mpsc::{Receiver, SyncSender, sync_channel};
use std::thread::JoinHandle;

use rusqlite::{Connection, OpenFlags};

use super::configure;
use crate::error::Result;

/// The log is folded into the database when it has so many pages: 12 MB. The pages of indexes by hash are written again
/// and again meanwhile, and reach the database once.
const LOG_PAGES: i64 = 3000;
/// A log of so many pages is not let grow: the writer waits for the disk.
const MOST_PAGES: i64 = 4 * LOG_PAGES;

/// The thread does the bulk so often until it leaves no more than a little.
const ROUNDS: usize = 5;
const LITTLE: i64 = 100;

/// What the thread is at.
const IDLE: u8 = 0;
const BUSY: u8 = 1;
/// It has folded what there was when it began.
const DONE: u8 = 2;

/// The thread, as the writer sees it. Dropping it waits for the thread.
pub(super) struct Checkpointer {
    /// How many pages the log had after the last commit.
    pages: Arc<AtomicI64>,
    state: Arc<AtomicU8>,
    bell: Option<SyncSender<()>>,
    thread: Option<JoinHandle<()>>,
}

impl Checkpointer {
    /// Takes over from SQLite, which would have each commit that finds the log long do it all.
    pub(super) fn start(writer: &mut Connection, path: &Path, durable: bool) -> Result<Self> {
        let (pages, state) = (Arc::new(AtomicI64::new(0)), Arc::new(AtomicU8::new(IDLE)));
        let (bell, rings) = sync_channel(1);
        let seen = pages.clone();
        writer.wal_hook(Some(move |_: &mut _, pages| {
            seen.store(i64::from(pages), Ordering::Relaxed);
            Ok(())
        }))?;
        let worker = Worker { path: path.to_owned(), durable, pages: pages.clone(), connection: None };
        let state_there = state.clone();
        let body = move || worker.fold_at_each(&rings, &state_there);
        let thread = std::thread::Builder::new().name("store-log".into()).spawn(body)?;
        Ok(Self { pages, state, bell: Some(bell), thread: Some(thread) })
    }

    /// To be called after each commit.
    pub(super) fn look_after(&self, writer: &Connection) {
        let pages = self.pages.load(Ordering::Relaxed);
        if pages < LOG_PAGES {
            return;
        }
        let state = self.state.load(Ordering::Acquire);
        if state == DONE || pages >= MOST_PAGES {
            if let Err(e) = fold(writer) {
                log::warn!("the write-ahead log could not be folded into the database: {e}");
            }
            // Unless the thread is at it, which then has more to do than it knew.
            let _ = self.state.compare_exchange(DONE, IDLE, Ordering::AcqRel, Ordering::Relaxed);
        } else if state == IDLE
            && let Some(bell) = &self.bell
        {
            self.state.store(BUSY, Ordering::Release);
            let _ = bell.try_send(());
        }
    }
}

impl Drop for Checkpointer {
    fn drop(&mut self) {
        self.bell = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the thread works with.
struct Worker {
    path: PathBuf,
    durable: bool,
    pages: Arc<AtomicI64>,
    /// Opened when it is first needed: most servers never are that busy.
    connection: Option<Connection>,
}

impl Worker {
    fn fold_at_each(mut self, rings: &Receiver<()>, state: &AtomicU8) {
        for () in rings {
            for _ in 0..ROUNDS {
                match self.fold() {
                    Ok(folded) if self.pages.load(Ordering::Relaxed) - folded > LITTLE => {}
                    Ok(_) => break,
                    Err(e) => {
                        log::warn!("the write-ahead log could not be folded into the database: {e}");
                        break;
                    }
                }
            }
            state.store(DONE, Ordering::Release);
        }
    }

    fn fold(&mut self) -> rusqlite::Result<i64> {
        match &self.connection {
            Some(connection) => fold(connection),
            None => {
                let opened = self.open()?;
                fold(self.connection.insert(opened))
            }
        }
    }

    fn open(&self) -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(&self.path, flags)?;
        configure(&connection, 100)?;
        connection.pragma_update(None, "synchronous", if self.durable { "FULL" } else { "OFF" })?;
        // The log is opened at the first look.
        connection.query_row("SELECT stream FROM server", [], |_| Ok(()))?;
        Ok(connection)
    }
}

/// As far as nobody has to wait for it. Gives how many pages of the log are in the database.
fn fold(connection: &Connection) -> rusqlite::Result<i64> {
    connection.prepare_cached("PRAGMA wal_checkpoint(PASSIVE)")?.query_row([], |row| row.get(2))
}
