//! What goes between devices.
//!
//! - `to_device`: messages that wait for devices, and which ones other servers have sent already;
//! - `device_lists`: whose devices changed, and what is known of the devices of other servers' users.

pub mod device_lists;
pub mod to_device;
