//! What a request was answered for is owed until it is done, whatever the disk did not take meanwhile, and wherever a stop came
//! between.

use std::sync::Arc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::Clock;
use crate::config::Config;
use crate::error::ErrCode;
use crate::protocol::pdu::Membership;
use crate::protocol::{RoomId, ServerName, UserId};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::membership::JoinTarget;
use crate::service::rooms::create::CreateRoom;
use crate::testing::patience;

/// A server on which nothing runs in the background, as if it were killed at the end of each request, and a clock to move.
struct Server {
    hs: Arc<Homeserver>,
    config: Config,
    clock: Clock,
}

impl Server {
    fn new() -> Self {
        let config = Config::for_name(ServerName::parse("here.example").expect("a name"));
        let clock = Clock::new();
        let hs = Homeserver::open(config.clone(), clock.clone()).expect("a server");
        Self { hs, config, clock }
    }

    /// What is left of it on the disk, started.
    fn restarted(self) -> Self {
        let (config, clock) = (self.config.clone(), self.clock.clone());
        let hs = Homeserver::open_after(Some(&self.hs), config, clock, crate::federation::Client::new);
        let after = Self { hs: hs.expect("the same server"), ..self };
        after.hs.start_background().expect("threads");
        after
    }

    fn user(&self, name: &str) -> UserId {
        self.hs.accounts().register_user(name, None).expect("an account").0
    }

    fn room(&self, creator: &UserId, wishes: Value) -> RoomId {
        let wishes: CreateRoom = serde_json::from_value(wishes).expect("a room");
        self.hs.rooms().create_room(creator, &wishes).expect("made")
    }

    fn public_rooms(&self, creator: &UserId, count: usize) -> Vec<RoomId> {
        (0..count).map(|_| self.room(creator, json!({ "preset": "public_chat" }))).collect()
    }

    fn join(&self, user: &UserId, room: &RoomId) {
        let target = JoinTarget { room_id: room.clone(), via: Vec::new() };
        self.hs.membership().join(user, &target, None).expect("joined");
    }

    /// From now on the disk takes no such rows.
    fn refuse(&self, table: &str, such: &str) {
        let sql = format!(
            "CREATE TEMP TRIGGER refused BEFORE INSERT ON {table} WHEN {such}
             BEGIN SELECT RAISE(ABORT, 'the disk takes nothing'); END"
        );
        self.hs.store.write(move |tx| Ok(tx.conn().execute_batch(&sql)?)).expect("a disk that fails");
    }

    fn take_everything_again(&self) {
        self.hs.store.write(|tx| Ok(tx.conn().execute_batch("DROP TRIGGER refused")?)).expect("a disk");
    }

    fn rename(&self, user: &UserId, name: &str) {
        self.hs.accounts().set_profile_field(user, "displayname", name.into()).expect("acknowledged");
    }

    /// In how many of these rooms a user has this name.
    fn called(&self, user: &UserId, name: &str, rooms: &[RoomId]) -> usize {
        let name_in = |room: &&RoomId| {
            let member = self
                .hs
                .store
                .read(|db| db.state_event(db.known_room(room)?.key, "m.room.member", user.as_str()));
            member.expect("read").and_then(|member| member.content_str("displayname")).as_deref()
                == Some(name)
        };
        rooms.iter().filter(name_in).count()
    }

    fn events_of(&self, room: &RoomId) -> i64 {
        let room = room.to_string();
        let count = "SELECT count(*) FROM events JOIN rooms USING (room_key) WHERE room_id = ?1";
        let count = self.hs.store.read(|db| Ok(db.conn().query_row(count, [room], |row| row.get(0))?));
        count.expect("counted")
    }

    fn is_in(&self, user: &UserId, room: &RoomId) -> Option<Membership> {
        self.hs.store.read(|db| db.membership(db.known_room(room)?.key, user)).expect("read")
    }

    /// Lets time pass until something holds.
    #[allow(clippy::disallowed_methods, reason = "between two looks at a condition, never instead of one")]
    fn in_time(&self, what: &str, holds: impl Fn() -> bool) {
        let until = Instant::now() + patience(Duration::from_secs(30));
        while !holds() {
            assert!(Instant::now() < until, "{what}");
            self.clock.advance(Duration::from_secs(10));
            self.hs.scheduler.wake();
            std::thread::sleep(Duration::from_millis(20));
        }
    }
}

const EVERY_THIRD_ROOM: &str = "NEW.room_key % 3 = 0";

#[test]
fn rooms_that_could_not_be_told_of_a_new_name_are_told_by_a_repeat_of_the_request_and_the_others_once() {
    let server = Server::new();
    let alice = server.user("alice");
    let rooms = server.public_rooms(&alice, 9);
    server.refuse("events", EVERY_THIRD_ROOM);
    server.rename(&alice, "Alice");
    assert_eq!(server.called(&alice, "Alice", &rooms), 6);
    let told = rooms.iter().map(|room| server.events_of(room)).max();
    server.take_everything_again();
    server.rename(&alice, "Alice");
    assert_eq!(server.called(&alice, "Alice", &rooms), 9);
    server.rename(&alice, "Alice");
    assert_eq!(rooms.iter().map(|room| server.events_of(room)).max(), told, "nobody is told twice");
}

#[test]
fn rooms_that_could_not_be_told_of_a_new_name_are_told_later_unless_the_user_calls_themselves_otherwise_there()
 {
    let server = Server::new();
    let alice = server.user("alice");
    let rooms = server.public_rooms(&alice, 6);
    server.hs.start_background().expect("threads");
    server.refuse("events", EVERY_THIRD_ROOM);
    server.rename(&alice, "Alice");
    assert_eq!(server.called(&alice, "Alice", &rooms), 4);
    let told = rooms.iter().find(|room| server.called(&alice, "Alice", std::slice::from_ref(room)) == 1);
    let (told, content) = (told.expect("one"), json!({ "membership": "join", "displayname": "Al" }));
    let draft = crate::service::events::draft::Draft {
        room: told.clone(),
        sender: alice.clone(),
        event_type: "m.room.member".into(),
        state_key: Some(alice.to_string()),
        content: content.as_object().expect("an object").clone(),
        redacts: None,
        origin_server_ts: None,
    };
    server.hs.events().send(draft).expect("sent");
    server.take_everything_again();
    server.in_time("the rooms are not told", || server.called(&alice, "Alice", &rooms) == 5);
    assert_eq!(server.called(&alice, "Al", std::slice::from_ref(told)), 1);
    server.hs.stop_background();
}

#[test]
fn what_rooms_had_not_been_told_at_a_stop_they_are_told_after_the_next_start_as_it_is_then() {
    let server = Server::new();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let rooms = server.public_rooms(&alice, 4);
    rooms.iter().for_each(|room| [&bob, &carol].iter().for_each(|user| server.join(user, room)));
    server.refuse("events", "NEW.room_key > 0");
    server.rename(&alice, "Al");
    server.rename(&alice, "Alice");
    server.hs.accounts().set_profile_field(&alice, "avatar_url", "mxc://here/a".into()).expect("told later");
    server.rename(&bob, "Bob");
    server.rename(&carol, "Carol");
    assert_eq!(server.called(&alice, "Alice", &rooms), 0);
    server.take_everything_again();
    server.hs.membership().leave(&bob, &rooms[0], None).expect("left");
    server.hs.deactivate(&carol, true).expect("closed");
    let server = server.restarted();
    server.in_time("the rooms are not told", || server.called(&alice, "Alice", &rooms) == 4);
    server.in_time("the rooms are not told", || server.called(&bob, "Bob", &rooms) == 3);
    let is_owed = || {
        let owed = "SELECT count(*) FROM owed_profiles";
        server
            .hs
            .store
            .read(|db| Ok(db.conn().query_row(owed, [], |row| row.get::<_, i64>(0))?))
            .expect("read")
    };
    server.in_time("it is owed for ever", || is_owed() == 0);
    assert_eq!(server.is_in(&bob, &rooms[0]), Some(Membership::Leave));
    assert_eq!(server.is_in(&carol, &rooms[0]), Some(Membership::Leave));
    server.hs.stop_background();
}

#[test]
fn who_has_closed_their_account_leaves_also_the_rooms_that_could_not_be_left_at_once() {
    let server = Server::new();
    let (_admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let mut rooms = server.public_rooms(&alice, 3);
    rooms.iter().for_each(|room| server.join(&bob, room));
    let invite = || server.room(&alice, json!({ "preset": "private_chat", "invite": [bob] }));
    rooms.extend((0..6).map(|_| invite()));
    let left = |server: &Server| {
        rooms.iter().filter(|room| server.is_in(&bob, room) == Some(Membership::Leave)).count()
    };
    server.refuse("events", "NEW.room_key > 6");
    server.hs.deactivate(&bob, false).expect("closed");
    assert_eq!(left(&server), 6, "all but some to which they are invited");
    let server = server.restarted();
    server.in_time("the rooms are not left", || left(&server) == 9);
    server.hs.stop_background();
}

#[test]
fn rooms_that_a_closed_account_could_not_leave_are_left_without_a_restart() {
    let server = Server::new();
    let (_admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let rooms = server.public_rooms(&alice, 3);
    rooms.iter().for_each(|room| server.join(&bob, room));
    server.hs.start_background().expect("threads");
    server.refuse("events", EVERY_THIRD_ROOM);
    let by = Administrator::Operator;
    server.hs.deactivate_by_admin(&by, &bob, false).expect("closed");
    server.take_everything_again();
    server.in_time("the rooms are not left", || {
        rooms.iter().all(|room| server.is_in(&bob, room) == Some(Membership::Leave))
    });
    server.hs.stop_background();
}

#[test]
fn a_new_room_has_all_its_local_invites_or_there_is_none() {
    let server = Server::new();
    let alice = server.user("alice");
    let users: Vec<UserId> = ["bob", "carol", "dave", "erin"].map(|name| server.user(name)).into();
    let wishes =
        json!({ "preset": "private_chat", "room_alias_name": "x", "invite": users, "is_direct": true });
    let wishes: CreateRoom = serde_json::from_value(wishes).expect("a room");
    server.refuse("memberships", "NEW.membership = 'invite' AND NEW.user_id = '@dave:here.example'");
    let refused = server.hs.rooms().create_room(&alice, &wishes).expect_err("the disk takes it not");
    assert!(refused.status() >= 500, "{refused}");
    assert!(server.hs.store.read(|db| db.rooms_of(&alice)).expect("read").is_empty());
    server.take_everything_again();
    server.rename(&users[0], "Bob");
    let room = server.hs.rooms().create_room(&alice, &wishes).expect("made");
    for user in &users {
        assert_eq!(server.is_in(user, &room), Some(Membership::Invite), "{user}");
    }
    assert_eq!(server.called(&users[0], "Bob", std::slice::from_ref(&room)), 1);
    let key = server.hs.store.read(|db| Ok(db.known_room(&room)?.key)).expect("read");
    let invite = server.hs.store.read(|db| db.state_event(key, "m.room.member", users[0].as_str()));
    assert_eq!(invite.expect("read").expect("invited").content().get("is_direct"), Some(&json!(true)));
    // As with others, where the room's own rules let nobody be invited.
    let wishes =
        json!({ "power_level_content_override": { "invite": 101 }, "invite": users, "room_version": "10" });
    let room = server.room(&alice, wishes);
    assert_eq!(server.is_in(&users[0], &room), None);
    // And who takes no invites is known before there is a room.
    let blocks = json!({ "default_action": "block" }).to_string();
    let erin = users[3].clone();
    server
        .hs
        .store
        .write(move |tx| tx.set_account_data(&erin, None, "m.invite_permission_config", &blocks).map(drop))
        .expect("written");
    let wishes: CreateRoom = serde_json::from_value(json!({ "invite": users })).expect("a room");
    let refused = server.hs.rooms().create_room(&alice, &wishes).expect_err("blocked");
    assert_eq!(refused.errcode(), ErrCode::InviteBlocked);
}
