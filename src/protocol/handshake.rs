//! The two halves of the make/send handshakes (join, knock, leave) and of invites, as pure checks: what we sign of a
//! template that a stranger sent, and what we accept of an event that a stranger signed.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::protocol::ids::{EventId, RoomId, ServerName, UserId};
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::room_version::{EventIdFormat, RoomVersion};
use crate::protocol::sign::{SigningKey, sign_event};
use crate::protocol::{hash, json};

/// Checks what `make_join`, `make_knock` or `make_leave` answered, before anything of it is signed: it must be about
/// this room, this user, this membership. Errors: `M_INVALID_PARAM`, naming the field.
pub fn check_template(
    template: &Map<String, Value>,
    room: &RoomId,
    user: &UserId,
    membership: Membership,
    version: RoomVersion,
) -> Result<()> {
    let text = |key: &str| template.get(key).and_then(Value::as_str);
    let said = template.get("content").and_then(|content| content.get("membership")).and_then(Value::as_str);
    let fields = [
        ("type", text("type"), "m.room.member"),
        ("room_id", text("room_id"), room.as_str()),
        ("sender", text("sender"), user.as_str()),
        ("state_key", text("state_key"), user.as_str()),
        ("content.membership", said, membership.as_str()),
    ];
    for (field, found, expected) in fields {
        if found != Some(expected) {
            return Err(Error::invalid_param(format!("the template's {field} is not {expected}")));
        }
    }
    if membership == Membership::Knock && !version.knock {
        return Err(Error::invalid_param("the room's version knows no knocking"));
    }
    for list in ["auth_events", "prev_events"] {
        if !template.get(list).is_some_and(Value::is_array) {
            return Err(Error::invalid_param(format!("the template has no {list}")));
        }
    }
    Ok(())
}

/// Makes an event of a template that [`check_template`] accepted: only the room's position in the graph (`room_id`,
/// `prev_events`, `auth_events`, `depth`) and the member are taken from it, all else is ours. Hashed and signed.
///
/// `content` is the whole content; `now_ms` milliseconds since the epoch. Errors: `M_BAD_JSON`, `M_TOO_LARGE` if what
/// the template says makes no event.
pub fn finish(
    template: &Map<String, Value>,
    content: Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    now_ms: i64,
    version: RoomVersion,
) -> Result<Pdu> {
    let mut event = Map::new();
    for field in ["type", "room_id", "sender", "state_key", "prev_events", "auth_events"] {
        let value =
            template.get(field).ok_or_else(|| Error::bad_json(format!("the template has no {field}")))?;
        event.insert(field.to_owned(), value.clone());
    }
    event.insert("content".to_owned(), Value::Object(content));
    event.insert("origin_server_ts".to_owned(), now_ms.into());
    // No rule needs `origin`, but "add or replace" it is what the specification says, and some servers insist.
    event.insert("origin".to_owned(), server.as_str().into());
    let depth = template.get("depth").and_then(Value::as_i64).unwrap_or(1);
    event.insert("depth".to_owned(), depth.clamp(1, json::MAX_INTEGER).into());
    sign_new_event(event, server, key, version)
}

/// Gives a new event of ours its id (room versions 1 and 2), its content hash and our signature.
///
/// The id of versions 1 and 2 is made of the event's own hash: as unique as the event, and nothing random is needed.
pub fn sign_new_event(
    mut event: Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    version: RoomVersion,
) -> Result<Pdu> {
    event.remove("unsigned");
    event.remove("signatures");
    event.remove("event_id");
    if version.event_id_format == EventIdFormat::InEvent {
        let digest = Sha256::digest(json::canonical_event(&event, &["hashes"]));
        let id = format!("${}:{server}", json::base64_url(&digest[..18]));
        event.insert("event_id".to_owned(), id.into());
    }
    hash::add_content_hash(&mut event);
    sign_event(&mut event, server, key, version);
    Pdu::from_object(event, version)
}

/// Checks an event that came in by `send_join`, `send_knock`, `send_leave` or `invite`: it is what the endpoint is for,
/// and about the room and event of the path. Signatures and hash are checked elsewhere. For an invite the caller also
/// sees to it that the invited user is ours.
///
/// Errors: 400 `M_INVALID_PARAM`.
pub fn check_signed_event(
    pdu: &Pdu,
    membership: Membership,
    room: &RoomId,
    event_id: &EventId,
    origin: &ServerName,
) -> Result<()> {
    let require =
        |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(Error::invalid_param(what)) };
    require(pdu.event_type() == "m.room.member", "the event is not an m.room.member event")?;
    require(
        pdu.membership() == Some(membership),
        "the event has not the membership that the endpoint is for",
    )?;
    require(pdu.room_id() == room, "the event is of another room than the path")?;
    require(pdu.event_id() == event_id, "the event has another event id than the path")?;
    require(
        pdu.sender().server_name() == origin.as_str(),
        "the event's sender is not of the requesting server",
    )?;
    if membership == Membership::Invite {
        let target = pdu.state_key().and_then(|key| UserId::parse(key).ok());
        return require(target.is_some(), "the event's state_key is not a user id");
    }
    require(pdu.state_key() == Some(pdu.sender().as_str()), "the event's state_key is not its sender")
}

/// Checks that an event that came back to us is the one that we sent, signatures (and `unsigned`) aside: the answer to
/// an invite, or the `event` in the answer to a join. Whether the new signatures are right is checked elsewhere.
///
/// Errors: `M_INVALID_PARAM`.
pub fn check_countersigned(ours: &Pdu, theirs: &Map<String, Value>) -> Result<()> {
    let signed_apart = ["signatures", "unsigned"];
    let same = json::canonical_event(&ours.to_object(), &signed_apart)
        == json::canonical_event(theirs, &signed_apart);
    if same {
        Ok(())
    } else {
        Err(Error::invalid_param("the event that came back is not the one that was sent"))
    }
}

/// Our event with the signatures that one other server put on it; those of anybody else are not taken over.
pub fn with_signatures_of(ours: &Pdu, theirs: &Map<String, Value>, server: &ServerName) -> Pdu {
    let mut object = ours.to_object();
    for (key_id, signature) in crate::protocol::sign::signatures_of(theirs, server.as_str()) {
        crate::protocol::sign::insert_signature(&mut object, server.as_str(), key_id, signature);
    }
    ours.with_object(&object)
}
