//! Server-server API, "Device Management".

use std::sync::Arc;

use crate::error::Result;
use crate::http::{Origin, Reply, Request};
use crate::service::Homeserver;

/// `GET /_matrix/federation/v1/user/devices/{userId}`.
pub fn list(hs: &Arc<Homeserver>, request: &Request, _origin: &Origin) -> Result<Reply> {
    Ok(Reply::json(&hs.devices().devices_for_servers(&request.user_id()?)?))
}
