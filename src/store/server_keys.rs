//! Signing keys: our own with their secrets, and the public ones of other servers.

use rusqlite::{OptionalExtension, named_params};

use super::{Db, Tx};
use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::ServerName;

/// One of our own keys.
pub struct OwnKey {
    /// `ed25519:version`.
    pub key_id: String,
    /// The secret.
    pub seed: [u8; 32],
    /// When it stopped to sign; none for the one in use.
    pub expired_ms: Option<Millis>,
}

/// A key of another server, as it is kept.
#[derive(Debug, Clone)]
pub struct StoredKey {
    /// `ed25519:version`.
    pub key_id: String,
    /// Unpadded base64.
    pub public_key: String,
    /// Signatures made later do not count.
    pub valid_until_ms: Millis,
    /// Whether it may only verify old events.
    pub retired: bool,
}

/// A signed statement of keys, as a notary passes it on.
pub struct StoredStatement {
    /// The key that the statement was looked up by.
    pub key_id: String,
    /// Its validity.
    pub valid_until_ms: Millis,
    /// Whether it is an old key, whose validity no newer statement extends.
    pub retired: bool,
    /// When the statement was fetched.
    pub fetched_ms: Millis,
    /// The JSON as its server signed it.
    pub statement: Vec<u8>,
}

impl Db<'_> {
    /// Our own keys, oldest first.
    pub fn own_keys(&self) -> Result<Vec<OwnKey>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT key_id, seed, expired_ms FROM signing_keys ORDER BY made_ms, key_id")?;
        let rows = statement.query_map([], |row| {
            Ok(OwnKey { key_id: row.get(0)?, seed: row.get(1)?, expired_ms: row.get(2)? })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The known keys of a server.
    pub fn server_keys(&self, server: &ServerName) -> Result<Vec<StoredKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT key_id, public_key, valid_until_ms, retired FROM server_keys WHERE server = ?1",
        )?;
        let rows = statement.query_map([server.as_str()], |row| {
            Ok(StoredKey {
                key_id: row.get(0)?,
                public_key: row.get(1)?,
                valid_until_ms: row.get(2)?,
                retired: row.get(3)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }

    /// The statements that a server's known keys come from.
    pub fn key_statements(&self, server: &ServerName) -> Result<Vec<StoredStatement>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT key_id, valid_until_ms, retired, fetched_ms, statement FROM server_keys WHERE server = ?1",
        )?;
        let rows = statement.query_map([server.as_str()], |row| {
            Ok(StoredStatement {
                key_id: row.get(0)?,
                valid_until_ms: row.get(1)?,
                retired: row.get(2)?,
                fetched_ms: row.get(3)?,
                statement: row.get(4)?,
            })
        })?;
        Ok(rows.collect::<rusqlite::Result<_>>()?)
    }
}

impl Tx<'_> {
    /// Retires the key in use, if there is one, and puts another in its place.
    pub fn replace_own_key(&mut self, key_id: &str, seed: &[u8; 32], now: Millis) -> Result<()> {
        self.conn()
            .prepare_cached("UPDATE signing_keys SET expired_ms = ?1 WHERE expired_ms IS NULL")?
            .execute([now])?;
        self.conn()
            .prepare_cached("INSERT INTO signing_keys (key_id, seed, made_ms) VALUES (?1, ?2, ?3)")?
            .execute((key_id, seed, now))?;
        Ok(())
    }

    /// Remembers the keys of a statement. What a server says itself (`direct`) replaces whatever was known of the same
    /// key; what a notary passes on does so only if it is valid for longer, since it may be old.
    pub fn save_server_keys(
        &mut self,
        server: &ServerName,
        keys: &[StoredKey],
        statement: &[u8],
        fetched_ms: Millis,
        direct: bool,
    ) -> Result<()> {
        let mut save = self.conn().prepare_cached(
            "INSERT INTO server_keys (server, key_id, public_key, valid_until_ms, retired, fetched_ms, statement)
             VALUES (:server, :key_id, :public_key, :valid_until, :retired, :fetched, :statement)
             ON CONFLICT (server, key_id) DO UPDATE SET public_key = excluded.public_key,
               valid_until_ms = excluded.valid_until_ms, retired = excluded.retired, fetched_ms = excluded.fetched_ms,
               statement = excluded.statement
             WHERE :direct OR (excluded.valid_until_ms > server_keys.valid_until_ms
               AND excluded.public_key = server_keys.public_key AND NOT server_keys.retired)",
        )?;
        for key in keys {
            save.execute(named_params! {
                ":server": server.as_str(), ":key_id": key.key_id, ":public_key": key.public_key,
                ":valid_until": key.valid_until_ms, ":retired": key.retired, ":fetched": fetched_ms,
                ":statement": statement, ":direct": direct,
            })?;
        }
        Ok(())
    }
}

impl Db<'_> {
    /// When the newest statement of a server's keys was fetched.
    pub fn keys_fetched_ms(&self, server: &ServerName) -> Result<Option<Millis>> {
        let mut statement =
            self.conn().prepare_cached("SELECT max(fetched_ms) FROM server_keys WHERE server = ?1")?;
        Ok(statement.query_row([server.as_str()], |row| row.get(0)).optional()?.flatten())
    }
}
