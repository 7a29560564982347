//! HTTP: sockets in, typed calls on the homeserver, replies out. No decisions about Matrix are made here.
//!
//! - `transport/`: listeners, connections, requests and replies. It serves a [`Service`] and knows no endpoint.
//! - `routes`: the one table of endpoints; `route`: what a line of it says.
//! - `router`: finds a request's line, has it checked who asks and how often, and calls the handler.
//! - `params`: what the handlers of both APIs read of a request.
//! - `auth`: access tokens and X-Matrix signatures; `rate_limit`: how often somebody may ask.
//! - `metrics`: requests counted, and the page of numbers, by itself.
//! - `client_server/`, `server_server/`, `admin/`: the handlers. Parse, call a verb of the homeserver, answer.
//! - `page/`: those of the page for people, which answer with HTML.

pub mod admin;
pub mod auth;
pub mod client_server;
pub mod metrics;
pub mod page;
mod params;
mod rate_limit;
pub mod route;
pub mod router;
pub mod routes;
pub mod server_server;
pub mod transport;

pub use crate::http::transport::bounds::{ConnectionLimits, Quota};
pub use crate::http::transport::listeners::ListenSpec;
pub use crate::http::transport::local_socket::{ask, ask_for_stream, is_listened_on};
pub use crate::http::transport::reply::Reply;
pub use crate::http::transport::request::Request;
pub(crate) use crate::http::transport::request::decode_segment;
pub use crate::http::transport::server::Server;
pub use crate::http::transport::service::{Admission, BodyUse, Call, Outcome, Poll, Service, Tell, WakeTurn};
pub use crate::http::transport::tls::Certificate;
pub use auth::{Origin, Requester};
pub use route::{Handler, Route};
