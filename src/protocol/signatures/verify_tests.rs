//! Tests of verifying events, hostile ones above all.

use serde_json::{Map, Value, json};

use super::*;
use crate::protocol::json::CanonicalObject;
use crate::protocol::room_version::all;
use crate::protocol::signatures::sign;
use crate::protocol::test_events::{key, known, member, object, pdu, server, signed, version};

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
        assert!(verify_event(&pdu(version, &json!({}), &[A]), &known).is_ok());
        assert!(verify_event(&pdu(version, &json!({}), &[A, B]), &known).is_ok());
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
    let until = |ms: i64| move |name: &str, _: &str| Some(KeyAt::stated(key(name).verify_key(), ms));
    for version in all() {
        let event = pdu(version, &json!({"origin_server_ts": 1000}), &[A]);
        assert!(verify_event(&event, &until(1000)).is_ok());
        let late = verify_event(&event, &until(999)).map(drop);
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
        "ed25519:other" => Some(KeyAt::stated(other.verify_key(), i64::MAX)),
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
        assert!(verify_event(&with(harmless.0, harmless.1.clone()), &both).is_ok(), "{}", harmless.0);
    }
    let wrong = SignatureError::Wrong(server(A), "ed25519:other".to_owned(), 1_700_000_000_000);
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
fn one_more_signature_leaves_the_event_what_it_was() {
    for version in all() {
        let event = VerifiedPdu::unchecked(pdu(version, &member("@alice:a.example", "join"), &[A]));
        let both = event.signed(&server(B), &key(B)).expect("signed");
        assert_eq!(both.event_id(), event.event_id());
        assert!(verify_event(&both, &known).is_ok() && verify_event_by(&both, &server(B), &known).is_ok());
        assert!(verify_event_by(&event, &server(B), &known).is_err());
        assert!(both.canonical().content_hash_matches());
    }
}

/// Whether everyone who has to have signed this event has, asked in another way than the code does it: from the tree.
fn is_signed_by_all(event: &Pdu) -> bool {
    let object = event.to_object();
    let content = &object["content"];
    let is_member = object["type"] == "m.room.member";
    let server_of = |id: &Value| id.as_str().and_then(|id| Some(id.split_once(':')?.1.to_owned()));
    let mut servers = Vec::new();
    if !(is_member && content["membership"] == "invite" && content.get("third_party_invite").is_some()) {
        servers.push(server_of(&object["sender"]));
    }
    if event.version().event_id_format == EventIdFormat::InEvent {
        servers.push(server_of(&object["event_id"]));
    }
    let authoriser = content.get("join_authorised_via_users_server");
    if let (true, true, Some(user)) =
        (event.version().restricted_join, is_member && content["membership"] == "join", authoriser)
    {
        servers.push(server_of(user));
    }
    let message = CanonicalObject::of(&object).essential_bytes(event.version());
    servers.into_iter().all(|name| {
        let name = name.expect("a user of a server");
        let signature = object["signatures"][&name]["ed25519:k"].as_str().unwrap_or_default();
        key(&name).verify_key().verifies(&message, signature)
    })
}

/// Everything that somebody may do to an event's signatures, each alone.
fn spoilt_signatures(event: &Map<String, Value>, servers: &[&str]) -> Vec<(String, Value)> {
    let good = event["signatures"].clone();
    let forged = |id: &str| {
        let signer = key("mallory.example");
        json!({ id: signer.sign_bytes(b"something else") })
    };
    let mut spoilt = vec![("none".to_owned(), json!({}))];
    for name in servers {
        let mut change = |what: &str, of_server: Option<Value>| {
            let mut all = good.clone();
            match of_server {
                Some(value) => all[*name] = value,
                None => drop(all.as_object_mut().expect("an object").remove(*name)),
            }
            spoilt.push((format!("{what} of {name}"), all));
        };
        let real = good[*name]["ed25519:k"].clone();
        change("nothing", None);
        for odd in [json!({}), json!([]), json!(null), json!("x"), json!({"ed25519:k": null})] {
            change(&format!("{odd}"), Some(odd));
        }
        for id in
            ["ed25519:policy_server", "ed25519:", "ed25519", "rsa:k", "ED25519:k", "k", "", "ed25519:gone"]
        {
            change(&format!("junk by {id}"), Some(json!({ id: "AAAA" })));
            change(&format!("the real one as {id}"), Some(json!({ id: real })));
            change(&format!("a forged one as {id}"), Some(forged(id)));
        }
        change("a forged one", Some(forged("ed25519:k")));
        change(
            "a forged one beside a policy server's",
            Some({
                let mut both = forged("ed25519:k");
                both["ed25519:policy_server"] = real.clone();
                both
            }),
        );
        for wrong in ["", "!", "AAAA", &json::base64(&[0; 64])] {
            change(&format!("{wrong:?}"), Some(json!({ "ed25519:k": wrong })));
        }
        let mut moved = good.clone();
        let taken = moved.as_object_mut().expect("an object").remove(*name).expect("it signed");
        for other in ["mallory.example", "A.EXAMPLE", "a.example:8448", "a.example."] {
            let mut all = moved.clone();
            all[other] = taken.clone();
            spoilt.push((format!("{name}'s as {other}'s"), all));
        }
    }
    spoilt
}

#[test]
fn without_a_valid_signature_of_everyone_who_has_to_sign_nothing_passes_whatever_its_hash() {
    let third_party = json!({"type": "m.room.member", "state_key": "@bob:b.example", "content": {
        "membership": "invite", "displayname": "Bob",
        "third_party_invite": {"display_name": "b", "signed": {"mxid": "@bob:b.example", "token": "t"}}}});
    let mut authorised = member("@alice:a.example", "join");
    authorised["content"]["join_authorised_via_users_server"] = json!("@mod:b.example");
    let mut blunt = third_party.clone();
    blunt["content"]["third_party_invite"] = json!("x");
    let events = [
        (json!({}), &[A][..]),
        (member("@alice:a.example", "join"), &[A]),
        (json!({"type": "m.room.power_levels", "state_key": "", "content": {"ban": 1}}), &[A]),
        (authorised, &[A, B]),
        (third_party, &[A]),
        (blunt, &[A]),
    ];
    let hashes = [None, Some(json!({})), Some(json!({"sha256": "AAAA"})), Some(json!({"sha256": 5}))];
    for version in all() {
        for (event, servers) in &events {
            for hashes in &hashes {
                let mut whole = signed(version, event, &[]);
                if let Some(hashes) = hashes {
                    whole["hashes"] = hashes.clone();
                }
                for name in *servers {
                    sign::sign_event(&mut whole, &server(name), &key(name), version);
                }
                let bytes = |event: &Map<String, Value>| json::canonical_object(event);
                let kept = check_received(&bytes(&whole), version, &known).expect("everyone signed it");
                assert!(is_signed_by_all(&kept), "{} {event} {hashes:?}", version.id);
                for (what, signatures) in spoilt_signatures(&whole, servers) {
                    let mut spoilt = whole.clone();
                    spoilt["signatures"] = signatures;
                    let story = || format!("{} {event} {hashes:?} {what}", version.id);
                    match check_received(&bytes(&spoilt), version, &known) {
                        Ok(kept) => assert!(is_signed_by_all(&kept), "{}", story()),
                        Err(ReceiptError::Signature(_)) => {}
                        Err(ReceiptError::Format(e)) => panic!("{}: {}", story(), e.message()),
                    }
                }
            }
        }
    }
}

#[test]
fn a_wrong_hash_takes_the_leave_to_come_unsigned_from_an_invite() {
    let invite = json!({"type": "m.room.member", "state_key": "@bob:b.example", "content": {
        "membership": "invite", "third_party_invite": "odd"}});
    for version in all().iter().filter(|version| version.event_id_format != EventIdFormat::InEvent) {
        let mut event = signed(version, &invite, &[]);
        let check =
            |event: &Map<String, Value>| check_received(&json::canonical_object(event), version, &known);
        assert!(check(&event).is_ok(), "the rules look at it");
        event["hashes"] = json!({"sha256": "AAAA"});
        let verdict = check(&event).map_err(|e| e.to_string());
        assert_eq!(verdict, Err("the event is not signed by a.example".to_owned()), "{}", version.id);
    }
}

#[test]
fn an_event_whose_content_cannot_be_read_is_none_since_it_would_be_judged_as_empty() {
    for version in all() {
        let event = member("@alice:a.example", "invite");
        let text = String::from_utf8(json::canonical_object(&signed(version, &event, &[A]))).expect("text");
        for odd in [format!("1{}", "0".repeat(400)), format!("-1{}", "0".repeat(310)), "[".repeat(200)] {
            let closing = "]".repeat(odd.matches('[').count());
            let content = format!("\"content\":{{\"third_party_invite\":null,\"x\":{odd}{closing},");
            let text = text.replacen("\"content\":{", &content, 1);
            let verdict = check_received(text.as_bytes(), version, &known);
            assert!(matches!(verdict, Err(ReceiptError::Format(_))), "{} {}", version.id, &odd[..20]);
        }
    }
}

#[test]
fn one_more_signature_never_makes_an_event_too_large() {
    let version = version("11");
    let body = "x".repeat(65_536 - 700);
    let event = pdu(version, &json!({"content": {"body": body}}), &[A]);
    let long = "x".repeat(255 - 8);
    let verdict =
        VerifiedPdu::unchecked(event).with_signature(B, &format!("ed25519:{long}"), &"A".repeat(86));
    assert_eq!(verdict.map(drop).map_err(|e| e.status()), Err(413));
}
