//! How much strangers may ask.

pub mod fair_share;
pub mod knock_budget;
