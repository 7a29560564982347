//! Client-server API, "Room aliases" and "Published room directory".

use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::client_server::reply;
use crate::http::params::public_rooms_page;
use crate::http::{Reply, Request, Requester};
use crate::protocol::{RoomId, ServerName};
use crate::service::Homeserver;
use crate::service::rooms::directory::PublicRoomsRequest;

/// `GET /_matrix/client/v3/directory/room/{roomAlias}`.
pub fn resolve(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    let (room_id, servers) = hs.rooms().look_up_alias(&asker(request, requester), &request.room_alias()?)?;
    Ok(Reply::json(&json!({"room_id": room_id, "servers": servers})))
}

/// `PUT /_matrix/client/v3/directory/room/{roomAlias}`.
pub fn set_alias(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let alias = request.room_alias()?;
    let body = request.json_object()?;
    let room = body.get("room_id").ok_or_else(|| Error::missing_param("Missing room_id"))?;
    let room = RoomId::parse(room.as_str().ok_or_else(|| Error::bad_json("room_id must be a string"))?)?;
    hs.rooms().set_alias((&requester.user_id, requester.appservice.as_deref()), &alias, &room)?;
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/v3/directory/room/{roomAlias}`.
pub fn delete_alias(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let by = (&requester.user_id, requester.appservice.as_deref());
    hs.rooms().delete_alias(by, requester.admin, &request.room_alias()?)?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v3/directory/list/room/{roomId}`.
pub fn visibility(hs: &Arc<Homeserver>, request: &Request, _requester: Option<&Requester>) -> Result<Reply> {
    let visibility = if hs.rooms().is_published(&request.room_id()?)? { "public" } else { "private" };
    Ok(Reply::json(&json!({"visibility": visibility})))
}

/// `PUT /_matrix/client/v3/directory/list/room/{roomId}`.
pub fn set_visibility(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let room = request.room_id()?;
    let published = match request.json_object_or_empty()?.get("visibility") {
        None => true,
        Some(Value::String(word)) if word == "public" => true,
        Some(Value::String(word)) if word == "private" => false,
        Some(_) => return Err(Error::invalid_param("visibility must be public or private")),
    };
    hs.rooms().set_published(&requester.user_id, requester.admin, &room, published)?;
    Ok(Reply::empty())
}

/// `PUT /_matrix/client/v3/directory/list/appservice/{networkId}/{roomId}`: "cannot be invoked by users who are not identified as
/// application services".
pub fn set_network_visibility(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
) -> Result<Reply> {
    let nobody = || Error::forbidden("Only application services may do this");
    let service = requester.appservice.as_ref().ok_or_else(nobody)?;
    let published = match request.json_object()?.get("visibility").and_then(Value::as_str) {
        Some("public") => true,
        Some("private") => false,
        _ => return Err(Error::invalid_param("visibility must be public or private")),
    };
    let network = request.param("networkId");
    hs.rooms().set_published_for_network(service, network, &request.room_id()?, published)?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v3/publicRooms`.
pub fn public_rooms(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    let asked = public_rooms_page(request)?;
    reply(&hs.rooms().public_rooms_of(&asker(request, requester), &directory_of(hs, request)?, &asked)?)
}

/// `POST /_matrix/client/v3/publicRooms`.
pub fn search_public_rooms(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let asked: PublicRoomsRequest = request.json_or_empty()?;
    reply(&hs.rooms().public_rooms_of(
        &asker(request, Some(requester)),
        &directory_of(hs, request)?,
        &asked,
    )?)
}

/// Whose directory is asked for.
fn directory_of(hs: &Homeserver, request: &Request) -> Result<ServerName> {
    request.query("server").map_or_else(|| Ok(hs.server_name().clone()), ServerName::parse)
}
