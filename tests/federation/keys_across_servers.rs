//! End-to-end keys across servers: who is asked for them, what is believed of the answers, and what is answered from here.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{bob_at, edus_at};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::testing::{TestSigningKeys, TestUser, segment};
use serde_json::{Value, json};

pub const QUERY: &str = "/user/keys/query";
pub const CLAIM: &str = "/user/keys/claim";
pub const DEVICES: &str = "/user/devices/";

/// The identity keys of a device, as far as servers look at them.
pub fn identity(user: &UserId, device: &str) -> Value {
    json!({
        "user_id": user, "device_id": device, "algorithms": ["m.olm.v1.curve25519-aes-sha2"],
        "keys": { format!("ed25519:{device}"): "abc", format!("curve25519:{device}"): "def" },
        "signatures": { user.as_str(): { format!("ed25519:{device}"): "sig" } },
    })
}

/// A cross-signing key, another one for each `of`.
pub fn cross_signing(user: &UserId, usage: &str, of: char) -> Value {
    let public = SigningKey::generate([of as u8; 32], "any").public_base64();
    json!({ "user_id": user, "usage": [usage], "keys": { format!("ed25519:{public}"): public } })
}

/// What `keys/query` of one of ours answers.
pub fn query(asker: &TestUser, wanted: Value, timeout: Duration) -> Value {
    let body = json!({ "device_keys": wanted, "timeout": timeout.as_millis() as u64 });
    asker.post("/_matrix/client/v3/keys/query", body)
}

pub fn query_all(asker: &TestUser, user: &UserId) -> Value {
    query(asker, json!({ user.as_str(): [] }), Duration::from_secs(10))
}

pub fn devices_in(answer: &Value, user: &UserId) -> Vec<String> {
    answer["device_keys"][user.as_str()].as_object().into_iter().flatten().map(|(id, _)| id.clone()).collect()
}

pub fn failed(answer: &Value, peer: &Peer) -> bool {
    answer["failures"].get(peer.name().as_str()).is_some()
}

/// Whether the list of a user is held completely.
pub fn is_current(server: &TestServer, user: &UserId) -> bool {
    let list = server.homeserver().store.read(|db| db.remote_device_list(user)).expect("read");
    list.is_some_and(|list| list.is_current())
}

pub fn update(user: &UserId, device: &str, stream: i64, prev: Value) -> Value {
    let content = json!({
        "user_id": user, "device_id": device, "stream_id": stream, "prev_id": prev, "keys": identity(user, device),
        "device_display_name": format!("name of {device}"),
    });
    json!({ "edu_type": "m.device_list_update", "content": content })
}

/// The peer has this list of its room's creator from now on.
pub fn has_devices(peer: &Peer, user: &UserId, stream: i64, devices: &[&str]) {
    let list: Vec<Value> =
        devices.iter().map(|id| json!({ "device_id": id, "keys": identity(user, id) })).collect();
    let master = cross_signing(user, "master", 'n');
    peer.answer_json(
        DEVICES,
        200,
        json!({ "user_id": user, "stream_id": stream, "devices": list, "master_key": master }),
    );
    let keys: serde_json::Map<String, Value> =
        devices.iter().map(|id| ((*id).to_owned(), identity(user, id))).collect();
    peer.answer_json(
        QUERY,
        200,
        json!({ "device_keys": { user.as_str(): keys }, "master_keys": { user.as_str(): master } }),
    );
}

/// The peer says nothing of keys but that it cannot.
pub fn has_no_answer(peer: &Peer) {
    for part in [DEVICES, QUERY, CLAIM] {
        peer.answer_json(part, 503, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    }
}

#[test]
fn of_an_answer_is_taken_what_was_asked_for_and_nothing_else() {
    let peer = Peer::start();
    let server = TestServer::start();
    let bob = server.user("bob");
    let (eve, mallory) = (peer.user("eve"), peer.user("mallory"));
    let all = |user: &UserId| json!({ "A": identity(user, "A"), "B": identity(user, "B") });
    let mut of_eve = all(&eve);
    of_eve["A"]["unsigned"] = json!({ "device_display_name": "eve's phone", "else": 1 });
    of_eve["A"]["signatures"][bob.id()] = json!({ "ed25519:X": "forged" });
    of_eve["C"] = identity(&eve, "D");
    of_eve["D"] = identity(&mallory, "D");
    of_eve["E"] = json!([]);
    of_eve["F"] = json!({ "user_id": eve, "device_id": "F", "x": "x".repeat(100_000) });
    peer.answer_json(
        QUERY,
        200,
        json!({
            "device_keys": { eve.as_str(): of_eve, mallory.as_str(): all(&mallory), bob.id(): { "A": {} }, "no": {} },
            "master_keys": {
                eve.as_str(): cross_signing(&eve, "master", 'n'),
                mallory.as_str(): cross_signing(&mallory, "master", 'n'),
                bob.id(): cross_signing(&eve, "master", 'n'),
            },
            "self_signing_keys": { eve.as_str(): cross_signing(&mallory, "self_signing", 'n') },
            "user_signing_keys": { eve.as_str(): cross_signing(&eve, "user_signing", 'n') },
        }),
    );
    let answer = query_all(&bob, &eve);
    assert_eq!(devices_in(&answer, &eve), ["A", "B"]);
    let keys = answer["device_keys"].as_object().expect("users");
    assert_eq!(keys.keys().collect::<Vec<_>>(), [eve.as_str()]);
    let phone = &keys[eve.as_str()]["A"];
    assert_eq!(phone["unsigned"], json!({ "device_display_name": "eve's phone" }));
    assert_eq!(phone["signatures"], json!({ eve.as_str(): { "ed25519:A": "sig" } }));
    let masters = answer["master_keys"].as_object().expect("users");
    assert_eq!(masters.keys().collect::<Vec<_>>(), [eve.as_str()]);
    for section in ["self_signing_keys", "user_signing_keys", "failures"] {
        assert_eq!(answer[section], json!({}), "{section}");
    }
    // Only some of them.
    let some = query(&bob, json!({ eve.as_str(): ["B", "Z"] }), Duration::from_secs(10));
    assert_eq!(devices_in(&some, &eve), ["B"]);
    assert_eq!(peer.asked(QUERY)[1].body, json!({ "device_keys": { eve.as_str(): ["B", "Z"] } }));
    // Nobody here shares a room with eve, so that nothing is remembered.
    let kept = server.homeserver().store.read(|db| db.remote_keys(&eve)).expect("read");
    assert!(kept.devices.is_empty() && kept.cross_signing.master.is_none());
    // Whom their server does not know has no devices, and that is no failure: some clients ask until they are told that.
    peer.answer_json(QUERY, 200, json!({ "device_keys": {} }));
    let answer = query_all(&bob, &eve);
    assert_eq!(answer["device_keys"], json!({ eve.as_str(): {} }));
    assert_eq!(answer["failures"], json!({}));
}

#[test]
fn answers_that_are_none_or_too_large_are_failures_of_their_server_alone() {
    let (liar, honest) = (Peer::start(), Peer::start());
    let server = TestServer::start();
    let bob = server.user("bob");
    let (eve, alice) = (liar.user("eve"), honest.user("alice"));
    has_devices(&honest, &alice, 1, &["A"]);
    let wanted = json!({ eve.as_str(): [], alice.as_str(): [] });
    let large = json!({ "device_keys": { eve.as_str(): { "A": { "x": "x".repeat(40 << 20) } } } });
    let many: serde_json::Map<String, Value> =
        (0..20_000).map(|n| (format!("D{n}"), identity(&eve, &format!("D{n}")))).collect();
    for (what, answer, fails) in [
        ("a list", json!([]), true),
        ("nothing", json!({}), true),
        ("users in a list", json!({ "device_keys": [] }), true),
        ("devices in a list", json!({ "device_keys": { eve.as_str(): [1, 2] } }), false),
        ("too large", large, true),
        ("too many devices", json!({ "device_keys": { eve.as_str(): many } }), false),
    ] {
        liar.answer_json(QUERY, 200, answer);
        let answer = query(&bob, wanted.clone(), Duration::from_secs(20));
        assert_eq!(failed(&answer, &liar), fails, "{what}");
        assert_eq!(devices_in(&answer, &alice), ["A"], "{what}");
        assert!(devices_in(&answer, &eve).len() <= 1000, "{what}");
    }
}

#[test]
fn a_list_that_was_fetched_is_answered_from_here_and_follows_the_updates() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_devices(&peer, &creator, 5, &["A", "B"]);
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A", "B"]);
    wait_until("the list is fetched", || is_current(&server, &creator));
    assert_eq!((peer.asked(QUERY).len(), peer.asked(DEVICES).len()), (1, 1));
    // The client has heard the same: there is no news for it.
    bob.initial_sync();
    let answer = query_all(&bob, &creator);
    assert_eq!(devices_in(&answer, &creator), ["A", "B"]);
    assert_eq!(answer["master_keys"][creator.as_str()], cross_signing(&creator, "master", 'n'));
    peer.send_edus(server.name(), "t1", &[update(&creator, "C", 6, json!([5]))]);
    assert_eq!(bob.sync(Duration::ZERO)["device_lists"]["changed"], json!([creator]));
    let answer = query_all(&bob, &creator);
    assert_eq!(devices_in(&answer, &creator), ["A", "B", "C"]);
    let expected = json!({ "device_display_name": "name of C" });
    assert_eq!(answer["device_keys"][creator.as_str()]["C"]["unsigned"], expected);
    let answer = query(&bob, json!({ creator.as_str(): ["B"] }), Duration::from_secs(10));
    assert_eq!(devices_in(&answer, &creator), ["B"]);
    assert_eq!((peer.asked(QUERY).len(), peer.asked(DEVICES).len()), (1, 1), "nobody was asked again");
    // Nor when the peer is away, since nothing is missing.
    has_no_answer(&peer);
    let answer = query_all(&bob, &creator);
    assert_eq!((devices_in(&answer, &creator).len(), failed(&answer, &peer)), (3, false));
}

#[test]
fn what_was_fetched_as_it_was_answered_is_no_news() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_devices(&peer, &creator, 5, &["A"]);
    let gate = Gate::default();
    let list = json!({
        "user_id": creator, "stream_id": 5, "devices": [{ "device_id": "A", "keys": identity(&creator, "A") }],
        "master_key": cross_signing(&creator, "master", 'n'),
    });
    peer.answer_behind(&gate, DEVICES, 200, list);
    query_all(&bob, &creator);
    let since = bob.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    gate.open();
    wait_until("the list is fetched", || is_current(&server, &creator));
    let answer = bob.get(&format!("/_matrix/client/v3/sync?since={since}"));
    assert_eq!(answer.get("device_lists"), None);
}

/// While the whole list of the room's creator cannot be had yet, bob asks for it and is told what his client knows then; after
/// that another user asks, and the creator's server answers something else, which is what the list has, too. Whether
/// bob is told that there is something new.
fn hears_of_what_another_asked_for(first: (&[&str], char), then: (&[&str], char)) -> bool {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    let answer_query = |(devices, of): (&[&str], char)| {
        let keys: BTreeMap<&str, Value> = devices.iter().map(|id| (*id, identity(&creator, id))).collect();
        let master = cross_signing(&creator, "master", of);
        let user = creator.as_str();
        peer.answer_json(
            QUERY,
            200,
            json!({ "device_keys": { user: keys }, "master_keys": { user: master } }),
        );
    };
    let (devices, of) = then;
    let list: Vec<Value> =
        devices.iter().map(|id| json!({ "device_id": id, "keys": identity(&creator, id) })).collect();
    let gate = Gate::default();
    let list = json!({
        "user_id": creator, "stream_id": 6, "devices": list, "master_key": cross_signing(&creator, "master", of),
    });
    peer.answer_behind(&gate, DEVICES, 200, list);
    answer_query(first);
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), first.0);
    let since = bob.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    answer_query(then);
    let alice = server.user("alice");
    assert_eq!(devices_in(&query_all(&alice, &creator), &creator), then.0);
    gate.open();
    wait_until("the list is fetched", || is_current(&server, &creator));
    let answer = bob.get(&format!("/_matrix/client/v3/sync?since={since}"));
    answer["device_lists"]["changed"].as_array().is_some_and(|changed| changed.contains(&json!(creator)))
}

#[test]
fn what_one_user_was_told_of_somebodys_devices_before_the_list_came_is_news_to_whoever_was_told_otherwise() {
    assert!(hears_of_what_another_asked_for((&["A"], 'n'), (&["A", "B"], 'n')), "another device");
    assert!(hears_of_what_another_asked_for((&["A"], 'n'), (&["A"], 'm')), "another identity");
    assert!(!hears_of_what_another_asked_for((&["A"], 'n'), (&["A"], 'n')), "the same");
}

#[test]
fn a_list_that_lacks_something_is_never_answered_from_and_repaired_however_long_its_server_was_away() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_devices(&peer, &creator, 5, &["A"]);
    query_all(&bob, &creator);
    wait_until("the list is fetched", || is_current(&server, &creator));
    has_no_answer(&peer);
    peer.send_edus(server.name(), "t1", &[update(&creator, "C", 9, json!([8]))]);
    let answer = query_all(&bob, &creator);
    assert!(failed(&answer, &peer) && devices_in(&answer, &creator).is_empty(), "{answer}");
    // Two days of attempts that come to nothing, and a restart.
    let mut server = server;
    for hours in 0..48 {
        server.advance(Duration::from_secs(3600));
        if hours == 24 {
            server.restart();
        }
    }
    let asked = peer.asked(DEVICES).len();
    wait_until("it is asked for again", || {
        server.advance(Duration::from_secs(3600));
        peer.asked(DEVICES).len() > asked
    });
    assert!(!is_current(&server, &creator));
    bob.initial_sync();
    has_devices(&peer, &creator, 9, &["A", "B", "C"]);
    wait_until("the list is repaired", || {
        server.advance(Duration::from_secs(3600));
        is_current(&server, &creator)
    });
    assert_eq!(bob.sync(Duration::ZERO)["device_lists"]["changed"], json!([creator]));
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A", "B", "C"]);
}

#[test]
fn a_chain_of_updates_that_we_heard_from_its_beginning_is_no_list_before_it_was_fetched() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    // Servers begin anew with everyone who comes to share a room with their user.
    peer.send_edus(server.name(), "t1", &[update(&creator, "B", 5, json!([]))]);
    has_devices(&peer, &creator, 5, &["A", "B"]);
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A", "B"]);
    wait_until("the list is fetched", || is_current(&server, &creator));
    peer.send_edus(server.name(), "t2", &[update(&creator, "C", 6, json!([5]))]);
    assert!(is_current(&server, &creator));
    // And when they begin once more, something may have been missed.
    peer.send_edus(server.name(), "t3", &[update(&creator, "D", 8, json!([]))]);
    has_devices(&peer, &creator, 8, &["A", "B", "C", "D", "E"]);
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A", "B", "C", "D", "E"]);
}

#[test]
fn who_never_answers_holds_up_nobody_beyond_the_deadline_and_is_then_known_for_it() {
    let (silent, honest) = (Peer::start(), Peer::start());
    let server = TestServer::start();
    let bob = server.user("bob");
    let (eve, alice) = (silent.user("eve"), honest.user("alice"));
    has_devices(&honest, &alice, 1, &["A"]);
    let gate = Gate::default();
    silent.answer_behind(&gate, "/user/keys/", 200, json!({ "device_keys": {}, "one_time_keys": {} }));
    let wanted = json!({ eve.as_str(): [], alice.as_str(): [] });
    let started = Instant::now();
    let answer = query(&bob, wanted.clone(), Duration::from_secs(6));
    assert!(started.elapsed() < Duration::from_secs(15), "{:?}", started.elapsed());
    assert!(failed(&answer, &silent) && !failed(&answer, &honest), "{answer}");
    assert_eq!(devices_in(&answer, &alice), ["A"]);
    // From now on it is a failure at once: nobody asks it.
    let asked = silent.asked(QUERY).len();
    let answer = query(&bob, wanted.clone(), Duration::from_secs(30));
    assert!(failed(&answer, &silent) && silent.asked(QUERY).len() == asked, "{answer}");
    // Until a while has passed, or it speaks.
    gate.open();
    silent.ask(server.name(), "GET", "/_matrix/federation/v1/query/profile?user_id=%40bob%3Alocalhost", None);
    let answer = query(&bob, wanted, Duration::from_secs(30));
    assert!(!failed(&answer, &silent), "{answer}");
}

#[test]
fn a_server_that_takes_no_transactions_is_not_asked_for_keys_until_somebody_may_try_again() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    has_devices(&peer, &room.creator, 1, &["A"]);
    peer.answer_json("/send/", 503, json!({ "errcode": "M_UNKNOWN", "error": "away" }));
    let away = peer.name().clone();
    bob.send(room.id.as_str(), "hello");
    wait_until("it is found to be away", || server.homeserver().outgoing.is_pausing(&away));
    let answer = query_all(&bob, &room.creator);
    assert!(failed(&answer, &peer) && peer.asked(QUERY).is_empty(), "{answer}");
    let claimed = claim(&bob, json!({ room.creator.as_str(): { "A": "signed_curve25519" } }));
    assert!(failed(&claimed, &peer) && peer.asked(CLAIM).is_empty(), "{claimed}");
    // It may be back without having said so.
    wait_until("it is asked again", || {
        server.advance(Duration::from_secs(60));
        !failed(&query_all(&bob, &room.creator), &peer)
    });
}

pub fn claim(asker: &TestUser, wanted: Value) -> Value {
    asker.post("/_matrix/client/v3/keys/claim", json!({ "one_time_keys": wanted, "timeout": 10_000 }))
}

#[test]
fn of_a_claim_is_taken_one_key_of_each_device_and_it_is_made_once() {
    let peer = Peer::start();
    let server = TestServer::start();
    let (bob, eve, mallory) = (server.user("bob"), peer.user("eve"), peer.user("mallory"));
    let key = |n: u32| json!({ "key": format!("{n}"), "signatures": { eve.as_str(): { "ed25519:A": "s" } } });
    let one = json!({ "signed_curve25519:AAAA": key(1) });
    peer.answer_json(
        CLAIM,
        200,
        json!({ "one_time_keys": {
            eve.as_str(): {
                "A": { "curve25519:X": "plain", "signed_curve25519:AAAA": key(1), "signed_curve25519:AAAB": key(2) },
                "B": { "signed_curve25519:": key(3) },
                "C": { "signed_curve25519:AAAA": [] },
                "D": one,
                "E": "no object",
            },
            mallory.as_str(): { "A": one },
        }}),
    );
    let of = |devices: &[&str]| -> serde_json::Map<String, Value> {
        devices.iter().map(|device| ((*device).to_owned(), json!("signed_curve25519"))).collect()
    };
    let wanted = json!({ eve.as_str(): of(&["A", "B", "C", "E", "F"]) });
    let claimed = claim(&bob, wanted.clone());
    assert_eq!(claimed["one_time_keys"], json!({ eve.as_str(): { "A": one } }));
    assert_eq!(claimed["failures"], json!({}));
    assert_eq!(peer.asked(CLAIM)[0].body, json!({ "one_time_keys": wanted }));
    for (status, answer) in [(500, json!({})), (200, json!({ "one_time_keys": [] })), (502, json!({}))] {
        let before = peer.asked(CLAIM).len();
        peer.answer_json(CLAIM, status, answer);
        let claimed = claim(&bob, wanted.clone());
        assert!(failed(&claimed, &peer), "{status}: {claimed}");
        assert_eq!(peer.asked(CLAIM).len(), before + 1, "{status}: each request may take a key away");
    }
}

#[test]
fn what_a_user_signs_with_is_taken_over_from_updates_and_another_master_key_is_news() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_devices(&peer, &creator, 5, &["A"]);
    query_all(&bob, &creator);
    wait_until("the list is fetched", || is_current(&server, &creator));
    bob.initial_sync();
    let signing = |edu_type: &str, master: Value, self_signing: Value| {
        let content = json!({ "user_id": creator, "master_key": master, "self_signing_key": self_signing });
        json!({ "edu_type": edu_type, "content": content })
    };
    let changed = || bob.sync(Duration::ZERO)["device_lists"]["changed"].clone();
    let (master, own) =
        (cross_signing(&creator, "master", 'm'), cross_signing(&creator, "self_signing", 'o'));
    peer.send_edus(server.name(), "t1", &[signing("m.signing_key_update", master.clone(), own.clone())]);
    assert_eq!(changed(), json!([creator]));
    let answer = query_all(&bob, &creator);
    assert_eq!(answer["master_keys"][creator.as_str()], master);
    assert_eq!(answer["self_signing_keys"][creator.as_str()], own);
    // The same once more by the old name is no news.
    peer.send_edus(server.name(), "t2", &[signing("org.matrix.signing_key_update", master.clone(), own)]);
    assert_eq!(changed(), Value::Null);
    // Another master key alone takes the other keys with it, which it has not signed.
    let next = cross_signing(&creator, "master", 'q');
    let alone =
        json!({ "edu_type": "m.signing_key_update", "content": { "user_id": creator, "master_key": next } });
    peer.send_edus(server.name(), "t3", &[alone]);
    assert_eq!(changed(), json!([creator]));
    assert_eq!(query_all(&bob, &creator)["master_keys"][creator.as_str()], next);
    assert_eq!(peer.asked(QUERY).len(), 1);
    // What is none has the list fetched: something has changed, and it is not known what.
    let asked = peer.asked(DEVICES).len();
    let stranger = peer.user("stranger");
    let wrong = cross_signing(&stranger, "master", 'r');
    peer.send_edus(server.name(), "t4", &[signing("m.signing_key_update", wrong.clone(), wrong.clone())]);
    wait_until("it is asked for", || {
        server.advance(Duration::from_secs(10));
        peer.asked(DEVICES).len() > asked && is_current(&server, &creator)
    });
    let answer = query_all(&bob, &creator);
    assert_eq!(answer["master_keys"][creator.as_str()], cross_signing(&creator, "master", 'n'));
    // Of whom nobody here shares a room with nothing is kept.
    let foreign = json!({ "edu_type": "m.signing_key_update", "content": { "user_id": stranger, "master_key": wrong } });
    peer.send_edus(server.name(), "t5", &[foreign]);
    let kept = server.homeserver().store.read(|db| db.remote_keys(&stranger)).expect("read");
    assert_eq!(kept.cross_signing.master, None);
}

#[test]
fn what_is_known_of_keys_goes_with_the_last_shared_room() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_devices(&peer, &creator, 5, &["A"]);
    query_all(&bob, &creator);
    wait_until("the list is fetched", || is_current(&server, &creator));
    let other = FakeRoom::joined_by(&peer, "11", &bob);
    bob.leave(room.id.as_str());
    assert!(is_current(&server, &creator), "they share another room");
    bob.leave(other.id.as_str());
    assert!(!is_current(&server, &creator));
    wait_until("it is forgotten", || {
        let kept = server.homeserver().store.read(|db| db.remote_keys(&creator)).expect("read");
        kept.devices.is_empty() && kept.cross_signing.master.is_none()
    });
    // What is told now is of no interest, and what is asked is not remembered.
    peer.send_edus(server.name(), "t1", &[update(&creator, "B", 6, json!([5]))]);
    has_devices(&peer, &creator, 6, &["A", "B"]);
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A", "B"]);
    let kept = server.homeserver().store.read(|db| db.remote_device_list(&creator)).expect("read");
    assert_eq!(kept, None);
}

fn ask(peer: &Peer, server: &TestServer, call: &str, body: Value) -> (u16, Value) {
    peer.ask(server.name(), "POST", &format!("/_matrix/federation/v1/user/keys/{call}"), Some(&body))
}

/// The id of the key that a peer is given of a device; none if it is given none.
fn claimed_by(peer: &Peer, server: &TestServer, user: &TestUser, device: &str) -> Option<String> {
    let wanted = json!({ "one_time_keys": { user.id(): { device: "signed_curve25519" } } });
    let (status, answer) = ask(peer, server, "claim", wanted);
    assert_eq!(status, 200, "{answer}");
    Some(answer["one_time_keys"][user.id()][device].as_object()?.keys().next()?.clone())
}

#[test]
fn another_server_is_told_the_keys_of_ours_and_nothing_that_is_not_for_it() {
    let peer = Peer::start();
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let keys = bob.upload_keys(&["AAAA"]);
    let signing = bob.upload_signing_keys();
    let (device, of_bob) = (keys.device_id().to_owned(), bob.id());
    let signed = signing.sign_device(keys.identity());
    let uploaded =
        bob.post("/_matrix/client/v3/keys/signatures/upload", json!({ of_bob: { &device: signed } }));
    assert_eq!(uploaded["failures"], json!({}));
    // What alice says of bob is for alice alone.
    let of_alice = alice.upload_signing_keys();
    let vouched = json!({ of_bob: { signing.master_public(): of_alice.sign_user(signing.master()) } });
    let uploaded = alice.post("/_matrix/client/v3/keys/signatures/upload", vouched);
    assert_eq!(uploaded["failures"], json!({}));
    bob.put(&format!("/_matrix/client/v3/devices/{device}"), json!({ "display_name": "phone" }));
    let wanted = json!({ "device_keys": {
        of_bob: [], alice.id(): [], "@nobody:localhost": [], peer.user("eve").as_str(): [], "nonsense": [],
        format!("@nobody:{}", server.name()): [],
    } });
    let (status, answer) = ask(&peer, &server, "query", wanted);
    assert_eq!(status, 200, "{answer}");
    let told = &answer["device_keys"][of_bob][&device];
    assert_eq!(told["keys"], keys.identity()["keys"]);
    assert_eq!(told.get("unsigned"), None, "what it is called is for those who share a room with bob");
    assert_eq!(told["signatures"][of_bob].as_object().expect("signatures").len(), 2, "{told}");
    assert_eq!(answer["master_keys"][of_bob], signing.master());
    assert_eq!(answer["self_signing_keys"][of_bob], signing.self_signing());
    assert_eq!(answer.get("user_signing_keys"), None);
    let users = answer["device_keys"].as_object().expect("users");
    assert_eq!(users.keys().collect::<Vec<_>>(), [alice.id(), of_bob]);
    assert_eq!(users[alice.id()], json!({}), "no device of alice's has keys");
    // The same with the list.
    let path = format!("/_matrix/federation/v1/user/devices/{}", segment(of_bob));
    let (_, list) = peer.ask(server.name(), "GET", &path, None);
    let device = json!({ "device_id": device, "keys": told });
    assert_eq!(list["devices"], json!([device]));
    assert_eq!(list["master_key"], answer["master_keys"][of_bob]);
    assert_eq!(list["self_signing_key"], answer["self_signing_keys"][of_bob]);
    assert!(list["stream_id"].as_i64().is_some_and(|id| id > 0), "{list}");
    // Nobody else may ask, and what is no question is refused.
    for (call, body) in [
        ("query", json!({})),
        ("claim", json!({})),
        ("query", json!({ "device_keys": [] })),
        ("query", json!({ "device_keys": { of_bob: "all" } })),
        ("claim", json!({ "one_time_keys": { of_bob: { "D": 5 } } })),
    ] {
        let (status, refusal) = ask(&peer, &server, call, body.clone());
        let codes = [json!("M_MISSING_PARAM"), json!("M_BAD_JSON")];
        assert!(status == 400 && codes.contains(&refusal["errcode"]), "{call} {body}: {refusal}");
    }
}

#[test]
fn a_stranger_takes_a_few_one_time_keys_and_then_gets_the_fallback_key() {
    let (stranger, friend) = (Peer::start(), Peer::start());
    let (server, bob, _room) = bob_at(&friend);
    let ids: Vec<String> = (0..40).map(|n| format!("K{n:02}")).collect();
    let keys = bob.upload_keys(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let fallback = json!({ "fallback_keys": keys.fallback_key("FALL") });
    bob.post("/_matrix/client/v3/keys/upload", fallback);
    let device = keys.device_id();
    let given: Vec<Option<String>> = (0..8).map(|_| claimed_by(&stranger, &server, &bob, device)).collect();
    let one_time: Vec<String> = (0..5).map(|n| format!("signed_curve25519:K{n:02}")).collect();
    let fall = "signed_curve25519:FALL".to_owned();
    let expected: Vec<Option<String>> =
        one_time.into_iter().chain(std::iter::repeat_n(fall, 3)).map(Some).collect();
    assert_eq!(given, expected);
    // Others have theirs, in the order of the upload.
    assert_eq!(claimed_by(&friend, &server, &bob, device).as_deref(), Some("signed_curve25519:K05"));
    let alice = server.user("alice");
    let claimed = alice.claim_key(bob.id(), device).map(|(id, _)| id);
    assert_eq!(claimed.as_deref(), Some("signed_curve25519:K06"));
    // By and by there are more for the stranger, too.
    server.advance(Duration::from_secs(15 * 60));
    assert_eq!(claimed_by(&stranger, &server, &bob, device).as_deref(), Some("signed_curve25519:K07"));
    // What there is not is given to nobody, and takes nothing of anybody's share.
    for device in ["NONE", "OTHER"] {
        assert_eq!(claimed_by(&friend, &server, &bob, device), None);
    }
}

#[test]
fn where_there_is_no_fallback_key_a_stranger_who_took_too_many_is_given_none() {
    let stranger = Peer::start();
    let server = TestServer::start();
    let bob = server.user("bob");
    let keys = bob.upload_keys(&["A", "B", "C", "D", "E", "F", "G"]);
    let given: Vec<bool> =
        (0..7).map(|_| claimed_by(&stranger, &server, &bob, keys.device_id()).is_some()).collect();
    assert_eq!(given, [true, true, true, true, true, false, false]);
    let alice = server.user("alice");
    assert!(alice.claim_key(bob.id(), keys.device_id()).is_some(), "the others are there for others");
}

#[test]
fn where_there_is_no_fallback_key_a_neighbour_is_given_one_time_keys_as_long_as_there_are_many() {
    let friend = Peer::start();
    let (server, bob, _room) = bob_at(&friend);
    let ids: Vec<String> = (0..100).map(|n| format!("K{n:02}")).collect();
    let keys = bob.upload_keys(&ids.iter().map(String::as_str).collect::<Vec<_>>());
    let device = keys.device_id();
    let given = (0..100).take_while(|_| claimed_by(&friend, &server, &bob, device).is_some()).count();
    assert_eq!(given, 80, "some are kept for others");
    let alice = server.user("alice");
    assert!(alice.claim_key(bob.id(), device).is_some());
    // Whose share fills again has of those too.
    server.advance(Duration::from_secs(60));
    assert!(claimed_by(&friend, &server, &bob, device).is_some());
    assert_eq!(claimed_by(&friend, &server, &bob, device), None);
    // Where there is a fallback key, that is what a share ends at.
    bob.post("/_matrix/client/v3/keys/upload", json!({ "fallback_keys": keys.fallback_key("FALL") }));
    let fall = Some("signed_curve25519:FALL".to_owned());
    assert_eq!(claimed_by(&friend, &server, &bob, device), fall);
}

/// Two of different servers who share a room.
fn friends() -> (TestServer, TestServer, TestUser, TestUser, String) {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    (a, b, alice, bob, room)
}

#[test]
fn two_of_different_servers_find_each_others_keys_and_hear_of_every_change() {
    let (_a, b, alice, bob, _room) = friends();
    let keys = alice.upload_keys(&["AAAA", "AAAB"]);
    let alice_id = UserId::parse(alice.id()).expect("a user id");
    let of_alice = |answer: &Value| answer["device_keys"][alice.id()][keys.device_id()].clone();
    wait_until("bob sees the keys", || of_alice(&bob.query_keys(&[alice.id()]))["keys"].is_object());
    wait_until("the list is fetched", || is_current(&b, &alice_id));
    bob.initial_sync();
    let changed = |what: &str| {
        bob.sync_until(what, |answer| {
            let changed = answer["device_lists"]["changed"].as_array()?;
            changed.iter().any(|id| *id == alice.id()).then_some(())
        });
    };
    // The keys for cross-signing, a signature, another device.
    let signing = alice.upload_signing_keys();
    changed("the signing keys");
    let answer = bob.query_keys(&[alice.id()]);
    assert_eq!(answer["master_keys"][alice.id()]["keys"], signing.master()["keys"]);
    assert_eq!(answer["self_signing_keys"][alice.id()], signing.self_signing());
    let signed = json!({ alice.id(): { keys.device_id(): signing.sign_device(keys.identity()) } });
    alice.post("/_matrix/client/v3/keys/signatures/upload", signed);
    wait_until("the signature is there", || {
        let told = of_alice(&bob.query_keys(&[alice.id()]));
        told["signatures"][alice.id()].as_object().is_some_and(|signatures| signatures.len() == 2)
    });
    // What bob says of alice is told to bob, and to nobody else.
    let of_bob = bob.upload_signing_keys();
    let master = answer["master_keys"][alice.id()].clone();
    let vouched = json!({ alice.id(): { signing.master_public(): of_bob.sign_user(master) } });
    let uploaded = bob.post("/_matrix/client/v3/keys/signatures/upload", vouched);
    assert_eq!(uploaded["failures"], json!({}));
    let told = |user: &TestUser| {
        user.query_keys(&[alice.id()])["master_keys"][alice.id()]["signatures"].get(bob.id()).is_some()
    };
    let carol = b.user("carol");
    assert_eq!((told(&bob), told(&alice), told(&carol)), (true, false, false));
    assert!(is_current(&b, &alice_id), "all of that came by updates");
    // One-time keys are claimed in their order, each once.
    let claim = || bob.claim_key(alice.id(), keys.device_id()).map(|(id, _)| id);
    let (one, two) = ("signed_curve25519:AAAA".to_owned(), "signed_curve25519:AAAB".to_owned());
    assert_eq!([claim(), claim(), claim()], [Some(one), Some(two), None]);
    // A device that is logged out is gone.
    alice.post("/_matrix/client/v3/logout", json!({}));
    changed("the end of the device");
    wait_until("bob sees its end", || bob.query_keys(&[alice.id()])["device_keys"][alice.id()] == json!({}));
}

#[test]
fn a_change_while_the_other_server_was_down_is_known_after_it() {
    for restarts in ["theirs", "ours"] {
        let (mut a, mut b, alice, bob, _room) = friends();
        let keys = alice.upload_keys(&["AAAA"]);
        let alice_id = UserId::parse(alice.id()).expect("a user id");
        wait_until("bob sees the keys", || {
            bob.query_keys(&[alice.id()])["device_keys"][alice.id()][keys.device_id()].is_object()
        });
        wait_until("the list is fetched", || is_current(&b, &alice_id));
        bob.initial_sync();
        b.stop();
        let second = a.device_of(&alice, "SECOND");
        second.upload_keys(&["BBBB"]);
        let signing = alice.upload_signing_keys();
        if restarts == "ours" {
            a.restart();
        }
        b.resume();
        a.advance(Duration::from_secs(3600));
        bob.sync_until("news of alice's devices", |answer| {
            let changed = answer["device_lists"]["changed"].as_array()?;
            changed.iter().any(|id| *id == alice.id()).then_some(())
        });
        wait_until("bob sees all of it", || {
            let answer = bob.query_keys(&[alice.id()]);
            let devices = answer["device_keys"][alice.id()].as_object().map_or(0, serde_json::Map::len);
            devices == 2 && answer["master_keys"][alice.id()]["keys"] == signing.master()["keys"]
        });
    }
}

#[test]
fn who_comes_into_a_room_over_federation_is_in_the_changed_device_lists() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let (of_alice, of_bob) = (alice.upload_keys(&[]), bob.upload_keys(&[]));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    alice.initial_sync();
    bob.initial_sync();
    bob.join_via(&room, &[a.name()]);
    for (user, other) in [(&alice, &bob), (&bob, &alice)] {
        user.sync_until("the other is listed", |answer| {
            let changed = answer["device_lists"]["changed"].as_array()?;
            changed.iter().any(|id| *id == other.id()).then_some(())
        });
    }
    let told = |asker: &TestUser, user: &TestUser, device: &str| {
        asker.query_keys(&[user.id()])["device_keys"][user.id()][device]["device_id"] == device
    };
    assert!(told(&alice, &bob, of_bob.device_id()) && told(&bob, &alice, of_alice.device_id()));
}

#[test]
fn updates_of_devices_bring_their_keys_and_those_of_signing_keys_stand_in_no_chain() {
    let peer = Peer::start();
    let (_server, bob, _room) = bob_at(&peer);
    let told = || edus_at(&peer, "m.device_list_update");
    wait_until("the peer knows of bob's device", || !told().is_empty());
    let keys = bob.upload_keys(&["AAAA"]);
    wait_until("the keys are told", || told().iter().any(|update| update["keys"] == keys.identity()));
    let signing = bob.upload_signing_keys();
    let signing_keys = || edus_at(&peer, "m.signing_key_update");
    wait_until("the signing keys are told", || !signing_keys().is_empty());
    let update = signing_keys().pop().expect("just there");
    assert_eq!(update["user_id"], bob.id());
    assert_eq!(update["master_key"]["keys"], signing.master()["keys"]);
    assert_eq!(update["self_signing_key"], signing.self_signing());
    assert_eq!(update.get("user_signing_key"), None);
    let signed = json!({ bob.id(): { keys.device_id(): signing.sign_device(keys.identity()) } });
    bob.post("/_matrix/client/v3/keys/signatures/upload", signed);
    let signatures =
        |update: &Value| update["keys"]["signatures"][bob.id()].as_object().map_or(0, |all| all.len());
    wait_until("the signature is told", || told().iter().any(|update| signatures(update) == 2));
    let mut chain = told();
    chain.dedup();
    for (before, after) in chain.iter().zip(&chain[1..]) {
        assert_eq!(after["prev_id"], json!([before["stream_id"]]), "{chain:?}");
    }
}

#[test]
fn a_server_that_counts_anew_after_a_restored_backup_is_followed_again() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_devices(&peer, &creator, 50, &["A"]);
    query_all(&bob, &creator);
    wait_until("the list is fetched", || is_current(&server, &creator));
    has_devices(&peer, &creator, 3, &["A", "B"]);
    peer.send_edus(server.name(), "t1", &[update(&creator, "B", 3, json!([2]))]);
    assert!(!is_current(&server, &creator));
    // It may be behind itself: so it is asked a few times.
    wait_until("it is followed again", || {
        server.advance(Duration::from_secs(600));
        is_current(&server, &creator)
    });
    let asked = peer.asked(DEVICES).len();
    peer.send_edus(server.name(), "t2", &[update(&creator, "C", 4, json!([3]))]);
    assert!(is_current(&server, &creator));
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A", "B", "C"]);
    assert_eq!(peer.asked(DEVICES).len(), asked);
}

#[test]
fn one_call_asks_a_server_for_all_of_its_users() {
    let peer = Peer::start();
    let server = TestServer::start();
    let bob = server.user("bob");
    let users: Vec<UserId> = (0..50).map(|n| peer.user(&format!("u{n:02}"))).collect();
    let keys: serde_json::Map<String, Value> =
        users.iter().map(|user| (user.to_string(), json!({ "A": identity(user, "A") }))).collect();
    peer.answer_json(QUERY, 200, json!({ "device_keys": keys }));
    let answer = bob.query_keys(&users.iter().map(UserId::as_str).collect::<Vec<_>>());
    assert!(users.iter().all(|user| devices_in(&answer, user) == ["A"]), "{answer}");
    assert_eq!(peer.asked(QUERY).len(), 1);
}

#[test]
fn whose_server_was_away_when_they_were_asked_for_is_told_of_when_it_is_back() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    has_no_answer(&peer);
    assert!(failed(&query_all(&bob, &creator), &peer));
    bob.initial_sync();
    has_devices(&peer, &creator, 5, &["A"]);
    wait_until("the list is fetched", || {
        server.advance(Duration::from_secs(60));
        is_current(&server, &creator)
    });
    assert_eq!(bob.sync(Duration::ZERO)["device_lists"]["changed"], json!([creator]));
    assert_eq!(devices_in(&query_all(&bob, &creator), &creator), ["A"]);
}

#[test]
fn who_verifies_somebody_of_another_server_signs_the_key_that_this_one_tells() {
    let (a, mut b) = TestServer::pair();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), a.user("carol"));
    let (of_alice, of_bob) = (alice.upload_signing_keys(), bob.upload_signing_keys());
    let upload = |user: &str, key: String, object: Value| {
        let signed = json!({ user: { key.as_str(): object } });
        let answer = alice.post("/_matrix/client/v3/keys/signatures/upload", signed);
        answer["failures"][user][&key]["errcode"].as_str().map(str::to_owned)
    };
    // They share no room yet, so that bob's server is asked.
    let other = TestSigningKeys::new(bob.id());
    let signed = of_alice.sign_user(of_bob.master());
    assert_eq!(
        upload(bob.id(), other.master_public(), of_alice.sign_user(other.master())).as_deref(),
        Some("M_NOT_FOUND")
    );
    let wrong = other.sign_user(of_bob.master());
    assert_eq!(upload(bob.id(), of_bob.master_public(), wrong).as_deref(), Some("M_INVALID_SIGNATURE"));
    assert_eq!(upload(bob.id(), of_bob.master_public(), signed.clone()), None);
    let told = |asker: &TestUser| asker.query_keys(&[bob.id()])["master_keys"][bob.id()].clone();
    assert_eq!((told(&alice), told(&carol), told(&bob)), (signed.clone(), of_bob.master(), of_bob.master()));
    // And the same once they do.
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    wait_until("the signature is shown", || told(&alice) == signed);
    assert_eq!(told(&bob), of_bob.master(), "that alice has verified him is hers to know");
    b.stop();
    let stranger = TestSigningKeys::new(&format!("@stranger:{}", b.name()));
    let object = of_alice.sign_user(stranger.master());
    let code = upload(&format!("@stranger:{}", b.name()), stranger.master_public(), object);
    assert_eq!(code.as_deref(), Some("M_UNKNOWN"), "nobody knows whether there is such a key");
}
