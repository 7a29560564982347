//! The server-server API, a file a subject. Thin: parse, call the homeserver, answer.

pub mod devices;
pub mod events;
pub mod keys;
pub mod membership;
pub mod openid;
pub mod public_rooms;
pub mod query;
pub mod spaces;
pub mod third_party;
pub mod transactions;
pub mod version;
