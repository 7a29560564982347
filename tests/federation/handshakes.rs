//! Knocks, invites, joins and leaves between two and three real servers over loopback TLS, in every way they can end.

use std::time::Duration;

use crate::common::client::{join, knock};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// Room versions in which one can knock.
const KNOCKABLE: [&str; 6] = ["7", "8", "9", "10", "11", "12"];

fn room_with(host: &TestUser, join_rule: &str, version: &str) -> String {
    host.create_room_with(json!({
        "preset": "private_chat",
        "room_version": version,
        "name": "The house",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": join_rule } }],
    }))
}

/// How many member events of this user the room's timeline has with this membership, as this member sees it.
fn count_member_events(seen_by: &TestUser, room: &str, user: &str, membership: &str) -> usize {
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100", segment(room));
    let messages = seen_by.get(&path);
    let events = messages["chunk"].as_array().expect("messages have a chunk").iter();
    events
        .filter(|e| {
            e["type"] == "m.room.member" && e["state_key"] == user && e["content"]["membership"] == membership
        })
        .count()
}

fn act(user: &TestUser, verb: &str, room: &str, body: Value) -> (u16, Value) {
    user.request("POST", &format!("/_matrix/client/v3/rooms/{}/{verb}", segment(room)), Some(body))
}

/// The user's own member event in a list of (stripped) events.
fn own<'e>(events: &'e Value, user: &TestUser) -> &'e Value {
    let events = events.as_array().expect("a list of events");
    events
        .iter()
        .rfind(|e| e["type"] == "m.room.member" && e["state_key"] == user.id())
        .unwrap_or_else(|| panic!("no member event of {} in {events:?}", user.id()))
}

fn leave_event(left_room: &Value, user: &TestUser) -> Value {
    own(&left_room["timeline"]["events"], user).clone()
}

#[test]
fn a_knock_is_accepted_by_an_invite_in_every_version_that_knows_knocking() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for version in KNOCKABLE {
        let room = room_with(&alice, "knock", version);
        bob.knock_via(&room, &[here.name()]);
        alice.wait_for_membership(&room, bob.id(), "knock");
        let knocked = bob.wait_for_room("knock", &room);
        assert_eq!(own(&knocked["knock_state"]["events"], &bob)["content"]["membership"], "knock");
        let shown = knocked["knock_state"]["events"].as_array().expect("knock state");
        for kind in ["m.room.create", "m.room.name", "m.room.join_rules"] {
            assert!(shown.iter().any(|e| e["type"] == kind), "version {version}: no {kind} in {shown:?}");
        }

        alice.invite(&room, bob.id());
        let invited = bob.wait_for_room("invite", &room);
        let invite = own(&invited["invite_state"]["events"], &bob);
        assert_eq!(invite["content"]["membership"], "invite");
        assert_eq!(
            invite["unsigned"]["prev_content"]["membership"], "knock",
            "version {version}: the link is missing"
        );
        assert!(invite["unsigned"]["replaces_state"].is_string());

        bob.join(&room);
        bob.wait_for_room("join", &room);
        alice.wait_for_membership(&room, bob.id(), "join");
        alice.send(&room, "come in");
        assert_eq!(bob.next_message(&room), "come in");
        bob.send(&room, "thank you");
        assert_eq!(alice.next_message(&room), "thank you");
    }
}

#[test]
fn invites_and_joins_work_in_every_room_version() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for version in 1..=12 {
        let room = room_with(&alice, "invite", &version.to_string());
        alice.invite(&room, bob.id());
        let invited = bob.wait_for_room("invite", &room);
        assert_eq!(own(&invited["invite_state"]["events"], &bob)["content"]["membership"], "invite");
        bob.join(&room);
        alice.wait_for_membership(&room, bob.id(), "join");
        bob.send(&room, &format!("version {version}"));
        assert_eq!(alice.next_message(&room), format!("version {version}"));
        bob.leave(&room);
        alice.wait_for_membership(&room, bob.id(), "leave");
    }
}

#[test]
fn a_withdrawn_knock_is_gone_on_both_sides_and_may_be_made_again() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for version in KNOCKABLE {
        let room = room_with(&alice, "knock", version);
        bob.knock_via(&room, &[here.name()]);
        alice.wait_for_membership(&room, bob.id(), "knock");
        bob.wait_for_room("knock", &room);
        bob.leave(&room);
        let left = leave_event(&bob.wait_for_room("leave", &room), &bob);
        assert_eq!(left["content"]["membership"], "leave");
        assert_eq!(left["unsigned"]["prev_content"]["membership"], "knock");
        alice.wait_for_membership(&room, bob.id(), "leave");
        bob.knock_via(&room, &[here.name()]);
        bob.wait_for_room("knock", &room);
        alice.wait_for_membership(&room, bob.id(), "knock");
    }
}

#[test]
fn a_refused_knock_reaches_the_knocker_who_may_knock_again_unless_banned() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for version in KNOCKABLE {
        let room = room_with(&alice, "knock", version);
        bob.knock_via(&room, &[here.name()]);
        bob.wait_for_room("knock", &room);
        assert_eq!(act(&alice, "kick", &room, json!({ "user_id": bob.id(), "reason": "no" })).0, 200);
        let refused = leave_event(&bob.wait_for_room("leave", &room), &bob);
        assert_eq!(refused["sender"], alice.id());
        assert_eq!(refused["content"], json!({ "membership": "leave", "reason": "no" }));
        assert_eq!(refused["unsigned"]["prev_content"]["membership"], "knock");

        assert_eq!(knock(&bob, &room, here.name()).0, 200);
        bob.wait_for_room("knock", &room);
        alice.act_on("ban", &room, bob.id());
        let banned = leave_event(&bob.wait_for_room("leave", &room), &bob);
        assert_eq!(banned["content"]["membership"], "ban");
        let (status, body) = knock(&bob, &room, here.name());
        assert_eq!((status, &body["errcode"]), (403, &json!("M_FORBIDDEN")), "{body}");
    }
}

#[test]
fn a_rejected_invite_is_gone_on_both_sides_and_may_be_sent_again() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for version in ["1", "6", "10", "12"] {
        let room = room_with(&alice, "invite", version);
        alice.invite(&room, bob.id());
        bob.wait_for_room("invite", &room);
        assert_eq!(act(&bob, "leave", &room, json!({ "reason": "not today" })).0, 200);
        let left = leave_event(&bob.wait_for_room("leave", &room), &bob);
        assert_eq!(left["content"]["reason"], "not today");
        assert_eq!(left["unsigned"]["prev_content"]["membership"], "invite");
        alice.wait_for_membership(&room, bob.id(), "leave");
        let seen = alice.state(&room, "m.room.member", bob.id()).expect("a member event");
        assert_eq!(seen["reason"], "not today");
        // Said twice is said once.
        bob.leave(&room);
        alice.invite(&room, bob.id());
        bob.wait_for_room("invite", &room);
        bob.join(&room);
        alice.wait_for_membership(&room, bob.id(), "join");
    }
}

#[test]
fn an_invite_that_is_taken_back_disappears_for_the_invitee() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    for (verb, membership) in [("kick", "leave"), ("ban", "ban")] {
        let room = room_with(&alice, "invite", "11");
        alice.invite(&room, bob.id());
        bob.wait_for_room("invite", &room);
        alice.act_on(verb, &room, bob.id());
        let gone = leave_event(&bob.wait_for_room("leave", &room), &bob);
        assert_eq!(gone["content"]["membership"], membership);
        assert_eq!(gone["sender"], alice.id());
        assert_eq!(gone["unsigned"]["prev_content"]["membership"], "invite");
        let (status, body) = join(&bob, &room, Some(here.name()));
        assert_eq!((status, &body["errcode"]), (403, &json!("M_FORBIDDEN")), "{body}");
        assert!(bob.initial_sync()["rooms"]["invite"].get(&room).is_none());
    }
}

#[test]
fn a_rejection_is_done_at_once_and_told_when_the_inviting_server_is_back() {
    let (mut here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = room_with(&alice, "invite", "11");
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    here.stop();
    bob.leave(&room);
    bob.wait_for_room("leave", &room);
    here.resume();
    wait_until("the host hears of the rejection", || {
        // Both, since signatures from a week ahead are not believed.
        here.advance(Duration::from_secs(3600));
        there.advance(Duration::from_secs(3600));
        alice.membership_of(&room, bob.id()).as_deref() == Some("leave")
    });
    assert_eq!(count_member_events(&alice, &room, bob.id(), "leave"), 1);
}

#[test]
fn a_knock_that_is_repeated_makes_no_second_event() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = room_with(&alice, "knock", "11");
    std::thread::scope(|scope| {
        let tries: Vec<_> = (0..4).map(|_| bob_again(&bob)).collect();
        let (room, via) = (room.as_str(), here.name());
        let knocks: Vec<_> =
            tries.into_iter().map(|bob| scope.spawn(move || knock(&bob, room, via).0)).collect();
        for one in knocks {
            assert_eq!(one.join().expect("no panic"), 200);
        }
    });
    assert_eq!(knock(&bob, &room, here.name()).0, 200);
    alice.wait_for_membership(&room, bob.id(), "knock");
    assert_eq!(count_member_events(&alice, &room, bob.id(), "knock"), 1);
}

/// The same account for another thread: `TestUser` keeps its place in `/sync`, and so is not shared.
fn bob_again(bob: &TestUser) -> TestUser {
    TestUser::new(bob.url(), bob.id(), bob.token())
}

#[test]
fn two_joins_at_once_are_one_join_and_two_users_of_one_server_both_come_in() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    let guests = [there.user("bob"), there.user("carol"), there.user("dave")];
    for version in ["10", "12"] {
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
        std::thread::scope(|scope| {
            let tries: Vec<_> = guests
                .iter()
                .flat_map(|guest| [bob_again(guest), bob_again(guest)])
                .map(|guest| {
                    let (room, via) = (room.as_str(), here.name());
                    scope.spawn(move || join(&guest, room, Some(via)))
                })
                .collect();
            for one in tries {
                let (status, body) = one.join().expect("no panic");
                assert_eq!(status, 200, "{body}");
            }
        });
        for guest in &guests {
            alice.wait_for_membership(&room, guest.id(), "join");
            guest.wait_for_membership(&room, alice.id(), "join");
            assert_eq!(count_member_events(&alice, &room, guest.id(), "join"), 1, "{}", guest.id());
            for other in &guests {
                guest.wait_for_membership(&room, other.id(), "join");
            }
        }
        alice.send(&room, "welcome");
        assert_eq!(guests[0].next_message(&room), "welcome");
    }
}

#[test]
fn a_server_whose_last_user_left_can_come_back_and_be_invited_again() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    for round in 0..2 {
        bob.join_via(&room, &[here.name()]);
        bob.wait_for_room("join", &room);
        alice.wait_for_membership(&room, bob.id(), "join");
        bob.leave(&room);
        bob.wait_for_room("leave", &room);
        alice.wait_for_membership(&room, bob.id(), "leave");
        alice.send(&room, &format!("missed {round}"));
    }
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    bob.join(&room);
    alice.wait_for_membership(&room, bob.id(), "join");
    alice.send(&room, "seen");
    assert_eq!(bob.next_message(&room), "seen");
    // Kicked from outside while in the room: an ordinary event, and the server is out again.
    alice.act_on("kick", &room, bob.id());
    bob.wait_for_room("leave", &room);
    assert_eq!(join(&bob, &room, Some(here.name())).0, 200);
    alice.wait_for_membership(&room, bob.id(), "join");
}

#[test]
fn a_third_server_is_knocked_through_and_the_others_hear_of_it() {
    let (one, two) = TestServer::pair();
    let three = TestServer::start();
    let (alice, bob, carol) = (one.user("alice"), two.user("bob"), three.user("carol"));
    let room = room_with(&alice, "knock", "12");
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    bob.join(&room);
    alice.wait_for_membership(&room, bob.id(), "join");
    // Through the second server, with a server in front that does not exist.
    carol.knock_via(&room, &["localhost:1", two.name()]);
    carol.wait_for_room("knock", &room);
    bob.wait_for_membership(&room, carol.id(), "knock");
    alice.wait_for_membership(&room, carol.id(), "knock");
    alice.invite(&room, carol.id());
    let invited = carol.wait_for_room("invite", &room);
    let invite = own(&invited["invite_state"]["events"], &carol);
    assert_eq!(invite["unsigned"]["prev_content"]["membership"], "knock");
    carol.join(&room);
    for host in [&alice, &bob] {
        host.wait_for_membership(&room, carol.id(), "join");
    }
    carol.send(&room, "three");
    assert_eq!(alice.next_message(&room), "three");
    assert_eq!(bob.next_message(&room), "three");
}

#[test]
fn refusals_have_the_codes_of_the_specification() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let closed = room_with(&alice, "invite", "11");
    let refused = |answer: (u16, Value), status: u16, errcode: &str| {
        assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{}", answer.1);
    };
    refused(knock(&bob, &closed, here.name()), 403, "M_FORBIDDEN");
    refused(join(&bob, &closed, Some(here.name())), 403, "M_FORBIDDEN");
    refused(knock(&bob, "!nowhere:example.invalid", here.name()), 404, "M_NOT_FOUND");
    refused(join(&bob, &format!("!nowhere:{}", here.name()), Some(here.name())), 404, "M_NOT_FOUND");
    refused(join(&bob, "nonsense", Some(here.name())), 400, "M_INVALID_PARAM");
    let old = room_with(&alice, "invite", "6");
    refused(knock(&bob, &old, here.name()), 400, "M_INCOMPATIBLE_ROOM_VERSION");
    refused(act(&bob, "leave", "!nowhere:example.invalid", json!({})), 403, "M_FORBIDDEN");
    // A knock is refused while invited, and the invite stays.
    alice.invite(&closed, bob.id());
    bob.wait_for_room("invite", &closed);
    refused(knock(&bob, &closed, here.name()), 403, "M_FORBIDDEN");
    assert!(bob.initial_sync()["rooms"]["invite"].get(&closed).is_some());
    // Nobody invites who is not there, and nobody who does not want it.
    refused(
        act(&alice, "invite", &closed, json!({ "user_id": format!("@nobody:{}", there.name()) })),
        403,
        "M_FORBIDDEN",
    );
    refused(
        act(&alice, "invite", &closed, json!({ "user_id": format!("@nobody:{}", here.name()) })),
        403,
        "M_FORBIDDEN",
    );
    refused(act(&alice, "invite", &closed, json!({ "user_id": "nonsense" })), 400, "M_INVALID_PARAM");
    refused(act(&alice, "invite", &closed, json!({})), 400, "M_MISSING_PARAM");
    let shy = there.user("shy");
    let config =
        format!("/_matrix/client/v3/user/{}/account_data/m.invite_permission_config", segment(shy.id()));
    shy.put(&config, json!({ "default_action": "block" }));
    refused(act(&alice, "invite", &closed, json!({ "user_id": shy.id() })), 403, "M_INVITE_BLOCKED");
    shy.put(&config, json!({}));
    alice.invite(&closed, shy.id());
    shy.wait_for_room("invite", &closed);
    // Kicks and bans.
    refused(
        act(&alice, "kick", &closed, json!({ "user_id": format!("@stranger:{}", there.name()) })),
        403,
        "M_FORBIDDEN",
    );
    refused(act(&alice, "unban", &closed, json!({ "user_id": bob.id() })), 403, "M_BAD_STATE");
    refused(act(&bob, "kick", &closed, json!({ "user_id": alice.id() })), 403, "M_FORBIDDEN");
    refused(act(&bob, "forget", &closed, json!({})), 400, "M_UNKNOWN");
}

#[test]
fn who_is_in_a_room_of_the_list_may_join_a_restricted_room_from_elsewhere() {
    let (here, there) = TestServer::pair();
    let (alice, bob, eve) = (here.user("alice"), there.user("bob"), there.user("eve"));
    let carol = here.user("carol");
    for (rule, version) in
        [("restricted", "8"), ("restricted", "10"), ("knock_restricted", "11"), ("restricted", "12")]
    {
        let club = alice.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
        let restricted = alice.create_room_with(json!({
            "preset": "private_chat",
            "room_version": version,
            "power_level_content_override": { "invite": 50 },
            "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": {
                "join_rule": rule, "allow": [{ "type": "m.room_membership", "room_id": club }],
            }}],
        }));
        // One of ours who may invite nobody, and so is named in nobody's join.
        alice.invite(&restricted, carol.id());
        carol.join(&restricted);
        assert_eq!(join(&bob, &restricted, Some(here.name())).1["errcode"], "M_FORBIDDEN");
        bob.join_via(&club, &[here.name()]);
        alice.wait_for_membership(&club, bob.id(), "join");
        let (status, body) = join(&bob, &restricted, Some(here.name()));
        assert_eq!(status, 200, "version {version}: {body}");
        alice.wait_for_membership(&restricted, bob.id(), "join");
        let content = alice.state(&restricted, "m.room.member", bob.id()).expect("a member event");
        assert_eq!(content["join_authorised_via_users_server"], alice.id());
        // Bob's server is in both rooms now; but only alice may let anybody in, so eve's join goes to her server.
        assert_eq!(join(&eve, &restricted, Some(here.name())).0, 403);
        eve.join(&club);
        alice.wait_for_membership(&club, eve.id(), "join");
        let (status, body) = join(&eve, &restricted, Some(here.name()));
        assert_eq!(status, 200, "version {version}: {body}");
        alice.wait_for_membership(&restricted, eve.id(), "join");
        bob.wait_for_membership(&restricted, eve.id(), "join");
        let content = alice.state(&restricted, "m.room.member", eve.id()).expect("a member event");
        assert_eq!(content["join_authorised_via_users_server"], alice.id());
        if rule == "knock_restricted" {
            let dora = there.user("dora");
            let (status, body) = knock(&dora, &restricted, here.name());
            assert_eq!(status, 200, "{body}");
            alice.wait_for_membership(&restricted, dora.id(), "knock");
        }
        eve.leave(&club);
        alice.wait_for_membership(&club, eve.id(), "leave");
    }
}

#[test]
fn a_resident_that_cannot_know_the_conditions_says_so() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let restricted = alice.create_room_with(json!({
        "preset": "private_chat",
        "room_version": "11",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": {
            "join_rule": "restricted", "allow": [{ "type": "m.room_membership", "room_id": "!unknown:example.invalid" }],
        }}],
    }));
    let (status, body) = join(&bob, &restricted, Some(here.name()));
    assert_eq!((status, &body["errcode"]), (400, &json!("M_UNABLE_TO_AUTHORISE_JOIN")), "{body}");
}

#[test]
fn an_alias_of_another_server_is_a_door_too() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_alias_name": "square" }));
    let alias = format!("#square:{}", here.name());
    assert_eq!(bob.join_via(&alias, &[]), room);
    alice.wait_for_membership(&room, bob.id(), "join");
    let (status, body) =
        bob.request("POST", "/_matrix/client/v3/join/%23nothing%3Aexample.invalid", Some(json!({})));
    assert!(status == 404 || status >= 500, "{status} {body}");
}

#[test]
fn a_server_acl_keeps_servers_out_of_every_handshake() {
    let (here, there) = (TestServer::start(), TestServer::start_by_address());
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "11" }));
    // Names in ACLs have no port.
    alice.set_state(&room, "m.room.server_acl", "", json!({ "allow": ["*"], "deny": ["127.0.0.1"] }));
    assert_eq!(join(&bob, &room, Some(here.name())).1["errcode"], "M_FORBIDDEN");
    assert_eq!(knock(&bob, &room, here.name()).1["errcode"], "M_FORBIDDEN");
}

#[test]
fn forgotten_rooms_do_not_come_back_until_something_new_happens() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = room_with(&alice, "knock", "11");
    bob.knock_via(&room, &[here.name()]);
    bob.wait_for_room("knock", &room);
    assert_eq!(act(&bob, "forget", &room, json!({})).0, 400);
    bob.leave(&room);
    assert_eq!(act(&bob, "forget", &room, json!({})).0, 200);
    assert!(bob.initial_sync()["rooms"]["leave"].get(&room).is_none());
    alice.wait_for_membership(&room, bob.id(), "leave");
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
}

#[test]
fn local_users_knock_invite_and_leave_without_asking_anybody() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = room_with(&alice, "knock", "12");
    bob.knock_via(&room, &[]);
    assert_eq!(knock(&bob, &room, server.name()).0, 200);
    bob.wait_for_room("knock", &room);
    assert_eq!(count_member_events(&alice, &room, bob.id(), "knock"), 1);
    alice.invite(&room, bob.id());
    alice.invite(&room, bob.id());
    let invited = bob.wait_for_room("invite", &room);
    let invite = own(&invited["invite_state"]["events"], &bob);
    assert_eq!(invite["unsigned"]["prev_content"]["membership"], "knock");
    assert_eq!(count_member_events(&alice, &room, bob.id(), "invite"), 1);
    bob.join(&room);
    bob.join(&room);
    assert_eq!(count_member_events(&alice, &room, bob.id(), "join"), 1);
    bob.leave(&room);
    bob.leave(&room);
    bob.wait_for_room("leave", &room);
    assert_eq!(count_member_events(&alice, &room, bob.id(), "leave"), 1);
}

#[test]
fn a_member_event_written_as_state_takes_the_same_way_as_the_endpoint() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = room_with(&alice, "invite", "11");
    alice.set_state(&room, "m.room.member", bob.id(), json!({ "membership": "invite", "reason": "by hand" }));
    let invited = bob.wait_for_room("invite", &room);
    assert_eq!(own(&invited["invite_state"]["events"], &bob)["content"]["reason"], "by hand");
    bob.join(&room);
    alice.wait_for_membership(&room, bob.id(), "join");
}

#[test]
fn an_invite_outlives_that_its_server_comes_into_the_room_and_goes_again() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    let (bob, carol, dave) = (there.user("bob"), there.user("carol"), there.user("dave"));
    let room = room_with(&alice, "invite", "11");
    for guest in [&bob, &carol, &dave] {
        alice.invite(&room, guest.id());
        guest.wait_for_room("invite", &room);
    }
    bob.join(&room);
    alice.wait_for_membership(&room, bob.id(), "join");
    for guest in [&carol, &dave] {
        assert!(
            guest.initial_sync()["rooms"]["invite"].get(&room).is_some(),
            "while the server is in the room"
        );
    }
    bob.leave(&room);
    alice.wait_for_membership(&room, bob.id(), "leave");
    assert!(carol.initial_sync()["rooms"]["invite"].get(&room).is_some(), "after the server left the room");
    carol.leave(&room);
    let left = leave_event(&carol.wait_for_room("leave", &room), &carol);
    assert_eq!(left["unsigned"]["prev_content"]["membership"], "invite");
    alice.wait_for_membership(&room, carol.id(), "leave");
    assert!(carol.initial_sync()["rooms"]["invite"].get(&room).is_none());
    dave.join(&room);
    alice.wait_for_membership(&room, dave.id(), "join");
    alice.send(&room, "at last");
    assert_eq!(dave.next_message(&room), "at last");
}

#[test]
fn a_room_that_was_left_is_found_again_without_being_told_where() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "12" }));
    bob.join_via(&room, &[here.name()]);
    alice.wait_for_membership(&room, bob.id(), "join");
    bob.leave(&room);
    alice.wait_for_membership(&room, bob.id(), "leave");
    bob.join(&room);
    alice.wait_for_membership(&room, bob.id(), "join");
}

#[test]
fn displayname_and_avatar_go_with_knocks_and_joins() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let name = format!("/_matrix/client/v3/profile/{}/displayname", segment(bob.id()));
    bob.put(&name, json!({ "displayname": "Bob the Builder" }));
    let room = room_with(&alice, "knock", "12");
    bob.knock_via(&room, &[here.name()]);
    let knock = alice.state(&room, "m.room.member", bob.id()).expect("the knock");
    assert_eq!(knock["displayname"], "Bob the Builder");
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    bob.join(&room);
    alice.wait_for_membership(&room, bob.id(), "join");
    let join = alice.state(&room, "m.room.member", bob.id()).expect("the join");
    assert_eq!(join["displayname"], "Bob the Builder");
}

/// What the invitee's server shows of a room, in the words of memberships; none if it is over or never was.
fn own_view(user: &TestUser, room: &str) -> Option<&'static str> {
    let rooms = user.initial_sync()["rooms"].clone();
    [("join", "join"), ("invite", "invite"), ("knock", "knock")]
        .into_iter()
        .find(|(section, _)| rooms[section].get(room).is_some())
        .map(|(_, membership)| membership)
}

#[test]
fn whatever_both_sides_do_they_agree_in_the_end() {
    let (mut here, mut there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    // A fixed sequence that looks like none (a linear congruential generator), so that a failure can be repeated;
    // another one with DOORSTEP_SEED.
    let mut seed =
        std::env::var("DOORSTEP_SEED").map_or(20_261_122, |seed| seed.parse::<u64>().expect("a number"));
    let mut dice = |sides: u64| {
        seed = seed.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) % sides
    };
    for version in ["7", "10", "11", "12"] {
        let room = room_with(&alice, "knock", version);
        let mut history = Vec::new();
        for _ in 0..25 {
            let (what, answer) = match dice(9) {
                0 | 1 => ("knock", knock(&bob, &room, here.name())),
                2 => ("leave", act(&bob, "leave", &room, json!({}))),
                3 => ("join", join(&bob, &room, Some(here.name()))),
                4 | 5 => ("invite", act(&alice, "invite", &room, json!({ "user_id": bob.id() }))),
                6 => ("kick", act(&alice, "kick", &room, json!({ "user_id": bob.id() }))),
                7 if dice(2) == 0 => ("ban", act(&alice, "ban", &room, json!({ "user_id": bob.id() }))),
                7 => ("unban", act(&alice, "unban", &room, json!({ "user_id": bob.id() }))),
                _ if dice(2) == 0 => {
                    here.restart();
                    ("restart here", (200, Value::Null))
                }
                _ => {
                    there.restart();
                    ("restart there", (200, Value::Null))
                }
            };
            assert!(answer.0 < 500, "{what} after {history:?}: {}", answer.1);
            history.push((what, answer.0));
        }
        let mut views = (None, None);
        let started = std::time::Instant::now();
        loop {
            let membership = alice.membership_of(&room, bob.id());
            let alice_sees = membership.filter(|m| m != "leave" && m != "ban");
            let bob_sees = own_view(&bob, &room);
            if alice_sees.as_deref() == bob_sees {
                break;
            }
            views = (alice_sees, bob_sees);
            here.advance(Duration::from_secs(60));
            there.advance(Duration::from_secs(60));
            assert!(started.elapsed() < Duration::from_secs(20), "{version}: {views:?} after {history:?}");
        }
        drop(views);
    }
}

#[test]
fn an_invite_to_a_room_that_the_invitees_server_leaves_meanwhile_is_not_lost() {
    let (here, there) = TestServer::pair();
    let alice = here.user("alice");
    let (bob, carol) = (there.user("bob"), there.user("carol"));
    for version in ["11", "12"] {
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": version }));
        carol.join_via(&room, &[here.name()]);
        alice.wait_for_membership(&room, carol.id(), "join");
        let (leaving, room) = (bob_again(&carol), room.as_str());
        std::thread::scope(|scope| {
            let left = scope.spawn(move || leaving.leave(room));
            alice.invite(room, bob.id());
            left.join().expect("no panic");
        });
        bob.wait_for_room("invite", room);
        bob.join(room);
        alice.wait_for_membership(room, bob.id(), "join");
        bob.leave(room);
    }
}
