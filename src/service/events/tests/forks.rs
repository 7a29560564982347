//! Rooms that fork, and are joined again.

use super::*;

#[test]
fn forks_with_different_states_are_resolved_and_merged_by_the_next_event() {
    for version in ["1", "2", "6", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        // Alice goes on; Bob's server has not heard of it and speaks from where it was.
        let topic = hs
            .events()
            .send(draft(&room, &alice(), "m.room.topic", Some(""), json!({ "topic": "soup" })))
            .unwrap();
        let late = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "late" }));
        receive(&hs, &late).unwrap();
        assert_eq!(extremities(&hs, &room), [topic.clone(), late.event_id().clone()]);
        assert_eq!(state(&hs, &room, "m.room.topic", "").unwrap().event_id(), &topic);
        assert_consistent(&hs, &room);
        let merge = hs.events().send(message(&room, &alice(), "merged")).unwrap();
        let merged = stored(&hs, &merge);
        assert_eq!(merged.pdu.prev_events().len(), 2);
        assert_eq!(only_extremity(&hs, &room), merge);
        assert_eq!(state(&hs, &room, "m.room.topic", "").unwrap().event_id(), &topic);
        assert_consistent(&hs, &room);
        receive(&hs, &late).unwrap();
        assert_eq!(only_extremity(&hs, &room), merge);
    }
}

#[test]
fn an_event_that_evades_a_ban_is_kept_from_clients_and_referred_to_by_nobody() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let ban = draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "ban" }));
    let ban = hs.events().send(ban).unwrap();
    let evasion = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "ha" }));
    receive(&hs, &evasion).unwrap();
    let event = stored(&hs, evasion.event_id());
    assert_eq!((event.status, event.place), (Status::SoftFailed, None));
    assert_eq!(only_extremity(&hs, &room), ban);
    // What comes after it, from another branch that saw both, is judged by the state alone.
    let after = other.event(
        &hs,
        &[&ban, evasion.event_id()],
        &bob(),
        ("m.room.message", None),
        json!({ "body": "!" }),
    );
    assert_eq!(receive(&hs, &after).unwrap_err().status(), 403);
    assert!(
        hs.store.read(|db| db.event(after.event_id())).unwrap().is_none(),
        "of an outsider nothing is kept"
    );
    assert_eq!(only_extremity(&hs, &room), ban);
    // The ban took the server out of the room, so the ban itself is owed to it on its own.
    let owed = hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap();
    assert!(owed.iter().any(|event| event.event_id == ban), "{owed:?}");
    assert_consistent(&hs, &room);
}

#[test]
fn more_heads_than_an_event_can_name_are_taken_up_by_and_by() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    for number in 0..45 {
        let fork = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": number }));
        receive(&hs, &fork).unwrap();
    }
    assert_eq!(extremities(&hs, &room).len(), 45);
    for left in [26, 7, 1] {
        hs.events().send(message(&room, &alice(), "tidy")).unwrap();
        assert_eq!(extremities(&hs, &room).len(), left);
    }
    assert_consistent(&hs, &room);
}

#[test]
fn one_slow_resolution_is_not_asked_of_the_writer_when_the_room_moves() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let levels = draft(&room, &alice(), "m.room.power_levels", Some(""), json!({ "users_default": 50 }));
    hs.events().send(levels).unwrap();
    let extremity = only_extremity(&hs, &room);
    // Forks with differing states arrive while others speak.
    let forks: Vec<VerifiedPdu> = (0..20)
        .map(|n| {
            let topic = json!({ "topic": n });
            other.event(&hs, &[&extremity], &bob(), ("m.room.topic", Some("")), topic)
        })
        .collect();
    std::thread::scope(|scope| {
        let (hs, room, forks) = (&hs, &room, &forks);
        scope.spawn(move || {
            (0..40).for_each(|n| drop(hs.events().send(message(room, &alice(), &n.to_string())).unwrap()))
        });
        for half in forks.chunks(10) {
            scope.spawn(move || half.iter().for_each(|fork| receive(hs, fork).unwrap()));
        }
    });
    for fork in &forks {
        assert_ne!(stored(&hs, fork.event_id()).status, Status::Rejected);
    }
    assert_consistent(&hs, &room);
    let _ = join;
}

#[test]
fn however_often_a_room_is_forked_its_forward_extremities_stay_few_and_its_state_whole() {
    let hs = homeserver();
    let room = room(&hs, "10");
    let mut other = Other::new(&room, "10");
    let join = other.join(&hs, &bob());
    for n in 0..230 {
        let (kind, content) = match n {
            0..30 => (
                ("m.room.member", Some("@bob:there.example")),
                json!({ "membership": "join", "displayname": format!("Bob {n}") }),
            ),
            _ => (("m.room.message", None), json!({ "body": n })),
        };
        let event = other.event(&hs, &[&join], &bob(), kind, content);
        receive(&hs, &event).unwrap();
    }
    assert!((2..=201).contains(&extremities(&hs, &room).len()));
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
    assert_consistent(&hs, &room);
    // Ours join them again, as many as fit into one event.
    for n in 0..15 {
        hs.events().send(message(&room, &alice(), &format!("{n}"))).unwrap();
    }
    assert_eq!(extremities(&hs, &room).len(), 1);
    assert_consistent(&hs, &room);
}
