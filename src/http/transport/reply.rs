//! What a handler answers: a status, headers, and a body that is bytes or a stream.

use std::io::{self, Read};

use serde_json::Value;

use crate::error::{ErrCode, Error};

/// A header of a reply: its name and its value.
pub(super) type ReplyHeader = (&'static str, String);

/// An answer to one request. Cheap to build; written by `connection`.
pub struct Reply {
    status: u16,
    headers: Vec<ReplyHeader>,
    body: ReplyBody,
    slowest_rate: Option<usize>,
}

pub(super) enum ReplyBody {
    Bytes(Vec<u8>),
    /// That many bytes from a reader; a reader that ends early breaks the connection.
    Stream(u64, Box<dyn Read + Send>),
    /// What a reader has, however much that is; a reader that fails breaks the connection.
    Unmeasured(Box<dyn Read + Send>),
}

impl Reply {
    /// 200 with this JSON.
    pub fn json(value: &Value) -> Self {
        Self::json_status(200, value)
    }

    /// This status with this JSON.
    pub fn json_status(status: u16, value: &Value) -> Self {
        // Every value can be written.
        Self::raw_json(serde_json::to_vec(value).unwrap_or_default()).with_status(status)
    }

    /// 200 with JSON that is already bytes.
    pub fn raw_json(bytes: Vec<u8>) -> Self {
        Self::bytes("application/json", bytes)
    }

    /// 200 with `{}`.
    pub fn empty() -> Self {
        Self::raw_json(b"{}".to_vec())
    }

    /// 200 with bytes of this content type.
    pub fn bytes(content_type: &str, bytes: Vec<u8>) -> Self {
        Self { status: 200, headers: Vec::new(), slowest_rate: None, body: ReplyBody::Bytes(bytes) }
            .with_header("Content-Type", content_type)
    }

    /// 200 with exactly `length` bytes of `reader`.
    pub fn stream(content_type: &str, length: u64, reader: Box<dyn Read + Send>) -> Self {
        Self { status: 200, headers: Vec::new(), slowest_rate: None, body: ReplyBody::Stream(length, reader) }
            .with_header("Content-Type", content_type)
    }

    /// 200 with all that `reader` has, whose length shows when it ends.
    pub fn unmeasured(content_type: &str, reader: Box<dyn Read + Send>) -> Self {
        Self { status: 200, headers: Vec::new(), slowest_rate: None, body: ReplyBody::Unmeasured(reader) }
            .with_header("Content-Type", content_type)
    }

    /// A Matrix error, with `Retry-After` where its body says `retry_after_ms`.
    pub fn error(error: &Error) -> Self {
        let reply = Self::json_status(error.told_status(), &error.to_json());
        match error.field("retry_after_ms").and_then(Value::as_u64) {
            Some(ms) if error.errcode() == ErrCode::LimitExceeded => {
                let seconds = ms.div_ceil(1000).max(1).to_string();
                // Clients in browsers are told of a few headers only, unless they are named.
                reply
                    .with_header("Retry-After", &seconds)
                    .with_header("Access-Control-Expose-Headers", "Retry-After")
            }
            _ => reply,
        }
    }

    /// This answer with another status.
    #[must_use]
    pub fn with_status(mut self, status: u16) -> Self {
        self.status = status;
        self
    }

    /// This answer with one more header, or another content type in the place of its own. A value that a header cannot
    /// carry (line breaks, bytes outside ASCII) is left out: it came from somebody's input.
    #[must_use]
    pub fn with_header(mut self, name: &'static str, value: &str) -> Self {
        if value.bytes().all(|b| b == b'\t' || (b' '..0x7f).contains(&b)) {
            if name == "Content-Type" {
                self.headers.retain(|(other, _)| *other != name);
            }
            self.headers.push((name, value.to_owned()));
        }
        self
    }

    /// This answer for somebody who has to take so many bytes of it a second: for what keeps more of ours than a connection.
    #[must_use]
    pub fn taken_at(mut self, slowest_rate: usize) -> Self {
        self.slowest_rate = Some(slowest_rate);
        self
    }

    pub(super) fn slowest_rate(&self) -> Option<usize> {
        self.slowest_rate
    }

    /// The HTTP status.
    pub fn status(&self) -> u16 {
        self.status
    }

    /// The body, if it is bytes and not a stream.
    pub fn body_bytes(&self) -> Option<&[u8]> {
        match &self.body {
            ReplyBody::Bytes(bytes) => Some(bytes),
            ReplyBody::Stream(..) | ReplyBody::Unmeasured(_) => None,
        }
    }

    /// Whether it is known how long the body is.
    pub(super) fn is_measured(&self) -> bool {
        !matches!(self.body, ReplyBody::Unmeasured(_))
    }

    /// The whole body, a stream read to its end: for tests. Errors: the reader's, and a stream of another length than
    /// it was said to have.
    pub fn into_bytes(self) -> io::Result<Vec<u8>> {
        match self.body {
            ReplyBody::Bytes(bytes) => Ok(bytes),
            ReplyBody::Stream(length, mut reader) => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                let is_whole = bytes.len() as u64 == length;
                if is_whole { Ok(bytes) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            }
            ReplyBody::Unmeasured(mut reader) => {
                let mut bytes = Vec::new();
                reader.read_to_end(&mut bytes)?;
                Ok(bytes)
            }
        }
    }

    /// The body, to be read. A stream that ends before its length is an error.
    pub fn into_reader(self) -> Box<dyn Read + Send> {
        match self.body {
            ReplyBody::Bytes(bytes) => Box::new(io::Cursor::new(bytes)),
            ReplyBody::Stream(length, reader) => Box::new(Exactly::new(length, reader)),
            ReplyBody::Unmeasured(reader) => reader,
        }
    }

    pub(super) fn into_parts(self) -> (u16, Vec<ReplyHeader>, ReplyBody) {
        (self.status, self.headers, self.body)
    }
}

impl From<&Error> for Reply {
    fn from(error: &Error) -> Self {
        Self::error(error)
    }
}

/// A reader of a known length; ending early is an error, because the length is already on the wire.
pub(super) struct Exactly {
    left: u64,
    reader: Box<dyn Read + Send>,
}

impl Exactly {
    pub(super) fn new(length: u64, reader: Box<dyn Read + Send>) -> Self {
        Self { left: length, reader }
    }
}

impl Read for Exactly {
    fn read(&mut self, buf: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).unwrap_or(usize::MAX).min(buf.len());
        if most == 0 {
            return Ok(0);
        }
        let n = self.reader.read(&mut buf[..most])?;
        if n == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        self.left -= n as u64;
        Ok(n)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_limit_error_says_when_to_come_back_in_the_header_too() {
        let error = Error::new(ErrCode::LimitExceeded, "slow down").with_field("retry_after_ms", 1500);
        let (status, headers, _) = Reply::error(&error).into_parts();
        assert_eq!(status, 429);
        assert!(headers.contains(&("Retry-After", "2".to_owned())));
        assert!(headers.contains(&("Access-Control-Expose-Headers", "Retry-After".to_owned())));
    }

    #[test]
    fn a_header_value_with_a_line_break_is_left_out() {
        let (_, headers, _) = Reply::empty().with_header("X-A", "1\r\nSet-Cookie: b").into_parts();
        assert_eq!(headers.len(), 1);
    }
}
