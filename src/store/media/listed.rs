//! Media as who runs the server looks at them: by who uploaded them, and by their age.

use rusqlite::params;

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::media::{MediaRow, media_of};
use crate::store::{Db, Tx};

/// By what the media of a user are sorted.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MediaOrder {
    /// `created_ts`
    Created,
    /// `last_access_ts`
    Used,
    /// `media_id`
    Id,
    /// `media_length`
    Length,
    /// `media_type`
    Type,
    /// `upload_name`
    Name,
    /// `quarantined_by`; who did it is not kept, and that nobody did comes first.
    Quarantined,
}

impl MediaOrder {
    /// The order of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            // Nothing here is safe from quarantine: so that sorts by time.
            "created_ts" | "safe_from_quarantine" => Self::Created,
            "last_access_ts" => Self::Used,
            "media_id" => Self::Id,
            "media_length" => Self::Length,
            "media_type" => Self::Type,
            "upload_name" => Self::Name,
            "quarantined_by" => Self::Quarantined,
            _ => return None,
        })
    }

    fn column(self) -> &'static str {
        match self {
            Self::Created => "created_ms",
            Self::Used => "used_ms",
            Self::Id => "media_id",
            Self::Length => "media.bytes",
            Self::Type => "content_type",
            Self::Name => "upload_name",
            Self::Quarantined => "10",
        }
    }
}

/// By what users are sorted who have uploaded something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum UsageOrder {
    /// `user_id`
    User,
    /// `displayname`
    Name,
    /// `media_count`
    Count,
    /// `media_length`
    Length,
}

impl UsageOrder {
    /// The order of this name.
    pub fn parse(name: &str) -> Option<Self> {
        Some(match name {
            "user_id" => Self::User,
            "displayname" => Self::Name,
            "media_count" => Self::Count,
            "media_length" => Self::Length,
            _ => return None,
        })
    }
}

/// What somebody has uploaded.
#[derive(Debug, Clone)]
pub struct MediaUsage {
    /// Who.
    pub user_id: String,
    /// What they are called, as JSON.
    pub displayname: Option<String>,
    /// How many files.
    pub count: u64,
    /// How many bytes.
    pub bytes: u64,
}

/// A medium of this server, by its row, with its id.
pub type OwnMedia = (i64, String);

impl Db<'_> {
    /// What a user has uploaded: so many behind so many, with their ids.
    pub fn media_of_user(
        &self,
        user: &UserId,
        (order, backwards): (MediaOrder, bool),
        (from, limit): (usize, usize),
    ) -> Result<Vec<(String, MediaRow)>> {
        let (column, direction) = (order.column(), if backwards { "DESC" } else { "ASC" });
        let sql = format!(
            "SELECT media_key, hash, media.bytes, content_type, upload_name, uploader, created_ms, expires_ms,
                    used_ms, media.quarantined OR coalesce(media_blobs.quarantined, 0), media_id
             FROM media LEFT JOIN media_blobs USING (hash) WHERE uploader = ?1 AND hash IS NOT NULL
             ORDER BY {column} {direction}, media_key {direction} LIMIT ?2 OFFSET ?3"
        );
        let mut query = self.conn().prepare_cached(&sql)?;
        let mut rows = query.query(params![user.as_str(), count(limit), count(from)])?;
        let mut media = Vec::new();
        while let Some(row) = rows.next()? {
            media.push((row.get(10)?, media_of(row)?));
        }
        Ok(media)
    }

    /// How many files a user has uploaded.
    pub fn count_media_of_user(&self, user: &UserId) -> Result<u64> {
        let sql = "SELECT count(*) FROM media WHERE uploader = ?1 AND hash IS NOT NULL";
        let count: i64 = self.conn().prepare_cached(sql)?.query_row([user.as_str()], |row| row.get(0))?;
        Ok(count.max(0).unsigned_abs())
    }

    /// Files of this server's users that were last asked for before then and are larger than that, behind a row; so many
    /// at most.
    pub fn old_media(&self, behind: i64, before: Millis, larger: u64, most: usize) -> Result<Vec<OwnMedia>> {
        let mut query = self.conn().prepare_cached(
            "SELECT media_key, media_id FROM media WHERE media_key > ?1 AND uploader IS NOT NULL
               AND hash IS NOT NULL AND used_ms < ?2 AND bytes > ?3 AND quarantined = 0
             ORDER BY media_key LIMIT ?4",
        )?;
        let larger = i64::try_from(larger).unwrap_or(i64::MAX);
        let rows = query
            .query_map(params![behind, before, larger, count(most)], |row| Ok((row.get(0)?, row.get(1)?)))?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// Who has uploaded what, of what was uploaded from then on and before then.
    pub fn media_usage(&self, (from_ms, until_ms): (Millis, Millis)) -> Result<Vec<MediaUsage>> {
        self.rows(
            "SELECT uploader,
               (SELECT value FROM profile_fields WHERE user_id = uploader AND field = 'displayname'),
               count(*), sum(bytes)
             FROM media
             WHERE uploader IS NOT NULL AND hash IS NOT NULL AND created_ms >= ?1 AND created_ms < ?2
             GROUP BY uploader",
            params![from_ms, until_ms],
            |row| {
                Ok(MediaUsage {
                    user_id: row.get(0)?,
                    displayname: row.get(1)?,
                    count: row.get::<_, i64>(2)?.unsigned_abs(),
                    bytes: row.get::<_, i64>(3)?.unsigned_abs(),
                })
            },
        )
    }

    /// The avatars that local users have, as JSON.
    pub fn profile_avatars(&self) -> Result<Vec<String>> {
        self.rows("SELECT value FROM profile_fields WHERE field = 'avatar_url'", &[], |row| row.get(0))
    }
}

impl Tx<'_> {
    /// Takes these media away, but for what is quarantined. How many those were.
    pub fn delete_media_rows(&mut self, keys: &[i64]) -> Result<usize> {
        let mut gone = 0;
        for key in keys {
            gone +=
                self.execute("DELETE FROM media WHERE media_key = ?1 AND quarantined = 0", params![key])?;
        }
        Ok(gone)
    }
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}
