//! Client-server API, "Filtering".

use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::Result;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;

/// `POST /_matrix/client/v3/user/{userId}/filter`.
pub fn define(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let definition = Value::Object(request.json_object()?).to_string();
    let filter_id = hs.syncing().add_filter(&requester.user_id, definition)?;
    Ok(Reply::json(&json!({"filter_id": filter_id.to_string()})))
}

/// `GET /_matrix/client/v3/user/{userId}/filter/{filterId}`.
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let definition = hs.syncing().stored_filter(&requester.user_id, request.param("filterId"))?;
    Ok(Reply::raw_json(definition.into_bytes()))
}
