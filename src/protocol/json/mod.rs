//! Canonical JSON, bounded parsing, and unpadded base64 (appendices, "Signing JSON", "Unpadded Base64").
//!
//! - `parse`: strangers' text becomes values, weighed while they are built; `lists`: lists of bounded length.
//! - `object`: an object as canonical text that knows its members; `text`: any JSON text as canonical text.
//! - `written`: JSON text that is put into other JSON as it stands.
//!
//! What a peer or a client sends is parsed by [`parse_object`] and its siblings: at most [`JSON_DEPTH_MAX`] levels,
//! no more memory than is in proportion to its bytes, of repeated keys the last one counts (as in every server that
//! was looked at). `serde_json` alone stops at 127 levels; ours is lower on purpose, so that an event that we
//! accepted still fits when it is wrapped into a transaction or a `/sync` answer, whose receivers (many of them with
//! the same library) would otherwise refuse the whole answer for its sake.

mod lists;
mod object;
mod parse;
mod text;
mod written;

use std::borrow::Cow;

use base64::Engine;
use base64::alphabet;
use base64::engine::DecodePaddingMode;
use base64::engine::general_purpose::{GeneralPurpose, GeneralPurposeConfig};
use serde_json::{Map, Value};

use crate::error::Error;

pub use lists::{AtMost, AtMostMembers, First, FirstMembers};
pub use object::CanonicalObject;
pub(crate) use object::{member_of, members_of, string};
pub use parse::{
    ObjectText, is_object, parse_object, read, read_large, read_object, shaped, weight_max, what_was_expected,
};
pub(crate) use parse::{object_tree, read_stored, tree};
pub use text::{Oddities, append_canonical, canonical_text};
pub use written::{JsonList, JsonText, write_json};

/// How many objects and arrays may be nested in one another, the outermost included.
pub const JSON_DEPTH_MAX: usize = 100;

/// 2^53 - 1, the largest integer of canonical JSON.
pub const INTEGER_MAX: i64 = (1 << 53) - 1;

const LENIENT: GeneralPurposeConfig = GeneralPurposeConfig::new()
    .with_encode_padding(false)
    .with_decode_padding_mode(DecodePaddingMode::Indifferent)
    .with_decode_allow_trailing_bits(true);
const STANDARD: GeneralPurpose = GeneralPurpose::new(&alphabet::STANDARD, LENIENT);
const URL_SAFE: GeneralPurpose = GeneralPurpose::new(&alphabet::URL_SAFE, LENIENT);

/// Unpadded standard base64.
pub fn base64(bytes: &[u8]) -> String {
    STANDARD.encode(bytes)
}

/// Standard base64 with its padding, as the world outside of Matrix has it.
pub fn base64_padded(bytes: &[u8]) -> String {
    let mut text = base64(bytes);
    text.extend(std::iter::repeat_n('=', text.len().next_multiple_of(4) - text.len()));
    text
}

/// Unpadded standard base64, behind what is there already.
pub fn push_base64(text: &mut String, bytes: &[u8]) {
    STANDARD.encode_string(bytes, text);
}

/// Unpadded URL-safe base64, behind what is there already.
pub fn push_base64_url(text: &mut String, bytes: &[u8]) {
    URL_SAFE.encode_string(bytes, text);
}

/// Unpadded URL-safe base64.
pub fn base64_url(bytes: &[u8]) -> String {
    URL_SAFE.encode(bytes)
}

/// Decodes standard base64, with or without padding; none if it is not.
pub fn base64_decode(text: &str) -> Option<Vec<u8>> {
    STANDARD.decode(text).ok()
}

fn not_an_object() -> Error {
    Error::bad_json("expected a JSON object")
}

pub(crate) fn too_deep() -> Error {
    Error::bad_json("JSON is nested too deeply")
}

// What room versions 6 and later demand of an event's JSON: integers within ±(2^53-1) and nothing else that is a
// number.
const NOT_WHOLE: &str = "numbers must be integers";
const TOO_BIG: &str = "an integer is beyond 2^53 - 1";

/// How numbers that are not integers are written: see [`canonical`] and [`canonical_event`].
#[derive(Clone, Copy, PartialEq, Eq)]
enum Floats {
    WholeAsIntegers,
    AsPython,
}

/// An object of a few members.
pub fn object_of<const N: usize>(members: [(&str, Value); N]) -> Map<String, Value> {
    // Collecting would sort them, by a sort that is compiled anew for each number of them.
    let mut object = Map::new();
    members.into_iter().for_each(|(name, value)| drop(object.insert(name.to_owned(), value)));
    object
}

/// Canonical JSON. Whole floats become integers, as in the specification's example (`1e10` is `10000000000`, `-0` is
/// `0`); other floats have no canonical form, and are written in the shortest form that reads back the same.
pub fn canonical(value: &Value) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write_value(&mut out, value, Floats::WholeAsIntegers);
    out
}

/// [`canonical`] as text.
pub fn canonical_string(value: &Value) -> String {
    // `write_value` writes ASCII punctuation and whole strings.
    String::from_utf8(canonical(value)).unwrap_or_default()
}

/// [`canonical`] of an object.
pub fn canonical_object(object: &Map<String, Value>) -> Vec<u8> {
    let mut out = Vec::with_capacity(256);
    write_object(&mut out, object, &[], Floats::WholeAsIntegers);
    out
}

/// Canonical JSON of an event, without some of its top-level keys: what is hashed and signed.
///
/// It differs from [`canonical`] only for floats, which only events of room versions 1 to 5 can have: those were
/// hashed and signed with Python's spelling (`1.0`, `1e+16`), so that is what has to be checked against.
/// What a [`Value`] cannot hold exactly (integers beyond 64 bits, some floats of 17 digits) fails its hash there, and
/// such an event is redacted.
pub fn canonical_event(event: &Map<String, Value>, without: &[&str]) -> Vec<u8> {
    let mut out = Vec::with_capacity(1024);
    write_object(&mut out, event, without, Floats::AsPython);
    out
}

fn write_object(out: &mut Vec<u8>, object: &Map<String, Value>, without: &[&str], floats: Floats) {
    // The map is a BTreeMap: its keys are in the order of their UTF-8 bytes, which is that of their code points.
    write_members(out, object.iter().filter(|(key, _)| !without.contains(&key.as_str())), floats);
}

fn write_members<'v>(
    out: &mut Vec<u8>,
    members: impl Iterator<Item = (&'v String, &'v Value)>,
    floats: Floats,
) {
    out.push(b'{');
    let mut first = true;
    for (key, value) in members {
        if !std::mem::take(&mut first) {
            out.push(b',');
        }
        write_string(out, key);
        out.push(b':');
        write_value(out, value, floats);
    }
    out.push(b'}');
}

fn write_value(out: &mut Vec<u8>, value: &Value, floats: Floats) {
    match value {
        Value::Null => out.extend_from_slice(b"null"),
        Value::Bool(true) => out.extend_from_slice(b"true"),
        Value::Bool(false) => out.extend_from_slice(b"false"),
        Value::String(text) => write_string(out, text),
        Value::Object(object) => write_object(out, object, &[], floats),
        Value::Array(items) => {
            out.push(b'[');
            for (i, item) in items.iter().enumerate() {
                if i > 0 {
                    out.push(b',');
                }
                write_value(out, item, floats);
            }
            out.push(b']');
        }
        Value::Number(number) => match number.as_f64() {
            Some(float) if number.is_f64() => out.extend_from_slice(float_text(float, floats).as_bytes()),
            _ => out.extend_from_slice(number.to_string().as_bytes()),
        },
    }
}

/// A string with the shortest escapes: `\b \t \n \f \r \" \\`, `\u00xx` for the other control characters.
pub(crate) fn write_string(out: &mut Vec<u8>, text: &str) {
    const HEX: &[u8; 16] = b"0123456789abcdef";
    out.push(b'"');
    let bytes = text.as_bytes();
    let mut written = 0;
    for (i, &byte) in bytes.iter().enumerate() {
        let escape: &[u8] = match byte {
            b'"' => b"\\\"",
            b'\\' => b"\\\\",
            0x08 => b"\\b",
            b'\t' => b"\\t",
            b'\n' => b"\\n",
            0x0c => b"\\f",
            b'\r' => b"\\r",
            0..0x20 => &[b'\\', b'u', b'0', b'0', HEX[usize::from(byte >> 4)], HEX[usize::from(byte & 15)]],
            _ => continue,
        };
        out.extend_from_slice(&bytes[written..i]);
        out.extend_from_slice(escape);
        written = i + 1;
    }
    out.extend_from_slice(&bytes[written..]);
    out.push(b'"');
}

/// A float, which is finite since JSON has no others.
fn float_text(float: f64, floats: Floats) -> Cow<'static, str> {
    if float == 0.0 && floats == Floats::WholeAsIntegers {
        return "0".into();
    }
    if floats == Floats::WholeAsIntegers && float.fract() == 0.0 && float.abs() <= 1e21 {
        return format!("{float:.0}").into();
    }
    // Rust's exponent form has the shortest digits: "-1.5e-7". Python writes them plainly between 1e-4 and 1e16.
    let text = format!("{float:e}");
    let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    if (-4..16).contains(&exponent) {
        let plain = format!("{float}");
        return if plain.contains('.') { plain.into() } else { format!("{plain}.0").into() };
    }
    let sign = if exponent < 0 { '-' } else { '+' };
    format!("{digits}e{sign}{:02}", exponent.abs()).into()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_keys_of_canonical_json_are_in_code_point_order() {
        let value = json!({"\u{ffff}": 1, "😀": 2, "é": 3, "b": 4, "B": 5, "": 6});
        let expected = "{\"\":6,\"B\":5,\"b\":4,\"é\":3,\"\u{ffff}\":1,\"😀\":2}";
        assert_eq!(canonical_string(&value), expected);
    }

    #[test]
    fn canonical_strings_escape_as_little_as_they_can() {
        let value = json!("\u{0}\u{8}\t\n\u{b}\u{c}\r\u{1f}\u{7f}\"\\/\u{2028}é😀");
        let expected = "\"\\u0000\\b\\t\\n\\u000b\\f\\r\\u001f\u{7f}\\\"\\\\/\u{2028}é😀\"";
        assert_eq!(canonical_string(&value), expected);
    }

    #[test]
    fn whole_floats_are_canonical_integers_but_events_keep_the_spelling_they_were_signed_with() {
        let parse = |text: &str| parse_object(text.as_bytes()).expect("JSON");
        let object = parse(r#"{"a":-0,"b":1e10,"c":1.5,"d":50.0,"e":1e16,"f":1.5e-7,"g":0.0001,"h":1e300}"#);
        assert_eq!(
            String::from_utf8(canonical_object(&object)).expect("UTF-8"),
            r#"{"a":0,"b":10000000000,"c":1.5,"d":50,"e":10000000000000000,"f":1.5e-07,"g":0.0001,"h":1e+300}"#
        );
        assert_eq!(
            String::from_utf8(canonical_event(&object, &["a"])).expect("UTF-8"),
            r#"{"b":10000000000.0,"c":1.5,"d":50.0,"e":1e+16,"f":1.5e-07,"g":0.0001,"h":1e+300}"#
        );
    }

    #[test]
    fn of_repeated_keys_the_last_one_counts() {
        let text = br#"{"a":1,"b":{"c":":","c":2},"a":[3]}"#;
        let object = parse_object(text).expect("JSON");
        assert_eq!(canonical_object(&object), br#"{"a":[3],"b":{"c":2}}"#);
    }

    #[test]
    fn base64_is_read_with_and_without_padding() {
        for text in ["Zm9vYg", "Zm9vYg==", "Zm9vYh"] {
            assert_eq!(base64_decode(text).as_deref(), Some(b"foob".as_slice()), "{text}");
        }
        assert_eq!(base64_decode("Zm9 vYg"), None);
        assert_eq!(base64_decode("Zg-_"), None);
        assert_eq!((base64(&[251, 255]), base64_url(&[251, 255])), ("+/8".to_owned(), "-_8".to_owned()));
    }
}
