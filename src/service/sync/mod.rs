//! `GET /sync`: what is new for one client since a position of the stream.
//!
//! Everything is read from one snapshot of the database, whose position becomes `next_batch`: nothing can fall between
//! two answers.
//!
//! - `body`: what an answer is written into;
//! - `joined`: the rooms that the user is in; `ephemeral`: what is fleeting in them.
//! - `not_joined`: invites, knocks and rooms left.
//! - `state`: which state of a room the client lacks.
//! - `sliding`: the same for clients that look at some of their rooms at a time;
//! - `presence`: who is there; `devices`: what is for the client's device alone.
//! - `light`: what many who wait are told at once.
//! - `told_members`: which members a client with lazy loading has.
//! - `unread`: what is unread, remembered from answer to answer.
//! - `filters`: those that clients store here.
//! - `initial`, `event_stream`: what clients used before there was `/sync`, made of the same parts.

mod body;
mod devices;
mod ephemeral;
mod event_stream;
pub mod filters;
mod initial;
mod joined;
pub mod light;
mod not_joined;
mod presence;
pub mod sliding;
mod state;
pub mod told_members;
pub mod unread;

pub use self::body::AnswerBody;
pub use self::devices::DeviceLists;

pub(in crate::service) use devices::device_lists_between;
pub(in crate::service) use ephemeral::by_thread;

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::ops::Deref;
use std::sync::Arc;

use serde::Serialize;
use serde_json::value::{RawValue, to_raw_value};

use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::protocol::filter::Filter;
use crate::protocol::json::{JsonList, read};
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::service::accounts::ignored_users::Ignored;
use crate::service::membership::blocks_invites;
use crate::service::push::rules::{PUSH_RULES, push_rules_content};
use crate::service::rooms::client_format::{ClientFormat, Json};
use crate::service::rooms::view::RoomView;
use crate::service::sync::told_members::{Told, ToldMember};
use crate::service::sync::unread::UnreadMemory;
use crate::store::accounts::account_data::AccountData;
use crate::store::cache::news::News;
use crate::store::{Db, Room, RoomKey};

/// What clients wait for.
#[derive(Clone, Copy)]
pub struct Syncing<'h>(&'h Homeserver);

impl Deref for Syncing<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// What clients wait for.
    pub fn syncing(&self) -> Syncing<'_> {
        Syncing(self)
    }
}

/// Events in a timeline when the filter names no limit.
const TIMELINE_USUAL: usize = 10;
/// Events in a timeline whatever the filter says.
const TIMELINE_MAX: usize = 100;

/// What a client asks of `/sync`.
#[derive(Clone)]
pub struct SyncRequest {
    /// The filter in force.
    pub filter: Arc<Filter>,
    /// The position that the client has seen; none for an initial sync. One that this server has not reached (its
    /// database was put back to an older state) is none.
    pub since: Option<i64>,
    /// Whether all state is wanted, whatever the client has.
    pub full_state: bool,
    /// Whether state is told as of the end of the timeline (`state_after`) instead of its start (`state`).
    pub state_after: bool,
    /// Whether `state_after` is told by the name that it had before it was part of the specification (MSC4222): clients
    /// that ask by the older name read no other.
    pub older_name: bool,
    /// Of a request that waits: up to where it was looked at already, and nothing was found.
    pub looked_upto: Option<i64>,
}

/// What `/sync` answers.
pub struct SyncAnswer {
    /// The position that the answer covers.
    pub position: i64,
    /// Whether there is nothing new in it.
    pub is_empty: bool,
    /// Whether it is the answer to an initial sync.
    pub is_initial: bool,
    /// The body, JSON.
    pub body: AnswerBody,
    /// Whether the user ignores anybody.
    ignores_somebody: bool,
    /// What the answer says of the device's keys.
    one_time_keys: Option<BTreeMap<String, u64>>,
    fallback_keys: Option<Vec<String>>,
}

#[derive(Default, Serialize)]
struct SyncBody {
    next_batch: String,
    #[serde(skip_serializing_if = "EventList::is_empty")]
    account_data: EventList,
    #[serde(skip_serializing_if = "RoomSections::is_empty")]
    rooms: RoomSections,
    #[serde(skip_serializing_if = "EventList::is_empty")]
    presence: EventList,
    #[serde(skip_serializing_if = "EventList::is_empty")]
    to_device: EventList,
    #[serde(skip_serializing_if = "devices::DeviceLists::is_empty")]
    device_lists: devices::DeviceLists,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_one_time_keys_count: Option<BTreeMap<String, u64>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_unused_fallback_key_types: Option<Vec<String>>,
}

/// `{"events": […]}`.
#[derive(Default, Serialize)]
struct EventList {
    events: JsonList,
}

impl EventList {
    fn of(events: &[Json]) -> Self {
        let mut list = JsonList::default();
        events.iter().for_each(|event| list.push(event.get()));
        Self { events: list }
    }

    fn push(&mut self, event: &Json) {
        self.events.push(event.get());
    }

    fn is_empty(&self) -> bool {
        self.events.is_empty()
    }
}

/// The state of one room under the name that the client reads it by.
#[derive(Serialize)]
enum StateSection {
    #[serde(rename = "state")]
    Before(EventList),
    #[serde(rename = "state_after")]
    After(EventList),
    #[serde(rename = "org.matrix.msc4222.state_after")]
    AfterByOlderName(EventList),
}

impl StateSection {
    fn new(request: &SyncRequest, events: EventList) -> Self {
        match (request.state_after, request.older_name) {
            (false, _) => Self::Before(events),
            (true, false) => Self::After(events),
            (true, true) => Self::AfterByOlderName(events),
        }
    }
}

/// The timeline of one room.
#[derive(Serialize)]
struct Timeline {
    events: JsonList,
    limited: bool,
    prev_batch: String,
}

#[derive(Default, Serialize)]
struct RoomSections {
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    join: BTreeMap<RoomId, joined::JoinedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    invite: BTreeMap<RoomId, not_joined::InvitedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    knock: BTreeMap<RoomId, not_joined::KnockedRoom>,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    leave: BTreeMap<RoomId, not_joined::LeftRoom>,
}

impl RoomSections {
    fn is_empty(&self) -> bool {
        self.join.is_empty() && self.invite.is_empty() && self.knock.is_empty() && self.leave.is_empty()
    }
}

/// What every part of one answer needs.
struct SyncContext<'c> {
    db: &'c Db<'c>,
    user: &'c UserId,
    request: &'c SyncRequest,
    format: ClientFormat<'c>,
    position: i64,
    /// From where on device lists are told: the position that the client has seen, or 0 if that is none of this database's. It
    /// begins anew then, and yet has lists of before.
    devices_since: Option<i64>,
    /// Users of whom the client hears nothing but state events.
    ignored: Arc<Ignored>,
    /// Whether the user wants to see no invites.
    blocks_invites: bool,
    /// What was unread when it was last told.
    unread: &'c UnreadMemory,
    /// Where something changed since the client looked; none if it may be anywhere.
    news: Option<News>,
    /// The membership events that a client with lazy loading has.
    known_members: Told,
    /// Those that it is told now.
    told_members: RefCell<HashSet<ToldMember>>,
    /// The rooms of which it begins the members anew.
    begun_anew: RefCell<HashSet<RoomKey>>,
    /// What is fleeting in all of the user's rooms, if all are looked into.
    ephemeral_changes: OnceCell<HashMap<RoomKey, (i64, i64)>>,
}

impl SyncContext<'_> {
    /// The position that the client has seen; 0, which is before everything, in an initial sync.
    fn since(&self) -> i64 {
        self.request.since.unwrap_or(0)
    }

    /// Whether rooms are told whole, whatever changed in them.
    fn wants_everything(&self) -> bool {
        self.request.since.is_none() || self.request.full_state
    }

    /// Whether something may have changed that is the user's alone: their account data, their memberships, what waits
    /// for their devices.
    fn has_own_news(&self) -> bool {
        self.news.as_ref().is_none_or(|news| news.own)
    }

    /// "Servers must not send room invites from ignored users to clients", nor any if the user wants none.
    fn shows_invites_of(&self, sender: &UserId) -> bool {
        !self.blocks_invites && !self.ignored.has(sender.as_str())
    }

    /// A room as the user sees it.
    fn view<'v>(&'v self, room: &'v Room) -> Result<RoomView<'v>> {
        RoomView::ignoring(self.db, room, self.user, self.ignored.clone())
    }

    /// When something fleeting changed last in a room that the user is in, and when who is typing did.
    fn ephemeral_change(&self, room: RoomKey) -> Result<Option<(i64, i64)>> {
        if self.request.since.is_some() {
            return self.db.ephemeral_change(room);
        }
        if self.ephemeral_changes.get().is_none() {
            let _ = self.ephemeral_changes.set(self.db.ephemeral_changes_of_user(self.user)?);
        }
        Ok(self.ephemeral_changes.get().and_then(|changes| changes.get(&room)).copied())
    }

    fn wants_room(&self, room: &RoomId) -> bool {
        self.request.filter.room.wants_room(room.as_str())
    }

    /// The user's account data of a room, as far as the filter wants it.
    fn room_account_data(&self, room: &RoomId, entries: &[AccountData]) -> Result<EventList> {
        let filter = &self.request.filter.room.account_data;
        let mut events = EventList::default();
        if filter.wants_room(room.as_str()) && !filter.wants_none() {
            for entry in entries.iter().filter(|entry| filter.wants_type(&entry.event_type)) {
                events.push(&basic_event(&entry.event_type, &entry.content)?);
            }
        }
        Ok(events)
    }
}

impl Syncing<'_> {
    /// Whether an answer since a position may be large: none, one that there is not yet, and one of which is not remembered
    /// what was news since.
    pub fn may_be_long_ago(&self, user: &UserId, since: Option<i64>) -> bool {
        since.is_none_or(|since| self.store.is_foreign(since) || self.store.news_since(user, since).is_none())
    }

    /// What is new for the user's device, from one snapshot.
    pub fn sync(&self, user: &UserId, device: Option<&str>, request: &SyncRequest) -> Result<SyncAnswer> {
        let now = self.clock.now_ms();
        let lazy = request.filter.room.state.lazy_load_members;
        let known_members = match (device.filter(|_| lazy), request.since) {
            (Some(device), Some(since)) => self.told_members.known(user, device, since),
            _ => Told::default(),
        };
        let known = known_members.clone();
        let (answer, progress, since, told) = self.store.read(|db| {
            let position = db.snapshot_position()?;
            let anew;
            let is_foreign = request.since.is_some_and(|since| since > position || db.was_lost(since));
            let devices_since = if is_foreign { Some(0) } else { request.since };
            let request = if is_foreign {
                anew = SyncRequest { since: None, ..request.clone() };
                &anew
            } else {
                request
            };
            let filter = &request.filter;
            let format = ClientFormat {
                room_ids: false,
                event_format: filter.event_format,
                fields: filter.event_fields.as_deref(),
                ..ClientFormat::usual(user, device, now)
            };
            let (ignored, blocks_invites) = (Arc::new(Ignored::of(db, user)?), blocks_invites(db, user)?);
            let news = match request.since {
                Some(since) if !request.full_state => {
                    db.news_since(user, request.looked_upto.unwrap_or(0).max(since), position)
                }
                _ => None,
            };
            let told_members = RefCell::default();
            let mut context = SyncContext {
                db,
                user,
                request,
                format,
                position,
                devices_since,
                ignored,
                blocks_invites,
                unread: &self.unread_memory,
                news,
                known_members,
                told_members,
                begun_anew: RefCell::default(),
                ephemeral_changes: OnceCell::new(),
            };
            let (mut answer, progress) = answer(&context, now)?;
            let told = (context.told_members.take(), context.begun_anew.take());
            if cfg!(debug_assertions) && context.news.take().is_some() {
                let whole = self::answer(&context, now)?.0.body.into_bytes();
                let told = std::mem::take(&mut answer.body).into_bytes();
                let texts = [&told, &whole].map(|body| String::from_utf8_lossy(body));
                assert!(told == whole, "news are told of nobody's wake:\n{}\n{}", texts[0], texts[1]);
                answer.body = told.into();
            }
            Ok((answer, progress, request.since, told))
        })?;
        if let Some(device) = device.filter(|_| lazy) {
            // Who begins anew has nothing.
            let known = since.filter(|_| !request.full_state).map(|_| known).unwrap_or_default();
            let (told, begun_anew) = told;
            let known = told_members::but_of_rooms(&known, &begun_anew);
            self.told_members.tell(user, device, answer.position, &known, told);
        }
        if let Some(device) = device {
            self.note_reader(user, device)?;
            self.settle_to_device(user, device, since, progress)?;
        }
        Ok(answer)
    }
}

fn answer(context: &SyncContext<'_>, now: Millis) -> Result<(SyncAnswer, devices::ToDeviceProgress)> {
    let data = match context.has_own_news() {
        true => context.db.account_data_since(context.user, context.since(), context.position)?,
        false => Vec::new(),
    };
    let mut global = Vec::new();
    let mut of_rooms: BTreeMap<RoomId, Vec<AccountData>> = BTreeMap::new();
    for entry in data {
        match &entry.room_id {
            None => global.push(entry),
            Some(room) => of_rooms.entry(room.clone()).or_default().push(entry),
        }
    }
    let (joined, mut others) = (joined::collect(context, &of_rooms)?, RoomSections::default());
    not_joined::collect(context, &of_rooms, &mut others)?;
    let device = context.format.device;
    let (to_device, progress) = devices::to_device(context)?;
    let device_lists = devices::device_lists(context)?;
    let presence = presence::presence(context, &joined.newly_joined, &device_lists.newcomers, now)?;
    let global = global_account_data(context, &global, context.request.since.is_none())?;
    let mut body = SyncBody {
        next_batch: format!("s{}", context.position),
        account_data: EventList::of(&global),
        rooms: RoomSections::default(),
        presence,
        to_device,
        device_lists,
        device_one_time_keys_count: device
            .map(|device| context.db.one_time_key_counts(context.user, device))
            .transpose()?,
        device_unused_fallback_key_types: device
            .map(|device| context.db.unused_fallback_key_types(context.user, device))
            .transpose()?,
    };
    let is_empty = body.account_data.is_empty()
        && joined.is_empty()
        && others.is_empty()
        && body.presence.is_empty()
        && body.to_device.is_empty()
        && body.device_lists.is_empty();
    let answer = SyncAnswer {
        position: context.position,
        is_empty,
        is_initial: context.request.since.is_none(),
        body: match joined.is_empty() {
            true => {
                body.rooms = others;
                serde_json::to_vec(&body).map_err(Error::internal)?.into()
            }
            false => joined.around(&others, &body)?,
        },
        ignores_somebody: !context.ignored.is_empty(),
        one_time_keys: body.device_one_time_keys_count,
        fallback_keys: body.device_unused_fallback_key_types,
    };
    Ok((answer, progress))
}

/// Global account data that changed; the first time there are also the push rules, which every account has, and later
/// whenever the user changed them.
fn global_account_data(
    context: &SyncContext<'_>,
    entries: &[AccountData],
    is_first: bool,
) -> Result<Vec<Json>> {
    let filter = &context.request.filter.account_data;
    let mut events = Vec::new();
    if filter.wants_none() {
        return Ok(events);
    }
    let changed = entries.iter().any(|entry| entry.event_type == PUSH_RULES);
    if (is_first || changed) && filter.wants_type(PUSH_RULES) {
        events.push(basic_event(PUSH_RULES, &push_rules_content(context.db, context.user)?)?);
    }
    // What is stored of the rules is only what the user changed.
    let others = entries.iter().filter(|entry| entry.event_type != PUSH_RULES);
    for entry in others.filter(|entry| filter.wants_type(&entry.event_type)) {
        events.push(basic_event(&entry.event_type, &entry.content)?);
    }
    Ok(events)
}

/// An event that is nothing but a type and a content. `content` is JSON.
fn basic_event(event_type: &str, content: &str) -> Result<Json> {
    #[derive(Serialize)]
    struct Basic<'b> {
        content: &'b RawValue,
        #[serde(rename = "type")]
        event_type: &'b str,
    }
    let content = read(content.as_bytes()).map_err(Error::internal)?;
    to_raw_value(&Basic { content, event_type }).map_err(Error::internal)
}

/// Reads a token of `next_batch`: `s` and the position. Errors: 400 `M_INVALID_PARAM`.
pub fn parse_since(token: &str) -> Result<i64> {
    let wrong = || Error::invalid_param("The since token is none of this server's");
    let digits = token.strip_prefix('s').filter(|digits| digits.bytes().all(|b| b.is_ascii_digit()));
    digits.ok_or_else(wrong)?.parse().map_err(|_| wrong())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_tokens_of_our_own_making_are_read() {
        assert_eq!(parse_since("s0").unwrap(), 0);
        assert_eq!(parse_since("s815").unwrap(), 815);
        for wrong in ["", "s", "815", "s-1", "s+1", "s1_2", "s 1", "t1", "s99999999999999999999"] {
            assert!(parse_since(wrong).is_err(), "{wrong}");
        }
    }
}
