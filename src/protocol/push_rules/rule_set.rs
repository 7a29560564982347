//! Rules that were compiled, in the order in which they are asked, and what they make of an event.

use std::sync::Arc;

use serde_json::{Value, json};

use super::condition::Condition;
use super::event::{PushEvent, Recipient, RoomFacts};
use super::predefined::{ROOMNOTIF, is_for_events_without_mentions};
use super::user_rules::{RuleKind, UserRules};
use crate::protocol::UserId;
use crate::protocol::glob::Steps;

/// What an event is to a user.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Outcome {
    /// Whether they are notified at all; the others are false if they are not.
    pub notify: bool,
    /// Whether it is highlighted.
    pub highlight: bool,
    /// Whether there is a sound.
    pub sound: bool,
    /// Whether it is not among what is unread: they are told of it, and that is all.
    pub uncounted: bool,
}

impl Outcome {
    /// The number that stands for it: 1 for `notify`, 2 for `highlight`, 4 for `sound`, 8 for `uncounted`.
    pub fn code(self) -> u8 {
        let bits = [self.notify, self.highlight, self.sound, self.uncounted];
        bits.iter().enumerate().map(|(place, bit)| u8::from(*bit) << place).sum()
    }

    /// What a number stands for.
    pub fn of_code(code: u8) -> Self {
        let bit = |place: u8| code >> place & 1 != 0;
        Self { notify: bit(0), highlight: bit(1), sound: bit(2), uncounted: bit(3) }
    }

    /// The actions that usually lead to it: the sound is the default one.
    pub fn usual_actions(self) -> Vec<Value> {
        let mut actions = Vec::new();
        if self.notify {
            actions.push(json!("notify"));
        }
        if self.sound {
            actions.push(json!({"set_tweak": "sound", "value": "default"}));
        }
        if self.highlight {
            actions.push(json!({"set_tweak": "highlight"}));
        }
        actions
    }
}

/// The actions of a rule.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Actions {
    /// What they lead to.
    pub outcome: Outcome,
    /// The actions as JSON, where they are not those that usually lead to it.
    pub unusual: Option<String>,
}

impl Actions {
    /// Reads the actions of a rule. Unknown ones are ignored, as are those of history (`dont_notify`, `coalesce`).
    pub fn of(actions: &[Value]) -> Self {
        let notify = actions.iter().any(|action| action == "notify");
        if !notify {
            return Self::default();
        }
        let tweak = |name: &str| actions.iter().rev().find(|action| action["set_tweak"] == name);
        // "If a highlight tweak is given with no value, its value is defined to be true."
        let highlight =
            tweak("highlight").is_some_and(|tweak| tweak.get("value") != Some(&Value::Bool(false)));
        let sound = tweak("sound").is_some_and(|tweak| tweak["value"].is_string());
        let outcome = Outcome { notify, highlight, sound, uncounted: false };
        let told: Vec<&Value> =
            actions.iter().filter(|action| *action == "notify" || action["set_tweak"].is_string()).collect();
        let same = |tweak: &Value| match tweak["set_tweak"].as_str() {
            Some("sound") => tweak["value"] == "default" || !sound,
            Some("highlight") => !highlight || tweak.get("value").is_none_or(|value| *value == true),
            Some(_) => false,
            None => true,
        };
        let unusual = (!told.iter().all(|action| same(action))).then(|| json!(told).to_string());
        Self { outcome, unusual }
    }
}

/// That rules could not be judged, for they take too long. Somebody else's answer has to be found for them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct StepsUsedUp;

/// Rules, compiled.
#[derive(Debug, Default)]
pub struct RuleSet {
    rules: Vec<Arc<Rule>>,
    /// So many of them, the first, override all others.
    overriding: usize,
    /// So many are for content.
    content: usize,
    /// So many are of the kind behind that for content.
    postcontent: usize,
}

#[derive(Debug, PartialEq)]
struct Rule {
    conditions: Vec<Condition>,
    actions: Actions,
}

impl RuleSet {
    /// Compiles a ruleset as clients read it. `user`: whose it is.
    pub fn compile(ruleset: &Value, user: &str) -> Self {
        let mut set = Self::default();
        for kind in RuleKind::ALL {
            let of_kind = ruleset.get(kind.as_str()).and_then(Value::as_array);
            let before = set.rules.len();
            set.add(kind, user, of_kind.into_iter().flatten());
            match kind {
                RuleKind::Override => set.overriding = set.rules.len(),
                RuleKind::ContentSpecific => set.content = set.rules.len() - before,
                RuleKind::PostContent => set.postcontent = set.rules.len() - before,
                _ => {}
            }
        }
        set
    }

    /// Compiles the rules of a user. The predefined ones, which are compiled already, are taken as they are if the user has changed
    /// nothing in them: then it costs what the user's own rules do.
    pub fn of_user(rules: &UserRules, user: &UserId, calls: bool, predefined: &RuleSet) -> Self {
        if rules.change_predefined() {
            return Self::compile(&rules.ruleset(user, calls), user.as_str());
        }
        // In the order of `UserRules::ruleset`; that which switches all others off is not enabled.
        let (overriding, others) =
            predefined.rules.split_at(predefined.overriding.min(predefined.rules.len()));
        let (content, others) = others.split_at(predefined.content.min(others.len()));
        let (postcontent, underride) = others.split_at(predefined.postcontent.min(others.len()));
        let mut set = Self::default();
        for kind in RuleKind::ALL {
            let before = set.rules.len();
            set.add(kind, user.as_str(), &rules.own(kind));
            match kind {
                RuleKind::Override => {
                    set.rules.extend_from_slice(overriding);
                    set.overriding = set.rules.len();
                }
                RuleKind::ContentSpecific => {
                    set.rules.extend_from_slice(content);
                    set.content = set.rules.len() - before;
                }
                RuleKind::PostContent => {
                    set.rules.extend_from_slice(postcontent);
                    set.postcontent = postcontent.len();
                }
                RuleKind::Underride => set.rules.extend_from_slice(underride),
                _ => {}
            }
        }
        set
    }

    fn add<'r>(&mut self, kind: RuleKind, user: &str, rules: impl IntoIterator<Item = &'r Value>) {
        for rule in rules {
            // "Disabled rules never match."
            if rule["enabled"] == true {
                let actions = Actions::of(rule["actions"].as_array().map_or(&[][..], Vec::as_slice));
                self.rules.push(Arc::new(Rule { conditions: conditions(kind, rule, user), actions }));
            }
        }
    }

    /// What the first rule whose conditions hold says to do; none if there is no such rule. `recipient`: none for
    /// somebody whom the event does not name, if these are the predefined rules. Errors: these rules need more steps than
    /// there are.
    pub fn evaluate(
        &self,
        event: &PushEvent,
        room: &RoomFacts<'_>,
        recipient: Option<&Recipient<'_>>,
        steps: &Steps,
    ) -> Result<Option<&Actions>, StepsUsedUp> {
        let holds = |condition: &Condition| {
            steps.take(condition.steps()) && condition.holds(event, room, recipient, steps)
        };
        for rule in &self.rules {
            let applies = steps.take(1) && rule.conditions.iter().all(holds);
            // What was looked for with the last of them may be there all the same.
            if steps.are_used_up() {
                return Err(StepsUsedUp);
            }
            if applies {
                return Ok(Some(&rule.actions));
            }
        }
        Ok(None)
    }
}

fn conditions(kind: RuleKind, rule: &Value, user: &str) -> Vec<Condition> {
    let id = rule["rule_id"].as_str().unwrap_or_default();
    let predefined = rule["default"] == true;
    let mut conditions = conditions_told(kind, rule, user);
    if predefined && is_for_events_without_mentions(id) {
        conditions.insert(0, Condition::NoMentions);
    }
    conditions
}

/// Those that clients read.
fn conditions_told(kind: RuleKind, rule: &Value, user: &str) -> Vec<Condition> {
    let id = rule["rule_id"].as_str().unwrap_or_default();
    let predefined = rule["default"] == true;
    match kind {
        RuleKind::Override | RuleKind::PostContent | RuleKind::Underride => {
            let all = rule["conditions"].as_array().into_iter().flatten();
            all.map(|condition| match Condition::of(condition) {
                Condition::BodyMatch(_) if predefined && id == ROOMNOTIF => Condition::NamesRoom,
                Condition::Contains { path, value } if predefined && value == user => {
                    Condition::ContainsRecipient { path }
                }
                Condition::Match { path, .. } if predefined && condition["pattern"] == user => {
                    Condition::IsRecipient { path }
                }
                other => other,
            })
            .collect()
        }
        RuleKind::ContentSpecific if predefined => vec![Condition::ContainsLocalpart],
        RuleKind::ContentSpecific => {
            let pattern = rule["pattern"].as_str();
            vec![pattern.map_or(Condition::Never, |pattern| Condition::matching("content.body", pattern))]
        }
        RuleKind::RoomSpecific => vec![is("room_id", id)],
        RuleKind::SenderSpecific => vec![is("sender", id)],
    }
}

fn is(key: &str, id: &str) -> Condition {
    Condition::Is { path: vec![key.to_owned()], value: id.into() }
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALICE: &str = "@alice:a.example";

    fn outcome(rules: &UserRules, event: &Value) -> Outcome {
        outcome_in(rules, event, None)
    }

    fn outcome_in(rules: &UserRules, event: &Value, thread_subscription: Option<bool>) -> Outcome {
        let user = UserId::parse(ALICE).expect("a user id");
        let set = RuleSet::compile(&rules.ruleset(&user, true), user.as_str());
        let event = PushEvent::from_object(event.as_object().expect("an object").clone());
        let room = RoomFacts {
            joined: 3,
            sender_may_notify: &|_| {
                event.property(&["sender".into()]).is_some_and(|s| s == "@admin:a.example")
            },
            recipient_may: &|_, _| true,
            thread_subscription,
        };
        let recipient = Recipient::new(&user, &|| Some("Wonder, land".to_owned()));
        let found = set.evaluate(&event, &room, Some(&recipient), &Steps::new(usize::MAX)).expect("judged");
        found.map(|actions| actions.outcome).unwrap_or_default()
    }

    const NOTHING: Outcome = Outcome { notify: false, highlight: false, sound: false, uncounted: false };
    const NOTIFY: Outcome = Outcome { notify: true, ..NOTHING };
    const SOUND: Outcome = Outcome { notify: true, sound: true, ..NOTHING };
    const HIGHLIGHT: Outcome = Outcome { notify: true, highlight: true, ..NOTHING };
    const MENTION: Outcome = Outcome { notify: true, highlight: true, sound: true, ..NOTHING };

    #[test]
    fn the_predefined_rules_make_of_each_event_what_the_specification_says() {
        let message = |content: Value| json!({"type": "m.room.message", "sender": "@bob:a.example", "content": content});
        let mut by_admin = message(json!({"body": "all", "m.mentions": {"room": true}}));
        by_admin["sender"] = json!("@admin:a.example");
        let mut at_room = message(json!({"body": "tea, @Room!"}));
        at_room["sender"] = json!("@admin:a.example");
        let mut with_mentions = at_room.clone();
        with_mentions["content"]["m.mentions"] = json!({});
        for (event, expected) in [
            (message(json!({"msgtype": "m.text", "body": "hi"})), NOTIFY),
            (message(json!({"msgtype": "m.notice", "body": "hi"})), NOTHING),
            (message(json!({"body": "hi", "m.mentions": {"user_ids": [ALICE]}})), MENTION),
            (message(json!({"body": "hi", "m.mentions": {"user_ids": ["@bob:a.example"]}})), NOTIFY),
            (message(json!({"body": "all", "m.mentions": {"room": true}})), NOTIFY),
            (message(json!({"body": "hi, Alice!"})), MENTION),
            (message(json!({"body": "hi, malice"})), NOTIFY),
            (message(json!({"body": "hi, Alice!", "m.mentions": {}})), NOTIFY),
            (message(json!({"body": "a wonderland", "msgtype": "m.text"})), NOTIFY),
            (message(json!({"body": "Wonder, land!", "msgtype": "m.text"})), MENTION),
            (message(json!({"body": "Wonder, land!", "msgtype": "m.notice"})), NOTHING),
            (message(json!({"body": "Wonder, land!", "m.mentions": null})), NOTIFY),
            // The rule for edits comes behind these.
            (message(json!({"body": "* Alice", "m.relates_to": {"rel_type": "m.replace"}})), NOTHING),
            (message(json!({"body": "* Wonder, land", "m.relates_to": {"rel_type": "m.replace"}})), MENTION),
            (message(json!({"body": "@room"})), NOTIFY),
            (at_room.clone(), HIGHLIGHT),
            (with_mentions, NOTIFY),
            (by_admin, HIGHLIGHT),
            (message(json!({"body": "hi alice", "m.relates_to": {"rel_type": "m.replace"}})), NOTHING),
            (json!({"type": "m.room.encrypted", "content": {}}), NOTIFY),
            (json!({"type": "m.reaction", "content": {"m.mentions": {"user_ids": [ALICE]}}}), MENTION),
            (json!({"type": "m.reaction", "content": {}}), NOTHING),
            (
                json!({"type": "m.room.member", "state_key": ALICE, "content": {"membership": "invite"}}),
                SOUND,
            ),
            (
                json!({"type": "m.room.member", "state_key": "@x:a", "content": {"membership": "invite"}}),
                NOTHING,
            ),
            (json!({"type": "m.room.tombstone", "state_key": "", "content": {}}), HIGHLIGHT),
            (json!({"type": "m.room.tombstone", "content": {}}), NOTHING),
            (json!({"type": "m.room.server_acl", "state_key": "", "content": {}}), NOTHING),
            (json!({"type": "m.call.invite", "content": {}}), SOUND),
            (
                json!({"type": "org.matrix.msc4075.rtc.notification", "content": {"m.mentions": {"user_ids": [ALICE]}}}),
                SOUND,
            ),
            (json!({"type": "m.room.topic", "state_key": "", "content": {"topic": "x"}}), NOTHING),
        ] {
            assert_eq!(outcome(&UserRules::default(), &event), expected, "{event}");
        }
    }

    #[test]
    fn the_rules_of_a_user_are_the_same_made_of_the_predefined_ones_or_compiled_whole() {
        let [alice, anybody] =
            [ALICE, "@anybody:localhost"].map(|user| UserId::parse(user).expect("a user id"));
        let own = |kind: &str, rule: Value| json!({ "own": { kind: [rule] } });
        for stored in [
            json!({}),
            own(
                "override",
                json!({"rule_id": "a", "enabled": true, "actions": ["notify"], "conditions": []}),
            ),
            own("override", json!({"rule_id": "b", "enabled": false, "actions": [], "conditions": []})),
            own(
                "content",
                json!({"rule_id": "c", "enabled": true, "actions": ["notify"], "pattern": "alice"}),
            ),
            own("room", json!({"rule_id": "!room:a.example", "enabled": true, "actions": []})),
            own("sender", json!({"rule_id": ALICE, "enabled": true, "actions": []})),
            own("underride", json!({"rule_id": "d", "enabled": true, "actions": [], "conditions": []})),
            json!({ "predefined": { ".m.rule.master": { "enabled": true } } }),
            json!({ "predefined": { ".m.rule.message": { "enabled": false } } }),
        ] {
            let rules = UserRules::read(Some(&stored.to_string())).expect("rules");
            for calls in [false, true] {
                let predefined =
                    RuleSet::compile(&UserRules::default().ruleset(&anybody, calls), anybody.as_str());
                let made = RuleSet::of_user(&rules, &alice, calls, &predefined);
                let whole = RuleSet::compile(&rules.ruleset(&alice, calls), ALICE);
                let counts = |set: &RuleSet| (set.overriding, set.content, set.postcontent);
                assert_eq!(counts(&made), counts(&whole), "{stored}");
                assert_eq!(made.rules, whole.rules, "{stored}");
            }
        }
    }

    #[test]
    fn a_thread_is_heard_of_by_who_is_subscribed_to_it_and_by_others_only_if_they_are_mentioned() {
        let message = |content: Value| json!({"type": "m.room.message", "room_id": "!r:a.example", "sender": "@bob:a.example", "content": content});
        let plain = message(json!({"msgtype": "m.text", "body": "about cake"}));
        let mention = message(json!({"body": "hi", "m.mentions": {"user_ids": [ALICE]}}));
        let notice = message(json!({"msgtype": "m.notice", "body": "hi"}));
        let own = |kind: &str, rule: Value| {
            UserRules::read(Some(&json!({ "own": { kind: [rule] } }).to_string())).expect("rules")
        };
        let none = UserRules::default();
        let muted = own("room", json!({"rule_id": "!r:a.example", "enabled": true, "actions": []}));
        let loud = own("room", json!({"rule_id": "!r:a.example", "enabled": true, "actions": ["notify"]}));
        let highlight = json!(["notify", {"set_tweak": "highlight"}]);
        let keyword = json!({"rule_id": "k", "enabled": true, "actions": highlight, "pattern": "cake"});
        let keyword = own("content", keyword);
        for (rules, event, [nowhere, subscribed, unsubscribed]) in [
            (&none, &plain, [NOTIFY, SOUND, NOTHING]),
            (&none, &mention, [MENTION, MENTION, MENTION]),
            (&none, &notice, [NOTHING, NOTHING, NOTHING]),
            (&muted, &plain, [NOTHING, SOUND, NOTHING]),
            (&loud, &plain, [NOTIFY, SOUND, NOTHING]),
            (&keyword, &plain, [HIGHLIGHT, HIGHLIGHT, HIGHLIGHT]),
        ] {
            assert_eq!(outcome_in(rules, event, None), nowhere, "{event}");
            assert_eq!(outcome_in(rules, event, Some(true)), subscribed, "{event}");
            assert_eq!(outcome_in(rules, event, Some(false)), unsubscribed, "{event}");
        }
    }

    #[test]
    fn all_that_rules_have_looked_at_is_counted_and_those_that_take_too_long_are_not_judged() {
        let event = json!({
            "type": "x", "content": {
                "body": "a ".repeat(25_000), "x": "a".repeat(10_000),
                "list": (0..50).map(|n| n.to_string()).collect::<Vec<_>>() } });
        let of = |conditions: Vec<Value>, rules: usize| {
            let rule = json!({"rule_id": "r", "enabled": true, "actions": [], "conditions": conditions});
            RuleSet::compile(&json!({ "override": vec![rule; rules] }), ALICE)
        };
        let judge = |set: &RuleSet, steps: usize| {
            let event = PushEvent::from_object(event.as_object().expect("an object").clone());
            let room = RoomFacts {
                joined: 3,
                sender_may_notify: &|_| false,
                recipient_may: &|_, _| false,
                thread_subscription: None,
            };
            let user = UserId::parse(ALICE).expect("a user id");
            let recipient = Recipient::new(&user, &|| Some("b ".repeat(2000)));
            set.evaluate(&event, &room, Some(&recipient), &Steps::new(steps)).map(|found| found.is_some())
        };
        let matching =
            |key: &str, pattern: &str| json!({"kind": "event_match", "key": key, "pattern": pattern});
        let never = matching("content.x", "?*z");
        let contains =
            |value: &str| json!({"kind": "event_property_contains", "key": "content.list", "value": value});
        // What is dear the first time is cheap after that,
        for conditions in [
            vec![matching("content.x", "?*"); 13],
            vec![contains("7"); 9],
            vec![matching("type", "\u{212a}"), never.clone()],
            vec![json!({"kind": "contains_display_name"})],
        ] {
            let set = of([conditions, vec![never.clone()]].concat(), 100);
            assert_eq!(judge(&set, 500_000), Ok(false));
            assert_eq!(judge(&set, 1_000), Err(StepsUsedUp), "but each condition of each rule counts");
        }
        // and the rest ends where it has to.
        for pattern in ["*?b*".to_owned(), format!("*{}b*", "?a".repeat(30)), "*a*a*a*b*".to_owned()] {
            for key in ["content.x", "content.body"] {
                assert_eq!(
                    judge(&of(vec![matching(key, &pattern)], 100), 500_000),
                    Err(StepsUsedUp),
                    "{pattern}"
                );
            }
        }
    }

    #[test]
    fn actions_come_to_what_they_say_and_unknown_ones_to_nothing() {
        for (actions, expected, usual) in [
            (json!([]), NOTHING, true),
            (json!(["dont_notify"]), NOTHING, true),
            (json!(["coalesce"]), NOTHING, true),
            (json!([{"set_tweak": "highlight"}]), NOTHING, true),
            (json!(["notify"]), NOTIFY, true),
            (json!(["notify", "org.example.dance", {"x": 1}, 7]), NOTIFY, true),
            (json!(["notify", {"set_tweak": "highlight"}]), HIGHLIGHT, true),
            (json!(["notify", {"set_tweak": "highlight", "value": true}]), HIGHLIGHT, true),
            (json!(["notify", {"set_tweak": "highlight", "value": false}]), NOTIFY, true),
            (json!(["notify", {"set_tweak": "sound", "value": "default"}]), SOUND, true),
            (json!(["notify", {"set_tweak": "sound", "value": "ring"}]), SOUND, false),
            (json!(["notify", {"set_tweak": "colour", "value": "red"}]), NOTIFY, false),
        ] {
            let found = Actions::of(actions.as_array().expect("a list"));
            assert_eq!((found.outcome, found.unusual.is_none()), (expected, usual), "{actions}");
            assert_eq!(Outcome::of_code(expected.code()), expected);
            let again = Actions::of(&expected.usual_actions());
            assert_eq!(again, Actions { outcome: expected, unusual: None });
        }
    }
}
