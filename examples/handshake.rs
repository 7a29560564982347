//! Two homeservers in one process shake hands over loopback TLS: a knock that is accepted, one that is refused, and
//! one that is withdrawn. Run it with `cargo run --release --example handshake`.
#![allow(clippy::print_stdout, reason = "it is a demonstration")]

use doorstep::TestServer;
use doorstep::testing::TestUser;
use serde_json::{Value, json};

fn main() {
    Hops::install();
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    println!(
        "alice lives on {}, bob on {}. Lines with an arrow are requests between the two.\n",
        here.name(),
        there.name()
    );

    say("alice makes a room that one has to knock on");
    let room = knock_room(&alice);

    say("bob knocks, from the other server");
    bob.knock_via(&room, &[here.name()]);
    bob.wait_for_room("knock", &room);
    wait_for_membership(&alice, &room, bob.id(), "knock");

    say("alice lets bob in: an invite, linked to the knock");
    alice.invite(&room, bob.id());
    let invite = bob.wait_for_room("invite", &room);
    let linked = member_event(&invite["invite_state"]["events"], bob.id());
    println!(
        "  bob's client sees: membership {} after {}",
        linked["content"]["membership"], linked["unsigned"]["prev_content"]["membership"]
    );

    say("bob joins, and they talk");
    bob.join(&room);
    wait_for_membership(&alice, &room, bob.id(), "join");
    alice.send(&room, "Come in, the door is open.");
    println!("  bob reads:   {}", bob.next_message(&room));
    bob.send(&room, "Thank you!");
    println!("  alice reads: {}", alice.next_message(&room));

    say("a second room: bob knocks, alice refuses, and bob is told");
    let room = knock_room(&alice);
    bob.knock_via(&room, &[here.name()]);
    wait_for_membership(&alice, &room, bob.id(), "knock");
    alice.act_on("kick", &room, bob.id());
    bob.wait_for_room("leave", &room);
    println!("  bob's client moved the room to rooms.leave");

    say("a third room: bob knocks and thinks better of it");
    let room = knock_room(&alice);
    bob.knock_via(&room, &[here.name()]);
    wait_for_membership(&alice, &room, bob.id(), "knock");
    bob.leave(&room);
    wait_for_membership(&alice, &room, bob.id(), "leave");
    println!("  alice's server knows that the knock was withdrawn");
}

fn knock_room(owner: &TestUser) -> String {
    let rule = json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } });
    owner.create_room_with(
        json!({ "preset": "private_chat", "name": "Behind the door", "initial_state": [rule] }),
    )
}

/// Waits until `owner`'s server has this membership for the user.
fn wait_for_membership(owner: &TestUser, room: &str, user: &str, membership: &str) {
    owner.wait_for_membership(room, user, membership);
    println!("  alice's client sees: {user} is now in state \"{membership}\"");
}

fn member_event(events: &Value, user: &str) -> Value {
    let mut events = events.as_array().into_iter().flatten();
    events.find(|e| e["type"] == "m.room.member" && e["state_key"] == user).cloned().unwrap_or_default()
}

fn say(what: &str) {
    println!("\n{what}");
}

/// Prints the requests that the servers make to each other.
struct Hops;

impl Hops {
    fn install() {
        if log::set_logger(&Hops).is_ok() {
            log::set_max_level(log::LevelFilter::Debug);
        }
    }
}

impl log::Log for Hops {
    fn enabled(&self, metadata: &log::Metadata<'_>) -> bool {
        metadata.target() == doorstep::internals::HOPS
    }

    fn log(&self, record: &log::Record<'_>) {
        if self.enabled(record.metadata()) {
            println!("  {}", record.args());
        }
    }

    fn flush(&self) {}
}
