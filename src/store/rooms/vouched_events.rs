//! Events that are verified by nothing but the word of the server by which we came into the room: which they are, and
//! whether the server by which we come in again shows them too.
//!
//! What it does not show contradicts it only if another event may rest on it: then whatever we took in may have been allowed by
//! a lie. A room's topic carries nothing, whoever made it up, and in honest rooms is replaced without leaving a trace in what
//! those show who come in later (it is in nobody's auth chain). Such an event is left behind: the room is not told anew for it,
//! and it comes into no state again ([`Tx::leave_behind`]).

use std::collections::{BTreeMap, HashSet};

use rusqlite::params;

use crate::error::Result;
use crate::protocol::event_auth::is_auth_type;
use crate::protocol::room_version::StateResolution;
use crate::protocol::signatures::verify::Proof;
use crate::protocol::{EventId, RoomId, VerifiedPdu};
use crate::store::rooms::room_import::StagedEvents;
use crate::store::{Db, EventKey, Room, RoomKey, Tx};

/// How many events of a chain are looked at.
const CHAIN_LOOKED_AT_MAX: usize = 100;

/// What we have of a room from before, as far as it does not go together with what we are shown of it now.
#[derive(Debug)]
pub struct Contradiction {
    /// The room as we know it.
    pub room: Room,
    /// It has another create event.
    pub is_another_room: bool,
    /// Events that rest on the word of the server that showed us the room then, that are not shown now, and upon which others
    /// may rest.
    pub vouched: Vec<EventKey>,
}

/// Events of a room from before that rest on the word of the server that showed it then, and that are not shown now.
#[derive(Debug, Default)]
struct Unshown {
    /// Those upon which others may rest.
    carrying: Vec<EventKey>,
    /// The others.
    idle: Vec<(EventKey, EventId)>,
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
        let vouched = self.unshown(&room, staged, held)?.carrying;
        let any = is_another_room || !vouched.is_empty();
        Ok(any.then_some(Contradiction { room, is_another_room, vouched }))
    }

    /// Whether an event rests on another server's word.
    pub(in crate::store) fn is_vouched(&self, room: RoomKey, event: EventKey) -> Result<bool> {
        let mut statement = self.conn().prepare_cached(
            "SELECT EXISTS (SELECT 1 FROM vouched_events WHERE room_key = ?1 AND event_key = ?2)",
        )?;
        Ok(statement.query_row(params![room, event], |row| row.get(0))?)
    }

    /// Whether an event that has no place here rests on another server's word, itself or by others of which that is true. Of a
    /// long chain only so much is looked at.
    pub fn rests_on_word(&self, room: RoomKey, event: &EventId) -> Result<bool> {
        let (mut next, mut seen) = (vec![event.clone()], HashSet::new());
        while let Some(id) = next.pop() {
            if seen.len() >= CHAIN_LOOKED_AT_MAX || !seen.insert(id.clone()) {
                continue;
            }
            let Some(event) = self.event(&id)?.filter(|event| event.room == room) else { continue };
            if self.is_vouched(room, event.key)? {
                return Ok(true);
            }
            if event.is_outlier() {
                next.extend_from_slice(event.pdu.auth_events());
            }
        }
        Ok(false)
    }

    /// Those that were left behind before are none of them.
    fn unshown(&self, room: &Room, staged: StagedEvents, held: &[(VerifiedPdu, bool)]) -> Result<Unshown> {
        let mut vouched: BTreeMap<String, EventKey> = self
            .rows(
                "SELECT e.event_id, e.event_key FROM vouched_events v JOIN events e USING (event_key)
                 WHERE v.room_key = ?1 AND e.status <> 2",
                params![room.key],
                |row| Ok((row.get(0)?, row.get(1)?)),
            )?
            .into_iter()
            .collect();
        let mut unshown = Unshown::default();
        if vouched.is_empty() {
            return Ok(unshown);
        }
        for (pdu, _) in held {
            vouched.remove(pdu.event_id().as_str());
        }
        self.each_staged_id(staged, |id| {
            vouched.remove(id);
        })?;
        // There a state has what one of its forks lacks, whether or not it is rejected.
        let any_counts = room.version.state_resolution == StateResolution::V1;
        for event in vouched.into_values() {
            let pdu = self.pdu_by_key(event)?;
            // One that was met again on the way through the room's past has changed a state of its own.
            let is_placed = matches!(self.event_status(pdu.event_id())?, Some((_, false)));
            if any_counts || is_placed || is_auth_type(pdu.event_type()) {
                unshown.carrying.push(event);
            } else {
                unshown.idle.push((event, pdu.event_id().clone()));
            }
        }
        Ok(unshown)
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

    /// A room is entered again in which these are shown: what another server vouched for and what is not among them
    /// counts as rejected, although nothing rests on it. It is in states from before, and a fork that leads back to them would
    /// have it in the current one again. Whoever shows it once more, with keys or a word that holds, has it back.
    pub fn leave_behind(
        &mut self,
        room: &Room,
        staged: StagedEvents,
        held: &[(VerifiedPdu, bool)],
    ) -> Result<()> {
        for (event, id) in self.unshown(room, staged, held)?.idle {
            self.execute(
                "UPDATE events SET status = 2 WHERE event_key = ?1 AND state_before IS NULL",
                params![event],
            )?;
            self.remember(|cache| cache.events.forget_event(&id));
        }
        Ok(())
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
