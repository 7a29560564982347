//! Cross-signing keys of our users and of those with whom they share rooms, and the signatures that our users made.

use rusqlite::{OptionalExtension, Row, params};

use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::keys::cross_signing::{CrossSigningKey, KeyUsage};
use crate::protocol::keys::device::{ED25519, KeySignature, SignedObject};
use crate::store::{Db, Tx};

/// A user's cross-signing keys, as far as they are known.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct CrossSigningKeys {
    /// The user's identity.
    pub master: Option<CrossSigningKey>,
    /// What the user's devices are signed with.
    pub self_signing: Option<CrossSigningKey>,
    /// What others' master keys are signed with: only of our users.
    pub user_signing: Option<CrossSigningKey>,
}

impl CrossSigningKeys {
    /// The key of a use.
    pub fn of(&self, usage: KeyUsage) -> Option<&CrossSigningKey> {
        match usage {
            KeyUsage::Master => self.master.as_ref(),
            KeyUsage::SelfSigning => self.self_signing.as_ref(),
            KeyUsage::UserSigning => self.user_signing.as_ref(),
        }
    }

    /// The place of the key of a use.
    pub fn of_mut(&mut self, usage: KeyUsage) -> &mut Option<CrossSigningKey> {
        match usage {
            KeyUsage::Master => &mut self.master,
            KeyUsage::SelfSigning => &mut self.self_signing,
            KeyUsage::UserSigning => &mut self.user_signing,
        }
    }
}

/// A signature, and of which of somebody's keys it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignatureOfKey {
    /// A device id, or the public key of a master key.
    pub target: String,
    /// The signature.
    pub signature: KeySignature,
}

fn key_of(row: &Row<'_>) -> rusqlite::Result<CrossSigningKey> {
    let signed = SignedObject { object: row.get(1)?, signatures: row.get(2)? };
    Ok(CrossSigningKey { public_key: row.get(0)?, signed })
}

impl Db<'_> {
    /// The cross-signing keys of a user.
    pub fn cross_signing_keys(&self, user: &UserId) -> Result<CrossSigningKeys> {
        let mut keys = CrossSigningKeys::default();
        let mut statement = self.conn().prepare_cached(
            "SELECT public_key, key, signatures, usage FROM cross_signing_keys WHERE user_id = ?1",
        )?;
        let mut rows = statement.query([user.as_str()])?;
        while let Some(row) = rows.next()? {
            let name: String = row.get(3)?;
            if let Some(usage) = KeyUsage::ALL.into_iter().find(|usage| usage.as_str() == name) {
                *keys.of_mut(usage) = Some(key_of(row)?);
            }
        }
        Ok(keys)
    }

    /// The key of one use.
    pub fn cross_signing_key(&self, user: &UserId, usage: KeyUsage) -> Result<Option<CrossSigningKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT public_key, key, signatures FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2",
        )?;
        Ok(statement.query_row([user.as_str(), usage.as_str()], key_of).optional()?)
    }

    /// Whether one of the user's cross-signing keys has this public key: no device may have it for its id, since "servers
    /// MUST not allow devices to have the same IDs as cross-signing keys".
    pub fn is_cross_signing_key(&self, user: &UserId, public_key: &str) -> Result<bool> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT 1 FROM cross_signing_keys WHERE user_id = ?1 AND public_key = ?2")?;
        Ok(statement.exists([user.as_str(), public_key])?)
    }

    /// The signatures of a user's devices and master key that our users uploaded, as far as `asker` may see them: the
    /// user's own, and those that the asker made. In the order of what is signed.
    pub fn signatures_of_keys(&self, user: &UserId, asker: Option<&UserId>) -> Result<Vec<SignatureOfKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT target, signer, key_id, signature FROM key_signatures
             WHERE user_id = ?1 AND (signer = ?1 OR signer = ?2) ORDER BY target, signer, key_id",
        )?;
        let mut rows = statement.query(params![user.as_str(), asker.map(UserId::as_str)])?;
        let mut signatures = Vec::new();
        while let Some(row) = rows.next()? {
            let signer = UserId::parse(&row.get::<_, String>(1)?)?;
            let signature = KeySignature { signer, key_id: row.get(2)?, signature: row.get(3)? };
            signatures.push(SignatureOfKey { target: row.get(0)?, signature });
        }
        Ok(signatures)
    }

    /// How many signatures one of our users has uploaded.
    pub fn count_signatures_by(&self, signer: &UserId) -> Result<i64> {
        let mut statement =
            self.conn().prepare_cached("SELECT count(*) FROM key_signatures WHERE signer = ?1")?;
        Ok(statement.query_row([signer.as_str()], |row| row.get(0))?)
    }

    /// Whose keys one of our users signed at positions in `(after, upto]`, and the user themselves if their cross-signing
    /// keys changed then: what their other devices have to look at anew, whoever else is told.
    pub fn own_signing_news(&self, user: &UserId, after: i64, upto: i64) -> Result<Vec<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM key_signatures WHERE signer = ?1 AND stream > ?2 AND stream <= ?3
             UNION SELECT user_id FROM cross_signing_keys WHERE user_id = ?1 AND stream > ?2 AND stream <= ?3",
        )?;
        let rows = statement.query_map(params![user.as_str(), after, upto], |row| row.get::<_, String>(0))?;
        let mut users = Vec::new();
        for user in rows {
            users.extend(UserId::parse(&user?).ok());
        }
        Ok(users)
    }
}

impl Tx<'_> {
    /// Keeps a cross-signing key of a user. What rested on another one of the same use goes: the signatures that it made,
    /// and if it was the master key also those of it, and the user's other keys, which it had signed.
    pub fn set_cross_signing_key(
        &mut self,
        user: &UserId,
        usage: KeyUsage,
        key: &CrossSigningKey,
    ) -> Result<()> {
        if let Some(before) = self.cross_signing_key(user, usage)?
            && before.public_key != key.public_key
        {
            self.forget_signatures_by(user, &before.key_id())?;
            if usage == KeyUsage::Master {
                self.forget_signatures_of(user, &before.public_key)?;
                for dependent in [KeyUsage::SelfSigning, KeyUsage::UserSigning] {
                    self.forget_cross_signing_key(user, dependent)?;
                }
            }
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO cross_signing_keys (user_id, usage, public_key, key, signatures, stream)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![
                user.as_str(),
                usage.as_str(),
                key.public_key,
                key.signed.object,
                key.signed.signatures,
                stream,
            ],
        )?;
        Ok(())
    }

    /// Forgets a key of a user, and the signatures that it made.
    pub fn forget_cross_signing_key(&mut self, user: &UserId, usage: KeyUsage) -> Result<()> {
        if let Some(before) = self.cross_signing_key(user, usage)? {
            self.forget_signatures_by(user, &before.key_id())?;
            self.execute(
                "DELETE FROM cross_signing_keys WHERE user_id = ?1 AND usage = ?2",
                params![user.as_str(), usage.as_str()],
            )?;
        }
        Ok(())
    }

    /// Forgets the cross-signing keys of another server's user: nobody here shares a room with them any more. What ours
    /// have signed of theirs stays, since they may meet again.
    pub fn forget_remote_cross_signing_keys(&mut self, user: &UserId) -> Result<()> {
        self.execute("DELETE FROM cross_signing_keys WHERE user_id = ?1", params![user.as_str()])?;
        Ok(())
    }

    /// Forgets all keys of one of our users and all signatures that they made or that were made of theirs.
    pub fn forget_own_cross_signing(&mut self, user: &UserId) -> Result<()> {
        for sql in [
            "DELETE FROM cross_signing_keys WHERE user_id = ?1",
            "DELETE FROM key_signatures WHERE user_id = ?1",
            "DELETE FROM key_signatures WHERE signer = ?1",
        ] {
            self.execute(sql, params![user.as_str()])?;
        }
        Ok(())
    }

    /// Keeps a signature that one of our users made of somebody's device or master key, and that was verified. Whether it
    /// is new.
    pub fn add_key_signature(&mut self, user: &UserId, signed: &SignatureOfKey) -> Result<bool> {
        let SignatureOfKey { target, signature: KeySignature { signer, key_id, signature } } = signed;
        let mut same = self.conn().prepare_cached(
            "SELECT 1 FROM key_signatures
             WHERE user_id = ?1 AND target = ?2 AND signer = ?3 AND key_id = ?4 AND signature = ?5",
        )?;
        if same.exists([user.as_str(), target, signer.as_str(), key_id, signature])? {
            return Ok(false);
        }
        let stream = self.next_stream();
        self.execute(
            "INSERT OR REPLACE INTO key_signatures (user_id, target, signer, key_id, signature, stream)
             VALUES (?1, ?2, ?3, ?4, ?5, ?6)",
            params![user.as_str(), target, signer.as_str(), key_id, signature, stream],
        )?;
        Ok(true)
    }

    /// Forgets the signatures of one device or master key.
    pub fn forget_signatures_of(&mut self, user: &UserId, target: &str) -> Result<()> {
        self.execute(
            "DELETE FROM key_signatures WHERE user_id = ?1 AND target = ?2",
            params![user.as_str(), target],
        )?;
        Ok(())
    }

    /// Forgets the signatures that one key of a user made.
    fn forget_signatures_by(&mut self, signer: &UserId, key_id: &str) -> Result<()> {
        self.execute(
            "DELETE FROM key_signatures WHERE signer = ?1 AND key_id = ?2",
            params![signer.as_str(), key_id],
        )?;
        Ok(())
    }

    /// Forgets the signatures of one of our users' devices and those that it made: it is gone, or has other keys now.
    pub fn forget_signatures_of_device(&mut self, user: &UserId, device: &str) -> Result<()> {
        self.forget_signatures_of(user, device)?;
        self.forget_signatures_by(user, &format!("{ED25519}:{device}"))
    }
}
