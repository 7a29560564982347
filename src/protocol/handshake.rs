//! The two halves of the make/send handshakes (join, knock, leave) and of invites, as pure checks: what we sign of a
//! template that a stranger sent, and what we accept of an event that a stranger signed.

use serde_json::{Map, Value};
use sha2::{Digest, Sha256};

use crate::error::{Error, Result};
use crate::protocol::ids::{EventId, RoomId, ServerName, UserId};
use crate::protocol::json;
use crate::protocol::pdu::{Membership, Pdu};
use crate::protocol::room_version::{EventIdFormat, RoomVersion};
use crate::protocol::signatures::sign::{SigningKey, seal, signatures_of};
use crate::protocol::signatures::verify::VerifiedPdu;

/// Checks what `make_join`, `make_knock` or `make_leave` answered, before anything of it is signed: it must be about
/// this room, this user, this membership. Errors: `M_INVALID_PARAM`, naming the field.
pub fn check_template(
    template: &Map<String, Value>,
    room: &RoomId,
    user: &UserId,
    membership: Membership,
    version: RoomVersion,
) -> Result<()> {
    let text = |key: &str| template.get(key).and_then(Value::as_str);
    let said = template.get("content").and_then(|content| content.get("membership")).and_then(Value::as_str);
    let fields = [
        ("type", text("type"), "m.room.member"),
        ("room_id", text("room_id"), room.as_str()),
        ("sender", text("sender"), user.as_str()),
        ("state_key", text("state_key"), user.as_str()),
        ("content.membership", said, membership.as_str()),
    ];
    for (field, found, expected) in fields {
        if found != Some(expected) {
            return Err(Error::invalid_param(format!("the template's {field} is not {expected}")));
        }
    }
    if membership == Membership::Knock && !version.knock {
        return Err(Error::invalid_param("the room's version knows no knocking"));
    }
    for list in ["auth_events", "prev_events"] {
        if !template.get(list).is_some_and(Value::is_array) {
            return Err(Error::invalid_param(format!("the template has no {list}")));
        }
    }
    Ok(())
}

/// Makes an event of a template that [`check_template`] accepted: only the room's position in the graph (`room_id`,
/// `prev_events`, `auth_events`, `depth`) and the member are taken from it, all else is ours. Hashed and signed.
///
/// `content` is the whole content; `now_ms` milliseconds since the epoch. Errors: `M_BAD_JSON`, `M_TOO_LARGE` if what
/// the template says makes no event.
pub fn finish(
    template: &Map<String, Value>,
    content: Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    now_ms: i64,
    version: RoomVersion,
) -> Result<Pdu> {
    let mut event = Map::new();
    for field in ["type", "room_id", "sender", "state_key", "prev_events", "auth_events"] {
        let value =
            template.get(field).ok_or_else(|| Error::bad_json(format!("the template has no {field}")))?;
        event.insert(field.to_owned(), value.clone());
    }
    event.insert("content".to_owned(), Value::Object(content));
    event.insert("origin_server_ts".to_owned(), now_ms.into());
    // No rule needs `origin`, but "add or replace" it is what the specification says, and some servers insist.
    event.insert("origin".to_owned(), server.as_str().into());
    let depth = template.get("depth").and_then(Value::as_i64).unwrap_or(1);
    event.insert("depth".to_owned(), depth.clamp(1, version.max_depth()).into());
    sign_new_event(event, server, key, version)
}

/// Gives a new event of this server its id (room versions 1 and 2), its content hash and our signature.
///
/// The id of versions 1 and 2 is made of the event's own hash: as unique as the event, and nothing random is needed.
pub fn sign_new_event(
    mut event: Map<String, Value>,
    server: &ServerName,
    key: &SigningKey,
    version: RoomVersion,
) -> Result<Pdu> {
    event.remove("unsigned");
    event.remove("signatures");
    event.remove("event_id");
    if version.event_id_format == EventIdFormat::InEvent {
        let digest = Sha256::digest(json::canonical_event(&event, &["hashes"]));
        let id = format!("${}:{server}", json::base64_url(&digest[..18]));
        event.insert("event_id".to_owned(), id.into());
    }
    seal(&event, server, key, version)
}

/// Checks an event that came in by `send_join`, `send_knock`, `send_leave` or `invite`: it is what the endpoint is for,
/// and about the room and event of the path. Signatures and hash are checked elsewhere. For an invite the caller also
/// sees to it that the invited user is ours.
///
/// Errors: 400 `M_INVALID_PARAM`; 403 `M_FORBIDDEN` for one of another server's user.
pub fn check_signed_event(
    pdu: &Pdu,
    membership: Membership,
    room: &RoomId,
    event_id: &EventId,
    origin: &ServerName,
) -> Result<()> {
    let require =
        |holds: bool, what: &'static str| if holds { Ok(()) } else { Err(Error::invalid_param(what)) };
    require(pdu.event_type() == "m.room.member", "the event is not an m.room.member event")?;
    require(
        pdu.membership() == Some(membership),
        "the event has not the membership that the endpoint is for",
    )?;
    require(pdu.room_id() == room, "the event is of another room than the path")?;
    require(pdu.event_id() == event_id, "the event has another event id than the path")?;
    if pdu.sender().server_name() != origin.as_str() {
        return Err(Error::forbidden("the event's sender is not of the requesting server"));
    }
    if membership == Membership::Invite {
        let target = pdu.state_key().and_then(|key| UserId::parse(key).ok());
        return require(target.is_some(), "the event's state_key is not a user id");
    }
    require(pdu.state_key() == Some(pdu.sender().as_str()), "the event's state_key is not its sender")
}

/// Checks that an event that came back to us is the one that we sent, signatures (and `unsigned`) aside: the answer to
/// an invite, or the `event` in the answer to a join. Whether the new signatures are right is checked elsewhere.
///
/// Errors: `M_INVALID_PARAM`.
pub fn check_countersigned(ours: &Pdu, theirs: &Map<String, Value>) -> Result<()> {
    let signed_apart = ["signatures", "unsigned"];
    let same = ours.canonical().without(&signed_apart) == json::canonical_event(theirs, &signed_apart);
    if same {
        Ok(())
    } else {
        Err(Error::invalid_param("the event that came back is not the one that was sent"))
    }
}

/// So many signatures of one server are taken over: whoever has more keys than that has enough of them.
const SIGNATURES_TAKEN_MAX: usize = 8;

/// Our event with the signatures that one other server put on it; those of anybody else are not taken over.
/// Errors: 413 `M_TOO_LARGE` if it has no room for them.
pub fn with_signatures_of(
    ours: &VerifiedPdu,
    theirs: &Map<String, Value>,
    server: &ServerName,
) -> Result<VerifiedPdu> {
    let mut both = ours.clone();
    let may_be_one = |(key_id, signature): &(&str, &str)| key_id.len() <= 255 && signature.len() <= 100;
    let signatures = signatures_of(theirs, server.as_str()).into_iter().filter(may_be_one);
    for (key_id, signature) in signatures.take(SIGNATURES_TAKEN_MAX) {
        both = both.with_signature(server.as_str(), key_id, signature)?;
    }
    Ok(both)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::protocol::room_version::all;
    use crate::protocol::signatures::verify::{check_received, verify_event, verify_event_by};
    use crate::protocol::test_events::{key, known, member, object, pdu, room, server, version};

    const ALICE: &str = "@alice:a.example";

    fn ids(version: RoomVersion) -> (RoomId, UserId) {
        (RoomId::parse(room(version)).expect("id"), UserId::parse(ALICE).expect("id"))
    }

    /// What a resident server would answer, with `changes` laid over it.
    fn template(version: RoomVersion, changes: &Value) -> Map<String, Value> {
        let mut template = object(version, &member(ALICE, "knock"));
        template.retain(|key, _| !["hashes", "signatures", "event_id"].contains(&key.as_str()));
        template.insert("origin".to_owned(), json!("resident.example"));
        for (key, value) in changes.as_object().expect("object") {
            if value.is_null() {
                template.remove(key);
            } else {
                template.insert(key.clone(), value.clone());
            }
        }
        template
    }

    #[test]
    fn a_template_must_be_about_what_was_asked() {
        let version = version("10");
        let (room, user) = ids(version);
        let check = |changes: &Value| {
            check_template(&template(version, changes), &room, &user, Membership::Knock, version)
        };
        assert!(check(&json!({})).is_ok());
        for wrong in [
            json!({"type": "m.room.power_levels"}),
            json!({"type": null}),
            json!({"room_id": "!other:a.example"}),
            json!({"room_id": 7}),
            json!({"sender": "@admin:a.example"}),
            json!({"state_key": "@admin:a.example"}),
            json!({"state_key": null}),
            json!({"content": {"membership": "join"}}),
            json!({"content": {"membership": ["knock"]}}),
            json!({"content": "knock"}),
            json!({"content": null}),
            json!({"prev_events": null}),
            json!({"auth_events": {}}),
        ] {
            assert_eq!(check(&wrong).expect_err("refused").status(), 400, "{wrong}");
        }
        let template = template(version, &json!({}));
        assert!(check_template(&template, &room, &user, Membership::Join, version).is_err());
        let six = crate::protocol::test_events::version("6");
        assert!(
            check_template(&template, &room, &user, Membership::Knock, six).is_err(),
            "no knocking before 7"
        );
    }

    #[test]
    fn nothing_of_a_template_is_signed_but_the_events_place_in_the_room() {
        let ours = server("a.example");
        for version in all() {
            let hostile = json!({"origin": "evil.example", "origin_server_ts": 1, "redacts": "$x", "extra": {"y": 1},
                "unsigned": {"z": 1}, "event_id": "$chosen:evil.example", "hashes": {"sha256": "x"},
                "signatures": {"evil.example": {"ed25519:k": "x"}},
                "content": {"membership": "knock", "displayname": "not mine"}});
            let content =
                json!({"membership": "knock", "reason": "please"}).as_object().expect("object").clone();
            let template = template(version, &hostile);
            let event = finish(&template, content.clone(), &ours, &key("a.example"), 5_000, version)
                .expect("an event");
            let object = event.to_object();
            assert_eq!(event.content(), content);
            assert_eq!((event.origin_server_ts(), &object["origin"]), (5_000, &json!("a.example")));
            assert_eq!((event.prev_events().len(), event.auth_events().len(), event.depth()), (1, 1, 7));
            for key in ["redacts", "extra", "unsigned"] {
                assert!(!object.contains_key(key), "{key}");
            }
            assert_ne!(event.event_id(), &"$chosen:evil.example");
            assert_eq!(object["signatures"].as_object().expect("signed").len(), 1);
            assert_eq!(check_received(event.json(), version, &known).expect("valid").json(), event.json());
            assert!(
                check_signed_event(&event, Membership::Knock, event.room_id(), event.event_id(), &ours)
                    .is_ok()
            );
        }
    }

    #[test]
    fn an_odd_depth_is_made_a_possible_one_and_odd_references_make_no_event() {
        let ours = server("a.example");
        let version = version("10");
        let finish = |changes: &Value| {
            finish(&template(version, changes), Map::new(), &ours, &key("a.example"), 5_000, version)
        };
        for (depth, made) in
            [(json!(-5), 1), (json!(1.5), 1), (json!(null), 1), (json!(i64::MAX), json::INTEGER_MAX)]
        {
            assert_eq!(finish(&json!({ "depth": depth })).expect("an event").depth(), made);
        }
        let many: Vec<String> = (0..30).map(|n| format!("$e{n}")).collect();
        for odd in [json!([1]), json!([["$x", {}]]), json!(many), json!([""]), json!([{}])] {
            assert!(finish(&json!({ "prev_events": odd })).expect_err("no event").status() < 500, "{odd}");
        }
    }

    #[test]
    fn event_ids_that_we_make_in_versions_1_and_2_are_ours_and_differ() {
        let ours = server("a.example");
        let make = |ts: i64| {
            let mut event = object(version("1"), &json!({ "origin_server_ts": ts }));
            event.remove("event_id");
            sign_new_event(event, &ours, &key("a.example"), version("1")).expect("an event")
        };
        assert_eq!(make(1).event_id().server_name(), Some("a.example"));
        assert_ne!(make(1).event_id(), make(2).event_id());
        assert_eq!(make(1).event_id(), make(1).event_id());
    }

    #[test]
    fn a_signed_event_must_be_what_its_endpoint_and_path_say() {
        for version in all() {
            let (room, user) = ids(version);
            let origin = server("a.example");
            let good = pdu(version, &member(ALICE, "leave"), &["a.example"]);
            let check =
                |pdu: &Pdu| check_signed_event(pdu, Membership::Leave, &room, pdu.event_id(), &origin);
            assert!(check(&good).is_ok());
            let kick = json!({"type": "m.room.member", "sender": ALICE, "state_key": "@bob:a.example",
                "content": {"membership": "leave"}});
            let message = json!({"state_key": ALICE, "content": {"membership": "leave"}});
            let invalid = [member(ALICE, "join"), kick, message].map(|wrong| (wrong, "M_INVALID_PARAM"));
            let of_another = (member("@bob:b.example", "leave"), "M_FORBIDDEN");
            for (wrong, errcode) in invalid.into_iter().chain([of_another]) {
                let wrong = pdu(version, &wrong, &["a.example"]);
                assert_eq!(check(&wrong).map_err(|e| e.errcode().as_str()), Err(errcode));
            }
            let other_id = EventId::parse("$other:a.example").expect("id");
            assert!(check_signed_event(&good, Membership::Leave, &room, &other_id, &origin).is_err());
            let other_room = RoomId::parse("!other:a.example").expect("id");
            assert!(
                check_signed_event(&good, Membership::Leave, &other_room, good.event_id(), &origin).is_err()
            );
            let _ = user;
        }
    }

    #[test]
    fn an_invite_is_for_somebody_else() {
        let version = version("10");
        let (room, _) = ids(version);
        let invite = |target: &str| {
            pdu(
                version,
                &json!({"type": "m.room.member", "state_key": target, "content": {"membership": "invite"}}),
                &[],
            )
        };
        let check = |pdu: &Pdu| {
            check_signed_event(pdu, Membership::Invite, &room, pdu.event_id(), &server("a.example"))
        };
        assert!(check(&invite("@bob:b.example")).is_ok());
        assert!(check(&invite("bob")).is_err() && check(&invite("")).is_err());
    }

    #[test]
    fn what_comes_back_is_our_event_and_their_signature_and_nothing_else() {
        for version in all() {
            let ours = VerifiedPdu::unchecked(pdu(version, &member(ALICE, "join"), &["a.example"]));
            let b = server("b.example");
            let theirs = ours.signed(&b, &key("b.example")).expect("signed").canonical();
            let theirs = theirs.with_signature("c.example", "ed25519:k", "junk");
            let theirs = theirs.with_signature("a.example", "ed25519:k", "ours, spoilt");
            let mut theirs = json::parse_object(theirs.as_bytes()).expect("an object");
            theirs.insert("unsigned".to_owned(), json!({"invite_room_state": []}));
            assert!(check_countersigned(&ours, &theirs).is_ok());
            let both = with_signatures_of(&ours, &theirs, &b).expect("an event");
            assert_eq!(both.event_id(), ours.event_id());
            assert!(verify_event(&both, &known).is_ok() && verify_event_by(&both, &b, &known).is_ok());
            assert_eq!(both.to_object()["signatures"].as_object().expect("signed").len(), 2);
            for (field, value) in
                [("content", json!({"membership": "ban"})), ("depth", json!(8)), ("added", json!(1))]
            {
                let mut changed = theirs.clone();
                changed.insert(field.to_owned(), value);
                assert!(check_countersigned(&ours, &changed).is_err(), "{field}");
            }
            assert!(check_countersigned(&ours, &Map::new()).is_err());
        }
    }
}
