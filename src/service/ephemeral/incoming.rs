//! Whose EDUs are being received: what typing, receipts and presence ask of the server that sent them.

use std::collections::HashMap;

use crate::error::Result;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::events::server_acl::RoomAcl;
use crate::store::RoomKey;

/// The server that sent the EDUs of one transaction.
pub(in crate::service) struct EduOrigin<'o> {
    server: &'o ServerName,
    /// The rooms in which it has a say, so that each is looked up once.
    rooms: HashMap<RoomId, Option<RoomKey>>,
}

impl<'o> EduOrigin<'o> {
    /// The sender of a transaction.
    pub(in crate::service) fn new(server: &'o ServerName) -> Self {
        Self { server, rooms: HashMap::new() }
    }

    /// Whether the user belongs to the sender.
    pub(super) fn owns(&self, user: &UserId) -> bool {
        user.server_name() == self.server.as_str()
    }

    /// The room, if this server is in it and its server ACL lets the sender in: "ACLs MUST be applied to all EDUs that
    /// are local to a specific room."
    pub(super) fn room(&mut self, hs: &Homeserver, room_id: &RoomId) -> Result<Option<RoomKey>> {
        if let Some(known) = self.rooms.get(room_id) {
            return Ok(*known);
        }
        let server = self.server;
        let room = hs.store.read(|db| {
            let Some(room) = db.resident_room(room_id)? else { return Ok(None) };
            Ok(RoomAcl::of(db, &room)?.allows(server).then_some(room.key))
        })?;
        self.rooms.insert(room_id.clone(), room);
        Ok(room)
    }
}
