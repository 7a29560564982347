//! Key backups (client-server API, "Server-side key backups"), rule by rule.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;

use crate::common::client::V3;
use crate::common::wait::wait_until;
use crate::common::{ProcessServer, invariants};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Map, Value, json};

const ALGORITHM: &str = "m.megolm_backup.v1.curve25519-aes-sha2";
const ROOM: &str = "!room:example.org";
const OTHER: &str = "!other:example.org";

fn version_path(version: &str) -> String {
    format!("{V3}/room_keys/version/{}", segment(version))
}

fn keys_path(version: &str, names: &[&str]) -> String {
    let names: String = names.iter().map(|name| format!("/{}", segment(name))).collect();
    format!("{V3}/room_keys/keys{names}?version={}", segment(version))
}

fn auth_data(key: &str) -> Value {
    json!({ "public_key": key, "signatures": { "@a:b": { "ed25519:X": "c2ln" } } })
}

fn create(user: &TestUser) -> String {
    let body = json!({ "algorithm": ALGORITHM, "auth_data": auth_data("abc") });
    let answer = user.post(&format!("{V3}/room_keys/version"), body);
    answer["version"].as_str().expect("a version").to_owned()
}

/// A key with this quality, and what tells it from others.
fn key(verified: bool, index: u64, forwarded: u64, what: &str) -> Value {
    json!({
        "first_message_index": index, "forwarded_count": forwarded, "is_verified": verified,
        "session_data": { "ciphertext": what, "ephemeral": "e", "mac": "m" },
    })
}

fn put(user: &TestUser, version: &str, session: &str, key: Value) -> Value {
    user.put(&keys_path(version, &[ROOM, session]), key)
}

fn etag(answer: &Value) -> &str {
    answer["etag"].as_str().unwrap_or_else(|| panic!("no etag in {answer}"))
}

#[track_caller]
fn refused(
    user: &TestUser,
    method: &str,
    path: &str,
    body: Option<Value>,
    status: u16,
    errcode: &str,
) -> Value {
    let (got, answer) = user.request(method, path, body);
    assert_eq!((got, answer["errcode"].as_str()), (status, Some(errcode)), "{method} {path}: {answer}");
    answer
}

#[test]
fn a_backup_has_versions_and_the_last_one_is_current() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let current = format!("{V3}/room_keys/version");
    refused(&alice, "GET", &current, None, 404, "M_NOT_FOUND");
    let first = create(&alice);
    let told = alice.get(&current);
    let expected =
        json!({ "algorithm": ALGORITHM, "auth_data": auth_data("abc"), "version": first, "count": 0 });
    for (field, value) in expected.as_object().expect("an object") {
        assert_eq!(told[field], *value, "{told}");
    }
    assert_eq!(alice.get(&version_path(&first)), told, "with an etag, too: {}", etag(&told));
    let second = create(&alice);
    assert_ne!(first, second);
    assert_eq!(alice.get(&current)["version"], second);
    assert_eq!(alice.get(&version_path(&first))["version"], first, "the former one can still be read");
    refused(&bob, "GET", &current, None, 404, "M_NOT_FOUND");
    refused(&bob, "GET", &version_path(&first), None, 404, "M_NOT_FOUND");
    for wrong in ["3", "0", "-1", "01", "one", "99999999999999999999"] {
        refused(&alice, "GET", &version_path(wrong), None, 404, "M_NOT_FOUND");
    }
}

#[test]
fn keys_are_backed_up_and_read_back_one_by_one_by_room_and_all_together() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = create(&alice);
    // Ids of sessions are base64, which has slashes and pluses.
    let (one, two, three) = (key(true, 0, 0, "1"), key(false, 5, 1, "2"), key(false, 0, 0, "3"));
    let answer = put(&alice, &version, "a/b+c", one.clone());
    assert_eq!(answer["count"], 1);
    let answer = alice.put(&keys_path(&version, &[ROOM]), json!({ "sessions": { "s2": two } }));
    assert_eq!(answer["count"], 2);
    let body = json!({ "rooms": { ROOM: { "sessions": {} }, OTHER: { "sessions": { "s3": three } } } });
    let answer = alice.put(&keys_path(&version, &[]), body);
    assert_eq!(answer["count"], 3);
    let told = alice.get(&version_path(&version));
    assert_eq!((&told["count"], &told["etag"]), (&json!(3), &answer["etag"]));

    assert_eq!(alice.get(&keys_path(&version, &[ROOM, "a/b+c"])), one);
    let room = json!({ "sessions": { "a/b+c": one, "s2": two } });
    assert_eq!(alice.get(&keys_path(&version, &[ROOM])), room);
    let all = json!({ "rooms": { ROOM: room, OTHER: { "sessions": { "s3": three } } } });
    assert_eq!(alice.get(&keys_path(&version, &[])), all);
    refused(&alice, "GET", &keys_path(&version, &[ROOM, "s3"]), None, 404, "M_NOT_FOUND");
}

#[test]
fn an_empty_backup_is_empty_maps_and_only_a_single_key_is_not_found() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = create(&alice);
    assert_eq!(alice.get(&keys_path(&version, &[])), json!({ "rooms": {} }));
    assert_eq!(alice.get(&keys_path(&version, &[ROOM])), json!({ "sessions": {} }));
    refused(&alice, "GET", &keys_path(&version, &[ROOM, "s"]), None, 404, "M_NOT_FOUND");
    for names in [&[][..], &[ROOM], &[ROOM, "s"]] {
        refused(&alice, "GET", &keys_path("2", names), None, 404, "M_NOT_FOUND");
        refused(&alice, "DELETE", &keys_path("2", names), None, 404, "M_NOT_FOUND");
    }
}

#[test]
fn a_better_key_replaces_one_that_is_there_and_no_other_does() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = create(&alice);
    let path = keys_path(&version, &[ROOM, "s"]);
    // Each with what stays: the better of the two.
    let steps = [
        (key(false, 5, 5, "a"), "a", "the first one"),
        (key(false, 5, 6, "b"), "a", "forwarded more often"),
        (key(false, 6, 0, "c"), "a", "a higher index, however seldom it was forwarded"),
        (key(false, 5, 5, "d"), "a", "no better"),
        (key(false, 5, 4, "e"), "e", "forwarded less often"),
        (key(false, 4, 9, "f"), "f", "a lower index, however often it was forwarded"),
        (key(true, 90, 90, "g"), "g", "verified, whatever the numbers are"),
        (key(false, 0, 0, "h"), "g", "not verified, whatever the numbers are"),
        (key(true, 89, 99, "i"), "i", "a lower index"),
        (key(true, 89, 98, "j"), "j", "forwarded less often"),
    ];
    let mut before = "0".to_owned();
    for (new, stays, why) in steps {
        let replaces = new["session_data"]["ciphertext"] == stays;
        let answer = put(&alice, &version, "s", new);
        assert_eq!(alice.get(&path)["session_data"]["ciphertext"], stays, "{why}");
        assert_eq!(
            (answer["count"].as_u64(), etag(&answer) != before),
            (Some(1), replaces),
            "{why}: {answer}"
        );
        etag(&answer).clone_into(&mut before);
    }
}

#[test]
fn the_etag_changes_if_a_key_did_and_never_else() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = create(&alice);
    let now = || etag(&alice.get(&version_path(&version))).to_owned();
    let empty = now();
    let sessions = json!({ "sessions": { "s1": key(false, 1, 1, "a"), "s2": key(false, 1, 1, "b") } });
    let path = keys_path(&version, &[ROOM]);
    let first = alice.put(&path, sessions.clone());
    assert_ne!(etag(&first), empty);
    assert_eq!(alice.put(&path, sessions), first, "the same again");
    assert_eq!(alice.put(&path, json!({ "sessions": {} })), first, "nothing at all");
    alice.put(&version_path(&version), json!({ "algorithm": ALGORITHM, "auth_data": auth_data("new") }));
    assert_eq!(now(), etag(&first), "another auth_data is no other key");
    let (_, answer) = alice.request("DELETE", &keys_path(&version, &[ROOM, "s3"]), None);
    assert_eq!(answer, first, "what is not there is not deleted");
    let (_, answer) = alice.request("DELETE", &keys_path(&version, &[ROOM, "s1"]), None);
    assert_ne!(etag(&answer), etag(&first));
    assert_eq!((answer["count"].as_u64(), now().as_str()), (Some(1), etag(&answer)));
}

#[test]
fn keys_are_deleted_one_by_one_by_room_and_all_together() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = create(&alice);
    let sessions = |count: usize| {
        let sessions: Map<_, _> = (0..count).map(|n| (format!("s{n}"), key(false, 0, 0, "k"))).collect();
        json!({ "sessions": sessions })
    };
    // More than are deleted in one commit.
    alice.put(&keys_path(&version, &[]), json!({ "rooms": { ROOM: sessions(700), OTHER: sessions(3) } }));
    let delete = |names: &[&str]| {
        let (status, answer) = alice.request("DELETE", &keys_path(&version, names), None);
        assert_eq!((status, etag(&answer).is_empty()), (200, false));
        answer["count"].as_u64().expect("a count")
    };
    assert_eq!(delete(&[ROOM, "s1"]), 702);
    assert_eq!(delete(&[ROOM]), 3);
    assert_eq!(alice.get(&keys_path(&version, &[ROOM])), json!({ "sessions": {} }));
    assert_eq!(delete(&[]), 0);
    assert_eq!(alice.get(&keys_path(&version, &[])), json!({ "rooms": {} }));
    assert_eq!(put(&alice, &version, "s", key(false, 0, 0, "again"))["count"], 1);
}

#[test]
fn only_the_current_version_is_written_to_and_who_tries_another_is_told_which_that_is() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let write = |version: &str| {
        [
            ("PUT", keys_path(version, &[ROOM, "s"]), key(false, 0, 0, "k")),
            ("PUT", keys_path(version, &[ROOM]), json!({ "sessions": { "s": key(false, 0, 0, "k") } })),
            ("PUT", keys_path(version, &[]), json!({ "rooms": {} })),
        ]
    };
    for (method, path, body) in write("1") {
        refused(&alice, method, &path, Some(body), 404, "M_NOT_FOUND");
    }
    let (first, second) = (create(&alice), create(&alice));
    for (method, path, body) in write(&first) {
        let answer = refused(&alice, method, &path, Some(body), 403, "M_WRONG_ROOM_KEYS_VERSION");
        assert_eq!(answer["current_version"], second);
    }
    for (method, path, body) in write("3") {
        refused(&alice, method, &path, Some(body), 404, "M_NOT_FOUND");
    }
    assert_eq!(alice.get(&version_path(&first))["count"], 0);
    alice.request("DELETE", &version_path(&first), None);
    for (method, path, body) in write(&first) {
        let answer = refused(&alice, method, &path, Some(body), 403, "M_WRONG_ROOM_KEYS_VERSION");
        assert_eq!(answer["current_version"], second, "a deleted one is none that is current, either");
    }
    let third = create(&alice);
    let path = keys_path(&second, &[ROOM, "s"]);
    let answer = refused(&alice, "PUT", &path, Some(key(false, 0, 0, "k")), 403, "M_WRONG_ROOM_KEYS_VERSION");
    assert_eq!(answer["current_version"], third);
}

#[test]
fn a_former_version_is_still_read_and_emptied() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let former = create(&alice);
    put(&alice, &former, "s", key(false, 0, 0, "old"));
    let current = create(&alice);
    assert_eq!(alice.get(&keys_path(&current, &[])), json!({ "rooms": {} }), "a new version is empty");
    assert_eq!(alice.get(&keys_path(&former, &[ROOM, "s"]))["session_data"]["ciphertext"], "old");
    let (status, answer) = alice.request("DELETE", &keys_path(&former, &[]), None);
    assert_eq!((status, answer["count"].as_u64()), (200, Some(0)));
}

#[test]
fn a_deleted_version_is_gone_and_deleting_it_twice_is_no_error() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (first, second) = (create(&alice), create(&alice));
    put(&alice, &second, "s", key(false, 0, 0, "k"));
    refused(&alice, "DELETE", &version_path("3"), None, 404, "M_NOT_FOUND");
    for _ in 0..2 {
        assert_eq!(alice.request("DELETE", &version_path(&second), None), (200, json!({})));
    }
    refused(&alice, "GET", &version_path(&second), None, 404, "M_NOT_FOUND");
    refused(&alice, "GET", &keys_path(&second, &[]), None, 404, "M_NOT_FOUND");
    refused(&alice, "GET", &keys_path(&second, &[ROOM, "s"]), None, 404, "M_NOT_FOUND");
    refused(&alice, "DELETE", &keys_path(&second, &[]), None, 404, "M_NOT_FOUND");
    let update = json!({ "algorithm": ALGORITHM, "auth_data": {} });
    refused(&alice, "PUT", &version_path(&second), Some(update), 404, "M_NOT_FOUND");
    let third = create(&alice);
    assert!(third != second && third != first, "{third} was there before");
    assert_eq!(alice.get(&keys_path(&third, &[])), json!({ "rooms": {} }));
    for version in [&first, &second, &first] {
        assert_eq!(alice.request("DELETE", &version_path(version), None).0, 200);
    }
    assert_eq!(alice.get(&format!("{V3}/room_keys/version"))["version"], third);
}

#[test]
fn once_the_newest_version_is_deleted_the_one_before_it_is_current_again() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let current = format!("{V3}/room_keys/version");
    let versions = [create(&alice), create(&alice), create(&alice)];
    let before = put(&alice, &versions[2], "s", key(false, 0, 0, "of the third"));
    for version in [&versions[1], &versions[2]] {
        assert_eq!(alice.request("DELETE", &version_path(version), None).0, 200);
    }
    let told = alice.get(&current);
    assert_eq!((&told["version"], &told["count"]), (&json!(versions[0]), &json!(0)));
    assert_eq!(before["count"], 1, "of another version, which nobody sees any more");
    let put = put(&alice, &versions[0], "s", key(false, 0, 0, "of the first"));
    assert_eq!(put["count"], 1, "it is written to");
    assert_ne!(etag(&put), etag(&told));
    assert_eq!(
        alice.get(&keys_path(&versions[0], &[ROOM, "s"]))["session_data"]["ciphertext"],
        "of the first"
    );
    for version in &versions[1..] {
        let (path, body) = (keys_path(version, &[ROOM, "s"]), key(false, 0, 0, "k"));
        let answer = refused(&alice, "PUT", &path, Some(body), 403, "M_WRONG_ROOM_KEYS_VERSION");
        assert_eq!(answer["current_version"], versions[0]);
    }
    let fourth = create(&alice);
    assert!(!versions.contains(&fourth), "{fourth} was there before");
    // "Delete the key storage" of a client: what is named is deleted until none is.
    let mut deleted = Vec::new();
    while let (200, told) = alice.request("GET", &current, None) {
        let version = told["version"].as_str().expect("a version").to_owned();
        assert_eq!(alice.request("DELETE", &version_path(&version), None).0, 200);
        deleted.push(version);
    }
    assert_eq!(deleted, [fourth.clone(), versions[0].clone()]);
    refused(&alice, "GET", &current, None, 404, "M_NOT_FOUND");
    for version in versions.iter().chain([&fourth]) {
        refused(&alice, "GET", &version_path(version), None, 404, "M_NOT_FOUND");
        let (path, body) = (keys_path(version, &[ROOM, "s"]), key(false, 0, 0, "k"));
        refused(&alice, "PUT", &path, Some(body), 404, "M_NOT_FOUND");
    }
}

#[test]
fn the_auth_data_of_a_version_is_replaced_in_place_and_nothing_else_of_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = create(&alice);
    put(&alice, &version, "s", key(false, 0, 0, "k"));
    let body = |version: Option<&str>, algorithm: &str| {
        let mut body = json!({ "algorithm": algorithm, "auth_data": auth_data("new") });
        if let Some(version) = version {
            body["version"] = version.into();
        }
        body
    };
    let path = version_path(&version);
    refused(&alice, "PUT", &path, Some(body(Some("2"), ALGORITHM)), 400, "M_INVALID_PARAM");
    refused(&alice, "PUT", &path, Some(body(None, "m.other")), 400, "M_INVALID_PARAM");
    refused(&alice, "PUT", &version_path("2"), Some(body(None, ALGORITHM)), 404, "M_NOT_FOUND");
    assert_eq!(alice.get(&path)["auth_data"], auth_data("abc"), "nothing was changed");
    for version in [None, Some(version.as_str())] {
        assert_eq!(alice.put(&path, body(version, ALGORITHM)), json!({}));
    }
    let told = alice.get(&format!("{V3}/room_keys/version"));
    assert_eq!((&told["version"], &told["count"]), (&json!(version), &json!(1)));
    assert_eq!(told["auth_data"], auth_data("new"));
    let former = version;
    create(&alice);
    alice.put(&version_path(&former), json!({ "algorithm": ALGORITHM, "auth_data": { "a": 1 } }));
    assert_eq!(alice.get(&version_path(&former))["auth_data"], json!({ "a": 1 }), "of a former one, too");
}

#[test]
fn what_is_no_backup_and_no_key_is_refused_and_changes_nothing() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let new = format!("{V3}/room_keys/version");
    let deep = |levels: usize| (0..levels).fold(json!(1), |inner, _| json!([inner]));
    for (body, status, errcode) in [
        (json!({}), 400, "M_MISSING_PARAM"),
        (json!({ "algorithm": ALGORITHM }), 400, "M_MISSING_PARAM"),
        (json!({ "auth_data": {} }), 400, "M_MISSING_PARAM"),
        (json!({ "algorithm": 1, "auth_data": {} }), 400, "M_BAD_JSON"),
        (json!({ "algorithm": "", "auth_data": {} }), 400, "M_INVALID_PARAM"),
        (json!({ "algorithm": "x".repeat(256), "auth_data": {} }), 400, "M_INVALID_PARAM"),
        (json!({ "algorithm": ALGORITHM, "auth_data": [] }), 400, "M_BAD_JSON"),
        (json!({ "algorithm": ALGORITHM, "auth_data": "x" }), 400, "M_BAD_JSON"),
        (json!({ "algorithm": ALGORITHM, "auth_data": { "a": deep(100) } }), 400, "M_BAD_JSON"),
        (json!({ "algorithm": ALGORITHM, "auth_data": { "a": "x".repeat(65_536) } }), 413, "M_TOO_LARGE"),
        (json!([ALGORITHM, {}]), 400, "M_BAD_JSON"),
    ] {
        refused(&alice, "POST", &new, Some(body), status, errcode);
    }
    refused(&alice, "GET", &new, None, 404, "M_NOT_FOUND");
    let version = create(&alice);
    let with = |field: &str, value: Value| {
        let mut key = key(false, 0, 0, "k");
        key[field] = value;
        key
    };
    let without = |field: &str| {
        let mut key = key(false, 0, 0, "k");
        key.as_object_mut().expect("an object").remove(field);
        key
    };
    let bad = [
        (without("first_message_index"), 400, "M_BAD_JSON"),
        (without("forwarded_count"), 400, "M_BAD_JSON"),
        (without("is_verified"), 400, "M_BAD_JSON"),
        (without("session_data"), 400, "M_BAD_JSON"),
        (with("first_message_index", json!(-1)), 400, "M_BAD_JSON"),
        (with("first_message_index", json!("0")), 400, "M_BAD_JSON"),
        (with("first_message_index", json!(0.5)), 400, "M_BAD_JSON"),
        (with("first_message_index", json!(1_u64 << 53)), 400, "M_BAD_JSON"),
        (with("forwarded_count", json!(u64::MAX)), 400, "M_BAD_JSON"),
        (with("forwarded_count", Value::Null), 400, "M_BAD_JSON"),
        (with("is_verified", json!(1)), 400, "M_BAD_JSON"),
        (with("is_verified", json!("true")), 400, "M_BAD_JSON"),
        (with("session_data", json!("text")), 400, "M_BAD_JSON"),
        (with("session_data", json!([])), 400, "M_BAD_JSON"),
        (with("session_data", json!({ "a": deep(100) })), 400, "M_BAD_JSON"),
        (with("session_data", json!({ "a": "x".repeat(65_536) })), 413, "M_TOO_LARGE"),
        (json!([0, 0, false, {}]), 400, "M_BAD_JSON"),
        (json!(null), 400, "M_BAD_JSON"),
    ];
    for (bad, status, errcode) in bad {
        let good = key(false, 0, 0, "k");
        let sessions = json!({ "sessions": { "good": good, "bad": bad } });
        refused(&alice, "PUT", &keys_path(&version, &[ROOM, "bad"]), Some(bad), status, errcode);
        refused(&alice, "PUT", &keys_path(&version, &[ROOM]), Some(sessions.clone()), status, errcode);
        let rooms = json!({ "rooms": { ROOM: sessions } });
        refused(&alice, "PUT", &keys_path(&version, &[]), Some(rooms), status, errcode);
    }
    let good = || json!({ "sessions": { "s": key(false, 0, 0, "k") } });
    for (names, body, status, errcode) in [
        (&[][..], json!({}), 400, "M_MISSING_PARAM"),
        (&[], json!({ "rooms": [] }), 400, "M_BAD_JSON"),
        (&[], json!({ "rooms": { ROOM: [] } }), 400, "M_BAD_JSON"),
        (&[], json!({ "rooms": { ROOM: {} } }), 400, "M_MISSING_PARAM"),
        (&[], json!({ "rooms": { ROOM: good(), "room": good() } }), 400, "M_INVALID_PARAM"),
        (&[], json!({ "rooms": { "x".repeat(10_000): good() } }), 400, "M_INVALID_PARAM"),
        (&[ROOM], json!({}), 400, "M_MISSING_PARAM"),
        (&[ROOM], json!({ "sessions": [] }), 400, "M_BAD_JSON"),
        (&[ROOM], json!({ "sessions": { "": key(false, 0, 0, "k") } }), 400, "M_INVALID_PARAM"),
        (
            &[ROOM],
            json!({ "sessions": { "x".repeat(10_000): key(false, 0, 0, "k") } }),
            400,
            "M_INVALID_PARAM",
        ),
        (&["room"], good(), 400, "M_INVALID_PARAM"),
    ] {
        refused(&alice, "PUT", &keys_path(&version, names), Some(body), status, errcode);
    }
    let path = format!("{V3}/room_keys/keys/{}/s", segment(ROOM));
    for method in ["GET", "PUT", "DELETE"] {
        let body = (method == "PUT").then(|| key(false, 0, 0, "k"));
        refused(&alice, method, &path, body, 400, "M_MISSING_PARAM");
    }
    let told = alice.get(&version_path(&version));
    assert_eq!((&told["count"], etag(&told)), (&json!(0), "0"), "nothing was kept of any of them");
    let stranger = TestUser::new(server.url(), "@nobody:example.org", "no such token");
    refused(&stranger, "GET", &keys_path(&version, &[]), None, 401, "M_UNKNOWN_TOKEN");
}

#[test]
fn versions_are_bounded_for_each_user() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for _ in 0..100 {
        create(&alice);
    }
    let body = json!({ "algorithm": ALGORITHM, "auth_data": {} });
    let new = format!("{V3}/room_keys/version");
    refused(&alice, "POST", &new, Some(body.clone()), 403, "M_RESOURCE_LIMIT_EXCEEDED");
    assert_eq!(alice.get(&new)["version"], "100");
    create(&bob);
    alice.request("DELETE", &version_path("1"), None);
    assert_eq!(alice.post(&new, body)["version"], "101");
    // Those that were deleted count for nothing, however many they were.
    for _ in 0..150 {
        let version = create(&bob);
        bob.request("DELETE", &version_path(&version), None);
    }
    assert_eq!(create(&bob), "152");
}

/// A backup of many large keys: the bytes of its JSON are some 30 MiB, more than sockets take in. Its version.
fn large_backup(user: &TestUser) -> String {
    let version = create(user);
    let data = "x".repeat(60_000);
    for room in 0..8 {
        let sessions: Map<_, _> = (0..64).map(|n| (format!("session{n}"), key(true, n, 0, &data))).collect();
        let body = json!({ "sessions": sessions });
        user.put(&keys_path(&version, &[&format!("!room{room}:example.org")]), body);
    }
    assert_eq!(user.get(&version_path(&version))["count"], 512);
    version
}

/// A restore that is asked for over a connection of its own: what the head of the answer says, and the rest.
fn ask(user: &TestUser, method: &str, minor: u8, version: &str) -> (String, BufReader<TcpStream>) {
    let mut stream = TcpStream::connect(user.url().trim_start_matches("http://")).expect("a connection");
    stream.set_read_timeout(Some(std::time::Duration::from_secs(60))).expect("a time-out");
    let path = keys_path(version, &[]);
    let token = user.token();
    write!(stream, "{method} {path} HTTP/1.{minor}\r\nHost: x\r\nAuthorization: Bearer {token}\r\n\r\n")
        .expect("it is sent");
    let mut reader = BufReader::new(stream);
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert!(reader.read_line(&mut head).expect("a line of the head") > 0, "{head}");
    }
    (head.to_ascii_lowercase(), reader)
}

/// The body of chunks, and whether the last one came.
fn chunks(mut reader: impl BufRead) -> (Vec<u8>, bool) {
    let mut body = Vec::new();
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return (body, false);
        }
        let size = usize::from_str_radix(line.trim_end(), 16).unwrap_or_else(|_| panic!("a size: {line:?}"));
        let begun = body.len();
        body.resize(begun + size + 2, 0);
        if reader.read_exact(&mut body[begun..]).is_err() {
            return (body, false);
        }
        assert_eq!(body.split_off(begun + size), b"\r\n");
        if size == 0 {
            return (body, true);
        }
    }
}

#[test]
fn a_large_backup_comes_in_chunks_or_up_to_the_end_of_the_connection() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = large_backup(&alice);
    let all = alice.get(&keys_path(&version, &[]));
    let rooms = all["rooms"].as_object().expect("rooms");
    assert_eq!(rooms.len(), 8);
    for room in rooms.values() {
        let sessions = room["sessions"].as_object().expect("sessions");
        assert_eq!(sessions.len(), 64);
        assert!(sessions.iter().all(|(name, key)| *name == format!("session{}", key["first_message_index"])));
    }
    let (room, keys) = rooms.iter().next().expect("a room");
    assert_eq!(alice.get(&keys_path(&version, &[room])), *keys);

    let (head, mut reader) = ask(&alice, "GET", 1, &version);
    assert!(
        head.contains("\r\ntransfer-encoding: chunked\r\n") && !head.contains("content-length"),
        "{head}"
    );
    let (body, ended) = chunks(&mut reader);
    assert!(ended);
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), all);
    // The connection serves on.
    let stream = reader.get_mut();
    write!(stream, "GET {V3}/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n").expect("it is sent");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200 "), "{text}");

    let (head, mut reader) = ask(&alice, "GET", 0, &version);
    assert!(head.starts_with("http/1.0 200") && head.contains("\r\nconnection: close\r\n"), "{head}");
    assert!(!head.contains("transfer-encoding") && !head.contains("content-length"), "{head}");
    let mut body = Vec::new();
    reader.read_to_end(&mut body).expect("a body");
    assert_eq!(serde_json::from_slice::<Value>(&body).expect("JSON"), all);

    let (head, mut reader) = ask(&alice, "HEAD", 1, &version);
    assert!(head.starts_with("http/1.1 200"), "{head}");
    write!(reader.get_mut(), "GET {V3}/login HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n")
        .expect("sent");
    let mut text = String::new();
    reader.read_to_string(&mut text).expect("an answer");
    assert!(text.starts_with("HTTP/1.1 200 "), "a HEAD has no body: {text}");
}

#[test]
fn who_reads_a_backup_slowly_keeps_nobody_from_writing_and_no_part_of_it_passes_for_all() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let version = large_backup(&alice);
    let (_, slow) = ask(&alice, "GET", 1, &version);
    let (_, slow_too) = ask(&alice, "GET", 1, &version);
    // It is being sent, and is not read. Keys that become better meanwhile are in it, each whole.
    let better = key(true, 0, 0, "better");
    let sessions: Map<_, _> = (0..64).map(|n| (format!("session{n}"), better.clone())).collect();
    alice.put(&keys_path(&version, &["!room7:example.org"]), json!({ "sessions": sessions }));
    let (body, ended) = chunks(slow);
    assert!(ended);
    let seen: Value = serde_json::from_slice(&body).expect("JSON");
    let last = &seen["rooms"]["!room7:example.org"]["sessions"]["session9"];
    assert_eq!(last, &better, "nothing of the database was held on to");
    // A version that is deleted meanwhile breaks off.
    assert_eq!(alice.request("DELETE", &version_path(&version), None).0, 200);
    let (body, ended) = chunks(slow_too);
    assert!(!ended && serde_json::from_slice::<Value>(&body).is_err(), "{} bytes", body.len());
}

#[test]
fn what_was_deleted_leaves_the_database_and_a_closed_account_takes_its_backups_along() {
    let mut server = ProcessServer::start(&[]);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let many = || {
        let sessions: Map<_, _> = (0..600).map(|n| (format!("s{n}"), key(false, 0, 0, "k"))).collect();
        json!({ "sessions": sessions })
    };
    let (first, second) = (create(&alice), create(&alice));
    for (user, version) in [(&alice, &second), (&bob, &create(&bob))] {
        user.put(&keys_path(version, &[ROOM]), many());
    }
    alice.request("DELETE", &version_path(&second), None);
    // Whether or not they were all deleted by then.
    server.kill();
    let count = |sql: &str| {
        let database = rusqlite::Connection::open(server.folder().join("doorstep.db")).expect("a database");
        database.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count")
    };
    assert_eq!(count("SELECT count(*) FROM key_backups WHERE deleted > 0"), 1);
    server.resume();
    let count = |sql: &str| {
        let database = rusqlite::Connection::open(server.folder().join("doorstep.db")).expect("a database");
        database.query_row(sql, [], |row| row.get::<_, i64>(0)).expect("a count")
    };
    let sessions = "SELECT count(*) FROM key_backup_sessions";
    wait_until("the keys of the deleted version are gone", || count(sessions) == 600);
    alice.get(&version_path(&first));
    refused(&alice, "GET", &version_path(&second), None, 404, "M_NOT_FOUND");

    let auth = json!({
        "type": "m.login.password", "password": "bob",
        "identifier": { "type": "m.id.user", "user": "bob" },
    });
    let path = format!("{V3}/account/deactivate");
    let (_, challenge) = bob.request("POST", &path, Some(json!({})));
    let mut auth = auth;
    auth["session"] = challenge["session"].clone();
    assert_eq!(bob.request("POST", &path, Some(json!({ "auth": auth }))).0, 200);
    wait_until("nothing of bob's is left", || {
        count(sessions) == 0 && count("SELECT count(*) FROM key_backups WHERE user_id LIKE '@bob:%'") == 0
    });
    let (wrong, _) = invariants::check(server.folder(), 0);
    assert!(wrong.is_empty(), "{wrong:#?}");
}
