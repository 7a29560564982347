//! End-to-end keys of devices (client-server API, "Key management API"): uploaded by our users' clients, told to
//! whoever asks, and given out once each. What users elsewhere have is asked of their servers.

use std::collections::{BTreeMap, HashSet};
use std::time::{Duration, Instant};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::keys::cross_signing::{CrossSigningKey, KeyUsage};
use crate::protocol::keys::device::{KeySignature, KeyUpload, UploadedDeviceKeys, quoted};
use crate::protocol::{ServerName, UserId};
use crate::service::devices::Devices;
use crate::service::devices::device_lists::tell_of_device;
use crate::store::devices::cross_signing::SignatureOfKey;
use crate::store::devices::keys::{DeviceWithKeys, KeyToClaim, OneTimeKeyOutcome, PoolKey};
use crate::store::{Db, Tx};

/// One-time keys of one device, of all algorithms together, that wait to be claimed: ten times what clients keep there.
const ONE_TIME_KEYS_MAX: u64 = 500;
/// Algorithms of which one device may have one-time keys, and as many of fallback keys: clients have one, and two while they
/// go over to another.
const ALGORITHMS_MAX: usize = 8;
/// Users whose keys are read at once, so that nobody waits long for a reader.
pub(super) const USERS_AT_ONCE_MAX: usize = 200;
/// Keys that are given out with one commit.
const CLAIMS_AT_ONCE_MAX: usize = 200;
/// Devices of which one request may claim keys.
const CLAIMS_MAX: usize = 10_000;
/// So many one-time keys are left to those who have not had their share yet.
const CLAIM_RESERVE: i64 = 20;
/// What the keys of all users that one request asks for may come to, in bytes.
const ANSWER_BYTES_MAX: usize = 64 << 20;

/// Whose devices are asked for: their ids by user; none named: all.
pub type WantedDevices = BTreeMap<UserId, Vec<String>>;
/// Of which devices keys are claimed: the algorithm by device and user.
pub type WantedKeys = BTreeMap<UserId, BTreeMap<String, String>>;

/// Who asks for keys.
#[derive(Clone, Copy)]
pub enum KeysAsker<'a> {
    /// One of our users.
    User(&'a UserId),
    /// Another server. What devices are called it is told if it shares a room with their user.
    Server(&'a ServerName),
}

/// The members of a JSON object that is being written.
#[derive(Default)]
pub struct Members(String);

impl Members {
    /// One more member, whose value is written by `write`.
    pub fn push(&mut self, name: &str, write: impl FnOnce(&mut String)) {
        if !self.0.is_empty() {
            self.0.push(',');
        }
        self.0.push_str(&quoted(name));
        self.0.push(':');
        write(&mut self.0);
    }

    /// The object.
    pub fn write(&self, out: &mut String) {
        out.push('{');
        out.push_str(&self.0);
        out.push('}');
    }

    /// The object, without a copy.
    pub fn into_json(mut self) -> String {
        self.0.insert(0, '{');
        self.0.push('}');
        self.0
    }

    fn len(&self) -> usize {
        self.0.len()
    }
}

/// What `keys/query` tells, of both APIs: each section has a member for each user.
#[derive(Default)]
pub struct QueriedKeys {
    /// An object by device id.
    pub device_keys: Members,
    /// A cross-signing key.
    pub master_keys: Members,
    /// A cross-signing key.
    pub self_signing_keys: Members,
    /// A cross-signing key: to clients only, and of nobody but themselves.
    pub user_signing_keys: Members,
}

impl QueriedKeys {
    /// The answer; to a client with what could not be asked, by server.
    pub fn into_json(self, failures: Option<&Members>) -> String {
        let Self { device_keys, master_keys, self_signing_keys, user_signing_keys } = self;
        let mut answer = Members::default();
        // Each goes as it is written: together they may be large.
        let mut push = |name, section: Members| answer.push(name, |out| section.write(out));
        push("device_keys", device_keys);
        push("master_keys", master_keys);
        push("self_signing_keys", self_signing_keys);
        if let Some(failures) = failures {
            push("user_signing_keys", user_signing_keys);
            answer.push("failures", |out| failures.write(out));
        }
        answer.into_json()
    }

    fn len(&self) -> usize {
        self.device_keys.len() + self.master_keys.len() + self.self_signing_keys.len()
    }
}

impl Devices<'_> {
    /// Keeps what a device has uploaded; how many one-time keys it has now, by algorithm. What is there already, or was
    /// given out, changes nothing. New identity keys take the place of the old ones, and with those their one-time keys
    /// go: they are another account's as Olm sees it, made by a client that lost the first.
    ///
    /// Errors: 400 `M_UNKNOWN` if there is or was another one-time key of the same id, once all others are kept; 401
    /// `M_UNKNOWN_TOKEN` if the device is gone; 413 `M_TOO_LARGE` for too many keys.
    pub fn upload_keys(
        &self,
        user: &UserId,
        device: &str,
        upload: KeyUpload,
    ) -> Result<BTreeMap<String, u64>> {
        let signature = match &upload.device_keys {
            Some(keys) => self.store.read(|db| self_signature(db, user, keys))?,
            None => None,
        };
        let (owner, device) = (user.clone(), device.to_owned());
        let (counts, refusal) = self.store.write(move |tx| {
            if tx.device(&owner, &device)?.is_none() {
                let gone = Error::new(ErrCode::UnknownToken, "This device was logged out");
                return Err(gone.with_field("soft_logout", false));
            }
            let refusal = keep_upload(tx, &owner, &device, &upload, signature)?;
            Ok((tx.one_time_key_counts(&owner, &device)?, refusal))
        })?;
        match refusal {
            Some(refusal) => Err(refusal),
            None => Ok(counts),
        }
    }

    /// Answers `keys/query` of one of our users, JSON: keys of users here, and of users elsewhere as far as they can be had
    /// `within` this time. Errors: as [`Self::keys_of_local_users`].
    pub fn query_keys(&self, asker: &UserId, wanted: WantedDevices, within: Duration) -> Result<String> {
        let (here, elsewhere): (WantedDevices, WantedDevices) =
            wanted.into_iter().partition(|(user, _)| self.is_local(user));
        let mut keys = self.keys_of_local_users(KeysAsker::User(asker), &here)?;
        let mut failures = Members::default();
        if !elsewhere.is_empty() {
            let found = self.query_elsewhere(asker, by_server(elsewhere), Instant::now() + within)?;
            failures = found.write_into(&mut keys);
        }
        Ok(keys.into_json(Some(&failures)))
    }

    /// Answers `keys/claim` of one of our users, JSON. Errors: as [`Self::claim_here`].
    pub fn claim_keys(&self, asker: &UserId, wanted: WantedKeys, within: Duration) -> Result<String> {
        let (here, elsewhere): (WantedKeys, WantedKeys) =
            wanted.into_iter().partition(|(user, _)| self.is_local(user));
        if elsewhere.values().map(BTreeMap::len).sum::<usize>() > CLAIMS_MAX {
            return Err(too_many_devices());
        }
        // Others first: who gives up waiting for them has used up no key here.
        let found = (!elsewhere.is_empty())
            .then(|| self.claim_elsewhere(asker, by_server(elsewhere), Instant::now() + within));
        let mut claimed = self.claim_here(&here)?;
        let failures = found.map(|found| found.write_into(&mut claimed)).unwrap_or_default();
        let mut answer = Members::default();
        answer.push("one_time_keys", |out| claimed.write(out));
        answer.push("failures", |out| failures.write(out));
        Ok(answer.into_json())
    }

    /// The keys of local users as `asker` may see them. Every user has a member in `device_keys`;
    /// devices that there are not, or without keys, have none in that.
    ///
    /// Errors: 413 `M_TOO_LARGE` if that is too much for one answer.
    pub fn keys_of_local_users(&self, asker: KeysAsker<'_>, wanted: &WantedDevices) -> Result<QueriedKeys> {
        let mut keys = QueriedKeys::default();
        let wanted: Vec<_> = wanted.iter().collect();
        for some in wanted.chunks(USERS_AT_ONCE_MAX) {
            self.store.read(|db| {
                for (user, devices) in some {
                    add_keys_of(db, asker, user, devices, &mut keys)?;
                    if keys.len() > ANSWER_BYTES_MAX {
                        return Err(Error::new(ErrCode::TooLarge, "These are too many keys for one answer"));
                    }
                }
                Ok(())
            })?;
        }
        Ok(keys)
    }

    /// Gives out a key of each of these devices of local users: a member for each user that has any.
    ///
    /// Errors: 413 `M_TOO_LARGE` for too many devices.
    pub fn claim_here(&self, wanted: &WantedKeys) -> Result<Members> {
        Ok(self.claim_within(wanted, |_, _, _| Ok(ClaimTerms::OneTimeKey))?.0)
    }

    /// [`Self::claim_here`], where of devices that have a key to give `terms` says which it may be. Also how many keys were
    /// not given for that reason.
    pub(super) fn claim_within(
        &self,
        wanted: &WantedKeys,
        mut terms: impl FnMut(&Db<'_>, &UserId, &str) -> Result<ClaimTerms>,
    ) -> Result<(Members, usize)> {
        let wanted: Vec<(&UserId, &String, &String)> = wanted
            .iter()
            .flat_map(|(user, devices)| {
                devices.iter().map(move |(device, algorithm)| (user, device, algorithm))
            })
            .collect();
        if wanted.len() > CLAIMS_MAX {
            return Err(too_many_devices());
        }
        let (mut claimed, mut refused): (Vec<(Claim, String, String)>, usize) = (Vec::new(), 0);
        for some in wanted.chunks(CLAIMS_AT_ONCE_MAX) {
            // Looked up here, so that claims of what there is not cost the writer nothing.
            let there: Vec<Claim> = self.store.read(|db| {
                let mut there = Vec::new();
                for (user, device, algorithm) in some {
                    let Some(key) = db.key_to_claim(user, device, algorithm)? else { continue };
                    let pool = match key {
                        KeyToClaim::OneTime(pool) => Some(pool),
                        KeyToClaim::Fallback => None,
                    };
                    there.push(Claim {
                        user: (*user).clone(),
                        device: (*device).clone(),
                        algorithm: (*algorithm).clone(),
                        pool,
                        terms: terms(db, user, device)?,
                    });
                }
                Ok(there)
            })?;
            if there.is_empty() {
                continue;
            }
            let (some, without) = self.store.write(move |tx| {
                let (mut claimed, mut without) = (Vec::with_capacity(there.len()), 0);
                for claim in there {
                    match give_key(tx, &claim)? {
                        Some((key_id, key)) => claimed.push((claim, key_id, key)),
                        None => without += usize::from(claim.terms != ClaimTerms::OneTimeKey),
                    }
                }
                Ok((claimed, without))
            })?;
            claimed.extend(some);
            refused += without;
        }
        Ok((written(&claimed), refused))
    }
}

/// Keys that were claimed, with their ids: a member for each user, an object by device, each of one key.
fn written(claimed: &[(Claim, String, String)]) -> Members {
    let mut users = Members::default();
    for of_user in claimed.chunk_by(|(one, ..), (next, ..)| one.user == next.user) {
        let mut devices = Members::default();
        for (claim, key_id, key) in of_user {
            devices.push(&claim.device, |out| {
                let mut keys = Members::default();
                keys.push(&format!("{}:{key_id}", claim.algorithm), |out| out.push_str(key));
                keys.write(out);
            });
        }
        users.push(of_user[0].0.user.as_str(), |out| devices.write(out));
    }
    users
}

fn too_many_devices() -> Error {
    Error::new(ErrCode::TooLarge, "These are too many devices")
}

/// What is asked of each server.
fn by_server<T>(wanted: BTreeMap<UserId, T>) -> BTreeMap<ServerName, BTreeMap<UserId, T>> {
    let mut by_server: BTreeMap<ServerName, BTreeMap<UserId, T>> = BTreeMap::new();
    for (user, what) in wanted {
        by_server.entry(user.server()).or_default().insert(user, what);
    }
    by_server
}

/// Gives out a key, if there is one to be had on these terms: its id and the key.
fn give_key(tx: &mut Tx<'_>, claim: &Claim) -> Result<Option<(String, String)>> {
    let Claim { user, device, algorithm, pool, terms } = claim;
    if let (Some(pool), ClaimTerms::OneTimeKey) = (pool, terms)
        && let Some(key) = tx.claim_one_time_key(user, *pool, 0)?
    {
        return Ok(Some(key));
    }
    let fallback = tx.give_fallback_key(user, device, algorithm)?;
    match (pool, terms) {
        (Some(pool), ClaimTerms::FallbackKeyOrOneOfMany) if fallback.is_none() => {
            tx.claim_one_time_key(user, *pool, CLAIM_RESERVE)
        }
        _ => Ok(fallback),
    }
}

/// Which key of a device somebody may be given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ClaimTerms {
    /// A one-time key, or failing those the fallback key.
    OneTimeKey,
    /// The fallback key. Of a device that has none (some clients make none) a one-time key, as long as there are many: nobody
    /// could write to it otherwise, and its client makes new ones.
    FallbackKeyOrOneOfMany,
    /// The fallback key.
    FallbackKey,
}

/// A key of a device that is asked for.
struct Claim {
    user: UserId,
    device: String,
    algorithm: String,
    /// Where its one-time keys are, if any were left.
    pool: Option<PoolKey>,
    /// Which key it may be.
    terms: ClaimTerms,
}

/// The signature of the user's self-signing key among those that came with identity keys, and that key.
pub(super) fn self_signature(
    db: &Db<'_>,
    user: &UserId,
    uploaded: &UploadedDeviceKeys,
) -> Result<Option<(CrossSigningKey, KeySignature)>> {
    if uploaded.others.is_empty() {
        return Ok(None);
    }
    let Some(key) = db.cross_signing_key(user, KeyUsage::SelfSigning)? else { return Ok(None) };
    let (verify_key, key_id) = (key.verify_key()?, key.key_id());
    let object = uploaded.keys.object.as_bytes();
    let mut signatures = uploaded.others.iter();
    let found = signatures.find(|(id, signature)| *id == key_id && verify_key.verifies(object, signature));
    Ok(found.map(|(_, signature)| {
        (key, KeySignature { signer: user.clone(), key_id, signature: signature.clone() })
    }))
}

/// Keeps what came for a device that there is, with the self-signing key's signature if there is one. What is to be
/// answered, if some one-time keys are refused; all others are kept all the same.
pub(super) fn keep_upload(
    tx: &mut Tx<'_>,
    user: &UserId,
    device: &str,
    upload: &KeyUpload,
    signature: Option<(CrossSigningKey, KeySignature)>,
) -> Result<Option<Error>> {
    if let Some(keys) = &upload.device_keys {
        keep_device_keys(tx, user, device, keys, signature)?;
    }
    let refusal = keep_one_time_keys(tx, user, device, upload)?;
    for key in &upload.fallback_keys {
        tx.set_fallback_key(user, device, key)?;
    }
    if tx.most_algorithms_of_keys(user, device)? > ALGORITHMS_MAX {
        return Err(Error::new(ErrCode::TooLarge, "A device may have keys of 8 algorithms"));
    }
    Ok(refusal)
}

/// Keeps identity keys, and tells everybody if they are others than before.
fn keep_device_keys(
    tx: &mut Tx<'_>,
    user: &UserId,
    device: &str,
    uploaded: &UploadedDeviceKeys,
    signature: Option<(CrossSigningKey, KeySignature)>,
) -> Result<()> {
    if tx.is_cross_signing_key(user, device)? {
        return Err(Error::forbidden("This device has the name of a cross-signing key"));
    }
    let before = tx.keys_of_device(user, device)?;
    let mut changed = before.as_ref() != Some(&uploaded.keys);
    match before {
        Some(before) if !before.has_keys_of(&uploaded.keys) => {
            tx.forget_one_time_keys(user, device)?;
            tx.forget_signatures_of_device(user, device)?;
        }
        Some(before) if before.object != uploaded.keys.object => tx.forget_signatures_of(user, device)?,
        Some(_) | None => {}
    }
    if changed {
        tx.set_device_keys(user, device, &uploaded.keys)?;
    }
    if let Some((key, signature)) = signature
        && tx.cross_signing_key(user, KeyUsage::SelfSigning)?.is_some_and(|now| now == key)
    {
        changed |= tx.add_key_signature(user, &SignatureOfKey { target: device.to_owned(), signature })?;
    }
    if changed { tell_of_device(tx, user, device) } else { Ok(()) }
}

/// Keeps one-time keys. What is to be answered, if some are refused; the others are kept all the same.
fn keep_one_time_keys(
    tx: &mut Tx<'_>,
    user: &UserId,
    device: &str,
    upload: &KeyUpload,
) -> Result<Option<Error>> {
    let mut refusal = None;
    let outcomes = tx.add_one_time_keys(user, device, &upload.one_time_keys)?;
    for (key, outcome) in upload.one_time_keys.iter().zip(outcomes) {
        if let OneTimeKeyOutcome::Taken(old) = outcome {
            // Clients know this error by its words, which are Synapse's, and some read both keys out of it.
            refusal = refusal.or_else(|| {
                let old = old.as_deref().unwrap_or("was given out");
                let message = format!(
                    "One time key {}:{} already exists. Old key: {old}; new key: {}",
                    key.algorithm, key.key_id, key.key
                );
                Some(Error::new(ErrCode::Unknown, message).with_status(400))
            });
        }
    }
    if tx.one_time_key_counts(user, device)?.values().sum::<u64>() > ONE_TIME_KEYS_MAX {
        return Err(Error::new(ErrCode::TooLarge, "A device may have 500 one-time keys waiting"));
    }
    Ok(refusal)
}

/// Adds the keys of one local user to an answer.
fn add_keys_of(
    db: &Db<'_>,
    asker: KeysAsker<'_>,
    user: &UserId,
    wanted: &[String],
    keys: &mut QueriedKeys,
) -> Result<()> {
    let (asker, shows_names) = match asker {
        KeysAsker::User(asker) => (Some(asker), true),
        KeysAsker::Server(server) => (None, db.shares_a_room_with_server(user, server)?),
    };
    let signatures = db.signatures_of_keys(user, asker)?;
    // They are in the order of what is signed.
    let of = |target: &str| -> Vec<KeySignature> {
        let first = signatures.partition_point(|signed| signed.target.as_str() < target);
        let of_target = signatures[first..].iter().take_while(|signed| signed.target == target);
        of_target.map(|signed| signed.signature.clone()).collect()
    };
    let mut devices = Members::default();
    let ids: HashSet<&String> = wanted.iter().collect();
    for DeviceWithKeys { device_id, display_name, keys } in db.devices_with_keys(user)? {
        if wanted.is_empty() || ids.contains(&device_id) {
            let name = display_name.as_deref().filter(|_| shows_names);
            devices.push(&device_id, |out| keys.write(out, user, &of(&device_id), name));
        }
    }
    keys.device_keys.push(user.as_str(), |out| devices.write(out));
    let known = db.cross_signing_keys(user)?;
    if let Some(key) = &known.master {
        keys.master_keys.push(user.as_str(), |out| key.signed.write(out, user, &of(&key.public_key), None));
    }
    if let Some(key) = &known.self_signing {
        keys.self_signing_keys.push(user.as_str(), |out| key.signed.write(out, user, &[], None));
    }
    if let Some(key) = known.user_signing.as_ref().filter(|_| asker == Some(user)) {
        keys.user_signing_keys.push(user.as_str(), |out| key.signed.write(out, user, &[], None));
    }
    Ok(())
}
