//! Dehydrated devices (MSC3814), as clients put, wake and replace them.

use crate::common::client::{V3, post, sync};
use doorstep::TestServer;
use doorstep::testing::{TestDeviceKeys, TestSigningKeys, TestUser, segment};
use serde_json::{Map, Value, json};

const PATH: &str = "/_matrix/client/unstable/org.matrix.msc3814.v1/dehydrated_device";

fn data(what: &str) -> Value {
    json!({ "algorithm": "org.matrix.msc3814.v2", "device_pickle": what, "nonce": "n" })
}

/// Identity keys as clients make those of dehydrated devices.
fn identity(keys: &TestDeviceKeys) -> Value {
    let mut object = keys.identity();
    let members = object.as_object_mut().expect("an object");
    members.remove("signatures");
    members.insert("dehydrated".into(), json!(true));
    keys.sign(object)
}

/// A dehydrated device with two one-time keys, and its keys.
fn device(user: &TestUser, id: &str) -> (Value, TestDeviceKeys) {
    let keys = TestDeviceKeys::new(user.id(), id);
    let body = json!({
        "device_id": id,
        "initial_device_display_name": "Dehydrated device",
        "device_data": data(id),
        "device_keys": identity(&keys),
        "one_time_keys": keys.one_time_keys(&["A", "B"]),
        "fallback_keys": keys.fallback_key("F"),
    });
    (body, keys)
}

fn put(user: &TestUser, id: &str) -> TestDeviceKeys {
    let (body, keys) = device(user, id);
    assert_eq!(user.put(PATH, body), json!({ "device_id": id }));
    keys
}

#[track_caller]
fn refused(user: &TestUser, method: &str, path: &str, body: Option<Value>, status: u16, errcode: &str) {
    let (got, answer) = user.request(method, path, body);
    assert_eq!((got, answer["errcode"].as_str()), (status, Some(errcode)), "{method} {path}: {answer}");
}

fn send(from: &TestUser, to: &TestUser, device: &str, number: usize) -> u16 {
    let path = format!("{V3}/sendToDevice/m.room.encrypted/{device}-{number}");
    let messages = json!({ to.id(): { device: { "number": number } } });
    from.request("PUT", &path, Some(json!({ "messages": messages }))).0
}

fn events_path(device: &str) -> String {
    format!("{PATH}/{}/events", segment(device))
}

fn numbers(answer: &Value) -> Vec<u64> {
    let events = answer["events"].as_array().unwrap_or_else(|| panic!("no events in {answer}"));
    events.iter().map(|event| event["content"]["number"].as_u64().expect("a number")).collect()
}

#[test]
fn a_dehydrated_device_is_kept_with_its_keys_and_told_to_everybody() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    refused(&alice, "GET", PATH, None, 404, "M_NOT_FOUND");
    refused(&alice, "DELETE", PATH, None, 404, "M_NOT_FOUND");
    let room = alice.create_room();
    bob.join(&room);
    let since = sync(&bob, "")["next_batch"].as_str().expect("a token").to_owned();
    let signing = alice.upload_signing_keys();
    let (mut body, keys) = device(&alice, "DRY");
    let identity = signing.sign_device(identity(&keys));
    body["device_keys"] = identity.clone();
    assert_eq!(alice.put(PATH, body.clone()), json!({ "device_id": "DRY" }));
    assert_eq!(alice.get(PATH), json!({ "device_id": "DRY", "device_data": data("DRY") }));
    refused(&bob, "GET", PATH, None, 404, "M_NOT_FOUND");
    let told = bob.query_keys(&[alice.id()])["device_keys"][alice.id()]["DRY"].clone();
    assert_eq!(told["dehydrated"], true);
    assert_eq!(told["signatures"], identity["signatures"], "its own, and the self-signing key's");
    let changed = sync(&bob, &format!("since={since}"))["device_lists"]["changed"].clone();
    assert_eq!(changed, json!([alice.id()]));
    let claimed: Vec<String> = (0..4).map(|_| bob.claim_key(alice.id(), "DRY").expect("a key").0).collect();
    assert_eq!(claimed, ["A", "B", "F", "F"].map(|id| format!("signed_curve25519:{id}")));
    // Heard of once, so that some day it counts as a device that may never wake and holds up nobody who writes to it.
    assert!(alice.get(&format!("{V3}/devices/DRY"))["last_seen_ts"].is_u64());
    let flags = alice.get("/_matrix/client/versions")["unstable_features"].clone();
    assert_eq!(flags["org.matrix.msc3814"], true);
}

#[test]
fn nobody_logs_in_on_a_dehydrated_device_and_none_takes_the_place_of_another_device() {
    let server = TestServer::start();
    let alice = TestUser::register(server.url(), "alice");
    put(&alice, "DRY");
    let login = |device: &str| {
        let body = json!({
            "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
            "password": "alice", "device_id": device,
        });
        post(&alice, "login", body)
    };
    let (status, answer) = login("DRY");
    assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")), "{answer}");
    let (status, answer) = login("PHONE");
    assert_eq!(status, 200, "{answer}");
    let (body, _) = device(&alice, "PHONE");
    refused(&alice, "PUT", PATH, Some(body), 400, "M_INVALID_PARAM");
    assert_eq!(alice.get(PATH)["device_id"], "DRY", "the one that was there is still there");
    assert!(alice.query_keys(&[alice.id()])["device_keys"][alice.id()].get("DRY").is_some());
    let phone = TestUser::new(server.url(), alice.id(), answer["access_token"].as_str().expect("a token"));
    assert_eq!(phone.get(&format!("{V3}/account/whoami"))["device_id"], "PHONE");
}

#[test]
fn a_new_one_takes_the_place_of_the_old_one_with_all_that_it_had() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    put(&alice, "FIRST");
    assert_eq!(send(&bob, &alice, "FIRST", 1), 200);
    put(&alice, "SECOND");
    assert_eq!(alice.get(PATH)["device_id"], "SECOND");
    let devices = bob.query_keys(&[alice.id()])["device_keys"][alice.id()].clone();
    assert_eq!(devices.as_object().expect("devices").keys().collect::<Vec<_>>(), ["SECOND"]);
    assert_eq!(bob.claim_key(alice.id(), "FIRST"), None);
    refused(&alice, "POST", &events_path("FIRST"), Some(json!({})), 403, "M_FORBIDDEN");
    assert_eq!(numbers(&alice.post(&events_path("SECOND"), json!({}))), [0_u64; 0]);
    // The same id again is another device all the same.
    assert_eq!(send(&bob, &alice, "SECOND", 2), 200);
    let again = put(&alice, "SECOND");
    assert_eq!(numbers(&alice.post(&events_path("SECOND"), json!({}))), [0_u64; 0]);
    let told = bob.query_keys(&[alice.id()])["device_keys"][alice.id()]["SECOND"]["keys"].clone();
    assert_eq!(told, identity(&again)["keys"]);
    let (status, answer) = alice.request("DELETE", PATH, None);
    assert_eq!((status, answer), (200, json!({ "device_id": "SECOND" })));
    refused(&alice, "GET", PATH, None, 404, "M_NOT_FOUND");
    assert_eq!(bob.query_keys(&[alice.id()])["device_keys"][alice.id()], json!({}));
}

#[test]
fn its_messages_are_read_in_pages_and_stay_until_it_goes() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    put(&alice, "DRY");
    for number in 0..130 {
        assert_eq!(send(&bob, &alice, "DRY", number), 200);
    }
    let all: Vec<u64> = (0..130).collect();
    // As clients do it: until nothing more comes. A client that stopped half way begins anew.
    for _ in 0..2 {
        let (mut read, mut body) = (Vec::new(), json!({}));
        loop {
            let answer = alice.post(&events_path("DRY"), body);
            let some = numbers(&answer);
            body = json!({ "next_batch": answer["next_batch"].as_str().expect("always there") });
            if some.is_empty() {
                break;
            }
            assert!(some.len() <= 100);
            read.extend(some);
        }
        assert_eq!(read, all);
    }
    let first = alice.get(&format!("{}?limit=50", events_path("DRY")));
    assert_eq!(numbers(&first), all[..50]);
    let next = first["next_batch"].as_str().expect("there are more");
    let rest = alice.get(&format!("{}?from={next}", events_path("DRY")));
    assert_eq!((numbers(&rest).as_slice(), rest.get("next_batch")), (&all[50..], None));
    // They are nobody else's: not those of the device that asks, and of no other user.
    assert!(sync(&alice, "").get("to_device").is_none_or(|own| own["events"] == json!([])));
    refused(&bob, "POST", &events_path("DRY"), Some(json!({})), 403, "M_FORBIDDEN");
    refused(&alice, "POST", &events_path("OTHER"), Some(json!({})), 403, "M_FORBIDDEN");
    let own = alice.get(&format!("{V3}/account/whoami"))["device_id"].as_str().expect("an id").to_owned();
    refused(&alice, "POST", &events_path(&own), Some(json!({})), 403, "M_FORBIDDEN");
    for wrong in ["", "d", "d-1", "d01", "1", "dx", "d99999999999999999999"] {
        let body = json!({ "next_batch": wrong });
        refused(&alice, "POST", &events_path("DRY"), Some(body), 400, "M_INVALID_PARAM");
    }
    refused(&alice, "GET", &format!("{}?limit=0", events_path("DRY")), None, 400, "M_INVALID_PARAM");
}

#[test]
fn what_is_no_dehydrated_device_is_refused_and_changes_nothing() {
    let server = TestServer::start();
    let alice = server.user("alice");
    put(&alice, "DRY");
    let with = |member: &str, value: Value| {
        let (mut body, _) = device(&alice, "NEW");
        body[member] = value;
        body
    };
    let without = |member: &str| {
        let (mut body, _) = device(&alice, "NEW");
        body.as_object_mut().expect("an object").remove(member);
        body
    };
    let other = TestDeviceKeys::new(alice.id(), "OTHER");
    let stranger = TestDeviceKeys::new("@eve:example.org", "NEW");
    let mut unsigned = identity(&TestDeviceKeys::new(alice.id(), "NEW"));
    unsigned["keys"]["curve25519:NEW"] = json!("A".repeat(43));
    let many: Map<_, _> = (0..10_000).map(|n| (format!("signed_curve25519:{n}"), json!(n))).collect();
    for (body, status, errcode) in [
        (without("device_id"), 400, "M_MISSING_PARAM"),
        (without("device_data"), 400, "M_MISSING_PARAM"),
        (without("device_keys"), 400, "M_MISSING_PARAM"),
        (with("device_id", json!(1)), 400, "M_BAD_JSON"),
        (with("device_data", json!([])), 400, "M_BAD_JSON"),
        (with("device_data", json!({})), 400, "M_MISSING_PARAM"),
        (with("device_data", json!({ "algorithm": 1 })), 400, "M_BAD_JSON"),
        (with("device_data", json!({ "algorithm": "a", "x": "x".repeat(65_536) })), 413, "M_TOO_LARGE"),
        (with("initial_device_display_name", json!("x".repeat(257))), 400, "M_INVALID_PARAM"),
        (with("device_keys", other.identity()), 400, "M_BAD_JSON"),
        (with("device_keys", stranger.identity()), 400, "M_BAD_JSON"),
        (with("device_keys", unsigned), 400, "M_INVALID_SIGNATURE"),
        (with("one_time_keys", json!(many)), 413, "M_TOO_LARGE"),
        (with("one_time_keys", json!({ "signed_curve25519:A": {} })), 400, "M_BAD_JSON"),
        (json!([]), 400, "M_BAD_JSON"),
    ] {
        refused(&alice, "PUT", PATH, Some(body), status, errcode);
    }
    let (mut body, _) = device(&alice, &"x".repeat(256));
    refused(&alice, "PUT", PATH, Some(body.clone()), 400, "M_INVALID_PARAM");
    // The id of a cross-signing key would make two keys of one name.
    let signing: TestSigningKeys = alice.upload_signing_keys();
    let taken = signing.master_public();
    body["device_id"] = json!(taken);
    body["device_keys"] = identity(&TestDeviceKeys::new(alice.id(), &taken));
    body["one_time_keys"] = json!({});
    body["fallback_keys"] = json!({});
    refused(&alice, "PUT", PATH, Some(body), 403, "M_FORBIDDEN");
    assert_eq!(alice.get(PATH), json!({ "device_id": "DRY", "device_data": data("DRY") }));
    assert_eq!(alice.query_keys(&[alice.id()])["device_keys"][alice.id()].as_object().map(Map::len), Some(1));
    let nobody = TestUser::new(server.url(), "@nobody:example.org", "no such token");
    refused(&nobody, "GET", PATH, None, 401, "M_UNKNOWN_TOKEN");
}

#[test]
fn a_dehydrated_device_goes_with_its_account_and_when_its_user_deletes_it_as_a_device() {
    let server = TestServer::start();
    let alice = TestUser::register(server.url(), "alice");
    let bob = server.user("bob");
    put(&alice, "DRY");
    let prove = |method: &str, path: &str| {
        let (_, challenge) = alice.request(method, path, Some(json!({})));
        let auth = json!({
            "type": "m.login.password", "password": "alice", "session": challenge["session"],
            "identifier": { "type": "m.id.user", "user": "alice" },
        });
        assert_eq!(alice.request(method, path, Some(json!({ "auth": auth }))).0, 200);
    };
    prove("DELETE", &format!("{V3}/devices/DRY"));
    refused(&alice, "GET", PATH, None, 404, "M_NOT_FOUND");
    put(&alice, "DRY");
    prove("POST", &format!("{V3}/account/deactivate"));
    assert_eq!(bob.query_keys(&[alice.id()])["device_keys"][alice.id()], json!({}));
}
