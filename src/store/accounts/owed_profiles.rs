//! Local users whose rooms have still to be told of a new name or avatar.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

/// So long the timer leaves a change to the request that made it.
const LEFT_TO_REQUEST_MS: Millis = 60_000;

/// That a user's rooms are to be told of their profile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct OwedProfile {
    /// The position of its last change.
    pub stream: i64,
    /// How often some of the rooms were told in vain since.
    pub attempts: u32,
}

impl Db<'_> {
    /// Whether some of a user's rooms may not have been told of their profile.
    pub fn owed_profile(&self, user: &UserId) -> Result<Option<OwedProfile>> {
        let mut statement =
            self.conn().prepare_cached("SELECT stream, attempts FROM owed_profiles WHERE user_id = ?1")?;
        let owed = statement
            .query_row([user.as_str()], |row| Ok(OwedProfile { stream: row.get(0)?, attempts: row.get(1)? }));
        Ok(owed.optional()?)
    }

    /// A user whose rooms are to be told now.
    pub fn due_owed_profile(&self, now: Millis) -> Result<Option<UserId>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT user_id FROM owed_profiles WHERE due_ms <= ?1 ORDER BY due_ms LIMIT 1")?;
        let user: Option<String> = statement.query_row([now], |row| row.get(0)).optional()?;
        user.map(|user| UserId::parse(&user)).transpose()
    }

    /// When the next ones are.
    pub fn next_owed_profile_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM owed_profiles")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// Writes down that a user's rooms are to be told of what has changed in their profile. Whoever changed it does that.
    pub fn owe_profile(&mut self, user: &UserId, now: Millis) -> Result<()> {
        // A position of its own, so that what was begun before cannot end it.
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO owed_profiles (user_id, stream, attempts, due_ms) VALUES (?1, ?2, 0, ?3)",
            params![user.as_str(), stream, now + LEFT_TO_REQUEST_MS],
        )?;
        self.is_due(now + LEFT_TO_REQUEST_MS);
        Ok(())
    }

    /// Leaves a user's rooms alone until then, unless their profile has changed again; `tried`: whether some were told in vain.
    pub fn put_off_owed_profile(
        &mut self,
        user: &UserId,
        stream: i64,
        (due, tried): (Millis, bool),
    ) -> Result<()> {
        self.execute(
            "UPDATE owed_profiles SET due_ms = ?3, attempts = attempts + ?4 WHERE user_id = ?1 AND stream = ?2",
            params![user.as_str(), stream, due, tried],
        )?;
        self.is_due(due);
        Ok(())
    }

    /// A user's rooms have been told, unless their profile has changed again.
    pub fn end_owed_profile(&mut self, user: &UserId, stream: i64) -> Result<()> {
        self.execute(
            "DELETE FROM owed_profiles WHERE user_id = ?1 AND stream = ?2",
            params![user.as_str(), stream],
        )?;
        Ok(())
    }
}
