//! Push rules (client-server API, "Push Rules"): which events notify whom, and how.
//!
//! - `user_rules`: what a user has changed in the rules, how they change it, and the rules that come of it;
//!   `predefined`: those that everybody begins with;
//! - `rule_set`: rules that were compiled, and what they make of an event; `condition`: their conditions; `event`: the
//!   event as conditions look at it; `names`: users' names, as they are looked for in it.

mod condition;
mod event;
mod names;
mod predefined;
mod rule_set;
mod user_rules;

pub use event::{PushEvent, Recipient, RoomFacts};
pub use names::{NamedBy, Names};
pub use rule_set::{Actions, Outcome, RuleSet, StepsUsedUp};
pub use user_rules::{NewRule, Place, RuleKind, UserRules};
