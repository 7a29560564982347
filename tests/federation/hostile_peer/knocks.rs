//! Knocks, and answers to them.

use super::*;

#[test]
fn a_knock_refused_at_the_door_leaves_nothing_and_can_be_made_again() {
    let (_server, bob, peer, room) = stage("knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.answer_json("send_knock", 403, json!({ "errcode": "M_FORBIDDEN", "error": "no" }));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).1["errcode"], "M_FORBIDDEN");
    assert!(!is_in(&bob, "knock", room.id.as_str()) && !is_in(&bob, "leave", room.id.as_str()));
    // Entries of another room, and entries that are none, are not shown to clients.
    let other = FakeRoom::new(&peer, "11", "public");
    let mut shown = room.shown().as_array().expect("a list").clone();
    shown.extend(other.shown().as_array().expect("a list").clone());
    shown.extend([json!({ "type": 5 }), json!("text"), json!({ "type": "m.room.topic", "content": {} })]);
    let expected = room.shown().as_array().expect("a list").len();
    peer.answer_json("send_knock", 200, json!({ "knock_room_state": shown }));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    let knocked = bob.wait_for_room("knock", room.id.as_str());
    let events = knocked["knock_state"]["events"].as_array().expect("a list");
    assert_eq!(events.iter().filter(|e| e["type"] != "m.room.member").count(), expected, "{events:?}");
}

#[test]
fn a_knock_that_no_server_answers_is_told_so_and_handed_in_again_later() {
    let (server, bob, peer, room) = stage("knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    for (status, body) in [(503, json!({ "errcode": "M_UNKNOWN", "error": "busy" })), (401, json!({}))] {
        peer.answer_json("send_knock", status, body);
        let (status, body) = knock(&bob, room.id.as_str(), &peer);
        assert_eq!((status, &body["errcode"]), (502, &json!("M_UNKNOWN")), "{body}");
        assert!(!is_in(&bob, "knock", room.id.as_str()));
    }
    peer.answer_json("send_knock", 200, json!({ "knock_room_state": room.shown() }));
    wait_until("the knock is shown", || {
        server.advance(Duration::from_secs(60));
        is_in(&bob, "knock", room.id.as_str())
    });
    let targets: Vec<String> = peer.asked("send_knock").into_iter().map(|asked| asked.target).collect();
    assert!(targets.iter().all(|target| target == &targets[0]), "not the same event: {targets:?}");
    assert_eq!(peer.asked("make_knock").len(), 1, "one knock needs one template");
}

#[test]
fn a_knock_that_was_taken_stands_whatever_else_the_answer_says() {
    let (_server, bob, peer, room) = stage("knock");
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.let_leave(&room, bob.id());
    let many: Vec<Value> = (0..1000).map(|n| json!({ "type": "x", "state_key": n.to_string() })).collect();
    for body in [json!([]), json!({}), json!({ "knock_room_state": 5 }), json!({ "knock_room_state": many })]
    {
        peer.answer_json("send_knock", 200, body);
        assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
        assert!(is_in(&bob, "knock", room.id.as_str()));
        // It can be withdrawn, and the room hears of it.
        let told = peer.asked("send_leave").len();
        bob.leave(room.id.as_str());
        wait_until("the room is told", || peer.asked("send_leave").len() > told);
    }
    peer.answer("send_knock", |_| html());
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    assert!(is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn only_the_room_can_refuse_a_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    let stranger = Peer::start();
    peer.let_knock(&room, bob.id());
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    bob.wait_for_room("knock", room.id.as_str());

    // A server that has nothing to do with the room.
    let forged = room.membership(&stranger, &stranger.user("eve"), bob.id(), "leave");
    assert_eq!(stranger.send_transaction(server.name(), "t1", &[&forged]).0, 200);
    // The right sender, the wrong signature; the user's own leave, which they did not make.
    let forged = room.membership(&stranger, &room.creator, bob.id(), "leave");
    assert_eq!(stranger.send_transaction(server.name(), "t2", &[&forged]).0, 200);
    let bob_id = doorstep::protocol::UserId::parse(bob.id()).expect("a user id");
    let forged = room.membership(&peer, &bob_id, bob.id(), "leave");
    assert_eq!(peer.send_transaction(server.name(), "t3", &[&forged]).0, 200);
    let harmless = room.membership(&peer, &room.creator, bob.id(), "knock");
    assert_eq!(peer.send_transaction(server.name(), "t4", &[&harmless]).0, 200);
    assert!(is_in(&bob, "knock", room.id.as_str()));

    room.take(room.read(&peer.wait_for("send_knock").body));
    let refusal = room.membership(&peer, &room.creator, bob.id(), "leave");
    let (status, answer) = peer.send_transaction(server.name(), "t5", &[&refusal]);
    assert_eq!((status, &answer["pdus"][refusal.event_id().as_str()]), (200, &json!({})), "{answer}");
    bob.wait_for_room("leave", room.id.as_str());
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn a_server_that_was_asked_in_vain_cannot_refuse_a_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    let stranger = Peer::start();
    stranger.answer_json("make_knock", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no such room" }));
    peer.let_knock(&room, bob.id());
    let via = |peer: &Peer| segment(peer.name().as_str()).clone();
    let path = format!("knock/{}?via={}&via={}", segment(room.id.as_str()), via(&stranger), via(&peer));
    assert_eq!(post(&bob, &path, json!({})).0, 200);
    bob.wait_for_room("knock", room.id.as_str());
    stranger.wait_for("make_knock");
    // It knows of the knock, and that is all it knows.
    for topic in ["later", "and later"] {
        let creator = room.creator.clone();
        room.add(&peer, "m.room.topic", "", &creator, json!({ "topic": topic }));
    }
    let leave = |by: &Peer, user: &str| room.membership(by, &by.user(user), bob.id(), "leave");
    let forged = leave(&stranger, "eve");
    let (status, answer) = stranger.send_transaction(server.name(), "t1", &[&forged]);
    assert_eq!(status, 200);
    assert!(answer["pdus"][forged.event_id().as_str()]["error"].is_string(), "{answer}");
    assert!(is_in(&bob, "knock", room.id.as_str()));
    // The server that took the knock may.
    assert_eq!(peer.send_transaction(server.name(), "t1", &[&leave(&peer, "creator")]).0, 200);
    bob.wait_for_room("leave", room.id.as_str());
}

#[test]
fn a_late_refusal_of_a_knock_does_not_take_the_invite_away() {
    let (server, bob, peer, mut room) = stage("knock");
    knock_is_taken(&bob, &mut room, &peer);
    let refusal = room.membership(&peer, &room.creator, bob.id(), "leave");
    room.take(refusal.clone());
    // The room changes its mind, and the invite is faster than the refusal.
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    bob.wait_for_room("invite", room.id.as_str());
    assert_eq!(peer.send_transaction(server.name(), "t1", &[&refusal]).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()));
}

#[test]
fn a_withdrawal_tries_the_servers_until_one_takes_it() {
    let (server, bob, peer, mut room) = stage("knock");
    knock_is_taken(&bob, &mut room, &peer);
    peer.answer_json("make_leave", 500, json!({ "errcode": "M_UNKNOWN", "error": "busy" }));
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
    peer.wait_for("make_leave");
    assert!(peer.asked("send_leave").is_empty());
    peer.let_leave(&room, bob.id());
    wait_until("the leave is handed in", || {
        server.advance(Duration::from_secs(3600));
        !peer.asked("send_leave").is_empty()
    });
    let leave = peer.wait_for("send_leave").body;
    assert_eq!(
        (leave["content"]["membership"].as_str(), leave["sender"].as_str()),
        (Some("leave"), Some(bob.id()))
    );
    let told = peer.asked("send_leave").len();
    server.advance(Duration::from_secs(24 * 3600));
    assert_eq!(peer.asked("send_leave").len(), told, "said once, and not again");
}

/// A peer whose room takes knocks and leaves, but answers a knock only when the gate is open.
fn slow_to_take_knocks(bob: &TestUser) -> (Arc<Peer>, FakeRoom, Gate) {
    let peer = Arc::new(Peer::start());
    let room = FakeRoom::new(&peer, "11", "knock");
    let gate = Gate::default();
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.let_leave(&room, bob.id());
    peer.answer_behind(&gate, "send_knock", 200, json!({ "knock_room_state": room.shown() }));
    (peer, room, gate)
}

#[test]
fn a_knock_that_is_withdrawn_while_it_is_on_its_way_ends_withdrawn() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, room, gate) = slow_to_take_knocks(&bob);
    bob.initial_sync();
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let knocking = scope.spawn(|| knock(&again, room.id.as_str(), &peer).0);
        peer.wait_for("send_knock");
        bob.leave(room.id.as_str());
        bob.wait_for_room("leave", room.id.as_str());
        gate.open();
        assert_eq!(knocking.join().expect("no panic"), 200);
    });
    peer.wait_for("send_leave");
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn an_invite_that_is_faster_than_the_answer_to_the_knock_stays() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, mut room, gate) = slow_to_take_knocks(&bob);
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let id = room.id.clone();
        let (peer_of_thread, again) = (peer.clone(), &again);
        let knocking = scope.spawn(move || knock(again, id.as_str(), &peer_of_thread).0);
        room.take(room.read(&peer.wait_for("send_knock").body));
        assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
        gate.open();
        assert_eq!(knocking.join().expect("no panic"), 200);
    });
    let sync = bob.initial_sync();
    assert!(sync["rooms"]["knock"].get(room.id.as_str()).is_none());
    let events = &sync["rooms"]["invite"][room.id.as_str()]["invite_state"]["events"];
    let own = events.as_array().expect("invite state").iter().find(|e| e["state_key"] == bob.id());
    assert_eq!(own.expect("the invite")["unsigned"]["prev_content"]["membership"], "knock");
}

#[test]
fn a_refusal_that_is_delivered_twice_does_not_end_the_next_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    knock_is_taken(&bob, &mut room, &peer);
    let refusal =
        room.add(&peer, "m.room.member", bob.id(), &room.creator.clone(), json!({ "membership": "leave" }));
    assert_eq!(peer.send_transaction(server.name(), "t1", &[&refusal]).0, 200);
    bob.wait_for_room("leave", room.id.as_str());

    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    bob.wait_for_room("knock", room.id.as_str());
    assert_eq!(peer.send_transaction(server.name(), "t2", &[&refusal]).0, 200);
    assert!(is_in(&bob, "knock", room.id.as_str()), "the old refusal ended the new knock");
    // Nor does it keep the room from hearing that this knock is withdrawn.
    peer.answer_json("make_leave", 500, json!({ "errcode": "M_UNKNOWN", "error": "busy" }));
    bob.leave(room.id.as_str());
    peer.wait_for("make_leave");
    assert_eq!(peer.send_transaction(server.name(), "t3", &[&refusal]).0, 200);
    peer.let_leave(&room, bob.id());
    wait_until("the leave is handed in", || {
        server.advance(Duration::from_secs(3600));
        !peer.asked("send_leave").is_empty()
    });
}
