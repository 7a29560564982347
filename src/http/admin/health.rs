//! What is asked of the server itself: whether it is there, and which it is.

use std::sync::Arc;

use serde_json::json;

use crate::error::Result;
use crate::http::{Reply, Request};
use crate::service::Homeserver;

/// `GET /health`: that it answers is the answer, as load balancers and containers ask.
pub fn health(_hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Ok(Reply::bytes("text/plain; charset=utf-8", b"OK".to_vec()))
}

/// `GET /_synapse/admin/v1/server_version`
pub fn version(_hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Ok(Reply::json(&json!({ "server_version": concat!("Doorstep ", env!("CARGO_PKG_VERSION")) })))
}
