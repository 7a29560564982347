//! What becomes of a remote membership where it meets another source of truth: the room's last state that this server knows,
//! what clients were shown before, and the room itself once this server is in it.

use std::time::Duration;

use crate::common::client::{filter, join, knock, post, room_path, sync};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::protocol::remote_membership::{RemoteMembership, RemoteState};
use doorstep::protocol::{RoomId, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A room whose last state, as this server knows it, says that bob is invited: he was while alice was in it, and she, the
/// only one of this server, has left.
fn left_behind(server: &TestServer, peer: &Peer, alice: &TestUser, bob: &TestUser) -> FakeRoom {
    let mut room = FakeRoom::joined_by(peer, "11", alice);
    let invite = room.invite(peer, server.name(), bob.id());
    let (status, said) = peer.send_transaction(server.name(), "invite", &[&invite]);
    assert_eq!(status, 200, "{said}");
    bob.wait_for_room("invite", room.id.as_str());
    alice.leave(room.id.as_str());
    let is_out = || server.homeserver().store.read(|db| db.resident_room(&room.id)).unwrap().is_none();
    wait_until("this server is out of the room", is_out);
    room
}

fn forbidden() -> Value {
    json!({ "errcode": "M_FORBIDDEN", "error": "no" })
}

fn forget(user: &TestUser, room: &FakeRoom) -> (u16, Value) {
    user.request("POST", &room_path(room.id.as_str(), "forget"), Some(json!({})))
}

fn invite_shown(bob: &TestUser, room: &FakeRoom) -> Vec<String> {
    let shown = bob.initial_sync()["rooms"]["invite"][room.id.as_str()]["invite_state"]["events"].clone();
    let events = shown.as_array().into_iter().flatten();
    events.filter_map(|event| event["type"].as_str().map(str::to_owned)).collect()
}

/// The room's section for somebody who asks for rooms that were left, too.
fn section(user: &TestUser, room: &FakeRoom) -> Option<&'static str> {
    let with_left = filter(&json!({ "room": { "include_leave": true } }));
    let rooms = sync(user, &with_left)["rooms"].clone();
    ["join", "invite", "knock", "leave"].into_iter().find(|name| rooms[name].get(room.id.as_str()).is_some())
}

#[test]
fn an_invite_that_only_the_last_state_knows_is_shown_after_a_refused_join_too() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = left_behind(&server, &peer, &alice, &bob);
    let before = invite_shown(&bob, &room);
    assert!(before.contains(&"m.room.name".to_owned()), "{before:?}");
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    peer.answer_json("send_join", 403, forbidden());
    let (status, said) = join(&bob, room.id.as_str(), None);
    assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
    assert_eq!(peer.asked("send_join").len(), 2, "alice's and bob's");
    assert_eq!(invite_shown(&bob, &room), before);
    // It is as good as before.
    peer.let_in(&room, bob.id());
    bob.join(room.id.as_str());
    bob.wait_for_room("join", room.id.as_str());
}

#[test]
fn who_is_invited_by_the_last_state_alone_can_neither_knock_nor_forget() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = left_behind(&server, &peer, &alice, &bob);
    peer.let_knock(&room, bob.id());
    let (status, said) = knock(&bob, room.id.as_str(), peer.name().as_str());
    assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
    assert!(peer.asked("_knock").is_empty(), "nobody is asked");
    let (status, said) = forget(&bob, &room);
    assert_eq!((status, &said["errcode"]), (400, &json!("M_UNKNOWN")), "{said}");
    assert!(!invite_shown(&bob, &room).is_empty());
    // What was left can be forgotten.
    peer.let_leave(&room, bob.id());
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
    assert_eq!(forget(&bob, &room).0, 200);
    assert_eq!(section(&bob, &room), None);
}

#[test]
fn a_refused_knock_is_told_as_left_where_clients_were_shown_an_earlier_one_or_a_leave() {
    let (server, peer) = (TestServer::start(), Peer::start());
    for left_before in [false, true] {
        let bob = server.user(if left_before { "bob_who_left" } else { "bob" });
        let room = FakeRoom::new(&peer, "11", "knock");
        // Of this room clients see nothing but that the knock was taken.
        peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
        peer.answer_json("send_knock", 200, json!({ "knock_room_state": [] }));
        let via = peer.name().as_str();
        assert_eq!(knock(&bob, room.id.as_str(), via).0, 200);
        bob.wait_for_room("knock", room.id.as_str());
        if left_before {
            peer.let_leave(&room, bob.id());
            bob.leave(room.id.as_str());
            bob.wait_for_room("leave", room.id.as_str());
        }
        // The room does not have it any more, so that this is another knock; and it is refused.
        let knocks = peer.asked("send_knock").len();
        peer.answer_json("send_knock", 403, forbidden());
        let (status, said) = knock(&bob, room.id.as_str(), via);
        assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
        assert!(peer.asked("send_knock").len() > knocks);
        let told = bob.wait_for_room("leave", room.id.as_str());
        let events = told["timeline"]["events"].as_array().cloned().unwrap_or_default();
        let own = events.iter().find(|event| event["state_key"] == bob.id());
        assert_eq!(own.map(|event| &event["content"]["membership"]), Some(&json!("leave")), "{told}");
        assert_eq!(section(&bob, &room), Some("leave"));
    }
}

/// An attempt to join that the room's server refuses; `meanwhile` is done while it hesitates.
fn refused_join(bob: &TestUser, peer: &Peer, room: &RoomId, meanwhile: impl FnOnce()) {
    let (gate, asked) = (Gate::default(), peer.asked("send_join").len());
    peer.answer_behind(&gate, "send_join", 403, forbidden());
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(bob, room.as_str(), Some(peer.name().as_str())));
        wait_until("the join is on its way", || peer.asked("send_join").len() > asked);
        meanwhile();
        gate.open();
        let (status, said) = joining.join().expect("it is answered");
        assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
    });
}

#[test]
fn a_join_that_is_refused_brings_no_room_back_that_was_left_before() {
    let (server, peer) = (TestServer::start(), Peer::start());
    for forgotten in [true, false] {
        let bob = server.user(if forgotten { "bob_who_forgot" } else { "bob" });
        let mut room = FakeRoom::new(&peer, "11", "public");
        let id = room.id.clone();
        room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", id.as_str());
        peer.let_leave(&room, bob.id());
        bob.leave(id.as_str());
        bob.wait_for_room("leave", id.as_str());
        if forgotten {
            assert_eq!(forget(&bob, &room).0, 200);
        }
        let still = if forgotten { None } else { Some("leave") };
        assert_eq!(section(&bob, &room), still);

        let since = sync(&bob, "")["next_batch"].as_str().expect("a token").to_owned();
        let shown = |query: &str| sync(&bob, query)["rooms"]["leave"].get(id.as_str()).cloned();
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        refused_join(&bob, &peer, &id, || {
            assert_eq!(section(&bob, &room), still, "as long as it is under way the user has left as before");
            assert_eq!(shown(""), None, "nobody asked for what was left");
        });
        assert_eq!(shown(&format!("since={since}")), None, "the leave was told before");
        assert_eq!(section(&bob, &room), still);

        // What is new is told: an invite that comes while another attempt is under way.
        refused_join(&bob, &peer, &id, || {
            room.invite(&peer, server.name(), bob.id());
            bob.wait_for_room("invite", id.as_str());
        });
        assert_eq!(section(&bob, &room), Some("invite"));
    }
}

#[test]
fn a_knock_that_is_refused_and_was_never_shown_leaves_nothing_behind() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let room = FakeRoom::new(&peer, "11", "knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.answer_json("send_knock", 403, forbidden());
    assert_eq!(knock(&bob, room.id.as_str(), peer.name().as_str()).0, 403);
    assert_eq!(section(&bob, &room), None);
}

#[test]
fn a_leave_that_is_answered_after_this_server_came_into_the_room_is_done_there() {
    let server = TestServer::start();
    for (number, status) in [403, 502].into_iter().enumerate() {
        let peer = Peer::start();
        let (alice, bob) = (server.user(&format!("alice{number}")), server.user(&format!("bob{number}")));
        let mut room = FakeRoom::new(&peer, "11", "public");
        room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", room.id.as_str());
        // The room's server hesitates over bob's rejection, and has no use for it in the end.
        let gate = Gate::default();
        peer.answer_behind(&gate, "make_leave", status, forbidden());
        peer.let_in(&room, alice.id());
        std::thread::scope(|scope| {
            let leaving = scope.spawn(|| bob.leave(room.id.as_str()));
            wait_until("the leave is on its way", || !peer.asked("make_leave").is_empty());
            alice.join_via(room.id.as_str(), &[peer.name().as_str()]);
            gate.open();
            leaving.join().expect("the leave is done");
        });
        let seen = || alice.membership_of(room.id.as_str(), bob.id());
        wait_until("the room knows that bob has left", || {
            server.advance(Duration::from_secs(10));
            seen().as_deref() == Some("leave")
        });
        assert!(bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_none());
    }
}

#[test]
fn an_invite_from_before_the_user_left_is_asked_about_where_only_the_last_state_knows_that_they_did() {
    let (server, peer) = (TestServer::start(), Peer::start());
    for stands in [false, true] {
        let bob = server.user(&format!("bob{stands}"));
        let mut room = FakeRoom::new(&peer, "11", "public");
        // It names nothing of what the user was since.
        let old = room.membership(&peer, &room.creator, bob.id(), "invite");
        let body = room.invite_body(&old);
        peer.let_in(&room, bob.id());
        bob.join_via(room.id.as_str(), &[peer.name().as_str()]);
        bob.leave(room.id.as_str());
        let is_out = || server.homeserver().store.read(|db| db.resident_room(&room.id)).unwrap().is_none();
        wait_until("this server is out of the room", is_out);
        let asked = peer.asked("make_leave").len();
        if stands {
            room.take(old.clone());
            peer.answer_json("make_leave", 200, room.template(bob.id(), "leave"));
        } else {
            peer.answer_json("make_leave", 403, forbidden());
        }
        assert_eq!(peer.put_event(server.name(), "v2/invite", &room.id, &old, &body).0, 200);
        wait_until("the room is asked, and it is as the room says", || {
            server.advance(Duration::from_secs(5));
            peer.asked("make_leave").len() > asked && invite_shown(&bob, &room).is_empty() != stands
        });
        server.advance(Duration::from_secs(600));
        assert_eq!(invite_shown(&bob, &room).is_empty(), !stands);
    }
}

/// A room of this server alone, in which bob is invited, or upon which he has knocked, before its only member leaves it.
fn deserted(alice: &TestUser, bob: &TestUser, version: &str, is_knock: bool) -> RoomId {
    let rule = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
    let room = alice.create_room_with(json!({ "room_version": version, "initial_state": [rule] }));
    match is_knock {
        true => assert_eq!(post(bob, &format!("knock/{}", segment(&room)), json!({})).0, 200),
        false => alice.invite(&room, bob.id()),
    }
    bob.wait_for_room(if is_knock { "knock" } else { "invite" }, &room);
    alice.leave(&room);
    RoomId::parse(&room).expect("a room id")
}

fn row_of(server: &TestServer, user: &TestUser, room: &RoomId) -> RemoteMembership {
    let user = UserId::parse(user.id()).expect("a user id");
    let row = server.homeserver().store.read(|db| db.remote_membership(room, &user));
    row.expect("the database reads").expect("a row")
}

#[test]
fn who_rejects_an_invite_or_withdraws_a_knock_where_nobody_is_left_has_left_at_once() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for (version, is_knock) in [("11", false), ("11", true), ("12", false), ("12", true)] {
        let bob = server.user(&format!("bob{version}{is_knock}"));
        let room = deserted(&alice, &bob, version, is_knock);
        bob.leave(room.as_str());
        let is_closed = || row_of(&server, &bob, &room).state == RemoteState::Closed;
        wait_until("nobody is left to be told", is_closed);
        assert_eq!(row_of(&server, &bob, &room).due_ms, None);
        bob.wait_for_room("leave", room.as_str());
    }
}

#[test]
fn a_stranger_who_claims_a_room_where_nobody_is_left_hears_of_it_when_their_invite_is_rejected() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let id = deserted(&alice, &bob, "11", false);
    let invite = json!({
        "type": "m.room.member", "room_id": id.as_str(), "sender": peer.user("mallory"), "state_key": bob.id(),
        "content": { "membership": "invite" }, "depth": 9, "origin_server_ts": 1, "auth_events": [],
        "prev_events": [],
    });
    let version = doorstep::protocol::room_version::room_version("11").expect("a version");
    let invite = peer.sign(invite.as_object().expect("an object").clone(), version);
    let body = json!({ "room_version": "11", "event": invite.to_object(), "invite_room_state": [] });
    let (status, said) = peer.put_event(server.name(), "v2/invite", &id, &invite, &body);
    assert_eq!(status, 200, "{said}");
    peer.answer_json("make_leave", 403, forbidden());
    bob.leave(id.as_str());
    wait_until("it is over", || row_of(&server, &bob, &id).state == RemoteState::Closed);
    assert_eq!(row_of(&server, &bob, &id).due_ms, None);
    wait_until("who claimed the room is told", || !peer.asked("make_leave").is_empty());
}

#[test]
fn of_an_invite_where_nobody_is_left_nobody_is_asked_after_a_stranger_has_refused_the_join() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = deserted(&alice, &bob, "11", false);
    peer.answer_json("make_join", 403, forbidden());
    let (status, said) = join(&bob, room.as_str(), Some(peer.name().as_str()));
    assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
    wait_until("the matter is settled", || row_of(&server, &bob, &room).due_ms.is_none());
    assert_eq!(row_of(&server, &bob, &room).state, RemoteState::Invited);
    bob.wait_for_room("invite", room.as_str());
}
