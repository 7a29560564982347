//! Power levels: what `m.room.power_levels` says, what holds where it says nothing, and the rules for changing it.
//!
//! Two faces of the same data. The rules ask strictly: a value that they need and that is not an integer makes
//! the event under judgement fail. Services ask leniently ([`PowerLevels::user`], [`PowerLevels::may_kick`] …):
//! such a value counts as if it were absent.

use std::fmt;
use std::sync::Arc;

use super::power_content::{LevelEntry, LevelTable, PowerContent, PowerLevelKey, pairs};
use super::{AuthError, Creation, Rule, StateLookup, create_of};
use crate::protocol::ids::UserId;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::RoomVersion;

/// The types of state, beside memberships, upon which other events rest and that can be set again.
const AUTH_STATE: [&str; 3] = ["m.room.power_levels", "m.room.join_rules", "m.room.third_party_invite"];

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

/// The power levels in force in one state: its `m.room.power_levels`, its creators and the defaults.
#[derive(Debug, Clone)]
pub struct PowerLevels {
    version: RoomVersion,
    creation: Option<Arc<Creation>>,
    content: Option<Arc<PowerContent>>,
}

impl PowerLevels {
    /// The levels in force in a state, given as a lookup by type and state key.
    pub fn of(version: RoomVersion, state: StateLookup<'_>) -> Self {
        let creation = create_of(state).map(|create| Arc::new(Creation::of(&create, version)));
        let content = state("m.room.power_levels", "").map(|event| Arc::new(PowerContent::of(&event)));
        Self { version, creation, content }
    }

    pub(super) fn new(
        version: RoomVersion,
        creation: Option<Arc<Creation>>,
        content: Option<Arc<PowerContent>>,
    ) -> Self {
        Self { version, creation, content }
    }

    /// A user's level; malformed values count as absent.
    pub fn user(&self, user: &str) -> PowerLevel {
        self.strict_user(user).unwrap_or(PowerLevel::Finite(0))
    }

    /// The level that sending an event of this type needs, by its own entry or by the default of its kind.
    pub fn required(&self, event_type: &str, is_state: bool) -> i64 {
        let which = if is_state { PowerLevelKey::StateDefault } else { PowerLevelKey::EventsDefault };
        self.strict_required(event_type, is_state).unwrap_or_else(|_| which.default_level())
    }

    /// One of the single levels.
    pub fn named(&self, which: PowerLevelKey) -> i64 {
        self.strict_named(which).unwrap_or_else(|_| which.default_level())
    }

    /// The level that a notification of this kind needs (`room` for `@room`); 50 unless said otherwise.
    /// What push rules will ask (`sender_notification_permission`).
    pub fn notification(&self, kind: &str) -> i64 {
        let entry = self.content.as_ref().and_then(|content| content.notifications.get(kind));
        entry.and_then(|entry| entry.value(self.version)).unwrap_or(50)
    }

    /// Whether the user's level suffices to invite.
    pub fn may_invite(&self, user: &str) -> bool {
        self.user(user).reaches(self.named(PowerLevelKey::Invite))
    }

    /// Whether the user's level suffices to remove the target (a joined, invited or knocking user).
    pub fn may_kick(&self, user: &str, target: &str) -> bool {
        let level = self.user(user);
        level.reaches(self.named(PowerLevelKey::Kick)) && self.user(target) < level
    }

    /// Whether the user's level suffices to redact anybody's events. One's own server's events need no level.
    pub fn may_redact(&self, user: &str) -> bool {
        self.user(user).reaches(self.named(PowerLevelKey::Redact))
    }

    /// The users who have most power of all, whether they are in the room or not: of those who are named, and the creators.
    pub fn mightiest(&self) -> Vec<String> {
        let named = self.content.iter().flat_map(|content| content.users.entries()).map(|(user, _)| user);
        let creators = self.creation.iter().flat_map(|creation| creation.creators());
        let mut users: Vec<&str> = named.chain(creators).collect();
        users.sort_unstable();
        users.dedup();
        let most = users.iter().map(|user| self.user(user)).max();
        let of_them = users.into_iter().filter(|user| Some(self.user(user)) == most);
        of_them.map(str::to_owned).collect()
    }

    /// Whether the user's level suffices for whatever a level can be needed for that bears upon others: to change the levels
    /// and the other state, to invite, to remove, to ban.
    pub fn may_do_all(&self, user: &str) -> bool {
        let level = self.user(user);
        let named = [
            PowerLevelKey::Ban,
            PowerLevelKey::Kick,
            PowerLevelKey::Invite,
            PowerLevelKey::StateDefault,
            PowerLevelKey::UsersDefault,
        ];
        named.into_iter().all(|which| level.reaches(self.named(which)))
            && AUTH_STATE.iter().all(|event_type| level.reaches(self.required(event_type, true)))
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
        if !content.users.is_object() {
            return Err(self.malformed("users"));
        }
        match content.users.get(user) {
            None | Some(LevelEntry::Null) => {
                self.strict_named(PowerLevelKey::UsersDefault).map(PowerLevel::Finite)
            }
            Some(entry) => {
                entry.value(self.version).map(PowerLevel::Finite).ok_or_else(|| self.malformed("users"))
            }
        }
    }

    pub(super) fn strict_named(&self, which: PowerLevelKey) -> Result<i64, AuthError> {
        match self.content.as_ref().and_then(|content| content.named(which)) {
            None | Some(LevelEntry::Null) => Ok(which.default_level()),
            Some(entry) => entry.value(self.version).ok_or_else(|| self.malformed(which.key())),
        }
    }

    pub(super) fn strict_required(&self, event_type: &str, is_state: bool) -> Result<i64, AuthError> {
        let which = if is_state { PowerLevelKey::StateDefault } else { PowerLevelKey::EventsDefault };
        let Some(content) = &self.content else { return Ok(which.default_level()) };
        // Also where it is empty: whoever asks Synapse for the level of an event in such a room gets an error.
        if !content.events.is_object() {
            return Err(self.malformed("events"));
        }
        match content.events.get(event_type) {
            None | Some(LevelEntry::Null) => self.strict_named(which),
            Some(entry) => entry.value(self.version).ok_or_else(|| self.malformed("events")),
        }
    }

    fn malformed(&self, key: &str) -> AuthError {
        AuthError::unnumbered(self.version, format!("the room's power levels have a malformed `{key}`"))
    }
}

/// The numbers of the rules below "If type is `m.room.power_levels`", which moved in versions 10 and 12.
struct PowerLevelRules {
    users: u8,
    creators: u8,
    named: u8,
    old_entry: u8,
    new_entry: u8,
    old_user: u8,
    new_user: u8,
}

impl PowerLevelRules {
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
    let new = PowerContent::of(event);
    let numbers = PowerLevelRules::of(version);
    let fail = |rule: u8, text: String| Err(AuthError::new(version, Rule::PowerLevels, &[rule], text));

    check_format(&new, version, &numbers, before)?;

    // 10.5. Without previous power levels: allow. The text does not say what those of another state key are; to Synapse they
    // are events of their own, which none of the room's state comes before.
    let Some(old) = before.content.as_deref().filter(|_| event.state_key().is_none_or(str::is_empty)) else {
        return Ok(());
    };
    let sender = event.sender().as_str();
    let own_level = before.strict_user(sender)?;

    // 10.6. The single levels that are added, changed or removed: neither the old nor the new value may be above
    // the sender's.
    for which in PowerLevelKey::ALL {
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
        if matches!(old, LevelTable::Malformed) || matches!(new, LevelTable::Malformed) {
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
    new: &PowerContent,
    version: RoomVersion,
    numbers: &PowerLevelRules,
    before: &PowerLevels,
) -> Result<(), AuthError> {
    let fail =
        |rule: u8, text: String| Err(AuthError::new(version, Rule::PowerLevels, &[rule], text).malformed());

    if version.integer_power_levels {
        // 10.1 (from version 10 on). The single levels are integers, if present.
        for which in PowerLevelKey::ALL {
            if new.named(which).is_some_and(|entry| entry.value(version).is_none()) {
                return fail(1, format!("`{}` is not an integer", which.key()));
            }
        }
        // 10.2 (from version 10 on). `events` and `notifications` are objects of integers, if present.
        for (name, table) in [("events", &new.events), ("notifications", &new.notifications)] {
            if !table.is_object() || table.entries().any(|(_, entry)| entry.value(version).is_none()) {
                return fail(2, format!("`{name}` is not an object of integers"));
            }
        }
    }

    // 10.3 (10.1 or 9.1 before version 10). `users` is an object of user ids and integers. Absent is empty.
    if !new.users.is_object() {
        return fail(numbers.users, "`users` is not an object".into());
    }
    for (user, entry) in new.users.entries() {
        if !names_a_user(user) {
            return fail(numbers.users, format!("`{user}` in `users` is not a user id"));
        }
        if entry.value(version).is_none() || matches!(entry, LevelEntry::Bool(_)) {
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

/// Whether a key of `users` is a user id, as Synapse has it in this rule: an `@`, and a colon somewhere behind it. Admins mistype
/// ids, and a server that took the grammar at its word would lose the room with everything that rests on such an event.
fn names_a_user(key: &str) -> bool {
    key.strip_prefix('@').is_some_and(|rest| rest.contains(':'))
}

/// What a user of this server may write, beyond what the rules ask: the ids that they add or give another level are ids by the
/// grammar, and what should be an object or a number is one. What the room has already stays as it is. Errors are malformed
/// content.
pub fn check_written(event: &Pdu, before: Option<&Pdu>, version: RoomVersion) -> Result<(), AuthError> {
    let (new, old) = (PowerContent::of(event), before.map(PowerContent::of).unwrap_or_default());
    let fail = |text: String| Err(AuthError::unnumbered(version, text).malformed());
    for (name, table) in [("events", &new.events), ("notifications", &new.notifications)] {
        if !table.is_object() {
            return fail(format!("`{name}` is not an object"));
        }
    }
    for (user, old, new) in pairs(&old.users, &new.users) {
        if new.is_some() && new != old && UserId::parse(user).is_err() {
            return fail(format!("`{user}` in `users` is not a user id"));
        }
    }
    let tables = [(&old.events, &new.events), (&old.notifications, &new.notifications)];
    let entries = tables.into_iter().flat_map(|(old, new)| pairs(old, new));
    let named = PowerLevelKey::ALL.into_iter().map(|which| (which.key(), old.named(which), new.named(which)));
    for (key, old, new) in named.chain(entries) {
        if new != old && matches!(new, Some(LevelEntry::Bool(_))) {
            return fail(format!("`{key}` is not an integer"));
        }
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
    fn of(old: Option<LevelEntry>, new: Option<LevelEntry>, version: RoomVersion) -> Result<Self, Problem> {
        let read = |entry: Option<LevelEntry>| match entry {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_creators_level_is_above_every_number() {
        assert!(PowerLevel::Infinite > PowerLevel::Finite(i64::MAX));
        assert!(PowerLevel::Infinite.reaches(i64::MAX));
        assert!(PowerLevel::Finite(50).reaches(50));
        assert!(!PowerLevel::Finite(49).reaches(50));
    }
}
