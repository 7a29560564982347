//! What else Synapse's tools ask of its admin API: other servers, what a user keeps here, a session in a user's name, where a
//! room ends; and that what is changed of an account is changed at once.

use crate::common::client::{V3, room_path};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const V1: &str = "/_synapse/admin/v1";
const V2: &str = "/_synapse/admin/v2";

#[track_caller]
fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

#[test]
fn of_an_account_whose_fields_are_changed_together_nobody_sees_half_of_the_change() {
    let server = TestServer::start();
    let (admin, other) = (server.user("admin"), server.user("other"));
    let room = other.create_room();
    assert_eq!(
        admin.request("PUT", &format!("{V1}/users/other/admin"), Some(json!({ "admin": true }))).0,
        200
    );
    let bob = server.user("bob");
    let path = format!("{V2}/users/bob");
    let is_over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for round in 0..40 {
                let on = round % 2 == 0;
                let change = json!({ "displayname": on.to_string(), "avatar_url": format!("mxc://x/{on}"), "admin": on });
                let (status, after) = admin.request("PUT", &path, Some(change));
                assert_eq!((status, &after["admin"]), (200, &json!(on)), "{after}");
            }
            is_over.store(true, Ordering::Relaxed);
        });
        while !is_over.load(Ordering::Relaxed) {
            let seen = other.get(&path);
            let Some(on) = seen["displayname"].as_str().and_then(|on| on.parse::<bool>().ok()) else {
                continue;
            };
            assert_eq!(seen["admin"], on, "{seen}");
            assert_eq!(seen["avatar_url"], format!("mxc://x/{on}"), "{seen}");
        }
    });
    // All of them at once, the last of which ends the others: the rooms are told, and left.
    other.invite(&room, bob.id());
    bob.join(&room);
    let change = json!({ "displayname": "Bob", "password": "another", "logout_devices": false });
    assert_eq!(admin.request("PUT", &path, Some(change)).0, 200);
    let name = || other.state(&room, "m.room.member", bob.id()).map(|member| member["displayname"].clone());
    wait_until("the room is told of the name", || name() == Some(json!("Bob")));
    let body = json!({ "type": "m.login.password", "password": "another",
        "identifier": { "type": "m.id.user", "user": "bob" } });
    assert_eq!(bob.request("POST", &format!("{V3}/login"), Some(body)).0, 200);
    assert_eq!(bob.request("GET", &format!("{V3}/account/whoami"), None).0, 200, "no device was logged out");
    let change = json!({ "displayname": "gone", "deactivated": true });
    let (status, closed) = admin.request("PUT", &path, Some(change));
    assert_eq!((status, &closed["deactivated"], &closed["displayname"]), (200, &json!(true), &json!("gone")));
    assert_eq!(other.membership_of(&room, bob.id()).as_deref(), Some("leave"));
    assert_eq!(bob.request("GET", &format!("{V3}/account/whoami"), None).0, 401);
}

#[test]
fn other_servers_are_listed_with_how_they_stand_and_the_rooms_that_they_are_in() {
    let (here, mut there) = TestServer::pair();
    let (admin, bob) = (here.user("admin"), there.user("bob"));
    let of = |rest: &str| format!("{V1}/federation/destinations{rest}");
    assert_eq!(admin.get(&of("")), json!({ "destinations": [], "total": 0 }));
    let room = admin.create_room_with(json!({ "preset": "public_chat" }));
    bob.join_via(&room, &[here.name()]);
    let name = there.name().to_owned();
    admin.send(&room, "hello");
    let one = || admin.get(&of(&format!("/{}", segment(&name))));
    wait_until("it was sent something", || one()["last_successful_stream_ordering"].is_i64());
    let fine = one();
    let expected = json!({ "destination": name, "failure_ts": null, "retry_last_ts": 0, "retry_interval": 0,
        "last_successful_stream_ordering": fine["last_successful_stream_ordering"] });
    assert_eq!(fine, expected);
    // What was sent last may still be under way.
    wait_until("the list says the same of it", || {
        admin.get(&of("")) == json!({ "destinations": [one()], "total": 1 })
    });
    let rooms = admin.get(&of(&format!("/{}/rooms", segment(&name))));
    assert_eq!((&rooms["total"], &rooms["rooms"][0]["room_id"]), (&json!(1), &json!(room)), "{rooms}");
    assert!(rooms["rooms"][0]["stream_ordering"].is_i64(), "{rooms}");
    let reset = of(&format!("/{}/reset_connection", segment(&name)));
    refused(admin.request("POST", &reset, Some(json!({}))), 400, "M_UNKNOWN");

    there.stop();
    admin.send(&room, "is anybody there?");
    wait_until("it is behind", || !one()["failure_ts"].is_null());
    let behind = one();
    let number = |field: &str| behind[field].as_i64().expect("a number");
    assert!(
        number("retry_interval") > 0 && number("retry_last_ts") >= number("failure_ts") - 1000,
        "{behind}"
    );
    assert_eq!(admin.get(&of("?destination=localhost&order_by=retry_interval&dir=b"))["total"], 1);
    assert_eq!(admin.get(&of("?destination=elsewhere"))["total"], 0);
    assert_eq!(admin.get(&of("?limit=0")).get("next_token"), None, "that would be the same page again");
    there.resume();
    // Hours may be left until it is tried again: it is tried at once.
    assert_eq!(admin.request("POST", &reset, Some(json!({}))), (200, json!({})));
    wait_until("it has it all", || one()["failure_ts"].is_null());

    for query in ["order_by=colour", "dir=up", "from=-1"] {
        refused(admin.request("GET", &of(&format!("?{query}")), None), 400, "M_INVALID_PARAM");
    }
    for rest in ["", "/rooms"] {
        refused(admin.request("GET", &of(&format!("/nobody.example{rest}")), None), 404, "M_NOT_FOUND");
    }
    refused(
        admin.request("POST", &of("/nobody.example/reset_connection"), Some(json!({}))),
        404,
        "M_NOT_FOUND",
    );
    let eve = here.user("eve");
    refused(eve.request("GET", &of(""), None), 403, "M_FORBIDDEN");
    refused(eve.request("POST", &reset, Some(json!({}))), 403, "M_FORBIDDEN");
}

#[test]
fn an_administrator_is_given_a_session_in_the_name_of_a_user_who_sees_it_among_theirs() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let path = |user: &str| format!("{V1}/users/{}/login", segment(user));
    let (status, login) = admin.request("POST", &path(bob.id()), Some(json!({})));
    assert_eq!(status, 200, "{login}");
    let as_bob = TestUser::new(server.url(), bob.id(), login["access_token"].as_str().expect("a token"));
    assert_eq!(as_bob.get(&format!("{V3}/account/whoami"))["user_id"], bob.id());
    let devices = bob.get(&format!("{V3}/devices"));
    assert!(devices.to_string().contains(admin.id()), "the user sees who it was: {devices}");
    // One that ends by itself.
    let until = server.homeserver().clock.now_ms() + 60_000;
    let (_, login) = admin.request("POST", &path("bob"), Some(json!({ "valid_until_ms": until })));
    let brief = TestUser::new(server.url(), bob.id(), login["access_token"].as_str().expect("a token"));
    assert_eq!(brief.request("GET", &format!("{V3}/account/whoami"), None).0, 200);
    server.advance(Duration::from_secs(61));
    refused(brief.request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN");
    let count = || bob.get(&format!("{V3}/devices"))["devices"].as_array().map(Vec::len);
    let before = count();
    assert_eq!(admin.request("POST", &path("bob"), Some(json!({}))).0, 200);
    assert_eq!(count(), before, "what is over has gone: a user may have so many devices only");

    refused(admin.request("POST", &path(admin.id()), Some(json!({}))), 400, "M_UNKNOWN");
    refused(admin.request("POST", &path("nobody"), Some(json!({}))), 404, "M_NOT_FOUND");
    refused(admin.request("POST", &path("@bob:elsewhere.example"), Some(json!({}))), 400, "M_UNKNOWN");
    for wrong in [json!("soon"), json!(1.5)] {
        let body = json!({ "valid_until_ms": wrong });
        refused(admin.request("POST", &path("bob"), Some(body)), 400, "M_BAD_JSON");
    }
    let before = json!({ "valid_until_ms": 0 });
    refused(admin.request("POST", &path("bob"), Some(before)), 400, "M_INVALID_PARAM");
    refused(bob.request("POST", &path(admin.id()), Some(json!({}))), 403, "M_FORBIDDEN");
    assert_eq!(admin.request("POST", &format!("{V1}/deactivate/bob"), Some(json!({}))).0, 200);
    refused(admin.request("POST", &path("bob"), Some(json!({}))), 403, "M_FORBIDDEN");
}

#[test]
fn a_session_in_the_name_of_a_user_has_no_power_over_the_server_keeps_its_name_and_ends_with_the_administrators()
 {
    let server = TestServer::start();
    let (admin, bob, carol) = (server.user("admin"), server.user("bob"), server.user("carol"));
    let promote = |user: &str, on: bool| {
        let path = format!("{V1}/users/{user}/admin");
        assert_eq!(admin.request("PUT", &path, Some(json!({ "admin": on }))).0, 200, "{user}");
    };
    promote("bob", true);
    promote("carol", true);
    let open = |by: &TestUser, user: &TestUser, until: Value| {
        let path = format!("{V1}/users/{}/login", segment(user.id()));
        let (status, login) = by.request("POST", &path, Some(json!({ "valid_until_ms": until })));
        assert_eq!(status, 200, "{login}");
        let opened = TestUser::new(server.url(), user.id(), login["access_token"].as_str().expect("a token"));
        assert_eq!(opened.request("GET", &format!("{V3}/account/whoami"), None).0, 200);
        opened
    };
    let is_over = |session: &TestUser| {
        refused(session.request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN")
    };
    // Until the end of all times.
    let as_carol = open(&bob, &carol, json!(i64::MAX));
    refused(as_carol.request("GET", &format!("{V2}/users"), None), 403, "M_FORBIDDEN");
    let again = json!({ "admin": true });
    refused(as_carol.request("PUT", &format!("{V1}/users/bob/admin"), Some(again)), 403, "M_FORBIDDEN");
    let device =
        as_carol.get(&format!("{V3}/account/whoami"))["device_id"].as_str().expect("a device").to_owned();
    let path = format!("{V3}/devices/{device}");
    let name = json!({ "display_name": "my phone" });
    refused(as_carol.request("PUT", &path, Some(name)), 403, "M_FORBIDDEN");
    assert!(carol.get(&path)["display_name"].to_string().contains(bob.id()));
    assert_eq!(carol.get(&format!("{V2}/users/carol"))["admin"], true, "her own sessions have it");

    promote("bob", false);
    is_over(&as_carol);
    promote("bob", true);
    let others = [open(&bob, &carol, Value::Null), open(&bob, &admin, Value::Null)];
    let unconcerned = open(&carol, &bob, Value::Null);
    let change = json!({ "admin": false, "displayname": "Bob" });
    assert_eq!(admin.request("PUT", &format!("{V2}/users/bob"), Some(change)).0, 200);
    others.iter().for_each(is_over);
    promote("bob", true);
    let as_carol = open(&bob, &carol, Value::Null);
    let reset = json!({ "new_password": "of another" });
    assert_eq!(admin.request("POST", &format!("{V1}/reset_password/carol"), Some(reset)).0, 200);
    is_over(&unconcerned);
    is_over(&as_carol);
    let as_admin = open(&bob, &admin, Value::Null);
    assert_eq!(bob.request("POST", &format!("{V3}/logout/all"), None).0, 200);
    is_over(&as_admin);
    let dave = server.user("dave");
    promote("dave", true);
    let as_admin = open(&dave, &admin, Value::Null);
    assert_eq!(admin.request("POST", &format!("{V1}/deactivate/dave"), Some(json!({}))).0, 200);
    is_over(&as_admin);
    assert_eq!(admin.request("GET", &format!("{V3}/account/whoami"), None).0, 200);
}

#[test]
fn what_a_user_keeps_here_an_event_and_the_ends_of_a_room_are_told_to_administrators_alone() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let room = bob.create_room();
    let event = bob.send(&room, "private");
    let put = |path: String, body: Value| bob.put(&format!("{V3}/user/{}/{path}", segment(bob.id())), body);
    put("account_data/org.example.colour".to_owned(), json!({ "colour": "blue" }));
    put(format!("rooms/{}/account_data/org.example.mood", segment(&room)), json!({ "mood": "good" }));
    let data = admin.get(&format!("{V1}/users/bob/accountdata"));
    assert_eq!(data["account_data"]["global"]["org.example.colour"], json!({ "colour": "blue" }), "{data}");
    assert_eq!(
        data["account_data"]["rooms"][&room],
        json!({ "org.example.mood": { "mood": "good" } }),
        "{data}"
    );
    refused(admin.request("GET", &format!("{V1}/users/nobody/accountdata"), None), 404, "M_NOT_FOUND");

    let fetched = admin.get(&format!("{V1}/fetch_event/{}", segment(&event)));
    assert_eq!(fetched["event"]["content"]["body"], "private", "{fetched}");
    refused(admin.request("GET", &format!("{V1}/fetch_event/$nothing"), None), 404, "M_NOT_FOUND");

    let ends = admin.get(&format!("{V1}/rooms/{}/forward_extremities", segment(&room)));
    assert_eq!((&ends["count"], &ends["results"][0]["event_id"]), (&json!(1), &json!(event)), "{ends}");
    assert!(ends["results"][0]["depth"].is_i64() && ends["results"][0]["state_group"].is_i64(), "{ends}");
    let nowhere = format!("{V1}/rooms/!nowhere:x.example/forward_extremities");
    refused(admin.request("GET", &nowhere, None), 404, "M_NOT_FOUND");
    for path in [
        format!("{V1}/users/bob/accountdata"),
        format!("{V1}/fetch_event/{}", segment(&event)),
        format!("{V1}/rooms/{}/forward_extremities", segment(&room)),
    ] {
        refused(bob.request("GET", &path, None), 403, "M_FORBIDDEN");
    }
    assert_eq!(bob.request("GET", &room_path(&room, "state"), None).0, 200);
}
