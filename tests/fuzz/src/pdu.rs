//! Events as other servers hand them in: format, event id, redaction, hashes, signatures.

use doorstep::protocol::Pdu;
use doorstep::protocol::json::{CanonicalObject, canonical_event, parse_object};
use doorstep::protocol::pdu::EVENT_BYTES_MAX;
use doorstep::protocol::redact::redact;
use doorstep::protocol::room_version::{EventIdFormat, RoomVersion, all};
use doorstep::protocol::rooms::stripped_state::strip;
use doorstep::protocol::signatures::verify::{check_parsed, required_signers, wanted_keys};
use serde_json::{Value, json};

/// One byte for the room version, then an event's JSON.
pub fn pdu(data: &[u8]) {
    let Some((&version, json)) = data.split_first() else { return };
    let version = &all()[usize::from(version) % all().len()];
    let Ok(event) = Pdu::parse(json, version) else { return };

    // What is kept of it is the same event.
    assert!(event.json().len() <= EVENT_BYTES_MAX.max(json.len()));
    let object = parse_object(event.json()).expect("an event is an object");
    let again = Pdu::parse(event.json(), version).expect("an event stays an event");
    assert_eq!((again.event_id(), again.json()), (event.event_id(), event.json()));
    let canonical = event.canonical();
    assert_eq!(canonical.event_id(version).expect("an event has an id"), *event.event_id());
    // A tree cannot hold every number.
    if canonical.as_bytes() == canonical_event(&object, &[]) {
        let from_object = Pdu::from_object(object.clone(), version).expect("an event stays an event");
        assert_eq!((from_object.event_id(), from_object.json()), (event.event_id(), canonical.as_bytes()));
        assert_eq!(
            CanonicalObject::of(&object).event_id(version).expect("an event has an id"),
            *event.event_id()
        );
    } else {
        assert!(!version.strict_canonical_json);
    }
    let trusted = Pdu::trusted(event.event_id().clone(), event.json().to_vec(), version);
    assert_same_fields(&event, &trusted.expect("it was read before"));
    assert_fields_are_those_of_the_tree(&event);

    redacted(&event, version);
    // Signatures: nobody's key is known, so whatever wants one fails.
    let outcome = check_parsed(&event, &|_, _| None);
    assert!(outcome.is_err() || required_signers(&event).is_ok_and(|signers| signers.is_empty()));
    let _ = wanted_keys(&event);
    let _ = strip(&event);
    let hashed = canonical.with_content_hash();
    assert!(hashed.content_hash_matches());
    let signed = hashed.with_signature("s.example", "ed25519:1", "x");
    assert_eq!(signed.signatures_of("s.example").iter().filter(|(id, _)| id == "ed25519:1").count(), 1);
    assert_eq!(signed.event_id(version).expect("an id"), hashed.event_id(version).expect("an id"));
}

fn redacted(event: &Pdu, version: RoomVersion) {
    let redacted = event.redacted().expect("every event can be redacted");
    let by_hand = redact(&event.canonical(), version);
    assert_eq!(redacted.canonical(), by_hand, "nothing more than the essential is left");
    assert_eq!(redact(&by_hand, version), by_hand, "the redacted form of the redacted form");
    assert_eq!(redacted.event_id(), event.event_id());
    assert_eq!(by_hand.event_id(version).expect("a redacted event has an id"), *event.event_id());
    assert_eq!(by_hand.essential_bytes(version), event.canonical().essential_bytes(version));
    let parsed = Pdu::parse(redacted.json(), version).expect("a redacted event is an event");
    assert_eq!(parsed.event_id(), event.event_id());
    assert_eq!(
        (parsed.sender(), parsed.room_id(), parsed.state_key(), parsed.membership()),
        (event.sender(), event.room_id(), event.state_key(), event.membership())
    );
    assert_eq!((parsed.prev_events(), parsed.auth_events()), (event.prev_events(), event.auth_events()));
}

fn assert_same_fields(a: &Pdu, b: &Pdu) {
    assert_eq!((a.event_id(), a.room_id(), a.sender()), (b.event_id(), b.room_id(), b.sender()));
    assert_eq!((a.event_type(), a.state_key(), a.depth()), (b.event_type(), b.state_key(), b.depth()));
    assert_eq!((a.redacts(), a.membership(), a.content()), (b.redacts(), b.membership(), b.content()));
}

/// The reader of fields and the reader of trees see the same event.
fn assert_fields_are_those_of_the_tree(event: &Pdu) {
    let tree = event.to_object();
    assert_eq!(tree["type"], event.event_type());
    assert_eq!(tree["sender"], event.sender().as_str());
    assert_eq!(tree.get("state_key").and_then(Value::as_str), event.state_key());
    assert_eq!(tree["depth"], event.depth());
    assert_eq!(tree["origin_server_ts"], event.origin_server_ts());
    assert_eq!(tree["content"], Value::Object(event.content()));
    let pairs = event.version().event_id_format == EventIdFormat::InEvent;
    for (key, ids) in [("prev_events", event.prev_events()), ("auth_events", event.auth_events())] {
        let in_tree: Vec<&Value> = tree[key].as_array().expect("a list").iter().collect();
        let of_tree: Vec<&Value> = in_tree.into_iter().map(|r| if pairs { &r[0] } else { r }).collect();
        assert_eq!(json!(of_tree), json!(ids.iter().map(|id| id.as_str()).collect::<Vec<_>>()), "{key}");
    }
}
