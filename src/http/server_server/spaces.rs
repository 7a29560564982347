//! Server-server API, "Spaces".

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::http::{Origin, Reply, Request};
use crate::service::Homeserver;

/// `GET /_matrix/federation/v1/hierarchy/{roomId}`.
pub fn hierarchy(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let suggested_only = request.query_bool("suggested_only")?.unwrap_or(false);
    let answer = hs.rooms().hierarchy_for_peer(&origin.0, &request.room_id()?, suggested_only)?;
    Ok(Reply::raw_json(serde_json::to_vec(&answer).map_err(Error::internal)?))
}
