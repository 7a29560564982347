//! The rooms that a user is in: timelines, gaps, state.

use super::*;

#[test]
fn account_data_of_a_room_that_was_set_before_one_came_in_is_told_with_the_room() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let data = format!("{V3}/user/{}/rooms/{}/account_data/org.example", segment(bob.id()), segment(&room));
    alice.invite(&room, bob.id());
    bob.put(&data, json!({ "n": 1 }));
    let told = |answer: &Value| answer["rooms"]["join"][&room]["account_data"]["events"].clone();
    let invited = sync(&bob, "");
    bob.join(&room);
    let joined = sync(&bob, &next(&invited));
    assert_eq!(told(&joined), json!([{ "type": "org.example", "content": { "n": 1 } }]));
    // Once, and again with the room when one comes back.
    alice.send(&room, "hello");
    let spoken = sync(&bob, &next(&joined));
    assert_eq!(told(&spoken), Value::Null);
    bob.leave(&room);
    bob.put(&data, json!({ "n": 2 }));
    let left = sync(&bob, &next(&spoken));
    alice.invite(&room, bob.id());
    bob.join(&room);
    let back = sync(&bob, &next(&left));
    assert_eq!(told(&back), json!([{ "type": "org.example", "content": { "n": 2 } }]));
}

#[test]
fn a_small_new_room_fits_into_its_timeline_and_has_no_other_state() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let answer = sync(&alice, "");
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(types(&joined["timeline"])[..3], ["m.room.create", "m.room.member", "m.room.power_levels"]);
    assert_eq!(joined["timeline"]["limited"], false);
    assert_eq!(joined["state"]["events"], json!([]));
    assert!(joined.get("state_after").is_none());
    assert_eq!(joined["unread_notifications"], json!({"highlight_count": 0, "notification_count": 0}));
    assert_eq!(answer["device_one_time_keys_count"], json!({"signed_curve25519": 0}));
    let data = types(&answer["account_data"]);
    assert_eq!(data, ["m.push_rules"]);
}

#[test]
fn state_and_timeline_of_an_initial_sync_make_the_room_without_repeats() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "One"}));
    alice.set_state(&room, "m.room.name", "", json!({"name": "Two"}));
    for n in 0..9 {
        alice.send(&room, &n.to_string());
    }
    alice.set_state(&room, "m.room.name", "", json!({"name": "Three"}));
    let answer = sync(&alice, "");
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(bodies(&joined["timeline"]), ["0", "1", "2", "3", "4", "5", "6", "7", "8"]);
    let name = |events: &Value| -> Vec<Value> {
        let of = events["events"].as_array().unwrap().iter().filter(|e| e["type"] == "m.room.name");
        of.map(|e| e["content"]["name"].clone()).collect()
    };
    assert_eq!(name(&joined["state"]), [json!("Two")], "the name before the timeline");
    assert_eq!(name(&joined["timeline"]), [json!("Three")]);
    assert!(types(&joined["state"]).contains(&"m.room.create"));
    // The same with the state after the timeline.
    let answer = sync(&alice, "use_state_after=true");
    let joined = &answer["rooms"]["join"][&room];
    assert!(joined.get("state").is_none());
    assert_eq!(name(&joined["state_after"]), [json!("Three")]);
}

#[test]
fn an_incremental_sync_has_only_what_is_new() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (room, quiet) = (alice.create_room(), alice.create_room());
    bob.join(&room);
    bob.join(&quiet);
    let (of_alice, of_bob) = (sync(&alice, ""), sync(&bob, ""));
    let path = room_path(&room, "send/m.room.message/txn7");
    let event_id = alice.put(&path, json!({"msgtype": "m.text", "body": "hi"}))["event_id"].clone();

    let answer = sync(&alice, &next(&of_alice));
    assert_eq!(rooms(&answer, "join"), std::slice::from_ref(&room));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["state"]["events"], json!([]));
    assert_eq!(joined["timeline"]["limited"], false);
    assert!(joined.get("summary").is_none());
    let event = &joined["timeline"]["events"][0];
    assert_eq!(event["event_id"], event_id);
    assert_eq!(event["sender"], alice.id());
    assert_eq!(event["content"], json!({"msgtype": "m.text", "body": "hi"}));
    assert_eq!(event["unsigned"]["transaction_id"], "txn7");
    assert_eq!(event["unsigned"]["membership"], "join");
    assert!(event["unsigned"]["age"].as_i64().unwrap() >= 0);

    let answer = sync(&bob, &next(&of_bob));
    let event = &answer["rooms"]["join"][&room]["timeline"]["events"][0];
    assert_eq!(event["event_id"], event_id);
    assert!(event["unsigned"].get("transaction_id").is_none(), "only the sending device knows it");
    let nothing = sync(&bob, &next(&answer));
    assert!(nothing.get("rooms").is_none() && nothing.get("account_data").is_none(), "{nothing}");
}

#[test]
fn who_calls_a_device_as_another_does_passes_off_no_event_as_theirs() {
    let server = TestServer::start();
    let [alice, mallory] = ["alice", "mallory"].map(|name| server.device_of(&server.user(name), "PHONE"));
    let room = alice.room_with(&[&mallory], &[]);
    let since = next(&sync(&alice, ""));
    for (user, txn) in [(&alice, "one"), (&mallory, "other"), (&alice, "two")] {
        let path = room_path(&room, &format!("send/m.room.message/{txn}"));
        user.put(&path, json!({"msgtype": "m.text", "body": txn}));
    }
    let answer = sync(&alice, &since);
    let events = answer["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    let told: Vec<_> = events.iter().map(|event| event["unsigned"]["transaction_id"].as_str()).collect();
    assert_eq!(told, [Some("one"), None, Some("two")]);
}

#[test]
fn a_gap_is_marked_and_can_be_filled_and_its_state_is_told() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let before = sync(&alice, "");
    alice.send(&room, "gap 1");
    alice.set_state(&room, "m.room.topic", "", json!({"topic": "in the gap"}));
    bob.join(&room);
    for n in 0..10 {
        alice.send(&room, &n.to_string());
    }
    alice.set_state(&room, "m.room.name", "", json!({"name": "in the timeline"}));
    let answer = sync(&alice, &next(&before));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(joined["timeline"]["events"].as_array().unwrap().len(), 10);
    assert_eq!(types(&joined["state"]), ["m.room.topic", "m.room.member"]);
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    // The gap, from the token of the last sync up to the start of the timeline.
    let from = joined["timeline"]["prev_batch"].as_str().unwrap();
    let to = before["next_batch"].as_str().unwrap();
    let gap = alice.get(&room_path(&room, &format!("messages?dir=b&from={from}&to={to}&limit=100")));
    let gap: Vec<_> = gap["chunk"].as_array().unwrap().iter().map(|e| e["type"].as_str().unwrap()).collect();
    assert_eq!(gap, ["m.room.message", "m.room.member", "m.room.topic", "m.room.message"]);

    let after = sync(&alice, &format!("{}&use_state_after=true", next(&before)));
    let state_after = &after["rooms"]["join"][&room]["state_after"];
    assert_eq!(types(state_after), ["m.room.topic", "m.room.member", "m.room.name"]);
}

#[test]
fn state_that_a_filter_keeps_out_of_the_timeline_is_told_as_state() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let only_messages = filter(&json!({"room": {"timeline": {"types": ["m.room.message"]}}}));
    let before = sync(&alice, &only_messages);
    alice.send(&room, "one");
    alice.set_state(&room, "m.room.name", "", json!({"name": "Name"}));
    alice.send(&room, "two");
    let answer = sync(&alice, &format!("{only_messages}&{}", next(&before)));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(bodies(&joined["timeline"]), ["one", "two"]);
    assert_eq!(joined["timeline"]["limited"], false);
    assert_eq!(types(&joined["state"]), ["m.room.name"]);
}

#[test]
fn a_newly_joined_room_comes_whole_and_with_a_limited_timeline() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "Here"}));
    for n in 0..12 {
        alice.send(&room, &n.to_string());
    }
    let before = sync(&bob, "");
    bob.join(&room);
    bob.put(&format!("{V3}/profile/{}/displayname", segment(bob.id())), json!({"displayname": "Bob"}));
    let answer = sync(&bob, &next(&before));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert!(types(&joined["state"]).contains(&"m.room.create"));
    assert!(types(&joined["state"]).contains(&"m.room.name"));
    assert_eq!(members(&joined["state"]), [alice.id()]);
    assert_eq!(members(&joined["timeline"]), [bob.id(), bob.id()], "the join and the name");
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    // Out and in again between two syncs: whole again.
    bob.leave(&room);
    bob.join(&room);
    let again = sync(&bob, &next(&answer));
    assert_eq!(rooms(&again, "join"), std::slice::from_ref(&room));
    assert_eq!(rooms(&again, "leave"), Vec::<String>::new());
}

#[test]
fn replaced_state_says_what_it_replaced() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let first = alice.set_state(&room, "m.room.name", "", json!({"name": "one"}));
    let before = sync(&alice, "");
    alice.set_state(&room, "m.room.name", "", json!({"name": "two"}));
    let answer = sync(&alice, &next(&before));
    let event = &answer["rooms"]["join"][&room]["timeline"]["events"][0];
    assert_eq!(event["unsigned"]["replaces_state"], first);
    assert_eq!(event["unsigned"]["prev_content"], json!({"name": "one"}));
}

#[test]
fn a_redacted_event_comes_redacted() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let event = alice.send(&room, "secret");
    alice.put(&room_path(&room, &format!("redact/{}/t", segment(&event))), json!({}));
    let answer = sync(&alice, "");
    assert!(!answer.to_string().contains("secret"));
    let events = answer["rooms"]["join"][&room]["timeline"]["events"].as_array().unwrap();
    let redacted = events.iter().find(|e| e["event_id"] == event).expect("still there");
    assert_eq!(redacted["unsigned"]["redacted_because"]["type"], "m.room.redaction");
}

#[test]
fn state_that_was_redacted_is_told_again_where_the_gap_has_swallowed_the_redaction() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let name = alice.set_state(&room, "m.room.name", "", json!({"name": "secret"}));
    let before = sync(&bob, "");
    alice.put(&room_path(&room, &format!("redact/{}/t", segment(&name))), json!({}));
    // Who sees the redaction need not be told.
    for after in ["", "&use_state_after=true"] {
        let answer = sync(&bob, &format!("{}{after}", next(&before)));
        let joined = &answer["rooms"]["join"][&room];
        assert_eq!(types(&joined["timeline"]), ["m.room.redaction"]);
        let section = if after.is_empty() { &joined["state"] } else { &joined["state_after"] };
        assert_eq!(section["events"].as_array().map_or(0, Vec::len), 0, "{answer}");
    }
    alice.send(&room, "one");
    let last = filter(&json!({"room": {"timeline": {"limit": 1}}}));
    for (after, section) in [("", "state"), ("&use_state_after=true", "state_after")] {
        let answer = sync(&bob, &format!("{last}&{}{after}", next(&before)));
        let joined = &answer["rooms"]["join"][&room];
        assert_eq!(bodies(&joined["timeline"]), ["one"]);
        assert_eq!(types(&joined[section]), ["m.room.name"]);
        assert_eq!(joined[section]["events"][0]["content"], json!({}));
    }
}

#[test]
fn who_comes_back_hears_that_nobody_types_any_more() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let typing = |types: bool| {
        let body = json!({"typing": types, "timeout": 30_000});
        alice.put(&room_path(&room, &format!("typing/{}", segment(alice.id()))), body);
    };
    let list = |answer: &Value| {
        let told = answer["rooms"]["join"][&room]["ephemeral"]["events"].as_array().cloned();
        let mut told = told.unwrap_or_default().into_iter();
        told.find(|event| event["type"] == "m.typing").map(|event| event["content"]["user_ids"].clone())
    };
    typing(true);
    let mut last = sync(&bob, "");
    assert_eq!(list(&last), Some(json!([alice.id()])));
    bob.leave(&room);
    typing(false);
    last = sync(&bob, &next(&last));
    assert_eq!(rooms(&last, "leave"), std::slice::from_ref(&room));
    bob.join(&room);
    assert_eq!(list(&sync(&bob, &next(&last))), Some(json!([])));
}

#[test]
fn a_nameless_room_is_called_by_its_heroes() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    bob.join(&room);
    alice.invite(&room, carol.id());
    let answer = sync(&alice, "");
    let summary = &answer["rooms"]["join"][&room]["summary"];
    assert_eq!(
        *summary,
        json!({
            "m.heroes": [bob.id(), carol.id()],
            "m.joined_member_count": 2, "m.invited_member_count": 1,
        })
    );
    let lazy = filter(&json!({"room": {"state": {"lazy_load_members": true}, "timeline": {"limit": 1}}}));
    let answer = sync(&alice, &lazy);
    assert_eq!(members(&answer["rooms"]["join"][&room]["state"]), [alice.id(), bob.id()]);
    bob.leave(&room);
    let answer = sync(&alice, &next(&answer));
    let summary = &answer["rooms"]["join"][&room]["summary"];
    assert_eq!(summary["m.heroes"], json!([carol.id()]));
    assert_eq!(summary["m.joined_member_count"], 1);
}

#[test]
fn a_client_that_follows_state_knows_the_room_as_it_is() {
    // Random steps in a room, and two clients that follow it by the rules of `state` and of `state_after`, with timelines
    // so short that there are gaps: each must end with the state that the server has.
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let short = filter(&json!({"room": {"timeline": {"limit": 3}}}));
    let mut tokens = [String::new(), String::new()];
    let mut known = [std::collections::BTreeMap::new(), std::collections::BTreeMap::new()];
    let mut random: u64 = 4711;
    let mut step = move |n: u64| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) % n
    };
    for round in 0..30 {
        for _ in 0..step(8) {
            match step(3) {
                0 => drop(bob.send(&room, "talk")),
                1 => drop(alice.set_state(
                    &room,
                    "org.example.s",
                    &step(4).to_string(),
                    json!({"round": round, "r": step(1000)}),
                )),
                _ => drop(alice.set_state(&room, "m.room.name", "", json!({"name": step(1000).to_string()}))),
            }
        }
        for (after, (token, known)) in tokens.iter_mut().zip(&mut known).enumerate() {
            let answer = sync(
                &bob,
                &format!(
                    "{short}&use_state_after={}{}{token}",
                    after == 1,
                    if token.is_empty() { "" } else { "&" }
                ),
            );
            *token = next(&answer);
            let joined = &answer["rooms"]["join"][&room];
            let sections = if after == 1 { vec!["state_after"] } else { vec!["state", "timeline"] };
            for section in sections {
                for event in joined[section]["events"].as_array().into_iter().flatten() {
                    if let Some(state_key) = event["state_key"].as_str() {
                        let key = (event["type"].as_str().unwrap().to_owned(), state_key.to_owned());
                        known.insert(key, event["event_id"].as_str().unwrap().to_owned());
                    }
                }
            }
        }
        let real: std::collections::BTreeMap<_, _> = alice
            .get(&room_path(&room, "state"))
            .as_array()
            .unwrap()
            .iter()
            .map(|e| {
                let text = |name: &str| e[name].as_str().unwrap().to_owned();
                ((text("type"), text("state_key")), text("event_id"))
            })
            .collect();
        assert_eq!(known[0], real, "by `state`, round {round}");
        assert_eq!(known[1], real, "by `state_after`, round {round}");
    }
}
