//! Tables of other servers: their keys, what they are owed, what they sent.

pub mod destinations;
pub mod owed;
pub mod server_keys;
pub mod transactions;
