//! Tokens, waits and bounds of a connection.

use super::*;

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
