//! Client-server API, "Rooms": creating them, sending events, state.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::delayed_events::{self, DelayedDraft};
use crate::error::{Error, Result};
use crate::http::client_server::{client_format, reply_by_size};
use crate::http::{Reply, Request, Requester};
use crate::protocol::Millis;
use crate::protocol::json::INTEGER_MAX;
use crate::service::Homeserver;
use crate::service::events::draft::Draft;
use crate::service::rooms::client_drafts::check_sent_by_guest;
use crate::service::rooms::create::CreateRoom;
use crate::service::rooms::upgrade::UpgradeRoom;
use crate::store::accounts::client_transactions::ClientTxn;

/// `POST /_matrix/client/v3/createRoom`.
pub fn create(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: CreateRoom = request.json_or_empty()?;
    if let Some(name) = &body.room_alias_name {
        hs.rooms().check_alias_name(&requester.user_id, requester.appservice.as_deref(), name)?;
    }
    let room_id = hs.rooms().create_room(&requester.user_id, &body)?;
    Ok(Reply::json(&json!({"room_id": room_id})))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/send/{eventType}/{txnId}`.
pub fn send(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let mut draft = draft(request, requester, request.json_object()?)?;
    draft.state_key = None;
    check_may_send(hs, requester, &draft)?;
    let scope = format!("send/{}/{}", draft.room, draft.event_type);
    if let Some(delay) = delayed_events::delay(request)? {
        check_time_is_open(&draft)?;
        let txn = txn(request, requester, format!("delayed/{scope}"))?;
        let delay_id = hs.rooms().delay_event(draft, Some(txn), delay)?;
        return Ok(Reply::json(&json!({"delay_id": delay_id})));
    }
    let event_id = hs.rooms().send_message(draft, txn(request, requester, scope)?)?;
    Ok(Reply::json(&json!({"event_id": event_id})))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/redact/{eventId}/{txnId}`.
pub fn redact(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let redacts = request.event_id()?;
    let body = request.json_object_or_empty()?;
    let mut content = Map::new();
    match body.get("reason") {
        None | Some(Value::Null) => {}
        Some(Value::String(reason)) => drop(content.insert("reason".to_owned(), reason.as_str().into())),
        Some(_) => return Err(Error::bad_json("reason must be a string")),
    }
    let mut draft = draft(request, requester, content)?;
    // "Only valid on" the other two.
    draft.origin_server_ts = None;
    draft.event_type = "m.room.redaction".to_owned();
    draft.state_key = None;
    let scope = format!("redact/{}/{redacts}", draft.room);
    draft.redacts = Some(redacts);
    check_may_send(hs, requester, &draft)?;
    let event_id = hs.rooms().send_message(draft, txn(request, requester, scope)?)?;
    Ok(Reply::json(&json!({"event_id": event_id})))
}

/// `PUT /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`, the last slash and what follows optional.
pub fn put_state(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let draft = draft(request, requester, request.json_object()?)?;
    check_may_send(hs, requester, &draft)?;
    if let Some(delay) = delayed_events::delay(request)? {
        check_time_is_open(&draft)?;
        let delay_id = hs.rooms().delay_event(draft, None, delay)?;
        return Ok(Reply::json(&json!({"delay_id": delay_id})));
    }
    let event_id = hs.rooms().send_state(draft)?;
    Ok(Reply::json(&json!({"event_id": event_id})))
}

/// `PUT /_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}`.
pub fn put_delayed(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let DelayedDraft { delay_ms, content, state_key } = DelayedDraft::read(request.json_object()?)?;
    let draft = Draft { state_key, ..draft(request, requester, content)? };
    check_may_send(hs, requester, &draft)?;
    check_time_is_open(&draft)?;
    let scope = format!("delayed_event/{}/{}", draft.room, draft.event_type);
    let delay_id = hs.rooms().delay_event(draft, Some(txn(request, requester, scope)?), delay_ms)?;
    Ok(Reply::json(&json!({"delay_id": delay_id})))
}

/// `POST /_matrix/client/v3/rooms/{roomId}/upgrade`.
pub fn upgrade(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body: UpgradeRoom = request.json()?;
    let room_id = hs.rooms().upgrade(&requester.user_id, &request.room_id()?, &body)?;
    Ok(Reply::json(&json!({"replacement_room": room_id})))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state`.
pub fn state(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (format, room) = (client_format(hs, requester), request.room_id()?);
    reply_by_size(hs, (request, requester), |most| hs.rooms().room_state(&format, &room, most))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/state/{eventType}/{stateKey}`, the last slash and what follows optional.
pub fn state_entry(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let whole = match request.query("format") {
        None | Some("content") => false,
        Some("event") => true,
        Some(_) => return Err(Error::invalid_param("format must be content or event")),
    };
    let (event_type, state_key) = (request.param("eventType"), request.param("stateKey"));
    let entry = hs.rooms().state_entry(
        &client_format(hs, requester),
        &request.room_id()?,
        event_type,
        state_key,
        whole,
    )?;
    Ok(Reply::raw_json(entry))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/joined_members`.
pub fn joined_members(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let (by, room) = ((&requester.user_id, requester.appservice.as_deref()), request.room_id()?);
    reply_by_size(hs, (request, requester), |most| hs.rooms().joined_members(by, &room, most))
}

/// `GET /_matrix/client/v3/rooms/{roomId}/aliases`.
pub fn aliases(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let aliases = hs.rooms().aliases_of(&requester.user_id, &request.room_id()?)?;
    Ok(Reply::json(&json!({"aliases": aliases})))
}

/// Who is suspended may still take back what is theirs, and guests do not do by an event what they may not by its endpoint. Errors:
/// 403 `M_USER_SUSPENDED`, 403 `M_GUEST_ACCESS_FORBIDDEN`.
fn check_may_send(hs: &Homeserver, requester: &Requester, draft: &Draft) -> Result<()> {
    if requester.standing.suspended {
        hs.rooms().check_sent_while_suspended(draft)?;
    }
    if requester.standing.guest { check_sent_by_guest(draft) } else { Ok(()) }
}

fn draft(request: &Request, requester: &Requester, content: Map<String, Value>) -> Result<Draft> {
    Ok(Draft {
        room: request.room_id()?,
        sender: requester.user_id.clone(),
        event_type: request.param("eventType").to_owned(),
        state_key: Some(request.param("stateKey").to_owned()),
        content,
        redacts: None,
        origin_server_ts: if requester.is_service() { told_time(request)? } else { None },
    })
}

/// When an event says that it was sent, where an application service tells ("Timestamp massaging"). Errors: 400
/// `M_INVALID_PARAM` for what no event can have.
fn told_time(request: &Request) -> Result<Option<Millis>> {
    let told = request.query_int("ts")?;
    match told {
        Some(ts) if !(0..=INTEGER_MAX).contains(&ts) => {
            Err(Error::invalid_param("ts must be milliseconds since 1970"))
        }
        told => Ok(told),
    }
}

/// Errors: 400 `M_INVALID_PARAM` for what is sent later and is to say that it was sent at another time.
fn check_time_is_open(draft: &Draft) -> Result<()> {
    match draft.origin_server_ts {
        Some(_) => {
            Err(Error::invalid_param("What is sent later has the time at which it is sent, and no ts"))
        }
        None => Ok(()),
    }
}

fn txn(request: &Request, requester: &Requester, scope: String) -> Result<ClientTxn> {
    Ok(ClientTxn {
        user_id: requester.user_id.clone(),
        device_id: requester.device_id.clone().unwrap_or_default(),
        scope,
        txn_id: request.txn_id()?,
    })
}
