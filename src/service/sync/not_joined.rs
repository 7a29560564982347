//! `rooms.invite`, `rooms.knock` and `rooms.leave`: the rooms that the user is not in.
//!
//! Some are rooms of this server, whose state says what the user is; the others are remote memberships.

use std::collections::{BTreeMap, HashSet};

use serde::Serialize;
use serde_json::json;
use serde_json::value::to_raw_value;

use super::state;
use super::{
    EventList, RoomSections, StateSection, SyncContext, TIMELINE_MAX, TIMELINE_USUAL, Timeline, joined,
};
use crate::error::{Error, Result};
use crate::protocol::filter::EventFilter;
use crate::protocol::json::JsonList;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{RemoteMembership, SyncSection};
use crate::protocol::rooms::stripped_state::strip;
use crate::protocol::{Pdu, RoomId};
use crate::service::membership::stripped_state_for_client;
use crate::service::rooms::client_format;
use crate::service::rooms::client_format::Json;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{Page, TimelineEvent, latest_judging};
use crate::service::rooms::view::{Access, RoomView, membership_known_at};
use crate::service::sync::state::{Overtaken, StateNeeded};
use crate::store::accounts::account_data::AccountData;
use crate::store::rooms::memberships::RoomOfUser;
use crate::store::{EventKey, Place};

/// One room of `rooms.invite`.
#[derive(Serialize)]
pub struct InvitedRoom {
    invite_state: EventList,
}

/// One room of `rooms.knock`.
#[derive(Serialize)]
pub struct KnockedRoom {
    knock_state: EventList,
}

/// One room of `rooms.leave`.
#[derive(Serialize)]
pub struct LeftRoom {
    #[serde(flatten)]
    state: StateSection,
    timeline: Timeline,
    #[serde(skip_serializing_if = "EventList::is_empty")]
    account_data: EventList,
}

/// Adds the rooms that the user is not in and that have something for the client.
pub fn collect(
    context: &SyncContext<'_>,
    account_data: &BTreeMap<RoomId, Vec<AccountData>>,
    rooms: &mut RoomSections,
) -> Result<()> {
    if !context.has_own_news() {
        return Ok(());
    }
    let of_user = context.db.rooms_of_since(context.user, context.since())?;
    for of_user in of_user.into_iter().filter(|of_user| of_user.membership != Membership::Join) {
        // Of a room that is forgotten only those hear who may have it: that they have it no more.
        if (of_user.forgotten && context.request.since.is_none())
            || !context.wants_room(&of_user.room_id)
            // Of a room that we are not in (any more) a remote membership knows more than the state that was left
            // behind.
            || context.db.has_remote_membership(&of_user.room_id, context.user)?
        {
            continue;
        }
        let room_id = of_user.room_id.clone();
        match of_user.membership {
            Membership::Join => {}
            Membership::Invite => {
                let invite = context.db.pdu_by_key(of_user.event)?;
                if !context.shows_invites_of(invite.sender()) {
                    continue;
                }
                rooms.invite.insert(
                    room_id,
                    InvitedRoom { invite_state: EventList::of(&stripped(context, &of_user)?) },
                );
            }
            Membership::Knock => {
                rooms.knock.insert(
                    room_id,
                    KnockedRoom { knock_state: EventList::of(&stripped(context, &of_user)?) },
                );
            }
            Membership::Leave | Membership::Ban => {
                let data = account_data.get(&room_id).map_or(&[][..], Vec::as_slice);
                if let Some(left) = left_room(context, &of_user, data)? {
                    rooms.leave.insert(room_id, left);
                }
            }
        }
    }
    let with_left = context.request.since.is_some() || context.request.filter.room.include_leave;
    if context.request.since.is_some() {
        for (room_id, _) in context.db.rooms_lost_since(context.user, context.since())? {
            if context.wants_room(&room_id) && !context.db.has_remote_membership(&room_id, context.user)? {
                rooms.leave.insert(room_id, lost_room(context));
            }
        }
    }
    for row in context.db.remote_memberships_of(context.user, context.since(), with_left)? {
        if context.wants_room(&row.room_id) {
            remote(context, &row, with_left, rooms)?;
        }
    }
    Ok(())
}

/// The stripped state of a room of this server, as those invited or knocking get it.
pub(super) fn stripped(context: &SyncContext<'_>, of_user: &RoomOfUser) -> Result<Vec<Json>> {
    let stored = context.db.event_by_key(of_user.event)?;
    let room = context.db.room_by_key(of_user.room)?;
    let previous = context.view(&room)?.replaced(&stored)?;
    let previous = previous.map(|key| context.db.pdu_by_key(key)).transpose()?;
    let mut events = stripped_state_for_client(context.db, of_user.room, &stored, context.user)?;
    events.push(own_event(&stored.pdu, previous.as_ref())?);
    Ok(events)
}

/// The user's own invite or knock among stripped state. An invite that answers a knock says so in `unsigned`, as the
/// member event of a room does: that is how a client knows that it may join without asking.
fn own_event(own: &Pdu, previous: Option<&Pdu>) -> Result<Json> {
    let mut shown = strip(own);
    let knock = previous.filter(|previous| previous.membership() == Some(Membership::Knock));
    if let Some(knock) = knock.filter(|_| own.membership() == Some(Membership::Invite)) {
        shown["unsigned"] = json!({ "replaces_state": knock.event_id(), "prev_content": knock.content() });
    }
    to_raw_value(&shown).map_err(Error::internal)
}

/// A room that the user left, was kicked or banned from, or whose invite or knock came to nothing.
fn left_room(
    context: &SyncContext<'_>,
    of_user: &RoomOfUser,
    data: &[AccountData],
) -> Result<Option<LeftRoom>> {
    if context.request.since.is_none() && !context.request.filter.room.include_leave {
        return Ok(None);
    }
    let room = context.db.room_by_key(of_user.room)?;
    let view = context.view(&room)?;
    let own =
        TimelineEvent { event: context.db.event_by_key(of_user.event)?, membership: of_user.membership };
    let page = left_page(context, &view, &own)?;
    let keys: HashSet<EventKey> = page.events.iter().map(|shown| shown.event.key).collect();
    let state = match view.access {
        Access::Left { at } => {
            let was_joined = match context.request.since {
                Some(since) => {
                    membership_known_at(context.db, &room, context.user, since)? == Some(Membership::Join)
                }
                None => false,
            };
            // Of a room left before the client last looked only the membership is news.
            let had_it_all = context.request.since.is_some_and(|since| at <= since);
            let need = StateNeeded {
                since: if was_joined || had_it_all { context.request.since } else { None },
                start: first_place(&page).map_or(at, |place| place.stream - 1),
                end: at,
                timeline: &keys,
                members: None,
                known_members: None,
            };
            let mut events = state::lacking(context, &room, &need)?.write(context, &room)?;
            // A ban after the leave is told as well, though it is behind the user's last look into the room.
            let after = memberships_after(context, &view, &page, &own, at)?;
            after.iter().for_each(|event| events.push(event));
            events
        }
        // Who was never in the room gets nothing of its state but what they are there.
        _ => EventList::of(&memberships_after(context, &view, &page, &own, 0)?),
    };
    Ok(Some(LeftRoom {
        state: StateSection::new(context.request, state),
        timeline: joined::timeline(context, &view, page, false)?,
        account_data: context.room_account_data(&room.room_id, data)?,
    }))
}

fn first_place(page: &Page) -> Option<Place> {
    page.events.last().and_then(|shown| shown.event.place)
}

/// The timeline up to the leave, newest first; it has the event that took the user out, unless the client's filter wants
/// no such events there: then that is among the state.
fn left_page(context: &SyncContext<'_>, view: &RoomView<'_>, own: &TimelineEvent) -> Result<Page> {
    let filter = &context.request.filter.room.timeline;
    let mut page = match view.access {
        _ if !filter.wants_room(view.room.room_id.as_str()) => Page::default(),
        Access::Left { at } => {
            let known = match context.request.since {
                Some(since) => membership_known_at(context.db, view.room, context.user, since)?,
                None => None,
            };
            let to = match context.request.since {
                Some(since) if known == Some(Membership::Join) || at <= since => Place::live(since),
                _ => Place::START,
            };
            let from = PaginationToken::at(at).start_back();
            let mut page = Page::default();
            if to < from {
                let mut overtaken = Overtaken::new(context, view, at);
                let limit = filter.limit_or(TIMELINE_USUAL, TIMELINE_MAX);
                page = latest_judging(view, filter, (from, to), limit, &mut |event| overtaken.judge(event))?;
            }
            page
        }
        _ => Page::default(),
    };
    let told = page.events.iter().any(|shown| shown.event.key == own.event.key);
    match own.event.place.filter(|_| !told) {
        Some(place) if filter.wants_none() => {
            page.stopped_at.get_or_insert(PaginationToken::after(place));
        }
        Some(_) if !wants_in_timeline(context, view, own) => {}
        Some(_) => page.events.insert(0, own.clone()),
        None => {}
    }
    Ok(page)
}

/// Whether the event may stand in the timeline, by the client's filter for it.
fn wants_in_timeline(context: &SyncContext<'_>, view: &RoomView<'_>, own: &TimelineEvent) -> bool {
    let filter = &context.request.filter.room.timeline;
    !filter.wants_none() && filter.wants_room(view.room.room_id.as_str()) && filter.wants(&own.event.pdu)
}

/// The events of the timeline after a position, for clients that read their state from nowhere else; the user's own event
/// for all, if it is not in the timeline because the client does not want it there, or because it came with the room's
/// state and has no place in its history.
fn memberships_after(
    context: &SyncContext<'_>,
    view: &RoomView<'_>,
    page: &Page,
    own: &TimelineEvent,
    position: i64,
) -> Result<Vec<Json>> {
    let after = |shown: &&TimelineEvent| match shown.event.place {
        Some(place) => place.stream > position,
        None => position == 0,
    };
    let filter = &context.request.filter.room.state;
    if filter.wants_none() || !filter.wants_room(view.room.room_id.as_str()) {
        return Ok(Vec::new());
    }
    let apart = own.event.place.is_none() || !wants_in_timeline(context, view, own);
    let told = page.events.iter().filter(|_| context.request.state_after).chain(apart.then_some(own));
    let told = told.filter(after).filter(|shown| filter.wants(&shown.event.pdu));
    told.map(|shown| client_format::full(view, &context.format, &shown.event, Some(shown.membership)))
        .collect()
}

/// A room whose state has no word of the user any more: no event says that they are out.
fn lost_room(context: &SyncContext<'_>) -> LeftRoom {
    LeftRoom {
        state: StateSection::new(context.request, EventList::default()),
        timeline: Timeline {
            events: JsonList::default(),
            limited: false,
            prev_batch: PaginationToken::at(context.since()).to_string(),
        },
        account_data: EventList::default(),
    }
}

/// A membership in a room that this server is not in.
fn remote(
    context: &SyncContext<'_>,
    row: &RemoteMembership,
    with_left: bool,
    rooms: &mut RoomSections,
) -> Result<()> {
    let section = match context.request.since {
        Some(_) => row.section_of_who_knows_it(),
        None => row.section(),
    };
    let (Some(section), Some(event)) = (section, &row.event) else { return Ok(()) };
    let room_id = row.room_id.clone();
    match section {
        SyncSection::Invite if !context.shows_invites_of(event.sender()) => {}
        SyncSection::Invite => {
            rooms
                .invite
                .insert(room_id, InvitedRoom { invite_state: EventList::of(&remote_stripped(row, event)?) });
        }
        SyncSection::Knock => {
            rooms
                .knock
                .insert(room_id, KnockedRoom { knock_state: EventList::of(&remote_stripped(row, event)?) });
        }
        SyncSection::Leave if !with_left => {}
        SyncSection::Leave => {
            rooms.leave.insert(room_id, remote_left(context, row, event)?);
        }
    }
    Ok(())
}

pub(super) fn remote_stripped(row: &RemoteMembership, own: &Pdu) -> Result<Vec<Json>> {
    let mut events = row.stripped_state.clone();
    events.push(own_event(own, row.prior())?);
    Ok(events)
}

/// The leave stands in the timeline and in `state_after`, so that every client learns that the invite or knock is over:
/// in either as far as the client's filters want it there.
fn remote_left(context: &SyncContext<'_>, row: &RemoteMembership, event: &Pdu) -> Result<LeftRoom> {
    let written = || client_format::of_remote_room(&context.format, event, row.prior());
    let wants = |filter: &EventFilter| {
        !filter.wants_none() && filter.wants_room(row.room_id.as_str()) && filter.wants(event)
    };
    let filter = &context.request.filter.room;
    let in_timeline = wants(&filter.timeline);
    let in_state = wants(&filter.state) && (!in_timeline || context.request.state_after);
    let state = if in_state { vec![written()?] } else { Vec::new() };
    Ok(LeftRoom {
        state: StateSection::new(context.request, EventList::of(&state)),
        timeline: Timeline {
            events: if in_timeline { EventList::of(&[written()?]).events } else { JsonList::default() },
            limited: filter.timeline.wants_none(),
            prev_batch: PaginationToken::at(context.since()).to_string(),
        },
        account_data: EventList::default(),
    })
}
