//! The server is killed between the moment in which it has sent a service something and the one in which it knows that the service
//! has it: it is sent again as it was, and nothing is lost or changes places.

use serde_json::{Value, json};

use crate::common::ProcessServer;
use crate::common::bridge::{Bridge, BridgeAnswer, BridgeRequest};
use crate::common::wait::{Gate, wait_until};
use doorstep::testing::temporary_folder;

#[test]
fn killed_before_a_service_has_answered_the_same_transaction_is_sent_again_and_what_came_behind_it_follows() {
    let bridge = Bridge::start("irc");
    let folder = temporary_folder("registration");
    let file = folder.join("irc.yaml");
    let yaml = bridge.yaml("namespaces: {users: [{regex: '@irc_', exclusive: false}]}");
    std::fs::write(&file, yaml).expect("a file");
    let mut server = ProcessServer::start(&["--appservice", file.to_str().expect("a path of text")]);
    let (alice, ghost) = (server.user("alice"), server.user("irc_bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    ghost.join(&room);
    alice.send(&room, "one");
    bridge.wait_for_message("one");
    let gate = Gate::default();
    bridge.answer(BridgeAnswer::Behind(gate.clone(), 200, json!({})));
    alice.send(&room, "two");
    bridge.wait_for_message("two");
    alice.send(&room, "three");
    server.kill();
    let before = bridge.transactions();
    bridge.answer(BridgeAnswer::Json(200, json!({})));
    gate.open();
    server.resume();
    alice.send(&room, "four");
    bridge.wait_for_message("four");
    assert_eq!(bridge.messages(), ["one", "two", "three", "four"]);
    let has_two = |body: &Value| body["events"][0]["content"]["body"] == "two";
    let all = bridge.transactions();
    let again: Vec<_> = all.iter().filter(|sent| has_two(&sent.body)).collect();
    assert!(again.len() > before.iter().filter(|sent| has_two(&sent.body)).count(), "it was sent again");
    assert!(again.iter().all(|sent| sent.target == again[0].target && sent.body == again[0].body));
    std::fs::remove_dir_all(folder).expect("the folder goes");
}

#[test]
fn killed_while_it_sends_in_parts_what_a_service_found_too_large_it_sends_each_part_once_and_in_order() {
    const LARGEST: usize = 120_000;
    let bridge = Bridge::start("irc");
    let folder = temporary_folder("registration");
    let file = folder.join("irc.yaml");
    let yaml = bridge.yaml("namespaces: {users: [{regex: '@irc_', exclusive: false}]}");
    std::fs::write(&file, yaml).expect("a file");
    let mut server = ProcessServer::start(&["--appservice", file.to_str().expect("a path of text")]);
    let (alice, ghost) = (server.user("alice"), server.user("irc_bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    ghost.join(&room);
    bridge.wait_for("events", "the join", |event| event["state_key"] == ghost.id());
    let gate = Gate::default();
    bridge.answer(BridgeAnswer::Behind(gate.clone(), 200, json!({})));
    alice.send(&room, "begin");
    bridge.wait_for_message("begin");
    let sent = (0..8).map(|number| format!("{number} {}", "x".repeat(50_000))).collect::<Vec<_>>();
    sent.iter().for_each(|body| drop(alice.send(&room, body)));
    // The first part is never answered.
    let behind = Gate::default();
    let parts = behind.clone();
    bridge.answer_by(move |asked| match asked.body.to_string().len() {
        ..=LARGEST => BridgeAnswer::Behind(parts.clone(), 200, json!({})),
        _ => BridgeAnswer::Json(413, json!({})),
    });
    gate.open();
    let is_part = |asked: &BridgeRequest| (50_000..=LARGEST).contains(&asked.body.to_string().len());
    wait_until("a part is sent", || bridge.transactions().iter().any(is_part));
    server.kill();
    bridge.answer_by(|asked| match asked.body.to_string().len() {
        ..=LARGEST => BridgeAnswer::Json(200, json!({})),
        _ => BridgeAnswer::Json(413, json!({})),
    });
    behind.open();
    server.resume();
    alice.send(&room, "end");
    let taken = || {
        let mut known = std::collections::BTreeSet::new();
        let taken = bridge.transactions().into_iter().filter(|asked| asked.body.to_string().len() <= LARGEST);
        let once = taken.filter(|asked| known.insert(asked.txn_id().map(str::to_owned)));
        let events = once.flat_map(|asked| asked.body["events"].as_array().cloned().unwrap_or_default());
        events.filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned())).collect::<Vec<_>>()
    };
    wait_until("the last one is taken", || taken().contains(&"end".to_owned()));
    let bodies = taken();
    assert_eq!(bodies[0], "begin");
    assert_eq!(bodies[1..9], sent);
    assert_eq!(bodies[9..], ["end"]);
    std::fs::remove_dir_all(folder).expect("the folder goes");
}
