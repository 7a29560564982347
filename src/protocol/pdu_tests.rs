//! Tests of [`super::Pdu`], hostile ones above all.

use serde_json::{Map, Value, json};

use super::*;
use crate::protocol::json;
use crate::protocol::room_version::all;
use crate::protocol::test_events::{member, object, pdu, room, signed, version};

fn bytes(event: &Map<String, Value>) -> Vec<u8> {
    json::canonical_object(event)
}

fn parse(event: &Map<String, Value>, version: RoomVersion) -> Result<Pdu> {
    Pdu::parse(&bytes(event), version)
}

fn code(result: Result<Pdu>) -> ErrCode {
    result.expect_err("refused").errcode()
}

#[test]
fn an_event_is_read_the_same_from_bytes_from_an_object_and_from_the_database() {
    for version in all() {
        let event = object(version, &member("@alice:a.example", "join"));
        let parsed = parse(&event, version).expect("well formed");
        let made = Pdu::from_object(event.clone(), version).expect("well formed");
        let stored =
            Pdu::trusted(parsed.event_id().clone(), parsed.json().to_vec(), version).expect("stored");
        for pdu in [&parsed, &made, &stored] {
            assert_eq!(pdu, &parsed);
            assert_eq!(pdu.json(), bytes(&event));
            assert_eq!((pdu.room_id().as_str(), pdu.sender().as_str()), (room(version), "@alice:a.example"));
            assert_eq!((pdu.event_type(), pdu.state_key()), ("m.room.member", Some("@alice:a.example")));
            assert_eq!((pdu.depth(), pdu.origin_server_ts()), (7, 1_700_000_000_000));
            assert_eq!((pdu.prev_events().len(), pdu.auth_events().len()), (1, 1));
            assert_eq!(
                (pdu.membership(), pdu.content_raw()),
                (Some(Membership::Join), r#"{"membership":"join"}"#)
            );
            assert_eq!((pdu.content_str("membership").as_deref(), pdu.redacts()), (Some("join"), None));
            assert_eq!(pdu.to_object(), event);
        }
    }
}

#[test]
fn the_bytes_of_an_event_are_kept_as_they_came() {
    let version = version("10");
    let mut text = serde_json::to_string_pretty(&object(version, &json!({}))).expect("JSON");
    text = text.replace("hello", "h\\u0065llo");
    let pdu = Pdu::parse(text.as_bytes(), version).expect("well formed");
    assert_eq!(pdu.json(), text.as_bytes());
    assert_eq!(pdu.content()["body"], "hello");
    let canonical = Pdu::from_object(pdu.to_object(), version).expect("well formed");
    assert_eq!(canonical.event_id(), pdu.event_id());
}

#[test]
fn what_nobody_signed_and_what_is_said_twice_is_not_kept() {
    let version = version("10");
    let plain = parse(&object(version, &json!({})), version).expect("well formed");
    let with_unsigned =
        parse(&object(version, &json!({"unsigned": {"age": 1}})), version).expect("well formed");
    assert_eq!(with_unsigned.json(), plain.json());

    let text = String::from_utf8(plain.json().to_vec()).expect("UTF-8");
    for twice in [
        text.replace("\"depth\":7", "\"depth\":9,\"depth\":7"),
        text.replace("\"body\":", "\"body\":1,\"body\":"),
    ] {
        assert_ne!(twice, text);
        let pdu = Pdu::parse(twice.as_bytes(), version).expect("of repeated keys the last one counts");
        assert_eq!(pdu.json(), plain.json());
    }
}

#[test]
fn an_event_may_have_65536_bytes_and_not_one_more() {
    for version in all() {
        let empty = object(version, &json!({"content": {"body": ""}}));
        let room_for = EVENT_BYTES_MAX - bytes(&empty).len();
        let of_length = |length: usize| object(version, &json!({"content": {"body": "x".repeat(length)}}));
        let largest = of_length(room_for);
        assert_eq!(bytes(&largest).len(), 65_536);
        assert!(parse(&largest, version).is_ok());
        assert_eq!(code(parse(&of_length(room_for + 1), version)), ErrCode::TooLarge);
        assert_eq!(code(Pdu::from_object(of_length(room_for + 1), version)), ErrCode::TooLarge);

        // Neither white space, escapes nor `unsigned` count.
        let mut spaced = serde_json::to_string_pretty(&largest).expect("JSON");
        spaced = spaced.replace("xxxx", "\\u0078xxx");
        assert_eq!(Pdu::parse(spaced.as_bytes(), version).expect("fits").json(), bytes(&largest));
        let mut more = largest.clone();
        more.insert("unsigned".to_owned(), json!({"x": "y".repeat(1000)}));
        assert!(parse(&more, version).is_ok());
        let padded = [bytes(&largest), vec![b' '; 10 * EVENT_BYTES_MAX]].concat();
        assert_eq!(code(Pdu::parse(&padded, version)), ErrCode::TooLarge);
    }
}

#[test]
fn floats_do_not_smuggle_an_event_beyond_the_limit() {
    let version = version("5");
    let number = |text: &str, n: usize| format!("[{}0]", format!("{text},").repeat(n));
    let event = String::from_utf8(bytes(&object(version, &json!({})))).expect("UTF-8");
    let with = |list: &str| event.replace("\"hello\"", list);
    // Four bytes here are 18 in canonical JSON.
    assert!(Pdu::parse(with(&number("1e15", 1000)).as_bytes(), version).is_ok());
    assert_eq!(code(Pdu::parse(with(&number("1e15", 10_000)).as_bytes(), version)), ErrCode::TooLarge);
}

#[test]
fn type_and_state_key_have_255_bytes_at_most() {
    let version = version("12");
    for field in ["type", "state_key"] {
        // In bytes, not characters.
        for (fits, text) in [(true, "x".repeat(255)), (false, "x".repeat(256)), (false, "é".repeat(128))] {
            let result = parse(&object(version, &json!({ field: text })), version);
            assert_eq!(result.is_ok(), fits, "{field}");
            assert!(fits || code(result) == ErrCode::TooLarge);
        }
    }
    let sender = format!("@{}:a.example", "x".repeat(250));
    assert_eq!(code(parse(&object(version, &json!({"sender": sender})), version)), ErrCode::BadJson);
}

#[test]
fn an_event_has_at_most_20_prev_events_and_10_auth_events() {
    for version in all() {
        let one = object(version, &json!({}))["prev_events"][0].clone();
        for (list, most) in [("prev_events", PREV_EVENTS_MAX), ("auth_events", AUTH_EVENTS_MAX)] {
            assert!(parse(&object(version, &json!({ list: vec![one.clone(); most] })), version).is_ok());
            let more = parse(&object(version, &json!({ list: vec![one.clone(); most + 1] })), version);
            assert_eq!(code(more), ErrCode::BadJson);
        }
    }
}

#[test]
fn depth_goes_from_0_to_the_largest_integer_of_the_version() {
    let (old, new) = (version("5"), version("6"));
    let parse = |depth: &str, version| {
        let text = String::from_utf8(bytes(&object(version, &json!({})))).expect("UTF-8");
        Pdu::parse(text.replace("\"depth\":7", &format!("\"depth\":{depth}")).as_bytes(), version)
    };
    for (depth, in_old, in_new) in [
        ("0", true, true),
        ("9007199254740991", true, true),
        ("9007199254740992", true, false),
        ("9223372036854775807", true, false),
        ("9223372036854775808", false, false),
        ("100000000000000000000000000", false, false),
        ("-1", false, false),
        ("1.0", false, false),
        ("\"1\"", false, false),
        ("null", false, false),
    ] {
        assert_eq!((parse(depth, old).is_ok(), parse(depth, new).is_ok()), (in_old, in_new), "{depth}");
    }
}

#[test]
fn every_field_of_every_wrong_shape_is_refused_or_harmless() {
    let shapes = [
        json!(true),
        json!(-1),
        json!(1.5),
        json!(""),
        json!("\u{0}"),
        json!("x"),
        json!([]),
        json!([[]]),
        json!([["$x:a", {}, 1]]),
        json!([["$x:a"]]),
        json!([1]),
        json!([["", {}]]),
        json!(["$\u{0}"]),
        json!({}),
        json!({"a": {"ed25519:k": 1}, "b": [], "c": {"": ""}, "": {}}),
    ];
    let needed =
        ["type", "sender", "room_id", "content", "origin_server_ts", "depth", "prev_events", "auth_events"];
    for version in all() {
        for field in needed.into_iter().chain(["hashes", "signatures"]) {
            assert_eq!(
                code(parse(&object(version, &json!({ field: null })), version)),
                ErrCode::BadJson,
                "no {field}"
            );
        }
        for field in
            needed.into_iter().chain(["hashes", "signatures", "state_key", "redacts", "event_id", "unsigned"])
        {
            for shape in &shapes {
                let mut event = object(version, &json!({"type": "m.room.redaction"}));
                event.insert(field.to_owned(), shape.clone());
                if let Err(e) = parse(&event, version) {
                    assert!(e.status() < 500, "{field} {shape}: {e}");
                    assert!(!e.message().is_empty());
                }
            }
        }
        let null = bytes(&object(version, &json!({})));
        let null = String::from_utf8(null).expect("UTF-8").replacen('{', "{\"state_key\":null,", 1);
        assert_eq!(code(Pdu::parse(null.as_bytes(), version)), ErrCode::BadJson);
    }
}

#[test]
fn references_have_the_form_of_their_version() {
    let pairs = json!({"prev_events": [["$x:a.example", {}]]});
    let plain = json!({"prev_events": ["$x:a.example"]});
    for version in all() {
        let old = version.event_id_format == EventIdFormat::InEvent;
        assert_eq!(parse(&object(version, &pairs), version).is_ok(), old, "{}", version.id);
        assert_eq!(parse(&object(version, &plain), version).is_ok(), !old, "{}", version.id);
    }
}

#[test]
fn event_ids_are_in_the_event_or_are_its_hash() {
    for (id, expected) in [("1", None), ("3", Some('/')), ("4", Some('_'))] {
        let version = version(id);
        // Some number whose hash has one of the two characters that tell the alphabets apart.
        let found = (0..200).any(|n| {
            let event = object(version, &json!({"depth": n}));
            let pdu = parse(&event, version).expect("well formed");
            match expected {
                None => pdu.event_id() == "$event:a.example",
                Some(character) => {
                    assert_eq!((pdu.event_id().as_str().len(), pdu.event_id().server_name()), (44, None));
                    pdu.event_id().as_str().contains(character)
                }
            }
        });
        assert!(found);
    }
    for odd in [json!(null), json!(1), json!("x"), json!("$x"), json!("$:"), json!("$x:a b")] {
        assert_eq!(
            code(parse(&object(version("2"), &json!({"event_id": odd})), version("2"))),
            ErrCode::BadJson
        );
    }
}

#[test]
fn the_room_of_a_version_12_create_event_is_the_event() {
    let create = json!({"type": "m.room.create", "state_key": "", "prev_events": [], "auth_events": [], "room_id": null});
    let pdu = pdu(version("12"), &create, &["a.example"]);
    assert_eq!(pdu.room_id().as_str()[1..], pdu.event_id().as_str()[1..]);
    assert_eq!(code(parse(&object(version("11"), &create), version("11"))), ErrCode::BadJson);
    let mut with_room = create;
    with_room["room_id"] = json!(pdu.room_id());
    assert_eq!(code(parse(&object(version("12"), &with_room), version("12"))), ErrCode::BadJson);

    let old = object(version("12"), &json!({"room_id": "!room:a.example"}));
    assert_eq!(code(parse(&old, version("12"))), ErrCode::BadJson);
    let new = object(version("11"), &json!({"room_id": room(version("12"))}));
    assert_eq!(code(parse(&new, version("11"))), ErrCode::BadJson);
}

#[test]
fn a_redaction_names_its_victim_where_the_version_has_it() {
    let both = json!({"type": "m.room.redaction", "redacts": "$top:a", "content": {"redacts": "$inside:a"}});
    for version in all() {
        let expected = if version.redacts_in_content { "$inside:a" } else { "$top:a" };
        let pdu = parse(&object(version, &both), version).expect("well formed");
        assert_eq!(pdu.redacts().expect("a victim").as_str(), expected);
        for odd in [json!(7), json!("x"), json!({})] {
            let odd = json!({"type": "m.room.redaction", "redacts": odd, "content": {"redacts": odd}});
            assert_eq!(parse(&object(version, &odd), version).expect("well formed").redacts(), None);
        }
        let other = json!({"redacts": "$top:a", "content": {"redacts": "$inside:a"}});
        assert_eq!(parse(&object(version, &other), version).expect("well formed").redacts(), None);
    }
}

#[test]
fn a_membership_is_one_of_five_words() {
    let version = version("9");
    for (word, expected) in [
        (json!("knock"), Some(Membership::Knock)),
        (json!("Join"), None),
        (json!(null), None),
        (json!(["join"]), None),
    ] {
        let event = json!({"type": "m.room.member", "state_key": "@b:c", "content": {"membership": word}});
        assert_eq!(parse(&object(version, &event), version).expect("well formed").membership(), expected);
    }
    let message = json!({"content": {"membership": "join"}});
    assert_eq!(parse(&object(version, &message), version).expect("well formed").membership(), None);
}

#[test]
fn a_redacted_event_keeps_its_id_and_place() {
    for version in all() {
        let event = pdu(version, &json!({"state_key": "k", "unsigned": {}, "extra": 1}), &["a.example"]);
        let redacted = event.redacted().expect("still an event");
        assert_eq!((redacted.event_id(), redacted.content_raw()), (event.event_id(), "{}"));
        assert_eq!((redacted.prev_events(), redacted.state_key()), (event.prev_events(), Some("k")));
        assert_eq!(Pdu::parse(redacted.json(), version).expect("an event").event_id(), event.event_id());
        assert_eq!(redacted.redacted().expect("still an event").json(), redacted.json());
    }
}

#[test]
fn an_event_nested_too_deeply_is_refused_however_it_comes() {
    let version = version("10");
    let mut value = json!(1);
    for _ in 0..json::JSON_DEPTH_MAX {
        value = json!([value]);
    }
    let event = object(version, &json!({"content": {"body": value}}));
    assert_eq!(code(Pdu::from_object(event.clone(), version)), ErrCode::BadJson);
    assert_eq!(code(parse(&event, version)), ErrCode::BadJson);
}

#[test]
fn no_change_of_bytes_makes_parsing_panic_or_disagree_with_itself() {
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = |limit: usize| {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        usize::try_from(random >> 33).expect("31 bits") % limit
    };
    let alphabet = b"{}[]\",:0\\\x00\xff\xe9 nu1e$@!.-";
    let mut accepted = 0;
    for version in all() {
        let good = bytes(&signed(version, &member("@alice:a.example", "join"), &["a.example"]));
        for _ in 0..400 {
            let mut text = good.clone();
            for _ in 0..=next(3) {
                let at = next(text.len());
                match next(3) {
                    0 => text[at] = alphabet[next(alphabet.len())],
                    1 => drop(text.remove(at)),
                    _ => text.insert(at, alphabet[next(alphabet.len())]),
                }
            }
            match Pdu::parse(&text, version) {
                Ok(pdu) => {
                    accepted += 1;
                    let again = Pdu::parse(pdu.json(), version).expect("what was accepted is accepted again");
                    assert_eq!(again.event_id(), pdu.event_id());
                    assert_eq!(again.json(), pdu.json());
                    assert_eq!(
                        Pdu::from_object(pdu.to_object(), version).expect("also so").event_id(),
                        pdu.event_id()
                    );
                    drop(pdu.redacted().expect("still an event"));
                }
                Err(e) => assert!(e.status() < 500, "{e}"),
            }
        }
    }
    assert!(accepted > 100, "the changes were too wild: {accepted}");
}
