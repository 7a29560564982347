//! Kills the real binary (SIGKILL) while it sends to a push gateway: what was taken does not come again, what was not
//! does, and the number at the icon is right in the end.

use crate::common::ProcessServer;
use crate::common::gateway::{Gateway, GatewayAnswer};
use crate::common::wait::{Gate, wait_until};
use doorstep::testing::segment;
use serde_json::json;

#[test]
fn killed_while_a_gateway_is_told_nothing_is_lost_and_nothing_that_was_taken_comes_again() {
    let mut server = ProcessServer::start(&[]);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let gateway = Gateway::start();
    gateway.set_for(&bob, "key", &json!({}));
    let mut events = Vec::new();
    for round in 0..3 {
        let taken = alice.send(&room, &format!("taken {round}"));
        gateway.wait_for(&taken);
        // That it was taken is written down before the next is sent, which gets no answer.
        let gate = Gate::default();
        gateway.answer(GatewayAnswer::Behind(gate.clone()));
        let cut = alice.send(&room, &format!("cut off {round}"));
        gateway.wait_for(&cut);
        let waiting = alice.send(&room, &format!("behind it {round}"));
        server.kill();
        gate.open();
        gateway.answer(GatewayAnswer::Json(200, json!({ "rejected": [] })));
        let seen = gateway.event_ids().len();
        server.resume();
        gateway.wait_for(&waiting);
        assert_eq!(gateway.event_ids()[seen..], [cut.clone(), waiting.clone()], "in their order");
        events.extend([taken, cut, waiting]);
    }
    let told = gateway.event_ids();
    for event in events.iter().step_by(3) {
        assert_eq!(told.iter().filter(|id| *id == event).count(), 1, "what was taken came once");
    }
    // Read while the gateway does not answer; killed before it is told.
    gateway.answer(GatewayAnswer::Json(503, json!({})));
    let last = events.last().expect("an event");
    let seen = gateway.sent().len();
    bob.post(
        &format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{}", segment(&room), segment(last)),
        json!({}),
    );
    wait_until("the gateway was asked", || gateway.sent().len() > seen);
    server.kill();
    gateway.answer(GatewayAnswer::Json(200, json!({})));
    let seen = gateway.sent().len();
    server.resume();
    wait_until("the gateway is told that nothing is unread", || {
        let sent = gateway.sent();
        sent[seen..].last().is_some_and(|sent| sent["counts"]["unread"] == 0)
    });
    assert_eq!(gateway.event_ids(), told);
}
