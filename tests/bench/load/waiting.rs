//! Waiting `/sync` requests: what it costs to keep them, and how soon they are woken.

use std::net::TcpStream;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::clock::{Clock, Spent};
use crate::http::{self, Connection, encode};
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
        let answer: Value = serde_json::from_slice(&body)?;
        let next = answer["next_batch"].as_str().ok_or_else(|| format!("/sync: {status} {answer}"))?;
        self.since = next.to_owned();
        Ok((came, answer))
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

    /// Waits for an answer with this message, and tells when it came. Others (who came online) are no news here.
    fn wait_for(&mut self, message: &str) -> Result<Instant> {
        loop {
            self.ask(120_000)?;
            let (came, answer) = self.take()?;
            if answer["rooms"]["join"].to_string().contains(message) {
                return Ok(came);
            }
        }
    }

    /// Sends a message. Returns when the request went out.
    fn speak(&mut self, room: &str, number: usize) -> Result<Instant> {
        let run = std::process::id();
        let uri = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/b{run}.{number}", encode(room));
        let body = format!(r#"{{"msgtype":"m.text","body":"message {number}"}}"#);
        let sent = Instant::now();
        self.connection.call("PUT", &uri, &self.authorization, Some(body.as_bytes()))?;
        Ok(sent)
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
    let (report, reports) = mpsc::channel();
    let mut orders = Vec::new();
    for token in hearers {
        let mut client = Client::new(&given.client, token)?;
        client.settle_quickly()?;
        let (order, ordered) = mpsc::channel::<usize>();
        orders.push(order);
        let report = report.clone();
        std::thread::Builder::new().stack_size(128 * 1024).spawn(move || {
            while let Ok(number) = ordered.recv() {
                let _ = report.send(client.wait_for(&format!("message {number}")).map_err(|e| e.to_string()));
            }
        })?;
    }
    let mut speaker = Client::new(&given.client, speaker)?;
    let (mut all, mut last, mut spent) = (Vec::new(), Vec::new(), Spent::default());
    for number in 0..given.times {
        for order in &orders {
            order.send(number)?;
        }
        std::thread::sleep(Duration::from_secs(2));
        let clock = Clock::start(given.pid)?;
        let sent = speaker.speak(&given.room, number)?;
        let mut times = Vec::new();
        for _ in hearers {
            times.push(reports.recv()??.saturating_duration_since(sent));
        }
        spent.add(&clock.spent()?);
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
