//! A copy of the database, made while it is written.
//!
//! Whoever reads for long keeps the write-ahead log from being started over, and a copy takes as long as the disk does. So it
//! is the writer that copies, by SQLite's backup interface: a few pages at a time, between two commits, whenever it is asked
//! for more. What a commit changes of the pages that are copied, SQLite writes into the copy too. So the copy is the database
//! as it is when the last page is copied: everything is in it that was acknowledged before it was begun.
//!
//! Who asks for more does what can be done without the writer: they read ahead what is copied next, so that the writer does not
//! wait for the disk, and wait for the disk in between, so that no heap of unwritten pages comes before what the writer has to
//! wait for. While others write, they leave the writer to them for most of the time.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc::{Receiver, sync_channel};

use rusqlite::backup::StepResult;
use rusqlite::{Connection, OpenFlags};

use crate::durable::{SyncPace, forget_cached, leave_to_others};
use crate::error::{Error, Result};
use crate::store::Store;
use crate::store::engine::connection::configure;
use crate::store::engine::copy_steps::{CopiedPages, CopyOrder, CopyProgress, CopyStep};
use crate::store::engine::restored::blobs_after;
use crate::store::engine::writer::Writer;
use crate::store::media::BlobHash;

/// While others write, the writer is left to them for so many times what a portion took.
const SHARE_OF_OTHERS: u32 = 3;
/// So far ahead of the copy the database is read, and so much at once.
const READ_AHEAD_BYTES: u64 = 4 << 20;
const READ_AT_ONCE_BYTES: usize = 1 << 20;
/// After so many bytes it is asked whether the copy is to go on.
const ASKED_EVERY_BYTES: u64 = 4 << 20;
/// The page cache of the copy.
const CACHE_KIB: i64 = 1000;
/// So often in a row SQLite may say that it cannot copy now.
const BUSY_MAX: u32 = 100;

/// A copy that the writer makes. Dropped, it is over.
struct Copying<'w> {
    writer: &'w Writer,
    ended: Receiver<Connection>,
}

impl<'w> Copying<'w> {
    fn begin(writer: &'w Writer, to: Connection) -> Result<Self> {
        let (begun, is_begun) = sync_channel(1);
        let (end, ended) = sync_channel(1);
        writer.copy(CopyOrder { to, begun, ended: end })?;
        is_begun.recv().map_err(|_| closed())??;
        Ok(Self { writer, ended })
    }

    fn go_on(&self) -> Result<CopiedPages> {
        let (answer, answered) = sync_channel(1);
        self.writer.copy_more(CopyStep { answer: Some(answer) })?;
        answered.recv().map_err(|_| closed())?
    }
}

impl Drop for Copying<'_> {
    fn drop(&mut self) {
        if self.writer.copy_more(CopyStep { answer: None }).is_ok() {
            drop(self.ended.recv());
        }
    }
}

fn closed() -> Error {
    Error::internal("the database is closed")
}

impl Store {
    /// Writes a copy of the database, as it is when this returns, into a new file that only its owner reads; on disk then.
    /// It needs no log beside it. `go_on` is asked every few megabytes, and its error ends it. What was written until an
    /// error is for the caller to remove. Not to be called twice at once.
    ///
    /// Errors: 507 where the disk is full; those of `go_on`.
    pub fn copy_to(&self, path: &Path, mut go_on: impl FnMut(CopyProgress) -> Result<()>) -> Result<()> {
        let file = OpenOptions::new().read(true).write(true).create_new(true).mode(0o600).open(path)?;
        let copying = Copying::begin(&self.writer, open(path)?)?;
        let (mut ahead, mut pace) = (ReadAhead::new(self), SyncPace::new());
        let (mut copied, mut asked, mut busy) = (0_u64, 0_u64, 0);
        loop {
            ahead.read_upto(copied + READ_AHEAD_BYTES);
            let CopiedPages { result, progress, took, others_wrote } = copying.go_on()?;
            match result {
                StepResult::Done => break,
                StepResult::More => busy = 0,
                _ if busy >= BUSY_MAX => {
                    return Err(Error::internal("the database cannot be copied: it is locked"));
                }
                _ => busy += 1,
            }
            if progress.done < copied {
                // It was begun anew.
                asked = 0;
            }
            let synced = pace.wrote(progress.done.saturating_sub(copied), &file)?;
            copied = progress.done;
            if copied - asked >= ASKED_EVERY_BYTES {
                asked = copied;
                go_on(progress)?;
            }
            if others_wrote {
                leave_to_others(took * SHARE_OF_OTHERS + synced.unwrap_or_default());
            }
        }
        drop(copying);
        have_no_log(&file)?;
        file.sync_all()?;
        Ok(())
    }
}

/// Reads what is copied next, so that it is in memory when the writer comes to it.
struct ReadAhead<'s> {
    store: &'s Store,
    piece: Vec<u8>,
    upto: u64,
}

impl<'s> ReadAhead<'s> {
    fn new(store: &'s Store) -> Self {
        Self { store, piece: vec![0; READ_AT_ONCE_BYTES], upto: 0 }
    }

    /// Whatever cannot be read is the copy's to tell.
    fn read_upto(&mut self, wanted: u64) {
        while self.upto < wanted {
            match self.store.read_page_bytes(&mut self.piece, self.upto) {
                Some(read) if read > 0 => self.upto += read as u64,
                _ => self.upto = u64::MAX,
            }
        }
    }
}

/// A copy of the database that nobody changes.
pub struct DatabaseCopy {
    connection: Connection,
    file: Arc<File>,
    bytes: u64,
}

impl DatabaseCopy {
    /// Opens what [`Store::copy_to`] has written. Its name may be taken away then.
    pub fn open(path: &Path) -> Result<Self> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let connection = Connection::open_with_flags(path, flags)?;
        configure(&connection, CACHE_KIB)?;
        let file = Arc::new(File::open(path)?);
        let bytes = file.metadata()?.len();
        Ok(Self { connection, file, bytes })
    }

    /// How large it is.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// All of its bytes.
    pub fn reader(&self) -> impl Read + Send + use<> {
        CopyReader { file: self.file.clone(), at: 0, forgotten: 0 }
    }

    /// The files of media that it knows, in their order, from behind this one on.
    pub fn blobs_after(&self, after: Option<BlobHash>, most: usize) -> Result<Vec<BlobHash>> {
        blobs_after(&self.connection, after, most)
    }
}

/// So much of the copy is read before the memory that holds it is given back.
const FORGOTTEN_AT_ONCE_BYTES: u64 = 1 << 20;

struct CopyReader {
    file: Arc<File>,
    at: u64,
    /// Up to there the memory was given back.
    forgotten: u64,
}

impl Read for CopyReader {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let read = self.file.read_at(buf, self.at)?;
        self.at += read as u64;
        if self.at - self.forgotten >= FORGOTTEN_AT_ONCE_BYTES || read == 0 {
            forget_cached(&self.file, self.forgotten, self.at - self.forgotten);
            self.forgotten = self.at;
        }
        Ok(read)
    }
}

fn open(path: &Path) -> rusqlite::Result<Connection> {
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let to = Connection::open_with_flags(path, flags)?;
    configure(&to, CACHE_KIB)?;
    // Nothing is to be rolled back in a file that is thrown away if it does not become whole, and nobody else knows it.
    to.pragma_update(None, "journal_mode", "OFF")?;
    to.pragma_update(None, "synchronous", "OFF")?;
    to.pragma_update(None, "locking_mode", "EXCLUSIVE")?;
    Ok(to)
}

/// Takes from the head of a database that there is a write-ahead log (SQLite's file format, 1.3.3): then whoever opens it needs
/// to write nothing beside it. The server asks for a log again.
fn have_no_log(file: &File) -> Result<()> {
    const READ_AND_WRITE_VERSION_AT: u64 = 18;
    Ok(file.write_all_at(&[1, 1], READ_AND_WRITE_VERSION_AT)?)
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::protocol::ServerName;
    use crate::store::tests::Folder;
    use crate::store::{Location, Options};

    fn store(folder: &Folder) -> Store {
        let name = ServerName::parse("example.org").unwrap();
        Store::open(Location::Folder(folder.0.clone()), &name, Box::new(|_| {}), &Options::default()).unwrap()
    }

    /// Fills so many rows of one page each, or nearly.
    fn fill(store: &Store, rows: i64) {
        store
            .write(move |tx| {
                for row in 0..rows {
                    tx.conn().execute(
                        "INSERT INTO account_data (user_id, room_id, type, content, stream)
                         VALUES ('@a:example.org', '', ?1, hex(randomblob(1500)), ?1)",
                        [row],
                    )?;
                }
                Ok(())
            })
            .unwrap();
    }

    fn in_copy(path: &Path, query: &str) -> i64 {
        let copy = Connection::open_with_flags(path, OpenFlags::SQLITE_OPEN_READ_ONLY).unwrap();
        let checked: String = copy.query_row("PRAGMA integrity_check", [], |row| row.get(0)).unwrap();
        assert_eq!(checked, "ok");
        copy.query_row(query, [], |row| row.get(0)).unwrap()
    }

    fn names(folder: &Folder) -> Vec<String> {
        let names = std::fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap().file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }

    #[test]
    fn a_copy_has_what_was_written_before_and_is_whole_whatever_is_written_meanwhile() {
        let folder = Folder::new();
        let store = store(&folder);
        fill(&store, 3000);
        let (done, path) = (AtomicBool::new(false), folder.0.join("copy"));
        std::thread::scope(|scope| {
            // Each change is of many pages, new and old, and now and then one is taken back.
            let writer = scope.spawn(|| {
                let mut written = 0_i64;
                while !done.load(Ordering::Relaxed) {
                    written += 1;
                    let outcome = store.write(move |tx| {
                        tx.conn().execute(
                            "UPDATE account_data SET content = hex(randomblob(1400)), stream = stream + 1
                             WHERE CAST(type AS INTEGER) % 97 = ?1 % 97",
                            [written],
                        )?;
                        tx.conn().execute(
                            "INSERT INTO account_data VALUES ('@b:example.org', '', ?1, hex(randomblob(1500)), 0)",
                            [written],
                        )?;
                        match written % 5 {
                            0 => Err(Error::internal("taken back")),
                            _ => Ok(()),
                        }
                    });
                    assert_eq!(outcome.is_err(), written % 5 == 0);
                }
            });
            let mut seen = 0;
            store
                .copy_to(&path, |progress| {
                    seen += 1;
                    assert!(progress.of >= 3000 * 4096, "{progress:?}");
                    Ok(())
                })
                .unwrap();
            done.store(true, Ordering::Relaxed);
            writer.join().unwrap();
            assert!(seen >= 2, "asked every few megabytes");
        });
        assert_eq!(
            in_copy(&path, "SELECT count(*) FROM account_data WHERE user_id = '@a:example.org'"),
            3000
        );
        let taken_back =
            "SELECT count(*) FROM account_data WHERE user_id = '@b:example.org' AND type % 5 = 0";
        assert_eq!(in_copy(&path, taken_back), 0);
        // It was looked into without a log: nothing came beside it.
        assert!(names(&folder).iter().all(|name| !name.starts_with("copy-")), "{:?}", names(&folder));
    }

    #[test]
    fn the_log_does_not_grow_with_a_copy_that_takes_long() {
        let folder = Folder::new();
        let store = store(&folder);
        fill(&store, 4000);
        let log = folder.0.join("doorstep.db-wal");
        let mut longest = 0;
        store
            .copy_to(&folder.0.join("copy"), |_| {
                // Between two portions far more is written than the log may have.
                for round in 0..6 {
                    store
                        .write(move |tx| {
                            Ok(tx.conn().execute(
                                "UPDATE account_data SET content = hex(randomblob(1400)) WHERE type % 6 = ?1",
                                [round],
                            )?)
                        })
                        .unwrap();
                }
                longest = longest.max(std::fs::metadata(&log).unwrap().len());
                Ok(())
            })
            .unwrap();
        assert!(longest < 64 << 20, "the log came to {longest} bytes");
    }

    #[test]
    fn a_copy_that_is_given_up_leaves_the_writer_as_it_was_and_another_can_be_made() {
        let folder = Folder::new();
        let store = store(&folder);
        fill(&store, 3000);
        let path = folder.0.join("copy");
        let e = store.copy_to(&path, |_| Err(Error::forbidden("no more"))).unwrap_err();
        assert_eq!(e.message(), "no more");
        assert!(store.copy_to(&path, |_| Ok(())).is_err(), "nothing is written over");
        std::fs::remove_file(&path).unwrap();
        fill_once_more(&store);
        store.copy_to(&path, |_| Ok(())).unwrap();
        assert_eq!(in_copy(&path, "SELECT count(*) FROM account_data"), 3001);
    }

    fn fill_once_more(store: &Store) {
        let one = "INSERT INTO account_data VALUES ('@c:example.org', '', 't', '{}', 1)";
        store.write(move |tx| Ok(tx.conn().execute(one, [])?)).unwrap();
    }
}
