//! Invites, knocks, and rooms that end for a user.

use super::*;

#[test]
fn a_left_room_is_told_once_and_up_to_the_leave() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let before = sync(&bob, "");
    alice.send(&room, "heard");
    bob.leave(&room);
    alice.send(&room, "not heard");
    alice.set_state(&room, "m.room.name", "", json!({"name": "secret"}));
    let answer = sync(&bob, &next(&before));
    assert_eq!(rooms(&answer, "join"), Vec::<String>::new());
    let left = &answer["rooms"]["leave"][&room];
    assert_eq!(types(&left["timeline"]), ["m.room.message", "m.room.member"]);
    assert_eq!(bodies(&left["timeline"]), ["heard"]);
    assert_eq!(left["timeline"]["events"][1]["unsigned"]["membership"], "leave");
    assert_eq!(left["state"]["events"], json!([]));
    let later = sync(&bob, &next(&answer));
    assert_eq!(rooms(&later, "leave"), Vec::<String>::new());
    // An initial sync has it only if asked, and never with what came after.
    assert_eq!(rooms(&sync(&bob, ""), "leave"), Vec::<String>::new());
    let archived = sync(&bob, &filter(&json!({"room": {"include_leave": true}})));
    let left = &archived["rooms"]["leave"][&room];
    assert!(bodies(&left["timeline"]).contains(&"heard"));
    assert!(!archived.to_string().contains("secret") && !archived.to_string().contains("not heard"));
    // And not at all once it is forgotten.
    bob.post(&room_path(&room, "forget"), json!({}));
    let archived = sync(&bob, &filter(&json!({"room": {"include_leave": true}})));
    assert_eq!(rooms(&archived, "leave"), Vec::<String>::new());
}

#[test]
fn a_room_that_was_left_and_forgotten_ends_for_the_clients_that_have_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for verb in ["leave", "kick", "ban"] {
        let room = alice.create_room();
        bob.join(&room);
        let before = sync(&bob, "");
        alice.send(&room, "not to be read any more");
        match verb {
            "leave" => bob.leave(&room),
            _ => alice.act_on(verb, &room, bob.id()),
        }
        bob.post(&room_path(&room, "forget"), json!({}));
        for after in ["", "&use_state_after=true"] {
            let answer = sync(&bob, &format!("{}{after}", next(&before)));
            let left = &answer["rooms"]["leave"][&room];
            assert_eq!(types(&left["timeline"]), ["m.room.member"], "{verb}");
            assert_eq!(left["timeline"]["events"][0]["state_key"], bob.id());
            assert!(!answer.to_string().contains("not to be read any more"));
            assert_eq!(rooms(&sync(&bob, &next(&answer)), "leave"), [""; 0], "once");
        }
        assert_eq!(rooms(&sync(&bob, ""), "leave"), [""; 0], "and to nobody who begins anew");
    }
}

#[test]
fn the_invite_of_another_server_that_was_declined_and_forgotten_ends_for_the_clients_that_have_it() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    let before = sync(&bob, "");
    bob.leave(&room);
    bob.post(&room_path(&room, "forget"), json!({}));
    let answer = sync(&bob, &next(&before));
    assert_eq!(types(&answer["rooms"]["leave"][&room]["timeline"]), ["m.room.member"]);
    assert_eq!(rooms(&sync(&bob, &next(&answer)), "leave"), Vec::<String>::new(), "once");
    let archived = sync(&bob, &filter(&json!({"room": {"include_leave": true}})));
    assert_eq!(rooms(&archived, "leave"), Vec::<String>::new());
}

#[test]
fn a_kick_or_ban_ends_a_room_like_a_leave() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    for verb in ["kick", "ban"] {
        bob.join(&room);
        let before = sync(&bob, "");
        alice.act_on(verb, &room, bob.id());
        for after in ["", "&use_state_after=true"] {
            let answer = sync(&bob, &format!("{}{after}", next(&before)));
            let left = &answer["rooms"]["leave"][&room];
            let event = &left["timeline"]["events"][0];
            assert_eq!(event["state_key"], bob.id(), "{verb}");
            assert_eq!(event["sender"], alice.id(), "{verb}");
            let state = if after.is_empty() { &left["state"] } else { &left["state_after"] };
            assert_eq!(members(state).len(), usize::from(!after.is_empty()), "{verb} {after}");
        }
    }
}

#[test]
fn invites_and_knocks_come_as_stripped_state_and_go_once() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "private_chat", "name": "Quiet",
        "initial_state": [{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}],
    }));
    let start = sync(&bob, "");
    bob.knock_via(&room, &[]);
    let knocked = sync(&bob, &next(&start));
    let stripped = &knocked["rooms"]["knock"][&room]["knock_state"];
    assert!(types(stripped).contains(&"m.room.create") && types(stripped).contains(&"m.room.name"));
    assert_eq!(members(stripped), [bob.id()]);
    for event in stripped["events"].as_array().unwrap() {
        let mut keys: Vec<_> = event.as_object().unwrap().keys().map(String::as_str).collect();
        keys.sort_unstable();
        assert_eq!(keys, ["content", "sender", "state_key", "type"]);
    }
    assert_eq!(rooms(&sync(&bob, ""), "knock"), std::slice::from_ref(&room), "an initial sync knows of it");

    alice.invite(&room, bob.id());
    let invited = sync(&bob, &next(&knocked));
    assert_eq!(rooms(&invited, "knock"), Vec::<String>::new());
    let stripped = &invited["rooms"]["invite"][&room]["invite_state"];
    assert_eq!(members(stripped), [alice.id(), bob.id()]);
    assert!(types(stripped).contains(&"m.room.create"));

    bob.leave(&room);
    for after in ["", "&use_state_after=true"] {
        let rejected = sync(&bob, &format!("{}{after}", next(&invited)));
        assert_eq!(rooms(&rejected, "invite"), Vec::<String>::new());
        let left = &rejected["rooms"]["leave"][&room];
        assert_eq!(members(&left["timeline"]), [bob.id()]);
        assert_eq!(types(&left["timeline"]).len(), 1, "nothing of the room itself");
        let event = &left["timeline"]["events"][0];
        assert_eq!(event["unsigned"]["prev_content"]["membership"], "invite");
        if after.is_empty() {
            assert_eq!(left["state"]["events"], json!([]));
        } else {
            assert_eq!(members(&left["state_after"]), [bob.id()]);
        }
        let nothing = sync(&bob, &next(&rejected));
        assert!(nothing.get("rooms").is_none());
    }
}

#[test]
fn a_ban_after_the_leave_is_told_and_nothing_else_of_the_room() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    bob.leave(&room);
    let before = sync(&bob, "");
    alice.set_state(&room, "m.room.name", "", json!({"name": "secret"}));
    alice.act_on("ban", &room, bob.id());
    for after in ["", "&use_state_after=true"] {
        let answer = sync(&bob, &format!("{}{after}", next(&before)));
        let left = &answer["rooms"]["leave"][&room];
        assert_eq!(members(&left["timeline"]), [bob.id()]);
        assert_eq!(left["timeline"]["events"][0]["content"]["membership"], "ban");
        let state = if after.is_empty() { &left["state"] } else { &left["state_after"] };
        assert_eq!(members(state).len(), usize::from(!after.is_empty()), "{state}");
        assert!(!answer.to_string().contains("secret"));
    }
}

#[test]
fn of_a_left_room_no_events_are_told_either_where_none_are_wanted_and_yet_the_leave_is_known() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (joined, invited) = (alice.create_room(), alice.create_room());
    alice.invite(&joined, bob.id());
    alice.invite(&invited, bob.id());
    bob.join(&joined);
    let wish = filter(&json!({"room": {"timeline": {"limit": 0}}}));
    for section in ["state", "state_after"] {
        let query = format!("{wish}&use_state_after={}", section == "state_after");
        let before = sync(&bob, &query);
        bob.leave(&joined);
        bob.leave(&invited);
        let answer = sync(&bob, &format!("{query}&{}", next(&before)));
        for room in [&joined, &invited] {
            let left = &answer["rooms"]["leave"][room];
            assert_eq!(left["timeline"]["events"], json!([]), "{section}: {answer}");
            assert_eq!(left["timeline"]["limited"], true, "{section}: {answer}");
            let own = left[section]["events"].as_array().expect("a list").iter();
            let own: Vec<_> = own.filter(|e| e["state_key"] == bob.id()).collect();
            assert_eq!(own.len(), 1, "{section}: {answer}");
            assert_eq!(own[0]["content"]["membership"], "leave", "{section}: {answer}");
            alice.invite(room, bob.id());
        }
        bob.join(&joined);
    }
}

#[test]
fn the_filter_of_a_left_rooms_timeline_applies_to_the_leave_as_well() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (joined, invited) = (alice.create_room(), alice.create_room());
    let own = |events: &Value| {
        let events = events["events"].as_array().cloned().unwrap_or_default();
        events.iter().filter(|e| e["state_key"] == bob.id()).count()
    };
    let not_members = json!({ "not_types": ["m.room.member"] });
    for (timeline, state, expected) in [
        (json!({}), json!({}), (1, 0)),
        (not_members.clone(), json!({}), (0, 1)),
        (json!({ "types": ["m.room.message"] }), json!({}), (0, 1)),
        (json!({ "not_senders": [bob.id()] }), json!({}), (0, 1)),
        (json!({ "senders": [alice.id()] }), json!({}), (0, 1)),
        (json!({ "not_rooms": [joined, invited] }), json!({}), (0, 1)),
        (json!({ "limit": 0 }), json!({}), (0, 1)),
        (not_members.clone(), not_members.clone(), (0, 0)),
        (json!({ "limit": 0 }), json!({ "senders": [alice.id()] }), (0, 0)),
    ] {
        for section in ["state", "state_after"] {
            let wish = filter(&json!({ "room": { "timeline": timeline, "state": state } }));
            let query = format!("{wish}&use_state_after={}", section == "state_after");
            for room in [&joined, &invited] {
                alice.invite(room, bob.id());
            }
            bob.join(&joined);
            let before = sync(&bob, &query);
            bob.leave(&joined);
            bob.leave(&invited);
            let answer = sync(&bob, &format!("{query}&{}", next(&before)));
            for room in [&joined, &invited] {
                let left = &answer["rooms"]["leave"][room];
                assert!(left.is_object(), "the room is left in any case: {answer}");
                let in_state = if section == "state_after" && expected.0 == 1 { 1 } else { expected.1 };
                let found = (own(&left["timeline"]), own(&left[section]));
                assert_eq!(found, (expected.0, in_state), "{section} {timeline} {state}: {answer}");
            }
        }
    }
}

#[test]
fn what_was_said_behind_the_door_after_an_invite_is_not_shown_to_who_was_invited() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat", "name": "then" }));
    alice.invite(&room, bob.id());
    alice.set_state(&room, "m.room.name", "", json!({ "name": "now" }));
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "what nobody outside is to know" }));
    let names = |stripped: &Value| -> Vec<Value> {
        let events = stripped.as_array().expect("events").iter();
        events.filter(|e| e["type"] == "m.room.name").map(|e| e["content"]["name"].clone()).collect()
    };
    let invited = sync(&bob, "")["rooms"]["invite"][&room]["invite_state"].clone();
    assert_eq!(names(&invited["events"]), ["then"]);
    assert_eq!(members(&invited), [alice.id(), bob.id()]);
    assert!(!types(&invited).contains(&"m.room.topic"));
    let body = crate::common::client::one_list(20, 1, &json!([]));
    let sliding = crate::common::client::slide(&bob, None, &body);
    assert_eq!(names(&sliding["rooms"][&room]["invite_state"]), ["then"]);
    // An invite anew shows what is there then.
    bob.leave(&room);
    alice.invite(&room, bob.id());
    let invited = sync(&bob, "")["rooms"]["invite"][&room]["invite_state"].clone();
    assert_eq!(names(&invited["events"]), ["now"]);
}
