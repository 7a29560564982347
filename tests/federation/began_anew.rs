//! Servers that lost all that they had and begin anew: others, with a key of the same id, and this one, whose key nobody has.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::room_path;
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::handshake::sign_new_event;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::{ServerName, UserId};
use doorstep::testing::TestUser;
use serde_json::{Value, json};

/// Longer than a server is left alone after it has said its keys.
const A_WHILE: Duration = Duration::from_secs(6 * 60);

#[test]
fn a_server_that_begins_anew_is_heard_at_once_and_what_it_said_before_stays_good() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let mut room = FakeRoom::joined_by(&peer, "11", &alice);
    let before = room.say(&peer, "before");
    peer.begin_anew();
    server.advance(A_WHILE);
    let after = room.say(&peer, "after");
    peer.serve_events(&[before, after.clone()], 10);
    let (status, answer) = peer.send_transaction(server.name(), "t1", &[&after]);
    assert_eq!((status, &answer["pdus"][after.event_id().as_str()]), (200, &json!({})), "{answer}");
    assert_eq!(alice.next_message(room.id.as_str()), "before");
    assert_eq!(alice.next_message(room.id.as_str()), "after");
}

#[test]
fn who_joins_a_room_finds_those_in_it_whose_server_began_anew() {
    let (server, host, other) = (TestServer::start(), Peer::start(), Peer::start());
    let alice = server.user("alice");
    let (status, _) = other.ask(server.name(), "GET", "/_matrix/federation/v1/publicRooms", None);
    assert_eq!(status, 200, "its first key is known");
    other.begin_anew();
    server.advance(A_WHILE);
    let (mut room, carol) = (FakeRoom::new(&host, "11", "public"), other.user("carol"));
    room.add(&other, "m.room.member", carol.as_str(), &carol, json!({ "membership": "join" }));
    host.let_in(&room, alice.id());
    alice.join_via(room.id.as_str(), &[host.name().as_str()]);
    let members = alice.get(&room_path(room.id.as_str(), "joined_members"));
    assert!(members["joined"][carol.as_str()].is_object(), "{members}");
}

#[test]
fn an_invite_reaches_who_began_anew() {
    let (server, peer) = (TestServer::start(), Arc::new(Peer::start()));
    let alice = server.user("alice");
    let (status, _) = peer.ask(server.name(), "GET", "/_matrix/federation/v1/publicRooms", None);
    assert_eq!(status, 200, "its first key is known");
    peer.begin_anew();
    server.advance(A_WHILE);
    let room = alice.create_room_with(json!({ "preset": "private_chat" }));
    let carol = peer.user("carol");
    peer.take_transactions();
    let signer = Arc::downgrade(&peer);
    peer.answer("/invite/", move |asked| {
        let rules =
            room_version(asked.body["room_version"].as_str().expect("a version")).expect("a known one");
        let signer = signer.upgrade().expect("it runs");
        Reply::json(&json!({ "event": signer.countersign(&asked.body["event"], rules) }))
    });
    alice.post(&room_path(&room, "invite"), json!({ "user_id": carol }));
    let member = alice.get(&room_path(&room, &format!("state/m.room.member/{carol}")));
    assert_eq!(member["membership"], "invite");
}

const DAY_MS: i64 = 86_400_000;

/// A server without anything, and a room that one of its name was in before, as the room's own server knows it.
struct Before {
    server: TestServer,
    host: Peer,
    room: FakeRoom,
    /// What it had before its state.
    past: Vec<Value>,
    /// What nobody but the room's server knows any more.
    lost: SigningKey,
}

impl Before {
    fn new(version: &str) -> Self {
        let (server, host) = (TestServer::start(), Peer::start());
        let room = FakeRoom::new(&host, version, "public");
        let lost = SigningKey::generate([9; 32], "lost");
        let name = ServerName::parse(server.name()).expect("a server name");
        host.vouch_for(&name, &[&lost]);
        Before { server, host, room, past: Vec::new(), lost }
    }

    fn name(&self) -> ServerName {
        ServerName::parse(self.server.name()).expect("a server name")
    }

    fn user(&self, localpart: &str) -> UserId {
        UserId::parse(&format!("@{localpart}:{}", self.server.name())).expect("a user id")
    }

    /// A state event of somebody of the server before, so long ago. It becomes part of the room.
    fn add(&mut self, of: &UserId, (kind, key): (&str, &str), content: Value, ago_ms: i64) {
        let mut event = self.room.unsigned(kind, key, of, content);
        event.insert("origin_server_ts".into(), json!(now_ms() - ago_ms));
        let event = sign_new_event(event, &self.name(), &self.lost, self.room.version).expect("an event");
        self.room.take(event);
    }

    fn add_member(&mut self, localpart: &str) {
        let user = self.user(localpart);
        self.add(&user.clone(), ("m.room.member", user.as_str()), json!({ "membership": "join" }), DAY_MS);
    }

    /// Somebody has as much power as there is to give.
    fn give_power(&mut self, user: &UserId) {
        let creator = &self.room.creator;
        let levels = match self.room.version.privileged_creators {
            true => json!({ user.as_str(): 100 }),
            false => json!({ creator.as_str(): 100, user.as_str(): 100 }),
        };
        self.replace("m.room.power_levels", json!({ "users": levels }));
    }

    /// The room's creator sets what was set before.
    fn replace(&mut self, kind: &str, content: Value) {
        let creator = self.room.creator.clone();
        self.past.push(Value::Object(self.room.state[&(kind.to_owned(), String::new())].to_object()));
        self.room.add(&self.host, kind, "", &creator, content);
    }

    fn comes_in(&self, user: &TestUser) {
        self.host.let_in(&self.room, user.id());
        let mut answer = self.room.join_answer();
        answer["auth_chain"].as_array_mut().expect("a list").extend(self.past.clone());
        self.host.answer_json("send_join", 200, answer);
        user.join_via(self.room.id.as_str(), &[self.host.name().as_str()]);
    }
}

fn is_in(user: &TestUser, room: &FakeRoom) -> bool {
    let rooms = user.get("/_matrix/client/v3/joined_rooms");
    rooms["joined_rooms"].as_array().expect("a list").contains(&json!(room.id))
}

#[test]
fn who_lost_all_they_had_come_back_into_their_rooms_each_by_themselves() {
    for version in ["11", "12"] {
        let mut before = Before::new(version);
        for user in ["bob", "carol", "dora"] {
            before.add_member(user);
        }
        let carol_id = before.user("carol");
        before.give_power(&carol_id);
        before.add(&carol_id, ("m.room.name", ""), json!({ "name": "by carol" }), DAY_MS);
        let (bob, carol) = (before.server.user("bob"), before.server.user("carol"));
        let room = before.room.id.as_str();
        // Who comes in first enters a room with those who were here before.
        before.comes_in(&carol);
        assert_eq!(carol.get(&room_path(room, "state/m.room.name/"))["name"], "by carol");
        assert!(is_in(&carol, &before.room));
        // Who has such a name now has not come in with that.
        assert!(!is_in(&bob, &before.room), "{version}");
        assert!(bob.initial_sync()["rooms"]["join"].get(room).is_none());
        assert_eq!(bob.request("GET", &room_path(room, "state/m.room.name/"), None).0, 403);
        bob.join_via(room, &[before.host.name().as_str()]);
        assert!(is_in(&bob, &before.room));
        bob.send(room, "back");
        wait_until("the room hears of it", || {
            let sent = before.host.asked("/send/");
            sent.iter().any(|asked| asked.body.to_string().contains("back"))
        });
        // Who has no account any more can be removed.
        let gone = before.user("dora");
        carol.post(&room_path(room, "kick"), json!({ "user_id": gone }));
        assert_eq!(carol.membership_of(room, gone.as_str()).as_deref(), Some("leave"));
        bob.leave(room);
        assert!(!is_in(&bob, &before.room));
        carol.leave(room);
        let hs = before.server.homeserver();
        let resident = hs.store.read(|db| db.resident_room(&before.room.id)).expect("read");
        assert!(resident.is_none(), "nobody is left here");
    }
}

#[test]
fn nobody_makes_up_what_users_who_are_here_do_by_a_key_that_we_lost() {
    let mut before = Before::new("11");
    let (bob, carol) = (before.server.user("bob"), before.server.user("carol"));
    before.add_member("bob");
    // Later than the key that this server has by now.
    let bob_id = before.user("bob");
    before.add(&bob_id, ("m.room.topic", ""), json!({ "topic": "of bob" }), -1_000);
    before.comes_in(&carol);
    assert_eq!(carol.request("GET", &room_path(before.room.id.as_str(), "state/m.room.topic/"), None).0, 404);
    assert!(!is_in(&bob, &before.room));
    // Nor in a transaction, whatever date it has, is anything believed.
    let mut said = before.room.unsigned("m.room.message", "", &bob_id, json!({ "body": "forged" }));
    said.remove("state_key");
    said.insert("origin_server_ts".into(), json!(now_ms() - DAY_MS));
    let said = sign_new_event(said, &before.name(), &before.lost, before.room.version).expect("an event");
    let (status, answer) = before.host.send_transaction(before.server.name(), "t1", &[&said]);
    assert_eq!(status, 200, "{answer}");
    assert_eq!(
        carol
            .request("GET", &room_path(before.room.id.as_str(), &format!("event/{}", said.event_id())), None)
            .0,
        404
    );
}

#[test]
fn in_a_private_room_who_has_such_a_name_comes_back_uninvited_unless_they_are_removed_first() {
    for version in ["11", "12"] {
        let mut before = Before::new(version);
        for user in ["bob", "carol", "dora"] {
            before.add_member(user);
        }
        before.give_power(&before.user("carol"));
        before.replace("m.room.join_rules", json!({ "join_rule": "invite" }));
        let [bob, carol, dora] = ["bob", "carol", "dora"].map(|name| before.server.user(name));
        let room = before.room.id.as_str();
        before.comes_in(&carol);
        carol.send(room, "secret");
        // As the room has it, they are in it, and say so anew.
        bob.join_via(room, &[before.host.name().as_str()]);
        assert!(is_in(&bob, &before.room), "{version}");
        assert_eq!(dora.request("POST", &room_path(room, "leave"), Some(json!({}))).0, 403, "{version}");
        carol.post(&room_path(room, "kick"), json!({ "user_id": dora.id() }));
        let refused = dora.request("POST", &room_path(room, "join"), Some(json!({})));
        assert_eq!(refused.0, 403, "{version}: {refused:?}");
        // Who never was there has left nothing that they could read.
        assert_eq!(dora.request("GET", &room_path(room, "messages?dir=b"), None).0, 403, "{version}");
        carol.post(&room_path(room, "ban"), json!({ "user_id": dora.id() }));
        carol.post(&room_path(room, "unban"), json!({ "user_id": dora.id() }));
        carol.post(&room_path(room, "invite"), json!({ "user_id": dora.id() }));
        assert!(dora.initial_sync()["rooms"]["invite"].get(room).is_some(), "{version}");
        dora.join(room);
        assert!(is_in(&dora, &before.room), "{version}");
    }
}
