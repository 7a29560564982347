//! What was acknowledged survives the death of the process: the real binary, killed while several clients send.

mod common;

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use common::ProcessServer;
use doorstep::testing::segment;
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
