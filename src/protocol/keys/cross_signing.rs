//! Cross-signing keys (client-server API, "Cross-signing"): read, checked, and what each of them may sign.

use std::borrow::Cow;

use crate::error::{Error, Result};
use crate::protocol::UserId;
use crate::protocol::json::{AtMost, CanonicalObject, member_of, members_of, read, string};
use crate::protocol::keys::device::{
    ED25519, IDENTITY_KEYS_BYTES_MAX, KeySignature, SignedObject, invalid_signature, signatures_in,
    signatures_of, too_large,
};
use crate::protocol::signatures::sign::VerifyKey;

/// Uses that a key names.
const USAGES_MAX: usize = 10;

/// What a cross-signing key is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum KeyUsage {
    /// It is the user's identity, and signs the user's other two.
    Master,
    /// It signs the user's devices.
    SelfSigning,
    /// It signs other users' master keys.
    UserSigning,
}

impl KeyUsage {
    /// All three.
    pub const ALL: [Self; 3] = [Self::Master, Self::SelfSigning, Self::UserSigning];

    /// As it stands in `usage`.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Master => "master",
            Self::SelfSigning => "self_signing",
            Self::UserSigning => "user_signing",
        }
    }
}

/// A cross-signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CrossSigningKey {
    /// In base64, as it stands in the key's id.
    pub public_key: String,
    /// The object, with its owner's signatures.
    pub signed: SignedObject,
}

impl CrossSigningKey {
    /// Reads a key, with whatever signatures its owner is said to have made: none is verified.
    ///
    /// Errors: 400 `M_BAD_JSON` for what is no key of this user and use; 413 `M_TOO_LARGE`.
    pub fn read(text: &[u8], user: &UserId, usage: KeyUsage) -> Result<Self> {
        let (object, _) = CanonicalObject::read(text)?;
        let signatures = object.get("signatures").and_then(|all| member_of(all, user.as_str()));
        let signatures = signatures.filter(|own| own.starts_with(b"{")).unwrap_or(b"{}");
        let signed = object.without(&["signatures", "unsigned"]);
        if signed.len() + signatures.len() > IDENTITY_KEYS_BYTES_MAX {
            return Err(too_large("A cross-signing key is too large"));
        }
        if object.string("user_id").as_deref() != Some(user.as_str()) {
            return Err(Error::bad_json("The user_id of a cross-signing key is not its owner's"));
        }
        let usages: AtMost<Cow<'_, str>, USAGES_MAX> = match object.get("usage") {
            Some(list) => read(list)?,
            None => return Err(Error::bad_json("A cross-signing key must have a usage")),
        };
        if !usages.iter().any(|name| name == usage.as_str()) {
            return Err(Error::bad_json(format!("This is no {} key", usage.as_str())));
        }
        let public_key = one_public_key(object.get("keys").unwrap_or_default())?;
        let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).map_err(Error::internal);
        let mut signed = SignedObject { object: text(&signed)?, signatures: text(signatures)? };
        // Whatever else is among them.
        signed.retain_signatures(|_, _| true);
        Ok(Self { public_key, signed })
    }

    /// By what it is named as a signer.
    pub fn key_id(&self) -> String {
        format!("{ED25519}:{}", self.public_key)
    }

    /// The key. Errors: none of one that was read.
    pub fn verify_key(&self) -> Result<VerifyKey> {
        VerifyKey::from_base64(&self.public_key)
    }

    /// The key with no signature of its owner but that of their master key.
    ///
    /// Errors: 400 `M_INVALID_SIGNATURE` if that one is missing or wrong.
    pub fn signed_by(mut self, master: &Self) -> Result<Self> {
        let (key, key_id) = (master.verify_key()?, master.key_id());
        let object = self.signed.object.clone();
        self.signed
            .retain_signatures(|id, signature| id == key_id && key.verifies(object.as_bytes(), signature));
        let is_signed = signatures_in(self.signed.signatures.as_bytes()).next().is_some();
        let refusal = || invalid_signature("A cross-signing key must be signed by its owner's master key");
        if is_signed { Ok(self) } else { Err(refusal()) }
    }
}

/// "The object must have exactly one property, whose name is in the form `<algorithm>:<unpadded_base64_public_key>`, and
/// whose value is the unpadded base64 public key."
fn one_public_key(keys: &[u8]) -> Result<String> {
    let wrong = || Error::bad_json("A cross-signing key must have one ed25519 key, which is named by itself");
    let mut all = members_of(keys);
    let (Some((name, value)), None) = (all.next(), all.next()) else { return Err(wrong()) };
    let (Some(name), Some(value)) = (string(name), string(value)) else { return Err(wrong()) };
    let named = name.strip_prefix(ED25519).and_then(|rest| rest.strip_prefix(':'));
    let is_key = VerifyKey::from_base64(&value).is_ok_and(|key| key.to_base64() == value);
    if named == Some(&*value) && is_key { Ok(value.into_owned()) } else { Err(wrong()) }
}

/// An object that was signed, as it came with the new signatures.
pub struct NewlySigned<'s> {
    /// The object.
    pub object: &'s CanonicalObject,
    /// Who signed it.
    pub signer: &'s UserId,
}

impl NewlySigned<'_> {
    /// Checks that it is what is known under its name, "with the exception of the `signatures` property".
    ///
    /// Errors: 400 `M_INVALID_SIGNATURE`.
    fn check_is(&self, known: &SignedObject) -> Result<()> {
        if self.object.without(&["signatures", "unsigned"]) == known.object.as_bytes() {
            return Ok(());
        }
        Err(invalid_signature("What was signed is not the key that this server knows"))
    }

    /// The signature that the signer made with a key of theirs.
    ///
    /// Errors: 400 `M_INVALID_SIGNATURE` if there is none, it is wrong, or something else was signed.
    pub fn signature_by(&self, key: &CrossSigningKey, known: &SignedObject) -> Result<KeySignature> {
        self.check_is(known)?;
        let (verify_key, key_id) = (key.verify_key()?, key.key_id());
        let mut found = signatures_of(self.object, self.signer).filter(|(id, _)| *id == key_id);
        let found = found.find(|(_, signature)| verify_key.verifies(known.object.as_bytes(), signature));
        let (_, signature) = found.ok_or_else(|| invalid_signature("It is not signed with the right key"))?;
        Ok(KeySignature { signer: self.signer.clone(), key_id, signature: signature.into_owned() })
    }

    /// The signatures that the signer's devices made of their own master key, each with the key that made it.
    /// `keys_of_device`: the keys of a device, if there is such a one.
    ///
    /// Errors: 400 `M_INVALID_SIGNATURE` if there are none, one of them is wrong or of no device, or something else was
    /// signed; those of `keys_of_device`.
    pub fn signatures_by_devices(
        &self,
        master: &CrossSigningKey,
        keys_of_device: impl Fn(&str) -> Result<Option<SignedObject>>,
    ) -> Result<Vec<(KeySignature, VerifyKey)>> {
        self.check_is(&master.signed)?;
        let mut signatures = Vec::new();
        for (key_id, signature) in signatures_of(self.object, self.signer) {
            let device = key_id.strip_prefix(ED25519).and_then(|rest| rest.strip_prefix(':'));
            let keys = device.map(&keys_of_device).transpose()?.flatten();
            let key = keys.and_then(|keys| keys.verify_key(&key_id));
            let key = key.filter(|key| key.verifies(master.signed.object.as_bytes(), &signature));
            let key =
                key.ok_or_else(|| invalid_signature("A master key is signed by its owner's devices"))?;
            let (key_id, signature) = (key_id.into_owned(), signature.into_owned());
            signatures.push((KeySignature { signer: self.signer.clone(), key_id, signature }, key));
        }
        if signatures.is_empty() {
            return Err(invalid_signature("There is no signature by a device"));
        }
        Ok(signatures)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::signatures::sign::SigningKey;

    fn alice() -> UserId {
        UserId::parse("@alice:example.org").expect("an id")
    }

    fn secret(seed: u8) -> SigningKey {
        SigningKey::generate([seed; 32], "any")
    }

    fn object(usage: KeyUsage, key: &SigningKey) -> Value {
        let public = key.public_base64();
        json!({ "user_id": alice(), "usage": [usage.as_str()], "keys": { format!("ed25519:{public}"): public } })
    }

    fn read(object: &Value, usage: KeyUsage) -> Result<CrossSigningKey> {
        CrossSigningKey::read(object.to_string().as_bytes(), &alice(), usage)
    }

    #[test]
    fn a_key_is_taken_only_with_the_signature_of_the_master_key() {
        let master = read(&object(KeyUsage::Master, &secret(1)), KeyUsage::Master).expect("a key");
        let key = read(&object(KeyUsage::SelfSigning, &secret(2)), KeyUsage::SelfSigning).expect("a key");
        assert!(key.clone().signed_by(&master).is_err());
        let signed = |by: &SigningKey, id: &str| {
            let mut object = object(KeyUsage::SelfSigning, &secret(2));
            let signature = by.sign_bytes(key.signed.object.as_bytes());
            object["signatures"] =
                json!({ alice().as_str(): { id: signature, "ed25519:PHONE": "anything" } });
            read(&object, KeyUsage::SelfSigning).expect("a key").signed_by(&master)
        };
        let kept = signed(&secret(1), &master.key_id()).expect("signed").signed.signatures;
        assert!(kept.contains(&master.key_id()) && !kept.contains("PHONE"), "{kept}");
        assert!(signed(&secret(3), &master.key_id()).is_err(), "by another key");
        assert!(signed(&secret(1), "ed25519:other").is_err(), "by another name");
    }

    #[test]
    fn what_is_no_cross_signing_key_is_refused() {
        let good = object(KeyUsage::Master, &secret(1));
        let other = secret(2).public_base64();
        assert!(read(&good, KeyUsage::Master).is_ok());
        assert!(read(&good, KeyUsage::UserSigning).is_err());
        let public = secret(1).public_base64();
        let name = format!("ed25519:{public}");
        for (member, value) in [
            ("user_id", json!("@bob:example.org")),
            ("user_id", Value::Null),
            ("usage", json!([])),
            ("usage", json!("master")),
            ("usage", json!({ "master": true })),
            ("keys", json!({})),
            ("keys", json!([])),
            ("keys", json!({ name.as_str(): other })),
            ("keys", json!({ "ed25519:any": public })),
            ("keys", json!({ format!("curve25519:{public}"): public })),
            ("keys", json!({ name.as_str(): public, format!("ed25519:{other}"): other })),
            ("keys", json!({ "ed25519:AAAA": "AAAA" })),
            ("padding", json!("x".repeat(10_000))),
        ] {
            let mut wrong = good.clone();
            wrong[member] = value;
            assert!(read(&wrong, KeyUsage::Master).is_err(), "{wrong}");
        }
    }
}
