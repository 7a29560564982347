//! The content of `m.room.power_levels` events, read so that everything that was written can be checked: integers,
//! what older versions take for integers, and what is neither.
//!
//! Up to room version 9 a level may be written as a string, up to version 5 as a float (room version 1,
//! "Deprecated event content schemas"). Values beyond 64 bits saturate, which keeps their order.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use crate::order::Gather;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::RoomVersion;

/// The single levels at the top of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PowerLevelKey {
    /// `users_default`
    UsersDefault,
    /// `events_default`
    EventsDefault,
    /// `state_default`
    StateDefault,
    /// `ban`
    Ban,
    /// `redact`
    Redact,
    /// `kick`
    Kick,
    /// `invite`
    Invite,
}

impl PowerLevelKey {
    pub(crate) const ALL: [Self; 7] = [
        Self::UsersDefault,
        Self::EventsDefault,
        Self::StateDefault,
        Self::Ban,
        Self::Redact,
        Self::Kick,
        Self::Invite,
    ];

    pub(crate) fn key(self) -> &'static str {
        match self {
            Self::UsersDefault => "users_default",
            Self::EventsDefault => "events_default",
            Self::StateDefault => "state_default",
            Self::Ban => "ban",
            Self::Redact => "redact",
            Self::Kick => "kick",
            Self::Invite => "invite",
        }
    }

    /// What holds where the content, or the whole event, is missing (client-server API, `m.room.power_levels`).
    pub(super) fn default_level(self) -> i64 {
        match self {
            Self::UsersDefault | Self::EventsDefault | Self::Invite => 0,
            Self::StateDefault | Self::Ban | Self::Redact | Self::Kick => 50,
        }
    }
}

/// One value as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LevelEntry {
    Integer(i64),
    /// A string or a float that the versions before 10 read as this integer.
    Lenient(i64),
    /// `null`: absent when asked for, malformed when changed (versions before 10, as Synapse has it).
    Null,
    /// `true` or `false`, which Synapse reads as 1 and 0 in the versions before 10, where the text says nothing of it.
    Bool(bool),
    Malformed,
}

impl LevelEntry {
    fn of_text(text: &str) -> Self {
        let text = text.trim();
        let (negative, digits) = match text.as_bytes().first() {
            Some(b'-') => (true, &text[1..]),
            Some(b'+') => (false, &text[1..]),
            _ => (false, text),
        };
        if digits.is_empty() || !digits.bytes().all(|b| b.is_ascii_digit()) {
            return Self::Malformed;
        }
        let saturated = if negative { i64::MIN } else { i64::MAX };
        let value = digits.parse::<i64>().map_or(saturated, |n| if negative { -n } else { n });
        Self::Lenient(value)
    }

    pub(super) fn value(self, version: RoomVersion) -> Option<i64> {
        match self {
            Self::Integer(n) => Some(n),
            Self::Lenient(n) if !version.integer_power_levels => Some(n),
            Self::Bool(yes) if !version.integer_power_levels => Some(i64::from(yes)),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for LevelEntry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LevelEntryVisitor;
        impl<'de> Visitor<'de> for LevelEntryVisitor {
            type Value = LevelEntry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_i64<E>(self, n: i64) -> Result<LevelEntry, E> {
                Ok(LevelEntry::Integer(n))
            }
            fn visit_u64<E>(self, n: u64) -> Result<LevelEntry, E> {
                Ok(LevelEntry::Integer(i64::try_from(n).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E>(self, n: f64) -> Result<LevelEntry, E> {
                // `as` truncates towards zero and saturates, as wanted; JSON has neither NaN nor infinity.
                Ok(if n.is_finite() { LevelEntry::Lenient(n as i64) } else { LevelEntry::Malformed })
            }
            fn visit_str<E>(self, text: &str) -> Result<LevelEntry, E> {
                Ok(LevelEntry::of_text(text))
            }
            fn visit_bool<E>(self, yes: bool) -> Result<LevelEntry, E> {
                Ok(LevelEntry::Bool(yes))
            }
            fn visit_unit<E>(self) -> Result<LevelEntry, E> {
                Ok(LevelEntry::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LevelEntry, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(LevelEntry::Malformed)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LevelEntry, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(LevelEntry::Malformed)
            }
        }
        deserializer.deserialize_any(LevelEntryVisitor)
    }
}

/// A key, borrowed where the text allows it. (A plain `Cow` is always owned.)
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// `users`, `events` or `notifications`.
#[derive(Debug, Default)]
pub(super) enum LevelTable {
    #[default]
    Absent,
    /// `[]` or `""`: no object, and nothing in it. Before version 10 no rule says that `events` and `notifications` are objects,
    /// and to Synapse these two change no level.
    Empty,
    /// Present and no object.
    Malformed,
    /// Sorted by key, without repeats.
    LevelEntries(LevelEntries),
}

/// Rooms have thousands of users with levels: so their names are in one string.
#[derive(Debug, Default)]
pub(super) struct LevelEntries {
    names: String,
    /// The end of each name in `names`, which is the start of the next.
    ends: Vec<(u32, LevelEntry)>,
}

impl LevelEntries {
    fn push(&mut self, name: &str, entry: LevelEntry) {
        self.names.push_str(name);
        // An event has at most 64 KiB.
        self.ends.push((self.names.len() as u32, entry));
    }

    fn at(&self, index: usize) -> Option<(&str, LevelEntry)> {
        let &(end, entry) = self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
        Some((&self.names[start as usize..end as usize], entry))
    }

    fn iter(&self) -> impl Iterator<Item = (&str, LevelEntry)> {
        (0..self.ends.len()).filter_map(|index| self.at(index))
    }

    fn get(&self, name: &str) -> Option<LevelEntry> {
        let (mut low, mut high) = (0, self.ends.len());
        while low < high {
            let middle = low.midpoint(high);
            let (found, entry) = self.at(middle)?;
            match found.cmp(name) {
                Ordering::Less => low = middle + 1,
                Ordering::Greater => high = middle,
                Ordering::Equal => return Some(entry),
            }
        }
        None
    }
}

impl LevelTable {
    /// Whether it is an object, or not there at all.
    pub(super) fn is_object(&self) -> bool {
        !matches!(self, Self::Empty | Self::Malformed)
    }

    pub(super) fn entries(&self) -> impl Iterator<Item = (&str, LevelEntry)> {
        match self {
            Self::LevelEntries(entries) => Some(entries.iter()).into_iter().flatten(),
            Self::Absent | Self::Empty | Self::Malformed => None.into_iter().flatten(),
        }
    }

    pub(super) fn get(&self, name: &str) -> Option<LevelEntry> {
        match self {
            Self::LevelEntries(entries) => entries.get(name),
            Self::Absent | Self::Empty | Self::Malformed => None,
        }
    }
}

impl<'de> Deserialize<'de> for LevelTable {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct LevelTableVisitor;
        impl<'de> Visitor<'de> for LevelTableVisitor {
            type Value = LevelTable;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<LevelTable, A::Error> {
                let mut entries = LevelEntries::default();
                while let Some((Name(name), entry)) = map.next_entry::<Name<'de>, LevelEntry>()? {
                    entries.push(&name, entry);
                }
                if !entries.iter().is_sorted_by(|a, b| a.0 < b.0) {
                    // Of a repeated key the last value counts, as everywhere in our JSON.
                    let sorted: BTreeMap<&str, LevelEntry> = entries.iter().gather();
                    let mut again = LevelEntries::default();
                    sorted.into_iter().for_each(|(name, entry)| again.push(name, entry));
                    entries = again;
                }
                Ok(LevelTable::LevelEntries(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<LevelTable, A::Error> {
                let mut table = LevelTable::Empty;
                while seq.next_element::<IgnoredAny>()?.is_some() {
                    table = LevelTable::Malformed;
                }
                Ok(table)
            }
            fn visit_i64<E>(self, _: i64) -> Result<LevelTable, E> {
                Ok(LevelTable::Malformed)
            }
            fn visit_u64<E>(self, _: u64) -> Result<LevelTable, E> {
                Ok(LevelTable::Malformed)
            }
            fn visit_f64<E>(self, _: f64) -> Result<LevelTable, E> {
                Ok(LevelTable::Malformed)
            }
            fn visit_str<E>(self, text: &str) -> Result<LevelTable, E> {
                Ok(if text.is_empty() { LevelTable::Empty } else { LevelTable::Malformed })
            }
            fn visit_bool<E>(self, _: bool) -> Result<LevelTable, E> {
                Ok(LevelTable::Malformed)
            }
            fn visit_unit<E>(self) -> Result<LevelTable, E> {
                Ok(LevelTable::Malformed)
            }
        }
        deserializer.deserialize_any(LevelTableVisitor)
    }
}

/// The content of one `m.room.power_levels` event.
#[derive(Debug, Default)]
pub(super) struct PowerContent {
    named: [Option<LevelEntry>; 7],
    pub(super) users: LevelTable,
    pub(super) events: LevelTable,
    pub(super) notifications: LevelTable,
}

impl PowerContent {
    /// Reads an event's content. Content that is no object cannot come out of `Pdu`; it would read as empty.
    pub(super) fn of(event: &Pdu) -> Self {
        serde_json::from_str(event.content_raw()).unwrap_or_default()
    }

    pub(super) fn named(&self, which: PowerLevelKey) -> Option<LevelEntry> {
        self.named[which as usize]
    }
}

impl<'de> Deserialize<'de> for PowerContent {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct PowerContentVisitor;
        impl<'de> Visitor<'de> for PowerContentVisitor {
            type Value = PowerContent;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<PowerContent, A::Error> {
                let mut content = PowerContent::default();
                while let Some(Name(key)) = map.next_key::<Name<'de>>()? {
                    match &*key {
                        "users" => content.users = map.next_value()?,
                        "events" => content.events = map.next_value()?,
                        "notifications" => content.notifications = map.next_value()?,
                        name => match PowerLevelKey::ALL.into_iter().find(|n| n.key() == name) {
                            Some(which) => content.named[which as usize] = Some(map.next_value()?),
                            None => {
                                map.next_value::<IgnoredAny>()?;
                            }
                        },
                    }
                }
                Ok(content)
            }
        }
        deserializer.deserialize_map(PowerContentVisitor)
    }
}

/// The union of two sorted tables, key by key.
pub(super) fn pairs<'t>(
    old: &'t LevelTable,
    new: &'t LevelTable,
) -> impl Iterator<Item = (&'t str, Option<LevelEntry>, Option<LevelEntry>)> {
    let (mut old, mut new) = (old.entries().peekable(), new.entries().peekable());
    std::iter::from_fn(move || {
        let order = match (old.peek(), new.peek()) {
            (None, None) => return None,
            (Some(_), None) => Ordering::Less,
            (None, Some(_)) => Ordering::Greater,
            (Some((a, _)), Some((b, _))) => a.cmp(b),
        };
        let before = if order.is_le() { old.next() } else { None };
        let after = if order.is_ge() { new.next() } else { None };
        let (key, _) = before.or(after)?;
        Some((key, before.map(|(_, entry)| entry), after.map(|(_, entry)| entry)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_level_written_as_text_is_read_as_the_specification_says() {
        for (text, level) in [
            ("100", 100),
            ("000100", 100),
            ("+100", 100),
            ("-100", -100),
            (" 100 ", 100),
            (" +0100\n", 100),
            ("99999999999999999999", i64::MAX),
            ("-99999999999999999999", i64::MIN),
        ] {
            assert_eq!(LevelEntry::of_text(text), LevelEntry::Lenient(level), "{text:?}");
        }
        for text in ["", " ", "+", "-", "+-1", "1.0", "1e3", "0x10", "1_000", "+ 1", "١", "lots"] {
            assert_eq!(LevelEntry::of_text(text), LevelEntry::Malformed, "{text:?}");
        }
    }

    #[test]
    fn of_a_repeated_key_the_last_value_counts() {
        let content: PowerContent =
            serde_json::from_str(r#"{"users":{"@b:x":1,"@a:x":2,"@b:x":3},"ban":1,"ban":[{}]}"#).unwrap();
        assert_eq!(content.users.get("@b:x"), Some(LevelEntry::Integer(3)));
        assert_eq!(content.users.get("@a:x"), Some(LevelEntry::Integer(2)));
        assert_eq!(content.named(PowerLevelKey::Ban), Some(LevelEntry::Malformed));
    }
}
