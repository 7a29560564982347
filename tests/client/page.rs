//! The page at `/`, as a browser without scripts sees it: the first account, sessions, the door.

use std::time::Duration;

use crate::common::browser::{Browser, Page};
use crate::common::client::{V3, knock};
use crate::common::media;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::config::Registration;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// An account with a password of its own name.
fn account(server: &TestServer, name: &str) -> TestUser {
    let made = server.homeserver().accounts().register_user(name, Some(name)).expect("an account");
    TestUser::new(server.url(), made.0.as_str(), &made.1)
}

fn devices(user: &TestUser) -> Vec<Value> {
    user.get(&format!("{V3}/devices"))["devices"].as_array().expect("devices").clone()
}

fn knock_room(owner: &TestUser, name: &str) -> String {
    owner.create_room_with(json!({ "room_version": "11", "name": name, "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }))
}

#[track_caller]
fn shows(page: &Page, status: u16, words: &[&str]) {
    assert_eq!(page.status, status, "{page:?}");
    for word in words {
        assert!(page.text.contains(word), "no {word:?} in {}", page.text);
    }
}

#[test]
fn the_link_of_the_first_start_makes_the_first_account_and_no_second_one() {
    for registration in [Registration::Token, Registration::Closed, Registration::Open] {
        let server = TestServer::start_with(|config| config.registration = registration);
        let old = server.homeserver().accounts().ensure_first_token().unwrap().unwrap();
        let token = server.homeserver().accounts().ensure_first_token().unwrap().unwrap();
        let link = format!("/?first={token}");
        let mut browser = Browser::new(server.url());
        let (mut late, mut stranger) = (browser.clone(), browser.clone());
        let form = browser.get(&link);
        shows(&form, 200, &["Make the first account", "action=\"/page/first\""]);
        assert_eq!(form.field("first"), Some(token.as_str()));
        shows(&stranger.get("/"), 200, &["The server prints a link"]);
        late.get(&link);

        let filled = |name: &'static str, first: &str, again: &'static str| {
            [("user", name), ("new", "sesame"), ("again", again)]
                .map(|(n, v)| (n, v.to_owned()))
                .into_iter()
                .chain([("first", first.to_owned())])
                .collect::<Vec<_>>()
        };
        let submit = |browser: &mut Browser, fields: Vec<(&'static str, String)>| {
            let fields: Vec<(&str, &str)> = fields.iter().map(|(n, v)| (*n, v.as_str())).collect();
            browser.submit("/page/first", &fields)
        };
        // Neither the link of an earlier start nor one that was made up is good.
        for wrong in [old.as_str(), "", "made-up"] {
            shows(&submit(&mut stranger, filled("eve", wrong, "sesame")), 403, &["not good any more"]);
        }
        shows(&submit(&mut browser, filled("alice", &token, "other")), 400, &["not the same"]);
        shows(&submit(&mut browser, filled("not a name", &token, "sesame")), 400, &["letters a to z"]);
        let home = submit(&mut browser, filled("alice", &token, "sesame"));
        shows(
            &home,
            200,
            &["Welcome", "@alice:", "Open a client", "app.element.io/#/login?hs_url=http%3A%2F%2F"],
        );
        assert!(!home.text.contains(&token));
        let alice = server.homeserver().store.read(|db| db.accounts()).unwrap().remove(0);
        assert!(alice.admin && alice.user_id.localpart() == "alice");
        // Who had the link as well comes too late.
        shows(&submit(&mut late, filled("eve", &token, "sesame")), 403, &["not good any more"]);
        shows(&late.get(&link), 200, &["Log in to"]);
        assert_eq!(server.homeserver().store.read(|db| db.accounts()).unwrap().len(), 1);
        assert_eq!(server.homeserver().accounts().ensure_first_token().unwrap(), None);
    }
}

#[test]
fn somebody_who_registers_first_makes_the_link_worthless() {
    let server = TestServer::start();
    let token = server.homeserver().accounts().ensure_first_token().unwrap().unwrap();
    let mut browser = Browser::new(server.url());
    browser.get(&format!("/?first={token}"));
    account(&server, "first");
    let fields = [("user", "second"), ("new", "x"), ("again", "x"), ("first", token.as_str())];
    shows(&browser.submit("/page/first", &fields), 403, &["not good any more"]);
}

#[test]
fn a_session_of_the_page_is_a_device_and_its_cookie_ends_with_it() {
    let server = TestServer::start();
    let alice = account(&server, "alice");
    let mut browser = Browser::new(server.url());
    browser.get("/");
    for (name, password) in
        [("alice", "wrong"), ("nobody", "alice"), ("", ""), ("@alice:elsewhere", "alice"), ("é\0", "alice")]
    {
        let page = browser.submit("/page/login", &[("user", name), ("password", password)]);
        shows(&page, 403, &["Wrong user name or password", "role=\"alert\""]);
        assert!(!page.text.contains(&format!("value=\"{password}\"")) || password.is_empty());
    }
    for name in ["alice", "Alice", alice.id()] {
        let home = Browser::logged_in(server.url(), name, "alice").get("/");
        shows(&home, 200, &["At the door", alice.id()]);
    }
    assert_eq!(devices(&alice).len(), 4);
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    let stolen = browser.clone();
    let token = browser.cookies["doorstep"].clone();
    let as_client = TestUser::new(server.url(), alice.id(), &token);
    let id = as_client.get(&format!("{V3}/account/whoami"))["device_id"].as_str().unwrap().to_owned();
    assert!(
        devices(&alice)
            .iter()
            .any(|d| d["device_id"] == id.as_str() && d["display_name"] == "Doorstep in a browser")
    );
    shows(&browser.submit("/page/logout", &[]), 200, &["You are logged out", "Log in to"]);
    assert!(!browser.cookies.contains_key("doorstep"));
    assert!(!devices(&alice).iter().any(|d| d["device_id"] == id.as_str()));
    // What was stolen while it was good, what was made up, and what is another's is nobody's session.
    let mut thief = stolen.clone();
    shows(&thief.get("/page/sessions"), 401, &["session has ended"]);
    shows(&thief.get("/"), 200, &["session has ended", "Log in to"]);
    for forged in ["made-up", "0", "a b", "x".repeat(4000).as_str(), "\u{e9}", "' OR 1=1 --"] {
        thief.cookies.insert("doorstep".to_owned(), forged.to_owned());
        shows(&thief.get("/page/sessions"), 401, &["Please log in"]);
    }
}

#[test]
fn an_expired_session_is_taken_up_again_on_the_same_device_and_abandoned_ones_go() {
    let server = TestServer::start();
    let alice = account(&server, "alice");
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    let ids = |user: &TestUser| -> Vec<String> {
        devices(user).iter().map(|d| d["device_id"].as_str().unwrap().to_owned()).collect()
    };
    let before = ids(&alice);
    assert_eq!(before.len(), 2);
    server.advance(Duration::from_secs(23 * 3600));
    shows(&browser.get("/page/sessions"), 200, &["Your sessions"]);
    server.advance(Duration::from_secs(2 * 3600));
    shows(&browser.get("/page/sessions"), 401, &["session has ended"]);
    shows(&browser.get("/"), 200, &["Your session has ended"]);
    shows(&browser.submit("/page/login", &[("user", "alice"), ("password", "alice")]), 200, &["At the door"]);
    assert_eq!(ids(&alice), before, "the same device");
    // Somebody else in the same browser gets a device of their own.
    let bob = account(&server, "bob");
    server.advance(Duration::from_secs(25 * 3600));
    browser.get("/");
    browser.submit("/page/login", &[("user", "bob"), ("password", "bob")]);
    assert_eq!(ids(&alice), before);
    assert_eq!(ids(&bob).len(), 2);
    // A browser that never came back is forgotten at the next login after a month; other devices stay.
    server.advance(Duration::from_secs(31 * 24 * 3600));
    let _other = Browser::logged_in(server.url(), "alice", "alice");
    let after = ids(&alice);
    assert_eq!(after.iter().filter(|id| before.contains(id)).count(), 1, "{before:?} {after:?}");
    assert_eq!(after.len(), 2);
}

#[test]
fn knocks_are_answered_with_the_reason_of_a_refusal_told_to_who_knocked() {
    let (here, there) = TestServer::pair();
    let alice = account(&here, "alice");
    let (bob, eve) = (there.user("bob"), there.user("eve"));
    let room = knock_room(&alice, "The Workshop");
    for (user, reason) in [(&bob, "I bring cake"), (&eve, "let me in")] {
        let path = format!("{V3}/knock/{}?via={}", segment(&room), segment(here.name()));
        user.post(&path, json!({ "reason": reason }));
    }
    // Whoever has seen their knock is told how it ends.
    eve.wait_for_room("knock", &room);
    let mut browser = Browser::logged_in(here.url(), "alice", "alice");
    shows(
        &browser.get("/"),
        200,
        &["The Workshop", bob.id(), "I bring cake", "takes knocks", "2 waiting", "just now"],
    );
    let of = |user: &TestUser| [("room", room.clone()), ("user", user.id().to_owned())];
    let with = |user: &TestUser, more: &[(&'static str, &'static str)]| -> Vec<(&'static str, String)> {
        of(user).into_iter().chain(more.iter().map(|(n, v)| (*n, (*v).to_owned()))).collect()
    };
    fn lent<'f>(fields: &'f [(&'static str, String)]) -> Vec<(&'static str, &'f str)> {
        fields.iter().map(|(n, v)| (*n, v.as_str())).collect()
    }
    let accept = with(&bob, &[("do", "accept")]);
    shows(&browser.submit("/page/knocks", &lent(&accept)), 200, &["They are invited"]);
    bob.wait_for_room("invite", &room);
    let refuse = with(&eve, &[("do", "refuse"), ("reason", "Not today")]);
    let page = browser.submit("/page/knocks", &lent(&refuse));
    shows(&page, 200, &["Refuse this knock?", "Not today", eve.id()]);
    assert_eq!(alice.membership_of(&room, eve.id()).as_deref(), Some("knock"), "asked first");
    shows(&browser.submit_surely("/page/knocks", &lent(&refuse)), 200, &["They are told", "Nobody waits"]);
    eve.sync_until("the refusal", |sync| {
        let events = sync["rooms"]["leave"][&room]["timeline"]["events"].as_array()?;
        events.iter().find(|event| event["content"]["reason"] == "Not today").cloned()
    });
    // Who does not wait any more cannot be answered.
    for fields in [accept, refuse] {
        let mut fields = lent(&fields);
        fields.push(("confirmed", "yes"));
        let page = browser.submit("/page/knocks", &fields);
        assert!(matches!(page.status, 403 | 404), "{page:?}");
        browser.get("/");
    }
}

#[test]
fn who_may_not_let_anybody_in_neither_sees_nor_answers_knocks() {
    let server = TestServer::start();
    let (alice, bob) = (account(&server, "alice"), account(&server, "bob"));
    let (carol, eve) = (account(&server, "carol"), account(&server, "eve"));
    let room = knock_room(&alice, "Quiet");
    alice.invite(&room, bob.id());
    bob.join(&room);
    let levels = alice.state(&room, "m.room.power_levels", "").unwrap();
    let mut levels = levels;
    levels["invite"] = json!(50);
    alice.set_state(&room, "m.room.power_levels", "", levels);
    assert_eq!(knock(&carol, &room, server.name()).0, 200);
    for name in ["bob", "eve", "carol"] {
        let mut browser = Browser::logged_in(server.url(), name, name);
        let home = browser.get("/");
        assert!(!home.text.contains("Quiet") && home.text.contains("Nobody waits"), "{name}: {}", home.text);
        for answer in ["accept", "refuse"] {
            let fields =
                [("room", room.as_str()), ("user", carol.id()), ("do", answer), ("confirmed", "yes")];
            let page = browser.submit("/page/knocks", &fields);
            assert_eq!(page.status, 403, "{name} {answer}: {page:?}");
            browser.get("/");
        }
    }
    assert_eq!(alice.membership_of(&room, carol.id()).as_deref(), Some("knock"));
    drop(eve);
}

#[test]
fn invites_are_accepted_and_rejected_here_and_from_elsewhere() {
    let (here, there) = TestServer::pair();
    let (alice, bob, carol) = (account(&here, "alice"), there.user("bob"), account(&here, "carol"));
    let rooms: Vec<String> = ["North", "South"]
        .iter()
        .map(|name| bob.create_room_with(json!({ "name": name, "preset": "private_chat" })))
        .chain([carol.create_room_with(json!({ "name": "West", "preset": "private_chat" }))])
        .collect();
    bob.invite(&rooms[0], alice.id());
    bob.invite(&rooms[1], alice.id());
    carol.invite(&rooms[2], alice.id());
    let mut browser = Browser::logged_in(here.url(), "alice", "alice");
    shows(&browser.get("/"), 200, &["North", "South", "West", bob.id(), carol.id()]);
    shows(&browser.submit("/page/invites/accept", &[("room", &rooms[0])]), 200, &["You are in the room"]);
    assert_eq!(alice.membership_of(&rooms[0], alice.id()).as_deref(), Some("join"));
    for room in &rooms[1..] {
        shows(
            &browser.submit_surely("/page/invites/reject", &[("room", room)]),
            200,
            &["The invite is rejected"],
        );
    }
    shows(&browser.get("/"), 200, &["No invites"]);
    wait_until("the rejection arrives", || {
        bob.membership_of(&rooms[1], alice.id()).as_deref() == Some("leave")
    });
    // A room that the user is in is not left by this.
    let fields = [("room", rooms[0].as_str()), ("confirmed", "yes")];
    shows(&browser.submit("/page/invites/reject", &fields), 404, &["You are not invited"]);
    assert_eq!(alice.membership_of(&rooms[0], alice.id()).as_deref(), Some("join"));
}

#[test]
fn sessions_end_and_passwords_change_with_the_password_only() {
    let server = TestServer::start();
    let alice = account(&server, "alice");
    let id =
        |user: &TestUser| user.get(&format!("{V3}/account/whoami"))["device_id"].as_str().unwrap().to_owned();
    let phone = id(&alice);
    let mut other = Browser::logged_in(server.url(), "alice", "alice");
    let mut browser = Browser::logged_in(server.url(), "alice", "alice");
    shows(&browser.get("/page/sessions"), 200, &[&phone, "this one", "127.0.0.1", "Log all others out"]);
    let end = [("device", phone.as_str())];
    shows(&browser.submit("/page/sessions", &end), 200, &["Log this session out?", "type=\"password\""]);
    let wrong = [("device", phone.as_str()), ("confirmed", "yes"), ("password", "wrong")];
    shows(&browser.submit("/page/sessions", &wrong), 403, &["Wrong user name or password"]);
    id(&alice);
    browser.get("/page/sessions");
    let right = [("device", phone.as_str()), ("confirmed", "yes"), ("password", "alice")];
    shows(&browser.submit("/page/sessions", &right), 200, &["That session is logged out"]);
    assert_eq!(alice.request("GET", &format!("{V3}/account/whoami"), None).0, 401);
    shows(&browser.submit("/page/sessions", &right), 404, &["no such session"]);

    shows(&other.get("/"), 200, &["At the door"]);
    browser.get("/page/sessions");
    let all = [("others", "yes"), ("confirmed", "yes"), ("password", "alice")];
    shows(&browser.submit("/page/sessions", &all), 200, &["All other sessions are logged out"]);
    shows(&other.get("/page/sessions"), 401, &["session has ended"]);

    let new = |password: &'static str, new: &'static str, again: &'static str| {
        [("password", password), ("new", new), ("again", again), ("others", "yes")]
    };
    let mut third = Browser::logged_in(server.url(), "alice", "alice");
    for (fields, status) in
        [(new("alice", "a", "b"), 400), (new("wrong", "b", "b"), 403), (new("alice", "", ""), 400)]
    {
        assert_eq!(browser.submit("/page/password", &fields).status, status);
    }
    shows(&browser.submit("/page/password", &new("alice", "new", "new")), 200, &["Your password is changed"]);
    shows(&third.get("/page/sessions"), 401, &["session has ended"]);
    shows(&browser.get("/page/sessions"), 200, &["this one"]);
    Browser::logged_in(server.url(), "alice", "new");
}

#[test]
fn api_clients_at_the_root_are_told_what_they_were_always_told() {
    let server = TestServer::start();
    let mut client = Browser::new(server.url());
    client.headers.push(("Accept", "application/json".to_owned()));
    let page = client.get("/");
    assert_eq!((page.status, page.header("content-type")), (404, "application/json"));
    assert_eq!(serde_json::from_str::<Value>(&page.text).unwrap()["errcode"], "M_UNRECOGNIZED");
    for accepts in ["text/html,application/xhtml+xml,application/json;q=0.9,*/*;q=0.8", "*/*", ""] {
        client.headers = vec![("Accept", accepts.to_owned())];
        shows(&client.get("/"), 200, &["<!DOCTYPE html>"]);
    }
    let head = client.request("HEAD", "/", &[], "");
    assert_eq!((head.status, head.text.as_str()), (200, ""));
}

#[test]
fn servers_that_are_behind_are_shown_with_since_when_and_the_next_try_until_they_are_back() {
    let (mut here, mut there) = TestServer::pair();
    let alice = account(&here, "alice");
    let bob = there.user("bob");
    let room = alice.create_room();
    bob.join_via(&room, &[here.name()]);
    let mut browser = Browser::logged_in(here.url(), "alice", "alice");
    shows(&browser.get("/page/server"), 200, &["None: every server takes what it is sent"]);
    there.stop();
    alice.send(&room, "is anybody there?");
    wait_until("the failure", || browser.get("/page/server").text.contains("tried once"));
    shows(&browser.get("/page/server"), 200, &[there.name(), "behind since just now", "next"]);
    // Since when is known after a restart too, and does not begin anew with the next failure.
    here.advance(Duration::from_secs(3 * 3600));
    wait_until("another failure", || browser.get("/page/server").text.contains("tried 2 times"));
    here.restart();
    let mut browser = Browser::logged_in(here.url(), "alice", "alice");
    wait_until("the server is known", || browser.get("/page/server").text.contains(there.name()));
    shows(&browser.get("/page/server"), 200, &["behind since 3 hours ago"]);
    there.resume();
    here.advance(Duration::from_secs(30 * 3600));
    let mut browser = Browser::logged_in(here.url(), "alice", "alice");
    wait_until("it is back", || browser.get("/page/server").text.contains("None: every server"));
}

#[test]
fn administrators_make_accounts_and_reset_their_passwords_which_are_shown_once_if_they_were_made() {
    let server = TestServer::start();
    let _admin = account(&server, "admin");
    let mut browser = Browser::logged_in(server.url(), "admin", "admin");
    shows(&browser.get("/page/accounts"), 200, &["@admin:", "admin", "Make an account"]);
    for (user, status, words) in
        [("not a name", 400, "letters a to z"), ("admin", 400, "taken"), ("_bridge", 400, "reserved")]
    {
        shows(&browser.submit("/page/accounts", &[("user", user), ("new", "x")]), status, &[words]);
    }
    shows(
        &browser.submit("/page/accounts", &[("user", "bob"), ("new", "chosen")]),
        200,
        &["The account is made", "@bob:"],
    );
    assert!(!browser.shown.as_ref().unwrap().text.contains("chosen"), "what was chosen is not shown");
    Browser::logged_in(server.url(), "bob", "chosen");
    browser.get("/page/accounts");
    let made = browser.submit("/page/accounts", &[("user", "carol"), ("new", "")]);
    let shown = |page: &Page| {
        let (_, rest) = page.text.split_once("<code class=\"big\">").expect("a password is shown");
        rest.split('<').next().unwrap().to_owned()
    };
    let password = shown(&made);
    assert!(password.len() >= 16, "{password}");
    let mut carol = Browser::logged_in(server.url(), "carol", &password);
    shows(&browser.get("/page/accounts?name=car"), 200, &["@carol:", "seen just now"]);
    assert!(!browser.get("/page/accounts?name=car").text.contains("@bob:"));

    let id = format!("@carol:{}", server.name());
    shows(
        &browser.get(&format!("/page/accounts?user={}", segment(&id))),
        200,
        &[&id, "Reset the password", "Lock"],
    );
    let reset = [("user", id.as_str()), ("do", "password")];
    let page = browser.submit_surely("/page/accounts/change", &reset);
    let second = shown(&page);
    assert_ne!(second, password);
    shows(&carol.get("/page/sessions"), 401, &["session has ended"]);
    Browser::logged_in(server.url(), "carol", &second);
    browser.get("/page/accounts");
    let given = [("user", id.as_str()), ("do", "password"), ("new", "given"), ("confirmed", "yes")];
    let page = browser.submit("/page/accounts/change", &given);
    assert!(page.status == 200 && !page.text.contains("given"), "{page:?}");
    Browser::logged_in(server.url(), "carol", "given");
}

#[test]
fn administrators_lock_suspend_close_and_promote_others_but_not_themselves() {
    let server = TestServer::start();
    let admin = account(&server, "admin");
    let bob = account(&server, "bob");
    let mut browser = Browser::logged_in(server.url(), "admin", "admin");
    browser.get("/page/accounts");
    let of = |user: &str| {
        let user = doorstep::protocol::UserId::parse(user).unwrap();
        server.homeserver().store.read(|db| db.account(&user)).unwrap().unwrap()
    };
    for (deed, locked, suspended) in [
        ("lock", true, false),
        ("unlock", false, false),
        ("suspend", false, true),
        ("unsuspend", false, false),
    ] {
        let page = browser.submit("/page/accounts/change", &[("user", bob.id()), ("do", deed)]);
        shows(&page, 200, &["role=\"status\""]);
        let standing = of(bob.id()).standing;
        assert_eq!((standing.locked, standing.suspended), (locked, suspended), "{deed}");
    }
    let mut bobs = Browser::logged_in(server.url(), "bob", "bob");
    shows(&bobs.get("/page/accounts"), 403, &["Only administrators"]);
    shows(
        &browser.submit_surely("/page/accounts/change", &[("user", bob.id()), ("do", "admin")]),
        200,
        &["administrator’s now"],
    );
    shows(&bobs.get("/page/accounts"), 200, &["Accounts"]);
    shows(
        &browser.submit_surely("/page/accounts/change", &[("user", bob.id()), ("do", "no-admin")]),
        200,
        &["no administrator’s any more"],
    );
    shows(&bobs.get("/page/accounts"), 403, &["Only administrators"]);
    // Nobody shuts themselves out, and nothing is done to who is not there.
    for (user, status) in [(admin.id(), 403), ("@nobody:here", 404), ("nobody", 400), ("", 400)] {
        for deed in ["lock", "suspend", "no-admin", "password", "deactivate"] {
            let page = browser
                .submit("/page/accounts/change", &[("user", user), ("do", deed), ("confirmed", "yes")]);
            assert_eq!(page.status, status, "{user} {deed}: {page:?}");
            browser.get("/page/accounts");
        }
    }
    let unknown =
        browser.submit("/page/accounts/change", &[("user", bob.id()), ("do", "sing"), ("confirmed", "yes")]);
    assert_eq!(unknown.status, 400);
    browser.get("/page/accounts");
    let page = browser.submit("/page/accounts/change", &[("user", bob.id()), ("do", "deactivate")]);
    shows(&page, 200, &["Close this account for good?", "cannot be undone"]);
    assert!(!of(bob.id()).deactivated, "asked first");
    assert!(page.text.contains("name=\"erase\" value=\"yes\">Hide"), "they may think of it now: {page:?}");
    let page = browser
        .submit("/page/accounts/change", &[("user", bob.id()), ("do", "deactivate"), ("erase", "yes")]);
    assert!(
        page.text.contains("name=\"erase\" value=\"yes\" checked>Hide"),
        "what was ticked stays so: {page:?}"
    );
    shows(
        &browser.submit_surely("/page/accounts/change", &[("user", bob.id()), ("do", "deactivate")]),
        200,
        &["The account is closed"],
    );
    assert!(of(bob.id()).deactivated);
    shows(&bobs.get("/page/sessions"), 401, &[]);
    shows(&browser.get(&format!("/page/accounts?user={}", segment(bob.id()))), 200, &["closed for good"]);
}

#[test]
fn administrators_find_rooms_and_block_them_for_everybody_here() {
    let server = TestServer::start();
    let (_admin, bob, carol) =
        (account(&server, "admin"), account(&server, "bob"), account(&server, "carol"));
    let room = bob.create_room_with(json!({ "name": "The Cellar", "preset": "public_chat" }));
    let other = bob.create_room_with(json!({ "name": "The Garden", "preset": "public_chat" }));
    let mut browser = Browser::logged_in(server.url(), "admin", "admin");
    shows(&browser.get("/page/rooms"), 200, &["The Cellar", "The Garden", &room, "members: 1"]);
    let found = browser.get("/page/rooms?name=cellar");
    assert!(found.text.contains("The Cellar") && !found.text.contains("The Garden"), "{}", found.text);
    let block = [("do", "block"), ("room", room.as_str())];
    shows(&browser.submit("/page/rooms", &block), 200, &["Block this room?"]);
    carol.join(&other);
    shows(&browser.submit_surely("/page/rooms", &block), 200, &["The room is blocked", "blocked"]);
    let join = |room: &str| carol.request("POST", &format!("{V3}/join/{}", segment(room)), Some(json!({}))).0;
    assert_eq!(join(&room), 403);
    assert_eq!(bob.membership_of(&room, bob.id()).as_deref(), Some("join"), "who is in it stays");
    shows(
        &browser.submit("/page/rooms", &[("do", "unblock"), ("room", &room)]),
        200,
        &["not blocked any more"],
    );
    assert_eq!(join(&room), 200);
    for wrong in ["", "room", "!", "<b>"] {
        assert_eq!(browser.submit("/page/rooms", &[("do", "unblock"), ("room", wrong)]).status, 400);
        browser.get("/page/rooms");
    }
}

#[test]
fn administrators_make_registration_tokens_that_are_told_once_and_revoke_them() {
    let server = TestServer::start_with(|config| config.registration = Registration::Token);
    let _admin = account(&server, "admin");
    let mut browser = Browser::logged_in(server.url(), "admin", "admin");
    shows(&browser.get("/page/tokens"), 200, &["None yet", "Make a token"]);
    for (uses, days) in [
        ("0", "1"),
        ("-1", "1"),
        ("1", "0"),
        ("x", "1"),
        ("1", "99999"),
        ("1e9", "1"),
        ("999999999999999999999", "1"),
    ] {
        let page = browser.submit("/page/tokens", &[("do", "make"), ("uses", uses), ("days", days)]);
        shows(&page, 400, &["should be a number from 1 to"]);
        browser.get("/page/tokens");
    }
    let page = browser.submit("/page/tokens", &[("do", "make"), ("uses", "2"), ("days", "3")]);
    shows(&page, 200, &["shown once", server.url()]);
    let (_, rest) = page.text.split_once("<code class=\"big\">").expect("a token is shown");
    let token = rest.split('<').next().unwrap().to_owned();
    let register = |name: &str| {
        let auth = json!({ "type": "m.login.registration_token", "token": token });
        let body = json!({ "username": name, "password": "x", "auth": auth });
        TestUser::new(server.url(), "", "").request("POST", &format!("{V3}/register"), Some(body)).0
    };
    assert_eq!(register("bob"), 200);
    let list = browser.get("/page/tokens");
    shows(&list, 200, &["used 1 of 2 times", "ends in 3 days"]);
    assert!(!list.text.contains(&token), "it is told once");
    let name = list.field("token").expect("a token to revoke").to_owned();
    let revoke = [("do", "revoke"), ("token", name.as_str())];
    shows(&browser.submit_surely("/page/tokens", &revoke), 200, &["The token is revoked", "None yet"]);
    assert_eq!(register("carol"), 401);
    let again = [("do", "revoke"), ("token", name.as_str()), ("confirmed", "yes")];
    assert_eq!(browser.submit("/page/tokens", &again).status, 404);
    browser.get("/page/tokens");
    shows(
        &browser.submit("/page/tokens", &[("do", "make"), ("uses", ""), ("days", "")]),
        200,
        &["shown once"],
    );
    shows(&browser.get("/page/tokens"), 200, &["without limit", "no end"]);
}

#[test]
fn administrators_see_where_the_bytes_are_once_they_ask_for_it() {
    let server = TestServer::start();
    let (_admin, bob) = (account(&server, "admin"), account(&server, "bob"));
    let room = bob.create_room_with(json!({ "name": "The <b>Cellar" }));
    for n in 0..30 {
        bob.send(&room, &format!("{n}: {}", "wine ".repeat(400)));
    }
    for n in 0..12 {
        bob.create_room_with(json!({ "name": format!("Small room {n}") }));
    }
    let picture = "x".repeat(200_000);
    media::upload(&bob, "image/png", "cellar.png", picture.as_bytes());
    let mut browser = Browser::logged_in(server.url(), "admin", "admin");
    let page = browser.get("/page/server");
    shows(&page, 200, &["Storage", "Where the bytes are"]);
    assert!(!page.text.contains("The largest rooms"), "it is not reckoned before");
    let page = browser.get("/page/server?storage=yes");
    shows(&page, 200, &["Database", "Its log", "The largest rooms", "The &lt;b&gt;Cellar", bob.id()]);
    assert_eq!(page.text.matches("Small room").count(), 9, "ten rooms, the largest first: {}", page.text);
    let cells = |after: &str| {
        let (_, rest) = page.text.split_once(after).unwrap_or_else(|| panic!("{after} in {}", page.text));
        let row = rest.split("</tr>").next().unwrap();
        row.split("class=\"num\">")
            .skip(1)
            .map(|cell| cell.split('<').next().unwrap())
            .map(str::to_owned)
            .collect::<Vec<_>>()
    };
    let kib = |text: &str| {
        text.strip_suffix(" KiB").and_then(|n| n.parse::<f64>().ok()).unwrap_or_else(|| panic!("{text}"))
    };
    let cellar = cells("The &lt;b&gt;Cellar");
    assert!(cellar[0].parse::<u64>().unwrap() > 30 && (60.0..120.0).contains(&kib(&cellar[1])), "{cellar:?}");
    let local = cells(">Media of this server<");
    assert!((195.0..260.0).contains(&kib(&local[0])), "{local:?}");
    let bobs = cells(bob.id());
    assert_eq!(bobs[0], "1");
    assert_eq!(bobs[1], local[0]);
}
