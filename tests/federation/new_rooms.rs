//! New rooms and those who are invited to them: whoever cannot be reached holds up nobody, and is invited later.

use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::common::ProcessServer;
use crate::common::client::V3;
use crate::common::peer::Peer;
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::room_version::room_version;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A peer that signs the invites to rooms of version 11, once the gate is open.
fn takes_invites(gate: Option<&Gate>) -> Arc<Peer> {
    let peer = Arc::new(Peer::start());
    peer.take_transactions();
    sign_invites(&peer, gate);
    peer
}

fn sign_invites(peer: &Arc<Peer>, gate: Option<&Gate>) {
    let (signer, gate) = (Arc::downgrade(peer), gate.cloned());
    let rules = room_version("11").expect("a version");
    peer.answer("v2/invite", move |asked| {
        if let Some(gate) = &gate {
            gate.pass();
        }
        let signer = signer.upgrade().expect("the peer is there");
        Reply::json(&json!({ "event": signer.countersign(&asked.body["event"], rules) }))
    });
}

fn refuse_invites(peer: &Peer, status: u16, errcode: &str) {
    peer.answer_json("v2/invite", status, json!({ "errcode": errcode, "error": "no" }));
}

/// Makes a room of version 11 with these invitees, which works.
#[track_caller]
fn make_room(user: &TestUser, invite: &[&str]) -> String {
    let body = json!({ "room_version": "11", "preset": "private_chat", "is_direct": true, "invite": invite });
    let (status, answer) = user.request("POST", &format!("{V3}/createRoom"), Some(body));
    assert_eq!(status, 200, "{answer}");
    answer["room_id"].as_str().expect("a room id").to_owned()
}

fn is_invited(user: &TestUser, room: &str, whom: &str) -> bool {
    user.membership_of(room, whom).as_deref() == Some("invite")
}

fn owes_nothing(server: &TestServer) -> bool {
    let next = server.homeserver().store.read(|db| db.next_owed_invite_due());
    next.expect("the database reads").is_none()
}

#[test]
fn whoever_cannot_be_reached_holds_up_nobody_who_is_invited_to_a_new_room() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let gate = Gate::default();
    let silent: Vec<Arc<Peer>> = (0..3).map(|_| takes_invites(Some(&gate))).collect();
    let silent_users: Vec<String> = silent.iter().map(|peer| peer.user("silent").to_string()).collect();
    let (good, refusing) = (takes_invites(None), takes_invites(None));
    refuse_invites(&refusing, 403, "M_FORBIDDEN");
    let good_users: Vec<String> = (0..5).map(|n| good.user(&format!("good{n}")).to_string()).collect();
    let refusing_user = refusing.user("no").to_string();
    let mut invite: Vec<&str> = silent_users.iter().map(String::as_str).collect();
    // Nobody listens at port 1.
    invite.extend(["@carol:127.0.0.1:1", refusing_user.as_str(), bob.id()]);
    invite.extend(good_users.iter().map(String::as_str));
    let began = Instant::now();
    let room = make_room(&alice, &invite);
    // One after the other the silent ones alone would take two minutes.
    assert!(began.elapsed() < Duration::from_secs(35), "{:?}", began.elapsed());
    assert!(is_invited(&alice, &room, bob.id()));
    for user in &good_users {
        assert!(is_invited(&alice, &room, user), "{user}");
    }
    for user in silent_users.iter().map(String::as_str).chain(["@carol:127.0.0.1:1", &refusing_user]) {
        assert_eq!(alice.membership_of(&room, user), None, "{user}");
    }
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([room]));
    // They come to themselves.
    gate.open();
    wait_until("they are invited", || silent_users.iter().all(|user| is_invited(&alice, &room, user)));
    let asked = silent[0].asked("v2/invite").pop().expect("an invite");
    assert_eq!(asked.body["event"]["content"]["is_direct"], true);
    assert_eq!(refusing.asked("v2/invite").len(), 1, "a refusal is final");
}

#[test]
fn a_refusal_that_speaks_of_no_room_puts_an_invite_to_a_new_room_off() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = takes_invites(None);
    refuse_invites(&peer, 403, "M_RESOURCE_LIMIT_EXCEEDED");
    let carol = peer.user("carol").to_string();
    let room = make_room(&alice, &[&carol]);
    wait_until("their server has refused", || !peer.asked("v2/invite").is_empty());
    assert_eq!(alice.membership_of(&room, &carol), None);
    sign_invites(&peer, None);
    wait_until("the invite is there", || {
        server.advance(Duration::from_secs(60));
        is_invited(&alice, &room, &carol)
    });
}

#[test]
fn an_invite_to_a_new_room_is_delivered_when_the_invitees_server_is_back() {
    let (here, mut there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    there.stop();
    let room = make_room(&alice, &[bob.id()]);
    assert_eq!(alice.membership_of(&room, bob.id()), None);
    there.resume();
    wait_until("the invite is there", || {
        here.advance(Duration::from_secs(60));
        is_invited(&alice, &room, bob.id())
    });
    let bob = TestUser::new(there.url(), bob.id(), bob.token());
    bob.wait_for_room("invite", &room);
    bob.join(&room);
    assert_eq!(alice.membership_of(&room, bob.id()).as_deref(), Some("join"));
    wait_until("nothing is owed any more", || owes_nothing(&here));
}

#[test]
fn a_kill_forgets_no_invite_to_a_new_room() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let gate = Gate::default();
    let (busy, silent) = (takes_invites(None), takes_invites(Some(&gate)));
    refuse_invites(&busy, 503, "M_UNKNOWN");
    let users = [busy.user("one").to_string(), silent.user("two").to_string()];
    let room = std::thread::scope(|scope| {
        let making = scope.spawn(|| {
            let body = json!({ "room_version": "11", "invite": users });
            let url = alice.url().trim_end_matches('/').to_owned();
            // The answer is lost with the server.
            let _ = ureq::post(format!("{url}{V3}/createRoom"))
                .header("Authorization", format!("Bearer {}", alice.token()))
                .send(body.to_string());
        });
        silent.wait_for("v2/invite");
        busy.wait_for("v2/invite");
        server.kill();
        making.join().expect("no panic");
        gate.open();
        sign_invites(&busy, None);
        server.resume();
        let rooms = alice.get(&format!("{V3}/joined_rooms"));
        rooms["joined_rooms"][0].as_str().expect("the room is there").to_owned()
    });
    for user in &users {
        wait_until("they are invited", || is_invited(&alice, &room, user));
    }
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([room]));
}

#[test]
fn a_refusal_ends_an_invite_and_trouble_does_not() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let peer = takes_invites(None);
    let guest = peer.user("guest").to_string();
    let final_ones = [
        (403, "M_FORBIDDEN"),
        (403, "M_INVITE_BLOCKED"),
        (404, "M_NOT_FOUND"),
        (400, "M_INCOMPATIBLE_ROOM_VERSION"),
    ];
    for (status, errcode) in final_ones {
        refuse_invites(&peer, status, errcode);
        // The room is of use without them.
        let room = make_room(&alice, &[&guest, bob.id()]);
        wait_until("nothing is owed", || owes_nothing(&server));
        assert_eq!(alice.membership_of(&room, &guest), None);
        assert!(is_invited(&alice, &room, bob.id()));
    }
    for (status, errcode) in [(500, "M_UNKNOWN"), (429, "M_LIMIT_EXCEEDED"), (502, ""), (200, "")] {
        refuse_invites(&peer, status, errcode);
        let room = make_room(&alice, &[&guest]);
        assert!(!owes_nothing(&server), "{status}");
        sign_invites(&peer, None);
        wait_until(&format!("after {status} the guest is invited"), || {
            server.advance(Duration::from_secs(60));
            is_invited(&alice, &room, &guest)
        });
        wait_until("nothing is owed any more", || owes_nothing(&server));
    }
}

#[test]
fn of_a_direct_chat_with_somebody_who_is_refused_nothing_is_left_and_its_maker_is_told_why() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let peer = takes_invites(None);
    let guest = peer.user("guest").to_string();
    let make = |more: Value| {
        let mut body = json!({ "room_version": "11", "is_direct": true, "invite": [guest] });
        body.as_object_mut().expect("an object").extend(more.as_object().expect("an object").clone());
        let (status, answer) = alice.request("POST", &format!("{V3}/createRoom"), Some(body));
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    for (status, errcode, told) in [
        (403, "M_FORBIDDEN", 403),
        (403, "M_INVITE_BLOCKED", 403),
        (404, "M_NOT_FOUND", 403),
        (400, "M_INCOMPATIBLE_ROOM_VERSION", 400),
    ] {
        refuse_invites(&peer, status, errcode);
        // Once more, and nothing is worse.
        for _ in 0..2 {
            let asked = peer.asked("v2/invite").len();
            assert_eq!(make(json!({})).0, told, "{errcode}");
            assert_eq!(peer.asked("v2/invite").len(), asked + 1, "{errcode}");
            assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([]), "{errcode}");
            assert!(alice.initial_sync()["rooms"]["leave"].as_object().is_none_or(|rooms| rooms.is_empty()));
            assert!(owes_nothing(&server), "{errcode}");
        }
    }
    refuse_invites(&peer, 403, "M_INVITE_BLOCKED");
    assert_eq!(make(json!({})), (403, "M_INVITE_BLOCKED".to_owned()));
    // What others may find, or was not made for the two of them, stays.
    for more in [
        json!({ "room_alias_name": "found" }),
        json!({ "visibility": "public" }),
        json!({ "is_direct": false }),
    ] {
        assert_eq!(make(more), (200, String::new()));
    }
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"].as_array().map(Vec::len), Some(3));
}

#[test]
fn nobody_from_elsewhere_is_invited_to_a_new_room_that_does_not_federate() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let peer = takes_invites(None);
    let make = |invitee: &str| {
        let body = json!({ "invite": [bob.id(), invitee], "room_alias_name": "here", "creation_content": { "m.federate": false } });
        let (status, answer) = alice.request("POST", &format!("{V3}/createRoom"), Some(body));
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    assert_eq!(make(peer.user("guest").as_str()), (403, "M_FORBIDDEN".to_owned()));
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([]));
    assert!(bob.invites().is_empty() && peer.asked("v2/invite").is_empty() && owes_nothing(&server));
    assert_eq!(make(server.user("carol").id()), (200, String::new()));
}

#[test]
fn an_invite_that_is_owed_can_be_taken_back_and_ends_with_the_inviters_membership() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let peer = takes_invites(None);
    let guest = peer.user("guest").to_string();
    let post = |user: &TestUser, room: &str, verb: &str, body: Value| {
        user.request("POST", &format!("{V3}/rooms/{}/{verb}", segment(room)), Some(body))
    };
    type End = fn(&dyn Fn(&str, Value) -> (u16, Value));
    let ends: [(&str, End); 3] = [
        ("kick", |ask| {
            assert_eq!(ask("kick", json!({})).0, 200);
            assert_eq!(ask("kick", json!({})).0, 403, "there is nothing left to take back");
        }),
        ("ban", |ask| assert_eq!(ask("ban", json!({})).0, 200)),
        ("leave", |ask| assert_eq!(ask("leave", json!({})).0, 200)),
    ];
    for (what, end) in ends {
        refuse_invites(&peer, 503, "M_UNKNOWN");
        let room = make_room(&alice, &[&guest, bob.id()]);
        bob.join(&room);
        // Others may not take back what they could not have done.
        assert_eq!(post(&bob, &room, "kick", json!({ "user_id": guest })).0, 403);
        assert!(!owes_nothing(&server));
        let asked = peer.asked("v2/invite").len();
        end(&|verb, mut body| {
            if verb != "leave" {
                body["user_id"] = json!(guest);
            }
            post(&alice, &room, verb, body)
        });
        sign_invites(&peer, None);
        wait_until(&format!("nothing is owed after {what}"), || {
            server.advance(Duration::from_secs(3600));
            owes_nothing(&server)
        });
        assert_eq!(peer.asked("v2/invite").len(), asked, "{what}");
        let membership = bob.membership_of(&room, &guest);
        assert_eq!(membership.as_deref(), (what == "ban").then_some("ban"), "{what}");
    }
}

#[test]
fn an_invite_is_given_up_after_days_and_not_before() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = make_room(&alice, &["@carol:127.0.0.1:1"]);
    let began = server.homeserver().clock.now_ms();
    wait_until("it is given up", || {
        server.advance(Duration::from_secs(3 * 3600));
        owes_nothing(&server)
    });
    let days = (server.homeserver().clock.now_ms() - began) / 86_400_000;
    assert!(days >= 3, "{days} days");
    assert_eq!(alice.membership_of(&room, "@carol:127.0.0.1:1"), None);
}

#[test]
fn who_owes_too_many_invites_is_told_so_and_has_no_room_made() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let invite: Vec<String> = (0..100).map(|n| format!("@user{n}:127.0.0.1:1")).collect();
    let make = || {
        let body = json!({ "room_version": "11", "invite": invite });
        alice.request("POST", &format!("{V3}/createRoom"), Some(body))
    };
    for _ in 0..5 {
        assert_eq!(make().0, 200);
    }
    let (status, answer) = make();
    assert_eq!((status, answer["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")), "{answer}");
    assert!(answer["retry_after_ms"].is_i64(), "{answer}");
    let rooms = alice.get(&format!("{V3}/joined_rooms"));
    assert_eq!(rooms["joined_rooms"].as_array().map(Vec::len), Some(5), "{rooms}");
}
