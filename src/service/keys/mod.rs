//! Signing keys, ours and other servers', and the signatures that are checked with them.

pub(super) mod attempts;
pub mod fetch;
pub mod ring;
pub(super) mod verify;
