//! What happens in a room while somebody is coming into it from another server: the join follows what there was when its
//! template was made, and so nothing of this. Here the newcomer's server, and the one that lets them in.

use doorstep::TestServer;
use doorstep::internals::Status;
use doorstep::protocol::{Pdu, RoomId, UserId, room_version};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

use crate::common::client::{knock, room_path};
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::stored;
use crate::common::wait::{Gate, wait_until};

fn section(user: &TestUser, room: &FakeRoom) -> Option<&'static str> {
    let rooms = user.initial_sync()["rooms"].clone();
    ["join", "invite", "knock"].into_iter().find(|section| rooms[section].get(room.id.as_str()).is_some())
}

/// A member event of somebody's about a user which follows these.
fn member(room: &FakeRoom, peer: &Peer, of: &str, (sender, what): (&UserId, &str), prev: &[&Pdu]) -> Pdu {
    let mut event = room.unsigned("m.room.member", of, sender, json!({ "membership": what }));
    event.insert("prev_events".into(), prev.iter().map(|pdu| json!(pdu.event_id())).collect());
    peer.sign(event, room.version)
}

/// From now on the peer says that the other server is not in the room.
fn shut_out(peer: &Peer) {
    for of in ["/get_missing_events/", "/state_ids/", "/state/", "/event_auth/", "/event/", "/backfill/"] {
        peer.answer_json(
            of,
            403,
            json!({ "errcode": "M_FORBIDDEN", "error": "Your server is not in the room" }),
        );
    }
}

#[test]
fn who_is_removed_the_moment_they_come_in_is_out_though_nobody_tells_what_was_said_meanwhile() {
    let server = TestServer::start();
    for (number, removal) in ["ban", "leave"].into_iter().enumerate() {
        let (peer, bob) = (Peer::start(), server.user(&format!("bob{number}")));
        let mut room = FakeRoom::new(&peer, "11", "public");
        peer.let_in(&room, bob.id());
        let beside = room.clone().say(&peer, "beside");
        bob.join_via(room.id.as_str(), &[peer.name().as_str()]);
        let join = room.read(&peer.wait_for("send_join").body);
        room.take(join.clone());
        shut_out(&peer);
        // Whoever has no power to do so, or does not know of the join, puts nobody out.
        let stranger = peer.user("stranger");
        let forged = member(&room, &peer, bob.id(), (&stranger, removal), &[&beside, &join]);
        let mut before = room.clone();
        before.state.remove(&("m.room.member".to_owned(), bob.id().to_owned()));
        let blind = member(&before, &peer, bob.id(), (&room.creator, removal), &[&beside]);
        let (status, said) = peer.send_transaction(server.name(), "1", &[&forged, &blind]);
        assert_eq!(status, 200, "{said}");
        assert_eq!(section(&bob, &room), Some("join"));
        let out = member(&room, &peer, bob.id(), (&room.creator, removal), &[&beside, &join]);
        let (status, said) = peer.send_transaction(server.name(), "2", &[&out]);
        assert_eq!((status, &said["pdus"][out.event_id().as_str()]), (200, &json!({})), "{said}");
        wait_until("bob is out", || section(&bob, &room).is_none());
        assert_eq!(stored(&server, out.event_id()).expect("it is stored").status, Status::Accepted);
    }
}

#[test]
fn a_server_that_comes_in_is_told_what_was_said_since_the_template_before_what_follows() {
    for visibility in ["shared", "joined"] {
        let (server, peer) = (TestServer::start(), Peer::start());
        let alice = server.user("alice");
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "11", "initial_state": [
            { "type": "m.room.history_visibility", "state_key": "", "content": { "history_visibility": visibility } }
        ] }));
        peer.take_transactions();
        let carol = peer.user("carol");
        alice.send(&room, "long before");
        let path = format!("{}/{}?ver=11", segment(&room), segment(carol.as_str()));
        let (status, made) =
            peer.ask(server.name(), "GET", &format!("/_matrix/federation/v1/make_join/{path}"), None);
        assert_eq!(status, 200, "{made}");
        alice.send(&room, "one");
        alice.send(&room, "two");
        let mut event = made["event"].as_object().expect("an event").clone();
        event.insert("origin_server_ts".into(), now_ms().into());
        let join = peer.sign(event, room_version::room_version("11").expect("a version"));
        let id = RoomId::parse(&room).expect("a room id");
        let body = Value::Object(join.to_object());
        assert_eq!(peer.put_event(server.name(), "v2/send_join", &id, &join, &body).0, 200);
        alice.send(&room, "after");
        let expected: &[&str] = if visibility == "shared" { &["one", "two", "after"] } else { &["after"] };
        let told = || -> Vec<String> {
            let asked = peer.asked("/send/");
            let pdus = asked.iter().filter_map(|asked| asked.body["pdus"].as_array()).flatten();
            pdus.filter_map(|pdu| Some(pdu["content"]["body"].as_str()?.to_owned())).collect()
        };
        wait_until("it is told", || told().iter().any(|body| body == "after"));
        assert_eq!(told(), expected, "{visibility}");
    }
}

/// When another user of this server is invited.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Invited {
    /// Beside the join.
    Beside,
    /// Beside it, and after something that nobody has told this server of.
    Behind,
    /// After the join, when its answer is still on its way.
    After,
}

#[test]
fn an_invite_that_was_signed_while_another_user_was_coming_in_is_shown_and_can_be_answered() {
    let server = TestServer::start();
    for (number, when) in [Invited::Beside, Invited::Behind, Invited::After].into_iter().enumerate() {
        let peer = Peer::start();
        let [bob, carol] = ["bob", "carol"].map(|name| server.user(&format!("{name}{number}")));
        let mut room = FakeRoom::new(&peer, "11", "invite");
        room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", room.id.as_str());
        let gate = Gate::default();
        peer.let_in(&room, bob.id());
        peer.answer_behind(&gate, "send_join", 200, room.join_answer());
        std::thread::scope(|scope| {
            let joining = scope.spawn(|| bob.join_via(room.id.as_str(), &[peer.name().as_str()]));
            let join = room.read(&peer.wait_for("send_join").body);
            let mut there = room.clone();
            let mut told = Vec::new();
            match when {
                Invited::Beside => {}
                Invited::Behind => told.push(there.say(&peer, "behind")),
                Invited::After => there.take(join),
            }
            told.push(there.invite(&peer, server.name(), carol.id()));
            peer.serve_events(&told, 10);
            carol.wait_for_room("invite", room.id.as_str());
            gate.open();
            joining.join().expect("no panic");
        });
        wait_until("the room knows of the invite", || {
            bob.membership_of(room.id.as_str(), carol.id()).as_deref() == Some("invite")
        });
        assert_eq!(section(&carol, &room), Some("invite"), "{when:?}");
        let verb = if when == Invited::Beside { "leave" } else { "join" };
        let (status, said) = carol.request("POST", &room_path(room.id.as_str(), verb), Some(json!({})));
        assert_eq!(status, 200, "{when:?}: {said}");
        assert_eq!(bob.membership_of(room.id.as_str(), carol.id()).as_deref(), Some(verb));
    }
}

#[test]
fn a_knock_that_was_taken_while_another_user_was_coming_in_is_shown_and_can_be_withdrawn() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let [bob, carol] = ["bob", "carol"].map(|name| server.user(name));
    let mut room = FakeRoom::new(&peer, "11", "knock");
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    peer.let_knock(&room, carol.id());
    assert_eq!(knock(&carol, room.id.as_str(), peer.name().as_str()).0, 200);
    carol.wait_for_room("knock", room.id.as_str());
    // The template, and the state, are those of before the knock.
    peer.let_in(&room, bob.id());
    bob.join_via(room.id.as_str(), &[peer.name().as_str()]);
    wait_until("the room knows of the knock", || {
        bob.membership_of(room.id.as_str(), carol.id()).as_deref() == Some("knock")
    });
    assert_eq!(section(&carol, &room), Some("knock"));
    carol.leave(room.id.as_str());
    assert_eq!(bob.membership_of(room.id.as_str(), carol.id()).as_deref(), Some("leave"));
}

#[test]
fn an_invite_that_was_signed_before_we_knew_that_our_last_user_was_put_out_is_shown_when_we_do() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let [alice, bob] = ["alice", "bob"].map(|name| server.user(name));
    let mut room = FakeRoom::new(&peer, "11", "public");
    peer.let_in(&room, alice.id());
    alice.join_via(room.id.as_str(), &[peer.name().as_str()]);
    let join = room.read(&peer.wait_for("send_join").body);
    room.take(join.clone());
    let kick = member(&room, &peer, alice.id(), (&room.creator.clone(), "leave"), &[&join]);
    room.take(kick.clone());
    shut_out(&peer);
    room.invite(&peer, server.name(), bob.id());
    assert_eq!(section(&bob, &room), None, "the room that we are in knows of no invite");
    let (status, said) = peer.send_transaction(server.name(), "1", &[&kick]);
    assert_eq!(status, 200, "{said}");
    bob.wait_for_room("invite", room.id.as_str());
    assert_eq!(section(&alice, &room), None);
}

#[test]
fn what_a_server_offers_that_is_not_in_the_room_is_not_awaited() {
    let (server, peer, stranger) = (TestServer::start(), Peer::start(), Peer::start());
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let mut room = FakeRoom::new(&peer, "11", "public");
    peer.let_in(&room, alice.id());
    alice.join_via(room.id.as_str(), &[peer.name().as_str()]);
    let join = room.read(&peer.wait_for("send_join").body);
    room.take(join.clone());
    let by_stranger = member(&room, &stranger, bob.id(), (&stranger.user("eve"), "invite"), &[&join]);
    let body = room.invite_body(&by_stranger);
    stranger.put_event(server.name(), "v2/invite", &room.id, &by_stranger, &body);
    let kick = member(&room, &peer, alice.id(), (&room.creator.clone(), "leave"), &[&join]);
    room.take(kick.clone());
    shut_out(&peer);
    room.invite(&peer, server.name(), carol.id());
    let (status, said) = peer.send_transaction(server.name(), "1", &[&kick]);
    assert_eq!(status, 200, "{said}");
    carol.wait_for_room("invite", room.id.as_str());
    assert_eq!(section(&bob, &room), None);
}

#[test]
fn the_invite_of_a_server_that_the_room_keeps_out_does_not_come_in_with_who_knows_no_better() {
    let (here, there) = TestServer::pair();
    let peer = Peer::start();
    let (alice, [bob, carol]) = (here.user("alice"), ["bob", "carol"].map(|name| there.user(name)));
    for version in ["11", "12"] {
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
        let id = RoomId::parse(&room).expect("a room id");
        peer.take_transactions();
        let guard = peer.user("guard");
        let (joined, (status, said)) = peer.hand_in(here.name(), "join", &room, &guard);
        assert_eq!(status, 200, "{said}");
        let acl = json!({ "allow": ["*"], "deny": ["127.0.0.1"], "allow_ip_literals": true });
        let shut = alice.put(&room_path(&room, "state/m.room.server_acl/"), acl);
        // As the peer knows the room: an invite that the rules allow, and that the room will never see.
        let known = |kind: &str| {
            let of_kind = |event: &&Value| event["type"] == kind && event["state_key"] == "";
            let event = said["state"].as_array().expect("a state").iter().find(of_kind).expect("it is there");
            Pdu::from_object(event.as_object().expect("an event").clone(), joined.version())
                .expect("an event")
        };
        let create = known("m.room.create");
        let mut auth = vec![known("m.room.power_levels"), known("m.room.join_rules"), joined.clone()];
        if version != "12" {
            auth.push(create.clone());
        }
        let auth: Vec<&str> = auth.iter().map(|event| event.event_id().as_str()).collect();
        let invite = json!({
            "type": "m.room.member", "state_key": carol.id(), "sender": guard, "room_id": room, "depth": 100,
            "origin_server_ts": now_ms(), "content": { "membership": "invite" }, "auth_events": auth,
            "prev_events": [shut["event_id"]],
        });
        let invite = peer.sign(invite.as_object().expect("an object").clone(), joined.version());
        let shown = if version == "12" { vec![create.to_object()] } else { Vec::new() };
        let body =
            json!({ "room_version": version, "event": invite.to_object(), "invite_room_state": shown });
        let (status, said) = peer.put_event(there.name(), "v2/invite", &id, &invite, &body);
        assert_eq!(status, 200, "{said}");
        bob.join_via(&room, &[here.name()]);
        bob.initial_sync();
        alice.send(&room, "hello");
        assert_eq!(bob.next_message(&room), "hello");
        assert_eq!(bob.membership_of(&room, carol.id()), None, "version {version}");
        assert!(stored(&there, invite.event_id()).is_none(), "version {version}");
    }
}
