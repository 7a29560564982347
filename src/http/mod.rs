//! HTTP: sockets in, typed calls on the homeserver, replies out. No decisions about Matrix are made here.
//!
//! `server` accepts and owns the threads, `connection` reads one request at a time from one socket, `tls` wraps it,
//! `router` finds the line of `routes` (the one table of endpoints), checks who asks and calls the handler. Handlers
//! live in `client_server` and `server_server`: parse, call a verb of the homeserver, answer.

pub mod auth;
mod bounds;
pub mod client_server;
mod connection;
mod pool;
mod rate_limit;
pub mod reply;
pub mod request;
pub mod router;
pub mod routes;
pub mod server;
pub mod server_server;
mod socket;
mod tls;

pub use auth::{Origin, Requester};
pub use bounds::{Crowd, Limits};
pub use reply::Reply;
pub use request::Request;
pub use router::{Handler, Outcome, Rate, Route, Turn, delete, get, post, put};
pub use server::{Admission, ListenSpec, Server, Service, Wake};
pub use tls::Certificate;
