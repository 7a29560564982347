//! Devices: their lists, and messages to them, here and across servers.

pub mod device_lists;
pub mod to_device;
