//! Events that are verified by nothing but the word of the server by which we came into the room: which they are, and
//! whether the server by which we come in again shows them too.

use std::collections::BTreeMap;

use rusqlite::params;

use crate::error::Result;
use crate::protocol::signatures::verify::Proof;
use crate::protocol::{RoomId, VerifiedPdu};
use crate::store::rooms::room_import::StagedEvents;
use crate::store::{Db, EventKey, Room, RoomKey, Tx};

/// What we have of a room from before, as far as it does not go together with what we are shown of it now.
#[derive(Debug)]
pub struct Contradiction {
    /// The room as we know it.
    pub room: Room,
    /// It has another create event.
    pub is_another_room: bool,
    /// Events that rest on the word of the server that showed us the room then, and that are not shown now.
    pub vouched: Vec<EventKey>,
}

impl Db<'_> {
    /// What there is of a room from before that does not go together with the events of an import: those that were stored
    /// for it, and those at hand.
    pub fn contradiction(
        &self,
        room: &RoomId,
        staged: StagedEvents,
        held: &[(VerifiedPdu, bool)],
    ) -> Result<Option<Contradiction>> {
        let Some(room) = self.room(room)?.filter(|room| !room.resident) else { return Ok(None) };
        let is_another_room = match self.state_event(room.key, "m.room.create", "")? {
            Some(create) => {
                let at_hand =
                    |(pdu, in_state): &&(VerifiedPdu, bool)| *in_state && pdu.is("m.room.create", "");
                let shown = match held.iter().find(at_hand) {
                    Some((shown, _)) => Some(shown.event_id().clone()),
                    None => self.staged_create_event(staged)?,
                };
                shown.as_ref() != Some(create.event_id())
            }
            None => false,
        };
        let mut vouched: BTreeMap<String, EventKey> = self
            .rows(
                "SELECT e.event_id, e.event_key FROM vouched_events v JOIN events e USING (event_key)
                 WHERE v.room_key = ?1",
                params![room.key],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?
            .into_iter()
            .collect();
        if !vouched.is_empty() {
            for (pdu, _) in held {
                vouched.remove(pdu.event_id().as_str());
            }
            self.each_staged_id(staged, |id| {
                vouched.remove(id);
            })?;
        }
        let vouched: Vec<EventKey> = vouched.into_values().collect();
        let any = is_another_room || !vouched.is_empty();
        Ok(any.then_some(Contradiction { room, is_another_room, vouched }))
    }
}

impl Tx<'_> {
    /// Takes down of a new event that it rests on a server's word, if it does.
    pub(in crate::store) fn note_proof_of_new(
        &mut self,
        room: RoomKey,
        event: EventKey,
        pdu: &VerifiedPdu,
    ) -> Result<()> {
        match pdu.proof() {
            Proof::Vouched => self.event_is_vouched(room, event),
            Proof::Certain | Proof::Stored => Ok(()),
        }
    }

    fn event_is_vouched(&mut self, room: RoomKey, event: EventKey) -> Result<()> {
        self.execute(
            "INSERT INTO vouched_events (room_key, event_key) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
            params![room, event],
        )?;
        Ok(())
    }

    /// An event that we have came again: once it is verified by keys that are certain, it rests on nobody's word any more.
    pub(in crate::store) fn note_proof_of_known(
        &mut self,
        room: RoomKey,
        event: EventKey,
        proof: Proof,
    ) -> Result<()> {
        match proof {
            Proof::Certain => self.events_are_certain(room, &[event]),
            Proof::Vouched | Proof::Stored => Ok(()),
        }
    }

    /// These events are verified by keys that are certain.
    pub fn events_are_certain(&mut self, room: RoomKey, events: &[EventKey]) -> Result<()> {
        for event in events {
            self.execute(
                "DELETE FROM vouched_events WHERE room_key = ?1 AND event_key = ?2",
                params![room, event],
            )?;
        }
        Ok(())
    }
}
