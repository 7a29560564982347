//! Invites that redeem a third-party invite: rules 5.4.1.2 to 5.4.1.8 (numbers of version 12).

use serde_json::{Map, Value};

use super::StateLookup;
use crate::protocol::json;
use crate::protocol::pdu::Pdu;
use crate::protocol::signatures::sign::VerifyKey;

pub(super) enum ThirdPartyCheck {
    Allowed,
    /// The number of the rule below 5.4.1, and why.
    Failed(u8, &'static str),
}

/// So many signatures and public keys are tried. The specification has no limit; without one an event of 64 KiB
/// could ask for a hundred thousand verifications. Real invites have one signature and two keys.
const SIGNATURES_TRIED_MAX: usize = 16;
const KEYS_TRIED_MAX: usize = 16;

/// `invite` is `content.third_party_invite` of the event; the ban of the target was checked before.
pub(super) fn check(event: &Pdu, target: &str, invite: &Value, state: StateLookup<'_>) -> ThirdPartyCheck {
    // 5.4.1.2.
    let Some(signed) = invite.get("signed") else {
        return ThirdPartyCheck::Failed(2, "the third-party invite is not signed");
    };
    // 5.4.1.3.
    let (Some(signed), Some(mxid), Some(token)) =
        (signed.as_object(), text(signed, "mxid"), text(signed, "token"))
    else {
        return ThirdPartyCheck::Failed(3, "the third-party invite lacks mxid or token");
    };
    // 5.4.1.4.
    if mxid != target {
        return ThirdPartyCheck::Failed(4, "the third-party invite is for another user");
    }
    // 5.4.1.5.
    let Some(issued) = state("m.room.third_party_invite", token) else {
        return ThirdPartyCheck::Failed(5, "the room has no third-party invite with this token");
    };
    // 5.4.1.6.
    if issued.sender() != event.sender() {
        return ThirdPartyCheck::Failed(6, "the third-party invite was issued by another user");
    }
    // 5.4.1.7.
    if keys_that_signed(signed, &issued.content()).next().is_some() {
        return ThirdPartyCheck::Allowed;
    }
    // 5.4.1.8.
    ThirdPartyCheck::Failed(8, "no signature of the third-party invite matches a public key in the room")
}

fn text<'v>(object: &'v Value, key: &str) -> Option<&'v str> {
    object.get(key)?.as_str()
}

/// A key that `m.room.third_party_invite` offers, and where it says to ask whether the key was revoked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OfferedKey {
    /// As the event has it.
    pub public_key: String,
    /// None: "the key must be considered valid indefinitely".
    pub key_validity_url: Option<String>,
}

/// Which of the keys that `m.room.third_party_invite` (`issued`, its content) offers have signed.
pub fn keys_that_signed(
    signed: &Map<String, Value>,
    issued: &Map<String, Value>,
) -> impl Iterator<Item = OfferedKey> {
    let servers = signed.get("signatures").and_then(Value::as_object);
    let signatures: Vec<String> = servers
        .into_iter()
        .flat_map(Map::values)
        .filter_map(Value::as_object)
        .flatten()
        .filter(|(key_id, _)| key_id.starts_with("ed25519:"))
        .take(SIGNATURES_TRIED_MAX)
        .filter_map(|(_, signature)| signature.as_str().map(str::to_owned))
        .collect();
    let message = json::canonical_event(signed, &["signatures", "unsigned"]);
    offered_keys(issued).into_iter().filter(move |offered| {
        let key = VerifyKey::from_base64(&standard_base64(&offered.public_key));
        key.is_ok_and(|key| signatures.iter().any(|signature| key.verifies(&message, signature)))
    })
}

fn offered_keys(issued: &Map<String, Value>) -> Vec<OfferedKey> {
    let listed = issued.get("public_keys").and_then(Value::as_array).into_iter().flatten();
    let entries = listed.filter_map(Value::as_object);
    let keys = std::iter::once(issued).chain(entries).take(KEYS_TRIED_MAX).filter_map(|entry| {
        let text = |key: &str| entry.get(key).and_then(Value::as_str).map(str::to_owned);
        Some(OfferedKey { public_key: text("public_key")?, key_validity_url: text("key_validity_url") })
    });
    keys.collect()
}

/// Identity servers write keys in the URL-safe alphabet too.
fn standard_base64(text: &str) -> String {
    text.replace('-', "+").replace('_', "/")
}
