//! Templates that ask us to sign something else, and events that are handed in.

use super::*;

#[test]
fn a_template_that_asks_us_to_sign_something_else_is_not_signed() {
    let (_server, bob, peer, room) = stage("knock");
    let good = room.template(bob.id(), "knock");
    let with = |path: &[&str], value: Value| {
        let mut bad = good.clone();
        let mut place = &mut bad;
        for key in path {
            place = &mut place[*key];
        }
        *place = value;
        bad
    };
    let lies = [
        with(&["event", "room_id"], json!("!other:example.org")),
        with(&["event", "sender"], json!("@somebody:example.org")),
        with(&["event", "state_key"], json!("@somebody:example.org")),
        with(&["event", "state_key"], json!("")),
        with(&["event", "type"], json!("m.room.power_levels")),
        with(&["event", "content", "membership"], json!("join")),
        with(&["event", "content"], json!("knock")),
        with(&["event", "auth_events"], json!("none")),
        with(&["event", "prev_events"], Value::Null),
        with(&["event"], json!([])),
        with(&["room_version"], json!("6")),
        with(&["room_version"], json!("org.example.unheard_of")),
        with(&["room_version"], json!(11)),
        json!({}),
        json!([200, good]),
    ];
    for lie in lies {
        peer.answer_json("make_knock", 200, lie.clone());
        let (status, body) = knock(&bob, room.id.as_str(), &peer);
        assert!(status >= 500, "{lie}: {status} {body}");
    }
    peer.answer("make_knock", |_| html());
    assert!(knock(&bob, room.id.as_str(), &peer).0 >= 500);
    assert!(peer.asked("send_knock").is_empty());
    assert!(!is_in(&bob, "knock", room.id.as_str()));
}

#[test]
fn of_a_template_nothing_is_signed_but_its_place_in_the_room() {
    let (server, bob, peer, room) = stage("knock");
    let mut template = room.template(bob.id(), "knock");
    template["event"]["content"]["displayname"] = json!("A fool");
    template["event"]["content"]["join_authorised_via_users_server"] = json!("@root:example.org");
    template["event"]["redacts"] = json!("$something");
    template["event"]["origin"] = json!("example.org");
    template["event"]["origin_server_ts"] = json!(1);
    template["event"]["unsigned"] = json!({ "age": 5 });
    peer.answer_json("make_knock", 200, template);
    peer.answer_json("send_knock", 200, json!({ "knock_room_state": room.shown() }));
    assert_eq!(knock(&bob, room.id.as_str(), &peer).0, 200);
    let asked = peer.wait_for("send_knock").body;
    assert_eq!(asked["content"]["membership"], "knock");
    assert_eq!(asked["content"]["reason"], "please");
    assert_ne!(asked["content"]["displayname"], "A fool");
    assert!(asked["content"].get("join_authorised_via_users_server").is_none());
    assert!(asked.get("redacts").is_none() && asked.get("unsigned").is_none());
    assert_eq!(asked["origin"], server.name());
    assert!(asked["origin_server_ts"].as_i64().is_some_and(|ts| (ts - now_ms()).abs() < 60_000));
    assert!(asked["signatures"][server.name()].is_object());
    bob.wait_for_room("knock", room.id.as_str());
}

#[test]
fn a_refusal_that_speaks_of_the_room_is_passed_on_and_everything_else_is_our_own_words() {
    let (_server, bob, peer, room) = stage("knock");
    for (status, errcode, expected) in [
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
        (404, "M_NOT_FOUND", (404, "M_NOT_FOUND")),
        (400, "M_MISSING_PARAM", (502, "M_UNKNOWN")),
        (400, "M_INVALID_PARAM", (502, "M_UNKNOWN")),
        (401, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
        (404, "M_UNRECOGNIZED", (502, "M_UNKNOWN")),
        (429, "M_LIMIT_EXCEEDED", (429, "M_LIMIT_EXCEEDED")),
        (403, "M_LIMIT_EXCEEDED", (429, "M_LIMIT_EXCEEDED")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
        (418, "ORG.EXAMPLE.TEAPOT", (502, "M_UNKNOWN")),
    ] {
        peer.answer_json(
            "make_knock",
            status,
            json!({ "errcode": errcode, "error": "no", "room_version": "x" }),
        );
        let (status, body) = knock(&bob, room.id.as_str(), &peer);
        assert_eq!((status, body["errcode"].as_str()), (expected.0, Some(expected.1)), "{errcode}: {body}");
        assert!(body.get("room_version").is_none());
    }
    let incompatible =
        json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "no", "room_version": "org.odd" });
    peer.answer_json("make_", 400, incompatible);
    for path in ["knock", "join"] {
        let via = segment(peer.name().as_str());
        let (status, body) =
            post(&bob, &format!("{path}/{}?via={via}", segment(room.id.as_str())), json!({}));
        assert_eq!((status, &body["errcode"]), (400, &json!("M_INCOMPATIBLE_ROOM_VERSION")));
        assert_eq!(body["room_version"], "org.odd");
    }
}

#[test]
fn what_a_server_says_in_refusing_is_passed_on_in_its_words_under_codes_of_ours() {
    let (_server, bob, peer, room) = stage("knock");
    let ask = |verb: &str| {
        let via = segment(peer.name().as_str());
        post(&bob, &format!("{verb}/{}?via={via}", segment(room.id.as_str())), json!({}))
    };
    for (status, errcode, told) in [
        (400, "M_UNKNOWN", "M_UNKNOWN"),
        (400, "M_BAD_JSON", "M_UNKNOWN"),
        (400, "M_GUEST_ACCESS_FORBIDDEN", "M_UNKNOWN"),
        (403, "M_RESOURCE_LIMIT_EXCEEDED", "M_FORBIDDEN"),
        (403, "M_CONSENT_NOT_GIVEN", "M_FORBIDDEN"),
        (403, "M_UNKNOWN_TOKEN", "M_FORBIDDEN"),
        (403, "M_USER_LOCKED", "M_FORBIDDEN"),
        (403, "ORG.EXAMPLE.NOT_TODAY", "M_FORBIDDEN"),
    ] {
        let said = json!({
            "errcode": errcode, "error": "Come back\u{7} tomorrow", "soft_logout": true,
            "consent_uri": "https://example.org", "admin_contact": "mailto:nobody@example.org",
        });
        let expected =
            json!({ "errcode": told, "error": format!("{} refused: Come back tomorrow", peer.name()) });
        peer.answer_json("make_", status, said.clone());
        for verb in ["knock", "join"] {
            assert_eq!(ask(verb), (status, expected.clone()), "{verb} {errcode}");
        }
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        peer.answer_json("send_join", status, said);
        assert_eq!(ask("join"), (status, expected), "send_join {errcode}");
        peer.forget_answer("make_join");
    }
    // What is wrong with us, or with them, and what is not Matrix at all, tells a client nothing.
    for (status, said) in [
        (400, json!({ "errcode": "M_MISSING_PARAM", "error": "no" })),
        (400, json!({ "errcode": "M_INVALID_PARAM", "error": "no" })),
        (400, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" })),
        (401, json!({ "errcode": "M_UNAUTHORIZED", "error": "no" })),
        (403, json!({ "error": "no" })),
        (413, json!({ "errcode": "M_TOO_LARGE", "error": "no" })),
        (500, json!({ "errcode": "M_UNKNOWN", "error": "no" })),
    ] {
        peer.answer_json("make_", status, said.clone());
        for verb in ["knock", "join"] {
            let (status, body) = ask(verb);
            assert_eq!((status, &body["errcode"]), (502, &json!("M_UNKNOWN")), "{verb} {said}");
        }
    }
}

#[test]
fn whoever_asks_for_a_template_is_told_exactly_why_not() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Peer::start();
    let room = alice.create_room_with(json!({
        "room_version": "11",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    let guest = peer.user("guest");
    let make = |verb: &str, room: &str, user: &str, query: &str| {
        let path = format!("/_matrix/federation/v1/make_{verb}/{}/{}{query}", segment(room), segment(user));
        let (status, body) = peer.ask(server.name(), "GET", &path, None);
        (status, body["errcode"].as_str().unwrap_or_default().to_owned(), body)
    };
    for verb in ["join", "knock", "leave"] {
        let (status, errcode, _) = make(verb, "!nowhere:example.org", guest.as_str(), "?ver=11");
        assert_eq!((status, errcode.as_str()), (404, "M_NOT_FOUND"), "{verb}");
        let (status, errcode, _) = make(verb, &room, "@guest:example.org", "?ver=11");
        assert_eq!((status, errcode.as_str()), (403, "M_FORBIDDEN"), "{verb}");
        assert_eq!(make(verb, "nonsense", guest.as_str(), "?ver=11").0, 400);
        assert_eq!(make(verb, &room, "nonsense", "?ver=11").0, 400);
    }
    for (verb, query) in [("join", "?ver=10&ver=9"), ("join", ""), ("knock", "?ver=1")] {
        let (status, errcode, body) = make(verb, &room, guest.as_str(), query);
        assert_eq!((status, errcode.as_str()), (400, "M_INCOMPATIBLE_ROOM_VERSION"), "{verb}{query}");
        assert_eq!(body["room_version"], "11");
    }
    assert_eq!(make("knock", &room, guest.as_str(), "").1, "M_MISSING_PARAM");
    assert_eq!(make("join", &room, guest.as_str(), "?ver=11").1, "M_FORBIDDEN");
    assert_eq!(make("leave", &room, guest.as_str(), "").1, "M_FORBIDDEN");
    let (status, _, template) = make("knock", &room, guest.as_str(), "?ver=10&ver=11");
    assert_eq!(status, 200, "{template}");
    assert_eq!(template["room_version"], "11");
    let event = &template["event"];
    assert_eq!(event["content"]["membership"], "knock");
    assert_eq!(
        (event["sender"].as_str(), event["state_key"].as_str()),
        (Some(guest.as_str()), Some(guest.as_str()))
    );
    assert!(
        event.get("signatures").is_none() && event.get("hashes").is_none() && event.get("event_id").is_none()
    );
}

#[test]
fn an_event_handed_in_must_be_exactly_the_one_that_the_path_speaks_of() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (peer, other) = (Peer::start(), Peer::start());
    let room = alice.create_room_with(json!({
        "room_version": "11",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    let version = doorstep::protocol::room_version::room_version("11").expect("version 11");
    let room_id = doorstep::protocol::RoomId::parse(&room).expect("a room id");
    let guest = peer.user("guest");
    let path =
        format!("/_matrix/federation/v1/make_knock/{}/{}?ver=11", segment(&room), segment(guest.as_str()));
    let template =
        peer.ask(server.name(), "GET", &path, None).1["event"].as_object().expect("a template").clone();
    let variant = |change: &dyn Fn(&mut Value)| {
        let mut event = Value::Object(template.clone());
        change(&mut event);
        event.as_object().expect("an object").clone()
    };
    let refused = |what: &str, (status, body): (u16, Value)| {
        assert_eq!((status, body["errcode"].as_str()), (400, Some("M_INVALID_PARAM")), "{what}: {body}");
    };
    let forbidden = |what: &str, (status, body): (u16, Value)| {
        assert_eq!((status, body["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{what}: {body}");
    };
    let send = |event: &doorstep::protocol::Pdu| {
        let body = Value::Object(event.to_object());
        peer.put_event(server.name(), "v1/send_knock", &room_id, event, &body)
    };
    let good = peer.sign(template.clone(), version);
    for (what, event) in [
        ("a join", variant(&|e| e["content"]["membership"] = json!("join"))),
        ("a topic", variant(&|e| e["type"] = json!("m.room.topic"))),
        ("of another room", variant(&|e| e["room_id"] = json!("!other:example.org"))),
        ("for another user", variant(&|e| e["state_key"] = json!("@else:example.org"))),
    ] {
        refused(what, send(&peer.sign(event, version)));
    }
    let by_another = variant(&|e| {
        e["sender"] = json!("@else:example.org");
        e["state_key"] = json!("@else:example.org");
    });
    forbidden("by another server's user", send(&peer.sign(by_another, version)));
    forbidden("signed by another server", send(&other.sign(template.clone(), version)));
    let mut unsigned = good.to_object();
    unsigned.insert("signatures".to_owned(), json!({}));
    forbidden(
        "signed by nobody",
        peer.put_event(server.name(), "v1/send_knock", &room_id, &good, &Value::Object(unsigned)),
    );
    let mut tampered = Value::Object(good.to_object());
    tampered["content"]["reason"] = json!("changed after signing");
    refused("tampered", peer.put_event(server.name(), "v1/send_knock", &room_id, &good, &tampered));
    let another = peer.sign(variant(&|e| e["origin_server_ts"] = json!(5)), version);
    refused(
        "the event id of the path",
        peer.put_event(server.name(), "v1/send_knock", &room_id, &another, &Value::Object(good.to_object())),
    );
    let no_json = peer.put_event(server.name(), "v1/send_knock", &room_id, &good, &json!([1]));
    assert_eq!((no_json.0, no_json.1["errcode"].as_str()), (400, Some("M_BAD_JSON")));
    assert_eq!(alice.membership_of(&room, guest.as_str()), None);

    let (status, first) = send(&good);
    assert_eq!(status, 200, "{first}");
    assert_eq!(alice.membership_of(&room, guest.as_str()).as_deref(), Some("knock"));
    let shown = first["knock_room_state"].as_array().expect("knock_room_state");
    let create = shown.iter().find(|e| e["type"] == "m.room.create").expect("the create event");
    assert!(create["signatures"].is_object(), "whole events, as federation has them since v1.16");
    let (status, second) = send(&good);
    assert_eq!((status, &second), (200, &first), "a repeat gets the same answer");
    // The same event by the sibling endpoints is none of theirs.
    let body = Value::Object(good.to_object());
    for call in ["v2/send_join", "v2/send_leave", "v1/send_join", "v1/send_leave"] {
        refused(call, peer.put_event(server.name(), call, &room_id, &good, &body));
    }
}
