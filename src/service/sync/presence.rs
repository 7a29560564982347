//! `presence`: "the updates to the presence status of other users", those with whom the user shares a room.

use std::collections::{BTreeSet, HashSet};

use serde::Serialize;

use super::{EventList, SyncContext};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::filter::EventFilter;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::outgoing::ToldPresence;
use crate::store::ephemeral::presence::{Presence, PresenceState};
use crate::store::{RoomKey, Store};

/// Users who are looked at for one answer, those with the latest news first.
const USERS_MAX: usize = 1000;
/// In a room that the user has just come into, members are told of as far as there are no more than that.
const MEMBERS_MAX: u64 = 500;
/// Of those who have come into the user's rooms so many are looked at for one answer.
const NEWCOMERS_MAX: usize = 500;

/// Who is told of whose presence.
struct Reader<'r> {
    user: &'r UserId,
    filter: &'r EventFilter,
    ignored: Option<&'r Ignored>,
    now: Millis,
}

#[derive(Serialize)]
struct PresenceEvent<'p> {
    content: ToldPresence<'p>,
    sender: &'p UserId,
    #[serde(rename = "type")]
    event_type: &'static str,
}

impl Reader<'_> {
    fn wants_none(&self) -> bool {
        !self.filter.wants_type("m.presence") || self.filter.wants_none()
    }

    fn wants(&self, user: &UserId) -> bool {
        user != self.user
            && self.filter.wants_sender(user.as_str())
            && !self.ignored.is_some_and(|ignored| ignored.has(user.as_str()))
    }

    fn tell(&self, events: &mut EventList, sender: &UserId, presence: &Presence) -> Result<()> {
        let content = ToldPresence::new(presence, self.now);
        let event = PresenceEvent { content, sender, event_type: "m.presence" };
        events.events.push_with(|out| serde_json::to_writer(out, &event).map_err(Error::internal))
    }
}

/// Who came and went; in an initial sync, who is there; and who is there in the rooms that the user has just come into, and of
/// the `newcomers` to the others.
pub fn presence(
    context: &SyncContext<'_>,
    newly_joined: &[RoomId],
    newcomers: &BTreeSet<UserId>,
    now: Millis,
) -> Result<EventList> {
    let (mut events, mut told) = (EventList::default(), HashSet::new());
    let filter = &context.request.filter.presence;
    let reader = Reader { user: context.user, filter, ignored: Some(&context.ignored), now };
    if reader.wants_none() {
        return Ok(events);
    }
    let mut tell = |user: UserId, presence: &Presence| -> Result<()> {
        if !told.contains(&user) {
            reader.tell(&mut events, &user, presence)?;
            told.insert(user);
        }
        Ok(())
    };
    let is_initial = context.request.since.is_none();
    for (user, presence) in context.db.presence_between(context.since(), context.position, USERS_MAX)? {
        if !(is_initial && presence.state == PresenceState::Offline)
            && reader.wants(&user)
            && context.db.share_a_room(context.user, &user)?
        {
            tell(user, &presence)?;
        }
    }
    let mut tell_if_there = |user: UserId| -> Result<()> {
        if !reader.wants(&user) {
            return Ok(());
        }
        match context.db.presence(&user)?.filter(|presence| presence.state != PresenceState::Offline) {
            Some(presence) => tell(user, &presence),
            None => Ok(()),
        }
    };
    for room_id in newly_joined {
        let Some(room) = context.db.room(room_id)?.filter(|room| room.joined <= MEMBERS_MAX) else {
            continue;
        };
        for member in context.db.members(room.key, Some(Membership::Join))? {
            tell_if_there(member.user_id)?;
        }
    }
    for newcomer in newcomers.iter().take(NEWCOMERS_MAX) {
        tell_if_there(newcomer.clone())?;
    }
    Ok(events)
}

/// Who came and went at positions in `(after, upto]`, out of what is remembered: for one who ignores nobody, and whose rooms
/// nobody joined or left since `after`. Something else may have come into these rooms, which are the user's. None: it has to be
/// looked for.
pub(super) fn remembered_presence(
    store: &Store,
    (user, filter): (&UserId, &EventFilter),
    (after, upto): (i64, i64),
    rooms: &[RoomKey],
    now: Millis,
) -> Result<Option<EventList>> {
    let (mut events, mut looked_at) = (EventList::default(), HashSet::new());
    let reader = Reader { user, filter, ignored: None, now };
    if reader.wants_none() {
        return Ok(Some(events));
    }
    let Some(changes) = store.presences_between(after, upto) else { return Ok(None) };
    let mut own_rooms: Option<Vec<RoomKey>> = None;
    for change in changes.iter().rev() {
        if !looked_at.insert(&change.user) || !reader.wants(&change.user) {
            continue;
        }
        if looked_at.len() > USERS_MAX {
            return Ok(None);
        }
        let Some(theirs) = change.rooms(store)? else { return Ok(None) };
        let is_theirs = |room: &RoomKey| theirs.binary_search(room).is_ok();
        if !rooms.iter().any(is_theirs) {
            if own_rooms.is_none() {
                own_rooms = Some(store.read(|db| db.some_joined_rooms(user, usize::MAX))?);
            }
            if !own_rooms.iter().flatten().any(is_theirs) {
                continue;
            }
        }
        reader.tell(&mut events, &change.user, &change.presence)?;
    }
    Ok(Some(events))
}
