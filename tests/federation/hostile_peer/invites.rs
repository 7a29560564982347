//! Invites, theirs and ours.

use super::*;

#[test]
fn an_invite_that_is_not_what_it_says_is_not_signed_or_shown() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (peer, other) = (Peer::start(), Peer::start());
    for version in ["10", "12"] {
        let room = FakeRoom::new(&peer, version, "invite");
        let member =
            |state_key: &str, membership: &str| room.membership(&peer, &room.creator, state_key, membership);
        let good = member(bob.id(), "invite");
        let put = |event: &doorstep::protocol::Pdu, body: &Value| {
            peer.put_event(server.name(), "v2/invite", &room.id, event, body)
        };
        let mut cases: Vec<(&str, Value, &str)> = Vec::new();
        let body_of = |event: &doorstep::protocol::Pdu| room.invite_body(event);
        let (join, stranger) = (member(bob.id(), "join"), member("@bob:example.org", "invite"));
        for (what, event) in [("a join", &join), ("somebody else's user", &stranger)] {
            let (status, answer) = put(event, &body_of(event));
            assert_eq!((status, &answer["errcode"]), (400, &json!("M_INVALID_PARAM")), "{what}: {answer}");
        }
        let topic = room.draft(&peer, "m.room.topic", "", &room.creator, json!({ "membership": "invite" }));
        assert_eq!(put(&topic, &body_of(&topic)).1["errcode"], "M_INVALID_PARAM");
        let elsewhere = room.membership(&other, &other.user("eve"), bob.id(), "invite");
        let (status, answer) = put(&elsewhere, &body_of(&elsewhere));
        assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")), "{answer}");
        let wrong_signer = room.membership(&other, &room.creator, bob.id(), "invite");
        let (status, answer) = put(&wrong_signer, &body_of(&wrong_signer));
        assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")), "{answer}");
        let mut tampered = body_of(&good);
        tampered["event"]["content"]["displayname"] = json!("changed after signing");
        cases.push(("tampered", tampered, "M_INVALID_PARAM"));
        let mut unknown = body_of(&good);
        unknown["room_version"] = json!("org.example.unheard_of");
        cases.push(("unknown version", unknown, "M_INCOMPATIBLE_ROOM_VERSION"));
        let mut no_event = body_of(&good);
        no_event.as_object_mut().expect("an object").remove("event");
        cases.push(("no event", no_event, "M_BAD_JSON"));
        if version == "12" {
            let mut bare = body_of(&good);
            bare["invite_room_state"] = json!([]);
            cases.push(("no create event", bare, "M_INVALID_PARAM"));
            let mut foreign = body_of(&good);
            foreign["invite_room_state"] = FakeRoom::new(&other, "12", "invite").shown();
            cases.push(("another room's state", foreign, "M_INVALID_PARAM"));
        }
        for (what, body, errcode) in cases {
            let (status, answer) = put(&good, &body);
            assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{what}: {answer}");
        }
        let wrong_path = peer.put_event(server.name(), "v2/invite", &room.id, &join, &body_of(&good));
        assert_eq!(wrong_path.1["errcode"], "M_INVALID_PARAM", "event id of the path");
        let nobody = member(&format!("@nobody:{}", server.name()), "invite");
        assert_eq!(put(&nobody, &body_of(&nobody)).0, 403);
        assert!(!is_in(&bob, "invite", room.id.as_str()));

        let (status, answer) = put(&good, &body_of(&good));
        assert_eq!(status, 200, "{answer}");
        let mut expected = Value::Object(good.to_object());
        expected["signatures"][server.name()] = answer["event"]["signatures"][server.name()].clone();
        assert!(expected["signatures"][server.name()].is_object());
        assert_eq!(answer["event"], expected, "our signature and nothing else");
        bob.wait_for_room("invite", room.id.as_str());
    }
}

#[test]
fn an_invite_that_comes_again_after_it_was_rejected_stays_rejected() {
    let (server, bob, peer, room) = stage("invite");
    let event = room.membership(&peer, &room.creator, bob.id(), "invite");
    let put = || peer.put_event(server.name(), "v2/invite", &room.id, &event, &room.invite_body(&event)).0;
    assert_eq!(put(), 200);
    bob.wait_for_room("invite", room.id.as_str());
    assert_eq!(put(), 200);
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
    assert_eq!(put(), 200);
    assert!(!is_in(&bob, "invite", room.id.as_str()));
    // A new one is new.
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    bob.wait_for_room("invite", room.id.as_str());
}

#[test]
fn invites_that_disagree_about_the_version_of_the_room_lock_nobody_out() {
    let (server, bob, peer, room) = stage("invite");
    // Of version 1, whose events refer to others in another form.
    let old = room_version::room_version("1").expect("a known version");
    let old_invite = |depth: i64| {
        let event = json!({
            "type": "m.room.member", "state_key": bob.id(), "sender": room.creator, "room_id": room.id,
            "content": { "membership": "invite" }, "origin": peer.name(), "origin_server_ts": now_ms(),
            "depth": depth, "prev_events": [["$before:example.org", { "sha256": "x" }]], "auth_events": [],
        });
        let event = peer.sign(event.as_object().expect("an object").clone(), old);
        let body = json!({ "room_version": "1", "event": event.to_object(), "invite_room_state": [] });
        peer.put_event(server.name(), "v2/invite", &room.id, &event, &body)
    };
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()));
    assert_eq!(old_invite(7).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()), "the newer event, after one of the other form");
    assert_eq!(invite(&peer, &room, server.name(), bob.id()).0, 200);
    assert!(is_in(&bob, "invite", room.id.as_str()), "and back");
    bob.leave(room.id.as_str());
    bob.wait_for_room("leave", room.id.as_str());
}

#[test]
fn stripped_state_of_four_fields_is_taken_where_servers_still_send_it() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    for version in ["11", "12"] {
        let room = FakeRoom::new(&peer, version, "invite");
        let event = room.membership(&peer, &room.creator, bob.id(), "invite");
        let mut body = room.invite_body(&event);
        for entry in body["invite_room_state"].as_array_mut().expect("a list") {
            // Of version 12 the create event is whole everywhere, since the room's id is made of it.
            if version == "12" && entry["type"] == "m.room.create" {
                continue;
            }
            *entry = json!({
                "type": entry["type"], "state_key": "", "sender": entry["sender"], "content": entry["content"],
            });
        }
        let (status, answer) = peer.put_event(server.name(), "v2/invite", &room.id, &event, &body);
        assert_eq!(status, 200, "version {version}: {answer}");
        let invited = bob.wait_for_room("invite", room.id.as_str());
        let events = invited["invite_state"]["events"].as_array().expect("a list");
        assert!(events.iter().any(|e| e["type"] == "m.room.create"));
        assert!(events.iter().any(|e| e["content"]["name"] == "fake"));
    }
}

#[test]
fn an_invite_by_version_1_of_the_request_is_taken_too() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let id = format!("!old:{}", peer.name());
    let creator = peer.user("creator");
    let version = doorstep::protocol::room_version::room_version("1").expect("version 1");
    let event = json!({
        "type": "m.room.member", "state_key": bob.id(), "sender": creator, "room_id": id, "depth": 5,
        "content": { "membership": "invite" }, "origin_server_ts": now_ms(), "origin": peer.name(),
        "prev_events": [["$a:example.org", { "sha256": "abc" }]], "auth_events": [["$b:example.org", { "sha256": "abc" }]],
    });
    let event = peer.sign(event.as_object().expect("an object").clone(), version);
    let mut body = Value::Object(event.to_object());
    body["unsigned"] = json!({ "invite_room_state": [
        { "type": "m.room.name", "state_key": "", "sender": creator, "content": { "name": "Old" } },
    ]});
    let room = doorstep::protocol::RoomId::parse(&id).expect("a room id");
    let (status, answer) = peer.put_event(server.name(), "v1/invite", &room, &event, &body);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(answer[0], 200);
    assert!(answer[1]["event"]["signatures"][server.name()].is_object());
    let invited = bob.wait_for_room("invite", &id);
    assert!(
        invited["invite_state"]["events"]
            .as_array()
            .is_some_and(|e| e.iter().any(|e| e["content"]["name"] == "Old"))
    );
}

#[test]
fn an_invite_that_comes_back_as_something_else_never_happened() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (peer, other) = (Arc::new(Peer::start()), Arc::new(Peer::start()));
    for version in ["6", "12"] {
        let room = alice.create_room_with(json!({ "preset": "private_chat", "room_version": version }));
        let rules = doorstep::protocol::room_version::room_version(version).expect("a version");
        let target = peer.user("guest");
        let invite =
            || post(&alice, &format!("rooms/{}/invite", segment(&room)), json!({ "user_id": target }));
        let back = |answer: Box<dyn Fn(Value) -> Value + Send + Sync>| {
            peer.answer("v2/invite", move |asked| {
                Reply::json(&json!({ "event": answer(asked.body["event"].clone()) }))
            });
        };
        let (signer, forger) = (peer.clone(), other.clone());
        back(Box::new(|event| event));
        assert_eq!(invite().0, 502, "not signed");
        back(Box::new(move |event| forger.countersign(&event, rules)));
        assert_eq!(invite().0, 502, "signed by somebody else");
        back(Box::new({
            let signer = signer.clone();
            move |mut event| {
                event["content"]["displayname"] = json!("changed");
                signer.countersign(&event, rules)
            }
        }));
        assert_eq!(invite().0, 502, "changed");
        back(Box::new({
            let (signer, name) = (signer.clone(), peer.name().clone());
            move |event| {
                let mut event = signer.countersign(&event, rules);
                let signature = &mut event["signatures"][name.as_str()]["ed25519:script"];
                *signature =
                    json!(signature.as_str().expect("a signature").chars().rev().collect::<String>());
                event
            }
        }));
        assert_eq!(invite().0, 502, "a wrong signature");
        back(Box::new(|_| json!({ "type": "m.room.member" })));
        assert_eq!(invite().0, 502, "another event");
        peer.answer("v2/invite", |_| html());
        assert_eq!(invite().0, 502, "HTML");
        for (status, errcode, expected) in [
            (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
            (403, "M_INVITE_BLOCKED", (403, "M_INVITE_BLOCKED")),
            (400, "M_INCOMPATIBLE_ROOM_VERSION", (400, "M_UNSUPPORTED_ROOM_VERSION")),
            (400, "M_UNSUPPORTED_ROOM_VERSION", (400, "M_UNSUPPORTED_ROOM_VERSION")),
            (403, "M_CONSENT_NOT_GIVEN", (403, "M_FORBIDDEN")),
            (400, "ORG.EXAMPLE.NOT_TODAY", (400, "M_UNKNOWN")),
            (400, "M_INVALID_PARAM", (502, "M_UNKNOWN")),
            (404, "M_UNRECOGNIZED", (502, "M_UNKNOWN")),
        ] {
            peer.answer_json("v2/invite", status, json!({ "errcode": errcode, "error": "no" }));
            let (status, body) = invite();
            assert_eq!((status, body["errcode"].as_str()), (expected.0, Some(expected.1)), "{errcode}");
        }
        assert_eq!(alice.membership_of(&room, target.as_str()), None, "an invite was committed");
        assert!(peer.asked("v1/invite").is_empty());
        back(Box::new(move |event| {
            let mut event = signer.countersign(&event, rules);
            event["unsigned"] = json!({ "age": 3 });
            event
        }));
        let (status, body) = invite();
        assert_eq!(status, 200, "{body}");
        assert_eq!(alice.membership_of(&room, target.as_str()).as_deref(), Some("invite"));
    }
}

#[test]
fn a_server_that_knows_no_version_2_of_invites_is_asked_by_version_1_in_old_rooms() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Arc::new(Peer::start());
    for version in ["1", "2"] {
        let room = alice.create_room_with(json!({ "preset": "private_chat", "room_version": version }));
        let rules = doorstep::protocol::room_version::room_version(version).expect("a version");
        let signer = peer.clone();
        peer.answer("v1/invite", move |asked| {
            assert!(asked.body["unsigned"]["invite_room_state"].as_array().is_some_and(|s| !s.is_empty()));
            Reply::json(&json!([200, { "event": signer.countersign(&asked.body, rules) }]))
        });
        alice.invite(&room, peer.user("guest").as_str());
        assert_eq!(alice.membership_of(&room, peer.user("guest").as_str()).as_deref(), Some("invite"));
    }
}

#[test]
fn an_invite_that_was_signed_in_the_room_is_shown_once_we_have_left_it_and_may_come_again() {
    let server = TestServer::start();
    let (bob, carol, dave) = (server.user("bob"), server.user("carol"), server.user("dave"));
    let peer = Peer::start();
    let room = FakeRoom::joined_by(&peer, "11", &carol);
    let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
    let (status, answer) =
        peer.put_event(server.name(), "v2/invite", &room.id, &invite, &room.invite_body(&invite));
    assert_eq!(status, 200, "{answer}");
    let signed = room.read(&answer["event"]);
    assert!(!is_in(&bob, "invite", room.id.as_str()));
    carol.leave(room.id.as_str());
    let invited = bob.wait_for_room("invite", room.id.as_str());
    let events = invited["invite_state"]["events"].as_array().expect("a list");
    assert!(events.iter().any(|e| e["content"]["name"] == "fake"), "{events:?}");
    let (_, answer) = peer.send_transaction(server.name(), "t1", &[&signed]);
    assert_eq!(answer["pdus"][invite.event_id().as_str()], json!({}), "{answer}");
    // Without our signature anybody could send one.
    let unsigned = room.membership(&peer, &room.creator, dave.id(), "invite");
    let (_, answer) = peer.send_transaction(server.name(), "t2", &[&unsigned]);
    assert!(answer["pdus"][unsigned.event_id().as_str()]["error"].is_string(), "{answer}");
    assert!(!is_in(&dave, "invite", room.id.as_str()));
}

#[test]
fn what_a_knocker_or_an_invitee_is_shown_of_a_room_is_signed_or_not_shown() {
    let server = TestServer::start();
    for (number, damage) in ["signature", "content", "none"].into_iter().enumerate() {
        let peer = Peer::start();
        let room = FakeRoom::new(&peer, "12", "knock");
        let mut shown = room.shown();
        let name = shown.as_array_mut().and_then(|all| all.iter_mut().find(|e| e["type"] == "m.room.name"));
        let name = name.expect("a name");
        match damage {
            "signature" => {
                name["signatures"] = json!({ peer.name().as_str(): { "ed25519:policy_server": "AAAA" } });
            }
            "content" => name["content"]["name"] = json!("forged"),
            _ => {}
        }
        let knocker = server.user(&format!("knocker{number}"));
        peer.let_knock(&room, knocker.id());
        peer.answer_json("send_knock", 200, json!({ "knock_room_state": shown }));
        assert_eq!(knock(&knocker, room.id.as_str(), &peer).0, 200);
        let sync = knocker.wait_for_room("knock", room.id.as_str());
        let state = sync["knock_state"]["events"].as_array().expect("a list").clone();
        let names: Vec<_> =
            state.iter().filter(|e| e["type"] == "m.room.name").map(|e| &e["content"]).collect();
        let expected = match damage {
            "signature" => vec![],
            "content" => vec![json!({})],
            _ => vec![json!({ "name": "fake" })],
        };
        assert_eq!(names, expected.iter().collect::<Vec<_>>(), "{damage}: {sync}");
        let invitee = server.user(&format!("invitee{number}"));
        let event = room.membership(&peer, &room.creator, invitee.id(), "invite");
        let mut body = room.invite_body(&event);
        body["invite_room_state"] = shown;
        let (status, answer) = peer.put_event(server.name(), "v2/invite", &room.id, &event, &body);
        assert_eq!(status, if damage == "signature" { 400 } else { 200 }, "{damage}: {answer}");
        if damage != "signature" {
            let sync = invitee.wait_for_room("invite", room.id.as_str()).to_string();
            assert!(!sync.contains("forged"), "{sync}");
        }
    }
}

/// Of the create event the room id vouches, which is its hash; of the others nobody, as of those that come without signatures.
#[test]
fn what_servers_that_are_gone_made_of_a_room_is_shown_and_keeps_no_invite_and_no_knock_away() {
    let server = TestServer::start();
    for (number, damage) in ["none", "silent", "unsigned", "create"].into_iter().enumerate() {
        let (peer, gone, gate) = (Peer::start(), Peer::start(), Gate::default());
        gone.hide_keys(true);
        if damage == "silent" {
            gone.answer_behind(&gate, "/key/v2/server", 404, json!({}));
        }
        // The maker of the room and of its name is gone; who invites is not.
        let mut room = FakeRoom::new(&gone, "12", "knock");
        let inviter = peer.user("inviter");
        room.add(&peer, "m.room.member", inviter.as_str(), &inviter, json!({ "membership": "join" }));
        room.add(&peer, "m.room.topic", "", &inviter, json!({ "topic": "still here" }));
        let mut shown = room.shown();
        let topic = room.state[&("m.room.topic".to_owned(), String::new())].to_object();
        let all = shown.as_array_mut().expect("a list");
        all.push(Value::Object(topic));
        for event in all.iter_mut() {
            match (damage, event["type"].as_str()) {
                ("unsigned", Some("m.room.topic")) => event["signatures"] = json!({}),
                // Then it is that of another room.
                ("create", Some("m.room.create")) => event["content"]["org.example.forged"] = json!(true),
                _ => {}
            }
        }
        let invitee = server.user(&format!("invitee{number}"));
        let event = room.membership(&peer, &inviter, invitee.id(), "invite");
        let mut body = room.invite_body(&event);
        body["invite_room_state"] = shown.clone();
        let (status, answer) = peer.put_event(server.name(), "v2/invite", &room.id, &event, &body);
        gate.open();
        if matches!(damage, "unsigned" | "create") {
            assert_eq!((status, &answer["errcode"]), (400, &json!("M_INVALID_PARAM")), "{damage}: {answer}");
            continue;
        }
        assert_eq!(status, 200, "{answer}");
        let all = ["m.room.create", "m.room.join_rules", "m.room.name", "m.room.topic"];
        let types = |events: &Value| -> Vec<String> {
            let kept = events.as_array().expect("a list").iter().filter(|e| e["type"] != "m.room.member");
            kept.map(|e| e["type"].as_str().expect("a type").to_owned()).collect()
        };
        let sync = invitee.wait_for_room("invite", room.id.as_str());
        assert_eq!(types(&sync["invite_state"]["events"]), all, "{sync}");
        let knocker = server.user(&format!("the-knocker{number}"));
        peer.let_knock(&room, knocker.id());
        peer.answer_json("send_knock", 200, json!({ "knock_room_state": shown }));
        assert_eq!(knock(&knocker, room.id.as_str(), &peer).0, 200);
        let sync = knocker.wait_for_room("knock", room.id.as_str());
        assert_eq!(types(&sync["knock_state"]["events"]), all, "{sync}");
    }
}

/// An invite of the other peer's to the same room, which it says is of version 1.
fn of_version_1(other: &Peer, room: &FakeRoom, user: &TestUser) -> (doorstep::protocol::Pdu, Value) {
    let event = json!({
        "type": "m.room.member", "state_key": user.id(), "sender": other.user("eve"), "room_id": room.id,
        "content": { "membership": "invite" }, "origin": other.name(), "origin_server_ts": now_ms(),
        "depth": 1_000_000, "prev_events": [["$before:example.org", { "sha256": "x" }]], "auth_events": [],
    });
    let old = room_version::room_version("1").expect("a known version");
    let event = other.sign(event.as_object().expect("an object").clone(), old);
    let body = json!({ "room_version": "1", "event": event.to_object(), "invite_room_state": [] });
    (event, body)
}

#[test]
fn an_invite_of_another_version_than_the_room_has_does_not_hide_the_refusal_of_a_knock() {
    let (server, bob, peer, mut room) = stage("knock");
    let other = Peer::start();
    knock_is_taken(&bob, &mut room, &peer);
    let (event, body) = of_version_1(&other, &room, &bob);
    let (status, said) = other.put_event(server.name(), "v2/invite", &room.id, &event, &body);
    assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
    assert!(is_in(&bob, "knock", room.id.as_str()));
    let refusal = room.membership(&peer, &room.creator, bob.id(), "leave");
    let (status, said) = peer.send_transaction(server.name(), "refusal", &[&refusal]);
    assert_eq!((status, &said["pdus"][refusal.event_id().as_str()]), (200, &json!({})), "{said}");
    bob.wait_for_room("leave", room.id.as_str());
}

#[test]
fn an_invite_of_another_version_does_not_hide_that_the_true_one_is_taken_back() {
    let (server, bob, peer, mut room) = stage("invite");
    let other = Peer::start();
    room.invite(&peer, server.name(), bob.id());
    let (event, body) = of_version_1(&other, &room, &bob);
    let (status, said) = other.put_event(server.name(), "v2/invite", &room.id, &event, &body);
    assert_eq!(status, 200, "nobody who invites is believed more than another: {said}");
    let forbidden = json!({ "errcode": "M_FORBIDDEN", "error": "not in it" });
    peer.answer_json("make_leave", 403, forbidden.clone());
    other.answer_json("make_leave", 403, forbidden);
    let taken_back = room.membership(&peer, &room.creator, bob.id(), "leave");
    let (status, said) = peer.send_transaction(server.name(), "back", &[&taken_back]);
    assert_eq!((status, &said["pdus"][taken_back.event_id().as_str()]), (200, &json!({})), "{said}");
    wait_until("the invite is gone", || {
        server.advance(Duration::from_secs(10));
        !is_in(&bob, "invite", room.id.as_str())
    });
}
