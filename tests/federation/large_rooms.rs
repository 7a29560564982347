//! Joining a room that is large for a test, over real TLS: every member of it there, the forged ones not, keys that only
//! a notary has, and peers that give too much or too little.

use std::collections::BTreeSet;
use std::io::Read;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::client::join;
use crate::common::crowd::{Crowd, Gone};
use crate::common::peer::{FakeRoom, Peer};
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::protocol::pdu::Membership;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::{Pdu, handshake};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const MEMBERS: usize = 2000;
const SERVERS: usize = 50;

fn get(user: &TestUser, room: &FakeRoom, what: &str) -> Value {
    let path = format!("/_matrix/client/v3/rooms/{}/{what}", segment(room.id.as_str()));
    let (status, body) = user.request("GET", &path, None);
    assert_eq!(status, 200, "{what}: {body}");
    body
}

fn joined(user: &TestUser, room: &FakeRoom) -> BTreeSet<String> {
    get(user, room, "joined_members")["joined"].as_object().expect("an object").keys().cloned().collect()
}

/// An event of a member of the crowd, made and signed anew.
fn remade(crowd: &Crowd, number: usize, key: &SigningKey, change: impl FnOnce(&mut Value)) -> Pdu {
    let user = crowd.member(number);
    let mut event = Value::Object(crowd.room.unsigned(
        "m.room.member",
        user.as_str(),
        &user,
        json!({ "membership": "join" }),
    ));
    change(&mut event);
    let event = event.as_object().expect("an object").clone();
    handshake::sign_new_event(event, &user.server(), key, crowd.room.version).expect("an event")
}

#[test]
fn a_large_room_is_joined_with_every_member_that_is_real_and_none_that_is_not() {
    let peer = Peer::start();
    let mut crowd = Crowd::new(&peer, "11", MEMBERS, SERVERS);
    let stranger = SigningKey::generate([9; 32], "gone");
    let own = |crowd: &Crowd, number: usize| {
        SigningKey::from_seed(
            crowd.servers[number % SERVERS].key.key_id(),
            crowd.servers[number % SERVERS].key.seed(),
        )
        .expect("a key")
    };
    // Signed with a key that is not its server's; changed after it was signed; let in by nobody; of another room.
    let forged = remade(&crowd, 10, &stranger, |_| {});
    let mut changed = crowd.members[11].to_object();
    changed["sender"] = json!("@member11:localhost:13");
    changed["state_key"] = json!("@member11:localhost:13");
    let changed = Pdu::from_object(changed, crowd.room.version).expect("an event");
    let uninvited = remade(&crowd, 12, &own(&crowd, 12), |event| event["auth_events"] = json!([]));
    let elsewhere =
        remade(&crowd, 13, &own(&crowd, 13), |event| event["room_id"] = json!("!other:localhost"));
    // Only its hash is wrong: it stays, without what the hash covers.
    let mut edited = crowd.members[14].to_object();
    edited["content"]["displayname"] = json!("Somebody else");
    let edited = Pdu::from_object(edited, crowd.room.version).expect("an event");
    for (number, event) in [(10, forged), (11, changed), (12, uninvited), (13, elsewhere), (14, edited)] {
        crowd.members[number] = event;
    }
    crowd.serve(&peer);
    let server = TestServer::start();
    let alice = server.user("alice");
    assert_eq!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200);

    let mut expected: BTreeSet<String> =
        (0..MEMBERS).filter(|n| !(10..=13).contains(n)).map(|n| crowd.member(n).to_string()).collect();
    expected.extend([crowd.room.creator.to_string(), alice.id().to_owned()]);
    assert_eq!(joined(&alice, &crowd.room), expected);
    let profiles = get(&alice, &crowd.room, "joined_members");
    let profile = |number: usize| profiles["joined"][crowd.member(number).as_str()].clone();
    assert_eq!(profile(15)["display_name"], "Member number 15");
    assert_eq!(profile(14), json!({}), "redacted");
    let members = get(&alice, &crowd.room, "members?membership=join");
    assert_eq!(members["chunk"].as_array().expect("members").len(), expected.len());
    let state = get(&alice, &crowd.room, "state");
    assert_eq!(state.as_array().expect("state").len(), expected.len() + 4);

    // One question to the resident for each hundred servers, not one for each server.
    assert_eq!(peer.asked("/key/v2/query").len(), 1);
    // What came by the room's resident alone is not remembered.
    let hs = server.homeserver();
    let keys = hs.store.read(|db| db.server_keys(&crowd.servers[0].name)).expect("read");
    assert!(keys.is_empty());

    let filter = json!({ "room": { "state": { "lazy_load_members": true } } }).to_string();
    let (status, sync) =
        alice.request("GET", &format!("/_matrix/client/v3/sync?filter={}", segment(&filter)), None);
    assert_eq!(status, 200);
    let room = &sync["rooms"]["join"][crowd.room.id.as_str()];
    assert_eq!(room["summary"]["m.joined_member_count"], json!(expected.len()));
    // The rest of the state, and of the members only the user and who speaks in the timeline.
    assert!(room["state"]["events"].as_array().expect("state").len() < 10, "{}", room["state"]);
}

#[test]
fn a_notary_of_the_settings_is_asked_in_bulk_and_what_it_says_is_kept() {
    let peer = Peer::start();
    let crowd = Crowd::new(&peer, "12", 300, 250);
    crowd.serve(&peer);
    let server = TestServer::start_with(|config| config.notaries = vec![peer.name().clone()]);
    let alice = server.user("alice");
    assert_eq!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200);
    assert_eq!(joined(&alice, &crowd.room).len(), 302);
    assert_eq!(peer.asked("/key/v2/query").len(), 3, "a hundred servers a question");
    let known = |gone: &Gone| {
        !server.homeserver().store.read(|db| db.server_keys(&gone.name)).expect("read").is_empty()
    };
    assert!(crowd.servers.iter().all(known));
}

#[test]
fn servers_of_a_large_room_are_told_of_it_as_they_ask() {
    let peer = Peer::start();
    let crowd = Crowd::new(&peer, "11", 300, 20);
    crowd.serve(&peer);
    let server = TestServer::start();
    let alice = server.user("alice");
    assert_eq!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200);

    let hand_in = |name: &str, query: &str| {
        let user = peer.user(name);
        let room = segment(crowd.room.id.as_str());
        let path = format!("/_matrix/federation/v1/make_join/{room}/{}?ver=11", segment(user.as_str()));
        let (status, template) = peer.ask(server.name(), "GET", &path, None);
        assert_eq!(status, 200, "{template}");
        let event = peer.sign(template["event"].as_object().expect("an event").clone(), crowd.room.version);
        let path =
            format!("/_matrix/federation/v2/send_join/{room}/{}{query}", segment(event.event_id().as_str()));
        let (status, answer) = peer.ask(server.name(), "PUT", &path, Some(&Value::Object(event.to_object())));
        assert_eq!(status, 200, "{answer}");
        (event, answer)
    };
    let count = |list: &Value| list.as_array().expect("a list").len();
    let (event, whole) = hand_in("one", "");
    assert_eq!((count(&whole["state"]), &whole["members_omitted"]), (306, &json!(false)));
    let (_, reduced) = hand_in("two", "?omit_members=true");
    assert_eq!(reduced["members_omitted"], json!(true));
    let kinds: BTreeSet<&str> =
        reduced["state"].as_array().expect("state").iter().filter_map(|e| e["type"].as_str()).collect();
    assert!(!kinds.contains("m.room.member") && kinds.contains("m.room.power_levels"), "{kinds:?}");
    let servers = reduced["servers_in_room"].as_array().expect("servers");
    assert!(servers.contains(&json!(server.name())) && servers.len() == 21, "{servers:?}");
    // The one who lets others in is a member, and what the state rests on beyond itself is there.
    let chain = reduced["auth_chain"].as_array().expect("events");
    assert!(chain.iter().any(|e| e["state_key"] == json!(crowd.room.creator)), "{chain:?}");
    assert!(chain.iter().all(|e| e["type"] == "m.room.member"), "the rest is in the state: {chain:?}");

    let at = segment(event.event_id().as_str());
    let room = segment(crowd.room.id.as_str());
    let path = |what: &str| format!("/_matrix/federation/v1/{what}/{room}?event_id={at}");
    let (_, ids) = peer.ask(server.name(), "GET", &path("state_ids"), None);
    assert_eq!((count(&ids["pdu_ids"]), count(&ids["auth_chain_ids"])), (306, 4));
    let (_, state) = peer.ask(server.name(), "GET", &path("state"), None);
    assert_eq!((count(&state["pdus"]), count(&state["auth_chain"])), (306, 4));
}

#[test]
fn a_nameless_room_is_told_with_those_that_it_is_named_after() {
    let peer = Peer::start();
    let mut crowd = Crowd::new(&peer, "11", 150, 5);
    crowd.room.state.remove(&("m.room.name".to_owned(), String::new()));
    crowd.serve(&peer);
    let server = TestServer::start();
    let alice = server.user("alice");
    assert_eq!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200);
    let user = peer.user("guest");
    let room = segment(crowd.room.id.as_str());
    let path = format!("/_matrix/federation/v1/make_join/{room}/{}?ver=11", segment(user.as_str()));
    let (_, template) = peer.ask(server.name(), "GET", &path, None);
    let event = peer.sign(template["event"].as_object().expect("an event").clone(), crowd.room.version);
    let id = segment(event.event_id().as_str());
    let path = format!("/_matrix/federation/v2/send_join/{room}/{id}?omit_members=true");
    let (_, answer) = peer.ask(server.name(), "PUT", &path, Some(&Value::Object(event.to_object())));
    let state = answer["state"].as_array().expect("state");
    assert_eq!(state.iter().filter(|e| e["type"] == "m.room.member").count(), 5);
}

#[test]
fn two_of_us_who_join_at_once_are_both_in_and_the_room_is_fetched_once() {
    let peer = Peer::start();
    let crowd = Crowd::new(&peer, "11", 300, 5);
    crowd.serve(&peer);
    let server = TestServer::start();
    let users = [server.user("alice"), server.user("bob")];
    std::thread::scope(|scope| {
        for user in &users {
            scope.spawn(|| assert_eq!(join(user, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200));
        }
    });
    let all = joined(&users[0], &crowd.room);
    assert!(users.iter().all(|user| all.contains(user.id())) && all.len() == 303);
    assert_eq!(peer.asked("/send_join/").len(), 1);
}

#[test]
fn a_peer_that_gives_more_than_anybody_could_hold_is_left_alone() {
    let peer = Peer::start();
    let crowd = Crowd::new(&peer, "11", 10, 5);
    crowd.serve(&peer);
    let server = TestServer::start();
    let alice = server.user("alice");
    peer.answer("/send_join/", |_| {
        Reply::stream("application/json", 1 << 30, Box::new(std::io::repeat(b' ').take(1 << 30)))
    });
    let (status, answer) = join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str()));
    assert_eq!(status, 502, "{answer}");
    // It is no harm done: the room is joined once there is a proper answer.
    crowd.serve(&peer);
    assert_eq!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200);
    assert_eq!(joined(&alice, &crowd.room).len(), 12);
}

#[test]
fn a_peer_that_dies_amid_its_answer_leaves_no_half_room() {
    let peer = Peer::start();
    let crowd = Crowd::new(&peer, "11", 500, 5);
    crowd.serve(&peer);
    let whole = crowd.join_answer();
    let times = AtomicUsize::new(0);
    peer.answer("/send_join/", move |_| {
        // All answers but the third end in the middle.
        if times.fetch_add(1, Ordering::Relaxed) >= 2 {
            return Reply::raw_json(whole.clone());
        }
        let half = std::io::Cursor::new(whole[..whole.len() / 2].to_vec());
        Reply::stream("application/json", whole.len() as u64, Box::new(half))
    });
    let server = TestServer::start();
    let alice = server.user("alice");
    assert!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0 >= 500);
    let hs = server.homeserver();
    let room = hs.store.read(|db| db.room(&crowd.room.id)).expect("read");
    assert!(room.is_none_or(|room| !room.resident && room.joined == 0));
    assert_eq!(join(&alice, crowd.room.id.as_str(), Some(peer.name().as_str())).0, 200);
    let key = hs.store.read(|db| Ok(db.known_room(&crowd.room.id)?.key)).expect("the room");
    let members = hs.store.read(|db| db.members(key, Some(Membership::Join))).expect("members");
    assert_eq!(members.len(), 502);
    assert_eq!(crowd.room.version.id, room_version("11").expect("known").id);
}
