//! Server-server API, "OpenID".

use std::sync::Arc;

use serde_json::json;

use crate::error::{ErrCode, Error, Result};
use crate::http::{Reply, Request};
use crate::service::Homeserver;

/// `GET /_matrix/federation/v1/openid/userinfo`. Who asks need not be a homeserver, and does not sign.
pub fn userinfo(hs: &Arc<Homeserver>, request: &Request) -> Result<Reply> {
    let token = request.query("access_token").filter(|token| !token.is_empty());
    let token =
        token.ok_or_else(|| Error::new(ErrCode::MissingToken, "Missing query parameter access_token"))?;
    Ok(Reply::json(&json!({ "sub": hs.accounts().openid_user(token)? })))
}
