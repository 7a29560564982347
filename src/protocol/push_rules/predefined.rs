//! The push rules that everybody begins with (client-server API, "Predefined Rules"), in their order.

use serde_json::{Value, json};

use crate::protocol::UserId;

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

fn mentions_user(user: &UserId) -> Value {
    json!({"kind": "event_property_contains", "key": r"content.m\.mentions.user_ids", "value": user})
}

fn mentions_room() -> [Value; 2] {
    [
        json!({"kind": "event_property_is", "key": r"content.m\.mentions.room", "value": true}),
        json!({"kind": "sender_notification_permission", "key": "room"}),
    ]
}

/// The rules that look for names in an event's body, which the specification had until v1.16: clients have their switch for
/// mentions by them, and who is addressed by a sender that knows no `m.mentions` (bridges, bots) hears of it. "This rule is
/// deprecated": since v1.7 they do not apply to events that have `m.mentions`.
const CONTAINS_DISPLAY_NAME: &str = ".m.rule.contains_display_name";
pub(super) const ROOMNOTIF: &str = ".m.rule.roomnotif";
const CONTAINS_USER_NAME: &str = ".m.rule.contains_user_name";

/// Whether a predefined rule is one of these.
pub(super) fn is_for_events_without_mentions(rule_id: &str) -> bool {
    [CONTAINS_DISPLAY_NAME, ROOMNOTIF, CONTAINS_USER_NAME].contains(&rule_id)
}

/// The rule that "has always a higher priority than any other rule".
pub(super) fn master() -> Value {
    rule(".m.rule.master", false, json!([]), json!([]))
}

/// The override rules behind the user's own. `calls`: those that make a call ring (MSC4075) are among them.
pub(super) fn override_rules(user: &UserId, calls: bool) -> Vec<Value> {
    let nothing = || json!([]);
    let of_type = |event_type| event_match("type", event_type);
    let no_key = || event_match("state_key", "");
    let mut rules = vec![
        rule(
            ".m.rule.suppress_notices",
            true,
            json!([event_match("content.msgtype", "m.notice")]),
            nothing(),
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
        // That of MSC4506, which clients need not know: this server evaluates it for those who may let the knocker in.
        rule(
            ".m.rule.knock",
            true,
            json!([
                of_type("m.room.member"),
                event_match("content.membership", "knock"),
                {"kind": "recipient_permission", "key": "invite"},
            ]),
            notify(&[sound("default")]),
        ),
        rule(".m.rule.member_event", true, json!([of_type("m.room.member")]), nothing()),
    ];
    if calls {
        rules.extend(call_rules(user));
    }
    let [room, permission] = mentions_room();
    rules.extend([
        rule(
            ".m.rule.is_user_mention",
            true,
            json!([mentions_user(user)]),
            notify(&[sound("default"), highlight()]),
        ),
        rule(
            CONTAINS_DISPLAY_NAME,
            true,
            json!([{"kind": "contains_display_name"}]),
            notify(&[sound("default"), highlight()]),
        ),
        rule(".m.rule.is_room_mention", true, json!([room, permission.clone()]), notify(&[highlight()])),
        rule(
            ROOMNOTIF,
            true,
            json!([event_match("content.body", "@room"), permission]),
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
    ]);
    rules
}

fn call_rules(user: &UserId) -> [Value; 2] {
    let of_call = || event_match("type", "org.matrix.msc4075.rtc.notification");
    let [room, permission] = mentions_room();
    [
        rule(
            ".org.matrix.msc4075.rule.rtc.invite_for_me",
            true,
            json!([of_call(), mentions_user(user)]),
            notify(&[sound("ring")]),
        ),
        rule(
            ".org.matrix.msc4075.rule.rtc.invite_for_room",
            true,
            json!([of_call(), room, permission]),
            notify(&[sound("ring")]),
        ),
    ]
}

/// The content rules behind the user's own.
pub(super) fn content_rules(user: &UserId) -> Vec<Value> {
    vec![json!({
        "rule_id": CONTAINS_USER_NAME,
        "default": true,
        "enabled": true,
        "pattern": user.localpart(),
        "actions": notify(&[sound("default"), highlight()]),
    })]
}

/// The rules behind those for content and before those for rooms (MSC4306): of threads that the user is not subscribed to they
/// hear only if they are mentioned, of the others whatever they have set for the room.
pub(super) fn postcontent_rules() -> Vec<Value> {
    let if_subscribed = |subscribed: bool| json!([{"kind": "io.element.msc4306.thread_subscription", "subscribed": subscribed}]);
    vec![
        rule(".io.element.msc4306.rule.unsubscribed_thread", true, if_subscribed(false), json!([])),
        rule(
            ".io.element.msc4306.rule.subscribed_thread",
            true,
            if_subscribed(true),
            notify(&[sound("default")]),
        ),
    ]
}

/// The underride rules behind the user's own.
pub(super) fn underride_rules() -> Vec<Value> {
    let of_type = |event_type| event_match("type", event_type);
    let two_members = || json!({"kind": "room_member_count", "is": "2"});
    vec![
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
    ]
}
