//! The push rules that every account starts with (client-server API, "Push notifications", "Predefined rules").

use serde_json::{Value, json};

use crate::protocol::UserId;

/// The server-default ruleset for this user: what `GET /pushrules/` has under `global`.
pub fn default_ruleset(user: &UserId) -> Value {
    json!({
        "override": override_rules(user),
        "content": [],
        "room": [],
        "sender": [],
        "underride": underride_rules(),
    })
}

fn rule(rule_id: &str, enabled: bool, conditions: Value, actions: Value) -> Value {
    json!({
        "rule_id": rule_id,
        "default": true,
        "enabled": enabled,
        "conditions": conditions,
        "actions": actions,
    })
}

fn event_match(key: &str, pattern: &str) -> Value {
    json!({"kind": "event_match", "key": key, "pattern": pattern})
}

fn notify(tweaks: &[Value]) -> Value {
    let mut actions = vec![json!("notify")];
    actions.extend_from_slice(tweaks);
    Value::Array(actions)
}

fn sound(name: &str) -> Value {
    json!({"set_tweak": "sound", "value": name})
}

fn highlight() -> Value {
    json!({"set_tweak": "highlight"})
}

fn override_rules(user: &UserId) -> Value {
    let nothing = || json!([]);
    let of_type = |event_type| event_match("type", event_type);
    let no_key = || event_match("state_key", "");
    json!([
        rule(".m.rule.master", false, nothing(), nothing()),
        rule(
            ".m.rule.suppress_notices",
            true,
            json!([event_match("content.msgtype", "m.notice")]),
            nothing()
        ),
        rule(
            ".m.rule.invite_for_me",
            true,
            json!([
                of_type("m.room.member"),
                event_match("content.membership", "invite"),
                event_match("state_key", user.as_str()),
            ]),
            notify(&[sound("default")]),
        ),
        rule(".m.rule.member_event", true, json!([of_type("m.room.member")]), nothing()),
        rule(
            ".m.rule.is_user_mention",
            true,
            json!([{
                "kind": "event_property_contains",
                "key": r"content.m\.mentions.user_ids",
                "value": user,
            }]),
            notify(&[sound("default"), highlight()]),
        ),
        rule(
            ".m.rule.is_room_mention",
            true,
            json!([
                {"kind": "event_property_is", "key": r"content.m\.mentions.room", "value": true},
                {"kind": "sender_notification_permission", "key": "room"},
            ]),
            notify(&[highlight()]),
        ),
        rule(
            ".m.rule.tombstone",
            true,
            json!([of_type("m.room.tombstone"), no_key()]),
            notify(&[highlight()]),
        ),
        rule(".m.rule.reaction", true, json!([of_type("m.reaction")]), nothing()),
        rule(".m.rule.room.server_acl", true, json!([of_type("m.room.server_acl"), no_key()]), nothing()),
        rule(
            ".m.rule.suppress_edits",
            true,
            json!([{
                "kind": "event_property_is",
                "key": r"content.m\.relates_to.rel_type",
                "value": "m.replace",
            }]),
            nothing(),
        ),
    ])
}

fn underride_rules() -> Value {
    let of_type = |event_type| event_match("type", event_type);
    let two_members = || json!({"kind": "room_member_count", "is": "2"});
    json!([
        rule(".m.rule.call", true, json!([of_type("m.call.invite")]), notify(&[sound("ring")])),
        rule(
            ".m.rule.encrypted_room_one_to_one",
            true,
            json!([two_members(), of_type("m.room.encrypted")]),
            notify(&[sound("default")]),
        ),
        rule(
            ".m.rule.room_one_to_one",
            true,
            json!([two_members(), of_type("m.room.message")]),
            notify(&[sound("default")]),
        ),
        rule(".m.rule.message", true, json!([of_type("m.room.message")]), notify(&[])),
        rule(".m.rule.encrypted", true, json!([of_type("m.room.encrypted")]), notify(&[])),
    ])
}

/// One rule of a ruleset by its kind and id.
pub fn find<'r>(ruleset: &'r Value, kind: &str, rule_id: &str) -> Option<&'r Value> {
    ruleset.get(kind)?.as_array()?.iter().find(|rule| rule["rule_id"] == rule_id)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_default_rule_begins_with_a_dot_and_the_master_rule_is_off() {
        let user = UserId::parse("@alice:example.org").unwrap();
        let rules = default_ruleset(&user);
        let all = ["override", "underride"].iter().flat_map(|kind| rules[*kind].as_array().unwrap());
        for rule in all {
            let rule_id = rule["rule_id"].as_str().unwrap();
            assert!(rule_id.starts_with(".m.rule."));
            assert_eq!(rule["enabled"], rule_id != ".m.rule.master", "{rule_id}");
            assert_eq!(rule["default"], true);
        }
        let invite = find(&rules, "override", ".m.rule.invite_for_me").unwrap();
        assert_eq!(invite["conditions"][2]["pattern"], "@alice:example.org");
        assert!(find(&rules, "override", ".m.rule.nothing").is_none());
        assert!(find(&rules, "sideways", ".m.rule.master").is_none());
    }
}
