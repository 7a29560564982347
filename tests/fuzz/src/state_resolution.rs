//! State resolution on the branches of rooms out of bytes.

use doorstep::protocol::event_auth::check;
use doorstep::protocol::room_version::StateResolution;
use doorstep::protocol::state_res::{StateMap, StateTuple, Unconflicted, resolve, resolve_differences};

use super::room::{Room, State, key, state_map};

/// The result does not depend on the order of the states nor on repeats, is made of what was there, and is the same
/// if only the differences are looked at.
pub fn state_resolution(data: &[u8]) {
    let Some(mut room) = Room::new(data) else { return };
    let mut sets = branches(&mut room);
    let version = room.version;
    let fetch = |id: &_| room.events.get(id).cloned();
    let rejected = |id: &_| room.rejected.contains(id);
    let resolved = resolve(version, &sets, &fetch, &rejected).expect("a state");

    for ((kind, state_key), id) in &resolved {
        let event = room.events.get(id);
        assert!(event.is_none_or(|event| event.is(kind, state_key)), "{id} stands where it does not belong");
    }
    sets.reverse();
    assert_eq!(
        resolve(version, &sets, &fetch, &rejected).expect("a state"),
        resolved,
        "the order of the states"
    );
    let first = sets[0].clone();
    sets.push(first);
    assert_eq!(
        resolve(version, &sets, &fetch, &rejected).expect("a state"),
        resolved,
        "a state that comes twice"
    );

    if version.state_resolution != StateResolution::V1 {
        let keep = room.source.byte();
        differences(&room, &sets, keep, &resolved);
    }
}

/// The same by differences: part of what all agree on becomes the ground.
fn differences(room: &Room<'_>, sets: &[StateMap], keep: u8, resolved: &StateMap) {
    let agreed =
        |key: &StateTuple| sets.iter().all(|set| set.get(key).is_some() && set.get(key) == sets[0].get(key));
    let mut ground: StateMap =
        sets[0].iter().filter(|(key, _)| agreed(key)).map(|(k, id)| (k.clone(), id.clone())).collect();
    // Some agreed keys may be in the sets all the same.
    let mut number = 0_u32;
    ground.retain(|_, _| {
        number += 1;
        keep.rotate_left(number) & 1 == 0
    });
    let rest: Vec<StateMap> = sets
        .iter()
        .map(|set| {
            set.iter().filter(|(k, _)| !ground.contains_key(*k)).map(|(k, id)| (k.clone(), id.clone()))
        })
        .map(Iterator::collect)
        .collect();
    let fetch = |id: &_| room.events.get(id).cloned();
    let rejected = |id: &_| room.rejected.contains(id);
    let (get, all) = (|key: &StateTuple| ground.get(key).cloned(), || ground.clone());
    let by_difference =
        resolve_differences(room.version, &rest, Unconflicted { get: &get, all: &all }, &fetch, &rejected);
    assert!(by_difference.keys().all(|key| !ground.contains_key(key)), "what lies beneath is left alone");
    let mut whole = ground.clone();
    whole.extend(by_difference);
    assert_eq!(&whole, resolved, "by differences and as a whole");
}

/// The states of up to five branches, some of them with holes.
fn branches(room: &mut Room<'_>) -> Vec<StateMap> {
    let mut states: Vec<State> = vec![room.first_state()];
    for _ in 0..48 {
        if room.source.is_empty() {
            break;
        }
        let at = room.source.below(states.len());
        let state = states[at].clone();
        let Some(event) = room.event(&state) else { continue };
        let lookup =
            |kind: &str, state_key: &str| state.get(&(kind.to_owned(), state_key.to_owned())).cloned();
        let allowed = check(&event, room.version, &lookup).is_ok();
        if event.is_state() && event.room_id() == room.create.room_id() && (allowed || room.source.chance(40))
        {
            states[at].insert(key(&event), event);
        }
        if states.len() < 5 && room.source.chance(40) {
            let copy = states[at].clone();
            states.push(copy);
        }
    }
    if room.source.chance(40) {
        for state in &mut states {
            state.retain(|_, _| !room.source.chance(30));
        }
    }
    states.iter().map(state_map).collect()
}
