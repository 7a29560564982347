//! The push rules of a user: read as clients read them, and changed one at a time.
//!
//! What is stored, as the account data `m.push_rules`, is only what the user changed; whoever reads it gets the predefined
//! rules of this version of the server with it.

use serde_json::{Map, Value, json};

use crate::error::{ErrCode, Error, Result};
use crate::protocol::UserId;
use crate::protocol::push_rules::{NewRule, Place, RuleKind, UserRules};
use crate::service::push::Push;
use crate::store::Db;

/// The account data that a user's rules are.
pub const PUSH_RULES: &str = "m.push_rules";

/// Bytes of all that a user has changed in the rules, as it is stored: with each change it is read and written as a whole, and
/// somebody else's event has it compiled. Several hundred rules of the usual size.
const USER_RULES_BYTES_MAX: usize = 128 * 1024;

/// Whether rules have more bytes than a user's may, and have become more.
pub(in crate::service) fn is_too_much(rules: &str, before: Option<&str>) -> bool {
    rules.len() > USER_RULES_BYTES_MAX.max(before.map_or(0, str::len))
}

impl Push<'_> {
    /// All rules of a user: what `GET /pushrules/` has under `global`.
    pub fn ruleset(&self, user: &UserId) -> Result<Value> {
        self.store.read(|db| ruleset(db, user))
    }

    /// Puts a rule of the user's in, or another in its place. Errors: 400 `M_UNKNOWN` if the rule is not there beside which
    /// it is to be, 403 `M_RESOURCE_LIMIT_EXCEEDED` for too many.
    pub fn put_rule(&self, user: &UserId, new: &NewRule, place: &Place) -> Result<()> {
        self.change(user, |rules| rules.put(new.clone(), place))
    }

    /// Deletes a rule of the user's. Errors: 404 `M_NOT_FOUND`.
    pub fn delete_rule(&self, user: &UserId, kind: RuleKind, rule_id: &str) -> Result<()> {
        self.change(user, |rules| rules.delete(kind, rule_id))
    }

    /// Enables or disables a rule. Errors: 404 `M_NOT_FOUND`.
    pub fn set_rule_enabled(
        &self,
        user: &UserId,
        kind: RuleKind,
        rule_id: &str,
        enabled: bool,
    ) -> Result<()> {
        self.change(user, |rules| rules.set_enabled(user, kind, rule_id, enabled))
    }

    /// Gives a rule other actions. Errors: as of [`UserRules::set_actions`].
    pub fn set_rule_actions(
        &self,
        user: &UserId,
        kind: RuleKind,
        rule_id: &str,
        body: &Map<String, Value>,
    ) -> Result<()> {
        self.change(user, |rules| rules.set_actions(user, kind, rule_id, body))
    }

    /// Changes the rules. They are read, written and compiled where that holds up nobody; if another change was first, this
    /// one is made again upon it. Errors: 403 `M_RESOURCE_LIMIT_EXCEEDED` for too many bytes.
    fn change(&self, user: &UserId, change: impl Fn(&mut UserRules) -> Result<()>) -> Result<()> {
        loop {
            let stored = self.store.read(|db| db.account_data(user, None, PUSH_RULES))?;
            let mut rules = UserRules::read(stored.as_deref())?;
            let before = rules.clone();
            change(&mut rules)?;
            if rules == before {
                return Ok(());
            }
            let (of, content) = (user.clone(), rules.to_json()?);
            if is_too_much(&content, stored.as_deref()) {
                let why = format!("The push rules of a user have at most {USER_RULES_BYTES_MAX} bytes");
                return Err(Error::new(ErrCode::ResourceLimitExceeded, why));
            }
            let compiled = self.store.read(|db| Ok(db.compiled_push_rules(&rules, user)))?;
            let written = self.store.write(move |tx| {
                let is_current = tx.account_data(&of, None, PUSH_RULES)? == stored;
                if is_current {
                    tx.set_push_rules(&of, &content, compiled)?;
                }
                Ok(is_current)
            })?;
            if written {
                return Ok(());
            }
        }
    }
}

/// All rules of a user, as clients read them.
pub(in crate::service) fn ruleset(db: &Db<'_>, user: &UserId) -> Result<Value> {
    let stored = db.account_data(user, None, PUSH_RULES)?;
    Ok(UserRules::read(stored.as_deref())?.ruleset(user, db.has_call_rules()))
}

/// The content of the account data `m.push_rules`, as clients read it.
pub(in crate::service) fn push_rules_content(db: &Db<'_>, user: &UserId) -> Result<String> {
    Ok(json!({ "global": ruleset(db, user)? }).to_string())
}
