//! Device lists: other servers are told when the devices of a local user change, and what they tell of theirs is kept.
//!
//! The updates of one user form a chain: each has a number (`stream_id`) and names the one before it (`prev_id`). Where
//! the chain has a gap, the whole list is fetched.

use std::time::Duration;

use serde::Serialize;
use serde_json::value::RawValue;

use crate::backoff::Backoff;
use crate::clock::Millis;
use crate::error::{Error, Result};
use crate::federation::calls::UserDevicesAnswer;
use crate::protocol::edu::{DeviceListUpdate, DeviceNews, DeviceUpdate, SigningKeyUpdate};
use crate::protocol::json::{AtMost, read_object};
use crate::protocol::keys::remote::{REMOTE_DEVICES_MAX, RemoteDevice, ShownKeys};
use crate::protocol::{ServerName, UserId};
use crate::service::devices::{Devices, is_of};
use crate::service::limits::silent_servers::AskedFor;
use crate::service::outgoing::{
    ShownOwnKeys, device_list_update, shown_own_keys, signed, signing_key_update,
};
use crate::store::devices::cross_signing::CrossSigningKeys;
use crate::store::devices::device_lists::RemoteDeviceList;
use crate::store::{Db, Tx};

/// Updates that are taken in with one commit.
pub(super) const UPDATES_AT_ONCE_MAX: usize = 10;
/// A list that was fetched is not fetched again before this has passed, whatever its server says is missing in it.
const FETCH_INTERVAL_MS: Millis = 30_000;
/// Of so many devices that change at once other servers are told one by one; of more, of the last only.
const TOLD_ONE_BY_ONE_MAX: usize = 5;
/// For how long a list is put off that is being fetched: longer than that may take.
const LEASE_MS: Millis = 10 * 60 * 1000;
/// Pauses between attempts to fetch a list: twenty seconds at first, three hours in the end.
const FETCH_PAUSES: Backoff = Backoff { first_ms: 20_000, factor: 4, longest_ms: 3 * 3_600_000 };
/// So often a list is fetched again whose server says that it is older than an update that has come.
const BEHIND_ATTEMPTS_MAX: u32 = 3;
/// What stands for the cross-signing keys where updates of a user's devices are owed: no device has an empty id.
const SIGNING_KEYS: &str = "";
/// Time for one attempt.
const FETCH_TIMEOUT: Duration = Duration::from_secs(20);

/// A local user's device was added, renamed or logged out, or has other keys or another signature of them: tells everybody
/// who follows the user's devices.
pub(in crate::service) fn tell_of_device(tx: &mut Tx<'_>, user: &UserId, device: &str) -> Result<()> {
    tx.devices_changed(user, Some(device))?;
    tell(tx, user, device, device_list_update)
}

/// Tells the servers that share a room with a local user, if there are any, in the place of what they were to be told
/// `about` the same before.
fn tell(
    tx: &mut Tx<'_>,
    user: &UserId,
    about: &str,
    edu: fn(&Db<'_>, &UserId) -> Result<Option<String>>,
) -> Result<()> {
    let servers = tx.servers_that_share_rooms(user)?;
    tell_servers(tx, &servers, (user, about), edu)
}

fn tell_servers(
    tx: &mut Tx<'_>,
    servers: &[ServerName],
    (user, about): (&UserId, &str),
    edu: fn(&Db<'_>, &UserId) -> Result<Option<String>>,
) -> Result<()> {
    if servers.is_empty() {
        return Ok(());
    }
    let Some(edu) = edu(tx, user)? else { return Ok(()) };
    servers.iter().try_for_each(|server| tx.owe_device_update(server, (user, about), &edu))
}

/// [`tell_of_device`] for several. Where they are many, other servers are told of the last only: it follows an update that
/// they were not sent, so that they fetch the list.
pub(in crate::service) fn tell_of_devices(tx: &mut Tx<'_>, user: &UserId, devices: &[String]) -> Result<()> {
    let Some((last, others)) = devices.split_last() else { return Ok(()) };
    let servers = tx.servers_that_share_rooms(user)?;
    for device in others {
        tx.note_device_change(user, Some(device))?;
        if devices.len() <= TOLD_ONE_BY_ONE_MAX {
            tell_servers(tx, &servers, (user, device), device_list_update)?;
        }
    }
    tx.devices_changed(user, Some(last))?;
    tell_servers(tx, &servers, (user, last), device_list_update)
}

/// A local user's master or self-signing key changed, or who signed the master key: the same.
pub(in crate::service) fn tell_of_signing_keys(tx: &mut Tx<'_>, user: &UserId) -> Result<()> {
    tx.devices_changed(user, None)?;
    tell(tx, user, SIGNING_KEYS, signing_key_update)
}

/// The answer of `user/devices`.
#[derive(Serialize)]
struct DevicesForServers<'u> {
    user_id: &'u UserId,
    /// The last update that is in it.
    stream_id: i64,
    devices: Vec<DeviceForServers>,
    #[serde(flatten)]
    keys: ShownOwnKeys,
}

#[derive(Serialize)]
struct DeviceForServers {
    device_id: String,
    keys: Box<RawValue>,
    #[serde(skip_serializing_if = "Option::is_none")]
    device_display_name: Option<String>,
}

impl Devices<'_> {
    /// The devices of a local user that have identity keys, for another server, with the user's cross-signing keys: JSON.
    /// What they are called is for servers that share a room with the user. Errors: 404 `M_NOT_FOUND` for who is no local
    /// user.
    pub fn devices_for_server(&self, origin: &ServerName, user: &UserId) -> Result<String> {
        self.store.read(|db| {
            if !self.is_local(user) || !db.is_active_user(user)? {
                return Err(Error::not_found("There is no such user"));
            }
            let is_neighbour = db.shares_a_room_with_server(user, origin)?;
            let signatures = db.signatures_of_keys(user, None)?;
            let mut devices = Vec::new();
            for device in db.devices_with_keys(user)? {
                devices.push(DeviceForServers {
                    keys: signed(&device.keys, user, &signatures, &device.device_id)?,
                    device_id: device.device_id,
                    device_display_name: device.display_name.filter(|_| is_neighbour),
                });
            }
            let stream_id = db.own_device_change(user)?.map_or(0, |change| change.stream_id);
            let keys = shown_own_keys(db, user)?;
            let answer = DevicesForServers { user_id: user, stream_id, devices, keys };
            serde_json::to_string(&answer).map_err(Error::internal)
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
                        DeviceNews::SigningKeys(user, _) => user,
                    };
                    if !tx.is_of_interest(user)? {
                        continue;
                    }
                    match news {
                        DeviceNews::SigningKeys(user, keys) => {
                            gaps |= apply_signing_keys(tx, &user, keys, now)?;
                        }
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

    /// Takes up lists that are due to be fetched, each for a while. `may_take`: of those that are due, the longest due first
    /// and no more than `of_server` of each server, which; that are no more than `limit`.
    pub(in crate::service) fn device_lists_to_fetch(
        &self,
        now: Millis,
        (of_server, limit): (usize, usize),
        mut may_take: impl FnMut(&UserId) -> bool,
    ) -> Result<Vec<UserId>> {
        let mut due = self.store.read(|db| db.device_lists_due(now, of_server, limit))?;
        due.retain(|user| may_take(user));
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

    /// Fetches the whole device list of another server's user, with their keys. What cannot be had is tried again, for as
    /// long as one of us shares a room with the user.
    pub fn fetch_device_list(&self, user: &UserId) -> Result<()> {
        let Some(before) = self.store.read(|db| db.remote_device_list(user))? else { return Ok(()) };
        let (owner, server) = (user.clone(), user.server());
        if !self.store.read(|db| db.is_of_interest(user))? {
            return self.store.write_lightly(move |tx| match tx.is_of_interest(&owner)? {
                // They came back meanwhile.
                true => tx.set_remote_device_list(&owner, &RemoteDeviceList { due_ms: Some(0), ..before }),
                false => tx.forget_remote_device_list(&owner),
            });
        }
        if self.is_out_of_reach(&server, AskedFor::DeviceList) {
            self.scheduler.lists_wait_for(&server);
            return self.put_off_list(user, FETCH_PAUSES.pause_ms(before.attempts.saturating_add(1)), false);
        }
        let fetched = self.ask_peer(&server, AskedFor::DeviceList, FETCH_TIMEOUT, |within| {
            self.federation.user_devices(&server, user, within)
        });
        let now = self.clock.now_ms();
        match fetched {
            Ok(fetched) => self.store.write(move |tx| replace_list(tx, &owner, &before, fetched, now)),
            Err(e) => {
                log::info!("the devices of {user} cannot be fetched: {e}");
                if e.is_unreachable() {
                    self.scheduler.lists_wait_for(&server);
                }
                let pause = match e.is_transient() {
                    true => FETCH_PAUSES.pause_ms(before.attempts.saturating_add(1)),
                    false => FETCH_PAUSES.longest_ms,
                };
                self.put_off_list(user, pause, true)
            }
        }
    }

    fn put_off_list(&self, user: &UserId, pause: Millis, was_asked: bool) -> Result<()> {
        let (owner, due_ms) = (user.clone(), Some(self.clock.now_ms() + pause));
        self.store.write_lightly(move |tx| match tx.remote_device_list(&owner)? {
            Some(list) => {
                // Who was not asked has not failed once more. That they may have been asked for in vain is remembered.
                let attempts = list.attempts.saturating_add(u32::from(was_asked)).max(1);
                tx.set_remote_device_list(&owner, &RemoteDeviceList { due_ms, attempts, ..list })
            }
            None => Ok(()),
        })
    }
}

/// What an `m.device_list_update` of this server comes to; none if it is not about one of the server's own users, or
/// too large to be kept.
pub(in crate::service) fn read_device_list_update(origin: &ServerName, content: &[u8]) -> Option<DeviceNews> {
    let read = read_object::<DeviceListUpdate<'_>>(content).ok()?;
    let (name, keys) = (read.device_display_name.as_deref(), read.keys.map(RawValue::get));
    let device = RemoteDevice::new(&read.user_id, &read.device_id, name, keys)?;
    let DeviceListUpdate { user_id, stream_id, prev_id: AtMost(prev_id), deleted, .. } = read;
    let update = DeviceUpdate { user_id, device, stream_id, prev_id, deleted };
    is_of(origin, &update.user_id).then_some(DeviceNews::Update(update))
}

/// What an `m.signing_key_update` of this server comes to. What is wrong with the keys that it brings makes them none.
pub(in crate::service) fn read_signing_key_update(origin: &ServerName, content: &[u8]) -> Option<DeviceNews> {
    let SigningKeyUpdate { user_id, master_key, self_signing_key } = read_object(content).ok()?;
    let (master, self_signing) = (master_key.map(RawValue::get), self_signing_key.map(RawValue::get));
    let keys = ShownKeys::read(&user_id, master, self_signing);
    is_of(origin, &user_id).then_some(DeviceNews::SigningKeys(user_id, keys))
}

/// The list as it is when something is missing in it: to be fetched now, or, if it was fetched just now, in a while. Until
/// then whoever asks for the keys is answered by the user's server. That somebody was not is remembered.
fn to_be_fetched(list: RemoteDeviceList, now: Millis) -> RemoteDeviceList {
    let again = list.fetched_ms.map_or(now, |at| at + FETCH_INTERVAL_MS);
    let due_ms = Some(again.clamp(now, now + FETCH_INTERVAL_MS));
    RemoteDeviceList { due_ms, attempts: list.attempts.min(1), ..list }
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
    let known = known.unwrap_or_default();
    let list = match fits {
        true => RemoteDeviceList { stream_id: Some(update.stream_id), ..known },
        false => to_be_fetched(known, now),
    };
    tx.set_remote_device_list(user, &list)?;
    let before = tx.remote_device(user, &update.device.device_id)?;
    let told = Some(&update.device).filter(|_| !update.deleted);
    match told {
        None => tx.forget_remote_devices(user, Some(&update.device.device_id))?,
        Some(device) => tx.set_remote_device(user, device, REMOTE_DEVICES_MAX)?,
    }
    // Servers tell where a list stands whenever their user joins a room of ours: who knows it need not ask again.
    if !fits || before.as_ref() != told || list.attempts > 0 {
        tx.devices_changed(user, None)?;
    }
    Ok(!fits)
}

/// Takes in the cross-signing keys that a user of another server has from now on; of what is not told, what was known
/// stays. Whether the list has to be fetched, because nothing was told.
fn apply_signing_keys(tx: &mut Tx<'_>, user: &UserId, told: ShownKeys, now: Millis) -> Result<bool> {
    let Some(list) = tx.remote_device_list(user)? else {
        // Nobody has asked for the user's keys yet: who does gets those of then.
        tx.devices_changed(user, None)?;
        return Ok(false);
    };
    let nothing = told == ShownKeys::default();
    let CrossSigningKeys { master, self_signing, .. } = tx.cross_signing_keys(user)?;
    let known = ShownKeys { master, self_signing };
    let keys = ShownKeys {
        master: told.master.or_else(|| known.master.clone()),
        self_signing: told.self_signing.or_else(|| known.self_signing.clone()),
    };
    // An answer that is under way may be older than this. That the list is due at another time than it was put off to says
    // that it has to be fetched once more.
    let is_overtaken = list.due_ms.is_some();
    if nothing || is_overtaken {
        tx.set_remote_device_list(user, &to_be_fetched(list, now))?;
    }
    if !nothing {
        if keys == known {
            return Ok(is_overtaken);
        }
        tx.replace_remote_cross_signing_keys(user, &keys)?;
    }
    tx.devices_changed(user, None)?;
    Ok(nothing || is_overtaken)
}

/// Puts a fetched list in the place of what was known. Whoever asked before it was there heard the same, unless it is
/// another one, or nothing could be heard for a while.
fn replace_list(
    tx: &mut Tx<'_>,
    user: &UserId,
    before: &RemoteDeviceList,
    UserDevicesAnswer { stream_id: fetched_up_to, keys }: UserDevicesAnswer,
    now: Millis,
) -> Result<()> {
    // Nobody here shares a room with the user any more, so that we would not be told of the next change.
    let Some(known) = tx.remote_device_list(user)? else { return Ok(()) };
    // What came while it was fetched, or before, may be missing in it: then it is fetched once more. A server whose numbers
    // are still behind later on counts anew.
    let is_behind = known.stream_id.is_some_and(|reached| reached > fetched_up_to);
    let came = known.due_ms != before.due_ms || known.stream_id != before.stream_id && is_behind;
    let overtaken = came || is_behind && before.attempts < BEHIND_ATTEMPTS_MAX;
    let is_other = tx.remote_keys(user)? != keys;
    let is_news = before.attempts > 0 || known.attempts > 0 || is_other;
    if is_other {
        tx.replace_remote_keys(user, &keys)?;
    }
    let attempts = if overtaken { before.attempts.saturating_add(1) } else { 0 };
    let due_ms = overtaken.then(|| now + FETCH_PAUSES.pause_ms(attempts));
    let list = RemoteDeviceList { stream_id: Some(fetched_up_to), due_ms, attempts, fetched_ms: Some(now) };
    tx.set_remote_device_list(user, &list)?;
    if is_news { tx.devices_changed(user, None) } else { Ok(()) }
}
