//! An event as the conditions of push rules look at it: read once for all whom it may notify.

use std::cell::OnceCell;
use std::collections::HashSet;

use serde_json::{Map, Value};

use crate::protocol::glob::{Glob, is_word_char};
use crate::protocol::{Pdu, UserId};

/// What the predefined rules look at, and nearly all of users' own: each is made a value when a rule asks for it, and the
/// rest of the event only if one asks for that.
const USUAL: [&str; 6] = ["content", "event_id", "room_id", "sender", "state_key", "type"];

/// One event.
pub struct PushEvent {
    /// The event, if it is one of a room.
    pdu: Option<Pdu>,
    /// Of an event of a room, what is [`USUAL`], as far as it was asked for.
    usual: [OnceCell<Option<Value>>; USUAL.len()],
    whole: OnceCell<Map<String, Value>>,
    body: OnceCell<Option<Body>>,
}

/// The text of a message.
pub(super) struct Body {
    /// Without regard to case.
    pub(super) text: Vec<char>,
    words: OnceCell<HashSet<String>>,
}

/// What conditions ask of the room.
pub struct RoomFacts<'r> {
    /// How many users are joined.
    pub joined: u64,
    /// Whether the power level of the event's sender suffices for notifications of this kind.
    pub sender_may_notify: &'r dyn Fn(&str) -> bool,
    /// Whether the power level of a recipient suffices for this action: `invite`, `kick`, `ban` or `redact`.
    pub recipient_may: &'r dyn Fn(&UserId, &str) -> bool,
    /// Whether the recipient is subscribed to the thread that the event is in. None: it is in no thread, or the recipient
    /// follows none at all.
    pub thread_subscription: Option<bool>,
}

/// Whom the event may notify.
pub struct Recipient<'r> {
    /// The user.
    pub user: &'r UserId,
    /// Their display name in the room.
    pub display_name: &'r dyn Fn() -> Option<String>,
}

impl PushEvent {
    /// An event of a room, with its ids, which some room versions do not have in the event itself.
    pub fn of(pdu: &Pdu) -> Self {
        Self {
            pdu: Some(pdu.clone()),
            usual: Default::default(),
            whole: OnceCell::new(),
            body: OnceCell::new(),
        }
    }

    /// An event as an object.
    pub fn from_object(object: Map<String, Value>) -> Self {
        Self { pdu: None, usual: Default::default(), whole: OnceCell::from(object), body: OnceCell::new() }
    }

    /// What the predefined rules look for by a user's id: whom the event mentions, and whom it is the state of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let path = ["content", "m.mentions", "user_ids"].map(str::to_owned);
        let mentioned = self.property(&path).and_then(Value::as_array).into_iter().flatten();
        mentioned.chain(self.top_level("state_key")).filter_map(Value::as_str)
    }

    /// The property at a path.
    pub(super) fn property(&self, path: &[String]) -> Option<&Value> {
        let (first, rest) = path.split_first()?;
        rest.iter().try_fold(self.top_level(first)?, |value, name| value.as_object()?.get(name))
    }

    fn top_level(&self, name: &str) -> Option<&Value> {
        let usual = USUAL.iter().position(|usual| *usual == name);
        let (Some(pdu), Some(at)) = (&self.pdu, usual) else {
            let whole = || self.pdu.as_ref().map(Pdu::to_object).unwrap_or_default();
            return self.whole.get_or_init(whole).get(name);
        };
        let value = || match name {
            "content" => Some(pdu.content().into()),
            "event_id" => Some(pdu.event_id().as_str().into()),
            "room_id" => Some(pdu.room_id().as_str().into()),
            "sender" => Some(pdu.sender().as_str().into()),
            "state_key" => pdu.state_key().map(Value::from),
            _ => Some(pdu.event_type().into()),
        };
        self.usual[at].get_or_init(value).as_ref()
    }

    pub(super) fn body(&self) -> Option<&Body> {
        let read = || {
            let body = self.top_level("content")?.get("body")?.as_str()?;
            Some(Body { text: Glob::fold(body), words: OnceCell::new() })
        };
        self.body.get_or_init(read).as_ref()
    }
}

impl Body {
    /// Whether this, which is nothing but characters of words, stands there between two word boundaries.
    pub(super) fn has_word(&self, word: &str) -> bool {
        let words = || {
            let words = self.text.split(|c| !is_word_char(*c)).filter(|word| !word.is_empty());
            words.map(|word| word.iter().collect()).collect()
        };
        self.words.get_or_init(words).contains(word)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::room_version::room_version;

    #[test]
    fn whatever_a_rule_asks_for_is_what_the_event_says() {
        let event = json!({
            "type": "m.room.message", "sender": "@alice:a.example", "room_id": "!room:a.example", "depth": 7,
            "content": { "body": "text", "deep": { "er": ["list"] } }, "auth_events": [], "prev_events": [],
            "origin_server_ts": 1, "hashes": {}, "signatures": {}, "unsigned": { "age": 3 },
        });
        let text = serde_json::to_vec(&event).unwrap();
        let pdu = Pdu::parse(&text, room_version("11").unwrap()).unwrap();
        let pushed = PushEvent::of(&pdu);
        let path = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let whole = pdu.to_object();
        for name in whole.keys() {
            assert_eq!(pushed.property(&path(&[name])), whole.get(name), "{name}");
        }
        assert_eq!(pushed.property(&path(&["content", "deep", "er"])), Some(&json!(["list"])));
        assert_eq!(pushed.property(&path(&["event_id"])), Some(&json!(pdu.event_id())));
        for none in [&["state_key"][..], &["redacts"], &["content", "none"], &[]] {
            assert_eq!(pushed.property(&path(none)), None, "{none:?}");
        }
    }
}
