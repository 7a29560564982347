//! State resolution: one room state out of several that conflict. Versions 2 and 2.1 are in this file, 1 in `v1`.
//! `graph`: the events at hand and what they cite; `ordering`: the two orders of version 2; `fast_path`: the commonest
//! conflict by far, without a whole resolution.
//!
//! Pure: events are asked for through `fetch`, and only those that are needed. What is known of them is kept in a
//! `Graph` of small integers; nothing recurses, and every walk visits an event once, so that work and memory grow
//! with the number of events looked at and not with the shape that a hostile server gives the graph.
//!
//! Points where the text leaves room, or Synapse and with it the existing rooms do something else:
//!
//! - A state's full auth chain includes the state's own events (the text's wording excludes them).
//! - The auth chain of a power event is followed through events of the full conflicted set only.
//! - `m.room.create` counts as a power event, and only events with the state key "" count as power levels, join
//!   rules and create event.
//! - Events that were rejected never come into the state. (The text admits those that failed only against the state
//!   before them, but not those that failed against their auth events; nobody keeps the two apart.)

mod fast_path;
mod graph;
mod ordering;
#[cfg(test)]
mod tests;
mod v1;

use std::cell::RefCell;
use std::collections::{BTreeMap, HashMap};
use std::iter::Peekable;
use std::sync::Arc;

use self::graph::{Graph, Node};
use crate::error::Result;
use crate::protocol::event_auth::AuthChecker;
use crate::protocol::ids::EventId;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::{RoomVersion, StateResolution};

pub use self::fast_path::{is_newcomer, is_newcomer_like};

/// Event type and state key.
pub type StateTuple = (Arc<str>, Arc<str>);

/// A room state: the event id for each event type and state key.
pub type StateMap = BTreeMap<StateTuple, EventId>;

/// Looks an event up, rejected ones included. Events of another room count as unknown.
pub type EventLookup<'a> = &'a dyn Fn(&EventId) -> Option<Pdu>;

/// Resolves states into one. The order of `sets` does not matter.
///
/// `fetch` must know the events in the sets and their auth chains; what it does not know is left out of
/// consideration, as the other servers do. `rejected` says of an event whether it was rejected: such events neither
/// come into the state nor serve as somebody's auth events.
///
/// Errors: none at present; the type leaves room for a caller's limits.
pub fn resolve(
    version: RoomVersion,
    sets: &[StateMap],
    fetch: EventLookup<'_>,
    rejected: &dyn Fn(&EventId) -> bool,
) -> Result<StateMap> {
    let mut distinct: Vec<&StateMap> = Vec::with_capacity(sets.len());
    for set in sets {
        if !distinct.contains(&set) {
            distinct.push(set);
        }
    }
    match (distinct.as_slice(), version.state_resolution) {
        ([], _) => Ok(StateMap::new()),
        ([only], _) => Ok((*only).clone()),
        (sets, StateResolution::V1) => Ok(v1::resolve(version, sets, fetch, rejected)),
        (sets, algorithm) => {
            let is_2_1 = algorithm == StateResolution::V2_1;
            Ok(Resolution::new(version, sets, None, fetch, rejected, is_2_1).run())
        }
    }
}

/// The unconflicted state map (the part of the states on which nobody differs), where it is too large to be handed
/// over: usually it is nearly the whole room. Has no key that is in one of the sets.
#[derive(Clone, Copy)]
pub struct Unconflicted<'a> {
    /// The event of one key.
    pub get: &'a dyn Fn(&StateTuple) -> Option<EventId>,
    /// All of it. Asked for only if something rests on former state.
    pub all: &'a dyn Fn() -> StateMap,
}

/// As [`resolve`], for states of which only the parts that may differ are given: `sets` have the same keys left out,
/// and what those are worth in each state is in `unconflicted`. Returns what the keys of the sets become, and further
/// keys that `unconflicted` does not have; work grows with the difference and not with the room. Not for room version
/// 1.
pub fn resolve_differences(
    version: RoomVersion,
    sets: &[StateMap],
    unconflicted: Unconflicted<'_>,
    fetch: EventLookup<'_>,
    rejected: &dyn Fn(&EventId) -> bool,
) -> StateMap {
    let sets: Vec<&StateMap> = sets.iter().collect();
    let is_2_1 = version.state_resolution == StateResolution::V2_1;
    Resolution::new(version, &sets, Some(unconflicted), fetch, rejected, is_2_1).run()
}

/// A key on whose value the sets do not agree, with each set's value.
struct Conflict {
    key: StateTuple,
    values: Vec<Option<EventId>>,
}

/// Divides the union of the sets. `agrees` decides whether the values of one key (one for each set) agree.
fn separate(sets: &[&StateMap], agrees: impl Fn(&[Option<&EventId>]) -> bool) -> (StateMap, Vec<Conflict>) {
    let mut iters: Vec<Peekable<_>> = sets.iter().map(|set| set.iter().peekable()).collect();
    let (mut unconflicted, mut conflicts) = (Vec::new(), Vec::new());
    let mut values: Vec<Option<&EventId>> = Vec::with_capacity(sets.len());
    while let Some(key) = iters.iter_mut().filter_map(|iter| iter.peek().map(|(key, _)| *key)).min() {
        values.clear();
        values.extend(iters.iter_mut().map(|iter| iter.next_if(|(k, _)| *k == key).map(|(_, value)| value)));
        match values.iter().flatten().next() {
            Some(value) if agrees(&values) => unconflicted.push((key.clone(), (*value).clone())),
            _ => {
                let values = values.iter().map(|value| value.cloned()).collect();
                conflicts.push(Conflict { key: key.clone(), values });
            }
        }
    }
    (unconflicted.into_iter().collect(), conflicts)
}

/// The unconflicted state map.
struct UnconflictedState<'a> {
    /// Of the sets.
    map: StateMap,
    /// And what was not handed over with them.
    rest: Option<Unconflicted<'a>>,
}

impl UnconflictedState<'_> {
    fn get(&self, key: &StateTuple) -> Option<EventId> {
        self.map.get(key).cloned().or_else(|| (self.rest?.get)(key))
    }

    /// Every event, those that are no memberships first.
    fn events(&self) -> Vec<EventId> {
        let not_in_sets = self.rest.map(|rest| (rest.all)()).unwrap_or_default();
        let is_member = |(key, _): &(&StateTuple, &EventId)| &*key.0 == "m.room.member";
        let (members, others): (Vec<_>, Vec<_>) = self.map.iter().chain(&not_in_sets).partition(is_member);
        others.into_iter().chain(members).map(|(_, id)| id.clone()).collect()
    }
}

/// Versions 2 and 2.1.
struct Resolution<'a> {
    graph: Graph<'a>,
    checker: AuthChecker,
    rejected: &'a dyn Fn(&EventId) -> bool,
    /// Version 2.1: begin with an empty state and take the conflicted state subgraph in.
    is_2_1: bool,
    unconflicted: UnconflictedState<'a>,
    conflicts: Vec<Conflict>,
    sets: usize,
    /// The partially resolved state, without what comes from `unconflicted`.
    resolved: HashMap<StateTuple, Node>,
}

impl<'a> Resolution<'a> {
    fn new(
        version: RoomVersion,
        sets: &[&StateMap],
        rest: Option<Unconflicted<'a>>,
        fetch: EventLookup<'a>,
        rejected: &'a dyn Fn(&EventId) -> bool,
        is_2_1: bool,
    ) -> Self {
        // A key that one set lacks is conflicted.
        let (map, conflicts) =
            separate(sets, |values| values.iter().all(|value| value.is_some() && *value == values[0]));
        let unconflicted = UnconflictedState { map, rest };
        let create: StateTuple = ("m.room.create".into(), "".into());
        let create = sets
            .iter()
            .find_map(|set| fetch(set.get(&create)?))
            .or_else(|| fetch(&unconflicted.get(&create)?));
        let room = create.map(|event| event.room_id().clone());
        Self {
            graph: Graph::new(version, fetch, room),
            checker: AuthChecker::new(version),
            rejected,
            is_2_1,
            unconflicted,
            conflicts,
            sets: sets.len(),
            resolved: HashMap::new(),
        }
    }

    fn run(mut self) -> StateMap {
        if self.conflicts.is_empty() {
            return self.unconflicted.map;
        }
        match self.fast_path() {
            Some(newcomers) => newcomers.into_iter().for_each(|event| self.apply_if_allowed(event)),
            None => self.resolve_conflicts(),
        }
        self.finish()
    }

    /// Steps 1 to 4.
    fn resolve_conflicts(&mut self) {
        let full_conflicted_set = self.full_conflicted_set();

        // 1. The power events and, of their auth chains, what is conflicted, in reverse topological power order.
        let power = self.power_events(&full_conflicted_set);
        let power = ordering::reverse_topological_power(&mut self.graph, &self.checker, power);

        // 2. Checked one by one, on top of the unconflicted state (2) or of nothing (2.1).
        for &event in &power {
            self.apply_if_allowed(event);
        }

        // 3. The others in mainline order of the power levels that this made.
        let is_power = NodeSet::of(&power, self.graph.len());
        let mut others: Vec<Node> =
            full_conflicted_set.into_iter().filter(|&event| !is_power.contains(event)).collect();
        let power_levels = self.state_event("m.room.power_levels", "");
        let power_levels = power_levels.map(|event| self.graph.node(event.event_id()));
        ordering::sort_by_mainline(&mut self.graph, power_levels, &mut others);

        // 4. Checked one by one.
        for &event in &others {
            self.apply_if_allowed(event);
        }
    }

    /// Step 5: what nobody disputed stands, whatever came out.
    fn finish(self) -> StateMap {
        let Self { graph, unconflicted, resolved, .. } = self;
        let undisputed = |key: &StateTuple| unconflicted.get(key).is_some();
        let new: Vec<_> = resolved.into_iter().filter(|(key, _)| !undisputed(key)).collect();
        let mut state = unconflicted.map;
        state.extend(new.into_iter().map(|(key, node)| (key, graph.id(node).clone())));
        state
    }

    /// The conflicted state set, the auth difference and, in 2.1, the conflicted state subgraph; without the events
    /// that nobody knows.
    fn full_conflicted_set(&mut self) -> Vec<Node> {
        let mut by_set: Vec<Vec<Node>> = vec![Vec::new(); self.sets];
        for conflict in &self.conflicts {
            for (set, value) in conflict.values.iter().enumerate() {
                by_set[set].extend(value.as_ref().map(|id| self.graph.node(id)));
            }
        }
        let mut full: Vec<Node> = by_set.concat();
        full.sort_unstable();
        full.dedup();
        full.retain(|&event| self.graph.event(event).is_some());
        let conflicted = full.clone();

        full.extend(self.graph.auth_difference(&by_set, &self.unconflicted, &conflicted));
        if self.is_2_1 {
            full.extend(self.graph.conflicted_subgraph(&conflicted));
        }
        full.sort_unstable();
        full.dedup();
        full
    }

    /// The set X of step 1.
    fn power_events(&mut self, full_conflicted_set: &[Node]) -> Vec<Node> {
        let is_conflicted = NodeSet::of(full_conflicted_set, self.graph.len());
        let is_power = |event: &Node| self.graph.known(*event).is_some_and(is_power_event);
        let mut found: Vec<Node> = full_conflicted_set.iter().copied().filter(is_power).collect();
        let mut seen = NodeSet::of(&found, self.graph.len());
        let mut next = 0;
        while let Some(&event) = found.get(next) {
            next += 1;
            for &cited in self.graph.auth(event) {
                if is_conflicted.contains(cited) && seen.insert(cited) {
                    found.push(cited);
                }
            }
        }
        found
    }

    /// One step of the iterative auth checks.
    fn apply_if_allowed(&mut self, node: Node) {
        let Some(event) = self.graph.event(node).cloned() else { return };
        if (self.rejected)(event.event_id()) {
            return;
        }
        let Some(key) = graph::state_key(&event) else { return };
        let cited: Vec<Pdu> = self
            .graph
            .load_auth(node)
            .into_iter()
            .filter_map(|cited| self.graph.known(cited).cloned())
            .filter(|cited| !(self.rejected)(cited.event_id()))
            .collect();
        // State that is not there yet comes from the event's own auth events, unless they were rejected.
        let state = |kind: &str, state_key: &str| {
            self.state_event(kind, state_key)
                .or_else(|| cited.iter().find(|event| event.is(kind, state_key)).cloned())
        };
        if self.checker.check(&event, &state).is_ok() {
            self.resolved.insert(key, node);
        }
    }

    /// The event in the partially resolved state.
    fn state_event(&self, kind: &str, state_key: &str) -> Option<Pdu> {
        let key: StateTuple = (kind.into(), state_key.into());
        match self.resolved.get(&key) {
            Some(&node) => self.graph.known(node).cloned(),
            None if self.is_2_1 => None,
            None => {
                let id = self.unconflicted.get(&key).filter(|id| !(self.rejected)(id))?;
                self.graph.lookup(&id)
            }
        }
    }
}

/// A state event that might take away somebody's ability to do something.
fn is_power_event(event: &Pdu) -> bool {
    match event.event_type() {
        "m.room.power_levels" | "m.room.join_rules" | "m.room.create" => event.state_key() == Some(""),
        "m.room.member" => {
            use crate::protocol::pdu::Membership::{Ban, Leave};
            matches!(event.membership(), Some(Leave | Ban))
                && event.state_key() != Some(event.sender().as_str())
        }
        _ => false,
    }
}

/// A set of nodes as a row of bits.
struct NodeSet(Vec<bool>);

impl NodeSet {
    fn of(nodes: &[Node], len: usize) -> Self {
        let mut set = Self(vec![false; len]);
        for &node in nodes {
            set.insert(node);
        }
        set
    }

    fn contains(&self, node: Node) -> bool {
        self.0.get(node as usize).copied().unwrap_or(false)
    }

    /// Whether it is new.
    fn insert(&mut self, node: Node) -> bool {
        if node as usize >= self.0.len() {
            self.0.resize(node as usize + 1, false);
        }
        !std::mem::replace(&mut self.0[node as usize], true)
    }
}

/// Events looked up by id outside of the graph, each once.
type LookupCache = RefCell<HashMap<EventId, Option<Pdu>>>;
