//! Device lists: whoever shares a room with a user knows their devices, and nobody goes by a list that is out of date.

use std::time::Duration;

use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{bob_at, edus_at};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

#[test]
fn who_shares_a_room_is_told_of_devices_that_come_and_go() {
    let (a, b) = TestServer::pair();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), b.user("carol"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    bob.initial_sync();
    carol.initial_sync();
    let changed = |answer: &Value| {
        let changed = answer["device_lists"]["changed"].as_array();
        changed.is_some_and(|changed| changed.iter().any(|id| *id == alice.id()))
    };
    // Some news may be of what came before. What is true in the end has its own.
    let told = |what: &str, holds: fn(&Value) -> bool| {
        bob.sync_until(what, |answer| {
            let keys = changed(answer).then(|| bob.query_keys(&[alice.id()]))?;
            holds(&keys["device_keys"][alice.id()]["SECOND"]).then_some(())
        });
    };
    let second = a.device_of(&alice, "SECOND");
    second.upload_keys(&[]);
    told("a new device", Value::is_object);
    alice.put("/_matrix/client/v3/devices/SECOND", json!({ "display_name": "renamed" }));
    told("another name", |device| device["unsigned"]["device_display_name"] == "renamed");
    second.post("/_matrix/client/v3/logout", json!({}));
    told("a device less", Value::is_null);
    // One's own devices are news to oneself, too.
    alice.initial_sync();
    a.device_of(&alice, "THIRD");
    alice.sync_until("a device of one's own", |answer| changed(answer).then_some(()));
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
    peer.send_edus(server.name(), "t1", &[update("A", 5, json!([])), update("B", 6, json!([5]))]);
    wait_until("both are known", || known() == ["A", "B"]);
    assert!(peer.asked("user/devices").is_empty());
    let gate = Gate::default();
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
    peer.send_edus(server.name(), "t2", &[update("C", 9, json!([8]))]);
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
    peer.send_edus(server.name(), "t3", &[gone, update("C", 9, json!([8])), foreign, unshared]);
    wait_until("the end of one", || known() == ["C"]);
    let stranger = peer.user("stranger");
    let of_stranger = server.homeserver().store.read(|db| db.remote_device_list(&stranger)).expect("read");
    assert_eq!(of_stranger, None);
    let keys = json!({ "edu_type": "m.signing_key_update", "content": { "user_id": creator } });
    bob.sync(Duration::ZERO);
    peer.send_edus(server.name(), "t4", &[keys]);
    assert_eq!(bob.sync(Duration::ZERO)["device_lists"]["changed"], json!([creator]));
}

#[test]
fn an_update_that_says_what_is_known_is_no_news() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    bob.initial_sync();
    let tell = |stream: i64, name: &str, deleted: bool| {
        let content = json!({ "user_id": room.creator, "device_id": "A", "device_display_name": name,
            "stream_id": stream, "prev_id": if stream == 1 { json!([]) } else { json!([stream - 1]) },
            "deleted": deleted });
        let edu = json!({ "edu_type": "m.device_list_update", "content": content });
        peer.send_edus(server.name(), &format!("t{stream}"), &[edu]);
        let told = bob.sync(Duration::ZERO);
        told["device_lists"]["changed"]
            .as_array()
            .is_some_and(|changed| changed.contains(&json!(room.creator)))
    };
    assert!(tell(1, "phone", false));
    assert!(!tell(2, "phone", false));
    assert!(tell(3, "telephone", false));
    assert!(tell(4, "telephone", true));
    assert!(!tell(5, "telephone", true));
    assert!(tell(6, "telephone", false));
}

#[test]
fn the_updates_of_our_devices_form_a_chain_that_a_restart_does_not_break() {
    let peer = Peer::start();
    let (mut server, bob, _room) = bob_at(&peer);
    wait_until("the peer knows of bob's device", || !updates_at(&peer, &bob).is_empty());
    server.device_of(&bob, "ONE");
    // Each update is sent before the next is made: one that waits is replaced by what becomes of the device.
    wait_until("the first is told", || updates_at(&peer, &bob).len() > 1);
    server.restart();
    server.device_of(&bob, "TWO");
    wait_until("the second is told", || updates_at(&peer, &bob).len() > 2);
    let id = UserId::parse(bob.id()).expect("a user id");
    server
        .homeserver()
        .accounts()
        .delete_devices(&id, vec!["ONE".into(), "NEVER".into()])
        .expect("logged out");
    wait_until("all three are told", || updates_at(&peer, &bob).len() > 3);
    let told = updates_at(&peer, &bob);
    let devices: Vec<&Value> = told[1..].iter().map(|update| &update["device_id"]).collect();
    assert_eq!(devices, ["ONE", "TWO", "ONE"]);
    assert_eq!(told[1]["device_display_name"], "ONE");
    assert_eq!(told[3]["deleted"], true);
    for (before, after) in told.iter().zip(&told[1..]) {
        assert_eq!(after["prev_id"], json!([before["stream_id"]]));
    }
    let path = format!("/_matrix/federation/v1/user/devices/{}", segment(bob.id()));
    let (status, list) = peer.ask(server.name(), "GET", &path, None);
    let expected = json!({ "user_id": bob.id(), "stream_id": told[3]["stream_id"], "devices": [] });
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

/// The updates of a user's devices that the peer was sent, each once: a transaction may have come again.
fn updates_at(peer: &Peer, user: &TestUser) -> Vec<Value> {
    let mut updates = edus_at(peer, "m.device_list_update");
    updates.retain(|update| update["user_id"] == user.id());
    updates.dedup();
    updates
}

#[test]
fn a_server_is_told_where_a_device_list_stands_when_the_user_joins_its_room_and_only_the_first_time() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    wait_until("the peer knows of bob's device", || !updates_at(&peer, &bob).is_empty());
    let path = format!("/_matrix/federation/v1/user/devices/{}", segment(bob.id()));
    let (_, list) = peer.ask(server.name(), "GET", &path, None);
    let told = updates_at(&peer, &bob);
    assert_eq!((&told[0]["stream_id"], &told[0]["prev_id"]), (&list["stream_id"], &json!([])));
    // Who joins later is told of, too, with the last of several updates. Those who only came by are not.
    let carol = server.user("carol");
    server.device_of(&carol, "SECOND");
    server.user("dave");
    carol.join(room.id.as_str());
    wait_until("the peer knows of carol's devices", || !updates_at(&peer, &carol).is_empty());
    let last = updates_at(&peer, &carol).remove(0);
    assert_eq!(last["device_id"], "SECOND");
    assert_ne!(last["prev_id"], json!([]), "{last}");
    // Another room of the same server, and another name, are no reason to say it again: the next that comes is news.
    FakeRoom::joined_by(&peer, "11", &bob);
    bob.put(
        &format!("/_matrix/client/v3/profile/{}/displayname", segment(bob.id())),
        json!({ "displayname": "B" }),
    );
    server.device_of(&bob, "NEWS");
    wait_until("the peer knows of the news", || updates_at(&peer, &bob).len() > 1);
    let devices: Vec<Value> = updates_at(&peer, &bob).iter().map(|told| told["device_id"].clone()).collect();
    assert_eq!(devices[1..], ["NEWS"]);
    assert_eq!(updates_at(&peer, &bob)[1]["prev_id"], json!([list["stream_id"]]));
    // Out of all rooms and in again: something may have been missed in between.
    for room in bob.get("/_matrix/client/v3/joined_rooms")["joined_rooms"].as_array().expect("rooms") {
        bob.leave(room.as_str().expect("a room"));
    }
    server.device_of(&bob, "MISSED");
    FakeRoom::joined_by(&peer, "11", &bob);
    wait_until("the peer knows where the list stands", || updates_at(&peer, &bob).len() > 2);
    assert_eq!(updates_at(&peer, &bob)[2]["device_id"], "MISSED");
}

#[test]
fn where_a_device_list_stands_is_told_after_an_outage_and_a_restart_too() {
    let peer = Peer::start();
    let mut server = TestServer::start();
    let bob = server.user("bob");
    let room = FakeRoom::new(&peer, "11", "public");
    peer.let_in(&room, bob.id());
    peer.answer_json("/send/", 500, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    bob.join_via(room.id.as_str(), &[peer.name().as_str()]);
    peer.wait_for("/send/");
    server.restart();
    peer.take_transactions();
    let before = peer.asked("/send/").len();
    server.advance(Duration::from_secs(60));
    wait_until("it comes again", || {
        peer.asked("/send/")[before..]
            .iter()
            .any(|asked| asked.body["edus"][0]["content"]["user_id"] == bob.id())
    });
}

#[test]
fn a_list_is_dropped_when_no_room_is_shared_any_more_and_fetched_when_there_is_news_again() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let alice_id = UserId::parse(alice.id()).expect("a user id");
    let held = || b.homeserver().store.read(|db| db.remote_device_list(&alice_id)).expect("read");
    let known = || {
        let devices = b.homeserver().store.read(|db| db.remote_devices(&alice_id)).expect("read");
        devices.into_iter().map(|device| device.device_id).collect::<Vec<_>>()
    };
    let rooms = [alice.create_room(), alice.create_room()];
    for room in &rooms {
        let algorithm = json!({ "algorithm": "m.megolm.v1.aes-sha2" });
        alice.set_state(room, "m.room.encryption", "", algorithm);
        bob.join_via(room, &[a.name()]);
    }
    a.device_of(&alice, "SECOND");
    // What came before is fetched, and what comes after it follows.
    let settled = || held().is_some_and(|list| list.stream_id.is_some() && list.due_ms.is_none());
    wait_until("the list is held", settled);
    a.device_of(&alice, "THIRD");
    wait_until("the next device is known", || known().contains(&"THIRD".to_owned()));
    bob.initial_sync();
    let leaves = |room: &str| {
        alice.leave(room);
        bob.sync_until("alice is gone", |_| {
            (bob.membership_of(room, alice.id()).as_deref() == Some("leave")).then_some(())
        });
    };
    leaves(&rooms[0]);
    assert!(held().is_some(), "they share another room");
    leaves(&rooms[1]);
    assert_eq!((held(), known()), (None, vec![]));
    // What happens now goes unheard. Once they meet again, the clients are told to ask anew.
    a.device_of(&alice, "UNHEARD");
    alice.join(&rooms[0]);
    bob.sync_until("alice is listed", |answer| {
        let changed = answer["device_lists"]["changed"].as_array()?;
        changed.iter().any(|id| *id == alice.id()).then_some(())
    });
    wait_until("the list is held and complete", || {
        settled() && known().iter().all(|device| device != "THIRD")
    });
    // The other way: the last of us leaves.
    bob.leave(&rooms[1]);
    assert!(held().is_some());
    bob.leave(&rooms[0]);
    wait_until("it is forgotten", || (held(), known()) == (None, vec![]));
}

#[test]
fn changes_of_who_shares_no_room_any_more_go_after_a_month_and_who_was_away_for_longer_is_told_all_the_same()
{
    const DAY: Duration = Duration::from_secs(24 * 3600);
    let (a, mut b) = TestServer::pair();
    let (alice, dave, bob) = (a.user("alice"), a.user("dave"), b.user("bob"));
    let ids = [&alice, &dave, &bob].map(|user| UserId::parse(user.id()).expect("a user id"));
    let rooms = [alice.create_room(), dave.create_room()];
    for room in &rooms {
        bob.join_via(room, &[a.name()]);
    }
    let away = bob.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    let settled = |b: &TestServer, user: &UserId| {
        let list = b.homeserver().store.read(|db| db.remote_device_list(user)).expect("read");
        list.is_some_and(|list| list.stream_id.is_some() && list.due_ms.is_none())
    };
    let told = |since: &str| {
        let path = format!("/_matrix/client/v3/sync?since={since}&timeout=0");
        bob.get(&path)["device_lists"]["changed"].clone()
    };
    for user in [&alice, &dave] {
        a.device_of(user, "SECOND");
    }
    wait_until("both lists are held", || ids[..2].iter().all(|user| settled(&b, user)));
    alice.leave(&rooms[0]);
    wait_until("alice is gone", || bob.membership_of(&rooms[0], alice.id()).as_deref() == Some("leave"));
    let noted = |b: &TestServer| {
        let all = b.homeserver().store.read(|db| db.device_changes_between(0, i64::MAX, 100));
        let all = all.expect("read").expect("few");
        ids.each_ref().map(|user| all.contains(user))
    };
    assert_eq!(noted(&b), [true; 3]);
    // It is not time yet: neither by the first look, nor a month after the start.
    b.advance(Duration::from_secs(2 * 3600));
    let is_planned = || b.homeserver().store.read(|db| db.next_changes_sweep()).expect("read").is_some();
    wait_until("the round is planned", is_planned);
    b.advance(29 * DAY);
    assert_eq!(noted(&b), [true; 3]);
    b.advance(2 * DAY);
    wait_until("alice's change is gone", || noted(&b) == [false, true, true]);
    // It is known after a restart, too. That a month has passed, the others know as well.
    b.restart();
    a.advance(31 * DAY);
    alice.join(&rooms[0]);
    wait_until("alice is back", || bob.membership_of(&rooms[0], alice.id()).as_deref() == Some("join"));
    // The client that was away all the time saw alice in the room before, as it does now.
    let changed = told(&away);
    assert!(changed.as_array().is_some_and(|users| users.contains(&json!(alice.id()))), "{changed}");
    let keys_changed = bob.get(&format!("/_matrix/client/v3/keys/changes?from={away}&to={away}"));
    assert!(keys_changed["changed"].to_string().contains(alice.id()), "{keys_changed}");
    // Who has looked since is not told again and again.
    wait_until("her list is held anew", || settled(&b, &ids[0]));
    let now =
        bob.get("/_matrix/client/v3/sync?timeout=0")["next_batch"].as_str().expect("a token").to_owned();
    assert_eq!(told(&now), Value::Null);
}

#[test]
fn who_came_and_went_is_listed_whatever_rooms_the_client_wants_to_hear_of() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    let no_rooms = segment(r#"{"room":{"rooms":[]}}"#);
    let lists = |user: &TestUser, since: &str| {
        let answer = user.get(&format!("/_matrix/client/v3/sync?filter={no_rooms}&since={since}"));
        assert!(answer.get("rooms").is_none(), "{answer}");
        (answer["device_lists"].clone(), answer["next_batch"].as_str().expect("a token").to_owned())
    };
    let start = |user: &TestUser| user.initial_sync()["next_batch"].as_str().expect("a token").to_owned();
    let (of_alice, of_bob) = (start(&alice), start(&bob));
    bob.join(&room);
    let (listed, of_alice) = lists(&alice, &of_alice);
    assert_eq!(listed, json!({ "changed": [bob.id()] }));
    let (_, of_bob) = lists(&bob, &of_bob);
    bob.leave(&room);
    bob.post(&format!("/_matrix/client/v3/rooms/{}/forget", segment(&room)), json!({}));
    assert_eq!(lists(&alice, &of_alice).0, json!({ "left": [bob.id()] }));
    assert_eq!(lists(&bob, &of_bob).0, json!({ "left": [alice.id()] }));
}

#[test]
fn a_server_that_was_away_is_told_the_last_of_each_device_and_finds_that_it_missed_something() {
    let peer = Peer::start();
    let (server, bob, _) = bob_at(&peer);
    server.device_of(&bob, "SECOND");
    wait_until("the peer knows of it", || updates_at(&peer, &bob).iter().any(|u| u["device_id"] == "SECOND"));
    let known = updates_at(&peer, &bob).pop().expect("just there")["stream_id"].clone();
    peer.answer_json("/send/", 500, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    let away = peer.name().clone();
    server.device_of(&bob, "THIRD");
    wait_until("it is found to be away", || server.homeserver().outgoing.is_pausing(&away));
    let rename = |device: &str, name: &str| {
        bob.put(&format!("/_matrix/client/v3/devices/{device}"), json!({ "display_name": name }))
    };
    for n in 0..5 {
        rename("SECOND", &format!("second {n}"));
        rename("THIRD", &format!("third {n}"));
    }
    let owed = server.homeserver().store.read(|db| db.owed_edus(&away, 0, i64::MAX, 100));
    assert_eq!(owed.expect("read").len(), 2, "one for each device");
    let before = updates_at(&peer, &bob).len();
    peer.answer_json("/send/", 200, json!({ "pdus": {} }));
    let mut came = Vec::new();
    wait_until("it comes again", || {
        server.advance(Duration::from_secs(3600));
        came = updates_at(&peer, &bob);
        came.iter().skip(before).any(|u| u["device_display_name"] == "third 4")
    });
    let names = |name: &str| came.iter().any(|update| update["device_display_name"] == name);
    assert!(names("second 4") && !names("second 3") && !names("third 3"), "{came:?}");
    let last = came.last().expect("there is one");
    assert_ne!(last["prev_id"], json!([known]), "so that the list is fetched");
}
