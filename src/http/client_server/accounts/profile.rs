//! Client-server API, "Profiles".

use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::accounts::moderation::not_for_guests;

/// `GET /_matrix/client/v3/profile/{userId}`.
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    Ok(Reply::json(&Value::Object(hs.accounts().profile(&asker(request, requester), &request.user_id()?)?)))
}

/// `GET /_matrix/client/v3/profile/{userId}/{keyName}`.
pub fn get_field(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    let (asker, user) = (asker(request, requester), request.user_id()?);
    Ok(Reply::json(&Value::Object(hs.accounts().profile_field(&asker, &user, request.param("keyName"))?)))
}

/// `PUT /_matrix/client/v3/profile/{userId}/{keyName}`.
pub fn put_field(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let field = request.param("keyName");
    check_field_for_guest(requester, field)?;
    let value = request.json_object()?.remove(field);
    let value = value.ok_or_else(|| Error::missing_param(format!("The body needs {field}")))?;
    hs.accounts().set_profile_field(&requester.user_id, field, value)?;
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/v3/profile/{userId}/{keyName}`.
pub fn delete_field(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    check_field_for_guest(requester, request.param("keyName"))?;
    hs.accounts().delete_profile_field(&requester.user_id, request.param("keyName"))?;
    Ok(Reply::empty())
}

/// "Guest users may only modify their display name; other profile fields may not be changed."
fn check_field_for_guest(requester: &Requester, field: &str) -> Result<()> {
    match requester.standing.guest && field != "displayname" {
        true => Err(not_for_guests("Guests can change their display name only")),
        false => Ok(()),
    }
}
