//! Client-server API, "Spaces" and "Room summaries".

use std::sync::Arc;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::client_server::{reply, via};
use crate::http::{Reply, Request, Requester};
use crate::protocol::{RoomAlias, RoomId, ServerName};
use crate::service::Homeserver;
use crate::service::membership::JoinTarget;
use crate::service::rooms::hierarchy::HierarchyRequest;
use crate::service::rooms::summary::RoomSummaryFor;

/// `GET /_matrix/client/v1/rooms/{roomId}/hierarchy`.
pub fn hierarchy(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let at_least = |name: &str, least: u64| -> Result<Option<u64>> {
        let wrong = || Error::invalid_param(format!("{name} must be an integer, at least {least}"));
        let given = request.query_int(name)?.map(|n| u64::try_from(n).map_err(|_| wrong())).transpose()?;
        if given.is_some_and(|n| n < least) { Err(wrong()) } else { Ok(given) }
    };
    let asked = HierarchyRequest {
        suggested_only: request.query_bool("suggested_only")?,
        limit: at_least("limit", 1)?,
        max_depth: at_least("max_depth", 0)?,
        from: request.query("from").map(str::to_owned),
    };
    reply(&hs.rooms().hierarchy(&requester.user_id, &request.room_id()?, &asked)?)
}

/// `GET /_matrix/client/v1/room_summary/{roomIdOrAlias}`.
pub fn room_summary(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    reply(&summary(hs, request, requester)?)
}

/// [`room_summary`] at the paths from before it was specified, where clients read some fields by other names.
pub fn unstable_room_summary(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: Option<&Requester>,
) -> Result<Reply> {
    let mut body = serde_json::to_value(summary(hs, request, requester)?).map_err(Error::internal)?;
    for (name, before) in [
        ("encryption", "im.nheko.summary.encryption"),
        ("room_version", "im.nheko.summary.room_version"),
        ("room_version", "im.nheko.summary.version"),
    ] {
        if let Some(value) = body.get(name).filter(|value| !value.is_null()) {
            let value: Value = value.clone();
            body[before] = value;
        }
    }
    Ok(Reply::json(&body))
}

fn summary(hs: &Homeserver, request: &Request, requester: Option<&Requester>) -> Result<RoomSummaryFor> {
    let room = request.param("roomIdOrAlias");
    let target = match requester {
        Some(_) if room.starts_with('#') => {
            let alias = RoomAlias::parse(room)?;
            let (room_id, servers) = hs.rooms().look_up_alias(&asker(request, requester), &alias)?;
            let own = ServerName::parse(alias.server_name());
            JoinTarget { room_id, via: via(request).into_iter().chain(servers).chain(own).collect() }
        }
        Some(_) => JoinTarget { room_id: RoomId::parse(room)?, via: via(request) },
        // Nobody makes us ask other servers without saying who they are.
        None if room.starts_with('#') => {
            let alias = RoomAlias::parse(room)?;
            let (room_id, _) = hs.rooms().resolve_own_alias(&asker(request, None), &alias)?;
            JoinTarget { room_id, via: Vec::new() }
        }
        None => JoinTarget { room_id: RoomId::parse(room)?, via: Vec::new() },
    };
    hs.rooms().room_summary(requester.map(|requester| &requester.user_id), &target)
}
