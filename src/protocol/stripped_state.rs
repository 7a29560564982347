//! Stripped state: the few state events by which somebody outside of a room recognises it (client-server API,
//! "Stripped state"), in its two forms: whole events between servers, four fields for clients.
//!
//! Since v1.16 servers send whole events. Peers that do not yet send four-field entries; Synapse does even in rooms of
//! version 12, where only its create event is a whole one. So four-field entries are taken in every version, and from
//! version 12 on (where the room id proves the create event) the create event must be there, whole, and this room's.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::protocol::ids::{RoomId, UserId};
use crate::protocol::json as matrix_json;
use crate::protocol::pdu::{MAX_FIELD_BYTES, Pdu};
use crate::protocol::room_version::RoomVersion;

/// The types of state events (all with an empty state key) that are shown to outsiders.
pub const STRIPPED_TYPES: [&str; 7] = [
    "m.room.create",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
    "m.room.join_rules",
    "m.room.canonical_alias",
    "m.room.encryption",
];

/// How many entries are looked at; what comes behind them is left out.
pub const MAX_ENTRIES: usize = 100;

/// An event as clients are shown it: `type`, `state_key`, `sender`, `content`.
pub fn strip(pdu: &Pdu) -> Value {
    json!({
        "type": pdu.event_type(),
        "state_key": pdu.state_key().unwrap_or_default(),
        "sender": pdu.sender(),
        "content": pdu.content(),
    })
}

/// Events as federation wants them (`invite_room_state`, `knock_room_state`): whole.
pub fn for_federation(events: &[Pdu]) -> Vec<Box<RawValue>> {
    events.iter().filter_map(|pdu| RawValue::from_string(pdu.json_str().to_owned()).ok()).collect()
}

/// Events as clients want them.
pub fn for_clients(events: &[Pdu]) -> Vec<Value> {
    events.iter().map(strip).collect()
}

/// Whether an entry is meant as a whole event rather than as four fields.
pub fn is_full_event(entry: &RawValue) -> bool {
    matrix_json::parse_object(entry.get().as_bytes())
        .is_ok_and(|object| object.contains_key("auth_events") || object.contains_key("signatures"))
}

/// Reads one entry of either form. Errors: `M_BAD_JSON`, `M_TOO_LARGE`, or `M_INVALID_PARAM` if it is of another room.
fn read(entry: &RawValue, room: &RoomId, version: RoomVersion) -> Result<Value> {
    let object = matrix_json::parse_object(entry.get().as_bytes())?;
    if object.contains_key("auth_events") || object.contains_key("signatures") {
        let pdu = Pdu::parse(entry.get().as_bytes(), version)?;
        if pdu.room_id() != room {
            return Err(Error::invalid_param("an event of the room's state is of another room"));
        }
        if !pdu.is_state() {
            return Err(Error::invalid_param("an event of the room's state is no state event"));
        }
        return Ok(strip(&pdu));
    }
    four_fields(object).ok_or_else(|| Error::invalid_param("an entry of the room's state is no state event"))
}

/// A four-field entry without whatever else it has; none if it is not one.
fn four_fields(mut object: Map<String, Value>) -> Option<Value> {
    let short = |value: &Value| value.as_str().is_some_and(|text| text.len() <= MAX_FIELD_BYTES);
    let mut take = |key: &str| object.remove(key);
    let (event_type, state_key) = (take("type").filter(short)?, take("state_key").filter(short)?);
    let sender = take("sender").filter(|value| value.as_str().is_some_and(|id| UserId::parse(id).is_ok()))?;
    let content = take("content").filter(Value::is_object)?;
    Some(json!({"type": event_type, "state_key": state_key, "sender": sender, "content": content}))
}

fn is_create(entry: &Value) -> bool {
    entry["type"] == "m.room.create" && entry["state_key"] == ""
}

/// The `invite_room_state` of an invite, as clients may see it. Signatures of whole events are for the caller to
/// check. Before room version 12, entries that are of no use are left out.
///
/// Errors, from version 12 on: 400 `M_INVALID_PARAM` if the room's create event is not there as a whole event, or if
/// any entry is malformed or of another room.
pub fn check_received(entries: &[Box<RawValue>], room: &RoomId, version: RoomVersion) -> Result<Vec<Value>> {
    if !version.room_id_is_create_hash {
        return Ok(usable(entries, room, version));
    }
    if entries.len() > MAX_ENTRIES {
        return Err(Error::invalid_param("the room's state has too many entries"));
    }
    let mut shown = Vec::with_capacity(entries.len());
    let mut create = false;
    for entry in entries {
        let value = read(entry, room, version).map_err(|e| Error::invalid_param(e.message().to_owned()))?;
        if is_create(&value) {
            if !is_full_event(entry) {
                return Err(Error::invalid_param("the room's create event is not a whole event"));
            }
            create = true;
        }
        shown.push(value);
    }
    if create { Ok(shown) } else { Err(Error::invalid_param("the room's state has no m.room.create event")) }
}

/// The entries that are of use, as clients may see them; the others are left out. Of version 12 a create event that is
/// not whole is not, since its room cannot be told.
pub fn usable(entries: &[Box<RawValue>], room: &RoomId, version: RoomVersion) -> Vec<Value> {
    let read = |entry: &Box<RawValue>| {
        let value = read(entry, room, version).ok()?;
        let doubtful = version.room_id_is_create_hash && is_create(&value) && !is_full_event(entry);
        (!doubtful).then_some(value)
    };
    entries.iter().take(MAX_ENTRIES).filter_map(read).collect()
}

/// A four-field entry as an entry of a request, for tests and for peers of before v1.16.
pub fn to_entry(value: &Value) -> Result<Box<RawValue>> {
    to_raw_value(value).map_err(Error::internal)
}
