//! Rooms with everything in them, and what is left when they are deleted.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::room_deletion::DeletionOrder;
use crate::protocol::media::MxcUri;
use crate::protocol::{RoomId, UserId};
use crate::service::Homeserver;
use crate::service::accounts::moderation::Administrator;
use crate::service::media::upload::UploadHead;
use crate::testing::{TestServer, TestUser, segment};

const V3: &str = "/_matrix/client/v3";

#[allow(clippy::disallowed_methods, reason = "between two looks at a condition, never instead of one")]
fn wait_until(what: &str, mut holds: impl FnMut() -> bool) {
    let until = Instant::now() + Duration::from_secs(20);
    while !holds() {
        assert!(Instant::now() < until, "{what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[allow(clippy::disallowed_methods, reason = "how far it has come when it is cut short is what is tried")]
fn run_for(time: Duration) {
    std::thread::sleep(time);
}

fn id(user: &TestUser) -> UserId {
    UserId::parse(user.id()).unwrap()
}

fn by(admin: &TestUser) -> Administrator {
    Administrator::User(id(admin))
}

fn purge() -> DeletionOrder {
    DeletionOrder { purge: true, ..DeletionOrder::default() }
}

fn rows(hs: &Homeserver) -> Vec<(String, i64)> {
    // The index of texts and what is owed come a moment later.
    hs.store.read(|db| Ok(db.rows_of_rooms())).unwrap()
}

fn upload(hs: &Homeserver, user: &TestUser, bytes: &[u8]) -> String {
    let length = u64::try_from(bytes.len()).ok();
    let head = UploadHead { uri: None, content_type: Some("image/png"), file_name: None, bytes: length };
    let mut upload = hs.media().begin_upload(&id(user), head).unwrap();
    upload.write(bytes).unwrap();
    hs.media().finish_upload(upload).unwrap().to_string()
}

fn path(room: &str, rest: &str) -> String {
    format!("{V3}/rooms/{}/{rest}", segment(room))
}

fn search(user: &TestUser, word: &str) -> u64 {
    let body = json!({ "search_categories": { "room_events": { "search_term": word } } });
    user.post(&format!("{V3}/search"), body)["search_categories"]["room_events"]["count"].as_u64().unwrap()
}

/// Something of everything that there can be in a room.
fn fill(here: &TestServer, room: &str, users: [&TestUser; 4]) -> String {
    let [alice, bob, carol, eve] = users;
    let hs = here.homeserver();
    let send = |user: &TestUser, content: Value| {
        let txn = crate::random::letters(8);
        let sent = user.put(&path(room, &format!("send/m.room.message/{txn}")), content);
        sent["event_id"].as_str().unwrap().to_owned()
    };
    let root = send(alice, json!({ "msgtype": "m.text", "body": "Zanzibar" }));
    let reply = json!({ "msgtype": "m.text", "body": "a reply", "m.mentions": { "user_ids": [carol.id()] },
        "m.relates_to": { "rel_type": "m.thread", "event_id": root } });
    let reply = send(bob, reply);
    carol.next_message(room);
    alice.put(
        &path(room, "send/m.reaction/r1"),
        json!({ "m.relates_to": { "rel_type": "m.annotation", "event_id": root, "key": "+" } }),
    );
    let uri = upload(hs, alice, b"a picture of the room");
    send(alice, json!({ "msgtype": "m.image", "body": "x.png", "url": uri }));
    let slip = send(alice, json!({ "msgtype": "m.text", "body": "slip" }));
    alice.put(&path(room, &format!("redact/{}/t", segment(&slip))), json!({}));
    wait_until("the reply is here", || {
        let (status, _) = carol.request("GET", &path(room, &format!("event/{}", segment(&reply))), None);
        status == 200
    });
    carol.post(&path(room, &format!("receipt/m.read/{}", segment(&reply))), json!({}));
    carol.put(&format!("{V3}/user/{}/rooms/{}/tags/u.x", segment(carol.id()), segment(room)), json!({}));
    let thread = format!("{}/thread/{}", segment(room), segment(&root));
    carol.put(&format!("/_matrix/client/unstable/io.element.msc4306/rooms/{thread}/subscription"), json!({}));
    carol.put(
        &path(room, &format!("typing/{}", segment(carol.id()))),
        json!({ "typing": true, "timeout": 9000 }),
    );
    alice.put(
        &path(room, "send/m.room.message/late?org.matrix.msc4140.delay=900000"),
        json!({ "body": "late" }),
    );
    alice.invite(room, eve.id());
    // Somebody of whom the resolution of its state left no word.
    let (id, lost) = (room.to_owned(), id(carol).server());
    let noted = hs.store.write(move |tx| {
        let note = "INSERT INTO lost_memberships (room_key, user_id, stream)
             SELECT room_key, ?2, 1 FROM rooms WHERE room_id = ?1";
        // A bridge that lists it.
        let list = "INSERT INTO network_rooms (appservice, network, room_id) VALUES ('irc', 'net', ?1)";
        tx.conn().execute(list, [&id])?;
        // And bans that would follow it from the room that it replaced, some day.
        let owe = "INSERT INTO owed_bans (room_id, old_room_id, sender, stream, user_id, attempts, due_ms)
             VALUES (?1, ?1, ?2, 1, ?2, 0, 4102444800000)";
        tx.conn().execute(owe, [&id, &format!("@lost:{lost}")])?;
        let owe = "INSERT INTO owed_upgrades (room_key, upto, due_ms)
             SELECT room_key, '', 4102444800000 FROM rooms WHERE room_id = ?1";
        tx.conn().execute(owe, [&id])?;
        // And somebody elsewhere who may be shown an invite to it.
        let offer = "INSERT INTO offered_invites (room_key, invitee, inviter, made_ms)
             SELECT room_key, ?2, ?2, 1 FROM rooms WHERE room_id = ?1";
        tx.conn().execute(offer, [&id, &format!("@lost:{lost}")])?;
        // As of a room that somebody else showed us.
        let vouch = "INSERT INTO vouched_events (room_key, event_key)
             SELECT room_key, max(event_key) FROM events JOIN rooms USING (room_key) WHERE room_id = ?1";
        tx.conn().execute(vouch, [&id])?;
        tx.is_due(4_102_444_800_000);
        Ok(tx.conn().execute(note, [&id, &format!("@lost:{lost}")])?)
    });
    assert_eq!(noted.unwrap(), 1);
    uri
}

#[test]
fn of_a_room_that_is_deleted_nothing_is_left_and_other_rooms_are_as_they_were() {
    let (here, there) = TestServer::pair();
    let (alice, carol, eve) = (here.user("alice"), here.user("carol"), here.user("eve"));
    let bob = there.user("bob");
    let hs = here.homeserver();
    let kept = alice.create_room();
    carol.join(&kept);
    alice.send(&kept, "Zanzibar stays");
    wait_until("the message can be found", || search(&alice, "Zanzibar") == 1);
    carol.sync(Duration::ZERO);
    let before = rows(hs);

    let room = alice.create_room_with(
        json!({ "preset": "public_chat", "name": "Gone", "room_alias_name": "gone", "visibility": "public" }),
    );
    carol.join(&room);
    bob.join_via(&room, &[here.name()]);
    bob.wait_for_room("join", &room);
    let uri = fill(&here, &room, [&alice, &bob, &carol, &eve]);
    wait_until("the message can be found", || search(&alice, "Zanzibar") == 2);
    carol.sync(Duration::ZERO);
    let full = rows(hs);
    for (name, count) in &full {
        let few = before.iter().any(|(other, fewer)| other == name && fewer == count);
        let empty = ["pending_events", "late_extremities", "gaps", "bells", "owed_joins", "owed_invites"];
        let not_here = [
            "guest_removals",
            "search_again",
            "reports",
            "snapshot_entries",
            "owed_events",
            "rooms_behind_backup",
            "spare_snapshots",
            "key_backup_sessions",
        ];
        assert!(
            !few || empty.contains(&name.as_str()) || not_here.contains(&name.as_str()),
            "nothing in {name}"
        );
    }

    let room_id = RoomId::parse(&room).unwrap();
    let done = hs.admin().delete_room(&room_id, purge(), &Administrator::Operator).unwrap();
    assert_eq!(done.kicked_users.len(), 3, "{done:?}");
    assert_eq!((done.failed_to_kick_users.len(), done.new_room_id), (0, None));
    let after = rows(hs);
    let differ: Vec<_> = before.iter().zip(&after).filter(|(before, after)| before != after).collect();
    assert!(differ.is_empty(), "{differ:?}");

    // Who was there is told that they are not any more, once, and finds nothing of it.
    let told = carol.sync(Duration::ZERO);
    assert!(told["rooms"]["leave"][&room].is_object(), "{told}");
    assert!(carol.sync(Duration::ZERO)["rooms"]["leave"][&room].is_null());
    assert!(!carol.initial_sync().to_string().contains(&room));
    assert_eq!(search(&alice, "Zanzibar"), 1);
    assert_eq!(alice.request("GET", &path(&room, "messages?dir=b"), None).0, 403);
    // Files are their users': nobody knows where else they are shown.
    assert!(hs.media().open(&MxcUri::parse(&uri).unwrap()).is_ok());
    let alias = format!("{V3}/directory/room/{}", segment(&format!("#gone:{}", here.name())));
    assert_eq!(alice.request("GET", &alias, None).0, 404);
    // The room's other server has heard of it, and those who come back find the room there.
    wait_until("the room knows", || bob.membership_of(&room, carol.id()).as_deref() == Some("leave"));
    bob.send(&room, "Is anybody here?");
    carol.join_via(&room, &[there.name()]);
    carol.wait_for_room("join", &room);
    alice.send(&kept, "and more");
}

#[test]
fn a_deletion_that_is_cut_short_goes_on_until_nothing_is_left() {
    let mut here = TestServer::start();
    let (alice, carol) = (here.user("alice"), here.user("carol"));
    let kept = alice.create_room();
    alice.send(&kept, "stays");
    wait_until("the message can be found", || search(&alice, "stays") == 1);
    let before = rows(here.homeserver());
    let room = alice.create_room();
    carol.join(&room);
    for number in 0..400 {
        carol.send(&room, &format!("message {number}"));
    }
    let room_id = RoomId::parse(&room).unwrap();
    let delete_id = here.homeserver().admin().begin_room_deletion(&room_id, purge(), &by(&alice)).unwrap();
    let again = here
        .homeserver()
        .admin()
        .begin_room_deletion(&room_id, purge(), &Administrator::Operator)
        .unwrap_err();
    assert_eq!((again.status(), again.message().contains("already in progress")), (400, true));
    let status = |here: &TestServer| here.homeserver().admin().room_deletion_status(&delete_id).unwrap();
    // Cut short again and again, each time a little later.
    for cut in 1..8 {
        if status(&here)["status"] != "active" {
            break;
        }
        // Nobody comes back in while it is under way.
        let (code, refused) =
            carol.request("POST", &format!("{V3}/join/{}", segment(&room)), Some(json!({})));
        assert!(code == 403 || status(&here)["status"] != "active", "{code} {refused}");
        run_for(Duration::from_millis(cut * 10));
        here.restart();
    }
    wait_until("it is complete", || status(&here)["status"] != "active");
    let told = status(&here);
    assert_eq!((&told["status"], &told["room_id"]), (&json!("complete"), &json!(room)));
    assert_eq!(told["shutdown_room"]["kicked_users"].as_array().map(Vec::len), Some(2), "{told}");
    assert_eq!(here.homeserver().admin().room_deletion_statuses(&room_id).unwrap(), [told]);
    assert_eq!(rows(here.homeserver()), before);
}

#[test]
fn users_are_brought_to_a_new_room_with_the_aliases_and_the_old_one_can_be_blocked() {
    let here = TestServer::start();
    let (admin, alice, carol) = (here.user("admin"), here.user("alice"), here.user("carol"));
    let room = alice.create_room_with(json!({ "preset": "public_chat", "room_alias_name": "pub" }));
    alice.invite(&room, carol.id());
    let room_id = RoomId::parse(&room).unwrap();
    let order = DeletionOrder {
        new_room_user_id: Some(id(&admin)),
        room_name: Some("Elsewhere".to_owned()),
        message: Some("We have moved".to_owned()),
        block: true,
        ..purge()
    };
    let elsewhere = UserId::parse("@x:example.org").unwrap();
    let wrong = DeletionOrder { new_room_user_id: Some(elsewhere), ..order.clone() };
    assert_eq!(
        here.homeserver()
            .admin()
            .delete_room(&room_id, wrong, &Administrator::Operator)
            .unwrap_err()
            .status(),
        400
    );
    // What cannot be said in the new room is refused before anything is done.
    let long = || Some("\"".repeat(35_000));
    for wrong in [
        DeletionOrder { message: long(), ..order.clone() },
        DeletionOrder { room_name: long(), ..order.clone() },
    ] {
        let admin = here.homeserver().admin();
        assert_eq!(admin.delete_room(&room_id, wrong.clone(), &by(&alice)).unwrap_err().status(), 400);
        assert_eq!(admin.begin_room_deletion(&room_id, wrong, &by(&alice)).unwrap_err().status(), 400);
    }
    assert_eq!(alice.membership_of(&room, alice.id()).as_deref(), Some("join"));
    assert!(here.homeserver().admin().room_deletion_statuses(&room_id).is_err(), "none was begun");
    assert_eq!(here.homeserver().admin().room_block(&room_id).unwrap()["block"], false);
    let done = here.homeserver().admin().delete_room(&room_id, order, &by(&admin)).unwrap();
    let new_room = done.new_room_id.unwrap();
    assert_eq!(done.local_aliases, [format!("#pub:{}", here.name())]);
    assert_eq!(done.kicked_users.len(), 2);
    assert_eq!(alice.membership_of(new_room.as_str(), alice.id()).as_deref(), Some("join"));
    // Who was only invited is not brought anywhere.
    assert_eq!(admin.membership_of(new_room.as_str(), carol.id()), None);
    assert_eq!(alice.next_message(new_room.as_str()), "We have moved");
    let (status, _) =
        alice.request("PUT", &path(new_room.as_str(), "send/m.room.message/1"), Some(json!({})));
    assert_eq!(status, 403, "they may only read there");
    assert_eq!(alice.request("POST", &format!("{V3}/join/{}", segment(&room)), Some(json!({}))).0, 403);
}
