//! End-to-end keys of devices (client-server API, "End-to-End Encryption"): identity keys, one-time keys and fallback
//! keys as clients upload them, read and checked; and signed objects as they are told, put together from their text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::json::{
    AtMost, CanonicalObject, base64_decode, canonical_string, member_of, members_of, read, read_object,
    string,
};
use crate::protocol::signatures::sign::VerifyKey;

/// The algorithm of the keys that sign.
pub const ED25519: &str = "ed25519";
/// The algorithm of the keys that a device is known by to Olm.
const CURVE25519: &str = "curve25519";
/// The algorithm of one-time and fallback keys for Olm, each of which is signed by its device. What keys of other algorithms
/// are, clients agree on.
pub const SIGNED_CURVE25519: &str = "signed_curve25519";

/// The largest identity keys of a device, or cross-signing key, in bytes of canonical JSON: ten times what clients send.
pub const IDENTITY_KEYS_BYTES_MAX: usize = 8 << 10;
/// The largest one-time or fallback key, in bytes of canonical JSON.
const ONE_TIME_KEY_BYTES_MAX: usize = 2 << 10;
/// One-time keys in one upload: ten times what clients send.
const KEYS_AT_ONCE_MAX: usize = 500;
/// Longest id of a one-time key, in bytes.
const KEY_ID_BYTES_MAX: usize = 255;
/// Algorithms that a device names, and how long their names may be.
const ALGORITHMS_MAX: usize = 50;
const ALGORITHM_BYTES_MAX: usize = 255;
/// How long a curve point is, and an ed25519 signature, in bytes.
const POINT_BYTES: usize = 32;
const SIGNATURE_BYTES: usize = 64;

/// An object with the signatures that its owner made of it: identity keys of a device, a cross-signing key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedObject {
    /// The object in canonical form, without `signatures` and `unsigned`: what is signed. It is never empty.
    pub object: String,
    /// The owner's signatures: a JSON object by key id.
    pub signatures: String,
}

/// A signature beside those.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KeySignature {
    /// Who signed.
    pub signer: UserId,
    /// With which key: `ed25519:` and a device id or a public key.
    pub key_id: String,
    /// In base64.
    pub signature: String,
}

impl SignedObject {
    /// Writes the object as others are told it, with more signatures and, of a device, its name.
    pub fn write(&self, out: &mut String, owner: &UserId, more: &[KeySignature], display_name: Option<&str>) {
        fn open(text: &str) -> &str {
            text.strip_suffix('}').unwrap_or_default()
        }
        out.push_str(open(&self.object));
        let has_own = self.signatures.len() > 2;
        if has_own || !more.is_empty() {
            out.push_str(",\"signatures\":{");
            let (own, others): (Vec<_>, Vec<_>) =
                more.iter().partition(|signature| signature.signer == *owner);
            if has_own || !own.is_empty() {
                out.push_str(&quoted(owner.as_str()));
                out.push(':');
                out.push_str(open(&self.signatures));
                write_signatures(out, &own, has_own);
                out.push('}');
            }
            for of_signer in others.chunk_by(|one, next| one.signer == next.signer) {
                if !out.ends_with('{') {
                    out.push(',');
                }
                out.push_str(&quoted(of_signer[0].signer.as_str()));
                out.push_str(":{");
                write_signatures(out, of_signer, false);
                out.push('}');
            }
            out.push('}');
        }
        if let Some(name) = display_name {
            out.push_str(",\"unsigned\":{\"device_display_name\":");
            out.push_str(&quoted(name));
            out.push('}');
        }
        out.push('}');
    }

    /// The public key of this id, if the object has such an ed25519 key.
    pub fn verify_key(&self, key_id: &str) -> Option<VerifyKey> {
        let keys = member_of(self.object.as_bytes(), "keys")?;
        key_id.strip_prefix(ED25519).filter(|rest| rest.starts_with(':'))?;
        VerifyKey::from_base64(&string(member_of(keys, key_id)?)?).ok()
    }

    /// Whether both have the same keys, whatever else differs.
    pub fn has_keys_of(&self, other: &Self) -> bool {
        let keys = |of: &Self| member_of(of.object.as_bytes(), "keys").map(<[u8]>::to_vec);
        keys(self) == keys(other)
    }

    /// Keeps only some of the owner's signatures.
    pub fn retain_signatures(&mut self, mut keep: impl FnMut(&str, &str) -> bool) {
        let mut kept = String::from("{");
        for (key_id, signature) in signatures_in(self.signatures.as_bytes()) {
            if keep(&key_id, &signature) {
                if kept.len() > 1 {
                    kept.push(',');
                }
                kept.push_str(&format!("{}:{}", quoted(&key_id), quoted(&signature)));
            }
        }
        kept.push('}');
        self.signatures = kept;
    }
}

fn write_signatures(out: &mut String, signatures: &[&KeySignature], mut after_others: bool) {
    for signature in signatures {
        if std::mem::replace(&mut after_others, true) {
            out.push(',');
        }
        out.push_str(&format!("{}:{}", quoted(&signature.key_id), quoted(&signature.signature)));
    }
}

/// A text as JSON.
pub(crate) fn quoted(text: &str) -> String {
    if text.bytes().any(|byte| matches!(byte, 0..0x20 | b'"' | b'\\')) {
        return canonical_string(&text.into());
    }
    ["\"", text, "\""].concat()
}

/// Key ids and signatures of an object of signatures in canonical form; other values are passed over.
pub fn signatures_in(canonical: &[u8]) -> impl Iterator<Item = (Cow<'_, str>, Cow<'_, str>)> {
    members_of(canonical).filter_map(|(key_id, signature)| Some((string(key_id)?, string(signature)?)))
}

/// Identity keys that a device has uploaded, its own signature verified.
#[derive(Debug, Clone)]
pub struct UploadedDeviceKeys {
    /// The keys, with this signature and no other.
    pub keys: SignedObject,
    /// Other signatures of the device's user, by key id: to be verified with keys that are not here.
    pub others: Vec<(String, String)>,
}

/// What a device uploads at once.
#[derive(Debug)]
pub struct KeyUpload {
    /// Its identity keys.
    pub device_keys: Option<UploadedDeviceKeys>,
    /// One-time keys.
    pub one_time_keys: Vec<OneTimeKey>,
    /// Fallback keys, one of an algorithm at most.
    pub fallback_keys: Vec<OneTimeKey>,
}

/// The body of `keys/upload`, as text. `null` is read as absent everywhere: older clients write it.
#[derive(Deserialize)]
struct KeyUploadBody<'t> {
    #[serde(borrow, default)]
    device_keys: Option<&'t RawValue>,
    #[serde(borrow, default)]
    one_time_keys: Option<KeysByName<'t>>,
    #[serde(borrow, default)]
    fallback_keys: Option<KeysByName<'t>>,
}

type KeysByName<'t> = BTreeMap<Cow<'t, str>, &'t RawValue>;

impl KeyUpload {
    /// Reads the body of an upload by this device.
    ///
    /// Errors: 400 `M_BAD_JSON`, `M_INVALID_PARAM` for identity keys of unknown algorithms or two fallback keys of one,
    /// `M_INVALID_SIGNATURE` for what the device has not signed; 413 `M_TOO_LARGE`.
    pub fn read(body: &[u8], user: &UserId, device: &str) -> Result<Self> {
        let body: KeyUploadBody<'_> = read_object(body)?;
        let keys = |named: Option<KeysByName<'_>>, most: usize| {
            let named = named.unwrap_or_default();
            if named.len() > most {
                return Err(too_large("These are too many keys"));
            }
            let keys =
                named.iter().map(|(name, key)| read_one_time_key(name, key.get().as_bytes(), user, device));
            keys.collect::<Result<Vec<_>>>()
        };
        let device_keys = body.device_keys.map(|keys| read_device_keys(keys.get().as_bytes(), user, device));
        let fallback_keys = keys(body.fallback_keys, KEYS_AT_ONCE_MAX)?;
        // They are in the order of their names, which the algorithm begins.
        if fallback_keys.windows(2).any(|pair| pair[0].algorithm == pair[1].algorithm) {
            return Err(Error::invalid_param("There can be one fallback key of each algorithm"));
        }
        Ok(Self {
            device_keys: device_keys.transpose()?,
            one_time_keys: keys(body.one_time_keys, KEYS_AT_ONCE_MAX)?,
            fallback_keys,
        })
    }
}

/// Reads the identity keys of a device.
///
/// Errors: 400 `M_BAD_JSON` for what are no keys of this device, `M_INVALID_PARAM` for keys of unknown algorithms,
/// `M_INVALID_SIGNATURE` if the device has not signed them; 413 `M_TOO_LARGE`.
pub fn read_device_keys(text: &[u8], user: &UserId, device: &str) -> Result<UploadedDeviceKeys> {
    let (object, _) = CanonicalObject::read(text)?;
    let signed = object.without(&["signatures", "unsigned"]);
    if signed.len() > IDENTITY_KEYS_BYTES_MAX {
        return Err(too_large("These identity keys are too large"));
    }
    if object.string("user_id").as_deref() != Some(user.as_str()) {
        return Err(Error::bad_json("The user_id of device_keys is not that of who uploads them"));
    }
    if object.string("device_id").as_deref() != Some(device) {
        return Err(Error::bad_json(
            "The device_id of device_keys is not that of the device that uploads them",
        ));
    }
    let listed = object.get("algorithms").filter(|list| list.starts_with(b"["));
    let algorithms: AtMost<Cow<'_, str>, ALGORITHMS_MAX> = match listed {
        Some(list) => read(list)?,
        None => return Err(Error::bad_json("device_keys must have a list of algorithms")),
    };
    if algorithms.iter().any(|name| name.is_empty() || name.len() > ALGORITHM_BYTES_MAX) {
        return Err(Error::bad_json("The name of an algorithm has 1 to 255 bytes"));
    }
    let keys = object.get("keys").filter(|keys| keys.starts_with(b"{"));
    let keys = keys.ok_or_else(|| Error::bad_json("device_keys must have keys"))?;
    let mut signing_key = None;
    for (name, value) in members_of(keys) {
        let (Some(name), Some(value)) = (string(name), string(value)) else {
            return Err(Error::bad_json("The identity keys of a device must be strings"));
        };
        match name.split_once(':') {
            Some((algorithm @ (ED25519 | CURVE25519), of)) if of == device => {
                let is_point = base64_decode(&value).is_some_and(|bytes| bytes.len() == POINT_BYTES);
                if !is_point {
                    return Err(Error::bad_json(format!("This is no {algorithm} key")));
                }
                if algorithm == ED25519 {
                    signing_key = Some(VerifyKey::from_base64(&value)?);
                }
            }
            Some((ED25519 | CURVE25519, _)) => {
                return Err(Error::bad_json("An identity key is named by its algorithm and the device's id"));
            }
            _ => return Err(unknown_algorithm()),
        }
    }
    let signing_key = signing_key.ok_or_else(|| Error::bad_json("device_keys must have an ed25519 key"))?;
    let own_id = format!("{ED25519}:{device}");
    let (own, others): (Vec<_>, Vec<_>) = signatures_of(&object, user).partition(|(id, _)| *id == own_id);
    let own = own.into_iter().map(|(_, signature)| signature).find(|s| signing_key.verifies(&signed, s));
    let own = own.ok_or_else(|| invalid_signature("The device has not signed its identity keys"))?;
    let keys = SignedObject {
        object: String::from_utf8(signed).map_err(Error::internal)?,
        signatures: format!("{{{}:{}}}", quoted(&own_id), quoted(&own)),
    };
    let others = others.into_iter().map(|(id, signature)| (id.into_owned(), signature.into_owned()));
    Ok(UploadedDeviceKeys { keys, others: others.collect() })
}

/// The signatures that a user has made of an object, by key id.
pub(crate) fn signatures_of<'o>(
    object: &'o CanonicalObject,
    user: &UserId,
) -> impl Iterator<Item = (Cow<'o, str>, Cow<'o, str>)> {
    let all = object.get("signatures").and_then(|signatures| member_of(signatures, user.as_str()));
    signatures_in(all.unwrap_or_default())
}

/// A one-time or fallback key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OneTimeKey {
    /// Its algorithm.
    pub algorithm: String,
    /// Its id among those of its device and algorithm.
    pub key_id: String,
    /// SHA-256 of the key without its signatures: by this two of the same id are told apart.
    pub digest: [u8; 32],
    /// The key, a JSON object in canonical form or a JSON string.
    pub key: String,
}

/// Reads a one-time or fallback key of a device by its name: its algorithm, a colon and its id. One of an algorithm that this
/// server does not know is an object or a string like any other. Whether the signature of a signed one is right is for those
/// to check who use the key; that there is one of the device is checked here.
///
/// Errors: 400 `M_BAD_JSON` for what is no key, `M_INVALID_SIGNATURE`; 413 `M_TOO_LARGE`.
pub fn read_one_time_key(name: &str, text: &[u8], user: &UserId, device: &str) -> Result<OneTimeKey> {
    let named = name.split_once(':');
    let (algorithm, key_id) =
        named.ok_or_else(|| Error::bad_json("A one-time key is named by its algorithm and an id"))?;
    if [(algorithm, ALGORITHM_BYTES_MAX), (key_id, KEY_ID_BYTES_MAX)]
        .iter()
        .any(|(part, most)| part.is_empty() || part.len() > *most || part.contains(char::is_control))
    {
        return Err(Error::bad_json("The algorithm and the id of a one-time key have 1 to 255 bytes each"));
    }
    let (signed, key) = if algorithm != SIGNED_CURVE25519 && text.starts_with(b"\"") {
        let key = quoted(&read::<Cow<'_, str>>(text)?);
        (key.clone().into_bytes(), key)
    } else {
        let (object, _) = CanonicalObject::read(text)?;
        if algorithm == SIGNED_CURVE25519 {
            check_signed_key(&object, user, device)?;
        }
        (object.without(&["signatures"]), object.into_text())
    };
    if key.len() > ONE_TIME_KEY_BYTES_MAX {
        return Err(too_large("A one-time key is too large"));
    }
    let (algorithm, key_id) = (algorithm.to_owned(), key_id.to_owned());
    Ok(OneTimeKey { algorithm, key_id, digest: Sha256::digest(signed).into(), key })
}

/// Errors: 400 `M_BAD_JSON` for what is no `KeyObject`, `M_INVALID_SIGNATURE` for one without a signature of the device.
fn check_signed_key(object: &CanonicalObject, user: &UserId, device: &str) -> Result<()> {
    let is_long = |text: &str, bytes: usize| base64_decode(text).is_some_and(|b| b.len() == bytes);
    if !object.string("key").is_some_and(|key| is_long(&key, POINT_BYTES)) {
        return Err(Error::bad_json("A one-time key must have a curve25519 key"));
    }
    let own_id = format!("{ED25519}:{device}");
    let is_own =
        |(id, signature): (Cow<'_, str>, Cow<'_, str>)| id == own_id && is_long(&signature, SIGNATURE_BYTES);
    if !signatures_of(object, user).any(is_own) {
        return Err(invalid_signature("A one-time key must be signed by its device"));
    }
    if object.get("fallback").is_some_and(|fallback| !matches!(fallback, b"true" | b"false")) {
        return Err(Error::bad_json("fallback must be true or false"));
    }
    Ok(())
}

pub(crate) fn too_large(message: &'static str) -> Error {
    Error::new(ErrCode::TooLarge, message)
}

pub(crate) fn invalid_signature(message: &'static str) -> Error {
    Error::new(ErrCode::InvalidSignature, message)
}

fn unknown_algorithm() -> Error {
    Error::invalid_param("This server does not know keys of this algorithm")
}

#[cfg(test)]
mod tests {
    use serde_json::{Map, Value, json};

    use super::*;
    use crate::protocol::signatures::sign::SigningKey;

    fn user(name: &str) -> UserId {
        UserId::parse(&format!("@{name}:example.org")).expect("an id")
    }

    fn signed(change: impl FnOnce(&mut Value)) -> Value {
        let key = SigningKey::generate([7; 32], "any");
        let mut object = json!({
            "user_id": user("alice"), "device_id": "PHONE", "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
            "keys": { "ed25519:PHONE": key.public_base64(), "curve25519:PHONE": "A".repeat(43) },
        });
        change(&mut object);
        let signature = key.sign_bytes(canonical_string(&object).as_bytes());
        object["signatures"] =
            json!({ user("alice").as_str(): { "ed25519:PHONE": signature, "ed25519:other": "x" } });
        object
    }

    fn read_it(object: &Value) -> Result<UploadedDeviceKeys> {
        read_device_keys(object.to_string().as_bytes(), &user("alice"), "PHONE")
    }

    #[test]
    fn identity_keys_are_kept_with_the_devices_own_signature_and_told_with_all_that_are_known() {
        let mut object = signed(|_| {});
        let UploadedDeviceKeys { keys, others } = read_it(&object).expect("keys");
        assert_eq!(others, [("ed25519:other".to_owned(), "x".to_owned())]);
        let more =
            [("alice", "ed25519:SSK", "s1"), ("bob", "ed25519:USK", "s2"), ("bob", "ed25519:\"", "s3")];
        let more = more.map(|(signer, key_id, signature)| KeySignature {
            signer: user(signer),
            key_id: key_id.into(),
            signature: signature.into(),
        });
        let mut told = String::new();
        keys.write(&mut told, &user("alice"), &more, Some("a \"phone\""));
        let told: Value = serde_json::from_str(&told).expect("JSON");
        object["signatures"]["@alice:example.org"]
            .as_object_mut()
            .expect("an object")
            .remove("ed25519:other");
        object["signatures"]["@alice:example.org"]["ed25519:SSK"] = json!("s1");
        object["signatures"]["@bob:example.org"] = json!({ "ed25519:USK": "s2", "ed25519:\"": "s3" });
        object["unsigned"] = json!({ "device_display_name": "a \"phone\"" });
        assert_eq!(told, object);
        let bare = SignedObject { signatures: "{}".into(), ..keys };
        for more in [&more[..0], &more[..1], &more[1..]] {
            let mut told = String::new();
            bare.write(&mut told, &user("alice"), more, None);
            let told: Value = serde_json::from_str(&told).expect("JSON");
            let signers =
                told.get("signatures").and_then(Value::as_object).into_iter().flat_map(|all| all.values());
            let count: usize = signers.map(|keys| keys.as_object().map_or(0, Map::len)).sum();
            assert_eq!(count, more.len(), "{told}");
        }
    }

    #[test]
    fn what_are_no_identity_keys_of_the_device_is_refused() {
        assert!(read_it(&signed(|_| {})).is_ok());
        let wrong: [(&str, Value); 14] = [
            ("user_id", json!("@bob:example.org")),
            ("device_id", json!("TABLET")),
            ("device_id", json!(["PHONE"])),
            ("algorithms", Value::Null),
            ("algorithms", json!("m.olm")),
            ("algorithms", json!([1])),
            ("algorithms", json!(["x".repeat(256)])),
            ("algorithms", json!(vec!["x"; 51])),
            ("keys", json!([])),
            ("keys", json!({})),
            ("keys", json!({ "curve25519:PHONE": "A".repeat(43) })),
            ("keys", json!({ "ed25519:TABLET": "A".repeat(43) })),
            ("keys", json!({ "rsa:PHONE": "A".repeat(43) })),
            ("padding", json!("x".repeat(10_000))),
        ];
        for (member, value) in wrong {
            let object = signed(|object| object[member] = value);
            assert!(read_it(&object).is_err(), "{member}");
        }
        let mut altered = signed(|_| {});
        altered["keys"]["curve25519:PHONE"] = json!("B".repeat(43));
        assert_eq!(read_it(&altered).expect_err("altered").errcode(), ErrCode::InvalidSignature);
        altered.as_object_mut().expect("an object").remove("signatures");
        assert_eq!(read_it(&altered).expect_err("unsigned").errcode(), ErrCode::InvalidSignature);
    }

    #[test]
    fn a_one_time_key_has_the_form_of_one() {
        let signature = "A".repeat(86);
        let good = json!({
            "key": "A".repeat(43), "signatures": { "@alice:example.org": { "ed25519:PHONE": signature } } });
        let read = |name: &str, key: &Value| {
            read_one_time_key(name, key.to_string().as_bytes(), &user("alice"), "PHONE")
        };
        let key = read("signed_curve25519:AAAAHg", &good).expect("a key");
        assert_eq!((key.algorithm.as_str(), key.key_id.as_str()), (SIGNED_CURVE25519, "AAAAHg"));
        let long = format!("signed_curve25519:{}", "x".repeat(10_000));
        for name in [":AAAAHg", "signed_curve25519", "signed_curve25519:", "", long.as_str()] {
            assert!(read(name, &good).is_err(), "{name}");
        }
        for (member, value) in [
            ("key", Value::Null),
            ("key", json!("short")),
            ("signatures", json!({})),
            ("signatures", json!({ "@alice:example.org": { "ed25519:PHONE": "short" } })),
            ("signatures", json!({ "@alice:example.org": { "ed25519:TABLET": signature } })),
            ("signatures", json!({ "@bob:example.org": { "ed25519:PHONE": signature } })),
            ("fallback", json!("yes")),
            ("padding", json!("x".repeat(3000))),
        ] {
            let mut wrong = good.clone();
            wrong[member] = value;
            assert!(read("signed_curve25519:A", &wrong).is_err(), "{wrong}");
        }
        assert!(read("signed_curve25519:A", &json!("A".repeat(43))).is_err());
        // Of another algorithm it is whatever its clients agree on.
        for (key, text) in [
            (json!("\u{e9}\n\"\\"), "\"\u{e9}\\n\\\"\\\\\""),
            (json!({ "b": 1, "a": [] }), "{\"a\":[],\"b\":1}"),
            (json!({}), "{}"),
        ] {
            let read = read("org.example.pq:A:B", &key).expect("a key");
            assert_eq!((read.algorithm.as_str(), read.key_id.as_str()), ("org.example.pq", "A:B"));
            assert_eq!(read.key, text);
        }
        for wrong in [json!(null), json!(1), json!([]), json!("x".repeat(2047))] {
            assert!(read("org.example.pq:A", &wrong).is_err(), "{wrong}");
        }
        // Another signature does not make another key; anything else does.
        let mut again = good.clone();
        again["signatures"]["@alice:example.org"]["ed25519:PHONE"] = json!("B".repeat(86));
        assert_eq!(read("signed_curve25519:AAAAHg", &again).expect("a key").digest, key.digest);
        again["fallback"] = json!(true);
        assert_ne!(read("signed_curve25519:AAAAHg", &again).expect("a key").digest, key.digest);
    }
}
