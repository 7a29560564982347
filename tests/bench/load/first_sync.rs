//! Initial `/sync` requests: what the first look into many rooms costs, and the rooms to look into.

use std::path::PathBuf;
use std::time::{Duration, Instant};

use doorstep::Homeserver;
use doorstep::clock::Clock as WallClock;
use doorstep::config::{Config, Data};
use doorstep::internals::Draft;
use doorstep::internals::ImportedRoom;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::protocol::{ServerName, UserId, VerifiedPdu, room_version};
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::http::{self, encode};
use crate::{Result, process, tokens};

/// Messages of a room, more than a timeline has by default.
const MESSAGES: usize = 12;

/// Puts rooms into the database of a server that is not running: a user of it is in all of them, and its readers.
pub fn fill(given: &crate::Fill) -> Result<Value> {
    let mut config = Config::for_name(ServerName::parse(&given.name)?);
    config.data = Data::Folder(PathBuf::from(&given.data));
    config.durable = false;
    let user = UserId::parse(&given.user)?;
    let hs = Homeserver::open(config, WallClock::new())?;
    let begun = Instant::now();
    for number in 0..given.rooms {
        let room = room(number, given, &user)?;
        let room_id = room.room_id.clone();
        hs.membership().import_room(room, |_| Ok(()))?;
        for message in 0..MESSAGES {
            hs.events().send(Draft {
                room: room_id.clone(),
                sender: user.clone(),
                event_type: "m.room.message".into(),
                state_key: None,
                content: object(json!({ "msgtype": "m.text", "body": format!("message {message}") }))?,
                redacts: None,
                origin_server_ts: None,
            })?;
        }
    }
    Ok(json!({ "rooms": given.rooms, "members": given.members, "seconds": begun.elapsed().as_secs_f64() }))
}

/// A room as another server, which most of its members are on, would give it.
fn room(number: usize, given: &crate::Fill, user: &UserId) -> Result<ImportedRoom> {
    let owner = "@owner:there.example";
    let version = room_version::default_version();
    let create = json!({ "room_version": version.id, "org.example.number": number });
    let create = event("m.room.create", "", owner, create, 1, &[])?;
    let room_id = create.room_id().clone();
    let mut state = vec![create];
    let levels = json!({ "users_default": 0, "state_default": 50 });
    for (kind, key, content) in [
        ("m.room.member", owner, json!({ "membership": "join", "displayname": "The owner" })),
        ("m.room.power_levels", "", levels),
        ("m.room.join_rules", "", json!({ "join_rule": "public" })),
        ("m.room.history_visibility", "", json!({ "history_visibility": "shared" })),
        ("m.room.name", "", json!({ "name": format!("Room {number}") })),
        ("m.room.topic", "", json!({ "topic": "What is talked about here" })),
    ] {
        let made = event(kind, key, owner, content, state.len() + 1, &state)?;
        state.push(made);
    }
    let others: Vec<usize> = (0..given.members.saturating_sub(2)).collect();
    let joined = |member: &usize| {
        let name = match *member < given.readers {
            true => format!("@reader{member}:{}", given.name),
            false => format!("@member{member}:there.example"),
        };
        let content = json!({
            "membership": "join", "displayname": format!("Member {member}"),
            "avatar_url": format!("mxc://there.example/abcdefghijklmnop{member}"),
        });
        event("m.room.member", &name, &name, content, 8, &state).map_err(|e| e.to_string())
    };
    let others: Vec<VerifiedPdu> =
        others.par_iter().map(joined).collect::<std::result::Result<_, String>>()?;
    let join = json!({ "membership": "join" });
    let join = event("m.room.member", user.as_str(), user.as_str(), join, 9, &state)?;
    state.extend(others);
    Ok(ImportedRoom { version, room_id, auth_chain: Vec::new(), state, join })
}

/// An event after the last of these. All servers have one key.
fn event(
    kind: &str,
    key: &str,
    sender: &str,
    content: Value,
    depth: usize,
    before: &[VerifiedPdu],
) -> Result<VerifiedPdu> {
    let ids = |events: &[VerifiedPdu]| -> Vec<String> {
        events.iter().map(|event| event.event_id().as_str().to_owned()).collect()
    };
    // What authorises it: after the create event, which later versions leave out, at most these.
    let auth = before.get(1..before.len().min(4)).unwrap_or_default();
    let mut event = object(json!({
        "type": kind, "state_key": key, "sender": sender, "content": content, "depth": depth,
        "prev_events": ids(&before[before.len().saturating_sub(1)..]), "auth_events": ids(auth),
        "origin_server_ts": 1_700_000_000_000_u64 + depth as u64,
    }))?;
    if let Some(create) = before.first() {
        event.insert("room_id".into(), create.room_id().as_str().into());
    }
    let signer = SigningKey::generate([5; 32], "first");
    Ok(VerifiedPdu::seal(&event, &UserId::parse(sender)?.server(), &signer, room_version::default_version())?)
}

fn object(value: Value) -> Result<Map<String, Value>> {
    match value {
        Value::Object(object) => Ok(object),
        _ => Err("not an object".into()),
    }
}

/// Asks, on each connection one time after the other, and looks whether all rooms are there.
pub fn answer(given: &crate::FirstSync) -> Result<Value> {
    let tokens = tokens(&given.tokens)?;
    let state = json!({ "lazy_load_members": given.lazy });
    let uri = format!(
        "/_matrix/client/v3/sync?set_presence=offline&filter={}",
        encode(&json!({ "room": { "state": state } }).to_string())
    );
    // The first one warms what can be warm.
    let bytes = one(given, &tokens[0], &uri, true)?.1;
    let clock = Clock::start(given.pid)?;
    let times = std::thread::scope(|scope| -> Result<Vec<Duration>> {
        let ask = |number: usize| {
            let (token, uri) = (&tokens[number % tokens.len()], &uri);
            move || -> Result<Vec<Duration>> {
                (0..given.times).map(|_| Ok(one(given, token, uri, false)?.0)).collect()
            }
        };
        let running: Vec<_> = (0..given.clients).map(|number| scope.spawn(ask(number))).collect();
        let mut times = Vec::new();
        for thread in running {
            times.extend(thread.join().unwrap_or_else(|_| Err("a panic".into()))?);
        }
        Ok(times)
    })?;
    let worst = times.iter().max().copied().unwrap_or_default();
    let mut figures = clock.stop(times)?;
    figures["worst_ms"] = crate::millis(worst).into();
    figures["bytes"] = bytes.into();
    figures["peak_kib"] = process::peak_kib(given.pid)?.into();
    Ok(figures)
}

/// One initial sync on a connection of its own: how long it took until the last byte, and how many there were.
fn one(given: &crate::FirstSync, token: &str, uri: &str, look: bool) -> Result<(Duration, usize)> {
    let mut connection = http::connect(&given.client)?;
    let begun = Instant::now();
    let body = connection.call("GET", uri, &format!("Bearer {token}"), None)?;
    let took = begun.elapsed();
    if look {
        let answer: Value = serde_json::from_slice(&body)?;
        let rooms = answer["rooms"]["join"].as_object().map_or(0, Map::len);
        if rooms != given.rooms {
            return Err(format!("{rooms} rooms of {}", given.rooms).into());
        }
    }
    Ok((took, body.len()))
}
