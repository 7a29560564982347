//! Doorstep: a Matrix homeserver in one small synchronous binary with SQLite inside.

pub mod clock;
pub mod error;
pub mod protocol;

pub use error::{ErrCode, Error, Result};
