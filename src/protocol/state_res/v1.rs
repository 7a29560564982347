//! State resolution of room version 1: in passes, by depth and by the SHA-1 of event ids.
//!
//! As Synapse does it where the text is loose: the conflicting memberships are resolved each without a look at the
//! others; events are authorised only by state that is unconflicted or resolved in an earlier pass; and where none of
//! the other events passes, the least deep one stands.

use std::cmp::Reverse;

use super::{Conflict, EventLookup, StateMap, StateTuple, separate};
use crate::order;
use crate::protocol::event_auth::AuthChecker;
use crate::protocol::ids::EventId;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::RoomVersion;

pub(super) fn resolve(
    version: RoomVersion,
    sets: &[&StateMap],
    fetch: EventLookup<'_>,
    rejected: &dyn Fn(&EventId) -> bool,
) -> StateMap {
    // Rejected events count as unknown.
    let fetch: EventLookup<'_> = &|id| if rejected(id) { None } else { fetch(id) };
    // Only different events conflict; that a set lacks a key does not matter.
    let (mut state, conflicts) = separate(sets, |values| {
        let mut present = values.iter().flatten();
        let first = present.next();
        present.all(|value| Some(value) == first)
    });

    let mut passes: [Vec<(StateTuple, Vec<Pdu>)>; 4] = Default::default();
    for conflict in conflicts {
        let mut events = candidates(&conflict, fetch);
        match events.len() {
            0 => {}
            1 => {
                state.extend(events.pop().map(|event| (conflict.key, event.event_id().clone())));
            }
            _ => {
                let pass = match (&*conflict.key.0, &*conflict.key.1) {
                    ("m.room.power_levels", "") => 0,
                    ("m.room.join_rules", _) => 1,
                    ("m.room.member", _) => 2,
                    _ => 3,
                };
                passes[pass].push((conflict.key, events));
            }
        }
    }

    let checker = AuthChecker::new(version);
    let [power_levels, join_rules, members, others] = passes;
    for pass in [power_levels, join_rules, members] {
        let outcomes: Vec<_> = pass
            .into_iter()
            .map(|(key, events)| {
                let id = latest_allowed_in_turn(&checker, &key, &events, &state, fetch);
                (key, id)
            })
            .collect();
        state.extend(outcomes);
    }
    let outcomes: Vec<_> = others
        .into_iter()
        .map(|(key, events)| {
            let id = deepest_allowed(&checker, &events, &state, fetch);
            (key, id)
        })
        .collect();
    state.extend(outcomes);
    state
}

/// The events in conflict that are known: the least deep first, among equals the greatest SHA-1 of the event id.
fn candidates(conflict: &Conflict, fetch: EventLookup<'_>) -> Vec<Pdu> {
    let mut ids: Vec<&EventId> = conflict.values.iter().flatten().collect();
    ids.sort_unstable();
    ids.dedup();
    let mut events: Vec<Pdu> = ids.into_iter().filter_map(fetch).collect();
    order::sort_by_cached_key(&mut events, |event| {
        (event.depth(), Reverse(sha1(event.event_id().as_str().as_bytes())))
    });
    events
}

/// Power levels, join rules, memberships: each event is checked against a state that has the one before it; the first
/// that fails ends it.
fn latest_allowed_in_turn(
    checker: &AuthChecker,
    key: &StateTuple,
    events: &[Pdu],
    state: &StateMap,
    fetch: EventLookup<'_>,
) -> EventId {
    let mut current = &events[0];
    for event in &events[1..] {
        let lookup = |kind: &str, state_key: &str| {
            if *key.0 == *kind && *key.1 == *state_key {
                Some(current.clone())
            } else {
                look_up(state, kind, state_key, fetch)
            }
        };
        if checker.check(event, &lookup).is_err() {
            break;
        }
        current = event;
    }
    current.event_id().clone()
}

/// Everything else: the deepest event that the state allows.
fn deepest_allowed(
    checker: &AuthChecker,
    events: &[Pdu],
    state: &StateMap,
    fetch: EventLookup<'_>,
) -> EventId {
    let lookup = |kind: &str, state_key: &str| look_up(state, kind, state_key, fetch);
    let allowed = events.iter().rev().find(|event| checker.check(event, &lookup).is_ok());
    allowed.unwrap_or(&events[0]).event_id().clone()
}

fn look_up(state: &StateMap, kind: &str, state_key: &str, fetch: EventLookup<'_>) -> Option<Pdu> {
    fetch(state.get(&(kind.into(), state_key.into()))?)
}

/// SHA-1 (FIPS 180-4). It only breaks ties here, so that its weakness does no harm, and a dependency for it would.
fn sha1(message: &[u8]) -> [u8; 20] {
    let mut hash: [u32; 5] = [0x6745_2301, 0xefcd_ab89, 0x98ba_dcfe, 0x1032_5476, 0xc3d2_e1f0];
    let mut padded = message.to_vec();
    padded.push(0x80);
    padded.resize((message.len() + 9).next_multiple_of(64) - 8, 0);
    padded.extend_from_slice(&(8 * message.len() as u64).to_be_bytes());
    for block in padded.chunks_exact(64) {
        let mut w = [0_u32; 80];
        for (word, bytes) in w.iter_mut().zip(block.chunks_exact(4)) {
            *word = bytes.iter().fold(0, |word, &byte| word << 8 | u32::from(byte));
        }
        for t in 16..80 {
            w[t] = (w[t - 3] ^ w[t - 8] ^ w[t - 14] ^ w[t - 16]).rotate_left(1);
        }
        let [mut a, mut b, mut c, mut d, mut e] = hash;
        for (t, word) in w.into_iter().enumerate() {
            let (f, k) = match t {
                0..20 => (b & c | !b & d, 0x5a82_7999),
                20..40 => (b ^ c ^ d, 0x6ed9_eba1),
                40..60 => (b & c | b & d | c & d, 0x8f1b_bcdc),
                _ => (b ^ c ^ d, 0xca62_c1d6_u32),
            };
            let next = a.rotate_left(5).wrapping_add(f).wrapping_add(e).wrapping_add(k).wrapping_add(word);
            (a, b, c, d, e) = (next, a, b.rotate_left(30), c, d);
        }
        for (sum, value) in hash.iter_mut().zip([a, b, c, d, e]) {
            *sum = sum.wrapping_add(value);
        }
    }
    let mut out = [0; 20];
    for (bytes, word) in out.chunks_exact_mut(4).zip(hash) {
        bytes.copy_from_slice(&word.to_be_bytes());
    }
    out
}

#[cfg(test)]
mod tests {
    use super::sha1;

    #[test]
    fn sha1_has_the_values_of_its_standard() {
        let hex = |bytes: &[u8]| sha1(bytes).iter().map(|byte| format!("{byte:02x}")).collect::<String>();
        assert_eq!(hex(b"abc"), "a9993e364706816aba3e25717850c26c9cd0d89d");
        assert_eq!(hex(b""), "da39a3ee5e6b4b0d3255bfef95601890afd80709");
        assert_eq!(
            hex(b"abcdbcdecdefdefgefghfghighijhijkijkljklmklmnlmnomnopnopq"),
            "84983e441c3bd26ebaae4aa1f95129e5e54670f1"
        );
        assert_eq!(hex(&[b'a'; 1000]), "291e9a6c66994949b57ba5e650361e98fc36b1ba");
    }
}
