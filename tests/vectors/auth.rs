//! `auth-v1.jsonl` … `auth-v12.jsonl`: is an event allowed by its format and signatures, by its auth events, and by
//! the state before it?
//!
//! Disputed rows (`federate/invite-of-remote-user`) are followed as Synapse has them: in a room that does not
//! federate it also refuses memberships of users of other servers, where the text looks at the sender only.

use std::collections::{HashMap, HashSet};

use doorstep::protocol::event_auth;
use doorstep::protocol::room_version::{RoomVersion, room_version};
use doorstep::protocol::{EventId, Pdu};
use serde_json::Value;

use crate::keys::Keys;

/// Runs one row.
pub fn run(row: &Value, keys: &Keys) -> Result<(), String> {
    let version = version_of(row)?;
    let expected = row["expect"]["allowed"].as_bool().ok_or("no expect.allowed")?;
    match (judge(row, version, keys)?, expected) {
        (Ok(()), true) | (Err(_), false) => Ok(()),
        (Ok(()), false) => Err(format!("allowed, but should fail: {}", row["expect"]["reason"])),
        (Err(why), true) => Err(format!("should be allowed, but failed: {why}")),
    }
}

/// The outcome is the inner result; the outer one says that the row itself is not usable.
fn judge(row: &Value, version: RoomVersion, keys: &Keys) -> Result<Result<(), String>, String> {
    let state = events(&row["state"], version)?;
    let others = events(&row["other_auth_events"], version)?;
    let rejected: HashSet<&str> =
        row["rejected"].as_array().ok_or("no rejected")?.iter().filter_map(Value::as_str).collect();

    let event = match Pdu::parse(row["event"]["pdu"].to_string().as_bytes(), version) {
        Ok(event) => event,
        Err(e) => return Ok(Err(format!("format: {e}"))),
    };
    let id = row["event"]["event_id"].as_str();
    if id.is_some_and(|id| id != event.event_id().as_str()) {
        return Err(format!("the event id is {}, not {id:?}", event.event_id()));
    }
    if let Err(why) = keys.verify(&event) {
        return Ok(Err(format!("signatures: {why}")));
    }

    let known: HashMap<&EventId, &Pdu> = state.iter().chain(&others).map(|e| (e.event_id(), e)).collect();
    let mut auth: Vec<Pdu> =
        event.auth_events().iter().filter_map(|id| known.get(id).map(|&e| e.clone())).collect();
    if version.room_id_is_create_hash {
        let create = event.room_id().create_event_id();
        auth.extend(create.and_then(|id| known.get(&id).map(|&e| e.clone())));
    }
    let rejected = |id: &EventId| rejected.contains(id.as_str());
    let state = |kind: &str, key: &str| state.iter().find(|e| e.is(kind, key)).cloned();
    Ok(event_auth::check_auth_events(&event, &auth, &rejected, version)
        .and_then(|()| event_auth::check_against_auth_events(&event, &auth, version))
        .and_then(|()| event_auth::check(&event, version, &state))
        .map_err(|e| e.to_string()))
}

/// The rules of a row's room version.
pub fn version_of(row: &Value) -> Result<RoomVersion, String> {
    row["room_version"].as_str().and_then(room_version).ok_or_else(|| "no known room version".to_owned())
}

/// A list of {`event_id`, `pdu`}.
pub fn events(list: &Value, version: RoomVersion) -> Result<Vec<Pdu>, String> {
    let mut events = Vec::new();
    for entry in list.as_array().ok_or("not a list of events")? {
        let event = Pdu::parse(entry["pdu"].to_string().as_bytes(), version)
            .map_err(|e| format!("{}: {e}", entry["event_id"]))?;
        if entry["event_id"].as_str() != Some(event.event_id().as_str()) {
            return Err(format!("the event id is {}, not {}", event.event_id(), entry["event_id"]));
        }
        events.push(event);
    }
    Ok(events)
}
