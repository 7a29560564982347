//! What of a room somebody is shown who is not in it and is to recognise it: who knocks, and who is invited.

use serde_json::value::RawValue;

use crate::error::Result;
use crate::protocol::rooms::stripped_state;
use crate::protocol::{Pdu, UserId};
use crate::store::{Db, Room};

/// The state that somebody who is not in the room is shown to recognise it by, as federation wants it; with an
/// inviter's member event if there is one.
pub(in crate::service) fn stripped_state_for_servers(
    db: &Db<'_>,
    room: &Room,
    inviter: Option<&UserId>,
) -> Result<Vec<Box<RawValue>>> {
    Ok(stripped_state::for_federation(&stripped_events(db, room, inviter)?))
}

/// [`stripped_state_for_servers`] as it stands in the room.
pub(super) fn stripped_events(db: &Db<'_>, room: &Room, inviter: Option<&UserId>) -> Result<Vec<Pdu>> {
    let mut events = Vec::new();
    for event_type in stripped_state::STRIPPED_TYPES {
        events.extend(db.state_event(room.key, event_type, "")?);
    }
    if let Some(inviter) = inviter {
        events.extend(db.state_event(room.key, "m.room.member", inviter.as_str())?);
    }
    Ok(events)
}
