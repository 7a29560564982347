//! `GET /_matrix/federation/v1/version`.

use std::sync::Arc;

use serde_json::json;

use crate::error::Result;
use crate::http::{Reply, Request};
use crate::service::Homeserver;

/// What this server is and which version of it.
pub fn version(_: &Arc<Homeserver>, _: &Request) -> Result<Reply> {
    Ok(Reply::json(&json!({ "server": { "name": "Doorstep", "version": env!("CARGO_PKG_VERSION") } })))
}
