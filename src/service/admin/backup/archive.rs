//! What a backup looks like: a tar archive, which anybody can open without us.
//!
//! 1. `doorstep-backup.json`: of which server it is, and of which versions ([`Manifest`]);
//! 2. `doorstep.db`: the database, whole, without a log beside it;
//! 3. `media/ab/cd/<SHA-256>`: the files of media, as they lie in the data folder;
//! 4. `doorstep-backup-end.json`: how many bytes come before it, and their SHA-256 ([`End`]).
//!
//! Then two blocks of zeros, as tar has it. Without the fourth a backup is cut, and refused. What is read is read strictly:
//! these names in this order, and nothing but files; so no name of an archive ever leads anywhere.

use std::io::{self, ErrorKind, Read};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::clock::Millis;
use crate::error::{Error, Result, reason};
use crate::protocol::ServerName;
use crate::protocol::json::read;
use crate::store::media::BlobHash;

/// The version of this format.
pub const VERSION: u32 = 1;
/// What it says of itself.
const FORMAT: &str = "doorstep-backup";

const MANIFEST: &str = "doorstep-backup.json";
const DATABASE: &str = "doorstep.db";
const END: &str = "doorstep-backup-end.json";

/// Tar has everything in blocks of so many bytes.
pub const BLOCK: usize = 512;
/// The manifest and the end are small.
const TEXT_BYTES_MAX: u64 = 64 << 10;
/// Programs that write tar archives fill the last so many bytes up with zeros.
const ZEROS_MAX: u64 = 1 << 20;
/// Sizes beyond eight digits to the base of eight and some are written in binary, as GNU's tar and others read them.
const OCTAL_SIZE_MAX: u64 = 0o777_7777_7777;

/// The first file of a backup.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct Manifest {
    format: String,
    /// Of this format.
    pub version: u32,
    /// Whose it is.
    pub server_name: ServerName,
    /// The Doorstep that made it.
    pub doorstep: String,
    /// The version of the database's schema.
    pub schema: i32,
    /// When it was begun: everything that was acknowledged by then is in it.
    pub begun_ms: Millis,
    /// How large the database is.
    pub database_bytes: u64,
}

impl Manifest {
    /// Of a backup that is made now.
    pub fn new(server_name: ServerName, schema: i32, begun_ms: Millis, database_bytes: u64) -> Self {
        let (format, doorstep) = (FORMAT.to_owned(), env!("CARGO_PKG_VERSION").to_owned());
        Self { format, version: VERSION, server_name, doorstep, schema, begun_ms, database_bytes }
    }
}

/// The last file of a backup.
#[derive(Debug, Clone, Serialize, Deserialize, PartialEq, Eq)]
pub struct End {
    /// How many bytes of the archive come before this file.
    pub bytes: u64,
    /// Their SHA-256, in hexadecimal digits.
    pub sha256: String,
    /// How many files of media there are, and what they come to.
    pub media_files: u64,
    /// See `media_files`.
    pub media_bytes: u64,
}

/// A file in the archive.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Member {
    /// [`Manifest`].
    Manifest,
    /// The database.
    Database,
    /// A file of media.
    Media(BlobHash),
    /// [`End`].
    End,
}

impl Member {
    /// Its name in the archive.
    pub fn name(self) -> String {
        match self {
            Self::Manifest => MANIFEST.to_owned(),
            Self::Database => DATABASE.to_owned(),
            Self::End => END.to_owned(),
            Self::Media(hash) => {
                let hash = hash.to_string();
                format!("media/{}/{}/{hash}", &hash[..2], &hash[2..4])
            }
        }
    }

    fn parse(name: &str) -> Option<Self> {
        Some(match name {
            MANIFEST => Self::Manifest,
            DATABASE => Self::Database,
            END => Self::End,
            _ => {
                let media = Self::Media(BlobHash::parse(name.rsplit('/').next()?)?);
                return (media.name() == name).then_some(media);
            }
        })
    }
}

/// The block before a file of so many bytes (POSIX.1-1988, "ustar").
pub fn head(member: Member, bytes: u64, at: Millis) -> [u8; BLOCK] {
    let mut block = [0; BLOCK];
    let mut put = |offset: usize, text: &[u8]| block[offset..offset + text.len()].copy_from_slice(text);
    put(0, member.name().as_bytes());
    put(100, b"0000600\0");
    put(108, b"0000000\0");
    put(116, b"0000000\0");
    if bytes <= OCTAL_SIZE_MAX {
        put(124, format!("{bytes:011o}\0").as_bytes());
    } else {
        put(124, &[0x80, 0, 0, 0]);
        put(128, &bytes.to_be_bytes());
    }
    put(136, format!("{:011o}\0", (at / 1000).clamp(0, 0o777_7777_7777)).as_bytes());
    put(156, b"0");
    put(257, b"ustar\x0000");
    let sum = checksum(&block);
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    block
}

/// The sum of a head's bytes, where that of the sum itself counts as spaces.
fn checksum(block: &[u8; BLOCK]) -> u32 {
    block
        .iter()
        .enumerate()
        .map(|(at, byte)| if (148..156).contains(&at) { 32 } else { u32::from(*byte) })
        .sum()
}

/// How many zeros follow a file of so many bytes.
pub fn padding(bytes: u64) -> usize {
    let over = usize::try_from(bytes % BLOCK as u64).unwrap_or(0);
    (BLOCK - over) % BLOCK
}

fn octal(field: &[u8]) -> Option<u64> {
    let text = field.split(|byte| matches!(byte, 0 | b' ')).find(|part| !part.is_empty())?;
    u64::from_str_radix(std::str::from_utf8(text).ok()?, 8).ok()
}

/// What a head says: which file follows, and how large it is. None if it is none, or of something else than a file that a
/// backup has.
fn parse_head(block: &[u8; BLOCK]) -> Option<(Member, u64)> {
    if octal(&block[148..156]) != Some(checksum(block).into()) || &block[257..262] != b"ustar" {
        return None;
    }
    let name = block[..100].split(|byte| *byte == 0).next()?;
    let has_prefix = block[345] != 0;
    if has_prefix || !matches!(block[156], b'0' | 0) {
        return None;
    }
    let size = match block[124] {
        0x80 if block[125..128] == [0; 3] => u64::from_be_bytes(block[128..136].try_into().ok()?),
        _ => octal(&block[124..136])?,
    };
    Some((Member::parse(std::str::from_utf8(name).ok()?)?, size))
}

/// Who is given the files of a backup, in their order.
pub trait Receiver {
    /// It begins. An error ends the reading.
    fn begin(&mut self, manifest: &Manifest) -> Result<()>;
    /// A file begins, which has so many bytes.
    fn file(&mut self, member: Member, bytes: u64) -> Result<()>;
    /// More of that file.
    fn more(&mut self, bytes: &[u8]) -> Result<()>;
}

/// Reads a backup to its end, and gives what is in it to `receiver`, a piece at a time. Only when this returns without an
/// error was it whole.
///
/// Errors: sentences for the operator: not a backup, cut, damaged, of a newer version; and those of the receiver.
pub fn read_archive(from: &mut dyn Read, receiver: &mut dyn Receiver) -> Result<(Manifest, End)> {
    let mut archive = Archive { from, hash: Sha256::new(), read: 0 };
    let manifest = archive.manifest()?;
    receiver.begin(&manifest)?;
    match archive.next_head()? {
        (Member::Database, bytes) if bytes == manifest.database_bytes => {
            receiver.file(Member::Database, bytes)?;
            archive.contents(bytes, &mut |piece| receiver.more(piece))?;
        }
        _ => return Err(damaged("its second file is not the database")),
    }
    let (mut media_files, mut media_bytes) = (0, 0_u64);
    loop {
        let (before, digest) = (archive.read, archive.hash.clone().finalize());
        match archive.next_head()? {
            (member @ Member::Media(_), bytes) => {
                (media_files, media_bytes) = (media_files + 1, media_bytes.saturating_add(bytes));
                receiver.file(member, bytes)?;
                archive.contents(bytes, &mut |piece| receiver.more(piece))?;
            }
            (Member::End, bytes) => {
                let found: End = archive.text(bytes)?;
                let sha256 = digest.iter().map(|byte| format!("{byte:02x}")).collect();
                if found != (End { bytes: before, sha256, media_files, media_bytes }) {
                    return Err(damaged("its checksum is not that of what is in it"));
                }
                archive.expect_end()?;
                return Ok((manifest, found));
            }
            _ => return Err(damaged("a file is in it twice")),
        }
    }
}

struct Archive<'r> {
    from: &'r mut dyn Read,
    hash: Sha256,
    read: u64,
}

impl Archive<'_> {
    fn fill(&mut self, buf: &mut [u8]) -> Result<()> {
        self.from.read_exact(buf).map_err(|e| match e.kind() {
            ErrorKind::UnexpectedEof => cut(),
            _ => unreadable(&e),
        })?;
        self.hash.update(&*buf);
        self.read += buf.len() as u64;
        Ok(())
    }

    fn manifest(&mut self) -> Result<Manifest> {
        let mut block = [0; BLOCK];
        let no_backup = || refusal("This is not a backup of Doorstep");
        self.fill(&mut block).map_err(|e| if self.read == 0 { no_backup() } else { e })?;
        let Some((Member::Manifest, bytes)) = parse_head(&block) else { return Err(no_backup()) };
        // What a later version adds must not keep this one from saying that it is one.
        #[derive(Deserialize)]
        struct AnyManifest {
            format: String,
            version: u32,
            doorstep: String,
        }
        let text = self.raw_text(bytes)?;
        let any: AnyManifest = read(&text).map_err(|_| damaged("its first file cannot be read"))?;
        if any.format != FORMAT {
            return Err(no_backup());
        }
        if any.version != VERSION {
            return Err(refusal(format!(
                "The backup has version {}, and this Doorstep reads version {VERSION}: it was made by Doorstep {}",
                any.version, any.doorstep
            )));
        }
        read(&text).map_err(|_| damaged("its first file cannot be read"))
    }

    fn next_head(&mut self) -> Result<(Member, u64)> {
        let mut block = [0; BLOCK];
        self.fill(&mut block)?;
        if block == [0; BLOCK] {
            return Err(cut());
        }
        parse_head(&block).ok_or_else(|| damaged("something is in it that no backup has"))
    }

    fn contents(&mut self, bytes: u64, receive: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<()> {
        let mut piece = vec![0; 64 << 10];
        let mut left = bytes;
        while left > 0 {
            let most = usize::try_from(left).unwrap_or(usize::MAX).min(piece.len());
            self.fill(&mut piece[..most])?;
            receive(&piece[..most])?;
            left -= most as u64;
        }
        let zeros = &mut piece[..padding(bytes)];
        self.fill(zeros)?;
        if zeros.iter().any(|byte| *byte != 0) {
            return Err(damaged("there is something where nothing belongs"));
        }
        Ok(())
    }

    fn raw_text(&mut self, bytes: u64) -> Result<Vec<u8>> {
        if bytes > TEXT_BYTES_MAX {
            return Err(damaged("what describes it is too long"));
        }
        let mut text = Vec::new();
        self.contents(bytes, &mut |piece| {
            text.extend_from_slice(piece);
            Ok(())
        })?;
        Ok(text)
    }

    fn text<T: for<'de> Deserialize<'de>>(&mut self, bytes: u64) -> Result<T> {
        let text = self.raw_text(bytes)?;
        read(&text).map_err(|_| damaged("its last file cannot be read"))
    }

    /// Two blocks of zeros at least, and nothing else.
    fn expect_end(&mut self) -> Result<()> {
        let (mut block, mut zeros) = ([0; BLOCK], 0);
        // Both are looked at: the loop begins with the second.
        self.fill(&mut block)?;
        if block != [0; BLOCK] {
            return Err(damaged("there is something behind its end"));
        }
        self.fill(&mut block)?;
        loop {
            if block != [0; BLOCK] || zeros > ZEROS_MAX {
                return Err(damaged("there is something behind its end"));
            }
            block = [0; BLOCK];
            match self.from.read(&mut block) {
                Ok(0) => return Ok(()),
                Ok(more) => zeros += more as u64,
                Err(e) if e.kind() == ErrorKind::Interrupted => {}
                Err(e) => return Err(unreadable(&e)),
            }
        }
    }
}

/// A sentence for the operator.
pub(super) fn refusal(sentence: impl Into<std::borrow::Cow<'static, str>>) -> Error {
    Error::invalid_param(sentence)
}

fn cut() -> Error {
    refusal("The backup is cut: its end is missing")
}

fn damaged(why: &str) -> Error {
    refusal(format!("The backup is damaged: {why}"))
}

fn unreadable(e: &io::Error) -> Error {
    refusal(format!("The backup cannot be read: {}", reason(e)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_what_was_put_into_it_however_large_the_file_is() {
        let media = Member::Media(BlobHash([0xab; 32]));
        for member in [Member::Manifest, Member::Database, Member::End, media] {
            for bytes in [0, 1, 511, 512, OCTAL_SIZE_MAX, OCTAL_SIZE_MAX + 1, u64::MAX] {
                let block = head(member, bytes, 1_700_000_000_000);
                assert_eq!(parse_head(&block), Some((member, bytes)));
            }
        }
        assert!(media.name().len() <= 100, "the field for the name has so many bytes");
    }

    #[test]
    fn a_head_of_anything_but_a_file_of_ours_is_none() {
        let good = head(Member::Database, 5, 0);
        let changed = |change: &dyn Fn(&mut [u8; BLOCK])| {
            let mut block = good;
            change(&mut block);
            let sum = checksum(&block);
            block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
            parse_head(&block)
        };
        assert_eq!(changed(&|_| {}), Some((Member::Database, 5)));
        let hash = "ab".repeat(32);
        for name in [
            "../doorstep.db",
            "/doorstep.db",
            "./doorstep.db",
            "doorstep.db/",
            "media/ab/ab/../../../x",
            "doorstep.lock",
            &format!("media/ab/cd/{hash}"),
            &format!("media/{hash}"),
            &format!("media/ab/ab/{}", hash.to_uppercase()),
            "",
        ] {
            let renamed = changed(&|block| {
                block[..100].fill(0);
                block[..name.len()].copy_from_slice(name.as_bytes());
            });
            assert_eq!(renamed, None, "{name}");
        }
        // Hard links, symbolic links, devices, folders, pipes, long names of GNU's, headers of POSIX's.
        for kind in b"1234567LKxgSD" {
            assert_eq!(changed(&|block| block[156] = *kind), None, "{}", char::from(*kind));
        }
        assert_eq!(changed(&|block| block[345] = b'x'), None, "a prefix");
        assert_eq!(changed(&|block| block[124..136].fill(b'z')), None, "a size that is no number");
        let mut block = good;
        block[124] ^= 1;
        assert_eq!(parse_head(&block), None, "without its sum");
    }
}
