//! What of other servers' events counts as unread: what was accepted when it came, and nothing else.

use crate::common::client::{V3, room_path, sync};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{Scene, bodies, edus_at, objects};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Place;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::json;

fn unread(user: &TestUser, room: &str) -> (u64, u64) {
    let unread = &sync(user, "")["rooms"]["join"][room]["unread_notifications"];
    let count = |name: &str| unread[name].as_u64().expect("a count");
    (count("notification_count"), count("highlight_count"))
}

#[test]
fn what_is_rejected_or_soft_failed_does_not_count_and_what_is_accepted_does() {
    let mut scene = Scene::new("12");
    let (user, creator) = (scene.peer.user("member"), scene.room.creator.clone());
    let (start, id) = (scene.last.clone(), user.as_str().to_owned());
    let join = scene.event(&[&start], &user, ("m.room.member", Some(&id)), json!({ "membership": "join" }));
    scene.room.state.insert(("m.room.member".into(), id.clone()), join.clone());
    let ban = json!({ "membership": "ban" });
    let ban = scene.event(&[join.event_id()], &creator, ("m.room.member", Some(&id)), ban);
    let evading = scene.message_after(&[join.event_id()], &user, "evading");
    let banned = scene.message_after(&[ban.event_id()], &user, "banned");
    scene.send("1", &[&join, &ban, &evading, &banned]);
    let room = scene.room.id.to_string();
    assert_eq!(unread(&scene.alice, &room), (0, 0));
    let mention = json!({ "body": "you", "m.mentions": { "user_ids": [scene.alice.id()] } });
    let mention = scene.event(&[ban.event_id()], &creator, ("m.room.message", None), mention);
    let more = scene.message_after(&[mention.event_id()], &creator, "more");
    scene.send("2", &[&mention, &more]);
    assert_eq!(unread(&scene.alice, &room), (2, 1));
    // Once more is not twice.
    scene.send("3", &[&mention, &more]);
    assert_eq!(unread(&scene.alice, &room), (2, 1));
}

#[test]
fn history_that_is_fetched_later_does_not_count() {
    let mut scene = Scene::new("12");
    let lost: Vec<Pdu> = (0..3).map(|n| scene.message(&format!("lost {n}"))).collect();
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    let arrived = scene.message("arrived");
    scene.send("1", &[&arrived]);
    let room = scene.room.id.to_string();
    assert_eq!(unread(&scene.alice, &room), (1, 0));
    let page = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&lost) });
    scene.peer.answer_json("/backfill/", 200, page);
    let hs = scene.server.homeserver();
    let row = hs.store.read(|db| db.known_room(&scene.room.id)).expect("the room");
    assert!(hs.events().backfill(&row, Place::END).expect("it comes"));
    assert_eq!(bodies(&scene.alice, &room), ["lost 0", "lost 1", "lost 2", "arrived"]);
    assert_eq!(unread(&scene.alice, &room), (1, 0));
}

#[test]
fn an_invite_of_another_server_is_notified_of_while_it_stands() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let master = format!("{V3}/pushrules/global/override/.m.rule.master/enabled");
    bob.put(&master, json!({ "enabled": true }));
    let mut room = FakeRoom::new(&peer, "11", "invite");
    room.invite(&peer, server.name(), alice.id());
    room.invite(&peer, server.name(), bob.id());
    let told = |user: &TestUser| {
        let id = UserId::parse(user.id()).expect("a user id");
        let read = server.homeserver().store.read(|db| {
            Ok((
                db.notifications_after(&id, 0, 10)?.found,
                db.notifications_before(&id, i64::MAX, false, 10)?.found,
                db.badge(&id)?,
            ))
        });
        let (after, before, badge) = read.expect("read");
        assert_eq!(after, before);
        (after, badge.invites)
    };
    let (notifications, invites) = told(&alice);
    assert_eq!((notifications.len(), invites), (1, 1));
    assert_eq!((&notifications[0].room_id, notifications[0].event), (&room.id, None));
    assert!(notifications[0].outcome.sound && !notifications[0].outcome.highlight);
    assert_eq!((told(&bob).0.len(), told(&bob).1), (0, 1), "whoever wants to hear of nothing does not");
    peer.let_leave(&room, alice.id());
    alice.leave(room.id.as_str());
    assert_eq!((told(&alice).0.len(), told(&alice).1), (0, 0));
}

#[test]
fn other_servers_are_sent_public_receipts_and_no_private_ones() {
    let mut scene = Scene::new("11");
    let first = scene.message_after(&[&scene.last.clone()], &scene.room.creator.clone(), "one");
    let second = scene.message_after(&[first.event_id()], &scene.room.creator.clone(), "two");
    scene.send("1", &[&first, &second]);
    let room = scene.room.id.to_string();
    for (kind, event) in [("m.read.private", second.event_id()), ("m.read", first.event_id())] {
        let path = room_path(&room, &format!("receipt/{kind}/{}", segment(event.as_str())));
        scene.alice.post(&path, json!({}));
    }
    assert_eq!(unread(&scene.alice, &room), (0, 0));
    wait_until("the public receipt", || !edus_at(&scene.peer, "m.receipt").is_empty());
    let told = json!(edus_at(&scene.peer, "m.receipt")).to_string();
    assert!(told.contains(first.event_id().as_str()), "{told}");
    assert!(!told.contains("private") && !told.contains(second.event_id().as_str()), "{told}");
}

#[test]
fn what_was_said_elsewhere_before_one_came_in_and_is_hidden_from_one_notifies_one_of_nothing() {
    let (here, there) = TestServer::pair();
    let (alice, bob, zed) = (here.user("alice"), here.user("bob"), there.user("zed"));
    let hidden =
        json!({ "type": "m.room.history_visibility", "content": { "history_visibility": "joined" } });
    let room = zed.create_room_with(json!({ "preset": "public_chat", "initial_state": [hidden] }));
    alice.join_via(&room, &[there.name()]);
    here.cut_off(&there);
    bob.join(&room);
    let to_both = json!({ "msgtype": "m.text", "body": "between us", "m.mentions": { "user_ids": [alice.id(), bob.id()] } });
    zed.send_event(&room, "m.room.message", to_both);
    zed.send(&room, "and so on");
    here.mend(&there);
    alice.wait_for(&room, |event| event["content"]["body"] == "and so on");
    assert_eq!((unread(&alice, &room), unread(&bob, &room)), ((2, 1), (0, 0)));
    let listed = bob.get(&format!("{V3}/notifications"))["notifications"].to_string();
    assert!(!listed.contains("between us") && !listed.contains("and so on"), "{listed}");
    // Once his join is known there, he hears of everything.
    zed.wait_for(&room, |event| event["state_key"] == bob.id() && event["content"]["membership"] == "join");
    zed.send(&room, "welcome");
    bob.wait_for(&room, |event| event["content"]["body"] == "welcome");
    assert_eq!((unread(&alice, &room), unread(&bob, &room)), ((3, 1), (1, 0)));
}

#[test]
fn what_forks_with_other_states_are_to_each_is_told_apart_also_when_others_come_in_between() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let mut room = FakeRoom::new(&peer, "11", "public");
    let creator = room.creator.clone();
    let hidden = json!({ "history_visibility": "joined" });
    room.add(&peer, "m.room.history_visibility", "", &creator, hidden);
    let before_alice = room.last.clone();
    room.join(&peer, &alice);
    let mut scene = Scene::of(server, alice, peer, room);
    let (room, after_alice) = (scene.room.id.to_string(), scene.last.clone());
    let fork_of = |scene: &mut Scene, prev: &EventId, txn: &str| {
        let said = scene.message_after(&[prev], &creator, txn);
        scene.send(txn, &[&said]);
        said.event_id().clone()
    };
    // Behind what alice's join follows she may see nothing, by whatever way it comes.
    let mut hidden = fork_of(&mut scene, &before_alice, "1");
    let mut shown = fork_of(&mut scene, &after_alice, "2");
    assert_eq!(unread(&scene.alice, &room), (1, 0));
    for n in 3..6 {
        hidden = fork_of(&mut scene, &hidden, &format!("hidden{n}"));
        shown = fork_of(&mut scene, &shown, &format!("shown{n}"));
    }
    assert_eq!(unread(&scene.alice, &room), (4, 0));
    // Bob is in neither of them.
    bob.join(&room);
    fork_of(&mut scene, &hidden, "6");
    fork_of(&mut scene, &shown, "7");
    assert_eq!((unread(&scene.alice, &room), unread(&bob, &room)), ((5, 0), (0, 0)));
}
