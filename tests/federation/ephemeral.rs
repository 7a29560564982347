//! What is fleeting: typing, receipts and presence, within a server and between servers.

use std::collections::HashSet;
use std::time::{Duration, Instant};

use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{bob_at, edus_at};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn path(room: &str, rest: &str) -> String {
    format!("/_matrix/client/v3/rooms/{}/{rest}", segment(room))
}

#[track_caller]
fn type_in(user: &TestUser, room: &str, typing: bool, timeout: i64) {
    let body =
        if typing { json!({ "typing": true, "timeout": timeout }) } else { json!({ "typing": false }) };
    user.put(&path(room, &format!("typing/{}", segment(user.id()))), body);
}

/// The fleeting events of this type that an answer of `/sync` has for a room.
fn fleeting<'a>(answer: &'a Value, room: &str, event_type: &str) -> Vec<&'a Value> {
    let events = answer["rooms"]["join"][room]["ephemeral"]["events"].as_array();
    events.into_iter().flatten().filter(|e| e["type"] == event_type).map(|e| &e["content"]).collect()
}

/// Waits until the user is told that exactly these are typing.
#[track_caller]
fn sees_typing(user: &TestUser, room: &str, who: &[&str]) {
    user.sync_until(&format!("{who:?} typing"), |answer| {
        fleeting(answer, room, "m.typing").iter().any(|c| c["user_ids"] == json!(who)).then_some(())
    });
}

#[track_caller]
fn read_up_to(user: &TestUser, room: &str, receipt_type: &str, event: &str, body: Value) {
    user.post(&path(room, &format!("receipt/{receipt_type}/{}", segment(event))), body);
}

/// The event that a receipt in this answer is for: of a user, a type and a thread.
fn receipt_in(answer: &Value, room: &str, kind: &str, user: &str, thread: Option<&str>) -> Option<String> {
    for content in fleeting(answer, room, "m.receipt") {
        for (event, by_type) in content.as_object()? {
            let receipt = &by_type[kind][user];
            if receipt.is_object() && receipt["thread_id"].as_str() == thread {
                return Some(event.clone());
            }
        }
    }
    None
}

#[track_caller]
fn sees_receipt(user: &TestUser, room: &str, of: &str, thread: Option<&str>, event: &str) {
    user.sync_until(&format!("a receipt of {of} for {event}"), |answer| {
        (receipt_in(answer, room, "m.read", of, thread).as_deref() == Some(event)).then_some(())
    });
}

pub fn edu(edu_type: &str, content: Value) -> Value {
    json!({ "edu_type": edu_type, "content": content })
}

fn typing_edu(room: &str, user: &str, typing: bool) -> Value {
    edu("m.typing", json!({ "room_id": room, "user_id": user, "typing": typing }))
}

#[test]
fn typing_is_told_when_it_changes_and_ends_by_itself() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.initial_sync();
    type_in(&alice, &room, true, 20_000);
    sees_typing(&bob, &room, &[alice.id()]);
    type_in(&bob, &room, true, 60_000);
    sees_typing(&bob, &room, &[alice.id(), bob.id()]);
    // To go on typing is no news.
    type_in(&alice, &room, true, 30_000);
    assert!(fleeting(&bob.sync(Duration::ZERO), &room, "m.typing").is_empty());
    server.advance(Duration::from_secs(31));
    sees_typing(&bob, &room, &[bob.id()]);
    type_in(&bob, &room, false, 0);
    sees_typing(&bob, &room, &[]);
    assert!(fleeting(&bob.sync(Duration::ZERO), &room, "m.typing").is_empty());
    assert!(fleeting(&bob.initial_sync(), &room, "m.typing").is_empty());
}

#[test]
fn that_nobody_types_any_more_is_told_however_the_last_one_stops_and_however_one_asks() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&room);
    let since = |answer: &Value| answer["next_batch"].as_str().expect("a token").to_owned();
    let typing = |query: &str| {
        let answer = alice.get(&format!("/_matrix/client/v3/sync?{query}"));
        let lists = fleeting(&answer, &room, "m.typing").into_iter().cloned().collect::<Vec<_>>();
        (since(&answer), lists)
    };
    for how in ["stops", "expires", "leaves", "is kicked"] {
        let token = typing("").0;
        type_in(&bob, &room, true, 60_000);
        let (token, list) = typing(&format!("since={token}"));
        assert_eq!(list, [json!({ "user_ids": [bob.id()] })], "{how}");
        match how {
            "stops" => type_in(&bob, &room, false, 0),
            "expires" => server.advance(Duration::from_secs(61)),
            "leaves" => bob.leave(&room),
            _ => drop(alice.post(&path(&room, "kick"), json!({ "user_id": bob.id() }))),
        }
        // Also if the client asks for everything once more, or its timeline has a gap.
        let nobody = [json!({ "user_ids": [] })];
        wait_until("nobody types any more", || typing(&format!("since={token}")).1 == nobody);
        assert_eq!(typing(&format!("since={token}&full_state=true")).1, nobody, "{how}");
        for n in 0..12 {
            alice.send(&room, &n.to_string());
        }
        let (after, list) = typing(&format!("since={token}"));
        assert_eq!(list, nobody, "{how}");
        assert!(typing(&format!("since={after}")).1.is_empty(), "once");
        assert!(typing("").1.is_empty(), "and not to who never had another list");
        bob.join(&room);
    }
}

#[test]
fn typing_is_for_oneself_in_rooms_that_one_is_in_and_for_a_while() {
    let server = TestServer::start();
    let (alice, eve) = (server.user("alice"), server.user("eve"));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    let put = |user: &TestUser, room: &str, whom: &str, body: Value| {
        user.request("PUT", &path(room, &format!("typing/{}", segment(whom))), Some(body)).0
    };
    assert_eq!(put(&eve, &room, eve.id(), json!({ "typing": true })), 403);
    assert_eq!(put(&alice, "!nowhere:localhost", alice.id(), json!({ "typing": true })), 403);
    assert_eq!(put(&alice, &room, eve.id(), json!({ "typing": true })), 403);
    assert_eq!(put(&alice, &room, alice.id(), json!({})), 400);
    assert_eq!(put(&alice, &room, alice.id(), json!({ "typing": "yes" })), 400);
    assert_eq!(put(&alice, &room, alice.id(), json!({ "typing": true, "timeout": -1 })), 400);
    alice.initial_sync();
    assert_eq!(put(&alice, &room, alice.id(), json!({ "typing": true, "timeout": i64::MAX })), 200);
    sees_typing(&alice, &room, &[alice.id()]);
    server.advance(Duration::from_secs(130));
    sees_typing(&alice, &room, &[]);
}

#[test]
fn an_old_token_learns_after_a_restart_that_nobody_types_any_more() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.initial_sync();
    type_in(&alice, &room, true, 30_000);
    sees_typing(&bob, &room, &[alice.id()]);
    server.restart();
    assert!(fleeting(&bob.sync(Duration::ZERO), &room, "m.typing").is_empty(), "nothing has changed yet");
    server.advance(Duration::from_secs(31));
    sees_typing(&bob, &room, &[]);
}

#[test]
fn a_filter_keeps_fleeting_events_out() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    type_in(&alice, &room, true, 30_000);
    let event = alice.send(&room, "hello");
    read_up_to(&alice, &room, "m.read", &event, json!({}));
    let with = |filter: Value| {
        let filter = segment(&json!({ "room": { "ephemeral": filter } }).to_string());
        alice.get(&format!("/_matrix/client/v3/sync?filter={filter}"))
    };
    let kinds = |filter: Value| {
        let answer = with(filter);
        (fleeting(&answer, &room, "m.typing").len(), fleeting(&answer, &room, "m.receipt").len())
    };
    assert_eq!(kinds(json!({})), (1, 1));
    assert_eq!(kinds(json!({ "not_types": ["m.typing"] })), (0, 1));
    assert_eq!(kinds(json!({ "types": ["m.typing"] })), (1, 0));
    assert_eq!(kinds(json!({ "not_rooms": [room] })), (0, 0));
}

#[test]
fn receipts_and_typing_travel_between_servers_both_ways() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    let event = alice.send(&room, "hello");
    let answer = bob.send(&room, "hello you");
    let path = |event: &str| path(&room, &format!("event/{}", segment(event)));
    wait_until("both have both", || {
        bob.request("GET", &path(&event), None).0 == 200
            && alice.request("GET", &path(&answer), None).0 == 200
    });
    alice.initial_sync();
    bob.initial_sync();
    type_in(&alice, &room, true, 30_000);
    sees_typing(&bob, &room, &[alice.id()]);
    type_in(&alice, &room, false, 0);
    sees_typing(&bob, &room, &[]);
    type_in(&bob, &room, true, 30_000);
    sees_typing(&alice, &room, &[bob.id()]);
    // The end that nobody asked for is told as well.
    b.advance(Duration::from_secs(31));
    sees_typing(&alice, &room, &[]);
    read_up_to(&bob, &room, "m.read", &event, json!({}));
    sees_receipt(&alice, &room, bob.id(), None, &event);
    read_up_to(&alice, &room, "m.read", &answer, json!({ "thread_id": "main" }));
    sees_receipt(&bob, &room, alice.id(), Some("main"), &answer);
    // Whoever looks for the first time sees them, too.
    assert!(receipt_in(&alice.initial_sync(), &room, "m.read", bob.id(), None).is_some());
}

#[test]
fn what_is_fleeting_in_a_room_while_one_of_us_joins_it_is_there_once_we_are_in() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let (room, other) = (FakeRoom::new(&peer, "12", "public"), FakeRoom::new(&peer, "12", "public"));
    let (id, said, gate) = (room.id.as_str(), room.last.as_str(), Gate::default());
    peer.let_in(&room, alice.id());
    peer.answer_behind(&gate, "/send_join/", 200, room.join_answer());
    let reader = room.creator.as_str();
    let receipt =
        |event: &str| json!({ "m.read": { reader: { "event_ids": [event], "data": { "ts": 1 } } } });
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| alice.join_via(id, &[peer.name().as_str()]));
        peer.wait_for("/send_join/");
        peer.send_edus(
            server.name(),
            "1",
            &[
                typing_edu(id, reader, true),
                // One message for two rooms, of which nobody joins the other.
                edu("m.receipt", json!({ id: receipt(said), other.id.as_str(): receipt(said) })),
                // Of nobody of that server, and nobody in the room.
                typing_edu(id, "@somebody:else.example", true),
                typing_edu(id, peer.user("nobody").as_str(), true),
            ],
        );
        gate.open();
        joining.join().expect("the join is done");
    });
    wait_until("who types and who reads is known", || {
        let answer = alice.initial_sync();
        let typing = fleeting(&answer, id, "m.typing").iter().any(|c| c["user_ids"] == json!([reader]));
        typing && receipt_in(&answer, id, "m.read", reader, None).as_deref() == Some(said)
    });
}

#[test]
fn a_private_receipt_is_for_its_owner_alone() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let room = room.id.as_str();
    let carol = server.user("carol");
    carol.join(room);
    let (first, second) = (carol.send(room, "one"), carol.send(room, "two"));
    bob.initial_sync();
    carol.initial_sync();
    read_up_to(&bob, room, "m.read.private", &second, json!({}));
    read_up_to(&bob, room, "m.read", &first, json!({}));
    sees_receipt(&carol, room, bob.id(), None, &first);
    let seen = carol.initial_sync();
    assert_eq!(receipt_in(&seen, room, "m.read.private", bob.id(), None), None);
    let own = bob.sync(Duration::ZERO);
    assert_eq!(receipt_in(&own, room, "m.read.private", bob.id(), None), Some(second.clone()));
    assert_eq!(receipt_in(&own, room, "m.read", bob.id(), None), Some(first.clone()));
    wait_until("the peer hears of the public one", || !edus_at(&peer, "m.receipt").is_empty());
    let told = edus_at(&peer, "m.receipt");
    assert!(told.iter().all(|c| !c.to_string().contains("private") && !c.to_string().contains(&second)));
    let receipt = &told[0][room]["m.read"][bob.id()];
    assert_eq!(receipt["event_ids"], json!([first]));
    assert!(receipt["data"]["ts"].is_i64() && receipt["data"].get("thread_id").is_none(), "{receipt}");
}

#[test]
fn a_server_that_was_away_hears_up_to_where_was_read_meanwhile_also_across_a_stop_of_ours() {
    let peer = Peer::start();
    let (mut server, bob, room) = bob_at(&peer);
    let room = room.id.as_str();
    let carol = server.user("carol");
    carol.join(room);
    let away = || peer.answer_json("/send/", 503, json!({ "errcode": "M_UNKNOWN", "error": "away" }));
    let fails_now = |before: usize| wait_until("it is tried", || peer.asked("/send/").len() > before);
    let told = || edus_at(&peer, "m.receipt");
    let says = |said: &str| told().iter().any(|c| c[room]["m.read"][bob.id()]["event_ids"] == json!([said]));
    // It is known to be away, and two receipts come.
    away();
    let before = peer.asked("/send/").len();
    let said = ["one", "two", "three", "four"].map(|text| carol.send(room, text));
    fails_now(before);
    read_up_to(&bob, room, "m.read", &said[0], json!({}));
    read_up_to(&bob, room, "m.read", &said[1], json!({}));
    read_up_to(&bob, room, "m.read.private", &said[2], json!({}));
    peer.take_transactions();
    server.advance(Duration::from_secs(3600));
    wait_until("it hears up to where was read", || says(&said[1]));
    assert!(!told().iter().any(|c| c.to_string().contains(&said[2])), "not what is private: {:?}", told());
    assert!(!says(&said[0]), "what is over is not told");
    // Its line hangs, and we stop.
    let gate = Gate::default();
    peer.answer_behind(&gate, "/send/", 503, json!({ "errcode": "M_UNKNOWN", "error": "away" }));
    let before = peer.asked("/send/").len();
    carol.send(room, "five");
    fails_now(before);
    read_up_to(&bob, room, "m.read", &said[3], json!({}));
    server.stop();
    gate.open();
    peer.take_transactions();
    assert!(!says(&said[3]));
    server.resume();
    wait_until("it hears it after the start", || says(&said[3]));
}

#[test]
fn a_receipt_goes_forward_only_and_each_thread_has_its_own() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let (root, later) = (alice.send(&room, "root"), alice.send(&room, "later"));
    let relation = |rel: Value| json!({ "msgtype": "m.text", "body": "re", "m.relates_to": rel });
    let send = |content: Value| {
        let id = doorstep::random::token();
        let answer = alice.put(&path(&room, &format!("send/m.room.message/{id}")), content);
        answer["event_id"].as_str().expect("an id").to_owned()
    };
    let inside = send(relation(json!({ "rel_type": "m.thread", "event_id": root })));
    let edit = send(relation(json!({ "rel_type": "m.replace", "event_id": inside })));
    bob.initial_sync();
    read_up_to(&bob, &room, "m.read", &later, json!({}));
    read_up_to(&bob, &room, "m.read", &root, json!({}));
    read_up_to(&bob, &room, "m.read", &root, json!({ "thread_id": "main" }));
    read_up_to(&bob, &room, "m.read", &edit, json!({ "thread_id": root }));
    let seen = bob.sync(Duration::ZERO);
    assert_eq!(receipt_in(&seen, &room, "m.read", bob.id(), None), Some(later.clone()));
    assert_eq!(receipt_in(&seen, &room, "m.read", bob.id(), Some("main")), Some(root.clone()));
    assert_eq!(receipt_in(&seen, &room, "m.read", bob.id(), Some(&root)), Some(edit));
    let refused = |kind: &str, event: &str, body: Value| {
        let path = path(&room, &format!("receipt/{kind}/{}", segment(event)));
        let (status, answer) = bob.request("POST", &path, Some(body));
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    let wrong = (400, "M_INVALID_PARAM".to_owned());
    assert_eq!(refused("m.read", &inside, json!({ "thread_id": "main" })), wrong);
    assert_eq!(refused("m.read", &later, json!({ "thread_id": root })), wrong);
    assert_eq!(refused("m.read", &later, json!({ "thread_id": "" })), wrong);
    assert_eq!(refused("m.read", &later, json!({ "thread_id": 7 })), wrong);
    assert_eq!(refused("m.fully_read", &later, json!({ "thread_id": "main" })), wrong);
    assert_eq!(refused("m.seen", &later, json!({})), wrong);
    assert_eq!(refused("m.read", "$unknown", json!({})), (404, "M_NOT_FOUND".into()));
    let eve = server.user("eve");
    let eves = eve.request("POST", &path(&room, &format!("receipt/m.read/{}", segment(&root))), None);
    assert_eq!(eves.0, 403);
}

#[test]
fn read_markers_move_the_marker_and_both_receipts_at_once() {
    let mut server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let (one, two) = (alice.send(&room, "one"), alice.send(&room, "two"));
    alice.initial_sync();
    let body = json!({ "m.fully_read": one, "m.read": one, "m.read.private": two });
    alice.post(&path(&room, "read_markers"), body);
    let seen = alice.sync(Duration::ZERO);
    let data = seen["rooms"]["join"][&room]["account_data"]["events"].clone();
    assert_eq!(data, json!([{ "type": "m.fully_read", "content": { "event_id": one } }]));
    assert_eq!(receipt_in(&seen, &room, "m.read", alice.id(), None), Some(one.clone()));
    assert_eq!(receipt_in(&seen, &room, "m.read.private", alice.id(), None), Some(two.clone()));
    read_up_to(&alice, &room, "m.fully_read", &two, json!({}));
    alice.post(&path(&room, "read_markers"), json!({ "m.fully_read": one }));
    let bad = alice.request("POST", &path(&room, "read_markers"), Some(json!({ "m.read": "$gone" })));
    assert_eq!(bad.0, 404);
    server.restart();
    let marker = format!("/_matrix/client/v3/user/{}/rooms/{}", segment(alice.id()), segment(&room));
    let marker = alice.get(&format!("{marker}/account_data/m.fully_read"));
    assert_eq!(marker["event_id"], json!(two), "it never goes back, and lasts");
}

#[test]
fn only_the_last_word_on_typing_waits_for_a_server_that_is_busy() {
    let peer = Peer::start();
    let (_server, bob, room) = bob_at(&peer);
    let gate = crate::common::wait::Gate::default();
    peer.answer("/send/", {
        let gate = gate.clone();
        move |asked| {
            // What else is sent when a room is joined goes before.
            if asked.body["edus"].to_string().contains("m.typing") {
                gate.pass();
            }
            doorstep::internals::Reply::json(&json!({ "pdus": {} }))
        }
    });
    type_in(&bob, room.id.as_str(), true, 30_000);
    wait_until("the first word is on its way", || !edus_at(&peer, "m.typing").is_empty());
    for typing in [false, true, false, true, false] {
        type_in(&bob, room.id.as_str(), typing, 30_000);
    }
    gate.open();
    wait_until("the last word arrives", || edus_at(&peer, "m.typing").len() > 1);
    let told: Vec<Value> = edus_at(&peer, "m.typing").iter().map(|c| c["typing"].clone()).collect();
    assert_eq!(told, [true, false]);
}

#[test]
fn what_a_server_says_of_others_or_of_rooms_that_keep_it_out_is_passed_over() {
    let peer = Peer::start();
    let (server, bob, mut room) = bob_at(&peer);
    let (creator, stranger, id) = (room.creator.clone(), peer.user("stranger"), room.id.to_string());
    let id = id.as_str();
    let event = bob.send(id, "hello");
    bob.initial_sync();
    let receipt = |user: &str, event: &str| {
        let said = json!({ "event_ids": [event], "data": { "ts": 1 } });
        edu("m.receipt", json!({ id: { "m.read": { user: said } } }))
    };
    let deep = "[".repeat(100) + &"]".repeat(100);
    let hostile = [
        typing_edu(id, bob.id(), true),
        typing_edu(id, stranger.as_str(), true),
        typing_edu("!elsewhere:localhost", creator.as_str(), true),
        edu("m.typing", json!({ "room_id": id, "user_id": 7, "typing": true })),
        edu("m.typing", json!({})),
        receipt(bob.id(), &event),
        receipt(stranger.as_str(), &event),
        receipt(creator.as_str(), &"x".repeat(100_000)),
        edu("m.receipt", json!({ id: { "m.read": { creator.as_str(): { "event_ids": [], "data": {} } } } })),
        edu("m.receipt", json!({ id: { "m.read": 5, "m.read.private": { creator.as_str(): 1 } }, "x": 3 })),
        edu("m.unknown", json!({ "x": serde_json::from_str::<Value>(&deep).expect("JSON") })),
        json!({ "edu_type": 5 }),
        json!("none"),
        typing_edu(id, creator.as_str(), true),
        receipt(creator.as_str(), &event),
    ];
    peer.send_edus(server.name(), "t1", &hostile);
    let seen = bob.sync(Duration::ZERO);
    assert_eq!(fleeting(&seen, id, "m.typing"), [&json!({ "user_ids": [creator] })]);
    let expected = json!({ event.as_str(): { "m.read": { creator.as_str(): { "ts": 1 } } } });
    assert_eq!(fleeting(&seen, id, "m.receipt"), [&expected]);
    // The room shuts the peer out: its messages about the room count no more.
    let acl = json!({ "allow": ["*"], "deny": ["127.0.0.1"] });
    let acl = room.add(&peer, "m.room.server_acl", "", &creator, acl);
    let (_, answer) = peer.send_transaction(server.name(), "t2", &[&acl]);
    assert_eq!(answer["pdus"][acl.event_id().as_str()], json!({}), "{answer}");
    let second = bob.send(id, "second");
    bob.sync(Duration::ZERO);
    let shut_out = [typing_edu(id, creator.as_str(), false), receipt(creator.as_str(), &second)];
    peer.send_edus(server.name(), "t3", &shut_out);
    let seen = bob.sync(Duration::ZERO);
    assert!(fleeting(&seen, id, "m.typing").is_empty() && fleeting(&seen, id, "m.receipt").is_empty());
    // Somebody whose server said no more stops in the end.
    server.advance(Duration::from_secs(61));
    sees_typing(&bob, id, &[]);
}

#[test]
fn more_ephemeral_messages_than_a_transaction_may_have_are_refused() {
    let peer = Peer::start();
    let (server, _bob, room) = bob_at(&peer);
    let one = typing_edu(room.id.as_str(), room.creator.as_str(), true);
    let body =
        json!({ "origin": peer.name(), "origin_server_ts": now_ms(), "pdus": [], "edus": vec![one; 101] });
    let (status, answer) = peer.ask(server.name(), "PUT", "/_matrix/federation/v1/send/t", Some(&body));
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_BAD_JSON")), "{answer}");
}

/// What an answer of `/sync` says of somebody's presence.
pub fn presence_in(answer: &Value, user: &str) -> Option<Value> {
    let events = answer["presence"]["events"].as_array()?;
    Some(events.iter().find(|event| event["sender"] == user)?["content"].clone())
}

#[track_caller]
pub fn sees_presence(user: &TestUser, of: &str, presence: &str) -> Value {
    user.sync_until(&format!("{of} {presence}"), |answer| {
        presence_in(answer, of).filter(|content| content["presence"] == presence)
    })
}

pub fn presence_path(user: &str) -> String {
    format!("/_matrix/client/v3/presence/{}/status", segment(user))
}

#[test]
fn presence_follows_what_clients_do_and_what_users_say() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.initial_sync();
    alice.initial_sync();
    let seen = sees_presence(&bob, alice.id(), "online");
    assert!(seen["last_active_ago"].is_u64() && seen["currently_active"] == true, "{seen}");
    assert!(presence_in(&alice.sync(Duration::ZERO), alice.id()).is_none(), "one's own is no news");
    // Only news are news.
    alice.sync(Duration::ZERO);
    assert_eq!(presence_in(&bob.sync(Duration::ZERO), alice.id()), None);
    alice.put(&presence_path(alice.id()), json!({ "presence": "unavailable", "status_msg": "lunch" }));
    assert_eq!(sees_presence(&bob, alice.id(), "unavailable")["status_msg"], "lunch");
    alice.send(&room, "back");
    sees_presence(&bob, alice.id(), "online");
    // Clients that ask for news and do nothing else.
    for _ in 0..12 {
        server.advance(Duration::from_secs(26));
        alice.sync(Duration::ZERO);
    }
    sees_presence(&bob, alice.id(), "unavailable");
    server.restart();
    assert_eq!(bob.get(&presence_path(alice.id()))["presence"], "unavailable");
    server.advance(Duration::from_secs(120));
    sees_presence(&bob, alice.id(), "offline");
    alice.get("/_matrix/client/v3/sync?set_presence=offline");
    assert_eq!(bob.get(&presence_path(alice.id()))["presence"], "offline");
    alice.get("/_matrix/client/v3/sync?set_presence=unavailable");
    assert_eq!(sees_presence(&bob, alice.id(), "unavailable")["status_msg"], "lunch");
    let answer = bob.initial_sync();
    assert_eq!(presence_in(&answer, alice.id()).expect("alice is there")["presence"], "unavailable");
    assert_eq!(alice.request("GET", "/_matrix/client/v3/sync?set_presence=asleep", None).0, 400);
}

#[test]
fn presence_is_what_the_clients_of_all_devices_come_to() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let phone = server.device_of(&alice, "PHONE");
    let poll = |user: &TestUser, presence: &str| {
        user.get(&format!("/_matrix/client/v3/sync?set_presence={presence}"));
    };
    let is = |presence: &str| assert_eq!(bob.get(&presence_path(alice.id()))["presence"], presence);
    poll(&alice, "online");
    is("online");
    poll(&alice, "unavailable");
    is("unavailable");
    poll(&phone, "online");
    is("online");
    poll(&alice, "unavailable");
    is("online");
    poll(&phone, "unavailable");
    is("unavailable");
    poll(&alice, "online");
    poll(&alice, "offline");
    is("unavailable");
    poll(&phone, "offline");
    is("offline");
    poll(&phone, "online");
    server.advance(Duration::from_secs(20));
    poll(&alice, "unavailable");
    is("online");
    server.advance(Duration::from_secs(15));
    // The phone has asked no more; the other client still calls its user idle.
    sees_presence(&bob, alice.id(), "unavailable");
    server.advance(Duration::from_secs(31));
    sees_presence(&bob, alice.id(), "offline");
}

#[test]
fn many_who_come_at_once_wake_those_who_wait_a_few_times_and_not_once_each() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let crowd: Vec<TestUser> = (0..60).map(|n| server.user(&format!("u{n}"))).collect();
    let room = bob.create_room();
    for one in &crowd {
        one.join(&room);
    }
    bob.initial_sync();
    let (begun, mut seen, mut answers) = (Instant::now(), HashSet::new(), 0);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            for one in &crowd {
                one.put(&presence_path(one.id()), json!({ "presence": "online" }));
            }
        });
        while seen.len() < crowd.len() {
            let answer = bob.sync(Duration::from_secs(20));
            answers += 1;
            let events = answer["presence"]["events"].as_array().cloned().unwrap_or_default();
            seen.extend(events.into_iter().map(|event| event["sender"].to_string()));
        }
    });
    // Wakes are a second apart; who asks anew is told what there is already, which on a busy machine is often something.
    assert!(answers <= crowd.len() / 3, "{answers} answers in {:?}", begun.elapsed());
}

#[test]
fn presence_is_for_those_who_share_a_room_and_set_by_oneself() {
    let server = TestServer::start();
    let (alice, eve) = (server.user("alice"), server.user("eve"));
    let status = |user: &TestUser, method: &str, of: &str, body: Option<Value>| {
        user.request(method, &presence_path(of), body).0
    };
    eve.initial_sync();
    alice.put(&presence_path(alice.id()), json!({ "presence": "online" }));
    assert_eq!(alice.get(&presence_path(alice.id()))["presence"], "online");
    assert_eq!(status(&eve, "GET", alice.id(), None), 403);
    assert_eq!(status(&eve, "GET", "@nobody:localhost", None), 403);
    assert!(eve.sync(Duration::ZERO).get("presence").is_none());
    assert_eq!(status(&eve, "PUT", alice.id(), Some(json!({ "presence": "offline" }))), 403);
    assert_eq!(status(&alice, "PUT", alice.id(), Some(json!({ "presence": "asleep" }))), 400);
    assert_eq!(status(&alice, "PUT", alice.id(), Some(json!({}))), 400);
    let long = json!({ "presence": "online", "status_msg": "x".repeat(2000) });
    assert_eq!(status(&alice, "PUT", alice.id(), Some(long)), 400);
    // Whoever comes into a room sees who is there.
    let room = alice.create_room();
    eve.join(&room);
    sees_presence(&eve, alice.id(), "online");
}

#[test]
fn presence_travels_between_servers() {
    let (a, b) = TestServer::pair();
    let (alice, bob) = (a.user("alice"), b.user("bob"));
    let room = alice.create_room();
    bob.join_via(&room, &[a.name()]);
    bob.initial_sync();
    alice.put(&presence_path(alice.id()), json!({ "presence": "online", "status_msg": "here" }));
    assert_eq!(sees_presence(&bob, alice.id(), "online")["status_msg"], "here");
    assert_eq!(bob.get(&presence_path(alice.id()))["currently_active"], true);
    a.advance(Duration::from_secs(90));
    sees_presence(&bob, alice.id(), "offline");
}

#[test]
fn of_the_presence_that_a_server_tells_only_that_of_its_own_users_counts() {
    let peer = Peer::start();
    let (server, bob, room) = bob_at(&peer);
    let (creator, stranger) = (room.creator.clone(), peer.user("stranger"));
    bob.initial_sync();
    let push = |user: &str, presence: &str, ago: i64| json!({ "user_id": user, "presence": presence, "last_active_ago": ago, "currently_active": false });
    let mut crowd = vec![push(bob.id(), "offline", 5), push(stranger.as_str(), "online", 5), json!(7)];
    crowd.extend([push(creator.as_str(), "asleep", 1), push(creator.as_str(), "online", i64::MAX)]);
    let mut edus = vec![edu("m.presence", json!({ "push": crowd })), edu("m.presence", json!({ "push": 3 }))];
    let late: Vec<Value> =
        (0..100).map(|_| json!({})).chain([push(creator.as_str(), "offline", 1)]).collect();
    edus.push(edu("m.presence", json!({ "push": late })));
    peer.send_edus(server.name(), "t1", &edus);
    sees_presence(&bob, creator.as_str(), "online");
    assert_eq!(bob.get(&presence_path(bob.id()))["presence"], "online");
    let unknown = server.homeserver().store.read(|db| db.presence(&stranger)).expect("read");
    assert_eq!(unknown, None, "nobody here shares a room with them");
    let long = "x".repeat(5000);
    let mut wordy = push(creator.as_str(), "unavailable", 0);
    wordy["status_msg"] = json!(long);
    peer.send_edus(server.name(), "t2", &[edu("m.presence", json!({ "push": [wordy] }))]);
    let seen = sees_presence(&bob, creator.as_str(), "unavailable");
    assert!(seen.get("status_msg").is_none(), "{seen}");
    // A server that says no more is taken to be gone.
    server.advance(Duration::from_secs(31 * 60));
    sees_presence(&bob, creator.as_str(), "offline");
    // And ours are told of again, in case the other side thinks the same.
    wait_until("the peer hears of bob", || {
        edus_at(&peer, "m.presence").iter().any(|c| c["push"][0]["user_id"] == bob.id())
    });
}

#[test]
fn a_server_without_presence_tells_none_and_takes_none_in() {
    let server = TestServer::start_with(|config| config.presence = false);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.initial_sync();
    alice.put(&presence_path(alice.id()), json!({ "presence": "online" }));
    alice.initial_sync();
    assert!(bob.sync(Duration::ZERO).get("presence").is_none());
    assert_eq!(bob.get(&presence_path(alice.id())), json!({ "presence": "offline" }));
}

#[test]
fn once_presence_is_switched_off_clients_are_told_that_nobody_is_there() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    alice.put(&presence_path(alice.id()), json!({ "presence": "online" }));
    let first = bob.initial_sync().to_string();
    assert!(first.contains("\"presence\":\"online\""), "{first}");
    server.stop();
    server.change(|config| config.presence = false);
    server.resume();
    let told = bob.sync(Duration::ZERO);
    let told = told["presence"]["events"].as_array().expect("presence").clone();
    let of_alice = told.iter().find(|event| event["sender"] == alice.id()).expect("alice's");
    assert_eq!(of_alice["content"]["presence"], "offline");
}
