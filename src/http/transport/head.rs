//! The head of a reply as bytes.

use std::io::Write;

use tiny_http::StatusCode;

use crate::http::transport::framing::ReplyFraming;
use crate::http::transport::reply::ReplyHeader;
use crate::protocol::Millis;
use crate::protocol::certificates::calendar::as_http_date;

/// What lets a page in a browser read any reply.
const FOR_BROWSERS: &[u8] = b"Access-Control-Allow-Origin: *\r\n\
    Access-Control-Allow-Methods: GET, HEAD, POST, PUT, DELETE, OPTIONS\r\n\
    Access-Control-Allow-Headers: X-Requested-With, Content-Type, Authorization, Date, \
    Range, If-Range, If-None-Match\r\n\
    Access-Control-Max-Age: 86400\r\n";
/// Room for a head that has no more than most.
const HEAD_BYTES_USUAL: usize = 512;

/// Where the body of a reply ends.
#[derive(Clone, Copy)]
pub(super) enum BodyEnd {
    /// After so many bytes.
    Length(u64),
    /// Where its last chunk says so.
    Chunked,
    /// Where the connection ends.
    Connection,
}

/// Whether a reply of this status has a body (RFC 9110, 6.4.1 and 15.4.5).
pub(super) fn has_body(status: u16) -> bool {
    !matches!(status, 100..=199 | 204 | 304)
}

/// The head, up to its empty line, with `room` for so many bytes behind it.
pub(super) fn reply_head(
    status: u16,
    headers: &[ReplyHeader],
    framing: ReplyFraming,
    (end, room): (BodyEnd, usize),
    now: Millis,
) -> Vec<u8> {
    let mut head = Vec::with_capacity(HEAD_BYTES_USUAL + room);
    let reason = StatusCode(status).default_reason_phrase();
    let date = as_http_date(now);
    let mut line = |arguments: std::fmt::Arguments<'_>| {
        // Memory takes all that is written.
        let _ = head.write_fmt(arguments);
        head.extend_from_slice(b"\r\n");
    };
    line(format_args!("HTTP/1.{} {status} {reason}", framing.minor));
    match (framing.keep_alive, framing.minor) {
        (false, _) => line(format_args!("Connection: close")),
        (true, 0) => line(format_args!("Connection: keep-alive")),
        (true, _) => {}
    }
    line(format_args!("Date: {date}"));
    for (name, value) in headers {
        line(format_args!("{name}: {value}"));
    }
    line(format_args!("Server: Doorstep"));
    match end {
        BodyEnd::Length(length) => line(format_args!("Content-Length: {length}")),
        BodyEnd::Chunked => line(format_args!("Transfer-Encoding: chunked")),
        BodyEnd::Connection => {}
    }
    if framing.cors {
        head.extend_from_slice(FOR_BROWSERS);
    }
    head.extend_from_slice(b"\r\n");
    head
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_head_says_how_its_body_ends_and_whether_the_connection_goes_on() {
        let framing = |minor, keep_alive, cors| ReplyFraming { minor, is_head: false, keep_alive, cors };
        let head = |status, framing, end| {
            let headers = [("Content-Type", "application/json".to_owned())];
            let head = reply_head(status, &headers, framing, (end, 0), 784_111_777_000);
            String::from_utf8(head).expect("text")
        };
        let whole = head(200, framing(1, true, false), BodyEnd::Length(2));
        assert_eq!(
            whole,
            "HTTP/1.1 200 OK\r\nDate: Sun, 06 Nov 1994 08:49:37 GMT\r\nContent-Type: application/json\r\n\
             Server: Doorstep\r\nContent-Length: 2\r\n\r\n"
        );
        let whole = head(404, framing(1, false, true), BodyEnd::Chunked);
        assert!(whole.starts_with("HTTP/1.1 404 Not Found\r\nConnection: close\r\n"), "{whole}");
        assert!(
            whole.contains("\r\nTransfer-Encoding: chunked\r\nAccess-Control-Allow-Origin: *\r\n"),
            "{whole}"
        );
        assert!(whole.ends_with("\r\nAccess-Control-Max-Age: 86400\r\n\r\n"), "{whole}");
        assert!(!whole.contains("Content-Length"), "{whole}");
        let whole = head(200, framing(0, true, false), BodyEnd::Connection);
        assert!(whole.starts_with("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nDate: "), "{whole}");
        assert!(!whole.contains("Content-Length") && !whole.contains("chunked"), "{whole}");
        assert!(!has_body(304) && !has_body(204) && has_body(200) && has_body(404));
    }
}
