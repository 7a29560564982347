//! Doorstep: a Matrix homeserver in one small synchronous binary with SQLite inside.

pub mod clock;
pub mod config;
pub mod error;
pub mod http;
pub mod protocol;
pub mod service;
pub mod store;

pub use error::{ErrCode, Error, Result};
pub use service::Homeserver;
