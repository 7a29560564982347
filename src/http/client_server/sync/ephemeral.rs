//! Typing, receipts and read markers.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::protocol::EventId;
use crate::service::Homeserver;
use crate::service::ephemeral::receipts::{FULLY_READ, MarkerMove};
use crate::store::ephemeral::receipts::{PRIVATE, READ};

#[derive(Deserialize)]
struct Typing {
    typing: bool,
    timeout: Option<i64>,
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/typing/{userId}`.
pub fn typing(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    let body: Typing = request.json()?;
    let typing = body.typing.then_some(body.timeout);
    hs.ephemeral().set_typing(&requester.user_id, &request.room_id()?, typing)?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/receipt/{receiptType}/{eventId}`.
pub fn receipt(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let thread = match request.json_object_or_empty()?.get("thread_id") {
        None => None,
        Some(Value::String(thread)) if !thread.is_empty() => Some(thread.clone()),
        Some(_) => return Err(Error::invalid_param("thread_id field must be a non-empty string")),
    };
    let receipt_type = request.param("receiptType").to_owned();
    let wish = MarkerMove { receipt_type, event: request.event_id()?, thread };
    hs.ephemeral().mark_read(&requester.user_id, &request.room_id()?, vec![wish])?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/read_markers`.
pub fn read_markers(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let mut moves = Vec::new();
    for receipt_type in [FULLY_READ, READ, PRIVATE] {
        match body.get(receipt_type) {
            None | Some(Value::Null) => {}
            Some(Value::String(event)) => {
                let (receipt_type, event) = (receipt_type.to_owned(), EventId::parse(event)?);
                moves.push(MarkerMove { receipt_type, event, thread: None });
            }
            Some(_) => return Err(Error::bad_json(format!("{receipt_type} must be an event id"))),
        }
    }
    hs.ephemeral().mark_read(&requester.user_id, &request.room_id()?, moves)?;
    Ok(Reply::empty())
}
