//! Synapse's admin API, "Users". Where a path has a user id, the localpart of one of ours will do.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::order::Gather;
use crate::protocol::UserId;
use crate::service::Homeserver;
use crate::service::accounts::NewAccount;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::accounts::{AccountChange, AccountsPage};
use crate::store::accounts::OwnRate;
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

/// The user whom the path names. Errors: 400 `M_INVALID_PARAM`, 400 `M_UNKNOWN` for another server's.
pub(super) fn user(hs: &Homeserver, request: &Request) -> Result<UserId> {
    hs.admin().named_user(request.param("userId"))
}

/// `GET /_synapse/admin/v2/users/{userId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().account_details(&user(hs, request)?)?))
}

/// `PUT /_synapse/admin/v2/users/{userId}`: changes an account (200), or makes it (201).
pub fn put(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let (user, body) = (user(hs, request)?, request.json_object()?);
    refuse_unkept(&body)?;
    let change = AccountChange {
        password: text(&body, "password")?.filter(|password| !password.is_empty()),
        logout_devices: flag(&body, "logout_devices")?.unwrap_or(true),
        displayname: text(&body, "displayname")?,
        avatar_url: text(&body, "avatar_url")?,
        admin: flag(&body, "admin")?,
        locked: flag(&body, "locked")?,
        deactivated: flag(&body, "deactivated")?,
    };
    let (account, is_made) = hs.admin().put_account(admin, &user, &change)?;
    Ok(Reply::json_status(if is_made { 201 } else { 200 }, &account))
}

/// What this server keeps nothing of is not taken as if it did. Errors: 400 `M_INVALID_PARAM`.
fn refuse_unkept(body: &Map<String, Value>) -> Result<()> {
    for field in ["threepids", "external_ids", "user_type"] {
        let is_none = match body.get(field) {
            None | Some(Value::Null) => true,
            Some(Value::Array(list)) => list.is_empty(),
            Some(_) => false,
        };
        if !is_none {
            return Err(Error::invalid_param(format!("This server keeps no {field}")));
        }
    }
    Ok(())
}

/// A field that is text; `null` is an empty one. Errors: 400 `M_BAD_JSON`.
fn text(body: &Map<String, Value>, name: &str) -> Result<Option<String>> {
    match body.get(name) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(String::new())),
        Some(Value::String(text)) => Ok(Some(text.clone())),
        Some(_) => Err(Error::bad_json(format!("{name} must be a string"))),
    }
}

/// A field that is true or false; `null` says nothing. Errors: 400 `M_BAD_JSON`.
pub(super) fn flag(body: &Map<String, Value>, name: &str) -> Result<Option<bool>> {
    match body.get(name) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::Bool(flag)) => Ok(Some(*flag)),
        Some(_) => Err(Error::bad_json(format!("Param '{name}' must be a boolean, if given"))),
    }
}

#[derive(Deserialize)]
struct NewBody {
    name: String,
    password: Option<String>,
    #[serde(default)]
    admin: bool,
    displayname: Option<String>,
}

/// `POST /_doorstep/admin/v1/users`: makes an account, and never changes one. Errors: 400 `M_USER_IN_USE`.
pub fn add(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let body: NewBody = request.json()?;
    let user = hs.admin().named_user(&body.name)?;
    let new = NewAccount {
        localpart: Some(user.localpart()),
        password: body.password.as_deref(),
        admin: body.admin,
        display_name: body.displayname.as_deref(),
        ..NewAccount::default()
    };
    Ok(Reply::json_status(201, &hs.admin().add_account(admin, &new)?))
}

#[derive(Deserialize)]
struct ResetPasswordBody {
    new_password: String,
    #[serde(default = "yes")]
    logout_devices: bool,
}

fn yes() -> bool {
    true
}

/// `POST /_synapse/admin/v1/reset_password/{userId}`
pub fn reset_password(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let body: ResetPasswordBody = request.json()?;
    let user = user(hs, request)?;
    hs.admin().reset_password(admin, &user, &body.new_password, body.logout_devices)?;
    Ok(Reply::empty())
}

/// `POST /_synapse/admin/v1/deactivate/{userId}`
pub fn deactivate(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let erase = flag(&request.json_object_or_empty()?, "erase")?.unwrap_or(false);
    hs.admin().deactivate_account(admin, &user(hs, request)?, erase)?;
    // There are no third-party identifiers, so that nothing was left bound.
    Ok(Reply::json(&json!({ "id_server_unbind_result": "success" })))
}

/// `PUT /_synapse/admin/v1/suspend/{userId}`
pub fn suspend(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let suspend = flag(&request.json_object()?, "suspend")?;
    let suspend = suspend.ok_or_else(|| Error::bad_json("suspend must be true or false"))?;
    let user = user(hs, request)?;
    hs.accounts().change_standing(admin, &user, move |standing| standing.suspended = suspend)?;
    Ok(Reply::json(&json!({ (format!("user_{user}_suspended")): suspend })))
}

/// `GET /_synapse/admin/v1/whois/{userId}`: where from the user was heard of. As in Synapse it is told of all devices together,
/// under an empty name, where its tools look for it.
pub fn whois(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let user = user(hs, request)?;
    let devices = hs.admin().devices_of(&user)?;
    let seen = devices.iter().filter(|device| !device["last_seen_ip"].is_null());
    let connections: Vec<Value> = seen
        .map(|device| json!({ "ip": device["last_seen_ip"], "last_seen": device["last_seen_ts"], "user_agent": "" }))
        .collect();
    let devices = json!({ "": { "sessions": [{ "connections": connections }] } });
    Ok(Reply::json(&json!({ "user_id": user, "devices": devices })))
}

/// `GET /_synapse/admin/v1/users/{userId}/admin`
pub fn is_admin(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&json!({ "admin": hs.admin().is_admin(&user(hs, request)?)? })))
}

/// `PUT /_synapse/admin/v1/users/{userId}/admin`
pub fn set_admin(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let to = flag(&request.json_object()?, "admin")?;
    let to = to.ok_or_else(|| Error::missing_param("Missing params: ['admin']"))?;
    hs.admin().set_admin(admin, &user(hs, request)?, to)?;
    Ok(Reply::empty())
}

/// `GET /_synapse/admin/v1/users/{userId}/memberships`
pub fn memberships(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let rooms = hs.admin().memberships_of(&user(hs, request)?)?;
    let rooms: Map<String, Value> =
        rooms.into_iter().map(|(room, membership)| (room, membership.as_str().into())).gather();
    Ok(Reply::json(&json!({ "memberships": rooms })))
}

/// `GET /_synapse/admin/v1/users/{userId}/accountdata`
pub fn account_data(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&json!({ "account_data": hs.admin().account_data_of(&user(hs, request)?)? })))
}

/// `GET /_synapse/admin/v1/users/{userId}/pushers`
pub fn pushers(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let pushers = hs.push().pushers(&user(hs, request)?)?;
    Ok(Reply::json(&json!({ "total": pushers.len(), "pushers": pushers })))
}

/// How often a user may ask, as Synapse's API has it.
fn rate_reply(rate: Option<OwnRate>) -> Reply {
    Reply::json(&match rate {
        Some(OwnRate { per_second, burst }) => {
            json!({ "messages_per_second": per_second, "burst_count": burst })
        }
        None => json!({}),
    })
}

/// `GET /_synapse/admin/v1/users/{userId}/override_ratelimit`: `{}` for who may ask as often as everybody.
pub fn own_rate(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(rate_reply(hs.admin().own_rate(&user(hs, request)?)?))
}

/// `POST /_synapse/admin/v1/users/{userId}/override_ratelimit`: 0 messages a second: as often as they like.
pub fn set_own_rate(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let number = |name: &str| match body.get(name) {
        None => Ok(0),
        Some(number) => {
            let number = number.as_u64().and_then(|number| u32::try_from(number).ok());
            number.ok_or_else(|| Error::invalid_param(format!("{name} must be a number, and not negative")))
        }
    };
    let rate = Some(OwnRate { per_second: number("messages_per_second")?, burst: number("burst_count")? });
    hs.admin().set_own_rate(admin, &user(hs, request)?, rate)?;
    Ok(rate_reply(rate))
}

/// `DELETE /_synapse/admin/v1/users/{userId}/override_ratelimit`
pub fn end_own_rate(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    hs.admin().set_own_rate(admin, &user(hs, request)?, None)?;
    Ok(rate_reply(None))
}

/// `GET /_synapse/admin/v1/username_available`
pub fn username_available(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    hs.accounts().available_user_id(request.required_query("username")?)?;
    Ok(Reply::json(&json!({ "available": true })))
}
