//! Rooms that somebody forks to make us work: what each further event costs us and others.

use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::process::cpu_ms;
use crate::common::scene::{Scene, heads};
use crate::common::wait::wait_until;
use doorstep::internals::Status;
use doorstep::protocol::{EventId, Pdu, UserId};
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
