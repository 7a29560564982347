//! What users tell administrators of, what administrators do to accounts, and who may see what of whom.

use crate::common::client::{V3, knock, room_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const ADMIN: &str = "/_matrix/client/v1/admin";

fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

fn set(admin: &TestUser, what: &str, user: &str, to: bool) -> (u16, Value) {
    let field = if what == "lock" { "locked" } else { "suspended" };
    admin.request("PUT", &format!("{ADMIN}/{what}/{}", segment(user)), Some(json!({ (field): to })))
}

fn login(server: &TestServer, name: &str) -> (u16, Value) {
    let body = json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": name}, "password": "secret", "refresh_token": true});
    TestUser::new(server.url(), "", "").request("POST", &format!("{V3}/login"), Some(body))
}

/// An account with a password, and a device of it that can refresh its token.
fn with_password(server: &TestServer, name: &str) -> (TestUser, Value) {
    server.homeserver().accounts().register_user(name, Some("secret")).expect("an account");
    let (status, tokens) = login(server, name);
    assert_eq!(status, 200, "{tokens}");
    let id = format!("@{name}:{}", server.name());
    (TestUser::new(server.url(), &id, tokens["access_token"].as_str().unwrap()), tokens)
}

#[test]
fn who_is_locked_can_log_out_and_nothing_else_and_is_back_when_the_lock_is_lifted() {
    let server = TestServer::start();
    let admin = server.user("admin");
    let (bob, tokens) = with_password(&server, "bob");
    let room = bob.create_room();
    assert_eq!(set(&admin, "lock", bob.id(), true), (200, json!({"locked": true})));
    let lock_of = |user: &str| admin.request("GET", &format!("{ADMIN}/lock/{}", segment(user)), None);
    assert_eq!(lock_of(bob.id()), (200, json!({"locked": true})));

    let anonymous = TestUser::new(server.url(), "", "");
    let refresh = || {
        anonymous.request(
            "POST",
            &format!("{V3}/refresh"),
            Some(json!({"refresh_token": tokens["refresh_token"]})),
        )
    };
    let deactivate = json!({"auth": {"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "bob"}, "password": "secret"}});
    for answer in [
        bob.request("GET", &format!("{V3}/sync"), None),
        bob.request("GET", &format!("{V3}/account/whoami"), None),
        bob.request("GET", &format!("{V3}/capabilities"), None),
        bob.request("GET", &format!("{V3}/profile/{}", segment(bob.id())), None),
        bob.request("PUT", &room_path(&room, "send/m.room.message/1"), Some(json!({"body": "x"}))),
        bob.request("POST", &room_path(&room, "leave"), Some(json!({}))),
        bob.request("POST", &format!("{V3}/account/deactivate"), Some(deactivate.clone())),
        anonymous.request("POST", &format!("{V3}/account/deactivate"), Some(deactivate)),
        refresh(),
        login(&server, "bob"),
    ] {
        assert_eq!(answer.1["soft_logout"], true, "{answer:?}");
        refused(answer, 401, "M_USER_LOCKED");
    }
    let wrong = json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": "bob"}, "password": "wrong"});
    refused(anonymous.request("POST", &format!("{V3}/login"), Some(wrong)), 403, "M_FORBIDDEN");

    assert_eq!(set(&admin, "lock", bob.id(), false), (200, json!({"locked": false})));
    bob.get(&format!("{V3}/account/whoami"));
    assert_eq!(refresh().0, 200);
    let (second, _) = login(&server, "bob");
    assert_eq!(second, 200);
    assert_eq!(set(&admin, "lock", bob.id(), true).0, 200);
    assert_eq!(bob.request("POST", &format!("{V3}/logout/all"), Some(json!({}))).0, 200);
    refused(bob.request("GET", &format!("{V3}/sync"), None), 401, "M_UNKNOWN_TOKEN");
}

#[test]
fn a_sync_that_waits_tells_a_locked_user_nothing() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let room = bob.create_room_with(json!({"preset": "public_chat"}));
    admin.join(&room);
    let since = bob.initial_sync()["next_batch"].as_str().unwrap().to_owned();
    let answer = std::thread::scope(|scope| {
        let waits =
            scope.spawn(|| bob.request("GET", &format!("{V3}/sync?since={since}&timeout=20000"), None));
        assert_eq!(set(&admin, "lock", bob.id(), true).0, 200);
        admin.send(&room, "not for bob");
        waits.join().unwrap()
    });
    refused(answer, 401, "M_USER_LOCKED");
}

#[test]
fn who_is_suspended_reads_and_leaves_and_takes_back_but_does_not_speak() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let room = admin.create_room_with(json!({"preset": "public_chat", "room_version": "11"}));
    let door = admin.create_room_with(json!({"preset": "public_chat", "initial_state": [
        {"type": "m.room.join_rules", "content": {"join_rule": "knock"}}]}));
    bob.join(&room);
    let (own, other) = (bob.send(&room, "mine"), admin.send(&room, "not mine"));
    let mut levels = admin.state(&room, "m.room.power_levels", "").unwrap();
    levels["users"][bob.id()] = json!(100);
    admin.set_state(&room, "m.room.power_levels", "", levels);
    assert_eq!(set(&admin, "suspend", bob.id(), true), (200, json!({"suspended": true})));

    let profile = |field: &str| format!("{V3}/profile/{}/{field}", segment(bob.id()));
    let send = |kind: &str| room_path(&room, &format!("send/{kind}/{}", kind.len()));
    let me = segment(bob.id());
    let status = format!("{V3}/presence/{me}/status");
    for answer in [
        bob.request("PUT", &send("m.room.message"), Some(json!({"msgtype": "m.text", "body": "x"}))),
        bob.request("PUT", &send("m.reaction"), Some(json!({}))),
        bob.request("PUT", &send("m.room.redaction"), Some(json!({"redacts": other}))),
        bob.request("PUT", &send("m.room.redaction"), Some(json!({}))),
        bob.request("PUT", &room_path(&room, &format!("redact/{}/t", segment(&other))), Some(json!({}))),
        bob.request("PUT", &room_path(&room, "state/m.room.topic/"), Some(json!({"topic": "x"}))),
        bob.request(
            "PUT",
            &room_path(&room, &format!("state/m.room.member/{me}")),
            Some(json!({"membership": "join", "displayname": "x"})),
        ),
        bob.request(
            "PUT",
            &room_path(&room, &format!("state/m.room.member/{}", segment(admin.id()))),
            Some(json!({"membership": "leave"})),
        ),
        bob.request("POST", &room_path(&room, "invite"), Some(json!({"user_id": "@carol:x.example"}))),
        bob.request("POST", &room_path(&room, "kick"), Some(json!({"user_id": admin.id()}))),
        bob.request("POST", &room_path(&room, "ban"), Some(json!({"user_id": admin.id()}))),
        bob.request("POST", &room_path(&room, "upgrade"), Some(json!({"new_version": "12"}))),
        bob.request("POST", &format!("{V3}/createRoom"), Some(json!({}))),
        bob.request("POST", &format!("{V3}/join/{}", segment(&room)), Some(json!({}))),
        bob.request("POST", &room_path(&room, "join"), Some(json!({}))),
        knock(&bob, &door, server.name()),
        bob.request("PUT", &profile("displayname"), Some(json!({"displayname": "x"}))),
        bob.request("PUT", &profile("avatar_url"), Some(json!({"avatar_url": "mxc://x/y"}))),
        bob.request("DELETE", &profile("m.tz"), None),
        bob.request(
            "PUT",
            &room_path(&room, &format!("typing/{me}")),
            Some(json!({"typing": true, "timeout": 1000})),
        ),
        bob.request("PUT", &status, Some(json!({"presence": "online", "status_msg": "spoken after all"}))),
    ] {
        refused(answer, 403, "M_USER_SUSPENDED");
    }
    bob.initial_sync();
    bob.put(&status, json!({"presence": "unavailable"}));
    bob.get(&room_path(&room, "messages?dir=b"));
    bob.put(&room_path(&room, &format!("redact/{}/own", segment(&own))), json!({}));
    bob.put(&format!("{V3}/user/{me}/account_data/org.example"), json!({}));
    bob.post(&room_path(&room, "report"), json!({"reason": ""}));
    bob.post(&room_path(&room, "leave"), json!({}));
    // What comes in for them comes in, but they cannot take an invite.
    admin.invite(&room, bob.id());
    refused(bob.request("POST", &room_path(&room, "join"), Some(json!({}))), 403, "M_USER_SUSPENDED");
    bob.leave(&room);
    assert_eq!(set(&admin, "suspend", bob.id(), false), (200, json!({"suspended": false})));
    bob.join(&room);
    bob.send(&room, "back");
}

#[test]
fn only_administrators_lock_and_suspend_and_not_one_another() {
    let server = TestServer::start();
    let (admin, bob, carol) = (server.user("admin"), server.user("bob"), server.user("carol"));
    let here = server.name();
    server.homeserver().deactivate(&doorstep::protocol::UserId::parse(carol.id()).unwrap(), false).unwrap();
    for what in ["lock", "suspend"] {
        let path = |user: &str| format!("{ADMIN}/{what}/{}", segment(user));
        // Who may not is told so whoever they ask about.
        for user in [bob.id(), "@nobody:x.example", "nonsense"] {
            refused(bob.request("GET", &path(user), None), 403, "M_FORBIDDEN");
            refused(set(&bob, what, user, true), 403, "M_FORBIDDEN");
        }
        for (user, status, errcode) in [
            ("@bob:elsewhere.example", 400, "M_INVALID_PARAM"),
            ("nonsense", 400, "M_INVALID_PARAM"),
            (carol.id(), 404, "M_NOT_FOUND"),
            (&format!("@nobody:{here}"), 404, "M_NOT_FOUND"),
            (admin.id(), 403, "M_FORBIDDEN"),
        ] {
            refused(admin.request("GET", &path(user), None), status, errcode);
            refused(set(&admin, what, user, true), status, errcode);
        }
        for body in [json!({}), json!({"locked": 1, "suspended": "true"}), json!([])] {
            let (status, answer) = admin.request("PUT", &path(bob.id()), Some(body.clone()));
            assert_eq!(status, 400, "{body}: {answer}");
        }
    }
    let capabilities = |user: &TestUser| user.get(&format!("{V3}/capabilities"))["capabilities"].clone();
    assert_eq!(capabilities(&admin)["m.account_moderation"], json!({"suspend": true, "lock": true}));
    assert!(capabilities(&bob).get("m.account_moderation").is_none());
}

#[test]
fn whois_tells_a_user_and_the_administrators_where_each_device_was_seen() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let whois =
        |asker: &TestUser, of: &str| asker.request("GET", &format!("{V3}/admin/whois/{}", segment(of)), None);
    bob.initial_sync();
    let device = bob.get(&format!("{V3}/account/whoami"))["device_id"].as_str().unwrap().to_owned();
    for asker in [&admin, &bob] {
        let (status, answer) = whois(asker, bob.id());
        assert_eq!((status, &answer["user_id"]), (200, &json!(bob.id())));
        let connection = &answer["devices"][&device]["sessions"][0]["connections"][0];
        assert_eq!(connection["ip"], "127.0.0.1", "{answer}");
        assert!(connection["last_seen"].as_i64().is_some_and(|ms| ms > 0), "{answer}");
    }
    refused(whois(&bob, admin.id()), 403, "M_FORBIDDEN");
    refused(whois(&bob, "@nobody:x.example"), 403, "M_FORBIDDEN");
    refused(whois(&admin, "@nobody:x.example"), 404, "M_NOT_FOUND");
}

#[test]
fn reports_are_taken_of_what_the_user_may_report_and_tell_nobody_what_there_is() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (room, other) = (alice.create_room_with(json!({"preset": "public_chat"})), alice.create_room());
    let (event, hidden) = (alice.send(&room, "rude"), alice.send(&other, "hidden"));
    let event_path = |room: &str, event: &str| room_path(room, &format!("report/{}", segment(event)));
    let try_report = |path: String, body: Value| bob.request("POST", &path, Some(body));
    let user_path = |user: &str| format!("{V3}/users/{}/report", segment(user));
    // "Servers MUST verify that the reporting user is currently joined to the room the event is in."
    refused(try_report(event_path(&room, &event), json!({"reason": "x"})), 404, "M_NOT_FOUND");
    bob.join(&room);
    for (path, body) in [
        (event_path(&room, &event), json!({"reason": "rude\nline", "score": -100})),
        (event_path(&room, &event), json!({})),
        (room_path(&room, "report"), json!({"reason": ""})),
        (room_path(&other, "report"), json!({"reason": "not joined"})),
        (room_path("!nowhere:x.example", "report"), json!({"reason": "unknown"})),
        (user_path(alice.id()), json!({"reason": "x".repeat(2000)})),
        (user_path("@nobody:x.example"), json!({"reason": "unknown"})),
    ] {
        assert_eq!(try_report(path.clone(), body), (200, json!({})), "{path}");
    }
    for (room, event) in [(&room, &hidden), (&other, &hidden), (&room, &"$nothing".to_owned())] {
        refused(try_report(event_path(room, event), json!({})), 404, "M_NOT_FOUND");
    }
    refused(
        try_report(room_path(&room, "report"), json!({"reason": "x".repeat(2001)})),
        400,
        "M_INVALID_PARAM",
    );
    refused(
        try_report(room_path(&room, "report"), json!({"reason": "x".repeat(1 << 20)})),
        413,
        "M_TOO_LARGE",
    );
    for body in [json!({}), json!({"reason": 7}), json!({"reason": null})] {
        refused(try_report(room_path(&room, "report"), body.clone()), 400, "M_BAD_JSON");
        refused(try_report(user_path(alice.id()), body), 400, "M_BAD_JSON");
    }
    refused(try_report(event_path(&room, &event), json!({"reason": [1]})), 400, "M_BAD_JSON");
    refused(try_report(user_path("alice"), json!({"reason": ""})), 400, "M_INVALID_PARAM");
}

#[test]
fn the_turn_servers_get_a_name_and_a_password_that_they_can_check_by_the_secret() {
    let none = TestServer::start();
    assert_eq!(none.user("alice").get(&format!("{V3}/voip/turnServer")), json!({}));
    let uris = vec!["turn:turn.example.org?transport=udp".to_owned(), "turns:turn.example.org".to_owned()];
    let server = TestServer::start_with(|config| {
        config.turn_uris = uris.clone();
        config.turn_secret = Some("north".to_owned());
        config.turn_ttl_s = 600;
    });
    let alice = server.user("alice");
    let answer = alice.get(&format!("{V3}/voip/turnServer"));
    assert_eq!((&answer["uris"], &answer["ttl"]), (&json!(uris), &json!(600)));
    let username = answer["username"].as_str().unwrap();
    let (until, user) = username.split_once(':').unwrap();
    let now = server.homeserver().clock.now_ms() / 1000;
    assert!((now + 590..=now + 600).contains(&until.parse::<i64>().unwrap()), "{username}");
    assert_eq!(user, alice.id());
    let key = ring::hmac::Key::new(ring::hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"north");
    let password = answer["password"].as_str().unwrap();
    assert_eq!(password.len(), 28, "padded, as the servers compare it: {password}");
    let signature = doorstep::protocol::json::base64_decode(password).unwrap();
    ring::hmac::verify(&key, username.as_bytes(), &signature).expect("the secret's HMAC");
    let nobody = TestUser::new(server.url(), "", "");
    refused(nobody.request("GET", &format!("{V3}/voip/turnServer"), None), 401, "M_MISSING_TOKEN");
}

#[test]
fn fields_of_a_join_are_in_the_member_event_but_for_those_that_are_the_servers() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    let body = json!({"org.example.mood": {"is": "fine"}, "foo": "bar", "reason": "hello", "membership": "ban", "displayname": "Alice",
        "avatar_url": "mxc://x/y", "join_authorised_via_users_server": alice.id(), "is_direct": true, "kind": "guest"});
    let member = |user: &TestUser| alice.state(&room, "m.room.member", user.id()).unwrap();
    let carol = here.user("carol");
    assert_eq!(carol.request("POST", &room_path(&room, "join"), Some(body.clone())).0, 200);
    // From elsewhere, by both ways of asking.
    assert_eq!(
        bob.request("POST", &format!("{V3}/join/{}?via={}", segment(&room), here.name()), Some(body)).0,
        200
    );
    for user in [&carol, &bob] {
        assert_eq!(
            member(user),
            json!({"membership": "join", "reason": "hello", "foo": "bar", "org.example.mood": {"is": "fine"}}),
        );
    }
    let dan = here.user("dan");
    let large = json!({"foo": "x".repeat(17_000)});
    refused(dan.request("POST", &room_path(&room, "join"), Some(large)), 413, "M_TOO_LARGE");
    refused(dan.request("POST", &room_path(&room, "join"), Some(json!([]))), 400, "M_BAD_JSON");
    assert!(alice.membership_of(&room, dan.id()).is_none());
}

#[test]
fn memberships_that_are_put_as_state_are_counted_like_invites_and_joins() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let alice = server.user("alice");
    let room = alice.create_room();
    let statuses = |what: &dyn Fn(usize) -> (String, Value)| -> Vec<u16> {
        (0..40)
            .map(|number| {
                let (path, content) = what(number);
                alice.request("PUT", &room_path(&room, &format!("state/{path}")), Some(content)).0
            })
            .collect()
    };
    // Invites that come to nothing, of accounts that there are not.
    let of_members = statuses(&|number| {
        let invitee = segment(&format!("@nobody{number}:{}", server.name()));
        (format!("m.room.member/{invitee}"), json!({ "membership": "invite" }))
    });
    assert!(of_members.contains(&429), "{of_members:?}");
    assert_ne!(of_members[0], 429);
    let others = statuses(&|number| ("m.room.topic".to_owned(), json!({ "topic": number.to_string() })));
    assert_eq!(others, [200; 40]);
}

#[test]
fn upgrades_are_few_since_each_may_be_thousands_of_events() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let alice = server.user("alice");
    let room = alice.create_room();
    let path = room_path(&room, "upgrade");
    // The next one is allowed ten seconds later.
    let statuses: Vec<u16> =
        (0..18).map(|_| alice.request("POST", &path, Some(json!({ "new_version": "0" }))).0).collect();
    assert_eq!(statuses[..10], [400; 10]);
    assert!(statuses[10..].contains(&429), "{statuses:?}");
}

#[test]
fn a_user_whom_an_administrator_lets_ask_more_often_is_counted_by_that_until_it_is_taken_back() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let (admin, bot) = (server.user("admin"), server.user("bot"));
    let room = bot.create_room();
    let path = "/_synapse/admin/v1/users/bot/override_ratelimit";
    let ask = |method: &str, body: Option<Value>| admin.request(method, path, body);
    assert_eq!(ask("GET", None), (200, json!({})));
    let send = |n: usize| {
        let path = room_path(&room, &format!("send/m.room.message/t{n}"));
        bot.request("PUT", &path, Some(json!({ "msgtype": "m.text", "body": "x" }))).0
    };
    // More than anybody may send at once.
    let most = 150;
    let sent = |from: usize| (from..from + most).take_while(|n| send(*n) == 200).count();
    let own = json!({ "messages_per_second": 0, "burst_count": 0 });
    assert_eq!(ask("POST", Some(json!({}))), (200, own.clone()));
    assert_eq!(ask("GET", None), (200, own));
    assert_eq!(sent(0), most);
    // And less: one at once, and then one a second.
    let own = json!({ "messages_per_second": 1, "burst_count": 1 });
    assert_eq!(ask("POST", Some(own.clone())), (200, own.clone()));
    assert!(sent(1000) < most);
    for (body, errcode) in [
        (json!({ "messages_per_second": -1 }), "M_INVALID_PARAM"),
        (json!({ "messages_per_second": 1.5 }), "M_INVALID_PARAM"),
        (json!({ "burst_count": "7" }), "M_INVALID_PARAM"),
        (json!({ "burst_count": true }), "M_INVALID_PARAM"),
        (json!({ "burst_count": 4_294_967_296_u64 }), "M_INVALID_PARAM"),
        (json!([]), "M_BAD_JSON"),
    ] {
        let (status, answer) = ask("POST", Some(body));
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{answer}");
    }
    assert_eq!(ask("GET", None), (200, own), "what is wrong changes nothing");
    assert_eq!(ask("DELETE", None), (200, json!({})));
    assert_eq!(ask("GET", None), (200, json!({})));
    for user in ["nobody", "@x:elsewhere.example"] {
        for (method, body) in [("GET", None), ("POST", Some(json!({}))), ("DELETE", None)] {
            let path = format!("/_synapse/admin/v1/users/{user}/override_ratelimit");
            assert!([400, 404].contains(&admin.request(method, &path, body).0), "{method} {user}");
        }
    }
    assert_eq!(bot.request("POST", path, Some(json!({}))).0, 403);
}
