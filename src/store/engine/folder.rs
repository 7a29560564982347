//! The data folder: its lock, who may read what is in it, and whether a database that is not there ever was.
//!
//! Everything that a server is lies in one file: accounts, rooms and the secret half of its signing key. Nobody but
//! its owner reads it, whoever made the folder. And a folder whose database is gone or empty is not taken for a new
//! one: the first guest of a new server becomes its administrator.

use std::ffi::OsString;
use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::ErrorKind;
use std::ops::Deref;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use rusqlite::Connection;

use super::migrate::{self, MayBe};
use crate::durable::{give_to_owner_of, put_in_place};
use crate::error::{Error, IN_USE, Result, reason};
use crate::protocol::ServerName;
use crate::store::engine::connection::{Options, open_for_writing, refusal, unusable};
use crate::store::engine::template;

/// The database.
pub(in crate::store) const FILE: &str = "doorstep.db";
/// Taken by the process that has the folder. It tells whose database is beside it, once there is one.
pub(super) const LOCK: &str = "doorstep.lock";
/// What the lock tells while the database is made in its place, where a kill leaves something: nobody was ever served
/// from it.
const BEGUN: &[u8] = b"doorstep.db is being made\n";
/// A database that is being made.
const NEW: &str = "doorstep.db.new";
/// How long whoever wants the folder waits for those who only look whether somebody has it, which takes a moment; and how soon it
/// tries again.
const LOOK_TIMEOUT: Duration = Duration::from_secs(1);
const LOOK_PAUSE: Duration = Duration::from_millis(1);
/// What SQLite keeps beside a database, and takes to belong to whatever has the database's name.
const BESIDE: [&str; 3] = ["-wal", "-shm", "-journal"];

/// The lock of a folder that this process has. Dropped, it is released: a child that was begun meanwhile has a copy of every
/// descriptor until it is the program that it is to be, and a lock that is only closed would be held by that copy.
pub(in crate::store) struct FolderLock(File);

impl Deref for FolderLock {
    type Target = File;

    fn deref(&self) -> &File {
        &self.0
    }
}

impl Drop for FolderLock {
    fn drop(&mut self) {
        unlock(&self.0);
    }
}

/// Releases a lock that was taken by `flock`, for all copies of the descriptor.
fn unlock(file: &File) {
    // There is nothing that could be done about a failure.
    let _ = flock(file, libc::LOCK_UN);
}

fn flock(file: &File, operation: i32) -> std::io::Result<()> {
    // SAFETY: the descriptor belongs to `file`, which is open; flock touches no memory.
    match unsafe { libc::flock(file.as_raw_fd(), operation) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// Whether a process has the folder of this lock: it is shared for a moment to find out.
pub(super) fn is_taken(lock: &File) -> bool {
    if flock(lock, libc::LOCK_SH | libc::LOCK_NB).is_err() {
        return true;
    }
    unlock(lock);
    false
}

/// Makes the folder if need be and takes its lock, which the kernel releases when the process ends in whatever way.
#[allow(clippy::disallowed_methods, reason = "a lock of another process tells nobody when it is free")]
pub(in crate::store) fn lock(folder: &Path) -> Result<FolderLock> {
    DirBuilder::new().recursive(true).mode(0o700).create(folder).map_err(|e| cannot(folder, e))?;
    let file = OpenOptions::new()
        .create(true)
        .truncate(false)
        .read(true)
        .write(true)
        .mode(0o600)
        .open(folder.join(LOCK))
        .map_err(|e| cannot(folder, e))?;
    give_to_owner_of(folder, &folder.join(LOCK)).map_err(|e| cannot(folder, e))?;
    let deadline = Instant::now() + LOOK_TIMEOUT;
    let e = loop {
        match flock(&file, libc::LOCK_EX | libc::LOCK_NB) {
            Ok(()) => return Ok(FolderLock(file)),
            // Nobody has it whom a look does not hold up as well.
            Err(e) if e.kind() == ErrorKind::WouldBlock && !is_taken(&file) && Instant::now() < deadline => {
                thread::sleep(LOOK_PAUSE);
            }
            Err(e) => break e,
        }
    };
    if e.kind() == ErrorKind::WouldBlock {
        return Err(refusal(format!(
            "The data folder {} is in use by another Doorstep process: stop that one first, or choose another folder \
             with --data",
            folder.display()
        ))
        .with_status(IN_USE));
    }
    Err(cannot(folder, e))
}

/// Opens the database of a folder that is locked, making it if the folder is new. Errors: sentences for the operator;
/// then nothing was changed.
pub(in crate::store) fn open(
    folder: &Path,
    lock: &File,
    server_name: &ServerName,
    options: &Options,
) -> Result<Connection> {
    let path = folder.join(FILE);
    let begun = was_begun(lock);
    match size(&path).map_err(|e| cannot(folder, e))? {
        FileState::Some if !begun => {}
        // What is in it by now, a whole database even that somebody restored meanwhile, is kept.
        found @ (FileState::Zero | FileState::Some) if begun => make(folder, found, server_name, options)?,
        found => {
            refuse_a_loss(folder, lock, found)?;
            if found == FileState::Zero {
                note(folder, lock, BEGUN)?;
            }
            make(folder, found, server_name, options)?;
        }
    }
    let mut connection = open_for_writing(&path, options)?;
    migrate::prepare(&mut connection, &path, server_name, MayBe { new: false, renamed: options.may_rename })?;
    refuse_another_schema(&connection, &path)?;
    if !options.durable {
        migrate::pin(&connection, server_name).map_err(|e| unusable(&path, &e))?;
    }
    keep_from_others(folder);
    refuse_a_stump(&connection, &path)?;
    let is_renamed = migrate::rename(&connection, server_name).map_err(|e| unusable(&path, &e))?;
    if is_renamed || !was_owned(lock) {
        let told = owned_by(server_name);
        write_note(folder, lock, told.as_bytes(), options.durable)?;
    }
    Ok(connection)
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum FileState {
    Missing,
    /// The name leads to another place, where nothing is.
    LeadsNowhere,
    Zero,
    Some,
}

fn size(path: &Path) -> std::io::Result<FileState> {
    match fs::metadata(path) {
        Ok(found) if found.len() == 0 => Ok(FileState::Zero),
        Ok(_) => Ok(FileState::Some),
        Err(e) if e.kind() == ErrorKind::NotFound => match fs::symlink_metadata(path) {
            Ok(_) => Ok(FileState::LeadsNowhere),
            Err(_) => Ok(FileState::Missing),
        },
        Err(e) => Err(e),
    }
}

/// Refuses a folder whose database was lost: what is beside it knows of one.
fn refuse_a_loss(folder: &Path, lock: &File, found: FileState) -> Result<()> {
    let path = folder.join(FILE);
    let what = match found {
        FileState::Missing => "is missing",
        FileState::LeadsNowhere => "is a link that leads nowhere",
        FileState::Zero | FileState::Some => "is empty",
    };
    let witness = BESIDE
        .iter()
        .map(|suffix| beside(&path, suffix))
        .find(|file| fs::symlink_metadata(file).is_ok())
        .or_else(|| was_owned(lock).then(|| folder.join(LOCK)))
        .or_else(|| (found == FileState::LeadsNowhere).then(|| path.clone()));
    let Some(witness) = witness else { return Ok(()) };
    Err(refusal(format!(
        "The database {} {what}, but {} says that there was one: please restore it. To begin anew instead, as a \
         server that knows nobody, remove all of the folder's doorstep.* files",
        path.display(),
        witness.display()
    )))
}

/// Makes a database, whole or not at all: a process that is killed meanwhile leaves nothing that the next one could
/// take for a database that was lost, and whoever copies the file never finds half of it in a log.
fn make(folder: &Path, found: FileState, server_name: &ServerName, options: &Options) -> Result<()> {
    let (path, new) = (folder.join(FILE), folder.join(NEW));
    remove_all_of(&new, folder)?;
    // Somebody may have made the empty file on purpose, as the one thing of a container that stays: then it is used.
    let in_place = matches!(found, FileState::Zero | FileState::Some);
    let at = if in_place { &path } else { &new };
    let owned = match found {
        FileState::Zero | FileState::Some => fs::set_permissions(at, Permissions::from_mode(0o600)),
        _ => OpenOptions::new().create_new(true).write(true).mode(0o600).open(at).map(drop),
    };
    owned.map_err(|e| cannot(folder, e))?;
    if !in_place && !options.durable {
        // Who opens it next gives it its name.
        fs::write(at, template::bytes()?).map_err(|e| cannot(folder, e))?;
    } else {
        let mut connection = open_for_writing(at, options)?;
        migrate::prepare(&mut connection, at, server_name, MayBe { new: true, renamed: false })?;
        // The last to close folds the log into the database, and does not say so where the disk has no room for that.
        connection.close().map_err(|(_, e)| unusable(at, &e))?;
        if fs::metadata(beside(at, "-wal")).is_ok_and(|log| log.len() > 0) {
            let full = Err(cannot(folder, ErrorKind::StorageFull.into()));
            return if in_place { full } else { remove_all_of(&new, folder).and(full) };
        }
    }
    if !in_place {
        give_to_owner_of(folder, &new).map_err(|e| cannot(folder, e))?;
        let placed = if options.durable { put_in_place(&new, &path) } else { fs::rename(&new, &path) };
        placed.map_err(|e| cannot(folder, e))?;
    }
    Ok(())
}

/// Removes a database of this folder, with what SQLite keeps beside it.
fn remove_all_of(path: &Path, folder: &Path) -> Result<()> {
    for file in BESIDE.iter().map(|suffix| beside(path, suffix)).chain([path.to_owned()]) {
        match fs::remove_file(&file) {
            Err(e) if e.kind() != ErrorKind::NotFound => return Err(cannot(folder, e)),
            _ => {}
        }
    }
    Ok(())
}

/// Refuses a database with other tables than this program asks.
pub(super) fn refuse_another_schema(connection: &Connection, path: &Path) -> Result<()> {
    match migrate::difference(connection).map_err(|e| unusable(path, &e))? {
        None => Ok(()),
        Some(what) => Err(refusal(another_schema(path, &what))),
    }
}

/// What the operator is told of such a database.
pub(super) fn another_schema(path: &Path, what: &str) -> String {
    format!(
        "{} was made by another state of Doorstep, before its first release: {what} in it is not as this program has it. Start \
         the program that made it, or begin anew with another --data; nothing was changed",
        path.display()
    )
}

/// Refuses a database that was cut off: SQLite would notice only when it comes to a page that is not there.
fn refuse_a_stump(connection: &Connection, path: &Path) -> Result<()> {
    let sql = |e: rusqlite::Error| unusable(path, &e);
    let pages = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    let wanted: i64 = connection.query_row(pages, [], |row| row.get(0)).map_err(sql)?;
    let there = fs::metadata(path).map_err(|e| cannot(path, e))?.len();
    if there >= wanted.unsigned_abs() {
        return Ok(());
    }
    // After a kill the rest may be in the log.
    let checked: String = connection.query_row("PRAGMA quick_check(1)", [], |row| row.get(0)).map_err(sql)?;
    if checked == "ok" {
        return Ok(());
    }
    Err(refusal(format!(
        "The database {} was cut off: it has {there} of {wanted} bytes. Please restore it",
        path.display()
    )))
}

/// Whether the lock tells of a database.
fn was_owned(lock: &File) -> bool {
    lock.metadata().is_ok_and(|lock| lock.len() > 0) && !was_begun(lock)
}

/// Whether the lock tells of a database that was being made when the process ended.
fn was_begun(lock: &File) -> bool {
    let mut told = [0; BEGUN.len()];
    let is_so = lock.metadata().is_ok_and(|lock| lock.len() == BEGUN.len() as u64);
    is_so && lock.read_exact_at(&mut told, 0).is_ok() && told == *BEGUN
}

/// What the lock tells of a database.
pub(in crate::store) fn owned_by(server_name: &ServerName) -> String {
    format!("{FILE} is the database of {server_name}\n")
}

/// Has the lock tell this. Cut off in the middle it tells of an owner, unless it still tells what it did.
pub(in crate::store) fn note(folder: &Path, lock: &File, told: &[u8]) -> Result<()> {
    write_note(folder, lock, told, true)
}

fn write_note(folder: &Path, lock: &File, told: &[u8], durable: bool) -> Result<()> {
    lock.write_all_at(told, 0)
        .and_then(|()| lock.set_len(told.len() as u64))
        .and_then(|()| if durable { lock.sync_data() } else { Ok(()) })
        .map_err(|e| cannot(folder, e))
}

/// Takes the files of this folder from everybody but their owner. What SQLite makes later takes after the database.
fn keep_from_others(folder: &Path) {
    let databases = [folder.join(FILE), folder.join(NEW)];
    let beside = databases.iter().flat_map(|path| BESIDE.iter().map(|suffix| beside(path, suffix)));
    for file in beside.chain(databases.iter().cloned()).chain([folder.join(LOCK)]) {
        let Ok(found) = fs::metadata(&file) else { continue };
        let mode = found.permissions().mode();
        if mode & 0o077 == 0 || !found.is_file() {
            continue;
        }
        match fs::set_permissions(&file, Permissions::from_mode(mode & 0o600)) {
            Ok(()) => log::info!("{} is its owner's alone to read now", file.display()),
            Err(e) => log::warn!("{} can be read by others: {e}", file.display()),
        }
    }
}

pub(super) fn beside(path: &Path, suffix: &str) -> PathBuf {
    let mut name = OsString::from(path);
    name.push(suffix);
    name.into()
}

pub(in crate::store) fn cannot(folder: &Path, e: std::io::Error) -> Error {
    let reason = reason(&e);
    let why = match e.kind() {
        ErrorKind::AlreadyExists | ErrorKind::NotADirectory if !folder.is_dir() => {
            format!("a file is in its way ({reason})")
        }
        ErrorKind::PermissionDenied => {
            format!("{reason}. It has to belong to the user that Doorstep runs as")
        }
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded => format!("{reason}. Make room, and start again"),
        _ => reason,
    };
    refusal(format!("The data folder {} cannot be used: {why}", folder.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Folder;
    use crate::store::{Location, Store};

    fn open_store(folder: &Folder) -> Result<Store> {
        let name = ServerName::parse("example.org").unwrap();
        Store::open(Location::Folder(folder.0.clone()), &name, Box::new(|_| {}), &Options::default())
    }

    #[test]
    fn whoever_looks_whether_somebody_has_a_folder_keeps_nobody_out_of_it() {
        let folder = Folder::new();
        drop(lock(&folder.0).unwrap());
        let done = std::sync::atomic::AtomicBool::new(false);
        let ordering = std::sync::atomic::Ordering::SeqCst;
        thread::scope(|scope| {
            for _ in 0..2 {
                scope.spawn(|| {
                    while !done.load(ordering) {
                        Store::is_served(&folder.0);
                    }
                });
            }
            let kept_out: Vec<_> = (0..2000).filter_map(|_| lock(&folder.0).err()).collect();
            done.store(true, ordering);
            assert_eq!(kept_out.first().map(Error::message), None);
        });
        let held = lock(&folder.0).unwrap();
        assert!(Store::is_served(&folder.0));
        assert!(lock(&folder.0).is_err_and(|e| e.is_in_use()), "whoever has it does");
        drop(held);
        assert!(!Store::is_served(&folder.0));
    }

    fn refused(folder: &Folder) -> String {
        match open_store(folder) {
            Ok(_) => panic!(
                "a server was begun anew in {:?}",
                fs::read_dir(&folder.0).unwrap().collect::<Vec<_>>()
            ),
            Err(e) => e.message().to_owned(),
        }
    }

    /// The contents of every file.
    fn contents(folder: &Folder) -> Vec<(OsString, Vec<u8>)> {
        let files = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap());
        let mut all: Vec<_> = files.map(|file| (file.file_name(), fs::read(file.path()).unwrap())).collect();
        all.sort();
        all
    }

    /// The folder of a server that ran, and was killed if it is to leave its log.
    fn served(killed: bool) -> Folder {
        let folder = Folder::new();
        let store = open_store(&folder).unwrap();
        store.write(|tx| Ok(tx.conn().execute("UPDATE server SET stream = 7", [])?)).unwrap();
        if killed {
            let copy = Folder::new();
            fs::create_dir(&copy.0).unwrap();
            for (name, bytes) in contents(&folder) {
                fs::write(copy.0.join(name), bytes).unwrap();
            }
            return copy;
        }
        folder
    }

    #[test]
    fn a_folder_whose_database_was_lost_begins_no_new_server() {
        for killed in [false, true] {
            for loss in
                ["emptied", "removed", "cut off", "a header without a server", "a link that leads nowhere"]
            {
                let folder = served(killed);
                let path = folder.0.join(FILE);
                let whole = fs::read(&path).unwrap();
                match loss {
                    "emptied" => fs::write(&path, b"").unwrap(),
                    "cut off" => fs::write(&path, &whole[..whole.len() - 4096]).unwrap(),
                    "a header without a server" => {
                        BESIDE.iter().for_each(|suffix| drop(fs::remove_file(beside(&path, suffix))));
                        fs::remove_file(&path).unwrap();
                        let empty = Connection::open(&path).unwrap();
                        empty.pragma_update(None, "journal_mode", "WAL").unwrap();
                    }
                    _ => fs::remove_file(&path).unwrap(),
                }
                if loss == "a link that leads nowhere" {
                    std::os::unix::fs::symlink("/nowhere/at/all.db", &path).unwrap();
                    assert!(refused(&folder).contains("leads nowhere"));
                    continue;
                }
                let before = contents(&folder);
                let message = refused(&folder);
                assert!(message.contains(FILE), "{loss}: {message}");
                if loss != "cut off" {
                    assert_eq!(contents(&folder), before, "{loss}");
                }
                if !killed && loss == "a header without a server" {
                    BESIDE.iter().for_each(|suffix| drop(fs::remove_file(beside(&path, suffix))));
                }
                fs::write(&path, &whole).unwrap();
                drop(open_store(&folder).unwrap_or_else(|e| panic!("{loss}: restored, it opens: {e}")));
            }
        }
    }

    #[test]
    fn a_log_or_an_index_of_one_tells_of_a_database_too() {
        for suffix in BESIDE {
            for emptied in [false, true] {
                let folder = Folder::new();
                fs::create_dir(&folder.0).unwrap();
                fs::write(beside(&folder.0.join(FILE), suffix), b"something").unwrap();
                if emptied {
                    fs::write(folder.0.join(FILE), b"").unwrap();
                }
                let message = refused(&folder);
                assert!(message.contains(suffix) && message.contains("there was one"), "{message}");
            }
        }
    }

    #[test]
    fn a_folder_is_free_once_it_was_let_go_although_a_child_that_was_begun_meanwhile_has_a_copy_of_the_lock()
    {
        let folder = Folder::new();
        let taken = lock(&folder.0).unwrap();
        // As it is between the fork that begins another program and its beginning.
        let copy = taken.try_clone().unwrap();
        let again = lock(&folder.0).err().expect("it is taken");
        assert!(again.message().contains("in use"), "{again}");
        drop(taken);
        let next = lock(&folder.0).expect("it is free");
        // Nor is it the copy's to release.
        drop(copy);
        assert!(lock(&folder.0).is_err());
        drop(next);
        // The same of who only looks.
        assert!(!Store::is_served(&folder.0));
        lock(&folder.0).expect("it is free");
    }

    #[test]
    fn what_a_first_start_that_was_killed_leaves_is_no_hindrance() {
        let folder = Folder::new();
        fs::create_dir(&folder.0).unwrap();
        fs::write(folder.0.join(LOCK), b"").unwrap();
        fs::write(folder.0.join(NEW), b"half a database").unwrap();
        fs::write(beside(&folder.0.join(NEW), "-wal"), b"half a log").unwrap();
        drop(open_store(&folder).unwrap());
        let names: Vec<_> = contents(&folder).into_iter().map(|(name, _)| name).collect();
        assert_eq!(names, [FILE, LOCK]);
        // An empty file that somebody made on purpose, and nothing beside it.
        let folder = Folder::new();
        fs::create_dir(&folder.0).unwrap();
        fs::write(folder.0.join(FILE), b"").unwrap();
        drop(open_store(&folder).unwrap());
        drop(open_store(&folder).unwrap());
    }

    /// What a kill can leave of a database that is being made where an empty file was.
    fn half_made() -> Vec<(&'static str, Folder)> {
        let stages = ["nothing", "a journal", "a header", "a log that ends early"];
        let make = |stage: &'static str| {
            let folder = Folder::new();
            fs::create_dir(&folder.0).unwrap();
            let path = folder.0.join(FILE);
            match stage {
                "a header" | "a log that ends early" => {
                    let empty = Connection::open(&path).unwrap();
                    empty.pragma_update(None, "journal_mode", "WAL").unwrap();
                    if stage == "a log that ends early" {
                        empty.execute_batch(migrate::SCHEMA).unwrap();
                        let header = fs::read(&path).unwrap();
                        let log = fs::read(beside(&path, "-wal")).unwrap();
                        drop(empty);
                        // The header, one page, and less than the next.
                        fs::write(&path, &header[..4096]).unwrap();
                        fs::write(beside(&path, "-wal"), &log[..5000.min(log.len())]).unwrap();
                    }
                }
                _ => fs::write(&path, b"").unwrap(),
            }
            if stage == "a journal" {
                fs::write(beside(&path, "-journal"), [0; 512]).unwrap();
            }
            (stage, folder)
        };
        stages.into_iter().map(make).collect()
    }

    #[test]
    fn a_first_start_in_an_empty_file_that_was_killed_is_no_hindrance_whatever_it_left() {
        for (stage, folder) in half_made() {
            note(&folder.0, &lock(&folder.0).unwrap(), BEGUN).unwrap();
            drop(open_store(&folder).unwrap_or_else(|e| panic!("{stage}: {e}")));
            drop(open_store(&folder).unwrap_or_else(|e| panic!("{stage}, again: {e}")));
            let lock = fs::read_to_string(folder.0.join(LOCK)).unwrap();
            assert_eq!(lock, "doorstep.db is the database of example.org\n", "{stage}");
        }
        // Where no start was on its way, the same tells of a loss.
        for (stage, folder) in half_made().into_iter().skip(1) {
            let message = refused(&folder);
            assert!(message.contains(FILE), "{stage}: {message}");
        }
        // What was restored in the meantime is not made anew.
        for killed in [false, true] {
            let folder = served(killed);
            fs::write(folder.0.join(LOCK), BEGUN).unwrap();
            let store = open_store(&folder).unwrap();
            let stream = "SELECT stream FROM server";
            let stream: i64 =
                store.read(|db| Ok(db.conn().query_row(stream, [], |row| row.get(0))?)).unwrap();
            assert_eq!(stream % 1000, 7, "each start leaps by thousands");
        }
    }

    #[test]
    fn a_start_in_an_empty_file_says_so_before_it_writes_to_it() {
        let folder = Folder::new();
        fs::create_dir(&folder.0).unwrap();
        fs::write(folder.0.join(FILE), b"").unwrap();
        // It gets no further.
        fs::create_dir(folder.0.join(NEW)).unwrap();
        fs::write(folder.0.join(NEW).join("something"), b"").unwrap();
        refused(&folder);
        assert_eq!(fs::read(folder.0.join(LOCK)).unwrap(), BEGUN);
        fs::remove_dir_all(folder.0.join(NEW)).unwrap();
        drop(open_store(&folder).unwrap());
    }

    #[test]
    fn nobody_but_the_owner_reads_the_files_whoever_made_the_folder() {
        let modes = |folder: &Folder| -> Vec<(OsString, u32)> {
            let files = fs::read_dir(&folder.0).unwrap().map(|entry| entry.unwrap());
            files.map(|f| (f.file_name(), f.metadata().unwrap().permissions().mode() & 0o777)).collect()
        };
        let folder = Folder::new();
        fs::create_dir(&folder.0).unwrap();
        fs::set_permissions(&folder.0, Permissions::from_mode(0o755)).unwrap();
        for round in 0..2 {
            let store = open_store(&folder).unwrap();
            store.write(|tx| Ok(tx.conn().execute("UPDATE server SET stream = 7", [])?)).unwrap();
            store.read(|db| db.file_bytes()).unwrap();
            let found = modes(&folder);
            assert_eq!(found.len(), 4, "database, log, its index, lock: {found:?}");
            assert!(found.iter().all(|(_, mode)| *mode == 0o600), "round {round}: {found:?}");
            // As an earlier version, or somebody who restored a copy, left them; here as a kill leaves them.
            for (name, _) in found {
                fs::set_permissions(folder.0.join(name), Permissions::from_mode(0o644)).unwrap();
            }
            drop(store);
        }
    }

    #[test]
    fn a_database_that_was_just_made_is_whole_without_its_log() {
        let folder = Folder::new();
        let _store = open_store(&folder).unwrap();
        let copy = Folder::new();
        fs::create_dir(&copy.0).unwrap();
        fs::copy(folder.0.join(FILE), copy.0.join(FILE)).unwrap();
        assert_eq!(Store::name_of(&copy.0).unwrap().as_str(), "example.org");
        drop(open_store(&copy).unwrap());
    }
}
