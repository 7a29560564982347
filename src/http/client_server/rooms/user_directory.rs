//! Client-server API, "User Directory" and "Mutual Rooms".

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, Result};
use crate::http::client_server::reply;
use crate::http::{Reply, Request, Requester};
use crate::protocol::UserId;
use crate::service::Homeserver;
use crate::service::rooms::user_directory::{MutualRooms, UserDirectoryRequest};

/// `POST /_matrix/client/v3/user_directory/search`.
pub fn search(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let asked: UserDirectoryRequest = request.json()?;
    let gone = request.hung_up();
    let wanted = || !gone.as_ref().is_some_and(|gone| gone());
    reply(&hs.rooms().search_users(&requester.user_id, &asked, wanted)?)
}

/// `GET /_matrix/client/v1/mutual_rooms`.
pub fn mutual_rooms(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Reply> {
    let found = shared_with(hs, request, requester, "from")?;
    let mut body = json!({ "joined": found.joined, "count": found.count });
    if let Some(next) = found.next_batch {
        body["next_batch"] = next.into();
    }
    Ok(Reply::json(&body))
}

/// [`mutual_rooms`] at the path from before it was specified.
pub fn unstable_mutual_rooms(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
) -> Result<Reply> {
    let found = shared_with(hs, request, requester, "batch_token")?;
    let mut body = json!({ "joined": found.joined, "count": found.count });
    if let Some(next) = found.next_batch {
        body["next_batch_token"] = next.into();
    }
    Ok(Reply::json(&body))
}

fn shared_with(
    hs: &Homeserver,
    request: &Request,
    requester: &Requester,
    token: &str,
) -> Result<MutualRooms> {
    let other = UserId::parse(request.required_query("user_id")?)?;
    // "The `user_id` parameter was missing, non-compliant (historical user IDs), …": 400.
    let is_of_today = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b"._=-/+".contains(&b);
    let localpart = other.as_str().trim_start_matches('@').split(':').next().unwrap_or_default();
    if !localpart.bytes().all(is_of_today) {
        return Err(Error::invalid_param("user_id is no user id as they are made today"));
    }
    hs.rooms().mutual_rooms(&requester.user_id, &other, request.query(token))
}
