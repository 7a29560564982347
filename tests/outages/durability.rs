//! What was acknowledged survives: the real binary, killed while several clients send, and on a disk that takes nothing
//! any more.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};
use crate::common::{ProcessServer, invariants};
use doorstep::testing::segment;
use rusqlite::{Connection, OpenFlags};
use serde_json::{Value, json};

#[test]
fn every_acknowledged_event_is_there_after_a_kill() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room();
    for round in 0..3 {
        let acknowledged: Mutex<Vec<String>> = Mutex::default();
        let over = AtomicBool::new(false);
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let (alice, room, acknowledged, over) = (&alice, &room, &acknowledged, &over);
                scope.spawn(move || {
                    let agent: ureq::Agent =
                        ureq::Agent::config_builder().http_status_as_error(false).build().into();
                    for number in 0.. {
                        if over.load(Ordering::SeqCst) {
                            return;
                        }
                        let path = format!(
                            "{}/_matrix/client/v3/rooms/{}/send/m.room.message/{round}-{caller}-{number}",
                            alice.url(),
                            segment(room)
                        );
                        let request =
                            agent.put(path).header("Authorization", &format!("Bearer {}", alice.token()));
                        let body =
                            json!({ "msgtype": "m.text", "body": format!("{round} {caller} {number}") });
                        // Once the process is dead there is no answer, and nothing is owed.
                        let Ok(mut response) = request.send(body.to_string()) else { continue };
                        let Ok(text) = response.body_mut().read_to_string() else { continue };
                        let Ok(answer) = serde_json::from_str::<Value>(&text) else { continue };
                        if let Some(id) = answer["event_id"].as_str() {
                            acknowledged.lock().expect("no panic").push(id.to_owned());
                        }
                    }
                });
            }
            let started = Instant::now();
            while acknowledged.lock().expect("no panic").len() < 40 {
                assert!(started.elapsed() < Duration::from_secs(60), "too few events were sent");
                std::thread::yield_now();
            }
            server.kill();
            over.store(true, Ordering::SeqCst);
        });
        server.resume();
        let acknowledged = acknowledged.into_inner().expect("no panic");
        for id in &acknowledged {
            let path = format!("/_matrix/client/v3/rooms/{}/event/{}", segment(&room), segment(id));
            assert_eq!(alice.get(&path)["event_id"], *id);
        }
        // And the room goes on where it stood.
        let sent = alice.send(&room, "after the kill");
        let path = format!("/_matrix/client/v3/rooms/{}/event/{}", segment(&room), segment(&sent));
        assert_eq!(alice.get(&path)["event_id"], *sent);
    }
}

/// A file size limit makes every write fail with an I/O error, as a broken or full disk does.
#[cfg(target_os = "linux")]
#[test]
fn while_the_disk_takes_nothing_requests_are_refused_and_afterwards_everything_goes_on() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room();
    let peer = Peer::start();
    let mut fake = FakeRoom::joined_by(&peer, "11", &alice);

    let mut acknowledged = vec![alice.send(&room, "before")];
    let path = |txn: &str| format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{txn}", segment(&room));
    let creator = fake.creator.clone();
    for round in 0..3 {
        server.let_files_grow(false);
        let event = fake.add(&peer, "org.example.x", &round.to_string(), &creator, json!({}));
        for n in 0..5 {
            let body = json!({ "msgtype": "m.text", "body": "during" });
            let (status, answer) = alice.request("PUT", &path(&format!("{round}-{n}")), Some(body));
            assert!(status >= 500 && answer["errcode"].is_string(), "{status} {answer}");
        }
        let (status, answer) = peer.send_transaction(server.name(), &round.to_string(), &[&event]);
        assert!(status >= 500, "an event is acknowledged that is nowhere: {status} {answer}");
        // Whoever only reads notices nothing.
        let event_path =
            |id: &str| format!("/_matrix/client/v3/rooms/{}/event/{}", segment(&room), segment(id));
        acknowledged.iter().for_each(|id| assert_eq!(alice.get(&event_path(id))["event_id"], **id));
        alice.initial_sync();

        server.let_files_grow(true);
        for n in 0..5 {
            let body = json!({ "msgtype": "m.text", "body": "after" });
            let answer = alice.put(&path(&format!("{round}-{n}")), body);
            acknowledged.push(answer["event_id"].as_str().expect("an event id").to_owned());
        }
        // The peer says the same again, and now it is taken in.
        let (status, answer) = peer.send_transaction(server.name(), &round.to_string(), &[&event]);
        assert_eq!((status, &answer["pdus"][event.event_id().as_str()]), (200, &json!({})));
        assert_eq!(invariants::check(server.folder(), 0).0, Vec::<String>::new());
        if round == 1 {
            server.let_files_grow(false);
            server.kill();
            server.resume();
        }
    }
    let timeline = alice.initial_sync()["rooms"]["join"][&room]["timeline"]["events"].clone();
    let bodies: Vec<&Value> =
        timeline.as_array().expect("a timeline").iter().map(|e| &e["content"]["body"]).collect();
    assert!(!bodies.contains(&&json!("during")), "what was refused has not happened: {bodies:?}");
    // It stops cleanly too while nothing can be written.
    server.let_files_grow(false);
    server.terminate();
    assert!(server.wait_for_end(Duration::from_secs(10)), "it does not stop");
    server.resume();
    for id in &acknowledged {
        let path = format!("/_matrix/client/v3/rooms/{}/event/{}", segment(&room), segment(id));
        assert_eq!(alice.get(&path)["event_id"], **id);
    }
}

/// One write fails, and the next succeeds: what could not be written was not refused for that.
#[cfg(target_os = "linux")]
#[test]
fn an_event_that_waits_goes_on_waiting_when_the_disk_does_not_take_it_at_the_first_try() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let peer = Peer::start();
    let mut room = FakeRoom::joined_by(&peer, "11", &alice);
    let creator = room.creator.clone();
    let missing = room.add(&peer, "org.example.x", "", &creator, json!({}));
    let large = room.add(&peer, "org.example.large", "", &creator, json!({ "text": "x".repeat(60_000) }));
    let (status, said) = peer.send_transaction(server.name(), "1", &[&large]);
    assert_eq!((status, &said["pdus"][large.event_id().as_str()]), (200, &json!({})), "{said}");

    let file = server.folder().join("doorstep.db");
    let waits = || {
        let database =
            Connection::open_with_flags(&file, OpenFlags::SQLITE_OPEN_READ_ONLY).expect("a database");
        database.busy_timeout(Duration::from_secs(10)).expect("a time-out");
        let sql = "SELECT 1 FROM pending_events WHERE event_id = ?1";
        database.prepare(sql).and_then(|mut s| s.exists([large.event_id().as_str()])).expect("a look")
    };
    // After a clean stop the log is empty. Who has the missing event says so once the disk takes only what is small.
    server.terminate();
    assert!(server.wait_for_end(Duration::from_secs(10)), "it does not stop");
    let asked = peer.asked("/get_missing_events/").len();
    let gate = Gate::default();
    let answer = json!({ "events": [missing.to_object()] });
    peer.answer_behind(&gate, "/get_missing_events/", 200, answer);
    server.resume();
    wait_until("it is asked for", || peer.asked("/get_missing_events/").len() > asked);
    let log = server.folder().join("doorstep.db-wal");
    let length = || std::fs::metadata(&log).map_or(0, |log| log.len());
    let limit = length() + (250 << 10);
    server.limit_files(limit);
    gate.open();
    wait_until("a write fails that is too large", || length() == limit);
    // Whatever follows from that is done when some more has been written, or was refused.
    for n in 0..5 {
        let path = format!("/_matrix/client/v3/rooms/{}/send/org.example.x/{n}", segment(room.id.as_str()));
        let (status, said) = alice.request("PUT", &path, Some(json!({})));
        assert!(status == 200 || status >= 500, "{status} {said}");
    }
    server.kill();
    assert!(waits(), "it is gone, and nobody would send it again");
    server.resume();
    let (room, id) = (segment(room.id.as_str()), segment(large.event_id().as_str()));
    let path = format!("/_matrix/client/v3/rooms/{room}/event/{id}");
    wait_until("it is there", || alice.request("GET", &path, None).0 == 200);
    wait_until("it waits no more", || !waits());
}
