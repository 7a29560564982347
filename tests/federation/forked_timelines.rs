//! What the timeline of /sync has where a value of the state counts again, or comes by a fork that its reader may not see.

use crate::common::client::sync;
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::Scene;
use doorstep::TestServer;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::TestUser;
use serde_json::json;

/// A room with Eve, of another server, who was there before ours came.
struct Room {
    scene: Scene,
    bob: TestUser,
    eve: UserId,
    id: String,
}

impl Room {
    /// Alice is in it.
    fn new(visibility: &str) -> Self {
        let (server, peer) = (TestServer::start(), Peer::start());
        let (alice, bob) = (server.user("alice"), server.user("bob"));
        peer.take_transactions();
        let mut room = FakeRoom::new(&peer, "11", "public");
        let (creator, content) = (room.creator.clone(), json!({ "history_visibility": visibility }));
        room.add(&peer, "m.room.history_visibility", "", &creator, content);
        let eve = peer.user("eve");
        room.add(&peer, "m.room.member", eve.as_str(), &eve, json!({ "membership": "join" }));
        room.join(&peer, &alice);
        let id = room.id.to_string();
        Self { scene: Scene::of(server, alice, peer, room), bob, eve, id }
    }

    /// Eve's name, in an event that follows another and says that it is of this time.
    fn name(&mut self, prev: &EventId, text: &str, ts: i64) -> Pdu {
        let (eve, scene) = (&self.eve, &mut self.scene);
        let content = json!({ "membership": "join", "displayname": text });
        let event = scene.event(&[prev], eve, ("m.room.member", Some(eve.as_str())), content);
        let mut event = event.to_object();
        event.retain(|key, _| !matches!(key.as_str(), "hashes" | "signatures" | "event_id"));
        event.insert("origin_server_ts".into(), ts.into());
        scene.peer.sign(event, scene.room.version)
    }

    fn name_now(&self) -> Option<String> {
        let content = self.scene.state_content("m.room.member", self.eve.as_str())?;
        content["displayname"].as_str().map(str::to_owned)
    }

    /// Eve sends a message that follows another event.
    fn says(&mut self, prev: &EventId, text: &str) {
        let said = self.scene.message_after(&[prev], &self.eve, text);
        self.scene.send(text, &[&said]);
    }

    /// Alice sends a message.
    fn alice_says(&self, text: &str) -> EventId {
        EventId::parse(&self.scene.alice.send(&self.id, text)).expect("an event id")
    }

    /// The messages of a user's timeline.
    fn told(&self, user: &TestUser, query: &str) -> Vec<String> {
        let timeline = sync(user, query)["rooms"]["join"][&self.id]["timeline"].clone();
        let bodies = timeline["events"].as_array().expect("events").iter();
        bodies.filter_map(|event| event["content"]["body"].as_str().map(str::to_owned)).collect()
    }
}

fn since(user: &TestUser) -> String {
    format!("since={}", sync(user, "")["next_batch"].as_str().expect("next_batch"))
}

#[test]
fn a_name_from_before_the_reader_came_that_counts_again_takes_nothing_from_their_timeline() {
    for visibility in ["shared", "joined"] {
        let mut room = Room::new(visibility);
        if visibility == "joined" {
            // The name is in the timeline, and hidden from who comes later; else it came with the room.
            let start = room.scene.last.clone();
            let name = room.name(&start, "mine", now_ms());
            room.scene.send("name", &[&name]);
        }
        room.bob.join(&room.id);
        let since = since(&room.bob);
        let (before, [_, two, three]) =
            (room.name_now(), ["one", "two", "three"].map(|text| room.alice_says(text)));
        let old = room.name(&three, "old", 1);
        room.scene.send("old", &[&old]);
        assert_eq!(room.name_now().as_deref(), Some("old"));
        room.says(&two, "beside");
        assert_eq!(room.name_now(), before, "the older one has lost");
        let all = ["one", "two", "three", "beside"].map(str::to_owned);
        assert_eq!(room.told(&room.bob, &since), all, "{visibility}");
        assert!(room.told(&room.bob, "").ends_with(&all), "{visibility}");
    }
}

#[test]
fn a_name_on_a_fork_from_before_the_reader_came_takes_nothing_from_their_timeline() {
    let mut room = Room::new("joined");
    let start = room.scene.last.clone();
    room.bob.join(&room.id);
    let since = since(&room.bob);
    let said = ["one", "two", "three"].map(|text| room.alice_says(text));
    let shown = room.name(&said[2], "shown", now_ms());
    room.scene.send("shown", &[&shown]);
    let hidden = room.name(&start, "hidden", now_ms() + 1000);
    room.scene.send("hidden", &[&hidden]);
    assert_eq!(room.name_now().as_deref(), Some("hidden"));
    room.says(shown.event_id(), "after");
    let all = ["one", "two", "three", "after"].map(str::to_owned);
    assert_eq!(room.told(&room.bob, &since), all);
    assert!(room.told(&room.bob, "").ends_with(&all));
}
