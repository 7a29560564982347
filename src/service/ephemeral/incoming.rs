//! Whose EDUs are being received: what typing, receipts and presence ask of the server that sent them.

use std::collections::HashMap;

use crate::error::Result;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::events::server_acl::RoomAcl;
use crate::store::RoomKey;

/// Which EDU it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum EduKind {
    Typing,
    Receipt,
    Presence,
}

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

    pub(super) fn server(&self) -> &ServerName {
        self.server
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

    /// The same. Of a room that somebody of ours is joining right now, `edu` is kept.
    pub(super) fn room_or_keep(
        &mut self,
        hs: &Homeserver,
        room_id: &RoomId,
        edu: impl FnOnce() -> (EduKind, Vec<u8>),
    ) -> Result<Option<RoomKey>> {
        if let Some(room) = self.room(hs, room_id)? {
            return Ok(Some(room));
        }
        let (is_resident, is_joining) = hs
            .store
            .read(|db| Ok((db.resident_room(room_id)?.is_some(), db.joining_version(room_id)?.is_some())))?;
        if is_resident {
            // The room keeps the sender out, unless we have come in since it was looked up.
            self.rooms.remove(room_id);
            return self.room(hs, room_id);
        }
        if is_joining {
            hs.ephemeral().keep_edu(self.server, room_id, edu())?;
        }
        Ok(None)
    }
}
