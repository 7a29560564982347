//! Files that are replaced whole: whatever happens to the process, or to the machine, there is the one before or the one after,
//! and what was said to be written is on the disk.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, lchown};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::random;

/// Gives a file that was written beside its place the name that it is to have, in place of what had it, and returns when its
/// bytes and its name are on the disk.
pub(crate) fn put_in_place(new: &Path, path: &Path) -> io::Result<()> {
    File::open(new)?.sync_all()?;
    fs::rename(new, path)?;
    sync_folder(folder_of(path))
}

/// Writes a file that only its owner may read, in place of what had its name.
pub(crate) fn replace_file(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let mut new = NewFile::beside(path)?;
    new.file().write_all(bytes)?;
    new.put_in_place()
}

/// Gives what an administrator of the machine has made in a server's folder, and all that is in it, to whoever has this: else
/// the server could not open it. Everybody else makes what is their own.
pub(crate) fn give_to_owner_of(like: &Path, made: &Path) -> io::Result<()> {
    let owner = fs::metadata(like)?;
    give(made, (owner.uid(), owner.gid()))
}

fn give(made: &Path, owner: (u32, u32)) -> io::Result<()> {
    let found = fs::symlink_metadata(made)?;
    if found.is_dir() {
        for entry in fs::read_dir(made)? {
            give(&entry?.path(), owner)?;
        }
    }
    if found.uid() == owner.0 {
        return Ok(());
    }
    match lchown(made, Some(owner.0), Some(owner.1)) {
        // Who may not give anything away has not taken anybody's either.
        Err(e) if e.kind() == ErrorKind::PermissionDenied => Ok(()),
        given => given,
    }
}

/// Has the names in a folder go to the disk.
pub(crate) fn sync_folder(folder: &Path) -> io::Result<()> {
    File::open(folder)?.sync_all()
}

fn folder_of(path: &Path) -> &Path {
    path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."))
}

/// A file that is to have a name once it is whole: until then it has another one beside that. Dropped before, it is gone.
pub(crate) struct NewFile {
    file: File,
    beside: PathBuf,
    path: PathBuf,
}

impl NewFile {
    /// Begins one that only its owner may read. What processes that were killed have left of others for this name goes; those
    /// that somebody is writing stay.
    pub(crate) fn beside(path: &Path) -> io::Result<Self> {
        let Some(name) = path.file_name() else { return Err(ErrorKind::InvalidInput.into()) };
        remove_left(path);
        loop {
            let mut new = name.to_owned();
            new.push(format!(".{}{NEW}", random::letters(RANDOM_LETTERS)));
            let beside = path.with_file_name(new);
            let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&beside)?;
            match try_lock(&file) {
                // Before it was locked somebody else may have taken it for one that was left.
                Ok(()) if file.metadata()?.nlink() == 0 => {}
                Err(e) if e.kind() == ErrorKind::WouldBlock => {}
                // What cannot be locked, on a file system that knows no locks, nobody takes away either.
                _ => return Ok(Self { file, beside, path: path.to_owned() }),
            }
        }
    }

    /// Where its bytes go.
    pub(crate) fn file(&mut self) -> &mut File {
        &mut self.file
    }

    /// It is whole. Returns when it is on the disk by its name.
    pub(crate) fn put_in_place(self) -> io::Result<()> {
        put_in_place(&self.beside, &self.path)
    }
}

impl Drop for NewFile {
    fn drop(&mut self) {
        // It has its name by now, or is to be gone.
        let _ = fs::remove_file(&self.beside);
    }
}

/// How a large file goes to the disk beside others who wait for it: in portions that the disk takes in a few moments, whatever
/// disk it is, so that nobody's write stands behind a heap of these.
pub(crate) struct SyncPace {
    portion_bytes: u64,
    unsynced_bytes: u64,
}

impl SyncPace {
    const PORTION_BYTES_MIN: u64 = 256 << 10;
    const PORTION_BYTES_MAX: u64 = 8 << 20;
    /// So long a portion may take.
    const PORTION_TIME: Duration = Duration::from_millis(10);

    pub(crate) fn new() -> Self {
        Self { portion_bytes: 1 << 20, unsynced_bytes: 0 }
    }

    /// So much more was written: has it go to the disk once that is a portion. Gives how long that took.
    pub(crate) fn wrote(&mut self, bytes: u64, file: &File) -> io::Result<Option<Duration>> {
        self.unsynced_bytes += bytes;
        if self.unsynced_bytes < self.portion_bytes {
            return Ok(None);
        }
        let begun = Instant::now();
        file.sync_data()?;
        let took = begun.elapsed();
        self.unsynced_bytes = 0;
        if took > Self::PORTION_TIME {
            self.portion_bytes = (self.portion_bytes / 2).max(Self::PORTION_BYTES_MIN);
        } else if took < Self::PORTION_TIME / 4 {
            self.portion_bytes = (self.portion_bytes * 2).min(Self::PORTION_BYTES_MAX);
        }
        Ok(Some(took))
    }
}

/// Leaves the disk, or the processor, to others for a moment.
#[allow(clippy::disallowed_methods, reason = "nothing is waited for but time")]
pub(crate) fn leave_to_others(how_long: Duration) {
    /// However slow something was.
    const PAUSE_MAX: Duration = Duration::from_millis(100);
    thread::sleep(how_long.min(PAUSE_MAX));
}

/// These bytes of a file will not be looked at again soon: the memory that holds them is for others. A hint.
#[cfg(any(target_os = "linux", target_os = "android"))]
pub(crate) fn forget_cached(file: &File, at: u64, bytes: u64) {
    let (Ok(at), Ok(bytes)) = (at.try_into(), bytes.try_into()) else { return };
    // SAFETY: the descriptor belongs to `file`, which is open; the call gives the kernel a hint, and touches no memory of ours.
    unsafe { libc::posix_fadvise(file.as_raw_fd(), at, bytes, libc::POSIX_FADV_DONTNEED) };
}

/// These bytes of a file will not be looked at again soon: here nobody can be told.
#[cfg(not(any(target_os = "linux", target_os = "android")))]
pub(crate) fn forget_cached(_: &File, _: u64, _: u64) {}

const NEW: &str = ".new";
const RANDOM_LETTERS: usize = 8;

/// Deletes what is left of files that were to have this name, and that nobody is writing any more.
fn remove_left(path: &Path) {
    let Some(name) = path.file_name().and_then(|name| name.to_str()) else { return };
    let is_of_it = |found: &str| {
        let middle = found.strip_prefix(name).and_then(|rest| rest.strip_prefix('.')?.strip_suffix(NEW));
        middle.is_some_and(|middle| {
            middle.len() == RANDOM_LETTERS && middle.bytes().all(|byte| byte.is_ascii_alphabetic())
        })
    };
    let Ok(entries) = fs::read_dir(folder_of(path)) else { return };
    for entry in entries.flatten() {
        if !entry.file_name().to_str().is_some_and(is_of_it)
            || !entry.file_type().is_ok_and(|found| found.is_file())
        {
            continue;
        }
        let Ok(file) = OpenOptions::new().write(true).open(entry.path()) else { continue };
        if try_lock(&file).is_err() {
            continue;
        }
        match fs::remove_file(entry.path()) {
            Ok(()) => log::info!("{} was left half written, and is deleted", entry.path().display()),
            // It was just put in place.
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => log::warn!("{} could not be deleted: {e}", entry.path().display()),
        }
        // Until now: whoever makes a file of this name and finds it locked makes another one.
        drop(file);
    }
}

/// Locks a file as long as it is open, as it is while somebody writes it.
fn try_lock(file: &File) -> io::Result<()> {
    // SAFETY: the descriptor belongs to `file`, which is open; flock touches no memory.
    match unsafe { libc::flock(file.as_raw_fd(), libc::LOCK_EX | libc::LOCK_NB) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::temporary_folder;

    #[test]
    fn what_root_makes_in_a_folder_of_somebody_else_is_theirs() {
        let folder = temporary_folder("given");
        let made = folder.join("media/ab");
        fs::create_dir_all(&made).unwrap();
        fs::write(made.join("file"), b"bytes").unwrap();
        std::os::unix::fs::symlink("/etc", folder.join("media/elsewhere")).unwrap();
        const NOBODY: u32 = 65_534;
        // Whoever is not root makes what is their own, and gives nothing away.
        let owner = lchown(&folder, Some(NOBODY), Some(NOBODY))
            .map_or(fs::metadata(&folder).unwrap().uid(), |()| NOBODY);
        give_to_owner_of(&folder, &folder.join("media")).unwrap();
        for of in ["media", "media/ab", "media/ab/file", "media/elsewhere"] {
            assert_eq!(fs::symlink_metadata(folder.join(of)).unwrap().uid(), owner, "{of}");
        }
        assert_ne!(fs::metadata("/etc").unwrap().uid(), NOBODY, "what a link leads to stays whose it is");
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn what_a_kill_left_goes_with_the_next_file_and_what_is_being_written_stays() {
        let folder = temporary_folder("durable");
        let path = folder.join("b.tar");
        let names = || {
            let names = fs::read_dir(&folder).unwrap().map(|entry| entry.unwrap().file_name());
            let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
            names.sort();
            names
        };
        for left in ["b.tar.abcdefgh.new", "b.tar.ABCDEFGH.new"] {
            fs::write(folder.join(left), b"half").unwrap();
        }
        let others = ["a.tar.abcdefgh.new", "b.tar.abcdefg1.new", "b.tar.new", "b.tar.old.abcdefgh.new"];
        for other in others {
            fs::write(folder.join(other), b"precious").unwrap();
        }
        let mut first = NewFile::beside(&path).unwrap();
        first.file().write_all(b"first").unwrap();
        replace_file(&path, b"second").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"second");
        assert_eq!(names().len(), others.len() + 2, "{:?}", names());
        first.put_in_place().unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"first");
        drop(NewFile::beside(&path).unwrap());
        let mut wanted = others.to_vec();
        wanted.push("b.tar");
        wanted.sort_unstable();
        assert_eq!(names(), wanted);
        fs::remove_dir_all(&folder).unwrap();
    }

    #[test]
    fn of_many_who_write_one_name_at_once_nobody_takes_the_file_of_another_away() {
        let folder = temporary_folder("durable");
        let path = folder.join("b.tar");
        thread::scope(|scope| {
            for n in 0..8_u8 {
                let path = &path;
                scope.spawn(move || (0..300).for_each(|_| replace_file(path, &[n; 100]).expect("written")));
            }
        });
        let written = fs::read(&path).unwrap();
        assert!(written.len() == 100 && written.iter().all(|byte| *byte == written[0]));
        assert_eq!(fs::read_dir(&folder).unwrap().count(), 1);
        fs::remove_dir_all(&folder).unwrap();
    }
}
