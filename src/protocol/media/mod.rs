//! Media as their URIs name them and as headers describe them: mxc:// URIs, media types, `Content-Disposition`, and ranges
//! of bytes (client-server API, "Content repository"; RFC 9110).

pub mod header_values;
pub mod multipart;
pub mod web_url;

use std::fmt;
use std::sync::Arc;

use crate::error::{Error, Result};
use crate::protocol::ServerName;

/// Longest media id, in bytes.
const MEDIA_ID_BYTES_MAX: usize = 255;
/// Longest media type with its parameters, in bytes.
const MEDIA_TYPE_BYTES_MAX: usize = 255;
/// Longest name of a file, in bytes: the longest that any file system takes, in any script.
const FILE_NAME_BYTES_MAX: usize = 1020;

/// Which of its server's media: `[A-Za-z0-9_-]+`, so that no path can be made of it.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MediaId(Arc<str>);

impl MediaId {
    /// Checks and wraps a media id. Errors: 400 `M_INVALID_PARAM`.
    pub fn parse(text: &str) -> Result<Self> {
        let may_be = |b: u8| b.is_ascii_alphanumeric() || b == b'_' || b == b'-';
        if (1..=MEDIA_ID_BYTES_MAX).contains(&text.len()) && text.bytes().all(may_be) {
            Ok(Self(text.into()))
        } else {
            Err(Error::invalid_param("not a valid media id"))
        }
    }

    /// What is kept of this beside the file itself, by a name that no URI can have. `suffix` is ours.
    pub fn with_suffix(&self, suffix: &str) -> Self {
        Self(format!("{}.{suffix}", self.0).into())
    }

    /// The id as text.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

/// An mxc:// URI.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct MxcUri {
    /// The server whose it is.
    pub server: ServerName,
    /// Which of its media.
    pub media_id: MediaId,
}

impl MxcUri {
    /// Reads `mxc://server/id`. Errors: 400 `M_INVALID_PARAM`.
    pub fn parse(text: &str) -> Result<Self> {
        let parts = text.strip_prefix("mxc://").and_then(|rest| rest.split_once('/'));
        let (server, id) = parts.ok_or_else(|| Error::invalid_param("not a valid mxc:// URI"))?;
        Ok(Self { server: ServerName::parse(server)?, media_id: MediaId::parse(id)? })
    }
}

impl fmt::Display for MxcUri {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "mxc://{}/{}", self.server, self.media_id.as_str())
    }
}

/// What is served for a file of which it is not known what it is.
pub const UNKNOWN_MEDIA_TYPE: &str = "application/octet-stream";

/// The types that may be shown where they are asked for: "Serving inline content". No browser runs anything in them.
const INLINE_TYPES: [&str; 26] = [
    "text/css",
    "text/plain",
    "text/csv",
    "application/json",
    "application/ld+json",
    "image/jpeg",
    "image/gif",
    "image/png",
    "image/apng",
    "image/webp",
    "image/avif",
    "video/mp4",
    "video/webm",
    "video/ogg",
    "video/quicktime",
    "audio/mp4",
    "audio/webm",
    "audio/aac",
    "audio/mpeg",
    "audio/ogg",
    "audio/wave",
    "audio/wav",
    "audio/x-wav",
    "audio/x-pn-wav",
    "audio/flac",
    "audio/x-flac",
];

/// The media type that a `Content-Type` names, as it was written; none if it is not well-formed. Browsers make what they
/// can of what is not (of a list in which a comma stands, the last), so that nothing of the kind is ever passed on.
pub fn media_type(header: &str) -> Option<&str> {
    let text = header.trim_matches([' ', '\t']);
    if text.len() > MEDIA_TYPE_BYTES_MAX || text.contains(',') {
        return None;
    }
    let mut parts = split_parameters(text)?.into_iter();
    let (kind, subtype) = parts.next()?.split_once('/')?;
    let names_fit = is_token(kind) && is_token(subtype);
    let parameters_fit = parts.all(|parameter| {
        parameter.is_empty()
            || parameter
                .split_once('=')
                .is_some_and(|(name, value)| is_token(name) && (is_token(value) || is_quoted_string(value)))
    });
    (names_fit && parameters_fit).then_some(text)
}

/// The parts between semicolons, those within quotes left whole; none if a quote is never closed.
fn split_parameters(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut quoted, mut escaped) = (Vec::new(), 0, false, false);
    for (at, byte) in text.bytes().enumerate() {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if quoted => escaped = true,
            b'"' => quoted = !quoted,
            b';' if !quoted => {
                parts.push(&text[start..at]);
                start = at + 1;
            }
            _ => {}
        }
    }
    parts.push(&text[start..]);
    (!quoted).then(|| parts.into_iter().map(|part| part.trim_matches([' ', '\t'])).collect())
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let is_tchar = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_tchar)
}

/// RFC 9110, 5.6.4, in ASCII.
fn is_quoted_string(text: &str) -> bool {
    let inner = text.strip_prefix('"').and_then(|rest| rest.strip_suffix('"'));
    inner.is_some_and(|inner| inner.bytes().all(|b| b == b'\t' || (b' '..0x7f).contains(&b)))
}

/// Type and subtype of a media type in lower case, without its parameters.
pub fn essence(media_type: &str) -> String {
    let essence = media_type.split(';').next().unwrap_or_default();
    essence.trim_matches([' ', '\t']).to_ascii_lowercase()
}

/// A file name as a client or another server gave it; an empty one is none. Errors: 400 `M_INVALID_PARAM` for one that is
/// too long.
pub fn file_name(name: Option<&str>) -> Result<Option<String>> {
    match name {
        None | Some("") => Ok(None),
        Some(name) if name.len() <= FILE_NAME_BYTES_MAX => Ok(Some(name.to_owned())),
        Some(_) => Err(Error::invalid_param(format!(
            "The name of a file may have at most {FILE_NAME_BYTES_MAX} bytes"
        ))),
    }
}

/// The `Content-Disposition` of a file of this type: shown only if its type is one that is safe, and by this name.
pub fn content_disposition(media_type: &str, file_name: Option<&str>) -> String {
    let inline = INLINE_TYPES.contains(&essence(media_type).as_str());
    let disposition = if inline { "inline" } else { "attachment" };
    match file_name {
        None => disposition.to_owned(),
        Some(name) if is_token(name) => format!("{disposition}; filename={name}"),
        Some(name) => format!("{disposition}; filename*=utf-8''{}", extended_value(name)),
    }
}

/// RFC 8187, 3.2.1: everything but `attr-char` as `%` and two digits.
fn extended_value(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || b"!#$&+-.^_`|~".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// What of a file is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ByteRange {
    /// All of it: nothing else was asked for, or what was asked for is to be ignored.
    All,
    /// `length` bytes from `start` on; never none.
    Part {
        /// The first byte.
        start: u64,
        /// How many.
        length: u64,
    },
    /// Something that the file does not have: 416.
    Unsatisfiable,
}

/// Reads the `Range` of a `GET` of a file of this size (RFC 9110, 14). More than one range, another unit and what is not
/// well-formed are ignored, as that allows.
pub fn byte_range(header: Option<&str>, size: u64) -> ByteRange {
    let Some((unit, set)) = header.and_then(|header| header.split_once('=')) else { return ByteRange::All };
    if !unit.trim_ascii().eq_ignore_ascii_case("bytes") {
        return ByteRange::All;
    }
    let Some((first, last)) = set.trim_ascii().split_once('-') else { return ByteRange::All };
    // A number beyond 64 bits is a number, and larger than any file.
    let number = |text: &str| {
        let is_number = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        is_number.then(|| text.parse().unwrap_or(u64::MAX))
    };
    match (number(first), number(last)) {
        (Some(first), None) if last.is_empty() => part(first, u64::MAX, size),
        (Some(first), Some(last)) if first <= last => part(first, last, size),
        (None, Some(0)) if first.is_empty() => ByteRange::Unsatisfiable,
        // Of a file that has nothing the last bytes are nothing, which no 206 can tell.
        (None, Some(_)) if first.is_empty() && size == 0 => ByteRange::All,
        (None, Some(suffix)) if first.is_empty() => part(size.saturating_sub(suffix), u64::MAX, size),
        _ => ByteRange::All,
    }
}

fn part(first: u64, last: u64, size: u64) -> ByteRange {
    if first >= size {
        return ByteRange::Unsatisfiable;
    }
    ByteRange::Part { start: first, length: last.min(size - 1) - first + 1 }
}

/// Whether an `If-None-Match` names this entity tag, which is strong (RFC 9110, 13.1.2).
pub fn none_match_names(header: &str, etag: &str) -> bool {
    header
        .split(',')
        .map(str::trim_ascii)
        .any(|named| named == "*" || named.strip_prefix("W/").unwrap_or(named) == etag)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_uri_leads_to_no_path() {
        let uri = MxcUri::parse("mxc://example.org:8448/a-B_9").unwrap();
        assert_eq!((uri.server.as_str(), uri.media_id.as_str()), ("example.org:8448", "a-B_9"));
        assert_eq!(uri.to_string(), "mxc://example.org:8448/a-B_9");
        for bad in [
            "mxc://127.0.0.1/../../../etc/passwd",
            "mxc://example.org/..",
            "mxc://example.org/",
            "mxc:///abc",
            "mxc://example.org",
            "mxc://example.org/a/b",
            "mxc://example.org/a%2Fb",
            "mxc://exa mple/abc",
            "MXC://example.org/abc",
            "https://example.org/abc",
            "mxc://example.org/ä",
            "mxc://example.org/a?x",
            "mxc://example.org/a\0",
        ] {
            MxcUri::parse(bad).expect_err(bad);
        }
        MediaId::parse(&"a".repeat(256)).expect_err("too long");
    }

    #[test]
    fn only_what_is_well_formed_is_a_media_type() {
        for good in [
            "image/png",
            "Image/PNG",
            "text/plain; charset=utf-8",
            "text/plain;charset=\"utf-8\"",
            "multipart/mixed; boundary=\"a;b\"",
            "application/vnd.a+json ; q=1;",
        ] {
            assert_eq!(media_type(good), Some(good));
        }
        assert_eq!(media_type(" image/png\t"), Some("image/png"));
        for bad in [
            "",
            "image",
            "image/",
            "/png",
            "image/png, text/html",
            "image/png; x=y, text/html",
            "image/png; x=\"a, text/html\"",
            "image/png; x=\"a",
            "image/png; x",
            "image/png; =x",
            "image/p ng",
            "image/png\r\nX-A: b",
            "image/png; x=\"\r\n\"",
            "image/pñg",
            "*/*; q=\u{7f}",
        ] {
            assert_eq!(media_type(bad), None, "{bad:?}");
        }
        assert_eq!(media_type(&format!("image/{}", "x".repeat(250))), None);
    }

    #[test]
    fn only_the_types_that_are_safe_are_shown_whatever_their_case_and_parameters() {
        for inline in [
            "image/png",
            "IMAGE/PNG",
            "text/plain; charset=utf-8",
            "Text/Plain;charset=utf-8",
            "video/mp4 ;x=y",
        ] {
            assert_eq!(content_disposition(inline, None), "inline", "{inline}");
        }
        for other in [
            "text/html",
            "TEXT/HTML",
            "text/html; charset=image/png",
            "image/svg+xml",
            "Image/SVG+xml; x=image/png",
            "application/xhtml+xml",
            "text/xml",
            "application/pdf",
            "application/javascript",
            UNKNOWN_MEDIA_TYPE,
            "",
        ] {
            assert_eq!(content_disposition(other, None), "attachment", "{other}");
        }
    }

    #[test]
    fn a_file_keeps_its_name_and_no_name_ends_the_header() {
        let named = |name| content_disposition("image/png", Some(name));
        assert_eq!(named("cat.png"), "inline; filename=cat.png");
        assert_eq!(named("my cat.png"), "inline; filename*=utf-8''my%20cat.png");
        assert_eq!(named("Kätzchen \"1\".png"), "inline; filename*=utf-8''K%C3%A4tzchen%20%221%22.png");
        assert_eq!(named("../../etc/passwd"), "inline; filename*=utf-8''..%2F..%2Fetc%2Fpasswd");
        assert_eq!(named("a\r\nSet-Cookie: b"), "inline; filename*=utf-8''a%0D%0ASet-Cookie%3A%20b");
        assert_eq!(named("a;b=c"), "inline; filename*=utf-8''a%3Bb%3Dc");
        assert_eq!(named("it's 50%*.txt"), "inline; filename*=utf-8''it%27s%2050%25%2A.txt");
        assert_eq!(file_name(Some("")).unwrap(), None);
        assert_eq!(file_name(Some(&"ä".repeat(510))).unwrap().unwrap().len(), 1020);
        file_name(Some(&"a".repeat(1021))).unwrap_err();
    }

    #[test]
    fn a_range_is_within_the_file_or_told_to_be_none_or_ignored() {
        let part = |start, length| ByteRange::Part { start, length };
        for (header, wanted) in [
            ("bytes=0-1", part(0, 2)),
            ("bytes=0-", part(0, 10)),
            ("bytes=3-", part(3, 7)),
            ("bytes=9-9", part(9, 1)),
            ("bytes=5-99", part(5, 5)),
            ("bytes=0-18446744073709551615", part(0, 10)),
            ("bytes=0-99999999999999999999999", part(0, 10)),
            ("bytes=-3", part(7, 3)),
            ("bytes=-10", part(0, 10)),
            ("bytes=-99999999999999999999", part(0, 10)),
            ("BYTES = 2-3 ", part(2, 2)),
            ("bytes=10-", ByteRange::Unsatisfiable),
            ("bytes=10-11", ByteRange::Unsatisfiable),
            ("bytes=99999999999999999999-", ByteRange::Unsatisfiable),
            ("bytes=-0", ByteRange::Unsatisfiable),
            ("bytes=", ByteRange::All),
            ("bytes=-", ByteRange::All),
            ("bytes=5-3", ByteRange::All),
            ("bytes=+1-2", ByteRange::All),
            ("bytes=1-+2", ByteRange::All),
            ("bytes=a-b", ByteRange::All),
            ("bytes=0-1,3-4", ByteRange::All),
            ("bytes=0-1-2", ByteRange::All),
            ("bytes 0-1", ByteRange::All),
            ("lines=0-1", ByteRange::All),
            ("", ByteRange::All),
        ] {
            assert_eq!(byte_range(Some(header), 10), wanted, "{header}");
        }
        assert_eq!(byte_range(None, 10), ByteRange::All);
        assert_eq!(byte_range(Some("bytes=0-"), 0), ByteRange::Unsatisfiable);
        assert_eq!(byte_range(Some("bytes=-1"), 0), ByteRange::All);
    }

    #[test]
    fn an_entity_tag_is_known_in_a_list_and_in_its_weak_form() {
        let etag = "\"abc\"";
        for same in ["\"abc\"", "W/\"abc\"", "\"x\", \"abc\"", "*", " \"abc\" "] {
            assert!(none_match_names(same, etag), "{same}");
        }
        for other in ["", "abc", "\"abcd\"", "\"x\", \"y\"", "W/abc"] {
            assert!(!none_match_names(other, etag), "{other}");
        }
    }
}
