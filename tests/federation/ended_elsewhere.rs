//! Knocks and invites that somebody ends whose server is another than the one that took the knock, or invited: the one who
//! waits before the room hears of it from the server that they have to do with, or by asking.

use std::time::Duration;

use crate::common::client::{knock, post, room_path};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::protocol::{Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const DAY_AND_A_BIT: Duration = Duration::from_secs(29 * 3600);

/// A room of alice's with knocking, and a moderator of another server in it.
struct Scene {
    moderator: Peer,
    /// As the moderator's server knows it.
    room: FakeRoom,
}

impl Scene {
    fn new(here: &TestServer, alice: &TestUser) -> Scene {
        let moderator = Peer::start();
        moderator.take_transactions();
        let by = moderator.user("mod");
        let room = alice.create_room_with(json!({ "room_version": "11", "preset": "public_chat",
            "power_level_content_override": { "users": { alice.id(): 100, by.as_str(): 60 } } }));
        let mut room = FakeRoom::entered(&moderator, here.name(), &room, &by);
        alice.set_state(room.id.as_str(), "m.room.join_rules", "", json!({ "join_rule": "knock" }));
        room.take(told(&moderator, &room, "m.room.join_rules", ""));
        Scene { moderator, room }
    }

    fn id(&self) -> &str {
        self.room.id.as_str()
    }

    /// The moderator's server has heard what this user is to the room.
    fn hear_of(&mut self, user: &str) {
        let event = told(&self.moderator, &self.room, "m.room.member", user);
        self.room.take(event);
    }

    /// The moderator removes somebody, and tells nobody but the room's other server.
    fn remove(&self, here: &TestServer, user: &str, membership: &str, from: &FakeRoom) -> Pdu {
        let by = self.moderator.user("mod");
        let content = json!({ "membership": membership, "reason": "no" });
        let removal = from.draft(&self.moderator, "m.room.member", user, &by, content);
        let txn = removal.event_id().as_str().trim_start_matches('$');
        let (status, said) = self.moderator.send_transaction(here.name(), txn, &[&removal]);
        assert_eq!((status, &said["pdus"][removal.event_id().as_str()]), (200, &json!({})), "{said}");
        removal
    }
}

/// The events of a room that a peer was sent.
fn sent(peer: &Peer, room: &FakeRoom) -> Vec<Pdu> {
    let asked = peer.asked("/send/");
    let pdus = asked.iter().filter_map(|asked| asked.body["pdus"].as_array()).flatten();
    pdus.filter(|pdu| pdu["room_id"] == room.id.as_str()).map(|pdu| room.read(pdu)).collect()
}

/// The last state event of this type and key that a peer was sent.
fn told(peer: &Peer, room: &FakeRoom, kind: &str, state_key: &str) -> Pdu {
    let last = || sent(peer, room).into_iter().rev().find(|pdu| pdu.is(kind, state_key));
    wait_until("it is told", || last().is_some());
    last().expect("it was there")
}

fn forbidden() -> Value {
    json!({ "errcode": "M_FORBIDDEN", "error": "no" })
}

#[test]
fn who_waits_before_a_room_is_told_though_a_moderator_of_another_server_ended_it() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    for (number, (was, membership)) in
        [("knock", "leave"), ("knock", "ban"), ("invite", "leave"), ("invite", "ban")].into_iter().enumerate()
    {
        let bob = there.user(&format!("bob{number}"));
        let mut scene = Scene::new(&here, &alice);
        match was {
            "knock" => drop(bob.knock_via(scene.id(), &[here.name()])),
            _ => alice.invite(scene.id(), bob.id()),
        }
        bob.wait_for_room(was, scene.id());
        scene.hear_of(bob.id());
        scene.remove(&here, bob.id(), membership, &scene.room);
        bob.wait_for_room("leave", scene.id());
    }
}

#[test]
fn who_waits_is_told_of_a_ban_that_knows_nothing_of_the_knock_and_wins_over_it() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let mut scene = Scene::new(&here, &alice);
    let before = scene.room.clone();
    bob.knock_via(scene.id(), &[here.name()]);
    bob.wait_for_room("knock", scene.id());
    scene.hear_of(bob.id());
    scene.remove(&here, bob.id(), "ban", &before);
    assert_eq!(alice.membership_of(scene.id(), bob.id()).as_deref(), Some("ban"));
    bob.wait_for_room("leave", scene.id());
}

#[test]
fn a_server_is_told_of_the_end_of_no_knock_that_it_took_elsewhere() {
    let here = TestServer::start();
    let (alice, outsider) = (here.user("alice"), Peer::start());
    outsider.take_transactions();
    let mut scene = Scene::new(&here, &alice);
    // This one the moderator's server took, as it says.
    let (eve, dave) = (outsider.user("eve"), outsider.user("dave"));
    let elsewhere =
        scene.room.draft(&outsider, "m.room.member", eve.as_str(), &eve, json!({ "membership": "knock" }));
    let (status, said) = scene.moderator.send_transaction(here.name(), "knock", &[&elsewhere]);
    assert_eq!((status, &said["pdus"][elsewhere.event_id().as_str()]), (200, &json!({})), "{said}");
    assert_eq!(alice.membership_of(scene.id(), eve.as_str()).as_deref(), Some("knock"));
    scene.room.take(elsewhere);
    let refused = scene.remove(&here, eve.as_str(), "leave", &scene.room);
    scene.room.take(refused);
    // And this one was knocked here.
    let (_, (status, said)) = outsider.hand_in(here.name(), "knock", scene.id(), &dave);
    assert_eq!(status, 200, "{said}");
    scene.hear_of(dave.as_str());
    let refusal = scene.remove(&here, dave.as_str(), "leave", &scene.room);
    let is_told = || sent(&outsider, &scene.room).iter().any(|pdu| pdu.event_id() == refusal.event_id());
    wait_until("dave's server is told", is_told);
    assert_eq!(sent(&outsider, &scene.room).len(), 1, "of dave alone");
}

#[test]
fn a_knock_that_stands_is_looked_up_once_a_day_so_that_a_refusal_that_nobody_told_comes_to_light() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    bob.wait_for_room("knock", room.id.as_str());
    room.take(room.read(&peer.wait_for("send_knock").body));
    peer.let_leave(&room, bob.id());
    for day in 1..4 {
        server.advance(DAY_AND_A_BIT);
        wait_until("it is looked up", || peer.asked("make_leave").len() == day);
        // Its answer is there before the next day.
        let room_id = &room.id;
        let user = UserId::parse(bob.id()).expect("a user id");
        wait_until("the next look is far off", || {
            let row = server.homeserver().store.read(|db| db.remote_membership(room_id, &user)).unwrap();
            let due = row.and_then(|row| row.due_ms).expect("a time");
            due - server.homeserver().clock.now_ms() > 19 * 3_600_000
        });
    }
    assert!(bob.initial_sync()["rooms"]["knock"].get(room.id.as_str()).is_some());
    peer.answer_json("make_leave", 403, forbidden());
    server.advance(DAY_AND_A_BIT);
    bob.wait_for_room("leave", room.id.as_str());
    assert!(peer.asked("make_leave").len() <= 7, "a few times, to be sure");
    assert!(peer.asked("send_leave").is_empty(), "there is nothing to leave");
}

#[test]
fn a_removal_of_the_first_knock_that_crosses_the_second_counts_if_it_is_a_ban_however_deep_they_are() {
    for (membership, deeper) in [("ban", 0), ("ban", 30), ("leave", 0), ("leave", 30)] {
        let (server, peer) = (TestServer::start(), Peer::start());
        let bob = server.user("bob");
        let mut room = FakeRoom::new(&peer, "11", "knock");
        let path = format!("knock/{}?via={}", segment(room.id.as_str()), segment(peer.name().as_str()));
        let ask = |reason: &str| post(&bob, &path, json!({ "reason": reason })).0;
        peer.let_knock(&room, bob.id());
        assert_eq!(ask("once"), 200);
        bob.wait_for_room("knock", room.id.as_str());
        let first = room.read(&peer.wait_for("send_knock").body);
        room.take(first);
        peer.let_knock(&room, bob.id());
        assert_eq!(ask("twice"), 200);
        let knocks = peer.asked("send_knock");
        assert_eq!(knocks.len(), 2);
        let creator = room.creator.clone();
        let mut removal =
            room.unsigned("m.room.member", bob.id(), &creator, json!({ "membership": membership }));
        let depth = removal["depth"].as_i64().expect("a depth") + deeper;
        removal.insert("depth".into(), depth.into());
        let removal = peer.sign(removal, room.version);
        // What the room keeps: by state resolution the second knock stands, unless it was a ban.
        room.take(room.read(&knocks[1].body));
        peer.let_leave(&room, bob.id());
        let (status, said) = peer.send_transaction(server.name(), "removal", &[&removal]);
        assert_eq!((status, &said["pdus"][removal.event_id().as_str()]), (200, &json!({})), "{said}");
        if membership == "ban" {
            bob.wait_for_room("leave", room.id.as_str());
            continue;
        }
        wait_until("the room is asked, and keeps to its word", || {
            server.advance(Duration::from_secs(5));
            peer.asked("make_leave").len() >= 4
        });
        assert!(bob.initial_sync()["rooms"]["knock"].get(room.id.as_str()).is_some());
        peer.answer_json("make_leave", 403, forbidden());
        server.advance(DAY_AND_A_BIT);
        bob.wait_for_room("leave", room.id.as_str());
    }
}

#[test]
fn a_template_that_makes_no_event_ends_neither_a_join_nor_a_knock_that_another_server_can_help_with() {
    let server = TestServer::start();
    let many = |most: usize| (0..most).map(|n| json!(format!("${:043}", n))).collect::<Value>();
    let lies = [
        ("prev_events", many(21)),
        ("auth_events", many(11)),
        ("prev_events", json!([7, {}])),
        ("auth_events", json!(["no event id"])),
    ];
    for (kind, rule) in [("knock", "knock"), ("join", "public")] {
        let (liar, peer) = (Peer::start(), Peer::start());
        for (number, (field, lie)) in lies.iter().enumerate() {
            let bob = server.user(&format!("{kind}s{number}"));
            let room = FakeRoom::new(&peer, "11", rule);
            let mut template = room.template(bob.id(), kind);
            template["event"][*field] = lie.clone();
            liar.answer_json(&format!("make_{kind}"), 200, template);
            match kind {
                "knock" => peer.let_knock(&room, bob.id()),
                _ => peer.let_in(&room, bob.id()),
            }
            let [liar_name, name] = [&liar, &peer].map(|peer| segment(peer.name().as_str()));
            let path = format!("{kind}/{}", segment(room.id.as_str()));
            let asked = liar.asked(&format!("make_{kind}")).len();
            let (status, said) = post(&bob, &format!("{path}?via={liar_name}&via={name}"), json!({}));
            assert_eq!(status, 200, "{kind}, {field}: {said}");
            assert!(liar.asked(&format!("make_{kind}")).len() > asked, "{said}");
            bob.wait_for_room(kind, room.id.as_str());
        }
        // With nobody else to ask it is the other server's nonsense, and no fault of the client's.
        let bob = server.user(&format!("{kind}s_in_vain"));
        let room = FakeRoom::new(&peer, "11", rule);
        let mut template = room.template(bob.id(), kind);
        template["event"]["prev_events"] = many(21);
        for peer in [&liar, &peer] {
            peer.answer_json(&format!("make_{kind}"), 200, template.clone());
        }
        let via = segment(liar.name().as_str());
        let path = format!("{kind}/{}?via={via}", segment(room.id.as_str()));
        let (status, said) = post(&bob, &path, json!({}));
        assert_eq!((status, &said["errcode"]), (502, &json!("M_UNKNOWN")), "{said}");
        // What nobody could make an event of is the client's.
        let (status, said) = post(&bob, &path, json!({ "reason": "x".repeat(60_000) }));
        assert_eq!((status, &said["errcode"]), (413, &json!("M_TOO_LARGE")), "{said}");
    }
}

#[test]
fn a_knock_that_is_set_as_state_says_the_name_that_it_says_wherever_the_room_is() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let fields = json!({ "membership": "knock", "displayname": "Knocky", "avatar_url": "mxc://a.example/b",
        "reason": "please" });
    let path = |room: &str| room_path(room, &format!("state/m.room.member/{}", segment(bob.id())));
    let room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    let long = json!({ "membership": "knock", "displayname": "x".repeat(300) });
    let (status, said) = bob.request("PUT", &path(room.id.as_str()), Some(long));
    assert_eq!((status, &said["errcode"]), (400, &json!("M_INVALID_PARAM")), "{said}");
    let (status, said) = bob.request("PUT", &path(room.id.as_str()), Some(fields.clone()));
    assert_eq!(status, 200, "{said}");
    assert_eq!(peer.wait_for("send_knock").body["content"], fields);
    let here = alice.create_room_with(json!({ "room_version": "11", "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    bob.set_state(&here, "m.room.member", bob.id(), fields.clone());
    assert_eq!(alice.state(&here, "m.room.member", bob.id()), Some(fields));
}

#[test]
fn a_join_that_is_taken_up_again_says_what_its_user_said() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let room = FakeRoom::new(&peer, "11", "public");
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    peer.answer_json("send_join", 502, json!({}));
    let fields = json!({ "membership": "join", "displayname": "Roomy", "reason": "why not",
        "org.example.colour": "blue" });
    let path = room_path(room.id.as_str(), &format!("state/m.room.member/{}", segment(bob.id())));
    assert!(bob.request("PUT", &path, Some(fields.clone())).0 >= 500);
    let made = || {
        let mut times: Vec<_> =
            peer.asked("send_join").iter().map(|a| a.body["hashes"].to_string()).collect();
        times.sort();
        times.dedup();
        times.len()
    };
    assert_eq!(made(), 1);
    wait_until("it is made anew", || {
        server.advance(Duration::from_secs(3600));
        made() > 1
    });
    for asked in peer.asked("send_join") {
        assert_eq!(asked.body["content"], fields);
    }
    assert_eq!(knock(&bob, room.id.as_str(), peer.name().as_str()).0, 403, "it goes on");
}
