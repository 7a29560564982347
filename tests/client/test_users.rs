//! What a test has to hold its users by: what they see, what they wait for, and what a failure says and where.

use std::net::TcpStream;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Mutex, Once, OnceLock};
use std::thread::{self, ThreadId};
use std::time::{Duration, Instant};

use doorstep::TestServer;
use doorstep::testing::{TestUser, certificates};
use serde_json::{Value, json};

/// The last panics, with the thread and the place of each.
static PANICS: Mutex<Vec<(ThreadId, String, u32)>> = Mutex::new(Vec::new());

/// What the panic of this says, and in what file and line it is said to be.
fn failure_of(fails: impl FnOnce()) -> (String, String, u32) {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let before = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |info| {
            if let Some(place) = info.location() {
                let mut panics = PANICS.lock().expect("the panics");
                panics.push((thread::current().id(), place.file().to_owned(), place.line()));
            }
            before(info);
        }));
    });
    let panic = catch_unwind(AssertUnwindSafe(fails)).expect_err("it fails");
    let said = panic.downcast_ref::<String>().cloned();
    let said = said.or_else(|| panic.downcast_ref::<&str>().map(|&said| said.to_owned()));
    let panics = PANICS.lock().expect("the panics");
    let (_, file, line) = panics.iter().rfind(|panic| panic.0 == thread::current().id()).expect("its place");
    (said.expect("a text"), file.clone(), *line)
}

fn impatient() -> TestServer {
    let server = TestServer::start();
    server.set_patience(Duration::from_millis(50));
    server
}

fn bodies(events: &[Value]) -> Vec<&str> {
    events.iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

#[test]
fn every_failure_is_said_to_be_at_the_line_of_the_test() {
    let server = impatient();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let none = "!none:nowhere.example";
    let unreachable = TestUser::new("http://127.0.0.1:1", "@nobody:nowhere.example", "none");
    let nobody = TestUser::new(server.url(), "@nobody:nowhere.example", "none");
    type Failing<'f> = (&'f str, Box<dyn Fn() + 'f>);
    let fails: Vec<Failing<'_>> = vec![
        ("user", Box::new(|| drop(server.user("alice")))),
        ("device_of", Box::new(|| drop(server.device_of(&unreachable, "PHONE")))),
        ("register", Box::new(|| drop(TestUser::register(server.url(), "alice")))),
        ("request", Box::new(|| drop(unreachable.request("GET", "/_matrix/client/versions", None)))),
        ("get", Box::new(|| drop(alice.get("/_matrix/client/v3/nothing")))),
        ("post", Box::new(|| drop(alice.post("/_matrix/client/v3/nothing", json!({}))))),
        ("put", Box::new(|| drop(alice.put("/_matrix/client/v3/nothing", json!({}))))),
        ("device_id", Box::new(|| drop(nobody.device_id()))),
        ("create_room", Box::new(|| drop(nobody.create_room()))),
        ("create_room_with", Box::new(|| drop(alice.create_room_with(json!({ "room_version": "none" }))))),
        ("room_with", Box::new(|| drop(nobody.room_with(&[], &[])))),
        ("join", Box::new(|| drop(alice.join(none)))),
        ("join_via", Box::new(|| drop(alice.join_via("#none:nowhere.example", &[])))),
        ("knock_via", Box::new(|| drop(alice.knock_via(&room, &[])))),
        ("act_on", Box::new(|| alice.act_on("kick", &room, bob.id()))),
        ("invite", Box::new(|| bob.invite(&room, alice.id()))),
        ("leave", Box::new(|| alice.leave(none))),
        ("send", Box::new(|| drop(bob.send(&room, "hello")))),
        ("send_event", Box::new(|| drop(bob.send_event(&room, "m.reaction", json!({}))))),
        ("set_state", Box::new(|| drop(bob.set_state(&room, "m.room.name", "", json!({}))))),
        ("state", Box::new(|| drop(unreachable.state(&room, "m.room.name", "")))),
        ("membership_of", Box::new(|| drop(unreachable.membership_of(&room, alice.id())))),
        ("sync", Box::new(|| drop(nobody.sync(Duration::ZERO)))),
        ("initial_sync", Box::new(|| drop(nobody.initial_sync()))),
        ("sync_until", Box::new(|| alice.sync_until("nothing", |_| None))),
        ("wait_for_room", Box::new(|| drop(alice.wait_for_room("invite", &room)))),
        ("next_message", Box::new(|| drop(alice.next_message(&room)))),
        ("events", Box::new(|| drop(bob.events(none)))),
        ("wait_for", Box::new(|| drop(alice.wait_for(&room, |_| false)))),
        ("wait_for_membership", Box::new(|| alice.wait_for_membership(&room, bob.id(), "join"))),
        ("knocks", Box::new(|| drop(bob.knocks(&room)))),
        ("invites", Box::new(|| drop(nobody.invites()))),
        ("events of nowhere", Box::new(|| drop(unreachable.events(&room)))),
        ("wait_for nowhere", Box::new(|| drop(unreachable.wait_for(&room, |_| true)))),
        ("knocks of nowhere", Box::new(|| drop(unreachable.knocks(&room)))),
        ("invites of nowhere", Box::new(|| drop(unreachable.invites()))),
        ("advance", Box::new(|| server.advance(Duration::MAX))),
        ("fail_next", Box::new(|| server.fail_next("GET", "/sync", 99, "M_UNKNOWN"))),
        ("too many faults", Box::new(|| (0..2000).for_each(|_| server.limit_next("GET", "/nothing", 1)))),
        ("wait nowhere", Box::new(|| unreachable.wait_for_membership(&room, bob.id(), "join"))),
    ];
    let first = line!() - u32::try_from(fails.len()).expect("a few") - 1;
    for (line, (name, fails)) in (first..).zip(fails) {
        let (said, file, at) = failure_of(fails);
        assert_eq!((file.as_str(), at), (file!(), line), "{name}: {said}");
    }
}

#[test]
fn what_never_comes_is_told_with_the_timeline_and_with_what_was_asked() {
    let server = impatient();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.room_with(&[&bob], &["good morning"]);
    server.forget_requests();
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "x".repeat(5_000) }));
    let ways: Vec<Box<dyn Fn() + '_>> = vec![
        Box::new(|| drop(bob.wait_for(&room, |event| event["content"]["body"] == "good night"))),
        Box::new(|| bob.wait_for_membership(&room, alice.id(), "leave")),
        Box::new(|| drop(alice.next_message(&room))),
        Box::new(|| drop(bob.wait_for_room("invite", &room))),
        Box::new(|| drop(bob.set_state(&room, "m.room.name", "", json!({ "name": "mine" })))),
    ];
    for fails in ways {
        let (said, ..) = failure_of(fails);
        let lines: Vec<&str> = said.lines().collect();
        let is_there = |parts: &[&str]| lines.iter().any(|line| parts.iter().all(|part| line.contains(part)));
        assert!(is_there(&[alice.id(), "m.room.message", "good morning"]), "{said}");
        assert!(is_there(&["m.room.member", &format!("{:?}", bob.id()), "join"]), "{said}");
        assert!(is_there(&["  PUT /_matrix/client/v3/rooms/", "/state/m.room.topic/ 200"]), "{said}");
        assert!(!said.contains(&"x".repeat(2_000)), "what is long is cut: {said}");
    }
    let (said, ..) = failure_of(|| bob.wait_for_membership(&room, alice.id(), "leave"));
    assert!(said.lines().next().is_some_and(|line| line.ends_with("it is join")), "{said}");
    let (said, ..) = failure_of(|| drop(bob.set_state(&room, "m.room.name", "", json!({ "name": "mine" }))));
    assert!(
        said.lines().next().is_some_and(|line| line.contains("403") && line.contains("M_FORBIDDEN")),
        "{said}"
    );
}

#[test]
fn only_the_end_of_a_long_timeline_is_told() {
    let server = impatient();
    let alice = server.user("alice");
    let messages: Vec<String> = (0..100).map(|number| format!("message {number}.")).collect();
    let room = alice.room_with(&[], &messages.iter().map(String::as_str).collect::<Vec<_>>());
    let (said, ..) = failure_of(|| drop(alice.wait_for(&room, |_| false)));
    assert!(said.contains("message 99.") && !said.contains("message 50."), "{said}");
    assert!(said.lines().count() < 60, "{said}");
}

#[test]
fn a_room_with_members_and_messages_is_seen_whole_by_all_of_them() {
    let (here, there) = TestServer::pair();
    let (alice, bob, carol) = (here.user("alice"), here.user("bob"), there.user("carol"));
    let texts: Vec<String> = (0..40).map(|number| format!("message {number}")).collect();
    let texts: Vec<&str> = texts.iter().map(String::as_str).collect();
    let room = alice.room_with(&[&bob, &carol], &texts);
    for user in [&alice, &bob, &carol] {
        for member in [&alice, &bob, &carol] {
            assert_eq!(user.membership_of(&room, member.id()).as_deref(), Some("join"));
        }
    }
    assert_eq!(bodies(&alice.events(&room)), texts);
    assert_eq!(bodies(&bob.events(&room)), texts);
    assert!(bodies(&carol.events(&room)).ends_with(&texts));
    // Nobody has to be in it but who made it.
    let alone = alice.room_with(&[], &[]);
    assert!(bodies(&alice.events(&alone)).is_empty());
    let together = alice.room_with(&[&carol], &[]);
    assert_eq!(carol.membership_of(&together, carol.id()).as_deref(), Some("join"));
}

#[test]
fn all_events_of_a_room_are_given_however_many_in_their_order() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let sent: Vec<String> =
        (0..1_100).map(|n| alice.send_event(&room, "org.example.count", json!({ "n": n }))).collect();
    let events = alice.events(&room);
    assert_eq!(events[0]["type"], "m.room.create");
    let counted: Vec<&str> = events
        .iter()
        .filter(|event| event["type"] == "org.example.count")
        .filter_map(|event| event["event_id"].as_str())
        .collect();
    assert_eq!(counted, sent);
}

#[test]
fn an_event_is_waited_for_whether_it_came_before_or_comes_after() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.room_with(&[&bob], &["before"]);
    let is = |text: &'static str| move |event: &Value| event["content"]["body"] == text;
    assert_eq!(bob.wait_for(&room, is("before"))["sender"], alice.id());
    thread::scope(|scope| {
        let waits = scope.spawn(|| bob.wait_for(&room, is("after")));
        let sent = alice.send(&room, "after");
        assert_eq!(waits.join().expect("it comes")["event_id"], sent.as_str());
    });
    // Of several the first; and state fits as well as messages.
    alice.send(&room, "before");
    let first = alice.wait_for(&room, is("before"));
    let events = alice.events(&room);
    let earliest = events.iter().find(|event| is("before")(event)).expect("it is there");
    assert_eq!(earliest["event_id"], first["event_id"]);
    alice.set_state(&room, "m.room.name", "", json!({ "name": "parlour" }));
    bob.wait_for(&room, |event| event["type"] == "m.room.name" && event["state_key"] == "");
}

#[test]
fn who_waits_before_being_in_the_room_sees_what_comes_then() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    thread::scope(|scope| {
        let waits = scope.spawn(|| bob.wait_for(&room, |event| event["content"]["body"] == "welcome"));
        alice.invite(&room, bob.id());
        bob.wait_for_membership(&room, bob.id(), "invite");
        bob.join(&room);
        alice.send(&room, "welcome");
        assert_eq!(waits.join().expect("it comes")["sender"], alice.id());
    });
}

#[test]
fn looking_and_waiting_takes_nothing_from_the_users_own_sync_and_spends_no_fault() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.room_with(&[&bob], &[]);
    bob.sync(Duration::ZERO);
    alice.send(&room, "hello");
    server.fail_next("GET", "/sync", 503, "M_UNKNOWN");
    server.fail_next("GET", "/messages", 503, "M_UNKNOWN");
    server.fail_next("GET", "/members", 503, "M_UNKNOWN");
    server.forget_requests();
    bob.wait_for(&room, |event| event["content"]["body"] == "hello");
    bob.wait_for_membership(&room, bob.id(), "join");
    assert!(bob.invites().is_empty() && bob.knocks(&room).is_empty());
    assert_eq!(server.requests(), []);
    // The faults are still there for who is meant.
    assert_eq!(bob.request("GET", "/_matrix/client/v3/sync", None).0, 503);
    assert_eq!(bob.next_message(&room), "hello");
}

#[test]
fn messages_that_come_together_are_given_one_after_the_other() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (one, other) = (alice.room_with(&[&bob], &[]), alice.room_with(&[&bob], &[]));
    bob.sync(Duration::ZERO);
    for number in 0..30 {
        alice.send(&one, &format!("one {number}"));
        alice.send(&other, &format!("other {number}"));
    }
    // More than a client is told of a room at once, and of two rooms.
    for number in 0..30 {
        assert_eq!(bob.next_message(&one), format!("one {number}"));
    }
    for number in 0..30 {
        assert_eq!(bob.next_message(&other), format!("other {number}"));
    }
    alice.send(&one, "again");
    assert_eq!(bob.next_message(&one), "again");
}

#[test]
fn knocks_are_who_waits_for_an_answer_in_the_order_of_their_coming() {
    let (here, there) = TestServer::pair();
    let (alice, bob, carol) = (here.user("alice"), there.user("bob"), here.user("carol"));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.join_rules", "", json!({ "join_rule": "knock" }));
    assert!(alice.knocks(&room).is_empty());
    bob.knock_via(&room, &[here.name()]);
    bob.wait_for_membership(&room, bob.id(), "knock");
    alice.wait_for_membership(&room, bob.id(), "knock");
    here.advance(Duration::from_secs(5));
    there.advance(Duration::from_secs(5));
    carol.knock_via(&room, &[]);
    assert_eq!(alice.knocks(&room), [bob.id(), carol.id()]);
    alice.invite(&room, bob.id());
    bob.wait_for_membership(&room, bob.id(), "invite");
    assert_eq!(bob.invites(), [room.as_str()]);
    assert!(carol.invites().is_empty());
    alice.act_on("kick", &room, carol.id());
    carol.wait_for_membership(&room, carol.id(), "leave");
    assert!(alice.knocks(&room).is_empty());
    bob.join(&room);
    bob.wait_for_membership(&room, bob.id(), "join");
    assert!(bob.invites().is_empty());
    alice.act_on("ban", &room, bob.id());
    bob.wait_for_membership(&room, bob.id(), "ban");
}

#[test]
fn a_second_device_is_the_same_user_and_sees_for_itself() {
    let mut server = TestServer::start();
    let alice = server.user("alice");
    let phone = server.device_of(&alice, "PHONE");
    assert_eq!(phone.id(), alice.id());
    assert_eq!((phone.device_id().as_str(), alice.device_id() == "PHONE"), ("PHONE", false));
    let room = alice.create_room();
    phone.send(&room, "from the phone");
    alice.sync(Duration::ZERO);
    phone.wait_for_room("join", &room);
    // The patience and the record of the server are its own, too, whenever it is set, and after a restart.
    server.set_patience(Duration::from_millis(50));
    server.restart();
    let began = Instant::now();
    let (said, ..) = failure_of(|| drop(phone.wait_for(&room, |_| false)));
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert!(said.contains("from the phone") && said.contains("Its server was asked last:"), "{said}");
    let (said, ..) = failure_of(|| {
        let other = TestServer::start();
        other.device_of(&alice, "TABLET");
    });
    assert!(said.contains(alice.id()), "{said}");
}

#[test]
fn a_server_and_its_users_can_be_given_to_threads() {
    fn can_be_shared<T: Send + Sync + 'static>() {}
    can_be_shared::<TestServer>();
    can_be_shared::<TestUser>();
}

#[test]
fn who_has_no_patience_looks_once_all_the_same() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    server.set_patience(Duration::ZERO);
    alice.wait_for_room("join", &room);
    alice.wait_for(&room, |event| event["type"] == "m.room.create");
    alice.wait_for_membership(&room, alice.id(), "join");
}

/// The variable that says that [`a_server_that_is_never_dropped`] is to be there.
const NEVER_DROPPED: &str = "DOORSTEP_TEST_NEVER_DROPPED";

/// A process of its own: see the test below.
#[test]
#[ignore = "for another test"]
#[allow(clippy::print_stdout, reason = "the other test reads it")]
fn a_server_that_is_never_dropped() {
    static SERVER: OnceLock<TestServer> = OnceLock::new();
    if std::env::var_os(NEVER_DROPPED).is_some() {
        let server = SERVER.get_or_init(TestServer::start);
        server.user("alice").create_room();
        println!("\n{}", server.folder().display());
        println!("{}", certificates().ca.parent().expect("a folder").display());
    }
}

#[test]
fn nothing_is_left_of_a_server_in_a_static_nor_of_certificates_when_the_process_ends() {
    let own = std::env::current_exe().expect("this test's binary");
    let mut command = Command::new(own);
    command.args(["--exact", "test_users::a_server_that_is_never_dropped", "--ignored", "--nocapture"]);
    let output = command.env(NEVER_DROPPED, "1").output().expect("a process");
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(output.status.success(), "{said}");
    let folders: Vec<&Path> =
        said.lines().filter(|line| line.contains("/doorstep-")).map(Path::new).collect();
    assert_eq!(folders.len(), 2, "{said}");
    for folder in folders {
        assert!(!folder.exists(), "{}", folder.display());
    }
}

#[test]
fn a_test_that_fails_leaves_the_data_of_its_server_and_no_thread_of_it() {
    let mut folder = PathBuf::new();
    let mut url = String::new();
    let (said, ..) = failure_of(|| {
        let server = impatient();
        (folder, url) = (server.folder().to_owned(), server.url().to_owned());
        let alice = server.user("alice");
        alice.join("!none:nowhere.example");
    });
    assert!(said.contains("/join/"), "{said}");
    assert!(TcpStream::connect(url.trim_start_matches("http://")).is_err(), "its port is closed");
    assert!(folder.join("doorstep.db").exists());
    std::fs::remove_dir_all(&folder).expect("nobody has it any more");
}
