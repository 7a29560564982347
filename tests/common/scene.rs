//! A room that lives on a scripted peer, with one of ours in it: for tests of what servers tell each other about a room.

use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::internals::{Status, StoredEvent};
use doorstep::protocol::event_auth::auth_types;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Map, Value, json};

use super::peer::{FakeRoom, Peer, now_ms};

/// A room on a scripted peer, with one of ours in it, and the end of its graph.
pub struct Scene {
    /// Ours.
    pub server: TestServer,
    /// One of ours, joined to the room.
    pub alice: TestUser,
    /// The other server.
    pub peer: Peer,
    /// Its room.
    pub room: FakeRoom,
    /// The end of the room's graph.
    pub last: EventId,
    depth: i64,
}

impl Scene {
    /// A public room of this version.
    pub fn new(version: &str) -> Scene {
        let (server, peer) = (TestServer::start(), Peer::start());
        let alice = server.user("alice");
        let room = FakeRoom::joined_by(&peer, version, &alice);
        Scene::of(server, alice, peer, room)
    }

    /// With a room that alice is joined to already.
    pub fn of(server: TestServer, alice: TestUser, peer: Peer, room: FakeRoom) -> Scene {
        let last = room.last.clone();
        Scene { server, alice, peer, room, last, depth: 20 }
    }

    /// An event of the peer's that follows some others; the room's end is not moved.
    pub fn event(
        &mut self,
        prev: &[&EventId],
        sender: &UserId,
        kind: (&str, Option<&str>),
        content: Value,
    ) -> Pdu {
        let event = self.unsigned(prev, sender, kind, content);
        self.peer.sign(event, self.room.version)
    }

    /// An event of another peer's user that follows some others.
    pub fn event_of(
        &mut self,
        peer: &Peer,
        prev: &[&EventId],
        sender: &UserId,
        kind: (&str, Option<&str>),
        content: Value,
    ) -> Pdu {
        let event = self.unsigned(prev, sender, kind, content);
        peer.sign(event, self.room.version)
    }

    /// A message of somebody's that follows some others; the room's end is not moved.
    pub fn message_after(&mut self, prev: &[&EventId], sender: &UserId, text: &str) -> Pdu {
        self.event(prev, sender, ("m.room.message", None), json!({ "body": text }))
    }

    /// The join of a user of the peer's at the room's end, which it becomes.
    pub fn join(&mut self, user: &UserId) -> Pdu {
        let last = self.last.clone();
        let join = json!({ "membership": "join" });
        let event = self.event(&[&last], user, ("m.room.member", Some(user.as_str())), join);
        self.take(&event);
        event
    }

    /// The same of another peer's user.
    pub fn join_of(&mut self, peer: &Peer, localpart: &str) -> Pdu {
        let (user, last) = (peer.user(localpart), self.last.clone());
        let join = json!({ "membership": "join" });
        let event = self.event_of(peer, &[&last], &user, ("m.room.member", Some(user.as_str())), join);
        self.take(&event);
        event
    }

    /// Makes a state event the room's end.
    fn take(&mut self, event: &Pdu) {
        self.last = event.event_id().clone();
        let state_key = event.state_key().unwrap_or_default().to_owned();
        self.room.state.insert((event.event_type().to_owned(), state_key), event.clone());
    }

    fn unsigned(
        &mut self,
        prev: &[&EventId],
        sender: &UserId,
        kind: (&str, Option<&str>),
        content: Value,
    ) -> Map<String, Value> {
        let content = content.as_object().expect("an object").clone();
        let wanted = auth_types(kind.0, sender.as_str(), kind.1, &content, self.room.version);
        let auth: Vec<&EventId> =
            wanted.iter().filter_map(|key| self.room.state.get(key)).map(Pdu::event_id).collect();
        self.depth += 1;
        let mut event = json!({
            "type": kind.0, "sender": sender, "content": content, "room_id": self.room.id,
            "origin_server_ts": now_ms(), "depth": self.depth, "prev_events": prev, "auth_events": auth,
        });
        if let Some(state_key) = kind.1 {
            event["state_key"] = state_key.into();
        }
        event.as_object().expect("an object").clone()
    }

    /// A message of the room's creator at the room's end.
    pub fn message(&mut self, text: &str) -> Pdu {
        let (last, creator) = (self.last.clone(), self.room.creator.clone());
        let event = self.message_after(&[&last], &creator, text);
        self.last = event.event_id().clone();
        event
    }

    /// A state event of the room's creator at the room's end.
    pub fn set_state(&mut self, kind: &str, state_key: &str, content: Value) -> Pdu {
        let (last, creator) = (self.last.clone(), self.room.creator.clone());
        let event = self.event(&[&last], &creator, (kind, Some(state_key)), content);
        self.take(&event);
        event
    }

    /// Sends events and returns what is said of each.
    pub fn send(&self, txn: &str, pdus: &[&Pdu]) -> Value {
        let (status, body) = self.peer.send_transaction(self.server.name(), txn, pdus);
        assert_eq!(status, 200, "{body}");
        body["pdus"].clone()
    }

    /// What became of an event; none if it is not stored.
    pub fn status(&self, pdu: &Pdu) -> Option<Status> {
        stored(&self.server, pdu.event_id()).map(|event| event.status)
    }

    /// From now on the peer answers with the room's state as it is now, whatever event is asked about.
    pub fn answer_with_state(&self) {
        let ids: Vec<&EventId> = self.room.state.values().map(Pdu::event_id).collect();
        self.peer.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": ids }));
        let events: Vec<Value> = self.room.state.values().map(|p| Value::Object(p.to_object())).collect();
        self.peer.answer_json("/state/", 200, json!({ "pdus": events, "auth_chain": events }));
        let by_id: Vec<(String, Value)> = self
            .room
            .state
            .values()
            .map(|p| (segment(p.event_id().as_str()), Value::Object(p.to_object())))
            .collect();
        let name = self.peer.name().clone();
        self.peer.answer("/event/", move |asked| {
            match by_id.iter().find(|(id, _)| asked.target.ends_with(id)) {
                Some((_, event)) => {
                    Reply::json(&json!({ "origin": name, "origin_server_ts": 0, "pdus": [event] }))
                }
                None => Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "no" })),
            }
        });
    }

    /// What somebody is in the room, as alice sees it.
    pub fn membership(&self, user: &UserId) -> Option<String> {
        self.alice.membership_of(self.room.id.as_str(), user.as_str())
    }

    /// What alice sees of the state.
    pub fn state_content(&self, kind: &str, state_key: &str) -> Option<Value> {
        self.alice.state(self.room.id.as_str(), kind, state_key)
    }
}

/// The room's forward extremities.
pub fn heads(server: &TestServer, room: &FakeRoom) -> Vec<EventId> {
    let heads = server.homeserver().store.read(|db| db.forward_extremities(db.known_room(&room.id)?.key));
    heads.expect("the room has heads").into_iter().map(|head| head.event_id).collect()
}

/// The event as it is stored.
pub fn stored(server: &TestServer, id: &EventId) -> Option<StoredEvent> {
    server.homeserver().store.read(|db| db.event(id)).expect("the database reads")
}

/// As they go into answers.
pub fn objects(pdus: &[Pdu]) -> Vec<Value> {
    pdus.iter().map(|pdu| Value::Object(pdu.to_object())).collect()
}

/// The bodies of all messages that the user can page back to, oldest first.
pub fn read_back(user: &TestUser, room: &str) -> Vec<String> {
    let (mut all, mut from) = (Vec::new(), String::new());
    loop {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=100{from}", segment(room));
        let page = user.get(&path);
        let chunk = page["chunk"].as_array().expect("messages have a chunk").iter();
        let messages = chunk.filter(|event| event["type"] == "m.room.message");
        all.extend(messages.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)));
        match page["end"].as_str() {
            Some(end) => from = format!("&from={}", segment(end)),
            None => break,
        }
    }
    all.reverse();
    all
}

/// The bodies of the messages on the first page of the room's timeline, oldest first.
pub fn bodies(user: &TestUser, room: &str) -> Vec<String> {
    let page = user.get(&format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1000", segment(room)));
    let chunk = page["chunk"].as_array().expect("messages have a chunk").iter().rev();
    chunk
        .filter(|e| e["type"] == "m.room.message")
        .filter_map(|e| e["content"]["body"].as_str().map(str::to_owned))
        .collect()
}

/// A server with its user bob in a room of the peer's.
pub fn bob_at(peer: &Peer) -> (TestServer, TestUser, FakeRoom) {
    let server = TestServer::start();
    let bob = server.user("bob");
    let room = FakeRoom::joined_by(peer, "11", &bob);
    (server, bob, room)
}

/// All ephemeral messages of this type that the peer was sent.
pub fn edus_at(peer: &Peer, edu_type: &str) -> Vec<Value> {
    let asked = peer.asked("/send/");
    let edus = asked.iter().flat_map(|a| a.body["edus"].as_array().cloned().unwrap_or_default());
    edus.filter(|e| e["edu_type"] == edu_type).map(|e| e["content"].clone()).collect()
}
