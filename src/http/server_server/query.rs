//! Server-server API, "Querying for information": aliases and profiles of this server.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::http::{Origin, Reply, Request};
use crate::protocol::json::object_of;
use crate::protocol::{RoomAlias, UserId};
use crate::service::Homeserver;
use crate::service::limits::request_permits::{Asker, AskerId};

/// `GET /_matrix/federation/v1/query/directory`.
pub fn directory(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let alias = RoomAlias::parse(request.required_query("room_alias")?)?;
    let (room_id, servers) = hs.rooms().resolve_own_alias(&peer(origin), &alias)?;
    Ok(Reply::json(&json!({"room_id": room_id, "servers": servers})))
}

/// The server, as who asks.
fn peer(origin: &Origin) -> Asker {
    Asker::new(AskerId::Peer(origin.0.clone()))
}

/// `GET /_matrix/federation/v1/query/{queryType}`: every kind of query that there is has a line of its own in the table
/// of endpoints, so that this one is of no kind that is known.
pub fn unknown(_hs: &Arc<Homeserver>, request: &Request, _origin: &Origin) -> Result<Reply> {
    let message = format!("This server does not know queries of the type {:?}", request.param("queryType"));
    Err(Error::new(ErrCode::Unrecognized, message))
}

/// `GET /_matrix/federation/v1/query/profile`.
pub fn profile(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let user = UserId::parse(request.required_query("user_id")?)?;
    if !hs.is_local(&user) {
        return Err(Error::invalid_param("The user is not of this server"));
    }
    let mut profile = hs.accounts().own_profile(&peer(origin), &user)?;
    if let Some(field) = request.query("field") {
        // "If the user does not have a particular field set … either exclude it or give it the value null."
        profile = profile.remove(field).map_or_else(Map::new, |value| object_of([(field, value)]));
    }
    Ok(Reply::json(&Value::Object(profile)))
}
