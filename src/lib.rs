//! Doorstep: a Matrix homeserver in one small synchronous binary with SQLite inside.

pub mod clock;
pub mod config;
pub mod error;
pub mod federation;
pub mod http;
pub mod launch;
pub mod protocol;
pub mod service;
pub mod store;
pub mod testing;

pub use error::{ErrCode, Error, Result};
pub use service::Homeserver;
pub use testing::TestServer;
