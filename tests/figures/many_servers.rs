//! What a hundred test servers in one process cost, printed and never asserted. Not run by default:
//! `cargo test --release --test figures many_servers -- --ignored --nocapture`.

#![allow(clippy::print_stdout, reason = "figures are there to be read")]

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::common::process::cpu_ms;
use doorstep::TestServer;

const SERVERS: usize = 100;

/// Resident memory of the process in MB.
fn resident_mb() -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap_or_default();
    line.split_whitespace().next().and_then(|kb| kb.parse::<f64>().ok()).unwrap_or_default() / 1000.0
}

/// How many threads of each name the process has.
fn threads() -> BTreeMap<String, usize> {
    let mut named = BTreeMap::new();
    for task in std::fs::read_dir("/proc/self/task").into_iter().flatten().flatten() {
        let name = std::fs::read_to_string(task.path().join("comm")).unwrap_or_default();
        let name = name.trim().trim_end_matches(|c: char| c.is_ascii_digit());
        *named.entry(name.to_owned()).or_default() += 1;
    }
    named
}

/// What there is now, and what it took since.
fn print(what: &str, (since, cpu): (Instant, f64)) {
    let threads = threads();
    let (wall, cpu) = (since.elapsed().as_secs_f64(), (cpu_ms() - cpu) / 1000.0);
    let count: usize = threads.values().sum();
    println!(
        "{what:<28} {wall:>6.2} s {cpu:>6.2} s of processors {:>6.0} MB {count:>5} threads",
        resident_mb()
    );
    println!("{:<28} {threads:?}", "");
}

#[test]
#[ignore = "prints figures"]
#[allow(clippy::disallowed_methods, reason = "what is left of threads and work after a while is the figure")]
fn a_hundred_servers_in_one_process() {
    let now = || (Instant::now(), cpu_ms());
    let first = now();
    let warm = TestServer::start();
    print("the first", first);
    let begun = now();
    let servers: Vec<TestServer> = (0..SERVERS).map(|_| TestServer::start()).collect();
    print("a hundred more", begun);
    let begun = now();
    let users: Vec<_> = servers.iter().map(|server| server.user("alice")).collect();
    print("a user on each", begun);
    let begun = now();
    users.iter().for_each(|user| drop(user.create_room()));
    print("a room of each user", begun);
    let begun = now();
    std::thread::sleep(Duration::from_secs(6));
    print("left alone for 6 s", begun);
    let begun = now();
    drop((users, servers, warm));
    print("all stopped", begun);
}
