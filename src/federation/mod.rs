//! Requests to other servers: where they are, whether we may connect there, the signed request, typed calls.
//!
//! This layer has no memory of its own beyond short-lived caches: it is given keys, names and time-outs, and knows
//! nothing of rooms, the database, or who is owed what.
//!
//! - `discovery/`: from a server name to the addresses that are allowed.
//! - `client/`: the signed request, and who stands in for the network in tests.
//! - `calls/`: the calls between servers, typed, a file a subject.
//! - Others who are asked: `appservices`, `identity` servers, `push_gateway`s, `web_pages` that people link to, `acme` authorities that
//!   give certificates. `inspect`: a server as others see it, step by step, for `doorstep check`.
//! - Beneath all: `connections` that can be cut; `call_error`: why a call gave nothing; `answer_memory`: what answers
//!   may hold together.

pub mod acme;
pub mod answer_memory;
pub mod appservices;
mod call_error;
pub mod calls;
pub mod client;
mod connections;
pub mod discovery;
pub mod identity;
pub mod inspect;
pub mod push_gateway;
pub mod web_pages;

pub use call_error::{CallError, CallResult, PeerError};
pub use client::neighbours::Neighbours;
pub use client::scripted::{AnswerScript, ScriptedRequest};
pub use client::{Client, ClientSettings, HOPS, PeerRequest};
pub use discovery::names::{Detour, Names};
