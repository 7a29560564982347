//! Servers that have us wait for them, or for others whom they name: what they hold up is theirs, and nobody else's.

use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::common::client::{one_list, post, room_path, slide};
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::{Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A member event in a room of the peer's of which nothing is known: by whom, about whom, at what depth, and what it rests
/// on.
fn member_event(
    peer: &Peer,
    room: &str,
    (sender, of, membership): (&UserId, &TestUser, &str),
    (depth, auth): (i64, &[&str]),
) -> Pdu {
    let event = json!({
        "type": "m.room.member", "state_key": of.id(), "sender": sender, "room_id": room,
        "content": { "membership": membership }, "origin_server_ts": now_ms(), "depth": depth,
        "prev_events": ["$before"], "auth_events": auth,
    });
    let version = room_version("11").expect("a known version");
    peer.sign(event.as_object().expect("an object").clone(), version)
}

/// An invite to a room that the peer makes up, which the server takes or not.
fn invite(peer: &Peer, server: &TestServer, room: &str, inviter: &UserId, to: &TestUser) -> (Pdu, u16) {
    let event = member_event(peer, room, (inviter, to, "invite"), (100, &[]));
    let body = json!({ "room_version": "11", "event": event.to_object(), "invite_room_state": [] });
    let status = peer.put_event(server.name(), "v2/invite", event.room_id(), &event, &body).0;
    (event, status)
}

#[test]
fn a_server_that_never_answers_about_its_invites_holds_up_neither_rejections_nor_other_look_ups() {
    let server = TestServer::start();
    let (victim, dave) = (server.user("victim"), server.user("dave"));
    let (evil, good) = (Peer::start(), Peer::start());
    let gate = Gate::default();
    evil.answer_behind(&gate, "make_leave", 403, json!({ "errcode": "M_FORBIDDEN", "error": "no" }));
    // Whether what is said bears upon the invite nobody can tell: it rests on something else.
    let doubted = |peer: &Peer, room: String| {
        let host = peer.user(&room[1..3]);
        assert_eq!(invite(peer, &server, &room, &host, &victim).1, 200);
        member_event(peer, &room, (&host, &victim, "leave"), (50, &[]))
    };
    let removals: Vec<Pdu> = (0..12).map(|n| doubted(&evil, format!("!e{n}:{}", evil.name()))).collect();
    let all: Vec<&Pdu> = removals.iter().collect();
    assert_eq!(evil.send_transaction(server.name(), "doubts", &all).0, 200);
    evil.wait_for("make_leave");

    let mut room = FakeRoom::new(&good, "11", "invite");
    room.invite(&good, server.name(), dave.id());
    dave.wait_for_room("invite", room.id.as_str());
    good.let_leave(&room, dave.id());
    dave.leave(room.id.as_str());
    good.wait_for("send_leave");
    // Nor does it hold up an invite that another server casts doubt upon.
    let removal = doubted(&good, format!("!g0:{}", good.name()));
    let asked = good.asked("make_leave").len();
    assert_eq!(good.send_transaction(server.name(), "doubt", &[&removal]).0, 200);
    wait_until("the other invite is looked up", || good.asked("make_leave").len() > asked);
    assert_eq!(evil.asked("make_leave").len(), 1, "one at a time is asked of one server");
    gate.open();
}

#[test]
fn keys_of_silent_servers_that_a_stranger_names_hold_up_no_event_of_our_rooms() {
    let server = TestServer::start();
    let (victim, alice) = (server.user("victim"), server.user("alice"));
    let (evil, friend) = (Peer::start(), Peer::start());
    let mut room = FakeRoom::joined_by(&friend, "11", &alice);
    // They take connections and say nothing.
    let silent: Vec<TcpListener> =
        (0..9).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let removals: Vec<Value> = silent
        .iter()
        .enumerate()
        .map(|(n, door)| {
            let id = format!("!e{n}:{}", evil.name());
            let (invite, status) =
                invite(&evil, &server, &id, &evil.user(if n < 5 { "a" } else { "b" }), &victim);
            assert_eq!(status, 200);
            let name = format!("@mod:localhost:{}", door.local_addr().expect("an address").port());
            let sender = UserId::parse(&name).expect("a user id");
            let removal =
                member_event(&evil, &id, (&sender, &victim, "leave"), (999, &[invite.event_id().as_str()]));
            let mut removal = Value::Object(removal.to_object());
            // Signed by a key that only its server could tell.
            let signature = removal["signatures"][evil.name().as_str()].clone();
            removal["signatures"] = json!({ sender.server().as_str(): signature });
            removal
        })
        .collect();
    let body = json!({ "origin": evil.name(), "origin_server_ts": now_ms(), "pdus": removals, "edus": [] });
    let (status, said) = evil.ask(server.name(), "PUT", "/_matrix/federation/v1/send/removals", Some(&body));
    assert_eq!(status, 200, "{said}");
    for door in &silent {
        door.set_nonblocking(true).expect("a socket");
    }
    let mut knocked = 0;
    let mut knocks = || {
        knocked += silent.iter().filter(|door| door.accept().is_ok()).count();
        knocked
    };
    let before = knocks();
    server.advance(Duration::from_secs(60));
    wait_until("keys are asked for once more", || knocks() > before);

    friend.answer_json("get_missing_events", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
    let (first, second) = (room.say(&friend, "one"), room.say(&friend, "two"));
    assert_eq!(friend.send_transaction(server.name(), "two", &[&second]).0, 200);
    assert_eq!(friend.send_transaction(server.name(), "one", &[&first]).0, 200);
    let path = room_path(room.id.as_str(), &format!("event/{}", segment(second.event_id().as_str())));
    wait_until("what had to wait is there", || alice.request("GET", &path, None).0 == 200);
}

#[test]
fn who_repeats_an_invite_rings_once_and_not_without_end() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let bob = server.user("bob");
    let (evil, good) = (Peer::start(), Peer::start());
    let id = format!("!z:{}", evil.name());
    let first = bob.sync(Duration::ZERO)["next_batch"].as_str().expect("a token").to_owned();
    let since = |token: &str| bob.get(&format!("/_matrix/client/v3/sync?since={token}&timeout=0"));
    let inviter = evil.user("a");
    assert_eq!(invite(&evil, &server, &id, &inviter, &bob).1, 200);
    let told = since(&first);
    assert!(told["rooms"]["invite"].get(&id).is_some(), "{told}");
    let token = told["next_batch"].as_str().expect("a token").to_owned();
    let taken = (0..100).filter(|_| invite(&evil, &server, &id, &inviter, &bob).1 == 200).count();
    assert!((10..100).contains(&taken), "{taken}");
    assert!(since(&token)["rooms"]["invite"].get(&id).is_none(), "that is no news");
    // It is shown to who begins anew, and nobody else pays for it.
    assert!(bob.initial_sync()["rooms"]["invite"].get(&id).is_some());
    let other = format!("!o:{}", good.name());
    assert_eq!(invite(&good, &server, &other, &good.user("a"), &bob).1, 200);
    // With the next hour it may go on.
    server.advance(Duration::from_secs(3_601));
    assert_eq!(invite(&evil, &server, &id, &inviter, &bob).1, 200);
}

#[test]
fn an_invite_that_is_repeated_and_shows_another_name_of_the_room_is_told_and_rings_no_second_time() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let (id, inviter) = (format!("!z:{}", peer.name()), peer.user("a"));
    let invite = |depth: i64, name: &str| {
        let event = member_event(&peer, &id, (&inviter, &bob, "invite"), (depth, &[]));
        let shown = json!([{
            "type": "m.room.name", "state_key": "", "sender": inviter, "content": { "name": name },
        }]);
        let body = json!({ "room_version": "11", "event": event.to_object(), "invite_room_state": shown });
        let (status, answer) = peer.put_event(server.name(), "v2/invite", event.room_id(), &event, &body);
        assert_eq!(status, 200, "{answer}");
    };
    let name = |state: &Value| {
        let mut events = state.as_array().into_iter().flatten();
        events.find(|event| event["type"] == "m.room.name").map(|event| event["content"]["name"].clone())
    };
    let mut token = bob.sync(Duration::ZERO)["next_batch"].as_str().expect("a token").to_owned();
    let mut told = || {
        let answer = bob.get(&format!("/_matrix/client/v3/sync?since={token}&timeout=0"));
        answer["next_batch"].as_str().expect("a token").clone_into(&mut token);
        name(&answer["rooms"]["invite"][&id]["invite_state"]["events"])
    };
    let body = one_list(20, 1, &json!([]));
    let mut last = slide(&bob, None, &body);
    let mut slid = || {
        last = slide(&bob, Some(&last), &body);
        name(&last["rooms"][&id]["invite_state"])
    };
    let rung = || {
        let user = UserId::parse(bob.id()).expect("a user id");
        let notifications = server.homeserver().store.read(|db| db.notifications_after(&user, 0, 10));
        notifications.expect("read").found.iter().map(|notification| notification.stream).collect::<Vec<_>>()
    };
    invite(99, "zero");
    assert_eq!((told(), slid()), (Some(json!("zero")), Some(json!("zero"))));
    let told_first = rung()[0];
    for (depth, shown, expected) in
        [(100, "one", Some("one")), (101, "one", None), (102, "two", Some("two")), (103, "two", None)]
    {
        invite(depth, shown);
        let expected = expected.map(|name| json!(name));
        assert_eq!((told(), slid()), (expected.clone(), expected), "{depth}");
        assert_eq!(rung(), [told_first], "{depth}");
    }
    // One of somebody else rings, and takes the place of the first.
    let other = peer.user("b");
    let event = member_event(&peer, &id, (&other, &bob, "invite"), (104, &[]));
    let body = json!({ "room_version": "11", "event": event.to_object(), "invite_room_state": [] });
    assert_eq!(peer.put_event(server.name(), "v2/invite", event.room_id(), &event, &body).0, 200);
    assert!(matches!(rung().as_slice(), [at] if *at > told_first));
    bob.leave(&id);
    assert_eq!(rung(), [0; 0]);
}

#[test]
fn what_a_server_says_of_a_room_is_told_to_nobody_who_would_ask_another() {
    let (server, there, evil) = (TestServer::start(), TestServer::start(), Peer::start());
    let (bob, mallory, alice) = (server.user("bob"), server.user("mallory"), there.user("alice"));
    let room = alice.create_room_with(json!({
        "preset": "private_chat", "name": "the room", "topic": "the real one", "room_version": "12",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    evil.answer_json("/hierarchy/", 200, json!({
        "room": {
            "room_id": room, "name": "Free coins", "topic": "come to evil.example", "num_joined_members": 50_000,
            "world_readable": true, "guest_can_join": true, "join_rule": "public", "children_state": [],
        },
        "children": [], "inaccessible_children": [],
    }));
    let ask = |user: &TestUser, via: &str| {
        let path = format!("/_matrix/client/v1/room_summary/{}?via={}", segment(&room), segment(via));
        user.get(&path)
    };
    assert_eq!(ask(&mallory, evil.name().as_str())["name"], "Free coins");
    let told = ask(&bob, there.name());
    assert_eq!((&told["name"], &told["join_rule"]), (&json!("the room"), &json!("knock")));
    // Of each it is remembered what it said.
    drop(there);
    assert_eq!(ask(&bob, &room_host(&alice))["topic"], "the real one");
    assert_eq!(ask(&mallory, evil.name().as_str())["name"], "Free coins");
    assert_eq!(evil.asked("/hierarchy/").len(), 1);
}

fn room_host(user: &TestUser) -> String {
    UserId::parse(user.id()).expect("a user id").server().to_string()
}

/// Two servers of one room: one that lets `bob` in, and one that hands out what a join is made of and fails once it has it.
fn room_of_one_that_fails(bob: &TestUser) -> (FakeRoom, Peer, Peer) {
    let (good, failing) = (Peer::start(), Peer::start());
    // Its id names no server.
    let room = FakeRoom::new(&good, "12", "public");
    good.let_in(&room, bob.id());
    failing.answer_json("make_join", 200, room.template(bob.id(), "join"));
    failing.answer_json("send_join", 500, json!({ "errcode": "M_UNKNOWN", "error": "no" }));
    (room, good, failing)
}

#[test]
fn a_join_that_is_taken_up_again_asks_who_failed_once_and_then_the_others() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (room, good, failing) = room_of_one_that_fails(&bob);
    good.answer_json("make_join", 500, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    let (status, _) = post(&bob, &join_by(&room, &[&failing, &good]), json!({}));
    assert_eq!(status, 502);
    assert_eq!(failing.asked("send_join").len(), 1);
    good.forget_answer("make_join");
    server.advance(Duration::from_secs(3600));
    bob.wait_for_room("join", room.id.as_str());
    assert_eq!(failing.asked("send_join").len(), 2);
}

#[test]
fn who_names_another_server_is_not_sent_back_to_the_one_that_failed() {
    for leaves in [false, true] {
        let server = TestServer::start();
        let bob = server.user("bob");
        let (room, good, failing) = room_of_one_that_fails(&bob);
        assert_eq!(post(&bob, &join_by(&room, &[&failing]), json!({})).0, 502);
        if leaves {
            bob.leave(room.id.as_str());
        }
        let (status, said) = post(&bob, &join_by(&room, &[&good]), json!({}));
        assert_eq!((status, said["room_id"].as_str()), (200, Some(room.id.as_str())), "{said}");
        let asked = ["make_join", "send_join"].map(|part| failing.asked(part).len());
        assert_eq!(asked, [1, 1], "after a leave: {leaves}");
    }
}

fn join_by(room: &FakeRoom, servers: &[&Peer]) -> String {
    let via: Vec<String> =
        servers.iter().map(|peer| format!("via={}", segment(peer.name().as_str()))).collect();
    format!("join/{}?{}", segment(room.id.as_str()), via.join("&"))
}

/// Peers that are silent when they are asked for a template.
fn silent_at(gate: &Gate, call: &str, count: usize) -> Vec<Peer> {
    let peers: Vec<Peer> = (0..count).map(|_| Peer::start()).collect();
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "too late" });
    peers.iter().for_each(|peer| peer.answer_behind(gate, call, 403, refusal.clone()));
    peers
}

fn via(peers: &[Peer]) -> Vec<&str> {
    peers.iter().map(|peer| peer.name().as_str()).collect()
}

#[test]
fn a_join_goes_past_servers_that_never_answer_and_is_handed_in_once() {
    let (server, good) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let gate = Gate::default();
    let silent = silent_at(&gate, "make_join", 3);
    let join = |room: &FakeRoom| {
        let began = Instant::now();
        good.let_in(room, bob.id());
        let all: Vec<&str> = via(&silent).into_iter().chain([good.name().as_str()]).collect();
        bob.join_via(room.id.as_str(), &all);
        (began.elapsed(), silent.iter().map(|peer| peer.asked("make_join").len()).sum::<usize>())
    };
    let (took, asked) = join(&FakeRoom::new(&good, "11", "public"));
    assert!(took < Duration::from_secs(18) && asked == 3, "{took:?} {asked}");
    // It is remembered of them, and not held against the other one.
    let (_, asked) = join(&FakeRoom::new(&good, "11", "public"));
    assert_eq!((asked, good.asked("send_join").len()), (3, 2));
    assert!(silent.iter().all(|peer| peer.asked("send_join").is_empty()));
    gate.open();
}

#[test]
fn a_knock_goes_past_servers_that_never_answer_and_is_handed_in_once() {
    let (server, good) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let gate = Gate::default();
    let silent = silent_at(&gate, "make_knock", 2);
    let room = FakeRoom::new(&good, "11", "knock");
    good.let_knock(&room, bob.id());
    let began = Instant::now();
    let all: Vec<&str> = via(&silent).into_iter().chain([good.name().as_str()]).collect();
    bob.knock_via(room.id.as_str(), &all);
    assert!(began.elapsed() < Duration::from_secs(15), "{:?}", began.elapsed());
    assert_eq!(good.asked("send_knock").len(), 1);
    assert!(silent.iter().all(|peer| peer.asked("send_knock").is_empty()));
    gate.open();
}

#[test]
fn a_server_that_takes_its_time_over_a_join_is_asked_again_when_no_other_helps() {
    let (server, slow, other) = (TestServer::start(), Peer::start(), Peer::start());
    let bob = server.user("bob");
    let room = FakeRoom::new(&slow, "11", "public");
    slow.let_in(&room, bob.id());
    let gate = Gate::default();
    slow.answer_behind(&gate, "make_join", 200, room.template(bob.id(), "join"));
    other.answer_json("make_join", 404, json!({ "errcode": "M_NOT_FOUND", "error": "not here" }));
    let servers = [slow.name().as_str(), other.name().as_str()];
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| bob.join_via(room.id.as_str(), &servers));
        wait_until("it is asked again", || slow.asked("make_join").len() == 2);
        assert_eq!(other.asked("make_join").len(), 1);
        gate.open();
        joining.join().expect("bob is in");
    });
    assert_eq!(slow.asked("send_join").len(), 1);
}
