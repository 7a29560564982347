//! A join that lands shows the room as it was before: what one of ours did there meanwhile, what others did to whoever joins,
//! and what the rules have come to since is brought together with it.

use doorstep::TestServer;
use doorstep::internals::Status;
use doorstep::protocol::{Pdu, UserId};
use doorstep::testing::TestUser;
use serde_json::{Value, json};

use crate::common::client::{filter, join, knock, sync};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::stored;
use crate::common::wait::{Gate, wait_until};

/// The room's section for somebody who asks for rooms that were left, too.
fn section(user: &TestUser, room: &FakeRoom) -> Option<&'static str> {
    let rooms = sync(user, &filter(&json!({ "room": { "include_leave": true } })))["rooms"].clone();
    ["join", "invite", "knock", "leave"].into_iter().find(|name| rooms[name].get(room.id.as_str()).is_some())
}

/// A state event of the creator's that follows this one.
fn beside(room: &FakeRoom, peer: &Peer, (kind, key): (&str, &str), content: Value, after: &Pdu) -> Pdu {
    let mut event = room.unsigned(kind, key, &room.creator, content);
    event.insert("prev_events".into(), json!([after.event_id()]));
    peer.sign(event, room.version)
}

/// What carol is before she leaves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Was {
    Invited,
    Knocking,
}

#[test]
fn what_was_rejected_or_withdrawn_does_not_come_back_when_another_users_join_lands() {
    let server = TestServer::start();
    for (number, (was, is_served)) in
        [(Was::Invited, true), (Was::Knocking, true), (Was::Invited, false), (Was::Knocking, false)]
            .into_iter()
            .enumerate()
    {
        let peer = Peer::start();
        let [bob, carol] = ["bob", "carol"].map(|name| server.user(&format!("{name}{number}")));
        let mut room = FakeRoom::new(&peer, ["11", "12", "10"][number % 3], "knock");
        let id = room.id.to_string();
        let first = if was == Was::Invited {
            room.invite(&peer, server.name(), carol.id());
            carol.wait_for_room("invite", &id)
        } else {
            peer.let_knock(&room, carol.id());
            assert_eq!(knock(&carol, &id, peer.name().as_str()).0, 200);
            let knock = room.read(&peer.wait_for("send_knock").body);
            room.take(knock);
            carol.wait_for_room("knock", &id)
        };
        drop(first);
        let invite = room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", &id);
        let gate = Gate::default();
        peer.let_in(&room, bob.id());
        peer.answer_behind(&gate, "send_join", 200, room.join_answer());
        let leave = std::thread::scope(|scope| {
            let joining = scope.spawn(|| bob.join_via(&id, &[peer.name().as_str()]));
            peer.wait_for("send_join");
            peer.let_leave(&room, carol.id());
            carol.leave(&id);
            let leave = room.read(&peer.wait_for("send_leave").body);
            carol.wait_for_room("leave", &id);
            if is_served {
                let all: Vec<Pdu> = room.state.values().cloned().chain([invite, leave.clone()]).collect();
                peer.serve_events(&all, 100);
            }
            gate.open();
            joining.join().expect("no panic");
            leave
        });
        wait_until(&format!("the room knows of the leave, {was:?}"), || {
            // Never is she shown again what she has left.
            assert_eq!(section(&carol, &room), Some("leave"), "{was:?}, served: {is_served}");
            bob.membership_of(&id, carol.id()).as_deref() == Some("leave")
        });
        if is_served {
            let taken = stored(&server, leave.event_id()).expect("the very leave that the room took");
            assert_eq!(taken.status, Status::Accepted, "{was:?}");
        }
        let row = |user: &TestUser| {
            let user = UserId::parse(user.id()).expect("a user id");
            server
                .homeserver()
                .store
                .read(|db| db.has_remote_membership(&room.id, &user))
                .expect("a database")
        };
        wait_until("nothing is left to be told", || !row(&carol));
        assert_eq!(section(&carol, &room), Some("leave"), "{was:?}, served: {is_served}");
    }
}

#[test]
fn a_join_that_lands_after_a_removal_and_a_new_invite_that_did_not_know_of_it_enters_the_room() {
    let server = TestServer::start();
    for (number, join_rule) in ["public", "invite"].into_iter().enumerate() {
        let (peer, bob) = (Peer::start(), server.user(&format!("bob{number}")));
        let mut room = FakeRoom::new(&peer, ["11", "12"][number], join_rule);
        let id = room.id.to_string();
        room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", &id);
        let gate = Gate::default();
        peer.let_in(&room, bob.id());
        peer.answer_behind(&gate, "send_join", 200, room.join_answer());
        let (status, said) = std::thread::scope(|scope| {
            let joining = scope.spawn(|| join(&bob, &id, Some(peer.name().as_str())));
            peer.wait_for("send_join");
            let before: Vec<Pdu> = room.state.values().cloned().collect();
            let kick = room.membership(&peer, &room.creator.clone(), bob.id(), "leave");
            assert_eq!(peer.send_transaction(server.name(), "kick", &[&kick]).0, 200);
            room.take(kick.clone());
            let invite = room.invite(&peer, server.name(), bob.id());
            assert_eq!(section(&bob, &room), Some("invite"));
            peer.serve_events(&[before, vec![kick, invite]].concat(), 100);
            gate.open();
            joining.join().expect("no panic")
        });
        assert_eq!(status, 200, "{said}");
        // Whoever needs no invite may join after a kick as well, and then it is the join that stands.
        let expected = if join_rule == "public" { "join" } else { "invite" };
        let is_resident =
            || server.homeserver().store.read(|db| db.resident_room(&room.id)).expect("a database").is_some();
        wait_until(&format!("the room says {expected}"), || {
            section(&bob, &room) == Some(expected) && is_resident() == (expected == "join")
        });
    }
}

#[test]
fn who_falls_out_of_a_room_since_it_came_out_so_here_joins_once_more_and_the_room_decides() {
    let server = TestServer::start();
    for (number, lets_in) in [true, false].into_iter().enumerate() {
        let (peer, bob) = (Peer::start(), server.user(&format!("bob{number}")));
        let mut room = FakeRoom::new(&peer, ["12", "11"][number], "public");
        let id = room.id.to_string();
        let last = room.state[&("m.room.name".to_owned(), String::new())].clone();
        room.join(&peer, &bob);
        bob.wait_for_room("join", &id);
        // The room has an invite of his that this server has not heard of: so the join stands there.
        let rule = beside(&room, &peer, ("m.room.join_rules", ""), json!({ "join_rule": "invite" }), &last);
        let asked = peer.asked("make_join").len();
        let forbidden = json!({ "errcode": "M_FORBIDDEN", "error": "no" });
        peer.serve_events(&[last, rule.clone()], 100);
        let mut there = room.clone();
        there.take(rule.clone());
        if lets_in {
            peer.let_in(&there, bob.id());
            // What his first join rests on is not the state any more.
            let mut answer = there.join_answer();
            answer["auth_chain"] = room.join_answer()["state"].clone();
            peer.answer_json("send_join", 200, answer);
        } else {
            peer.answer_json("make_join", 403, forbidden);
        }
        let (status, said) = peer.send_transaction(server.name(), "rule", &[&rule]);
        assert_eq!((status, &said["pdus"][rule.event_id().as_str()]), (200, &json!({})), "{said}");
        wait_until("the room is asked", || peer.asked("make_join").len() > asked);
        let expected = if lets_in { "join" } else { "leave" };
        wait_until(&format!("bob is shown {expected}"), || section(&bob, &room) == Some(expected));
        if lets_in {
            let join = there.read(&peer.asked("send_join").last().expect("he has joined").body);
            there.take(join);
            let hello = there.say(&peer, "hello");
            assert_eq!(peer.send_transaction(server.name(), "hello", &[&hello]).0, 200);
            assert_eq!(bob.next_message(&id), "hello");
        } else {
            let told = bob.wait_for_room("leave", &id);
            assert!(!told.is_null(), "his clients are told");
        }
    }
}
