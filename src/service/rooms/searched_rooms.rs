//! Which rooms a search goes through.

use std::collections::{BTreeMap, BTreeSet};

use crate::error::Result;
use crate::order::Gather;
use crate::protocol::filter::EventFilter;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::store::{Db, Room, RoomKey};

/// So many upgrades of a room are followed back.
const PREDECESSORS_MAX: usize = 10;

/// The rooms that are searched: those that the user is in or has left, and not forgotten, as far as the filter wants
/// them. "The search will *not* include rooms that are end to end encrypted."
pub(super) fn searched_rooms(
    db: &Db<'_>,
    user: &UserId,
    filter: &EventFilter,
) -> Result<BTreeMap<RoomKey, Room>> {
    let mut rooms = BTreeMap::new();
    for of_user in db.rooms_of(user)? {
        let was_in = matches!(of_user.membership, Membership::Join | Membership::Leave | Membership::Ban);
        if was_in && !of_user.forgotten {
            rooms.insert(of_user.room_id, of_user.room);
        }
    }
    if let Some(wanted) = &filter.rooms {
        let mut wanted: BTreeSet<RoomId> = wanted.iter().filter_map(|id| RoomId::parse(id).ok()).gather();
        wanted.retain(|id| rooms.contains_key(id));
        // Who searches a room means its conversation, which may have begun in the room that it was upgraded from.
        for id in wanted.clone() {
            wanted.extend(predecessors(db, &rooms, id)?);
        }
        rooms.retain(|id, _| wanted.contains(id));
    }
    let not_wanted: BTreeSet<&str> = filter.not_rooms.iter().map(String::as_str).gather();
    let mut searched = BTreeMap::new();
    for (id, key) in rooms {
        let is_left_out =
            not_wanted.contains(id.as_str()) || db.state_event_key(key, "m.room.encryption", "")?.is_some();
        if !is_left_out && let Some(room) = db.room(&id)? {
            searched.insert(key, room);
        }
    }
    Ok(searched)
}

/// The rooms that a room was upgraded from, as far as they are among these.
fn predecessors(db: &Db<'_>, rooms: &BTreeMap<RoomId, RoomKey>, of: RoomId) -> Result<Vec<RoomId>> {
    let (mut found, mut at) = (Vec::new(), of);
    for _ in 0..PREDECESSORS_MAX {
        let Some(key) = rooms.get(&at) else { break };
        let create = db.state_event(*key, "m.room.create", "")?.map(|create| create.content());
        let before = create.as_ref().and_then(|content| content.get("predecessor")?.get("room_id")?.as_str());
        let Some(before) = before.and_then(|id| RoomId::parse(id).ok()) else { break };
        found.push(before.clone());
        at = before;
    }
    Ok(found)
}
