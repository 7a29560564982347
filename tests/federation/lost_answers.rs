//! Knocks and invites whose answer is lost: the other server may have taken them, at once or later.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::{knock, post};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::{RoomId, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const DAY_AND_A_BIT: Duration = Duration::from_secs(29 * 3600);

fn refused(why: &str) -> Value {
    json!({ "errcode": "M_FORBIDDEN", "error": why })
}

/// What a proxy says for a server behind it.
fn too_late() -> Reply {
    Reply::json_status(504, &json!({}))
}

// ----- knocks -----

#[test]
fn a_knock_that_lands_after_it_was_withdrawn_is_withdrawn_from_the_room() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.answer("send_knock", |_| too_late());
    peer.answer_json("make_leave", 403, refused("has nothing to leave"));
    assert_eq!(knock(&bob, room.id.as_str(), peer.name().as_str()).0, 504);
    let landing = peer.asked("send_knock")[0].body.clone();
    bob.leave(room.id.as_str());
    wait_until("the room is told that it has none", || !peer.asked("make_leave").is_empty());
    room.take(room.read(&landing));
    peer.let_leave(&room, bob.id());
    wait_until("the room hears of it once it has the knock", || {
        server.advance(Duration::from_secs(30));
        !peer.asked("send_leave").is_empty()
    });
    let leave = room.read(&peer.asked("send_leave")[0].body);
    assert!(leave.auth_events().contains(room.read(&landing).event_id()));
}

#[test]
fn a_knock_that_never_lands_is_withdrawn_a_few_times_and_not_for_ever() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let room = FakeRoom::new(&peer, "11", "knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.answer("send_knock", |_| too_late());
    peer.answer_json("make_leave", 403, refused("has nothing to leave"));
    assert_eq!(knock(&bob, room.id.as_str(), peer.name().as_str()).0, 504);
    bob.leave(room.id.as_str());
    let is_settled = || {
        let next = server.homeserver().store.read(|db| db.next_remote_membership_due());
        next.expect("the database reads").is_none()
    };
    wait_until("it is over", || {
        server.advance(Duration::from_secs(600));
        is_settled()
    });
    assert!((2..=6).contains(&peer.asked("make_leave").len()), "{}", peer.asked("make_leave").len());
}

#[test]
fn a_knock_that_the_server_refuses_which_took_the_last_one_has_that_one_looked_up() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    bob.wait_for_room("knock", room.id.as_str());
    room.take(room.read(&peer.wait_for("send_knock").body));
    // Somebody bans him, and nobody tells.
    peer.answer_json("make_knock", 403, refused("You are banned from this room"));
    peer.answer_json("make_leave", 403, refused("You are banned from this room"));
    assert_eq!(knock(&bob, room.id.as_str(), peer.name().as_str()).0, 403);
    bob.wait_for_room("leave", room.id.as_str());
}

// ----- invites -----

/// A guest's server that takes every invite, and says nothing of that as long as it is told to.
struct Guest {
    peer: Arc<Peer>,
    id: String,
}

impl Guest {
    fn new() -> Guest {
        let peer = Arc::new(Peer::start());
        peer.take_transactions();
        let id = peer.user("guest").to_string();
        Guest { peer, id }
    }

    fn answers_are_lost(&self) {
        self.peer.answer("v2/invite", |_| too_late());
    }

    fn signs(&self) {
        let signer = Arc::downgrade(&self.peer);
        let rules = room_version("11").expect("a version");
        self.peer.answer("v2/invite", move |asked| {
            let signer = signer.upgrade().expect("the peer is there");
            Reply::json(&json!({ "event": signer.countersign(&asked.body["event"], rules) }))
        });
    }

    /// What it was told of the guest.
    fn told(&self) -> Vec<String> {
        let asked = self.peer.asked("/send/");
        let pdus = asked.iter().filter_map(|asked| asked.body["pdus"].as_array()).flatten();
        let of_guest = pdus.filter(|pdu| pdu["state_key"] == self.id.as_str());
        of_guest.filter_map(|pdu| Some(pdu["content"]["membership"].as_str()?.to_owned())).collect()
    }
}

fn on(alice: &TestUser, room: &str, verb: &str, whom: &str) -> (u16, Value) {
    post(alice, &format!("rooms/{}/{verb}", segment(room)), json!({ "user_id": whom }))
}

fn make_room(alice: &TestUser) -> String {
    alice.create_room_with(json!({ "room_version": "11", "preset": "private_chat" }))
}

#[test]
fn who_may_be_shown_an_invite_whose_answer_was_lost_hears_of_the_removal_that_follows() {
    let mut server = TestServer::start();
    let alice = server.user("alice");
    for (verb, membership) in [("ban", "ban"), ("kick", "leave")] {
        let guest = Guest::new();
        guest.answers_are_lost();
        let room = make_room(&alice);
        let (status, said) = on(&alice, &room, "invite", &guest.id);
        assert_eq!(status, 504, "{said}");
        server.restart();
        assert_eq!(on(&alice, &room, verb, &guest.id), (200, json!({})), "{verb}");
        wait_until("it is told", || guest.told() == [membership]);
        // Once.
        let (again, _) = on(&alice, &room, "kick", &guest.id);
        assert_eq!(again, 403);
    }
    // Who was never offered one is nobody whom a kick removes, and no server is told of their ban.
    let guest = Guest::new();
    let room = make_room(&alice);
    assert_eq!(on(&alice, &room, "kick", &guest.id).0, 403);
    assert_eq!(on(&alice, &room, "ban", &guest.id).0, 200);
    assert!(guest.told().is_empty());
}

#[test]
fn an_invite_that_is_repeated_takes_the_place_of_one_whose_answer_was_lost() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (guest, room) = (Guest::new(), make_room(&alice));
    guest.answers_are_lost();
    assert_eq!(on(&alice, &room, "invite", &guest.id).0, 504);
    guest.signs();
    assert_eq!(on(&alice, &room, "invite", &guest.id).0, 200);
    let kept = || {
        let known = server.homeserver().store.read(|db| {
            let room = db.known_room(&RoomId::parse(&room)?)?.key;
            db.is_offered_invite(room, &UserId::parse(&guest.id)?)
        });
        known.expect("the database reads")
    };
    assert!(!kept(), "the room has the invite itself");
    assert_eq!(on(&alice, &room, "kick", &guest.id).0, 200);
    wait_until("it is told", || guest.told().last().is_some_and(|last| last == "leave"));
}

#[test]
fn who_is_banned_while_the_answer_to_their_invite_is_on_its_way_hears_of_it_though_it_is_lost() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (guest, room) = (Guest::new(), make_room(&alice));
    let gate = Gate::default();
    guest.peer.answer("v2/invite", {
        let gate = gate.clone();
        move |_| {
            gate.pass();
            too_late()
        }
    });
    std::thread::scope(|scope| {
        let invited = scope.spawn(|| on(&alice, &room, "invite", &guest.id).0);
        guest.peer.wait_for("v2/invite");
        assert_eq!(on(&alice, &room, "ban", &guest.id).0, 200);
        gate.open();
        assert_eq!(invited.join().expect("no panic"), 504);
    });
    wait_until("it is told", || guest.told() == ["ban"]);
}

#[test]
fn an_invite_that_was_signed_by_a_key_that_cannot_be_had_for_a_moment_is_made() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (guest, room) = (Guest::new(), make_room(&alice));
    guest.signs();
    guest.peer.hide_keys(true);
    let (status, said) = std::thread::scope(|scope| {
        let invited = scope.spawn(|| on(&alice, &room, "invite", &guest.id));
        guest.peer.wait_for("/key/v2/server");
        guest.peer.hide_keys(false);
        invited.join().expect("no panic")
    });
    assert_eq!(status, 200, "{said}");
}

#[test]
fn an_invite_that_was_signed_by_a_key_that_cannot_be_had_says_so_and_is_taken_back_by_a_ban() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (guest, room) = (Guest::new(), make_room(&alice));
    guest.signs();
    guest.peer.hide_keys(true);
    let (status, said) = on(&alice, &room, "invite", &guest.id);
    let why = said["error"].as_str().unwrap_or_default();
    assert!(status == 502 && why.contains("key"), "{status} {said}");
    guest.peer.hide_keys(false);
    assert_eq!(on(&alice, &room, "ban", &guest.id).0, 200);
    wait_until("it is told", || guest.told() == ["ban"]);
}

#[test]
fn an_invite_that_stands_is_looked_up_once_a_day_so_that_it_goes_if_nobody_told_that_it_was_taken_back() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let mut room = FakeRoom::new(&peer, "11", "invite");
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    let shown = || bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_some();
    let next_day = |asked: usize| {
        wait_until("it is looked up", || {
            server.advance(DAY_AND_A_BIT);
            peer.asked("make_leave").len() > asked
        });
        peer.asked("make_leave").len()
    };
    // A server that knows of nothing, and one that has left and says what was: neither says that it was taken back.
    peer.answer_json("make_leave", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no such room" }));
    let asked = next_day(0);
    peer.answer_json("make_join", 404, json!({ "errcode": "M_NOT_FOUND", "error": "not in the room" }));
    peer.answer_json("make_leave", 403, refused("not in the room"));
    let asked = next_day(asked);
    wait_until("it is asked whether it is in the room", || !peer.asked("make_join").is_empty());
    assert!(shown());
    peer.let_leave(&room, bob.id());
    let asked = next_day(asked);
    assert!(shown());
    // One that is in the room, and does not know the invite any more.
    peer.answer_json("make_join", 403, refused("you are not invited"));
    peer.answer_json("make_leave", 403, refused("you are not in the room"));
    next_day(asked);
    bob.wait_for_room("leave", room.id.as_str());
    assert!(!shown());
    assert!(peer.asked("send_leave").is_empty(), "there is nothing to leave");
}
