//! Events that are made here: sent, refused, drafted for others.

use super::*;
use crate::service::accounts::moderation::Administrator;

#[test]
fn a_room_of_every_version_is_made_and_spoken_in() {
    let hs = homeserver();
    for version in room_version::all() {
        let room = room(&hs, version.id);
        let id = hs.events().send(message(&room, &alice(), "hello")).unwrap();
        let event = stored(&hs, &id);
        assert_eq!((event.status, event.pdu.content_str("body")), (Status::Accepted, Some("hello".into())));
        assert_eq!(only_extremity(&hs, &room), id);
        assert_eq!(membership(&hs, &room, &alice()), Some(Membership::Join));
        assert_consistent(&hs, &room);
        // Everything that was stored reads back as what the format asks for.
        Pdu::parse(event.pdu.json(), version).unwrap();
    }
}

#[test]
fn rooms_that_are_made_alike_at_the_same_time_are_several() {
    let hs = homeserver();
    let rooms: std::collections::HashSet<RoomId> = std::thread::scope(|scope| {
        let made: Vec<_> = (0..20).map(|_| scope.spawn(|| room(&hs, "12"))).collect();
        made.into_iter().map(|room| room.join().unwrap()).collect()
    });
    assert_eq!(rooms.len(), 20);
    rooms.iter().for_each(|room| assert_consistent(&hs, room));
}

#[test]
fn a_thousand_messages_of_several_callers_make_one_line_without_forks() {
    let hs = homeserver();
    let room = room(&hs, "12");
    std::thread::scope(|scope| {
        for caller in 0..8 {
            let (hs, room) = (&hs, &room);
            scope.spawn(move || {
                for number in 0..125 {
                    hs.events().send(message(room, &alice(), &format!("{caller}/{number}"))).unwrap();
                }
            });
        }
    });
    let mut id = only_extremity(&hs, &room);
    let mut messages = 0;
    loop {
        let event = stored(&hs, &id);
        messages += usize::from(event.pdu.event_type() == "m.room.message");
        match event.pdu.prev_events() {
            [] => break,
            [prev] => id = prev.clone(),
            _ => panic!("a fork"),
        }
    }
    assert_eq!(messages, 1000);
    assert_consistent(&hs, &room);
}

#[test]
fn what_the_rules_forbid_is_refused_and_changes_nothing() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let before = (only_extremity(&hs, &room), hs.store.position());
    let stranger = user("@stranger:here.example");
    let error = hs.events().send(message(&room, &stranger, "hello")).unwrap_err();
    assert_eq!((error.status(), error.errcode()), (403, ErrCode::Forbidden));
    let unknown = RoomId::parse("!unknown:here.example").unwrap();
    assert_eq!(hs.events().send(message(&unknown, &alice(), "hello")).unwrap_err().status(), 404);
    assert_eq!(
        hs.events().send(message(&room, &alice(), &"x".repeat(70_000))).unwrap_err().errcode(),
        ErrCode::TooLarge
    );
    assert_eq!(before, (only_extremity(&hs, &room), hs.store.position()));
}

#[test]
fn what_else_belongs_to_an_event_is_in_the_same_transaction() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let before = only_extremity(&hs, &room);
    let failed =
        hs.events().send_with(message(&room, &alice(), "hello"), |_, _| Err(crate::Error::not_found("no")));
    assert_eq!(failed.unwrap_err().status(), 404);
    assert_eq!(only_extremity(&hs, &room), before);
    let id = hs.events().send_with(message(&room, &alice(), "hello"), |tx, sent| {
        assert_eq!(tx.event_key(&sent.event_id)?, Some(sent.key));
        Ok(())
    });
    assert_eq!(only_extremity(&hs, &room), id.unwrap());
}

#[test]
fn a_template_is_judged_and_becomes_an_event_that_is_accepted() {
    let hs = homeserver();
    let room = room(&hs, "11");
    let wish = draft(&room, &bob(), "m.room.member", Some(bob().as_str()), json!({ "membership": "join" }));
    let (template, version) = hs.events().template(&wish).unwrap();
    assert!(!template.contains_key("hashes") && !template.contains_key("signatures"));
    let mut event = template;
    event.insert("signatures".into(), json!({}));
    hash::add_content_hash(&mut event);
    let join = verified(
        Pdu::from_object(event, version).unwrap(),
        &there(),
        &SigningKey::generate([7; 32], "other"),
    );
    hs.events().accept_signed(join, &there(), Membership::Join).unwrap();
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
    let banned = user("@banned:there.example");
    hs.events()
        .send(draft(&room, &alice(), "m.room.member", Some(banned.as_str()), json!({ "membership": "ban" })))
        .unwrap();
    let wish = draft(&room, &banned, "m.room.member", Some(banned.as_str()), json!({ "membership": "join" }));
    assert_eq!(hs.events().template(&wish).unwrap_err().status(), 403);
}

#[test]
fn an_event_drafted_for_another_server_is_committed_later_though_the_room_went_on() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let invite =
        draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "invite" }));
    let invite = hs.events().draft_event(invite).unwrap();
    assert_eq!(membership(&hs, &room, &bob()), None);
    hs.events().send(message(&room, &alice(), "meanwhile")).unwrap();
    assert!(!hs.events().commit_signed(invite.clone()).unwrap().already);
    assert!(hs.events().commit_signed(invite).unwrap().already);
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Invite));
    assert_eq!(extremities(&hs, &room).len(), 2);
    assert_consistent(&hs, &room);
}

#[test]
fn a_room_that_is_shut_after_a_request_was_let_in_is_come_into_by_nobody_and_stays_that_of_its_members() {
    let server = crate::TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = RoomId::parse(&alice.create_room_with(json!({ "preset": "public_chat" }))).unwrap();
    let hs = server.homeserver();
    let said = |user: &crate::testing::TestUser, membership: &str| {
        let user = UserId::parse(user.id()).unwrap();
        hs.events().send(Draft {
            room: room.clone(),
            sender: user.clone(),
            event_type: "m.room.member".to_owned(),
            state_key: Some(user.to_string()),
            content: json!({ "membership": membership, "displayname": "New" }).as_object().unwrap().clone(),
            redacts: None,
            origin_server_ts: None,
        })
    };
    // Whoever asked before has passed the door, and has the join yet to be made.
    hs.admin().set_room_block(&room, true, &Administrator::Operator).unwrap();
    let refused = said(&bob, "join").unwrap_err();
    assert_eq!((refused.status(), refused.errcode()), (403, ErrCode::Forbidden), "{refused}");
    said(&alice, "join").expect("a new name of who is in it");
    said(&alice, "leave").expect("the way out");
    assert!(said(&alice, "join").is_err());
    hs.admin().set_room_block(&room, false, &Administrator::Operator).unwrap();
    said(&bob, "join").expect("it is open");
}
