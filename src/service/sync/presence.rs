//! `presence`: "the updates to the presence status of other users", those with whom the user shares a room.

use std::collections::HashSet;

use serde_json::json;
use serde_json::value::to_raw_value;

use super::{EventList, SyncContext};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::ephemeral::presence::presence_json;
use crate::store::ephemeral::presence::{Presence, PresenceState};

/// Users who are looked at for one answer, those with the latest news first.
const USERS_MAX: usize = 1000;
/// In a room that the user has just come into, members are told of as far as there are no more than that.
const MEMBERS_MAX: u64 = 500;

/// Who came and went; in an initial sync, who is there; and who is there in the rooms that the user has just come into.
pub fn presence(context: &SyncContext<'_>, newly_joined: &[RoomId], now: Millis) -> Result<EventList> {
    let (mut events, mut told) = (EventList::default(), HashSet::new());
    let filter = &context.request.filter.presence;
    if !filter.wants_type("m.presence") || filter.wants_none() {
        return Ok(events);
    }
    let mut tell = |user: UserId, presence: &Presence| -> Result<()> {
        let wanted = filter.wants_sender(user.as_str()) && !context.ignored.has(user.as_str());
        if user != *context.user && wanted && !told.contains(&user) {
            let content = presence_json(presence, now);
            let event = json!({ "type": "m.presence", "sender": user, "content": content });
            events.push(&to_raw_value(&event).map_err(Error::internal)?);
            told.insert(user);
        }
        Ok(())
    };
    let is_initial = context.request.since.is_none();
    for (user, presence) in context.db.presence_between(context.since(), context.position, USERS_MAX)? {
        if !(is_initial && presence.state == PresenceState::Offline)
            && context.db.share_a_room(context.user, &user)?
        {
            tell(user, &presence)?;
        }
    }
    for room_id in newly_joined {
        let Some(room) = context.db.room(room_id)?.filter(|room| room.joined <= MEMBERS_MAX) else {
            continue;
        };
        for member in context.db.members(room.key, Some(Membership::Join))? {
            let presence = context.db.presence(&member.user_id)?;
            if let Some(presence) = presence.filter(|presence| presence.state != PresenceState::Offline) {
                tell(member.user_id, &presence)?;
            }
        }
    }
    Ok(events)
}
