//! Details of the client-server API that are easy to get nearly right, over a real socket.

use crate::common::client::{V3, filter, room_path, sync};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

#[track_caller]
fn refused(user: &TestUser, method: &str, path: &str, body: Value, status: u16, errcode: &str) -> Value {
    let body = (method != "GET").then_some(body);
    let (got, answer) = user.request(method, path, body);
    assert_eq!((got, answer["errcode"].as_str()), (status, Some(errcode)), "{method} {path}: {answer}");
    answer
}

fn since(answer: &Value) -> String {
    format!("since={}", answer["next_batch"].as_str().expect("next_batch"))
}

fn members(events: &Value) -> Vec<&str> {
    let events = events["events"].as_array().unwrap_or_else(|| panic!("no events in {events}"));
    events.iter().filter(|e| e["type"] == "m.room.member").filter_map(|e| e["state_key"].as_str()).collect()
}

#[test]
fn no_client_can_say_in_whose_name_somebody_was_let_in() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let authoriser = "join_authorised_via_users_server";
    let mut content = json!({"membership": "join", "displayname": "Bobby"});
    content[authoriser] = "@nobody:elsewhere.example".into();
    bob.set_state(&room, "m.room.member", bob.id(), content);
    let own = alice.state(&room, "m.room.member", bob.id()).expect("a member");
    assert_eq!(own, json!({"membership": "join", "displayname": "Bobby"}));
    let mut content = json!({"membership": "ban"});
    content[authoriser] = "@nobody:elsewhere.example".into();
    alice.set_state(&room, "m.room.member", bob.id(), content);
    assert_eq!(alice.state(&room, "m.room.member", bob.id()), Some(json!({"membership": "ban"})));
    let carol = server.user("carol");
    let mut content = json!({"membership": "invite"});
    content[authoriser] = "@nobody:elsewhere.example".into();
    alice.set_state(&room, "m.room.member", carol.id(), content);
    let invited = alice.state(&room, "m.room.member", carol.id()).expect("an invite");
    assert_eq!((&invited["membership"], invited.get(authoriser)), (&json!("invite"), None), "{invited}");
}

#[test]
fn clients_that_began_before_an_endpoint_was_stable_find_it_where_it_was() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_alias_name": "here" }));
    let at = segment(&room);
    let alike = |method: &str, path: &str, body: Option<Value>, stable: &str| {
        let [unstable, stable] = ["unstable", stable]
            .map(|version| alice.request(method, &format!("/_matrix/client/{version}/{path}"), body.clone()));
        // Nothing that is asked for twice is told alike by chance: an error of a path that is none would be one of these.
        assert_ne!(stable.1["errcode"], "M_UNRECOGNIZED", "{path}: {stable:?}");
        assert_eq!((unstable.0, &unstable.1["errcode"]), (stable.0, &stable.1["errcode"]), "{method} {path}");
    };
    let empty = || Some(json!({}));
    for (method, path, body) in [
        ("POST", "keys/device_signing/upload".to_owned(), empty()),
        ("POST", "keys/signatures/upload".to_owned(), empty()),
        ("POST", "keys/query".to_owned(), Some(json!({ "device_keys": { alice.id(): [] } }))),
        ("GET", "room_keys/version".to_owned(), None),
        ("PUT", "room_keys/keys?version=1".to_owned(), Some(json!({ "rooms": {} }))),
        ("GET", format!("room_keys/keys/{at}/session?version=1"), None),
        ("GET", "thirdparty/protocols".to_owned(), None),
        ("GET", "devices".to_owned(), None),
        ("GET", "devices/nothing".to_owned(), None),
        ("POST", "delete_devices".to_owned(), Some(json!({ "devices": ["x"] }))),
        ("POST", format!("user/{}/openid/request_token", segment(alice.id())), empty()),
    ] {
        alike(method, &path, body, "v3");
    }
    let aliases = |path: &str| alice.get(&format!("/_matrix/client/{path}rooms/{at}/aliases"));
    assert_eq!(aliases("unstable/org.matrix.msc2432/"), aliases("v3/"));
    // What never was there is not there now.
    for path in ["unstable/sync", "unstable/account/whoami", "unstable/rooms/x/messages"] {
        refused(&alice, "GET", &format!("/_matrix/client/{path}"), json!({}), 404, "M_UNRECOGNIZED");
    }
}

#[test]
fn history_is_told_of_rooms_alone_that_the_filter_wants() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let said = ["one", "two", "three"].map(|text| alice.send(&room, text));
    for (wanted, count) in [
        (json!({ "rooms": [] }), 0),
        (json!({ "rooms": ["!other:example.org"] }), 0),
        (json!({ "not_rooms": [room] }), 0),
        (json!({ "rooms": [room], "not_rooms": [room] }), 0),
        (json!({ "rooms": [room], "types": ["m.room.message"] }), 3),
        (json!({ "not_rooms": ["!other:example.org"], "types": ["m.room.message"] }), 3),
    ] {
        let filter = filter(&wanted);
        let page = alice.get(&room_path(&room, &format!("messages?dir=b&limit=50&{filter}")));
        assert_eq!(page["chunk"].as_array().map(Vec::len), Some(count), "{wanted}: {page}");
        assert!(page.get("end").is_none(), "there is no more: {page}");
        let around = alice.get(&room_path(&room, &format!("context/{}?{filter}", segment(&said[1]))));
        let around_it = ["events_before", "events_after"].map(|of| around[of].as_array().map_or(9, Vec::len));
        assert_eq!(
            (&around["event"]["event_id"], around_it),
            (&json!(said[1]), if count == 0 { [0, 0] } else { [1, 1] })
        );
    }
}

#[test]
fn who_is_not_in_a_room_learns_nothing_of_its_members_and_events() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let eve = server.user("eve");
    let room = alice.create_room_with(json!({"preset": "private_chat", "invite": [bob.id()]}));
    bob.join(&room);
    alice.act_on("ban", &room, carol.id());
    let message = alice.send(&room, "a secret");
    let nowhere = "!nowhere:example.org";
    let ask = |room: &str, verb: &str, target: &str| {
        eve.request("POST", &room_path(room, verb), Some(json!({"user_id": target})))
    };
    for verb in ["kick", "ban", "unban", "invite"] {
        let answers: Vec<_> = [alice.id(), bob.id(), carol.id(), "@dan:elsewhere.example"]
            .into_iter()
            .map(|target| ask(&room, verb, target))
            .chain([ask(nowhere, verb, bob.id())])
            .map(|(status, body)| (status, body["errcode"].clone()))
            .collect();
        assert!(answers.iter().all(|a| *a == (403, json!("M_FORBIDDEN"))), "{verb}: {answers:?}");
        let told: Vec<_> = [bob.id(), carol.id()]
            .into_iter()
            .map(|target| ask(&room, verb, target).1["error"].clone())
            .collect();
        assert_eq!(told[0], told[1], "{verb}");
    }
    for event in [message.as_str(), "$not-there"] {
        let path = room_path(&room, &format!("redact/{}/t", segment(event)));
        refused(&eve, "PUT", &path, json!({}), 403, "M_FORBIDDEN");
    }
    for room in [room.as_str(), nowhere] {
        refused(&eve, "POST", &room_path(room, "leave"), json!({}), 403, "M_FORBIDDEN");
        refused(&eve, "POST", &room_path(room, "forget"), json!({}), 404, "M_NOT_FOUND");
    }
}

#[test]
fn a_forgotten_room_cannot_be_read_any_more_until_one_is_back() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let message = alice.send(&room, "hello");
    bob.leave(&room);
    assert_eq!(bob.request("GET", &room_path(&room, "messages?dir=b"), None).0, 200);
    bob.post(&room_path(&room, "forget"), json!({}));
    bob.post(&room_path(&room, "forget"), json!({}));
    for path in ["messages?dir=b", "state", "members", "state/m.room.create"] {
        refused(&bob, "GET", &room_path(&room, path), json!({}), 403, "M_FORBIDDEN");
    }
    for path in ["event", "context"] {
        let path = room_path(&room, &format!("{path}/{}", segment(&message)));
        refused(&bob, "GET", &path, json!({}), 404, "M_NOT_FOUND");
    }
    let all = sync(&bob, &filter(&json!({"room": {"include_leave": true}})));
    assert!(all["rooms"]["leave"].get(&room).is_none(), "{all}");
    bob.join(&room);
    let page = bob.get(&room_path(&room, "messages?dir=b&limit=50"));
    let events = page["chunk"].as_array().expect("a chunk");
    assert!(events.iter().any(|e| e["event_id"] == message.as_str()), "{page}");
}

#[test]
fn the_state_after_of_a_client_of_the_draft_has_the_name_that_the_draft_gave_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let (room, left) = (alice.create_room(), alice.create_room());
    bob.join(&left);
    bob.leave(&left);
    let leave = filter(&json!({"room": {"include_leave": true}}));
    let draft = "org.matrix.msc4222.state_after";
    for (user, room, section) in [(&alice, &room, "join"), (&bob, &left, "leave")] {
        for (query, there) in [
            ("", "state"),
            ("&use_state_after=true", "state_after"),
            ("&org.matrix.msc4222.use_state_after=true", draft),
            ("&use_state_after=true&org.matrix.msc4222.use_state_after=true", "state_after"),
        ] {
            let answer = sync(user, &format!("{leave}{query}"));
            let entry = &answer["rooms"][section][room];
            for name in ["state", "state_after", draft] {
                assert_eq!(entry.get(name).is_some(), name == there, "{query} {name}: {entry}");
            }
        }
    }
}

#[test]
fn new_heroes_come_with_their_memberships_when_those_are_loaded_lazily() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({"preset": "public_chat", "name": "named"}));
    let users: Vec<_> = (0..7).map(|n| server.user(&format!("u{n}"))).collect();
    for user in &users {
        user.join(&room);
    }
    for n in 0..12 {
        alice.send(&room, &format!("{n}"));
    }
    let lazy = filter(&json!({"room": {"state": {"lazy_load_members": true}}}));
    let first = sync(&alice, &lazy);
    assert!(first["rooms"]["join"][&room]["summary"].get("m.heroes").is_none(), "{first}");
    // Without its name the room is called by its members.
    alice.set_state(&room, "m.room.name", "", json!({}));
    let second = sync(&alice, &format!("{lazy}&{}", since(&first)));
    let entry = &second["rooms"]["join"][&room];
    let heroes: Vec<&str> =
        entry["summary"]["m.heroes"].as_array().expect("heroes").iter().filter_map(Value::as_str).collect();
    assert_eq!(heroes.len(), 5, "{entry}");
    for hero in &heroes {
        assert!(members(&entry["state"]).contains(hero), "{hero} in {entry}");
    }
    // One of them goes, and another takes the place.
    users[0].leave(&room);
    let third = sync(&alice, &format!("{lazy}&{}", since(&second)));
    let entry = &third["rooms"]["join"][&room];
    assert_eq!(entry["summary"]["m.heroes"].as_array().map(Vec::len), Some(5), "{entry}");
    assert!(members(&entry["state"]).contains(&users[5].id()), "{entry}");
}

#[test]
fn a_list_is_no_body_and_no_auth_is_told_by_null_too() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    for verb in ["join", "leave", "kick", "invite", "ban", "unban"] {
        refused(&alice, "POST", &room_path(&room, verb), json!(["@a:b.c", null, null]), 400, "M_BAD_JSON");
    }
    refused(&alice, "POST", &format!("{V3}/refresh"), json!(["token"]), 400, "M_BAD_JSON");
    refused(
        &alice,
        "POST",
        &format!("{V3}/publicRooms"),
        json!([1, null, null, false, null]),
        400,
        "M_BAD_JSON",
    );
    let (status, ask) =
        alice.request("POST", &format!("{V3}/delete_devices"), Some(json!({"devices": [], "auth": null})));
    assert_eq!(status, 401, "{ask}");
    assert!(ask["session"].is_string() && ask.get("errcode").is_none(), "{ask}");
}

#[test]
fn every_way_in_and_out_within_one_gap_ends_in_one_section() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "private_chat"}));
    alice.set_state(&room, "m.room.join_rules", "", json!({"join_rule": "knock"}));
    let knock = || drop(bob.knock_via(&room, &[]));
    let invite = || alice.invite(&room, bob.id());
    let (join, leave) = (|| drop(bob.join(&room)), || bob.leave(&room));
    let kick = || alice.act_on("kick", &room, bob.id());
    let (ban, unban) = (|| alice.act_on("ban", &room, bob.id()), || alice.act_on("unban", &room, bob.id()));
    type Step<'s> = &'s dyn Fn();
    let chains: [(&[Step<'_>], &str); 12] = [
        (&[&knock], "knock"),
        (&[&invite, &join], "join"),
        (&[&leave, &invite, &join], "join"),
        (&[&leave], "leave"),
        (&[&invite, &leave], "leave"),
        (&[&knock, &invite], "invite"),
        (&[&kick, &knock, &leave], "leave"),
        (&[&knock, &kick, &knock, &invite, &join, &leave], "leave"),
        (&[&invite, &join, &ban], "leave"),
        (&[&unban], "leave"),
        (&[&invite, &kick, &knock], "knock"),
        (&[&ban], "leave"),
    ];
    for state_after in ["", "&use_state_after=true"] {
        let mut last = sync(&bob, "");
        for (n, (chain, section)) in chains.iter().enumerate() {
            chain.iter().for_each(|step| step());
            let answer = sync(&bob, &format!("{}{state_after}", since(&last)));
            for other in ["join", "invite", "knock", "leave"] {
                let there = answer["rooms"][other].get(&room).is_some();
                assert_eq!(there, other == *section, "chain {n}, {other}: {answer}");
            }
            let after = sync(&bob, &format!("{}{state_after}", since(&answer)));
            assert!(after.get("rooms").is_none(), "chain {n} is told twice: {after}");
            last = answer;
        }
        unban();
    }
}

#[test]
fn reasons_are_in_the_member_events_of_every_way_in_and_out() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "private_chat"}));
    alice.set_state(&room, "m.room.join_rules", "", json!({"join_rule": "knock"}));
    let reason_now = |membership: &str, reason: &str| {
        let content = alice.state(&room, "m.room.member", bob.id()).expect("a member");
        assert_eq!((&content["membership"], &content["reason"]), (&json!(membership), &json!(reason)));
    };
    bob.post(&format!("{V3}/knock/{}", segment(&room)), json!({"reason": "k"}));
    reason_now("knock", "k");
    for (verb, membership) in
        [("invite", "invite"), ("kick", "leave"), ("ban", "ban"), ("unban", "leave"), ("invite", "invite")]
    {
        alice.post(&room_path(&room, verb), json!({"user_id": bob.id(), "reason": verb}));
        reason_now(membership, verb);
    }
    let joined = bob.post(&room_path(&room, "join"), json!({"reason": "in"}));
    assert_eq!(joined["room_id"], room.as_str());
    reason_now("join", "in");
    bob.post(&room_path(&room, "join"), json!({"reason": "again"}));
    reason_now("join", "in");
    bob.post(&room_path(&room, "leave"), json!({"reason": "out"}));
    reason_now("leave", "out");
    bob.post(&room_path(&room, "leave"), json!({"reason": "out again"}));
    reason_now("leave", "out");
    for (verb, body, errcode) in [
        ("kick", json!({}), "M_MISSING_PARAM"),
        ("ban", json!({"user_id": 7}), "M_BAD_JSON"),
        ("invite", json!({"user_id": "bob"}), "M_INVALID_PARAM"),
        ("leave", json!({"reason": 7}), "M_BAD_JSON"),
    ] {
        refused(&alice, "POST", &room_path(&room, verb), body, 400, errcode);
    }
}

#[test]
fn what_is_nested_deeply_is_refused_or_can_be_read_in_every_way() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    let mut taken = 0;
    for depth in [10, 60, 90, 95, 98, 100, 110, 120, 122, 124, 125, 126, 127, 128, 130, 500] {
        let mut deep = json!(1);
        for _ in 0..depth {
            deep = json!([deep]);
        }
        let before = sync(&alice, "");
        let paths = [
            room_path(&room, &format!("send/m.deep/{depth}")),
            room_path(&room, &format!("state/m.deep/{depth}")),
            format!("{V3}/user/{}/account_data/m.deep{depth}", segment(alice.id())),
            format!("{V3}/profile/{}/m.deep", segment(alice.id())),
        ];
        for path in paths {
            let (status, answer) = alice.request("PUT", &path, Some(json!({"m.deep": deep})));
            if status != 200 {
                assert!(status == 400 && depth > 90, "{path} {depth}: {status} {answer}");
                continue;
            }
            taken += 1;
            if let Some(event) = answer["event_id"].as_str() {
                alice.get(&room_path(&room, &format!("event/{}", segment(event))));
                alice.get(&room_path(&room, &format!("context/{}", segment(event))));
            }
        }
        let fields = filter(&json!({"event_fields": ["content"], "event_format": "client"}));
        let federation = filter(&json!({"event_format": "federation"}));
        for query in ["", &fields, &federation] {
            sync(&alice, query);
            sync(&alice, &format!("{query}&{}", since(&before)));
        }
        alice.get(&room_path(&room, "messages?dir=b&limit=100"));
        alice.get(&room_path(&room, "state"));
        bob.get(&format!("{V3}/profile/{}", segment(alice.id())));
    }
    assert!(taken >= 12, "{taken}");
}

#[test]
fn events_that_no_room_takes_are_refused_by_their_kind() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let send = |kind: &str| room_path(&room, &format!("send/{}/t", segment(kind)));
    for content in [json!({"n": 1.5}), json!({"n": 9_007_199_254_740_992_i64}), json!({"n": 1e30})] {
        refused(&alice, "PUT", &send("m.x"), content.clone(), 400, "M_BAD_JSON");
        refused(&alice, "PUT", &room_path(&room, "state/m.x"), content, 400, "M_BAD_JSON");
    }
    let long = "x".repeat(256);
    refused(&alice, "PUT", &send(&long), json!({}), 413, "M_TOO_LARGE");
    refused(&alice, "PUT", &room_path(&room, &format!("state/m.x/{long}")), json!({}), 413, "M_TOO_LARGE");
    refused(&alice, "PUT", &send("m.x"), json!({"body": "x".repeat(70_000)}), 413, "M_TOO_LARGE");
    refused(&alice, "PUT", &send("m.x"), json!([]), 400, "M_BAD_JSON");
    refused(
        &alice,
        "PUT",
        &room_path(&room, "state/m.x/@bob:elsewhere.example"),
        json!({}),
        403,
        "M_FORBIDDEN",
    );
    refused(&alice, "PUT", &room_path(&room, "state/m.room.create"), json!({}), 403, "M_FORBIDDEN");
    refused(
        &alice,
        "PUT",
        &room_path(&room, "send/m.room.member/t"),
        json!({"membership": "join"}),
        403,
        "M_FORBIDDEN",
    );
    let mallory = server.user("mallory");
    for path in ["state/m.room.create", "state/m.room.create/x", "send/m.room.create/t"] {
        let content =
            json!({"room_version": "11", "creator": mallory.id(), "additional_creators": [mallory.id()]});
        for user in [&alice, &mallory] {
            refused(user, "PUT", &room_path(&room, path), content.clone(), 403, "M_FORBIDDEN");
        }
    }
    alice.put(&send("m.x"), json!({"n": 9_007_199_254_740_991_i64, "zero": "a\u{0}b"}));
}

#[test]
fn a_room_for_somebody_who_does_not_exist_here_is_not_made() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let bob = server.user("bob");
    let nobody = format!("@nobody:{}", server.name());
    let body = json!({"preset": "trusted_private_chat", "is_direct": true, "invite": [bob.id(), nobody]});
    refused(&alice, "POST", &format!("{V3}/createRoom"), body, 403, "M_FORBIDDEN");
    let rooms = alice.get(&format!("{V3}/joined_rooms"));
    assert_eq!(rooms["joined_rooms"], json!([]));
    bob.put(
        &format!("{V3}/user/{}/account_data/m.invite_permission_config", segment(bob.id())),
        json!({"default_action": "block"}),
    );
    refused(
        &alice,
        "POST",
        &format!("{V3}/createRoom"),
        json!({"invite": [bob.id()]}),
        403,
        "M_INVITE_BLOCKED",
    );
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([]));
}

#[test]
fn who_is_here_is_invited_to_a_new_room_even_if_others_cannot_be_reached() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    // Nobody listens at port 1.
    let body = json!({"invite": ["@carol:127.0.0.1:1", bob.id()]});
    let (status, answer) = alice.request("POST", &format!("{V3}/createRoom"), Some(body));
    assert_eq!(status, 200, "{answer}");
    let room = answer["room_id"].as_str().expect("a room id");
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([room]));
    assert_eq!(alice.membership_of(room, "@carol:127.0.0.1:1"), None);
    assert_eq!(alice.membership_of(room, bob.id()).as_deref(), Some("invite"));
}

#[test]
fn numbers_and_tokens_at_their_limits_do_no_harm() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    alice.send(&room, "hello");
    let most = i64::MAX;
    for token in [
        format!("s{most}"),
        format!("s{most}_{most}"),
        format!("s1_{most}"),
        "s0".to_owned(),
        "s0_1".to_owned(),
    ] {
        for dir in ["b", "f"] {
            for name in ["from", "to"] {
                alice.get(&room_path(&room, &format!("messages?dir={dir}&{name}={token}&limit={most}")));
            }
        }
        alice.get(&room_path(&room, &format!("members?at={token}")));
    }
    for limit in ["0", "1", "9223372036854775807"] {
        alice.get(&room_path(&room, &format!("messages?dir=b&limit={limit}")));
        alice.get(&format!("{V3}/publicRooms?limit={limit}&since=p18446744073709551615"));
    }
    for (path, errcode) in [
        (room_path(&room, "messages"), "M_MISSING_PARAM"),
        (room_path(&room, "messages?dir=up"), "M_INVALID_PARAM"),
        (room_path(&room, "messages?dir=b&limit=-1"), "M_INVALID_PARAM"),
        (room_path(&room, "messages?dir=b&limit=99999999999999999999"), "M_INVALID_PARAM"),
        (room_path(&room, "messages?dir=b&from=x"), "M_INVALID_PARAM"),
        (room_path(&room, "messages?dir=b&filter=x"), "M_BAD_JSON"),
        (room_path(&room, "members?membership=here"), "M_INVALID_PARAM"),
        (format!("{V3}/sync?timeout=-1"), "M_INVALID_PARAM"),
        (format!("{V3}/publicRooms?since=x"), "M_INVALID_PARAM"),
    ] {
        refused(&alice, "GET", &path, json!({}), 400, errcode);
    }
}

#[test]
fn who_is_logged_out_while_waiting_hears_nothing_more() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let query = format!("{V3}/sync?timeout=30000&{}", since(&sync(&bob, "")));
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bob.request("GET", &query, None));
        let started = std::time::Instant::now();
        while server.homeserver().notifier.waiting() == 0 {
            assert!(started.elapsed().as_secs() < 20, "nobody waits");
            std::thread::yield_now();
        }
        bob.post(&format!("{V3}/logout"), json!({}));
        alice.send(&room, "a secret");
        let (status, answer) = waiting.join().expect("an answer");
        assert_eq!((status, answer["errcode"].as_str()), (401, Some("M_UNKNOWN_TOKEN")), "{answer}");
    });
}

#[test]
fn an_event_is_had_by_its_id_alone_by_who_may_see_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    let said = alice.send(&room, "among us");
    let path = |event: &str| format!("{V3}/events/{}", segment(event));
    let event = alice.get(&path(&said));
    assert_eq!((&event["event_id"], &event["room_id"]), (&json!(said), &json!(room)), "{event}");
    assert_eq!(event["content"]["body"], "among us");
    // Whoever may not see it learns no more of it than of one that there is not.
    let hidden = bob.request("GET", &path(&said), None);
    assert_eq!((hidden.0, &hidden.1["errcode"]), (404, &json!("M_NOT_FOUND")), "{hidden:?}");
    assert_eq!(bob.request("GET", &path("$none"), None), hidden);
    assert_eq!(alice.request("GET", &path("$none"), None), hidden);
    alice.invite(&room, bob.id());
    bob.join(&room);
    let after = alice.send(&room, "with bob");
    assert_eq!(bob.get(&path(&after))["content"]["body"], "with bob");
    // As by the room's own path, what they say of an event is the same.
    let by_room = bob.get(&room_path(&room, &format!("event/{}", segment(&after))));
    assert_eq!(by_room["content"], bob.get(&path(&after))["content"]);
}
