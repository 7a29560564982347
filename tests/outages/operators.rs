//! Rooms that are deleted by a server that is killed in the middle of it; and the commands for rooms, knocks and media, with a
//! server that runs and without one.

use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

use crate::common::client::{V3, room_path};
use crate::common::process::ProcessServer;
use crate::common::wait::wait_until;

const V2: &str = "/_synapse/admin/v2/rooms";

fn run(folder: &Path, args: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
    command.args(args).arg("--data").arg(folder).stdin(Stdio::null()).output().expect("the command runs")
}

#[track_caller]
fn done(folder: &Path, args: &[&str]) -> String {
    let output = run(folder, args);
    assert!(output.status.success(), "{args:?}: {output:?}");
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn search(user: &TestUser, word: &str) -> Value {
    let body = json!({ "search_categories": { "room_events": { "search_term": word } } });
    user.post(&format!("{V3}/search"), body)["search_categories"]["room_events"]["count"].clone()
}

#[test]
#[allow(clippy::disallowed_methods, reason = "when the kill comes is what the test varies")]
fn a_room_that_is_deleted_is_gone_however_often_the_server_is_killed_meanwhile() {
    let mut server = ProcessServer::start(&[]);
    let (admin, alice) = (server.user("admin"), server.user("alice"));
    let kept = alice.create_room();
    alice.send(&kept, "Zanzibar");
    let room = alice.create_room();
    for number in 0..300 {
        alice.send(&room, &format!("Zanzibar {number}"));
    }
    assert_ne!(search(&alice, "Zanzibar"), 1);
    let begun = admin.request("DELETE", &format!("{V2}/{}", segment(&room)), Some(json!({})));
    assert_eq!(begun.0, 200, "{begun:?}");
    let by_id = format!("{V2}/delete_status/{}", begun.1["delete_id"].as_str().expect("an id"));
    let mut kills = 0;
    while kills < 12 {
        std::thread::sleep(Duration::from_millis(kills * 4));
        server.kill();
        server.resume();
        kills += 1;
        if admin.get(&by_id)["status"] == "complete" {
            break;
        }
    }
    wait_until("it is complete", || admin.get(&by_id)["status"] == "complete");
    assert_eq!(admin.get(&by_id)["shutdown_room"]["kicked_users"], json!([alice.id()]));
    assert_eq!(admin.request("GET", &format!("/_synapse/admin/v1/rooms/{}", segment(&room)), None).0, 404);
    assert_eq!(alice.request("GET", &room_path(&room, "messages?dir=b"), None).0, 403);
    assert_eq!(search(&alice, "Zanzibar"), 1);
    alice.send(&kept, "Zanzibar again");
    assert_eq!(search(&alice, "Zanzibar"), 2);
}

#[test]
fn rooms_are_listed_shown_blocked_and_deleted_by_command_with_a_server_and_without() {
    let mut server = ProcessServer::start(&[]);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let folder = server.folder().to_owned();
    let room = alice
        .create_room_with(json!({ "name": "The pub", "room_alias_name": "pub", "initial_state": [
        { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }] }));
    let knock = bob.request(
        "POST",
        &format!("{V3}/knock/{}", segment(&room)),
        Some(json!({ "reason": "Rain\n\u{1b}[2J" })),
    );
    assert_eq!(knock.0, 200, "{knock:?}");
    let alias = format!("#pub:{}", server.name());
    for runs in [true, false] {
        if !runs {
            server.kill();
        }
        assert!(done(&folder, &["room", "list", "PUB"]).contains(&room), "{runs}");
        assert!(!done(&folder, &["room", "list", "nothing"]).contains(&room));
        assert!(done(&folder, &["room", "show", &alias]).contains("The pub"));
        assert!(done(&folder, &["room", "show", "pub"]).contains("The pub"));
        let wrong = run(&folder, &["room", "show", "@pub:example.org"]);
        assert_eq!(wrong.status.code(), Some(2), "{wrong:?}");
        assert!(done(&folder, &["room", "block", &room]).contains(&room));
        assert!(done(&folder, &["room", "list", "--blocked"]).contains("the operator"));
        done(&folder, &["room", "block", &room, "--undo"]);
        let knocks = done(&folder, &["knocks"]);
        assert!(
            knocks.contains(bob.id()) && knocks.contains("Rain") && !knocks.contains('\u{1b}'),
            "{knocks}"
        );
        let kept = run(&folder, &["room", "delete", &room]);
        assert_eq!(kept.status.code(), Some(2), "{kept:?}");
        assert!(done(&folder, &["media", "quarantine", &room]).contains("those 0 files"));
        let wrong = run(&folder, &["room", "purge", &room]);
        let told = String::from_utf8_lossy(&wrong.stderr).into_owned();
        assert!(
            wrong.status.code() == Some(2) && told.contains("there is list, show, block, delete"),
            "{told}"
        );
        assert!(done(&folder, &["media", "usage"]).contains("BYTES"));
    }
    assert_eq!(run(&folder, &["knocks", "--refuse", "alice", "--room", "pub"]).status.code(), Some(1));
    assert!(done(&folder, &["knocks", "--accept", "bob", "--room", "pub"]).contains("is invited"));
    assert_eq!(run(&folder, &["knocks", "--refuse", "bob"]).status.code(), Some(1));
    assert!(done(&folder, &["room", "delete", &alias, "--leave", "--block"]).contains("is gone"));
    server.resume();
    assert!(done(&folder, &["room", "list", "--json"]).contains("\"total_rooms\":0"));
    let rejoin = alice.request("POST", &format!("{V3}/join/{}", segment(&room)), Some(json!({})));
    assert_eq!(rejoin.0, 403, "{rejoin:?}");
}
