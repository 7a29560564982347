//! Room aliases, and the directory of published rooms.

use crate::error::{Error, Result};
use crate::protocol::{RoomAlias, RoomId, ServerName};
use crate::service::Homeserver;

impl Homeserver {
    /// The room that an alias stands for, and servers that are likely to know it, best first: asked of the server that
    /// the alias belongs to. Errors: 404 `M_NOT_FOUND`, and what the other server says.
    pub fn resolve_alias(&self, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>)> {
        self.resolve_own_alias(alias)
    }

    /// What one of our own aliases stands for: also the answer to another server's `query/directory`. Errors: 404
    /// `M_NOT_FOUND`.
    pub fn resolve_own_alias(&self, alias: &RoomAlias) -> Result<(RoomId, Vec<ServerName>)> {
        self.store.read(|db| {
            let found = db.alias(alias)?;
            let room_id =
                found.ok_or_else(|| Error::not_found(format!("Room alias {alias} not found.")))?.room_id;
            let mut servers = match db.room(&room_id)? {
                Some(room) => db.resident_servers(room.key)?,
                None => Vec::new(),
            };
            // Ours leads: it is the one that was asked, and it can let people in as long as it is in the room.
            if let Some(ours) = servers.iter().position(|server| server == self.server_name()) {
                let ours = servers.remove(ours);
                servers.insert(0, ours);
            }
            servers.truncate(MAX_SERVERS);
            Ok((room_id, servers))
        })
    }
}

/// No more than this many servers are named for a room.
const MAX_SERVERS: usize = 100;
