//! Synapse's admin API, "Rooms", "Room membership" and "User Admin API" as far as that is about rooms; which rooms are
//! blocked, and who knocks.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::http::auth::asker;
use crate::http::client_server::{reply, via};
use crate::http::{Reply, Request};
use crate::protocol::{RoomAlias, RoomId, UserId};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::knocks::{KnockAnswerer, KnockFilter};
use crate::service::admin::room_deletion::DeletionOrder;
use crate::service::admin::rooms::{RoomOrder, RoomsPage};
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::membership::JoinTarget;

use super::places;
use super::users::backwards;

/// How many rooms a page has if nothing is said.
const USUAL_PAGE: usize = 100;

/// `GET /_synapse/admin/v1/rooms`
pub fn list(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let order = request.query("order_by").unwrap_or("name");
    let order = RoomOrder::parse(order);
    let search = request.query("search_term").map(str::to_owned);
    if search.as_deref() == Some("") {
        return Err(Error::invalid_param("search_term cannot be an empty string"));
    }
    let page = RoomsPage {
        from: places(request, "from", 0)?,
        limit: places(request, "limit", USUAL_PAGE)?,
        order: order
            .ok_or_else(|| Error::invalid_param("order_by names nothing that rooms are sorted by"))?,
        backwards: backwards(request)?,
        search,
        public: request.query_bool("public_rooms")?,
        empty: request.query_bool("empty_rooms")?,
    };
    Ok(Reply::json(&hs.admin().list_rooms(&page)?))
}

/// `GET /_synapse/admin/v1/rooms/{roomId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().room_details(&request.room_id()?)?))
}

/// `GET /_synapse/admin/v1/rooms/{roomId}/members`
pub fn members(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().room_members(&request.room_id()?)?))
}

/// `GET /_synapse/admin/v1/rooms/{roomId}/state`
pub fn state(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let event_type = request.query("type").filter(|event_type| !event_type.is_empty());
    let state = hs.admin().room_state(&request.room_id()?, event_type)?;
    reply(&std::collections::BTreeMap::from([("state", state)]))
}

/// `GET /_synapse/admin/v1/rooms/{roomIdOrAlias}/forward_extremities`. They cannot be deleted, as they can in Synapse: the
/// server joins them by itself (`service/events/merge_forks.rs`), and one that goes by hand leaves others' events behind.
pub fn forward_extremities(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let ends = hs.admin().forward_extremities(&target(hs, request, admin)?.room_id)?;
    Ok(Reply::json(&json!({ "count": ends.len(), "results": ends })))
}

/// `GET /_synapse/admin/v1/fetch_event/{eventId}`
pub fn event(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    reply(&std::collections::BTreeMap::from([("event", hs.admin().event(&request.event_id()?)?)]))
}

/// `GET /_synapse/admin/v1/rooms/{roomId}/block`
pub fn block(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().room_block(&request.room_id()?)?))
}

/// `PUT /_synapse/admin/v1/rooms/{roomId}/block`
pub fn set_block(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let room_id = request.room_id()?;
    let body: Value = request.json()?;
    let block = match &body["block"] {
        Value::Bool(block) => *block,
        Value::Null => return Err(Error::missing_param("Missing params: ['block']")),
        _ => return Err(Error::bad_json("Param 'block' must be a boolean.")),
    };
    hs.admin().set_room_block(&room_id, block, admin)?;
    Ok(Reply::json(&json!({ "block": block })))
}

/// `GET /_doorstep/admin/v1/blocked_rooms`: `rooms`, each with its `room_id`, by whom and since when; `from` is the
/// `next_batch` of the page before.
pub fn blocked(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().blocked_rooms(request.query("from").unwrap_or_default())?))
}

/// What is asked for of a room that is deleted.
fn order(request: &Request) -> Result<DeletionOrder> {
    let body: Value = request.json_or_empty()?;
    let flag = |name: &'static str, usual: bool| match &body[name] {
        Value::Null => Ok(usual),
        Value::Bool(flag) => Ok(*flag),
        _ => Err(Error::bad_json(format!("Param '{name}' must be a boolean, if given"))),
    };
    let text = |name: &'static str| match &body[name] {
        Value::Null => Ok(None),
        Value::String(text) => Ok(Some(text.clone()).filter(|text| !text.is_empty())),
        _ => Err(Error::bad_json(format!("Param '{name}' must be a string, if given"))),
    };
    Ok(DeletionOrder {
        new_room_user_id: text("new_room_user_id")?.map(|user| UserId::parse(&user)).transpose()?,
        room_name: text("room_name")?,
        message: text("message")?,
        block: flag("block", false)?,
        purge: flag("purge", true)?,
        force_purge: flag("force_purge", false)?,
    })
}

/// `DELETE /_synapse/admin/v1/rooms/{roomId}`: answers when it is done.
pub fn delete(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let order = order(request)?;
    reply(&hs.admin().delete_room(&request.room_id()?, order, admin)?)
}

/// `DELETE /_synapse/admin/v2/rooms/{roomId}`: answers at once.
pub fn begin_deletion(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let order = order(request)?;
    let delete_id = hs.admin().begin_room_deletion(&request.room_id()?, order, admin)?;
    Ok(Reply::json(&json!({ "delete_id": delete_id })))
}

/// `GET /_synapse/admin/v2/rooms/{roomId}/delete_status`
pub fn deletions(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&json!({ "results": hs.admin().room_deletion_statuses(&request.room_id()?)? })))
}

/// `GET /_synapse/admin/v2/rooms/delete_status/{deleteId}`
pub fn deletion(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().room_deletion_status(request.param("deleteId"))?))
}

/// The room that an id or an alias stands for, and servers that may let us in.
fn target(hs: &Homeserver, request: &Request, admin: &Administrator) -> Result<JoinTarget> {
    let (room, mut via) = (request.param("roomIdOrAlias"), via(request));
    if !room.starts_with('#') {
        return Ok(JoinTarget { room_id: RoomId::parse(room)?, via });
    }
    let asker = match admin.user_id() {
        Some(user) => Asker::new(AskerId::User(user.clone())),
        None => asker(request, None),
    };
    let (room_id, servers) = hs.rooms().resolve_alias(&asker, &RoomAlias::parse(room)?)?;
    via.extend(servers);
    Ok(JoinTarget { room_id, via })
}

#[derive(Deserialize)]
struct UserBody {
    user_id: Option<String>,
}

/// `POST /_synapse/admin/v1/join/{roomIdOrAlias}`
pub fn join(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let body: UserBody = request.json()?;
    let user =
        UserId::parse(&body.user_id.ok_or_else(|| Error::missing_param("Missing params: ['user_id']"))?)?;
    let target = target(hs, request, admin)?;
    hs.admin().join_user(admin, &user, &target)?;
    Ok(Reply::json(&json!({ "room_id": target.room_id })))
}

/// `POST /_synapse/admin/v1/rooms/{roomIdOrAlias}/make_room_admin`: the administrator who asks, unless `user_id` is somebody
/// else.
pub fn make_admin(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let body: UserBody = request.json_or_empty()?;
    let user = match (body.user_id, admin.user_id()) {
        (Some(user), _) => UserId::parse(&user)?,
        (None, Some(admin)) => admin.clone(),
        (None, None) => return Err(Error::missing_param("Missing params: ['user_id']")),
    };
    hs.admin().make_room_admin(admin, &target(hs, request, admin)?.room_id, &user)?;
    Ok(Reply::empty())
}

/// `GET /_synapse/admin/v1/users/{userId}/joined_rooms`
pub fn joined_rooms(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().rooms_joined_by(&request.user_id()?)?))
}

// ----- knocks -----

/// `GET /_doorstep/admin/v1/knocks`: `knocks`, each with `room_id`, `room_name`, `user_id`, `displayname`, `reason` and
/// `since_ms`, the last who came first, and how many wait in all as `total`. `room_id` and `user_id` say upon which room, and who
/// alone.
pub fn knocks(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let room = request.query("room_id").map(RoomId::parse).transpose()?;
    let knocker = request.query("user_id").map(|name| knocker(hs, name)).transpose()?;
    let asked = KnockFilter { may_answer: None, room: room.as_ref(), knocker: knocker.as_ref() };
    let waiting = hs.admin().knocks_waiting(asked)?;
    Ok(Reply::json(&serde_json::to_value(waiting).map_err(Error::internal)?))
}

/// Who knocks may be of any server; one of ours may be named by the localpart.
fn knocker(hs: &Homeserver, name: &str) -> Result<UserId> {
    if name.starts_with('@') { UserId::parse(name) } else { hs.admin().named_user(name) }
}

/// `POST /_doorstep/admin/v1/knocks/{roomId}/{userId}/{answer}`: `accept` or `refuse`, the latter with a `reason` if there
/// is one. It is given in the name of the local member who has most power.
pub fn answer_knock(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let (room_id, user) = (request.room_id()?, knocker(hs, request.param("userId"))?);
    let body: Value = request.json_or_empty()?;
    let by = KnockAnswerer::Administrator(admin);
    match request.param("answer") {
        "accept" => hs.admin().accept_knock(by, &room_id, &user)?,
        "refuse" => hs.admin().refuse_knock(by, &room_id, &user, body["reason"].as_str())?,
        _ => {
            return Err(
                Error::new(ErrCode::Unrecognized, "A knock is answered by accept or refuse").with_status(404)
            );
        }
    }
    Ok(Reply::empty())
}
