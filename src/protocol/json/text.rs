//! From JSON text to canonical JSON text, without a tree in between: for the bodies of signed requests.
//!
//! A request must be authenticated before anything in it is judged. If one hostile event, nested deeper than a parser
//! of trees goes, made a whole transaction unreadable, its honest sender would repeat that transaction for ever and
//! nothing else would get through. So no depth that an event can have matters here: there is no recursion, and the work
//! and the memory are bounded. The bounds lie far beyond what fits into events.

use std::borrow::Cow;

use super::{Floats, INTEGER_MAX, NOT_WHOLE, TOO_BIG, float_text, too_deep, write_string};
use crate::error::{ErrCode, Error, Result};

/// How often, at most, the bytes of a text may be copied to bring the keys of its objects in order. Every level of
/// unordered objects copies what is inside it once.
const COPIES_MAX: usize = 64;
/// How many arrays and objects may be open at a time, and how many members the open objects may have: each is noted
/// while it is. An event of the largest size has at most half as many, other bodies some thousands.
const OPEN_CONTAINERS_MAX: usize = 1 << 16;
const OPEN_MEMBERS_MAX: usize = 1 << 16;
/// How much longer than twice the text the canonical text may be. Only floats grow: `1e15` becomes four times as long.
const GROWTH_BYTES_MAX: usize = 1 << 20;

/// The canonical JSON of JSON text (any value, not only objects). Of repeated keys the last one counts. Integers of any
/// size are kept digit by digit; other numbers are spelled as Python spells them, as the network signs them.
///
/// Errors: `M_NOT_JSON`; `M_BAD_JSON` if putting the keys in order is too much work, or the text is full of what takes
/// much more room than its bytes.
pub fn canonical_text(text: &[u8]) -> Result<Vec<u8>> {
    append_canonical(Vec::new(), text)
}

/// [`canonical_text`] behind what is there already.
pub fn append_canonical(before: Vec<u8>, text: &[u8]) -> Result<Vec<u8>> {
    let mut reader = CanonicalReader::new(text)?;
    let most = before.len() + 2 * text.len() + GROWTH_BYTES_MAX;
    reader.out = before;
    reader.out.reserve(text.len() + 1024);
    (reader.most, reader.most_open, reader.most_members) = (most, OPEN_CONTAINERS_MAX, OPEN_MEMBERS_MAX);
    reader.document()?;
    Ok(reader.out)
}

fn too_full() -> Error {
    Error::bad_json("JSON is too full of small things")
}

fn not_json(why: &'static str) -> Error {
    Error::new(ErrCode::NotJson, format!("not JSON: {why}"))
}

/// What else was seen when an object was read.
#[derive(Debug, Clone, Copy, Default)]
pub struct Oddities {
    /// Whether readers may differ about it: an object has a key twice, or a zero a sign.
    pub ambiguous: bool,
    /// Why it is no JSON for room versions 6 and later, which know small integers only.
    pub odd_number: Option<&'static str>,
}

/// An array or object that has begun.
struct OpenContainer {
    is_object: bool,
    /// Where in the output its inside begins.
    inside: usize,
    /// Of an object, where its members begin among those at hand.
    first: usize,
    /// Whether the members came in canonical order, and none twice.
    ordered: bool,
}

/// Where in the output a member's key (with its quotes) and value are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct MemberSpan {
    pub key: usize,
    pub colon: usize,
    pub end: usize,
}

/// What may come next.
#[derive(Clone, Copy, PartialEq)]
enum Expect {
    Value,
    ValueOrEnd,
    Key,
    KeyOrEnd,
    CommaOrEnd,
}

pub(super) struct CanonicalReader<'a> {
    text: &'a [u8],
    at: usize,
    /// The canonical text so far.
    pub out: Vec<u8>,
    open: Vec<OpenContainer>,
    /// The members of the objects that are open; at the end those of the outermost.
    pub members: Vec<MemberSpan>,
    /// What else was seen.
    pub seen: Oddities,
    copies: usize,
    /// How long the canonical text may become.
    most: usize,
    most_open: usize,
    most_members: usize,
}

impl<'a> CanonicalReader<'a> {
    pub fn new(text: &'a [u8]) -> Result<Self> {
        let text = std::str::from_utf8(text).map_err(|e| not_json("it is not UTF-8").with_cause(e))?;
        Ok(Self {
            text: text.as_bytes(),
            at: 0,
            out: Vec::new(),
            open: Vec::with_capacity(8),
            members: Vec::with_capacity(32),
            seen: Oddities::default(),
            copies: text.len().saturating_mul(COPIES_MAX).saturating_add(1 << 20),
            most: usize::MAX,
            most_open: usize::MAX,
            most_members: usize::MAX,
        })
    }

    /// At most so many levels, which bounds the work as well.
    pub fn with_depth(mut self, depth: usize) -> Self {
        self.out.reserve(self.text.len());
        (self.most_open, self.copies, self.most_members) = (depth, usize::MAX, OPEN_MEMBERS_MAX);
        self
    }

    pub fn document(&mut self) -> Result<()> {
        let mut expect = Expect::Value;
        loop {
            self.skip_space();
            let Some(&byte) = self.text.get(self.at) else {
                let done = self.open.is_empty() && expect == Expect::CommaOrEnd;
                return if done { Ok(()) } else { Err(not_json("it ends too early")) };
            };
            expect = match (expect, byte) {
                (Expect::CommaOrEnd, _) if self.open.is_empty() => {
                    return Err(not_json("something follows it"));
                }
                (Expect::CommaOrEnd, b',') => self.comma(),
                (Expect::CommaOrEnd | Expect::KeyOrEnd, b'}') => self.close(true)?,
                (Expect::CommaOrEnd | Expect::ValueOrEnd, b']') => self.close(false)?,
                (Expect::Key | Expect::KeyOrEnd, b'"') => self.key()?,
                (Expect::Value | Expect::ValueOrEnd, b'{') => self.begin(true)?,
                (Expect::Value | Expect::ValueOrEnd, b'[') => self.begin(false)?,
                (Expect::Value | Expect::ValueOrEnd, _) => {
                    self.scalar(byte)?;
                    self.value_is_done();
                    Expect::CommaOrEnd
                }
                _ => return Err(not_json("an unexpected character")),
            };
        }
    }

    fn skip_space(&mut self) {
        while let Some(b' ' | b'\t' | b'\n' | b'\r') = self.text.get(self.at) {
            self.at += 1;
        }
    }

    fn begin(&mut self, is_object: bool) -> Result<Expect> {
        if self.open.len() >= self.most_open {
            return Err(too_deep());
        }
        self.at += 1;
        self.out.push(if is_object { b'{' } else { b'[' });
        let (inside, first) = (self.out.len(), self.members.len());
        self.open.push(OpenContainer { is_object, inside, first, ordered: true });
        Ok(if is_object { Expect::KeyOrEnd } else { Expect::ValueOrEnd })
    }

    fn comma(&mut self) -> Expect {
        self.at += 1;
        self.out.push(b',');
        if self.open.last().is_some_and(|open| open.is_object) { Expect::Key } else { Expect::Value }
    }

    fn key(&mut self) -> Result<Expect> {
        let key = self.out.len();
        self.string()?;
        let colon = self.out.len();
        self.skip_space();
        if self.text.get(self.at) != Some(&b':') {
            return Err(not_json("a key without a value"));
        }
        self.at += 1;
        self.out.push(b':');
        if let Some(open) = self.open.last_mut() {
            if let Some(before) = self.members[open.first..].last() {
                open.ordered &= is_less(&self.out[before.key..before.colon], &self.out[key..colon]);
            }
            if self.members.len() >= self.most_members {
                return Err(too_full());
            }
            self.members.push(MemberSpan { key, colon, end: colon });
        }
        Ok(Expect::Value)
    }

    /// Notes where a member's value ends.
    fn value_is_done(&mut self) {
        if self.open.last().is_some_and(|open| open.is_object)
            && let Some(member) = self.members.last_mut()
        {
            member.end = self.out.len();
        }
    }

    fn close(&mut self, is_object: bool) -> Result<Expect> {
        match self.open.pop() {
            Some(open) if open.is_object == is_object => {
                if !open.ordered {
                    self.reorder(&open)?;
                }
                if !self.open.is_empty() {
                    self.members.truncate(open.first);
                }
            }
            _ => return Err(not_json("brackets do not match")),
        }
        self.at += 1;
        self.out.push(if is_object { b'}' } else { b']' });
        self.value_is_done();
        Ok(Expect::CommaOrEnd)
    }

    /// Puts an object's members in order; of those with the same key the last one stays.
    fn reorder(&mut self, open: &OpenContainer) -> Result<()> {
        let size = self.out.len() - open.inside;
        self.copies = self.copies.checked_sub(size).ok_or_else(too_deep)?;
        let unordered = self.members.split_off(open.first);
        let key_of = |member: &MemberSpan| decoded(&self.out[member.key..member.colon]);
        let mut members: Vec<_> = unordered.iter().map(|member| (key_of(member), *member)).collect();
        members.sort_by(|a, b| a.0.cmp(&b.0));
        let mut inside = Vec::with_capacity(size);
        for (i, (key, member)) in members.iter().enumerate() {
            if members.get(i + 1).is_some_and(|(next, _)| next == key) {
                self.seen.ambiguous = true;
                continue;
            }
            if !inside.is_empty() {
                inside.push(b',');
            }
            let moved = |at: usize| open.inside + inside.len() + (at - member.key);
            let place =
                MemberSpan { key: moved(member.key), colon: moved(member.colon), end: moved(member.end) };
            self.members.push(place);
            inside.extend_from_slice(&self.out[member.key..member.end]);
        }
        self.out.truncate(open.inside);
        self.out.extend_from_slice(&inside);
        Ok(())
    }

    fn scalar(&mut self, first: u8) -> Result<()> {
        match first {
            b'"' => self.string(),
            b't' => self.word("true"),
            b'f' => self.word("false"),
            b'n' => self.word("null"),
            b'-' | b'0'..=b'9' => self.number(),
            _ => Err(not_json("an unexpected character")),
        }
    }

    fn word(&mut self, word: &str) -> Result<()> {
        if !self.text[self.at..].starts_with(word.as_bytes()) {
            return Err(not_json("an unexpected word"));
        }
        self.at += word.len();
        self.out.extend_from_slice(word.as_bytes());
        Ok(())
    }

    fn number(&mut self) -> Result<()> {
        let rest = &self.text[self.at..];
        let part_of_number = |b: &u8| matches!(b, b'0'..=b'9' | b'+' | b'-' | b'.' | b'e' | b'E');
        let token = &rest[..rest.iter().position(|b| !part_of_number(b)).unwrap_or(rest.len())];
        self.at += token.len();
        let digits = token.strip_prefix(b"-").unwrap_or(token);
        if !digits.is_empty() && digits.iter().all(u8::is_ascii_digit) {
            if digits.len() > 1 && digits[0] == b'0' {
                return Err(not_json("a number begins with 0"));
            }
            let magnitude = std::str::from_utf8(digits).ok().and_then(|digits| digits.parse::<i64>().ok());
            if magnitude.is_none_or(|magnitude| magnitude > INTEGER_MAX) {
                self.seen.odd_number = Some(TOO_BIG);
            }
            let negative_zero = token == b"-0";
            self.seen.ambiguous |= negative_zero;
            self.out.extend_from_slice(if negative_zero { b"0" } else { token });
            return Ok(());
        }
        // serde_json knows the grammar of numbers, but may miss the nearest float by one; the standard library does
        // not.
        let token = std::str::from_utf8(token).map_err(|e| not_json("a bad number").with_cause(e))?;
        let _: f64 = serde_json::from_str(token).map_err(|e| not_json("a bad number").with_cause(e))?;
        let float: f64 = token.parse().map_err(|_| not_json("a bad number"))?;
        self.seen.odd_number = Some(NOT_WHOLE);
        self.out.extend_from_slice(float_text(float, Floats::AsPython).as_bytes());
        if self.out.len() > self.most { Err(too_full()) } else { Ok(()) }
    }

    fn string(&mut self) -> Result<()> {
        let rest = &self.text[self.at..];
        let (mut end, mut plain) = (1 + plain_words(&rest[1..]), true);
        loop {
            match rest.get(end) {
                None => return Err(not_json("a string has no end")),
                Some(b'"') => break,
                Some(b'\\') => {
                    plain = false;
                    end += 2;
                }
                Some(0..0x20) => return Err(not_json("a control character in a string")),
                Some(_) => end += 1,
            }
        }
        let token = &rest[..=end];
        self.at += token.len();
        if plain {
            self.out.extend_from_slice(token);
            return Ok(());
        }
        let token = std::str::from_utf8(token).map_err(|e| not_json("a bad string").with_cause(e))?;
        let text: String = serde_json::from_str(token).map_err(|e| not_json("a bad string").with_cause(e))?;
        write_string(&mut self.out, &text);
        Ok(())
    }
}

/// How many bytes need no look one by one: those of the words at the beginning in which there is neither a quote nor a backslash
/// nor a control character.
fn plain_words(text: &[u8]) -> usize {
    const fn each(byte: u8) -> u64 {
        u64::from_ne_bytes([byte; 8])
    }
    // The high bits of bytes that are less; behind the first of them also of others.
    let less = |word: u64, byte: u8| word.wrapping_sub(each(byte)) & !word & each(0x80);
    let is_plain = |word: &[u8]| {
        let word = u64::from_ne_bytes(word.try_into().unwrap_or_default());
        let (quotes, backslashes) = (word ^ each(b'"'), word ^ each(b'\\'));
        (less(word, 0x20) | less(quotes, 1) | less(backslashes, 1)) == 0
    };
    8 * text.chunks_exact(8).take_while(|word| is_plain(word)).count()
}

/// Whether one canonically written key comes before another.
fn is_less(a: &[u8], b: &[u8]) -> bool {
    let inside = |quoted: &'_ [u8]| 1..quoted.len().saturating_sub(1);
    if a.contains(&b'\\') || b.contains(&b'\\') {
        return decoded(a) < decoded(b);
    }
    // The bytes of UTF-8 are in the order of what they stand for.
    a.get(inside(a)) < b.get(inside(b))
}

/// A canonically written string as text.
pub(super) fn decoded(quoted: &[u8]) -> Cow<'_, str> {
    let plain = quoted.get(1..quoted.len().saturating_sub(1)).unwrap_or_default();
    if !plain.contains(&b'\\')
        && let Ok(plain) = std::str::from_utf8(plain)
    {
        return Cow::Borrowed(plain);
    }
    let text = std::str::from_utf8(quoted).ok();
    Cow::Owned(text.and_then(|text| serde_json::from_str(text).ok()).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;
    use crate::protocol::json;
    use crate::protocol::pdu::EVENT_BYTES_MAX;

    fn canonical(text: &str) -> Option<String> {
        canonical_text(text.as_bytes()).ok().map(|bytes| String::from_utf8(bytes).expect("UTF-8"))
    }

    #[test]
    fn text_becomes_canonical_without_a_tree() {
        for (text, expected) in [
            ("{}", "{}"),
            (" [ ] ", "[]"),
            ("null", "null"),
            ("-0", "0"),
            ("[true , false,null]", "[true,false,null]"),
            (
                r#"{"b":1,"a":{"d":[{"f":1,"e":2}],"c":"\u00e9\/\n"}}"#,
                "{\"a\":{\"c\":\"é/\\n\",\"d\":[{\"e\":2,\"f\":1}]},\"b\":1}",
            ),
            (r#"{"a":1,"a":2,"A":3,"a":4}"#, r#"{"A":3,"a":4}"#),
            (r#"{"a":1,"a":2}"#, r#"{"a":2}"#),
            (r#"{"ab":1,"a":2,"a\n":3,"a!":4}"#, "{\"a\":2,\"a\\n\":3,\"a!\":4,\"ab\":1}"),
            (r#"{"\ud83d\ude00":1,"\uffff":2}"#, "{\"\u{ffff}\":2,\"😀\":1}"),
            ("[0.30000000000000004,8.41e21,5e-324]", "[0.30000000000000004,8.41e+21,5e-324]"),
            (
                "[1e10,1.50,123456789012345678901234567890,-5]",
                "[10000000000.0,1.5,123456789012345678901234567890,-5]",
            ),
        ] {
            assert_eq!(canonical(text).as_deref(), Some(expected), "{text}");
        }
    }

    #[test]
    fn a_string_is_read_the_same_wherever_in_it_something_special_is() {
        let specials = ["\"", "\\", "\\n", "\\\"", "\u{1f}", "\u{0}", "\u{7f}", "é", "\u{10ffff}", " ", "!"];
        for length in 0..34 {
            for special in specials {
                for at in 0..=length {
                    let text = format!("\"{}{special}{}\"", "x".repeat(at), "x".repeat(length - at));
                    let expected = serde_json::from_str::<Value>(&text).ok();
                    let read = canonical(&text).and_then(|text| serde_json::from_str(&text).ok());
                    assert_eq!(read, expected, "{text:?}");
                }
            }
        }
        for (a, b) in [("a", "a!"), ("a", "b"), ("é", "😀"), ("", " "), ("a\\n", "a!"), ("~", "é")] {
            let (a, b) = (format!("\"{a}\""), format!("\"{b}\""));
            assert!(is_less(a.as_bytes(), b.as_bytes()) && !is_less(b.as_bytes(), a.as_bytes()), "{a} {b}");
            assert!(!is_less(a.as_bytes(), a.as_bytes()), "{a}");
        }
    }

    #[test]
    fn what_is_not_json_is_refused() {
        for text in [
            "",
            " ",
            "{",
            "}",
            "[",
            "]",
            "[1",
            "[1,",
            "[1,]",
            "[,1]",
            "{\"a\"}",
            "{\"a\":}",
            "{\"a\":1,}",
            "{,}",
            "{1:2}",
            "[}",
            "{]",
            "{\"a\":1]",
            "[1}",
            "1 2",
            "[1 2]",
            "01",
            "-",
            "1.",
            ".5",
            "1e",
            "+1",
            "--1",
            "1-1",
            "tru",
            "nul",
            "True",
            "NaN",
            "\"",
            "\"\\",
            "\"\\\"",
            "\"\\x\"",
            "\"\\ud800\"",
            "\"\n\"",
            "{\"a\" 1}",
            "[1]]",
            "1e999",
            "\"a\"b",
        ] {
            assert_eq!(canonical(text), None, "{text}");
        }
        assert!(canonical_text(b"\"\xff\"").is_err());
    }

    #[test]
    fn depth_does_not_matter_but_work_is_bounded() {
        // Nothing that fits into an event is too deep, nor has too many members.
        let nested = |depth: usize| "[".repeat(depth) + &"]".repeat(depth);
        let deep = nested(EVENT_BYTES_MAX / 2);
        assert_eq!(canonical(&deep).as_deref(), Some(deep.as_str()));
        assert!(canonical(&nested(1_000_000)).is_none());
        let members = |count: usize| format!("{{{}}}", vec!["\"\":0"; count].join(","));
        assert_eq!(canonical(&members(EVENT_BYTES_MAX / 5)).as_deref(), Some("{\"\":0}"));
        assert!(canonical(&members(1_000_000)).is_none());
        assert!(canonical(&format!("[{}]", vec!["1e15"; 13_000].join(","))).is_some());
        assert!(canonical(&format!("[{}]", vec!["1e15"; 1_000_000].join(","))).is_none());
        let mut unordered = "0".to_owned();
        for _ in 0..200 {
            unordered = format!("{{\"b\":{unordered},\"a\":0}}");
        }
        assert!(canonical(&unordered).is_some());
        let hostile = "{\"b\":".repeat(300_000) + "0" + &",\"a\":0}".repeat(300_000);
        assert!(canonical(&hostile).is_none());
    }

    #[test]
    fn it_agrees_with_the_canonical_form_of_parsed_values() {
        let text = r#"{"z":[1,{"y":"\u0000\b\t\n\f\r\"\\\u001f"}],"":{},"é":[],"a":[[],{}],"10":1,"9":-9007199254740991}"#;
        let object = json::parse_object(text.as_bytes()).expect("JSON");
        assert_eq!(canonical_text(text.as_bytes()).expect("JSON"), json::canonical_object(&object));
    }
}
