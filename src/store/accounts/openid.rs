//! OpenID tokens.

use rusqlite::{OptionalExtension, params};

use super::TokenHash;
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

impl Db<'_> {
    /// Whose token this is: if it has not expired, and the account was not closed or locked since.
    pub fn openid_user(&self, token: &TokenHash, now: Millis) -> Result<Option<UserId>> {
        let user: Option<String> = self
            .conn()
            .prepare_cached(
                "SELECT t.user_id FROM openid_tokens t JOIN users u ON u.user_id = t.user_id
                 WHERE t.hash = ?1 AND t.expires_ms > ?2 AND u.deactivated = 0 AND u.locked = 0",
            )?
            .query_row(params![token, now], |row| row.get(0))
            .optional()?;
        user.map(|user| UserId::parse(&user)).transpose()
    }

    /// How many tokens are kept, of whomever.
    #[cfg(test)]
    pub(crate) fn openid_tokens(&self) -> Result<usize> {
        let count: i64 = self.conn().query_row("SELECT count(*) FROM openid_tokens", [], |row| row.get(0))?;
        Ok(usize::try_from(count).unwrap_or(0))
    }
}

impl Tx<'_> {
    /// Keeps a token of the user, at most `most` of them (the ones that last longest); expired ones of everybody go.
    pub fn add_openid_token(
        &mut self,
        user: &UserId,
        token: &TokenHash,
        (now, expires): (Millis, Millis),
        most: usize,
    ) -> Result<()> {
        self.execute("DELETE FROM openid_tokens WHERE expires_ms <= ?1", params![now])?;
        self.execute(
            "INSERT INTO openid_tokens (hash, user_id, expires_ms) VALUES (?1, ?2, ?3)",
            params![token, user.as_str(), expires],
        )?;
        self.execute(
            "DELETE FROM openid_tokens WHERE hash IN (
             SELECT hash FROM openid_tokens WHERE user_id = ?1 AND hash <> ?3
             ORDER BY expires_ms DESC LIMIT -1 OFFSET ?2)",
            params![user.as_str(), most.saturating_sub(1) as i64, token],
        )?;
        Ok(())
    }
}
