//! Tests of keys and signed JSON, hostile ones above all.

use serde_json::json;

use super::*;
use crate::protocol::test_events::{key, server};

const A: &str = "a.example";
const B: &str = "b.example";

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
