//! `rooms.join`: the rooms that the user is in.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::body::{AnswerBody, BodyWriter};
use super::ephemeral;
use super::state::{self, Overtaken, StateNeeded};
use super::{
    EventList, RoomSections, StateSection, SyncBody, SyncContext, TIMELINE_MAX, TIMELINE_USUAL, Timeline,
};
use crate::error::{Error, Result};
use crate::order::Gather;
use crate::protocol::json::JsonList;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::rooms::bundles::{push_with_bundles, push_without_bundles};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{Page, latest_judging};
use crate::service::rooms::view::{Access, RoomView, membership_known_at};
use crate::store::accounts::account_data::AccountData;
use crate::store::push::unread::{Unread, UnreadCounts};
use crate::store::{EventKey, Place, Room, RoomKey};

/// One room of `rooms.join`.
#[derive(Serialize)]
pub struct JoinedRoom {
    #[serde(skip_serializing_if = "Option::is_none")]
    summary: Option<Summary>,
    #[serde(flatten)]
    state: StateSection,
    timeline: Timeline,
    #[serde(skip_serializing_if = "EventList::is_empty")]
    ephemeral: EventList,
    #[serde(skip_serializing_if = "EventList::is_empty")]
    account_data: EventList,
    unread_notifications: UnreadJson,
    #[serde(skip_serializing_if = "Option::is_none")]
    unread_thread_notifications: Option<BTreeMap<String, UnreadJson>>,
    /// Whether the user was not in the room when the client last looked.
    #[serde(skip)]
    pub(super) newly_joined: bool,
}

impl JoinedRoom {
    /// A room in which nothing changed but what is told here.
    pub(super) fn of_tail(
        state: StateSection,
        timeline: Timeline,
        ephemeral: EventList,
        (unread, by_thread): (&UnreadCounts, bool),
    ) -> Self {
        let (unread_notifications, unread_thread_notifications) = unread_json(unread, by_thread);
        Self {
            summary: None,
            state,
            timeline,
            ephemeral,
            account_data: EventList::default(),
            unread_notifications,
            unread_thread_notifications,
            newly_joined: false,
        }
    }
}

/// How many notifications are unread.
#[derive(Serialize)]
struct UnreadJson {
    highlight_count: u64,
    notification_count: u64,
}

impl From<Unread> for UnreadJson {
    fn from(unread: Unread) -> Self {
        Self { highlight_count: unread.highlights, notification_count: unread.notifications }
    }
}

/// What is unread in a room, with its threads or by thread, as the filter's `unread_thread_notifications` wants it.
fn unread_json(unread: &UnreadCounts, by_thread: bool) -> (UnreadJson, Option<BTreeMap<String, UnreadJson>>) {
    if !by_thread {
        return (unread.in_all().into(), None);
    }
    let threads = unread.threads.iter().map(|(root, unread)| (root.clone(), (*unread).into()));
    (unread.main.into(), Some(threads.gather()).filter(|threads: &BTreeMap<_, _>| !threads.is_empty()))
}

#[derive(Serialize)]
struct Summary {
    #[serde(rename = "m.heroes", skip_serializing_if = "Option::is_none")]
    heroes: Option<Vec<UserId>>,
    #[serde(rename = "m.joined_member_count")]
    joined: u64,
    #[serde(rename = "m.invited_member_count")]
    invited: u64,
}

/// "This should be the first 5 members of the room."
const HEROES_MAX: i64 = 5;

/// `rooms.join`, as it is written.
pub struct JoinedRooms {
    body: BodyWriter,
    count: usize,
    /// Those that the user was not in when the client last looked.
    pub(super) newly_joined: Vec<RoomId>,
}

impl JoinedRooms {
    fn new() -> Self {
        let mut body = BodyWriter::default();
        body.text("{\"rooms\":{\"join\":{");
        Self { body, count: 0, newly_joined: Vec::new() }
    }

    fn push(&mut self, room_id: RoomId, room: &JoinedRoom) -> Result<()> {
        self.body.text(if self.count == 0 { "" } else { "," });
        self.body.value(&room_id)?;
        self.body.text(":");
        self.body.value(room)?;
        self.count += 1;
        if room.newly_joined {
            self.newly_joined.push(room_id);
        }
        Ok(())
    }

    pub(super) fn is_empty(&self) -> bool {
        self.count == 0
    }

    /// The answer that has these rooms, the others, and the rest. There is one of these at least.
    pub(super) fn around(mut self, others: &RoomSections, rest: &SyncBody) -> Result<AnswerBody> {
        self.body.text("}");
        match others.is_empty() {
            true => self.body.text("}"),
            false => {
                self.body.text(",");
                self.body.members(others)?;
            }
        }
        self.body.text(",");
        self.body.members(rest)?;
        Ok(self.body.finish())
    }
}

/// The rooms that the user is in and that have something for the client. `account_data` is what changed, by room.
pub fn collect(
    context: &SyncContext<'_>,
    account_data: &BTreeMap<RoomId, Vec<AccountData>>,
) -> Result<JoinedRooms> {
    let mut rooms = JoinedRooms::new();
    for key in rooms_to_look_at(context, account_data)? {
        // One that was deleted meanwhile is among those that the user has left.
        let Some(room) = context.db.room_with_state(key)? else { continue };
        if !context.wants_room(&room.room_id) {
            continue;
        }
        let data = account_data.get(&room.room_id).map_or(&[][..], Vec::as_slice);
        if let Some(joined) = joined_room(context, &room, data)? {
            rooms.push(room.room_id, &joined)?;
        }
    }
    Ok(rooms)
}

fn rooms_to_look_at(
    context: &SyncContext<'_>,
    account_data: &BTreeMap<RoomId, Vec<AccountData>>,
) -> Result<BTreeSet<RoomKey>> {
    let everything = context.wants_everything();
    // A membership's own change counts by itself: the event that brings us into a room may be no news to the room.
    let mut memberships = match context.has_own_news() {
        true => context.db.rooms_of_since(context.user, if everything { 0 } else { context.since() })?,
        false => Vec::new(),
    };
    memberships.retain(|room| room.membership == Membership::Join);
    let mut rooms: BTreeSet<RoomKey> = memberships.into_iter().map(|room| room.room).gather();
    if !everything {
        match &context.news {
            Some(news) => rooms.extend(news.rooms.iter().map(|changed| changed.room)),
            None => {
                rooms.extend(context.db.joined_rooms_with_news(context.user, context.since())?);
                rooms.extend(context.db.joined_rooms_with_ephemeral(context.user, context.since())?);
                rooms.extend(context.db.rooms_read_since(context.user, context.since())?);
            }
        }
        for room_id in account_data.keys() {
            if let Some(room) = context.db.room(room_id)?
                && context.db.membership(room.key, context.user)? == Some(Membership::Join)
            {
                rooms.insert(room.key);
            }
        }
    }
    Ok(rooms)
}

fn joined_room(context: &SyncContext<'_>, room: &Room, data: &[AccountData]) -> Result<Option<JoinedRoom>> {
    let view = context.view(room)?;
    let Access::Joined { since: joined_at } = view.access else { return Ok(None) };
    let newly_joined = match context.request.since {
        Some(since) if joined_at > since => {
            membership_known_at(context.db, room, context.user, since)? != Some(Membership::Join)
        }
        _ => false,
    };
    let page = timeline_page(context, &view, newly_joined)?;
    let whole = context.wants_everything() || newly_joined;
    let keys: HashSet<EventKey> = page.events.iter().map(|shown| shown.event.key).collect();
    let lazy = context.request.filter.room.state.lazy_load_members;
    let members = lazy.then(|| lazy_members(context, &page, whole));
    // Behind a gap clients begin the room's members anew.
    let may_have_them = !whole && page.stopped_at.is_none();
    let all_again = context.request.filter.room.state.include_redundant_members;
    if lazy {
        let told = page.events.iter().filter(|seen| seen.event.pdu.event_type() == "m.room.member");
        context.told_members.borrow_mut().extend(told.map(|seen| (room.key, seen.event.key)));
        if !may_have_them {
            context.begun_anew.borrow_mut().insert(room.key);
        }
    }
    let need = StateNeeded {
        since: if whole { None } else { context.request.since },
        start: page
            .events
            .last()
            .and_then(|shown| shown.event.place)
            .map_or(i64::MAX, |place| place.stream - 1),
        end: i64::MAX,
        timeline: &keys,
        members: members.as_ref(),
        known_members: (may_have_them && !all_again).then_some(&*context.known_members),
    };
    let mut lacking = state::lacking(context, room, &need)?;
    let summary = if lacking.summary_changed {
        let heroes = heroes(context, room)?;
        if lazy {
            // "The membership events for the heroes MUST be included in the state, unless they are redundant." Who has
            // become one just now need not have spoken or changed since the client looked.
            let heroes = heroes.iter().flatten().cloned().collect();
            lacking.add_members(context, room, &need, &heroes)?;
        }
        Some(Summary { heroes, joined: room.joined, invited: room.invited })
    } else {
        None
    };
    let state = lacking.write(context, room)?;
    let account_data = match newly_joined {
        // What was set before one came in has not been told yet.
        true => {
            let all = context.db.account_data_of_room_since(context.user, &room.room_id, 0)?;
            context.room_account_data(&room.room_id, &all)?
        }
        false => context.room_account_data(&room.room_id, data)?,
    };
    let ephemeral = ephemeral::of_room(context, room, if whole { 0 } else { context.since() }, newly_joined)?;
    let nothing =
        page.events.is_empty() && state.is_empty() && account_data.is_empty() && ephemeral.is_empty();
    // Counts that went down are news too, also where the filter wants nothing of what made them.
    let recounted = || Ok::<_, Error>(context.db.last_read(room.key, context.user)? > context.since());
    if nothing && !whole && page.stopped_at.is_none() && !recounted()? {
        return Ok(None);
    }
    let unread = context.unread.counts(context.db, context.user, room.key, context.position)?;
    let by_thread = context.request.filter.room.timeline.unread_thread_notifications;
    let (unread_notifications, unread_thread_notifications) = unread_json(&unread, by_thread);
    Ok(Some(JoinedRoom {
        summary,
        state: StateSection::new(context.request, state),
        timeline: timeline(context, &view, page, newly_joined)?,
        ephemeral,
        account_data,
        unread_notifications,
        unread_thread_notifications,
        newly_joined,
    }))
}

/// The latest events that the client has not seen, newest first.
fn timeline_page(context: &SyncContext<'_>, view: &RoomView<'_>, newly_joined: bool) -> Result<Page> {
    let filter = &context.request.filter.room.timeline;
    if !filter.wants_room(view.room.room_id.as_str()) {
        return Ok(Page::default());
    }
    let to = match context.request.since {
        Some(since) if !newly_joined => Place::live(since),
        _ => Place::START,
    };
    let mut overtaken = Overtaken::new(context, view, i64::MAX);
    let limit = filter.limit_or(TIMELINE_USUAL, TIMELINE_MAX);
    latest_judging(view, filter, (Place::END, to), limit, &mut |event| overtaken.judge(event))
}

/// A page that was walked backwards, as the timeline of a room: the oldest event first. With bundled aggregations "when the
/// relevant section has a `limited` value of `true`": otherwise the client has what they are made of, and would count it
/// twice. So nothing that comes while a client waits has any, and one answer may do for all.
pub(super) fn timeline(
    context: &SyncContext<'_>,
    view: &RoomView<'_>,
    page: Page,
    newly_joined: bool,
) -> Result<Timeline> {
    let oldest = page.events.last().and_then(|shown| shown.event.place);
    let prev_batch = match (oldest, page.stopped_at) {
        (Some(place), _) => PaginationToken::before(place),
        (None, Some(token)) => token,
        (None, None) => PaginationToken::at(context.since()),
    };
    // A client that was in the room before must not join the new timeline to the one it has.
    let limited = page.stopped_at.is_some() || newly_joined;
    let (mut list, events) = (JsonList::default(), page.events.iter().rev());
    match limited {
        true => push_with_bundles(view, &context.format, events, &mut list)?,
        false => push_without_bundles(view, &context.format, events, &mut list)?,
    }
    Ok(Timeline { events: list, limited, prev_batch: prev_batch.to_string() })
}

/// Whose membership a client with lazy loading needs: those who speak in the timeline, and the user's own when the
/// state is told whole.
fn lazy_members(context: &SyncContext<'_>, page: &Page, whole: bool) -> BTreeSet<UserId> {
    let mut members: BTreeSet<UserId> =
        page.events.iter().map(|shown| shown.event.pdu.sender().clone()).gather();
    if whole {
        members.insert(context.user.clone());
    }
    members
}

/// The heroes of a room that has neither name nor alias to call it by.
fn heroes(context: &SyncContext<'_>, room: &Room) -> Result<Option<Vec<UserId>>> {
    for (event_type, field) in [("m.room.name", "name"), ("m.room.canonical_alias", "alias")] {
        let event = context.db.state_event(room.key, event_type, "")?;
        if event.and_then(|event| event.content_str(field)).is_some_and(|text| !text.is_empty()) {
            return Ok(None);
        }
    }
    // The user is in it.
    let alone = room.joined + room.invited <= 1;
    Ok(Some(context.db.heroes(room.key, context.user, alone, HEROES_MAX)?))
}
