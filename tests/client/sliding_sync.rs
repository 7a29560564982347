//! Sliding sync over a real socket: which rooms a client is told of, and what of each. The numbers are those of the rules
//! at the head of `src/service/sync/sliding/mod.rs`.

use std::time::{Duration, Instant};

use crate::common::client::{SLIDING, V3, one_list, room_path, slide, sliding_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// What no request may take that has nothing to wait for.
const AT_ONCE: Duration = Duration::from_secs(10);

fn room_ids(answer: &Value) -> Vec<&str> {
    answer["rooms"].as_object().expect("rooms").keys().map(String::as_str).collect()
}

fn events<'a>(room: &'a Value, section: &str) -> Vec<&'a Value> {
    room[section].as_array().into_iter().flatten().collect()
}

fn bodies(room: &Value) -> Vec<&str> {
    events(room, "timeline").iter().filter_map(|event| event["content"]["body"].as_str()).collect()
}

/// Type and state key of the state events.
fn tuples(room: &Value) -> Vec<(String, String)> {
    let text = |event: &Value, key: &str| event[key].as_str().expect("text").to_owned();
    let mut tuples: Vec<_> =
        events(room, "required_state").iter().map(|e| (text(e, "type"), text(e, "state_key"))).collect();
    tuples.sort();
    tuples
}

fn members(room: &Value) -> Vec<String> {
    tuples(room).into_iter().filter(|(t, _)| t == "m.room.member").map(|(_, user)| user).collect()
}

fn with_pos(user: &TestUser, pos: &str, body: &Value) -> (u16, Value) {
    user.request("POST", &format!("{SLIDING}?pos={}", segment(pos)), Some(body.clone()))
}

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
fn rule_1_the_last_two_answers_can_be_gone_on_from_and_nothing_is_lost_by_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let body = one_list(20, 5, &json!([]));
    let first = slide(&alice, None, &body);
    alice.send(&room, "one");
    let second = slide(&alice, Some(&first), &body);
    assert_eq!(bodies(&second["rooms"][&room]), ["one"]);
    // That answer did not arrive.
    alice.send(&room, "two");
    let again = slide(&alice, Some(&first), &body);
    assert_eq!(bodies(&again["rooms"][&room]), ["one", "two"]);
    // And with another body.
    let mut other = body.clone();
    other["lists"]["all"]["required_state"] = json!([["m.room.create", ""]]);
    let again = slide(&alice, Some(&first), &other);
    assert_eq!(bodies(&again["rooms"][&room]), ["one", "two"]);
    assert_eq!(tuples(&again["rooms"][&room]), [("m.room.create".to_owned(), String::new())]);
    let (status, error) = with_pos(&alice, second["pos"].as_str().unwrap(), &body);
    assert_eq!((status, &error["errcode"]), (400, &json!("M_UNKNOWN_POS")), "given up for another answer");
    let third = slide(&alice, Some(&again), &other);
    assert_eq!(room_ids(&third), [""; 0]);
    alice.send(&room, "three");
    slide(&alice, Some(&third), &other);
    let (status, _) = with_pos(&alice, first["pos"].as_str().unwrap(), &body);
    assert_eq!(status, 400, "older than the last two");
}

#[test]
fn rule_1_a_token_of_another_device_connection_or_invention_is_unknown() {
    let server = TestServer::start();
    let (alice, bob) = (TestUser::register(server.url(), "alice"), server.user("bob"));
    let body = one_list(20, 1, &json!([]));
    let answer = slide(&alice, None, &body);
    let pos = answer["pos"].as_str().unwrap();
    let login = json!({ "type": "m.login.password", "password": "alice",
        "identifier": { "type": "m.id.user", "user": "alice" } });
    let session = alice.post(&format!("{V3}/login"), login);
    let elsewhere = TestUser::new(alice.url(), alice.id(), session["access_token"].as_str().unwrap());
    let mut other = body.clone();
    other["conn_id"] = json!("other");
    let made_up = pos.replace('~', "0000000~");
    let next = format!("{pos}9");
    for (user, pos, body) in [
        (&bob, pos, &body),
        (&elsewhere, pos, &body),
        (&alice, pos, &other),
        (&alice, made_up.as_str(), &body),
        (&alice, next.as_str(), &body),
        (&alice, "s1", &body),
        (&alice, "nonsense", &body),
        (&alice, "s1~1.1", &body),
    ] {
        let (status, error) = with_pos(user, pos, body);
        assert_eq!((status, &error["errcode"]), (400, &json!("M_UNKNOWN_POS")), "{pos}");
    }
    assert_eq!(with_pos(&alice, pos, &body).0, 200, "and the right one goes on");
}

#[test]
fn a_request_that_waits_while_its_device_is_logged_out_hears_that() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let body = one_list(20, 1, &json!([]));
    let first = slide(&alice, None, &body);
    std::thread::scope(|scope| {
        let path = sliding_path(Some(&first), 60_000);
        let (alice, body) = (&alice, &body);
        let waiting = scope.spawn(move || alice.request("POST", &path, Some(body.clone())));
        while server.homeserver().notifier.waiting() == 0 {
            std::thread::yield_now();
        }
        alice.post(&format!("{V3}/logout"), json!({}));
        let (status, error) = waiting.join().unwrap();
        assert_eq!((status, &error["errcode"]), (401, &json!("M_UNKNOWN_TOKEN")), "{error}");
        assert_eq!(error["soft_logout"], false);
    });
}

#[test]
fn rule_1_connections_of_one_device_do_not_know_of_each_other() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let mut bodies: Vec<Value> = Vec::new();
    for name in ["room-list", "notifications"] {
        let mut body = one_list(20, 1, &json!([]));
        body["conn_id"] = json!(name);
        bodies.push(body);
    }
    let answers: Vec<Value> = bodies.iter().map(|body| slide(&alice, None, body)).collect();
    alice.send(&room, "hello");
    for (answer, body) in answers.iter().zip(&bodies) {
        let next = slide(&alice, Some(answer), body);
        assert_eq!(events(&next["rooms"][&room], "timeline").len(), 1);
    }
}

#[test]
fn rule_2_without_a_token_or_a_time_nothing_is_waited_for() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let body = one_list(20, 1, &json!([]));
    let started = Instant::now();
    let first = alice.post(&sliding_path(None, 600_000), body.clone());
    let second = slide(&alice, Some(&first), &body);
    let pos = segment(second["pos"].as_str().unwrap());
    alice.post(&format!("{SLIDING}?pos={pos}"), body.clone());
    assert!(started.elapsed() < AT_ONCE);
    // An empty answer has a token that can be gone on from.
    let empty = alice.post(&sliding_path(Some(&second), 1), body.clone());
    assert_eq!(room_ids(&empty), [""; 0]);
    assert_eq!(empty["lists"]["all"]["count"], 0);
    slide(&alice, Some(&empty), &body);
}

#[test]
fn rule_2_a_request_waits_until_there_is_something_to_send() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let body = one_list(20, 5, &json!([]));
    let first = slide(&alice, None, &body);
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| alice.post(&sliding_path(Some(&first), 60_000), body.clone()));
        while server.homeserver().notifier.waiting() == 0 {
            std::thread::yield_now();
        }
        bob.send(&room, "wake up");
        let answer = waiting.join().unwrap();
        assert_eq!(bodies(&answer["rooms"][&room]), ["wake up"]);
        assert_eq!(answer["rooms"][&room]["num_live"], 1);
        assert!(answer["rooms"][&room].get("initial").is_none());
    });
}

#[test]
fn rule_3_a_changed_request_is_answered_at_once_if_it_yields_anything() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let (old, new) = (alice.create_room(), alice.create_room());
    alice.set_state(&old, "m.room.topic", "", json!({ "topic": "t" }));
    alice.send(&new, "m");
    let first = slide(&alice, None, &one_list(1, 1, &json!([])));
    assert_eq!(room_ids(&first), [new.as_str()]);
    let started = Instant::now();
    let ask = |last: &Value, body: &Value| alice.post(&sliding_path(Some(last), 60_000), body.clone());
    // Another range.
    let second = ask(&first, &one_list(2, 1, &json!([])));
    assert_eq!(room_ids(&second), [old.as_str()]);
    // A subscription with more state and more of the timeline.
    let mut body = one_list(2, 1, &json!([]));
    body["room_subscriptions"][&old] =
        json!({ "timeline_limit": 20, "required_state": [["m.room.topic", ""]] });
    let third = ask(&second, &body);
    assert_eq!(room_ids(&third), [old.as_str()]);
    let told = &third["rooms"][&old];
    assert_eq!(told["unstable_expanded_timeline"], true);
    assert!(events(told, "timeline").len() > 5 && told.get("initial").is_none());
    assert_eq!(tuples(told), [("m.room.topic".to_owned(), String::new())]);
    // More state alone, of a room that the client knows: only what it did not have.
    body["room_subscriptions"][&old]["required_state"] =
        json!([["m.room.topic", ""], ["m.room.create", ""], ["m.room.power_levels", "*"]]);
    let fourth = ask(&third, &body);
    let expected = [("m.room.create", ""), ("m.room.power_levels", "")];
    assert_eq!(tuples(&fourth["rooms"][&old]), expected.map(|(t, k)| (t.to_owned(), k.to_owned())));
    assert_eq!(events(&fourth["rooms"][&old], "timeline").len(), 0);
    assert!(started.elapsed() < AT_ONCE);
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
fn a_request_that_was_overtaken_takes_nothing_from_the_one_that_came_after_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let body = one_list(20, 5, &json!([]));
    let first = slide(&alice, None, &body);
    std::thread::scope(|scope| {
        let waiting = |count| {
            while server.homeserver().notifier.waiting() < count {
                std::thread::yield_now();
            }
        };
        let old = scope.spawn(|| alice.post(&sliding_path(Some(&first), 60_000), body.clone()));
        waiting(1);
        let new = scope.spawn(|| alice.post(&sliding_path(Some(&first), 60_000), body.clone()));
        waiting(2);
        bob.send(&room, "for the second");
        let (old, new) = (old.join().unwrap(), new.join().unwrap());
        assert_eq!(bodies(&new["rooms"][&room]), ["for the second"]);
        assert_eq!(room_ids(&old), [""; 0]);
        assert_eq!(old["pos"], first["pos"]);
        assert_eq!(room_ids(&slide(&alice, Some(&new), &body)), [""; 0], "its token holds");
    });
}

#[test]
fn who_begins_anew_or_asks_for_more_waits_for_a_turn_and_who_goes_on_as_before_does_not() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let body = one_list(20, 5, &json!([["m.room.topic", ""]]));
    let keys_alone = json!({ "conn_id": "encryption", "extensions": { "e2ee": { "enabled": true } } });
    let first = slide(&alice, None, &body);
    let large = &server.homeserver().large_answers;
    let turns: Vec<_> = std::iter::from_fn(|| {
        large.turn(&doorstep::protocol::UserId::parse(alice.id()).expect("an id"), || false).ok()
    })
    .collect();
    assert!(!turns.is_empty());
    let mut fresh = body.clone();
    fresh["conn_id"] = json!("fresh");
    let more = one_list(20, 5, &json!([["*", "*"]]));
    let goes_on = |last: &Value, text: &str| {
        alice.send(&room, text);
        let next = slide(&alice, Some(last), &body);
        assert_eq!(bodies(&next["rooms"][&room]), [text]);
        slide(&alice, None, &keys_alone);
        next
    };
    let second = (0..5).fold(first, |last, n| goes_on(&last, &n.to_string()));
    std::thread::scope(|scope| {
        let anew = scope.spawn(|| slide(&alice, None, &fresh));
        let asks_for_more = scope.spawn(|| slide(&alice, Some(&second), &more));
        for _ in 0..10 {
            slide(&alice, None, &keys_alone);
        }
        assert!(!anew.is_finished() && !asks_for_more.is_finished());
        drop(turns);
        assert_eq!(room_ids(&anew.join().expect("an answer")), [room.as_str()]);
        let told = asks_for_more.join().expect("an answer");
        assert!(tuples(&told["rooms"][&room]).len() > 4);
    });
}

#[test]
fn what_is_out_of_bounds_is_refused_and_changes_nothing() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let good = one_list(20, 1, &json!([]));
    let first = slide(&alice, None, &good);
    let list = |key: &str, value: Value| {
        let mut body = good.clone();
        body["lists"]["all"][key] = value;
        body
    };
    let many = |count: usize| {
        let list = json!({ "ranges": [[0, 1]], "timeline_limit": 1, "required_state": [] });
        json!({ "lists": (0..count).map(|n| (n.to_string(), list.clone())).collect::<serde_json::Map<_, _>>() })
    };
    let states: Vec<_> = (0..501).map(|n| json!(["t", n.to_string()])).collect();
    let subscribed: serde_json::Map<_, _> =
        (0..1001).map(|n| (format!("!r{n}:s"), json!({ "timeline_limit": 1 }))).collect();
    let cases = [
        (many(1000), "M_INVALID_PARAM"),
        (many(101), "M_INVALID_PARAM"),
        (list("ranges", json!([[-1, 5]])), "M_INVALID_PARAM"),
        (list("ranges", json!([[5, 1]])), "M_INVALID_PARAM"),
        (list("ranges", json!(vec![[0, 1]; 101])), "M_INVALID_PARAM"),
        (list("ranges", json!([[0]])), "M_BAD_JSON"),
        (list("ranges", json!("all")), "M_BAD_JSON"),
        (list("ranges", json!([[0, 1e30]])), "M_BAD_JSON"),
        (list("timeline_limit", json!(-1)), "M_INVALID_PARAM"),
        (list("timeline_limit", json!("many")), "M_BAD_JSON"),
        (list("required_state", json!(states)), "M_INVALID_PARAM"),
        (list("required_state", json!([["only one"]])), "M_BAD_JSON"),
        (list("required_state", json!([["t".repeat(256), ""]])), "M_INVALID_PARAM"),
        (list("required_state", json!([["t", "k".repeat(256)]])), "M_INVALID_PARAM"),
        (list("filters", json!({ "tags": ["t".repeat(256)] })), "M_INVALID_PARAM"),
        (list("filters", json!({ "spaces": ["s".repeat(256)] })), "M_INVALID_PARAM"),
        (list("filters", json!({ "room_types": ["t".repeat(256)] })), "M_INVALID_PARAM"),
        (list("filters", json!({ "tags": vec!["t"; 501] })), "M_INVALID_PARAM"),
        (json!({ "conn_id": "c".repeat(65) }), "M_INVALID_PARAM"),
        (json!({ "conn_id": 7 }), "M_BAD_JSON"),
        (json!({ "lists": [] }), "M_BAD_JSON"),
        (json!({ "lists": { "n".repeat(65): good["lists"]["all"] } }), "M_INVALID_PARAM"),
        (json!({ "room_subscriptions": subscribed }), "M_INVALID_PARAM"),
        (json!({ "extensions": { "to_device": { "enabled": true, "since": "x" } } }), "M_INVALID_PARAM"),
        (
            json!({ "extensions": { "typing": { "enabled": true, "rooms": vec!["r"; 501] } } }),
            "M_INVALID_PARAM",
        ),
    ];
    for (body, expected) in cases {
        for pos in [None, Some(&first)] {
            let (status, error) = alice.request("POST", &sliding_path(pos, 0), Some(body.clone()));
            let shown = body.to_string();
            assert_eq!(
                (status, &error["errcode"]),
                (400, &json!(expected)),
                "{}",
                &shown[..shown.len().min(300)]
            );
        }
    }
    let (status, error) = alice.request("POST", &format!("{SLIDING}?timeout=-1"), Some(good.clone()));
    assert_eq!((status, &error["errcode"]), (400, &json!("M_INVALID_PARAM")));
    let (status, error) =
        alice.request("POST", &format!("{SLIDING}?set_presence=asleep"), Some(good.clone()));
    assert_eq!((status, &error["errcode"]), (400, &json!("M_INVALID_PARAM")));
    // Too much, and too deep.
    let huge = json!({ "conn_id": "x".repeat(300 * 1024) });
    assert_eq!(alice.request("POST", SLIDING, Some(huge)).1["errcode"], "M_TOO_LARGE");
    let mut deep = json!({});
    for _ in 0..500 {
        deep = json!({ "deeper": deep });
    }
    assert_eq!(alice.request("POST", SLIDING, Some(list("unknown", deep))).0, 400);
    // The connection is as it was.
    alice.send(&room, "still there");
    let second = slide(&alice, Some(&first), &good);
    assert_eq!(bodies(&second["rooms"][&room]), ["still there"]);
    // 100 lists, and ranges that overlap or lie behind the end, are what they are.
    assert_eq!(room_ids(&slide(&alice, None, &many(100))), [room.as_str()]);
    let odd = list("ranges", json!([[0, 0], [0, 5], [3, 9], [1_000_000, 2_000_000]]));
    assert_eq!(room_ids(&slide(&alice, None, &odd)), [room.as_str()]);
    let behind = list("ranges", json!([[7, 9]]));
    let answer = slide(&alice, None, &behind);
    assert_eq!((room_ids(&answer), &answer["lists"]["all"]["count"]), (vec![], &json!(1)));
}

#[test]
fn a_device_has_a_bounded_number_of_connections_and_the_one_used_least_lately_goes() {
    let server = TestServer::start();
    let alice = server.user("alice");
    alice.create_room();
    let body = |n: usize| {
        let mut body = one_list(20, 1, &json!([]));
        body["conn_id"] = json!(n.to_string());
        body
    };
    let answers: Vec<Value> = (0..20)
        .map(|n| {
            server.advance(Duration::from_secs(1));
            slide(&alice, None, &body(n))
        })
        .collect();
    for (n, answer) in answers.iter().enumerate() {
        let (status, _) = alice.request("POST", &sliding_path(Some(answer), 0), Some(body(n)));
        assert_eq!(status, if n < 4 { 400 } else { 200 }, "{n}");
    }
}

#[test]
fn connections_outlive_a_restart() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let body = one_list(20, 5, &json!([["m.room.member", "$LAZY"]]));
    let first = slide(&alice, None, &body);
    bob.send(&room, "before");
    let second = slide(&alice, Some(&first), &body);
    server.restart();
    bob.send(&room, "after");
    // The last answer but one, and then the last.
    let again = slide(&alice, Some(&first), &body);
    assert_eq!(bodies(&again["rooms"][&room]), ["before", "after"]);
    let (status, _) = with_pos(&alice, second["pos"].as_str().unwrap(), &body);
    assert_eq!(status, 400);
    server.restart();
    let third = slide(&alice, Some(&again), &body);
    assert_eq!(room_ids(&third), [""; 0]);
    bob.send(&room, "again");
    let fourth = slide(&alice, Some(&third), &body);
    assert!(fourth["rooms"][&room].get("initial").is_none());
    assert_eq!((bodies(&fourth["rooms"][&room]), members(&fourth["rooms"][&room])), (vec!["again"], vec![]));
}

#[test]
fn a_connection_that_nobody_uses_for_a_week_is_forgotten() {
    let server = TestServer::start();
    let alice = server.user("alice");
    alice.create_room();
    let used = one_list(20, 1, &json!([]));
    let mut unused = used.clone();
    unused["conn_id"] = json!("unused");
    let (mut last, forgotten) = (slide(&alice, None, &used), slide(&alice, None, &unused));
    for _ in 0..8 {
        server.advance(Duration::from_secs(24 * 3600));
        last = slide(&alice, Some(&last), &used);
    }
    let (status, error) = with_pos(&alice, forgotten["pos"].as_str().unwrap(), &unused);
    assert_eq!((status, &error["errcode"]), (400, &json!("M_UNKNOWN_POS")));
    slide(&alice, Some(&last), &used);
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
