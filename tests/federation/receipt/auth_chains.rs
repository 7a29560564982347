//! Auth events and states that have to be fetched.

use super::*;

#[test]
fn an_event_is_not_rejected_by_a_state_of_which_parts_could_not_be_had() {
    let mut scene = Scene::new("12");
    let user = scene.peer.user("late");
    let lost = scene.message("lost");
    // The auth events can be had, the rest of the state cannot: without the join the message would be rejected (5).
    let (last, id) = (scene.last.clone(), user.to_string());
    let join = scene.event(&[&last], &user, ("m.room.member", Some(&id)), json!({ "membership": "join" }));
    scene.room.state.insert(("m.room.member".into(), id.clone()), join.clone());
    let rejoin = json!({ "membership": "join", "displayname": "again" });
    let rejoin = scene.event(&[join.event_id()], &user, ("m.room.member", Some(&id)), rejoin);
    scene.room.state.insert(("m.room.member".into(), id), rejoin.clone());
    let mut ids: Vec<EventId> = scene.room.state.values().map(|pdu| pdu.event_id().clone()).collect();
    ids.retain(|id| id != join.event_id());
    let message = scene.message_after(&[rejoin.event_id()], &user, "hello");
    scene.peer.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
    let chain: Vec<Pdu> = scene.room.state.values().filter(|p| p.sender() != &user).cloned().collect();
    scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&chain) }));
    assert_eq!(scene.send("1", &[&message])[message.event_id().as_str()], json!({}));
    assert!(scene.status(&message).is_none());
    scene.peer.serve_events(&[lost, join, rejoin, message.clone()], 20);
    scene.server.advance(Duration::from_secs(60));
    wait_until("the message is accepted", || accepted(&scene, &message));
}

/// Answers `/event/` with these.
fn give_events(peer: &Peer, events: &[Pdu]) {
    let by_id: Vec<(String, Value)> =
        events.iter().map(|p| (segment(p.event_id().as_str()), Value::Object(p.to_object()))).collect();
    let name = peer.name().clone();
    peer.answer("/event/", move |asked| match by_id.iter().find(|(id, _)| asked.target.ends_with(id)) {
        Some((_, event)) => Reply::json(&json!({ "origin": name, "origin_server_ts": 0, "pdus": [event] })),
        None => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
    });
}

fn give_chain(peer: &Peer, events: &[Pdu]) {
    peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(events) }));
}

fn give_state(scene: &Scene, chain: &[Pdu], whole: bool) {
    let ids = |events: &mut dyn Iterator<Item = &Pdu>| -> Vec<EventId> {
        events.map(|pdu| pdu.event_id().clone()).collect()
    };
    let state: Vec<Pdu> = scene.room.state.values().cloned().collect();
    let (state_ids, chain_ids) = (ids(&mut state.iter()), ids(&mut chain.iter()));
    scene.peer.answer_json("/state_ids/", 200, json!({ "pdu_ids": state_ids, "auth_chain_ids": chain_ids }));
    if whole {
        let answer = json!({ "pdus": objects(&state), "auth_chain": objects(chain) });
        scene.peer.answer_json("/state/", 200, answer);
    }
}

#[test]
fn an_auth_chain_is_had_in_every_way_that_somebody_gives_it() {
    type Give = fn(&Scene, &Peer, &[Pdu]);
    let ways: [(&str, Give); 9] = [
        ("event_auth", |scene, _, chain| give_chain(&scene.peer, chain)),
        ("state_ids and state", |scene, _, chain| give_state(scene, chain, true)),
        ("state_ids and event", |scene, _, chain| {
            give_state(scene, chain, false);
            give_events(&scene.peer, chain);
        }),
        ("event", |scene, _, chain| give_events(&scene.peer, chain)),
        ("get_missing_events", |scene, _, chain| {
            scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": objects(chain) }));
        }),
        ("event_auth with a hole, and event", |scene, _, chain| {
            give_chain(&scene.peer, &[&chain[..20], &chain[21..]].concat());
            give_events(&scene.peer, &chain[20..21]);
        }),
        ("event_auth with a hole, and state", |scene, _, chain| {
            give_chain(&scene.peer, &[&chain[..20], &chain[21..]].concat());
            give_state(scene, chain, true);
        }),
        ("two servers, a part each", |scene, other, chain| {
            give_chain(&scene.peer, &[&chain[..20], &chain[21..]].concat());
            give_events(other, &chain[20..21]);
        }),
        ("another server that does not know the event", |scene, other, chain| {
            let (last, answer) =
                (chain[44].event_id().clone(), json!({ "auth_chain": objects(&chain[..44]) }));
            other.answer("/event_auth/", move |asked| {
                match asked.target.ends_with(&segment(last.as_str())) {
                    true => Reply::json(&answer),
                    false => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
                }
            });
            give_events(other, &chain[44..]);
            give_state(scene, &[], false);
        }),
    ];
    for (what, give) in ways {
        let mut scene = Scene::new("10");
        let other = resident(&mut scene, "other");
        let (before, creator) = (scene.last.clone(), scene.room.creator.clone());
        let mut end = before.clone();
        let chain: Vec<Pdu> = (0..45)
            .map(|n| {
                let content = json!({ "users": { creator.as_str(): 100 }, "n": n });
                let levels = scene.event(&[&end], &creator, ("m.room.power_levels", Some("")), content);
                scene.room.state.insert(("m.room.power_levels".into(), String::new()), levels.clone());
                end = levels.event_id().clone();
                levels
            })
            .collect();
        // It follows what we know, and the end of the branch of which we know nothing where that is to come along.
        let branch = if what == "get_missing_events" { &end } else { &before };
        let message = scene.message_after(&[branch], &creator, "hello");
        give(&scene, &other, &chain);
        assert_eq!(scene.send("1", &[&message])[message.event_id().as_str()], json!({}), "{what}");
        wait_until(&format!("it is taken in by {what}"), || accepted(&scene, &message));
        wait_until(&format!("nothing waits any more by {what}"), || waiting(&scene) == 0);
    }
}

/// Power levels that each rest on those before, so many, which nobody has been sent.
fn chain_of_levels(scene: &mut Scene, count: usize) -> Vec<Pdu> {
    let (mut end, creator) = (scene.last.clone(), scene.room.creator.clone());
    let next = |n| {
        let content = json!({ "users": { creator.as_str(): 100 }, "n": n });
        let levels = scene.event(&[&end], &creator, ("m.room.power_levels", Some("")), content);
        scene.room.state.insert(("m.room.power_levels".into(), String::new()), levels.clone());
        end = levels.event_id().clone();
        levels
    };
    (0..count).map(next).collect()
}

#[test]
fn an_auth_chain_without_an_end_is_not_followed_for_ever() {
    let mut scene = Scene::new("10");
    let bystander = resident(&mut scene, "bystander");
    let (before, creator) = (scene.last.clone(), scene.room.creator.clone());
    let chain = chain_of_levels(&mut scene, 700);
    let message = scene.message_after(&[&before], &creator, "hello");
    give_events(&scene.peer, &chain[100..]);
    scene.send("1", &[&message]);
    wait_until("it is put off", || {
        let hs = scene.server.homeserver();
        let next = hs.store.read(|db| db.next_pending_due()).expect("the database reads");
        next.is_some_and(|due| due > hs.clock.now_ms())
    });
    assert!(scene.status(&message).is_none());
    let asked = (scene.peer.asked("/event/").len(), bystander.asked("/").len());
    assert!(asked.0 <= 2 * 500 && asked.1 <= 50, "{asked:?}");
    assert!(stored(&scene.server, chain[699].event_id()).is_none(), "nothing can be said of it");
}

#[test]
fn what_an_attempt_has_fetched_of_an_auth_chain_is_not_fetched_again_by_the_next() {
    let mut scene = Scene::new("10");
    let (before, creator) = (scene.last.clone(), scene.room.creator.clone());
    let chain = chain_of_levels(&mut scene, 45);
    let message = scene.message_after(&[&before], &creator, "hello");
    give_events(&scene.peer, &chain[20..]);
    assert_eq!(scene.send("1", &[&message])[message.event_id().as_str()], json!({}));
    assert!(scene.status(&message).is_none());
    give_events(&scene.peer, &chain);
    scene.server.advance(Duration::from_secs(60));
    wait_until("it is taken in", || accepted(&scene, &message));
    let asked = scene.peer.asked("/event/");
    for event in &chain[20..] {
        let id = segment(event.event_id().as_str());
        assert_eq!(asked.iter().filter(|asked| asked.target.ends_with(&id)).count(), 1);
    }
}
