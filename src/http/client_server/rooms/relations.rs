//! Client-server API, "Forming relationships between events" and "Threading": what relates to an event, and the threads of
//! a room.

use std::sync::Arc;

use crate::error::{Error, Result};
use crate::http::client_server::{client_format, reply_with_page};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::rooms::relations::RelationsRequest;
use crate::service::rooms::threads::ThreadsRequest;

/// `GET /_matrix/client/v1/rooms/{roomId}/relations/{eventId}`, and the same for one type of relation, and for one of events.
pub fn relations(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let param = |name| Some(request.param(name)).filter(|text| !text.is_empty()).map(str::to_owned);
    let asked = RelationsRequest {
        rel_type: param("relType"),
        event_type: param("eventType"),
        from: request.pagination_token("from")?,
        to: request.pagination_token("to")?,
        backwards: match request.query("dir") {
            None | Some("b") => true,
            Some("f") => false,
            Some(_) => return Err(Error::invalid_param("dir must be b or f")),
        },
        limit: limit(request)?,
        recurse: request.query_bool("recurse")?,
        // Clients that ask so take the event itself from there.
        with_original: request.path().starts_with("/_matrix/client/unstable/"),
    };
    let format = client_format(hs, requester);
    let page = hs.rooms().relations(&format, &request.room_id()?, &request.event_id()?, &asked)?;
    reply_with_page(hs, (request, requester), &page)
}

/// `GET /_matrix/client/v1/rooms/{roomId}/threads`.
pub fn threads(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let asked = ThreadsRequest {
        participated: match request.query("include") {
            None | Some("all") => false,
            Some("participated") => true,
            Some(_) => return Err(Error::invalid_param("include must be all or participated")),
        },
        from: request.pagination_token("from")?,
        limit: limit(request)?,
    };
    let page = hs.rooms().threads(&client_format(hs, requester), &request.room_id()?, &asked)?;
    reply_with_page(hs, (request, requester), &page)
}

/// "Must be an integer greater than zero."
fn limit(request: &Request) -> Result<Option<usize>> {
    let Some(limit) = request.query_int("limit")? else { return Ok(None) };
    let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
    limit.map(Some).ok_or_else(|| Error::invalid_param("limit must be greater than zero"))
}
