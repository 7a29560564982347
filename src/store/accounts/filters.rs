//! Filters that clients uploaded.

use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

impl Db<'_> {
    /// The filter with this id, as it was uploaded.
    pub fn filter(&self, user: &UserId, filter_id: i64) -> Result<Option<String>> {
        Ok(self
            .conn()
            .prepare_cached("SELECT definition FROM filters WHERE user_id = ? AND filter_id = ?")?
            .query_row(params![user.as_str(), filter_id], |row| row.get(0))
            .optional()?)
    }

    /// The id of the user's filter with this digest.
    pub fn filter_by_digest(&self, user: &UserId, digest: &[u8]) -> Result<Option<i64>> {
        Ok(self
            .conn()
            .prepare_cached("SELECT filter_id FROM filters WHERE user_id = ? AND digest = ?")?
            .query_row(params![user.as_str(), digest], |row| row.get(0))
            .optional()?)
    }
}

impl Tx<'_> {
    /// Stores a filter, and says which id it has now (or had already).
    pub fn add_filter(&mut self, user: &UserId, digest: &[u8], definition: &str) -> Result<i64> {
        if let Some(filter_id) = self.filter_by_digest(user, digest)? {
            return Ok(filter_id);
        }
        let filter_id: i64 = self
            .conn()
            .prepare_cached(
                // Those that were given out before a backup was restored are not given out again.
                "SELECT max(coalesce(max(filter_id), 0), (SELECT count(*) * 1000000 FROM lost_positions)) + 1
                 FROM filters WHERE user_id = ?",
            )?
            .query_row([user.as_str()], |row| row.get(0))?;
        self.execute(
            "INSERT INTO filters (user_id, filter_id, digest, definition) VALUES (?, ?, ?, ?)",
            params![user.as_str(), filter_id, digest, definition],
        )?;
        Ok(filter_id)
    }
}
