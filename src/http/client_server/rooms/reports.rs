//! Client-server API, "Reporting Content".

use std::sync::Arc;

use serde::Deserialize;

use crate::error::Result;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::rooms::reports::Reported;

#[derive(Deserialize)]
struct ReportBody {
    /// "May be blank."
    reason: String,
}

#[derive(Deserialize)]
struct EventReportBody {
    reason: Option<String>,
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report`.
pub fn room(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let ReportBody { reason } = request.json()?;
    hs.rooms().report(&requester.user_id, Reported::Room(request.room_id()?), Some(&reason))?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/rooms/{roomId}/report/{eventId}`.
pub fn event(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let EventReportBody { reason } = request.json_or_empty()?;
    let reported = Reported::Event(request.room_id()?, request.event_id()?);
    hs.rooms().report(&requester.user_id, reported, reason.as_deref())?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/users/{userId}/report`.
pub fn user(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let ReportBody { reason } = request.json()?;
    hs.rooms().report(&requester.user_id, Reported::User(request.user_id()?), Some(&reason))?;
    Ok(Reply::empty())
}
