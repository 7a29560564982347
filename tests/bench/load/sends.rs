//! Users who send messages as fast as they are let: a keep-alive connection each, the next message when the last one is
//! acknowledged. Afterwards every acknowledged event is looked for in its room.

use std::collections::HashSet;
use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::Clock;
use crate::http::{self, Connection, encode};
use crate::{Result, tokens};

/// One user, and what they were told.
struct Speaker {
    authorization: String,
    room: String,
    connection: Connection<TcpStream>,
    number: usize,
    acknowledged: Vec<String>,
    times: Vec<Duration>,
}

/// Sends from all connections for the given time and tells how it went.
pub fn answer(given: &crate::Sends) -> Result<Value> {
    let tokens = tokens(&given.tokens)?;
    let mut speakers = Vec::new();
    for (number, token) in tokens.iter().enumerate() {
        let mut speaker = Speaker {
            authorization: format!("Bearer {token}"),
            room: given.room[number % given.room.len()].clone(),
            connection: http::connect(&given.client)?,
            number: 0,
            acknowledged: Vec::new(),
            times: Vec::new(),
        };
        // One before the clock starts: the server learns that the device is in use.
        speaker.speak(number)?;
        speaker.times.clear();
        speakers.push(speaker);
    }
    let clock = Clock::start(given.pid)?;
    let begun = Instant::now();
    std::thread::scope(|scope| {
        let start = |(connection, speaker)| scope.spawn(move || speak_for(given, begun, connection, speaker));
        let running: Vec<_> = speakers.iter_mut().enumerate().map(start).collect();
        running.into_iter().try_for_each(|thread| thread.join().unwrap_or_else(|_| Err("a panic".into())))
    })?;
    let times = speakers.iter().flat_map(|speaker| speaker.times.iter().copied()).collect();
    let mut figures = clock.stop(times)?;
    figures["acknowledged"] = speakers.iter().map(|speaker| speaker.acknowledged.len()).sum::<usize>().into();
    figures["lost"] = lost(&mut speakers, &given.room)?.into();
    Ok(figures)
}

fn speak_for(given: &crate::Sends, begun: Instant, connection: usize, speaker: &mut Speaker) -> Result<()> {
    let time = Duration::from_secs(given.seconds);
    while begun.elapsed() < time {
        speaker.speak(connection)?;
    }
    Ok(())
}

impl Speaker {
    fn speak(&mut self, connection: usize) -> Result<()> {
        let (run, number) = (std::process::id(), self.number);
        self.number += 1;
        let uri = format!(
            "/_matrix/client/v3/rooms/{}/send/m.room.message/s{run}.{connection}.{number}",
            encode(&self.room)
        );
        let body = format!(
            r#"{{"msgtype":"m.text","body":"a message of ordinary length, the {number}th from connection {connection}"}}"#
        );
        let sent = Instant::now();
        let answer = self.connection.call("PUT", &uri, &self.authorization, Some(body.as_bytes()))?;
        self.times.push(sent.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        let event_id = answer["event_id"].as_str().ok_or_else(|| format!("no event id: {answer}"))?;
        self.acknowledged.push(event_id.to_owned());
        Ok(())
    }
}

/// How many acknowledged events are not in the rooms.
fn lost(speakers: &mut [Speaker], rooms: &[String]) -> Result<usize> {
    let mut there = HashSet::new();
    for room in rooms {
        let reader =
            speakers.iter_mut().find(|speaker| speaker.room == *room).ok_or("nobody is in the room")?;
        let mut from = String::new();
        loop {
            let uri = format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=1000{from}", encode(room));
            let page = reader.connection.call("GET", &uri, &reader.authorization, None)?;
            let page: Value = serde_json::from_slice(&page)?;
            let events = page["chunk"].as_array().ok_or("a page without events")?;
            there.extend(events.iter().filter_map(|event| event["event_id"].as_str()).map(str::to_owned));
            match page["end"].as_str() {
                Some(end) if !events.is_empty() => from = format!("&from={}", encode(end)),
                _ => break,
            }
        }
    }
    let acknowledged = speakers.iter().flat_map(|speaker| &speaker.acknowledged);
    Ok(acknowledged.filter(|event_id| !there.contains(*event_id)).count())
}

/// What one message costs in a room with many servers, in a server of this process.
pub fn rows(given: &crate::Rows) -> Result<Value> {
    let mut wide = crate::common::wide_room::WideRoom::new(given.servers)?;
    wide.say("the first")?;
    let before = wide.rows()?;
    wide.say("the second")?;
    let after = wide.rows()?;
    let grown: Vec<_> = after
        .iter()
        .filter_map(|(table, count)| {
            let more = count - before.get(table).copied().unwrap_or(0);
            (more != 0).then_some((table.clone(), more))
        })
        .collect();
    Ok(json!({
        "servers": wide.servers()?,
        "rows": grown.iter().map(|(_, more)| more).sum::<i64>(),
        "tables": grown.into_iter().collect::<std::collections::BTreeMap<_, _>>(),
    }))
}
