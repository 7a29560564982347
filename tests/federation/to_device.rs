//! Messages to devices: to each device once, in order, whatever happens in between.

use std::time::Duration;

use crate::common::ProcessServer;
use crate::common::peer::Peer;
use crate::common::scene::bob_at;
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::testing::TestUser;
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

fn direct(sender: &str, id: &str, messages: Value) -> Value {
    let content = json!({ "sender": sender, "type": "m.test", "message_id": id, "messages": messages });
    json!({ "edu_type": "m.direct_to_device", "content": content })
}

#[test]
fn a_message_is_there_until_the_device_has_proved_to_have_it() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let other = server.device_of(&bob, "OTHER");
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
    let long = format!("/_matrix/client/v3/sendToDevice/m.test/{}", "t".repeat(256));
    let refused = alice.request("PUT", &long, Some(json!({ "messages": {} })));
    assert_eq!((refused.0, refused.1["errcode"].as_str()), (400, Some("M_INVALID_PARAM")));
    assert_eq!(put(json!({ "messages": {} })).0, 200);
}

#[test]
fn a_message_for_all_devices_is_not_written_many_times_what_a_request_may_have() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for number in 0..80 {
        server.device_of(&bob, &format!("D{number}"));
    }
    let put = |txn: &str, length: usize| {
        let messages = json!({ "messages": { bob.id(): { "*": { "n": length, "x": "x".repeat(length) } } } });
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/{txn}");
        let (status, answer) = alice.request("PUT", &path, Some(messages));
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(put("large", 60_000), (413, "M_TOO_LARGE".to_owned()));
    assert_eq!(put("small", 10_000).0, 200);
    assert_eq!(receive(&bob, 1), [10_000]);
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
    peer.send_edus(server.name(), "t1", &[message("one", 1), message("two", 2), message("one", 1)]);
    server.kill();
    server.resume();
    peer.send_edus(server.name(), "t2", &[message("two", 2), message("three", 3)]);
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
    peer.send_edus(server.name(), "t1", &hostile);
    assert_eq!(receive(&bob, 1), [8]);
}

#[test]
fn messages_for_nobody_ask_nothing_of_the_writer_however_many_they_are() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let eve = peer.user("eve").to_string();
    // The keys of the peer are fetched and kept before.
    peer.send_edus(server.name(), "t0", &[]);
    let many = |prefix: &str| -> serde_json::Map<String, Value> {
        (0..2000).map(|n| (format!("{prefix}{n}"), json!({}))).collect()
    };
    let nobody = |n: usize| (format!("@nobody{n}:localhost"), json!({ "*": {}, "D": {} }));
    let edus = [
        direct(&eve, "devices", json!({ bob.id(): many("D") })),
        direct(&eve, "users", Value::Object((0..2000).map(nobody).collect())),
    ];
    let (busy, over) = (Gate::default(), Gate::default());
    std::thread::scope(|scope| {
        let writer = scope.spawn(|| {
            let (held, over) = (busy.clone(), over.clone());
            server.homeserver().store.write(move |_| {
                held.open();
                over.pass();
                Ok(())
            })
        });
        busy.pass();
        peer.send_edus(server.name(), "t1", &edus);
        assert!(!writer.is_finished(), "it was answered only when the writer was free");
        over.open();
        writer.join().expect("no panic").expect("written");
    });
}

#[test]
fn a_large_message_to_devices_is_written_in_portions_and_a_repeat_of_it_brings_nothing_twice() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let devices: Vec<TestUser> = ["A", "K", "Z"].iter().map(|id| server.device_of(&bob, id)).collect();
    devices.iter().for_each(|device| drop(device.initial_sync()));
    let peer = Peer::start();
    let eve = peer.user("eve").to_string();
    let mut crowd: serde_json::Map<String, Value> =
        ('A'..='Z').flat_map(|l| (0..40).map(move |n| (format!("{l}{n}"), json!({ "n": 0 })))).collect();
    for (n, id) in ["A", "K", "Z"].iter().enumerate() {
        crowd.insert((*id).to_owned(), json!({ "n": n + 1 }));
    }
    let edu = direct(&eve, "once", json!({ bob.id(): crowd }));
    for txn in ["t1", "t2"] {
        peer.send_edus(server.name(), txn, std::slice::from_ref(&edu));
        send(&alice, "t", json!({ bob.id(): crowd }));
    }
    for (n, device) in (1..).zip(&devices) {
        assert_eq!(receive(device, 2), [n, n]);
        assert!(numbers(&device.sync(Duration::ZERO)).is_empty());
    }
}

/// A transaction of messages of many users to all of a user's devices, each of a size; the status and body of the answer.
fn flood(
    peer: &Peer,
    server: &TestServer,
    txn: &str,
    to: &TestUser,
    (messages, size): (i64, usize),
) -> (u16, Value) {
    let edus = (0..messages).map(|n| message_of(peer, &format!("sender{}", n % 10), txn, to, (n, size)));
    transact(peer, server, txn, &edus.collect::<Vec<_>>())
}

/// One message with a number to all of a user's devices, of a size.
fn message_of(peer: &Peer, sender: &str, txn: &str, to: &TestUser, (n, size): (i64, usize)) -> Value {
    let content = json!({ "n": n, "x": "x".repeat(size) });
    direct(peer.user(sender).as_str(), &format!("{txn} {n}"), json!({ to.id(): { "*": content } }))
}

fn transact(peer: &Peer, server: &TestServer, txn: &str, edus: &[Value]) -> (u16, Value) {
    let body = json!({ "origin": peer.name(), "origin_server_ts": 1, "pdus": [], "edus": edus });
    peer.ask(server.name(), "PUT", &format!("/_matrix/federation/v1/send/{txn}"), Some(&body))
}

#[test]
fn a_stranger_who_fills_an_inbox_shuts_out_nobody_but_himself() {
    let friend = Peer::start();
    let (server, bob, _room) = bob_at(&friend);
    bob.initial_sync();
    let (alice, strangers) = (server.user("alice"), [Peer::start(), Peer::start()]);
    for stranger in &strangers {
        assert_eq!(flood(stranger, &server, "t1", &bob, (60, 10)).0, 200);
        let (status, refusal) = flood(stranger, &server, "t2", &bob, (60, 10));
        assert_eq!((status, refusal["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")));
        assert!(refusal["retry_after_ms"].as_i64().is_some_and(|ms| ms > 0), "{refusal}");
    }
    // The others have their own shares of the line.
    assert_eq!(flood(&friend, &server, "t1", &bob, (100, 10)).0, 200);
    send(&alice, "t1", json!({ bob.id(): { "*": { "n": 1000 } } }));
    let came = receive(&bob, 221);
    assert_eq!((came.len(), came.last()), (221, Some(&1000)));
    // What was refused was taken in no part, and comes as soon as the device has fetched what waited.
    bob.sync(Duration::ZERO);
    assert_eq!(flood(&strangers[0], &server, "t2", &bob, (60, 10)).0, 200);
    assert_eq!(receive(&bob, 60), (0..60).collect::<Vec<_>>());
}

#[test]
fn a_friends_messages_beyond_its_share_stay_with_it_until_there_is_room() {
    let friend = Peer::start();
    let (server, bob, _room) = bob_at(&friend);
    bob.initial_sync();
    let large = (100, 60_000);
    assert_eq!(flood(&friend, &server, "t1", &bob, large).0, 200);
    assert_eq!(flood(&friend, &server, "t2", &bob, large).0, 200);
    let (status, refusal) = flood(&friend, &server, "t3", &bob, large);
    assert_eq!((status, refusal["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")));
    assert_eq!(receive(&bob, 200).len(), 200);
    bob.sync(Duration::ZERO);
    assert_eq!(flood(&friend, &server, "t3", &bob, large).0, 200);
    assert_eq!(receive(&bob, 100), (0..100).collect::<Vec<_>>());
}

#[test]
fn one_user_of_a_friend_who_fills_an_inbox_shuts_out_nobody_but_himself() {
    let friend = Peer::start();
    let (server, bob, _room) = bob_at(&friend);
    bob.initial_sync();
    let large = 60_000;
    // Nothing of it is refused: the server and its other users have nothing to wait for.
    for round in 0..4 {
        let txn = format!("t{round}");
        let edus = (0..60).map(|n| message_of(&friend, "loud", &txn, &bob, (round * 60 + n, large)));
        assert_eq!(transact(&friend, &server, &txn, &edus.collect::<Vec<_>>()).0, 200, "{round}");
    }
    let quiet = message_of(&friend, "quiet", "q", &bob, (1000, large));
    assert_eq!(transact(&friend, &server, "q", &[quiet]).0, 200);
    let kept = (4 << 20) / (large as i64 + 200);
    let came = receive(&bob, kept as usize + 1);
    assert_eq!(came, (0..kept).chain([1000]).collect::<Vec<_>>());
    // When they are fetched, he is heard again.
    bob.sync(Duration::ZERO);
    let again = message_of(&friend, "loud", "again", &bob, (2000, large));
    assert_eq!(transact(&friend, &server, "again", &[again]).0, 200);
    assert_eq!(receive(&bob, 1), [2000]);
}

#[test]
fn what_else_a_server_says_is_heard_although_a_message_to_a_device_must_wait() {
    let friend = Peer::start();
    let (server, bob, room) = bob_at(&friend);
    bob.initial_sync();
    let large = (100, 60_000);
    assert_eq!(flood(&friend, &server, "t1", &bob, large).0, 200);
    assert_eq!(flood(&friend, &server, "t2", &bob, large).0, 200);
    let alice = room.creator.as_str();
    let mut edus: Vec<Value> =
        (0..99).map(|n| message_of(&friend, &format!("sender{}", n % 10), "t3", &bob, (n, 60_000))).collect();
    let content = json!({
        "user_id": alice, "device_id": "NEW", "stream_id": 1, "prev_id": [], "device_display_name": "new",
    });
    edus.push(json!({ "edu_type": "m.device_list_update", "content": content }));
    assert_eq!(transact(&friend, &server, "t3", &edus).0, 429);
    bob.sync_until("the news of alice's devices", |answer| {
        let changed = answer["device_lists"]["changed"].as_array()?;
        changed.contains(&json!(alice)).then_some(())
    });
}

#[test]
fn one_of_us_who_fills_an_inbox_is_told_so_and_nobody_else_is() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    bob.initial_sync();
    let x = "x".repeat(60_000);
    let put = |user: &TestUser, n: i64| {
        let path = format!("/_matrix/client/v3/sendToDevice/m.test/t{n}");
        let messages = json!({ "messages": { bob.id(): { "*": { "n": n, "x": x } } } });
        user.request("PUT", &path, Some(messages))
    };
    let taken = (0..400).take_while(|n| put(&alice, *n).0 == 200).count();
    assert!((200..350).contains(&taken), "{taken} of 60 kB each");
    let (status, refusal) = put(&alice, 1000);
    assert_eq!((status, refusal["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")));
    assert!(refusal["retry_after_ms"].as_i64().is_some_and(|ms| ms > 0), "{refusal}");
    assert_eq!(put(&carol, 2000).0, 200);
    assert_eq!(receive(&bob, taken + 1).last(), Some(&2000));
    bob.sync(Duration::ZERO);
    assert_eq!(put(&alice, 1000).0, 200, "the same request as the one that was refused");
    assert_eq!(receive(&bob, 1), [1000]);
}

/// Prints how long others wait while a million messages for nobody come in:
/// `cargo test --release --test federation to_device -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stdout, clippy::disallowed_methods, reason = "figures are there to be read")]
fn what_a_million_messages_for_nobody_cost_others() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (peers, room) = ([(); 4].map(|()| Peer::start()), alice.create_room());
    let bodies: Vec<Value> = peers
        .iter()
        .map(|peer| {
            let (eve, bob) = (peer.user("eve"), bob.id());
            let many = |edu: usize| -> serde_json::Map<String, Value> {
                (0..7000).map(|n| (format!("{:x}", edu * 7000 + n), json!({}))).collect()
            };
            let edus: Vec<Value> =
                (0..100).map(|n| direct(eve.as_str(), &n.to_string(), json!({ bob: many(n) }))).collect();
            json!({ "origin": peer.name(), "origin_server_ts": 1, "pdus": [], "edus": edus })
        })
        .collect();
    let attack = &|peer: &Peer, body: &Value| {
        let started = std::time::Instant::now();
        let status = peer.ask(server.name(), "PUT", "/_matrix/federation/v1/send/many", Some(body)).0;
        (status, started.elapsed())
    };
    std::thread::scope(|scope| {
        let attacks: Vec<_> =
            peers.iter().zip(&bodies).map(|(peer, body)| scope.spawn(move || attack(peer, body))).collect();
        let (mut longest, mut sends) = (Duration::ZERO, 0);
        while attacks.iter().any(|attack| !attack.is_finished()) {
            let started = std::time::Instant::now();
            alice.send(&room, "hello");
            (longest, sends) = (longest.max(started.elapsed()), sends + 1);
            std::thread::sleep(Duration::from_millis(20));
        }
        println!("the longest of {sends} sends: {longest:?}");
        attacks.into_iter().for_each(|attack| println!("{:?}", attack.join().expect("no panic")));
    });
}

/// The messages to devices that a peer was sent: how many bytes each ephemeral message has, and the devices in it.
fn sent_to(peer: &Peer) -> Vec<(usize, Vec<String>)> {
    let transactions = peer.asked("/send/");
    let edus =
        transactions.iter().flat_map(|asked| asked.body["edus"].as_array().cloned().unwrap_or_default());
    let direct = edus.filter(|edu| edu["edu_type"] == "m.direct_to_device");
    direct
        .map(|edu| {
            let users = edu["content"]["messages"].as_object().expect("messages").values();
            let devices = users.flat_map(|of_user| of_user.as_object().expect("devices").keys().cloned());
            (edu.to_string().len(), devices.collect())
        })
        .collect()
}

#[test]
fn messages_for_another_server_are_split_so_that_none_is_larger_than_an_event() {
    let peer = Peer::start();
    peer.take_transactions();
    let server = TestServer::start();
    let (alice, eve) = (server.user("alice"), peer.user("eve"));
    let content = |size: usize| json!({ "x": "x".repeat(size) });
    // Ids that are much longer when they are written, and contents of all sizes.
    let mut devices: serde_json::Map<String, Value> =
        (0..300).map(|n| (format!("{}{n}", "\u{1}".repeat(60)), json!({}))).collect();
    devices.extend((0..20).map(|n| (format!("D{n}"), content(n * 3000))));
    devices.insert("LARGE".into(), content(65_000));
    send(&alice, "t1", json!({ eve.as_str(): devices }));
    let mut came: Vec<(usize, Vec<String>)> = Vec::new();
    wait_until("all devices have theirs", || {
        came = sent_to(&peer);
        came.iter().map(|(_, devices)| devices.len()).sum::<usize>() >= devices.len()
    });
    assert!(came.iter().all(|(bytes, _)| *bytes <= 65_536), "{:?}", came.iter().map(|c| c.0).max());
    let mut all: Vec<String> = came.into_iter().flat_map(|(_, devices)| devices).collect();
    all.sort();
    assert!(all.iter().eq(devices.keys()), "each device once");
    // What is too large for one alone is refused, and nothing of that request is sent.
    let path = "/_matrix/client/v3/sendToDevice/m.test/t2";
    let too_large = json!({ "messages": { eve.as_str(): { "SMALL": {}, "LARGE": content(65_490) } } });
    let (status, refusal) = alice.request("PUT", path, Some(too_large));
    assert_eq!((status, refusal["errcode"].as_str()), (413, Some("M_TOO_LARGE")));
    send(&alice, "t3", json!({ eve.as_str(): { "LAST": {} } }));
    wait_until("the last", || sent_to(&peer).iter().any(|(_, devices)| devices.contains(&"LAST".to_owned())));
    assert!(sent_to(&peer).iter().all(|(_, devices)| !devices.contains(&"SMALL".to_owned())));
}

#[test]
fn messages_wait_for_a_server_that_is_away_for_a_day_and_come_once_each() {
    let peer = Peer::start();
    let server = TestServer::start();
    let (alice, eve) = (server.user("alice"), peer.user("eve"));
    peer.answer_json("/send/", 503, json!({ "errcode": "M_UNKNOWN", "error": "away" }));
    for n in 0..150 {
        send(&alice, &format!("t{n}"), json!({ eve.as_str(): { format!("D{n:03}"): {} } }));
    }
    let away = peer.name().clone();
    wait_until("it is found to be away", || server.homeserver().outgoing.is_pausing(&away));
    for _ in 0..24 {
        server.advance(Duration::from_secs(3600));
    }
    let before = sent_to(&peer).len();
    peer.take_transactions();
    server.advance(Duration::from_secs(24 * 3600));
    let mut came = Vec::new();
    wait_until("all of them", || {
        came = sent_to(&peer)[before..].iter().flat_map(|(_, devices)| devices.clone()).collect::<Vec<_>>();
        came.len() >= 150
    });
    let expected: Vec<String> = (0..150).map(|n| format!("D{n:03}")).collect();
    assert!(came.ends_with(&expected), "{came:?}");
}
