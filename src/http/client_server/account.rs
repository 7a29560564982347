//! One's own account: who am I, a new password, the end of it.

use std::sync::Arc;

use serde_json::{Value, json};

use super::interactive::{PASSWORD, prove};
use crate::error::{Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;

/// `GET /_matrix/client/v3/account/whoami`
pub fn whoami(_hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let mut body = json!({ "user_id": requester.user_id, "is_guest": false });
    if let Some(device) = &requester.device_id {
        body["device_id"] = json!(device);
    }
    Ok(Reply::json(&body))
}

/// `POST /_matrix/client/v3/account/password`. Without an access token the password proves whose account it is.
pub fn change_password(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: Option<&Requester>,
) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let proof = match prove(hs, "change password", PASSWORD, requester, &body)? {
        Ok(proof) => proof,
        Err(ask) => return Ok(ask),
    };
    let new = body.get("new_password").ok_or_else(|| Error::missing_param("Missing new_password"))?;
    let new = new.as_str().ok_or_else(|| Error::bad_json("new_password must be a string"))?;
    let log_out = match body.get("logout_devices") {
        None => true,
        Some(Value::Bool(log_out)) => *log_out,
        Some(_) => return Err(Error::bad_json("logout_devices must be true or false")),
    };
    let user = proof.user.as_ref().ok_or_else(|| Error::internal("a password proof without a user"))?;
    // The device that asks stays logged in.
    let keep = requester.and_then(|r| r.device_id.as_deref());
    hs.set_password(user, new, log_out.then_some(keep))?;
    hs.auth_is_spent(&proof);
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/account/deactivate`
pub fn deactivate(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    let body = request.json_object_or_empty()?;
    let proof = match prove(hs, "deactivate", PASSWORD, requester, &body)? {
        Ok(proof) => proof,
        Err(ask) => return Ok(ask),
    };
    let user = proof.user.as_ref().ok_or_else(|| Error::internal("a password proof without a user"))?;
    hs.deactivate(user)?;
    hs.auth_is_spent(&proof);
    // We have no third-party identifiers, so that nothing was left bound.
    Ok(Reply::json(&json!({ "id_server_unbind_result": "success" })))
}
