//! Other servers.
//!
//! - `server_keys`: this server's signing keys, and the keys of others;
//! - `destinations`: how far each server is with what it is owed; `owed`: what it is owed in particular;
//! - `transactions`: the answers that their transactions got, for repeats.

pub mod destinations;
pub mod owed;
pub mod server_keys;
pub mod transactions;
