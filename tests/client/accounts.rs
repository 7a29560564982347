//! Accounts, sessions and devices through the client-server API of a real server.

use doorstep::TestServer;
use doorstep::config::Registration;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN: &str = "/_matrix/client/v3/login";
const WHOAMI: &str = "/_matrix/client/v3/account/whoami";

/// Requests of somebody without an account, or with any token.
fn request(server: &TestServer, method: &str, path: &str, token: &str, body: Value) -> (u16, Value) {
    let request = ureq::http::Request::builder()
        .method(method)
        .uri(format!("{}{path}", server.url()))
        .header("X-A", "b");
    let request =
        if token.is_empty() { request } else { request.header("authorization", format!("Bearer {token}")) };
    let agent: ureq::Agent = ureq::Agent::config_builder()
        .http_status_as_error(false)
        .allow_non_standard_methods(true)
        .build()
        .into();
    let mut answer = if body.is_null() {
        agent.run(request.body(()).unwrap()).unwrap()
    } else {
        agent.run(request.body(body.to_string()).unwrap()).unwrap()
    };
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap_or(Value::Null))
}

#[track_caller]
fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{}", answer.1);
}

fn password_login(user: &str, password: &str) -> Value {
    json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": user }, "password": password })
}

#[test]
fn registration_asks_for_proof_first_and_then_gives_a_session() {
    let server = TestServer::start();
    let post = |body: Value| request(&server, "POST", REGISTER, "", body);
    let (status, ask) = post(json!({ "username": "alice", "password": "open sesame" }));
    assert_eq!((status, &ask["flows"]), (401, &json!([{ "stages": ["m.login.dummy"] }])));
    let (status, account) = post(json!({
        "username": "alice", "password": "open sesame", "device_id": "PHONE",
        "initial_device_display_name": "my phone",
        "auth": { "type": "m.login.dummy", "session": ask["session"] },
    }));
    assert_eq!(status, 200, "{account}");
    assert_eq!(account["user_id"], format!("@alice:{}", server.name()));
    assert_eq!(account["device_id"], "PHONE");
    let token = account["access_token"].as_str().unwrap();
    let (_, me) = request(&server, "GET", WHOAMI, token, Value::Null);
    assert_eq!(me, json!({ "user_id": account["user_id"], "device_id": "PHONE", "is_guest": false }));
    let by_query = format!("{WHOAMI}?access_token={token}");
    assert_eq!(request(&server, "GET", &by_query, "", Value::Null).0, 200);

    // Names are checked before anything is asked for.
    refused(post(json!({ "username": "alice" })), 400, "M_USER_IN_USE");
    refused(post(json!({ "username": "Älice" })), 400, "M_INVALID_USERNAME");
    let auth = json!({ "type": "m.login.dummy" });
    refused(post(json!({ "username": "bob", "auth": auth })), 400, "M_MISSING_PARAM");
    refused(post(json!({ "username": "bob", "password": "", "auth": auth })), 400, "M_WEAK_PASSWORD");
    refused(post(json!({ "username": 7, "auth": auth })), 400, "M_BAD_JSON");
    refused(
        request(&server, "POST", &format!("{REGISTER}?kind=guest"), "", json!({})),
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
    let (_, quiet) = post(json!({ "password": "x", "inhibit_login": true, "auth": auth }));
    assert!(quiet["user_id"].is_string() && quiet.get("access_token").is_none());

    let available = |name: &str| {
        request(&server, "GET", &format!("{REGISTER}/available?username={name}"), "", Value::Null)
    };
    refused(available("alice"), 400, "M_USER_IN_USE");
    refused(available("ALICE"), 400, "M_USER_IN_USE");
    assert_eq!(available("carol"), (200, json!({ "available": true })));
    refused(
        request(&server, "GET", &format!("{REGISTER}/available"), "", Value::Null),
        400,
        "M_MISSING_PARAM",
    );
}

#[test]
fn who_registers_has_the_name_that_they_chose_until_they_set_another_and_who_chose_none_has_none() {
    let server = TestServer::start();
    let auth = json!({ "type": "m.login.dummy" });
    let register = |body: Value| {
        let (status, made) = request(&server, "POST", REGISTER, "", body);
        assert_eq!(status, 200, "{made}");
        made
    };
    let made = register(json!({ "username": "Alice", "password": "x", "auth": auth }));
    let (alice, token) =
        (made["user_id"].as_str().expect("an id"), made["access_token"].as_str().expect("one"));
    let profile = |user: &str| {
        request(&server, "GET", &format!("/_matrix/client/v3/profile/{}", segment(user)), "", Value::Null).1
    };
    assert_eq!(profile(alice), json!({ "displayname": "alice" }));
    let (_, room) = request(&server, "POST", "/_matrix/client/v3/createRoom", token, json!({}));
    let room = room["room_id"].as_str().expect("a room");
    let member = format!("/_matrix/client/v3/rooms/{}/state/m.room.member/{}", segment(room), segment(alice));
    assert_eq!(request(&server, "GET", &member, token, Value::Null).1["displayname"], "alice");
    let name = format!("/_matrix/client/v3/profile/{}/displayname", segment(alice));
    request(&server, "PUT", &name, token, json!({ "displayname": "" }));
    assert_eq!(profile(alice), json!({}), "none is one's own choice, too");
    let nameless = register(json!({ "password": "x", "auth": auth }));
    assert_eq!(profile(nameless["user_id"].as_str().expect("an id")), json!({}), "nobody chose that");
}

/// A session of interactive authentication, begun with this body.
fn session(server: &TestServer, path: &str, token: &str, body: Value) -> Value {
    let (status, ask) = request(server, "POST", path, token, body);
    assert_eq!(status, 401, "{ask}");
    ask["session"].clone()
}

/// How many accounts there are.
fn accounts(server: &TestServer) -> usize {
    server.homeserver().store.read(|db| db.accounts()).unwrap().len()
}

#[test]
fn one_session_of_registration_makes_one_account_however_many_requests_use_it() {
    let server = TestServer::start();
    for named in [true, false] {
        let before = accounts(&server);
        let session = session(&server, REGISTER, "", json!({}));
        let auth = json!({ "type": "m.login.dummy", "session": session });
        let body = |n: usize| match named {
            true => json!({ "username": format!("user{n}"), "password": "pw", "auth": auth }),
            false => json!({ "password": "pw", "auth": auth }),
        };
        let gate = std::sync::Barrier::new(8);
        let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
            let send = |n: usize| {
                gate.wait();
                request(&server, "POST", REGISTER, "", body(n))
            };
            let threads: Vec<_> = (0..8).map(|n| scope.spawn(move || send(n))).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(accounts(&server), before + 1, "{answers:?}");
        let made: Vec<&Value> = answers.iter().filter(|(status, _)| *status == 200).map(|(_, a)| a).collect();
        assert!(!made.is_empty() && made.iter().all(|answer| *answer == made[0]), "{answers:?}");
        assert!(answers.iter().all(|(status, _)| matches!(status, 200 | 401)), "{answers:?}");
        // Nor does it make one later, whatever is asked for with it.
        for body in [body(9), json!({ "username": "other", "password": "pw", "auth": auth })] {
            request(&server, "POST", REGISTER, "", body);
        }
        assert_eq!(accounts(&server), before + 1);
    }
}

#[test]
fn a_registration_whose_answer_was_lost_is_answered_again() {
    let server = TestServer::start();
    for body in [json!({ "username": "alice", "password": "pw" }), json!({ "password": "pw" })] {
        let session = session(&server, REGISTER, "", body.clone());
        let mut whole = body.clone();
        whole["auth"] = json!({ "type": "m.login.dummy", "session": session });
        let (status, first) = request(&server, "POST", REGISTER, "", whole.clone());
        assert_eq!(status, 200, "{first}");
        let before = accounts(&server);
        assert_eq!(request(&server, "POST", REGISTER, "", whole.clone()), (200, first.clone()));
        // Without the stage, which is complete, and without what was said before.
        let bare = json!({ "auth": { "session": session } });
        assert_eq!(request(&server, "POST", REGISTER, "", bare), (200, first.clone()));
        assert_eq!(accounts(&server), before);
        assert_eq!(
            request(&server, "GET", WHOAMI, first["access_token"].as_str().unwrap(), Value::Null).0,
            200
        );
        // Who asks for something else gets no access to this account.
        whole["username"] = json!("mallory");
        assert_eq!(request(&server, "POST", REGISTER, "", whole.clone()).0, 401);
        whole.as_object_mut().unwrap().remove("username");
        whole["password"] = json!("another");
        assert_ne!(request(&server, "POST", REGISTER, "", whole).0, 200);
    }
}

#[test]
fn what_the_first_request_of_a_session_said_need_not_be_said_again() {
    let server = TestServer::start_with(|config| config.registration = Registration::Token);
    server.homeserver().accounts().add_registration_token("let-me-in", None, None).unwrap();
    let whole = json!({ "username": "Alice", "password": "pw", "device_id": "PHONE" });
    let (_, ask) = request(&server, "POST", REGISTER, "", whole);
    let flows = json!([
        { "stages": ["m.login.registration_token"] },
        { "stages": ["m.login.registration_token", "m.login.dummy"] },
    ]);
    assert_eq!(ask["flows"], flows);
    let auth =
        json!({ "type": "m.login.registration_token", "token": "let-me-in", "session": ask["session"] });
    let (status, made) = request(&server, "POST", REGISTER, "", json!({ "auth": auth }));
    assert_eq!((status, &made["device_id"]), (200, &json!("PHONE")), "{made}");
    assert_eq!(made["user_id"], format!("@alice:{}", server.name()));
    // A library that goes on with the longer flow has what it needs for that, and then what it wanted.
    assert_eq!((&made["flows"], &made["session"]), (&flows, &ask["session"]));
    let auth = json!({ "type": "m.login.dummy", "session": ask["session"] });
    let body = json!({ "username": "Alice", "password": "pw", "auth": auth });
    assert_eq!(request(&server, "POST", REGISTER, "", body), (200, made.clone()));
    assert_eq!(request(&server, "POST", LOGIN, "", password_login("ALICE", "pw")).0, 200);

    // The same everywhere else.
    let token = made["access_token"].as_str().unwrap();
    let auth = |session: &Value| {
        let mut auth = password_login("alice", "pw");
        auth["session"] = session.clone();
        json!({ "auth": auth })
    };
    let path = "/_matrix/client/v3/account/password";
    let begun = session(&server, path, token, json!({ "new_password": "new", "logout_devices": false }));
    assert_eq!(request(&server, "POST", path, token, auth(&begun)).0, 200);
    assert_eq!(request(&server, "POST", LOGIN, "", password_login("alice", "new")).0, 200);
    let other = request(&server, "POST", LOGIN, "", password_login("alice", "new")).1;
    let path = "/_matrix/client/v3/delete_devices";
    let begun = session(&server, path, token, json!({ "devices": [other["device_id"]] }));
    let mut body = auth(&begun);
    body["auth"]["password"] = json!("new");
    assert_eq!(request(&server, "POST", path, token, body), (200, json!({})));
    refused(
        request(&server, "GET", WHOAMI, other["access_token"].as_str().unwrap(), Value::Null),
        401,
        "M_UNKNOWN_TOKEN",
    );
}

#[test]
fn a_client_whose_own_token_ended_with_what_it_did_is_answered_again() {
    let server = TestServer::start();
    let made = server.homeserver().accounts().register_user("alice", Some("pw")).unwrap();
    let alice = made.0.clone();
    let log_in = |device: &str| {
        let mut body = password_login("alice", "pw");
        body["device_id"] = json!(device);
        request(&server, "POST", LOGIN, "", body).1["access_token"].as_str().unwrap().to_owned()
    };
    let auth = |session: &Value| {
        let mut auth = password_login("alice", "pw");
        auth["session"] = session.clone();
        auth
    };
    let (phone, other) = (log_in("PHONE"), log_in("OTHER"));
    let path = "/_matrix/client/v3/delete_devices";
    let begun = session(&server, path, &phone, json!({ "devices": ["PHONE"] }));
    let body = json!({ "devices": ["PHONE"], "auth": auth(&begun) });
    for _ in 0..2 {
        assert_eq!(request(&server, "POST", path, &phone, body.clone()), (200, json!({})));
    }
    // The token is good for nothing else, and the answer for nobody else.
    refused(request(&server, "GET", WHOAMI, &phone, Value::Null), 401, "M_UNKNOWN_TOKEN");
    refused(request(&server, "POST", path, &phone, json!({ "devices": ["OTHER"] })), 401, "M_UNKNOWN_TOKEN");
    let more = json!({ "devices": ["OTHER"], "auth": auth(&begun) });
    refused(request(&server, "POST", path, &phone, more), 401, "M_UNKNOWN_TOKEN");
    refused(request(&server, "POST", path, "made-up", body), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(request(&server, "GET", WHOAMI, &other, Value::Null).0, 200);
    // By the path that names the device.
    let path = "/_matrix/client/v3/devices/OTHER";
    let (_, ask) = request(&server, "DELETE", path, &other, json!({}));
    let body = json!({ "auth": auth(&ask["session"]) });
    for _ in 0..2 {
        assert_eq!(request(&server, "DELETE", path, &other, body.clone()), (200, json!({})));
    }
    refused(request(&server, "DELETE", "/_matrix/client/v3/devices/C", &other, body), 401, "M_UNKNOWN_TOKEN");
    // The account itself.
    let path = "/_matrix/client/v3/account/deactivate";
    let last = log_in("LAST");
    let begun = session(&server, path, &last, json!({}));
    for _ in 0..2 {
        let gone = request(&server, "POST", path, &last, json!({ "auth": auth(&begun) }));
        assert_eq!(gone, (200, json!({ "id_server_unbind_result": "success" })));
    }
    let more = json!({ "erase": true, "auth": auth(&begun) });
    refused(request(&server, "POST", path, &last, more), 401, "M_UNKNOWN_TOKEN");
    assert!(server.homeserver().store.read(|db| db.devices(&alice)).unwrap().is_empty());
}

#[test]
fn a_closed_server_registers_nobody_and_one_with_tokens_only_their_bearers() {
    let server = TestServer::start_with(|config| config.registration = Registration::Closed);
    refused(request(&server, "POST", REGISTER, "", json!({})), 403, "M_FORBIDDEN");
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    refused(request(&server, "GET", validity, "", Value::Null), 403, "M_FORBIDDEN");

    let server = TestServer::start_with(|config| config.registration = Registration::Token);
    let token = server.homeserver().accounts().ensure_first_token().unwrap().unwrap();
    let valid = |token: &str| {
        request(&server, "GET", &format!("{validity}{token}"), "", Value::Null).1["valid"] == true
    };
    assert!(valid(&token) && !valid("made-up"));
    let register = |name: &str, token: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        request(&server, "POST", REGISTER, "", json!({ "username": name, "password": "x", "auth": auth }))
    };
    refused(register("alice", "made-up"), 401, "M_UNAUTHORIZED");
    assert_eq!(register("alice", &token).0, 200);
    assert!(!valid(&token));
    refused(register("bob", &token), 401, "M_UNAUTHORIZED");
}

#[test]
fn the_shared_secret_makes_accounts_and_without_it_the_endpoint_does_not_exist() {
    use ring::hmac;
    const PATH: &str = "/_synapse/admin/v1/register";
    let server = TestServer::start();
    refused(request(&server, "GET", PATH, "", Value::Null), 404, "M_UNRECOGNIZED");

    let server = TestServer::start_with(|config| config.registration_secret = Some("sesame".into()));
    let nonce = || request(&server, "GET", PATH, "", Value::Null).1["nonce"].as_str().unwrap().to_owned();
    let post = |secret: &str, nonce: &str, name: &str, admin: bool| {
        let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, secret.as_bytes());
        let shown = format!("{name} the first");
        let signed = format!("{nonce}\0{name}\0pw\0{}", if admin { "admin" } else { "notadmin" });
        let mac: String =
            hmac::sign(&key, signed.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let body = json!({
            "nonce": nonce, "username": name, "password": "pw", "displayname": shown, "admin": admin, "mac": mac,
        });
        request(&server, "POST", PATH, "", body)
    };
    refused(post("wrong", &nonce(), "alice", false), 403, "M_FORBIDDEN");
    refused(post("sesame", "made-up", "alice", false), 400, "M_INVALID_PARAM");
    let used = nonce();
    let (status, account) = post("sesame", &used, "alice", true);
    assert_eq!(status, 200, "{account}");
    assert_eq!(
        request(&server, "GET", WHOAMI, account["access_token"].as_str().unwrap(), Value::Null).0,
        200
    );
    refused(post("sesame", &used, "bob", false), 400, "M_INVALID_PARAM");
    // What was signed for a user of some type says nothing else in another body.
    let nonce_of_type = nonce();
    let key = hmac::Key::new(hmac::HMAC_SHA1_FOR_LEGACY_USE_ONLY, b"sesame");
    let signed = format!("{nonce_of_type}\0eve\0pw\0notadmin\0admin");
    let mac: String =
        hmac::sign(&key, signed.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
    let body = json!({ "nonce": nonce_of_type, "username": "eve", "password": "pw\0notadmin", "admin": true, "mac": mac });
    refused(request(&server, "POST", PATH, "", body), 400, "M_INVALID_PARAM");
    assert_eq!(request(&server, "POST", LOGIN, "", password_login("alice", "pw")).0, 200);
    let profile = |name: &str| {
        let path = format!("/_matrix/client/v3/profile/@{name}:{}", server.name());
        request(&server, "GET", &path, "", Value::Null).1
    };
    assert_eq!(profile("alice"), json!({ "displayname": "alice the first" }));
    let (status, account) = post("sesame", &nonce(), "Bob", false);
    assert_eq!((status, &account["user_id"]), (200, &json!(format!("@bob:{}", server.name()))), "{account}");
    assert_eq!(profile("bob"), json!({ "displayname": "Bob the first" }));
    refused(post("sesame", &nonce(), "BOB", false), 400, "M_USER_IN_USE");
    refused(post("sesame", &nonce(), &"c".repeat(257), false), 400, "M_INVALID_USERNAME");
}

#[test]
fn one_logs_in_by_name_or_full_id_and_with_the_right_password_only() {
    let server = TestServer::start();
    server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    let login = |body: Value| request(&server, "POST", LOGIN, "", body);
    let (_, flows) = request(&server, "GET", LOGIN, "", Value::Null);
    assert_eq!(flows["flows"][0]["type"], "m.login.password");
    let id = format!("@alice:{}", server.name());
    for name in ["alice", &id, "Alice", &id.to_uppercase()] {
        let (status, session) = login(password_login(name, "open sesame"));
        assert_eq!((status, &session["user_id"]), (200, &json!(id)), "{name}");
    }
    let older = json!({ "type": "m.login.password", "user": "alice", "password": "open sesame" });
    assert_eq!(login(older).0, 200);
    for (name, password) in
        [("alice", "wrong"), ("nobody", "open sesame"), ("@alice:elsewhere", "open sesame")]
    {
        refused(login(password_login(name, password)), 403, "M_FORBIDDEN");
    }
    let by_mail = json!({ "type": "m.id.thirdparty", "medium": "email", "address": "a@b.example" });
    let by_mail = json!({ "type": "m.login.password", "identifier": by_mail, "password": "x" });
    refused(login(by_mail), 403, "M_FORBIDDEN");
    refused(login(json!({ "type": "m.login.magic" })), 400, "M_UNKNOWN");
    refused(login(json!({})), 400, "M_MISSING_PARAM");
    refused(login(json!({ "type": "m.login.password", "user": "alice" })), 400, "M_MISSING_PARAM");

    let mut body = password_login("alice", "open sesame");
    body["refresh_token"] = json!(true);
    let (_, session) = login(body);
    assert!(session["expires_in_ms"].as_i64().unwrap() > 0);
    let refresh = json!({ "refresh_token": session["refresh_token"] });
    let (status, renewed) = request(&server, "POST", "/_matrix/client/v3/refresh", "", refresh.clone());
    assert_eq!(status, 200, "{renewed}");
    assert_eq!(
        request(&server, "GET", WHOAMI, renewed["access_token"].as_str().unwrap(), Value::Null).0,
        200
    );
    refused(request(&server, "POST", "/_matrix/client/v3/refresh", "", refresh), 401, "M_UNKNOWN_TOKEN");
}

#[test]
fn a_program_whose_tokens_another_one_of_the_same_device_renewed_is_not_told_that_the_device_is_gone() {
    let server = TestServer::start();
    server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    let mut body = password_login("alice", "open sesame");
    body["refresh_token"] = json!(true);
    let (_, mut session) = request(&server, "POST", "/_matrix/client/v3/login", "", body);
    let token = |session: &Value| session["access_token"].as_str().unwrap().to_owned();
    let whoami = |token: &str| request(&server, "GET", WHOAMI, token, Value::Null);
    let refresh = |session: &Value| {
        let body = json!({ "refresh_token": session["refresh_token"] });
        request(&server, "POST", "/_matrix/client/v3/refresh", "", body)
    };
    let mut before = Vec::new();
    for _ in 0..3 {
        let (status, renewed) = refresh(&session);
        assert_eq!((status, whoami(&token(&renewed)).0), (200, 200), "{renewed}");
        before.push(std::mem::replace(&mut session, renewed));
    }
    // Soft: "the server has destroyed the session" would have it throw away its keys.
    let last = before.pop().unwrap();
    for answer in [whoami(&token(&last)), refresh(&last)] {
        assert_eq!(answer.1["soft_logout"], true, "{answer:?}");
        refused(answer, 401, "M_UNKNOWN_TOKEN");
    }
    assert_eq!(whoami(&token(&session)).0, 200, "who has the new ones goes on");
    // And no more than one is remembered.
    assert_eq!(whoami(&token(&before[0])).1["soft_logout"], false);
    // Nobody logs out with what was replaced; and once the device is gone that is said.
    refused(
        request(&server, "POST", "/_matrix/client/v3/logout", &token(&last), json!({})),
        401,
        "M_UNKNOWN_TOKEN",
    );
    assert_eq!(request(&server, "POST", "/_matrix/client/v3/logout", &token(&session), json!({})).0, 200);
    assert_eq!(whoami(&token(&last)).1["soft_logout"], false);
}

#[test]
fn who_logs_out_with_a_token_that_has_expired_leaves_no_device_behind() {
    let server = TestServer::start();
    let (alice, _) = server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    let login = |refresh: bool| {
        let mut body = password_login("alice", "open sesame");
        body["refresh_token"] = json!(refresh);
        let (_, session) = request(&server, "POST", LOGIN, "", body);
        (session["access_token"].as_str().unwrap().to_owned(), session["device_id"].clone())
    };
    let ((token, device), (other, _)) = (login(true), login(false));
    server.advance(std::time::Duration::from_secs(25 * 60 * 60));
    let (status, answer) = request(&server, "GET", WHOAMI, &token, Value::Null);
    assert_eq!((status, &answer["soft_logout"]), (401, &json!(true)), "{answer}");
    // It is good for its own device alone: whoever finds an old token logs nobody else out.
    let (status, answer) = request(&server, "POST", "/_matrix/client/v3/logout/all", &token, json!({}));
    assert_eq!(
        (status, &answer["errcode"], &answer["soft_logout"]),
        (401, &json!("M_UNKNOWN_TOKEN"), &json!(true))
    );
    assert_eq!(request(&server, "GET", WHOAMI, &other, Value::Null).0, 200);
    assert_eq!(request(&server, "POST", "/_matrix/client/v3/logout", &token, json!({})), (200, json!({})));
    let devices = server.homeserver().admin().devices_of(&alice).unwrap();
    assert!(devices.iter().all(|known| known["device_id"] != device), "{devices:?}");
    assert_eq!(request(&server, "GET", WHOAMI, &token, Value::Null).1["soft_logout"], false);
    assert_eq!(request(&server, "GET", WHOAMI, &other, Value::Null).0, 200);
}

#[test]
fn who_logs_out_is_out_and_tokens_are_asked_for() {
    let server = TestServer::start();
    let (alice, first) = server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    let login = || {
        let (_, session) = request(&server, "POST", LOGIN, "", password_login("alice", "open sesame"));
        session["access_token"].as_str().unwrap().to_owned()
    };
    let (second, third) = (login(), login());
    assert_eq!(request(&server, "POST", "/_matrix/client/v3/logout", &second, json!({})).0, 200);
    refused(request(&server, "GET", WHOAMI, &second, Value::Null), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(request(&server, "POST", "/_matrix/client/v3/logout/all", &third, json!({})).0, 200);
    for token in [&first, &third] {
        refused(request(&server, "GET", WHOAMI, token, Value::Null), 401, "M_UNKNOWN_TOKEN");
    }
    refused(request(&server, "GET", WHOAMI, "", Value::Null), 401, "M_MISSING_TOKEN");
    assert!(server.homeserver().store.read(|db| db.devices(&alice)).unwrap().is_empty());
}

#[test]
fn devices_are_listed_renamed_and_deleted_with_the_password() {
    let server = TestServer::start();
    server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    let log_in = |device: &str| {
        let mut body = password_login("alice", "open sesame");
        body["device_id"] = json!(device);
        request(&server, "POST", LOGIN, "", body).1["access_token"].as_str().unwrap().to_owned()
    };
    let (mine, other) = (log_in("MINE"), log_in("A/B"));
    log_in("C");
    let devices = "/_matrix/client/v3/devices";
    let (_, all) = request(&server, "GET", devices, &mine, Value::Null);
    let ids: Vec<&str> =
        all["devices"].as_array().unwrap().iter().map(|d| d["device_id"].as_str().unwrap()).collect();
    assert!(["A/B", "C", "MINE"].iter().all(|id| ids.contains(id)), "{ids:?}");
    // Those that asked for nothing yet were seen when they logged in; of one that was made without a client's request
    // nothing is known.
    for device in all["devices"].as_array().unwrap() {
        let id = device["device_id"].as_str().unwrap();
        let (ts, ip) = (&device["last_seen_ts"], &device["last_seen_ip"]);
        match ["A/B", "C", "MINE"].contains(&id) {
            true => assert!(ts.is_i64() && ip == "127.0.0.1", "{device}"),
            false => {
                assert!(device.get("last_seen_ts").is_some() && ts.is_null() && ip.is_null(), "{device}")
            }
        }
        assert!(device["display_name"].is_string(), "{device}");
    }

    let path = format!("{devices}/A%2FB");
    assert_eq!(request(&server, "PUT", &path, &mine, json!({ "display_name": "tablet" })).0, 200);
    let (_, device) = request(&server, "GET", &path, &mine, Value::Null);
    assert_eq!((&device["device_id"], &device["display_name"]), (&json!("A/B"), &json!("tablet")));
    refused(request(&server, "GET", &format!("{devices}/none"), &mine, Value::Null), 404, "M_NOT_FOUND");
    refused(request(&server, "PUT", &format!("{devices}/none"), &mine, json!({})), 404, "M_NOT_FOUND");

    let auth = password_login("alice", "open sesame");
    let many = "/_matrix/client/v3/delete_devices";
    let (status, ask) = request(&server, "POST", many, &mine, json!({ "devices": ["A/B"] }));
    assert_eq!((status, &ask["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])));
    let wrong = json!({ "devices": ["A/B"], "auth": password_login("alice", "wrong") });
    refused(request(&server, "POST", many, &mine, wrong), 401, "M_FORBIDDEN");
    assert_eq!(request(&server, "GET", WHOAMI, &other, Value::Null).0, 200);
    assert_eq!(
        request(&server, "POST", many, &mine, json!({ "devices": ["A/B", "none"], "auth": auth })).0,
        200
    );
    refused(request(&server, "GET", WHOAMI, &other, Value::Null), 401, "M_UNKNOWN_TOKEN");
    refused(request(&server, "POST", many, &mine, json!({ "devices": [1] })), 400, "M_BAD_JSON");
}

#[test]
fn a_new_password_logs_the_other_devices_out_unless_told_otherwise() {
    let server = TestServer::start();
    let (_, mine) = server.homeserver().accounts().register_user("alice", Some("old")).unwrap();
    let login = |password: &str| request(&server, "POST", LOGIN, "", password_login("alice", password));
    let path = "/_matrix/client/v3/account/password";
    let change = |old: &str, new: &str, log_out: bool| {
        let body =
            json!({ "new_password": new, "logout_devices": log_out, "auth": password_login("alice", old) });
        request(&server, "POST", path, &mine, body)
    };
    let other = login("old").1["access_token"].as_str().unwrap().to_owned();
    refused(change("wrong", "new", true), 401, "M_FORBIDDEN");
    assert_eq!(change("old", "new", false).0, 200);
    assert_eq!(request(&server, "GET", WHOAMI, &other, Value::Null).0, 200);
    assert_eq!(change("new", "newer", true).0, 200);
    refused(request(&server, "GET", WHOAMI, &other, Value::Null), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(request(&server, "GET", WHOAMI, &mine, Value::Null).0, 200);
    refused(login("old"), 403, "M_FORBIDDEN");
    assert_eq!(login("newer").0, 200);
    // Who has no session proves it by the password alone.
    let body = json!({ "new_password": "newest", "auth": password_login("alice", "newer") });
    assert_eq!(request(&server, "POST", path, "", body).0, 200);
    refused(request(&server, "GET", WHOAMI, &mine, Value::Null), 401, "M_UNKNOWN_TOKEN");
}

#[test]
fn a_deactivated_account_is_gone_and_its_name_stays_taken() {
    let server = TestServer::start();
    let (_, token) = server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    let bob = server.user("bob");
    let room = bob.create_room();
    bob.invite(&room, &format!("@alice:{}", server.name()));
    let path = "/_matrix/client/v3/account/deactivate";
    assert_eq!(request(&server, "POST", path, &token, json!({})).0, 401);
    let body = json!({ "auth": password_login("alice", "open sesame") });
    let gone = request(&server, "POST", path, &token, body);
    assert_eq!(gone, (200, json!({ "id_server_unbind_result": "success" })));
    refused(request(&server, "GET", WHOAMI, &token, Value::Null), 401, "M_UNKNOWN_TOKEN");
    refused(request(&server, "POST", LOGIN, "", password_login("alice", "open sesame")), 403, "M_FORBIDDEN");
    let member = format!("/_matrix/client/v3/rooms/{room}/state/m.room.member/@alice:{}", server.name());
    assert_eq!(bob.get(&member)["membership"], "leave");
    refused(request(&server, "POST", REGISTER, "", json!({ "username": "alice" })), 400, "M_USER_IN_USE");
}

#[test]
fn accounts_and_sessions_survive_a_restart() {
    let mut server = TestServer::start();
    let (_, token) = server.homeserver().accounts().register_user("alice", Some("open sesame")).unwrap();
    server.restart();
    assert_eq!(request(&server, "GET", WHOAMI, &token, Value::Null).0, 200);
    assert_eq!(request(&server, "POST", LOGIN, "", password_login("alice", "open sesame")).0, 200);
}

#[test]
fn users_find_whom_to_turn_to_if_the_settings_say_it() {
    let server = TestServer::start_with(|config| {
        for (flag, value) in [
            ("support-contact", "@admin:example.org"),
            ("support-contact", "abuse@example.org"),
            ("support-page", "https://example.org/help"),
        ] {
            config.set(flag, value).expect("a good value");
        }
        for (flag, value) in
            [("support-contact", "admin"), ("support-contact", "@admin"), ("support-page", "help")]
        {
            config.set(flag, value).expect_err("no good value");
        }
    });
    let told = request(&server, "GET", "/.well-known/matrix/support", "", Value::Null);
    let contacts = json!([{ "matrix_id": "@admin:example.org", "role": "m.role.admin" },
        { "email_address": "abuse@example.org", "role": "m.role.admin" }]);
    assert_eq!(told, (200, json!({ "contacts": contacts, "support_page": "https://example.org/help" })));
}

#[test]
fn everybody_learns_what_the_server_is_and_can() {
    let server = TestServer::start();
    let get = |path: &str, token: &str| request(&server, "GET", path, token, Value::Null);
    let (_, versions) = get("/_matrix/client/versions", "");
    assert!(versions["versions"].as_array().unwrap().contains(&json!("v1.11")));
    let (_, client) = get("/.well-known/matrix/client", "");
    assert_eq!(client["m.homeserver"]["base_url"], server.url());
    let (_, peer) = get("/.well-known/matrix/server", "");
    assert_eq!(peer["m.server"], server.url().trim_start_matches("http://"));
    refused(get("/.well-known/matrix/support", ""), 404, "M_NOT_FOUND");
    refused(get("/_matrix/client/v3/capabilities", ""), 401, "M_MISSING_TOKEN");
    let alice = TestUser::register(server.url(), "alice");
    let (_, capabilities) = get("/_matrix/client/v3/capabilities", alice.token());
    assert_eq!(capabilities["capabilities"]["m.room_versions"]["available"]["12"], "stable");
    // What the settings of clients show, and offer, hangs on these.
    assert_eq!(capabilities["capabilities"]["m.profile_fields"], json!({ "enabled": true }));
    assert_eq!(capabilities["capabilities"]["m.3pid_changes"], json!({ "enabled": false }));
    for feature in ["org.matrix.msc4380.stable", "uk.tcpip.msc4133.stable", "com.beeper.msc4169"] {
        assert_eq!(versions["unstable_features"][feature], true, "{feature}");
    }
    for (path, none) in [("account/3pid", json!({ "threepids": [] })), ("thirdparty/protocols", json!({}))] {
        refused(get(&format!("/_matrix/client/v3/{path}"), ""), 401, "M_MISSING_TOKEN");
        assert_eq!(get(&format!("/_matrix/client/v3/{path}"), alice.token()), (200, none));
    }
}

#[test]
fn errors_of_the_router_are_matrix_errors_with_cors() {
    let server = TestServer::start();
    refused(request(&server, "GET", "/_matrix/client/v3/nothing", "", Value::Null), 404, "M_UNRECOGNIZED");
    refused(request(&server, "GET", "/nothing", "", Value::Null), 404, "M_UNRECOGNIZED");
    refused(request(&server, "DELETE", LOGIN, "", Value::Null), 405, "M_UNRECOGNIZED");
    refused(request(&server, "BREW", LOGIN, "", Value::Null), 405, "M_UNRECOGNIZED");
    refused(
        request(&server, "GET", "/_matrix/client/v3/devices/%ff", "x", Value::Null),
        400,
        "M_INVALID_PARAM",
    );
    refused(request(&server, "GET", WHOAMI, "made-up", Value::Null), 401, "M_UNKNOWN_TOKEN");
    let large = json!({ "type": "x".repeat(300 << 10) });
    refused(request(&server, "POST", LOGIN, "", large), 413, "M_TOO_LARGE");
    refused(request(&server, "POST", LOGIN, "", json!("a string")), 400, "M_BAD_JSON");
    let unsigned = "/_matrix/federation/v1/query/profile?user_id=@a:b";
    refused(request(&server, "GET", unsigned, "", Value::Null), 401, "M_UNAUTHORIZED");
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let preflight = ureq::http::Request::builder().method("OPTIONS").uri(format!("{}{LOGIN}", server.url()));
    let answer = agent.run(preflight.body(()).unwrap()).unwrap();
    assert_eq!(answer.status().as_u16(), 200);
    for (name, value) in [
        ("access-control-allow-origin", "*"),
        (
            "access-control-allow-headers",
            // Also those by which a part of a file is asked for, and whether it is the one that is there.
            "X-Requested-With, Content-Type, Authorization, Date, Range, If-Range, If-None-Match",
        ),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
    // What only servers ask is no page's business.
    for path in ["/_matrix/federation/v1/version", "/_matrix/key/v2/server"] {
        let answer = agent.get(format!("{}{path}", server.url())).call().unwrap();
        assert_eq!(answer.status().as_u16(), 200, "{path}");
        assert!(!answer.headers().contains_key("access-control-allow-origin"), "{path}");
    }
}

/// A request that a reverse proxy on this machine passes on for somebody.
fn request_from(server: &TestServer, from: &str, path: &str, body: &Value) -> (u16, Value) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    let request =
        ureq::http::Request::post(format!("{}{path}", server.url())).header("X-Forwarded-For", from);
    let mut answer = agent.run(request.body(body.to_string()).unwrap()).unwrap();
    let status = answer.status().as_u16();
    (status, serde_json::from_str(&answer.body_mut().read_to_string().unwrap()).unwrap())
}

#[test]
fn wrong_passwords_are_limited_for_each_account_and_lock_its_owner_out_nowhere() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let home = "198.51.100.1";
    let register = json!({ "username": "alice", "password": "pw", "auth": { "type": "m.login.dummy" } });
    let (status, alice) = request_from(&server, home, REGISTER, &register);
    assert_eq!(status, 200, "{alice}");
    server.homeserver().accounts().register_user("bob", Some("pw")).unwrap();
    // Each guesses once, from an address and a network of their own, so that no limit of an address is what answers.
    let wrong = password_login("alice", "wrong");
    let guesses: Vec<(u16, Value)> =
        (1..90).map(|n| request_from(&server, &format!("{n}.0.2.1"), LOGIN, &wrong)).collect();
    let limited: Vec<&Value> = guesses.iter().filter(|(status, _)| *status == 429).map(|(_, a)| a).collect();
    assert!(guesses.iter().filter(|(status, _)| *status == 403).count() >= 10);
    assert!(limited.len() >= 10, "{guesses:?}");
    assert!(limited.iter().all(|a| a["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0 && ms < 60_000)));
    // Not even the right one is looked at, wherever a password is asked for. (A guess may be allowed again by now, but
    // never many in a row.)
    let right = password_login("alice", "pw");
    let is_limited = |path: &str, body: &Value| {
        (100..105).any(|n| {
            request_from(&server, &format!("{n}.0.2.1"), LOGIN, &wrong);
            request_from(&server, &format!("{n}.0.2.2"), path, body).0 == 429
        })
    };
    assert!(is_limited(LOGIN, &right));
    for path in ["/_matrix/client/v3/account/password", "/_matrix/client/v3/account/deactivate"] {
        assert!(is_limited(path, &json!({ "new_password": "x", "auth": wrong })), "{path}");
    }
    // Other accounts are not concerned, nor is the owner where the account was used from; elsewhere it takes a moment.
    assert_eq!(request_from(&server, "110.0.2.1", LOGIN, &password_login("bob", "pw")).0, 200);
    assert_eq!(request_from(&server, home, LOGIN, &right).0, 200);
    server.advance(std::time::Duration::from_secs(60));
    assert_eq!(request_from(&server, "111.0.2.1", LOGIN, &right).0, 200);
    // Where the owner is there are not endless tries either.
    let guess = || request_from(&server, "111.0.2.1", LOGIN, &wrong).0;
    assert!((0..30).any(|_| guess() == 429));
}

#[test]
fn users_of_a_proxy_share_no_limit_and_nobody_picks_another_by_what_they_claim() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let ask = |from: &str| request_from(&server, from, LOGIN, &json!({})).0;
    assert!((0..30).any(|_| ask("192.0.2.1") == 429), "a limit");
    // However the same address is written, and whatever its user put before it.
    for same in [
        "203.0.113.7, 192.0.2.1",
        "::ffff:192.0.2.1",
        "[::ffff:192.0.2.1]:4711",
        "192.0.2.1:99",
        "x,192.0.2.1",
    ] {
        assert_eq!(ask(same), 429, "{same}");
    }
    for other in ["192.0.2.2", "192.0.2.1, 192.0.2.3", "2001:db8::1"] {
        assert_eq!(ask(other), 400, "{other}");
    }
    // An IPv6 host has many addresses.
    assert!((0..30).any(|n| ask(&format!("2001:db8::{n:x}")) == 429));
    // What is no address counts as the proxy itself.
    assert!((0..30).any(|n| ask(&format!("host{n}")) == 429));
    assert_eq!(ask("192.0.2.9, unknown"), 429);
}

#[test]
fn who_asks_too_often_is_told_when_to_come_back() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let mut answers = (0..30).map(|_| request(&server, "POST", LOGIN, "", json!({})));
    let limited = answers.find(|(status, _)| *status == 429).expect("a limit");
    assert!(limited.1["retry_after_ms"].as_u64().unwrap() > 0);
    refused(limited, 429, "M_LIMIT_EXCEEDED");
    assert_eq!(request(&server, "GET", "/_matrix/client/versions", "", Value::Null).0, 200);
}

#[test]
fn a_proxy_is_believed_where_the_settings_say_that_it_is_and_nowhere_else() {
    let seen_from = |networks: &str| {
        let server = TestServer::start_with(|config| config.set("trust-proxy", networks).expect("networks"));
        let register = json!({ "username": "alice", "password": "pw", "auth": { "type": "m.login.dummy" } });
        assert_eq!(request_from(&server, "192.0.2.1", REGISTER, &register).0, 200);
        let (status, login) = request_from(&server, "192.0.2.1", LOGIN, &password_login("alice", "pw"));
        assert_eq!(status, 200, "{login}");
        let token = login["access_token"].as_str().expect("a token");
        let (_, devices) = request(&server, "GET", "/_matrix/client/v3/devices", token, Value::Null);
        devices["devices"]
            .as_array()
            .expect("devices")
            .iter()
            .map(|d| d["last_seen_ip"].clone())
            .collect::<Vec<_>>()
    };
    assert!(seen_from("127.0.0.0/8,::1").contains(&json!("192.0.2.1")));
    assert!(!seen_from("172.18.0.0/16").contains(&json!("192.0.2.1")));
}
