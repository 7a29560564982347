//! End-to-end keys and SIGKILL: what was acknowledged is there, and no key is given out twice.

use std::collections::BTreeSet;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::common::wait::wait_until;
use crate::common::{ProcessServer, invariants};
use doorstep::testing::TestDeviceKeys;
use serde_json::{Value, json};

#[test]
fn no_one_time_key_is_given_out_twice_however_often_the_server_is_killed() {
    let mut server = ProcessServer::start(&[]);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let keys = TestDeviceKeys::new(alice.id(), &alice.device_id());
    let ids: Vec<String> = (0..400).map(|n| format!("K{n:03}")).collect();
    let ids: Vec<&str> = ids.iter().map(String::as_str).collect();
    let upload = json!({ "device_keys": keys.identity(), "one_time_keys": keys.one_time_keys(&ids) });
    alice.post("/_matrix/client/v3/keys/upload", upload.clone());
    let given: Mutex<Vec<String>> = Mutex::default();
    for round in 1..=3 {
        let unanswered = AtomicUsize::new(0);
        let path = format!("{}/_matrix/client/v3/keys/claim", bob.url());
        let body =
            json!({ "one_time_keys": { alice.id(): { keys.device_id(): "signed_curve25519" } } }).to_string();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let (given, unanswered, path, body, bob) = (&given, &unanswered, &path, &body, &bob);
                scope.spawn(move || {
                    let agent: ureq::Agent =
                        ureq::Agent::config_builder().http_status_as_error(false).build().into();
                    // Once the process is dead there is no answer, and that key is nobody's.
                    while unanswered.load(Ordering::SeqCst) == 0 {
                        let request =
                            agent.post(path).header("Authorization", &format!("Bearer {}", bob.token()));
                        let answer =
                            request.send(body).ok().and_then(|mut a| a.body_mut().read_to_string().ok());
                        let answer: Option<Value> = answer.and_then(|text| serde_json::from_str(&text).ok());
                        let Some(answer) = answer else {
                            unanswered.fetch_add(1, Ordering::SeqCst);
                            return;
                        };
                        let users = answer["one_time_keys"].as_object().expect("keys").values();
                        let keys = users.flat_map(|devices| devices.as_object().expect("devices").values());
                        let ids = keys.flat_map(|key| key.as_object().expect("a key").keys().cloned());
                        given.lock().expect("no panic").extend(ids);
                    }
                });
            }
            wait_until("some keys are given out", || given.lock().expect("no panic").len() >= 15 * round);
            server.kill();
        });
        server.resume();
        // The client did not see its answer either, and says it again.
        alice.post("/_matrix/client/v3/keys/upload", upload.clone());
        let (wrong, _) = invariants::check(server.folder(), 0);
        assert!(wrong.is_empty(), "{wrong:?}");
    }
    let given = given.into_inner().expect("no panic");
    let distinct: BTreeSet<&String> = given.iter().collect();
    assert_eq!(distinct.len(), given.len(), "{given:?}");
    let left =
        alice.initial_sync()["device_one_time_keys_count"]["signed_curve25519"].as_u64().expect("a count");
    assert!(left as usize + given.len() <= 400, "{left} are left of 400, {} were given out", given.len());
    assert_eq!(
        bob.query_keys(&[alice.id()])["device_keys"][alice.id()][keys.device_id()]["keys"],
        keys.identity()["keys"]
    );
}
