//! Rooms as one server shows them to who joins by it: what is believed on that server's word alone. Of a join that fails it
//! counts for nothing, and of one that does not for as long as it lasts.

use std::sync::Arc;
use std::time::Duration;

use crate::common::client::{join, room_path, slide};
use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{bodies, stored};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::{DeletionStage, RoomDeletion, Status};
use doorstep::protocol::handshake::sign_new_event;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::{EventId, Pdu, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// A room with a moderator whose server is gone, and an ordinary member, who would like to be more.
struct Stage {
    server: TestServer,
    bob: TestUser,
    /// The room's own server.
    host: Peer,
    /// The moderator's, which says nothing of its keys any more.
    gone: Peer,
    /// The ordinary member's.
    evil: Peer,
    room: FakeRoom,
    /// The room as the ordinary member would like it: what the moderator never sent is part of its state.
    lie: FakeRoom,
    forged: Pdu,
    /// The power levels that the room had before.
    past: Vec<Pdu>,
}

fn ids(room: &FakeRoom) -> Vec<&str> {
    room.state.values().map(|event| event.event_id().as_str()).collect()
}

fn state(user: &TestUser, room: &FakeRoom, event_type: &str) -> Value {
    user.get(&room_path(room.id.as_str(), &format!("state/{event_type}/")))
}

/// Has a server say that this was the state before any event, and give each of its events, and nothing else.
fn show_as_past(evil: &Peer, shown: &FakeRoom, past: &[Pdu]) {
    let events: Vec<Pdu> = shown.state.values().chain(past).cloned().collect();
    evil.serve_events(&events, 50);
    evil.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    let all: Vec<Value> = events.iter().map(|event| Value::Object(event.to_object())).collect();
    evil.answer_json("/event_auth/", 200, json!({ "auth_chain": all }));
    evil.answer_json("/state/", 200, json!({ "pdus": all, "auth_chain": all }));
    evil.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids(shown), "auth_chain_ids": ids(shown) }));
}

/// The answer to a join, with what the room had before.
fn answer(shown: &FakeRoom, past: &[Pdu]) -> Value {
    let mut answer = shown.join_answer();
    let past = past.iter().map(|event| Value::Object(event.to_object()));
    answer["auth_chain"].as_array_mut().expect("events").extend(past);
    answer
}

/// With two events for one place in the state, of which the last step of a join takes none.
fn spoilt(evil: &Peer, sender: &UserId, shown: &FakeRoom, mut answer: Value) -> Value {
    for n in 1..=2 {
        let event = shown.draft(evil, "org.example.two", "", sender, json!({ "n": n }));
        answer["state"].as_array_mut().expect("events").push(Value::Object(event.to_object()));
    }
    answer
}

fn message(evil: &Peer, shown: &FakeRoom, sender: &UserId, prev: &str) -> Pdu {
    let mut event = shown.unsigned("m.room.message", "", sender, json!({ "body": "of eve" }));
    event.remove("state_key");
    event.insert("prev_events".into(), json!([prev]));
    event.insert("depth".into(), json!(70));
    evil.sign(event, shown.version)
}

/// Whether an event counts here.
fn stored_accepted(server: &TestServer, id: &EventId) -> bool {
    stored(server, id).is_some_and(|event| event.status == Status::Accepted)
}

fn nowhere() -> String {
    format!("${}", "Z".repeat(43))
}

impl Stage {
    fn new(version: &str) -> Stage {
        let (host, gone, evil) = (Peer::start(), Peer::start(), Peer::start());
        let mut room = FakeRoom::new(&host, version, "public");
        let (moderator, eve) = (gone.user("moderator"), evil.user("eve"));
        for (peer, user) in [(&gone, &moderator), (&evil, &eve)] {
            let join = room.membership(peer, user, user.as_str(), "join");
            room.take(join);
        }
        let levels = ("m.room.power_levels".to_owned(), String::new());
        let first = room.state[&levels].clone();
        let mut users = first.content()["users"].clone();
        users[moderator.as_str()] = 100.into();
        let creator = room.creator.clone();
        room.add(&host, "m.room.power_levels", "", &creator, json!({ "users": users.clone() }));
        gone.hide_keys(true);
        gone.take_transactions();
        host.vouch_for(gone.name(), &[gone.signing_key()]);
        // The key is made up.
        let ghost = SigningKey::generate([9; 32], "ghost");
        users[eve.as_str()] = 99.into();
        let wish = room.unsigned("m.room.power_levels", "", &moderator, json!({ "users": users }));
        let forged = sign_new_event(wish, gone.name(), &ghost, room.version).expect("an event");
        let mut lie = room.clone();
        lie.take(forged.clone());
        let past = vec![first, room.state[&levels].clone()];
        evil.vouch_for(gone.name(), &[&ghost, gone.signing_key()]);
        let server = TestServer::start();
        let bob = server.user("bob");
        host.let_in(&room, bob.id());
        host.answer_json("send_join", 200, answer(&room, &past));
        evil.answer_json("make_join", 200, lie.template(bob.id(), "join"));
        evil.take_transactions();
        Stage { server, bob, host, gone, evil, room, lie, forged, past }
    }

    fn eve(&self) -> UserId {
        self.evil.user("eve")
    }

    /// What eve may do in the room as our server knows it.
    fn power_of_eve(&self) -> Value {
        state(&self.bob, &self.room, "m.room.power_levels")["users"][self.eve().as_str()].clone()
    }

    /// Eve says something with a past of her own.
    fn attack(&self, txn: &str, prev: &str) {
        show_as_past(&self.evil, &self.lie, &self.past);
        let said = message(&self.evil, &self.lie, &self.eve(), prev);
        let (status, answer) = self.evil.send_transaction(self.server.name(), txn, &[&said]);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(self.power_of_eve(), Value::Null, "{answer}");
        assert!(!stored_accepted(&self.server, self.forged.event_id()));
    }
}

#[test]
fn what_a_server_shows_in_a_join_that_fails_counts_for_nothing_later() {
    for version in ["10", "12"] {
        let stage = Stage::new(version);
        let shown = answer(&stage.lie, &stage.past);
        stage.evil.answer_json("send_join", 200, spoilt(&stage.evil, &stage.eve(), &stage.lie, shown));
        let via = [stage.evil.name().as_str(), stage.host.name().as_str()];
        stage.bob.join_via(stage.room.id.as_str(), &via);
        assert!(!stage.evil.asked("send_join").is_empty() && !stage.host.asked("send_join").is_empty());
        assert_eq!(stage.power_of_eve(), Value::Null);
        assert!(stored(&stage.server, stage.forged.event_id()).is_none(), "{version}: it is nobody's event");
        stage.attack("t1", &nowhere());
    }
}

#[test]
fn what_a_server_showed_of_a_room_that_was_left_counts_no_more_once_another_one_shows_it() {
    for version in ["11", "12"] {
        let stage = Stage::new(version);
        stage.evil.answer_json("send_join", 200, answer(&stage.lie, &stage.past));
        stage.bob.join_via(stage.room.id.as_str(), &[stage.evil.name().as_str()]);
        assert_eq!(stage.power_of_eve(), json!(99), "whoever lets us in shows what they like");
        let join = stage.lie.read(&stage.evil.wait_for("send_join").body);
        let said = message(&stage.evil, &stage.lie, &stage.eve(), join.event_id().as_str());
        let (status, answer) = stage.evil.send_transaction(stage.server.name(), "t0", &[&said]);
        assert_eq!((status, &answer["pdus"][said.event_id().as_str()]), (200, &json!({})), "{answer}");
        stage.bob.leave(stage.room.id.as_str());

        stage.bob.join_via(stage.room.id.as_str(), &[stage.host.name().as_str()]);
        assert_eq!(stage.power_of_eve(), Value::Null, "{version}");
        assert_eq!(stage.bob.membership_of(stage.room.id.as_str(), stage.bob.id()).as_deref(), Some("join"));
        stage.attack("t1", &nowhere());
        stage.attack("t2", said.event_id().as_str());
        // Of the moderator there is the host's word, which holds.
        let moderator = stage.gone.user("moderator");
        let there = stage.bob.membership_of(stage.room.id.as_str(), moderator.as_str());
        assert_eq!(there.as_deref(), Some("join"));
    }
}

#[test]
fn a_room_that_is_left_and_joined_again_by_a_server_that_shows_the_same_keeps_its_past() {
    let stage = Stage::new("11");
    let room = stage.room.id.as_str();
    stage.bob.join_via(room, &[stage.host.name().as_str()]);
    let before = stage.bob.send(room, "before");
    stage.bob.leave(room);
    stage.bob.join_via(room, &[stage.host.name().as_str()]);
    let path = room_path(room, &format!("event/{}", segment(&before)));
    assert_eq!(stage.bob.get(&path)["content"]["body"], "before");
}

/// Has the room's own server show the room with one more event of its state.
fn show(stage: &mut Stage, (kind, by): (&str, &UserId), content: Value) {
    let signer = if *by == stage.room.creator { &stage.host } else { &stage.gone };
    stage.room.add(signer, kind, "", by, content);
    stage.host.let_in(&stage.room, stage.bob.id());
    stage.host.answer_json("send_join", 200, answer(&stage.room, &stage.past));
}

/// What a user keeps of a room for themselves: a tag, other account data, up to where they have read, a thread.
fn keep_own(user: &TestUser, room: &str, root: &str) {
    let own = format!("/_matrix/client/v3/user/{}/rooms/{}", segment(user.id()), segment(room));
    user.put(&format!("{own}/tags/m.favourite"), json!({ "order": 0.1 }));
    user.put(&format!("{own}/account_data/com.example.notes"), json!({ "x": 1 }));
    user.post(&room_path(room, "read_markers"), json!({ "m.fully_read": root, "m.read": root }));
    let thread = format!("{}/thread/{}", segment(room), segment(root));
    user.put(&format!("/_matrix/client/unstable/io.element.msc4306/rooms/{thread}/subscription"), json!({}));
}

/// Whether all of that is there still.
#[track_caller]
fn assert_own_is_kept(user: &TestUser, room: &str, root: &str) {
    let own = format!("/_matrix/client/v3/user/{}/rooms/{}", segment(user.id()), segment(room));
    assert_eq!(user.get(&format!("{own}/tags"))["tags"]["m.favourite"]["order"], 0.1);
    assert_eq!(user.get(&format!("{own}/account_data/com.example.notes"))["x"], 1);
    assert_eq!(user.get(&format!("{own}/account_data/m.fully_read"))["event_id"], *root);
    let threads = json!({ "extensions": { "io.element.msc4308.thread_subscriptions": { "enabled": true } } });
    let told = slide(user, None, &threads)["extensions"]["io.element.msc4308.thread_subscriptions"].clone();
    assert!(told["subscribed"][room][root].is_object(), "{told}");
}

#[test]
fn what_only_a_server_vouched_for_is_certain_once_its_own_server_is_back_and_goes_with_the_past_if_it_is_not()
{
    for is_back in [true, false] {
        let mut stage = Stage::new("11");
        let (moderator, creator) = (stage.gone.user("moderator"), stage.room.creator.clone());
        let first = stage.room.state[&("m.room.join_rules".to_owned(), String::new())].clone();
        stage.past.push(first);
        let rules = |by: &str| json!({ "join_rule": "public", "by": by });
        show(&mut stage, ("m.room.join_rules", &moderator), rules("who is gone"));
        let room = stage.room.id.to_string();
        stage.bob.join_via(&room, &[stage.host.name().as_str()]);
        assert_eq!(state(&stage.bob, &stage.room, "m.room.join_rules")["by"], "who is gone");
        let before = stage.bob.send(&room, "before");
        keep_own(&stage.bob, &room, &before);
        stage.bob.leave(&room);
        // Nothing of the room's state rests on those rules any more.
        show(&mut stage, ("m.room.join_rules", &creator), rules("who is here"));
        stage.gone.hide_keys(!is_back);
        // It is not asked again at once.
        stage.server.advance(Duration::from_secs(24 * 3600));
        stage.bob.join_via(&room, &[stage.host.name().as_str()]);
        assert_eq!(state(&stage.bob, &stage.room, "m.room.join_rules")["by"], "who is here");
        let path = room_path(&room, &format!("event/{}", segment(&before)));
        assert_eq!(stage.bob.request("GET", &path, None).0, if is_back { 200 } else { 404 });
        assert_own_is_kept(&stage.bob, &room, &before);
    }
}

#[test]
fn a_topic_of_a_server_that_is_gone_which_was_changed_since_takes_nothing_of_the_past_with_it() {
    let mut stage = Stage::new("11");
    let (moderator, creator) = (stage.gone.user("moderator"), stage.room.creator.clone());
    show(&mut stage, ("m.room.topic", &moderator), json!({ "topic": "of one who is gone" }));
    let room = stage.room.id.to_string();
    let carol = stage.server.user("carol");
    stage.bob.join_via(&room, &[stage.host.name().as_str()]);
    assert_eq!(state(&stage.bob, &stage.room, "m.room.topic")["topic"], "of one who is gone");
    carol.join(&room);
    let before = stage.bob.send(&room, "before");
    let path = room_path(&room, &format!("event/{}", segment(&before)));
    wait_until("carol reads it", || carol.request("GET", &path, None).0 == 200);
    keep_own(&stage.bob, &room, &before);
    carol.leave(&room);
    stage.bob.leave(&room);
    show(&mut stage, ("m.room.topic", &creator), json!({ "topic": "of one who is here" }));
    stage.bob.join_via(&room, &[stage.host.name().as_str()]);
    assert_eq!(state(&stage.bob, &stage.room, "m.room.topic")["topic"], "of one who is here");
    assert_own_is_kept(&stage.bob, &room, &before);
    for reader in [&stage.bob, &carol] {
        assert_eq!(reader.get(&path)["content"]["body"], "before", "{}", reader.id());
    }
}

#[test]
fn a_forged_topic_that_is_shown_no_more_is_not_the_rooms_whatever_leads_back_to_it() {
    for version in ["3", "11", "12"] {
        let mut stage = Stage::new(version);
        let (moderator, room) = (stage.gone.user("moderator"), stage.room.id.to_string());
        // Nobody has more power by this lie: nothing else rests on it.
        let ghost = SigningKey::generate([9; 32], "ghost");
        stage.lie = stage.room.clone();
        let wish = stage.lie.unsigned("m.room.topic", "", &moderator, json!({ "topic": "forged" }));
        stage.forged = sign_new_event(wish, stage.gone.name(), &ghost, stage.room.version).expect("an event");
        stage.lie.take(stage.forged.clone());
        stage.evil.answer_json("make_join", 200, stage.lie.template(stage.bob.id(), "join"));
        stage.evil.answer_json("send_join", 200, answer(&stage.lie, &stage.past));
        stage.bob.join_via(&room, &[stage.evil.name().as_str()]);
        assert_eq!(state(&stage.bob, &stage.room, "m.room.topic")["topic"], "forged", "{version}");
        let join = stage.lie.read(&stage.evil.wait_for("send_join").body);
        let said = message(&stage.evil, &stage.lie, &stage.eve(), join.event_id().as_str());
        let (status, _) = stage.evil.send_transaction(stage.server.name(), "t0", &[&said]);
        assert_eq!(status, 200);
        wait_until("it is here", || stored_accepted(&stage.server, said.event_id()));
        stage.bob.leave(&room);

        stage.bob.join_via(&room, &[stage.host.name().as_str()]);
        let has_none = |when: &str| {
            let path = room_path(&room, "state/m.room.topic/");
            assert_eq!(stage.bob.request("GET", &path, None).0, 404, "{version}: {when}");
        };
        has_none("it is not shown");
        stage.attack("t1", &nowhere());
        has_none("a state that is told of");
        stage.attack("t2", said.event_id().as_str());
        has_none("a state of before");
        // What is sent on all ends of the room takes all of them together.
        stage.bob.send(&room, "on top");
        has_none("all of that together");
    }
}

#[test]
fn what_other_servers_were_told_is_here_is_not_lost_while_the_past_goes_before_a_join() {
    let stage = Stage::new("11");
    let room = stage.room.id.to_string();
    stage.evil.answer_json("send_join", 200, answer(&stage.lie, &stage.past));
    stage.bob.join_via(&room, &[stage.evil.name().as_str()]);
    assert_eq!(stage.power_of_eve(), json!(99));
    stage.bob.leave(&room);
    let gate = Gate::default();
    stage.host.answer_behind(&gate, "send_join", 200, answer(&stage.room, &stage.past));
    std::thread::scope(|scope| {
        let joining = scope.spawn(|| stage.bob.join_via(&room, &[stage.host.name().as_str()]));
        let join = stage.room.read(&stage.host.wait_for("send_join").body);
        let mut there = stage.room.clone();
        there.take(join);
        let said = there.say(&stage.host, "while bob comes in");
        let (status, answer) = stage.host.send_transaction(stage.server.name(), "m1", &[&said]);
        assert_eq!((status, &answer["pdus"][said.event_id().as_str()]), (200, &json!({})), "{answer}");
        gate.open();
        joining.join().expect("no panic");
    });
    assert_eq!(stage.power_of_eve(), Value::Null, "what eve's server showed has gone");
    wait_until("bob reads it", || bodies(&stage.bob, &room).iter().any(|said| said == "while bob comes in"));
}

/// Comes in by the liar, leaves, and comes in by the room's own server, before which what the liar showed has to go: that is held
/// up until the gate is opened, since the liar's server takes its time over the news that bob has left.
fn while_the_past_goes(stage: &Stage, gate: &Gate) -> std::thread::JoinHandle<(u16, Value)> {
    let room = stage.room.id.to_string();
    stage.evil.answer_json("send_join", 200, answer(&stage.lie, &stage.past));
    stage.bob.join_via(&room, &[stage.evil.name().as_str()]);
    assert_eq!(stage.power_of_eve(), json!(99));
    stage.evil.answer_behind(gate, "/send/", 200, json!({ "pdus": {} }));
    stage.bob.leave(&room);
    let (again, via) =
        (TestUser::new(stage.bob.url(), stage.bob.id(), stage.bob.token()), stage.host.name().to_string());
    let joining = std::thread::spawn(move || join(&again, &room, Some(&via)));
    let hs = stage.server.homeserver();
    let goes =
        || hs.admin().room_deletion_statuses(&stage.room.id).is_ok_and(|all| all[0]["status"] == "active");
    wait_until("what there was of the room goes", goes);
    joining
}

#[test]
fn others_are_not_told_that_a_room_is_blocked_while_its_past_goes_before_a_join() {
    let stage = Stage::new("11");
    let (room, gate) = (stage.room.id.to_string(), Gate::default());
    let [carol, dora] = ["carol", "dora"].map(|name| stage.server.user(name));
    let joining = while_the_past_goes(&stage, &gate);
    std::thread::scope(|scope| {
        let follows = scope.spawn(|| join(&carol, &room, Some(stage.host.name().as_str())));
        stage.room.clone().invite(&stage.host, stage.server.name(), dora.id());
        dora.wait_for_room("invite", &room);
        gate.open();
        let (status, told) = follows.join().expect("no panic");
        assert_eq!(status, 200, "{told}");
    });
    let (status, told) = joining.join().expect("no panic");
    assert_eq!(status, 200, "{told}");
    assert_eq!(stage.power_of_eve(), Value::Null);
    for user in [&stage.bob, &carol] {
        assert_eq!(stage.bob.membership_of(&room, user.id()).as_deref(), Some("join"));
    }
}

#[test]
fn who_comes_in_is_in_although_the_server_stops_while_the_past_goes() {
    let mut stage = Stage::new("11");
    let (room, via) = (stage.room.id.to_string(), stage.host.name().to_string());
    stage.bob.join_via(&room, &[&via]);
    let before = stage.bob.send(&room, "before");
    stage.bob.leave(&room);
    // It is to go, and nobody is at it.
    let row = RoomDeletion {
        delete_id: "past".to_owned(),
        room_id: stage.room.id.clone(),
        order: json!({ "block": false, "purge": true, "force_purge": false }).to_string(),
        result: json!({ "kicked_users": [], "failed_to_kick_users": [], "local_aliases": [] }).to_string(),
        stage: DeletionStage::Purging,
        error: None,
        entered_anew: true,
    };
    let now = now_ms();
    let added =
        stage.server.homeserver().store.write(move |tx| tx.add_room_deletion(&row, now + 86_400_000, now));
    assert!(added.expect("it is written"));
    let again = TestUser::new(stage.bob.url(), stage.bob.id(), stage.bob.token());
    let id = room.clone();
    let joining = std::thread::spawn(move || join(&again, &id, Some(&via)));
    wait_until("the join is handed in", || stage.host.asked("send_join").len() == 2);
    stage.server.stop();
    drop(joining.join());
    // What was at the join may not have noticed yet.
    wait_until("it starts again", || stage.server.try_resume().is_ok());
    wait_until("bob is in", || stage.bob.initial_sync()["rooms"]["join"].get(&room).is_some());
    let path = room_path(&room, &format!("event/{}", segment(&before)));
    assert_eq!(stage.bob.request("GET", &path, None).0, 404, "that went first");
    assert!(stage.host.asked("send_join").len() > 2 && stage.host.asked("make_leave").is_empty());
}

/// Another room of the same id, with another create event, which only the founder's server can make.
fn second_room(founder: &Peer, first: &FakeRoom, version: &str) -> FakeRoom {
    let version = room_version(version).expect("a known version");
    let mut content = json!({ "room_version": version.id, "second": true });
    if version.creator_in_content {
        content["creator"] = json!(first.creator);
    }
    let create = json!({
        "type": "m.room.create", "state_key": "", "sender": first.creator, "origin_server_ts": now_ms(),
        "depth": 1, "content": content, "room_id": first.id, "prev_events": [], "auth_events": [],
    });
    let create = founder.sign(create.as_object().expect("an object").clone(), version);
    let mut second = first.clone();
    (second.version, second.state) = (version, Default::default());
    second.take(create);
    let creator = second.creator.clone();
    second.add(founder, "m.room.member", creator.as_str(), &creator, json!({ "membership": "join" }));
    second.add(founder, "m.room.power_levels", "", &creator, json!({ "users": { creator.as_str(): 100 } }));
    second.add(founder, "m.room.join_rules", "", &creator, json!({ "join_rule": "public" }));
    second.add(founder, "m.room.name", "", &creator, json!({ "name": "TAKEN" }));
    second
}

#[test]
fn a_second_room_of_the_same_id_never_takes_the_place_of_the_first() {
    // Shown in a join that fails, or in one that does not and that ends.
    for (version, fails) in [("11", true), ("10", true), ("11", false), ("10", false)] {
        let (server, founder, host) = (TestServer::start(), Peer::start(), Peer::start());
        let bob = server.user("bob");
        let mut room = FakeRoom::new(&founder, "11", "public");
        let keeper = host.user("keeper");
        let join = room.membership(&host, &keeper, keeper.as_str(), "join");
        room.take(join);
        let second = second_room(&founder, &room, version);
        let create = second.state[&("m.room.create".to_owned(), String::new())].clone();
        let creator = room.creator.clone();
        founder.answer_json("make_join", 200, second.template(bob.id(), "join"));
        founder.take_transactions();
        host.let_in(&room, bob.id());
        if fails {
            founder.answer_json("send_join", 200, spoilt(&founder, &creator, &second, second.join_answer()));
            bob.join_via(room.id.as_str(), &[founder.name().as_str(), host.name().as_str()]);
            assert!(!founder.asked("send_join").is_empty());
        } else {
            founder.answer_json("send_join", 200, second.join_answer());
            bob.join_via(room.id.as_str(), &[founder.name().as_str()]);
            assert_eq!(state(&bob, &room, "m.room.name")["name"], "TAKEN");
            bob.leave(room.id.as_str());
            bob.join_via(room.id.as_str(), &[host.name().as_str()]);
        }
        assert_eq!(state(&bob, &room, "m.room.name")["name"], "fake", "{version} {fails}");
        assert!(stored(&server, create.event_id()).is_none(), "{version} {fails}");
        if version == "11" {
            show_as_past(&founder, &second, &[]);
            let said = message(&founder, &second, &creator, &nowhere());
            let (status, answer) = founder.send_transaction(server.name(), "t1", &[&said]);
            assert_eq!(status, 200, "{answer}");
            assert_eq!(state(&bob, &room, "m.room.name")["name"], "fake", "{answer}");
            assert!(!stored_accepted(&server, create.event_id()));
        }
    }
}

#[test]
fn a_template_of_the_wrong_version_keeps_no_transaction_of_the_room_away() {
    let (server, host, evil) = (TestServer::start(), Peer::start(), Arc::new(Peer::start()));
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let mut other = FakeRoom::joined_by(&host, "10", &alice);
    let mut room = FakeRoom::new(&host, "10", "public");
    host.let_in(&room, bob.id());
    bob.join_via(room.id.as_str(), &[host.name().as_str()]);
    room.take(room.read(&host.wait_for("send_join").body));
    bob.leave(room.id.as_str());
    let gate = Gate::default();
    let mut wrong = room.template(bob.id(), "join");
    wrong["room_version"] = "9".into();
    evil.answer_json("make_join", 200, wrong);
    evil.answer_behind(&gate, "send_join", 500, json!({ "errcode": "M_UNKNOWN", "error": "later" }));
    let again = TestUser::new(bob.url(), bob.id(), bob.token());
    std::thread::scope(|scope| {
        let (id, via) = (room.id.to_string(), evil.name().to_string());
        let joining = scope.spawn(move || join(&again, &id, Some(&via)));
        evil.wait_for("send_join");
        let (one, two) = (room.say(&host, "of the room"), other.say(&host, "of another room"));
        let (status, answer) = host.send_transaction(server.name(), "t1", &[&one, &two]);
        assert_eq!(status, 200, "{answer}");
        assert_eq!(answer["pdus"][two.event_id().as_str()], json!({}), "{answer}");
        assert!(stored_accepted(&server, two.event_id()));
        gate.open();
        drop(joining.join());
    });
}

#[test]
fn where_the_server_that_one_joins_by_is_no_notary_others_in_the_room_are_asked_and_believed_as_much() {
    let (host, gone, other) = (Peer::start(), Peer::start(), Peer::start());
    gone.hide_keys(true);
    let mut room = FakeRoom::new(&gone, "11", "public");
    for (peer, user) in [(&host, host.user("h")), (&other, other.user("o"))] {
        let join = room.membership(peer, &user, user.as_str(), "join");
        room.take(join);
    }
    host.answer_json("/key/v2/query", 404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" }));
    other.vouch_for(gone.name(), &[gone.signing_key()]);
    let server = TestServer::start();
    let bob = server.user("bob");
    host.let_in(&room, bob.id());
    other.take_transactions();
    bob.join_via(room.id.as_str(), &[host.name().as_str()]);
    assert_eq!(state(&bob, &room, "m.room.name")["name"], "fake");
    assert!(!other.asked("/key/v2/query").is_empty());
}
