//! Media: what is known of each mxc:// URI, and which files there are. The files themselves are the business of whoever
//! calls (`service/media`).

pub mod listed;
pub mod thumbnails;

use rusqlite::types::{FromSql, FromSqlResult, ToSql, ToSqlOutput, ValueRef};
use rusqlite::{OptionalExtension, Row, params};

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::media::MxcUri;

/// The row id of a medium.
pub type MediaKey = i64;

/// SHA-256 of a file's bytes.
#[derive(Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct BlobHash(pub [u8; 32]);

impl std::fmt::Display for BlobHash {
    /// 64 digits, lower case.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl std::fmt::Debug for BlobHash {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        std::fmt::Display::fmt(self, f)
    }
}

impl BlobHash {
    /// The hash that is written like this: 64 digits, lower case.
    pub fn parse(text: &str) -> Option<Self> {
        let digit = |b: u8| char::from(b).to_digit(16).filter(|_| !b.is_ascii_uppercase());
        let mut hash = [0; 32];
        if text.len() != 64 {
            return None;
        }
        for (byte, pair) in hash.iter_mut().zip(text.as_bytes().chunks(2)) {
            *byte = u8::try_from(digit(pair[0])? * 16 + digit(pair[1])?).ok()?;
        }
        Some(Self(hash))
    }
}

impl ToSql for BlobHash {
    fn to_sql(&self) -> rusqlite::Result<ToSqlOutput<'_>> {
        Ok(ToSqlOutput::Borrowed(ValueRef::Blob(&self.0)))
    }
}

impl FromSql for BlobHash {
    fn column_result(value: ValueRef<'_>) -> FromSqlResult<Self> {
        <[u8; 32]>::column_result(value).map(Self)
    }
}

/// What is known of one mxc:// URI.
#[derive(Debug, Clone)]
pub struct MediaRow {
    /// Its row.
    pub key: MediaKey,
    /// The file; none while nothing was uploaded.
    pub hash: Option<BlobHash>,
    /// How large that is.
    pub bytes: u64,
    /// What it is said to be: a well-formed media type, or none was given.
    pub content_type: Option<String>,
    /// What the file is called.
    pub upload_name: Option<String>,
    /// Which local user uploaded it, or is about to.
    pub uploader: Option<UserId>,
    /// When the row was made.
    pub created_ms: Millis,
    /// Until when it has to be uploaded, if it was not.
    pub expires_ms: Option<Millis>,
    /// When it was asked for last, to the hour.
    pub used_ms: Millis,
    /// Whether nobody is to be given it: itself, or its file in whatever media.
    pub quarantined: bool,
}

/// A file that is there, and is now to be had by an mxc:// URI.
#[derive(Debug, Clone)]
pub struct NewMedia {
    /// The URI.
    pub uri: MxcUri,
    /// The file, which is in `media_blobs`.
    pub hash: BlobHash,
    /// How large it is.
    pub bytes: u64,
    /// What it is said to be.
    pub content_type: Option<String>,
    /// What the file is called.
    pub upload_name: Option<String>,
    /// Which local user uploaded it; none for what can be had again.
    pub uploader: Option<UserId>,
}

/// A file that is known.
#[derive(Debug, Clone, Copy)]
pub struct BlobRow {
    /// How large it is.
    pub bytes: u64,
    /// Whether anything has it, so that the file was there for good at the time.
    pub used: bool,
    /// Whether nobody is to be given it.
    pub quarantined: bool,
}

/// What became of something that was to be filled.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Filling {
    /// It has its file now.
    Filled,
    /// It had one before.
    AlreadyFilled,
    /// There is no such URI, or its time is over.
    Unknown,
}

fn media_of(row: &Row<'_>) -> Result<MediaRow> {
    let uploader = row.get::<_, Option<String>>(5)?;
    Ok(MediaRow {
        key: row.get(0)?,
        hash: row.get(1)?,
        bytes: row.get::<_, i64>(2)?.unsigned_abs(),
        content_type: row.get(3)?,
        upload_name: row.get(4)?,
        uploader: uploader.map(|user| UserId::parse(&user)).transpose()?,
        created_ms: row.get(6)?,
        expires_ms: row.get(7)?,
        used_ms: row.get(8)?,
        quarantined: row.get(9)?,
    })
}

impl Db<'_> {
    /// What is known of a URI. What was not uploaded in time is not told from what never was.
    pub fn media(&self, uri: &MxcUri, now: Millis) -> Result<Option<MediaRow>> {
        let mut query = self.conn().prepare_cached(
            "SELECT media_key, hash, media.bytes, content_type, upload_name, uploader, created_ms, expires_ms,
                    used_ms, media.quarantined OR coalesce(media_blobs.quarantined, 0)
             FROM media LEFT JOIN media_blobs USING (hash)
             WHERE server_name = ?1 AND media_id = ?2 AND (expires_ms IS NULL OR expires_ms > ?3)",
        )?;
        let mut rows = query.query(params![uri.server.as_str(), uri.media_id.as_str(), now])?;
        rows.next()?.map(media_of).transpose()
    }

    /// How many URIs of the user wait for their files.
    pub fn count_pending_media(&self, user: &UserId, now: Millis) -> Result<usize> {
        let mut query = self.conn().prepare_cached(
            "SELECT count(*) FROM media WHERE uploader = ?1 AND expires_ms IS NOT NULL AND expires_ms > ?2",
        )?;
        Ok(query.query_row(params![user.as_str(), now], |row| row.get::<_, u32>(0))? as usize)
    }

    /// How many bytes a user has uploaded; of none in particular: what can be had again.
    pub fn media_bytes(&self, uploader: Option<&UserId>) -> Result<u64> {
        let owner = uploader.map_or("", UserId::as_str);
        let mut query = self.conn().prepare_cached("SELECT bytes FROM media_shares WHERE owner = ?1")?;
        Ok(query
            .query_row([owner], |row| row.get::<_, i64>(0))
            .optional()?
            .unwrap_or(0)
            .max(0)
            .unsigned_abs())
    }

    /// What is known of a file.
    pub fn blob(&self, hash: &BlobHash) -> Result<Option<BlobRow>> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT bytes, uses > 0, quarantined FROM media_blobs WHERE hash = ?1")?;
        let row = query.query_row([hash], |row| {
            let bytes = row.get::<_, i64>(0)?.unsigned_abs();
            Ok(BlobRow { bytes, used: row.get(1)?, quarantined: row.get(2)? })
        });
        Ok(row.optional()?)
    }

    /// Files that nothing has, behind one of them.
    pub fn unused_blobs(&self, behind: Option<&BlobHash>, most: usize) -> Result<Vec<BlobHash>> {
        let behind = behind.map_or(&[][..], |hash| &hash.0);
        self.rows(
            "SELECT hash FROM media_blobs WHERE uses = 0 AND quarantined = 0 AND hash > ?1 ORDER BY hash LIMIT ?2",
            params![behind, most as i64],
            |row| row.get(0),
        )
    }

    /// When the first URI expires that waits for its file.
    pub fn next_media_expiry(&self) -> Result<Option<Millis>> {
        let mut query = self.conn().prepare_cached(
            "SELECT expires_ms FROM media WHERE expires_ms IS NOT NULL ORDER BY expires_ms LIMIT 1",
        )?;
        Ok(query.query_row([], |row| row.get(0)).optional()?)
    }

    /// When that which can be had again was asked for whose last time is longest ago.
    pub fn oldest_cached_media(&self) -> Result<Option<Millis>> {
        let mut query = self.conn().prepare_cached(
            "SELECT used_ms FROM media WHERE uploader IS NULL AND quarantined = 0 ORDER BY used_ms LIMIT 1",
        )?;
        Ok(query.query_row([], |row| row.get(0)).optional()?)
    }
}

impl Tx<'_> {
    /// Says that a file of this hash is about to be there.
    pub fn add_blob(&mut self, hash: &BlobHash, bytes: u64) -> Result<()> {
        self.execute(
            "INSERT OR IGNORE INTO media_blobs (hash, bytes) VALUES (?1, ?2)",
            params![hash, bytes as i64],
        )?;
        Ok(())
    }

    /// Has a file be had by a URI. False: there is something by that URI already.
    pub fn add_media(&mut self, new: &NewMedia, now: Millis) -> Result<bool> {
        let added = self.execute(
            "INSERT OR IGNORE INTO media
               (server_name, media_id, hash, bytes, content_type, upload_name, uploader, created_ms, used_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?8)",
            params![
                new.uri.server.as_str(),
                new.uri.media_id.as_str(),
                new.hash,
                new.bytes as i64,
                new.content_type,
                new.upload_name,
                new.uploader.as_ref().map(UserId::as_str),
                now,
            ],
        )?;
        Ok(added == 1)
    }

    /// A URI that waits for its file until then.
    pub fn add_pending_media(
        &mut self,
        uri: &MxcUri,
        uploader: &UserId,
        expires_ms: Millis,
        now: Millis,
    ) -> Result<()> {
        self.execute(
            "INSERT INTO media (server_name, media_id, uploader, created_ms, expires_ms, used_ms)
             VALUES (?1, ?2, ?3, ?4, ?5, ?4)",
            params![uri.server.as_str(), uri.media_id.as_str(), uploader.as_str(), now, expires_ms],
        )?;
        Ok(())
    }

    /// Gives a URI of this user that waits for its file that file.
    pub fn fill_pending_media(&mut self, new: &NewMedia, now: Millis) -> Result<Filling> {
        let Some(known) = self.media(&new.uri, now)? else { return Ok(Filling::Unknown) };
        if known.uploader != new.uploader {
            return Ok(Filling::Unknown);
        }
        if known.hash.is_some() {
            return Ok(Filling::AlreadyFilled);
        }
        self.execute(
            "UPDATE media SET hash = ?2, bytes = ?3, content_type = ?4, upload_name = ?5, expires_ms = NULL,
               used_ms = ?6
             WHERE media_key = ?1",
            params![known.key, new.hash, new.bytes as i64, new.content_type, new.upload_name, now],
        )?;
        Ok(Filling::Filled)
    }

    /// Notes that it was asked for.
    pub fn touch_media(&mut self, key: MediaKey, now: Millis) -> Result<()> {
        self.execute("UPDATE media SET used_ms = max(used_ms, ?2) WHERE media_key = ?1", params![key, now])?;
        Ok(())
    }

    /// Takes a URI and what it stands for away. False: there was none.
    pub fn delete_media(&mut self, uri: &MxcUri) -> Result<bool> {
        let deleted = self.execute(
            "DELETE FROM media WHERE server_name = ?1 AND media_id = ?2",
            params![uri.server.as_str(), uri.media_id.as_str()],
        )?;
        Ok(deleted == 1)
    }

    /// Whether nobody is to be given this any more, whatever else has the same file included. For what is not here it
    /// is written down all the same. False: there is no such URI on this server, and there will be none.
    pub fn quarantine_media(&mut self, uri: &MxcUri, quarantined: bool, now: Millis) -> Result<bool> {
        let (server, id) = (uri.server.as_str(), uri.media_id.as_str());
        if quarantined && uri.server != *self.server_name() {
            self.execute(
                "INSERT OR IGNORE INTO media (server_name, media_id, created_ms, used_ms, quarantined)
                 VALUES (?1, ?2, ?3, ?3, 1)",
                params![server, id, now],
            )?;
        }
        let known = self.execute(
            "UPDATE media SET quarantined = ?3 WHERE server_name = ?1 AND media_id = ?2",
            params![server, id, quarantined],
        )?;
        self.execute(
            "UPDATE media_blobs SET quarantined = ?3
             WHERE hash = (SELECT hash FROM media WHERE server_name = ?1 AND media_id = ?2)",
            params![server, id, quarantined],
        )?;
        if !quarantined {
            // What was written down of something that is not here says nothing any more.
            self.execute(
                "DELETE FROM media WHERE server_name = ?1 AND media_id = ?2 AND hash IS NULL AND expires_ms IS NULL",
                params![server, id],
            )?;
        }
        Ok(known == 1)
    }

    /// Lets go of URIs that waited for their files for too long: so many at most. How many those were.
    pub fn delete_expired_media(&mut self, now: Millis, most: usize) -> Result<usize> {
        let deleted = self.execute(
            "DELETE FROM media WHERE media_key IN
             (SELECT media_key FROM media WHERE expires_ms IS NOT NULL AND expires_ms <= ?1
              ORDER BY expires_ms LIMIT ?2)",
            params![now, most as i64],
        )?;
        Ok(deleted)
    }

    /// Lets go of the URIs of a user that wait for their files.
    pub fn delete_pending_media_of(&mut self, user: &UserId) -> Result<()> {
        self.execute(
            "DELETE FROM media WHERE uploader = ?1 AND expires_ms IS NOT NULL",
            params![user.as_str()],
        )?;
        Ok(())
    }

    /// Lets go of what can be had again, what was not asked for longest first: of that which was last asked for before
    /// then, and of whatever makes it more than so many bytes; so many at most. How many those were.
    pub fn evict_media(&mut self, before: Millis, bytes_max: u64, most: usize) -> Result<usize> {
        let mut evicted = 0;
        while evicted < most {
            let full = self.media_bytes(None)? > bytes_max;
            let gone = self.execute(
                "DELETE FROM media WHERE media_key =
                 (SELECT media_key FROM media WHERE uploader IS NULL AND quarantined = 0
                    AND used_ms < ?1 ORDER BY used_ms LIMIT 1)",
                params![if full { Millis::MAX } else { before }],
            )?;
            if gone == 0 {
                break;
            }
            evicted += 1;
        }
        Ok(evicted)
    }

    /// Forgets a file that nothing has, and the thumbnails that were made of it. False: something has it.
    pub fn forget_blob(&mut self, hash: &BlobHash) -> Result<bool> {
        const UNUSED: &str = "SELECT 1 FROM media_blobs WHERE hash = ?1 AND uses = 0 AND quarantined = 0";
        if !self.conn().prepare_cached(UNUSED)?.exists([hash])? {
            return Ok(false);
        }
        self.execute("DELETE FROM media_thumbnails WHERE source = ?1", params![hash])?;
        self.execute("DELETE FROM media_blobs WHERE hash = ?1", params![hash])?;
        Ok(true)
    }
}
