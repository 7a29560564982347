//! Others' word on what one of our users is to a room that we are not in: that of an ordinary member, and that of a
//! stranger who needs to know nothing but the room and the user.

use super::*;
use doorstep::protocol::Pdu;

/// A member of the room on a server of their own, who may remove nobody.
fn ordinary_member(room: &mut FakeRoom) -> Peer {
    let peer = Peer::start();
    let member = peer.user("member");
    room.add(&peer, "m.room.member", member.as_str(), &member, json!({ "membership": "join" }));
    peer
}

/// A member event about the user that a stranger makes, who knows only these.
fn by_stranger(
    stranger: &Peer,
    room: &FakeRoom,
    user: &TestUser,
    membership: &str,
    rests_on: &[&Pdu],
) -> Pdu {
    let rests_on: Vec<_> = rests_on.iter().map(|event| event.event_id()).collect();
    let event = json!({
        "type": "m.room.member", "state_key": user.id(), "sender": stranger.user("eve"), "room_id": room.id,
        "content": { "membership": membership }, "origin_server_ts": now_ms(), "depth": 1_000_000,
        "prev_events": ["$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA"], "auth_events": rests_on,
    });
    stranger.sign(event.as_object().expect("an object").clone(), room.version)
}

fn stranger_invites(stranger: &Peer, room: &FakeRoom, server: &TestServer, user: &TestUser) -> Pdu {
    let invite = by_stranger(stranger, room, user, "invite", &[]);
    let body = json!({ "room_version": "11", "event": invite.to_object(), "invite_room_state": [] });
    let (status, said) = stranger.put_event(server.name(), "v2/invite", &room.id, &invite, &body);
    assert_eq!(status, 200, "{said}");
    invite
}

/// The stranger invites the user, and takes that back.
fn stranger_comes_and_goes(stranger: &Peer, room: &FakeRoom, server: &TestServer, user: &TestUser) {
    let invite = stranger_invites(stranger, room, server, user);
    user.wait_for_room("invite", room.id.as_str());
    let kick = by_stranger(stranger, room, user, "leave", &[&invite]);
    assert_eq!(tell(stranger, server, &kick), json!({}));
}

fn tell(peer: &Peer, server: &TestServer, event: &Pdu) -> Value {
    let (status, said) = peer.send_transaction(server.name(), event.event_id().as_str(), &[event]);
    assert_eq!(status, 200, "{said}");
    said["pdus"][event.event_id().as_str()].clone()
}

/// Lets so much time pass that the room was asked as often as it is about one thing.
fn pass_looks(server: &TestServer, peer: &Peer) {
    wait_until("the room is asked as often as it takes", || {
        server.advance(Duration::from_secs(5));
        peer.asked("make_leave").len() >= 4
    });
    server.advance(Duration::from_secs(600));
}

fn forbidden() -> Value {
    json!({ "errcode": "M_FORBIDDEN", "error": "not in the room" })
}

#[test]
fn an_ordinary_members_server_takes_nobodys_invite_back_and_the_invitee_can_reject_it() {
    for membership in ["leave", "ban"] {
        let (server, bob, peer, mut room) = stage("invite");
        let member = ordinary_member(&mut room);
        room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", room.id.as_str());
        peer.let_leave(&room, bob.id());
        let forged = room.membership(&member, &member.user("member"), bob.id(), membership);
        assert_eq!(tell(&member, &server, &forged), json!({}));
        pass_looks(&server, &peer);
        assert!(is_in(&bob, "invite", room.id.as_str()), "{membership}");
        bob.leave(room.id.as_str());
        peer.wait_for("send_leave");
    }
}

#[test]
fn an_ordinary_members_server_refuses_nobodys_knock_which_can_be_accepted_and_withdrawn() {
    for (membership, accepted) in [("leave", false), ("ban", false), ("leave", true), ("ban", true)] {
        let (server, bob, peer, mut room) = stage("knock");
        let member = ordinary_member(&mut room);
        knock_is_taken(&bob, &mut room, &peer);
        peer.let_leave(&room, bob.id());
        let forged = room.membership(&member, &member.user("member"), bob.id(), membership);
        assert_eq!(tell(&member, &server, &forged), json!({}));
        pass_looks(&server, &peer);
        assert!(is_in(&bob, "knock", room.id.as_str()), "{membership}");
        if accepted {
            assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
            bob.wait_for_room("invite", room.id.as_str());
        } else {
            bob.leave(room.id.as_str());
            peer.wait_for("send_leave");
        }
    }
}

#[test]
fn a_removal_by_a_moderator_of_another_server_is_believed_once_the_room_says_so_and_told_as_it_is() {
    for (section, slow) in [("invite", false), ("knock", false), ("invite", true), ("knock", true)] {
        let (server, bob, peer, mut room) = stage("knock");
        let moderator = ordinary_member(&mut room);
        if section == "knock" {
            knock_is_taken(&bob, &mut room, &peer);
        } else {
            room.invite(&peer, server.name(), bob.id());
            bob.wait_for_room("invite", room.id.as_str());
        }
        // The room's server may hear of it after us.
        if slow {
            peer.let_leave(&room, bob.id());
        } else {
            peer.answer_json("make_leave", 403, forbidden());
        }
        let content = json!({ "membership": "leave", "reason": "no room for you" });
        let by = moderator.user("member");
        let removal = room.draft(&moderator, "m.room.member", bob.id(), &by, content);
        assert_eq!(tell(&moderator, &server, &removal), json!({}));
        if slow {
            peer.wait_for("make_leave");
            assert!(is_in(&bob, section, room.id.as_str()));
            peer.answer_json("make_leave", 403, forbidden());
        }
        let other = TestUser::new(bob.url(), bob.id(), bob.token());
        wait_until("it is over", || {
            server.advance(Duration::from_secs(2));
            !is_in(&other, section, room.id.as_str())
        });
        let left = bob.wait_for_room("leave", room.id.as_str());
        assert!(left.to_string().contains("no room for you"), "{left}");
        // What was removed is not left once more.
        bob.leave(room.id.as_str());
        assert!(peer.asked("send_leave").is_empty());
    }
}

#[test]
fn a_strangers_invite_that_is_taken_back_takes_no_knock_with_it_and_the_knock_is_accepted_as_ever() {
    let (server, bob, peer, mut room) = stage("knock");
    let open =
        format!("/_matrix/client/v3/user/{}/account_data/org.doorstep.door.accept_knocks", segment(bob.id()));
    bob.put(&open, json!({ "enabled": true }));
    let (eve, mallory) = (Peer::start(), Peer::start());
    knock_is_taken(&bob, &mut room, &peer);
    peer.let_leave(&room, bob.id());
    // However many come, and whichever goes first.
    let first = stranger_invites(&eve, &room, &server, &bob);
    stranger_comes_and_goes(&mallory, &room, &server, &bob);
    bob.wait_for_room("knock", room.id.as_str());
    tell(&eve, &server, &by_stranger(&eve, &room, &bob, "ban", &[&first]));
    stranger_comes_and_goes(&eve, &room, &server, &bob);
    wait_until("the knock is back", || is_in(&bob, "knock", room.id.as_str()));
    assert!(eve.asked("make_join").is_empty() && mallory.asked("make_join").is_empty());
    // A stranger invites, and stays: the room's invite answers the knock all the same.
    stranger_invites(&eve, &room, &server, &bob);
    let accepted = room.membership(&peer, &room.creator, bob.id(), "invite");
    let knock = room.read(&peer.wait_for("send_knock").body);
    room.take(accepted.clone());
    peer.let_in(&room, bob.id());
    let mut answer = room.join_answer();
    answer["auth_chain"].as_array_mut().expect("events").push(Value::Object(knock.to_object()));
    peer.answer_json("send_join", 200, answer);
    let body = room.invite_body(&accepted);
    assert_eq!(peer.put_event(server.name(), "v2/invite", &room.id, &accepted, &body).0, 200);
    wait_until("bob is in", || is_in(&bob, "join", room.id.as_str()));
    assert!(peer.asked("send_leave").is_empty());
}

#[test]
fn an_invite_that_its_server_keeps_from_the_room_ends_neither_the_knock_that_it_names_nor_the_invite() {
    for section in ["knock", "invite"] {
        let (server, bob, peer, mut room) = stage("knock");
        let member = Peer::start();
        let begun = if section == "knock" {
            knock_is_taken(&bob, &mut room, &peer);
            room.read(&peer.wait_for("send_knock").body)
        } else {
            room.invite(&peer, server.name(), bob.id())
        };
        assert!(is_in(&bob, section, room.id.as_str()));
        peer.let_leave(&room, bob.id());
        let invite = by_stranger(&member, &room, &bob, "invite", &[&begun]);
        let body = json!({ "room_version": "11", "event": invite.to_object(), "invite_room_state": [] });
        assert_eq!(member.put_event(server.name(), "v2/invite", &room.id, &invite, &body).0, 200);
        let shown = || bob.initial_sync()["rooms"]["invite"][room.id.as_str()].to_string();
        assert!(shown().contains(member.name().as_str()));
        let kick = by_stranger(&member, &room, &bob, "ban", &[&invite]);
        assert_eq!(tell(&member, &server, &kick), json!({}));
        wait_until("what was begun is back", || {
            is_in(&bob, section, room.id.as_str()) && !shown().contains(member.name().as_str())
        });
        pass_looks(&server, &peer);
        assert!(is_in(&bob, section, room.id.as_str()));
        bob.leave(room.id.as_str());
        peer.wait_for("send_leave");
    }
}

#[test]
fn a_knock_that_a_strangers_invite_covered_for_a_while_can_be_withdrawn() {
    let (server, bob, peer, mut room) = stage("knock");
    let eve = Peer::start();
    knock_is_taken(&bob, &mut room, &peer);
    peer.let_leave(&room, bob.id());
    stranger_comes_and_goes(&eve, &room, &server, &bob);
    bob.wait_for_room("knock", room.id.as_str());
    bob.leave(room.id.as_str());
    peer.wait_for("send_leave");
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn a_strangers_invite_that_is_taken_back_takes_no_other_invite_with_it() {
    let (server, bob, peer, mut room) = stage("invite");
    let eve = Peer::start();
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    peer.let_leave(&room, bob.id());
    stranger_comes_and_goes(&eve, &room, &server, &bob);
    let shown = || bob.initial_sync()["rooms"]["invite"][room.id.as_str()].to_string();
    wait_until("the first is shown again", || shown().contains(room.creator.as_str()));
    assert!(!shown().contains(eve.name().as_str()));
    // With what it showed of the room.
    assert!(shown().contains("m.room.create"), "{}", shown());
    // It can be taken back by who made it.
    let taken_back = room.membership(&peer, &room.creator, bob.id(), "leave");
    assert_eq!(tell(&peer, &server, &taken_back), json!({}));
    bob.wait_for_room("leave", room.id.as_str());
}

#[test]
fn a_strangers_useless_answer_to_a_join_withdraws_no_knock_in_the_room() {
    let (server, bob, peer, mut room) = stage("knock");
    let eve = Peer::start();
    knock_is_taken(&bob, &mut room, &peer);
    peer.let_leave(&room, bob.id());
    peer.answer_json("make_join", 403, forbidden());
    stranger_invites(&eve, &room, &server, &bob);
    eve.answer_json("make_join", 200, room.template(bob.id(), "join"));
    eve.answer_json("send_join", 200, json!({}));
    assert_eq!(join(&bob, room.id.as_str(), None).0, 502);
    // Only who took the join is told that it is over.
    eve.wait_for("make_leave");
    wait_until("the knock is back", || is_in(&bob, "knock", room.id.as_str()));
    server.advance(Duration::from_secs(3600));
    wait_until("the room was asked", || !peer.asked("make_leave").is_empty());
    assert!(is_in(&bob, "knock", room.id.as_str()) && peer.asked("send_leave").is_empty());
}

#[test]
fn who_rejects_a_strangers_invite_leaves_the_room_and_the_stranger() {
    let (server, bob, peer, mut room) = stage("knock");
    let eve = Peer::start();
    knock_is_taken(&bob, &mut room, &peer);
    peer.let_leave(&room, bob.id());
    stranger_invites(&eve, &room, &server, &bob);
    bob.wait_for_room("invite", room.id.as_str());
    bob.leave(room.id.as_str());
    peer.wait_for("send_leave");
    eve.wait_for("make_leave");
    assert!(!is_in(&bob, "knock", room.id.as_str()) && !is_in(&bob, "invite", room.id.as_str()));
}
