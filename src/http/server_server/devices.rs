//! Server-server API, "Device Management" and "End-to-End Encryption".

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::http::{Origin, Reply, Request};
use crate::protocol::json::read_object;
use crate::service::Homeserver;

/// `GET /_matrix/federation/v1/user/devices/{userId}`.
pub fn list(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    Ok(Reply::raw_json(hs.devices().devices_for_server(&origin.0, &request.user_id()?)?.into_bytes()))
}

#[derive(Deserialize)]
struct QueryBody {
    device_keys: Option<BTreeMap<String, Vec<String>>>,
}

/// `POST /_matrix/federation/v1/user/keys/query`.
pub fn query_keys(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let body: QueryBody = read_object(request.body())?;
    let wanted = body.device_keys.ok_or_else(|| Error::missing_param("Missing device_keys"))?;
    Ok(Reply::raw_json(hs.devices().keys_for_server(&origin.0, wanted)?.into_bytes()))
}

#[derive(Deserialize)]
struct ClaimBody {
    one_time_keys: Option<BTreeMap<String, BTreeMap<String, String>>>,
}

/// `POST /_matrix/federation/v1/user/keys/claim`.
pub fn claim_keys(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let body: ClaimBody = read_object(request.body())?;
    let wanted = body.one_time_keys.ok_or_else(|| Error::missing_param("Missing one_time_keys"))?;
    Ok(Reply::raw_json(hs.devices().give_keys_to_server(&origin.0, wanted)?.into_bytes()))
}
