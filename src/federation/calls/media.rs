//! Media of other servers (server-server API, "Content Repository"): by the signed request, from where that says they are,
//! or, from servers that do not know it yet, by the paths that everybody may ask.

use std::io::{self, Read};
use std::ops::Range;
use std::time::{Duration, Instant};

use super::enc;
use crate::federation::call_error::{CallError, CallResult};
use crate::federation::client::streams::{StreamedAnswer, redirected};
use crate::federation::client::{Client, PeerRequest};
use crate::protocol::ServerName;
use crate::protocol::media::header_values::name_in_disposition;
use crate::protocol::media::multipart::{Malformed, MultipartReader, PartHead};

/// Longest wait for an upload that a peer is asked for; a longer one is asked for again.
const UPLOAD_WAIT_MAX: Duration = Duration::from_secs(20);
/// The paths of servers of before version 1.11, the newer first.
const LEGACY_VERSIONS: [&str; 2] = ["v3", "r0"];
/// So much behind a file is read, so that the connection can be used again.
const REST_BYTES_MAX: usize = 8 << 10;

/// Which file is asked for.
#[derive(Clone, Copy)]
pub struct MediaRequest<'a> {
    /// The server whose it is.
    pub peer: &'a ServerName,
    /// Its id there.
    pub media_id: &'a str,
    /// How long the peer may wait for its upload, at most [`UPLOAD_WAIT_MAX`].
    pub upload_wait: Duration,
    /// Time for everything together.
    pub within: Duration,
    /// The largest file that is wanted, in bytes.
    pub max_bytes: u64,
}

/// A thumbnail that is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ThumbnailQuery {
    /// In pixels.
    pub width: u32,
    /// In pixels.
    pub height: u32,
    /// `crop` or `scale`.
    pub method: &'static str,
    /// Whether it may move.
    pub animated: bool,
}

/// A file that is coming. To be read to its end: then it is whole.
pub struct PeerMedia {
    /// What the peer says that it is, unchecked.
    pub content_type: Option<String>,
    /// What the peer says that it is called, made harmless.
    pub name: Option<String>,
    answer: StreamedAnswer,
    /// How far the answer's parts were read; none of an answer that is the file.
    parts: Option<Parts>,
    left: u64,
    max_bytes: u64,
    failure: Option<CallError>,
}

struct Parts {
    reader: MultipartReader,
    buffer: Vec<u8>,
    /// Which bytes of the buffer were read and not used yet.
    begin: usize,
    end: usize,
    /// Which bytes of the buffer are the file's and were not handed out yet.
    file: Range<usize>,
}

impl Client {
    /// `GET media/download/{mediaId}`, and what has to be done to follow its answer. Errors: also
    /// [`CallError::TooLarge`]; `M_NOT_YET_UPLOADED` is a refusal.
    pub fn download_media(&self, request: MediaRequest<'_>) -> CallResult<PeerMedia> {
        let until = Instant::now() + request.within;
        let wait = request.upload_wait.min(UPLOAD_WAIT_MAX).as_millis();
        let id = enc(request.media_id);
        let path = format!("/_matrix/federation/v1/media/download/{id}?timeout_ms={wait}");
        let mut asked = self.signed_media(request, path, until);
        for version in LEGACY_VERSIONS {
            if !asked.as_ref().is_err_and(CallError::is_unrecognized) {
                break;
            }
            let server = enc(request.peer);
            let query = format!("allow_remote=false&timeout_ms={wait}");
            let path = format!("/_matrix/media/{version}/download/{server}/{id}?{query}");
            asked = self.legacy_media(request, path, until);
        }
        asked
    }

    /// `GET media/thumbnail/{mediaId}`. Errors: as of [`Client::download_media`].
    pub fn media_thumbnail(
        &self,
        request: MediaRequest<'_>,
        wanted: ThumbnailQuery,
    ) -> CallResult<PeerMedia> {
        let until = Instant::now() + request.within;
        let ThumbnailQuery { width, height, method, animated } = wanted;
        let (id, wait) = (enc(request.media_id), request.upload_wait.min(UPLOAD_WAIT_MAX).as_millis());
        let query =
            format!("width={width}&height={height}&method={method}&animated={animated}&timeout_ms={wait}");
        let path = format!("/_matrix/federation/v1/media/thumbnail/{id}?{query}");
        let mut asked = self.signed_media(request, path, until);
        for version in LEGACY_VERSIONS {
            if !asked.as_ref().is_err_and(CallError::is_unrecognized) {
                break;
            }
            let server = enc(request.peer);
            let path = format!("/_matrix/media/{version}/thumbnail/{server}/{id}?{query}&allow_remote=false");
            asked = self.legacy_media(request, path, until);
        }
        asked
    }

    fn signed_media(&self, request: MediaRequest<'_>, path: String, until: Instant) -> CallResult<PeerMedia> {
        let answer = self.stream(&peer_request(request, path, until), true)?;
        if answer.redirect.is_some() {
            return Err(CallError::bad("a redirect, which has no place between servers"));
        }
        let content_type = answer.content_type.as_deref().unwrap_or_default();
        let reader = MultipartReader::new(content_type).map_err(malformed)?;
        let parts =
            Parts { reader, buffer: vec![0; MultipartReader::buffer_bytes()], begin: 0, end: 0, file: 0..0 };
        let mut media = PeerMedia::new(answer, Some(parts), request.max_bytes);
        let head = media.read_head()?;
        match head.location {
            None => {
                (media.content_type, media.name) = (head.content_type, head.name);
                Ok(media)
            }
            Some(url) => {
                let found = self.media_elsewhere(&url, request.max_bytes, until)?;
                // "The URL at Location SHOULD have appropriate headers": what it lacks the part may have.
                let (content_type, name) = (found.content_type.clone(), found.name.clone());
                let found = PeerMedia {
                    content_type: content_type.or(head.content_type),
                    name: name.or(head.name),
                    ..found
                };
                Ok(found)
            }
        }
    }

    fn legacy_media(&self, request: MediaRequest<'_>, path: String, until: Instant) -> CallResult<PeerMedia> {
        let answer = self.stream(&peer_request(request, path, until), false)?;
        match answer.redirect {
            None => PeerMedia::plain(answer, request.max_bytes),
            // Only an address says where to: what the path would be relative to is known to the client alone.
            Some(url) => self.media_elsewhere(&url, request.max_bytes, until),
        }
    }

    /// The file at an address of the web, with one more redirect at most.
    fn media_elsewhere(&self, url: &str, max_bytes: u64, until: Instant) -> CallResult<PeerMedia> {
        let elsewhere = |e: CallError| match e {
            // Of a storage's answer only we know that it is about the file.
            CallError::Refused(refusal) => {
                CallError::bad(format!("status {} where the file is said to be", refusal.status))
            }
            other => other,
        };
        let answer = self.stream_from_web(url, left(until)).map_err(elsewhere)?;
        let Some(to) = &answer.redirect else { return PeerMedia::plain(answer, max_bytes) };
        let next = redirected(url, to).ok_or_else(|| CallError::bad("a redirect to no https address"))?;
        let answer = self.stream_from_web(&next, left(until)).map_err(elsewhere)?;
        if answer.redirect.is_some() {
            return Err(CallError::bad("one redirect too many"));
        }
        PeerMedia::plain(answer, max_bytes)
    }
}

fn left(until: Instant) -> Duration {
    until.saturating_duration_since(Instant::now())
}

fn peer_request<'a>(request: MediaRequest<'a>, path: String, until: Instant) -> PeerRequest<'a> {
    PeerRequest {
        method: "GET",
        destination: request.peer,
        path_and_query: path,
        body: None,
        timeout: left(until),
        max_bytes: request.max_bytes,
    }
}

fn malformed(Malformed(why): Malformed) -> CallError {
    CallError::bad(format!("no answer with a file in it: {why}")).after_success()
}

impl PeerMedia {
    fn new(answer: StreamedAnswer, parts: Option<Parts>, max_bytes: u64) -> Self {
        Self { content_type: None, name: None, answer, parts, left: max_bytes, max_bytes, failure: None }
    }

    /// A file that is the whole answer.
    fn plain(answer: StreamedAnswer, max_bytes: u64) -> CallResult<Self> {
        if answer.length.is_some_and(|length| length > max_bytes) {
            return Err(CallError::TooLarge(max_bytes));
        }
        let content_type = answer.content_type.clone();
        let name = answer.disposition.as_deref().and_then(name_in_disposition);
        Ok(Self { content_type, name, ..Self::new(answer, None, max_bytes) })
    }

    /// Why reading failed, if it was the peer's doing.
    pub fn take_failure(&mut self) -> Option<CallError> {
        self.failure.take()
    }

    /// Reads up to the file's first byte.
    fn read_head(&mut self) -> CallResult<PartHead> {
        let Some(parts) = &mut self.parts else { return Ok(Default::default()) };
        loop {
            if let Some(head) = parts.reader.head() {
                let is_too_long =
                    |length: u64| length > self.max_bytes.saturating_add(2 * REST_BYTES_MAX as u64);
                return if head.location.is_none() && self.answer.length.is_some_and(is_too_long) {
                    Err(CallError::TooLarge(self.max_bytes))
                } else {
                    Ok(head.clone())
                };
            }
            parts.advance(&mut self.answer)?;
        }
    }

    fn read_some(&mut self, buffer: &mut [u8]) -> CallResult<usize> {
        let count = match &mut self.parts {
            None => self.answer.read(buffer)?,
            Some(parts) => parts.read(&mut self.answer, buffer)?,
        };
        self.left = self.left.checked_sub(count as u64).ok_or(CallError::TooLarge(self.max_bytes))?;
        Ok(count)
    }
}

impl Read for PeerMedia {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        self.read_some(buffer).map_err(|e| {
            let told = io::Error::other(e.to_string());
            self.failure = Some(e);
            told
        })
    }
}

impl Parts {
    /// Takes one more look at the bytes that are there, or reads more of them if they are too few.
    fn advance(&mut self, answer: &mut StreamedAnswer) -> CallResult<()> {
        let progress = self.reader.look(&self.buffer[self.begin..self.end]).map_err(malformed)?;
        self.file = self.begin + progress.file.start..self.begin + progress.file.end;
        self.begin += progress.used;
        let is_stuck = progress.used == 0 && !self.reader.is_at_end();
        if is_stuck { self.fill(answer) } else { Ok(()) }
    }

    /// Reads more bytes behind those that are there.
    fn fill(&mut self, answer: &mut StreamedAnswer) -> CallResult<()> {
        self.buffer.copy_within(self.begin..self.end, 0);
        (self.begin, self.end) = (0, self.end - self.begin);
        match answer.read(&mut self.buffer[self.end..])? {
            0 => Err(CallError::Unreachable("its answer broke off".into()).after_success()),
            count => {
                self.end += count;
                Ok(())
            }
        }
    }

    fn read(&mut self, answer: &mut StreamedAnswer, into: &mut [u8]) -> CallResult<usize> {
        while self.file.is_empty() {
            if self.reader.is_at_end() {
                self.finish(answer);
                return Ok(0);
            }
            self.advance(answer)?;
        }
        let count = self.file.len().min(into.len());
        into[..count].copy_from_slice(&self.buffer[self.file.start..][..count]);
        self.file.start += count;
        Ok(count)
    }

    /// Reads what little stands behind the file, so that the connection can be used again.
    fn finish(&mut self, answer: &mut StreamedAnswer) {
        if !answer.is_framed {
            return;
        }
        let mut rest = 0;
        while rest < REST_BYTES_MAX {
            match answer.read(&mut self.buffer) {
                Ok(count @ 1..) => rest += count,
                _ => break,
            }
        }
        answer.is_framed = false;
    }
}

#[cfg(test)]
#[path = "media_tests.rs"]
mod tests;
