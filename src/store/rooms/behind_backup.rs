//! Rooms whose servers are to be asked what was said since the backup that this database comes from.

use rusqlite::OptionalExtension;

use crate::clock::Millis;
use crate::error::Result;
use crate::store::{Db, RoomKey, Tx};

impl Db<'_> {
    /// One that is due, with how often it was tried.
    pub fn due_room_behind_backup(&self, now: Millis) -> Result<Option<(RoomKey, u32)>> {
        let mut query = self.conn().prepare_cached(
            "SELECT room_key, attempts FROM rooms_behind_backup WHERE due_ms <= ?1 ORDER BY due_ms LIMIT 1",
        )?;
        Ok(query.query_row([now], |row| Ok((row.get(0)?, row.get(1)?))).optional()?)
    }

    /// When the next one is due.
    pub fn next_room_behind_backup_due(&self) -> Result<Option<Millis>> {
        let mut query = self.conn().prepare_cached("SELECT min(due_ms) FROM rooms_behind_backup")?;
        Ok(query.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// All rooms that we are in are behind, until somebody was asked.
    pub(in crate::store) fn all_rooms_are_behind_backup(&mut self, now: Millis) -> Result<()> {
        self.conn().execute(
            "INSERT OR REPLACE INTO rooms_behind_backup (room_key, due_ms, attempts)
             SELECT room_key, ?1, 0 FROM rooms WHERE resident = 1",
            [now],
        )?;
        self.is_due(now);
        Ok(())
    }

    /// It is tried again then.
    pub fn put_off_room_behind_backup(&mut self, room: RoomKey, due: Millis, attempts: u32) -> Result<()> {
        self.conn()
            .prepare_cached("UPDATE rooms_behind_backup SET due_ms = ?2, attempts = ?3 WHERE room_key = ?1")?
            .execute((room, due, attempts))?;
        self.is_due(due);
        Ok(())
    }

    /// Somebody was asked, or nobody will be.
    pub fn end_room_behind_backup(&mut self, room: RoomKey) -> Result<()> {
        self.conn().prepare_cached("DELETE FROM rooms_behind_backup WHERE room_key = ?1")?.execute([room])?;
        Ok(())
    }
}
