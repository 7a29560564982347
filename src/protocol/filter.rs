//! Filters: which events, rooms and fields a client wants to see (client-server API, "Filtering").
//!
//! Parsing is strict about shapes and lenient about unknown keys. Evaluation is pure and linear: a hostile pattern
//! costs no more than its length times the length of the event type.

use std::str::FromStr;

use serde::Deserialize;
use serde_json::{Map, Number, Value};

use crate::error::{Error, Result};
use crate::protocol::json::read_object;
use crate::protocol::pdu::Pdu;
use crate::protocol::{RoomId, UserId};

/// No filter that is larger than this many bytes is parsed or stored.
pub const FILTER_BYTES_MAX: usize = 65_536;

/// Types and senders that one list of a filter may name, since each event is compared with all of them; and rooms.
const TYPES_MAX: usize = 100;
const SENDERS_MAX: usize = 1000;
const ROOMS_MAX: usize = 10_000;
/// So many types are compared with an event in about the time that it takes to read the event.
const TYPES_AN_EVENT: usize = 16;

/// Each event that is looked at is looked up for every pair of these.
const RELATED_REL_TYPES_MAX: usize = 10;
const RELATED_SENDERS_MAX: usize = 20;

/// A whole filter, as uploaded to `POST /user/{userId}/filter` or written into `/sync?filter=`.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct Filter {
    /// Dot-separated paths of the event fields to keep; none given means all.
    pub event_fields: Option<Vec<String>>,
    /// How events are written.
    pub event_format: EventFormat,
    /// Which presence events to send.
    pub presence: EventFilter,
    /// Which global account data to send.
    pub account_data: EventFilter,
    /// What to send of rooms.
    pub room: RoomFilter,
}

/// `event_format`: how events are written.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum EventFormat {
    /// As clients are used to.
    #[default]
    Client,
    /// The raw event as it travels between servers.
    Federation,
}

/// The `room` part of a filter.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct RoomFilter {
    /// Rooms never to send; wins over `rooms`.
    pub not_rooms: Vec<String>,
    /// The only rooms to send.
    pub rooms: Option<Vec<String>>,
    /// For typing notifications and receipts.
    pub ephemeral: EventFilter,
    /// Whether rooms that the user has left belong into the answer.
    pub include_leave: bool,
    /// For the state of rooms.
    pub state: EventFilter,
    /// For the timelines of rooms.
    pub timeline: EventFilter,
    /// For the user's account data of rooms.
    pub account_data: EventFilter,
}

/// `EventFilter` and `RoomEventFilter` of the specification in one: the keys of the second are no harm in the first.
#[derive(Debug, Clone, Default, Deserialize)]
#[serde(default)]
pub struct EventFilter {
    /// At most this many events. The specification wants more than 0, but clients write 0 where they want none.
    #[serde(deserialize_with = "whole")]
    pub limit: Option<u64>,
    /// Senders never to send; wins over `senders`.
    pub not_senders: Vec<String>,
    /// Types (with `*`) never to send; wins over `types`.
    pub not_types: Vec<String>,
    /// The only senders to send.
    pub senders: Option<Vec<String>>,
    /// The only types (with `*`) to send.
    pub types: Option<Vec<String>>,
    /// Rooms never to send; wins over `rooms`.
    pub not_rooms: Vec<String>,
    /// The only rooms to send.
    pub rooms: Option<Vec<String>>,
    /// Only events with (true) or without (false) a `url` in their content.
    pub contains_url: Option<bool>,
    /// Membership events only of those who speak.
    pub lazy_load_members: bool,
    /// Membership events even if they were sent before.
    pub include_redundant_members: bool,
    /// Notification counts by thread.
    pub unread_thread_notifications: bool,
    /// Only events to which others relate in one of these ways (MSC3440),
    pub related_by_rel_types: Option<Vec<String>>,
    /// or to which events of one of these senders relate; of both given, one event has to fit both.
    pub related_by_senders: Option<Vec<String>>,
}

/// A whole number of 0 or more, however large: what is beyond any bound is cut to the bound.
fn whole<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<u64>, D::Error> {
    let Some(limit) = Option::<Number>::deserialize(deserializer)? else { return Ok(None) };
    let large = || limit.as_f64().filter(|limit| *limit >= 0.0 && limit.fract() == 0.0);
    #[expect(
        clippy::cast_possible_truncation,
        clippy::cast_sign_loss,
        reason = "whole, not negative, and cut"
    )]
    let limit = limit.as_u64().or_else(|| large().map(|limit| limit as u64));
    limit.map(Some).ok_or_else(|| serde::de::Error::custom("limit must be a whole number of 0 or more"))
}

impl Filter {
    /// Reads a filter. Errors: 400 `M_BAD_JSON` (wrong shape, negative limit, a user id or room id that is none, too many
    /// of something), 413 `M_TOO_LARGE`.
    pub fn parse(json: &str) -> Result<Self> {
        let filter: Self = parse(json)?;
        let room = &filter.room;
        check_ids::<RoomId>(room.rooms.iter().flatten().chain(&room.not_rooms))?;
        check_count(room.rooms.as_ref().map_or(0, Vec::len).max(room.not_rooms.len()), ROOMS_MAX)?;
        for events in [&filter.presence, &filter.account_data, &room.ephemeral, &room.state, &room.timeline] {
            events.check()?;
        }
        room.account_data.check()?;
        Ok(filter)
    }
}

impl EventFilter {
    /// Reads a `RoomEventFilter`, as `/messages` and `/context` take it. Errors as of [`Filter::parse`].
    pub fn parse(json: &str) -> Result<Self> {
        let filter: Self = parse(json)?;
        filter.check()?;
        Ok(filter)
    }

    /// Errors: 400 `M_BAD_JSON` for ids of users or rooms that are none, and for too many of something.
    pub fn check(&self) -> Result<()> {
        let count = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
        check_count(count(&self.types).max(self.not_types.len()), TYPES_MAX)?;
        check_count(count(&self.senders).max(self.not_senders.len()), SENDERS_MAX)?;
        check_count(count(&self.rooms).max(self.not_rooms.len()), ROOMS_MAX)?;
        check_count(count(&self.related_by_rel_types), RELATED_REL_TYPES_MAX)?;
        check_count(count(&self.related_by_senders), RELATED_SENDERS_MAX)?;
        let senders = self.senders.iter().chain(&self.related_by_senders).flatten();
        check_ids::<UserId>(senders.chain(&self.not_senders))?;
        check_ids::<RoomId>(self.rooms.iter().flatten().chain(&self.not_rooms))
    }

    /// How many times as much it is to look at an event with this filter as without one, about.
    pub fn weight(&self) -> usize {
        let types = self.types.as_ref().map_or(0, Vec::len) + self.not_types.len();
        let senders = self.senders.as_ref().map_or(0, Vec::len) + self.not_senders.len();
        1 + (types + senders / TYPES_AN_EVENT) / TYPES_AN_EVENT
    }

    /// The limit to apply: the client's, else `default`, and never above `max`.
    pub fn limit_or(&self, default: usize, max: usize) -> usize {
        self.limit.map_or(default, |limit| usize::try_from(limit).unwrap_or(max)).min(max)
    }

    /// Whether the client wants none of these events: it asked for 0 of them.
    pub fn wants_none(&self) -> bool {
        self.limit == Some(0)
    }

    /// Whether events of this room are wanted.
    pub fn wants_room(&self, room_id: &str) -> bool {
        wanted(room_id, self.rooms.as_deref(), &self.not_rooms)
    }

    /// Whether something of this type is wanted.
    pub fn wants_type(&self, event_type: &str) -> bool {
        !self.not_types.iter().any(|pattern| glob(pattern, event_type))
            && self.types.as_ref().is_none_or(|types| types.iter().any(|pattern| glob(pattern, event_type)))
    }

    /// Whether something by this sender is wanted.
    pub fn wants_sender(&self, sender: &str) -> bool {
        wanted(sender, self.senders.as_deref(), &self.not_senders)
    }

    /// Whether this event is wanted, all told except for its room, which is judged once for all its events.
    pub fn wants(&self, event: &Pdu) -> bool {
        self.wants_type(event.event_type())
            && self.wants_sender(event.sender().as_str())
            && self.contains_url.is_none_or(|url| event.content().contains_key("url") == url)
    }

    /// Whether the filter lets every event of a wanted room through, so that it need not be asked for each.
    pub fn wants_everything(&self) -> bool {
        self.types.is_none()
            && self.not_types.is_empty()
            && self.senders.is_none()
            && self.not_senders.is_empty()
            && self.contains_url.is_none()
            && !self.asks_for_related()
    }

    /// Whether what an event is related by matters, which it does not say itself: [`EventFilter::wants`] does not know.
    pub fn asks_for_related(&self) -> bool {
        self.related_by_rel_types.is_some() || self.related_by_senders.is_some()
    }
}

impl RoomFilter {
    /// Whether this room is wanted at all.
    pub fn wants_room(&self, room_id: &str) -> bool {
        wanted(room_id, self.rooms.as_deref(), &self.not_rooms)
    }
}

fn parse<T: for<'de> Deserialize<'de>>(json: &str) -> Result<T> {
    if json.len() > FILTER_BYTES_MAX {
        return Err(Error::new(crate::ErrCode::TooLarge, "The filter is too large"));
    }
    read_object(json.as_bytes()).map_err(|e| Error::bad_json(format!("Not a valid filter: {}", e.message())))
}

fn check_count(count: usize, most: usize) -> Result<()> {
    match count <= most {
        true => Ok(()),
        false => Err(Error::bad_json(format!("Not a valid filter: a list has more than {most} entries"))),
    }
}

/// An id that is none would match nothing for ever: whoever wrote it meant something else.
fn check_ids<'i, I: FromStr<Err = Error>>(ids: impl Iterator<Item = &'i String>) -> Result<()> {
    for id in ids {
        id.parse::<I>().map_err(|e| Error::bad_json(format!("Not a valid filter: {}", e.message())))?;
    }
    Ok(())
}

fn wanted(name: &str, only: Option<&[String]>, never: &[String]) -> bool {
    !never.iter().any(|other| other == name) && only.is_none_or(|only| only.iter().any(|other| other == name))
}

/// Whether `text` matches `pattern`, in which `*` stands for any run of characters and nothing else is special.
pub fn glob(pattern: &str, text: &str) -> bool {
    let mut pieces = pattern.split('*');
    // `split` yields at least one piece.
    let first = pieces.next().unwrap_or("");
    let Some(mut rest) = text.strip_prefix(first) else { return false };
    let Some(last) = pieces.next_back() else { return rest.is_empty() };
    for piece in pieces {
        // The earliest place is always the best one, so nothing is ever tried twice.
        let Some(at) = rest.find(piece) else { return false };
        rest = &rest[at + piece.len()..];
    }
    rest.ends_with(last)
}

/// The fields of every event that stay whatever `event_fields` says, because no client can use an event without.
const KEPT_FIELDS: [&str; 6] = ["event_id", "type", "room_id", "sender", "state_key", "origin_server_ts"];

/// An event with only the fields that `event_fields` asks for (appendices, "Dot-separated property paths"), the
/// six that identify it, and a `content`, which may be empty.
pub fn keep_fields(event: &Map<String, Value>, paths: &[String]) -> Map<String, Value> {
    let mut kept = Map::new();
    for name in KEPT_FIELDS {
        if let Some(value) = event.get(name) {
            kept.insert(name.to_owned(), value.clone());
        }
    }
    kept.insert("content".to_owned(), Value::Object(Map::new()));
    for path in paths {
        copy_path(event, &split_path(path), &mut kept);
    }
    kept
}

/// Splits at dots; a backslash takes the special meaning from a following dot or backslash.
fn split_path(path: &str) -> Vec<String> {
    let mut names = vec![String::new()];
    let mut chars = path.chars().peekable();
    while let Some(c) = chars.next() {
        match c {
            '.' => names.push(String::new()),
            '\\' if matches!(chars.peek(), Some('.' | '\\')) => {
                names.last_mut().expect("starts with one name").extend(chars.next());
            }
            c => names.last_mut().expect("starts with one name").push(c),
        }
    }
    names
}

fn copy_path(from: &Map<String, Value>, path: &[String], to: &mut Map<String, Value>) {
    let Some((name, rest)) = path.split_first() else { return };
    let Some(value) = from.get(name) else { return };
    if rest.is_empty() {
        to.insert(name.clone(), value.clone());
    } else if let Value::Object(inner) = value {
        let slot = to.entry(name.clone()).or_insert_with(|| Value::Object(Map::new()));
        if let Value::Object(slot) = slot {
            copy_path(inner, rest, slot);
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_star_stands_for_any_run_of_characters_and_nothing_else_is_special() {
        assert!(glob("m.room.*", "m.room.message"));
        assert!(glob("*", ""));
        assert!(glob("*.member", "m.room.member"));
        assert!(glob("m.*.mem*r", "m.room.member"));
        assert!(glob("a**c", "abc"));
        assert!(glob("m.room.message", "m.room.message"));
        assert!(!glob("m.room.message", "m.room.messages"));
        assert!(!glob("m.room.*", "m.roomy"));
        assert!(!glob("a*a", "a"));
        assert!(!glob("m.room.?essage", "m.room.message"));
        assert!(!glob("", "x"));
    }

    #[test]
    fn a_hostile_pattern_costs_linear_time() {
        let pattern = "*a".repeat(20_000);
        assert!(!glob(&pattern, &"a".repeat(10_000)));
    }

    #[test]
    fn exclusion_wins_over_inclusion() {
        let filter = EventFilter::parse(
            r#"{"types":["m.room.*"],"not_types":["m.room.member"],"senders":["@a:x"],"not_senders":["@a:x"]}"#,
        )
        .unwrap();
        assert!(filter.wants_type("m.room.message"));
        assert!(!filter.wants_type("m.room.member"));
        assert!(!filter.wants_type("m.reaction"));
        assert!(!filter.wants_sender("@a:x"));
        assert!(!filter.wants_sender("@b:x"));
    }

    #[test]
    fn an_empty_list_of_types_lets_nothing_through_and_an_absent_one_everything() {
        assert!(!EventFilter::parse(r#"{"types":[]}"#).unwrap().wants_type("m.room.message"));
        assert!(EventFilter::parse("{}").unwrap().wants_type("m.room.message"));
    }

    #[test]
    fn filters_of_a_wrong_shape_are_refused() {
        for wrong in [
            r#"{"room":{"timeline":{"limit":-1}}}"#,
            r#"{"room":{"timeline":{"limit":1.5}}}"#,
            r#"{"room":{"timeline":{"limit":"5"}}}"#,
            r#"{"room":{"rooms":"!a:b"}}"#,
            r#"{"event_format":"pigeon"}"#,
            r#"{"room":{"rooms":["general"]}}"#,
            r##"{"room":{"not_rooms":["#alias:a.example"]}}"##,
            r#"{"room":{"timeline":{"senders":["alice"]}}}"#,
            r#"{"room":{"state":{"not_senders":["@alice"]}}}"#,
            r#"{"room":{"ephemeral":{"not_rooms":[""]}}}"#,
            r#"{"room":{"account_data":{"rooms":["@alice:a.example"]}}}"#,
            r#"{"presence":{"senders":["!room:a.example"]}}"#,
            r#"{"account_data":{"not_senders":["@*:a.example x"]}}"#,
            r#"[]"#,
            "{",
        ] {
            assert!(Filter::parse(wrong).is_err(), "{wrong}");
        }
        assert!(Filter::parse(r#"{"org.example.unknown":7,"room":{"timeline":{"limit":5}}}"#).is_ok());
    }

    #[test]
    fn limits_are_capped() {
        let filter = EventFilter::parse(r#"{"limit":18446744073709551615}"#).unwrap();
        assert_eq!(filter.limit_or(10, 100), 100);
        assert_eq!(EventFilter::default().limit_or(10, 100), 10);
        for (text, limit) in
            [("0", 0), ("5.0", 5), ("1e300", 100), ("null", 10), ("36893488147419103232", 100)]
        {
            let filter = EventFilter::parse(&format!(r#"{{"limit":{text}}}"#)).unwrap();
            assert_eq!(filter.limit_or(10, 100), limit, "{text}");
            assert_eq!(filter.wants_none(), text == "0");
        }
    }

    #[test]
    fn event_fields_are_kept_by_path_and_dots_can_be_escaped() {
        let event = json!({
            "event_id": "$e", "type": "t", "sender": "@a:x", "origin_server_ts": 1,
            "content": {"body": "b", "m.relates_to": {"rel_type": "r", "other": 1}, "x": 1},
            "unsigned": {"age": 3},
        });
        let paths = ["content.body".to_owned(), r"content.m\.relates_to.rel_type".to_owned()];
        let kept = keep_fields(event.as_object().unwrap(), &paths);
        assert_eq!(
            Value::Object(kept),
            json!({
                "event_id": "$e", "type": "t", "sender": "@a:x", "origin_server_ts": 1,
                "content": {"body": "b", "m.relates_to": {"rel_type": "r"}},
            })
        );
    }
}
