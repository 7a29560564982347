//! What is made of a server's silence: of whom it stops what, and for how long.

use std::time::{Duration, Instant};

use crate::common::peer::Peer;
use crate::common::wait::Gate;
use crate::keys_across_servers::{CLAIM, QUERY, claim, failed, query};
use doorstep::TestServer;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const CLIENT: &str = "/_matrix/client/v1/rooms";

/// From now on the peer gives a one-time key to whoever claims one.
fn has_one_time_keys(peer: &Peer, user: &UserId) {
    peer.answer_json(
        CLAIM,
        200,
        json!({ "one_time_keys": { user.as_str(): { "A": { "signed_curve25519:K": {
        "key": "abc", "signatures": { user.as_str(): { "ed25519:A": "sig" } },
    } } } } }),
    );
}

fn claim_one(asker: &TestUser, of: &UserId) -> Value {
    claim(asker, json!({ of.as_str(): { "A": "signed_curve25519" } }))
}

fn look_at_space(user: &TestUser, root: &str) -> (u16, Value) {
    user.request("GET", &format!("{CLIENT}/{}/hierarchy", segment(root)), None)
}

#[test]
fn how_long_one_user_has_time_for_keys_says_nothing_of_a_server_and_stops_nobody_elses() {
    let (server, peer, gate) = (TestServer::start(), Peer::start(), Gate::default());
    let (alice, mallory, eve) = (server.user("alice"), server.user("mallory"), peer.user("eve"));
    has_one_time_keys(&peer, &eve);
    peer.answer_behind(&gate, QUERY, 200, json!({ "device_keys": {} }));
    for attempt in 0..2 {
        let began = Instant::now();
        let answer = query(&mallory, json!({ eve.as_str(): [] }), Duration::from_millis(1));
        assert!(failed(&answer, &peer), "{answer}");
        assert!(began.elapsed() > Duration::from_millis(900), "no server answers in so little time");
        let claimed = claim_one(&alice, &eve);
        assert!(!failed(&claimed, &peer), "{attempt}: {claimed}");
    }
    gate.open();
    let answer = query(&alice, json!({ eve.as_str(): [] }), Duration::from_secs(10));
    assert!(!failed(&answer, &peer), "{answer}");
}

#[test]
fn a_space_that_its_server_does_not_tell_stops_neither_keys_nor_profiles() {
    let (server, peer, gate) = (TestServer::start(), Peer::start(), Gate::default());
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), peer.user("eve"));
    has_one_time_keys(&peer, &eve);
    peer.answer_json(QUERY, 200, json!({ "device_keys": {} }));
    peer.answer_json("/query/profile", 200, json!({ "displayname": "Eve" }));
    peer.answer_behind(&gate, "/hierarchy/", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
    let space = format!("!space:{}", peer.name());
    assert_ne!(look_at_space(&bob, &space).0, 200);
    assert_eq!(peer.asked("/hierarchy/").len(), 1);
    let claimed = claim_one(&alice, &eve);
    assert!(!failed(&claimed, &peer), "{claimed}");
    let answer = query(&alice, json!({ eve.as_str(): [] }), Duration::from_secs(10));
    assert!(!failed(&answer, &peer), "{answer}");
    let profile = format!("/_matrix/client/v3/profile/{}", segment(eve.as_str()));
    assert_eq!(alice.get(&profile)["displayname"], "Eve");
    gate.open();
}

#[test]
fn what_a_server_was_silent_about_is_asked_again_by_who_wants_just_that_and_is_no_refusal() {
    let (server, peer, gate) = (TestServer::start(), Peer::start(), Gate::default());
    let bob = server.user("bob");
    let space = format!("!space:{}", peer.name());
    peer.answer_behind(
        &gate,
        "/hierarchy/",
        200,
        json!({
            "room": {
                "room_id": space, "name": "space", "num_joined_members": 1, "world_readable": true,
                "guest_can_join": false, "children_state": [],
            },
            "children": [], "inaccessible_children": [],
        }),
    );
    let summary = || {
        let path = format!("/_matrix/client/v1/room_summary/{}?via={}", segment(&space), peer.name());
        bob.request("GET", &path, None)
    };
    for looked in [look_at_space(&bob, &space), look_at_space(&bob, &space), summary()] {
        assert_eq!(looked.0, 504, "{}", looked.1);
    }
    gate.open();
    let (status, page) = look_at_space(&bob, &space);
    assert_eq!((status, &page["rooms"][0]["name"]), (200, &json!("space")), "{page}");
    assert_eq!(summary().0, 200);
}
