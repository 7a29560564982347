//! Joins, and leaves that meet them.

use super::*;

#[test]
fn a_leave_that_was_taken_is_not_told_again_whatever_the_answer_says() {
    let (server, bob, peer, mut room) = stage("invite");
    peer.let_leave(&room, bob.id());
    peer.answer("send_leave", |_| html());
    room.invite(&peer, server.name(), bob.id());
    bob.leave(room.id.as_str());
    peer.wait_for("send_leave");
    let id = doorstep::protocol::UserId::parse(bob.id()).expect("a user id");
    wait_until("the leave is done", || {
        let row = server.homeserver().store.read(|db| db.remote_membership(&room.id, &id));
        row.expect("the database reads").is_some_and(|row| row.due_ms.is_none())
    });
    assert_eq!(peer.asked("send_leave").len(), 1);
}

/// Answers to `send_join` that are not the room that a user with an invite joins.
fn rooms_that_are_none(
    room: &FakeRoom,
    (peer, forger): (&Peer, &Peer),
    without_invite: Value,
) -> Vec<(&'static str, Value)> {
    let good = room.join_answer();
    let version = room.version.id;
    let other = FakeRoom::new(peer, version, "public");
    let only = |keep: &dyn Fn(&Value) -> bool| {
        let state: Vec<Value> =
            good["state"].as_array().expect("a list").iter().filter(|e| keep(e)).cloned().collect();
        json!({ "state": state, "auth_chain": state })
    };
    let twice = {
        let mut twice = good.clone();
        let name = room.draft(peer, "m.room.name", "", &room.creator, json!({ "name": "second" }));
        twice["state"].as_array_mut().expect("a list").push(Value::Object(name.to_object()));
        twice
    };
    let mut forged = FakeRoom::new(forger, version, "public");
    forged.id = room.id.clone();
    let lacking = |kind: &str| {
        let mut lacking = good.clone();
        lacking["state"].as_array_mut().expect("a list").retain(|e| e["type"] != kind);
        lacking
    };
    let mut another_event = good.clone();
    another_event["event"] =
        Value::Object(room.state[&("m.room.name".to_owned(), String::new())].to_object());
    let mut without_members = good.clone();
    without_members["members_omitted"] = json!(true);
    vec![
        ("nothing", json!({})),
        ("without its members", without_members),
        ("empty", json!({ "state": [], "auth_chain": [] })),
        ("text", json!({ "state": "all", "auth_chain": [] })),
        ("another room", other.join_answer()),
        ("a forged room", forged.join_answer()),
        ("no invite", without_invite),
        ("no create event", only(&|e| e["type"] != "m.room.create")),
        ("no join rules and so no invite", only(&|e| e["type"] == "m.room.create")),
        ("two names", twice),
        ("another event for ours", another_event),
        ("no power levels, on which others rest", lacking("m.room.power_levels")),
        ("no join rules, on which others rest", lacking("m.room.join_rules")),
    ]
}

#[test]
fn a_room_that_is_not_the_one_we_joined_is_not_adopted_and_left_again() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, forger) = (Peer::start(), Peer::start());
    let incremental = |since: &Value| {
        let since = segment(since.as_str().expect("a token"));
        bob.get(&format!("/_matrix/client/v3/sync?since={since}"))
    };
    for (version, which) in ["10", "12"].into_iter().flat_map(|version| (0..14).map(move |n| (version, n))) {
        let mut room = FakeRoom::new(&peer, version, "invite");
        let event = room.membership(&peer, &room.creator, bob.id(), "invite");
        let (status, answer) =
            peer.put_event(server.name(), "v2/invite", &room.id, &event, &room.invite_body(&event));
        assert_eq!(status, 200, "{answer}");
        bob.wait_for_room("invite", room.id.as_str());
        // As it is before the invite is in it: a join is not allowed there.
        let without_invite = room.join_answer();
        room.take(event);
        let lies = rooms_that_are_none(&room, (&peer, &forger), without_invite);
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        peer.answer_json("send_join", 403, json!({ "errcode": "M_FORBIDDEN", "error": "taken back" }));
        assert_eq!(join(&bob, room.id.as_str(), None).1["errcode"], "M_FORBIDDEN");
        assert!(is_in(&bob, "invite", room.id.as_str()));

        let before = bob.initial_sync()["next_batch"].clone();
        let told = peer.asked("send_leave").len();
        let what = match lies.into_iter().nth(which) {
            Some((what, lie)) => {
                peer.answer_json("send_join", 200, lie);
                what
            }
            None => {
                peer.answer("send_join", |_| html());
                "html"
            }
        };
        let answer_to_leave = Gate::default();
        peer.answer_json("send_leave", 200, json!({}));
        peer.answer_behind(&answer_to_leave, "make_leave", 200, room.template(bob.id(), "leave"));
        let (status, body) = join(&bob, room.id.as_str(), None);
        assert_eq!(status, 502, "{what}: {body}");
        assert!(body["error"].as_str().is_some_and(|e| e.contains("left again")), "{what}: {body}");
        // The other server has us in the room: that ends at once for our user, and there when it is told.
        let news = incremental(&before);
        let event = &news["rooms"]["leave"][room.id.as_str()]["timeline"]["events"][0];
        assert_eq!(event["content"]["membership"], "leave", "{what}: {news}");
        assert!(!is_in(&bob, "invite", room.id.as_str()), "{what}: the invite is used up");
        assert!(!is_in(&bob, "join", room.id.as_str()), "{what}: the room was adopted");
        bob.leave(room.id.as_str());
        answer_to_leave.open();
        wait_until("the room is told", || peer.asked("send_leave").len() > told);

        // And it can be entered again by who is let in.
        room.state.remove(&("m.room.member".to_owned(), bob.id().to_owned()));
        room.invite(&peer, server.name(), bob.id());
        let good = room.join_answer();
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));

        // Events that are badly signed are left out, and the room is entered without them.
        let mut mixed = good.clone();
        let mut bad_name =
            room.draft(&forger, "m.room.topic", "", &room.creator, json!({ "topic": "forged" })).to_object();
        bad_name.remove("unsigned");
        mixed["state"].as_array_mut().expect("a list").push(Value::Object(bad_name));
        peer.answer_json("send_join", 200, mixed);
        let (status, body) = join(&bob, room.id.as_str(), None);
        assert_eq!(status, 200, "version {version}: {body}");
        assert!(bob.state(room.id.as_str(), "m.room.topic", "").is_none());
        assert_eq!(bob.membership_of(room.id.as_str(), bob.id()).as_deref(), Some("join"));
        assert!(!is_in(&bob, "invite", room.id.as_str()));
    }
}

#[test]
fn of_several_servers_one_that_lets_us_in_suffices_though_another_took_the_join_in_vain() {
    let (_server, bob, peer, room) = stage("public");
    let good = Peer::start();
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    peer.answer("send_join", |_| html());
    good.let_in(&room, bob.id());
    let via = [segment(peer.name().as_str()), segment(good.name().as_str())];
    let path = format!("join/{}?via={}&via={}", segment(room.id.as_str()), via[0], via[1]);
    let (status, body) = post(&bob, &path, json!({}));
    assert_eq!(status, 200, "{body}");
    assert!(!peer.asked("send_join").is_empty() && !good.asked("send_join").is_empty());
    assert_eq!(bob.membership_of(room.id.as_str(), bob.id()).as_deref(), Some("join"));
    assert!(peer.asked("make_leave").is_empty() && good.asked("make_leave").is_empty());
}

#[test]
fn a_join_of_which_nobody_says_whether_it_was_taken_can_be_left_and_is_left_in_the_end() {
    for by_hand in [true, false] {
        let (server, bob, peer, room) = stage("public");
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        peer.answer_json("send_join", 503, json!({ "errcode": "M_UNKNOWN", "error": "busy" }));
        peer.let_leave(&room, bob.id());
        let path = format!("join/{}?via={}", segment(room.id.as_str()), segment(peer.name().as_str()));
        assert!(post(&bob, &path, json!({})).0 >= 500);
        assert!(peer.asked("make_leave").is_empty());
        if by_hand {
            bob.leave(room.id.as_str());
            peer.wait_for("send_leave");
        } else {
            // It is handed in again and again, for a week.
            wait_until("it is left", || {
                server.advance(Duration::from_secs(3 * 3600));
                !peer.asked("send_leave").is_empty()
            });
            assert!(peer.asked("send_join").len() > 10, "{}", peer.asked("send_join").len());
        }
        assert!(!is_in(&bob, "join", room.id.as_str()));
    }
}

#[test]
fn a_join_that_is_given_up_while_it_is_on_its_way_ends_as_a_leave_in_the_room() {
    let (server, bob, peer, mut room) = stage("invite");
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    let gate = let_in_slowly(&peer, &room, &bob);
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(&again, room.id.as_str(), None).0);
        peer.wait_for("send_join");
        bob.leave(room.id.as_str());
        bob.wait_for_room("leave", room.id.as_str());
        gate.open();
        joining.join().expect("no panic");
    });
    wait_until("the room is told of the leave", || {
        let sent = peer.asked("/send/");
        let pdus: Vec<&Value> =
            sent.iter().flat_map(|t| t.body["pdus"].as_array().into_iter().flatten()).collect();
        pdus.iter().any(|pdu| pdu["state_key"] == bob.id() && pdu["content"]["membership"] == "leave")
    });
    let sync = bob.initial_sync();
    for section in ["join", "invite", "knock"] {
        assert!(sync["rooms"][section].get(room.id.as_str()).is_none(), "{section}");
    }
}

#[test]
fn a_room_that_is_blocked_while_a_join_is_on_its_way_is_not_come_into_and_is_left_again() {
    let (server, bob, peer, room) = stage("public");
    let gate = let_in_slowly(&peer, &room, &bob);
    let door = format!("{}?via={}", segment(room.id.as_str()), segment(peer.name().as_str()));
    let (status, said) = std::thread::scope(|scope| {
        let joining = scope.spawn(|| post(&bob, &format!("join/{door}"), json!({})));
        peer.wait_for("send_join");
        server
            .homeserver()
            .admin()
            .set_room_block(&room.id, true, &doorstep::internals::Administrator::Operator)
            .expect("blocked");
        gate.open();
        joining.join().expect("no panic")
    });
    assert!(status >= 400, "{said}");
    assert!(!is_in(&bob, "join", room.id.as_str()));
    wait_until("the room is told of the leave", || {
        let sent = peer.asked("/make_leave/");
        sent.iter().any(|asked| asked.target.contains(&segment(room.id.as_str())))
    });
}

#[test]
fn a_removal_that_the_room_does_not_allow_does_not_spoil_the_join_that_it_overtook() {
    let (server, bob, peer, mut room) = stage("invite");
    let stranger = Peer::start();
    room.invite(&peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    let gate = let_in_slowly(&peer, &room, &bob);
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(&again, room.id.as_str(), None));
        peer.wait_for("send_join");
        // Somebody who has seen the invite, and is not in the room.
        let eve = stranger.user("eve");
        let kick = room.membership(&stranger, &eve, bob.id(), "leave");
        assert_eq!(stranger.send_transaction(server.name(), "t1", &[&kick]).0, 200);
        gate.open();
        let (status, answer) = joining.join().expect("no panic");
        assert_eq!(status, 200, "{answer}");
    });
    assert!(is_in(&bob, "join", room.id.as_str()));
}

#[test]
fn a_join_that_lands_after_the_user_has_left_is_left_again() {
    let (server, bob, peer, room) = stage("public");
    peer.let_in(&room, bob.id());
    peer.answer_json("send_join", 504, json!({ "errcode": "M_UNKNOWN", "error": "a proxy lost patience" }));
    assert!(join(&bob, room.id.as_str(), None).0 >= 500);
    let no = json!({ "errcode": "M_FORBIDDEN", "error": "not in the room" });
    peer.answer_json("make_leave", 403, no);
    bob.leave(room.id.as_str());
    peer.wait_for("make_leave");
    // Now the join is in the room after all.
    peer.let_leave(&room, bob.id());
    wait_until("the room is told of the leave", || {
        server.advance(Duration::from_secs(10));
        !peer.asked("send_leave").is_empty()
    });
}
