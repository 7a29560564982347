//! Sliding sync in its accepted form, `POST /_matrix/client/v4/sync`: what it has otherwise than the older dialect.

use crate::common::client::room_path;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const V4: &str = "/_matrix/client/v4/sync";

/// A body with one list of all rooms.
fn all_rooms(timeline_limit: u64, required_state: Value) -> Value {
    json!({ "lists": { "all": { "timeline_limit": timeline_limit, "required_state": required_state } } })
}

#[track_caller]
fn slide(user: &TestUser, last: Option<&Value>, body: &Value) -> Value {
    let mut body = body.clone();
    if let Some(last) = last {
        body["pos"] = last["pos"].clone();
    }
    user.post(V4, body)
}

/// Type and state key of the state that is told.
fn tuples(room: &Value) -> Vec<(String, String)> {
    let state = room["required_state"].as_array().into_iter().flatten();
    let text = |value: &Value| value.as_str().expect("text").to_owned();
    let mut tuples: Vec<_> = state.map(|event| (text(&event["type"]), text(&event["state_key"]))).collect();
    tuples.sort();
    tuples
}

fn tuple(event_type: &str, state_key: &str) -> (String, String) {
    (event_type.to_owned(), state_key.to_owned())
}

#[test]
fn what_is_asked_and_told_has_the_names_of_the_accepted_text() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "name": "Named", "preset": "public_chat" }));
    bob.join(&room);
    bob.send(&room, "hello");
    let mut body = all_rooms(1, json!({ "include": [{ "type": "m.room.create" }], "lazy_members": true }));
    body["room_subscriptions"][&room] = json!({ "timeline_limit": 1, "required_state": {} });
    let first = slide(&alice, None, &body);
    assert_eq!(first["lists"], json!({ "all": { "count": 1 } }));
    let told = &first["rooms"][&room];
    assert_eq!(told["timeline_events"][0]["content"]["body"], "hello");
    assert_eq!((&told["membership"], &told["lists"]), (&json!("join"), &json!(["all"])));
    assert_eq!((&told["name"], &told["initial"]), (&json!("Named"), &json!(true)));
    let expected = [tuple("m.room.create", ""), tuple("m.room.member", bob.id())];
    assert_eq!(tuples(told), expected, "one's own member is not implied");
    for gone in ["notification_count", "highlight_count", "timeline", "invite_state"] {
        assert!(told.get(gone).is_none(), "{gone}");
    }
    // A longer timeline, and a name that is removed.
    body["lists"]["all"]["timeline_limit"] = json!(20);
    alice.set_state(&room, "m.room.name", "", json!({}));
    let second = slide(&alice, Some(&first), &body);
    let told = &second["rooms"][&room];
    assert_eq!((&told["expanded_timeline"], &told["name"]), (&json!(true), &Value::Null));
    assert!(told.as_object().unwrap().contains_key("name"), "null, and not absent");
    // Only subscribed to, it is in no list.
    body["lists"] = json!({});
    alice.send(&room, "more");
    let third = slide(&alice, Some(&second), &body);
    assert!(third["rooms"][&room].get("lists").is_none());
    // The token is a place in the room's history.
    let pos = segment(third["pos"].as_str().unwrap());
    let messages = alice.get(&room_path(&room, &format!("messages?dir=b&limit=1&from={pos}")));
    assert_eq!(messages["chunk"][0]["content"]["body"], "more");
    let related = room_path(&room, "messages?dir=f&limit=5&from=");
    assert_eq!(alice.get(&format!("{related}{pos}"))["chunk"], json!([]));
}

#[test]
fn required_state_includes_excludes_and_leaves_members_to_need() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    alice.set_state(&room, "org.example.thing", alice.id(), json!({ "n": 1 }));
    alice.send(&room, "m");
    let state = |required: Value| {
        let answer = slide(&alice, None, &all_rooms(1, required));
        tuples(&answer["rooms"][&room])
    };
    let (of_alice, of_bob) = (tuple("m.room.member", alice.id()), tuple("m.room.member", bob.id()));
    let everything = state(json!({ "include": [{}] }));
    assert!(everything.contains(&of_bob) && everything.contains(&tuple("m.room.create", "")));
    let lazy = state(json!({ "include": [{}], "lazy_members": true }));
    assert!(!lazy.contains(&of_bob) && lazy.contains(&of_alice));
    let exclude = json!([{ "type": "m.room.member" }, { "type": "m.room.create", "state_key": "" }]);
    let without = state(json!({ "include": [{}], "exclude": exclude }));
    assert!(!without.is_empty());
    assert!(without.iter().all(|(t, _)| t != "m.room.member" && t != "m.room.create"));
    let by_key = state(json!({ "include": [{ "state_key": alice.id() }] }));
    assert_eq!(by_key, [of_alice, tuple("org.example.thing", alice.id())]);
    assert_eq!(state(json!({})), []);
}

#[test]
fn invites_have_stripped_state_and_a_filter_of_their_own_name() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let own = bob.create_room();
    let room = alice.create_room_with(json!({ "name": "Secret", "invite": [bob.id()] }));
    let filtered = |filters: Value| {
        let mut body = all_rooms(1, json!({}));
        body["lists"]["all"]["filters"] = filters;
        slide(&bob, None, &body)
    };
    let answer = filtered(json!({ "is_invited": true }));
    let told = &answer["rooms"][&room];
    assert_eq!((&answer["lists"]["all"]["count"], &told["membership"]), (&json!(1), &json!("invite")));
    assert!(told.get("name").is_none() && told.get("heroes").is_none(), "{told}");
    let stripped = told["stripped_state"].as_array().expect("stripped state");
    assert!(stripped.iter().any(|e| e["state_key"] == bob.id() && e["content"]["membership"] == "invite"));
    let answer = filtered(json!({ "is_invited": false }));
    assert!(answer["rooms"].get(&own).is_some() && answer["rooms"].get(&room).is_none());
}

#[test]
fn a_range_may_be_given_and_what_goes_beyond_the_bounds_is_refused() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let rooms: Vec<String> = (0..3).map(|_| alice.create_room()).collect();
    let mut body = all_rooms(1, json!({}));
    assert_eq!(slide(&alice, None, &body)["rooms"].as_object().map(serde_json::Map::len), Some(3));
    body["lists"]["all"]["range"] = json!([1, 1]);
    let answer = slide(&alice, None, &body);
    assert_eq!(answer["rooms"].as_object().unwrap().keys().collect::<Vec<_>>(), [&rooms[1]]);
    let list = json!({ "timeline_limit": 1, "required_state": {} });
    let named = |count: usize, name: &dyn Fn(usize) -> String| -> Value {
        (0..count).map(|n| (name(n), list.clone())).collect::<serde_json::Map<_, _>>().into()
    };
    for (body, expected) in [
        (json!({ "lists": named(101, &|n| n.to_string()) }), "M_INVALID_PARAM"),
        (json!({ "room_subscriptions": named(101, &|n| format!("!r{n}:s")) }), "M_INVALID_PARAM"),
        (
            json!({ "lists": { "a": { "timeline_limit": 1, "required_state": {}, "range": [-1, 4] } } }),
            "M_INVALID_PARAM",
        ),
        (
            json!({ "lists": { "a": { "timeline_limit": 1, "required_state": {}, "range": [4, 1] } } }),
            "M_INVALID_PARAM",
        ),
        (
            json!({ "lists": { "a": { "timeline_limit": 1, "required_state": [["m.room.create", ""]] } } }),
            "M_BAD_JSON",
        ),
        (json!({ "lists": { "a": { "required_state": {} } } }), "M_BAD_JSON"),
        (json!({ "set_presence": "asleep" }), "M_INVALID_PARAM"),
        (json!({ "timeout": -1 }), "M_INVALID_PARAM"),
        (json!({ "pos": "s1~2.3" }), "M_UNKNOWN_POS"),
    ] {
        let (status, error) = alice.request("POST", V4, Some(body.clone()));
        assert_eq!((status, &error["errcode"]), (400, &json!(expected)), "{body}");
    }
}
