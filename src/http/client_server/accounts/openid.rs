//! Client-server API, "OpenID".

use std::sync::Arc;

use serde_json::json;

use crate::error::Result;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;
use crate::service::accounts::openid::TOKEN_LIFE_MS;

/// `POST /_matrix/client/v3/user/{userId}/openid/request_token`.
pub fn request_token(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    requester.must_be(&request.user_id()?)?;
    request.json_object_or_empty()?;
    let token = hs.accounts().make_openid_token(&requester.user_id)?;
    Ok(Reply::json(&json!({
        "access_token": token,
        "token_type": "Bearer",
        "matrix_server_name": hs.server_name(),
        "expires_in": TOKEN_LIFE_MS / 1000,
    })))
}
