//! Sliding sync as clients speak it today: `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`, MSC4186 as
//! it was before it was accepted. And what both dialects have in common: `sliding_v4` is the other one.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;

use super::presence;
use super::{SYNC_TIMEOUT_MAX, reply_in_turn, turn_of};
use crate::error::{Error, Result};
use crate::http::{Outcome, Poll, Request, Requester};
use crate::order::Gather;
use crate::protocol::RoomId;
use crate::service::Homeserver;
use crate::service::rooms::thread_subscriptions::{PAGE_MAX, PAGE_USUAL, SubscriptionChanges};
use crate::service::sync::sliding::request::{
    ExtensionScope, Extensions, RequiredState, RoomConfig, RoomFilters, SlidingList, SlidingRequest,
    StatePattern, StateSelector, TIMELINE_MAX, ToDeviceRequest,
};
use crate::service::sync::sliding::{ExtensionsAnswer, RoomAnswer, SlidingAnswer, SlidingOutcome};
use crate::store::ephemeral::presence::PresenceState;

/// "100 messages is recommended as a reasonable limit" of those to the device.
const TO_DEVICE_MAX: usize = 100;
/// Rooms that one request may subscribe to.
const SUBSCRIPTIONS_MAX: usize = 1000;

#[derive(Deserialize)]
struct SlidingBody {
    conn_id: Option<String>,
    txn_id: Option<String>,
    lists: Option<BTreeMap<String, ListBody>>,
    room_subscriptions: Option<BTreeMap<String, ConfigBody>>,
    extensions: Option<ExtensionsBody>,
}

#[derive(Deserialize)]
struct ListBody {
    ranges: Option<Vec<(i64, i64)>>,
    /// All rooms, whatever the ranges say.
    slow_get_all_rooms: Option<bool>,
    #[serde(flatten)]
    config: ConfigBody,
    filters: Option<FiltersBody>,
}

#[derive(Deserialize)]
struct ConfigBody {
    timeline_limit: i64,
    required_state: Option<Vec<(String, String)>>,
}

/// `filters`, as both dialects have it but for the name of one.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct FiltersBody {
    is_dm: Option<bool>,
    spaces: Option<Vec<String>>,
    is_encrypted: Option<bool>,
    is_invite: Option<bool>,
    is_invited: Option<bool>,
    room_types: Option<Vec<Option<String>>>,
    not_room_types: Option<Vec<Option<String>>>,
    tags: Option<Vec<String>>,
    not_tags: Option<Vec<String>>,
}

impl FiltersBody {
    /// The filters; `accepted`: in the accepted dialect.
    pub(super) fn filters(self, accepted: bool) -> RoomFilters {
        RoomFilters {
            is_dm: self.is_dm,
            spaces: self.spaces,
            is_encrypted: self.is_encrypted,
            is_invited: if accepted { self.is_invited } else { self.is_invite },
            room_types: self.room_types,
            not_room_types: self.not_room_types,
            tags: self.tags,
            not_tags: self.not_tags,
        }
    }
}

/// `extensions`, the same in both dialects. What else a client asks for is not known here, and passed over.
#[derive(Default, Deserialize)]
#[serde(default)]
pub(super) struct ExtensionsBody {
    to_device: Option<ToDeviceBody>,
    e2ee: Option<ScopeBody>,
    account_data: Option<ScopeBody>,
    receipts: Option<ScopeBody>,
    typing: Option<ScopeBody>,
    /// MSC4308.
    #[serde(rename = "io.element.msc4308.thread_subscriptions")]
    thread_subscriptions: Option<LimitBody>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ToDeviceBody {
    enabled: Option<bool>,
    limit: Option<i64>,
    since: Option<String>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct LimitBody {
    enabled: Option<bool>,
    limit: Option<i64>,
}

#[derive(Default, Deserialize)]
#[serde(default)]
struct ScopeBody {
    enabled: Option<bool>,
    lists: Option<Vec<String>>,
    rooms: Option<Vec<String>>,
}

impl ScopeBody {
    fn scope(self) -> Option<ExtensionScope> {
        let Self { enabled, lists, rooms } = self;
        (enabled == Some(true)).then_some(ExtensionScope { lists, rooms })
    }
}

impl ExtensionsBody {
    /// The extensions that are asked for. Errors: 400 `M_INVALID_PARAM`.
    pub(super) fn extensions(self) -> Result<Extensions> {
        let wrong = || Error::invalid_param("The since token of to_device is none of this server's");
        let to_device = match self.to_device {
            Some(ToDeviceBody { enabled: Some(true), limit, since }) => {
                let since = since.filter(|since| !since.is_empty());
                let since = since.map(|since| match since.bytes().all(|b| b.is_ascii_digit()) {
                    true => since.parse().map_err(|_| wrong()),
                    false => Err(wrong()),
                });
                let limit = limit.map_or(TO_DEVICE_MAX, |limit| {
                    usize::try_from(limit).unwrap_or(0).clamp(1, TO_DEVICE_MAX)
                });
                Some(ToDeviceRequest { limit, since: since.transpose()? })
            }
            _ => None,
        };
        let thread_subscriptions = self.thread_subscriptions.filter(|wanted| wanted.enabled == Some(true));
        Ok(Extensions {
            to_device,
            e2ee: self.e2ee.is_some_and(|e2ee| e2ee.enabled == Some(true)),
            account_data: self.account_data.and_then(ScopeBody::scope),
            receipts: self.receipts.and_then(ScopeBody::scope),
            typing: self.typing.and_then(ScopeBody::scope),
            thread_subscriptions: thread_subscriptions.map(|wanted| {
                wanted
                    .limit
                    .map_or(PAGE_USUAL, |limit| usize::try_from(limit).unwrap_or(0).clamp(1, PAGE_MAX))
            }),
        })
    }
}

/// How many events of a timeline. Errors: 400 `M_INVALID_PARAM` for less than none.
pub(super) fn timeline_limit(limit: i64) -> Result<usize> {
    let limit =
        usize::try_from(limit).map_err(|_| Error::invalid_param("timeline_limit must not be negative"))?;
    Ok(limit.min(TIMELINE_MAX))
}

/// The ends of a range. Errors: 400 `M_INVALID_PARAM` for negative ones.
pub(super) fn range((first, last): (i64, i64)) -> Result<(u64, u64)> {
    let end =
        |place: i64| u64::try_from(place).map_err(|_| Error::invalid_param("A range must not be negative"));
    Ok((end(first)?, end(last)?))
}

/// Rooms by their ids, at most so many. "Rooms that a user subscribes to … that do not exist should be ignored", and so
/// is what is no id. Errors: 400 `M_INVALID_PARAM` for more.
pub(super) fn subscriptions<T>(
    bodies: BTreeMap<String, T>,
    most: usize,
    config: impl Fn(T) -> Result<RoomConfig>,
) -> Result<BTreeMap<RoomId, RoomConfig>> {
    if bodies.len() > most {
        return Err(Error::invalid_param("There are too many room subscriptions"));
    }
    let known = bodies.into_iter().filter_map(|(id, body)| Some((RoomId::parse(&id).ok()?, body)));
    known.map(|(id, body)| Ok((id, config(body)?))).try_gather()
}

/// `required_state` as pairs of type and state key. With `["*", "*"]` everything is wanted, and further entries say of
/// their types that no others are (MSC3575).
fn required_state(pairs: Vec<(String, String)>, requester: &Requester) -> RequiredState {
    let mut lazy_members = false;
    let mut patterns = Vec::new();
    for (event_type, state_key) in pairs {
        let state_key = match state_key.as_str() {
            "$LAZY" => {
                lazy_members |= event_type == "m.room.member";
                continue;
            }
            "$ME" => Some(requester.user_id.as_str().to_owned()),
            "*" => None,
            _ => Some(state_key),
        };
        patterns.push(StatePattern {
            event_type: Some(event_type).filter(|event_type| event_type != "*"),
            state_key,
        });
    }
    let everything = StatePattern::default();
    if !patterns.contains(&everything) {
        return RequiredState::new(vec![StateSelector {
            include: patterns,
            exclude: Vec::new(),
            lazy_members,
        }]);
    }
    let named = patterns.iter().filter_map(|pattern| pattern.event_type.clone());
    let exclude =
        named.map(|event_type| StatePattern { event_type: Some(event_type), state_key: None }).collect();
    patterns.retain(|pattern| *pattern != everything);
    RequiredState::new(vec![
        StateSelector { include: vec![everything], exclude, lazy_members },
        StateSelector { include: patterns, exclude: Vec::new(), lazy_members: false },
    ])
}

impl SlidingBody {
    fn into_request(self, pos: Option<String>, requester: &Requester) -> Result<SlidingRequest> {
        let config = |body: ConfigBody| -> Result<RoomConfig> {
            let timeline_limit = timeline_limit(body.timeline_limit)?;
            Ok(RoomConfig {
                timeline_limit,
                required_state: required_state(body.required_state.unwrap_or_default(), requester),
            })
        };
        let mut lists = BTreeMap::new();
        for (name, list) in self.lists.unwrap_or_default() {
            let all = list.slow_get_all_rooms == Some(true);
            let ranges = list.ranges.filter(|_| !all);
            let ranges = ranges.map(|ranges| ranges.into_iter().map(range).collect()).transpose()?;
            let (config, filters) = (config(list.config)?, list.filters.unwrap_or_default().filters(false));
            lists.insert(name, SlidingList { ranges, config, filters });
        }
        Ok(SlidingRequest {
            conn_id: self.conn_id.unwrap_or_default(),
            pos,
            lists,
            subscriptions: subscriptions(
                self.room_subscriptions.unwrap_or_default(),
                SUBSCRIPTIONS_MAX,
                config,
            )?,
            extensions: self.extensions.unwrap_or_default().extensions()?,
        })
    }
}

/// `POST /_matrix/client/unstable/org.matrix.simplified_msc3575/sync`.
pub fn sync(hs: &Arc<Homeserver>, request: &Request, requester: &Requester, poll: Poll) -> Result<Outcome> {
    let mut body: SlidingBody = request.json_or_empty()?;
    let txn_id = body.txn_id.take();
    let pos = request.query("pos").filter(|pos| !pos.is_empty()).map(str::to_owned);
    let asked = Asked {
        timeout: request.query_int("timeout")?,
        presence: request.query("set_presence").map_or(Ok(PresenceState::Online), presence::state)?,
        request: body.into_request(pos, requester)?,
    };
    answer(hs, (request, poll), requester, &asked, |answer| OlderAnswer::of(answer, txn_id))
}

/// A request, whatever its dialect.
pub(super) struct Asked {
    /// For how many milliseconds to wait.
    pub timeout: Option<i64>,
    /// What the user is taken for.
    pub presence: PresenceState,
    /// What is asked.
    pub request: SlidingRequest,
}

/// Answers a request in a dialect, or has it wait (rule 2).
pub(super) fn answer<T: Serialize>(
    hs: &Arc<Homeserver>,
    (request, poll): (&Request, Poll),
    requester: &Requester,
    asked: &Asked,
    written: impl FnOnce(SlidingAnswer) -> Result<T>,
) -> Result<Outcome> {
    let timeout = match asked.timeout {
        None => Duration::ZERO,
        Some(ms) => {
            let ms = u64::try_from(ms).map_err(|_| Error::invalid_param("timeout must not be negative"))?;
            Duration::from_millis(ms).min(SYNC_TIMEOUT_MAX)
        }
    };
    if poll == Poll::First {
        let waits = i64::try_from(timeout.as_millis()).unwrap_or(0);
        let device = requester.device_id.as_deref();
        hs.ephemeral().note_poll(&requester.user_id, device, asked.presence, waits);
    }
    let may_wait = poll != Poll::Last && asked.request.pos.is_some() && !timeout.is_zero();
    let device = requester.device_id()?;
    let when = (request.received(), may_wait);
    // Who was woken has one of the few places for that, and waits for no other.
    let may_be_large =
        poll == Poll::First && hs.syncing().may_be_large(&requester.user_id, device, &asked.request);
    let turn = may_be_large.then(|| turn_of(hs, (request, requester))).transpose()?;
    match hs.syncing().sliding(&requester.user_id, device, &asked.request, when)? {
        SlidingOutcome::Nothing(after) => {
            let (user, until) = (requester.user_id.clone(), request.received() + timeout);
            Ok(Outcome::Wait { user, after, until })
        }
        SlidingOutcome::Answer(answer) => {
            let body = serde_json::to_vec(&written(*answer)?).map_err(Error::internal)?;
            Ok(Outcome::Reply(reply_in_turn(turn, body.into())))
        }
    }
}

#[derive(Serialize)]
struct OlderAnswer {
    pos: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    txn_id: Option<String>,
    lists: BTreeMap<String, ListAnswer>,
    rooms: BTreeMap<RoomId, OlderRoom>,
    extensions: ExtensionsJson,
}

/// One list.
#[derive(Serialize)]
pub(super) struct ListAnswer {
    count: usize,
}

/// The lists with their counts.
pub(super) fn lists(counts: BTreeMap<String, usize>) -> BTreeMap<String, ListAnswer> {
    counts.into_iter().map(|(name, count)| (name, ListAnswer { count })).gather()
}

#[derive(Serialize)]
struct OlderRoom {
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    initial: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    name: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    avatar: Option<String>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    heroes: Vec<crate::service::sync::sliding::Hero>,
    #[serde(skip_serializing_if = "Option::is_none")]
    is_dm: Option<bool>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invite_state: Option<Vec<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    required_state: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    timeline: Vec<Box<RawValue>>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    unstable_expanded_timeline: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    limited: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    num_live: Option<usize>,
    #[serde(skip_serializing_if = "Option::is_none")]
    joined_count: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    invited_count: Option<u64>,
    notification_count: u64,
    highlight_count: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    bump_stamp: Option<i64>,
}

impl OlderAnswer {
    fn of(answer: SlidingAnswer, txn_id: Option<String>) -> Result<Self> {
        let rooms = answer.rooms.into_iter().map(|(room_id, room)| (room_id, OlderRoom::of(room)));
        Ok(Self {
            pos: answer.pos,
            txn_id,
            lists: lists(answer.counts),
            rooms: rooms.gather(),
            extensions: ExtensionsJson::of(answer.extensions),
        })
    }
}

impl OlderRoom {
    fn of(room: RoomAnswer) -> Self {
        Self {
            initial: room.initial,
            name: room.name.flatten(),
            avatar: room.avatar.flatten(),
            heroes: room.heroes,
            is_dm: room.is_dm,
            invite_state: room.stripped_state,
            required_state: room.required_state,
            timeline: room.timeline,
            unstable_expanded_timeline: room.expanded_timeline,
            prev_batch: room.prev_batch,
            limited: room.limited,
            num_live: room.num_live,
            joined_count: room.joined_count,
            invited_count: room.invited_count,
            notification_count: room.unread.notifications,
            highlight_count: room.unread.highlights,
            bump_stamp: room.bump_stamp,
        }
    }
}

/// What the extensions tell, the same in both dialects.
#[derive(Serialize)]
pub(super) struct ExtensionsJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    to_device: Option<ToDeviceJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    e2ee: Option<E2eeJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    account_data: Option<AccountDataJson>,
    #[serde(skip_serializing_if = "Option::is_none")]
    receipts: Option<OfRooms<Box<RawValue>>>,
    #[serde(skip_serializing_if = "Option::is_none")]
    typing: Option<OfRooms<Box<RawValue>>>,
    #[serde(rename = "io.element.msc4308.thread_subscriptions", skip_serializing_if = "Option::is_none")]
    thread_subscriptions: Option<ThreadSubscriptionsJson>,
}

#[derive(Serialize)]
struct ThreadSubscriptionsJson {
    #[serde(flatten)]
    changes: SubscriptionChanges,
    /// Where a client goes on backwards for what did not find room here.
    #[serde(skip_serializing_if = "Option::is_none")]
    prev_batch: Option<String>,
}

#[derive(Serialize)]
struct ToDeviceJson {
    next_batch: String,
    events: Vec<Box<RawValue>>,
}

#[derive(Serialize)]
struct E2eeJson {
    #[serde(skip_serializing_if = "Option::is_none")]
    device_lists: Option<crate::service::sync::DeviceLists>,
    device_one_time_keys_count: BTreeMap<String, u64>,
    device_unused_fallback_key_types: Vec<String>,
}

#[derive(Serialize)]
struct AccountDataJson {
    global: Vec<Box<RawValue>>,
    rooms: BTreeMap<RoomId, Vec<Box<RawValue>>>,
}

#[derive(Serialize)]
struct OfRooms<T> {
    rooms: BTreeMap<RoomId, T>,
}

impl ExtensionsJson {
    /// As it is written.
    pub(super) fn of(answer: ExtensionsAnswer) -> Self {
        let to_device = answer
            .to_device
            .map(|to_device| ToDeviceJson { next_batch: to_device.next_batch, events: to_device.events });
        let e2ee = answer.e2ee.map(|e2ee| E2eeJson {
            device_lists: e2ee.device_lists,
            device_one_time_keys_count: e2ee.one_time_keys,
            device_unused_fallback_key_types: e2ee.fallback_keys,
        });
        let account_data =
            answer.account_data.map(|data| AccountDataJson { global: data.global, rooms: data.rooms });
        let of_rooms = |rooms: Option<BTreeMap<RoomId, Box<RawValue>>>| rooms.map(|rooms| OfRooms { rooms });
        let subscriptions = answer.thread_subscriptions.filter(|changes| !changes.is_empty());
        Self {
            to_device,
            e2ee,
            account_data,
            receipts: of_rooms(answer.receipts),
            typing: of_rooms(answer.typing),
            thread_subscriptions: subscriptions.map(|mut changes| {
                let prev_batch = changes.more.take().map(|token| token.to_string());
                ThreadSubscriptionsJson { changes, prev_batch }
            }),
        }
    }
}
