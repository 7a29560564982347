//! Server-server API, "Content Repository": what was uploaded here, in two parts, and never a part of a file.

use std::sync::Arc;
use std::time::Instant;

use crate::error::Result;
use crate::http::params::wanted_thumbnail;
use crate::http::{Origin, Reply, Request};
use crate::http::{Outcome, Poll};
use crate::protocol::media::{MediaId, MxcUri};
use crate::service::Homeserver;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::service::media::serve::RATE_MIN;
use crate::service::media::{FoundMedia, MediaFile, no_such_media, not_yet_uploaded};

/// `GET /_matrix/federation/v1/media/download/{mediaId}`.
pub fn download(hs: &Arc<Homeserver>, request: &Request, origin: &Origin, poll: Poll) -> Result<Outcome> {
    uploaded_here(hs, request, poll, |found| in_parts(hs, request, origin, found))
}

/// `GET /_matrix/federation/v1/media/thumbnail/{mediaId}`.
pub fn thumbnail(hs: &Arc<Homeserver>, request: &Request, origin: &Origin, poll: Poll) -> Result<Outcome> {
    let wanted = wanted_thumbnail(request)?;
    uploaded_here(hs, request, poll, |found| {
        let asker = Asker::new(AskerId::Peer(origin.0.clone()));
        let asker = match request.hung_up() {
            Some(gone) => asker.until(gone),
            None => asker,
        };
        let thumbnail = hs.media().thumbnail(&asker, (hs.server_name(), found), &wanted)?;
        in_parts(hs, request, origin, thumbnail)
    })
}

/// Answers with what was uploaded here, or has the request wait until it was.
fn uploaded_here(
    hs: &Arc<Homeserver>,
    request: &Request,
    poll: Poll,
    answer: impl FnOnce(MediaFile) -> Result<Reply>,
) -> Result<Outcome> {
    let media_id = MediaId::parse(request.param("mediaId")).map_err(|_| no_such_media())?;
    let uri = MxcUri { server: hs.server_name().clone(), media_id };
    let until = request.upload_deadline()?;
    // Before the look, so that no news is missed.
    let after = hs.store.position();
    match hs.media().find(&uri)? {
        FoundMedia::Here(found) => answer(*found).map(Outcome::Reply),
        FoundMedia::Absent => Err(no_such_media()),
        FoundMedia::Pending(row) => match row.uploader {
            Some(user) if poll != Poll::Last && Instant::now() < until => {
                Ok(Outcome::Wait { user, after, until })
            }
            _ => Err(not_yet_uploaded()),
        },
    }
}

fn in_parts(hs: &Homeserver, request: &Request, origin: &Origin, found: MediaFile) -> Result<Reply> {
    let gone = request.hung_up();
    let served = hs.media().serve(&origin.0, found, || !gone.as_ref().is_some_and(|gone| gone()))?;
    let reply = Reply::stream(&served.content_type, served.bytes, served.reader);
    Ok(reply.taken_at(usize::try_from(RATE_MIN).unwrap_or(usize::MAX)))
}
