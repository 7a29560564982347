//! How much work others may cause: places for what takes long, and allowances for what is heavy.

pub mod favours;
pub mod labour;
pub(super) mod places;
