//! What is no part of a room's history and of which only the last counts: typing, receipts, presence.

pub mod presence;
pub mod receipts;
pub mod typing;
