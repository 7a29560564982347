//! `/sync` over a real socket: what a client is told, what it is not told twice, and how it waits.

use std::time::{Duration, Instant};

use crate::common::client::{V3, filter, room_path, sync};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn next(answer: &Value) -> String {
    format!("since={}", answer["next_batch"].as_str().expect("next_batch"))
}

fn types(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    events.iter().map(|e| e["type"].as_str().expect("a type")).collect()
}

fn bodies(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    events.iter().filter_map(|e| e["content"]["body"].as_str()).collect()
}

fn members(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    let of = events.iter().filter(|e| e["type"] == "m.room.member");
    let mut members: Vec<_> = of.map(|e| e["state_key"].as_str().expect("a state key")).collect();
    members.sort_unstable();
    members
}

fn rooms(answer: &Value, section: &str) -> Vec<String> {
    answer["rooms"][section].as_object().map(|rooms| rooms.keys().cloned().collect()).unwrap_or_default()
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
fn ignored_users_are_not_heard_but_their_state_is_seen() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (room, other) = (alice.create_room(), alice.create_room());
    bob.join(&room);
    let list = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    bob.put(&list, json!({"ignored_users": {alice.id(): {}}}));
    let before = sync(&bob, "");
    alice.send(&room, "noise");
    alice.set_state(&room, "m.room.name", "", json!({"name": "Still here"}));
    alice.invite(&other, bob.id());
    let answer = sync(&bob, &next(&before));
    assert_eq!(types(&answer["rooms"]["join"][&room]["timeline"]), ["m.room.name"]);
    assert_eq!(rooms(&answer, "invite"), Vec::<String>::new());
    bob.put(&list, json!({"ignored_users": {}}));
    let fresh = sync(&bob, "");
    assert!(bodies(&fresh["rooms"]["join"][&room]["timeline"]).contains(&"noise"));
    assert_eq!(rooms(&fresh, "invite"), [other], "the invite was not lost");
}

#[test]
fn ignored_users_are_not_heard_wherever_one_listens() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    bob.join(&room);
    carol.join(&room);
    let noise = alice.send(&room, "noise");
    let event = carol.send(&room, "hello");
    let list = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    let typing = |user: &TestUser| {
        user.put(
            &room_path(&room, &format!("typing/{}", segment(user.id()))),
            json!({"typing": true, "timeout": 60_000}),
        );
        user.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&event))), json!({}));
    };
    for user in [&alice, &carol] {
        typing(user);
        // They are there.
        sync(user, "");
    }
    let heard = || {
        let answer = sync(&bob, "");
        let fleeting = answer["rooms"]["join"][&room]["ephemeral"].to_string();
        let page = bob.get(&room_path(&room, "messages?dir=b&limit=100"));
        let context = bob.get(&room_path(&room, &format!("context/{}", segment(&event))));
        let (status, _) = bob.request("GET", &room_path(&room, &format!("event/{}", segment(&noise))), None);
        let (around, _) =
            bob.request("GET", &room_path(&room, &format!("context/{}", segment(&noise))), None);
        let near =
            format!("/_matrix/client/v1/rooms/{}/timestamp_to_event?ts=9999999999999&dir=b", segment(&room));
        let near = bob.get(&near)["event_id"].clone();
        let mut of_alice = Vec::new();
        if fleeting.contains(alice.id()) {
            of_alice.push("ephemeral");
        }
        if answer["presence"].to_string().contains(alice.id()) {
            of_alice.push("presence");
        }
        if page.to_string().contains("noise") {
            of_alice.push("messages");
        }
        if context["events_before"].to_string().contains("noise") {
            of_alice.push("context");
        }
        if status == 200 && around == 200 {
            of_alice.push("event");
        }
        assert_eq!(status, around);
        assert!(fleeting.contains(carol.id()), "{answer}");
        assert!(page["chunk"].to_string().contains("m.room.power_levels"), "state is seen: {page}");
        (of_alice, near)
    };
    let all = vec!["ephemeral", "presence", "messages", "context", "event"];
    assert_eq!(heard(), (all.clone(), json!(event)));
    let last = alice.send(&room, "noise again");
    assert_eq!(heard().1, json!(last));
    // One's own name in the list means nothing.
    bob.put(&list, json!({"ignored_users": {alice.id(): {}, bob.id(): {}}}));
    assert_eq!(heard(), (vec![], json!(event)));
    // What happens from now on is not told either.
    let before = sync(&bob, "");
    bob.send(&room, "mine");
    alice.post(&room_path(&room, &format!("receipt/m.read/{}", segment(&event))), json!({}));
    let answer = sync(&bob, &next(&before));
    assert_eq!(bodies(&answer["rooms"]["join"][&room]["timeline"]), ["mine"]);
    assert!(!answer.to_string().contains(alice.id()), "{answer}");
    assert!(bob.get(&room_path(&room, "messages?dir=b")).to_string().contains("mine"));
    bob.put(&list, json!({"ignored_users": {}}));
    assert_eq!(heard().0, all);
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
fn members_are_loaded_lazily_if_asked_for() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let others: Vec<TestUser> = (0..6).map(|n| server.user(&format!("user{n}"))).collect();
    for other in &others {
        other.join(&room);
    }
    for n in 0..10 {
        others[0].send(&room, &n.to_string());
    }
    alice.set_state(&room, "m.room.name", "", json!({"name": "so that there are no heroes"}));
    let lazy = filter(&json!({"room": {"state": {"lazy_load_members": true}, "timeline": {"limit": 5}}}));
    let answer = sync(&alice, &lazy);
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(members(&joined["state"]), [alice.id(), others[0].id()], "who speaks, and oneself");
    assert!(joined["summary"].get("m.heroes").is_none());
    assert_eq!(joined["summary"]["m.joined_member_count"], 7);
    others[3].send(&room, "hello");
    let answer = sync(&alice, &format!("{lazy}&{}", next(&answer)));
    assert!(members(&answer["rooms"]["join"][&room]["state"]).contains(&others[3].id()));
    let whole = sync(&alice, &format!("full_state=true&{}", next(&answer)));
    assert_eq!(members(&whole["rooms"]["join"][&room]["state"]).len(), 7);
}

#[test]
fn a_member_that_the_client_has_is_not_told_again_unless_the_answer_was_lost() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room =
        alice.create_room_with(json!({ "preset": "public_chat", "name": "so that there are no heroes" }));
    bob.join(&room);
    let lazy = |more: &str, answer: &Value| {
        let wish = json!({ "lazy_load_members": true, "include_redundant_members": more == "all" });
        format!(
            "{}&{}",
            filter(&json!({ "room": { "state": wish, "timeline": { "limit": 3 } } })),
            next(answer)
        )
    };
    let told = |answer: &Value| -> Vec<String> {
        let room = &answer["rooms"]["join"][&room];
        members(&room["state"]).into_iter().map(str::to_owned).collect()
    };
    let say = |text: &str| drop(bob.send(&room, text));
    for n in 0..4 {
        alice.send(&room, &n.to_string());
    }
    let none = json!({ "next_batch": "" });
    let first = sync(&alice, &lazy("", &none));
    assert_eq!(told(&first), [alice.id()], "who speaks, and oneself");
    say("bob speaks for the first time");
    let second = sync(&alice, &lazy("", &first));
    assert_eq!(told(&second), [bob.id()]);
    // The answer was lost: the client asks again with the token that it has.
    say("and once more");
    let again = sync(&alice, &lazy("", &first));
    assert_eq!(told(&again), [bob.id()], "what was lost is not taken for told");
    say("again");
    let third = sync(&alice, &lazy("", &again));
    assert_eq!(told(&third), [""; 0], "the client has it");
    assert_eq!(bodies(&third["rooms"]["join"][&room]["timeline"]), ["again"]);
    assert_eq!(told(&sync(&alice, &lazy("all", &again))), [bob.id()], "unless it wants it all the same");
    // After a profile change the new membership is told by itself, and so is no more afterwards.
    bob.put(&format!("{V3}/profile/{}/displayname", segment(bob.id())), json!({ "displayname": "Bob" }));
    say("as Bob");
    let fourth = sync(&alice, &lazy("", &third));
    say("still Bob");
    assert_eq!(told(&sync(&alice, &lazy("", &fourth))), [""; 0]);
    // Behind a gap, in the eyes of another device, from the beginning, or if all is wanted, it is told anew.
    for n in 0..5 {
        say(&n.to_string());
    }
    assert_eq!(told(&sync(&alice, &lazy("", &fourth))), [bob.id()], "behind a gap");
    let other = server.device_of(&alice, "OTHER");
    assert_eq!(told(&sync(&other, &lazy("", &third))), [bob.id()]);
    assert!(told(&sync(&alice, &lazy("", &none))).contains(&bob.id().to_owned()));
    let whole = sync(&alice, &format!("full_state=true&{}", lazy("", &fourth)));
    assert!(told(&whole).contains(&bob.id().to_owned()));
    // Who has asked for all state anew has lost what was told before.
    for n in 0..4 {
        alice.send(&room, &n.to_string());
    }
    let whole = sync(&alice, &format!("full_state=true&{}", lazy("", &fourth)));
    assert!(!told(&whole).contains(&bob.id().to_owned()), "bob has not spoken of late");
    say("bob speaks, and nobody knows him");
    assert_eq!(told(&sync(&alice, &lazy("", &whole))), [bob.id()]);
}

#[test]
fn members_told_before_a_gap_or_before_the_user_left_and_came_back_are_told_again_when_they_speak() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let named = json!({ "preset": "public_chat", "name": "so that there are no heroes" });
    let (room, other) = (bob.create_room_with(named.clone()), bob.create_room_with(named));
    alice.join(&room);
    alice.join(&other);
    let wish = json!({ "state": { "lazy_load_members": true }, "timeline": { "limit": 3 } });
    let lazy =
        |answer: &Value| sync(&alice, &format!("{}&{}", filter(&json!({ "room": wish })), next(answer)));
    let told = |answer: &Value, room: &str| -> Vec<String> {
        let room = &answer["rooms"]["join"][room];
        members(&room["state"]).into_iter().map(str::to_owned).collect()
    };
    let say = |room: &str| drop(bob.send(room, "bob speaks"));
    for _ in 0..3 {
        say(&room);
        say(&other);
    }
    let first = lazy(&json!({ "next_batch": "" }));
    assert!(told(&first, &room).contains(&bob.id().to_owned()));
    assert!(told(&first, &other).contains(&bob.id().to_owned()));
    for n in 0..5 {
        alice.send(&room, &n.to_string());
    }
    let gap = lazy(&first);
    assert_eq!(gap["rooms"]["join"][&room]["timeline"]["limited"], true);
    assert_eq!(told(&gap, &room), [alice.id()], "who speaks behind the gap");
    say(&room);
    say(&other);
    let behind = lazy(&gap);
    assert_eq!(
        told(&behind, &room),
        [bob.id()],
        "whom the client may have dropped with what was before the gap"
    );
    assert_eq!(told(&behind, &other), [""; 0], "there was no gap there");
    say(&room);
    let later = lazy(&behind);
    assert_eq!(told(&later, &room), [""; 0], "once");

    alice.leave(&room);
    let left = lazy(&later);
    assert!(left["rooms"]["leave"][&room].is_object());
    alice.join(&room);
    for n in 0..5 {
        alice.send(&room, &n.to_string());
    }
    let back = lazy(&left);
    assert!(!told(&back, &room).contains(&bob.id().to_owned()), "bob has not spoken of late");
    say(&room);
    assert_eq!(told(&lazy(&back), &room), [bob.id()], "what was told before alice left counts for nothing");
}

#[test]
fn a_member_that_a_waiting_client_has_is_not_told_again_and_one_that_it_lacks_is() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "name": "no heroes" }));
    bob.join(&room);
    carol.join(&room);
    let lazy =
        filter(&json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 2 } } }));
    bob.send(&room, "one");
    bob.send(&room, "two");
    let mut answer = sync(&alice, &lazy);
    for (speaker, lacks) in [(&bob, false), (&carol, true), (&carol, false), (&bob, false)] {
        let query = format!("{lazy}&timeout=20000&{}", next(&answer));
        answer = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sync(&alice, &query));
            while server.homeserver().notifier.waiting() < 1 {
                std::thread::yield_now();
            }
            speaker.send(&room, "hello");
            waiting.join().expect("an answer")
        });
        let joined = &answer["rooms"]["join"][&room];
        assert_eq!(bodies(&joined["timeline"]), ["hello"]);
        let told = members(&joined["state"]);
        assert_eq!(told, if lacks { vec![speaker.id()] } else { Vec::new() }, "{answer}");
    }
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
fn account_data_is_told_when_it_changes() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (room, other) = (alice.create_room(), alice.create_room());
    let before = sync(&alice, "");
    let user = format!("{V3}/user/{}", segment(alice.id()));
    alice.put(&format!("{user}/account_data/org.example.x"), json!({"n": 1}));
    alice.put(&format!("{user}/rooms/{}/tags/m.favourite", segment(&room)), json!({"order": 0.5}));
    let answer = sync(&alice, &next(&before));
    assert_eq!(answer["account_data"]["events"], json!([{"type": "org.example.x", "content": {"n": 1}}]));
    assert_eq!(rooms(&answer, "join"), std::slice::from_ref(&room));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(
        joined["account_data"]["events"],
        json!([{"type": "m.tag", "content": {"tags": {"m.favourite": {"order": 0.5}}}}])
    );
    assert_eq!(joined["timeline"]["events"], json!([]));
    let initial = sync(&alice, "");
    assert_eq!(types(&initial["account_data"]), ["m.push_rules", "org.example.x"]);
    assert_eq!(types(&initial["rooms"]["join"][&room]["account_data"]), ["m.tag"]);
    assert!(initial["rooms"]["join"][&other].get("account_data").is_none());
    let none =
        filter(&json!({"account_data": {"types": []}, "room": {"account_data": {"not_types": ["m.*"]}}}));
    let filtered = sync(&alice, &none);
    assert!(filtered.get("account_data").is_none());
    assert!(filtered["rooms"]["join"][&room].get("account_data").is_none());
}

#[test]
fn filters_choose_rooms_events_and_fields() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (one, two) = (alice.create_room(), alice.create_room());
    alice.send(&one, "hello");
    let only = sync(&alice, &filter(&json!({"room": {"rooms": [one, two], "not_rooms": [two]}})));
    assert_eq!(rooms(&only, "join"), std::slice::from_ref(&one));
    let few = filter(&json!({
        "room": {"timeline": {"limit": 1, "types": ["m.room.mess*"]}, "state": {"types": []}},
        "event_fields": ["content.body"],
    }));
    let few = sync(&alice, &few);
    let joined = &few["rooms"]["join"][&one];
    assert_eq!(joined["state"]["events"], json!([]));
    assert_eq!(joined["timeline"]["events"][0]["content"], json!({"body": "hello"}));
    assert!(joined["timeline"]["events"][0].get("unsigned").is_none());
    let federation = sync(&alice, &filter(&json!({"event_format": "federation"})));
    let event = &federation["rooms"]["join"][&one]["timeline"]["events"][1];
    assert!(event["signatures"].is_object() && event["auth_events"].is_array());
    // A stored filter is the same as one written out.
    let path = format!("{V3}/user/{}/filter", segment(alice.id()));
    let id = alice.post(&path, json!({"room": {"rooms": [two]}}))["filter_id"].as_str().unwrap().to_owned();
    assert_eq!(rooms(&sync(&alice, &format!("filter={id}")), "join"), [two]);
}

#[test]
fn a_limit_of_none_gets_none_of_the_events_and_all_of_the_state() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "One"}));
    bob.join(&room);
    let none = json!({"limit": 0});
    let wish = json!({"presence": none, "account_data": none,
                      "room": {"timeline": none, "ephemeral": none, "account_data": none}});
    let stored = alice.post(&format!("{V3}/user/{}/filter", segment(alice.id())), wish.clone());
    let stored = format!("filter={}", stored["filter_id"].as_str().expect("a filter id"));
    let queries = [filter(&wish), stored, format!("{}&use_state_after=true", filter(&wish))];
    for (n, query) in queries.iter().enumerate() {
        let section = if query.contains("state_after") { "state_after" } else { "state" };
        let name = format!("Name {n}");
        let state = |answer: &Value, kind: &str| -> Vec<Value> {
            let events = &answer["rooms"]["join"][&room][section]["events"];
            let of = events.as_array().expect("a list").iter().filter(|e| e["type"] == kind);
            of.map(|e| e["content"].clone()).collect()
        };
        let first = sync(&alice, query);
        assert_eq!(state(&first, "m.room.create").len(), 1, "{first}");
        let quiet = sync(&alice, &format!("{query}&{}", next(&first)));
        assert!(quiet.get("rooms").is_none(), "nothing happened: {quiet}");
        bob.send(&room, "unseen");
        alice.set_state(&room, "m.room.name", "", json!({"name": name}));
        let body = json!({"typing": true, "timeout": 30_000});
        bob.put(&room_path(&room, &format!("typing/{}", segment(bob.id()))), body);
        alice.put(&format!("{V3}/user/{}/account_data/org.example", segment(alice.id())), json!({"n": n}));
        alice.put(
            &format!("{V3}/user/{}/rooms/{room}/account_data/org.example", segment(alice.id())),
            json!({"n": n}),
        );
        let fresh = sync(&alice, query);
        for (answer, names) in [
            (&first, None),
            (&fresh, Some(&name)),
            (&sync(&alice, &format!("{query}&{}", next(&first))), Some(&name)),
        ] {
            let joined = &answer["rooms"]["join"][&room];
            assert_eq!(joined["timeline"]["events"], json!([]), "{query}: {answer}");
            assert_eq!(joined["timeline"]["limited"], true, "{query}: {answer}");
            assert!(joined.get("ephemeral").is_none() && joined.get("account_data").is_none(), "{answer}");
            assert!(answer.get("presence").is_none() && answer.get("account_data").is_none(), "{answer}");
            if let Some(name) = names {
                assert_eq!(state(answer, "m.room.name"), [json!({"name": name})], "{query}: {answer}");
                let from = segment(joined["timeline"]["prev_batch"].as_str().expect("prev_batch"));
                let page = alice.get(&room_path(&room, &format!("messages?dir=b&limit=2&from={from}")));
                let kinds: Vec<_> = page["chunk"].as_array().unwrap().iter().map(|e| &e["type"]).collect();
                assert_eq!(kinds, ["m.room.name", "m.room.message"], "{page}");
            }
        }
    }
}

#[test]
fn a_page_of_none_says_where_to_go_on_and_a_context_of_none_has_its_event() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let event = alice.send(&room, "hello");
    let none = filter(&json!({"limit": 0}));
    for query in ["limit=0".to_owned(), none.clone(), format!("limit=5&{none}")] {
        for (dir, first) in [("b", "m.room.message"), ("f", "m.room.create")] {
            let page = alice.get(&room_path(&room, &format!("messages?dir={dir}&{query}")));
            assert_eq!(page["chunk"], json!([]), "{query}: {page}");
            let from = segment(page["end"].as_str().expect("there is more"));
            let page = alice.get(&room_path(&room, &format!("messages?dir={dir}&limit=1&from={from}")));
            assert_eq!(page["chunk"][0]["type"], first, "{query}: {page}");
        }
        let context = alice.get(&room_path(&room, &format!("context/{}?{query}", segment(&event))));
        assert_eq!(context["event"]["event_id"], event);
        assert_eq!((&context["events_before"], &context["events_after"]), (&json!([]), &json!([])));
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
fn many_large_answers_at_once_all_come_whole() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    for n in 0..8 {
        let content = json!({ "text": "x".repeat(50_000), "n": n });
        alice.set_state(&room, "org.example.large", &n.to_string(), content);
    }
    std::thread::scope(|scope| {
        let ask = || {
            let answer = sync(&alice, "");
            let joined = &answer["rooms"]["join"][&room];
            let events = |part: &str| joined[part]["events"].as_array().cloned().unwrap_or_default();
            let large = events("state").into_iter().chain(events("timeline"));
            large.filter(|event| event["type"] == "org.example.large").count()
        };
        let asked: Vec<_> = (0..12).map(|_| scope.spawn(ask)).collect();
        for one in asked {
            assert_eq!(one.join().expect("an answer"), 8);
        }
    });
}

#[test]
fn bad_parameters_are_refused() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for (query, errcode) in [
        ("since=x", "M_INVALID_PARAM"),
        ("since=s-1", "M_INVALID_PARAM"),
        ("since=s1_1", "M_INVALID_PARAM"),
        ("timeout=soon", "M_INVALID_PARAM"),
        ("timeout=-1", "M_INVALID_PARAM"),
        ("full_state=maybe", "M_INVALID_PARAM"),
        ("filter=42", "M_INVALID_PARAM"),
        ("filter={", "M_BAD_JSON"),
        (&filter(&json!({"room": {"timeline": {"limit": -1}}})), "M_BAD_JSON"),
        (&filter(&json!({"room": {"timeline": {"limit": 0.5}}})), "M_BAD_JSON"),
        (&filter(&json!({"presence": {"limit": "0"}})), "M_BAD_JSON"),
        (&filter(&json!({"room": {"rooms": ["general"]}})), "M_BAD_JSON"),
        (&filter(&json!({"room": {"timeline": {"not_senders": ["alice"]}}})), "M_BAD_JSON"),
    ] {
        let (status, answer) = alice.request("GET", &format!("{V3}/sync?{query}"), None);
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{query}: {answer}");
    }
    assert_eq!(sync(&alice, "set_presence=offline")["rooms"], Value::Null);
}

#[test]
fn a_client_that_is_ahead_of_a_restored_backup_begins_anew() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    alice.send(&room, "kept");
    server.stop();
    let backup = doorstep::testing::temporary_folder("backup");
    let copy = |from: &std::path::Path, to: &std::path::Path| {
        for file in std::fs::read_dir(from).unwrap() {
            let file = file.unwrap();
            std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
        }
    };
    copy(server.folder(), &backup);
    server.resume();
    alice.send(&room, "lost");
    alice.initial_sync();
    let ahead = sync(&bob, "")["next_batch"].as_str().unwrap().to_owned();
    server.stop();
    for file in std::fs::read_dir(server.folder()).unwrap() {
        std::fs::remove_file(file.unwrap().path()).unwrap();
    }
    copy(&backup, server.folder());
    std::fs::remove_dir_all(&backup).unwrap();
    server.resume();
    let timeline = |answer: &Value| answer["rooms"]["join"][&room]["timeline"].clone();
    // At once, whole, and however far ahead.
    for ahead in [ahead, format!("s{}", i64::MAX)] {
        let started = Instant::now();
        let whole = sync(&bob, &format!("timeout=60000&since={ahead}"));
        assert!(started.elapsed() < Duration::from_secs(30));
        assert_eq!(bodies(&timeline(&whole)), ["kept"]);
        assert!(types(&whole["account_data"]).contains(&"m.push_rules"));
        // A page of history has the same idea of it.
        let back = bob.get(&room_path(&room, &format!("messages?dir=b&limit=1&from={ahead}")));
        assert_eq!(back["chunk"][0]["content"]["body"], "kept");
    }
    // And from there it goes on as usual.
    let whole = sync(&bob, &format!("since=s{}", i64::MAX));
    alice.send(&room, "new");
    let more = sync(&bob, &next(&whole));
    assert_eq!(bodies(&timeline(&more)), ["new"]);
    assert_eq!(sync(&bob, &next(&more))["rooms"], Value::Null);
}

#[test]
fn a_waiting_sync_returns_when_something_happens_and_empty_when_nothing_does() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let start = sync(&bob, "");
    let nothing = sync(&bob, &format!("{}&timeout=50", next(&start)));
    assert!(nothing.get("rooms").is_none());
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let started = Instant::now();
            (sync(&bob, &format!("{}&timeout=30000", next(&nothing))), started.elapsed())
        });
        while server.homeserver().notifier.waiting() == 0 {
            std::thread::yield_now();
        }
        alice.send(&room, "wake up");
        let (answer, took) = waiting.join().unwrap();
        assert_eq!(bodies(&answer["rooms"]["join"][&room]["timeline"]), ["wake up"]);
        assert!(took < Duration::from_secs(25), "it was the message that ended the wait");
    });
}

#[test]
fn invites_account_data_and_other_rooms_wake_a_waiting_sync_too() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "private_chat"}));
    let wait_for = |act: &dyn Fn(), section: &str| {
        let start = sync(&bob, "");
        std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sync(&bob, &format!("{}&timeout=30000", next(&start))));
            while server.homeserver().notifier.waiting() == 0 {
                std::thread::yield_now();
            }
            act();
            let answer = waiting.join().unwrap();
            assert!(answer.pointer(section).is_some(), "{section}: {answer}");
        });
    };
    wait_for(&|| alice.invite(&room, bob.id()), "/rooms/invite");
    wait_for(&|| drop(bob.join(&room)), "/rooms/join");
    let data = format!("{V3}/user/{}/account_data/org.example.x", segment(bob.id()));
    wait_for(&|| drop(bob.put(&data, json!({}))), "/account_data");
    wait_for(&|| alice.act_on("kick", &room, bob.id()), "/rooms/leave");
}

#[test]
fn a_chain_of_syncs_tells_every_message_exactly_once() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    const MESSAGES: usize = 60;
    std::thread::scope(|scope| {
        let mut token = next(&sync(&bob, ""));
        let reader = scope.spawn(move || {
            let mut seen: Vec<String> = Vec::new();
            let deadline = Instant::now() + Duration::from_secs(60);
            while seen.len() < MESSAGES {
                assert!(Instant::now() < deadline, "saw only {seen:?}");
                let query = filter(&json!({"room": {"timeline": {"limit": 100}}}));
                let answer = sync(&bob, &format!("{token}&timeout=5000&{query}"));
                token = next(&answer);
                let joined = answer["rooms"]["join"].as_object().into_iter().flatten();
                for (_, room) in joined {
                    seen.extend(bodies(&room["timeline"]).into_iter().map(str::to_owned));
                }
            }
            seen
        });
        for n in 0..MESSAGES {
            alice.send(&room, &n.to_string());
        }
        let seen = reader.join().unwrap();
        let expected: Vec<String> = (0..MESSAGES).map(|n| n.to_string()).collect();
        assert_eq!(seen, expected);
    });
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

#[test]
fn a_room_joined_on_another_server_comes_whole_and_its_history_is_fetched() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "Far"}));
    let sent: Vec<String> = (0..30).map(|n| n.to_string()).collect();
    for body in &sent {
        alice.send(&room, body);
    }
    let before = sync(&bob, "");
    bob.join_via(&room, &[here.name()]);
    let answer = sync(&bob, &next(&before));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], true);
    assert_eq!(members(&joined["timeline"]), [bob.id()]);
    assert_eq!(members(&joined["state"]), [alice.id()]);
    assert!(
        types(&joined["state"]).contains(&"m.room.create")
            && types(&joined["state"]).contains(&"m.room.name")
    );
    assert_eq!(joined["summary"]["m.joined_member_count"], 2);
    let nothing = sync(&bob, &next(&answer));
    assert!(nothing.get("rooms").is_none(), "{nothing}");

    let mut from = joined["timeline"]["prev_batch"].as_str().unwrap().to_owned();
    let mut seen = Vec::new();
    loop {
        let page = bob.get(&room_path(&room, &format!("messages?dir=b&limit=7&from={from}")));
        seen.extend(page["chunk"].as_array().unwrap().clone());
        match page["end"].as_str() {
            Some(end) => end.clone_into(&mut from),
            None => break,
        }
    }
    seen.reverse();
    let bodies: Vec<&str> = seen.iter().filter_map(|e| e["content"]["body"].as_str()).collect();
    assert_eq!(bodies, sent);
    assert_eq!(seen[0]["type"], "m.room.create", "to the very beginning");

    alice.send(&room, "news");
    let answer = sync(&bob, &format!("{}&timeout=20000", next(&answer)));
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(joined["timeline"]["limited"], false);
    assert!(types(&joined["timeline"]).iter().all(|kind| *kind == "m.room.message"), "no history as news");
}

#[test]
fn memberships_in_rooms_of_other_servers_come_and_go_once() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "private_chat", "name": "Far",
        "initial_state": [{"type": "m.room.join_rules", "content": {"join_rule": "knock"}}],
    }));
    let start = sync(&bob, "");
    bob.knock_via(&room, &[here.name()]);
    let knocked = sync(&bob, &next(&start));
    let stripped = &knocked["rooms"]["knock"][&room]["knock_state"];
    assert!(types(stripped).contains(&"m.room.create") && types(stripped).contains(&"m.room.name"));
    assert_eq!(members(stripped), [bob.id()]);
    assert_eq!(rooms(&sync(&bob, ""), "knock"), std::slice::from_ref(&room));

    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    let invited = sync(&bob, &next(&knocked));
    assert_eq!(rooms(&invited, "knock"), Vec::<String>::new());
    assert!(members(&invited["rooms"]["invite"][&room]["invite_state"]).contains(&bob.id()));

    bob.leave(&room);
    for after in ["", "&use_state_after=true"] {
        let rejected = sync(&bob, &format!("{}{after}", next(&invited)));
        assert_eq!(rooms(&rejected, "invite"), Vec::<String>::new());
        let left = &rejected["rooms"]["leave"][&room];
        assert_eq!(members(&left["timeline"]), [bob.id()]);
        let event = &left["timeline"]["events"][0];
        assert_eq!(event["content"]["membership"], "leave");
        assert_eq!(event["unsigned"]["prev_content"]["membership"], "invite");
        let state = if after.is_empty() { "state" } else { "state_after" };
        assert_eq!(members(&left[state]).len(), usize::from(!after.is_empty()));
        // Delivery of the leave goes on in the background, and is no news.
        let nothing = sync(&bob, &next(&rejected));
        assert!(nothing.get("rooms").is_none(), "{nothing}");
    }
    assert_eq!(rooms(&sync(&bob, ""), "leave"), Vec::<String>::new());
    let archived = sync(&bob, &filter(&json!({"room": {"include_leave": true}})));
    assert_eq!(rooms(&archived, "leave"), [room]);
}

#[test]
fn aliases_and_profiles_of_other_servers_are_asked_of_them() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "room_alias_name": "pub"}));
    alice.put(&format!("{V3}/profile/{}/displayname", segment(alice.id())), json!({"displayname": "Alice"}));
    let alias = format!("#pub:{}", here.name());
    let found = bob.get(&format!("{V3}/directory/room/{}", segment(&alias)));
    assert_eq!(found, json!({"room_id": room, "servers": [here.name()]}));
    assert_eq!(bob.join(&alias), room);
    let profile = format!("{V3}/profile/{}", segment(alice.id()));
    assert_eq!(bob.get(&profile), json!({"displayname": "Alice"}));
    assert_eq!(bob.get(&format!("{profile}/displayname")), json!({"displayname": "Alice"}));
    assert_eq!(bob.request("GET", &format!("{profile}/avatar_url"), None).0, 404);
    let nobody = format!("{V3}/profile/{}", segment(&format!("@nobody:{}", here.name())));
    assert_eq!(bob.request("GET", &nobody, None).0, 404);
    let none = format!("{V3}/directory/room/{}", segment(&format!("#none:{}", here.name())));
    assert_eq!(bob.request("GET", &none, None).0, 404);
}
