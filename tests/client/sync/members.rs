//! Members that are loaded lazily.

use super::*;

#[test]
fn members_are_loaded_lazily_if_asked_for() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let others: Vec<TestUser> = (0..6).map(|n| server.user(&format!("user{n}"))).collect();
    for other in &others {
        other.join(&room);
    }
    for n in 0..10 {
        others[0].send(&room, &n.to_string());
    }
    alice.set_state(&room, "m.room.name", "", json!({"name": "so that there are no heroes"}));
    let lazy = filter(&json!({"room": {"state": {"lazy_load_members": true}, "timeline": {"limit": 5}}}));
    let answer = sync(&alice, &lazy);
    let joined = &answer["rooms"]["join"][&room];
    assert_eq!(members(&joined["state"]), [alice.id(), others[0].id()], "who speaks, and oneself");
    assert!(joined["summary"].get("m.heroes").is_none());
    assert_eq!(joined["summary"]["m.joined_member_count"], 7);
    others[3].send(&room, "hello");
    let answer = sync(&alice, &format!("{lazy}&{}", next(&answer)));
    assert!(members(&answer["rooms"]["join"][&room]["state"]).contains(&others[3].id()));
    let whole = sync(&alice, &format!("full_state=true&{}", next(&answer)));
    assert_eq!(members(&whole["rooms"]["join"][&room]["state"]).len(), 7);
}

#[test]
fn a_member_that_the_client_has_is_not_told_again_unless_the_answer_was_lost() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room =
        alice.create_room_with(json!({ "preset": "public_chat", "name": "so that there are no heroes" }));
    bob.join(&room);
    let lazy = |more: &str, answer: &Value| {
        let wish = json!({ "lazy_load_members": true, "include_redundant_members": more == "all" });
        format!(
            "{}&{}",
            filter(&json!({ "room": { "state": wish, "timeline": { "limit": 3 } } })),
            next(answer)
        )
    };
    let told = |answer: &Value| -> Vec<String> {
        let room = &answer["rooms"]["join"][&room];
        members(&room["state"]).into_iter().map(str::to_owned).collect()
    };
    let say = |text: &str| drop(bob.send(&room, text));
    for n in 0..4 {
        alice.send(&room, &n.to_string());
    }
    let none = json!({ "next_batch": "" });
    let first = sync(&alice, &lazy("", &none));
    assert_eq!(told(&first), [alice.id()], "who speaks, and oneself");
    say("bob speaks for the first time");
    let second = sync(&alice, &lazy("", &first));
    assert_eq!(told(&second), [bob.id()]);
    // The answer was lost: the client asks again with the token that it has.
    say("and once more");
    let again = sync(&alice, &lazy("", &first));
    assert_eq!(told(&again), [bob.id()], "what was lost is not taken for told");
    say("again");
    let third = sync(&alice, &lazy("", &again));
    assert_eq!(told(&third), [""; 0], "the client has it");
    assert_eq!(bodies(&third["rooms"]["join"][&room]["timeline"]), ["again"]);
    assert_eq!(told(&sync(&alice, &lazy("all", &again))), [bob.id()], "unless it wants it all the same");
    // After a profile change the new membership is told by itself, and so is no more afterwards.
    bob.put(&format!("{V3}/profile/{}/displayname", segment(bob.id())), json!({ "displayname": "Bob" }));
    say("as Bob");
    let fourth = sync(&alice, &lazy("", &third));
    say("still Bob");
    assert_eq!(told(&sync(&alice, &lazy("", &fourth))), [""; 0]);
    // Behind a gap, in the eyes of another device, from the beginning, or if all is wanted, it is told anew.
    for n in 0..5 {
        say(&n.to_string());
    }
    assert_eq!(told(&sync(&alice, &lazy("", &fourth))), [bob.id()], "behind a gap");
    let other = server.device_of(&alice, "OTHER");
    assert_eq!(told(&sync(&other, &lazy("", &third))), [bob.id()]);
    assert!(told(&sync(&alice, &lazy("", &none))).contains(&bob.id().to_owned()));
    let whole = sync(&alice, &format!("full_state=true&{}", lazy("", &fourth)));
    assert!(told(&whole).contains(&bob.id().to_owned()));
    // Who has asked for all state anew has lost what was told before.
    for n in 0..4 {
        alice.send(&room, &n.to_string());
    }
    let whole = sync(&alice, &format!("full_state=true&{}", lazy("", &fourth)));
    assert!(!told(&whole).contains(&bob.id().to_owned()), "bob has not spoken of late");
    say("bob speaks, and nobody knows him");
    assert_eq!(told(&sync(&alice, &lazy("", &whole))), [bob.id()]);
}

#[test]
fn members_told_before_a_gap_or_before_the_user_left_and_came_back_are_told_again_when_they_speak() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let named = json!({ "preset": "public_chat", "name": "so that there are no heroes" });
    let (room, other) = (bob.create_room_with(named.clone()), bob.create_room_with(named));
    alice.join(&room);
    alice.join(&other);
    let wish = json!({ "state": { "lazy_load_members": true }, "timeline": { "limit": 3 } });
    let lazy =
        |answer: &Value| sync(&alice, &format!("{}&{}", filter(&json!({ "room": wish })), next(answer)));
    let told = |answer: &Value, room: &str| -> Vec<String> {
        let room = &answer["rooms"]["join"][room];
        members(&room["state"]).into_iter().map(str::to_owned).collect()
    };
    let say = |room: &str| drop(bob.send(room, "bob speaks"));
    for _ in 0..3 {
        say(&room);
        say(&other);
    }
    let first = lazy(&json!({ "next_batch": "" }));
    assert!(told(&first, &room).contains(&bob.id().to_owned()));
    assert!(told(&first, &other).contains(&bob.id().to_owned()));
    for n in 0..5 {
        alice.send(&room, &n.to_string());
    }
    let gap = lazy(&first);
    assert_eq!(gap["rooms"]["join"][&room]["timeline"]["limited"], true);
    assert_eq!(told(&gap, &room), [alice.id()], "who speaks behind the gap");
    say(&room);
    say(&other);
    let behind = lazy(&gap);
    assert_eq!(
        told(&behind, &room),
        [bob.id()],
        "whom the client may have dropped with what was before the gap"
    );
    assert_eq!(told(&behind, &other), [""; 0], "there was no gap there");
    say(&room);
    let later = lazy(&behind);
    assert_eq!(told(&later, &room), [""; 0], "once");

    alice.leave(&room);
    let left = lazy(&later);
    assert!(left["rooms"]["leave"][&room].is_object());
    alice.join(&room);
    for n in 0..5 {
        alice.send(&room, &n.to_string());
    }
    let back = lazy(&left);
    assert!(!told(&back, &room).contains(&bob.id().to_owned()), "bob has not spoken of late");
    say(&room);
    assert_eq!(told(&lazy(&back), &room), [bob.id()], "what was told before alice left counts for nothing");
}

#[test]
fn a_member_that_a_waiting_client_has_is_not_told_again_and_one_that_it_lacks_is() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "name": "no heroes" }));
    bob.join(&room);
    carol.join(&room);
    let lazy =
        filter(&json!({ "room": { "state": { "lazy_load_members": true }, "timeline": { "limit": 2 } } }));
    bob.send(&room, "one");
    bob.send(&room, "two");
    let mut answer = sync(&alice, &lazy);
    for (speaker, lacks) in [(&bob, false), (&carol, true), (&carol, false), (&bob, false)] {
        let query = format!("{lazy}&timeout=20000&{}", next(&answer));
        answer = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sync(&alice, &query));
            while server.homeserver().notifier.waiting() < 1 {
                std::thread::yield_now();
            }
            speaker.send(&room, "hello");
            waiting.join().expect("an answer")
        });
        let joined = &answer["rooms"]["join"][&room];
        assert_eq!(bodies(&joined["timeline"]), ["hello"]);
        let told = members(&joined["state"]);
        assert_eq!(told, if lacks { vec![speaker.id()] } else { Vec::new() }, "{answer}");
    }
}
