//! What search costs, printed and never asserted. Not run by default:
//! `cargo test --release --test figures search_figures -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "figures are there to be read")]

use std::time::{Duration, Instant};

use crate::common::client::V3;
use crate::common::process::cpu_ms;
use doorstep::TestServer;
use doorstep::testing::TestUser;
use rusqlite::{Connection, params};
use serde_json::{Value, json};

/// Messages in all. `DOORSTEP_FIGURE_MESSAGES` in the environment says how many.
fn messages() -> usize {
    std::env::var("DOORSTEP_FIGURE_MESSAGES").ok().and_then(|text| text.parse().ok()).unwrap_or(1_000_000)
}

/// A source of numbers that are the same each time.
struct Numbers(u64);

impl Numbers {
    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    /// A number of a word: the nth word comes about 1/n as often as the first.
    fn word(&mut self) -> usize {
        const WORDS: f64 = 50_000.0;
        let even = (self.next() % 1_000_000) as f64 / 1_000_000.0;
        WORDS.powf(even) as usize - 1
    }
}

/// A word of letters that no other number has.
fn spelled(mut number: usize) -> String {
    let mut word = String::from("w");
    loop {
        word.push(char::from(b'a' + (number % 26) as u8));
        number /= 26;
        if number == 0 {
            return word;
        }
    }
}

/// Fills the rooms with messages of ten words, half of them in the first one, as if they had been sent.
fn fill(folder: &std::path::Path, templates: &[String], count: usize) {
    let mut database = Connection::open(folder.join("doorstep.db")).expect("the database");
    let transaction = database.transaction().expect("a transaction");
    let mut stream: i64 =
        transaction.query_row("SELECT stream FROM server", [], |row| row.get(0)).expect("a position");
    let mut numbers = Numbers(88_172_645_463_325_252);
    for number in 0..count {
        let template = &templates[if number % 2 == 0 { 0 } else { number % templates.len() }];
        let body: Vec<String> = (0..10).map(|_| spelled(numbers.word())).collect();
        stream += 1;
        transaction
            .prepare_cached(
                "INSERT INTO events (room_key, event_id, stream, depth, origin_server_ts, status, state_before,
                   state_after, json)
                 SELECT room_key, ?2, ?3, depth, origin_server_ts + ?4, status, state_before, state_after,
                   CAST(replace(CAST(json AS TEXT), 'a template', ?5) AS BLOB) FROM events WHERE event_id = ?1",
            )
            .expect("a statement")
            .execute(params![template, format!("$synthetic{number}"), stream, number as i64, body.join(" ")])
            .expect("an event");
    }
    transaction.execute("UPDATE server SET stream = ?1", [stream]).expect("a position");
    transaction.commit().expect("a commit");
}

fn search(user: &TestUser, term: &str, order: &str) -> Value {
    let criteria = json!({ "search_term": term, "order_by": order });
    let answer =
        user.post(&format!("{V3}/search"), json!({ "search_categories": { "room_events": criteria } }));
    answer["search_categories"]["room_events"].clone()
}

#[test]
#[ignore = "prints figures"]
fn a_search_among_a_million_messages() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let mut templates = Vec::new();
    for number in 0..50 {
        let owner = if number < 10 { &alice } else { &bob };
        let room = owner.create_room();
        templates.push(owner.send(&room, "a template"));
    }
    server.stop();
    let began = Instant::now();
    fill(server.folder(), &templates, messages());
    println!("filled with {} messages in {:?}", messages(), began.elapsed());
    let folder = server.folder().to_owned();
    server.resume();
    let (began, cpu) = (Instant::now(), cpu_ms());
    while search(&alice, "nothinglikethis", "recent")["count"] != 0
        || server.homeserver().store.read(|db| db.events_to_index()).expect("it reads") > 0
    {}
    let each = (cpu_ms() - cpu) * 1000.0 / messages() as f64;
    println!("indexed in {:?}, {each:.1} us of CPU a message", began.elapsed());
    let database = Connection::open(folder.join("doorstep.db")).expect("the database");
    let bytes: i64 = database
        .query_row(
            "SELECT (SELECT sum(length(block)) FROM event_texts_data) + (SELECT sum(length(sz) + 10) FROM event_texts_docsize)",
            [],
            |row| row.get(0),
        )
        .expect("a size");
    println!("{:.1} bytes of index a message", bytes as f64 / messages() as f64);
    for (user, name) in [(&alice, "half of them and a tenth of the rest"), (&bob, "four tenths of them")] {
        let mut times: Vec<Duration> = Vec::new();
        let cpu = cpu_ms();
        for number in [0, 1, 5, 20, 100, 500, 2000, 10_000, 40_000] {
            let (one, two) = (spelled(number), spelled(number / 3 + 2));
            for term in [one.clone(), format!("{one} {two}"), one[..one.len().min(3)].to_owned()] {
                for order in ["recent", "rank"] {
                    let began = Instant::now();
                    let answer = search(user, &term, order);
                    times.push(began.elapsed());
                    println!("{:>12?} {order} {term} of {}", began.elapsed(), answer["count"]);
                }
            }
        }
        times.sort();
        let each = (cpu_ms() - cpu) / times.len() as f64;
        let (half, most) = (times[times.len() / 2], times[times.len() * 95 / 100]);
        println!(
            "{name}: p50 {half:?}, p95 {most:?}, {each:.1} ms of CPU each, those of the client among them"
        );
    }
}
