//! Delayed events (MSC4140) and what else calls ask of a server, over a real socket.

use std::net::TcpListener;
use std::time::Duration;

use crate::common::client::{V3, room_path, sync};
use crate::common::process::ProcessServer;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const EVENTS: &str = "/_matrix/client/unstable/org.matrix.msc4140/delayed_events";
const MEMBER: &str = "org.matrix.msc3401.call.member";

fn delayed(user: &TestUser, path: &str, delay: &str, content: Value) -> (u16, Value) {
    user.request("PUT", &format!("{path}?org.matrix.msc4140.delay={delay}"), Some(content))
}

fn id(answer: (u16, Value)) -> String {
    assert_eq!(answer.0, 200, "{}", answer.1);
    answer.1["delay_id"].as_str().expect("an id").to_owned()
}

fn message_path(room: &str, txn: &str) -> String {
    room_path(room, &format!("send/m.room.message/{}", segment(txn)))
}

fn state_path(room: &str, key: &str) -> String {
    room_path(room, &format!("state/{MEMBER}/{}", segment(key)))
}

fn act(user: &TestUser, delay_id: &str, action: &str) -> u16 {
    user.request("POST", &format!("{EVENTS}/{delay_id}/{action}"), None).0
}

fn ids(user: &TestUser) -> Vec<String> {
    let list = user.get(EVENTS);
    assert_eq!(list["scheduled"], list["delayed_events"]);
    list["scheduled"]
        .as_array()
        .expect("a list")
        .iter()
        .filter_map(|e| e["delay_id"].as_str().map(str::to_owned))
        .collect()
}

fn said(user: &TestUser, room: &str) -> Vec<String> {
    let page = user.get(&room_path(room, "messages?dir=b&limit=100"));
    page["chunk"]
        .as_array()
        .expect("a page")
        .iter()
        .filter_map(|e| e["content"]["body"].as_str().map(str::to_owned))
        .collect()
}

#[test]
fn a_delayed_message_is_sent_once_when_it_is_due() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let path = message_path(&room, "t1");
    let content = json!({ "msgtype": "m.text", "body": "later" });
    let first = id(delayed(&alice, &path, "60000", content.clone()));
    assert_eq!(id(delayed(&alice, &path, "60000", content)), first, "a repeat of the request");
    let shown = alice.get(&format!("{EVENTS}/{first}"));
    assert_eq!(
        (&shown["type"], &shown["delay"], &shown["room_id"]),
        (&json!("m.room.message"), &json!(60_000), &json!(room))
    );
    assert_eq!((&shown["content"]["body"], shown.get("state_key")), (&json!("later"), None));
    assert!(shown["running_since"].as_i64().is_some());
    assert_eq!(ids(&alice), std::slice::from_ref(&first));
    assert_eq!(alice.get(&format!("{EVENTS}?status=finalised"))["scheduled"], json!([]));
    server.advance(Duration::from_secs(59));
    assert_eq!(said(&alice, &room), [""; 0]);
    server.advance(Duration::from_secs(2));
    wait_until("it is sent", || said(&alice, &room) == ["later"]);
    assert_eq!(ids(&alice), [""; 0]);
    assert_eq!(["restart", "cancel", "send"].map(|action| act(&alice, &first, action)), [409, 409, 200]);
    // By this code a client in a call knows that it needs another leave.
    let (_, refusal) = alice.request("POST", &format!("{EVENTS}/{first}/restart"), None);
    assert_eq!(refusal["errcode"], "M_NOT_FOUND");
    server.advance(Duration::from_secs(600));
    alice.send(&room, "something else");
    assert_eq!(said(&alice, &room), ["something else", "later"]);
}

#[test]
fn a_repeat_of_the_request_sends_nothing_more_whatever_became_of_the_delayed_event() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let send = |user: &TestUser, txn: &str| {
        delayed(user, &message_path(&room, txn), "60000", json!({ "msgtype": "m.text", "body": txn }))
    };
    let all = ["due", "sent", "cancelled"];
    let first = all.map(|txn| id(send(&alice, txn)));
    assert_eq!(act(&alice, &first[2], "cancel"), 200);
    assert_eq!(act(&alice, &first[1], "send"), 200);
    server.advance(Duration::from_secs(61));
    wait_until("it is sent", || said(&alice, &room) == ["due", "sent"]);
    assert_eq!(all.map(|txn| id(send(&alice, txn))), first);
    assert_eq!(ids(&alice), [""; 0]);
    server.advance(Duration::from_secs(61));
    // The transaction ids of others, and of events that are sent at once, are others.
    id(send(&bob, "cancelled"));
    alice.put(&message_path(&room, "cancelled"), json!({ "msgtype": "m.text", "body": "at once" }));
    assert_eq!(said(&alice, &room), ["at once", "due", "sent"]);
    assert_eq!(ids(&bob).len(), 1);
    // Who has left since is answered as well: nothing is made of it.
    alice.leave(&room);
    assert_eq!(id(send(&alice, "due")), first[0]);
    assert_eq!(send(&alice, "new").0, 403);
}

#[test]
fn a_delayed_event_is_sent_in_time_by_a_clock_that_nobody_moves() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    // Each is due before anything that the timer knows of: it has to be told.
    for delay in ["3600000", "1500", "100", "0"] {
        let content = json!({ "msgtype": "m.text", "body": delay });
        id(delayed(&alice, &message_path(&room, delay), delay, content));
        if delay != "3600000" {
            wait_until("it is sent", || said(&alice, &room).first().is_some_and(|body| body == delay));
        }
    }
    assert_eq!((said(&alice, &room), ids(&alice).len()), (["0", "100", "1500"].map(str::to_owned).into(), 1));
}

#[test]
fn a_delayed_event_is_restarted_cancelled_or_sent_with_and_without_a_token_by_path_and_by_body() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let nobody = TestUser::new(server.url(), "(nobody)", "");
    let room = alice.create_room();
    let by_body =
        |who: &TestUser, id: &str, body: Value| who.request("POST", &format!("{EVENTS}/{id}"), Some(body)).0;
    for (number, who) in [&alice, &nobody].into_iter().enumerate() {
        let event = |name: &str| {
            let content = json!({ "msgtype": "m.text", "body": format!("{name} {number}") });
            id(delayed(&alice, &message_path(&room, &format!("{name}{number}")), "10000", content))
        };
        let (kept, cancelled, sent) = (event("kept"), event("cancelled"), event("sent"));
        server.advance(Duration::from_secs(9));
        assert_eq!(act(who, &kept, "restart"), 200);
        assert_eq!(by_body(who, &kept, json!({ "action": "restart" })), 200);
        assert_eq!(act(who, &cancelled, "cancel"), 200);
        assert_eq!(by_body(who, &sent, json!({ "action": "send" })), 200);
        // Once more it comes to the same, and nothing else can be done.
        for (id, done) in [(&cancelled, "cancel"), (&sent, "send")] {
            for action in ["cancel", "restart", "send"] {
                assert_eq!(
                    act(who, id, action),
                    if action == done { 200 } else { 409 },
                    "{action} after {done}"
                );
            }
        }
        assert_eq!(act(who, "none", "cancel"), 404);
        server.advance(Duration::from_secs(9));
        assert_eq!(ids(&alice), std::slice::from_ref(&kept), "it was restarted");
        assert_eq!(said(&alice, &room)[0], format!("sent {number}"));
        server.advance(Duration::from_secs(2));
        wait_until("it is sent", || said(&alice, &room)[0] == format!("kept {number}"));
        assert_eq!(by_body(who, &kept, json!({ "action": "dance" })), 400);
        assert_eq!(by_body(who, &kept, json!({ "action": 7 })), 400);
        assert_eq!(by_body(who, &kept, json!({})), 400);
        assert_eq!(act(who, &kept, "dance"), 404);
    }
    assert!(said(&alice, &room).iter().all(|body| !body.starts_with("cancelled")));
    // Looking at them is for their user alone.
    let other = server.user("bob");
    let hers = id(delayed(&alice, &message_path(&room, "x"), "10000", json!({ "body": "x" })));
    assert_eq!(other.request("GET", &format!("{EVENTS}/{hers}"), None).0, 404);
    assert_eq!((ids(&other).len(), nobody.request("GET", EVENTS, None).0), (0, 401));
    assert_eq!(alice.get(&format!("{EVENTS}?delay_id={hers}"))["scheduled"][0]["delay_id"], hers);
}

#[test]
fn delayed_state_is_cancelled_by_somebody_elses_and_not_by_ones_own() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat",
        "power_level_content_override": { "events": { MEMBER: 0 } } }));
    bob.join(&room);
    // As calls name them: the underscore keeps them from being another user's own.
    let key = format!("_{}_DEVICE_m.call", bob.id());
    let leave = || id(delayed(&bob, &state_path(&room, &key), "8000", json!({})));
    let first = leave();
    bob.put(&state_path(&room, &key), json!({ "application": "m.call" }));
    assert_eq!(ids(&bob), std::slice::from_ref(&first), "the own state goes before the leave");
    alice.put(&state_path(&room, "another key"), json!({}));
    assert_eq!(ids(&bob), std::slice::from_ref(&first));
    alice.put(&state_path(&room, &key), json!({ "kicked": true }));
    assert_eq!(ids(&bob), [""; 0]);
    assert_eq!(["restart", "send", "cancel"].map(|action| act(&bob, &first, action)), [409, 409, 200]);

    leave();
    bob.put(&state_path(&room, &key), json!({ "application": "m.call" }));
    server.advance(Duration::from_secs(9));
    wait_until("the leave is there", || bob.state(&room, MEMBER, &key) == Some(json!({})));
}

#[test]
fn what_the_room_thinks_of_a_delayed_event_is_asked_when_it_is_sent() {
    let server = TestServer::start();
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), server.user("eve"));
    let room = alice.create_room();
    bob.join(&room);
    let content = json!({ "msgtype": "m.text", "body": "from beyond" });
    for txn in ["a", "b"] {
        id(delayed(&bob, &message_path(&room, txn), "8000", content.clone()));
    }
    let topic = room_path(&room, "state/m.room.topic/");
    id(delayed(&bob, &topic, "8000", json!({ "topic": "mine" })));
    alice.act_on("kick", &room, bob.id());
    let refused = ids(&bob);
    assert_eq!((refused.len(), act(&bob, &refused[0], "send")), (3, 403));
    assert_eq!(ids(&bob), refused, "it stays until it is due");
    server.advance(Duration::from_secs(9));
    wait_until("nothing is left of them", || ids(&bob).is_empty());
    assert_eq!(["send", "restart", "cancel"].map(|action| act(&bob, &refused[0], action)), [409, 409, 200]);
    assert_eq!((said(&alice, &room), alice.state(&room, "m.room.topic", "")), (vec![], None));
    // Who is not in the room has nothing to be sent there.
    assert_eq!(delayed(&eve, &message_path(&room, "e"), "8000", content.clone()).0, 403);
    assert_eq!(delayed(&eve, &message_path("!none:example.org", "e"), "8000", content).0, 403);

    // Memberships and redactions go the way of their own.
    let event = alice.send(&room, "to be taken back");
    bob.join(&room);
    id(delayed(
        &bob,
        &room_path(&room, &format!("state/m.room.member/{}", segment(bob.id()))),
        "1000",
        json!({ "membership": "leave" }),
    ));
    id(delayed(&alice, &room_path(&room, "send/m.room.redaction/r"), "1000", json!({ "redacts": event })));
    server.advance(Duration::from_secs(2));
    wait_until("both are done", || {
        alice.membership_of(&room, bob.id()).as_deref() == Some("leave") && said(&alice, &room).is_empty()
    });
}

#[test]
fn what_several_want_to_be_done_with_a_delayed_event_at_the_same_moment_is_done_once_and_each_is_told_so() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    for round in 0..10 {
        let body = format!("message {round}");
        let content = json!({ "msgtype": "m.text", "body": body });
        let delayed = id(delayed(&alice, &message_path(&room, &body), "60000", content));
        let actions = ["send", "cancel", "send", "cancel", "send", "send"];
        let answers: Vec<u16> = std::thread::scope(|scope| {
            let asked: Vec<_> =
                actions.iter().map(|action| scope.spawn(|| act(&alice, &delayed, action))).collect();
            asked.into_iter().map(|answer| answer.join().expect("no panic")).collect()
        });
        let times = said(&alice, &room).iter().filter(|said| **said == body).count();
        let done = if times == 1 { "send" } else { "cancel" };
        let expected = actions.map(|action| if action == done { 200 } else { 409 });
        assert_eq!((times <= 1, answers), (true, expected.to_vec()), "{done}");
    }
}

#[test]
fn a_membership_that_is_to_be_sent_now_and_cannot_be_stays_until_it_is_due() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let member = |user: &TestUser| room_path(&room, &format!("state/m.room.member/{}", segment(user.id())));
    let ban = id(delayed(&bob, &member(&alice), "8000", json!({ "membership": "ban" })));
    let leave = id(delayed(&bob, &member(&bob), "8000", json!({ "membership": "leave" })));
    assert_eq!((act(&bob, &ban, "send"), ids(&bob).contains(&ban)), (403, true));
    assert_eq!(
        (act(&bob, &leave, "send"), act(&bob, &leave, "send"), act(&bob, &leave, "cancel")),
        (200, 200, 409)
    );
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("leave"));
    server.advance(Duration::from_secs(9));
    wait_until("nothing is left of them", || ids(&bob).is_empty());
    assert_eq!((act(&bob, &ban, "send"), act(&bob, &ban, "cancel")), (409, 200));
}

#[test]
fn what_is_refused_at_once_is_no_delayed_event() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let refused = |path: &str, content: Value| {
        let (status, answer) = delayed(&alice, &room_path(&room, path), "8000", content);
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(refused("state/m.room.create/", json!({})), (403, "M_FORBIDDEN".into()));
    let alias = |name: &str| json!({ "alias": format!("#{name}:{}", server.name()) });
    assert_eq!(refused("state/m.room.canonical_alias/", alias("none")), (400, "M_BAD_ALIAS".into()));
    alice.put(
        &format!("{V3}/directory/room/{}", segment(&format!("#here:{}", server.name()))),
        json!({ "room_id": room }),
    );
    assert_eq!(refused("state/m.room.canonical_alias/", alias("here")).0, 200);
    assert_eq!(ids(&alice).len(), 1);
}

#[test]
fn an_event_is_delayed_by_the_endpoint_that_was_accepted_too() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let ask = |event_type: &str, txn: &str, body: Value| {
        let path =
            format!("/_matrix/client/unstable/org.matrix.msc4140/rooms/{}/delayed_event", segment(&room));
        alice.request("PUT", &format!("{path}/{event_type}/{txn}"), Some(body))
    };
    let content = || json!({ "msgtype": "m.text", "body": "later" });
    for (body, errcode) in [
        (json!({ "content": content() }), "M_MISSING_PARAM"),
        (json!({ "delay_ms": 10 }), "M_MISSING_PARAM"),
        (json!({ "delay_ms": 0, "content": content() }), "M_BAD_JSON"),
        (json!({ "delay_ms": -1, "content": content() }), "M_BAD_JSON"),
        (json!({ "delay_ms": "10", "content": content() }), "M_BAD_JSON"),
        (json!({ "delay_ms": 10, "content": [] }), "M_BAD_JSON"),
        (json!({ "delay_ms": 10, "content": content(), "state_key": 7 }), "M_BAD_JSON"),
        (json!({ "delay_ms": 86_400_001, "content": content() }), "M_UNKNOWN"),
    ] {
        let (status, answer) = ask("m.room.message", "wrong", body.clone());
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{body}");
    }
    let message = id(ask("m.room.message", "1", json!({ "delay_ms": 8000, "content": content() })));
    assert_eq!(id(ask("m.room.message", "1", json!({ "delay": 8000, "content": content() }))), message);
    // What another device calls the same is another one.
    let path = format!(
        "/_matrix/client/unstable/org.matrix.msc4140/rooms/{}/delayed_event/m.room.message/1",
        segment(&room)
    );
    let second = server.device_of(&alice, "SECOND");
    let body = json!({ "delay_ms": 8000, "content": content() });
    let of_second = id(second.request("PUT", &path, Some(body)));
    assert_eq!((of_second == message, act(&alice, &of_second, "cancel")), (false, 200));
    let topic = json!({ "delay": 8000, "content": { "topic": "later" }, "state_key": "" });
    let topic = id(ask("m.room.topic", "1", topic));
    assert_eq!(ids(&alice).len(), 2);
    assert_eq!(act(&alice, &topic, "send"), 200);
    assert_eq!(alice.state(&room, "m.room.topic", ""), Some(json!({ "topic": "later" })));
    server.advance(Duration::from_secs(9));
    wait_until("it is sent", || said(&alice, &room) == ["later"]);
}

#[test]
fn whoever_had_an_event_delayed_knows_it_by_its_id_and_nobody_else_does() {
    const DELAY_ID: &str = "org.matrix.msc4140.delay_id";
    let (server, there) = TestServer::pair();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), there.user("carol"));
    let second = server.device_of(&alice, "SECOND");
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&room);
    carol.join_via(&room, &[server.name()]);
    let content = json!({ "msgtype": "m.text", "body": "later" });
    let message = id(delayed(&alice, &message_path(&room, "1"), "10000", content));
    let topic =
        id(delayed(&alice, &room_path(&room, "state/m.room.topic/"), "10000", json!({ "topic": "x" })));
    let member = room_path(&room, &format!("state/m.room.member/{}", segment(bob.id())));
    let kick = id(delayed(&alice, &member, "10000", json!({ "membership": "leave" })));
    let wanted = [message, topic, kick];
    assert!(wanted.iter().all(|id| act(&alice, id, "send") == 200));
    carol
        .wait_for(&room, |event| event["state_key"] == bob.id() && event["content"]["membership"] == "leave");
    let ids_in = |events: &Value| -> Vec<String> {
        let events = events.as_array().expect("a list");
        let ids = events.iter().filter_map(|event| event["unsigned"][DELAY_ID].as_str());
        ids.map(str::to_owned).collect()
    };
    let seen = |user: &TestUser| {
        let room_of = |body: &Value| body["rooms"]["join"][&room]["timeline"]["events"].clone();
        let mut read = user.get(&room_path(&room, "messages?dir=b&limit=50"))["chunk"].clone();
        read.as_array_mut().expect("a list").reverse();
        [ids_in(&room_of(&sync(user, ""))), ids_in(&read)]
    };
    for user in [&alice, &second] {
        assert_eq!(seen(user), [wanted.to_vec(), wanted.to_vec()]);
    }
    assert_eq!(seen(&carol), [Vec::<String>::new(), vec![]]);
    let read = bob.get(&room_path(&room, "messages?dir=b&limit=50"));
    assert_eq!(ids_in(&read["chunk"]), [""; 0]);
    let event = alice.get(&room_path(&room, "messages?dir=b&limit=1"))["chunk"][0]["event_id"].clone();
    let path = room_path(&room, &format!("event/{}", segment(event.as_str().expect("an id"))));
    assert_eq!(alice.get(&path)["unsigned"][DELAY_ID], wanted[2]);
}

#[test]
fn a_delayed_event_is_refused_for_its_relation_as_one_that_is_sent_at_once() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let message = alice.send(&room, "a message");
    let react = |txn: &str| room_path(&room, &format!("send/m.reaction/{txn}"));
    let like = json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": message, "key": "+1" } });
    let liked = alice.put(&react("1"), like.clone())["event_id"].as_str().expect("an id").to_owned();
    let reply = |of: &str| json!({ "msgtype": "m.text", "body": "in a thread", "m.relates_to": { "rel_type": "m.thread", "event_id": of } });
    // What is refused at once is refused when it is due, and what is not is sent.
    id(delayed(&alice, &react("2"), "0", like));
    id(delayed(&alice, &message_path(&room, "3"), "0", reply(&liked)));
    id(delayed(&alice, &message_path(&room, "4"), "0", reply(&message)));
    wait_until("all are done with", || ids(&alice).is_empty());
    let related = |kind: &str, of: &str| {
        let path = format!("/_matrix/client/v1/rooms/{}/relations/{}/{kind}", segment(&room), segment(of));
        alice.get(&path)["chunk"].as_array().expect("a list").len()
    };
    assert_eq!(related("m.annotation", &message), 1, "no second annotation of the same kind");
    assert_eq!(related("m.thread", &liked), 0, "no thread at an event that relates to another");
    assert_eq!(related("m.thread", &message), 1);
}

#[test]
fn delays_that_make_no_sense_are_refused_and_a_user_has_a_bounded_number_of_them() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let send = |user: &TestUser, txn: &str, delay: &str| {
        delayed(user, &message_path(&room, txn), delay, json!({ "body": "x" }))
    };
    for wrong in ["-1", "NaN", "", "1.5", "1e3", "99999999999999999999", "soon"] {
        let (status, answer) = send(&alice, "w", wrong);
        assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")), "{wrong}");
    }
    for long in ["86400001", "9223372036854775807"] {
        let (status, answer) = send(&alice, "l", long);
        // What js-sdk shortens its delay by.
        assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_UNKNOWN")), "{answer}");
        assert_eq!(answer["org.matrix.msc4140.errcode"], "M_MAX_DELAY_EXCEEDED");
        assert_eq!(answer["org.matrix.msc4140.max_delay"], 86_400_000);
    }
    let parent = format!("{}?org.matrix.msc4140.parent_delay_id=x", message_path(&room, "p"));
    assert_eq!(alice.request("PUT", &parent, Some(json!({ "body": "now" }))).0, 400);
    let large = json!({ "body": "x".repeat(62_000) });
    assert_eq!(delayed(&alice, &message_path(&room, "g"), "1000", large).0, 413);
    assert_eq!(said(&alice, &room), [""; 0]);
    for number in 0..100 {
        id(send(&alice, &format!("n{number}"), "86400000"));
    }
    let (status, answer) = send(&alice, "one too many", "1000");
    assert_eq!((status, answer["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")), "{answer}");
    assert!(answer["retry_after_ms"].as_i64().is_some_and(|ms| ms > 0));
    id(send(&bob, "of another", "1000"));
    assert_eq!(act(&alice, &ids(&alice)[0], "cancel"), 200);
    id(send(&alice, "there is room again", "1000"));
    // Restarts are outside the limits of messages.
    let kept = ids(&alice)[0].clone();
    assert!((0..300).all(|_| act(&alice, &kept, "restart") == 200));
}

#[test]
fn delayed_events_are_sent_across_a_restart_of_the_server_and_those_of_a_closed_account_are_not() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room();
    let key = format!("_{}_DEVICE_m.call", alice.id());
    alice.put(&state_path(&room, &key), json!({ "application": "m.call" }));
    let leave = id(delayed(&alice, &state_path(&room, &key), "3000", json!({})));
    let message = id(delayed(
        &alice,
        &message_path(&room, "t"),
        "86400000",
        json!({ "msgtype": "m.text", "body": "x" }),
    ));
    server.kill();
    server.resume();
    wait_until("the leave is there", || alice.state(&room, MEMBER, &key) == Some(json!({})));
    assert_eq!(ids(&alice), std::slice::from_ref(&message));
    let again = || {
        let content = json!({ "msgtype": "m.text", "body": "x" });
        id(delayed(&alice, &message_path(&room, "t"), "0", content))
    };
    assert_eq!(again(), message);
    assert_eq!((act(&alice, &leave, "send"), act(&alice, &message, "send")), (200, 200));
    assert_eq!(said(&alice, &room), ["x"]);
    server.kill();
    server.resume();
    assert_eq!((again(), ids(&alice).len()), (message, 0));
    assert_eq!(said(&alice, &room), ["x"]);
}

#[test]
fn calls_are_told_where_their_media_goes_if_it_goes_anywhere() {
    let url = "https://livekit.example.org";
    let with = TestServer::start_with(|config| config.livekit_service_url = Some(url.to_owned()));
    let transport = json!({ "type": "livekit", "livekit_service_url": url });
    let path = "/_matrix/client/unstable/org.matrix.msc4143/rtc/transports";
    let alice = with.user("alice");
    assert_eq!(alice.get(path), json!({ "rtc_transports": [transport] }));
    let nobody = TestUser::new(with.url(), "(nobody)", "");
    assert_eq!(nobody.request("GET", path, None).0, 401);
    assert_eq!(nobody.get("/.well-known/matrix/client")["org.matrix.msc4143.rtc_foci"], json!([transport]));
    let without = TestServer::start();
    let bob = without.user("bob");
    let (status, answer) = bob.request("GET", path, None);
    assert_eq!((status, &answer["errcode"]), (404, &json!("M_UNRECOGNIZED")));
    assert!(bob.get("/.well-known/matrix/client").get("org.matrix.msc4143.rtc_foci").is_none());
    let capability =
        &bob.get(&format!("{V3}/capabilities"))["capabilities"]["org.matrix.msc4140.delayed_events"];
    assert_eq!(*capability, json!({ "max_delay_ms": 86_400_000, "max_scheduled": 100 }));
    let flags = &bob.get("/_matrix/client/versions")["unstable_features"];
    assert_eq!(flags["org.matrix.msc4140"], true);
    assert_eq!(flags["uk.half-shot.msc2666.query_mutual_rooms"], true);

    // A call hands its keys to all members at once.
    let room = bob.create_room();
    assert!(!room.is_empty());
    for number in 0..30 {
        let path = format!("{V3}/sendToDevice/io.element.call.encryption_keys/{number}");
        bob.put(&path, json!({ "messages": { bob.id(): { "*": { "keys": [] } } } }));
    }
}

#[test]
fn one_user_whose_events_take_long_holds_up_nobody_elses() {
    let server = TestServer::start();
    let (mallory, bob) = (server.user("mallory"), server.user("bob"));
    let (hers, his) = (mallory.create_room(), bob.create_room());
    // Each is to take an invite, and takes the connection, and never says anything.
    let silent: Vec<TcpListener> =
        (0..40).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    for listener in &silent {
        let user = format!("@eve:{}", listener.local_addr().expect("an address"));
        let path = room_path(&hers, &format!("state/m.room.member/{}", segment(&user)));
        id(delayed(&mallory, &path, "0", json!({ "membership": "invite" })));
    }
    for number in 0..3 {
        let body = format!("message {number}");
        let content = json!({ "msgtype": "m.text", "body": body });
        id(delayed(&bob, &message_path(&his, &body), "0", content));
        wait_until(&format!("{body} is sent"), || said(&bob, &his).contains(&body));
    }
    assert!(ids(&mallory).len() > 20, "they do take long");
}
