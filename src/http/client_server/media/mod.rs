//! Media ("Content repository"): uploads, announced uploads, downloads with ranges and entity tags, and what administrators
//! do about media.
//!
//! The paths by which media could be had without a token are frozen since the first day: nothing was uploaded before.

pub mod thumbnails;
pub mod url_preview;

use std::sync::Arc;

use serde_json::json;

use crate::error::{Error, Result};
use crate::http::auth::asker;
use crate::http::{Outcome, Poll, Reply, Request, Requester};
use crate::protocol::media::{
    ByteRange, MxcUri, UNKNOWN_MEDIA_TYPE, byte_range, content_disposition, file_name, none_match_names,
};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::media::upload::{Upload, UploadHead};
use crate::service::media::{FoundMedia, MediaFile, no_such_media, not_yet_uploaded};

/// What keeps a browser from running anything in a file (as the specification recommends), from telling others where it
/// is, and search engines from listing it.
const SECURITY_HEADERS: [(&str, &str); 6] = [
    (
        "Content-Security-Policy",
        "sandbox; default-src 'none'; script-src 'none'; plugin-types application/pdf; style-src 'unsafe-inline'; \
         object-src 'self';",
    ),
    ("Cross-Origin-Resource-Policy", "cross-origin"),
    ("X-Content-Type-Options", "nosniff"),
    ("Referrer-Policy", "no-referrer"),
    ("X-Robots-Tag", "noindex, nofollow, noarchive, noimageindex"),
    (
        "Access-Control-Expose-Headers",
        "Accept-Ranges, Content-Disposition, Content-Length, Content-Range, ETag",
    ),
];

/// A URI never has another file, but who may have it is asked anew every day, and no cache in between is to give it.
const KEPT_BY_BROWSERS: &str = "private, max-age=86400, s-maxage=0, proxy-revalidate, immutable";

/// `GET /_matrix/client/v1/media/config`, and `GET /_matrix/media/v3/config`
pub fn config(hs: &Arc<Homeserver>, _request: &Request, _requester: &Requester) -> Result<Reply> {
    Ok(Reply::json(&json!({ "m.upload.size": hs.config.media_max_upload })))
}

/// `POST /_matrix/media/v1/create`
pub fn create(hs: &Arc<Homeserver>, _request: &Request, requester: &Requester) -> Result<Reply> {
    let (uri, expires_ms) = hs.media().create(&requester.user_id)?;
    Ok(Reply::json(&json!({ "content_uri": uri.to_string(), "unused_expires_at": expires_ms })))
}

/// `POST /_matrix/media/v3/upload`, by its head.
pub fn begin_upload(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Upload> {
    begin(hs, request, requester, None)
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`, by its head.
pub fn begin_announced(hs: &Arc<Homeserver>, request: &Request, requester: &Requester) -> Result<Upload> {
    begin(hs, request, requester, Some(&request.mxc_uri()?))
}

fn begin(hs: &Homeserver, request: &Request, requester: &Requester, uri: Option<&MxcUri>) -> Result<Upload> {
    // Its digits were looked at when the head was read; a number beyond 64 bits is one, and too large.
    let length = request.header("content-length").map(|text| text.trim().parse().unwrap_or(u64::MAX));
    let head = UploadHead {
        uri,
        content_type: request.header("content-type"),
        file_name: request.query("filename"),
        bytes: length,
    };
    hs.media().begin_upload(&requester.user_id, head)
}

/// `POST /_matrix/media/v3/upload`
pub fn upload(hs: &Arc<Homeserver>, _request: &Request, upload: Upload) -> Result<Reply> {
    let uri = hs.media().finish_upload(upload)?;
    Ok(Reply::json(&json!({ "content_uri": uri.to_string() })))
}

/// `PUT /_matrix/media/v3/upload/{serverName}/{mediaId}`
pub fn upload_announced(hs: &Arc<Homeserver>, _request: &Request, upload: Upload) -> Result<Reply> {
    hs.media().finish_upload(upload)?;
    Ok(Reply::empty())
}

/// `GET /_matrix/client/v1/media/download/{serverName}/{mediaId}`, and with `/{fileName}`.
pub fn download(
    hs: &Arc<Homeserver>,
    request: &Request,
    requester: &Requester,
    poll: Poll,
) -> Result<Outcome> {
    let uri = request.mxc_uri()?;
    let until = request.upload_deadline()?;
    // Before the look, so that what happens after it ends the wait.
    let after = hs.store.position();
    let found = match hs.media().find(&uri)? {
        FoundMedia::Here(found) => *found,
        FoundMedia::Pending(row) => match row.uploader {
            // Their upload is news for them.
            Some(user) if poll != Poll::Last => return Ok(Outcome::Wait { user, after, until }),
            _ => return Err(not_yet_uploaded()),
        },
        FoundMedia::Absent if hs.media().is_own(&uri) => return Err(no_such_media()),
        FoundMedia::Absent => hs.media().fetch(&uri, &asker(request, Some(requester)), until)?,
    };
    Ok(Outcome::Reply(file_reply(hs, (request, requester), found)?))
}

/// A file as an answer: all of it, a part, or that the client has it. Who asks was looked at before.
pub(super) fn file_reply(
    hs: &Homeserver,
    (request, requester): (&Request, &Requester),
    found: MediaFile,
) -> Result<Reply> {
    let MediaFile { row, file } = found;
    let content_type = row.content_type.as_deref().unwrap_or(UNKNOWN_MEDIA_TYPE);
    let asked_name = file_name(Some(request.param("fileName")))?;
    let name = asked_name.as_deref().or(row.upload_name.as_deref());
    let size = file.size();
    let etag = row.hash.map(|hash| format!("\"{hash}\"")).unwrap_or_default();
    let secured = |reply: Reply| {
        let with_header = |reply: Reply, (name, value): &(&'static str, &str)| reply.with_header(name, value);
        SECURITY_HEADERS.iter().fold(reply, with_header).with_header("Accept-Ranges", "bytes")
    };
    let with_headers =
        |reply| secured(reply).with_header("Cache-Control", KEPT_BY_BROWSERS).with_header("ETag", &etag);
    if request.header("if-none-match").is_some_and(|header| none_match_names(header, &etag)) {
        // Nothing of the file is sent with a 304, but how long it is.
        let reply = Reply::stream(content_type, size, Box::new(std::io::empty())).with_status(304);
        return Ok(with_headers(reply));
    }
    // RFC 9110, 13.1.5 and 14.2: of another file than the client has a part of, and of a HEAD, there are no parts.
    let same = request.header("if-range").is_none_or(|header| header.trim() == etag);
    let range = request.header("range").filter(|_| same && *request.method() == tiny_http::Method::Get);
    let gone = request.hung_up();
    let wanted = || !gone.as_ref().is_some_and(|gone| gone());
    let given = |bytes, file| hs.media().give(&requester.user_id, bytes, file, wanted);
    let reply = match byte_range(range, size) {
        ByteRange::All => Reply::stream(content_type, size, given(size, file)?),
        ByteRange::Part { start, length } => {
            let told = format!("bytes {start}-{}/{size}", start + length - 1);
            Reply::stream(content_type, length, given(length, file.part(start, length))?)
                .with_status(206)
                .with_header("Content-Range", &told)
        }
        ByteRange::Unsatisfiable => {
            let error = Error::invalid_param("The file has no such range").with_status(416);
            // This is not the file, and nobody is to keep it as that.
            return Ok(secured(
                Reply::error(&error).with_header("Content-Range", &format!("bytes */{size}")),
            ));
        }
    };
    Ok(with_headers(reply.with_header("Content-Disposition", &content_disposition(content_type, name))))
}

/// `GET /_matrix/media/v3/{download,thumbnail}` without a token: "MAY return 404 `M_NOT_FOUND` for media which
/// exists, but is after the server froze unauthenticated media access".
pub fn frozen(_hs: &Arc<Homeserver>, _request: &Request) -> Result<Reply> {
    Err(no_such_media())
}

/// `POST /_synapse/admin/v1/media/quarantine/{serverName}/{mediaId}`: nobody is given it any more, nor the same file by
/// another URI, and nobody can upload it again.
pub fn quarantine(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    hs.media().quarantine(admin, &request.mxc_uri()?, true)?;
    Ok(Reply::empty())
}

/// `POST /_synapse/admin/v1/media/unquarantine/{serverName}/{mediaId}`
pub fn unquarantine(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    hs.media().quarantine(admin, &request.mxc_uri()?, false)?;
    Ok(Reply::empty())
}

/// `DELETE /_synapse/admin/v1/media/{serverName}/{mediaId}`
pub fn delete(hs: &Arc<Homeserver>, request: &Request, admin: &Administrator) -> Result<Reply> {
    let uri = request.mxc_uri()?;
    hs.media().delete(admin, &uri)?;
    Ok(Reply::json(&json!({ "deleted_media": [uri.media_id.as_str()], "total": 1 })))
}
