//! The folders of tests on the disk. Whoever makes one deletes it. What is there for the whole process, or never dropped, goes
//! with the process; and what a killed process left goes with a later one.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, Once};
use std::time::Duration;

use crate::locks::lock;

/// So long a folder stays whose process is gone: as data of a failed test, which somebody may want to look at.
const LEFT_FOLDER_TIMEOUT: Duration = Duration::from_secs(24 * 3600);

/// What is deleted when the process ends.
static UNTIL_THE_END: Mutex<BTreeSet<PathBuf>> = Mutex::new(BTreeSet::new());

/// A folder of its own under the system's temporary folder. It stays until somebody deletes it, or, once its process is gone,
/// until a test a day later.
///
/// # Panics
/// If it cannot be made.
pub fn temporary_folder(what: &str) -> PathBuf {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    static SWEPT: Once = Once::new();
    SWEPT.call_once(|| sweep(&std::env::temp_dir(), LEFT_FOLDER_TIMEOUT));
    loop {
        let number = COUNT.fetch_add(1, Ordering::Relaxed);
        let name = format!("doorstep-{what}-{}-{number}", std::process::id());
        let folder = std::env::temp_dir().join(name);
        match fs::create_dir(&folder) {
            Ok(()) => return folder,
            // What a process left that had this one's id before.
            Err(e) if e.kind() == std::io::ErrorKind::AlreadyExists => {}
            Err(e) => panic!("{}: {e}", folder.display()),
        }
    }
}

/// The same, deleted at the end of the process at the latest: also if what it belongs to is never dropped.
pub(super) fn folder_until_the_end(what: &str) -> PathBuf {
    static ASKED: Once = Once::new();
    let folder = temporary_folder(what);
    lock(&UNTIL_THE_END).insert(folder.clone());
    ASKED.call_once(|| {
        // SAFETY: the function is there for as long as the process, and panics nowhere.
        let _ = unsafe { libc::atexit(delete_all) };
    });
    folder
}

extern "C" fn delete_all() {
    // Who ends the process may be in the middle of this.
    let Ok(folders) = UNTIL_THE_END.try_lock() else { return };
    for folder in folders.iter() {
        let _ = fs::remove_dir_all(folder);
    }
}

/// Leaves this folder for somebody to look at.
pub(super) fn keep(folder: &Path) {
    lock(&UNTIL_THE_END).remove(folder);
}

/// Deletes this folder now.
pub(super) fn delete(folder: &Path) {
    keep(folder);
    if let Err(e) = fs::remove_dir_all(folder) {
        log::warn!("cannot delete {}: {e}", folder.display());
    }
}

/// Deletes the folders of processes that are gone, if they are older than this.
fn sweep(base: &Path, age: Duration) {
    for entry in fs::read_dir(base).into_iter().flatten().flatten() {
        let Some(process) = entry.file_name().to_str().and_then(process_in) else { continue };
        let changed = entry.metadata().and_then(|data| data.modified());
        // Whose time lies in the future is new.
        let is_old = changed.is_ok_and(|at| at.elapsed().is_ok_and(|since| since > age));
        if is_old && !Path::new("/proc").join(process.to_string()).exists() {
            // Somebody else's cannot be deleted.
            let _ = fs::remove_dir_all(entry.path());
        }
    }
}

/// The process that has made a folder of this name, if it is one of these.
fn process_in(name: &str) -> Option<u32> {
    let mut parts = name.strip_prefix("doorstep-")?.rsplitn(3, '-');
    let (number, process, what) = (parts.next()?, parts.next()?, parts.next()?);
    number.parse::<u64>().ok().filter(|_| !what.is_empty())?;
    process.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_process_left_that_is_gone_is_deleted_when_it_is_old() {
        let base = temporary_folder("sweep");
        let own = std::process::id();
        // No process has this id: it is more than the kernel gives out.
        let gone = 1 << 30;
        let names = [
            (format!("doorstep-server-{gone}-0"), true),
            (format!("doorstep-two-words-{gone}-17"), true),
            (format!("doorstep-server-{own}-0"), false),
            (format!("doorstep-{gone}-0"), false),
            (format!("doorstep-memory-{gone}-0-00ff"), false),
            ("doorstep-notes-a-b".to_owned(), false),
            ("doorstep".to_owned(), false),
            (format!("others-{gone}-0"), false),
        ];
        for (name, _) in &names {
            fs::create_dir(base.join(name)).expect("a folder");
            fs::write(base.join(name).join("file"), "x").expect("a file");
        }
        sweep(&base, Duration::from_secs(3600));
        assert!(names.iter().all(|(name, _)| base.join(name).exists()), "none of them is old");
        sweep(&base, Duration::ZERO);
        for (name, goes) in &names {
            assert_ne!(base.join(name).exists(), *goes, "{name}");
        }
        delete(&base);
        assert!(!base.exists());
    }
}
