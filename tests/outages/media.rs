//! Files: what was acknowledged is there after a kill, to the last byte, and of what was not nothing is left; a disk that is
//! full refuses files and nothing else.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::media::{RawAnswer, UPLOAD, download, exchange, try_begin, upload};
use crate::common::wait::wait_until;
use crate::common::{ProcessServer, invariants};
use doorstep::testing::TestUser;
use rusqlite::{Connection, OpenFlags};
use serde_json::json;

/// The files of media, those that are being written left out, by their name.
fn files(folder: &Path) -> BTreeMap<String, PathBuf> {
    let mut found = BTreeMap::new();
    let mut folders = vec![folder.join("media")];
    while let Some(next) = folders.pop() {
        for entry in std::fs::read_dir(next).into_iter().flatten().flatten() {
            let path = entry.path();
            if path.is_dir() && !path.ends_with("new") {
                folders.push(path);
            } else if path.is_file() {
                found.insert(entry.file_name().to_string_lossy().into_owned(), path);
            }
        }
    }
    found
}

fn new_files(folder: &Path) -> usize {
    std::fs::read_dir(folder.join("media/new")).map_or(0, Iterator::count)
}

/// The files that there should be.
fn expected(folder: &Path) -> Vec<String> {
    let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
    let database = Connection::open_with_flags(folder.join("doorstep.db"), flags).expect("a database");
    database.busy_timeout(Duration::from_secs(10)).expect("a time-out");
    let mut query = database.prepare("SELECT lower(hex(hash)) FROM media_blobs ORDER BY 1").expect("a query");
    query.query_map([], |row| row.get(0)).expect("rows").map(|row| row.expect("a row")).collect()
}

/// Bytes that are others for each number, of different sizes.
fn content(number: usize) -> Vec<u8> {
    format!("{number} ").into_bytes().repeat(1 + number * 7919 % 30_000)
}

/// An upload that may be cut off by a kill: its URI if it was acknowledged.
fn try_upload(user: &TestUser, body: &[u8]) -> Option<String> {
    let length = format!("Content-Length: {}\r\n", body.len());
    let mut connection = try_begin(user, "POST", UPLOAD, &length).ok()?;
    connection.write_all(body).ok()?;
    let answer = RawAnswer::read(connection).ok().filter(|answer| answer.status == 200)?;
    let answer: serde_json::Value = serde_json::from_slice(&answer.body).ok()?;
    Some(answer["content_uri"].as_str()?.to_owned())
}

#[test]
fn every_acknowledged_file_is_there_after_a_kill_and_of_the_others_nothing_is_left() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let acknowledged: Mutex<BTreeMap<String, usize>> = Mutex::default();
    for round in 0..3 {
        let (over, before) = (AtomicBool::new(false), acknowledged.lock().expect("no panic").len());
        std::thread::scope(|scope| {
            for caller in 0..4 {
                let (alice, acknowledged, over) = (&alice, &acknowledged, &over);
                scope.spawn(move || {
                    for number in (0..).map(|n| (round * 4 + caller) * 1000 + n) {
                        if over.load(Ordering::SeqCst) {
                            return;
                        }
                        // Some of them are the same file as another's.
                        let number = if number % 5 == 0 { number % 1000 } else { number };
                        if let Some(uri) = try_upload(alice, &content(number)) {
                            acknowledged.lock().expect("no panic").insert(uri, number);
                        }
                    }
                });
            }
            let started = Instant::now();
            while acknowledged.lock().expect("no panic").len() < before + 25 {
                assert!(started.elapsed() < Duration::from_secs(90), "too few files were uploaded");
                std::thread::yield_now();
            }
            server.kill();
            over.store(true, Ordering::SeqCst);
        });
        server.resume();
        for (uri, number) in &*acknowledged.lock().expect("no panic") {
            let answer = download(&alice, uri, "");
            assert_eq!(answer.status, 200, "{uri} was acknowledged");
            assert!(answer.body == content(*number), "{uri} is another file");
        }
        assert_eq!(new_files(server.folder()), 0);
        wait_until("nothing is left of the others", || {
            files(server.folder()).into_keys().eq(expected(server.folder()))
        });
        assert_eq!(invariants::check(server.folder(), 0).0, Vec::<String>::new());
    }
}

/// A file size limit makes every write beyond it fail, as a full disk does.
#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_refuses_a_file_says_so_and_keeps_nothing_of_it() {
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room();
    let kept = upload(&alice, "text/plain", "", b"kept");
    let large = vec![7; 40 << 20];
    for _ in 0..2 {
        server.limit_files(32 << 20);
        let answer = exchange(&alice, "POST", UPLOAD, "", &large);
        assert_eq!(answer.error(), (507, "M_UNKNOWN".to_owned()), "{answer:?}");
        assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("disk")), "{answer:?}");
        let announced = alice.post("/_matrix/media/v1/create", json!({}));
        let uri = announced["content_uri"].as_str().expect("a URI").to_owned();
        let path = format!("{UPLOAD}/{}", &uri[6..]);
        assert_eq!(exchange(&alice, "PUT", &path, "", &large).status, 507);
        // Whatever is smaller goes on.
        alice.send(&room, "hello");
        assert_eq!(download(&alice, &kept, "").body, b"kept");
        assert_eq!(new_files(server.folder()), 0);
        server.let_files_grow(true);
        assert_eq!(exchange(&alice, "PUT", &path, "", &large).status, 200, "and it can be tried again");
        assert_eq!(download(&alice, &uri, "").body.len(), large.len());
    }
    // Nothing can be written at all: neither a file nor what is to be said of it.
    server.let_files_grow(false);
    assert_eq!(exchange(&alice, "POST", UPLOAD, "", b"small").status, 507);
    assert_eq!(download(&alice, &kept, "").body, b"kept");
    server.let_files_grow(true);
    upload(&alice, "text/plain", "", b"small");
    wait_until("nothing is left", || files(server.folder()).into_keys().eq(expected(server.folder())));
    assert_eq!(new_files(server.folder()), 0);
    assert_eq!(invariants::check(server.folder(), 0).0, Vec::<String>::new());
}

#[test]
fn files_leave_the_disk_to_the_database_before_it_is_full() {
    // No disk has so much.
    let server = ProcessServer::start(&["--media-keep-free", "999999T"]);
    let alice = server.user("alice");
    let room = alice.create_room();
    let answer = exchange(&alice, "POST", UPLOAD, "", b"a file");
    assert_eq!(answer.error(), (507, "M_UNKNOWN".to_owned()), "{answer:?}");
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("disk")), "{answer:?}");
    alice.send(&room, "what is said goes on");
    assert_eq!((new_files(server.folder()), files(server.folder()).len()), (0, 0));
}
