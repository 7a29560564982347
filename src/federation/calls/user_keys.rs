//! The calls for the devices of users and their keys (server-server API, "Device Management", "End-to-End Encryption").
//! Of the answers is taken what was asked for, and nothing else.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashSet};
use std::time::Duration;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::{LIST_ANSWER_BYTES_MAX, QUICK_TIMEOUT, enc, object_in, to_body};
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::{Client, PeerRequest};
use crate::protocol::json::{First, FirstMembers};
use crate::protocol::keys::remote::{REMOTE_DEVICES_MAX, RemoteKeys, ShownKeys, read_one_time_key};
use crate::protocol::{ServerName, UserId};

/// Users of one answer that are looked at: more than are ever asked for at once.
const USERS_MAX: usize = 4000;
/// Keys of one device in the answer to a claim that are looked at: one was asked for.
const KEYS_OF_DEVICE_MAX: usize = 10;

/// The answer of `user/devices`.
#[derive(Debug)]
pub struct UserDevicesAnswer {
    /// The last update that is in it.
    pub stream_id: i64,
    /// The devices and the cross-signing keys.
    pub keys: RemoteKeys,
}

/// One-time keys by user and device: each a key id and a key, JSON.
pub type ClaimedKeys = BTreeMap<UserId, BTreeMap<String, (String, String)>>;

/// What stands behind each of the names of an object, as text.
type Texts<'t, const MOST: usize> = FirstMembers<Cow<'t, str>, &'t RawValue, MOST>;

#[derive(Deserialize)]
struct DevicesBody<'t> {
    user_id: Option<UserId>,
    stream_id: i64,
    #[serde(borrow)]
    devices: First<&'t RawValue, REMOTE_DEVICES_MAX>,
    #[serde(borrow)]
    master_key: Option<&'t RawValue>,
    #[serde(borrow)]
    self_signing_key: Option<&'t RawValue>,
}

#[derive(Deserialize)]
struct DeviceBody<'t> {
    #[serde(borrow)]
    device_id: Cow<'t, str>,
    #[serde(borrow)]
    device_display_name: Option<Cow<'t, str>>,
    #[serde(borrow)]
    keys: Option<&'t RawValue>,
}

#[derive(Deserialize)]
struct QueryBody<'t> {
    #[serde(borrow)]
    device_keys: Texts<'t, USERS_MAX>,
    #[serde(borrow, default)]
    master_keys: Option<Texts<'t, USERS_MAX>>,
    #[serde(borrow, default)]
    self_signing_keys: Option<Texts<'t, USERS_MAX>>,
}

#[derive(Deserialize)]
struct ClaimBody<'t> {
    #[serde(borrow)]
    one_time_keys: Texts<'t, USERS_MAX>,
}

impl Client {
    /// `GET user/devices/{userId}`: the devices of a user of the peer's that have identity keys.
    pub fn user_devices(
        &self,
        peer: &ServerName,
        user: &UserId,
        within: Duration,
    ) -> CallResult<UserDevicesAnswer> {
        let path = format!("/_matrix/federation/v1/user/devices/{}", enc(user));
        let answer = self.get(peer, path, within.min(QUICK_TIMEOUT), LIST_ANSWER_BYTES_MAX)?;
        devices_in(user, &answer.body)
    }

    /// `POST user/keys/query`: the devices of users of the peer's, all or (not none) those with these ids, and their
    /// cross-signing keys. Who does not exist is left out.
    pub fn query_user_keys(
        &self,
        peer: &ServerName,
        wanted: &BTreeMap<UserId, Vec<String>>,
        within: Duration,
    ) -> CallResult<BTreeMap<UserId, RemoteKeys>> {
        let body = to_body(&json!({ "device_keys": wanted }))?;
        let answer = self.request(post(peer, "query", &body, within))?;
        keys_in(wanted, &answer.body)
    }

    /// `POST user/keys/claim`: a one-time key of each of these devices, for an algorithm each. The peer gives every key
    /// once, so that this is never repeated.
    pub fn claim_user_keys(
        &self,
        peer: &ServerName,
        wanted: &BTreeMap<UserId, BTreeMap<String, String>>,
        within: Duration,
    ) -> CallResult<ClaimedKeys> {
        let body = to_body(&json!({ "one_time_keys": wanted }))?;
        let answer = self.request_once(post(peer, "claim", &body, within))?;
        claimed_in(wanted, &answer.body)
    }
}

fn post<'a>(peer: &'a ServerName, call: &str, body: &'a [u8], within: Duration) -> PeerRequest<'a> {
    PeerRequest {
        method: "POST",
        destination: peer,
        path_and_query: format!("/_matrix/federation/v1/user/keys/{call}"),
        body: Some(body),
        timeout: within,
        max_bytes: LIST_ANSWER_BYTES_MAX,
    }
}

fn devices_in(user: &UserId, body: &[u8]) -> CallResult<UserDevicesAnswer> {
    let read: DevicesBody<'_> = object_in(body)?;
    if read.user_id.is_some_and(|of| of != *user) {
        return Err(CallError::bad("the devices of somebody else"));
    }
    let mut keys = RemoteKeys::default();
    for device in read.devices {
        let Ok(body) = object_in::<DeviceBody<'_>>(device.get().as_bytes()) else { continue };
        let name = body.device_display_name.as_deref();
        keys.add_listed(user, &body.device_id, name, body.keys.map(RawValue::get));
    }
    let (master, self_signing) =
        (read.master_key.map(RawValue::get), read.self_signing_key.map(RawValue::get));
    keys.cross_signing = ShownKeys::read(user, master, self_signing);
    Ok(UserDevicesAnswer { stream_id: read.stream_id, keys: keys.within_bounds() })
}

fn keys_in(wanted: &BTreeMap<UserId, Vec<String>>, body: &[u8]) -> CallResult<BTreeMap<UserId, RemoteKeys>> {
    let read: QueryBody<'_> = object_in(body)?;
    let mut found: BTreeMap<UserId, RemoteKeys> = BTreeMap::new();
    for (name, devices) in read.device_keys.0 {
        let Some((user, ids)) = wanted_entry(wanted, &name) else { continue };
        let Ok(devices) = object_in::<Texts<'_, REMOTE_DEVICES_MAX>>(devices.get().as_bytes()) else {
            continue;
        };
        let mut keys = RemoteKeys::default();
        let ids: HashSet<&str> = ids.iter().map(String::as_str).collect();
        for (id, text) in devices.0 {
            if ids.is_empty() || ids.contains(id.as_ref()) {
                keys.add_queried(user, &id, text.get());
            }
        }
        found.insert(user.clone(), keys.within_bounds());
    }
    for (name, text) in read.master_keys.unwrap_or_default().0 {
        let Some((user, _)) = wanted_entry(wanted, &name) else { continue };
        let master = ShownKeys::read(user, Some(text.get()), None).master;
        if master.is_some() {
            found.entry(user.clone()).or_default().cross_signing.master = master;
        }
    }
    for (name, text) in read.self_signing_keys.unwrap_or_default().0 {
        let Some((user, _)) = wanted_entry(wanted, &name) else { continue };
        let self_signing = ShownKeys::read(user, None, Some(text.get())).self_signing;
        if self_signing.is_some() {
            found.entry(user.clone()).or_default().cross_signing.self_signing = self_signing;
        }
    }
    Ok(found)
}

fn claimed_in(wanted: &BTreeMap<UserId, BTreeMap<String, String>>, body: &[u8]) -> CallResult<ClaimedKeys> {
    let read: ClaimBody<'_> = object_in(body)?;
    let mut claimed = ClaimedKeys::new();
    for (name, devices) in read.one_time_keys.0 {
        let Some((user, algorithms)) = wanted_entry(wanted, &name) else { continue };
        let Ok(devices) = object_in::<Texts<'_, REMOTE_DEVICES_MAX>>(devices.get().as_bytes()) else {
            continue;
        };
        for (id, keys) in devices.0 {
            let Some(algorithm) = algorithms.get(id.as_ref()) else { continue };
            let Ok(keys) = object_in::<Texts<'_, KEYS_OF_DEVICE_MAX>>(keys.get().as_bytes()) else {
                continue;
            };
            let first = keys.0.into_iter().find_map(|(key_id, key)| {
                let key = read_one_time_key(algorithm, &key_id, key.get())?;
                Some((key_id.into_owned(), key))
            });
            if let Some(first) = first {
                claimed.entry(user.clone()).or_default().insert(id.into_owned(), first);
            }
        }
    }
    Ok(claimed)
}

fn wanted_entry<'w, V>(wanted: &'w BTreeMap<UserId, V>, name: &str) -> Option<(&'w UserId, &'w V)> {
    wanted.get_key_value(&UserId::parse(name).ok()?)
}
