//! What who runs the server does with rooms, knocks and media: by the verbs, and by the admin API.

use crate::common::client::{V3, knock, post, room_path};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::{Administrator, KnockAnswerer, KnockFilter};
use doorstep::protocol::{RoomId, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const OPERATOR: KnockAnswerer<'_> = KnockAnswerer::Administrator(&Administrator::Operator);

fn id(user: &TestUser) -> UserId {
    UserId::parse(user.id()).expect("a user id")
}

fn room_id(room: &str) -> RoomId {
    RoomId::parse(room).expect("a room id")
}

/// A room upon which one may knock, and where only moderators invite.
fn room_with_a_door(owner: &TestUser, name: &str) -> String {
    owner.create_room_with(json!({
        "name": name,
        "power_level_content_override": { "invite": 50 },
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }))
}

fn names(server: &TestServer, may_answer: Option<&TestUser>) -> Vec<String> {
    let user = may_answer.map(id);
    let asked = KnockFilter { may_answer: user.as_ref(), ..KnockFilter::default() };
    let waiting = server.homeserver().admin().knocks_waiting(asked).expect("the knocks");
    waiting.knocks.into_iter().map(|knock| knock.user_id.as_str().to_owned()).collect()
}

#[test]
fn who_waits_where_is_told_to_who_may_let_them_in_and_to_the_operator() {
    let (here, there) = TestServer::pair();
    let (alice, carol, dave) = (here.user("alice"), here.user("carol"), here.user("dave"));
    let bob = there.user("bob");
    let room = room_with_a_door(&alice, "The pub");
    alice.invite(&room, carol.id());
    carol.join(&room);
    let path = format!("knock/{}", segment(&room));
    assert_eq!(post(&dave, &path, json!({ "reason": "It rains" })).0, 200);
    bob.put(&format!("{V3}/profile/{}/displayname", segment(bob.id())), json!({ "displayname": "Bob" }));
    assert_eq!(knock(&bob, &room, here.name()).0, 200);

    let user = id(&alice);
    let asked = KnockFilter { may_answer: Some(&user), ..KnockFilter::default() };
    let waiting = here.homeserver().admin().knocks_waiting(asked).expect("the knocks").knocks;
    let told: Vec<_> = waiting
        .iter()
        .map(|knock| {
            let texts = [&knock.room_name, &knock.displayname, &knock.reason];
            (knock.room_id.as_str(), knock.user_id.as_str(), texts.map(|text| text.as_deref().unwrap_or("-")))
        })
        .collect();
    assert_eq!(
        told,
        [
            (room.as_str(), bob.id(), ["The pub", "Bob", "-"]),
            (room.as_str(), dave.id(), ["The pub", "-", "It rains"])
        ]
    );
    assert!(waiting.iter().all(|knock| knock.since_ms > 1_600_000_000_000), "{waiting:?}");
    assert_eq!(names(&here, None), [bob.id(), dave.id()]);
    for other in [&carol, &dave] {
        assert_eq!(names(&here, Some(other)), [""; 0], "{} may let nobody in", other.id());
    }
    // The other server is not in the room, and answers nobody there.
    assert_eq!(names(&there, None), [""; 0]);

    // A knock that is withdrawn waits no more.
    bob.leave(&room);
    wait_until("the withdrawal is here", || names(&here, None) == [dave.id()]);
    dave.leave(&room);
    assert_eq!(names(&here, None), [""; 0]);
}

#[test]
fn a_knock_is_answered_once_by_who_may_or_for_the_operator_by_the_mightiest_member() {
    let (here, there) = TestServer::pair();
    let (alice, carol) = (here.user("alice"), here.user("carol"));
    let (bob, eve) = (there.user("bob"), there.user("eve"));
    let room = room_with_a_door(&alice, "The pub");
    alice.invite(&room, carol.id());
    carol.join(&room);
    let hs = here.homeserver();
    let (admin, room_id) = (hs.admin(), room_id(&room));
    for user in [&bob, &eve] {
        assert_eq!(knock(user, &room, here.name()).0, 200);
    }
    let status = |result: doorstep::Result<()>| result.map_or_else(|e| e.status(), |()| 200);
    assert_eq!(status(admin.accept_knock(KnockAnswerer::Member(&id(&carol)), &room_id, &id(&bob))), 403);
    assert_eq!(
        status(admin.refuse_knock(KnockAnswerer::Member(&id(&carol)), &room_id, &id(&bob), None)),
        403
    );
    assert_eq!(names(&here, None).len(), 2);

    admin.accept_knock(OPERATOR, &room_id, &id(&bob)).expect("the operator lets them in");
    bob.wait_for_room("invite", &room);
    let invite = alice.state(&room, "m.room.member", bob.id()).expect("bob's membership");
    assert_eq!(invite["membership"], "invite");
    // A first sync does not tell of what is left.
    eve.wait_for_room("knock", &room);
    admin.refuse_knock(OPERATOR, &room_id, &id(&eve), Some("Not today")).expect("the operator refuses");
    let left = eve.wait_for_room("leave", &room);
    assert!(left.to_string().contains("Not today"), "{left}");

    // Who does not wait is neither invited nor removed by an answer that comes late.
    for (user, room) in [(&bob, &room_id), (&eve, &room_id), (&carol, &room_id)] {
        assert_eq!(status(admin.accept_knock(OPERATOR, room, &id(user))), 404);
        assert_eq!(status(admin.refuse_knock(OPERATOR, room, &id(user), None)), 404);
        assert_eq!(status(admin.accept_knock(KnockAnswerer::Member(&id(&alice)), room, &id(user))), 404);
        assert_eq!(
            status(admin.refuse_knock(KnockAnswerer::Member(&id(&alice)), room, &id(user), None)),
            404
        );
    }
    let nowhere = RoomId::parse("!nowhere:example.org").expect("a room id");
    assert_eq!(status(admin.accept_knock(OPERATOR, &nowhere, &id(&bob))), 404);
    assert_eq!(names(&here, None), [""; 0]);
}

#[test]
fn of_knocks_that_say_much_no_more_is_told_than_a_bounded_part() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = room_with_a_door(&alice, &"ö".repeat(9000));
    let long = "ä".repeat(20_000);
    assert_eq!(post(&bob, &format!("knock/{}", segment(&room)), json!({ "reason": long })).0, 200);
    let waiting =
        server.homeserver().admin().knocks_waiting(KnockFilter::default()).expect("the knocks").knocks;
    let lengths =
        [&waiting[0].room_name, &waiting[0].reason].map(|text| text.as_ref().map_or(0, String::len));
    assert!(lengths.iter().all(|length| (500..1100).contains(length)), "{lengths:?}");
    let state: Value = alice.get(&room_path(&room, "state/m.room.name"));
    assert_eq!(state["name"].as_str().map(str::len), Some(18_000));
}

#[test]
fn of_more_knocks_than_a_hundred_all_are_counted_and_whoever_waits_is_found() {
    let server = TestServer::start_with(|config| {
        config.set("knocks-waiting", "0").expect("a number");
        config.set("knocks-per-hour", "0").expect("a number");
    });
    let alice = server.user("alice");
    let room = room_with_a_door(&alice, "The pub");
    for number in 0..105 {
        let knocker = server.user(&format!("k{number}"));
        assert_eq!(post(&knocker, &format!("knock/{}", segment(&room)), json!({})).0, 200);
    }
    let (hs, user) = (server.homeserver(), id(&alice));
    let mine = KnockFilter { may_answer: Some(&user), ..KnockFilter::default() };
    let waiting = hs.admin().knocks_waiting(mine).expect("the knocks");
    assert_eq!((waiting.total, waiting.knocks.len()), (105, 105));
    assert_eq!(hs.admin().own_doors(&user).expect("the doors")[0].waiting, 105);

    // Who came first is the last of the list, and found all the same: by the localpart, too.
    let found = alice.get("/_doorstep/admin/v1/knocks?user_id=k0");
    assert_eq!((&found["total"], &found["knocks"][0]["room_id"]), (&json!(1), &json!(room)));
    let none = alice.get("/_doorstep/admin/v1/knocks?user_id=alice");
    assert_eq!((&none["total"], &none["knocks"]), (&json!(0), &json!([])));
    let elsewhere = alice.get("/_doorstep/admin/v1/knocks?room_id=!other:example.org");
    assert_eq!(elsewhere["total"], 0);
    let refused =
        alice.request("POST", &format!("/_doorstep/admin/v1/knocks/{}/k0/refuse", segment(&room)), None);
    assert_eq!(refused.0, 200, "{refused:?}");
    assert_eq!(alice.get("/_doorstep/admin/v1/knocks")["total"], 104);
}
