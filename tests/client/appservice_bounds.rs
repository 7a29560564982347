//! How large is what application services are sent, and what becomes of what one of them finds too large.

use std::collections::BTreeSet;
use std::time::Duration;

use doorstep::TestServer;
use doorstep::testing::TestUser;
use serde_json::{Value, json};

use crate::common::bridge::{Bridge, BridgeAnswer, BridgeRequest};
use crate::common::wait::wait_until;

const USERS: &str = "namespaces: {users: [{regex: '@irc_', exclusive: false}]}";
const TO_DEVICE: &str = "de.sorunome.msc2409.to_device";

/// A server with a service, of whose users one is in a room with alice.
fn bridged(bridge: &Bridge, more: &str) -> (TestServer, TestUser, String) {
    let registration = bridge.registration(&format!("{more}{USERS}"));
    let server = TestServer::start_with(|config| config.appservices.push(registration));
    let (alice, ghost) = (server.user("alice"), server.user("irc_bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    ghost.join(&room);
    bridge.wait_for("events", "the join", |event| event["content"]["membership"] == "join");
    (server, alice, room)
}

fn ok() -> BridgeAnswer {
    BridgeAnswer::Json(200, json!({}))
}

fn status(status: u16) -> BridgeAnswer {
    BridgeAnswer::Json(status, json!({ "errcode": "M_UNKNOWN" }))
}

fn bytes(sent: &BridgeRequest) -> usize {
    sent.body.to_string().len()
}

/// The numbers that the messages begin with in transactions that were taken: those that are no larger than this.
fn numbers_in(bridge: &Bridge, largest: usize) -> Vec<u32> {
    let mut known = BTreeSet::new();
    let taken = bridge.transactions().into_iter().filter(|sent| bytes(sent) <= largest);
    let once = taken.filter(|sent| known.insert(sent.txn_id().map(str::to_owned)));
    let events = once.flat_map(|sent| sent.body["events"].as_array().cloned().unwrap_or_default());
    let number = |event: Value| event["content"]["body"].as_str()?.split(' ').next()?.parse().ok();
    events.filter_map(number).collect()
}

#[test]
fn no_transaction_is_larger_than_what_services_take_by_default() {
    let bridge = Bridge::start("irc");
    let (server, alice, room) = bridged(&bridge, "receive_ephemeral: true\norg.matrix.msc3202: true\n");
    let bot = format!("@ircbot:{}", server.name());
    let device = format!("/_matrix/client/v3/devices/DEV?user_id={bot}");
    let service = TestUser::new(server.url(), &bot, "as_irc");
    assert!(service.request("PUT", &device, Some(json!({}))).0 < 300);
    bridge.answer(status(503));
    for number in 0..25 {
        alice.send(&room, &format!("{number} {}", "x".repeat(60_000)));
        let message = json!({ "n": number, "pad": "y".repeat(60_000) });
        let path = format!("/_matrix/client/v3/sendToDevice/m.x/{number}");
        alice.put(&path, json!({ "messages": { &bot: { "DEV": message } } }));
    }
    bridge.answer(ok());
    server.advance(Duration::from_secs(1000));
    bridge.wait_for("events", "the last message", |event| {
        event["content"]["body"].as_str().is_some_and(|body| body.starts_with("24 "))
    });
    bridge.wait_for(TO_DEVICE, "the last message to a device", |message| message["content"]["n"] == 24);
    assert_eq!(numbers_in(&bridge, usize::MAX), (0..25).collect::<Vec<_>>());
    let to_device: Vec<_> = bridge.told(TO_DEVICE).iter().map(|told| told["content"]["n"].clone()).collect();
    assert_eq!(to_device, (0..25).map(|number| json!(number)).collect::<Vec<_>>());
    let largest = bridge.transactions().iter().map(bytes).max();
    assert!(largest.is_some_and(|largest| largest < 700_000), "{largest:?}");
}

#[test]
fn what_a_service_finds_too_large_it_is_sent_in_parts_and_what_is_too_large_alone_is_left_out() {
    const LARGEST: usize = 50_000;
    let bridge = Bridge::start("irc");
    let (mut server, alice, room) = bridged(&bridge, "");
    bridge.answer(status(503));
    alice.send(&room, "0");
    bridge.wait_for_message("0");
    for number in 1..12 {
        let long = if number == 6 { 58_000 } else { 15_000 };
        alice.send(&room, &format!("{number} {}", "x".repeat(long)));
    }
    // It is down again when what it was sent has become small enough, and the server starts anew meanwhile.
    bridge.answer_by(|sent| match bytes(sent) {
        ..=1_500 => ok(),
        1_501..=LARGEST => status(503),
        _ => status(413),
    });
    server.advance(Duration::from_secs(1000));
    wait_until("it is sent a part", || {
        let one = |sent: &BridgeRequest| bytes(sent) > 1_500 && bytes(sent) <= LARGEST;
        bridge.transactions().iter().any(one)
    });
    server.restart();
    bridge.answer_by(|sent| if bytes(sent) <= LARGEST { ok() } else { status(413) });
    server.advance(Duration::from_secs(1000));
    wait_until("it has the last one", || numbers_in(&bridge, LARGEST).contains(&11));
    assert_eq!(numbers_in(&bridge, LARGEST), [0, 1, 2, 3, 4, 5, 7, 8, 9, 10, 11]);
    alice.send(&room, "12");
    wait_until("it goes on", || numbers_in(&bridge, LARGEST).contains(&12));
    // Whatever differs has another id.
    let mut bodies = std::collections::BTreeMap::new();
    for sent in bridge.transactions() {
        let id = sent.txn_id().map(str::to_owned);
        assert_eq!(*bodies.entry(id).or_insert_with(|| sent.body.clone()), sent.body);
    }
}

#[test]
fn what_a_service_refuses_again_and_again_is_sent_in_parts_if_it_is_large_and_else_kept() {
    const LARGEST: usize = 150_000;
    let bridge = Bridge::start("irc");
    let (server, alice, room) = bridged(&bridge, "");
    bridge.answer(status(400));
    alice.send(&room, "0");
    bridge.wait_for_message("0");
    for number in 1..7 {
        alice.send(&room, &format!("{number} {}", "x".repeat(40_000)));
    }
    for _ in 0..6 {
        let tried = bridge.transactions().len();
        server.advance(Duration::from_secs(1000));
        wait_until("it is tried again", || bridge.transactions().len() > tried);
    }
    let tried = bridge.transactions();
    assert_eq!(
        tried[tried.len() - 1].target,
        tried[tried.len() - 6].target,
        "what is small is kept as it is"
    );
    bridge.answer_by(|sent| if bytes(sent) <= LARGEST { ok() } else { status(400) });
    wait_until("it has the last one", || {
        server.advance(Duration::from_secs(1000));
        numbers_in(&bridge, LARGEST).contains(&6)
    });
    assert_eq!(numbers_in(&bridge, LARGEST), [0, 1, 2, 3, 4, 5, 6]);
}
