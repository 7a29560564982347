//! Requests to other servers: where they are, whether we may connect there, the signed request, typed calls.
//!
//! This layer has no memory of its own beyond short-lived caches: it is given keys, names and time-outs, and knows
//! nothing of rooms, the database, or who is owed what.
//!
//! - `client`: the signed request; `call_error`: why it gave nothing; `answer_memory`: what answers may hold together.
//! - `streams`: answers that are read as they come.
//! - `calls/`: the calls between servers, typed, a file a subject; `identity`: what identity servers are asked.
//! - `push_gateway`: what push gateways are sent.
//! - `discovery`: from a server name to addresses; `dns`: names; `address_guard`: which addresses are allowed.
//! - `inspect`: a server as others see it, step by step, for `doorstep check`.
//! - `names`: where names lead, if the system is not to say so. `agent`: the ways of web requests, TLS; `connections`: connections that can be cut.
//! - `web_pages`: pages of the web that people link to.
//! - `acme`: the requests to an authority that gives certificates.
//! - `offline`, `scripted`: a client that reaches nobody, and one for which a script plays everybody; `neighbours`: servers
//!   of one process that need no name server to find each other.

pub mod acme;
pub mod address_guard;
mod agent;
pub mod answer_memory;
mod call_error;
pub mod calls;
pub mod client;
mod connections;
pub mod discovery;
pub mod dns;
pub mod identity;
pub mod inspect;
mod names;
mod neighbours;
mod offline;
pub mod push_gateway;
mod scripted;
#[cfg(test)]
pub(crate) mod scripted_peer;
mod streams;
pub mod web_pages;

pub use call_error::{CallError, CallResult, PeerError};
pub use client::{Client, ClientSettings, HOPS, PeerRequest};
pub use names::{Detour, Names};
pub use neighbours::Neighbours;
pub use scripted::{AnswerScript, ScriptedRequest};
