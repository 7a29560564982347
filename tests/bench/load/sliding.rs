//! Sliding sync of a user with many rooms: the first twenty at login, and one message at a time afterwards.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::http::{self, Connection, encode};
use crate::{Result, quantile, tokens};

/// The dialect that both servers of the comparison speak.
const PATH: &str = "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?timeout=0";

struct Client {
    connection: Connection<TcpStream>,
    authorization: String,
}

impl Client {
    fn call(&mut self, method: &str, uri: &str, body: &Value) -> Result<Value> {
        let body = body.to_string();
        let answer = self.connection.call(method, uri, &self.authorization, Some(body.as_bytes()))?;
        Ok(serde_json::from_slice(&answer)?)
    }

    /// One request of sliding sync, with the time it took.
    fn slide(&mut self, pos: Option<&str>, body: &Value) -> Result<(String, Value, Duration)> {
        let uri = pos.map_or_else(|| PATH.to_owned(), |pos| format!("{PATH}&pos={}", encode(pos)));
        let text = body.to_string();
        let begun = Instant::now();
        let answer = self.connection.call("POST", &uri, &self.authorization, Some(text.as_bytes()))?;
        let took = begun.elapsed();
        let answer: Value = serde_json::from_slice(&answer)?;
        let pos = answer["pos"].as_str().ok_or("an answer without pos")?.to_owned();
        Ok((pos, answer, took))
    }
}

/// What a well-known client asks of each room in its list.
fn list(conn_id: &str, rooms: usize) -> Value {
    let required = json!([
        ["m.room.name", ""],
        ["m.room.encryption", ""],
        ["m.room.member", "$LAZY"],
        ["m.room.member", "$ME"],
        ["m.room.topic", ""],
        ["m.room.avatar", ""],
        ["m.room.canonical_alias", ""],
        ["m.room.power_levels", ""],
        ["org.matrix.msc3401.call.member", "*"],
        ["m.room.join_rules", ""],
        ["m.room.tombstone", ""],
        ["m.room.create", ""],
        ["m.room.history_visibility", ""],
        ["m.space.parent", "*"],
        ["m.space.child", "*"],
    ]);
    json!({
        "conn_id": conn_id,
        "lists": { "all_rooms": { "ranges": [[0, rooms - 1]], "timeline_limit": 1, "required_state": required,
            "filters": { "not_room_types": ["m.space"] } } },
        "extensions": { "account_data": { "enabled": true }, "typing": { "enabled": true },
            "receipts": { "enabled": true, "rooms": ["*"] } },
    })
}

/// Makes the rooms and asks.
pub fn answer(given: &crate::Slide) -> Result<Value> {
    let token = tokens(&given.tokens)?.into_iter().next().ok_or("no token")?;
    let mut client =
        Client { connection: http::connect(&given.client)?, authorization: format!("Bearer {token}") };
    let mut rooms = Vec::new();
    for number in 0..given.rooms {
        let made = client.call(
            "POST",
            "/_matrix/client/v3/createRoom",
            &json!({ "name": format!("Room {number}") }),
        )?;
        rooms.push(made["room_id"].as_str().ok_or_else(|| format!("no room: {made}"))?.to_owned());
    }
    let mut initial = Vec::new();
    for number in 0..given.times.min(30) {
        let (_, answer, took) = client.slide(None, &list(&format!("i{}", number % 4), 20))?;
        if answer["rooms"].as_object().map(serde_json::Map::len) != Some(20.min(given.rooms)) {
            return Err("not the rooms that were asked for".into());
        }
        initial.push(took);
    }
    let body = list("all", given.rooms);
    let (mut pos, _, whole) = client.slide(None, &body)?;
    loop {
        // What did not fit into the first answer.
        let (next, answer, _) = client.slide(Some(&pos), &body)?;
        pos = next;
        if answer["rooms"].as_object().is_none_or(serde_json::Map::is_empty) {
            break;
        }
    }
    let mut incremental = Vec::new();
    for number in 0..given.times {
        let room = &rooms[(number * 7919) % rooms.len()];
        let uri = format!(
            "/_matrix/client/v3/rooms/{}/send/m.room.message/slide{}.{number}",
            encode(room),
            std::process::id()
        );
        client.call("PUT", &uri, &json!({ "msgtype": "m.text", "body": "one more" }))?;
        let (next, answer, took) = client.slide(Some(&pos), &body)?;
        if answer["rooms"].get(room).is_none() {
            return Err(format!("the message is not there: {answer}").into());
        }
        pos = next;
        incremental.push(took);
    }
    initial.sort();
    incremental.sort();
    Ok(json!({
        "rooms": given.rooms,
        "initial_20_p50_ms": quantile(&initial, 0.5),
        "initial_20_worst_ms": quantile(&initial, 1.0),
        "initial_all_ms": crate::millis(whole),
        "incremental_p50_ms": quantile(&incremental, 0.5),
        "incremental_p99_ms": quantile(&incremental, 0.99),
    }))
}
