//! Tokens with which somebody may make an account, as their SHA-256.

use rusqlite::{Row, params};

use super::TokenHash;
use crate::clock::Millis;
use crate::error::Result;
use crate::store::{Db, Tx};

/// A registration token, of which only the hash is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RegistrationToken {
    /// SHA-256 of the token.
    pub hash: TokenHash,
    /// How many accounts may be made with it; none: any number.
    pub uses_allowed: Option<i64>,
    /// How many were.
    pub completed: i64,
    /// Until when it is good; none: without end.
    pub expires_ms: Option<Millis>,
}

impl RegistrationToken {
    /// Whether an account can be made with it.
    pub fn is_valid(&self, now: Millis) -> bool {
        self.uses_allowed.is_none_or(|allowed| self.completed < allowed)
            && self.expires_ms.is_none_or(|at| at >= now)
    }
}

fn token_of(row: &Row<'_>) -> rusqlite::Result<RegistrationToken> {
    Ok(RegistrationToken {
        hash: row.get(0)?,
        uses_allowed: row.get(1)?,
        completed: row.get(2)?,
        expires_ms: row.get(3)?,
    })
}

const TOKEN: &str = "SELECT hash, uses_allowed, completed, expires_ms FROM registration_tokens";

impl Db<'_> {
    /// The token of this hash, whether it is good or not.
    pub fn registration_token(&self, hash: &TokenHash) -> Result<Option<RegistrationToken>> {
        let mut query = self.conn().prepare_cached(&format!("{TOKEN} WHERE hash = ?1"))?;
        let mut rows = query.query_map([hash], token_of)?;
        Ok(rows.next().transpose()?)
    }

    /// All tokens, good or not, in no order that says anything.
    pub fn registration_tokens(&self) -> Result<Vec<RegistrationToken>> {
        let mut query = self.conn().prepare(&format!("{TOKEN} ORDER BY hash"))?;
        Ok(query.query_map([], token_of)?.collect::<Result<_, _>>()?)
    }

    /// Whether a registration token can be used now.
    pub fn registration_token_is_valid(&self, hash: &TokenHash, now: Millis) -> Result<bool> {
        Ok(self.registration_token(hash)?.is_some_and(|token| token.is_valid(now)))
    }

    /// Whether this is the one-time token for the first account, and there is none yet.
    pub fn is_first_token(&self, hash: &TokenHash) -> Result<bool> {
        let mut query =
            self.conn().prepare_cached("SELECT 1 FROM registration_tokens WHERE hash = ?1 AND first = 1")?;
        Ok(!self.has_accounts()? && query.exists([hash])?)
    }
}

impl Tx<'_> {
    /// Keeps a registration token, in place of one of the same hash.
    pub fn put_registration_token(&mut self, token: &RegistrationToken) -> Result<()> {
        self.execute(
            "INSERT INTO registration_tokens (hash, uses_allowed, completed, expires_ms) VALUES (?1, ?2, ?3, ?4)
             ON CONFLICT DO UPDATE SET uses_allowed = excluded.uses_allowed, completed = excluded.completed,
               expires_ms = excluded.expires_ms",
            params![token.hash, token.uses_allowed, token.completed, token.expires_ms],
        )?;
        Ok(())
    }

    /// Forgets a token. Whether there was one.
    pub fn delete_registration_token(&mut self, hash: &TokenHash) -> Result<bool> {
        let mut query = self.conn().prepare_cached("DELETE FROM registration_tokens WHERE hash = ?1")?;
        Ok(query.execute([hash])? > 0)
    }

    /// The one-time token for the first account, in place of the one that was printed at an earlier start.
    pub fn replace_first_token(&mut self, hash: &TokenHash) -> Result<()> {
        self.execute("DELETE FROM registration_tokens WHERE first = 1", &[])?;
        self.execute(
            "INSERT INTO registration_tokens (hash, uses_allowed, first) VALUES (?1, 1, 1)",
            params![hash],
        )?;
        Ok(())
    }

    /// Uses the one-time token for the first account. False: it is not that, or there is an account.
    pub fn use_first_token(&mut self, hash: &TokenHash) -> Result<bool> {
        if !self.is_first_token(hash)? {
            return Ok(false);
        }
        self.execute("DELETE FROM registration_tokens WHERE hash = ?1", params![hash])?;
        Ok(true)
    }

    /// Uses a registration token once. False: it is unknown, used up or expired.
    pub fn use_registration_token(&mut self, hash: &TokenHash, now: Millis) -> Result<bool> {
        if !self.registration_token_is_valid(hash, now)? {
            return Ok(false);
        }
        self.execute(
            "UPDATE registration_tokens SET completed = completed + 1 WHERE hash = ?1",
            params![hash],
        )?;
        Ok(true)
    }
}
