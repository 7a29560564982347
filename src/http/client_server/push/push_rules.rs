//! Client-server API, "Push Rules: API".

use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::protocol::push_rules::{NewRule, Place, RuleKind};
use crate::service::Homeserver;

/// `GET /_matrix/client/v3/pushrules/`.
pub fn all(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({"global": hs.push().ruleset(&requester.user_id)?})))
}

/// `GET /_matrix/client/v3/pushrules/global/`.
pub fn global(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&hs.push().ruleset(&requester.user_id)?))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub fn rule(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&one(hs, request, requester)?))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`.
pub fn actions(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({"actions": one(hs, request, requester)?["actions"]})))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`.
pub fn enabled(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({"enabled": one(hs, request, requester)?["enabled"]})))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub fn put(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let new = NewRule::read(kind(request)?, request.param("ruleId"), &request.json_object()?)?;
    let place = Place {
        before: request.query("before").map(str::to_owned),
        after: request.query("after").map(str::to_owned),
    };
    hs.push().put_rule(&requester.user_id, &new, &place)?;
    Ok(Reply::json(&json!({})))
}

/// `DELETE /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub fn delete(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    hs.push().delete_rule(&requester.user_id, kind(request)?, request.param("ruleId"))?;
    Ok(Reply::json(&json!({})))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`.
pub fn put_enabled(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body = request.json_object()?;
    let enabled = body.get("enabled").ok_or_else(|| Error::missing_param("There is no `enabled`"))?;
    let enabled = enabled.as_bool().ok_or_else(|| Error::bad_json("`enabled` must be true or false"))?;
    hs.push().set_rule_enabled(&requester.user_id, kind(request)?, request.param("ruleId"), enabled)?;
    Ok(Reply::json(&json!({})))
}

/// `PUT /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`.
pub fn put_actions(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let body = request.json_object()?;
    hs.push().set_rule_actions(&requester.user_id, kind(request)?, request.param("ruleId"), &body)?;
    Ok(Reply::json(&json!({})))
}

fn kind(request: &Request) -> Result<RuleKind> {
    let kinds = "The kind of a rule is override, content, postcontent, room, sender or underride";
    RuleKind::parse(request.param("kind")).ok_or_else(|| Error::invalid_param(kinds))
}

fn one(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Value> {
    let ruleset = hs.push().ruleset(&requester.user_id)?;
    let of_kind = ruleset.get(request.param("kind")).and_then(Value::as_array);
    let found =
        of_kind.and_then(|rules| rules.iter().find(|rule| rule["rule_id"] == request.param("ruleId")));
    found.cloned().ok_or_else(|| Error::not_found("The push rule was not found."))
}
