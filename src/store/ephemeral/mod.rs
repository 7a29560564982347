//! What is no part of a room's history.
//!
//! - `typing`: who is typing, and when what is ephemeral in a room changed last;
//! - `receipts`: up to where users have read;
//! - `presence`: who is there.

pub mod presence;
pub mod receipts;
pub mod typing;
