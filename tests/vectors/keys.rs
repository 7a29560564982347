//! `keys.json`: the servers' keys.

use std::collections::HashMap;

use doorstep::protocol::signatures::sign::{KeyAt, SigningKey};
use doorstep::protocol::signatures::verify::verify_event;
use doorstep::protocol::{Pdu, ServerName, json};
use serde_json::Value;

use crate::text;

/// The keys that sign events and requests, by server name.
pub struct Keys(HashMap<String, SigningKey>);

impl Keys {
    /// Reads `keys.json`, and checks its public keys against the seeds.
    pub fn read(file: &Value) -> Result<Self, String> {
        let servers = file["servers"].as_object().ok_or("keys.json has no servers")?;
        let read = |(server, entry): (&String, &Value)| {
            let seed = json::base64_decode(text(entry, "/seed")?).and_then(|seed| seed.try_into().ok());
            let key = SigningKey::from_seed(text(entry, "/key_id")?, seed.ok_or("a seed is not 32 bytes")?);
            let key = key.map_err(|e| e.to_string())?;
            crate::same("a public key", &key.public_base64().as_str(), &text(entry, "/public_key")?)?;
            Ok((server.clone(), key))
        };
        servers.iter().map(read).collect::<Result<_, String>>().map(Self)
    }

    /// The key of a row's `sign_as` or `verify_as`, with its server.
    pub fn of(&self, who: &Value) -> Result<(ServerName, &SigningKey), String> {
        let server = text(who, "/server")?;
        let key = self.0.get(server).filter(|key| Ok(key.key_id()) == text(who, "/key_id"));
        let server = ServerName::parse(server).map_err(|e| e.to_string())?;
        Ok((server, key.ok_or("no such key in keys.json")?))
    }

    /// Looks a key up as the service does; all are valid for ever.
    pub fn find(&self, server: &str, key_id: &str) -> Option<KeyAt<'static>> {
        let key = self.0.get(server).filter(|key| key.key_id() == key_id)?;
        Some(KeyAt::stated(key.verify_key(), i64::MAX))
    }

    /// Whether everyone has signed an event who has to.
    pub fn verify(&self, event: &Pdu) -> Result<(), String> {
        verify_event(event, &|server: &str, key_id: &str| self.find(server, key_id))
            .map(drop)
            .map_err(|e| e.to_string())
    }
}
