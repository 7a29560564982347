//! Hashes and signatures, of events and of requests.
//!
//! - `hash`: content and reference hashes, and the event ids made of them.
//! - `sign`: signatures are made, and verified one by one.
//! - `verify`: what it takes to believe an event of another server, and the type that says that this was done.
//! - `x_matrix`: requests between servers, signed.

pub mod hash;
pub mod sign;
pub mod verify;
pub mod x_matrix;
