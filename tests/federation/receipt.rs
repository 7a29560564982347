//! What becomes of an event that another server sends us: the checks on receipt of a PDU, what waits for what, and that
//! nothing that we answered for is lost, however fast it comes and whatever happens to us meanwhile.
//!
//! The numbers are the steps of the server-server API, "Checks performed on receipt of a PDU".

use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::ProcessServer;
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{Scene, bodies, heads, objects, stored};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::NewPendingEvent;
use doorstep::internals::Reply;
use doorstep::internals::Status;
use doorstep::protocol::signatures::sign::{KeyAt, SigningKey};
use doorstep::protocol::signatures::verify;
use doorstep::protocol::{EventId, Pdu, UserId, VerifiedPdu};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn accepted(scene: &Scene, pdu: &Pdu) -> bool {
    scene.status(pdu) == Some(Status::Accepted)
}

fn waiting(scene: &Scene) -> usize {
    let (hs, name) = (scene.server.homeserver(), scene.peer.name());
    let queue = hs.store.read(|db| db.pending_counts(db.known_room(&scene.room.id)?.key, name));
    queue.expect("the database reads").in_room
}

/// A peer that is in the room, to the knowledge of the server that is tested.
fn resident(scene: &mut Scene, localpart: &str) -> Peer {
    let peer = Peer::start();
    peer.take_transactions();
    let join = scene.join_of(&peer, localpart);
    assert_eq!(scene.send(&format!("join-{localpart}"), &[&join])[join.event_id().as_str()], json!({}));
    peer
}

/// Messages of the creator, each following the one before.
fn chain(peer: &Peer, room: &FakeRoom, after: &EventId, count: usize, name: &str) -> Vec<Pdu> {
    let auth = ["m.room.create", "m.room.power_levels", "m.room.member"].iter().filter_map(|kind| {
        let key = if *kind == "m.room.member" { room.creator.to_string() } else { String::new() };
        let hidden = *kind == "m.room.create" && room.version.room_id_is_create_hash;
        room.state.get(&((*kind).to_owned(), key)).filter(|_| !hidden).map(Pdu::event_id)
    });
    let auth: Vec<&EventId> = auth.collect();
    let mut last = after.clone();
    let message = |n: usize| {
        let event = json!({
            "type": "m.room.message", "sender": room.creator, "room_id": room.id, "auth_events": auth,
            "content": { "body": format!("{name} {n}") }, "prev_events": [last], "depth": 100 + n,
            "origin_server_ts": now_ms(),
        });
        let event = peer.sign(event.as_object().expect("an object").clone(), room.version);
        last = event.event_id().clone();
        event
    };
    (0..count).map(message).collect()
}

#[test]
fn an_event_whose_past_nobody_has_now_is_answered_for_and_taken_in_when_somebody_has_it() {
    let mut scene = Scene::new("12");
    let lost = scene.message("lost");
    let behind = scene.message("behind");
    assert_eq!(scene.send("1", &[&behind])[behind.event_id().as_str()], json!({}));
    assert!(scene.status(&behind).is_none());
    // The answer is kept like any other.
    assert_eq!(scene.send("1", &[&behind])[behind.event_id().as_str()], json!({}));
    scene.peer.serve_events(&[lost, behind.clone()], 10);
    scene.server.advance(Duration::from_secs(60));
    wait_until("the event is taken in", || accepted(&scene, &behind));
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), ["lost", "behind"]);
    wait_until("nothing waits any more", || waiting(&scene) == 0);
}

#[test]
fn an_event_that_nobody_can_complete_is_given_up_after_some_days() {
    let mut scene = Scene::new("12");
    scene.message("never sent");
    let behind = scene.message("behind");
    scene.send("1", &[&behind]);
    assert_eq!(waiting(&scene), 1);
    scene.server.advance(Duration::from_secs(2 * 24 * 3600));
    wait_until("the peer is asked once more", || scene.peer.asked("/state_ids/").len() >= 2);
    assert_eq!(waiting(&scene), 1);
    scene.server.advance(Duration::from_secs(2 * 24 * 3600));
    wait_until("it is given up", || waiting(&scene) == 0);
    assert!(scene.status(&behind).is_none());
}

#[test]
fn whoever_sends_events_with_a_made_up_past_does_not_make_us_bother_others() {
    let mut scene = Scene::new("12");
    let bystander = resident(&mut scene, "bystander");
    for n in 0..30 {
        scene.message("never sent");
        let behind = scene.message("behind");
        assert_eq!(scene.send(&n.to_string(), &[&behind])[behind.event_id().as_str()], json!({}));
    }
    wait_until("the bystander is asked", || !bystander.asked("/state_ids/").is_empty());
    wait_until("all are put off", || {
        let hs = scene.server.homeserver();
        let next = hs.store.read(|db| db.next_pending_due()).expect("the database reads");
        next.is_some_and(|due| due > hs.clock.now_ms())
    });
    assert_eq!(waiting(&scene), 30);
    assert!(bystander.asked("/").len() < 10, "{}", bystander.asked("/").len());
}

#[test]
fn what_waits_is_taken_in_at_once_when_the_missing_event_comes_by_itself() {
    let mut scene = Scene::new("11");
    let events: Vec<Pdu> = (0..60).map(|n| scene.message(&n.to_string())).collect();
    let later: Vec<&Pdu> = events[11..].iter().collect();
    let said = scene.send("later", &later);
    assert!(later.iter().all(|pdu| said[pdu.event_id().as_str()] == json!({})), "{said}");
    assert_eq!(waiting(&scene), 49);
    // No clock is moved: only the event itself can have let them in.
    let first: Vec<&Pdu> = events[..11].iter().collect();
    scene.send("first", &first);
    wait_until("all of them are in", || accepted(&scene, &events[59]));
    let expected: Vec<String> = (0..60).map(|n| n.to_string()).collect();
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), expected);
    assert_eq!(heads(&scene.server, &scene.room), [events[59].event_id().clone()]);
}

#[test]
fn any_server_of_the_room_is_asked_but_those_that_it_keeps_out() {
    let mut scene = Scene::new("12");
    let helpful = resident(&mut scene, "helpful");
    let banned = resident(&mut scene, "banned");
    let acl = scene.set_state(
        "m.room.server_acl",
        "",
        json!({ "allow": ["*"], "deny": [banned.name().as_str(), "*.example"], "allow_ip_literals": true }),
    );
    scene.send("acl", &[&acl]);
    let lost = scene.message("lost");
    let behind = scene.message("behind");
    helpful.serve_events(&[lost, behind.clone()], 10);
    assert_eq!(scene.send("1", &[&behind])[behind.event_id().as_str()], json!({}));
    wait_until("the event is taken in", || accepted(&scene, &behind));
    assert!(!scene.peer.asked("/get_missing_events/").is_empty());
    assert!(banned.asked("/get_missing_events/").is_empty());
}

#[test]
fn a_hole_that_is_larger_than_an_answer_is_filled_by_asking_again_and_again() {
    let mut scene = Scene::new("12");
    let lost: Vec<Pdu> = (0..130).map(|n| scene.message(&n.to_string())).collect();
    let arrived = scene.message("arrived");
    scene.peer.serve_events(&[&lost[..], std::slice::from_ref(&arrived)].concat(), 20);
    assert_eq!(scene.send("1", &[&arrived])[arrived.event_id().as_str()], json!({}));
    wait_until("the hole is filled", || accepted(&scene, &arrived));
    let mut expected: Vec<String> = (0..130).map(|n| n.to_string()).collect();
    expected.push("arrived".into());
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), expected);
    assert!(scene.peer.asked("/state").is_empty());
    assert!(lost.iter().all(|pdu| accepted(&scene, pdu)));
}

#[test]
fn an_event_is_not_rejected_by_a_state_of_which_parts_could_not_be_had() {
    let mut scene = Scene::new("12");
    let user = scene.peer.user("late");
    let lost = scene.message("lost");
    // The auth events can be had, the rest of the state cannot: without the join the message would be rejected (5).
    let (last, id) = (scene.last.clone(), user.to_string());
    let join = scene.event(&[&last], &user, ("m.room.member", Some(&id)), json!({ "membership": "join" }));
    scene.room.state.insert(("m.room.member".into(), id.clone()), join.clone());
    let rejoin = json!({ "membership": "join", "displayname": "again" });
    let rejoin = scene.event(&[join.event_id()], &user, ("m.room.member", Some(&id)), rejoin);
    scene.room.state.insert(("m.room.member".into(), id), rejoin.clone());
    let mut ids: Vec<EventId> = scene.room.state.values().map(|pdu| pdu.event_id().clone()).collect();
    ids.retain(|id| id != join.event_id());
    let message = scene.message_after(&[rejoin.event_id()], &user, "hello");
    scene.peer.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
    let chain: Vec<Pdu> = scene.room.state.values().filter(|p| p.sender() != &user).cloned().collect();
    scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&chain) }));
    assert_eq!(scene.send("1", &[&message])[message.event_id().as_str()], json!({}));
    assert!(scene.status(&message).is_none());
    scene.peer.serve_events(&[lost, join, rejoin, message.clone()], 20);
    scene.server.advance(Duration::from_secs(60));
    wait_until("the message is accepted", || accepted(&scene, &message));
}

/// Answers `/event/` with these.
fn give_events(peer: &Peer, events: &[Pdu]) {
    let by_id: Vec<(String, Value)> =
        events.iter().map(|p| (segment(p.event_id().as_str()), Value::Object(p.to_object()))).collect();
    let name = peer.name().clone();
    peer.answer("/event/", move |asked| match by_id.iter().find(|(id, _)| asked.target.ends_with(id)) {
        Some((_, event)) => Reply::json(&json!({ "origin": name, "origin_server_ts": 0, "pdus": [event] })),
        None => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
    });
}

fn give_chain(peer: &Peer, events: &[Pdu]) {
    peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(events) }));
}

fn give_state(scene: &Scene, chain: &[Pdu], whole: bool) {
    let ids = |events: &mut dyn Iterator<Item = &Pdu>| -> Vec<EventId> {
        events.map(|pdu| pdu.event_id().clone()).collect()
    };
    let state: Vec<Pdu> = scene.room.state.values().cloned().collect();
    let (state_ids, chain_ids) = (ids(&mut state.iter()), ids(&mut chain.iter()));
    scene.peer.answer_json("/state_ids/", 200, json!({ "pdu_ids": state_ids, "auth_chain_ids": chain_ids }));
    if whole {
        let answer = json!({ "pdus": objects(&state), "auth_chain": objects(chain) });
        scene.peer.answer_json("/state/", 200, answer);
    }
}

#[test]
fn an_auth_chain_is_had_in_every_way_that_somebody_gives_it() {
    type Give = fn(&Scene, &Peer, &[Pdu]);
    let ways: [(&str, Give); 9] = [
        ("event_auth", |scene, _, chain| give_chain(&scene.peer, chain)),
        ("state_ids and state", |scene, _, chain| give_state(scene, chain, true)),
        ("state_ids and event", |scene, _, chain| {
            give_state(scene, chain, false);
            give_events(&scene.peer, chain);
        }),
        ("event", |scene, _, chain| give_events(&scene.peer, chain)),
        ("get_missing_events", |scene, _, chain| {
            scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": objects(chain) }));
        }),
        ("event_auth with a hole, and event", |scene, _, chain| {
            give_chain(&scene.peer, &[&chain[..20], &chain[21..]].concat());
            give_events(&scene.peer, &chain[20..21]);
        }),
        ("event_auth with a hole, and state", |scene, _, chain| {
            give_chain(&scene.peer, &[&chain[..20], &chain[21..]].concat());
            give_state(scene, chain, true);
        }),
        ("two servers, a part each", |scene, other, chain| {
            give_chain(&scene.peer, &[&chain[..20], &chain[21..]].concat());
            give_events(other, &chain[20..21]);
        }),
        ("another server that does not know the event", |scene, other, chain| {
            let (last, answer) =
                (chain[44].event_id().clone(), json!({ "auth_chain": objects(&chain[..44]) }));
            other.answer("/event_auth/", move |asked| {
                match asked.target.ends_with(&segment(last.as_str())) {
                    true => Reply::json(&answer),
                    false => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
                }
            });
            give_events(other, &chain[44..]);
            give_state(scene, &[], false);
        }),
    ];
    for (what, give) in ways {
        let mut scene = Scene::new("10");
        let other = resident(&mut scene, "other");
        let (before, creator) = (scene.last.clone(), scene.room.creator.clone());
        let mut end = before.clone();
        let chain: Vec<Pdu> = (0..45)
            .map(|n| {
                let content = json!({ "users": { creator.as_str(): 100 }, "n": n });
                let levels = scene.event(&[&end], &creator, ("m.room.power_levels", Some("")), content);
                scene.room.state.insert(("m.room.power_levels".into(), String::new()), levels.clone());
                end = levels.event_id().clone();
                levels
            })
            .collect();
        // It follows what we know, and the end of the branch of which we know nothing where that is to come along.
        let branch = if what == "get_missing_events" { &end } else { &before };
        let message = scene.message_after(&[branch], &creator, "hello");
        give(&scene, &other, &chain);
        assert_eq!(scene.send("1", &[&message])[message.event_id().as_str()], json!({}), "{what}");
        wait_until(&format!("it is taken in by {what}"), || accepted(&scene, &message));
        wait_until(&format!("nothing waits any more by {what}"), || waiting(&scene) == 0);
    }
}

#[test]
fn an_auth_chain_without_an_end_is_not_followed_for_ever() {
    let mut scene = Scene::new("10");
    let bystander = resident(&mut scene, "bystander");
    let (before, creator) = (scene.last.clone(), scene.room.creator.clone());
    let mut end = before.clone();
    let mut chain = Vec::new();
    for n in 0..700 {
        let content = json!({ "users": { creator.as_str(): 100 }, "n": n });
        let levels = scene.event(&[&end], &creator, ("m.room.power_levels", Some("")), content);
        scene.room.state.insert(("m.room.power_levels".into(), String::new()), levels.clone());
        end = levels.event_id().clone();
        chain.push(levels);
    }
    let message = scene.message_after(&[&before], &creator, "hello");
    give_events(&scene.peer, &chain[100..]);
    scene.send("1", &[&message]);
    wait_until("it is put off", || {
        let hs = scene.server.homeserver();
        let next = hs.store.read(|db| db.next_pending_due()).expect("the database reads");
        next.is_some_and(|due| due > hs.clock.now_ms())
    });
    assert!(scene.status(&message).is_none());
    let asked = (scene.peer.asked("/event/").len(), bystander.asked("/").len());
    assert!(asked.0 <= 2 * 500 && asked.1 <= 50, "{asked:?}");
    assert!(stored(&scene.server, chain[699].event_id()).is_none(), "nothing can be said of it");
}

#[test]
fn what_waits_survives_a_kill_and_is_fetched_after_the_start() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let peer = Peer::start();
    let room = FakeRoom::joined_by(&peer, "12", &alice);
    let events = chain(&peer, &room, &room.last, 5, "event");
    let (status, said) = peer.send_transaction(server.name(), "1", &[&events[4]]);
    assert_eq!((status, &said["pdus"][events[4].event_id().as_str()]), (200, &json!({})), "{said}");
    server.kill();
    peer.serve_events(&events, 3);
    server.resume();
    wait_until("they are there", || bodies(&alice, room.id.as_str()).len() == 5);
    assert_eq!(bodies(&alice, room.id.as_str())[4], "event 4");
}

#[test]
fn what_is_said_while_one_of_us_joins_is_there_once_we_are_in() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let room = FakeRoom::new(&peer, "12", "public");
    let gate = Gate::default();
    peer.let_in(&room, alice.id());
    peer.answer_behind(&gate, "/send_join/", 200, room.join_answer());
    let events = std::thread::scope(|scope| {
        let joining = scope.spawn(|| alice.join_via(room.id.as_str(), &[peer.name().as_str()]));
        let join = room.read(&peer.wait_for("/send_join/").body);
        let events = chain(&peer, &room, join.event_id(), 3, "meanwhile");
        let (status, said) = peer.send_transaction(server.name(), "1", &events.iter().collect::<Vec<_>>());
        assert_eq!(status, 200, "{said}");
        assert!(events.iter().all(|pdu| said["pdus"][pdu.event_id().as_str()] == json!({})), "{said}");
        gate.open();
        joining.join().expect("the join is done");
        events
    });
    wait_until("they are there", || bodies(&alice, room.id.as_str()).len() == 3);
    assert_eq!(stored(&server, events[2].event_id()).expect("it is stored").status, Status::Accepted);
    // In a room that nobody of us is joining, there is nothing to wait for.
    let other = FakeRoom::new(&peer, "12", "public");
    let strange = chain(&peer, &other, events[2].event_id(), 1, "strange");
    let mut strange = strange[0].to_object();
    strange.insert("event_id".into(), json!("$strange"));
    let body = json!({ "origin": peer.name(), "origin_server_ts": now_ms(), "pdus": [strange], "edus": [] });
    let (status, said) = peer.ask(server.name(), "PUT", "/_matrix/federation/v1/send/2", Some(&body));
    assert_eq!(status, 200, "{said}");
    assert!(said["pdus"]["$strange"]["error"].is_string(), "{said}");
}

#[test]
fn a_server_with_too_much_that_waits_is_told_to_come_again_and_nothing_is_lost() {
    let mut scene = Scene::new("12");
    let polite = resident(&mut scene, "polly");
    let (room, origin) = (scene.room.id.clone(), scene.peer.name().clone());
    let (last, creator, version) = (scene.last.clone(), scene.room.creator.clone(), scene.room.version);
    let word = scene.message_after(&[&last], &creator, "never").to_object();
    let key = SigningKey::generate([9; 32], "any");
    let fill = scene.server.homeserver().store.write(move |tx| {
        let room = tx.known_room(&room)?.key;
        for n in 0..2000 {
            let mut event = word.clone();
            event.insert("depth".into(), n.into());
            let event = VerifiedPdu::seal(&event, &origin, &key, version)?;
            let event = NewPendingEvent::for_events(room, &event, vec!["$never".to_owned()], (5, i64::MAX));
            tx.add_pending(&event, &origin, now_ms())?;
        }
        Ok(())
    });
    fill.expect("it is full");
    let (lost, behind) = (scene.message("lost"), scene.message("behind"));
    let (status, said) = scene.peer.send_transaction(scene.server.name(), "1", &[&behind]);
    assert_eq!((status, &said["errcode"]), (429, &json!("M_LIMIT_EXCEEDED")), "{said}");
    assert!(said["retry_after_ms"].is_i64());
    // Others still may, in the same room.
    let (last, user) = (lost.event_id().clone(), polite.user("polly"));
    let word = scene.event_of(&polite, &[&last], &user, ("m.room.message", None), json!({ "body": "p" }));
    let (status, said) = polite.send_transaction(scene.server.name(), "1", &[&word]);
    assert_eq!((status, &said["pdus"][word.event_id().as_str()]), (200, &json!({})), "{said}");
    // And so may this one with what needs not wait. The repeat of its transaction is no repeat of an answer.
    assert_eq!(scene.send("2", &[&lost])[lost.event_id().as_str()], json!({}));
    assert_eq!(scene.send("1", &[&behind])[behind.event_id().as_str()], json!({}));
    assert!(accepted(&scene, &behind));
}

#[test]
fn step_2_waits_where_no_key_can_be_had_and_drops_what_is_wrongly_signed() {
    let mut scene = Scene::new("12");
    let gone = Peer::start();
    gone.hide_keys(true);
    let join = scene.join_of(&gone, "ghost");
    let (last, ghost) = (scene.last.clone(), gone.user("ghost"));
    let word = scene.event_of(&gone, &[&last], &ghost, ("m.room.message", None), json!({ "body": "boo" }));
    // Signed by somebody else with a key of the same name.
    let mut forged = scene.message_after(&[&last], &ghost, "forged").to_object();
    let signature = forged["signatures"][scene.peer.name().as_str()].clone();
    forged["signatures"] = json!({ gone.name().as_str(): signature });
    let forged = Pdu::from_object(forged, scene.room.version).expect("an event");
    // Of a server that says its keys, one that it does not say does not exist.
    let mut unknown = scene.message("unknown").to_object();
    let signatures =
        unknown["signatures"][scene.peer.name().as_str()].as_object().expect("signatures").clone();
    let signature = signatures.values().next().expect("a signature").clone();
    unknown["signatures"] = json!({ scene.peer.name().as_str(): { "ed25519:other": signature } });
    let unknown = Pdu::from_object(unknown, scene.room.version).expect("an event");
    let said = scene.send("1", &[&join, &word, &forged, &unknown]);
    for pdu in [&join, &word, &forged] {
        assert_eq!(said[pdu.event_id().as_str()], json!({}), "{said}");
        assert!(scene.status(pdu).is_none());
    }
    assert!(said[unknown.event_id().as_str()]["error"].is_string(), "{said}");
    assert_eq!(waiting(&scene), 3);
    gone.hide_keys(false);
    scene.server.advance(Duration::from_secs(3600));
    wait_until("the word is accepted", || accepted(&scene, &word));
    wait_until("nothing waits any more", || waiting(&scene) == 0);
    assert!(accepted(&scene, &join) && scene.status(&forged).is_none());
}

#[test]
fn a_server_that_never_answers_holds_up_its_own_transactions_only() {
    let mut scene = Scene::new("12");
    let polite = resident(&mut scene, "polly");
    let other = FakeRoom::joined_by(&polite, "12", &scene.alice);
    let last = scene.last.clone();
    let _lost = scene.message("lost");
    let behind = scene.message("behind");
    let polly = polite.user("polly");
    let words: Vec<Pdu> = (0..5)
        .map(|_| scene.event_of(&polite, &[&last], &polly, ("m.room.message", None), json!({ "body": "p" })))
        .collect();
    let others = chain(&polite, &other, &other.last, 5, "other");
    let gate = Gate::default();
    for part in ["/get_missing_events/", "/state_ids/", "/event_auth/", "/event/"] {
        scene.peer.answer_behind(&gate, part, 404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
    }
    let name = scene.server.name().to_owned();
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| scene.peer.send_transaction(&name, "slow", &[&behind]));
        scene.peer.wait_for("/get_missing_events/");
        for (n, pdu) in words.iter().chain(&others).enumerate() {
            let (status, said) = polite.send_transaction(&name, &n.to_string(), &[pdu]);
            assert_eq!((status, &said["pdus"][pdu.event_id().as_str()]), (200, &json!({})), "{said}");
        }
        gate.open();
        let (status, said) = slow.join().expect("it is answered");
        assert_eq!((status, &said["pdus"][behind.event_id().as_str()]), (200, &json!({})), "{said}");
    });
    assert!(words.iter().chain(&others).all(|pdu| accepted(&scene, pdu)));
}

#[test]
fn an_outlier_is_judged_again_when_its_place_is_known() {
    for allowed in [true, false] {
        let mut scene = Scene::new("10");
        let user = scene.peer.user("late");
        let (start, id) = (scene.last.clone(), user.as_str().to_owned());
        let join = |scene: &mut Scene, prev: &EventId| {
            scene.event(&[prev], &user, ("m.room.member", Some(&id)), json!({ "membership": "join" }))
        };
        // Its auth events allow it (4) either way; the state before it (5) not if it follows a ban.
        let creator = scene.room.creator.clone();
        let ban =
            scene.event(&[&start], &creator, ("m.room.member", Some(&id)), json!({ "membership": "ban" }));
        let outlier = join(&mut scene, if allowed { &start } else { ban.event_id() });
        scene.room.state.insert(("m.room.member".into(), id.clone()), outlier.clone());
        let citing = scene.message_after(&[&start], &user, "hello");
        let all: Vec<Pdu> = scene.room.state.values().cloned().collect();
        scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&all) }));
        scene.send("1", &[&citing]);
        assert!(stored(&scene.server, outlier.event_id()).expect("it was fetched").is_outlier());
        let said = if allowed { scene.send("2", &[&outlier]) } else { scene.send("2", &[&ban, &outlier]) };
        assert_eq!(said[outlier.event_id().as_str()] == json!({}), allowed, "{said}");
        let event = stored(&scene.server, outlier.event_id()).expect("it is stored");
        assert_eq!((event.is_outlier(), event.place.is_some()), (false, allowed));
        assert_eq!(event.status == Status::Accepted, allowed);
        let membership = if allowed { "join" } else { "ban" };
        assert_eq!(
            scene.state_content("m.room.member", &id).expect("a membership")["membership"],
            membership
        );
    }
}

#[test]
fn steps_4_to_6_reject_and_soft_fail_and_what_follows_such_events_is_judged_without_them() {
    let mut scene = Scene::new("12");
    let (user, creator) = (scene.peer.user("member"), scene.room.creator.clone());
    let (start, id) = (scene.last.clone(), user.as_str().to_owned());
    let join = scene.event(&[&start], &user, ("m.room.member", Some(&id)), json!({ "membership": "join" }));
    scene.room.state.insert(("m.room.member".into(), id.clone()), join.clone());
    let ban = scene.event(
        &[join.event_id()],
        &creator,
        ("m.room.member", Some(&id)),
        json!({ "membership": "ban" }),
    );
    // 6: allowed where it says it was said, not by the state that the room has now.
    let evading = scene.message_after(&[join.event_id()], &user, "evading");
    // 5: forbidden where it says it was said, though its auth events (4) allow it.
    let banned = scene.message_after(&[ban.event_id()], &user, "banned");
    let said = scene.send("1", &[&join, &ban, &evading, &banned]);
    assert_eq!(said[evading.event_id().as_str()], json!({}), "a soft failure is not told: {said}");
    assert!(said[banned.event_id().as_str()]["error"].is_string(), "{said}");
    assert_eq!(
        (scene.status(&evading), scene.status(&banned)),
        (Some(Status::SoftFailed), Some(Status::Rejected))
    );
    assert_eq!(heads(&scene.server, &scene.room), [ban.event_id().clone()]);
    // Both may be followed.
    let on_evading = scene.message_after(&[evading.event_id()], &creator, "a");
    let on_banned = scene.message_after(&[banned.event_id()], &creator, "b");
    scene.send("2", &[&on_evading, &on_banned]);
    assert!(accepted(&scene, &on_evading) && accepted(&scene, &on_banned));
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), ["a", "b"]);
    assert_eq!(scene.membership(&user).as_deref(), Some("ban"));
    assert!(scene.peer.asked("/get_missing_events/").is_empty());
}

#[test]
fn a_redaction_that_waited_acts_on_a_target_that_came_before_it_could_be_judged() {
    let mut scene = Scene::new("11");
    let target = scene.message("secret");
    let between = scene.message("between");
    let (last, creator) = (scene.last.clone(), scene.room.creator.clone());
    let content = json!({ "redacts": target.event_id() });
    let redaction = scene.event(&[&last], &creator, ("m.room.redaction", None), content);
    assert_eq!(scene.send("1", &[&redaction])[redaction.event_id().as_str()], json!({}));
    scene.send("2", &[&target, &between]);
    wait_until("it is redacted", || {
        stored(&scene.server, target.event_id()).is_some_and(|event| event.pdu.content().is_empty())
    });
}

/// What the flood has been told.
#[derive(Default)]
struct Tally {
    answered: Mutex<Vec<EventId>>,
    transactions: AtomicUsize,
}

/// Sends events as a server does that wants them to arrive: the same transaction again until it is answered.
fn deliver(peer: &Peer, server: &str, txn: &str, events: &[&Pdu], tally: &Tally) {
    loop {
        match peer.try_to_send(server, txn, events) {
            Ok((200, said)) => {
                for pdu in events {
                    assert_eq!(said["pdus"][pdu.event_id().as_str()], json!({}), "{said}");
                }
                let mut answered = tally.answered.lock().expect("no test panics here");
                answered.extend(events.iter().map(|pdu| pdu.event_id().clone()));
                tally.transactions.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Ok((429 | 500.., _)) | Err(_) => std::thread::yield_now(),
            Ok((status, said)) => panic!("{status} {said}"),
        }
    }
}

fn has_event(user: &TestUser, room: &FakeRoom, id: &EventId) -> bool {
    let path =
        format!("/_matrix/client/v3/rooms/{}/event/{}", segment(room.id.as_str()), segment(id.as_str()));
    user.request("GET", &path, None).0 == 200
}

#[test]
fn a_flood_loses_nothing_that_was_answered_for_though_the_server_is_killed_and_others_get_through() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let (flooder, polite) = (Peer::start(), Peer::start());
    let rooms = [FakeRoom::joined_by(&flooder, "12", &alice), FakeRoom::joined_by(&flooder, "12", &alice)];
    let quiet = FakeRoom::joined_by(&polite, "12", &alice);
    // Four branches in two rooms; of two of them, every tenth event is never sent.
    let branches: Vec<Vec<Pdu>> = (0..4)
        .map(|n| chain(&flooder, &rooms[n % 2], &rooms[n % 2].last, 100, &format!("branch {n}")))
        .collect();
    let words = chain(&polite, &quiet, &quiet.last, 8, "polite");
    flooder.serve_events(&branches.concat(), 10);
    let (tally, polite_tally) = (Tally::default(), Tally::default());
    let (name, over) = (server.name().to_owned(), Arc::new(AtomicBool::new(false)));
    std::thread::scope(|scope| {
        for (n, branch) in branches.iter().enumerate() {
            let (flooder, name, tally, over) = (&flooder, &name, &tally, over.clone());
            scope.spawn(move || {
                let sent = |index: usize| n < 2 || index % 10 != 5;
                let events: Vec<&Pdu> =
                    branch.iter().enumerate().filter(|(index, _)| sent(*index)).map(|(_, pdu)| pdu).collect();
                for (part, events) in events.chunks(50).enumerate() {
                    deliver(flooder, name, &format!("{n}-{part}"), events, tally);
                }
                // And again, as new transactions and as repeats, until the polite one is through.
                let mut again = 0;
                while !over.load(Ordering::SeqCst) {
                    deliver(flooder, name, &format!("{n}-again-{}", again / 2), &events[..50], tally);
                    again += 1;
                }
            });
        }
        wait_until("the flood is on", || tally.transactions.load(Ordering::SeqCst) >= 2);
        server.kill();
        server.resume();
        for (n, word) in words.iter().enumerate() {
            deliver(&polite, &name, &n.to_string(), &[word], &polite_tally);
        }
        over.store(true, Ordering::SeqCst);
    });
    wait_until("everything that was answered for is there", || {
        let all = tally.answered.lock().expect("no test panics here").clone();
        all.iter().all(|id| rooms.iter().any(|room| has_event(&alice, room, id)))
    });
    assert!(words.iter().all(|word| has_event(&alice, &quiet, word.event_id())));
    // What was never sent, and only others referred to, has been fetched.
    wait_until("the holes are filled", || {
        branches
            .iter()
            .enumerate()
            .all(|(n, branch)| branch.iter().all(|pdu| has_event(&alice, &rooms[n % 2], pdu.event_id())))
    });
}

#[test]
fn a_room_that_is_forked_two_hundred_times_stays_in_hand() {
    let mut scene = Scene::new("12");
    let (start, creator) = (scene.last.clone(), scene.room.creator.clone());
    let users: Vec<UserId> = (0..3).map(|n| scene.peer.user(&format!("user{n}"))).collect();
    let mut forks: Vec<Pdu> = Vec::new();
    for n in 0..200 {
        let fork = match n % 10 {
            // Some of them change the state.
            0 => scene.event(
                &[&start],
                &creator,
                ("m.room.topic", Some("")),
                json!({ "topic": n.to_string() }),
            ),
            1 => {
                let user = users[n / 10 % 3].clone();
                let join = json!({ "membership": "join" });
                scene.event(&[&start], &user, ("m.room.member", Some(user.as_str())), join)
            }
            _ => scene.message_after(&[&start], &creator, &n.to_string()),
        };
        forks.push(fork);
    }
    for (n, part) in forks.chunks(50).enumerate() {
        scene.send(&n.to_string(), &part.iter().collect::<Vec<_>>());
    }
    assert!(forks.iter().all(|fork| accepted(&scene, fork)));
    wait_until("the branches are joined", || heads(&scene.server, &scene.room).len() <= 10);
    assert!(users.iter().all(|user| {
        let member = scene.state_content("m.room.member", user.as_str());
        member.is_some_and(|content: Value| content["membership"] == "join")
    }));
    // Clients are not shown what joined them, and other servers get it when they ask what our next event follows.
    let room = segment(scene.room.id.as_str());
    let said = scene.alice.send(scene.room.id.as_str(), "after all that");
    let page = scene.alice.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1000"));
    let kinds = |events: &Value| -> Vec<Value> {
        events.as_array().expect("events").iter().map(|event| event["type"].clone()).collect()
    };
    let joins_branches = json!("org.matrix.dummy_event");
    assert!(
        !kinds(&page["chunk"]).contains(&joins_branches)
            && page["chunk"].as_array().expect("a page").len() > 200
    );
    let known: Vec<&EventId> = forks.iter().map(Pdu::event_id).collect();
    let question = json!({ "earliest_events": known, "latest_events": [said], "limit": 100, "min_depth": 0 });
    let path = format!("/_matrix/federation/v1/get_missing_events/{room}");
    let (status, answer) = scene.peer.ask(scene.server.name(), "POST", &path, Some(&question));
    assert_eq!(status, 200, "{answer}");
    assert!(kinds(&answer["events"]).contains(&joins_branches), "{answer}");
    let sent = scene.peer.asked("/send/");
    let sent = sent.iter().flat_map(|asked| kinds(&asked.body["pdus"]));
    assert!(!sent.collect::<Vec<_>>().contains(&joins_branches));
}

#[test]
fn the_true_copy_of_an_event_takes_the_place_of_one_that_a_relay_had_altered() {
    for version in ["3", "6", "10", "12"] {
        let mut scene = Scene::new(version);
        let alter = |event: &Pdu| {
            let mut object = event.to_object();
            object.insert("content".into(), json!({ "body": "forged", "topic": "forged" }));
            Pdu::from_object(object, event.version()).expect("an event")
        };
        let message = scene.message("what I said");
        let topic = scene.set_state("m.room.topic", "", json!({ "topic": "true" }));
        for (event, txn) in [(&message, "m"), (&topic, "t")] {
            let said = scene.send(&format!("{txn}1"), &[&alter(event)]);
            assert_eq!(said[event.event_id().as_str()], json!({}));
            let redacted = stored(&scene.server, event.event_id()).expect("stored").pdu;
            assert_eq!(redacted.content_raw(), "{}", "{version}");
            // A copy that says less, or something else, changes nothing.
            scene.send(&format!("{txn}2"), &[&alter(event)]);
            assert_eq!(stored(&scene.server, event.event_id()).expect("stored").pdu.content_raw(), "{}");
            scene.send(&format!("{txn}3"), &[event]);
            let whole = stored(&scene.server, event.event_id()).expect("stored").pdu;
            assert_eq!(whole.content_raw(), event.content_raw(), "{version}");
            scene.send(&format!("{txn}4"), &[&alter(event)]);
            let whole = stored(&scene.server, event.event_id()).expect("stored").pdu;
            assert_eq!(whole.content_raw(), event.content_raw(), "{version}");
        }
        assert_eq!(scene.state_content("m.room.topic", ""), Some(json!({ "topic": "true" })));
        let path = format!("/_matrix/client/v3/rooms/{}/event/", segment(scene.room.id.as_str()));
        let seen = scene.alice.get(&format!("{path}{}", segment(message.event_id().as_str())));
        assert_eq!(seen["content"]["body"], "what I said");
        // What the room itself has redacted stays redacted.
        let mut redaction = json!({});
        if scene.room.version.redacts_in_content {
            redaction["redacts"] = json!(message.event_id());
        }
        let (last, creator) = (scene.last.clone(), scene.room.creator.clone());
        let mut redaction =
            scene.event(&[&last], &creator, ("m.room.redaction", None), redaction).to_object();
        if !scene.room.version.redacts_in_content {
            redaction.insert("redacts".into(), json!(message.event_id()));
        }
        let redaction = scene.peer.sign(redaction, scene.room.version);
        scene.send("r", &[&redaction]);
        scene.send("m5", &[&message]);
        assert_eq!(stored(&scene.server, message.event_id()).expect("stored").pdu.content_raw(), "{}");
    }
}

/// The event as a relay might hand it on: with another content, which its hash does not fit.
fn altered(event: &Pdu) -> Pdu {
    let mut object = event.to_object();
    object.insert("content".into(), json!({ "membership": "join", "forged": true }));
    object.remove("redacts");
    Pdu::from_object(object, event.version()).expect("an event")
}

#[test]
fn a_redaction_that_a_relay_had_emptied_takes_effect_when_its_true_copy_comes() {
    // From version 11 on redaction leaves it what it redacts.
    for version in ["3", "10"] {
        let mut scene = Scene::new(version);
        let message = scene.message("to be redacted");
        scene.send("m", &[&message]);
        let (last, creator) = (scene.last.clone(), scene.room.creator.clone());
        let in_content = scene.room.version.redacts_in_content;
        let content =
            if in_content { json!({ "redacts": message.event_id() }) } else { json!({ "reason": "r" }) };
        let mut redaction = scene.event(&[&last], &creator, ("m.room.redaction", None), content).to_object();
        if !in_content {
            redaction.insert("redacts".into(), json!(message.event_id()));
        }
        let redaction = scene.peer.sign(redaction, scene.room.version);
        scene.send("1", &[&altered(&redaction)]);
        assert!(stored(&scene.server, redaction.event_id()).is_some(), "{version}");
        scene.send("2", &[&redaction]);
        let target = stored(&scene.server, message.event_id()).expect("stored");
        assert!(target.redacted_by.is_some(), "{version}: the redaction acts");
        assert!(stored(&scene.server, redaction.event_id()).is_some_and(|e| e.place.is_some()), "{version}");
    }
}

#[test]
fn content_that_is_not_allowed_does_not_come_in_by_the_back_door_of_a_redacted_copy() {
    for version in ["6", "10"] {
        let mut scene = Scene::new(version);
        let mod_ = scene.peer.user("mod");
        scene.join(&mod_);
        let creator = scene.room.creator.clone();
        let levels = json!({ "users": { creator.as_str(): 100, mod_.as_str(): 50 }, "state_default": 50, "invite": 0 });
        let levels = scene.set_state("m.room.power_levels", "", levels);
        let join = scene.room.state[&("m.room.member".to_owned(), mod_.to_string())].clone();
        scene.send("l", &[&join, &levels]);
        let above = json!({ "users": { creator.as_str(): 100, mod_.as_str(): 50 }, "state_default": 50, "invite": 90 });
        let last = scene.last.clone();
        let event = scene.event(&[&last], &mod_, ("m.room.power_levels", Some("")), above);
        let mut lossy = event.to_object();
        lossy["content"].as_object_mut().expect("an object").remove("invite");
        let lossy = Pdu::from_object(lossy, event.version()).expect("an event");
        scene.send("1", &[&lossy]);
        scene.send("2", &[&event]);
        let invite =
            scene.state_content("m.room.power_levels", "").and_then(|levels| levels.get("invite").cloned());
        assert_ne!(invite, Some(json!(90)), "{version}");
    }
}

#[test]
fn a_restricted_join_that_a_relay_had_altered_is_judged_anew_when_its_true_copy_comes() {
    let mut scene = Scene::new("8");
    scene.set_state("m.room.join_rules", "", json!({ "join_rule": "restricted", "allow": [] }));
    let rules = scene.room.state[&("m.room.join_rules".to_owned(), String::new())].clone();
    scene.send("r", &[&rules]);
    let (user, last, creator) = (scene.peer.user("guest"), scene.last.clone(), scene.room.creator.clone());
    let content = json!({ "membership": "join", "join_authorised_via_users_server": creator });
    let join = scene.event(&[&last], &user, ("m.room.member", Some(user.as_str())), content);
    scene.send("1", &[&altered(&join)]);
    assert_ne!(scene.membership(&user).as_deref(), Some("join"));
    scene.send("2", &[&join]);
    assert_eq!(scene.membership(&user).as_deref(), Some("join"));
}

#[test]
fn an_access_list_whose_content_a_relay_had_taken_away_leaves_the_one_before_it_in_force() {
    let mut scene = Scene::new("10");
    let evil = |scene: &Scene| {
        let hs = scene.server.homeserver();
        let acl = hs.store.read(|db| db.server_acl(&db.known_room(&scene.room.id)?)).expect("read");
        acl.is_none_or(|acl| acl.allows("evil.example"))
    };
    let acl = scene.set_state("m.room.server_acl", "", json!({ "allow": ["*"], "deny": ["evil.example"] }));
    scene.send("1", &[&altered(&acl)]);
    let word = scene.message("still heard");
    assert_eq!(scene.send("2", &[&word])[word.event_id().as_str()], json!({}));
    scene.send("3", &[&acl]);
    let denied = scene.state_content("m.room.server_acl", "").map(|acl| acl["deny"].clone());
    assert_eq!(denied, Some(json!(["evil.example"])));
    assert!(!evil(&scene));
    // The next ones are taken away too: neither is everybody kept out, nor anybody let in.
    for n in 0..3 {
        let worse = json!({ "allow": ["*"], "deny": ["evil.example", format!("evil{n}.example")] });
        let next = scene.set_state("m.room.server_acl", "", worse);
        scene.send(&format!("next{n}"), &[&altered(&next)]);
        assert!(!evil(&scene), "{n}");
    }
    let word = scene.message("still heard, too");
    assert_eq!(scene.send("4", &[&word])[word.event_id().as_str()], json!({}));
}

#[test]
fn an_event_that_was_only_referred_to_in_an_altered_form_is_whole_once_it_has_its_place() {
    let mut scene = Scene::new("10");
    let topic = scene.set_state("m.room.topic", "", json!({ "topic": "true" }));
    // As if it had come with somebody's state.
    let key = scene.peer.signing_key().verify_key();
    let keys = |_: &str, _: &str| Some(KeyAt { key, valid_until_ms: i64::MAX });
    let outlier = verify::check_parsed(&altered(&topic), &keys).expect("signed");
    assert!(!outlier.is_whole());
    scene
        .server
        .homeserver()
        .store
        .write(move |tx| {
            let room = tx.known_room(outlier.room_id())?.key;
            tx.stage_events(room, &[(outlier, false)]).map(drop)
        })
        .expect("stored");
    scene.send("1", &[&topic]);
    assert_eq!(scene.state_content("m.room.topic", ""), Some(json!({ "topic": "true" })));
}
