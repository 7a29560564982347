//! A first look at an event that was received: enough to sort a room's events, and to know whose keys it takes to check
//! them, before anything is checked. Borrows from the text, so that a look at fifty thousand costs little.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;
use serde_json::value::RawValue;

use crate::order;
use crate::protocol::ids::{EventId, ServerName, UserId};
use crate::protocol::pdu::EVENT_AS_WRITTEN_BYTES_MAX;
use crate::protocol::room_version::{EventIdFormat, RoomVersion};
use crate::protocol::signatures::verify;

/// What is seen. Nothing of it has been checked.
#[derive(Debug, Deserialize)]
pub struct UncheckedEvent<'a> {
    /// `type`.
    #[serde(borrow, rename = "type")]
    pub event_type: Cow<'a, str>,
    /// `state_key`.
    #[serde(borrow, default)]
    pub state_key: Option<Cow<'a, str>>,
    /// `sender`.
    #[serde(borrow)]
    pub sender: Cow<'a, str>,
    /// `origin_server_ts`.
    pub origin_server_ts: i64,
    #[serde(borrow, default)]
    event_id: Option<Cow<'a, str>>,
    #[serde(borrow)]
    content: MemberContent<'a>,
    #[serde(borrow)]
    signatures: BTreeMap<Cow<'a, str>, BTreeMap<Cow<'a, str>, IgnoredAny>>,
}

#[derive(Debug, Deserialize)]
struct MemberContent<'a> {
    #[serde(borrow, default, rename = "join_authorised_via_users_server")]
    authoriser: Option<&'a RawValue>,
}

impl<'a> UncheckedEvent<'a> {
    /// Looks at an event. None if it is no event, too large to be one, or written so oddly (a key twice) that it takes
    /// more than a unchecked.
    pub fn at(json: &'a [u8]) -> Option<Self> {
        if json.len() > EVENT_AS_WRITTEN_BYTES_MAX {
            return None;
        }
        serde_json::from_str(std::str::from_utf8(json).ok()?).ok()
    }

    /// Frees what only [`UncheckedEvent::wanted_keys`] takes.
    pub fn forget_signatures(&mut self) {
        self.signatures = BTreeMap::new();
    }

    /// The user by whose leave a restricted room was joined, as the event says.
    pub fn authoriser(&self) -> Option<Cow<'a, str>> {
        serde_json::from_str(self.content.authoriser?.get()).ok()
    }

    /// The keys that would serve to verify the event, as `verify::wanted_keys` gives them.
    pub fn wanted_keys(&self, version: RoomVersion) -> impl Iterator<Item = (ServerName, &str)> {
        let mut signers: Vec<ServerName> = Vec::with_capacity(2);
        signers.extend(server_of(&self.sender));
        if version.event_id_format == EventIdFormat::InEvent {
            let id = self.event_id.as_deref().and_then(|id| EventId::parse(id).ok());
            signers.extend(id.and_then(|id| ServerName::parse(id.server_name()?).ok()));
        }
        if version.restricted_join && self.event_type == "m.room.member" {
            signers.extend(self.authoriser().and_then(|user| server_of(&user)));
        }
        order::sort(&mut signers);
        signers.dedup();
        signers.into_iter().flat_map(|server| {
            let keys = self.signatures.get(server.as_str()).into_iter().flat_map(BTreeMap::keys);
            let keys = keys.filter(|id| verify::counts(id));
            keys.map(move |id| (server.clone(), id.as_ref()))
        })
    }
}

/// The ids of the events that a stored event rests on, without reading the rest of it. None if it is no event.
pub fn auth_events(json: &str, version: RoomVersion) -> Option<Vec<Cow<'_, str>>> {
    #[derive(Deserialize)]
    struct Ids<'a> {
        #[serde(borrow)]
        auth_events: Vec<Id<'a>>,
    }
    #[derive(Deserialize)]
    struct Id<'a>(#[serde(borrow)] Cow<'a, str>);
    #[derive(Deserialize)]
    struct Pairs<'a> {
        #[serde(borrow)]
        auth_events: Vec<Pair<'a>>,
    }
    #[derive(Deserialize)]
    struct Pair<'a>(
        #[serde(borrow)] Cow<'a, str>,
        #[allow(dead_code, reason = "hashes, not used")] IgnoredAny,
    );
    match version.event_id_format {
        EventIdFormat::InEvent => {
            let pairs: Pairs<'_> = serde_json::from_str(json).ok()?;
            Some(pairs.auth_events.into_iter().map(|pair| pair.0).collect())
        }
        _ => {
            let ids: Ids<'_> = serde_json::from_str(json).ok()?;
            Some(ids.auth_events.into_iter().map(|id| id.0).collect())
        }
    }
}

fn server_of(user: &str) -> Option<ServerName> {
    Some(UserId::parse(user).ok()?.server())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::Pdu;
    use crate::protocol::room_version::room_version;
    use crate::protocol::signatures::verify;
    use serde_json::json;

    #[test]
    fn a_glance_wants_the_same_keys_as_a_proper_look() {
        let signed = json!({
            "a.example": { "ed25519:1": "x", "ed25519:2": "x", "rsa:1": "x", "ed25519:": "x",
                           "ed25519:policy_server": "x" },
            "b.example": { "ed25519:b": "x" }, "c.example": { "ed25519:c": "x" }, "d.example": { "ed25519:d": 5 },
        });
        let contents = [
            json!({ "membership": "join" }),
            json!({ "membership": "join", "join_authorised_via_users_server": "@x:b.example" }),
            json!({ "membership": "invite", "third_party_invite": {} }),
            json!({ "membership": "join", "third_party_invite": {} }),
            json!({ "membership": "invite", "displayname": "\u{e9}\n" }),
        ];
        for version in ["1", "6", "10", "12"] {
            let version = room_version(version).expect("known");
            for content in &contents {
                let mut event = json!({
                    "type": "m.room.member", "state_key": "@u:a.example", "sender": "@u:a.example", "content": content,
                    "origin_server_ts": 5, "depth": 3, "prev_events": [], "auth_events": [], "hashes": {},
                    "signatures": signed,
                });
                if version.event_id_format == EventIdFormat::InEvent {
                    event["event_id"] = json!("$e:c.example");
                }
                let opaque = format!("!{}", "r".repeat(43));
                let room = if version.room_id_is_create_hash { &opaque } else { "!r:a.example" };
                event["room_id"] = json!(room);
                let text = serde_json::to_vec(&event).expect("JSON");
                let pdu = Pdu::parse(&text, version).expect("an event");
                let mut proper = verify::wanted_keys(&pdu);
                proper.sort();
                let unchecked = UncheckedEvent::at(&text).expect("an event");
                let seen: Vec<_> =
                    unchecked.wanted_keys(version).map(|(server, id)| (server, id.to_owned())).collect();
                assert_eq!(seen, proper, "{} {content}", version.id);
            }
        }
    }

    #[test]
    fn what_is_written_oddly_takes_more_than_a_glance() {
        assert!(UncheckedEvent::at(br#"{"type":"a","type":"b"}"#).is_none());
        assert!(UncheckedEvent::at(b"[]").is_none());
    }
}
