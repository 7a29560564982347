//! Stripped state: the few state events by which somebody outside of a room recognises it (client-server API,
//! "Stripped state"), in its two forms: whole events between servers, four fields for clients.
//!
//! Since v1.16 servers send whole events. Peers that do not yet send four-field entries; Synapse does even in rooms of
//! version 12, where only its create event is a whole one. So four-field entries are taken in every version, and from
//! version 12 on (where the room id proves the create event) the create event must be there, whole, and this room's.

use serde_json::value::{RawValue, to_raw_value};
use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ids::{RoomId, UserId};
use crate::protocol::json as matrix_json;
use crate::protocol::pdu::{EVENT_BYTES_MAX, FIELD_BYTES_MAX, Pdu};
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
const STRIPPED_ENTRIES_MAX: usize = 100;

/// How much is kept of what another server shows of one room, in bytes of JSON as clients get it. It is kept for as
/// long as nobody answers, and comes with every initial sync.
const STRIPPED_BYTES_MAX: usize = 64 * 1024;

/// And how much of that any entry may have but the create event, without which a room is not shown.
const STRIPPED_ENTRY_BYTES_MAX: usize = 16 * 1024;

/// What is kept of it: the types of above, what tells most of a room first, so that the rest is left out where not
/// all of it fits. `m.room.member` stands for the inviter's, which gives the invite a name and a face.
const KEPT_IN_STRIPPED: [&str; 8] = [
    "m.room.create",
    "m.room.join_rules",
    "m.room.name",
    "m.room.canonical_alias",
    "m.room.encryption",
    "m.room.member",
    "m.room.avatar",
    "m.room.topic",
];

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
fn for_clients(events: &[Pdu]) -> Vec<Value> {
    events.iter().map(strip).collect()
}

/// Whether an entry is meant as a whole event rather than as four fields.
pub fn is_full_event(entry: &RawValue) -> bool {
    matrix_json::parse_object(entry.get().as_bytes())
        .is_ok_and(|object| object.contains_key("auth_events") || object.contains_key("signatures"))
}

/// Reads one entry of either form. Errors: `M_BAD_JSON`, `M_TOO_LARGE`, or `M_INVALID_PARAM` if it is of another room.
fn read(entry: &RawValue, room: &RoomId, version: RoomVersion) -> Result<Value> {
    // No event has more; and what we take in here is kept, and shown with every initial sync.
    if entry.get().len() > EVENT_BYTES_MAX {
        return Err(Error::new(ErrCode::TooLarge, "an entry of the room's state is larger than an event"));
    }
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
    let short = |value: &Value| value.as_str().is_some_and(|text| text.len() <= FIELD_BYTES_MAX);
    let mut take = |key: &str| object.remove(key);
    let (event_type, state_key) = (take("type").filter(short)?, take("state_key").filter(short)?);
    let sender = take("sender").filter(|value| value.as_str().is_some_and(|id| UserId::parse(id).is_ok()))?;
    let content = take("content").filter(Value::is_object)?;
    Some(json!({"type": event_type, "state_key": state_key, "sender": sender, "content": content}))
}

fn is_create(entry: &Value) -> bool {
    entry["type"] == "m.room.create" && entry["state_key"] == ""
}

/// What is kept of the entries, as clients may see them: one of each type that is recommended, the inviter's member
/// event among them, and of all together no more than [`STRIPPED_BYTES_MAX`].
fn cut(entries: &[Value], inviter: Option<&UserId>) -> Vec<Box<RawValue>> {
    let mut left = STRIPPED_BYTES_MAX;
    let mut kept = Vec::new();
    for event_type in KEPT_IN_STRIPPED {
        let is_member = event_type == "m.room.member";
        let state_key = if is_member { inviter.map(UserId::as_str) } else { Some("") };
        let is_it = |entry: &&Value| {
            entry["type"] == event_type && state_key.is_some_and(|key| entry["state_key"] == key)
        };
        let Some(raw) = entries.iter().find(is_it).and_then(|entry| to_raw_value(entry).ok()) else {
            continue;
        };
        let most = if event_type == "m.room.create" { left } else { left.min(STRIPPED_ENTRY_BYTES_MAX) };
        if raw.get().len() <= most {
            left -= raw.get().len();
            kept.push(raw);
        }
    }
    kept
}

/// What clients are shown of a room that this server is in, within the same bounds: of these events the recommended
/// ones, and the member event of `inviter`.
pub fn shown(events: &[Pdu], inviter: Option<&UserId>) -> Vec<Box<RawValue>> {
    cut(&for_clients(events), inviter)
}

/// The `invite_room_state` of an invite: what of it is kept for clients. Signatures of whole events are for the
/// caller to check. Before room version 12, entries that are of no use are left out.
///
/// Errors, from version 12 on: 400 `M_INVALID_PARAM` if the room's create event is not there as a whole event, or if
/// any entry is malformed or of another room.
pub fn check_received(
    entries: &[Box<RawValue>],
    room: &RoomId,
    version: RoomVersion,
    inviter: &UserId,
) -> Result<Vec<Box<RawValue>>> {
    if !version.room_id_is_create_hash {
        return Ok(usable(entries, room, version, Some(inviter)));
    }
    if entries.len() > STRIPPED_ENTRIES_MAX {
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
    if create {
        Ok(cut(&shown, Some(inviter)))
    } else {
        Err(Error::invalid_param("the room's state has no m.room.create event"))
    }
}

/// What is kept of the entries that are of use; the others are left out. Of version 12 a create event that is not
/// whole is not, since its room cannot be told. `inviter`: for an invite, who invites.
pub fn usable(
    entries: &[Box<RawValue>],
    room: &RoomId,
    version: RoomVersion,
    inviter: Option<&UserId>,
) -> Vec<Box<RawValue>> {
    let read = |entry: &RawValue| {
        let value = read(entry, room, version).ok()?;
        let doubtful = version.room_id_is_create_hash && is_create(&value) && !is_full_event(entry);
        (!doubtful).then_some(value)
    };
    let usable: Vec<Value> =
        entries.iter().take(STRIPPED_ENTRIES_MAX).filter_map(|entry| read(entry)).collect();
    cut(&usable, inviter)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::test_events::{pdu, room, version};

    fn create(version: RoomVersion) -> Pdu {
        let mut create = json!({"type": "m.room.create", "state_key": "", "prev_events": [], "auth_events": [],
            "content": {"type": "m.space"}});
        if version.room_id_is_create_hash {
            create["room_id"] = Value::Null;
        }
        pdu(version, &create, &["a.example"])
    }

    fn name(version: RoomVersion, room: &RoomId) -> Pdu {
        pdu(
            version,
            &json!({"type": "m.room.name", "state_key": "", "room_id": room, "content": {"name": "x"}}),
            &[],
        )
    }

    fn four(event_type: &str) -> Value {
        json!({"type": event_type, "state_key": "", "sender": "@a:b", "content": {"x": 1}})
    }

    fn entry(value: &Value) -> Box<RawValue> {
        to_raw_value(value).expect("JSON")
    }

    fn inviter() -> UserId {
        UserId::parse("@inviter:a.example").expect("a user id")
    }

    fn values(raw: Vec<Box<RawValue>>) -> Vec<Value> {
        raw.iter().map(|entry| serde_json::from_str(entry.get()).expect("JSON")).collect()
    }

    /// An entry whose JSON is about so long.
    fn long(event_type: &str, state_key: &str, bytes: usize) -> Value {
        json!({"type": event_type, "state_key": state_key, "sender": "@a:b", "content": {"x": "x".repeat(bytes)}})
    }

    #[test]
    fn one_of_each_recommended_type_is_kept_and_the_inviter() {
        let version = version("10");
        let here = RoomId::parse(room(version)).expect("id");
        let member = |user: &str| {
            let mut member = four("m.room.member");
            member["state_key"] = user.into();
            entry(&member)
        };
        let mut entries =
            vec![member("@other:a.example"), member(inviter().as_str()), entry(&four("m.room.topic"))];
        entries.extend(STRIPPED_TYPES.map(|kind| entry(&four(kind))));
        entries.extend(STRIPPED_TYPES.map(|kind| entry(&long(kind, "", 9))));
        entries.extend(STRIPPED_TYPES.map(|kind| entry(&long(kind, "x", 9))));
        entries.extend(
            ["m.room.power_levels", "org.example.x", "m.room.pinned_events"].map(|k| entry(&four(k))),
        );
        let kept = |inviter| values(usable(&entries, &here, version, inviter));
        assert_eq!(kept(None).len(), STRIPPED_TYPES.len());
        let user = inviter();
        let with_inviter = kept(Some(&user));
        assert_eq!(with_inviter.len(), KEPT_IN_STRIPPED.len());
        let types: Vec<&str> = with_inviter.iter().filter_map(|e| e["type"].as_str()).collect();
        assert_eq!(types, KEPT_IN_STRIPPED);
        assert!(
            with_inviter.iter().all(|e| e["content"] == json!({"x": 1})),
            "the first of each: {with_inviter:?}"
        );
        assert_eq!(with_inviter[5]["state_key"], user.as_str());
    }

    #[test]
    fn what_is_kept_of_a_room_is_bounded_and_the_create_event_comes_first() {
        let version = version("10");
        let here = RoomId::parse(room(version)).expect("id");
        let kept = |entries: &[Value]| {
            let entries: Vec<_> = entries.iter().map(entry).collect();
            let kept = usable(&entries, &here, version, Some(&inviter()));
            assert!(kept.iter().map(|entry| entry.get().len()).sum::<usize>() <= STRIPPED_BYTES_MAX);
            values(kept).iter().filter_map(|e| e["type"].as_str().map(str::to_owned)).collect::<Vec<_>>()
        };
        // One that is too long takes nothing from the others.
        assert_eq!(
            kept(&[long("m.room.topic", "", 60_000), four("m.room.name"), four("m.room.create")]),
            ["m.room.create", "m.room.name"]
        );
        assert_eq!(kept(&[long("m.room.create", "", 60_000), four("m.room.topic")]).len(), 2);
        let all: Vec<Value> = STRIPPED_TYPES.iter().map(|kind| long(kind, "", 16_000)).rev().collect();
        assert_eq!(
            kept(&all),
            ["m.room.create", "m.room.join_rules", "m.room.name", "m.room.canonical_alias"]
        );
    }

    #[test]
    fn whole_events_go_out_and_come_back_as_four_fields() {
        for id in ["1", "9", "12"] {
            let version = version(id);
            let create = create(version);
            let events = [create.clone(), name(version, create.room_id())];
            let sent = for_federation(&events);
            assert_eq!(sent[0].get().as_bytes(), create.json());
            assert!(sent.iter().all(|entry| is_full_event(entry)));
            let shown =
                values(check_received(&sent, create.room_id(), version, &inviter()).expect("well formed"));
            assert_eq!(shown, for_clients(&events));
            let create = json!({"type": "m.room.create", "state_key": "", "sender": "@alice:a.example",
                "content": {"type": "m.space"}});
            assert_eq!(shown[0], create);
        }
    }

    #[test]
    fn before_version_12_what_is_of_no_use_is_left_out() {
        let version = version("10");
        let here = RoomId::parse(room(version)).expect("id");
        let elsewhere = RoomId::parse("!other:a.example").expect("id");
        let mut dressed = four("m.room.topic");
        dressed["origin_server_ts"] = json!(5);
        dressed["unsigned"] = json!({});
        let entries = [
            entry(&four("m.room.create")),
            entry(&dressed),
            entry(&json!({"type": "m.room.name", "state_key": "", "sender": "nobody", "content": {}})),
            entry(&json!({"type": "m.room.name", "sender": "@a:b", "content": {}})),
            entry(&json!({"type": "m.room.name", "state_key": "", "sender": "@a:b", "content": []})),
            entry(&json!({"type": "x".repeat(256), "state_key": "", "sender": "@a:b", "content": {}})),
            entry(&json!({"type": "m.room.name", "state_key": "", "sender": "@a:b",
                "content": {"name": "x".repeat(EVENT_BYTES_MAX)}})),
            entry(&json!([1])),
            entry(&json!("x")),
            entry(&json!({"auth_events": 7})),
            RawValue::from_string(format!("{}{}", "[".repeat(500), "]".repeat(500))).expect("JSON"),
            for_federation(&[name(version, &elsewhere)]).remove(0),
            for_federation(&[pdu(version, &json!({}), &[])]).remove(0),
        ];
        let shown = values(check_received(&entries, &here, version, &inviter()).expect("never refused"));
        assert_eq!(shown, [four("m.room.create"), four("m.room.topic")]);
        assert!(check_received(&[], &here, version, &inviter()).expect("never refused").is_empty());
        let mut endless: Vec<_> = (0..STRIPPED_ENTRIES_MAX).map(|_| entry(&four("org.example.x"))).collect();
        endless.push(entry(&four("m.room.name")));
        assert!(usable(&endless, &here, version, None).is_empty());
    }

    #[test]
    fn from_version_12_on_the_create_event_proves_the_room() {
        let version = version("12");
        let create = create(version);
        let room = create.room_id();
        let [whole] = <[_; 1]>::try_from(for_federation(std::slice::from_ref(&create))).expect("one");
        let check = |entries: &[Box<RawValue>]| check_received(entries, room, version, &inviter());
        // As Synapse sends it: the create event whole, the others not.
        assert_eq!(check(&[whole.clone(), entry(&four("m.room.name"))]).expect("taken").len(), 2);
        for wrong in [
            vec![],
            vec![entry(&four("m.room.name"))],
            vec![entry(&four("m.room.create"))],
            vec![whole.clone(), entry(&json!({"type": "m.room.name"}))],
            vec![whole.clone(), for_federation(&[name(version, &other_room())]).remove(0)],
            vec![for_federation(&[pdu_of_another_create()]).remove(0)],
            vec![whole.clone(); STRIPPED_ENTRIES_MAX + 1],
        ] {
            let e = check(&wrong).expect_err("refused");
            assert_eq!((e.status(), e.errcode().as_str()), (400, "M_INVALID_PARAM"));
        }
        // After a knock nothing is refused, but a create event that proves nothing is not shown.
        assert_eq!(
            usable(&[entry(&four("m.room.create")), entry(&four("m.room.name"))], room, version, None).len(),
            1
        );
    }

    fn other_room() -> RoomId {
        RoomId::parse(room(version("12"))).expect("id")
    }

    fn pdu_of_another_create() -> Pdu {
        let create = json!({"type": "m.room.create", "state_key": "", "prev_events": [], "auth_events": [],
            "room_id": null, "depth": 99});
        pdu(version("12"), &create, &["a.example"])
    }
}
