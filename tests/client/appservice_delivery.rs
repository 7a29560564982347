//! What application services are sent: of which events, in which order, how often, and what becomes of it while they are down.

use std::time::Duration;

use doorstep::TestServer;
use doorstep::testing::TestUser;
use serde_json::{Value, json};

use crate::common::bridge::{Bridge, BridgeAnswer};
use crate::common::wait::{Gate, wait_until};

const USERS: &str = "namespaces: {users: [{regex: '@irc_', exclusive: false}]}";

fn with(bridge: &Bridge, more: &str) -> TestServer {
    let registration = bridge.registration(more);
    TestServer::start_with(|config| config.appservices.push(registration))
}

/// A server with a service, of whose users one is in a room with alice.
fn bridged(bridge: &Bridge) -> (TestServer, TestUser, TestUser, String) {
    let server = with(bridge, USERS);
    let (alice, ghost) = (server.user("alice"), server.user("irc_bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    ghost.join(&room);
    (server, alice, ghost, room)
}

fn down() -> BridgeAnswer {
    BridgeAnswer::Json(503, json!({ "errcode": "M_UNKNOWN" }))
}

#[test]
fn a_service_is_told_what_happens_where_one_of_its_users_is() {
    let bridge = Bridge::start("irc");
    let (_server, alice, ghost, room) = bridged(&bridge);
    let said = alice.send(&room, "hello");
    let told = bridge.wait_for_message("hello");
    assert_eq!(told["event_id"], said);
    assert_eq!(told["room_id"], room);
    assert_eq!(told["sender"], alice.id());
    assert_eq!(told["type"], "m.room.message");
    assert!(told["unsigned"]["age"].is_i64() && told["unsigned"].get("transaction_id").is_none());
    assert!(told.get("state_key").is_none() && told.get("auth_events").is_none());
    let joined = bridge.wait_for("events", "the join", |event| event["state_key"] == ghost.id());
    assert_eq!(joined["content"]["membership"], "join");
    // What was said before concerned nobody.
    assert!(bridge.told("events").iter().all(|event| event["type"] != "m.room.create"));
    let sent = bridge.transactions();
    assert!(sent.iter().all(|sent| sent.method == "PUT" && sent.authorization == "Bearer hs_irc"));
    assert!(sent.iter().all(|sent| sent.target.starts_with("/_matrix/app/v1/transactions/")));
    assert!(sent.iter().all(|sent| !sent.target.contains("hs_irc")));
}

#[test]
fn a_service_is_not_told_what_concerns_none_of_its_users() {
    let bridge = Bridge::start("irc");
    let (server, alice, ghost, room) = bridged(&bridge);
    let elsewhere = alice.create_room();
    alice.send(&elsewhere, "in private");
    alice.send(&room, "one");
    ghost.leave(&room);
    alice.send(&room, "behind its back");
    ghost.join(&room);
    alice.send(&room, "two");
    // An invite of one of its users is for it; nothing else of that room is.
    let other = server.user("irc_eve");
    alice.invite(&elsewhere, other.id());
    alice.send(&elsewhere, "to the invited");
    alice.send(&room, "three");
    bridge.wait_for_message("three");
    assert_eq!(bridge.messages(), ["one", "two", "three"]);
    let invite = bridge.wait_for("events", "the invite", |event| event["state_key"] == other.id());
    assert_eq!(
        (invite["room_id"].as_str(), &invite["content"]["membership"]),
        (Some(&*elsewhere), &json!("invite"))
    );
    let left = bridge.wait_for("events", "the leave", |event| event["content"]["membership"] == "leave");
    assert_eq!(left["unsigned"]["prev_content"]["membership"], "join");
    assert_eq!(left["unsigned"]["replaces_state"].as_str().map(|id| id.starts_with('$')), Some(true));
}

#[test]
fn a_room_concerns_a_service_by_its_id_and_by_an_alias() {
    let (by_id, by_alias) = (Bridge::start("log"), Bridge::start("map"));
    let registrations = [
        by_id.registration("namespaces: {rooms: [{regex: '!', exclusive: false}]}"),
        by_alias.registration("namespaces: {aliases: [{regex: '#map_', exclusive: false}]}"),
    ];
    let server = TestServer::start_with(|config| config.appservices.extend(registrations));
    let alice = server.user("alice");
    let room = alice.create_room();
    alice.send(&room, "unnamed");
    by_id.wait_for_message("unnamed");
    let alias = format!("/_matrix/client/v3/directory/room/%23map_x:{}", server.name());
    alice.put(&alias, json!({ "room_id": room }));
    alice.send(&room, "named");
    by_alias.wait_for_message("named");
    assert_eq!(alice.request("DELETE", &alias, None).0, 200);
    alice.send(&room, "unnamed again");
    by_id.wait_for_message("unnamed again");
    alice.put(&alias, json!({ "room_id": room }));
    alice.send(&room, "the end");
    by_alias.wait_for_message("the end");
    assert_eq!(by_alias.messages(), ["named", "the end"]);
    assert_eq!(by_id.messages(), ["unnamed", "named", "unnamed again", "the end"]);
}

#[test]
fn a_service_that_is_down_is_sent_the_same_transaction_until_it_takes_it_and_then_the_rest_in_order() {
    let bridge = Bridge::start("irc");
    let (server, alice, _ghost, room) = bridged(&bridge);
    alice.send(&room, "before");
    bridge.wait_for_message("before");
    bridge.answer(down());
    alice.send(&room, "0");
    bridge.wait_for_message("0");
    for number in 1..150 {
        alice.send(&room, &number.to_string());
    }
    // It is tried again after 2, 4 and 8 seconds, and not for news.
    let tries = bridge.transactions().len();
    for pause in [2, 4, 8] {
        let tried = bridge.transactions().len();
        server.advance(Duration::from_secs(pause));
        wait_until("it is tried again", || bridge.transactions().len() > tried);
    }
    assert_eq!(bridge.transactions().len(), tries + 3);
    let tried = bridge.transactions().split_off(tries - 1);
    assert!(tried.iter().all(|again| again.target == tried[0].target && again.body == tried[0].body));
    assert_eq!(tried[0].body["events"].as_array().map(Vec::len), Some(1));
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    server.advance(Duration::from_secs(16));
    bridge.wait_for_message("149");
    let messages = bridge.messages();
    assert_eq!(messages[0], "before");
    let numbers: Vec<String> = (0..150).map(|number| number.to_string()).collect();
    assert_eq!(messages[1..], numbers);
    let sizes = bridge.transactions();
    assert!(
        sizes.iter().all(|sent| sent.body["events"].as_array().is_some_and(|events| events.len() <= 100))
    );
}

#[test]
fn a_restart_changes_nothing_of_what_a_service_is_sent() {
    let bridge = Bridge::start("irc");
    let (mut server, alice, _ghost, room) = bridged(&bridge);
    alice.send(&room, "one");
    bridge.wait_for_message("one");
    bridge.answer(down());
    alice.send(&room, "two");
    bridge.wait_for_message("two");
    alice.send(&room, "three");
    server.restart();
    let before = bridge.transactions();
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    // At a start everything is tried at once.
    bridge.wait_for_message("three");
    let after = bridge.transactions();
    let two = |sent: &Value| sent["events"][0]["content"]["body"] == "two";
    let of_two: Vec<_> = after.iter().filter(|sent| two(&sent.body)).collect();
    assert!(of_two.len() > before.iter().filter(|sent| two(&sent.body)).count());
    assert!(of_two.iter().all(|sent| sent.target == of_two[0].target && sent.body == of_two[0].body));
    alice.send(&room, "four");
    bridge.wait_for_message("four");
    assert_eq!(bridge.messages(), ["one", "two", "three", "four"]);
}

#[test]
fn a_service_that_hangs_holds_up_no_other_and_no_stop() {
    let (slow, quick) = (Bridge::start("slow"), Bridge::start("quick"));
    let gate = Gate::default();
    slow.answer(BridgeAnswer::Behind(gate.clone(), 200, json!({})));
    let registrations = [slow.registration(USERS), quick.registration(USERS)];
    let mut server = TestServer::start_with(|config| config.appservices.extend(registrations));
    let ghost = server.user("irc_bob");
    let room = ghost.create_room();
    wait_until("the slow one is asked", || !slow.transactions().is_empty());
    for number in 0..5 {
        ghost.send(&room, &number.to_string());
        quick.wait_for_message(&number.to_string());
    }
    assert_eq!(slow.transactions().len(), 1, "one is on its way at a time");
    server.restart();
    gate.open();
    slow.wait_for_message("4");
    assert_eq!(slow.messages(), quick.messages());
}

#[test]
fn older_services_are_found_at_their_older_paths_and_by_the_token_in_the_query() {
    let bridge = Bridge::start("irc");
    bridge.answer_by(|asked| match asked.target.strip_prefix("/transactions/") {
        Some(rest) if rest.ends_with("?access_token=hs_irc") => BridgeAnswer::Json(200, json!({})),
        Some(_) => BridgeAnswer::Json(403, json!({})),
        None => BridgeAnswer::Json(404, json!({ "errcode": "M_UNRECOGNIZED" })),
    });
    let (_server, alice, _ghost, room) = bridged(&bridge);
    alice.send(&room, "one");
    bridge.wait_for_message("one");
    alice.send(&room, "two");
    bridge.wait_for_message("two");
    let taken = bridge.transactions().into_iter().filter(|sent| sent.target.starts_with("/transactions/"));
    let ids: Vec<_> = taken.map(|sent| sent.txn_id().map(str::to_owned)).collect();
    let distinct: std::collections::BTreeSet<_> = ids.iter().collect();
    assert_eq!(ids.len(), distinct.len(), "each is taken at once");
}

#[test]
fn a_service_hears_of_what_comes_after_it_was_registered_and_one_without_a_url_of_nothing() {
    let (bridge, mute) = (Bridge::start("irc"), Bridge::start("mute"));
    let mut server = TestServer::start();
    let ghost = server.user("irc_bob");
    let room = ghost.create_room();
    ghost.send(&room, "long ago");
    server.stop();
    let (registration, yaml) = (bridge.registration(USERS), mute.yaml(USERS));
    let without_url: String = yaml
        .lines()
        .map(|line| if line.starts_with("url:") { "url: null\n".into() } else { format!("{line}\n") })
        .collect();
    server.change(|config| {
        config.appservices.push(registration);
        let mute = doorstep::protocol::appservice::Registration::parse(&without_url);
        config.appservices.push(mute.expect("a registration"));
    });
    server.resume();
    ghost.send(&room, "now");
    bridge.wait_for_message("now");
    assert_eq!(bridge.messages(), ["now"]);
    assert!(mute.asked().is_empty());
}

#[test]
fn an_invite_to_a_room_elsewhere_is_told_with_what_is_known_of_the_room() {
    let bridge = Bridge::start("irc");
    let registration = bridge.registration(USERS);
    let server = TestServer::start_with(|config| config.appservices.push(registration));
    let there = TestServer::start();
    let (ghost, host) = (server.user("irc_bob"), there.user("host"));
    let room = host.create_room_with(json!({ "name": "Somewhere" }));
    host.invite(&room, ghost.id());
    let invite = bridge.wait_for("events", "the invite", |event| event["state_key"] == ghost.id());
    assert_eq!((invite["sender"].as_str(), invite["room_id"].as_str()), (Some(host.id()), Some(&*room)));
    let shown = invite["unsigned"]["invite_room_state"].as_array().expect("stripped state").clone();
    assert!(shown.iter().any(|event| event["content"]["name"] == "Somewhere"), "{shown:?}");
}

#[test]
fn what_was_redacted_meanwhile_is_told_redacted() {
    let bridge = Bridge::start("irc");
    let (server, alice, _ghost, room) = bridged(&bridge);
    bridge.answer(down());
    alice.send(&room, "first");
    bridge.wait_for_message("first");
    let regretted = alice.send(&room, "regretted");
    let path = format!("/_matrix/client/v3/rooms/{room}/redact/{regretted}/1");
    alice.put(&path, json!({}));
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    server.advance(Duration::from_secs(1000));
    let told = bridge.wait_for("events", "the message", |event| event["event_id"] == regretted);
    assert_eq!(told["content"], json!({}));
    assert_eq!(told["unsigned"]["redacted_because"]["type"], "m.room.redaction");
    bridge.wait_for("events", "the redaction", |event| event["redacts"] == regretted);
}
