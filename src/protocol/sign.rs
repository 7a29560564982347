//! Ed25519 signatures of JSON objects and events (appendices, "Signing JSON"; server-server API, "Signing Events").
//!
//! Nothing here fetches keys: whoever calls has gathered them, and is told which were missing. Signatures are verified
//! strictly (`verify_strict`), one by one: batch verification may disagree with single verification, and then two
//! servers would disagree about an event.

use std::borrow::Cow;
use std::fmt;

use ed25519_dalek::Signer;
use serde_json::{Map, Value};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::ids::{ServerName, UserId};
use crate::protocol::json::CanonicalObject;
use crate::protocol::pdu::{Membership, Pdu, Whole};
use crate::protocol::room_version::{EventIdFormat, RoomVersion};
use crate::protocol::{hash, json};

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
pub struct KeyAt {
    /// The key.
    pub key: VerifyKey,
    /// Events from before this moment may be signed with it.
    pub valid_until_ms: i64,
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

/// Adds our signature to an event, over its redacted form. `hashes` must be there already.
pub fn sign_event(
    object: &mut Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    version: RoomVersion,
) {
    let signature = key.sign_bytes(&hash::essential_bytes(object, version));
    insert_signature(object, server.as_str(), key.key_id(), signature);
}

/// Makes an event of this server of everything but `hashes` and `signatures`: adds both. Errors: as [`Pdu::parse`].
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

/// Why an event's signatures do not suffice.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SignatureError {
    /// The event does not say properly who has to have signed it.
    Malformed(&'static str),
    /// A server has to have signed it and has not.
    Unsigned(ServerName),
    /// It is signed by servers of whose keys none was at hand that was valid then. Each with the id of such a key.
    NoKey(Vec<(ServerName, String)>),
    /// A signature is wrong.
    Wrong(ServerName, String),
}

impl fmt::Display for SignatureError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Malformed(why) => f.write_str(why),
            Self::Unsigned(server) => write!(f, "the event is not signed by {server}"),
            Self::NoKey(keys) => {
                f.write_str("no valid key could be had for")?;
                keys.iter().take(3).try_for_each(|(server, key)| write!(f, " {server} {key}"))
            }
            Self::Wrong(server, key) => write!(f, "the signature of {server} with {key} is wrong"),
        }
    }
}

impl std::error::Error for SignatureError {}

/// As the make/send endpoints want it: 400 `M_INVALID_PARAM`.
impl From<SignatureError> for Error {
    fn from(e: SignatureError) -> Self {
        Self::invalid_param(e.to_string())
    }
}

/// Who has to have signed an event (server-server API, "Validating hashes and signatures on received events"):
/// - the sender's server, unless it is an invite by way of a third-party invite, which may be sent by another server;
/// - in room versions 1 and 2 the server in the event id;
/// - from version 8 on, for a join that names `join_authorised_via_users_server`, that user's server. (Rule 4.2 says so
///   of every membership; Synapse, and so the network, checks joins, which are the only ones that it can admit.)
///
/// Errors: `Malformed` if the authorising user is none.
pub fn required_signers(pdu: &Pdu) -> Result<Vec<ServerName>, SignatureError> {
    let content = pdu.membership().and_then(|_| CanonicalObject::read(pdu.content_raw().as_bytes()).ok());
    signers(pdu, content.as_ref().map_or(b"{}", |(content, _)| content.as_bytes()))
}

/// The same with the content in canonical form at hand; that of events without a membership does not matter.
fn signers(pdu: &Pdu, content: &[u8]) -> Result<Vec<ServerName>, SignatureError> {
    let mut servers = Vec::with_capacity(2);
    let membership = pdu.membership();
    if membership != Some(Membership::Invite) || json::member_of(content, "third_party_invite").is_none() {
        servers.push(pdu.sender().server());
    }
    let mut add = |server: ServerName| {
        if !servers.contains(&server) {
            servers.push(server);
        }
    };
    if pdu.version().event_id_format == EventIdFormat::InEvent {
        let server = pdu.event_id().server_name().and_then(|name| ServerName::parse(name).ok());
        add(server.ok_or(SignatureError::Malformed("the event id has no server"))?);
    }
    if pdu.version().restricted_join
        && membership == Some(Membership::Join)
        && let Some(user) = json::member_of(content, "join_authorised_via_users_server")
    {
        let user = json::string(user).and_then(|text| UserId::parse(&text).ok());
        let user = user.ok_or(SignatureError::Malformed("join_authorised_via_users_server is no user id"))?;
        add(user.server());
    }
    Ok(servers)
}

/// The keys that would serve to verify an event: of each required server those that it signed with.
pub fn wanted_keys(pdu: &Pdu) -> Vec<(ServerName, String)> {
    let object = pdu.canonical();
    let servers = required_signers(pdu).unwrap_or_default();
    let keys_of = |server: &ServerName| {
        let mut signatures = object.signatures_of(server.as_str());
        // That of a policy server's own event is not for its published keys to verify.
        signatures.retain(|(id, _)| *id != POLICY_KEY_ID);
        signatures.into_iter().map(|(id, _)| (server.clone(), id.into_owned())).collect::<Vec<_>>()
    };
    servers.iter().flat_map(keys_of).collect()
}

/// Finds a key by server and key id among those at hand.
pub type Keys<'a> = dyn Fn(&str, &str) -> Option<KeyAt> + Sync + 'a;

/// Checks that everyone who has to have signed an event has, with the keys at hand.
///
/// Of each required server all signatures with known keys must be right, and there must be one. Unknown keys, and from
/// room version 5 on keys that were no longer valid at the event's `origin_server_ts`, are skipped. A policy server's
/// signature says something else, and does not count here.
pub fn verify_event(pdu: &Pdu, keys: &Keys<'_>) -> Result<(), SignatureError> {
    verify_signers(pdu, &required_signers(pdu)?, keys)
}

/// Checks that one particular server has signed an event, required or not.
pub fn verify_event_by(pdu: &Pdu, server: &ServerName, keys: &Keys<'_>) -> Result<(), SignatureError> {
    verify_signers(pdu, std::slice::from_ref(server), keys)
}

fn verify_signers(pdu: &Pdu, servers: &[ServerName], keys: &Keys<'_>) -> Result<(), SignatureError> {
    let object = pdu.canonical();
    verify_object(pdu, (&object, &object.essential_bytes(pdu.version())), servers, keys)
}

fn verify_object(
    pdu: &Pdu,
    (object, message): (&CanonicalObject, &[u8]),
    servers: &[ServerName],
    keys: &Keys<'_>,
) -> Result<(), SignatureError> {
    let mut missing = Vec::new();
    for server in servers {
        let signatures = object.signatures_of(server.as_str());
        if signatures.is_empty() {
            return Err(SignatureError::Unsigned(server.clone()));
        }
        let mut verified = false;
        let mut unknown = Vec::new();
        for (key_id, signature) in signatures.into_iter().filter(|(id, _)| *id != POLICY_KEY_ID) {
            match keys(server.as_str(), &key_id) {
                Some(known) if is_valid_at(&known, pdu) => {
                    if !known.key.verifies(message, &signature) {
                        return Err(SignatureError::Wrong(server.clone(), key_id.into_owned()));
                    }
                    verified = true;
                }
                _ => unknown.push((server.clone(), key_id.into_owned())),
            }
        }
        if !verified {
            missing.append(&mut unknown);
        }
    }
    if missing.is_empty() { Ok(()) } else { Err(SignatureError::NoKey(missing)) }
}

/// Room version 5, "Signing key validity period".
fn is_valid_at(known: &KeyAt, pdu: &Pdu) -> bool {
    !pdu.version().enforce_key_validity || known.valid_until_ms >= pdu.origin_server_ts()
}

/// Why a received event is dropped before anybody asks whether it is allowed.
#[derive(Debug)]
pub enum ReceiptError {
    /// Step 1: not an event of this room version.
    Format(Error),
    /// Step 2: signatures.
    Signature(SignatureError),
}

impl fmt::Display for ReceiptError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Format(e) => f.write_str(e.message()),
            Self::Signature(e) => fmt::Display::fmt(e, f),
        }
    }
}

impl std::error::Error for ReceiptError {}

impl From<ReceiptError> for Error {
    fn from(e: ReceiptError) -> Self {
        match e {
            ReceiptError::Format(e) => e,
            ReceiptError::Signature(e) => e.into(),
        }
    }
}

/// Steps 1 to 3 of the checks on receipt: format, signatures, and content hash, where a wrong one makes the event its
/// redacted self.
pub fn check_received(json: &[u8], version: RoomVersion, keys: &Keys<'_>) -> Result<Pdu, ReceiptError> {
    let whole = Pdu::parse_whole(json, version).map_err(ReceiptError::Format)?;
    check_whole(whole, keys).map_err(ReceiptError::Signature)
}

/// Steps 2 and 3 for an event that was parsed before, for example to gather its keys.
pub fn check_parsed(pdu: &Pdu, keys: &Keys<'_>) -> Result<Pdu, SignatureError> {
    let object = pdu.canonical();
    let essence = object.essential_bytes(pdu.version());
    check_whole(Whole { pdu: pdu.clone(), object, essence }, keys)
}

fn check_whole(whole: Whole, keys: &Keys<'_>) -> Result<Pdu, SignatureError> {
    let Whole { pdu, object, essence } = whole;
    let content = object.get("content").unwrap_or_default();
    verify_object(&pdu, (&object, &essence), &signers(&pdu, content)?, keys)?;
    Ok(if object.content_hash_matches() { pdu } else { pdu.redacted() })
}

impl Pdu {
    /// The same event with one more signature of ours: on an invite to one of our users, or a join that one of our
    /// users authorises.
    #[must_use]
    pub fn signed(&self, server: &ServerName, key: &SigningKey) -> Pdu {
        let object = self.canonical();
        let signature = key.sign_bytes(&object.essential_bytes(self.version()));
        self.with_canonical(object.with_signature(server.as_str(), key.key_id(), &signature))
    }
}

#[cfg(test)]
#[path = "sign_tests.rs"]
mod tests;
