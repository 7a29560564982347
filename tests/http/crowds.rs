//! Two real servers with hardly any room for connections, whose users knock at each other's door at the same time:
//! slow, perhaps, but nothing locks up and every handshake ends.

use std::thread;
use std::time::Duration;

use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::json;

const HANDSHAKES: usize = 3;

/// A room of `host` whose door can be knocked at.
fn room_to_knock_at(host: &TestUser) -> String {
    host.create_room_with(json!({
        "preset": "private_chat",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }))
}

/// Knocks at a room of the other server, is let in and joins.
fn handshake(host: &TestUser, guest: &TestUser, via: &str) {
    let room = room_to_knock_at(host);
    // A server that is full says so, and is asked again.
    let knock =
        || guest.request("POST", &format!("/_matrix/client/v3/knock/{}?via={via}", segment(&room)), None).0;
    let asked_again = (0..50).map(|_| knock()).find(|status| *status == 200);
    assert!(asked_again.is_some(), "{} never got to knock", guest.id());
    host.sync_until("the knock", |_| {
        (host.membership_of(&room, guest.id()).as_deref() == Some("knock")).then_some(())
    });
    host.invite(&room, guest.id());
    guest.wait_for_room("invite", &room);
    guest.join_via(&room, &[via]);
}

#[test]
fn two_servers_with_hardly_any_room_let_each_others_users_in() {
    let tiny = || TestServer::start_with(|config| config.max_connections = 4);
    let (one, two) = (tiny(), tiny());
    let users = |server: &TestServer, side: &str| -> Vec<(TestUser, String)> {
        (0..2).map(|n| (server.user(&format!("{side}{n}")), server.name().to_owned())).collect()
    };
    let (ones, twos) = (users(&one, "one"), users(&two, "two"));
    thread::scope(|scope| {
        for (a, b) in ones.into_iter().zip(twos) {
            scope.spawn(move || {
                let ((a, a_server), (b, b_server)) = (a, b);
                for _ in 0..HANDSHAKES {
                    handshake(&a, &b, &a_server);
                    handshake(&b, &a, &b_server);
                }
                a.sync(Duration::ZERO);
            });
        }
    });
}
