//! Tables of devices' messages and of who has to learn of which device.

pub mod device_lists;
pub mod to_device;
