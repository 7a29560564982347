//! Slots for what takes long because somebody else has to answer: so many in all, and so many for each on whose behalf
//! it is done. Who finds none waits in line for one, and the next that is free goes to who has the fewest: whoever
//! asks for much makes themselves wait, and nobody else. So it is with the places in line: where all are taken, the last of
//! whoever has most makes way for who has fewer.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Condvar, Mutex};
use std::time::{Duration, Instant};

use crate::locks::{lock, wait_timeout};

/// For each slot that one may have, so many more may wait in line.
const WAITING_PER_SLOT_MAX: usize = 8;
/// How often who waits looks whether they are still wanted.
const STILL_WANTED_INTERVAL: Duration = Duration::from_millis(250);

/// Slots, for each of `K` a share.
pub(in crate::service) struct FairSlots<K>(Arc<SharedSlots<K>>);

struct SharedSlots<K> {
    most: usize,
    each: usize,
    /// How many may wait in line: in all, and for each.
    line: usize,
    line_each: usize,
    state: Mutex<SlotState<K>>,
    freed: Condvar,
}

struct SlotState<K> {
    taken: HashMap<K, usize>,
    in_all: usize,
    line: Vec<(u64, K)>,
    tickets: u64,
}

impl<K: Clone + Eq + Hash> FairSlots<K> {
    /// So many slots in all, and so many for each.
    pub(in crate::service) fn new(most: usize, each: usize) -> Self {
        Self::with_line(most, each, WAITING_PER_SLOT_MAX * most, WAITING_PER_SLOT_MAX * each)
    }

    /// The same with room in line for so many in all, and so many for each: where slots are few and free again soon.
    pub(in crate::service) fn with_line(most: usize, each: usize, line: usize, line_each: usize) -> Self {
        let state = SlotState { taken: HashMap::new(), in_all: 0, line: Vec::new(), tickets: 0 };
        let (state, freed) = (Mutex::new(state), Condvar::new());
        Self(Arc::new(SharedSlots { most, each, line, line_each, state, freed }))
    }

    /// A slot for `who`, waited for until then while it is `wanted`. None: there is none by then, or too many wait
    /// already, of theirs or of those who have no more places in line than they.
    pub(in crate::service) fn take(
        &self,
        who: &K,
        until: Instant,
        wanted: impl Fn() -> bool,
    ) -> Option<FairSlot<K>> {
        let shared = &self.0;
        let mut state = lock(&shared.state);
        let waiting = state.line.iter().filter(|(_, other)| other == who).count();
        if waiting >= shared.line_each || state.line.len() >= shared.line && !state.make_place(waiting) {
            return None;
        }
        state.tickets += 1;
        let ticket = state.tickets;
        state.line.push((ticket, who.clone()));
        let has_slot = loop {
            if shared.next(&state) == Some(ticket) {
                break true;
            }
            let left = until.saturating_duration_since(Instant::now());
            let made_way = !state.line.iter().any(|(other, _)| *other == ticket);
            if left.is_zero() || made_way || !wanted() {
                break false;
            }
            state = wait_timeout(&shared.freed, state, left.min(STILL_WANTED_INTERVAL));
        };
        state.line.retain(|(other, _)| *other != ticket);
        if has_slot {
            *state.taken.entry(who.clone()).or_default() += 1;
            state.in_all += 1;
        }
        drop(state);
        // Whoever is next now does not know it yet.
        shared.freed.notify_all();
        has_slot.then(|| FairSlot { slots: shared.clone(), who: who.clone() })
    }

    /// Whether somebody waits for a slot, or soon will.
    pub(in crate::service) fn is_crowded(&self) -> bool {
        self.0.is_crowded()
    }

    /// How many wait in line.
    #[cfg(test)]
    pub(in crate::service) fn waiting(&self) -> usize {
        lock(&self.0.state).line.len()
    }
}

impl<K: Clone + Eq + Hash> SlotState<K> {
    /// Takes a place from who has most of them in line, for somebody who has fewer even with it. False: nobody has.
    fn make_place(&mut self, waiting: usize) -> bool {
        let mut places: HashMap<&K, (usize, u64)> = HashMap::new();
        for (ticket, who) in &self.line {
            let (count, last) = places.entry(who).or_default();
            (*count, *last) = (*count + 1, *ticket);
        }
        let Some((count, last)) = places.into_values().max() else { return false };
        if count <= waiting + 1 {
            return false;
        }
        self.line.retain(|(ticket, _)| *ticket != last);
        true
    }
}

impl<K> SharedSlots<K> {
    fn is_crowded(&self) -> bool {
        let state = lock(&self.state);
        !state.line.is_empty() || 2 * state.in_all > self.most
    }
}

impl<K: Clone + Eq + Hash> SharedSlots<K> {
    /// Whose turn it is, if there is a slot for them.
    fn next(&self, state: &SlotState<K>) -> Option<u64> {
        if state.in_all >= self.most {
            return None;
        }
        let has = |who: &K| state.taken.get(who).copied().unwrap_or(0);
        let may = state.line.iter().filter(|(_, who)| has(who) < self.each);
        may.min_by_key(|(ticket, who)| (has(who), *ticket)).map(|(ticket, _)| *ticket)
    }
}

/// A slot that is taken; free again once dropped.
pub(in crate::service) struct FairSlot<K: Clone + Eq + Hash> {
    slots: Arc<SharedSlots<K>>,
    who: K,
}

impl<K: Clone + Eq + Hash> FairSlot<K> {
    /// Whether somebody waits for a slot of these, or soon will.
    pub(in crate::service) fn is_crowded(&self) -> bool {
        self.slots.is_crowded()
    }
}

impl<K: Clone + Eq + Hash> Drop for FairSlot<K> {
    fn drop(&mut self) {
        let mut state = lock(&self.slots.state);
        state.in_all -= 1;
        if let Some(taken) = state.taken.get_mut(&self.who) {
            *taken -= 1;
            if *taken == 0 {
                state.taken.remove(&self.who);
            }
        }
        drop(state);
        self.slots.freed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

    use super::*;

    fn now<K: Clone + Eq + Hash>(slots: &FairSlots<K>, who: &K) -> Option<FairSlot<K>> {
        slots.take(who, Instant::now(), || true)
    }

    fn soon() -> Instant {
        Instant::now() + Duration::from_secs(60)
    }

    fn wait_for_line(slots: &FairSlots<&str>, length: usize) {
        while lock(&slots.0.state).line.len() < length {
            std::thread::yield_now();
        }
    }

    #[test]
    fn each_has_a_share_of_the_slots_and_all_together_no_more_than_there_are() {
        let slots = FairSlots::new(5, 3);
        let greedy: Vec<_> = (0..9).filter_map(|_| now(&slots, &"greedy")).collect();
        assert_eq!(greedy.len(), 3);
        let other: Vec<_> = (0..9).filter_map(|_| now(&slots, &"other")).collect();
        assert_eq!(other.len(), 2);
        assert!(now(&slots, &"late").is_none());
        drop(greedy);
        assert!(now(&slots, &"late").is_some());
        drop(other);
        let state = lock(&slots.0.state);
        assert!(state.taken.is_empty() && state.line.is_empty() && state.in_all == 0);
    }

    #[test]
    fn the_next_free_slot_goes_to_who_has_the_fewest_however_long_others_wait() {
        let slots = FairSlots::new(2, 2);
        let (one, two) = (now(&slots, &"greedy"), now(&slots, &"greedy"));
        std::thread::scope(|scope| {
            let greedy = scope.spawn(|| slots.take(&"greedy", soon(), || true).map(|_| Instant::now()));
            wait_for_line(&slots, 1);
            let modest = scope.spawn(|| slots.take(&"modest", soon(), || true).map(|_| Instant::now()));
            wait_for_line(&slots, 2);
            drop(one);
            let modest = modest.join().expect("no panic").expect("a slot");
            drop(two);
            assert!(modest < greedy.join().expect("no panic").expect("a slot"));
        });
    }

    #[test]
    fn who_is_wanted_no_more_leaves_the_line_and_the_line_is_bounded() {
        let slots = FairSlots::new(1, 1);
        let held = now(&slots, &"first");
        let gone = AtomicBool::new(false);
        std::thread::scope(|scope| {
            let waiting: Vec<_> = (0..WAITING_PER_SLOT_MAX)
                .map(|_| {
                    scope.spawn(|| slots.take(&"gone", soon(), || !gone.load(Ordering::Relaxed)).is_some())
                })
                .collect();
            wait_for_line(&slots, WAITING_PER_SLOT_MAX);
            assert!(slots.take(&"gone", soon(), || true).is_none(), "refused at once");
            gone.store(true, Ordering::Relaxed);
            assert!(waiting.into_iter().all(|thread| !thread.join().expect("no panic")));
        });
        drop(held);
        assert!(now(&slots, &"more").is_some());
    }

    #[test]
    fn in_a_full_line_whoever_has_most_places_makes_way_for_who_has_fewer() {
        let slots = FairSlots::with_line(1, 1, 6, 4);
        let held = now(&slots, &"first");
        let (left, gone) = (AtomicUsize::new(0), AtomicBool::new(false));
        std::thread::scope(|scope| {
            let wait = |who: &'static str| {
                let (slots, left, gone) = (&slots, &left, &gone);
                scope.spawn(move || {
                    let slot = slots.take(&who, soon(), || !gone.load(Ordering::Relaxed));
                    left.fetch_add(usize::from(slot.is_none()), Ordering::SeqCst);
                    slot.map(|_| who)
                })
            };
            let mut waiting: Vec<_> = ["a", "a", "a", "a", "b", "b"].map(wait).into();
            wait_for_line(&slots, 6);
            waiting.push(wait("honest"));
            while left.load(Ordering::SeqCst) < 1 {
                std::thread::yield_now();
            }
            let places = |who| lock(&slots.0.state).line.iter().filter(|(_, other)| *other == who).count();
            assert_eq!([places("a"), places("b"), places("honest")], [3, 2, 1]);
            // As many as others have, but no more.
            waiting.push(wait("honest"));
            while left.load(Ordering::SeqCst) < 2 {
                std::thread::yield_now();
            }
            assert_eq!([places("a"), places("b"), places("honest")], [2, 2, 2]);
            assert!(slots.take(&"honest", soon(), || true).is_none(), "refused at once");
            drop(held);
            let served: Vec<_> =
                waiting.into_iter().filter_map(|thread| thread.join().expect("no panic")).collect();
            assert_eq!(served.len(), 6);
            gone.store(true, Ordering::Relaxed);
        });
        assert!(lock(&slots.0.state).line.is_empty());
    }
}
