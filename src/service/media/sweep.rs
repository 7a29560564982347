//! What goes by itself: files that nothing has, URIs for which nothing was uploaded in time, and of what can be had again
//! that which was not asked for longest.
//!
//! A portion at a time, on the timer's thread, and whatever is cut short is done at the next look: what there is to do is
//! in the rows. After a start the folder is gone through once for files of which no row is left to tell, as a power cut or
//! somebody who restored an older database leaves them.

use std::sync::Mutex;

use super::Media;
use crate::clock::Millis;
use crate::error::Result;
use crate::locks::lock;

/// Rows that one commit takes away, and files between two looks at what else is due.
const ROWS_AT_ONCE_MAX: usize = 64;
const FILES_AT_ONCE_MAX: usize = 64;
/// How many first bytes there are.
const FIRST_BYTES: u16 = 256;
const DAY_MS: Millis = 86_400_000;

/// How far the folder was gone through since the start.
#[derive(Default)]
pub struct MediaSweep {
    /// The first byte of the hashes that are next; beyond 255: it was all.
    next: Mutex<u16>,
}

impl Media<'_> {
    /// Takes away some of what has to go. When there is something to do again, if that is known.
    pub fn sweep_media(&self, now: Millis) -> Result<Option<Millis>> {
        let before = match self.config.media_cache_days {
            0 => Millis::MIN,
            days => now - i64::from(days) * DAY_MS,
        };
        // What can be had again makes room for what cannot.
        let bytes_max = match self.media_files.is_disk_nearly_full() {
            true => 0,
            false => self.config.media_cache_bytes,
        };
        let (next_expiry, oldest, cached) = self
            .store
            .read(|db| Ok((db.next_media_expiry()?, db.oldest_cached_media()?, db.media_bytes(None)?)))?;
        let expired = next_expiry.is_some_and(|at| at <= now);
        let evict = oldest.is_some_and(|at| at < before || cached > bytes_max);
        let mut more = false;
        if expired || evict {
            let (gone, evicted) = self.store.write_lightly(move |tx| {
                let gone = if expired { tx.delete_expired_media(now, ROWS_AT_ONCE_MAX)? } else { 0 };
                let evicted = if evict { tx.evict_media(before, bytes_max, ROWS_AT_ONCE_MAX)? } else { 0 };
                Ok((gone, evicted))
            })?;
            more |= gone.max(evicted) == ROWS_AT_ONCE_MAX;
        }
        more |= self.remove_unused()?;
        more |= self.remove_nameless()?;
        if more {
            return Ok(Some(now));
        }
        let too_old = oldest.filter(|_| before > Millis::MIN).map(|at| at + (now - before) + 1);
        Ok(next_expiry.filter(|at| *at > now).into_iter().chain(too_old.filter(|at| *at > now)).min())
    }

    /// Takes away files that nothing has. Whether there are more.
    fn remove_unused(&self) -> Result<bool> {
        let unused = self.store.read(|db| db.unused_blobs(None, FILES_AT_ONCE_MAX))?;
        let mut removed = 0;
        for hash in &unused {
            let still_unused = || {
                let known = self.store.read(|db| db.blob(hash))?;
                Ok(known.is_some_and(|known| !known.used && !known.quarantined))
            };
            let forgotten = || {
                let hash = *hash;
                self.store.write_lightly(move |tx| tx.forget_blob(&hash).map(drop))
            };
            removed += usize::from(self.media_files.remove(hash, still_unused, forgotten)?);
        }
        // With a picture its thumbnails have gone, so that nothing has their files any more. Those that are pinned have
        // something soon, or are looked at again.
        Ok(removed > 0)
    }

    /// Goes through some of the folder for files of which no row tells. Whether there is more of it.
    fn remove_nameless(&self) -> Result<bool> {
        let mut next = lock(&self.media_sweep.next);
        // Most servers have few files, and many have none: what is not there need not be gone through.
        let Some(first) = self.media_files.next_first_byte(*next)? else {
            *next = FIRST_BYTES;
            return Ok(false);
        };
        for hash in self.media_files.named(first)? {
            let untold = || Ok(self.store.read(|db| db.blob(&hash))?.is_none());
            if untold()? && self.media_files.remove(&hash, untold, || Ok(()))? {
                log::info!("the file {hash} belonged to no media, and was deleted");
            }
        }
        *next = u16::from(first) + 1;
        Ok(true)
    }
}
