//! The server is killed between the moment in which it has sent a service something and the one in which it knows that the service
//! has it: it is sent again as it was, and nothing is lost or changes places.

use serde_json::{Value, json};

use crate::common::ProcessServer;
use crate::common::bridge::{Bridge, BridgeAnswer};
use crate::common::wait::Gate;
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
