//! The calls by which events and rooms are found: by date, in directories, through spaces.

use std::fmt::Write as _;
use std::time::Duration;

use serde::Deserialize;
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{LIST_ANSWER_BYTES_MAX, QUICK_TIMEOUT, SMALL_ANSWER_BYTES_MAX, enc, object, to_body};
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::{Client, PeerRequest};
use crate::protocol::json::{AtMost, First};
use crate::protocol::{EventId, RoomId, ServerName};

/// Most rooms of one page of a directory: servers may disregard the limit that they are told.
const PUBLIC_ROOMS_MAX: usize = 10_000;
/// Most children of a space that are looked at.
const SPACE_CHILDREN_MAX: usize = 10_000;

/// The answer of `hierarchy`, unchecked.
#[derive(Debug, Deserialize)]
pub struct HierarchyAnswer {
    /// The room that was asked about.
    pub room: Box<RawValue>,
    /// Its children that we may know of.
    pub children: First<Box<RawValue>, SPACE_CHILDREN_MAX>,
    /// The ids of its children that we may not know of.
    #[serde(default)]
    pub inaccessible_children: First<Box<RawValue>, SPACE_CHILDREN_MAX>,
    /// How many bytes all that was.
    #[serde(skip)]
    pub size: usize,
}

/// The answer of `publicRooms`.
#[derive(Debug, Deserialize)]
pub struct PublicRoomsAnswer {
    /// The rooms, unchecked.
    pub chunk: AtMost<Box<RawValue>, PUBLIC_ROOMS_MAX>,
    /// The token of the next page.
    pub next_batch: Option<String>,
    /// The token of the page before.
    pub prev_batch: Option<String>,
    /// How many rooms there are, if the peer says.
    pub total_room_count_estimate: Option<u64>,
}

impl Client {
    /// `GET timestamp_to_event`: the event of the room nearest to a time, not before it if `forwards`, else not after
    /// it; and its own time. What is on the wrong side is a bad answer.
    pub fn timestamp_to_event(
        &self,
        peer: &ServerName,
        room: &RoomId,
        ts: i64,
        forwards: bool,
        within: Duration,
    ) -> CallResult<(EventId, i64)> {
        #[derive(Deserialize)]
        struct Near {
            event_id: EventId,
            origin_server_ts: i64,
        }
        let dir = if forwards { "f" } else { "b" };
        let path = format!("/_matrix/federation/v1/timestamp_to_event/{}?ts={ts}&dir={dir}", enc(room));
        let near: Near = object(self.get(peer, path, QUICK_TIMEOUT.min(within), SMALL_ANSWER_BYTES_MAX)?)?;
        let right = if forwards { near.origin_server_ts >= ts } else { near.origin_server_ts <= ts };
        if right {
            Ok((near.event_id, near.origin_server_ts))
        } else {
            Err(CallError::bad("an event on the other side of the time"))
        }
    }

    /// `GET publicRooms`, or `POST` with a filter: a page of the rooms that the peer publishes. `request` is the body
    /// of the `POST`.
    pub fn public_rooms(
        &self,
        peer: &ServerName,
        request: &Map<String, Value>,
        within: Duration,
    ) -> CallResult<PublicRoomsAnswer> {
        let path = "/_matrix/federation/v1/publicRooms";
        let response = if request.contains_key("filter") {
            let body = to_body(request)?;
            self.request(PeerRequest {
                method: "POST",
                destination: peer,
                path_and_query: path.to_owned(),
                body: Some(&body),
                timeout: within,
                max_bytes: LIST_ANSWER_BYTES_MAX,
            })?
        } else {
            let mut query = String::new();
            for (name, value) in request {
                let value = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                let _ = write!(query, "{}{name}={}", if query.is_empty() { '?' } else { '&' }, enc(value));
            }
            self.get(peer, format!("{path}{query}"), within, LIST_ANSWER_BYTES_MAX)?
        };
        object(response)
    }

    /// `GET hierarchy`: a room, and its children if it is a space, as far as they may be told to us.
    pub fn hierarchy(
        &self,
        peer: &ServerName,
        room: &RoomId,
        suggested_only: bool,
        within: Duration,
    ) -> CallResult<HierarchyAnswer> {
        let path = format!("/_matrix/federation/v1/hierarchy/{}?suggested_only={suggested_only}", enc(room));
        let response = self.get(peer, path, within, LIST_ANSWER_BYTES_MAX)?;
        let size = response.body.len();
        Ok(HierarchyAnswer { size, ..object(response)? })
    }
}
