//! Folders of databases that live in memory.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::error::{Error, Result};
use crate::store::engine::connection::refusal;

/// A folder that goes when this is dropped.
#[derive(Debug)]
pub struct ScratchFolder(PathBuf);

impl ScratchFolder {
    /// A fresh one, in the kernel's memory file system where there is one. A real file will be in it, because SQLite's own
    /// in-memory databases let readers and the writer block each other.
    pub(super) fn new() -> Result<Self> {
        scratch_folder().map(Self)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }
}

impl Drop for ScratchFolder {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// Names of scratch folders begin with this.
const SCRATCH_PREFIX: &str = "doorstep-memory-";
/// No scratch folder is there for longer, but those of who was killed meanwhile.
const SCRATCH_TIMEOUT: Duration = Duration::from_secs(600);
const SCRATCH_BASE: &str = "/dev/shm";

/// Deletes the scratch folders of those who were killed while they opened one.
pub fn sweep_memory() {
    for base in [PathBuf::from(SCRATCH_BASE), std::env::temp_dir()] {
        for entry in fs::read_dir(base).into_iter().flatten().flatten() {
            let is_scratch = entry.file_name().to_str().is_some_and(|name| name.starts_with(SCRATCH_PREFIX));
            // Somebody else's cannot be deleted, and whose time lies in the future is new.
            let age =
                entry.metadata().and_then(|data| data.modified()).map(|at| at.elapsed().unwrap_or_default());
            if is_scratch && age.is_ok_and(|age| age > SCRATCH_TIMEOUT) {
                let _ = fs::remove_dir_all(entry.path());
            }
        }
    }
}

fn scratch_folder() -> Result<PathBuf> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let mut last = None;
    for base in [PathBuf::from(SCRATCH_BASE), std::env::temp_dir()] {
        let mut random = [0u8; 8];
        getrandom::fill(&mut random).map_err(|e| Error::internal(e.to_string()))?;
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name =
            format!("{SCRATCH_PREFIX}{}-{number}-{:016x}", std::process::id(), u64::from_ne_bytes(random));
        let folder = base.join(name);
        match DirBuilder::new().mode(0o700).create(&folder) {
            Ok(()) => return Ok(folder),
            Err(e) => last = Some(e),
        }
    }
    Err(refusal("There is no folder for temporary files".into())
        .with_cause(last.unwrap_or_else(|| io::Error::other("?"))))
}
