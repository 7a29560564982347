//! Who was removed by another server's user, as the room confirms, and leaves all the same: the server that took their knock, or
//! invited them, need not have heard of the removal, and is told; in the background, like any leave.

use std::time::{Duration, Instant};

use crate::common::ProcessServer;
use crate::common::client::{filter, join, knock, post, room_path, sync};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A room with its host, another server in it, and one whose moderator has removed bob.
struct Scene {
    host: Peer,
    other: Peer,
    moderator: Peer,
    room: FakeRoom,
}

impl Scene {
    /// Bob has knocked through the host, and `section` is what he is to the room.
    fn new(server: &str, bob: &TestUser, section: &str) -> Scene {
        let (host, other, moderator) = (Peer::start(), Peer::start(), Peer::start());
        let mut room = FakeRoom::new(&host, "11", "knock");
        let by = moderator.user("mod");
        room.add(&moderator, "m.room.member", by.as_str(), &by, json!({ "membership": "join" }));
        host.let_knock(&room, bob.id());
        let via = [&host, &other].map(|peer| format!("via={}", segment(peer.name().as_str()))).join("&");
        let (status, said) = post(bob, &format!("knock/{}?{via}", segment(room.id.as_str())), json!({}));
        assert_eq!(status, 200, "{said}");
        room.take(room.read(&host.wait_for("send_knock").body));
        if section == "invite" {
            room.invite(&host, server, bob.id());
        }
        bob.wait_for_room(section, room.id.as_str());
        Scene { host, other, moderator, room }
    }

    fn id(&self) -> &str {
        self.room.id.as_str()
    }

    /// The moderator removes bob, and tells us by way of `from`.
    fn remove(&self, server: &str, bob: &TestUser, membership: &str, from: &Peer) {
        let content = json!({ "membership": membership, "reason": "no room for you" });
        let by = self.moderator.user("mod");
        let removal = self.room.draft(&self.moderator, "m.room.member", bob.id(), &by, content);
        let (status, said) = from.send_transaction(server, "removal", &[&removal]);
        assert_eq!(status, 200, "{said}");
        assert_eq!(said["pdus"][removal.event_id().as_str()], json!({}));
    }

    /// The host is away while bob is removed, which the other server confirms.
    fn remove_unheard(&self, server: &str, bob: &TestUser, membership: &str) {
        self.host.answer_json("make_leave", 502, json!({}));
        self.other.answer_json("make_leave", 403, forbidden());
        self.remove(server, bob, membership, &self.moderator);
        bob.wait_for_room("leave", self.id());
        assert!(!self.other.asked("make_leave").is_empty());
    }

    /// The host takes connections, and says nothing until the gate is open; then it has not heard of the removal.
    fn fall_silent(&self, bob: &TestUser) -> Gate {
        let gate = Gate::default();
        self.host.let_leave(&self.room, bob.id());
        self.host.answer_behind(&gate, "make_leave", 200, self.room.template(bob.id(), "leave"));
        gate
    }

    /// Bob leaves while the host is silent, which keeps nobody waiting for long.
    fn leave_in_silence(&self, bob: &TestUser) -> Gate {
        let (gate, asked) = (self.fall_silent(bob), self.host.asked("make_leave").len());
        let began = Instant::now();
        bob.leave(self.id());
        assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
        wait_until("the host is asked", || self.host.asked("make_leave").len() > asked);
        assert!(self.host.asked("send_leave").is_empty());
        gate
    }

    /// How often anybody was asked for bob's leave.
    fn asked(&self) -> usize {
        [&self.host, &self.other, &self.moderator].iter().map(|peer| peer.asked("_leave").len()).sum()
    }
}

fn forbidden() -> Value {
    json!({ "errcode": "M_FORBIDDEN", "error": "nothing to leave" })
}

/// The room's section for who asks for what they left, too; only of what is new, with a token.
fn section(user: &TestUser, room: &str, since: Option<&str>) -> Option<&'static str> {
    let with_left = filter(&json!({ "room": { "include_leave": true } }));
    let since = since.map_or_else(String::new, |token| format!("&since={}", segment(token)));
    let rooms = sync(user, &format!("{with_left}{since}"))["rooms"].clone();
    ["join", "invite", "knock", "leave"].into_iter().find(|name| rooms[name].get(room).is_some())
}

#[test]
fn who_leaves_where_a_silent_host_has_not_heard_of_the_removal_waits_for_it_a_moment_only() {
    let server = TestServer::start();
    for (number, (was, membership)) in
        [("knock", "leave"), ("invite", "leave"), ("knock", "ban"), ("invite", "ban")].into_iter().enumerate()
    {
        let bob = server.user(&format!("bob{number}"));
        let scene = Scene::new(server.name(), &bob, was);
        scene.remove_unheard(server.name(), &bob, membership);
        let since = sync(&bob, "")["next_batch"].as_str().expect("a token").to_owned();
        let gate = scene.leave_in_silence(&bob);
        // Again and again it is the same leave.
        bob.leave(scene.id());
        gate.open();
        let leave = scene.host.wait_for("send_leave").body;
        assert_eq!((&leave["sender"], &leave["content"]["membership"]), (&json!(bob.id()), &json!("leave")));
        assert!(
            !leave.to_string().contains("no room for you"),
            "the moderator's reason is not bob's: {leave}"
        );
        // His clients know it since he was removed.
        assert_eq!(section(&bob, scene.id(), Some(&since)), None);
        assert_eq!(section(&bob, scene.id(), None), Some("leave"));
        wait_until("the leave is told, and nothing is owed", || {
            let row = server.homeserver().store.read(|db| {
                db.remote_membership(&scene.room.id, &doorstep::protocol::UserId::parse(bob.id())?)
            });
            row.expect("it reads").expect("a row").state.as_str() == "closed"
        });
        let told = scene.asked();
        bob.leave(scene.id());
        server.advance(Duration::from_secs(3600));
        assert_eq!((scene.asked(), scene.host.asked("send_leave").len()), (told, 1));
        assert_eq!(section(&bob, scene.id(), Some(&since)), None);
    }
}

#[test]
fn a_host_that_is_away_hears_of_the_leave_when_it_is_back() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let scene = Scene::new(server.name(), &bob, "invite");
    scene.remove_unheard(server.name(), &bob, "leave");
    bob.leave(scene.id());
    scene.host.wait_for("make_leave");
    assert!(scene.host.asked("send_leave").is_empty());
    scene.host.let_leave(&scene.room, bob.id());
    wait_until("it is told", || {
        server.advance(Duration::from_secs(60));
        !scene.host.asked("send_leave").is_empty()
    });
}

#[test]
fn a_leave_that_a_silent_host_is_to_hear_of_survives_a_kill() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let scene = Scene::new(server.name(), &bob, "knock");
    scene.remove_unheard(server.name(), &bob, "leave");
    let gate = scene.leave_in_silence(&bob);
    server.kill();
    gate.open();
    assert!(scene.host.asked("send_leave").is_empty());
    server.resume();
    scene.host.wait_for("send_leave");
}

#[test]
fn a_host_that_knows_of_the_removal_is_not_asked_and_nor_is_anybody_else() {
    for (was, how) in [
        ("knock", "made"),
        ("invite", "made"),
        ("knock", "passed on"),
        ("invite", "passed on"),
        ("knock", "confirmed"),
        ("invite", "confirmed"),
    ] {
        let server = TestServer::start();
        let bob = server.user("bob");
        let scene = Scene::new(server.name(), &bob, was);
        [&scene.host, &scene.other].iter().for_each(|peer| peer.answer_json("make_leave", 403, forbidden()));
        match how {
            "made" => {
                let removal = scene.room.membership(&scene.host, &scene.room.creator, bob.id(), "leave");
                assert_eq!(scene.host.send_transaction(server.name(), "1", &[&removal]).0, 200);
            }
            "passed on" => scene.remove(server.name(), &bob, "leave", &scene.host),
            _ => scene.remove(server.name(), &bob, "leave", &scene.moderator),
        }
        bob.wait_for_room("leave", scene.id());
        let asked = scene.asked();
        bob.leave(scene.id());
        server.advance(Duration::from_secs(3600));
        assert_eq!(scene.asked(), asked, "{was}, {how}");
    }
}

#[test]
fn who_was_removed_and_leaves_may_forget_the_room_and_the_host_is_told_all_the_same() {
    let server = TestServer::start();
    let bob = server.user("bob");
    let scene = Scene::new(server.name(), &bob, "knock");
    scene.remove_unheard(server.name(), &bob, "leave");
    let gate = scene.leave_in_silence(&bob);
    let (status, said) = bob.request("POST", &room_path(scene.id(), "forget"), Some(json!({})));
    assert_eq!(status, 200, "{said}");
    assert_eq!(section(&bob, scene.id(), None), None);
    gate.open();
    scene.host.wait_for("send_leave");
    assert_eq!(section(&bob, scene.id(), None), None);
}

#[test]
fn a_knock_a_join_and_an_invite_are_worth_as_much_as_ever_beside_a_leave_that_the_host_is_to_hear_of() {
    for what in ["knock", "join", "invite"] {
        let server = TestServer::start();
        let bob = server.user("bob");
        let scene = Scene::new(server.name(), &bob, "knock");
        scene.remove_unheard(server.name(), &bob, "leave");
        bob.leave(scene.id());
        let mut room = scene.room.clone();
        match what {
            "knock" => {
                assert_eq!(knock(&bob, scene.id(), scene.host.name().as_str()).0, 200);
                bob.wait_for_room("knock", scene.id());
            }
            "join" => {
                let knock = room.state[&("m.room.member".to_owned(), bob.id().to_owned())].clone();
                room.take(room.membership(&scene.host, &room.creator, bob.id(), "invite"));
                scene.host.let_in(&room, bob.id());
                let mut answer = room.join_answer();
                answer["auth_chain"].as_array_mut().expect("events").push(Value::Object(knock.to_object()));
                scene.host.answer_json("send_join", 200, answer);
                let (status, said) = join(&bob, scene.id(), Some(scene.host.name().as_str()));
                assert_eq!(status, 200, "{said}");
                bob.wait_for_room("join", scene.id());
            }
            _ => {
                room.invite(&scene.host, server.name(), bob.id());
                bob.wait_for_room("invite", scene.id());
            }
        }
        // What was to be told has been overtaken.
        scene.host.let_leave(&room, bob.id());
        server.advance(Duration::from_secs(3600));
        assert!(scene.host.asked("send_leave").is_empty(), "{what}");
    }
}
