//! Rooms into which nobody of this server is to come.

use std::sync::atomic::Ordering;

use rusqlite::{Connection, OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::RoomId;
use crate::store::{Db, Store, Tx};

/// Whether any room is shut: on most servers none ever was, and who comes in is to pay nothing for it.
pub(in crate::store) fn are_any_shut(connection: &Connection) -> rusqlite::Result<bool> {
    let any = "SELECT EXISTS (SELECT 1 FROM blocked_rooms)
         OR EXISTS (SELECT 1 FROM room_deletions WHERE due_ms IS NOT NULL AND entered_anew = 0)";
    connection.query_row(any, [], |row| row.get(0))
}

impl Db<'_> {
    /// Who has blocked the room, if it is: an administrator, or '', which is who runs the server.
    pub fn blocked_by(&self, room: &RoomId) -> Result<Option<String>> {
        let mut statement =
            self.conn().prepare_cached("SELECT blocked_by FROM blocked_rooms WHERE room_id = ?1")?;
        Ok(statement.query_row([room.as_str()], |row| row.get(0)).optional()?)
    }

    /// Whether nobody is to come into the room: it is blocked, or being deleted by who runs this server.
    pub fn is_room_shut(&self, room: &RoomId) -> Result<bool> {
        if !self.shared.any_shut_rooms.load(Ordering::Acquire) {
            return Ok(false);
        }
        let mut statement = self.conn().prepare_cached(
            "SELECT 1 FROM blocked_rooms WHERE room_id = ?1
             UNION ALL SELECT 1 FROM room_deletions
               WHERE room_id = ?1 AND due_ms IS NOT NULL AND entered_anew = 0 LIMIT 1",
        )?;
        Ok(statement.exists([room.as_str()])?)
    }

    /// The blocked rooms behind one of them, in the order of their ids.
    pub fn blocked_rooms(&self, behind: &str, most: usize) -> Result<Vec<(RoomId, String, Millis)>> {
        let mut statement = self.conn().prepare_cached(
            "SELECT room_id, blocked_by, blocked_ms FROM blocked_rooms WHERE room_id > ?1 ORDER BY room_id LIMIT ?2",
        )?;
        let rows = statement.query_map(params![behind, most as i64], |row| {
            Ok((row.get::<_, String>(0)?, row.get(1)?, row.get(2)?))
        })?;
        rows.map(|row| row.map_err(Into::into).and_then(|(id, by, when)| Ok((RoomId::parse(&id)?, by, when))))
            .collect()
    }
}

impl Store {
    /// Whether any room is, or ever was since the start, blocked or being deleted.
    pub fn are_any_rooms_shut(&self) -> bool {
        self.shared.any_shut_rooms.load(Ordering::Acquire)
    }
}

impl Tx<'_> {
    /// To be called before a room is shut, by whatever does so.
    pub(in crate::store) fn room_is_shut(&self) {
        self.db.shared.any_shut_rooms.store(true, Ordering::Release);
    }

    /// Blocks a room, whether or not there is one here. Who did so first stays.
    pub fn block_room(&mut self, room: &RoomId, by: &str, now: Millis) -> Result<()> {
        self.room_is_shut();
        self.execute(
            "INSERT INTO blocked_rooms (room_id, blocked_by, blocked_ms) VALUES (?1, ?2, ?3)
             ON CONFLICT DO NOTHING",
            params![room.as_str(), by, now],
        )?;
        Ok(())
    }

    /// Blocks a room no more.
    pub fn unblock_room(&mut self, room: &RoomId) -> Result<()> {
        self.execute("DELETE FROM blocked_rooms WHERE room_id = ?1", params![room.as_str()])?;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::store::tests::{Folder, open};

    #[test]
    fn a_room_that_was_shut_is_so_after_a_start_as_well() {
        let (folder, room) = (Folder::new(), RoomId::parse("!a:us.example").expect("a room id"));
        let is_shut = |store: &Store| store.read(|db| db.is_room_shut(&room)).expect("readable");
        let store = open(&folder).expect("a store");
        assert!(!is_shut(&store));
        let shut = room.clone();
        store.write(move |tx| tx.block_room(&shut, "", 0)).expect("written");
        assert!(is_shut(&store));
        drop(store);
        let store = open(&folder).expect("a store");
        assert!(is_shut(&store));
        let open_again = room.clone();
        store.write(move |tx| tx.unblock_room(&open_again)).expect("written");
        assert!(!is_shut(&store));
    }
}
