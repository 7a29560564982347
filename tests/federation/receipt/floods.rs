//! Events by the thousand.

use super::*;

/// What the flood has been told.
#[derive(Default)]
struct Tally {
    answered: Mutex<Vec<EventId>>,
    transactions: AtomicUsize,
}

/// Sends events as a server does that wants them to arrive: the same transaction again until it is answered.
fn deliver(peer: &Peer, server: &str, txn: &str, events: &[&Pdu], tally: &Tally) {
    loop {
        match peer.try_to_send(server, txn, events) {
            Ok((200, said)) => {
                for pdu in events {
                    assert_eq!(said["pdus"][pdu.event_id().as_str()], json!({}), "{said}");
                }
                let mut answered = tally.answered.lock().expect("no test panics here");
                answered.extend(events.iter().map(|pdu| pdu.event_id().clone()));
                tally.transactions.fetch_add(1, Ordering::SeqCst);
                return;
            }
            Ok((429 | 500.., _)) | Err(_) => std::thread::yield_now(),
            Ok((status, said)) => panic!("{status} {said}"),
        }
    }
}

fn has_event(user: &TestUser, room: &FakeRoom, id: &EventId) -> bool {
    let path =
        format!("/_matrix/client/v3/rooms/{}/event/{}", segment(room.id.as_str()), segment(id.as_str()));
    user.request("GET", &path, None).0 == 200
}

#[test]
fn a_flood_loses_nothing_that_was_answered_for_though_the_server_is_killed_and_others_get_through() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let (flooder, polite) = (Peer::start(), Peer::start());
    let rooms = [FakeRoom::joined_by(&flooder, "12", &alice), FakeRoom::joined_by(&flooder, "12", &alice)];
    let quiet = FakeRoom::joined_by(&polite, "12", &alice);
    // Four branches in two rooms; of two of them, every tenth event is never sent.
    let branches: Vec<Vec<Pdu>> = (0..4)
        .map(|n| chain(&flooder, &rooms[n % 2], &rooms[n % 2].last, 100, &format!("branch {n}")))
        .collect();
    let words = chain(&polite, &quiet, &quiet.last, 8, "polite");
    flooder.serve_events(&branches.concat(), 10);
    let (tally, polite_tally) = (Tally::default(), Tally::default());
    let (name, over) = (server.name().to_owned(), Arc::new(AtomicBool::new(false)));
    std::thread::scope(|scope| {
        for (n, branch) in branches.iter().enumerate() {
            let (flooder, name, tally, over) = (&flooder, &name, &tally, over.clone());
            scope.spawn(move || {
                let sent = |index: usize| n < 2 || index % 10 != 5;
                let events: Vec<&Pdu> =
                    branch.iter().enumerate().filter(|(index, _)| sent(*index)).map(|(_, pdu)| pdu).collect();
                for (part, events) in events.chunks(50).enumerate() {
                    deliver(flooder, name, &format!("{n}-{part}"), events, tally);
                }
                // And again, as new transactions and as repeats, until the polite one is through.
                let mut again = 0;
                while !over.load(Ordering::SeqCst) {
                    deliver(flooder, name, &format!("{n}-again-{}", again / 2), &events[..50], tally);
                    again += 1;
                }
            });
        }
        wait_until("the flood is on", || tally.transactions.load(Ordering::SeqCst) >= 2);
        server.kill();
        server.resume();
        for (n, word) in words.iter().enumerate() {
            deliver(&polite, &name, &n.to_string(), &[word], &polite_tally);
        }
        over.store(true, Ordering::SeqCst);
    });
    wait_until("everything that was answered for is there", || {
        let all = tally.answered.lock().expect("no test panics here").clone();
        all.iter().all(|id| rooms.iter().any(|room| has_event(&alice, room, id)))
    });
    assert!(words.iter().all(|word| has_event(&alice, &quiet, word.event_id())));
    // What was never sent, and only others referred to, has been fetched.
    wait_until("the holes are filled", || {
        branches
            .iter()
            .enumerate()
            .all(|(n, branch)| branch.iter().all(|pdu| has_event(&alice, &rooms[n % 2], pdu.event_id())))
    });
}

#[test]
fn a_room_that_is_forked_two_hundred_times_stays_in_hand() {
    let mut scene = Scene::new("12");
    let (start, creator) = (scene.last.clone(), scene.room.creator.clone());
    let users: Vec<UserId> = (0..3).map(|n| scene.peer.user(&format!("user{n}"))).collect();
    let mut forks: Vec<Pdu> = Vec::new();
    for n in 0..200 {
        let fork = match n % 10 {
            // Some of them change the state.
            0 => scene.event(
                &[&start],
                &creator,
                ("m.room.topic", Some("")),
                json!({ "topic": n.to_string() }),
            ),
            1 => {
                let user = users[n / 10 % 3].clone();
                let join = json!({ "membership": "join" });
                scene.event(&[&start], &user, ("m.room.member", Some(user.as_str())), join)
            }
            _ => scene.message_after(&[&start], &creator, &n.to_string()),
        };
        forks.push(fork);
    }
    for (n, part) in forks.chunks(50).enumerate() {
        scene.send(&n.to_string(), &part.iter().collect::<Vec<_>>());
    }
    assert!(forks.iter().all(|fork| accepted(&scene, fork)));
    wait_until("the branches are joined", || heads(&scene.server, &scene.room).len() <= 10);
    assert!(users.iter().all(|user| {
        let member = scene.state_content("m.room.member", user.as_str());
        member.is_some_and(|content: Value| content["membership"] == "join")
    }));
    // Clients are not shown what joined them, and other servers get it when they ask what our next event follows.
    let room = segment(scene.room.id.as_str());
    let said = scene.alice.send(scene.room.id.as_str(), "after all that");
    let page = scene.alice.get(&format!("/_matrix/client/v3/rooms/{room}/messages?dir=b&limit=1000"));
    let kinds = |events: &Value| -> Vec<Value> {
        events.as_array().expect("events").iter().map(|event| event["type"].clone()).collect()
    };
    let joins_branches = json!("org.matrix.dummy_event");
    assert!(
        !kinds(&page["chunk"]).contains(&joins_branches)
            && page["chunk"].as_array().expect("a page").len() > 200
    );
    let known: Vec<&EventId> = forks.iter().map(Pdu::event_id).collect();
    let question = json!({ "earliest_events": known, "latest_events": [said], "limit": 100, "min_depth": 0 });
    let path = format!("/_matrix/federation/v1/get_missing_events/{room}");
    let (status, answer) = scene.peer.ask(scene.server.name(), "POST", &path, Some(&question));
    assert_eq!(status, 200, "{answer}");
    assert!(kinds(&answer["events"]).contains(&joins_branches), "{answer}");
    let sent = scene.peer.asked("/send/");
    let sent = sent.iter().flat_map(|asked| kinds(&asked.body["pdus"]));
    assert!(!sent.collect::<Vec<_>>().contains(&joins_branches));
}
