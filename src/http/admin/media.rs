//! Synapse's admin API, "Media": files by who uploaded them, by their age, and those of other servers.

use std::sync::Arc;

use serde_json::json;

use super::places;
use super::users::{backwards, count};
use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::protocol::media::MxcUri;
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::media::{MediaPage, UsagePage};
use crate::store::media::listed::{MediaOrder, UsageOrder};

/// How much a page has if nothing is said.
const USUAL_PAGE: usize = 100;

/// Synapse takes what is before this for seconds: in milliseconds it is in the year 1970.
const EARLIEST_MS: i64 = 30_000_000_000;

fn before(request: &Request) -> Result<i64> {
    let before = request.query_int("before_ts")?;
    let before =
        before.ok_or_else(|| Error::missing_param("Missing required integer query parameter before_ts"))?;
    if before < EARLIEST_MS {
        return Err(Error::invalid_param(
            "Query parameter before_ts you provided is from the year 1970. Double check that you are providing a \
             timestamp in milliseconds.",
        ));
    }
    Ok(before)
}

fn deleted(ids: &[String]) -> Reply {
    Reply::json(&json!({ "deleted_media": ids, "total": ids.len() }))
}

/// `GET /_synapse/admin/v1/media/{serverName}/{mediaId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().media_details(&request.mxc_uri()?)?))
}

fn page(request: &Request) -> Result<MediaPage> {
    let order = request.query("order_by");
    // As Synapse has it: what is newest first, unless something is said.
    let unsaid = order.is_none() && request.query("dir").is_none();
    let order = MediaOrder::parse(order.unwrap_or("created_ts"));
    Ok(MediaPage {
        from: places(request, "from", 0)?,
        limit: places(request, "limit", USUAL_PAGE)?,
        order: order
            .ok_or_else(|| Error::invalid_param("order_by names nothing that media are sorted by"))?,
        backwards: unsaid || backwards(request)?,
    })
}

/// `GET /_synapse/admin/v1/users/{userId}/media`
pub fn of_user(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().media_of(&request.user_id()?, &page(request)?)?))
}

/// `DELETE /_synapse/admin/v1/users/{userId}/media`: those on the page.
pub fn delete_of_user(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    Ok(deleted(&hs.admin().delete_media_of(admin, &request.user_id()?, &page(request)?)?))
}

/// `POST /_synapse/admin/v1/user/{userId}/media/quarantine`
pub fn quarantine_of_user(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let count = hs.admin().quarantine_media_of(admin, &request.user_id()?)?;
    Ok(Reply::json(&json!({ "num_quarantined": count })))
}

/// `GET /_synapse/admin/v1/room/{roomId}/media`
pub fn of_room(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let of_room = hs.admin().media_of_room(&request.room_id()?)?;
    let (local, remote): (Vec<_>, Vec<_>) = of_room.iter().partition(|uri| uri.server == *hs.server_name());
    let told = |uris: Vec<&MxcUri>| uris.iter().map(ToString::to_string).collect::<Vec<_>>();
    Ok(Reply::json(&json!({ "local": told(local), "remote": told(remote) })))
}

/// `POST /_synapse/admin/v1/room/{roomId}/media/quarantine`, and by its old name `quarantine_media/{roomId}`.
pub fn quarantine_of_room(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let count = hs.admin().quarantine_media_of_room(admin, &request.room_id()?)?;
    Ok(Reply::json(&json!({ "num_quarantined": count })))
}

/// `POST /_synapse/admin/v1/media/delete`, and with the server's own name before `/delete`.
pub fn delete_old(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let server = request.param("serverName");
    if !server.is_empty() && server != hs.server_name().as_str() {
        return Err(Error::invalid_param("Can only delete local media"));
    }
    let larger = count(request, "size_gt", 0)?;
    let keep = request.query_bool("keep_profiles")?.unwrap_or(true);
    Ok(deleted(&hs.admin().delete_old_media(admin, before(request)?, larger.max(0).unsigned_abs(), keep)?))
}

/// `POST /_synapse/admin/v1/purge_media_cache`
pub fn purge_cache(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&json!({ "deleted": hs.admin().purge_media_cache(admin, before(request)?)? })))
}

/// `GET /_synapse/admin/v1/statistics/users/media`
pub fn usage(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let from_ms = request.query_int("from_ts")?.unwrap_or(0);
    let until_ms = request.query_int("until_ts")?;
    if until_ms.is_some_and(|until| until <= from_ms) {
        return Err(Error::invalid_param("Query parameter until_ts must be greater than from_ts."));
    }
    let search = request.query("search_term").map(str::to_owned);
    if search.as_deref() == Some("") {
        return Err(Error::invalid_param("Query parameter search_term cannot be an empty string."));
    }
    let order = UsageOrder::parse(request.query("order_by").unwrap_or("user_id"));
    let page = UsagePage {
        from: places(request, "from", 0)?,
        limit: places(request, "limit", USUAL_PAGE)?,
        order: order
            .ok_or_else(|| Error::invalid_param("order_by names nothing that users are sorted by"))?,
        backwards: backwards(request)?,
        between: (from_ms, until_ms.unwrap_or(i64::MAX)),
        search,
    };
    Ok(Reply::json(&hs.admin().media_usage(&page)?))
}
