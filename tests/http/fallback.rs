//! Pages that clients open for what they cannot do themselves: a stage of interactive authentication, and logging in.

use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use doorstep::TestServer;
use doorstep::config::Registration;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};

use crate::common::browser::{Browser, Page};
use crate::common::client::V3;

const REGISTER: &str = "/_matrix/client/v3/register";
const LOGIN: &str = "/_matrix/static/client/login/";

fn page_of(version: &str, stage: &str, session: &str) -> String {
    format!("/_matrix/client/{version}/auth/{stage}/fallback/web?session={}", segment(session))
}

fn nobody(server: &TestServer) -> TestUser {
    TestUser::new(server.url(), "(nobody)", "")
}

/// The session that a first request is answered with.
#[track_caller]
fn session(answer: (u16, Value)) -> String {
    assert_eq!(answer.0, 401, "{}", answer.1);
    answer.1["session"].as_str().expect("a session").to_owned()
}

/// What a browser is told of each, and that the one script that the page has is the one that it may run.
#[track_caller]
fn is_strict(page: &Page, has_script: bool) {
    let policy = page.header("content-security-policy");
    for part in ["default-src 'none'; style-src 'sha256-", "form-action 'self'", "frame-ancestors 'none'"] {
        assert!(policy.contains(part), "{policy}");
    }
    for (name, value) in [
        ("content-type", "text/html; charset=utf-8"),
        ("cache-control", "no-store"),
        ("x-frame-options", "DENY"),
        ("access-control-allow-origin", ""),
    ] {
        assert_eq!(page.header(name), value, "{name}: {page:?}");
    }
    let mut scripts = page.text.split("<script").skip(1);
    match scripts.next() {
        Some(rest) => {
            let script = rest.split("</script>").next().and_then(|rest| rest.strip_prefix('>'));
            let hash = STANDARD.encode(Sha256::digest(script.expect("a script without attributes")));
            assert!(policy.ends_with(&format!("; script-src 'sha256-{hash}'")), "{policy}");
        }
        None => assert!(!policy.contains("script-src"), "{policy}"),
    }
    assert_eq!((page.text.contains("<script"), scripts.next()), (has_script, None), "{}", page.text);
}

#[track_caller]
fn is_done(page: &Page) {
    assert_eq!(page.status, 200, "{page:?}");
    is_strict(page, true);
    let told = "if (window.onAuthDone) {\n    window.onAuthDone();\n} else if (window.opener && window.opener.postMessage) \
                {\n    window.opener.postMessage(\"authDone\", \"*\");\n}";
    assert!(page.text.contains(told), "{}", page.text);
}

#[track_caller]
fn is_form(page: &Page, status: u16) {
    assert!(page.status == status && page.text.contains("<form method=\"post\""), "{page:?}");
    is_strict(page, false);
}

#[test]
fn who_has_a_registration_token_registers_by_the_page_alone() {
    let server = TestServer::start_with(|config| config.registration = Registration::Token);
    server.homeserver().accounts().add_registration_token("let-me-in", Some(2), None).expect("a token");
    let client = nobody(&server);
    for (name, version) in [("alice", "v3"), ("bob", "r0")] {
        let wanted = json!({ "username": name, "password": "correct horse", "device_id": "PHONE" });
        let id = session(client.request("POST", REGISTER, Some(wanted)));
        let again = || client.request("POST", REGISTER, Some(json!({ "auth": { "session": id } })));
        let path = page_of(version, "m.login.registration_token", &id);
        let mut browser = Browser::new(server.url());
        is_form(&browser.get(&path), 200);
        for wrong in ["wrong", ""] {
            let page = browser.submit(&path, &[("token", wrong)]);
            is_form(&page, 401);
            assert!(page.text.contains("not valid"), "{}", page.text);
        }
        assert_eq!(again().0, 401);
        is_done(&browser.submit(&path, &[("token", " let-me-in ")]));
        is_done(&browser.get(&path));
        let (status, made) = again();
        assert_eq!((status, &made["device_id"]), (200, &json!("PHONE")), "{made}");
        assert_eq!(made["user_id"], format!("@{name}:{}", server.name()));
        // It is spent.
        let page = browser.get(&path);
        assert_eq!(page.status, 404);
        is_strict(&page, false);
    }
    assert!(!server.homeserver().accounts().registration_token_is_valid("let-me-in").expect("asked"));
}

#[test]
fn nothing_is_asked_for_but_a_click_where_registration_is_open() {
    let server = TestServer::start();
    let client = nobody(&server);
    let id = session(client.request(
        "POST",
        REGISTER,
        Some(json!({ "username": "eve", "password": "a good one" })),
    ));
    let path = page_of("v3", "m.login.dummy", &id);
    let mut browser = Browser::new(server.url());
    is_form(&browser.get(&path), 200);
    let again = || client.request("POST", REGISTER, Some(json!({ "auth": { "session": id } }))).0;
    assert_eq!(again(), 401, "looking at it does nothing");
    is_done(&browser.submit(&path, &[]));
    assert_eq!(again(), 200);
}

#[test]
fn a_stage_can_be_completed_for_half_an_hour_whatever_the_wall_clock_is_set_to() {
    const HOUR_MS: i64 = 3_600_000;
    let server = TestServer::start();
    let client = nobody(&server);
    let begin = |name: &str| {
        let wanted = json!({ "username": name, "password": "a good one" });
        let id = session(client.request("POST", REGISTER, Some(wanted)));
        (page_of("v3", "m.login.dummy", &id), id)
    };
    let mut browser = Browser::new(server.url());
    let early = [("alice", HOUR_MS), ("bob", -HOUR_MS)].map(|(name, wrong_by)| (name, begin(name), wrong_by));
    for (name, (path, id), wrong_by) in early {
        server.set_clock_wrong_by(wrong_by);
        let (late, _) = begin("eve");
        is_form(&browser.get(&late), 200);
        is_form(&browser.get(&path), 200);
        is_done(&browser.submit(&path, &[]));
        assert_eq!(
            client.request("POST", REGISTER, Some(json!({ "auth": { "session": id } }))).0,
            200,
            "{name}"
        );
    }
    let (path, _) = begin("eve");
    server.advance(Duration::from_secs(29 * 60));
    is_form(&browser.get(&path), 200);
    server.advance(Duration::from_secs(2 * 60));
    assert_eq!(browser.get(&path).status, 404, "its time is over, also by a clock that was set back");
}

#[test]
fn who_is_logged_in_proves_by_their_password_on_the_page_that_it_is_them() {
    let server = TestServer::start();
    let [alice, bob] = ["alice", "bob"].map(|name| {
        let password = format!("the password of {name}");
        let made = server.homeserver().accounts().register_user(name, Some(&password)).expect("an account");
        TestUser::new(server.url(), made.0.as_str(), &made.1)
    });
    let devices = alice.get(&format!("{V3}/devices"));
    let device = devices["devices"][0]["device_id"].as_str().expect("a device").to_owned();
    let path = format!("{V3}/delete_devices");
    let id = session(alice.request("POST", &path, Some(json!({ "devices": [device] }))));
    let page = page_of("v3", "m.login.password", &id);
    // As from a client on another site, in a browser that is logged in to the page: its cookie goes with the form alone.
    let mut browser = Browser::logged_in(server.url(), "bob", "the password of bob");
    let cookies = std::mem::take(&mut browser.cookies);
    let shown = browser.get(&page);
    browser.cookies.extend(cookies.into_iter().filter(|(name, _)| name == "doorstep"));
    is_form(&shown, 200);
    assert!(shown.text.contains(alice.id()) && shown.text.contains("delete devices"), "{}", shown.text);
    assert!(!shown.text.contains("name=\"user\""), "whose password it is, is known: {}", shown.text);
    is_form(&browser.submit(&page, &[("password", "the password of bob")]), 403);
    is_form(&browser.submit(&page, &[("password", "the password of bob"), ("user", "bob")]), 403);
    let again = || alice.request("POST", &path, Some(json!({ "auth": { "session": id } }))).0;
    assert_eq!(again(), 401);
    is_done(&browser.submit(&page, &[("password", "the password of alice")]));
    // The session is hers, for this one thing.
    assert_eq!(bob.request("POST", &path, Some(json!({ "devices": [], "auth": { "session": id } }))).0, 401);
    assert_eq!(again(), 200);

    // Who has forgotten nothing but their token says who they are.
    let path = format!("{V3}/account/password");
    let id = session(nobody(&server).request("POST", &path, Some(json!({ "new_password": "another one" }))));
    let page = page_of("v3", "m.login.password", &id);
    assert!(browser.get(&page).text.contains("name=\"user\""));
    is_done(&browser.submit(&page, &[("user", "bob"), ("password", "the password of bob")]));
    let done = nobody(&server).request("POST", &path, Some(json!({ "auth": { "session": id } })));
    assert_eq!(done.0, 200, "{}", done.1);
    assert_eq!(Browser::logged_in(server.url(), "bob", "another one").cookies.len(), 2);
}

#[test]
fn what_was_proved_for_one_device_on_the_page_deletes_no_other() {
    let server = TestServer::start();
    let made =
        server.homeserver().accounts().register_user("alice", Some("correct horse")).expect("an account");
    let alice = TestUser::new(server.url(), made.0.as_str(), &made.1);
    for device in ["PHONE", "TABLET", "</code>"] {
        server.device_of(&alice, device);
    }
    let is_there = |device: &str| alice.request("GET", &format!("{V3}/devices/{device}"), None).0 == 200;
    let delete = |device: &str, session: Option<&str>| {
        let body = session.map_or_else(|| json!({}), |id| json!({ "auth": { "session": id } }));
        alice.request("DELETE", &format!("{V3}/devices/{device}"), Some(body))
    };
    let many = |devices: Value, session: &str| {
        let body = json!({ "devices": devices, "auth": { "session": session } });
        alice.request("POST", &format!("{V3}/delete_devices"), Some(body))
    };
    let mut browser = Browser::new(server.url());
    let id = session(delete("PHONE", None));
    let page = page_of("v3", "m.login.password", &id);
    let shown = browser.get(&page);
    assert!(shown.text.contains("<code><bdi>PHONE</bdi></code>"), "it says which device: {}", shown.text);
    // What somebody was shown there is what they prove it for, whatever a client asks for meanwhile.
    let other = session(delete("TABLET", Some(&id)));
    assert_ne!(other, id);
    is_done(&browser.submit(&page, &[("password", "correct horse")]));
    for (status, answer) in [
        delete("TABLET", Some(&id)),
        many(json!(["TABLET"]), &id),
        many(json!(["PHONE", "TABLET"]), &id),
        many(json!([]), &id),
    ] {
        assert_eq!((status, answer.get("completed")), (401, None), "{answer}");
        assert_ne!(session((status, answer)), id, "it begins anew");
    }
    assert!(is_there("PHONE") && is_there("TABLET"), "nothing was deleted");
    assert_eq!(delete("PHONE", Some(&id)), (200, json!({})));
    assert!(!is_there("PHONE") && is_there("TABLET"));
    assert_eq!(delete("PHONE", Some(&id)), (200, json!({})), "a lost answer is given again");
    let hostile = segment("</code>");
    let id = session(delete(&hostile, None));
    let shown = browser.get(&page_of("v3", "m.login.password", &id)).text;
    assert!(shown.contains("<code><bdi>&lt;/code&gt;</bdi></code>"), "{shown}");

    // Of the end of an account, whether the messages end with it.
    let path = format!("{V3}/account/deactivate");
    let id = session(alice.request("POST", &path, Some(json!({}))));
    is_done(&password_given(&server, &page_of("v3", "m.login.password", &id)));
    let erase = |erase: bool| {
        alice.request("POST", &path, Some(json!({ "erase": erase, "auth": { "session": id } })))
    };
    assert_ne!(session(erase(true)), id);
    assert_eq!(alice.request("POST", &path, Some(json!({ "auth": { "session": id } }))).0, 200);
}

/// What the password comes to on this page, in a browser of its own.
fn password_given(server: &TestServer, page: &str) -> Page {
    let mut browser = Browser::new(server.url());
    is_form(&browser.get(page), 200);
    browser.submit(page, &[("password", "correct horse")])
}

#[test]
fn a_password_that_was_refused_on_the_way_may_be_another_and_one_that_was_proved_for_may_not() {
    let server = TestServer::start();
    server.homeserver().accounts().register_user("alice", Some("correct horse")).expect("an account");
    let path = format!("{V3}/account/password");
    let change = |new: &str, id: Option<&str>| {
        let mut body = json!({ "new_password": new });
        if let Some(id) = id {
            body["auth"] = json!({ "session": id });
        }
        nobody(&server).request("POST", &path, Some(body))
    };
    let proved = |new: &str| {
        let id = session(change(new, None));
        let page = page_of("v3", "m.login.password", &id);
        let mut browser = Browser::new(server.url());
        browser.get(&page);
        is_done(&browser.submit(&page, &[("user", "alice"), ("password", "correct horse")]));
        id
    };
    let id = proved("of alice");
    assert_ne!(session(change("of mallory", Some(&id))), id);
    let id = proved("");
    let (status, answer) = change("", Some(&id));
    assert_eq!((status, &answer["errcode"]), (400, &json!("M_WEAK_PASSWORD")), "{answer}");
    assert_eq!(change("a better one", Some(&id)).0, 200);
}

#[test]
fn what_no_session_asks_for_is_a_page_that_says_so() {
    const HOSTILE: &str = "\"><script>alert(1)</script>";
    let server = TestServer::start();
    let id = session(nobody(&server).request(
        "POST",
        REGISTER,
        Some(json!({ "username": "eve", "password": "a good one" })),
    ));
    let mut browser = Browser::new(server.url());
    browser.get("/");
    let hostile = segment(HOSTILE);
    for path in [
        page_of("v3", "m.login.dummy", "none"),
        page_of("v3", "m.login.dummy", HOSTILE),
        page_of("v3", "m.login.password", &id),
        page_of("v3", "m.login.sso", &id),
        page_of("v3", &hostile, &id),
        "/_matrix/client/v3/auth/m.login.dummy/fallback/web".to_owned(),
        "/_matrix/client/v3/auth/m.login.dummy/fallback/web?session=".to_owned(),
    ] {
        let page = browser.get(&path);
        assert!(page.status == 404 && !page.text.contains("alert(1)</script>"), "{path}: {page:?}");
        is_strict(&page, false);
        browser.get(LOGIN);
        let page = browser.submit(&path, &[("token", HOSTILE), ("password", HOSTILE)]);
        assert!(page.status == 404 && !page.text.contains("alert(1)</script>"), "{path}: {page:?}");
        is_strict(&page, false);
    }
    // Another site's form completes nothing, nor does one without the token of this very browser.
    let path = page_of("v3", "m.login.dummy", &id);
    browser.get(&path);
    assert_eq!(browser.send(&path, &[("form", "x")]).status, 403);
    browser.get(&path);
    browser.headers = vec![("Origin", "https://evil.example".to_owned())];
    assert_eq!(browser.submit(&path, &[]).status, 403);
    let again = nobody(&server).request("POST", REGISTER, Some(json!({ "auth": { "session": id } })));
    assert_eq!(again.0, 401);
}

#[test]
fn a_client_logs_in_by_the_page_with_what_it_says_of_its_device() {
    let server = TestServer::start();
    server.homeserver().accounts().register_user("alice", Some("correct horse")).expect("an account");
    let path = format!("{LOGIN}?device_id=PHONE&initial_device_display_name=%3C%2Fdiv%3E&refresh_token=true");
    let mut browser = Browser::new(server.url());
    is_form(&browser.get(&path), 200);
    for (user, password) in [("alice", "wrong"), ("nobody", "correct horse"), ("", ""), ("<b>", "</div>")] {
        is_form(&browser.submit(&path, &[("user", user), ("password", password)]), 403);
    }
    let page = browser.submit(&path, &[("user", "Alice"), ("password", "correct horse")]);
    assert_eq!(page.status, 200, "{page:?}");
    is_strict(&page, true);
    assert!(page.text.contains("window.matrixLogin.onLogin(JSON.parse("), "{}", page.text);
    let (_, response) = page.text.split_once("<div id=\"response\" hidden>").expect("the response");
    let response = response.split("</div>").next().unwrap_or_default().replace("&quot;", "\"");
    let response: Value = serde_json::from_str(&response).expect("JSON");
    assert_eq!((&response["device_id"], response["refresh_token"].is_string()), (&json!("PHONE"), true));
    let token = response["access_token"].as_str().expect("a token");
    let alice = TestUser::new(server.url(), response["user_id"].as_str().expect("who"), token);
    assert_eq!(alice.get(&format!("{V3}/devices/PHONE"))["display_name"], "</div>");
    assert!(
        !page.text.contains("doorstep=") && !browser.cookies.contains_key("doorstep"),
        "no session of the page"
    );
}

#[test]
fn guesses_on_these_pages_are_counted_as_elsewhere() {
    let server = TestServer::start_with(|config| {
        (config.registration, config.rate_limits) = (Registration::Token, true);
    });
    let id = session(nobody(&server).request(
        "POST",
        REGISTER,
        Some(json!({ "username": "eve", "password": "a good one" })),
    ));
    for (path, field) in
        [(page_of("v3", "m.login.registration_token", &id), "token"), (LOGIN.to_owned(), "password")]
    {
        let mut browser = Browser::new(server.url());
        browser.get(&path);
        let form = browser.shown.as_ref().and_then(|page| page.field("form")).expect("a form").to_owned();
        let mut guess =
            || browser.send(&path, &[("form", form.as_str()), ("user", "eve"), (field, "a guess")]);
        let refused = (0..200).map(|_| guess()).find(|page| page.status == 429);
        let refused = refused.unwrap_or_else(|| panic!("{path} takes any number of guesses"));
        assert!(!refused.header("retry-after").is_empty(), "{refused:?}");
        is_strict(&refused, false);
    }
}
