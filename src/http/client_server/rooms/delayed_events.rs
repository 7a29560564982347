//! Delayed events (MSC4140): what was asked for is looked at, restarted, cancelled, or sent at once. Whoever knows the id
//! may do so, also without an account here: the service that watches over a call has none.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::http::client_server::reply;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;

/// The query parameter that makes a request to send an event one to send it later, by so many milliseconds.
const DELAY: &str = "org.matrix.msc4140.delay";
/// One of an earlier draft.
const PARENT: &str = "org.matrix.msc4140.parent_delay_id";

/// By how many milliseconds an event is to be sent later, if it is. Errors: 400 `M_INVALID_PARAM`.
pub fn delay(request: &Request) -> Result<Option<i64>> {
    if request.query(PARENT).is_some() {
        return Err(Error::invalid_param(format!("{PARENT} is not known here")));
    }
    request.query_int(DELAY)
}

/// The body of a request to send an event later, in the form that was accepted.
pub struct DelayedDraft {
    /// By how many milliseconds.
    pub delay_ms: i64,
    /// The event's content.
    pub content: Map<String, Value>,
    /// Of a state event its state key.
    pub state_key: Option<String>,
}

impl DelayedDraft {
    /// Reads it. Errors: 400 `M_MISSING_PARAM`, 400 `M_BAD_JSON`.
    pub fn read(mut body: Map<String, Value>) -> Result<Self> {
        // It has had both names, and clients write either.
        let delay = body.get("delay_ms").or_else(|| body.get("delay"));
        let delay = delay.ok_or_else(|| Error::missing_param("Missing delay_ms"))?;
        let delay_ms = delay.as_i64().filter(|delay| *delay > 0);
        let delay_ms = delay_ms.ok_or_else(|| Error::bad_json("delay_ms must be a positive integer"))?;
        let content = match body.remove("content") {
            Some(Value::Object(content)) => content,
            Some(_) => return Err(Error::bad_json("content must be an object")),
            None => return Err(Error::missing_param("Missing content")),
        };
        let state_key = match body.remove("state_key") {
            None | Some(Value::Null) => None,
            Some(Value::String(state_key)) => Some(state_key),
            Some(_) => return Err(Error::bad_json("state_key must be a string")),
        };
        Ok(Self { delay_ms, content, state_key })
    }
}

/// `GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events`.
pub fn list(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let events = match (request.query("status"), request.query("delay_id")) {
        // What was sent or cancelled is not kept.
        (Some(status), _) if status != "scheduled" => Vec::new(),
        (_, Some(id)) => hs.rooms().delayed_event(&requester.user_id, id).into_iter().collect(),
        (_, None) => hs.rooms().delayed_events(&requester.user_id)?,
    };
    // The name of the list changed from one draft to the next.
    reply(&json!({ "delayed_events": events, "scheduled": events }))
}

/// `GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}`.
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    reply(&hs.rooms().delayed_event(&requester.user_id, request.param("delayId"))?)
}

/// `POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}/{action}`.
pub fn act(hs: &Arc<Homeserver>, request: &Request, _requester: Option<&Requester>) -> Result<Reply> {
    let unrecognized = || Error::new(ErrCode::Unrecognized, "There is no such action");
    take_action(hs, request.param("delayId"), request.param("action"))?.ok_or_else(unrecognized)
}

/// `POST /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}`, with the action in the body.
pub fn act_by_body(hs: &Arc<Homeserver>, request: &Request, _requester: Option<&Requester>) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let action = body.get("action").ok_or_else(|| Error::missing_param("Missing action"))?;
    let wrong = || Error::invalid_param("action may be cancel, restart or send");
    let action = action.as_str().ok_or_else(wrong)?;
    take_action(hs, request.param("delayId"), action)?.ok_or_else(wrong)
}

/// None: there is no such action.
fn take_action(hs: &Homeserver, delay_id: &str, action: &str) -> Result<Option<Reply>> {
    match action {
        "restart" => hs.rooms().restart_delayed_event(delay_id)?,
        "cancel" => hs.rooms().cancel_delayed_event(delay_id)?,
        "send" => hs.rooms().send_delayed_event_now(delay_id)?,
        _ => return Ok(None),
    }
    Ok(Some(Reply::json(&Value::Object(Map::new()))))
}
