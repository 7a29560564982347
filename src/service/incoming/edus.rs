//! Ephemeral messages between servers: typing, receipts, presence, messages to devices, device lists. Each has a file of
//! its own; here is what they share.
//!
//! Whatever is wrong with one that we received, nobody is told: it is passed over. Only where our database fails, or where
//! there is no place for a message to a device, does the transaction fail, so that it comes again.

use crate::service::incoming::Incoming;
use std::collections::HashMap;

use serde_json::value::RawValue;

use crate::error::Result;
use crate::protocol::edu::{DeviceNews, DirectToDevice, Edu, ReceivedEdu};
use crate::protocol::json;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::events::server_acl::RoomAcl;
use crate::store::RoomKey;

/// The ephemeral messages of one transaction on their way in.
pub(in crate::service) struct Intake<'o> {
    origin: &'o ServerName,
    /// The rooms in which the sender has a say, so that each is looked up once.
    rooms: HashMap<RoomId, Option<RoomKey>>,
    /// What must not be lost waits for one commit.
    pub(in crate::service) to_device: Vec<DirectToDevice>,
    /// The same of the devices of the sender's users.
    pub(in crate::service) devices: Vec<DeviceNews>,
}

impl<'o> Intake<'o> {
    fn new(origin: &'o ServerName) -> Self {
        Self { origin, rooms: HashMap::new(), to_device: Vec::new(), devices: Vec::new() }
    }

    /// Who sent the transaction.
    pub(in crate::service) fn origin(&self) -> &'o ServerName {
        self.origin
    }

    /// Whether the user belongs to the sender.
    pub(in crate::service) fn owns(&self, user: &UserId) -> bool {
        user.server_name() == self.origin.as_str()
    }

    /// The room, if we are in it and its server ACL lets the sender in: "ACLs MUST be applied to all EDUs that are local
    /// to a specific room."
    pub(in crate::service) fn room(&mut self, hs: &Homeserver, room_id: &RoomId) -> Result<Option<RoomKey>> {
        if let Some(known) = self.rooms.get(room_id) {
            return Ok(*known);
        }
        let origin = self.origin;
        let room = hs.store.read(|db| {
            let Some(room) = db.resident_room(room_id)? else { return Ok(None) };
            Ok(RoomAcl::of(db, &room)?.allows(origin).then_some(room.key))
        })?;
        self.rooms.insert(room_id.clone(), room);
        Ok(room)
    }
}

impl Incoming<'_> {
    /// Takes in the ephemeral messages of a transaction, in their order; those to devices last, since only they may have to
    /// come again. Errors: 429 as for [`Self::take_in_to_device`], 500 if something of ours failed.
    pub fn receive_edus(&self, origin: &ServerName, edus: &[&RawValue]) -> Result<()> {
        let mut intake = Intake::new(origin);
        for edu in edus {
            match json::read_object::<ReceivedEdu<'_>>(edu.get().as_bytes()) {
                Ok(edu) => self.receive_edu(&mut intake, edu)?,
                Err(e) => log::debug!("{origin} sent an ephemeral message that is none: {e}"),
            }
        }
        self.devices().take_in_device_news(intake.devices)?;
        self.devices().take_in_to_device(origin, intake.to_device)
    }

    fn receive_edu(&self, intake: &mut Intake<'_>, edu: ReceivedEdu<'_>) -> Result<()> {
        let content = edu.content.get().as_bytes();
        match edu.edu_type.as_ref() {
            "m.typing" => self.ephemeral().receive_typing(intake, content)?,
            "m.receipt" => self.ephemeral().receive_receipts(intake, content)?,
            "m.presence" => self.ephemeral().receive_presence(intake, content)?,
            "m.direct_to_device" => self.devices().receive_to_device(intake, content),
            "m.device_list_update" => self.devices().receive_device_list_update(intake, content),
            "m.signing_key_update" => self.devices().receive_signing_key_update(intake, content),
            other => {
                let start: String = other.chars().take(100).collect();
                log::debug!("{} sent an ephemeral message of the type {start:?}", intake.origin());
            }
        }
        Ok(())
    }

    /// Sends an ephemeral message to all other servers in a room, as far as they can be reached at the moment.
    pub(in crate::service) fn tell_servers_of_room(&self, room: RoomKey, edu: &Edu) -> Result<()> {
        for server in self.store.read(|db| db.resident_servers(room))? {
            if server != *self.server_name() {
                self.sender.send_edu(&server, edu.clone());
            }
        }
        Ok(())
    }
}
