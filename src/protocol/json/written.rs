//! JSON that is written already, put into what is being written as it stands: by [`RawValue`](serde_json::value::RawValue)
//! this would have to be read once more.

use serde::ser::SerializeStruct;
use serde::{Serialize, Serializer};

use super::parse::RAW_VALUE_KEY;
use crate::error::{Error, Result};

/// Text that is JSON: cut out of JSON, or written as such.
#[derive(Clone, Copy)]
pub struct JsonText<'t>(pub &'t str);

impl Serialize for JsonText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        // As the library has it of a value of its own that is text.
        let mut text = serializer.serialize_struct(RAW_VALUE_KEY, 1)?;
        text.serialize_field(RAW_VALUE_KEY, self.0)?;
        text.end()
    }
}

/// Writes a value of which it is known about how many bytes it takes, so that it is not copied while it grows.
pub fn write_json(value: &impl Serialize, about: usize) -> Result<Vec<u8>> {
    let mut out = Vec::with_capacity(about);
    serde_json::to_writer(&mut out, value).map_err(Error::internal)?;
    Ok(out)
}

/// Room for the first elements of a list, so that it is not copied for each of them.
const BEGUN_BYTES: usize = 2048;

/// A JSON array, written element by element.
pub struct JsonList(Vec<u8>);

impl Default for JsonList {
    fn default() -> Self {
        Self(b"[]".to_vec())
    }
}

impl JsonList {
    /// An empty list with room for elements of so many bytes together, commas included.
    pub fn with_room(bytes: usize) -> Self {
        let mut list = Vec::with_capacity(2 + bytes);
        list.extend_from_slice(b"[]");
        Self(list)
    }

    /// Adds an element, which `write` puts behind what is there. After an error the list is none any more.
    pub fn push_with(&mut self, write: impl FnOnce(&mut Vec<u8>) -> Result<()>) -> Result<()> {
        self.0.pop();
        match self.0.len() {
            1 if self.0.capacity() < BEGUN_BYTES => self.0.reserve(BEGUN_BYTES),
            1 => {}
            _ => self.0.push(b','),
        }
        write(&mut self.0)?;
        self.0.push(b']');
        Ok(())
    }

    /// Adds an element that is JSON.
    pub fn push(&mut self, element: &str) {
        let pushed = self.push_with(|out| {
            out.extend_from_slice(element.as_bytes());
            Ok(())
        });
        debug_assert!(pushed.is_ok());
    }

    /// Adds the elements of another list.
    pub fn append(&mut self, other: Self) {
        if self.is_empty() {
            *self = other;
        } else if !other.is_empty() {
            self.0.pop();
            self.0.push(b',');
            self.0.extend_from_slice(&other.0[1..]);
        }
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.0.len() == 2
    }

    /// How long the text is.
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// The text.
    pub fn finish(self) -> Vec<u8> {
        self.0
    }
}

impl Serialize for JsonList {
    fn serialize<S: Serializer>(&self, serializer: S) -> std::result::Result<S::Ok, S::Error> {
        let text = std::str::from_utf8(&self.0).map_err(serde::ser::Error::custom)?;
        JsonText(text).serialize(serializer)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::value::to_raw_value;

    use super::*;

    #[test]
    fn what_is_written_already_stands_there_as_it_is() {
        #[derive(Serialize)]
        struct Around<'a> {
            before: u8,
            text: JsonText<'a>,
            list: JsonList,
        }
        let mut list = JsonList::default();
        assert!(list.is_empty());
        list.push("{\"a\" : 1e0}");
        list.push_with(|out| {
            out.extend_from_slice("\"ü\"".as_bytes());
            Ok(())
        })
        .expect("written");
        assert!(!list.is_empty());
        let around = Around { before: 1, text: JsonText("{\"z\":1 ,\"a\":\"\\u00fc\"}"), list };
        let whole = "{\"before\":1,\"text\":{\"z\":1 ,\"a\":\"\\u00fc\"},\"list\":[{\"a\" : 1e0},\"ü\"]}";
        assert_eq!(serde_json::to_string(&around).expect("written"), whole);
        assert_eq!(to_raw_value(&around).expect("written").get(), whole);
        assert_eq!(JsonList::default().finish(), b"[]");
    }
}
