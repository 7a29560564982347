//! One's devices, their end-to-end keys, and what is sent from device to device.

pub mod dehydrated;
pub mod keys;
pub mod management;
pub mod room_keys;
pub mod to_device;
