//! The files of media, beside the database: `media/ab/cd/<hash>` in the data folder, by the SHA-256 of their bytes.
//!
//! A file is written under a name of chance in `media/new`, while its hash is made, and then: its bytes go to the disk, its
//! row is written, it is renamed to its hash, the rename goes to the disk, and whoever brought it writes the row by which it
//! can be had. Killed at any point, this leaves nothing that is acknowledged and not there. What it leaves in `media/new` is
//! deleted by the next start, and a file that nobody has by `sweep`.
//!
//! Between its rename and that last row a file is pinned, so that nobody takes it away. A server without a data folder has
//! files that have no name.

use std::collections::HashMap;
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};

use sha2::{Digest, Sha256};

use crate::config::{Config, Data};
use crate::durable::sync_folder;
use crate::error::{ErrCode, Error, Result};
use crate::locks::{lock, wait};
use crate::random;
use crate::store::media::BlobHash;

/// The folder of media in the data folder, and that of files that are being written in it.
const FOLDER: &str = "media";
const NEW: &str = "new";
/// How many bytes of a file are written between two looks at how much of the disk is free.
const ROOM_CHECKED_EVERY_BYTES: u64 = 1 << 20;
/// Most files of a server without a data folder: each is an open one.
const NAMELESS_FILES_MAX: usize = 2000;

/// The files of a server's media. Clones are the same files.
#[derive(Clone)]
pub struct MediaFiles(Arc<FilesState>);

struct FilesState {
    /// Where they are; none: they have no names.
    folder: Option<PathBuf>,
    /// Whether what is written waits for the disk.
    durable: bool,
    /// How much of the disk stays free, in bytes.
    keep_free: u64,
    nameless: Mutex<HashMap<BlobHash, Arc<File>>>,
    pins: Mutex<HashMap<BlobHash, Pin>>,
    unpinned: Condvar,
}

#[derive(Clone, Copy)]
enum Pin {
    /// So many have brought it and write down what it is.
    Pinned(usize),
    /// It is being taken away.
    Removing,
}

impl MediaFiles {
    /// The files in the data folder. What was being written when the last process ended is deleted.
    pub fn open(config: &Config) -> Result<Self> {
        let folder = match &config.data {
            Data::Folder(folder) => Some(folder.join(FOLDER)),
            Data::Memory => None,
        };
        if let Some(folder) = &folder {
            match fs::read_dir(folder.join(NEW)) {
                Ok(entries) => {
                    for entry in entries {
                        fs::remove_file(entry?.path())?;
                    }
                }
                Err(e) if e.kind() == ErrorKind::NotFound => {}
                Err(e) => return Err(e.into()),
            }
        }
        Ok(Self(Arc::new(FilesState {
            folder,
            durable: config.durable,
            keep_free: config.media_keep_free,
            nameless: Mutex::default(),
            pins: Mutex::default(),
            unpinned: Condvar::new(),
        })))
    }

    /// A new file of at most so many bytes.
    pub fn begin(&self, bytes_max: u64) -> BlobWriter {
        BlobWriter { files: self.clone(), file: None, path: None, hasher: Sha256::new(), bytes: 0, bytes_max }
    }

    /// Whether the disk has no more room than what is to stay free: the database is on it, and what users say to each other
    /// comes before their files. Where that cannot be found out, it has.
    pub fn is_disk_nearly_full(&self) -> bool {
        let free = self.0.folder.as_deref().and_then(Path::parent).and_then(free_bytes);
        free.is_some_and(|free| free < self.0.keep_free)
    }

    /// The file of this hash; none if it is not there.
    pub fn open_blob(&self, hash: &BlobHash) -> Result<Option<BlobFile>> {
        let file = match &self.0.folder {
            None => lock(&self.0.nameless).get(hash).cloned(),
            Some(folder) => match File::open(path_of(folder, hash)) {
                Ok(file) => Some(Arc::new(file)),
                Err(e) if e.kind() == ErrorKind::NotFound => None,
                Err(e) => return Err(e.into()),
            },
        };
        let Some(file) = file else { return Ok(None) };
        let bytes = file.metadata()?.len();
        Ok(Some(BlobFile { file, start: 0, end: bytes }))
    }

    /// Keeps the file of this hash from being taken away. Waits while it is.
    fn pin(&self, hash: BlobHash) -> BlobPin {
        let mut pins = lock(&self.0.pins);
        loop {
            match pins.get_mut(&hash) {
                None => {
                    pins.insert(hash, Pin::Pinned(1));
                    break;
                }
                Some(Pin::Pinned(count)) => {
                    *count += 1;
                    break;
                }
                Some(Pin::Removing) => pins = wait(&self.0.unpinned, pins),
            }
        }
        BlobPin { files: self.clone(), hash }
    }

    /// Takes a file away for which `may_go` holds, which is asked while nobody can bring the file anew; `gone` is called
    /// before anybody can. False: it stays.
    pub fn remove(
        &self,
        hash: &BlobHash,
        may_go: impl FnOnce() -> Result<bool>,
        gone: impl FnOnce() -> Result<()>,
    ) -> Result<bool> {
        {
            let mut pins = lock(&self.0.pins);
            if pins.contains_key(hash) {
                return Ok(false);
            }
            pins.insert(*hash, Pin::Removing);
        }
        // Over with whatever happens.
        let _removal = BlobPin { files: self.clone(), hash: *hash };
        if !may_go()? {
            return Ok(false);
        }
        match &self.0.folder {
            None => drop(lock(&self.0.nameless).remove(hash)),
            Some(folder) => match fs::remove_file(path_of(folder, hash)) {
                Err(e) if e.kind() != ErrorKind::NotFound => return Err(e.into()),
                _ => {}
            },
        }
        gone()?;
        Ok(true)
    }

    /// The least byte, from this on, that the names of files begin with.
    pub fn next_first_byte(&self, from: u16) -> Result<Option<u8>> {
        let Some(folder) = self.0.folder.as_ref().filter(|_| from <= u16::from(u8::MAX)) else {
            return Ok(None);
        };
        let byte = |path: &PathBuf| {
            let name = path.file_name()?.to_str().filter(|name| name.len() == 2)?;
            u8::from_str_radix(name, 16).ok()
        };
        let bytes = entries(folder)?.iter().filter_map(byte).collect::<Vec<_>>();
        Ok(bytes.into_iter().filter(|byte| u16::from(*byte) >= from).min())
    }

    /// The hashes of the files whose names begin with this byte; what has another name is nobody's, and is left alone.
    pub fn named(&self, first: u8) -> Result<Vec<BlobHash>> {
        let Some(folder) = &self.0.folder else { return Ok(Vec::new()) };
        let mut found = Vec::new();
        for second in entries(&folder.join(format!("{first:02x}")))? {
            let names = entries(&second)?;
            let hash = |path: &PathBuf| BlobHash::parse(path.file_name()?.to_str()?);
            found.extend(names.iter().filter_map(hash));
        }
        Ok(found)
    }
}

/// What is in a folder; nothing if it is none.
fn entries(folder: &Path) -> Result<Vec<PathBuf>> {
    match fs::read_dir(folder) {
        Ok(entries) => Ok(entries.map(|entry| Ok(entry?.path())).collect::<io::Result<_>>()?),
        Err(e) if matches!(e.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => Ok(Vec::new()),
        Err(e) => Err(e.into()),
    }
}

fn path_of(folder: &Path, hash: &BlobHash) -> PathBuf {
    let name = hash.to_string();
    folder.join(&name[..2]).join(&name[2..4]).join(name)
}

/// Makes a folder that only its owner may look into; whether it was not there.
fn make_folder(path: &Path) -> Result<bool> {
    match DirBuilder::new().mode(0o700).create(path) {
        Ok(()) => Ok(true),
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(false),
        Err(e) => Err(disk_error(e)),
    }
}

/// How many bytes whoever runs this process may still write on the disk with this folder, if that can be told.
pub fn free_bytes(folder: &Path) -> Option<u64> {
    let path = CString::new(folder.as_os_str().as_bytes()).ok()?;
    let mut told = MaybeUninit::<libc::statvfs>::uninit();
    // SAFETY: the path ends with a NUL and outlives the call, which writes nothing but the one struct it is given; that is
    // only read if the call says that it was filled.
    let told = unsafe { (libc::statvfs(path.as_ptr(), told.as_mut_ptr()) == 0).then(|| told.assume_init()) }?;
    #[allow(clippy::useless_conversion, reason = "the types differ between systems")]
    let (blocks, size) = (u64::from(told.f_bavail), u64::from(told.f_frsize));
    Some(blocks.saturating_mul(size))
}

/// 507 `M_UNKNOWN` where the disk takes nothing, which passes; else 500.
fn disk_error(e: io::Error) -> Error {
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Error::new(ErrCode::Unknown, "The server's disk is full").with_status(507).with_cause(e)
        }
        _ => Error::internal(e),
    }
}

/// A file that is being written. Dropped, it is gone.
pub struct BlobWriter {
    files: MediaFiles,
    /// Made with the first byte.
    file: Option<File>,
    path: Option<PathBuf>,
    hasher: Sha256,
    bytes: u64,
    bytes_max: u64,
}

impl BlobWriter {
    /// The next bytes. Errors: 413 `M_TOO_LARGE`; 507 `M_UNKNOWN` where the disk is full, or nearly.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        let total = self.bytes + bytes.len() as u64;
        if total > self.bytes_max {
            return Err(too_large(self.bytes_max));
        }
        let looks = |bytes: u64| bytes / ROOM_CHECKED_EVERY_BYTES;
        if (self.file.is_none() || looks(total) > looks(self.bytes)) && self.files.is_disk_nearly_full() {
            return Err(Error::new(ErrCode::Unknown, "The server's disk is nearly full").with_status(507));
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let (file, path) = self.files.new_file()?;
                self.path = path;
                none.insert(file)
            }
        };
        io::Write::write_all(file, bytes).map_err(disk_error)?;
        self.hasher.update(bytes);
        self.bytes = total;
        Ok(())
    }

    /// How many bytes there are.
    pub fn bytes(&self) -> u64 {
        self.bytes
    }

    /// That was all: the bytes are on the disk, under no name that lasts. Then [`SealedBlob::keep`].
    pub(super) fn seal(mut self) -> Result<SealedBlob> {
        // A file without a byte is a file.
        self.write(&[])?;
        let hash = BlobHash(std::mem::take(&mut self.hasher).finalize().into());
        let pin = self.files.pin(hash);
        Ok(SealedBlob { pin, bytes: self.bytes, writer: self })
    }
}

impl Drop for BlobWriter {
    fn drop(&mut self) {
        if let Some(path) = self.path.take()
            && let Err(e) = fs::remove_file(&path)
        {
            log::warn!("{} could not be deleted: {e}", path.display());
        }
    }
}

/// Errors: 413 `M_TOO_LARGE`, in words that name the bound.
pub(super) fn too_large(bytes_max: u64) -> Error {
    Error::new(ErrCode::TooLarge, format!("Files may have at most {bytes_max} bytes here"))
}

impl MediaFiles {
    /// An empty file, and its path if it has one.
    fn new_file(&self) -> Result<(File, Option<PathBuf>)> {
        let folder = match &self.0.folder {
            Some(folder) => {
                make_folder(folder)?;
                let new = folder.join(NEW);
                make_folder(&new)?;
                new
            }
            None => {
                let memory = PathBuf::from("/dev/shm");
                if memory.is_dir() { memory } else { std::env::temp_dir() }
            }
        };
        let path = folder.join(format!("doorstep-{}", random::letters(24)));
        let mut options = OpenOptions::new();
        let file =
            options.read(true).write(true).create_new(true).mode(0o600).open(&path).map_err(disk_error)?;
        if self.0.folder.is_some() {
            return Ok((file, Some(path)));
        }
        fs::remove_file(&path)?;
        Ok((file, None))
    }
}

/// A file whose hash is known, pinned, and not yet where it belongs.
pub(super) struct SealedBlob {
    pin: BlobPin,
    bytes: u64,
    writer: BlobWriter,
}

impl SealedBlob {
    /// Its hash.
    pub(super) fn hash(&self) -> BlobHash {
        self.pin.hash
    }

    /// How large it is.
    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    /// Puts it where it belongs, for good; `announce` is called when its bytes are on the disk, before it has its name.
    pub(super) fn keep(mut self, announce: impl FnOnce() -> Result<()>) -> Result<StoredBlob> {
        let files = self.writer.files.clone();
        let stored = StoredBlob { hash: self.pin.hash, bytes: self.bytes, _pin: self.pin };
        let Some(file) = self.writer.file.take() else {
            return Err(Error::internal("a file that was never made"));
        };
        let (Some(folder), Some(new)) = (&files.0.folder, &self.writer.path) else {
            announce()?;
            let mut nameless = lock(&files.0.nameless);
            if nameless.len() >= NAMELESS_FILES_MAX {
                let full = "A server without a data folder has no room for so many files";
                return Err(Error::new(ErrCode::Unknown, full).with_status(507));
            }
            nameless.entry(stored.hash).or_insert_with(|| Arc::new(file));
            return Ok(stored);
        };
        if files.0.durable {
            file.sync_all().map_err(disk_error)?;
        }
        announce()?;
        let path = path_of(folder, &stored.hash);
        let (Some(second), Some(first)) = (path.parent(), path.ancestors().nth(2)) else {
            return Err(Error::internal("a path without a folder"));
        };
        let first_is_new = make_folder(first)?;
        let second_is_new = make_folder(second)?;
        fs::rename(new, &path).map_err(disk_error)?;
        self.writer.path = None;
        if files.0.durable {
            let sync = |folder: &Path| sync_folder(folder).map_err(disk_error);
            sync(second)?;
            if second_is_new {
                sync(first)?;
            }
            if first_is_new {
                sync(folder)?;
            }
        }
        Ok(stored)
    }

    /// It is there already, for good.
    pub(super) fn known(self) -> StoredBlob {
        StoredBlob { hash: self.pin.hash, bytes: self.bytes, _pin: self.pin }
    }
}

/// A file that is where it belongs, on the disk, and stays there while this is held: until then somebody has to write down
/// what has it.
pub struct StoredBlob {
    /// SHA-256 of its bytes.
    pub hash: BlobHash,
    /// How large it is.
    pub bytes: u64,
    _pin: BlobPin,
}

/// Keeps a file from being taken away, or from being brought while it is.
struct BlobPin {
    files: MediaFiles,
    hash: BlobHash,
}

impl Drop for BlobPin {
    fn drop(&mut self) {
        let state = &self.files.0;
        let mut pins = lock(&state.pins);
        if let Some(Pin::Pinned(count)) = pins.get_mut(&self.hash)
            && *count > 1
        {
            *count -= 1;
            return;
        }
        pins.remove(&self.hash);
        state.unpinned.notify_all();
    }
}

/// An open file, or a part of one, to be read from its beginning. It can be read to its end also if the file is taken
/// away meanwhile.
pub struct BlobFile {
    file: Arc<File>,
    start: u64,
    end: u64,
}

impl BlobFile {
    /// How many bytes are left to be read.
    pub fn size(&self) -> u64 {
        self.end - self.start
    }

    /// `length` bytes from `start` on, as far as there are so many.
    #[must_use]
    pub fn part(&self, start: u64, length: u64) -> Self {
        let start = self.start.saturating_add(start).min(self.end);
        Self { file: self.file.clone(), start, end: start.saturating_add(length).min(self.end) }
    }
}

impl Read for BlobFile {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.size()).unwrap_or(usize::MAX).min(buf.len());
        let read = self.file.read_at(&mut buf[..most], self.start)?;
        self.start += read as u64;
        Ok(read)
    }
}
