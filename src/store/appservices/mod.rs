//! What application services keep here: the rooms that they publish for the networks that they bridge. `queue`: what they are
//! still to be told; `devices`: those of their users, and what waits for them.

pub mod devices;
pub mod queue;

use rusqlite::params;

use crate::error::Result;
use crate::protocol::RoomId;
use crate::store::{Db, Tx};

/// A room in the directory of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRoom {
    /// The id of the service that publishes it.
    pub appservice: String,
    /// The network, as the service names it.
    pub network: String,
    /// The room.
    pub room_id: RoomId,
}

impl Db<'_> {
    /// Every room that is published for a network, also by services that are registered no more.
    pub fn network_rooms(&self) -> Result<Vec<NetworkRoom>> {
        let mut statement = self
            .conn()
            .prepare_cached("SELECT appservice, network, room_id FROM network_rooms ORDER BY room_id")?;
        let rows = statement.query_map([], |row| Ok((row.get(0)?, row.get(1)?, row.get::<_, String>(2)?)))?;
        rows.map(|row| {
            let (appservice, network, room_id) = row?;
            Ok(NetworkRoom { appservice, network, room_id: RoomId::parse(&room_id)? })
        })
        .collect()
    }
}

impl Tx<'_> {
    /// Publishes a room for a network, or takes it out.
    pub fn set_network_room(&mut self, room: &NetworkRoom, published: bool) -> Result<()> {
        let sql = if published {
            "INSERT OR IGNORE INTO network_rooms (appservice, network, room_id) VALUES (?1, ?2, ?3)"
        } else {
            "DELETE FROM network_rooms WHERE appservice = ?1 AND network = ?2 AND room_id = ?3"
        };
        self.execute(sql, params![room.appservice, room.network, room.room_id.as_str()])?;
        Ok(())
    }
}
