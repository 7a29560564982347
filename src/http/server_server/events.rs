//! Server-server API, "Retrieving events", "Backfilling and retrieving missing events", "Retrieving event
//! authorisation information": what servers in a room read of it.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::large;
use crate::error::{Error, Result};
use crate::http::params::moment;
use crate::http::{Origin, Reply, Request};
use crate::protocol::{EventId, Pdu};
use crate::service::Homeserver;

/// `GET /_matrix/federation/v1/event/{eventId}`.
pub fn event(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let event = hs.events().event_for_peer(&origin.0, &request.event_id()?)?;
    Ok(transaction(hs, &[event]))
}

/// `GET /_matrix/federation/v1/state/{roomId}?event_id=…`.
pub fn state(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let at = EventId::parse(request.required_query("event_id")?)?;
    Ok(large(hs, hs.events().state_for_peer(&origin.0, &request.room_id()?, &at)?))
}

/// `GET /_matrix/federation/v1/state_ids/{roomId}?event_id=…`.
pub fn state_ids(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let at = EventId::parse(request.required_query("event_id")?)?;
    Ok(Reply::raw_json(hs.events().state_ids_for_peer(&origin.0, &request.room_id()?, &at)?))
}

/// `GET /_matrix/federation/v1/event_auth/{roomId}/{eventId}`.
pub fn event_auth(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let chain = hs.events().auth_chain_for_peer(&origin.0, &request.room_id()?, &request.event_id()?)?;
    Ok(object(&[("auth_chain", &chain)], Vec::new()))
}

/// `GET /_matrix/federation/v1/backfill/{roomId}?v=…&limit=…`.
pub fn backfill(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let from = request.query_all("v").map(EventId::parse).collect::<Result<Vec<_>>>()?;
    if from.is_empty() {
        return Err(Error::missing_param("Missing query parameter v"));
    }
    let limit =
        request.query_int("limit")?.ok_or_else(|| Error::missing_param("Missing query parameter limit"))?;
    let limit = usize::try_from(limit).map_err(|_| Error::invalid_param("limit is negative"))?;
    let events = hs.events().backfill_for_peer(&origin.0, &request.room_id()?, &from, limit)?;
    Ok(transaction(hs, &events))
}

/// `GET /_matrix/federation/v1/timestamp_to_event/{roomId}?ts=…&dir=…`.
pub fn timestamp_to_event(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let (event, ts) = hs.events().event_near_for_peer(&origin.0, &request.room_id()?, moment(request)?)?;
    Ok(Reply::json(&json!({ "event_id": event, "origin_server_ts": ts })))
}

#[derive(Deserialize)]
struct MissingEventsQuery {
    #[serde(default = "ten")]
    limit: usize,
    #[serde(default)]
    min_depth: i64,
    earliest_events: Vec<EventId>,
    latest_events: Vec<EventId>,
}

fn ten() -> usize {
    10
}

/// `POST /_matrix/federation/v1/get_missing_events/{roomId}`.
pub fn get_missing_events(hs: &Arc<Homeserver>, request: &Request, origin: &Origin) -> Result<Reply> {
    let wanted: MissingEventsQuery = request.json()?;
    let between = (wanted.earliest_events.as_slice(), wanted.latest_events.as_slice());
    let events = hs.events().missing_events_for_peer(
        &origin.0,
        &request.room_id()?,
        between,
        wanted.min_depth,
        wanted.limit,
    )?;
    Ok(object(&[("events", &events)], Vec::new()))
}

/// Events as a transaction has them.
fn transaction(hs: &Homeserver, events: &[Pdu]) -> Reply {
    let head = format!("\"origin\":{},\"origin_server_ts\":{},", json!(hs.server_name()), hs.clock.now_ms());
    object(&[("pdus", events)], head.into_bytes())
}

/// An object whose values are lists of events, as they are stored, after what is in `head`.
fn object(lists: &[(&str, &[Pdu])], head: Vec<u8>) -> Reply {
    let mut body = Vec::with_capacity(
        lists.iter().flat_map(|(_, list)| *list).map(|e| e.json().len() + 1).sum::<usize>() + 100,
    );
    body.push(b'{');
    body.extend(head);
    for (index, (name, list)) in lists.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend_from_slice(format!("\"{name}\":[").as_bytes());
        for (index, event) in list.iter().enumerate() {
            if index > 0 {
                body.push(b',');
            }
            body.extend_from_slice(event.json());
        }
        body.push(b']');
    }
    body.push(b'}');
    Reply::raw_json(body)
}
