//! What is decided here while another server is asked on behalf of a handshake: it counts by the time that the handshake is
//! written down. The other server is scripted and answers when everything else has happened.

use std::sync::Arc;

use doorstep::TestServer;
use doorstep::internals::{Administrator, Reply};
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

use crate::common::client::{V3, join, knock};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};

fn id(user: &TestUser) -> UserId {
    UserId::parse(user.id()).expect("a user id")
}

/// What who runs the server decides.
#[derive(Debug, Clone, Copy)]
enum Decision {
    Block,
    Suspend,
    Lock,
    Close,
}

use Decision::{Block, Close, Lock, Suspend};

impl Decision {
    fn take(self, server: &TestServer, user: &TestUser, room: &FakeRoom) {
        let (hs, by) = (server.homeserver(), Administrator::Operator);
        match self {
            Block => hs.admin().set_room_block(&room.id, true, &by),
            Suspend => hs.accounts().change_standing(&by, &id(user), |s| s.suspended = true).map(drop),
            Lock => hs.accounts().change_standing(&by, &id(user), |s| s.locked = true).map(drop),
            Close => hs.deactivate(&id(user), false),
        }
        .expect("decided");
    }

    fn told(self) -> (u16, &'static str) {
        match self {
            Block | Close => (403, "M_FORBIDDEN"),
            Suspend => (403, "M_USER_SUSPENDED"),
            Lock => (401, "M_USER_LOCKED"),
        }
    }
}

#[test]
fn what_is_decided_while_a_template_is_asked_for_keeps_the_join_or_knock_from_being_handed_in() {
    for (kind, rule) in [("join", "public"), ("knock", "knock")] {
        for decision in [Block, Suspend, Lock, Close] {
            let (server, peer) = (TestServer::start(), Peer::start());
            // The first one is the administrator.
            let (_, bob) = (server.user("alice"), server.user("bob"));
            let room = FakeRoom::new(&peer, "11", rule);
            peer.let_in(&room, bob.id());
            peer.let_knock(&room, bob.id());
            let (gate, ask) = (Gate::default(), format!("make_{kind}"));
            peer.answer_behind(&gate, &ask, 200, room.template(bob.id(), kind));
            let (status, said) = std::thread::scope(|scope| {
                let asking = scope.spawn(|| match kind {
                    "join" => join(&bob, room.id.as_str(), Some(peer.name().as_str())),
                    _ => knock(&bob, room.id.as_str(), peer.name().as_str()),
                });
                peer.wait_for(&ask);
                decision.take(&server, &bob, &room);
                gate.open();
                asking.join().expect("no panic")
            });
            let told = (status, said["errcode"].as_str().unwrap_or_default());
            assert_eq!(told, decision.told(), "{kind} {decision:?}: {said}");
            assert!(peer.asked("send_").is_empty(), "{kind} {decision:?}: nobody was told of it");
            let row = server.homeserver().store.read(|db| db.remote_membership(&room.id, &id(&bob)));
            assert!(row.expect("a database").is_none(), "{kind} {decision:?}");
        }
    }
}

#[test]
fn who_wants_no_invites_any_more_or_closes_the_account_while_keys_are_fetched_is_not_invited() {
    for closes in [false, true] {
        let (server, peer, other) = (TestServer::start(), Peer::start(), Peer::start());
        let bob = server.user("bob");
        let room = FakeRoom::new(&peer, "12", "invite");
        // An event by which the room is to be recognised, of a server whose keys take a while.
        let gate = Gate::default();
        other.hide_keys(true);
        other.answer_behind(&gate, "/key/v2/server", 404, json!({ "errcode": "M_NOT_FOUND" }));
        let topic = room.draft(&other, "m.room.topic", "", &other.user("editor"), json!({ "topic": "slow" }));
        let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
        let mut body = room.invite_body(&invite);
        body["invite_room_state"].as_array_mut().expect("a list").push(Value::Object(topic.to_object()));
        let (status, said) = std::thread::scope(|scope| {
            let offered =
                scope.spawn(|| peer.put_event(server.name(), "v2/invite", &room.id, &invite, &body));
            other.wait_for("/key/v2/server");
            match closes {
                true => Close.take(&server, &bob, &room),
                false => {
                    let config =
                        format!("{V3}/user/{}/account_data/m.invite_permission_config", segment(bob.id()));
                    bob.put(&config, json!({ "default_action": "block" }));
                }
            }
            gate.open();
            offered.join().expect("no panic")
        });
        let errcode = if closes { "M_FORBIDDEN" } else { "M_INVITE_BLOCKED" };
        assert_eq!((status, said["errcode"].as_str()), (403, Some(errcode)), "{said}");
        let row = server.homeserver().store.read(|db| db.remote_membership(&room.id, &id(&bob)));
        assert!(row.expect("a database").is_none());
    }
}

#[test]
fn whose_account_was_closed_or_whose_room_was_blocked_while_others_let_them_in_leaves_again() {
    for decision in [Block, Close] {
        let (server, peer) = (TestServer::start(), Arc::new(Peer::start()));
        let (bob, eve) = (server.user("bob"), server.user("eve"));
        // A room of both servers that lets in who is in another one, in the name of somebody of the peer's alone.
        let club = bob.create_room_with(json!({ "preset": "public_chat" }));
        eve.join(&club);
        let mut room = FakeRoom::joined_by(&peer, "10", &bob);
        let creator = room.creator.clone();
        let levels = json!({ "invite": 50, "users": { creator.as_str(): 100 } });
        let levels = room.add(&peer, "m.room.power_levels", "", &creator, levels);
        let rules =
            json!({ "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": club }] });
        let rules = room.add(&peer, "m.room.join_rules", "", &creator, rules);
        assert_eq!(peer.send_transaction(server.name(), "t1", &[&levels, &rules]).0, 200);
        let content = json!({ "membership": "join", "join_authorised_via_users_server": creator });
        let template = room.unsigned("m.room.member", eve.id(), &id(&eve), content);
        peer.answer_json("make_join", 200, json!({ "room_version": "10", "event": template }));
        let (gate, answer) = (Gate::default(), room.join_answer());
        let (opens, signer, version) = (gate.clone(), Arc::downgrade(&peer), room.version);
        peer.answer("send_join", move |asked| {
            opens.pass();
            let mut answer = answer.clone();
            answer["event"] = signer.upgrade().expect("it runs").countersign(&asked.body, version);
            Reply::json(&answer)
        });
        let before = peer.asked("send_join").len();
        let (status, said) = std::thread::scope(|scope| {
            let joining = scope.spawn(|| join(&eve, room.id.as_str(), Some(peer.name().as_str())));
            wait_until("the join is handed in", || peer.asked("send_join").len() > before);
            decision.take(&server, &eve, &room);
            gate.open();
            joining.join().expect("no panic")
        });
        assert_eq!((status, said["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{decision:?}: {said}");
        assert_eq!(bob.membership_of(room.id.as_str(), eve.id()).as_deref(), Some("leave"), "{decision:?}");
        wait_until("the room is told that they have left", || {
            let sent = peer.asked("/send/");
            let pdus = sent.iter().flat_map(|sent| sent.body["pdus"].as_array().cloned().unwrap_or_default());
            pdus.into_iter()
                .any(|pdu| pdu["state_key"] == eve.id() && pdu["content"]["membership"] == "leave")
        });
    }
}

#[test]
fn who_takes_back_that_accepted_knocks_are_joined_while_the_room_is_asked_stays_invited() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let door = format!("{V3}/user/{}/account_data/org.doorstep.door.accept_knocks", segment(bob.id()));
    bob.put(&door, json!({ "enabled": true }));
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    room.take(room.read(&peer.wait_for("send_knock").body));
    let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
    let body = room.invite_body(&invite);
    room.take(invite.clone());
    peer.let_in(&room, bob.id());
    let gate = Gate::default();
    peer.answer_behind(&gate, "make_join", 200, room.template(bob.id(), "join"));
    assert_eq!(peer.put_event(server.name(), "v2/invite", &room.id, &invite, &body).0, 200);
    peer.wait_for("make_join");
    bob.put(&door, json!({ "enabled": false }));
    gate.open();
    wait_until("no join is owed", || {
        server.homeserver().store.read(|db| db.next_owed_join_due()).expect("a database").is_none()
    });
    assert!(peer.asked("send_join").is_empty());
    bob.wait_for_room("invite", room.id.as_str());
}
