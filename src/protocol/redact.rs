//! The redaction algorithm of every room version ("Redactions" in rooms/v1 to v12): what of an event is essential.

use serde_json::{Map, Value};

use crate::protocol::Pdu;
use crate::protocol::room_version::RoomVersion;

/// Top-level keys that every version keeps.
const KEPT: [&str; 12] = [
    "auth_events",
    "content",
    "depth",
    "event_id",
    "hashes",
    "origin_server_ts",
    "prev_events",
    "room_id",
    "sender",
    "signatures",
    "state_key",
    "type",
];

/// Top-level keys that versions 1 to 10 keep as well.
const KEPT_BEFORE_VERSION_11: [&str; 3] = ["membership", "origin", "prev_state"];

const POWER_LEVEL_KEYS: [&str; 8] =
    ["ban", "events", "events_default", "kick", "redact", "state_default", "users", "users_default"];

/// The event with everything removed that is not essential. `unsigned` goes too.
pub fn redact(event: &Map<String, Value>, version: RoomVersion) -> Map<String, Value> {
    let event_type = event.get("type").and_then(Value::as_str).unwrap_or_default();
    let mut kept = Map::new();
    for (key, value) in event {
        if key == "content" {
            let content = value.as_object().map(|content| redact_content(event_type, content, version));
            kept.insert(key.clone(), Value::Object(content.unwrap_or_default()));
        } else if is_essential(key, version) {
            kept.insert(key.clone(), value.clone());
        }
    }
    kept
}

/// Whether redaction leaves this top-level key in place.
pub(crate) fn is_essential(key: &str, version: RoomVersion) -> bool {
    KEPT.contains(&key) || (!version.redact_by_version_11 && KEPT_BEFORE_VERSION_11.contains(&key))
}

/// The essential part of an event's content.
pub fn redact_content(
    event_type: &str,
    content: &Map<String, Value>,
    version: RoomVersion,
) -> Map<String, Value> {
    let mut kept = Map::new();
    let mut keep = |key: &str| {
        if let Some(value) = content.get(key) {
            kept.insert(key.to_owned(), value.clone());
        }
    };
    match event_type {
        "m.room.member" => {
            keep("membership");
            if version.redact_keeps_authoriser {
                keep("join_authorised_via_users_server");
            }
            if version.redact_by_version_11
                && let Some(Value::Object(invite)) = content.get("third_party_invite")
            {
                // Of the object only `signed` is kept. Where there is none, an empty object stays: the
                // specification does not say, and this is what Synapse does (the vectors call it disputed).
                let signed = invite.iter().filter(|(key, _)| *key == "signed");
                let signed = signed.map(|(key, value)| (key.clone(), value.clone())).collect();
                kept.insert("third_party_invite".to_owned(), Value::Object(signed));
            }
        }
        "m.room.create" if version.redact_by_version_11 => return content.clone(),
        "m.room.create" => keep("creator"),
        "m.room.join_rules" => {
            keep("join_rule");
            if version.redact_keeps_allow {
                keep("allow");
            }
        }
        "m.room.power_levels" => {
            POWER_LEVEL_KEYS.into_iter().for_each(&mut keep);
            if version.redact_by_version_11 {
                keep("invite");
            }
        }
        "m.room.aliases" if version.redact_keeps_aliases => keep("aliases"),
        "m.room.history_visibility" => keep("history_visibility"),
        "m.room.redaction" if version.redact_by_version_11 => keep("redacts"),
        _ => {}
    }
    kept
}

impl Pdu {
    /// The same event, redacted: same id, essential keys only.
    #[must_use]
    pub fn redacted(&self) -> Pdu {
        self.with_object(&redact(&self.to_object(), self.version()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::room_version::room_version;

    fn content(event_type: &str, content: Value, version: &str) -> Value {
        let version = room_version(version).expect("known");
        redact(json!({"type": event_type, "content": content}).as_object().expect("object"), version)["content"]
            .clone()
    }

    #[test]
    fn redaction_keeps_the_third_party_invites_signature_from_version_11_on() {
        let member = json!({"membership": "invite", "displayname": "x",
            "third_party_invite": {"display_name": "y", "signed": {"mxid": "@a:b"}}});
        assert_eq!(content("m.room.member", member.clone(), "10"), json!({"membership": "invite"}));
        assert_eq!(
            content("m.room.member", member, "11"),
            json!({"membership": "invite", "third_party_invite": {"signed": {"mxid": "@a:b"}}})
        );
        let odd = json!({"membership": "invite", "third_party_invite": "x"});
        assert_eq!(content("m.room.member", odd, "11"), json!({"membership": "invite"}));
    }

    #[test]
    fn redaction_of_an_event_of_the_wrong_shape_does_not_fail() {
        let version = room_version("12").expect("known");
        let odd = json!({"type": 7, "content": [1], "x": 1, "unsigned": {}});
        let redacted = redact(odd.as_object().expect("object"), version);
        assert_eq!(Value::Object(redacted), json!({"type": 7, "content": {}}));
        assert!(redact(&Map::new(), version).is_empty());
    }
}
