//! Requests to other servers: where they are, whether we may connect there, the signed request, typed calls.
//!
//! This layer has no memory of its own beyond short-lived caches: it is given keys, names and time-outs, and knows
//! nothing of rooms, the database, or who is owed what.

pub mod address_guard;
pub mod calls;
pub mod client;
pub mod discovery;
pub mod dns;
pub mod held;
pub mod identity;
mod lines;
mod nowhere;
#[cfg(test)]
pub(crate) mod scripted_peer;
mod stand_in;
mod web;

pub use calls::Kind;
pub use client::{CallError, CallResult, Client, HOPS, Refusal, Response, Settings, SignedRequest};
pub use stand_in::{Played, Script};
