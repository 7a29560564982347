//! Media (client-server API, "Content repository"): files that users upload and everybody asks for by an mxc:// URI.
//!
//! - here: what is to be had by a URI, and what is fetched from elsewhere; who may have nothing any more.
//! - `files`: the files themselves, by their hash, beside the database.
//! - `upload`: from a client's first byte to a URI that is acknowledged, at once or later.
//! - `give`: files as users are given them; `serve`: ours, as other servers are.
//! - `fetch`: files of other servers; `fetch_rate`: how often they are asked.
//! - `thumbnails`: which thumbnail answers, and who waits for it; `thumbnail/`: how it is made. `url_preview/`: previews of links.
//! - `sweep`: what nobody has any more, what was never uploaded, and what a full cache has too much.
//!
//! Deactivation leaves what was uploaded where it is, erasure too: it hangs on events, which those who could see them are
//! still shown ("Account deactivation"). URIs for which nothing was uploaded go.

pub mod fetch;
mod fetch_rate;
pub mod files;
pub mod give;
pub mod serve;
pub mod sweep;
pub mod thumbnail;
pub mod thumbnails;
pub mod upload;
pub mod url_preview;

use std::io::Read;
use std::ops::Deref;

use self::files::{BlobFile, BlobWriter, StoredBlob};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::media::{MxcUri, file_name, media_type};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::store::media::{MediaRow, NewMedia};

/// It is noted once an hour that something is asked for.
const USE_NOTED_EVERY_MS: Millis = 3_600_000;
/// Most bytes that are copied at once.
const COPY_BYTES: usize = 64 << 10;

/// Media, here and of other servers.
#[derive(Clone, Copy)]
pub struct Media<'h>(&'h Homeserver);

impl Deref for Media<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Media, here and of other servers.
    pub fn media(&self) -> Media<'_> {
        Media(self)
    }
}

/// A file that is to be had, with what is known of it.
pub struct MediaFile {
    /// What is known.
    pub row: MediaRow,
    /// The file, to be read from its beginning.
    pub file: BlobFile,
}

/// What is to be had by a URI.
pub enum FoundMedia {
    /// This.
    Here(Box<MediaFile>),
    /// Nothing yet: its uploader is expected to upload it.
    Pending(Box<MediaRow>),
    /// Nothing: of this server's there is no such URI, and of another's it was not fetched yet.
    Absent,
}

impl Media<'_> {
    /// Whether the URI is one of this server.
    pub fn is_own(&self, uri: &MxcUri) -> bool {
        uri.server == self.config.server_name
    }

    /// Looks for what is to be had by a URI on this server, fetched from elsewhere or its own, and notes that it was asked
    /// for. Errors: 404 `M_NOT_FOUND` for what nobody is to be given.
    pub fn find(&self, uri: &MxcUri) -> Result<FoundMedia> {
        let now = self.clock.now_ms();
        let Some(row) = self.store.read(|db| db.media(uri, now))? else { return Ok(FoundMedia::Absent) };
        if row.quarantined {
            return Err(no_such_media());
        }
        let Some(hash) = row.hash else { return Ok(FoundMedia::Pending(Box::new(row))) };
        let Some(file) = self.media_files.open_blob(&hash)? else { return self.lost(uri, &row) };
        if file.size() != row.bytes {
            return self.lost(uri, &row);
        }
        if row.used_ms + USE_NOTED_EVERY_MS <= now {
            let key = row.key;
            self.store.write_lightly(move |tx| tx.touch_media(key, now))?;
        }
        Ok(FoundMedia::Here(Box::new(MediaFile { row, file })))
    }

    /// Its file is not there any more, or was cut off: somebody else's hand. What can be had again is forgotten.
    fn lost(&self, uri: &MxcUri, row: &MediaRow) -> Result<FoundMedia> {
        log::error!("the file of {uri} is missing from the data folder, or has another size than it had");
        if row.uploader.is_none() {
            let uri = uri.clone();
            self.store.write_lightly(move |tx| tx.delete_media(&uri).map(drop))?;
            return Ok(FoundMedia::Absent);
        }
        Err(no_such_media())
    }

    /// What is to be had by a URI on this server. Errors: 404 `M_NOT_FOUND` if there is nothing, 504 `M_NOT_YET_UPLOADED` if
    /// there will be.
    pub fn open(&self, uri: &MxcUri) -> Result<MediaFile> {
        match self.find(uri)? {
            FoundMedia::Here(found) => Ok(*found),
            FoundMedia::Pending(_) => Err(not_yet_uploaded()),
            FoundMedia::Absent => Err(no_such_media()),
        }
    }

    /// A new file of at most so many bytes, to be written and then given to [`Media::store_blob`].
    pub fn begin_blob(&self, bytes_max: u64) -> BlobWriter {
        self.media_files.begin(bytes_max)
    }

    /// Puts a file where it belongs, for good. What it is said to be has to be written down while the result is held.
    /// Errors: 403 `M_FORBIDDEN` for what nobody is to be given; 507 `M_UNKNOWN` where the disk is full.
    pub fn store_blob(&self, writer: BlobWriter) -> Result<StoredBlob> {
        let sealed = writer.seal()?;
        let (hash, bytes) = (sealed.hash(), sealed.bytes());
        let known = self.store.read(|db| db.blob(&hash))?;
        if known.is_some_and(|known| known.quarantined) {
            return Err(Error::forbidden("This file is not allowed here"));
        }
        if known.is_some_and(|known| known.used) {
            // It went to the disk before whatever has it was written down.
            let there = self.media_files.open_blob(&hash)?;
            if there.is_some_and(|there| there.size() == bytes) {
                return Ok(sealed.known());
            }
        }
        // Lightly: after a power cut the file that is left is found by its name.
        sealed.keep(|| self.store.write_lightly(move |tx| tx.add_blob(&hash, bytes)))
    }

    /// All that a reader has, as a file where it belongs. Errors: 413 `M_TOO_LARGE` for more than so many bytes, and those of
    /// [`Media::store_blob`] and of the reader.
    pub fn store_stream(&self, reader: &mut dyn Read, bytes_max: u64) -> Result<StoredBlob> {
        let mut writer = self.begin_blob(bytes_max);
        let mut buffer = vec![0; COPY_BYTES];
        loop {
            match reader.read(&mut buffer) {
                Ok(0) => return self.store_blob(writer),
                Ok(read) => writer.write(&buffer[..read])?,
                Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// Writes down what was fetched of another server, as that server described it, and lets go of what a full cache has too
    /// much. What it is said to be is kept only if it is well-formed; a name that is too long is none.
    pub fn insert_remote(
        &self,
        uri: &MxcUri,
        blob: StoredBlob,
        content_type: Option<&str>,
        upload_name: Option<&str>,
    ) -> Result<MediaFile> {
        let new = NewMedia {
            uri: uri.clone(),
            hash: blob.hash,
            bytes: blob.bytes,
            content_type: content_type.and_then(media_type).map(str::to_owned),
            upload_name: file_name(upload_name).ok().flatten(),
            uploader: None,
        };
        let now = self.clock.now_ms();
        // Before it is written down, so that it can be told also if it does not stay for a moment.
        let file = self.media_files.open_blob(&blob.hash)?;
        let file = file.ok_or_else(|| Error::internal("a file is gone that has just come"))?;
        let row = self.store.write(move |tx| {
            tx.add_media(&new, now)?;
            let row = tx.media(&new.uri, now)?;
            // Others may have brought it meanwhile, or somebody has said that nobody is to have it.
            row.filter(|row| !row.quarantined).ok_or_else(no_such_media)
        })?;
        drop(blob);
        self.scheduler.wake();
        Ok(MediaFile { row, file })
    }

    /// Whether nobody is to be given this any more, nor the same file by another URI. Errors: 404 `M_NOT_FOUND` if it is one
    /// of ours that there is not.
    pub fn quarantine(&self, by: &Administrator, uri: &MxcUri, quarantined: bool) -> Result<()> {
        let (of, now) = (uri.clone(), self.clock.now_ms());
        if !self.write_as(by, move |tx| tx.quarantine_media(&of, quarantined, now))? {
            return Err(no_such_media());
        }
        let done = if quarantined { "quarantined" } else { "taken out of quarantine" };
        log::info!("{by} has {done} the file {uri}");
        Ok(())
    }

    /// Takes a URI of this server away, or what was fetched by one of another's. Errors: 404 `M_NOT_FOUND`.
    pub fn delete(&self, by: &Administrator, uri: &MxcUri) -> Result<()> {
        let of = uri.clone();
        let known = self.write_as(by, move |tx| tx.delete_media(&of))?;
        self.scheduler.wake();
        if !known {
            return Err(no_such_media());
        }
        log::info!("{by} has deleted the file {uri}");
        Ok(())
    }
}

/// 404 `M_NOT_FOUND`.
pub fn no_such_media() -> Error {
    Error::not_found("There is no such media")
}

/// 504 `M_NOT_YET_UPLOADED`.
pub fn not_yet_uploaded() -> Error {
    Error::new(ErrCode::NotYetUploaded, "Content has not yet been uploaded")
}

#[cfg(test)]
mod tests;
