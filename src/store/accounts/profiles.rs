//! Profiles of our own users, a row a field.

use rusqlite::{OptionalExtension, params};
use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::protocol::{UserId, json};
use crate::store::{Db, Tx};

impl Db<'_> {
    /// Every field of the user's profile. Empty if nothing was ever set.
    pub fn profile(&self, user: &UserId) -> Result<Map<String, Value>> {
        let mut statement =
            self.conn().prepare_cached("SELECT field, value FROM profile_fields WHERE user_id = ?")?;
        let rows = statement.query_map([user.as_str()], |row| Ok((row.get(0)?, row.get::<_, String>(1)?)))?;
        let mut profile = Map::new();
        for row in rows {
            let (field, value) = row?;
            profile.insert(field, json::tree(&value).map_err(Error::internal)?);
        }
        Ok(profile)
    }

    /// One field of the user's profile.
    pub fn profile_field(&self, user: &UserId, field: &str) -> Result<Option<Value>> {
        let value: Option<String> = self
            .conn()
            .prepare_cached("SELECT value FROM profile_fields WHERE user_id = ? AND field = ?")?
            .query_row([user.as_str(), field], |row| row.get(0))
            .optional()?;
        value.map(|value| json::tree(&value).map_err(Error::internal)).transpose()
    }
}

impl Tx<'_> {
    /// Sets one field of a profile.
    pub fn set_profile_field(&mut self, user: &UserId, field: &str, value: &Value) -> Result<()> {
        self.execute(
            "INSERT OR REPLACE INTO profile_fields (user_id, field, value) VALUES (?, ?, ?)",
            params![user.as_str(), field, value.to_string()],
        )?;
        Ok(())
    }

    /// Removes one field of a profile, if it is there.
    pub fn delete_profile_field(&mut self, user: &UserId, field: &str) -> Result<()> {
        self.execute(
            "DELETE FROM profile_fields WHERE user_id = ? AND field = ?",
            params![user.as_str(), field],
        )?;
        Ok(())
    }
}
