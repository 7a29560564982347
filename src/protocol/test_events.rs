//! Events for the unit tests of this layer.

use serde_json::{Map, Value, json};

use crate::protocol::ids::ServerName;
use crate::protocol::json as matrix_json;
use crate::protocol::pdu::Pdu;
use crate::protocol::room_version::{EventIdFormat, RoomVersion, room_version};
use crate::protocol::signatures::hash;
use crate::protocol::signatures::sign::{KeyAt, SigningKey, sign_event};

/// The rules of a version that is known to exist.
pub fn version(id: &str) -> RoomVersion {
    room_version(id).expect("a known version")
}

/// A server name that is known to be one.
pub fn server(name: &str) -> ServerName {
    ServerName::parse(name).expect("a server name")
}

/// Each server's key.
pub fn key(server: &str) -> SigningKey {
    let mut seed = [3; 32];
    for (i, byte) in server.bytes().take(32).enumerate() {
        seed[i] = byte;
    }
    SigningKey::generate(seed, "k")
}

/// Finds every server's key, valid for ever.
pub fn known(server: &str, key_id: &str) -> Option<KeyAt<'static>> {
    (key_id == "ed25519:k").then(|| KeyAt::stated(key(server).verify_key(), i64::MAX))
}

/// A room id of the version's form.
pub fn room(version: RoomVersion) -> &'static str {
    if version.room_id_is_create_hash {
        "!Rqnc-F-dvnEYJTyHq_iKxU2bZ1CI92-kuZq3a5lr5Zg"
    } else {
        "!room:a.example"
    }
}

/// A well-formed event of `@alice:a.example`, with `changes` laid over it; `null` removes a key. Not signed.
pub fn object(version: RoomVersion, changes: &Value) -> Map<String, Value> {
    let pairs = version.event_id_format == EventIdFormat::InEvent;
    let reference = if pairs { json!(["$x:a.example", {"sha256": "AAAA"}]) } else { json!("$x") };
    let mut event = json!({
        "type": "m.room.message", "sender": "@alice:a.example", "room_id": room(version), "content": {"body": "hello"},
        "origin_server_ts": 1_700_000_000_000_i64, "depth": 7, "prev_events": [reference], "auth_events": [reference],
        "hashes": {}, "signatures": {},
    });
    let event = event.as_object_mut().expect("an object");
    if pairs {
        event.insert("event_id".to_owned(), json!("$event:a.example"));
    }
    for (key, value) in changes.as_object().expect("an object") {
        if value.is_null() {
            event.remove(key);
        } else {
            event.insert(key.clone(), value.clone());
        }
    }
    std::mem::take(event)
}

/// Such an object, hashed and signed by these servers.
pub fn signed(version: RoomVersion, changes: &Value, servers: &[&str]) -> Map<String, Value> {
    let mut event = object(version, changes);
    hash::add_content_hash(&mut event);
    for name in servers {
        sign_event(&mut event, &server(name), &key(name), version);
    }
    event
}

/// Such an object as an event.
pub fn pdu(version: RoomVersion, changes: &Value, servers: &[&str]) -> Pdu {
    let bytes = matrix_json::canonical_object(&signed(version, changes, servers));
    Pdu::parse(&bytes, version).expect("well formed")
}

/// A membership of one's own.
pub fn member(user: &str, membership: &str) -> Value {
    json!({"type": "m.room.member", "sender": user, "state_key": user, "content": {"membership": membership}})
}
