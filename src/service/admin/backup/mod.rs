//! Backups: the whole server in one file, made while it runs.
//!
//! - `archive`: what such a file looks like, and how it is read;
//! - `written`: a file comes to be whole, on the disk, or not at all;
//! - `restore`: a folder is made of one;
//! - `regular`: one is made every so often, and the last few are kept.
//!
//! The database is copied first, into the data folder, under a name that is gone at once: so much room has to be there. The
//! files of media never change, and are read as they are sent. One that is deleted meanwhile is left out, and what had it is
//! forgotten when the backup is restored.

pub mod archive;
pub mod regular;
pub mod restore;
pub mod written;

use std::fs;
use std::io::{self, ErrorKind, Read};
use std::path::Path;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use sha2::{Digest, Sha256};

use self::archive::{BLOCK, End, Manifest, Member, head, padding};
use super::Admin;
use crate::clock::Millis;
use crate::config::Data;
use crate::durable::leave_to_others;
use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait_timeout_while};
use crate::protocol::certificates::calendar::utc;
use crate::service::media::files::{MediaFiles, free_bytes};
use crate::store::engine::restoring::STAGING;
use crate::store::engine::space::VACUUMED;
use crate::store::media::BlobHash;
use crate::store::{DatabaseCopy, SCHEMA_VERSION};

/// The copy of the database, in the data folder, until it is whole.
const COPY: &str = "doorstep.backup.new";
/// So much of the disk is left to the server while the database is copied.
const KEPT_FREE_BYTES: u64 = 64 << 20;
/// So many files of media are looked up at once.
const HASHES_AT_ONCE: usize = 256;

/// For so long who asks for a backup waits for the one before: that its reader went away is seen when it is written to next.
const SLOT_WAIT: Duration = Duration::from_secs(2);

/// A backup that nobody has read on for so long makes way for another: who has to be asked for a password, or to change a tape, has
/// the time for it, and whose reader was forgotten keeps no other from being made.
const STALLED_AFTER: Duration = Duration::from_secs(5 * 60);

/// The backup that is being made: one at a time, since each takes room on the disk.
#[derive(Clone, Default)]
pub struct BackupSlot(Arc<(Mutex<TakenSlot>, Condvar)>);

#[derive(Default)]
struct TakenSlot {
    by: Option<SlotHolder>,
    serial: u64,
}

struct SlotHolder {
    number: u64,
    begun_ms: Millis,
    /// When it last went on.
    moved: Instant,
}

impl BackupSlot {
    /// Takes the slot, of one that has stood still for `stalled` too. Errors: 409 `M_UNKNOWN`.
    fn take(&self, now: Millis, stalled: Duration) -> Result<BackupPermit> {
        let (slot, given_back) = &*self.0;
        let is_held = |slot: &mut TakenSlot| slot.by.as_ref().is_some_and(|by| by.moved.elapsed() < stalled);
        let mut slot = wait_timeout_while(given_back, lock(slot), SLOT_WAIT, is_held);
        if is_held(&mut slot) {
            let since = slot.by.as_ref().map_or(now, |by| by.begun_ms);
            let message = format!("Another backup is being made, since {}", utc(since));
            return Err(Error::new(ErrCode::Unknown, message).with_status(409));
        }
        if let Some(stalled) = &slot.by {
            log::warn!(
                "the backup that was begun at {} is read by nobody: another is made",
                utc(stalled.begun_ms)
            );
        }
        slot.serial += 1;
        let number = slot.serial;
        slot.by = Some(SlotHolder { number, begun_ms: now, moved: Instant::now() });
        drop(slot);
        Ok(BackupPermit { slot: self.clone(), number })
    }
}

struct BackupPermit {
    slot: BackupSlot,
    number: u64,
}

impl BackupPermit {
    /// The backup goes on. Errors: it has stood still for so long that another is made.
    fn go_on(&self) -> Result<()> {
        match lock(&self.slot.0.0).by.as_mut().filter(|by| by.number == self.number) {
            Some(by) => {
                by.moved = Instant::now();
                Ok(())
            }
            None => {
                let gone = "Nobody read this backup for minutes, and another was begun";
                Err(Error::new(ErrCode::Unknown, gone).with_status(503))
            }
        }
    }
}

impl Drop for BackupPermit {
    fn drop(&mut self) {
        let (slot, given_back) = &*self.slot.0;
        let mut slot = lock(slot);
        if slot.by.as_ref().is_some_and(|by| by.number == self.number) {
            slot.by = None;
            given_back.notify_one();
        }
    }
}

impl Admin<'_> {
    /// A backup, to be read to its end; it is on no disk then, but where its reader puts it. Everything that was acknowledged
    /// when this was called is in it. `wanted`: whether there is somebody still who will read it.
    ///
    /// Errors: 409 while another one is made; 503 once nobody wants it or the server stops; 507 where the disk has no room for a second database; 400 for a server without a
    /// data folder.
    pub fn back_up(&self, wanted: impl Fn() -> bool) -> Result<Backup> {
        let Data::Folder(folder) = &self.config.data else {
            return Err(Error::invalid_param("A server without a data folder has nothing to be backed up"));
        };
        let begun_ms = self.clock.now_ms();
        let permit = self.backup_slot.take(begun_ms, STALLED_AFTER)?;
        let copy = self.copy_database(folder, || permit.go_on().is_ok() && wanted())?;
        let name = self.server_name().clone();
        let manifest = Manifest::new(name, SCHEMA_VERSION, begun_ms, copy.bytes());
        let pace = ReadPace::new(Box::new(self.store.positions()));
        Ok(Backup::new(manifest, copy, self.media_files.clone(), permit, pace))
    }

    /// Copies the database, and takes the name of the copy away again.
    fn copy_database(&self, folder: &Path, wanted: impl Fn() -> bool) -> Result<DatabaseCopy> {
        let path = folder.join(COPY);
        // What a kill has left: there is one at a time.
        remove(&path)?;
        let size = self.store.read(|db| db.file_bytes())?.unsigned_abs();
        let has_room = |bytes: u64| {
            let free = free_bytes(folder).unwrap_or(u64::MAX);
            let lacking = bytes.saturating_add(KEPT_FREE_BYTES).saturating_sub(free);
            if lacking == 0 { Ok(()) } else { Err(no_room(lacking)) }
        };
        has_room(size)?;
        let copied = self
            .store
            .copy_to(&path, |progress| {
                if self.scheduler.is_stopping() {
                    return Err(Error::new(ErrCode::Unknown, "The server stops").with_status(503));
                }
                if !wanted() {
                    return Err(Error::new(ErrCode::Unknown, "Nobody waits for it").with_status(503));
                }
                has_room(progress.of.saturating_sub(progress.done))
            })
            .and_then(|()| DatabaseCopy::open(&path));
        remove(&path)?;
        copied
    }
}

/// What a kill left of a backup, of a database that was written anew, or of a restore that was all but over.
pub(in crate::service) fn sweep(folder: &Path) -> Result<()> {
    match fs::remove_dir_all(folder.join(STAGING)) {
        Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
        _ => {}
    }
    [COPY, VACUUMED].iter().try_for_each(|name| remove(&folder.join(name)))
}

fn remove(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != ErrorKind::NotFound => Err(e.into()),
        _ => Ok(()),
    }
}

fn no_room(lacking: u64) -> Error {
    let more = lacking.div_ceil(1 << 20);
    let sentence = format!(
        "The disk with the data folder has no room for a copy of the database, which a backup is made of: {more} MiB are lacking"
    );
    Error::new(ErrCode::Unknown, sentence).with_status(507)
}

/// A backup that is read.
pub struct Backup {
    at: Millis,
    copy: DatabaseCopy,
    files: MediaFiles,
    hash: Sha256,
    /// How much of the archive was made.
    bytes: u64,
    pace: ReadPace,
    media_files: u64,
    media_bytes: u64,
    next: Next,
    /// The files of media that come next, the last one first, and the last one that was looked up.
    hashes: Vec<BlobHash>,
    looked_upto: Option<BlobHash>,
    /// What is read next, and where it goes on.
    ready: Vec<u8>,
    ready_at: usize,
    /// Then so many bytes of this, and zeros behind it.
    file: Option<(Box<dyn Read + Send>, u64, usize)>,
    permit: BackupPermit,
}

/// Keeps the making of an archive, which takes a processor for itself, from being felt by those who write meanwhile: half of the
/// time it leaves to them.
struct ReadPace {
    /// The last position that was given out.
    position: Box<dyn Fn() -> i64 + Send>,
    last: i64,
    bytes: u64,
    since: Instant,
}

impl ReadPace {
    /// After so much it is looked whether anybody writes.
    const LOOK_EVERY_BYTES: u64 = 1 << 20;
    /// The longest pause for so much, however long it took whoever reads.
    const PAUSE_MAX: Duration = Duration::from_millis(10);

    fn new(position: Box<dyn Fn() -> i64 + Send>) -> Self {
        Self { last: position(), position, bytes: 0, since: Instant::now() }
    }

    /// So much was made in all.
    fn made(&mut self, bytes: u64) {
        if bytes - self.bytes < Self::LOOK_EVERY_BYTES {
            return;
        }
        let position = (self.position)();
        if position != self.last {
            leave_to_others(self.since.elapsed().min(Self::PAUSE_MAX));
        }
        (self.last, self.bytes, self.since) = (position, bytes, Instant::now());
    }
}

enum Next {
    Manifest(Manifest),
    Database(u64),
    Media,
    End,
    Nothing,
}

impl Backup {
    fn new(
        manifest: Manifest,
        copy: DatabaseCopy,
        files: MediaFiles,
        permit: BackupPermit,
        pace: ReadPace,
    ) -> Self {
        Self {
            pace,
            at: manifest.begun_ms,
            copy,
            files,
            hash: Sha256::new(),
            bytes: 0,
            media_files: 0,
            media_bytes: 0,
            next: Next::Manifest(manifest),
            hashes: Vec::new(),
            looked_upto: None,
            ready: Vec::new(),
            ready_at: 0,
            file: None,
            permit,
        }
    }

    /// Makes the next part ready; false: there is none.
    fn go_on(&mut self) -> Result<bool> {
        match std::mem::replace(&mut self.next, Next::Nothing) {
            Next::Manifest(manifest) => {
                self.text(Member::Manifest, serde_json::to_vec(&manifest).map_err(Error::internal)?);
                self.next = Next::Database(manifest.database_bytes);
            }
            Next::Database(bytes) => {
                let file = Box::new(self.copy.reader());
                self.file(Member::Database, bytes, file);
                self.next = Next::Media;
            }
            Next::Media => {
                self.next = if self.next_media()? { Next::Media } else { Next::End };
            }
            Next::End => {
                let digest = self.hash.clone().finalize();
                let end = End {
                    bytes: self.bytes,
                    sha256: digest.iter().map(|byte| format!("{byte:02x}")).collect(),
                    media_files: self.media_files,
                    media_bytes: self.media_bytes,
                };
                self.text(Member::End, serde_json::to_vec(&end).map_err(Error::internal)?);
                self.ready.resize(self.ready.len() + 2 * BLOCK, 0);
            }
            Next::Nothing => return Ok(false),
        }
        Ok(true)
    }

    fn text(&mut self, member: Member, text: Vec<u8>) {
        self.ready.extend_from_slice(&head(member, text.len() as u64, self.at));
        self.ready.extend_from_slice(&text);
        self.ready.resize(self.ready.len() + padding(text.len() as u64), 0);
    }

    fn file(&mut self, member: Member, bytes: u64, file: Box<dyn Read + Send>) {
        self.ready.extend_from_slice(&head(member, bytes, self.at));
        self.file = Some((file, bytes, padding(bytes)));
    }

    /// The next file of media that is there; false: there is none.
    fn next_media(&mut self) -> Result<bool> {
        loop {
            let Some(hash) = self.hashes.pop() else {
                self.hashes = self.copy.blobs_after(self.looked_upto, HASHES_AT_ONCE)?;
                self.hashes.reverse();
                let Some(last) = self.hashes.first() else { return Ok(false) };
                self.looked_upto = Some(*last);
                continue;
            };
            // One that is gone was deleted since.
            let Some(file) = self.files.open_blob(&hash)? else { continue };
            let bytes = file.size();
            (self.media_files, self.media_bytes) = (self.media_files + 1, self.media_bytes + bytes);
            self.file(Member::Media(hash), bytes, Box::new(file));
            return Ok(true);
        }
    }

    fn read_ready(&mut self, buf: &mut [u8]) -> usize {
        let left = &self.ready[self.ready_at..];
        let most = left.len().min(buf.len());
        buf[..most].copy_from_slice(&left[..most]);
        self.ready_at += most;
        if self.ready_at == self.ready.len() {
            self.ready.clear();
            self.ready_at = 0;
        }
        most
    }

    fn read_file(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let Some((file, left, padding)) = &mut self.file else { return Ok(0) };
        let most = usize::try_from(*left).unwrap_or(usize::MAX).min(buf.len());
        let mut read = 0;
        if most > 0 {
            read = file.read(&mut buf[..most])?;
            if read == 0 {
                return Err(io::Error::other("a file became shorter while it was backed up"));
            }
        }
        *left -= read as u64;
        if *left == 0 {
            self.ready.resize(*padding, 0);
            self.file = None;
        }
        Ok(read)
    }
}

impl Read for Backup {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if buf.is_empty() {
            return Ok(0);
        }
        self.permit.go_on().map_err(io::Error::other)?;
        loop {
            let read = match (self.ready.is_empty(), self.file.is_some()) {
                (false, _) => self.read_ready(buf),
                (true, true) => self.read_file(buf)?,
                (true, false) => 0,
            };
            if read > 0 {
                self.hash.update(&buf[..read]);
                self.bytes += read as u64;
                self.pace.made(self.bytes);
                // However long a disk took over it.
                self.permit.go_on().map_err(io::Error::other)?;
                return Ok(read);
            }
            if self.file.is_none() && self.ready.is_empty() && !self.go_on().map_err(io::Error::other)? {
                return Ok(0);
            }
        }
    }
}

#[cfg(test)]
mod tests;
