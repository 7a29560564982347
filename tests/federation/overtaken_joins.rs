//! What meets a join that a server of the room has taken and whose answer is still on its way: the user leaves, is kicked,
//! banned or invited anew, in every order. The room's server is scripted and answers the join when everything else has
//! happened, so that nothing here is up to luck.

use doorstep::TestServer;
use doorstep::protocol::remote_membership::RemoteState;
use doorstep::protocol::{Pdu, UserId};
use doorstep::testing::TestUser;
use serde_json::{Value, json};

use crate::common::client::{join, room_path};
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum News {
    /// The user leaves.
    Leave,
    /// The room's server tells that it kicked them. Like the next, this follows upon what they are in the room.
    Kick,
    Ban,
    /// It invites them.
    Invite,
    /// It tells of a kick that it made when it did not have the join yet.
    KickAtOnce,
    BanAtOnce,
}

use News::{Ban, BanAtOnce, Invite, Kick, KickAtOnce, Leave};

const ALL: [News; 6] = [Leave, Kick, Ban, Invite, KickAtOnce, BanAtOnce];

/// The user in the room, as the room's server has it, and whether they asked to be out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Standing {
    membership: &'static str,
    has_left: bool,
}

const JOINED: Standing = Standing { membership: "join", has_left: false };

impl Standing {
    /// None: it cannot happen now.
    fn after(self, news: News) -> Option<Self> {
        let becomes = |membership| Self { membership, ..self };
        match (news, self.membership) {
            (Leave, _) => (!self.has_left).then_some(Self { has_left: true, ..self }),
            (Kick, "join" | "invite") => Some(becomes("leave")),
            (Ban, "join" | "invite" | "leave") => Some(becomes("ban")),
            (Invite, "leave") => Some(Self { membership: "invite", has_left: false }),
            (KickAtOnce, "join") => Some(becomes("leave")),
            (BanAtOnce, "join") => Some(becomes("ban")),
            _ => None,
        }
    }

    /// What the user's clients are to show in the end.
    fn shown(self) -> Option<&'static str> {
        Some(self.membership).filter(|membership| !self.has_left && matches!(*membership, "join" | "invite"))
    }

    /// Whether the room has to be told that they left.
    fn is_to_be_told(self) -> bool {
        self.has_left && matches!(self.membership, "join" | "invite")
    }
}

/// Everything that can happen, one after the other, up to so many.
fn sequences(longest: usize) -> Vec<(Vec<News>, Standing)> {
    let mut all = vec![(Vec::new(), JOINED)];
    let mut next = 0;
    while let Some((before, standing)) = all.get(next).cloned() {
        next += 1;
        if before.len() == longest {
            continue;
        }
        for news in ALL {
            if let Some(after) = standing.after(news) {
                all.push(([before.clone(), vec![news]].concat(), after));
            }
        }
    }
    all
}

struct Scene<'s> {
    server: &'s TestServer,
    peer: &'s Peer,
    bob: &'s TestUser,
    room: FakeRoom,
    /// The removals that were made when the room did not have the join yet.
    at_once: [Pdu; 2],
}

impl Scene<'_> {
    fn section(&self) -> Option<&'static str> {
        let rooms = self.bob.initial_sync()["rooms"].clone();
        ["join", "invite", "knock"]
            .into_iter()
            .find(|section| rooms[section].get(self.room.id.as_str()).is_some())
    }

    /// The room's server tells of a removal.
    fn tell(&mut self, removal: Pdu) {
        let id = removal.event_id().clone();
        let (status, said) = self.peer.send_transaction(self.server.name(), id.as_str(), &[&removal]);
        // What is said of the event is up to what this server knows of the one before.
        assert_eq!(status, 200, "{said}");
        self.room.take(removal);
    }

    fn remove(&mut self, membership: &str) {
        let removal = self.room.membership(self.peer, &self.room.creator, self.bob.id(), membership);
        self.tell(removal);
    }

    /// What the room's server does; that the user leaves is up to the caller.
    fn happens(&mut self, news: News) {
        match news {
            Leave => {}
            Kick => self.remove("leave"),
            Ban => self.remove("ban"),
            KickAtOnce => self.tell(self.at_once[0].clone()),
            BanAtOnce => self.tell(self.at_once[1].clone()),
            Invite => drop(self.room.invite(self.peer, self.server.name(), self.bob.id())),
        }
    }

    /// Whether the user has asked to leave, of which nobody was told yet.
    fn is_leaving(&self) -> bool {
        let (room, user) = (&self.room.id, UserId::parse(self.bob.id()).expect("a user id"));
        let row = self.server.homeserver().store.read(|db| db.remote_membership(room, &user));
        row.expect("a database").is_some_and(|row| row.state == RemoteState::Leaving)
    }

    /// Whether the room's server was told that the user has left.
    fn was_told(&self) -> bool {
        let is_leave = |event: &Value| {
            event["sender"] == self.bob.id()
                && event["state_key"] == self.bob.id()
                && event["content"]["membership"] == "leave"
        };
        let sent = self.peer.asked("/send/");
        let mut sent = sent.iter().filter_map(|asked| asked.body["pdus"].as_array()).flatten();
        sent.any(is_leave) || self.peer.asked("send_leave").iter().any(|asked| is_leave(&asked.body))
    }

    fn is_resident(&self) -> bool {
        let room = self.server.homeserver().store.read(|db| db.resident_room(&self.room.id));
        room.expect("a database").is_some()
    }
}

/// What bob's join is answered, and the scene when all of this has happened before that.
fn meet<'s>(
    (server, peer, bob): (&'s TestServer, &'s Peer, &'s TestUser),
    (version, join_rule): (&str, &str),
    sequence: &[News],
    end: Standing,
) -> (Scene<'s>, (u16, Value)) {
    let mut room = FakeRoom::new(peer, version, join_rule);
    room.invite(peer, server.name(), bob.id());
    bob.wait_for_room("invite", room.id.as_str());
    let at_once = ["leave", "ban"].map(|what| room.membership(peer, &room.creator, bob.id(), what));
    let gate = Gate::default();
    peer.let_in(&room, bob.id());
    peer.answer_behind(&gate, "send_join", 200, room.join_answer());
    let mut scene = Scene { server, peer, bob, room, at_once };
    let id = scene.room.id.to_string();
    let answer = std::thread::scope(|scope| {
        let joining = scope.spawn(|| join(bob, &id, None));
        let join = scene.room.read(&peer.wait_for("send_join").body);
        scene.room.take(join);
        let mut leaving = Vec::new();
        for news in sequence {
            scene.happens(*news);
            if *news == Leave {
                let path = room_path(&id, "leave");
                let left = scope.spawn(move || bob.request("POST", &path, Some(json!({}))));
                wait_until("the leave is taken down", || left.is_finished() || scene.is_leaving());
                leaving.push(left);
            }
        }
        match end.membership {
            "join" | "invite" => peer.let_leave(&scene.room, bob.id()),
            _ => {
                peer.answer_json("make_leave", 403, json!({ "errcode": "M_FORBIDDEN", "error": "not in it" }))
            }
        }
        gate.open();
        for left in leaving {
            let (status, said) = left.join().expect("no panic");
            assert_eq!(status, 200, "{sequence:?}: {said}");
        }
        joining.join().expect("no panic")
    });
    (scene, answer)
}

#[test]
fn whatever_meets_a_join_that_was_taken_and_not_answered_yet_the_user_is_what_the_room_has_them_as() {
    let server = TestServer::start();
    let sequences = sequences(4);
    assert!(sequences.len() > 40, "{}", sequences.len());
    for (number, (sequence, end)) in sequences.iter().enumerate() {
        let (peer, bob) = (Peer::start(), server.user(&format!("bob{number}")));
        let version = ["11", "12", "10"][number % 3];
        let (scene, (status, said)) = meet((&server, &peer, &bob), (version, "invite"), sequence, *end);
        let expected = if sequence.is_empty() { 200..=200 } else { 200..=499 };
        assert!(expected.contains(&status), "{sequence:?}: {status} {said}");
        let shown = end.shown();
        wait_until(&format!("bob is {shown:?} after {sequence:?}"), || {
            scene.section() == shown
                && scene.is_resident() == (shown == Some("join"))
                && (scene.was_told() || !end.is_to_be_told())
        });
    }
}

#[test]
fn who_left_is_out_although_the_room_may_put_a_removal_that_met_the_join_before_it() {
    let server = TestServer::start();
    for (number, sequence) in
        [[Leave, KickAtOnce], [KickAtOnce, Leave], [Leave, BanAtOnce], [BanAtOnce, Leave]]
            .into_iter()
            .enumerate()
    {
        let (peer, bob) = (Peer::start(), server.user(&format!("bob{number}")));
        // Whoever may join without an invite may also do so after the kick, if that is the order of the two.
        let stands = Standing { has_left: true, ..JOINED };
        let (scene, (status, said)) = meet((&server, &peer, &bob), ("11", "public"), &sequence, stands);
        assert!(status < 500, "{sequence:?}: {status} {said}");
        wait_until("the room is told of the leave", || scene.was_told());
        wait_until("bob is out", || scene.section().is_none() && !scene.is_resident());
    }
}
