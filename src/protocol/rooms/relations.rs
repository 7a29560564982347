//! Relations between events (client-server API, "Forming relationships between events"): what an event's content says
//! of them, and what makes an edit one.

use std::borrow::Cow;

use serde::Deserialize;
use serde_json::value::RawValue;
use sha2::{Digest, Sha256};

use crate::protocol::json::{is_object, read, read_object};
use crate::protocol::{EventId, Pdu};

/// `rel_type` of what is said in a thread; the event that it names is the thread's root.
pub const THREAD: &str = "m.thread";
/// `rel_type` of an edit.
pub const REPLACE: &str = "m.replace";
/// `rel_type` of a reference.
pub const REFERENCE: &str = "m.reference";
/// `rel_type` of a reaction, and of whatever else is counted.
pub const ANNOTATION: &str = "m.annotation";

/// How far an event's relations are followed to its thread ("A maximum of 3 hops is recommended"), and to those that
/// relate to it by way of others ("Homeservers SHOULD traverse at least 3 levels of relationships").
pub const RELATION_HOPS_MAX: usize = 3;

/// A type of relation is a namespaced identifier ("must not exceed 255 characters"): what is longer is none.
const REL_TYPE_BYTES_MAX: usize = 255;

/// What an event says of its relation to another, its parent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Relation {
    /// What kind of relation it is.
    pub rel_type: String,
    /// The parent. It may not be here yet, or be in another room, and then it is none.
    pub event_id: EventId,
    /// Of an annotation what is counted, an emoji say.
    pub key: Option<String>,
    /// Whether the event has the shape of an edit: it says what the new content is, or is encrypted and says so where
    /// no server can look, and it is no state.
    pub has_new_content: bool,
}

impl Relation {
    /// A number that stands for the key of an annotation.
    pub fn key_hash(key: &str) -> i64 {
        let digest = Sha256::digest(key.as_bytes());
        digest.iter().take(8).fold(0, |hash: i64, byte| (hash << 8) | i64::from(*byte))
    }

    /// Whether this is a thread's relation to its root.
    pub fn is_thread(&self) -> bool {
        self.rel_type == THREAD
    }
}

/// The relation of an event to another, if it has one. Rich replies alone are none: they have no `rel_type`.
/// "Relationships which don't match the schema … are simply ignored."
pub fn relation_of(event: &Pdu) -> Option<Relation> {
    let mut relation = relation_in(event.content_raw())?;
    relation.has_new_content =
        !event.is_state() && (relation.has_new_content || event.event_type() == "m.room.encrypted");
    Some(relation)
}

/// The relation that a content (a JSON object as text) tells of. Most tell of none, which costs no more than a search of
/// the text if it is canonical, as the contents of events are.
pub fn relation_in(content: &str) -> Option<Relation> {
    #[derive(Deserialize)]
    struct RelatingContent<'c> {
        #[serde(borrow, default, rename = "m.relates_to")]
        relates_to: Option<&'c RawValue>,
        #[serde(borrow, default, rename = "m.new_content")]
        new_content: Option<&'c RawValue>,
    }
    #[derive(Deserialize)]
    struct RelatesTo<'c> {
        #[serde(borrow)]
        rel_type: Cow<'c, str>,
        #[serde(borrow)]
        event_id: Cow<'c, str>,
        #[serde(borrow, default)]
        key: Option<&'c RawValue>,
    }
    if !content.contains("\"m.relates_to\"") {
        return None;
    }
    let content: RelatingContent<'_> = read_object(content.as_bytes()).ok()?;
    let relates_to: RelatesTo<'_> = read_object(content.relates_to?.get().as_bytes()).ok()?;
    if relates_to.rel_type.is_empty() || relates_to.rel_type.len() > REL_TYPE_BYTES_MAX {
        return None;
    }
    Some(Relation {
        event_id: EventId::parse(&relates_to.event_id).ok()?,
        key: relates_to.key.and_then(|key| read::<String>(key.get().as_bytes()).ok()),
        has_new_content: relates_to.rel_type == REPLACE
            && content.new_content.is_some_and(|new| is_object(new.get().as_bytes())),
        rel_type: relates_to.rel_type.into_owned(),
    })
}

/// Whether `m.thread` may name this event as its root: "It is not possible to create a thread from an event which itself
/// is the child of an event relationship".
pub fn may_be_thread_root(event: &Pdu) -> bool {
    relation_of(event).is_none()
}

/// Whether an event may be edited: it is no state, no edit, and the room has not redacted it ("any `m.replace`
/// relationship should **not** be bundled with it"). By whom and with what: [`is_edit_of`].
pub fn may_be_edited(event: &Pdu) -> bool {
    !event.is_state() && relation_of(event).is_none_or(|relation| relation.rel_type != REPLACE)
}

/// Whether `edit` is a valid replacement of `original` ("Validity of replacement events"), which is not redacted.
pub fn is_edit_of(edit: &Pdu, original: &Pdu) -> bool {
    may_be_edited(original)
        && edit.room_id() == original.room_id()
        && edit.sender() == original.sender()
        && edit.event_type() == original.event_type()
        && edit.event_id() != original.event_id()
        && relation_of(edit).is_some_and(|relation| {
            relation.rel_type == REPLACE
                && relation.event_id == *original.event_id()
                && relation.has_new_content
        })
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn relation(content: &Value) -> Option<Relation> {
        relation_in(&content.to_string())
    }

    #[test]
    fn a_relation_is_read_with_what_belongs_to_it() {
        let thread = json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": "$root",
            "m.in_reply_to": { "event_id": "$last" }, "is_falling_back": true } });
        let thread = relation(&thread).unwrap();
        assert!(thread.is_thread() && thread.event_id.as_str() == "$root" && !thread.has_new_content);
        let reaction =
            json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": "$a", "key": "👍" } });
        assert_eq!(relation(&reaction).unwrap().key.as_deref(), Some("👍"));
        let edit =
            json!({ "m.new_content": {}, "m.relates_to": { "rel_type": "m.replace", "event_id": "$a" } });
        assert!(relation(&edit).unwrap().has_new_content);
    }

    #[test]
    fn what_does_not_match_the_schema_is_no_relation() {
        let long = "x".repeat(256);
        let deep = (0..200).fold(json!(1), |inner, _| json!([inner]));
        for wrong in [
            json!({}),
            json!({ "m.relates_to": null }),
            json!({ "m.relates_to": "m.thread" }),
            json!({ "m.relates_to": ["m.thread", "$a"] }),
            json!({ "m.relates_to": {} }),
            json!({ "m.relates_to": { "rel_type": "m.thread" } }),
            json!({ "m.relates_to": { "event_id": "$a" } }),
            json!({ "m.relates_to": { "m.in_reply_to": { "event_id": "$a" } } }),
            json!({ "m.relates_to": { "rel_type": 7, "event_id": "$a" } }),
            json!({ "m.relates_to": { "rel_type": "", "event_id": "$a" } }),
            json!({ "m.relates_to": { "rel_type": long, "event_id": "$a" } }),
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": "" } }),
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": "!room:a" } }),
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": ["$a"] } }),
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": format!("${}", "x".repeat(300)) } }),
            json!({ "body": "\"m.relates_to\"" }),
            json!({ "inner": { "m.relates_to": { "rel_type": "m.thread", "event_id": "$a" } } }),
            json!({ "m.relates_to": { "rel_type": "m.thread", "event_id": deep } }),
        ] {
            assert_eq!(relation(&wrong), None, "{wrong}");
        }
    }

    #[test]
    fn a_key_of_another_shape_leaves_the_relation_and_an_edit_needs_new_content_that_is_an_object() {
        let odd =
            json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": "$a", "key": { "a": 1 } } });
        assert_eq!(relation(&odd).unwrap().key, None);
        for new in [json!(null), json!("text"), json!([1])] {
            let edit = json!({ "m.new_content": new, "m.relates_to": { "rel_type": "m.replace", "event_id": "$a" } });
            assert!(!relation(&edit).unwrap().has_new_content, "{new}");
        }
    }

    #[test]
    fn keys_that_differ_have_other_numbers() {
        assert_eq!(Relation::key_hash("👍"), Relation::key_hash("👍"));
        assert_ne!(Relation::key_hash("👍"), Relation::key_hash("👍\u{fe0f}"));
    }
}
