//! The commonest conflict by far, without the work of a whole resolution: in each branch of a busy room somebody else
//! comes in, or knocks, whom the other branches have never heard of.
//!
//! Whole resolution would come to the same. Let every conflicted event be a newcomer as [`is_newcomer`] has it: their own
//! join or knock, the only event that any of the states has for them, resting on nothing but events on which all states
//! agree. Then
//!
//! - whatever a newcomer rests on is in the full auth chain of every state: there is no auth difference, and, as long
//!   as none of those rests on a newcomer in turn (which version 2.1 alone asks), no more of a conflicted subgraph.
//!   So the full conflicted set is the newcomers;
//! - none of them is a power event: they are checked one by one in mainline order;
//! - such a check asks for the create event, the power levels, the join rules and the user's own membership, and for
//!   nobody else's. The first three are undisputed, or cited and the same; the last only the newcomer itself could
//!   change. So no check depends on another, and their order does not matter.
//!
//! What comes out is what all states agree on and every newcomer who passes: where they were all let in, the union of the
//! states.

use serde_json::{Map, Value};

use super::{Conflict, Resolution};
use crate::order::Gather;
use crate::protocol::event_auth;
use crate::protocol::ids::EventId;
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::state_res::graph::Node;

impl Resolution<'_> {
    /// The full conflicted set, if it consists of newcomers.
    pub(super) fn fast_path(&mut self) -> Option<Vec<Node>> {
        let mut found = Vec::with_capacity(self.conflicts.len());
        for conflict in &self.conflicts {
            let event = self.graph.lookup(only_value(conflict)?)?;
            if !self.is_newcomer(conflict, &event) {
                return None;
            }
            found.push(event);
        }
        let nodes: Vec<Node> = found.iter().map(|event| self.graph.node(event.event_id())).collect();
        // Every newcomer leads to itself: what else does is on a path from one to another.
        if self.is_2_1 && self.graph.conflicted_subgraph(&nodes).len() != nodes.len() {
            return None;
        }
        Some(nodes)
    }

    fn is_newcomer(&self, conflict: &Conflict, event: &Pdu) -> bool {
        let undisputed = |kind: &str, key: &str| self.unconflicted.get(&(kind.into(), key.into()));
        &*conflict.key.0 == "m.room.member" && is_newcomer(event, &conflict.key.1, &undisputed)
    }
}

/// Whether an event is a newcomer: the user's own join or knock, by nobody else's leave, that rests on nothing but events
/// on which all states agree. `undisputed`: those, by type and state key. That no state has another membership of the
/// user's is for the caller to know.
pub fn is_newcomer(event: &Pdu, user: &str, undisputed: &dyn Fn(&str, &str) -> Option<EventId>) -> bool {
    let is_own = event.is("m.room.member", user) && event.sender().as_str() == user;
    if !is_own || !matches!(event.membership(), Some(Membership::Join | Membership::Knock)) {
        return false;
    }
    let (kind, content, mut cited) = (event.event_type(), content_for_selection(event), 0);
    for (kind, key) in event_auth::selection(kind, user, Some(user), &content, event.version()) {
        let is_membership = kind == "m.room.member";
        if is_membership && key == user {
            continue;
        }
        // Somebody else's membership: that of who lets them in. It might be in dispute.
        if is_membership {
            return false;
        }
        if let Some(undisputed) = undisputed(kind, key) {
            if !event.auth_events().contains(&undisputed) {
                return false;
            }
            cited += 1;
        }
    }
    event.auth_events().len() == cited
}

/// Whether an event is a newcomer because this one is: it is as much its own user's as that, and rests on the same events.
/// False says nothing.
pub fn is_newcomer_like(event: &Pdu, newcomer: &Pdu) -> bool {
    event.is("m.room.member", event.sender().as_str())
        && event.membership() == newcomer.membership()
        && event.auth_events() == newcomer.auth_events()
        && event.version().id == newcomer.version().id
        && !may_select_more(event)
        && !may_select_more(newcomer)
}

/// Whether the content of a join or a knock may say more of the events that it should rest on than the membership does.
fn may_select_more(event: &Pdu) -> bool {
    let raw = event.content_raw();
    raw.contains('\\') || raw.contains("join_authorised_via_users_server")
}

/// The content of a join or a knock, as far as it says which events it should rest on: parsed only where it may say more
/// than the membership.
fn content_for_selection(event: &Pdu) -> Map<String, Value> {
    if may_select_more(event) {
        return event.content();
    }
    let membership = event.membership().map(|membership| Value::from(membership.as_str()));
    membership.into_iter().map(|membership| ("membership".to_owned(), membership)).gather()
}

/// The one event that the states have for a key, where they have any.
fn only_value(conflict: &Conflict) -> Option<&EventId> {
    let mut values = conflict.values.iter().flatten();
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}
