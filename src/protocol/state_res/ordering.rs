//! The two orders of state resolution 2 and 2.1.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet};

use super::graph::{Graph, Node};
use crate::protocol::event_auth::{AuthChecker, PowerLevel};
use crate::protocol::ids::EventId;

/// Earlier is smaller: the greater power level, then the earlier timestamp, then the lesser event id.
type PowerOrder = (Reverse<PowerLevel>, i64, EventId);

/// Reverse topological power ordering: what an event rests on comes before it; among what could come next, the
/// smallest by [`PowerOrder`]. All of `events` have been fetched.
pub(super) fn reverse_topological_power(
    graph: &mut Graph<'_>,
    checker: &AuthChecker,
    events: Vec<Node>,
) -> Vec<Node> {
    let position: HashMap<Node, usize> = events.iter().enumerate().map(|(at, &node)| (node, at)).collect();
    let mut waits_for = vec![0_usize; events.len()];
    let mut waited_for_by: Vec<Vec<usize>> = vec![Vec::new(); events.len()];
    let mut orders: Vec<Option<PowerOrder>> = Vec::with_capacity(events.len());
    for (at, &node) in events.iter().enumerate() {
        let mut cited: Vec<usize> =
            graph.auth(node).iter().filter_map(|cited| position.get(cited).copied()).collect();
        cited.sort_unstable();
        cited.dedup();
        waits_for[at] = cited.len();
        for cited in cited {
            waited_for_by[cited].push(at);
        }
        let level = sender_level(graph, checker, node);
        let timestamp = graph.known(node).map_or(0, |event| event.origin_server_ts());
        orders.push(Some((Reverse(level), timestamp, graph.id(node).clone())));
    }

    let mut ready = BinaryHeap::new();
    let mut sorted = Vec::with_capacity(events.len());
    let mut make_ready = |at: usize, ready: &mut BinaryHeap<_>| {
        ready.extend(orders[at].take().map(|order| Reverse((order, at))));
    };
    for (at, &count) in waits_for.iter().enumerate() {
        if count == 0 {
            make_ready(at, &mut ready);
        }
    }
    while let Some(Reverse((_, at))) = ready.pop() {
        sorted.push(events[at]);
        for &waiting in &waited_for_by[at] {
            waits_for[waiting] -= 1;
            if waits_for[waiting] == 0 {
                make_ready(waiting, &mut ready);
            }
        }
    }
    // Room versions 1 and 2 name events freely, so a hostile server can let them cite each other in a circle. Such
    // events never become ready; they are left to the mainline ordering.
    sorted
}

/// The level of an event's sender by the power levels that the event cites, or by its being the creator.
fn sender_level(graph: &mut Graph<'_>, checker: &AuthChecker, node: Node) -> PowerLevel {
    let (create, power_levels) = (graph.cited_create(node), graph.cited_power_levels(node));
    let known = |cited: Option<Node>| cited.and_then(|cited| graph.known(cited));
    let levels = checker.power_levels(known(create), known(power_levels));
    graph.known(node).map_or(PowerLevel::Finite(0), |event| levels.user(event.sender().as_str()))
}

/// Mainline ordering based on `power_levels`: events that rest on earlier power levels of the mainline come first,
/// those that rest on none of them before all; then by timestamp, then by event id.
pub(super) fn sort_by_mainline(graph: &mut Graph<'_>, power_levels: Option<Node>, events: &mut [Node]) {
    // The mainline, and in the course of the search all power levels that were passed on the way to it. `None`:
    // never meets the mainline. Greater is further back.
    let mut positions: HashMap<Node, Option<usize>> = HashMap::new();
    let mut next = power_levels;
    while let Some(node) = next {
        let position = positions.len();
        if positions.insert(node, Some(position)).is_some() {
            break; // a circle, see above
        }
        next = graph.cited_power_levels(node);
    }

    let mut keyed: Vec<_> = Vec::with_capacity(events.len());
    for &node in events.iter() {
        let mut passed = HashSet::new();
        let mut next = graph.cited_power_levels(node);
        let position = loop {
            let Some(current) = next else { break None };
            if let Some(&known) = positions.get(&current) {
                break known;
            }
            if !passed.insert(current) {
                break None;
            }
            next = graph.cited_power_levels(current);
        };
        positions.extend(passed.into_iter().map(|node| (node, position)));
        let timestamp = graph.known(node).map_or(0, |event| event.origin_server_ts());
        keyed.push((Reverse(position.unwrap_or(usize::MAX)), timestamp, graph.id(node).clone(), node));
    }
    keyed.sort_unstable();
    for (place, (.., node)) in events.iter_mut().zip(keyed) {
        *place = node;
    }
}
