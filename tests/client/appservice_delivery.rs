//! What application services are sent: of which events, in which order, how often, and what becomes of it while they are down.

use std::time::Duration;

use doorstep::TestServer;
use doorstep::testing::{TestDeviceKeys, TestUser};
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
    bridge.wait_for("events", "the join", |event| event["content"]["membership"] == "join");
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
    by_id.wait_for_message("the end");
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

/// Waits until so many events wait for services, with those that they are being sent.
fn wait_for_backlog(server: &TestServer, events: i64) {
    wait_until(&format!("{events} events wait"), || {
        let waiting = server.homeserver().store.read(|db| db.backlogs()).expect("they can be counted");
        waiting.contains(&("events for application services", events))
    });
}

/// Starts a server anew with these services.
fn start_anew(server: &mut TestServer, bridges: &[&Bridge]) {
    server.stop();
    let registrations: Vec<_> = bridges.iter().map(|bridge| bridge.registration(USERS)).collect();
    server.change(|config| config.appservices = registrations);
    server.resume();
}

#[test]
fn a_service_that_was_taken_out_for_a_while_has_what_waited_for_it_and_nothing_of_the_time_between() {
    let (irc, other) = (Bridge::start("irc"), Bridge::start("other"));
    let (mut server, alice, _ghost, room) = bridged(&irc);
    irc.answer(down());
    alice.send(&room, "one");
    irc.wait_for_message("one");
    alice.send(&room, "two");
    wait_for_backlog(&server, 2);
    for (without, said) in [(vec![&other], "with another one"), (vec![], "with none")] {
        start_anew(&mut server, &without);
        alice.send(&room, said);
        for bridge in without {
            bridge.wait_for_message(said);
        }
    }
    irc.answer(BridgeAnswer::Json(200, json!({})));
    start_anew(&mut server, &[&irc]);
    alice.send(&room, "three");
    irc.wait_for_message("three");
    assert_eq!(irc.messages(), ["one", "two", "three"]);
}

#[test]
fn of_a_service_that_was_taken_out_for_good_nothing_is_kept() {
    let bridge = Bridge::start("irc");
    let (mut server, alice, _ghost, room) = bridged(&bridge);
    bridge.answer(down());
    alice.send(&room, "one");
    bridge.wait_for_message("one");
    alice.send(&room, "two");
    wait_for_backlog(&server, 2);
    start_anew(&mut server, &[]);
    server.advance(Duration::from_secs(8 * 24 * 3600));
    wait_for_backlog(&server, 0);
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    let before = bridge.transactions().len();
    start_anew(&mut server, &[&bridge]);
    alice.send(&room, "three");
    bridge.wait_for_message("three");
    let told: Vec<_> =
        bridge.transactions().split_off(before).iter().map(|sent| sent.body["events"].clone()).collect();
    assert!(!json!(told).to_string().contains("\"two\""), "{told:?}");
}

#[test]
fn an_invite_is_told_with_what_its_user_is_shown_of_the_room_and_those_of_others_are_not() {
    let bridge = Bridge::start("irc");
    let server = with(&bridge, USERS);
    let (alice, carol) = (server.user("alice"), server.user("carol"));
    let (bob, eve) = (server.user("irc_bob"), server.user("irc_eve"));
    let room = alice.create_room_with(json!({ "name": "The lounge", "invite": [bob.id()] }));
    let invite = bridge.wait_for("events", "the invite", |event| event["state_key"] == bob.id());
    let shown = invite["unsigned"]["invite_room_state"].as_array().expect("stripped state").clone();
    for (kind, key) in [("m.room.create", ""), ("m.room.name", ""), ("m.room.member", alice.id())] {
        let is_it = |event: &Value| event["type"] == kind && event["state_key"] == key;
        let found = shown.iter().find(|event| is_it(event)).unwrap_or_else(|| panic!("{kind}: {shown:?}"));
        assert!(found.get("event_id").is_none() && found["content"].is_object());
    }
    bob.join(&room);
    alice.invite(&room, carol.id());
    alice.invite(&room, eve.id());
    bridge.wait_for("events", "the other invite", |event| event["state_key"] == eve.id());
    let of_carol = bridge.wait_for("events", "an invite", |event| event["state_key"] == carol.id());
    assert!(of_carol["unsigned"].get("invite_room_state").is_none(), "{of_carol}");
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
fn what_was_redacted_meanwhile_is_told_redacted_also_in_a_transaction_that_was_sent_before() {
    let bridge = Bridge::start("irc");
    let (server, alice, _ghost, room) = bridged(&bridge);
    bridge.answer(down());
    let first = alice.send(&room, "first");
    bridge.wait_for_message("first");
    let later = alice.send(&room, "later");
    let redact = |event: &str| {
        alice.put(&format!("/_matrix/client/v3/rooms/{room}/redact/{event}/{event}"), json!({}));
    };
    redact(&first);
    redact(&later);
    let before = bridge.transactions();
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    server.advance(Duration::from_secs(1000));
    bridge.wait_for("events", "the second redaction", |event| event["redacts"] == later);
    let after = bridge.transactions().split_off(before.len());
    // The same transaction with the same event, in the same place.
    assert_eq!(after[0].target, before[before.len() - 1].target);
    let told: Vec<Value> =
        after.iter().flat_map(|sent| sent.body["events"].as_array().cloned().unwrap_or_default()).collect();
    let ids: Vec<_> = told.iter().take(2).map(|event| event["event_id"].clone()).collect();
    assert_eq!(ids, [json!(first), json!(later)]);
    for event in &told[..2] {
        assert_eq!(event["content"], json!({}));
        assert_eq!(event["unsigned"]["redacted_because"]["type"], "m.room.redaction");
    }
    assert_eq!(told.len(), 4, "each once: {told:?}");
    assert_eq!(after[0].body["events"].as_array().map(Vec::len), Some(1));
    // And so for whatever else was in it: it says how old the event was when it was made.
    let event = &before[before.len() - 1].body["events"][0];
    assert_eq!(event["unsigned"]["age"], told[0]["unsigned"]["age"]);
}

/// What the service gets by its own token.
fn by_token(server: &TestServer, token: &str, method: &str, path: &str, body: Option<Value>) -> (u16, Value) {
    TestUser::new(server.url(), "@nobody:here", token).request(method, path, body)
}

#[test]
fn a_service_pings_itself_by_way_of_the_server_and_is_told_what_came_of_it() {
    let (bridge, mute) = (Bridge::start("irc"), Bridge::start("mute"));
    let without_url = mute.yaml("").replace("url: http", "x: http") + "url: null\n";
    let registrations = [
        bridge.registration(USERS),
        doorstep::protocol::appservice::Registration::parse(&without_url).expect("a registration"),
    ];
    let server = TestServer::start_with(|config| config.appservices.extend(registrations));
    let alice = server.user("alice");
    let path = "/_matrix/client/v1/appservice/irc/ping";
    let ping = |token: &str, path: &str| {
        by_token(&server, token, "POST", path, Some(json!({ "transaction_id": "meow" })))
    };
    let (status, answer) = ping("as_irc", path);
    assert_eq!(status, 200, "{answer}");
    assert!(answer["duration_ms"].is_u64());
    let asked = bridge.asked().pop().expect("it was asked");
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("POST", "/_matrix/app/v1/ping"));
    assert_eq!(
        (asked.authorization.as_str(), asked.body),
        ("Bearer hs_irc", json!({ "transaction_id": "meow" }))
    );
    bridge.answer(BridgeAnswer::Json(403, json!({ "errcode": "M_FORBIDDEN" })));
    let (status, answer) = ping("as_irc", path);
    assert_eq!((status, &answer["errcode"], &answer["status"]), (502, &json!("M_BAD_STATUS"), &json!(403)));
    assert_eq!(answer["body"], r#"{"errcode":"M_FORBIDDEN"}"#);
    bridge.answer(BridgeAnswer::Silence);
    let (status, answer) = ping("as_irc", path);
    assert_eq!((status, &answer["errcode"]), (502, &json!("M_CONNECTION_FAILED")));
    let (status, answer) = ping("as_mute", "/_matrix/client/v1/appservice/mute/ping");
    assert_eq!((status, &answer["errcode"]), (400, &json!("M_URL_NOT_SET")));
    for token in [alice.token(), "as_mute"] {
        let (status, answer) = ping(token, path);
        assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")));
    }
    assert_eq!(ping("nonsense", path).0, 401);
}

#[test]
fn what_a_service_could_not_be_sent_is_tried_again_once_it_says_that_it_is_there() {
    let bridge = Bridge::start("irc");
    let (server, alice, _ghost, room) = bridged(&bridge);
    bridge.answer(down());
    alice.send(&room, "one");
    bridge.wait_for_message("one");
    server.advance(Duration::from_secs(2));
    wait_until("it is tried again", || bridge.transactions().len() > 2);
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    let path = "/_matrix/client/v1/appservice/irc/ping";
    assert_eq!(by_token(&server, "as_irc", "POST", path, Some(json!({}))).0, 200);
    alice.send(&room, "two");
    bridge.wait_for_message("two");
}

#[test]
fn a_user_or_an_alias_that_is_asked_for_is_made_by_the_service_that_may() {
    let bridge = Bridge::start("irc");
    let spaces = "namespaces: {users: [{regex: '@irc_', exclusive: true}], aliases: [{regex: '#irc_', exclusive: true}]}";
    let server = with(&bridge, spaces);
    let alice = server.user("alice");
    let (url, name) = (server.url().to_owned(), server.name().to_owned());
    bridge.answer_by(move |asked| {
        let service = TestUser::new(&url, "@ircbot:here", "as_irc");
        let done = match asked.target.strip_prefix("/_matrix/app/v1/") {
            Some(rest) if rest.starts_with("users/%40irc_bob") => {
                let made = json!({ "type": "m.login.application_service", "username": "irc_bob", "inhibit_login": true });
                service.request("POST", "/_matrix/client/v3/register", Some(made)).0 == 200
            }
            Some(rest) if rest.starts_with("rooms/%23irc_x") => {
                let made = json!({ "preset": "public_chat", "room_alias_name": "irc_x" });
                service.request("POST", "/_matrix/client/v3/createRoom", Some(made)).0 == 200
            }
            Some(rest) if rest.starts_with("transactions/") => true,
            _ => false,
        };
        let answer = if done { (200, json!({})) } else { (404, json!({ "errcode": "M_NOT_FOUND" })) };
        BridgeAnswer::Json(answer.0, answer.1)
    });
    let ghost = format!("@irc_bob:{name}");
    let room = alice.create_room();
    let profile = |localpart: &str| {
        alice.request("GET", &format!("/_matrix/client/v3/profile/@{localpart}:{name}"), None).0
    };
    assert_eq!(profile("irc_nobody"), 404);
    alice.invite(&room, &ghost);
    assert_eq!(profile("irc_bob"), 200);
    let joined = alice.request("POST", &format!("/_matrix/client/v3/join/%23irc_x:{name}"), Some(json!({})));
    assert_eq!(joined.0, 200, "{}", joined.1);
    let asked = |what: &str| bridge.asked().iter().filter(|asked| asked.target.contains(what)).count();
    // Who is not there is asked for once, at both paths, and not again for a while; who is in no namespace never.
    assert_eq!(profile("irc_nobody"), 404);
    assert_eq!(profile("nobody"), 404);
    assert_eq!((asked("%40irc_nobody"), asked("%40irc_bob"), asked("%40nobody")), (2, 1, 0));
}

#[test]
fn networks_are_told_of_as_the_services_that_bridge_to_them_say() {
    let (one, two) = (Bridge::start("one"), Bridge::start("two"));
    let registrations = [one.registration("protocols: [irc]"), two.registration("protocols: [irc, xmpp]")];
    let server = TestServer::start_with(|config| config.appservices.extend(registrations));
    let alice = server.user("alice");
    for (bridge, network) in [(&one, "libera"), (&two, "oftc")] {
        bridge.answer_by(move |asked| match asked.target.strip_prefix("/_matrix/app/v1/thirdparty/") {
            Some("protocol/irc") => BridgeAnswer::Json(
                200,
                json!({ "user_fields": [], "location_fields": ["channel"], "icon": "mxc://a/b", "field_types": {},
                    "instances": [{ "desc": network, "fields": {}, "network_id": network }] }),
            ),
            Some("location/irc?channel=%23a%20b") => BridgeAnswer::Json(
                200,
                json!([{ "alias": format!("#{network}:here"), "protocol": "irc", "fields": { "channel": "#a b" } }, 7]),
            ),
            Some(rest) if rest.starts_with("user?userid=") => BridgeAnswer::Json(200, json!([])),
            _ => BridgeAnswer::Json(404, json!({ "errcode": "M_NOT_FOUND" })),
        });
    }
    let v3 = "/_matrix/client/v3/thirdparty";
    let all = alice.get(&format!("{v3}/protocols"));
    assert_eq!(
        all.as_object().map(|all| all.keys().cloned().collect::<Vec<_>>()),
        Some(vec!["irc".to_owned()])
    );
    let irc = alice.get(&format!("{v3}/protocol/irc"));
    assert_eq!(irc, all["irc"]);
    let instances: Vec<_> =
        irc["instances"].as_array().expect("a list").iter().map(|of| of["instance_id"].clone()).collect();
    assert_eq!(instances, [json!("one|libera"), json!("two|oftc")]);
    let found = alice.get(&format!("{v3}/location/irc?channel=%23a%20b"));
    assert_eq!(found.as_array().map(Vec::len), Some(2));
    for none in ["protocol/other", "location/xmpp", "location/irc?channel=x", "user?userid=%40a:b"] {
        assert_eq!(alice.request("GET", &format!("{v3}/{none}"), None).0, 404, "{none}");
    }
    assert_eq!(alice.request("GET", &format!("{v3}/user"), None).0, 400);
    assert!(
        one.asked().iter().chain(&two.asked()).all(|asked| asked.authorization.starts_with("Bearer hs_"))
    );
}

#[test]
fn a_service_that_wants_to_hears_who_types_who_has_read_and_who_is_there() {
    let (bridge, deaf) = (Bridge::start("irc"), Bridge::start("deaf"));
    let registrations =
        [bridge.registration(&format!("receive_ephemeral: true\n{USERS}")), deaf.registration(USERS)];
    let server = TestServer::start_with(|config| config.appservices.extend(registrations));
    let (alice, ghost) = (server.user("alice"), server.user("irc_bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    ghost.join(&room);
    let said = alice.send(&room, "hello");
    bridge.wait_for_message("hello");
    let typing = format!("/_matrix/client/v3/rooms/{room}/typing/{}", alice.id());
    alice.put(&typing, json!({ "typing": true, "timeout": 30000 }));
    let told = bridge
        .wait_for("ephemeral", "who types", |event| event["content"]["user_ids"] == json!([alice.id()]));
    assert_eq!((&told["type"], told["room_id"].as_str()), (&json!("m.typing"), Some(&*room)));
    for (user, kind) in [(&alice, "m.read.private"), (&ghost, "m.read.private"), (&alice, "m.read")] {
        user.post(&format!("/_matrix/client/v3/rooms/{room}/receipt/{kind}/{said}"), json!({}));
    }
    let read = |kind: &str, user: &TestUser| {
        let (kind, user, said) = (kind.to_owned(), user.id().to_owned(), said.clone());
        move |event: &Value| event["content"][&said][&kind][&user]["ts"].is_i64()
    };
    let told = bridge.wait_for("ephemeral", "what alice has read", read("m.read", &alice));
    assert_eq!((&told["type"], told["room_id"].as_str()), (&json!("m.receipt"), Some(&*room)));
    bridge.wait_for("ephemeral", "what its own user has read", read("m.read.private", &ghost));
    let private = read("m.read.private", &alice);
    assert!(
        !bridge.told("ephemeral").iter().any(private),
        "what alice reads in private is nobody's business"
    );
    let presence = format!("/_matrix/client/v3/presence/{}/status", alice.id());
    alice.put(&presence, json!({ "presence": "unavailable", "status_msg": "out" }));
    let told =
        bridge.wait_for("ephemeral", "where alice is", |event| event["content"]["status_msg"] == "out");
    assert_eq!((&told["type"], told["sender"].as_str()), (&json!("m.presence"), Some(alice.id())));
    assert!(deaf.told("ephemeral").is_empty());
}

#[test]
fn messages_to_devices_of_a_services_users_wait_until_it_has_taken_them() {
    let bridge = Bridge::start("irc");
    let more = format!("receive_ephemeral: true\norg.matrix.msc3202: true\n{USERS}");
    let mut server = with(&bridge, &more);
    let alice = server.user("alice");
    let bot = format!("@ircbot:{}", server.name());
    let device = "/_matrix/client/v3/devices/DEV?user_id=".to_owned() + &bot;
    let (status, made) =
        by_token(&server, "as_irc", "PUT", &device, Some(json!({ "display_name": "bridge" })));
    assert!(status < 300, "{made}");
    bridge.answer(down());
    let send = |number: usize| {
        let path = format!("/_matrix/client/v3/sendToDevice/m.x/{number}");
        alice.put(&path, json!({ "messages": { &bot: { "DEV": { "n": number } } } }));
    };
    (0..3).for_each(send);
    wait_until("it is tried", || !bridge.transactions().is_empty());
    server.restart();
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    let key = "de.sorunome.msc2409.to_device";
    server.advance(Duration::from_secs(1000));
    bridge.wait_for(key, "the last message", |message| message["content"]["n"] == 2);
    let told = bridge.told(key);
    let numbers: Vec<_> = told.iter().map(|message| message["content"]["n"].clone()).collect();
    assert_eq!(numbers, [0, 1, 2].map(|number| json!(number)));
    assert!(told.iter().all(|message| {
        message["to_user_id"] == *bot && message["to_device_id"] == "DEV" && message["sender"] == alice.id()
    }));
}

#[test]
fn a_service_with_many_users_is_told_of_all_of_them_whose_keys_are_to_be_looked_at() {
    let bridge = Bridge::start("irc");
    let server = with(&bridge, &format!("org.matrix.msc3202: true\n{USERS}"));
    let id = |number: usize| format!("@irc_{number:03}:{}", server.name());
    let as_service = |method: &str, path: &str, body: Value| {
        let (status, answer) = by_token(&server, "as_irc", method, path, Some(body));
        assert!(status < 300, "{answer}");
        answer
    };
    // More than it is told of at a time how many keys they have left.
    for number in 0..=101 {
        let user = id(number);
        let made = json!({ "type": "m.login.application_service", "username": format!("irc_{number:03}"), "inhibit_login": true });
        as_service("POST", "/_matrix/client/v3/register", made);
        as_service("PUT", &format!("/_matrix/client/v3/devices/DEV?user_id={user}"), json!({}));
        let keys = TestDeviceKeys::new(&user, "DEV");
        let mut body = json!({ "device_keys": keys.identity() });
        if number < 101 {
            body["one_time_keys"] =
                json!({ "signed_curve25519:A": keys.sign(json!({ "key": "A".repeat(43) })) });
        }
        as_service("POST", &format!("/_matrix/client/v3/keys/upload?user_id={user}&device_id=DEV"), body);
    }
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    as_service("POST", &format!("/_matrix/client/v3/join/{room}?user_id={}", id(101)), json!({}));
    alice.send(&room, "hello");
    bridge.wait_for_message("hello");
    let changed = |user: &str| {
        let sent = bridge.transactions().into_iter();
        let lists = sent.map(|sent| sent.body["org.matrix.msc3202.device_lists"]["changed"].clone());
        lists
            .flat_map(|list| list.as_array().cloned().unwrap_or_default())
            .filter(|told| told == user)
            .count()
    };
    let known = changed(alice.id());
    alice.upload_keys(&[]);
    alice.send(&room, "with keys");
    bridge.wait_for_message("with keys");
    wait_until("it is told that alice has keys", || {
        alice.send(&room, "and");
        changed(alice.id()) > known
    });
    // Who has no keys left is told first.
    let counts =
        bridge.transactions().pop().expect("some").body["org.matrix.msc3202.device_one_time_keys_count"]
            .clone();
    assert_eq!(counts[&id(101)]["DEV"]["signed_curve25519"], 0, "{counts}");
}
