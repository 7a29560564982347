//! What reading and checking one event costs in processor time, on one thread: figures to look at, nothing that can fail.

use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};

use doorstep::protocol::Pdu;
use doorstep::protocol::room_version::{RoomVersion, room_version};
use doorstep::protocol::signatures::verify;
use serde_json::Value;

use crate::keys::Keys;
use crate::{file_text, parse, text};

const ROUNDS: usize = 20;

/// The events of `events.jsonl`, signed: microseconds to parse one, to read one back from the database, and to do
/// steps 1 to 3 of the checks on receipt.
pub fn measure(folder: &Path) -> Result<String, String> {
    let keys = Keys::read(&parse(&file_text(folder, "keys.json")?)?)?;
    let find = |server: &str, key_id: &str| keys.find(server, key_id);
    let rows: Vec<Value> = file_text(folder, "events.jsonl")?.lines().map(parse).collect::<Result<_, _>>()?;
    let mut events: Vec<(RoomVersion, Vec<u8>)> = Vec::new();
    for row in &rows {
        let version = room_version(text(row, "/room_version")?).ok_or("unknown room version")?;
        events.push((version, row["expect"]["signed_event"].to_string().into_bytes()));
    }
    let bytes: usize = events.iter().map(|(_, event)| event.len()).sum::<usize>() / events.len().max(1);
    let parsed: Vec<Pdu> =
        events.iter().filter_map(|(version, event)| Pdu::parse(event, version).ok()).collect();

    let parsing =
        per_event(events.len(), || events.iter().for_each(|(v, e)| drop(black_box(Pdu::parse(e, v)))));
    let reading = per_event(parsed.len(), || {
        for pdu in &parsed {
            let stored = Pdu::trusted(pdu.event_id().clone(), pdu.json().to_vec(), pdu.version());
            drop(black_box(stored));
        }
    });
    let checking = per_event(events.len(), || {
        events.iter().for_each(|(v, e)| drop(black_box(verify::check_received(e, v, &find))));
    });
    Ok(format!(
        "{} events of {bytes} bytes on average: parse {parsing:.1} us, read back {reading:.1} us, check {checking:.1} us",
        events.len()
    ))
}

/// Microseconds of work for one event.
fn per_event(events: usize, mut work: impl FnMut()) -> f64 {
    let (start, before) = (Instant::now(), cpu_time());
    (0..ROUNDS).for_each(|_| work());
    let elapsed = match (before, cpu_time()) {
        (Some(before), Some(after)) => after.saturating_sub(before),
        _ => start.elapsed(),
    };
    elapsed.as_secs_f64() * 1e6 / (events * ROUNDS).max(1) as f64
}

/// How long this thread has had a processor, where the system tells: on a busy machine the clock on the wall does not.
fn cpu_time() -> Option<Duration> {
    let schedule = std::fs::read_to_string("/proc/thread-self/schedstat").ok()?;
    schedule.split(' ').next()?.parse().ok().map(Duration::from_nanos)
}
