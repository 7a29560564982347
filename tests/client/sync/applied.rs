//! `state`, and then the timeline: what a client makes of them is the state of the room, whatever is not in the timeline.

use super::*;

/// The state that a client has once it has applied an answer, as ids by type and state key.
fn applied(room: &Value) -> Vec<(String, String)> {
    let mut state = std::collections::BTreeMap::new();
    let sections = [&room["state"]["events"], &room["timeline"]["events"]];
    for event in sections.iter().flat_map(|events| events.as_array().into_iter().flatten()) {
        if let Some(state_key) = event["state_key"].as_str() {
            state.insert(format!("{}/{state_key}", event["type"]), event["event_id"].to_string());
        }
    }
    state.into_iter().collect()
}

/// The room's state as it is.
fn present(user: &TestUser, room: &str) -> Vec<(String, String)> {
    let events = user.get(&room_path(room, "state"));
    applied(&json!({ "state": { "events": events } }))
}

/// What a client that applies the answers to all of these requests makes of the room is its state.
#[track_caller]
fn assert_applied(user: &TestUser, room: &str, requests: &[&str]) {
    let truth = present(user, room);
    for request in requests {
        let answer = sync(user, request);
        assert_eq!(applied(&answer["rooms"]["join"][room]), truth, "{request}: {answer}");
    }
}

#[test]
fn who_was_banned_where_a_newcomer_may_not_look_is_not_joined_to_them() {
    let server = TestServer::start();
    let [alice, bob, mallory] = ["alice", "bob", "mallory"].map(|name| server.user(name));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.invite(&room, mallory.id());
    mallory.join(&room);
    let hidden = json!({ "history_visibility": "invited" });
    alice.set_state(&room, "m.room.history_visibility", "", hidden);
    alice.post(&room_path(&room, "ban"), json!({ "user_id": mallory.id() }));
    alice.invite(&room, bob.id());
    alice.send(&room, "one is here");
    let since = next(&sync(&bob, ""));
    bob.join(&room);
    let small = filter(&json!({ "room": { "timeline": { "limit": 2 } } }));
    assert_applied(&bob, &room, &[&since, "", &small]);
    // Lazily, of the members at least what is told is true.
    let lazy = json!({ "room": { "timeline": { "limit": 20 }, "state": { "lazy_load_members": true } } });
    let answer = sync(&bob, &filter(&lazy));
    let truth = present(&bob, &room);
    for told in applied(&answer["rooms"]["join"][&room]) {
        assert!(truth.contains(&told), "{told:?} in {answer}");
    }
    // What came later is told, and all that is before is found from there.
    let all = bob.get(&room_path(&room, "messages?dir=f&limit=50"));
    let all = all["chunk"].as_array().expect("a page");
    for request in ["", &small] {
        let answer = sync(&bob, request);
        let timeline = &answer["rooms"]["join"][&room]["timeline"];
        assert_eq!((bodies(timeline), &timeline["limited"]), (vec!["one is here"], &json!(true)));
        let from = segment(timeline["prev_batch"].as_str().expect("prev_batch"));
        let earlier = bob.get(&room_path(&room, &format!("messages?dir=b&limit=50&from={from}")));
        let earlier = earlier["chunk"].as_array().expect("a page").iter().rev();
        let told: Vec<&Value> = earlier.chain(timeline["events"].as_array().expect("events")).collect();
        let ids = |event: &Value| event["event_id"].to_string();
        assert!(told.into_iter().map(ids).eq(all.iter().map(ids)), "{timeline}");
    }
}

#[test]
fn who_left_a_room_has_its_state_of_then_also_where_they_might_not_look() {
    let server = TestServer::start();
    let [alice, bob] = ["alice", "bob"].map(|name| server.user(name));
    let room = alice.create_room_with(json!({ "preset": "private_chat", "name": "before" }));
    let hidden = json!({ "history_visibility": "joined" });
    alice.set_state(&room, "m.room.history_visibility", "", hidden);
    alice.set_state(&room, "m.room.name", "", json!({ "name": "then" }));
    alice.invite(&room, bob.id());
    let since = next(&sync(&bob, ""));
    bob.join(&room);
    bob.leave(&room);
    alice.set_state(&room, "m.room.name", "", json!({ "name": "now" }));
    let truth = present(&bob, &room);
    let left = filter(&json!({ "room": { "include_leave": true } }));
    for request in [since.as_str(), left.as_str()] {
        let answer = sync(&bob, request);
        assert_eq!(applied(&answer["rooms"]["leave"][&room]), truth, "{request}: {answer}");
    }
}

#[test]
fn a_filter_that_lets_through_what_was_replaced_and_not_what_replaced_it_leaves_nobody_with_the_old() {
    let server = TestServer::start();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let levels = json!({ "users": { carol.id(): 100 } });
    let room =
        alice.create_room_with(json!({ "preset": "public_chat", "power_level_content_override": levels }));
    bob.join(&room);
    carol.join(&room);
    let since = next(&sync(&bob, ""));
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "old" }));
    alice.send(&room, "before");
    carol.set_state(&room, "m.room.topic", "", json!({ "topic": "new" }));
    alice.send(&room, "after");
    let without = filter(&json!({ "room": { "timeline": { "not_senders": [carol.id()] } } }));
    assert_applied(&bob, &room, &["", &without]);
    let answer = sync(&bob, &format!("{since}&{without}"));
    let told = &answer["rooms"]["join"][&room];
    let topic = |room: &Value| {
        applied(room).into_iter().find(|(of, _)| of.contains("topic")).map(|(_, event_id)| event_id)
    };
    assert_eq!(topic(told), topic(&json!({ "state": { "events": bob.get(&room_path(&room, "state")) } })));
    assert_eq!(types(&told["timeline"]), ["m.room.message", "m.room.message"]);
    assert_eq!(bodies(&told["timeline"]), ["before", "after"]);
    assert_eq!(told["timeline"]["limited"], false);
    // Who reads the state after the timeline from nowhere else may have all of it.
    let answer = sync(&bob, &format!("{since}&{without}&use_state_after=true"));
    let timeline = &answer["rooms"]["join"][&room]["timeline"];
    assert_eq!(types(timeline), ["m.room.topic", "m.room.message", "m.room.message"]);
    assert_eq!(timeline["limited"], false);
}
