//! What a backup of a large database costs those who send meanwhile.

use std::io::Read;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use doorstep::TestServer;
use doorstep::testing::segment;
use rusqlite::Connection;

/// How many send at once, and how many messages a second all of them come to, if the machine can.
const SENDERS: usize = 16;
const RATE: f64 = 1000.0;
/// For how long they send without a backup, before it and after it.
const ALONE: Duration = Duration::from_secs(5);

/// Makes the database of a stopped server larger by so many bytes.
fn enlarge(server: &TestServer, bytes: i64) {
    let mut database = Connection::open(server.folder().join("doorstep.db")).unwrap();
    let all = database.transaction().unwrap();
    {
        let row = "INSERT INTO account_data VALUES ('@nobody:example.org', '', ?1, hex(randomblob(1850)), 1)";
        let mut insert = all.prepare(row).unwrap();
        for number in 0..bytes / 4096 {
            insert.execute([number]).unwrap();
        }
    }
    all.commit().unwrap();
}

#[test]
#[ignore = "prints figures; DOORSTEP_FIGURES_MB is the size of the database"]
#[allow(clippy::print_stdout, reason = "that is what it is for")]
fn senders_beside_a_backup() {
    let megabytes = std::env::var("DOORSTEP_FIGURES_MB").ok().and_then(|mb| mb.parse().ok()).unwrap_or(1000);
    let mut server = TestServer::start_with(|config| config.durable = true);
    let alice = server.user("alice");
    let room = alice.create_room();
    server.stop();
    enlarge(&server, megabytes << 20);
    server.resume();
    let phases = ["before", "during", "after"].map(|name| (name, Mutex::new(Vec::<Duration>::new())));
    let (phase, over) = (AtomicUsize::new(0), AtomicBool::new(false));
    let log = server.folder().join("doorstep.db-wal");
    let (mut longest_log, mut bytes, mut times) = (0, 0, Vec::new());
    thread::scope(|scope| {
        for sender in 0..SENDERS {
            let (alice, room, phases, phase, over) = (&alice, &room, &phases, &phase, &over);
            scope.spawn(move || {
                let agent: ureq::Agent = ureq::Agent::new_with_defaults();
                let begun = Instant::now();
                for number in 0.. {
                    let due = begun + Duration::from_secs_f64(f64::from(number) * SENDERS as f64 / RATE);
                    while let Some(left) = due.checked_duration_since(Instant::now()) {
                        thread::park_timeout(left);
                    }
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    let path = format!("rooms/{}/send/m.room.message/{sender}-{number}", segment(room));
                    let request = agent.put(format!("{}/_matrix/client/v3/{path}", alice.url()));
                    let request = request.header("Authorization", &format!("Bearer {}", alice.token()));
                    let (now, at) = (Instant::now(), phase.load(Ordering::Relaxed));
                    request.send("{\"msgtype\":\"m.text\",\"body\":\"how long does this take?\"}").unwrap();
                    phases[at].1.lock().unwrap().push(now.elapsed());
                }
            });
        }
        let measured = |at: usize, what: &mut dyn FnMut()| {
            phase.store(at, Ordering::Relaxed);
            let begun = Instant::now();
            what();
            begun.elapsed()
        };
        let alone = || {
            let begun = Instant::now();
            while let Some(left) = ALONE.checked_sub(begun.elapsed()) {
                thread::park_timeout(left);
            }
        };
        times.push(measured(0, &mut || alone()));
        let mut copied = Duration::ZERO;
        times.push(measured(1, &mut || {
            let begun = Instant::now();
            let mut backup = server.homeserver().admin().back_up(|| true).unwrap();
            copied = begun.elapsed();
            let mut piece = vec![0; 1 << 20];
            loop {
                longest_log = longest_log.max(std::fs::metadata(&log).map_or(0, |log| log.len()));
                match backup.read(&mut piece).unwrap() {
                    0 => break,
                    read => bytes += read,
                }
            }
        }));
        times.push(measured(2, &mut || alone()));
        over.store(true, Ordering::Relaxed);
        println!(
            "backup of {bytes} bytes, of which the copy of the database took {copied:?}; the log had {longest_log} bytes"
        );
    });
    for ((name, taken), time) in phases.iter().zip(times) {
        let mut taken = taken.lock().unwrap();
        taken.sort();
        let at = |share: f64| {
            taken.get(((taken.len() as f64 - 1.0) * share) as usize).copied().unwrap_or_default()
        };
        println!(
            "{name}: {time:?}, {:.0} messages a second; half within {:?}, 99 of 100 within {:?}, all within {:?}",
            taken.len() as f64 / time.as_secs_f64(),
            at(0.5),
            at(0.99),
            at(1.0)
        );
    }
}
