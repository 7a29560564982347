//! End-to-end keys of devices: uploaded, told, given out once, and who hears of a change.

use std::collections::BTreeSet;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use crate::common::client::{V3, post, sync};
use doorstep::TestServer;
use doorstep::testing::{TestDeviceKeys, TestUser, segment};
use serde_json::{Map, Value, json};

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, errcode: &str) -> String {
    assert_eq!((status, answer["errcode"].as_str()), (expected, Some(errcode)), "{answer}");
    answer["error"].as_str().unwrap_or_default().to_owned()
}

fn upload(user: &TestUser, body: Value) -> (u16, Value) {
    post(user, "keys/upload", body)
}

fn count(user: &TestUser) -> Value {
    sync(user, "")["device_one_time_keys_count"]["signed_curve25519"].clone()
}

fn changed(answer: &Value) -> BTreeSet<String> {
    users(&answer["device_lists"]["changed"])
}

fn users(list: &Value) -> BTreeSet<String> {
    let ids = list.as_array().into_iter().flatten();
    ids.map(|id| id.as_str().expect("a user id").to_owned()).collect()
}

#[test]
fn keys_that_were_uploaded_are_told_to_whoever_asks() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let phone = alice.device_id();
    // Who has uploaded nothing has an empty entry.
    assert_eq!(bob.query_keys(&[alice.id()])["device_keys"], json!({ alice.id(): {} }));
    let keys = TestDeviceKeys::new(alice.id(), &phone);
    let (status, answer) = upload(
        &alice,
        json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(&["A", "B"]) }),
    );
    assert_eq!((status, answer), (200, json!({ "one_time_key_counts": { "signed_curve25519": 2 } })));
    alice.put(&format!("{V3}/devices/{phone}"), json!({ "display_name": "my \"phone\"" }));
    let mut expected = keys.identity();
    expected["unsigned"] = json!({ "device_display_name": "my \"phone\"" });
    for asker in [&alice, &bob] {
        let answer = asker.query_keys(&[alice.id(), &format!("@nobody:{}", server.name())]);
        assert_eq!(answer["device_keys"][alice.id()], json!({ phone.as_str(): expected }));
        assert_eq!(answer["failures"], json!({}));
        for section in ["master_keys", "self_signing_keys", "user_signing_keys"] {
            assert_eq!(answer[section], json!({}), "{section}");
        }
    }
    // One device among several, and one that there is not.
    let second = server.device_of(&alice, "SECOND");
    second.upload_keys(&[]);
    let of = |devices: Value| {
        let answer = bob.post(&format!("{V3}/keys/query"), json!({ "device_keys": { alice.id(): devices } }));
        let devices = answer["device_keys"][alice.id()].as_object().expect("an object").clone();
        devices.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(of(json!([])).len(), 2);
    assert_eq!(of(json!(["SECOND", "NONE"])), ["SECOND"]);
    assert!(of(json!(["NONE"])).is_empty());
    // They go with the device.
    second.post(&format!("{V3}/logout"), json!({}));
    assert_eq!(of(json!([])), [phone]);
}

#[test]
fn a_query_that_is_none_is_refused() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for wrong in [
        json!({ alice.id(): {} }),
        json!({ alice.id(): { "device_id": "PHONE" } }),
        json!({ alice.id(): "PHONE" }),
        json!({ alice.id(): [1] }),
        json!([alice.id()]),
    ] {
        refused(post(&alice, "keys/query", json!({ "device_keys": wrong })), 400, "M_BAD_JSON");
    }
    refused(post(&alice, "keys/query", json!({})), 400, "M_MISSING_PARAM");
    refused(post(&alice, "keys/claim", json!({})), 400, "M_MISSING_PARAM");
    refused(post(&alice, "keys/query", json!({ "device_keys": { "alice": [] } })), 400, "M_INVALID_PARAM");
    let wrong = json!({ "one_time_keys": { alice.id(): { "PHONE": { "signed_curve25519": 1 } } } });
    refused(post(&alice, "keys/claim", wrong), 400, "M_BAD_JSON");
    let many: Map<String, Value> =
        (0..10_001).map(|n| (format!("D{n}"), json!("signed_curve25519"))).collect();
    let many = json!({ "one_time_keys": { alice.id(): many } });
    refused(post(&alice, "keys/claim", many), 413, "M_TOO_LARGE");
    let users = |count: usize, of_each: Value| -> Value {
        let users = (0..count).map(|n| (format!("@u{n}:x.invalid"), of_each.clone()));
        users.collect::<Map<String, Value>>().into()
    };
    refused(
        post(&alice, "keys/query", json!({ "device_keys": users(20_001, json!([])) })),
        400,
        "M_BAD_JSON",
    );
    refused(
        post(&alice, "keys/claim", json!({ "one_time_keys": users(10_001, json!({})) })),
        400,
        "M_BAD_JSON",
    );
}

#[test]
fn what_a_device_has_not_signed_or_is_not_its_own_is_refused_and_changes_nothing() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let keys = TestDeviceKeys::new(alice.id(), &alice.device_id());
    let good = keys.identity();
    let altered = |change: &dyn Fn(&mut Value)| {
        let mut object = good.clone();
        change(&mut object);
        json!({ "device_keys": object })
    };
    let of_bob = TestDeviceKeys::new(bob.id(), &alice.device_id()).identity();
    let of_another_device = TestDeviceKeys::new(alice.id(), "OTHER").identity();
    refused(upload(&alice, json!({ "device_keys": of_bob })), 400, "M_BAD_JSON");
    refused(upload(&alice, json!({ "device_keys": of_another_device })), 400, "M_BAD_JSON");
    refused(upload(&alice, json!({ "device_keys": [] })), 400, "M_BAD_JSON");
    refused(upload(&alice, altered(&|o| drop(o["signatures"].take()))), 400, "M_INVALID_SIGNATURE");
    refused(upload(&alice, altered(&|o| o["algorithms"] = json!([]))), 400, "M_INVALID_SIGNATURE");
    refused(upload(&alice, altered(&|o| o["keys"]["rsa:X"] = json!("x"))), 400, "M_INVALID_PARAM");
    refused(upload(&alice, altered(&|o| o["keys"] = json!({}))), 400, "M_BAD_JSON");
    refused(upload(&alice, altered(&|o| o["padding"] = "x".repeat(10_000).into())), 413, "M_TOO_LARGE");
    // One-time keys: one that is wrong, and none of the request is kept.
    let one_time = |name: &str, key: Value| {
        let mut all = keys.one_time_keys(&["GOOD"]);
        all[name] = key;
        json!({ "one_time_keys": all, "device_keys": good })
    };
    let key = keys.one_time_keys(&["A"])["signed_curve25519:A"].clone();
    let long = format!("signed_curve25519:{}", "x".repeat(10_000));
    let long_algorithm = format!("{}:A", "x".repeat(256));
    for (name, key) in [
        (":A", json!("x")),
        ("rsa:", json!("x")),
        ("r\0a:A", json!("x")),
        (&long_algorithm, json!("x")),
        ("rsa:A", json!(7)),
        ("rsa:A", json!(["x"])),
        ("rsa:A", json!(true)),
    ] {
        refused(upload(&alice, one_time(name, key)), 400, "M_BAD_JSON");
    }
    for key in [json!("x".repeat(2047)), json!({ "key": "x".repeat(2040) })] {
        refused(upload(&alice, one_time("rsa:A", key)), 413, "M_TOO_LARGE");
    }
    refused(upload(&alice, one_time("A", key.clone())), 400, "M_BAD_JSON");
    refused(upload(&alice, one_time(&long, key.clone())), 400, "M_BAD_JSON");
    refused(upload(&alice, one_time("signed_curve25519:A", json!("x"))), 400, "M_BAD_JSON");
    let unsigned = json!({ "key": key["key"] });
    refused(upload(&alice, one_time("signed_curve25519:A", unsigned)), 400, "M_INVALID_SIGNATURE");
    let stranger = TestDeviceKeys::new(bob.id(), &bob.device_id()).one_time_keys(&["A"]);
    let stranger = stranger["signed_curve25519:A"].clone();
    refused(upload(&alice, one_time("signed_curve25519:A", stranger)), 400, "M_INVALID_SIGNATURE");
    let two = json!({ "signed_curve25519:A": key, "signed_curve25519:B": key });
    refused(upload(&alice, json!({ "fallback_keys": two })), 400, "M_INVALID_PARAM");
    let two = json!({ "rsa:A": "a", "signed_curve25519:A": key, "rsa:B": "b" });
    refused(upload(&alice, json!({ "fallback_keys": two })), 400, "M_INVALID_PARAM");
    let many: Map<String, Value> = (0..10_000).map(|n| (format!("x:{n}"), json!(n))).collect();
    refused(upload(&alice, json!({ "one_time_keys": many })), 413, "M_TOO_LARGE");
    assert_eq!(count(&alice), 0);
    assert_eq!(bob.query_keys(&[alice.id()])["device_keys"][alice.id()], json!({}));
    // `null` is nothing, as older clients mean it.
    let nothing = json!({ "device_keys": null, "one_time_keys": null, "fallback_keys": null });
    assert_eq!(upload(&alice, nothing), (200, json!({ "one_time_key_counts": { "signed_curve25519": 0 } })));
}

#[test]
fn an_upload_that_is_repeated_changes_nothing_also_after_its_keys_were_given_out() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let device = alice.device_id();
    let keys = TestDeviceKeys::new(alice.id(), &device);
    let body = json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(&["A", "B"]) });
    for _ in 0..3 {
        let expected = json!({ "one_time_key_counts": { "signed_curve25519": 2 } });
        assert_eq!(upload(&alice, body.clone()), (200, expected));
    }
    // The same key with another signature is the same key.
    let mut signed_again = body.clone();
    signed_again["one_time_keys"]["signed_curve25519:A"]["signatures"]["@other:x"] =
        json!({ "ed25519:X": "x" });
    assert_eq!(upload(&alice, signed_again).0, 200);
    let first = bob.claim_key(alice.id(), &device).expect("a key");
    assert_eq!(body["one_time_keys"][&first.0], first.1);
    assert_eq!(upload(&alice, body.clone()).1, json!({ "one_time_key_counts": { "signed_curve25519": 1 } }));
    let second = bob.claim_key(alice.id(), &device).expect("the other key");
    assert_ne!(first.0, second.0);
    assert_eq!(upload(&alice, body.clone()).1, json!({ "one_time_key_counts": { "signed_curve25519": 0 } }));
    assert_eq!(bob.claim_key(alice.id(), &device), None);
    // Overlapping uploads add what is new.
    let mut more = keys.one_time_keys(&["C"]);
    more["signed_curve25519:A"] = body["one_time_keys"]["signed_curve25519:A"].clone();
    let answer = upload(&alice, json!({ "one_time_keys": more }));
    assert_eq!(answer, (200, json!({ "one_time_key_counts": { "signed_curve25519": 1 } })));
}

#[test]
fn another_key_of_a_used_id_is_refused_alone_and_the_others_of_the_request_are_kept() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let keys = alice.upload_keys(&["A", "B"]);
    let device = keys.device_id();
    let claimed = bob.claim_key(alice.id(), device).expect("a key");
    assert_eq!(claimed.0, "signed_curve25519:A");
    for (ids, taken) in [(["A", "C"], "A"), (["B", "D"], "B")] {
        let new = keys.one_time_keys(&ids);
        let why = refused(upload(&alice, json!({ "one_time_keys": new })), 400, "M_UNKNOWN");
        assert!(
            why.starts_with(&format!("One time key signed_curve25519:{taken} already exists. Old key: ")),
            "{why}"
        );
        let (old, told) = why.split_once("; new key: ").expect("both keys");
        let told: Value = serde_json::from_str(told).expect("JSON");
        assert_eq!(told, new[format!("signed_curve25519:{taken}")]);
        assert_eq!(old.ends_with('}'), taken == "B", "{old}");
    }
    assert_eq!(count(&alice), 3);
    let given: Vec<_> = (0..3).filter_map(|_| bob.claim_key(alice.id(), device)).map(|(id, _)| id).collect();
    assert_eq!(given, ["signed_curve25519:B", "signed_curve25519:C", "signed_curve25519:D"]);
}

#[test]
fn a_device_has_a_bounded_number_of_one_time_keys_waiting() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let keys = alice.upload_keys(&[]);
    let upload_range = |from: usize, to: usize| {
        let ids: Vec<String> = (from..to).map(|n| format!("K{n}")).collect();
        let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
        upload(&alice, json!({ "one_time_keys": keys.one_time_keys(&ids) }))
    };
    assert_eq!(upload_range(0, 490).1, json!({ "one_time_key_counts": { "signed_curve25519": 490 } }));
    refused(upload_range(490, 501), 413, "M_TOO_LARGE");
    assert_eq!(count(&alice), 490);
    assert_eq!(upload_range(490, 500).1, json!({ "one_time_key_counts": { "signed_curve25519": 500 } }));
}

#[test]
fn keys_of_algorithms_that_this_server_does_not_know_are_kept_counted_and_given_out_as_they_are() {
    let (server, there) = TestServer::pair();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), there.user("carol"));
    let keys = alice.upload_keys(&["A"]);
    let opaque = json!("YWJj");
    let object = json!({ "key": "AAAA", "n": [1, { "x": null }], "signatures": {}, "fallback": "perhaps" });
    let mut one_time = keys.one_time_keys(&["B"]);
    for (name, key) in
        [("curve25519:A", &opaque), ("org.example.pq:1", &object), ("org.example.pq:2", &object)]
    {
        one_time[name] = key.clone();
    }
    let counts = json!({ "signed_curve25519": 2, "curve25519": 1, "org.example.pq": 2 });
    for _ in 0..2 {
        let answer = upload(&alice, json!({ "one_time_keys": one_time }));
        assert_eq!(answer, (200, json!({ "one_time_key_counts": counts })));
    }
    let told = sync(&alice, "");
    assert_eq!(told["device_one_time_keys_count"], counts);
    let claim = |by: &TestUser, algorithm: &str| {
        let wanted = json!({ alice.id(): { keys.device_id(): algorithm } });
        let answer = by.post(&format!("{V3}/keys/claim"), json!({ "one_time_keys": wanted }));
        answer["one_time_keys"][alice.id()][keys.device_id()].clone()
    };
    assert_eq!(claim(&bob, "org.example.pq"), json!({ "org.example.pq:1": object }));
    assert_eq!(
        claim(&carol, "org.example.pq"),
        json!({ "org.example.pq:2": object }),
        "to another server too"
    );
    assert_eq!(claim(&bob, "org.example.pq"), Value::Null, "each once");
    assert_eq!(claim(&carol, "curve25519"), json!({ "curve25519:A": opaque }));
    assert_eq!(claim(&bob, "org.example"), Value::Null);
    let taken = json!({ "org.example.pq:1": "another" });
    refused(upload(&alice, json!({ "one_time_keys": taken })), 400, "M_UNKNOWN");
    // Fallback keys, one of each algorithm.
    let mut fallback = keys.fallback_key("F");
    fallback["org.example.pq:F"] = object.clone();
    fallback["curve25519:F"] = opaque.clone();
    assert_eq!(upload(&alice, json!({ "fallback_keys": fallback })).0, 200);
    let unused = json!(["curve25519", "org.example.pq", "signed_curve25519"]);
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], unused);
    for by in [&bob, &carol] {
        assert_eq!(claim(by, "org.example.pq"), json!({ "org.example.pq:F": object }));
    }
    let unused = json!(["curve25519", "signed_curve25519"]);
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], unused);
}

#[test]
fn a_device_has_one_time_and_fallback_keys_of_a_bounded_number_of_algorithms() {
    const ALGORITHMS_MAX: usize = 8;
    let server = TestServer::start();
    let alice = server.user("alice");
    alice.upload_keys(&["A"]);
    let of = |algorithms: std::ops::Range<usize>, id: usize| -> Value {
        algorithms.map(|n| (format!("org.example.{n}:{id}"), json!("key"))).collect::<Map<_, _>>().into()
    };
    for kind in ["one_time_keys", "fallback_keys"] {
        let own = usize::from(kind == "one_time_keys");
        let most = ALGORITHMS_MAX - own;
        refused(upload(&alice, json!({ kind: of(0..most + 1, 1) })), 413, "M_TOO_LARGE");
        assert_eq!(upload(&alice, json!({ kind: of(0..most, 1) })).0, 200, "{kind}");
        refused(upload(&alice, json!({ kind: of(most..most + 1, 1) })), 413, "M_TOO_LARGE");
        assert_eq!(upload(&alice, json!({ kind: of(0..most, 2) })).0, 200, "{kind}");
    }
    // The keys of all algorithms together are as many as those of one may be.
    let waiting = 1 + 2 * (ALGORITHMS_MAX - 1);
    let more = |from: usize, to: usize| -> Value {
        (from..to).map(|id| (format!("org.example.0:{id}"), json!("key"))).collect::<Map<_, _>>().into()
    };
    refused(upload(&alice, json!({ "one_time_keys": more(10, 511 - waiting) })), 413, "M_TOO_LARGE");
    assert_eq!(upload(&alice, json!({ "one_time_keys": more(10, 510 - waiting) })).0, 200);
}

#[test]
fn many_who_claim_at_once_get_keys_of_their_own_and_the_fallback_key_when_there_are_no_more() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let ids: Vec<String> = (0..40).map(|n| format!("K{n:02}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let keys = alice.upload_keys(&ids);
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], json!([]));
    let fallback = keys.fallback_key("FALLBACK");
    upload(&alice, json!({ "fallback_keys": fallback }));
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], json!(["signed_curve25519"]));
    let askers: Vec<TestUser> = (0..8).map(|n| server.user(&format!("asker{n}"))).collect();
    let given: Vec<(String, Value)> = std::thread::scope(|scope| {
        let claims: Vec<_> = askers
            .iter()
            .map(|asker| {
                let (alice, keys) = (&alice, &keys);
                scope.spawn(move || {
                    (0..5).filter_map(|_| asker.claim_key(alice.id(), keys.device_id())).collect::<Vec<_>>()
                })
            })
            .collect();
        claims.into_iter().flat_map(|claim| claim.join().expect("a thread")).collect()
    });
    let distinct: BTreeSet<&str> = given.iter().map(|(id, _)| id.as_str()).collect();
    assert_eq!((given.len(), distinct.len()), (40, 40));
    assert!(!distinct.contains("signed_curve25519:FALLBACK"));
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], json!(["signed_curve25519"]));
    for _ in 0..2 {
        let (id, key) = askers[0].claim_key(alice.id(), keys.device_id()).expect("the fallback key");
        assert_eq!(json!({ id: key }), fallback);
        assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], json!([]));
    }
    // The same again is as used as it was; a new one is not.
    upload(&alice, json!({ "fallback_keys": fallback }));
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], json!([]));
    upload(&alice, json!({ "fallback_keys": keys.fallback_key("NEXT") }));
    let told = sync(&alice, "");
    assert_eq!(told["device_unused_fallback_key_types"], json!(["signed_curve25519"]));
    assert_eq!(told["device_one_time_keys_count"], json!({ "signed_curve25519": 0 }));
}

#[test]
fn a_claim_of_what_there_is_not_gets_nothing_and_takes_nothing() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let keys = alice.upload_keys(&["A"]);
    let wanted = json!({ "one_time_keys": {
        alice.id(): { keys.device_id(): "curve25519", "NONE": "signed_curve25519" },
        "@nobody:localhost": { "X": "signed_curve25519" },
        bob.id(): { bob.device_id(): "signed_curve25519" },
    }, "timeout": 10 });
    let answer = bob.post(&format!("{V3}/keys/claim"), wanted);
    assert_eq!(answer["one_time_keys"].get(alice.id()), None, "{answer}");
    assert_eq!(answer["one_time_keys"].get(bob.id()), None, "{answer}");
    assert_eq!(count(&alice), 1);
    // Several devices at once, a key each.
    let second = server.device_of(&alice, "SECOND");
    second.upload_keys(&["B", "C"]);
    let wanted = json!({ keys.device_id(): "signed_curve25519", "SECOND": "signed_curve25519" });
    let answer = bob.post(&format!("{V3}/keys/claim"), json!({ "one_time_keys": { alice.id(): wanted } }));
    let of = |device: &str| {
        answer["one_time_keys"][alice.id()][device]
            .as_object()
            .expect("keys")
            .keys()
            .cloned()
            .collect::<Vec<_>>()
    };
    assert_eq!(of(keys.device_id()), ["signed_curve25519:A"]);
    assert_eq!(of("SECOND"), ["signed_curve25519:B"]);
    assert_eq!(answer["failures"], json!({}));
}

#[test]
fn other_identity_keys_take_the_one_time_keys_of_the_old_ones_with_them() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let signing = alice.upload_signing_keys();
    let old = alice.upload_keys(&["A", "B"]);
    upload(&alice, json!({ "fallback_keys": old.fallback_key("F") }));
    let device = old.device_id();
    bob.claim_key(alice.id(), device).expect("a key");
    let signed = json!({ alice.id(): { device: signing.sign_device(old.identity()) } });
    alice.post(&format!("{V3}/keys/signatures/upload"), signed);
    // A client that lost its keys logs in again as the same device.
    let keys = TestDeviceKeys::new(alice.id(), device);
    let body = json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(&["A"]) });
    assert_eq!(upload(&alice, body).1, json!({ "one_time_key_counts": { "signed_curve25519": 1 } }));
    assert_eq!(sync(&alice, "")["device_unused_fallback_key_types"], json!([]));
    let told = bob.query_keys(&[alice.id()]);
    let mut expected = keys.identity();
    if let Some(unsigned) = told["device_keys"][alice.id()][device].get("unsigned") {
        expected["unsigned"] = unsigned.clone();
    }
    assert_eq!(told["device_keys"][alice.id()][device], expected, "the old signature is of the old keys");
}

#[test]
fn keys_end_with_the_device_however_it_ends() {
    let server = TestServer::start_with(|config| config.registration = doorstep::config::Registration::Open);
    let alice = TestUser::register(server.url(), "alice");
    let bob = server.user("bob");
    let devices =
        || bob.query_keys(&[alice.id()])["device_keys"][alice.id()].as_object().expect("an object").len();
    let signing = alice.upload_signing_keys();
    let first = alice.upload_keys(&["A"]);
    for (number, path) in ["logout", "logout/all"].into_iter().enumerate() {
        let second = server.device_of(&alice, &format!("D{number}"));
        second.upload_keys(&["B"]);
        assert!(devices() > 1 || number > 0);
        second.post(&format!("{V3}/{path}"), json!({}));
        assert_eq!(bob.claim_key(alice.id(), &format!("D{number}")), None);
        assert_eq!(devices(), 1 - number, "{path}");
    }
    assert_eq!(bob.claim_key(alice.id(), first.device_id()), None);
    let last = server.device_of(&alice, "LAST");
    last.upload_keys(&["C"]);
    assert_eq!(bob.query_keys(&[alice.id()])["master_keys"][alice.id()], signing.master());
    let auth = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice" });
    last.post(&format!("{V3}/account/deactivate"), json!({ "auth": auth }));
    let told = bob.query_keys(&[alice.id()]);
    assert_eq!(told["device_keys"][alice.id()], json!({}));
    assert_eq!(told["master_keys"], json!({}), "{told}");
}

#[test]
fn an_upload_that_races_with_the_end_of_its_device_leaves_nothing() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let bob = server.user("bob");
    for round in 0..20 {
        let device = server.device_of(&alice, &format!("D{round}"));
        let keys = TestDeviceKeys::new(alice.id(), &format!("D{round}"));
        let body = json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(&["A"]) });
        std::thread::scope(|scope| {
            let (device, alice) = (&device, &alice);
            let server = &server;
            scope.spawn(move || {
                let (status, answer) = upload(device, body);
                assert!(status == 200 || answer["errcode"] == "M_UNKNOWN_TOKEN", "{status} {answer}");
            });
            scope.spawn(move || {
                let id = doorstep::protocol::UserId::parse(alice.id()).expect("an id");
                let gone = vec![format!("D{round}")];
                server.homeserver().accounts().delete_devices(&id, gone).expect("deleted");
            });
        });
        assert_eq!(bob.query_keys(&[alice.id()])["device_keys"][alice.id()], json!({}));
        assert_eq!(bob.claim_key(alice.id(), &format!("D{round}")), None);
    }
}

#[test]
fn whoever_shares_a_room_hears_of_new_keys_once_and_nobody_else_does() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    bob.join(&room);
    for user in [&alice, &bob, &carol] {
        user.initial_sync();
    }
    let keys = alice.upload_keys(&["A"]);
    for (user, expected) in [(&alice, 1), (&bob, 1), (&carol, 0)] {
        assert_eq!(changed(&user.sync(Duration::ZERO)).len(), expected, "{}", user.id());
    }
    // The same again, and one-time keys, are no news.
    upload(&alice, json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(&["B"]) }));
    bob.claim_key(alice.id(), keys.device_id());
    for user in [&alice, &bob, &carol] {
        assert!(changed(&user.sync(Duration::ZERO)).is_empty(), "{}", user.id());
    }
}

#[test]
fn who_waits_for_news_is_woken_by_new_keys() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.initial_sync();
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| changed(&bob.sync(Duration::from_secs(20))));
        alice.upload_keys(&[]);
        assert!(waiting.join().expect("a thread").contains(alice.id()));
    });
}

#[test]
fn of_many_whose_devices_changed_those_are_told_who_share_a_room() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    bob.join(&room);
    bob.upload_keys(&[]);
    carol.upload_keys(&[]);
    let before = sync(&alice, "")["next_batch"].as_str().expect("a token").to_owned();
    // More than are looked up one by one.
    for number in 0..110 {
        server.user(&format!("stranger{number}")).upload_keys(&[]);
    }
    let changed =
        |from: &str| users(&alice.get(&format!("{V3}/keys/changes?from={from}&to={from}"))["changed"]);
    assert_eq!(changed(&before), BTreeSet::new());
    assert_eq!(changed("s0"), BTreeSet::from([alice.id().to_owned(), bob.id().to_owned()]));
    alice.upload_keys(&[]);
    server.device_of(&bob, "SECOND").upload_keys(&[]);
    assert_eq!(changed(&before), BTreeSet::from([alice.id().to_owned(), bob.id().to_owned()]));
    let told = sync(&alice, &format!("since={before}"));
    assert_eq!(users(&told["device_lists"]["changed"]), changed(&before));
}

#[test]
fn key_changes_are_what_sync_would_have_told() {
    let server = TestServer::start();
    let (alice, bob, carol, dora) =
        (server.user("alice"), server.user("bob"), server.user("carol"), server.user("dora"));
    let room = alice.create_room();
    for user in [&bob, &carol] {
        user.join(&room);
    }
    let token = |user: &TestUser| sync(user, "")["next_batch"].as_str().expect("a token").to_owned();
    let from = token(&alice);
    let changes = |from: &str, to: &str| {
        alice.get(&format!("{V3}/keys/changes?from={}&to={}", segment(from), segment(to)))
    };
    assert_eq!(changes(&from, &from), json!({ "changed": [], "left": [] }));
    bob.upload_keys(&[]);
    dora.upload_keys(&[]);
    let second = server.device_of(&carol, "SECOND");
    second.upload_keys(&[]);
    let between = token(&alice);
    let told = changes(&from, &between);
    assert_eq!(users(&told["changed"]), BTreeSet::from([bob.id().to_owned(), carol.id().to_owned()]));
    assert_eq!(told["changed"], sync(&alice, &format!("since={from}"))["device_lists"]["changed"]);
    // A device that ends is a change; who leaves has left; who comes is to be looked at.
    second.post(&format!("{V3}/logout"), json!({}));
    bob.leave(&room);
    dora.join(&room);
    let told = changes(&between, &token(&alice));
    assert_eq!(users(&told["changed"]), BTreeSet::from([carol.id().to_owned(), dora.id().to_owned()]));
    assert_eq!(told["left"], json!([bob.id()]));
    let (status, answer) = alice.request("GET", &format!("{V3}/keys/changes"), None);
    refused((status, answer), 400, "M_MISSING_PARAM");
    let (status, answer) = alice.request("GET", &format!("{V3}/keys/changes?from=x&to=y"), None);
    refused((status, answer), 400, "M_INVALID_PARAM");
    // A token from before the database was put back to an older state: everything may have changed.
    assert!(users(&changes("s999999", "s999999")["changed"]).contains(carol.id()));
}

#[test]
fn rooms_without_encryption_count_for_who_comes_and_for_who_goes_with_the_last_of_them() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (one, two) = (alice.create_room(), alice.create_room());
    alice.initial_sync();
    bob.initial_sync();
    bob.join(&one);
    assert_eq!(alice.sync(Duration::ZERO)["device_lists"]["changed"], json!([bob.id()]));
    assert!(changed(&bob.sync(Duration::ZERO)).contains(alice.id()));
    bob.join(&two);
    alice.sync(Duration::ZERO);
    bob.leave(&one);
    assert_eq!(alice.sync(Duration::ZERO).get("device_lists"), None, "they share another room");
    bob.leave(&two);
    assert_eq!(alice.sync(Duration::ZERO)["device_lists"], json!({ "left": [bob.id()] }));
    // Keys of who has left are no news; those of who comes back are.
    bob.upload_keys(&[]);
    assert_eq!(alice.sync(Duration::ZERO).get("device_lists"), None);
    bob.join(&one);
    assert_eq!(alice.sync(Duration::ZERO)["device_lists"]["changed"], json!([bob.id()]));
}

#[test]
fn a_few_of_those_who_ask_what_changed_are_answered_at_a_time() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let since = alice.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    let mut turns = Vec::new();
    while let Ok(turn) = server
        .homeserver()
        .large_answers
        .turn(&doorstep::protocol::UserId::parse(alice.id()).expect("an id"), || false)
    {
        turns.push(turn);
    }
    let (told, answered) = mpsc::channel();
    thread::scope(|scope| {
        scope.spawn(|| {
            told.send(alice.get(&format!("/_matrix/client/v3/keys/changes?from={since}&to={since}")))
        });
        assert!(answered.recv_timeout(Duration::from_millis(500)).is_err(), "it waits for its turn");
        drop(turns);
        let answer = answered.recv_timeout(Duration::from_secs(30)).expect("an answer");
        assert_eq!(answer, json!({ "changed": [], "left": [] }));
    });
}

#[test]
fn who_has_left_or_was_banned_learns_of_nobody_who_comes_later() {
    let server = TestServer::start();
    let (alice, bob, carol, dora) =
        (server.user("alice"), server.user("bob"), server.user("carol"), server.user("dora"));
    let encrypted =
        json!([{ "type": "m.room.encryption", "content": { "algorithm": "m.megolm.v1.aes-sha2" } }]);
    for initial_state in [json!([]), encrypted] {
        let room = alice.create_room_with(json!({ "preset": "public_chat", "initial_state": initial_state }));
        for user in [&bob, &carol] {
            user.join(&room);
        }
        let since = bob.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
        carol.leave(&room);
        let ban = format!("{V3}/rooms/{}/ban", segment(&room));
        alice.post(&ban, json!({ "user_id": bob.id() }));
        dora.join(&room);
        let expected = BTreeSet::from([alice.id().to_owned(), carol.id().to_owned()]);
        let told = sync(&bob, &format!("since={since}"))["device_lists"].clone();
        assert_eq!((users(&told["left"]), users(&told["changed"])), (expected.clone(), BTreeSet::new()));
        alice.leave(&room);
        let told = bob.get(&format!("{V3}/keys/changes?from={since}&to={since}"));
        assert_eq!(users(&told["left"]), expected, "whoever goes after them");
    }
}
