//! `spec.json`: the specification's own vectors, made into rows `spec/<section>/<number>`.

use doorstep::protocol::room_version::room_version;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::signatures::{hash, sign};
use doorstep::protocol::{ServerName, json};
use serde_json::{Value, json};

use crate::{object, same, text};

const SECTIONS: [&str; 4] = ["unpadded_base64", "canonical_json", "json_signing", "event_signing"];

/// The file's entries as rows; each carries the signing key.
pub fn rows(file: &Value) -> Result<Vec<Value>, String> {
    let mut rows = Vec::new();
    for section in SECTIONS {
        let entries = file[section].as_array().ok_or_else(|| format!("spec.json has no {section}"))?;
        for (i, entry) in entries.iter().enumerate() {
            rows.push(json!({"id": format!("spec/{section}/{i}"), "row": entry, "key": file["signing_key"]}));
        }
    }
    Ok(rows)
}

pub fn run(row: &Value) -> Result<(), String> {
    let (id, entry) = (text(row, "/id")?, &row["row"]);
    match id.split('/').nth(1).unwrap_or_default() {
        "unpadded_base64" => {
            let (input, expected) = (text(entry, "/input")?, text(entry, "/expect")?);
            same("the base64", &json::base64(input.as_bytes()).as_str(), &expected)?;
            let padded = format!("{expected}{}", "=".repeat((4 - expected.len() % 4) % 4));
            let decoded = [expected, &padded].map(json::base64_decode);
            let input = Some(input.as_bytes().to_vec());
            if decoded.iter().all(|d| *d == input) { Ok(()) } else { Err("it is not decoded".to_owned()) }
        }
        "canonical_json" => {
            let parsed = json::parse_object(text(entry, "/json")?.as_bytes()).map_err(|e| e.to_string())?;
            let canonical = json::canonical_string(&Value::Object(parsed));
            same("the canonical form", &canonical.as_str(), &text(entry, "/expect")?)
        }
        section => {
            let seed = json::base64_decode(text(row, "/key/seed")?).and_then(|seed| seed.try_into().ok());
            let key = SigningKey::from_seed(text(row, "/key/key_id")?, seed.ok_or("a bad seed")?);
            let key = key.map_err(|e| e.to_string())?;
            same("the public key", &key.public_base64().as_str(), &text(row, "/key/public_key_derived")?)?;
            let server = ServerName::parse(text(row, "/key/server_name")?).map_err(|e| e.to_string())?;
            let signed = if section == "json_signing" {
                let mut signed = object(entry, "/object")?;
                sign::sign_json(&mut signed, &server, &key);
                signed
            } else {
                // `origin` is among what is signed, so these are events of room versions 1 to 10.
                let mut event = object(entry, "/event")?;
                hash::add_content_hash(&mut event);
                sign::sign_event(&mut event, &server, &key, room_version("10").ok_or("no version 10")?);
                event
            };
            same("the signed object", &Value::Object(signed), &entry["expect"])
        }
    }
}
