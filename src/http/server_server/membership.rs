//! Server-server API, "Joining Rooms", "Knocking upon a room", "Inviting to a room", "Leaving Rooms": the resident's
//! end of the handshakes, and invites to local users.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use super::large;
use crate::error::{ErrCode, Error, Result};
use crate::http::{Origin, Reply, Request};
use crate::protocol::json::{First, JsonList, write_json};
use crate::protocol::pdu::Membership;
use crate::protocol::room_version;
use crate::service::Homeserver;
use crate::service::membership::InviteReceived;

/// `GET /_matrix/federation/v1/make_join/{roomId}/{userId}`.
pub fn make_join(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    make(hs, request, origin, Membership::Join)
}

/// `GET /_matrix/federation/v1/make_knock/{roomId}/{userId}`.
pub fn make_knock(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    if request.query("ver").is_none() {
        return Err(Error::missing_param("Missing query parameter ver"));
    }
    make(hs, request, origin, Membership::Knock)
}

/// `GET /_matrix/federation/v1/make_leave/{roomId}/{userId}`.
pub fn make_leave(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    make(hs, request, origin, Membership::Leave)
}

fn make(hs: &Homeserver, request: &Request, origin: &Origin, membership: Membership) -> Result<Reply> {
    let versions: Vec<&str> = request.query_all("ver").collect();
    // A leave has no `ver`; a join without one speaks for version 1 alone.
    let versions = match (membership, versions.is_empty()) {
        (Membership::Leave, _) => None,
        (_, true) => Some(vec!["1"]),
        (_, false) => Some(versions),
    };
    let (event, version) = hs.membership().make_template(
        &origin.0,
        &request.room_id()?,
        &request.user_id()?,
        membership,
        versions.as_deref(),
    )?;
    let body = write_json(&TemplateReply { room_version: version.id, event }, TEMPLATE_BYTES)?;
    Ok(Reply::raw_json(body))
}

/// What a template takes that follows ten events.
const TEMPLATE_BYTES: usize = 1500;

/// Written as it is: as a value it would be copied first.
#[derive(serde::Serialize)]
struct TemplateReply {
    room_version: &'static str,
    event: Map<String, Value>,
}

/// `PUT /_matrix/federation/v2/send_join/{roomId}/{eventId}`.
pub fn send_join(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let omit = request.query_bool("omit_members")?.unwrap_or(false);
    let answer = hs.membership().receive_join(
        &origin.0,
        &request.room_id()?,
        &request.event_id()?,
        request.body(),
        omit,
    )?;
    Ok(large(hs, answer))
}

/// `PUT /_matrix/federation/v1/send_join/{roomId}/{eventId}`: the answer is an array of the status and the body.
pub fn send_join_v1(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let answer = hs.membership().receive_join(
        &origin.0,
        &request.room_id()?,
        &request.event_id()?,
        request.body(),
        false,
    )?;
    Ok(large(hs, answer.wrapped("[200,", "]")))
}

/// `PUT /_matrix/federation/v1/send_knock/{roomId}/{eventId}`.
pub fn send_knock(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let room_state = hs.membership().receive_knock(
        &origin.0,
        &request.room_id()?,
        &request.event_id()?,
        request.body(),
    )?;
    let bytes: usize = room_state.iter().map(|event| event.json_str().len() + 1).sum();
    let mut knock_room_state = JsonList::with_room(bytes);
    room_state.iter().for_each(|event| knock_room_state.push(event.json_str()));
    let body = write_json(&SendKnockReply { knock_room_state }, bytes + 64)?;
    Ok(Reply::raw_json(body))
}

#[derive(serde::Serialize)]
struct SendKnockReply {
    knock_room_state: JsonList,
}

/// `PUT /_matrix/federation/v2/send_leave/{roomId}/{eventId}`.
pub fn send_leave(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    hs.membership().receive_leave(&origin.0, &request.room_id()?, &request.event_id()?, request.body())?;
    Ok(Reply::empty())
}

/// `PUT /_matrix/federation/v1/send_leave/{roomId}/{eventId}`: the answer is an array of the status and the body.
pub fn send_leave_v1(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    send_leave(hs, request, origin)?;
    Ok(Reply::json(&json!([200, {}])))
}

/// Entries of the room's state that are read. Fewer are used.
const ROOM_STATE_ENTRIES_MAX: usize = 500;

#[derive(Deserialize)]
struct InviteV2 {
    room_version: String,
    event: Box<RawValue>,
    #[serde(default)]
    invite_room_state: First<Box<RawValue>, ROOM_STATE_ENTRIES_MAX>,
}

/// `PUT /_matrix/federation/v2/invite/{roomId}/{eventId}`.
pub fn invite(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let body: InviteV2 = request.json()?;
    let version = room_version::room_version(&body.room_version).ok_or_else(|| {
        Error::new(ErrCode::IncompatibleRoomVersion, "This server does not know the version of that room")
            .with_field("room_version", body.room_version.as_str())
    })?;
    let event = hs.membership().receive_invite(InviteReceived {
        origin: &origin.0,
        room_id: &request.room_id()?,
        event_id: &request.event_id()?,
        version,
        event: body.event.get().as_bytes(),
        room_state: &body.invite_room_state,
    })?;
    Ok(Reply::json(&json!({ "event": event })))
}

#[derive(Deserialize)]
struct InviteV1 {
    #[serde(default)]
    unsigned: Option<UnsignedV1>,
}

#[derive(Deserialize, Default)]
struct UnsignedV1 {
    #[serde(default)]
    invite_room_state: First<Box<RawValue>, ROOM_STATE_ENTRIES_MAX>,
}

/// `PUT /_matrix/federation/v1/invite/{roomId}/{eventId}`: the room's version must be taken for 1 or 2, which share
/// their event format and every check that is made here.
pub fn invite_v1(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let body: InviteV1 = request.json()?;
    let version = room_version::room_version("1").ok_or_else(|| Error::internal("room version 1 is gone"))?;
    let event = hs.membership().receive_invite(InviteReceived {
        origin: &origin.0,
        room_id: &request.room_id()?,
        event_id: &request.event_id()?,
        version,
        event: request.body(),
        room_state: &body.unsigned.unwrap_or_default().invite_room_state,
    })?;
    Ok(Reply::json(&Value::Array(vec![200.into(), json!({ "event": event })])))
}
