//! A server is made of a backup: in an empty folder, with the same name and keys, and such that nobody who knows more of it than
//! it does itself is told anything wrong.

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{Read, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::archive::{End, Manifest, Member, Receiver, read_archive, refusal};
use crate::clock::Clock;
use crate::error::{Error, Result, reason};
use crate::protocol::ServerName;
use crate::service::devices::device_lists::{tell_of_device, tell_of_signing_keys};
use crate::store::engine::restoring::RestoringFolder;
use crate::store::media::BlobHash;
use crate::store::{Location, Options, SCHEMA_VERSION, Store};

/// The folder of media in the data folder.
const MEDIA: &str = "media";
/// So many users are told of with one commit, and so many files are looked for.
const USERS_AT_ONCE: usize = 20;
const BLOBS_AT_ONCE: usize = 256;

/// What was restored.
#[derive(Debug, Clone)]
pub struct Restored {
    /// Of which server, and when the backup was begun.
    pub manifest: Manifest,
    /// How many files of media there are, and what they come to.
    pub end: End,
    /// How many files of media were not what they should have been, already when they were backed up.
    pub spoilt: usize,
}

/// Makes the data folder of a server from a backup. `name`: the server that it has to be, if that is known.
///
/// The backup is read twice: nothing at all is written before it was found to be whole. After an error the folder is as it was.
///
/// Errors: sentences for the operator: the folder is not empty, or cannot be written; the backup is none, cut, damaged, of a
/// newer version or of another server.
pub fn restore(folder: &Path, backup: &Path, name: Option<&ServerName>, clock: &Clock) -> Result<Restored> {
    RestoringFolder::check(folder, &[MEDIA])?;
    let open = || {
        File::open(backup)
            .map_err(|e| refusal(format!("{} cannot be read: {}", backup.display(), reason(&e))))
    };
    if !open()?.metadata()?.is_file() {
        return Err(refusal(format!("{} is no file", backup.display())));
    }
    let mut check = Checking { name };
    let (manifest, end) = read_archive(&mut open()?, &mut check)?;
    let restoring = RestoringFolder::begin(folder, &[MEDIA])?;
    let restored = unpack(&restoring, &mut open()?, check)?;
    if (&restored.manifest, &restored.end) != (&manifest, &end) {
        return Err(refusal("The backup was changed while it was read"));
    }
    finish(restoring, restored, clock)
}

/// The same with a backup that can be read once only, as it comes: whether it is whole is known only when all of it is written.
/// After an error the folder is as it was all the same.
pub fn restore_from(
    folder: &Path,
    backup: &mut dyn Read,
    name: Option<&ServerName>,
    clock: &Clock,
) -> Result<Restored> {
    let restoring = RestoringFolder::begin(folder, &[MEDIA])?;
    let restored = unpack(&restoring, backup, Checking { name })?;
    finish(restoring, restored, clock)
}

fn unpack(restoring: &RestoringFolder, backup: &mut dyn Read, check: Checking<'_>) -> Result<Restored> {
    let mut unpacking = Unpacking::new(restoring.staging(), check);
    let (manifest, end) = read_archive(backup, &mut unpacking)?;
    Ok(Restored { manifest, end, spoilt: unpacking.finish()? })
}

fn finish(restoring: RestoringFolder, restored: Restored, clock: &Clock) -> Result<Restored> {
    settle(restoring.staging(), &restored.manifest, clock)?;
    restoring.finish(&restored.manifest.server_name, &[MEDIA])?;
    Ok(restored)
}

/// Looks whether it can be restored at all.
#[derive(Clone, Copy)]
struct Checking<'n> {
    name: Option<&'n ServerName>,
}

impl Receiver for Checking<'_> {
    fn begin(&mut self, manifest: &Manifest) -> Result<()> {
        if let Some(name) = self.name.filter(|name| **name != manifest.server_name) {
            return Err(refusal(format!(
                "The backup is of the server {}, not of {name}: a server's name can never change",
                manifest.server_name
            )));
        }
        if manifest.schema > SCHEMA_VERSION {
            return Err(refusal(format!(
                "The backup was made by a newer Doorstep ({}): please restore it with that one",
                manifest.doorstep
            )));
        }
        Ok(())
    }

    fn file(&mut self, _: Member, _: u64) -> Result<()> {
        Ok(())
    }

    fn more(&mut self, _: &[u8]) -> Result<()> {
        Ok(())
    }
}

/// Writes the files of a backup.
struct Unpacking<'s> {
    check: Checking<'s>,
    staging: &'s Path,
    /// The file that is being written.
    file: Option<Unpacked>,
    spoilt: usize,
}

struct Unpacked {
    file: File,
    path: PathBuf,
    left: u64,
    /// Of a file of media: what its bytes should come to, and what they do.
    hash: Option<(BlobHash, Sha256)>,
}

impl<'s> Unpacking<'s> {
    fn new(staging: &'s Path, check: Checking<'s>) -> Self {
        Self { check, staging, file: None, spoilt: 0 }
    }

    /// How many files of media are not what their names say. Without them the media are lost that they belong to; with them, no
    /// backup could be restored.
    fn finish(mut self) -> Result<usize> {
        self.close()?;
        Ok(self.spoilt)
    }

    fn close(&mut self) -> Result<()> {
        let Some(Unpacked { path, hash: Some((wanted, found)), .. }) = self.file.take() else {
            return Ok(());
        };
        let found: [u8; 32] = found.finalize().into();
        if found != wanted.0 {
            log::warn!("the file of media {wanted} was spoilt already when it was backed up: it is left out");
            self.spoilt += 1;
            fs::remove_file(path)?;
        }
        Ok(())
    }
}

impl Receiver for Unpacking<'_> {
    fn begin(&mut self, manifest: &Manifest) -> Result<()> {
        self.check.begin(manifest)
    }

    fn file(&mut self, member: Member, bytes: u64) -> Result<()> {
        self.close()?;
        let path = self.staging.join(member.name());
        if let (Member::Media(_), Some(folder)) = (member, path.parent()) {
            DirBuilder::new()
                .recursive(true)
                .mode(0o700)
                .create(folder)
                .map_err(|e| unwritable(&path, &e))?;
        }
        let file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|e| unwritable(&path, &e))?;
        let hash = match member {
            Member::Media(hash) => Some((hash, Sha256::new())),
            _ => None,
        };
        self.file = Some(Unpacked { file, path, left: bytes, hash });
        Ok(())
    }

    fn more(&mut self, bytes: &[u8]) -> Result<()> {
        let Some(current) = &mut self.file else { return Err(Error::internal("bytes of no file")) };
        // Zeros behind a file are no part of it.
        let most = usize::try_from(current.left).unwrap_or(usize::MAX).min(bytes.len());
        current.file.write_all(&bytes[..most]).map_err(|e| unwritable(&current.path, &e))?;
        current.left -= most as u64;
        if let Some((_, hash)) = &mut current.hash {
            hash.update(&bytes[..most]);
        }
        Ok(())
    }
}

fn unwritable(path: &Path, e: &std::io::Error) -> Error {
    refusal(format!("{} cannot be written: {}", path.display(), reason(e)))
}

/// Makes a database that can go on of the one that was unpacked.
fn settle(folder: &Path, manifest: &Manifest, clock: &Clock) -> Result<()> {
    let last = Store::examine(folder)?
        .map_err(|why| refusal(format!("The database in the backup is damaged: {why}")))?;
    let nobody_waits = Box::new(|_: &crate::store::Changes| {});
    let store = Store::open(
        Location::Folder(folder.to_owned()),
        &manifest.server_name,
        nobody_waits,
        &Options::default(),
    )?;
    let (begun, now) = (manifest.begun_ms, clock.now_ms());
    store.write(move |tx| tx.settle_restored(last, begun, now))?;
    forget_what_is_not_there(&store, &folder.join(MEDIA))?;
    tell_of_all_devices(&store)
}

/// Media whose files were deleted while the backup was made, or were spoilt.
fn forget_what_is_not_there(store: &Store, media: &Path) -> Result<()> {
    let mut upto = None;
    loop {
        let known = store.read(|db| db.blobs_after(upto, BLOBS_AT_ONCE))?;
        let Some(last) = known.last() else { return Ok(()) };
        upto = Some(*last);
        let is_lost = |hash: &BlobHash| match media.parent() {
            Some(folder) => !folder.join(Member::Media(*hash).name()).exists(),
            None => true,
        };
        let lost: Vec<BlobHash> = known.into_iter().filter(is_lost).collect();
        if !lost.is_empty() {
            store.write(move |tx| tx.forget_lost_media(&lost))?;
        }
    }
}

/// Servers, and our own users, may know of devices and keys that are not here: whoever follows somebody of us looks again.
fn tell_of_all_devices(store: &Store) -> Result<()> {
    let mut upto = String::new();
    loop {
        let after = upto.clone();
        let users = store.read(|db| db.users_with_devices(&after, USERS_AT_ONCE))?;
        let Some(last) = users.last() else { return Ok(()) };
        upto = last.0.to_string();
        store.write(move |tx| {
            users.iter().try_for_each(|(user, device)| {
                // Nobody is sent this one: what follows it has a gap before it, whatever they know.
                tx.note_device_change(user, Some(device))?;
                tell_of_device(tx, user, device)?;
                tell_of_signing_keys(tx, user)
            })
        })?;
    }
}
