//! What is rejected, soft-failed, and judged again.

use super::*;

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

#[test]
fn what_was_rejected_and_is_part_of_the_room_that_one_comes_into_again_is_accepted() {
    let mut scene = Scene::new("11");
    let (user, creator, start) = (scene.peer.user("member"), scene.room.creator.clone(), scene.last.clone());
    let id = user.as_str().to_owned();
    let member = |scene: &mut Scene, prev: &EventId, sender: &UserId, what: &str| {
        scene.event(&[prev], sender, ("m.room.member", Some(&id)), json!({ "membership": what }))
    };
    let ban = member(&mut scene, &start, &creator, "ban");
    let join = member(&mut scene, ban.event_id(), &user, "join");
    assert!(scene.send("1", &[&ban, &join])[join.event_id().as_str()]["error"].is_string());
    assert_eq!(scene.status(&join), Some(Status::Rejected));
    scene.room.state.insert(("m.room.member".to_owned(), id.clone()), join.clone());
    let words = scene.message_after(&[join.event_id()], &user, "of a banned user");
    scene.send("words", &[&words]);
    assert_eq!(scene.status(&words), Some(Status::Rejected));
    scene.peer.take_transactions();
    scene.alice.leave(scene.room.id.as_str());
    // The room is of another opinion, and nobody but the room says any more what it is like.
    scene.room.state.remove(&("m.room.member".to_owned(), scene.alice.id().to_owned()));
    scene.room.last = join.event_id().clone();
    scene.peer.let_in(&scene.room, scene.alice.id());
    // A room that cannot be entered after all is believed in nothing.
    scene.peer.let_leave(&scene.room, scene.alice.id());
    let mut twice = scene.room.join_answer();
    for n in 1..=2 {
        let event = scene.room.draft(&scene.peer, "org.example.twice", "", &creator, json!({ "n": n }));
        twice["state"].as_array_mut().expect("a list").push(Value::Object(event.to_object()));
    }
    scene.peer.answer_json("send_join", 200, twice);
    let (room, via) = (scene.room.id.to_string(), scene.peer.name().to_string());
    assert_eq!(crate::common::client::join(&scene.alice, &room, Some(&via)).0, 502);
    assert_eq!(scene.status(&join), Some(Status::Rejected));
    scene.peer.wait_for("send_leave");
    let mut answer = scene.room.join_answer();
    answer["auth_chain"].as_array_mut().expect("a list").push(Value::Object(words.to_object()));
    scene.peer.answer_json("send_join", 200, answer);
    scene.alice.join_via(&room, &[&via]);
    assert_eq!(scene.status(&join), Some(Status::Accepted));
    assert_eq!(scene.status(&words), Some(Status::Rejected));
    let entered = heads(&scene.server, &scene.room);
    let message = scene.message_after(&[&entered[0]], &user, "here I am");
    assert_eq!(scene.send("2", &[&message])[message.event_id().as_str()], json!({}));
    assert!(accepted(&scene, &message));
    assert_eq!(scene.membership(&user).as_deref(), Some("join"));
}

#[test]
fn a_redaction_with_a_state_key_is_one_like_any_other() {
    for version in ["10", "11", "12"] {
        let mut scene = Scene::new(version);
        let (creator, member) = (scene.room.creator.clone(), scene.peer.user("member"));
        let mut levels = json!({ "events": { "m.room.redaction": 0 }, "users": {} });
        if version != "12" {
            levels["users"][creator.as_str()] = 100.into();
        }
        let levels = scene.set_state("m.room.power_levels", "", levels);
        let join = scene.join(&member);
        let of_creator = scene.message("of the creator");
        scene.send("1", &[&levels, &join, &of_creator]);
        let room = scene.room.id.to_string();
        let of_alice = scene.alice.send(&room, "of alice");
        let of_alice = EventId::parse(&of_alice).expect("an event id");
        let told = |user: &TestUser, target: &EventId| {
            let lists = [
                user.initial_sync(),
                user.get(&room_path(&room, "state")),
                user.get(&room_path(&room, "messages?dir=b&limit=20")),
            ];
            lists.map(|list| list.to_string().contains(&format!("\"redacts\":\"{target}\"")))
        };
        // Whoever may send redactions, but not take back what users of other servers have said: nobody is told.
        redact(&mut scene, (&member, member.as_str()), &of_alice);
        assert_eq!(bodies(&scene.alice, &room), ["of the creator", "of alice"], "{version}");
        assert_eq!(told(&scene.alice, &of_alice), [false; 3], "{version}");
        assert_eq!(scene.alice.state(&room, "m.room.redaction", member.as_str()), None, "{version}");
        // What another user of their server has said: of that their server knows what they may.
        redact(&mut scene, (&member, ""), of_creator.event_id());
        assert_eq!(bodies(&scene.alice, &room), ["of alice"], "{version}");
        assert_eq!(told(&scene.alice, of_creator.event_id()), [true; 3], "{version}");
        // And by who has the power.
        redact(&mut scene, (&creator, creator.as_str()), &of_alice);
        assert_eq!(bodies(&scene.alice, &room), [""; 0], "{version}");
        assert_eq!(told(&scene.alice, &of_alice), [true; 3], "{version}");
    }
}

/// A redaction at the room's end, with a state key, which is accepted.
fn redact(scene: &mut Scene, (sender, state_key): (&UserId, &str), target: &EventId) {
    let (kind, last, version) =
        (("m.room.redaction", Some(state_key)), scene.last.clone(), scene.room.version);
    let mut event = scene.event(&[&last], sender, kind, json!({ "redacts": target }));
    if !version.redacts_in_content {
        let mut object = event.to_object();
        object.retain(|key, _| !matches!(key.as_str(), "content" | "hashes" | "signatures"));
        object.extend([("content".to_owned(), json!({})), ("redacts".to_owned(), json!(target))]);
        event = scene.peer.sign(object, version);
    }
    scene.last = event.event_id().clone();
    assert_eq!(scene.send(event.event_id().as_str(), &[&event])[event.event_id().as_str()], json!({}));
    assert!(accepted(scene, &event));
}

#[test]
fn a_mistyped_id_in_the_power_levels_loses_neither_them_nor_what_rests_on_them() {
    for version in ["6", "11", "12"] {
        let mut scene = Scene::new(version);
        let mut users = json!({ "@mod:example.org ": 50, "@a:ex_am.org": 1, "@b:": 1 });
        if version != "12" {
            users[scene.room.creator.as_str()] = 100.into();
        }
        let before = scene.room.state[&("m.room.power_levels".to_owned(), String::new())].clone();
        let levels = scene.set_state("m.room.power_levels", "", json!({ "users": users }));
        let message = scene.message("after it");
        let said = scene.send("1", &[&levels, &message]);
        assert_eq!(said[message.event_id().as_str()], json!({}), "{version}: {said}");
        assert!(accepted(&scene, &levels) && accepted(&scene, &message), "{version}");
        // So it is for who comes in from elsewhere.
        let newcomer = TestServer::start();
        let bob = newcomer.user("bob");
        scene.room.last = scene.last.clone();
        scene.peer.let_in(&scene.room, bob.id());
        let mut answer = scene.room.join_answer();
        answer["auth_chain"].as_array_mut().expect("a list").push(Value::Object(before.to_object()));
        scene.peer.answer_json("send_join", 200, answer);
        bob.join_via(scene.room.id.as_str(), &[scene.peer.name().as_str()]);
        let seen = bob.state(scene.room.id.as_str(), "m.room.power_levels", "").expect("levels");
        assert_eq!(seen["users"]["@mod:example.org "], 50, "{version}");
    }
}

#[test]
fn before_version_10_a_room_whose_power_levels_have_an_empty_list_of_events_is_still_come_into() {
    for version in ["5", "9"] {
        let mut scene = Scene::new(version);
        let users = json!({ scene.room.creator.as_str(): 100 });
        let levels = scene.set_state("m.room.power_levels", "", json!({ "users": users, "events": [] }));
        scene.send("1", &[&levels]);
        assert!(accepted(&scene, &levels), "{version}");
        let user = scene.peer.user("late");
        let join = scene.join(&user);
        scene.send("2", &[&join]);
        assert!(accepted(&scene, &join), "{version}");
    }
}
