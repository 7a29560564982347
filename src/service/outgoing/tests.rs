//! Delivery to peers on real sockets, from a database on disk.

use std::collections::HashSet;
use std::sync::atomic::AtomicBool;
use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::clock::Steady;
use crate::config::{Config, Data};
use crate::federation::client::scripted_peer::{AskedOfPeer, ScriptedAnswer, ScriptedPeer};
use crate::locks::lock;
use crate::service::outgoing::queue::{DestinationState, Lane};
use crate::testing::{certificates, temporary_folder};

const SEND: &str = "/_matrix/federation/v1/send/";

/// A homeserver whose database outlives it.
struct House {
    folder: std::path::PathBuf,
    clock: Clock,
    hs: Option<Arc<Homeserver>>,
}

impl House {
    fn new() -> Self {
        let mut house = Self { folder: temporary_folder("sender"), clock: Clock::new(), hs: None };
        house.open();
        house
    }

    fn open(&mut self) {
        let mut config = Config::for_name(ServerName::parse("us.example").expect("a name"));
        config.trust_ca = vec![certificates().ca.clone()];
        config.allow_private_addresses = true;
        config.durable = false;
        config.data = Data::Folder(self.folder.clone());
        let hs = Homeserver::open(config, self.clock.clone()).expect("a homeserver");
        hs.start_background().expect("threads");
        self.hs = Some(hs);
    }

    fn close(&mut self) {
        if let Some(hs) = self.hs.take() {
            hs.stop_background();
        }
    }

    fn hs(&self) -> &Homeserver {
        self.hs.as_ref().expect("open")
    }

    fn room(&self, servers: &[&ServerName]) -> RoomKey {
        static ROOM: AtomicUsize = AtomicUsize::new(0);
        let id = format!("!r{}:us.example", ROOM.fetch_add(1, Ordering::Relaxed));
        let servers: Vec<ServerName> = servers.iter().map(|s| (*s).clone()).collect();
        let made = self.hs().store.write(move |tx| tx.pretend_room(&id, &servers.iter().collect::<Vec<_>>()));
        made.expect("a room")
    }

    /// Events `$<prefix>0`, `$<prefix>1` … in one commit.
    fn events(&self, room: RoomKey, prefix: &'static str, count: usize) {
        let written = self.hs().store.write(move |tx| {
            for n in 0..count {
                tx.pretend_event(room, &format!("${prefix}{n}"), "@a:us.example")?;
            }
            tx.owes(room, "us.example")?;
            Ok(())
        });
        written.expect("events");
    }

    fn advance(&self, seconds: u64) {
        self.clock.advance(Duration::from_secs(seconds));
        self.hs().clock_moved();
    }

    fn kept(&self, server: &ServerName) -> Destination {
        self.hs().store.read(|db| db.destination(server)).expect("read")
    }
}

impl Drop for House {
    fn drop(&mut self) {
        self.close();
        let _ = std::fs::remove_dir_all(&self.folder);
    }
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !is_so() {
        assert!(Instant::now() < deadline, "{what} did not come about");
        std::thread::park_timeout(Duration::from_millis(5));
    }
}

fn ids(asked: &AskedOfPeer) -> Vec<String> {
    let body = asked.json();
    let pdus = body["pdus"].as_array().expect("pdus");
    pdus.iter().map(|p| p["event_id"].as_str().expect("an id").to_owned()).collect()
}

fn edus(asked: &AskedOfPeer) -> Vec<Value> {
    asked.json()["edus"].as_array().cloned().unwrap_or_default()
}

fn numbered(prefix: &str, range: std::ops::Range<usize>) -> Vec<String> {
    range.map(|n| format!("${prefix}{n}")).collect()
}

fn taken() -> ScriptedAnswer {
    ScriptedAnswer::Json(200, json!({ "pdus": {} }))
}

/// A peer that takes transactions while it is up.
fn peer() -> (ScriptedPeer, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(true));
    let is_up = up.clone();
    let peer = ScriptedPeer::start(move |_| match is_up.load(Ordering::Relaxed) {
        true => taken(),
        false => ScriptedAnswer::Json(503, json!({ "errcode": "M_UNKNOWN" })),
    });
    (peer, up)
}

#[test]
fn events_arrive_in_order_at_most_50_at_a_time() {
    let house = House::new();
    let (peer, _) = peer();
    let room = house.room(&[&peer.name]);
    house.events(room, "a", 120);
    let asked = peer.wait_for(SEND, 3);
    let all: Vec<Vec<String>> = asked.iter().map(ids).collect();
    assert_eq!(all, [numbered("a", 0..50), numbered("a", 50..100), numbered("a", 100..120)]);
    let txns: HashSet<&str> = asked.iter().map(|a| a.target.as_str()).collect();
    assert_eq!(txns.len(), 3);
    assert_eq!(asked[0].json()["origin"], json!("us.example"));

    // The cursor is written by and by.
    let position = house.hs().store.position();
    until("the cursor", || house.kept(&peer.name).cursor == position);
}

#[test]
fn a_transaction_that_failed_is_repeated_as_it_was_and_what_came_later_follows() {
    let house = House::new();
    let (peer, up) = peer();
    let room = house.room(&[&peer.name]);
    up.store(false, Ordering::Relaxed);
    house.events(room, "early", 3);
    peer.wait_for(SEND, 1);
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    house.events(room, "late", 2);
    up.store(true, Ordering::Relaxed);
    house.advance(10);
    let asked = peer.wait_for(SEND, 3);
    assert_eq!(asked[0].target, asked[1].target);
    assert_eq!(ids(&asked[1]), numbered("early", 0..3));
    assert_eq!(ids(&asked[2]), numbered("late", 0..2));
    assert_ne!(asked[2].target, asked[1].target);
    until("the end of the pause", || !house.hs().outgoing.is_pausing(&peer.name));
}

#[test]
fn after_a_restart_the_same_transaction_goes_out_when_its_time_has_come() {
    let mut house = House::new();
    let (peer, up) = peer();
    let room = house.room(&[&peer.name]);
    up.store(false, Ordering::Relaxed);
    house.events(room, "early", 3);
    peer.wait_for(SEND, 1);
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    house.events(room, "late", 2);
    house.close();
    house.open();
    up.store(true, Ordering::Relaxed);
    // The pause is remembered.
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    assert_eq!(house.kept(&peer.name).failures, 1);
    assert_eq!(peer.asked().len(), 1);
    house.advance(10);
    let asked = peer.wait_for(SEND, 3);
    assert_eq!(asked[1].target, asked[0].target);
    assert_eq!(ids(&asked[1]), ids(&asked[0]));
    assert_eq!(ids(&asked[2]), numbered("late", 0..2));
}

#[test]
fn what_was_never_tried_goes_out_after_a_restart() {
    let mut house = House::new();
    let (peer, _) = peer();
    let room = house.room(&[&peer.name]);
    // Written without a wake, as if the process had been killed right after the commit.
    house
        .hs()
        .store
        .write(move |tx| tx.pretend_event(room, "$lost", "@a:us.example").map(|_| ()))
        .expect("written");
    house.close();
    house.open();
    assert_eq!(ids(&peer.wait_for(SEND, 1)[0]), ["$lost"]);
    until("the cursor", || house.kept(&peer.name).cursor > 0);
    house.close();
    house.open();
    house.events(room, "next", 1);
    assert_eq!(ids(&peer.wait_for(SEND, 2)[1]), ["$next0"], "what was delivered is not sent again");
}

#[test]
fn a_peer_that_speaks_is_tried_at_once() {
    let house = House::new();
    let (peer, up) = peer();
    let room = house.room(&[&peer.name]);
    up.store(false, Ordering::Relaxed);
    house.events(room, "a", 1);
    for attempt in 1..=5 {
        peer.wait_for(SEND, attempt);
        until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
        house.advance(3600);
    }
    peer.wait_for(SEND, 6);
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    up.store(true, Ordering::Relaxed);
    // The next pause would be two minutes; with a word from the peer a few seconds do.
    house.advance(12);
    house.hs().outgoing.peer_spoke(&peer.name);
    peer.wait_for(SEND, 7);
    until("the end of the pause", || !house.hs().outgoing.is_pausing(&peer.name));
}

#[test]
fn a_limit_of_the_peer_is_respected() {
    let house = House::new();
    let peer = ScriptedPeer::start(|_| {
        ScriptedAnswer::Json(429, json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 600_000 }))
    });
    let room = house.room(&[&peer.name]);
    house.events(room, "a", 1);
    peer.wait_for(SEND, 1);
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    let due = lock(&house.hs().outgoing.0.state).destinations[&peer.name].kept.retry_ms;
    assert!(due - house.clock.now_ms() > 500_000);
}

#[test]
fn silent_servers_do_not_keep_what_others_are_owed() {
    let house = House::new();
    let (good, _) = peer();
    let silent: Vec<ScriptedPeer> =
        (0..UNPROVEN_THREADS_MAX + 5).map(|_| ScriptedPeer::start(|_| ScriptedAnswer::Silence)).collect();
    let proven = house.room(&[&good.name]);
    house.events(proven, "first", 1);
    good.wait_for(SEND, 1);
    let names: Vec<&ServerName> = silent.iter().map(|p| &p.name).chain([&good.name]).collect();
    let room = house.room(&names);
    for prefix in ["a", "b", "c"] {
        house.events(room, prefix, 1);
    }
    until("the good one's delivery", || {
        let got: Vec<String> = good.asked().iter().flat_map(ids).collect();
        got == ["$first0", "$a0", "$b0", "$c0"]
    });
    until("the silent ones' turn", || {
        silent.iter().filter(|p| !p.asked().is_empty()).count() == UNPROVEN_THREADS_MAX
    });
}

#[test]
fn those_that_take_long_hold_some_threads_and_none_of_those_for_others() {
    let house = House::new();
    let (good, _) = peer();
    let hold = Arc::new(AtomicBool::new(false));
    let slow: Vec<ScriptedPeer> = (0..SLOW_THREADS_MAX + 5)
        .map(|_| {
            let hold = hold.clone();
            ScriptedPeer::start(move |_| match hold.load(Ordering::Relaxed) {
                true => ScriptedAnswer::Silence,
                false => taken(),
            })
        })
        .collect();
    let room = house.room(&slow.iter().map(|p| &p.name).chain([&good.name]).collect::<Vec<_>>());
    house.events(room, "first", 1);
    slow.iter().for_each(|peer| drop(peer.wait_for(SEND, 1)));
    until("all are proven", || slow.iter().all(|p| house.hs().outgoing.is_proven(&p.name)));
    let now = house.clock.steady();
    for peer in &slow {
        let mut state = lock(&house.hs().outgoing.0.state);
        state.destinations.get_mut(&peer.name).expect("known").took(SLOW_AFTER * 2, now);
    }
    hold.store(true, Ordering::Relaxed);
    house.events(room, "second", 1);
    until("the slow ones have their threads", || {
        lock(&house.hs().outgoing.0.state).busy[Lane::Slow as usize] == SLOW_THREADS_MAX
    });
    good.wait_for(SEND, 2);
    let asked = || slow.iter().filter(|p| p.asked().len() > 1).count();
    until("they are asked", || asked() >= SLOW_THREADS_MAX);
    assert_eq!(asked(), SLOW_THREADS_MAX);
}

#[test]
fn who_was_slow_is_so_for_many_times_as_long_and_until_they_were_fast_again() {
    let mut peer = DestinationState { reached: true, ..DestinationState::default() };
    let fast = Duration::from_millis(100);
    peer.took(fast, Steady::at(0));
    assert_eq!(peer.lane_now(), Lane::Proven);
    peer.took(Duration::from_secs(50), Steady::at(0));
    assert_eq!(peer.lane_now(), Lane::Slow);
    peer.took(fast, Steady::at(999_000));
    assert_eq!(peer.lane_now(), Lane::Slow, "fast and slow by turns is slow");
    peer.took(fast, Steady::at(1_000_000));
    assert_eq!(peer.lane_now(), Lane::Proven);
}

#[test]
fn for_threads_that_are_held_for_long_by_those_who_were_fast_there_are_others() {
    let house = House::new();
    let began = house.clock.instant();
    let mut state = lock(&house.hs().outgoing.0.state);
    for n in 0..2 * RELIEF_THREADS_MAX {
        let name = ServerName::parse(&format!("s{n}.example")).expect("a name");
        let lane = if n % 2 == 0 { Lane::Proven } else { Lane::Slow };
        state.under_way.insert(name, (began, lane));
    }
    assert_eq!(state.threads_max(began + SLOW_AFTER), THREADS_MAX);
    assert_eq!(state.threads_max(began + SLOW_AFTER * 2), THREADS_MAX + RELIEF_THREADS_MAX);
    state.under_way.clear();
}

/// Names behind which nobody answers: doors that open and stay silent, closed doors, names without an address.
struct Dead {
    _doors: Vec<std::net::TcpListener>,
    names: Vec<ServerName>,
}

fn dead(silent: usize, closed: usize, unknown: usize) -> Dead {
    let door = || std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
    let name =
        |door: &std::net::TcpListener| format!("localhost:{}", door.local_addr().expect("an address").port());
    let silent: Vec<_> = (0..silent).map(|_| door()).collect();
    let closed: Vec<_> = (0..closed).map(|_| door()).collect();
    let names =
        silent.iter().chain(&closed).map(name).chain((0..unknown).map(|n| format!("s{n}.invalid:8448")));
    let names = names.map(|name| ServerName::parse(&name).expect("a name")).collect();
    Dead { _doors: silent, names }
}

#[test]
fn after_a_restart_200_dead_servers_do_not_keep_what_a_living_one_is_owed() {
    let mut house = House::new();
    let (good, _) = peer();
    let proven = house.room(&[&good.name]);
    house.events(proven, "first", 1);
    good.wait_for(SEND, 1);
    until("the cursor", || house.kept(&good.name).cursor > 0);
    let dead = dead(120, 40, 40);
    let room = house.room(&dead.names.iter().chain([&good.name]).collect::<Vec<_>>());
    let written =
        house.hs().store.write(move |tx| tx.pretend_event(room, "$next", "@a:us.example").map(drop));
    written.expect("an event");
    house.close();
    house.open();
    assert_eq!(ids(&good.wait_for(SEND, 2)[1]), ["$next"]);
}

#[test]
fn a_new_server_that_has_spoken_does_not_wait_for_100_dead_ones() {
    let house = House::new();
    let dead = dead(100, 0, 0);
    let room = house.room(&dead.names.iter().collect::<Vec<_>>());
    house.events(room, "a", 1);
    until("all threads for strangers are taken", || {
        lock(&house.hs().outgoing.0.state).busy[Lane::Fresh as usize] == UNPROVEN_THREADS_MAX
    });
    let (before, _) = peer();
    let (later, _) = peer();
    house.hs().outgoing.peer_spoke(&before.name);
    let room = house.room(&[&before.name, &later.name]);
    house.events(room, "b", 1);
    before.wait_for(SEND, 1);
    assert!(later.asked().is_empty());
    house.hs().outgoing.peer_spoke(&later.name);
    later.wait_for(SEND, 1);
}

#[test]
fn who_was_away_gets_all_of_a_quiet_room_and_the_last_events_of_a_busy_one() {
    let mut house = House::new();
    let (peer, up) = peer();
    let (quiet, busy, left) =
        (house.room(&[&peer.name]), house.room(&[&peer.name]), house.room(&[&peer.name]));
    up.store(false, Ordering::Relaxed);
    house.events(quiet, "early", 1);
    peer.wait_for(SEND, 1);
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    house.events(left, "left", MISSED_EVENTS_MAX + 10);
    let name = peer.name.clone();
    house.hs().store.write(move |tx| tx.pretend_departure(left, &name)).expect("gone");
    house.events(quiet, "quiet", 60);
    house.events(busy, "busy", MISSED_EVENTS_MAX + 10);
    // As if the process had been killed amid the outage.
    house.close();
    house.open();
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    up.store(true, Ordering::Relaxed);
    house.advance(10);
    let mut expected = numbered("early", 0..1);
    expected.extend(numbered("left", 0..MISSED_EVENTS_MAX + 10));
    expected.extend(numbered("quiet", 0..60));
    expected.extend(numbered("busy", MISSED_EVENTS_MAX + 10 - MISSED_EVENTS_KEPT..MISSED_EVENTS_MAX + 10));
    let got = || peer.asked()[1..].iter().flat_map(ids).collect::<Vec<_>>();
    until("what it is owed", || got().len() >= expected.len());
    assert_eq!(got(), expected);
    let position = house.hs().store.position();
    until("the cursor", || house.kept(&peer.name).cursor == position);
}

#[test]
fn idle_threads_share_the_work_of_one_commit() {
    let house = House::new();
    let good: Vec<ScriptedPeer> = (0..4).map(|_| peer().0).collect();
    let room = house.room(&good.iter().map(|p| &p.name).collect::<Vec<_>>());
    house.events(room, "first", 1);
    until("all threads rest", || {
        let state = lock(&house.hs().outgoing.0.state);
        good.iter().all(|p| !p.asked().is_empty()) && state.idle == state.alive
    });
    let silent: Vec<ScriptedPeer> =
        (0..4).map(|_| ScriptedPeer::start(|_| ScriptedAnswer::Silence)).collect();
    let all = house.room(&silent.iter().chain(&good).map(|p| &p.name).collect::<Vec<_>>());
    house.events(all, "second", 1);
    until("everybody was asked", || {
        silent.iter().all(|p| p.asked().len() == 1) && good.iter().all(|p| p.asked().len() == 2)
    });
}

#[test]
fn a_server_is_owed_what_happens_while_it_is_in_the_room_and_what_is_aimed_at_it() {
    let house = House::new();
    let ((peer, _), (other, _)) = (peer(), peer());
    let room = house.room(&[&other.name]);
    house.events(room, "before", 1);
    let (name, elsewhere) = (peer.name.clone(), house.room(&[&peer.name]));
    let gone = house.room(&[&peer.name]);
    house.hs().store.write(move |tx| tx.pretend_departure(gone, &name)).expect("gone");
    house.events(gone, "after", 1);
    house.events(elsewhere, "during", 1);
    let name = peer.name.clone();
    let aimed = house.hs().store.write(move |tx| {
        let (event, stream) = tx.pretend_event(gone, "$kick", "@a:us.example")?;
        tx.owe_event(&name, event, stream)
    });
    aimed.expect("owed");
    until("both", || peer.asked().iter().flat_map(ids).collect::<Vec<_>>() == ["$during0", "$kick"]);
    assert_eq!(ids(&other.wait_for(SEND, 1)[0]), ["$before0"]);
    // Delivered, so forgotten.
    until("the end of the debt", || {
        house.hs().store.read(|db| db.owed_events(&peer.name, 0, i64::MAX, 9)).expect("read").len() == 1
    });
}

#[test]
fn a_servers_own_events_do_not_come_back_to_it() {
    let house = House::new();
    let ((peer, _), (other, _)) = (peer(), peer());
    let room = house.room(&[&peer.name, &other.name]);
    let sender = format!("@knocker:{}", peer.name);
    house
        .hs()
        .store
        .write(move |tx| {
            tx.pretend_event(room, "$knock", &sender)?;
            tx.pretend_event(room, "$invite", "@a:us.example")?;
            tx.owes(room, "us.example")?;
            Ok(())
        })
        .expect("events");
    assert_eq!(ids(&other.wait_for(SEND, 1)[0]), ["$knock", "$invite"]);
    assert_eq!(ids(&peer.wait_for(SEND, 1)[0]), ["$invite"]);
}

#[test]
fn an_event_that_a_peer_chokes_on_is_found_and_left_out() {
    let house = House::new();
    let peer = ScriptedPeer::start(|asked| match ids(asked).iter().any(|id| id == "$a17") {
        true => ScriptedAnswer::Json(400, json!({ "errcode": "M_BAD_JSON", "error": "I choke" })),
        false => taken(),
    });
    let room = house.room(&[&peer.name]);
    house.events(room, "a", 30);
    let mut expected = numbered("a", 0..30);
    expected.retain(|id| id != "$a17");
    until("all the others", || {
        let good = peer.asked().into_iter().map(|a| ids(&a)).filter(|ids| !ids.contains(&"$a17".to_owned()));
        good.flatten().collect::<Vec<_>>() == expected
    });
}

/// The numbers of the durable messages in a transaction.
fn message_numbers(asked: &AskedOfPeer) -> Vec<i64> {
    let messages = edus(asked).into_iter().filter(|edu| edu["edu_type"] == "m.direct_to_device");
    messages.map(|edu| edu["content"]["n"].as_i64().expect("a number")).collect()
}

fn owe_messages(house: &House, to: &ServerName, numbers: std::ops::Range<i64>) {
    let to = to.clone();
    let owed = house.hs().store.write(move |tx| {
        numbers.clone().try_for_each(|n| {
            let edu = json!({ "edu_type": "m.direct_to_device", "content": { "n": n } });
            tx.owe_message(&to, &edu.to_string(), 0).map(|_| ())
        })
    });
    owed.expect("owed");
}

#[test]
fn a_message_that_a_peer_chokes_on_is_found_and_it_alone_is_left_out() {
    // A proxy says no more than the status.
    let refusals = [(400, json!({ "errcode": "M_BAD_JSON", "error": "I choke" })), (413, json!({}))];
    for (status, refusal) in refusals {
        let house = House::new();
        let (peer, up) = {
            let up = Arc::new(AtomicBool::new(false));
            let is_up = up.clone();
            let peer = ScriptedPeer::start(move |asked| {
                let bad = message_numbers(asked).contains(&41) || ids(asked).iter().any(|id| id == "$a7");
                match is_up.load(Ordering::Relaxed) {
                    false => ScriptedAnswer::Json(503, json!({ "errcode": "M_UNKNOWN" })),
                    true if bad => ScriptedAnswer::Json(status, refusal.clone()),
                    true => taken(),
                }
            });
            (peer, up)
        };
        let room = house.room(&[&peer.name]);
        owe_messages(&house, &peer.name, 0..1);
        until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
        house.events(room, "a", 12);
        owe_messages(&house, &peer.name, 1..130);
        house.events(room, "b", 3);
        up.store(true, Ordering::Relaxed);
        house.advance(10);
        let (mut messages, mut events) = (Vec::new(), Vec::new());
        until("all the others", || {
            let good = peer.asked().into_iter().filter(|asked| {
                !message_numbers(asked).contains(&41) && !ids(asked).iter().any(|id| id == "$a7")
            });
            // The first was repeated.
            let good: Vec<AskedOfPeer> = good.skip(1).collect();
            messages = good.iter().flat_map(message_numbers).collect();
            events = good.iter().flat_map(ids).collect();
            messages.len() >= 129 && events.len() >= 14
        });
        assert_eq!(messages, (0..130).filter(|n| *n != 41).collect::<Vec<_>>());
        let mut expected = numbered("a", 0..12);
        expected.retain(|id| id != "$a7");
        assert_eq!(events, [expected, numbered("b", 0..3)].concat());
        // What comes later goes as ever.
        owe_messages(&house, &peer.name, 130..131);
        house.events(room, "c", 1);
        until("the next", || {
            let last = peer.asked();
            last.iter().any(|asked| message_numbers(asked) == [130])
                && last.iter().any(|asked| ids(asked) == ["$c0"])
        });
        until("the end of the debt", || {
            house.hs().store.read(|db| db.owed_edus(&peer.name, 0, i64::MAX, 9)).expect("read").is_empty()
        });
    }
}

#[test]
fn nothing_else_is_lost_where_a_peer_chokes_on_what_is_worth_nothing_later() {
    let house = House::new();
    let peer = ScriptedPeer::start(|asked| match edus(asked).iter().any(|edu| edu["edu_type"] == "m.bad") {
        true => ScriptedAnswer::Json(400, json!({ "errcode": "M_INVALID_PARAM", "error": "I choke" })),
        false => taken(),
    });
    let room = house.room(&[&peer.name]);
    let bad = json!({ "edu_type": "m.bad", "content": {} }).to_string();
    for (round, prefix) in ["a", "b", "c"].into_iter().enumerate() {
        let sender = &house.hs().outgoing;
        let doing = |doing: DestinationActivity| {
            lock(&sender.0.state).destinations.entry(peer.name.clone()).or_default().doing = doing;
        };
        until("the end of the transaction before", || {
            let state = lock(&sender.0.state);
            state.destinations.get(&peer.name).is_none_or(|peer| peer.doing == DestinationActivity::Nothing)
        });
        // While the sender looks away, so that all of it is in one transaction.
        doing(DestinationActivity::Sending);
        sender.send_edu(&peer.name, Edu { replaces: None, json: bad.clone() });
        let message = i64::try_from(round).expect("small");
        if round != 1 {
            owe_messages(&house, &peer.name, message..message + 1);
        }
        if round != 2 {
            house.events(room, prefix, 1);
        }
        until("the news", || lock(&sender.0.state).rooms.is_empty());
        doing(DestinationActivity::Nothing);
        let mut state = lock(&sender.0.state);
        sender.wake(&mut state, &peer.name);
        drop(state);
        sender.clock_moved();
    }
    let refused = |asked: &AskedOfPeer| edus(asked).iter().any(|edu| edu["edu_type"] == "m.bad");
    until("all the others", || {
        let good: Vec<AskedOfPeer> = peer.asked().into_iter().filter(|asked| !refused(asked)).collect();
        good.iter().flat_map(ids).collect::<Vec<_>>() == ["$a0", "$b0"]
            && good.iter().flat_map(message_numbers).collect::<Vec<_>>() == [0, 2]
    });
    assert!(peer.asked().iter().any(refused));
}

#[test]
fn errors_of_single_events_do_not_hold_up_the_rest() {
    let house = House::new();
    let peer = ScriptedPeer::start(|_| {
        ScriptedAnswer::Json(200, json!({ "pdus": { "$a0": { "error": "no" }, "$a1": {} } }))
    });
    let room = house.room(&[&peer.name]);
    house.events(room, "a", 2);
    house.events(room, "b", 1);
    until("all", || peer.asked().iter().flat_map(ids).collect::<Vec<_>>() == ["$a0", "$a1", "$b0"]);
}

#[test]
fn of_ephemeral_messages_with_one_key_the_last_is_sent_and_durable_ones_survive_failure_and_restart() {
    let mut house = House::new();
    let (peer, up) = peer();
    let edu = |key: Option<&str>, n: u32| Edu {
        replaces: key.map(str::to_owned),
        json: json!({ "edu_type": "m.test", "content": { "n": n } }).to_string(),
    };
    {
        // While the sender looks away.
        let sender = &house.hs().outgoing;
        lock(&sender.0.state).destinations.entry(peer.name.clone()).or_default().doing =
            DestinationActivity::Sending;
        for n in 0..3 {
            sender.send_edu(&peer.name, edu(Some("typing"), n));
        }
        sender.send_edu(&peer.name, edu(None, 9));
        let mut state = lock(&sender.0.state);
        state.destinations.get_mut(&peer.name).expect("a peer").doing = DestinationActivity::Nothing;
        sender.wake(&mut state, &peer.name);
        drop(state);
        sender.clock_moved();
    }
    let asked = peer.wait_for(SEND, 1);
    assert_eq!(
        edus(&asked[0]).iter().map(|e| e["content"]["n"].clone()).collect::<Vec<_>>(),
        [json!(2), json!(9)]
    );

    up.store(false, Ordering::Relaxed);
    let name = peer.name.clone();
    let durable = json!({ "edu_type": "m.direct_to_device", "content": {} }).to_string();
    house.hs().store.write(move |tx| tx.owe_message(&name, &durable, 0)).expect("owed");
    peer.wait_for(SEND, 2);
    until("the pause", || house.hs().outgoing.is_pausing(&peer.name));
    // Worth nothing later.
    house.hs().outgoing.send_edu(&peer.name, edu(None, 10));
    house.close();
    up.store(true, Ordering::Relaxed);
    house.open();
    house.advance(10);
    let asked = peer.wait_for(SEND, 3);
    assert_eq!(edus(&asked[2]).len(), 1);
    assert_eq!(edus(&asked[2])[0]["edu_type"], json!("m.direct_to_device"));
    until("the end of the debt", || {
        house.hs().store.read(|db| db.owed_edus(&peer.name, 0, i64::MAX, 9)).expect("read").is_empty()
    });
}

#[test]
fn stopping_does_not_wait_for_a_silent_peer_nor_hold_it_against_it() {
    let mut house = House::new();
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Silence);
    let room = house.room(&[&peer.name]);
    house.events(room, "a", 1);
    peer.wait_for(SEND, 1);
    house.close();
    house.open();
    assert_eq!(house.kept(&peer.name).failures, 0);
    peer.wait_for(SEND, 2);
}

#[test]
fn threads_end_with_their_homeserver() {
    let mut house = House::new();
    let (peer, _) = peer();
    let room = house.room(&[&peer.name]);
    house.events(room, "a", 1);
    peer.wait_for(SEND, 1);
    let sender = house.hs().outgoing.clone();
    let watch = Arc::downgrade(house.hs.as_ref().expect("open"));
    house.close();
    until("the end of the threads", || lock(&sender.0.state).alive == 0);
    assert!(watch.upgrade().is_none());
}
