//! Events of others that are odd.

use super::*;

#[test]
fn an_event_that_follows_nothing_is_refused_and_leaves_nothing() {
    for version in ["1", "10", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        let mut event = other
            .event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "from nowhere" }))
            .to_object();
        event.insert("prev_events".into(), json!([]));
        hash::add_content_hash(&mut event);
        let event = VerifiedPdu::unchecked(Pdu::from_object(event, other.version).unwrap());
        let before = hs.store.position();
        assert_eq!(receive(&hs, &event).unwrap_err().status(), 403);
        assert!(hs.store.read(|db| db.event(event.event_id())).unwrap().is_none());
        assert_eq!((only_extremity(&hs, &room), hs.store.position()), (join, before));
    }
}

#[test]
fn an_event_id_that_is_used_twice_is_the_first_events() {
    let hs = homeserver();
    let (kitchen, cellar) = (room(&hs, "1"), room(&hs, "1"));
    let mut other = Other::new(&kitchen, "1");
    let join = other.join(&hs, &bob());
    // Known from somebody's auth events, in one room; and now comes something else of the same id.
    let named = |other: &mut Other, body: &str, room: &RoomId| {
        let event = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": body }));
        let mut event = event.to_object();
        event.insert("event_id".into(), "$chosen:there.example".into());
        event.insert("room_id".into(), room.as_str().into());
        hash::add_content_hash(&mut event);
        VerifiedPdu::unchecked(Pdu::from_object(event, other.version).unwrap())
    };
    let first = named(&mut other, "first", &kitchen);
    let outlier = first.clone();
    hs.store
        .write(move |tx| {
            let room = tx.known_room(outlier.room_id())?.key;
            tx.insert_outlier(room, &outlier, Status::Accepted)
        })
        .unwrap();
    for second in [named(&mut other, "second", &kitchen), named(&mut other, "second", &cellar)] {
        assert_eq!(receive(&hs, &second).unwrap_err().status(), 403);
        assert!(stored(&hs, first.event_id()).is_outlier());
    }
    receive(&hs, &first).unwrap();
    assert_eq!(only_extremity(&hs, &kitchen), *first.event_id());
    assert_consistent(&hs, &kitchen);
}

#[test]
fn an_outlier_that_gets_its_place_has_the_signatures_of_the_copy_that_was_judged() {
    let hs = homeserver();
    let room = room(&hs, "11");
    let mut other = Other::new(&room, "11");
    let join = other.join(&hs, &bob());
    let content = json!({ "msgtype": "m.text", "body": "known from auth events first" });
    let first = other.event(&hs, &[&join], &bob(), ("m.room.message", None), content);
    // The room's policy server signs what comes in, and not what is only referred to.
    let judged = first.with_signature("policy.example", "ed25519:policy_server", "c2lnbmF0dXJl").unwrap();
    let outlier = first.clone();
    hs.store
        .write(move |tx| {
            let room = tx.known_room(outlier.room_id())?.key;
            tx.insert_outlier(room, &outlier, Status::Accepted)
        })
        .unwrap();
    assert_eq!(stored(&hs, first.event_id()).pdu.json(), first.json());
    receive(&hs, &judged).unwrap();
    assert!(!stored(&hs, first.event_id()).is_outlier());
    // Whoever gets it from us finds what they look for.
    let given =
        hs.events().backfill_for_peer(&there(), &room, std::slice::from_ref(first.event_id()), 1).unwrap();
    assert_eq!(given[0].to_object()["signatures"], judged.to_object()["signatures"]);
    assert!(given[0].to_object()["signatures"]["policy.example"].is_object());
    assert_consistent(&hs, &room);
}

#[test]
fn a_removal_that_comes_at_the_moment_in_which_we_come_in_is_nothing_if_the_room_keeps_its_server_out() {
    for kept_out in [false, true] {
        let hs = homeserver();
        let room = room(&hs, "11");
        let mut other = Other::new(&room, "11");
        other.join(&hs, &bob());
        let carol = user("@carol:here.example");
        let send = |sender: &UserId, kind: &str, key: &str, content: Value| {
            hs.events().send(draft(&room, sender, kind, Some(key), content)).expect("allowed");
        };
        send(&carol, "m.room.member", carol.as_str(), json!({ "membership": "join" }));
        let levels = json!({ "users": { alice().as_str(): 100, bob().as_str(): 50 } });
        send(&alice(), "m.room.power_levels", "", levels);
        let denied = if kept_out { json!(["there.example"]) } else { json!([]) };
        send(&alice(), "m.room.server_acl", "", json!({ "allow": ["*"], "deny": denied }));
        let end = only_extremity(&hs, &room);
        let kick = ("m.room.member", Some(carol.as_str()));
        let kick = other.event(&hs, &[&end], &bob(), kick, json!({ "membership": "leave" }));
        // When it was looked at, nobody of this server was in the room.
        let heard = hs.incoming().remove_by_transaction(kick, carol.clone(), room.clone(), &there());
        assert_eq!(heard.err().map(|e| e.status()), kept_out.then_some(403));
        let is_in = membership(&hs, &room, &carol) == Some(Membership::Join);
        assert_eq!(is_in, kept_out);
    }
}
