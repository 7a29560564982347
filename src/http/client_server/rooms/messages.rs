//! Client-server API, "Getting events for a room": pages of history, single events, what surrounds one, members.

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, Result};
use crate::http::client_server::sync::{reply_in_turn, turn_of};
use crate::http::client_server::{client_format, reply, reply_by_size, reply_with_page};
use crate::http::params::moment;
use crate::http::{Reply, Request, Requester};
use crate::protocol::filter::EventFilter;
use crate::protocol::pdu::Membership;
use crate::service::Homeserver;
use crate::service::rooms::messages::{MembersRequest, MessagesRequest};

/// "The maximum number of events to return. Default: 10."
const DEFAULT_LIMIT: usize = 10;

/// `GET /_matrix/client/v3/rooms/{roomId}/messages`.
pub fn messages(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let backwards = match request.required_query("dir")? {
        "b" => true,
        "f" => false,
        _ => return Err(Error::invalid_param("dir must be b or f")),
    };
    let filter = filter(request)?;
    let asked = MessagesRequest {
        from: request.pagination_token("from")?,
        to: request.pagination_token("to")?,
        backwards,
        limit: limit(request)?.min(filter.limit_or(usize::MAX, usize::MAX)),
        filter,
    };
    let page = hs.rooms().messages(&client_format(hs, requester), &request.room_id()?, &asked)?;
    reply_with_page(hs, (request, requester), &page)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/initialSync`.
pub fn room_initial_sync(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (format, limit) = (client_format(hs, requester), limit(request)?);
    let turn = turn_of(hs, (request, requester))?;
    let answer = hs.rooms().room_initial_sync(&format, &request.room_id()?, limit)?;
    Ok(reply_in_turn(Some(turn), answer.into()))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/context/{eventId}`.
pub fn context(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (room, event) = (request.room_id()?, request.event_id()?);
    let filter = filter(request)?;
    let limit = limit(request)?.min(filter.limit_or(usize::MAX, usize::MAX));
    let format = client_format(hs, requester);
    reply_by_size(hs, (request, requester), |most| {
        let context = hs.rooms().context(&format, &room, &event, (limit, most), &filter)?;
        context.map(|context| serde_json::to_vec(&context).map_err(Error::internal)).transpose()
    })
}

/// `GET /_matrix/client/v3/rooms/{roomId}/event/{eventId}`.
pub fn event(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    reply(&hs.rooms().event_for(&client_format(hs, requester), &request.room_id()?, &request.event_id()?)?)
}

/// `GET /_matrix/client/v3/events/{eventId}`: deprecated, for clients that know an event by its id alone.
pub fn event_of_any_room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    reply(&hs.rooms().event_of_any_room(&client_format(hs, requester), &request.event_id()?)?)
}

/// `GET /_matrix/client/v3/rooms/{roomId}/members`.
pub fn members(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let asked = MembersRequest {
        at: request.pagination_token("at")?,
        membership: membership(request, "membership")?,
        not_membership: membership(request, "not_membership")?,
    };
    let (format, room) = (client_format(hs, requester), request.room_id()?);
    reply_by_size(hs, (request, requester), |most| {
        let chunk = hs.rooms().members(&format, &room, &asked, most)?;
        Ok(chunk.map(|chunk| [b"{\"chunk\":".as_slice(), &chunk, b"}"].concat()))
    })
}

/// `GET /_matrix/client/v1/rooms/{roomId}/timestamp_to_event`.
pub fn timestamp_to_event(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let when = moment(request)?;
    let (event, ts) = hs.rooms().event_near(&requester.user_id, &request.room_id()?, when)?;
    reply(&json!({ "event_id": event, "origin_server_ts": ts }))
}

fn limit(request: &Request) -> Result<usize> {
    match request.query_int("limit")? {
        None => Ok(DEFAULT_LIMIT),
        Some(limit) => usize::try_from(limit).map_err(|_| Error::invalid_param("limit must not be negative")),
    }
}

fn filter(request: &Request) -> Result<EventFilter> {
    request
        .query("filter")
        .filter(|json| !json.is_empty())
        .map_or_else(|| Ok(EventFilter::default()), EventFilter::parse)
}

fn membership(request: &Request, name: &str) -> Result<Option<Membership>> {
    let wrong = || Error::invalid_param(format!("{name} must be a membership"));
    request.query(name).map(|word| Membership::parse(word).ok_or_else(wrong)).transpose()
}
