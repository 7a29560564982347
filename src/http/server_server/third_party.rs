//! Server-server API, "Third-party invites".

use std::sync::Arc;

use serde_json::json;

use crate::error::Result;
use crate::http::auth::asker;
use crate::http::{Origin, Reply, Request};
use crate::service::Homeserver;
use crate::service::membership::third_party_invite::AddressBound;

/// `PUT /_matrix/federation/v1/3pid/onbind`. Identity servers do not sign.
pub fn on_bind(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let bound: AddressBound = request.json()?;
    hs.third_party_bound(&asker(request, None), bound)?;
    Ok(Reply::json(&json!({})))
}

/// `PUT /_matrix/federation/v1/exchange_third_party_invite/{roomId}`.
pub fn exchange(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    hs.membership().exchange_third_party_invite(&origin.0, &request.room_id()?, &request.json_object()?)?;
    Ok(Reply::json(&json!({})))
}
