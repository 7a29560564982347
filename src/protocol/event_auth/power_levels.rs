//! Power levels: what `m.room.power_levels` says, what holds where it says nothing, and the rules for changing it.
//!
//! Two faces of the same data. The rules ask strictly: a value that they need and that is not an integer makes
//! the event under judgement fail. Services ask leniently ([`PowerLevels::user`], [`PowerLevels::may_kick`] …):
//! such a value counts as if it were absent.
//!
//! Up to room version 9 a level may be written as a string, up to version 5 as a float (room version 1,
//! "Deprecated event content schemas"). Values beyond 64 bits saturate, which keeps their order.

use std::borrow::Cow;
use std::cmp::Ordering;
use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use serde::de::{Deserialize, Deserializer, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::{AuthError, Creation, Section, StateLookup, create_of};
use crate::protocol::ids::UserId;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::RoomVersion;

/// A user's effective level. Only the creators of rooms of version 12 and later are `Infinite`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum PowerLevel {
    /// An ordinary level.
    Finite(i64),
    /// Above every number; cannot be given or taken.
    Infinite,
}

impl PowerLevel {
    /// Whether a user of this level reaches a required level.
    pub fn reaches(self, required: i64) -> bool {
        self >= Self::Finite(required)
    }
}

impl fmt::Display for PowerLevel {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finite(level) => write!(f, "{level}"),
            Self::Infinite => f.write_str("infinite (room creator)"),
        }
    }
}

/// The single levels at the top of the content.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Named {
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

impl Named {
    const ALL: [Self; 7] = [
        Self::UsersDefault,
        Self::EventsDefault,
        Self::StateDefault,
        Self::Ban,
        Self::Redact,
        Self::Kick,
        Self::Invite,
    ];

    fn key(self) -> &'static str {
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
    fn default_level(self) -> i64 {
        match self {
            Self::UsersDefault | Self::EventsDefault | Self::Invite => 0,
            Self::StateDefault | Self::Ban | Self::Redact | Self::Kick => 50,
        }
    }
}

/// One value as it was written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Entry {
    Integer(i64),
    /// A string or a float that the versions before 10 read as this integer.
    Lenient(i64),
    /// `null`: absent when asked for, malformed when changed (versions before 10, as Synapse has it).
    Null,
    Malformed,
}

impl Entry {
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

    fn value(self, version: RoomVersion) -> Option<i64> {
        match self {
            Self::Integer(n) => Some(n),
            Self::Lenient(n) if !version.integer_power_levels => Some(n),
            _ => None,
        }
    }
}

impl<'de> Deserialize<'de> for Entry {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Entry;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_i64<E>(self, n: i64) -> Result<Entry, E> {
                Ok(Entry::Integer(n))
            }
            fn visit_u64<E>(self, n: u64) -> Result<Entry, E> {
                Ok(Entry::Integer(i64::try_from(n).unwrap_or(i64::MAX)))
            }
            fn visit_f64<E>(self, n: f64) -> Result<Entry, E> {
                // `as` truncates towards zero and saturates, as wanted; JSON has neither NaN nor infinity.
                Ok(if n.is_finite() { Entry::Lenient(n as i64) } else { Entry::Malformed })
            }
            fn visit_str<E>(self, text: &str) -> Result<Entry, E> {
                Ok(Entry::of_text(text))
            }
            fn visit_bool<E>(self, _: bool) -> Result<Entry, E> {
                Ok(Entry::Malformed)
            }
            fn visit_unit<E>(self) -> Result<Entry, E> {
                Ok(Entry::Null)
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Entry, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Entry::Malformed)
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Entry, A::Error> {
                while map.next_entry::<IgnoredAny, IgnoredAny>()?.is_some() {}
                Ok(Entry::Malformed)
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// A key, borrowed where the text allows it. (A plain `Cow` is always owned.)
#[derive(serde::Deserialize)]
struct Name<'a>(#[serde(borrow)] Cow<'a, str>);

/// `users`, `events` or `notifications`.
#[derive(Debug, Default)]
enum Table {
    #[default]
    Absent,
    /// Present and no object.
    Malformed,
    /// Sorted by key, without repeats.
    Entries(Entries),
}

/// Rooms have thousands of users with levels: so their names are in one string.
#[derive(Debug, Default)]
struct Entries {
    names: String,
    /// The end of each name in `names`, which is the start of the next.
    ends: Vec<(u32, Entry)>,
}

impl Entries {
    fn push(&mut self, name: &str, entry: Entry) {
        self.names.push_str(name);
        // An event has at most 64 KiB.
        self.ends.push((self.names.len() as u32, entry));
    }

    fn at(&self, index: usize) -> Option<(&str, Entry)> {
        let &(end, entry) = self.ends.get(index)?;
        let start = index.checked_sub(1).map_or(0, |before| self.ends[before].0);
        Some((&self.names[start as usize..end as usize], entry))
    }

    fn iter(&self) -> impl Iterator<Item = (&str, Entry)> {
        (0..self.ends.len()).filter_map(|index| self.at(index))
    }

    fn get(&self, name: &str) -> Option<Entry> {
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

impl Table {
    fn entries(&self) -> impl Iterator<Item = (&str, Entry)> {
        match self {
            Self::Entries(entries) => Some(entries.iter()).into_iter().flatten(),
            Self::Absent | Self::Malformed => None.into_iter().flatten(),
        }
    }

    fn get(&self, name: &str) -> Option<Entry> {
        match self {
            Self::Entries(entries) => entries.get(name),
            Self::Absent | Self::Malformed => None,
        }
    }
}

impl<'de> Deserialize<'de> for Table {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Table;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("any JSON value")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Table, A::Error> {
                let mut entries = Entries::default();
                while let Some((Name(name), entry)) = map.next_entry::<Name<'de>, Entry>()? {
                    entries.push(&name, entry);
                }
                if !entries.iter().is_sorted_by(|a, b| a.0 < b.0) {
                    // Of a repeated key the last value counts, as everywhere in our JSON.
                    let sorted: BTreeMap<&str, Entry> = entries.iter().collect();
                    let mut again = Entries::default();
                    sorted.into_iter().for_each(|(name, entry)| again.push(name, entry));
                    entries = again;
                }
                Ok(Table::Entries(entries))
            }
            fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Table, A::Error> {
                while seq.next_element::<IgnoredAny>()?.is_some() {}
                Ok(Table::Malformed)
            }
            fn visit_i64<E>(self, _: i64) -> Result<Table, E> {
                Ok(Table::Malformed)
            }
            fn visit_u64<E>(self, _: u64) -> Result<Table, E> {
                Ok(Table::Malformed)
            }
            fn visit_f64<E>(self, _: f64) -> Result<Table, E> {
                Ok(Table::Malformed)
            }
            fn visit_str<E>(self, _: &str) -> Result<Table, E> {
                Ok(Table::Malformed)
            }
            fn visit_bool<E>(self, _: bool) -> Result<Table, E> {
                Ok(Table::Malformed)
            }
            fn visit_unit<E>(self) -> Result<Table, E> {
                Ok(Table::Malformed)
            }
        }
        deserializer.deserialize_any(V)
    }
}

/// The content of one `m.room.power_levels` event.
#[derive(Debug, Default)]
pub(super) struct Content {
    named: [Option<Entry>; 7],
    users: Table,
    events: Table,
    notifications: Table,
}

impl Content {
    /// Reads an event's content. Content that is no object cannot come out of `Pdu`; it would read as empty.
    pub(super) fn of(event: &Pdu) -> Self {
        serde_json::from_str(event.content_raw()).unwrap_or_default()
    }

    fn named(&self, which: Named) -> Option<Entry> {
        self.named[which as usize]
    }
}

impl<'de> Deserialize<'de> for Content {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Content;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Content, A::Error> {
                let mut content = Content::default();
                while let Some(Name(key)) = map.next_key::<Name<'de>>()? {
                    match &*key {
                        "users" => content.users = map.next_value()?,
                        "events" => content.events = map.next_value()?,
                        "notifications" => content.notifications = map.next_value()?,
                        name => match Named::ALL.into_iter().find(|n| n.key() == name) {
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
        deserializer.deserialize_map(V)
    }
}

/// The power levels in force in one state: its `m.room.power_levels`, its creators and the defaults.
#[derive(Debug, Clone)]
pub struct PowerLevels {
    version: RoomVersion,
    creation: Option<Arc<Creation>>,
    content: Option<Arc<Content>>,
}

impl PowerLevels {
    /// The levels in force in a state, given as a lookup by type and state key.
    pub fn of(version: RoomVersion, state: StateLookup<'_>) -> Self {
        let creation = create_of(state).map(|create| Arc::new(Creation::of(&create, version)));
        let content = state("m.room.power_levels", "").map(|event| Arc::new(Content::of(&event)));
        Self { version, creation, content }
    }

    pub(super) fn new(
        version: RoomVersion,
        creation: Option<Arc<Creation>>,
        content: Option<Arc<Content>>,
    ) -> Self {
        Self { version, creation, content }
    }

    /// A user's level; malformed values count as absent.
    pub fn user(&self, user: &str) -> PowerLevel {
        self.strict_user(user).unwrap_or(PowerLevel::Finite(0))
    }

    /// The level that sending an event of this type needs, by its own entry or by the default of its kind.
    pub fn required(&self, event_type: &str, is_state: bool) -> i64 {
        let which = if is_state { Named::StateDefault } else { Named::EventsDefault };
        self.strict_required(event_type, is_state).unwrap_or_else(|_| which.default_level())
    }

    /// One of the single levels.
    pub fn named(&self, which: Named) -> i64 {
        self.strict_named(which).unwrap_or_else(|_| which.default_level())
    }

    /// The level that a notification of this kind needs (`room` for `@room`); 50 unless said otherwise.
    pub fn notification(&self, kind: &str) -> i64 {
        let entry = self.content.as_ref().and_then(|content| content.notifications.get(kind));
        entry.and_then(|entry| entry.value(self.version)).unwrap_or(50)
    }

    /// Whether the user's level suffices to send an event of this type. Says nothing of membership.
    pub fn may_send(&self, user: &str, event_type: &str, is_state: bool) -> bool {
        self.user(user).reaches(self.required(event_type, is_state))
    }

    /// Whether the user's level suffices to invite.
    pub fn may_invite(&self, user: &str) -> bool {
        self.user(user).reaches(self.named(Named::Invite))
    }

    /// Whether the user's level suffices to remove the target (a joined, invited or knocking user).
    pub fn may_kick(&self, user: &str, target: &str) -> bool {
        let level = self.user(user);
        level.reaches(self.named(Named::Kick)) && self.user(target) < level
    }

    /// Whether the user's level suffices to ban the target.
    pub fn may_ban(&self, user: &str, target: &str) -> bool {
        let level = self.user(user);
        level.reaches(self.named(Named::Ban)) && self.user(target) < level
    }

    /// Whether the user's level suffices to lift the target's ban: that of a ban and that of a kick.
    pub fn may_unban(&self, user: &str, target: &str) -> bool {
        self.may_ban(user, target) && self.may_kick(user, target)
    }

    /// Whether the user's level suffices to redact anybody's events. One's own server's events need no level.
    pub fn may_redact(&self, user: &str) -> bool {
        self.user(user).reaches(self.named(Named::Redact))
    }

    /// Whether the user's level suffices for a notification of this kind.
    pub fn may_notify(&self, user: &str, kind: &str) -> bool {
        self.user(user).reaches(self.notification(kind))
    }

    pub(super) fn strict_user(&self, user: &str) -> Result<PowerLevel, AuthError> {
        if let Some(creation) = &self.creation {
            // Room version 12: creators stand above all levels, whatever the event says.
            if self.version.privileged_creators && creation.is_creator(user) {
                return Ok(PowerLevel::Infinite);
            }
        }
        let Some(content) = &self.content else {
            // Without power levels the creator has 100 and everybody else 0.
            let is_creator = self.creation.as_ref().is_some_and(|creation| creation.is_creator(user));
            return Ok(PowerLevel::Finite(if is_creator { 100 } else { 0 }));
        };
        if matches!(content.users, Table::Malformed) {
            return Err(self.malformed("users"));
        }
        match content.users.get(user) {
            None | Some(Entry::Null) => self.strict_named(Named::UsersDefault).map(PowerLevel::Finite),
            Some(entry) => {
                entry.value(self.version).map(PowerLevel::Finite).ok_or_else(|| self.malformed("users"))
            }
        }
    }

    pub(super) fn strict_named(&self, which: Named) -> Result<i64, AuthError> {
        match self.content.as_ref().and_then(|content| content.named(which)) {
            None | Some(Entry::Null) => Ok(which.default_level()),
            Some(entry) => entry.value(self.version).ok_or_else(|| self.malformed(which.key())),
        }
    }

    pub(super) fn strict_required(&self, event_type: &str, is_state: bool) -> Result<i64, AuthError> {
        let which = if is_state { Named::StateDefault } else { Named::EventsDefault };
        let Some(content) = &self.content else { return Ok(which.default_level()) };
        if matches!(content.events, Table::Malformed) {
            return Err(self.malformed("events"));
        }
        match content.events.get(event_type) {
            None | Some(Entry::Null) => self.strict_named(which),
            Some(entry) => entry.value(self.version).ok_or_else(|| self.malformed("events")),
        }
    }

    fn malformed(&self, key: &str) -> AuthError {
        AuthError::unnumbered(self.version, format!("the room's power levels have a malformed `{key}`"))
    }
}

/// The numbers of the rules below "If type is `m.room.power_levels`", which moved in versions 10 and 12.
struct Numbers {
    users: u8,
    creators: u8,
    named: u8,
    old_entry: u8,
    new_entry: u8,
    old_user: u8,
    new_user: u8,
}

impl Numbers {
    fn of(version: RoomVersion) -> Self {
        let users = if version.integer_power_levels { 3 } else { 1 };
        let named = users + 2 + u8::from(version.privileged_creators);
        Self {
            users,
            creators: users + 1,
            named,
            old_entry: named + 1,
            new_entry: named + 2,
            old_user: named + 3,
            new_user: named + 4,
        }
    }
}

/// "If type is `m.room.power_levels`": rule 10 in versions 1–5 and 12, rule 9 in 6–11. `before` are the levels in
/// force, `content` is what the event puts in their place. The numbers in the comments are those of version 12.
pub(super) fn check_change(event: &Pdu, version: RoomVersion, before: &PowerLevels) -> Result<(), AuthError> {
    let new = Content::of(event);
    let numbers = Numbers::of(version);
    let fail = |rule: u8, text: String| Err(AuthError::new(version, Section::PowerLevels, &[rule], text));

    check_format(&new, version, &numbers, before)?;

    // 10.5. Without previous power levels: allow.
    let Some(old) = before.content.as_deref() else { return Ok(()) };
    let sender = event.sender().as_str();
    let own_level = before.strict_user(sender)?;

    // 10.6. The single levels that are added, changed or removed: neither the old nor the new value may be above
    // the sender's.
    for which in Named::ALL {
        let change = Change::of(old.named(which), new.named(which), version);
        if let Err(problem) = change.and_then(|change| change.check(own_level, false)) {
            return fail(numbers.named, format!("`{}` {problem}", which.key()));
        }
    }

    // 10.7, 10.8. The same for each entry of `events` and, from version 6 on, of `notifications`.
    let notifications = version.limit_notifications_power.then_some((
        "notifications",
        &old.notifications,
        &new.notifications,
    ));
    for (name, old, new) in [("events", &old.events, &new.events)].into_iter().chain(notifications) {
        if matches!(old, Table::Malformed) || matches!(new, Table::Malformed) {
            return fail(numbers.new_entry, format!("`{name}` is not an object"));
        }
        for (key, old, new) in pairs(old, new) {
            let change = Change::of(old, new, version);
            if let Err(problem) = change.and_then(|change| change.check(own_level, false)) {
                let rule = if problem == Problem::NewAbove { numbers.new_entry } else { numbers.old_entry };
                return fail(rule, format!("`{key}` in `{name}` {problem}"));
            }
        }
    }

    // 10.9. Entries of other users that are changed or removed must have been below the sender's level.
    // 10.10. Entries that are added or changed may not be above it.
    for (user, old, new) in pairs(&old.users, &new.users) {
        let change = Change::of(old, new, version);
        if let Err(problem) = change.and_then(|change| change.check(own_level, user != sender)) {
            let rule = if problem == Problem::NewAbove { numbers.new_user } else { numbers.old_user };
            return fail(rule, format!("the level of {user} {problem}"));
        }
    }
    Ok(())
}

/// 10.1 to 10.4: what the content must look like.
fn check_format(
    new: &Content,
    version: RoomVersion,
    numbers: &Numbers,
    before: &PowerLevels,
) -> Result<(), AuthError> {
    let fail = |rule: u8, text: String| Err(AuthError::new(version, Section::PowerLevels, &[rule], text));

    if version.integer_power_levels {
        // 10.1 (from version 10 on). The single levels are integers, if present.
        for which in Named::ALL {
            if new.named(which).is_some_and(|entry| entry.value(version).is_none()) {
                return fail(1, format!("`{}` is not an integer", which.key()));
            }
        }
        // 10.2 (from version 10 on). `events` and `notifications` are objects of integers, if present.
        for (name, table) in [("events", &new.events), ("notifications", &new.notifications)] {
            if matches!(table, Table::Malformed)
                || table.entries().any(|(_, entry)| entry.value(version).is_none())
            {
                return fail(2, format!("`{name}` is not an object of integers"));
            }
        }
    }

    // 10.3 (10.1 or 9.1 before version 10). `users` is an object of user ids and integers. Absent is empty.
    if matches!(new.users, Table::Malformed) {
        return fail(numbers.users, "`users` is not an object".into());
    }
    for (user, entry) in new.users.entries() {
        if UserId::parse(user).is_err() {
            return fail(numbers.users, format!("`{user}` in `users` is not a user id"));
        }
        if entry.value(version).is_none() {
            return fail(numbers.users, format!("the level of {user} is not an integer"));
        }
    }

    // 10.4 (version 12). Creators have no entry.
    if let Some(creation) = before.creation.as_ref().filter(|_| version.privileged_creators)
        && let Some(creator) = creation.creators().find(|creator| new.users.get(creator).is_some())
    {
        return fail(numbers.creators, format!("{creator} is a creator of the room and has no level"));
    }
    Ok(())
}

/// What happens to one value.
struct Change {
    old: Option<i64>,
    new: Option<i64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Problem {
    NotAnInteger,
    OldAbove,
    OldNotBelow,
    NewAbove,
}

impl fmt::Display for Problem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::NotAnInteger => "is not an integer",
            Self::OldAbove => "is above the sender's level and cannot be changed by them",
            Self::OldNotBelow => "is not below the sender's level and cannot be changed by them",
            Self::NewAbove => "would be above the sender's level",
        })
    }
}

impl Change {
    fn of(old: Option<Entry>, new: Option<Entry>, version: RoomVersion) -> Result<Self, Problem> {
        let read = |entry: Option<Entry>| match entry {
            None => Ok(None),
            Some(entry) => entry.value(version).map(Some).ok_or(Problem::NotAnInteger),
        };
        Ok(Self { old: read(old)?, new: read(new)? })
    }

    /// `of_another`: the value is the level of a user who is not the sender.
    fn check(&self, own_level: PowerLevel, of_another: bool) -> Result<(), Problem> {
        if self.old == self.new {
            return Ok(());
        }
        if let Some(old) = self.old {
            if !own_level.reaches(old) {
                return Err(Problem::OldAbove);
            }
            if of_another && PowerLevel::Finite(old) >= own_level {
                return Err(Problem::OldNotBelow);
            }
        }
        match self.new {
            Some(new) if !own_level.reaches(new) => Err(Problem::NewAbove),
            _ => Ok(()),
        }
    }
}

/// The union of two sorted tables, key by key.
fn pairs<'t>(
    old: &'t Table,
    new: &'t Table,
) -> impl Iterator<Item = (&'t str, Option<Entry>, Option<Entry>)> {
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
            assert_eq!(Entry::of_text(text), Entry::Lenient(level), "{text:?}");
        }
        for text in ["", " ", "+", "-", "+-1", "1.0", "1e3", "0x10", "1_000", "+ 1", "١", "lots"] {
            assert_eq!(Entry::of_text(text), Entry::Malformed, "{text:?}");
        }
    }

    #[test]
    fn of_a_repeated_key_the_last_value_counts() {
        let content: Content =
            serde_json::from_str(r#"{"users":{"@b:x":1,"@a:x":2,"@b:x":3},"ban":1,"ban":[{}]}"#).unwrap();
        assert_eq!(content.users.get("@b:x"), Some(Entry::Integer(3)));
        assert_eq!(content.users.get("@a:x"), Some(Entry::Integer(2)));
        assert_eq!(content.named(Named::Ban), Some(Entry::Malformed));
    }

    #[test]
    fn a_creators_level_is_above_every_number() {
        assert!(PowerLevel::Infinite > PowerLevel::Finite(i64::MAX));
        assert!(PowerLevel::Infinite.reaches(i64::MAX));
        assert!(PowerLevel::Finite(50).reaches(50));
        assert!(!PowerLevel::Finite(49).reaches(50));
    }
}
