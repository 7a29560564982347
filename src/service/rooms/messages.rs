//! Reading rooms: one event, a page of history, what surrounds an event, the state, the members.

use std::collections::{BTreeMap, BTreeSet};

use serde::{Deserialize, Serialize};
use serde_json::value::{RawValue, to_raw_value};

use super::client_format;
use crate::error::{ErrCode, Error, Result};
use crate::order::Gather;
use crate::protocol::appservice::Appservice;
use crate::protocol::filter::EventFilter;
use crate::protocol::json::{JsonList, read_object};
use crate::protocol::pdu::Membership;
use crate::protocol::{EventId, RoomId, UserId};
use crate::service::rooms::Rooms;
use crate::service::rooms::bundles::write_with_bundles;
use crate::service::rooms::client_format::{ClientFormat, Json};
use crate::service::rooms::history::ReadableRange;
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{Page, TimelineEvent, walk};
use crate::service::rooms::view::{Access, RoomView, readable_room};
use crate::store::{Db, EventKey, Status, StoredEvent};

/// Events in an answer of `/messages` whatever the client asks for.
pub(super) const PAGE_MAX: usize = 500;
/// Events around an event in an answer of `/context` whatever the client asks for.
const CONTEXT_MAX: usize = 100;

/// What a page tells of memberships with lazy loading: more than anybody's, whose names are not made to be long.
const MEMBERS_BYTES_MAX: usize = 1 << 20;

/// What a client asks of `/messages`.
pub struct MessagesRequest {
    /// Where to begin; the end or the start of the history if not said.
    pub from: Option<PaginationToken>,
    /// Where to stop.
    pub to: Option<PaginationToken>,
    /// From newer to older.
    pub backwards: bool,
    /// At most so many events.
    pub limit: usize,
    /// Which events.
    pub filter: EventFilter,
}

/// A page of history.
#[derive(Serialize)]
pub struct Messages {
    pub(super) start: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) end: Option<String>,
    pub(super) chunk: Vec<Json>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) state: Vec<Json>,
}

/// What surrounds an event.
#[derive(Serialize)]
pub struct EventContext {
    start: String,
    end: String,
    event: Json,
    events_before: Vec<Json>,
    events_after: Vec<Json>,
    state: Vec<Json>,
}

/// Which members of a room a client asks for.
#[derive(Default)]
pub struct MembersRequest {
    /// As of when; now if not said.
    pub at: Option<PaginationToken>,
    /// Those with this membership,
    pub membership: Option<Membership>,
    /// or those without that one.
    pub not_membership: Option<Membership>,
}

impl MembersRequest {
    /// "Either the membership *is* the same as `membership` **or** *is not* the same as `not_membership`."
    fn wants(&self, membership: Membership) -> bool {
        match (self.membership, self.not_membership) {
            (None, None) => true,
            (is, is_not) => is == Some(membership) || is_not.is_some_and(|not| not != membership),
        }
    }
}

impl Rooms<'_> {
    pub(super) fn view<T>(
        &self,
        user: &UserId,
        room: &RoomId,
        read: impl FnOnce(&Db<'_>, &RoomView<'_>) -> Result<T>,
    ) -> Result<T> {
        self.store.read(|db| {
            let room = readable_room(db, room)?;
            read(db, &RoomView::new(db, &room, user)?)
        })
    }

    /// One event. Errors: 404 `M_NOT_FOUND`, also if the user may not see it.
    pub fn event_for(&self, format: &ClientFormat<'_>, room: &RoomId, event: &EventId) -> Result<Json> {
        let found = self.view(format.user, room, |_, view| {
            let Some((event, membership)) = visible_event(view, event)? else { return Ok(None) };
            Ok(write_with_bundles(view, format, [&TimelineEvent { event, membership }])?.pop())
        });
        found_or_not(found)
    }

    /// `GET /events/{eventId}`: [`Self::event_for`], in whatever room the event is. Errors: as there, also for an event that
    /// nobody here knows.
    pub fn event_of_any_room(&self, format: &ClientFormat<'_>, event: &EventId) -> Result<Json> {
        let room = self
            .store
            .read(|db| db.event(event)?.map(|found| Ok(db.room_by_key(found.room)?.room_id)).transpose());
        self.event_for(format, &found_or_not(room)?, event)
    }

    /// `GET /context`: at most `limit` events around the one that is asked for; none if its state were larger than `most`
    /// bytes. Errors: 404 `M_NOT_FOUND`, also if the user may not see the event.
    pub fn context(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        event: &EventId,
        (limit, most): (usize, usize),
        filter: &EventFilter,
    ) -> Result<Option<EventContext>> {
        let found = self.view(format.user, room, |db, view| {
            let Some((event, membership)) = visible_event(view, event)? else { return Ok(None) };
            let Some(place) = event.place else { return Ok(None) };
            let limit = limit.min(CONTEXT_MAX);
            // Where something is lacking they end, and the client is given it by `/messages`.
            let around = |backwards, limit| {
                let range = ReadableRange::beside(view, place, backwards);
                walk(view, filter, self.up_to_gap(db, view, range, &[])?.0.0, limit)
            };
            let (before, after) = (around(true, limit / 2)?, around(false, limit - limit / 2)?);
            let first = before.events.last().and_then(|shown| shown.event.place).unwrap_or(place);
            let last = after.events.last().map_or(&event, |shown| &shown.event);
            let state = state_around((db, view, format), filter, last, [&before, &after], (&event, most))?;
            let Some(state) = state else { return Ok(Some(None)) };
            Ok(Some(Some(EventContext {
                start: PaginationToken::before(first).to_string(),
                end: PaginationToken::after(last.place.unwrap_or(place)).to_string(),
                state,
                events_before: write_with_bundles(view, format, &before.events)?,
                events_after: write_with_bundles(view, format, &after.events)?,
                event: write_with_bundles(view, format, [&TimelineEvent { event, membership }])?
                    .pop()
                    .ok_or_else(|| Error::internal("an event went missing"))?,
            })))
        });
        found_or_not(found)
    }

    /// The state events of a room as the user may know them, now or as of when they left: a JSON array, none if it were
    /// larger than `most` bytes. Errors: 403 `M_FORBIDDEN`.
    pub fn room_state(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        most: usize,
    ) -> Result<Option<Vec<u8>>> {
        self.view(format.user, room, |db, view| {
            view.require_readable()?;
            let keys: BTreeSet<EventKey> = match view.access {
                Access::Left { at } => db.state_rows_as_of(view.room.key, at)?.into_values().collect(),
                _ => db.current_state_keys(view.room.key, true)?.into_iter().collect(),
            };
            let mut list = JsonList::default();
            db.each_event(keys, |row| {
                if list.len() > most {
                    return Ok(());
                }
                list.push_with(|out| client_format::push_state(out, &view.erasure, format, view.room, &row))
            })?;
            Ok((list.len() <= most).then(|| list.finish()))
        })
    }

    /// One state event, in content or whole. Errors: 403 `M_FORBIDDEN`, 404 `M_NOT_FOUND`.
    pub fn state_entry(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        event_type: &str,
        state_key: &str,
        whole: bool,
    ) -> Result<Vec<u8>> {
        self.view(format.user, room, |db, view| {
            view.require_readable()?;
            let key = db.state_event_as_of(view.room.key, event_type, state_key, view.present())?;
            let key = key.ok_or_else(|| Error::not_found("The room has no such state"))?;
            let event = db.event_by_key(key)?;
            if client_format::is_void(&event) {
                return Err(Error::not_found("The room has no such state"));
            }
            Ok(match whole {
                true => client_format::full(view, format, &event, None)?.get().as_bytes().to_vec(),
                false => view.erasure.shown(&event)?.content_raw().as_bytes().to_vec(),
            })
        })
    }

    /// The membership events of a room: a JSON array, none if it were larger than `most` bytes. Errors: 403
    /// `M_FORBIDDEN`, also for a time that the user may not see.
    pub fn members(
        &self,
        format: &ClientFormat<'_>,
        room: &RoomId,
        request: &MembersRequest,
        most: usize,
    ) -> Result<Option<Vec<u8>>> {
        self.view(format.user, room, |db, view| {
            view.require_readable()?;
            let at = match request.at {
                Some(at) => view.state_position(at.0.stream)?,
                None => view.present(),
            };
            let mut list = JsonList::default();
            if at == i64::MAX {
                db.each_member(view.room.key, None, |_, membership, row| {
                    match list.len() <= most && request.wants(membership) {
                        true => list.push_with(|out| {
                            client_format::push_state(out, &view.erasure, format, view.room, &row)
                        }),
                        false => Ok(()),
                    }
                })?;
            } else {
                for key in db.state_rows_as_of(view.room.key, at)?.into_values() {
                    if list.len() > most {
                        break;
                    }
                    let event = db.event_by_key(key)?;
                    if event.pdu.membership().is_some_and(|membership| request.wants(membership)) {
                        let event = client_format::state(&view.erasure, format, &event)?;
                        list.push(event.get());
                    }
                }
            }
            Ok((list.len() <= most).then(|| list.finish()))
        })
    }

    /// Who is joined, with the profile of their membership: the answer's JSON, none if it were larger than `most` bytes.
    /// Errors: 403 `M_FORBIDDEN` for those who are not joined.
    pub fn joined_members(
        &self,
        (user, service): (&UserId, Option<&Appservice>),
        room: &RoomId,
        most: usize,
    ) -> Result<Option<Vec<u8>>> {
        self.view(user, room, |db, view| {
            // "Unless it is an Application Service in which case any of the AS's users must be in the room."
            view.require_joined().or_else(|e| {
                let locals =
                    service.map(|_| db.joined_local_users(view.room.key)).transpose()?.unwrap_or_default();
                let is_there = service.is_some_and(|service| locals.iter().any(|user| service.may_be(user)));
                if is_there { Ok(()) } else { Err(e) }
            })?;
            let mut joined: BTreeMap<String, Box<RawValue>> = BTreeMap::new();
            let mut bytes = 0;
            db.each_member(view.room.key, Some(Membership::Join), |user, _, row| {
                if bytes <= most && UserId::parse(user).is_ok() {
                    let profile = to_raw_value(&profile_in(row.json)).map_err(Error::internal)?;
                    bytes += user.len() + profile.get().len();
                    joined.insert(user.to_owned(), profile);
                }
                Ok(())
            })?;
            if bytes > most {
                return Ok(None);
            }
            serde_json::to_vec(&JoinedMembers { joined }).map(Some).map_err(Error::internal)
        })
    }
}

#[derive(Serialize)]
struct JoinedMembers {
    joined: BTreeMap<String, Box<RawValue>>,
}

/// A profile as `joined_members` tells it.
#[derive(Default, Deserialize, Serialize)]
struct Profile<'e> {
    #[serde(borrow, default, skip_serializing_if = "Option::is_none")]
    avatar_url: Option<&'e RawValue>,
    #[serde(borrow, default, skip_serializing_if = "Option::is_none", rename(deserialize = "displayname"))]
    display_name: Option<&'e RawValue>,
}

/// The profile in a membership event.
fn profile_in(json: &str) -> Profile<'_> {
    #[derive(Deserialize)]
    struct Event<'e> {
        #[serde(borrow)]
        content: Profile<'e>,
    }
    let mut profile = read_object(json.as_bytes()).map(|event: Event<'_>| event.content).unwrap_or_default();
    let is_text = |value: &&RawValue| value.get().starts_with('"');
    profile.avatar_url = profile.avatar_url.filter(is_text);
    profile.display_name = profile.display_name.filter(is_text);
    profile
}

/// Who is not in the room is told as little as who asks for an event, or in a room, that does not exist.
pub(super) fn found_or_not<T>(found: Result<Option<T>>) -> Result<T> {
    let not_found = || Error::not_found("Event not found.");
    match found {
        Err(error) if matches!(error.errcode(), ErrCode::Forbidden | ErrCode::NotFound) => Err(not_found()),
        found => found?.ok_or_else(not_found),
    }
}

/// An event that the user may see, with what they were at it.
pub(super) fn visible_event(view: &RoomView<'_>, id: &EventId) -> Result<Option<(StoredEvent, Membership)>> {
    let Some(event) = view.db().event(id)? else { return Ok(None) };
    if event.room != view.room.key || event.status != Status::Accepted || event.is_outlier() {
        return Ok(None);
    }
    let access = view.look(&event)?;
    Ok(access.visible.then_some((event, access.membership)))
}

/// The membership events of those who speak in a page, as of its newest event.
pub(super) fn lazy_members(view: &RoomView<'_>, format: &ClientFormat<'_>, page: &Page) -> Result<Vec<Json>> {
    let newest = page.events.iter().filter_map(|shown| shown.event.place).max();
    let at = newest.map_or(view.present(), |place| place.stream);
    let senders: BTreeSet<&UserId> = page.events.iter().map(|shown| shown.event.pdu.sender()).gather();
    let (mut members, mut bytes) = (Vec::new(), 0);
    for sender in senders {
        if bytes >= MEMBERS_BYTES_MAX {
            break;
        }
        let key = view.db().state_event_as_of(view.room.key, "m.room.member", sender.as_str(), at)?;
        if let Some(key) = key {
            let member = client_format::state(&view.erasure, format, &view.db().event_by_key(key)?)?;
            bytes += member.get().len();
            members.push(member);
        }
    }
    Ok(members)
}

/// The state at the last event of a context; with lazy loading only the memberships of those who speak. None if it were
/// larger than `most` bytes.
fn state_around(
    (db, view, format): (&Db<'_>, &RoomView<'_>, &ClientFormat<'_>),
    filter: &EventFilter,
    last: &StoredEvent,
    pages: [&Page; 2],
    (event, most): (&StoredEvent, usize),
) -> Result<Option<Vec<Json>>> {
    let senders: BTreeSet<&UserId> = pages
        .iter()
        .flat_map(|page| page.events.iter().map(|shown| shown.event.pdu.sender()))
        .chain([event.pdu.sender()])
        .gather();
    let rows = match last.state_after {
        Some(state) => db.state_rows_at(state)?,
        None => db.state_rows_as_of(view.room.key, last.place.map_or(i64::MAX, |place| place.stream))?,
    };
    let (mut state, mut bytes) = (Vec::new(), 0);
    for key in rows.into_values() {
        let entry = db.event_by_key(key)?;
        let lazy = filter.lazy_load_members && entry.pdu.event_type() == "m.room.member";
        let speaks = || entry.pdu.state_key().is_some_and(|user| senders.iter().any(|s| s.as_str() == user));
        if filter.wants(&entry.pdu) && (!lazy || speaks()) {
            let entry = client_format::state(&view.erasure, format, &entry)?;
            bytes += entry.get().len();
            if bytes > most {
                return Ok(None);
            }
            state.push(entry);
        }
    }
    Ok(Some(state))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_two_membership_filters_are_joined_by_or() {
        use Membership::{Ban, Invite, Join, Leave};
        let both = MembersRequest { membership: Some(Join), not_membership: Some(Leave), at: None };
        assert!(both.wants(Join) && both.wants(Ban) && both.wants(Invite) && !both.wants(Leave));
        let is = MembersRequest { membership: Some(Join), ..Default::default() };
        assert!(is.wants(Join) && !is.wants(Invite));
        let is_not = MembersRequest { not_membership: Some(Join), ..Default::default() };
        assert!(!is_not.wants(Join) && is_not.wants(Invite));
        assert!(MembersRequest::default().wants(Leave));
    }
}
