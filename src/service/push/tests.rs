//! The rows by which users are notified, and what is read of them.

use serde_json::{Value, json};

use crate::TestServer;
use crate::protocol::push_rules::Outcome;
use crate::protocol::{RoomId, UserId};
use crate::store::push::notifications::Notification;
use crate::store::push::sweep::SweepPlace;
use crate::store::push::unread::{Badge, Unread};
use crate::testing::{TestUser, segment};

const NOTIFY: Outcome = Outcome { notify: true, highlight: false, sound: false, uncounted: false };
const MENTION: Outcome = Outcome { highlight: true, sound: true, ..NOTIFY };
const SOUND: Outcome = Outcome { sound: true, ..NOTIFY };

fn id(user: &TestUser) -> UserId {
    UserId::parse(user.id()).expect("a user id")
}

fn mute(user: &TestUser, room: &str) {
    let path = format!("/_matrix/client/v3/pushrules/global/room/{}", segment(room));
    user.put(&path, json!({"actions": []}));
}

fn mention(user: &TestUser, room: &str, whom: &[&TestUser]) -> String {
    let users: Vec<&str> = whom.iter().map(|user| user.id()).collect();
    let content = json!({"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": users}});
    let path = format!(
        "/_matrix/client/v3/rooms/{}/send/m.room.message/{}",
        segment(room),
        crate::random::letters(12)
    );
    user.put(&path, content)["event_id"].as_str().expect("an event id").to_owned()
}

/// The rows of the last event that has any: whether there is one for all, and how many of users.
fn rows(server: &TestServer) -> (i64, i64) {
    let counted = server.homeserver().store.read(|db| {
        let last = "SELECT coalesce(max(stream), 0) FROM (SELECT stream FROM notifications
             UNION ALL SELECT stream FROM notifications_of_users)";
        let last: i64 = db.conn().query_row(last, [], |row| row.get(0))?;
        let count = |table: &str| -> crate::error::Result<i64> {
            let sql = format!("SELECT count(*) FROM {table} WHERE stream = ?1");
            Ok(db.conn().query_row(&sql, [last], |row| row.get(0))?)
        };
        Ok((count("notifications")?, count("notifications_of_users")?))
    });
    counted.expect("read")
}

fn after(server: &TestServer, user: &TestUser, after: i64, limit: usize) -> Vec<Notification> {
    let user = id(user);
    server.homeserver().store.read(|db| db.notifications_after(&user, after, limit)).expect("read").found
}

fn before(
    server: &TestServer,
    user: &TestUser,
    before: i64,
    highlights: bool,
    limit: usize,
) -> Vec<Notification> {
    let user = id(user);
    let store = &server.homeserver().store;
    store.read(|db| db.notifications_before(&user, before, highlights, limit)).expect("read").found
}

fn badge(server: &TestServer, user: &TestUser) -> Badge {
    let user = id(user);
    server.homeserver().store.read(|db| db.badge(&user)).expect("read")
}

fn unread(server: &TestServer, user: &TestUser, room: &str) -> Unread {
    let (user, room) = (id(user), RoomId::parse(room).expect("a room id"));
    let store = &server.homeserver().store;
    let counts = store.read(|db| {
        let room = db.room(&room)?.expect("the room");
        db.unread_counts(&user, room.key)
    });
    counts.expect("read").in_all()
}

#[test]
fn what_an_event_is_to_most_has_one_row_and_only_to_the_others_one_each() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let others: Vec<TestUser> = (0..5).map(|number| server.user(&format!("user{number}"))).collect();
    others.iter().for_each(|other| drop(other.join(&room)));
    alice.send(&room, "to all");
    assert_eq!(rows(&server), (1, 0));
    mention(&alice, &room, &[&others[0]]);
    assert_eq!(rows(&server), (1, 1));
    let all: Vec<&TestUser> = others.iter().collect();
    mention(&alice, &room, &all);
    assert_eq!(rows(&server), (1, 0), "that is what it is to all");
    mention(&alice, &room, &all[..4]);
    assert_eq!(rows(&server), (1, 1), "and here to most");
    let counts = |number: usize| unread(&server, &others[number], &room);
    assert_eq!(counts(0), Unread { notifications: 4, highlights: 3 });
    assert_eq!(counts(4), Unread { notifications: 4, highlights: 1 });
    others[..3].iter().for_each(|other| mute(other, &room));
    alice.send(&room, "to two");
    assert_eq!(rows(&server), (0, 2), "most have muted the room");
    mention(&alice, &room, &[&others[0]]);
    assert_eq!(rows(&server), (1, 3));
    assert_eq!(counts(0), Unread { notifications: 5, highlights: 4 });
    assert_eq!(counts(1), Unread { notifications: 4, highlights: 2 });
    assert_eq!(counts(4), Unread { notifications: 6, highlights: 1 });
    let alone = alice.create_room();
    alice.send(&alone, "to nobody");
    assert_eq!(rows(&server), (1, 3), "nothing was added");
}

#[test]
fn notifications_are_read_one_by_one_in_both_directions() {
    let server = TestServer::start();
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let (room, other) = (alice.create_room(), alice.create_room());
    for user in [&bob, &carol] {
        user.join(&room);
        user.join(&other);
    }
    alice.send(&room, "one");
    mention(&alice, &other, &[&bob]);
    bob.send(&room, "mine");
    let gone = alice.send(&room, "gone");
    alice.send(&other, "two");
    let path = format!("/_matrix/client/v3/rooms/{}/redact/{}/1", segment(&room), segment(&gone));
    alice.put(&path, json!({}));
    let all = after(&server, &bob, 0, 10);
    let seen: Vec<(&str, Outcome)> = all.iter().map(|n| (n.room_id.as_str(), n.outcome)).collect();
    assert_eq!(seen, [(&room[..], NOTIFY), (&other[..], MENTION), (&other[..], NOTIFY)]);
    assert!(all.windows(2).all(|pair| pair[0].stream < pair[1].stream));
    assert_eq!(all[0].actions().expect("actions"), [json!("notify")]);
    assert_eq!(after(&server, &bob, 0, 2), all[..2]);
    assert_eq!(after(&server, &bob, all[1].stream, 10), all[2..]);
    assert_eq!(after(&server, &carol, 0, 10).len(), 4, "carol hears of bob's too");
    let mut backwards = before(&server, &bob, i64::MAX, false, 10);
    assert_eq!(before(&server, &bob, all[2].stream, false, 1), [all[1].clone()]);
    assert_eq!(before(&server, &bob, i64::MAX, true, 10), [all[1].clone()]);
    backwards.reverse();
    assert_eq!(backwards, all);
    bob.leave(&other);
    assert_eq!(after(&server, &bob, 0, 10), all[..1], "nothing of rooms that were left");
}

#[test]
fn an_invite_is_notified_of_until_it_is_answered_and_so_is_no_blocked_one() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room_with(json!({"preset": "private_chat"}));
    alice.invite(&room, bob.id());
    let all = after(&server, &bob, 0, 10);
    assert_eq!(all.iter().map(|n| (n.outcome, n.room_id.as_str())).collect::<Vec<_>>(), [(SOUND, &room[..])]);
    assert_eq!(badge(&server, &bob), Badge { invites: 1, rooms: 0, notifications: 0 });
    bob.join(&room);
    assert_eq!(badge(&server, &bob), Badge::default());
    assert!(after(&server, &bob, 0, 10).is_empty());
    alice.send(&room, "one");
    alice.send(&room, "two");
    assert_eq!(badge(&server, &bob), Badge { invites: 0, rooms: 1, notifications: 2 });
    bob.leave(&room);
    assert_eq!(badge(&server, &bob), Badge::default(), "a room that was left does not count");
    let ignored: Value = json!({"ignored_users": {alice.id(): {}}});
    let path = format!("/_matrix/client/v3/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    bob.put(&path, ignored);
    alice.invite(&room, bob.id());
    assert!(after(&server, &bob, 0, 10).is_empty(), "of who is ignored");
    assert_eq!(badge(&server, &bob), Badge::default(), "no client shows it");
}

#[test]
fn what_the_user_said_is_passed_over_a_bounded_part_at_a_time() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    alice.send(&room, "long ago");
    for n in 0..450 {
        bob.send(&room, &format!("mine {n}"));
    }
    let (user, mut position, mut looks) = (id(&bob), i64::MAX, 0);
    let found = loop {
        let last = server.homeserver().store.read(|db| db.notifications_before(&user, position, false, 1));
        let last = last.expect("read");
        looks += 1;
        if let Some(found) = last.found.into_iter().next() {
            break found;
        }
        let from = last.stopped_at.expect("there is more");
        assert!(from < position, "it gets on");
        position = from;
    };
    assert_eq!((found.outcome, looks), (SOUND, 3), "a room of two rings");
    let page = bob.get("/_matrix/client/v3/notifications?limit=1");
    assert_eq!(page["notifications"][0]["event"]["content"]["body"], "long ago");
    assert!(page.get("next_token").is_none(), "{page}");
}

#[test]
fn a_pusher_passes_over_what_its_user_said_a_bounded_part_at_a_time() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let mut position = server.homeserver().store.position();
    for n in 0..450 {
        bob.send(&room, &format!("mine {n}"));
    }
    let last = mention(&alice, &room, &[&bob]);
    let (user, mut looks) = (id(&bob), 0);
    let found = loop {
        let looked = server.homeserver().store.read(|db| db.notifications_after(&user, position, 1));
        let looked = looked.expect("read");
        looks += 1;
        if let Some(found) = looked.found.into_iter().next() {
            break found;
        }
        let upto = looked.stopped_at.expect("there is more");
        assert!(upto > position, "it gets on");
        position = upto;
    };
    let event = server.homeserver().store.read(|db| db.event_by_key(found.event.expect("an event")));
    assert_eq!((event.expect("read").pdu.event_id().as_str(), looks), (last.as_str(), 3));
}

#[test]
fn a_pusher_passes_over_what_is_nothing_to_its_user_a_bounded_part_at_a_time() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    mute(&bob, &room);
    let begin = server.homeserver().store.position();
    alice.send(&room, "nothing to him");
    let (key, user) = (RoomId::parse(&room).expect("a room id"), id(&bob));
    let filled = server.homeserver().store.write(move |tx| {
        let room = tx.known_room(&key)?.key;
        let sql = "WITH RECURSIVE n(i) AS (SELECT 2 UNION ALL SELECT i + 1 FROM n WHERE i < 5000)
             INSERT INTO notifications_of_users (user_id, room_key, stream, event_key, outcome, instead_of)
             SELECT ?1, ?2, ?3 + i, 1, 0, 1 FROM n";
        Ok(tx.conn().execute(sql, rusqlite::params![user.as_str(), room, begin])?)
    });
    assert_eq!(filled.expect("written"), 4999);
    let looked = server.homeserver().store.read(|db| db.notifications_after(&id(&bob), begin, 1));
    let looked = looked.expect("read");
    let upto = looked.stopped_at.expect("there is more");
    assert!(looked.found.is_empty() && (begin + 2000..begin + 2010).contains(&upto), "{upto} from {begin}");
    assert!(before(&server, &bob, i64::MAX, false, 1).is_empty());
}

/// Goes through all notifications once; what is left of both kinds.
fn swept(server: &TestServer) -> (i64, i64) {
    let hs = server.homeserver();
    let before = hs.clock.now_ms() - crate::store::push::sweep::READ_KEPT_MS;
    let mut place = Some(SweepPlace::START);
    while let Some(at) = place {
        let portion = hs.store.read(|db| db.notifications_to_sweep(&at, before, 3)).expect("read");
        place = portion.next.clone();
        hs.store.write(move |tx| tx.sweep_notifications(&portion)).expect("written");
    }
    let count = |table: &str| {
        let sql = format!("SELECT count(*) FROM {table}");
        hs.store.read(|db| Ok(db.conn().query_row(&sql, [], |row| row.get(0))?)).expect("read")
    };
    (count("notifications"), count("notifications_of_users"))
}

#[test]
fn what_was_read_a_month_ago_goes_and_what_counts_stays() {
    let server = TestServer::start();
    let users = [server.user("alice"), server.user("bob"), server.user("carol")];
    let [alice, bob, carol] = &users;
    let (room, private) = (alice.create_room(), alice.create_room_with(json!({"preset": "private_chat"})));
    let others: Vec<TestUser> = (0..3).map(|n| server.user(&format!("other{n}"))).collect();
    [bob, carol].iter().for_each(|user| drop(user.join(&room)));
    others.iter().for_each(|user| drop(user.join(&room)));
    alice.invite(&private, carol.id());
    let root = alice.send(&room, "root");
    for n in 0..8 {
        mention(alice, &room, &[if n % 2 == 0 { bob } else { carol }]);
    }
    let in_thread = json!({"msgtype": "m.text", "body": "there",
        "m.relates_to": {"rel_type": "m.thread", "event_id": root}});
    let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/thread", segment(&room));
    let threaded = alice.put(&path, in_thread)["event_id"].as_str().expect("an id").to_owned();
    let last = alice.send(&room, "last");
    let counts = || -> Vec<(u64, u64)> {
        let of = |user: &TestUser| unread(&server, user, &room);
        users.iter().chain(&others).map(of).map(|unread| (unread.notifications, unread.highlights)).collect()
    };
    let whole = swept(&server);
    assert!(whole.0 >= 11 && whole.1 >= 9, "nothing goes that nobody has read: {whole:?}");
    let receipt = |user: &TestUser, event: &str, body: Value| {
        let path = format!("/_matrix/client/v3/rooms/{}/receipt/m.read/{}", segment(&room), segment(event));
        user.post(&path, body);
    };
    receipt(bob, &last, json!({}));
    let before = counts();
    assert_eq!(swept(&server), whole, "it was only read now");
    server.advance(std::time::Duration::from_secs(31 * 24 * 3600));
    let left = swept(&server);
    assert_eq!((left.0, counts()), (whole.0, before.clone()), "the others have not read it");
    assert!(left.1 < whole.1, "what is bob's own goes");
    let listed = bob.get("/_matrix/client/v3/notifications?limit=100");
    assert_eq!(listed["notifications"], json!([]), "and stands no more as what it is to the others");
    let listed = carol.get("/_matrix/client/v3/notifications?limit=100");
    assert_eq!(listed["notifications"].as_array().map(Vec::len), Some(12), "{listed}");
    // The main timeline only.
    others.iter().chain([carol]).for_each(|user| receipt(user, &last, json!({"thread_id": "main"})));
    receipt(alice, &last, json!({}));
    let before = counts();
    assert_eq!(before[3], (1, 0));
    assert_eq!((swept(&server), counts()), ((1, 1), before), "the reply in the thread, and carol's invite");
    others.iter().chain([carol]).for_each(|user| receipt(user, &threaded, json!({"thread_id": root})));
    assert_eq!(swept(&server), (0, 1), "the invite stands");
    assert_eq!(badge(&server, carol).invites, 1);
    carol.join(&private);
    assert_eq!(swept(&server), (0, 0));
    assert!(counts().iter().all(|counts| *counts == (0, 0)));
    // The timer does the same once a day.
    alice.send(&room, "again");
    let again = bob.send(&room, "and again");
    users.iter().chain(&others).for_each(|user| receipt(user, &again, json!({})));
    server.advance(std::time::Duration::from_secs(31 * 24 * 3600));
    let rows = || -> i64 {
        let count = "SELECT count(*) FROM notifications";
        let read =
            server.homeserver().store.read(|db| Ok(db.conn().query_row(count, [], |row| row.get(0))?));
        read.expect("read")
    };
    let until = std::time::Instant::now() + crate::testing::patience(std::time::Duration::from_secs(30));
    while rows() > 0 {
        assert!(std::time::Instant::now() < until, "the timer sweeps");
        std::thread::yield_now();
    }
}
