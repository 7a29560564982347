//! What came of a request: an answer within its bounds, or how it failed.

use std::io::{self, Read as _};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::{Timeout, http};

use super::Response;
use crate::federation::answer_memory::HeldMemory;
use crate::federation::call_error::{CallError, PeerError};
use crate::protocol::json::parse_object;

/// Of an answer that is an error, this much is read, and for so long.
const ERROR_BODY_BYTES_MAX: u64 = 64 * 1024;
const ERROR_BODY_TIMEOUT: Duration = Duration::from_secs(10);
/// Of a peer's error message, this much is passed on.
const ERROR_MESSAGE_MAX: usize = 500;
/// So much of an answer is read before it is accounted for.
const READ_BYTES: u64 = 64 * 1024;

/// How an exchange failed, as far as the decision to repeat it needs to know.
pub enum ExchangeFailure {
    /// The connection ended where an answer should have been.
    Disconnected(String),
    /// No usable connection.
    NotConnected(String),
    /// No answer in time, if not for want of a connection.
    Late(String),
    Answered(CallError),
    /// One of these, in the middle of an answer that began with a 2xx status.
    AfterSuccess(Box<ExchangeFailure>),
}

impl ExchangeFailure {
    pub(super) fn ours(e: &http::Error) -> Self {
        Self::Answered(CallError::bad(format!("our own request is not valid HTTP: {e}")))
    }

    /// The failure for those who do not repeat.
    pub fn into_call_error(self) -> CallError {
        match self {
            Self::Disconnected(why) | Self::Late(why) => CallError::Unreachable(why),
            Self::NotConnected(why) => CallError::Unconnected(why),
            Self::Answered(error) => error,
            Self::AfterSuccess(failure) => failure.into_call_error().after_success(),
        }
    }

    pub(super) fn is_after_success(&self) -> bool {
        matches!(self, Self::AfterSuccess(_))
    }

    pub(super) fn after_success(self) -> Self {
        if self.is_after_success() { self } else { Self::AfterSuccess(Box::new(self)) }
    }

    /// Whether the way there is in doubt, and not what is at its end.
    pub(super) fn is_of_connection(&self) -> bool {
        match self {
            Self::Disconnected(_) | Self::NotConnected(_) | Self::Late(_) => true,
            Self::AfterSuccess(failure) => failure.is_of_connection(),
            Self::Answered(_) => false,
        }
    }

    pub(super) fn is_disconnect(&self) -> bool {
        match self {
            Self::Disconnected(_) => true,
            Self::AfterSuccess(failure) => failure.is_disconnect(),
            Self::NotConnected(_) | Self::Late(_) | Self::Answered(_) => false,
        }
    }

    pub fn from_ureq(e: ureq::Error) -> Self {
        use io::ErrorKind::{BrokenPipe, ConnectionAborted, ConnectionReset, UnexpectedEof};
        match e {
            ureq::Error::Io(e) => {
                let dropped =
                    matches!(e.kind(), BrokenPipe | ConnectionAborted | ConnectionReset | UnexpectedEof);
                // The resolver's reason travels inside an I/O error.
                let why = e.to_string();
                if dropped { Self::Disconnected(why) } else { Self::NotConnected(why) }
            }
            ureq::Error::Timeout(Timeout::Global) => Self::Late("no answer in time".into()),
            ureq::Error::Timeout(phase @ (Timeout::Resolve | Timeout::Connect)) => {
                Self::NotConnected(format!("no connection in time ({phase})"))
            }
            ureq::Error::Timeout(phase) => Self::Late(format!("no answer in time ({phase})")),
            e @ (ureq::Error::HostNotFound
            | ureq::Error::ConnectionFailed
            | ureq::Error::Tls(_)
            | ureq::Error::Rustls(_)) => Self::NotConnected(e.to_string()),
            ureq::Error::BodyExceedsLimit(n) => {
                Self::Answered(CallError::bad(format!("longer than {n} bytes")))
            }
            e => Self::Answered(CallError::bad(e.to_string())),
        }
    }
}

/// Reads the body within its bound and tells answers from errors.
pub fn read_answer(
    answer: http::Response<ureq::Body>,
    max_bytes: u64,
    held: HeldMemory,
) -> Result<Response, ExchangeFailure> {
    let status = answer.status().as_u16();
    if answer.status().is_redirection() {
        let e = CallError::bad(format!("a redirect ({status}), which has no place between servers"));
        return Err(ExchangeFailure::Answered(e));
    }
    let length =
        answer.headers().get("content-length").and_then(|v| v.to_str().ok()).and_then(|v| v.parse().ok());
    let ok = answer.status().is_success();
    if ok && length.is_some_and(|n: u64| n > max_bytes) {
        return Err(ExchangeFailure::Answered(CallError::bad(format!("longer than {max_bytes} bytes")))
            .after_success());
    }
    if !ok {
        return Err(read_error(answer, held));
    }
    let read = read_body(answer.into_body().into_with_config().limit(max_bytes).reader(), held);
    read.map(|(body, held)| Response { status, body, held }).map_err(ExchangeFailure::after_success)
}

/// What an answer says that is an error.
pub(super) fn read_error(answer: http::Response<ureq::Body>, held: HeldMemory) -> ExchangeFailure {
    let status = answer.status().as_u16();
    let reader = answer.into_body().into_with_config().limit(ERROR_BODY_BYTES_MAX).reader();
    let read = read_body(ReadUntil { reader, until: Instant::now() + ERROR_BODY_TIMEOUT }, held);
    // Of an error, the status says enough if the body does not.
    let body = read.ok().map(|(body, _)| body).and_then(|b| parse_object(&b).ok()).unwrap_or_default();
    let errcode = body.get("errcode").and_then(Value::as_str).map(str::to_owned);
    if errcode.is_none() && matches!(status, 502..=504) {
        return ExchangeFailure::Answered(CallError::Unreachable(format!(
            "a proxy answered with status {status}"
        )));
    }
    let message = body.get("error").and_then(Value::as_str).unwrap_or_default();
    let message: String = message.chars().filter(|c| !c.is_control()).take(ERROR_MESSAGE_MAX).collect();
    ExchangeFailure::Answered(CallError::Refused(Box::new(PeerError { status, errcode, message, body })))
}

/// Reads until then: who lets a body trickle has less time than the request.
struct ReadUntil<R> {
    reader: R,
    until: Instant,
}

impl<R: io::Read> io::Read for ReadUntil<R> {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        if Instant::now() >= self.until { Err(io::ErrorKind::TimedOut.into()) } else { self.reader.read(buf) }
    }
}

/// Reads a body to its end, accounting for it as it grows.
fn read_body(
    mut reader: impl io::Read,
    mut held: HeldMemory,
) -> Result<(Vec<u8>, HeldMemory), ExchangeFailure> {
    let mut body = Vec::new();
    loop {
        let before = body.len();
        let read = reader.by_ref().take(READ_BYTES).read_to_end(&mut body);
        read.map_err(|e| ExchangeFailure::from_ureq(ureq::Error::from(e)))?;
        if body.len() == before {
            return Ok((body, held));
        }
        if !held.grow_to(body.len()) {
            let busy = "there is no memory left for its answer beside those of others".to_owned();
            return Err(ExchangeFailure::Answered(CallError::Unreachable(busy)));
        }
    }
}
