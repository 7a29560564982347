//! A database that comes from a backup: others know newer states of what it says than it does itself.
//!
//! What is given out once may have been given out since: it is dropped, or counted as given. Positions go on far behind all
//! that may ever have been given out, so that no token, transaction or update of a device list that others know is made a
//! second time. What others tell us only when it changes is asked for anew. What they take twice without harm is sent again:
//! events, and messages to devices, which have ids.

use std::path::Path;

use rusqlite::{Connection, OpenFlags, OptionalExtension, params};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::store::devices::keys::ISSUED_MAX;
use crate::store::engine::folder::FILE;
use crate::store::media::BlobHash;
use crate::store::{Db, Store, Tx};

/// Where the clock is wrong, positions go on so far behind the last one. Of 2^53 that JSON can have, most are left.
const POSITIONS_LEAPT_OVER: i64 = 1 << 40;
/// No clock that is right leads to such a position before the year 2112.
const POSITION_BY_CLOCK_MAX: i64 = 1 << 52;

/// The positions that are known to be lost.
pub(in crate::store) fn lost_positions(connection: &Connection) -> rusqlite::Result<Vec<(i64, i64)>> {
    let mut query = connection.prepare("SELECT after, upto FROM lost_positions")?;
    query.query_map([], |row| Ok((row.get(0)?, row.get(1)?)))?.collect()
}

impl Store {
    /// The last position in the database of this folder, which nobody has open, and whether all of the database can be read.
    /// Errors: a sentence about what cannot.
    pub fn examine(folder: &Path) -> Result<std::result::Result<i64, String>> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY;
        let connection = Connection::open_with_flags(folder.join(FILE), flags)?;
        let found = connection
            .query_row("PRAGMA quick_check(1)", [], |row| row.get::<_, String>(0))
            .and_then(|found| match found.as_str() {
                "ok" => connection.query_row("SELECT stream FROM server", [], |row| row.get(0)).map(Ok),
                _ => Ok(Err(found)),
            });
        Ok(found.unwrap_or_else(|e| Err(e.to_string())))
    }
}

impl Db<'_> {
    /// Local users who have devices, each with one of them, in their order, from behind this user on.
    pub fn users_with_devices(&self, after: &str, most: usize) -> Result<Vec<(UserId, String)>> {
        let mut query = self.conn().prepare_cached(
            "SELECT user_id, max(device_id) FROM devices WHERE user_id > ?1 GROUP BY user_id ORDER BY user_id LIMIT ?2",
        )?;
        let rows = query
            .query_map(params![after, most as i64], |row| Ok((row.get::<_, String>(0)?, row.get(1)?)))?;
        rows.map(|row| row.map_err(Into::into).and_then(|(user, device)| Ok((UserId::parse(&user)?, device))))
            .collect()
    }

    /// The files of media that are known, in their order, from behind this one on.
    pub fn blobs_after(&self, after: Option<BlobHash>, most: usize) -> Result<Vec<BlobHash>> {
        blobs_after(self.conn(), after, most)
    }
}

/// The files of media that a database knows, in their order, from behind this one on.
pub(in crate::store) fn blobs_after(
    connection: &Connection,
    after: Option<BlobHash>,
    most: usize,
) -> Result<Vec<BlobHash>> {
    let mut query = connection.prepare_cached(
        "SELECT hash FROM media_blobs WHERE hash > ?1 AND (uses > 0 OR quarantined = 1) ORDER BY hash LIMIT ?2",
    )?;
    let after = after.map_or_else(Vec::new, |hash| hash.0.to_vec());
    let rows = query.query_map(params![after, most as i64], |row| row.get(0))?;
    Ok(rows.collect::<rusqlite::Result<_>>()?)
}

impl Tx<'_> {
    /// Makes of a database as it was another that can go on. `last`: the last position in it before it was opened; `begun`: when
    /// the backup was, which a clock that shows less now is behind. Once for each restore; what there is to tell others of
    /// devices is for the caller.
    pub fn settle_restored(&mut self, last: i64, begun: Millis, now: Millis) -> Result<()> {
        let by_the_clock = now.max(begun).saturating_mul(1000);
        self.stream = if now >= begun && (self.stream + 1..POSITION_BY_CLOCK_MAX).contains(&by_the_clock) {
            by_the_clock
        } else {
            // Restored again under the same clock, it goes on elsewhere.
            let mut random = [0; 4];
            getrandom::fill(&mut random).map_err(|e| Error::internal(e.to_string()))?;
            let leap = POSITIONS_LEAPT_OVER + i64::from(u32::from_le_bytes(random)) * 256;
            let at_least = if by_the_clock < POSITION_BY_CLOCK_MAX { by_the_clock } else { 0 };
            self.stream.max(at_least) + leap
        };
        let connection = self.conn();
        connection
            .execute("INSERT INTO lost_positions (after, upto) VALUES (?1, ?2)", [last, self.stream()])?;
        // Given out once: one-time keys, counted as issued, so that a client that repeats an upload does not bring them back; a
        // fallback key that may be in use is to be replaced; tokens for one use.
        connection.execute("UPDATE one_time_key_pools SET issued = last", [])?;
        connection.execute(
            "DELETE FROM one_time_keys WHERE number <=
               (SELECT issued FROM one_time_key_pools p WHERE p.pool = one_time_keys.pool) - ?1",
            [ISSUED_MAX],
        )?;
        for once in [
            "UPDATE one_time_keys SET key = ''",
            "UPDATE fallback_keys SET used = 1",
            "DELETE FROM login_tokens",
            "DELETE FROM openid_tokens",
            // Whose knock was accepted may have been in the room, and left it, since: now they have the invite.
            "DELETE FROM owed_joins",
            // What is told of devices is told anew, with numbers that nobody has seen.
            "DELETE FROM owed_edus WHERE user_id IS NOT NULL",
            // No client is at a version that was never given out.
            "DELETE FROM sliding_rooms",
            "DELETE FROM sliding_connections",
            "DELETE FROM typing",
            // A copy of the keys that changed may count as many changes as one that is here.
            "UPDATE key_backups SET etag = etag + 1000000",
            "UPDATE destinations SET retry_ms = 0",
            "UPDATE remote_device_lists SET due_ms = 0, attempts = 0",
            // A bridge would say again what it has said: what was to be told is taken to have been told.
            "DELETE FROM appservice_events",
            "DELETE FROM appservice_transactions",
        ] {
            connection.execute(once, [])?;
        }
        self.wake_timer();
        self.all_rooms_are_behind_backup(now)?;
        let connection = self.conn();
        // What was due is taken to have been sent, and what was to be told to be told.
        connection.execute("DELETE FROM delayed_events WHERE due_ms <= ?1", [now])?;
        connection.execute("UPDATE pushers SET cursor = max(cursor, ?1), retry_ms = 0", [last])?;
        connection.execute("UPDATE appservice_progress SET stream = max(stream, ?1)", [last])?;
        self.sessions_changed();
        Ok(())
    }

    /// Forgets media whose files are not there.
    pub fn forget_lost_media(&mut self, lost: &[BlobHash]) -> Result<()> {
        for hash in lost {
            let quarantined: Option<bool> = self
                .conn()
                .prepare_cached("SELECT quarantined FROM media_blobs WHERE hash = ?1")?
                .query_row([hash], |row| row.get(0))
                .optional()?;
            // Nobody is given it anyway, and nobody can upload it again.
            if quarantined != Some(false) {
                continue;
            }
            for of_it in [
                "DELETE FROM media WHERE hash = ?1 AND quarantined = 0",
                "DELETE FROM media_thumbnails WHERE hash = ?1 OR source = ?1",
            ] {
                self.execute(of_it, params![hash])?;
            }
        }
        Ok(())
    }
}
