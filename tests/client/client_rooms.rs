//! Rooms over a real socket: made in every way, spoken in, read back, named, and the profiles and data around them.

use crate::common::client::{V3, room_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn refusal(user: &TestUser, method: &str, path: &str, body: Option<Value>) -> (u16, String) {
    let (status, answer) = user.request(method, path, body);
    (
        status,
        answer["errcode"].as_str().unwrap_or_else(|| panic!("{method} {path}: {status} {answer}")).to_owned(),
    )
}

fn says(status: u16, errcode: &str) -> (u16, String) {
    (status, errcode.to_owned())
}

fn bodies(events: &Value) -> Vec<String> {
    let events = events.as_array().expect("a list of events");
    events.iter().filter_map(|e| e["content"]["body"].as_str()).map(str::to_owned).collect()
}

#[test]
fn rooms_of_every_version_and_preset_have_the_state_that_the_specification_lists() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for version in 1..=12 {
        for (preset, join_rule, guests) in [
            ("private_chat", "invite", "can_join"),
            ("trusted_private_chat", "invite", "can_join"),
            ("public_chat", "public", "forbidden"),
        ] {
            let room = alice.create_room_with(json!({"preset": preset, "room_version": version.to_string()}));
            let state = |kind: &str| {
                alice.state(&room, kind, "").unwrap_or_else(|| panic!("{version} {preset} {kind}"))
            };
            let create = state("m.room.create");
            assert_eq!(create["room_version"], version.to_string());
            assert_eq!(create.get("creator").is_some(), version <= 10, "version {version}");
            assert_eq!(state("m.room.join_rules")["join_rule"], join_rule);
            assert_eq!(state("m.room.guest_access")["guest_access"], guests);
            assert_eq!(state("m.room.history_visibility")["history_visibility"], "shared");
            let levels = state("m.room.power_levels");
            assert_eq!(levels["users"].get(alice.id()).is_some(), version <= 11, "version {version}");
            assert_eq!(alice.membership_of(&room, alice.id()).as_deref(), Some("join"));
            assert_eq!(room.contains(':'), version <= 11, "version {version}: {room}");
        }
    }
}

#[test]
fn a_room_is_made_with_every_option_at_once() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "private_chat", "visibility": "public", "room_version": "11", "room_alias_name": "pub",
        "name": "The Pub", "topic": "Happy hour", "invite": [bob.id()], "is_direct": true,
        "creation_content": {"type": "m.space", "m.federate": false,
            "predecessor": {"room_id": "!old:example.org", "event_id": "$old"}},
        "initial_state": [{"type": "org.example.beer", "state_key": "tap", "content": {"kind": "stout"}}],
        "power_level_content_override": {"events_default": 25},
    }));
    let state = |kind: &str, key: &str| alice.state(&room, kind, key).unwrap_or_else(|| panic!("no {kind}"));
    assert_eq!(state("m.room.create", "")["type"], "m.space");
    assert_eq!(state("m.room.create", "")["m.federate"], false);
    assert_eq!(state("m.room.create", "")["predecessor"]["event_id"], "$old");
    assert_eq!(state("m.room.name", "")["name"], "The Pub");
    assert_eq!(state("m.room.topic", "")["topic"], "Happy hour");
    assert_eq!(state("m.room.topic", "")["m.topic"]["m.text"][0]["body"], "Happy hour");
    assert_eq!(state("m.room.canonical_alias", "")["alias"], format!("#pub:{}", server.name()));
    assert_eq!(state("m.room.power_levels", "")["events_default"], 25);
    assert_eq!(state("org.example.beer", "tap")["kind"], "stout");
    let invite = state("m.room.member", bob.id());
    assert_eq!((invite["membership"].as_str(), invite["is_direct"].as_bool()), (Some("invite"), Some(true)));

    let directory = alice.get(&format!("{V3}/publicRooms"));
    assert_eq!(directory["chunk"][0]["room_id"], room);
    assert_eq!(directory["chunk"][0]["room_type"], "m.space");
    assert_eq!(directory["chunk"][0]["topic"], "Happy hour");
    assert_eq!(directory["chunk"][0]["join_rule"], "invite");
    assert_eq!(directory["chunk"][0]["num_joined_members"], 1);
    let found = bob.get(&format!("{V3}/directory/room/{}", segment(&format!("#pub:{}", server.name()))));
    assert_eq!(found, json!({"room_id": room, "servers": [server.name()]}));
}

#[test]
fn trusted_invitees_of_version_12_are_creators() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "trusted_private_chat", "room_version": "12", "invite": [bob.id()],
    }));
    assert_eq!(alice.state(&room, "m.room.create", "").unwrap()["additional_creators"], json!([bob.id()]));
    bob.join(&room);
    bob.set_state(&room, "m.room.tombstone", "", json!({"body": "moved", "replacement_room": "!new"}));
}

#[test]
fn a_room_that_cannot_be_made_leaves_nothing_behind() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let create = |body: Value| refusal(&alice, "POST", &format!("{V3}/createRoom"), Some(body));
    assert_eq!(create(json!({"room_version": "13"})), says(400, "M_UNSUPPORTED_ROOM_VERSION"));
    assert_eq!(create(json!({"preset": "open_bar"})), says(400, "M_BAD_JSON"));
    assert_eq!(create(json!([])), says(400, "M_BAD_JSON"));
    assert_eq!(create(json!({"invite": ["bob"]})), says(400, "M_INVALID_PARAM"));
    assert_eq!(create(json!({"room_alias_name": "a:b"})), says(400, "M_INVALID_PARAM"));
    let third_party = json!({"invite_3pid": [
        {"id_server": "localhost:1", "id_access_token": "y", "medium": "email", "address": "a@b.c"}]});
    assert_eq!(create(third_party), says(504, "M_UNKNOWN"));
    let powerless = json!({
        "room_version": "11", "room_alias_name": "pub", "name": "No",
        "power_level_content_override": {"users": {alice.id(): 0}},
    });
    assert_eq!(create(powerless), says(400, "M_INVALID_ROOM_STATE"));
    let creator_has_a_level = json!({
        "room_version": "12", "power_level_content_override": {"users": {alice.id(): 100}},
    });
    assert_eq!(create(creator_has_a_level), says(400, "M_INVALID_ROOM_STATE"));
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([]));

    alice.create_room_with(json!({"room_alias_name": "pub"}));
    assert_eq!(create(json!({"room_alias_name": "pub"})), says(400, "M_ROOM_IN_USE"));
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"].as_array().unwrap().len(), 1);
}

#[test]
fn a_repeated_transaction_makes_no_second_event() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let path = room_path(&room, "send/m.room.message/txn1");
    let first = alice.put(&path, json!({"body": "one"}));
    assert_eq!(alice.put(&path, json!({"body": "one"})), first);
    // Another endpoint, and another device, are another scope.
    let other_type = alice.put(&room_path(&room, "send/org.example.other/txn1"), json!({"body": "two"}));
    let other_user = bob.put(&path, json!({"body": "three"}));
    assert_ne!(other_type, first);
    assert_ne!(other_user, first);
    let history = alice.get(&room_path(&room, "messages?dir=b&limit=3"));
    assert_eq!(bodies(&history["chunk"]), ["three", "two", "one"]);
}

#[test]
fn the_same_transaction_sent_at_once_many_times_makes_one_event() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let path = format!("{}{}", server.url(), room_path(&room, "send/m.room.message/only"));
    let ids: std::collections::BTreeSet<String> = std::thread::scope(|scope| {
        let sends: Vec<_> = (0..8)
            .map(|_| {
                scope.spawn(|| {
                    let body = json!({"body": "once"}).to_string();
                    let header = format!("Bearer {}", alice.token());
                    let answer = ureq::put(&path).header("authorization", header).send(body).expect("a 200");
                    answer.into_body().read_to_string().expect("a body")
                })
            })
            .collect();
        sends.into_iter().map(|send| send.join().unwrap()).collect()
    });
    assert_eq!(ids.len(), 1, "{ids:?}");
    let history = alice.get(&room_path(&room, "messages?dir=b&limit=100"));
    assert_eq!(bodies(&history["chunk"]), ["once"]);
}

#[test]
fn state_is_written_and_read_by_every_form_of_its_path() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    for path in ["state/org.example.a", "state/org.example.a/"] {
        alice.put(&room_path(&room, path), json!({"path": path}));
        assert_eq!(alice.get(&room_path(&room, "state/org.example.a"))["path"], path);
        assert_eq!(alice.get(&room_path(&room, "state/org.example.a/"))["path"], path);
    }
    alice.set_state(&room, "org.example.a", "key/with slash", json!({"n": 1}));
    assert_eq!(alice.state(&room, "org.example.a", "key/with slash"), Some(json!({"n": 1})));
    let event = alice.get(&room_path(&room, "state/m.room.create/?format=event"));
    assert_eq!(event["type"], "m.room.create");
    assert_eq!(event["state_key"], "");
    assert_eq!(event["room_id"], room);
    assert_eq!(event["sender"], alice.id());
    assert!(event["event_id"].is_string() && event["origin_server_ts"].is_i64());
    let all = alice.get(&room_path(&room, "state"));
    assert_eq!(all.as_array().unwrap().iter().filter(|e| e["type"] == "org.example.a").count(), 2);

    assert_eq!(refusal(&alice, "GET", &room_path(&room, "state/m.nothing"), None), says(404, "M_NOT_FOUND"));
    for path in ["state", "state/m.room.create", "members", "joined_members", "aliases", "messages?dir=b"] {
        assert_eq!(refusal(&bob, "GET", &room_path(&room, path), None), says(403, "M_FORBIDDEN"), "{path}");
        let nowhere = room_path("!nowhere:example.org", path);
        assert_eq!(refusal(&bob, "GET", &nowhere, None), says(403, "M_FORBIDDEN"), "{path}");
    }
    let put = |user: &TestUser, room: &str| {
        refusal(user, "PUT", &room_path(room, "state/m.room.name"), Some(json!({"name": "x"})))
    };
    assert_eq!(put(&bob, &room), says(403, "M_FORBIDDEN"));
    assert_eq!(put(&bob, "!nowhere:example.org"), says(403, "M_FORBIDDEN"));
    let not_json = refusal(&alice, "PUT", &room_path(&room, "state/m.room.name"), Some(json!("no object")));
    assert_eq!(not_json, says(400, "M_BAD_JSON"));
}

#[test]
fn state_that_would_not_change_makes_no_new_event() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let first = alice.set_state(&room, "m.room.name", "", json!({"name": "one"}));
    assert_eq!(alice.set_state(&room, "m.room.name", "", json!({"name": "one"})), first);
    assert_ne!(alice.set_state(&room, "m.room.name", "", json!({"name": "two"})), first);
}

#[test]
fn memberships_can_be_set_as_state() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "private_chat"}));
    let set = |by: &TestUser, membership: &str, of: &TestUser| {
        by.set_state(&room, "m.room.member", of.id(), json!({"membership": membership}))
    };
    let invite = set(&alice, "invite", &bob);
    assert_eq!(bob.initial_sync()["rooms"]["invite"].as_object().unwrap().len(), 1);
    assert!(invite.starts_with('$'));
    set(&bob, "join", &bob);
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("join"));
    // A name of this room alone.
    bob.set_state(&room, "m.room.member", bob.id(), json!({"membership": "join", "displayname": "Robert"}));
    assert_eq!(alice.state(&room, "m.room.member", bob.id()).unwrap()["displayname"], "Robert");
    let path = room_path(&room, &format!("state/m.room.member/{}", segment(bob.id())));
    for (wrong, errcode) in [
        (json!("x".repeat(300)), "M_INVALID_PARAM"),
        (json!({ "a": 1 }), "M_BAD_JSON"),
        (json!(5), "M_BAD_JSON"),
    ] {
        let named = json!({"membership": "join", "displayname": wrong});
        assert_eq!(refusal(&bob, "PUT", &path, Some(named)), says(400, errcode));
        assert_eq!(alice.state(&room, "m.room.member", bob.id()).unwrap()["displayname"], "Robert");
    }
    bob.set_state(&room, "m.room.member", bob.id(), json!({"membership": "join", "displayname": null}));
    set(&alice, "leave", &bob);
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("leave"));
    set(&alice, "ban", &bob);
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("ban"));
    assert_eq!(refusal(&bob, "PUT", &path, Some(json!({"membership": "join"}))), says(403, "M_FORBIDDEN"));
    assert_eq!(refusal(&bob, "PUT", &path, Some(json!({"membership": "guest"}))), says(400, "M_BAD_JSON"));
}

#[test]
fn a_join_that_is_set_as_state_says_the_name_that_it_says_wherever_the_room_is() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let carol = here.user("carol");
    for user in [&bob, &carol] {
        let path = |field: &str| format!("{V3}/profile/{}/{field}", segment(user.id()));
        user.put(&path("displayname"), json!({"displayname": "Of The Profile"}));
        user.put(&path("avatar_url"), json!({"avatar_url": "mxc://of.the/profile"}));
    }
    let body = json!({"preset": "public_chat", "room_version": "11"});
    let rooms = [(); 2].map(|()| alice.create_room_with(body.clone()));
    for user in [&carol, &bob] {
        let join = |room: &str, body: Value| {
            user.set_state(room, "m.room.member", user.id(), body);
            alice.wait_for_membership(room, user.id(), "join");
            alice.state(room, "m.room.member", user.id()).expect("a member")
        };
        let own = json!({"membership": "join", "displayname": "Robert", "avatar_url": "mxc://of.this/room"});
        assert_eq!(join(&rooms[0], own.clone()), own, "{}", user.id());
        // What it does not say, or not as a text, the profile does.
        let said = join(&rooms[1], json!({"membership": "join", "displayname": 7, "org.example.x": 1}));
        let expected = json!({ "membership": "join", "displayname": "Of The Profile",
                               "avatar_url": "mxc://of.the/profile", "org.example.x": 1 });
        assert_eq!(said, expected, "{}", user.id());
    }
    // A name may be as long as in a profile.
    let (room, eve) = (&rooms[0], here.user("eve"));
    let path = room_path(room, &format!("state/m.room.member/{}", segment(eve.id())));
    for (field, most) in [("displayname", 256), ("avatar_url", 1000)] {
        let body = json!({"membership": "join", field: "x".repeat(most + 1)});
        assert_eq!(refusal(&eve, "PUT", &path, Some(body)), says(400, "M_INVALID_PARAM"), "{field}");
    }
    // What a body of `/join` says of them counts as little as before.
    eve.post(&format!("{V3}/join/{}", segment(room)), json!({"displayname": "Adam"}));
    assert_eq!(
        alice.state(room, "m.room.member", eve.id()).expect("a member"),
        json!({"membership": "join"})
    );
    // A later change of the profile is told to every room.
    carol.put(&format!("{V3}/profile/{}/displayname", segment(carol.id())), json!({"displayname": "New"}));
    for room in &rooms {
        let member = alice.state(room, "m.room.member", carol.id()).expect("a member");
        assert_eq!(member["displayname"], "New");
    }
}

#[test]
fn redactions_take_effect_for_those_who_may() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for version in ["1", "10", "11", "12"] {
        let room = alice.create_room_with(json!({"preset": "public_chat", "room_version": version}));
        bob.join(&room);
        let (of_alice, of_bob) = (alice.send(&room, "from alice"), bob.send(&room, "from bob"));
        let redact = |event: &str| room_path(&room, &format!("redact/{}/{}", segment(event), segment(event)));
        assert_eq!(
            refusal(&bob, "PUT", &redact(&of_alice), Some(json!({}))),
            says(403, "M_FORBIDDEN"),
            "version {version}"
        );
        assert_eq!(refusal(&bob, "PUT", &redact("$none"), Some(json!({}))), says(404, "M_NOT_FOUND"));
        let by = alice.put(&redact(&of_bob), json!({"reason": "spam"}));
        assert_eq!(alice.put(&redact(&of_bob), json!({"reason": "spam"})), by, "a repeat");
        let event = bob.get(&room_path(&room, &format!("event/{}", segment(&of_bob))));
        assert_eq!(event["content"], json!({}), "version {version}");
        let because = &event["unsigned"]["redacted_because"];
        assert_eq!(because["event_id"], by["event_id"]);
        assert_eq!(because["content"]["reason"], "spam");
        // Both places, whatever the version.
        assert_eq!(because["redacts"], of_bob);
        assert_eq!(because["content"]["redacts"], of_bob);
        // By the other endpoint.
        let send = room_path(&room, "send/m.room.redaction/bysend");
        alice.put(&send, json!({"redacts": of_alice}));
        let event = bob.get(&room_path(&room, &format!("event/{}", segment(&of_alice))));
        assert_eq!(event["content"], json!({}), "version {version}");
    }
}

#[test]
fn history_is_paged_in_both_directions_without_gap_or_repeat() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let sent: Vec<String> = (0..25).map(|n| format!("message {n}")).collect();
    for body in &sent {
        alice.send(&room, body);
    }
    for (dir, reverse) in [("b", true), ("f", false)] {
        let mut seen = Vec::new();
        let mut from = String::new();
        loop {
            let page = alice.get(&room_path(&room, &format!("messages?dir={dir}&limit=7{from}")));
            assert!(page["chunk"].as_array().unwrap().len() <= 7);
            seen.extend(bodies(&page["chunk"]));
            match page["end"].as_str() {
                Some(end) => from = format!("&from={}", segment(end)),
                None => break,
            }
        }
        if reverse {
            seen.reverse();
        }
        assert_eq!(seen, sent, "dir={dir}");
    }
    // A page up to a token, and one in the middle read back the other way.
    let latest = alice.get(&room_path(&room, "messages?dir=b&limit=5"));
    let (start, end) = (latest["start"].as_str().unwrap(), latest["end"].as_str().unwrap());
    let between = alice.get(&room_path(&room, &format!("messages?dir=f&from={end}&to={start}&limit=100")));
    assert_eq!(bodies(&between["chunk"]), sent[20..]);
    let filter = segment(r#"{"types":["m.room.create"]}"#);
    let filtered = alice.get(&room_path(&room, &format!("messages?dir=b&filter={filter}")));
    assert_eq!(filtered["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(filtered["chunk"][0]["type"], "m.room.create");
    assert!(filtered.get("end").is_none());

    let refused = |query: &str| refusal(&alice, "GET", &room_path(&room, &format!("messages{query}")), None);
    assert_eq!(refused(""), says(400, "M_MISSING_PARAM"));
    assert_eq!(refused("?dir=x"), says(400, "M_INVALID_PARAM"));
    assert_eq!(refused("?dir=b&from=x"), says(400, "M_INVALID_PARAM"));
    assert_eq!(refused("?dir=b&limit=-1"), says(400, "M_INVALID_PARAM"));
    assert_eq!(refused("?dir=b&filter={"), says(400, "M_BAD_JSON"));
}

#[test]
fn newcomers_see_as_much_history_as_its_visibility_allows() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for (n, (visibility, invited_sees, joined_sees)) in [
        ("world_readable", vec!["before", "invited", "joined"], true),
        ("shared", vec!["before", "invited", "joined"], false),
        ("invited", vec!["invited", "joined"], false),
        ("joined", vec!["joined"], false),
    ]
    .into_iter()
    .enumerate()
    {
        let bob = server.user(&format!("bob{n}"));
        let room = alice.create_room_with(json!({
            "preset": "private_chat",
            "initial_state": [{"type": "m.room.history_visibility", "content": {"history_visibility": visibility}}],
        }));
        let messages = room_path(&room, "messages?dir=b&limit=100");
        alice.send(&room, "before");
        assert_eq!(bob.request("GET", &messages, None).0 == 200, joined_sees, "{visibility}: an outsider");
        alice.invite(&room, bob.id());
        alice.send(&room, "invited");
        bob.join(&room);
        alice.send(&room, "joined");
        let mut seen = bodies(&bob.get(&messages)["chunk"]);
        seen.reverse();
        assert_eq!(seen, invited_sees, "{visibility}");
        // Who left sees nothing of what came after.
        bob.leave(&room);
        alice.send(&room, "left");
        alice.set_state(&room, "m.room.name", "", json!({"name": "after"}));
        let mut seen = bodies(&bob.get(&messages)["chunk"]);
        seen.reverse();
        assert_eq!(seen, invited_sees, "{visibility}: after leaving");
        assert_eq!(bob.state(&room, "m.room.name", ""), None, "{visibility}: state as of the leave");
    }
}

#[test]
fn a_single_event_is_told_only_to_those_who_may_see_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "public_chat",
        "initial_state": [{"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}],
    }));
    let early = alice.send(&room, "early");
    let path = |event: &str| room_path(&room, &format!("event/{}", segment(event)));
    assert_eq!(refusal(&bob, "GET", &path(&early), None), says(404, "M_NOT_FOUND"));
    bob.join(&room);
    assert_eq!(refusal(&bob, "GET", &path(&early), None), says(404, "M_NOT_FOUND"));
    let late = alice.send(&room, "late");
    let event = bob.get(&path(&late));
    assert_eq!(event["event_id"], late);
    assert_eq!(event["room_id"], room);
    assert_eq!(event["unsigned"]["membership"], "join");
    assert_eq!(refusal(&bob, "GET", &path("$nothing"), None), says(404, "M_NOT_FOUND"));
    // An event of another room is no event of this one.
    let other = alice.create_room();
    let elsewhere = alice.send(&other, "elsewhere");
    assert_eq!(refusal(&alice, "GET", &path(&elsewhere), None), says(404, "M_NOT_FOUND"));
}

#[test]
fn the_context_of_an_event_surrounds_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let ids: Vec<String> = (0..9).map(|n| alice.send(&room, &format!("{n}"))).collect();
    let context = alice.get(&room_path(&room, &format!("context/{}?limit=4", segment(&ids[4]))));
    assert_eq!(context["event"]["event_id"], ids[4]);
    assert_eq!(bodies(&context["events_before"]), ["3", "2"]);
    assert_eq!(bodies(&context["events_after"]), ["5", "6"]);
    assert!(context["state"].as_array().unwrap().iter().any(|e| e["type"] == "m.room.create"));
    let older = context["start"].as_str().unwrap();
    let page = alice.get(&room_path(&room, &format!("messages?dir=b&limit=2&from={older}")));
    assert_eq!(bodies(&page["chunk"]), ["1", "0"]);
    let newer = context["end"].as_str().unwrap();
    let page = alice.get(&room_path(&room, &format!("messages?dir=f&from={newer}")));
    assert_eq!(bodies(&page["chunk"]), ["7", "8"]);
    let alone = alice.get(&room_path(&room, &format!("context/{}?limit=0", segment(&ids[4]))));
    assert_eq!(alone["events_before"], json!([]));
    assert_eq!(alone["events_after"], json!([]));
    let lazy = segment(r#"{"lazy_load_members":true}"#);
    let lazy = alice.get(&room_path(&room, &format!("context/{}?filter={lazy}", segment(&ids[4]))));
    let members = lazy["state"].as_array().unwrap().iter().filter(|e| e["type"] == "m.room.member").count();
    assert_eq!(members, 1);
}

#[test]
fn members_are_listed_by_membership_and_as_of_a_token() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    let early = alice.initial_sync()["next_batch"].as_str().unwrap().to_owned();
    bob.join(&room);
    alice.invite(&room, carol.id());
    let members = |query: &str| -> Vec<String> {
        let chunk = alice.get(&room_path(&room, &format!("members{query}")))["chunk"].clone();
        let mut of: Vec<String> =
            chunk.as_array().unwrap().iter().map(|e| e["state_key"].as_str().unwrap().to_owned()).collect();
        of.sort();
        of
    };
    assert_eq!(members(""), [alice.id(), bob.id(), carol.id()]);
    assert_eq!(members("?membership=invite"), [carol.id()]);
    assert_eq!(members("?not_membership=join"), [carol.id()]);
    assert_eq!(members("?membership=join&not_membership=leave"), [alice.id(), bob.id(), carol.id()]);
    assert_eq!(members(&format!("?at={early}")), [alice.id()]);
    assert_eq!(
        refusal(&alice, "GET", &room_path(&room, "members?membership=friend"), None),
        says(400, "M_INVALID_PARAM")
    );
    bob.put(&format!("{V3}/profile/{}/displayname", segment(bob.id())), json!({"displayname": "Bob"}));
    let joined = alice.get(&room_path(&room, "joined_members"));
    assert_eq!(joined, json!({"joined": {alice.id(): {}, bob.id(): {"display_name": "Bob"}}}));
    // Who has left may see the members of then, and not the joined ones of now.
    bob.leave(&room);
    carol.join(&room);
    let then = bob.get(&room_path(&room, "members?membership=join"));
    assert_eq!(then["chunk"].as_array().unwrap().len(), 1);
    assert_eq!(refusal(&bob, "GET", &room_path(&room, "joined_members"), None), says(403, "M_FORBIDDEN"));
}

#[test]
fn aliases_are_made_resolved_shown_and_deleted() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let name = |n: &str| format!("#{n}:{}", server.name());
    let path = |alias: &str| format!("{V3}/directory/room/{}", segment(alias));
    alice.put(&path(&name("one")), json!({"room_id": room}));
    alice.put(&path(&name("two")), json!({"room_id": room}));
    let put = |user: &TestUser, alias: &str, room: &str| {
        refusal(user, "PUT", &path(alias), Some(json!({"room_id": room})))
    };
    assert_eq!(put(&alice, &name("one"), &room), says(409, "M_UNKNOWN"));
    assert_eq!(put(&alice, "#x:elsewhere.example", &room), says(400, "M_INVALID_PARAM"));
    assert_eq!(put(&alice, "no alias", &room), says(400, "M_INVALID_PARAM"));
    assert_eq!(put(&bob, &name("three"), &room), says(403, "M_FORBIDDEN"));
    assert_eq!(alice.get(&room_path(&room, "aliases")), json!({"aliases": [name("one"), name("two")]}));
    assert_eq!(refusal(&bob, "GET", &path(&name("none")), None), says(404, "M_NOT_FOUND"));

    let canonical = room_path(&room, "state/m.room.canonical_alias");
    let show = |content: Value| refusal(&alice, "PUT", &canonical, Some(content));
    assert_eq!(show(json!({"alias": name("none")})), says(400, "M_BAD_ALIAS"));
    assert_eq!(show(json!({"alt_aliases": [name("none")]})), says(400, "M_BAD_ALIAS"));
    assert_eq!(show(json!({"alias": "none"})), says(400, "M_INVALID_PARAM"));
    assert_eq!(show(json!({"alt_aliases": name("one")})), says(400, "M_INVALID_PARAM"));
    alice.put(&canonical, json!({"alias": name("one"), "alt_aliases": [name("two")]}));

    assert_eq!(refusal(&bob, "DELETE", &path(&name("two")), None), says(403, "M_FORBIDDEN"));
    assert_eq!(alice.request("DELETE", &path(&name("two")), None).0, 200);
    assert_eq!(refusal(&alice, "DELETE", &path(&name("two")), None), says(404, "M_NOT_FOUND"));
    let shown = alice.state(&room, "m.room.canonical_alias", "").unwrap();
    assert_eq!(shown, json!({"alias": name("one"), "alt_aliases": []}));
    // An alias that is shown already is not checked again.
    alice.put(&canonical, json!({"alias": name("one"), "alt_aliases": [], "note": "x"}));
    // A room is joined by its alias.
    assert_eq!(bob.join(&name("one")), room);
}

#[test]
fn whoever_removes_somebody_that_is_not_there_is_told_so() {
    let server = TestServer::start();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let room = alice.create_room();
    bob.join(&room);
    let act = |user: &TestUser, verb: &str, target: &TestUser| {
        let body = json!({ "user_id": target.id() });
        let (status, answer) = user.request("POST", &room_path(&room, verb), Some(body));
        let text = |field: &str| answer[field].as_str().unwrap_or_default().to_owned();
        (status, text("errcode"), text("error"))
    };
    let refused = |errcode: &str, error: String| (403, errcode.to_owned(), error);
    let no_ban = || refused("M_BAD_STATE", "That user is not banned".to_owned());
    let not_there = |user: &TestUser| refused("M_FORBIDDEN", format!("{} is not in the room", user.id()));
    assert_eq!(act(&alice, "unban", &bob), no_ban());
    bob.leave(&room);
    for target in [&bob, &carol] {
        assert_eq!(act(&alice, "unban", target), no_ban());
        assert_eq!(act(&alice, "kick", target), not_there(target));
        // Who is not in the room themselves is told nothing else.
        for verb in ["unban", "kick"] {
            let refusal = refused("M_FORBIDDEN", "You are not in this room".to_owned());
            assert_eq!(act(&carol, verb, target), refusal);
        }
    }
}

#[test]
fn published_rooms_are_found_by_words_that_are_written_otherwise() {
    let server = TestServer::start();
    let alice = server.user("alice");
    for (name, terms) in [
        ("CAFÉ am Eck", &["cafe", "Café", "CAFE\u{301}", "fé a"][..]),
        ("İzmir", &["izmir", "IZMIR", "İZMİR", "ızm"]),
        ("Straßenfest", &["strasse", "STRASSE", "straße", "STRAẞE"]),
        ("Η παρέα του Γιώργου", &["ΓΙΩΡΓΟΥ", "παρεα"]),
        ("Всё о чае", &["все о", "ВСЁ"]),
        ("小明的房间", &["房间"]),
        ("हिन्दी मंडली", &["हिन्दी", "मंडली"]),
        ("50 % _off_", &["%", "_", "_off"]),
    ] {
        alice.create_room_with(json!({"visibility": "public", "name": name}));
        for term in terms {
            let filter = json!({"filter": {"generic_search_term": term}});
            let chunk = alice.post(&format!("{V3}/publicRooms"), filter)["chunk"].clone();
            let names: Vec<&str> =
                chunk.as_array().unwrap().iter().filter_map(|room| room["name"].as_str()).collect();
            assert_eq!(names, [name], "{term}");
        }
    }
}

#[test]
fn the_published_directory_is_searched_and_paged() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let rooms: Vec<String> = (0..3)
        .map(|n| alice.create_room_with(json!({"visibility": "public", "name": format!("Room {n}")})))
        .collect();
    bob.join(&rooms[1]);
    let listed = |chunk: &Value| -> Vec<String> {
        chunk.as_array().unwrap().iter().map(|r| r["name"].as_str().unwrap().to_owned()).collect()
    };
    let first = bob.get(&format!("{V3}/publicRooms?limit=2"));
    assert_eq!(first["chunk"][0]["name"], "Room 1", "the largest first");
    assert_eq!(first["total_room_count_estimate"], 3);
    let next = first["next_batch"].as_str().unwrap();
    let second = bob.get(&format!("{V3}/publicRooms?limit=2&since={next}"));
    assert_eq!(second["chunk"].as_array().unwrap().len(), 1);
    assert!(second.get("next_batch").is_none());
    assert!(second["prev_batch"].is_string());
    let search =
        |filter: Value| listed(&bob.post(&format!("{V3}/publicRooms"), json!({"filter": filter}))["chunk"]);
    assert_eq!(search(json!({"generic_search_term": "ROOM 2"})), ["Room 2"]);
    assert_eq!(search(json!({"room_types": ["m.space"]})), Vec::<String>::new());
    assert_eq!(search(json!({"room_types": [null]})).len(), 3);

    let entry = format!("{V3}/directory/list/room/{}", segment(&rooms[0]));
    assert_eq!(bob.get(&entry)["visibility"], "public");
    assert_eq!(
        refusal(&bob, "PUT", &entry, Some(json!({"visibility": "private"}))),
        says(403, "M_FORBIDDEN")
    );
    alice.put(&entry, json!({"visibility": "private"}));
    assert_eq!(bob.get(&entry)["visibility"], "private");
    assert_eq!(bob.get(&format!("{V3}/publicRooms"))["chunk"].as_array().unwrap().len(), 2);
    let unknown = format!("{V3}/directory/list/room/{}", segment("!none:example.org"));
    assert_eq!(refusal(&bob, "GET", &unknown, None), says(404, "M_NOT_FOUND"));
}

#[test]
fn a_profile_is_kept_by_field_and_told_to_rooms() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let path = |field: &str| format!("{V3}/profile/{}/{field}", segment(bob.id()));
    bob.put(&path("displayname"), json!({"displayname": "Bobby"}));
    bob.put(&path("avatar_url"), json!({"avatar_url": "mxc://example.org/cat"}));
    for wrong in [json!(1), json!(["Europe/Vienna"]), json!({}), json!(null), json!(true)] {
        let (status, refused) = bob.request("PUT", &path("m.tz"), Some(json!({ "m.tz": wrong })));
        assert_eq!((status, &refused["errcode"]), (400, &json!("M_BAD_JSON")), "{wrong}");
    }
    bob.put(&path("m.tz"), json!({"m.tz": "Europe/Vienna"}));
    bob.put(&path("org.example.likes"), json!({"org.example.likes": ["tea", 7, null]}));
    let member = alice.state(&room, "m.room.member", bob.id()).unwrap();
    assert_eq!(
        member,
        json!({"membership": "join", "displayname": "Bobby", "avatar_url": "mxc://example.org/cat"})
    );
    let whole = alice.get(&format!("{V3}/profile/{}", segment(bob.id())));
    assert_eq!(whole["m.tz"], "Europe/Vienna");
    assert_eq!(whole["org.example.likes"], json!(["tea", 7, null]));
    assert_eq!(alice.get(&path("displayname")), json!({"displayname": "Bobby"}));

    assert_eq!(bob.request("DELETE", &path("avatar_url"), None).0, 200);
    assert_eq!(bob.request("DELETE", &path("avatar_url"), None).0, 200, "a second time");
    assert_eq!(refusal(&alice, "GET", &path("avatar_url"), None), says(404, "M_NOT_FOUND"));
    assert!(alice.state(&room, "m.room.member", bob.id()).unwrap().get("avatar_url").is_none());
    // A new room starts with the profile.
    let other = bob.create_room();
    assert_eq!(bob.state(&other, "m.room.member", bob.id()).unwrap()["displayname"], "Bobby");

    let put = |user: &TestUser, field: &str, body: Value| refusal(user, "PUT", &path(field), Some(body));
    assert_eq!(put(&alice, "displayname", json!({"displayname": "x"})), says(403, "M_FORBIDDEN"));
    assert_eq!(put(&bob, "displayname", json!({"name": "x"})), says(400, "M_MISSING_PARAM"));
    assert_eq!(put(&bob, "displayname", json!({"displayname": 7})), says(400, "M_BAD_JSON"));
    assert_eq!(put(&bob, "Bad!", json!({"Bad!": 7})), says(400, "M_INVALID_PARAM"));
    let long = "k".repeat(256);
    assert_eq!(put(&bob, &long, json!({&long: 7})), says(400, "M_KEY_TOO_LARGE"));
    let large = json!({"org.example.large": "x".repeat(65_536)});
    assert_eq!(put(&bob, "org.example.large", large), says(400, "M_PROFILE_TOO_LARGE"));
    let nobody = format!("{V3}/profile/{}", segment(&format!("@nobody:{}", server.name())));
    assert_eq!(refusal(&alice, "GET", &nobody, None), says(404, "M_NOT_FOUND"));
}

#[test]
fn account_data_and_tags_belong_to_their_user_alone() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let global = format!("{V3}/user/{}/account_data/org.example.x", segment(alice.id()));
    let of_room =
        format!("{V3}/user/{}/rooms/{}/account_data/org.example.x", segment(alice.id()), segment(&room));
    for path in [&global, &of_room] {
        assert_eq!(refusal(&alice, "GET", path, None), says(404, "M_NOT_FOUND"));
        alice.put(path, json!({"n": 1}));
        assert_eq!(alice.get(path), json!({"n": 1}));
        assert_eq!(refusal(&bob, "GET", path, None), says(403, "M_FORBIDDEN"));
        assert_eq!(refusal(&bob, "PUT", path, Some(json!({}))), says(403, "M_FORBIDDEN"));
        assert_eq!(refusal(&alice, "PUT", path, Some(json!([]))), says(400, "M_BAD_JSON"));
        for reserved in ["m.fully_read", "m.push_rules"] {
            let path = path.replace("org.example.x", reserved);
            assert_eq!(refusal(&alice, "PUT", &path, Some(json!({}))), says(405, "M_BAD_JSON"));
        }
    }
    assert!(alice.get(&global.replace("org.example.x", "m.push_rules"))["global"]["override"].is_array());

    let tags = format!("{V3}/user/{}/rooms/{}/tags", segment(alice.id()), segment(&room));
    assert_eq!(alice.get(&tags), json!({"tags": {}}));
    alice.put(&format!("{tags}/m.favourite"), json!({"order": 0.25}));
    alice.put(&format!("{tags}/u.Work"), json!({}));
    assert_eq!(alice.get(&tags), json!({"tags": {"m.favourite": {"order": 0.25}, "u.Work": {}}}));
    assert_eq!(alice.request("DELETE", &format!("{tags}/u.Work"), None).0, 200);
    assert_eq!(alice.get(&tags), json!({"tags": {"m.favourite": {"order": 0.25}}}));
    let bad = refusal(&alice, "PUT", &format!("{tags}/u.Far"), Some(json!({"order": 2})));
    assert_eq!(bad, says(400, "M_INVALID_PARAM"));
    assert_eq!(refusal(&bob, "GET", &tags, None), says(403, "M_FORBIDDEN"));
}

#[test]
fn tags_have_bounds_and_none_is_lost_for_another_or_for_what_cannot_be_read() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let tags = format!("{V3}/user/{}/rooms/{}/tags", segment(alice.id()), segment(&room));
    let large = |length: usize| Some(json!({"says": "x".repeat(length)}));
    assert_eq!(refusal(&alice, "PUT", &format!("{tags}/u.large"), large(1024)), says(413, "M_TOO_LARGE"));
    let mut put = 0;
    let refused = loop {
        let (status, answer) = alice.request("PUT", &format!("{tags}/u.{put}"), large(1000));
        if status != 200 {
            break (status, answer["errcode"].as_str().unwrap().to_owned());
        }
        put += 1;
    };
    assert_eq!(refused, says(403, "M_RESOURCE_LIMIT_EXCEEDED"));
    let count = || alice.get(&tags)["tags"].as_object().unwrap().len();
    assert_eq!(count(), put, "each that was put is there");
    assert_eq!(alice.request("DELETE", &format!("{tags}/u.0"), None).0, 200);
    alice.put(&format!("{tags}/u.1"), json!({"order": 0.5}));
    alice.put(&format!("{tags}/u.new"), json!({}));
    assert_eq!(count(), put);
    // What a client has written beside them stays.
    let entry = format!("{V3}/user/{}/rooms/{}/account_data/m.tag", segment(alice.id()), segment(&room));
    alice.put(&entry, json!({"tags": {"u.own": {}}, "org.example": 7}));
    alice.put(&format!("{tags}/u.other"), json!({}));
    assert_eq!(alice.get(&entry), json!({"tags": {"u.own": {}, "u.other": {}}, "org.example": 7}));
}

#[test]
fn members_of_a_time_that_the_history_visibility_hides_are_told_to_nobody_who_came_later() {
    let server = TestServer::start();
    let (alice, bob, carol, dora) =
        (server.user("alice"), server.user("bob"), server.user("carol"), server.user("dora"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "initial_state": [
        {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}}]}));
    bob.join(&room);
    let member = room_path(&room, &format!("state/m.room.member/{}", segment(bob.id())));
    bob.put(&member, json!({"membership": "join", "displayname": "former"}));
    let token = |user: &TestUser| user.initial_sync()["next_batch"].as_str().unwrap().to_owned();
    let then = token(&alice);
    bob.put(&member, json!({"membership": "join", "displayname": "present"}));
    carol.join(&room);
    let path = room_path(&room, &format!("members?at={then}"));
    let bob_as_told_to = |user: &TestUser| -> Value {
        let chunk = user.get(&path)["chunk"].clone();
        let of_bob = chunk.as_array().unwrap().iter().find(|event| event["state_key"] == bob.id()).cloned();
        of_bob.unwrap()["content"]["displayname"].clone()
    };
    assert_eq!(bob_as_told_to(&alice), "former");
    assert_eq!(bob_as_told_to(&carol), "present", "as of when they came");
    alice.put(
        &room_path(&room, "state/m.room.history_visibility"),
        json!({"history_visibility": "world_readable"}),
    );
    assert_eq!(refusal(&dora, "GET", &path, None), says(403, "M_FORBIDDEN"));
    let now = room_path(&room, &format!("members?at={}", token(&alice)));
    assert_eq!(dora.get(&now)["chunk"].as_array().unwrap().len(), 3, "now they may look");
    bob.leave(&room);
    assert_eq!(bob_as_told_to(&bob), "former", "who was there may see it after they left");
}

#[test]
fn filters_are_kept_as_they_were_uploaded() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let path = format!("{V3}/user/{}/filter", segment(alice.id()));
    let filter = json!({"room": {"timeline": {"limit": 5}}, "org.example.unknown": true});
    let id = alice.post(&path, filter.clone())["filter_id"].as_str().unwrap().to_owned();
    assert_eq!(alice.post(&path, filter.clone())["filter_id"], id, "the same filter has one id");
    assert_eq!(alice.get(&format!("{path}/{id}")), filter);
    assert_eq!(refusal(&alice, "GET", &format!("{path}/99"), None), says(404, "M_NOT_FOUND"));
    assert_eq!(refusal(&alice, "GET", &format!("{path}/x"), None), says(404, "M_NOT_FOUND"));
    assert_eq!(refusal(&bob, "GET", &format!("{path}/{id}"), None), says(403, "M_FORBIDDEN"));
    let wrong = json!({"room": {"timeline": {"limit": -1}}});
    assert_eq!(refusal(&alice, "POST", &path, Some(wrong)), says(400, "M_BAD_JSON"));
}

#[test]
fn every_account_has_the_default_push_rules() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let all = alice.get(&format!("{V3}/pushrules/"));
    assert_eq!(alice.get(&format!("{V3}/pushrules/global/")), all["global"]);
    for kind in ["override", "content", "room", "sender", "underride"] {
        assert!(all["global"][kind].is_array(), "{kind}");
    }
    let rule = alice.get(&format!("{V3}/pushrules/global/underride/.m.rule.message"));
    assert_eq!(rule["actions"], json!(["notify"]));
    let enabled = alice.get(&format!("{V3}/pushrules/global/override/.m.rule.master/enabled"));
    assert_eq!(enabled, json!({"enabled": false}));
    let none = format!("{V3}/pushrules/global/override/none");
    assert_eq!(refusal(&alice, "GET", &none, None), says(404, "M_NOT_FOUND"));
}

#[test]
fn power_levels_that_nobody_could_set_are_a_malformed_request_and_those_that_one_may_not_set_are_forbidden() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for version in ["9", "10", "12"] {
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
        bob.join(&room);
        let path = room_path(&room, "state/m.room.power_levels/");
        let levels = alice.state(&room, "m.room.power_levels", "").expect("levels");
        let with = |key: &str, value: Value| {
            let mut levels = levels.clone();
            levels[key] = value;
            Some(levels)
        };
        let mut wrong = vec![
            with("users", json!({ "no user": 50 })),
            with("users", json!([])),
            // Others let this stand in a room; nobody writes it here.
            with("users", json!({ "@mod:example.org ": 50 })),
            with("events", json!([])),
            with("events_default", json!(false)),
        ];
        if version != "9" {
            wrong.extend([with("ban", json!("50")), with("events", json!({ "m.room.name": "50" }))]);
        }
        if version == "12" {
            wrong.push(with("users", json!({ alice.id(): 100 })));
        }
        for levels in wrong {
            assert_eq!(
                refusal(&alice, "PUT", &path, levels.clone()),
                says(400, "M_BAD_JSON"),
                "{version} {levels:?}"
            );
        }
        assert_eq!(refusal(&bob, "PUT", &path, with("ban", json!(0))), says(403, "M_FORBIDDEN"), "{version}");
        // Made with the room it is the room that cannot be.
        if version == "12" {
            let body = json!({ "room_version": "12", "power_level_content_override": { "users": { alice.id(): 100 } } });
            let made = refusal(&alice, "POST", &format!("{V3}/createRoom"), Some(body));
            assert_eq!(made, says(400, "M_INVALID_ROOM_STATE"));
        }
    }
}
