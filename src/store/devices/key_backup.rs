//! Key backups: versions, and the keys in them. What changes keys changes `etag`, `count` and `bytes` of their version
//! with them.

use rusqlite::{OptionalExtension, Row, params};

use crate::error::Result;
use crate::protocol::json::ObjectText;
use crate::protocol::keys::backup::{KeyBackupData, KeyQuality};
use crate::protocol::{RoomId, UserId};
use crate::store::{Db, Tx};

/// The row id of a version of a backup.
pub type BackupKey = i64;

/// What a key counts for beside its texts, in bytes: the row and its place in the index.
const ROW_BYTES: usize = 128;

/// One version of a user's backup, without its keys.
#[derive(Debug, Clone)]
pub struct KeyBackup {
    /// Its row.
    pub key: BackupKey,
    /// Its number among the user's versions.
    pub version: i64,
    /// How the keys are encrypted.
    pub algorithm: String,
    /// What the algorithm needs to know: a JSON object.
    pub auth_data: String,
    /// How often its keys have changed.
    pub etag: i64,
    /// How many keys there are.
    pub count: i64,
}

/// What the keys of all versions of one user may come to.
#[derive(Debug, Clone, Copy)]
pub struct BackupBounds {
    /// How many there may be.
    pub sessions: i64,
    /// What they may take, in bytes.
    pub bytes: i64,
}

/// A key to be backed up.
#[derive(Debug, Clone)]
pub struct NewSession {
    /// The room that it is for.
    pub room_id: RoomId,
    /// The session that it is for.
    pub session_id: String,
    /// The key.
    pub data: KeyBackupData,
}

impl NewSession {
    /// What it counts for, in bytes.
    pub fn bytes(&self) -> usize {
        let texts = [self.room_id.as_str(), &self.session_id, self.data.session_data.get()];
        ROW_BYTES + texts.map(str::len).iter().sum::<usize>()
    }
}

/// Some of the keys of a version.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SessionScope {
    /// All of them.
    All,
    /// Those of a room.
    Room(RoomId),
    /// That of one session.
    Session(RoomId, String),
}

impl SessionScope {
    /// What a key is compared with: its room, and its session.
    fn names(&self) -> (Option<&str>, Option<&str>) {
        match self {
            Self::All => (None, None),
            Self::Room(room) => (Some(room.as_str()), None),
            Self::Session(room, session) => (Some(room.as_str()), Some(session)),
        }
    }
}

/// A key that was backed up.
#[derive(Debug, Clone)]
pub struct BackedUpSession {
    /// The room that it is for, as it was written.
    pub room_id: String,
    /// The session that it is for.
    pub session_id: String,
    /// The index of the first message that the key can decrypt.
    pub first_message_index: i64,
    /// How often the key was forwarded between devices.
    pub forwarded_count: i64,
    /// Whether the device that it is from was verified.
    pub is_verified: bool,
    /// The key itself, encrypted: a JSON object.
    pub session_data: String,
}

fn backup_of(row: &Row<'_>) -> rusqlite::Result<KeyBackup> {
    Ok(KeyBackup {
        key: row.get(0)?,
        version: row.get(1)?,
        algorithm: row.get(2)?,
        auth_data: row.get(3)?,
        etag: row.get(4)?,
        count: row.get(5)?,
    })
}

fn session_of(row: &Row<'_>) -> rusqlite::Result<BackedUpSession> {
    Ok(BackedUpSession {
        room_id: row.get(0)?,
        session_id: row.get(1)?,
        first_message_index: row.get(2)?,
        forwarded_count: row.get(3)?,
        is_verified: row.get(4)?,
        session_data: row.get(5)?,
    })
}

impl Db<'_> {
    /// A version of the user's backup, unless it was deleted.
    pub fn key_backup(&self, user: &UserId, version: i64) -> Result<Option<KeyBackup>> {
        let mut query = self.conn().prepare_cached(
            "SELECT backup, version, algorithm, auth_data, etag, count FROM key_backups
             WHERE user_id = ?1 AND version = ?2 AND deleted = 0",
        )?;
        Ok(query.query_row(params![user.as_str(), version], backup_of).optional()?)
    }

    /// The user's current version: the last one that was not deleted.
    pub fn current_key_backup(&self, user: &UserId) -> Result<Option<KeyBackup>> {
        let mut query = self.conn().prepare_cached(
            "SELECT backup, version, algorithm, auth_data, etag, count FROM key_backups
             WHERE user_id = ?1 AND deleted = 0 ORDER BY version DESC LIMIT 1",
        )?;
        Ok(query.query_row([user.as_str()], backup_of).optional()?)
    }

    /// The number of the last version that the user made, also if it was deleted; 0: there was none.
    pub fn last_key_backup_version(&self, user: &UserId) -> Result<i64> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT coalesce(max(version), 0) FROM key_backups WHERE user_id = ?1")?;
        Ok(query.query_row([user.as_str()], |row| row.get(0))?)
    }

    /// How many versions the user has that were not deleted.
    pub fn count_key_backups(&self, user: &UserId) -> Result<i64> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT count(*) FROM key_backups WHERE user_id = ?1 AND deleted = 0")?;
        Ok(query.query_row([user.as_str()], |row| row.get(0))?)
    }

    /// Whether there are versions that were deleted and may still have keys.
    pub fn has_deleted_key_backups(&self) -> Result<bool> {
        Ok(self.conn().prepare_cached("SELECT 1 FROM key_backups WHERE deleted = 1 LIMIT 1")?.exists([])?)
    }

    /// What the user's keys of all versions come to.
    fn key_backup_size(&self, user: &UserId) -> Result<BackupBounds> {
        let mut query = self.conn().prepare_cached(
            "SELECT coalesce(sum(count), 0), coalesce(sum(bytes), 0) FROM key_backups WHERE user_id = ?1",
        )?;
        let size = |row: &Row<'_>| Ok(BackupBounds { sessions: row.get(0)?, bytes: row.get(1)? });
        Ok(query.query_row([user.as_str()], size)?)
    }

    /// The key of one session.
    pub fn backed_up_session(
        &self,
        backup: BackupKey,
        room: &RoomId,
        session: &str,
    ) -> Result<Option<BackedUpSession>> {
        let mut query = self.conn().prepare_cached(
            "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
             FROM key_backup_sessions WHERE backup = ?1 AND room_id = ?2 AND session_id = ?3",
        )?;
        Ok(query.query_row(params![backup, room.as_str(), session], session_of).optional()?)
    }

    /// Hands out the keys behind one of a room and a session, in the order of these names (an empty session: from the
    /// room's first on), until `each` has enough. With `one_room` no others than those of that room.
    pub fn each_backed_up_session(
        &self,
        backup: BackupKey,
        (room, session): (&str, &str),
        one_room: bool,
        mut each: impl FnMut(BackedUpSession) -> bool,
    ) -> Result<()> {
        const COLUMNS: &str =
            "SELECT room_id, session_id, first_message_index, forwarded_count, is_verified, session_data
             FROM key_backup_sessions WHERE backup = ?1";
        let behind = if one_room {
            "room_id = ?2 AND session_id > ?3 ORDER BY session_id"
        } else {
            "(room_id, session_id) > (?2, ?3) ORDER BY room_id, session_id"
        };
        let mut query = self.conn().prepare_cached(&format!("{COLUMNS} AND {behind}"))?;
        let mut rows = query.query(params![backup, room, session])?;
        while let Some(row) = rows.next()? {
            if !each(session_of(row)?) {
                break;
            }
        }
        Ok(())
    }
}

impl Tx<'_> {
    /// A new version, which from now on is the one that is written to. Gives its number.
    pub fn add_key_backup(&mut self, user: &UserId, algorithm: &str, auth_data: &ObjectText) -> Result<i64> {
        // Those that were made before a backup of the server was restored are not made again.
        let restores = "SELECT count(*) FROM lost_positions";
        let lost: i64 = self.conn().prepare_cached(restores)?.query_row([], |row| row.get(0))?;
        let last = self.last_key_backup_version(user)?;
        let version = last.max(lost * 1_000_000) + 1;
        self.execute("DELETE FROM key_backups WHERE user_id = ?1 AND deleted = 2", params![user.as_str()])?;
        self.execute(
            "INSERT INTO key_backups (user_id, version, algorithm, auth_data) VALUES (?1, ?2, ?3, ?4)",
            params![user.as_str(), version, algorithm, auth_data.get()],
        )?;
        Ok(version)
    }

    /// Replaces what the algorithm of a version needs to know.
    pub fn set_key_backup_auth_data(&mut self, backup: BackupKey, auth_data: &ObjectText) -> Result<()> {
        self.execute(
            "UPDATE key_backups SET auth_data = ?2 WHERE backup = ?1",
            params![backup, auth_data.get()],
        )?;
        Ok(())
    }

    /// Puts keys into a version, those that are new or better than what is there. False: that would be more than the
    /// user may have, and is to be undone.
    pub fn back_up_sessions(
        &mut self,
        user: &UserId,
        backup: BackupKey,
        sessions: &[NewSession],
        bounds: BackupBounds,
    ) -> Result<bool> {
        let (mut changed, mut count, mut bytes) = (false, 0, 0);
        for session in sessions {
            let names = params![backup, session.room_id.as_str(), session.session_id];
            let there = self
                .conn()
                .prepare_cached(
                    "SELECT first_message_index, forwarded_count, is_verified, bytes FROM key_backup_sessions
                     WHERE backup = ?1 AND room_id = ?2 AND session_id = ?3",
                )?
                .query_row(names, |row| {
                    let quality = KeyQuality {
                        first_message_index: row.get(0)?,
                        forwarded_count: row.get(1)?,
                        is_verified: row.get(2)?,
                    };
                    Ok((quality, row.get::<_, i64>(3)?))
                })
                .optional()?;
            if there.is_some_and(|(quality, _)| !session.data.quality().replaces(quality)) {
                continue;
            }
            let size = i64::try_from(session.bytes()).unwrap_or(i64::MAX);
            changed = true;
            count += i64::from(there.is_none());
            bytes += size - there.map_or(0, |(_, before)| before);
            self.set_backed_up_session(backup, session, size)?;
        }
        if !changed {
            return Ok(true);
        }
        self.keys_changed(backup, count, bytes)?;
        if count <= 0 && bytes <= 0 {
            return Ok(true);
        }
        let size = self.key_backup_size(user)?;
        Ok((count <= 0 || size.sessions <= bounds.sessions) && (bytes <= 0 || size.bytes <= bounds.bytes))
    }

    fn set_backed_up_session(&mut self, backup: BackupKey, session: &NewSession, bytes: i64) -> Result<()> {
        let data = &session.data;
        self.execute(
            "INSERT INTO key_backup_sessions (backup, room_id, session_id, first_message_index,
               forwarded_count, is_verified, bytes, session_data) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)
             ON CONFLICT DO UPDATE SET first_message_index = excluded.first_message_index,
               forwarded_count = excluded.forwarded_count, is_verified = excluded.is_verified,
               bytes = excluded.bytes, session_data = excluded.session_data",
            params![
                backup,
                session.room_id.as_str(),
                session.session_id,
                data.first_message_index,
                data.forwarded_count,
                data.is_verified,
                bytes,
                data.session_data.get(),
            ],
        )?;
        Ok(())
    }

    /// The keys of a version have changed, by so many and so many bytes.
    fn keys_changed(&mut self, backup: BackupKey, count: i64, bytes: i64) -> Result<()> {
        self.execute(
            "UPDATE key_backups SET etag = etag + 1, count = count + ?2, bytes = bytes + ?3 WHERE backup = ?1",
            params![backup, count, bytes],
        )?;
        Ok(())
    }

    /// Takes keys out of a version, so many at most. Gives how many there were.
    pub fn delete_backed_up_sessions(
        &mut self,
        backup: BackupKey,
        scope: &SessionScope,
        most: usize,
    ) -> Result<usize> {
        let (room, session) = scope.names();
        let which = match scope {
            SessionScope::All => "",
            SessionScope::Room(_) => "AND room_id = ?3",
            SessionScope::Session(..) => "AND room_id = ?3 AND session_id = ?4",
        };
        let sql = format!(
            "DELETE FROM key_backup_sessions WHERE rowid IN
               (SELECT rowid FROM key_backup_sessions WHERE backup = ?1 {which} LIMIT ?2) RETURNING bytes"
        );
        let most = i64::try_from(most).unwrap_or(i64::MAX);
        let mut query = self.conn().prepare_cached(&sql)?;
        let mut rows = match scope {
            SessionScope::All => query.query(params![backup, most])?,
            SessionScope::Room(_) => query.query(params![backup, most, room])?,
            SessionScope::Session(..) => query.query(params![backup, most, room, session])?,
        };
        let (mut count, mut bytes) = (0, 0);
        while let Some(row) = rows.next()? {
            count += 1;
            bytes += row.get::<_, i64>(0)?;
        }
        drop(rows);
        drop(query);
        if count > 0 {
            self.keys_changed(backup, -count, -bytes)?;
        }
        Ok(usize::try_from(count).unwrap_or_default())
    }

    /// From now on there is no such version. The timer sees to its keys, see [`Tx::empty_deleted_key_backups`].
    pub fn delete_key_backup(&mut self, backup: BackupKey) -> Result<()> {
        self.wake_timer();
        self.execute(
            "UPDATE key_backups SET deleted = 1, auth_data = '{}' WHERE backup = ?1",
            params![backup],
        )?;
        Ok(())
    }

    /// The same for all of a user's versions.
    pub fn delete_key_backups(&mut self, user: &UserId) -> Result<()> {
        self.wake_timer();
        self.execute(
            "UPDATE key_backups SET deleted = 1, auth_data = '{}' WHERE user_id = ?1 AND deleted = 0",
            params![user.as_str()],
        )?;
        Ok(())
    }

    /// Takes out keys of versions that were deleted, so many at most. Whether there may be more.
    pub fn empty_deleted_key_backups(&mut self, most: usize) -> Result<bool> {
        let next: Option<BackupKey> = self
            .conn()
            .prepare_cached("SELECT backup FROM key_backups WHERE deleted = 1 ORDER BY backup LIMIT 1")?
            .query_row([], |row| row.get(0))
            .optional()?;
        let Some(backup) = next else { return Ok(false) };
        if self.delete_backed_up_sessions(backup, &SessionScope::All, most)? < most {
            self.execute("UPDATE key_backups SET deleted = 2 WHERE backup = ?1", params![backup])?;
            // Who made a later one is never given this version again; who is gone makes none.
            self.execute(
                "DELETE FROM key_backups WHERE backup = ?1 AND (
                 EXISTS (SELECT 1 FROM key_backups AS later WHERE later.user_id = key_backups.user_id
                   AND later.version > key_backups.version)
                 OR EXISTS (SELECT 1 FROM users WHERE users.user_id = key_backups.user_id
                   AND users.deactivated = 1))",
                params![backup],
            )?;
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::ServerName;
    use crate::store::{Location, Options, Store};

    fn session(name: &str, first_message_index: i64, data: &str) -> NewSession {
        let session_data = format!("{{\"a\":\"{data}\"}}");
        let session_data = ObjectText::try_from(session_data.as_bytes()).expect("an object");
        let data =
            KeyBackupData { first_message_index, forwarded_count: 0, is_verified: false, session_data };
        let room_id = RoomId::parse("!room:example.org").expect("a room");
        NewSession { room_id, session_id: name.to_owned(), data }
    }

    #[test]
    fn a_backup_that_is_full_takes_better_keys_but_no_more_of_them() {
        let us = ServerName::parse("us.example").expect("a name");
        let store =
            Store::open(Location::Memory, &us, Box::new(|_| {}), &Options::default()).expect("a store");
        let user = UserId::parse("@alice:us.example").expect("a user");
        let (alice, auth) = (user.clone(), ObjectText::try_from(b"{}".as_slice()).expect("an object"));
        let [former, current] = store
            .write(move |tx| {
                tx.create_account(&alice, None, false, 0)?;
                let mut keys = [0, 0];
                for key in &mut keys {
                    let version = tx.add_key_backup(&alice, "m.test", &auth)?;
                    *key = tx.key_backup(&alice, version)?.expect("it was just made").key;
                }
                Ok(keys)
            })
            .expect("two versions");
        let one = i64::try_from(session("s1", 0, "abc").bytes()).expect("a size");
        let put = |backup, sessions: Vec<NewSession>, bounds| {
            let user = user.clone();
            store.write(move |tx| tx.back_up_sessions(&user, backup, &sessions, bounds)).expect("no error")
        };
        let enough = BackupBounds { sessions: 2, bytes: 2 * one };
        assert!(put(former, vec![session("s1", 5, "abc")], enough));
        assert!(put(current, vec![session("s1", 5, "abc")], enough), "the keys of all versions count");
        // The same again, a better one of the same size or smaller; not one that is larger, or a new one.
        assert!(put(current, vec![session("s1", 5, "abc")], enough));
        assert!(put(current, vec![session("s1", 4, "abd")], enough));
        assert!(put(current, vec![session("s1", 3, "ab")], enough));
        for (sessions, bounds) in [
            (vec![session("s1", 2, "abcdef")], enough),
            (vec![session("s2", 0, "abc")], BackupBounds { sessions: 2, bytes: 9 * one }),
            (vec![session("s2", 0, "abc")], BackupBounds { sessions: 9, bytes: 2 * one }),
        ] {
            let user = user.clone();
            let undone = store.write(move |tx| {
                assert!(!tx.back_up_sessions(&user, current, &sessions, bounds)?);
                Err::<(), _>(crate::error::Error::forbidden("undone"))
            });
            assert!(undone.is_err());
        }
        let plans = store.read(|db| {
            let size = db.key_backup_size(&user)?;
            assert_eq!((size.sessions, size.bytes), (2, 2 * one - 1));
            let plan = |sql: &str| -> Result<String> {
                let mut query = db.conn().prepare(&format!("EXPLAIN QUERY PLAN {sql}"))?;
                Ok(query.query_row([], |row| row.get(3))?)
            };
            Ok([
                plan("SELECT 1 FROM key_backup_sessions WHERE backup = 1 AND (room_id, session_id) > ('a', 'b') ORDER BY room_id, session_id")?,
                plan("SELECT 1 FROM key_backup_sessions WHERE backup = 1 AND room_id = 'a' AND session_id > 'b' ORDER BY session_id")?,
            ])
        });
        for plan in plans.expect("plans") {
            assert!(
                plan.contains("(backup=? AND ") && plan.contains('>'),
                "a page is sought, not counted out: {plan}"
            );
        }
    }
}
