//! The page at `/` before those who mean no good: without an account, with an ordinary one, on another site.

use std::time::Duration;

use crate::common::browser::{Browser, Page};
use crate::common::client::{V3, knock};
use doorstep::TestServer;
use doorstep::internals::ROUTES;
use doorstep::testing::TestUser;
use serde_json::json;

/// An account with a password of its own name.
fn account(server: &TestServer, name: &str) -> TestUser {
    let made = server.homeserver().accounts().register_user(name, Some(name)).expect("an account");
    TestUser::new(server.url(), made.0.as_str(), &made.1)
}

/// What a browser is told of each page, whatever is on it.
#[track_caller]
fn is_strict(page: &Page) {
    let policy = page.header("content-security-policy");
    for part in [
        "default-src 'none'; style-src 'sha256-",
        "form-action 'self'",
        "frame-ancestors 'none'",
        "base-uri 'none'",
    ] {
        assert!(policy.contains(part), "{policy}");
    }
    assert!(!policy.contains("unsafe") && !policy.contains("script-src"), "{policy}");
    for (name, value) in [
        ("referrer-policy", "same-origin"),
        ("cache-control", "no-store"),
        ("x-content-type-options", "nosniff"),
        ("x-frame-options", "DENY"),
        ("access-control-allow-origin", ""),
    ] {
        assert_eq!(page.header(name), value, "{name}: {page:?}");
    }
    let body = page.text.split_once("</style>").map_or(page.text.as_str(), |(_, body)| body);
    for tag in body.split('<').skip(1).map(|rest| rest.split('>').next().unwrap_or_default()) {
        // Values are in double quotes; of what stands between them nothing is anybody's but ours.
        let ours: String = tag.split('"').step_by(2).collect();
        let name = ours.split_whitespace().next().unwrap_or_default();
        assert!(
            !["script", "iframe", "img", "svg", "object", "meta", "base"].contains(&name),
            "{tag}: {body}"
        );
        for word in ours.split_whitespace().skip(1) {
            assert!(!word.starts_with("on") && !word.starts_with("style"), "{tag}: {body}");
        }
        let leads: Vec<&str> = tag.split("href=\"").chain(tag.split("action=\"")).skip(1).collect();
        assert!(leads.iter().all(|to| !to.trim_start().starts_with("javascript:")), "{tag}");
    }
}

/// Every line of the table that is for a kind of people in a browser: method and path.
fn pages(who: &str) -> Vec<(&'static str, &'static str)> {
    let wanted = format!("{who}, in a browser");
    let of = ROUTES.iter().filter(|route| route.handler.who() == wanted);
    of.map(|route| (route.method.as_str(), route.path)).collect()
}

#[test]
fn what_is_for_administrators_is_for_nobody_else_and_what_is_for_users_for_no_stranger() {
    let server = TestServer::start();
    let _admin = account(&server, "admin");
    account(&server, "eve");
    let mut eve = Browser::logged_in(server.url(), "eve", "eve");
    let mut stranger = Browser::new(server.url());
    stranger.get("/");
    assert!(pages("an admin").len() > 5 && pages("a user").len() > 5);
    for (method, path) in pages("an admin").into_iter().chain(pages("a user")) {
        let page = match method {
            "GET" => stranger.get(path),
            _ => {
                stranger.get("/");
                stranger.submit(path, &[("confirmed", "yes"), ("user", "@eve"), ("do", "admin")])
            }
        };
        assert_eq!(page.status, 401, "{method} {path}: {page:?}");
        is_strict(&page);
    }
    for (method, path) in pages("an admin") {
        eve.get("/");
        let page = match method {
            "GET" => eve.get(path),
            _ => eve.submit(path, &[("confirmed", "yes"), ("user", "@eve"), ("do", "admin")]),
        };
        assert_eq!(page.status, 403, "{method} {path}: {page:?}");
        is_strict(&page);
        assert!(!page.text.contains("/page/accounts"), "who is no administrator is shown no way there");
    }
    let eves = format!("@eve:{}", server.name());
    let accounts = server.homeserver().store.read(|db| db.accounts()).unwrap();
    assert!(accounts.iter().any(|account| account.user_id.as_str() == eves && !account.admin));
}

#[test]
fn a_form_that_another_site_sends_does_nothing() {
    let server = TestServer::start();
    let alice = account(&server, "alice");
    let room = alice.create_room_with(json!({ "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    let bob = account(&server, "bob");
    assert_eq!(knock(&bob, &room, server.name()).0, 200);
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    let token = browser.get("/").field("form").unwrap().to_owned();
    let own = format!("http://{}", server.url().strip_prefix("http://").unwrap());
    let mut bobs = Browser::logged_in(server.url(), "bob", "bob");
    let of_bob = bobs.get("/").field("form").unwrap().to_owned();
    let of_stranger = Browser::new(server.url()).get("/").field("form").unwrap().to_owned();
    assert!(token != of_bob && token != of_stranger && of_bob != of_stranger);
    let accept = |browser: &mut Browser, token: &str, from: &[(&'static str, &str)]| {
        browser.headers = from.iter().map(|(name, value)| (*name, (*value).to_owned())).collect();
        let fields = [("form", token), ("room", room.as_str()), ("user", bob.id()), ("do", "accept")];
        browser.send("/page/knocks", &fields)
    };
    let elsewhere: &[&[(&str, &str)]] = &[
        &[("Sec-Fetch-Site", "cross-site")],
        &[("Sec-Fetch-Site", "same-site")],
        &[("Sec-Fetch-Site", "none")],
        &[("Sec-Fetch-Site", "cross-site"), ("Origin", &own)],
        &[("Origin", "https://evil.example")],
        &[("Origin", "http://127.0.0.1")],
        &[("Origin", "http://127.0.0.1:1")],
        &[("Origin", "")],
        // What a page says that hides from where it sends: ours does not.
        &[("Origin", "null")],
    ];
    for from in elsewhere {
        let page = accept(&mut browser, &token, from);
        assert!(page.status == 403 && page.text.contains("another site"), "{from:?}: {page:?}");
        is_strict(&page);
    }
    // From here, but without the token of this very session.
    for from in [("Sec-Fetch-Site", "same-origin"), ("Origin", own.as_str())] {
        for wrong in [
            "",
            "x",
            "é",
            &token[1..],
            of_bob.as_str(),
            of_stranger.as_str(),
            &browser.cookies["doorstep"].clone(),
        ] {
            let page = accept(&mut browser, wrong, &[from]);
            assert!(page.status == 403 && page.text.contains("earlier visit"), "{from:?} {wrong}: {page:?}");
            is_strict(&page);
            assert!(page.text.contains("<h1>"), "people are told so by a page: {page:?}");
        }
    }
    // A browser that sends neither is none of today's.
    let body = format!("form={token}&room={room}&user={}&do=accept", bob.id());
    let kind = ("Content-Type", "application/x-www-form-urlencoded".to_owned());
    browser.headers.clear();
    assert_eq!(browser.request("POST", "/page/knocks", std::slice::from_ref(&kind), &body).status, 403);
    // Nor is what is sent as something else a form.
    let same = ("Sec-Fetch-Site", "same-origin".to_owned());
    for other in ["text/plain", "application/json", "multipart/form-data; boundary=x"] {
        let kind = ("Content-Type", other.to_owned());
        assert_eq!(browser.request("POST", "/page/knocks", &[same.clone(), kind], &body).status, 400);
    }
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("knock"), "nothing of that was done");
    // Neither does an address by itself, nor one with the fields of a form.
    for path in ["/page/knocks", &format!("/page/knocks?{body}"), "/page/logout"] {
        assert_eq!(browser.get(path).status, 405);
    }
    assert_eq!(accept(&mut browser, &token, &[("Origin", &own)]).status, 303);
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("invite"));
    // Logging somebody in as somebody else is no less of a deed.
    let mut victim = Browser::new(server.url());
    victim.get("/");
    for evil in ["https://evil.example", "null"] {
        victim.headers = vec![("Origin", evil.to_owned())];
        victim.get("/");
        assert_eq!(victim.submit("/page/login", &[("user", "bob"), ("password", "bob")]).status, 403);
        assert!(!victim.cookies.contains_key("doorstep"), "{evil}");
    }
}

#[test]
fn no_spelling_of_its_address_gives_the_page_to_other_sites() {
    let server = TestServer::start();
    account(&server, "alice");
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    for path in [
        "/",
        "//",
        "/?a",
        "//?a",
        "///",
        "/page/sessions",
        "/page/sessions/",
        "//page/sessions",
        "/page//sessions",
        "/page/../",
        "/./",
        "/%2f",
        "/%70age/sessions",
        "/page/%73essions",
        "/page/x/../sessions",
        "/_matrix/static/client/login",
        "/_matrix/static/client/login/",
        "//_matrix/static/client/login/",
        "/_matrix//static/client/login/",
        "/_matrix/%73tatic/client/login/",
        "/_matrix/client/v3/auth/m.login.dummy/fallback/web",
        "/_matrix/client/r0/auth/m.login.dummy/fallback/web/",
        "/_matrix/client/v3//auth/m.login.dummy/fallback/web",
        "//_matrix/client/v3/auth/x/fallback/web",
        "/_matrix/client/v3/%61uth/x/fallback/web",
        "/_matrix/../page/sessions",
        "http://evil.example/page/sessions",
        "http://evil.example",
    ] {
        for method in ["GET", "HEAD", "OPTIONS"] {
            let page = browser.request(method, path, &[], "");
            let is_ours = page.header("content-type").starts_with("text/html");
            let is_shared = !page.header("access-control-allow-origin").is_empty();
            assert!(!(is_ours && is_shared), "{method} {path}: {page:?}");
            if is_ours && method == "GET" {
                is_strict(&page);
            }
        }
    }
}

#[test]
fn what_others_call_themselves_is_never_part_of_the_page() {
    const HOSTILE: &str = "</code><script>alert(1)</script><img src=x onerror=alert(1)>\"' style=\"x\u{202e}";
    let server = TestServer::start();
    let alice = account(&server, "alice");
    let eve = account(&server, "eve");
    let name = format!("{V3}/profile/{}/displayname", doorstep::testing::segment(eve.id()));
    eve.put(&name, json!({ "displayname": HOSTILE }));
    let room = alice.create_room_with(json!({ "name": HOSTILE, "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    let path = format!("{V3}/knock/{}?via={}", doorstep::testing::segment(&room), server.name());
    eve.post(&path, json!({ "reason": HOSTILE }));
    let theirs = eve.create_room_with(json!({ "name": HOSTILE, "preset": "private_chat" }));
    eve.post(&format!("{V3}/rooms/{theirs}/invite"), json!({ "user_id": alice.id(), "reason": HOSTILE }));
    let device = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" },
        "password": "alice", "initial_device_display_name": HOSTILE });
    alice.post(&format!("{V3}/login"), device);
    doorstep::log_tail::add(0, log::Level::Warn, HOSTILE);
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    for (method, path) in [("GET", "/")].into_iter().chain(pages("a user")).chain(pages("an admin")) {
        if method == "GET" {
            let page = browser.get(path);
            assert_eq!(page.status, 200, "{path}: {page:?}");
            is_strict(&page);
        }
    }
    let home = browser.get("/");
    assert!(home.text.matches("&lt;script&gt;alert(1)").count() >= 5, "{}", home.text);
    // What a form had is shown once more by the page that asks.
    let fields =
        [("room", room.as_str()), ("user", eve.id()), ("do", "refuse"), ("reason", HOSTILE), (HOSTILE, "x")];
    is_strict(&browser.submit("/page/knocks", &fields));
    let mut stranger = Browser::new(server.url());
    stranger.get("/");
    is_strict(&stranger.submit("/page/login", &[("user", HOSTILE), ("password", "x")]));
    for path in
        ["/?first=%22%3E%3Cscript%3Ealert(1)%3C/script%3E", "/?done=%3Cscript%3E", "/page/%3Cscript%3E"]
    {
        is_strict(&stranger.get(path));
        is_strict(&browser.get(path));
    }
}

#[test]
fn giant_and_broken_forms_are_refused_and_cost_nothing() {
    let server = TestServer::start();
    account(&server, "alice");
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    let token = browser.get("/").field("form").unwrap().to_owned();
    let own = [
        ("Content-Type", "application/x-www-form-urlencoded".to_owned()),
        ("Sec-Fetch-Site", "same-origin".to_owned()),
    ];
    for (body, status) in [
        (format!("form={token}&room={}", "x".repeat(20_000)), 413),
        (format!("form={token}&{}", "a=b&".repeat(3000)), 400),
        ("form=%".to_owned(), 400),
        ("form=%ff".to_owned(), 400),
        (String::new(), 403),
        ("&&&=&=".to_owned(), 403),
        (format!("form={token}&room=!&user=@&do=accept"), 400),
    ] {
        let page = browser.request("POST", "/page/knocks", &own, &body);
        assert_eq!(page.status, status, "{}", &body[..body.len().min(80)]);
    }
}

#[test]
fn who_is_locked_suspended_deactivated_or_a_guest_can_do_here_what_they_can_elsewhere() {
    let server = TestServer::start_with(|config| config.guests = true);
    let admin = account(&server, "admin");
    let bob = account(&server, "bob");
    let carol = account(&server, "carol");
    let room = bob.create_room_with(json!({ "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    assert_eq!(knock(&carol, &room, server.name()).0, 200);
    let mut browser = Browser::logged_in(server.url(), "bob", "bob");
    let set = |what: &str, field: &str, to: bool| {
        let path = format!("/_matrix/client/v1/admin/{what}/{}", bob.id());
        admin.put(&path, json!({ field: to }));
    };
    let accept = [("room", room.as_str()), ("user", carol.id()), ("do", "accept")];
    set("suspend", "suspended", true);
    assert!(browser.get("/").text.contains("Your account is suspended"));
    assert_eq!(browser.submit("/page/knocks", &accept).status, 403);
    assert_eq!(browser.get("/page/sessions").status, 200);
    let theirs = admin.create_room_with(json!({ "preset": "private_chat" }));
    admin.invite(&theirs, bob.id());
    browser.get("/");
    assert_eq!(browser.submit("/page/invites/accept", &[("room", &theirs)]).status, 403);
    browser.get("/");
    assert_eq!(browser.submit_surely("/page/invites/reject", &[("room", &theirs)]).status, 200);
    set("suspend", "suspended", false);

    browser.get("/");
    let before = browser.clone();
    set("lock", "locked", true);
    for (path, word) in [("/", "locked"), ("/page/sessions", "locked")] {
        let page = browser.get(path);
        assert!(page.status == 401 && page.text.contains(word), "{page:?}");
    }
    assert_eq!(before.clone().submit("/page/knocks", &accept).status, 401);
    let mut other = Browser::new(server.url());
    other.get("/");
    let page = other.submit("/page/login", &[("user", "bob"), ("password", "bob")]);
    assert!(page.status == 401 && page.text.contains("locked"), "{page:?}");
    // They can log out, and nothing else.
    browser.get("/");
    assert_eq!(browser.submit("/page/logout", &[]).status, 200);
    assert!(!browser.cookies.contains_key("doorstep"));
    set("lock", "locked", false);

    let mut browser = Browser::logged_in(server.url(), "bob", "bob");
    server.homeserver().deactivate(&doorstep::protocol::UserId::parse(bob.id()).unwrap(), false).unwrap();
    assert_eq!(browser.get("/page/sessions").status, 401);
    browser.get("/");
    assert_eq!(browser.submit("/page/login", &[("user", "bob"), ("password", "bob")]).status, 403);

    let guest = TestUser::new(server.url(), "", "");
    let guest = guest.post(&format!("{V3}/register?kind=guest"), json!({}));
    let mut browser = Browser::new(server.url());
    browser.cookies.insert("doorstep".to_owned(), guest["access_token"].as_str().unwrap().to_owned());
    assert!(browser.get("/").text.contains("Log in to"));
    assert_eq!(browser.get("/page/sessions").status, 403);
}

#[test]
fn logging_in_here_is_limited_as_it_is_elsewhere() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    account(&server, "alice");
    let mut browser = Browser::new(server.url());
    browser.headers.push(("X-Forwarded-For", "198.51.100.7".to_owned()));
    browser.get("/");
    let mut refused = None;
    for n in 0..30 {
        // Half of the tries are made by the API: they are counted together.
        let page = match n % 2 {
            0 => browser.submit("/page/login", &[("user", "alice"), ("password", "guess")]),
            _ => {
                let body = json!({ "type": "m.login.password", "password": "guess",
                    "identifier": { "type": "m.id.user", "user": "alice" } });
                browser.clone().request("POST", &format!("{V3}/login"), &[], &body.to_string())
            }
        };
        if page.status == 429 && page.header("content-type").starts_with("text/html") {
            refused = Some(page);
            break;
        }
        browser.get("/");
    }
    let refused = refused.expect("guesses without end");
    assert!(
        refused.text.contains("Too many") && refused.header("retry-after").parse::<u32>().is_ok(),
        "{refused:?}"
    );
    is_strict(&refused);
    server.advance(Duration::from_secs(1));
}

#[test]
fn over_https_the_cookie_is_for_this_host_alone() {
    let server = TestServer::start();
    account(&server, "alice");
    let mut browser = Browser::new(server.url());
    browser.headers.push(("X-Forwarded-Proto", "https".to_owned()));
    browser.get("/");
    let token = browser.shown.as_ref().unwrap().field("form").unwrap().to_owned();
    let page = browser.send("/page/login", &[("form", &token), ("user", "alice"), ("password", "alice")]);
    let cookie = page.header("set-cookie");
    for part in ["__Host-doorstep=", "; Path=/", "; HttpOnly", "; SameSite=Strict", "; Secure"] {
        assert!(cookie.contains(part), "{cookie}");
    }
    assert!(!cookie.contains("Domain"));
    assert_eq!(browser.get("/page/sessions").status, 200);
    // One that another host, or somebody on the way, could have set is not believed there.
    let value = browser.cookies.remove("__Host-doorstep").unwrap();
    browser.cookies.insert("doorstep".to_owned(), value);
    assert_eq!(browser.get("/page/sessions").status, 401);
}

#[test]
fn a_page_weighs_little_however_much_is_behind_it() {
    let server = TestServer::start();
    let alice = account(&server, "alice");
    let rooms: Vec<String> = (0..25)
        .map(|n| {
            alice.create_room_with(json!({ "name": format!("Room number {n} of many"), "initial_state": [
                { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }))
        })
        .collect();
    for (n, room) in rooms.iter().take(20).enumerate() {
        let user = server.user(&format!("visitor-number-{n}"));
        let path = format!("{V3}/knock/{}?via={}", doorstep::testing::segment(room), server.name());
        user.post(&path, json!({ "reason": "We met at the summer party, and you told me to knock here." }));
        let theirs = user.create_room_with(json!({ "name": "A room of theirs", "preset": "private_chat" }));
        user.invite(&theirs, alice.id());
    }
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    for (method, path) in [("GET", "/")].into_iter().chain(pages("a user")).chain(pages("an admin")) {
        if method == "GET" {
            let page = browser.get(path);
            assert!(page.status == 200 && page.text.len() <= 30_000, "{path}: {}", page.text.len());
        }
    }
    assert!(browser.get("/").text.contains("And 8 more"));
}
