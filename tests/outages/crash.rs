//! Kills the real binary (SIGKILL) in every state of a remote membership, starts it again, and looks whether both
//! sides end where they should. The other side is a scripted peer that can leave a request unanswered for as long as
//! it takes to kill whoever asks; and a second real server where nothing needs to be held up.

use std::time::Duration;

use crate::common::ProcessServer;
use crate::common::peer::{FakeRoom, Peer};
use crate::common::wait::{Gate, wait_until};
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// Makes a request on another thread that nobody waits for: its server is about to be killed.
/// The status of the answer, if there is one.
fn in_background(user: &TestUser, path: String) -> std::thread::JoinHandle<Option<u16>> {
    let (url, token) = (user.url().to_owned(), user.token().to_owned());
    std::thread::spawn(move || {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let request = agent.post(format!("{url}{path}")).header("Authorization", &format!("Bearer {token}"));
        let answer = request.header("Content-Type", "application/json").send("{}");
        answer.ok().map(|answer| answer.status().as_u16())
    })
}

fn knock_path(room: &str, via: &str) -> String {
    format!("/_matrix/client/v3/knock/{}?via={}", segment(room), segment(via))
}

fn join_path(room: &str) -> String {
    format!("/_matrix/client/v3/join/{}", segment(room))
}

fn event_ids(peer: &Peer, call: &str) -> Vec<String> {
    let asked = peer.asked(call);
    asked.iter().map(|a| a.target.split('?').next().unwrap_or_default().to_owned()).collect()
}

#[test]
fn killed_while_knocking_the_same_knock_is_handed_in_again() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let room = FakeRoom::new(&peer, "11", "knock");
    let gate = Gate::default();
    peer.answer_json("make_knock", 200, room.template(bob.id(), "knock"));
    peer.answer_behind(&gate, "send_knock", 200, json!({ "knock_room_state": room.shown() }));
    in_background(&bob, knock_path(room.id.as_str(), peer.name().as_str()));
    peer.wait_for("send_knock");
    server.kill();
    gate.open();
    server.resume();
    bob.wait_for_room("knock", room.id.as_str());
    let ids = event_ids(&peer, "send_knock");
    assert!(ids.len() >= 2 && ids.iter().all(|id| id == &ids[0]), "{ids:?}");
}

#[test]
fn killed_while_knocked_the_knock_is_still_there_and_the_invite_is_linked_to_it() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    server.kill();
    server.resume();
    assert!(bob.initial_sync()["rooms"]["knock"].get(room.id.as_str()).is_some());
    room.invite(&peer, server.name(), bob.id());
    // Killed while invited: the invite and its link are still there.
    server.kill();
    server.resume();
    let invited = bob.initial_sync()["rooms"]["invite"][room.id.as_str()].clone();
    let events = invited["invite_state"]["events"].as_array().expect("invite state").clone();
    let own = events.iter().find(|e| e["state_key"] == bob.id()).expect("the user's own member event");
    assert_eq!(own["unsigned"]["prev_content"]["membership"], "knock");
}

#[test]
fn killed_while_joining_the_join_is_finished_after_the_start() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "invite");
    room.invite(&peer, server.name(), bob.id());
    let gate = Gate::default();
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    peer.answer_behind(&gate, "send_join", 200, room.join_answer());
    in_background(&bob, join_path(room.id.as_str()));
    peer.wait_for("send_join");
    server.kill();
    gate.open();
    server.resume();
    bob.wait_for_room("join", room.id.as_str());
    let ids = event_ids(&peer, "send_join");
    assert!(ids.len() >= 2 && ids.iter().all(|id| id == &ids[0]), "the same join: {ids:?}");
    assert!(bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_none());
}

#[test]
fn killed_while_joining_and_then_refused_the_invite_is_there_again() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "12", "invite");
    room.invite(&peer, server.name(), bob.id());
    let gate = Gate::default();
    peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
    let refusal = json!({ "errcode": "M_FORBIDDEN", "error": "taken back" });
    peer.answer_behind(&gate, "send_join", 403, refusal);
    in_background(&bob, join_path(room.id.as_str()));
    peer.wait_for("send_join");
    server.kill();
    gate.open();
    server.resume();
    wait_until("the repeated join was refused", || peer.asked("send_join").len() >= 3);
    assert!(bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_some());
    assert!(bob.initial_sync()["rooms"]["join"].get(room.id.as_str()).is_none());
}

#[test]
fn killed_while_a_join_is_taken_in_vain_the_room_is_left_after_the_start() {
    for two_servers in [false, true] {
        let mut server = ProcessServer::start(&[]);
        let bob = server.user("bob");
        let (peer, other) = (Peer::start(), Peer::start());
        let room = FakeRoom::new(&peer, "11", "public");
        let gate = Gate::default();
        peer.answer_json("make_join", 200, room.template(bob.id(), "join"));
        other.answer_json("make_join", 200, room.template(bob.id(), "join"));
        peer.let_leave(&room, bob.id());
        let no = json!({ "errcode": "M_FORBIDDEN", "error": "no" });
        let blocked = if two_servers {
            // It takes the join, and does not give the room; the other is about to say no.
            peer.answer_json("send_join", 200, json!({}));
            other.answer_behind(&gate, "send_join", 403, no.clone());
            &other
        } else {
            peer.answer_behind(&gate, "send_join", 200, json!({}));
            &peer
        };
        let via = [peer.name(), other.name()].map(|name| segment(name.as_str()));
        in_background(&bob, format!("{}?via={}&via={}", join_path(room.id.as_str()), via[0], via[1]));
        blocked.wait_for("send_join");
        server.kill();
        if two_servers {
            // Nor does it give another template to who is in the room.
            peer.answer_json("make_join", 403, no.clone());
        }
        other.answer_json("make_join", 403, no);
        gate.open();
        server.resume();
        peer.wait_for("send_leave");
        let filter = segment(r#"{"room":{"include_leave":true}}"#);
        let rooms = bob.get(&format!("/_matrix/client/v3/sync?filter={filter}"))["rooms"].clone();
        assert!(rooms["leave"].get(room.id.as_str()).is_some(), "{rooms}");
    }
}

#[test]
fn killed_while_leaving_the_leave_is_told_after_the_start() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "invite");
    room.invite(&peer, server.name(), bob.id());
    let gate = Gate::default();
    peer.answer_behind(&gate, "make_leave", 200, room.template(bob.id(), "leave"));
    peer.answer_json("send_leave", 200, json!({}));
    bob.leave(room.id.as_str());
    peer.wait_for("make_leave");
    server.kill();
    gate.open();
    server.resume();
    peer.wait_for("send_leave");
    bob.initial_sync();
    let rooms = || {
        let filter = segment(r#"{"room":{"include_leave":true}}"#);
        bob.get(&format!("/_matrix/client/v3/sync?filter={filter}"))["rooms"].clone()
    };
    let before: Value = rooms();
    assert!(before["invite"].get(room.id.as_str()).is_none());
    assert!(before["leave"].get(room.id.as_str()).is_some(), "{before}");
    // Killed once it is closed: nothing is said again.
    let told = peer.asked("send_leave").len();
    server.kill();
    server.resume();
    assert!(rooms()["leave"].get(room.id.as_str()).is_some());
    assert_eq!(peer.asked("send_leave").len(), told);
}

#[test]
fn killed_on_either_side_two_real_servers_agree_in_the_end() {
    let (mut here, mut there) = (ProcessServer::start(&[]), ProcessServer::start(&[]));
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({
        "preset": "private_chat",
        "initial_state": [{ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
    }));
    let is = |user: &TestUser, membership: &str| {
        alice.membership_of(&room, user.id()).as_deref() == Some(membership)
    };
    bob.knock_via(&room, &[here.name()]);
    wait_until("the host has the knock", || is(&bob, "knock"));
    here.kill();
    // Withdrawn while the host is dead, and the withdrawing server dies too.
    bob.leave(&room);
    there.kill();
    here.resume();
    there.resume();
    wait_until("the host has the withdrawal", || is(&bob, "leave"));
    bob.knock_via(&room, &[here.name()]);
    there.kill();
    // Refused while the knocker's server is dead: the host keeps what it owes.
    alice.act_on("kick", &room, bob.id());
    here.kill();
    here.resume();
    there.resume();
    bob.initial_sync();
    wait_until("the knocker has the refusal", || bob.initial_sync()["rooms"]["knock"].get(&room).is_none());
    alice.invite(&room, bob.id());
    bob.wait_for_room("invite", &room);
    there.kill();
    there.resume();
    bob.join(&room);
    wait_until("the host has the join", || is(&bob, "join"));
    here.kill();
    here.resume();
    alice.send(&room, "still here");
    assert_eq!(bob.next_message(&room), "still here");
}

/// A port at which connections neither come about nor fail.
struct DeafPort {
    _listener: std::net::TcpListener,
    _waiting: Vec<std::net::TcpStream>,
}

impl DeafPort {
    fn bind(port: u16) -> Self {
        use std::os::fd::AsRawFd;
        let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
        // SAFETY: a plain system call on an open descriptor.
        assert_eq!(unsafe { libc::listen(listener.as_raw_fd(), 0) }, 0);
        let address = listener.local_addr().expect("a bound socket has an address");
        let mut waiting = Vec::new();
        while let Ok(stream) = std::net::TcpStream::connect_timeout(&address, Duration::from_millis(300)) {
            waiting.push(stream);
        }
        Self { _listener: listener, _waiting: waiting }
    }
}

/// Whether somebody tries to connect to this port and has had no answer (`SYN_SENT`).
#[cfg(target_os = "linux")]
fn connects_in_vain(port: u16) -> bool {
    let table = std::fs::read_to_string("/proc/net/tcp").expect("Linux tells");
    let wanted = format!(":{port:04X} 02 ");
    table.lines().any(|line| line.contains(&wanted))
}

#[cfg(target_os = "linux")]
#[test]
fn a_stop_does_not_wait_for_connections_that_never_come_about_and_whoever_does_is_answered() {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "invite");
    room.invite(&peer, server.name(), bob.id());
    let port = peer.name().port().expect("a port");
    drop(peer);
    let _deaf = DeafPort::bind(port);
    // A client's request and a job of the timer hang in it.
    let knock = in_background(&bob, knock_path("!elsewhere:example.org", &format!("localhost:{port}")));
    bob.leave(room.id.as_str());
    wait_until("the server tries to connect", || connects_in_vain(port));
    server.terminate();
    // A second or so, on a machine that may be busy; a connection would be given up after ten.
    assert!(server.wait_for_end(Duration::from_secs(6)), "it does not stop");
    let status = knock.join().expect("no panic").expect("the request was not abandoned");
    assert!(matches!(status, 502 | 504), "{status}");
    server.resume();
    assert!(bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_none());
}

#[test]
fn killed_while_a_leave_is_handed_in_the_same_leave_is_handed_in_again_and_an_invite_from_before_it_is_refused()
 {
    let mut server = ProcessServer::start(&[]);
    let bob = server.user("bob");
    let peer = Peer::start();
    let mut room = FakeRoom::new(&peer, "11", "knock");
    peer.let_knock(&room, bob.id());
    bob.knock_via(room.id.as_str(), &[peer.name().as_str()]);
    let knock = room.read(&peer.wait_for("send_knock").body);
    room.take(knock);
    let invite = room.membership(&peer, &room.creator, bob.id(), "invite");
    let gate = Gate::default();
    peer.answer_json("make_leave", 200, room.template(bob.id(), "leave"));
    peer.answer_behind(&gate, "send_leave", 200, json!({}));
    in_background(&bob, format!("/_matrix/client/v3/rooms/{}/leave", segment(room.id.as_str())));
    peer.wait_for("send_leave");
    server.kill();
    gate.open();
    server.resume();
    wait_until("it is handed in again", || event_ids(&peer, "send_leave").len() >= 2);
    let ids = event_ids(&peer, "send_leave");
    assert!(ids.iter().all(|id| id == &ids[0]), "{ids:?}");
    let body = room.invite_body(&invite);
    let (status, said) = peer.put_event(server.name(), "v2/invite", &room.id, &invite, &body);
    assert_eq!((status, &said["errcode"]), (403, &json!("M_FORBIDDEN")), "{said}");
    assert!(bob.initial_sync()["rooms"]["invite"].get(room.id.as_str()).is_none());
}
