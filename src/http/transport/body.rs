//! The body of a request: read as its framing says, and kept or handed on as it comes.
//!
//! What is kept grows with what has really come; what is only announced costs nothing. All of it has to be there in a time that
//! is bounded however large it is, so that the larger it is the faster it has to come. What is handed on (files that go to
//! the disk) is never in memory but for the last few kilobytes, so that it may be large: then a slowest rate bounds its time,
//! and silence ends it.

use std::io;
use std::time::{Duration, Instant};

use crate::error::{ErrCode, Error};
use crate::http::transport::connection::{Connection, READ_BYTES};
use crate::http::transport::framing::{
    BodyFraming, RequestError, bad_request, parse_chunk_size, refused, too_large,
};
use crate::http::transport::large_bodies::BodyMemory;
use crate::http::transport::patience::transfer_deadline;
use crate::http::transport::service::BodySink;

/// Longest line of a chunk's size with its extensions, and most bytes of trailers behind the last chunk.
const CHUNK_LINE_BYTES_MAX: usize = 512;
const TRAILERS_BYTES_MAX: usize = 4 << 10;
/// What one read takes of a body that is handed on, since each read is followed by a write.
const HANDED_READ_BYTES: usize = 64 << 10;
/// Who sends a body that is handed on may be silent for so long, however much has come already.
const SILENCE_TIMEOUT: Duration = Duration::from_secs(60);

/// What becomes of a body's bytes.
pub(super) enum BodyBytes<'b> {
    /// They are kept, up to so many, on the account of the request's quota.
    Kept { body: Vec<u8>, bytes_max: usize, memory: &'b mut BodyMemory },
    /// They are handed on.
    Handed(BodySink),
    /// Nobody wants them: they are read up to so many, so that the connection can be kept.
    Dropped { bytes_max: usize },
}

impl BodyBytes<'_> {
    /// The body will have so many bytes, or more.
    fn announce(&self, total: u64) -> Result<(), RequestError> {
        match self {
            Self::Kept { bytes_max, .. } | Self::Dropped { bytes_max } if total > *bytes_max as u64 => {
                Err(too_large())
            }
            Self::Kept { .. } | Self::Dropped { .. } | Self::Handed(_) => Ok(()),
        }
    }

    /// Whether it is given up for another's sake.
    fn is_given_up(&self) -> bool {
        matches!(self, Self::Kept { memory, .. } if memory.is_cut())
    }

    fn take(&mut self, bytes: &[u8]) -> Result<(), RequestError> {
        match self {
            Self::Kept { body, memory, .. } => {
                hold(memory, body.len() + bytes.len())?;
                body.extend_from_slice(bytes);
                Ok(())
            }
            Self::Handed(sink) => sink(bytes).map_err(|e| RequestError::Refused(Box::new(e))),
            Self::Dropped { .. } => Ok(()),
        }
    }
}

fn hold(memory: &mut BodyMemory, bytes: usize) -> Result<(), RequestError> {
    if memory.grow_to(bytes) { Ok(()) } else { Err(no_memory()) }
}

fn no_memory() -> RequestError {
    let error = Error::new(ErrCode::LimitExceeded, "Too many large requests at once, try again in a moment");
    RequestError::Refused(Box::new(error.with_status(503).with_field("retry_after_ms", 5000)))
}

/// How far a body has come.
struct BodyProgress<'p, 'b> {
    started: Instant,
    so_far: u64,
    into: &'p mut BodyBytes<'b>,
}

impl Connection {
    /// Reads a whole body.
    pub(super) fn read_body(
        &mut self,
        framing: BodyFraming,
        into: &mut BodyBytes<'_>,
    ) -> Result<(), RequestError> {
        let mut progress = BodyProgress { started: Instant::now(), so_far: 0, into };
        match framing {
            BodyFraming::Length(length) => {
                progress.into.announce(length)?;
                self.read_up_to(length, &mut progress)
            }
            BodyFraming::Chunked => self.read_chunks(&mut progress),
        }
    }

    /// Reads until there are so many bytes.
    fn read_up_to(&mut self, total: u64, progress: &mut BodyProgress<'_, '_>) -> Result<(), RequestError> {
        loop {
            let missing = usize::try_from(total - progress.so_far).unwrap_or(usize::MAX);
            let taken = self.pending.len().min(missing);
            progress.into.take(&self.pending[..taken])?;
            self.pending.drain(..taken);
            progress.so_far += taken as u64;
            if progress.so_far == total {
                return Ok(());
            }
            self.fill_body(progress)?;
        }
    }

    fn read_chunks(&mut self, progress: &mut BodyProgress<'_, '_>) -> Result<(), RequestError> {
        loop {
            let size = parse_chunk_size(&self.read_line(progress, CHUNK_LINE_BYTES_MAX)?)?;
            if size == 0 {
                break;
            }
            let total = progress.so_far.checked_add(size).ok_or_else(too_large)?;
            progress.into.announce(total)?;
            self.read_up_to(total, progress)?;
            if !self.read_line(progress, 2)?.is_empty() {
                return Err(bad_request("A chunk is longer than its size"));
            }
        }
        let mut trailers = TRAILERS_BYTES_MAX;
        loop {
            let line = self.read_line(progress, trailers)?;
            if line.is_empty() {
                return Ok(());
            }
            trailers = trailers.saturating_sub(line.len() + 2);
        }
    }

    /// A line without its CRLF, of at most `most` bytes with it.
    fn read_line(&mut self, progress: &BodyProgress<'_, '_>, most: usize) -> Result<Vec<u8>, RequestError> {
        loop {
            if let Some(end) = self.pending.iter().take(most).position(|b| *b == b'\n') {
                let mut line: Vec<u8> = self.pending.drain(..=end).collect();
                line.pop();
                // RFC 9112, 7.1: chunks end with CRLF; a bare LF is how two parsers come to disagree.
                return if line.pop() == Some(b'\r') {
                    Ok(line)
                } else {
                    Err(bad_request("Broken chunked body"))
                };
            }
            if self.pending.len() >= most {
                return Err(bad_request("Broken chunked body"));
            }
            self.fill_body(progress)?;
        }
    }

    /// Reads on. The end is an error here, and so is a rate that is too slow for the bytes so far.
    fn fill_body(&mut self, progress: &BodyProgress<'_, '_>) -> Result<(), RequestError> {
        let so_far = usize::try_from(progress.so_far).unwrap_or(usize::MAX);
        let by_rate = transfer_deadline(&self.slot, progress.started, so_far);
        let limits = &self.slot.shared.limits;
        let (deadline, most) = match progress.into {
            BodyBytes::Handed(_) => (by_rate.min(Instant::now() + SILENCE_TIMEOUT), HANDED_READ_BYTES),
            BodyBytes::Kept { .. } | BodyBytes::Dropped { .. } => {
                let in_time = by_rate.min(progress.started + limits.body_timeout);
                (in_time.min(Instant::now() + limits.silence_timeout), READ_BYTES)
            }
        };
        self.transport.set_deadline(deadline);
        let filled = self.fill(most);
        if !matches!(filled, Ok(1..)) && progress.into.is_given_up() {
            return Err(no_memory());
        }
        match filled {
            Ok(0) => Err(bad_request("The request's body is cut off")),
            Ok(_) => Ok(()),
            Err(e) if e.kind() == io::ErrorKind::TimedOut => {
                Err(refused(408, ErrCode::Unknown, "The request's body took too long"))
            }
            Err(_) => Err(RequestError::Gone),
        }
    }
}
