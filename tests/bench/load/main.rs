//! The load generator of the benchmark: one small program per question, each printing one line of JSON.
//!
//! It is no benchmark by itself: `tests/bench/run.sh` starts the servers, calls this, and prints the table. It is written
//! in Rust with the library's own protocol code so that it is not what is measured; each answer has its own processor
//! time beside the server's, as proof.

// What a program for the terminal is for; and it measures real time against a server of another process.
#![allow(clippy::print_stdout, clippy::disallowed_methods)]

mod clock;
#[path = "../../common/mod.rs"]
pub mod common;
mod first_sync;
mod handshakes;
mod http;
mod keys;
mod large;
mod media;
mod owner;
mod peer;
mod process;
mod readiness;
mod receive;
mod sends;
mod sliding;
mod waiting;

use std::error::Error;
use std::path::PathBuf;
use std::time::Instant;

use argh::FromArgs;

type Result<T> = std::result::Result<T, Box<dyn Error + Send + Sync>>;

/// Load for the benchmark of a Matrix homeserver.
#[derive(FromArgs)]
struct Arguments {
    #[argh(subcommand)]
    question: Option<Question>,
    /// given by `cargo bench`, without meaning here
    #[argh(switch)]
    #[allow(dead_code)]
    bench: bool,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Question {
    Ready(Ready),
    Peering(Peering),
    Sends(Sends),
    Rows(Rows),
    Wake(Wake),
    Crowd(Crowd),
    Keys(Keys),
    Slide(Slide),
    Fill(Fill),
    FirstSync(FirstSync),
    Media(Media),
}

/// Milliseconds from starting a process until it answers /versions.
#[derive(FromArgs)]
#[argh(subcommand, name = "ready")]
struct Ready {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// how often
    #[argh(option, default = "5")]
    times: usize,
    /// the command and its arguments
    #[argh(positional, greedy)]
    command: Vec<String>,
}

/// What happens between a scripted server, whose users have never been seen, and the server under test.
#[derive(FromArgs)]
#[argh(subcommand, name = "peer")]
struct Peering {
    /// the name of the server under test, `localhost:PORT`
    #[argh(option)]
    target: String,
    /// its process id, for its processor time and its memory
    #[argh(option)]
    pid: u32,
    /// the address of its client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the access token of a user there, who makes the rooms, or joins the large one
    #[argh(option)]
    token: String,
    /// the version of the rooms
    #[argh(option)]
    room_version: String,
    /// the port of the scripted server, which its name ends with
    #[argh(option)]
    port: u16,
    /// the authority that both sides trust
    #[argh(option)]
    ca: PathBuf,
    /// the scripted server's certificate
    #[argh(option)]
    certificate: PathBuf,
    /// its key
    #[argh(option)]
    key: PathBuf,
    #[argh(subcommand)]
    deed: Deed,
}

#[derive(FromArgs)]
#[argh(subcommand)]
enum Deed {
    Knocks(Knocks),
    Joins(Joins),
    Receive(Receive),
    LargeJoin(LargeJoin),
}

/// Knocks upon rooms of the server under test.
#[derive(FromArgs)]
#[argh(subcommand, name = "knocks")]
struct Knocks {
    /// how many rooms there are
    #[argh(option)]
    rooms: usize,
    /// connections at a time
    #[argh(option, default = "8")]
    connections: usize,
    /// how long
    #[argh(option, default = "10")]
    seconds: u64,
}

/// Joins into rooms of the server under test.
#[derive(FromArgs)]
#[argh(subcommand, name = "joins")]
struct Joins {
    /// how many rooms there are at a time
    #[argh(option)]
    rooms: usize,
    /// members of each when joins into it begin to count
    #[argh(option, default = "50")]
    members: usize,
    /// connections at a time
    #[argh(option, default = "8")]
    connections: usize,
    /// how long
    #[argh(option, default = "10")]
    seconds: u64,
}

/// Transactions of 50 messages for the server under test, a connection for each room.
#[derive(FromArgs)]
#[argh(subcommand, name = "receive")]
struct Receive {
    /// how many rooms there are
    #[argh(option)]
    rooms: usize,
    /// how long
    #[argh(option, default = "10")]
    seconds: u64,
    /// how many transactions there are for each room, if time allows
    #[argh(option, default = "250")]
    transactions: usize,
    /// the folder of the server's database, for what it grows by
    #[argh(option)]
    data: Option<PathBuf>,
}

/// The server under test joins a large room: time and memory, and what the room costs afterwards.
#[derive(FromArgs)]
#[argh(subcommand, name = "large-join")]
struct LargeJoin {
    /// the access token of a user who speaks in another room meanwhile
    #[argh(option)]
    other_token: String,
    /// the folder of its database
    #[argh(option)]
    data: PathBuf,
    /// members of the room
    #[argh(option, default = "10_000")]
    members: usize,
    /// servers that they are of
    #[argh(option, default = "500")]
    servers: usize,
}

/// Messages that users send a second, each on a connection of their own, and whether all that were acknowledged are there.
#[derive(FromArgs)]
#[argh(subcommand, name = "sends")]
struct Sends {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the server's process id, for its processor time
    #[argh(option)]
    pid: u32,
    /// the rooms to speak in; each connection keeps to one
    #[argh(option)]
    room: Vec<String>,
    /// a file with an access token a line: a connection for each
    #[argh(option)]
    tokens: PathBuf,
    /// how long
    #[argh(option, default = "10")]
    seconds: u64,
}

/// The rows that one message adds to the database in a room with many servers.
#[derive(FromArgs)]
#[argh(subcommand, name = "rows")]
struct Rows {
    /// how many servers
    #[argh(option, default = "5000")]
    servers: usize,
}

/// From the sending of a message until a waiting /sync has its answer, while others wait in vain.
#[derive(FromArgs)]
#[argh(subcommand, name = "wake")]
struct Wake {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the server's process id, for its memory
    #[argh(option)]
    pid: u32,
    /// the room that the first two tokens' users are in
    #[argh(option)]
    room: String,
    /// a file with an access token a line: who sends, who is woken, then all that wait in vain
    #[argh(option)]
    tokens: PathBuf,
    /// messages
    #[argh(option, default = "300")]
    times: usize,
}

/// One message into a room where everybody waits: until the median and the last of them have it.
#[derive(FromArgs)]
#[argh(subcommand, name = "crowd")]
struct Crowd {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the server's process id, for its processor time
    #[argh(option)]
    pid: u32,
    /// the room that all are in
    #[argh(option)]
    room: String,
    /// a file with an access token a line: who sends, then all that wait
    #[argh(option)]
    tokens: PathBuf,
    /// messages
    #[argh(option, default = "10")]
    times: usize,
}

/// End-to-end keys uploaded, queried and claimed, and messages to many devices.
#[derive(FromArgs)]
#[argh(subcommand, name = "keys")]
struct Keys {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the server's process id, for its processor time
    #[argh(option)]
    pid: u32,
    /// a file with a line for each device: a user, a device, an access token; each of another user, without keys yet
    #[argh(option)]
    devices: PathBuf,
    /// queries
    #[argh(option, default = "100")]
    times: usize,
    /// connections that claim
    #[argh(option, default = "8")]
    connections: usize,
    /// how long they do
    #[argh(option, default = "10")]
    seconds: u64,
    /// messages to all devices
    #[argh(option, default = "10")]
    messages: usize,
}

/// Sliding sync of a user with many rooms: the first of them, and one message at a time.
#[derive(FromArgs)]
#[argh(subcommand, name = "slide")]
struct Slide {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// a file with the access token of a user without rooms
    #[argh(option)]
    tokens: PathBuf,
    /// rooms that are made
    #[argh(option, default = "1000")]
    rooms: usize,
    /// messages
    #[argh(option, default = "200")]
    times: usize,
}

/// Puts rooms with many members of another server into the database of a server that is not running.
#[derive(FromArgs)]
#[argh(subcommand, name = "fill")]
struct Fill {
    /// the folder of its database
    #[argh(option)]
    data: String,
    /// its name
    #[argh(option)]
    name: String,
    /// the user of it who is in the rooms
    #[argh(option)]
    user: String,
    /// how many rooms
    #[argh(option, default = "300")]
    rooms: usize,
    /// members of each
    #[argh(option, default = "300")]
    members: usize,
    /// how many of them are users of it as well: reader0, reader1 and so on
    #[argh(option, default = "0")]
    readers: usize,
}

/// Initial /sync requests.
#[derive(FromArgs)]
#[argh(subcommand, name = "first-sync")]
struct FirstSync {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the server's process id, for its processor time and its memory
    #[argh(option)]
    pid: u32,
    /// a file with an access token a line
    #[argh(option)]
    tokens: PathBuf,
    /// how many rooms there must be in the answer
    #[argh(option)]
    rooms: usize,
    /// whether members are loaded lazily
    #[argh(switch)]
    lazy: bool,
    /// clients that ask at the same time
    #[argh(option, default = "1")]
    clients: usize,
    /// how often each asks
    #[argh(option, default = "5")]
    times: usize,
}

/// Files up and down.
#[derive(FromArgs)]
#[argh(subcommand, name = "media")]
struct Media {
    /// the address of the client API, plain HTTP
    #[argh(option)]
    client: String,
    /// the server's process id, for its processor time and its memory
    #[argh(option)]
    pid: u32,
    /// a file with an access token a line, a connection for each
    #[argh(option)]
    tokens: PathBuf,
    /// how large the files are
    #[argh(option, default = "1_000_000")]
    bytes: usize,
    /// how long there are uploads, and downloads
    #[argh(option, default = "10")]
    seconds: u64,
    /// how large the large one is
    #[argh(option, default = "100_000_000")]
    large_bytes: usize,
}

fn main() -> Result<()> {
    let answer = match argh::from_env::<Arguments>().question {
        Some(Question::Ready(ready)) => ready.answer()?,
        Some(Question::Peering(given)) => match &given.deed {
            Deed::Knocks(knocks) => handshakes::knocks(&given, knocks)?,
            Deed::Joins(joins) => handshakes::joins(&given, joins)?,
            Deed::Receive(wanted) => receive::receive(&given, wanted)?,
            Deed::LargeJoin(join) => large::answer(&given, join)?,
        },
        Some(Question::Sends(sends)) => sends::answer(&sends)?,
        Some(Question::Rows(rows)) => sends::rows(&rows)?,
        Some(Question::Wake(wake)) => waiting::wake(&wake)?,
        Some(Question::Crowd(crowd)) => waiting::crowd(&crowd)?,
        Some(Question::Keys(given)) => keys::answer(&given)?,
        Some(Question::Slide(slide)) => sliding::answer(&slide)?,
        Some(Question::Fill(fill)) => first_sync::fill(&fill)?,
        Some(Question::Media(given)) => media::answer(&given)?,
        Some(Question::FirstSync(sync)) => first_sync::answer(&sync)?,
        None => "run tests/bench/run.sh, which starts the servers that this puts under load".into(),
    };
    println!("{answer}");
    Ok(())
}

impl Ready {
    fn answer(&self) -> Result<serde_json::Value> {
        let mut took = Vec::new();
        for _ in 0..self.times {
            let begun = Instant::now();
            let mut server = process::Started::new(&self.command)?;
            while !http::answers(&self.client) {
                if begun.elapsed().as_secs() > 120 {
                    return Err("the server did not answer within two minutes".into());
                }
                std::thread::sleep(std::time::Duration::from_micros(200));
            }
            took.push(begun.elapsed());
            server.end()?;
        }
        took.sort();
        Ok(serde_json::json!({
            "best_ms": millis(took[0]),
            "median_ms": millis(took[took.len() / 2]),
            "worst_ms": millis(took[took.len() - 1]),
        }))
    }
}

/// The lines of a file of access tokens.
fn tokens(path: &std::path::Path) -> Result<Vec<String>> {
    Ok(std::fs::read_to_string(path)?.lines().map(str::to_owned).collect())
}

/// Milliseconds with two decimals.
fn millis(duration: std::time::Duration) -> f64 {
    (duration.as_secs_f64() * 100_000.0).round() / 100.0
}

/// The value below which this part of the sorted durations lies, in milliseconds.
fn quantile(sorted: &[std::time::Duration], part: f64) -> f64 {
    let last = sorted.len().saturating_sub(1);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "between 0 and the length")]
    let index = (last as f64 * part).round() as usize;
    sorted.get(index).copied().map_or(f64::NAN, millis)
}
