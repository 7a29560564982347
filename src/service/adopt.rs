//! Becoming resident: the room that `send_join` gave us, taken in as a whole.

use std::collections::{BTreeMap, HashSet};

use super::Homeserver;
use super::judge::{self, Hearing, Verdict};
use crate::error::{Error, Result};
use crate::protocol::state_res::StateMap;
use crate::protocol::{Pdu, RoomId, RoomVersion};
use crate::store::append::{Append, Current, StateRef};
use crate::store::{EventKey, Slot, Status, Tx};

/// How many events are stored at once before the room is taken over: others write in between.
const CHUNK: usize = 500;

/// A room as the answer to `send_join` describes it, every event of it checked: format, signatures, hash, and the auth
/// rules against its auth events.
#[derive(Clone)]
pub struct AdoptedRoom {
    /// The room's version.
    pub version: RoomVersion,
    /// The room.
    pub room_id: RoomId,
    /// The events that the state rests on, beside the state itself.
    pub auth_chain: Vec<Pdu>,
    /// The state before the join.
    pub state: Vec<Pdu>,
    /// Our join.
    pub join: Pdu,
}

impl Homeserver {
    /// Takes a room over that one of us has just joined elsewhere. The events of its state are stored beforehand, a few
    /// hundred at a time, which changes nothing that anybody can see; the room becomes ours in one transaction, and
    /// `extra` is in it. If another of us came in meanwhile, the join is taken in as an event like any other.
    pub fn adopt_room(
        &self,
        room: AdoptedRoom,
        extra: impl FnOnce(&mut Tx<'_>) -> Result<()> + Send + 'static,
    ) -> Result<()> {
        let (room_id, version) = (room.room_id.clone(), room.version);
        let key = self.store.write(move |tx| Ok(tx.make_room(&room_id, version)?.key))?;
        let mut seen = HashSet::new();
        let all: Vec<Pdu> = room
            .auth_chain
            .iter()
            .chain(&room.state)
            .filter(|pdu| seen.insert(pdu.event_id().clone()))
            .cloned()
            .collect();
        for chunk in all.chunks(CHUNK) {
            let chunk = chunk.to_vec();
            self.store.write(move |tx| {
                for pdu in &chunk {
                    tx.insert_outlier(key, pdu, Status::Accepted)?;
                }
                Ok(())
            })?;
        }
        self.store.write(move |tx| {
            match tx.room_by_key(key)?.resident {
                true => join_after_all(tx, &room)?,
                false => take_over(tx, &room)?,
            }
            extra(tx)
        })
    }
}

/// Makes the state of the answer the room's state, and puts the join on top of it.
fn take_over(tx: &mut Tx<'_>, adopted: &AdoptedRoom) -> Result<()> {
    let room = tx.room_by_key(tx.known_room(&adopted.room_id)?.key)?;
    if matches!(tx.event_status(adopted.join.event_id())?, Some((_, false))) {
        return Err(Error::forbidden("The join is an old one"));
    }
    let mut rows: Vec<(Slot, EventKey, &Pdu)> = Vec::with_capacity(adopted.state.len());
    let mut slots = HashSet::new();
    for pdu in &adopted.state {
        let Some(state_key) = pdu.state_key() else { continue };
        let slot = tx.make_slot(pdu.event_type(), state_key)?;
        if !slots.insert(slot) {
            return Err(Error::bad_gateway("The room's state has two events of one type and state key"));
        }
        rows.push((slot, tx.insert_outlier(room.key, pdu, Status::Accepted)?, pdu));
    }
    let state: BTreeMap<Slot, EventKey> = rows.iter().map(|(slot, key, _)| (*slot, *key)).collect();
    let snapshot = tx.root_snapshot(&state)?;
    let at = tx.next_stream();
    match room.state {
        None => tx.settle_state(room.key, &rows, at)?,
        // We have been here before: what changed meanwhile is a change like any other.
        Some(old) => {
            let change = tx.state_difference(old, snapshot)?;
            for user in tx.move_current_state(room.key, &change, at, true)? {
                tx.wake_user(&user);
            }
        }
    }
    tx.set_room_state(room.key, snapshot)?;
    let mut missing = Vec::new();
    for id in adopted.join.prev_events() {
        if !matches!(tx.event_status(id)?, Some((_, false))) {
            missing.push(id.clone());
        }
    }
    let (room, old_heads) = (tx.room_by_key(room.key)?, tx.extremities(room.key)?);
    tx.append(&Append {
        room: &room,
        pdu: &adopted.join,
        status: Status::Accepted,
        outgoing: false,
        state_before: StateRef::snapshot(snapshot),
        old_heads: &old_heads,
        kept_heads: Vec::new(),
        becomes_head: true,
        current: Current::AfterThis,
        missing,
        history: None,
    })?;
    Ok(())
}

/// Another of us is in the room by now, and it has a state of its own here.
fn join_after_all(tx: &mut Tx<'_>, adopted: &AdoptedRoom) -> Result<()> {
    let entry = |pdu: &Pdu| {
        let key = (pdu.event_type_arc().clone(), pdu.state_key_arc()?.clone());
        Some((key, pdu.event_id().clone()))
    };
    let given: StateMap = adopted.state.iter().filter_map(entry).collect();
    match judge::judge(tx, &adopted.join, Hearing::live(Some(&given)))? {
        Verdict::Judged(judged) if judged.status == Status::Accepted => {
            super::ingest::store_judged(tx, &adopted.join, *judged, super::ingest::Terms::Relayed).map(drop)
        }
        Verdict::Known(Status::Accepted) => Ok(()),
        Verdict::Refused(e) => Err(e),
        Verdict::Judged(judged) => {
            Err(judged.reason.map_or_else(|| Error::forbidden("The join is not allowed"), Error::from))
        }
        _ => Err(Error::forbidden("The join is not allowed")),
    }
}
