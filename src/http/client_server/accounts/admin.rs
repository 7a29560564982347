//! Client-server API, "Server Administration": locks and suspensions of accounts, and who is where.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;

#[derive(Deserialize)]
struct LockBody {
    locked: bool,
}

#[derive(Deserialize)]
struct SuspendBody {
    suspended: bool,
}

/// `GET /_matrix/client/v3/admin/whois/{userId}`.
pub fn whois(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let user = request.user_id()?;
    if requester.user_id != user && !requester.admin {
        return Err(Error::forbidden("Only administrators of this server may look at other users"));
    }
    Ok(Reply::json(&hs.accounts().whois(&user)?))
}

/// `GET /_matrix/client/v1/admin/lock/{userId}`.
pub fn lock(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&json!({ "locked": hs.accounts().standing(&request.user_id()?)?.locked })))
}

/// `PUT /_matrix/client/v1/admin/lock/{userId}`.
pub fn set_lock(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let LockBody { locked } = request.json()?;
    let user = request.user_id()?;
    let now = hs.accounts().change_standing(admin, &user, move |standing| standing.locked = locked)?;
    Ok(Reply::json(&json!({ "locked": now.locked })))
}

/// `GET /_matrix/client/v1/admin/suspend/{userId}`.
pub fn suspension(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&json!({ "suspended": hs.accounts().standing(&request.user_id()?)?.suspended })))
}

/// `PUT /_matrix/client/v1/admin/suspend/{userId}`.
pub fn set_suspension(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let SuspendBody { suspended } = request.json()?;
    let user = request.user_id()?;
    let change = move |standing: &mut crate::store::accounts::Standing| standing.suspended = suspended;
    let now = hs.accounts().change_standing(admin, &user, change)?;
    Ok(Reply::json(&json!({ "suspended": now.suspended })))
}
