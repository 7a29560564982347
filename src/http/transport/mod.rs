//! Connections, requests and replies: HTTP itself, which knows no Matrix endpoint.
//!
//! - `service`: the contract with what is served, [`service::Service`].
//! - `server`: start, stop, and who is let in; `listeners`: what they come by; `registry`: the connections that are open, and
//!   which of them make room for others.
//! - `local_socket`: the way in for commands on the same machine, both ends.
//! - `connection`: one connection, a request at a time; `framing`: a request's head, and how its body is delimited;
//!   `body`: how that is read; `patience`: how slowly; `parked`: one that waits.
//! - `pool`: the threads that work and those that wait.
//! - `bounds`: how much of everything there may be, apart for clients and other servers; `waits`: and for who waits;
//!   `large_bodies`: how much of bodies, and how much is built of them.
//! - `socket`: reads and writes that end by a deadline; `tls`: certificates.
//! - `request`, `reply`: what handlers are given and give back; `head`: a reply's head as bytes;
//!   `failure`: what is answered where something of ours failed.

pub(super) mod body;
pub(super) mod bounds;
pub(super) mod connection;
pub(super) mod failure;
pub(super) mod framing;
pub(super) mod head;
pub(super) mod large_bodies;
pub mod listeners;
pub mod local_socket;
pub(super) mod parked;
pub(super) mod patience;
pub(super) mod pool;
pub(super) mod registry;
pub mod reply;
pub mod request;
pub mod server;
pub mod service;
pub(super) mod socket;
pub(super) mod tls;
pub(super) mod waits;
