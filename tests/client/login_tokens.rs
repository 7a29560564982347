//! Devices that let another log in: `POST /login/get_token`, and `m.login.token`.

use crate::common::client::V3;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const GET_TOKEN: &str = "/_matrix/client/v1/login/get_token";

fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

fn nobody(server: &TestServer) -> TestUser {
    TestUser::new(server.url(), "", "")
}

fn log_in(server: &TestServer, body: &Value) -> (u16, Value) {
    nobody(server).request("POST", &format!("{V3}/login"), Some(body.clone()))
}

fn by_token(server: &TestServer, token: &str) -> (u16, Value) {
    log_in(server, &json!({ "type": "m.login.token", "token": token }))
}

/// A user with a password.
fn alice(server: &TestServer) -> TestUser {
    let (id, token) =
        server.homeserver().accounts().register_user("alice", Some("secret")).expect("an account");
    TestUser::new(server.url(), id.as_str(), &token)
}

fn password(session: Option<&Value>) -> Value {
    let mut auth = json!({ "type": "m.login.password", "password": "secret",
        "identifier": { "type": "m.id.user", "user": "alice" } });
    if let Some(session) = session {
        auth["session"] = session.clone();
    }
    auth
}

/// Asks for a token and proves, when asked, whose it is.
fn get_token(user: &TestUser) -> Value {
    let (status, ask) = user.request("POST", GET_TOKEN, None);
    assert_eq!((status, &ask["flows"]), (401, &json!([{ "stages": ["m.login.password"] }])), "{ask}");
    let auth = json!({ "auth": password(Some(&ask["session"])) });
    let (status, answer) = user.request("POST", GET_TOKEN, Some(auth));
    assert_eq!(status, 200, "{answer}");
    answer
}

#[test]
fn who_is_logged_in_lets_one_more_device_log_in_by_proving_it_again() {
    let server = TestServer::start();
    let alice = alice(&server);
    let (_, flows) = nobody(&server).request("GET", &format!("{V3}/login"), None);
    let offered = json!({ "type": "m.login.token", "get_login_token": true });
    assert!(flows["flows"].as_array().unwrap().contains(&offered), "{flows}");
    let capabilities = alice.get(&format!("{V3}/capabilities"));
    assert_eq!(capabilities["capabilities"]["m.get_login_token"], json!({ "enabled": true }));

    let given = get_token(&alice);
    assert_eq!(given["expires_in_ms"], 120_000);
    let token = given["login_token"].as_str().expect("a token");
    let body = json!({ "type": "m.login.token", "token": token, "device_id": "TABLET",
        "initial_device_display_name": "my tablet", "refresh_token": true });
    let (status, login) = log_in(&server, &body);
    assert_eq!(status, 200, "{login}");
    assert_eq!((&login["user_id"], &login["device_id"]), (&json!(alice.id()), &json!("TABLET")));
    assert!(login["refresh_token"].is_string() && login["expires_in_ms"].is_i64(), "{login}");
    let tablet = TestUser::new(server.url(), alice.id(), login["access_token"].as_str().unwrap());
    assert_eq!(tablet.get(&format!("{V3}/devices/TABLET"))["display_name"], "my tablet");
    alice.get(&format!("{V3}/account/whoami"));
    refused(log_in(&server, &body), 403, "M_FORBIDDEN");

    // The one proof was for the one token: for another one it is asked again.
    let (status, ask) = alice.request("POST", GET_TOKEN, Some(json!({})));
    assert_eq!((status, ask["session"].is_string()), (401, true), "{ask}");
    assert_ne!(get_token(&alice)["login_token"], given["login_token"]);
}

#[test]
fn what_is_no_good_login_token_logs_nobody_in() {
    let server = TestServer::start();
    let alice = alice(&server);
    refused(by_token(&server, "made up"), 403, "M_FORBIDDEN");
    refused(by_token(&server, ""), 403, "M_FORBIDDEN");
    refused(log_in(&server, &json!({ "type": "m.login.token" })), 400, "M_MISSING_PARAM");
    refused(log_in(&server, &json!({ "type": "m.login.token", "token": 7 })), 400, "M_BAD_JSON");
    let mut wrong = password(None);
    wrong["password"] = json!("wrong");
    let wrong = json!({ "auth": wrong });
    refused(alice.request("POST", GET_TOKEN, Some(wrong)), 401, "M_FORBIDDEN");
    refused(nobody(&server).request("POST", GET_TOKEN, Some(json!({}))), 401, "M_MISSING_TOKEN");

    let late = get_token(&alice)["login_token"].as_str().unwrap().to_owned();
    let out = get_token(&alice)["login_token"].as_str().unwrap().to_owned();
    assert_eq!(alice.request("POST", &format!("{V3}/logout"), Some(json!({}))).0, 200);
    for token in [late, out] {
        refused(by_token(&server, &token), 403, "M_FORBIDDEN");
    }
}

#[test]
fn who_may_not_speak_or_has_no_name_lets_no_other_device_in() {
    let server = TestServer::start_with(|config| config.guests = true);
    let admin = server.user("admin");
    let alice = alice(&server);
    let path = format!("/_matrix/client/v1/admin/suspend/{}", segment(alice.id()));
    assert_eq!(admin.request("PUT", &path, Some(json!({ "suspended": true }))).0, 200);
    let body = || Some(json!({ "auth": password(None) }));
    refused(alice.request("POST", GET_TOKEN, body()), 403, "M_USER_SUSPENDED");
    let capabilities = alice.get(&format!("{V3}/capabilities"));
    assert_eq!(capabilities["capabilities"]["m.get_login_token"], json!({ "enabled": false }));
    let path = format!("/_matrix/client/v1/admin/lock/{}", segment(alice.id()));
    assert_eq!(admin.request("PUT", &path, Some(json!({ "locked": true }))).0, 200);
    refused(alice.request("POST", GET_TOKEN, body()), 401, "M_USER_LOCKED");

    let (status, guest) =
        nobody(&server).request("POST", &format!("{V3}/register?kind=guest"), Some(json!({})));
    assert_eq!(status, 200, "{guest}");
    let guest = TestUser::new(server.url(), "", guest["access_token"].as_str().unwrap());
    refused(guest.request("POST", GET_TOKEN, Some(json!({}))), 403, "M_GUEST_ACCESS_FORBIDDEN");
}
