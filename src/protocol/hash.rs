//! Content hashes, reference hashes and the event ids made of them (server-server API, "Signing Events").

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::protocol::EventId;
use crate::protocol::json;
use crate::protocol::redact::{is_essential, redact_content};
use crate::protocol::room_version::{EventIdFormat, RoomVersion};

fn content_digest(event: &Map<String, Value>) -> [u8; 32] {
    Sha256::digest(json::canonical_event(event, &["hashes", "signatures", "unsigned"])).into()
}

/// The content hash of an event in unpadded base64: covers everything but `unsigned`, `signatures` and `hashes`.
pub fn content_hash(event: &Map<String, Value>) -> String {
    json::base64(&content_digest(event))
}

/// Whether `hashes.sha256` is there and is the event's content hash. Where it is not, the event is to be redacted.
pub fn content_hash_matches(event: &Map<String, Value>) -> bool {
    let said = event.get("hashes").and_then(|hashes| hashes.get("sha256")).and_then(Value::as_str);
    said.and_then(json::base64_decode).is_some_and(|said| said == content_digest(event))
}

/// Writes the content hash into the event, in place of any `hashes` that it had.
pub fn add_content_hash(event: &mut Map<String, Value>) {
    let hash = content_hash(event);
    event.insert("hashes".to_owned(), Value::Object(Map::from_iter([("sha256".to_owned(), hash.into())])));
}

/// The reference hash: SHA-256 of the redacted event without `signatures` and `unsigned`.
pub fn reference_hash(event: &Map<String, Value>, version: RoomVersion) -> [u8; 32] {
    Sha256::digest(essential_bytes(event, version)).into()
}

/// What the reference hash and the signatures of an event cover: its redacted form in canonical JSON, without
/// `signatures` and `unsigned`.
pub fn essential_bytes(event: &Map<String, Value>, version: RoomVersion) -> Vec<u8> {
    // The same as redacting and then leaving the signatures out, without a copy of everything that stays.
    let event_type = event.get("type").and_then(Value::as_str).unwrap_or_default();
    let content = event.get("content").and_then(Value::as_object);
    let content = content.map(|content| redact_content(event_type, content, version)).unwrap_or_default();
    let content = Value::Object(content);
    let essential = event.iter().filter(|(key, _)| *key != "signatures" && is_essential(key, version));
    json::canonical_members(essential.map(|(key, value)| match key.as_str() {
        "content" => (key, &content),
        _ => (key, value),
    }))
}

/// The event's id: read from it in room versions 1 and 2, computed in later ones. Errors: `M_BAD_JSON`.
pub fn event_id(event: &Map<String, Value>, version: RoomVersion) -> Result<EventId> {
    event_id_by(event, version, || essential_bytes(event, version))
}

/// The event's id, and the [`essential_bytes`] that its signatures cover as well. Errors: `M_BAD_JSON`.
pub(crate) fn event_id_and_essence(
    event: &Map<String, Value>,
    version: RoomVersion,
) -> Result<(EventId, Vec<u8>)> {
    let essence = essential_bytes(event, version);
    Ok((event_id_by(event, version, || &essence)?, essence))
}

fn event_id_by<B: AsRef<[u8]>>(
    event: &Map<String, Value>,
    version: RoomVersion,
    essence: impl FnOnce() -> B,
) -> Result<EventId> {
    let hash = |essence: B| -> [u8; 32] { Sha256::digest(essence.as_ref()).into() };
    let text = match version.event_id_format {
        EventIdFormat::InEvent => {
            let id = event.get("event_id").and_then(Value::as_str);
            let id = id.ok_or_else(|| Error::bad_json("the event has no event_id"))?;
            let id = EventId::parse(id).map_err(|_| Error::bad_json("not a valid event_id"))?;
            if id.server_name().is_none() {
                return Err(Error::bad_json("the event_id has no domain"));
            }
            return Ok(id);
        }
        EventIdFormat::HashStandardBase64 => json::base64(&hash(essence())),
        EventIdFormat::HashUrlSafeBase64 => json::base64_url(&hash(essence())),
    };
    EventId::parse(&format!("${text}"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_content_hash_matches_until_the_event_is_changed() {
        let mut event = json!({"type": "x", "content": {"body": "a"}}).as_object().expect("object").clone();
        assert!(!content_hash_matches(&event));
        add_content_hash(&mut event);
        event.insert("unsigned".to_owned(), json!({"age": 1}));
        event.insert("signatures".to_owned(), json!({}));
        assert!(content_hash_matches(&event));
        event.insert("content".to_owned(), json!({"body": "b"}));
        assert!(!content_hash_matches(&event));
        for odd in
            [json!(null), json!([]), json!({"sha256": 1}), json!({"sha256": "!"}), json!({"sha256": ""})]
        {
            event.insert("hashes".to_owned(), odd);
            assert!(!content_hash_matches(&event));
        }
    }
}
