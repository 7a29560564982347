//! What who runs the server is told of rooms, beside what everybody in them knows.

use rusqlite::params;

use crate::error::Result;
use crate::protocol::{RoomId, UserId};
use crate::store::{Db, Room, RoomKey};

use super::{ROOM, room_of};

impl Db<'_> {
    /// Every room that this server knows a state of, whether or not it is in it.
    pub fn rooms_with_a_state(&self) -> Result<Vec<Room>> {
        let mut statement = self.conn().prepare_cached(&format!("{ROOM} WHERE state IS NOT NULL"))?;
        let mut rows = statement.query([])?;
        let mut rooms = Vec::new();
        while let Some(row) = rows.next()? {
            rooms.push(room_of(row)?);
        }
        Ok(rooms)
    }

    fn count_of_room(&self, sql: &str, room: RoomKey) -> Result<u64> {
        let count: i64 = self.conn().prepare_cached(sql)?.query_row([room], |row| row.get(0))?;
        Ok(count.max(0).unsigned_abs())
    }

    /// How many local users are joined to a room.
    pub fn count_joined_local_users(&self, room: RoomKey) -> Result<u64> {
        let sql =
            "SELECT count(*) FROM memberships WHERE room_key = ?1 AND membership = 'join' AND local = 1";
        self.count_of_room(sql, room)
    }

    /// How many events the current state of a room has.
    pub fn count_state_events(&self, room: RoomKey) -> Result<u64> {
        self.count_of_room("SELECT count(*) FROM current_state WHERE room_key = ?1", room)
    }

    /// How many devices the local users have who are joined to a room.
    pub fn count_devices_of_members(&self, room: RoomKey) -> Result<u64> {
        let sql = "SELECT count(*) FROM memberships m JOIN devices d ON d.user_id = m.user_id
             WHERE m.room_key = ?1 AND m.membership = 'join' AND m.local = 1";
        self.count_of_room(sql, room)
    }

    /// Whether all local users have forgotten a room who had anything to do with it.
    pub fn is_forgotten_by_all(&self, room: RoomKey) -> Result<bool> {
        let sql =
            "SELECT count(*) FROM memberships WHERE room_key = ?1 AND local = 1 AND forgotten = 0 LIMIT 1";
        Ok(self.count_of_room(sql, room)? == 0)
    }

    /// The rooms that a user, of whatever server, is joined to, as far as this server is in them.
    pub fn rooms_joined_by(&self, user: &UserId) -> Result<Vec<RoomId>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT r.room_id FROM rooms r JOIN memberships m ON m.room_key = r.room_key AND m.user_id = ?1
             WHERE r.resident = 1 AND m.membership = 'join' AND (m.local = 1 OR NOT ?2) ORDER BY 1",
        )?;
        let key = params![user.as_str(), self.is_local(user.as_str())];
        let rows = statement.query_map(key, |row| row.get::<_, String>(0))?;
        rows.map(|row| RoomId::parse(&row?)).collect()
    }
}
