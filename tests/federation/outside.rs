//! What a room that we are not in tells us about our users, where the key of the one who says it cannot be had at that
//! moment: it is kept before we answer, and takes effect once the key is there.

use std::time::Duration;

use crate::common::ProcessServer;
use crate::common::client::join;
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Db;
use doorstep::internals::Reply;
use doorstep::protocol::Pdu;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A room on one peer with a moderator of another, whose keys cannot be had; and the server's bob, who has knocked.
struct Scene {
    peer: Peer,
    gone: Peer,
    room: FakeRoom,
}

impl Scene {
    fn new(bob: &TestUser) -> Scene {
        let (peer, gone) = (Peer::start(), Peer::start());
        gone.hide_keys(true);
        let mut room = FakeRoom::new(&peer, "11", "knock");
        room.add(&gone, "m.room.member", gone.user("mod").as_str(), &gone.user("mod"), member("join"));
        peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
        peer.answer_json("send_knock", 200, json!({ "knock_room_state": room.shown() }));
        let path = format!(
            "/_matrix/client/v3/knock/{}?via={}",
            segment(room.id.as_str()),
            segment(peer.name().as_str())
        );
        let (status, said) = bob.request("POST", &path, Some(json!({})));
        assert_eq!(status, 200, "{said}");
        bob.wait_for_room("knock", room.id.as_str());
        let knock = peer.wait_for("send_knock").body.as_object().expect("an event").clone();
        room.take(Pdu::from_object(knock, room.version).expect("our own knock"));
        Scene { peer, gone, room }
    }

    /// The moderator removes bob.
    fn removal(&self, bob: &TestUser, membership: &str, reason: &str) -> Pdu {
        let content = json!({ "membership": membership, "reason": reason });
        self.room.draft(&self.gone, "m.room.member", bob.id(), &self.gone.user("mod"), content)
    }

    /// What is said of an event that the room's server sends.
    fn send(&self, server: &str, txn: &str, event: &Pdu) -> Value {
        let (status, body) = self.peer.send_transaction(server, txn, &[event]);
        assert_eq!(status, 200, "{body}");
        body["pdus"][event.event_id().as_str()].clone()
    }

    fn knocks(&self, bob: &TestUser) -> bool {
        bob.initial_sync()["rooms"]["knock"].get(self.room.id.as_str()).is_some()
    }
}

fn member(membership: &str) -> Value {
    json!({ "membership": membership })
}

fn waiting(server: &TestServer, scene: &Scene) -> usize {
    let hs = server.homeserver();
    let queue = hs.store.read(|db| match db.room(&scene.room.id)? {
        Some(room) => db.pending_counts(room.key, scene.peer.name()).map(|queue| queue.of_origin_in_room),
        None => Ok(0),
    });
    queue.expect("the database reads")
}

fn is_kept(server: &TestServer, scene: &Scene, event: &Pdu) -> bool {
    let kept = |db: &Db<'_>| db.is_pending_from(event.event_id(), scene.peer.name(), false);
    server.homeserver().store.read(kept).expect("the database reads")
}

#[test]
fn a_refusal_whose_key_cannot_be_had_is_kept_and_ends_the_knock_once_the_key_is_there() {
    let server = TestServer::start();
    let bob = server.user("bob");
    for membership in ["leave", "ban"] {
        let scene = Scene::new(&bob);
        let refusal = scene.removal(&bob, membership, "no");
        assert_eq!(scene.send(server.name(), "1", &refusal), json!({}));
        assert_eq!((waiting(&server, &scene), scene.knocks(&bob)), (1, true));
        // A repeat is no second one.
        assert_eq!(scene.send(server.name(), "2", &refusal), json!({}));
        assert_eq!(waiting(&server, &scene), 1);
        scene.gone.hide_keys(false);
        server.advance(Duration::from_secs(3600));
        bob.wait_for_room("leave", scene.room.id.as_str());
        wait_until("nothing waits any more", || waiting(&server, &scene) == 0);
        assert!(!scene.knocks(&bob));
    }
}

#[test]
fn the_key_that_comes_another_way_ends_the_waiting_at_once() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let scene = Scene::new(&bob);
    assert_eq!(scene.send(server.name(), "1", &scene.removal(&bob, "leave", "no")), json!({}));
    scene.gone.hide_keys(false);
    // It is not yet time to ask for the key once more; but the server speaks to us, and so its key is fetched.
    server.advance(Duration::from_secs(6));
    wait_until("the server's request is believed", || {
        scene.gone.ask(server.name(), "GET", "/_matrix/federation/v1/query/profile?user_id=x", None).0 != 401
    });
    bob.wait_for_room("leave", scene.room.id.as_str());
}

#[test]
fn a_refusal_that_waits_survives_a_kill() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let scene = Scene::new(&bob);
    assert_eq!(scene.send(server.name(), "1", &scene.removal(&bob, "leave", "no")), json!({}));
    server.kill();
    scene.gone.hide_keys(false);
    server.resume();
    bob.wait_for_room("leave", scene.room.id.as_str());
}

#[test]
fn what_waits_from_outside_is_bounded_and_given_up_some_day() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let scene = Scene::new(&bob);
    let all: Vec<Pdu> = (0..201).map(|n| scene.removal(&bob, "leave", &n.to_string())).collect();
    for (txn, events) in all[..200].chunks(50).enumerate() {
        let events: Vec<&Pdu> = events.iter().collect();
        let (status, said) = scene.peer.send_transaction(server.name(), &txn.to_string(), &events);
        assert_eq!(status, 200, "{said}");
        assert!(events.iter().all(|e| said["pdus"][e.event_id().as_str()] == json!({})), "{said}");
    }
    let kept = waiting(&server, &scene);
    assert!((50..200).contains(&kept), "{kept}");
    // The latest word of a server counts; it takes the place of its oldest one.
    assert_eq!(scene.send(server.name(), "more", &all[200]), json!({}));
    assert_eq!((waiting(&server, &scene), is_kept(&server, &scene, &all[200])), (kept, true));
    assert!(!is_kept(&server, &scene, &all[0]));
    // Of what would change nothing, nothing is kept, whoever signed it.
    let own =
        scene.room.draft(&scene.gone, "m.room.member", bob.id(), &scene.gone.user("mod"), member("join"));
    let (_, said) = scene.peer.send_transaction(server.name(), "own", &[&own]);
    assert!(said["pdus"][own.event_id().as_str()]["error"].is_string(), "{said}");
    server.advance(Duration::from_secs(3 * 24 * 3600 + 60));
    wait_until("it is given up", || waiting(&server, &scene) == 0);
    assert!(scene.knocks(&bob));
}

#[test]
fn an_old_refusal_whose_key_comes_late_does_not_end_the_next_knock() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let mut scene = Scene::new(&bob);
    let late = scene.removal(&bob, "leave", "no");
    assert_eq!(scene.send(server.name(), "1", &late), json!({}));
    // Somebody else refuses him as well, which is heard at once; and he knocks again.
    let creator = scene.room.creator.clone();
    scene.room.take(late);
    let other = scene.room.add(&scene.peer, "m.room.member", bob.id(), &creator, member("leave"));
    assert_eq!(scene.send(server.name(), "2", &other), json!({}));
    bob.wait_for_room("leave", scene.room.id.as_str());
    scene.peer.answer_json("make_knock", 200, scene.room.template(bob.id(), "knock"));
    let (room, via) = (segment(scene.room.id.as_str()), segment(scene.peer.name().as_str()));
    let path = format!("/_matrix/client/v3/knock/{room}?via={via}");
    assert_eq!(bob.request("POST", &path, Some(json!({}))).0, 200);
    scene.gone.hide_keys(false);
    server.advance(Duration::from_secs(3600));
    wait_until("nothing waits any more", || waiting(&server, &scene) == 0);
    assert!(scene.knocks(&bob));
}

#[test]
fn what_a_room_says_of_one_of_us_while_another_joins_is_part_of_the_room_then() {
    let (server, peer) = (TestServer::start(), &Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let mut room = FakeRoom::new(peer, "11", "public");
    let (template, answer, gate) = (room.template(alice.id(), "join"), room.join_answer(), Gate::default());
    peer.answer_json("make_join", 200, template);
    peer.answer("send_join", {
        let gate = gate.clone();
        move |_| {
            gate.pass();
            Reply::json(&answer)
        }
    });
    peer.answer_json("/send/", 200, json!({ "pdus": {} }));
    let alice = std::thread::scope(|scope| {
        let door = room.id.clone();
        let joining = scope.spawn(move || {
            alice.join_via(door.as_str(), &[peer.name().as_str()]);
            alice
        });
        let join = peer.wait_for("send_join").body.as_object().expect("an event").clone();
        room.take(Pdu::from_object(join, room.version).expect("the join"));
        let ban = room.draft(peer, "m.room.member", bob.id(), &room.creator, member("ban"));
        let (_, said) = peer.send_transaction(server.name(), "1", &[&ban]);
        assert_eq!(said["pdus"][ban.event_id().as_str()], json!({}), "{said}");
        gate.open();
        joining.join().expect("the join is done")
    });
    wait_until("the room has it", || {
        alice.membership_of(room.id.as_str(), bob.id()).as_deref() == Some("ban")
    });
}

/// Events of a room that nobody has made or signed, one transaction full.
fn made_up(room: &FakeRoom, of: &Peer, round: usize) -> Value {
    let event = |n: usize| {
        json!({
            "type": "m.room.message", "sender": of.user("nobody"), "room_id": room.id, "depth": round * 50 + n,
            "auth_events": [], "prev_events": ["$none"], "origin_server_ts": now_ms(), "content": { "body": "x" },
            "hashes": { "sha256": "AAAA" }, "signatures": { of.name().as_str(): { "ed25519:1": "AAAA" } },
        })
    };
    let pdus: Vec<Value> = (0..50).map(event).collect();
    json!({ "origin": of.name(), "origin_server_ts": now_ms(), "pdus": pdus, "edus": [] })
}

#[test]
fn servers_that_flood_a_room_which_one_of_us_joins_keep_nobody_elses_transactions_out() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    peer.take_transactions();
    let mut home = FakeRoom::joined_by(&peer, "12", &alice);
    let room = FakeRoom::new(&peer, "12", "public");
    let gate = Gate::default();
    peer.let_in(&room, alice.id());
    peer.answer_behind(&gate, "/send_join/", 200, room.join_answer());
    let before = peer.asked("/send_join/").len();
    let said = std::thread::scope(|scope| {
        let joining = scope.spawn(|| alice.join_via(room.id.as_str(), &[peer.name().as_str()]));
        wait_until("the join is handed in", || peer.asked("/send_join/").len() > before);
        let join = room.read(&peer.asked("/send_join/").last().expect("the join").body);
        let floods: Vec<Peer> = (0..6).map(|_| Peer::start()).collect();
        for (flood, round) in floods.iter().flat_map(|flood| (0..5).map(move |round| (flood, round))) {
            let path = format!("/_matrix/federation/v1/send/{round}");
            let (status, said) = flood.ask(server.name(), "PUT", &path, Some(&made_up(&room, flood, round)));
            assert_eq!(status, 200, "whatever becomes of its events: {said}");
        }
        // More than is kept of one server; and in each of its transactions is something for a room that we are in.
        let (mut at_the_end, mut all) = (room.clone(), Vec::new());
        at_the_end.take(join);
        for txn in 0..4 {
            let mut pdus: Vec<Pdu> =
                (0..49).map(|n| at_the_end.say(&peer, &format!("meanwhile {}", txn * 49 + n))).collect();
            all.extend(pdus.clone());
            pdus.push(home.say(&peer, &format!("at home {txn}")));
            let (status, said) =
                peer.send_transaction(server.name(), &format!("t{txn}"), &pdus.iter().collect::<Vec<_>>());
            assert_eq!(status, 200, "{said}");
            assert!(pdus.iter().all(|pdu| said["pdus"][pdu.event_id().as_str()] == json!({})), "{said}");
        }
        peer.serve_events(&all, 500);
        gate.open();
        joining.join().expect("the join is done");
        all
    });
    let last = said.last().expect("events").event_id().clone();
    // What had to make place came before what was kept, and is fetched for it.
    for id in [&last, said[0].event_id()] {
        wait_until("it is there", || {
            let path = format!(
                "/_matrix/client/v3/rooms/{}/event/{}",
                segment(room.id.as_str()),
                segment(id.as_str())
            );
            alice.request("GET", &path, None).0 == 200
        });
    }
}

#[test]
fn a_removal_made_at_the_moment_of_a_join_takes_effect_although_nobody_tells_what_it_follows() {
    let (server, peer) = (TestServer::start(), &Peer::start());
    for (number, membership) in ["leave", "ban"].into_iter().enumerate() {
        let bob = server.user(&format!("bob{number}"));
        let mut room = FakeRoom::new(peer, "11", "invite");
        room.invite(peer, server.name(), bob.id());
        peer.let_in(&room, bob.id());
        // Both follow the invite. The room puts the removal first, and then there is no join; but it was taken.
        let removal = room.membership(peer, &room.creator, bob.id(), membership);
        bob.join(room.id.as_str());
        bob.wait_for_room("join", room.id.as_str());
        let (_, said) = peer.send_transaction(server.name(), membership, &[&removal]);
        assert_eq!(said["pdus"][removal.event_id().as_str()], json!({}), "{said}");
        bob.wait_for_room("leave", room.id.as_str());
        assert!(bob.initial_sync()["rooms"]["join"].get(room.id.as_str()).is_none());
    }
}

#[test]
fn a_removal_that_comes_while_a_join_is_being_prepared_ends_the_join_that_does_not_know_of_it() {
    let (server, peer) = (TestServer::start(), &Peer::start());
    for (number, membership) in ["leave", "ban"].into_iter().enumerate() {
        let bob = server.user(&format!("bob{number}"));
        let mut room = FakeRoom::new(peer, "11", "public");
        let invite = room.invite(peer, server.name(), bob.id());
        bob.wait_for_room("invite", room.id.as_str());
        // The template is made before the removal, and comes after it.
        let gate = Gate::default();
        peer.let_in(&room, bob.id());
        peer.answer_behind(&gate, "make_join", 200, room.template(bob.id(), "join"));
        let asked = peer.asked("make_join").len();
        let removal = room.membership(peer, &room.creator, bob.id(), membership);
        std::thread::scope(|scope| {
            let joining = scope.spawn(|| join(&bob, room.id.as_str(), None));
            wait_until("a template is asked for", || peer.asked("make_join").len() > asked);
            let (_, said) = peer.send_transaction(server.name(), membership, &[&removal]);
            assert_eq!(said["pdus"][removal.event_id().as_str()], json!({}), "{said}");
            gate.open();
            let (status, said) = joining.join().expect("no panic");
            assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
        });
        bob.wait_for_room("leave", room.id.as_str());
        assert!(bob.initial_sync()["rooms"]["join"].get(room.id.as_str()).is_none());
        if membership == "ban" {
            continue;
        }
        // What rests on the removal comes after it.
        room.take(removal);
        peer.let_in(&room, bob.id());
        let mut answer = room.join_answer();
        answer["auth_chain"].as_array_mut().expect("events").push(Value::Object(invite.to_object()));
        peer.answer_json("send_join", 200, answer);
        assert_eq!(join(&bob, room.id.as_str(), None).0, 200);
        bob.wait_for_room("join", room.id.as_str());
    }
}

/// The room's server takes bob's leave, but answers only when the gate opens.
fn hold_leave(scene: &Scene, bob: &TestUser) -> Gate {
    let gate = Gate::default();
    scene.peer.answer_json("make_leave", 200, scene.room.template(bob.id(), "leave"));
    scene.peer.answer_behind(&gate, "send_leave", 200, json!({}));
    gate
}

fn put_invite(scene: &Scene, server: &str, invite: &Pdu) -> (u16, Value) {
    scene.peer.put_event(server, "v2/invite", &scene.room.id, invite, &scene.room.invite_body(invite))
}

#[test]
fn an_invite_that_meets_a_leave_is_answered_when_the_leave_is_and_refused_if_it_is_older() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let mut scene = Scene::new(&bob);
    let gate = hold_leave(&scene, &bob);
    let older = scene.room.membership(&scene.peer, &scene.room.creator, bob.id(), "invite");
    let leave = std::thread::scope(|scope| {
        let leaving = scope.spawn(|| bob.leave(scene.room.id.as_str()));
        let leave = scene.room.read(&scene.peer.wait_for("send_leave").body);
        let inviting = scope.spawn(|| put_invite(&scene, server.name(), &older));
        // It is on its way in, or has come; in either case it gets no answer and is shown to nobody yet.
        assert!(bob.initial_sync()["rooms"]["invite"].get(scene.room.id.as_str()).is_none());
        gate.open();
        leaving.join().expect("no panic");
        let (status, said) = inviting.join().expect("no panic");
        assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
        leave
    });
    assert!(bob.initial_sync()["rooms"]["invite"].get(scene.room.id.as_str()).is_none());
    // Also later it comes too late; and one that follows the leave is an invite.
    assert_eq!(put_invite(&scene, server.name(), &older).0, 403);
    scene.room.take(leave);
    let newer = scene.room.membership(&scene.peer, &scene.room.creator, bob.id(), "invite");
    assert_eq!(put_invite(&scene, server.name(), &newer).0, 200);
    bob.wait_for_room("invite", scene.room.id.as_str());
}

#[test]
fn an_invite_that_the_room_does_not_know_is_gone_once_the_user_was_not_let_in() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let no = |text: &str| json!({ "errcode": "M_FORBIDDEN", "error": text });
    for stands in [false, true] {
        let mut room = FakeRoom::new(&peer, "11", "invite");
        room.invite(&peer, server.name(), bob.id());
        bob.wait_for_room("invite", room.id.as_str());
        peer.answer_json("make_join", 403, no("not today"));
        match stands {
            true => peer.answer_json("make_leave", 200, room.template(bob.id(), "leave")),
            false => peer.answer_json("make_leave", 403, no("you are not in the room")),
        }
        let asked = peer.asked("make_leave").len();
        let (status, said) = bob.request(
            "POST",
            &format!("/_matrix/client/v3/join/{}", segment(room.id.as_str())),
            Some(json!({})),
        );
        assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
        let shown = || bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_some();
        wait_until("the room is asked, as often as it takes", || {
            server.advance(Duration::from_secs(5));
            peer.asked("make_leave").len() > asked && shown() == stands
        });
        server.advance(Duration::from_secs(600));
        assert_eq!(shown(), stands);
    }
}
