//! HTTP: sockets in, typed calls on the homeserver, replies out. No decisions about Matrix are made here.
//!
//! `server` accepts and owns the threads, `connection` reads one request at a time from one socket, `tls` wraps it,
//! `router` finds the line of `routes` (the one table of endpoints), checks who asks and calls the handler. Handlers
//! live in `client_server` and `server_server`: parse, call a verb of the homeserver, answer.

pub mod auth;
pub mod client_server;
mod rate_limit;
pub mod router;
pub mod routes;
pub mod server_server;
pub mod transport;

pub use crate::http::transport::bounds::{Crowd, Limits};
pub use crate::http::transport::reply::Reply;
pub use crate::http::transport::request::Request;
pub use crate::http::transport::server::{Admission, ListenSpec, Server, Service, Wake};
pub use crate::http::transport::tls::Certificate;
pub use auth::{Origin, Requester};
pub use router::{Handler, Outcome, Rate, Route, Turn, delete, get, post, put};
