//! Client-server API, "Client config" and "Room tagging".

use std::sync::Arc;

use serde_json::json;

use crate::error::Result;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;

/// `PUT /_matrix/client/v3/user/{userId}/account_data/{type}`.
pub fn put_global(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    hs.accounts().set_account_data(
        &requester.user_id,
        None,
        request.param("type"),
        &request.json_object()?,
    )?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v3/user/{userId}/account_data/{type}`.
pub fn get_global(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let content = hs.accounts().account_data(&requester.user_id, None, request.param("type"))?;
    Ok(Reply::raw_json(content.into_bytes()))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`.
pub fn put_of_room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let room = request.room_id()?;
    hs.accounts().set_account_data(
        &requester.user_id,
        Some(&room),
        request.param("type"),
        &request.json_object()?,
    )?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/account_data/{type}`.
pub fn get_of_room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let content =
        hs.accounts().account_data(&requester.user_id, Some(&request.room_id()?), request.param("type"))?;
    Ok(Reply::raw_json(content.into_bytes()))
}

/// `GET /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags`.
pub fn tags(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let tags = hs.accounts().tags(&requester.user_id, &request.room_id()?)?;
    Ok(Reply::json(&json!({"tags": tags})))
}

/// `PUT /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`.
pub fn put_tag(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let body = request.json_object_or_empty()?;
    hs.accounts().set_tag(&requester.user_id, &request.room_id()?, request.param("tag"), body)?;
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/v3/user/{userId}/rooms/{roomId}/tags/{tag}`.
pub fn delete_tag(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    hs.accounts().delete_tag(&requester.user_id, &request.room_id()?, request.param("tag"))?;
    Ok(Reply::empty())
}
