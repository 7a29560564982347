//! How a sync waits, goes on from another, and begins anew.

use super::*;

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
fn each_of_a_crowd_that_waits_is_told_of_each_message_once_whether_it_is_told_lightly_or_has_to_be_looked_for()
 {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let crowd: Vec<_> = (0..24).map(|number| server.user(&format!("user{number}"))).collect();
    crowd.iter().for_each(|user| drop(user.join(&room)));
    // A third of them are told of the message alone; for others more than that has to be looked at.
    let filters = [
        String::new(),
        filter(&json!({"room": {"timeline": {"limit": 5, "not_types": ["org.example.x"]}}})),
        filter(&json!({"room": {"state": {"lazy_load_members": true}}})),
    ];
    let mut since: Vec<String> =
        crowd.iter().zip(filters.iter().cycle()).map(|(user, filter)| next(&sync(user, filter))).collect();
    for message in 0..5 {
        std::thread::scope(|scope| {
            let asked = crowd.iter().zip(filters.iter().cycle()).zip(&mut since);
            let waiting: Vec<_> = asked
                .map(|((user, filter), since)| {
                    let room = &room;
                    scope.spawn(move || {
                        loop {
                            let answer = sync(user, &format!("{filter}&{since}&timeout=30000"));
                            *since = next(&answer);
                            // Others who come online are news, too.
                            if let Some(joined) = answer["rooms"]["join"].get(room) {
                                return bodies(&joined["timeline"]).join(", ");
                            }
                        }
                    })
                })
                .collect();
            while server.homeserver().notifier.waiting() < crowd.len() {
                std::thread::yield_now();
            }
            alice.send(&room, &format!("message {message}"));
            for heard in waiting {
                assert_eq!(heard.join().unwrap(), format!("message {message}"));
            }
        });
    }
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
fn a_device_that_waits_once_too_often_waits_briefly_and_what_it_waited_for_before_goes_on() {
    const MOST: usize = 8;
    // Who is there would be news too.
    let server = TestServer::start_with(|config| config.presence = false);
    let alice = server.user("alice");
    let start = next(&sync(&alice, ""));
    let waiting = || server.homeserver().notifier.waiting();
    let until_waiting = |count: usize| {
        while waiting() != count {
            std::thread::yield_now();
        }
    };
    std::thread::scope(|scope| {
        let ask = |query: &str| {
            let query = format!("{query}&timeout=600000");
            let alice = &alice;
            scope.spawn(move || sync(alice, &query))
        };
        let mut asked = Vec::new();
        for count in 1..=MOST {
            asked.push(ask(&start));
            until_waiting(count);
        }
        // What else the device waits for has nothing to do with it.
        let events = scope.spawn(|| alice.get(&format!("{V3}/events?timeout=600000")));
        until_waiting(MOST + 1);
        let began = std::time::Instant::now();
        let beyond = ask(&start).join().expect("an answer");
        assert!(rooms(&beyond, "join").is_empty());
        // Who asks again as soon as they are answered does so now and then, and no more.
        assert!(began.elapsed().as_secs() >= 4, "{:?}", began.elapsed());
        assert_eq!(waiting(), MOST + 1);
        assert!(asked.iter().all(|one| !one.is_finished()));
        asked.push(ask(&next(&beyond)));
        until_waiting(MOST + 2);
        let room = alice.create_room();
        for one in asked {
            assert_eq!(rooms(&one.join().expect("an answer"), "join"), std::slice::from_ref(&room));
        }
        assert!(events.join().expect("an answer")["chunk"].is_array());
    });
}
