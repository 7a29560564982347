//! Client-server API, "Room membership": join, knock, invite, leave, kick, ban, unban, forget.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::client_server::via;
use crate::http::{Reply, Request, Requester};
use crate::protocol::json::shaped;
use crate::protocol::{RoomAlias, RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::membership::{JoinTarget, Memberships};

#[derive(Deserialize)]
struct ReasonBody {
    reason: Option<String>,
    third_party_signed: Option<Map<String, Value>>,
}

#[derive(Deserialize)]
struct TargetBody {
    user_id: Option<String>,
    reason: Option<String>,
    medium: Option<String>,
}

impl TargetBody {
    fn user(&self) -> Result<UserId> {
        UserId::parse(self.user_id.as_deref().ok_or_else(|| Error::missing_param("Missing user_id"))?)
    }
}

/// `POST /_matrix/client/v3/join/{roomIdOrAlias}`.
pub fn join(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    join_target(hs, request, requester, target(hs, request, requester)?)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/join`.
pub fn join_by_id(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    join_target(hs, request, requester, JoinTarget { room_id: request.room_id()?, via: via(request) })
}

fn join_target(
    hs: &Homeserver,
    request: &Request,
    requester: &Requester,
    target: JoinTarget,
) -> Result<Reply> {
    let fields = request.json_object_or_empty()?;
    let body: ReasonBody = shaped(&fields)?;
    let mut target = target;
    if let Some(signed) = body.third_party_signed {
        let sender = signed.get("sender").and_then(Value::as_str).unwrap_or_default();
        let sender = UserId::parse(sender)?;
        hs.membership().redeem_third_party_invite(&target.room_id, &sender, &requester.user_id, signed)?;
        target.via.insert(0, sender.server());
    }
    hs.membership().join_with(&requester.user_id, &target, body.reason.as_deref(), fields)?;
    Ok(Reply::json(&json!({ "room_id": target.room_id })))
}

/// `POST /_matrix/client/v3/knock/{roomIdOrAlias}`.
pub fn knock(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: ReasonBody = request.json_or_empty()?;
    let target = target(hs, request, requester)?;
    hs.membership().knock(&requester.user_id, &target, body.reason.as_deref())?;
    Ok(Reply::json(&json!({ "room_id": target.room_id })))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/invite`.
pub fn invite(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let target: TargetBody = request.json()?;
    if target.user_id.is_none() && target.medium.is_some() {
        hs.membership().invite_third_party(&requester.user_id, &request.room_id()?, &request.json()?)?;
        return Ok(Reply::empty());
    }
    hs.membership().invite(
        &requester.user_id,
        &request.room_id()?,
        &target.user()?,
        target.reason.as_deref(),
        Map::new(),
    )?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/leave`: leaves, rejects an invite, withdraws a knock.
pub fn leave(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: ReasonBody = request.json_or_empty()?;
    hs.membership().leave(&requester.user_id, &request.room_id()?, body.reason.as_deref())?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/forget`.
pub fn forget(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    hs.membership().forget(&requester.user_id, &request.room_id()?)?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/kick`.
pub fn kick(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    moderate(hs, request, requester, Memberships::kick)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/ban`.
pub fn ban(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    moderate(hs, request, requester, Memberships::ban)
}

/// `POST /_matrix/client/v3/rooms/{roomId}/unban`.
pub fn unban(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    moderate(hs, request, requester, Memberships::unban)
}

/// What a member does to another's membership: by whom, in which room, to whom, and why.
type Verb<'h> = fn(&Memberships<'h>, &UserId, &RoomId, &UserId, Option<&str>) -> Result<()>;

fn moderate<'h>(
    hs: &'h Homeserver,
    request: &Request,
    requester: &Requester,
    verb: Verb<'h>,
) -> Result<Reply> {
    let target: TargetBody = request.json()?;
    let (room_id, user) = (request.room_id()?, target.user()?);
    verb(&hs.membership(), &requester.user_id, &room_id, &user, target.reason.as_deref())?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v3/joined_rooms`.
pub fn joined_rooms(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({ "joined_rooms": hs.membership().joined_rooms(&requester.user_id)? })))
}

/// The room that an id or an alias stands for, and servers that may let us in: those that the client names first.
fn target(hs: &Homeserver, request: &Request, requester: &Requester) -> Result<JoinTarget> {
    let (room, mut via) = (request.param("roomIdOrAlias"), via(request));
    if !room.starts_with('#') {
        return Ok(JoinTarget { room_id: RoomId::parse(room)?, via });
    }
    let alias = RoomAlias::parse(room)?;
    let (room_id, servers) = hs.rooms().resolve_alias(&asker(request, Some(requester)), &alias)?;
    via.extend(servers);
    via.extend(ServerName::parse(alias.server_name()).ok());
    Ok(JoinTarget { room_id, via })
}
