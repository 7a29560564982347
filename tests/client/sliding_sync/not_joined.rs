//! Invites, knocks, and rooms that end for a user.

use super::*;

#[test]
fn rule_11_an_invite_comes_with_its_stripped_state_and_the_own_member_event() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat", "name": "Secret" }));
    alice.send(&room, "not for bob yet");
    let body = one_list(20, 10, &json!([["m.room.member", "$ME"]]));
    let first = slide(&bob, None, &body);
    alice.invite(&room, bob.id());
    let invited = slide(&bob, Some(&first), &body);
    let told = &invited["rooms"][&room];
    let stripped = events(told, "invite_state");
    assert!(stripped.iter().any(|e| e["type"] == "m.room.name" && e["content"]["name"] == "Secret"));
    let own = stripped.iter().find(|e| e["state_key"] == bob.id()).expect("the own member event");
    assert_eq!(own["content"]["membership"], "invite");
    assert_eq!(told["initial"], true);
    assert!(
        told["bump_stamp"].is_i64() && told.get("timeline").is_none() && told.get("required_state").is_none()
    );
    assert_eq!(invited["lists"]["all"]["count"], 1);
    // What the room is called is in there, and nothing is made of it: clients do that, in their own words.
    assert!(told.get("name").is_none() && told.get("heroes").is_none());
    // Nothing that happens inside is told before the user is in.
    alice.send(&room, "still not");
    assert_eq!(room_ids(&slide(&bob, Some(&invited), &body)), [""; 0]);
    // A joined room is told as a new one.
    bob.join(&room);
    let joined = slide(&bob, Some(&invited), &body);
    let told = &joined["rooms"][&room];
    assert_eq!(told["initial"], true);
    assert!(told.get("invite_state").is_none());
    assert_eq!(members(told), [bob.id()]);
}

#[test]
fn rule_11_an_invite_that_was_told_before_its_inviter_was_ignored_is_for_the_client_to_hide() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.invite(&room, bob.id());
    let body = one_list(20, 5, &json!([]));
    let told = slide(&bob, None, &body);
    assert_eq!((&told["lists"]["all"]["count"], room_ids(&told)), (&json!(1), vec![room.as_str()]));
    let sync = |since: &Value| match since["next_batch"].as_str() {
        Some(since) => bob.get(&format!("{V3}/sync?since={since}")),
        None => bob.get(&format!("{V3}/sync")),
    };
    let before = sync(&json!({}));
    assert!(before["rooms"]["invite"][&room].is_object());
    let list = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    bob.put(&list, json!({ "ignored_users": { alice.id(): {} } }));
    // "Clients are responsible for determining if they should hide previously sent events": there is no event that takes
    // the invite back, and none is made up.
    let ignoring = sync(&before);
    assert!(ignoring["account_data"].to_string().contains(alice.id()) && ignoring.get("rooms").is_none());
    let hidden = slide(&bob, Some(&told), &body);
    assert_eq!((&hidden["lists"]["all"]["count"], room_ids(&hidden)), (&json!(0), vec![]));
    assert!(sync(&json!({})).get("rooms").is_none(), "who begins anew is not told of it");
    let mut of_another = body.clone();
    of_another["conn_id"] = json!("another");
    assert_eq!(slide(&bob, None, &of_another)["lists"]["all"]["count"], 0);
    // It stands all the same, and its end is told.
    bob.put(&list, json!({ "ignored_users": {} }));
    let again = slide(&bob, Some(&hidden), &body);
    assert_eq!((&again["lists"]["all"]["count"], room_ids(&again)), (&json!(1), vec![]), "the client has it");
    assert!(sync(&json!({}))["rooms"]["invite"][&room].is_object());
    bob.put(&list, json!({ "ignored_users": { alice.id(): {} } }));
    let ignoring = sync(&ignoring);
    let hidden = slide(&bob, Some(&again), &body);
    alice.act_on("kick", &room, bob.id());
    assert!(sync(&ignoring)["rooms"]["leave"][&room].is_object());
    let gone = slide(&bob, Some(&hidden), &body);
    assert_eq!(gone["rooms"][&room]["required_state"][0]["content"]["membership"], "leave");
}

#[test]
fn rule_11_a_knock_is_told_as_an_invite_is() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "name": "Door", "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    let body = one_list(20, 1, &json!([]));
    let first = slide(&bob, None, &body);
    bob.knock_via(&room, &[]);
    let second = slide(&bob, Some(&first), &body);
    let stripped = events(&second["rooms"][&room], "invite_state");
    let own = stripped.iter().find(|e| e["state_key"] == bob.id()).expect("the own member event");
    assert_eq!(own["content"]["membership"], "knock");
    // The answer to a knock is a new invite, and bumps the room.
    alice.invite(&room, bob.id());
    let third = slide(&bob, Some(&second), &body);
    let told = &third["rooms"][&room];
    assert!(told["bump_stamp"].as_i64() > second["rooms"][&room]["bump_stamp"].as_i64());
    let own = events(told, "invite_state").into_iter().find(|e| e["state_key"] == bob.id()).unwrap();
    assert_eq!(own["content"]["membership"], "invite");
}

#[test]
fn rule_11_a_room_that_the_user_left_is_told_once_and_no_more_after_that() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let body = one_list(20, 5, &json!([]));
    let first = slide(&bob, None, &body);
    bob.leave(&room);
    let second = slide(&bob, Some(&first), &body);
    let own = &events(&second["rooms"][&room], "required_state");
    assert_eq!(own.len(), 1);
    assert_eq!((&own[0]["state_key"], &own[0]["content"]["membership"]), (&json!(bob.id()), &json!("leave")));
    assert_eq!(second["lists"]["all"]["count"], 0);
    alice.send(&room, "behind your back");
    let third = slide(&bob, Some(&second), &body);
    assert_eq!(room_ids(&third), [""; 0]);
    // Who logs in now is not told of it.
    let mut fresh = body.clone();
    fresh["conn_id"] = json!("fresh");
    assert_eq!(room_ids(&slide(&bob, None, &fresh)), [""; 0]);
    // Back in, the room is a new one, on this connection and for a fresh login.
    let third = slide(&bob, Some(&third), &body);
    bob.join(&room);
    let fourth = slide(&bob, Some(&third), &body);
    assert_eq!(fourth["rooms"][&room]["initial"], true);
    assert_eq!(room_ids(&slide(&bob, None, &fresh)), [room.as_str()]);
}

#[test]
fn rule_11_and_14_who_is_kicked_or_banned_is_told_so_always_and_nothing_behind_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let body = one_list(20, 5, &json!([["m.room.member", "$ME"], ["m.room.topic", ""]]));
    let first = slide(&bob, None, &body);
    alice.send(&room, "before");
    alice.act_on("kick", &room, bob.id());
    alice.send(&room, "after");
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "after" }));
    let second = slide(&bob, Some(&first), &body);
    let told = &second["rooms"][&room];
    assert_eq!(bodies(told), ["before"]);
    assert_eq!(tuples(told), [("m.room.member".to_owned(), bob.id().to_owned())]);
    assert_eq!(told["required_state"][0]["content"]["membership"], "leave");
    assert_eq!(room_ids(&slide(&bob, Some(&second), &body)), [""; 0], "once");
    // A fresh login is told as well.
    let mut other = body.clone();
    other["conn_id"] = json!("fresh");
    let fresh = slide(&bob, None, &other);
    assert_eq!(room_ids(&fresh), [room.as_str()]);
    assert_eq!(bodies(&fresh["rooms"][&room]), ["before"]);
    assert!(!fresh.to_string().contains("after"));
    alice.act_on("ban", &room, bob.id());
    let third = slide(&bob, Some(&second), &body);
    assert_eq!(third["rooms"][&room]["required_state"][0]["content"]["membership"], "ban");
    assert_eq!(
        (events(&third["rooms"][&room], "timeline").len(), &third["lists"]["all"]["count"]),
        (0, &json!(1))
    );
    // Forgotten, it is in no list.
    bob.post(&room_path(&room, "forget"), json!({}));
    assert_eq!(slide(&bob, Some(&third), &body)["lists"]["all"]["count"], 0);
}

#[test]
fn rule_9_a_room_that_the_user_was_put_out_of_is_called_as_it_was_then() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let (named, nameless) = (alice.create_room(), alice.create_room());
    alice.set_state(&named, "m.room.name", "", json!({ "name": "then" }));
    alice.set_state(&named, "m.room.avatar", "", json!({ "url": "mxc://then/then" }));
    let call_carol = |name: &str| {
        carol.put(&format!("{V3}/profile/{}/displayname", carol.id()), json!({ "displayname": name }));
    };
    call_carol("Carol");
    carol.join(&nameless);
    for room in [&named, &nameless] {
        bob.join(room);
        alice.act_on("kick", room, bob.id());
    }
    alice.set_state(&named, "m.room.name", "", json!({ "name": "after" }));
    alice.set_state(&named, "m.room.avatar", "", json!({ "url": "mxc://after/after" }));
    alice.set_state(&nameless, "m.room.name", "", json!({ "name": "after" }));
    call_carol("after");
    server.user("dora").join(&nameless);
    let body = one_list(20, 1, &json!([]));
    let first = slide(&bob, None, &body);
    assert!(!first.to_string().contains("after"), "{first}");
    let told = &first["rooms"][&named];
    assert_eq!((&told["name"], &told["avatar"]), (&json!("then"), &json!("mxc://then/then")));
    let told = &first["rooms"][&nameless];
    assert_eq!(told.get("name"), None);
    let heroes = told["heroes"].as_array().expect("heroes").iter();
    let heroes: Vec<_> = heroes.map(|hero| hero["user_id"].as_str().expect("a user")).collect();
    assert_eq!(heroes, [alice.id(), carol.id()]);
    assert_eq!(told["heroes"][1]["displayname"], "Carol");
}

#[test]
fn rule_15_whether_a_room_that_the_user_is_not_in_is_encrypted_is_what_they_could_know() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let [invited, kicked] = [bob.create_room(), bob.create_room()];
    bob.act_on("invite", &invited, alice.id());
    alice.join(&kicked);
    bob.act_on("kick", &kicked, alice.id());
    let mut body = one_list(20, 1, &json!([]));
    body["lists"]["secret"] = body["lists"]["all"].clone();
    body["lists"]["secret"]["filters"] = json!({ "is_encrypted": true });
    let count = |answer: &Value| answer["lists"]["secret"]["count"].as_u64().expect("a count");
    let first = slide(&alice, None, &body);
    assert_eq!((count(&first), room_ids(&first).len()), (0, 2));
    for room in [&invited, &kicked] {
        bob.set_state(room, "m.room.encryption", "", json!({ "algorithm": "m.megolm.v1.aes-sha2" }));
    }
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(count(&second), 0);
    // The same where the rooms are read anew.
    alice.put(
        &format!("{V3}/user/{}/account_data/m.ignored_user_list", alice.id()),
        json!({ "ignored_users": {} }),
    );
    let third = slide(&alice, Some(&second), &body);
    assert_eq!((count(&third), room_ids(&third).len()), (0, 0));
    // Another invite shows the room as it is now.
    bob.act_on("kick", &invited, alice.id());
    bob.act_on("invite", &invited, alice.id());
    assert_eq!(count(&slide(&alice, Some(&third), &body)), 1);
}

#[test]
fn rule_11_a_room_that_was_left_and_forgotten_is_told_to_the_clients_that_have_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let body = one_list(20, 5, &json!([["m.room.topic", ""]]));
    for verb in ["leave", "kick", "ban", "decline"] {
        let room = alice.create_room_with(json!({ "preset": "public_chat", "invite": [bob.id()] }));
        if verb != "decline" {
            bob.join(&room);
        }
        let first = slide(&bob, None, &body);
        assert!(room_ids(&first).contains(&room.as_str()));
        if verb != "decline" {
            alice.send(&room, "not to be read any more");
        }
        match verb {
            "leave" | "decline" => bob.leave(&room),
            _ => alice.act_on(verb, &room, bob.id()),
        }
        bob.post(&room_path(&room, "forget"), json!({}));
        let second = slide(&bob, Some(&first), &body);
        let told = &second["rooms"][&room];
        assert_eq!(tuples(told), [("m.room.member".to_owned(), bob.id().to_owned())], "{verb}");
        let membership = if verb == "ban" { "ban" } else { "leave" };
        assert_eq!(told["required_state"][0]["content"]["membership"], membership);
        assert!(told.get("timeline").is_none() && told.get("initial").is_none(), "{verb}");
        assert_eq!(room_ids(&slide(&bob, Some(&second), &body)), [""; 0], "once");
        let mut fresh = body.clone();
        fresh["conn_id"] = json!("fresh");
        assert_eq!(room_ids(&slide(&bob, None, &fresh)), [""; 0], "and to nobody else");
    }
}

#[test]
fn rule_11_the_invite_of_another_server_that_was_declined_and_forgotten_is_taken_back() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    let body = one_list(20, 1, &json!([]));
    let first = slide(&bob, None, &body);
    assert!(first["rooms"][&room]["invite_state"].is_array());
    bob.leave(&room);
    bob.post(&room_path(&room, "forget"), json!({}));
    let second = slide(&bob, Some(&first), &body);
    let own = &second["rooms"][&room]["required_state"][0];
    assert_eq!((&own["state_key"], &own["content"]["membership"]), (&json!(bob.id()), &json!("leave")));
    assert_eq!(room_ids(&slide(&bob, Some(&second), &body)), [""; 0], "once");
}

#[test]
fn rule_11_rooms_of_other_servers_are_told_by_what_these_show_of_them() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "name": "Far", "preset": "private_chat" }));
    let body = one_list(20, 1, &json!([["m.room.member", "$ME"]]));
    let mut secret = body.clone();
    secret["lists"]["all"]["filters"] = json!({ "is_encrypted": true });
    let first = slide(&bob, None, &body);
    let invited = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bob.post(&sliding_path(Some(&first), 60_000), body.clone()));
        alice.invite(&room, bob.id());
        waiting.join().unwrap()
    });
    let told = &invited["rooms"][&room];
    let stripped = events(told, "invite_state");
    assert!(stripped.iter().any(|e| e["type"] == "m.room.name" && e["content"]["name"] == "Far"));
    assert!(stripped.iter().any(|e| e["state_key"] == bob.id() && e["content"]["membership"] == "invite"));
    secret["conn_id"] = json!("secret");
    assert_eq!(
        slide(&bob, None, &secret)["lists"]["all"]["count"],
        0,
        "an unknown value matches neither (rule 15)"
    );
    // The invite is declined: that is told once, with the own member event.
    bob.leave(&room);
    let declined = slide(&bob, Some(&invited), &body);
    let own = &events(&declined["rooms"][&room], "required_state");
    assert_eq!((&own[0]["state_key"], &own[0]["content"]["membership"]), (&json!(bob.id()), &json!("leave")));
    assert_eq!(declined["lists"]["all"]["count"], 0);
    assert_eq!(room_ids(&slide(&bob, Some(&declined), &body)), [""; 0]);
    // Invited again, and in this time (rsdk clients take a room to be joined without an `invite_state`).
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    let again = slide(&bob, Some(&declined), &body);
    assert!(again["rooms"][&room]["invite_state"].is_array());
    bob.join_via(&room, &[here.name()]);
    let joined = slide(&bob, Some(&again), &body);
    assert_eq!(
        (&joined["rooms"][&room]["initial"], &joined["rooms"][&room]["name"]),
        (&json!(true), &json!("Far"))
    );
    assert_eq!(members(&joined["rooms"][&room]), [bob.id()]);
}
