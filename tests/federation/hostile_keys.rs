//! Servers that mean ill with what they tell of their users' devices and keys: what fills memory, what keeps us at work, what
//! makes answers unreadable, and what is told at the worst time.

use std::collections::BTreeSet;
use std::thread;
use std::time::Duration;

use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{Scene, bob_at, edus_at};
use crate::common::wait::{Gate, wait_until};
use crate::keys_across_servers::{
    CLAIM, DEVICES, QUERY, claim, cross_signing, devices_in, failed, has_devices, has_no_answer, identity,
    is_current, query, query_all, update,
};
use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::protocol::keys::remote::{RemoteDevice, RemoteKeys};
use doorstep::testing::TestUser;
use serde_json::{Value, json};

/// More than any list that is kept comes to, in bytes.
const LIST_BYTES: usize = 1200 << 10;

fn kept(server: &TestServer, user: &UserId) -> RemoteKeys {
    server.homeserver().store.read(|db| db.remote_keys(user)).expect("read")
}

/// Whether anything is known of a user's devices.
fn is_held(server: &TestServer, user: &UserId) -> bool {
    server.homeserver().store.read(|db| db.remote_device_list(user)).expect("read").is_some()
}

/// The identity keys of a device, of about so many bytes.
fn large_identity(user: &UserId, device: &str, bytes: usize) -> Value {
    let mut keys = identity(user, device);
    keys["ballast"] = "x".repeat(bytes).into();
    keys
}

/// Bob knows the devices of the creator of a room at the peer, which is asked for nothing more.
fn bob_who_knows(peer: &Peer, devices: &[&str]) -> (TestServer, TestUser, FakeRoom) {
    let (server, bob, room) = bob_at(peer);
    has_devices(peer, &room.creator, 5, devices);
    query_all(&bob, &room.creator);
    wait_until("the list is fetched", || is_current(&server, &room.creator));
    (server, bob, room)
}

/// The peer's users join its room before bob does.
fn room_with(peer: &Peer, server: &TestServer, bob: &TestUser, members: &[UserId]) -> FakeRoom {
    let mut room = FakeRoom::new(peer, "11", "public");
    for member in members {
        room.add(peer, "m.room.member", member.as_str(), member, json!({ "membership": "join" }));
    }
    peer.let_in(&room, bob.id());
    bob.join_via(room.id.as_str(), &[peer.name().as_str()]);
    wait_until("they are known to be there", || {
        server.homeserver().store.read(|db| db.is_of_interest(&members[0])).expect("read")
    });
    room
}

#[test]
fn of_a_list_that_nobody_could_have_a_part_is_kept_whichever_way_it_comes() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let creator = room.creator.clone();
    let names: Vec<String> = (0..300).map(|n| format!("D{n:03}")).collect();
    let list: Vec<Value> = names
        .iter()
        .map(|id| json!({ "device_id": id, "keys": large_identity(&creator, id, 12_000) }))
        .collect();
    peer.answer_json(QUERY, 503, json!({}));
    peer.answer_json(DEVICES, 200, json!({ "user_id": creator, "stream_id": 5, "devices": list }));
    query_all(&bob, &creator);
    wait_until("the list is fetched", || {
        server.advance(Duration::from_secs(60));
        is_current(&server, &creator)
    });
    let fetched = kept(&server, &creator);
    assert!(fetched.devices.len() > 50 && fetched.bytes() < LIST_BYTES, "{}", fetched.bytes());
    // By updates as well, and as the answer to a question.
    has_devices(&peer, &creator, 6, &["A"]);
    peer.send_edus(server.name(), "t0", &[update(&creator, "A", 9, json!([8]))]);
    wait_until("it is fetched again", || {
        server.advance(Duration::from_secs(60));
        is_current(&server, &creator) && kept(&server, &creator).devices.len() == 1
    });
    for (txn, names) in names.chunks(50).enumerate() {
        let updates: Vec<Value> = names
            .iter()
            .zip(7 + 50 * txn as i64..)
            .map(|(id, stream)| {
                let mut update = update(&creator, id, stream, json!([stream - 1]));
                update["content"]["keys"] = large_identity(&creator, id, 12_000);
                update
            })
            .collect();
        peer.send_edus(server.name(), &format!("t{}", txn + 1), &updates);
    }
    let told = kept(&server, &creator);
    assert!(told.devices.len() > 50 && told.bytes() < LIST_BYTES, "{}", told.bytes());
    // What is there may change, as long as it does not grow.
    let renamed = json!({ "edu_type": "m.device_list_update", "content": {
        "user_id": creator, "device_id": "A", "stream_id": 307, "prev_id": [306], "keys": identity(&creator, "A"),
        "device_display_name": "other",
    }});
    peer.send_edus(server.name(), "renamed", &[renamed]);
    assert_eq!(kept(&server, &creator).devices[0].display_name.as_deref(), Some("other"));
}

#[test]
fn lists_that_are_known_fill_no_answer_beyond_a_bound_and_the_smallest_are_in_it() {
    let (hostile, honest) = (Peer::start(), Peer::start());
    let (server, bob, room) = bob_who_knows(&honest, &["D0"]);
    let alice = room.creator.clone();
    let crowd: Vec<UserId> = (0..80).map(|n| hostile.user(&format!("u{n:02}"))).collect();
    let members = crowd.clone();
    let list =
        server.homeserver().store.read(|db| db.remote_device_list(&alice)).expect("read").expect("a list");
    let written = server.homeserver().store.write(move |tx| {
        for user in &members {
            for id in (0..70).map(|n| format!("D{n}")) {
                let keys = large_identity(user, &id, 14_000).to_string();
                let device = RemoteDevice { device_id: id, display_name: None, keys: Some(keys) };
                tx.set_remote_device(user, &device, 1000)?;
            }
            tx.set_remote_device_list(user, &list)?;
        }
        Ok(())
    });
    written.expect("written");
    let wanted: serde_json::Map<String, Value> =
        crowd.iter().chain([&alice]).map(|user| (user.to_string(), json!([]))).collect();
    let answer = query(&bob, wanted.into(), Duration::from_secs(10));
    assert!(answer.to_string().len() < 66 << 20);
    assert!(failed(&answer, &hostile) && !failed(&answer, &honest));
    assert_eq!(devices_in(&answer, &alice), ["D0"]);
}

#[test]
fn signing_keys_that_are_told_while_the_list_is_fetched_are_not_lost() {
    let peer = Peer::start();
    let (server, bob, room) = bob_who_knows(&peer, &["A"]);
    let creator = room.creator.clone();
    let devices = json!([{ "device_id": "A", "keys": identity(&creator, "A") }]);
    let list = |master: char| {
        let master = cross_signing(&creator, "master", master);
        json!({ "user_id": creator, "stream_id": 9, "devices": devices, "master_key": master })
    };
    let (gate, asked) = (Gate::default(), peer.asked(DEVICES).len());
    peer.answer_behind(&gate, DEVICES, 200, list('n'));
    peer.send_edus(server.name(), "t1", &[update(&creator, "A", 9, json!([8]))]);
    wait_until("it is asked for again", || {
        peer.asked(DEVICES).len() > asked || {
            server.advance(Duration::from_secs(10));
            false
        }
    });
    let next = cross_signing(&creator, "master", 'm');
    let told = json!({ "user_id": creator, "master_key": next });
    peer.send_edus(server.name(), "t2", &[json!({ "edu_type": "m.signing_key_update", "content": told })]);
    peer.answer_json(DEVICES, 200, list('m'));
    gate.open();
    wait_until("the list is fetched", || {
        is_current(&server, &creator) || {
            server.advance(Duration::from_secs(10));
            false
        }
    });
    assert_eq!(query_all(&bob, &creator)["master_keys"][creator.as_str()], next);
}

#[test]
fn a_server_that_says_ever_again_that_something_is_missing_is_asked_once_in_a_while() {
    let peer = Peer::start();
    let (server, _bob, room) = bob_who_knows(&peer, &["A"]);
    let creator = room.creator.clone();
    for round in 0..3 {
        let asked = peer.asked(DEVICES).len();
        let stream = 1000 * (round + 1);
        has_devices(&peer, &creator, stream, &["A"]);
        let txn = format!("t{round}");
        peer.send_edus(server.name(), &txn, &[update(&creator, "A", stream, json!([stream - 1]))]);
        let list = server.homeserver().store.read(|db| db.remote_device_list(&creator)).expect("read");
        let due = list.and_then(|list| list.due_ms).expect("it is to be fetched");
        let pause = due - server.homeserver().clock.now_ms();
        assert!((10_000..=30_000).contains(&pause), "{pause} ms");
        assert_eq!(peer.asked(DEVICES).len(), asked);
        server.advance(Duration::from_secs(31));
        wait_until("it is fetched", || is_current(&server, &creator));
        assert_eq!(peer.asked(DEVICES).len(), asked + 1);
    }
}

#[test]
fn one_server_does_not_hold_all_threads_that_fetch_lists_nor_two_for_one_user() {
    let (hostile, honest) = (Peer::start(), Peer::start());
    let (server, bob, room) = bob_at(&honest);
    let alice = room.creator.clone();
    let crowd: Vec<UserId> = (0..8).map(|n| hostile.user(&format!("u{n}"))).collect();
    room_with(&hostile, &server, &bob, &crowd);
    let gate = Gate::default();
    hostile.answer_behind(&gate, DEVICES, 404, json!({ "errcode": "M_NOT_FOUND" }));
    let gaps = |stream: i64| -> Vec<Value> {
        crowd.iter().map(|user| update(user, "A", stream, json!([stream - 1]))).collect()
    };
    for stream in [5, 9, 13] {
        hostile.send_edus(server.name(), &format!("t{stream}"), &gaps(stream));
    }
    hostile.wait_for(DEVICES);
    has_devices(&honest, &alice, 9, &["A"]);
    honest.send_edus(server.name(), "t1", &[update(&alice, "A", 9, json!([8]))]);
    wait_until("the list of somebody else is fetched", || is_current(&server, &alice));
    let asked: Vec<String> = hostile.asked(DEVICES).into_iter().map(|asked| asked.target).collect();
    assert!(asked.len() <= 2, "{asked:?}");
    assert_eq!(asked.iter().collect::<BTreeSet<_>>().len(), asked.len(), "{asked:?}");
    gate.open();
}

#[test]
fn whose_list_was_dropped_is_told_of_when_they_share_a_room_again() {
    let mut scene = Scene::new("11");
    let eve = scene.peer.user("eve");
    let join = scene.join(&eve);
    scene.send("t1", &[&join]);
    has_devices(&scene.peer, &eve, 5, &["A"]);
    query_all(&scene.alice, &eve);
    wait_until("the list is fetched", || is_current(&scene.server, &eve));
    scene.alice.initial_sync();
    // While alice's client is away: eve goes, has another device, comes again; her server says nothing of it.
    let kicked = scene.set_state("m.room.member", eve.as_str(), json!({ "membership": "leave" }));
    scene.send("t2", &[&kicked]);
    wait_until("the list is dropped", || !is_held(&scene.server, &eve));
    let rejoin = scene.join(&eve);
    scene.send("t3", &[&rejoin]);
    wait_until("eve is back", || scene.membership(&eve).as_deref() == Some("join"));
    assert_eq!(scene.alice.sync(Duration::ZERO)["device_lists"]["changed"], json!([eve]));
}

#[test]
fn a_user_who_left_and_came_back_is_told_of_everybody_there() {
    let peer = Peer::start();
    let (server, bob, room) = bob_who_knows(&peer, &["A"]);
    bob.initial_sync();
    bob.leave(room.id.as_str());
    assert!(!is_current(&server, &room.creator));
    bob.join_via(room.id.as_str(), &[peer.name().as_str()]);
    assert!(!is_current(&server, &room.creator), "what changed meanwhile nobody has told");
    wait_until("bob is told", || {
        let answer = bob.sync(Duration::ZERO);
        answer["device_lists"]["changed"].as_array().is_some_and(|all| all.contains(&json!(room.creator)))
    });
}

#[test]
fn what_would_make_a_whole_answer_unreadable_is_taken_from_nobody() {
    let peer = Peer::start();
    let server = TestServer::start();
    let (bob, eve) = (server.user("bob"), peer.user("eve"));
    let deep = |levels: usize| (0..levels).fold(json!([]), |inner, _| json!([inner]));
    let mut devices = serde_json::Map::new();
    devices.insert("GOOD".into(), identity(&eve, "GOOD"));
    let wrong = [
        ("algorithms", vec![json!("x"), json!([1]), json!({}), Value::Null, json!([["x"]])]),
        ("keys", vec![json!([]), json!({ "ed25519:X": 1 }), json!({ "a": {} }), json!("x"), Value::Null]),
        (
            "signatures",
            vec![json!([]), json!({ eve.as_str(): [] }), json!({ eve.as_str(): { "a": 1 } }), Value::Null],
        ),
        ("else", vec![deep(1500)]),
    ];
    for (member, values) in wrong {
        for (n, value) in values.into_iter().enumerate() {
            let id = format!("{member}{n}");
            let mut keys = identity(&eve, &id);
            keys[member] = value;
            devices.insert(id, keys);
        }
        let mut keys = identity(&eve, member);
        if keys.as_object_mut().expect("an object").remove(member).is_some() {
            devices.insert(member.to_owned(), keys);
        }
    }
    peer.answer_json(QUERY, 200, json!({ "device_keys": { eve.as_str(): devices } }));
    let answer = query_all(&bob, &eve);
    assert_eq!(devices_in(&answer, &eve), ["GOOD"]);
    // One-time keys are passed on to be read by the same clients.
    let key = |key: Value| json!({ "signed_curve25519:AAAA": key });
    let signed = json!({ eve.as_str(): { "ed25519:A": "s" } });
    let claims = [
        ("GOOD", json!({ "key": "x", "signatures": signed })),
        ("TEXT", json!("x")),
        ("NONE", json!({ "signatures": signed })),
        ("BARE", json!({ "key": "x" })),
        ("NUMBER", json!({ "key": 5, "signatures": signed })),
        ("DEEP", json!({ "key": "x", "signatures": signed, "more": deep(1500) })),
        ("LIST", json!({ "key": "x", "signatures": [] })),
        ("OTHER", json!({ "key": "x", "signatures": { eve.as_str(): { "a": 1 } } })),
    ];
    let told: serde_json::Map<String, Value> =
        claims.iter().map(|(device, told)| ((*device).to_owned(), key(told.clone()))).collect();
    peer.answer_json(CLAIM, 200, json!({ "one_time_keys": { eve.as_str(): told } }));
    let wanted: serde_json::Map<String, Value> =
        claims.iter().map(|(device, _)| ((*device).to_owned(), json!("signed_curve25519"))).collect();
    let claimed = claim(&bob, json!({ eve.as_str(): wanted }));
    assert_eq!(claimed["one_time_keys"], json!({ eve.as_str(): { "GOOD": key(claims[0].1.clone()) } }));
}

#[test]
fn nobody_signs_a_key_of_which_it_is_not_known_whether_it_is_still_there() {
    let peer = Peer::start();
    let (server, bob, room) = bob_who_knows(&peer, &["A"]);
    let creator = room.creator.clone();
    let signing = bob.upload_signing_keys();
    let master = cross_signing(&creator, "master", 'n');
    let public =
        master["keys"].as_object().and_then(|keys| keys.values().next()?.as_str().map(str::to_owned));
    let signed = json!({ creator.as_str(): { public.expect("a key"): signing.sign_user(master) } });
    let upload =
        || bob.post("/_matrix/client/v3/keys/signatures/upload", signed.clone())["failures"].to_string();
    has_no_answer(&peer);
    peer.send_edus(server.name(), "t1", &[update(&creator, "A", 9, json!([8]))]);
    assert!(upload().contains("M_UNKNOWN"), "the key that was there before may be another by now");
    // Once it is known, it is signed.
    has_devices(&peer, &creator, 9, &["A"]);
    wait_until("it is known again", || {
        server.advance(Duration::from_secs(600));
        is_current(&server, &creator)
    });
    assert_eq!(upload(), "{}");
}

#[test]
fn keys_of_this_server_are_not_used_up_while_others_are_waited_for() {
    let peer = Peer::start();
    let server = TestServer::start();
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), peer.user("eve"));
    let keys = bob.upload_keys(&["AAAA"]);
    let gate = Gate::default();
    peer.answer_behind(&gate, CLAIM, 200, json!({ "one_time_keys": {} }));
    let wanted = json!({
        bob.id(): { keys.device_id(): "signed_curve25519" }, eve.as_str(): { "A": "signed_curve25519" },
    });
    let owner = UserId::parse(bob.id()).expect("a user id");
    thread::scope(|scope| {
        let claimed = scope.spawn(|| claim(&alice, wanted));
        peer.wait_for(CLAIM);
        let left = server.homeserver().store.read(|db| db.one_time_key_counts(&owner, keys.device_id()));
        assert_eq!(left.expect("read").get("signed_curve25519"), Some(&1));
        gate.open();
        let claimed = claimed.join().expect("no panic");
        assert!(claimed["one_time_keys"][bob.id()][keys.device_id()].is_object(), "{claimed}");
    });
}

#[test]
fn of_many_devices_that_go_at_once_other_servers_are_told_so_that_they_fetch_the_list() {
    let peer = Peer::start();
    let (server, bob, _room) = bob_at(&peer);
    let told = || edus_at(&peer, "m.device_list_update");
    wait_until("the peer knows of bob's device", || !told().is_empty());
    let id = UserId::parse(bob.id()).expect("a user id");
    let names: Vec<String> = (0..40).map(|n| format!("D{n:02}")).collect();
    for name in &names {
        server.homeserver().accounts().log_in(&id, Some(name), None, false).expect("logged in");
    }
    let last = |device: &str, deleted: bool| {
        told().iter().any(|told| told["device_id"] == device && (told["deleted"] == true) == deleted)
    };
    wait_until("the last is told", || last("D39", false));
    let before = told();
    server.homeserver().accounts().delete_devices(&id, names).expect("logged out");
    wait_until("their end is told", || last("D39", true));
    let after = told();
    assert_eq!(after.len(), before.len() + 1, "one update for all of them");
    let (known, end) = (&before[before.len() - 1]["stream_id"], &after[before.len()]);
    assert_ne!(end["prev_id"], json!([known]), "there is a gap");
    assert!(end["prev_id"][0].as_i64() > known.as_i64(), "{end}");
}

#[test]
fn what_devices_are_called_is_for_servers_that_share_a_room_with_their_user() {
    let (friend, stranger) = (Peer::start(), Peer::start());
    let (server, bob, _room) = bob_at(&friend);
    let keys = bob.upload_keys(&[]);
    let path = format!("/_matrix/client/v3/devices/{}", keys.device_id());
    bob.put(&path, json!({ "display_name": "bob's phone" }));
    let list = format!("/_matrix/federation/v1/user/devices/{}", doorstep::testing::segment(bob.id()));
    let body = json!({ "device_keys": { bob.id(): [] } });
    for (peer, is_told) in [(&friend, true), (&stranger, false)] {
        let (_, answer) =
            peer.ask(server.name(), "POST", "/_matrix/federation/v1/user/keys/query", Some(&body));
        assert_eq!(answer["device_keys"][bob.id()][keys.device_id()]["keys"], keys.identity()["keys"]);
        let (_, listed) = peer.ask(server.name(), "GET", &list, None);
        assert_eq!(listed["devices"].as_array().map(Vec::len), Some(1), "{listed}");
        for answer in [answer, listed] {
            assert_eq!(answer.to_string().contains("bob's phone"), is_told, "{answer}");
        }
    }
}
