//! Dehydrated devices (MSC3814): a device of a user's that nobody is logged in on. It has keys like any other and is sent
//! messages like any other; whoever knows its secret wakes it on a new device, reads what came for it while the user had
//! no other device, and puts a new one in its place.
//!
//! Its messages stay until it goes: a client that stops half way begins anew.

use serde_json::value::RawValue;

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::json::ObjectText;
use crate::protocol::keys::device::KeyUpload;
use crate::service::accounts::sessions::{check_new_device, checked_device_id, checked_device_name};
use crate::service::devices::device_lists::tell_of_device;
use crate::service::devices::keys::{keep_upload, self_signature};
use crate::service::devices::{Devices, check_active};
use crate::store::devices::dehydrated::DehydratedDevice;

/// The largest `device_data`, in bytes: an account of Olm with a hundred one-time keys has about 20 000.
const DATA_BYTES_MAX: usize = 65_536;
/// Messages in one answer.
const EVENTS_MAX: usize = 100;

/// What a dehydrated device is made from.
pub struct NewDehydratedDevice {
    /// Its id, which none of the user's other devices has.
    pub device_id: String,
    /// What its user calls it.
    pub display_name: Option<String>,
    /// What a client wakes it with.
    pub device_data: ObjectText,
    /// Its keys; identity keys among them.
    pub keys: KeyUpload,
}

/// Messages for a dehydrated device.
pub struct DehydratedEvents {
    /// The messages, in the order in which they came.
    pub events: Vec<Box<RawValue>>,
    /// From where to go on.
    pub next_batch: String,
    /// Whether there are more of them now.
    pub limited: bool,
}

impl Devices<'_> {
    /// Puts a new dehydrated device in the place of the one that the user has, whose keys and messages go with it. Errors:
    /// 400 `M_MISSING_PARAM` for one without identity keys, `M_INVALID_PARAM` for an id that another device of the user
    /// has, 413 `M_TOO_LARGE`, 403 `M_FORBIDDEN` for who has too many devices, and those of [`Devices::upload_keys`].
    pub fn put_dehydrated_device(&self, user: &UserId, new: NewDehydratedDevice) -> Result<()> {
        let NewDehydratedDevice { device_id, display_name, device_data, keys } = new;
        let device_id = checked_device_id(&device_id)?.to_owned();
        let display_name = display_name.as_deref().map(checked_device_name).transpose()?;
        if device_data.get().len() > DATA_BYTES_MAX {
            return Err(Error::new(ErrCode::TooLarge, "device_data has at most 65536 bytes"));
        }
        let Some(identity) = &keys.device_keys else {
            return Err(Error::missing_param("Missing device_keys"));
        };
        let signature = self.store.read(|db| self_signature(db, user, identity))?;
        let (user, now) = (user.clone(), self.clock.now_ms());
        self.store.write(move |tx| {
            check_active(tx, &user)?;
            if let Some(old) = tx.dehydrated_device(&user)? {
                tx.delete_device(&user, &old.device_id)?;
                if old.device_id != device_id {
                    tell_of_device(tx, &user, &old.device_id)?;
                }
            }
            if tx.device(&user, &device_id)?.is_some() {
                return Err(Error::invalid_param("Another of your devices has this id"));
            }
            check_new_device(tx, &user, &device_id)?;
            tx.add_dehydrated_device(&user, &device_id, display_name.as_deref(), &device_data, now)?;
            match keep_upload(tx, &user, &device_id, &keys, signature)? {
                Some(refusal) => Err(refusal),
                None => Ok(()),
            }
        })
    }

    /// The user's dehydrated device. Errors: 404 `M_NOT_FOUND`.
    pub fn dehydrated_device(&self, user: &UserId) -> Result<DehydratedDevice> {
        self.store.read(|db| db.dehydrated_device(user))?.ok_or_else(none)
    }

    /// Deletes the user's dehydrated device; its id. Errors: 404 `M_NOT_FOUND`.
    pub fn delete_dehydrated_device(&self, user: &UserId) -> Result<String> {
        let user = user.clone();
        self.store.write(move |tx| {
            let device = tx.dehydrated_device(&user)?.ok_or_else(none)?.device_id;
            tx.delete_device(&user, &device)?;
            tell_of_device(tx, &user, &device)?;
            Ok(device)
        })
    }

    /// Messages for the user's dehydrated device, a hundred at most, from where an earlier answer has ended. Errors: 403
    /// `M_FORBIDDEN` for any other device, 400 `M_INVALID_PARAM`.
    pub fn dehydrated_events(
        &self,
        user: &UserId,
        device: &str,
        from: Option<&str>,
        limit: Option<i64>,
    ) -> Result<DehydratedEvents> {
        let after = match from {
            Some(from) => parse_batch(from).ok_or_else(|| Error::invalid_param("This is no next_batch"))?,
            None => 0,
        };
        let limit = match limit {
            Some(limit) if limit < 1 => return Err(Error::invalid_param("limit must be positive")),
            Some(limit) => usize::try_from(limit).unwrap_or(EVENTS_MAX).min(EVENTS_MAX),
            None => EVENTS_MAX,
        };
        let mut waiting = self.store.read(|db| {
            let own = db.dehydrated_device(user)?.is_some_and(|own| own.device_id == device);
            if !own {
                return Err(Error::forbidden("This is not your dehydrated device"));
            }
            db.to_device_after(user, device, after, limit + 1)
        })?;
        let limited = waiting.len() > limit;
        waiting.truncate(limit);
        let next_batch = batch(waiting.last().map_or(after, |last| last.number));
        let events = waiting.into_iter().map(|message| RawValue::from_string(message.message));
        let events = events.collect::<serde_json::Result<_>>().map_err(Error::internal)?;
        Ok(DehydratedEvents { events, next_batch, limited })
    }
}

fn none() -> Error {
    Error::not_found("You have no dehydrated device")
}

/// How the place behind a message is written.
fn batch(number: i64) -> String {
    format!("d{number}")
}

fn parse_batch(text: &str) -> Option<i64> {
    let number = text.strip_prefix('d')?.parse().ok()?;
    (number >= 0 && batch(number) == text).then_some(number)
}
