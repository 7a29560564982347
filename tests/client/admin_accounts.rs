//! Accounts and registration tokens by Synapse's admin API, as its tools use it, and who may use it.

use std::io::{Read, Write};
use std::net::TcpStream;

use doorstep::TestServer;
use doorstep::config::Registration;
use doorstep::internals::{Handler, ROUTES};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

use crate::common::browser::Browser;
use crate::common::client::V3;

const V1: &str = "/_synapse/admin/v1";
const V2: &str = "/_synapse/admin/v2";

fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

fn done(answer: (u16, Value)) -> Value {
    assert!((200..300).contains(&answer.0), "{answer:?}");
    answer.1
}

fn log_in(server: &TestServer, name: &str, password: &str) -> (u16, Value) {
    let who = json!({ "type": "m.id.user", "user": name });
    let body = json!({ "type": "m.login.password", "identifier": who, "password": password });
    TestUser::new(server.url(), "", "").request("POST", &format!("{V3}/login"), Some(body))
}

/// The names in a page of accounts, as far as the colon.
fn names(page: &Value) -> Vec<&str> {
    let users = page["users"].as_array().unwrap().iter();
    users.map(|user| user["name"].as_str().unwrap().split_once(':').unwrap().0).collect()
}

#[test]
fn nobody_but_administrators_gets_past_a_route_of_theirs() {
    let server = TestServer::start();
    let admin = server.user("admin");
    let bob = server.user("bob");
    let suspended = server.user("suspended");
    let path = format!("{V1}/suspend/{}", segment(suspended.id()));
    done(admin.request("PUT", &path, Some(json!({ "suspend": true }))));
    let nobody = TestUser::new(server.url(), "", "");
    let stranger = TestUser::new(server.url(), "", "made-up");
    let mut looked_at = 0;
    for route in ROUTES.iter().filter(|route| matches!(route.handler, Handler::Admin(_))) {
        let path: Vec<&str> = route
            .path
            .split('/')
            .map(|part| match part.trim_matches(['{', '}']) {
                "userId" => "@admin:x",
                "roomId" => "!r:x",
                same if part == same => part,
                _ => "x",
            })
            .collect();
        let (method, path) = (route.method.as_str(), path.join("/"));
        let ask = |user: &TestUser| user.request(method, &path, Some(json!({})));
        refused(ask(&nobody), 401, "M_MISSING_TOKEN");
        refused(ask(&stranger), 401, "M_UNKNOWN_TOKEN");
        refused(ask(&bob), 403, "M_FORBIDDEN");
        assert_eq!(ask(&suspended).0, 403, "{method} {path}");
        looked_at += 1;
    }
    assert!(looked_at > 25, "{looked_at}");
    assert!(done(admin.request("GET", &format!("{V2}/users"), None))["total"] == 3);
}

#[test]
fn accounts_are_listed_by_pages_sorted_and_picked_by_what_they_are() {
    let server = TestServer::start_with(|config| config.guests = true);
    let admin = server.user("admin");
    for name in ["carol", "bob", "dave"] {
        server.user(name);
    }
    let list = |query: &str| done(admin.request("GET", &format!("{V2}/users?{query}"), None));
    let all = list("");
    assert_eq!(names(&all), ["@admin", "@bob", "@carol", "@dave"]);
    assert_eq!((&all["total"], all.get("next_token")), (&json!(4), None));
    let first = &all["users"][0];
    assert_eq!(
        (&first["admin"], &first["is_guest"], &first["locked"]),
        (&json!(true), &json!(false), &json!(false))
    );
    assert!(first["creation_ts"].as_i64().unwrap() > 1_700_000_000_000, "milliseconds: {first}");

    let page = list("limit=3");
    assert_eq!((names(&page).len(), &page["next_token"], &page["total"]), (3, &json!("3"), &json!(4)));
    let rest = list("limit=3&from=3");
    assert_eq!((names(&rest), rest.get("next_token")), (vec!["@dave"], None));
    assert!(names(&list("from=99")).is_empty() && names(&list("limit=0")).is_empty());
    assert_eq!(names(&list("dir=b")), ["@dave", "@carol", "@bob", "@admin"]);

    let carol = format!("{V2}/users/{}", segment(&format!("@carol:{}", server.name())));
    let named = json!({ "displayname": "Lady \"C\" 100%_" });
    assert_eq!(done(admin.request("PUT", &carol, Some(named)))["displayname"], "Lady \"C\" 100%_");
    for (query, found) in [
        ("name=CAR", vec!["@carol"]),
        ("name=lady%20%22c", vec!["@carol"]),
        ("name=100%25_", vec!["@carol"]),
        ("name=%25", vec!["@carol"]),
        ("name=localhost", vec![]),
        ("user_id=localhost", vec!["@admin", "@bob", "@carol", "@dave"]),
        ("admins=true", vec!["@admin"]),
        ("admins=false&name=b", vec!["@bob"]),
        ("order_by=displayname&dir=b&limit=1", vec!["@carol"]),
    ] {
        assert_eq!(names(&list(query)), found, "{query}");
    }
    for order in [
        "name",
        "is_guest",
        "admin",
        "user_type",
        "deactivated",
        "shadow_banned",
        "displayname",
        "avatar_url",
        "creation_ts",
        "last_seen_ts",
        "locked",
    ] {
        assert_eq!(names(&list(&format!("order_by={order}"))).len(), 4, "{order}");
    }
    for wrong in ["from=-1", "limit=-1", "limit=x", "order_by=password", "dir=up", "admins=maybe"] {
        refused(admin.request("GET", &format!("{V2}/users?{wrong}"), None), 400, "M_INVALID_PARAM");
    }

    let path = format!("{V3}/register?kind=guest");
    done(TestUser::new(server.url(), "", "").request("POST", &path, Some(json!({}))));
    assert_eq!((list("")["total"].clone(), list("guests=false")["total"].clone()), (json!(5), json!(4)));
    done(admin.request("PUT", &carol, Some(json!({ "locked": true }))));
    done(admin.request("PUT", &format!("{V2}/users/bob"), Some(json!({ "deactivated": true }))));
    assert_eq!(names(&list("guests=false")), ["@admin", "@dave"]);
    assert_eq!(names(&list("guests=false&locked=true")), ["@admin", "@carol", "@dave"]);
    assert_eq!(names(&list("guests=false&deactivated=true")), ["@admin", "@bob", "@dave"]);
    let only = done(admin.request("GET", "/_synapse/admin/v3/users?deactivated=true", None));
    assert_eq!(names(&only), ["@bob"]);
}

#[test]
fn an_account_is_made_looked_at_and_changed() {
    let server = TestServer::start_with(|config| config.registration = Registration::Closed);
    let admin = server.user("admin");
    let path = format!("{V2}/users/{}", segment(&format!("@new:{}", server.name())));
    refused(admin.request("GET", &path, None), 404, "M_NOT_FOUND");
    for (body, errcode) in [
        (json!({ "admin": "yes" }), "M_BAD_JSON"),
        (json!({ "password": 7 }), "M_BAD_JSON"),
        (json!({ "password": "x".repeat(513) }), "M_WEAK_PASSWORD"),
        (json!({ "threepids": [{ "medium": "email", "address": "a@b.c" }] }), "M_INVALID_PARAM"),
        (json!({ "user_type": "bot" }), "M_INVALID_PARAM"),
    ] {
        refused(admin.request("PUT", &path, Some(body)), 400, errcode);
    }
    let whole = json!({ "password": "one", "displayname": "New", "avatar_url": "mxc://x/y", "admin": false, "threepids": [], "external_ids": [], "user_type": null });
    let (status, made) = admin.request("PUT", &path, Some(whole));
    assert_eq!(
        (status, &made["displayname"], &made["avatar_url"]),
        (201, &json!("New"), &json!("mxc://x/y"))
    );
    let (_, session) = log_in(&server, "new", "one");
    let new = TestUser::new(server.url(), "", session["access_token"].as_str().unwrap());
    assert_eq!(new.request("GET", &format!("{V3}/account/whoami"), None).0, 200);
    let (status, changed) =
        admin.request("PUT", &path, Some(json!({ "displayname": "Newer", "locked": true })));
    assert_eq!((status, &changed["displayname"], &changed["locked"]), (200, &json!("Newer"), &json!(true)));
    refused(new.request("GET", &format!("{V3}/account/whoami"), None), 401, "M_USER_LOCKED");
    let unlocked = done(admin.request("PUT", &path, Some(json!({ "locked": false, "avatar_url": null }))));
    assert_eq!(
        (&unlocked["locked"], &unlocked["avatar_url"], &unlocked["displayname"]),
        (&json!(false), &Value::Null, &json!("Newer"))
    );
    // A password of somebody else's choice, without and with the end of what was logged in.
    done(admin.request("PUT", &path, Some(json!({ "password": "two", "logout_devices": false }))));
    assert_eq!(new.request("GET", &format!("{V3}/account/whoami"), None).0, 200);
    let reset = format!("{V1}/reset_password/{}", segment(&format!("@new:{}", server.name())));
    done(admin.request("POST", &reset, Some(json!({ "new_password": "three" }))));
    refused(new.request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN");
    refused(log_in(&server, "new", "two"), 403, "M_FORBIDDEN");
    assert_eq!(log_in(&server, "new", "three").0, 200);
    refused(
        admin.request("POST", &format!("{V1}/reset_password/nobody"), Some(json!({ "new_password": "x" }))),
        404,
        "M_NOT_FOUND",
    );
    refused(admin.request("POST", &reset, Some(json!({}))), 400, "M_BAD_JSON");
    refused(admin.request("POST", &reset, Some(json!({ "new_password": "" }))), 400, "M_WEAK_PASSWORD");
    // Nothing of what is not here is touched.
    for path in [format!("{V2}/users/@a:elsewhere.example"), format!("{V1}/whois/@a:elsewhere.example")] {
        refused(admin.request("GET", &path, None), 400, "M_UNKNOWN");
    }
    let available =
        |name: &str| admin.request("GET", &format!("{V1}/username_available?username={name}"), None);
    assert_eq!(available("free"), (200, json!({ "available": true })));
    refused(available("new"), 400, "M_USER_IN_USE");
    refused(available("n%20ew"), 400, "M_INVALID_USERNAME");
}

#[test]
fn the_last_administrator_is_not_taken_away_by_accident() {
    let server = TestServer::start();
    let admin = server.user("admin");
    server.homeserver().accounts().register_user("bob", Some("bob")).unwrap();
    let users = |name: &str| format!("{V1}/users/{name}/admin");
    let set = |user: &TestUser, name: &str, to: bool| {
        user.request("PUT", &users(name), Some(json!({ "admin": to })))
    };
    assert_eq!(admin.request("GET", &users("bob"), None), (200, json!({ "admin": false })));
    refused(set(&admin, "admin", false), 400, "M_UNKNOWN");
    refused(
        admin.request("PUT", &format!("{V2}/users/admin"), Some(json!({ "admin": false }))),
        400,
        "M_UNKNOWN",
    );
    // By himself as a whole, too: nothing else of the change is done.
    refused(
        admin.request(
            "PUT",
            &format!("{V2}/users/admin"),
            Some(json!({ "admin": false, "displayname": "X" })),
        ),
        400,
        "M_UNKNOWN",
    );
    assert_eq!(done(admin.request("GET", &format!("{V2}/users/admin"), None))["displayname"], Value::Null);
    refused(admin.request("POST", &format!("{V1}/deactivate/admin"), Some(json!({}))), 403, "M_FORBIDDEN");
    refused(
        admin.request("PUT", &format!("{V2}/users/admin"), Some(json!({ "deactivated": true }))),
        403,
        "M_FORBIDDEN",
    );
    refused(
        admin.request("PUT", &format!("{V2}/users/admin"), Some(json!({ "locked": true }))),
        403,
        "M_FORBIDDEN",
    );
    refused(set(&admin, "nobody", true), 404, "M_NOT_FOUND");
    refused(admin.request("PUT", &users("bob"), Some(json!({}))), 400, "M_MISSING_PARAM");
    // Who is locked or suspended could not be helped as an administrator.
    for (path, on, off) in [
        (format!("{V1}/suspend/bob"), json!({ "suspend": true }), json!({ "suspend": false })),
        (format!("{V2}/users/bob"), json!({ "locked": true }), json!({ "locked": false })),
    ] {
        done(admin.request("PUT", &path, Some(on)));
        refused(set(&admin, "bob", true), 400, "M_UNKNOWN");
        done(admin.request("PUT", &path, Some(off)));
    }
    done(admin.request("PUT", &format!("{V2}/users/bob"), Some(json!({ "locked": true }))));
    let at_once = json!({ "locked": false, "admin": true });
    assert_eq!(done(admin.request("PUT", &format!("{V2}/users/bob"), Some(at_once)))["admin"], true);
    let at_once = json!({ "locked": true, "admin": false });
    assert_eq!(done(admin.request("PUT", &format!("{V2}/users/BOB"), Some(at_once)))["locked"], true);
    done(admin.request("PUT", &format!("{V2}/users/bob"), Some(json!({ "locked": false }))));
    // Where there are two, one may make the other none.
    done(set(&admin, "bob", true));
    let (_, session) = log_in(&server, "bob", "bob");
    let bob = TestUser::new(server.url(), "", session["access_token"].as_str().unwrap());
    done(set(&bob, "admin", false));
    refused(admin.request("GET", &format!("{V2}/users"), None), 403, "M_FORBIDDEN");
    done(set(&bob, "admin", true));
    done(bob.request("POST", &format!("{V1}/deactivate/admin"), Some(json!({ "erase": true }))));
    let gone = done(bob.request("GET", &format!("{V2}/users/admin"), None));
    assert_eq!((&gone["deactivated"], &gone["erased"]), (&json!(true), &json!(true)));
    refused(admin.request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN");
    refused(
        bob.request("PUT", &format!("{V2}/users/admin"), Some(json!({ "deactivated": false }))),
        400,
        "M_UNKNOWN",
    );
    refused(
        bob.request("PUT", &format!("{V2}/users/admin"), Some(json!({ "password": "again" }))),
        400,
        "M_UNKNOWN",
    );
    refused(set(&bob, "admin", true), 400, "M_UNKNOWN");
    refused(bob.request("POST", &format!("{V1}/deactivate/bob"), Some(json!({}))), 403, "M_FORBIDDEN");
}

#[test]
fn who_is_deactivated_by_the_operator_has_left_their_rooms() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let room = admin.create_room();
    bob.join(&room);
    let of_bob =
        |what: &str| done(admin.request("GET", &format!("{V1}/users/{}/{what}", segment(bob.id())), None));
    assert_eq!(of_bob("joined_rooms"), json!({ "joined_rooms": [&room], "total": 1 }));
    assert_eq!(of_bob("memberships"), json!({ "memberships": { (room.as_str()): "join" } }));
    assert_eq!(of_bob("pushers"), json!({ "pushers": [], "total": 0 }));
    let deactivate = format!("{V1}/deactivate/{}", segment(bob.id()));
    refused(admin.request("POST", &deactivate, Some(json!({ "erase": "yes" }))), 400, "M_BAD_JSON");
    assert_eq!(
        done(admin.request("POST", &deactivate, Some(json!({})))),
        json!({ "id_server_unbind_result": "success" })
    );
    assert_eq!(of_bob("joined_rooms"), json!({ "joined_rooms": [], "total": 0 }));
    let members = done(admin.request("GET", &format!("{V3}/rooms/{}/joined_members", segment(&room)), None));
    assert!(members["joined"].get(bob.id()).is_none(), "{members}");
    // Once more is no failure, and nobody else's name is.
    done(admin.request("POST", &deactivate, Some(json!({}))));
    refused(admin.request("POST", &format!("{V1}/deactivate/nobody"), Some(json!({}))), 404, "M_NOT_FOUND");
}

#[test]
fn an_administrator_sees_where_somebody_is_logged_in_and_ends_it() {
    let server = TestServer::start();
    let admin = server.user("admin");
    server.homeserver().accounts().register_user("bob", Some("bob")).unwrap();
    let tokens: Vec<TestUser> = (0..3)
        .map(|_| {
            TestUser::new(server.url(), "", log_in(&server, "bob", "bob").1["access_token"].as_str().unwrap())
        })
        .collect();
    let devices = || done(admin.request("GET", &format!("{V2}/users/bob/devices"), None));
    let listed = devices();
    assert_eq!((&listed["total"], listed["devices"].as_array().unwrap().len()), (&json!(4), 4));
    let own = |user: &TestUser| {
        done(user.request("GET", &format!("{V3}/account/whoami"), None))["device_id"]
            .as_str()
            .unwrap()
            .to_owned()
    };
    let ids: Vec<String> = tokens.iter().map(own).collect();
    let one = |id: &str| format!("{V2}/users/bob/devices/{}", segment(id));
    done(admin.request("PUT", &one(&ids[0]), Some(json!({ "display_name": "lost phone" }))));
    let device = done(admin.request("GET", &one(&ids[0]), None));
    assert_eq!(
        (&device["display_name"], &device["last_seen_ip"]),
        (&json!("lost phone"), &json!("127.0.0.1"))
    );
    done(admin.request("DELETE", &one(&ids[0]), None));
    refused(tokens[0].request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN");
    refused(admin.request("GET", &one(&ids[0]), None), 404, "M_NOT_FOUND");
    done(admin.request(
        "POST",
        &format!("{V2}/users/bob/delete_devices"),
        Some(json!({ "devices": [&ids[1], "none"] })),
    ));
    assert_eq!(devices()["total"], 2);
    let whois = done(admin.request("GET", &format!("{V1}/whois/bob"), None));
    assert_eq!(whois["devices"][""]["sessions"][0]["connections"][0]["ip"], "127.0.0.1", "{whois}");
    done(admin.request("POST", "/_doorstep/admin/v1/users/bob/logout", Some(json!({}))));
    assert_eq!(devices()["total"], 0);
    refused(tokens[2].request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN");
    for path in ["devices", "devices/x"] {
        refused(admin.request("GET", &format!("{V2}/users/nobody/{path}"), None), 404, "M_NOT_FOUND");
    }
}

fn register_with(server: &TestServer, name: &str, token: &str) -> (u16, Value) {
    let anybody = TestUser::new(server.url(), "", "");
    let auth = json!({ "type": "m.login.registration_token", "token": token });
    let body = json!({ "username": name, "password": "pw", "auth": auth });
    let (_, ask) = anybody.request("POST", &format!("{V3}/register"), Some(json!({})));
    let mut body = body;
    body["auth"]["session"] = ask["session"].clone();
    anybody.request("POST", &format!("{V3}/register"), Some(body))
}

#[test]
fn a_registration_token_is_told_once_and_good_for_what_it_was_made_for() {
    let server = TestServer::start_with(|config| config.registration = Registration::Token);
    let admin = server.user("admin");
    let tokens = format!("{V1}/registration_tokens");
    assert_eq!(done(admin.request("GET", &tokens, None)), json!({ "registration_tokens": [] }));
    let new = |body: Value| admin.request("POST", &format!("{tokens}/new"), Some(body));
    let made = done(new(json!({ "uses_allowed": 1 })));
    let (token, name) = (made["token"].as_str().unwrap(), made["name"].as_str().unwrap());
    assert_eq!(token.len(), 16);
    let listed = done(admin.request("GET", &tokens, None));
    assert!(!listed.to_string().contains(token), "{listed}");
    assert_eq!(listed["registration_tokens"][0]["token"], name);
    assert_eq!(register_with(&server, "one", token).0, 200);
    refused(register_with(&server, "two", token), 401, "M_UNAUTHORIZED");
    // By the token and by its name it is the same.
    for named in [token, name] {
        let found = done(admin.request("GET", &format!("{tokens}/{named}"), None));
        assert_eq!(
            (&found["completed"], &found["uses_allowed"], &found["pending"]),
            (&json!(1), &json!(1), &json!(0))
        );
    }
    let valid = |valid: bool| {
        done(admin.request("GET", &format!("{tokens}?valid={valid}"), None))["registration_tokens"]
            .as_array()
            .unwrap()
            .len()
    };
    assert_eq!((valid(true), valid(false)), (0, 1));
    let changed =
        done(admin.request("PUT", &format!("{tokens}/{name}"), Some(json!({ "uses_allowed": null }))));
    assert_eq!((&changed["uses_allowed"], &changed["completed"]), (&Value::Null, &json!(1)));
    assert_eq!(register_with(&server, "two", token).0, 200);
    assert_eq!((valid(true), valid(false)), (1, 0));

    // One that somebody chose, with an end.
    let now = made["expiry_time"].as_i64().unwrap_or(server.homeserver().clock.now_ms());
    let chosen = done(new(json!({ "token": "for-my_friends.~", "expiry_time": now + 60_000 })));
    assert_eq!((&chosen["token"], &chosen["uses_allowed"]), (&json!("for-my_friends.~"), &Value::Null));
    refused(new(json!({ "token": "for-my_friends.~" })), 400, "M_INVALID_PARAM");
    server.advance(std::time::Duration::from_secs(61));
    refused(register_with(&server, "late", "for-my_friends.~"), 401, "M_UNAUTHORIZED");
    for body in [
        json!({ "token": "" }),
        json!({ "token": "a b" }),
        json!({ "token": "ü" }),
        json!({ "token": "x".repeat(65) }),
        json!({ "token": "sha256-0123456789ab" }),
        json!({ "token": 7 }),
        json!({ "length": 0 }),
        json!({ "length": 65 }),
        json!({ "length": "long" }),
        json!({ "uses_allowed": -1 }),
        json!({ "uses_allowed": 1.5 }),
        json!({ "expiry_time": 1 }),
        json!({ "expiry_time": "soon" }),
    ] {
        refused(new(body), 400, "M_INVALID_PARAM");
    }
    done(admin.request("DELETE", &format!("{tokens}/{token}"), None));
    refused(register_with(&server, "three", token), 401, "M_UNAUTHORIZED");
    for (method, body) in [("GET", None), ("DELETE", None), ("PUT", Some(json!({})))] {
        refused(admin.request(method, &format!("{tokens}/{name}"), body), 404, "M_NOT_FOUND");
    }
}

#[test]
fn who_guesses_registration_tokens_or_passwords_is_slowed_down() {
    let server = TestServer::start_with(|config| {
        config.registration = Registration::Token;
        config.rate_limits = true;
    });
    server.homeserver().accounts().register_user("alice", Some("secret")).unwrap();
    let anybody = TestUser::new(server.url(), "", "");
    let limited = |ask: &dyn Fn(usize) -> (u16, Value)| (0..40).filter(|n| ask(*n).0 == 429).count();
    let guess = |n: usize| {
        let path = format!("{V3}/register").replace("v3", "v1") + "/m.login.registration_token/validity";
        anybody.request("GET", &format!("{path}?token=guess{n}"), None)
    };
    assert!(limited(&guess) >= 25, "few tokens are looked at");
    assert!(limited(&|n| register_with(&server, &format!("n{n}"), "guess")) >= 25, "and few are tried");
    assert!(limited(&|n| log_in(&server, "alice", &format!("guess{n}"))) >= 25, "nor passwords");
    // A made-up token for the routes of administrators costs nobody else anything.
    let stranger = TestUser::new(server.url(), "", "made-up");
    for _ in 0..20 {
        refused(stranger.request("GET", &format!("{V2}/users"), None), 401, "M_UNKNOWN_TOKEN");
    }
}

#[test]
fn whoever_asks_is_told_that_the_server_is_there() {
    let server = TestServer::start();
    let anybody = TestUser::new(server.url(), "", "");
    let (status, answer) = anybody.request("GET", &format!("{V1}/server_version"), None);
    assert!(status == 200 && answer["server_version"].as_str().unwrap().starts_with("Doorstep "), "{answer}");
    assert_eq!(anybody.request("GET", "/health", None).0, 200);
}

fn account(server: &TestServer, name: &str, password: &str) -> TestUser {
    server.homeserver().accounts().register_user(name, Some(password)).unwrap();
    let (status, session) = log_in(server, name, password);
    assert_eq!(status, 200, "{session}");
    TestUser::new(
        server.url(),
        session["user_id"].as_str().unwrap(),
        session["access_token"].as_str().unwrap(),
    )
}

#[test]
fn what_was_proved_with_a_password_is_proved_no_more_once_the_account_has_another_or_is_locked() {
    let server = TestServer::start();
    let admin = server.user("admin");
    let bob = account(&server, "bob", "old");
    let nobody = TestUser::new(server.url(), "", "");
    // Somebody who knows the old password proves it, for things that they do not do yet.
    let (change, close) = (format!("{V3}/account/password"), format!("{V3}/account/deactivate"));
    let proved = |path: &str, password: &str| {
        let (_, asked) = nobody.request("POST", path, Some(json!({})));
        let session = asked["session"].as_str().unwrap().to_owned();
        let who = json!({ "type": "m.id.user", "user": "bob" });
        let auth = json!({ "type": "m.login.password", "session": session, "identifier": who, "password": password });
        // What is wanted is not there yet, or cannot be.
        let body = json!({ "auth": auth, "new_password": "x".repeat(600), "erase": "soon" });
        let (status, told) = nobody.request("POST", path, Some(body));
        assert_eq!(status, 400, "{told}");
        session
    };
    let go_on = |path: &str, session: &str| {
        let body = json!({ "auth": { "session": session }, "new_password": "theirs", "erase": true });
        nobody.request("POST", path, Some(body))
    };
    let reset = |password: &str| {
        let body = json!({ "new_password": password, "logout_devices": true });
        done(admin.request("POST", &format!("{V1}/reset_password/bob"), Some(body)));
    };
    let standing = |body: Value| done(admin.request("PUT", &format!("{V2}/users/bob"), Some(body)));
    let sessions = [proved(&change, "old"), proved(&change, "old")];
    reset("new");
    refused(bob.request("GET", &format!("{V3}/account/whoami"), None), 401, "M_UNKNOWN_TOKEN");
    let (status, asked) = go_on(&change, &sessions[0]);
    assert_eq!((status, &asked["completed"]), (401, &Value::Null), "{asked}");
    assert_eq!(log_in(&server, "bob", "theirs").0, 403);
    assert_eq!(log_in(&server, "bob", "new").0, 200);
    // Nor is it while the account is locked, and a proof of today's password is good.
    let session = proved(&change, "new");
    standing(json!({ "locked": true }));
    assert_eq!(go_on(&change, &session).0, 401);
    standing(json!({ "locked": false }));
    let session = proved(&change, "new");
    assert_eq!(go_on(&change, &session).0, 200);
    assert_eq!(log_in(&server, "bob", "theirs").0, 200);
    // Who closes an account for others does it with today's password too.
    let session = {
        let (_, asked) = nobody.request("POST", &close, Some(json!({})));
        let session = asked["session"].as_str().unwrap().to_owned();
        let who = json!({ "type": "m.id.user", "user": "bob" });
        let auth = json!({ "type": "m.login.password", "session": session, "identifier": who, "password": "theirs" });
        let (status, told) = nobody.request("POST", &close, Some(json!({ "auth": auth, "erase": "soon" })));
        assert_eq!(status, 400, "{told}");
        session
    };
    reset("last");
    assert_eq!(go_on(&close, &session).0, 401);
    assert_eq!(log_in(&server, "bob", "last").0, 200);
}

/// A request whose head is sent now and let in, and whose body is sent later.
fn begin_request(server: &TestServer, head: &str, body: &str) -> TcpStream {
    let address = server.url().strip_prefix("http://").unwrap();
    let mut connection = TcpStream::connect(address).unwrap();
    let head = format!(
        "{head}\r\nHost: {address}\r\nConnection: close\r\nExpect: 100-continue\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    connection.write_all(head.as_bytes()).unwrap();
    let mut told = [0; 25];
    connection.read_exact(&mut told).unwrap();
    assert_eq!(&told, b"HTTP/1.1 100 Continue\r\n\r\n");
    connection
}

fn end_request(mut connection: TcpStream, body: &str) -> (u16, String) {
    connection.write_all(body.as_bytes()).unwrap();
    let mut answer = String::new();
    connection.read_to_string(&mut answer).unwrap();
    (answer.split(' ').nth(1).unwrap().parse().unwrap(), answer)
}

#[test]
fn who_sends_a_body_late_is_asked_for_their_rights_when_it_is_there() {
    let server = TestServer::start();
    let admin = server.user("admin");
    let eve = account(&server, "eve", "eve");
    let set = |to: bool| {
        done(admin.request("PUT", &format!("{V1}/users/eve/admin"), Some(json!({ "admin": to }))));
    };
    let head = |method: &str, path: &str| {
        format!("{method} {path} HTTP/1.1\r\nAuthorization: Bearer {}", eve.token())
    };
    // An administrator who is one no more when the last byte comes.
    set(true);
    let body = json!({ "admin": true }).to_string();
    let begun = begin_request(&server, &head("PUT", &format!("{V1}/users/eve/admin")), &body);
    let password = json!({ "password": "mine", "admin": true }).to_string();
    let made = begin_request(&server, &head("PUT", &format!("{V2}/users/another")), &password);
    let mut browser = Browser::logged_in(server.url(), "eve", "eve");
    let form = browser.get("/page/accounts").field("form").unwrap().to_owned();
    let cookies: Vec<String> =
        browser.cookies.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let fields = format!("form={}&user=third&new=third&admin=yes", segment(&form));
    let page = begin_request(
        &server,
        &format!(
            "POST /page/accounts HTTP/1.1\r\nCookie: {}\r\nSec-Fetch-Site: same-origin\r\n\
             Content-Type: application/x-www-form-urlencoded",
            cookies.join("; ")
        ),
        &fields,
    );
    set(false);
    let (status, answer) = end_request(begun, &body);
    assert!(status == 403 && answer.contains("M_FORBIDDEN"), "{answer}");
    assert_eq!(end_request(made, &password).0, 403);
    let (status, answer) = end_request(page, &fields);
    assert!(status == 403 && answer.contains("Only administrators"), "{answer}");
    assert_eq!(admin.get(&format!("{V1}/users/eve/admin"))["admin"], false);
    assert_eq!(names(&admin.get(&format!("{V2}/users"))), ["@admin", "@eve"]);
    // A user who was logged out meanwhile, and one whose account was locked.
    let room = eve.create_room();
    let send = format!("{V3}/rooms/{}/send/m.room.message/", segment(&room));
    let message = json!({ "msgtype": "m.text", "body": "late" }).to_string();
    let locked = begin_request(&server, &head("PUT", &format!("{send}1")), &message);
    let out = begin_request(&server, &head("PUT", &format!("{send}2")), &message);
    let lock =
        |to: bool| done(admin.request("PUT", &format!("{V2}/users/eve"), Some(json!({ "locked": to }))));
    lock(true);
    let (status, answer) = end_request(locked, &message);
    assert!(status == 401 && answer.contains("M_USER_LOCKED"), "{answer}");
    lock(false);
    done(admin.request("POST", &format!("{V1}/deactivate/eve"), Some(json!({}))));
    let (status, answer) = end_request(out, &message);
    assert!(status == 401 && answer.contains("M_UNKNOWN_TOKEN"), "{answer}");
}

#[test]
fn of_a_change_that_cannot_be_made_as_a_whole_nothing_is_made() {
    let server = TestServer::start();
    let admin = server.user("admin");
    account(&server, "bob", "bob");
    server.homeserver().accounts().register_user("suspended", Some("x")).unwrap();
    done(admin.request("PUT", &format!("{V1}/suspend/suspended"), Some(json!({ "suspend": true }))));
    let guest = TestUser::new(server.url(), "", "")
        .request("POST", &format!("{V3}/register?kind=guest"), Some(json!({})))
        .1;
    let guest = guest["user_id"].as_str().unwrap_or_default().to_owned();
    let mut changes = vec![
        ("bob", json!({ "admin": true, "password": "x".repeat(513) }), 400, "M_WEAK_PASSWORD"),
        ("bob", json!({ "admin": true, "locked": true }), 400, "M_UNKNOWN"),
        ("bob", json!({ "avatar_url": "x".repeat(1001) }), 400, "M_INVALID_PARAM"),
        ("bob", json!({ "deactivated": true, "locked": true }), 400, "M_UNKNOWN"),
        ("suspended", json!({ "password": "new", "admin": true }), 400, "M_UNKNOWN"),
        ("admin", json!({ "password": "new", "locked": true }), 403, "M_FORBIDDEN"),
        ("admin", json!({ "password": "new", "deactivated": true }), 403, "M_FORBIDDEN"),
    ];
    if !guest.is_empty() {
        changes.push((&guest, json!({ "password": "new" }), 400, "M_UNKNOWN"));
    }
    for (user, mut change, status, errcode) in changes {
        let path = format!("{V2}/users/{}", segment(user));
        let before = admin.get(&path);
        change["displayname"] = json!("half");
        refused(admin.request("PUT", &path, Some(change)), status, errcode);
        let mut after = admin.get(&path);
        after["last_seen_ts"] = before["last_seen_ts"].clone();
        assert_eq!(after, before);
    }
    assert_eq!(log_in(&server, "suspended", "x").0, 200);
    // Nor is an account made with a part of it, and its name is the same in every case.
    let path = format!("{V2}/users/{}", segment(&format!("@New:{}", server.name())));
    let wrong = json!({ "password": "x", "avatar_url": "x".repeat(1001) });
    refused(admin.request("PUT", &path, Some(wrong)), 400, "M_INVALID_PARAM");
    refused(admin.request("GET", &path, None), 404, "M_NOT_FOUND");
    let whole = json!({ "password": "x", "avatar_url": "mxc://x/y" });
    let (status, made) = admin.request("PUT", &path, Some(whole.clone()));
    assert_eq!((status, &made["avatar_url"]), (201, &json!("mxc://x/y")), "{made}");
    assert_eq!(made["name"], format!("@new:{}", server.name()));
    assert_eq!(admin.request("PUT", &path, Some(whole)).0, 200);
}

#[test]
fn an_account_is_made_locked_or_closed_if_it_is_to_be_so_or_not_at_all() {
    let server = TestServer::start();
    let admin = server.user("admin");
    let put = |name: &str, body: Value| admin.request("PUT", &format!("{V2}/users/{name}"), Some(body));
    let (status, made) = put("locked", json!({ "password": "x", "locked": true, "deactivated": false }));
    assert_eq!((status, &made["locked"], &made["deactivated"]), (201, &json!(true), &json!(false)), "{made}");
    refused(log_in(&server, "locked", "x"), 401, "M_USER_LOCKED");
    done(put("locked", json!({ "locked": false })));
    assert_eq!(log_in(&server, "locked", "x").0, 200);
    // A name that nobody is to have.
    let (status, made) = put("closed", json!({ "password": "x", "locked": false, "deactivated": true }));
    assert_eq!((status, &made["locked"], &made["deactivated"]), (201, &json!(false), &json!(true)), "{made}");
    refused(log_in(&server, "closed", "x"), 403, "M_FORBIDDEN");
    let taken = format!("{V1}/username_available?username=closed");
    refused(admin.request("GET", &taken, None), 400, "M_USER_IN_USE");
    for (body, status, errcode) in [
        (json!({ "locked": true, "deactivated": true }), 400, "M_UNKNOWN"),
        (json!({ "locked": true, "admin": true }), 403, "M_FORBIDDEN"),
        (json!({ "locked": "yes" }), 400, "M_BAD_JSON"),
        (json!({ "deactivated": 1 }), 400, "M_BAD_JSON"),
    ] {
        refused(put("never", body), status, errcode);
        refused(admin.request("GET", &format!("{V2}/users/never"), None), 404, "M_NOT_FOUND");
    }
}
