//! Server-server API, "Published room directory".

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::http::params::public_rooms_page;
use crate::http::{Origin, Reply, Request};
use crate::service::Homeserver;
use crate::service::rooms::directory::PublicRoomsRequest;

/// `GET /_matrix/federation/v1/publicRooms`.
pub fn list(hs: &Arc<Homeserver>, request: &Request, _origin: &Origin) -> Result<Reply> {
    answer(hs, public_rooms_page(request)?)
}

/// `POST /_matrix/federation/v1/publicRooms`.
pub fn search(hs: &Arc<Homeserver>, request: &Request, _origin: &Origin) -> Result<Reply> {
    answer(hs, request.json_or_empty()?)
}

fn answer(hs: &Homeserver, mut asked: PublicRoomsRequest) -> Result<Reply> {
    // "Defaults to 0 (no limit)": as many as one answer of this server has.
    asked.limit = Some(asked.limit.filter(|limit| *limit > 0).unwrap_or(u64::MAX));
    let rooms = hs.rooms().public_rooms_for_servers(&asked)?;
    Ok(Reply::raw_json(serde_json::to_vec(&rooms).map_err(Error::internal)?))
}
