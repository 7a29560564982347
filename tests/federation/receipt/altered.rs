//! Events that a relay had altered, and their true copies.

use super::*;

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
    let keys = |_: &str, _: &str| Some(KeyAt::stated(key, i64::MAX));
    let outlier = verify::check_parsed(&altered(&topic), &keys).expect("signed");
    assert!(!outlier.is_whole());
    scene
        .server
        .homeserver()
        .store
        .write(move |tx| {
            let room = tx.known_room(outlier.room_id())?.key;
            tx.import_events(room, doorstep::internals::StagedEvents::default(), &[(outlier, false)])
                .map(drop)
        })
        .expect("stored");
    scene.send("1", &[&topic]);
    assert_eq!(scene.state_content("m.room.topic", ""), Some(json!({ "topic": "true" })));
}
