//! Presence.

use std::sync::Arc;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::accounts::moderation::suspended;
use crate::store::ephemeral::presence::PresenceState;

#[derive(Deserialize)]
struct PresenceBody {
    presence: String,
    status_msg: Option<String>,
}

/// The state of a name that a client wrote. Errors: 400 `M_INVALID_PARAM`.
pub(super) fn state(name: &str) -> Result<PresenceState> {
    PresenceState::parse(name)
        .ok_or_else(|| Error::invalid_param("A presence is online, unavailable or offline"))
}

/// `GET /_matrix/client/v3/presence/{userId}/status`.
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&hs.ephemeral().presence_for(&requester.user_id, &request.user_id()?)?))
}

/// `PUT /_matrix/client/v3/presence/{userId}/status`. Errors: 403 `M_USER_SUSPENDED` for a status in words of who is
/// suspended: others would read it.
pub fn put(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let body: PresenceBody = request.json()?;
    if requester.standing.suspended && body.status_msg.as_ref().is_some_and(|status| !status.is_empty()) {
        return Err(suspended());
    }
    let device = requester.device_id.as_deref();
    hs.ephemeral().set_presence(&requester.user_id, device, state(&body.presence)?, body.status_msg)?;
    Ok(Reply::empty())
}
