//! The open door: whose knock is accepted is joined by their own server, if they want it so. Between two real servers,
//! within one, and against a scripted host that refuses, is gone, or tells another story of the knock.

use std::time::Duration;

use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

use crate::common::client::{V3, join, knock, post, room_path};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};

/// The account data by which users say whether their accepted knocks are joined.
const DOOR: &str = "org.doorstep.door.accept_knocks";

fn set_door(user: &TestUser, content: Value) {
    user.put(&format!("{V3}/user/{}/account_data/{DOOR}", segment(user.id())), content);
}

fn open_door(user: &TestUser) {
    set_door(user, json!({ "enabled": true }));
}

fn room_to_knock_on(host: &TestUser, version: &str) -> String {
    host.create_room_with(json!({
        "preset": "private_chat", "room_version": version, "name": "the parlour",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }))
}

/// How often somebody became this in the room.
fn times(seen_by: &TestUser, room: &str, user: &str, membership: &str) -> usize {
    let answer = seen_by.get(&room_path(room, "messages?dir=b&limit=500"));
    let events = answer["chunk"].as_array().expect("a chunk");
    events.iter().filter(|e| e["state_key"] == user && e["content"]["membership"] == membership).count()
}

/// What `/sync` shows of the room.
fn section(user: &TestUser, room: &str) -> Option<&'static str> {
    let rooms = user.initial_sync()["rooms"].clone();
    ["join", "invite", "knock"].into_iter().find(|section| rooms[section].get(room).is_some())
}

/// Nothing is owed to anybody's accepted knock any more.
fn wait_until_settled(server: &TestServer) {
    wait_until("no accepted knock waits", || {
        server.homeserver().store.read(|db| db.next_owed_join_due()).expect("a database").is_none()
    });
}

#[test]
fn who_wants_it_so_is_in_the_room_as_soon_as_their_knock_is_accepted() {
    let (here, there) = TestServer::pair();
    let (alice, bob, eve) = (here.user("alice"), there.user("bob"), there.user("eve"));
    open_door(&bob);
    for version in ["7", "11", "12"] {
        let room = room_to_knock_on(&alice, version);
        bob.knock_via(&room, &[here.name()]);
        alice.wait_for_membership(&room, bob.id(), "knock");
        alice.invite(&room, bob.id());
        alice.wait_for_membership(&room, bob.id(), "join");
        bob.initial_sync();
        alice.send(&room, "come in");
        assert_eq!(bob.next_message(&room), "come in", "version {version}");
        assert_eq!(times(&alice, &room, bob.id(), "join"), 1);
        // Who accepted the knock, told beside the join that answers it.
        let timeline = bob.get(&room_path(&room, "messages?dir=b&limit=50"));
        let events = timeline["chunk"].as_array().expect("a chunk");
        let joined =
            events.iter().find(|e| e["state_key"] == bob.id() && e["content"]["membership"] == "join");
        assert_eq!(joined.expect("the join")["unsigned"]["prev_sender"], alice.id());
        // Who has not asked for it keeps their invite.
        eve.knock_via(&room, &[here.name()]);
        alice.invite(&room, eve.id());
        eve.wait_for_room("invite", &room);
        wait_until_settled(&there);
        assert_eq!(section(&eve, &room), Some("invite"));
        assert_eq!(alice.membership_of(&room, eve.id()).as_deref(), Some("invite"));
    }
}

#[test]
fn the_accounts_own_word_counts_before_the_servers_default() {
    let server = TestServer::start_with(|config| config.join_on_accepted_knock = true);
    let alice = server.user("alice");
    let room = room_to_knock_on(&alice, "12");
    for (number, (content, joins)) in [
        (None, true),
        (Some(json!({ "enabled": false })), false),
        (Some(json!({ "enabled": true })), true),
        // What says nothing is as if nothing was said.
        (Some(json!({ "enabled": "no" })), true),
        (Some(json!({})), true),
    ]
    .into_iter()
    .enumerate()
    {
        let bob = server.user(&format!("bob{number}"));
        if let Some(content) = content {
            set_door(&bob, content);
        }
        bob.knock_via(&room, &[]);
        alice.invite(&room, bob.id());
        if joins {
            alice.wait_for_membership(&room, bob.id(), "join");
        }
        wait_until_settled(&server);
        let wanted = if joins { "join" } else { "invite" };
        assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some(wanted), "number {number}");
    }
}

#[test]
fn in_a_room_that_the_knockers_server_is_in_it_is_the_same_whoever_invites() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let (carol, dave) = (there.user("carol"), here.user("dave"));
    open_door(&bob);
    open_door(&dave);
    let room = room_to_knock_on(&alice, "11");
    alice.invite(&room, carol.id());
    carol.wait_for_room("invite", &room);
    carol.join(&room);
    alice.wait_for_membership(&room, carol.id(), "join");
    // Bob's server is in the room with carol; alice, elsewhere, lets him in.
    bob.knock_via(&room, &[]);
    alice.wait_for_membership(&room, bob.id(), "knock");
    alice.invite(&room, bob.id());
    alice.wait_for_membership(&room, bob.id(), "join");
    carol.wait_for_membership(&room, bob.id(), "join");
    // Dave is of alice's own server; all of it happens there.
    dave.knock_via(&room, &[]);
    alice.invite(&room, dave.id());
    alice.wait_for_membership(&room, dave.id(), "join");
    carol.wait_for_membership(&room, dave.id(), "join");
    wait_until_settled(&here);
    wait_until_settled(&there);
    for who in [&bob, &dave] {
        assert_eq!(times(&alice, &room, who.id(), "join"), 1);
    }
}

#[test]
fn no_invite_is_joined_that_answers_no_knock_or_one_that_is_over() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    for (number, over) in
        ["never knocked", "withdrawn", "refused", "banned", "was in"].into_iter().enumerate()
    {
        // Once from another server, once within the host's own.
        for server in [&there, &here] {
            let bob = server.user(&format!("bob{number}"));
            open_door(&bob);
            let room = room_to_knock_on(&alice, "12");
            if over != "never knocked" {
                bob.knock_via(&room, &[here.name()]);
                alice.wait_for_membership(&room, bob.id(), "knock");
            }
            match over {
                "withdrawn" => {
                    bob.leave(&room);
                    alice.wait_for_membership(&room, bob.id(), "leave");
                }
                "refused" => {
                    alice.act_on("kick", &room, bob.id());
                    wait_until("bob knows", || section(&bob, &room).is_none());
                }
                "banned" => {
                    alice.act_on("ban", &room, bob.id());
                    alice.act_on("unban", &room, bob.id());
                    wait_until("bob knows", || section(&bob, &room).is_none());
                }
                "was in" => {
                    alice.invite(&room, bob.id());
                    alice.wait_for_membership(&room, bob.id(), "join");
                    wait_until("bob is in", || section(&bob, &room) == Some("join"));
                    bob.leave(&room);
                    alice.wait_for_membership(&room, bob.id(), "leave");
                }
                _ => {}
            }
            alice.invite(&room, bob.id());
            bob.wait_for_room("invite", &room);
            wait_until_settled(server);
            assert_eq!(section(&bob, &room), Some("invite"), "{over}, {}", bob.id());
            let joins = usize::from(over == "was in");
            assert_eq!(times(&alice, &room, bob.id(), "join"), joins, "{over}, {}", bob.id());
        }
    }
}

#[test]
fn an_invite_whose_join_is_refused_stays_and_is_joined_by_hand_or_not() {
    let server = TestServer::start();
    let bob = server.user("bob");
    open_door(&bob);
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    peer.answer_json("make_join", 403, json!({ "errcode": "M_FORBIDDEN", "error": "not you" }));
    room.invite(&peer, server.name(), bob.id());
    peer.wait_for("make_join");
    wait_until_settled(&server);
    assert_eq!(section(&bob, room.id.as_str()), Some("invite"));
    // What was refused once is not tried again by itself, however long it is.
    let asked = peer.asked("make_join").len();
    server.advance(Duration::from_secs(24 * 3600));
    wait_until_settled(&server);
    assert_eq!(peer.asked("make_join").len(), asked);
    peer.let_in(&room, bob.id());
    bob.join(room.id.as_str());
    assert_eq!(section(&bob, room.id.as_str()), Some("join"));
}

#[test]
fn whoever_answers_a_knock_that_the_host_does_not_let_in_lets_nobody_into_a_room_of_their_own() {
    for version in ["11", "12"] {
        let server = TestServer::start();
        let bob = server.user("bob");
        open_door(&bob);
        let (host, other) = (Peer::start(), Peer::start());
        let mut room = FakeRoom::new(&host, version, "knock");
        let eve = other.user("eve");
        let creator = room.creator.clone();
        let eves =
            room.add(&host, "m.room.member", eve.as_str(), &creator, json!({ "membership": "invite" }));
        let join = room.membership(&other, &eve, eve.as_str(), "join");
        room.take(join);
        host.let_knock(&room, bob.id());
        bob.knock_via(room.id.as_str(), &[host.name().as_str()]);
        let knock = room.read(&host.wait_for("send_knock").body);
        room.take(knock.clone());
        // To the host the knock is still one.
        host.answer_json(
            "make_join",
            403,
            json!({ "errcode": "M_FORBIDDEN", "error": "you have only knocked" }),
        );
        let mut theirs = room.clone();
        let invite = theirs.membership(&other, &eve, bob.id(), "invite");
        theirs.take(invite.clone());
        other.let_in(&theirs, bob.id());
        let (status, said) =
            other.put_event(server.name(), "v2/invite", &room.id, &invite, &theirs.invite_body(&invite));
        assert_eq!(status, 200, "{said}");
        host.wait_for("make_join");
        wait_until_settled(&server);
        assert_eq!(section(&bob, room.id.as_str()), Some("invite"), "version {version}");
        assert!(other.asked("make_join").is_empty(), "version {version}");
        // The host's own answer is joined, and nobody else's in its place.
        host.forget_answer("make_join");
        let true_one = room.membership(&host, &creator, bob.id(), "invite");
        room.take(true_one.clone());
        host.let_in(&room, bob.id());
        let mut answer = room.join_answer();
        for event in [&eves, &knock] {
            answer["auth_chain"].as_array_mut().expect("a list").push(Value::Object(event.to_object()));
        }
        host.answer_json("send_join", 200, answer);
        let body = room.invite_body(&true_one);
        assert_eq!(host.put_event(server.name(), "v2/invite", &room.id, &true_one, &body).0, 200);
        wait_until("bob is in", || section(&bob, room.id.as_str()) == Some("join"));
        assert!(other.asked("make_join").is_empty(), "version {version}");
    }
}

#[test]
fn a_host_that_cannot_be_reached_is_tried_again_while_the_invite_stands() {
    for rejected in [false, true] {
        let server = TestServer::start();
        let bob = server.user("bob");
        open_door(&bob);
        let peer = Peer::start();
        let mut room = FakeRoom::new(&peer, "12", "knock");
        peer.let_knock(&room, bob.id());
        bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
        peer.answer_json("make_join", 500, json!({ "errcode": "M_UNKNOWN", "error": "in pieces" }));
        room.invite(&peer, server.name(), bob.id());
        peer.wait_for("make_join");
        wait_until("it was put off", || {
            let hs = server.homeserver();
            let due = hs.store.read(|db| db.next_owed_join_due()).expect("a database");
            due.is_some_and(|due| due < hs.clock.now_ms() + 60_000 && due > hs.clock.now_ms())
        });
        assert_eq!(section(&bob, room.id.as_str()), Some("invite"));
        peer.let_leave(&room, bob.id());
        if rejected {
            bob.leave(room.id.as_str());
            peer.wait_for("send_leave");
        }
        peer.let_in(&room, bob.id());
        server.advance(Duration::from_secs(60));
        wait_until_settled(&server);
        if rejected {
            assert_eq!(section(&bob, room.id.as_str()), None);
            assert!(peer.asked("send_join").is_empty());
        } else {
            wait_until("bob is in", || section(&bob, room.id.as_str()) == Some("join"));
            assert_eq!(peer.asked("send_join").len(), 1);
        }
    }
}

#[test]
fn whether_an_invite_answers_the_knock_is_not_up_to_what_the_host_cites() {
    let server = TestServer::start();
    let peer = Peer::start();
    for (number, knocks) in [true, false].into_iter().enumerate() {
        let bob = server.user(&format!("bob{number}"));
        open_door(&bob);
        let mut room = FakeRoom::new(&peer, "11", "knock");
        peer.let_knock(&room, bob.id());
        if knocks {
            bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
        }
        if !knocks {
            // It cites a knock that nobody made.
            let bob_id = UserId::parse(bob.id()).expect("a user id");
            room.add(&peer, "m.room.member", bob.id(), &bob_id, json!({ "membership": "knock" }));
        }
        // Of the real knock it says nothing.
        let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
        let body = room.invite_body(&invite);
        room.take(invite.clone());
        peer.let_in(&room, bob.id());
        assert_eq!(peer.put_event(server.name(), "v2/invite", &room.id, &invite, &body).0, 200);
        wait_until_settled(&server);
        if knocks {
            wait_until("bob is in", || section(&bob, room.id.as_str()) == Some("join"));
        } else {
            assert_eq!(section(&bob, room.id.as_str()), Some("invite"));
        }
    }
}

#[test]
fn an_invite_of_somebody_who_is_ignored_moves_nobody() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    open_door(&bob);
    let list = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    bob.put(&list, json!({ "ignored_users": { alice.id(): {} } }));
    let room = room_to_knock_on(&alice, "12");
    bob.knock_via(&room, &[]);
    alice.invite(&room, bob.id());
    wait_until_settled(&server);
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("invite"));
}

#[test]
fn one_device_of_those_that_are_there_is_told_to_fetch_the_rooms_keys() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    open_door(&bob);
    let second = there.device_of(&bob, "SECOND");
    let room = room_to_knock_on(&alice, "12");
    bob.knock_via(&room, &[here.name()]);
    alice.invite(&room, bob.id());
    alice.wait_for_membership(&room, bob.id(), "join");
    let hints = |user: &TestUser| {
        let events = user.initial_sync()["to_device"]["events"].clone();
        let hints = events.as_array().into_iter().flatten().cloned();
        hints.filter(|e| e["type"] == "org.matrix.msc4509.key_bundle_claim").collect::<Vec<_>>()
    };
    let mut told = Vec::new();
    wait_until("a device is told", || {
        told = [hints(&bob), hints(&second)].concat();
        !told.is_empty()
    });
    assert_eq!(told.len(), 1, "{told:?}");
    assert_eq!((&told[0]["sender"], &told[0]["content"]["room_id"]), (&json!(bob.id()), &json!(room)));
}

/// What bob does the moment his knock is accepted, and what alice does.
const MEETINGS: &[(&str, &str)] = &[
    ("leave", ""),
    ("join", ""),
    ("knock", ""),
    ("", "kick"),
    ("", "ban"),
    ("leave", "kick"),
    ("join", "kick"),
    ("leave", "invite"),
];

#[test]
fn whatever_users_do_the_moment_their_knock_is_accepted_both_sides_agree_and_who_left_is_not_joined() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    for (number, (by_bob, by_alice)) in MEETINGS.iter().enumerate() {
        for (turn, server) in [&there, &here, &there, &there].into_iter().enumerate() {
            let bob = server.user(&format!("bob{number}x{turn}"));
            open_door(&bob);
            let room = room_to_knock_on(&alice, if turn % 2 == 0 { "11" } else { "12" });
            bob.knock_via(&room, &[here.name()]);
            alice.wait_for_membership(&room, bob.id(), "knock");
            let bobs = || match *by_bob {
                "" => (200, Value::Null),
                "leave" => post(&bob, &format!("rooms/{}/leave", segment(&room)), json!({})),
                "join" => join(&bob, &room, Some(here.name())),
                _ => knock(&bob, &room, here.name()),
            };
            let (of_bob, _) = std::thread::scope(|scope| {
                let inviting = scope.spawn(|| {
                    alice.request("POST", &room_path(&room, "invite"), Some(json!({ "user_id": bob.id() })))
                });
                if turn >= 2 {
                    // Not before the invite is there.
                    wait_until("the invite is there", || section(&bob, &room) != Some("knock"));
                }
                let bobs = scope.spawn(bobs);
                let alices = (!by_alice.is_empty()).then(|| {
                    alice.request("POST", &room_path(&room, by_alice), Some(json!({ "user_id": bob.id() })))
                });
                inviting.join().expect("no panic");
                (bobs.join().expect("no panic"), alices)
            });
            assert!(of_bob.0 < 500, "{by_bob} and {by_alice}: {of_bob:?}");
            let what = format!("{by_bob} and {by_alice}, turn {turn}, {of_bob:?}");
            wait_until(&format!("both agree: {what}"), || {
                let host = alice.membership_of(&room, bob.id()).filter(|m| m != "leave" && m != "ban");
                let settled = |s: &TestServer| {
                    s.homeserver().store.read(|db| db.next_owed_join_due()).is_ok_and(|due| due.is_none())
                };
                settled(server) && host.as_deref() == section(&bob, &room)
            });
            if *by_bob == "leave" && of_bob.0 == 200 && by_alice.is_empty() {
                let joins = times(&alice, &room, bob.id(), "join");
                let leaves = times(&alice, &room, bob.id(), "leave");
                let seen = section(&bob, &room);
                // A leave that came first of all is before the invite, which then answers no knock.
                assert!(
                    seen.is_none() || (seen == Some("invite") && joins == 0),
                    "{what}: {seen:?}, {joins} {leaves}"
                );
            }
            assert!(times(&alice, &room, bob.id(), "join") <= 1, "{what}");
        }
    }
}

#[test]
fn a_double_click_of_the_host_makes_one_join() {
    let (here, there) = TestServer::pair();
    let (alice, mia) = (here.user("alice"), here.user("mia"));
    let bob = there.user("bob");
    open_door(&bob);
    let room = room_to_knock_on(&alice, "12");
    alice.invite(&room, mia.id());
    mia.join(&room);
    bob.knock_via(&room, &[here.name()]);
    alice.wait_for_membership(&room, bob.id(), "knock");
    let gate = Gate::default();
    std::thread::scope(|scope| {
        for host in [&alice, &mia, &alice, &mia] {
            let (gate, room, bob) = (gate.clone(), &room, bob.id());
            scope.spawn(move || {
                gate.pass();
                host.request("POST", &room_path(room, "invite"), Some(json!({ "user_id": bob })))
            });
        }
        gate.open();
    });
    alice.wait_for_membership(&room, bob.id(), "join");
    wait_until_settled(&there);
    assert_eq!(times(&alice, &room, bob.id(), "join"), 1);
}
