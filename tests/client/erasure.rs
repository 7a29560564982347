//! Users who asked with their deactivation to be erased: who comes into a room later gets redacted copies of what they sent,
//! here and on other servers, and who could see it before still can.

use std::io::Read;

use crate::common::client::{V3, room_path};
use doorstep::TestServer;
use doorstep::protocol::{EventId, RoomId, ServerName};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A user with a password, which it takes to deactivate the account.
fn user(server: &TestServer, name: &str) -> TestUser {
    let (id, token) = server.homeserver().accounts().register_user(name, Some("pw")).unwrap();
    TestUser::new(server.url(), id.as_str(), &token)
}

fn deactivate(user: &TestUser, erase: bool) {
    let identifier = json!({ "type": "m.id.user", "user": user.id() });
    let auth = json!({ "type": "m.login.password", "identifier": identifier, "password": "pw" });
    user.post(&format!("{V3}/account/deactivate"), json!({ "auth": auth, "erase": erase }));
}

/// A public room of this version, in which the other user is a moderator. These set its levels themselves.
fn room_of(owner: &TestUser, moderator: &TestUser, version: &str) -> String {
    let room = owner.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
    moderator.join(&room);
    let mut users = json!({ moderator.id(): 60 });
    if version != "12" {
        users[owner.id()] = json!(100);
    }
    let levels = json!({ "users": users, "state_default": 50, "invite": 50, "ban": 50 });
    owner.set_state(&room, "m.room.power_levels", "", levels.clone());
    let mut levels = levels;
    levels["ban"] = json!(55);
    moderator.set_state(&room, "m.room.power_levels", "", levels);
    room
}

/// Everything that the user finds of the room, by whatever endpoint: the events by their ids.
fn everything(user: &TestUser, room: &str, events: &[&str]) -> Vec<(String, Value)> {
    let mut found = Vec::new();
    let mut add = |way: &str, list: &Value| {
        for event in list.as_array().into_iter().flatten() {
            found.push((way.to_owned(), event.clone()));
        }
    };
    let filter = segment(r#"{"room":{"timeline":{"limit":100}}}"#);
    let synced = user.get(&format!("{V3}/sync?filter={filter}"));
    let joined = &synced["rooms"]["join"][room];
    add("sync timeline", &joined["timeline"]["events"]);
    add("sync state", &joined["state"]["events"]);
    let filter = segment(r#"{"room":{"timeline":{"limit":1},"state":{"lazy_load_members":true}}}"#);
    let synced = user.get(&format!("{V3}/sync?filter={filter}"));
    add("short sync state", &synced["rooms"]["join"][room]["state"]["events"]);
    for dir in ["b", "f"] {
        let filter = segment(r#"{"lazy_load_members":true}"#);
        let page = user.get(&room_path(room, &format!("messages?dir={dir}&limit=100&filter={filter}")));
        add("messages", &page["chunk"]);
        add("messages state", &page["state"]);
    }
    add("state", &user.get(&room_path(room, "state")));
    add("members", &user.get(&room_path(room, "members"))["chunk"]);
    for event in events {
        add("event", &json!([user.get(&room_path(room, &format!("event/{}", segment(event))))]));
        let context = user.get(&room_path(room, &format!("context/{}?limit=20", segment(event))));
        add("context", &json!([context["event"]]));
        add("context before", &context["events_before"]);
        add("context after", &context["events_after"]);
        add("context state", &context["state"]);
    }
    found
}

/// The ways by which the user finds these words in the room.
fn ways_to(user: &TestUser, room: &str, events: &[&str], words: &str) -> Vec<String> {
    let all = everything(user, room, events);
    for event in events {
        let seen = all.iter().filter(|(_, found)| found["event_id"] == *event);
        assert!(seen.count() >= 4, "{} does not find {event}", user.id());
    }
    all.into_iter().filter(|(_, event)| event.to_string().contains(words)).map(|(way, _)| way).collect()
}

#[test]
fn who_joins_after_an_erasure_gets_redacted_copies_and_who_could_see_before_still_does() {
    let server = TestServer::start();
    let (alice, bob) = (user(&server, "alice"), server.user("bob"));
    alice.put(
        &format!("{V3}/profile/{}/displayname", segment(alice.id())),
        json!({ "displayname": "Alice Secretive" }),
    );
    alice.put(
        &format!("{V3}/user/{}/account_data/org.example.diary", segment(alice.id())),
        json!({ "page": "Secretive" }),
    );
    let room = room_of(&bob, &alice, "10");
    let first = bob.send(&room, "hello");
    let message = alice.send(&room, "Secretive words");
    let topic = alice.set_state(&room, "m.room.topic", "", json!({ "topic": "a Secretive topic" }));
    bob.set_state(&room, "m.room.topic", "", json!({ "topic": "the next" }));
    let name = alice.set_state(&room, "m.room.name", "", json!({ "name": "The room" }));
    let redact = room_path(&room, &format!("redact/{}/1", segment(&bob.send(&room, "gone"))));
    let redaction = alice.put(&redact, json!({ "reason": "Secretive reasons" }))["event_id"].clone();
    let reply = bob.send(&room, "I heard that");
    // In between, and no more there afterwards.
    let (carol, eve) = (server.user("carol"), server.user("eve"));
    carol.join(&room);
    eve.join(&room);
    eve.leave(&room);
    deactivate(&alice, true);
    // Later.
    let dave = server.user("dave");
    dave.join(&room);
    eve.join(&room);
    let events = [first.as_str(), &message, &topic, &name, redaction.as_str().unwrap(), &reply];
    for early in [&bob, &carol, &eve] {
        let ways = ways_to(early, &room, &events, "Secretive words");
        for way in ["sync timeline", "messages", "event", "context", "context before", "context after"] {
            assert!(ways.iter().any(|w| w == way), "{}: {way} not in {ways:?}", early.id());
        }
        assert!(!ways_to(early, &room, &events, "Secretive reasons").is_empty());
    }
    assert_eq!(ways_to(&dave, &room, &events, "Secretive"), Vec::<String>::new());
    // The others' words and what the room is are no less there.
    assert!(ways_to(&dave, &room, &events, "I heard that").len() > 5);
    assert_eq!(dave.state(&room, "m.room.name", "").unwrap(), json!({ "name": "The room" }));
    assert!(ways_to(&dave, &room, &events, "The room").iter().any(|way| way == "sync timeline"));
    let seen = dave.get(&room_path(&room, &format!("event/{}", segment(&message))));
    assert_eq!((&seen["content"], &seen["sender"]), (&json!({}), &json!(alice.id())));
    let levels = dave.state(&room, "m.room.power_levels", "").unwrap();
    assert_eq!(levels["invite"], 50);
    // What is no event is gone.
    let alice = doorstep::protocol::UserId::parse(alice.id()).unwrap();
    let hs = server.homeserver();
    hs.store
        .read(|db| {
            assert!(db.profile(&alice)?.is_empty());
            assert_eq!(db.account_data(&alice, None, "org.example.diary")?, None);
            Ok(())
        })
        .unwrap();
}

#[test]
fn a_deactivation_without_erasure_and_other_peoples_messages_change_for_nobody() {
    let server = TestServer::start();
    let (alice, bob) = (user(&server, "alice"), server.user("bob"));
    let room = bob.create_room();
    alice.join(&room);
    let message = alice.send(&room, "to be kept");
    deactivate(&alice, false);
    let dave = server.user("dave");
    dave.join(&room);
    assert!(ways_to(&dave, &room, &[&message], "to be kept").len() > 4);
    let body = json!({ "erase": "yes" });
    let (status, answer) = bob.request("POST", &format!("{V3}/account/deactivate"), Some(body));
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_BAD_JSON")), "{answer}");
}

#[test]
fn what_is_world_readable_or_was_left_before_is_redacted_too() {
    let mut server = TestServer::start();
    let (alice, bob, eve) = (user(&server, "alice"), server.user("bob"), server.user("eve"));
    let room = bob.create_room();
    bob.set_state(&room, "m.room.history_visibility", "", json!({ "history_visibility": "world_readable" }));
    eve.join(&room);
    eve.leave(&room);
    alice.join(&room);
    let message = alice.send(&room, "Secretive");
    deactivate(&alice, true);
    server.restart();
    let page = |user: &TestUser| user.get(&room_path(&room, "messages?dir=b&limit=100")).to_string();
    let stranger = server.user("stranger");
    assert!(!page(&stranger).contains("Secretive") && page(&stranger).contains(&message));
    assert!(page(&bob).contains("Secretive"));
    // Who had left before it was said, and comes back after it was erased.
    eve.join(&room);
    assert!(!page(&eve).contains("Secretive"));
}

#[test]
fn servers_that_come_later_get_redacted_copies() {
    // "The erasure request is not shared over federation, so other servers might still serve unredacted copies": the one
    // that history is asked of first is the one of the erased user, since its name comes first.
    let (a, b) = TestServer::pair();
    let (a, b) = if a.name() < b.name() { (a, b) } else { (b, a) };
    let c = TestServer::start();
    let (alice, bob, zed) = (user(&a, "alice"), a.user("bob"), b.user("zed"));
    alice.put(
        &format!("{V3}/profile/{}/displayname", segment(alice.id())),
        json!({ "displayname": "Alice Secretive" }),
    );
    let room = room_of(&bob, &alice, "12");
    let early = alice.send(&room, "Secretive, early");
    zed.join_via(&room, &[a.name()]);
    let message = alice.send(&room, "Secretive words");
    let topic = alice.set_state(&room, "m.room.topic", "", json!({ "topic": "a Secretive topic" }));
    alice.set_state(&room, "m.room.name", "", json!({ "name": "The room" }));
    zed.sync_until("the topic", |s| s.to_string().contains("Secretive topic").then_some(()));
    bob.set_state(&room, "m.room.topic", "", json!({ "topic": "the next" }));
    deactivate(&alice, true);
    let yan = c.user("yan");
    yan.join_via(&room, &[a.name()]);
    let last = bob.send(&room, "welcome");
    yan.sync_until("the welcome", |s| s.to_string().contains("welcome").then_some(()));
    // History that its server fetches, and what it was given with the room.
    assert_eq!(ways_to(&yan, &room, &[&message, &early, &topic], "Secretive"), Vec::<String>::new());
    assert_eq!(yan.state(&room, "m.room.name", "").unwrap(), json!({ "name": "The room" }));
    // What the two servers are given, by every way.
    let hs = a.homeserver();
    let id = |text: &str| EventId::parse(text).unwrap();
    let room_id = RoomId::parse(&room).unwrap();
    let given = |server: &TestServer| {
        let origin = ServerName::parse(server.name()).unwrap();
        let mut text = String::new();
        let mut add = |way: &str, pdus: Vec<doorstep::protocol::Pdu>| {
            for pdu in pdus.iter().filter(|pdu| pdu.json_str().contains("Secretive")) {
                text.push_str(&format!("{way} {} ", pdu.event_id()));
            }
        };
        for event in [&message, &early, &topic] {
            add("event", vec![hs.events().event_for_peer(&origin, &id(event)).unwrap()]);
        }
        add("backfill", hs.events().backfill_for_peer(&origin, &room_id, &[id(&last)], 100).unwrap());
        let between = (&[][..], &[id(&last)][..]);
        add("missing", hs.events().missing_events_for_peer(&origin, &room_id, between, 0, 100).unwrap());
        add("auth", hs.events().auth_chain_for_peer(&origin, &room_id, &id(&topic)).unwrap());
        // The state when the topic was the older one, and what it rests on.
        let answer = hs.events().state_for_peer(&origin, &room_id, &id(&last)).unwrap();
        let (length, mut body) = (answer.length(), String::new());
        answer.into_reader(hs.clone()).read_to_string(&mut body).unwrap();
        assert_eq!(length, body.len() as u64);
        let state: Value = serde_json::from_str(&body).unwrap();
        for part in ["auth_chain", "pdus"] {
            assert!(state[part].as_array().unwrap().len() > 4);
            for event in state[part].as_array().unwrap() {
                if event.to_string().contains("Secretive") {
                    text.push_str(&format!("state {part} {} ", event["type"]));
                }
            }
        }
        text
    };
    assert_eq!(given(&c), "");
    let b_has = given(&b);
    for event in [&message, &early, &topic] {
        for way in ["event", "backfill", "missing"] {
            assert!(b_has.contains(&format!("{way} {event}")), "{way} {event}: {b_has}");
        }
    }
    assert!(b_has.contains("auth $") && b_has.contains("state auth_chain"), "{b_has}");
}
