//! The files of media, beside the database: `media/ab/cd/<hash>` in the data folder, by the SHA-256 of their bytes.
//!
//! A file is written under a name of chance in `media/new`, while its hash is made, and then: its bytes go to the disk, its
//! row is written, it is renamed to its hash, the rename goes to the disk, and whoever brought it writes the row by which it
//! can be had. Killed at any point, this leaves nothing that is acknowledged and not there. What it leaves in `media/new` is
//! deleted by the next start, and a file that nobody has by `sweep`.
//!
//! Between its rename and that last row a file is pinned, so that nobody takes it away. A server without a data folder has
//! files that have no name.

use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, ErrorKind, Read};
use std::mem::MaybeUninit;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

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
/// So long after it has refused something last a disk that takes a file is said to take files again.
const DISK_CALM_PAUSE: Duration = Duration::from_secs(10);
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
    /// When the disk has refused something last, until it takes files again.
    refused: Mutex<Option<Instant>>,
    /// Folders, by their distance from the data folder and the first byte or two of the names in them, of which this process knows
    /// that their own names are on the disk: somebody else may have made one a moment ago, or before a kill.
    lasting: Mutex<HashSet<[u8; 3]>>,
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
            refused: Mutex::default(),
            lasting: Mutex::default(),
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

/// Makes a folder that only its owner may look into, unless it is there.
fn make_folder(path: &Path) -> io::Result<()> {
    match DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() == ErrorKind::AlreadyExists => Ok(()),
        made => made,
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

/// What is to be said of a disk that does not take what is written: it is full, or a quota is, or it is broken, or was made
/// read-only because of that.
fn disk_failure(e: &io::Error) -> Option<&'static str> {
    match e.kind() {
        ErrorKind::StorageFull | ErrorKind::QuotaExceeded | ErrorKind::FileTooLarge => {
            Some("The server's disk is full")
        }
        ErrorKind::ReadOnlyFilesystem => Some("The server's disk takes nothing"),
        _ if e.raw_os_error() == Some(libc::EIO) => Some("The server's disk takes nothing"),
        _ => None,
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
            return Err(self.files.refused("The server's disk is nearly full"));
        }
        let file = match &mut self.file {
            Some(file) => file,
            none => {
                let (file, path) = self.files.new_file()?;
                self.path = path;
                none.insert(file)
            }
        };
        io::Write::write_all(file, bytes).map_err(|e| self.files.disk_error(e))?;
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
    /// 507 `M_UNKNOWN`: the disk takes no files, for this reason. The log is told once, however much is refused then.
    fn refused(&self, sentence: &'static str) -> Error {
        if lock(&self.0.refused).replace(Instant::now()).is_none() {
            log::error!("{sentence}. Files are refused until that has passed");
        }
        Error::new(ErrCode::Unknown, sentence).with_status(507)
    }

    /// 507 `M_UNKNOWN` where the disk takes nothing, which passes; else 500.
    fn disk_error(&self, e: io::Error) -> Error {
        match disk_failure(&e) {
            Some(sentence) => self.refused(sentence).with_cause(e),
            None => Error::internal(e),
        }
    }

    /// The disk took a file.
    fn disk_took(&self) {
        let mut refused = lock(&self.0.refused);
        if refused.is_some_and(|last| last.elapsed() > DISK_CALM_PAUSE) {
            *refused = None;
            log::error!("The server's disk takes files again");
        }
    }

    /// Has the name of a file that was put into the `second` of its folders go to the disk, and those of the folders themselves.
    fn sync_names(&self, media: &Path, hash: &BlobHash, [first, second]: [&Path; 2]) -> io::Result<()> {
        sync_folder(second)?;
        let data = media.parent().filter(|folder| !folder.as_os_str().is_empty());
        let [a, b] = [hash.0[0], hash.0[1]];
        for (name, parent) in
            [([2, a, b], first), ([1, a, 0], media), ([0, 0, 0], data.unwrap_or(Path::new(".")))]
        {
            if !lock(&self.0.lasting).contains(&name) {
                sync_folder(parent)?;
                lock(&self.0.lasting).insert(name);
            }
        }
        Ok(())
    }

    /// An empty file, and its path if it has one.
    fn new_file(&self) -> Result<(File, Option<PathBuf>)> {
        let folder = match &self.0.folder {
            Some(folder) => {
                let new = folder.join(NEW);
                make_folder(folder).and_then(|()| make_folder(&new)).map_err(|e| self.disk_error(e))?;
                new
            }
            None => {
                let memory = PathBuf::from("/dev/shm");
                if memory.is_dir() { memory } else { std::env::temp_dir() }
            }
        };
        let path = folder.join(format!("doorstep-{}", random::letters(24)));
        let mut options = OpenOptions::new();
        let file = options.read(true).write(true).create_new(true).mode(0o600).open(&path);
        let file = file.map_err(|e| self.disk_error(e))?;
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
            file.sync_all().map_err(|e| files.disk_error(e))?;
        }
        announce()?;
        let path = path_of(folder, &stored.hash);
        let (Some(second), Some(first)) = (path.parent(), path.ancestors().nth(2)) else {
            return Err(Error::internal("a path without a folder"));
        };
        let put = make_folder(first).and_then(|()| make_folder(second)).and_then(|()| fs::rename(new, &path));
        put.map_err(|e| files.disk_error(e))?;
        self.writer.path = None;
        if files.0.durable {
            files.sync_names(folder, &stored.hash, [first, second]).map_err(|e| files.disk_error(e))?;
        }
        files.disk_took();
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::testing::temporary_folder;

    fn keep(files: &MediaFiles, bytes: &[u8]) -> Result<BlobHash> {
        let mut writer = files.begin(1 << 20);
        writer.write(bytes)?;
        Ok(writer.seal()?.keep(|| Ok(()))?.hash)
    }

    #[test]
    fn a_disk_that_takes_nothing_is_told_from_what_is_our_fault_and_not_each_time() {
        let said = |code| disk_failure(&io::Error::from_raw_os_error(code));
        assert_eq!(
            [libc::ENOSPC, libc::EDQUOT, libc::EFBIG].map(said),
            [Some("The server's disk is full"); 3]
        );
        assert_eq!([libc::EIO, libc::EROFS].map(said), [Some("The server's disk takes nothing"); 2]);
        assert_eq!([libc::EACCES, libc::ENOENT, libc::EMFILE].map(said), [None; 3]);
        let config = Config::for_name(ServerName::parse("here.example").unwrap());
        let files = MediaFiles::open(&config).unwrap();
        let refused = files.disk_error(io::Error::from_raw_os_error(libc::EIO));
        assert!(refused.is_disk_full() && lock(&files.0.refused).is_some(), "told");
        keep(&files, b"taken").unwrap();
        assert!(lock(&files.0.refused).is_some(), "it has refused a moment ago");
    }

    #[test]
    fn the_names_of_folders_go_to_the_disk_whoever_made_them() {
        let folder = temporary_folder("files");
        let config = Config::for_name(ServerName::parse("here.example").unwrap());
        let config = Config { data: Data::Folder(folder.clone()), ..config };
        let mut hash = BlobHash([0; 32]);
        // Those that a process before has made are not known to be there for good.
        for _ in 0..2 {
            let files = MediaFiles::open(&config).unwrap();
            assert!(lock(&files.0.lasting).is_empty());
            hash = keep(&files, b"kept").unwrap();
            let [a, b] = [hash.0[0], hash.0[1]];
            assert_eq!(*lock(&files.0.lasting), HashSet::from([[0, 0, 0], [1, a, 0], [2, a, b]]));
        }
        assert!(path_of(&folder.join(FOLDER), &hash).is_file());
        fs::remove_dir_all(&folder).unwrap();
    }
}
