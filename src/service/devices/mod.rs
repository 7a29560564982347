//! Devices: their lists, messages to them, and the keys that they keep here, here and across servers.
//!
//! - `device_lists`: which devices somebody has, told to other servers and heard from them.
//! - `swept_changes`: changes of devices that are of interest to nobody any more.
//! - `dehydrated`: devices that nobody is logged in on, which keep what comes for them.
//! - `key_backup`: room keys that clients keep here, encrypted; `key_restore`: how they are read back in bulk.
//! - `remote_keys`: end-to-end keys across servers.
//! - `to_device`: messages from device to device.
//! - `keys`: end-to-end keys of devices, uploaded, told and given out; `cross_signing`: keys that users sign with.

pub mod cross_signing;
pub mod dehydrated;
pub mod device_lists;
pub mod key_backup;
pub mod key_restore;
pub mod keys;
pub mod remote_keys;
pub mod swept_changes;
pub mod to_device;

use std::ops::Deref;

use crate::error::{Error, Result};
use crate::protocol::{ServerName, UserId};
use crate::service::Homeserver;
use crate::store::Db;

/// Devices: their lists, and messages to them, here and across servers.
#[derive(Clone, Copy)]
pub struct Devices<'h>(&'h Homeserver);

impl Deref for Devices<'_> {
    type Target = Homeserver;

    fn deref(&self) -> &Homeserver {
        self.0
    }
}

impl Homeserver {
    /// Devices: their lists, and messages to them, here and across servers.
    pub fn devices(&self) -> Devices<'_> {
        Devices(self)
    }
}

/// Refuses to keep anything for an account that was closed since its request came. Errors: 403 `M_FORBIDDEN`.
fn check_active(db: &Db<'_>, user: &UserId) -> Result<()> {
    match db.is_active_user(user)? {
        true => Ok(()),
        false => Err(Error::forbidden("There is no such account any more")),
    }
}

/// Whether this user is one of this server.
fn is_of(server: &ServerName, user: &UserId) -> bool {
    user.server_name() == server.as_str()
}
