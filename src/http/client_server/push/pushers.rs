//! Client-server API, "Push notifications": pushers, and what their user was notified of.

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, Result};
use crate::http::client_server::{client_format, reply_with_page};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::push::pushers::PusherRequest;
use crate::service::rooms::notifications::NotificationsRequest;

/// `GET /_matrix/client/v3/pushers`.
pub fn list(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({ "pushers": hs.push().pushers(&requester.user_id)? })))
}

/// `POST /_matrix/client/v3/pushers/set`.
pub fn set(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let asked = PusherRequest::read(&request.json_object()?)?;
    hs.push().set_pusher(&requester.user_id, &requester.device_id, asked)?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v3/notifications`.
pub fn notifications(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let from = request.query("from").filter(|from| !from.is_empty());
    let from =
        from.map(|from| from.parse().map_err(|_| Error::invalid_param("from is no token of this endpoint")));
    let limit = request.query_int("limit")?;
    let limit = limit.map(|limit| usize::try_from(limit).ok().filter(|limit| *limit > 0));
    let limit = limit.map(|limit| limit.ok_or_else(|| Error::invalid_param("limit must be positive")));
    let asked = NotificationsRequest {
        from: from.transpose()?,
        limit: limit.transpose()?,
        // "Supply `highlight` to return only events where the notification had the highlight tweak set." Whatever else
        // is asked for is no filter that there is.
        only_highlights: request
            .query("only")
            .is_some_and(|only| only.split(',').any(|one| one == "highlight")),
    };
    let page = hs.rooms().notifications(&client_format(hs, requester), &asked)?;
    reply_with_page(hs, (request, requester), &page)
}
