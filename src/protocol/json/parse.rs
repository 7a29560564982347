//! The one place where text of strangers becomes values, which may not weigh much more than the text does.
//!
//! A tree of values takes some twenty to a hundred times the bytes that it is read from: an array of empty arrays ten
//! times, small objects in one another a hundred times. So everything that is built here is weighed while it is
//! built, each element and each member by what it takes in memory, and given up as soon as it is out of proportion to
//! the text. What is passed over, or kept as it stands ([`RawValue`]), weighs nothing; so whoever needs a part of a
//! large text takes the parts as text, and reads them one by one.
//!
//! Lists whose length strangers choose have a bound of their own, see [`super::AtMost`].

use std::cell::Cell;
use std::fmt;

use serde::de::{
    self, Deserialize, DeserializeOwned, DeserializeSeed, Deserializer, IgnoredAny, MapAccess, SeqAccess,
    Visitor,
};
use serde::ser::{self, Serialize, Serializer};
use serde_json::value::RawValue;
use serde_json::{Map, Value};

use super::{CanonicalObject, JSON_DEPTH_MAX, not_an_object};
use crate::error::{ErrCode, Error, Result};

/// What may be built of any text, however short.
const WEIGHT_BASE_BYTES: usize = 256 << 10;
/// And for each of its bytes. Ordinary JSON takes about ten.
const WEIGHT_PER_BYTE: usize = 32;
/// And of the longest text at most. What is larger than that for good reasons is kept as text, or read by
/// [`read_large`].
const WEIGHT_BYTES_MAX: usize = 16 << 20;
/// What may be built of the longest answer that tells of a whole room.
const LARGE_WEIGHT_BYTES_MAX: usize = 128 << 20;

/// What a member of a map takes beside what its value does: its share of a node of the tree, which is made for eleven
/// and may be half empty; and its key.
const MAP_NODE_BYTES: usize = 704;
const MAP_NODE_MEMBERS: usize = 6;
/// The smallest piece of memory that there is.
const ALLOCATION_BYTES_MIN: usize = 32;
/// The room that a list begins with.
const LIST_CAPACITY_MIN: usize = 4;

/// Parses a JSON object from outside. Of repeated keys the last one counts.
///
/// Errors: `M_NOT_JSON` if it is not JSON (lone surrogates and text that is not UTF-8 included), `M_BAD_JSON` if it
/// is not an object, nested more than [`JSON_DEPTH_MAX`] levels, or would weigh too much for its size.
pub fn parse_object(text: &[u8]) -> Result<Map<String, Value>> {
    match read(text)? {
        Tree(Value::Object(object)) => Ok(object),
        Tree(_) => Err(not_an_object()),
    }
}

/// Reads JSON text as whatever is asked for. A structure is read from an object alone.
///
/// Errors: `M_NOT_JSON`; `M_BAD_JSON` for JSON of another shape, nested more than [`JSON_DEPTH_MAX`] levels as far as
/// it is looked at, or which would weigh too much for its size.
pub fn read<'t, T: Deserialize<'t>>(text: &'t [u8]) -> Result<T> {
    weighed(text, weight_max(text.len()))
}

/// [`read`] for an answer that tells of a whole room, and is long for a good reason.
pub fn read_large<'t, T: Deserialize<'t>>(text: &'t [u8]) -> Result<T> {
    weighed(text, weight_of(text.len(), LARGE_WEIGHT_BYTES_MAX))
}

/// [`read`] of nothing but an object.
pub fn read_object<'t, T: Deserialize<'t>>(text: &'t [u8]) -> Result<T> {
    if !is_object(text) {
        // Which of both errors it is.
        return Err(read::<IgnoredAny>(text).err().unwrap_or_else(not_an_object));
    }
    read(text)
}

/// Whether JSON text, if it is any, is an object.
pub fn is_object(text: &[u8]) -> bool {
    text.iter().find(|byte| !matches!(byte, b' ' | b'\t' | b'\n' | b'\r')) == Some(&b'{')
}

/// An object that was parsed, as a structure.
///
/// Errors: `M_BAD_JSON` for another shape.
pub fn shaped<T: DeserializeOwned>(object: &Map<String, Value>) -> Result<T> {
    // By way of its text: what reads structures of values would be compiled for each of them besides.
    read_large(&serde_json::to_vec(object).map_err(Error::internal)?)
}

/// What may be built at most of text of so many bytes by [`read`].
pub fn weight_max(text_bytes: usize) -> usize {
    weight_of(text_bytes, WEIGHT_BYTES_MAX)
}

fn weight_of(text_bytes: usize, most: usize) -> usize {
    text_bytes.saturating_mul(WEIGHT_PER_BYTE).saturating_add(WEIGHT_BASE_BYTES).min(most)
}

fn weighed<'t, T: Deserialize<'t>>(text: &'t [u8], weight: usize) -> Result<T> {
    let scale = Scale { left: Cell::new(weight) };
    // As text, like everything that is read here, so that what reads is compiled once.
    let text = std::str::from_utf8(text)
        .map_err(|e| Error::new(ErrCode::NotJson, "not JSON: not UTF-8").with_cause(e))?;
    let mut inner = serde_json::Deserializer::from_str(text);
    let read = T::deserialize(Weighed { inner: &mut inner, scale: &scale, depth: 0, key: false });
    let read = read.and_then(|value| inner.end().map(|()| value));
    read.map_err(|e| match e.classify() {
        serde_json::error::Category::Data => another_shape(&e),
        _ => Error::new(ErrCode::NotJson, "not JSON").with_cause(e),
    })
}

fn another_shape(e: &serde_json::Error) -> Error {
    Error::bad_json(format!("Unexpected JSON: {}", what_was_expected(e)))
}

/// What was expected and where, without what was there: that may be a password, and errors are logged.
pub fn what_was_expected(e: &serde_json::Error) -> String {
    const WITH_VALUE: [&str; 4] = ["invalid type: ", "invalid value: ", "unknown variant ", "unknown field "];
    let text = e.to_string();
    if !WITH_VALUE.iter().any(|start| text.starts_with(start)) {
        return text;
    }
    // The last one: what stands before it may say the same within the value, what is expected is ours.
    match text.rsplit_once(", expected ") {
        Some((_, expected)) => format!("expected {expected}"),
        None => format!("of another shape at line {} column {}", e.line(), e.column()),
    }
}

/// [`read`] of what is stored, by who takes nothing of it but text: nothing is weighed.
pub(crate) fn read_stored<'t, T: Deserialize<'t>>(text: &'t str) -> serde_json::Result<T> {
    serde_json::from_str(text)
}

/// A tree of values of text whose size is known to be bounded, or that is our own: nothing is weighed. Everything else
/// goes through [`parse_object`].
///
/// Errors: what is not JSON, or nested more than 127 levels.
pub(crate) fn tree(text: &str) -> serde_json::Result<Value> {
    serde_json::from_str(text).map(|Tree(value)| value)
}

/// [`tree`] of nothing but an object.
pub(crate) fn object_tree(text: &str) -> serde_json::Result<Map<String, Value>> {
    match tree(text)? {
        Value::Object(object) => Ok(object),
        _ => Err(de::Error::custom("expected a JSON object")),
    }
}

/// The key by which the library knows its own [`RawValue`] within values. When a [`Value`] builds itself and an object
/// begins with this key, it takes the member for text and parses that, from the start: neither weighed, nor of bounded
/// depth, and as often as such text is within such text.
pub(super) const RAW_VALUE_KEY: &str = "$serde_json::private::RawValue";

/// A [`Value`] that is built of what is there, whatever its keys are. A `Value` within a structure is not: there,
/// [`Weighed`] refuses the key.
struct Tree(Value);

impl<'de> Deserialize<'de> for Tree {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> std::result::Result<Self, D::Error> {
        inner.deserialize_any(TreeVisitor).map(Tree)
    }
}

struct TreeVisitor;

impl<'de> Visitor<'de> for TreeVisitor {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> std::result::Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> std::result::Result<Value, E> {
        Ok(value.into())
    }

    fn visit_string<E>(self, value: String) -> std::result::Result<Value, E> {
        Ok(Value::String(value))
    }

    fn visit_unit<E>(self) -> std::result::Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut items: A) -> std::result::Result<Value, A::Error> {
        let mut list = Vec::new();
        while let Some(Tree(item)) = items.next_element()? {
            list.push(item);
        }
        Ok(Value::Array(list))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut members: A) -> std::result::Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some((key, Tree(value))) = members.next_entry::<String, _>()? {
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}

/// How much more may be built, in bytes.
struct Scale {
    left: Cell<usize>,
}

impl Scale {
    fn put<E: de::Error>(&self, bytes: usize) -> std::result::Result<(), E> {
        let left = self.left.get().checked_sub(bytes);
        self.left.set(left.ok_or_else(|| E::custom("too many values for its size"))?);
        Ok(())
    }
}

fn deeper<E: de::Error>(depth: usize) -> std::result::Result<usize, E> {
    if depth >= JSON_DEPTH_MAX { Err(E::custom("JSON is nested too deeply")) } else { Ok(depth + 1) }
}

/// A deserializer, a visitor, an access or a seed whose values are put on the scale.
struct Weighed<'s, T> {
    inner: T,
    scale: &'s Scale,
    /// Of how many containers it is inside.
    depth: usize,
    /// Whether it is a key, and asked for as a [`Value`] asks for the first one of an object: see [`RAW_VALUE_KEY`].
    key: bool,
}

impl<'s, T> Weighed<'s, T> {
    fn with<U>(&self, inner: U) -> Weighed<'s, U> {
        Weighed { inner, scale: self.scale, depth: self.depth, key: self.key }
    }
}

/// Those that cannot have anything inside are only passed on.
macro_rules! passed_on {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, D::Error> {
            self.inner.$method(visitor)
        }
    )*};
}

/// Those that may.
macro_rules! looked_into {
    ($($method:ident)*) => {$(
        fn $method<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, D::Error> {
            let visitor = WeighedVisitor { visitor: self.with(visitor), member: MAP_NODE_BYTES };
            self.inner.$method(visitor)
        }
    )*};
}

impl<'de, D: Deserializer<'de>> Deserializer<'de> for Weighed<'_, D> {
    type Error = D::Error;

    passed_on! {
        deserialize_bool deserialize_i8 deserialize_i16 deserialize_i32 deserialize_i64 deserialize_i128
        deserialize_u8 deserialize_u16 deserialize_u32 deserialize_u64 deserialize_u128 deserialize_f32
        deserialize_f64 deserialize_char deserialize_unit deserialize_identifier deserialize_ignored_any
    }
    looked_into! {
        deserialize_any deserialize_str deserialize_bytes deserialize_byte_buf deserialize_option deserialize_seq
        deserialize_map
    }

    // So do maps of ours ask for their keys, and the library for all but the first: it takes them for what they are.
    fn deserialize_string<V: Visitor<'de>>(self, visitor: V) -> std::result::Result<V::Value, D::Error> {
        let visitor = Weighed { key: false, ..self.with(visitor) };
        self.inner.deserialize_string(WeighedVisitor { visitor, member: MAP_NODE_BYTES })
    }

    fn deserialize_unit_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> std::result::Result<V::Value, D::Error> {
        self.inner.deserialize_unit_struct(name, visitor)
    }

    fn deserialize_newtype_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        visitor: V,
    ) -> std::result::Result<V::Value, D::Error> {
        // The library's own names: text that is kept as it stands.
        if name.starts_with("$serde_json::") {
            return self.inner.deserialize_newtype_struct(name, visitor);
        }
        let visitor = WeighedVisitor { visitor: self.with(visitor), member: MAP_NODE_BYTES };
        self.inner.deserialize_newtype_struct(name, visitor)
    }

    fn deserialize_tuple<V: Visitor<'de>>(
        self,
        len: usize,
        visitor: V,
    ) -> std::result::Result<V::Value, D::Error> {
        let visitor = WeighedVisitor { visitor: self.with(visitor), member: 0 };
        self.inner.deserialize_tuple(len, visitor)
    }

    fn deserialize_tuple_struct<V: Visitor<'de>>(
        self,
        name: &'static str,
        len: usize,
        visitor: V,
    ) -> std::result::Result<V::Value, D::Error> {
        let visitor = WeighedVisitor { visitor: self.with(visitor), member: 0 };
        self.inner.deserialize_tuple_struct(name, len, visitor)
    }

    fn deserialize_struct<V: Visitor<'de>>(
        self,
        _name: &'static str,
        _fields: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, D::Error> {
        // As a map: from a list of its fields, which would also do, a structure is not made.
        let visitor = WeighedVisitor { visitor: self.with(visitor), member: 0 };
        self.inner.deserialize_map(visitor)
    }

    fn deserialize_enum<V: Visitor<'de>>(
        self,
        name: &'static str,
        variants: &'static [&'static str],
        visitor: V,
    ) -> std::result::Result<V::Value, D::Error> {
        self.inner.deserialize_enum(name, variants, visitor)
    }
}

/// A visitor, and what a node of the maps weighs that it makes: those of structures have none.
struct WeighedVisitor<'s, V> {
    visitor: Weighed<'s, V>,
    member: usize,
}

macro_rules! seen {
    ($($method:ident: $type:ty),*) => {$(
        fn $method<E: de::Error>(self, value: $type) -> std::result::Result<V::Value, E> {
            self.visitor.inner.$method(value)
        }
    )*};
}

macro_rules! seen_text {
    ($($method:ident: $type:ty),*) => {$(
        fn $method<E: de::Error>(self, value: $type) -> std::result::Result<V::Value, E> {
            if self.visitor.key && AsRef::<[u8]>::as_ref(&value) == RAW_VALUE_KEY.as_bytes() {
                return Err(E::custom("a key that nothing may have here"));
            }
            self.visitor.scale.put(if value.is_empty() { 0 } else { value.len().max(ALLOCATION_BYTES_MIN) })?;
            self.visitor.inner.$method(value)
        }
    )*};
}

impl<'de, V: Visitor<'de>> Visitor<'de> for WeighedVisitor<'_, V> {
    type Value = V::Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.visitor.inner.expecting(f)
    }

    seen! {
        visit_bool: bool, visit_i64: i64, visit_i128: i128, visit_u64: u64, visit_u128: u128, visit_f64: f64,
        visit_char: char
    }
    seen_text! {
        visit_str: &str, visit_borrowed_str: &'de str, visit_string: String, visit_bytes: &[u8],
        visit_borrowed_bytes: &'de [u8], visit_byte_buf: Vec<u8>
    }

    fn visit_none<E: de::Error>(self) -> std::result::Result<V::Value, E> {
        self.visitor.inner.visit_none()
    }

    fn visit_unit<E: de::Error>(self) -> std::result::Result<V::Value, E> {
        self.visitor.inner.visit_unit()
    }

    fn visit_some<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<V::Value, D::Error> {
        let inner = self.visitor.with(inner);
        self.visitor.inner.visit_some(inner)
    }

    fn visit_newtype_struct<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<V::Value, D::Error> {
        let inner = self.visitor.with(inner);
        self.visitor.inner.visit_newtype_struct(inner)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, inner: A) -> std::result::Result<V::Value, A::Error> {
        let depth = deeper(self.visitor.depth)?;
        let access = Weighed { inner, scale: self.visitor.scale, depth, key: false };
        self.visitor.inner.visit_seq(WeighedItems { access, count: 0, room: 0 })
    }

    fn visit_map<A: MapAccess<'de>>(self, inner: A) -> std::result::Result<V::Value, A::Error> {
        let depth = deeper(self.visitor.depth)?;
        let access = Weighed { inner, scale: self.visitor.scale, depth, key: false };
        self.visitor.inner.visit_map(WeighedMembers { access, count: 0, node: self.member })
    }
}

/// The items of a list, and the room for them, which doubles when it is full.
struct WeighedItems<'s, A> {
    access: Weighed<'s, A>,
    count: usize,
    room: usize,
}

impl<'de, A: SeqAccess<'de>> SeqAccess<'de> for WeighedItems<'_, A> {
    type Error = A::Error;

    fn next_element_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> std::result::Result<Option<S::Value>, A::Error> {
        let seed = self.access.with(seed);
        let item = self.access.inner.next_element_seed(seed)?;
        if item.is_some() && size_of::<S::Value>() > 0 {
            if self.count == self.room {
                let before = self.room;
                self.room = (2 * before).max(LIST_CAPACITY_MIN);
                self.access.scale.put((self.room - before) * size_of::<S::Value>())?;
            }
            self.count += 1;
        }
        Ok(item)
    }

    fn size_hint(&self) -> Option<usize> {
        self.access.inner.size_hint()
    }
}

/// The members of an object.
struct WeighedMembers<'s, A> {
    access: Weighed<'s, A>,
    count: usize,
    node: usize,
}

impl<'de, A: MapAccess<'de>> MapAccess<'de> for WeighedMembers<'_, A> {
    type Error = A::Error;

    fn next_key_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> std::result::Result<Option<S::Value>, A::Error> {
        let seed = Weighed { key: true, ..self.access.with(seed) };
        let key = self.access.inner.next_key_seed(seed)?;
        if key.is_some() && size_of::<S::Value>() > 0 {
            if self.count.is_multiple_of(MAP_NODE_MEMBERS) {
                self.access.scale.put(self.node)?;
            }
            self.count += 1;
        }
        Ok(key)
    }

    fn next_value_seed<S: DeserializeSeed<'de>>(
        &mut self,
        seed: S,
    ) -> std::result::Result<S::Value, A::Error> {
        let seed = self.access.with(seed);
        self.access.inner.next_value_seed(seed)
    }
}

impl<'de, S: DeserializeSeed<'de>> DeserializeSeed<'de> for Weighed<'_, S> {
    type Value = S::Value;

    fn deserialize<D: Deserializer<'de>>(self, inner: D) -> std::result::Result<S::Value, D::Error> {
        let inner = self.with(inner);
        self.inner.deserialize(inner)
    }
}

/// An object that nobody here looks into: its text, in canonical form, of at most [`JSON_DEPTH_MAX`] levels.
#[derive(Debug, Clone)]
pub struct ObjectText(String);

impl ObjectText {
    /// The text.
    pub fn get(&self) -> &str {
        &self.0
    }
}

impl TryFrom<&[u8]> for ObjectText {
    type Error = Error;

    fn try_from(text: &[u8]) -> Result<Self> {
        let (object, _) = CanonicalObject::read(text)?;
        Ok(Self(object.into_text()))
    }
}

impl Serialize for ObjectText {
    fn serialize<S: Serializer>(&self, out: S) -> std::result::Result<S::Ok, S::Error> {
        let text: &RawValue = serde_json::from_str(&self.0).map_err(ser::Error::custom)?;
        text.serialize(out)
    }
}

impl<'de> Deserialize<'de> for ObjectText {
    fn deserialize<D: Deserializer<'de>>(inner: D) -> std::result::Result<Self, D::Error> {
        let raw = <&RawValue>::deserialize(inner)?;
        Self::try_from(raw.get().as_bytes()).map_err(|e| de::Error::custom(e.message()))
    }
}

#[cfg(test)]
#[path = "parse_tests.rs"]
mod tests;
