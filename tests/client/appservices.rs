//! Application services: bridges and bots, and the users that they speak for.

use crate::common::client::{V3, room_path};
use doorstep::TestServer;
use doorstep::config::{Config, Registration};
use doorstep::protocol::appservice;
use doorstep::testing::{TestDeviceKeys, TestSigningKeys, TestUser, segment};
use serde_json::{Value, json};

/// A bridge that has the users and aliases that begin with `_irc_` for itself.
const IRC: &str = "id: irc\nurl: null\nas_token: as-irc\nhs_token: hs-irc\nsender_localpart: ircbot\nrate_limited: \
    false\nnamespaces:\n  users: [{regex: '@_irc_.*', exclusive: true}]\n  aliases: [{regex: '#_irc_.*', exclusive: true}]\n";
/// A bot that speaks for everybody, and has nobody for itself but its own user, whose name is as bridges make them up.
const PUPPET: &str = "id: puppet\nurl: null\nas_token: as-puppet\nhs_token: hs-puppet\nsender_localpart: Xy9Zw\n\
    namespaces:\n  users: [{regex: '@.*', exclusive: false}]\n";

fn config(config: &mut Config, services: &[&str]) {
    config.appservices = services.iter().map(|text| appservice::Registration::parse(text).unwrap()).collect();
}

fn server() -> TestServer {
    TestServer::start_with(|changed| config(changed, &[IRC, PUPPET]))
}

/// The user of a service, named or its own.
#[track_caller]
fn service(server: &TestServer, token: &str) -> TestUser {
    TestUser::new(server.url(), "", token)
}

fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

#[track_caller]
fn done(answer: (u16, Value)) -> Value {
    assert_eq!(answer.0, 200, "{answer:?}");
    answer.1
}

/// A path with the user whom the service is to be.
fn as_user(path: &str, server: &TestServer, localpart: &str) -> String {
    let sign = if path.contains('?') { '&' } else { '?' };
    format!("{path}{sign}user_id={}", segment(&id(server, localpart)))
}

fn id(server: &TestServer, localpart: &str) -> String {
    format!("@{localpart}:{}", server.name())
}

fn register(service: &TestUser, username: &str) -> (u16, Value) {
    let body = json!({"type": "m.login.application_service", "username": username, "inhibit_login": true});
    service.request("POST", &format!("{V3}/register"), Some(body))
}

fn log_in(service: &TestUser, user: &str) -> (u16, Value) {
    let identifier = json!({"type": "m.id.user", "user": user});
    let body =
        json!({"type": "m.login.application_service", "identifier": identifier, "device_id": "BRIDGE"});
    service.request("POST", &format!("{V3}/login"), Some(body))
}

fn whoami(service: &TestUser, query: &str) -> (u16, Value) {
    service.request("GET", &format!("{V3}/account/whoami{query}"), None)
}

#[test]
fn a_service_is_its_own_user_or_one_of_its_namespace_and_nobody_else() {
    let server = server();
    let irc = service(&server, "as-irc");
    server.user("alice");
    assert_eq!(done(whoami(&irc, "")), json!({"user_id": id(&server, "ircbot"), "is_guest": false}));
    let by_query = service(&server, "");
    assert_eq!(done(whoami(&by_query, "?access_token=as-irc"))["user_id"], id(&server, "ircbot"));
    let named = |user: &str| whoami(&irc, &format!("?user_id={}", segment(user)));
    refused(named(&id(&server, "_irc_bob")), 403, "M_FORBIDDEN");
    done(register(&irc, "_irc_bob"));
    assert_eq!(done(named(&id(&server, "_irc_bob")))["user_id"], id(&server, "_irc_bob"));
    assert_eq!(done(named(&id(&server, "ircbot")))["user_id"], id(&server, "ircbot"));
    for other in [
        &id(&server, "alice"),
        &id(&server, "_IRC_bob"),
        &id(&server, "_irc_BOB"),
        &id(&server, "Xy9Zw"),
        "@_irc_bob:elsewhere.example",
    ] {
        refused(named(other), 403, "M_FORBIDDEN");
    }
    for wrong in ["", "_irc_bob", "@_irc_bob"] {
        refused(named(wrong), 400, "M_INVALID_PARAM");
    }
    for token in ["as-ir", "AS-IRC", "hs-irc", "as-irc2"] {
        refused(whoami(&service(&server, token), ""), 401, "M_UNKNOWN_TOKEN");
    }
    // Who speaks for everybody speaks for the users of other services too.
    let puppet = service(&server, "as-puppet");
    for user in ["alice", "_irc_bob", "Xy9Zw"] {
        let path = as_user("", &server, user);
        assert_eq!(done(whoami(&puppet, &path))["user_id"], id(&server, user));
    }
}

#[test]
fn a_service_acts_on_a_device_that_it_names_and_on_none_otherwise() {
    let server = server();
    let irc = service(&server, "as-irc");
    done(register(&irc, "_irc_bob"));
    let on = |query: &str| whoami(&irc, &as_user(query, &server, "_irc_bob"));
    refused(on("?device_id=BRIDGE"), 400, "M_UNKNOWN_DEVICE");
    let device = as_user(&format!("{V3}/devices/BRIDGE"), &server, "_irc_bob");
    let made = irc.request("PUT", &device, Some(json!({"display_name": "The bridge"})));
    assert_eq!(made, (201, json!({})));
    assert_eq!(irc.get(&device)["display_name"], "The bridge");
    assert_eq!(irc.request("PUT", &device, Some(json!({}))), (200, json!({})));
    done(irc.request("PUT", &device, Some(json!({"display_name": "A bridge"}))));
    assert_eq!(irc.get(&device)["display_name"], "A bridge");
    assert_eq!(done(on("?device_id=BRIDGE"))["device_id"], "BRIDGE");
    assert_eq!(done(on("?org.matrix.msc3202.device_id=BRIDGE"))["device_id"], "BRIDGE");
    assert_eq!(done(on("?org.matrix.msc3202.device_id=NONE&device_id=BRIDGE"))["device_id"], "BRIDGE");
    refused(on("?org.matrix.msc3202.device_id=BRIDGE&device_id=NONE"), 400, "M_UNKNOWN_DEVICE");
    // It is another user's.
    refused(whoami(&irc, "?device_id=BRIDGE"), 400, "M_UNKNOWN_DEVICE");
    let keys = format!("{V3}/keys/upload");
    let body = json!({"one_time_keys": {}});
    refused(
        irc.request("POST", &as_user(&keys, &server, "_irc_bob"), Some(body.clone())),
        400,
        "M_MISSING_PARAM",
    );
    refused(irc.request("POST", &format!("{V3}/logout"), None), 400, "M_MISSING_PARAM");
    let owner = TestUser::new(server.url(), &id(&server, "_irc_bob"), "as-irc");
    let device_keys = TestDeviceKeys::new(owner.id(), "BRIDGE");
    let with_device = as_user(&format!("{keys}?device_id=BRIDGE"), &server, "_irc_bob");
    done(irc.request("POST", &with_device, Some(json!({"device_keys": device_keys.identity()}))));
    // A user's own client makes no device by the same way.
    let alice = server.user("alice");
    refused(
        alice.request("PUT", &format!("{V3}/devices/NEW"), Some(json!({"display_name": "x"}))),
        404,
        "M_NOT_FOUND",
    );
}

#[test]
fn what_users_have_to_prove_their_services_need_not() {
    let server = server();
    let irc = service(&server, "as-irc");
    done(register(&irc, "_irc_bob"));
    let bob = id(&server, "_irc_bob");
    for device in ["A", "B", "C"] {
        let path = as_user(&format!("{V3}/devices/{device}"), &server, "_irc_bob");
        assert_eq!(irc.request("PUT", &path, Some(json!({}))).0, 201);
    }
    for _ in 0..2 {
        let keys = TestSigningKeys::new(&bob);
        let path = as_user(&format!("{V3}/keys/device_signing/upload"), &server, "_irc_bob");
        done(irc.request("POST", &path, Some(keys.upload())));
    }
    done(irc.request("DELETE", &as_user(&format!("{V3}/devices/A"), &server, "_irc_bob"), Some(json!({}))));
    let many = as_user(&format!("{V3}/delete_devices"), &server, "_irc_bob");
    done(irc.request("POST", &many, Some(json!({"devices": ["B"]}))));
    let devices = irc.get(&as_user(&format!("{V3}/devices"), &server, "_irc_bob"));
    assert_eq!(devices["devices"].as_array().unwrap().len(), 1, "{devices}");
    let end = format!("{V3}/account/deactivate");
    refused(irc.request("POST", &end, Some(json!({}))), 403, "M_FORBIDDEN");
    done(irc.request("POST", &as_user(&end, &server, "_irc_bob"), Some(json!({}))));
    refused(whoami(&irc, &as_user("", &server, "_irc_bob")), 403, "M_USER_DEACTIVATED");
    refused(log_in(&irc, "_irc_bob"), 403, "M_FORBIDDEN");
    refused(register(&irc, "_irc_bob"), 400, "M_USER_IN_USE");
}

#[test]
fn a_service_makes_users_in_its_namespace_whoever_else_may_register() {
    let server = TestServer::start_with(|changed| {
        config(changed, &[IRC, PUPPET]);
        changed.registration = Registration::Closed;
        // A bridge makes more users than anybody at one address may.
        changed.rate_limits = true;
    });
    let (irc, nobody) = (service(&server, "as-irc"), service(&server, ""));
    for number in 0..30 {
        let answer = done(register(&irc, &format!("_irc_{number}")));
        assert_eq!(
            (&answer["user_id"], answer.get("access_token")),
            (&json!(id(&server, &format!("_irc_{number}"))), None)
        );
    }
    refused(register(&irc, "_irc_1"), 400, "M_USER_IN_USE");
    refused(register(&irc, "ircbot"), 400, "M_USER_IN_USE");
    refused(register(&irc, "alice"), 400, "M_EXCLUSIVE");
    refused(register(&irc, "Xy9Zw"), 400, "M_EXCLUSIVE");
    refused(register(&service(&server, "as-puppet"), "_irc_x"), 400, "M_EXCLUSIVE");
    // Names from elsewhere are what they are there.
    done(register(&irc, "_irc_Bob[away]|=5f"));
    for wrong in ["", "_irc_a:b", "_irc_ä", "_irc_a b", &"_irc_".repeat(100)] {
        refused(register(&irc, wrong), 400, "M_INVALID_USERNAME");
    }
    refused(register(&nobody, "_irc_x"), 401, "M_MISSING_TOKEN");
    refused(register(&service(&server, "as-other"), "_irc_x"), 401, "M_UNKNOWN_TOKEN");
    let alice = server.user("alice");
    refused(register(&alice, "_irc_x"), 401, "M_UNKNOWN_TOKEN");
    let body = json!({"type": "m.login.application_service", "username": "_irc_logged_in", "device_id": "D"});
    let logged_in = done(irc.request("POST", &format!("{V3}/register"), Some(body)));
    let token = logged_in["access_token"].as_str().unwrap();
    assert_eq!(done(whoami(&service(&server, token), ""))["device_id"], "D");
}

#[test]
fn nobody_else_makes_a_user_or_an_alias_that_a_service_has_for_itself() {
    let server = server();
    let (alice, irc) = (server.user("alice"), service(&server, "as-irc"));
    let room = alice.create_room();
    let available =
        |name: &str| alice.request("GET", &format!("{V3}/register/available?username={name}"), None);
    refused(available("_irc_x"), 400, "M_EXCLUSIVE");
    refused(available("ircbot"), 400, "M_EXCLUSIVE");
    refused(available("_other"), 400, "M_INVALID_USERNAME");
    done(available("irc"));
    let by_hand =
        json!({"username": "_irc_x", "password": "a long secret", "auth": {"type": "m.login.dummy"}});
    refused(
        service(&server, "").request("POST", &format!("{V3}/register"), Some(by_hand)),
        400,
        "M_EXCLUSIVE",
    );
    let alias =
        |name: &str| format!("{V3}/directory/room/{}", segment(&format!("#{name}:{}", server.name())));
    let put = |user: &TestUser, name: &str| user.request("PUT", &alias(name), Some(json!({"room_id": room})));
    refused(put(&alice, "_irc_x"), 400, "M_EXCLUSIVE");
    let named = json!({"room_alias_name": "_irc_x"});
    refused(alice.request("POST", &format!("{V3}/createRoom"), Some(named.clone())), 400, "M_EXCLUSIVE");
    // A service need not be in the room.
    done(put(&irc, "_irc_x"));
    refused(put(&irc, "elsewhere"), 400, "M_EXCLUSIVE");
    refused(put(&service(&server, "as-puppet"), "_irc_y"), 400, "M_EXCLUSIVE");
    let bobs = server.user("bob");
    refused(bobs.request("DELETE", &alias("_irc_x"), None), 400, "M_EXCLUSIVE");
    done(irc.request("DELETE", &alias("_irc_x"), None));
    done(irc.request("POST", &format!("{V3}/createRoom"), Some(named)));
    // An administrator of the server tidies up.
    done(alice.request("DELETE", &alias("_irc_x"), None));
}

#[test]
fn who_had_a_name_before_a_service_claimed_it_keeps_their_account() {
    let mut server = TestServer::start();
    let account =
        json!({"username": "irc_fan", "password": "a long secret", "auth": {"type": "m.login.dummy"}});
    let nobody = service(&server, "");
    done(nobody.request("POST", &format!("{V3}/register"), Some(account)));
    server.stop();
    server.change(|changed| config(changed, &[&IRC.replace("_irc_", "irc_")]));
    server.resume();
    let nobody = service(&server, "");
    let body = json!({"type": "m.login.password", "password": "a long secret",
        "identifier": {"type": "m.id.user", "user": "irc_fan"}});
    let fan = done(nobody.request("POST", &format!("{V3}/login"), Some(body)));
    let fan =
        TestUser::new(server.url(), fan["user_id"].as_str().unwrap(), fan["access_token"].as_str().unwrap());
    fan.send(&fan.create_room(), "still here");
}

#[test]
fn a_service_logs_its_users_in_and_nobody_elses() {
    let server = server();
    let (irc, nobody) = (service(&server, "as-irc"), service(&server, ""));
    server.user("alice");
    let flows = nobody.get(&format!("{V3}/login"));
    let has_flow = |flows: &Value| {
        flows["flows"].as_array().unwrap().iter().any(|flow| flow["type"] == "m.login.application_service")
    };
    assert!(has_flow(&flows), "{flows}");
    assert!(!has_flow(&service(&TestServer::start(), "").get(&format!("{V3}/login"))));
    done(register(&irc, "_irc_Bob"));
    for name in ["_irc_Bob".to_owned(), id(&server, "_irc_Bob")] {
        let login = done(log_in(&irc, &name));
        assert_eq!(login["user_id"], id(&server, "_irc_Bob"));
        let bob = service(&server, login["access_token"].as_str().unwrap());
        assert_eq!(done(whoami(&bob, ""))["device_id"], "BRIDGE");
        done(bob.request("POST", &format!("{V3}/logout"), None));
    }
    refused(log_in(&irc, "alice"), 400, "M_EXCLUSIVE");
    refused(log_in(&irc, "_irc_nobody"), 403, "M_FORBIDDEN");
    refused(log_in(&irc, "@_irc_Bob:elsewhere.example"), 403, "M_FORBIDDEN");
    refused(log_in(&nobody, "_irc_Bob"), 401, "M_MISSING_TOKEN");
    refused(log_in(&service(&server, "as-x"), "_irc_Bob"), 401, "M_UNKNOWN_TOKEN");
    done(log_in(&service(&server, "as-puppet"), "alice"));
}

#[test]
fn a_service_says_when_what_it_brings_was_sent_and_nobody_else_does() {
    let server = server();
    let (irc, alice) = (service(&server, "as-irc"), server.user("alice"));
    done(register(&irc, "_irc_bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    let state = |key: &str, user: &str, query: &str| {
        let path = room_path(&room, &format!("state/m.room.{key}{query}"));
        as_user(&path, &server, user)
    };
    let ts_of = |event: &Value| {
        let path = room_path(&room, &format!("event/{}", segment(event["event_id"].as_str().unwrap())));
        alice.get(&path)["origin_server_ts"].as_i64().unwrap()
    };
    let bob = segment(&id(&server, "_irc_bob"));
    let (join, leave) = (json!({"membership": "join"}), json!({"membership": "leave"}));
    let joined =
        done(irc.request("PUT", &state(&format!("member/{bob}"), "_irc_bob", "?ts=1000"), Some(join)));
    assert_eq!(ts_of(&joined), 1000);
    let text = json!({"msgtype": "m.text", "body": "hi"});
    let send = |txn: &str, query: &str| {
        let path = room_path(&room, &format!("send/m.room.message/{txn}{query}"));
        irc.request("PUT", &as_user(&path, &server, "_irc_bob"), Some(text.clone()))
    };
    let sent = done(send("1", "?ts=1421416883133"));
    assert_eq!(ts_of(&sent), 1421416883133);
    assert_eq!(done(send("1", "?ts=5")), sent, "a repeat");
    assert_eq!(ts_of(&done(send("2", "?ts=0"))), 0);
    assert!(ts_of(&done(send("3", ""))) > 1_600_000_000_000);
    for (txn, wrong) in ["-1", "x", "1.5", "9007199254740992", ""].iter().enumerate() {
        refused(send(&format!("w{txn}"), &format!("?ts={wrong}")), 400, "M_INVALID_PARAM");
    }
    refused(send("d", "?ts=1&org.matrix.msc4140.delay=1000"), 400, "M_INVALID_PARAM");
    let left =
        done(irc.request("PUT", &state(&format!("member/{bob}"), "_irc_bob", "?ts=2000"), Some(leave)));
    assert_eq!(ts_of(&left), 2000);
    let own = room_path(&room, "send/m.room.message/own?ts=1000");
    let own = alice.put(&own, text);
    assert!(ts_of(&own) > 1_600_000_000_000);
    let invite = json!({"membership": "invite"});
    let bot = service(&server, "as-puppet");
    let path = state(&format!("member/{bob}"), "alice", "?ts=3000");
    assert_eq!(ts_of(&done(bot.request("PUT", &path, Some(invite)))), 3000);
}

#[test]
fn a_service_is_no_administrator_and_whom_it_makes_is_not_the_first_user() {
    let server = server();
    let irc = service(&server, "as-irc");
    done(register(&irc, "_irc_first"));
    let alice = server.user("alice");
    assert!(alice.get(&format!("{V3}/capabilities"))["capabilities"].get("m.account_moderation").is_some());
    let details = |user: &TestUser, of: &str| {
        user.request("GET", &format!("/_synapse/admin/v2/users/{}", segment(&id(&server, of))), None)
    };
    let told = done(details(&alice, "_irc_first"));
    assert_eq!((&told["appservice_id"], &told["admin"]), (&json!("irc"), &json!(false)));
    assert_eq!(done(details(&alice, "alice"))["appservice_id"], Value::Null);
    // Not even as a user who is one, by whatever token.
    let puppet = service(&server, "as-puppet");
    let path = format!("/_synapse/admin/v2/users/{}", segment(alice.id()));
    refused(puppet.request("GET", &as_user(&path, &server, "alice"), None), 403, "M_FORBIDDEN");
    let opened = done(log_in(&puppet, "alice"));
    let opened = service(&server, opened["access_token"].as_str().unwrap());
    refused(opened.request("GET", &path, None), 403, "M_FORBIDDEN");
    done(alice.request("GET", &path, None));
    // Users with capitals are found too.
    assert_eq!(done(details(&alice, "Xy9Zw"))["appservice_id"], "puppet");
}

#[test]
fn what_is_done_to_a_user_holds_when_a_service_acts_as_them() {
    let server = server();
    let (alice, irc) = (server.user("alice"), service(&server, "as-irc"));
    done(register(&irc, "_irc_bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    let join = as_user(&format!("{V3}/join/{}", segment(&room)), &server, "_irc_bob");
    done(irc.request("POST", &join, Some(json!({}))));
    let set = |what: &str, on: bool| {
        let path = format!("/_matrix/client/v1/admin/{what}/{}", segment(&id(&server, "_irc_bob")));
        let field = if what == "lock" { "locked" } else { "suspended" };
        done(alice.request("PUT", &path, Some(json!({ field: on }))));
    };
    let send = |txn: &str| {
        let path = room_path(&room, &format!("send/m.room.message/{txn}"));
        let text = json!({"msgtype": "m.text", "body": "hi"});
        irc.request("PUT", &as_user(&path, &server, "_irc_bob"), Some(text))
    };
    set("suspend", true);
    refused(send("1"), 403, "M_USER_SUSPENDED");
    set("suspend", false);
    set("lock", true);
    refused(send("2"), 401, "M_USER_LOCKED");
    done(whoami(&irc, ""));
    set("lock", false);
    done(send("3"));
    assert_eq!(alice.next_message(&room), "hi");
}

#[test]
fn a_service_syncs_as_one_of_its_users_and_reads_who_is_in_their_rooms() {
    let server = server();
    let (alice, irc) = (server.user("alice"), service(&server, "as-irc"));
    done(register(&irc, "_irc_bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    let members = room_path(&room, "joined_members");
    refused(irc.request("GET", &members, None), 403, "M_FORBIDDEN");
    done(irc.request(
        "POST",
        &as_user(&format!("{V3}/join/{}", segment(&room)), &server, "_irc_bob"),
        Some(json!({})),
    ));
    let joined = done(irc.request("GET", &members, None));
    assert_eq!(joined["joined"].as_object().unwrap().len(), 2, "{joined}");
    let sync = |query: &str| irc.get(&as_user(&format!("{V3}/sync{query}"), &server, "_irc_bob"));
    let first = sync("");
    assert!(first["rooms"]["join"].get(&room).is_some(), "{first}");
    alice.send(&room, "news");
    let next = sync(&format!("?timeout=30000&since={}", first["next_batch"].as_str().unwrap()));
    assert_eq!(next["rooms"]["join"][&room]["timeline"]["events"][0]["content"]["body"], "news");
    assert!(irc.get(&format!("{V3}/sync"))["rooms"].get("join").is_none());
}

#[test]
fn a_service_publishes_rooms_for_its_networks_and_clients_ask_for_them() {
    let server = server();
    let (alice, irc) = (server.user("alice"), service(&server, "as-irc"));
    let (bridged, listed) = (alice.create_room(), alice.create_room_with(json!({"visibility": "public"})));
    let path = |network: &str, room: &str| {
        format!("{V3}/directory/list/appservice/{}/{}", segment(network), segment(room))
    };
    let public = || Some(json!({"visibility": "public"}));
    refused(alice.request("PUT", &path("net", &bridged), public()), 403, "M_FORBIDDEN");
    refused(irc.request("PUT", &path("net", "!none:example.org"), public()), 404, "M_NOT_FOUND");
    refused(irc.request("PUT", &path("net", &bridged), Some(json!({}))), 400, "M_INVALID_PARAM");
    done(irc.request("PUT", &path("net", &bridged), public()));
    let rooms = |asked: Value| {
        let answer = alice.post(&format!("{V3}/publicRooms"), asked);
        let ids = answer["chunk"]
            .as_array()
            .unwrap()
            .iter()
            .map(|room| room["room_id"].as_str().unwrap().to_owned());
        let mut ids: Vec<String> = ids.collect();
        ids.sort();
        ids
    };
    assert_eq!(rooms(json!({})), vec![listed.clone()]);
    assert_eq!(rooms(json!({"third_party_instance_id": "irc|net"})), vec![bridged.clone()]);
    for other in ["irc|other", "puppet|net", "net", "irc"] {
        assert!(rooms(json!({"third_party_instance_id": other})).is_empty(), "{other}");
    }
    let mut both = [bridged.clone(), listed.clone()];
    both.sort();
    assert_eq!(rooms(json!({"include_all_networks": true})), both);
    done(irc.request("PUT", &path("net", &bridged), Some(json!({"visibility": "private"}))));
    assert_eq!(rooms(json!({"include_all_networks": true})), [listed]);
}

#[test]
fn the_users_of_a_service_are_limited_in_rate_only_where_its_registration_says_so_and_its_own_never_is() {
    let limited = IRC.replace("rate_limited: false", "rate_limited: true");
    for (registration, is_limited) in [(IRC, false), (&*limited, true)] {
        let server = TestServer::start_with(|changed| {
            config(changed, &[registration]);
            changed.rate_limits = true;
        });
        let irc = service(&server, "as-irc");
        done(register(&irc, "_irc_bob"));
        let name = |user: &str| {
            let path = format!("{V3}/profile/{}/displayname", segment(&id(&server, user)));
            irc.request("PUT", &as_user(&path, &server, user), Some(json!({"displayname": "x"}))).0
        };
        let refusals = |user: &str| (0..130).filter(|_| name(user) == 429).count();
        assert_eq!(refusals("_irc_bob") > 0, is_limited);
        assert_eq!(refusals("ircbot"), 0);
    }
}

#[test]
fn a_service_is_there_after_a_restart_and_gone_when_it_is_registered_no_more() {
    let mut server = server();
    let irc = service(&server, "as-irc");
    done(register(&irc, "_irc_bob"));
    server.restart();
    let irc = service(&server, "as-irc");
    assert_eq!(done(whoami(&irc, &as_user("", &server, "_irc_bob")))["user_id"], id(&server, "_irc_bob"));
    server.stop();
    server.change(|changed| config(changed, &[]));
    server.resume();
    refused(whoami(&service(&server, "as-irc"), ""), 401, "M_UNKNOWN_TOKEN");
    let alice = server.user("alice");
    assert!(alice.get(&format!("{V3}/capabilities"))["capabilities"].get("m.account_moderation").is_some());
}

#[test]
fn guests_and_users_of_two_services_are_what_they_are_whoever_acts_as_them() {
    const SECOND: &str = "id: second\nurl: null\nas_token: as-second\nhs_token: h\nsender_localpart: _irc_second\n\
        namespaces:\n  users: [{regex: '@_irc_b', exclusive: true}]\n";
    let server = TestServer::start_with(|changed| {
        config(changed, &[IRC, PUPPET, SECOND]);
        (changed.guests, changed.rate_limits) = (true, false);
    });
    let [irc, puppet, second] = ["as-irc", "as-puppet", "as-second"].map(|token| service(&server, token));
    // Where two have the same names for themselves, neither makes one.
    refused(register(&irc, "_irc_bob"), 400, "M_EXCLUSIVE");
    refused(register(&second, "_irc_bob"), 400, "M_EXCLUSIVE");
    done(register(&irc, "_irc_carol"));
    refused(whoami(&second, &as_user("", &server, "_irc_carol")), 403, "M_FORBIDDEN");
    // The user of one lies in the namespace of the other, which the operator has so.
    done(whoami(&irc, &as_user("", &server, "_irc_second")));
    done(whoami(&second, ""));
    let answer = service(&server, "").request("POST", &format!("{V3}/register?kind=guest"), Some(json!({})));
    let guest = done(answer)["user_id"].as_str().unwrap().to_owned();
    let as_guest = |path: &str| format!("{V3}/{path}?user_id={}", segment(&guest));
    assert_eq!(done(puppet.request("GET", &as_guest("account/whoami"), None))["is_guest"], true);
    refused(
        puppet.request("POST", &as_guest("createRoom"), Some(json!({}))),
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
}

#[test]
fn a_service_knows_the_delayed_events_of_whom_it_acts_as_and_of_nobody_else() {
    let server = server();
    let irc = service(&server, "as-irc");
    for user in ["_irc_bob", "_irc_carol"] {
        done(register(&irc, user));
    }
    let ask = |method: &str, path: &str, user: &str, body: Option<Value>| {
        done(irc.request(method, &as_user(path, &server, user), body))
    };
    let room = ask("POST", &format!("{V3}/createRoom"), "_irc_bob", Some(json!({"preset": "public_chat"})));
    let room = room["room_id"].as_str().expect("a room").to_owned();
    ask("POST", &room_path(&room, "join"), "_irc_carol", Some(json!({})));
    let delayed = "/_matrix/client/unstable/org.matrix.msc4140";
    let put = format!("{delayed}/rooms/{}/delayed_event/m.room.message/1", segment(&room));
    let body = json!({"delay": 60_000, "content": {"msgtype": "m.text", "body": "later"}});
    // Each of its users is somebody else, though the service calls both requests the same.
    let [bobs, carols] = ["_irc_bob", "_irc_carol"].map(|user| {
        let answer = ask("PUT", &put, user, Some(body.clone()));
        answer["delay_id"].as_str().expect("an id").to_owned()
    });
    let one = |user: &str| {
        let path = as_user(&format!("{delayed}/delayed_events/{bobs}"), &server, user);
        irc.request("GET", &path, None).0
    };
    assert_eq!((one("_irc_bob"), one("_irc_carol")), (200, 404));
    for delay_id in [&bobs, &carols] {
        ask("POST", &format!("{delayed}/delayed_events/{delay_id}/send"), "_irc_carol", Some(json!({})));
    }
    let seen = |user: &str| {
        let page = ask("GET", &room_path(&room, "messages?dir=b&limit=2"), user, None);
        [1, 0].map(|at| page["chunk"][at]["unsigned"]["org.matrix.msc4140.delay_id"].clone())
    };
    assert_eq!(seen("_irc_bob"), [json!(bobs), Value::Null]);
    assert_eq!(seen("_irc_carol"), [Value::Null, json!(carols)]);
    // Of a time of its own there is none for what is sent later.
    let put = as_user(&format!("{put}?ts=1"), &server, "_irc_bob");
    refused(irc.request("PUT", &put, Some(body)), 400, "M_INVALID_PARAM");
}

#[test]
fn a_service_without_its_user_acts_as_its_others() {
    let mut server = server();
    let alice = server.user("alice");
    let irc = service(&server, "as-irc");
    done(register(&irc, "_irc_bob"));
    let end = format!("/_synapse/admin/v1/deactivate/{}", segment(&id(&server, "ircbot")));
    done(alice.request("POST", &end, Some(json!({}))));
    refused(whoami(&irc, ""), 403, "M_USER_DEACTIVATED");
    server.restart();
    let irc = service(&server, "as-irc");
    refused(whoami(&irc, ""), 403, "M_USER_DEACTIVATED");
    done(whoami(&irc, &as_user("", &server, "_irc_bob")));
    done(register(&irc, "_irc_carol"));
}
