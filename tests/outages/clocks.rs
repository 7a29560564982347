//! A clock that was ahead for a while, as that of a machine which keeps no time while it is off, and was set right: what failed under
//! it is done then, and not when it will be that time again.

use std::time::Duration;

use crate::common::client::{join, room_path, sync};
use crate::common::gateway::{Gateway, GatewayAnswer};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const HOUR_MS: i64 = 3_600_000;

fn has_event(user: &TestUser, room: &str, event: &str) -> bool {
    user.request("GET", &room_path(room, &format!("event/{}", segment(event))), None).0 == 200
}

/// Whether a push of bob's has failed, and a transaction to the other server.
fn all_has_failed(here: &TestServer, bob: &TestUser) -> bool {
    let bob = UserId::parse(bob.id()).expect("a user id");
    let pushers = here.homeserver().store.read(|db| db.pushers_of(&bob)).expect("a database");
    pushers.iter().all(|pusher| pusher.failures > 0) && !here.homeserver().outgoing.failing().is_empty()
}

/// Two servers with a room, of which one sends bob's phone to a gateway, and failed to reach it and the other server while its clock
/// was ahead by so much. An invite for zoe, who is on the other server, waits too.
fn ahead_by(ms: i64) -> (TestServer, TestServer, Gateway, [TestUser; 3], [String; 3]) {
    let (here, mut there) = TestServer::pair();
    let (alice, bob, zoe) = (here.user("alice"), here.user("bob"), there.user("zoe"));
    let gateway = Gateway::start();
    gateway.set_for(&bob, "key", &json!({}));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&room);
    assert_eq!(join(&zoe, &room, Some(here.name())).0, 200);
    alice.wait_for_membership(&room, zoe.id(), "join");
    here.set_clock_wrong_by(ms);
    there.stop();
    gateway.answer(GatewayAnswer::Json(502, json!({})));
    let event = alice.send(&room, "said under a clock that is ahead");
    let private = alice.create_room_with(json!({ "preset": "private_chat", "invite": [zoe.id()] }));
    wait_until("everything has failed", || all_has_failed(&here, &bob));
    gateway.answer(GatewayAnswer::Json(200, json!({ "rejected": [] })));
    there.resume();
    (here, there, gateway, [alice, bob, zoe], [room, private, event])
}

fn all_arrives(gateway: &Gateway, zoe: &TestUser, [room, private, event]: &[String; 3]) {
    wait_until("the other server has the message", || has_event(zoe, room, event));
    gateway.wait_for(event);
    wait_until("the invite is there", || zoe.initial_sync()["rooms"]["invite"].get(private).is_some());
}

#[test]
fn what_failed_under_a_clock_that_was_ahead_is_done_when_it_is_set_right() {
    let (here, _there, gateway, [alice, bob, zoe], about) = ahead_by(3 * HOUR_MS);
    let room = &about[0];
    // Who types, and what is to be sent later, under the wrong clock.
    let typing = json!({ "typing": true, "timeout": 30_000 });
    alice.put(&room_path(room, &format!("typing/{}", segment(alice.id()))), typing);
    let later = room_path(room, "send/m.room.message/later?org.matrix.msc4140.delay=60000");
    alice.put(&later, json!({ "msgtype": "m.text", "body": "said later" }));
    here.set_clock_wrong_by(0);
    all_arrives(&gateway, &zoe, &about);
    wait_until("the typing has an end within two minutes", || {
        here.advance(Duration::from_secs(5));
        let ephemeral = sync(&bob, "timeout=0")["rooms"]["join"][room]["ephemeral"]["events"].clone();
        let told = ephemeral.as_array().into_iter().flatten().find(|event| event["type"] == "m.typing");
        told.is_none_or(|event| event["content"]["user_ids"] == json!([]))
    });
    here.advance(Duration::from_secs(60));
    wait_until("what was to be said later is said", || {
        sync(&bob, "timeout=0")["rooms"]["join"][room]["timeline"].to_string().contains("said later")
    });
}

#[test]
fn what_failed_under_a_clock_that_was_ahead_is_done_after_a_start_under_one_that_is_right() {
    let (mut here, _there, gateway, [_, _, zoe], about) = ahead_by(3 * HOUR_MS);
    here.stop();
    here.set_clock_wrong_by(0);
    here.resume();
    all_arrives(&gateway, &zoe, &about);
}

#[test]
fn uris_that_a_user_asked_for_under_a_clock_that_was_ahead_stand_in_their_way_for_no_more_than_a_day() {
    let mut here = TestServer::start();
    let alice = here.user("alice");
    let create = || alice.request("POST", "/_matrix/media/v1/create", Some(json!({}))).0;
    here.set_clock_wrong_by(30 * 24 * HOUR_MS);
    let asked_for = std::iter::repeat_with(create).take_while(|status| *status == 200).take(1000).count();
    assert!((1..1000).contains(&asked_for), "a user may have so many: {asked_for}");
    here.stop();
    here.set_clock_wrong_by(0);
    here.resume();
    let now = || here.homeserver().clock.now_ms();
    wait_until("they end within a day", || {
        let first = here.homeserver().store.read(|db| db.next_media_expiry()).expect("a database");
        first.is_some_and(|first| first <= now() + 24 * HOUR_MS)
    });
    here.advance(Duration::from_secs(24 * 3600));
    assert_eq!(create(), 200);
}

#[test]
fn a_clock_that_was_ahead_takes_no_keys_from_those_who_ask_for_some_when_it_is_right() {
    let (here, there) = TestServer::pair();
    let (alice, zoe) = (here.user("alice"), there.user("zoe"));
    let device =
        alice.get("/_matrix/client/v3/account/whoami")["device_id"].as_str().expect("one").to_owned();
    let key = |n: usize| {
        let signed = json!({ alice.id(): { (format!("ed25519:{device}")): "x".repeat(86) } });
        let key = json!({ "key": format!("{n:0>43}"), "signatures": signed });
        (format!("signed_curve25519:{n}"), key)
    };
    let keys: serde_json::Map<String, Value> = (0..20).map(key).collect();
    alice.post("/_matrix/client/v3/keys/upload", json!({ "one_time_keys": keys }));
    let claim = || {
        let wanted = json!({ "one_time_keys": { alice.id(): { (device.as_str()): "signed_curve25519" } } });
        let claimed = zoe.post("/_matrix/client/v3/keys/claim", wanted);
        claimed["one_time_keys"][alice.id()][&device].is_object()
    };
    assert!(claim());
    here.set_clock_wrong_by(3 * HOUR_MS);
    assert!(claim());
    here.set_clock_wrong_by(0);
    assert!((0..3).all(|_| claim()));
}
