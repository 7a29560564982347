//! `events.jsonl`: hashing, signing, redacting and naming one event.
//!
//! Disputed rows (`member-3pid-unsigned` in versions 11 and 12) are followed as Synapse has them: of a
//! `third_party_invite` without `signed` an empty object stays.

use doorstep::protocol::json::CanonicalObject;
use doorstep::protocol::room_version::room_version;
use doorstep::protocol::signatures::{hash, sign, verify};
use doorstep::protocol::{Pdu, json, redact};
use serde_json::Value;

use crate::keys::Keys;
use crate::{object, same, text};

pub fn run(row: &Value, keys: &Keys) -> Result<(), String> {
    let version = room_version(text(row, "/room_version")?).ok_or("unknown room version")?;
    let (server, key) = keys.of(&row["sign_as"])?;
    let expect = &row["expect"];
    let mut event = object(row, "/event")?;
    let canonical = String::from_utf8(json::canonical_object(&event)).map_err(|e| e.to_string())?;
    same("the canonical form", &canonical.as_str(), &text(expect, "/canonical_json")?)?;

    hash::add_content_hash(&mut event);
    same(
        "the content hash",
        &CanonicalObject::of(&event).content_hash().as_str(),
        &text(expect, "/content_hash")?,
    )?;
    sign::sign_event(&mut event, &server, key, version);
    same("the signed event", &Value::Object(event.clone()), &expect["signed_event"])?;
    let signatures = sign::signatures_of(&event, server.as_str());
    same("the signature", &signatures[0].1, &text(expect, "/signature")?)?;

    let redacted = redact::redact(&CanonicalObject::of(&event), version).into_bytes();
    let canonical = String::from_utf8(redacted).map_err(|e| e.to_string())?;
    let redacted: Value = serde_json::from_str(&canonical).map_err(|e| e.to_string())?;
    same("the redacted event", &redacted, &expect["redacted_event"])?;
    same("the redacted canonical form", &canonical.as_str(), &text(expect, "/redacted_canonical_json")?)?;
    let reference = json::base64(&CanonicalObject::of(&event).reference_hash(version));
    same("the reference hash", &reference.as_str(), &text(expect, "/reference_hash")?)?;
    as_pdu(row, keys)
}

/// The same event through the type that the rest of the server uses.
fn as_pdu(row: &Value, keys: &Keys) -> Result<(), String> {
    let version = room_version(text(row, "/room_version")?).ok_or("unknown room version")?;
    let (server, _) = keys.of(&row["sign_as"])?;
    let find = |server: &str, key_id: &str| keys.find(server, key_id);
    let bytes = row["expect"]["signed_event"].to_string();
    let pdu = Pdu::parse(bytes.as_bytes(), version).map_err(|e| e.to_string())?;
    let expected = text(row, "/expect/event_id")?;
    same("the event id", &pdu.event_id().as_str(), &expected)?;
    verify::verify_event_by(&pdu, &server, &find).map_err(|e| e.to_string())?;
    if !pdu.canonical().content_hash_matches() {
        return Err("the content hash does not match".to_owned());
    }
    // A redacted copy has the same id and the same signatures.
    let redacted = pdu.redacted().map_err(|e| e.to_string())?;
    same("the redacted event", &Value::Object(redacted.to_object()), &row["expect"]["redacted_event"])?;
    let again = Pdu::parse(redacted.json(), version).map_err(|e| e.to_string())?;
    same("the redacted event's id", &again.event_id().as_str(), &expected)?;
    verify::verify_event_by(&again, &server, &find).map(drop).map_err(|e| e.to_string())
}
