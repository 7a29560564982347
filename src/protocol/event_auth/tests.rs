//! What the vectors do not show: the helpers for services, the numbers in errors, bounds.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::*;
use crate::protocol::room_version::room_version;
use crate::protocol::signatures::sign::{SigningKey, sign_json};
use crate::protocol::{ServerName, json as canonical};

const CREATOR: &str = "@creator:one.example";
const MODERATOR: &str = "@moderator:two.example";
const USER: &str = "@user:three.example";

fn version(id: &str) -> RoomVersion {
    room_version(id).expect("a room version")
}

fn event(id: &str, event_type: &str, sender: &str, state_key: Option<&str>, content: &Value) -> Pdu {
    let mut object = json!({
        "type": event_type, "sender": sender, "content": content, "depth": 1, "origin_server_ts": 1,
        "prev_events": [], "auth_events": [], "hashes": {}, "signatures": {},
    });
    let version = version(id);
    if let Some(state_key) = state_key {
        object["state_key"] = state_key.into();
    }
    if version.event_id_format == room_version::EventIdFormat::InEvent {
        object["event_id"] =
            format!("${event_type}{}:one.example", state_key.unwrap_or_default().len()).into();
    }
    if version.room_id_is_create_hash {
        if event_type != "m.room.create" {
            object["room_id"] = "!AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA".into();
        }
    } else {
        object["room_id"] = "!room:one.example".into();
    }
    let Value::Object(object) = object else { unreachable!("it is one") };
    Pdu::from_object(object, version).expect("an event")
}

struct StateOfTest(HashMap<(String, String), Pdu>);

impl StateOfTest {
    /// A room with a creator, a moderator with level 50 and a user, all joined.
    fn new(id: &str, extra: &[(&str, &str, &str, Value)]) -> Self {
        let mut state = Self(HashMap::new());
        let mut levels = json!({ "users": { MODERATOR: 50 }, "notifications": { "room": 20 } });
        if !version(id).privileged_creators {
            levels["users"][CREATOR] = 100.into();
        }
        state.add(event(id, "m.room.create", CREATOR, Some(""), &json!({ "creator": CREATOR })));
        state.add(event(id, "m.room.power_levels", CREATOR, Some(""), &levels));
        for user in [CREATOR, MODERATOR, USER] {
            state.add(event(id, "m.room.member", user, Some(user), &json!({ "membership": "join" })));
        }
        for (event_type, sender, state_key, content) in extra {
            state.add(event(id, event_type, sender, Some(state_key), content));
        }
        state
    }

    fn add(&mut self, event: Pdu) {
        let key = (event.event_type().to_owned(), event.state_key().expect("a state event").to_owned());
        self.0.insert(key, event);
    }

    fn get(&self, kind: &str, key: &str) -> Option<Pdu> {
        self.0.get(&(kind.to_owned(), key.to_owned())).cloned()
    }
}

#[test]
fn whatever_an_event_selects_as_its_auth_events_is_of_an_auth_type() {
    let contents = [
        json!({ "membership": "join", "join_authorised_via_users_server": MODERATOR }),
        json!({ "membership": "invite", "third_party_invite": { "signed": { "token": "t" } } }),
        json!({ "membership": "knock" }),
        json!({ "membership": "ban" }),
    ];
    let mut seen = Vec::new();
    for (id, event_type) in [("10", "m.room.member"), ("12", "m.room.member"), ("10", "m.room.topic")] {
        for content in &contents {
            let content = content.as_object().expect("an object");
            let selected = auth_types(event_type, MODERATOR, Some(USER), content, version(id));
            seen.extend(selected.into_iter().map(|(event_type, _)| event_type));
        }
    }
    seen.sort_unstable();
    seen.dedup();
    assert_eq!(seen.len(), 5, "{seen:?}");
    assert!(seen.iter().all(|event_type| is_auth_type(event_type)), "{seen:?}");
    assert!(!["m.room.topic", "m.room.server_acl", "m.room.message"].into_iter().any(is_auth_type));
}

#[test]
fn services_read_what_users_may_do() {
    let state = StateOfTest::new("11", &[]);
    let power = PowerLevels::of(version("11"), &|kind, key| state.get(kind, key));
    assert_eq!(power.user(CREATOR), PowerLevel::Finite(100));
    assert_eq!(power.user("@nobody:four.example"), PowerLevel::Finite(0));
    assert!(power.may_kick(MODERATOR, USER));
    assert!(!power.may_kick(MODERATOR, CREATOR) && !power.may_kick(USER, "@nobody:four.example"));
    assert!(!power.may_kick(MODERATOR, MODERATOR));
    assert!(power.may_invite(USER) && power.may_redact(MODERATOR) && !power.may_redact(USER));
    let reaches = |user, level| power.user(user).reaches(level);
    assert!(reaches(USER, power.required("m.room.message", false)));
    assert!(!reaches(USER, power.required("m.room.topic", true)));
    assert_eq!((power.notification("room"), power.notification("other")), (20, 50));
    assert!(reaches(MODERATOR, power.notification("room")) && !reaches(USER, power.notification("room")));
}

#[test]
fn a_creator_of_version_12_is_above_everybody_without_being_listed() {
    let state = StateOfTest::new("12", &[]);
    let power = PowerLevels::of(version("12"), &|kind, key| state.get(kind, key));
    assert_eq!(power.user(CREATOR), PowerLevel::Infinite);
    assert!(power.may_kick(CREATOR, MODERATOR) && !power.may_kick(MODERATOR, CREATOR));
    let without = PowerLevels::of(version("11"), &|kind, key| {
        StateOfTest::new("11", &[]).get(kind, key).filter(|_| kind != "m.room.power_levels")
    });
    assert_eq!(without.user(CREATOR), PowerLevel::Finite(100));
    assert_eq!(without.user(MODERATOR), PowerLevel::Finite(0));
    assert_eq!(without.required("m.room.topic", true), 50);
}

#[test]
fn join_rules_are_read_by_the_rules_of_the_version() {
    let allow = json!([
        { "type": "m.room_membership", "room_id": "!a:b" }, { "type": "m.room_membership" },
        { "type": "other", "room_id": "!c:b" }, 5, { "type": "m.room_membership", "room_id": "d" },
    ]);
    let content = json!({ "join_rule": "knock_restricted", "allow": allow });
    for (id, knocks, rooms) in [("7", false, 0), ("9", false, 0), ("10", true, 1), ("12", true, 1)] {
        let state = StateOfTest::new(id, &[("m.room.join_rules", CREATOR, "", content.clone())]);
        let rules = JoinRules::of(version(id), &|kind, key| state.get(kind, key));
        assert_eq!(rules.rule.takes_knocks(version(id)), knocks, "{id}");
        assert_eq!(rules.allowed_rooms.len(), rooms, "{id}");
    }
    let none = JoinRules::of(version("11"), &|_, _| None);
    assert_eq!(none, JoinRules { rule: JoinRule::Invite, allowed_rooms: vec![] });
}

#[test]
fn an_error_says_the_rule_in_the_numbers_of_its_room_version() {
    let rule_of = |id: &str, event_type: &str, sender: &str, state_key: Option<&str>, content: Value| {
        let state = StateOfTest::new(id, &[]);
        let event = event(id, event_type, sender, state_key, &content);
        let error = check(&event, version(id), &|kind, key| state.get(kind, key)).expect_err("not allowed");
        error.rule().unwrap_or_default().to_owned()
    };
    let cases: [(&str, [&str; 4]); 5] = [
        ("1", ["5.2.2", "6", "8", "10.7"]),
        ("6", ["4.2.2", "5", "7", "9.7"]),
        ("8", ["4.3.2", "5", "7", "9.7"]),
        ("10", ["4.3.2", "5", "7", "9.9"]),
        ("12", ["5.3.2", "6", "8", "10.10"]),
    ];
    for (id, expected) in cases {
        let levels =
            json!({ "users": { CREATOR: 100, MODERATOR: 50, USER: 51 }, "notifications": { "room": 20 } });
        let mut levels_12 = levels.clone();
        levels_12["users"].as_object_mut().expect("an object").remove(CREATOR);
        let levels = if version(id).privileged_creators { levels_12 } else { levels };
        let found = [
            rule_of(id, "m.room.member", CREATOR, Some(USER), json!({ "membership": "join" })),
            rule_of(id, "m.room.message", "@nobody:four.example", None, json!({})),
            rule_of(id, "m.room.topic", USER, Some(""), json!({})),
            rule_of(id, "m.room.power_levels", MODERATOR, Some(""), levels),
        ];
        assert_eq!(found, expected, "version {id}");
    }
    let state = StateOfTest::new("12", &[]);
    let topic = event("12", "m.room.topic", USER, Some(""), &json!({}));
    let error = check(&topic, version("12"), &|kind, key| state.get(kind, key)).expect_err("not allowed");
    assert_eq!(
        Error::from(error).message(),
        "m.room.topic needs power level 50, @user:three.example has 0 (rule 8 of room version 12)"
    );
}

#[test]
fn signatures_of_third_party_invites_beyond_any_sense_are_not_tried() {
    let key = SigningKey::from_seed("ed25519:0", [1; 32]).expect("a key");
    let other = SigningKey::from_seed("ed25519:0", [2; 32]).expect("a key").public_base64();
    let mut signed =
        json!({ "mxid": "@new:four.example", "token": "t" }).as_object().expect("an object").clone();
    sign_json(&mut signed, &ServerName::parse("zz.example").expect("a name"), &key);
    // Three hundred wrong signatures come before the right one.
    let right = signed["signatures"]["zz.example"]["ed25519:0"].clone();
    let wrong = |n: usize| (format!("ed25519:{n:03}"), canonical::base64(&[n as u8; 64]).into());
    let many: Map<String, Value> = (0..300).map(wrong).collect();
    signed["signatures"]["aa.example"] = Value::Object(many);
    let keys: Vec<Value> = (0..300).map(|_| json!({ "public_key": other })).collect();
    let issued = json!({ "public_key": key.public_base64(), "public_keys": keys });

    let state = StateOfTest::new("11", &[("m.room.third_party_invite", MODERATOR, "t", issued)]);
    let outcome = |signed: &Map<String, Value>| {
        let content = json!({ "membership": "invite", "third_party_invite": { "signed": signed } });
        let invite = event("11", "m.room.member", MODERATOR, Some("@new:four.example"), &content);
        check(&invite, version("11"), &|kind, key| state.get(kind, key))
    };
    assert_eq!(outcome(&signed).expect_err("too many").rule(), Some("4.4.1.8"));
    signed["signatures"] = json!({ "zz.example": { "ed25519:0": right, "rsa:1": "x" }, "aa.example": 5 });
    outcome(&signed).expect("one signature is right");
}

#[test]
fn auth_events_that_are_not_at_hand_make_an_event_fail() {
    let state = StateOfTest::new("11", &[]);
    let create = state.get("m.room.create", "").expect("it is there");
    let mut object = event("11", "m.room.message", USER, None, &json!({})).to_object();
    object["auth_events"] = json!([create.event_id(), "$unknown"]);
    let message = Pdu::from_object(object, version("11")).expect("an event");
    let error = check_auth_events(&message, &[create], &|_| false, version("11")).expect_err("not known");
    assert_eq!(error.rule(), None);
    assert!(error.to_string().contains("$unknown"), "{error}");
}

/// What becomes of power levels in a room of this version, by the rules and by what a local user may write, where the room's
/// own are those of [`StateOfTest`] or these.
fn levels_pass(id: &str, before: Option<&Value>, state_key: &str, levels: &Value) -> (bool, bool) {
    let mut state = StateOfTest::new(id, &[]);
    if let Some(before) = before {
        state.add(event(id, "m.room.power_levels", CREATOR, Some(""), before));
    }
    let change = event(id, "m.room.power_levels", CREATOR, Some(state_key), levels);
    let old = state.get("m.room.power_levels", "");
    (
        check(&change, version(id), &|kind, key| state.get(kind, key)).is_ok(),
        check_written(&change, old.as_ref(), version(id)).is_ok(),
    )
}

#[test]
fn a_mistyped_id_in_power_levels_is_let_stand_as_others_let_it_and_no_local_user_writes_one() {
    let long = format!("@{}:a.example", "x".repeat(300));
    let odd = [
        "@mod:example.org ",
        "@a:ex_am.org",
        "@a:",
        "@a:https://ex.org",
        "@:",
        "@a: b:c",
        "@é:ex.org/x",
        &long,
    ];
    for id in ["1", "6", "10", "11", "12"] {
        let levels = |key: &str, level: i64| {
            let mut levels = json!({ "users": { MODERATOR: 50 } });
            if !version(id).privileged_creators {
                levels["users"][CREATOR] = 100.into();
            }
            levels["users"][key] = level.into();
            levels
        };
        for key in odd {
            assert_eq!(levels_pass(id, None, "", &levels(key, 1)), (true, false), "{id}: {key}");
            // Once the room has it, what is left as it is stands in nobody's way.
            let there = levels(key, 1);
            assert_eq!(levels_pass(id, Some(&there), "", &there), (true, true), "{id}: {key}");
            assert_eq!(levels_pass(id, Some(&there), "", &levels(key, 2)), (true, false), "{id}: {key}");
            assert_eq!(levels_pass(id, Some(&there), "", &levels(USER, 1)), (true, true), "{id}: {key}");
        }
        for key in ["", "@", "@nobody", "nobody", "nobody:ex.org", ":@"] {
            assert!(!levels_pass(id, None, "", &levels(key, 1)).0, "{id}: {key}");
        }
    }
}

#[test]
fn before_version_10_what_no_rule_speaks_of_in_power_levels_is_as_others_have_it() {
    let with = |key: &str, value: Value| {
        let mut levels = json!({ "users": { CREATOR: 100, MODERATOR: 50 } });
        levels[key] = value;
        levels
    };
    for id in ["5", "6", "9"] {
        let passes = |before: Option<&Value>, levels: &Value| levels_pass(id, before, "", levels);
        for empty in [json!([]), json!("")] {
            assert_eq!(passes(None, &with("events", empty.clone())), (true, false), "{id}");
            assert_eq!(passes(None, &with("notifications", empty.clone())), (true, false), "{id}");
            assert!(!passes(None, &json!({ "users": empty })).0, "{id}");
            // Who has come in is in; but there is no level for anything else.
            let before = with("events", empty.clone());
            let mut state =
                StateOfTest::new(id, &[("m.room.join_rules", CREATOR, "", json!({ "join_rule": "public" }))]);
            state.add(event(id, "m.room.power_levels", CREATOR, Some(""), &before));
            let allowed = |event: &Pdu| check(event, version(id), &|kind, key| state.get(kind, key)).is_ok();
            let join = event(
                id,
                "m.room.member",
                "@new:a.example",
                Some("@new:a.example"),
                &json!({ "membership": "join" }),
            );
            assert!(allowed(&join), "{id}");
            assert!(!allowed(&event(id, "m.room.message", CREATOR, None, &json!({}))), "{id}");
            // Kinds of notifications are asked for by nobody but who changes them.
            let before = with("notifications", empty);
            assert_eq!(
                passes(Some(&before), &with("notifications", json!({ "room": 20 }))),
                (true, true),
                "{id}"
            );
        }
        for wrong in [json!(["a"]), json!("a"), json!(5), json!(null), json!(false)] {
            assert!(!passes(None, &with("events", wrong)).0, "{id}");
        }
        for (yes, level) in [(false, 0), (true, 1)] {
            assert_eq!(passes(None, &with("events_default", yes.into())), (true, false), "{id}");
            assert_eq!(passes(None, &with("events", json!({ "m.room.name": yes }))), (true, false), "{id}");
            let state =
                event(id, "m.room.power_levels", CREATOR, Some(""), &with("events_default", yes.into()));
            let power = PowerLevels::of(version(id), &|kind, _| {
                Some(state.clone()).filter(|_| kind == "m.room.power_levels")
            });
            assert_eq!(power.required("m.room.message", false), level, "{id}");
            // Of levels of users the text says what they are.
            assert!(!passes(None, &json!({ "users": { CREATOR: 100, USER: yes } })).0, "{id}");
        }
    }
    for id in ["10", "11"] {
        for (key, value) in
            [("events", json!([])), ("notifications", json!("")), ("events_default", json!(false))]
        {
            assert!(!levels_pass(id, None, "", &with(key, value)).0, "{id}: {key}");
        }
    }
}

#[test]
fn power_levels_of_another_state_key_are_not_compared_with_those_in_force() {
    for id in ["5", "11"] {
        let none = json!({ "users": {} });
        assert!(levels_pass(id, None, "x", &none).0, "{id}");
        // Those in force name the creator, whose level nobody of the same may take.
        let by_another = json!({ "users": { CREATOR: 100, MODERATOR: 100 } });
        let change = event(id, "m.room.power_levels", MODERATOR, Some("x"), &none);
        let mut state = StateOfTest::new(id, &[]);
        state.add(event(id, "m.room.power_levels", CREATOR, Some(""), &by_another));
        assert!(check(&change, version(id), &|kind, key| state.get(kind, key)).is_ok(), "{id}");
        // What they look like is a matter of theirs all the same.
        assert!(!levels_pass(id, None, "x", &json!({ "users": { "nobody": 1 } })).0, "{id}");
    }
}
