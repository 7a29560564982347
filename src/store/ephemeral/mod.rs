//! Tables of typing, receipts and presence.

pub mod presence;
pub mod receipts;
pub mod typing;
