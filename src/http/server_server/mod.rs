//! The server-server API, a file a subject. Thin: parse, call the homeserver, answer.

pub mod keys;
pub mod membership;
pub mod query;
pub mod version;
