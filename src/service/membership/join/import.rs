//! Becoming resident: the import of the room that `send_join` gave, as a whole.

use crate::error::{Error, Result};
use crate::protocol::{RoomId, RoomVersion, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::membership::Memberships;
use crate::store::rooms::append::{Append, Current};
use crate::store::rooms::room_import::StagedRoom;
use crate::store::rooms::state::StateRef;
use crate::store::{RoomKey, Status, Tx};

/// How many events are stored at once before this server is in the room: others write in between.
const EVENTS_PER_WRITE_MAX: usize = 1000;

/// A whole room at hand, every event of it checked: format, signatures, hash, and the auth rules against its auth
/// events.
#[derive(Clone)]
pub struct ImportedRoom {
    /// The room's version.
    pub version: RoomVersion,
    /// The room.
    pub room_id: RoomId,
    /// The events that the state rests on, beside the state itself.
    pub auth_chain: Vec<VerifiedPdu>,
    /// The state before the join.
    pub state: Vec<VerifiedPdu>,
    /// Our join.
    pub join: VerifiedPdu,
}

/// A room that is being imported. Its events are stored bit by bit, which changes nothing that anybody can see; this
/// server becomes resident in one transaction at the end. If that never comes, they are events that nobody knows the
/// place of.
pub struct RoomImport<'h> {
    hs: &'h Homeserver,
    room: RoomKey,
    room_id: RoomId,
    staged: StagedRoom,
}

/// What came of a room that was to be imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImportOutcome {
    /// This server is in the room now.
    BecameResident,
    /// It was in the room already: another local user came in meanwhile, and the room has a state of its own here.
    /// Nothing was done.
    WasResident,
}

impl<'h> Memberships<'h> {
    /// Begins the import of a room.
    pub fn begin_import(self, room_id: &RoomId, version: RoomVersion) -> Result<RoomImport<'h>> {
        let id = room_id.clone();
        let room = self.store.write(move |tx| Ok(tx.make_room(&id, version)?.key))?;
        Ok(RoomImport { hs: self.0, room, room_id: room_id.clone(), staged: StagedRoom::default() })
    }

    /// Imports a room that is at hand as a whole. `extra` is in the transaction that makes this server resident.
    pub fn import_room(
        self,
        room: ImportedRoom,
        extra: impl FnOnce(&mut Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<ImportOutcome> {
        let mut import = self.begin_import(&room.room_id, room.version)?;
        import.add(room.auth_chain.into_iter().map(|event| (event, false)).collect())?;
        import.add(room.state.into_iter().map(|event| (event, true)).collect())?;
        import.finish(room.join, extra)
    }
}

impl RoomImport<'_> {
    /// Stores some of the room's events: format, signatures, hash, and the auth rules against their auth events were
    /// checked. Those of the state before our join come with `true`, others only have these rest on them.
    pub fn add(&mut self, events: Vec<(VerifiedPdu, bool)>) -> Result<()> {
        let room = self.room;
        let mut rest = events;
        while !rest.is_empty() {
            let later = rest.split_off(rest.len().min(EVENTS_PER_WRITE_MAX));
            // What comes last waits for the disk, and with it for these.
            let staged = self.hs.store.write_lightly(move |tx| tx.stage_events(room, &rest))?;
            self.staged.state.extend(staged.state);
            self.staged.rejected.extend(staged.rejected);
            rest = later;
        }
        Ok(())
    }

    /// Makes this server resident: the room's state that of the events so far, our join on top of it, and what
    /// `extra` does, all in one transaction.
    pub fn finish(
        self,
        join: VerifiedPdu,
        extra: impl FnOnce(&mut Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<ImportOutcome> {
        let Self { hs, room, room_id, staged } = self;
        let events = staged.state.len();
        let outcome = hs.store.write(move |tx| {
            if tx.room_by_key(room)?.resident {
                return Ok(ImportOutcome::WasResident);
            }
            become_resident(tx, room, staged, &join)?;
            tx.hasten_pending_in(room)?;
            extra(tx)?;
            Ok(ImportOutcome::BecameResident)
        })?;
        if outcome == ImportOutcome::BecameResident {
            log::info!("{room_id} is a room of this server now, with {events} events of state");
        }
        Ok(outcome)
    }
}

/// Makes the state of the answer the room's state, and puts the join on top of it.
fn become_resident(tx: &mut Tx<'_>, room: RoomKey, staged: StagedRoom, join: &VerifiedPdu) -> Result<()> {
    if matches!(tx.event_status(join.event_id())?, Some((_, false))) {
        return Err(Error::forbidden("The join is an old one"));
    }
    let at = tx.next_stream();
    let snapshot = tx.import_state(room, staged, at)?;
    let mut missing = Vec::new();
    for id in join.prev_events() {
        if !matches!(tx.event_status(id)?, Some((_, false))) {
            missing.push(id.clone());
        }
    }
    tx.forget_late_extremities(room)?;
    let (room, old_extremities) = (tx.room_by_key(room)?, tx.extremity_keys(room)?);
    tx.append(&Append {
        room: &room,
        pdu: join,
        status: Status::Accepted,
        outgoing: false,
        state_before: StateRef::snapshot(snapshot),
        // What the room is to us rests on it.
        given: false,
        old_extremities: &old_extremities,
        kept_extremities: Vec::new(),
        overtakes: Vec::new(),
        becomes_extremity: true,
        current: Current::AfterThis,
        missing,
        history: None,
    })?;
    Ok(())
}
