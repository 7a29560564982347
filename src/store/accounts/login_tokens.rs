//! Login tokens: with each, who is logged in lets one more device log in.

use rusqlite::{OptionalExtension, params};

use super::TokenHash;
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

impl Db<'_> {
    /// Whom a token lets log in, if it is good still.
    pub fn login_token_user(&self, token: &TokenHash, now: Millis) -> Result<Option<UserId>> {
        let user: Option<String> = self
            .conn()
            .prepare_cached("SELECT user_id FROM login_tokens WHERE hash = ?1 AND expires_ms > ?2")?
            .query_row(params![token, now], |row| row.get(0))
            .optional()?;
        user.map(|user| UserId::parse(&user)).transpose()
    }

    /// How many tokens are kept, of whomever.
    #[cfg(test)]
    pub(crate) fn login_tokens(&self) -> Result<usize> {
        let count: i64 = self.conn().query_row("SELECT count(*) FROM login_tokens", [], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Tx<'_> {
    /// Keeps a token that a device of the user has asked for, at most `most` of the user's (the ones that last longest);
    /// expired ones of everybody go. False: there is no such device any more.
    pub fn add_login_token(
        &mut self,
        (user, device): (&UserId, &str),
        token: &TokenHash,
        (now, expires): (Millis, Millis),
        most: usize,
    ) -> Result<bool> {
        self.execute("DELETE FROM login_tokens WHERE expires_ms <= ?1", params![now])?;
        let added = self.execute(
            "INSERT INTO login_tokens (hash, user_id, device_id, expires_ms)
             SELECT ?1, user_id, device_id, ?4 FROM devices WHERE user_id = ?2 AND device_id = ?3",
            params![token, user.as_str(), device, expires],
        )?;
        self.execute(
            "DELETE FROM login_tokens WHERE hash IN (
             SELECT hash FROM login_tokens WHERE user_id = ?1 AND hash <> ?3
             ORDER BY expires_ms DESC LIMIT -1 OFFSET ?2)",
            params![user.as_str(), most.saturating_sub(1) as i64, token],
        )?;
        Ok(added == 1)
    }

    /// A token is good no more.
    pub fn forget_login_token(&mut self, token: &TokenHash) -> Result<()> {
        self.execute("DELETE FROM login_tokens WHERE hash = ?1", params![token])?;
        Ok(())
    }
}
