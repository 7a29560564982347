//! Kills the real binary (SIGKILL) at each step between the invite that accepts a knock and the join that follows.

use crate::common::ProcessServer;
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};
use doorstep::protocol::Pdu;
use doorstep::testing::TestUser;
use serde_json::{Value, json};

const FLAG: &str = "--join-on-accepted-knock";

/// A user of a server that joins whose knock is accepted, and a peer's room that they have knocked upon; with the invite
/// that will accept it.
fn knocked() -> (ProcessServer, TestUser, Peer, FakeRoom, Pdu) {
    let server = ProcessServer::start(&[FLAG]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
    room.take(invite.clone());
    (server, bob, peer, room, invite)
}

fn accept(server: &ProcessServer, peer: &Peer, room: &FakeRoom, invite: &Pdu) {
    let (status, answer) =
        peer.put_event(server.name(), "v2/invite", &room.id, invite, &room.invite_body(invite));
    assert_eq!(status, 200, "{answer}");
}

fn rooms(user: &TestUser, section: &str) -> Value {
    user.initial_sync()["rooms"][section].clone()
}

fn is_in(user: &TestUser, section: &str, room: &FakeRoom) -> bool {
    rooms(user, section).get(room.id.as_str()).is_some()
}

fn joins(peer: &Peer) -> Vec<String> {
    let asked = peer.asked("send_join");
    asked.iter().map(|a| a.target.split('?').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn killed_before_the_join_is_begun_it_is_made_after_the_start() {
    let (mut server, bob, peer, room, invite) = knocked();
    let gate = Gate::default();
    peer.answer_json("send_join", 200, room.join_answer());
    peer.answer_behind(&gate, "make_join", 200, room.template(bob.id(), "join"));
    accept(&server, &peer, &room, &invite);
    peer.wait_for("make_join");
    assert!(is_in(&bob, "invite", &room));
    server.kill();
    peer.let_in(&room, bob.id());
    gate.open();
    server.resume();
    wait_until("bob is in", || is_in(&bob, "join", &room));
    assert_eq!(joins(&peer).len(), 1);
    assert!(!is_in(&bob, "invite", &room));
}

#[test]
fn killed_while_the_join_is_handed_in_the_same_one_is_handed_in_again_and_no_other() {
    let (mut server, bob, peer, room, invite) = knocked();
    let gate = Gate::default();
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    peer.answer_behind(&gate, "send_join", 200, room.join_answer());
    accept(&server, &peer, &room, &invite);
    peer.wait_for("send_join");
    server.kill();
    gate.open();
    server.resume();
    wait_until("bob is in", || is_in(&bob, "join", &room));
    let ids = joins(&peer);
    assert!(ids.len() >= 2 && ids.iter().all(|id| id == &ids[0]), "{ids:?}");
    // Killed once more: nothing is left to be done.
    server.kill();
    server.resume();
    assert!(is_in(&bob, "join", &room));
    assert_eq!(joins(&peer).len(), ids.len());
}

#[test]
fn killed_while_the_join_is_handed_in_and_then_refused_the_invite_is_there_and_nothing_else_is_tried() {
    let (mut server, bob, peer, room, invite) = knocked();
    let gate = Gate::default();
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "taken back" });
    peer.answer_behind(&gate, "send_join", 403, refusal.clone());
    accept(&server, &peer, &room, &invite);
    peer.wait_for("send_join");
    server.kill();
    peer.answer_json("make_join", 403, refusal);
    gate.open();
    server.resume();
    wait_until("the repeated join was refused", || joins(&peer).len() >= 2);
    wait_until("the invite is there", || is_in(&bob, "invite", &room));
    let asked = joins(&peer).len();
    server.kill();
    server.resume();
    assert!(is_in(&bob, "invite", &room) && !is_in(&bob, "join", &room));
    assert_eq!(joins(&peer).len(), asked);
}

#[test]
fn killed_after_the_user_has_rejected_the_invite_they_are_not_joined() {
    let (mut server, bob, peer, room, invite) = knocked();
    let gate = Gate::default();
    peer.answer_behind(&gate, "make_join", 200, room.template(bob.id(), "join"));
    peer.let_leave(&room, bob.id());
    accept(&server, &peer, &room, &invite);
    peer.wait_for("make_join");
    bob.leave(room.id.as_str());
    server.kill();
    peer.let_in(&room, bob.id());
    gate.open();
    server.resume();
    peer.wait_for("send_leave");
    wait_until("it is over", || !is_in(&bob, "invite", &room));
    assert!(!is_in(&bob, "join", &room));
    assert!(joins(&peer).is_empty());
}

#[test]
fn killed_on_either_side_whose_knock_is_accepted_comes_in() {
    let (mut here, mut there) = (ProcessServer::start(&[FLAG]), ProcessServer::start(&[FLAG]));
    let alice = here.user("alice");
    let room = alice.create_room_with(json!({
        "preset": "private_chat",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    for number in 0..4 {
        // One from elsewhere, one of the host's own server.
        let guests = [there.user(&format!("bob{number}")), here.user(&format!("dave{number}"))];
        for guest in &guests {
            guest.knock_via(&room, &[here.name()]);
            wait_until("the host has the knock", || {
                alice.membership_of(&room, guest.id()).as_deref() == Some("knock")
            });
            alice.invite(&room, guest.id());
            // Whatever has been done by now.
            if number % 2 == 0 {
                there.kill();
                there.resume();
            }
            if number > 1 {
                here.kill();
                here.resume();
            }
        }
        for guest in &guests {
            wait_until("the guest is in", || {
                alice.membership_of(&room, guest.id()).as_deref() == Some("join")
                    && rooms(guest, "join").get(&room).is_some()
            });
        }
    }
}
