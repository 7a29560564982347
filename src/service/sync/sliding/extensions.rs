//! What an answer tells beside rooms. All of it wakes a request that waits.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use super::connection::{Connection, Told, ToldAs};
use super::request::{ExtensionScope, Extensions, SlidingRequest};
use super::rooms::RoomAnswer;
use super::select::{RoomChanges, Selected};
use crate::error::Result;
use crate::protocol::RoomId;
use crate::service::rooms::client_format::{Json, written};
use crate::service::rooms::thread_subscriptions::SubscriptionChanges;
use crate::service::sync::devices::{self, DeviceLists};
use crate::service::sync::ephemeral::{RECEIPTS_MAX, event, told_of};
use crate::service::sync::{SyncContext, basic_event, global_account_data};
use crate::store::RoomKey;
use crate::store::ephemeral::receipts::Receipt;

/// What the extensions have to tell.
#[derive(Default)]
pub struct ExtensionsAnswer {
    /// Messages to the device.
    pub to_device: Option<ToDeviceAnswer>,
    /// What end-to-end encryption needs to know.
    pub e2ee: Option<E2eeAnswer>,
    /// Account data, if it is asked for.
    pub account_data: Option<AccountDataAnswer>,
    /// Receipts by room, if they are asked for.
    pub receipts: Option<BTreeMap<RoomId, Json>>,
    /// Who is typing by room, if that is asked for.
    pub typing: Option<BTreeMap<RoomId, Json>>,
    /// What has changed in the user's thread subscriptions, if that is asked for.
    pub thread_subscriptions: Option<SubscriptionChanges>,
}

/// Messages to the device.
pub struct ToDeviceAnswer {
    /// What the client says next time, and by which it proves that it has these.
    pub next_batch: String,
    /// The messages.
    pub events: Vec<Json>,
    /// Up to which message the device has proved to have them.
    pub proved: Option<(i64, i64)>,
}

/// What end-to-end encryption needs to know.
pub struct E2eeAnswer {
    /// Whose devices are to be looked at anew; none without a `pos`.
    pub device_lists: Option<DeviceLists>,
    /// How many one-time keys there are, by algorithm: in every answer.
    pub one_time_keys: BTreeMap<String, u64>,
    /// The algorithms of which there is an unused fallback key: in every answer.
    pub fallback_keys: Vec<String>,
    /// Whether the client was told otherwise of these keys: it wants to upload new ones at once when others take them.
    pub keys_changed: bool,
}

/// Account data.
#[derive(Default)]
pub struct AccountDataAnswer {
    /// That which belongs to no room.
    pub global: Vec<Json>,
    /// That of rooms.
    pub rooms: BTreeMap<RoomId, Vec<Json>>,
}

impl ExtensionsAnswer {
    /// Whether there is nothing that the client has to hear of now.
    pub fn is_empty(&self) -> bool {
        let of_rooms = |rooms: &Option<BTreeMap<RoomId, Json>>| rooms.as_ref().is_none_or(BTreeMap::is_empty);
        self.to_device.as_ref().is_none_or(|to_device| to_device.events.is_empty())
            && self.e2ee.as_ref().is_none_or(|e2ee| {
                !e2ee.keys_changed && e2ee.device_lists.as_ref().is_none_or(DeviceLists::is_empty)
            })
            && self.account_data.as_ref().is_none_or(|data| data.global.is_empty() && data.rooms.is_empty())
            && of_rooms(&self.receipts)
            && of_rooms(&self.typing)
            && self.thread_subscriptions.as_ref().is_none_or(SubscriptionChanges::is_empty)
    }
}

/// What belongs to no room.
pub fn of_no_room(
    context: &SyncContext<'_>,
    request: &SlidingRequest,
    connection: &mut Connection,
) -> Result<ExtensionsAnswer> {
    let mut answer = ExtensionsAnswer {
        to_device: to_device(context, request)?,
        e2ee: e2ee(context, request, connection)?,
        ..ExtensionsAnswer::default()
    };
    let Extensions { account_data, receipts, typing, .. } = &request.extensions;
    answer.receipts = receipts.is_some().then(BTreeMap::new);
    answer.typing = typing.is_some().then(BTreeMap::new);
    answer.thread_subscriptions = thread_subscriptions(context, request, connection)?;
    connection.note_account_data(account_data.is_some());
    if account_data.is_some() {
        // "Global all on first, then changes."
        let since = if connection.has_account_data() { connection.since } else { 0 };
        let entries = context.db.account_data_since(context.user, since, context.position)?;
        let entries: Vec<_> = entries.into_iter().filter(|entry| entry.room_id.is_none()).collect();
        let global = global_account_data(context, &entries, !connection.has_account_data())?;
        answer.account_data = Some(AccountDataAnswer { global, ..AccountDataAnswer::default() });
    }
    Ok(answer)
}

/// The latest changes since the client's last answer; of a client that has not asked for them before, all that there are.
fn thread_subscriptions(
    context: &SyncContext<'_>,
    request: &SlidingRequest,
    connection: &mut Connection,
) -> Result<Option<SubscriptionChanges>> {
    let limit = request.extensions.thread_subscriptions;
    connection.note_thread_subscriptions(limit.is_some());
    let Some(limit) = limit else { return Ok(None) };
    let since = if connection.has_thread_subscriptions() { connection.since } else { 0 };
    SubscriptionChanges::between(context.db, context.user, (since, context.position), limit).map(Some)
}

fn to_device(context: &SyncContext<'_>, request: &SlidingRequest) -> Result<Option<ToDeviceAnswer>> {
    let (Some(wanted), Some(device)) = (&request.extensions.to_device, context.format.device) else {
        return Ok(None);
    };
    let since = wanted.since.unwrap_or(0);
    if since > context.position {
        // Of a time that this database does not know: nothing is proved by it.
        let next_batch = since.to_string();
        return Ok(Some(ToDeviceAnswer { next_batch, events: Vec::new(), proved: None }));
    }
    let waiting = context.db.to_device_after(context.user, device, since, wanted.limit)?;
    let next = match waiting.last() {
        Some(last) if waiting.len() >= wanted.limit => last.number,
        _ => context.position,
    };
    let proved = match wanted.since {
        Some(since) => context.db.to_device_upto(context.user, device, since)?.map(|upto| (upto, since)),
        None => None,
    };
    let events = waiting.into_iter().map(|waiting| written(waiting.message.into_bytes()));
    let events = events.collect::<Result<_>>()?;
    Ok(Some(ToDeviceAnswer { next_batch: next.to_string(), events, proved }))
}

fn e2ee(
    context: &SyncContext<'_>,
    request: &SlidingRequest,
    connection: &mut Connection,
) -> Result<Option<E2eeAnswer>> {
    if !request.extensions.e2ee {
        return Ok(None);
    }
    let device_lists = match context.devices_since {
        None => None,
        Some(_) => Some(devices::device_lists(context)?),
    };
    let Some(device) = context.format.device else { return Ok(None) };
    let one_time_keys = context.db.one_time_key_counts(context.user, device)?;
    let fallback_keys = context.db.unused_fallback_key_types(context.user, device)?;
    let keys_changed = connection.note_key_counts(&(&one_time_keys, &fallback_keys));
    Ok(Some(E2eeAnswer { device_lists, one_time_keys, fallback_keys, keys_changed }))
}

/// A room, as the extensions look at it.
pub struct RoomScope<'s> {
    /// What is asked.
    pub request: &'s SlidingRequest,
    /// The room and its lists.
    pub selected: &'s Selected,
    /// The last changes of all rooms, if all were gone through.
    pub changes: Option<&'s RoomChanges>,
    /// The position of the client's last answer.
    pub since: i64,
}

impl RoomScope<'_> {
    /// Adds what is new of the room, and notes in `told` that the client knows it. `room_answer`: what is told of the
    /// room itself.
    pub fn add(
        &self,
        context: &SyncContext<'_>,
        room_answer: Option<&RoomAnswer>,
        told: &mut Told,
        answer: &mut ExtensionsAnswer,
    ) -> Result<()> {
        let names: Vec<&str> = self.request.lists.keys().map(String::as_str).collect();
        let lists: Vec<&str> =
            self.selected.lists.iter().filter_map(|number| names.get(*number).copied()).collect();
        let room = &self.selected.room_id;
        let wants = |scope: &Option<ExtensionScope>| {
            scope.as_ref().is_some_and(|scope| scope.has(room, &lists, self.selected.subscribed))
        };
        let Extensions { account_data, receipts, typing, .. } = &self.request.extensions;
        if wants(account_data) {
            self.add_account_data(context, told, answer)?;
        }
        // What is fleeting is for those inside.
        let Some(key) = self.selected.room.as_ref().and_then(|room| room.key) else { return Ok(()) };
        let (receipts, typing) = (wants(receipts), wants(typing));
        if told.listed != ToldAs::Joined || !(receipts || typing) {
            return Ok(());
        }
        let first = room_answer.filter(|answer| answer.initial);
        let known = self.changes.map(|changes| changes.ephemeral.get(room).copied().unwrap_or(0));
        let told_upto = match (receipts, typing) {
            (true, true) => told.receipts.min(told.typing),
            (true, false) => told.receipts,
            _ => told.typing,
        };
        let further_back = room_answer.filter(|answer| answer.expanded_timeline);
        let same = first.is_none() && (further_back.is_none() || !receipts);
        if same && known.is_some_and(|changed| changed <= told_upto) {
            return Ok(());
        }
        let (changed, typing_changed) = context.db.ephemeral_change(key)?.unwrap_or((0, 0));
        let newly_joined = first.is_some_and(|answer| answer.newly_joined);
        if typing && (newly_joined || first.is_none() && typing_changed > told.typing) {
            self.add_typing((context, key, newly_joined), told, answer)?;
        }
        if receipts && (changed > told.receipts || further_back.is_some()) {
            self.add_receipts(context, key, first.or(further_back), told, answer)?;
        }
        if first.is_some() {
            // Who types is "never" told "on initial", but to who comes in: they may have a list of when they were there before.
            told.typing = if typing { context.position } else { told.typing };
            told.receipts = if receipts { context.position } else { told.receipts };
        }
        Ok(())
    }

    /// All of it "on first sight of a room".
    fn add_account_data(
        &self,
        context: &SyncContext<'_>,
        told: &mut Told,
        answer: &mut ExtensionsAnswer,
    ) -> Result<()> {
        let room = &self.selected.room_id;
        let known = self.changes.map(|changes| changes.account_data.get(room).copied().unwrap_or(0));
        if known.is_some_and(|changed| changed <= told.account_data) {
            return Ok(());
        }
        let entries = context.db.account_data_of_room_since(context.user, room, told.account_data)?;
        if entries.is_empty() {
            return Ok(());
        }
        let events = entries.iter().map(|entry| basic_event(&entry.event_type, &entry.content));
        let events = events.collect::<Result<Vec<_>>>()?;
        if let Some(data) = &mut answer.account_data {
            data.rooms.insert(room.clone(), events);
        }
        told.account_data = context.position;
        Ok(())
    }

    /// "Full list each time, the empty list too when the last one stops": to who may have another one.
    fn add_typing(
        &self,
        (context, key, newly_joined): (&SyncContext<'_>, RoomKey, bool),
        told: &mut Told,
        answer: &mut ExtensionsAnswer,
    ) -> Result<()> {
        let mut users = context.db.typing_users(key)?;
        users.retain(|user| !context.ignored.has(user));
        if newly_joined || told.typing > 0 || !users.is_empty() {
            let list = event("m.typing", &json!({ "user_ids": users }))?;
            answer.typing.get_or_insert_default().insert(self.selected.room_id.clone(), list);
        }
        told.typing = context.position;
        Ok(())
    }

    /// Receipts that are new. In a new room "receipts of the events in the timeline plus the user's own, private ones
    /// too", and those of the timeline as well where it goes further back than before. To who has come in all of them: they may
    /// have some of when they were there before, and those who read meanwhile are not at these any more.
    fn add_receipts(
        &self,
        context: &SyncContext<'_>,
        key: RoomKey,
        shown: Option<&RoomAnswer>,
        told: &mut Told,
        answer: &mut ExtensionsAnswer,
    ) -> Result<()> {
        let first = shown.filter(|answer| answer.initial);
        let since = match (told.receipts, first) {
            (0, None) => self.since,
            (told, _) => told,
        };
        let between = |since: i64, upto: i64| {
            context.db.receipts_between(key, (since, upto), context.user, RECEIPTS_MAX)
        };
        let own = |receipt: &Receipt| receipt.user_id == context.user.as_str();
        let at = |receipt: &Receipt, answer: &RoomAnswer| {
            answer.event_ids.iter().any(|id| id.as_str() == receipt.event_id)
        };
        let mut new = between(since, context.position)?;
        match first {
            Some(first) if told.receipts == 0 && !first.newly_joined => {
                new.retain(|receipt| own(receipt) || at(receipt, first));
            }
            Some(_) => {}
            None => {
                let further_back = shown.filter(|answer| answer.expanded_timeline);
                let first_own = told.receipts == 0;
                if first_own || further_back.is_some() {
                    let mut older = between(0, since)?;
                    older.retain(|receipt| {
                        (first_own && own(receipt)) || further_back.is_some_and(|shown| at(receipt, shown))
                    });
                    new.extend(older);
                }
            }
        }
        new.retain(|receipt| !context.ignored.has(&receipt.user_id));
        if !new.is_empty() {
            answer
                .receipts
                .get_or_insert_default()
                .insert(self.selected.room_id.clone(), receipt_event(&new)?);
        }
        told.receipts = context.position;
        Ok(())
    }
}

/// One event for a room: other than `/v3/sync` the extension has no place for one of each thread. Of several receipts of one
/// user at one event there is room for one: that which covers most, the whole room before its main timeline, and that before a
/// thread.
fn receipt_event(receipts: &[Receipt]) -> Result<Json> {
    let mut all = serde_json::Map::new();
    let scope = |receipt: &Receipt| match receipt.thread.as_str() {
        "" => 0,
        "main" => 1,
        _ => 2,
    };
    for wanted in 0..=2 {
        for receipt in receipts.iter().filter(|receipt| scope(receipt) == wanted) {
            let of_event = all.entry(&receipt.event_id).or_insert_with(|| json!({}));
            let told = &mut of_event[&receipt.receipt_type][&receipt.user_id];
            if told.is_null() {
                *told = told_of(receipt);
            }
        }
    }
    event("m.receipt", &Value::Object(all))
}
