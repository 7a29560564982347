//! Requests to other servers: where they are, whether we may connect there, the signed request, typed calls.
//!
//! This layer has no memory of its own beyond short-lived caches: it is given keys, names and time-outs, and knows
//! nothing of rooms, the database, or who is owed what.

pub mod address_guard;
mod agent;
pub mod answer_memory;
pub mod calls;
pub mod client;
mod connections;
pub mod discovery;
pub mod dns;
pub mod identity;
mod offline;
mod scripted;
#[cfg(test)]
pub(crate) mod scripted_peer;

pub use calls::HandshakeKind;
pub use client::{CallError, CallResult, Client, ClientSettings, HOPS, PeerError, PeerRequest, Response};
pub use scripted::{AnswerScript, ScriptedRequest};
