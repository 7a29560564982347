//! The judgement of an answer to `send_join`: whether what another server sent is a room that our join may enter. Pure:
//! the events were checked one by one before (format, hash, signatures), and nothing is written here.

use std::collections::{HashMap, HashSet};

use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::protocol::event_auth::{Judge, check, check_against_auth_events, check_auth_events};
use crate::protocol::{EventId, Pdu, RoomVersion};
use crate::service::adopt::AdoptedRoom;

/// Judges an answer. Events that the authorisation rules do not allow, of another room, or that rest on events that are
/// missing, are dropped; what remains must be a room (one create event, of the version that we were told) whose state
/// and auth chain allow our join. Errors: 400 `M_BAD_JSON`, 403 `M_FORBIDDEN`, in words for the log.
pub fn judge(join: Pdu, state: Vec<Pdu>, auth_chain: Vec<Pdu>) -> Result<AdoptedRoom> {
    let version = join.version();
    let in_state: HashSet<EventId> = state.iter().map(|event| event.event_id().clone()).collect();
    let events: HashMap<EventId, Pdu> = state
        .into_iter()
        .chain(auth_chain)
        .filter(|event| event.room_id() == join.room_id())
        .map(|event| (event.event_id().clone(), event))
        .collect();
    let create = find_create(&events, version)?;
    let (allowed, dropped) = allowed_events(&events, &create, version);
    if dropped > 0 {
        log::warn!(
            "{dropped} events of {} were not allowed or rest on missing ones: left out",
            join.room_id()
        );
    }
    let (state, auth_chain): (Vec<Pdu>, Vec<Pdu>) =
        allowed.into_values().partition(|event| event.is_state() && in_state.contains(event.event_id()));
    check_state(&state, &create)?;
    check_join(&join, &state, &auth_chain, version)?;
    Ok(AdoptedRoom { version, room_id: join.room_id().clone(), auth_chain, state, join })
}

/// The room's create event, of the version that the template was made for.
fn find_create(events: &HashMap<EventId, Pdu>, version: RoomVersion) -> Result<Pdu> {
    let mut creates = events.values().filter(|event| event.is("m.room.create", ""));
    let create = creates.next().ok_or_else(|| Error::bad_json("a room without m.room.create"))?;
    if creates.next().is_some() {
        return Err(Error::bad_json("a room with two m.room.create"));
    }
    let said = create.content_str("room_version");
    // Versions 1 and 2 sign and hash alike, and a template without a version may be either.
    if said.as_deref().unwrap_or("1") != version.id {
        return Err(Error::bad_json("a room of another version than its template"));
    }
    Ok(create.clone())
}

/// Checks every event against those it rests on, generation by generation: all events whose auth events are judged can
/// be judged at once. Returns those that are allowed, and how many are not.
fn allowed_events(
    events: &HashMap<EventId, Pdu>,
    create: &Pdu,
    version: RoomVersion,
) -> (HashMap<EventId, Pdu>, usize) {
    let mut resting_on: HashMap<&EventId, Vec<&Pdu>> = HashMap::new();
    let mut unjudged: HashMap<&EventId, usize> = HashMap::with_capacity(events.len());
    let mut generation: Vec<&Pdu> = Vec::new();
    for event in events.values() {
        let waits_for: HashSet<&EventId> = event.auth_events().iter().collect();
        if waits_for.is_empty() {
            generation.push(event);
        }
        unjudged.insert(event.event_id(), waits_for.len());
        for id in waits_for {
            resting_on.entry(id).or_default().push(event);
        }
    }
    let mut allowed: HashMap<EventId, Pdu> = HashMap::with_capacity(events.len());
    while !generation.is_empty() {
        // Each thread remembers the power levels that it has read, which most events of a generation share.
        let verdicts: Vec<bool> = generation
            .par_iter()
            .map_init(
                || Judge::new(version),
                |judge, event| is_allowed(judge, event, &allowed, create, version),
            )
            .collect();
        let mut following = Vec::new();
        for (event, good) in generation.into_iter().zip(verdicts) {
            // What rests on a rejected event is rejected (rule 3.3): it is never taken up.
            if !good {
                continue;
            }
            allowed.insert(event.event_id().clone(), event.clone());
            for next in resting_on.get(event.event_id()).into_iter().flatten() {
                let Some(left) = unjudged.get_mut(next.event_id()) else { continue };
                *left -= 1;
                if *left == 0 {
                    following.push(*next);
                }
            }
        }
        generation = following;
    }
    let dropped = events.len() - allowed.len();
    (allowed, dropped)
}

fn is_allowed(
    judge: &Judge,
    event: &Pdu,
    allowed: &HashMap<EventId, Pdu>,
    create: &Pdu,
    version: RoomVersion,
) -> bool {
    let auth = auth_of(event, |id| allowed.get(id), create, version);
    let find = |kind: &str, key: &str| auth.iter().find(|e| e.is(kind, key)).cloned();
    let verdict =
        check_auth_events(event, &auth, &|_| false, version).and_then(|()| judge.check(event, &find));
    if let Err(why) = &verdict {
        log::debug!("{} is not allowed: {why}", event.event_id());
    }
    verdict.is_ok()
}

/// The events that an event rests on; from room version 12 on the create event is not named and always among them.
fn auth_of<'e>(
    event: &Pdu,
    find: impl Fn(&EventId) -> Option<&'e Pdu>,
    create: &Pdu,
    version: RoomVersion,
) -> Vec<Pdu> {
    let mut auth: Vec<Pdu> = event.auth_events().iter().filter_map(|id| find(id).cloned()).collect();
    if version.room_id_is_create_hash && event.event_id() != create.event_id() {
        auth.push(create.clone());
    }
    auth
}

/// The state has the create event, and no two events for one type and state key.
fn check_state(state: &[Pdu], create: &Pdu) -> Result<()> {
    let mut seen = HashSet::with_capacity(state.len());
    for event in state {
        if !seen.insert((event.event_type(), event.state_key().unwrap_or_default())) {
            return Err(Error::bad_json("a state with two events for one type and state key"));
        }
    }
    if !state.iter().any(|event| event.event_id() == create.event_id()) {
        return Err(Error::bad_json("a state without m.room.create"));
    }
    Ok(())
}

/// Whether the join is allowed by what it rests on and by the state that it enters.
fn check_join(join: &Pdu, state: &[Pdu], auth_chain: &[Pdu], version: RoomVersion) -> Result<()> {
    let by_id: HashMap<&EventId, &Pdu> = state.iter().chain(auth_chain).map(|e| (e.event_id(), e)).collect();
    let create = state.iter().find(|event| event.is("m.room.create", ""));
    let create = create.ok_or_else(|| Error::bad_json("a state without m.room.create"))?;
    let auth = auth_of(join, |id| by_id.get(id).copied(), create, version);
    check_auth_events(join, &auth, &|_| false, version)?;
    check_against_auth_events(join, &auth, version)?;
    let lookup: HashMap<(&str, &str), &Pdu> =
        state.iter().map(|e| ((e.event_type(), e.state_key().unwrap_or_default()), e)).collect();
    check(join, version, &|kind, key| lookup.get(&(kind, key)).map(|e| (*e).clone()))?;
    Ok(())
}
