//! The presence of those who come into a room, for those who are there, and the other way round; here and across servers.

use std::time::Duration;

use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{bob_at, edus_at};
use crate::common::wait::{Gate, wait_until};
use crate::ephemeral::{edu, presence_in, presence_path, sees_presence};
use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// The users are at a client, and say so.
fn are_there(users: &[&TestUser]) {
    for user in users {
        user.put(&presence_path(user.id()), json!({ "presence": "online", "status_msg": "here" }));
    }
}

/// What a server was told of presence: who, and what they are.
fn told(peer: &Peer) -> Vec<(String, String)> {
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let pushes = edus_at(peer, "m.presence");
    let pushes = pushes.iter().flat_map(|content| content["push"].as_array().expect("a list"));
    pushes.map(|push| (text(&push["user_id"]), text(&push["presence"]))).collect()
}

/// How many messages with this word a server was sent.
fn arrived(peer: &Peer, word: &str) -> usize {
    let asked = peer.asked("/send/");
    asked.iter().map(|asked| asked.body["pdus"].to_string().matches(word).count()).sum()
}

#[test]
fn whoever_comes_into_a_room_is_there_for_those_who_are_in_it() {
    let server = TestServer::start();
    let [alice, bob, carol, gone] = ["alice", "bob", "carol", "gone"].map(|name| server.user(name));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    let ignored = json!({ "ignored_users": { bob.id(): {} } });
    let dan = server.user("dan");
    dan.join(&room);
    dan.put(
        &format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(dan.id())),
        ignored,
    );
    are_there(&[&bob, &carol]);
    alice.initial_sync();
    dan.initial_sync();
    let from = alice.get("/_matrix/client/v3/sync")["next_batch"].as_str().expect("a token").to_owned();
    bob.join(&room);
    let answer = alice.sync(Duration::ZERO);
    let seen = presence_in(&answer, bob.id()).expect("who came is told of with the join");
    assert_eq!((&seen["presence"], &seen["status_msg"]), (&json!("online"), &json!("here")), "{answer}");
    assert_eq!(presence_in(&alice.sync(Duration::ZERO), bob.id()), None, "it is told once");
    alice.invite(&room, carol.id());
    carol.join(&room);
    gone.join(&room);
    let answer = alice.sync(Duration::ZERO);
    assert!(presence_in(&answer, carol.id()).is_some(), "{answer}");
    assert_eq!(presence_in(&answer, gone.id()), None, "who is not there is no news");
    let answer = dan.sync(Duration::ZERO);
    assert_eq!(presence_in(&answer, bob.id()), None, "dan ignores bob");
    assert!(presence_in(&answer, carol.id()).is_some(), "{answer}");
    // By the way that clients had before.
    let older = alice.get(&format!("/_matrix/client/v3/events?timeout=0&from={from}"));
    let events = older["chunk"].as_array().expect("a list").iter();
    let mut of: Vec<&Value> =
        events.filter(|event| event["type"] == "m.presence").map(|event| &event["sender"]).collect();
    of.sort_by_key(|sender| sender.to_string());
    assert_eq!(of, [bob.id(), carol.id()], "{older}");
}

#[test]
fn whoever_comes_into_a_room_of_another_server_is_there_for_those_in_it_and_they_for_them() {
    let (a, b) = TestServer::pair();
    let (alice, bob, carol) = (a.user("alice"), b.user("bob"), b.user("carol"));
    are_there(&[&alice, &bob, &carol]);
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join_via(&room, &[a.name()]);
    let status = |reader: &TestUser, of: &TestUser| reader.get(&presence_path(of.id()))["presence"].clone();
    assert_eq!(sees_presence(&alice, bob.id(), "online")["status_msg"], "here");
    assert_eq!(sees_presence(&bob, alice.id(), "online")["status_msg"], "here");
    assert_eq!([status(&alice, &bob), status(&bob, &alice)], ["online", "online"]);
    // Another one of a server that is there already.
    alice.invite(&room, carol.id());
    carol.wait_for_room("invite", &room);
    carol.join(&room);
    sees_presence(&alice, carol.id(), "online");
    sees_presence(&carol, alice.id(), "online");
}

#[test]
fn a_server_that_comes_into_a_room_is_told_who_is_there_and_of_nobody_else() {
    let (server, peer) = (TestServer::start(), Peer::start());
    peer.take_transactions();
    let [alice, bob, gone, elsewhere] = ["alice", "bob", "gone", "elsewhere"].map(|name| server.user(name));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&room);
    gone.join(&room);
    are_there(&[&alice, &bob, &gone, &elsewhere]);
    gone.put(&presence_path(gone.id()), json!({ "presence": "offline" }));
    let [first, second] = ["first", "second"].map(|name| peer.user(name));
    assert_eq!(peer.hand_in(server.name(), "join", &room, &first).1.0, 200);
    wait_until("the server hears of those who are there", || told(&peer).len() == 2);
    let mut all = told(&peer);
    all.sort();
    let online = |user: &TestUser| (user.id().to_owned(), "online".to_owned());
    assert_eq!(all, [online(&alice), online(&bob)]);
    // It is there already when another one of its users comes.
    assert_eq!(peer.hand_in(server.name(), "join", &room, &second).1.0, 200);
    alice.send(&room, "hello");
    wait_until("the message arrives", || arrived(&peer, "hello") == 1);
    assert_eq!(told(&peer).len(), 2);
}

#[test]
fn the_servers_of_a_room_are_told_who_comes_into_it_if_they_are_there() {
    let (peer, server) = (Peer::start(), TestServer::start());
    peer.take_transactions();
    let (bob, gone) = (server.user("bob"), server.user("gone"));
    are_there(&[&bob]);
    let (first, second) = (FakeRoom::new(&peer, "11", "public"), FakeRoom::new(&peer, "11", "public"));
    for (room, user) in [(&first, &bob), (&second, &gone), (&second, &bob)] {
        peer.let_in(room, user.id());
        user.join_via(room.id.as_str(), &[peer.name().as_str()]);
    }
    // What they are in another room that they share is known by then.
    bob.send(second.id.as_str(), "hello");
    wait_until("the message arrives", || arrived(&peer, "hello") == 1);
    assert_eq!(told(&peer), [(bob.id().to_owned(), "online".to_owned())]);
}

#[test]
fn who_is_there_is_heard_of_also_if_it_is_said_while_the_join_is_on_its_way() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let (room, gate) = (FakeRoom::new(&peer, "12", "public"), Gate::default());
    peer.let_in(&room, alice.id());
    peer.answer_behind(&gate, "/send_join/", 200, room.join_answer());
    alice.initial_sync();
    let push = |user: &UserId| json!({ "user_id": user, "presence": "online", "last_active_ago": 5 });
    let stranger = peer.user("stranger");
    let says = |txn: &str, of: &[&UserId]| {
        let pushes: Vec<Value> = of.iter().map(|user| push(user)).collect();
        peer.send_edus(server.name(), txn, &[edu("m.presence", json!({ "push": pushes }))]);
    };
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| alice.join_via(room.id.as_str(), &[peer.name().as_str()]));
        peer.wait_for("/send_join/");
        says("1", &[&stranger, &room.creator]);
        gate.open();
        joining.join().expect("the join is done");
    });
    sees_presence(&alice, room.creator.as_str(), "online");
    let unknown = server.homeserver().store.read(|db| db.presence(&stranger)).expect("read");
    assert_eq!(unknown, None, "nobody here shares a room with them");
}

#[test]
fn a_server_without_presence_tells_newcomers_none() {
    let peer = Peer::start();
    peer.take_transactions();
    let (mut server, bob, room) = bob_at(&peer);
    are_there(&[&bob]);
    // What is said of bob comes before that: that he has come, and that he is there.
    bob.send(room.id.as_str(), "before");
    wait_until("the message arrives", || arrived(&peer, "before") == 1);
    let before = told(&peer).len();
    assert!(before > 0);
    server.stop();
    server.change(|config| config.presence = false);
    server.resume();
    let hall = bob.create_room_with(json!({ "preset": "public_chat" }));
    assert_eq!(peer.hand_in(server.name(), "join", &hall, &peer.user("first")).1.0, 200);
    for room in [hall.as_str(), room.id.as_str()] {
        bob.send(room, "hello");
    }
    wait_until("the messages arrive", || arrived(&peer, "hello") == 2);
    assert_eq!(told(&peer).len(), before);
    let answer = bob.initial_sync();
    assert!(answer.get("presence").is_none(), "{answer}");
}
