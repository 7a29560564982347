//! What becomes of hostile text.

use std::borrow::Cow;
use std::collections::BTreeMap;

use serde::Deserialize;
use serde_json::json;
use serde_json::value::RawValue;

use super::*;
use crate::protocol::json::{AtMost, First, FirstMembers};

fn nested(levels: usize) -> String {
    // The outermost level is the object.
    format!("{{\"a\":{}{}}}", "[".repeat(levels - 1), "]".repeat(levels - 1))
}

fn filled(piece: &str, size: usize) -> String {
    format!("{{\"a\":[{}]}}", vec![piece; size / (piece.len() + 1)].join(","))
}

#[test]
fn nesting_is_accepted_up_to_the_limit_and_refused_beyond() {
    assert!(parse_object(nested(JSON_DEPTH_MAX).as_bytes()).is_ok());
    for levels in [JSON_DEPTH_MAX + 1, 128, 129, 30_000] {
        let e = parse_object(nested(levels).as_bytes()).expect_err("too deep");
        assert_eq!((e.errcode(), e.status()), (ErrCode::BadJson, 400), "{levels}");
    }
    // Brackets in strings are no nesting, and quotes may be escaped.
    let text = format!(r#"{{"a":"{}\"{}"}}"#, "[".repeat(500), "{".repeat(500));
    assert!(parse_object(text.as_bytes()).is_ok());
}

#[test]
fn what_is_not_a_json_object_is_refused_with_the_right_code() {
    let cases: [(&[u8], ErrCode); 10] = [
        (b"", ErrCode::NotJson),
        (b"{", ErrCode::NotJson),
        (b"{} x", ErrCode::NotJson),
        (b"[]", ErrCode::BadJson),
        (b"null", ErrCode::BadJson),
        (b"{\"a\":\"\xff\"}", ErrCode::NotJson),
        (br#"{"a":"\ud800"}"#, ErrCode::NotJson),
        (br#"{"a":"\udc00\ud800"}"#, ErrCode::NotJson),
        (b"{\"a\":\"\x00\"}", ErrCode::NotJson),
        (b"{\"a\":NaN}", ErrCode::NotJson),
    ];
    for (bytes, code) in cases {
        assert_eq!(parse_object(bytes).expect_err("bad").errcode(), code, "{bytes:?}");
    }
    assert!(parse_object(format!("{{\"a\":1{}}}", "0".repeat(400)).as_bytes()).is_err(), "beyond a double");
    for text in ["[]", "1", "null", "\"{}\""] {
        assert_eq!(
            read_object::<Map<String, Value>>(text.as_bytes()).unwrap_err().errcode(),
            ErrCode::BadJson
        );
    }
    assert_eq!(read_object::<Map<String, Value>>(b"x").unwrap_err().errcode(), ErrCode::NotJson);
    assert!(parse_object(br#"{"a":"\u0000\ud83d\ude00"}"#).is_ok());
}

#[test]
fn what_is_read_is_what_is_there() {
    #[derive(Deserialize, Debug, PartialEq)]
    struct Shape<'t> {
        #[serde(borrow)]
        text: Cow<'t, str>,
        number: i64,
        maybe: Option<u8>,
        #[serde(default)]
        absent: Vec<u8>,
        pair: (String, f64),
        flag: bool,
    }
    let text = r#" {"text":"aé\n","number":-5,"maybe":null,"more":[[{}]],"pair":["x",1.5],"flag":true} "#;
    let shape: Shape<'_> = read_object(text.as_bytes()).expect("of this shape");
    let pair = ("x".to_owned(), 1.5);
    assert_eq!(
        shape,
        Shape { text: "aé\n".into(), number: -5, maybe: None, absent: vec![], pair, flag: true }
    );
    let borrowed: Shape<'_> =
        read(text.replace("\\n", "").as_bytes()).map(|_: Shape<'_>| shape).expect("borrowed");
    assert_eq!(borrowed.number, -5);
    let tree = json!({"a": [1, -1, 1.5, null, true, "x", {"b": {}}], "": u64::MAX});
    assert_eq!(read::<Value>(tree.to_string().as_bytes()).expect("JSON"), tree);
    let raw: BTreeMap<String, &RawValue> = read(b"{\"a\": [1.0, {\"b\" : 2}] }").expect("an object");
    assert_eq!(raw["a"].get(), "[1.0, {\"b\" : 2}]");
}

#[test]
fn a_structure_is_not_read_from_a_list_of_its_fields() {
    #[derive(Deserialize, Debug, PartialEq)]
    struct Part {
        number: i64,
    }
    #[derive(Deserialize, Debug, PartialEq)]
    struct Shape {
        part: Part,
        more: Vec<Part>,
        maybe: Option<Part>,
    }
    let read_whole = |text: &str| read::<Shape>(text.as_bytes());
    let whole = read_whole(r#"{"part":{"number":1},"more":[{"number":2}],"maybe":{"number":3}}"#)
        .expect("of this shape");
    assert_eq!(whole.part.number + whole.more[0].number + whole.maybe.map_or(0, |part| part.number), 6);
    for text in [
        r#"[{"number":1},[],null]"#,
        r#"{"part":[1],"more":[],"maybe":null}"#,
        r#"{"part":{"number":1},"more":[[2]],"maybe":null}"#,
        r#"{"part":{"number":1},"more":[],"maybe":[3]}"#,
    ] {
        assert_eq!(read_whole(text).unwrap_err().errcode(), ErrCode::BadJson, "{text}");
        let Ok(object) = parse_object(text.as_bytes()) else { continue };
        assert_eq!(shaped::<Shape>(&object).unwrap_err().errcode(), ErrCode::BadJson, "{text}");
    }
}

#[test]
fn a_tree_that_is_out_of_proportion_to_its_text_is_not_built() {
    for piece in ["[0]", "{\"\":0}", "{\"\":{\"\":{}}}", "[[0],[0]]"] {
        let text = filled(piece, 1 << 20);
        assert_eq!(parse_object(text.as_bytes()).unwrap_err().errcode(), ErrCode::BadJson, "{piece}");
        // What nobody looks at weighs nothing, nor does what stays text.
        assert!(read::<IgnoredAny>(text.as_bytes()).is_ok(), "{piece}");
        assert!(read::<BTreeMap<String, &RawValue>>(text.as_bytes()).is_ok(), "{piece}");
        // Small ones are nobody's concern.
        assert!(parse_object(filled(piece, 2 << 10).as_bytes()).is_ok(), "{piece}");
    }
    for piece in ["0", "\"\"", "[]", "{}"] {
        assert!(parse_object(filled(piece, 3 << 20).as_bytes()).is_err(), "{piece}");
    }
}

#[test]
fn what_people_send_is_not_out_of_proportion() {
    let message = json!({"algorithm": "m.olm.v1", "ciphertext": {"k": {"body": "x".repeat(300), "type": 1}}, "sender_key": "k"});
    let devices: Map<String, Value> = (0..2500).map(|n| (format!("DEVICE{n}"), message.clone())).collect();
    let bodies = [
        json!({"messages": {"@somebody:example.org": devices}}),
        json!({"room": {"timeline": {"limit": 10}, "state": {"lazy_load_members": true}}, "event_fields": ["a.b"]}),
        json!({"users": (0..2000).map(|n| (format!("@user{n}:example.org"), json!(50))).collect::<Map<_, _>>()}),
        json!({"a": {"a": {"a": {"a": {"a": {"a": {"a": {"a": {}}}}}}}}}),
        json!({"server_keys": (0..48).map(|n| (format!("localhost:{n}"), json!({}))).collect::<Map<_, _>>()}),
        json!({"numbers": vec![0; 30_000]}),
        json!({"text": "x".repeat(10 << 20)}),
        json!({"points": vec![json!([1, 2]); 10_000]}),
    ];
    for body in bodies {
        let text = body.to_string();
        let read = parse_object(text.as_bytes()).map(Value::Object);
        assert_eq!(read.ok(), Some(body), "{}", text.get(..60).unwrap_or(&text));
    }
}

#[test]
fn a_list_may_be_null_and_may_not_be_missing() {
    #[derive(Deserialize)]
    struct Lists<'t> {
        list: AtMost<u8, 3>,
        #[serde(borrow)]
        members: FirstMembers<&'t str, u8, 2>,
    }
    let read = |text: &'static str| read_object::<Lists<'_>>(text.as_bytes());
    let lists = read(r#"{"list":null,"members":null}"#).expect("empty ones");
    assert!(lists.list.is_empty() && lists.members.0.is_empty());
    assert!(read(r#"{"list":null}"#).is_err() && read(r#"{"members":{}}"#).is_err());
}

#[test]
fn lists_have_their_bounds() {
    let numbers = |count: usize| format!("[{}]", vec!["7"; count].join(","));
    assert_eq!(read::<AtMost<u8, 3>>(numbers(3).as_bytes()).expect("three").0.len(), 3);
    assert!(read::<AtMost<u8, 3>>(numbers(4).as_bytes()).is_err());
    assert_eq!(read::<First<u8, 3>>(numbers(100_000).as_bytes()).expect("three").0.len(), 3);
    assert_eq!(read::<First<u8, 3>>(b"[]").expect("none").0, Vec::<u8>::new());
    assert!(read::<First<u8, 3>>(b"[1,2,3,4").is_err());
    assert_eq!(read::<AtMost<u8, 3>>(b"null").expect("none, as Go writes it").0, Vec::<u8>::new());
    assert!(read::<FirstMembers<&str, u8, 2>>(b"null").expect("none").0.is_empty());
    assert!(read::<AtMost<u8, 3>>(b"{}").is_err() && read::<AtMost<u8, 3>>(b"[null]").is_err());
    let members: FirstMembers<&str, u8, 2> = read(br#"{"b":1,"a":2,"c":"x"}"#).expect("two");
    assert_eq!(members.0, [("b", 1), ("a", 2)]);
    assert!(read::<FirstMembers<&str, u8, 2>>(b"[1,2]").is_err());
    // However many there are, they are not built.
    let many = format!("[{}]", vec!["1"; 2 << 20].join(","));
    assert!(read::<Vec<&RawValue>>(many.as_bytes()).is_err());
    assert!(read::<First<&RawValue, 100>>(many.as_bytes()).is_ok());
}

#[test]
fn the_key_of_the_librarys_own_is_a_key_like_any_other() {
    let mut text = "0".to_owned();
    for _ in 0..80 {
        let quoted = text.replace('\\', "\\u005c").replace('"', "\\u0022");
        text = format!("{}{{\"{RAW_VALUE_KEY}\":\"{quoted}\"}}{}", "[".repeat(90), "]".repeat(90));
    }
    #[derive(Deserialize, Debug)]
    #[expect(dead_code, reason = "it is not read that far")]
    struct Shape {
        value: Value,
    }
    let judge = move || {
        let object = format!("{{\"value\":{text},\"{RAW_VALUE_KEY}\":\"[\"}}");
        let parsed = parse_object(object.as_bytes()).expect("an object");
        let mut inner = &parsed["value"];
        while let Some(item) = inner.get(0) {
            inner = item;
        }
        assert_eq!(inner.as_object().map(|inner| inner[RAW_VALUE_KEY].is_string()), Some(true));
        assert_eq!(parsed[RAW_VALUE_KEY], "[");
        assert_eq!(object_tree(&object).expect("an object"), parsed);
        let canonical = crate::protocol::json::canonical_object(&parsed);
        assert_eq!(canonical, CanonicalObject::read(object.as_bytes()).expect("an object").0.as_bytes());
        // A value within a structure would take it for its own.
        for refused in [
            read_object::<Shape>(object.as_bytes()).map(|_| ()),
            read_object::<BTreeMap<String, Value>>(object.as_bytes()).map(|_| ()),
            read_object::<Map<String, Value>>(object.as_bytes()).map(|_| ()),
            read::<Value>(object.as_bytes()).map(|_| ()),
            read_large::<Shape>(object.as_bytes()).map(|_| ()),
            shaped::<Shape>(&parsed).map(|_| ()),
        ] {
            assert_eq!(refused.expect_err("refused").errcode(), ErrCode::BadJson);
        }
        let number = r#"{"$serde_json::private::Number":"1","value":{"$serde_json::private::Number":"1"}}"#;
        let parsed = parse_object(number.as_bytes()).expect("an object");
        assert_eq!(read::<Value>(number.as_bytes()).ok(), Some(Value::Object(parsed)));
    };
    let thread = std::thread::Builder::new().stack_size(512 << 10).spawn(judge).expect("a thread");
    thread.join().expect("it has stack enough");
}

#[test]
fn what_was_there_is_not_said_of_what_was_expected() {
    #[derive(Deserialize, Debug)]
    #[expect(dead_code, reason = "it is never read")]
    struct Shape {
        word: Option<String>,
        flag: Option<bool>,
        kind: Option<Kind>,
        number: Option<u8>,
        id: Option<crate::protocol::UserId>,
        list: Option<AtMost<String, 2>>,
    }
    #[derive(Deserialize, Debug)]
    #[serde(rename_all = "lowercase")]
    enum Kind {
        One,
        Two,
    }
    for (body, expected) in [
        (r#"{"word":12345678}"#, "a string"),
        (r#"{"word":12345678.5}"#, "a string"),
        (r#"{"word":[12345678]}"#, "a string"),
        (r#"{"flag":"12345678"}"#, "a boolean"),
        (r#"{"flag":"12345678, expected 12345678"}"#, "a boolean"),
        (r#"{"kind":"12345678"}"#, "`one` or `two`"),
        (r#"{"number":12345678}"#, "u8"),
        (r#"{"number":"12345678"}"#, "u8"),
        (r#"{"id":12345678}"#, "a "),
        (r#"{"id":"12345678"}"#, ""),
        (r#"{"list":"12345678"}"#, "a list"),
        (r#"{"list":[12345678]}"#, "a string"),
    ] {
        let e = read_object::<Shape>(body.as_bytes()).expect_err("of another shape");
        let said = format!("{e} {e:?} {}", e.message());
        assert!(!said.contains("12345678") && said.contains(expected), "{body}: {said}");
        assert!(e.message().contains(" at line 1 column "), "{body}: {said}");
        let e = shaped::<Shape>(&parse_object(body.as_bytes()).expect("an object"))
            .expect_err("of another shape");
        let said = format!("{e} {e:?} {}", e.message());
        assert!(!said.contains("12345678") && said.contains(expected), "{body}: {said}");
    }
}
