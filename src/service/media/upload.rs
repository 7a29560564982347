//! Uploads ("Content repository", `POST /upload`, `POST /create` and `PUT /upload/{serverName}/{mediaId}`): begun with the
//! request's head, given the body as it comes, and acknowledged when the file and its row are on the disk.
//!
//! What a user may upload in all is bounded, and so is how much of it at once: each upload that is under way keeps a
//! thread and room on the disk. When many are under way, everybody has fewer and who is slow is given up, so that nobody
//! is shut out by a few.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use super::fetch::keeps_up;
use super::files::{BlobWriter, too_large};
use super::{Media, no_such_media};
use crate::clock::Millis;
use crate::error::{ErrCode, Error, Result};
use crate::locks::lock;
use crate::protocol::UserId;
use crate::protocol::media::{MediaId, MxcUri, file_name, media_type};
use crate::random;
use crate::service::accounts::moderation::{locked, suspended};
use crate::store::Db;
use crate::store::media::{Filling, NewMedia};

/// Uploads under way, in all and of one user; and of one user when half of all are taken.
const UPLOADS_MAX: usize = 128;
const UPLOADS_OF_USER_MAX: usize = 8;
const UPLOADS_OF_USER_WHEN_CROWDED_MAX: usize = 2;
/// Slowest rate while half of all are taken, behind a grace, in bytes a second: who is slower makes room.
const CROWDED_RATE_MIN: u64 = 16 << 10;
/// URIs of one user for which nothing was uploaded yet.
const PENDING_OF_USER_MAX: usize = 50;
/// For how long nothing may be uploaded for a URI: "The recommended default expiration is 24 hours".
pub(in crate::service) const PENDING_EXPIRY_MS: Millis = 86_400_000;
/// 124 random bits: more than "18 random characters", which nobody guesses.
const MEDIA_ID_LETTERS: usize = 24;
/// What a file takes of its user's share at least, since the smallest takes as much of the disk.
const COUNTED_BYTES_MIN: u64 = 4096;

/// Uploads that are under way.
#[derive(Clone, Default)]
pub struct UploadSlots(Arc<Mutex<HashMap<UserId, usize>>>);

/// An upload's place among those; free again once dropped.
struct UploadSlot {
    slots: UploadSlots,
    user: UserId,
}

impl UploadSlots {
    /// A place for one of this user. Errors: 429 `M_LIMIT_EXCEEDED`.
    fn take(&self, user: &UserId) -> Result<UploadSlot> {
        let mut taken = lock(&self.0);
        let in_all: usize = taken.values().sum();
        let of_user = taken.get(user).copied().unwrap_or(0);
        let may_have =
            if in_all < UPLOADS_MAX / 2 { UPLOADS_OF_USER_MAX } else { UPLOADS_OF_USER_WHEN_CROWDED_MAX };
        if in_all >= UPLOADS_MAX || of_user >= may_have {
            let error = Error::new(ErrCode::LimitExceeded, "Too many uploads at once");
            return Err(error.with_field("retry_after_ms", 2000));
        }
        *taken.entry(user.clone()).or_default() += 1;
        drop(taken);
        Ok(UploadSlot { slots: self.clone(), user: user.clone() })
    }
}

impl UploadSlot {
    /// Whether others may find none soon.
    fn is_crowded(&self) -> bool {
        lock(&self.slots.0).values().sum::<usize>() >= UPLOADS_MAX / 2
    }
}

impl Drop for UploadSlot {
    fn drop(&mut self) {
        let mut taken = lock(&self.slots.0);
        if let Some(count) = taken.get_mut(&self.user) {
            *count -= 1;
            if *count == 0 {
                taken.remove(&self.user);
            }
        }
    }
}

/// What the head of an upload says.
#[derive(Debug, Clone, Copy)]
pub struct UploadHead<'r> {
    /// The URI that was made for it before, if it was.
    pub uri: Option<&'r MxcUri>,
    /// What it is said to be.
    pub content_type: Option<&'r str>,
    /// What the file is called.
    pub file_name: Option<&'r str>,
    /// How large it will be, in bytes, if that is said.
    pub bytes: Option<u64>,
}

/// An upload that is under way. Dropped, it leaves nothing.
pub struct Upload {
    writer: BlobWriter,
    uploader: UserId,
    uri: Option<MxcUri>,
    content_type: Option<String>,
    upload_name: Option<String>,
    began: Instant,
    slot: UploadSlot,
}

impl Upload {
    /// The next bytes. Errors: 413 `M_TOO_LARGE`; 507 `M_UNKNOWN` where the disk is full; 408 `M_UNKNOWN` for who is slow while
    /// there are many.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.writer.write(bytes)?;
        if !keeps_up(self.began.elapsed(), self.writer.bytes(), CROWDED_RATE_MIN) && self.slot.is_crowded() {
            return Err(
                Error::new(ErrCode::Unknown, "The upload is too slow while there are many").with_status(408)
            );
        }
        Ok(())
    }
}

impl Media<'_> {
    /// A URI for which the user is going to upload something, and until when that has to have happened. Errors: 429
    /// `M_LIMIT_EXCEEDED` for who has many such.
    pub fn create(&self, user: &UserId) -> Result<(MxcUri, Millis)> {
        let (uri, user, now) = (self.new_uri()?, user.clone(), self.clock.now_ms());
        let expires_ms = now + PENDING_EXPIRY_MS;
        let made = uri.clone();
        self.store.write(move |tx| {
            if !tx.is_active_user(&user)? {
                return Err(account_is_closed());
            }
            if tx.count_pending_media(&user, now)? >= PENDING_OF_USER_MAX {
                let error = Error::new(
                    ErrCode::LimitExceeded,
                    "Too many of your files were announced and never came",
                );
                return Err(error.with_field("retry_after_ms", 60_000));
            }
            tx.add_pending_media(&made, &user, expires_ms, now)
        })?;
        self.scheduler.no_later_than(expires_ms);
        Ok((uri, expires_ms))
    }

    /// Begins an upload, by its head. Errors: 413 `M_TOO_LARGE`; 403 `M_FORBIDDEN` beyond the user's share, and for a URI of
    /// another user; 404 `M_NOT_FOUND` for one that nobody made or whose time is over; 409 `M_CANNOT_OVERWRITE_MEDIA`; 429
    /// `M_LIMIT_EXCEEDED`; 400 `M_INVALID_PARAM` for a name that is too long.
    pub fn begin_upload(&self, user: &UserId, head: UploadHead<'_>) -> Result<Upload> {
        let bytes_max = self.config.media_max_upload;
        let upload_name = file_name(head.file_name)?;
        if head.bytes.is_some_and(|bytes| bytes > bytes_max) {
            return Err(too_large(bytes_max));
        }
        let now = self.clock.now_ms();
        let (uploaded, known) = self.store.read(|db| {
            let known = head.uri.map(|uri| db.media(uri, now)).transpose()?;
            Ok((db.media_bytes(Some(user))?, known))
        })?;
        if let Some(known) = known {
            let known =
                known.filter(|_| head.uri.is_some_and(|uri| self.is_own(uri))).ok_or_else(no_such_media)?;
            if known.uploader.as_ref() != Some(user) {
                return Err(Error::forbidden("This is another user's"));
            }
            if known.hash.is_some() {
                return Err(already_uploaded());
            }
        }
        check_share(self.config.media_per_user, uploaded, head.bytes.unwrap_or(0))?;
        Ok(Upload {
            writer: self.begin_blob(bytes_max),
            uploader: user.clone(),
            uri: head.uri.cloned(),
            content_type: head.content_type.and_then(media_type).map(str::to_owned),
            upload_name,
            began: Instant::now(),
            slot: self.upload_slots.take(user)?,
        })
    }

    /// That was all: the file can be had from now on by the URI that is given. Errors: those of [`Media::begin_upload`] and
    /// [`Media::store_blob`].
    pub fn finish_upload(&self, upload: Upload) -> Result<MxcUri> {
        let Upload { writer, uploader, uri, content_type, upload_name, slot: _slot, .. } = upload;
        let blob = self.store_blob(writer)?;
        let announced = uri.is_some();
        let uri = match uri {
            Some(uri) => uri,
            None => self.new_uri()?,
        };
        let made = uri.clone();
        let (share, now) = (self.config.media_per_user, self.clock.now_ms());
        let new = NewMedia {
            uri,
            hash: blob.hash,
            bytes: blob.bytes,
            content_type,
            upload_name,
            uploader: Some(uploader.clone()),
        };
        self.store.write(move |tx| {
            check_uploader(tx, &uploader)?;
            if tx.blob(&new.hash)?.is_none_or(|blob| blob.quarantined) {
                return Err(Error::forbidden("This file is not allowed here"));
            }
            check_share(share, tx.media_bytes(Some(&uploader))?, new.bytes)?;
            if !announced {
                return if tx.add_media(&new, now)? { Ok(()) } else { Err(already_uploaded()) };
            }
            match tx.fill_pending_media(&new, now)? {
                Filling::Filled => {}
                Filling::AlreadyFilled => return Err(already_uploaded()),
                Filling::Unknown => return Err(no_such_media()),
            }
            // Who waits for this waits for news of the uploader.
            tx.next_stream();
            tx.wake_user(&uploader);
            Ok(())
        })?;
        drop(blob);
        Ok(made)
    }

    /// A URI of this server that nobody has.
    pub(super) fn new_uri(&self) -> Result<MxcUri> {
        let media_id = MediaId::parse(&random::letters(MEDIA_ID_LETTERS))?;
        Ok(MxcUri { server: self.config.server_name.clone(), media_id })
    }
}

/// Whether so many more bytes are within a user's share (0: everything is). Errors: 403 `M_FORBIDDEN`.
fn check_share(share: u64, uploaded: u64, more: u64) -> Result<()> {
    if share > 0 && uploaded.saturating_add(more.max(COUNTED_BYTES_MIN)) > share {
        return Err(Error::forbidden("You have uploaded as much as you may on this server"));
    }
    Ok(())
}

fn already_uploaded() -> Error {
    Error::new(ErrCode::CannotOverwriteMedia, "Media already uploaded")
}

/// Whether the user may upload still: a large file takes its time. Errors: 403 `M_FORBIDDEN`, 401 `M_USER_LOCKED`, 403
/// `M_USER_SUSPENDED`.
fn check_uploader(db: &Db<'_>, user: &UserId) -> Result<()> {
    match db.account(user)?.filter(|account| !account.deactivated) {
        None => Err(account_is_closed()),
        Some(account) if account.standing.locked => Err(locked()),
        Some(account) if account.standing.suspended => Err(suspended()),
        Some(_) => Ok(()),
    }
}

fn account_is_closed() -> Error {
    Error::forbidden("There is no such account any more")
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::testing::TestServer;

    #[test]
    fn who_uploads_too_slowly_makes_room_when_others_need_it() {
        let server = TestServer::start();
        let media = server.homeserver().media();
        let user = |n: usize| UserId::parse(&format!("@u{n}:{}", server.name())).expect("a user id");
        let begin = |n: usize| {
            let head = UploadHead { uri: None, content_type: None, file_name: None, bytes: None };
            media.begin_upload(&user(n), head)
        };
        let mut slow = begin(1000).expect("a place");
        slow.began =
            Instant::now().checked_sub(Duration::from_secs(60)).expect("the clock has run for longer");
        slow.write(b"x").expect("there is room for others");
        let held: Vec<_> = (0..UPLOADS_MAX).map_while(|n| begin(n).ok()).collect();
        assert_eq!(held.len(), UPLOADS_MAX - 1);
        assert_eq!(slow.write(b"x").expect_err("others wait").status(), 408);
        drop(slow);
        begin(2000).expect("a place").write(b"x").expect("what has just begun is not slow");
    }
}
