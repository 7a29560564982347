//! Connections, requests and replies: HTTP itself, which knows no Matrix endpoint.

pub(super) mod bounds;
pub(super) mod connection;
pub(super) mod pool;
pub mod reply;
pub mod request;
pub mod server;
pub(super) mod socket;
pub(super) mod tls;
