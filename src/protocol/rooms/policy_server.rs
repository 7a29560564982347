//! Policy servers (server-server API, "Policy Servers"; client-server API, `m.room.policy`): which one a room names,
//! which events it has to have signed, and whether it has. Who asks it for signatures is in
//! `service/events/policy_server.rs`.

use serde_json::{Map, Value};

use crate::protocol::ids::ServerName;
use crate::protocol::pdu::Pdu;
use crate::protocol::signatures::sign::{POLICY_KEY_ID, VerifyKey};
use crate::protocol::signatures::verify::VerifiedPdu;

/// The event type of the setting.
pub const POLICY_EVENT_TYPE: &str = "m.room.policy";

/// What `m.room.policy` says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PolicyServer {
    /// Who is to be asked.
    pub via: ServerName,
    /// The key that it signs events with, which is not the one that it signs requests with. None if what the room has
    /// is no ed25519 key: then no event can have a valid signature.
    pub key: Option<VerifyKey>,
}

impl PolicyServer {
    /// Reads the setting. None if it is not valid: "a string value for `via`" and "an object value for `public_keys`
    /// containing at least a string value for `ed25519`". A `via` that is no server name has no user in the room, and
    /// so is not used either.
    pub fn from_content(content: &Map<String, Value>) -> Option<Self> {
        let via = ServerName::parse(content.get("via")?.as_str()?).ok()?;
        let key = content.get("public_keys")?.as_object()?.get("ed25519")?.as_str()?;
        Some(Self { via, key: VerifyKey::from_base64(key).ok() })
    }

    /// Whether the event has a valid signature of it.
    pub fn has_signed(&self, event: &Pdu) -> bool {
        let object = event.canonical();
        let Some(key) = &self.key else { return false };
        let signatures = object.signatures_of(self.via.as_str());
        let Some((_, signature)) = signatures.into_iter().find(|(id, _)| *id == POLICY_KEY_ID) else {
            return false;
        };
        key.verifies(&object.essential_bytes(event.version()), &signature)
    }

    /// The event with the signature that the answer to `/sign` gives; those that it had before stay. None if it is not
    /// there or not valid.
    pub fn with_signature(&self, event: &VerifiedPdu, answer: &Map<String, Value>) -> Option<VerifiedPdu> {
        let signature = answer.get(self.via.as_str())?.get(POLICY_KEY_ID)?.as_str()?;
        let signed = event.with_signature(self.via.as_str(), POLICY_KEY_ID, signature).ok()?;
        self.has_signed(&signed).then_some(signed)
    }
}

/// Whether a policy server is asked about an event at all: about every one but the setting itself, so that a room can
/// always get rid of it.
pub fn is_checked(event: &Pdu) -> bool {
    event.event_type() != POLICY_EVENT_TYPE || event.state_key() != Some("")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::room_version::all;
    use crate::protocol::signatures::sign::SigningKey;
    use crate::protocol::test_events::{member, pdu};

    fn content(value: Value) -> Map<String, Value> {
        value.as_object().cloned().expect("an object")
    }

    fn setting(key: &SigningKey) -> PolicyServer {
        let setting =
            json!({ "via": "policy.example", "public_keys": { "ed25519": key.public_base64(), "x": 5 } });
        PolicyServer::from_content(&content(setting)).expect("a valid setting")
    }

    #[test]
    fn a_setting_that_lacks_something_is_none() {
        let key = SigningKey::generate([3; 32], "policy_server").public_base64();
        for broken in [
            json!({}),
            json!({ "via": "policy.example" }),
            json!({ "via": 5, "public_keys": { "ed25519": key } }),
            json!({ "via": "not a name", "public_keys": { "ed25519": key } }),
            json!({ "via": "policy.example", "public_keys": key }),
            json!({ "via": "policy.example", "public_keys": { "rsa": key } }),
            json!({ "via": "policy.example", "public_keys": { "ed25519": [key] } }),
        ] {
            assert_eq!(PolicyServer::from_content(&content(broken.clone())), None, "{broken}");
        }
        let unusable = json!({ "via": "policy.example", "public_keys": { "ed25519": "AAAA" } });
        assert_eq!(PolicyServer::from_content(&content(unusable)).expect("valid by the text").key, None);
    }

    #[test]
    fn a_signature_counts_if_the_rooms_key_made_it_and_leaves_the_event_what_it_was() {
        let (key, other) =
            (SigningKey::generate([3; 32], "policy_server"), SigningKey::generate([4; 32], "x"));
        let policy = setting(&key);
        for version in all() {
            let event = pdu(version, &member("@alice:a.example", "join"), &["a.example"]);
            let event = VerifiedPdu::unchecked(event);
            assert!(!policy.has_signed(&event));
            let message = event.canonical().essential_bytes(version);
            let answer = |key: &SigningKey, id: &str| {
                content(json!({ "policy.example": { id: key.sign_bytes(&message) }, "else.example": 5 }))
            };
            let signed = policy.with_signature(&event, &answer(&key, POLICY_KEY_ID)).expect("a good answer");
            assert!(
                policy.has_signed(&signed) && policy.has_signed(&signed.redacted().expect("still an event"))
            );
            assert_eq!(signed.event_id(), event.event_id());
            assert_eq!(signed.canonical().content_hash_matches(), event.canonical().content_hash_matches());
            let (ours, with) = (event.canonical(), signed.canonical());
            assert_eq!(
                ours.signatures_of("a.example"),
                with.signatures_of("a.example"),
                "what was signed before stays signed"
            );
            assert_eq!(policy.with_signature(&event, &answer(&other, POLICY_KEY_ID)), None);
            assert_eq!(policy.with_signature(&event, &answer(&key, "ed25519:1")), None);
            assert_eq!(policy.with_signature(&event, &Map::new()), None);
        }
    }
}
