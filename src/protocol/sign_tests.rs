//! Tests of signing and verifying events, hostile ones above all.

use serde_json::{Value, json};

use super::*;
use crate::protocol::room_version::all;
use crate::protocol::sample::{key, known, member, object, pdu, server, signed, version};

const A: &str = "a.example";
const B: &str = "b.example";

fn names(pdu: &Pdu) -> Vec<String> {
    let servers = required_signers(pdu).expect("it says who");
    servers.iter().map(ToString::to_string).collect()
}

#[test]
fn the_senders_server_must_have_signed() {
    for version in all() {
        assert_eq!(names(&pdu(version, &json!({}), &[])), [A]);
        assert_eq!(verify_event(&pdu(version, &json!({}), &[A]), &known), Ok(()));
        assert_eq!(verify_event(&pdu(version, &json!({}), &[A, B]), &known), Ok(()));
        let unsigned = Err(SignatureError::Unsigned(server(A)));
        assert_eq!(verify_event(&pdu(version, &json!({}), &[B]), &known), unsigned);
        assert_eq!(verify_event(&pdu(version, &json!({}), &[]), &known), unsigned);
    }
}

#[test]
fn in_versions_1_and_2_the_server_of_the_event_id_must_have_signed_too() {
    for id in ["1", "2"] {
        let elsewhere = json!({"event_id": "$x:b.example"});
        assert_eq!(names(&pdu(version(id), &elsewhere, &[])), [A, B]);
        assert!(verify_event(&pdu(version(id), &elsewhere, &[A, B]), &known).is_ok());
        let result = verify_event(&pdu(version(id), &elsewhere, &[A]), &known);
        assert_eq!(result, Err(SignatureError::Unsigned(server(B))));
    }
    assert_eq!(names(&pdu(version("3"), &json!({"event_id": "$x:b.example"}), &[])), [A]);
}

#[test]
fn a_join_that_somebody_authorises_is_signed_by_their_server_from_version_8_on() {
    let authorised = |membership: &str, by: Value| {
        let mut event = member("@alice:a.example", membership);
        event["content"]["join_authorised_via_users_server"] = by;
        event
    };
    let join = authorised("join", json!("@mod:b.example"));
    assert_eq!(names(&pdu(version("7"), &join, &[])), [A]);
    for id in ["8", "9", "10", "11", "12"] {
        assert_eq!(names(&pdu(version(id), &join, &[])), [A, B]);
        assert!(verify_event(&pdu(version(id), &join, &[A]), &known).is_err());
        assert!(verify_event(&pdu(version(id), &join, &[A, B]), &known).is_ok());
        assert_eq!(names(&pdu(version(id), &authorised("join", json!("@mod:a.example")), &[])), [A]);
        assert_eq!(names(&pdu(version(id), &authorised("leave", json!("@mod:b.example")), &[])), [A]);
        for odd in [json!(null), json!(1), json!("mod"), json!("@mod"), json!({})] {
            let result = verify_event(&pdu(version(id), &authorised("join", odd), &[A, B]), &known);
            assert!(matches!(result, Err(SignatureError::Malformed(_))));
        }
    }
}

#[test]
fn a_third_party_invite_may_come_from_another_server() {
    let invite = json!({"type": "m.room.member", "state_key": "@bob:b.example",
        "content": {"membership": "invite", "third_party_invite": {"signed": {}}}});
    assert!(names(&pdu(version("10"), &invite, &[])).is_empty());
    assert!(verify_event(&pdu(version("10"), &invite, &[B]), &known).is_ok());
    // The server of the event id still has to.
    assert_eq!(names(&pdu(version("1"), &invite, &[])), [A]);
    let mut join = invite;
    join["content"]["membership"] = json!("join");
    assert_eq!(names(&pdu(version("10"), &join, &[])), [A]);
}

#[test]
fn from_version_5_on_a_key_must_have_been_valid_when_the_event_was_made() {
    let until =
        |ms: i64| move |name: &str, _: &str| Some(KeyAt { key: key(name).verify_key(), valid_until_ms: ms });
    for version in all() {
        let event = pdu(version, &json!({"origin_server_ts": 1000}), &[A]);
        assert_eq!(verify_event(&event, &until(1000)), Ok(()));
        let late = verify_event(&event, &until(999));
        if version.enforce_key_validity {
            assert_eq!(late, Err(SignatureError::NoKey(vec![(server(A), "ed25519:k".to_owned())])));
        } else {
            assert_eq!(late, Ok(()));
        }
    }
}

#[test]
fn of_several_signatures_the_known_ones_must_all_be_right_and_the_others_do_not_matter() {
    let version = version("10");
    let other = SigningKey::generate([8; 32], "other");
    let with = |key_id: &str, signature: Value| {
        let mut event = signed(version, &json!({}), &[A]);
        event["signatures"][A][key_id] = signature;
        Pdu::from_object(event, version).expect("well formed")
    };
    let both = |name: &str, key_id: &str| match key_id {
        "ed25519:other" => Some(KeyAt { key: other.verify_key(), valid_until_ms: i64::MAX }),
        _ => known(name, key_id),
    };
    for harmless in [
        ("ed25519:unknown", json!("AAAA")),
        ("ed25519:", json!("AAAA")),
        ("rsa:k", json!("AAAA")),
        ("", json!("")),
        (":", json!(7)),
        ("ed25519", json!({})),
        ("ed25519:other", json!(["AAAA"])),
        ("ED25519:other", json!("AAAA")),
        ("ed25519:ö\u{0}😀", json!("AAAA")),
    ] {
        assert_eq!(verify_event(&with(harmless.0, harmless.1.clone()), &both), Ok(()), "{}", harmless.0);
    }
    let wrong = SignatureError::Wrong(server(A), "ed25519:other".to_owned());
    for bad in ["", "AAAA", "!", &json::base64(&[0; 64]), &json::base64(&[255; 64]), &json::base64(&[1; 65])]
    {
        assert_eq!(verify_event(&with("ed25519:other", json!(bad)), &both), Err(wrong.clone()), "{bad}");
    }
    let nobody = |_: &str, _: &str| None;
    let missing = vec![(server(A), "ed25519:k".to_owned())];
    assert_eq!(verify_event(&with("rsa:k", json!("")), &nobody), Err(SignatureError::NoKey(missing.clone())));
    assert_eq!(wanted_keys(&with("rsa:k", json!(""))), missing);
}

#[test]
fn signatures_of_any_shape_make_an_error_and_no_panic() {
    for version in all() {
        for shape in
            [json!({A: []}), json!({A: null}), json!({A: {}}), json!({A: "x"}), json!({A: {"ed25519:k": {}}})]
        {
            let event = object(version, &json!({ "signatures": shape }));
            let event = Pdu::from_object(event, version).expect("well formed");
            assert_eq!(verify_event(&event, &known), Err(SignatureError::Unsigned(server(A))));
        }
    }
}

#[test]
fn an_event_with_another_content_is_redacted_and_with_another_essence_refused() {
    for version in all() {
        let mut event = signed(version, &json!({"state_key": "k"}), &[A]);
        let check =
            |event: &Map<String, Value>| check_received(&json::canonical_object(event), version, &known);
        let whole = check(&event).expect("it is right");
        assert_eq!(whole.content_raw(), r#"{"body":"hello"}"#);
        event["content"] = json!({"body": "bye"});
        let redacted = check(&event).expect("its signatures are right");
        assert_eq!((redacted.content_raw(), redacted.event_id()), ("{}", whole.event_id()));
        event["depth"] = json!(8);
        assert!(matches!(check(&event), Err(ReceiptError::Signature(SignatureError::Wrong(..)))));
        event.remove("depth");
        assert!(matches!(check(&event), Err(ReceiptError::Format(_))));
    }
}

#[test]
fn a_key_of_small_order_verifies_nothing() {
    // With the identity as key, R the identity and s = 0 satisfy the lax equation for every message.
    let mut identity = [0; 32];
    identity[0] = 1;
    if let Ok(key) = VerifyKey::from_base64(&json::base64(&identity)) {
        let signature = [identity, [0; 32]].concat();
        assert!(!key.verifies(b"anything", &json::base64(&signature)));
    }
    for bad in ["", "AAAA", "*", &json::base64(&[1; 31]), &json::base64(&[1; 33])] {
        assert!(VerifyKey::from_base64(bad).is_err(), "{bad}");
    }
}

#[test]
fn key_ids_of_ours_are_well_formed() {
    let key = SigningKey::from_seed("ed25519:a_1Z", [5; 32]).expect("well formed");
    assert_eq!((key.key_id(), key.seed()), ("ed25519:a_1Z", [5; 32]));
    assert_eq!(format!("{key:?}"), "SigningKey(ed25519:a_1Z)");
    assert_eq!(VerifyKey::from_base64(&key.public_base64()).expect("a key"), key.verify_key());
    for bad in
        ["", "a", "ed25519", "ed25519:", "rsa:a", "ed25519:a b", "ed25519:é", "ed25519:a:b", "ed25519:a-b"]
    {
        assert!(SigningKey::from_seed(bad, [5; 32]).is_err(), "{bad}");
    }
}

#[test]
fn signing_an_object_of_odd_signatures_replaces_what_is_in_the_way() {
    for odd in [json!(null), json!([]), json!({A: 1}), json!({B: {"x:y": "z"}})] {
        let mut object =
            json!({"a": 1, "signatures": odd, "unsigned": {}}).as_object().expect("object").clone();
        sign_json(&mut object, &server(A), &key(A));
        assert!(verify_json(&object, A, "ed25519:k", &key(A).verify_key()).is_ok());
        assert!(verify_json(&object, B, "ed25519:k", &key(B).verify_key()).is_err());
        assert!(verify_json(&object, A, "ed25519:x", &key(A).verify_key()).is_err());
        assert!(verify_json(&object, A, "ed25519:k", &key(B).verify_key()).is_err());
        object.insert("a".to_owned(), json!(2));
        assert_eq!(
            verify_json(&object, A, "ed25519:k", &key(A).verify_key()).map_err(|e| e.status()),
            Err(401)
        );
    }
}

#[test]
fn one_more_signature_leaves_the_event_what_it_was() {
    for version in all() {
        let event = pdu(version, &member("@alice:a.example", "join"), &[A]);
        let both = event.signed(&server(B), &key(B));
        assert_eq!(both.event_id(), event.event_id());
        assert!(verify_event(&both, &known).is_ok() && verify_event_by(&both, &server(B), &known).is_ok());
        assert!(verify_event_by(&event, &server(B), &known).is_err());
        assert!(hash::content_hash_matches(&both.to_object()));
    }
}
