//! Dehydrated devices (MSC3814): one of each user, which nobody is logged in on.

use rusqlite::{OptionalExtension, params};

use crate::clock::Millis;
use crate::error::Result;
use crate::protocol::UserId;
use crate::protocol::json::ObjectText;
use crate::store::{Db, Tx};

/// The dehydrated device of a user.
#[derive(Debug, Clone)]
pub struct DehydratedDevice {
    /// Its id among the user's devices.
    pub device_id: String,
    /// What a client wakes it with: a JSON object.
    pub device_data: String,
}

impl Db<'_> {
    /// The user's dehydrated device.
    pub fn dehydrated_device(&self, user: &UserId) -> Result<Option<DehydratedDevice>> {
        let mut query = self
            .conn()
            .prepare_cached("SELECT device_id, device_data FROM dehydrated_devices WHERE user_id = ?1")?;
        let device = query.query_row([user.as_str()], |row| {
            Ok(DehydratedDevice { device_id: row.get(0)?, device_data: row.get(1)? })
        });
        Ok(device.optional()?)
    }
}

impl Tx<'_> {
    /// Makes a device that nobody is logged in on, of a user who has no such one and of an id that is free. It was heard
    /// of now, and never will be again: messages that find no room for longer than a device may sleep are dropped, and
    /// hold up nobody.
    pub fn add_dehydrated_device(
        &mut self,
        user: &UserId,
        device: &str,
        display_name: Option<&str>,
        device_data: &ObjectText,
        now: Millis,
    ) -> Result<()> {
        self.device_begins();
        self.execute(
            "INSERT INTO devices (user_id, device_id, display_name, last_seen_ms) VALUES (?1, ?2, ?3, ?4)",
            params![user.as_str(), device, display_name, now],
        )?;
        self.execute(
            "INSERT INTO dehydrated_devices (user_id, device_id, device_data) VALUES (?1, ?2, ?3)",
            params![user.as_str(), device, device_data.get()],
        )?;
        Ok(())
    }
}
