//! Who is kept out: by a room's server ACL, by this server's settings, by users who want no invites.

use crate::common::ProcessServer;
use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{Scene, stored};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Status;
use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::{EventId, Pdu, RoomId, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const FEDERATION: &str = "/_matrix/federation";

/// An event of a peer's user at the end of a room of this server, signed by the peer.
fn event_in(server: &TestServer, peer: &Peer, room: &str, kind: (&str, Option<&str>), content: Value) -> Pdu {
    let (room, version) = (RoomId::parse(room).expect("a room id"), room_version("11").expect("11"));
    let sender = peer.user("eve");
    let content = content.as_object().expect("an object").clone();
    let wanted = auth_types(kind.0, sender.as_str(), kind.1, &content, version);
    let found = server.homeserver().store.read(|db| {
        let key = db.known_room(&room)?.key;
        let auth =
            wanted.iter().filter_map(|(kind, state_key)| db.state_event(key, kind, state_key).transpose());
        let auth = auth.collect::<Result<Vec<_>, _>>()?;
        Ok((db.forward_extremities(key)?, auth))
    });
    let (heads, auth) = found.expect("the room can be read");
    let prev: Vec<&EventId> = heads.iter().map(|head| &head.event_id).collect();
    let auth: Vec<&EventId> = auth.iter().map(Pdu::event_id).collect();
    let mut event = json!({
        "type": kind.0, "sender": sender, "content": content, "room_id": room, "depth": 30,
        "origin_server_ts": crate::common::peer::now_ms(), "prev_events": prev, "auth_events": auth,
    });
    if let Some(state_key) = kind.1 {
        event["state_key"] = state_key.into();
    }
    peer.sign(event.as_object().expect("an object").clone(), version)
}

fn open_room(alice: &TestUser) -> String {
    alice.create_room_with(json!({ "preset": "public_chat", "room_version": "11" }))
}

/// Keeps every scripted peer out.
fn shut(alice: &TestUser, room: &str) {
    alice.set_state(room, "m.room.server_acl", "", json!({ "allow": ["*"], "deny": ["127.*"] }));
}

#[test]
fn a_server_that_the_acl_denies_gets_nothing_from_any_endpoint_that_it_protects() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let peer = Peer::start();
    let eve = peer.user("eve");
    let room = open_room(&alice);
    assert_eq!(peer.hand_in(server.name(), "join", &room, &eve).1.0, 200);
    let invite = json!({ "membership": "invite" });
    let invite = event_in(&server, &peer, &room, ("m.room.member", Some(bob.id())), invite);
    let member = |user: &UserId, membership: &str| {
        let content = json!({ "membership": membership });
        event_in(&server, &peer, &room, ("m.room.member", Some(user.as_str())), content)
    };
    let (leave, other) = (member(&eve, "leave"), peer.user("other"));
    let (join, knock) = (member(&eve, "join"), member(&eve, "knock"));
    let body = |event: &Pdu| Some(Value::Object(event.to_object()));
    let id = segment(&room);
    let (eve_id, other_id) = (segment(eve.as_str()), segment(other.as_str()));
    let path_of = |call: &str, event: &Pdu| format!("{call}/{id}/{}", segment(event.event_id().as_str()));
    let head = {
        let head = server.homeserver().store.read(|db| db.forward_extremities(1)).expect("heads").remove(0);
        head.event_id.as_str().to_owned()
    };
    let known = segment(&head);
    let invite_body = json!({ "room_version": "11", "event": invite.to_object(), "invite_room_state": [] });
    let table: Vec<(&str, String, Option<Value>)> = vec![
        ("GET", format!("v1/make_join/{id}/{other_id}?ver=11"), None),
        ("GET", format!("v1/make_leave/{id}/{eve_id}"), None),
        ("GET", format!("v1/make_knock/{id}/{other_id}?ver=11"), None),
        ("PUT", path_of("v1/send_join", &join), body(&join)),
        ("PUT", path_of("v2/send_join", &join), body(&join)),
        ("PUT", path_of("v1/send_leave", &leave), body(&leave)),
        ("PUT", path_of("v2/send_leave", &leave), body(&leave)),
        ("PUT", path_of("v1/send_knock", &knock), body(&knock)),
        ("PUT", path_of("v1/invite", &invite), body(&invite)),
        ("PUT", path_of("v2/invite", &invite), Some(invite_body)),
        ("GET", format!("v1/state/{id}?event_id={known}"), None),
        ("GET", format!("v1/state_ids/{id}?event_id={known}"), None),
        ("GET", format!("v1/backfill/{id}?v={known}&limit=5"), None),
        ("GET", format!("v1/event_auth/{id}/{known}"), None),
        (
            "POST",
            format!("v1/get_missing_events/{id}"),
            Some(json!({
                "earliest_events": [], "latest_events": [head], "limit": 5, "min_depth": 0,
            })),
        ),
        // Beyond what the specification names: what is read of a room is read by the same rules.
        ("GET", format!("v1/event/{known}"), None),
        ("GET", format!("v1/timestamp_to_event/{id}?ts=0&dir=f"), None),
    ];
    let ask = |(method, path, body): &(&str, String, Option<Value>)| {
        peer.ask(server.name(), method, &format!("{FEDERATION}/{path}"), body.as_ref())
    };
    for line in &table {
        let (_, body) = ask(&(line.0, line.1.clone(), line.2.clone().filter(|_| line.0 == "POST")));
        let told = body["error"].as_str().unwrap_or_default();
        assert!(!told.contains("ACL"), "before there is one: {} {body}", line.1);
    }
    shut(&alice, &room);
    for line in &table {
        let (status, body) = ask(line);
        assert_eq!((status, body["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{}: {body}", line.1);
        assert!(body["error"].as_str().is_some_and(|e| e.contains("ACL")), "{}: {body}", line.1);
    }
    let (status, body) = peer.ask(server.name(), "GET", &format!("{FEDERATION}/v1/hierarchy/{id}"), None);
    assert_eq!(status, 404, "{body}");
    assert_eq!(alice.membership_of(&room, eve.as_str()).as_deref(), Some("join"), "nothing of it happened");
    assert_eq!(bob.initial_sync()["rooms"]["invite"].get(&room), None);
}

#[test]
fn of_a_transaction_the_acl_keeps_out_the_events_of_its_own_room_only() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Peer::start();
    peer.take_transactions();
    let (open, closed) = (open_room(&alice), open_room(&alice));
    for room in [&open, &closed] {
        assert_eq!(peer.hand_in(server.name(), "join", room, &peer.user("eve")).1.0, 200);
    }
    shut(&alice, &closed);
    let message =
        |room: &str| event_in(&server, &peer, room, ("m.room.message", None), json!({ "body": room }));
    let (one, two) = (message(&closed), message(&open));
    let (status, body) = peer.send_transaction(server.name(), "1", &[&one, &two]);
    assert_eq!(status, 200, "{body}");
    let said = &body["pdus"];
    assert!(said[one.event_id().as_str()]["error"].as_str().is_some_and(|e| e.contains("ACL")), "{body}");
    assert_eq!(said[two.event_id().as_str()], json!({}), "{body}");
    let stored =
        server.homeserver().store.read(|db| db.has_events(&[one.event_id().clone(), two.event_id().clone()]));
    assert_eq!(stored.expect("the database reads"), [false, true]);
    // "Servers should still send events to denied servers if they are still residents of the room."
    alice.send(&closed, "you may still listen");
    wait_until("the denied server is told", || {
        peer.asked("/send/").iter().any(|a| a.body.to_string().contains("you may still listen"))
    });
}

#[test]
fn a_user_who_wants_no_invites_sees_none_until_they_want_some_again() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let peer = Peer::start();
    let remote = FakeRoom::new(&peer, "11", "invite");
    let invite = |room: &FakeRoom| {
        let content = json!({ "membership": "invite" });
        let event = room.draft(&peer, "m.room.member", bob.id(), &room.creator, content);
        peer.put_event(server.name(), "v2/invite", &room.id, &event, &room.invite_body(&event))
    };
    let local = open_room(&alice);
    alice.invite(&local, bob.id());
    assert_eq!(invite(&remote).0, 200);
    let invites = || {
        let rooms = bob.initial_sync()["rooms"]["invite"].as_object().cloned().unwrap_or_default();
        rooms.keys().cloned().collect::<Vec<_>>()
    };
    assert_eq!(invites().len(), 2);
    let path =
        format!("/_matrix/client/v3/user/{}/account_data/m.invite_permission_config", segment(bob.id()));
    bob.put(&path, json!({ "default_action": "block" }));
    assert_eq!(invites(), Vec::<String>::new(), "those that were there are hidden");
    let another = FakeRoom::new(&peer, "11", "invite");
    let (status, body) = invite(&another);
    assert_eq!((status, body["errcode"].as_str()), (403, Some("M_INVITE_BLOCKED")), "{body}");
    let ask = |method: &str, path: &str, body: Value| {
        let (status, body) = alice.request(method, &format!("/_matrix/client/v3/{path}"), Some(body));
        assert_eq!((status, body["errcode"].as_str()), (403, Some("M_INVITE_BLOCKED")), "{path}: {body}");
    };
    let fresh = open_room(&alice);
    ask("POST", &format!("rooms/{}/invite", segment(&fresh)), json!({ "user_id": bob.id() }));
    ask("POST", "createRoom", json!({ "invite": [bob.id()] }));
    let state = format!("rooms/{}/state/m.room.member/{}", segment(&fresh), segment(bob.id()));
    ask("PUT", &state, json!({ "membership": "invite" }));
    bob.put(&path, json!({ "default_action": "org.example.unheard_of" }));
    assert_eq!(invites().len(), 2);
}

#[test]
fn a_server_that_the_settings_deny_is_neither_answered_nor_asked_nor_sent_to() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let peer = Peer::start();
    peer.take_transactions();
    let room = open_room(&alice);
    assert_eq!(peer.hand_in(server.name(), "join", &room, &peer.user("eve")).1.0, 200);
    let version = format!("{FEDERATION}/v1/query/profile?user_id={}", segment(alice.id()));
    assert_eq!(peer.ask(server.name(), "GET", &version, None).0, 200);

    server.kill();
    server.resume_with(&["--deny-server", "127.0.0.1"]);
    let (status, body) = peer.ask(server.name(), "GET", &version, None);
    assert_eq!((status, body["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{body}");
    let join =
        format!("/_matrix/client/v3/join/{}?via={}", segment("!a:b.org"), segment(peer.name().as_str()));
    let (status, body) = alice.request("POST", &join, Some(json!({})));
    assert!(status == 403 || status == 502, "{status} {body}");
    let invite = format!("/_matrix/client/v3/rooms/{}/invite", segment(&room));
    let (status, body) = alice.request("POST", &invite, Some(json!({ "user_id": peer.user("two") })));
    assert_eq!((status, body["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{body}");
    alice.send(&room, "among ourselves");
    assert!(peer.asked("make_join").is_empty() && peer.asked("invite").is_empty());
    assert!(peer.asked("/send/").is_empty());

    // What it missed it gets when it is let in again.
    server.kill();
    server.resume_with(&["--allow-server", "127.0.*1"]);
    assert_eq!(peer.ask(server.name(), "GET", &version, None).0, 200);
    wait_until("it gets what it missed", || {
        peer.asked("/send/").iter().any(|a| a.body.to_string().contains("among ourselves"))
    });
}

#[test]
fn an_access_list_that_shuts_out_the_server_of_who_sets_it_is_refused_and_so_is_its_redaction() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = open_room(&alice);
    let path = format!("/_matrix/client/v3/rooms/{}/state/m.room.server_acl/", segment(&room));
    for fatal in [
        json!({}),
        json!({ "allow": [] }),
        json!({ "allow": "*" }),
        json!({ "allow": null }),
        json!({ "allow": { "0": "*" } }),
        json!({ "content": { "allow": ["*"] } }),
        json!({ "allow": ["example.org", "localhost:*", "local host"] }),
        json!({ "allow": ["*"], "deny": ["*"] }),
        json!({ "allow": ["*"], "deny": ["LOCALHOST"] }),
        json!({ "allow": ["*"], "deny": ["l?calh*"] }),
        json!({ "allow": [1, ["*"]] }),
    ] {
        let (status, answer) = alice.request("PUT", &path, Some(fatal.clone()));
        assert_eq!(status, 400, "{fatal}: {answer}");
        let initial = json!([{ "type": "m.room.server_acl", "state_key": "", "content": fatal }]);
        let (status, answer) =
            alice.request("POST", "/_matrix/client/v3/createRoom", Some(json!({ "initial_state": initial })));
        assert_eq!(status, 400, "{answer}");
    }
    assert_eq!(alice.state(&room, "m.room.server_acl", ""), None);
    let good = json!({ "allow": ["*"], "deny": ["127.*"] });
    let acl = alice.set_state(&room, "m.room.server_acl", "", good.clone());
    let redact = format!("/_matrix/client/v3/rooms/{}/redact/{}/t", segment(&room), segment(&acl));
    let (status, answer) = alice.request("PUT", &redact, Some(json!({})));
    assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")));
    assert_eq!(alice.state(&room, "m.room.server_acl", ""), Some(good));
    // One that is for somebody else is a state event like any.
    alice.set_state(&room, "m.room.server_acl", "other", json!({}));
}

#[test]
fn a_create_event_is_never_redacted_whoever_asks() {
    for version in ["1", "2", "3", "6", "10", "11", "12"] {
        let server = TestServer::start();
        let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
        bob.join(&room);
        let id = segment(&room);
        let create = |user: &TestUser| {
            let state = user.get(&format!("/_matrix/client/v3/rooms/{id}/state"));
            let create = state.as_array().and_then(|all| all.iter().find(|e| e["type"] == "m.room.create"));
            create.expect("a create event").clone()
        };
        let before = create(&alice);
        let target = before["event_id"].as_str().expect("an id").to_owned();
        let mut levels = alice.state(&room, "m.room.power_levels", "").expect("levels");
        levels["users"][bob.id()] = json!(50);
        alice.set_state(&room, "m.room.power_levels", "", levels);
        for (number, user) in [&alice, &bob].into_iter().enumerate() {
            let path = format!("/_matrix/client/v3/rooms/{id}/redact/{}/t{number}", segment(&target));
            let (status, answer) = user.request("PUT", &path, Some(json!({})));
            assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")), "{version}");
            let path = format!("/_matrix/client/v3/rooms/{id}/send/m.room.redaction/s{number}");
            let (status, answer) = user.request("PUT", &path, Some(json!({ "redacts": target })));
            assert!(status == 403 || version < "11" || version.len() == 1, "{version}: {status} {answer}");
        }
        assert_eq!(create(&alice)["content"], before["content"], "{version}");
        carol.join(&room);
    }
}

#[test]
fn a_redaction_of_the_create_event_by_federation_changes_nothing_and_is_not_shown() {
    for version in ["3", "6", "10", "11", "12"] {
        let mut scene = Scene::new(version);
        let create = scene.room.state[&("m.room.create".to_owned(), String::new())].clone();
        let (last, creator) = (scene.last.clone(), scene.room.creator.clone());
        let mut content = json!({});
        if scene.room.version.redacts_in_content {
            content["redacts"] = json!(create.event_id());
        }
        let mut redaction = scene.event(&[&last], &creator, ("m.room.redaction", None), content).to_object();
        if !scene.room.version.redacts_in_content {
            redaction.insert("redacts".into(), json!(create.event_id()));
        }
        let redaction = scene.peer.sign(redaction, scene.room.version);
        scene.send("t", &[&redaction]);
        let stored =
            crate::common::scene::stored(&scene.server, create.event_id()).expect("the create event");
        assert_eq!((stored.redacted_by, stored.pdu.json()), (None, create.json()), "{version}");
        assert!(
            crate::common::scene::stored(&scene.server, redaction.event_id())
                .is_none_or(|e| e.place.is_none())
        );
        let bob = scene.server.user("bob");
        bob.join(scene.room.id.as_str());
    }
}

#[test]
fn a_kick_that_meets_a_ban_does_not_lift_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let ask = |verb: &str| {
        let path = format!("/_matrix/client/v3/rooms/{}/{verb}", segment(&room));
        alice.request("POST", &path, Some(json!({ "user_id": bob.id() }))).0
    };
    for round in 0..40 {
        alice.invite(&room, bob.id());
        let (kicked, banned) = std::thread::scope(|scope| {
            let kick = scope.spawn(|| ask("kick"));
            let ban = ask("ban");
            (kick.join().expect("no panic"), ban)
        });
        assert_eq!(banned, 200);
        assert!([200, 403].contains(&kicked), "{kicked}");
        assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("ban"), "round {round}: {kicked}");
        assert_eq!(ask("unban"), 200);
    }
}

#[test]
fn a_moderator_redacts_by_its_id_what_this_server_does_not_have_and_it_comes_redacted() {
    for version in ["3", "10", "11", "12"] {
        let mut scene = Scene::new(version);
        scene.peer.take_transactions();
        let (creator, start) = (scene.room.creator.clone(), scene.last.clone());
        let redact = |scene: &Scene, target: &str, txn: &str| {
            let room = segment(scene.room.id.as_str());
            let path = format!("/_matrix/client/v3/rooms/{room}/redact/{}/{txn}", segment(target));
            scene.alice.request("PUT", &path, Some(json!({ "reason": "spam" })))
        };
        let levels = |scene: &mut Scene, redact: i64| {
            let mut users = json!({ scene.alice.id(): 50 });
            if scene.room.version.id != "12" {
                users[creator.as_str()] = json!(100);
            }
            let levels = json!({ "users": users, "redact": redact });
            let levels = scene.set_state("m.room.power_levels", "", levels);
            scene.send(&format!("levels-{redact}"), &[&levels]);
            assert_eq!(scene.status(&levels), Some(Status::Accepted), "{version}");
        };
        let spam = scene.message_after(&[&start], &creator, "spam");
        let id = spam.event_id().as_str();
        levels(&mut scene, 51);
        assert_eq!(
            redact(&scene, id, "too-low").0,
            404,
            "{version}: without the level it can only be a mistake"
        );
        levels(&mut scene, 50);
        assert_eq!(redact(&scene, "$cut-off", "cut-off").0, 404, "{version}: no event has this id");
        let (status, answer) = redact(&scene, id, "redacts");
        assert_eq!(status, 200, "{version}: {answer}");
        wait_until("the redaction goes out", || {
            let sent = scene.peer.asked("/send/");
            let mut pdus =
                sent.iter().flat_map(|sent| sent.body["pdus"].as_array().cloned().unwrap_or_default());
            pdus.any(|pdu| {
                let redacts = [&pdu["redacts"], &pdu["content"]["redacts"]];
                pdu["type"] == "m.room.redaction" && redacts.contains(&&json!(id))
            })
        });
        scene.send("spam", &[&spam]);
        wait_until("it is redacted", || {
            stored(&scene.server, spam.event_id()).is_some_and(|event| event.redacted_by.is_some())
        });
        let path = format!("/_matrix/client/v3/rooms/{}/event/", segment(scene.room.id.as_str()));
        let shown = scene.alice.get(&format!("{path}{}", segment(id)));
        assert_eq!(shown["content"], json!({}), "{version}");
    }
}
