//! What the connections of sliding sync were told of their rooms, in versions: the one that the client has, and the one
//! that it may have got by the last answer. What a version costs depends on what it tells, not on how many rooms there
//! are.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::store::{Db, Tx};

/// Connections of one device: clients have three. Who is put out begins anew.
const CONNECTIONS_MAX: i64 = 16;
/// Connections that were not used for so long are forgotten.
pub const UNUSED_MAX_MS: Millis = 7 * 24 * 3_600_000;
/// So many rows of dead connections go with each write of a device, beside as many as it adds.
const DEAD_ROWS_WITH_EACH_WRITE: usize = 100;
/// Rows that one step of the sweep takes out, so that no commit has much to do.
const SWEPT_ROWS_MAX: usize = 1000;

/// A connection of sliding sync.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SlidingConnection {
    /// Its number, which no other connection ever had.
    pub connection: i64,
    /// The version that the client surely has; 0 is nothing.
    pub base: i64,
    /// The version of the last answer.
    pub issued: i64,
    /// When it was last used, to the minute or so.
    pub used_ms: Millis,
}

/// What one room's entry becomes: none once there is nothing that the client knows of the room.
pub type ToldRoom = (String, Option<String>);

impl Db<'_> {
    /// The connection of a device by this name.
    pub fn sliding_connection(
        &self,
        user: &UserId,
        device: &str,
        conn_id: &str,
    ) -> Result<Option<SlidingConnection>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT connection, base, issued, used_ms FROM sliding_connections
             WHERE user_id = ?1 AND device_id = ?2 AND conn_id = ?3",
        )?;
        let found = statement.query_row(params![user.as_str(), device, conn_id], |row| {
            Ok(SlidingConnection {
                connection: row.get(0)?,
                base: row.get(1)?,
                issued: row.get(2)?,
                used_ms: row.get(3)?,
            })
        });
        Ok(found.optional()?)
    }

    /// Whether there are connections to be swept.
    pub fn are_there_unused_sliding_connections(&self, now: Millis) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM sliding_connections WHERE conn_id IS NULL)
               OR EXISTS (SELECT 1 FROM sliding_connections WHERE used_ms < ?1)",
        )?;
        Ok(statement.query_row([now - UNUSED_MAX_MS], |row| row.get(0))?)
    }

    /// What a connection had been told of a room as of a version; '' is what belongs to no room.
    pub fn told_of_room(&self, connection: i64, version: i64, room_id: &str) -> Result<Option<String>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT told FROM sliding_rooms WHERE connection = ?1 AND room_id = ?2 AND version <= ?3
             ORDER BY version DESC LIMIT 1",
        )?;
        let told: Option<Option<String>> =
            statement.query_row(params![connection, room_id, version], |row| row.get(0)).optional()?;
        Ok(told.flatten())
    }

    /// Tells of all rooms what a connection had been told of them as of a version.
    pub fn each_told_room(
        &self,
        connection: i64,
        version: i64,
        mut tell: impl FnMut(&str, &str) -> Result<()>,
    ) -> Result<()> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, told FROM sliding_rooms WHERE connection = ?1 AND version <= ?2
             ORDER BY room_id, version",
        )?;
        let mut rows = statement.query([connection, version])?;
        let mut last: Option<(String, Option<String>)> = None;
        while let Some(row) = rows.next()? {
            let room: String = row.get(0)?;
            if let Some((before, Some(told))) = last.as_ref().filter(|(before, _)| *before != room) {
                tell(before, told)?;
            }
            last = Some((room, row.get(1)?));
        }
        match last {
            Some((room, Some(told))) => tell(&room, &told),
            _ => Ok(()),
        }
    }
}

impl Tx<'_> {
    /// Opens a connection of a device, which exists, in place of the one that had its name. Its base is version 0.
    pub fn open_sliding_connection(
        &mut self,
        user: &UserId,
        device: &str,
        conn_id: &str,
        now: Millis,
    ) -> Result<SlidingConnection> {
        let of_device = params![user.as_str(), device];
        self.execute(
            "UPDATE sliding_connections SET conn_id = NULL
             WHERE user_id = ?1 AND device_id = ?2 AND conn_id = ?3",
            params![user.as_str(), device, conn_id],
        )?;
        let open: i64 = self
            .conn()
            .prepare_cached(
                "SELECT count(*) FROM sliding_connections
                 WHERE user_id = ?1 AND device_id = ?2 AND conn_id IS NOT NULL",
            )?
            .query_row(of_device, |row| row.get(0))?;
        if open >= CONNECTIONS_MAX {
            self.conn()
                .prepare_cached(
                    "UPDATE sliding_connections SET conn_id = NULL WHERE connection = (
                       SELECT connection FROM sliding_connections
                       WHERE user_id = ?1 AND device_id = ?2 AND conn_id IS NOT NULL ORDER BY used_ms LIMIT 1)",
                )?
                .execute(of_device)?;
        }
        let connection = self.next_stream();
        self.execute(
            "INSERT INTO sliding_connections (connection, user_id, device_id, conn_id, base, issued, used_ms)
             VALUES (?1, ?2, ?3, ?4, 0, 0, ?5)",
            params![connection, user.as_str(), device, conn_id, now],
        )?;
        Ok(SlidingConnection { connection, base: 0, issued: 0, used_ms: now })
    }

    /// Closes all connections of a device, which is logged out. What they were told goes by and by.
    pub fn close_sliding_connections(&mut self, user: &UserId, device: &str) -> Result<()> {
        self.execute(
            "UPDATE sliding_connections SET conn_id = NULL
             WHERE user_id = ?1 AND device_id = ?2 AND conn_id IS NOT NULL",
            params![user.as_str(), device],
        )?;
        Ok(())
    }

    /// Makes the next version of a connection out of the one that the client has shown to have, which is its base from
    /// now on. None if the connection is not as it was when the answer was made (`seen`): another request was first.
    pub fn issue_sliding_version(
        &mut self,
        seen: &SlidingConnection,
        has: i64,
        told: &[ToldRoom],
        now: Millis,
    ) -> Result<Option<i64>> {
        let connection = seen.connection;
        let next = seen.issued + 1;
        let updated = self.execute(
            "UPDATE sliding_connections SET base = ?4, issued = ?5, used_ms = ?6
             WHERE connection = ?1 AND base = ?2 AND issued = ?3 AND conn_id IS NOT NULL",
            params![connection, seen.base, seen.issued, has, next, now],
        )?;
        if updated == 0 {
            return Ok(None);
        }
        if has == seen.issued {
            self.drop_versions_before(connection, has)?;
        } else {
            self.execute(
                "DELETE FROM sliding_rooms WHERE connection = ?1 AND version > ?2",
                params![connection, has],
            )?;
        }
        let mut insert = self.conn().prepare_cached(
            "INSERT INTO sliding_rooms (connection, room_id, version, told) VALUES (?1, ?2, ?3, ?4)",
        )?;
        for (room, told) in told {
            insert.execute(params![connection, room, next, told])?;
        }
        self.delete_dead_sliding_rooms(Some(connection), DEAD_ROWS_WITH_EACH_WRITE + told.len())?;
        Ok(Some(next))
    }

    /// The client has a version: what came before it of the same rooms is of no use any more.
    fn drop_versions_before(&mut self, connection: i64, version: i64) -> Result<()> {
        self.execute(
            "DELETE FROM sliding_rooms WHERE connection = ?1 AND version < ?2 AND room_id IN (
             SELECT room_id FROM sliding_rooms WHERE connection = ?1 AND version = ?2)",
            params![connection, version],
        )?;
        // By the primary key all rooms of the connection would be gone through.
        self.execute(
            "DELETE FROM sliding_rooms INDEXED BY sliding_rooms_by_version
             WHERE connection = ?1 AND version = ?2 AND told IS NULL",
            params![connection, version],
        )?;
        Ok(())
    }

    /// Notes that a connection is in use, though nothing was told.
    pub fn touch_sliding_connection(&mut self, connection: i64, now: Millis) -> Result<()> {
        self.execute(
            "UPDATE sliding_connections SET used_ms = ?2 WHERE connection = ?1",
            params![connection, now],
        )?;
        Ok(())
    }

    /// Takes out so many rows of connections that nobody can name any more: of the device that a connection belongs
    /// to, or of all. Whether there may be more.
    fn delete_dead_sliding_rooms(&mut self, of: Option<i64>, most: usize) -> Result<bool> {
        let dead = match of {
            Some(connection) => self
                .conn()
                .prepare_cached(
                    "SELECT d.connection FROM sliding_connections c
                       JOIN sliding_connections d ON d.user_id = c.user_id AND d.device_id = c.device_id
                     WHERE c.connection = ?1 AND d.conn_id IS NULL LIMIT 1",
                )?
                .query_row([connection], |row| row.get::<_, i64>(0))
                .optional()?,
            None => self
                .conn()
                .prepare_cached("SELECT connection FROM sliding_connections WHERE conn_id IS NULL LIMIT 1")?
                .query_row([], |row| row.get(0))
                .optional()?,
        };
        let Some(dead) = dead else { return Ok(false) };
        let gone = self.execute(
            "DELETE FROM sliding_rooms WHERE connection = ?1 AND (room_id, version) IN (
             SELECT room_id, version FROM sliding_rooms WHERE connection = ?1 LIMIT ?2)",
            params![dead, i64::try_from(most).unwrap_or(i64::MAX)],
        )?;
        if gone < most {
            self.execute("DELETE FROM sliding_connections WHERE connection = ?1", params![dead])?;
        }
        Ok(true)
    }

    /// Forgets connections that were not used for long, and a portion of what is left of dead ones. Whether there is
    /// more to do.
    pub fn sweep_sliding_connections(&mut self, now: Millis) -> Result<bool> {
        self.execute(
            "UPDATE sliding_connections SET conn_id = NULL WHERE used_ms < ?1 AND conn_id IS NOT NULL",
            params![now - UNUSED_MAX_MS],
        )?;
        self.delete_dead_sliding_rooms(None, SWEPT_ROWS_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::with_device_of_bob;

    const DAY: Millis = 24 * 3_600_000;

    fn bob() -> UserId {
        UserId::parse("@bob:us.example").expect("a user id")
    }

    fn rows(tx: &Tx<'_>, table: &str) -> Result<i64> {
        Ok(tx.conn().query_row(&format!("SELECT count(*) FROM {table}"), [], |row| row.get(0))?)
    }

    fn told(rooms: std::ops::Range<usize>, what: &str) -> Vec<ToldRoom> {
        rooms.map(|n| (format!("!{n}:us.example"), Some(what.to_owned()))).collect()
    }

    /// The connection as it is now.
    fn now(tx: &Tx<'_>, conn_id: &str) -> Result<SlidingConnection> {
        Ok(tx.sliding_connection(&bob(), "D", conn_id)?.expect("a connection"))
    }

    #[test]
    fn of_each_room_two_versions_are_kept_however_many_there_were() {
        let done = with_device_of_bob().write(|tx| {
            let opened = tx.open_sliding_connection(&bob(), "D", "c", 0)?;
            assert_eq!(tx.issue_sliding_version(&opened, 0, &told(0..100, "first"), 0)?, Some(1));
            for n in 0..50 {
                let before = now(tx, "c")?;
                let what = n.to_string();
                tx.issue_sliding_version(&before, before.issued, &told(0..10, &what), 0)?;
            }
            assert_eq!(rows(tx, "sliding_rooms")?, 110);
            let after = now(tx, "c")?;
            let of = |version: i64, room: &str| tx.told_of_room(after.connection, version, room);
            assert_eq!(of(after.issued, "!3:us.example")?.as_deref(), Some("49"));
            assert_eq!(of(after.base, "!3:us.example")?.as_deref(), Some("48"));
            assert_eq!(of(after.issued, "!50:us.example")?.as_deref(), Some("first"));
            let mut all = 0;
            tx.each_told_room(after.connection, after.base, |room, told| {
                let known = of(after.base, room)?;
                all += usize::from(known.as_deref() == Some(told));
                Ok(())
            })?;
            assert_eq!(all, 100);
            // An answer that did not arrive is given up with all that it told.
            let next = tx.issue_sliding_version(&after, after.base, &told(10..11, "again"), 0)?;
            assert_eq!(
                tx.told_of_room(after.connection, next.expect("a version"), "!3:us.example")?.as_deref(),
                Some("48")
            );
            assert_eq!(rows(tx, "sliding_rooms")?, 101);
            // And whoever saw the connection as it was before is told so.
            assert_eq!(tx.issue_sliding_version(&after, after.issued, &[], 0)?, None);
            // What the client knows nothing of any more goes, once it is known to have that.
            let before = now(tx, "c")?;
            tx.issue_sliding_version(&before, before.issued, &[("!3:us.example".to_owned(), None)], 0)?;
            let before = now(tx, "c")?;
            assert_eq!(tx.told_of_room(before.connection, before.issued, "!3:us.example")?, None);
            tx.issue_sliding_version(&before, before.issued, &[], 0)?;
            assert_eq!(rows(tx, "sliding_rooms")?, 100 - 1);
            Ok(())
        });
        done.expect("written");
    }

    #[test]
    fn what_a_device_was_told_that_is_logged_out_goes_a_portion_at_a_time() {
        let done = with_device_of_bob().write(|tx| {
            for conn_id in ["a", "b"] {
                let opened = tx.open_sliding_connection(&bob(), "D", conn_id, 0)?;
                tx.issue_sliding_version(&opened, 0, &told(0..1500, "all"), 0)?;
            }
            assert!(tx.delete_device(&bob(), "D")?);
            assert_eq!(rows(tx, "sliding_rooms")?, 3000);
            assert_eq!(tx.sliding_connection(&bob(), "D", "a")?, None);
            // Who logs in by the same id later finds nothing of it.
            tx.conn()
                .execute("INSERT INTO devices (user_id, device_id) VALUES ('@bob:us.example', 'D')", [])?;
            assert_eq!(tx.sliding_connection(&bob(), "D", "b")?, None);
            assert!(tx.are_there_unused_sliding_connections(0)?);
            let mut left = 3000;
            while tx.sweep_sliding_connections(0)? {
                let now = rows(tx, "sliding_rooms")?;
                assert!(left - now <= 1000, "{left} {now}");
                left = now;
            }
            assert_eq!((rows(tx, "sliding_connections")?, rows(tx, "sliding_rooms")?), (0, 0));
            Ok(())
        });
        done.expect("written");
    }

    #[test]
    fn what_is_left_of_dead_connections_goes_with_the_next_writes_and_with_time() {
        let done = with_device_of_bob().write(|tx| {
            for n in 0..5 {
                let opened = tx.open_sliding_connection(&bob(), "D", "c", n)?;
                tx.issue_sliding_version(&opened, 0, &told(0..300, "all"), n)?;
                assert!(rows(tx, "sliding_rooms")? <= 600, "{n}");
            }
            assert!(!tx.are_there_unused_sliding_connections(DAY)? || rows(tx, "sliding_connections")? > 1);
            let later = 8 * DAY;
            assert!(tx.are_there_unused_sliding_connections(later)?);
            while tx.sweep_sliding_connections(later)? {}
            assert_eq!((rows(tx, "sliding_connections")?, rows(tx, "sliding_rooms")?), (0, 0));
            Ok(())
        });
        done.expect("written");
    }
}
