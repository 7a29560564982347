//! What the room is made of that replaces another: the old room's state, as the new room's version can have it. Pure, so
//! that every pair of versions is tested as data.

use std::collections::BTreeSet;

use serde_json::{Map, Value, json};

use crate::order::Gather;
use crate::protocol::event_auth::PowerLevelKey;
use crate::protocol::json::{INTEGER_MAX, object_of};
use crate::protocol::{RoomId, RoomVersion, UserId};
use crate::service::rooms::create::{PlannedEvent, join_content};

/// The settings that a new room takes over, each with an empty state key ("the recommended state events to transfer").
/// The power levels come on their own, behind everything else.
pub(super) const SETTINGS: [&str; 8] = [
    "m.room.join_rules",
    "m.room.history_visibility",
    "m.room.guest_access",
    "m.room.encryption",
    "m.room.server_acl",
    "m.room.name",
    "m.room.avatar",
    "m.room.topic",
];

/// The types that tie a room to spaces and a space to rooms, each with a room's id as its state key (MSC4168).
pub(super) const TIES: [&str; 2] = ["m.space.child", "m.space.parent"];

/// What is taken over of the old room.
#[derive(Debug, Clone)]
pub(super) struct OldState {
    /// The room.
    pub room_id: RoomId,
    /// Its version.
    pub version: RoomVersion,
    /// The content of its create event.
    pub create: Map<String, Value>,
    /// Its creators; more than one in versions that have additional ones.
    pub creators: Vec<String>,
    /// Its power levels.
    pub power_levels: Option<Map<String, Value>>,
    /// Its settings and its ties.
    pub state: Vec<PlannedEvent>,
    /// Who is banned, and the reasons.
    pub bans: Vec<(UserId, Option<String>)>,
}

/// What is asked for.
pub(super) struct Wishes<'a> {
    /// Who upgrades: the new room's creator.
    pub creator: &'a UserId,
    /// Their `displayname` and `avatar_url`.
    pub profile: &'a Map<String, Value>,
    /// Who else is to be a creator, in a version that has that.
    pub additional_creators: &'a [UserId],
    /// The new room's version.
    pub version: RoomVersion,
    /// The content of the new room's `m.room.canonical_alias`, of the aliases that move.
    pub canonical_alias: Option<Map<String, Value>>,
}

/// The events of the new room, the create event first. The power levels are the last one: until there are any, the
/// creator may do everything, whatever they could do in the old room. In the create event's `predecessor` there is no
/// `event_id` yet.
pub(super) fn plan(old: &OldState, wishes: &Wishes<'_>) -> Vec<PlannedEvent> {
    let version = wishes.version;
    let creators: BTreeSet<&str> = match version.privileged_creators {
        true => wishes.additional_creators.iter().chain([wishes.creator]).map(UserId::as_str).gather(),
        false => BTreeSet::from([wishes.creator.as_str()]),
    };
    let event = |event_type: &str, state_key: &str, content: Map<String, Value>| PlannedEvent {
        event_type: event_type.to_owned(),
        state_key: state_key.to_owned(),
        content,
    };
    let mut events = vec![
        event("m.room.create", "", creation_content(old, wishes, &creators)),
        event("m.room.member", wishes.creator.as_str(), join_content(wishes.profile)),
    ];
    for taken in &old.state {
        let mut content = taken.content.clone();
        if version.strict_canonical_json {
            content.retain(|_, value| make_canonical(value));
        }
        if taken.event_type == "m.room.join_rules" && taken.state_key.is_empty() {
            content = join_rules(content, &old.room_id, version);
        }
        events.push(event(&taken.event_type, &taken.state_key, content));
    }
    if let Some(content) = &wishes.canonical_alias {
        events.push(event("m.room.canonical_alias", "", content.clone()));
    }
    // Nobody can ban a creator, and then there would be no room.
    let banned = old.bans.iter().filter(|(user, _)| !creators.contains(user.as_str()));
    events.extend(banned.map(|(user, reason)| event("m.room.member", user.as_str(), ban_content(reason))));
    events.push(event("m.room.power_levels", "", power_levels(old, version, &creators)));
    events
}

/// The content of a ban.
pub(super) fn ban_content(reason: &Option<String>) -> Map<String, Value> {
    let mut content = object_of([("membership", Value::from("ban"))]);
    if let Some(reason) = reason {
        content.insert("reason".to_owned(), reason.as_str().into());
    }
    content
}

fn creation_content(old: &OldState, wishes: &Wishes<'_>, creators: &BTreeSet<&str>) -> Map<String, Value> {
    let version = wishes.version;
    let mut content = object_of([
        ("room_version", Value::from(version.id)),
        ("predecessor", json!({ "room_id": old.room_id })),
    ]);
    // "If no `type` is set on the previous room, no `type` is specified on the new room's create event either."
    if let Some(room_type) = old.create.get("type").filter(|room_type| room_type.is_string()) {
        content.insert("type".to_owned(), room_type.clone());
    }
    // A room that was kept to this server stays so, as in Synapse.
    if old.create.get("m.federate") == Some(&Value::Bool(false)) {
        content.insert("m.federate".to_owned(), false.into());
    }
    if version.creator_in_content {
        content.insert("creator".to_owned(), wishes.creator.as_str().into());
    }
    let others: Vec<&str> =
        creators.iter().copied().filter(|creator| *creator != wishes.creator.as_str()).collect();
    if version.privileged_creators && !others.is_empty() {
        content.insert("additional_creators".to_owned(), json!(others));
    }
    content
}

/// The join rule as the new version knows it, with the old room's members let in where that can be said: who was in an
/// invite-only room can then follow. A rule that the version does not know would shut everybody out, the invited too.
fn join_rules(mut content: Map<String, Value>, old: &RoomId, version: RoomVersion) -> Map<String, Value> {
    let rule = content.get("join_rule").and_then(Value::as_str).unwrap_or("invite").to_owned();
    let knocks = matches!(rule.as_str(), "knock" | "knock_restricted");
    let known = match rule.as_str() {
        "invite" | "restricted" | "knock" | "knock_restricted" => {
            if knocks && version.knock_restricted {
                "knock_restricted"
            } else if version.restricted_join && rule != "knock" {
                "restricted"
            } else if knocks && version.knock {
                "knock"
            } else {
                "invite"
            }
        }
        _ => return content,
    };
    content.insert("join_rule".to_owned(), known.into());
    if !known.ends_with("restricted") {
        content.remove("allow");
        return content;
    }
    let mut allow = match content.remove("allow") {
        Some(Value::Array(allow)) if rule.ends_with("restricted") => allow,
        _ => Vec::new(),
    };
    if !allow.iter().any(|entry| entry["room_id"] == old.as_str()) {
        allow.push(json!({ "type": "m.room_membership", "room_id": old }));
    }
    content.insert("allow".to_owned(), allow.into());
    content
}

/// The power levels, as integers. In versions whose creators stand above all levels they are not named; where such a
/// version is left, its creators get the level that does as much.
fn power_levels(old: &OldState, version: RoomVersion, creators: &BTreeSet<&str>) -> Map<String, Value> {
    let mut content = old.power_levels.clone().unwrap_or_else(|| {
        // "If there is no power levels event, the creator has 100 and everybody else 0."
        let users: Map<String, Value> =
            old.creators.iter().map(|creator| (creator.clone(), 100.into())).gather();
        object_of([("users", users.into())])
    });
    content.retain(|key, value| match key.as_str() {
        "users" => make_table(value, |user| UserId::parse(user).is_ok()),
        "events" | "notifications" => make_table(value, |_| true),
        key if PowerLevelKey::ALL.iter().any(|known| known.key() == key) => make_level(value),
        _ => make_canonical(value),
    });
    let state_default = content.get("state_default").and_then(Value::as_i64).unwrap_or(50);
    let tombstone = "m.room.tombstone";
    if version.privileged_creators {
        let users = table(&mut content, "users");
        users.retain(|user, _| !creators.contains(user.as_str()));
        // "If the room's version is 12 or higher, the power level for sending m.room.tombstone events MUST explicitly be
        // higher than state_default."
        let events = table(&mut content, "events");
        let present = events.get(tombstone).and_then(Value::as_i64);
        let is_kept = old.version.privileged_creators && present.is_some_and(|level| level > state_default);
        if !is_kept {
            let level = present.unwrap_or(0).max(150).max(state_default.saturating_add(1));
            events.insert(tombstone.to_owned(), level.min(INTEGER_MAX).into());
        }
    } else if old.version.privileged_creators {
        let events = table(&mut content, "events");
        // Levels that were out of everybody's reach but the creators' would be out of theirs.
        if let Some(level) = events.get(tombstone).and_then(Value::as_i64) {
            events.insert(tombstone.to_owned(), level.min(100).into());
        }
        let level = highest_level(&content).max(100);
        let users = table(&mut content, "users");
        users.extend(old.creators.iter().map(|creator| (creator.clone(), level.into())));
    }
    content
}

/// The highest level that anybody has, or that anything takes.
fn highest_level(content: &Map<String, Value>) -> i64 {
    let tables = ["users", "events", "notifications"];
    let in_tables = tables.iter().filter_map(|name| content.get(*name)?.as_object()).flat_map(Map::values);
    content.values().chain(in_tables).filter_map(Value::as_i64).max().unwrap_or(0)
}

/// The table of this name, made if there is none.
fn table<'c>(content: &'c mut Map<String, Value>, name: &str) -> &'c mut Map<String, Value> {
    let entry = content.entry(name).or_insert_with(|| json!({}));
    if !entry.is_object() {
        *entry = json!({});
    }
    let Value::Object(table) = entry else { unreachable!("it was made an object") };
    table
}

/// Makes a table of levels of what may be one. False: it is none.
fn make_table(value: &mut Value, is_key: impl Fn(&str) -> bool) -> bool {
    let Value::Object(table) = value else { return false };
    table.retain(|key, level| is_key(key) && make_level(level));
    true
}

/// Makes an integer of a level: older versions had them as strings of digits too, and took fractions for the whole number
/// before. False: it is no level.
fn make_level(value: &mut Value) -> bool {
    let level = match value {
        Value::Number(number) => {
            number.as_i64().or_else(|| number.as_f64().filter(|f| f.is_finite()).map(|f| f as i64))
        }
        Value::String(text) => text.trim().parse().ok(),
        _ => None,
    };
    let Some(level) = level else { return false };
    *value = level.clamp(-INTEGER_MAX, INTEGER_MAX).into();
    true
}

/// Takes out of a value what newer versions have no place for in an event: fractions, and integers that are too large.
/// False: it is such a number itself.
fn make_canonical(value: &mut Value) -> bool {
    match value {
        Value::Number(number) => {
            number.as_i64().is_some_and(|number| (-INTEGER_MAX..=INTEGER_MAX).contains(&number))
        }
        Value::Array(values) => {
            values.retain_mut(make_canonical);
            true
        }
        Value::Object(entries) => {
            entries.retain(|_, value| make_canonical(value));
            true
        }
        _ => true,
    }
}

/// The old room's power levels with which only those with a say can still send events and invite: "for example, setting
/// `events_default` and `invite` to the greater of `50` and `users_default + 1`". None if that is so already.
pub(super) fn restricted_levels(power_levels: &Map<String, Value>) -> Option<Map<String, Value>> {
    let level_of = |key: &str| {
        let mut value = power_levels.get(key).cloned()?;
        make_level(&mut value).then(|| value.as_i64())?
    };
    let least = level_of("users_default").unwrap_or(0).saturating_add(1).clamp(50, INTEGER_MAX);
    let mut content = power_levels.clone();
    for key in ["events_default", "invite"] {
        if level_of(key).unwrap_or(0) < least {
            content.insert(key.to_owned(), least.into());
        }
    }
    (content != *power_levels).then_some(content)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::room_version::room_version;

    fn user(id: &str) -> UserId {
        UserId::parse(id).unwrap()
    }

    fn old(version: &str, state: Vec<PlannedEvent>, power_levels: Value) -> OldState {
        OldState {
            room_id: RoomId::parse("!old:a.org").unwrap(),
            version: room_version(version).unwrap(),
            create: Map::new(),
            creators: vec!["@founder:a.org".to_owned()],
            power_levels: power_levels.as_object().cloned(),
            state,
            bans: Vec::new(),
        }
    }

    fn setting(event_type: &str, content: Value) -> PlannedEvent {
        let content = content.as_object().unwrap().clone();
        PlannedEvent { event_type: event_type.to_owned(), state_key: String::new(), content }
    }

    fn planned(old: &OldState, version: &str, additional: &[UserId]) -> Vec<PlannedEvent> {
        plan(
            old,
            &Wishes {
                creator: &user("@admin:a.org"),
                profile: &Map::new(),
                additional_creators: additional,
                version: room_version(version).unwrap(),
                canonical_alias: None,
            },
        )
    }

    fn content(events: &[PlannedEvent], event_type: &str) -> Value {
        let found = events.iter().rev().find(|event| event.event_type == event_type);
        found.unwrap_or_else(|| panic!("no {event_type}")).content.clone().into()
    }

    #[test]
    fn a_join_rule_becomes_one_that_the_version_knows_and_that_lets_the_old_room_in() {
        for (rule, version, becomes) in [
            ("public", "1", "public"),
            ("invite", "7", "invite"),
            ("invite", "8", "restricted"),
            ("invite", "12", "restricted"),
            ("knock", "6", "invite"),
            ("knock", "7", "knock"),
            ("knock", "9", "knock"),
            ("knock", "10", "knock_restricted"),
            ("restricted", "7", "invite"),
            ("restricted", "8", "restricted"),
            ("knock_restricted", "6", "invite"),
            ("knock_restricted", "7", "knock"),
            ("knock_restricted", "9", "restricted"),
            ("knock_restricted", "11", "knock_restricted"),
            ("private", "11", "private"),
        ] {
            let allow = json!([{"type": "m.room_membership", "room_id": "!space:a.org"}]);
            let rules = setting("m.room.join_rules", json!({"join_rule": rule, "allow": allow}));
            let events = planned(&old("11", vec![rules], json!({})), version, &[]);
            let rules = content(&events, "m.room.join_rules");
            assert_eq!(rules["join_rule"], becomes, "{rule} in version {version}");
            let allowed: Vec<&str> = rules["allow"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|a| a["room_id"].as_str())
                .collect();
            match (becomes.ends_with("restricted"), rule.ends_with("restricted")) {
                (true, true) => assert_eq!(allowed, ["!space:a.org", "!old:a.org"], "{rule} in {version}"),
                (true, false) => assert_eq!(allowed, ["!old:a.org"], "{rule} in {version}"),
                (false, _) if becomes == rule => {}
                (false, _) => assert!(allowed.is_empty(), "{rule} in {version}"),
            }
        }
    }

    #[test]
    fn creators_have_no_level_where_they_stand_above_all_and_get_one_where_they_do_not() {
        let levels = json!({"users": {"@admin:a.org": 100, "@mod:a.org": 50, "@old:b.org": 100}, "state_default": 50,
            "events": {"m.room.tombstone": 100}});
        let to_12 = content(
            &planned(&old("11", vec![], levels.clone()), "12", &[user("@mod:a.org")]),
            "m.room.power_levels",
        );
        assert_eq!(to_12["users"], json!({"@old:b.org": 100}));
        assert_eq!(to_12["events"]["m.room.tombstone"], 150);
        let create =
            content(&planned(&old("11", vec![], levels), "12", &[user("@mod:a.org")]), "m.room.create");
        assert_eq!(create["additional_creators"], json!(["@mod:a.org"]));
        assert!(create.get("creator").is_none());

        let mut of_12 =
            old("12", vec![], json!({"users": {"@mod:a.org": 50}, "events": {"m.room.tombstone": 150}}));
        of_12.creators = vec!["@founder:a.org".into(), "@admin:a.org".into()];
        let from_12 = content(&planned(&of_12, "11", &[]), "m.room.power_levels");
        assert_eq!(from_12["users"], json!({"@mod:a.org": 50, "@founder:a.org": 100, "@admin:a.org": 100}));
        assert_eq!(from_12["events"]["m.room.tombstone"], 100);
        // Of a room whose own settings were for its creators alone.
        of_12.power_levels =
            json!({"events": {"m.room.name": 200}, "users": {"@mod:a.org": 120}}).as_object().cloned();
        let from_12 = content(&planned(&of_12, "10", &[]), "m.room.power_levels");
        assert_eq!(from_12["users"]["@founder:a.org"], 200);
        // Within the versions that have it, a level that the room chose stays.
        of_12.power_levels = json!({"events": {"m.room.tombstone": 90}}).as_object().cloned();
        let again = content(&planned(&of_12, "12", &[]), "m.room.power_levels");
        assert_eq!(again["events"]["m.room.tombstone"], 90);
    }

    #[test]
    fn what_older_versions_let_pass_becomes_what_newer_ones_do() {
        let levels = json!({"ban": "60", "kick": 55.9, "invite": null, "redact": [], "users": {"@mod:a.org": " 50 ", "nobody": 3,
            "@x:a.org": {}}, "events": 7, "notifications": {"room": "20"}, "org.example": {"half": 0.5, "one": 1}});
        let name = setting(
            "m.room.name",
            json!({"name": "Half", "org.example": [0.5, 1, {"big": 9007199254740993_i64}]}),
        );
        for version in ["6", "10", "12"] {
            let events = planned(&old("5", vec![name.clone()], levels.clone()), version, &[]);
            let new = content(&events, "m.room.power_levels");
            assert_eq!((&new["ban"], &new["kick"]), (&json!(60), &json!(55)), "{version}");
            assert!(new.get("invite").is_none() && new.get("redact").is_none(), "{new}");
            assert_eq!(new["users"], json!({"@mod:a.org": 50}));
            assert_eq!(new["notifications"], json!({"room": 20}));
            assert_eq!(new["org.example"], json!({"one": 1}));
            assert_eq!(content(&events, "m.room.name"), json!({"name": "Half", "org.example": [1, {}]}));
        }
        let events = planned(&old("1", vec![name], levels), "5", &[]);
        assert_eq!(content(&events, "m.room.name")["org.example"][0], 0.5);
    }

    #[test]
    fn a_room_without_power_levels_gets_those_that_held_in_it() {
        let events = planned(&old("9", vec![], Value::Null), "10", &[]);
        assert_eq!(content(&events, "m.room.power_levels"), json!({"users": {"@founder:a.org": 100}}));
    }

    #[test]
    fn a_creator_who_was_banned_is_not_banned_again() {
        let mut of_11 = old("11", vec![], json!({}));
        of_11.bans = vec![(user("@eve:b.org"), Some("spam".to_owned())), (user("@bob:b.org"), None)];
        let events = planned(&of_11, "12", &[user("@bob:b.org")]);
        let bans: Vec<_> =
            events.iter().filter(|e| e.content.get("membership") == Some(&json!("ban"))).collect();
        assert_eq!(bans.len(), 1);
        assert_eq!((bans[0].state_key.as_str(), &bans[0].content["reason"]), ("@eve:b.org", &json!("spam")));
    }

    #[test]
    fn the_old_room_is_restricted_to_those_with_a_say() {
        let restricted = |levels: Value| restricted_levels(levels.as_object().unwrap()).map(Value::from);
        assert_eq!(restricted(json!({})), Some(json!({"events_default": 50, "invite": 50})));
        assert_eq!(
            restricted(json!({"users_default": 60, "invite": 100})),
            Some(json!({"users_default": 60, "invite": 100, "events_default": 61}))
        );
        assert_eq!(restricted(json!({"events_default": "50", "invite": 50})), None);
    }
}
