//! Ed25519 signatures of JSON objects and events (appendices, "Signing JSON"; server-server API, "Signing Events").
//! What it takes to believe an event of somebody else's is in `verify`.
//!
//! Nothing here fetches keys: whoever calls has gathered them, and is told which were missing. Signatures are verified
//! strictly (`verify_strict`), one by one: batch verification may disagree with single verification, and then two
//! servers would disagree about an event.

use std::borrow::Cow;
use std::fmt;

use ed25519_dalek::Signer;
use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ids::ServerName;
use crate::protocol::json;
use crate::protocol::json::CanonicalObject;
use crate::protocol::pdu::{ParsedPdu, Pdu};
use crate::protocol::room_version::RoomVersion;

const ALGORITHM: &str = "ed25519:";

/// The id of the key that policy servers sign events with, whatever server it is. It is in the room's state and never
/// among the keys that a server publishes.
pub const POLICY_KEY_ID: &str = "ed25519:policy_server";

/// One of our own keys, with its id. The secret is wiped from memory when it is dropped.
pub struct SigningKey {
    key_id: String,
    key: ed25519_dalek::SigningKey,
}

impl SigningKey {
    /// A new key from 32 random bytes. `version` is the part of the key id behind `ed25519:`, of `[a-zA-Z0-9_]`.
    pub fn generate(random: [u8; 32], version: &str) -> Self {
        debug_assert!(is_key_version(version), "not a key version: {version}");
        Self { key_id: format!("{ALGORITHM}{version}"), key: ed25519_dalek::SigningKey::from_bytes(&random) }
    }

    /// A key that was made before. Errors: `M_INVALID_PARAM` if `key_id` is not `ed25519:` and `[a-zA-Z0-9_]+`.
    pub fn from_seed(key_id: &str, seed: [u8; 32]) -> Result<Self> {
        match key_id.strip_prefix(ALGORITHM) {
            Some(version) if is_key_version(version) => Ok(Self::generate(seed, version)),
            _ => Err(Error::invalid_param("not the id of an ed25519 key")),
        }
    }

    /// `ed25519:` and the key's version.
    pub fn key_id(&self) -> &str {
        &self.key_id
    }

    /// The secret: for our own database and for backups only.
    pub fn seed(&self) -> [u8; 32] {
        self.key.to_bytes()
    }

    /// The public key in unpadded base64.
    pub fn public_base64(&self) -> String {
        json::base64(self.key.verifying_key().as_bytes())
    }

    /// The public half.
    pub fn verify_key(&self) -> VerifyKey {
        VerifyKey(self.key.verifying_key())
    }

    /// The signature of some bytes in unpadded base64.
    pub fn sign_bytes(&self, message: &[u8]) -> String {
        json::base64(&self.key.sign(message).to_bytes())
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "SigningKey({})", self.key_id)
    }
}

fn is_key_version(version: &str) -> bool {
    !version.is_empty() && version.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_')
}

/// Somebody's public key, parsed.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct VerifyKey(ed25519_dalek::VerifyingKey);

impl VerifyKey {
    /// Reads a public key in base64. Errors: `M_INVALID_PARAM` if it is none.
    pub fn from_base64(text: &str) -> Result<Self> {
        let bytes: Option<[u8; 32]> = json::base64_decode(text).and_then(|bytes| bytes.try_into().ok());
        let key = bytes.and_then(|bytes| ed25519_dalek::VerifyingKey::from_bytes(&bytes).ok());
        key.map(Self).ok_or_else(|| Error::invalid_param("not an ed25519 public key"))
    }

    /// The key in unpadded base64.
    pub fn to_base64(&self) -> String {
        json::base64(self.0.as_bytes())
    }

    /// Whether `signature` (base64) is this key's signature of `message`.
    pub fn verifies(&self, message: &[u8], signature: &str) -> bool {
        let bytes = json::base64_decode(signature);
        let signature = bytes.and_then(|bytes| ed25519_dalek::Signature::from_slice(&bytes).ok());
        signature.is_some_and(|signature| self.0.verify_strict(message, &signature).is_ok())
    }
}

impl fmt::Debug for VerifyKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "VerifyKey({})", self.to_base64())
    }
}

/// A public key and how long it may be trusted: `valid_until_ts` of a current key (at most 7 days after it was
/// fetched, which is for the one who fetches to see to), `expired_ts` of an old one; milliseconds since the epoch.
#[derive(Debug, Clone, Copy)]
pub struct KeyAt<'a> {
    /// The key.
    pub key: VerifyKey,
    /// Events from before this moment may be signed with it.
    pub valid_until_ms: i64,
    /// Until when its server says so, or a notary that counts. For what is beyond, and for all if this is none, there is
    /// nothing but the word of the server that shows us a room.
    pub stated_until_ms: Option<i64>,
    /// Those of the same id that its server had before.
    pub replaced: &'a [ReplacedKey],
}

impl KeyAt<'_> {
    /// A key as its server states it.
    pub fn stated(key: VerifyKey, valid_until_ms: i64) -> Self {
        Self { key, valid_until_ms, stated_until_ms: Some(valid_until_ms), replaced: &[] }
    }
}

/// A key that its server replaced by another of the same id, without a word of the first, as one does that begins anew and
/// calls its key what it always does.
///
/// What it had signed until then stays good: events of the rooms that the server was in come again as history, and nobody
/// could sign them anew. Whoever has the lost key can date events back to when it was in use, as with any key that was
/// given up. So it counts for no event of later than that, in any version of a room, and for no request.
#[derive(Debug, Clone, Copy)]
pub struct ReplacedKey {
    /// The key.
    pub key: VerifyKey,
    /// When it was replaced, as far as we saw, or when it had ended before.
    pub until_ms: i64,
}

/// Adds a signature to an object, beside those that it has. What is signed is everything but `signatures` and
/// `unsigned`.
pub fn sign_json(object: &mut Map<String, Value>, server: &ServerName, key: &SigningKey) {
    let signature = key.sign_bytes(&signed_bytes(object));
    insert_signature(object, server.as_str(), key.key_id(), signature);
}

/// Checks one signature of an object. Errors: 401 `M_UNAUTHORIZED`.
pub fn verify_json(object: &Map<String, Value>, server: &str, key_id: &str, key: &VerifyKey) -> Result<()> {
    let signatures = signatures_of(object, server);
    let Some((_, signature)) = signatures.into_iter().find(|(id, _)| *id == key_id) else {
        return Err(Error::new(ErrCode::Unauthorized, format!("not signed by {server} with {key_id}")));
    };
    if key.verifies(&signed_bytes(object), signature) {
        Ok(())
    } else {
        Err(Error::new(ErrCode::Unauthorized, format!("the signature of {server} with {key_id} is wrong")))
    }
}

/// What the signatures of an object cover.
fn signed_bytes(object: &Map<String, Value>) -> Vec<u8> {
    json::canonical_event(object, &["signatures", "unsigned"])
}

/// Adds a signature to an event, over its redacted form: for who makes an event step by step, as the tests do that forge
/// one. `hashes` must be there already.
pub fn sign_event(
    object: &mut Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    version: RoomVersion,
) {
    let signature = key.sign_bytes(&CanonicalObject::of(object).essential_bytes(version));
    insert_signature(object, server.as_str(), key.key_id(), signature);
}

/// Makes an event of this server of everything but `hashes` and `signatures`: adds both. Others may have to sign it
/// too, so this alone does not make it one that a room may take (see `verify`). Errors: as [`Pdu::parse`].
pub fn seal(
    object: &Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    version: RoomVersion,
) -> Result<Pdu> {
    // Read again, which bounds it and looks at its numbers.
    let (object, seen) = CanonicalObject::read(CanonicalObject::of(object).as_bytes())?;
    let object = object.with_content_hash();
    let essence = object.essential_bytes(version);
    let signature = key.sign_bytes(&essence);
    let object = object.with_signature(server.as_str(), key.key_id(), &signature);
    Pdu::from_canonical(&object, seen, &essence, version)
}

/// Sets `signatures[server][key_id]` in a tree; whatever of the way there is not an object is replaced.
fn insert_signature(
    object: &mut Map<String, Value>,
    server: &str,
    key_id: &str,
    signature: impl Into<Value>,
) {
    fn child<'a>(object: &'a mut Map<String, Value>, key: &str) -> &'a mut Map<String, Value> {
        let value = object.entry(key).or_insert_with(|| Value::Object(Map::new()));
        if !value.is_object() {
            *value = Value::Object(Map::new());
        }
        value.as_object_mut().expect("it was just made an object")
    }
    child(child(object, "signatures"), server).insert(key_id.to_owned(), signature.into());
}

/// The ed25519 signatures that an object has of a server, as (key id, signature in base64). Other algorithms, and
/// values that are no strings, are left out (appendices, "Checking for a Signature", step 2).
pub fn signatures_of<'a>(object: &'a Map<String, Value>, server: &str) -> Vec<(&'a str, &'a str)> {
    let of_server = object.get("signatures").and_then(|s| s.get(server)).and_then(Value::as_object);
    let all = of_server.into_iter().flatten().filter_map(|(id, value)| Some((id.as_str(), value.as_str()?)));
    all.filter(|(id, _)| id.strip_prefix(ALGORITHM).is_some_and(|version| !version.is_empty())).collect()
}

impl CanonicalObject {
    /// [`signatures_of`] for an object in canonical form.
    pub fn signatures_of(&self, server: &str) -> Vec<(Cow<'_, str>, Cow<'_, str>)> {
        let of_server = self.get("signatures").and_then(|signatures| json::member_of(signatures, server));
        let all = json::members_of(of_server.unwrap_or_default());
        let all = all.filter_map(|(id, value)| Some((json::string(id)?, json::string(value)?)));
        all.filter(|(id, _)| id.strip_prefix(ALGORITHM).is_some_and(|version| !version.is_empty())).collect()
    }

    /// The object with `signatures[server][key_id]` set; whatever of the way there is not an object is replaced.
    #[must_use]
    pub fn with_signature(&self, server: &str, key_id: &str, signature: &str) -> Self {
        let object = |text: Option<&[u8]>| {
            let read = text.and_then(|text| CanonicalObject::read(text).ok());
            read.map_or_else(|| CanonicalObject::of(&Map::new()), |(object, _)| object)
        };
        let all = object(self.get("signatures"));
        let of_server = object(all.get(server)).with(key_id, &json::canonical(&Value::from(signature)));
        self.with("signatures", all.with(server, of_server.as_bytes()).as_bytes())
    }
}

impl Pdu {
    /// This event with one more signature. Errors: 413 `M_TOO_LARGE` if there is no room for it.
    pub fn signed(&self, server: &ServerName, key: &SigningKey) -> Result<Pdu> {
        Ok(ParsedPdu::of(self).signed(server, key)?.pdu)
    }
}

impl ParsedPdu {
    /// This event with one more signature, which is no part of what signatures cover. Errors: as [`Pdu::signed`].
    pub(crate) fn signed(self, server: &ServerName, key: &SigningKey) -> Result<Self> {
        let signature = key.sign_bytes(&self.essence);
        let object = self.object.with_signature(server.as_str(), key.key_id(), &signature);
        let pdu = self.pdu.with_canonical(object.clone())?;
        Ok(Self { pdu, object, ..self })
    }
}

#[cfg(test)]
#[path = "sign_tests.rs"]
mod tests;
