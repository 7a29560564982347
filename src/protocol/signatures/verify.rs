//! What it takes to believe an event that somebody else made (server-server API, "Validating hashes and signatures on
//! received events"), and the type that says that this was done.
//!
//! The order is: the form that is kept first (the event, or its redacted self if its content hash is wrong), then who
//! has to have signed *that* form, then a piece of evidence for each of them. Evidence is a value that only a
//! verified signature makes. What was not objected to is not thereby believed: without evidence there is no
//! [`VerifiedPdu`], and nothing else gets into a room.

use std::fmt;
use std::ops::Deref;

use crate::error::{Error, Result};
use crate::protocol::ids::{ServerName, UserId};
use crate::protocol::json::{self, CanonicalObject};
use crate::protocol::pdu::{Membership, ParsedPdu, Pdu};
use crate::protocol::room_version::{EventIdFormat, RoomVersion};
use crate::protocol::signatures::sign::{KeyAt, POLICY_KEY_ID, SigningKey, seal};

/// Evidence that a server has signed an event: only a verified signature makes one. With it: whose word it rests on that
/// the key is that server's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignedBy(ServerName, Proof);

/// How it is known that an event is signed by those who have to have signed it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// By keys that their servers state, or notaries that count.
    Certain,
    /// By a key, at least, for which there is nothing but the word of the server that shows us the room. Good for that
    /// room as that server shows it, and for nothing else.
    Vouched,
    /// It is from our own database, which knows.
    Stored,
}

impl SignedBy {
    /// Who has signed.
    pub fn server(&self) -> &ServerName {
        &self.0
    }
}

/// An event in the form that is kept, signed by everyone who has to have signed that form. Whether a room allows it
/// is another question; so is whether an invite by way of a third-party invite, which nobody has to sign, is one
/// (rule 5.4.1).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct VerifiedPdu {
    pdu: Pdu,
    whole: bool,
    proof: Proof,
}

impl Deref for VerifiedPdu {
    type Target = Pdu;

    fn deref(&self) -> &Pdu {
        &self.pdu
    }
}

impl From<VerifiedPdu> for Pdu {
    fn from(event: VerifiedPdu) -> Pdu {
        event.pdu
    }
}

impl VerifiedPdu {
    /// The event, if there is evidence for each server that has to have signed it. Errors: who has not.
    fn with_evidence(kept: Pdu, whole: bool, evidence: &[SignedBy]) -> Result<Self, SignatureError> {
        let lacking = |server: &ServerName| !evidence.iter().any(|signed| signed.server() == server);
        match required_signers(&kept)?.into_iter().find(lacking) {
            Some(server) => Err(SignatureError::Unsigned(server)),
            None => {
                let is_vouched = evidence.iter().any(|signed| signed.1 == Proof::Vouched);
                Ok(Self { pdu: kept, whole, proof: if is_vouched { Proof::Vouched } else { Proof::Certain } })
            }
        }
    }

    /// An event of this server, of everything but `hashes` and `signatures`. Errors: as [`Pdu::parse`]; 400
    /// `M_INVALID_PARAM` if another server would have to sign it too.
    pub fn seal(
        object: &serde_json::Map<String, serde_json::Value>,
        server: &ServerName,
        key: &SigningKey,
        version: RoomVersion,
    ) -> Result<Self> {
        let pdu = seal(object, server, key, version)?;
        // It was signed by the line above.
        Ok(Self::with_evidence(pdu, true, &[SignedBy(server.clone(), Proof::Certain)])?)
    }

    /// An event from our own database, where it came as a verified one. For the store alone.
    pub(crate) fn from_store(pdu: Pdu) -> Self {
        let whole = pdu.canonical().content_hash_matches();
        Self { pdu, whole, proof: Proof::Stored }
    }

    /// An event that a test made.
    #[cfg(test)]
    pub(crate) fn unchecked(pdu: Pdu) -> Self {
        Self { pdu, whole: true, proof: Proof::Certain }
    }

    /// How it is known who has signed it.
    pub fn proof(&self) -> Proof {
        self.proof
    }

    /// Whether it has all of its content: its content hash is right.
    pub fn is_whole(&self) -> bool {
        self.whole
    }

    /// The event with one more signature, which takes no evidence away: neither a policy server's nor our own is of a
    /// server that signed before.
    pub(crate) fn with_signature(&self, server: &str, key_id: &str, signature: &str) -> Result<Self> {
        let pdu = self.with_canonical(self.canonical().with_signature(server, key_id, signature))?;
        Ok(Self { pdu, whole: self.whole, proof: self.proof })
    }

    /// The event with one more signature of ours: on an invite to a local user, or a join that a local user
    /// authorises.
    pub fn signed(&self, server: &ServerName, key: &SigningKey) -> Result<Self> {
        Ok(Self { pdu: self.pdu.signed(server, key)?, whole: self.whole, proof: self.proof })
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
    /// A signature is wrong: whose, with which key, and when the event was made.
    Wrong(ServerName, String, i64),
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
            Self::Wrong(server, key, _) => write!(f, "the signature of {server} with {key} is wrong"),
        }
    }
}

impl std::error::Error for SignatureError {}

/// As the make/send endpoints want it: 400 `M_INVALID_PARAM` for what is no proper event, which "is invalid in some way"; 403
/// `M_FORBIDDEN` for what others have not signed, which nobody may hand in. Synapse says so too. That a key could not be had
/// just now is no such verdict, by which a peer would take what it hands in as refused for good.
impl From<SignatureError> for Error {
    fn from(e: SignatureError) -> Self {
        match e {
            SignatureError::Malformed(why) => Self::invalid_param(why),
            SignatureError::NoKey(_) => Self::invalid_param(e.to_string()),
            SignatureError::Unsigned(_) | SignatureError::Wrong(..) => Self::forbidden(e.to_string()),
        }
    }
}

/// Who has to have signed an event as it is:
/// - the sender's server, unless it is an invite by way of a third-party invite, which may be sent by another server;
/// - in room versions 1 and 2 the server in the event id;
/// - from version 8 on, for a join that names `join_authorised_via_users_server`, that user's server. (Rule 4.2 says so
///   of every membership; Synapse, and so the network, checks joins, which are the only ones that it can admit.)
///
/// Errors: `Malformed` if the authorising user is none.
pub fn required_signers(pdu: &Pdu) -> Result<Vec<ServerName>, SignatureError> {
    let content = pdu.membership().and_then(|_| CanonicalObject::read(pdu.content_raw().as_bytes()).ok());
    let content = content.as_ref().map_or(&b"{}"[..], |(content, _)| content.as_bytes());
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

/// The keys that would serve to verify an event: those that its sender's server and the others who may have to sign it
/// (whichever form of it is kept) signed with.
pub fn wanted_keys(pdu: &Pdu) -> Vec<(ServerName, String)> {
    wanted_keys_of(pdu, &pdu.canonical())
}

/// [`wanted_keys`] with the event's canonical form at hand.
pub(crate) fn wanted_keys_of(pdu: &Pdu, object: &CanonicalObject) -> Vec<(ServerName, String)> {
    let mut servers = required_signers(pdu).unwrap_or_default();
    let sender = pdu.sender().server();
    if !servers.contains(&sender) {
        servers.push(sender);
    }
    let keys_of = |server: &ServerName| {
        let signatures = counting_signatures(object, server);
        signatures.map(|(id, _)| (server.clone(), id)).collect::<Vec<_>>()
    };
    servers.iter().flat_map(keys_of).collect()
}

/// The signatures of a server that may count: "The policy server key is not expected to be published and therefore
/// should be skipped at this stage."
fn counting_signatures<'o>(
    object: &'o CanonicalObject,
    server: &ServerName,
) -> impl Iterator<Item = (String, String)> + use<'o> {
    let all = object.signatures_of(server.as_str()).into_iter();
    all.filter(|(id, _)| counts(id)).map(|(id, signature)| (id.into_owned(), signature.into_owned()))
}

/// Whether a signature with this key can say that a server has signed an event.
pub(crate) fn counts(key_id: &str) -> bool {
    key_id != POLICY_KEY_ID && key_id.strip_prefix("ed25519:").is_some_and(|version| !version.is_empty())
}

/// Finds a key by server and key id among those at hand.
pub type KeyLookup<'a> = dyn Fn(&str, &str) -> Option<KeyAt<'a>> + Sync + 'a;

/// The evidence that one particular server has signed an event, required or not, with the keys at hand.
///
/// All its signatures with known keys must be right, and there must be one. Unknown keys, and from room version 5 on
/// keys that were no longer valid at the event's `origin_server_ts`, are skipped. A policy server's signature says
/// something else, and does not count here. Where a server replaced a key by another of the same id, either serves for
/// what was made before that.
pub fn verify_event_by(
    pdu: &Pdu,
    server: &ServerName,
    keys: &KeyLookup<'_>,
) -> Result<SignedBy, SignatureError> {
    let object = pdu.canonical();
    evidence_of(pdu, (&object, &object.essential_bytes(pdu.version())), server, keys)
}

/// The evidence of everyone who has to have signed an event as it is: the signatures' part of what [`check_received`]
/// asks, for who asks no more (the vectors, which have events without hashes).
pub fn verify_event(pdu: &Pdu, keys: &KeyLookup<'_>) -> Result<Vec<SignedBy>, SignatureError> {
    let object = pdu.canonical();
    all_evidence(pdu, (&object, &object.essential_bytes(pdu.version())), keys)
}

fn all_evidence(
    pdu: &Pdu,
    signed: (&CanonicalObject, &[u8]),
    keys: &KeyLookup<'_>,
) -> Result<Vec<SignedBy>, SignatureError> {
    let servers = required_signers(pdu)?;
    let (mut evidence, mut missing) = (Vec::with_capacity(servers.len()), Vec::new());
    for server in &servers {
        match evidence_of(pdu, signed, server, keys) {
            Ok(signed) => evidence.push(signed),
            Err(SignatureError::NoKey(mut keys)) => missing.append(&mut keys),
            Err(e) => return Err(e),
        }
    }
    if missing.is_empty() { Ok(evidence) } else { Err(SignatureError::NoKey(missing)) }
}

fn evidence_of(
    pdu: &Pdu,
    (object, message): (&CanonicalObject, &[u8]),
    server: &ServerName,
    keys: &KeyLookup<'_>,
) -> Result<SignedBy, SignatureError> {
    let mut evidence = None;
    let mut unknown = Vec::new();
    for (key_id, signature) in counting_signatures(object, server) {
        let known = keys(server.as_str(), &key_id);
        let valid = known.filter(|known| is_valid_at(known, pdu));
        let proof = match (&known, &valid) {
            (_, Some(valid)) if valid.key.verifies(message, &signature) => proof_by(valid, pdu),
            (Some(known), _) if is_by_replaced(known, pdu, (message, &signature)) => Proof::Certain,
            (_, Some(_)) => {
                return Err(SignatureError::Wrong(server.clone(), key_id, pdu.origin_server_ts()));
            }
            (_, None) => {
                unknown.push((server.clone(), key_id));
                continue;
            }
        };
        // Of several signatures one suffices whose key is certain.
        if !matches!(evidence, Some(SignedBy(_, Proof::Certain))) {
            evidence = Some(SignedBy(server.clone(), proof));
        }
    }
    match (evidence, unknown.is_empty()) {
        (Some(evidence), _) => Ok(evidence),
        (None, false) => Err(SignatureError::NoKey(unknown)),
        (None, true) => Err(SignatureError::Unsigned(server.clone())),
    }
}

/// Room version 5, "Signing key validity period".
fn is_valid_at(known: &KeyAt<'_>, pdu: &Pdu) -> bool {
    !pdu.version().enforce_key_validity || known.valid_until_ms >= pdu.origin_server_ts()
}

/// Whether an event is signed with a key from before this one, in whose time.
fn is_by_replaced(known: &KeyAt<'_>, pdu: &Pdu, (message, signature): (&[u8], &str)) -> bool {
    let mut of_its_time = known.replaced.iter().filter(|old| old.until_ms >= pdu.origin_server_ts());
    of_its_time.any(|old| old.key.verifies(message, signature))
}

/// Whose word it rests on that a valid key was its server's when the event was made.
fn proof_by(known: &KeyAt<'_>, pdu: &Pdu) -> Proof {
    let is_stated = |until: i64| !pdu.version().enforce_key_validity || until >= pdu.origin_server_ts();
    if known.stated_until_ms.is_some_and(is_stated) { Proof::Certain } else { Proof::Vouched }
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
pub fn check_received(
    json: &[u8],
    version: RoomVersion,
    keys: &KeyLookup<'_>,
) -> Result<VerifiedPdu, ReceiptError> {
    let whole = Pdu::parse_whole(json, version).map_err(ReceiptError::Format)?;
    check_whole(whole, keys).map_err(ReceiptError::Signature)
}

/// Steps 2 and 3 for an event that was parsed before, for example to gather its keys.
pub fn check_parsed(pdu: &Pdu, keys: &KeyLookup<'_>) -> Result<VerifiedPdu, SignatureError> {
    check_whole(ParsedPdu::of(pdu), keys)
}

/// [`check_parsed`] with what was at hand after that.
pub(crate) fn check_whole(whole: ParsedPdu, keys: &KeyLookup<'_>) -> Result<VerifiedPdu, SignatureError> {
    // Signatures cover the redacted form, and so are the same of both.
    let (is_whole, ParsedPdu { pdu, object, essence, .. }) = (whole.is_whole(), whole);
    let kept = match is_whole {
        true => pdu,
        false => pdu.redacted().map_err(|_| SignatureError::Malformed("the event cannot be redacted"))?,
    };
    let evidence = all_evidence(&kept, (&object, &essence), keys)?;
    VerifiedPdu::with_evidence(kept, is_whole, &evidence)
}

#[cfg(test)]
#[path = "verify_tests.rs"]
mod tests;
