//! Gaps in the history that were asked for in vain: those that no server can fill, which are passed over for a while, and those
//! for which there is nobody to ask at this moment, which is no answer.

use std::collections::HashSet;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard};

use crate::bounded::{BoundedMap, Worth};
use crate::clock::{Millis, Steady};
use crate::locks::lock;
use crate::protocol::{EventId, ServerName};
use crate::store::RoomKey;

/// For how long a gap that nobody could fill is passed over.
const UNFILLABLE_PAUSE_MS: Millis = 300_000;
/// For how long one is left alone whose servers could not be asked: clients that wait for it try again and again.
const UNREACHED_PAUSE_MS: Millis = 3_000;
/// How many such gaps are remembered: those of several long pages of somebody whose keys are gone.
const UNFILLED_GAPS_MAX: usize = 4000;
/// Of how many servers it is remembered that they may know more, for one gap and for all.
const AWAITED_MAX: usize = 8;
const AWAITED_OF_ALL_MAX: usize = 4000;

/// The missing event that makes the gap, and its room.
type GapKey = (RoomKey, EventId);

/// The gaps.
#[derive(Default)]
pub(super) struct UnfilledGaps {
    gaps: Mutex<Unfilled>,
    /// Whether anybody is awaited, so that a request from a peer usually costs no lock.
    any_awaited: AtomicBool,
}

#[derive(Default)]
struct Unfilled {
    gaps: BoundedMap<GapKey, UnfilledGap, UNFILLED_GAPS_MAX>,
    /// Those who are awaited for any of them.
    awaited: HashSet<ServerName>,
}

struct UnfilledGap {
    /// Whether servers answered, and none could fill it.
    is_unfillable: bool,
    until: Steady,
    /// Who was not reached, or would have to say the key of what was shown.
    awaited: Vec<ServerName>,
}

impl UnfilledGaps {
    /// Whether it was found out that nobody can fill the gap.
    pub(super) fn is_unfillable(&self, gap: &GapKey, now: Steady) -> bool {
        self.gaps_now().gaps.get(gap).is_some_and(|gap| gap.is_unfillable && gap.until > now)
    }

    /// Whether nobody could be asked just before.
    pub(super) fn is_unreached(&self, gap: &GapKey, now: Steady) -> bool {
        self.gaps_now().gaps.get(gap).is_some_and(|gap| !gap.is_unfillable && gap.until > now)
    }

    pub(super) fn note_unfillable(&self, gap: GapKey, awaited: &[ServerName], now: Steady) {
        self.note(gap, (true, now + UNFILLABLE_PAUSE_MS), awaited, now);
    }

    pub(super) fn note_unreached(&self, gap: GapKey, awaited: &[ServerName], now: Steady) {
        self.note(gap, (false, now + UNREACHED_PAUSE_MS), awaited, now);
    }

    fn note(&self, gap: GapKey, (is_unfillable, until): (bool, Steady), awaited: &[ServerName], now: Steady) {
        let awaited: Vec<ServerName> = awaited.iter().take(AWAITED_MAX).cloned().collect();
        let mut unfilled = self.gaps_now();
        if unfilled.awaited.len() + awaited.len() > AWAITED_OF_ALL_MAX {
            let Unfilled { gaps, awaited } = &mut *unfilled;
            awaited.clear();
            let all = gaps.values().filter(|gap| gap.until > now).flat_map(|gap| gap.awaited.iter());
            awaited.extend(all.take(AWAITED_OF_ALL_MAX / 2).cloned());
        }
        unfilled.awaited.extend(awaited.iter().cloned());
        self.any_awaited.store(!unfilled.awaited.is_empty(), Ordering::Relaxed);
        let worth = |gap: &UnfilledGap| if gap.until <= now { Worth::Nothing } else { Worth::Little };
        unfilled.gaps.insert(gap, UnfilledGap { is_unfillable, until, awaited }, worth);
    }

    /// A server is there: gaps that wait for it are worth asking for again.
    pub(super) fn peer_spoke(&self, server: &ServerName) {
        if !self.any_awaited.load(Ordering::Relaxed) {
            return;
        }
        let mut unfilled = self.gaps_now();
        if unfilled.awaited.remove(server) {
            unfilled.gaps.retain(|_, gap| !gap.awaited.contains(server));
            self.any_awaited.store(!unfilled.awaited.is_empty(), Ordering::Relaxed);
        }
    }

    fn gaps_now(&self) -> MutexGuard<'_, Unfilled> {
        lock(&self.gaps)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gap_is_left_alone_for_a_while_or_until_a_server_speaks_that_may_fill_it() {
        let (unfilled, now) = (UnfilledGaps::default(), Steady::at(1000));
        let [gone, other] = ["gone.example", "other.example"].map(|name| ServerName::parse(name).unwrap());
        let key = |id: &str| (RoomKey::from(1), EventId::parse(id).unwrap());
        let (settled, unreached) = (key("$settled:a.example"), key("$unreached:a.example"));
        unfilled.note_unfillable(settled.clone(), std::slice::from_ref(&gone), now);
        unfilled.note_unreached(unreached.clone(), std::slice::from_ref(&other), now);
        let seen = |at: Steady| (unfilled.is_unfillable(&settled, at), unfilled.is_unreached(&unreached, at));
        assert_eq!(seen(now), (true, true));
        assert_eq!(seen(now + UNREACHED_PAUSE_MS), (true, false));
        assert_eq!(seen(now + UNFILLABLE_PAUSE_MS), (false, false));
        assert!(!unfilled.is_unreached(&settled, now) && !unfilled.is_unfillable(&unreached, now));
        unfilled.peer_spoke(&other);
        assert_eq!(seen(now), (true, false));
        unfilled.peer_spoke(&gone);
        assert_eq!(seen(now), (false, false));
    }

    #[test]
    fn however_many_servers_are_awaited_few_are_remembered() {
        let unfilled = UnfilledGaps::default();
        for n in 0..2 * AWAITED_OF_ALL_MAX {
            let gap = (RoomKey::from(1), EventId::parse(&format!("${n}:a.example")).unwrap());
            let server = ServerName::parse(&format!("s{n}.example")).unwrap();
            unfilled.note_unfillable(gap, &[server], Steady::at(1000));
        }
        let unfilled = unfilled.gaps_now();
        assert!(unfilled.awaited.len() <= AWAITED_OF_ALL_MAX && unfilled.gaps.len() <= UNFILLED_GAPS_MAX);
    }
}
