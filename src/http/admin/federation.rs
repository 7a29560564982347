//! Synapse's admin API, "Federation": other servers, and how they stand with us.

use std::sync::Arc;

use super::places;
use super::users::backwards;
use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::federation::{ServerOrder, ServersPage};

/// How many servers, or rooms, a page has if nothing is said.
const USUAL_PAGE: usize = 100;

/// `GET /_synapse/admin/v1/federation/destinations`
pub fn list(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let order = ServerOrder::parse(request.query("order_by").unwrap_or("destination"));
    let page = ServersPage {
        name: request.query("destination").filter(|part| !part.is_empty()).map(str::to_owned),
        order: order
            .ok_or_else(|| Error::invalid_param("order_by names nothing that servers are sorted by"))?,
        backwards: backwards(request)?,
        from: places(request, "from", 0)?,
        limit: places(request, "limit", USUAL_PAGE)?,
    };
    Ok(Reply::json(&hs.admin().list_servers(&page)?))
}

/// `GET /_synapse/admin/v1/federation/destinations/{serverName}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let standing = hs.admin().server_standing(&request.server_name()?)?;
    Ok(Reply::json(&serde_json::to_value(standing).map_err(Error::internal)?))
}

/// `GET /_synapse/admin/v1/federation/destinations/{serverName}/rooms`
pub fn rooms(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    let (from, limit) = (places(request, "from", 0)?, places(request, "limit", USUAL_PAGE)?);
    let server = request.server_name()?;
    Ok(Reply::json(&hs.admin().rooms_of_server(&server, backwards(request)?, from, limit)?))
}

/// `POST /_synapse/admin/v1/federation/destinations/{serverName}/reset_connection`
pub fn reset(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    hs.admin().try_server_now(admin, &request.server_name()?)?;
    Ok(Reply::empty())
}
