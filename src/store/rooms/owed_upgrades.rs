//! Rooms that we were in already when the room that they replace got its tombstone: what follows who comes into a new room
//! follows those who are in it, a portion at a time.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::{RoomId, UserId};
use crate::store::{Db, EventKey, RoomKey, Tx};

impl Db<'_> {
    /// Up to which local member, by their names, a room's were looked through; none: nothing is owed to them.
    pub fn owed_upgrade(&self, room: RoomKey) -> Result<Option<String>> {
        let mut statement =
            self.conn().prepare_cached("SELECT upto FROM owed_upgrades WHERE room_key = ?1")?;
        Ok(statement.query_row([room], |row| row.get(0)).optional()?)
    }

    /// The first local members of a room behind one, by their names, at most so many.
    pub fn joined_local_users_after(&self, room: RoomKey, after: &str, limit: usize) -> Result<Vec<UserId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT user_id FROM memberships WHERE room_key = ?1 AND user_id > ?2 AND membership = 'join' AND local = 1
             ORDER BY user_id LIMIT ?3",
        )?;
        let rows = statement.query_map(params![room, after, limit as i64], |row| row.get::<_, String>(0))?;
        rows.map(|user| UserId::parse(&user?)).collect()
    }

    /// A room to whose members something is due.
    pub fn due_owed_upgrade(&self, now: Millis) -> Result<Option<RoomKey>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_key FROM owed_upgrades WHERE due_ms <= ?1 ORDER BY due_ms LIMIT 1",
        )?;
        Ok(statement.query_row([now], |row| row.get(0)).optional()?)
    }

    /// When the next one is.
    pub fn next_owed_upgrade_due(&self) -> Result<Option<Millis>> {
        let mut statement = self.conn().prepare_cached("SELECT min(due_ms) FROM owed_upgrades")?;
        Ok(statement.query_row([], |row| row.get(0))?)
    }
}

impl Tx<'_> {
    /// A room has this tombstone now. If we are in the room that it names, those who came there before are owed what follows them.
    /// (Whether that room replaces this one is seen when they get it.)
    pub(super) fn owe_upgrade(&mut self, tombstone: EventKey) -> Result<()> {
        let named = self.pdu_by_key(tombstone)?.content_str("replacement_room");
        let Some(named) = named.and_then(|id| RoomId::parse(&id).ok()) else { return Ok(()) };
        let Some(room) = self.resident_room(&named)? else { return Ok(()) };
        self.execute(
            "INSERT OR REPLACE INTO owed_upgrades (room_key, upto, due_ms) VALUES (?1, '', 0)",
            params![room.key],
        )?;
        self.wake_timer();
        Ok(())
    }

    /// The members up to this one have what was owed to them.
    pub fn upgrade_followed(&mut self, room: RoomKey, upto: &UserId) -> Result<()> {
        self.execute("UPDATE owed_upgrades SET upto = ?2 WHERE room_key = ?1", params![room, upto.as_str()])?;
        Ok(())
    }

    /// Puts off what is owed to the members of a room.
    pub fn put_off_owed_upgrade(&mut self, room: RoomKey, due: Millis) -> Result<()> {
        self.execute("UPDATE owed_upgrades SET due_ms = ?2 WHERE room_key = ?1", params![room, due])?;
        self.is_due(due);
        Ok(())
    }

    /// Nothing is owed to the members of a room any more.
    pub fn end_owed_upgrade(&mut self, room: RoomKey) -> Result<()> {
        self.execute("DELETE FROM owed_upgrades WHERE room_key = ?1", params![room])?;
        Ok(())
    }
}
