//! Waiting `/sync` requests: what it costs to keep them, and how soon they are woken.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::{Clock, Spent};
use crate::http::{self, Connection, encode};
use crate::readiness::Readiness;
use crate::{Result, process, quantile, tokens};

/// A user with a connection of its own, and how far its syncs have come.
struct Client {
    authorization: String,
    connection: Connection<TcpStream>,
    since: String,
}

impl Client {
    fn new(address: &str, token: &str) -> Result<Self> {
        let authorization = format!("Bearer {token}");
        let mut client = Self { authorization, connection: http::connect(address)?, since: String::new() };
        client.ask(0)?;
        client.take()?;
        Ok(client)
    }

    /// Sends a /sync that waits up to `timeout` milliseconds.
    fn ask(&mut self, timeout: u32) -> Result<()> {
        let since =
            if self.since.is_empty() { String::new() } else { format!("&since={}", encode(&self.since)) };
        let uri = format!("/_matrix/client/v3/sync?timeout={timeout}{since}");
        self.connection.send("GET", &uri, &self.authorization, None)
    }

    /// Reads the answer of a /sync. Returns it, and when it was there.
    fn take(&mut self) -> Result<(Instant, Value)> {
        let (status, body) = self.connection.receive()?;
        let came = Instant::now();
        Ok((came, self.follow(status, &body)?))
    }

    /// Goes on from this answer of a /sync, which it returns.
    fn follow(&mut self, status: u16, body: &[u8]) -> Result<Value> {
        let answer: Value = serde_json::from_slice(body)?;
        let next = answer["next_batch"].as_str().ok_or_else(|| format!("/sync: {status} {answer}"))?;
        self.since = next.to_owned();
        Ok(answer)
    }

    /// Syncs until there is nothing new for a while: left-overs of joining must not be taken for a message.
    fn settle(&mut self) -> Result<()> {
        for _ in 0..20 {
            self.ask(300)?;
            let begun = Instant::now();
            self.take()?;
            if begun.elapsed() > Duration::from_millis(250) {
                break;
            }
        }
        Ok(())
    }

    /// Takes what is there already, without waiting.
    fn settle_quickly(&mut self) -> Result<()> {
        self.ask(0)?;
        self.take()?;
        Ok(())
    }

    /// Sends a message. Returns when the request went out.
    fn speak(&mut self, room: &str, number: usize) -> Result<Instant> {
        let sent = self.begin_to_speak(room, number)?;
        self.end_of_speech()?;
        Ok(sent)
    }

    /// The same without waiting for the answer, which is to be taken by [`Client::end_of_speech`].
    fn begin_to_speak(&mut self, room: &str, number: usize) -> Result<Instant> {
        let run = std::process::id();
        let uri = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/b{run}.{number}", encode(room));
        let body = format!(r#"{{"msgtype":"m.text","body":"message {number}"}}"#);
        let sent = Instant::now();
        self.connection.send("PUT", &uri, &self.authorization, Some(body.as_bytes()))?;
        Ok(sent)
    }

    fn end_of_speech(&mut self) -> Result<()> {
        match self.connection.receive()? {
            (200, _) => Ok(()),
            (status, body) => Err(format!("a message: {status} {}", String::from_utf8_lossy(&body)).into()),
        }
    }
}

/// One waiting client is woken again and again, while the others wait for what never comes.
pub fn wake(given: &crate::Wake) -> Result<Value> {
    let tokens = tokens(&given.tokens)?;
    let [speaker, hearer, others @ ..] = tokens.as_slice() else { return Err("two tokens at least".into()) };
    let mut idle = Vec::new();
    for token in others {
        let mut client = Client::new(&given.client, token)?;
        client.settle_quickly()?;
        client.ask(600_000)?;
        idle.push(client);
    }
    // Last, so that the server does not take their connections for forgotten ones.
    let mut speaker = Client::new(&given.client, speaker)?;
    let mut hearer = Client::new(&given.client, hearer)?;
    hearer.settle()?;
    std::thread::sleep(Duration::from_secs(2));
    let resident_kib = process::resident_kib(given.pid)?;

    let mut times = Vec::new();
    for number in 0..given.times {
        hearer.ask(60_000)?;
        // Time for the request to be read and to wait: what is measured is waking, not a race against it.
        std::thread::sleep(Duration::from_millis(20));
        let sent = speaker.speak(&given.room, number)?;
        let (came, answer) = hearer.take()?;
        if answer["rooms"]["join"][given.room.as_str()].is_null() {
            return Err(format!("woken by something else: {answer}").into());
        }
        times.push(came - sent);
        hearer.settle_quickly()?;
    }
    times.sort();
    Ok(json!({
        "waiting": others.len() + 1,
        "p50_ms": quantile(&times, 0.5),
        "p99_ms": quantile(&times, 0.99),
        "worst_ms": quantile(&times, 1.0),
        "resident_kib": resident_kib,
    }))
}

/// Everybody in the room waits, and one message wakes them all.
pub fn crowd(given: &crate::Crowd) -> Result<Value> {
    let tokens = tokens(&given.tokens)?;
    let (speaker, hearers) = tokens.split_first().ok_or("no tokens")?;
    let ready = Readiness::new()?;
    let mut clients = Vec::new();
    for (number, token) in hearers.iter().enumerate() {
        let mut client = Client::new(&given.client, token)?;
        client.settle_quickly()?;
        ready.add(client.connection.socket(), number)?;
        clients.push(client);
    }
    let mut speaker = Client::new(&given.client, speaker)?;
    // Each has come online since the others looked: who is told that does not wait.
    for client in &mut clients {
        client.settle_quickly()?;
    }
    let (mut all, mut last, mut spent) = (Vec::new(), Vec::new(), Spent::default());
    for number in 0..given.times {
        for client in &mut clients {
            client.ask(120_000)?;
        }
        std::thread::sleep(Duration::from_secs(2));
        let message = format!("message {number}");
        let clock = Clock::start(given.pid)?;
        let sent = speaker.begin_to_speak(&given.room, number)?;
        // They are read through afterwards: what that takes is no time of the server's.
        let (mut times, mut answers) = (Vec::new(), Vec::new());
        while times.len() < clients.len() {
            let waited_for = ready.wait()?;
            let came = Instant::now();
            for hearer in waited_for {
                let client = &mut clients[hearer];
                let (status, body) = client.connection.receive()?;
                if String::from_utf8_lossy(&body).contains(&message) {
                    times.push(came.saturating_duration_since(sent));
                    answers.push((hearer, status, body));
                } else {
                    // Who came online is no news here.
                    client.follow(status, &body)?;
                    client.ask(120_000)?;
                }
            }
        }
        spent.add(&clock.spent()?);
        speaker.end_of_speech()?;
        for (hearer, status, body) in answers {
            clients[hearer].follow(status, &body)?;
        }
        times.sort();
        last.push(times[times.len() - 1]);
        all.extend(times);
    }
    last.sort();
    let mut figures = spent.figures(all);
    figures["waiting"] = hearers.len().into();
    figures["last_ms"] = quantile(&last, 0.5).into();
    Ok(figures)
}
