//! Events that nobody signed who would have to, handed in at every door: none is stored, shown or acted upon.

use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{Scene, stored};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::internals::Status;
use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::segment;
use serde_json::{Map, Value, json};

const VERSIONS: [&str; 4] = ["3", "6", "10", "12"];

/// What a forger may write where a server's signatures belong. `real` is a signature of the forger's own.
fn signatures_of_nobody(owner: &Peer, forger: &Peer, real: &str) -> Vec<Value> {
    let (owner, key) = (owner.name().as_str(), owner.signing_key().key_id());
    vec![
        json!({}),
        json!({ owner: {} }),
        json!({ owner: { "ed25519:policy_server": "AAAA" } }),
        json!({ owner: { "ed25519:policy_server": real } }),
        json!({ owner: { "rsa:1": real, "ed25519:": real } }),
        json!({ owner: { key: real } }),
        json!({ owner: { key: null, "ed25519:policy_server": real } }),
        json!({ forger.name().as_str(): { forger.signing_key().key_id(): real } }),
        json!({ forger.name().as_str(): { forger.signing_key().key_id(): real },
                owner: { "ed25519:policy_server": real } }),
    ]
}

/// The same event with each of these; one that differs from the last in its hash too where the hash is to be wrong.
fn forgeries(event: &Pdu, owner: &Peer, forger: &Peer) -> Vec<Pdu> {
    let whole = event.to_object();
    let real =
        whole["signatures"].as_object().and_then(|all| all.values().next()?.as_object()?.values().next());
    let real = real.and_then(Value::as_str).expect("the forger signed it").to_owned();
    let mut all = Vec::new();
    for signatures in signatures_of_nobody(owner, forger, &real) {
        let mut forged = whole.clone();
        forged.insert("signatures".into(), signatures);
        all.push(Pdu::from_object(forged.clone(), event.version()).expect("an event"));
        forged.insert("hashes".into(), json!({ "sha256": "AAAA" }));
        all.push(Pdu::from_object(forged, event.version()).expect("an event"));
    }
    all
}

/// What a server that hands in one of these is told: it is no event if its hash is wrong, and else one that it may not hand in.
fn refused_with(forged: &Pdu) -> u16 {
    if forged.to_object()["hashes"]["sha256"] == "AAAA" { 400 } else { 403 }
}

/// A room of an honest peer's with one of ours and a forger's user in it.
fn stage(version: &str) -> (Scene, Peer) {
    let mut scene = Scene::new(version);
    let forger = Peer::start();
    let join = scene.join_of(&forger, "mallory");
    assert_eq!(scene.send("join", &[&join])[join.event_id().as_str()], json!({}));
    (scene, forger)
}

/// A message of the room's creator that the forger makes up, at the room's end.
fn words(scene: &mut Scene, forger: &Peer) -> Pdu {
    let (creator, last) = (scene.room.creator.clone(), scene.last.clone());
    let content = json!({ "body": "I never said that" });
    scene.event_of(forger, &[&last], &creator, ("m.room.message", None), content)
}

/// The forger's own message behind another event.
fn after(scene: &mut Scene, forger: &Peer, event: &Pdu, text: &str) -> Pdu {
    let mallory = forger.user("mallory");
    scene.event_of(forger, &[event.event_id()], &mallory, ("m.room.message", None), json!({ "body": text }))
}

fn assert_unheard(server: &TestServer, event: &Pdu) {
    assert!(stored(server, event.event_id()).is_none(), "{event:?} is stored: {}", event.json_str());
}

#[test]
fn a_transaction_puts_no_words_into_the_mouth_of_another_servers_user() {
    for version in VERSIONS {
        let (mut scene, forger) = stage(version);
        let (creator, last) = (scene.room.creator.clone(), scene.last.clone());
        let mallory = forger.user("mallory");
        let levels = json!({ "users": { mallory.as_str(): 100 } });
        let words = words(&mut scene, &forger);
        let power = scene.event_of(&forger, &[&last], &creator, ("m.room.power_levels", Some("")), levels);
        let before = scene.state_content("m.room.power_levels", "");
        for (number, forged) in
            [words, power].iter().flat_map(|event| forgeries(event, &scene.peer, &forger)).enumerate()
        {
            let (status, answer) =
                forger.send_transaction(scene.server.name(), &format!("forged{number}"), &[&forged]);
            assert_eq!(status, 200, "{answer}");
            let said = &answer["pdus"][forged.event_id().as_str()];
            assert!(said["error"].is_string(), "{version}: {answer} {}", forged.json_str());
            assert_unheard(&scene.server, &forged);
        }
        assert_eq!(scene.state_content("m.room.power_levels", ""), before);
    }
}

#[test]
fn what_is_fetched_for_another_event_is_checked_like_any() {
    for version in VERSIONS {
        let (mut scene, forger) = stage(version);
        let words = words(&mut scene, &forger);
        for (number, forged) in forgeries(&words, &scene.peer, &forger).into_iter().enumerate() {
            let after = after(&mut scene, &forger, &forged, &format!("yes, {number}"));
            forger.serve_events(std::slice::from_ref(&forged), 10);
            let (status, answer) =
                forger.send_transaction(scene.server.name(), &format!("after{number}"), &[&after]);
            assert_eq!(status, 200, "{answer}");
            assert_unheard(&scene.server, &forged);
        }
        assert!(!forger.asked("get_missing_events").is_empty(), "{version}: it was asked");
    }
}

#[test]
fn history_that_a_client_reads_back_to_is_checked_like_any() {
    for version in VERSIONS {
        let (mut scene, forger) = stage(version);
        let words = words(&mut scene, &forger);
        let all = forgeries(&words, &scene.peer, &forger);
        // An event whose past nobody gives but by its state leaves a hole.
        let after = after(&mut scene, &forger, &words, "x");
        scene.answer_with_state();
        let ids: Vec<&EventId> = scene.room.state.values().map(Pdu::event_id).collect();
        forger.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
        let pdus: Vec<Value> = all.iter().map(|event| Value::Object(event.to_object())).collect();
        let answer = json!({ "origin": forger.name(), "origin_server_ts": 0, "pdus": pdus });
        forger.answer_json("/backfill/", 200, answer);
        let (status, answer) = forger.send_transaction(scene.server.name(), "after", &[&after]);
        assert_eq!(status, 200, "{answer}");
        assert!(
            stored(&scene.server, after.event_id()).is_some_and(|event| event.place.is_some()),
            "{version}"
        );
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b", segment(scene.room.id.as_str()));
        let page = scene.alice.get(&path).to_string();
        assert!(!page.contains("I never said that"), "{page}");
        assert!(!forger.asked("/backfill/").is_empty(), "it was asked");
        assert_unheard(&scene.server, &words);
    }
}

#[test]
fn a_restricted_join_that_the_one_who_lets_in_has_not_signed_is_none() {
    for version in ["8", "10", "12"] {
        // Another server shows our user a room in which somebody on a third one would let them in.
        let (server, peer, forger) = (TestServer::start(), Peer::start(), Peer::start());
        let bob = server.user("bob");
        let mut room = FakeRoom::new(&forger, version, "restricted");
        let victim = peer.user("victim");
        let creator = room.creator.clone();
        let invite = room.membership(&forger, &creator, victim.as_str(), "invite");
        room.take(invite);
        let join = room.membership(&peer, &victim, victim.as_str(), "join");
        room.take(join);
        let mut template = room.template(bob.id(), "join");
        template["event"]["content"]["join_authorised_via_users_server"] = json!(victim);
        forger.answer_json("make_join", 200, template);
        for vouched in [false, true] {
            let (answer, voucher) = (room.join_answer(), peer.name().clone());
            let spoilt = json!({ "ed25519:policy_server": "AAAA" });
            forger.answer("send_join", move |asked| {
                let mut answer = answer.clone();
                if vouched {
                    answer["event"] = asked.body.clone();
                    answer["event"]["signatures"][voucher.as_str()] = spoilt.clone();
                }
                Reply::json(&answer)
            });
            let path = format!(
                "/_matrix/client/v3/join/{}?via={}",
                segment(room.id.as_str()),
                segment(forger.name().as_str())
            );
            let (status, answer) = bob.request("POST", &path, Some(json!({})));
            assert!(status >= 400, "{version} {vouched}: {answer}");
            assert!(bob.initial_sync()["rooms"]["join"].get(room.id.as_str()).is_none());
        }
        assert!(!forger.asked("send_join").is_empty(), "{version}: the join was offered");
    }
}

#[test]
fn no_handshake_takes_an_event_that_its_sender_has_not_signed() {
    for version in ["1", "6", "10", "12"] {
        let server = TestServer::start();
        let (alice, peer, forger) = (server.user("alice"), Peer::start(), Peer::start());
        let mallory = peer.user("mallory");
        let rule = if version < "7" && version.len() == 1 { "public" } else { "knock" };
        let room = alice.create_room_with(json!({
            "room_version": version, "preset": "public_chat",
            "initial_state": [{ "type": "m.room.join_rules", "content": { "join_rule": rule } }],
        }));
        let kinds: &[&str] = if rule == "public" { &["join"] } else { &["knock"] };
        for kind in kinds.iter().chain(&["leave"]) {
            if *kind == "leave" {
                let first = kinds[0];
                assert_eq!(peer.hand_in(server.name(), first, &room, &mallory).1.0, 200);
            }
            let all = (1..=12).map(|version| format!("ver={version}")).collect::<Vec<_>>().join("&");
            let (id, user) = (segment(&room), segment(mallory.as_str()));
            let path = format!("/_matrix/federation/v1/make_{kind}/{id}/{user}?{all}");
            let (status, made) = peer.ask(server.name(), "GET", &path, None);
            assert_eq!(status, 200, "{made}");
            let template = made["event"].as_object().expect("a template").clone();
            let version = doorstep::protocol::room_version::room_version(version).expect("known");
            // Made by the sender's server, which must be the one that asks, but signed by somebody else or nobody.
            let good = peer.sign(template, version);
            for mut forged in forgeries(&good, &peer, &forger) {
                let mut object = forged.to_object();
                if object["signatures"]
                    .get(peer.name().as_str())
                    .is_some_and(|s| s.get(peer.signing_key().key_id()).is_some())
                {
                    // This one would be the real signature.
                    object["signatures"][peer.name().as_str()][peer.signing_key().key_id()] = json!("AAAA");
                    forged = Pdu::from_object(object, version).expect("an event");
                }
                let call = if *kind == "knock" { "v1/send_knock".into() } else { format!("v2/send_{kind}") };
                let body = Value::Object(forged.to_object());
                let (status, answer) = peer.put_event(server.name(), &call, forged.room_id(), &forged, &body);
                assert_eq!(status, refused_with(&forged), "{kind}: {answer} {}", forged.json_str());
                assert_unheard(&server, &forged);
            }
        }
    }
}

#[test]
fn an_invite_that_its_sender_has_not_signed_is_neither_signed_nor_shown() {
    for version in VERSIONS {
        let (server, peer, forger) = (TestServer::start(), Peer::start(), Peer::start());
        let bob = server.user("bob");
        let room = FakeRoom::new(&peer, version, "invite");
        let third_party = json!({
            "membership": "invite",
            "third_party_invite": { "display_name": "b", "signed": {
                "mxid": bob.id(), "token": "t", "signatures": { "id.example": { "ed25519:0": "AAAA" } } } },
        });
        let plain = room.membership(&peer, &room.creator, bob.id(), "invite");
        let by_address = room.draft(&peer, "m.room.member", bob.id(), &room.creator, third_party);
        for event in [plain, by_address] {
            for forged in forgeries(&event, &peer, &forger) {
                let mut object = forged.to_object();
                let signed = &mut object["signatures"][peer.name().as_str()];
                if signed.get(peer.signing_key().key_id()).is_some() {
                    signed[peer.signing_key().key_id()] = json!("AAAA");
                }
                let forged = Pdu::from_object(object, event.version()).expect("an event");
                let (status, answer) =
                    peer.put_event(server.name(), "v2/invite", &room.id, &forged, &room.invite_body(&forged));
                assert_eq!(status, refused_with(&forged), "{version}: {answer} {}", forged.json_str());
            }
        }
        assert!(bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_none());
    }
}

#[test]
fn a_server_that_was_never_in_a_room_does_not_invite_itself_by_a_wrong_hash() {
    for version in ["6", "10", "11", "12"] {
        let server = TestServer::start();
        let (alice, peer) = (server.user("alice"), Peer::start());
        let mallory = peer.user("mallory");
        let room = alice.create_room_with(json!({ "room_version": version, "preset": "private_chat" }));
        let path = format!("/_matrix/client/v3/rooms/{}", segment(&room));
        let found = alice.get(&format!("{path}/state")).as_array().expect("a list").clone();
        let by_key = |kind: &str, key: &str| {
            let event = found.iter().find(|event| event["type"] == kind && event["state_key"] == key);
            event.map(|event| EventId::parse(event["event_id"].as_str().expect("an id")).expect("an id"))
        };
        let rules = doorstep::protocol::room_version::room_version(version).expect("known");
        let creator = UserId::parse(alice.id()).expect("a user");
        let content = |third_party_invite: &Value| -> Map<String, Value> {
            let content = json!({ "membership": "invite", "third_party_invite": third_party_invite });
            content.as_object().expect("an object").clone()
        };
        let signed = json!({ "signed": { "mxid": mallory, "token": "t", "signatures": {} } });
        let content_with_token = content(&signed);
        let mut wanted =
            auth_types("m.room.member", alice.id(), Some(mallory.as_str()), &content_with_token, rules);
        wanted.retain(|(kind, _)| kind != "m.room.third_party_invite");
        let auth: Vec<EventId> = wanted.iter().filter_map(|(kind, key)| by_key(kind, key)).collect();
        let last = alice.get(&format!("{path}/messages?dir=b&limit=1"))["chunk"][0]["event_id"].clone();
        let variants = [signed, json!("odd"), json!({}), json!(null), json!({ "signed": null })];
        for (number, third_party_invite) in variants.iter().enumerate() {
            let event = json!({
                "type": "m.room.member", "state_key": mallory, "sender": creator, "room_id": room,
                "content": content(third_party_invite), "origin_server_ts": crate::common::peer::now_ms(), "depth": 50,
                "prev_events": [last], "auth_events": auth,
            });
            let forged = peer.sign(event.as_object().expect("an object").clone(), rules);
            for hashes in [json!({ "sha256": "AAAA" }), json!({}), forged.to_object()["hashes"].clone()] {
                let mut object = forged.to_object();
                object.insert("hashes".into(), hashes.clone());
                let forged = Pdu::from_object(object, rules).expect("an event");
                let txn = format!("t{number}{}", hashes.to_string().len());
                let (status, answer) = peer.send_transaction(server.name(), &txn, &[&forged]);
                assert_eq!(status, 200, "{answer}");
                let kept = stored(&server, forged.event_id()).map(|event| event.status);
                assert_ne!(kept, Some(Status::Accepted), "{version} {third_party_invite} {hashes}");
                assert_eq!(alice.membership_of(&room, mallory.as_str()), None, "{version}");
            }
        }
    }
}

#[test]
fn the_answer_to_a_join_brings_no_event_in_that_its_sender_has_not_signed() {
    for version in VERSIONS {
        let (server, peer, forger) = (TestServer::start(), Peer::start(), Peer::start());
        let bob = server.user("bob");
        let mut room = FakeRoom::new(&forger, version, "public");
        // Everybody may join, but only by themselves.
        let victim = peer.user("victim");
        let join = room.membership(&forger, &victim, victim.as_str(), "join");
        for forged in forgeries(&join, &peer, &forger) {
            room.state.insert(("m.room.member".to_owned(), victim.to_string()), forged);
            forger.let_in(&room, bob.id());
            bob.join_via(room.id.as_str(), &[forger.name().as_str()]);
            assert_eq!(bob.membership_of(room.id.as_str(), victim.as_str()), None, "{version}");
            bob.leave(room.id.as_str());
        }
        room.state.remove(&("m.room.member".to_owned(), victim.to_string()));
        let join = room.membership(&peer, &victim, victim.as_str(), "join");
        room.take(join);
        forger.let_in(&room, bob.id());
        bob.join_via(room.id.as_str(), &[forger.name().as_str()]);
        let there = bob.membership_of(room.id.as_str(), victim.as_str());
        assert_eq!(there.as_deref(), Some("join"), "and one that is signed is taken");
    }
}
