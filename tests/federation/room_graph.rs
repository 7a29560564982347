//! Rooms as graphs of events between servers: transactions, forks, holes and how they are filled or gone around, and
//! what a server that lies about them achieves (nothing).

use std::time::Duration;

use crate::common::peer::{FakeRoom, Peer};
use crate::common::scene::{Scene, bodies, heads, objects, stored};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::internals::{Place, Status};
use doorstep::protocol::{EventId, Pdu};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

#[test]
fn a_transaction_is_answered_event_by_event_and_its_repeat_changes_nothing() {
    for version in ["6", "12"] {
        let mut scene = Scene::new(version);
        let good = scene.message("one");
        let next = scene.message("two");
        let stranger = scene.peer.user("stranger");
        let last = scene.last.clone();
        let forbidden = scene.message_after(&[&last], &stranger, "no");
        let mut unsigned = scene.message("three").to_object();
        unsigned.insert("signatures".into(), json!({}));
        let unsigned = Pdu::from_object(unsigned, scene.room.version).expect("an event");
        let said = scene.send("1", &[&good, &next, &forbidden, &unsigned]);
        assert_eq!(
            (&said[good.event_id().as_str()], &said[next.event_id().as_str()]),
            (&json!({}), &json!({}))
        );
        assert!(said[forbidden.event_id().as_str()]["error"].is_string(), "{said}");
        assert!(said[unsigned.event_id().as_str()]["error"].is_string(), "{said}");
        assert_eq!(scene.status(&forbidden), Some(Status::Rejected));
        assert!(scene.status(&unsigned).is_none());
        let position = scene.server.homeserver().store.position();
        assert_eq!(scene.send("1", &[&good, &next, &forbidden, &unsigned]), said);
        assert_eq!(scene.send("2", &[&good, &next])[good.event_id().as_str()], json!({}));
        assert_eq!(scene.server.homeserver().store.position(), position);
        assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), ["one", "two"]);
    }
}

#[test]
fn transactions_beyond_the_limits_or_out_of_shape_are_refused_as_a_whole() {
    let scene = Scene::new("12");
    let txn = std::cell::Cell::new(0);
    let put = |body: Value| {
        txn.set(txn.get() + 1);
        let path = format!("/_matrix/federation/v1/send/{}", txn.get());
        scene.peer.ask(scene.server.name(), "PUT", &path, Some(&body))
    };
    let of = |pdus: usize, edus: usize| json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": vec![json!({}); pdus], "edus": vec![json!({}); edus] });
    assert_eq!(put(of(50, 100)), (200, json!({ "pdus": {} })));
    for body in [of(51, 0), of(0, 101), json!({}), json!({ "pdus": 3 }), json!([]), json!([[], []])] {
        let (status, answer) = put(body);
        assert_eq!((status, &answer["errcode"]), (400, &json!("M_BAD_JSON")), "{answer}");
    }
}

#[test]
fn an_event_whose_content_was_changed_on_the_way_is_taken_in_without_its_content() {
    let mut scene = Scene::new("12");
    let message = scene.message("original");
    let mut changed = message.to_object();
    changed["content"]["body"] = json!("forged");
    let changed = Pdu::from_object(changed, scene.room.version).expect("an event");
    assert_eq!(scene.send("1", &[&changed])[message.event_id().as_str()], json!({}));
    let event = stored(&scene.server, message.event_id()).expect("it is stored");
    assert_eq!((event.status, event.pdu.content().len()), (Status::Accepted, 0));
}

#[test]
fn a_hole_of_some_events_is_filled_before_the_event_behind_it_is_shown() {
    let mut scene = Scene::new("12");
    let lost: Vec<Pdu> = (0..30).map(|n| scene.message(&format!("lost {n}"))).collect();
    let topic = scene.set_state("m.room.topic", "", json!({ "topic": "holes" }));
    let arrived = scene.message("arrived");
    // In a wrong order and with the event itself among them, which the answer must not have.
    let mut answer = objects(&lost);
    answer.reverse();
    answer.push(Value::Object(arrived.to_object()));
    answer.push(Value::Object(topic.to_object()));
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": answer }));
    assert_eq!(scene.send("1", &[&arrived])[arrived.event_id().as_str()], json!({}));
    let mut expected: Vec<String> = (0..30).map(|n| format!("lost {n}")).collect();
    expected.push("arrived".into());
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), expected);
    assert_eq!(scene.state_content("m.room.topic", "").expect("a topic")["topic"], "holes");
    assert_eq!(heads(&scene.server, &scene.room), [arrived.event_id().clone()]);
    assert_eq!(scene.peer.asked("/get_missing_events/").len(), 1);
    assert!(scene.peer.asked("/state").is_empty());
}

#[test]
fn a_large_hole_is_gone_around_by_the_state_and_can_be_filled_later() {
    for whole in [false, true] {
        let mut scene = Scene::new("12");
        let here = scene.last.clone();
        let lost: Vec<Pdu> = (0..5).map(|n| scene.message(&format!("lost {n}"))).collect();
        let topic = scene.set_state("m.room.topic", "", json!({ "topic": "beyond" }));
        // Enough for the state to be fetched as a whole, or few enough for its events to be fetched one by one.
        for n in 0..if whole { 40 } else { 3 } {
            let user = scene.peer.user(&format!("user{n}"));
            scene.join(&user);
        }
        scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
        scene.answer_with_state();
        let arrived = scene.message("arrived");
        assert_eq!(scene.send("1", &[&arrived])[arrived.event_id().as_str()], json!({}));
        assert_eq!(scene.status(&arrived), Some(Status::Accepted));
        assert_eq!(scene.peer.asked("/state/").is_empty(), !whole);
        assert_eq!(scene.state_content("m.room.topic", "").expect("a topic")["topic"], "beyond");
        // Our own last event and theirs are both ends until something follows both.
        assert_eq!(heads(&scene.server, &scene.room), [here.clone(), arrived.event_id().clone()]);
        let merge = scene.alice.send(scene.room.id.as_str(), "merge");
        let merge = EventId::parse(&merge).expect("an event id");
        assert_eq!(stored(&scene.server, &merge).expect("it is stored").pdu.prev_events().len(), 2);

        // Whoever pages back gets what lies between.
        let mut behind: Vec<Pdu> = lost.clone();
        behind.push(topic);
        behind.extend(
            scene.room.state.values().filter(|p| p.sender().localpart().starts_with("user")).cloned(),
        );
        scene.peer.answer_json(
            "/backfill/",
            200,
            json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&behind) }),
        );
        let hs = scene.server.homeserver();
        let room = hs.store.read(|db| db.known_room(&scene.room.id)).expect("the room");
        assert!(hs.events().backfill(&room, Place::END).expect("it comes"));
        assert_eq!(
            bodies(&scene.alice, scene.room.id.as_str()),
            ["lost 0", "lost 1", "lost 2", "lost 3", "lost 4", "arrived", "merge"]
        );
        let news = scene.alice.initial_sync();
        assert!(news["rooms"]["join"][scene.room.id.as_str()]["timeline"]["limited"].is_boolean());
        // Nothing current was touched by the history.
        assert_eq!(heads(&scene.server, &scene.room), [merge]);
        assert_eq!(scene.state_content("m.room.topic", "").expect("a topic")["topic"], "beyond");
    }
}

#[test]
fn a_hole_in_the_timeline_is_shown_as_one_and_what_lies_in_it_can_be_asked_for() {
    let mut scene = Scene::new("12");
    let id = scene.room.id.to_string();
    let v3 = "/_matrix/client/v3";
    let alice = TestUser::new(scene.alice.url(), scene.alice.id(), scene.alice.token());
    let timeline = |query: &str| {
        let answer = alice.get(&format!("{v3}/sync?{query}"));
        let timeline = answer["rooms"]["join"][&id]["timeline"].clone();
        let said = timeline["events"].as_array().expect("a timeline").iter();
        let said: Vec<String> =
            said.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect();
        (said, timeline["limited"] == true, timeline["prev_batch"].clone(), answer["next_batch"].clone())
    };
    // What was before our own join nobody has fetched yet.
    assert!(timeline("").1, "the history before a join is a hole");
    let before = scene.message("before");
    scene.send("1", &[&before]);
    let lost: Vec<Pdu> = (0..5).map(|n| scene.message(&format!("lost {n}"))).collect();
    scene.answer_with_state();
    let arrived = scene.message("arrived");
    let since = alice.initial_sync()["next_batch"].clone();
    let since = format!("since={}", since.as_str().expect("a token"));
    assert_eq!(scene.send("2", &[&arrived])[arrived.event_id().as_str()], json!({}));
    assert_eq!(scene.status(&arrived), Some(Status::Accepted));
    let after = scene.message("after");
    scene.send("3", &[&after]);
    let none = segment(&json!({ "room": { "timeline": { "limit": 0 } } }).to_string());
    let shown = vec!["arrived".to_owned(), "after".to_owned()];
    for (query, shown) in [
        (String::new(), &shown),
        (since.clone(), &shown),
        (format!("{since}&use_state_after=true"), &shown),
        (format!("{since}&filter={none}"), &vec![]),
    ] {
        let (said, limited, _, _) = timeline(&query);
        assert_eq!((&said, limited), (shown, true), "{query}");
    }
    let (_, _, prev_batch, next) = timeline(&since);
    scene.peer.answer_json(
        "/backfill/",
        200,
        json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&lost) }),
    );
    let from = segment(prev_batch.as_str().expect("a token"));
    let page = alice.get(&format!("{v3}/rooms/{}/messages?dir=b&limit=6&from={from}", segment(&id)));
    let said: Vec<_> =
        page["chunk"].as_array().expect("a page").iter().map(|e| e["content"]["body"].clone()).collect();
    assert_eq!(said, ["lost 4", "lost 3", "lost 2", "lost 1", "lost 0", "before"]);
    // What follows is whole again, and so is what was filled.
    let last = scene.message("last");
    scene.send("4", &[&last]);
    let (said, limited, _, _) = timeline(&format!("since={}", next.as_str().expect("a token")));
    assert_eq!((said, limited), (vec!["last".to_owned()], false));
    assert_eq!(timeline(&since).0.len(), 8);
    assert!(!timeline(&since).1, "the hole is filled");
}

#[test]
fn a_server_that_leaves_a_ban_out_of_the_state_does_not_undo_it() {
    let mut scene = Scene::new("11");
    let mallory = scene.peer.user("mallory");
    let join = scene.join(&mallory);
    let before_ban = scene.room.state.clone();
    let ban = scene.set_state("m.room.member", mallory.as_str(), json!({ "membership": "ban" }));
    scene.send("1", &[&join, &ban]);
    assert_eq!(scene.membership(&mallory).as_deref(), Some("ban"));

    // The banned user's event names the room's end, and something that nobody has; the state "before it" has no ban.
    scene.room.state = before_ban;
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    let nowhere = EventId::parse("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA").expect("an event id");
    let evil = scene.message_after(&[ban.event_id(), &nowhere], &mallory, "back");
    scene.send("2", &[&evil]);
    // What nobody has may have let them in again: it waits for that, and is shown to nobody.
    assert_eq!(scene.status(&evil), None);
    assert_eq!(scene.membership(&mallory).as_deref(), Some("ban"));
    // Nor does an event of the creator's, whose state is as false: the ban is what we know to be before it.
    let creator = scene.room.creator.clone();
    let odd = scene.message_after(&[ban.event_id(), &nowhere], &creator, "odd");
    scene.send("3", &[&odd]);
    assert_eq!(scene.status(&odd), Some(Status::Accepted));
    assert_eq!(scene.membership(&mallory).as_deref(), Some("ban"));
}

#[test]
fn a_ban_is_not_undone_by_an_event_behind_it_that_comes_first_with_a_state_without_it() {
    let mut scene = Scene::new("11");
    let mallory = scene.peer.user("mallory");
    let join = scene.join(&mallory);
    scene.send("1", &[&join]);
    let before_ban = scene.room.state.clone();
    let ban = scene.set_state("m.room.member", mallory.as_str(), json!({ "membership": "ban" }));
    let with_ban = std::mem::replace(&mut scene.room.state, before_ban);

    // Whoever hears of the ban before us is quick to say something after it, and of the state that there was no ban.
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    let creator = scene.room.creator.clone();
    let quick = scene.message_after(&[ban.event_id(), join.event_id()], &creator, "quick");
    scene.send("2", &[&quick]);
    assert_eq!(scene.status(&quick), Some(Status::Accepted));
    assert_eq!(scene.membership(&mallory).as_deref(), Some("join"));

    scene.send("3", &[&ban]);
    assert_eq!(scene.status(&ban), Some(Status::Accepted));
    assert_eq!(scene.membership(&mallory).as_deref(), Some("ban"));
    // What follows the quick one does not bring them back either.
    scene.room.state = with_ban;
    scene.last = quick.event_id().clone();
    let next = scene.message("next");
    scene.send("4", &[&next]);
    assert_eq!(scene.status(&next), Some(Status::Accepted));
    assert_eq!(scene.membership(&mallory).as_deref(), Some("ban"));
}

#[test]
fn a_peer_that_answers_with_rubbish_is_asked_again_and_its_event_is_not_lost() {
    let mut scene = Scene::new("12");
    let lost = scene.message("lost");
    let arrived = scene.message("arrived");
    let html = || Reply::bytes("text/html", b"<html>".to_vec());
    scene.peer.answer("/get_missing_events/", move |_| html());
    scene.peer.answer("/state_ids/", move |_| html());
    let said = scene.send("1", &[&arrived]);
    assert_eq!(said[arrived.event_id().as_str()], json!({}));
    assert!(scene.status(&arrived).is_none());
    // Another room's event, and one that nobody signed.
    let other = FakeRoom::new(&scene.peer, "12", "public");
    let foreign = other.state.values().next().expect("it has state").clone();
    scene.peer.answer_json(
        "/get_missing_events/",
        200,
        json!({ "events": [foreign.to_object(), { "x": 1 }] }),
    );
    scene.peer.answer_json(
        "/state_ids/",
        200,
        json!({ "pdu_ids": [foreign.event_id()], "auth_chain_ids": [] }),
    );
    scene.peer.answer_json(
        "/event/",
        200,
        json!({ "origin": "x", "origin_server_ts": 1, "pdus": [foreign.to_object()] }),
    );
    let asked = scene.peer.asked("/event/").len();
    scene.server.advance(Duration::from_secs(60));
    wait_until("the peer is asked again", || scene.peer.asked("/event/").len() > asked);
    assert!(scene.status(&arrived).is_none());
    assert!(stored(&scene.server, foreign.event_id()).is_none());
    assert!(scene.status(&lost).is_none());
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), Vec::<String>::new());
    // It comes to its senses.
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": objects(&[lost]) }));
    scene.server.advance(Duration::from_secs(3600));
    wait_until("the event is there", || scene.status(&arrived) == Some(Status::Accepted));
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), ["lost", "arrived"]);
}

#[test]
fn auth_events_that_we_lack_are_fetched_and_judged() {
    let mut scene = Scene::new("10");
    let user = scene.peer.user("late");
    let (last, id) = (scene.last.clone(), user.as_str().to_owned());
    // The join is of a branch that we never heard of; the message cites it and follows our end.
    let join = scene.event(&[&last], &user, ("m.room.member", Some(&id)), json!({ "membership": "join" }));
    scene.room.state.insert(("m.room.member".into(), id), join.clone());
    let message = scene.message_after(&[&last], &user, "hello");
    let chain: Vec<Pdu> = scene.room.state.values().cloned().collect();
    scene.peer.answer_json("/event_auth/", 200, json!({ "auth_chain": objects(&chain) }));
    let said = scene.send("1", &[&message]);
    // The auth events allow it, the state before it does not.
    assert!(said[message.event_id().as_str()]["error"].is_string(), "{said}");
    assert_eq!(scene.status(&message), Some(Status::Rejected));
    let outlier = stored(&scene.server, join.event_id()).expect("it was fetched");
    assert!(outlier.is_outlier() && outlier.place.is_none());
    // Once the join comes the ordinary way it finds its place.
    assert_eq!(scene.send("2", &[&join])[join.event_id().as_str()], json!({}));
    assert!(!stored(&scene.server, join.event_id()).expect("it is stored").is_outlier());
}

#[test]
fn other_servers_read_what_they_need_and_only_if_they_are_in_the_room() {
    let mut scene = Scene::new("12");
    let ours = scene.alice.send(scene.room.id.as_str(), "ours");
    let outsider = Peer::start();
    let room = segment(scene.room.id.as_str());
    let fed = |path: &str| format!("/_matrix/federation/v1/{path}");
    let get = |peer: &Peer, path: String| peer.ask(scene.server.name(), "GET", &path, None);
    let paths = [
        fed(&format!("event/{}", segment(&ours))),
        fed(&format!("state/{room}?event_id={}", segment(&ours))),
        fed(&format!("state_ids/{room}?event_id={}", segment(&ours))),
        fed(&format!("event_auth/{room}/{}", segment(&ours))),
        fed(&format!("backfill/{room}?v={}&limit=10", segment(&ours))),
    ];
    for path in &paths {
        let (status, body) = get(&outsider, path.clone());
        assert_eq!((status, &body["errcode"]), (403, &json!("M_FORBIDDEN")), "{path}");
        assert_eq!(get(&scene.peer, path.clone()).0, 200, "{path}");
    }
    let (_, event) = get(&scene.peer, paths[0].clone());
    assert_eq!(event["pdus"][0]["content"]["body"], "ours");
    let (_, ids) = get(&scene.peer, paths[2].clone());
    assert_eq!(ids["pdu_ids"].as_array().map(Vec::len), Some(scene.room.state.len()));
    let (_, page) = get(&scene.peer, paths[4].clone());
    let page: Vec<&str> =
        page["pdus"].as_array().expect("pdus").iter().map(|e| e["type"].as_str().expect("a type")).collect();
    assert_eq!(page, ["m.room.message", "m.room.member"]);
    let nothing = segment("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
    for path in [format!("event/{nothing}"), format!("state_ids/{room}?event_id={nothing}")] {
        let (status, body) = get(&scene.peer, fed(&path));
        assert_eq!((status, &body["errcode"]), (404, &json!("M_NOT_FOUND")), "{path}");
    }
    let theirs = scene.message("theirs");
    scene.send("1", &[&theirs]);
    let join = heads(&scene.server, &scene.room);
    let wanted = json!({ "earliest_events": [], "latest_events": join, "limit": 2 });
    let (status, missing) = scene.peer.ask(
        scene.server.name(),
        "POST",
        &fed(&format!("get_missing_events/{room}")),
        Some(&wanted),
    );
    assert_eq!(status, 200);
    let types: Vec<&str> = missing["events"]
        .as_array()
        .expect("events")
        .iter()
        .map(|e| e["type"].as_str().expect("a type"))
        .collect();
    assert!(!types.is_empty() && types.len() <= 2, "{types:?}");
}

#[test]
fn two_servers_that_speak_at_once_end_with_the_same_room() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "12" }));
    bob.join_via(&room, &[here.name()]);
    alice.set_state(&room, "m.room.power_levels", "", json!({ "users_default": 50 }));
    wait_until("bob has the power", || {
        bob.state(&room, "m.room.power_levels", "").is_some_and(|levels| levels["users_default"] == 50)
    });
    std::thread::scope(|scope| {
        for (user, who) in [(&alice, "alice"), (&bob, "bob")] {
            let room = &room;
            scope.spawn(move || {
                for n in 0..40 {
                    user.send(room, &format!("{who} {n}"));
                    if n % 10 == 0 {
                        user.set_state(room, "m.room.topic", "", json!({ "topic": format!("{who} {n}") }));
                    }
                }
            });
        }
    });
    let all = |user: &TestUser| {
        let mut bodies = bodies(user, &room);
        bodies.sort();
        bodies
    };
    wait_until("both have everything", || all(&alice).len() == 80 && all(&bob).len() == 80);
    // An event that follows everything settles what the state is, on both sides.
    alice.send(&room, "alice ends");
    wait_until("bob has the end", || all(&bob).len() == 81);
    bob.send(&room, "bob ends");
    wait_until("alice has the end", || all(&alice).len() == 82);
    assert_eq!(all(&alice), all(&bob));
    let topic = |user: &TestUser| user.state(&room, "m.room.topic", "").map(|c| c["topic"].clone());
    wait_until("both have one topic", || topic(&alice) == topic(&bob));
}
