//! Messages to devices and device lists: to each device once, in order, whatever happens in between.

mod common;

use std::time::Duration;

use common::ProcessServer;
use common::peer::{Peer, now_ms};
use common::scene::{bob_at, edus_at};
use common::wait::wait_until;
use doorstep::TestServer;
use doorstep::http::Reply;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

#[track_caller]
fn send(user: &TestUser, txn: &str, messages: Value) {
    user.put(&format!("/_matrix/client/v3/sendToDevice/m.test/{txn}"), json!({ "messages": messages }));
}

fn device_of(user: &TestUser) -> String {
    let device = user.get("/_matrix/client/v3/account/whoami")["device_id"].clone();
    device.as_str().expect("a device").to_owned()
}

/// The `n` of each message in an answer of `/sync`.
fn numbers(answer: &Value) -> Vec<i64> {
    let events = answer["to_device"]["events"].as_array();
    events.into_iter().flatten().map(|e| e["content"]["n"].as_i64().expect("a number")).collect()
}

fn sync_from(user: &TestUser, since: &str) -> (Vec<i64>, String) {
    let answer = user.get(&format!("/_matrix/client/v3/sync?since={since}"));
    (numbers(&answer), answer["next_batch"].as_str().expect("a token").to_owned())
}

/// Syncs until so many messages have come; what came.
#[track_caller]
fn receive(user: &TestUser, count: usize) -> Vec<i64> {
    let mut all = Vec::new();
    user.sync_until(&format!("{count} messages"), |answer| {
        all.extend(numbers(answer));
        (all.len() >= count).then_some(())
    });
    all
}

#[track_caller]
fn send_edus(peer: &Peer, server: &str, txn: &str, edus: &[Value]) {
    let body = json!({ "origin": peer.name(), "origin_server_ts": now_ms(), "pdus": [], "edus": edus });
    let path = format!("/_matrix/federation/v1/send/{txn}");
    let (status, answer) = peer.ask(server, "PUT", &path, Some(&body));
    assert_eq!(status, 200, "{answer}");
}

fn direct(sender: &str, id: &str, messages: Value) -> Value {
    let content = json!({ "sender": sender, "type": "m.test", "message_id": id, "messages": messages });
    json!({ "edu_type": "m.direct_to_device", "content": content })
}

fn log_in(server: &TestServer, user: &TestUser, device: &str) -> TestUser {
    let id = UserId::parse(user.id()).expect("a user id");
    let login = server.homeserver().log_in(&id, Some(device), Some("my other"), false).expect("logged in");
    TestUser::new(server.url(), user.id(), &login.access_token)
}

#[test]
fn a_message_is_there_until_the_device_has_proved_to_have_it() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let other = log_in(&server, &bob, "OTHER");
    let before = bob.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    let device = device_of(&bob);
    send(&alice, "t1", json!({ bob.id(): { &device: { "n": 1 }, "NONE": { "n": 9 } } }));
    send(&alice, "t1", json!({ bob.id(): { &device: { "n": 1 } } }));
    send(&alice, "t2", json!({ bob.id(): { "*": { "n": 2 } }, "@nobody:localhost": { "*": { "n": 3 } } }));
    let (first, token) = sync_from(&bob, &before);
    assert_eq!(first, [1, 2]);
    // The answer may have been lost: the same question has the same answer, also after a restart.
    server.restart();
    assert_eq!(sync_from(&bob, &before).0, [1, 2]);
    assert_eq!(numbers(&bob.get("/_matrix/client/v3/sync")), [1, 2], "who starts anew gets them as well");
    send(&alice, "t3", json!({ bob.id(): { &device: { "n": 4 } } }));
    assert_eq!(sync_from(&bob, &token).0, [4]);
    assert_eq!(sync_from(&bob, &before).0, [4], "what was proved is gone");
    assert_eq!(numbers(&other.initial_sync()), [2]);
    let event = bob.get("/_matrix/client/v3/sync")["to_device"]["events"][0].clone();
    assert_eq!(event, json!({ "sender": alice.id(), "type": "m.test", "content": { "n": 4 } }));
}

#[test]
fn a_long_line_comes_in_portions_and_nothing_is_lost_or_repeated() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let start = bob.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    for n in 0..250 {
        send(&alice, &format!("t{n}"), json!({ bob.id(): { "*": { "n": n } } }));
    }
    let (first, token) = sync_from(&bob, &start);
    assert_eq!(first, (0..100).collect::<Vec<_>>());
    let (second, _) = sync_from(&bob, &token);
    assert_eq!(second, (100..200).collect::<Vec<_>>());
    server.restart();
    // The second answer never arrived.
    let (again, token) = sync_from(&bob, &token);
    assert_eq!(again, second);
    send(&alice, "late", json!({ bob.id(): { "*": { "n": 250 } } }));
    let (third, token) = sync_from(&bob, &token);
    assert_eq!(third, (200..251).collect::<Vec<_>>());
    assert!(sync_from(&bob, &token).0.is_empty());
    send(&alice, "last", json!({ bob.id(): { "*": { "n": 251 } } }));
    assert_eq!(sync_from(&bob, &token).0, [251]);
}

#[test]
fn what_is_no_message_is_refused() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let put = |body: Value| {
        let (status, answer) = alice.request("PUT", "/_matrix/client/v3/sendToDevice/m.test/t", Some(body));
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(put(json!({})), (400, "M_MISSING_PARAM".into()));
    assert_eq!(put(json!({ "messages": [] })), (400, "M_BAD_JSON".into()));
    assert_eq!(put(json!({ "messages": { alice.id(): { "X": 5 } } })), (400, "M_BAD_JSON".into()));
    assert_eq!(put(json!({ "messages": { "alice": { "X": {} } } })), (400, "M_INVALID_PARAM".into()));
    let large = json!({ "messages": { alice.id(): { "X": { "x": "x".repeat(70_000) } } } });
    assert_eq!(put(large), (413, "M_TOO_LARGE".into()));
    assert_eq!(put(json!({ "messages": {} })).0, 200);
}

#[test]
fn messages_between_servers_survive_outages_kills_and_restarts_in_order() {
    let mut a = ProcessServer::start(&[]);
    let mut b = TestServer::start();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    bob.initial_sync();
    let to_bob = |n: i64| send(&alice, &format!("t{n}"), json!({ bob.id(): { "*": { "n": n } } }));
    (0..3).for_each(to_bob);
    assert_eq!(receive(&bob, 3), [0, 1, 2]);
    b.stop();
    (3..40).for_each(to_bob);
    a.kill();
    b.resume();
    a.resume();
    (40..43).for_each(to_bob);
    assert_eq!(receive(&bob, 40), (3..43).collect::<Vec<_>>());
    // Back again, to one device.
    alice.initial_sync();
    send(&bob, "back", json!({ alice.id(): { device_of(&alice): { "n": 7 } } }));
    assert_eq!(receive(&alice, 1), [7]);
    assert!(numbers(&bob.sync(Duration::ZERO)).is_empty());
}

#[test]
fn a_message_that_was_received_survives_a_kill_and_its_repeat_is_known() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    bob.initial_sync();
    let peer = Peer::start();
    let eve = peer.user("eve");
    let message = |id: &str, n: i64| direct(eve.as_str(), id, json!({ bob.id(): { "*": { "n": n } } }));
    send_edus(&peer, server.name(), "t1", &[message("one", 1), message("two", 2), message("one", 1)]);
    server.kill();
    server.resume();
    send_edus(&peer, server.name(), "t2", &[message("two", 2), message("three", 3)]);
    assert_eq!(receive(&bob, 3), [1, 2, 3]);
    assert!(numbers(&bob.sync(Duration::ZERO)).is_empty());
}

#[test]
fn a_server_cannot_write_in_the_name_of_others_nor_to_whom_does_not_exist() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    bob.initial_sync();
    let peer = Peer::start();
    let eve = peer.user("eve").to_string();
    let to_bob = |n: i64| json!({ bob.id(): { "*": { "n": n } } });
    let crowd: serde_json::Map<String, Value> =
        (0..10_001).map(|n| (format!("D{n}"), json!({ "n": 0 }))).collect();
    let hostile = [
        direct(alice.id(), "a", to_bob(1)),
        direct(&eve, "", to_bob(2)),
        direct(&eve, &"é".repeat(33), to_bob(3)),
        direct(&eve, "b", json!({ bob.id(): { "NONE": { "n": 4 } }, "@nobody:localhost": { "*": {} } })),
        direct(&eve, "c", json!({ "not a user": { "*": { "n": 5 } }, eve.as_str(): { "*": { "n": 5 } } })),
        direct(&eve, "d", json!({ bob.id(): { "*": { "n": 6, "x": "x".repeat(70_000) } } })),
        direct(&eve, "e", json!({ bob.id(): { "*": 7 } })),
        direct(&eve, "f", json!({ bob.id(): crowd })),
        direct(&eve, "g", json!([])),
        json!({ "edu_type": "m.direct_to_device", "content": {} }),
        direct(&eve, &"é".repeat(32), to_bob(8)),
    ];
    send_edus(&peer, server.name(), "t1", &hostile);
    assert_eq!(receive(&bob, 1), [8]);
}

#[test]
fn who_shares_a_room_is_told_of_devices_that_come_and_go() {
    let (a, b) = TestServer::pair();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), b.user("carol"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    bob.initial_sync();
    carol.initial_sync();
    let changed = |user: &TestUser, whose: &TestUser| {
        user.sync_until("a changed device list", |answer| {
            let changed = answer["device_lists"]["changed"].as_array()?;
            changed.iter().any(|id| *id == whose.id()).then_some(())
        });
    };
    let second = log_in(&a, &alice, "SECOND");
    changed(&bob, &alice);
    alice.put("/_matrix/client/v3/devices/SECOND", json!({ "display_name": "renamed" }));
    changed(&bob, &alice);
    second.post("/_matrix/client/v3/logout", json!({}));
    changed(&bob, &alice);
    // One's own devices are news to oneself, too.
    alice.initial_sync();
    log_in(&a, &alice, "THIRD");
    changed(&alice, &alice);
    assert!(carol.sync(Duration::ZERO).get("device_lists").is_none(), "carol shares no room with alice");
}

#[test]
fn a_gap_in_the_updates_of_a_user_has_the_whole_list_fetched() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    let update = |device: &str, stream: i64, prev: Value| {
        let content =
            json!({ "user_id": creator, "device_id": device, "stream_id": stream, "prev_id": prev });
        json!({ "edu_type": "m.device_list_update", "content": content })
    };
    let known = || {
        let devices = server.homeserver().store.read(|db| db.remote_devices(&creator)).expect("read");
        devices.into_iter().map(|device| device.device_id).collect::<Vec<_>>()
    };
    send_edus(&peer, server.name(), "t1", &[update("A", 5, json!([])), update("B", 6, json!([5]))]);
    wait_until("both are known", || known() == ["A", "B"]);
    assert!(peer.asked("user/devices").is_empty());
    let gate = common::wait::Gate::default();
    let list = json!({
        "user_id": creator, "stream_id": 9,
        "devices": [{ "device_id": "C", "keys": { "user_id": creator, "device_id": "C" } }, { "device_id": "D" }],
    });
    peer.answer("user/devices", {
        let gate = gate.clone();
        move |_| {
            gate.pass();
            Reply::json(&list)
        }
    });
    bob.initial_sync();
    send_edus(&peer, server.name(), "t2", &[update("C", 9, json!([8]))]);
    peer.wait_for("user/devices");
    gate.open();
    wait_until("the list is there", || known() == ["C", "D"]);
    let told = bob.sync(Duration::ZERO);
    assert_eq!(told["device_lists"]["changed"], json!([creator]));
    // The chain goes on from there; a repeat and a message about others change nothing.
    let mut gone = update("D", 12, json!([9]));
    gone["content"]["deleted"] = json!(true);
    let foreign = json!({ "edu_type": "m.device_list_update", "content":
        { "user_id": bob.id(), "device_id": "X", "stream_id": 1, "prev_id": [] } });
    let unshared = json!({ "edu_type": "m.device_list_update", "content":
        { "user_id": peer.user("stranger"), "device_id": "X", "stream_id": 1, "prev_id": [] } });
    send_edus(&peer, server.name(), "t3", &[gone, update("C", 9, json!([8])), foreign, unshared]);
    wait_until("the end of one", || known() == ["C"]);
    let stranger = peer.user("stranger");
    let of_stranger = server.homeserver().store.read(|db| db.remote_device_list(&stranger)).expect("read");
    assert_eq!(of_stranger, None);
    let keys = json!({ "edu_type": "m.signing_key_update", "content": { "user_id": creator } });
    bob.sync(Duration::ZERO);
    send_edus(&peer, server.name(), "t4", &[keys]);
    assert_eq!(bob.sync(Duration::ZERO)["device_lists"]["changed"], json!([creator]));
}

#[test]
fn the_updates_of_our_devices_form_a_chain_that_a_restart_does_not_break() {
    let peer = Peer::start();
    let (mut server, bob, _room) = bob_at(&peer);
    log_in(&server, &bob, "ONE");
    server.restart();
    log_in(&server, &bob, "TWO");
    let id = UserId::parse(bob.id()).expect("a user id");
    server.homeserver().delete_devices(&id, vec!["ONE".into(), "NEVER".into()]).expect("logged out");
    wait_until("all three are told", || edus_at(&peer, "m.device_list_update").len() >= 3);
    let mut told = edus_at(&peer, "m.device_list_update");
    told.dedup();
    let devices: Vec<&Value> = told.iter().map(|update| &update["device_id"]).collect();
    assert_eq!(devices, ["ONE", "TWO", "ONE"]);
    assert_eq!(told[0]["device_display_name"], "my other");
    assert_eq!(told[2]["deleted"], true);
    for (before, after) in told.iter().zip(&told[1..]) {
        assert_eq!(after["prev_id"], json!([before["stream_id"]]));
    }
    let path = format!("/_matrix/federation/v1/user/devices/{}", segment(bob.id()));
    let (status, list) = peer.ask(server.name(), "GET", &path, None);
    let expected = json!({ "user_id": bob.id(), "stream_id": told[2]["stream_id"], "devices": [] });
    assert_eq!((status, list), (200, expected));
    let path = format!("/_matrix/federation/v1/user/devices/{}", segment("@nobody:localhost"));
    assert_eq!(peer.ask(server.name(), "GET", &path, None).0, 404);
}

#[test]
fn who_comes_into_an_encrypted_room_and_goes_is_listed() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    alice.initial_sync();
    bob.initial_sync();
    bob.join(&room);
    assert_eq!(alice.sync(Duration::ZERO)["device_lists"], json!({ "changed": [bob.id()] }));
    let listed = bob.sync(Duration::ZERO)["device_lists"]["changed"].clone();
    assert!(listed.as_array().expect("a list").contains(&json!(alice.id())), "{listed}");
    bob.leave(&room);
    assert_eq!(alice.sync(Duration::ZERO)["device_lists"], json!({ "left": [bob.id()] }));
    assert_eq!(bob.sync(Duration::ZERO)["device_lists"], json!({ "left": [alice.id()] }));
}
