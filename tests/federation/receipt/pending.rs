//! What waits, for what, and for how long.

use super::*;

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
