//! Device lists: other servers are told when the devices of a local user change, and what they tell of theirs is kept.
//!
//! The updates of one user form a chain: each has a number (`stream_id`) and names the one before it (`prev_id`). Where
//! the chain has a gap, the whole list is fetched.

use serde_json::value::RawValue;
use serde_json::{Value, json};

use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::calls::{self, UserDevicesAnswer};
use crate::protocol::edu::{DeviceListUpdate, DeviceNews, DeviceUpdate, RemoteDevice, SigningKeyUpdate};
use crate::protocol::json::{AtMost, First, ObjectText, read_object};
use crate::protocol::{ServerName, UserId};
use crate::service::devices::{Devices, is_of};
use crate::service::outgoing::device_list_update;
use crate::store::Tx;
use crate::store::devices::device_lists::RemoteDeviceList;

/// Devices of one user of another server that are remembered.
const DEVICES_MAX: usize = 1000;
/// Updates that are taken in with one commit.
const UPDATES_AT_ONCE_MAX: usize = 10;
/// Longest device id and device name, in bytes; the identity keys of one device as JSON.
const DEVICE_ID_BYTES_MAX: usize = 255;
const DEVICE_NAME_BYTES_MAX: usize = 512;
const KEYS_BYTES_MAX: usize = 16 << 10;
/// For how long a list is put off that is being fetched: longer than that may take.
const LEASE_MS: Millis = 10 * 60 * 1000;
/// Pauses between attempts to fetch a list: twenty seconds at first, three hours in the end.
const FETCH_PAUSES: Backoff = Backoff { first_ms: 20_000, factor: 4, longest_ms: 3 * 3_600_000 };
/// After so many failures a list is not fetched until its server says something new.
const ATTEMPTS_MAX: u32 = 12;

/// A local user's device was added, renamed or logged out: tells everybody who follows the user's devices.
pub(in crate::service) fn tell_of_device(tx: &mut Tx<'_>, user: &UserId, device: &str) -> Result<()> {
    tx.devices_changed(user, Some(device))?;
    let servers = tx.servers_that_share_rooms(user)?;
    if servers.is_empty() {
        return Ok(());
    }
    let Some(edu) = device_list_update(tx, user)? else { return Ok(()) };
    servers.iter().try_for_each(|server| tx.owe_device_update(server, (user, device), &edu))
}

/// [`tell_of_device`] for several.
pub(in crate::service) fn tell_of_devices(tx: &mut Tx<'_>, user: &UserId, devices: &[String]) -> Result<()> {
    devices.iter().try_for_each(|device| tell_of_device(tx, user, device))
}

/// A local user's master or self-signing key changed, or who signed the master key: the same.
pub(in crate::service) fn tell_of_signing_keys(tx: &mut Tx<'_>, user: &UserId) -> Result<()> {
    tx.devices_changed(user, None)
}

impl Devices<'_> {
    /// The devices of a local user that have identity keys, for other servers. Clients cannot upload such keys yet,
    /// so that there are none. Errors: 404 `M_NOT_FOUND` for who is no local user.
    pub fn devices_for_servers(&self, user: &UserId) -> Result<Value> {
        self.store.read(|db| {
            if !self.is_local(user) || !db.is_active_user(user)? {
                return Err(Error::not_found("There is no such user"));
            }
            let stream_id = db.own_device_change(user)?.map_or(0, |change| change.stream_id);
            Ok(json!({ "user_id": user, "stream_id": stream_id, "devices": [] }))
        })
    }

    /// Stores what a transaction said of its sender's devices, in a few commits. Users with whom nobody here shares a
    /// room are of no interest.
    pub(in crate::service) fn receive_device_news(&self, news: Vec<DeviceNews>) -> Result<()> {
        let (mut gaps, mut left) = (false, news);
        while !left.is_empty() {
            let later = left.split_off(left.len().min(UPDATES_AT_ONCE_MAX));
            let (some, now) = (std::mem::replace(&mut left, later), self.clock.now_ms());
            gaps |= self.store.write(move |tx| {
                let mut gaps = false;
                for news in some {
                    let user = match &news {
                        DeviceNews::Update(update) => &update.user_id,
                        DeviceNews::SigningKeys(user) => user,
                    };
                    if !tx.is_of_interest(user)? {
                        continue;
                    }
                    match news {
                        DeviceNews::SigningKeys(user) => tx.devices_changed(&user, None)?,
                        DeviceNews::Update(update) => gaps |= apply_update(tx, update, now)?,
                    }
                }
                Ok(gaps)
            })?;
        }
        if gaps {
            self.scheduler.wake();
        }
        Ok(())
    }

    /// Takes up the lists that are due to be fetched, each for a while, so that nobody else does.
    pub(in crate::service) fn device_lists_to_fetch(&self, now: Millis, limit: usize) -> Result<Vec<UserId>> {
        let due = self.store.read(|db| db.device_lists_due(now, limit))?;
        if due.is_empty() {
            return Ok(due);
        }
        self.store.write_lightly(move |tx| {
            for user in &due {
                if let Some(list) = tx.remote_device_list(user)? {
                    let leased = RemoteDeviceList { due_ms: Some(now + LEASE_MS), ..list };
                    tx.set_remote_device_list(user, &leased)?;
                }
            }
            Ok(due)
        })
    }

    /// Fetches the whole device list of another server's user.
    pub fn fetch_device_list(&self, user: &UserId) -> Result<()> {
        let Some(before) = self.store.read(|db| db.remote_device_list(user))? else { return Ok(()) };
        let owner = user.clone();
        if !self.store.read(|db| db.is_of_interest(user))? {
            return self.store.write(move |tx| tx.forget_remote_device_list(&owner));
        }
        let fetched = self.federation.user_devices(&user.server(), user);
        let now = self.clock.now_ms();
        match fetched {
            Ok(UserDevicesAnswer { stream_id, devices: First(devices) }) => {
                let of = |device: &calls::UserDevice| {
                    let name = device.device_display_name.as_deref();
                    device_of(&device.device_id, name, device.keys.as_deref())
                };
                let fetched = (stream_id, devices.iter().take(DEVICES_MAX).filter_map(of).collect());
                self.store.write(move |tx| replace_list(tx, &owner, &before, fetched, now))
            }
            Err(e) => {
                log::info!("the devices of {user} cannot be fetched: {e}");
                let attempts = before.attempts + 1;
                let again = e.is_transient() && attempts < ATTEMPTS_MAX;
                let due_ms = again.then(|| now + FETCH_PAUSES.pause_ms(attempts));
                self.store.write(move |tx| match tx.remote_device_list(&owner)? {
                    Some(list) => {
                        tx.set_remote_device_list(&owner, &RemoteDeviceList { due_ms, attempts, ..list })
                    }
                    None => Ok(()),
                })
            }
        }
    }
}

/// What an `m.device_list_update` of this server comes to; none if it is not about one of the server's own users, or
/// too large to be kept.
pub(in crate::service) fn read_device_list_update(origin: &ServerName, content: &[u8]) -> Option<DeviceNews> {
    let read = read_object::<DeviceListUpdate<'_>>(content).ok()?;
    let device = device_of(&read.device_id, read.device_display_name.as_deref(), read.keys)?;
    let DeviceListUpdate { user_id, stream_id, prev_id: AtMost(prev_id), deleted, .. } = read;
    let update = DeviceUpdate { user_id, device, stream_id, prev_id, deleted };
    is_of(origin, &update.user_id).then_some(DeviceNews::Update(update))
}

/// What an `m.signing_key_update` of this server comes to. The keys are fetched by whoever asks for them.
pub(in crate::service) fn read_signing_key_update(origin: &ServerName, content: &[u8]) -> Option<DeviceNews> {
    let SigningKeyUpdate { user_id } = read_object(content).ok()?;
    is_of(origin, &user_id).then_some(DeviceNews::SigningKeys(user_id))
}

/// Takes in one update. Whether the chain has a gap.
fn apply_update(tx: &mut Tx<'_>, update: DeviceUpdate, now: Millis) -> Result<bool> {
    let user = &update.user_id;
    let known = tx.remote_device_list(user)?;
    let reached = known.as_ref().and_then(|list| list.stream_id);
    if reached == Some(update.stream_id) {
        return Ok(false);
    }
    // "May be missing or empty for the first EDU in a sequence."
    let begins = reached.is_none() && update.prev_id.is_empty();
    let follows = reached.is_some_and(|reached| {
        update.stream_id > reached
            && !update.prev_id.is_empty()
            && update.prev_id.iter().all(|previous| *previous <= reached)
    });
    let fits = begins || follows;
    let (due_ms, attempts) = known.map_or((None, 0), |list| (list.due_ms, list.attempts));
    let list = match fits {
        true => RemoteDeviceList { stream_id: Some(update.stream_id), due_ms, attempts },
        false => RemoteDeviceList { stream_id: reached, due_ms: Some(now), attempts: 0 },
    };
    tx.set_remote_device_list(user, &list)?;
    if update.deleted {
        tx.forget_remote_devices(user, Some(&update.device.device_id))?;
    } else {
        tx.set_remote_device(user, &update.device, DEVICES_MAX)?;
    }
    tx.devices_changed(user, None)?;
    Ok(!fits)
}

/// Puts a fetched list in the place of what was known.
fn replace_list(
    tx: &mut Tx<'_>,
    user: &UserId,
    before: &RemoteDeviceList,
    (fetched_up_to, fetched): (i64, Vec<RemoteDevice>),
    now: Millis,
) -> Result<()> {
    // Nobody here shares a room with the user any more, so that we would not be told of the next change.
    let Some(known) = tx.remote_device_list(user)? else { return Ok(()) };
    // What came while it was fetched may be missing in it: then it is fetched once more.
    let overtaken =
        known.due_ms != before.due_ms || known.stream_id.is_some_and(|reached| reached > fetched_up_to);
    tx.replace_remote_devices(user, fetched.iter().take(DEVICES_MAX))?;
    let attempts = if overtaken { before.attempts + 1 } else { 0 };
    let again = overtaken && attempts < ATTEMPTS_MAX;
    let due_ms = again.then(|| now + FETCH_PAUSES.pause_ms(attempts));
    let list = RemoteDeviceList { stream_id: Some(fetched_up_to), due_ms, attempts };
    tx.set_remote_device_list(user, &list)?;
    tx.devices_changed(user, None)
}

/// A device, if its parts are of a size to be kept.
fn device_of(device_id: &str, display_name: Option<&str>, keys: Option<&RawValue>) -> Option<RemoteDevice> {
    if device_id.is_empty() || device_id.len() > DEVICE_ID_BYTES_MAX {
        return None;
    }
    let display_name = display_name.filter(|name| name.len() <= DEVICE_NAME_BYTES_MAX).map(str::to_owned);
    // White space and escapes do not count, but there is an end to them.
    let keys = keys.filter(|keys| keys.get().len() <= 4 * KEYS_BYTES_MAX);
    let keys = keys.and_then(|keys| ObjectText::try_from(keys.get().as_bytes()).ok());
    let keys = keys.map(|keys| keys.get().to_owned()).filter(|keys| keys.len() <= KEYS_BYTES_MAX);
    Some(RemoteDevice { device_id: device_id.to_owned(), display_name, keys })
}
