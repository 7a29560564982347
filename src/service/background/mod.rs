//! What works without being asked: who waits for news, and what is due by the clock.

pub mod notifier;
pub mod scheduler;
