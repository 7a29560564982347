//! An empty folder that a server is restored into: it becomes a data folder at the very end, or stays empty. A restore that was
//! killed leaves what it had written, and the next one takes it away.

use std::fs::{self, DirBuilder};
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use crate::durable::{give_to_owner_of, put_in_place, sync_folder};
use crate::error::Result;
use crate::protocol::ServerName;
use crate::store::engine::connection::refusal;
use crate::store::engine::folder::{FILE, FolderLock, LOCK, beside, cannot, lock, note, owned_by};

/// What the lock tells meanwhile: a kill leaves no folder in which a new server would be begun.
const BEGUN: &[u8] = b"doorstep.db is being restored, or was not restored whole\n";
/// What it tells from when on what there is beside the database may be in its place: until then, whatever has such a name is
/// somebody's.
const MOVED: &[u8] =
    b"doorstep.db is being restored, or was not restored whole, and its files are in place\n";
/// What is to be the data folder's, until all of it is there.
pub(crate) const STAGING: &str = "restore.new";
/// What a disk has of its own.
const OF_THE_DISK: &str = "lost+found";

/// A folder that is locked, and has nothing in it but a folder of its own to restore into. Dropped before it is finished, it is
/// as it was.
pub struct RestoringFolder {
    folder: PathBuf,
    staging: PathBuf,
    lock: FolderLock,
    is_made: bool,
    /// What came out of there into the folder.
    moved: Vec<PathBuf>,
    is_finished: bool,
}

impl RestoringFolder {
    /// Whether a server may be restored into this folder: it is empty, or has nothing in it but what a restore that was killed
    /// has left. `others`: what a data folder has beside the database. Errors: a sentence for the operator that says why not.
    pub fn check(folder: &Path, others: &[&str]) -> Result<()> {
        let entries = match fs::read_dir(folder) {
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries.map_err(|e| cannot(folder, e))?,
        };
        let left = left_in(folder, others);
        for entry in entries {
            let name = entry.map_err(|e| cannot(folder, e))?.file_name();
            if name == OF_THE_DISK || left.iter().any(|own| name == *own) {
                continue;
            }
            if fs::symlink_metadata(folder.join(FILE)).is_ok() {
                return Err(refusal(format!(
                    "The folder {} is not empty: there is a server in it, {FILE} is its database. Please restore into another \
                     folder, or move all that is in this one to another place before",
                    folder.display()
                )));
            }
            let what = match name == LOCK {
                true => format!("{LOCK} is left of a server that was in it"),
                false => format!("{} is in it", name.display()),
            };
            return Err(refusal(format!(
                "The folder {} is not empty ({what}): a server is restored into an empty folder only. Please take another one, \
                 or move all that is in this one to another place before",
                folder.display()
            )));
        }
        Ok(())
    }

    /// Takes the folder, which is made if it is not there. Errors: as [`Self::check`]; another process has it.
    pub fn begin(folder: &Path, others: &[&str]) -> Result<Self> {
        Self::check(folder, others)?;
        let is_made = !folder.exists();
        let lock = lock(folder)?;
        // Who had it until now may have restored a server in it.
        if folder.join(FILE).exists() {
            Self::check(folder, others)?;
        }
        let folder = folder.to_owned();
        let staging = folder.join(STAGING);
        remove_left(&folder, others)?;
        let restoring = Self { folder, staging, lock, is_made, moved: Vec::new(), is_finished: false };
        note(&restoring.folder, &restoring.lock, BEGUN)?;
        let made = DirBuilder::new().mode(0o700).create(&restoring.staging);
        made.map_err(|e| cannot(&restoring.folder, e))?;
        Ok(restoring)
    }

    /// Where what is restored is put: laid out as a data folder.
    pub fn staging(&self) -> &Path {
        &self.staging
    }

    /// Makes it the data folder of this server, for good. `others`: what there is beside the database.
    pub fn finish(mut self, server_name: &ServerName, others: &[&str]) -> Result<()> {
        let Self { folder, staging, lock, moved: all_moved, .. } = &mut self;
        // Without its log the database would not be what it was made to be, or nothing at all.
        if fs::metadata(beside(&staging.join(FILE), "-wal")).is_ok_and(|log| log.len() > 0) {
            return Err(refusal(format!(
                "The log of the restored database could not be folded into it: see that there is room on the disk with {}",
                folder.display()
            )));
        }
        give_to_owner_of(folder, staging).map_err(|e| cannot(folder, e))?;
        sync_everything();
        if others.iter().any(|name| staging.join(name).exists()) {
            note(folder, lock, MOVED)?;
        }
        let moved = (|| {
            for name in others {
                if staging.join(name).exists() {
                    fs::rename(staging.join(name), folder.join(name))?;
                    all_moved.push(folder.join(name));
                }
            }
            sync_folder(folder)?;
            // From here on there is a server.
            put_in_place(&staging.join(FILE), &folder.join(FILE))?;
            fs::remove_dir_all(staging)?;
            sync_folder(folder)
        })();
        moved.map_err(|e| cannot(folder, e))?;
        self.is_finished = true;
        note(&self.folder, &self.lock, owned_by(server_name).as_bytes())
    }
}

impl Drop for RestoringFolder {
    fn drop(&mut self) {
        if self.is_finished || self.folder.join(FILE).exists() {
            return;
        }
        let emptied = (|| {
            // Whatever else is in it by now somebody has put there meanwhile.
            self.moved.iter().chain([&self.staging]).try_for_each(|own| match fs::remove_dir_all(own) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => Err(e),
                _ => Ok(()),
            })?;
            fs::remove_file(self.folder.join(LOCK))?;
            match fs::read_dir(&self.folder)?.next() {
                None if self.is_made => fs::remove_dir(&self.folder),
                _ => Ok(()),
            }
        })();
        if let Err(e) = emptied {
            log::error!("{} could not be emptied again: {e}", self.folder.display());
        }
    }
}

/// The names of what a restore that was killed has left in a folder.
fn left_in<'n>(folder: &Path, others: &[&'n str]) -> Vec<&'n str> {
    let told = fs::read(folder.join(LOCK)).unwrap_or_default();
    if told != BEGUN && told != MOVED {
        return Vec::new();
    }
    // What was not moved yet has nothing to do with what has its name in the folder.
    let is_moved = |name: &&&str| told == MOVED && !folder.join(STAGING).join(name).exists();
    [LOCK, STAGING].iter().chain(others.iter().filter(is_moved)).copied().collect()
}

/// Takes away what a restore that was killed has left in a folder that is locked.
fn remove_left(folder: &Path, others: &[&str]) -> Result<()> {
    for left in left_in(folder, others).into_iter().filter(|name| *name != LOCK) {
        match fs::remove_dir_all(folder.join(left)) {
            Ok(()) => log::info!(
                "{} is removed, which a restore that was killed has left",
                folder.join(left).display()
            ),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {}
            Err(e) => return Err(cannot(folder, e)),
        }
    }
    Ok(())
}

/// Has everything that was written go to the disk: the files may be many, and this is once.
fn sync_everything() {
    // SAFETY: a system call without arguments that touches no memory of ours.
    unsafe { libc::sync() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::Folder;

    #[test]
    fn a_restore_that_fails_takes_away_what_came_with_it_and_nothing_that_others_put_there_meanwhile() {
        let folder = Folder::new();
        let name = ServerName::parse("example.org").unwrap();
        let restoring = RestoringFolder::begin(&folder.0, &["media"]).unwrap();
        fs::write(folder.0.join("doorstep.toml"), b"precious").unwrap();
        fs::create_dir_all(folder.0.join("media/ours")).unwrap();
        fs::create_dir(restoring.staging().join("media")).unwrap();
        fs::write(restoring.staging().join(FILE), b"all of it").unwrap();
        // Theirs stands where ours is to be.
        restoring.finish(&name, &["media"]).unwrap_err();
        assert!(folder.0.join("doorstep.toml").exists() && folder.0.join("media/ours").exists());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 2);

        fs::remove_file(folder.0.join("doorstep.toml")).unwrap();
        fs::remove_dir_all(folder.0.join("media")).unwrap();
        let restoring = RestoringFolder::begin(&folder.0, &["media"]).unwrap();
        fs::create_dir(restoring.staging().join("media")).unwrap();
        // There is no database to be put in its place.
        restoring.finish(&name, &["media"]).unwrap_err();
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
    }

    /// The folder that a restore has left which was killed when its lock told this.
    fn killed(told: &[u8], is_media_moved: bool) -> Folder {
        let folder = Folder::new();
        let media =
            if is_media_moved { folder.0.join("media") } else { folder.0.join(STAGING).join("media") };
        fs::create_dir_all(folder.0.join(STAGING)).unwrap();
        fs::create_dir_all(media.join("restored")).unwrap();
        fs::write(folder.0.join(STAGING).join(FILE), b"half of it").unwrap();
        fs::write(folder.0.join(LOCK), told).unwrap();
        folder
    }

    #[test]
    fn what_somebody_put_beside_what_a_killed_restore_left_is_theirs_whatever_its_name_is() {
        for told in [BEGUN, MOVED] {
            let folder = killed(told, false);
            fs::create_dir_all(folder.0.join("media/ours")).unwrap();
            for refused in [
                RestoringFolder::check(&folder.0, &["media"]),
                RestoringFolder::begin(&folder.0, &["media"]).map(drop),
            ] {
                let e = refused.unwrap_err();
                assert!(e.message().contains("not empty (media is in it)"), "{e}");
            }
            assert!(folder.0.join("media/ours").exists() && folder.0.join(STAGING).exists());
            fs::remove_dir_all(folder.0.join("media")).unwrap();
            drop(RestoringFolder::begin(&folder.0, &["media"]).unwrap());
            assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        }
        // What was moved is the restore's.
        let folder = killed(MOVED, true);
        RestoringFolder::check(&folder.0, &["media"]).unwrap();
        drop(RestoringFolder::begin(&folder.0, &["media"]).unwrap());
        assert_eq!(fs::read_dir(&folder.0).unwrap().count(), 0);
        // And what the lock told of a kill at that moment.
        let (folder, name) = (Folder::new(), ServerName::parse("example.org").unwrap());
        let restoring = RestoringFolder::begin(&folder.0, &["media"]).unwrap();
        fs::create_dir(restoring.staging().join("media")).unwrap();
        // There is no database to be put in its place.
        let told = folder.0.join("told");
        fs::hard_link(folder.0.join(LOCK), &told).unwrap();
        assert_eq!(fs::read(&told).unwrap(), BEGUN);
        restoring.finish(&name, &["media"]).unwrap_err();
        assert_eq!(fs::read(&told).unwrap(), MOVED);
    }

    #[test]
    fn who_restores_into_the_folder_of_a_server_is_told_so() {
        let folder = Folder::new();
        fs::create_dir_all(folder.0.join("media")).unwrap();
        fs::write(folder.0.join(LOCK), owned_by(&ServerName::parse("example.org").unwrap())).unwrap();
        fs::remove_dir(folder.0.join("media")).unwrap();
        let told =
            |folder: &Folder| RestoringFolder::check(&folder.0, &["media"]).unwrap_err().message().to_owned();
        assert!(told(&folder).contains("doorstep.lock is left of a server"), "{}", told(&folder));
        fs::write(folder.0.join(FILE), b"all of it").unwrap();
        let server = told(&folder);
        assert!(server.contains("there is a server in it") && !server.contains(LOCK), "{server}");
        fs::write(folder.0.join("letter"), b"precious").unwrap();
        assert_eq!(told(&folder), server);
    }

    #[test]
    fn a_database_whose_log_stayed_beside_it_is_not_made_the_servers() {
        let folder = Folder::new();
        let name = ServerName::parse("example.org").unwrap();
        let restoring = RestoringFolder::begin(&folder.0, &[]).unwrap();
        fs::write(restoring.staging().join(FILE), b"half of it").unwrap();
        // As a disk leaves it that was full when the last connection was closed.
        fs::write(beside(&restoring.staging().join(FILE), "-wal"), b"the other half").unwrap();
        let e = restoring.finish(&name, &[]).unwrap_err();
        assert!(e.message().contains("room"), "{e}");
        assert!(!folder.0.join(FILE).exists());
    }
}
