//! Accounts, sessions and devices through the client-server API of a real server.

use doorstep::TestServer;
use doorstep::config::Registration;
use doorstep::testing::TestUser;
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
    refused(available("ALICE"), 400, "M_INVALID_USERNAME");
    assert_eq!(available("carol"), (200, json!({ "available": true })));
    refused(
        request(&server, "GET", &format!("{REGISTER}/available"), "", Value::Null),
        400,
        "M_MISSING_PARAM",
    );
}

#[test]
fn a_closed_server_registers_nobody_and_one_with_tokens_only_their_bearers() {
    let server = TestServer::start_with(|config| config.registration = Registration::Closed);
    refused(request(&server, "POST", REGISTER, "", json!({})), 403, "M_FORBIDDEN");
    let validity = "/_matrix/client/v1/register/m.login.registration_token/validity?token=";
    refused(request(&server, "GET", validity, "", Value::Null), 403, "M_FORBIDDEN");

    let server = TestServer::start_with(|config| config.registration = Registration::Token);
    let token = server.homeserver().ensure_first_token().unwrap().unwrap();
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
        let signed = format!("{nonce}\0{name}\0pw\0{}", if admin { "admin" } else { "notadmin" });
        let mac: String =
            hmac::sign(&key, signed.as_bytes()).as_ref().iter().map(|b| format!("{b:02x}")).collect();
        let body = json!({ "nonce": nonce, "username": name, "password": "pw", "admin": admin, "mac": mac });
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
    assert_eq!(request(&server, "POST", LOGIN, "", password_login("alice", "pw")).0, 200);
}

#[test]
fn one_logs_in_by_name_or_full_id_and_with_the_right_password_only() {
    let server = TestServer::start();
    server.homeserver().register_user("alice", Some("open sesame")).unwrap();
    let login = |body: Value| request(&server, "POST", LOGIN, "", body);
    let (_, flows) = request(&server, "GET", LOGIN, "", Value::Null);
    assert_eq!(flows["flows"][0]["type"], "m.login.password");
    let id = format!("@alice:{}", server.name());
    for name in ["alice", &id] {
        assert_eq!(login(password_login(name, "open sesame")).0, 200, "{name}");
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
fn who_logs_out_is_out_and_tokens_are_asked_for() {
    let server = TestServer::start();
    let (alice, first) = server.homeserver().register_user("alice", Some("open sesame")).unwrap();
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
    server.homeserver().register_user("alice", Some("open sesame")).unwrap();
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
    let (_, mine) = server.homeserver().register_user("alice", Some("old")).unwrap();
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
    let (_, token) = server.homeserver().register_user("alice", Some("open sesame")).unwrap();
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
    let (_, token) = server.homeserver().register_user("alice", Some("open sesame")).unwrap();
    server.restart();
    assert_eq!(request(&server, "GET", WHOAMI, &token, Value::Null).0, 200);
    assert_eq!(request(&server, "POST", LOGIN, "", password_login("alice", "open sesame")).0, 200);
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
}

#[test]
fn errors_of_the_router_are_matrix_errors_with_cors() {
    let server = TestServer::start();
    refused(request(&server, "GET", "/_matrix/client/v3/nothing", "", Value::Null), 404, "M_UNRECOGNIZED");
    refused(request(&server, "GET", "/", "", Value::Null), 404, "M_UNRECOGNIZED");
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
        ("access-control-allow-headers", "X-Requested-With, Content-Type, Authorization, Date"),
    ] {
        assert_eq!(answer.headers()[name], value);
    }
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
