//! The redaction algorithm of every room version ("Redactions" in rooms/v1 to v12): what of an event is essential.

use std::borrow::Cow;

use crate::error::Result;
use crate::protocol::Pdu;
use crate::protocol::json::{self, CanonicalObject};
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

/// What is kept of power levels; the last from version 11 on.
const POWER_LEVEL_KEYS: [&str; 9] = [
    "ban",
    "events",
    "events_default",
    "kick",
    "redact",
    "state_default",
    "users",
    "users_default",
    "invite",
];

/// What redaction leaves of an event's content.
enum Kept {
    Everything,
    /// These keys.
    Keys(&'static [&'static str]),
    /// These, and of `third_party_invite` only `signed`. If that is not there, or its holder is not an object, what
    /// Synapse does is done, for the specification does not say: an empty object stays, or nothing.
    WithThirdPartySignature(&'static [&'static str]),
}

/// What of the content of an event of this type is essential.
fn kept_of_content(event_type: &str, version: RoomVersion) -> Kept {
    Kept::Keys(match event_type {
        "m.room.member" => {
            let keys: &[&str] = match version.redact_keeps_authoriser {
                true => &["join_authorised_via_users_server", "membership"],
                false => &["membership"],
            };
            return match version.redact_by_version_11 {
                true => Kept::WithThirdPartySignature(keys),
                false => Kept::Keys(keys),
            };
        }
        "m.room.create" if version.redact_by_version_11 => return Kept::Everything,
        "m.room.create" => &["creator"],
        "m.room.join_rules" if version.redact_keeps_allow => &["allow", "join_rule"],
        "m.room.join_rules" => &["join_rule"],
        "m.room.power_levels" if version.redact_by_version_11 => &POWER_LEVEL_KEYS,
        "m.room.power_levels" => POWER_LEVEL_KEYS.split_last().map_or(&[], |(_, keys)| keys),
        "m.room.aliases" if version.redact_keeps_aliases => &["aliases"],
        "m.room.history_visibility" => &["history_visibility"],
        "m.room.redaction" if version.redact_by_version_11 => &["redacts"],
        _ => &[],
    })
}

/// The event with everything removed that is not essential. `unsigned` goes too.
pub fn redact(event: &CanonicalObject, version: RoomVersion) -> CanonicalObject {
    let event_type = event.string("type").unwrap_or_default();
    let kept = event.members().filter_map(|(key, value)| match key {
        b"\"content\"" => Some((key, redact_content(&event_type, value, version))),
        _ if is_essential(key, version) => Some((key, Cow::Borrowed(value))),
        _ => None,
    });
    CanonicalObject::from_members(kept)
}

/// Whether redaction leaves this top-level key (in canonical form) in place.
fn is_essential(key: &[u8], version: RoomVersion) -> bool {
    let is = |kept: &&str| key.len() == kept.len() + 2 && &key[1..=kept.len()] == kept.as_bytes();
    KEPT.iter().any(is) || (!version.redact_by_version_11 && KEPT_BEFORE_VERSION_11.iter().any(is))
}

/// The essential part of an event's content. One that is no object becomes an empty one.
fn redact_content<'c>(event_type: &str, content: &'c [u8], version: RoomVersion) -> Cow<'c, [u8]> {
    let is_object = content.first() == Some(&b'{');
    let (keys, with_signature) = match kept_of_content(event_type, version) {
        Kept::Everything if is_object => return Cow::Borrowed(content),
        Kept::Everything => (&[][..], false),
        Kept::Keys(keys) => (keys, false),
        Kept::WithThirdPartySignature(keys) => (keys, true),
    };
    let is_kept = |key: &[u8]| keys.iter().any(|kept| key[1..key.len() - 1] == *kept.as_bytes());
    let kept = json::members_of(content).filter_map(|(key, value)| match key {
        b"\"third_party_invite\"" if with_signature && value.first() == Some(&b'{') => {
            let signed = json::members_of(value).filter(|(key, _)| *key == b"\"signed\"");
            let signed = CanonicalObject::from_members(signed.map(|(key, value)| (key, value.into())));
            Some((key, Cow::Owned(signed.into_bytes())))
        }
        _ if is_kept(key) => Some((key, Cow::Borrowed(value))),
        _ => None,
    });
    Cow::Owned(CanonicalObject::from_members(kept).into_bytes())
}

impl Pdu {
    /// This event, redacted: its id stays, essential keys only. Errors: none that an event could cause.
    pub fn redacted(&self) -> Result<Pdu> {
        self.with_canonical(redact(&self.canonical(), self.version()))
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::protocol::room_version::room_version;

    fn redacted(event: &Value, version: &str) -> Value {
        let version = room_version(version).expect("known");
        let event = CanonicalObject::of(event.as_object().expect("object"));
        serde_json::from_slice(redact(&event, version).as_bytes()).expect("JSON")
    }

    fn content(event_type: &str, content: Value, version: &str) -> Value {
        let event = json!({"type": event_type, "content": content});
        redacted(&event, version)["content"].clone()
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
        let odd = json!({"type": 7, "content": [1], "x": 1, "unsigned": {}, "\"": 1, "\\content": 1, "": 1});
        assert_eq!(redacted(&odd, "12"), json!({"type": 7, "content": {}}));
        assert_eq!(redacted(&json!({"type": "m.room.create", "content": 1}), "12")["content"], json!({}));
        assert_eq!(redacted(&json!({}), "12"), json!({}));
    }
}
