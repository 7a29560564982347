//! What notifies, and where to.

pub mod push_rules;
pub mod pushers;
