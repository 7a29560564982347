//! The user of the server under test who makes the rooms and looks whether what was counted is in them.

use std::net::TcpStream;

use serde_json::{Value, json};

use crate::http::{self, Connection, encode};
use crate::{Peering, Result};

pub struct Owner {
    authorization: String,
    connection: Connection<TcpStream>,
    version: String,
}

impl Owner {
    pub fn new(given: &Peering) -> Result<Self> {
        Ok(Self {
            authorization: format!("Bearer {}", given.token),
            connection: http::connect(&given.client)?,
            version: given.room_version.clone(),
        })
    }

    fn call(&mut self, method: &str, uri: &str, body: Option<&Value>) -> Result<Value> {
        let body = body.map(|body| body.to_string().into_bytes());
        let answer = self.connection.call(method, uri, &self.authorization, body.as_deref())?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// Makes a room with this `join_rule`.
    pub fn room(&mut self, join_rule: &str) -> Result<String> {
        let rules =
            json!({ "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": join_rule } });
        let body = json!({ "room_version": self.version, "initial_state": [rules] });
        let answer = self.call("POST", "/_matrix/client/v3/createRoom", Some(&body))?;
        Ok(answer["room_id"].as_str().ok_or("no room was made")?.to_owned())
    }

    /// Makes several.
    pub fn rooms(&mut self, count: usize, join_rule: &str) -> Result<Vec<String>> {
        (0..count).map(|_| self.room(join_rule)).collect()
    }

    /// How many users have this membership in a room.
    pub fn members(&mut self, room: &str, membership: &str) -> Result<usize> {
        let uri = format!("/_matrix/client/v3/rooms/{}/members?membership={membership}", encode(room));
        Ok(self.call("GET", &uri, None)?["chunk"].as_array().map_or(0, Vec::len))
    }

    /// The id of the newest event of a room.
    pub fn newest(&mut self, room: &str) -> Result<String> {
        let uri = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1", encode(room));
        Ok(self.call("GET", &uri, None)?["chunk"][0]["event_id"].as_str().unwrap_or_default().to_owned())
    }

    /// How many messages are in a room's timeline.
    pub fn messages(&mut self, room: &str) -> Result<usize> {
        let (mut count, mut from) = (0, String::new());
        loop {
            let uri = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=500{from}", encode(room));
            let page = self.call("GET", &uri, None)?;
            let events = page["chunk"].as_array().map(Vec::as_slice).unwrap_or_default();
            count += events.iter().filter(|event| event["type"] == "m.room.message").count();
            match page["end"].as_str() {
                Some(end) if !events.is_empty() => from = format!("&from={}", encode(end)),
                _ => return Ok(count),
            }
        }
    }
}
