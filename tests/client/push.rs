//! Push: pushers, what gateways are sent and when, gateways that mean ill or are gone, the list of notifications, and the
//! bell of rooms to knock on.

use std::time::Duration;

use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

use crate::common::client::{V3, post, room_path};
use crate::common::gateway::{Gateway, GatewayAnswer};
use crate::common::peer::Peer;
use crate::common::wait::{Gate, wait_until};

fn pushers(user: &TestUser) -> Vec<Value> {
    user.get(&format!("{V3}/pushers"))["pushers"].as_array().expect("a list").clone()
}

fn read(user: &TestUser, room: &str, event: &str) {
    user.post(&room_path(room, &format!("receipt/m.read/{}", segment(event))), json!({}));
}

/// Alice, bob, and a room of theirs and of a third one, so that messages to it are not to one person.
fn group(server: &TestServer) -> (TestUser, TestUser, String) {
    let (alice, bob, mia) = (server.user("alice"), server.user("bob"), server.user("mia"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "name": "the parlour" }));
    bob.join(&room);
    mia.join(&room);
    (alice, bob, room)
}

/// How often a user's pusher has failed in a row.
fn failures(server: &TestServer, user: &TestUser) -> u32 {
    let user = UserId::parse(user.id()).expect("a user id");
    let pushers = server.homeserver().store.read(|db| db.pushers_of(&user)).expect("a database");
    pushers.first().map_or(0, |pusher| pusher.failures)
}

#[test]
fn pushers_are_set_read_changed_and_removed() {
    let server = TestServer::start();
    let (alice, gateway) = (server.user("alice"), Gateway::start());
    assert_eq!(pushers(&alice), Vec::<Value>::new());
    let mut pusher = gateway.pusher("key", &json!({ "format": "event_id_only", "x": [1] }));
    pusher["profile_tag"] = json!("tag");
    alice.post(&format!("{V3}/pushers/set"), pusher.clone());
    let shown = pushers(&alice);
    assert_eq!(shown.len(), 1);
    for key in [
        "kind",
        "app_id",
        "pushkey",
        "lang",
        "app_display_name",
        "device_display_name",
        "data",
        "profile_tag",
    ] {
        assert_eq!(shown[0][key], pusher[key], "{key}");
    }
    assert_eq!(shown[0]["org.matrix.msc3881.enabled"], true);
    assert_eq!(
        shown[0]["org.matrix.msc3881.device_id"],
        alice.get(&format!("{V3}/account/whoami"))["device_id"]
    );
    // Set again it is the same one.
    pusher["lang"] = json!("de");
    alice.post(&format!("{V3}/pushers/set"), pusher.clone());
    gateway.set_for(&alice, "other", &json!({}));
    let shown = pushers(&alice);
    assert_eq!((shown.len(), &shown[0]["lang"]), (2, &json!("de")));
    let removal = json!({ "kind": null, "app_id": "org.example.app", "pushkey": "key" });
    alice.post(&format!("{V3}/pushers/set"), removal.clone());
    alice.post(&format!("{V3}/pushers/set"), removal);
    assert_eq!(pushers(&alice)[0]["pushkey"], "other");
}

#[test]
fn what_is_wrong_with_a_pusher_is_said() {
    let server = TestServer::start_with(|config| config.allow_private_addresses = false);
    let (alice, good) = (server.user("alice"), Gateway::start().pusher("key", &json!({})));
    let good = {
        let mut good = good;
        good["data"]["url"] = json!("https://push.example.org/_matrix/push/v1/notify");
        good
    };
    let refused = |change: &dyn Fn(&mut Value), errcode: &str| {
        let mut pusher = good.clone();
        change(&mut pusher);
        let (status, body) = post(&alice, "pushers/set", pusher.clone());
        assert_eq!((status, &body["errcode"]), (400, &json!(errcode)), "{pusher}: {body}");
        body["error"].as_str().expect("a sentence").to_owned()
    };
    for missing in ["kind", "app_id", "pushkey", "app_display_name", "device_display_name", "lang", "data"] {
        let said = refused(
            &|pusher| drop(pusher.as_object_mut().expect("an object").remove(missing)),
            "M_MISSING_PARAM",
        );
        assert!(said.contains(missing), "{said}");
    }
    refused(&|pusher| pusher["kind"] = json!("email"), "M_INVALID_PARAM");
    refused(&|pusher| pusher["app_id"] = json!("x".repeat(65)), "M_INVALID_PARAM");
    refused(&|pusher| pusher["pushkey"] = json!("x".repeat(513)), "M_INVALID_PARAM");
    refused(&|pusher| pusher["pushkey"] = json!(""), "M_INVALID_PARAM");
    refused(&|pusher| pusher["lang"] = json!(7), "M_BAD_JSON");
    refused(&|pusher| pusher["append"] = json!("yes"), "M_BAD_JSON");
    refused(&|pusher| pusher["data"] = json!([]), "M_BAD_JSON");
    refused(&|pusher| pusher["data"] = json!({}), "M_MISSING_PARAM");
    refused(&|pusher| pusher["data"]["x"] = json!("x".repeat(20_000)), "M_INVALID_PARAM");
    for url in [
        "http://push.example.org/_matrix/push/v1/notify",
        "https://push.example.org/notify",
        "https://127.0.0.1/_matrix/push/v1/notify",
        "https://[::1]/_matrix/push/v1/notify",
        "https://192.168.1.1/_matrix/push/v1/notify",
        "https://a@push.example.org/_matrix/push/v1/notify",
        "nonsense",
    ] {
        refused(&|pusher| pusher["data"]["url"] = json!(url), "M_INVALID_PARAM");
    }
    assert_eq!(post(&alice, "pushers/set", good.clone()).0, 200);
    let mut longest = good.clone();
    (longest["app_id"], longest["pushkey"]) = (json!("ä".repeat(64)), json!("x".repeat(512)));
    assert_eq!(post(&alice, "pushers/set", longest).0, 200);
    // Of one user there is a bounded number.
    for number in 2..100 {
        let mut another = good.clone();
        another["pushkey"] = json!(format!("key{number}"));
        assert_eq!(post(&alice, "pushers/set", another).0, 200);
    }
    let mut last = good.clone();
    last["pushkey"] = json!("one too many");
    assert_eq!(post(&alice, "pushers/set", last).0, 403);
    assert_eq!(post(&alice, "pushers/set", good).0, 200, "one that is there may be changed");
}

#[test]
fn a_pusher_goes_with_the_device_that_set_it() {
    let server = TestServer::start();
    let (alice, gateway) = (server.user("alice"), Gateway::start());
    let (second, third) = (server.device_of(&alice, "SECOND"), server.device_of(&alice, "THIRD"));
    for (number, user) in [&alice, &second, &third].into_iter().enumerate() {
        gateway.set_for(user, &format!("key{number}"), &json!({}));
    }
    let keys = |user: &TestUser| -> Vec<String> {
        pushers(user).iter().map(|p| p["pushkey"].as_str().expect("a key").to_owned()).collect()
    };
    second.post(&format!("{V3}/logout"), json!({}));
    assert_eq!(keys(&alice), ["key0", "key2"]);
    // Who logs in anew on a device has another token.
    let third = server.device_of(&alice, "THIRD");
    assert_eq!(keys(&third), ["key0"]);
    gateway.set_for(&third, "key2", &json!({}));
    let hs = server.homeserver();
    hs.admin()
        .reset_password(
            &doorstep::internals::Administrator::Operator,
            &UserId::parse(alice.id()).expect("a user id"),
            "old password",
            false,
        )
        .expect("a password");
    let auth = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": alice.id() }, "password": "old password" });
    alice.post(
        &format!("{V3}/account/password"),
        json!({ "new_password": "another password", "logout_devices": true, "auth": auth }),
    );
    assert_eq!(keys(&alice), ["key0"]);
    let auth = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": alice.id() }, "password": "another password" });
    let user = UserId::parse(alice.id()).expect("a user id");
    alice.post(&format!("{V3}/account/deactivate"), json!({ "auth": auth }));
    assert!(hs.store.read(|db| db.pushers_of(&user)).expect("a database").is_empty());
}

/// Alice on her phone, in a browser and once more, with a pusher of the phone's that the browser switched off and on, saying all
/// that it read of it or only what there is to say.
fn toggled(server: &TestServer, gateway: &Gateway, names_device: bool) -> [TestUser; 3] {
    let phone = server.user("alice");
    let (web, other) = (server.device_of(&phone, "WEB"), server.device_of(&phone, "OTHER"));
    gateway.set_for(&phone, "phone", &json!({}));
    for enabled in [false, true, true] {
        let mut pusher = pushers(&web)[0].clone();
        pusher["org.matrix.msc3881.enabled"] = json!(enabled);
        if !names_device {
            pusher.as_object_mut().expect("an object").remove("org.matrix.msc3881.device_id");
            if pushers(&web)[0]["org.matrix.msc3881.enabled"] == enabled {
                continue;
            }
        }
        web.post(&format!("{V3}/pushers/set"), pusher);
    }
    [phone, web, other]
}

#[test]
fn a_pusher_stays_with_its_device_when_another_one_switches_it_off_and_on() {
    for names_device in [true, false] {
        let (server, gateway) = (TestServer::start(), Gateway::start());
        let [phone, web, other] = toggled(&server, &gateway, names_device);
        let phone_id = phone.get(&format!("{V3}/account/whoami"))["device_id"].clone();
        assert_eq!(pushers(&other)[0]["org.matrix.msc3881.device_id"], phone_id);
        web.post(&format!("{V3}/logout"), json!({}));
        assert_eq!(pushers(&other).len(), 1, "the phone is still there");

        let (server, gateway) = (TestServer::start(), Gateway::start());
        let [phone, _web, other] = toggled(&server, &gateway, names_device);
        phone.post(&format!("{V3}/logout"), json!({}));
        assert_eq!(pushers(&other), Vec::<Value>::new(), "the phone is gone");
    }
}

#[test]
fn a_pusher_moves_to_a_device_that_sets_it_anew() {
    let (server, gateway) = (TestServer::start(), Gateway::start());
    let before = server.user("alice");
    let after = server.device_of(&before, "AFTER");
    gateway.set_for(&before, "phone", &json!({}));
    let owner = || pushers(&before)[0]["org.matrix.msc3881.device_id"].clone();
    // As it was, by an app that was logged in once more.
    gateway.set_for(&after, "phone", &json!({}));
    assert_eq!(owner(), "AFTER");
    let mut pusher = gateway.pusher("phone", &json!({}));
    pusher["org.matrix.msc3881.enabled"] = json!(true);
    before.post(&format!("{V3}/pushers/set"), pusher.clone());
    assert_ne!(owner(), "AFTER", "nothing was switched");
    pusher["org.matrix.msc3881.device_id"] = json!("AFTER");
    after.post(&format!("{V3}/pushers/set"), pusher.clone());
    assert_eq!(owner(), "AFTER", "it names itself");
    pusher["org.matrix.msc3881.enabled"] = json!(false);
    pusher["lang"] = json!("de");
    pusher.as_object_mut().expect("an object").remove("org.matrix.msc3881.device_id");
    before.post(&format!("{V3}/pushers/set"), pusher);
    assert_ne!(owner(), "AFTER", "more than the switch differs");
}

#[test]
fn an_app_on_one_phone_belongs_to_one_user_unless_it_says_otherwise() {
    let server = TestServer::start();
    let (alice, bob, gateway) = (server.user("alice"), server.user("bob"), Gateway::start());
    gateway.set_for(&alice, "phone", &json!({}));
    let mut appended = gateway.pusher("phone", &json!({}));
    appended["append"] = json!(true);
    bob.post(&format!("{V3}/pushers/set"), appended);
    assert_eq!((pushers(&alice).len(), pushers(&bob).len()), (1, 1));
    gateway.set_for(&bob, "phone", &json!({}));
    assert_eq!((pushers(&alice).len(), pushers(&bob).len()), (0, 1));
}

#[test]
fn a_message_is_pushed_with_what_a_gateway_may_be_told() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    alice.put(
        &format!("{V3}/profile/{}/displayname", segment(alice.id())),
        json!({ "displayname": "Alice A." }),
    );
    let (full, short) = (Gateway::start(), Gateway::start());
    full.set_for(&bob, "full", &json!({ "custom": { "a": 1 } }));
    short.set_for(&bob, "short", &json!({ "format": "event_id_only", "default_payload": { "aps": {} } }));
    let event = alice.send(&room, "good morning");
    let told = full.wait_for(&event);
    assert_eq!(told["type"], "m.room.message");
    assert_eq!(told["sender"], alice.id());
    assert_eq!(told["sender_display_name"], "Alice A.");
    assert_eq!(told["room_id"], room);
    assert_eq!(told["room_name"], "the parlour");
    assert_eq!(told["content"]["body"], "good morning");
    assert_eq!(told["counts"], json!({ "unread": 1 }));
    assert_eq!(told["prio"], "low", "{told}");
    let device = &told["devices"][0];
    assert_eq!((&device["app_id"], &device["pushkey"]), (&json!("org.example.app"), &json!("full")));
    assert_eq!(device["data"], json!({ "custom": { "a": 1 } }), "all but the url");
    assert!(device["pushkey_ts"].as_i64().expect("seconds") < 100_000_000_000);
    let told = short.wait_for(&event);
    let mut keys: Vec<&String> = told.as_object().expect("an object").keys().collect();
    keys.sort();
    assert_eq!(keys, ["counts", "devices", "event_id", "prio", "room_id"]);
    assert_eq!(
        told["devices"][0]["data"],
        json!({ "format": "event_id_only", "default_payload": { "aps": {} } })
    );
    // What names somebody is for them to see now.
    let path = room_path(&room, "send/m.room.message/mention");
    let mention = json!({ "msgtype": "m.text", "body": "bob?", "m.mentions": { "user_ids": [bob.id()] } });
    let event = alice.put(&path, mention)["event_id"].as_str().expect("an id").to_owned();
    let told = full.wait_for(&event);
    assert_eq!(told["prio"], "high");
    assert_eq!(told["devices"][0]["tweaks"], json!({ "sound": "default", "highlight": true }));
    assert_eq!(told["counts"]["unread"], 2);
    assert_eq!(full.event_ids().len(), 2);
}

#[test]
fn invites_are_pushed_wherever_the_room_is() {
    let (here, there) = TestServer::pair();
    let (alice, carol, bob, gateway) =
        (here.user("alice"), there.user("carol"), there.user("bob"), Gateway::start());
    gateway.set_for(&bob, "key", &json!({}));
    for host in [&alice, &carol] {
        let room = host.create_room_with(json!({ "preset": "private_chat", "name": "the parlour" }));
        host.invite(&room, bob.id());
        wait_until("bob's gateway hears of the invite", || {
            gateway.sent().iter().any(|sent| sent["room_id"] == room)
        });
        let sent = gateway.sent();
        let told = sent.iter().find(|sent| sent["room_id"] == room).expect("it was sent");
        assert_eq!((&told["type"], &told["user_is_target"]), (&json!("m.room.member"), &json!(true)));
        assert_eq!((&told["room_name"], &told["prio"]), (&json!("the parlour"), &json!("high")));
        assert_eq!(told["content"]["membership"], "invite");
    }
    gateway.wait_for_unread(2);
    let rooms = bob.initial_sync()["rooms"]["invite"].clone();
    rooms.as_object().expect("invites").keys().for_each(|room| bob.leave(room));
    gateway.wait_for_unread(0);
}

#[test]
fn the_number_at_the_icon_follows_what_is_read_and_goes_to_nothing() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let (gateway, silent) = (Gateway::start(), Gateway::start());
    gateway.set_for(&bob, "key", &json!({}));
    silent.set_for(&bob, "silent", &json!({ "org.matrix.msc4076.disable_badge_count": true }));
    let first = alice.send(&room, "one");
    let last = alice.send(&room, "two");
    assert_eq!(gateway.wait_for(&last)["counts"]["unread"], 2);
    assert_eq!(silent.wait_for(&last)["counts"], json!({}));
    read(&bob, &room, &first);
    gateway.wait_for_unread(1);
    read(&bob, &room, &last);
    gateway.wait_for_unread(0);
    assert_eq!(gateway.badges(), [1, 0]);
    // What is left counts no more, nor what one is thrown out of.
    let third = alice.send(&room, "three");
    assert_eq!(gateway.wait_for(&third)["counts"]["unread"], 1);
    bob.leave(&room);
    gateway.wait_for_unread(0);
    bob.join(&room);
    let fourth = alice.send(&room, "four");
    assert_eq!(gateway.wait_for(&fourth)["counts"]["unread"], 1);
    alice.act_on("ban", &room, bob.id());
    gateway.wait_for_unread(0);
    // One's own word reads what was before it.
    alice.act_on("unban", &room, bob.id());
    bob.join(&room);
    let fifth = alice.send(&room, "five");
    gateway.wait_for(&fifth);
    bob.send(&room, "six");
    gateway.wait_for_unread(0);
    assert_eq!(silent.badges(), Vec::<i64>::new());
}

#[test]
fn nobody_is_told_of_what_is_not_for_them() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let eve = server.user("eve");
    eve.join(&room);
    let gateway = Gateway::start();
    gateway.set_for(&bob, "key", &json!({}));
    bob.put(
        &format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id())),
        json!({ "ignored_users": { eve.id(): {} } }),
    );
    bob.send(&room, "of my own");
    eve.send(&room, "ignored");
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "nothing that notifies" }));
    let notice = json!({ "msgtype": "m.notice", "body": "by a bot" });
    alice.put(&room_path(&room, "send/m.room.message/notice"), notice);
    let before = alice.send(&room, "before");
    gateway.wait_for(&before);
    bob.leave(&room);
    alice.send(&room, "after bob left");
    bob.join(&room);
    alice.act_on("ban", &room, bob.id());
    alice.send(&room, "after bob was banned");
    alice.act_on("unban", &room, bob.id());
    bob.join(&room);
    let after = alice.send(&room, "bob is back");
    gateway.wait_for(&after);
    assert_eq!(gateway.event_ids(), [before, after]);
}

#[test]
fn what_a_gateway_does_not_take_comes_again_and_nothing_is_lost_or_sent_twice() {
    let mut server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let gateway = Gateway::start();
    gateway.set_for(&bob, "key", &json!({}));
    let first = alice.send(&room, "taken");
    gateway.wait_for(&first);
    gateway.answer(GatewayAnswer::Json(502, json!({})));
    let mut events: Vec<String> = (0..5).map(|n| alice.send(&room, &format!("message {n}"))).collect();
    wait_until("it has failed", || failures(&server, &bob) > 0);
    let seen = gateway.event_ids().len();
    // Whatever happens to the server meanwhile.
    server.restart();
    let bob = TestUser::new(server.url(), bob.id(), bob.token());
    gateway.answer(GatewayAnswer::Json(200, json!({})));
    server.advance(Duration::from_secs(120));
    gateway.wait_for(&events[4]);
    let since = gateway.event_ids()[seen..].to_vec();
    events.dedup();
    assert_eq!(since.iter().rev().take(5).rev().cloned().collect::<Vec<_>>(), events, "in their order");
    let taken = gateway.event_ids();
    server.restart();
    server.advance(Duration::from_secs(3600));
    let alice = TestUser::new(server.url(), alice.id(), alice.token());
    let last = alice.send(&room, "the last");
    gateway.wait_for(&last);
    assert_eq!(gateway.event_ids(), [taken, vec![last.clone()]].concat(), "nothing came twice");
    read(&bob, &room, &last);
    gateway.wait_for_unread(0);
}

#[test]
fn a_gateway_that_is_gone_for_a_day_is_not_told_what_is_old_and_is_told_what_is_new() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let gateway = Gateway::start();
    gateway.set_for(&bob, "key", &json!({}));
    gateway.answer(GatewayAnswer::Json(503, json!({})));
    let old = alice.send(&room, "old");
    wait_until("it has failed", || failures(&server, &bob) > 0);
    for hours in 1..25 {
        let seen = failures(&server, &bob);
        server.advance(Duration::from_secs(3601));
        wait_until(&format!("it has failed after {hours} hours"), || failures(&server, &bob) > seen);
    }
    let seen = gateway.event_ids().len();
    gateway.answer(GatewayAnswer::Json(200, json!({})));
    let new = alice.send(&room, "new");
    server.advance(Duration::from_secs(3601));
    gateway.wait_for(&new);
    assert!(!gateway.event_ids()[seen..].contains(&old));
    assert_eq!(pushers(&bob).len(), 1);
    assert_eq!(failures(&server, &bob), 0);
}

#[test]
fn a_key_that_is_rejected_goes_and_nobody_elses() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let gateway = Gateway::start();
    gateway.set_for(&alice, "alices", &json!({}));
    gateway.set_for(&bob, "first", &json!({}));
    gateway.set_for(&bob, "second", &json!({}));
    gateway.answer_by(|sent| {
        // Of one it says that another user's key is not valid, of the other that it is not itself.
        let key = sent["devices"][0]["pushkey"].as_str().expect("a key");
        let rejected = if key == "first" { json!(["alices", "second", 7]) } else { json!(["alices", key]) };
        let rejected =
            if key == "first" { json!(rejected.as_array().expect("a list")[..2]) } else { rejected };
        GatewayAnswer::Json(200, json!({ "rejected": rejected }))
    });
    let event = alice.send(&room, "hello");
    wait_until("the rejected one is gone", || pushers(&bob).len() == 1);
    gateway.wait_for(&event);
    assert_eq!(pushers(&bob)[0]["pushkey"], "first");
    assert_eq!(pushers(&alice)[0]["pushkey"], "alices");
    gateway.answer(GatewayAnswer::Json(200, json!({})));
    let next = alice.send(&room, "again");
    gateway.wait_for(&next);
    let to: Vec<Value> = gateway
        .sent()
        .iter()
        .filter(|s| s["event_id"] == next)
        .map(|s| s["devices"][0]["pushkey"].clone())
        .collect();
    assert_eq!(to, ["first"]);
}

#[test]
fn gateways_that_mean_ill_get_nothing_out_of_it_and_hold_up_nobody() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let inside = Gateway::start();
    let redirect = format!("HTTP/1.1 307 X\r\nLocation: {}\r\nContent-Length: 0\r\n\r\n", inside.url());
    let gate = Gate::default();
    let deep = format!("HTTP/1.1 200 OK\r\nContent-Length: 40000\r\n\r\n{}", "[".repeat(40_000));
    let answers = [
        GatewayAnswer::Raw(redirect.into_bytes()),
        GatewayAnswer::Endless,
        GatewayAnswer::Behind(gate.clone()),
        GatewayAnswer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 12\r\n\r\n<html></html".to_vec()),
        GatewayAnswer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 9999999999\r\n\r\n{}".to_vec()),
        GatewayAnswer::Raw(deep.into_bytes()),
        GatewayAnswer::Raw(b"\0\0\0 nonsense".to_vec()),
        GatewayAnswer::Raw(Vec::new()),
        GatewayAnswer::Json(200, json!({ "rejected": "key2" })),
        GatewayAnswer::Json(200, json!([])),
    ];
    let bad: Vec<Gateway> = answers
        .iter()
        .enumerate()
        .map(|(number, answer)| {
            let gateway = Gateway::start();
            gateway.answer(answer.clone());
            let owner = server.user(&format!("owner{number}"));
            owner.join(&room);
            gateway.set_for(&owner, &format!("key{number}"), &json!({}));
            gateway
        })
        .collect();
    let good = Gateway::start();
    good.set_for(&bob, "good", &json!({}));
    let mut last = String::new();
    for number in 0..3 {
        last = alice.send(&room, &format!("message {number}"));
    }
    good.wait_for(&last);
    for (number, gateway) in bad.iter().enumerate() {
        wait_until(&format!("gateway {number} was asked"), || !gateway.sent().is_empty());
    }
    for number in (0..answers.len()).filter(|number| *number != 2) {
        let owner = UserId::parse(&format!("@owner{number}:{}", server.name())).expect("an id");
        wait_until(&format!("what gateway {number} answers is no yes"), || {
            let pushers = server.homeserver().store.read(|db| db.pushers_of(&owner)).expect("a database");
            pushers.len() == 1 && pushers[0].failures > 0
        });
    }
    assert!(inside.sent().is_empty(), "nobody is led elsewhere");
    gate.open();
}

#[test]
fn one_gateway_that_hangs_with_many_pushers_leaves_threads_to_the_others() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let (hanging, good, gate) = (Gateway::start(), Gateway::start(), Gate::default());
    hanging.answer(GatewayAnswer::Behind(gate.clone()));
    for number in 0..40 {
        hanging.set_for(&bob, &format!("key{number}"), &json!({}));
    }
    let mia = server.user("zoe");
    mia.join(&room);
    good.set_for(&mia, "good", &json!({}));
    let event = alice.send(&room, "hello");
    hanging.wait_for(&event);
    good.wait_for(&event);
    for number in 0..10 {
        let event = alice.send(&room, &format!("and {number}"));
        good.wait_for(&event);
    }
    // One request at a time for each pusher, and a few for the gateway.
    assert!(hanging.sent().len() <= 4, "{}", hanging.sent().len());
    gate.open();
}

#[test]
fn a_pusher_that_is_removed_while_its_gateway_hangs_makes_no_place_for_another() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let (hanging, good, gate) = (Gateway::start(), Gateway::start(), Gate::default());
    hanging.answer(GatewayAnswer::Behind(gate.clone()));
    let zoe = server.user("zoe");
    zoe.join(&room);
    good.set_for(&zoe, "good", &json!({}));
    for number in 0..24 {
        let key = format!("key{number}");
        hanging.set_for(&bob, &key, &json!({}));
        good.wait_for(&alice.send(&room, &format!("message {number}")));
        let removal = json!({ "kind": null, "app_id": "org.example.app", "pushkey": key });
        bob.post(&format!("{V3}/pushers/set"), removal);
    }
    // Four at a time; those may have timed out once meanwhile.
    assert!((1..=8).contains(&hanging.sent().len()), "{}", hanging.sent().len());
    gate.open();
}

#[test]
fn one_user_with_many_gateways_that_hang_leaves_threads_to_the_others() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let (good, gate) = (Gateway::start(), Gate::default());
    let hanging: Vec<Gateway> = (0..24).map(|_| Gateway::start()).collect();
    for (number, gateway) in hanging.iter().enumerate() {
        gateway.set_for(&bob, &format!("key{number}"), &json!({ "disable_badge_count": true }));
    }
    let zoe = server.user("zoe");
    zoe.join(&room);
    good.set_for(&zoe, "good", &json!({}));
    // All of them have shown that they take what they are sent.
    let first = alice.send(&room, "first");
    hanging.iter().for_each(|gateway| drop(gateway.wait_for(&first)));
    good.wait_for(&first);
    hanging.iter().for_each(|gateway| gateway.answer(GatewayAnswer::Behind(gate.clone())));
    for number in 0..5 {
        good.wait_for(&alice.send(&room, &format!("and {number}")));
    }
    let held = hanging.iter().filter(|gateway| gateway.sent().len() > 1).count();
    assert!((1..=8).contains(&held), "{held}");
    gate.open();
}

#[test]
fn who_is_locked_is_sent_nothing_until_the_lock_is_lifted() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let (locked, other) = (Gateway::start(), Gateway::start());
    let zoe = server.user("zoe");
    zoe.join(&room);
    // In the order in which they are looked at.
    locked.set_for(&bob, "bob", &json!({}));
    other.set_for(&zoe, "zoe", &json!({}));
    locked.wait_for(&alice.send(&room, "before"));
    let lock = |to: bool| {
        let path = format!("/_matrix/client/v1/admin/lock/{}", segment(bob.id()));
        alice.put(&path, json!({ "locked": to }));
    };
    lock(true);
    let hidden: Vec<String> = (0..3).map(|number| alice.send(&room, &format!("hidden {number}"))).collect();
    other.wait_for(&hidden[2]);
    other.wait_for(&alice.send(&room, "hidden too"));
    lock(false);
    locked.wait_for(&alice.send(&room, "after"));
    let told = locked.event_ids();
    assert!(hidden.iter().all(|event| !told.contains(event)), "{told:?}");
}

#[test]
fn a_gateway_in_our_own_network_is_sent_nothing_whatever_its_name_is() {
    let server = TestServer::start_with(|config| config.allow_private_addresses = false);
    let (alice, bob, room) = group(&server);
    let inside = Peer::start();
    let mut pusher = Gateway::start().pusher("key", &json!({}));
    // A name is looked up when something is sent.
    let port = inside.name().port().expect("a port");
    pusher["data"]["url"] = json!(format!("https://localhost:{port}/_matrix/push/v1/notify"));
    bob.post(&format!("{V3}/pushers/set"), pusher);
    alice.send(&room, "hello");
    wait_until("it has failed", || failures(&server, &bob) > 0);
    assert!(inside.asked("notify").is_empty());
}

#[test]
fn a_pusher_that_is_switched_off_is_sent_nothing_then_or_later() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let (gateway, other) = (Gateway::start(), Gateway::start());
    let mut pusher = gateway.pusher("key", &json!({}));
    pusher["org.matrix.msc3881.enabled"] = json!(false);
    bob.post(&format!("{V3}/pushers/set"), pusher.clone());
    assert_eq!(pushers(&bob)[0]["org.matrix.msc3881.enabled"], false);
    other.set_for(&bob, "other", &json!({}));
    let first = alice.send(&room, "unheard");
    other.wait_for(&first);
    pusher["org.matrix.msc3881.enabled"] = json!(true);
    bob.post(&format!("{V3}/pushers/set"), pusher);
    let second = alice.send(&room, "heard");
    gateway.wait_for(&second);
    assert_eq!(gateway.event_ids(), [second]);
}

#[test]
fn notifications_are_listed_the_last_first_with_what_was_read_of_them() {
    let server = TestServer::start();
    let (alice, bob, room) = group(&server);
    let mut events: Vec<String> = (0..5).map(|n| alice.send(&room, &format!("message {n}"))).collect();
    let mention = json!({ "msgtype": "m.text", "body": "bob?", "m.mentions": { "user_ids": [bob.id()] } });
    let mention = alice.put(&room_path(&room, "send/m.room.message/mention"), mention);
    let mention = mention["event_id"].as_str().expect("an id").to_owned();
    let redacted = alice.send(&room, "taken back");
    alice.put(&room_path(&room, &format!("redact/{}/1", segment(&redacted))), json!({}));
    events.push(mention.clone());
    events.reverse();
    read(&bob, &room, &events[3]);
    let (mut from, mut seen, mut pages) = (String::new(), Vec::new(), 0);
    loop {
        let page = bob.get(&format!("{V3}/notifications?limit=2&from={from}"));
        seen.extend(page["notifications"].as_array().expect("a list").clone());
        pages += 1;
        match page["next_token"].as_str() {
            Some(token) => from = token.to_owned(),
            None => break,
        }
    }
    let ids: Vec<&str> = seen.iter().map(|n| n["event"]["event_id"].as_str().expect("an id")).collect();
    assert_eq!((ids, pages), (events.iter().map(String::as_str).collect(), 3));
    let read: Vec<bool> = seen.iter().map(|n| n["read"].as_bool().expect("a flag")).collect();
    assert_eq!(read, [false, false, false, true, true, true]);
    assert_eq!(seen[0]["room_id"], room);
    assert_eq!(seen[0]["ts"], seen[0]["event"]["origin_server_ts"]);
    assert_eq!(seen[1]["actions"], json!(["notify"]));
    assert_eq!(seen[1]["event"]["content"]["body"], "message 4");
    let highlights = bob.get(&format!("{V3}/notifications?only=highlight"));
    let highlights = highlights["notifications"].as_array().expect("a list");
    assert_eq!((highlights.len(), &highlights[0]["event"]["event_id"]), (1, &json!(mention)));
    assert_eq!(bob.request("GET", &format!("{V3}/notifications?from=nonsense"), None).0, 400);
    assert_eq!(bob.request("GET", &format!("{V3}/notifications?limit=0"), None).0, 400);
    bob.leave(&room);
    assert_eq!(bob.get(&format!("{V3}/notifications"))["notifications"], json!([]));
}

#[test]
fn an_action_that_no_push_rule_has_is_refused_and_changes_nothing() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let rule = format!("{V3}/pushrules/global/override/mine");
    let good = json!(["notify", { "set_tweak": "org.example.colour", "value": "red" }]);
    let old = json!(["dont_notify", "coalesce", good[0], good[1]]);
    for actions in [&good, &old] {
        alice.put(&rule, json!({ "conditions": [], "actions": actions }));
        assert_eq!(alice.get(&rule)["actions"], good, "what older clients say beside it is nothing");
    }
    for wrong in [json!(["not_an_action"]), json!(["notify", ""]), json!(["Notify"])] {
        for path in [rule.clone(), format!("{rule}/actions"), format!("{V3}/pushrules/global/override/other")]
        {
            let answer = alice.request("PUT", &path, Some(json!({ "conditions": [], "actions": wrong })));
            assert_eq!((answer.0, &answer.1["errcode"]), (400, &json!("M_INVALID_PARAM")), "{path} {wrong}");
        }
    }
    assert_eq!(alice.get(&rule)["actions"], good);
    let predefined = format!("{V3}/pushrules/global/override/.m.rule.master/actions");
    assert_eq!(alice.request("PUT", &predefined, Some(json!({ "actions": ["no_action"] }))).0, 400);
    assert_eq!(alice.request("GET", &format!("{V3}/pushrules/global/override/other"), None).0, 404);
}

/// A room of alice's to knock on, in which moderators may invite and guests may not.
fn door(alice: &TestUser, moderators: &[&TestUser], guests: &[&TestUser]) -> String {
    let users: serde_json::Map<String, Value> =
        moderators.iter().map(|user| (user.id().to_owned(), json!(50))).collect();
    let room = alice.create_room_with(json!({
        "preset": "private_chat", "room_version": "12", "name": "behind the door",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
        "power_level_content_override": { "invite": 50, "users": users },
    }));
    for user in moderators.iter().chain(guests) {
        alice.invite(&room, user.id());
        user.join(&room);
    }
    room
}

#[test]
fn a_knock_rings_for_those_who_may_let_in_and_for_nobody_else() {
    let (server, there) = TestServer::pair();
    let (alice, mia, guest, deaf) =
        (server.user("alice"), server.user("mia"), server.user("guest"), server.user("deaf"));
    let room = door(&alice, &[&mia, &deaf], &[&guest]);
    let gateways: Vec<Gateway> = [&alice, &mia, &guest, &deaf]
        .iter()
        .map(|user| {
            let gateway = Gateway::start();
            gateway.set_for(user, user.id(), &json!({}));
            gateway
        })
        .collect();
    // Like any rule it can be switched off.
    let rule = format!("{V3}/pushrules/global/override/.m.rule.knock");
    assert_eq!(deaf.get(&format!("{rule}/enabled"))["enabled"], true);
    deaf.put(&format!("{rule}/enabled"), json!({ "enabled": false }));
    let bob = there.user("bob");
    bob.knock_via(&room, &[server.name()]);
    let rang = |gateway: &Gateway| {
        let sent = gateway.sent();
        sent.into_iter().find(|sent| sent["content"]["membership"] == "knock")
    };
    for gateway in &gateways[..2] {
        wait_until("the bell rings", || rang(gateway).is_some());
        let told = rang(gateway).expect("it rang");
        assert_eq!((&told["sender"], &told["prio"]), (&json!(bob.id()), &json!("high")));
        assert_eq!(told["room_name"], "behind the door");
    }
    // Those for whom it does not ring hear of what comes later, and not of that.
    let event = alice.send(&room, "somebody is at the door");
    for gateway in &gateways[2..] {
        gateway.wait_for(&event);
        assert!(rang(gateway).is_none());
    }
    // Nor for who knocks by themselves, though they may let in.
    let otto = server.user("otto");
    let own = Gateway::start();
    own.set_for(&otto, "own", &json!({}));
    otto.knock_via(&room, &[]);
    wait_until("mia hears of it", || gateways[1].sent().len() >= 2);
    assert!(own.sent().iter().all(|sent| sent["content"]["membership"] != "knock"));
}

#[test]
fn a_burst_of_knocks_is_told_once_and_once_more_a_minute_later() {
    let mut server = TestServer::start();
    let alice = server.user("alice");
    let mia = server.user("mia");
    let room = door(&alice, &[], &[&mia]);
    let gateway = Gateway::start();
    gateway.set_for(&alice, "key", &json!({}));
    let guests: Vec<TestUser> = (0..6).map(|number| server.user(&format!("guest{number}"))).collect();
    guests[0].knock_via(&room, &[]);
    wait_until("the bell rings", || gateway.event_ids().len() == 1);
    guests[1..].iter().for_each(|guest| drop(guest.knock_via(&room, &[])));
    // The last one changes their mind.
    guests[5].leave(&room);
    // What is no knock is not held up.
    let event = mia.send(&room, "look who is there");
    gateway.wait_for(&event);
    assert_eq!(gateway.event_ids().len(), 2);
    server.restart();
    let alice = TestUser::new(server.url(), alice.id(), alice.token());
    server.advance(Duration::from_secs(61));
    wait_until("the bell rings once more", || gateway.event_ids().len() == 3);
    let sent = gateway.sent();
    let told = sent.iter().rfind(|sent| sent.get("event_id").is_some()).expect("it rang");
    assert_eq!(told["sender"], guests[4].id(), "of those who wait it tells of the last");
    // When all were answered, it does not ring any more.
    server.advance(Duration::from_secs(61));
    for guest in &guests[..5] {
        alice.act_on("kick", &room, guest.id());
    }
    server.advance(Duration::from_secs(61));
    let mia = TestUser::new(server.url(), mia.id(), mia.token());
    let event = mia.send(&room, "nobody is there any more");
    gateway.wait_for(&event);
    assert_eq!(gateway.event_ids().len(), 4);
}
