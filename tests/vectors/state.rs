//! `state-resolution.jsonl`: several states of a room into one.
//!
//! Disputed rows are followed as Synapse has them: a state's full auth chain includes the state's own events.

use std::collections::HashMap;

use doorstep::protocol::event_auth;
use doorstep::protocol::room_version::StateResolution;
use doorstep::protocol::state_res::{StateMap, Unconflicted, resolve, resolve_differences};
use doorstep::protocol::{EventId, Pdu};
use serde_json::Value;

use crate::auth::{events, version_of};

/// Runs one row: the given sets must resolve to the expected state in any order, and so must, where the row's sets
/// are those after its tips, the states that the events themselves make.
pub fn run(row: &Value) -> Result<(), String> {
    let version = version_of(row)?;
    let events = events(&row["events"], version)?;
    let known: HashMap<&EventId, &Pdu> = events.iter().map(|e| (e.event_id(), e)).collect();
    let fetch = |id: &EventId| known.get(id).map(|&e| e.clone());

    let sets = row["state_sets"].as_array().ok_or("no state_sets")?;
    let mut sets: Vec<StateMap> = sets.iter().map(state_map).collect::<Result<_, _>>()?;
    let expected = state_map(&row["expect"]["resolved"])?;
    for _ in 0..sets.len() {
        let resolved = resolve(version, &sets, &fetch, &|_| false).map_err(|e| e.to_string())?;
        if resolved != expected {
            return Err(difference(&resolved, &expected));
        }
        sets.rotate_left(1);
    }
    if version.state_resolution != StateResolution::V1 {
        // The same from what differs between the sets alone.
        let mut beneath = sets[0].clone();
        beneath.retain(|key, id| sets.iter().all(|set| set.get(key) == Some(&*id)));
        let mut parts = sets.clone();
        parts.iter_mut().for_each(|part| part.retain(|key, _| !beneath.contains_key(key)));
        let ground = Unconflicted { get: &|key| beneath.get(key).cloned(), all: &|| beneath.clone() };
        let mut resolved = resolve_differences(version, &parts, ground, &fetch, &|_| false);
        resolved.extend(beneath.clone());
        if resolved != expected {
            return Err(format!("by differences: {}", difference(&resolved, &expected)));
        }
    }

    // Every event in these histories was allowed when it was made.
    for event in &events {
        let mut auth: Vec<Pdu> = event.auth_events().iter().filter_map(fetch).collect();
        auth.extend(event.room_id().create_event_id().and_then(|id| fetch(&id)));
        event_auth::check_auth_events(event, &auth, &|_| false, version)
            .and_then(|()| event_auth::check_against_auth_events(event, &auth, version))
            .map_err(|e| format!("{} fails: {e}", event.event_id()))?;
    }
    Ok(())
}

/// A list of [type, state_key, event_id].
fn state_map(list: &Value) -> Result<StateMap, String> {
    let entry = |entry: &Value| {
        let text = |at: usize| entry[at].as_str().ok_or("not a list of states");
        let id = EventId::parse(text(2)?).map_err(|_| "not an event id")?;
        Ok::<_, String>(((text(0)?.into(), text(1)?.into()), id))
    };
    list.as_array().ok_or("not a state")?.iter().map(entry).collect()
}

fn difference(resolved: &StateMap, expected: &StateMap) -> String {
    let mut lines = Vec::new();
    for key in resolved.keys().chain(expected.keys()) {
        let (got, wanted) = (resolved.get(key), expected.get(key));
        let line = format!("{key:?} is {got:?}, should be {wanted:?}");
        if got != wanted && !lines.contains(&line) {
            lines.push(line);
        }
    }
    lines.join("; ")
}
