//! JSON: our parser's bounds and both canonical writers, against serde_json's `Value`.

use doorstep::protocol::json::{
    CanonicalObject, JSON_DEPTH_MAX, canonical, canonical_event, canonical_object, canonical_text,
    parse_object,
};
use serde_json::Value;

/// Any bytes as JSON text.
pub fn canonical_json(data: &[u8]) {
    let value = serde_json::from_slice::<Value>(data).ok();
    let text = canonical_text(data).ok();
    let object = parse_object(data).ok();

    // What serde_json reads, the writer without a tree writes, and the same value comes out.
    if let Some(value) = &value {
        let text = text.as_ref().expect("serde_json reads it");
        let again: Value = serde_json::from_slice(text).expect("canonical JSON is JSON");
        assert!(same(value, &again), "{value} became {again}");
        assert_eq!(&canonical_text(text).expect("JSON"), text, "the canonical form of the canonical form");
        assert_ordered(text, &again);
        if !has_float(value) {
            assert_eq!(&canonical(value), text, "both writers agree");
        }
    }
    // And the other way round, as far as a parser of trees goes.
    if let Some(text) = &text
        && depth(data) < 120
    {
        assert!(value.is_some(), "not JSON for serde_json: {}", String::from_utf8_lossy(text));
    }
    // `parse_object` takes objects of bounded depth and nothing else.
    let is_object = value.as_ref().is_some_and(Value::is_object);
    assert_eq!(object.is_some(), is_object && depth(data) <= JSON_DEPTH_MAX);

    let read = CanonicalObject::read(data).ok();
    assert_eq!(read.is_some(), object.is_some());
    if let (Some(object), Some(value), Some((read, _))) = (object, value, read) {
        assert_eq!(Some(read.as_bytes()), text.as_deref(), "an object is the same text with places in it");
        for (key, value) in &object {
            let found: Value = serde_json::from_slice(read.get(key).expect("there")).expect("JSON");
            assert!(same(&found, value), "{key}: {found} for {value}");
        }
        let plain = read.with("a\"", b"1").with("z", b"2").remove("z").0;
        assert_eq!(plain, CanonicalObject::read(plain.as_bytes()).expect("an object").0);
        assert_eq!(Value::Object(object.clone()), value);
        let whole = canonical_object(&object);
        let again = parse_object(&whole).expect("canonical JSON is JSON");
        assert_eq!(canonical_object(&again), whole, "the canonical form of the canonical form");
        let event = canonical_event(&object, &[]);
        let again = parse_object(&event).expect("canonical JSON is JSON");
        assert_eq!(canonical_event(&again, &[]), event, "an event's canonical form of its canonical form");
        if !has_float(&value) {
            assert_eq!(whole, event, "without floats there is one canonical form");
            assert!(whole.len() <= data.len(), "nothing is shorter than canonical JSON");
        }
    }
}

/// The deepest nesting, by brackets outside of strings.
fn depth(data: &[u8]) -> usize {
    let (mut depth, mut deepest, mut in_string, mut escaped) = (0_usize, 0, false, false);
    for byte in data {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => {
                depth += 1;
                deepest = deepest.max(depth);
            }
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    deepest
}

/// Equal but for the sign of zero, which canonical JSON drops.
fn same(a: &Value, b: &Value) -> bool {
    match (a, b) {
        (Value::Number(a), Value::Number(b)) => {
            a == b || (a.as_f64() == Some(0.0) && b.as_f64() == Some(0.0))
        }
        (Value::Array(a), Value::Array(b)) => a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(a, b)),
        (Value::Object(a), Value::Object(b)) => {
            a.len() == b.len() && a.iter().zip(b).all(|((k, a), (l, b))| k == l && same(a, b))
        }
        _ => a == b,
    }
}

fn has_float(value: &Value) -> bool {
    match value {
        Value::Number(number) => number.is_f64(),
        Value::Array(items) => items.iter().any(has_float),
        Value::Object(object) => object.values().any(has_float),
        _ => false,
    }
}

/// Keys in order and none twice, no white space: written by serde_json from a sorted map it is as long as it is here.
/// Numbers are left out of the comparison, for their spelling may differ.
fn assert_ordered(text: &[u8], value: &Value) {
    if !has_float(value) {
        assert_eq!(canonical(value), text);
    }
}
