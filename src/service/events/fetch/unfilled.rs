//! Gaps in the history that were asked for in vain: those that no server can fill, which are passed over for a while, and those
//! for which there is nobody to ask at this moment, which is no answer. Where that moment lasts for minutes it is one: servers
//! die, or keep silent on purpose.

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
/// After so many attempts over so long a time in which nobody could be asked it is taken for one that nobody can fill, until it
/// is asked for again.
const UNREACHED_ATTEMPTS_MAX: u32 = 3;
const UNREACHED_MAX_MS: Millis = 120_000;
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
    /// Whether nobody can fill it, as far as is known.
    is_unfillable: bool,
    /// Until when it is left alone; none if it is not any more.
    until: Option<Steady>,
    /// Who was not reached, or would have to say the key of what was shown.
    awaited: Vec<ServerName>,
    /// Since when nobody could be asked, and how often that was so.
    unreached: Option<(Steady, u32)>,
}

impl UnfilledGap {
    fn is_left_alone(&self, now: Steady) -> bool {
        self.until.is_some_and(|until| until > now)
    }
}

impl UnfilledGaps {
    /// Whether it was found out that nobody can fill the gap.
    pub(super) fn is_unfillable(&self, gap: &GapKey, now: Steady) -> bool {
        self.gaps_now().gaps.get(gap).is_some_and(|gap| gap.is_unfillable && gap.is_left_alone(now))
    }

    /// Whether nobody could be asked just before.
    pub(super) fn is_unreached(&self, gap: &GapKey, now: Steady) -> bool {
        self.gaps_now().gaps.get(gap).is_some_and(|gap| !gap.is_unfillable && gap.is_left_alone(now))
    }

    /// How often nobody could be asked.
    pub(super) fn attempts(&self, gap: &GapKey) -> u32 {
        self.gaps_now().gaps.get(gap).and_then(|gap| gap.unreached).map_or(0, |(_, attempts)| attempts)
    }

    pub(super) fn note_unfillable(&self, gap: GapKey, awaited: &[ServerName], now: Steady) {
        let noted = UnfilledGap {
            is_unfillable: true,
            until: Some(now + UNFILLABLE_PAUSE_MS),
            awaited: awaited.iter().take(AWAITED_MAX).cloned().collect(),
            unreached: None,
        };
        self.note(gap, noted, now);
    }

    /// Notes that nobody could be asked. True if that was so for so long that it is taken for one that nobody can fill.
    pub(super) fn note_unreached(&self, gap: GapKey, awaited: &[ServerName], now: Steady) -> bool {
        let before = self.gaps_now().gaps.get(&gap).and_then(|gap| gap.unreached);
        let (since, attempts) = before.map_or((now, 1), |(since, before)| (since, before.saturating_add(1)));
        let is_unfillable = attempts >= UNREACHED_ATTEMPTS_MAX && now - since >= UNREACHED_MAX_MS;
        let pause = if is_unfillable { UNFILLABLE_PAUSE_MS } else { UNREACHED_PAUSE_MS };
        let noted = UnfilledGap {
            is_unfillable,
            until: Some(now + pause),
            awaited: awaited.iter().take(AWAITED_MAX).cloned().collect(),
            unreached: Some((since, attempts)),
        };
        self.note(gap, noted, now);
        is_unfillable
    }

    fn note(&self, gap: GapKey, noted: UnfilledGap, now: Steady) {
        let awaited = &noted.awaited;
        let mut unfilled = self.gaps_now();
        if unfilled.awaited.len() + awaited.len() > AWAITED_OF_ALL_MAX {
            let Unfilled { gaps, awaited } = &mut *unfilled;
            awaited.clear();
            let all = gaps.values().filter(|gap| gap.is_left_alone(now)).flat_map(|gap| gap.awaited.iter());
            awaited.extend(all.take(AWAITED_OF_ALL_MAX / 2).cloned());
        }
        unfilled.awaited.extend(awaited.iter().cloned());
        self.any_awaited.store(!unfilled.awaited.is_empty(), Ordering::Relaxed);
        let worth = |gap: &UnfilledGap| if gap.is_left_alone(now) { Worth::Little } else { Worth::Nothing };
        unfilled.gaps.insert(gap, noted, worth);
    }

    /// A server is there: gaps that wait for it are worth asking for again. How long nobody could be asked for them is not
    /// forgotten: who speaks may give nothing all the same.
    pub(super) fn peer_spoke(&self, server: &ServerName) {
        if !self.any_awaited.load(Ordering::Relaxed) {
            return;
        }
        let mut unfilled = self.gaps_now();
        if unfilled.awaited.remove(server) {
            unfilled.gaps.retain(|_, gap| {
                if gap.awaited.contains(server) {
                    gap.until = None;
                }
                true
            });
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
    fn a_gap_that_nobody_can_be_asked_for_is_one_that_nobody_can_fill_after_some_attempts_over_some_minutes()
    {
        let (unfilled, mut now) = (UnfilledGaps::default(), Steady::at(1000));
        let (gap, peer) = ((RoomKey::from(1), EventId::parse("$gap:a.example").unwrap()), "a.example");
        let peer = [ServerName::parse(peer).unwrap()];
        for _ in 0..10 {
            assert!(!unfilled.note_unreached(gap.clone(), &peer, now), "however often it is within a moment");
        }
        assert_eq!(unfilled.attempts(&gap), 10);
        now = now + UNREACHED_MAX_MS;
        assert!(unfilled.note_unreached(gap.clone(), &peer, now));
        assert!(unfilled.is_unfillable(&gap, now) && !unfilled.is_unreached(&gap, now));
        // Who speaks is asked again, and not waited for anew.
        unfilled.peer_spoke(&peer[0]);
        assert!(!unfilled.is_unfillable(&gap, now));
        assert!(unfilled.note_unreached(gap.clone(), &peer, now));
        // Who answers is heard.
        unfilled.note_unfillable(gap.clone(), &[], now);
        assert!(!unfilled.note_unreached(gap, &peer, now));
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
