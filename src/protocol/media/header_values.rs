//! Values of headers that other servers write: with parameters, and with the name of a file, which ends in a header of
//! ours and on somebody's disk.

/// Longest file name that is kept, in bytes: as of those that are uploaded here.
const FILE_NAME_BYTES_MAX: usize = 1020;
/// Of a name that is longer, so much of its extension is kept, with the dot.
const EXTENSION_BYTES_MAX: usize = 16;
/// Most parameters of a header that are read.
const PARAMETERS_MAX: usize = 16;

/// A header's value and its parameters: names in lower case, values without quotes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HeaderValue {
    /// Before the first `;`, trimmed, in lower case.
    pub value: String,
    /// In the order in which they stand.
    pub parameters: Vec<(String, String)>,
}

impl HeaderValue {
    /// Reads `value; name=token; name="quoted \" string"` (RFC 9110, 5.6.6). What does not parse ends the parameters.
    pub fn read(text: &str) -> Self {
        let (value, mut rest) = text.split_once(';').unwrap_or((text, ""));
        let mut parameters = Vec::new();
        while parameters.len() < PARAMETERS_MAX {
            rest = rest.trim_start_matches([' ', '\t', ';']);
            let Some((name, after)) = rest.split_once('=') else { break };
            let name = name.trim();
            if !is_token(name) {
                break;
            }
            let after = after.trim_start();
            let (value, left) = match after.strip_prefix('"') {
                Some(quoted) => unquoted(quoted),
                None => {
                    let end = after.find(';').unwrap_or(after.len());
                    (after[..end].trim_end().to_owned(), &after[end..])
                }
            };
            parameters.push((name.to_ascii_lowercase(), value));
            rest = left;
        }
        Self { value: value.trim().to_ascii_lowercase(), parameters }
    }

    /// The first parameter of this name.
    pub fn parameter(&self, name: &str) -> Option<&str> {
        self.parameters.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
    }
}

/// The text up to the closing quote, or all of it, and what stands behind.
fn unquoted(text: &str) -> (String, &str) {
    let (mut value, mut chars) = (String::new(), text.char_indices());
    while let Some((at, c)) = chars.next() {
        match c {
            '"' => return (value, &text[at + 1..]),
            '\\' => value.extend(chars.next().map(|(_, escaped)| escaped)),
            c => value.push(c),
        }
    }
    (value, "")
}

/// RFC 9110, 5.6.2.
fn is_token(text: &str) -> bool {
    let is_token_byte = |b: u8| b.is_ascii_alphanumeric() || b"!#$%&'*+-.^_`|~".contains(&b);
    !text.is_empty() && text.bytes().all(is_token_byte)
}

/// The file's name in a `Content-Disposition` header (RFC 6266), `filename*` before `filename`, as [`safe_name`] has it.
pub fn name_in_disposition(header: &str) -> Option<String> {
    let read = HeaderValue::read(header);
    let extended = read.parameter("filename*").and_then(decoded);
    safe_name(&extended.or_else(|| read.parameter("filename").map(str::to_owned))?)
}

/// The text in `charset'language'percent-encoded` (RFC 8187), if it is in a charset that we know.
fn decoded(value: &str) -> Option<String> {
    let (charset, rest) = value.split_once('\'')?;
    let (_, encoded) = rest.split_once('\'')?;
    let mut bytes = Vec::with_capacity(encoded.len());
    let mut left = encoded.as_bytes();
    while let Some((&first, rest)) = left.split_first() {
        let hex = |b: u8| char::from(b).to_digit(16).and_then(|d| u8::try_from(d).ok());
        match (first, rest) {
            (b'%', [high, low, rest @ ..]) => {
                bytes.push(hex(*high)? << 4 | hex(*low)?);
                left = rest;
            }
            (b'%', _) => return None,
            (byte, rest) => {
                bytes.push(byte);
                left = rest;
            }
        }
    }
    match charset.to_ascii_lowercase().as_str() {
        "utf-8" => String::from_utf8(bytes).ok(),
        "iso-8859-1" => Some(bytes.into_iter().map(char::from).collect()),
        _ => None,
    }
}

/// A file name that can do no harm where it is saved or shown: the last segment of a path, without control characters
/// and those that turn the direction of what follows, at most 1020 bytes. None if nothing is left of it.
pub fn safe_name(name: &str) -> Option<String> {
    let last = name.rsplit(['/', '\\']).next().unwrap_or_default();
    let turns =
        |c: char| matches!(c, '\u{200e}' | '\u{200f}' | '\u{202a}'..='\u{202e}' | '\u{2066}'..='\u{2069}');
    let kept: String = last.chars().filter(|c| !c.is_control() && !turns(*c)).collect();
    let kept = cut(kept.trim());
    (!kept.is_empty() && !kept.bytes().all(|b| b == b'.')).then_some(kept)
}

/// The name within its bound; of a longer one the beginning, and the extension if it is one.
fn cut(name: &str) -> String {
    if name.len() <= FILE_NAME_BYTES_MAX {
        return name.to_owned();
    }
    let dot = name.rfind('.').filter(|dot| name.len() - dot <= EXTENSION_BYTES_MAX);
    let extension = dot.map_or("", |dot| &name[dot..]);
    let most = FILE_NAME_BYTES_MAX - extension.len();
    let stem = (0..=most).rev().find(|at| name.is_char_boundary(*at)).unwrap_or(0);
    format!("{}{extension}", &name[..stem])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn parameters_are_read_quoted_or_not() {
        let read =
            HeaderValue::read("Multipart/Mixed; Boundary=\"a;b \\\"c\\\"\" ;charset = utf-8; x=\"no end");
        assert_eq!(read.value, "multipart/mixed");
        assert_eq!(read.parameter("boundary"), Some("a;b \"c\""));
        assert_eq!(read.parameter("charset"), Some("utf-8"));
        assert_eq!(read.parameter("x"), Some("no end"));
        assert_eq!(HeaderValue::read("a; b; c=d").parameters, []);
        let many: String = (0..10_000).map(|n| format!(";a{n}=b")).collect();
        assert_eq!(HeaderValue::read(&many).parameters.len(), PARAMETERS_MAX);
        for odd in ["", ";", "=", ";=", "; =\"", "a;b=\"\\", "a;b=\"\\\"", "é;é=é"] {
            HeaderValue::read(odd);
        }
    }

    #[test]
    fn a_name_is_read_from_any_writer_and_is_harmless() {
        for (header, name) in [
            ("inline; filename=a.png", Some("a.png")),
            ("attachment;filename=\"a b \\\"c\\\".png\"", Some("a b \"c\".png")),
            ("attachment; filename=plain.txt; filename*=utf-8''gr%C3%BC%C3%9Fe.txt", Some("grüße.txt")),
            ("attachment; filename*=UTF-8'de'%e4%bd%a0.png", Some("你.png")),
            ("attachment; filename*=iso-8859-1''gr%FC%DFe", Some("grüße")),
            ("attachment; filename*=utf-8''%ff; filename=spare", Some("spare")),
            ("attachment; filename*=utf-8''%4; filename=spare", Some("spare")),
            ("attachment; filename*=koi8-r''%41; filename=spare", Some("spare")),
            ("attachment; filename=grüße.txt", Some("grüße.txt")),
            ("attachment; filename=\"../../etc/passwd\"", Some("passwd")),
            ("attachment; filename=\"C:\\\\Windows\\\\a.dll\"", Some("a.dll")),
            ("attachment; filename*=utf-8''a%0D%0ASet-Cookie:%20b", Some("aSet-Cookie: b")),
            ("attachment; filename*=utf-8''%E2%80%AEgnp.exe", Some("gnp.exe")),
            ("attachment; filename=..", None),
            ("attachment; filename=\"a/\"", None),
            ("attachment; filename=\"\"", None),
            ("attachment; filename*=utf-8''%00%0A", None),
            ("attachment", None),
            ("", None),
        ] {
            assert_eq!(name_in_disposition(header).as_deref(), name, "{header}");
        }
    }

    #[test]
    fn a_long_name_keeps_its_extension() {
        let long =
            name_in_disposition(&format!("inline; filename={}.jpeg", "é".repeat(5000))).expect("a name");
        assert!(long.len() <= FILE_NAME_BYTES_MAX && long.ends_with("é.jpeg"), "{long}");
        let dotted = safe_name(&format!("a.{}", "b".repeat(10_000))).expect("a name");
        assert_eq!(dotted.len(), FILE_NAME_BYTES_MAX);
    }
}
