//! What spaces say of their rooms and rooms of their spaces, rewritten where a room is replaced (MSC4168): "servers SHOULD
//! send a new state event for the old room, removing the `via` field from it, and send a new event of the same type, with
//! `state_key` being the new room ID, and `via` just being the server of the sender user."

use serde_json::{Map, Value, json};

use super::plan::TIES;
use crate::error::Result;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::events::draft::Draft;
use crate::service::events::power_levels::may_send_state;
use crate::store::Db;

/// In so many other rooms the old room is replaced by the new one: each takes two events in the transaction.
const ROOMS_MAX: usize = 20;

/// What one room says of another.
pub(super) struct Tie {
    room: RoomId,
    event_type: &'static str,
    content: Map<String, Value>,
}

/// Whether a tie holds: "The child is only valid if `via` is present", and the same of parents.
pub(super) fn holds(content: &Map<String, Value>) -> bool {
    content.get("via").and_then(Value::as_array).is_some_and(|via| !via.is_empty())
}

/// What the rooms that the user is in say of this room, as far as the user may change it.
pub(super) fn of_others(db: &Db<'_>, user: &UserId, of: &RoomId) -> Result<Vec<Tie>> {
    let mut ties = Vec::new();
    for joined in db.rooms_of(user)?.into_iter().filter(|joined| joined.membership == Membership::Join) {
        if joined.room_id == *of {
            continue;
        }
        for event_type in TIES {
            let Some(event) = db.state_event(joined.room, event_type, of.as_str())? else { continue };
            let room = db.room_by_key(joined.room)?;
            let content = event.content();
            if holds(&content) && room.resident && may_send_state(db, &room, user, event_type)? {
                ties.push(Tie { room: joined.room_id.clone(), event_type, content });
            }
            if ties.len() == ROOMS_MAX {
                return Ok(ties);
            }
        }
    }
    Ok(ties)
}

impl Tie {
    /// The events by which it speaks of the new room and no more of the old one.
    pub(super) fn moved(&self, sender: &UserId, old: &RoomId, new: &RoomId, via: &ServerName) -> [Draft; 2] {
        let draft = |of: &RoomId, content| Draft {
            room: self.room.clone(),
            sender: sender.clone(),
            event_type: self.event_type.to_owned(),
            state_key: Some(of.to_string()),
            content,
            redacts: None,
            origin_server_ts: None,
        };
        let (mut now, mut before) = (self.content.clone(), self.content.clone());
        now.insert("via".to_owned(), json!([via]));
        before.remove("via");
        [draft(new, now), draft(old, before)]
    }
}
