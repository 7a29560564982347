//! Thread subscriptions (MSC4306), and what has changed in them (MSC4308).

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::http::client_server::reply;
use crate::http::{Reply, Request, Requester};
use crate::protocol::EventId;
use crate::service::Homeserver;
use crate::service::rooms::thread_subscriptions::{PAGE_USUAL, SubscriptionChanges};

#[derive(Deserialize)]
struct SubscribeBody {
    /// The event for which the client subscribes by itself.
    automatic: Option<String>,
}

#[derive(Serialize)]
struct ChangesPage {
    #[serde(flatten)]
    changes: SubscriptionChanges,
    #[serde(skip_serializing_if = "Option::is_none")]
    end: Option<String>,
}

/// `GET /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription`.
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (room, root) = (request.room_id()?, request.event_id()?);
    reply(&hs.rooms().thread_subscription(&requester.user_id, &room, &root)?)
}

/// `PUT /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription`.
pub fn put(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (room, root) = (request.room_id()?, request.event_id()?);
    let SubscribeBody { automatic } = request.json()?;
    let cause = automatic.as_deref().map(EventId::parse).transpose()?;
    hs.rooms().subscribe_to_thread(&requester.user_id, &room, &root, cause.as_ref())?;
    Ok(Reply::empty())
}

/// `DELETE /_matrix/client/unstable/io.element.msc4306/rooms/{roomId}/thread/{eventId}/subscription`.
pub fn delete(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (room, root) = (request.room_id()?, request.event_id()?);
    hs.rooms().unsubscribe_from_thread(&requester.user_id, &room, &root)?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/unstable/io.element.msc4308/thread_subscriptions`.
pub fn changes(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    if request.required_query("dir")? != "b" {
        return Err(Error::invalid_param("dir must be b"));
    }
    let limit = match request.query_int("limit")? {
        None => PAGE_USUAL,
        Some(limit) => {
            let limit = usize::try_from(limit).ok().filter(|limit| *limit > 0);
            limit.ok_or_else(|| Error::invalid_param("limit must be greater than zero"))?
        }
    };
    let between = (request.pagination_token("from")?, request.pagination_token("to")?);
    let mut changes = hs.rooms().thread_subscription_changes(&requester.user_id, between, limit)?;
    let end = changes.more.take().map(|token| token.to_string());
    reply(&ChangesPage { changes, end })
}
