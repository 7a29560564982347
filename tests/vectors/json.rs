//! `json.jsonl`: canonical JSON, signed objects, signed requests.

use doorstep::protocol::signatures::sign;
use doorstep::protocol::signatures::x_matrix::{self, SignedRequest};
use doorstep::protocol::{ServerName, json};
use serde_json::Value;

use crate::keys::Keys;
use crate::{object, same, text};

fn utf8(bytes: Vec<u8>) -> Result<String, String> {
    String::from_utf8(bytes).map_err(|e| e.to_string())
}

/// JSON text becomes canonical, by both of our ways.
pub fn canonical(row: &Value) -> Result<(), String> {
    let (input, expected) = (text(row, "/json")?, text(row, "/expect/canonical_json")?.to_owned());
    let parsed = json::parse_object(input.as_bytes()).map_err(|e| e.to_string())?;
    same("the canonical form", &utf8(json::canonical_object(&parsed))?, &expected)?;
    let direct = json::canonical_text(input.as_bytes()).map_err(|e| e.to_string())?;
    same("the canonical form from text", &utf8(direct)?, &expected)
}

/// What room versions 6 and later accept. Text that is not JSON at all is not acceptable either.
pub fn strict(row: &Value) -> Result<(), String> {
    let expected = row["expect"]["allowed"].as_bool().ok_or("no expect.allowed")?;
    let read = json::CanonicalObject::read(text(row, "/json")?.as_bytes());
    let allowed = read.is_ok_and(|(_, seen)| seen.odd_number.is_none());
    same("whether it is allowed", &allowed, &expected)
}

pub fn sign(row: &Value, keys: &Keys) -> Result<(), String> {
    let (server, key) = keys.of(&row["sign_as"])?;
    let mut signed = object(row, "/object")?;
    sign::sign_json(&mut signed, &server, key);
    same("the signed object", &Value::Object(signed.clone()), &row["expect"]["signed"])?;
    sign::verify_json(&signed, server.as_str(), key.key_id(), &key.verify_key()).map_err(|e| e.to_string())
}

pub fn verify(row: &Value, keys: &Keys) -> Result<(), String> {
    let (server, key) = keys.of(&row["verify_as"])?;
    let result =
        sign::verify_json(&object(row, "/object")?, server.as_str(), key.key_id(), &key.verify_key());
    let expected = row["expect"]["valid"].as_bool().ok_or("no expect.valid")?;
    same("whether it is valid", &result.is_ok(), &expected)
}

/// The signature of a request, and the whole header there and back.
pub fn request(row: &Value, keys: &Keys) -> Result<(), String> {
    let (origin, key) = keys.of(&row["sign_as"])?;
    let (method, uri) = (text(row, "/request/method")?, text(row, "/request/uri")?);
    let destination = ServerName::parse(text(row, "/request/destination")?).map_err(|e| e.to_string())?;
    // The body as an ordinary serialiser writes it.
    let content = row["request"].get("content").map(Value::to_string);
    let content = content.as_ref().map(String::as_bytes);
    let (from, to) = (origin.as_str(), destination.as_str());
    let request = SignedRequest { method, uri, origin: from, destination: to, content };
    let signature = request.signature(key).map_err(|e| e.to_string())?;
    same("the signature", &signature.as_str(), &text(row, "/expect/signature")?)?;
    let header =
        x_matrix::build(method, uri, &origin, &destination, content, key).map_err(|e| e.to_string())?;
    let read = x_matrix::parse(&header).map_err(|e| e.to_string())?;
    same("the origin", &read.origin, &origin)?;
    read.verify(method, uri, &destination, content, &key.verify_key()).map_err(|e| e.to_string())
}
