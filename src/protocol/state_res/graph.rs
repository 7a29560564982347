//! The auth graph, as far as a resolution looks at it: events as small integers, fetched when first asked for.

use std::collections::{HashMap, HashSet};

use super::{EventLookup, LookupCache, NodeSet, StateTuple, UnconflictedState};
use crate::protocol::ids::{EventId, RoomId};
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::RoomVersion;

/// An event of the graph.
pub(super) type Node = u32;

pub(super) struct Graph<'a> {
    version: RoomVersion,
    fetch: EventLookup<'a>,
    /// Events of other rooms are not taken in. None only where no set has a create event that is known.
    room: Option<RoomId>,
    index: HashMap<EventId, Node>,
    ids: Vec<EventId>,
    loaded: Vec<Loaded>,
    memory: LookupCache,
}

enum Loaded {
    NotYet,
    Unknown,
    Known { event: Pdu, auth: Box<[Node]> },
}

/// The key under which a state event stands in a state.
pub(super) fn state_key(event: &Pdu) -> Option<StateTuple> {
    Some((event.event_type_arc().clone(), event.state_key_arc()?.clone()))
}

impl<'a> Graph<'a> {
    pub(super) fn new(version: RoomVersion, fetch: EventLookup<'a>, room: Option<RoomId>) -> Self {
        Self {
            version,
            fetch,
            room,
            index: HashMap::new(),
            ids: Vec::new(),
            loaded: Vec::new(),
            memory: LookupCache::default(),
        }
    }

    pub(super) fn len(&self) -> usize {
        self.ids.len()
    }

    pub(super) fn id(&self, node: Node) -> &EventId {
        &self.ids[node as usize]
    }

    pub(super) fn node(&mut self, id: &EventId) -> Node {
        if let Some(&node) = self.index.get(id) {
            return node;
        }
        // Four thousand million events would not fit into memory long before they fit into a `u32`.
        let node = self.ids.len() as Node;
        self.index.insert(id.clone(), node);
        self.ids.push(id.clone());
        self.loaded.push(Loaded::NotYet);
        node
    }

    fn fetch(&self, id: &EventId) -> Option<Pdu> {
        (self.fetch)(id).filter(|event| self.room.as_ref().is_none_or(|room| event.room_id() == room))
    }

    /// An event without a place in the graph: for lookups in the unconflicted state.
    pub(super) fn lookup(&self, id: &EventId) -> Option<Pdu> {
        if let Some(&node) = self.index.get(id)
            && !matches!(self.loaded[node as usize], Loaded::NotYet)
        {
            return self.known(node).cloned();
        }
        if let Some(known) = self.memory.borrow().get(id) {
            return known.clone();
        }
        let event = self.fetch(id);
        self.memory.borrow_mut().insert(id.clone(), event.clone());
        event
    }

    /// The event, fetched if need be.
    pub(super) fn event(&mut self, node: Node) -> Option<&Pdu> {
        if matches!(self.loaded[node as usize], Loaded::NotYet) {
            self.loaded[node as usize] = match self.fetch(&self.ids[node as usize]) {
                None => Loaded::Unknown,
                Some(event) => {
                    let mut auth: Vec<Node> = event.auth_events().iter().map(|id| self.node(id)).collect();
                    // From room version 12 on events cite their create event by the room id.
                    if self.version.room_id_is_create_hash && event.event_type() != "m.room.create" {
                        auth.extend(event.room_id().create_event_id().map(|id| self.node(&id)));
                    }
                    Loaded::Known { event, auth: auth.into() }
                }
            };
        }
        self.known(node)
    }

    /// The event, if it was fetched before.
    pub(super) fn known(&self, node: Node) -> Option<&Pdu> {
        match &self.loaded[node as usize] {
            Loaded::Known { event, .. } => Some(event),
            Loaded::NotYet | Loaded::Unknown => None,
        }
    }

    /// The events that an event cites, if it was fetched before.
    pub(super) fn auth(&self, node: Node) -> &[Node] {
        match &self.loaded[node as usize] {
            Loaded::Known { auth, .. } => auth,
            Loaded::NotYet | Loaded::Unknown => &[],
        }
    }

    /// The events that an event cites, all of them fetched.
    pub(super) fn load_auth(&mut self, node: Node) -> Vec<Node> {
        self.event(node);
        let auth = self.auth(node).to_vec();
        for &cited in &auth {
            self.event(cited);
        }
        auth
    }

    /// The power levels event that an event cites.
    pub(super) fn cited_power_levels(&mut self, node: Node) -> Option<Node> {
        self.load_auth(node).into_iter().find(|&cited| self.is(cited, "m.room.power_levels"))
    }

    /// The create event that an event cites.
    pub(super) fn cited_create(&mut self, node: Node) -> Option<Node> {
        self.load_auth(node).into_iter().find(|&cited| self.is(cited, "m.room.create"))
    }

    fn is(&self, node: Node, event_type: &str) -> bool {
        self.known(node).is_some_and(|event| event.is(event_type, ""))
    }

    /// Every known event that is in the full auth chain of some sets and not of others, except those in
    /// `conflicted`, which the caller has already. A set's full auth chain is its events and all that they rest on.
    ///
    /// `by_set` has each set's conflicted events, `unconflicted` what all sets have in common. What `unconflicted`
    /// rests on is in every chain, and usually most of the room: so the walk goes up from the conflicted events
    /// first, stops at unconflicted ones, and looks at the chain of the unconflicted state only if something is left
    /// to be decided by it, and only until it is decided.
    pub(super) fn auth_difference(
        &mut self,
        by_set: &[Vec<Node>],
        unconflicted: &UnconflictedState<'_>,
        conflicted: &[Node],
    ) -> Vec<Node> {
        let mut in_chains: HashMap<Node, usize> = HashMap::new();
        for events in by_set {
            let mut seen = NodeSet::of(&[], self.len());
            let mut todo = events.clone();
            while let Some(node) = todo.pop() {
                if !seen.insert(node) {
                    continue;
                }
                let Some(event) = self.event(node) else { continue };
                if state_key(event)
                    .is_some_and(|key| unconflicted.get(&key).as_ref() == Some(event.event_id()))
                {
                    continue;
                }
                *in_chains.entry(node).or_default() += 1;
                todo.extend(self.auth(node));
            }
        }
        // What some of the sets reached and others did not.
        let conflicted = NodeSet::of(conflicted, self.len());
        let mut undecided: HashSet<Node> = in_chains
            .into_iter()
            .filter(|&(node, count)| count < by_set.len() && !conflicted.contains(node))
            .map(|(node, _)| node)
            .collect();

        if undecided.is_empty() {
            return Vec::new();
        }
        // The unconflicted state other than memberships comes first: it settles most questions in a few steps.
        let mut seen = NodeSet::of(&[], self.len());
        for id in unconflicted.events() {
            if undecided.is_empty() {
                break;
            }
            let mut todo = vec![self.node(&id)];
            while let Some(node) = todo.pop() {
                if undecided.is_empty() {
                    break;
                }
                if seen.insert(node) {
                    undecided.remove(&node);
                    self.event(node);
                    todo.extend(self.auth(node));
                }
            }
        }
        undecided.into_iter().collect()
    }

    /// The events on a path of auth events from one of `conflicted` to another, both ends included.
    pub(super) fn conflicted_subgraph(&mut self, conflicted: &[Node]) -> Vec<Node> {
        let is_conflicted = NodeSet::of(conflicted, self.len());
        let mut entered = NodeSet::of(&[], self.len());
        let mut leads_to_conflicted = NodeSet::of(&[], self.len());
        let mut found = Vec::new();
        // Depth first, each event left after everything that it rests on: (event, cited events looked at so far).
        let mut path: Vec<(Node, usize)> = Vec::new();
        for &start in conflicted {
            if entered.insert(start) {
                path.push((start, 0));
            }
            while let Some((node, next)) = path.last_mut() {
                let node = *node;
                self.event(node);
                if let Some(&cited) = self.auth(node).get(*next) {
                    *next += 1;
                    if entered.insert(cited) {
                        path.push((cited, 0));
                    }
                    continue;
                }
                path.pop();
                let leads = is_conflicted.contains(node)
                    || self.auth(node).iter().any(|&cited| leads_to_conflicted.contains(cited));
                if leads && self.known(node).is_some() {
                    leads_to_conflicted.insert(node);
                    found.push(node);
                }
            }
        }
        found
    }
}
