//! What other servers may read of a room: its state at an event, the events that it rests on, and what came before.

use std::collections::HashSet;

use super::Homeserver;
use crate::error::{Error, Result};
use crate::protocol::{EventId, Pdu, ServerName};
use crate::store::{Db, Room, StoredEvent};

/// The room as a server needs it whose user has just joined.
pub struct JoinState {
    /// The state before the join.
    pub state: Vec<Pdu>,
    /// Every event that the state rests on, the state's own among them where others rest on them.
    pub auth_chain: Vec<Pdu>,
    /// The servers in the room, the joining one among them.
    pub servers: Vec<ServerName>,
}

/// Every event that these events rest on: their auth events, and theirs, each once. The events themselves are in it
/// where others of them rest on them.
pub(crate) fn auth_chain<'p>(db: &Db<'_>, of: impl IntoIterator<Item = &'p Pdu>) -> Result<Vec<Pdu>> {
    let (mut seen, mut chain) = (HashSet::new(), Vec::new());
    let mut next: Vec<EventId> = Vec::new();
    for pdu in of {
        next.extend(pdu.auth_events().iter().filter(|id| seen.insert((*id).clone())).cloned());
    }
    while let Some(id) = next.pop() {
        let Some(pdu) = db.pdu(&id)? else { continue };
        next.extend(pdu.auth_events().iter().filter(|id| seen.insert((*id).clone())).cloned());
        chain.push(pdu);
    }
    Ok(chain)
}

/// An event of the room with a place in its graph. Errors: 404 `M_NOT_FOUND`.
fn event_in(db: &Db<'_>, room: &Room, id: &EventId) -> Result<StoredEvent> {
    let event = db.event(id)?.filter(|event| event.room == room.key && !event.is_outlier());
    event.ok_or_else(|| Error::not_found(format!("Could not find event {id}")))
}

impl Homeserver {
    /// The answer to `send_join`: the state before the join, and everything that it rests on.
    pub fn state_for_join(&self, room: &Room, join: &EventId) -> Result<JoinState> {
        self.store.read(|db| {
            let event = event_in(db, room, join)?;
            let snapshot = event.state_before.ok_or_else(|| Error::internal("an event without a state"))?;
            let state = db.state_events_at(snapshot)?;
            let auth_chain = auth_chain(db, state.iter().chain([&event.pdu]))?;
            Ok(JoinState { state, auth_chain, servers: db.resident_servers(room.key)? })
        })
    }
}
