//! End-to-end keys, as they are sent and signed: of devices, of users, as other servers tell them, and kept for rooms.

pub mod backup;
pub mod cross_signing;
pub mod device;
pub mod remote;
