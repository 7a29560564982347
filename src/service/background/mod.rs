//! What works without being asked. It stands above the other services, whose verbs it calls; they know no more of it
//! than that they may say that something is due.
//!
//! - `notifier`: who waits for news, and how they learn of it.
//! - `scheduler`: what is due by the clock.

pub mod notifier;
pub mod scheduler;
