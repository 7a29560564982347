//! What a user has made of the push rules: rules of their own, and what they changed in the predefined ones.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::predefined;
use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::json::read_large;

/// Rules of one user, of all kinds together.
const RULES_MAX: usize = 1000;
/// Bytes of one rule, as JSON.
const RULE_BYTES_MAX: usize = 1024;

/// "The different kinds of rule, in the order that they are checked."
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum RuleKind {
    /// "The highest priority rules."
    Override,
    /// For messages with a pattern.
    #[serde(rename = "content")]
    ContentSpecific,
    /// Behind those for content (MSC4306): predefined ones only.
    PostContent,
    /// For a room.
    #[serde(rename = "room")]
    RoomSpecific,
    /// For a sender.
    #[serde(rename = "sender")]
    SenderSpecific,
    /// As the first, but of the lowest priority.
    Underride,
}

impl RuleKind {
    /// All of them, in that order.
    pub const ALL: [Self; 6] = [
        Self::Override,
        Self::ContentSpecific,
        Self::PostContent,
        Self::RoomSpecific,
        Self::SenderSpecific,
        Self::Underride,
    ];

    /// The word in paths and rulesets.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Override => "override",
            Self::ContentSpecific => "content",
            Self::PostContent => "postcontent",
            Self::RoomSpecific => "room",
            Self::SenderSpecific => "sender",
            Self::Underride => "underride",
        }
    }

    /// The kind with this word.
    pub fn parse(word: &str) -> Option<Self> {
        Self::ALL.into_iter().find(|kind| kind.as_str() == word)
    }
}

/// A user's rules, as they are stored.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct UserRules {
    own: BTreeMap<RuleKind, Vec<OwnRule>>,
    /// By the rule's id.
    predefined: BTreeMap<String, Change>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct OwnRule {
    rule_id: String,
    enabled: bool,
    actions: Vec<Value>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    conditions: Option<Vec<Value>>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pattern: Option<String>,
}

/// What a user changed in a predefined rule.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
struct Change {
    #[serde(default, skip_serializing_if = "Option::is_none")]
    enabled: Option<bool>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    actions: Option<Vec<Value>>,
}

/// A rule that a client wants to have, read from the body of its request.
#[derive(Debug, Clone)]
pub struct NewRule {
    kind: RuleKind,
    rule: OwnRule,
}

/// Where a rule is to be: none of both is where it is, or before all others of the user's.
#[derive(Debug, Clone, Default)]
pub struct Place {
    /// Right before this rule.
    pub before: Option<String>,
    /// Right after this rule; not looked at if it is to be before one.
    pub after: Option<String>,
}

impl NewRule {
    /// Reads a rule. Errors: 400 `M_INVALID_PARAM` for an id or an action that is none, 400 `M_BAD_JSON`, 400 `M_MISSING_PARAM`,
    /// 413 `M_TOO_LARGE`.
    pub fn read(kind: RuleKind, rule_id: &str, body: &Map<String, Value>) -> Result<Self> {
        if rule_id.is_empty() || rule_id.starts_with('.') || rule_id.contains(['/', '\\']) {
            return Err(Error::invalid_param(
                "The id of a rule does not begin with a dot and has neither slashes nor backslashes",
            ));
        }
        if kind == RuleKind::PostContent {
            return Err(Error::invalid_param("There are no rules of this kind but the predefined ones"));
        }
        let actions = actions_of(body)?;
        let conditions = match (kind, body.get("conditions")) {
            (RuleKind::Override | RuleKind::Underride, Some(conditions)) => Some(conditions_of(conditions)?),
            (RuleKind::Override | RuleKind::Underride, None) => Some(Vec::new()),
            _ => None,
        };
        let pattern = match (kind, body.get("pattern")) {
            (RuleKind::ContentSpecific, Some(Value::String(pattern))) => Some(pattern.clone()),
            (RuleKind::ContentSpecific, Some(_)) => {
                return Err(Error::bad_json("`pattern` must be a string"));
            }
            (RuleKind::ContentSpecific, None) => {
                return Err(Error::missing_param("A content rule has a `pattern`"));
            }
            _ => None,
        };
        let rule = OwnRule { rule_id: rule_id.to_owned(), enabled: true, actions, conditions, pattern };
        check_size(&rule)?;
        Ok(Self { kind, rule })
    }
}

fn check_size(rule: &impl Serialize) -> Result<()> {
    if serde_json::to_vec(rule).map_err(Error::internal)?.len() > RULE_BYTES_MAX {
        let why = format!("A push rule has at most {RULE_BYTES_MAX} bytes");
        return Err(Error::new(ErrCode::TooLarge, why));
    }
    Ok(())
}

/// What older versions of the specification had, and what is nothing now: "Clients and homeservers MUST ignore these actions".
const HISTORICAL_ACTIONS: [&str; 2] = ["dont_notify", "coalesce"];

/// The actions in a body, without those of history. Any tweak is one: clients may agree on more. Errors: 400 `M_INVALID_PARAM` for
/// an action without parameters that the specification does not know, 400 `M_BAD_JSON`, 400 `M_MISSING_PARAM`.
fn actions_of(body: &Map<String, Value>) -> Result<Vec<Value>> {
    let actions = body.get("actions").ok_or_else(|| Error::missing_param("There are no `actions`"))?;
    let actions = actions.as_array().ok_or_else(|| Error::bad_json("`actions` must be a list"))?;
    if !actions.iter().all(|action| action.is_string() || action["set_tweak"].is_string()) {
        return Err(Error::bad_json("An action is a string, or an object with `set_tweak`"));
    }
    let is_historical =
        |action: &Value| action.as_str().is_some_and(|name| HISTORICAL_ACTIONS.contains(&name));
    if actions.iter().any(|action| action.is_string() && action != "notify" && !is_historical(action)) {
        return Err(Error::invalid_param("There is no such action of a push rule"));
    }
    Ok(actions.iter().filter(|action| !is_historical(action)).cloned().collect())
}

fn conditions_of(conditions: &Value) -> Result<Vec<Value>> {
    let conditions = conditions.as_array().ok_or_else(|| Error::bad_json("`conditions` must be a list"))?;
    if !conditions.iter().all(|condition| condition["kind"].is_string()) {
        return Err(Error::bad_json("A condition is an object with a `kind`"));
    }
    Ok(conditions.clone())
}

fn no_such_rule() -> Error {
    Error::not_found("The push rule was not found.")
}

impl UserRules {
    /// Reads what was stored.
    pub fn read(stored: Option<&str>) -> Result<Self> {
        stored.map_or(Ok(Self::default()), |stored| read_large(stored.as_bytes()))
    }

    /// What is stored.
    pub fn to_json(&self) -> Result<String> {
        serde_json::to_string(self).map_err(Error::internal)
    }

    /// The rules as clients read them: what `GET /pushrules/` has under `global`. `calls`: whether the predefined rules
    /// are among them that make a call ring.
    pub fn ruleset(&self, user: &UserId, calls: bool) -> Value {
        let mut ruleset = Map::new();
        for kind in RuleKind::ALL {
            let own = self.own(kind).into_iter();
            let rules: Vec<Value> = match kind {
                RuleKind::Override => std::iter::once(predefined::master())
                    .chain(own)
                    .chain(predefined::override_rules(user, calls))
                    .collect(),
                RuleKind::ContentSpecific => own.chain(predefined::content_rules(user)).collect(),
                RuleKind::PostContent => own.chain(predefined::postcontent_rules()).collect(),
                RuleKind::Underride => own.chain(predefined::underride_rules()).collect(),
                _ => own.collect(),
            };
            ruleset.insert(kind.as_str().into(), rules.into_iter().map(|rule| self.changed(rule)).collect());
        }
        Value::Object(ruleset)
    }

    /// Whether the user has changed anything in the predefined rules.
    pub(super) fn change_predefined(&self) -> bool {
        !self.predefined.is_empty()
    }

    /// The user's own rules of a kind, as clients read them.
    pub(super) fn own(&self, kind: RuleKind) -> Vec<Value> {
        self.own.get(&kind).into_iter().flatten().map(OwnRule::served).collect()
    }

    /// A rule with what the user changed in it, if it is a predefined one.
    fn changed(&self, mut rule: Value) -> Value {
        let change = rule["rule_id"].as_str().and_then(|rule_id| self.predefined.get(rule_id));
        if let Some(change) = change.cloned() {
            if let Some(enabled) = change.enabled {
                rule["enabled"] = enabled.into();
            }
            if let Some(actions) = change.actions {
                rule["actions"] = actions.into();
            }
        }
        rule
    }

    fn position(&self, kind: RuleKind, rule_id: &str) -> Option<usize> {
        self.own.get(&kind)?.iter().position(|rule| rule.rule_id == rule_id)
    }

    /// Puts a rule in, or another one in the place of that with the same id, which stays enabled or not. Errors: 400
    /// `M_UNKNOWN` if the rule is not there beside which it is to be, 403 `M_RESOURCE_LIMIT_EXCEEDED` for too many.
    pub fn put(&mut self, new: NewRule, place: &Place) -> Result<()> {
        let NewRule { kind, mut rule } = new;
        let known = self.position(kind, &rule.rule_id);
        if known.is_none() && self.own.values().map(Vec::len).sum::<usize>() >= RULES_MAX {
            let why = format!("A user has at most {RULES_MAX} push rules");
            return Err(Error::new(ErrCode::ResourceLimitExceeded, why));
        }
        let own = self.own.entry(kind).or_default();
        // "It is not possible to add a rule relative to a predefined server rule": no such rule is looked through.
        let beside = place.before.as_ref().or(place.after.as_ref());
        let beside = match beside {
            Some(other) => Some(own.iter().position(|rule| rule.rule_id == *other).ok_or_else(|| {
                Error::new(ErrCode::Unknown, format!("before/after rule not found: {other}")).with_status(400)
            })?),
            None => None,
        };
        if let Some(at) = known {
            rule.enabled = own[at].enabled;
            if beside.is_none_or(|beside| beside == at) {
                own[at] = rule;
                return Ok(());
            }
            own.remove(at);
        }
        let beside = beside.map(|beside| beside - usize::from(known.is_some_and(|at| at < beside)));
        let at = beside.map_or(0, |beside| beside + usize::from(place.before.is_none()));
        own.insert(at, rule);
        Ok(())
    }

    /// Takes a rule of the user's out. Errors: 404 `M_NOT_FOUND`.
    pub fn delete(&mut self, kind: RuleKind, rule_id: &str) -> Result<()> {
        let at = self.position(kind, rule_id).ok_or_else(no_such_rule)?;
        if let Some(own) = self.own.get_mut(&kind) {
            own.remove(at);
        }
        Ok(())
    }

    /// Enables or disables a rule, predefined or not. Errors: 404 `M_NOT_FOUND`.
    pub fn set_enabled(&mut self, user: &UserId, kind: RuleKind, rule_id: &str, enabled: bool) -> Result<()> {
        match self.own_rule(kind, rule_id) {
            Some(rule) => rule.enabled = enabled,
            None => self.change(user, kind, rule_id)?.enabled = Some(enabled),
        }
        Ok(())
    }

    /// Gives a rule, predefined or not, the actions of a body. Errors: 400 `M_MISSING_PARAM`, 400 `M_BAD_JSON`, 400
    /// `M_INVALID_PARAM`, 404 `M_NOT_FOUND`, 413 `M_TOO_LARGE`.
    pub fn set_actions(
        &mut self,
        user: &UserId,
        kind: RuleKind,
        rule_id: &str,
        body: &Map<String, Value>,
    ) -> Result<()> {
        let actions = actions_of(body)?;
        match self.own_rule(kind, rule_id) {
            Some(rule) => {
                rule.actions = actions;
                check_size(rule)
            }
            None => {
                let change = self.change(user, kind, rule_id)?;
                change.actions = Some(actions);
                check_size(change)
            }
        }
    }

    /// Has the rules that speak of one room, by their id or by a condition, speak of another one too, as they are: enabled or
    /// not. Whether there were any.
    pub fn follow_room(&mut self, old: &str, new: &str) -> bool {
        let mut count = self.own.values().map(Vec::len).sum::<usize>();
        let before = count;
        for rules in self.own.values_mut() {
            let copies: Vec<OwnRule> = rules.iter().filter_map(|rule| rule.of_room(old, new)).collect();
            for copy in copies {
                let is_there = rules.iter().any(|rule| rule.rule_id == copy.rule_id);
                if !is_there && count < RULES_MAX {
                    rules.push(copy);
                    count += 1;
                }
            }
        }
        count > before
    }

    fn own_rule(&mut self, kind: RuleKind, rule_id: &str) -> Option<&mut OwnRule> {
        let at = self.position(kind, rule_id)?;
        self.own.get_mut(&kind)?.get_mut(at)
    }

    /// What the user changed in a predefined rule. Errors: 404 `M_NOT_FOUND` if there is none of this id.
    fn change(&mut self, user: &UserId, kind: RuleKind, rule_id: &str) -> Result<&mut Change> {
        let there_is = match kind {
            RuleKind::Override => {
                let rules = predefined::override_rules(user, true);
                rules.iter().chain([&predefined::master()]).any(|rule| rule["rule_id"] == rule_id)
            }
            RuleKind::Underride => {
                predefined::underride_rules().iter().any(|rule| rule["rule_id"] == rule_id)
            }
            RuleKind::ContentSpecific => {
                predefined::content_rules(user).iter().any(|rule| rule["rule_id"] == rule_id)
            }
            RuleKind::PostContent => {
                predefined::postcontent_rules().iter().any(|rule| rule["rule_id"] == rule_id)
            }
            _ => false,
        };
        if !there_is {
            return Err(no_such_rule());
        }
        Ok(self.predefined.entry(rule_id.to_owned()).or_default())
    }
}

impl OwnRule {
    /// The same rule for another room, if it is one for this room: by its id, or by a condition on `room_id`.
    fn of_room(&self, old: &str, new: &str) -> Option<Self> {
        let names_room = |condition: &Value| {
            condition["kind"] == "event_match" && condition["key"] == "room_id" && condition["pattern"] == old
        };
        let has_condition = self.conditions.iter().flatten().any(names_room);
        if self.rule_id != old && !has_condition {
            return None;
        }
        let mut copy = self.clone();
        copy.rule_id = match self.rule_id.contains(old) {
            true => self.rule_id.replace(old, new),
            false => format!("{}-{new}", self.rule_id),
        };
        for condition in copy.conditions.iter_mut().flatten().filter(|condition| names_room(condition)) {
            condition["pattern"] = new.into();
        }
        Some(copy)
    }
    fn served(&self) -> Value {
        let mut rule = json!({
            "rule_id": self.rule_id,
            "default": false,
            "enabled": self.enabled,
            "actions": self.actions,
        });
        if let Some(conditions) = &self.conditions {
            rule["conditions"] = conditions.clone().into();
        }
        if let Some(pattern) = &self.pattern {
            rule["pattern"] = pattern.as_str().into();
        }
        rule
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn alice() -> UserId {
        UserId::parse("@alice:a.example").expect("a user id")
    }

    fn ids(rules: &UserRules, kind: RuleKind) -> Vec<String> {
        let ruleset = rules.ruleset(&alice(), false);
        let of_kind = ruleset[kind.as_str()].as_array().expect("a list");
        of_kind.iter().map(|rule| rule["rule_id"].as_str().expect("an id").to_owned()).collect()
    }

    /// Without the predefined ones.
    fn own_ids(rules: &UserRules, kind: RuleKind) -> Vec<String> {
        ids(rules, kind).into_iter().filter(|id| !id.starts_with('.')).collect()
    }

    fn put(
        rules: &mut UserRules,
        kind: RuleKind,
        id: &str,
        before: Option<&str>,
        after: Option<&str>,
    ) -> Result<()> {
        let body = json!({"actions": ["notify"], "pattern": id});
        let new = NewRule::read(kind, id, body.as_object().expect("an object"))?;
        let place = Place { before: before.map(str::to_owned), after: after.map(str::to_owned) };
        rules.put(new, &place)
    }

    #[test]
    fn own_rules_go_behind_the_master_rule_and_before_the_others_that_are_predefined() {
        let mut rules = UserRules::default();
        put(&mut rules, RuleKind::Override, "mine", None, None).expect("put");
        put(&mut rules, RuleKind::Underride, "mine", None, None).expect("put");
        let overrides = ids(&rules, RuleKind::Override);
        assert_eq!(overrides[..3], [".m.rule.master", "mine", ".m.rule.suppress_notices"]);
        assert_eq!(ids(&rules, RuleKind::Underride)[..2], ["mine", ".m.rule.call"]);
        let stored = rules.to_json().expect("JSON");
        assert_eq!(UserRules::read(Some(&stored)).expect("read"), rules);
    }

    #[test]
    fn predefined_rules_have_the_order_of_the_specification() {
        let rules = UserRules::default();
        let known = |kind| {
            ids(&rules, kind).into_iter().filter(|id| id.starts_with(".m.rule.") && id != ".m.rule.knock")
        };
        let names = [
            "master",
            "suppress_notices",
            "invite_for_me",
            "member_event",
            "is_user_mention",
            "contains_display_name",
            "is_room_mention",
            "roomnotif",
            "tombstone",
            "reaction",
            "room.server_acl",
            "suppress_edits",
        ];
        assert!(known(RuleKind::Override).eq(names.map(|name| format!(".m.rule.{name}"))));
        assert_eq!(ids(&rules, RuleKind::ContentSpecific), [".m.rule.contains_user_name"]);
        let content = &rules.ruleset(&alice(), false)["content"][0];
        assert_eq!((&content["pattern"], &content["default"]), (&json!("alice"), &json!(true)));
    }

    #[test]
    fn stored_rules_are_read_whatever_their_actions_are() {
        let stored = json!({"own": {"override": [
            {"rule_id": "mine", "enabled": true, "actions": ["notify", "of_before"], "conditions": []}]}});
        let mut rules = UserRules::read(Some(&stored.to_string())).expect("read");
        rules.set_enabled(&alice(), RuleKind::Override, "mine", false).expect("there");
        assert_eq!(rules.ruleset(&alice(), false)["override"][1]["actions"], json!(["notify", "of_before"]));
        put(&mut rules, RuleKind::Override, "beside", None, None).expect("put");
    }

    #[test]
    fn a_rule_comes_where_it_is_wanted_also_at_the_ends_and_when_it_moves() {
        use RuleKind::ContentSpecific as OfContent;
        let mut rules = UserRules::default();
        let missing = put(&mut rules, OfContent, "a", None, Some("b")).expect_err("there is none");
        assert_eq!((missing.status(), missing.errcode()), (400, ErrCode::Unknown));
        for (id, before, after, expected) in [
            ("c", None, None, vec!["c"]),
            ("a", None, None, vec!["a", "c"]),
            ("d", None, Some("c"), vec!["a", "c", "d"]),
            ("b", Some("c"), None, vec!["a", "b", "c", "d"]),
            ("a", None, Some("d"), vec!["b", "c", "d", "a"]),
            ("a", Some("b"), None, vec!["a", "b", "c", "d"]),
            ("c", Some("c"), None, vec!["a", "b", "c", "d"]),
            ("c", None, None, vec!["a", "b", "c", "d"]),
            ("b", Some("d"), Some("a"), vec!["a", "c", "b", "d"]),
            ("d", None, Some("a"), vec!["a", "d", "c", "b"]),
        ] {
            put(&mut rules, OfContent, id, before, after).expect("put");
            assert_eq!(own_ids(&rules, OfContent), expected, "{id} {before:?} {after:?}");
        }
        for beside in [".m.rule.master", "x"] {
            assert!(put(&mut rules, RuleKind::Override, "e", Some(beside), None).is_err(), "{beside}");
        }
        assert_eq!(own_ids(&rules, OfContent).len(), 4, "and nothing was lost");
    }

    #[test]
    fn what_is_changed_in_a_rule_stays_when_it_is_put_again_and_in_a_predefined_one_for_good() {
        use RuleKind::{ContentSpecific as OfContent, Override, Underride};
        let mut rules = UserRules::default();
        put(&mut rules, OfContent, "cake", None, None).expect("put");
        rules.set_enabled(&alice(), OfContent, "cake", false).expect("there");
        put(&mut rules, OfContent, "cake", None, None).expect("put");
        rules.set_enabled(&alice(), Override, ".m.rule.master", true).expect("there");
        let silent = json!({"actions": ["dont_notify", "coalesce"]});
        rules
            .set_actions(&alice(), Underride, ".m.rule.message", silent.as_object().expect("one"))
            .expect("there");
        let ruleset = rules.ruleset(&alice(), false);
        assert_eq!(ruleset["content"][0]["enabled"], false);
        assert_eq!(ruleset["override"][0]["enabled"], true);
        let message = ruleset["underride"]
            .as_array()
            .expect("a list")
            .iter()
            .find(|r| r["rule_id"] == ".m.rule.message");
        assert_eq!(message.expect("it")["actions"], json!([]));
        for (kind, id) in [
            (OfContent, "none"),
            (OfContent, ".m.rule.master"),
            (Override, ".m.rule.message"),
            (Underride, ".m.x"),
        ] {
            assert_eq!(rules.set_enabled(&alice(), kind, id, true).expect_err("none").status(), 404, "{id}");
        }
        assert_eq!(rules.delete(Override, ".m.rule.master").expect_err("it stays").status(), 404);
        rules.delete(OfContent, "cake").expect("there");
        assert_eq!(rules.delete(OfContent, "cake").expect_err("gone").status(), 404);
    }

    #[test]
    fn rules_that_are_none_are_refused_and_so_are_too_large_and_too_many() {
        use RuleKind::{ContentSpecific as OfContent, Override, RoomSpecific as OfRoom};
        let read =
            |kind, id: &str, body: Value| NewRule::read(kind, id, body.as_object().expect("one")).map(drop);
        for (kind, id, body) in [
            (Override, ".m.rule.mine", json!({"actions": []})),
            (Override, "a/b", json!({"actions": []})),
            (Override, r"a\b", json!({"actions": []})),
            (Override, "", json!({"actions": []})),
            (Override, "a", json!({})),
            (Override, "a", json!({"actions": "notify"})),
            (Override, "a", json!({"actions": [7]})),
            (Override, "a", json!({"actions": [{"value": 7}]})),
            (Override, "a", json!({"actions": ["notify", "not_an_action"]})),
            (Override, "a", json!({"actions": ["Notify"]})),
            (Override, "a", json!({"actions": [], "conditions": {}})),
            (Override, "a", json!({"actions": [], "conditions": ["x"]})),
            (Override, "a", json!({"actions": [], "conditions": [{"kind": null}]})),
            (OfContent, "a", json!({"actions": []})),
            (OfContent, "a", json!({"actions": [], "pattern": 7})),
        ] {
            assert_eq!(read(kind, id, body.clone()).expect_err("none").status(), 400, "{id} {body}");
        }
        let long = json!({"actions": [], "pattern": "x".repeat(1024)});
        assert_eq!(read(OfContent, "a", long).expect_err("too large").status(), 413);
        read(OfRoom, "!r:a.example", json!({"actions": [], "pattern": "ignored"})).expect("a rule");
        let mut rules = UserRules::default();
        for number in 0..RULES_MAX {
            put(&mut rules, OfContent, &number.to_string(), None, None).expect("a place");
        }
        assert_eq!(
            put(&mut rules, OfContent, "more", None, None).expect_err("no place").errcode(),
            ErrCode::ResourceLimitExceeded
        );
        put(&mut rules, OfContent, "7", None, None).expect("it has its place");
    }

    #[test]
    fn every_predefined_rule_begins_with_a_dot_and_the_master_rule_is_off() {
        let ruleset = UserRules::default().ruleset(&alice(), true);
        for kind in RuleKind::ALL {
            for rule in ruleset[kind.as_str()].as_array().expect("a list") {
                let rule_id = rule["rule_id"].as_str().expect("an id");
                let prefixes = [".m.rule.", ".org.matrix.msc4075.rule.rtc.", ".io.element.msc4306.rule."];
                assert!(prefixes.iter().any(|prefix| rule_id.starts_with(prefix)), "{rule_id}");
                assert_eq!(rule["enabled"], rule_id != ".m.rule.master", "{rule_id}");
                assert_eq!(rule["default"], true);
            }
        }
    }
}
