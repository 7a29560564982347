//! What is told of a room that the user is in.

use super::*;

#[test]
fn rule_7_a_gap_between_what_the_client_has_and_the_timeline_is_told() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let body = one_list(20, 2, &json!([]));
    let first = slide(&alice, None, &body);
    alice.send(&room, "1");
    alice.send(&room, "2");
    let second = slide(&alice, Some(&first), &body);
    assert!(second["rooms"][&room].get("limited").is_none());
    for n in 3..6 {
        alice.send(&room, &n.to_string());
    }
    let third = slide(&alice, Some(&second), &body);
    let told = &third["rooms"][&room];
    assert_eq!((bodies(told), &told["limited"]), (vec!["4", "5"], &json!(true)));
    // What is missing is where `prev_batch` says, and the token itself is a place in the room's history.
    let messages = |from: &str| alice.get(&room_path(&room, &format!("messages?dir=b&limit=1&from={from}")));
    let gap = messages(told["prev_batch"].as_str().unwrap());
    assert_eq!(gap["chunk"][0]["content"]["body"], "3");
    let last = messages(third["pos"].as_str().unwrap());
    assert_eq!(last["chunk"][0]["content"]["body"], "5");
}

#[test]
fn rule_8_members_come_as_they_are_needed_and_only_once() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let others: Vec<TestUser> = ["bob", "carol", "dave"].map(|name| server.user(name)).into();
    let room = alice.create_room();
    others.iter().for_each(|user| drop(user.join(&room)));
    others[0].send(&room, "hello");
    let wanted = json!([["m.room.member", "$LAZY"], ["m.room.member", "$ME"]]);
    let body = one_list(20, 1, &wanted);
    let first = slide(&alice, None, &body);
    assert_eq!(members(&first["rooms"][&room]), [alice.id(), others[0].id()]);
    others[0].send(&room, "again");
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(members(&second["rooms"][&room]), [""; 0], "the client has it");
    others[1].send(&room, "me too");
    let third = slide(&alice, Some(&second), &body);
    assert_eq!(members(&third["rooms"][&room]), [others[1].id()]);
    // Without a gap every change of a member is told: also of one who says nothing.
    let path = format!("{V3}/profile/{}/displayname", others[2].id());
    others[2].put(&path, json!({ "displayname": "D" }));
    let fourth = slide(&alice, Some(&third), &body);
    assert_eq!(members(&fourth["rooms"][&room]), [others[2].id()]);
    // With a gap the client forgets the members, and is told anew of those it needs.
    for text in ["1", "2"] {
        others[0].send(&room, text);
    }
    let fifth = slide(&alice, Some(&fourth), &body);
    assert_eq!(fifth["rooms"][&room]["limited"], true);
    assert_eq!(members(&fifth["rooms"][&room]), [others[0].id()]);
    // The target of a member event in the timeline is one that is needed.
    alice.act_on("kick", &room, others[1].id());
    let sixth = slide(&alice, Some(&fifth), &body);
    assert_eq!(members(&sixth["rooms"][&room]), [alice.id(), others[1].id()]);
}

#[test]
fn rule_9_a_room_without_a_name_has_heroes_and_never_the_reader() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    for n in 0..6 {
        let user = server.user(&format!("u{n}"));
        user.put(
            &format!("{V3}/profile/{}/displayname", user.id()),
            json!({ "displayname": format!("U{n}") }),
        );
        user.join(&room);
    }
    let body = one_list(20, 1, &json!([]));
    let first = slide(&alice, None, &body);
    let heroes = first["rooms"][&room]["heroes"].as_array().expect("heroes");
    let names: Vec<_> = heroes.iter().map(|hero| hero["displayname"].as_str().expect("a name")).collect();
    assert_eq!(names, ["U0", "U1", "U2", "U3", "U4"]);
    assert!(heroes.iter().all(|hero| hero["user_id"] != alice.id() && hero.get("avatar_url").is_none()));
    // A name of the wrong type is none; one that is removed brings the heroes back.
    alice.set_state(&room, "m.room.name", "", json!({ "name": ["no", "text"] }));
    let second = slide(&alice, Some(&first), &body);
    assert!(second["rooms"][&room].get("name").is_none());
    alice.set_state(&room, "m.room.name", "", json!({ "name": "Named" }));
    let third = slide(&alice, Some(&second), &body);
    assert_eq!(third["rooms"][&room]["name"], "Named");
    assert!(third["rooms"][&room].get("heroes").is_none());
    alice.set_state(&room, "m.room.name", "", json!({}));
    let fourth = slide(&alice, Some(&third), &body);
    assert_eq!(fourth["rooms"][&room]["heroes"].as_array().map(Vec::len), Some(5));
}

#[test]
fn rule_12_state_that_changed_is_in_required_state_and_not_only_in_the_timeline() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let body = one_list(20, 5, &json!([["m.room.topic", ""], ["org.example.thing", "*"]]));
    let first = slide(&alice, None, &body);
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "t" }));
    alice.set_state(&room, "org.example.thing", "a", json!({ "n": 1 }));
    alice.set_state(&room, "org.example.other", "a", json!({ "n": 1 }));
    for n in 0..6 {
        alice.send(&room, &n.to_string());
    }
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(second["rooms"][&room]["limited"], true);
    let expected = [("m.room.topic", ""), ("org.example.thing", "a")];
    assert_eq!(tuples(&second["rooms"][&room]), expected.map(|(t, k)| (t.to_owned(), k.to_owned())));
}

#[test]
fn rule_12_state_that_was_redacted_is_told_again_also_where_the_redaction_is_not() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.put(&format!("{V3}/profile/{}/displayname", bob.id()), json!({ "displayname": "bad word" }));
    let members = alice.get(&room_path(&room, "members"));
    let mut members = members["chunk"].as_array().expect("members").iter();
    let of_bob = members.find(|event| event["state_key"] == bob.id()).expect("bob's")["event_id"].clone();
    let name = alice.set_state(&room, "m.room.name", "", json!({ "name": "bad word" }));
    let avatar = alice.set_state(&room, "m.room.avatar", "", json!({ "url": "mxc://bad/word" }));
    let body = one_list(20, 1, &json!([["m.room.name", ""], ["m.room.member", "*"]]));
    let first = slide(&alice, None, &body);
    let told = &first["rooms"][&room];
    assert_eq!((&told["name"], &told["avatar"]), (&json!("bad word"), &json!("mxc://bad/word")));
    for event in [name.as_str(), avatar.as_str(), of_bob.as_str().expect("an id")] {
        alice.put(&room_path(&room, &format!("redact/{}/{}", segment(event), &event[1..])), json!({}));
    }
    alice.send(&room, "one");
    let second = slide(&alice, Some(&first), &body);
    let told = &second["rooms"][&room];
    assert_eq!(bodies(told), ["one"], "the timeline has no redaction");
    let member = "m.room.member".to_owned();
    assert_eq!(tuples(told), [(member, bob.id().to_owned()), ("m.room.name".to_owned(), String::new())]);
    assert!(!second.to_string().contains("word"), "{second}");
    assert_eq!(told["heroes"], json!([{ "user_id": bob.id() }]));
    assert_eq!((told.get("name"), told.get("avatar")), (None, None));
    // Once.
    alice.send(&room, "two");
    let third = slide(&alice, Some(&second), &body);
    assert_eq!(tuples(&third["rooms"][&room]), []);
}

#[test]
fn all_state_may_be_wanted_with_members_only_as_they_are_needed() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    alice.send(&room, "m");
    let all = slide(&alice, None, &one_list(1, 1, &json!([["*", "*"]])));
    assert_eq!(members(&all["rooms"][&room]), [alice.id(), bob.id()]);
    let lazy = slide(&alice, None, &one_list(1, 1, &json!([["*", "*"], ["m.room.member", "$LAZY"]])));
    assert_eq!(members(&lazy["rooms"][&room]), [alice.id()]);
    assert!(tuples(&lazy["rooms"][&room]).len() > 4);
    // Beside everything, what is named is all there is of its type.
    let named = slide(&alice, None, &one_list(1, 1, &json!([["*", "*"], ["m.room.member", bob.id()]])));
    assert_eq!(members(&named["rooms"][&room]), [bob.id()]);
}

#[test]
fn subscriptions_are_for_rooms_that_the_user_is_in_and_are_told_out_of_any_list() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (own, foreign) = (alice.create_room(), bob.create_room());
    bob.send(&foreign, "private");
    let body = json!({ "room_subscriptions": {
        &own: { "timeline_limit": 1, "required_state": [] },
        &foreign: { "timeline_limit": 1, "required_state": [["*", "*"]] },
        "!nowhere:example.org": { "timeline_limit": 1 },
        "no id": { "timeline_limit": 1 },
    } });
    let first = slide(&alice, None, &body);
    assert_eq!(room_ids(&first), [own.as_str()]);
    alice.send(&own, "m");
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(bodies(&second["rooms"][&own]), ["m"]);
}

#[test]
fn rule_8_members_that_were_not_wanted_for_a_while_are_told_anew_once_they_are_wanted_again() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "name": "n" }));
    bob.join(&room);
    let rename = |name: &str| {
        bob.put(&format!("{V3}/profile/{}/displayname", segment(bob.id())), json!({ "displayname": name }));
    };
    let lazy = one_list(20, 5, &json!([["m.room.name", ""], ["m.room.member", "$LAZY"]]));
    let without = one_list(20, 5, &json!([["m.room.name", ""]]));
    let name = |answer: &Value| {
        let state = events(&answer["rooms"][&room], "required_state");
        let of_bob = state.iter().find(|event| event["state_key"] == bob.id());
        of_bob.map_or(Value::Null, |event| event["content"]["displayname"].clone())
    };
    rename("old");
    bob.send(&room, "hello");
    let first = slide(&alice, None, &lazy);
    assert_eq!(name(&first), "old");
    let second = slide(&alice, Some(&first), &without);
    rename("new");
    let third = slide(&alice, Some(&second), &without);
    // The client has what he said, and what it has of him is old.
    let fourth = slide(&alice, Some(&third), &lazy);
    assert_eq!(name(&fourth), "new", "{fourth}");
    bob.send(&room, "it is me");
    let fifth = slide(&alice, Some(&fourth), &lazy);
    assert_eq!(name(&fifth), Value::Null, "it has that: {fifth}");
    // Who asks for them only once the timeline is there gets those who speak in it.
    let first = slide(&alice, None, &without);
    let second = slide(&alice, Some(&first), &lazy);
    assert_eq!(name(&second), "new", "{second}");
}
