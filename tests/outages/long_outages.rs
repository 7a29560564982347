//! A server that was away for a long time: it and the others hold together again soon after, by a number of requests that
//! does not grow with what was missed, and the rest is there for whoever reads back so far.
//!
//! The long forms print figures: `cargo test --release --test outages long_outages -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "the figures are for whoever runs the long forms")]

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Instant;

use crate::common::ProcessServer;
use crate::common::peer::{Asked, FakeRoom, Peer, now_ms};
use crate::common::scene::{objects, read_back};
use crate::common::wait::wait_until;
use doorstep::internals::Reply;
use doorstep::protocol::room_version::{RoomVersion, room_version};
use doorstep::protocol::{EventId, Pdu};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// How many events Synapse gives of those that somebody misses, whatever number is asked for.
const MISSING_AT_ONCE: usize = 20;
/// Bytes that the server may take for it, beyond what it had.
const MOST_MEMORY: u64 = 100 << 20;

#[test]
fn three_hundred_events_that_we_missed() {
    we_missed(300);
}

#[test]
#[ignore = "long; prints figures"]
fn ten_thousand_events_that_we_missed() {
    we_missed(10_000);
}

#[test]
fn three_hundred_events_that_a_peer_missed() {
    a_peer_missed(300);
}

#[test]
#[ignore = "long; prints figures"]
fn ten_thousand_events_that_a_peer_missed() {
    a_peer_missed(10_000);
}

/// A stretch of a room's history without forks, as its resident server knows it.
struct History {
    /// The state before the first event.
    base: Vec<Pdu>,
    events: Vec<Pdu>,
    index: HashMap<EventId, usize>,
}

impl History {
    /// So many messages, amid which the topic changes.
    fn of_messages(peer: &Peer, room: &mut FakeRoom, count: usize) -> History {
        let base = room.state.values().cloned().collect();
        let mut events = Vec::with_capacity(count + 1);
        for n in 0..count {
            if n == count / 2 {
                let creator = room.creator.clone();
                events.push(room.add(peer, "m.room.topic", "", &creator, json!({ "topic": "missed" })));
            }
            events.push(room.say(peer, &format!("missed {n}")));
        }
        let index = events.iter().enumerate().map(|(n, event)| (event.event_id().clone(), n)).collect();
        History { base, events, index }
    }

    fn place(&self, id: &str) -> Option<usize> {
        self.index.get(&EventId::parse(id).ok()?).copied()
    }

    /// The last event whose id is in the path, or among these ids.
    fn place_in(&self, target: &str) -> Option<usize> {
        let last = target.split(['/', '?', '&', '=']).filter_map(|part| self.place(&decoded(part)));
        last.max()
    }

    fn missing(&self, asked: &Asked) -> Value {
        let places = |key: &str| {
            let ids = asked.body[key].as_array().cloned().unwrap_or_default();
            ids.iter().filter_map(|id| self.place(id.as_str()?)).collect::<Vec<_>>()
        };
        let end = places("latest_events").into_iter().max().unwrap_or(0);
        let begin = places("earliest_events").into_iter().max().map_or(0, |place| place + 1);
        let begin = begin.max(end.saturating_sub(MISSING_AT_ONCE));
        json!({ "events": objects(self.events.get(begin..end).unwrap_or_default()) })
    }

    fn state_before(&self, place: usize) -> Vec<&Pdu> {
        let mut state: BTreeMap<(&str, &str), &Pdu> = BTreeMap::new();
        for event in self.base.iter().chain(&self.events[..place]).filter(|event| event.is_state()) {
            state.insert((event.event_type(), event.state_key().unwrap_or_default()), event);
        }
        state.into_values().collect()
    }

    /// Has the peer answer whatever a server may ask of its history.
    fn serve(self, peer: &Peer) -> Arc<Self> {
        let none = || Reply::json_status(404, &json!({ "errcode": "M_NOT_FOUND", "error": "none" }));
        let history = Arc::new(self);
        let here = history.clone();
        peer.answer("/get_missing_events/", move |asked| Reply::json(&here.missing(asked)));
        let here = history.clone();
        peer.answer("/state_ids/", move |asked| {
            let Some(place) = here.place_in(&asked.target) else { return none() };
            let ids: Vec<&EventId> = here.state_before(place).into_iter().map(Pdu::event_id).collect();
            Reply::json(&json!({ "pdu_ids": ids, "auth_chain_ids": ids }))
        });
        let here = history.clone();
        peer.answer("/backfill/", move |asked| {
            let Some(place) = here.place_in(&asked.target) else { return none() };
            let page = &here.events[(place + 1).saturating_sub(100)..=place];
            Reply::json(&json!({ "origin": "x", "origin_server_ts": 1, "pdus": objects(page) }))
        });
        let here = history.clone();
        peer.answer("/event/", move |asked| {
            let Some(place) = here.place_in(&asked.target) else { return none() };
            let event = here.events[place].to_object();
            Reply::json(&json!({ "origin": "x", "origin_server_ts": 1, "pdus": [event] }))
        });
        history
    }
}

/// The version of the rooms here.
fn version() -> RoomVersion {
    room_version("11").expect("a known version")
}

fn read(event: &Value) -> Pdu {
    Pdu::from_object(event.as_object().expect("an event").clone(), version()).expect("an event")
}

fn decoded(part: &str) -> String {
    part.replace("%24", "$").replace("%3A", ":")
}

/// The most memory that the process ever had, in bytes.
fn peak_memory(server: &ProcessServer) -> u64 {
    let pid = server.pid().expect("it runs");
    let Ok(status) = std::fs::read_to_string(format!("/proc/{pid}/status")) else { return 0 };
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap_or_default();
    let kib: u64 = line.trim().trim_end_matches(" kB").parse().unwrap_or(0);
    kib << 10
}

fn in_words(more: u64, before: u64) -> String {
    format!("{} MiB of memory at most, {} more than before", (before + more) >> 20, more >> 20)
}

/// Prints how often each kind of request was made.
fn tally(what: &str, peer: &Peer) -> usize {
    let mut kinds: BTreeMap<String, usize> = BTreeMap::new();
    for asked in peer.asked("/_matrix/federation/") {
        let kind = asked.target.split('/').nth(4).unwrap_or_default().to_owned();
        *kinds.entry(kind).or_default() += 1;
    }
    println!("{what}: {kinds:?}");
    kinds.values().sum()
}

fn we_missed(count: usize) {
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let peer = Peer::start();
    let mut room = FakeRoom::joined_by(&peer, "11", &alice);
    peer.answer_json("/send/", 500, json!({ "errcode": "M_UNKNOWN", "error": "the line is cut" }));
    let room_id = room.id.to_string();
    // Both sides go on talking.
    let ours = alice.send(&room_id, "said alone");
    let history = History::of_messages(&peer, &mut room, count).serve(&peer);
    let (before, memory) = (tally("before", &peer), peak_memory(&server));

    // The line is back. The peer sends the last of it, as a server does that has no more patience than that.
    peer.take_transactions();
    let last = history.events.last().expect("there are some");
    let began = Instant::now();
    let (status, answer) = peer.send_transaction(server.name(), "back", &[last]);
    assert_eq!((status, &answer["pdus"][last.event_id().as_str()]), (200, &json!({})));
    let newest = format!("missed {}", count - 1);
    wait_until("the last is shown", || {
        let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1", segment(&room_id));
        alice.get(&path)["chunk"][0]["content"]["body"] == newest.as_str()
    });
    let requests = tally("until the last is shown", &peer) - before;
    println!("the last of {count} is shown after {:.1?} and {requests} requests", began.elapsed());
    assert!(requests < 130, "{requests}");
    let topic = alice.state(&room_id, "m.room.topic", "").expect("a topic");
    assert_eq!(topic["topic"], "missed");
    // Whatever is said now follows both branches, and reaches the other side.
    let both = alice.send(&room_id, "together again");
    let sent = sent_event(&peer, &both);
    let follows: Vec<&str> =
        sent["prev_events"].as_array().expect("events").iter().filter_map(Value::as_str).collect();
    assert!(follows.contains(&ours.as_str()) && follows.contains(&last.event_id().as_str()), "{sent}");
    assert_eq!(follows.len(), 2);

    let began = Instant::now();
    let read = read_back(&alice, &room_id);
    let mut expected: Vec<String> = (0..count).map(|n| format!("missed {n}")).collect();
    expected.push("together again".to_owned());
    let (own, read): (Vec<String>, Vec<String>) = read.into_iter().partition(|body| body == "said alone");
    assert_eq!((read, own.len()), (expected, 1));
    tally("until everything is read", &peer);
    let more = peak_memory(&server) - memory;
    println!("all is read after {:.1?} more; {}", began.elapsed(), in_words(more, memory));
    assert!(more < MOST_MEMORY, "{more}");
}

/// An event as it was sent to the peer.
fn sent_event(peer: &Peer, id: &str) -> Value {
    let mut found = None;
    wait_until("the peer is sent the event", || {
        let transactions = peer.asked("/send/");
        let mut pdus = transactions.iter().rev().filter_map(|asked| asked.body["pdus"].as_array()).flatten();
        found = pdus.find(|pdu| read(pdu).event_id().as_str() == id).cloned();
        found.is_some()
    });
    found.expect("just found")
}

/// Says so much, several things at a time, as several clients do. The ids of the events.
fn say_at_once(user: &TestUser, room: &str, count: usize) -> Vec<String> {
    let next = AtomicUsize::new(0);
    let say = || {
        let mut said = Vec::new();
        loop {
            let n = next.fetch_add(1, Ordering::Relaxed);
            if n >= count {
                return said;
            }
            said.push(user.send(room, &format!("unheard {n}")));
        }
    };
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..8).map(|_| scope.spawn(say)).collect();
        clients.into_iter().flat_map(|client| client.join().expect("everything is said")).collect()
    })
}

fn a_peer_missed(count: usize) {
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_version": "11" }));
    let peer = Peer::start();
    peer.take_transactions();
    let user = peer.user("eve");
    let (join, (status, answer)) = peer.hand_in(server.name(), "join", &room, &user);
    assert_eq!(status, 200, "{answer}");
    let state = answer["state"].as_array().expect("events").iter().map(read);
    let mut auth: Vec<EventId> = state
        .filter(|event| matches!(event.event_type(), "m.room.create" | "m.room.power_levels"))
        .map(|event| event.event_id().clone())
        .collect();
    auth.push(join.event_id().clone());
    let first = alice.send(&room, "heard");
    sent_event(&peer, &first);

    peer.answer_json("/send/", 500, json!({ "errcode": "M_UNKNOWN", "error": "the line is cut" }));
    let heard = peer.asked("/send/").len();
    let said = say_at_once(&alice, &room, count);
    wait_until("the server notices", || peer.asked("/send/").len() > heard);
    alice.set_state(&room, "m.room.topic", "", json!({ "topic": "unheard" }));
    let last = alice.send(&room, "the last");
    let (before, memory) = (tally("before", &peer), peak_memory(&server));

    // The line is back, and the peer asks something, which tells that it is there.
    peer.take_transactions();
    let began = Instant::now();
    wait_until("the peer is sent the last", || {
        let path = format!("/_matrix/federation/v1/event/{}", segment(&last));
        assert_eq!(peer.ask(server.name(), "GET", &path, None).0, 200);
        let told = peer.asked("/send/").into_iter().rev().take(3);
        told.flat_map(|asked| asked.body["pdus"].as_array().cloned().unwrap_or_default())
            .any(|pdu| pdu["content"]["body"] == "the last")
    });
    let transactions = tally("until the last is sent", &peer) - before;
    println!("the last of {count} is sent after {:.1?} and {transactions} transactions", began.elapsed());
    assert!(transactions <= 6, "{transactions}");

    // It finds the rest from there, and what was not sent is not sent later.
    let (began, mut asked, mut missing) = (Instant::now(), 0, said.clone());
    let mut from = last.clone();
    while !missing.is_empty() {
        let path =
            format!("/_matrix/federation/v1/backfill/{}?limit=100&v={}", segment(&room), segment(&from));
        let (status, page) = peer.ask(server.name(), "GET", &path, None);
        assert_eq!(status, 200, "{page}");
        let pdus = page["pdus"].as_array().expect("events").iter();
        let mut ids: Vec<String> = pdus.map(|pdu| read(pdu).event_id().to_string()).collect();
        asked += 1;
        missing.retain(|id| !ids.contains(id));
        let oldest = ids.pop().expect("it goes on");
        assert_ne!(oldest, from, "{} are not to be had", missing.len());
        from = oldest;
    }
    println!("the peer finds the rest in {:.1?} by {asked} requests", began.elapsed());
    assert!(asked <= count / 99 + 2, "{asked}");
    let more = peak_memory(&server) - memory;
    println!("{}", in_words(more, memory));
    assert!(more < MOST_MEMORY, "{more}");

    // Both hold together: what the peer says now follows what it was sent, and is shown.
    let answer = json!({
        "type": "m.room.message", "sender": user, "room_id": room, "depth": count + 100,
        "content": { "body": "I am back" }, "prev_events": [last], "origin_server_ts": now_ms(),
        "auth_events": auth,
    });
    let answer = peer.sign(answer.as_object().expect("an object").clone(), version());
    let (status, told) = peer.send_transaction(server.name(), "back", &[&answer]);
    assert_eq!((status, &told["pdus"][answer.event_id().as_str()]), (200, &json!({})));
    let sees = read_back(&alice, &room);
    assert_eq!(sees.last().map(String::as_str), Some("I am back"));
    assert_eq!(sees.len(), count + 3);
}
