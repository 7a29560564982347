//! Server-server API, "Transactions".

use std::sync::Arc;

use crate::error::Result;
use crate::http::{Origin, Reply, Request};
use crate::service::Homeserver;

/// `PUT /_matrix/federation/v1/send/{txnId}`.
pub fn send(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    Ok(Reply::json(&hs.incoming().receive_transaction(&origin.0, request.param("txnId"), request.body())?))
}
