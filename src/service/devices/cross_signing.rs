//! Cross-signing (client-server API, "Cross-signing"): the keys with which our users sign their devices and one
//! another, and those signatures, each verified with a key that was there before.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use serde_json::value::RawValue;
use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::json::CanonicalObject;
use crate::protocol::keys::cross_signing::{CrossSigningKey, KeyUsage, NewlySigned};
use crate::protocol::keys::device::{ED25519, KeySignature, SignedObject, signatures_in};
use crate::protocol::signatures::sign::VerifyKey;
use crate::protocol::{ServerName, UserId};
use crate::service::devices::device_lists::{tell_of_device, tell_of_signing_keys};
use crate::service::devices::keys::WantedDevices;
use crate::service::devices::remote_keys::MasterKeysElsewhere;
use crate::service::devices::{Devices, check_active};
use crate::store::devices::cross_signing::{CrossSigningKeys, SignatureOfKey};
use crate::store::{Db, Tx};

/// Objects of one upload of signatures: each takes some verifying.
const SIGNED_AT_ONCE_MAX: usize = 1000;
/// Signatures of one user that are kept: of each of their devices, and of everybody whom they have verified.
const SIGNATURES_MAX: i64 = 10_000;

/// How long other servers are asked for keys that are signed.
const ASK_TIMEOUT: Duration = Duration::from_secs(10);

/// Signed objects as they were uploaded, by key id and user.
pub type UploadedSignatures<'t> = BTreeMap<Cow<'t, str>, BTreeMap<Cow<'t, str>, &'t RawValue>>;

/// Cross-signing keys that a client uploads.
#[derive(Debug, Clone)]
pub struct NewSigningKeys {
    keys: CrossSigningKeys,
    /// Signatures that came with the master key, by key id: of the user's devices, or nobody knows whose.
    of_master: Vec<(String, String)>,
}

impl NewSigningKeys {
    /// Reads the body of an upload; none if there is no key in it.
    ///
    /// Errors: 400 `M_BAD_JSON` for what are no keys of this user.
    pub fn read(user: &UserId, body: &Map<String, Value>) -> Result<Option<Self>> {
        let mut keys = CrossSigningKeys::default();
        for usage in KeyUsage::ALL {
            if let Some(key) = body.get(&format!("{}_key", usage.as_str())).filter(|key| !key.is_null()) {
                let text = serde_json::to_vec(key).map_err(Error::internal)?;
                *keys.of_mut(usage) = Some(CrossSigningKey::read(&text, user, usage)?);
            }
        }
        let mut of_master = Vec::new();
        if let Some(master) = &mut keys.master {
            let signatures = signatures_in(master.signed.signatures.as_bytes());
            of_master = signatures.map(|(id, signature)| (id.into_owned(), signature.into_owned())).collect();
            // Those that are verified are kept beside it.
            master.signed.retain_signatures(|_, _| false);
        }
        Ok((keys != CrossSigningKeys::default()).then_some(Self { keys, of_master }))
    }
}

/// Signatures of one key, verified, and what was verified with what.
struct VerifiedSignatures {
    /// Whose key it is.
    user: UserId,
    /// A device id, or the public key of a master key.
    target: String,
    is_device: bool,
    object: String,
    /// With the device's key that made it; none: a cross-signing key did, which is named by itself.
    signatures: Vec<(KeySignature, Option<VerifyKey>)>,
}

impl Devices<'_> {
    /// Keeps cross-signing keys of a user. False: they have a master key already and would have another one or more keys,
    /// which takes a proof (`proved`) that it is them; nothing was done.
    ///
    /// Errors: 400 `M_MISSING_PARAM` if there is no master key, `M_INVALID_SIGNATURE` if it has not signed the others; 403
    /// `M_FORBIDDEN` for the name of a device.
    pub fn upload_signing_keys(&self, user: &UserId, new: NewSigningKeys, proved: bool) -> Result<bool> {
        let NewSigningKeys { mut keys, of_master } = new;
        let (before, signed_by) = self.store.read(|db| {
            let before = db.cross_signing_keys(user)?;
            let mut signed_by = Vec::new();
            for (key_id, signature) in &of_master {
                let device = key_id.strip_prefix(ED25519).and_then(|rest| rest.strip_prefix(':'));
                if let Some(device) = device
                    && let Some(by) = db.keys_of_device(user, device)?
                {
                    signed_by.push((device.to_owned(), by, key_id, signature));
                }
            }
            Ok((before, signed_by))
        })?;
        let master = keys.master.clone().or(before.master);
        let master = master.ok_or_else(|| Error::new(ErrCode::MissingParam, "There is no master key"))?;
        for usage in [KeyUsage::SelfSigning, KeyUsage::UserSigning] {
            let key = keys.of_mut(usage);
            *key = key.take().map(|key| key.signed_by(&master)).transpose()?;
        }
        let mut signatures = Vec::new();
        for (device, by, key_id, signature) in signed_by {
            let key = by.verify_key(key_id);
            if !key.is_some_and(|key| key.verifies(master.signed.object.as_bytes(), signature)) {
                let wrong = "A device's signature of the master key is wrong";
                return Err(Error::new(ErrCode::InvalidSignature, wrong));
            }
            let signature =
                KeySignature { signer: user.clone(), key_id: key_id.clone(), signature: signature.clone() };
            signatures.push((device, by, signature));
        }
        let user = user.clone();
        self.store.write(move |tx| {
            check_active(tx, &user)?;
            if !keep_signing_keys(tx, &user, &keys, &master, proved)? {
                return Ok(false);
            }
            let mut signed = false;
            for (device, by, signature) in signatures {
                if tx.keys_of_device(&user, &device)?.is_some_and(|now| now == by) {
                    let target = master.public_key.clone();
                    signed |= tx.add_key_signature(&user, &SignatureOfKey { target, signature })?;
                }
            }
            if signed { tell_of_signing_keys(tx, &user).map(|()| true) } else { Ok(true) }
        })
    }

    /// Keeps signatures that a user has made of keys, each verified with the user's key that this server knows: of their
    /// own devices by their self-signing key, of their own master key by their devices, of other users' master keys by
    /// their user-signing key. What was refused, by user and key id, each as an error's body.
    ///
    /// Errors: 413 `M_TOO_LARGE` for too many.
    pub fn upload_signatures(&self, user: &UserId, uploaded: &UploadedSignatures<'_>) -> Result<Value> {
        if uploaded.values().map(BTreeMap::len).sum::<usize>() > SIGNED_AT_ONCE_MAX {
            return Err(Error::new(ErrCode::TooLarge, "These are too many signed keys"));
        }
        let elsewhere = self.master_keys_to_sign(user, uploaded)?;
        let mut failures: BTreeMap<String, BTreeMap<String, Value>> = BTreeMap::new();
        let mut verified = Vec::new();
        self.store.read(|db| {
            let own = db.cross_signing_keys(user)?;
            for (owner, objects) in uploaded {
                for (key_id, object) in objects {
                    match verify(db, user, &own, (owner, key_id), object.get().as_bytes(), &elsewhere) {
                        Ok(signatures) => verified.push(signatures),
                        Err(e) if e.is_own_failure() => return Err(e),
                        Err(e) => fail(&mut failures, owner, key_id, &e),
                    }
                }
            }
            Ok(())
        })?;
        if !verified.is_empty() {
            let signer = user.clone();
            let refused = self.store.write(move |tx| {
                check_active(tx, &signer)?;
                keep_signatures(tx, &signer, verified)
            })?;
            for (owner, target, e) in refused {
                fail(&mut failures, owner.as_str(), &target, &e);
            }
        }
        Ok(json!({ "failures": failures }))
    }

    /// The master keys of the users elsewhere whose keys are signed: from here where everything is known of them, asked of
    /// their servers otherwise.
    fn master_keys_to_sign(
        &self,
        signer: &UserId,
        uploaded: &UploadedSignatures<'_>,
    ) -> Result<MasterKeysElsewhere> {
        let mut wanted: BTreeMap<ServerName, WantedDevices> = BTreeMap::new();
        for user in uploaded.keys().filter_map(|user| UserId::parse(user).ok()) {
            if !self.is_local(&user) {
                wanted.entry(user.server()).or_default().insert(user, Vec::new());
            }
        }
        if wanted.is_empty() {
            return Ok(MasterKeysElsewhere::default());
        }
        Ok(self.query_elsewhere(signer, wanted, Instant::now() + ASK_TIMEOUT)?.into_master_keys())
    }
}

fn fail(failures: &mut BTreeMap<String, BTreeMap<String, Value>>, user: &str, key_id: &str, error: &Error) {
    failures.entry(user.to_owned()).or_default().insert(key_id.to_owned(), error.to_json());
}

/// Keeps keys that were found right. False: that takes a proof. `master`: by which the others were judged.
fn keep_signing_keys(
    tx: &mut Tx<'_>,
    user: &UserId,
    keys: &CrossSigningKeys,
    master: &CrossSigningKey,
    proved: bool,
) -> Result<bool> {
    let before = tx.cross_signing_keys(user)?;
    let is_new = |usage: &KeyUsage| {
        let object = |keys: &CrossSigningKeys| keys.of(*usage).map(|key| key.signed.object.clone());
        object(keys).is_some_and(|new| Some(new) != object(&before))
    };
    let new: Vec<KeyUsage> = KeyUsage::ALL.into_iter().filter(is_new).collect();
    if new.is_empty() {
        return Ok(true);
    }
    if before.master.is_some() && !proved {
        return Ok(false);
    }
    if keys.master.is_none() && before.master.as_ref() != Some(master) {
        return Err(Error::new(ErrCode::InvalidSignature, "The master key has changed meanwhile"));
    }
    for usage in &new {
        let Some(key) = keys.of(*usage) else { continue };
        // "Servers must ensure that device IDs will not collide with cross-signing public keys."
        if tx.device(user, &key.public_key)?.is_some() {
            return Err(Error::forbidden("One of your devices has the name of this key"));
        }
        tx.set_cross_signing_key(user, *usage, key)?;
    }
    if new == [KeyUsage::UserSigning] {
        // Nobody else sees it.
        tx.wake_user(user);
    } else {
        tell_of_signing_keys(tx, user)?;
    }
    Ok(true)
}

/// Finds the signatures of one object right, or says what is wrong.
fn verify(
    db: &Db<'_>,
    signer: &UserId,
    own: &CrossSigningKeys,
    (owner, key_id): (&str, &str),
    text: &[u8],
    elsewhere: &MasterKeysElsewhere,
) -> Result<VerifiedSignatures> {
    let unknown = || Error::not_found("There is no such key");
    let user = UserId::parse(owner)?;
    let (object, _) = CanonicalObject::read(text)?;
    let signed = NewlySigned { object: &object, signer };
    let found = |known: &SignedObject, is_device, signatures| VerifiedSignatures {
        user: user.clone(),
        target: key_id.to_owned(),
        is_device,
        object: known.object.clone(),
        signatures,
    };
    if user != *signer {
        let key = own.user_signing.as_ref();
        let key = key.ok_or_else(|| Error::not_found("You have no user-signing key"))?;
        let master = match elsewhere.keys.get(&user) {
            Some(master) => master.clone(),
            // What is known of somebody whose server does not tell it may be out of date.
            None => match db.cross_signing_key(&user, KeyUsage::Master)?.filter(|_| db.is_local(owner)) {
                Some(master) => master,
                None => return Err(elsewhere.failure_of(&user).unwrap_or_else(unknown)),
            },
        };
        if master.public_key != key_id {
            return Err(unknown());
        }
        return Ok(found(&master.signed, false, vec![(signed.signature_by(key, &master.signed)?, None)]));
    }
    if let Some(master) = own.master.as_ref().filter(|master| master.public_key == key_id) {
        let signatures = signed.signatures_by_devices(master, |device| db.keys_of_device(signer, device))?;
        let signatures = signatures.into_iter().map(|(signature, key)| (signature, Some(key)));
        return Ok(found(&master.signed, false, signatures.collect()));
    }
    let device = db.keys_of_device(signer, key_id)?.ok_or_else(unknown)?;
    let key = own.self_signing.as_ref();
    let key = key.ok_or_else(|| Error::not_found("You have no self-signing key"))?;
    Ok(found(&device, true, vec![(signed.signature_by(key, &device)?, None)]))
}

/// Keeps signatures whose keys are still what they were, and tells whom it concerns. Those that are refused.
fn keep_signatures(
    tx: &mut Tx<'_>,
    signer: &UserId,
    verified: Vec<VerifiedSignatures>,
) -> Result<Vec<(UserId, String, Error)>> {
    let (mut refused, mut master_signed) = (Vec::new(), false);
    let mut room = SIGNATURES_MAX - tx.count_signatures_by(signer)?;
    for VerifiedSignatures { user, target, is_device, object, signatures } in verified {
        let known = match is_device {
            true => tx.keys_of_device(&user, &target)?,
            false => tx.cross_signing_key(&user, KeyUsage::Master)?.map(|key| key.signed),
        };
        // Of somebody elsewhere whom nobody here shares a room with there is nothing to compare with.
        let is_known = known.map_or(!tx.is_local(user.as_str()), |known| known.object == object);
        if !is_known || !are_keys_of(tx, signer, &signatures)? {
            let changed = Error::new(ErrCode::InvalidSignature, "The key has changed meanwhile");
            refused.push((user, target, changed));
            continue;
        }
        if room <= 0 {
            refused.push((user, target, Error::new(ErrCode::LimitExceeded, "You have signed too many keys")));
            continue;
        }
        let mut signed = false;
        for (signature, _) in signatures {
            room -= 1;
            signed |= tx.add_key_signature(&user, &SignatureOfKey { target: target.clone(), signature })?;
        }
        match (signed, user == *signer, is_device) {
            (true, true, true) => tell_of_device(tx, signer, &target)?,
            (true, true, false) => master_signed = true,
            // "Users will not be able to see signatures made by other users' user-signing keys."
            (true, false, _) => tx.wake_user(signer),
            (false, ..) => {}
        }
    }
    if master_signed {
        tell_of_signing_keys(tx, signer)?;
    }
    Ok(refused)
}

/// Whether these signatures are by keys that their signer still has.
fn are_keys_of(
    tx: &Tx<'_>,
    signer: &UserId,
    signatures: &[(KeySignature, Option<VerifyKey>)],
) -> Result<bool> {
    for (signature, of_device) in signatures {
        let name = signature.key_id.strip_prefix(ED25519).and_then(|rest| rest.strip_prefix(':'));
        let name = name.unwrap_or_default();
        let is_there = match of_device {
            None => tx.is_cross_signing_key(signer, name)?,
            Some(key) => {
                let keys = tx.keys_of_device(signer, name)?;
                keys.and_then(|keys| keys.verify_key(&signature.key_id)).as_ref() == Some(key)
            }
        };
        if !is_there {
            return Ok(false);
        }
    }
    Ok(true)
}
