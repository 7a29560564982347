//! A JSON object as canonical text that knows where its members are. What is hashed, signed and copied of an event is
//! cut out of it as it stands; no tree is built.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::text::{CanonicalReader, MemberSpan, Oddities, decoded};
use super::{Floats, JSON_DEPTH_MAX, not_an_object, write_string, write_value};
use crate::error::Result;

/// An object in the canonical form in which events are hashed and signed (see [`super::canonical_event`]).
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CanonicalObject {
    text: Vec<u8>,
    /// In the order of the text.
    members: Vec<MemberSpan>,
}

impl CanonicalObject {
    /// Reads an object from outside, of at most [`JSON_DEPTH_MAX`] levels. Of repeated keys the last one counts.
    ///
    /// Errors: as `parse_object`.
    pub fn read(text: &[u8]) -> Result<(Self, Oddities)> {
        let mut reader = CanonicalReader::new(text)?.with_depth(JSON_DEPTH_MAX);
        reader.document()?;
        let CanonicalReader { out: text, members, seen, .. } = reader;
        if text.first() != Some(&b'{') {
            return Err(not_an_object());
        }
        Ok((Self { text, members }, seen))
    }

    /// The canonical form of a tree.
    pub fn of(object: &Map<String, Value>) -> Self {
        let mut new = Self::begin();
        for (key, value) in object {
            // The map is a BTreeMap: its keys are in the order of their UTF-8 bytes, which is that of their code
            // points.
            new.push(|out| write_string(out, key), |out| write_value(out, value, Floats::AsPython));
        }
        new.end()
    }

    /// An object of these members, keys and values in canonical form and the keys in order.
    pub(crate) fn from_members<'m>(members: impl Iterator<Item = (&'m [u8], Cow<'m, [u8]>)>) -> Self {
        let mut new = Self::begin();
        for (key, value) in members {
            new.push(|out| out.extend_from_slice(key), |out| out.extend_from_slice(&value));
        }
        new.end()
    }

    fn begin() -> Self {
        let mut text = Vec::with_capacity(1024);
        text.push(b'{');
        Self { text, members: Vec::with_capacity(16) }
    }

    fn push(&mut self, write_key: impl FnOnce(&mut Vec<u8>), write_value: impl FnOnce(&mut Vec<u8>)) {
        if !self.members.is_empty() {
            self.text.push(b',');
        }
        let key = self.text.len();
        write_key(&mut self.text);
        let colon = self.text.len();
        self.text.push(b':');
        write_value(&mut self.text);
        self.members.push(MemberSpan { key, colon, end: self.text.len() });
    }

    fn end(mut self) -> Self {
        self.text.push(b'}');
        self
    }

    /// The whole text.
    pub fn as_bytes(&self) -> &[u8] {
        &self.text
    }

    /// The whole text.
    pub fn into_bytes(self) -> Vec<u8> {
        self.text
    }

    /// The whole text as text.
    pub fn into_text(self) -> String {
        // It was read from text, and pieces of text are all that was put in.
        String::from_utf8(self.text).unwrap_or_default()
    }

    /// Key (with its quotes) and value of each member, in order.
    pub(crate) fn members(&self) -> impl Iterator<Item = (&[u8], &[u8])> {
        let text = &self.text;
        self.members.iter().map(move |m| (&text[m.key..m.colon], &text[m.colon + 1..m.end]))
    }

    /// The value of a key, in canonical form.
    pub fn get(&self, key: &str) -> Option<&[u8]> {
        self.members().find(|(found, _)| is_key(found, key)).map(|(_, value)| value)
    }

    /// The value of a key, if it is a string.
    pub fn string(&self, key: &str) -> Option<Cow<'_, str>> {
        string(self.get(key)?)
    }

    /// The canonical text without some of the members.
    pub fn without(&self, keys: &[&str]) -> Vec<u8> {
        let mut out = Vec::with_capacity(self.text.len());
        out.push(b'{');
        for member in &self.members {
            if keys.iter().any(|key| is_key(&self.text[member.key..member.colon], key)) {
                continue;
            }
            if out.len() > 1 {
                out.push(b',');
            }
            out.extend_from_slice(&self.text[member.key..member.end]);
        }
        out.push(b'}');
        out
    }

    /// The object without a member. Whether it was there is told as well.
    pub fn remove(self, key: &str) -> (Self, bool) {
        if self.get(key).is_none() {
            return (self, false);
        }
        let others = self.members().filter(|(found, _)| !is_key(found, key));
        (Self::from_members(others.map(|(key, value)| (key, value.into()))), true)
    }

    /// The object with a value, in canonical form, for a key; one that it had is replaced.
    #[must_use]
    pub fn with(&self, key: &str, value: &[u8]) -> Self {
        let mut name = Vec::with_capacity(key.len() + 2);
        write_string(&mut name, key);
        let is_before = |found: &[u8]| decoded(found).as_ref() < key;
        let before = self.members().take_while(|(found, _)| is_before(found));
        let after = self.members().skip_while(|(found, _)| is_before(found) || is_key(found, key));
        let borrowed = |(key, value)| (key, Cow::Borrowed(value));
        Self::from_members(
            before.map(borrowed).chain([(name.as_slice(), Cow::Borrowed(value))]).chain(after.map(borrowed)),
        )
    }
}

/// The members of an object in canonical form: keys (with their quotes) and values. Nothing if it is no object.
pub(crate) fn members_of(canonical: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    let mut at = usize::from(canonical.first() == Some(&b'{'));
    std::iter::from_fn(move || {
        // Behind the brace or the comma: a key, or the end of an empty object.
        if at == 0 || canonical.get(at) != Some(&b'"') {
            return None;
        }
        let colon = at + end_of_value(&canonical[at..]);
        let end = colon + 1 + end_of_value(canonical.get(colon + 1..)?);
        let member = (canonical.get(at..colon)?, canonical.get(colon + 1..end)?);
        at = end + 1;
        Some(member)
    })
}

/// The value of a key of an object in canonical form.
pub(crate) fn member_of<'c>(canonical: &'c [u8], key: &str) -> Option<&'c [u8]> {
    members_of(canonical).find(|(found, _)| is_key(found, key)).map(|(_, value)| value)
}

/// A value in canonical form as text, if it is a string.
pub(crate) fn string(canonical: &[u8]) -> Option<Cow<'_, str>> {
    (canonical.first() == Some(&b'"')).then(|| decoded(canonical))
}

/// Where the value ends that canonical text begins with.
fn end_of_value(text: &[u8]) -> usize {
    let (mut depth, mut in_string, mut escaped) = (0_usize, false, false);
    for (at, byte) in text.iter().enumerate() {
        if in_string {
            match byte {
                _ if escaped => escaped = false,
                b'\\' => escaped = true,
                b'"' if depth == 0 => return at + 1,
                b'"' => in_string = false,
                _ => {}
            }
            continue;
        }
        match byte {
            b'"' => in_string = true,
            b'{' | b'[' => depth += 1,
            b'}' | b']' if depth == 0 => return at,
            b'}' | b']' if depth == 1 => return at + 1,
            b'}' | b']' => depth -= 1,
            b',' if depth == 0 => return at,
            _ => {}
        }
    }
    text.len()
}

fn is_key(quoted: &[u8], key: &str) -> bool {
    if quoted.contains(&b'\\') {
        return decoded(quoted) == key;
    }
    quoted.len() == key.len() + 2 && &quoted[1..quoted.len() - 1] == key.as_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::protocol::json::canonical_event;

    fn read(text: &str) -> CanonicalObject {
        CanonicalObject::read(text.as_bytes()).expect("an object").0
    }

    fn text(bytes: &[u8]) -> &str {
        std::str::from_utf8(bytes).expect("UTF-8")
    }

    #[test]
    fn an_object_from_text_is_the_same_as_one_from_a_tree() {
        let given = r#" {"b" : {"y":[1, "]}\"", {}], "x":"\u00e9"}, "a\n":2, "a":"\\", "":[], "b2":-5} "#;
        let object = read(given);
        let Ok(Value::Object(tree)) = serde_json::from_str(given) else { panic!("an object") };
        assert_eq!(object, CanonicalObject::of(&tree));
        assert_eq!(object.as_bytes(), canonical_event(&tree, &[]));
        for (key, value) in &tree {
            let found: Value = serde_json::from_slice(object.get(key).expect("there")).expect("JSON");
            assert_eq!(&found, value, "{key}");
        }
        assert_eq!(object.get("\\n"), None);
        assert_eq!(object.string("a").as_deref(), Some("\\"));
        assert_eq!(object.string("b"), None);
        assert_eq!(text(&object.without(&["b", ""])), r#"{"a":"\\","a\n":2,"b2":-5}"#);
    }

    #[test]
    fn members_are_found_in_canonical_text() {
        let object = read(r#"{"a":"}\"{","b":{"c":[{"d":"]"}],"e":null},"f":[],"g":-1}"#);
        let found: Vec<_> = members_of(object.as_bytes()).collect();
        assert_eq!(found, object.members().collect::<Vec<_>>());
        let inner = member_of(object.as_bytes(), "b").expect("there");
        assert_eq!(member_of(inner, "e"), Some(b"null".as_slice()));
        for nothing in ["", "[]", "[1,{\"a\":1}]", "{}", "{", "{\"", "{\"a\"", "\"a\"", "1"] {
            assert_eq!(members_of(nothing.as_bytes()).count(), 0, "{nothing}");
        }
    }

    #[test]
    fn members_are_set_and_removed_in_their_places() {
        let object = read(r#"{"b":1,"d":2}"#);
        for (key, expected) in [
            ("a", r#"{"a":0,"b":1,"d":2}"#),
            ("b", r#"{"b":0,"d":2}"#),
            ("c", r#"{"b":1,"c":0,"d":2}"#),
            ("d", r#"{"b":1,"d":0}"#),
            ("e", r#"{"b":1,"d":2,"e":0}"#),
            ("\"", r#"{"\"":0,"b":1,"d":2}"#),
        ] {
            let with = object.with(key, b"0");
            assert_eq!(text(with.as_bytes()), expected);
            assert_eq!(with, read(expected));
            let (without, was_there) = with.remove(key);
            assert!(was_there && without.get(key).is_none());
        }
        assert!(!object.clone().remove("x").1);
        assert_eq!(text(read("{}").with("a", b"{}").as_bytes()), r#"{"a":{}}"#);
    }

    #[test]
    fn what_is_odd_about_an_object_is_seen() {
        let seen = |text: &str| CanonicalObject::read(text.as_bytes()).expect("an object").1;
        assert!(seen(r#"{"a":[{"b":1,"c":2,"b":3}]}"#).ambiguous);
        assert!(!seen(r#"{"b":[{"a":1,"c":2}],"a":{"a":1}}"#).ambiguous);
        for number in ["1.0", "1e3", "9007199254740992", "-9007199254740992", "18446744073709551616", "-0.0"]
        {
            let object = format!(r#"{{"a":[{number}]}}"#);
            assert!(seen(&object).odd_number.is_some(), "{number}");
        }
        for number in ["0", "-0", "9007199254740991", "-9007199254740991"] {
            assert_eq!(seen(&format!(r#"{{"a":[{number}]}}"#)).odd_number, None, "{number}");
        }
    }
}
