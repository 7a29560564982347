//! Authorisation rules of room versions 1 to 12: may this event be in a room with this state?
//!
//! Three questions, asked in this order by whoever receives or makes an event:
//!
//! 1. [`auth_types`]: which state must an event cite in its `auth_events`?
//! 2. [`check_auth_events`]: the rules that look only at the event and at the events it cites.
//! 3. [`check`]: the rules against a state: that of its auth events, that before it, the current one.
//!
//! Signatures are checked before (`protocol::signatures::verify`), except those inside third-party invites, which are a rule.
//!
//! Comments number the rules as room version 12 does. Versions 1–5 have one more at the top level (aliases), 12
//! another (the room id), and inner lists moved too: [`AuthError`] says the number in the event's own version.
//!
//! Where Synapse is known to do something else than the text, and rooms depend on it, the code says so.
//!
//! Here: what is asked and in which order. `membership`: the rules of `m.room.member`; `join_rules`, `power_levels`: what is
//! in force in a state, and the rules of changing levels; `power_content`: levels as they are written; `third_party`: the
//! signatures inside third-party invites.

mod join_rules;
mod membership;
mod power_content;
mod power_levels;
#[cfg(test)]
mod tests;
pub mod third_party;

use std::borrow::Cow;
use std::cell::{OnceCell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use serde_json::{Map, Value};

pub use join_rules::{JoinRule, JoinRules};
pub use power_content::PowerLevelKey;
pub use power_levels::{PowerLevel, PowerLevels, check_written};

use self::power_content::PowerContent;
use super::ids::{EventId, UserId};
use super::pdu::{Membership, Pdu};
use super::room_version::{self, RoomVersion};
use crate::error::Error;

/// A room state as a lookup by event type and state key.
pub type StateLookup<'a> = &'a dyn Fn(&str, &str) -> Option<Pdu>;

/// Why an event is not allowed: the rule's number in the event's room version, and the rule in words.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AuthError {
    version: &'static str,
    rule: Option<String>,
    text: Cow<'static, str>,
    malformed: bool,
}

impl AuthError {
    fn new(version: RoomVersion, section: Rule, inner: &[u8], text: impl Into<Cow<'static, str>>) -> Self {
        let mut rule = section.number(version).to_string();
        for number in inner {
            rule.push('.');
            rule.push_str(&number.to_string());
        }
        Self { version: version.id, rule: Some(rule), text: text.into(), malformed: false }
    }

    /// For what no rule names, because the rules take it for granted, or because something else decides.
    pub(crate) fn unnumbered(version: RoomVersion, text: impl Into<Cow<'static, str>>) -> Self {
        Self { version: version.id, rule: None, text: text.into(), malformed: false }
    }

    /// The same for content that nobody may send, whatever they are in the room.
    fn malformed(self) -> Self {
        Self { malformed: true, ..self }
    }

    /// The number of the rule in the event's room version, for example `5.3.2`.
    pub fn rule(&self) -> Option<&str> {
        self.rule.as_deref()
    }
}

impl fmt::Display for AuthError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.rule {
            Some(rule) => write!(f, "{} (rule {rule} of room version {})", self.text, self.version),
            None => write!(f, "{} (room version {})", self.text, self.version),
        }
    }
}

impl std::error::Error for AuthError {}

/// 400 `M_BAD_JSON` ("The sender's request is malformed") where what it says can be no such event, else 403 `M_FORBIDDEN` ("The
/// sender doesn't have permission to send the event into the room").
impl From<AuthError> for Error {
    fn from(e: AuthError) -> Self {
        if e.malformed { Error::bad_json(e.to_string()) } else { Error::forbidden(e.to_string()) }
    }
}

/// The rules at the top level of the specification's lists.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Rule {
    Create,
    RoomId,
    AuthEvents,
    Federate,
    Aliases,
    Member,
    SenderJoined,
    ThirdPartyInvite,
    RequiredLevel,
    StateKey,
    PowerLevels,
    Redaction,
}

impl Rule {
    fn number(self, version: RoomVersion) -> u8 {
        let room_id = u8::from(version.room_id_is_create_hash);
        let all = room_id + u8::from(version.special_aliases);
        match self {
            Self::Create => 1,
            Self::RoomId => 2,
            Self::AuthEvents => 2 + room_id,
            Self::Federate => 3 + room_id,
            Self::Aliases => 4,
            Self::Member => 4 + all,
            Self::SenderJoined => 5 + all,
            Self::ThirdPartyInvite => 6 + all,
            Self::RequiredLevel => 7 + all,
            Self::StateKey => 8 + all,
            Self::PowerLevels => 9 + all,
            Self::Redaction => 10 + all,
        }
    }
}

// ------------------------------------------------------------------------------------------ auth events selection

/// The (type, state key) pairs of the state events that an event should cite in `auth_events`, as far as the state
/// has them (server-server API, "Auth events selection"). In room version 12 the create event is not among them.
pub fn auth_types(
    event_type: &str,
    sender: &str,
    state_key: Option<&str>,
    content: &Map<String, Value>,
    version: RoomVersion,
) -> Vec<(String, String)> {
    selection(event_type, sender, state_key, content, version)
        .into_iter()
        .map(|(kind, key)| (kind.to_owned(), key.to_owned()))
        .collect()
}

/// Whether an event's authorisation may rest on state of this type: those that [`auth_types`] selects, and the create event,
/// upon which every event rests.
pub fn is_auth_type(event_type: &str) -> bool {
    matches!(
        event_type,
        "m.room.create"
            | "m.room.power_levels"
            | "m.room.member"
            | "m.room.join_rules"
            | "m.room.third_party_invite"
    )
}

/// [`auth_types`] without copying anything.
pub(crate) fn selection<'e>(
    event_type: &str,
    sender: &'e str,
    state_key: Option<&'e str>,
    content: &'e Map<String, Value>,
    version: RoomVersion,
) -> Vec<(&'static str, &'e str)> {
    let mut selected = Vec::with_capacity(6);
    if event_type == "m.room.create" {
        return selected;
    }
    if !version.room_id_is_create_hash {
        selected.push(("m.room.create", ""));
    }
    selected.push(("m.room.power_levels", ""));
    selected.push(("m.room.member", sender));
    let (true, Some(target)) = (event_type == "m.room.member", state_key) else { return selected };

    let add_member = |user: &'e str, selected: &mut Vec<_>| {
        if !selected.contains(&("m.room.member", user)) {
            selected.push(("m.room.member", user));
        }
    };
    add_member(target, &mut selected);
    let membership = content.get("membership").and_then(Value::as_str);
    if matches!(membership, Some("join" | "invite" | "knock")) {
        selected.push(("m.room.join_rules", ""));
    }
    if membership == Some("invite") {
        let invite = content.get("third_party_invite");
        if let Some(token) = invite.and_then(|i| i.get("signed")?.get("token")?.as_str()) {
            selected.push(("m.room.third_party_invite", token));
        }
    }
    if membership == Some("join")
        && version.restricted_join
        && let Some(user) = content.get("join_authorised_via_users_server").and_then(Value::as_str)
    {
        add_member(user, &mut selected);
    }
    selected
}

// ------------------------------------------------------------------------------------- rules that need no state

/// Rules 1 to 3: those that look only at the event and at the events that it cites.
///
/// `auth` has the events named in `auth_events`, in any order; from room version 12 on also the room's create
/// event, which no event names. Others in it are ignored, so the caller may pass more. `rejected` says of an event
/// in `auth` whether it was rejected. Cited events that are not in `auth` make the event fail: fetch them first.
pub fn check_auth_events(
    event: &Pdu,
    auth: &[Pdu],
    rejected: &dyn Fn(&EventId) -> bool,
    version: RoomVersion,
) -> Result<(), AuthError> {
    if event.event_type() == "m.room.create" {
        return check_create(event, version);
    }

    // 2 (version 12). The room id is that of an accepted create event.
    if version.room_id_is_create_hash {
        let create =
            auth.iter().find(|e| e.event_type() == "m.room.create" && e.room_id() == event.room_id());
        if create.is_none_or(|create| rejected(create.event_id())) {
            let text = "the room id is not that of an accepted m.room.create event";
            return Err(AuthError::new(version, Rule::RoomId, &[], text));
        }
    }

    let fail = |rule: u8, text: String| Err(AuthError::new(version, Rule::AuthEvents, &[rule], text));
    let content = if event.event_type() == "m.room.member" { event.content() } else { Map::new() };
    let expected =
        selection(event.event_type(), event.sender().as_str(), event.state_key(), &content, version);
    let mut seen: Vec<(&str, &str)> = Vec::with_capacity(expected.len());
    for id in event.auth_events() {
        let Some(cited) = auth.iter().find(|e| e.event_id() == id) else {
            return Err(AuthError::unnumbered(version, format!("the auth event {id} is not known")));
        };
        let key = (cited.event_type(), cited.state_key().unwrap_or_default());
        // 3.1. No two for the same type and state key.
        if seen.contains(&key) {
            return fail(1, format!("two auth events for {} {:?}", key.0, key.1));
        }
        // 3.2. Only what auth events selection selects.
        if cited.state_key().is_none() || !expected.contains(&key) {
            return fail(2, format!("the auth event {} {:?} is not one that this event needs", key.0, key.1));
        }
        // 3.3. None that was itself rejected.
        if rejected(id) {
            return fail(3, format!("the auth event {id} was rejected"));
        }
        // 3.5. All of the same room.
        if cited.room_id() != event.room_id() {
            return fail(5, format!("the auth event {id} is of another room"));
        }
        seen.push(key);
    }
    // 2.4 (versions before 12). The create event is among them.
    if !version.room_id_is_create_hash && !seen.contains(&("m.room.create", "")) {
        return fail(4, "there is no m.room.create among the auth events".into());
    }
    Ok(())
}

/// Rule 1.
fn check_create(event: &Pdu, version: RoomVersion) -> Result<(), AuthError> {
    let fail = |rule: u8, text: &'static str| Err(AuthError::new(version, Rule::Create, &[rule], text));
    // Not a rule of its own, but the state key is what makes it the create event.
    if event.state_key() != Some("") {
        return Err(AuthError::unnumbered(version, "m.room.create must have an empty state key"));
    }
    // 1.1. Nothing comes before it.
    if !event.prev_events().is_empty() {
        return fail(1, "m.room.create must not have prev_events");
    }
    if version.room_id_is_create_hash {
        // 1.2 (version 12). It has no room id: it is the room id.
        if event.canonical().get("room_id").is_some() {
            return fail(2, "m.room.create must not have a room_id");
        }
    } else if event.room_id().server_name() != Some(event.sender().server_name()) {
        // 1.2 (before). The room id is of the sender's server.
        return fail(2, "the room_id of m.room.create is not of the sender's server");
    }
    let content = event.content();
    // 1.3. Its version is one that we know, if it names one.
    if let Some(named) = content.get("room_version")
        && named.as_str().and_then(room_version::room_version).is_none()
    {
        return fail(3, "m.room.create names a room version that is not known");
    }
    // 1.4 (before version 11). It names the creator.
    if version.creator_in_content && !content.contains_key("creator") {
        return fail(4, "m.room.create must name the creator");
    }
    // 1.4 (version 12). Additional creators are user ids.
    if let Some(additional) = content.get("additional_creators").filter(|_| version.privileged_creators) {
        let is_user = |value: &Value| value.as_str().is_some_and(|user| UserId::parse(user).is_ok());
        if !additional.as_array().is_some_and(|users| users.iter().all(is_user)) {
            return fail(4, "additional_creators must be a list of user ids");
        }
    }
    // 1.5. Otherwise, allow.
    Ok(())
}

// ------------------------------------------------------------------------------------------ rules against a state

/// The rules from 4 on (3 before version 12): those against a room state. An event must pass them against the
/// state of its auth events, against the state before it, and, not to be soft-failed, against the current state.
/// `m.room.create` events always pass: they have no state before them.
pub fn check(event: &Pdu, version: RoomVersion, state: StateLookup<'_>) -> Result<(), AuthError> {
    AuthChecker::new(version).check(event, state)
}

/// [`check`] against the state that an event's own auth events make. `auth` as in [`check_auth_events`].
pub fn check_against_auth_events(event: &Pdu, auth: &[Pdu], version: RoomVersion) -> Result<(), AuthError> {
    AuthChecker::new(version).check_against_auth_events(event, auth)
}

/// [`check`] for many events of one room: remembers what it read of the power levels, the join rules and the create
/// event.
/// For one thread; make one for each.
pub struct AuthChecker {
    version: RoomVersion,
    creations: RefCell<HashMap<EventId, Arc<Creation>>>,
    power_levels: RefCell<HashMap<EventId, Arc<PowerContent>>>,
    join_rules: RefCell<HashMap<EventId, Arc<JoinRule>>>,
}

/// So many power levels (and as many of the others) are remembered before starting afresh: enough for the branches of a
/// fork.
const EVENTS_REMEMBERED_MAX: usize = 256;

impl AuthChecker {
    /// A checker of one room version's rules that remembers nothing yet.
    pub fn new(version: RoomVersion) -> Self {
        let (creations, power_levels, join_rules) = Default::default();
        Self { version, creations, power_levels, join_rules }
    }

    /// See [`check`].
    pub fn check(&self, event: &Pdu, state: StateLookup<'_>) -> Result<(), AuthError> {
        if event.event_type() == "m.room.create" {
            return Ok(());
        }
        let Some(create) = create_of(state) else {
            return Err(AuthError::unnumbered(self.version, "there is no m.room.create in the room's state"));
        };
        let creation = self.creation(&create);
        EventCheck {
            checker: self,
            version: self.version,
            event,
            state,
            create,
            creation,
            power: OnceCell::new(),
        }
        .check()
    }

    /// See [`check_against_auth_events`].
    pub fn check_against_auth_events(&self, event: &Pdu, auth: &[Pdu]) -> Result<(), AuthError> {
        self.check(event, &|kind, key| {
            let is_it = |e: &&Pdu| {
                e.event_type() == kind
                    && e.state_key() == Some(key)
                    && (event.auth_events().contains(e.event_id())
                        || (self.version.room_id_is_create_hash
                            && kind == "m.room.create"
                            && e.room_id() == event.room_id()))
            };
            auth.iter().find(is_it).cloned()
        })
    }

    fn creation(&self, create: &Pdu) -> Arc<Creation> {
        remember(&self.creations, create, || Creation::of(create, self.version))
    }

    fn content(&self, power_levels: &Pdu) -> Arc<PowerContent> {
        remember(&self.power_levels, power_levels, || PowerContent::of(power_levels))
    }

    /// The power levels in force in a state, as [`PowerLevels::of`] gives them.
    pub fn power_levels_in(&self, state: StateLookup<'_>) -> PowerLevels {
        self.power_levels(create_of(state).as_ref(), state("m.room.power_levels", "").as_ref())
    }

    /// The power levels that two state events make, either of which may be missing.
    pub(super) fn power_levels(&self, create: Option<&Pdu>, power_levels: Option<&Pdu>) -> PowerLevels {
        let creation = create.map(|create| self.creation(create));
        PowerLevels::new(self.version, creation, power_levels.map(|event| self.content(event)))
    }
}

fn remember<T>(memory: &RefCell<HashMap<EventId, Arc<T>>>, event: &Pdu, read: impl FnOnce() -> T) -> Arc<T> {
    let mut memory = memory.borrow_mut();
    if let Some(known) = memory.get(event.event_id()) {
        return known.clone();
    }
    if memory.len() >= EVENTS_REMEMBERED_MAX {
        memory.clear();
    }
    let value = Arc::new(read());
    memory.insert(event.event_id().clone(), value.clone());
    value
}

fn create_of(state: StateLookup<'_>) -> Option<Pdu> {
    state("m.room.create", "")
}

/// What the rules ask of a create event.
#[derive(Debug)]
struct Creation {
    sender: UserId,
    /// `content.creator` before version 11, the sender from then on. Kept as it was written.
    creator: String,
    /// Version 12 only.
    additional: Vec<String>,
    federate: bool,
}

impl Creation {
    fn of(create: &Pdu, version: RoomVersion) -> Self {
        let content = create.content();
        let text = |value: &Value| value.as_str().map(str::to_owned);
        let creator = if version.creator_in_content {
            content.get("creator").and_then(text).unwrap_or_default()
        } else {
            create.sender().as_str().to_owned()
        };
        let additional = match content.get("additional_creators") {
            Some(Value::Array(users)) if version.privileged_creators => {
                users.iter().filter_map(text).collect()
            }
            _ => Vec::new(),
        };
        let federate = content.get("m.federate") != Some(&Value::Bool(false));
        Self { sender: create.sender().clone(), creator, additional, federate }
    }

    fn creators(&self) -> impl Iterator<Item = &str> {
        std::iter::once(self.creator.as_str()).chain(self.additional.iter().map(String::as_str))
    }

    fn is_creator(&self, user: &str) -> bool {
        self.creators().any(|creator| creator == user)
    }
}

/// One event before one state.
struct EventCheck<'a> {
    checker: &'a AuthChecker,
    version: RoomVersion,
    event: &'a Pdu,
    state: StateLookup<'a>,
    create: Pdu,
    creation: Arc<Creation>,
    power: OnceCell<PowerLevels>,
}

impl EventCheck<'_> {
    fn fail(&self, section: Rule, inner: &[u8], text: impl Into<Cow<'static, str>>) -> Result<(), AuthError> {
        Err(AuthError::new(self.version, section, inner, text))
    }

    fn power(&self) -> &PowerLevels {
        self.power.get_or_init(|| {
            let content = (self.state)("m.room.power_levels", "").map(|event| self.checker.content(&event));
            PowerLevels::new(self.version, Some(self.creation.clone()), content)
        })
    }

    fn join_rule(&self) -> JoinRule {
        let event = (self.state)("m.room.join_rules", "");
        event.map_or(JoinRule::Invite, |event| {
            *remember(&self.checker.join_rules, &event, || JoinRule::of(&event))
        })
    }

    fn membership(&self, user: &str) -> Option<Membership> {
        (self.state)("m.room.member", user)?.membership()
    }

    fn is_joined(&self, user: &str) -> bool {
        self.membership(user) == Some(Membership::Join)
    }

    fn check(&self) -> Result<(), AuthError> {
        let (version, event, sender) = (self.version, self.event, self.event.sender().as_str());

        // 4. A room that does not federate is for users of the create event's server.
        if !self.creation.federate && event.sender().server_name() != self.creation.sender.server_name() {
            return self.fail(Rule::Federate, &[], "the room does not federate");
        }

        // 4 of versions 1 to 5. A server's aliases are set by its users, be they in the room or not.
        if version.special_aliases && event.event_type() == "m.room.aliases" {
            let Some(state_key) = event.state_key() else {
                return self.fail(Rule::Aliases, &[1], "m.room.aliases must have a state key");
            };
            if state_key != event.sender().server_name() {
                let text = "the state key of m.room.aliases is not the sender's server";
                return self.fail(Rule::Aliases, &[2], text);
            }
            return Ok(());
        }

        // 5.
        if event.event_type() == "m.room.member" {
            return self.check_membership();
        }

        // 6. Whoever sends anything else is in the room.
        if !self.is_joined(sender) {
            return self.fail(Rule::SenderJoined, &[], format!("{sender} is not in the room"));
        }

        // 7. Third-party invites need the level of invites, not that of their type.
        let power = self.power();
        let level = power.strict_user(sender)?;
        if event.event_type() == "m.room.third_party_invite" {
            let invite = power.strict_named(PowerLevelKey::Invite)?;
            if !level.reaches(invite) {
                let text = format!("inviting needs power level {invite}, {sender} has {level}");
                return self.fail(Rule::ThirdPartyInvite, &[1], text);
            }
            return Ok(());
        }

        // 8. The event type's required level.
        let required = power.strict_required(event.event_type(), event.is_state())?;
        if !level.reaches(required) {
            let text = format!("{} needs power level {required}, {sender} has {level}", event.event_type());
            return self.fail(Rule::RequiredLevel, &[], text);
        }

        // 9. State keys that look like user ids belong to their users.
        if event.state_key().is_some_and(|key| key.starts_with('@') && key != sender) {
            return self.fail(Rule::StateKey, &[], "the state key names another user");
        }

        // 10.
        if event.event_type() == "m.room.power_levels" {
            return power_levels::check_change(event, version, power);
        }

        // 11 of versions 1 and 2.
        if version.redactions_authorised && event.event_type() == "m.room.redaction" {
            return self.check_redaction(level);
        }

        // 11 (12 in versions 1 and 2). Otherwise, allow.
        Ok(())
    }

    /// Rule 11 of versions 1 and 2. Later versions decide this when the redaction is applied.
    fn check_redaction(&self, level: PowerLevel) -> Result<(), AuthError> {
        // 11.1. Moderators redact anything.
        if level.reaches(self.power().strict_named(PowerLevelKey::Redact)?) {
            return Ok(());
        }
        // 11.2. Others what comes from the same server, going by the event ids.
        let target = self.event.redacts();
        let target_server = target.as_ref().and_then(|id| id.server_name());
        if target_server.is_some() && target_server == self.event.event_id().server_name() {
            return Ok(());
        }
        // 11.3. Otherwise, reject.
        let text = "redacting events of other servers needs the redact level";
        self.fail(Rule::Redaction, &[3], text)
    }
}
