//! One's own account: who am I, a new password, the end of it.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::interactive::{interactively, with_password};
use crate::error::{ErrCode, Error, Result};
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::accounts::interactive_auth::Proof;
use crate::service::accounts::passwords::PasswordProof;

/// `GET /_matrix/client/v3/account/whoami`
pub fn whoami(_hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let mut body = json!({ "user_id": requester.user_id, "is_guest": requester.standing.guest });
    if let Some(device) = &requester.device_id {
        body["device_id"] = json!(device);
    }
    Ok(Reply::json(&body))
}

/// `GET /_matrix/client/v3/account/3pid`: mail addresses and telephone numbers of an account, of which this server keeps none. The
/// settings of some clients show a failure where this cannot be asked.
pub fn third_party_ids(_hs: &Arc<Homeserver>, _request: &Request, _requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({ "threepids": [] })))
}

/// `POST /_matrix/client/v3/account/password`. Without an access token the password proves whose account it is.
pub fn change_password(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: Option<&Requester>,
) -> Result<Reply> {
    let read = |params: &Map<String, Value>| {
        let log_out = match params.get("logout_devices") {
            None => true,
            Some(Value::Bool(log_out)) => *log_out,
            Some(_) => return Err(Error::bad_json("logout_devices must be true or false")),
        };
        let new = match params.get("new_password") {
            None => None,
            Some(Value::String(new)) => Some(new.clone()),
            Some(_) => return Err(Error::bad_json("new_password must be a string")),
        };
        Ok((new, log_out))
    };
    // The device that asks stays logged in.
    let keep = requester.and_then(|r| r.device_id.as_deref());
    let change = |(new, log_out): (Option<String>, bool), proof: &Proof| {
        let new = new.ok_or_else(|| Error::missing_param("Missing new_password"))?;
        let from = request.client_ip();
        let changed =
            hs.accounts().change_password(proved_password(proof)?, &new, log_out.then_some(keep), from);
        changed.map_err(asked_anew)?;
        Ok(json!({}))
    };
    let params = request.json_object_or_empty()?;
    let action = with_password("change the password", &["new_password", "logout_devices"]);
    interactively(hs, request, requester, &action, params, read, change)
}

/// `POST /_matrix/client/v3/account/deactivate`
pub fn deactivate(hs: &Arc<Homeserver>, request: &Request, requester: Option<&Requester>) -> Result<Reply> {
    let read = |params: &Map<String, Value>| match params.get("erase") {
        None => Ok(false),
        Some(Value::Bool(erase)) => Ok(*erase),
        Some(_) => Err(Error::bad_json("erase must be true or false")),
    };
    let close = |erase: bool, proof: &Proof| {
        hs.deactivate_own(proved_password(proof)?, erase).map_err(asked_anew)?;
        // We have no third-party identifiers, so that nothing was left bound.
        Ok(json!({ "id_server_unbind_result": "success" }))
    };
    let params = request.json_object_or_empty()?;
    if let Some(service) = requester.and_then(|requester| requester.appservice.as_ref()) {
        let user = requester.map_or(&service.sender, |requester| &requester.user_id);
        hs.deactivate_by_service(service, user, read(&params)?)?;
        return Ok(Reply::json(&json!({ "id_server_unbind_result": "success" })));
    }
    let action = with_password("close the account", &["erase"]);
    interactively(hs, request, requester, &action, params, read, close)
}

fn proved_password(proof: &Proof) -> Result<&PasswordProof> {
    proof.password.as_ref().ok_or_else(|| Error::internal("a deed without the password that it takes"))
}

/// Whose password became another one at that very moment is asked for it once more.
fn asked_anew(error: Error) -> Error {
    if error.errcode() == ErrCode::Forbidden { error.with_status(401) } else { error }
}
