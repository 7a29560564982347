//! The conditions of push rules (client-server API, "Conditions"). One that is unknown or malformed never holds.

use std::rc::Rc;

use serde_json::{Map, Value};

use super::event::{PushEvent, Recipient, RoomFacts};
use crate::protocol::glob::{Glob, Steps, is_word_char};
use crate::protocol::json::INTEGER_MAX;

/// To look for one property takes as long as so many steps.
const STEPS_MIN: usize = 8;

/// A condition, compiled.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Condition {
    /// `event_match`.
    Match {
        path: Vec<String>,
        pattern: Pattern,
    },
    /// `event_match` of `content.body`.
    BodyMatch(Words),
    /// `event_property_is`.
    Is {
        path: Vec<String>,
        value: Value,
    },
    /// `event_property_contains`.
    Contains {
        path: Vec<String>,
        value: Value,
    },
    /// The same two with the user's own id: the predefined rules are one set for everybody.
    IsRecipient {
        path: Vec<String>,
    },
    ContainsRecipient {
        path: Vec<String>,
    },
    /// `contains_display_name`.
    ContainsDisplayName,
    /// The pattern of the predefined rule that is the local part of the user's own id.
    ContainsLocalpart,
    /// The event does not say itself whom it mentions: without that being told, the predefined rules that look for names
    /// in its body are only for such events.
    NoMentions,
    /// `event_match` of `content.body` with `@room`, of the predefined rule that everybody has: it is looked for once.
    NamesRoom,
    /// `room_member_count`.
    MemberCount(Comparison, u64),
    /// `sender_notification_permission`.
    SenderMayNotify(String),
    /// `recipient_permission` (MSC4506).
    RecipientMay(String),
    /// `io.element.msc4306.thread_subscription`: the event is in a thread to which the recipient is subscribed, or is not.
    ThreadSubscription(bool),
    /// "Unrecognised conditions MUST NOT match any events."
    Never,
}

/// A pattern for a whole value.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Pattern {
    /// ASCII without wildcards.
    Plain(String),
    Glob(Glob),
}

/// A pattern for some words.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Words {
    /// One word without wildcards, in lower case.
    One(String),
    Glob(Glob),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Comparison {
    Equal,
    Less,
    More,
    AtMost,
    AtLeast,
}

impl Condition {
    /// Compiles a condition of a rule.
    pub(super) fn of(condition: &Value) -> Self {
        Self::read(condition).unwrap_or(Self::Never)
    }

    fn read(condition: &Value) -> Option<Self> {
        let condition = condition.as_object()?;
        let text = |key: &str| condition.get(key).and_then(Value::as_str);
        let path = || text("key").map(path_of);
        Some(match text("kind")? {
            "event_match" => Self::matching(text("key")?, text("pattern")?),
            "event_property_is" => Self::Is { path: path()?, value: scalar(condition)? },
            "event_property_contains" => Self::Contains { path: path()?, value: scalar(condition)? },
            "contains_display_name" => Self::ContainsDisplayName,
            "room_member_count" => {
                let (comparison, count) = comparison_of(text("is")?)?;
                Self::MemberCount(comparison, count)
            }
            "sender_notification_permission" => Self::SenderMayNotify(text("key")?.to_owned()),
            "recipient_permission" | "org.matrix.msc4506.recipient_permission" => {
                Self::RecipientMay(text("key")?.to_owned())
            }
            "io.element.msc4306.thread_subscription" => {
                Self::ThreadSubscription(condition.get("subscribed")?.as_bool()?)
            }
            _ => return None,
        })
    }

    /// `event_match`.
    pub(super) fn matching(key: &str, pattern: &str) -> Self {
        let path = path_of(key);
        let is_plain = !pattern.contains(['*', '?']);
        if path == ["content", "body"] {
            let folded = Glob::fold(pattern);
            return Self::BodyMatch(
                match is_plain && !folded.is_empty() && folded.iter().all(|c| is_word_char(*c)) {
                    true => Words::One(folded.iter().collect()),
                    false => Words::Glob(Glob::new(pattern)),
                },
            );
        }
        let pattern = match is_plain && pattern.is_ascii() {
            true => Pattern::Plain(pattern.to_owned()),
            false => Pattern::Glob(Glob::new(pattern)),
        };
        Self::Match { path, pattern }
    }

    /// What it takes to ask it, whatever the event says: somewhat more steps than it needs.
    pub(super) fn steps(&self) -> usize {
        match self {
            Self::Match { path, .. } | Self::Is { path, .. } | Self::Contains { path, .. } => {
                STEPS_MIN * path.len()
            }
            _ => STEPS_MIN,
        }
    }

    /// Whether the condition holds. `recipient`: none if that is somebody whom the event does not name.
    pub(super) fn holds(
        &self,
        event: &PushEvent,
        room: &RoomFacts<'_>,
        recipient: Option<&Recipient<'_>>,
        steps: &Steps,
    ) -> bool {
        let text = |path: &[String]| event.property(path).and_then(Value::as_str);
        match self {
            Self::Match { path, pattern } => text(path).is_some_and(|text| {
                let folded = || event.folded(path, steps);
                pattern.matches(text, folded, steps)
            }),
            Self::BodyMatch(words) => event.body().is_some_and(|body| match words {
                Words::One(word) => body.has_word(word),
                Words::Glob(glob) => glob.matches_words(&body.text, steps),
            }),
            Self::Is { path, value } => event.property(path).is_some_and(|there| is_same(there, value)),
            Self::Contains { path, value } => event.contains(path, value, steps),
            Self::IsRecipient { path } => {
                recipient.is_some_and(|recipient| text(path) == Some(recipient.user.as_str()))
            }
            Self::ContainsRecipient { path } => recipient
                .is_some_and(|recipient| event.contains(path, &recipient.user.as_str().into(), steps)),
            Self::ContainsDisplayName => recipient.is_some_and(|recipient| recipient.is_named(event, steps)),
            Self::ContainsLocalpart => {
                recipient.is_some_and(|recipient| recipient.is_named_by_localpart(event, steps))
            }
            Self::NoMentions => !event.has_mentions(),
            Self::NamesRoom => event.names_room(),
            Self::MemberCount(comparison, count) => comparison.holds(room.joined, *count),
            Self::SenderMayNotify(kind) => (room.sender_may_notify)(kind),
            Self::RecipientMay(action) => {
                recipient.is_some_and(|recipient| (room.recipient_may)(recipient.user, action))
            }
            Self::ThreadSubscription(subscribed) => room.thread_subscription == Some(*subscribed),
            Self::Never => false,
        }
    }
}

impl Pattern {
    /// `folded`: the text without regard to case.
    fn matches(&self, text: &str, folded: impl Fn() -> Option<Rc<[char]>>, steps: &Steps) -> bool {
        match self {
            // However it is written, no character has more than four bytes.
            Self::Plain(plain) if text.len() > 4 * plain.len() => false,
            Self::Plain(plain) if text.is_ascii() => plain.eq_ignore_ascii_case(text),
            // Letters beyond ASCII may be another form of ASCII's.
            Self::Plain(plain) => {
                steps.take(plain.len())
                    && folded().is_some_and(|text| Glob::literal(plain).matches_in(&text, steps))
            }
            Self::Glob(glob) => folded().is_some_and(|text| glob.matches_in(&text, steps)),
        }
    }
}

impl Comparison {
    fn holds(self, left: u64, right: u64) -> bool {
        match self {
            Self::Equal => left == right,
            Self::Less => left < right,
            Self::More => left > right,
            Self::AtMost => left <= right,
            Self::AtLeast => left >= right,
        }
    }
}

/// A dot-separated path (appendices, "Dot-separated property paths"): `\.` and `\\` are a dot and a backslash of a
/// name, "other escape sequences are left as-is".
pub(super) fn path_of(key: &str) -> Vec<String> {
    let (mut path, mut name, mut chars) = (Vec::new(), String::new(), key.chars().peekable());
    while let Some(c) = chars.next() {
        match c {
            '.' => path.push(std::mem::take(&mut name)),
            '\\' => name.push(chars.next_if(|next| matches!(next, '.' | '\\')).unwrap_or('\\')),
            _ => name.push(c),
        }
    }
    path.push(name);
    path
}

/// "Only supports non-compound canonical JSON values: strings, integers in the range of [-(2**53)+1, (2**53)-1],
/// booleans, and null."
fn scalar(condition: &Map<String, Value>) -> Option<Value> {
    condition.get("value").filter(|value| is_scalar(value)).cloned()
}

fn is_scalar(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(_) | Value::String(_) => true,
        Value::Number(number) => number.as_i64().is_some_and(|n| (-INTEGER_MAX..=INTEGER_MAX).contains(&n)),
        Value::Array(_) | Value::Object(_) => false,
    }
}

fn is_same(there: &Value, value: &Value) -> bool {
    match (there.as_i64(), value.as_i64()) {
        (Some(there), Some(value)) => there == value,
        _ => there == value && is_scalar(there),
    }
}

/// "A decimal integer optionally prefixed by one of, ==, <, >, >= or <=."
fn comparison_of(is: &str) -> Option<(Comparison, u64)> {
    let (comparison, digits) = [
        ("==", Comparison::Equal),
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Less),
        (">", Comparison::More),
        ("", Comparison::Equal),
    ]
    .into_iter()
    .find_map(|(prefix, comparison)| Some((comparison, is.strip_prefix(prefix)?)))?;
    if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
        return None;
    }
    Some((comparison, digits.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::UserId;

    fn holds_in(condition: &Value, event: &Value, joined: u64) -> bool {
        let event = PushEvent::from_object(event.as_object().expect("an object").clone());
        let room = RoomFacts {
            joined,
            sender_may_notify: &|kind| kind == "room",
            recipient_may: &|_, action| action == "invite",
            thread_subscription: None,
        };
        let user = UserId::parse("@alice:a.example").expect("a user id");
        let recipient = Recipient::new(&user, &|| Some("Alice *B*".to_owned()));
        Condition::of(condition).holds(&event, &room, Some(&recipient), &Steps::new(1_000_000))
    }

    fn holds(condition: &Value, event: &Value) -> bool {
        holds_in(condition, event, 2)
    }

    #[test]
    fn event_match_is_a_glob_for_the_whole_of_a_text() {
        // The specification's examples.
        let lunch = json!({"kind": "event_match", "key": "content.topic", "pattern": "lunc?*"});
        for (topic, matches) in [
            (json!("Lunch plans"), true),
            (json!("LUNCH"), true),
            (json!(" lunch"), false),
            (json!("lunc"), false),
            (json!(null), false),
            (json!(["lunch"]), false),
        ] {
            assert_eq!(holds(&lunch, &json!({"content": {"topic": topic}})), matches, "{topic}");
        }
        assert!(!holds(&lunch, &json!({"content": {}})) && !holds(&lunch, &json!({"content": "lunch"})));
        let all = json!({"kind": "event_match", "key": "content.topic", "pattern": "*"});
        assert!(!holds(&all, &json!({"content": {}})) && holds(&all, &json!({"content": {"topic": ""}})));
        let body = json!({"kind": "event_match", "key": "content.body", "pattern": "ex*ple"});
        for (text, matches) in [
            ("An example event.", true),
            ("exple", true),
            ("An exciting triple-whammy", true),
            ("examples", false),
        ] {
            assert_eq!(holds(&body, &json!({"content": {"body": text}})), matches, "{text}");
        }
        assert!(!holds(&body, &json!({"content": {"body": 7}})));
        let empty = json!({"kind": "event_match", "key": "state_key", "pattern": ""});
        assert!(holds(&empty, &json!({"state_key": ""})));
        assert!(!holds(&empty, &json!({"state_key": "x"})) && !holds(&empty, &json!({})));
        let kelvin = json!({"kind": "event_match", "key": "type", "pattern": "k"});
        assert!(holds(&kelvin, &json!({"type": "\u{212a}"})) && holds(&kelvin, &json!({"type": "K"})));
    }

    #[test]
    fn a_keyword_is_a_word_of_the_body_whatever_its_case() {
        let cake = json!({"kind": "event_match", "key": "content.body", "pattern": "Cake"});
        for (text, matches) in [
            ("CAKE", true),
            ("my cake!", true),
            ("cakes", false),
            ("日cake本", true),
            ("my_cake", false),
            ("", false),
        ] {
            assert_eq!(holds(&cake, &json!({"content": {"body": text}})), matches, "{text}");
        }
    }

    #[test]
    fn properties_are_compared_exactly() {
        let is = |value: Value| json!({"kind": "event_property_is", "key": r"content.m\.federate", "value": value});
        let event = |value: Value| json!({"content": {"m.federate": value}});
        for value in [json!(true), json!("x"), json!(7), json!(null), json!(-7)] {
            assert!(holds(&is(value.clone()), &event(value)));
        }
        for (wanted, there) in [
            (json!(true), json!("true")),
            (json!(true), json!(1)),
            (json!(1), json!(1.0)),
            (json!("a"), json!("A")),
            (json!(1.5), json!(1.5)),
            (json!([1]), json!([1])),
            (json!({}), json!({})),
            (json!(1_u64 << 53), json!(1_u64 << 53)),
        ] {
            assert!(!holds(&is(wanted.clone()), &event(there.clone())), "{wanted} {there}");
        }
        assert!(!holds(&is(json!(null)), &json!({"content": {}})));
        let contains = |value: Value| json!({"kind": "event_property_contains", "key": "content.alt_aliases", "value": value});
        let aliases =
            json!({"content": {"alt_aliases": ["#somewhere:example.org", "#myroom:example.com", null, [1]]}});
        assert!(
            holds(&contains(json!("#myroom:example.com")), &aliases)
                && holds(&contains(json!(null)), &aliases)
        );
        assert!(
            !holds(&contains(json!(":example.com")), &aliases) && !holds(&contains(json!([1])), &aliases)
        );
        assert!(!holds(&contains(json!("x")), &json!({"content": {"alt_aliases": "x"}})));
        assert!(!holds(&contains(json!("x")), &json!({"content": {}})));
    }

    #[test]
    fn paths_are_separated_by_dots_that_are_not_escaped() {
        for (key, path) in [
            ("content.body", vec!["content", "body"]),
            (r"content.m\.relates_to", vec!["content", "m.relates_to"]),
            (r"content.m\\foo", vec!["content", r"m\foo"]),
            (r"content.\x", vec!["content", r"\x"]),
            (r"a\\.b", vec![r"a\", "b"]),
            (r"a\", vec![r"a\"]),
            ("", vec![""]),
            ("a..b", vec!["a", "", "b"]),
        ] {
            assert_eq!(path_of(key), path, "{key}");
        }
    }

    #[test]
    fn members_are_counted_by_the_prefix() {
        for (is, counts) in [
            ("2", vec![2]),
            ("==2", vec![2]),
            ("<2", vec![0, 1]),
            (">2", vec![3]),
            ("<=2", vec![0, 1, 2]),
            (">=2", vec![2, 3]),
            ("", vec![]),
            ("=2", vec![]),
            ("2.0", vec![]),
            ("-1", vec![]),
            ("== 2", vec![]),
            ("99999999999999999999999", vec![]),
        ] {
            let condition = json!({"kind": "room_member_count", "is": is});
            let holding: Vec<u64> =
                (0..4).filter(|joined| holds_in(&condition, &json!({}), *joined)).collect();
            assert_eq!(holding, counts, "{is}");
        }
        assert!(!holds(&json!({"kind": "room_member_count", "is": 2}), &json!({})));
    }

    #[test]
    fn a_display_name_is_looked_for_as_it_is_written() {
        let name = json!({"kind": "contains_display_name"});
        assert!(holds(&name, &json!({"content": {"body": "hey alice *b*!"}})));
        assert!(!holds(&name, &json!({"content": {"body": "hey alice xbx!"}})));
        assert!(!holds(&name, &json!({"content": {}})));
    }

    #[test]
    fn what_is_unknown_or_malformed_never_holds() {
        let event = json!({"type": "a", "content": {"body": "b"}});
        for condition in [
            json!({"kind": "org.example.x"}),
            json!({"kind": "event_match", "key": "type"}),
            json!({"kind": "event_match", "pattern": "a"}),
            json!({"kind": "event_match", "key": ["type"], "pattern": "a"}),
            json!({"kind": "event_property_is", "key": "type"}),
            json!({"kind": 7}),
            json!({}),
            json!("event_match"),
            json!(null),
        ] {
            assert!(!holds(&condition, &event), "{condition}");
        }
        let may = |kind: &str| json!({"kind": "sender_notification_permission", "key": kind});
        assert!(holds(&may("room"), &event) && !holds(&may("other"), &event));
        assert!(!holds(&json!({"kind": "sender_notification_permission"}), &event));
    }
}
