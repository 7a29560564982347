//! The commonest conflict by far, without the work of a whole resolution: in each branch of a busy room somebody else
//! comes in, or knocks, whom the other branches have never heard of.
//!
//! Whole resolution would come to the same. Let every conflicted event be a newcomer as [`Resolution::is_newcomer`] has
//! it: their own join or knock, the only event that any of the states has for them, resting on nothing but events on
//! which all states agree. Then
//!
//! - whatever a newcomer rests on is in the full auth chain of every state: there is no auth difference, and, as long
//!   as none of those rests on a newcomer in turn (which version 2.1 alone asks), no more of a conflicted subgraph.
//!   So the full conflicted set is the newcomers;
//! - none of them is a power event: they are checked one by one in mainline order;
//! - such a check asks for the create event, the power levels, the join rules and the user's own membership, and for
//!   nobody else's. The first three are undisputed, or cited and the same; the last only the newcomer itself could
//!   change. So no check depends on another, and their order does not matter.

use super::{Conflict, Resolution};
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
        let (kind, user) = (&*conflict.key.0, &*conflict.key.1);
        let is_own = event.is(kind, user) && event.sender().as_str() == user;
        let comes = matches!(event.membership(), Some(Membership::Join | Membership::Knock));
        if !is_own || !comes {
            return false;
        }
        let mut cited = 0;
        for (kind, key) in event_auth::auth_types(kind, user, Some(user), &event.content(), event.version()) {
            let is_membership = kind == "m.room.member";
            if is_membership && key == user {
                continue;
            }
            // Somebody else's membership: that of who lets them in. It might be in dispute.
            if is_membership {
                return false;
            }
            if let Some(undisputed) = self.unconflicted.get(&(kind.into(), key.into())) {
                if !event.auth_events().contains(&undisputed) {
                    return false;
                }
                cited += 1;
            }
        }
        event.auth_events().len() == cited
    }
}

/// The one event that the states have for a key, where they have any.
fn only_value(conflict: &Conflict) -> Option<&EventId> {
    let mut values = conflict.values.iter().flatten();
    let first = values.next()?;
    values.all(|value| value == first).then_some(first)
}
