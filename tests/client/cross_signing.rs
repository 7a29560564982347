//! Cross-signing: keys that users sign with, who may replace them, and which signatures are taken and shown to whom.

use std::time::Duration;

use crate::common::client::{V3, post, sync};
use doorstep::TestServer;
use doorstep::internals::NewKeyBackup;
use doorstep::internals::{NewSigningKeys, UploadedSignatures};
use doorstep::protocol::UserId;
use doorstep::protocol::json::ObjectText;
use doorstep::protocol::keys::cross_signing::KeyUsage;
use doorstep::testing::{TestDeviceKeys, TestSigningKeys, TestUser};
use serde_json::{Value, json};

const SIGNING: &str = "keys/device_signing/upload";
const SIGNATURES: &str = "keys/signatures/upload";

#[track_caller]
fn refused((status, answer): (u16, Value), expected: u16, errcode: &str) {
    assert_eq!((status, answer["errcode"].as_str()), (expected, Some(errcode)), "{answer}");
}

fn failures(user: &TestUser, signed: Value) -> Value {
    user.post(&format!("{V3}/{SIGNATURES}"), signed)["failures"].clone()
}

fn password(user: &str, password: &str, session: &Value) -> Value {
    json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user },
        "password": password, "session": session,
    })
}

/// A user with a password, which is their name.
fn register(server: &TestServer, name: &str) -> TestUser {
    TestUser::register(server.url(), name)
}

#[test]
fn a_first_set_takes_no_proof_and_neither_does_the_same_again_but_a_change_takes_the_password() {
    let server = TestServer::start();
    let (alice, bob) = (register(&server, "alice"), server.user("bob"));
    let first = TestSigningKeys::new(alice.id());
    for _ in 0..2 {
        assert_eq!(post(&alice, SIGNING, first.upload()), (200, json!({})));
    }
    let part = json!({ "self_signing_key": first.self_signing() });
    assert_eq!(post(&alice, SIGNING, part), (200, json!({})));
    let second = TestSigningKeys::new(alice.id());
    let (status, ask) = post(&alice, SIGNING, second.upload());
    assert_eq!(status, 401, "{ask}");
    assert_eq!(ask["flows"], json!([{ "stages": ["m.login.password"] }]));
    let mut body = second.upload();
    for (wrong, status) in [("wrong", 401), ("", 401)] {
        body["auth"] = password("alice", wrong, &ask["session"]);
        assert_eq!(post(&alice, SIGNING, body.clone()).0, status);
    }
    body["auth"] = json!({ "type": "m.login.dummy", "session": ask["session"] });
    assert_eq!(post(&alice, SIGNING, body.clone()).0, 401);
    body["auth"] = password("bob", "bob", &ask["session"]);
    assert_eq!(post(&alice, SIGNING, body.clone()).0, 401);
    assert_eq!(
        bob.query_keys(&[alice.id()])["master_keys"][alice.id()],
        first.master(),
        "nothing was changed"
    );
    body["auth"] = password("alice", "alice", &ask["session"]);
    assert_eq!(post(&alice, SIGNING, body), (200, json!({})));
    let told = bob.query_keys(&[alice.id()]);
    assert_eq!(told["master_keys"][alice.id()], second.master());
    assert_eq!(told["self_signing_keys"][alice.id()], second.self_signing());
    assert_eq!(told["user_signing_keys"], json!({}), "that is for its owner alone");
    assert_eq!(alice.query_keys(&[alice.id()])["user_signing_keys"][alice.id()], second.user_signing());
}

#[test]
fn who_has_no_password_cannot_replace_their_keys_by_any_answer() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let first = alice.upload_signing_keys();
    let mut body = TestSigningKeys::new(alice.id()).upload();
    let session = post(&alice, SIGNING, body.clone()).1["session"].clone();
    for auth in [
        password("alice", "", &session),
        password("alice", "alice", &session),
        json!({ "type": "m.login.password", "session": session }),
        json!({ "type": "m.login.password", "password": null, "session": session }),
        json!({ "session": session }),
    ] {
        body["auth"] = auth;
        let (status, answer) = post(&alice, SIGNING, body.clone());
        assert!(matches!(status, 400 | 401 | 403), "{status} {answer}");
    }
    assert_eq!(alice.query_keys(&[alice.id()])["master_keys"][alice.id()], first.master());
}

#[test]
fn adding_a_key_to_a_master_key_that_is_there_takes_the_password_too() {
    let server = TestServer::start();
    let alice = register(&server, "alice");
    let keys = TestSigningKeys::new(alice.id());
    refused(
        post(&alice, SIGNING, json!({ "self_signing_key": keys.self_signing() })),
        400,
        "M_MISSING_PARAM",
    );
    refused(post(&alice, SIGNING, json!({})), 400, "M_MISSING_PARAM");
    assert_eq!(post(&alice, SIGNING, json!({ "master_key": keys.master() })), (200, json!({})));
    assert_eq!(post(&alice, SIGNING, keys.upload()).0, 401);
    let mut body = json!({ "self_signing_key": keys.self_signing() });
    let (status, ask) = post(&alice, SIGNING, body.clone());
    assert_eq!(status, 401);
    body["auth"] = password("alice", "alice", &ask["session"]);
    assert_eq!(post(&alice, SIGNING, body), (200, json!({})));
    assert_eq!(alice.query_keys(&[alice.id()])["self_signing_keys"][alice.id()], keys.self_signing());
}

#[test]
fn keys_that_the_master_key_has_not_signed_and_what_are_no_keys_are_refused() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (keys, others) = (TestSigningKeys::new(alice.id()), TestSigningKeys::new(alice.id()));
    let with = |name: &str, key: Value| {
        let mut body = keys.upload();
        body[name] = key;
        body
    };
    for name in ["self_signing_key", "user_signing_key"] {
        let mut unsigned = keys.upload()[name].clone();
        unsigned.as_object_mut().expect("an object").remove("signatures");
        refused(post(&alice, SIGNING, with(name, unsigned)), 400, "M_INVALID_SIGNATURE");
        refused(post(&alice, SIGNING, with(name, others.upload()[name].clone())), 400, "M_INVALID_SIGNATURE");
    }
    refused(post(&alice, SIGNING, with("self_signing_key", keys.user_signing())), 400, "M_BAD_JSON");
    refused(
        post(&alice, SIGNING, with("master_key", TestSigningKeys::new(bob.id()).master())),
        400,
        "M_BAD_JSON",
    );
    refused(post(&alice, SIGNING, with("master_key", json!("key"))), 400, "M_BAD_JSON");
    let mut two = keys.master();
    two["keys"]["ed25519:other"] = json!("other");
    refused(post(&alice, SIGNING, with("master_key", two)), 400, "M_BAD_JSON");
    let mut long = keys.master();
    long["padding"] = json!("x".repeat(10_000));
    refused(post(&alice, SIGNING, with("master_key", long)), 413, "M_TOO_LARGE");
    let told = alice.query_keys(&[alice.id()]);
    assert_eq!((&told["master_keys"], &told["user_signing_keys"]), (&json!({}), &json!({})));
}

#[test]
fn no_device_has_the_name_of_a_cross_signing_key() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let keys = TestSigningKeys::new(alice.id());
    server.device_of(&alice, &keys.master_public());
    refused(post(&alice, SIGNING, keys.upload()), 403, "M_FORBIDDEN");
    let keys = alice.upload_signing_keys();
    let id = doorstep::protocol::UserId::parse(alice.id()).expect("an id");
    let login = server.homeserver().accounts().log_in(&id, Some(&keys.master_public()), None, false);
    assert_eq!(login.expect_err("refused").errcode().as_str(), "M_FORBIDDEN");
}

#[test]
fn signatures_are_taken_from_the_right_keys_and_shown_to_whom_they_concern() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let device = alice.upload_keys(&[]);
    let (of_alice, of_bob) = (alice.upload_signing_keys(), bob.upload_signing_keys());
    let master = of_alice.master_public();
    let signed = json!({
        alice.id(): {
            device.device_id(): of_alice.sign_device(device.identity()),
            master.as_str(): device.sign(of_alice.master()),
        },
        bob.id(): { of_bob.master_public(): of_alice.sign_user(of_bob.master()) },
    });
    for _ in 0..2 {
        assert_eq!(failures(&alice, signed.clone()), json!({}));
    }
    for asker in [&alice, &bob, &carol] {
        let told = asker.query_keys(&[alice.id(), bob.id()]);
        let mut told_device = told["device_keys"][alice.id()][device.device_id()].clone();
        told_device.as_object_mut().expect("an object").remove("unsigned");
        assert_eq!(told_device, of_alice.sign_device(device.identity()), "{}", asker.id());
        assert_eq!(told["master_keys"][alice.id()], device.sign(of_alice.master()));
        // "Users will not be able to see signatures made by other users' user-signing keys."
        let of_bob_told = &told["master_keys"][bob.id()];
        match asker.id() == alice.id() {
            true => assert_eq!(*of_bob_told, of_alice.sign_user(of_bob.master())),
            false => {
                assert_eq!(of_bob_told.get("signatures").unwrap_or(&json!({})), &json!({}), "{}", asker.id())
            }
        }
    }
    // A new self-signing key ends what the old one had signed, and so does a device that ends.
    alice.post(&format!("{V3}/logout"), json!({}));
    let told = bob.query_keys(&[alice.id()]);
    assert_eq!(told["master_keys"][alice.id()].get("signatures").unwrap_or(&json!({})), &json!({}));
}

#[test]
fn every_signature_that_is_refused_is_told_and_none_is_kept() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (device, of_bob_device) = (alice.upload_keys(&[]), bob.upload_keys(&[]));
    let (of_alice, of_bob) = (alice.upload_signing_keys(), bob.upload_signing_keys());
    let stranger = TestSigningKeys::new(alice.id());
    let stranger_device = TestDeviceKeys::new(alice.id(), "STRANGER");
    let (id, master) = (device.device_id(), of_alice.master_public());
    let mut altered = device.identity();
    altered["algorithms"] = json!(["other"]);
    let invalid = "M_INVALID_SIGNATURE";
    let nobody = format!("@nobody:{}", server.name());
    let cases = [
        // By a key that is not the stored one.
        (alice.id(), id.to_owned(), stranger.sign_device(device.identity()), invalid),
        // By the right key, of something else.
        (alice.id(), id.to_owned(), of_alice.sign_device(altered), invalid),
        // Unsigned, or signed by the device alone.
        (alice.id(), id.to_owned(), device.identity(), invalid),
        (alice.id(), id.to_owned(), of_alice.sign_user(device.identity()), invalid),
        (alice.id(), id.to_owned(), json!({}), invalid),
        (alice.id(), id.to_owned(), json!("text"), "M_BAD_JSON"),
        (alice.id(), "NONE".to_owned(), of_alice.sign_device(device.identity()), "M_NOT_FOUND"),
        // A master key by another device, by the self-signing key, by nobody.
        (alice.id(), master.clone(), stranger_device.sign(of_alice.master()), invalid),
        (alice.id(), master.clone(), of_alice.sign_device(of_alice.master()), invalid),
        (alice.id(), master.clone(), of_alice.master(), invalid),
        // Others' keys: their devices are theirs to sign, and their master key takes the user-signing key.
        (
            bob.id(),
            of_bob_device.device_id().to_owned(),
            of_alice.sign_user(of_bob_device.identity()),
            "M_NOT_FOUND",
        ),
        (bob.id(), of_bob.master_public(), of_alice.sign_device(of_bob.master()), invalid),
        (bob.id(), of_bob.master_public(), stranger.sign_user(of_bob.master()), invalid),
        (bob.id(), of_bob.master_public(), of_alice.sign_user(of_alice.master()), invalid),
        (bob.id(), stranger.master_public(), of_alice.sign_user(stranger.master()), "M_NOT_FOUND"),
        (nobody.as_str(), stranger.master_public(), of_alice.sign_user(stranger.master()), "M_NOT_FOUND"),
        ("nobody", "x".to_owned(), of_alice.sign_user(stranger.master()), "M_INVALID_PARAM"),
    ];
    let before = alice.query_keys(&[alice.id(), bob.id()]);
    alice.initial_sync();
    for (user, key, object, errcode) in cases {
        let told = failures(&alice, json!({ user: { key.as_str(): object } }));
        assert_eq!(told[user][&key]["errcode"], errcode, "{user} {key} {object}: {told}");
        assert!(told[user][&key]["error"].is_string());
    }
    // One that is right among them is kept.
    let mixed =
        json!({ alice.id(): { id: device.identity(), master.as_str(): device.sign(of_alice.master()) } });
    let told = failures(&alice, mixed);
    assert_eq!(told, json!({ alice.id(): { id: told[alice.id()][id].clone() } }));
    let mut expected = before;
    expected["master_keys"][alice.id()] = device.sign(of_alice.master());
    assert_eq!(alice.query_keys(&[alice.id(), bob.id()]), expected);
    // Who has no keys signs nothing.
    let carol = server.user("carol");
    let told = failures(
        &carol,
        json!({ bob.id(): { of_bob.master_public(): of_alice.sign_user(of_bob.master()) } }),
    );
    assert_eq!(told[bob.id()][of_bob.master_public()]["errcode"], "M_NOT_FOUND");
    refused(post(&alice, SIGNATURES, json!({ alice.id(): [] })), 400, "M_BAD_JSON");
    refused(post(&alice, SIGNATURES, json!([])), 400, "M_BAD_JSON");
    let many: serde_json::Map<String, Value> = (0..1001).map(|n| (format!("D{n}"), json!({}))).collect();
    refused(post(&alice, SIGNATURES, json!({ alice.id(): many })), 413, "M_TOO_LARGE");
}

#[test]
fn another_master_key_ends_all_that_rested_on_the_old_one() {
    let server = TestServer::start();
    let (alice, bob) = (register(&server, "alice"), register(&server, "bob"));
    let device = alice.upload_keys(&[]);
    let (old, of_bob) = (alice.upload_signing_keys(), bob.upload_signing_keys());
    let signed = json!({
        alice.id(): {
            device.device_id(): old.sign_device(device.identity()),
            old.master_public(): device.sign(old.master()),
        },
        bob.id(): { of_bob.master_public(): old.sign_user(of_bob.master()) },
    });
    assert_eq!(failures(&alice, signed), json!({}));
    let by_bob = json!({ alice.id(): { old.master_public(): of_bob.sign_user(old.master()) } });
    assert_eq!(failures(&bob, by_bob), json!({}));
    let new = TestSigningKeys::new(alice.id());
    let mut body = json!({ "master_key": new.master() });
    let session = post(&alice, SIGNING, body.clone()).1["session"].clone();
    body["auth"] = password("alice", "alice", &session);
    assert_eq!(post(&alice, SIGNING, body), (200, json!({})));
    let mut plain = device.identity();
    for asker in [&alice, &bob] {
        let told = asker.query_keys(&[alice.id(), bob.id()]);
        let told_device = &told["device_keys"][alice.id()][device.device_id()];
        if let Some(unsigned) = told_device.get("unsigned") {
            plain["unsigned"] = unsigned.clone();
        }
        assert_eq!(*told_device, plain);
        let signatures =
            |user: &TestUser| told["master_keys"][user.id()].get("signatures").cloned().unwrap_or(json!({}));
        assert_eq!((signatures(&alice), signatures(&bob)), (json!({}), json!({})));
        assert_eq!(told["self_signing_keys"].get(alice.id()), None, "the old master key had signed it");
        assert_eq!(told["user_signing_keys"].get(alice.id()), None);
    }
}

#[test]
fn a_device_that_signs_the_master_key_in_the_upload_of_it_is_shown() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let device = alice.upload_keys(&[]);
    let keys = TestSigningKeys::new(alice.id());
    let mut wrong = keys.upload();
    wrong["master_key"] = device.sign(TestSigningKeys::new(alice.id()).master());
    let signatures = wrong["master_key"]["signatures"].clone();
    wrong["master_key"] = keys.master();
    wrong["master_key"]["signatures"] = signatures;
    refused(post(&alice, SIGNING, wrong), 400, "M_INVALID_SIGNATURE");
    let mut body = keys.upload();
    body["master_key"] = TestDeviceKeys::new(alice.id(), "STRANGER").sign(device.sign(keys.master()));
    assert_eq!(post(&alice, SIGNING, body), (200, json!({})));
    assert_eq!(alice.query_keys(&[alice.id()])["master_keys"][alice.id()], device.sign(keys.master()));
    // A device may bring the self-signing key's signature with its keys.
    let second = server.device_of(&alice, "SECOND");
    let second_keys = TestDeviceKeys::new(alice.id(), "SECOND");
    let signed = keys.sign_device(second_keys.identity());
    post(&second, "keys/upload", json!({ "device_keys": signed }));
    let told = alice.query_keys(&[alice.id()])["device_keys"][alice.id()]["SECOND"].clone();
    assert_eq!(told["signatures"], signed["signatures"]);
    // The same keys again without that signature do not take it away.
    post(&second, "keys/upload", json!({ "device_keys": second_keys.identity() }));
    let told = alice.query_keys(&[alice.id()])["device_keys"][alice.id()]["SECOND"].clone();
    assert_eq!(told["signatures"], signed["signatures"]);
}

#[test]
fn new_signing_keys_and_signatures_are_told_to_whom_they_concern() {
    let server = TestServer::start();
    let (alice, bob, carol) = (register(&server, "alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    bob.join(&room);
    let device = alice.upload_keys(&[]);
    let of_bob = bob.upload_signing_keys();
    for user in [&alice, &bob, &carol] {
        user.initial_sync();
    }
    let news = |user: &TestUser| user.sync(Duration::ZERO)["device_lists"]["changed"].clone();
    let keys = alice.upload_signing_keys();
    assert_eq!(
        (news(&alice), news(&bob), news(&carol)),
        (json!([alice.id()]), json!([alice.id()]), Value::Null)
    );
    post(&alice, SIGNING, keys.upload());
    assert_eq!((news(&alice), news(&bob)), (Value::Null, Value::Null), "the same again is no news");
    let own = json!({ alice.id(): { device.device_id(): keys.sign_device(device.identity()) } });
    failures(&alice, own.clone());
    assert_eq!((news(&alice), news(&bob)), (json!([alice.id()]), json!([alice.id()])));
    failures(&alice, own);
    assert_eq!((news(&alice), news(&bob)), (Value::Null, Value::Null));
    // That alice has verified bob is for her own devices alone.
    failures(&alice, json!({ bob.id(): { of_bob.master_public(): keys.sign_user(of_bob.master()) } }));
    assert_eq!((news(&alice), news(&bob)), (json!([bob.id()]), Value::Null));
    // And so is another user-signing key.
    let mut body = json!({ "user_signing_key": TestSigningKeys::new(alice.id()).user_signing() });
    refused(post(&alice, SIGNING, body.clone()), 400, "M_INVALID_SIGNATURE");
    body["user_signing_key"] = keys.another_user_signing();
    let session = post(&alice, SIGNING, body.clone()).1["session"].clone();
    body["auth"] = password("alice", "alice", &session);
    assert_eq!(post(&alice, SIGNING, body), (200, json!({})));
    assert_eq!((news(&alice), news(&bob)), (json!([alice.id()]), Value::Null));
    assert_eq!(sync(&carol, "").get("device_lists"), None);
}

#[test]
fn nothing_is_kept_for_an_account_that_was_closed_while_its_request_was_under_way() {
    let server = TestServer::start();
    let alice = register(&server, "alice");
    let (keys, signing) = (alice.upload_keys(&[]), alice.upload_signing_keys());
    let id = UserId::parse(alice.id()).expect("a user id");
    let upload = TestSigningKeys::new(alice.id()).upload();
    let new = NewSigningKeys::read(&id, upload.as_object().expect("an object")).expect("keys").expect("some");
    let signed =
        json!({ alice.id(): { keys.device_id(): signing.sign_device(keys.identity()) } }).to_string();
    let signed: UploadedSignatures<'_> = serde_json::from_str(&signed).expect("signatures");
    let auth_data = ObjectText::try_from(&b"{}"[..]).expect("an object");
    let backup = NewKeyBackup { algorithm: "any".to_owned(), auth_data };
    server.homeserver().deactivate(&id, false).expect("closed");
    let devices = server.homeserver().devices();
    assert!(devices.upload_signing_keys(&id, new, true).is_err());
    let kept = devices.upload_signatures(&id, &signed);
    assert!(kept.is_err() || kept.is_ok_and(|answer| answer["failures"] != json!({})));
    assert!(devices.create_key_backup(&id, backup).is_err());
    let left =
        server.homeserver().store.read(|db| db.cross_signing_key(&id, KeyUsage::Master)).expect("read");
    assert_eq!(left, None);
}

#[test]
fn what_is_signed_is_the_text_that_was_uploaded() {
    let server = TestServer::start();
    let alice = register(&server, "alice");
    let mut upload = TestSigningKeys::new(alice.id()).upload();
    // Written in another way it would be another text, and no signature of it good any more.
    upload["master_key"]["more"] = json!(1.0);
    assert_eq!(post(&alice, SIGNING, upload), (200, json!({})));
    let told = alice.query_keys(&[alice.id()])["master_keys"][alice.id()]["more"].to_string();
    assert_eq!(told, "1.0");
}
