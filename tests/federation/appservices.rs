//! Bridges, and what other servers do to them: by states that are resolved, and by questions.

use std::sync::Mutex;

use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::json;

use crate::common::bridge::{Bridge, BridgeAnswer};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{Scene, heads};
use crate::common::wait::{Gate, wait_until};

#[test]
fn a_service_is_told_what_happens_in_a_room_that_its_user_was_removed_from_in_vain() {
    let bridge = Bridge::start("irc");
    let registration = bridge.registration("namespaces: {users: [{regex: '@irc_', exclusive: false}]}");
    let server = TestServer::start_with(|config| config.appservices.push(registration));
    let (ghost, peer) = (server.user("irc_bob"), Peer::start());
    let room = FakeRoom::joined_by(&peer, "11", &ghost);
    let mut scene = Scene::of(server, ghost, peer, room);
    let (id, creator, join) = (scene.room.id.to_string(), scene.room.creator.clone(), scene.last.clone());
    // A newer membership than the one that the removal knows, which takes the place of both.
    let path = format!("/_matrix/client/v3/profile/{}/displayname", segment(scene.alice.id()));
    scene.alice.put(&path, json!({ "displayname": "Bob" }));
    scene.alice.send(&id, "named");
    bridge.wait_for_message("named");
    let head = heads(&scene.server, &scene.room).pop().expect("an end");
    let kick = scene.event(
        &[&join],
        &creator,
        ("m.room.member", Some(scene.alice.id().to_owned().as_str())),
        json!({ "membership": "leave" }),
    );
    scene.send("kick", &[&kick]);
    let told = bridge.wait_for("events", "the kick", |event| event["content"]["membership"] == "leave");
    assert_eq!(told["event_id"], kick.event_id().as_str());
    assert_eq!(
        scene.state_content("m.room.member", scene.alice.id()).expect("a member")["displayname"],
        "Bob"
    );
    let said = scene.message_after(&[&head, kick.event_id()], &creator, "after it");
    scene.send("after", &[&said]);
    bridge.wait_for_message("after it");
    // One that counts has an end to it.
    let leave = json!({ "membership": "leave" });
    let ghost = scene.alice.id().to_owned();
    let member = scene.server.homeserver().store.read(|db| {
        let room = db.room(&scene.room.id)?.expect("the room");
        db.state_event(room.key, "m.room.member", &ghost)
    });
    let member = member.expect("the database reads").expect("a member");
    scene.room.state.insert(("m.room.member".to_owned(), ghost.clone()), member);
    let kick = scene.event(&[said.event_id()], &creator, ("m.room.member", Some(&ghost)), leave);
    let unheard = scene.message_after(&[kick.event_id()], &creator, "behind its back");
    scene.send("kicked", &[&kick, &unheard]);
    bridge.wait_for("events", "the kick", |event| event["event_id"] == kick.event_id().as_str());
    assert_eq!(bridge.messages(), ["named", "after it"]);
}

#[test]
fn what_strangers_ask_of_a_service_keeps_nobody_here_from_asking_it() {
    let bridge = Bridge::start("irc");
    let registration = bridge.registration("namespaces: {aliases: [{regex: '#irc_', exclusive: true}]}");
    let server = TestServer::start_with(|config| config.appservices.push(registration));
    let (alice, peer, gate) = (server.user("alice"), Peer::start(), Gate::default());
    let (url, held) = (server.url().to_owned(), gate.clone());
    bridge.answer_by(move |asked| match asked.target.strip_prefix("/_matrix/app/v1/rooms/%23irc_") {
        Some(name) if name.starts_with("real") => {
            let service = TestUser::new(&url, "@ircbot:here", "as_irc");
            let made = json!({ "preset": "public_chat", "room_alias_name": "irc_real" });
            let made = service.request("POST", "/_matrix/client/v3/createRoom", Some(made));
            BridgeAnswer::Json(made.0, made.1)
        }
        Some(_) => BridgeAnswer::Behind(held.clone(), 404, json!({ "errcode": "M_NOT_FOUND" })),
        None => BridgeAnswer::Json(404, json!({ "errcode": "M_NOT_FOUND" })),
    });
    let directory = |name: &str| segment(&format!("#irc_{name}:{}", server.name()));
    let asked = |what: &str| bridge.asked().iter().filter(|asked| asked.target.contains(what)).count();
    let answers = Mutex::new(Vec::new());
    std::thread::scope(|scope| {
        for number in 0..8 {
            let path = format!(
                "/_matrix/federation/v1/query/directory?room_alias={}",
                directory(&format!("evil{number}"))
            );
            let (peer, name, answers) = (&peer, server.name(), &answers);
            scope.spawn(move || answers.lock().expect("no panic").push(peer.ask(name, "GET", &path, None).0));
        }
        wait_until("a stranger's question is put", || asked("evil") > 0);
        // Also by who has no name, and of what the stranger waits for.
        let looked_up =
            alice.request("GET", &format!("/_matrix/client/v3/directory/room/{}", directory("real")), None);
        assert_eq!(looked_up.0, 200, "{}", looked_up.1);
        assert_eq!(asked("evil"), 1, "one of a server at a time");
        gate.open();
    });
    // What was not asked is not taken to be unknown.
    assert_eq!(answers.into_inner().expect("no panic"), [404; 8]);
    let at_the_first_path = |number: usize| asked(&format!("/app/v1/rooms/%23irc_evil{number}"));
    assert!((0..8).all(|number| at_the_first_path(number) == 1));
}
