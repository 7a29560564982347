//! Who comes and goes, and what their servers are owed and shown.

use super::*;
use crate::service::accounts::moderation::Administrator;

#[test]
fn another_servers_user_joins_once_however_often_the_join_is_handed_in() {
    for version in ["1", "3", "10", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        let pdu = VerifiedPdu::unchecked(stored(&hs, &join).pdu);
        assert!(hs.events().accept_signed(pdu.clone(), &there(), Membership::Join).unwrap().already);
        assert_eq!(hs.events().accept_signed(pdu, &there(), Membership::Leave).unwrap_err().status(), 403);
        assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
        assert_consistent(&hs, &room);
    }
}

#[test]
fn a_refused_knock_is_owed_to_the_server_of_the_knocker_and_a_leave_of_our_own_is_not() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let rules = draft(&room, &alice(), "m.room.join_rules", Some(""), json!({ "join_rule": "knock" }));
    let rules = hs.events().send(rules).unwrap();
    let knock = other.event(
        &hs,
        &[&rules],
        &bob(),
        ("m.room.member", Some(bob().as_str())),
        json!({ "membership": "knock" }),
    );
    hs.events().accept_signed(knock, &there(), Membership::Knock).unwrap();
    assert!(hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap().is_empty());
    let kick =
        draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "leave" }));
    let kick = hs.events().send(kick).unwrap();
    let owed = hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap();
    assert_eq!(owed.iter().map(|event| event.event_id.clone()).collect::<Vec<_>>(), [kick]);
    assert_consistent(&hs, &room);
}

#[test]
fn a_server_in_the_room_is_owed_what_happens_while_it_is_there() {
    let hs = homeserver();
    let room = room(&hs, "12");
    hs.events().send(message(&room, &alice(), "before")).unwrap();
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let during = hs.events().send(message(&room, &alice(), "during")).unwrap();
    let leave = other.event(
        &hs,
        &[&during],
        &bob(),
        ("m.room.member", Some(bob().as_str())),
        json!({ "membership": "leave" }),
    );
    receive(&hs, &leave).unwrap();
    hs.events().send(message(&room, &alice(), "after")).unwrap();
    let owed = hs.store.read(|db| db.owed_events(&there(), 0, i64::MAX, 100)).unwrap();
    assert_eq!(owed.iter().map(|event| event.event_id.clone()).collect::<Vec<_>>(), [during]);
    let _ = join;
    assert_consistent(&hs, &room);
}

#[test]
fn who_is_shut_out_while_a_handshake_is_under_way_is_not_let_in_by_its_end() {
    let hs = homeserver();
    let room = room(&hs, "11");
    let mut other = Other::new(&room, "11");
    other.join(&hs, &bob());
    let carol = user("@carol:there.example");
    let last = only_extremity(&hs, &room);
    let mut said = |user: &UserId, membership: &str| {
        let content = json!({ "membership": membership });
        other.event(&hs, &[&last], user, ("m.room.member", Some(user.as_str())), content)
    };
    // Both have passed the guard.
    let (join, leave) = (said(&carol, "join"), said(&bob(), "leave"));
    let acl = |denied: Value| {
        let content = json!({ "allow": ["*"], "deny": denied });
        hs.events().send(draft(&room, &alice(), "m.room.server_acl", Some(""), content)).unwrap();
    };
    acl(json!(["there.example"]));
    let hand_in = |event: &VerifiedPdu, kind| hs.events().accept_signed(event.clone(), &there(), kind);
    for (event, kind) in [(&join, Membership::Join), (&leave, Membership::Leave)] {
        let refused = hand_in(event, kind).unwrap_err();
        assert_eq!((refused.status(), refused.errcode()), (403, ErrCode::Forbidden), "{refused}");
    }
    assert_eq!(membership(&hs, &room, &carol), None);
    assert_eq!(membership(&hs, &room, &bob()), Some(Membership::Join));
    acl(json!([]));
    assert!(!hand_in(&join, Membership::Join).unwrap().already);
    assert!(!hand_in(&leave, Membership::Leave).unwrap().already);
    assert_consistent(&hs, &room);
}

#[test]
fn an_invite_to_a_room_that_is_blocked_while_it_is_looked_at_is_not_taken_in() {
    let (hs, there_hs) = (homeserver(), homeserver_named("there.example"));
    hs.accounts().register_user("alice", None).unwrap();
    let rules = room_version::room_version("11").unwrap();
    let wishes: CreateRoom = serde_json::from_value(json!({ "preset": "private_chat" })).unwrap();
    let events = wishes.plan(&bob(), &Map::new(), rules, None).unwrap();
    let room = there_hs.rooms().create_room_with(rules, &bob(), &events, |_, _| Ok(())).unwrap();
    let content = json!({ "membership": "invite" });
    let sent = draft(&room, &bob(), "m.room.member", Some(alice().as_str()), content);
    let sent = there_hs.events().send(sent).unwrap();
    let invite = VerifiedPdu::unchecked(stored(&there_hs, &sent).pdu);
    let receive_invite = || hs.membership().note_invite(&invite, &alice(), &[], Some(&there()));
    hs.admin().set_room_block(&room, true, &Administrator::Operator).unwrap();
    assert_eq!(receive_invite().unwrap_err().status(), 403);
    let known = || hs.store.read(|db| db.remote_membership(&room, &alice())).unwrap();
    assert!(known().is_none());
    hs.admin().set_room_block(&room, false, &Administrator::Operator).unwrap();
    receive_invite().unwrap();
    assert!(known().is_some());
}

#[test]
fn the_last_of_us_leaves_and_may_come_back_if_nobody_else_is_there() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let leave =
        draft(&room, &alice(), "m.room.member", Some(alice().as_str()), json!({ "membership": "leave" }));
    hs.events().send(leave).unwrap();
    assert!(!hs.store.read(|db| db.known_room(&room)).unwrap().resident);
    assert_consistent(&hs, &room);
    let join =
        draft(&room, &alice(), "m.room.member", Some(alice().as_str()), json!({ "membership": "join" }));
    hs.events().send(join).unwrap();
    assert!(hs.store.read(|db| db.known_room(&room)).unwrap().resident);
    assert_consistent(&hs, &room);
}

/// Alice of `here` joins a room of `there` as if over the network. Returns the stream position before.
fn join_over(here: &Homeserver, there: &Homeserver, room: &RoomId, user: &UserId) -> i64 {
    let wish = draft(room, user, "m.room.member", Some(user.as_str()), json!({ "membership": "join" }));
    let (mut event, version) = there.events().template(&wish).unwrap();
    event.insert("signatures".into(), json!({}));
    hash::add_content_hash(&mut event);
    let signer = here.events().signer();
    let join = verified(Pdu::from_object(event, version).unwrap(), &signer.server, &signer.key);
    there.events().accept_signed(join.clone(), here.server_name(), Membership::Join).unwrap();
    let known = there.store.read(|db| db.known_room(room)).unwrap();
    let answer = there.events().state_for_join(&known, &join, false).unwrap();
    assert!(answer.servers.contains(here.server_name()) && answer.servers.contains(there.server_name()));
    let before = here.store.position();
    let events = |keys: &[EventKey], of_state: bool| {
        let read = |key: &EventKey| {
            let pdu = there.store.read(|db| db.pdu_by_key(*key))?;
            Ok((VerifiedPdu::unchecked(pdu), of_state))
        };
        keys.iter().map(read).collect::<Result<Vec<_>>>().unwrap()
    };
    let memberships = here.membership();
    let mut adoption = memberships.begin_import(room, version);
    adoption.add(events(&answer.state, true)).unwrap();
    adoption.add(events(&answer.auth_chain, false)).unwrap();
    // More than is kept in memory: that some are shown twice changes nothing.
    let one = events(&answer.state[..1], true);
    adoption.add(std::iter::repeat_n(one, 1000).flatten().collect()).unwrap();
    assert!(!here.store.read(|db| db.all_staged_events()).unwrap().is_empty());
    assert_eq!(
        adoption.finish(join, |_| Ok(())).unwrap(),
        crate::service::membership::join::import::ImportOutcome::BecameResident
    );
    here.import_leftovers.delete(&here.store, || true).unwrap();
    assert!(here.store.read(|db| db.all_staged_events()).unwrap().is_empty());
    before
}

#[test]
fn what_is_stored_of_a_room_that_is_not_entered_is_nobodys_and_goes() {
    let (here, there) = (homeserver(), homeserver_named("there.example"));
    let rules = room_version::room_version("11").unwrap();
    let wishes: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).unwrap();
    let events = wishes.plan(&bob(), &Map::new(), rules, None).unwrap();
    let room = there.rooms().create_room_with(rules, &bob(), &events, |_, _| Ok(())).unwrap();
    let state = there.store.read(|db| db.current_state(db.known_room(&room)?.key)).unwrap();
    let many =
        || state.iter().cycle().take(2500).map(|pdu| (VerifiedPdu::unchecked(pdu.clone()), true)).collect();
    let staged = || here.store.read(|db| db.all_staged_events()).unwrap();
    let mut one = here.membership().begin_import(&room, rules);
    one.add(many()).unwrap();
    let of_one = staged();
    let mut other = here.membership().begin_import(&room, rules);
    other.add(many()).unwrap();
    assert!(!of_one.is_empty() && staged() != of_one);
    for pdu in &state {
        assert!(here.store.read(|db| db.event_key(pdu.event_id())).unwrap().is_none());
    }
    assert!(here.store.read(|db| db.room(&room)).unwrap().is_none());
    drop(one);
    here.import_leftovers.delete(&here.store, || true).unwrap();
    let of_other = staged();
    assert!(!of_other.is_empty() && of_other != of_one, "each deletes its own");
    // As after a kill: who finds it has no import of their own.
    std::mem::forget(other);
    here.import_leftovers.find(&here.store).unwrap();
    here.import_leftovers.delete(&here.store, || true).unwrap();
    assert_eq!(staged(), of_other, "what is under way is nobody's to delete");
    let there = here.store.write(move |tx| tx.delete_staged_events(of_other, 1)).unwrap();
    assert!(!there && !staged().is_empty());
    let fresh = crate::service::membership::join::import::ImportLeftovers::default();
    fresh.find(&here.store).unwrap();
    fresh.delete(&here.store, || true).unwrap();
    assert!(staged().is_empty());
}

#[test]
fn a_room_is_adopted_left_and_adopted_again_with_what_changed_meanwhile() {
    for version in ["5", "12"] {
        let (here, there) = (homeserver(), homeserver_named("there.example"));
        let rules = room_version::room_version(version).unwrap();
        let wishes: CreateRoom = serde_json::from_value(json!({ "preset": "public_chat" })).unwrap();
        let events = wishes.plan(&bob(), &Map::new(), rules, None).unwrap();
        let room = there.rooms().create_room_with(rules, &bob(), &events, |_, _| Ok(())).unwrap();
        let topic = |text: &str| draft(&room, &bob(), "m.room.topic", Some(""), json!({ "topic": text }));
        let old_topic = there.events().send(topic("old")).unwrap();
        join_over(&here, &there, &room, &alice());
        assert_consistent(&here, &room);
        assert_eq!(state(&here, &room, "m.room.topic", "").unwrap().event_id(), &old_topic);
        let leave =
            draft(&room, &alice(), "m.room.member", Some(alice().as_str()), json!({ "membership": "leave" }));
        let leave = here.events().send(leave).unwrap();
        assert_consistent(&here, &room);
        there
            .events()
            .receive_pdu(here.server_name(), VerifiedPdu::unchecked(stored(&here, &leave).pdu))
            .unwrap();
        assert_consistent(&there, &room);
        let new_topic = there.events().send(topic("new")).unwrap();
        let carol = user("@carol:there.example");
        there
            .events()
            .send(draft(
                &room,
                &carol,
                "m.room.member",
                Some(carol.as_str()),
                json!({ "membership": "join" }),
            ))
            .unwrap();

        let before = join_over(&here, &there, &room, &alice());
        assert_consistent(&here, &room);
        assert_eq!(state(&here, &room, "m.room.topic", "").unwrap().event_id(), &new_topic);
        assert_eq!(membership(&here, &room, &carol), Some(Membership::Join));
        here.store
            .read(|db| {
                let room = db.known_room(&room)?;
                // What was when we were away is known to have been so then.
                let as_of =
                    |event_type: &str, key: &str, at| db.state_event_as_of(room.key, event_type, key, at);
                assert_eq!(db.event_id(as_of("m.room.topic", "", before)?.unwrap())?, old_topic);
                assert_eq!(as_of("m.room.member", carol.as_str(), before)?, None);
                let alices = as_of("m.room.member", alice().as_str(), before)?.unwrap();
                assert_eq!(db.pdu_by_key(alices)?.membership(), Some(Membership::Leave));
                // The events between are a hole before the join.
                let gaps =
                    db.gaps_between(room.key, crate::store::Place::START, crate::store::Place::END, 10)?;
                assert!(gaps.iter().any(|gap| gap.before.stream > before), "{gaps:?}");
                Ok(())
            })
            .unwrap();
        // And it is spoken in again, by both.
        let hello = here.events().send(message(&room, &alice(), "back")).unwrap();
        there
            .events()
            .receive_pdu(here.server_name(), VerifiedPdu::unchecked(stored(&here, &hello).pdu))
            .unwrap();
        assert_eq!(only_extremity(&there, &room), hello);
    }
}

#[test]
fn a_server_reads_what_was_said_while_one_of_its_users_was_in_the_room_and_nothing_else() {
    let hs = homeserver();
    let room = room(&hs, "10");
    let visibility = json!({ "history_visibility": "joined" });
    hs.events().send(draft(&room, &alice(), "m.room.history_visibility", Some(""), visibility)).unwrap();
    let mut other = Other::new(&room, "10");
    let carol = user("@carol:there.example");
    let say = |what: &str| hs.events().send(message(&room, &alice(), what)).unwrap();
    say("before");
    other.join(&hs, &bob());
    say("while bob is here");
    hs.events()
        .send(draft(&room, &alice(), "m.room.member", Some(bob().as_str()), json!({ "membership": "leave" })))
        .unwrap();
    say("between");
    other.join(&hs, &carol);
    say("while carol is here");
    let bodies = |from: &EventId| -> Vec<Option<String>> {
        let found = hs.events().backfill_for_peer(&there(), &room, std::slice::from_ref(from), 100).unwrap();
        let messages = found.iter().filter(|e| e.event_type() == "m.room.message");
        messages.map(|e| e.content_str("body")).collect()
    };
    let (carol_here, bob_here) = (Some("while carol is here".into()), Some("while bob is here".into()));
    assert_eq!(bodies(&only_extremity(&hs, &room)), [carol_here.clone(), None, bob_here.clone(), None]);
    // And so when many others of its users come.
    for n in 0..210 {
        other.join(&hs, &user(&format!("@user{n}:there.example")));
    }
    // The page ends before these: it starts from an event that is not behind them.
    let (from, to) = (crate::store::Place::START, crate::store::Place::END);
    let all = crate::store::rooms::events::TimelineRange { from, to, backwards: false, limit: 1000 };
    let said = hs.store.read(|db| db.timeline(db.known_room(&room)?.key, all)).unwrap();
    let last = said.iter().rfind(|e| e.pdu.event_type() == "m.room.message").unwrap();
    assert_eq!(bodies(last.pdu.event_id()), [carol_here, None, bob_here, None]);
}
