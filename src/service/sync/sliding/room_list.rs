//! A user's rooms in the order of their last events, kept in memory between requests and brought up to date by what changed
//! since: so an answer costs nothing for the rooms in which nothing happened. All of it can be read again at any time.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::{Arc, Mutex, MutexGuard};

use serde_json::Value;

use super::request::{RoomFilters, places_in};
use crate::bounded::{BoundedMap, Worth};
use crate::error::Result;
use crate::locks::lock;
use crate::order::Gather;
use crate::protocol::json::{parse_object, read};
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{RemoteMembership, SyncSection};
use crate::protocol::{Pdu, RoomId, UserId};
use crate::service::rooms::view::{Access, RoomView};
use crate::service::sync::SyncContext;
use crate::store::RoomKey;
use crate::store::rooms::activity::RoomActivity;
use crate::store::rooms::memberships::RoomOfUser;

/// Of so many users the rooms are kept in memory.
const USERS_MAX: usize = 1000;
/// Filters whose rooms are kept for one user.
const VIEWS_MAX: usize = 16;
/// The longest filter, in bytes of what it names, whose rooms are kept.
const VIEW_FILTER_BYTES_MAX: usize = 1024;

/// The rooms of those users whose clients ask.
#[derive(Default)]
pub struct RoomLists(Mutex<BoundedMap<UserId, SharedRoomList, USERS_MAX>>);

/// The rooms of one user, if they are known. To be locked *before* the snapshot is taken that is asked for them, and
/// let go of while that is looked at. So nobody who waits for it keeps a reader of the database from others, and the
/// list is never ahead of a snapshot: whoever had it before took theirs earlier.
pub type SharedRoomList = Arc<Mutex<Option<RoomList>>>;

impl RoomLists {
    /// Forgets the rooms of a user.
    pub fn forget(&self, user: &UserId) {
        lock(&self.0).remove(user);
    }

    /// The rooms of a user.
    pub fn of(&self, user: &UserId) -> SharedRoomList {
        lock(&self.0).get_or_default(user.clone(), |_| Worth::Little).clone()
    }
}

/// Has `f` look at the rooms of a user as of the position of the context.
pub fn look_at<T>(
    mut list: MutexGuard<'_, Option<RoomList>>,
    context: &SyncContext<'_>,
    f: impl FnOnce(&mut RoomList) -> Result<T>,
) -> Result<T> {
    // Nothing of a list that could not be brought up to date is kept.
    let known = match list.take() {
        Some(mut known) => known.advance(context)?.then_some(known),
        None => None,
    };
    let known = match known {
        Some(known) => list.insert(known),
        None => list.insert(RoomList::load(context)?),
    };
    let looked = f(known);
    known.forget_views();
    looked
}

/// What a room is to a user who has it in their lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listed {
    /// They are in it.
    Joined,
    /// They are invited.
    Invited,
    /// They asked to be let in.
    Knocking,
    /// Somebody removed them, and they were in it.
    Removed,
}

/// The place of a room: the latest activity first, "ties need a fixed second key" (rule 4).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
struct Rank(Reverse<i64>, RoomId);

/// One room of the list.
#[derive(Debug, Clone)]
pub struct ListedRoom {
    /// Its row; none of a room that this server is not in.
    pub key: Option<RoomKey>,
    /// What the user is to it.
    pub listed: Listed,
    /// The position of its last event; of a room that the user is not in, that of their membership.
    pub activity: i64,
    /// Whether messages are encrypted; none if nobody can tell.
    encrypted: Option<bool>,
    /// The type of its create event; none if nobody can tell.
    room_type: Option<Option<String>>,
}

/// The rooms that one list has.
struct ListView {
    filters: RoomFilters,
    order: BTreeSet<Rank>,
}

/// The rooms of one user.
pub struct RoomList {
    position: i64,
    rooms: HashMap<RoomId, ListedRoom>,
    ids: HashMap<RoomKey, RoomId>,
    direct: HashSet<String>,
    tags: HashMap<RoomId, Vec<String>>,
    /// All rooms, and then those of each filter.
    views: Vec<ListView>,
    /// The last position at which a room went or fell behind, or became another one to some filter.
    reshaped: i64,
    /// The last position at which one became another one to a filter for tags.
    retagged: i64,
}

impl RoomList {
    fn load(context: &SyncContext<'_>) -> Result<Self> {
        let everything = ListView { filters: RoomFilters::default(), order: BTreeSet::new() };
        let mut list = Self {
            position: context.position,
            rooms: HashMap::new(),
            ids: HashMap::new(),
            direct: HashSet::new(),
            tags: HashMap::new(),
            views: vec![everything],
            reshaped: context.position,
            retagged: context.position,
        };
        list.read_direct(context)?;
        for (room_id, content) in context.db.room_account_data_of_type(context.user, "m.tag")? {
            list.tags.insert(room_id, tags_of(&content));
        }
        let (mut encrypted, mut types) = (HashSet::new(), HashMap::new());
        context.db.state_of_rooms(context.user, "m.room.encryption", |room, _| {
            encrypted.insert(room);
            Ok(())
        })?;
        context.db.state_of_rooms(context.user, "m.room.create", |room, json| {
            types.insert(room, room_type_of(json));
            Ok(())
        })?;
        for (of_user, activity) in context.db.rooms_of_with_activity(context.user)? {
            let room_type = types.remove(&of_user.room);
            let encrypted = Some(encrypted.contains(&of_user.room));
            if let Some(room) = listed_room(context, &of_user, activity, (encrypted, room_type))? {
                list.put(of_user.room_id, room);
            }
        }
        for row in context.db.remote_memberships_of(context.user, 0, true)? {
            list.put_remote(context, &row);
        }
        Ok(list)
    }

    /// Brings the list to the context's position. False if it must be read again as a whole.
    fn advance(&mut self, context: &SyncContext<'_>) -> Result<bool> {
        let (after, upto) = (self.position, context.position);
        if upto <= after {
            return Ok(true);
        }
        let data = context.db.account_data_since(context.user, after, upto)?;
        for entry in &data {
            match (&entry.room_id, entry.event_type.as_str()) {
                // Whose invites are shown has changed.
                (None, "m.ignored_user_list" | "m.invite_permission_config") => return Ok(false),
                (None, "m.direct") => {
                    self.read_direct(context)?;
                    self.views.truncate(1);
                    self.reshaped = upto;
                }
                (Some(room), "m.tag") => {
                    let tags = tags_of(&entry.content);
                    let room = room.clone();
                    self.change(&room, |list| drop(list.tags.insert(room.clone(), tags)));
                    self.retagged = upto;
                }
                _ => {}
            }
        }
        for of_user in context.db.rooms_of_since(context.user, after)? {
            if context.db.has_remote_membership(&of_user.room_id, context.user)? {
                continue;
            }
            let activity = context.db.room_activity(of_user.room)?;
            let encrypted = context.db.state_event_key(of_user.room, "m.room.encryption", "")?.is_some();
            let create = context.db.state_event(of_user.room, "m.room.create", "")?;
            let room_type = create.map(|create| room_type_of(create.json_str()));
            let room = listed_room(context, &of_user, activity, (Some(encrypted), room_type))?;
            let before = self.remove(&of_user.room_id);
            if let Some(room) = room {
                self.put(of_user.room_id.clone(), room);
            }
            self.note_change(before.as_ref(), &of_user.room_id, upto);
        }
        for (room_id, _) in context.db.rooms_lost_since(context.user, after)? {
            if !context.db.has_remote_membership(&room_id, context.user)? {
                let before = self.remove(&room_id);
                self.note_change(before.as_ref(), &room_id, upto);
            }
        }
        for row in context.db.remote_memberships_of(context.user, after, true)? {
            let before = self.remove(&row.room_id);
            self.put_remote(context, &row);
            self.note_change(before.as_ref(), &row.room_id, upto);
        }
        for key in context.db.joined_rooms_with_news(context.user, after)? {
            self.move_up(context, key, upto)?;
        }
        self.position = upto;
        Ok(true)
    }

    /// Something happened in a room that the user is in.
    fn move_up(&mut self, context: &SyncContext<'_>, key: RoomKey, upto: i64) -> Result<()> {
        let Some(room_id) = self.ids.get(&key).cloned() else { return Ok(()) };
        let activity = context.db.room_activity(key)?.stream;
        let encrypted = context.db.state_event_key(key, "m.room.encryption", "")?.is_some();
        let Some(room) = self.rooms.get_mut(&room_id) else { return Ok(()) };
        let before = Rank(Reverse(room.activity), room_id.clone());
        if room.encrypted != Some(encrypted) {
            self.change(&room_id, |list| {
                if let Some(room) = list.rooms.get_mut(&room_id) {
                    (room.encrypted, room.activity) = (Some(encrypted), activity);
                }
            });
            self.reshaped = upto;
            return Ok(());
        }
        room.activity = activity;
        for view in &mut self.views {
            if view.order.remove(&before) {
                view.order.insert(Rank(Reverse(activity), room_id.clone()));
            }
        }
        Ok(())
    }

    /// Changes what filters look at in a room.
    fn change(&mut self, room_id: &RoomId, f: impl FnOnce(&mut Self)) {
        let before = self.rooms.get(room_id).map(|room| Rank(Reverse(room.activity), room_id.clone()));
        if let Some(rank) = before {
            self.take_out(&rank);
        }
        f(self);
        self.place(room_id);
    }

    /// Notes what became of a room that was another one `before`. One that is new, or only has had its place further up
    /// since, shows in a window by what happened in it.
    fn note_change(&mut self, before: Option<&ListedRoom>, room_id: &RoomId, upto: i64) {
        let moved_up = |before: &ListedRoom, now: &ListedRoom| {
            let same = before.listed == now.listed
                && before.encrypted == now.encrypted
                && before.room_type == now.room_type;
            same && now.activity >= before.activity
        };
        let Some(before) = before else { return };
        if !self.rooms.get(room_id).is_some_and(|now| moved_up(before, now)) {
            self.reshaped = upto;
        }
    }

    fn read_direct(&mut self, context: &SyncContext<'_>) -> Result<()> {
        let content = context.db.account_data(context.user, None, "m.direct")?;
        self.direct = content.map(|content| direct_rooms(&content)).unwrap_or_default();
        Ok(())
    }

    fn remove(&mut self, room_id: &RoomId) -> Option<ListedRoom> {
        let room = self.rooms.remove(room_id)?;
        self.take_out(&Rank(Reverse(room.activity), room_id.clone()));
        if let Some(key) = room.key {
            self.ids.remove(&key);
        }
        Some(room)
    }

    fn take_out(&mut self, rank: &Rank) {
        for view in &mut self.views {
            view.order.remove(rank);
        }
    }

    fn put(&mut self, room_id: RoomId, room: ListedRoom) {
        // Of a room that this server has been in a remote membership knows more than the state that was left behind.
        if let Some(known) = self.rooms.get(&room_id) {
            let rank = Rank(Reverse(known.activity), room_id.clone());
            self.take_out(&rank);
        }
        if let Some(key) = room.key {
            self.ids.insert(key, room_id.clone());
        }
        self.rooms.insert(room_id.clone(), room);
        self.place(&room_id);
    }

    fn put_remote(&mut self, context: &SyncContext<'_>, row: &RemoteMembership) {
        let Some(event) = &row.event else { return };
        let listed = match row.section() {
            Some(SyncSection::Invite) if context.shows_invites_of(event.sender()) => Listed::Invited,
            Some(SyncSection::Knock) => Listed::Knocking,
            _ => {
                self.remove(&row.room_id);
                return;
            }
        };
        let (mut encrypted, mut room_type) = (None, None);
        // "For invites judge encryption and type from the stripped state; an unknown value matches neither" (rule 15).
        for entry in &row.stripped_state {
            let Ok(entry) = parse_object(entry.get().as_bytes()) else { continue };
            match entry.get("type").and_then(Value::as_str) {
                Some("m.room.encryption") => encrypted = Some(true),
                Some("m.room.create") => {
                    encrypted.get_or_insert(false);
                    let content = entry.get("content").and_then(|content| content.get("type"));
                    room_type = Some(content.and_then(Value::as_str).map(str::to_owned));
                }
                _ => {}
            }
        }
        let room = ListedRoom { key: None, listed, activity: row.stream, encrypted, room_type };
        self.put(row.room_id.clone(), room);
    }

    /// Puts a room into the lists that want it.
    fn place(&mut self, room_id: &RoomId) {
        let Some(room) = self.rooms.get(room_id) else { return };
        let rank = Rank(Reverse(room.activity), room_id.clone());
        for view in &mut self.views {
            if matches(&view.filters, room_id, room, &self.direct, &self.tags) {
                view.order.insert(rank.clone());
            }
        }
    }

    /// To be called after the last window of a request. Lists of spaces are made anew for each, since what is in them is
    /// not followed.
    fn forget_views(&mut self) {
        if self.views.len() > VIEWS_MAX {
            self.views.truncate(1);
        }
        self.views
            .retain(|view| view.filters.spaces.is_none() && view.filters.bytes() <= VIEW_FILTER_BYTES_MAX);
    }

    /// The list of these filters.
    fn view(&mut self, context: &SyncContext<'_>, filters: &RoomFilters) -> Result<usize> {
        if let Some(known) = self.views.iter().position(|view| view.filters == *filters) {
            return Ok(known);
        }
        let children = match &filters.spaces {
            Some(spaces) => Some(self.children(context, spaces)?),
            None => None,
        };
        let wanted = |room_id: &RoomId, room: &ListedRoom| {
            matches(filters, room_id, room, &self.direct, &self.tags)
                && children.as_ref().is_none_or(|children| children.contains(room_id.as_str()))
        };
        let rooms = self.rooms.iter().filter(|(room_id, room)| wanted(room_id, room));
        let order = rooms.map(|(room_id, room)| Rank(Reverse(room.activity), room_id.clone())).gather();
        self.views.push(ListView { filters: filters.clone(), order });
        Ok(self.views.len() - 1)
    }

    /// The rooms that these spaces have as children, as far as the user is in the spaces.
    fn children(&self, context: &SyncContext<'_>, spaces: &[String]) -> Result<HashSet<String>> {
        let mut children = HashSet::new();
        for space in spaces {
            let Some(room) = self.rooms.get(space.as_str()).filter(|room| room.listed == Listed::Joined)
            else {
                continue;
            };
            let Some(key) = room.key else { continue };
            for (child, event) in context.db.state_of_type(key, "m.space.child")? {
                // A child without `via` is none any more.
                if context.db.pdu_by_key(event)?.content().contains_key("via") {
                    children.insert(child);
                }
            }
        }
        Ok(children)
    }

    /// A list, as a client looks at it.
    pub fn window(
        &mut self,
        context: &SyncContext<'_>,
        filters: &RoomFilters,
        ranges: Option<&[(u64, u64)]>,
    ) -> Result<Window> {
        let view = self.view(context, filters)?;
        let order = &self.views[view].order;
        let count = order.len();
        let ranges = places_in(ranges, count);
        let shown = match ranges.as_slice() {
            // All of it, which need not be gone through.
            [(0, end)] if *end == count => Shown::Whole(view),
            ranges => {
                let (mut rooms, mut order, mut at) = (HashSet::new(), order.iter(), 0);
                for &(start, end) in ranges {
                    let range = order.by_ref().skip(start - at).take(end - start);
                    rooms.extend(range.map(|rank| rank.1.clone()));
                    at = end;
                }
                Shown::Some(rooms)
            }
        };
        let only_news_enter = filters.spaces.is_none() && matches!(ranges.as_slice(), [] | [(0, _)]);
        let by_tags = filters.tags.is_some() || filters.not_tags.is_some();
        Ok(Window { count, shown, only_news_enter, by_tags })
    }

    /// Whether a window shows a room.
    pub fn shows(&self, window: &Window, room_id: &RoomId) -> bool {
        match &window.shown {
            Shown::Some(rooms) => rooms.contains(room_id),
            Shown::Whole(view) => self.rooms.get(room_id).is_some_and(|room| {
                self.views[*view].order.contains(&Rank(Reverse(room.activity), room_id.clone()))
            }),
        }
    }

    /// The rooms of a window.
    pub fn rooms_of(&self, window: &Window) -> Vec<RoomId> {
        match &window.shown {
            Shown::Some(rooms) => rooms.iter().cloned().collect(),
            Shown::Whole(view) => self.views[*view].order.iter().map(|rank| rank.1.clone()).collect(),
        }
    }

    /// The rooms in which something happened after a position: the first ones of the order.
    pub fn moved_since(&self, position: i64) -> impl Iterator<Item = &RoomId> {
        self.views[0].order.iter().take_while(move |rank| rank.0.0 > position).map(|rank| &rank.1)
    }

    /// A room of the list.
    pub fn room(&self, room_id: &RoomId) -> Option<&ListedRoom> {
        self.rooms.get(room_id)
    }

    /// The id of the room with this row.
    pub fn room_id(&self, key: RoomKey) -> Option<&RoomId> {
        self.ids.get(&key)
    }

    /// Whether the user's `m.direct` names the room.
    pub fn is_dm(&self, room_id: &RoomId) -> bool {
        self.direct.contains(room_id.as_str())
    }

    /// Whether a window may show rooms that it did not show at a position, without anything having happened in them:
    /// rooms went since, or became others to some filter.
    pub fn may_show_others(&self, window: &Window, position: i64) -> bool {
        !window.only_news_enter || self.reshaped > position || (window.by_tags && self.retagged > position)
    }
}

/// A list, as a client looks at it.
pub struct Window {
    /// How many rooms the list has.
    pub count: usize,
    shown: Shown,
    /// Whether it shows the first rooms and no others, and nothing of other rooms (a space's) says which these are: then
    /// only what happened in a room can bring it in.
    only_news_enter: bool,
    /// Whether tags say which rooms are in the list.
    by_tags: bool,
}

enum Shown {
    /// The whole list with this number.
    Whole(usize),
    Some(HashSet<RoomId>),
}

fn matches(
    filters: &RoomFilters,
    room_id: &RoomId,
    room: &ListedRoom,
    direct: &HashSet<String>,
    tags: &HashMap<RoomId, Vec<String>>,
) -> bool {
    let RoomFilters {
        is_dm,
        spaces: _,
        is_encrypted,
        is_invited,
        room_types,
        not_room_types,
        tags: with,
        not_tags,
    } = filters;
    let has = |wanted: &Vec<String>| {
        tags.get(room_id).is_some_and(|tags| tags.iter().any(|tag| wanted.contains(tag)))
    };
    is_dm.is_none_or(|wanted| wanted == direct.contains(room_id.as_str()))
        && is_encrypted.is_none_or(|wanted| room.encrypted == Some(wanted))
        && is_invited.is_none_or(|wanted| wanted == (room.listed == Listed::Invited))
        && room_types
            .as_ref()
            .is_none_or(|types| room.room_type.as_ref().is_some_and(|own| types.contains(own)))
        && not_room_types
            .as_ref()
            .is_none_or(|types| room.room_type.as_ref().is_some_and(|own| !types.contains(own)))
        && with.as_ref().is_none_or(has)
        && !not_tags.as_ref().is_some_and(has)
}

/// A room of this server as it stands in a user's lists, if it does: not one that they left by themselves, or were kept
/// out of without having been in. Whether those who are not in it take it to be encrypted is what they could know: what it was
/// when they were invited, knocked or were put out.
fn listed_room(
    context: &SyncContext<'_>,
    of_user: &RoomOfUser,
    activity: RoomActivity,
    (encrypted, room_type): (Option<bool>, Option<Option<String>>),
) -> Result<Option<ListedRoom>> {
    let own = || context.db.pdu_by_key(of_user.event);
    let (listed, until) = match of_user.membership {
        Membership::Join => (Listed::Joined, None),
        Membership::Invite if context.shows_invites_of(own()?.sender()) => {
            (Listed::Invited, Some(of_user.stream))
        }
        Membership::Knock => (Listed::Knocking, Some(of_user.stream)),
        Membership::Leave | Membership::Ban if !of_user.forgotten => {
            match removed_at(context, of_user, &own()?)? {
                None => return Ok(None),
                at => (Listed::Removed, at),
            }
        }
        _ => return Ok(None),
    };
    let encrypted = match until {
        None => encrypted,
        Some(until) => {
            let event = context.db.state_event_as_of(of_user.room, "m.room.encryption", "", until)?;
            Some(event.is_some())
        }
    };
    let activity = match listed {
        Listed::Joined => activity.stream.max(of_user.stream),
        _ => of_user.stream,
    };
    Ok(Some(ListedRoom { key: Some(of_user.room), listed, activity, encrypted, room_type }))
}

/// Up to where somebody saw a room whom somebody else took out of it; none if nobody did, or they were not in it.
fn removed_at(context: &SyncContext<'_>, of_user: &RoomOfUser, own: &Pdu) -> Result<Option<i64>> {
    if own.sender() == context.user {
        return Ok(None);
    }
    let room = context.db.room_by_key(of_user.room)?;
    let view = RoomView::ignoring(context.db, &room, context.user, context.ignored.clone())?;
    Ok(match view.access {
        Access::Left { at } => Some(at),
        _ => None,
    })
}

/// The type in a create event.
fn room_type_of(json: &str) -> Option<String> {
    #[derive(serde::Deserialize)]
    struct Create {
        content: Value,
    }
    let create: Create = read(json.as_bytes()).ok()?;
    create.content.get("type").and_then(Value::as_str).map(str::to_owned)
}

fn tags_of(content: &str) -> Vec<String> {
    let Ok(content) = parse_object(content.as_bytes()) else { return Vec::new() };
    let tags = content.get("tags").and_then(Value::as_object);
    tags.into_iter().flatten().map(|(tag, _)| tag.clone()).collect()
}

/// The rooms that an `m.direct` names. Clients write it, so it need not be what it should be.
fn direct_rooms(content: &str) -> HashSet<String> {
    let Ok(content) = parse_object(content.as_bytes()) else { return HashSet::new() };
    let rooms = content.values().filter_map(Value::as_array).flatten();
    rooms.filter_map(Value::as_str).map(str::to_owned).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_clients_write_of_direct_rooms_is_read_whatever_its_shape() {
        let rooms = direct_rooms(r#"{"@a:s":["!1:s","!2:s",7],"@b:s":"!3:s","@c:s":["!1:s"]}"#);
        assert_eq!(rooms, HashSet::from(["!1:s".to_owned(), "!2:s".to_owned()]));
        assert!(direct_rooms("[]").is_empty() && tags_of(r#"{"tags":7}"#).is_empty());
    }
}
