//! `GET /initialSync`: where the user is, as a client of the days before `/sync` begins; it goes on with `/events`.

use std::collections::{BTreeMap, BTreeSet, HashSet};

use serde::Serialize;

use super::body::{AnswerBody, BodyWriter};
use super::state::{self, StateNeeded};
use super::{SyncContext, SyncRequest, Syncing, TIMELINE_MAX, global_account_data, presence};
use crate::error::Result;
use crate::protocol::filter::{EventFilter, Filter};
use crate::protocol::json::JsonList;
use crate::protocol::pdu::Membership;
use crate::protocol::remote_membership::{RemoteMembership, SyncSection};
use crate::protocol::{RoomId, UserId};
use crate::service::rooms::bundles::write_with_bundles;
use crate::service::rooms::client_format::{self, Json};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::latest;
use crate::service::rooms::view::Access;
use crate::store::Place;
use crate::store::accounts::account_data::AccountData;
use crate::store::rooms::memberships::RoomOfUser;

/// One room.
#[derive(Serialize)]
struct InitialRoom<'r> {
    room_id: &'r RoomId,
    membership: &'static str,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite: Option<Json>,
    #[serde(flatten)]
    inside: Option<Inside>,
}

/// What the user sees of a room that they are in or were in.
#[derive(Serialize)]
struct Inside {
    messages: Messages,
    state: JsonList,
    visibility: &'static str,
    account_data: JsonList,
}

#[derive(Serialize)]
struct Messages {
    #[serde(skip_serializing_if = "Option::is_none")]
    start: Option<String>,
    end: String,
    chunk: Vec<Json>,
}

/// What stands behind the rooms.
#[derive(Serialize)]
struct Rest {
    end: String,
    presence: JsonList,
    account_data: JsonList,
}

impl Syncing<'_> {
    /// Everything as it is now, with so many messages of each room. `archived`: also the rooms that the user has left. Rooms that the
    /// user knocks at have no place in this form.
    pub fn initial(
        &self,
        (user, device): (&UserId, Option<&str>),
        limit: usize,
        archived: bool,
    ) -> Result<AnswerBody> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            let mut filter = Filter::default();
            filter.room.timeline.limit = Some(limit.min(TIMELINE_MAX) as u64);
            let request = SyncRequest::of_older_requests(None, filter);
            let context = SyncContext::of_older_requests(self, db, (user, device), &request, now)?;
            let (mut global, mut of_rooms) = (Vec::new(), BTreeMap::<RoomId, Vec<AccountData>>::new());
            for entry in db.account_data_since(user, 0, context.position)? {
                match &entry.room_id {
                    None => global.push(entry),
                    Some(room) => of_rooms.entry(room.clone()).or_default().push(entry),
                }
            }
            let mut rooms = InitialRooms { body: BodyWriter::default(), count: 0 };
            rooms.body.text("{\"rooms\":[");
            for of_user in db.rooms_of(user)?.iter().filter(|room| !room.forgotten) {
                if !db.has_remote_membership(&of_user.room_id, user)? {
                    let data = of_rooms.get(&of_user.room_id).map_or(&[][..], Vec::as_slice);
                    room_here(&context, of_user, archived, data, &mut rooms)?;
                }
            }
            for row in db.remote_memberships_of(user, 0, archived)? {
                room_elsewhere(&context, &row, archived, &mut rooms)?;
            }
            let mut account_data = JsonList::default();
            let global = global_account_data(&context, &global, true)?;
            global.iter().for_each(|event| account_data.push(event.get()));
            let presence = presence::presence(&context, &[], &BTreeSet::new(), now)?.events;
            let end = PaginationToken::at(context.position).to_string();
            rooms.body.text("],");
            rooms.body.members(&Rest { end, presence, account_data })?;
            Ok(rooms.body.finish())
        })
    }
}

/// The rooms, as they are written.
struct InitialRooms {
    body: BodyWriter,
    count: usize,
}

impl InitialRooms {
    fn push(&mut self, room: &InitialRoom<'_>) -> Result<()> {
        self.body.text(if self.count == 0 { "" } else { "," });
        self.count += 1;
        self.body.value(room)
    }
}

fn room_here(
    context: &SyncContext<'_>,
    of_user: &RoomOfUser,
    archived: bool,
    data: &[AccountData],
    rooms: &mut InitialRooms,
) -> Result<()> {
    let (mut invite, mut inside) = (None, None);
    match of_user.membership {
        Membership::Knock => return Ok(()),
        Membership::Leave | Membership::Ban if !archived => return Ok(()),
        Membership::Invite => {
            let event = context.db.event_by_key(of_user.event)?;
            if !context.shows_invites_of(event.pdu.sender()) {
                return Ok(());
            }
            let room = context.db.room_by_key(of_user.room)?;
            let (view, as_what) = (context.view(&room)?, Some(Membership::Invite));
            invite = Some(client_format::full(&view, &context.format, &event, as_what)?);
        }
        Membership::Join | Membership::Leave | Membership::Ban => inside = seen(context, of_user, data)?,
    }
    let (room_id, membership) = (&of_user.room_id, of_user.membership.as_str());
    rooms.push(&InitialRoom { room_id, membership, invite, inside })
}

/// What the user sees of a room; none if they never were in it.
fn seen(context: &SyncContext<'_>, of_user: &RoomOfUser, data: &[AccountData]) -> Result<Option<Inside>> {
    let room = context.db.room_by_key(of_user.room)?;
    let view = context.view(&room)?;
    let (end, at) = match view.access {
        Access::Joined { .. } => (i64::MAX, context.position),
        Access::Left { at } => (at, at),
        Access::Outsider | Access::Forgotten => return Ok(None),
    };
    let from = if end == i64::MAX { Place::END } else { PaginationToken::at(at).start_back() };
    let limit = context.request.filter.room.timeline.limit_or(0, TIMELINE_MAX);
    let page = latest(&view, &EventFilter::default(), (from, Place::START), limit)?;
    let oldest = page.events.last().and_then(|shown| shown.event.place).map(PaginationToken::before);
    let start = page.stopped_at.map(|stopped| oldest.unwrap_or(stopped).to_string());
    let chunk = write_with_bundles(&view, &context.format, page.events.iter().rev())?;
    let (timeline, start_of_all) = (HashSet::new(), i64::MAX);
    let need = StateNeeded {
        since: None,
        start: start_of_all,
        end,
        timeline: &timeline,
        members: None,
        known_members: None,
    };
    Ok(Some(Inside {
        messages: Messages { start, end: PaginationToken::at(at).to_string(), chunk },
        state: state::lacking(context, &room, &need)?.write(context, &room)?.events,
        visibility: if context.db.is_published(&room.room_id)? { "public" } else { "private" },
        account_data: context.room_account_data(&room.room_id, data)?.events,
    }))
}

/// A room that this server is not in.
fn room_elsewhere(
    context: &SyncContext<'_>,
    row: &RemoteMembership,
    archived: bool,
    rooms: &mut InitialRooms,
) -> Result<()> {
    let (Some(section), Some(event)) = (row.section(), &row.event) else { return Ok(()) };
    let (membership, invite) = match section {
        SyncSection::Invite if context.shows_invites_of(event.sender()) => {
            let event = client_format::of_remote_room(&context.format, event, row.prior())?;
            (Membership::Invite, Some(event))
        }
        SyncSection::Leave if archived => {
            (event.membership().filter(|m| *m == Membership::Ban).unwrap_or(Membership::Leave), None)
        }
        SyncSection::Invite | SyncSection::Knock | SyncSection::Leave => return Ok(()),
    };
    let membership = membership.as_str();
    rooms.push(&InitialRoom { room_id: &row.room_id, membership, invite, inside: None })
}
