//! Rooms with a policy server: ours is asked for nothing that it has not signed, and others' events count only if it
//! has. The policy server is scripted: it signs, refuses, is gone, signs with another key, takes its time.

use std::sync::{Arc, Mutex};
use std::time::Duration;

use crate::common::peer::{FakeRoom, Peer, now_ms};
use crate::common::scene::{Scene as RoomScene, bodies, objects};
use crate::common::wait::{Gate, wait_until};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::internals::{Place, Status};
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::signatures::sign::{self, SigningKey};
use doorstep::protocol::{EventId, Pdu, RoomVersion, ServerName, UserId};
use doorstep::testing::{TestUser, segment};
use serde_json::{Map, Value, json};

const VERSION: &str = "11";

fn version() -> RoomVersion {
    room_version(VERSION).expect("a known version")
}

fn policy_key(seed: u8) -> Arc<SigningKey> {
    Arc::new(SigningKey::generate([seed; 32], "policy_server"))
}

/// The answer to `/sign`: the signature alone.
fn signature(name: &ServerName, key: &SigningKey, event: &Value) -> Value {
    let mut object = event.as_object().expect("an event is an object").clone();
    object.insert("signatures".into(), json!({}));
    sign::sign_event(&mut object, name, key, version());
    object["signatures"].clone()
}

/// A room of ours, a policy server in it that signs everything, and another server in it.
struct Scene {
    server: TestServer,
    alice: TestUser,
    policy: Peer,
    key: Arc<SigningKey>,
    other: Peer,
    eve: UserId,
    room: String,
    /// The last event of the other server's.
    last: Mutex<EventId>,
}

impl Scene {
    fn new() -> Scene {
        let scene = Scene::without_policy();
        scene.signs(scene.key.clone());
        scene.set_policy(&scene.key);
        scene
    }

    fn without_policy() -> Scene {
        let server = TestServer::start();
        let alice = server.user("alice");
        let (policy, other) = (Peer::start(), Peer::start());
        let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": VERSION }));
        for peer in [&policy, &other] {
            peer.answer_json("/send/", 200, json!({ "pdus": {} }));
            let (_, (status, answer)) = peer.hand_in(server.name(), "join", &room, &peer.user("eve"));
            assert_eq!(status, 200, "{answer}");
        }
        let eve = other.user("eve");
        let last =
            server.homeserver().store.read(|db| db.forward_extremities(1)).expect("the room has heads");
        let last = Mutex::new(last[0].event_id.clone());
        Scene { server, alice, policy, key: policy_key(5), other, eve, room, last }
    }

    fn set_policy(&self, key: &SigningKey) {
        let content = json!({ "via": self.policy.name(), "public_keys": { "ed25519": key.public_base64() } });
        self.alice.set_state(&self.room, "m.room.policy", "", content);
    }

    /// From now on the policy server signs everything with this key.
    fn signs(&self, key: Arc<SigningKey>) {
        let name = self.policy.name().clone();
        self.policy.answer("/policy/v1/sign", move |asked| Reply::json(&signature(&name, &key, &asked.body)));
    }

    /// From now on the policy server says this.
    fn says(&self, status: u16, body: Value) {
        self.policy.answer_json("/policy/v1/sign", status, body);
    }

    fn asked(&self) -> usize {
        self.policy.asked("/policy/v1/sign").len()
    }

    /// Alice sends a message; status and body of the answer.
    fn send(&self, text: &str) -> (u16, Value) {
        static COUNT: Mutex<u32> = Mutex::new(0);
        let number = {
            let mut count = COUNT.lock().expect("no test panics here");
            *count += 1;
            *count
        };
        let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{number}", segment(&self.room));
        self.alice.request("PUT", &path, Some(json!({ "msgtype": "m.text", "body": text })))
    }

    /// The bodies of the messages that Alice sees, newest first.
    fn bodies(&self) -> Vec<String> {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=50", segment(&self.room));
        let page = self.alice.get(&path);
        let chunk = page["chunk"].as_array().expect("a chunk");
        chunk.iter().filter_map(|e| e["content"]["body"].as_str().map(str::to_owned)).collect()
    }

    /// What the other server has been sent of this type.
    fn delivered(&self, kind: &str) -> Vec<Value> {
        let sent = self.other.asked("/send/");
        let pdus = sent.iter().flat_map(|asked| asked.body["pdus"].as_array().cloned().unwrap_or_default());
        pdus.filter(|pdu| pdu["type"] == kind).collect()
    }

    fn is_signed(&self, event: &Value) -> bool {
        let object = event.as_object().expect("an event is an object");
        let theirs = signature(self.policy.name(), &self.key, event);
        let name = self.policy.name().as_str();
        object["signatures"][name]["ed25519:policy_server"] == theirs[name]["ed25519:policy_server"]
    }

    /// An event of the other server's user at the end of what it knows, as its server signs it.
    fn event(&self, kind: &str, content: Value) -> Pdu {
        let state = |kind: &str, key: &str| {
            let room = doorstep::protocol::RoomId::parse(&self.room).expect("a room id");
            let found = self
                .server
                .homeserver()
                .store
                .read(|db| db.state_event(db.known_room(&room)?.key, kind, key));
            found.expect("the database reads").expect("the state has it").event_id().clone()
        };
        let auth = [
            state("m.room.create", ""),
            state("m.room.power_levels", ""),
            state("m.room.member", self.eve.as_str()),
        ];
        let mut last = self.last.lock().expect("no test panics here");
        let event = json!({
            "type": kind, "sender": self.eve, "content": content, "room_id": self.room, "depth": 50,
            "origin_server_ts": now_ms(), "prev_events": [*last], "auth_events": auth,
        });
        let event = self.other.sign(event.as_object().expect("an object").clone(), version());
        *last = event.event_id().clone();
        event
    }

    /// An event that follows these, in their room.
    fn event_in(&self, others: &[Pdu], kind: &str, content: Value) -> Pdu {
        let last = others.last().expect("there is one");
        let mut event = last.to_object();
        event.retain(|key, _| !matches!(key.as_str(), "hashes" | "signatures" | "event_id"));
        event.insert("type".into(), kind.into());
        event.insert("content".into(), content);
        event.insert("prev_events".into(), json!([last.event_id()]));
        self.other.sign(event, version())
    }

    fn message(&self, text: &str) -> Pdu {
        self.event("m.room.message", json!({ "msgtype": "m.text", "body": text }))
    }

    /// The same with a policy server's signature.
    fn with(&self, event: &Pdu, key: &SigningKey) -> Pdu {
        let mut object: Map<String, Value> = event.to_object();
        sign::sign_event(&mut object, self.policy.name(), key, version());
        Pdu::from_object(object, version()).expect("still an event")
    }

    /// Hands an event to our server in a transaction, which must take it in.
    fn deliver(&self, txn: &str, events: &[&Pdu]) {
        let (status, body) = self.other.send_transaction(self.server.name(), txn, events);
        assert_eq!(status, 200, "{body}");
        for event in events {
            assert_eq!(body["pdus"][event.event_id().as_str()], json!({}), "{body}");
        }
    }

    fn status(&self, event: &Pdu) -> Option<Status> {
        let stored = self.server.homeserver().store.read(|db| db.event(event.event_id()));
        stored.expect("the database reads").map(|stored| stored.status)
    }

    fn stored(&self, event: &Pdu) -> Value {
        let stored = self.server.homeserver().store.read(|db| db.event(event.event_id()));
        Value::Object(stored.expect("the database reads").expect("it is stored").pdu.to_object())
    }
}

/// The last event of a room of ours.
fn heads_of(scene: &Scene, room: &str) -> EventId {
    let room = doorstep::protocol::RoomId::parse(room).expect("a room id");
    let heads = scene.server.homeserver().store.read(|db| db.forward_extremities(db.known_room(&room)?.key));
    heads.expect("the room has heads")[0].event_id.clone()
}

#[test]
fn our_events_have_the_policy_servers_signature_before_anybody_sees_them() {
    let scene = Scene::new();
    let before = scene.asked();
    assert_eq!(scene.send("hello").0, 200);
    assert_eq!(scene.asked(), before + 1);
    let asked = scene.policy.asked("/policy/v1/sign").pop().expect("just asked");
    assert_eq!(asked.method, "POST");
    assert_eq!(asked.body["content"]["body"], "hello", "it is asked about the event itself");
    wait_until("the message is delivered", || !scene.delivered("m.room.message").is_empty());
    let message = &scene.delivered("m.room.message")[0];
    assert!(scene.is_signed(message), "{message}");
    assert!(message["signatures"][scene.server.name()].is_object(), "our own signature stays: {message}");
    assert_eq!(scene.bodies().first().map(String::as_str), Some("hello"));
    // State events and memberships as well; only the setting itself is nobody's business but the room's.
    scene.alice.set_state(&scene.room, "m.room.topic", "", json!({ "topic": "order" }));
    scene.alice.set_state(&scene.room, "m.room.policy", "else", json!({}));
    assert_eq!(scene.asked(), before + 3);
    scene.alice.set_state(&scene.room, "m.room.policy", "", json!({ "via": 5 }));
    assert_eq!(scene.send("free").0, 200);
    assert_eq!(scene.asked(), before + 3, "a setting that is not valid is none");
}

#[test]
fn a_policy_server_without_a_user_in_the_room_is_not_asked() {
    let scene = Scene::new();
    let before = scene.asked();
    let (_, (status, body)) =
        scene.policy.hand_in(scene.server.name(), "leave", &scene.room, &scene.policy.user("eve"));
    assert_eq!(status, 200, "{body}");
    assert_eq!(scene.asked(), before + 1, "that its user leaves is still its business");
    assert_eq!(scene.send("hello").0, 200);
    assert_eq!(scene.asked(), before + 1);
}

#[test]
fn what_the_policy_server_refuses_is_not_sent_and_the_client_hears_why() {
    let scene = Scene::new();
    let refusal = |errcode: &str| json!({ "errcode": errcode, "error": "looks like spam" });
    for (status, errcode, told) in [
        (400, "M_FORBIDDEN", (400, "M_FORBIDDEN")),
        (403, "M_FORBIDDEN", (403, "M_FORBIDDEN")),
        (400, "M_BAD_JSON", (400, "M_BAD_JSON")),
        (429, "M_LIMIT_EXCEEDED", (429, "M_LIMIT_EXCEEDED")),
        (404, "M_NOT_FOUND", (502, "M_UNKNOWN")),
        (404, "M_UNRECOGNIZED", (502, "M_UNKNOWN")),
        (401, "M_UNKNOWN_TOKEN", (502, "M_UNKNOWN")),
        (400, "M_USER_DEACTIVATED", (502, "M_UNKNOWN")),
        (500, "M_UNKNOWN", (502, "M_UNKNOWN")),
    ] {
        scene.says(status, refusal(errcode));
        let (said, body) = scene.send("buy now");
        assert_eq!((said, body["errcode"].as_str()), (told.0, Some(told.1)), "{status} {errcode}: {body}");
        assert!(body["error"].as_str().is_some_and(|error| error.contains("looks like spam")), "{body}");
    }
    let mut limited = refusal("M_LIMIT_EXCEEDED");
    limited["retry_after_ms"] = json!(2000);
    scene.says(429, limited);
    assert_eq!(scene.send("buy now").1["retry_after_ms"], 2000);
    for nonsense in [
        json!({}),
        json!([]),
        json!({ scene.policy.name().as_str(): { "ed25519:policy_server": "AAAA" } }),
        json!({ scene.policy.name().as_str(): { "ed25519:policy_server": 5 } }),
        json!({ "example.org": { "ed25519:policy_server": "AAAA" } }),
    ] {
        scene.says(200, nonsense.clone());
        assert_eq!(scene.send("buy now").0, 502, "{nonsense}");
    }
    scene.signs(policy_key(6));
    assert_eq!(scene.send("buy now").0, 502, "signed with another key than the room's");
    scene.policy.answer("/policy/v1/sign", |_| Reply::bytes("text/html", b"<html></html>".to_vec()));
    assert_eq!(scene.send("buy now").0, 502);
    // The room can still get rid of it, and then nobody is asked.
    scene.alice.set_state(&scene.room, "m.room.policy", "", json!({}));
    assert_eq!(scene.send("free").0, 200);
    wait_until("the last message is delivered", || !scene.delivered("m.room.message").is_empty());
    assert_eq!(scene.delivered("m.room.message").len(), 1);
    assert_eq!(scene.bodies().first().map(String::as_str), Some("free"));
}

#[test]
fn a_policy_server_that_is_gone_stops_the_room_until_the_room_lets_go_of_it() {
    let scene = Scene::without_policy();
    let gone = Peer::start();
    let user = gone.user("eve");
    assert_eq!(gone.hand_in(scene.server.name(), "join", &scene.room, &user).1.0, 200);
    let content = json!({ "via": gone.name(), "public_keys": { "ed25519": scene.key.public_base64() } });
    scene.alice.set_state(&scene.room, "m.room.policy", "", content);
    drop(gone);
    let (status, body) = scene.send("anybody?");
    assert_eq!(status, 504, "{body}");
    let unsigned = [scene.message("one"), scene.message("two")];
    scene.deliver("1", &unsigned.iter().collect::<Vec<_>>());
    assert!(unsigned.iter().all(|event| scene.status(event) == Some(Status::SoftFailed)));
    scene.alice.set_state(&scene.room, "m.room.policy", "", json!({}));
    assert_eq!(scene.send("again").0, 200);
    assert_eq!(scene.bodies().first().map(String::as_str), Some("again"));
}

#[test]
fn an_event_of_others_counts_if_the_policy_server_has_signed_it_or_does_so_when_asked() {
    let scene = Scene::new();
    let before = scene.asked();
    let plain = scene.message("signed");
    let signed = scene.with(&plain, &scene.key);
    assert_eq!(signed.event_id(), plain.event_id());
    scene.deliver("1", &[&signed]);
    assert_eq!(scene.status(&signed), Some(Status::Accepted));
    assert_eq!(scene.asked(), before, "its signature is there");

    let unsigned = scene.message("not signed");
    let wrong = scene.message("signed with a key that was replaced");
    scene.deliver("2", &[&unsigned, &scene.with(&wrong, &policy_key(9))]);
    assert_eq!(scene.asked(), before + 2);
    for event in [&unsigned, &wrong] {
        assert_eq!(scene.status(event), Some(Status::Accepted));
        assert!(scene.is_signed(&scene.stored(event)), "and the signature is kept for others who ask");
    }
    scene.deliver("3", &[&unsigned]);
    assert_eq!(scene.asked(), before + 2, "what we have is not asked about again");
}

#[test]
fn an_event_of_others_that_the_policy_server_refuses_is_neither_shown_nor_built_upon() {
    let scene = Scene::new();
    let good = scene.message("fine");
    scene.deliver("1", &[&scene.with(&good, &scene.key)]);
    scene.says(400, json!({ "errcode": "M_FORBIDDEN", "error": "spam" }));
    let spam = [scene.message("spam"), scene.message("more spam")];
    scene.deliver("2", &spam.iter().collect::<Vec<_>>());
    assert!(spam.iter().all(|event| scene.status(event) == Some(Status::SoftFailed)));
    scene.signs(policy_key(8));
    let odd = scene.message("signed by nobody");
    scene.deliver("3", &[&odd]);
    assert_eq!(scene.status(&odd), Some(Status::SoftFailed));
    let heads = scene.server.homeserver().store.read(|db| db.forward_extremities(1)).expect("heads");
    assert!(heads.iter().any(|head| head.event_id == *good.event_id()));
    assert!(
        spam.iter().chain([&odd]).all(|event| heads.iter().all(|head| head.event_id != *event.event_id()))
    );
    // What follows them and is recommended is shown like anything else.
    scene.signs(scene.key.clone());
    let after = scene.message("after all that");
    scene.deliver("4", &[&after]);
    assert_eq!(scene.status(&after), Some(Status::Accepted));
    assert_eq!(scene.bodies(), ["after all that", "fine"]);
}

#[test]
fn the_policy_servers_own_events_need_both_its_signatures_and_only_them() {
    let scene = Scene::new();
    let before = scene.asked();
    let eve = scene.policy.user("eve");
    let event = json!({
        "type": "m.room.message", "sender": eve, "content": { "body": "be kind" }, "room_id": scene.room,
        "depth": 60, "origin_server_ts": now_ms(),
        "prev_events": scene.message("x").prev_events(),
        "auth_events": scene.server.homeserver().store.read(|db| {
            let keys = [("m.room.create", ""), ("m.room.power_levels", ""), ("m.room.member", eve.as_str())];
            keys.iter().filter_map(|(kind, key)| db.state_event(1, kind, key).transpose())
                .map(|event| event.map(|event| event.event_id().clone())).collect::<Result<Vec<_>, _>>()
        }).expect("the state"),
    });
    let event = scene.policy.sign(event.as_object().expect("an object").clone(), version());
    let both = scene.with(&event, &scene.key);
    let (status, body) = scene.policy.send_transaction(scene.server.name(), "1", &[&both]);
    assert_eq!((status, &body["pdus"][both.event_id().as_str()]), (200, &json!({})), "{body}");
    assert_eq!(scene.status(&both), Some(Status::Accepted));
    assert_eq!(scene.asked(), before);
}

#[test]
fn who_enters_through_us_enters_with_the_policy_servers_signature_or_not_at_all() {
    let scene = Scene::new();
    let guest = Peer::start();
    let one = guest.user("one");
    let (event, (status, answer)) = guest.hand_in(scene.server.name(), "join", &scene.room, &one);
    assert_eq!(status, 200, "{answer}");
    assert!(scene.is_signed(&answer["event"]), "the one who joins gets the signature too");
    wait_until("the others hear of it", || {
        scene.delivered("m.room.member").iter().any(|e| e["sender"] == one.as_str())
    });
    let told = scene.delivered("m.room.member").into_iter().find(|e| e["sender"] == one.as_str());
    assert!(scene.is_signed(&told.expect("just there")));
    assert_eq!(scene.status(&event), Some(Status::Accepted));

    scene.says(400, json!({ "errcode": "M_FORBIDDEN", "error": "known spammer" }));
    let two = guest.user("two");
    let (event, (status, answer)) = guest.hand_in(scene.server.name(), "join", &scene.room, &two);
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_FORBIDDEN")), "{answer}");
    assert_eq!(scene.status(&event), None);
    assert_eq!(scene.alice.membership_of(&scene.room, two.as_str()), None);

    // An invitee's server is not bothered with what the room will not have.
    guest.answer("/invite/", {
        let script = guest.name().clone();
        move |asked| panic!("{script} was asked to sign {}", asked.body)
    });
    let path = format!("/_matrix/client/v3/rooms/{}/invite", segment(&scene.room));
    let (status, body) = scene.alice.request("POST", &path, Some(json!({ "user_id": two })));
    assert_eq!((status, body["error"].as_str()), (400, Some("known spammer")), "{body}");
    assert!(guest.asked("/invite/").is_empty());
}

/// Takes ten seconds, the time that is bounded.
#[test]
fn a_policy_server_that_hangs_holds_nobody_up_for_long_and_no_other_room() {
    let scene = Scene::without_policy();
    let hanging = Peer::start();
    let user = hanging.user("eve");
    let setting =
        |peer: &Peer| json!({ "via": peer.name(), "public_keys": { "ed25519": scene.key.public_base64() } });
    assert_eq!(hanging.hand_in(scene.server.name(), "join", &scene.room, &user).1.0, 200);
    let gate = Gate::default();
    let wait = gate.clone();
    hanging.answer("/policy/v1/sign", move |_| {
        wait.pass();
        Reply::json(&json!({}))
    });
    scene.alice.set_state(&scene.room, "m.room.policy", "", setting(&hanging));
    // Another room of ours, in which both are as well, with a policy server that does its duty.
    let good = scene.alice.create_room_with(json!({ "preset": "public_chat", "room_version": VERSION }));
    for peer in [&scene.policy, &scene.other] {
        assert_eq!(peer.hand_in(scene.server.name(), "join", &good, &peer.user("eve")).1.0, 200);
    }
    scene.signs(scene.key.clone());
    scene.alice.set_state(&good, "m.room.policy", "", setting(&scene.policy));

    let stuck: Vec<Pdu> = (0..20).map(|n| scene.message(&n.to_string())).collect();
    let fine = Scene { room: good.clone(), last: Mutex::new(heads_of(&scene, &good)), ..scene };
    let lucky = fine.message("lucky");
    let mut all: Vec<&Pdu> = stuck.iter().collect();
    all.push(&lucky);
    fine.deliver("1", &all);
    assert!(stuck.iter().all(|event| fine.status(event) == Some(Status::SoftFailed)));
    assert_eq!(fine.status(&lucky), Some(Status::Accepted));
    // Nobody waits for it again for a while, and its own room neither.
    let asked = hanging.asked("/policy/v1/sign").len();
    assert!((1..20).contains(&asked), "{asked}");
    let next = fine.event_in(&stuck, "m.room.message", json!({ "body": "next" }));
    fine.deliver("2", &[&next]);
    assert_eq!(fine.status(&next), Some(Status::SoftFailed));
    assert_eq!(hanging.asked("/policy/v1/sign").len(), asked);
    gate.open();
}

#[test]
fn a_policy_server_that_failed_is_asked_again_after_a_while() {
    let scene = Scene::new();
    let before = scene.asked();
    scene.says(500, json!({ "errcode": "M_UNKNOWN", "error": "out of order" }));
    let lost = scene.message("lost");
    scene.deliver("1", &[&lost]);
    assert_eq!((scene.status(&lost), scene.asked()), (Some(Status::SoftFailed), before + 1));
    scene.signs(scene.key.clone());
    let soon = scene.message("soon");
    scene.deliver("2", &[&soon]);
    assert_eq!((scene.status(&soon), scene.asked()), (Some(Status::SoftFailed), before + 1));
    scene.server.advance(Duration::from_secs(61));
    let later = scene.message("later");
    scene.deliver("3", &[&later]);
    assert_eq!((scene.status(&later), scene.asked()), (Some(Status::Accepted), before + 2));
    // Where one of us waits for it, it is asked whatever it did before; and what it does then counts for all.
    scene.says(500, json!({ "errcode": "M_UNKNOWN", "error": "out of order" }));
    scene.deliver("4", &[&scene.message("lost too")]);
    scene.signs(scene.key.clone());
    assert_eq!(scene.send("hello").0, 200);
    let now = scene.message("now");
    scene.deliver("5", &[&now]);
    assert_eq!(scene.status(&now), Some(Status::Accepted));
}

#[test]
fn history_is_shown_to_the_policy_server_too_and_is_fetched_later_if_that_does_not_answer() {
    let mut scene = RoomScene::new(VERSION);
    let (policy, key) = (Peer::start(), policy_key(5));
    policy.answer_json("/send/", 200, json!({ "pdus": {} }));
    let join = scene.join_of(&policy, "eve");
    let lost: Vec<Pdu> = (0..4).map(|n| scene.message(&format!("lost {n}"))).collect();
    let content = json!({ "via": policy.name(), "public_keys": { "ed25519": key.public_base64() } });
    let setting = scene.set_state("m.room.policy", "", content);
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    let name = policy.name().clone();
    policy.answer("/policy/v1/sign", move |asked| {
        if asked.body["content"]["body"] == "lost 2" {
            let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "spam" });
            return Reply::json_status(400, &refusal);
        }
        Reply::json(&signature(&name, &key, &asked.body))
    });
    assert_eq!(scene.send("1", &[&join])[join.event_id().as_str()], json!({}));
    let arrived = scene.message("arrived");
    assert_eq!(scene.send("2", &[&setting])[setting.event_id().as_str()], json!({}));
    assert_eq!(scene.send("3", &[&arrived])[arrived.event_id().as_str()], json!({}));
    assert_eq!(scene.status(&arrived), Some(Status::Accepted));
    // Of the state that came along nothing was asked.
    assert!(policy.asked("/policy/v1/sign").iter().all(|asked| asked.body["type"] == "m.room.message"));

    let page = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&lost) });
    scene.peer.answer_json("/backfill/", 200, page);
    let hs = scene.server.homeserver();
    let room = hs.store.read(|db| db.known_room(&scene.room.id)).expect("the room");
    policy.answer_json("/policy/v1/sign", 503, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    assert!(!hs.events().backfill(&room, Place::END).expect("no error"));
    assert!(lost.iter().all(|event| scene.status(event).is_none()), "nothing is said of it yet");
    policy.forget_answer("/policy/v1/sign");
    scene.server.advance(Duration::from_secs(61));
    assert!(hs.events().backfill(&room, Place::END).expect("it comes"));
    let shown = ["lost 0", "lost 1", "lost 3", "arrived"];
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), shown);
    assert_eq!(scene.status(&lost[2]), Some(Status::SoftFailed));
    // What is not shown is not looked for again either.
    let asked = scene.peer.asked("/backfill/").len();
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), shown);
    assert_eq!(scene.peer.asked("/backfill/").len(), asked);
}

#[test]
fn a_policy_server_that_is_gone_does_not_close_the_past_of_a_room_to_who_comes_later() {
    let (host, policy, key) = (Peer::start(), Peer::start(), policy_key(5));
    let mut room = FakeRoom::new(&host, VERSION, "public");
    let eve = policy.user("eve");
    room.add(&policy, "m.room.member", eve.as_str(), &eve, json!({ "membership": "join" }));
    let mut past: Vec<Pdu> = room.state.values().cloned().collect();
    past.extend(["before", "before that was fixed"].map(|text| room.say(&host, text)));
    let content = json!({ "via": policy.name(), "public_keys": { "ed25519": key.public_base64() } });
    let creator = room.creator.clone();
    past.push(room.add(&host, "m.room.policy", "", &creator, content));
    let unsigned = room.say(&host, "not signed");
    let signed = room.say(&host, "signed");
    let signed_too = {
        let mut object = signed.to_object();
        sign::sign_event(&mut object, policy.name(), &key, version());
        Pdu::from_object(object, version()).expect("still an event")
    };
    past.extend([unsigned.clone(), signed_too]);
    let server = TestServer::start();
    let alice = server.user("alice");
    room.join(&host, &alice);
    let page = json!({ "origin": host.name(), "origin_server_ts": 1, "pdus": objects(&past) });
    host.answer_json("/backfill/", 200, page);
    let ids: Vec<&EventId> = room.state.values().map(Pdu::event_id).collect();
    host.answer_json("/state_ids/", 200, json!({ "pdu_ids": ids, "auth_chain_ids": [] }));
    drop(policy);
    // What nobody had to sign then is shown, and what was to be signed if it is.
    assert_eq!(bodies(&alice, room.id.as_str()), ["before", "before that was fixed", "signed"]);
}

#[test]
fn what_is_sent_behind_a_gap_is_not_shown_for_want_of_an_answer_of_the_policy_server() {
    for is_sent_first in [false, true] {
        send_behind_a_gap(is_sent_first);
    }
}

fn send_behind_a_gap(is_sent_first: bool) {
    let mut scene = RoomScene::new(VERSION);
    let (policy, key) = (Peer::start(), policy_key(5));
    policy.answer_json("/send/", 200, json!({ "pdus": {} }));
    let before = scene.last.clone();
    let join = scene.join_of(&policy, "eve");
    let content = json!({ "via": policy.name(), "public_keys": { "ed25519": key.public_base64() } });
    let setting = scene.set_state("m.room.policy", "", content);
    scene.peer.answer_json("/get_missing_events/", 200, json!({ "events": [] }));
    scene.answer_with_state();
    for (n, event) in [&join, &setting].into_iter().enumerate() {
        assert_eq!(scene.send(&format!("setting{n}"), &[event])[event.event_id().as_str()], json!({}));
    }
    let name = policy.name().clone();
    let signed = |event: &Pdu| {
        let mut object = event.to_object();
        sign::sign_event(&mut object, &name, &key, version());
        Pdu::from_object(object, version()).expect("still an event")
    };
    // One that pretends to be from before, and one that does not; good ones beside them.
    let (end, creator) = (scene.last.clone(), scene.room.creator.clone());
    let good = signed(&scene.message_after(&[&end], &creator, "good"));
    let old_spam = scene.message_after(&[&before], &creator, "old spam");
    let spam = scene.message_after(&[good.event_id(), old_spam.event_id()], &creator, "spam");
    let next = signed(&scene.message_after(&[spam.event_id()], &creator, "next"));
    let arrived = signed(&scene.message_after(&[next.event_id()], &creator, "arrived"));
    policy.answer_json("/policy/v1/sign", 503, json!({ "errcode": "M_UNKNOWN", "error": "not now" }));
    if is_sent_first {
        scene.send("spam", &[&spam]);
    }
    scene.send("arrived", &[&arrived]);
    let given = [good.clone(), old_spam.clone(), spam.clone(), next.clone()];
    let page = json!({ "origin": scene.peer.name(), "origin_server_ts": 1, "pdus": objects(&given) });
    scene.peer.answer_json("/backfill/", 200, page);
    for _ in 0..6 {
        let shown = bodies(&scene.alice, scene.room.id.as_str());
        assert_eq!(shown.iter().filter(|text| text.contains("spam")).count(), 0, "{shown:?}");
        scene.server.advance(Duration::from_secs(70));
    }
    let shown = if is_sent_first { vec!["next", "arrived"] } else { vec!["good", "next", "arrived"] };
    assert_eq!(bodies(&scene.alice, scene.room.id.as_str()), shown);
    let at = format!(
        "/_matrix/client/v3/rooms/{}/event/{}",
        segment(scene.room.id.as_str()),
        segment(old_spam.event_id().as_str())
    );
    assert_eq!(scene.alice.request("GET", &at, None).0, 404);
}

#[test]
fn an_event_that_waited_long_for_its_signature_still_finds_its_place() {
    let scene = Scene::new();
    let gate = Gate::default();
    let (name, key, wait) = (scene.policy.name().clone(), scene.key.clone(), gate.clone());
    scene.policy.answer("/policy/v1/sign", move |asked| {
        if asked.body["content"]["body"] == "slow" {
            wait.pass();
        }
        Reply::json(&signature(&name, &key, &asked.body))
    });
    std::thread::scope(|scope| {
        let slow = scope.spawn(|| scene.send("slow"));
        wait_until("it is asked", || {
            scene.policy.asked("/policy/v1/sign").iter().any(|a| a.body["content"]["body"] == "slow")
        });
        // Nobody else waits for it, and the room moves on.
        assert_eq!(scene.send("quick").0, 200);
        scene.deliver("1", &[&scene.with(&scene.message("from elsewhere"), &scene.key)]);
        gate.open();
        let (status, body) = slow.join().expect("it does not panic");
        assert_eq!(status, 200, "{body}");
    });
    wait_until("all of ours are delivered", || scene.delivered("m.room.message").len() == 2);
    assert!(scene.delivered("m.room.message").iter().all(|event| scene.is_signed(event)));
}
