//! An event as the conditions of push rules look at it: read once for all whom it may notify.

use std::cell::{OnceCell, RefCell};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::rc::Rc;

use serde_json::{Map, Value};

use super::names::{NamedBy, Names};
use crate::protocol::glob::{Glob, Steps, is_word_char};
use crate::protocol::{Pdu, UserId};

/// What the predefined rules look at, and nearly all of users' own: each is made a value when a rule asks for it, and the
/// rest of the event only if one asks for that.
const USUAL: [&str; 6] = ["content", "event_id", "room_id", "sender", "state_key", "type"];

/// To look a display name up takes as long as so many steps.
const NAME_STEPS: usize = 1000;
/// A list that is longer is looked through once, for all who ask whether something is in it.
const SHORT_LIST_MAX: usize = 16;

/// One event. What has to be made of a property before conditions can be asked of it is made once for all conditions of all
/// users: what they ask is theirs to choose, how long the property is is somebody else's.
pub struct PushEvent {
    /// The event, if it is one of a room.
    pdu: Option<Pdu>,
    /// Of an event of a room, what is [`USUAL`], as far as it was asked for.
    usual: [OnceCell<Option<Value>>; USUAL.len()],
    whole: OnceCell<Map<String, Value>>,
    body: OnceCell<Option<Body>>,
    /// Texts without regard to case, by their paths.
    folded: RefCell<HashMap<Vec<String>, Rc<[char]>>>,
    /// What is in long lists, by their paths.
    listed: RefCell<HashMap<Vec<String>, Rc<HashSet<Value>>>>,
}

/// The text of a message.
pub(super) struct Body {
    /// Without regard to case.
    pub(super) text: Vec<char>,
    words: OnceCell<HashSet<String>>,
    names_room: OnceCell<bool>,
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
    pub(super) user: &'r UserId,
    names: NamesOf<'r>,
    is_named: OnceCell<bool>,
}

enum NamesOf<'r> {
    /// Their display name.
    DisplayName(&'r dyn Fn() -> Option<String>),
    /// By which of them the event's body speaks of them: it was looked through for many at once.
    Found(&'r dyn Fn() -> NamedBy),
}

impl<'r> Recipient<'r> {
    /// A user, with their display name in the room, which is looked up when a rule asks for it.
    pub fn new(user: &'r UserId, display_name: &'r dyn Fn() -> Option<String>) -> Self {
        Self { user, names: NamesOf::DisplayName(display_name), is_named: OnceCell::new() }
    }

    /// A user for whom it is looked up elsewhere whether the event's body names them.
    pub fn found(user: &'r UserId, named: &'r dyn Fn() -> NamedBy) -> Self {
        Self { user, names: NamesOf::Found(named), is_named: OnceCell::new() }
    }

    /// Whether their display name stands in the event's body.
    pub(super) fn is_named(&self, event: &PushEvent, steps: &Steps) -> bool {
        let look = || {
            let display_name = match &self.names {
                NamesOf::Found(named) => return named().display_name,
                NamesOf::DisplayName(display_name) => display_name,
            };
            let Some(body) = event.body() else { return false };
            // What is looked up for it is as long as somebody wanted.
            let Some(name) = display_name().filter(|name| !name.is_empty()) else { return false };
            steps.take(NAME_STEPS + name.len()) && Glob::literal(&name).matches_words(&body.text, steps)
        };
        *self.is_named.get_or_init(look)
    }

    /// Whether the local part of their id stands in the event's body.
    pub(super) fn is_named_by_localpart(&self, event: &PushEvent, steps: &Steps) -> bool {
        match &self.names {
            NamesOf::Found(named) => named().localpart,
            NamesOf::DisplayName(_) => event.body().is_some_and(|body| {
                let localpart = self.user.localpart();
                !localpart.is_empty() && Glob::literal(localpart).matches_words(&body.text, steps)
            }),
        }
    }
}

impl PushEvent {
    /// An event of a room, with its ids, which some room versions do not have in the event itself.
    pub fn of(pdu: &Pdu) -> Self {
        Self::new(Some(pdu.clone()), OnceCell::new())
    }

    /// An event as an object.
    pub fn from_object(object: Map<String, Value>) -> Self {
        Self::new(None, OnceCell::from(object))
    }

    fn new(pdu: Option<Pdu>, whole: OnceCell<Map<String, Value>>) -> Self {
        let (folded, listed) = (RefCell::default(), RefCell::default());
        Self { pdu, usual: Default::default(), whole, body: OnceCell::new(), folded, listed }
    }

    /// What the predefined rules look for by a user's id: whom the event mentions, and whom it is the state of.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        let path = ["content", "m.mentions", "user_ids"].map(str::to_owned);
        let mentioned = self.property(&path).and_then(Value::as_array).into_iter().flatten();
        mentioned.chain(self.top_level("state_key")).filter_map(Value::as_str)
    }

    /// Whether whom it speaks to is looked for in its body: not where its sender says whom they mean.
    pub fn may_name_in_body(&self) -> bool {
        !self.has_mentions() && self.body().is_some()
    }

    /// Whether it has `m.mentions`.
    pub(super) fn has_mentions(&self) -> bool {
        let content = self.top_level("content").and_then(Value::as_object);
        content.is_some_and(|content| content.contains_key("m.mentions"))
    }

    /// Whether `@room` stands in its body.
    pub(super) fn names_room(&self) -> bool {
        let look = |body: &Body| Glob::literal("@room").matches_words(&body.text, &Steps::new(usize::MAX));
        self.body().is_some_and(|body| *body.names_room.get_or_init(|| look(body)))
    }

    /// Whom of many users its body names, by their places.
    pub fn named_in_body(&self, names: &Names, steps: &Steps) -> BTreeMap<usize, NamedBy> {
        self.body().map(|body| names.found_in(&body.text, steps)).unwrap_or_default()
    }

    /// Whether it has a body.
    pub fn has_body(&self) -> bool {
        self.body().is_some()
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

    /// The text at a path, without regard to case, if there is one. None, too, if it would take more steps than are left.
    pub(super) fn folded(&self, path: &[String], steps: &Steps) -> Option<Rc<[char]>> {
        if let Some(known) = self.folded.borrow().get(path) {
            return Some(known.clone());
        }
        let text = self.property(path)?.as_str()?;
        if !steps.take(text.len()) {
            return None;
        }
        let folded: Rc<[char]> = Glob::fold(text).into();
        self.folded.borrow_mut().insert(path.to_vec(), folded.clone());
        Some(folded)
    }

    /// Whether there is a list at a path that has this in it, which is no list and no object.
    pub(super) fn contains(&self, path: &[String], value: &Value, steps: &Steps) -> bool {
        let Some(list) = self.property(path).and_then(Value::as_array) else { return false };
        if list.len() <= SHORT_LIST_MAX {
            return steps.take(list.len()) && list.contains(value);
        }
        if let Some(known) = self.listed.borrow().get(path) {
            return known.contains(value);
        }
        let size = |there: &Value| 1 + there.as_str().map_or(0, str::len);
        if !steps.take(list.iter().map(size).sum()) {
            return false;
        }
        let values = list.iter().filter(|there| !there.is_array() && !there.is_object());
        let listed: Rc<HashSet<Value>> = Rc::new(values.cloned().collect());
        self.listed.borrow_mut().insert(path.to_vec(), listed.clone());
        listed.contains(value)
    }

    pub(super) fn body(&self) -> Option<&Body> {
        let read = || {
            let body = self.top_level("content")?.get("body")?.as_str()?;
            Some(Body { text: Glob::fold(body), words: OnceCell::new(), names_room: OnceCell::new() })
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

    #[test]
    fn what_conditions_look_at_is_prepared_once_and_counted() {
        let event = json!({ "content": { "x": "A".repeat(60_000), "list": (0..100).collect::<Vec<_>>() } });
        let event = PushEvent::from_object(event.as_object().expect("an object").clone());
        let path = |name: &str| ["content", name].map(str::to_owned);
        let steps = Steps::new(100_000);
        let folded = event.folded(&path("x"), &steps).expect("a text");
        assert_eq!(steps.left(), 40_000);
        assert!(Rc::ptr_eq(&folded, &event.folded(&path("x"), &steps).expect("the same")));
        assert_eq!(steps.left(), 40_000, "what is there takes none");
        for (value, is_there) in
            [(json!(7), true), (json!(100), false), (json!("7"), false), (json!(7.0), false)]
        {
            assert_eq!(event.contains(&path("list"), &value, &steps), is_there, "{value}");
        }
        assert_eq!(steps.left(), 39_900);
        assert!(
            event.folded(&path("list"), &steps).is_none() && !event.contains(&path("x"), &json!("A"), &steps)
        );
    }
}
