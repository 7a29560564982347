//! Client-server API, "Content repository": thumbnails.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Result;
use crate::http::auth::asker;
use crate::http::client_server::media::file_reply;
use crate::http::params::wanted_thumbnail;
use crate::http::{Outcome, Poll, Request, Requester};
use crate::service::Homeserver;
use crate::service::media::{FoundMedia, no_such_media, not_yet_uploaded};

/// `GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}`
pub fn get(hs: &Arc<Homeserver>, request: &Request, requester: &Requester, poll: Poll) -> Result<Outcome> {
    let (uri, wanted) = (request.mxc_uri()?, wanted_thumbnail(request)?);
    let until = request.upload_deadline()?;
    // The parameter of the old paths.
    let may_be_fetched = request.query_bool("allow_remote")?.unwrap_or(true) && !hs.media().is_own(&uri);
    let asker = asker(request, Some(requester));
    // Before the look, so that no news is missed.
    let after = hs.store.position();
    let original = match hs.media().find(&uri)? {
        FoundMedia::Here(found) => *found,
        FoundMedia::Pending(row) => match row.uploader {
            Some(user) if poll != Poll::Last && Instant::now() < until => {
                return Ok(Outcome::Wait { user, after, until });
            }
            _ => return Err(not_yet_uploaded()),
        },
        FoundMedia::Absent if may_be_fetched => hs.media().fetch_picture(&uri, &wanted, &asker, until)?,
        FoundMedia::Absent => return Err(no_such_media()),
    };
    let thumbnail = hs.media().thumbnail(&asker, (&uri.server, original), &wanted)?;
    Ok(Outcome::Reply(file_reply(hs, (request, requester), thumbnail)?))
}
