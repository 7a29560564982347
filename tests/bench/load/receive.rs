//! Transactions full of messages, as a busy server of a large room sends them: signed before the clock starts.

use std::time::{Duration, Instant};

use doorstep::protocol::json::{self, CanonicalObject};
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::owner::Owner;
use crate::peer::{Peer, Tls, now_ms};
use crate::{Peering, Receive, Result};

/// Messages in a transaction: the most that one may have.
const MESSAGES: usize = 50;
/// A server that answers before it has taken the messages in gets this long without progress.
const PATIENCE: Duration = Duration::from_secs(20);

/// All that is sent to one room: requests that are ready to go.
struct Stream {
    room: String,
    requests: Vec<Request>,
}

struct Request {
    uri: String,
    authorization: String,
    body: Vec<u8>,
    /// The last of its messages.
    last: String,
}

/// Sends transactions to each room, one after the other, all rooms at a time; the clock stops when the last message of
/// each room is to be seen there, since an answer is not everywhere a promise.
pub fn receive(given: &Peering, wanted: &Receive) -> Result<Value> {
    let (peer, mut owner) = (Peer::start(given)?, Owner::new(given)?);
    let mut streams = Vec::new();
    for room in owner.rooms(wanted.rooms, "public")? {
        streams.push(prepare(&peer, room, wanted.transactions)?);
    }
    let mut connections = streams.iter().map(|_| peer.connect()).collect::<Result<Vec<_>>>()?;
    let disk = wanted.data.as_deref().map(disk_bytes).transpose()?;
    let clock = Clock::start(given.pid)?;
    let until = Instant::now() + Duration::from_secs(wanted.seconds);
    let sent: Vec<Result<usize>> = std::thread::scope(|scope| {
        let start = |(stream, connection)| scope.spawn(move || send(stream, connection, until));
        let running: Vec<_> = streams.iter().zip(&mut connections).map(start).collect();
        running.into_iter().map(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into()))).collect()
    });
    let sent = sent.into_iter().collect::<Result<Vec<usize>>>()?;
    let answered = clock.spent()?.seconds;
    for (stream, sent) in streams.iter().zip(&sent) {
        if let Some(last) = sent.checked_sub(1) {
            wait_for(&mut owner, &stream.room, &stream.requests[last].last)?;
        }
    }
    let spent = clock.spent()?;
    let (expected, mut count) = (sent.iter().sum::<usize>() * MESSAGES, 0);
    for stream in &streams {
        count += owner.messages(&stream.room)?;
    }
    let mut figures = spent.each(count);
    figures["lost"] = json!(expected - count);
    figures["answered_after_seconds"] = json!((answered * 100.0).round() / 100.0);
    if let (Some(before), Some(data)) = (disk, wanted.data.as_deref()) {
        figures["disk_bytes_each"] = json!((disk_bytes(data)?.saturating_sub(before)) / count.max(1) as u64);
    }
    Ok(figures)
}

/// A user joins and has a lot to say.
fn prepare(peer: &Peer, room: String, transactions: usize) -> Result<Stream> {
    let user = peer.fresh_user();
    let (join, answer) = peer.handshake(&mut peer.connect()?, "join", &room, &user)?;
    let answer: Value = serde_json::from_slice(&answer)?;
    let mut auth = vec![CanonicalObject::of(&join).event_id(peer.version)?.to_string()];
    for event in answer["state"].as_array().ok_or("no state")? {
        if matches!(event["type"].as_str(), Some("m.room.create" | "m.room.power_levels")) {
            let event = event.as_object().ok_or("an event is no object")?;
            auth.push(CanonicalObject::of(event).event_id(peer.version)?.to_string());
        }
    }
    let (mut last, mut depth) = (auth[0].clone(), join["depth"].as_u64().ok_or("no depth")?);
    let mut requests = Vec::new();
    for number in 0..transactions {
        let mut pdus = Vec::new();
        for index in 0..MESSAGES {
            depth += 1;
            let Value::Object(mut event) = json!({
                "type": "m.room.message", "room_id": room, "sender": user, "depth": depth,
                "origin_server_ts": now_ms()?, "prev_events": [last], "auth_events": auth,
                "content": { "msgtype": "m.text", "body": format!("message {index} of transaction {number}") },
            }) else {
                unreachable!("it was written as an object")
            };
            peer.sign(&mut event);
            last = CanonicalObject::of(&event).event_id(peer.version)?.to_string();
            pdus.push(event);
        }
        requests.push(request(peer, &room, number, &pdus, last.clone())?);
    }
    Ok(Stream { room, requests })
}

fn request(
    peer: &Peer,
    room: &str,
    number: usize,
    pdus: &[Map<String, Value>],
    last: String,
) -> Result<Request> {
    let name = room.trim_start_matches('!').split(':').next().unwrap_or_default();
    let uri = format!("/_matrix/federation/v1/send/{name}-{number}");
    let mut body =
        format!(r#"{{"origin":"{}","origin_server_ts":{},"pdus":["#, peer.name, now_ms()?).into_bytes();
    for (index, pdu) in pdus.iter().enumerate() {
        if index > 0 {
            body.push(b',');
        }
        body.extend(json::canonical_object(pdu));
    }
    body.extend(b"]}");
    let authorization = peer.authorization("PUT", &uri, Some(&body))?;
    Ok(Request { uri, authorization, body, last })
}

/// Sends until the time is over or nothing is left. Returns how many transactions were answered.
fn send(stream: &Stream, connection: &mut Tls, until: Instant) -> Result<usize> {
    for (number, request) in stream.requests.iter().enumerate() {
        if Instant::now() >= until {
            return Ok(number);
        }
        let answer = deliver(request, connection)?;
        if answer.windows(7).any(|part| part == b"\"error\"") {
            return Err(format!("a message was refused: {}", String::from_utf8_lossy(&answer)).into());
        }
    }
    Ok(stream.requests.len())
}

/// Repeats a transaction until it is taken: Synapse takes one at a time from each server.
fn deliver(request: &Request, connection: &mut Tls) -> Result<Vec<u8>> {
    loop {
        connection.send("PUT", &request.uri, &request.authorization, Some(&request.body))?;
        match connection.receive()? {
            (200, answer) => return Ok(answer),
            (429, _) => std::thread::sleep(Duration::from_millis(5)),
            (status, answer) => {
                return Err(format!("{}: {status} {}", request.uri, String::from_utf8_lossy(&answer)).into());
            }
        }
    }
}

fn wait_for(owner: &mut Owner, room: &str, event: &str) -> Result<()> {
    let (mut newest, mut since) = (owner.newest(room)?, Instant::now());
    while newest != event && since.elapsed() < PATIENCE {
        std::thread::sleep(Duration::from_millis(50));
        let now = owner.newest(room)?;
        if now != newest {
            (newest, since) = (now, Instant::now());
        }
    }
    Ok(())
}

/// What the files of a database take up, its log included.
fn disk_bytes(folder: &std::path::Path) -> Result<u64> {
    let mut bytes = 0;
    for entry in std::fs::read_dir(folder)? {
        bytes += entry?.metadata()?.len();
    }
    Ok(bytes)
}
