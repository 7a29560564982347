//! Push: of what users are notified.
//!
//! - `evaluate`: what an event is to those whom it may notify, in the transaction that accepts it;
//! - `recipients`: who they are, and whose rules are not the usual ones;
//! - `notifications`: the rows, and who reads them one by one;
//! - `unread`: up to where users have read, and what is unread behind it;
//! - `ignored`: what is unread of users who are ignored from now on;
//! - `sweep`: what was read long ago, and goes.

pub(in crate::store) mod evaluate;
mod ignored;
pub mod notifications;
pub(in crate::store) mod recipients;
pub mod sweep;
pub mod unread;
