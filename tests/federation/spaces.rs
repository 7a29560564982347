//! Spaces whose rooms are on other servers: many of them, some of which never answer; and pages of a space that changes.

use std::collections::BTreeSet;
use std::net::TcpListener;
use std::time::{Duration, Instant};

use crate::common::peer::Peer;
use crate::common::wait::Gate;
use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const CLIENT: &str = "/_matrix/client/v1/rooms";

fn space(user: &TestUser) -> String {
    user.create_room_with(json!({
        "preset": "public_chat", "name": "root", "creation_content": { "type": "m.space" },
    }))
}

fn room(user: &TestUser, name: &str) -> String {
    user.create_room_with(json!({ "preset": "public_chat", "name": name }))
}

fn link(user: &TestUser, space: &str, child: &str, via: &[&str], order: &str) {
    user.set_state(space, "m.space.child", child, json!({ "via": via, "order": order }));
}

fn names(page: &Value) -> Vec<String> {
    let rooms = page["rooms"].as_array().expect("rooms").iter();
    rooms.map(|room| room["name"].as_str().expect("a name").to_owned()).collect()
}

/// A page of a space: the names of its rooms, and the token of the next one.
#[track_caller]
fn page(user: &TestUser, root: &str, limit: usize, from: Option<&str>) -> (Vec<String>, Option<String>) {
    let from = from.map(|from| format!("&from={}", segment(from))).unwrap_or_default();
    let (status, page) =
        user.request("GET", &format!("{CLIENT}/{}/hierarchy?limit={limit}{from}", segment(root)), None);
    assert_eq!(status, 200, "{page}");
    let names = names(&page);
    assert!(names.len() <= limit);
    (names, page["next_batch"].as_str().map(str::to_owned))
}

/// The names of all rooms of a space, page by page.
fn walk(user: &TestUser, root: &str, limit: usize) -> Vec<String> {
    let (mut all, mut from) = (Vec::new(), None);
    loop {
        let (names, next) = page(user, root, limit, from.as_deref());
        all.extend(names);
        from = next;
        if from.is_none() {
            return all;
        }
    }
}

fn told(id: &str, name: &str, children: &[(String, &str)]) -> Value {
    let children = children.iter().map(|(child, via)| {
        json!({
            "type": "m.space.child", "state_key": child, "sender": "@a:example.org", "origin_server_ts": 1,
            "content": { "via": [via] },
        })
    });
    let is_space = children.len() > 0;
    let mut room = json!({
        "room_id": id, "name": name, "num_joined_members": 1, "world_readable": true, "guest_can_join": false,
        "children_state": children.collect::<Vec<_>>(),
    });
    if is_space {
        room["room_type"] = json!("m.space");
    }
    room
}

/// From now on the peer tells of any room that it is asked about, by its id.
fn tell_of_all(peer: &Peer) {
    peer.answer("/hierarchy/", |asked| {
        let id = asked.target.split("/hierarchy/").nth(1).and_then(|rest| rest.split('?').next());
        let id = id.expect("a room").replace("%21", "!").replace("%3A", ":");
        Reply::json(&json!({ "room": told(&id, &id, &[]), "children": [], "inaccessible_children": [] }))
    });
}

#[test]
fn a_space_whose_rooms_are_all_on_another_server_is_shown_whole_and_each_of_them_once() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let via = peer.name().as_str();
    tell_of_all(&peer);
    let root = space(&alice);
    let rooms: Vec<String> = (0..120).map(|n| format!("!r{n:03}:{via}")).collect();
    for (n, room) in rooms.iter().enumerate() {
        link(&alice, &root, room, &[via], &format!("{n:03}"));
    }
    let expected: Vec<String> = std::iter::once("root".to_owned()).chain(rooms).collect();
    for limit in [50, 100, 33] {
        assert_eq!(walk(&alice, &root, limit), expected, "{limit} a page");
    }
    assert_eq!(peer.asked("/hierarchy/").len(), 120, "what it said is known for a while");
}

#[test]
fn a_space_on_another_server_is_asked_about_and_not_each_of_its_rooms() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let via = peer.name().as_str();
    let (root, sub) = (space(&alice), format!("!sub:{via}"));
    link(&alice, &root, &format!("!top:{via}"), &[via], "a");
    let rooms = |of: &str, count: usize| -> Vec<(String, &str)> {
        (0..count).map(|n| (format!("!{of}{n:02}:{via}"), via)).collect()
    };
    let (mut top, below) = (rooms("t", 10), rooms("s", 60));
    top.push((sub.clone(), via));
    let described = |children: &[(String, &str)]| -> Vec<Value> {
        children.iter().map(|(id, _)| told(id, id, if *id == sub { &below } else { &[] })).collect()
    };
    let answer = |room: Value, children: Vec<Value>| json!({ "room": room, "children": children, "inaccessible_children": [] });
    peer.answer_json(
        "/hierarchy/%21top",
        200,
        answer(told(&format!("!top:{via}"), "top", &top), described(&top)),
    );
    peer.answer_json("/hierarchy/%21sub", 200, answer(told(&sub, "sub", &below), described(&below)));
    let shown = walk(&alice, &root, 100);
    assert_eq!((shown.len(), shown.iter().collect::<BTreeSet<_>>().len()), (73, 73), "{shown:?}");
    assert_eq!(peer.asked("/hierarchy/").len(), 2);
}

/// What is said of a room that is a child: which children it has is no part of that.
fn told_as_child(id: &str, kind: Option<&str>) -> Value {
    let mut child = told(id, id, &[]);
    child.as_object_mut().expect("a room").remove("children_state");
    if let Some(kind) = kind {
        child["room_type"] = json!(kind);
    }
    child
}

#[test]
fn of_children_whose_own_children_are_not_said_the_spaces_alone_are_asked_for_by_themselves() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let via = peer.name().as_str();
    let ids = |of: &str, count: usize| -> Vec<(String, &str)> {
        // Nobody answers there.
        (0..count).map(|n| (format!("!{of}{n:03}:{via}"), "gone.invalid:1")).collect()
    };
    let (top, sub, shut) = (format!("!top:{via}"), format!("!sub:{via}"), format!("!shut:{via}"));
    let (rooms, below) = (ids("r", 120), ids("b", 3));
    let mut children = rooms.clone();
    children.extend([(sub.clone(), via), (shut.clone(), via)]);
    let mut described: Vec<Value> = rooms.iter().map(|(id, _)| told_as_child(id, None)).collect();
    described.extend([&sub, &shut].map(|space| told_as_child(space, Some("m.space"))));
    let answer = |room: Value, children: &[Value]| json!({ "room": room, "children": children, "inaccessible_children": [] });
    peer.answer_json("/hierarchy/%21top", 200, answer(told(&top, "top", &children), &described));
    let described: Vec<Value> = below.iter().map(|(id, _)| told_as_child(id, Some("org.example"))).collect();
    peer.answer_json("/hierarchy/%21sub", 200, answer(told(&sub, "sub", &below), &described));
    // Nothing more is known of this one than was said with the space above it.
    peer.answer_json("/hierarchy/%21shut", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
    let root = space(&alice);
    link(&alice, &root, &top, &[via], "a");
    let shown = walk(&alice, &root, 50);
    assert_eq!(shown.iter().collect::<BTreeSet<_>>().len(), 2 + 120 + 2 + 3, "{shown:?}");
    assert!(shown.contains(&"sub".to_owned()) && shown.contains(&shut), "{shown:?}");
    let asked: Vec<String> = peer.asked("/hierarchy/").into_iter().map(|asked| asked.target).collect();
    assert_eq!(asked.len(), 3, "{asked:?}");
    // Of the room that is asked about it has to be said.
    peer.answer_json("/hierarchy/%21odd", 200, answer(told_as_child(&format!("!odd:{via}"), None), &[]));
    link(&alice, &root, &format!("!odd:{via}"), &[via], "b");
    assert_eq!(walk(&alice, &root, 50).len(), shown.len());
}

#[test]
fn a_page_goes_on_where_the_last_one_ended_whatever_became_of_the_space() {
    let server = TestServer::start();
    let (alice, here) = (server.user("alice"), server.name());
    let root = space(&alice);
    let rooms: Vec<String> = (0..6).map(|n| room(&alice, &format!("r{n}"))).collect();
    for (n, room) in rooms.iter().enumerate() {
        link(&alice, &root, room, &[here], &n.to_string());
    }
    let (first, next) = page(&alice, &root, 3, None);
    assert_eq!(first, ["root", "r0", "r1"]);
    // Two before that are gone, and three are new: one of them before, too.
    for gone in &rooms[..2] {
        alice.set_state(&root, "m.space.child", gone, json!({}));
    }
    for n in 0..3 {
        link(&alice, &root, &room(&alice, &format!("new{n}")), &[here], " ");
    }
    let (second, after) = page(&alice, &root, 2, next.as_deref());
    assert_eq!(second, ["r2", "r3"]);
    // An answer that was lost on its way is had again.
    assert_eq!(page(&alice, &root, 2, next.as_deref()).0, second);
    let (third, end) = page(&alice, &root, 9, after.as_deref());
    assert_eq!((third, end), (vec!["r4".to_owned(), "r5".to_owned()], None));
    // Whoever comes back late goes on by the number of rooms that were shown.
    server.advance(Duration::from_secs(3600));
    assert_eq!(
        page(&alice, &root, 9, after.as_deref()),
        (vec!["r3".to_owned(), "r4".to_owned(), "r5".to_owned()], None)
    );
}

#[test]
fn servers_of_a_space_that_never_answer_hold_up_no_page_and_none_of_the_others_rooms() {
    let (server, there) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let gate = Gate::default();
    let silent: Vec<Peer> = (0..4).map(|_| Peer::start()).collect();
    tell_of_all(&there);
    let root = space(&alice);
    for (n, peer) in silent.iter().enumerate() {
        peer.answer_behind(&gate, "/hierarchy/", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
        link(&alice, &root, &format!("!dead{n}:example.org"), &[peer.name().as_str()], &format!("a{n}"));
    }
    let via = there.name().as_str();
    let mut living = vec!["root".to_owned()];
    for n in 0..5 {
        let room = format!("!live{n}:{via}");
        // The second of them could be asked of a silent server as well.
        let others = if n == 1 { vec![silent[0].name().as_str(), via] } else { vec![via] };
        link(&alice, &root, &room, &others, &format!("b{n}"));
        living.push(room);
    }
    let look = || {
        let (began, asked) =
            (Instant::now(), silent.iter().map(|peer| peer.asked("/hierarchy/").len()).sum::<usize>());
        let shown = walk(&alice, &root, 50);
        let asked = silent.iter().map(|peer| peer.asked("/hierarchy/").len()).sum::<usize>() - asked;
        (shown, asked, began.elapsed())
    };
    let (shown, asked, took) = look();
    assert_eq!(shown, living);
    assert!(asked >= 4 && took < Duration::from_secs(20), "{asked} {took:?}");
    let (shown, asked, _) = look();
    assert_eq!((&shown, asked), (&living, 0), "whoever is silent is known for it");
    // With that, and nothing else.
    silent[0].answer_json("/query/profile", 200, json!({ "displayname": "Eve" }));
    let eve = segment(silent[0].user("eve").as_str());
    assert_eq!(alice.get(&format!("/_matrix/client/v3/profile/{eve}"))["displayname"], "Eve");
    // Until it speaks.
    gate.open();
    silent[0].ask(
        server.name(),
        "GET",
        "/_matrix/federation/v1/query/profile?user_id=%40x%3Alocalhost",
        None,
    );
    let asked = silent[0].asked("/hierarchy/").len();
    assert_eq!(look().0, living);
    assert!(silent[0].asked("/hierarchy/").len() > asked);
}

#[test]
fn whatever_a_stranger_says_of_the_rooms_of_a_space_a_page_ends_and_asks_no_more_once_it_is_much() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let via = peer.name().as_str();
    let (root, rooms, said) = (space(&alice), 30, 900 << 10);
    for n in 0..rooms {
        link(&alice, &root, &format!("!r{n:02}:{via}"), &[via], &format!("{n:02}"));
    }
    peer.answer("/hierarchy/", move |asked| {
        let id = asked.target.split("/hierarchy/").nth(1).and_then(|rest| rest.split('?').next());
        let id = id.expect("a room").replace("%21", "!").replace("%3A", ":");
        let mut room = told(&id, &id, &[]);
        if id.starts_with("!r00:") {
            // More than rooms have, in a field that is no name and no topic.
            room["avatar_url"] = json!("x".repeat(said));
        } else {
            room["room_type"] = json!("m.space");
            room["children_state"] = json!([{
                "type": "m.space.child", "state_key": "!below:example.org", "sender": "@a:example.org",
                "origin_server_ts": 1, "content": { "via": ["example.org"], "more": "x".repeat(said) },
            }]);
        }
        Reply::json(&json!({ "room": room, "children": [], "inaccessible_children": [] }))
    });
    let mut shown = Vec::new();
    let mut from = String::new();
    let mut pages = 0;
    loop {
        let asked = peer.asked("/hierarchy/").len();
        let path = format!("{CLIENT}/{}/hierarchy?limit=100&max_depth=1{from}", segment(&root));
        let page = alice.get(&path);
        let asked = peer.asked("/hierarchy/").len() - asked;
        assert!(asked * said < 16 << 20, "{asked}");
        shown.extend(names(&page));
        pages += 1;
        let Some(next) = page["next_batch"].as_str() else { break };
        from = format!("&from={next}");
    }
    let expected: Vec<String> = (1..rooms).map(|n| format!("!r{n:02}:{via}")).collect();
    assert_eq!(shown[1..], expected, "and one that is too large is not shown");
    assert!(pages > 1);
}

#[test]
fn a_room_whose_servers_all_hang_holds_up_one_page_of_a_space_and_none_of_its_siblings() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let root = space(&alice);
    // They take connections and say nothing.
    let silent: Vec<TcpListener> =
        (0..8).map(|_| TcpListener::bind("127.0.0.1:0").expect("a port")).collect();
    let name = |door: &TcpListener| format!("localhost:{}", door.local_addr().expect("an address").port());
    let names: Vec<String> = silent.iter().map(name).collect();
    let via: Vec<&str> = names.iter().map(String::as_str).collect();
    link(&alice, &root, "!dead:example.org", &via, "a");
    for name in ["one", "two"] {
        link(&alice, &root, &room(&alice, name), &[server.name()], name);
    }
    let (shown, next) = page(&alice, &root, 50, None);
    assert_eq!(shown, ["root", "one", "two"]);
    let rest = next.map(|from| page(&alice, &root, 50, Some(&from)));
    assert!(rest.is_none_or(|rest| rest == (Vec::new(), None)), "it is not waited for without end");
}
