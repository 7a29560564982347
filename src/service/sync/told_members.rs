//! Which membership events a device has been told, so that lazy loading does not tell them again ("Lazy-loading room
//! members": servers may leave out what they have sent before, and should make it few).
//!
//! What was told is tied to the token of the answer that told it. A client that asks with a token proves that it had
//! that answer, and all the answers that led to it. If an answer is lost, the client asks again with the token that it
//! has, and what the lost one told counts for nothing. A token that is not remembered (the server was started anew, or
//! there were too many) proves nothing: then members are told once more, which is allowed.
//!
//! Clients begin a room's members anew behind a gap in its timeline, and when their user comes back into it: what was told
//! before that counts for nothing either. (Synapse takes it for known; some clients have dropped it.)

use std::collections::{HashMap, HashSet, VecDeque};
use std::sync::{Arc, Mutex};

use crate::locks::lock;
use crate::protocol::UserId;
use crate::store::{EventKey, RoomKey};

/// Tokens of one device that are remembered: the one that it has, the one that it gets, and those of another tab.
const TOKENS_MAX: usize = 4;
/// Membership events that are remembered for one token, and for all devices together.
const TOLD_MAX: usize = 20_000;
const TOLD_IN_ALL_MAX: usize = 500_000;
/// What a token costs even if nothing was told, counted in membership events.
const TOKEN_WEIGHT: usize = 20;

/// Membership events that a client has, each with its room.
pub(super) type Told = Arc<HashSet<ToldMember>>;
pub(super) type ToldMember = (RoomKey, EventKey);

/// What is left of it if it counts for nothing in these rooms.
pub(super) fn but_of_rooms(known: &Told, rooms: &HashSet<RoomKey>) -> Told {
    match known.iter().any(|(room, _)| rooms.contains(room)) {
        true => Arc::new(known.iter().filter(|(room, _)| !rooms.contains(room)).copied().collect()),
        false => known.clone(),
    }
}

/// What all devices have been told.
#[derive(Default)]
pub struct ToldMembers(Mutex<AllTold>);

#[derive(Default)]
struct AllTold {
    devices: HashMap<(UserId, String), DeviceTold>,
    weight: usize,
    /// Counts the questions, to know who asked last.
    asked: u64,
}

#[derive(Default)]
struct DeviceTold {
    /// The positions of answers, those asked with or given last at the end, and what a client has who had the answer.
    tokens: VecDeque<(i64, Told)>,
    weight: usize,
    asked: u64,
}

impl ToldMembers {
    /// What a device has that asks with this position.
    pub(super) fn known(&self, user: &UserId, device: &str, since: i64) -> Told {
        let mut all = lock(&self.0);
        all.asked += 1;
        let asked = all.asked;
        let Some(of_device) = all.devices.get_mut(&(user.clone(), device.to_owned())) else {
            return Told::default();
        };
        of_device.asked = asked;
        let Some(at) = of_device.tokens.iter().position(|(position, _)| *position == since) else {
            return Told::default();
        };
        // The token that a client has is worth more than those that it may never get.
        let Some(token) = of_device.tokens.remove(at) else { return Told::default() };
        let known = token.1.clone();
        of_device.tokens.push_back(token);
        known
    }

    /// An answer with this position tells a client who had `known` of these.
    pub(super) fn tell(
        &self,
        user: &UserId,
        device: &str,
        position: i64,
        known: &Told,
        told: HashSet<ToldMember>,
    ) {
        let mut has = known.clone();
        if !told.is_subset(&has) {
            if has.len() + told.len() > TOLD_MAX {
                has = Told::default();
            }
            Arc::make_mut(&mut has).extend(told.into_iter().take(TOLD_MAX));
        }
        let mut all = lock(&self.0);
        let of_device = all.devices.entry((user.clone(), device.to_owned())).or_default();
        if let Some((_, other)) = of_device.tokens.iter_mut().find(|(at, _)| *at == position) {
            // Two answers with one token: who has it had one of them.
            if *other != has {
                *other = Arc::new(other.intersection(&has).copied().collect());
            }
        } else {
            of_device.tokens.push_back((position, has));
            if of_device.tokens.len() > TOKENS_MAX {
                of_device.tokens.pop_front();
            }
        }
        let (before, now) = (of_device.weight, weight(&of_device.tokens));
        of_device.weight = now;
        all.asked += 1;
        let asked = all.asked;
        if let Some(of_device) = all.devices.get_mut(&(user.clone(), device.to_owned())) {
            of_device.asked = asked;
        }
        all.weight = all.weight + now - before;
        all.forget_the_oldest();
    }
}

impl AllTold {
    /// If they are too many, those half that asked longest ago.
    fn forget_the_oldest(&mut self) {
        if self.weight <= TOLD_IN_ALL_MAX {
            return;
        }
        let mut asked: Vec<u64> = self.devices.values().map(|of_device| of_device.asked).collect();
        asked.sort_unstable();
        let middle = asked.get(asked.len() / 2).copied().unwrap_or(0);
        self.devices.retain(|_, of_device| of_device.asked > middle);
        self.weight = self.devices.values().map(|of_device| of_device.weight).sum();
    }
}

fn weight(tokens: &VecDeque<(i64, Told)>) -> usize {
    let mut weight = 0;
    for (n, (_, told)) in tokens.iter().enumerate() {
        let shared = tokens.iter().take(n).any(|(_, other)| Arc::ptr_eq(other, told));
        weight += TOKEN_WEIGHT + if shared { 0 } else { told.len() };
    }
    weight
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> UserId {
        UserId::parse("@alice:a.example").unwrap()
    }

    fn told(events: &[EventKey]) -> HashSet<ToldMember> {
        events.iter().map(|event| (1, *event)).collect()
    }

    #[test]
    fn what_a_lost_answer_told_counts_for_nothing() {
        let (all, alice) = (ToldMembers::default(), alice());
        all.tell(&alice, "A", 10, &Told::default(), told(&[1]));
        let known = all.known(&alice, "A", 10);
        assert_eq!(*known, told(&[1]));
        all.tell(&alice, "A", 12, &known, told(&[2]));
        // The answer that ended at 12 never came.
        assert_eq!(*all.known(&alice, "A", 10), told(&[1]));
        assert_eq!(*all.known(&alice, "A", 12), told(&[1, 2]), "or it did");
        assert!(all.known(&alice, "A", 11).is_empty(), "an unknown token proves nothing");
        assert!(all.known(&alice, "B", 12).is_empty(), "nor does another device's");
    }

    #[test]
    fn two_answers_with_one_token_prove_what_both_told() {
        let (all, alice) = (ToldMembers::default(), alice());
        all.tell(&alice, "A", 10, &Told::default(), told(&[1, 2]));
        all.tell(&alice, "A", 10, &Told::default(), told(&[2, 3]));
        assert_eq!(*all.known(&alice, "A", 10), told(&[2]));
    }

    #[test]
    fn the_token_in_use_outlives_those_of_looks_that_found_nothing() {
        let (all, alice) = (ToldMembers::default(), alice());
        all.tell(&alice, "A", 10, &Told::default(), told(&[1]));
        for position in 11..100 {
            let known = all.known(&alice, "A", 10);
            assert_eq!(*known, told(&[1]), "at {position}");
            all.tell(&alice, "A", position, &known, told(&[]));
        }
        assert_eq!(lock(&all.0).devices.values().next().unwrap().tokens.len(), TOKENS_MAX);
    }

    #[test]
    fn what_is_remembered_is_bounded() {
        let (all, alice) = (ToldMembers::default(), alice());
        let many = |from: i64| (from..from + 15_000).map(|event| (1, event)).collect::<HashSet<ToldMember>>();
        for device in 0..200 {
            let device = device.to_string();
            all.tell(&alice, &device, 1, &Told::default(), many(0));
            let known = all.known(&alice, &device, 1);
            assert_eq!(known.len(), 15_000);
            all.tell(&alice, &device, 2, &known, many(50_000));
            assert_eq!(*all.known(&alice, &device, 2), many(50_000), "it begins anew");
            let inner = lock(&all.0);
            assert!(inner.weight <= TOLD_IN_ALL_MAX);
            assert_eq!(inner.weight, inner.devices.values().map(|d| d.weight).sum::<usize>());
        }
    }
}
