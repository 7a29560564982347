//! What goes between devices, and the keys that it is encrypted with.
//!
//! - `to_device`: messages that wait for devices, and which ones other servers have sent already;
//! - `device_lists`: whose devices changed, and what is known of the devices of other servers' users;
//! - `swept_changes`: changes that are of interest to nobody any more;
//! - `keys`: end-to-end keys of our users' devices;
//! - `cross_signing`: keys with which users sign devices and one another, and those signatures;
//! - `dehydrated`: devices that nobody is logged in on;
//! - `key_backup`: room keys that users' clients keep here, encrypted.

pub mod cross_signing;
pub mod dehydrated;
pub mod device_lists;
pub mod key_backup;
pub mod keys;
pub mod swept_changes;
pub mod to_device;
