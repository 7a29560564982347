//! Events between real servers over loopback TLS: in order, through outages, restarts and new keys.

use std::time::Duration;

use crate::common::scene::read_back;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::protocol::ServerName;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// Two servers with a user each, in one room, which is of the first.
struct Two {
    a: TestServer,
    b: TestServer,
    alice: TestUser,
    bob: TestUser,
    room: String,
}

impl Two {
    fn in_one_room() -> Self {
        let (a, b) = TestServer::pair();
        let (alice, bob) = (a.user("alice"), b.user("bob"));
        let room = alice.create_room();
        bob.join_via(&room, &[a.name()]);
        Self { a, b, alice, bob, room }
    }

    /// The texts of all messages as a user sees them, oldest first.
    fn messages(&self, user: &TestUser) -> Vec<String> {
        read_back(user, &self.room)
    }

    fn wait_until_bob_has(&self, texts: &[impl AsRef<str>]) {
        let expected: Vec<&str> = texts.iter().map(AsRef::as_ref).collect();
        wait_until("bob has them all", || self.messages(&self.bob) == expected);
    }

    fn wait_until_it_is_noticed_that_b_is_away(&self) {
        let away = ServerName::parse(self.b.name()).expect("a name");
        wait_until("alice's server notices", || self.a.homeserver().outgoing.is_pausing(&away));
    }
}

fn has_event(server: &TestServer, event: &str) -> bool {
    let id = doorstep::protocol::EventId::parse(event).expect("an event id");
    server.homeserver().store.read(|db| db.event(&id)).expect("read").is_some()
}

#[test]
fn messages_arrive_on_the_other_server_in_order_both_ways() {
    let two = Two::in_one_room();
    let expected: Vec<String> = (0..130).map(|n| format!("message {n}")).collect();
    for text in &expected {
        two.alice.send(&two.room, text);
    }
    two.wait_until_bob_has(&expected);
    two.bob.send(&two.room, "and back");
    wait_until("alice has the answer", || two.messages(&two.alice).last().is_some_and(|m| m == "and back"));
}

#[test]
fn what_was_said_while_a_server_was_away_reaches_it_when_it_speaks_again() {
    let mut two = Two::in_one_room();
    two.alice.send(&two.room, "before");
    two.wait_until_bob_has(&["before"]);
    two.b.stop();
    for n in 0..5 {
        two.alice.send(&two.room, &format!("away {n}"));
    }
    two.wait_until_it_is_noticed_that_b_is_away();
    two.b.resume();
    two.bob.send(&two.room, "I am back");
    wait_until("bob has what he missed", || {
        let seen = two.messages(&two.bob);
        (0..5).all(|n| seen.contains(&format!("away {n}"))) && seen.len() == 7
    });
    wait_until("alice has his word", || two.messages(&two.alice).contains(&"I am back".to_owned()));
}

#[test]
fn what_was_not_delivered_survives_a_restart_of_the_sender() {
    let mut two = Two::in_one_room();
    two.b.stop();
    for n in 0..3 {
        two.alice.send(&two.room, &format!("away {n}"));
    }
    two.wait_until_it_is_noticed_that_b_is_away();
    two.a.restart();
    two.b.resume();
    // The pause is remembered, unless the other server has something to say by itself, which ends it.
    let away = ServerName::parse(two.b.name()).expect("a name");
    let texts = ["away 0", "away 1", "away 2"];
    wait_until("the pause is remembered", || {
        two.a.homeserver().outgoing.is_pausing(&away) || two.messages(&two.bob) == texts
    });
    two.a.advance(Duration::from_secs(60));
    two.wait_until_bob_has(&texts);
}

#[test]
fn what_was_missed_in_a_long_outage_is_there_to_be_read() {
    let mut two = Two::in_one_room();
    two.alice.send(&two.room, "before");
    two.wait_until_bob_has(&["before"]);
    two.b.stop();
    let mut expected = vec!["before".to_owned()];
    for n in 0..400 {
        expected.push(format!("away {n}"));
        two.alice.send(&two.room, &expected[n + 1]);
        if n == 200 {
            two.alice.set_state(&two.room, "m.room.topic", "", json!({ "topic": "changed meanwhile" }));
        }
    }
    two.wait_until_it_is_noticed_that_b_is_away();
    two.b.resume();
    two.a.advance(Duration::from_secs(60));
    wait_until("bob has the last", || {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1", segment(&two.room));
        two.bob.get(&path)["chunk"][0]["content"]["body"] == "away 399"
    });
    assert_eq!(two.messages(&two.bob), expected);
    let topic = two.bob.state(&two.room, "m.room.topic", "").expect("a topic");
    assert_eq!(topic["topic"], "changed meanwhile");
}

#[test]
fn after_a_change_of_keys_old_and_new_events_are_believed() {
    let two = Two::in_one_room();
    let c = TestServer::start();
    let carol = c.user("carol");
    two.alice.send(&two.room, "with the old key");
    two.wait_until_bob_has(&["with the old key"]);
    two.a.homeserver().keys().rotate_signing_key().expect("a new key");
    two.alice.send(&two.room, "with the new key");
    two.wait_until_bob_has(&["with the old key", "with the new key"]);
    // The state that carol's server checks was signed with the old one.
    carol.join_via(&two.room, &[two.a.name()]);
    two.alice.send(&two.room, "welcome");
    wait_until("all have it", || {
        [&two.bob, &carol].iter().all(|user| two.messages(user).last().is_some_and(|m| m == "welcome"))
    });
}

#[test]
fn three_servers_hear_of_each_other_and_a_server_without_members_hears_no_more() {
    let two = Two::in_one_room();
    let c = TestServer::start();
    let carol = c.user("carol");
    let (room, Two { alice, bob, b, .. }) = (&two.room, &two);
    carol.join_via(room, &[b.name()]);
    // Until alice's server has heard of it, it does not tell carol's of anything.
    wait_until("alice sees carol", || alice.membership_of(room, carol.id()).as_deref() == Some("join"));
    for (user, text) in [(alice, "from a"), (bob, "from b"), (&carol, "from c")] {
        user.send(room, text);
        wait_until("everybody has it", || {
            [alice, bob, &carol].iter().all(|user| two.messages(user).last().is_some_and(|m| m == text))
        });
    }
    bob.leave(room);
    let seen_left = |user: &TestUser| user.membership_of(room, bob.id()).as_deref() == Some("leave");
    wait_until("all know that bob left", || seen_left(alice) && seen_left(&carol));
    let secret = alice.send(room, "without bob");
    wait_until("carol has it", || two.messages(&carol).last().is_some_and(|m| m == "without bob"));
    assert!(!has_event(b, &secret), "bob's server is owed nothing any more");
}

#[test]
fn a_server_that_cannot_be_reached_does_not_hold_up_the_others() {
    let two = Two::in_one_room();
    let mut c = TestServer::start();
    let carol = c.user("carol");
    carol.join_via(&two.room, &[two.a.name()]);
    c.stop();
    for n in 0..10 {
        two.alice.send(&two.room, &format!("message {n}"));
    }
    wait_until("bob has them all", || two.messages(&two.bob).len() == 10);
    c.resume();
    two.a.advance(Duration::from_secs(24 * 3600));
    wait_until("carol has them all", || two.messages(&carol).len() == 10);
}

#[test]
fn an_unsigned_or_wrongly_signed_request_is_unauthorized() {
    let server = TestServer::start();
    let user = server.user("alice");
    // The client's token is no signature.
    let (status, body) = user.request("PUT", "/_matrix/federation/v1/send/1", Some(json!({ "pdus": [] })));
    assert_eq!((status, &body["errcode"]), (401, &Value::from("M_UNAUTHORIZED")));
}
