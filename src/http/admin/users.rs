//! Synapse's admin API, "Users".

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::accounts::AccountsPage;
use crate::store::accounts::listed::{AccountFilter, AccountOrder};

/// How many accounts a page has if nothing is said.
const USUAL_PAGE: i64 = 100;

/// `GET /_synapse/admin/v2/users`: closed accounts are among them if `deactivated` is true, locked ones if `locked` is.
pub fn list(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let deactivated = request.query_bool("deactivated")?.unwrap_or(false);
    page(hs, request, (!deactivated).then_some(false))
}

/// `GET /_synapse/admin/v3/users`: the same, but `deactivated` says which ones alone.
pub fn list_v3(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    page(hs, request, request.query_bool("deactivated")?)
}

fn page(hs: &Homeserver, request: &Request, deactivated: Option<bool>) -> Result<Reply> {
    let text = |name: &str| request.query(name).filter(|text| !text.is_empty()).map(str::to_owned);
    let name = text("name");
    let guests = request.query_bool("guests")?.unwrap_or(true);
    let locked = request.query_bool("locked")?.unwrap_or(false);
    let filter = AccountFilter {
        user_id: text("user_id").filter(|_| name.is_none()),
        name,
        guest: (!guests).then_some(false),
        admin: request.query_bool("admins")?,
        deactivated,
        locked: (!locked).then_some(false),
    };
    let page = AccountsPage {
        filter,
        order: order(request.query("order_by").unwrap_or("name"))?,
        backwards: backwards(request)?,
        from: count(request, "from", 0)?,
        limit: count(request, "limit", USUAL_PAGE)?,
    };
    Ok(Reply::json(&hs.admin().list_accounts(&page)?))
}

fn order(name: &str) -> Result<AccountOrder> {
    Ok(match name {
        // Nobody here is of a type, or banned without being told: so these sort by name.
        "name" | "user_type" | "shadow_banned" => AccountOrder::Name,
        "displayname" => AccountOrder::Displayname,
        "avatar_url" => AccountOrder::AvatarUrl,
        "is_guest" => AccountOrder::Guest,
        "admin" => AccountOrder::Admin,
        "deactivated" => AccountOrder::Deactivated,
        "locked" => AccountOrder::Locked,
        "creation_ts" => AccountOrder::Created,
        "last_seen_ts" => AccountOrder::LastSeen,
        _ => return Err(Error::invalid_param("order_by names nothing that accounts are sorted by")),
    })
}

/// The query parameter `dir`. Errors: 400 `M_INVALID_PARAM`.
pub(super) fn backwards(request: &Request) -> Result<bool> {
    match request.query("dir") {
        None | Some("f") => Ok(false),
        Some("b") => Ok(true),
        Some(_) => Err(Error::invalid_param("dir must be f or b")),
    }
}

/// A query parameter that counts something. Errors: 400 `M_INVALID_PARAM`.
pub(super) fn count(request: &Request, name: &str, usual: i64) -> Result<i64> {
    match request.query_int(name)? {
        None => Ok(usual),
        Some(count) if count >= 0 => Ok(count),
        Some(_) => Err(Error::invalid_param(format!("Query parameter {name} must not be negative"))),
    }
}

/// `GET /_synapse/admin/v2/users/{userId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().account_details(&request.user_id()?)?))
}
