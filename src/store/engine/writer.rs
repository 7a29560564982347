//! The writer thread and its group commit: what queued up while the disk was busy is committed together. Between two
//! commits it copies a few pages for whoever makes a copy of the database (`copy`).

use std::any::Any;
use std::panic::{AssertUnwindSafe, Location, catch_unwind};
use std::sync::atomic::Ordering;
use std::sync::{Arc, mpsc};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::readers;
use crate::error::{ErrCode, Error, Result};
use crate::store::cache::WriterCache;
use crate::store::engine::checkpoint::Checkpointer;
use crate::store::engine::commit_feed::{Changes, CommitFeed, OnCommit};
use crate::store::engine::copy_steps::{CopyOrder, CopyStep};
use crate::store::engine::due_rows::FirstDue;
use crate::store::{Db, StoreState, Tx};

/// How many closures share a commit at most. More than there are threads that could wait for one.
const GROUP_MAX: usize = 256;

/// After so many positions that only light commits have written, one waits for the disk: far fewer than the positions
/// that are passed over at the start (`Store::open`), so that none is given out twice, whatever a power cut took.
const UNSYNCED_POSITIONS_MAX: i64 = 10_000;

/// A closure that holds the writer for longer is told of in the log; and who comes after it has the next commit.
const SLOW_CLOSURE: Duration = Duration::from_millis(50);

/// So long the disk has to take everything before it is said to: while it is nearly full, small commits may find room,
/// and the log is to be told of one full disk and not of many.
const DISK_CALM_PAUSE: Duration = Duration::from_secs(2);

/// What a closure answered, whatever its type is.
type Answer = Box<dyn Any + Send>;

/// A closure that waits for the writer. Only that it boxes its answer is compiled anew for each: there are hundreds of them.
type WriteClosure = Box<dyn FnOnce(&mut Tx<'_>) -> Result<Answer> + Send>;

/// A closure in the writer's queue.
struct QueuedWrite {
    closure: Option<WriteClosure>,
    answer: Option<Result<Answer>>,
    /// Whether its caller wants it to be on disk, and not only with the operating system.
    lasting: bool,
    /// Where in the source it is asked for.
    asked_at: &'static Location<'static>,
    caller: mpsc::SyncSender<Result<Answer>>,
}

impl QueuedWrite {
    /// Runs the closure and keeps its answer. An error means that what it wrote is to be undone.
    fn run(&mut self, tx: &mut Tx<'_>) -> Result<()> {
        let Some(closure) = self.closure.take() else { return Err(Error::internal("a closure ran twice")) };
        let answer =
            catch_unwind(AssertUnwindSafe(|| closure(tx))).unwrap_or_else(|panic| Err(panicked(&*panic)));
        let undone = self.answer.insert(answer).as_ref().err().map(copy_of);
        undone.map_or(Ok(()), Err)
    }

    /// Tells the caller the answer. `lost` says why that does not hold although the closure succeeded.
    fn finish(self, lost: Option<Error>) {
        let answer = match (self.answer, lost) {
            (Some(Err(e)), _) | (_, Some(e)) => Err(e),
            (Some(answer), None) => answer,
            (None, None) => Err(Error::internal("a write was not run")),
        };
        // A caller that went away wants no answer.
        let _ = self.caller.send(answer);
    }
}

/// What the writer is asked for.
enum WriterJob {
    Write(QueuedWrite),
    /// To begin a copy of the database.
    Copy(CopyOrder),
    /// To copy some pages more, for the copy that was begun.
    CopyMore(CopyStep),
}

fn copy_of(e: &Error) -> Error {
    Error::new(e.errcode(), e.message().to_owned()).with_status(e.status())
}

fn panicked(panic: &(dyn Any + Send)) -> Error {
    Error::internal(format!("a write panicked: {}", panic_text(panic)))
}

fn panic_text(panic: &(dyn Any + Send)) -> &str {
    panic
        .downcast_ref::<&str>()
        .copied()
        .or_else(|| panic.downcast_ref::<String>().map(String::as_str))
        .unwrap_or("no message")
}

/// The thread that writes, as everybody else sees it. Dropping it waits for what is queued.
pub(in crate::store) struct Writer {
    jobs: Option<mpsc::Sender<WriterJob>>,
    shared: Arc<StoreState>,
    thread: Option<JoinHandle<()>>,
}

impl Writer {
    pub(in crate::store) fn start(
        connection: Connection,
        checkpointer: Option<Checkpointer>,
        shared: Arc<StoreState>,
        on_commit: OnCommit,
        durable: bool,
    ) -> Result<Writer> {
        let (jobs, queue) = mpsc::channel();
        let feed = CommitFeed::new(on_commit);
        let own = shared.clone();
        let body = move || {
            readers::mark_writer_thread();
            let stream = shared.position.load(Ordering::Acquire);
            let (synced, waits, cache) = (stream, durable, WriterCache::default());
            let disk_failed = None;
            WriterThread {
                checkpointer,
                connection: &connection,
                shared,
                feed,
                durable,
                waits,
                stream,
                synced,
                cache,
                disk_failed,
                lost: 0,
                is_copied: false,
                first_due: None,
            }
            .work(&queue);
        };
        let thread = std::thread::Builder::new().name("store-writer".into()).spawn(body)?;
        Ok(Writer { jobs: Some(jobs), shared: own, thread: Some(thread) })
    }

    #[track_caller]
    pub(in crate::store) fn write<T, F>(&self, lasting: bool, f: F) -> Result<T>
    where
        T: Send + 'static,
        F: FnOnce(&mut Tx<'_>) -> Result<T> + Send + 'static,
    {
        let closure = Box::new(move |tx: &mut Tx<'_>| -> Result<Answer> { Ok(Box::new(f(tx)?)) });
        let answer = self.have_done(closure, lasting, Location::caller())?.downcast::<T>();
        answer.map(|answer| *answer).map_err(|_| Error::internal("another closure's answer"))
    }

    /// Waits until the writer has done this.
    fn have_done(
        &self,
        closure: WriteClosure,
        lasting: bool,
        asked_at: &'static Location<'static>,
    ) -> Result<Answer> {
        let (caller, finished) = mpsc::sync_channel(1);
        let gone = || Error::internal("the database is closed");
        let queued = QueuedWrite { closure: Some(closure), answer: None, lasting, asked_at, caller };
        if let Some(counts) = self.shared.counts.get() {
            counts.queued.fetch_add(1, Ordering::Relaxed);
        }
        self.jobs.as_ref().ok_or_else(gone)?.send(WriterJob::Write(queued)).map_err(|_| gone())?;
        finished.recv().map_err(|_| gone())?
    }

    /// Asks for the beginning of a copy.
    pub(in crate::store) fn copy(&self, order: CopyOrder) -> Result<()> {
        self.ask(WriterJob::Copy(order))
    }

    /// Asks for more of the copy that was begun.
    pub(in crate::store) fn copy_more(&self, step: CopyStep) -> Result<()> {
        self.ask(WriterJob::CopyMore(step))
    }

    fn ask(&self, job: WriterJob) -> Result<()> {
        let gone = || Error::internal("the database is closed");
        self.jobs.as_ref().ok_or_else(gone)?.send(job).map_err(|_| gone())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        // The queue ends when its only sender is gone; what is in it is still written.
        self.jobs = None;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

/// What the writer's thread works with.
struct WriterThread<'c> {
    // Ends before the connection is closed, which then folds the rest of the log into the database.
    checkpointer: Option<Checkpointer>,
    connection: &'c Connection,
    shared: Arc<StoreState>,
    feed: CommitFeed,
    /// Whether commits wait for the disk at all.
    durable: bool,
    /// Whether they do at the moment.
    waits: bool,
    stream: i64,
    /// The last position that is known to be on disk.
    synced: i64,
    cache: WriterCache,
    /// When the disk last did not take something, until it is known to take what comes.
    disk_failed: Option<Instant>,
    /// Commits that were lost.
    lost: u64,
    /// Whether the database is being copied.
    is_copied: bool,
    /// In debug builds, when the first row of each table is due; none: it is not known.
    first_due: Option<FirstDue>,
}

impl WriterThread<'_> {
    fn work(&mut self, queue: &mpsc::Receiver<WriterJob>) {
        let mut next = None;
        while let Some(job) = next.take().or_else(|| queue.recv().ok()) {
            match job {
                WriterJob::Write(first) => next = self.write(first, queue),
                WriterJob::Copy(order) => self.copy(order, queue),
                WriterJob::CopyMore(step) => step.refuse(),
            }
        }
    }

    /// Commits this and what else is queued. Gives a job of another kind that it came upon.
    fn write(&mut self, first: QueuedWrite, queue: &mpsc::Receiver<WriterJob>) -> Option<WriterJob> {
        let (mut group, mut other) = (vec![first], None);
        while group.len() < GROUP_MAX {
            match queue.try_recv() {
                Ok(WriterJob::Write(queued)) => group.push(queued),
                Ok(job) => {
                    other = Some(job);
                    break;
                }
                Err(_) => break,
            }
        }
        if let Some(counts) = self.shared.counts.get() {
            counts.queued.fetch_sub(group.len() as i64, Ordering::Relaxed);
        }
        while !group.is_empty() {
            group = self.commit_counted(group);
        }
        other
    }

    /// Copies the database, a few pages whenever it is asked to, and commits in between what is written.
    fn copy(&mut self, order: CopyOrder, queue: &mpsc::Receiver<WriterJob>) {
        let connection = self.connection;
        self.is_copied = true;
        order.carry_out(connection, |copy| {
            let (mut next, mut has_written) = (None, false);
            while let Some(job) = next.take().or_else(|| queue.recv().ok()) {
                match job {
                    WriterJob::Write(first) => {
                        next = self.write(first, queue);
                        has_written = true;
                    }
                    WriterJob::Copy(order) => order.refuse(),
                    WriterJob::CopyMore(step) if step.is_last() => return,
                    WriterJob::CopyMore(step) => step.take(copy, std::mem::take(&mut has_written)),
                }
            }
        });
        self.is_copied = false;
    }

    /// [`WriterThread::commit_group`], counted if anybody wants to know.
    fn commit_counted(&mut self, group: Vec<QueuedWrite>) -> Vec<QueuedWrite> {
        let Some(counts) = self.shared.counts.get().cloned() else { return self.commit_group(group) };
        let (begun, had, before) = (Instant::now(), group.len(), self.lost);
        let rest = self.commit_group(group);
        counts.commits.add(begun.elapsed());
        counts.writes.fetch_add((had - rest.len()) as u64, Ordering::Relaxed);
        counts.lost.fetch_add(self.lost - before, Ordering::Relaxed);
        rest
    }

    /// Commits what these write, or the first of them if they take long together. Gives the others.
    fn commit_group(&mut self, mut group: Vec<QueuedWrite>) -> Vec<QueuedWrite> {
        let mut changes = Changes::default();
        let mut done = 0;
        let (written, begun_at) = (self.connection.total_changes(), self.stream);
        let lasting =
            group.iter().any(|queued| queued.lasting) || self.stream - self.synced >= UNSYNCED_POSITIONS_MAX;
        let outcome = self
            .let_commits_wait(lasting)
            .inspect_err(|_| done = group.len())
            .and_then(|()| self.run_group(&mut group, &mut done, &mut changes))
            .and_then(|()| {
                self.shared.news.put((begun_at, self.stream), &changes);
                self.shared.presences.put(&changes.presences);
                self.commit()
            });
        if let Err(e) = outcome {
            // The transaction is gone as a whole: those whose closures had run are told; the others get a new one.
            self.give_up_transaction();
            self.lost += 1;
            self.shared.news.take_back(begun_at);
            self.shared.presences.take_back(begun_at);
            self.disk_failed(&e);
            let rest = group.split_off(done.min(group.len()));
            for queued in group {
                queued.finish(Some(lost(&e)));
            }
            return rest;
        }
        if self.connection.total_changes() != written {
            self.disk_took();
        }
        let rest = group.split_off(done);
        if lasting {
            self.synced = self.stream;
        }
        self.shared.position.store(self.stream, Ordering::Release);
        if changes.sessions {
            self.shared.sessions.empty();
        }
        if changes.fronts || changes.redacted {
            self.shared.fronts.empty();
        }
        if changes.redacted {
            self.shared.pdus.begin_anew();
        }
        for queued in group {
            queued.finish(None);
        }
        changes.position = self.stream;
        self.feed.tell(changes);
        if let Some(checkpointer) = &mut self.checkpointer {
            checkpointer.look_after(self.connection);
        }
        rest
    }

    /// Whether the next commit waits for the disk. One that does takes along all that came before it.
    fn let_commits_wait(&mut self, lasting: bool) -> Result<()> {
        if self.durable && self.waits != lasting {
            let level = if lasting { "FULL" } else { "NORMAL" };
            self.connection.pragma_update(None, "synchronous", level)?;
            self.waits = lasting;
        }
        Ok(())
    }

    /// Runs each closure so that it can be undone: in a savepoint, for which each page is copied before it changes; or, as
    /// long as no other has written, in the transaction itself, which is begun anew then. `done` counts those that had
    /// their turn; an error means that the transaction itself is lost.
    fn run_group(
        &mut self,
        group: &mut [QueuedWrite],
        done: &mut usize,
        changes: &mut Changes,
    ) -> Result<()> {
        execute(self.connection, "BEGIN IMMEDIATE").inspect_err(|_| *done = group.len())?;
        if cfg!(debug_assertions) && self.first_due.is_none() {
            self.first_due = Some(FirstDue::read(self.connection)?);
        }
        let begun = Instant::now();
        let mut ended = begun;
        // A copy begins anew when a transaction is rolled back, and would never be done if some are always.
        let mut is_first = !self.is_copied;
        for queued in group.iter_mut() {
            if ended - begun > SLOW_CLOSURE {
                break;
            }
            *done += 1;
            if !is_first {
                execute(self.connection, "SAVEPOINT closure")?;
            }
            let mut tx = Tx {
                db: Db::new(self.connection, &self.shared, Some(&self.cache)),
                stream: self.stream,
                changes: Changes::default(),
            };
            let written = self.connection.total_changes();
            let outcome = queued.run(&mut tx);
            let Tx { stream, changes: own, .. } = tx;
            if self.connection.is_autocommit() {
                // A full disk or an I/O error can make SQLite roll everything back by itself.
                let rolled_back = || Error::internal("SQLite rolled the transaction back");
                return Err(outcome.err().filter(Error::is_disk_full).unwrap_or_else(rolled_back));
            }
            if let Err(e) = &outcome {
                self.disk_failed(e);
            }
            if outcome.is_ok() {
                self.stream = stream;
                if cfg!(debug_assertions) {
                    self.check_cache(&own)?;
                    self.check_due_rows(&own, queued.asked_at)?;
                }
                changes.absorb(own);
            } else {
                if self.connection.total_changes() != written {
                    self.cache.forget_all();
                }
                if is_first {
                    execute(self.connection, "ROLLBACK")?;
                    execute(self.connection, "BEGIN IMMEDIATE")?;
                } else {
                    execute(self.connection, "ROLLBACK TO closure")?;
                }
            }
            if !is_first {
                execute(self.connection, "RELEASE closure")?;
            }
            is_first &= outcome.is_err();
            let before = std::mem::replace(&mut ended, Instant::now());
            if ended - before > SLOW_CLOSURE {
                log::warn!(
                    "the writer was held for {} ms by {}",
                    (ended - before).as_millis(),
                    queued.asked_at
                );
            }
        }
        Ok(())
    }

    fn check_cache(&self, changes: &Changes) -> Result<()> {
        let db = Db::new(self.connection, &self.shared, None);
        for room in &changes.rooms {
            let untrue = self.cache.untrue(&db, *room)?;
            assert!(untrue.is_none(), "the writer remembers of room {room} what is not so: {untrue:?}");
        }
        Ok(())
    }

    fn check_due_rows(&mut self, changes: &Changes, asked_at: &Location<'_>) -> Result<()> {
        let after = FirstDue::read(self.connection)?;
        let sooner = self.first_due.take().and_then(|before| before.sooner_in(&after));
        self.first_due = Some(after);
        if let Some((table, due)) = sooner {
            let told = changes.due.is_some_and(|told| told <= due);
            assert!(told, "the timer is not told of what is due sooner in {table}, by {asked_at}");
        }
        Ok(())
    }

    fn commit(&mut self) -> Result<()> {
        if self.stream != self.shared.position.load(Ordering::Relaxed) {
            self.connection.prepare_cached("UPDATE server SET stream = ?1")?.execute([self.stream])?;
        }
        execute(self.connection, "COMMIT")
    }

    /// Tells the log of a disk that takes nothing: once, however much is refused then.
    fn disk_failed(&mut self, e: &Error) {
        if e.is_disk_full() && self.disk_failed.replace(Instant::now()).is_none() {
            log::error!("{}. What would be written is refused until there is room", e.for_people());
        }
    }

    /// Tells the log, once, that it is over.
    fn disk_took(&mut self) {
        if self.disk_failed.is_some_and(|last| last.elapsed() > DISK_CALM_PAUSE) {
            self.disk_failed = None;
            log::error!("The server's disk takes again what is written");
        }
    }

    fn give_up_transaction(&mut self) {
        if !self.connection.is_autocommit()
            && let Err(e) = execute(self.connection, "ROLLBACK")
        {
            log::error!("a rollback failed: {e}");
        }
        self.stream = self.shared.position.load(Ordering::Relaxed);
        self.cache.forget_all();
        self.first_due = None;
    }
}

fn execute(connection: &Connection, sql: &'static str) -> Result<()> {
    connection.prepare_cached(sql)?.execute([])?;
    Ok(())
}

/// The same failure for each caller of a lost group.
fn lost(e: &Error) -> Error {
    Error::new(ErrCode::Unknown, e.message().to_owned())
        .with_status(e.status())
        .with_cause(format!("a group commit was lost: {}", e.for_people()))
}

#[cfg(test)]
#[path = "writer_tests.rs"]
mod tests;
