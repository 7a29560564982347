//! Room aliases of this server, and the rooms that it publishes.

use rusqlite::{OptionalExtension, params};

use crate::error::Result;
use crate::protocol::{RoomAlias, RoomId, UserId};
use crate::store::{Db, Tx};

/// One of our room aliases.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Alias {
    /// The room that it names.
    pub room_id: RoomId,
    /// Who made it.
    pub created_by: UserId,
}

impl Db<'_> {
    /// What one of our aliases stands for.
    pub fn alias(&self, alias: &RoomAlias) -> Result<Option<Alias>> {
        let row: Option<(String, String)> = self
            .conn()
            .prepare_cached("SELECT room_id, created_by FROM room_aliases WHERE alias = ?")?
            .query_row([alias.as_str()], |row| Ok((row.get(0)?, row.get(1)?)))
            .optional()?;
        row.map(|(room_id, created_by)| {
            Ok(Alias { room_id: RoomId::parse(&room_id)?, created_by: UserId::parse(&created_by)? })
        })
        .transpose()
    }

    /// Our aliases of a room, in alphabetical order.
    pub fn aliases_of(&self, room: &RoomId) -> Result<Vec<String>> {
        let mut statement =
            self.conn().prepare_cached("SELECT alias FROM room_aliases WHERE room_id = ? ORDER BY alias")?;
        let rows = statement.query_map([room.as_str()], |row| row.get(0))?;
        Ok(rows.collect::<Result<_, _>>()?)
    }

    /// Whether the room is in the published directory.
    pub fn is_published(&self, room: &RoomId) -> Result<bool> {
        Ok(self
            .conn()
            .prepare_cached("SELECT 1 FROM published_rooms WHERE room_id = ?")?
            .exists([room.as_str()])?)
    }

    /// Every published room, in the order of room ids.
    pub fn published_rooms(&self) -> Result<Vec<RoomId>> {
        let mut statement =
            self.conn().prepare_cached("SELECT room_id FROM published_rooms ORDER BY room_id")?;
        let rows = statement.query_map([], |row| row.get::<_, String>(0))?;
        rows.map(|row| RoomId::parse(&row?)).collect()
    }
}

impl Tx<'_> {
    /// Makes an alias. False, and nothing changed, if there is one with this name.
    pub fn add_alias(&mut self, alias: &RoomAlias, room: &RoomId, created_by: &UserId) -> Result<bool> {
        let added = self.execute(
            "INSERT OR IGNORE INTO room_aliases (alias, room_id, created_by) VALUES (?, ?, ?)",
            params![alias.as_str(), room.as_str(), created_by.as_str()],
        )?;
        Ok(added == 1)
    }

    /// Has all our aliases of a room name another one.
    pub fn move_aliases(&mut self, from: &RoomId, to: &RoomId) -> Result<()> {
        self.execute(
            "UPDATE room_aliases SET room_id = ?2 WHERE room_id = ?1",
            params![from.as_str(), to.as_str()],
        )?;
        Ok(())
    }

    /// Removes an alias. False if there was none.
    pub fn delete_alias(&mut self, alias: &RoomAlias) -> Result<bool> {
        let deleted = self.execute("DELETE FROM room_aliases WHERE alias = ?", params![alias.as_str()])?;
        Ok(deleted == 1)
    }

    /// Publishes a room in the directory, or takes it out.
    pub fn set_published(&mut self, room: &RoomId, published: bool) -> Result<()> {
        let sql = if published {
            "INSERT OR IGNORE INTO published_rooms (room_id) VALUES (?)"
        } else {
            "DELETE FROM published_rooms WHERE room_id = ?"
        };
        self.execute(sql, params![room.as_str()])?;
        Ok(())
    }
}
