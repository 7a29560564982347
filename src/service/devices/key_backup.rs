//! Key backups (client-server API, "Server-side key backups"): room keys that users' clients keep here, encrypted so that
//! nobody here can read them. How they are read back in bulk: `key_restore`.
//!
//! Only the current version is written to: the last one that the user made and has not deleted. Clients that delete all that
//! there is delete the current one until there is none. Contents and `etag` change together. What is much is written and
//! deleted in portions, each of which is whole by itself; an upload that was cut short is simply sent again, since a key that
//! is there changes nothing.

use serde::Serialize;

use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::ObjectText;
use crate::protocol::{RoomId, UserId};
use crate::service::devices::{Devices, check_active};
use crate::store::Db;
use crate::store::devices::key_backup::{BackedUpSession, BackupBounds, KeyBackup, NewSession, SessionScope};

/// Longest name of an algorithm and of a session, in bytes.
const NAME_BYTES_MAX: usize = 255;
/// The largest `auth_data`, and the largest `session_data` of a key, in bytes: as much as an event may have. A key has
/// about 1000.
const DATA_BYTES_MAX: usize = 65_536;
/// Versions of one user that were not deleted.
const VERSIONS_MAX: i64 = 100;
/// What the keys of all of a user's versions may come to: those of many years.
const BOUNDS: BackupBounds = BackupBounds { sessions: 1_000_000, bytes: 1 << 30 };
/// Keys that are written or deleted in one commit, and their bytes: so many hold up nobody.
const SESSIONS_AT_ONCE_MAX: usize = 250;
const BYTES_AT_ONCE_MAX: usize = 2 << 20;
/// How often the timer does so, each with a commit of its own, before it looks at what else is due.
const DELETIONS_AT_ONCE: usize = 8;

/// What a backup is made from.
#[derive(Debug)]
pub struct NewKeyBackup {
    /// How the keys are encrypted.
    pub algorithm: String,
    /// What the algorithm needs to know.
    pub auth_data: ObjectText,
}

/// What a client is told of a version after each change of its keys.
#[derive(Debug, Clone, Serialize, PartialEq, Eq)]
pub struct KeyBackupState {
    /// Another one after each change.
    pub etag: String,
    /// How many keys there are.
    pub count: i64,
}

impl KeyBackupState {
    /// What is told of this version.
    pub fn of(backup: &KeyBackup) -> Self {
        Self { etag: backup.etag.to_string(), count: backup.count }
    }
}

impl Devices<'_> {
    /// A new version of the user's backup, which from now on is the one that is written to; its name. Errors: 400
    /// `M_INVALID_PARAM`, 413 `M_TOO_LARGE`, 403 `M_RESOURCE_LIMIT_EXCEEDED` for who has very many.
    pub fn create_key_backup(&self, user: &UserId, new: NewKeyBackup) -> Result<String> {
        if new.algorithm.is_empty() || new.algorithm.len() > NAME_BYTES_MAX {
            return Err(Error::invalid_param("The algorithm must have between 1 and 255 bytes"));
        }
        check_size(&new.auth_data)?;
        let user = user.clone();
        let version = self.store.write(move |tx| {
            check_active(tx, &user)?;
            if tx.count_key_backups(&user)? >= VERSIONS_MAX {
                return Err(full("You have too many versions of your key backup: delete old ones"));
            }
            tx.add_key_backup(&user, &new.algorithm, &new.auth_data)
        })?;
        Ok(version.to_string())
    }

    /// A version of the user's backup; none is named: the current one. Errors: 404 `M_NOT_FOUND`.
    pub fn key_backup(&self, user: &UserId, version: Option<&str>) -> Result<KeyBackup> {
        self.store.read(|db| match version {
            Some(version) => existing(db, user, version),
            None => db.current_key_backup(user)?.ok_or_else(|| Error::not_found("No current backup version")),
        })
    }

    /// Replaces a version's `auth_data` in place. Errors: 400 `M_INVALID_PARAM` for another algorithm, 404 `M_NOT_FOUND`,
    /// 413 `M_TOO_LARGE`.
    pub fn update_key_backup(&self, user: &UserId, version: &str, new: NewKeyBackup) -> Result<()> {
        check_size(&new.auth_data)?;
        let (user, version) = (user.clone(), version.to_owned());
        self.store.write(move |tx| {
            let backup = existing(tx, &user, &version)?;
            if backup.algorithm != new.algorithm {
                return Err(Error::invalid_param("Algorithm does not match"));
            }
            tx.set_key_backup_auth_data(backup.key, &new.auth_data)
        })
    }

    /// Deletes a version, and its keys by and by; of those that are left the last one is current then. Deleting it again is no
    /// error. Errors: 404 `M_NOT_FOUND` if there never was such a version.
    pub fn delete_key_backup(&self, user: &UserId, version: &str) -> Result<()> {
        let number = parse_version(version).ok_or_else(unknown)?;
        let user = user.clone();
        self.store.write(move |tx| match tx.key_backup(&user, number)? {
            Some(backup) => tx.delete_key_backup(backup.key),
            None if number <= tx.last_key_backup_version(&user)? => Ok(()),
            None => Err(unknown()),
        })
    }

    /// Deletes some of the keys of versions that were deleted, for the timer. Whether there are more of them.
    pub(in crate::service) fn empty_deleted_key_backups(&self) -> Result<bool> {
        if !self.store.read(|db| db.has_deleted_key_backups())? {
            return Ok(false);
        }
        for _ in 0..DELETIONS_AT_ONCE {
            if !self.store.write(|tx| tx.empty_deleted_key_backups(SESSIONS_AT_ONCE_MAX))? {
                return Ok(false);
            }
        }
        Ok(true)
    }

    /// Puts keys into the current version, those that are new or better than what is there (see
    /// [`crate::protocol::keys::backup::KeyQuality::replaces`]). Errors: 403 `M_WRONG_ROOM_KEYS_VERSION` with
    /// `current_version` if the version is another one, 404 `M_NOT_FOUND` if there is no such or no current one, 400
    /// `M_INVALID_PARAM`, 413 `M_TOO_LARGE`, 403 `M_RESOURCE_LIMIT_EXCEEDED` if there would be too many.
    pub fn back_up_sessions(
        &self,
        user: &UserId,
        version: &str,
        sessions: Vec<NewSession>,
    ) -> Result<KeyBackupState> {
        for session in &sessions {
            if session.session_id.is_empty() || session.session_id.len() > NAME_BYTES_MAX {
                return Err(Error::invalid_param("The id of a session has between 1 and 255 bytes"));
            }
            check_size(&session.data.session_data)?;
        }
        let mut backup = self.store.read(|db| written_to(db, user, version))?;
        for portion in portions(sessions) {
            let (user, version) = (user.clone(), version.to_owned());
            backup = self.store.write(move |tx| {
                let backup = written_to(tx, &user, &version)?;
                if !tx.back_up_sessions(&user, backup.key, &portion, BOUNDS)? {
                    return Err(full("Your key backup has as many keys as it may have"));
                }
                written_to(tx, &user, &version)
            })?;
        }
        Ok(KeyBackupState::of(&backup))
    }

    /// The key of one session. Errors: 404 `M_NOT_FOUND` if there is none, or no such version.
    pub fn backed_up_session(
        &self,
        user: &UserId,
        version: &str,
        room: &RoomId,
        session: &str,
    ) -> Result<BackedUpSession> {
        self.store.read(|db| {
            let backup = existing(db, user, version)?;
            let key = db.backed_up_session(backup.key, room, session)?;
            key.ok_or_else(|| Error::not_found("Key not found."))
        })
    }

    /// Takes keys out of a version, current or not. Errors: 404 `M_NOT_FOUND` if there is no such version.
    pub fn delete_backed_up_sessions(
        &self,
        user: &UserId,
        version: &str,
        scope: &SessionScope,
    ) -> Result<KeyBackupState> {
        loop {
            let (user, version, scope) = (user.clone(), version.to_owned(), scope.clone());
            let (deleted, backup) = self.store.write(move |tx| {
                let backup = existing(tx, &user, &version)?;
                let deleted = tx.delete_backed_up_sessions(backup.key, &scope, SESSIONS_AT_ONCE_MAX)?;
                Ok((deleted, existing(tx, &user, &version)?))
            })?;
            if deleted < SESSIONS_AT_ONCE_MAX {
                return Ok(KeyBackupState::of(&backup));
            }
        }
    }
}

fn unknown() -> Error {
    Error::not_found("Unknown backup version")
}

fn full(message: &'static str) -> Error {
    Error::new(ErrCode::ResourceLimitExceeded, message)
}

fn check_size(data: &ObjectText) -> Result<()> {
    if data.get().len() <= DATA_BYTES_MAX {
        return Ok(());
    }
    Err(Error::new(ErrCode::TooLarge, "The data of a key backup has at most 65536 bytes"))
}

/// The number of a version, in the one way in which it is given out.
fn parse_version(version: &str) -> Option<i64> {
    version.parse().ok().filter(|number: &i64| *number > 0 && number.to_string() == version)
}

/// A version that was not deleted. Errors: 404 `M_NOT_FOUND`.
pub(super) fn existing(db: &Db<'_>, user: &UserId, version: &str) -> Result<KeyBackup> {
    let number = parse_version(version).ok_or_else(unknown)?;
    db.key_backup(user, number)?.ok_or_else(unknown)
}

/// The version that is written to, if it is this one. Errors: 403 `M_WRONG_ROOM_KEYS_VERSION` for another one that there is
/// or was, 404 `M_NOT_FOUND` for what is none, or if none is current.
fn written_to(db: &Db<'_>, user: &UserId, version: &str) -> Result<KeyBackup> {
    let number = parse_version(version).ok_or_else(unknown)?;
    let current = db.current_key_backup(user)?.ok_or_else(unknown)?;
    if current.version == number {
        return Ok(current);
    }
    if number > db.last_key_backup_version(user)? {
        return Err(unknown());
    }
    let wrong = Error::new(ErrCode::WrongRoomKeysVersion, "Wrong backup version.");
    Err(wrong.with_field("current_version", current.version.to_string()))
}

/// Keys that are written together: as many as are little, in their order.
fn portions(sessions: Vec<NewSession>) -> Vec<Vec<NewSession>> {
    let mut portions: Vec<Vec<NewSession>> = Vec::new();
    let mut bytes = 0;
    for session in sessions {
        let own = session.bytes();
        match portions.last_mut() {
            Some(last) if last.len() < SESSIONS_AT_ONCE_MAX && bytes + own <= BYTES_AT_ONCE_MAX => {
                bytes += own;
                last.push(session);
            }
            _ => {
                bytes = own;
                portions.push(vec![session]);
            }
        }
    }
    portions
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_version_is_written_in_one_way() {
        assert_eq!(parse_version("1"), Some(1));
        assert_eq!(parse_version("9223372036854775807"), Some(i64::MAX));
        for wrong in ["", "0", "-1", "+1", "01", " 1", "1.0", "1e3", "9223372036854775808", "one", "١"] {
            assert_eq!(parse_version(wrong), None, "{wrong:?}");
        }
    }
}
