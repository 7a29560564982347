//! Client-server API, "Push rules": reading the rules that every account has.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::push::rules::{default_ruleset, find};

/// `GET /_matrix/client/v3/pushrules/`.
pub fn all(_hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({"global": default_ruleset(&requester.user_id)})))
}

/// `GET /_matrix/client/v3/pushrules/global/`.
pub fn global(_hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&default_ruleset(&requester.user_id)))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}`.
pub fn rule(_hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&one(request, requester)?))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/actions`.
pub fn actions(_hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({"actions": one(request, requester)?["actions"]})))
}

/// `GET /_matrix/client/v3/pushrules/global/{kind}/{ruleId}/enabled`.
pub fn enabled(_hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({"enabled": one(request, requester)?["enabled"]})))
}

fn one(request: &Request, requester: &Requester) -> Result<Value> {
    let rules = default_ruleset(&requester.user_id);
    let found = find(&rules, request.param("kind"), request.param("ruleId"));
    found.cloned().ok_or_else(|| Error::not_found("There is no such push rule"))
}
