//! Client-server API, "Voice over IP".

use std::sync::Arc;

use ring::hmac;
use serde_json::json;

use crate::error::Result;
use crate::http::{Reply, Request, Requester};
use crate::protocol::json::base64_padded;
use crate::service::Homeserver;

/// `GET /_matrix/client/v3/voip/turnServer`: credentials for the TURN servers of the settings, made of the secret that is
/// shared with them: they need no list of users. The user name is the time when it ends and the user, the password its
/// HMAC-SHA1. Without such a server `{}`: the specification names no answer for that, and this is Synapse's, which clients know.
pub fn turn_server(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let Some(secret) = &hs.config.turn_secret else { return Ok(Reply::empty()) };
    let ttl = i64::try_from(hs.config.turn_ttl_s).unwrap_or(i64::MAX);
    let until = (hs.clock.now_ms() / 1000).saturating_add(ttl);
    let username = format!("{until}:{}", requester.user_id);
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
    let password = base64_padded(hmac::sign(&key, username.as_bytes()).as_ref());
    Ok(Reply::json(&json!({
        "username": username,
        "password": password,
        "uris": hs.config.turn_uris,
        "ttl": ttl,
    })))
}
