//! `ephemeral` of a room: who is typing, and up to where its members have read.

use std::collections::BTreeMap;

use serde_json::value::to_raw_value;
use serde_json::{Map, Value, json};

use super::{EventList, SyncContext};
use crate::error::{Error, Result};
use crate::service::rooms::client_format::Json;
use crate::store::ephemeral::receipts::Receipt;
use crate::store::{Db, Room};

/// Receipts of others in one room and one answer. In a room with more, who has read up to where is of no interest.
pub(super) const RECEIPTS_MAX: usize = 1000;

/// What is fleeting in a room and changed after a position; 0 for all that there is. `newly_joined`: the user was not in it
/// when the client looked last.
pub fn of_room(context: &SyncContext<'_>, room: &Room, since: i64, newly_joined: bool) -> Result<EventList> {
    let mut events = EventList::default();
    let filter = &context.request.filter.room.ephemeral;
    let Some((changed, typing)) = context.ephemeral_change(room.key)? else { return Ok(events) };
    if changed <= since || filter.wants_none() || !filter.wants_room(room.room_id.as_str()) {
        return Ok(events);
    }
    if typing > since && filter.wants_type("m.typing") {
        let mut users = context.db.typing_users(room.key)?;
        users.retain(|user| !context.ignored.has(user));
        // A list that is empty is news only to who may have another one: who has looked before it became so, also if
        // they want all of the room again; and who was in the room before.
        let may_have_another = newly_joined || context.request.since.is_some_and(|looked| typing > looked);
        if may_have_another || !users.is_empty() {
            events.push(&event("m.typing", &json!({ "user_ids": users }))?);
        }
    }
    if filter.wants_type("m.receipt") {
        let between = (since, context.position);
        let mut receipts = context.db.receipts_between(room.key, between, context.user, RECEIPTS_MAX)?;
        receipts.retain(|receipt| !context.ignored.has(&receipt.user_id));
        for content in by_thread(receipts) {
            events.push(&event("m.receipt", &content.into())?);
        }
    }
    Ok(events)
}

/// What became new between two positions for everybody in the room who ignores nobody. None: it cannot be told from what
/// came later, or is too much.
pub fn of_everybody(db: &Db<'_>, room: &Room, (from, upto): (i64, i64)) -> Result<Option<Vec<Json>>> {
    let mut events = Vec::new();
    let Some((changed, typing)) = db.ephemeral_change(room.key)? else { return Ok(Some(events)) };
    if changed > upto {
        return Ok(None);
    }
    if changed <= from {
        return Ok(Some(events));
    }
    if typing > from {
        events.push(event("m.typing", &json!({ "user_ids": db.typing_users(room.key)? }))?);
    }
    let receipts = db.public_receipts_between(room.key, (from, upto), RECEIPTS_MAX)?;
    if receipts.len() == RECEIPTS_MAX {
        return Ok(None);
    }
    for content in by_thread(receipts) {
        events.push(event("m.receipt", &content.into())?);
    }
    Ok(Some(events))
}

/// "Receipts SHOULD be batched into one event per room and thread": for each thread the content of one event.
pub(in crate::service) fn by_thread(receipts: Vec<Receipt>) -> Vec<Map<String, Value>> {
    let mut threads: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    for receipt in receipts {
        let told = told_of(&receipt);
        let of_event = threads.entry(receipt.thread).or_default().entry(receipt.event_id);
        let of_event = of_event.or_insert_with(|| json!({}));
        of_event[receipt.receipt_type][receipt.user_id] = told;
    }
    threads.into_values().collect()
}

/// What is told of a receipt under its event, its type and its user.
pub(super) fn told_of(receipt: &Receipt) -> Value {
    let mut told = json!({ "ts": receipt.ts });
    if !receipt.thread.is_empty() {
        told["thread_id"] = json!(receipt.thread);
    }
    told
}

/// An event of the sections that have neither ids nor senders.
pub(super) fn event(event_type: &str, content: &Value) -> Result<Json> {
    to_raw_value(&json!({ "type": event_type, "content": content })).map_err(Error::internal)
}
