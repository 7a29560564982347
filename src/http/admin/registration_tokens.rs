//! Synapse's admin API, "Registration Tokens".

use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::admin::tokens::{NewToken, TokenTerms};

/// `GET /_synapse/admin/v1/registration_tokens`
pub fn list(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().list_tokens(request.query_bool("valid")?)?))
}

/// `POST /_synapse/admin/v1/registration_tokens/new`
pub fn add(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let token = match body.get("token") {
        None => None,
        Some(Value::String(token)) => Some(token.as_str()),
        Some(_) => return Err(Error::invalid_param("token must be a string")),
    };
    let length = number(&body, "length", "length must be an integer")?.flatten();
    let new = NewToken { token, length, terms: terms(&body)? };
    Ok(Reply::json(&hs.admin().add_token(admin, &new)?))
}

/// `GET /_synapse/admin/v1/registration_tokens/{token}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, _admin: &Administrator) -> Result<Reply> {
    Ok(Reply::json(&hs.admin().token(request.param("token"))?))
}

/// `PUT /_synapse/admin/v1/registration_tokens/{token}`
pub fn update(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let terms = terms(&request.json_object()?)?;
    Ok(Reply::json(&hs.admin().change_token(admin, request.param("token"), &terms)?))
}

/// `DELETE /_synapse/admin/v1/registration_tokens/{token}`
pub fn delete(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    hs.admin().revoke_token(admin, request.param("token"))?;
    Ok(Reply::empty())
}

fn terms(body: &Map<String, Value>) -> Result<TokenTerms> {
    Ok(TokenTerms {
        uses_allowed: number(body, "uses_allowed", "uses_allowed must be a non-negative integer or null")?,
        expires_ms: number(body, "expiry_time", "expiry_time must be an integer or null")?,
    })
}

/// A field that is a whole number or null. None: it is not there.
fn number(body: &Map<String, Value>, name: &str, wrong: &'static str) -> Result<Option<Option<i64>>> {
    match body.get(name) {
        None => Ok(None),
        Some(Value::Null) => Ok(Some(None)),
        Some(value) => value.as_i64().map(|n| Some(Some(n))).ok_or_else(|| Error::invalid_param(wrong)),
    }
}
