//! Redactions, and what they redact.

use super::*;

#[test]
fn a_redaction_acts_on_its_target_whichever_of_them_comes_first() {
    for version in ["1", "3", "10", "11", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        let join = other.join(&hs, &bob());
        let target =
            other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "secret" }));
        let rules = room_version::room_version(version).unwrap();
        let content =
            if rules.redacts_in_content { json!({ "redacts": target.event_id() }) } else { json!({}) };
        let redaction = other.event(&hs, &[&join], &bob(), ("m.room.redaction", None), content);
        let redaction = if rules.redacts_in_content {
            redaction
        } else {
            let mut object = redaction.to_object();
            object.insert("redacts".into(), target.event_id().as_str().into());
            hash::add_content_hash(&mut object);
            VerifiedPdu::unchecked(Pdu::from_object(object, rules).unwrap())
        };
        receive(&hs, &redaction).unwrap();
        let waits = stored(&hs, redaction.event_id());
        assert_eq!(waits.place.is_none(), !rules.redactions_authorised, "version {version}");
        receive(&hs, &target).unwrap();
        let redacted = stored(&hs, target.event_id());
        assert_eq!(redacted.redacted_by, Some(waits.key), "version {version}");
        assert!(redacted.pdu.content().is_empty() && redacted.pdu.event_id() == target.event_id());
        assert!(stored(&hs, redaction.event_id()).place.is_some());

        // And the usual way round, by a local moderator.
        let open = other.event(
            &hs,
            &[target.event_id()],
            &bob(),
            ("m.room.message", None),
            json!({ "body": "rude" }),
        );
        receive(&hs, &open).unwrap();
        let mut wish = draft(&room, &alice(), "m.room.redaction", None, json!({ "reason": "rude" }));
        wish.redacts = Some(open.event_id().clone());
        let id = hs.events().send(wish).unwrap();
        assert_eq!(stored(&hs, &id).pdu.redacts().as_ref(), Some(open.event_id()));
        assert!(stored(&hs, open.event_id()).pdu.content().is_empty());
    }
}

#[test]
fn nobody_redacts_others_without_the_power_to() {
    for version in ["1", "10", "12"] {
        let hs = homeserver();
        let room = room(&hs, version);
        let mut other = Other::new(&room, version);
        other.join(&hs, &bob());
        let carol = user("@carol:here.example");
        let join =
            draft(&room, &carol, "m.room.member", Some(carol.as_str()), json!({ "membership": "join" }));
        hs.events().send(join).unwrap();
        let last = hs.events().send(message(&room, &alice(), "mine")).unwrap();
        let theirs =
            other.event(&hs, &[&last], &bob(), ("m.room.message", None), json!({ "body": "theirs" }));
        receive(&hs, &theirs).unwrap();
        let mut wish = draft(&room, &carol, "m.room.redaction", None, json!({}));
        wish.redacts = Some(theirs.event_id().clone());
        assert_eq!(hs.events().send(wish).unwrap_err().status(), 403, "version {version}");
        assert!(!stored(&hs, theirs.event_id()).pdu.content().is_empty());
    }
}

#[test]
fn of_one_server_a_few_redactions_wait_for_an_event_and_act_when_it_comes() {
    let hs = homeserver();
    let room = room(&hs, "12");
    let mut other = Other::new(&room, "12");
    let join = other.join(&hs, &bob());
    let target = other.event(&hs, &[&join], &bob(), ("m.room.message", None), json!({ "body": "late" }));
    for n in 0..50 {
        let content = json!({ "redacts": target.event_id(), "reason": n.to_string() });
        let redaction = other.event(&hs, &[&join], &bob(), ("m.room.redaction", None), content);
        receive(&hs, &redaction).unwrap();
    }
    let of_ours = Draft {
        redacts: Some(target.event_id().clone()),
        origin_server_ts: None,
        ..draft(&room, &alice(), "m.room.redaction", None, json!({}))
    };
    hs.events().send(of_ours).unwrap();
    let waiting = hs.store.read(|db| db.redactions_of(target.event_id())).unwrap();
    assert_eq!(waiting.len(), 21, "each server has its share");
    receive(&hs, &target).unwrap();
    assert!(stored(&hs, target.event_id()).redacted_by.is_some());
    assert_consistent(&hs, &room);
}
