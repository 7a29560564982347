//! What strangers may do at the doors of our users and rooms: invite and knock, but not fill the house with it, nor keep
//! others out.

use std::time::{Duration, Instant};

use crate::common::client::{knock, room_path};
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{objects, stored};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Place;
use doorstep::internals::TimelineRange;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::{EventId, Pdu, RoomId, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// An invite to a room of the peer's of which nothing is known; what the server says of it.
fn invite(
    peer: &Peer,
    server: &TestServer,
    inviter: &UserId,
    to: (&str, &TestUser),
    shown: &Value,
) -> (u16, Value) {
    let version = room_version("11").expect("a known version");
    let room = RoomId::parse(&format!("!{}:{}", to.0, peer.name())).expect("a room id");
    let event = json!({
        "type": "m.room.member", "state_key": to.1.id(), "sender": inviter, "room_id": room,
        "content": { "membership": "invite" }, "origin_server_ts": now_ms(), "depth": 7,
        "prev_events": ["$before"], "auth_events": [],
    });
    let event = peer.sign(event.as_object().expect("an object").clone(), version);
    let body = json!({ "room_version": "11", "event": event.to_object(), "invite_room_state": shown });
    peer.put_event(server.name(), "v2/invite", &room, &event, &body)
}

fn stripped(event_type: &str, state_key: &str, content: Value) -> Value {
    json!({ "type": event_type, "state_key": state_key, "sender": "@a:b.example", "content": content })
}

/// Close to a megabyte of everything.
fn shown_at_length() -> Value {
    let mut shown = vec![
        stripped("m.room.topic", "", json!({ "topic": "x".repeat(60_000) })),
        stripped("m.room.name", "", json!({ "name": "At length" })),
        stripped("m.room.create", "", json!({ "type": "m.space" })),
    ];
    shown.extend(
        (0..14).map(|n| stripped("org.example.junk", &n.to_string(), json!({ "x": "x".repeat(60_000) }))),
    );
    Value::Array(shown)
}

fn is_limited((status, body): &(u16, Value)) -> bool {
    // Other servers take 429 to be about themselves, and are told so of one of their users by 403.
    let limited = body["errcode"] == "M_LIMIT_EXCEEDED";
    assert_eq!(limited, *status == 429 || (*status == 403 && limited), "{status} {body}");
    assert!(!limited || body["retry_after_ms"].as_u64().is_some_and(|ms| ms > 0), "{body}");
    limited
}

fn invites(sync: &Value) -> usize {
    sync["rooms"]["invite"].as_object().map_or(0, serde_json::Map::len)
}

#[test]
fn an_invite_whose_server_has_nothing_to_show_of_its_room_and_says_so_by_null_is_taken() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let bob = server.user("bob");
    let (status, said) = invite(&peer, &server, &peer.user("alice"), ("quiet", &bob), &Value::Null);
    assert_eq!(status, 200, "{said}");
    bob.wait_for_room("invite", &format!("!quiet:{}", peer.name()));
}

#[test]
fn a_flood_of_invites_from_one_server_is_bounded_and_keeps_no_other_out() {
    let server = TestServer::start();
    let (bob, carol) = (server.user("bob"), server.user("carol"));
    let (evil, friend) = (Peer::start(), Peer::start());
    let shown = shown_at_length();
    let mut taken = 0;
    for n in 0..60 {
        let inviter = evil.user(&format!("spam{}", n / 2));
        let said = invite(&evil, &server, &inviter, (&format!("r{n}"), &bob), &shown);
        assert!(said.0 == 200 || is_limited(&said), "{said:?}");
        taken += usize::from(said.0 == 200);
    }
    assert!((20..50).contains(&taken), "{taken}");
    let honest = friend.user("honest");
    let said = invite(&friend, &server, &honest, ("party", &bob), &shown);
    assert_eq!(said.0, 200, "{said:?}");
    let said = invite(&evil, &server, &evil.user("spam0"), ("other", &carol), &shown);
    assert_eq!(said.0, 200, "another user has places of their own: {said:?}");

    let sync = bob.initial_sync();
    assert_eq!(invites(&sync), taken + 1);
    assert!(sync.to_string().len() < (taken + 1) * 4096, "what is not recommended, or too long, is not kept");
    let party = &sync["rooms"]["invite"][&format!("!party:{}", friend.name())]["invite_state"]["events"];
    let types: Vec<_> = party.as_array().expect("events").iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(types, ["m.room.create", "m.room.name", "m.room.member"]);
    assert_eq!(party[0]["content"]["type"], "m.space");
    let since = sync["next_batch"].as_str().expect("a token").to_owned();
    let later = bob.get(&format!("/_matrix/client/v3/sync?since={since}&timeout=0"));
    assert!(later.get("rooms").is_none(), "{later}");

    // A place is free again once the user has answered.
    let said = invite(&evil, &server, &evil.user("spam0"), ("again", &bob), &shown);
    assert!(is_limited(&said), "{said:?}");
    bob.leave(&format!("!r0:{}", evil.name()));
    bob.leave(&format!("!r1:{}", evil.name()));
    let said = invite(&evil, &server, &evil.user("spam0"), ("again", &bob), &shown);
    assert_eq!(said.0, 200, "{said:?}");
}

#[test]
fn the_servers_that_a_strangers_invite_names_are_asked_for_nobody_and_their_keys_are_a_strangers() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let (evil, named) = (Peer::start(), Peer::start());
    // In the first versions an event's id names a server too, whose signature it takes.
    let version = room_version("1").expect("a known version");
    let room = RoomId::parse(&format!("!r:{}", evil.name())).expect("a room id");
    let invite = |to: &str| {
        let event = json!({
            "type": "m.room.member", "state_key": to, "sender": evil.user("eve"), "room_id": room,
            "content": { "membership": "invite" }, "origin_server_ts": now_ms(), "depth": 7,
            "prev_events": [["$before:example.org", { "sha256": "x" }]], "auth_events": [],
        });
        let event = named.sign(event.as_object().expect("an object").clone(), version);
        assert!(event.event_id().as_str().ends_with(named.name().as_str()), "{}", event.event_id());
        let signed = evil.countersign(&Value::Object(event.to_object()), version);
        evil.put_event(server.name(), "v1/invite", &room, &event, &signed)
    };
    for nobody in [server_user(&server, "nobody"), "@bob:elsewhere.example".to_owned()] {
        let (status, body) = invite(&nobody);
        assert!(matches!(status, 400 | 403), "{status} {body}");
    }
    let database = rusqlite::Connection::open(server.folder().join("doorstep.db")).expect("it opens");
    let kept = || -> Vec<bool> {
        database
            .prepare("SELECT stranger FROM key_statements WHERE server = ?1")
            .and_then(|mut of| of.query_map([named.name().as_str()], |row| row.get(0))?.collect())
            .expect("the database reads")
    };
    assert!(kept().is_empty(), "for an invite of nobody no server is asked");
    let (status, body) = invite(bob.id());
    assert_eq!(status, 200, "{body}");
    assert_eq!(kept(), [true], "the first to go when there are many");
}

fn server_user(server: &TestServer, name: &str) -> String {
    format!("@{name}:{}", server.name())
}

#[test]
fn one_inviter_takes_few_of_the_places_of_their_server() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let spammer = peer.user("spammer");
    let said =
        |n: usize, inviter: &UserId| invite(&peer, &server, inviter, (&format!("r{n}"), &bob), &json!([]));
    let taken = (0..15).filter(|n| said(*n, &spammer).0 == 200).count();
    assert_eq!(taken, 10);
    assert!(is_limited(&said(20, &spammer)));
    // One that was there before is renewed.
    assert_eq!(said(3, &spammer).0, 200);
    assert_eq!(said(21, &peer.user("neighbour")).0, 200);
}

#[test]
fn who_shares_a_room_with_the_user_may_invite_to_many_and_is_heard_in_a_flood() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let friend = Peer::start();
    let room = FakeRoom::joined_by(&friend, "11", &bob);
    let others: Vec<Peer> = (0..3).map(|_| Peer::start()).collect();
    for (n, peer) in others.iter().enumerate() {
        for m in 0..60 {
            let inviter = peer.user(&format!("u{m}"));
            let said = invite(peer, &server, &inviter, (&format!("r{n}x{m}"), &bob), &json!([]));
            assert!(said.0 == 200 || is_limited(&said), "{said:?}");
        }
    }
    let taken = (0..30)
        .filter(|n| invite(&friend, &server, &room.creator, (&format!("r{n}"), &bob), &json!([])).0 == 200)
        .count();
    assert_eq!(taken, 30);
}

#[test]
fn an_invite_that_the_invitees_server_has_no_place_for_says_so_to_our_user() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = Peer::start();
    let room = alice.create_room();
    peer.answer_json(
        "/invite/",
        429,
        json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "no", "retry_after_ms": 7000 }),
    );
    let path = format!("/_matrix/client/v3/rooms/{}/invite", segment(&room));
    let said = alice.request("POST", &path, Some(json!({ "user_id": peer.user("bob") })));
    assert!(is_limited(&said), "{said:?}");
    assert_eq!(said.1["retry_after_ms"], 7000);
    assert_eq!(alice.membership_of(&room, peer.user("bob").as_str()), None);
}

#[test]
fn a_room_of_ours_is_shown_within_the_same_bounds() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    alice.set_state(&room, "m.room.name", "", json!({ "name": "At length" }));
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "x".repeat(60_000) }));
    alice.invite(&room, bob.id());
    let invited = bob.wait_for_room("invite", &room)["invite_state"]["events"].clone();
    let types: Vec<_> =
        invited.as_array().expect("events").iter().filter_map(|e| e["type"].as_str()).collect();
    assert_eq!(types[..3], ["m.room.create", "m.room.join_rules", "m.room.name"]);
    let of_members = types.iter().filter(|kind| **kind == "m.room.member").count();
    assert_eq!((of_members, types.contains(&"m.room.topic")), (2, false), "{types:?}");
}

/// Prints what a user pays for who has as many invites as there can be, each with as much shown as is kept.
#[test]
#[ignore = "prints figures"]
#[allow(clippy::print_stderr, reason = "that is what it is for")]
fn figures_of_a_user_whom_everybody_invites() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let shown: Vec<Value> =
        ["m.room.create", "m.room.name", "m.room.topic", "m.room.avatar", "m.room.encryption"]
            .map(|kind| stripped(kind, "", json!({ "x": "x".repeat(15_900) })))
            .into();
    let (mut taken, began) = (0, Instant::now());
    for _ in 0..20 {
        let peer = Peer::start();
        for n in 0..40 {
            let to = (format!("r{n}"), &bob);
            let said = invite(&peer, &server, &peer.user(&format!("u{n}")), (&to.0, to.1), &json!(shown));
            taken += usize::from(said.0 == 200);
        }
    }
    eprintln!("800 invites of 20 servers: {taken} taken, {:?}", began.elapsed());
    let began = Instant::now();
    let sync = bob.initial_sync();
    eprintln!("initial sync: {} bytes in {:?}", sync.to_string().len(), began.elapsed());
    let since = sync["next_batch"].as_str().expect("a token").to_owned();
    let began = Instant::now();
    let later = bob.get(&format!("/_matrix/client/v3/sync?since={since}&timeout=0"));
    eprintln!("incremental sync: {} bytes in {:?}", later.to_string().len(), began.elapsed());
}

// ----- knocks -----

/// A server with the usual limits, whose alice has a room that one may knock upon.
fn house() -> (TestServer, TestUser, String) {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let alice = server.user("alice");
    let room = open_door(&alice);
    (server, alice, room)
}

fn open_door(host: &TestUser) -> String {
    host.create_room_with(json!({
        "preset": "private_chat", "room_version": "11",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }))
}

fn make(peer: &Peer, server: &str, kind: &str, room: &str, user: &UserId) -> (u16, Value) {
    let path =
        format!("/_matrix/federation/v1/make_{kind}/{}/{}?ver=11", segment(room), segment(user.as_str()));
    peer.ask(server, "GET", &path, None)
}

/// The event of a template, signed.
fn sign(peer: &Peer, template: &Value) -> Pdu {
    let mut event = template["event"].as_object().expect("a template is an object").clone();
    event.insert("origin_server_ts".into(), now_ms().into());
    peer.sign(event, room_version("11").expect("a known version"))
}

fn hand_in(peer: &Peer, server: &str, kind: &str, event: &Pdu) -> (u16, Value) {
    let call = if kind == "knock" { "v1/send_knock".to_owned() } else { format!("v2/send_{kind}") };
    peer.put_event(server, &call, event.room_id(), event, &Value::Object(event.to_object()))
}

/// A whole knock or leave; what the server said last.
fn shake(peer: &Peer, server: &str, kind: &str, room: &str, user: &UserId) -> (u16, Value) {
    let made = make(peer, server, kind, room, user);
    if made.0 == 200 { hand_in(peer, server, kind, &sign(peer, &made.1)) } else { made }
}

/// How many knocks are taken of so many of a peer's users; the others must be told to wait.
fn knocks_taken(peer: &Peer, server: &TestServer, room: &str, users: usize) -> usize {
    let taken = |n: &usize| {
        let said = shake(peer, server.name(), "knock", room, &peer.user(&format!("u{n}")));
        assert!(said.0 == 200 || is_limited(&said), "{said:?}");
        said.0 == 200
    };
    (0..users).filter(taken).count()
}

/// How many member events of this kind the room's timeline has.
fn events_with(server: &TestServer, room: &str, membership: &str) -> usize {
    let room = RoomId::parse(room).expect("a room id");
    let all =
        TimelineRange { from: Place::START, to: Place::live(i64::MAX), limit: 100_000, backwards: false };
    let events = server.homeserver().store.read(|db| db.timeline(db.known_room(&room)?.key, all));
    let is_it = |pdu: &Pdu| {
        pdu.event_type() == "m.room.member" && pdu.membership().is_some_and(|m| m.as_str() == membership)
    };
    events.expect("the room reads").iter().filter(|event| is_it(&event.pdu)).count()
}

/// Another server's user knocks, is seen, is invited, and comes in.
fn is_let_in(host: &TestUser, room: &str, via: &str, guest: &TestUser) {
    let said = knock(guest, room, via);
    assert_eq!(said.0, 200, "{said:?}");
    wait_until("the knock is seen", || host.membership_of(room, guest.id()).as_deref() == Some("knock"));
    host.invite(room, guest.id());
    guest.wait_for_room("invite", room);
    guest.join(room);
    wait_until("they are in", || host.membership_of(room, guest.id()).as_deref() == Some("join"));
}

#[test]
fn a_flood_of_knocks_from_one_server_is_bounded_and_keeps_no_other_out() {
    let (mut server, alice, room) = house();
    let there = TestServer::start();
    let bob = there.user("bob");
    let evil = Peer::start();
    let taken = knocks_taken(&evil, &server, &room, 60);
    assert_eq!(taken, 15, "of the 75 places for strangers, a part of what is free");
    assert_eq!(events_with(&server, &room, "knock"), taken);
    is_let_in(&alice, &room, server.name(), &bob);
    assert_eq!(events_with(&server, &room, "knock"), taken + 1);
    // What waits is in the room: a restart forgets none of it.
    server.restart();
    let late = |n: usize| make(&evil, server.name(), "knock", &room, &evil.user(&format!("late{n}")));
    assert!(is_limited(&late(0)));
    // And neither does an hour.
    server.advance(Duration::from_secs(3700));
    assert!(is_limited(&late(1)));
}

#[test]
fn who_leaves_out_the_template_or_comes_at_the_same_moment_gets_no_more_in() {
    let (server, _alice, room) = house();
    let evil = Peer::start();
    // Templates are free: no event is made yet.
    let knocks: Vec<Pdu> = (0..60)
        .map(|n| {
            let (status, made) = make(&evil, server.name(), "knock", &room, &evil.user(&format!("u{n}")));
            assert_eq!(status, 200, "{made}");
            sign(&evil, &made)
        })
        .collect();
    let said: Vec<(Pdu, (u16, Value))> = std::thread::scope(|scope| {
        let at_once = |knock: &Pdu| (knock.clone(), hand_in(&evil, server.name(), "knock", knock));
        let threads: Vec<_> = knocks
            .chunks(10)
            .map(|some| scope.spawn(move || some.iter().map(at_once).collect::<Vec<_>>()))
            .collect();
        threads.into_iter().flat_map(|thread| thread.join().expect("a thread that knocks")).collect()
    });
    let (taken, refused): (Vec<_>, Vec<_>) = said.into_iter().partition(|(_, said)| said.0 == 200);
    assert_eq!(taken.len(), 15);
    assert!(refused.iter().all(|(_, said)| is_limited(said)));
    assert_eq!(events_with(&server, &room, "knock"), 15);
    assert!(refused.iter().all(|(knock, _)| stored(&server, knock.event_id()).is_none()), "nothing is kept");
    // A repeat is answered as the first time.
    assert_eq!(hand_in(&evil, server.name(), "knock", &taken[0].0).0, 200);
    // Nor does it help to send them as if one were in the room.
    for (n, (knock, _)) in refused.iter().enumerate() {
        let (status, said) = evil.send_transaction(server.name(), &format!("t{n}"), &[knock]);
        assert_eq!(status, 200, "{said}");
        assert!(said["pdus"][knock.event_id().as_str()]["error"].is_string(), "{said}");
    }
    assert_eq!(events_with(&server, &room, "knock"), 15);
    assert!(refused.iter().all(|(knock, _)| stored(&server, knock.event_id()).is_none()), "nothing is kept");
}

#[test]
fn knocks_that_others_are_said_to_follow_are_counted_too() {
    let (server, _alice, room) = house();
    let evil = Peer::start();
    let made = make(&evil, server.name(), "knock", &room, &evil.user("first")).1;
    let (mut chain, mut last): (Vec<Pdu>, Option<EventId>) = (Vec::new(), None);
    for n in 0..40 {
        let user = evil.user(&format!("u{n}"));
        let mut template = made.clone();
        template["event"]["sender"] = json!(user);
        template["event"]["state_key"] = json!(user);
        if let Some(last) = &last {
            template["event"]["prev_events"] = json!([last]);
        }
        let knock = sign(&evil, &template);
        last = Some(knock.event_id().clone());
        chain.push(knock);
    }
    evil.serve_events(&chain, 50);
    let end = chain.last().expect("forty");
    let _ = evil.send_transaction(server.name(), "chain", &[end]);
    assert!(events_with(&server, &room, "knock") <= 15, "{}", events_with(&server, &room, "knock"));
}

#[test]
fn a_server_that_is_not_in_the_room_cannot_say_who_has_knocked_upon_it() {
    let (server, alice, room) = house();
    let evil = Peer::start();
    let made = make(&evil, server.name(), "knock", &room, &evil.user("first")).1;
    let knock_of = |user: UserId, prev: &str| {
        let mut template = made.clone();
        template["event"]["sender"] = json!(user);
        template["event"]["state_key"] = json!(user);
        if !prev.is_empty() {
            template["event"]["prev_events"] = json!([prev]);
        }
        sign(&evil, &template)
    };
    let crowd: Vec<Pdu> = (0..40).map(|n| knock_of(evil.user(&format!("u{n}")), "")).collect();
    let last = knock_of(evil.user("first"), &format!("${}", "A".repeat(43)));
    // The room's state as it is, and a crowd in it.
    let id = RoomId::parse(&room).expect("a room id");
    let state = server.homeserver().store.read(|db| {
        let key = db.known_room(&id)?.key;
        let mut state = Vec::new();
        for (kind, state_key) in [
            ("m.room.create", ""),
            ("m.room.power_levels", ""),
            ("m.room.join_rules", ""),
            ("m.room.member", alice.id()),
        ] {
            state.extend(db.state_event(key, kind, state_key)?);
        }
        Ok(state)
    });
    let state: Vec<Pdu> = state.expect("the room reads").into_iter().chain(crowd).collect();
    let ids: Vec<&EventId> = state.iter().map(Pdu::event_id).collect();
    evil.serve_events(&state, 50);
    evil.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    evil.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": ids }));
    evil.answer_json("/state/", 200, json!({ "pdus": objects(&state), "auth_chain": objects(&state) }));
    let said = evil.send_transaction(server.name(), "state", &[&last]);
    assert_eq!(said.0, 200, "{said:?}");
    let path = format!("/_matrix/client/v3/rooms/{}/members?membership=knock", segment(&room));
    assert_eq!(alice.get(&path)["chunk"].as_array().map(Vec::len), Some(0));
}

#[test]
fn withdrawals_that_are_sent_along_are_counted() {
    let (server, _alice, room) = house();
    let evil = Peer::start();
    let bob = evil.user("bob");
    assert_eq!(shake(&evil, server.name(), "knock", &room, &bob).0, 200);
    let made = make(&evil, server.name(), "leave", &room, &bob).1;
    let is_kept = |n: &usize| {
        let mut template = made.clone();
        template["event"]["content"]["reason"] = json!(n.to_string());
        let leave = sign(&evil, &template);
        let (status, said) = evil.send_transaction(server.name(), &format!("t{n}"), &[&leave]);
        assert_eq!(status, 200, "{said}");
        stored(&server, leave.event_id()).is_some()
    };
    assert_eq!((0..30).filter(is_kept).count(), 4, "with the knock as many as one may knock within an hour");
}

#[test]
fn knocks_that_nobody_has_signed_count_against_nobody() {
    let (server, alice, room) = house();
    let (evil, there) = (Peer::start(), TestServer::start());
    let bob = there.user("bob");
    let mut template = make(&evil, server.name(), "knock", &room, &evil.user("u")).1;
    for n in 0..30 {
        let user = format!("@u{}:{}", n / 2, there.name());
        template["event"]["sender"] = json!(user);
        template["event"]["state_key"] = json!(user);
        template["event"]["origin_server_ts"] = now_ms().into();
        let mut knock = sign(&evil, &template).to_object();
        knock.insert("signatures".into(), json!({ there.name(): { "ed25519:none": "A".repeat(86) } }));
        let knock = Pdu::from_object(knock, room_version("11").expect("a known version")).expect("an event");
        let (status, said) = evil.send_transaction(server.name(), &format!("t{n}"), &[&knock]);
        assert_eq!(status, 200, "{said}");
        assert!(said["pdus"][knock.event_id().as_str()]["error"].is_string(), "{said}");
    }
    is_let_in(&alice, &room, server.name(), &bob);
    assert_eq!(events_with(&server, &room, "knock"), 1);
}

#[test]
fn one_knocker_comes_back_a_few_times_an_hour() {
    let (server, _alice, room) = house();
    let peer = Peer::start();
    let bob = peer.user("bob");
    let mut taken = 0;
    for _ in 0..12 {
        let said = shake(&peer, server.name(), "knock", &room, &bob);
        if said.0 == 200 {
            taken += 1;
            assert_eq!(shake(&peer, server.name(), "leave", &room, &bob).0, 200);
        } else {
            assert!(is_limited(&said), "{said:?}");
        }
        // Who is not there has nothing to leave.
        let said = make(&peer, server.name(), "leave", &room, &bob);
        assert_eq!(said.0, 403, "{said:?}");
    }
    assert_eq!(taken, 5);
    assert_eq!(events_with(&server, &room, "knock") + events_with(&server, &room, "leave"), 10);
    assert_eq!(shake(&peer, server.name(), "knock", &room, &peer.user("carol")).0, 200);
    server.advance(Duration::from_secs(3700));
    assert_eq!(shake(&peer, server.name(), "knock", &room, &bob).0, 200);
}

#[test]
fn many_servers_fill_a_bounded_number_of_places_and_leave_some() {
    let (server, alice, room) = house();
    let (friends, others) = (TestServer::start(), TestServer::start());
    let carol = friends.user("carol");
    is_let_in(&alice, &room, server.name(), &carol);
    let mut taken = 0;
    let flood: Vec<Peer> = (0..10).map(|_| Peer::start()).collect();
    for peer in &flood {
        taken += knocks_taken(peer, &server, &room, 20);
    }
    assert!(taken < 75, "{taken}");
    assert_eq!(events_with(&server, &room, "knock"), taken + 1);
    is_let_in(&alice, &room, server.name(), &others.user("dora"));
    let more: Vec<Peer> = (0..25).map(|_| Peer::start()).collect();
    for peer in &more {
        taken += knocks_taken(peer, &server, &room, 6);
    }
    assert!(taken <= 75, "{taken}");
    // Those whose server is in the room have places of their own.
    is_let_in(&alice, &room, server.name(), &friends.user("emil"));
    is_let_in(&alice, &room, server.name(), &server.user("fred"));
}

#[test]
fn who_was_refused_waits_for_a_day_unless_they_are_invited() {
    let (server, alice, room) = house();
    let there = TestServer::start();
    let (bob, carol) = (there.user("bob"), there.user("carol"));
    for guest in [&bob, &carol] {
        assert_eq!(knock(guest, &room, server.name()).0, 200);
        guest.wait_for_room("knock", &room);
        wait_until("the knock is seen", || {
            alice.membership_of(&room, guest.id()).as_deref() == Some("knock")
        });
        alice.act_on("kick", &room, guest.id());
        guest.wait_for_room("leave", &room);
    }
    let said = knock(&bob, &room, server.name());
    assert!(is_limited(&said), "{said:?}");
    let day = 24 * 3_600_000;
    assert!(
        said.1["retry_after_ms"].as_u64().is_some_and(|ms| (day - 600_000..=day).contains(&ms)),
        "{said:?}"
    );
    assert!(bob.initial_sync()["rooms"].get("knock").is_none());
    assert_eq!(events_with(&server, &room, "knock"), 2);
    // A user of this server is no exception.
    let dora = server.user("dora");
    assert_eq!(knock(&dora, &room, server.name()).0, 200);
    alice.act_on("kick", &room, dora.id());
    assert!(is_limited(&knock(&dora, &room, server.name())));

    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    bob.join(&room);
    server.advance(Duration::from_secs(25 * 3600));
    assert_eq!(knock(&carol, &room, server.name()).0, 200);
    assert_eq!(knock(&dora, &room, server.name()).0, 200);
}

#[test]
fn our_own_users_knock_upon_others_rooms_a_few_times_an_hour() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let there = TestServer::start();
    let (bob, host) = (server.user("bob"), there.user("host"));
    let room = open_door(&host);
    let mut said = (200, Value::Null);
    for n in 0..6 {
        said = knock(&bob, &room, there.name());
        assert_eq!(said.0, if n < 5 { 200 } else { 429 }, "{n}: {said:?}");
        if said.0 == 200 {
            bob.leave(&room);
            wait_until("the withdrawal is told", || {
                host.membership_of(&room, bob.id()).as_deref() == Some("leave")
            });
        }
    }
    assert!(is_limited(&said));
    assert_eq!(knock(&bob, &open_door(&host), there.name()).0, 200, "upon another room");
    // Their own rooms are no different.
    let alice = server.user("alice");
    let own = open_door(&alice);
    let answers: Vec<_> = (0..6)
        .map(|_| {
            let said = knock(&bob, &own, server.name());
            if said.0 == 200 {
                bob.leave(&own);
            }
            said
        })
        .collect();
    assert!(answers[..5].iter().all(|said| said.0 == 200) && is_limited(&answers[5]), "{answers:?}");
}

#[test]
fn a_knock_that_a_room_wants_later_is_told_so_and_leaves_nothing() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let peer = Peer::start();
    let room = FakeRoom::new(&peer, "11", "knock");
    let later = json!({ "errcode": "M_LIMIT_EXCEEDED", "error": "later", "retry_after_ms": 8_000_000 });
    let row = || {
        let hs = server.homeserver();
        let user = UserId::parse(bob.id()).expect("a user id");
        hs.store.read(|db| db.has_remote_membership(&room.id, &user)).expect("a row or none")
    };
    peer.answer_json("make_knock", 403, later.clone());
    for _ in 0..2 {
        let said = knock(&bob, room.id.as_str(), peer.name().as_str());
        assert!(is_limited(&said), "{said:?}");
        assert_eq!(said.1["retry_after_ms"], 8_000_000);
        assert!(!row());
        // The other end of the handshake knows limits too.
        peer.let_knock(&room, bob.id());
        peer.answer_json("send_knock", 429, later.clone());
    }
    assert_eq!(peer.asked("send_knock").len(), 1);
    assert!(bob.initial_sync().get("rooms").is_none());
    // And when it may be, it is as any knock.
    peer.let_knock(&room, bob.id());
    assert_eq!(knock(&bob, room.id.as_str(), peer.name().as_str()).0, 200);
    bob.wait_for_room("knock", room.id.as_str());
}

#[test]
fn who_was_never_there_leaves_nothing_behind_by_leaving() {
    let (server, _alice, room) = house();
    let peer = Peer::start();
    let bob = peer.user("bob");
    let made = make(&peer, server.name(), "knock", &room, &bob).1;
    for n in 0..20 {
        let said = make(&peer, server.name(), "leave", &room, &bob);
        assert_eq!((said.0, &said.1["errcode"]), (403, &json!("M_FORBIDDEN")), "{said:?}");
        let mut template = made.clone();
        template["event"]["content"] = json!({ "membership": "leave", "n": n });
        let leave = sign(&peer, &template);
        let said = hand_in(&peer, server.name(), "leave", &leave);
        assert_eq!((said.0, &said.1["errcode"]), (403, &json!("M_FORBIDDEN")), "{said:?}");
        assert!(stored(&server, leave.event_id()).is_none());
        // Nor by sending it, or anything else, as if one were in the room.
        let mut template = made.clone();
        template["event"]["type"] = json!("m.room.message");
        template["event"].as_object_mut().expect("an event").remove("state_key");
        template["event"]["content"] = json!({ "body": n });
        let message = sign(&peer, &template);
        let (status, said) = peer.send_transaction(server.name(), &format!("t{n}"), &[&leave, &message]);
        assert_eq!(status, 200, "{said}");
        for event in [&leave, &message] {
            assert!(said["pdus"][event.event_id().as_str()]["error"].is_string(), "{said}");
            assert!(stored(&server, event.event_id()).is_none());
        }
    }
    assert_eq!(events_with(&server, &room, "leave"), 0);
}

#[test]
fn the_limits_of_knocks_can_be_switched_off_one_by_one() {
    let peer = Peer::start();
    for (per_hour, waiting, most) in [(0, 8, 2), (8, 0, 2), (0, 0, 30)] {
        let server = TestServer::start_with(|config| {
            config.rate_limits = true;
            (config.knocks_per_hour, config.knocks_waiting) = (per_hour, waiting);
        });
        let room = open_door(&server.user("alice"));
        assert_eq!(knocks_taken(&peer, &server, &room, 30), most, "{per_hour}, {waiting}");
    }
    let server = TestServer::start();
    let room = open_door(&server.user("alice"));
    assert_eq!(knocks_taken(&peer, &server, &room, 30), 30, "no limits at all");
}

#[test]
fn what_was_handed_in_once_shows_the_room_again_only_while_it_is_what_they_are() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    peer.take_transactions();
    let again = |call: &str, room: &str, event: &Pdu| {
        let room = RoomId::parse(room).expect("a room id");
        peer.put_event(server.name(), call, &room, event, &Value::Object(event.to_object()))
    };
    let room_with = |join_rule: &str| {
        alice.create_room_with(json!({ "room_version": "11", "preset": "public_chat", "initial_state": [
            { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": join_rule } }
        ] }))
    };
    let shut = |room: &str| {
        for (kind, content) in [
            ("m.room.join_rules", json!({ "join_rule": "invite" })),
            ("m.room.topic", json!({ "topic": "later" })),
        ] {
            alice.put(&room_path(room, &format!("state/{kind}/")), content);
        }
    };
    let stranger = peer.user("stranger");
    for after in ["ban", "kick", "leave"] {
        let room = room_with("knock");
        let (knock, (status, said)) = peer.hand_in(server.name(), "knock", &room, &stranger);
        assert_eq!(status, 200, "{said}");
        // Its answer may have been lost.
        assert_eq!(again("v1/send_knock", &room, &knock), (200, said), "{after}");
        match after {
            "leave" => {
                let (_, (status, said)) = peer.hand_in(server.name(), "leave", &room, &stranger);
                assert_eq!(status, 200, "{said}");
            }
            verb => alice.act_on(verb, &room, stranger.as_str()),
        }
        shut(&room);
        let (status, said) = again("v1/send_knock", &room, &knock);
        assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{after}: {said}");
    }
    for after in ["ban", "kick", "leave"] {
        let room = room_with("public");
        let (join, (status, said)) = peer.hand_in(server.name(), "join", &room, &stranger);
        assert_eq!(status, 200, "{said}");
        let (status, repeated) = again("v2/send_join", &room, &join);
        assert_eq!((status, &repeated["state"]), (200, &said["state"]), "{after}");
        match after {
            "leave" => assert_eq!(peer.hand_in(server.name(), "leave", &room, &stranger).1.0, 200),
            verb => alice.act_on(verb, &room, stranger.as_str()),
        }
        shut(&room);
        for query in ["", "?omit_members=true"] {
            let path = format!(
                "/_matrix/federation/v2/send_join/{}/{}{query}",
                segment(&room),
                segment(join.event_id().as_str())
            );
            let (status, said) =
                peer.ask(server.name(), "PUT", &path, Some(&Value::Object(join.to_object())));
            assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{after}: {said}");
        }
    }
}
