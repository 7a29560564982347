//! Logging in and out, and staying logged in.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::json;

use super::interactive::{interactively, with_password};
use crate::error::{ErrCode, Error, Result};
use crate::http::auth::appservice;
use crate::http::{Reply, Request, Requester};
use crate::protocol::json::shaped;
use crate::service::Homeserver;
use crate::service::accounts::interactive_auth::{identified_user, user_of_identifier};
use crate::service::accounts::login_tokens::LOGIN_TOKEN_LIFE_MS;
use crate::service::accounts::sessions::NewLogin;

/// `GET /_matrix/client/v3/login`
pub fn flows(hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    let token = json!({ "type": "m.login.token", "get_login_token": true });
    let mut flows = vec![json!({ "type": "m.login.password" }), token];
    if !hs.appservices.is_empty() {
        flows.push(json!({ "type": APPLICATION_SERVICE }));
    }
    Ok(Reply::json(&json!({ "flows": flows })))
}

/// How an application service logs its users in, and makes them.
pub(super) const APPLICATION_SERVICE: &str = "m.login.application_service";

#[derive(Deserialize)]
struct LoginBody {
    password: Option<String>,
    token: Option<String>,
    device_id: Option<String>,
    initial_device_display_name: Option<String>,
    #[serde(default)]
    refresh_token: bool,
}

/// `POST /_matrix/client/v3/login`
pub fn login(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let object = request.json_object()?;
    let kind = object.get("type").ok_or_else(|| Error::missing_param("Missing type"))?;
    let by_token = kind == "m.login.token";
    let by_service = kind == APPLICATION_SERVICE;
    if !by_token && !by_service && kind != "m.login.password" {
        return Err(Error::new(ErrCode::Unknown, "Unknown login type").with_status(400));
    }
    if !by_token && !object.contains_key("identifier") && !object.contains_key("user") {
        return Err(Error::missing_param("Missing identifier"));
    }
    let body: LoginBody = shaped(&object)?;
    let new = NewLogin {
        device_id: body.device_id.as_deref(),
        display_name: body.initial_device_display_name.as_deref(),
        refreshable: body.refresh_token,
        from: Some(request.client_ip()),
        ..NewLogin::default()
    };
    let login = if by_token {
        let token = body.token.as_deref().ok_or_else(|| Error::missing_param("Missing token"))?;
        hs.accounts().log_in_by_token(token, &new)?
    } else if by_service {
        let service = appservice(hs, request)?;
        let user = identified_user(&object, hs.server_name().as_str());
        let user = user.ok_or_else(|| Error::forbidden("There is no such user"))?;
        if !service.may_be(&user) {
            let outside = "This user is in no namespace of the application service";
            return Err(Error::new(ErrCode::Exclusive, outside));
        }
        hs.accounts().log_in_with(&user, &NewLogin { service: Some(service), ..new })?
    } else {
        let password = body.password.as_deref().ok_or_else(|| Error::missing_param("Missing password"))?;
        // Third-party identifiers and phone numbers belong to nobody here, which is a 403 by the specification.
        let wrong = || Error::forbidden("Wrong user name or password");
        let user = user_of_identifier(&object, hs.server_name().as_str()).ok_or_else(wrong)?;
        let proof = hs.accounts().check_password(&user, password, new.from)?;
        hs.accounts().log_in_with(proof.user(), &NewLogin { proof: Some(&proof), ..new })?
    };
    Ok(Reply::json(&login.for_client(hs.server_name())))
}

/// `POST /_matrix/client/v1/login/get_token`
pub fn get_token(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    // "For this endpoint, servers MUST always re-prompt the user for verification": as for everything that is done
    // interactively here, a proof is good for one token.
    let guarded = with_password("let another device log in", &[]);
    let params = request.json_object_or_empty()?;
    interactively(
        hs,
        request,
        Some(requester),
        &guarded,
        params,
        |_| Ok(()),
        |(), _| {
            let token = hs.accounts().make_login_token(&requester.user_id, requester.device_id()?)?;
            Ok(json!({ "login_token": token, "expires_in_ms": LOGIN_TOKEN_LIFE_MS }))
        },
    )
}

#[derive(Deserialize)]
struct RefreshBody {
    refresh_token: String,
}

/// `POST /_matrix/client/v3/refresh`
pub fn refresh(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let body: RefreshBody = request.json()?;
    let login = hs.accounts().refresh(&body.refresh_token)?;
    Ok(Reply::json(&json!({
        "access_token": login.access_token,
        "refresh_token": login.refresh_token,
        "expires_in_ms": login.expires_in_ms,
    })))
}

/// `POST /_matrix/client/v3/logout`
pub fn logout(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    hs.accounts().delete_devices(&requester.user_id, vec![requester.device_id()?.to_owned()])?;
    Ok(Reply::empty())
}

/// `POST /_matrix/client/v3/logout/all`
pub fn logout_all(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    hs.accounts().delete_all_devices(&requester.user_id)?;
    Ok(Reply::empty())
}
