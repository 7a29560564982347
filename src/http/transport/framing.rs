//! The head of a request as bytes: parsed, and how long its body is and how its reply is framed told from it.
//!
//! Framing that could be read in two ways is refused (RFC 9112, 6.3).

use std::io;
use std::net::SocketAddr;

use tiny_http::Method;

use crate::error::{ErrCode, Error};
use crate::http::transport::request::Request;

/// Most headers of a request.
const HEADERS_MAX: usize = 100;

/// Why there is no (whole) request.
pub(super) enum RequestError {
    /// The other side is gone or silent, or the connection was given up: nobody to answer.
    Gone,
    /// Answer this, then close.
    Refused(Box<Error>),
}

impl From<io::Error> for RequestError {
    fn from(_: io::Error) -> Self {
        Self::Gone
    }
}

pub(super) fn refused(status: u16, errcode: ErrCode, message: &'static str) -> RequestError {
    RequestError::Refused(Box::new(Error::new(errcode, message).with_status(status)))
}

pub(super) fn bad_request(message: &'static str) -> RequestError {
    refused(400, ErrCode::Unknown, message)
}

pub(super) fn too_large() -> RequestError {
    refused(413, ErrCode::TooLarge, "The request's body is too large")
}

/// How the body is delimited.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum BodyFraming {
    /// This many bytes, which may be none.
    Length(u64),
    Chunked,
}

/// What the reply needs to know of the request.
#[derive(Clone, Copy)]
pub(super) struct ReplyFraming {
    /// The minor version of HTTP/1 that was asked with.
    pub(super) minor: u8,
    pub(super) is_head: bool,
    pub(super) keep_alive: bool,
    /// Whether pages in a browser may read the reply.
    pub(super) cors: bool,
}

/// For replies to what could not be read: nothing is known of it.
pub(super) const UNREAD_REQUEST: ReplyFraming =
    ReplyFraming { minor: 1, is_head: false, keep_alive: false, cors: true };

/// A head that was understood.
pub(super) struct RequestHead {
    pub(super) request: Request,
    pub(super) framing: BodyFraming,
    pub(super) expects_continue: bool,
    pub(super) reply_framing: ReplyFraming,
}

/// Parses a head at the start of `bytes`. `None`: it is not complete.
pub(super) fn parse_head(
    bytes: &[u8],
    peer: SocketAddr,
) -> Result<Option<(RequestHead, usize)>, RequestError> {
    let mut headers = [httparse::EMPTY_HEADER; HEADERS_MAX];
    let mut parsed = httparse::Request::new(&mut headers);
    let used = match parsed.parse(bytes) {
        Ok(httparse::Status::Complete(used)) => used,
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => {
            return Err(refused(431, ErrCode::TooLarge, "The request has too many headers"));
        }
        Err(httparse::Error::Version) => {
            return Err(refused(505, ErrCode::Unrecognized, "This server speaks HTTP/1.1"));
        }
        Err(_) => return Err(bad_request("This is not an HTTP request")),
    };
    let (Some(method), Some(target), Some(minor)) = (parsed.method, parsed.path, parsed.version) else {
        return Err(bad_request("This is not an HTTP request"));
    };
    let framing = framing(parsed.headers, minor)?;
    let one_host = parsed.headers.iter().filter(|h| h.name.eq_ignore_ascii_case("host")).count();
    // RFC 9112, 3.2: a request of HTTP/1.1 without Host, and any with two, is refused.
    if one_host > 1 || (one_host == 0 && minor > 0) {
        return Err(bad_request("A request has one Host header"));
    }
    let mut expects_continue = false;
    for expect in values(parsed.headers, "expect").filter(|_| minor > 0) {
        if !expect.eq_ignore_ascii_case(b"100-continue") {
            return Err(refused(417, ErrCode::Unrecognized, "Unknown expectation"));
        }
        expects_continue = true;
    }
    let method: Method = method.parse().map_err(|()| bad_request("Unknown method"))?;
    let target = origin_form(target)?;
    let keep_alive = match minor {
        0 => has_option(parsed.headers, "keep-alive"),
        _ => !has_option(parsed.headers, "close"),
    };
    let reply_framing = ReplyFraming { minor, is_head: method == Method::Head, keep_alive, cors: true };
    let headers = parsed.headers.iter().map(|h| (h.name.to_owned(), text(h.value))).collect();
    let request = Request::new(method, target.to_owned(), headers, peer)
        .map_err(|e| RequestError::Refused(Box::new(e)))?;
    Ok(Some((RequestHead { request, framing, expects_continue, reply_framing }, used)))
}

/// RFC 9112, 3.2: path and query, of the absolute form too. `OPTIONS *` stays `*`.
fn origin_form(target: &str) -> Result<&str, RequestError> {
    if target.starts_with('/') || target == "*" {
        return Ok(target);
    }
    let rest = target
        .split_once("://")
        .filter(|(scheme, _)| scheme.eq_ignore_ascii_case("http") || scheme.eq_ignore_ascii_case("https"));
    match rest.map(|(_, rest)| rest.find('/').map_or("/", |at| &rest[at..])) {
        Some(path) => Ok(path),
        None => Err(bad_request("The request's address is no path")),
    }
}

fn values<'h>(
    headers: &'h [httparse::Header<'h>],
    name: &'static str,
) -> impl Iterator<Item = &'h [u8]> + use<'h> {
    headers.iter().filter(move |h| h.name.eq_ignore_ascii_case(name)).map(|h| h.value.trim_ascii())
}

fn has_option(headers: &[httparse::Header<'_>], option: &str) -> bool {
    let mut options = values(headers, "connection").flat_map(|value| value.split(|b| *b == b','));
    options.any(|o| o.trim_ascii().eq_ignore_ascii_case(option.as_bytes()))
}

/// How long the body is, refusing everything that two parsers could take differently (RFC 9112, 6.3).
fn framing(headers: &[httparse::Header<'_>], minor: u8) -> Result<BodyFraming, RequestError> {
    let mut length: Option<u64> = None;
    for value in values(headers, "content-length") {
        if value.is_empty() || !value.iter().all(u8::is_ascii_digit) {
            return Err(bad_request("Content-Length is not a number"));
        }
        // A number beyond 64 bits is a number, and too large.
        let number = std::str::from_utf8(value).ok().and_then(|v| v.parse().ok()).unwrap_or(u64::MAX);
        if length.is_some_and(|before| before != number) {
            return Err(bad_request("Two different Content-Length headers"));
        }
        length = Some(number);
    }
    let mut codings = values(headers, "transfer-encoding");
    let Some(coding) = codings.next() else { return Ok(BodyFraming::Length(length.unwrap_or(0))) };
    if length.is_some() {
        return Err(bad_request("Both Content-Length and Transfer-Encoding"));
    }
    if minor == 0 {
        return Err(bad_request("HTTP/1.0 has no Transfer-Encoding"));
    }
    if codings.next().is_some() || !coding.eq_ignore_ascii_case(b"chunked") {
        return Err(refused(501, ErrCode::Unrecognized, "The only Transfer-Encoding is chunked"));
    }
    Ok(BodyFraming::Chunked)
}

/// Hexadecimal digits, and extensions behind `;`, which mean nothing here.
pub(super) fn parse_chunk_size(line: &[u8]) -> Result<u64, RequestError> {
    let bad = || bad_request("Broken chunk size");
    let digits = line.split(|b| *b == b';').next().unwrap_or_default().trim_ascii_end();
    if digits.is_empty() || digits.len() > 16 || !digits.iter().all(u8::is_ascii_hexdigit) {
        return Err(bad());
    }
    let digits = std::str::from_utf8(digits).map_err(|_| bad())?;
    u64::from_str_radix(digits, 16).map_err(|_| bad())
}

/// UTF-8, or else Latin-1, in which every byte means something.
fn text(bytes: &[u8]) -> String {
    match std::str::from_utf8(bytes) {
        Ok(text) => text.to_owned(),
        Err(_) => bytes.iter().map(|b| char::from(*b)).collect(),
    }
}
