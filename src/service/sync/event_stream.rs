//! `GET /events`: the one stream as a client of the days before `/sync` reads it, event by event; and a room that the reader is not in
//! and that anybody may read ("Room Previews").
//!
//! Who may see what is judged as everywhere (`service/rooms/view.rs`). An answer goes on where the last one ended and leaves nothing
//! out: one that would be too long ends sooner.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;
use std::time::Instant;

use serde::Serialize;
use serde_json::json;
use serde_json::value::to_raw_value;

use super::devices::device_lists_between;
use super::ephemeral::{RECEIPTS_MAX, by_thread};
use super::told_members::Told;
use super::{SyncContext, SyncRequest, Syncing, presence};
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::order::{self, Gather};
use crate::protocol::filter::{EventFilter, Filter};
use crate::protocol::json::JsonList;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, UserId};
use crate::service::accounts::ignored_users::Ignored;
use crate::service::membership::blocks_invites;
use crate::service::rooms::bundles::write_without_bundles;
use crate::service::rooms::client_format::{self, ClientFormat, Json};
use crate::service::rooms::pagination_token::PaginationToken;
use crate::service::rooms::timeline::{TimelineEvent, walk};
use crate::service::rooms::view::{Access, RoomView, membership_known_at, readable_room};
use crate::store::rooms::events::TimelineRange;
use crate::store::rooms::memberships::RoomOfUser;
use crate::store::{Db, EventKey, Place, Room, RoomKey};

/// Room events of one answer.
const EVENTS_MAX: usize = 100;
/// Where history was fetched amid what is new it is passed over, so often in one answer.
const PASSED_OVER_MAX: usize = 10;

/// What `/events` answers.
pub struct EventStreamAnswer {
    /// The position that the answer covers: if there is nothing in it, that of the present.
    pub position: i64,
    /// Whether there is nothing new in it.
    pub is_empty: bool,
    /// The body, JSON.
    pub body: Vec<u8>,
}

#[derive(Serialize)]
struct EventStreamBody {
    start: String,
    end: String,
    chunk: JsonList,
}

impl<'c> SyncContext<'c> {
    /// For what was there before `/sync`: every event names its room, state is that of the present, no filter but for how many
    /// messages of each room are wanted.
    pub(super) fn of_older_requests(
        syncing: &'c Syncing<'_>,
        db: &'c Db<'c>,
        (user, device): (&'c UserId, Option<&'c str>),
        request: &'c SyncRequest,
        now: Millis,
    ) -> Result<Self> {
        Ok(Self {
            db,
            user,
            request,
            format: ClientFormat::usual(user, device, now),
            position: db.snapshot_position()?,
            devices_since: None,
            ignored: Arc::new(Ignored::of(db, user)?),
            blocks_invites: blocks_invites(db, user)?,
            unread: &syncing.0.unread_memory,
            news: None,
            known_members: Told::default(),
            told_members: RefCell::default(),
            begun_anew: RefCell::default(),
            ephemeral_changes: OnceCell::new(),
        })
    }
}

impl SyncRequest {
    /// See [`SyncContext::of_older_requests`].
    pub(super) fn of_older_requests(since: Option<i64>, filter: Filter) -> Self {
        Self {
            filter: Arc::new(filter),
            since,
            full_state: false,
            state_after: true,
            older_name: false,
            looked_upto: None,
        }
    }
}

impl Syncing<'_> {
    /// What came after a position: into the rooms of the user, and what else they are told; or into one room, which they need not be
    /// in. Errors: 403 `M_FORBIDDEN` for a room that they may not read.
    pub fn event_stream(
        &self,
        (user, device): (&UserId, Option<&str>),
        from: i64,
        room: Option<&RoomId>,
    ) -> Result<EventStreamAnswer> {
        let now = self.clock.now_ms();
        self.store.read(|db| {
            let position = db.snapshot_position()?;
            // One that this server has not reached, or has lost, is none: nothing is known of what came since.
            let since = if from > position || db.was_lost(from) { position } else { from };
            let request = SyncRequest::of_older_requests(Some(since), Filter::default());
            let context = SyncContext::of_older_requests(self, db, (user, device), &request, now)?;
            let (chunk, end) = match room {
                Some(id) => of_one_room(&context, &readable_room(db, id)?)?,
                None => of_all_rooms(&context, now)?,
            };
            let is_empty = chunk.is_empty() && end == position;
            let token = |at| PaginationToken::at(at).to_string();
            let body = EventStreamBody { start: token(since), end: token(end), chunk };
            let body = serde_json::to_vec(&body).map_err(Error::internal)?;
            Ok(EventStreamAnswer { position: end, is_empty, body })
        })
    }

    /// Has a request of the user be woken by what comes into a room that they are not in, until it ends. To be called before the room
    /// is looked at.
    pub fn watch_room(&self, user: &UserId, room_id: &RoomId, until: Instant) -> Result<()> {
        let room = self.store.read(|db| match db.room(room_id)? {
            Some(room) if db.membership(room.key, user)? != Some(Membership::Join) => Ok(Some(room.key)),
            _ => Ok(None),
        })?;
        if let Some(room) = room {
            self.notifier.watch_room(user, room, until);
        }
        Ok(())
    }
}

/// What was found, and up to where it is all that there is.
struct Found {
    events: Vec<(i64, Json)>,
    keys: HashSet<EventKey>,
    upto: i64,
}

impl Found {
    fn new(context: &SyncContext<'_>) -> Self {
        Self { events: Vec::new(), keys: HashSet::new(), upto: context.position }
    }

    /// The first of them, in the order in which they came, and the position that they end at.
    fn chunk(mut self) -> (JsonList, i64) {
        order::sort_by_key(&mut self.events, |(stream, _)| *stream);
        if let Some((next, _)) = self.events.get(EVENTS_MAX) {
            self.upto = self.upto.min(next - 1);
        }
        let mut chunk = JsonList::default();
        let upto = self.upto;
        self.events.iter().filter(|(at, _)| *at <= upto).for_each(|(_, event)| chunk.push(event.get()));
        (chunk, upto)
    }
}

fn of_one_room(context: &SyncContext<'_>, room: &Room) -> Result<(JsonList, i64)> {
    let view = context.view(room)?;
    view.require_readable()?;
    let mut found = Found::new(context);
    of_room(context, &view, &mut found)?;
    let (mut chunk, end) = found.chunk();
    if matches!(view.access, Access::Joined { .. }) {
        what_is_fleeting(context, room, end, &mut chunk)?;
    }
    Ok((chunk, end))
}

fn of_all_rooms(context: &SyncContext<'_>, now: Millis) -> Result<(JsonList, i64)> {
    let (mut found, since) = (Found::new(context), context.since());
    let memberships = context.db.rooms_of_since(context.user, since)?;
    let joined = memberships.iter().filter(|room| room.membership == Membership::Join).map(|room| room.room);
    let mut rooms: BTreeSet<RoomKey> = joined.gather();
    rooms.extend(context.db.joined_rooms_with_news(context.user, since)?);
    for key in rooms {
        if let Some(room) = context.db.room_with_state(key)? {
            of_room(context, &context.view(&room)?, &mut found)?;
        }
    }
    for of_user in memberships.iter().filter(|room| room.membership != Membership::Join && !room.forgotten) {
        if !context.db.has_remote_membership(&of_user.room_id, context.user)? {
            of_room_not_joined(context, of_user, &mut found)?;
        }
    }
    for row in context.db.remote_memberships_of(context.user, since, true)? {
        let (Some(_), Some(event)) = (row.section(), &row.event) else { continue };
        if event.membership() != Some(Membership::Invite) || context.shows_invites_of(event.sender()) {
            let event = client_format::of_remote_room(&context.format, event, row.prior())?;
            found.events.push((row.stream, event));
        }
    }
    let (mut chunk, end) = found.chunk();
    for key in context.db.joined_rooms_with_ephemeral(context.user, since)? {
        what_is_fleeting(context, &context.db.room_by_key(key)?, end, &mut chunk)?;
    }
    let newcomers = device_lists_between(context.db, context.user, since, context.position, None)?.newcomers;
    chunk.append(presence::presence(context, &[], &newcomers, now)?.events);
    Ok((chunk, end))
}

/// What came into a room that the reader is in, was in, or looks into.
fn of_room(context: &SyncContext<'_>, view: &RoomView<'_>, found: &mut Found) -> Result<()> {
    let since = context.since();
    let was_joined = || {
        let known = membership_known_at(context.db, view.room, context.user, since)?;
        Ok::<_, Error>(known == Some(Membership::Join))
    };
    let (mut from, to) = match view.access {
        // What was before, a client gets with the room.
        Access::Joined { since: joined } if joined > since && !was_joined()? => {
            (Place::live(joined - 1), Place::END)
        }
        Access::Left { at } if was_joined()? => (Place::live(since), PaginationToken::at(at).start_back()),
        Access::Left { .. } => return Ok(()),
        Access::Joined { .. } | Access::Outsider | Access::Forgotten => (Place::live(since), Place::END),
    };
    let mut events: Vec<TimelineEvent> = Vec::new();
    for round in 0.. {
        if from >= to {
            break;
        }
        let range = TimelineRange { from, to, limit: 0, backwards: false };
        let page = walk(view, &EventFilter::default(), range, EVENTS_MAX - events.len())?;
        // History that was fetched meanwhile is none of what came.
        events
            .extend(page.events.into_iter().filter(|shown| shown.event.place.is_some_and(|at| at.sub == 0)));
        let Some(PaginationToken(stopped)) = page.stopped_at else { break };
        if stopped.sub == 0 {
            found.upto = found.upto.min(stopped.stream);
            break;
        }
        if round >= PASSED_OVER_MAX || events.len() >= EVENTS_MAX {
            found.upto = found.upto.min(stopped.stream - 1);
            break;
        }
        from = Place { stream: stopped.stream, sub: -1 };
    }
    let written = write_without_bundles(view, &context.format, &events)?;
    for (shown, event) in events.iter().zip(written) {
        found.keys.insert(shown.event.key);
        found.events.push((shown.event.place.map_or(since, |place| place.stream), event));
    }
    Ok(())
}

/// What the user has become in a room that they are not in, and what came before they left it.
fn of_room_not_joined(context: &SyncContext<'_>, of_user: &RoomOfUser, found: &mut Found) -> Result<()> {
    let own = context.db.event_by_key(of_user.event)?;
    if of_user.membership == Membership::Invite && !context.shows_invites_of(own.pdu.sender()) {
        return Ok(());
    }
    let room = context.db.room_by_key(of_user.room)?;
    let view = context.view(&room)?;
    if matches!(view.access, Access::Left { .. }) {
        of_room(context, &view, found)?;
    }
    if !found.keys.contains(&own.key) {
        let event = client_format::full(&view, &context.format, &own, Some(of_user.membership))?;
        found.events.push((of_user.stream, event));
    }
    Ok(())
}

/// Who types, and has read up to where, in a room that the reader is in.
fn what_is_fleeting(context: &SyncContext<'_>, room: &Room, end: i64, chunk: &mut JsonList) -> Result<()> {
    let since = context.since();
    let Some((changed, typing)) = context.db.ephemeral_change(room.key)? else { return Ok(()) };
    if changed <= since {
        return Ok(());
    }
    let mut push = |event_type: &str, content: serde_json::Value| {
        let event = json!({ "type": event_type, "room_id": room.room_id, "content": content });
        to_raw_value(&event).map(|event| chunk.push(event.get())).map_err(Error::internal)
    };
    if typing > since && typing <= end {
        let mut users = context.db.typing_users(room.key)?;
        users.retain(|user| !context.ignored.has(user));
        push("m.typing", json!({ "user_ids": users }))?;
    }
    let mut receipts = context.db.receipts_between(room.key, (since, end), context.user, RECEIPTS_MAX)?;
    receipts.retain(|receipt| !context.ignored.has(&receipt.user_id));
    by_thread(receipts).into_iter().try_for_each(|content| push("m.receipt", content.into()))
}
