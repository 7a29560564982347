//! Which rooms a list shows, and in what order.

use super::*;

#[test]
fn clients_find_out_that_there_is_sliding_sync() {
    let server = TestServer::start();
    let versions = server.user("alice").get("/_matrix/client/versions");
    assert_eq!(versions["unstable_features"]["org.matrix.simplified_msc3575"], true);
}

#[test]
fn the_first_rooms_of_a_list_are_told_with_their_names_state_and_timelines() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let quiet = alice.create_room_with(json!({ "name": "Quiet" }));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "name": "Kitchen", "topic": "Food" }));
    bob.join(&room);
    alice.send(&room, "one");
    alice.send(&room, "two");
    let wanted = json!([["m.room.create", ""], ["m.room.topic", ""], ["m.room.member", "$ME"]]);
    let answer = slide(&alice, None, &one_list(1, 1, &wanted));
    assert_eq!(answer["lists"]["all"]["count"], 2);
    assert_eq!(room_ids(&answer), [room.as_str()]);
    let told = &answer["rooms"][&room];
    assert_eq!(told["initial"], true);
    assert_eq!(told["name"], "Kitchen");
    assert!(told.get("heroes").is_none(), "a room with a name needs none (rule 9)");
    assert_eq!(bodies(told), ["two"]);
    assert_eq!(told["limited"], true, "there is more (rule 7)");
    assert_eq!(told["num_live"], 0);
    assert_eq!((&told["joined_count"], &told["invited_count"]), (&json!(2), &json!(0)));
    let expected = [("m.room.create", ""), ("m.room.member", alice.id()), ("m.room.topic", "")];
    assert_eq!(tuples(told), expected.map(|(t, k)| (t.to_owned(), k.to_owned())));
    assert!(told["timeline"][0].get("room_id").is_none());
    // The window grows: only the other room is told.
    let answer = slide(&alice, Some(&answer), &one_list(20, 1, &wanted));
    assert_eq!(room_ids(&answer), [quiet.as_str()]);
    assert_eq!(answer["rooms"][&quiet]["initial"], true);
    let answer = slide(&alice, Some(&answer), &one_list(20, 1, &wanted));
    assert_eq!(room_ids(&answer), [""; 0]);
    assert_eq!(answer["lists"]["all"]["count"], 2, "the count is in every answer");
}

#[test]
fn rule_4_lists_are_in_the_order_of_the_last_event_and_nothing_else_moves_a_room() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let rooms: Vec<String> = (0..3).map(|_| alice.create_room()).collect();
    bob.join(&rooms[0]);
    let event = bob.send(&rooms[0], "latest");
    let top = |user: &TestUser| {
        let answer = slide(user, None, &one_list(1, 1, &json!([])));
        room_ids(&answer)[0].to_owned()
    };
    assert_eq!(top(&alice), rooms[0]);
    // A state event of no weight to `bump_stamp` does move it.
    alice.set_state(&rooms[1], "m.room.topic", "", json!({ "topic": "t" }));
    assert_eq!(top(&alice), rooms[1]);
    // Receipts, account data and typing do not.
    alice.post(&room_path(&rooms[0], &format!("receipt/m.read/{}", segment(&event))), json!({}));
    alice.put(&format!("{V3}/user/{}/rooms/{}/account_data/a.b", alice.id(), rooms[0]), json!({}));
    bob.put(
        &room_path(&rooms[0], &format!("typing/{}", bob.id())),
        json!({ "typing": true, "timeout": 9000 }),
    );
    assert_eq!(top(&alice), rooms[1]);
}

#[test]
fn rule_5_the_bump_stamp_follows_messages_and_is_left_out_if_it_has_not_changed() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let body = one_list(20, 1, &json!([]));
    let first = slide(&alice, None, &body);
    let created = first["rooms"][&room]["bump_stamp"].as_i64().expect("a bump_stamp");
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "t" }));
    let second = slide(&alice, Some(&first), &body);
    assert!(second["rooms"][&room].get("bump_stamp").is_none());
    alice.send(&room, "hello");
    let third = slide(&alice, Some(&second), &body);
    assert!(third["rooms"][&room]["bump_stamp"].as_i64().expect("a new one") > created);
}

#[test]
fn rule_6_a_room_that_a_message_brings_into_the_window_is_new_and_its_message_live() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (old, new) = (alice.create_room(), alice.create_room());
    bob.join(&old);
    alice.send(&new, "m");
    let body = one_list(1, 3, &json!([]));
    let first = slide(&alice, None, &body);
    assert_eq!(room_ids(&first), [new.as_str()]);
    bob.send(&old, "look here");
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(room_ids(&second), [old.as_str()]);
    let told = &second["rooms"][&old];
    assert_eq!((&told["initial"], &told["num_live"]), (&json!(true), &json!(1)));
    assert_eq!(events(told, "timeline").len(), 3);
    // It is known from now on.
    bob.send(&old, "again");
    let third = slide(&alice, Some(&second), &body);
    assert!(third["rooms"][&old].get("initial").is_none());
    assert_eq!(bodies(&third["rooms"][&old]), ["again"]);
}

#[test]
fn rule_10_counts_and_is_dm_are_told_when_they_change() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let body = one_list(20, 1, &json!([]));
    let first = slide(&alice, None, &body);
    assert_eq!(first["rooms"][&room]["joined_count"], 1);
    assert!(first["rooms"][&room].get("is_dm").is_none());
    alice.invite(&room, bob.id());
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(second["rooms"][&room]["invited_count"], 1);
    alice.send(&room, "m");
    let third = slide(&alice, Some(&second), &body);
    assert!(third["rooms"][&room].get("joined_count").is_none());
    let direct = format!("{V3}/user/{}/account_data/m.direct", alice.id());
    alice.put(&direct, json!({ bob.id(): [room] }));
    let fourth = slide(&alice, Some(&third), &body);
    assert_eq!(fourth["rooms"][&room]["is_dm"], true);
    alice.put(&direct, json!({}));
    let fifth = slide(&alice, Some(&fourth), &body);
    assert_eq!(fifth["rooms"][&room]["is_dm"], false);
}

#[test]
fn rule_13_what_changed_out_of_the_window_is_told_when_the_room_is_back_in_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (one, two) = (alice.create_room(), alice.create_room());
    let first = slide(&alice, None, &one_list(2, 5, &json!([["m.room.topic", ""]])));
    assert_eq!(room_ids(&first).len(), 2);
    // The window is smaller now; the room moves within the list without being shown.
    alice.set_state(&one, "m.room.topic", "", json!({ "topic": "unseen" }));
    alice.send(&one, "unseen");
    alice.send(&two, "top");
    let small = one_list(1, 5, &json!([["m.room.topic", ""]]));
    let second = slide(&alice, Some(&first), &small);
    assert_eq!(room_ids(&second), [two.as_str()]);
    let third = slide(&alice, Some(&second), &small);
    // It comes back because the other one goes.
    alice.leave(&two);
    let fourth = slide(&alice, Some(&third), &small);
    let told = &fourth["rooms"][&one];
    assert_eq!(bodies(told), ["unseen"]);
    assert!(told.get("initial").is_none());
    assert_eq!(tuples(told), [("m.room.topic".to_owned(), String::new())]);
}

#[test]
fn rule_15_filters_choose_the_rooms_of_a_list() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let plain = alice.create_room();
    let space = alice.create_room_with(json!({ "creation_content": { "type": "m.space" } }));
    let secret = alice
        .create_room_with(json!({ "initial_state": [{ "type": "m.room.encryption", "state_key": "",
        "content": { "algorithm": "m.megolm.v1.aes-sha2" } }] }));
    let invite = bob.create_room_with(json!({ "invite": [alice.id()] }));
    alice.put(&format!("{V3}/user/{}/account_data/m.direct", alice.id()), json!({ bob.id(): [secret] }));
    alice.put(&format!("{V3}/user/{}/rooms/{plain}/tags/m.favourite", alice.id()), json!({ "order": 0.5 }));
    alice.set_state(&space, "m.space.child", &secret, json!({ "via": [server.name()] }));
    alice.set_state(&space, "m.space.child", &plain, json!({}));
    let cases: [(Value, Vec<&String>); 14] = [
        (json!({ "is_dm": true }), vec![&secret]),
        (json!({ "is_dm": false }), vec![&plain, &space, &invite]),
        (json!({ "is_encrypted": true }), vec![&secret]),
        (json!({ "is_encrypted": false }), vec![&plain, &space, &invite]),
        (json!({ "is_invite": true }), vec![&invite]),
        (json!({ "is_invite": false }), vec![&plain, &space, &secret]),
        (json!({ "room_types": ["m.space"] }), vec![&space]),
        (json!({ "room_types": [null] }), vec![&plain, &secret, &invite]),
        (json!({ "not_room_types": ["m.space"] }), vec![&plain, &secret, &invite]),
        (json!({ "room_types": ["m.space", null], "not_room_types": [null] }), vec![&space]),
        (json!({ "tags": ["m.favourite"] }), vec![&plain]),
        (json!({ "not_tags": ["m.favourite"], "is_invite": false }), vec![&space, &secret]),
        (json!({ "spaces": [space] }), vec![&secret]),
        (json!({ "spaces": ["!unknown:nowhere"], "room_name_like": "x" }), vec![]),
    ];
    for (filters, mut expected) in cases {
        let mut body = one_list(20, 1, &json!([]));
        body["lists"]["all"]["filters"] = filters.clone();
        let answer = slide(&alice, None, &body);
        expected.sort();
        assert_eq!(room_ids(&answer), expected, "{filters}");
        assert_eq!(answer["lists"]["all"]["count"], expected.len(), "{filters}");
    }
    // A room that becomes another one to a filter comes in, and goes.
    let mut body = one_list(20, 1, &json!([]));
    body["lists"]["all"]["filters"] = json!({ "is_encrypted": true });
    let first = slide(&alice, None, &body);
    alice.set_state(&plain, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    let second = slide(&alice, Some(&first), &body);
    assert_eq!((room_ids(&second), &second["lists"]["all"]["count"]), (vec![plain.as_str()], &json!(2)));
}

#[test]
fn rule_15_a_room_that_comes_into_a_space_later_is_told() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let space = alice.create_room_with(json!({ "creation_content": { "type": "m.space" } }));
    let (first_child, second_child) = (alice.create_room(), alice.create_room());
    let child = |room: &str, content: Value| drop(alice.set_state(&space, "m.space.child", room, content));
    child(&first_child, json!({ "via": [server.name()] }));
    let mut body = one_list(20, 1, &json!([]));
    body["lists"]["all"]["filters"] = json!({ "spaces": [space] });
    let first = slide(&alice, None, &body);
    assert_eq!(room_ids(&first), [first_child.as_str()]);
    child(&second_child, json!({ "via": [server.name()] }));
    let second = slide(&alice, Some(&first), &body);
    let expected = (vec![second_child.as_str()], &json!(2));
    assert_eq!((room_ids(&second), &second["lists"]["all"]["count"]), expected);
    assert_eq!(second["rooms"][&second_child]["initial"], true);
    child(&first_child, json!({}));
    let third = slide(&alice, Some(&second), &body);
    assert_eq!((room_ids(&third), &third["lists"]["all"]["count"]), (vec![], &json!(1)));
}

#[test]
fn several_ranges_of_one_list_show_the_rooms_at_their_places() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let mut rooms: Vec<String> = (0..6).map(|_| alice.create_room()).collect();
    rooms.reverse();
    let mut body = one_list(1, 1, &json!([]));
    body["lists"]["all"]["ranges"] = json!([[4, 5], [0, 0], [2, 2]]);
    let answer = slide(&alice, None, &body);
    let mut expected = [0, 2, 4, 5].map(|place: usize| rooms[place].as_str());
    expected.sort_unstable();
    assert_eq!(room_ids(&answer), expected);
    assert_eq!(answer["lists"]["all"]["count"], 6);
}
