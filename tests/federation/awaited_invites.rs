//! A local user is invited by another server into a room that this server is in: it has signed the invite, which comes as an event
//! of the room a moment later. Who answers it before that is not told that they are not invited.

use crate::common::ProcessServer;
use crate::common::client::{join, knock, room_path};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::protocol::Pdu;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A room of the peer's with this join rule, and with alice in it.
fn room_with(alice: &TestUser, server: &str, peer: &Peer, join_rule: &str) -> FakeRoom {
    let mut room = FakeRoom::new(peer, "11", join_rule);
    room.invite(peer, server, alice.id());
    alice.wait_for_room("invite", room.id.as_str());
    peer.let_in(&room, alice.id());
    alice.join_via(room.id.as_str(), &[peer.name().as_str()]);
    let joined = room.read(&peer.wait_for("send_join").body);
    room.take(joined);
    room
}

fn tell(peer: &Peer, server: &str, event: &Pdu) {
    let (status, said) = peer.send_transaction(server, event.event_id().as_str(), &[event]);
    assert_eq!(status, 200, "{said}");
}

fn leave(user: &TestUser, room: &str) -> (u16, Value) {
    user.request("POST", &room_path(room, "leave"), Some(json!({})))
}

fn leave_by_state(user: &TestUser, room: &str) -> (u16, Value) {
    let path = room_path(room, &format!("state/m.room.member/{}", segment(user.id())));
    user.request("PUT", &path, Some(json!({ "membership": "leave" })))
}

/// What somebody is told who asks between the signature and the event. The event comes when they wait for it.
fn asked_between(
    server: &TestServer,
    ask: impl FnOnce() -> (u16, Value) + Send,
    meanwhile: impl FnOnce(),
) -> (u16, Value) {
    std::thread::scope(|scope| {
        let asking = scope.spawn(ask);
        wait_until("they wait", || server.homeserver().notifier.waiting() > 0 || asking.is_finished());
        meanwhile();
        asking.join().expect("no panic")
    })
}

fn shows(user: &TestUser, section: &str, room: &FakeRoom) -> bool {
    user.initial_sync()["rooms"][section].get(room.id.as_str()).is_some()
}

#[test]
fn who_joins_before_the_room_tells_of_their_invite_comes_in_when_it_does() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    for join_rule in ["invite", "knock", "restricted"] {
        let bob = server.user(&format!("bob_{join_rule}"));
        let mut room = room_with(&alice, server.name(), &peer, join_rule);
        let invite = room.invite(&peer, server.name(), bob.id());
        assert!(!shows(&bob, "invite", &room), "who sees it can take it");
        let said = asked_between(
            &server,
            || join(&bob, room.id.as_str(), None),
            || tell(&peer, server.name(), &invite),
        );
        assert_eq!(said.0, 200, "{join_rule}: {said:?}");
        assert!(shows(&bob, "join", &room), "{join_rule}");
    }
}

#[test]
fn who_rejects_an_invite_before_the_room_tells_of_it_has_rejected_it_when_it_does() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    for (number, (was_there, by)) in [
        (false, leave as fn(&TestUser, &str) -> _),
        (true, leave),
        (false, leave_by_state),
        (true, leave_by_state),
    ]
    .into_iter()
    .enumerate()
    {
        let bob = server.user(&format!("bob{number}"));
        let mut room = room_with(&alice, server.name(), &peer, "invite");
        if was_there {
            let removed = room.membership(&peer, &room.creator, bob.id(), "leave");
            room.take(removed.clone());
            tell(&peer, server.name(), &removed);
        }
        let invite = room.invite(&peer, server.name(), bob.id());
        let said =
            asked_between(&server, || by(&bob, room.id.as_str()), || tell(&peer, server.name(), &invite));
        assert_eq!(said.0, 200, "{number}: {said:?}");
        assert!(!shows(&bob, "invite", &room), "{number}");
        assert_eq!(alice.membership_of(room.id.as_str(), bob.id()).as_deref(), Some("leave"), "{number}");
    }
}

#[test]
fn who_knocks_before_the_room_tells_of_their_invite_is_answered_as_if_invited() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let [alice, bob] = ["alice", "bob"].map(|name| server.user(name));
    let mut room = room_with(&alice, server.name(), &peer, "knock");
    let invite = room.invite(&peer, server.name(), bob.id());
    let said = asked_between(
        &server,
        || knock(&bob, room.id.as_str(), peer.name().as_str()),
        || tell(&peer, server.name(), &invite),
    );
    assert_eq!((said.0, &said.1["errcode"]), (403, &json!("M_FORBIDDEN")), "{said:?}");
    assert!(shows(&bob, "invite", &room));
    // Who withdraws their knock while it is being accepted is out.
    let carol = server.user("carol");
    assert_eq!(knock(&carol, room.id.as_str(), peer.name().as_str()).0, 200);
    let mut knocked = None;
    wait_until("the room hears of the knock", || {
        let sent = peer.asked("/send/");
        let mut sent = sent.iter().filter_map(|asked| asked.body["pdus"].as_array()).flatten();
        knocked = sent.find(|event| event["state_key"] == carol.id()).cloned();
        knocked.is_some()
    });
    room.take(room.read(&knocked.expect("just found")));
    let invite = room.invite(&peer, server.name(), carol.id());
    let said =
        asked_between(&server, || leave(&carol, room.id.as_str()), || tell(&peer, server.name(), &invite));
    assert_eq!(said.0, 200, "{said:?}");
    assert!(!shows(&carol, "invite", &room) && !shows(&carol, "knock", &room));
}

#[test]
fn an_invite_that_the_room_refuses_or_never_has_lets_nobody_in_and_keeps_nobody_waiting() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let mut room = room_with(&alice, server.name(), &peer, "invite");
    let creator = room.creator.clone();
    let levels = json!({ "users": { creator.as_str(): 100 }, "invite": 50 });
    let levels = room.add(&peer, "m.room.power_levels", "", &creator, levels);
    tell(&peer, server.name(), &levels);
    let member = peer.user("member");
    let invited = room.membership(&peer, &creator, member.as_str(), "invite");
    room.take(invited.clone());
    let joined = room.add(&peer, "m.room.member", member.as_str(), &member, json!({ "membership": "join" }));
    [&invited, &joined].into_iter().for_each(|event| tell(&peer, server.name(), event));
    let by_member = |of: &str| {
        let invite = room.membership(&peer, &member, of, "invite");
        let body = room.invite_body(&invite);
        assert_eq!(peer.put_event(server.name(), "v2/invite", &room.id, &invite, &body).0, 200);
        invite
    };
    let refused = by_member(bob.id());
    let said = asked_between(
        &server,
        || join(&bob, room.id.as_str(), None),
        || tell(&peer, server.name(), &refused),
    );
    assert_eq!((said.0, &said.1["errcode"]), (403, &json!("M_FORBIDDEN")), "{said:?}");
    // That of somebody else is nothing to wait for; and one that never comes is not waited for for ever.
    by_member(bob.id());
    let said = join(&carol, room.id.as_str(), None);
    assert_eq!((said.0, &said.1["errcode"]), (403, &json!("M_FORBIDDEN")), "{said:?}");
    let said = join(&bob, room.id.as_str(), None);
    assert_eq!((said.0, &said.1["errcode"]), (403, &json!("M_FORBIDDEN")), "{said:?}");
    assert_eq!(leave(&bob, room.id.as_str()).0, 403);
}

#[test]
fn an_invite_that_was_signed_before_a_kill_is_awaited_after_it() {
    let (mut server, peer) = (ProcessServer::start(&[]), Peer::start());
    let [alice, bob] = ["alice", "bob"].map(|name| server.user(name));
    let mut room = room_with(&alice, server.name(), &peer, "invite");
    room.invite(&peer, server.name(), bob.id());
    server.kill();
    server.resume();
    let (status, said) = join(&bob, room.id.as_str(), None);
    assert_eq!(status, 200, "{said}");
}

#[test]
fn between_two_servers_who_is_invited_can_answer_at_once() {
    let (here, there) = TestServer::pair();
    let (alice, carol) = (here.user("alice"), there.user("carol"));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.invite(&room, carol.id());
    carol.wait_for_room("invite", &room);
    carol.join(&room);
    for n in 0..10 {
        let bob = there.user(&format!("bob{n}"));
        alice.invite(&room, bob.id());
        let (status, said) = if n % 2 == 0 { join(&bob, &room, None) } else { leave(&bob, &room) };
        assert_eq!(status, 200, "{n}: {said}");
        let expected = if n % 2 == 0 { "join" } else { "leave" };
        assert_eq!(carol.membership_of(&room, bob.id()).as_deref(), Some(expected));
        wait_until("both servers agree", || {
            alice.membership_of(&room, bob.id()).as_deref() == Some(expected)
        });
    }
}
