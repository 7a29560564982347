//! Rooms that somebody forks to make us work: what each further event costs us and others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::client::sync;
use crate::common::invariants;
use crate::common::peer::now_ms;
use crate::common::process::cpu_ms;
use crate::common::random::Random;
use crate::common::scene::{Scene, heads};
use crate::common::wait::wait_until;
use doorstep::internals::{Administrator, DeletionOrder, Status};
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::segment;
use serde_json::{Value, json};

/// A room with two branches of power levels, each event of which rests on the one before.
struct Fork {
    scene: Scene,
    tips: [EventId; 2],
    /// The power levels at the end of each branch.
    levels: [Pdu; 2],
    sent: usize,
}

impl Fork {
    fn new(length: usize) -> Fork {
        let scene = Scene::new("11");
        let creator = scene.room.creator.clone();
        let (base, levels) = (scene.last.clone(), scene.room.state.clone());
        let mut fork = Fork {
            tips: [base.clone(), base],
            levels: [0, 1].map(|_| levels[&("m.room.power_levels".to_owned(), String::new())].clone()),
            scene,
            sent: 0,
        };
        for side in [0, 1] {
            let events: Vec<Pdu> = (0..length)
                .map(|n| {
                    let content = json!({ "users": { creator.as_str(): 100 }, "n": n, "side": side });
                    fork.event(side, ("m.room.power_levels", Some("")), content)
                })
                .collect();
            for some in events.chunks(50) {
                fork.send(&some.iter().collect::<Vec<_>>());
            }
        }
        fork
    }

    /// The next event of a branch.
    fn event(&mut self, side: usize, kind: (&str, Option<&str>), content: Value) -> Pdu {
        let creator = self.scene.room.creator.clone();
        let event = self.event_of(side, &creator, kind, content);
        if event.event_type() == "m.room.power_levels" {
            self.levels[side] = event.clone();
        }
        event
    }

    fn send(&mut self, events: &[&Pdu]) {
        self.sent += 1;
        let said = self.scene.send(&format!("t{}", self.sent), events);
        for event in events {
            assert_eq!(said[event.event_id().as_str()], json!({}), "{said}");
        }
    }

    /// The next event of a branch, of a user of the creator's server; its auth events are those of the branch.
    fn event_of(&mut self, side: usize, sender: &UserId, kind: (&str, Option<&str>), content: Value) -> Pdu {
        let key = ("m.room.power_levels".to_owned(), String::new());
        self.scene.room.state.insert(key, self.levels[side].clone());
        let tip = self.tips[side].clone();
        let event = self.scene.event(&[&tip], sender, kind, content);
        self.tips[side] = event.event_id().clone();
        event
    }

    /// Sends state events on both branches until one of them is a late extremity.
    fn exhaust(&mut self) {
        for n in 0..200 {
            if self.is_behind() {
                return;
            }
            let event = self.event(n % 2, ("org.example.x", Some("exhaust")), json!({ "n": n }));
            self.send(&[&event]);
        }
        panic!("the room's allowance is never spent");
    }

    fn is_behind(&self) -> bool {
        let hs = self.scene.server.homeserver();
        !hs.store.read(|db| db.rooms_with_late_extremities()).expect("the database reads").is_empty()
    }

    fn events_examined(&self) -> u64 {
        self.scene.server.homeserver().store.events_examined()
    }

    /// Waits until the room's state is that of all that came.
    fn wait_until_settled(&self) {
        wait_until("the room has caught up", || !self.is_behind());
    }
}

/// Prints what 30 events on a fork cost, and how long others wait meanwhile:
/// `cargo test --release --test federation forks -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stdout, reason = "figures are there to be read")]
fn what_further_events_of_a_fork_cost() {
    let (started, cpu) = (Instant::now(), cpu_ms());
    let mut fork = Fork::new(2000);
    fork.wait_until_settled();
    println!("two branches of 2000 power levels: {:?}, {} ms of CPU", started.elapsed(), cpu_ms() - cpu);
    let others = fork.scene.server.user("others");
    let elsewhere = others.create_room();
    for kind in ["m.room.message", "org.example.x", "m.room.power_levels"] {
        let users = json!({ fork.scene.room.creator.as_str(): 100 });
        let padding = "x".repeat(200);
        let events: Vec<Pdu> = (0..30)
            .map(|n| {
                let state_key = (kind != "m.room.message").then_some("");
                fork.event(n % 2, (kind, state_key), json!({ "users": users, "n": n, "body": padding }))
            })
            .collect();
        let over = AtomicBool::new(false);
        let (started, cpu, events_examined) = (Instant::now(), cpu_ms(), fork.events_examined());
        let (longest, sends) = std::thread::scope(|scope| {
            let sender = scope.spawn(|| {
                let (mut longest, mut sends) = (Duration::ZERO, 0);
                while !over.load(Ordering::SeqCst) {
                    let started = Instant::now();
                    others.send(&elsewhere, "hello");
                    (longest, sends) = (longest.max(started.elapsed()), sends + 1);
                    wait_a_little();
                }
                (longest, sends)
            });
            events.iter().for_each(|event| fork.send(&[event]));
            println!("  taken in after {:?}", started.elapsed());
            fork.wait_until_settled();
            assert_eq!(heads(&fork.scene.server, &fork.scene.room).len(), 2);
            over.store(true, Ordering::SeqCst);
            sender.join().expect("no panic")
        });
        println!(
            "30 {kind}: {:?}, {} ms of CPU, {} events looked at; the longest of {sends} sends elsewhere: {longest:?}",
            started.elapsed(),
            cpu_ms() - cpu,
            fork.events_examined() - events_examined
        );
    }
}

/// Prints how many states of a forked room nothing needs, and what they take:
/// `cargo test --test federation states_of_a_fork -- --ignored --nocapture`.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stdout, reason = "figures are there to be read")]
fn what_states_of_a_fork_take() {
    for (kind, events) in
        [("m.room.message", 100), ("org.example.x", 100), ("org.example.x", 400), ("m.room.member", 100)]
    {
        let mut fork = Fork::new(10);
        for n in 0..events {
            let (side, user) = (n % 2, fork.scene.peer.user(&format!("newcomer{n}")));
            let event = match kind {
                "m.room.member" => {
                    let join = json!({ "membership": "join" });
                    fork.event_of(side, &user, (kind, Some(user.as_str())), join)
                }
                "m.room.message" => fork.event(side, (kind, None), json!({ "body": "x" })),
                _ => fork.event(side, (kind, Some(&n.to_string())), json!({})),
            };
            fork.send(&[&event]);
        }
        fork.wait_until_settled();
        let rows = "snapshots LEFT JOIN spare_snapshots s USING (snapshot)";
        let of = |what: &str| {
            (count(&fork, &format!("{rows} WHERE {what}")), sum(&fork, &format!("{rows} WHERE {what}")))
        };
        let (all, spare) = (of("true"), of("s.snapshot IS NOT NULL"));
        println!(
            "{events} {kind}: {} states of {} bytes; spare of these {} of {} bytes",
            all.0, all.1, spare.0, spare.1
        );
    }
}

#[allow(clippy::disallowed_methods, reason = "somebody who sends now and then, for figures only")]
fn wait_a_little() {
    std::thread::sleep(Duration::from_millis(20));
}

#[test]
fn a_fork_costs_the_same_however_many_events_follow_on_it() {
    let length = 400;
    let mut fork = Fork::new(length);
    fork.wait_until_settled();
    let one_resolution = 2 * u64::try_from(length).expect("few");
    // Messages change no state: what the branches come to is known.
    let before = fork.events_examined();
    for n in 0..30 {
        let event = fork.event(n % 2, ("m.room.message", None), json!({ "body": format!("{n}") }));
        fork.send(&[&event]);
        assert_eq!(fork.scene.status(&event), Some(Status::Accepted));
    }
    assert!(
        fork.events_examined() - before < one_resolution,
        "{} events were looked at",
        fork.events_examined() - before
    );
    // What changes the state is taken in, and caught up with together.
    let before = fork.events_examined();
    for n in 0..30 {
        let content = json!({ "topic": format!("{n}") });
        let event = match n % 3 {
            0 => fork.event(n % 2, ("m.room.topic", Some("")), content),
            1 => fork.event(n % 2, ("org.example.x", Some(&n.to_string())), content),
            _ => {
                let users = json!({ fork.scene.room.creator.as_str(): 100 });
                fork.event(n % 2, ("m.room.power_levels", Some("")), json!({ "users": users, "n": n }))
            }
        };
        fork.send(&[&event]);
        assert_eq!(fork.scene.status(&event), Some(Status::Accepted), "it is there, whatever it comes to");
    }
    fork.wait_until_settled();
    let events_examined = fork.events_examined() - before;
    assert!(
        events_examined < 15 * one_resolution,
        "{events_examined} events were looked at, as in {}",
        events_examined / one_resolution
    );
    // All of it has come to something, and the room goes on.
    let tips: Vec<EventId> = fork.tips.to_vec();
    let mut found = heads(&fork.scene.server, &fork.scene.room);
    found.sort();
    let mut wanted = tips.clone();
    wanted.sort();
    assert_eq!(found, wanted);
    let room = fork.scene.room.id.to_string();
    let keys = (0..30).filter(|n| n % 3 == 1);
    keys.for_each(|n| assert!(fork.scene.alice.state(&room, "org.example.x", &n.to_string()).is_some()));
    fork.scene.alice.send(&room, "it goes on");
    assert_eq!(heads(&fork.scene.server, &fork.scene.room).len(), 1);
}

#[test]
fn a_room_that_we_leave_while_it_is_behind_gives_no_more_work() {
    let mut fork = Fork::new(400);
    fork.exhaust();
    fork.scene.alice.leave(fork.scene.room.id.as_str());
    fork.wait_until_settled();
}

#[test]
fn who_speaks_after_a_join_that_is_still_late_is_heard() {
    let mut fork = Fork::new(400);
    fork.exhaust();
    let user = fork.scene.peer.user("newcomer");
    let join = json!({ "membership": "join" });
    let join = fork.event_of(0, &user, ("m.room.member", Some(user.as_str())), join);
    let key = ("m.room.member".to_owned(), user.to_string());
    fork.scene.room.state.insert(key, join.clone());
    let hello = fork.event_of(0, &user, ("m.room.message", None), json!({ "body": "hello" }));
    let again = fork.event_of(0, &user, ("m.room.message", None), json!({ "body": "again" }));
    fork.send(&[&join]);
    fork.send(&[&hello]);
    fork.send(&[&again]);
    assert_ne!(fork.scene.status(&hello), Some(Status::SoftFailed), "the room does not know of the join yet");
    wait_until("both are heard", || {
        [&hello, &again].iter().all(|event| fork.scene.status(event) == Some(Status::Accepted))
    });
    fork.wait_until_settled();
    assert_eq!(fork.scene.membership(&user).as_deref(), Some("join"));
    // Who is put out in the current state is not heard, whatever branch they speak on.
    let ban = json!({ "membership": "ban" });
    let ban = fork.event(1, ("m.room.member", Some(user.as_str())), ban);
    fork.send(&[&ban]);
    fork.wait_until_settled();
    assert_eq!(fork.scene.membership(&user).as_deref(), Some("ban"));
    fork.exhaust();
    let evasive = fork.event_of(0, &user, ("m.room.message", None), json!({ "body": "evasive" }));
    fork.send(&[&evasive]);
    wait_until("it is judged", || fork.scene.status(&evasive).is_some());
    assert_eq!(fork.scene.status(&evasive), Some(Status::SoftFailed));
}

fn number(fork: &Fork, query: &str) -> i64 {
    let database = fork.scene.server.folder().join("doorstep.db");
    let database = rusqlite::Connection::open(database).expect("the database opens");
    database.query_row(query, [], |row| row.get(0)).expect("a number")
}

/// How many rows there are.
fn count(fork: &Fork, from: &str) -> i64 {
    number(fork, &format!("SELECT count(*) FROM {from}"))
}

/// How many bytes the states in these rows take.
fn sum(fork: &Fork, from: &str) -> i64 {
    let entries = "(SELECT count(*) FROM snapshot_entries e WHERE e.snapshot = snapshots.snapshot)";
    number(fork, &format!("SELECT coalesce(sum(coalesce(length(delta), 0) + 10 * {entries}), 0) FROM {from}"))
}

/// The next events of a room in which many speak at once: each follows one or several of the last ones.
fn send_at_random(fork: &mut Fork, random: &mut Random, tips: &mut Vec<EventId>, events: usize) {
    let creator = fork.scene.room.creator.clone();
    for n in 0..events {
        let first = tips.len().saturating_sub(8);
        let mut prev: Vec<EventId> =
            (0..=random.below(3)).map(|_| tips[first + random.below(tips.len() - first)].clone()).collect();
        prev.sort();
        prev.dedup();
        let prev: Vec<&EventId> = prev.iter().collect();
        let name = format!("n{}", random.below(40));
        let event = match random.below(8) {
            0..3 => fork.scene.event(&prev, &creator, ("m.room.message", None), json!({ "body": n })),
            3 => {
                let levels = json!({ "users": { creator.as_str(): 100 }, "n": n });
                fork.scene.event(&prev, &creator, ("m.room.power_levels", Some("")), levels)
            }
            4 => {
                let user = fork.scene.peer.user(&name);
                let join = json!({ "membership": "join" });
                fork.scene.event(&prev, &user, ("m.room.member", Some(user.as_str())), join)
            }
            _ => fork.scene.event(&prev, &creator, ("org.example.x", Some(&name)), json!({ "n": n })),
        };
        fork.sent += 1;
        fork.scene.send(&format!("r{}", fork.sent), &[&event]);
        if fork.scene.status(&event) == Some(Status::Accepted) {
            tips.push(event.event_id().clone());
        }
    }
    fork.wait_until_settled();
}

#[test]
fn states_that_nothing_needs_go_and_those_of_all_events_stay_as_they_were() {
    for seed in 1..=3 {
        let (mut fork, mut random) = (Fork::new(3), Random::new(seed));
        let folder = fork.scene.server.folder().to_owned();
        let mut tips = fork.tips.to_vec();
        send_at_random(&mut fork, &mut random, &mut tips, 120);
        let spare = "spare_snapshots JOIN rooms USING (room_key) WHERE state <> snapshot AND children = 0";
        let (before, made) = (count(&fork, spare), count(&fork, "snapshots"));
        assert!(before > 10, "with seed {seed} only {before} of {made} states are spare");
        assert_eq!(invariants::check(&folder, 0).0, Vec::<String>::new());
        let states = invariants::states_of_events(&folder);
        // What is under way may know them still.
        assert_eq!(count(&fork, spare), before);
        wait_until("they are gone", || {
            fork.scene.server.advance(Duration::from_secs(1800));
            count(&fork, spare) == 0
        });
        assert!(count(&fork, "snapshots") <= made - before);
        assert_eq!(invariants::states_of_events(&folder), states);
        assert_eq!(invariants::check(&folder, 0).0, Vec::<String>::new());
        // The room goes on, also where it had been left long ago.
        send_at_random(&mut fork, &mut random, &mut tips, 40);
        let mut old = tips[..tips.len() / 2].to_vec();
        send_at_random(&mut fork, &mut random, &mut old, 20);
        let room = fork.scene.room.id.to_string();
        fork.scene.alice.send(&room, "it goes on");
        assert_eq!(invariants::check(&folder, 0).0, Vec::<String>::new());
        // And nothing of it stays when it is deleted.
        fork.scene.alice.leave(&room);
        let order = DeletionOrder { purge: true, force_purge: true, ..DeletionOrder::default() };
        fork.scene
            .server
            .homeserver()
            .admin()
            .delete_room(&fork.scene.room.id, order, &Administrator::Operator)
            .expect("deleted");
        for table in ["snapshots", "snapshot_entries", "spare_snapshots"] {
            assert_eq!(count(&fork, table), 0, "{table}");
        }
    }
}

#[test]
fn messages_in_a_forked_room_make_no_states() {
    let mut fork = Fork::new(1);
    // Each branch has something that the other has not: what they come to is the state of neither. It is the room's already,
    // and a message on either branch changes nothing of what is resolved.
    for side in [0, 1] {
        let event = fork.event(side, ("org.example.x", Some(&side.to_string())), json!({}));
        fork.send(&[&event]);
    }
    fork.wait_until_settled();
    let before = count(&fork, "snapshots");
    for n in 0..20 {
        let event = fork.event(n % 2, ("m.room.message", None), json!({ "body": n }));
        fork.send(&[&event]);
    }
    assert_eq!(count(&fork, "snapshots"), before);
}

#[test]
fn events_that_change_nothing_of_a_forked_room_make_no_states_but_their_own() {
    let mut fork = Fork::new(1);
    for side in [0, 1] {
        let event = fork.event(side, ("org.example.x", Some("")), json!({ "side": side }));
        fork.send(&[&event]);
    }
    fork.wait_until_settled();
    // Of the two branches one has the power levels that count, and with them whatever both have set.
    let mut rows_made = [0, 1].map(|side| {
        let before = count(&fork, "snapshots");
        for n in 0..10 {
            let event = fork.event(side, ("org.example.x", Some("")), json!({ "side": side, "again": n }));
            fork.send(&[&event]);
        }
        fork.wait_until_settled();
        count(&fork, "snapshots") - before
    });
    rows_made.sort_unstable();
    assert_eq!(rows_made[0], 10, "each of them has a state after it");
    assert!(rows_made[1] > 10, "those of the other branch change the room's: {rows_made:?}");
}

#[test]
fn a_client_that_is_told_of_a_fork_whose_value_lost_keeps_the_one_that_won() {
    let mut scene = Scene::new("11");
    let (start, creator) = (scene.last.clone(), scene.room.creator.clone());
    let mut topic =
        |text: &str| scene.event(&[&start], &creator, ("m.room.topic", Some("")), json!({ "topic": text }));
    // Of two the later one wins.
    let lost = topic("lost");
    while now_ms() <= lost.origin_server_ts() {
        std::thread::yield_now();
    }
    let won = topic("won");
    let next = |answer: &Value| format!("since={}", answer["next_batch"].as_str().expect("next_batch"));
    let before = next(&sync(&scene.alice, ""));
    scene.send("1", &[&won]);
    let between = next(&sync(&scene.alice, &before));
    scene.send("2", &[&lost]);
    let late = scene.message_after(&[lost.event_id()], &creator, "said behind it");
    scene.send("3", &[&late]);
    assert_eq!(scene.state_content("m.room.topic", ""), Some(json!({ "topic": "won" })));
    for (since, told) in [(before.as_str(), Some("won")), (&between, None), ("", Some("won"))] {
        let answer = sync(&scene.alice, since);
        let room = &answer["rooms"]["join"][scene.room.id.as_str()];
        let all = ["state", "timeline"].map(|section| room[section]["events"].as_array().expect("events"));
        let last = all.into_iter().flatten().rfind(|event| event["type"] == "m.room.topic");
        assert_eq!(last.and_then(|event| event["content"]["topic"].as_str()), told, "{since}: {answer}");
        let said: Vec<&Value> = all[1].iter().filter(|event| event["type"] == "m.room.message").collect();
        assert_eq!(said.last().map(|event| &event["content"]["body"]), Some(&json!("said behind it")));
        assert_eq!(room["timeline"]["limited"], since.is_empty(), "{answer}");
    }
}

#[test]
fn who_forks_their_own_name_over_and_over_takes_nothing_from_anybodys_timeline() {
    let mut scene = Scene::new("11");
    let (start, creator) = (scene.last.clone(), scene.room.creator.clone());
    let mut name = |text: &str| {
        let content = json!({ "membership": "join", "displayname": text });
        scene.event(&[&start], &creator, ("m.room.member", Some(creator.as_str())), content)
    };
    let lost: Vec<_> = (0..25).map(|n| name(&format!("lost {n}"))).collect();
    let newest = lost.iter().map(|event| event.origin_server_ts()).max().expect("some");
    while now_ms() <= newest {
        std::thread::yield_now();
    }
    let won = name("won");
    scene.send("1", &[&won]);
    let room = scene.room.id.to_string();
    let next = |answer: &Value| format!("since={}", answer["next_batch"].as_str().expect("next_batch"));
    let before = next(&sync(&scene.alice, ""));
    let said = ["one", "two", "three"].map(|text| scene.alice.send(&room, text));
    let between = next(&sync(&scene.alice, &before));
    for (n, lost) in lost.iter().enumerate() {
        scene.send(&format!("lost{n}"), &[lost]);
    }
    // Nobody is told of what changed nothing for them.
    let answer = sync(&scene.alice, &between);
    assert!(answer["rooms"]["join"].get(&room).is_none(), "{answer}");
    let last = scene.alice.send(&room, "four");
    let told = |query: &str| -> (Vec<String>, Value) {
        let timeline = sync(&scene.alice, query)["rooms"]["join"][&room]["timeline"].clone();
        let ids = timeline["events"].as_array().expect("events").iter();
        (ids.map(|event| event["event_id"].as_str().expect("an id").to_owned()).collect(), timeline)
    };
    let all: Vec<String> = said.iter().chain([&last]).cloned().collect();
    let (ids, timeline) = told(&before);
    assert_eq!((ids, &timeline["limited"]), (all.clone(), &json!(false)), "{timeline}");
    assert_eq!(told(&between).0, [last.as_str()]);
    let (ids, _) = told("");
    assert!(ids.ends_with(&all), "{ids:?}");
    // What is before a timeline that is cut is found from there, without a gap and each once.
    let small = format!("filter={}", segment(r#"{"room":{"timeline":{"limit":2}}}"#));
    let (ids, timeline) = told(&small);
    assert_eq!((ids, &timeline["limited"]), (all[2..].to_vec(), &json!(true)));
    let from = segment(timeline["prev_batch"].as_str().expect("prev_batch"));
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=3&from={from}", segment(&room));
    let earlier = scene.alice.get(&path);
    let ids: Vec<&str> =
        earlier["chunk"].as_array().expect("a page").iter().filter_map(|e| e["event_id"].as_str()).collect();
    assert_eq!(ids, [&all[1], &all[0], won.event_id().as_str()]);
}
