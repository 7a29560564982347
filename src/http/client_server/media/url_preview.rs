//! Client-server API, "Content repository": previews of links.

use std::sync::Arc;

use crate::error::Result;
use crate::http::client_server::reply;
use crate::http::{Reply, Request, Requester};
use crate::service::Homeserver;

/// `GET /_matrix/client/v1/media/preview_url`
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let url = request.required_query("url")?;
    reply(&*hs.media().url_preview(&requester.user_id, url)?)
}
