//! Content hashes, reference hashes and the event ids made of them (server-server API, "Signing Events").

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::protocol::EventId;
use crate::protocol::json::{self, CanonicalObject, object_of};
use crate::protocol::redact;
use crate::protocol::room_version::{EventIdFormat, RoomVersion};

impl CanonicalObject {
    /// The content hash of an event in unpadded base64: covers everything but `unsigned`, `signatures` and `hashes`.
    pub fn content_hash(&self) -> String {
        json::base64(&self.content_digest())
    }

    fn content_digest(&self) -> [u8; 32] {
        Sha256::digest(self.without(&["hashes", "signatures", "unsigned"])).into()
    }

    /// Whether `hashes.sha256` is there and is the event's content hash. Where it is not, the event is to be redacted.
    pub fn content_hash_matches(&self) -> bool {
        let said = self.get("hashes").and_then(|hashes| json::member_of(hashes, "sha256"));
        let said = said.and_then(json::string).and_then(|said| json::base64_decode(&said));
        said.is_some_and(|said| said == self.content_digest())
    }

    /// The event with its content hash, in place of any `hashes` that it had.
    #[must_use]
    pub fn with_content_hash(&self) -> Self {
        let hashes = format!("{{\"sha256\":\"{}\"}}", self.content_hash());
        self.with("hashes", hashes.as_bytes())
    }

    /// What the reference hash and the signatures of an event cover: its redacted form in canonical JSON, without
    /// `signatures` and `unsigned`.
    pub fn essential_bytes(&self, version: RoomVersion) -> Vec<u8> {
        redact::redact(self, version).without(&["signatures"])
    }

    /// The reference hash: SHA-256 of the [`CanonicalObject::essential_bytes`].
    pub fn reference_hash(&self, version: RoomVersion) -> [u8; 32] {
        Sha256::digest(self.essential_bytes(version)).into()
    }

    /// The event's id: read from it in room versions 1 and 2, made of the reference hash in later ones. Errors:
    /// `M_BAD_JSON`.
    pub fn event_id(&self, version: RoomVersion) -> Result<EventId> {
        self.event_id_by(version, || self.reference_hash(version))
    }

    /// [`CanonicalObject::event_id`] with the [`CanonicalObject::essential_bytes`] at hand.
    pub(crate) fn event_id_with(&self, essence: &[u8], version: RoomVersion) -> Result<EventId> {
        self.event_id_by(version, || Sha256::digest(essence).into())
    }

    fn event_id_by(&self, version: RoomVersion, hash: impl FnOnce() -> [u8; 32]) -> Result<EventId> {
        // A dollar sign and 43 characters.
        let mut text = String::with_capacity(44);
        text.push('$');
        match version.event_id_format {
            EventIdFormat::InEvent => {
                let id = self.string("event_id");
                let id = id.ok_or_else(|| Error::bad_json("the event has no event_id"))?;
                let id = EventId::parse(&id).map_err(|_| Error::bad_json("not a valid event_id"))?;
                if id.server_name().is_none() {
                    return Err(Error::bad_json("the event_id has no domain"));
                }
                return Ok(id);
            }
            EventIdFormat::HashStandardBase64 => json::push_base64(&mut text, &hash()),
            EventIdFormat::HashUrlSafeBase64 => json::push_base64_url(&mut text, &hash()),
        }
        EventId::parse(&text)
    }
}

/// Writes the content hash into a tree, in place of any `hashes` that it had: for who makes an event step by step, as the
/// tests do that forge one. What this server makes itself is hashed and signed by [`crate::protocol::signatures::sign::seal`].
pub fn add_content_hash(event: &mut Map<String, Value>) {
    let hash = CanonicalObject::of(event).content_hash();
    event.insert("hashes".to_owned(), Value::Object(object_of([("sha256", hash.into())])));
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_content_hash_matches_until_the_event_is_changed() {
        let matches = |event: &Map<String, Value>| CanonicalObject::of(event).content_hash_matches();
        let mut event = json!({"type": "x", "content": {"body": "a"}}).as_object().expect("object").clone();
        assert!(!matches(&event));
        add_content_hash(&mut event);
        event.insert("unsigned".to_owned(), json!({"age": 1}));
        event.insert("signatures".to_owned(), json!({}));
        assert!(matches(&event));
        event.insert("content".to_owned(), json!({"body": "b"}));
        assert!(!matches(&event));
        for odd in
            [json!(null), json!([]), json!({"sha256": 1}), json!({"sha256": "!"}), json!({"sha256": ""})]
        {
            event.insert("hashes".to_owned(), odd);
            assert!(!matches(&event));
        }
    }
}
