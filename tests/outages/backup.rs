//! Backups of the real binary while it is written, and what becomes of a server that was restored from one: for its
//! clients, and for the servers that know more of it than it does.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use crate::common::ProcessServer;
use crate::common::client::{room_path, slide, sync};
use crate::common::wait::wait_until;
use doorstep::internals::{restore, write_file};
use doorstep::testing::{TestUser, segment, temporary_folder};
use doorstep::{TestServer, clock::Clock};
use serde_json::{Value, json};

/// A folder for backups, deleted when all went well.
pub struct Backups(PathBuf);

impl Backups {
    pub fn new() -> Self {
        Self(temporary_folder("backups"))
    }

    pub fn file(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    pub fn names(&self) -> Vec<String> {
        let names = std::fs::read_dir(&self.0).expect("a folder").map(|e| e.expect("an entry").file_name());
        let mut names: Vec<_> = names.map(|name| name.to_string_lossy().into_owned()).collect();
        names.sort();
        names
    }
}

impl Drop for Backups {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            let _ = std::fs::remove_dir_all(&self.0);
        }
    }
}

fn empty(folder: &Path) {
    std::fs::remove_dir_all(folder).expect("a folder");
}

/// A server whose data comes from a backup of its own: as it was when the backup was made.
fn set_back(server: &mut TestServer, backup: &Path) {
    server.stop();
    empty(server.folder());
    restore(server.folder(), backup, None, &Clock::new()).unwrap_or_else(|e| panic!("not restored: {e}"));
    server.resume();
}

fn back_up(server: &TestServer, file: &Path) {
    let mut backup = server.homeserver().admin().back_up(|| true).expect("a backup");
    write_file(file, &mut backup).expect("written");
}

fn has_event(user: &TestUser, room: &str, event: &str) -> bool {
    user.request("GET", &room_path(room, &format!("event/{}", segment(event))), None).0 == 200
}

fn pair_with_a_room() -> (TestServer, TestServer, TestUser, TestUser, String) {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join_via(&room, &[here.name()]);
    alice.sync_until("bob", |answer| {
        let events = answer["rooms"]["join"][&room]["timeline"]["events"].as_array()?;
        events.iter().any(|event| event["state_key"] == bob.id()).then_some(())
    });
    (here, there, alice, bob, room)
}

#[test]
fn a_server_that_was_set_back_hears_of_what_it_lost_from_the_others_and_they_of_what_is_new() {
    let (mut here, _there, alice, bob, room) = pair_with_a_room();
    let backups = Backups::new();
    let kept = alice.send(&room, "kept");
    back_up(&here, &backups.file("b.tar"));
    let lost = alice.send(&room, "lost here, and known there");
    let answered = bob.next_message(&room);
    assert!(answered == "kept" || answered == "lost here, and known there");
    wait_until("bob has it", || has_event(&bob, &room, &lost));
    let token = alice.sync(Duration::ZERO)["next_batch"].as_str().expect("a token").to_owned();
    set_back(&mut here, &backups.file("b.tar"));
    assert!(has_event(&alice, &room, &kept));
    // What comes next rests on what was lost: it is fetched, if it was not before, our own event too.
    let next = bob.send(&room, "after the restore");
    wait_until("the lost event came back", || {
        has_event(&alice, &room, &next) && has_event(&alice, &room, &lost)
    });
    let new = alice.send(&room, "from the restored server");
    wait_until("bob hears of it", || has_event(&bob, &room, &new));
    // The old token is good for all that.
    let answer = sync(&alice, &format!("since={token}&timeout=0"));
    let told = answer["rooms"]["join"][&room]["timeline"]["events"].to_string();
    assert!(told.contains("after the restore") && told.contains("from the restored server"), "{answer}");
}

#[test]
fn a_room_where_nobody_speaks_any_more_has_what_was_lost_all_the_same() {
    let (mut here, _there, alice, bob, room) = pair_with_a_room();
    let alone = alice.create_room();
    let backups = Backups::new();
    back_up(&here, &backups.file("b.tar"));
    let mut lost: Vec<String> = (0..3).map(|n| alice.send(&room, &format!("ours {n}"))).collect();
    // One after the other, since a server tells one event as the last, and there is to be one.
    wait_until("bob has ours", || lost.iter().all(|id| has_event(&bob, &room, id)));
    lost.extend((0..3).map(|n| bob.send(&room, &format!("theirs {n}"))));
    wait_until("alice has theirs", || lost.iter().all(|id| has_event(&alice, &room, id)));
    set_back(&mut here, &backups.file("b.tar"));
    wait_until("what was lost came back", || lost.iter().all(|id| has_event(&alice, &room, id)));
    let asked = "SELECT count(*) FROM rooms_behind_backup";
    let database = rusqlite::Connection::open(here.folder().join("doorstep.db")).expect("it is a database");
    wait_until("nobody is to be asked any more", || {
        database.query_row(asked, [], |row| row.get::<_, i64>(0)).expect("a number") == 0
    });
    assert!(!has_event(&alice, &alone, &lost[0]));
    // It goes on from there.
    let next = alice.send(&room, "next");
    wait_until("bob hears of it", || has_event(&bob, &room, &next));
}

#[test]
fn of_a_room_that_ends_in_several_events_all_of_them_come_back() {
    let (mut here, mut there, alice, bob, room) = pair_with_a_room();
    let third = TestServer::start();
    let carol = third.user("carol");
    carol.join_via(&room, &[here.name()]);
    let joined = |user: &TestUser| user.membership_of(&room, carol.id()).as_deref() == Some("join");
    wait_until("all know of all", || joined(&alice) && joined(&bob));
    let backups = Backups::new();
    back_up(&here, &backups.file("b.tar"));
    // Each of them says something while it hears nothing of the others.
    for (a, b) in [(&here, &there), (&here, &third), (&there, &third)] {
        a.cut_off(b);
    }
    let mut lost: Vec<String> = (0..3).map(|n| alice.send(&room, &format!("ours {n}"))).collect();
    lost.extend((0..2).map(|n| bob.send(&room, &format!("theirs {n}"))));
    lost.push(carol.send(&room, "hers"));
    for (a, b) in [(&here, &there), (&here, &third), (&there, &third)] {
        a.mend(b);
    }
    for server in [&here, &there, &third] {
        server.advance(Duration::from_secs(600));
    }
    let has_all = |user: &TestUser| lost.iter().all(|id| has_event(user, &room, id));
    wait_until("all have all", || has_all(&alice) && has_all(&bob) && has_all(&carol));
    let ends = there.homeserver().store.read(|db| {
        let room = db.room(&doorstep::protocol::RoomId::parse(&room)?)?.expect("the room");
        Ok(db.extremity_keys(room.key)?.len())
    });
    assert_eq!(ends.expect("read"), 3, "the room ends in three events there");
    set_back(&mut here, &backups.file("b.tar"));
    wait_until("what was lost came back", || has_all(&alice));
    there.stop();
}

#[test]
fn a_token_from_behind_the_backup_begins_anew_once_and_then_goes_on() {
    let mut here = TestServer::start();
    let alice = here.user("alice");
    let room = alice.create_room();
    let backups = Backups::new();
    let before = sync(&alice, "timeout=0")["next_batch"].as_str().expect("a token").to_owned();
    back_up(&here, &backups.file("b.tar"));
    alice.send(&room, "lost");
    let behind = sync(&alice, "timeout=0")["next_batch"].as_str().expect("a token").to_owned();
    set_back(&mut here, &backups.file("b.tar"));
    let kept = sync(&alice, &format!("since={before}&timeout=0"));
    assert!(kept["rooms"]["join"].get(&room).is_none(), "nothing happened since: {kept}");
    let anew = sync(&alice, &format!("since={behind}&timeout=0"));
    assert!(
        anew["rooms"]["join"][&room]["timeline"]["events"].as_array().is_some_and(|e| !e.is_empty()),
        "{anew}"
    );
    let token = anew["next_batch"].as_str().expect("a token");
    let then = sync(&alice, &format!("since={token}&timeout=0"));
    assert!(then["rooms"]["join"].get(&room).is_none(), "it is not told again: {then}");
    let new = alice.send(&room, "new");
    let then = sync(&alice, &format!("since={token}&timeout=0"));
    assert!(then.to_string().contains(&new), "{then}");
    // A filter's id and a connection's position are not given out a second time.
    let (status, _) = alice.request(
        "POST",
        "/_matrix/client/unstable/org.matrix.simplified_msc3575/sync?pos=1-1-1&timeout=0",
        Some(json!({ "conn_id": "c", "lists": {} })),
    );
    assert_eq!(status, 400, "the client begins anew");
}

#[test]
fn no_one_time_key_of_before_is_given_out_and_the_client_learns_that_it_has_to_bring_others() {
    let mut here = TestServer::start();
    let (alice, bob) = (here.user("alice"), here.user("bob"));
    let keys = alice.upload_keys(&[]);
    let upload = |body: &Value| alice.request("POST", "/_matrix/client/v3/keys/upload", Some(body.clone()));
    let first = json!({ "one_time_keys": keys.one_time_keys(&["a", "b"]) });
    assert_eq!(upload(&first).0, 200);
    let backups = Backups::new();
    back_up(&here, &backups.file("b.tar"));
    let device = alice.device_id();
    assert!(bob.claim_key(alice.id(), &device).is_some());
    set_back(&mut here, &backups.file("b.tar"));
    assert!(
        bob.claim_key(alice.id(), &device).is_none(),
        "one of them was given out, and nobody knows which"
    );
    let answer = alice.initial_sync();
    let counts = "/device_one_time_keys_count/signed_curve25519";
    assert_eq!(answer.pointer(counts).and_then(Value::as_u64).unwrap_or(0), 0, "{answer}");
    assert_eq!(answer["device_unused_fallback_key_types"], json!([]));
    // The same again is a repeat of an upload whose answer was lost; others are taken.
    assert_eq!(upload(&first).0, 200);
    assert!(bob.claim_key(alice.id(), &device).is_none());
    assert_eq!(upload(&json!({ "one_time_keys": keys.one_time_keys(&["c"]) })).0, 200);
    assert!(bob.claim_key(alice.id(), &device).is_some());
}

#[test]
fn servers_look_again_at_the_devices_of_a_server_that_was_set_back() {
    let (mut here, _there, alice, bob, room) = pair_with_a_room();
    let (dora, backups) = (TestUser::register(here.url(), "dora"), Backups::new());
    dora.join(&room);
    dora.upload_keys(&[]);
    back_up(&here, &backups.file("b.tar"));
    let known = || {
        let devices = bob.query_keys(&[dora.id()])["device_keys"][dora.id()].clone();
        devices.as_object().map_or(0, |devices| devices.len())
    };
    wait_until("bob's server knows the device", || known() == 1);
    // A second device comes, and is lost again.
    let login = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "dora" }, "password": "dora",
    });
    let answer = dora.post("/_matrix/client/v3/login", login);
    let second = TestUser::new(here.url(), dora.id(), answer["access_token"].as_str().expect("a token"));
    second.upload_keys(&[]);
    wait_until("bob's server knows both", || known() == 2);
    set_back(&mut here, &backups.file("b.tar"));
    wait_until("bob's server forgets the second", || known() == 1);
    assert!(alice.membership_of(&room, bob.id()).is_some());
}

#[test]
fn a_client_that_knows_devices_from_behind_the_backup_is_told_to_look_again() {
    let (mut here, backups) = (TestServer::start(), Backups::new());
    let (alice, bob) = (here.user("alice"), TestUser::register(here.url(), "bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&room);
    alice.upload_keys(&[]);
    bob.upload_keys(&[]);
    back_up(&here, &backups.file("b.tar"));
    let behind = sync(&alice, "timeout=0")["next_batch"].as_str().expect("a token").to_owned();
    // Another device of bob's comes, to which alice's client encrypts from now on. Then it is lost.
    let login = json!({
        "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "bob" }, "password": "bob",
    });
    let answer = bob.post("/_matrix/client/v3/login", login);
    TestUser::new(here.url(), bob.id(), answer["access_token"].as_str().expect("a token")).upload_keys(&[]);
    let answer = sync(&alice, &format!("since={behind}&timeout=0"));
    assert_eq!(answer["device_lists"]["changed"], json!([bob.id()]), "{answer}");
    let behind = answer["next_batch"].as_str().expect("a token").to_owned();
    let mut asked =
        json!({ "extensions": { "e2ee": { "enabled": true }, "to_device": { "enabled": true } } });
    let slid = slide(&alice, None, &asked);
    asked["extensions"]["to_device"]["since"] = slid["extensions"]["to_device"]["next_batch"].clone();
    set_back(&mut here, &backups.file("b.tar"));
    let answer = sync(&alice, &format!("since={behind}&timeout=0"));
    let changed = answer["device_lists"]["changed"].as_array().cloned().unwrap_or_default();
    assert!(changed.contains(&json!(bob.id())), "{answer}");
    // A client of sliding sync begins a new connection, and goes on with the messages to its device.
    let slid = slide(&alice, None, &asked);
    let changed =
        slid["extensions"]["e2ee"]["device_lists"]["changed"].as_array().cloned().unwrap_or_default();
    assert!(changed.contains(&json!(bob.id())), "{slid}");
    // Once: what comes next is what is new.
    let next = answer["next_batch"].as_str().expect("a token");
    let answer = sync(&alice, &format!("since={next}&timeout=0"));
    assert!(answer["device_lists"]["changed"].as_array().is_none_or(Vec::is_empty), "{answer}");
}

/// Runs the binary to its end.
pub fn doorstep(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_doorstep"))
        .args(args)
        .output()
        .expect("the binary was built with the tests")
}

/// All that it said.
pub fn said(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// Sends as fast as it goes, from so many callers, until it is over.
fn send_all_the_time(
    (alice, room): (&TestUser, &str),
    acknowledged: &Mutex<Vec<String>>,
    over: &AtomicBool,
    caller: usize,
) {
    let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
    for number in 0.. {
        if over.load(Ordering::SeqCst) {
            return;
        }
        let path = room_path(room, &format!("send/m.room.message/{caller}-{number}"));
        let request = agent.put(format!("{}{path}", alice.url()));
        let request = request.header("Authorization", &format!("Bearer {}", alice.token()));
        let body = json!({ "msgtype": "m.text", "body": format!("{caller} {number} {}", "x".repeat(500)) });
        let Ok(mut response) = request.send(body.to_string()) else { continue };
        let Ok(text) = response.body_mut().read_to_string() else { continue };
        let Ok(answer) = serde_json::from_str::<Value>(&text) else { continue };
        if let Some(id) = answer["event_id"].as_str() {
            acknowledged.lock().expect("no panic").push(id.to_owned());
        }
    }
}

#[test]
fn every_event_that_was_acknowledged_before_a_backup_was_begun_is_in_it_whatever_was_sent_meanwhile() {
    let mut server = ProcessServer::start(&[]);
    let peer = TestServer::start();
    let (alice, bob) = (server.user("alice"), peer.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join_via(&room, &[server.name()]);
    let backups = Backups::new();
    let (file, data) = (backups.file("b.tar"), server.folder().to_owned());
    let [file_arg, data_arg] = [&file, &data].map(|path| path.to_str().expect("a path").to_owned());
    let (acknowledged, over) = (Mutex::new(Vec::new()), AtomicBool::new(false));
    let before = std::thread::scope(|scope| {
        for caller in 0..4 {
            let (alice, room, acknowledged, over) = (&alice, &room, &acknowledged, &over);
            scope.spawn(move || send_all_the_time((alice, room), acknowledged, over, caller));
        }
        let count = || acknowledged.lock().expect("no panic").len();
        let started = Instant::now();
        while count() < 100 {
            assert!(started.elapsed() < Duration::from_secs(60), "too few events were sent");
            std::thread::yield_now();
        }
        let before = acknowledged.lock().expect("no panic").clone();
        let output = doorstep(&["backup", &file_arg, "--data", &data_arg]);
        assert!(output.status.success(), "{}", said(&output));
        let more = count() + 20;
        while count() < more {
            assert!(started.elapsed() < Duration::from_secs(120), "nothing is sent any more");
            std::thread::yield_now();
        }
        server.kill();
        over.store(true, Ordering::SeqCst);
        before
    });
    empty(&data);
    let output = doorstep(&["restore", &file_arg, "--data", &data_arg]);
    assert!(output.status.success() && said(&output).contains("is restored in"), "{}", said(&output));
    server.resume();
    for id in &before {
        assert!(has_event(&alice, &room, id), "{id} was acknowledged before");
    }
    // What was sent later is known to the other server, and comes back with what it says next.
    let all = acknowledged.into_inner().expect("no panic");
    let known_there: Vec<&String> = all.iter().filter(|id| has_event(&bob, &room, id)).collect();
    let next = bob.send(&room, "after the restore");
    wait_until("the next event came", || has_event(&alice, &room, &next));
    let last = known_there.last().expect("something arrived");
    wait_until("and what it rests on", || has_event(&alice, &room, last));
    let new = alice.send(&room, "and on it goes");
    wait_until("the other server hears of it", || has_event(&bob, &room, &new));
}

#[test]
fn backups_are_made_by_themselves_and_the_last_few_are_kept() {
    let mut server = ProcessServer::start(&[]);
    let backups = Backups::new();
    let prefix = format!("doorstep-{}-", server.name().replace(':', "_"));
    let old = |n: u32| format!("{prefix}2020010{n}T000000.000Z.tar");
    let others = [
        "notes.txt".to_owned(),
        "doorstep-other.org-20200101T000000.000Z.tar".to_owned(),
        format!("{prefix}x.tar"),
    ];
    let unfinished = format!("{}.abcdefgh.new", old(9));
    for name in (1..5).map(old).chain(others.clone()).chain([unfinished.clone()]) {
        std::fs::write(backups.file(&name), b"x").expect("written");
    }
    server.kill();
    let to = backups.0.to_str().expect("a path").to_owned();
    server.resume_with(&["--backup-to", &to, "--backup-every", "1d", "--backup-keep", "3"]);
    wait_until("the old ones are gone", || ![1, 2].map(old).iter().any(|old| backups.names().contains(old)));
    let kept = backups.names();
    assert!(others.iter().all(|other| kept.contains(other)), "{kept:?}");
    assert!(!kept.contains(&unfinished), "{kept:?}");
    let own: Vec<&String> =
        kept.iter().filter(|name| name.starts_with(&prefix) && !others.contains(name)).collect();
    assert_eq!(own.len(), 3, "{kept:?}");
    assert!(own[..2] == [&old(3), &old(4)], "{kept:?}");
    // It is a whole one, and the next start makes none before a day is over.
    let data = backups.file("restored");
    let restored = restore(&data, &backups.file(own[2]), None, &Clock::new());
    assert_eq!(restored.expect("a whole backup").manifest.server_name.as_str(), server.name());
    std::fs::remove_dir_all(data).expect("a folder");
    server.kill();
    server.resume();
    server.user("alice");
    assert_eq!(backups.names(), kept);
}

#[test]
fn a_backup_that_was_just_made_is_kept_whatever_times_others_have_and_those_of_other_servers_stay() {
    let mut server = ProcessServer::start(&[]);
    let backups = Backups::new();
    let prefix = format!("doorstep-{}-", server.name().replace(':', "_"));
    // As a clock that was wrong once has left them.
    let ahead = |n: u32| format!("{prefix}2999010{n}T000000.000Z.tar");
    let of_another = format!("{prefix}x-20200101T000000.000Z.tar.abcdefgh.new");
    for name in (1..4).map(ahead).chain([of_another.clone()]) {
        std::fs::write(backups.file(&name), b"x").expect("written");
    }
    server.kill();
    let to = backups.0.to_str().expect("a path").to_owned();
    server.resume_with(&["--backup-to", &to, "--backup-every", "1d", "--backup-keep", "2"]);
    wait_until("one is made, and there are not too many", || backups.names().len() == 3);
    let kept = backups.names();
    assert!(kept.contains(&ahead(3)) && kept.contains(&of_another), "{kept:?}");
    let made =
        kept.iter().find(|name| **name != ahead(3) && **name != of_another).expect("one that was made");
    let data = backups.file("restored");
    restore(&data, &backups.file(made), None, &Clock::new()).expect("a whole backup");
}

#[test]
fn what_is_acknowledged_after_somebody_looked_into_the_database_beside_a_server_is_not_lost() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room();
    let data = server.folder().to_str().expect("a path").to_owned();
    let output = doorstep(&["stats", "--data", &data]);
    assert!(output.status.success(), "{}", said(&output));
    // As SQLite's own shell does. Who closes a database that nobody else has folds its log, and deletes it.
    let other = rusqlite::Connection::open(server.folder().join("doorstep.db")).expect("it is a database");
    let rooms: i64 = other.query_row("SELECT count(*) FROM rooms", [], |row| row.get(0)).expect("a number");
    assert_eq!(rooms, 1);
    other.close().expect("closed");
    let event = alice.send(&room, "acknowledged");
    server.kill();
    server.resume();
    assert!(has_event(&alice, &room, &event), "it was acknowledged");
}

#[test]
fn a_backup_whose_reader_went_away_is_given_up_and_the_next_one_is_made() {
    let server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let room = alice.create_room();
    (0..300).for_each(|n| drop(alice.send(&room, &format!("{n} {}", "x".repeat(50_000)))));
    let backups = Backups::new();
    let file = backups.file("b.tar");
    let folder = server.folder().to_str().expect("a path");
    let copy = server.folder().join("doorstep.backup.new");
    for round in 0..6 {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
        command.args(["backup", "-", "--data", folder]).stdout(Stdio::piped()).stderr(Stdio::null());
        let mut child = command.spawn().expect("it starts");
        if round % 2 == 0 {
            // While the database is copied, before anything is told.
            wait_until("the copy is begun", || copy.exists());
        } else {
            let mut begin = [0; 700];
            std::io::Read::read_exact(child.stdout.as_mut().expect("a pipe"), &mut begin).expect("it begins");
        }
        child.kill().and_then(|()| child.wait()).expect("it is killed");
        let output = doorstep(&["backup", file.to_str().expect("a path"), "--data", folder]);
        assert!(output.status.success(), "{round}: {}", said(&output));
    }
}

/// Runs the command so that it can write no file beyond so many bytes, as if the disk were full.
#[cfg(target_os = "linux")]
fn doorstep_on_a_full_disk(args: &[&str], bytes: u64) -> Output {
    use std::os::unix::process::CommandExt;
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
    // SAFETY: the closure makes two system calls that are safe between fork and exec.
    unsafe {
        command.pre_exec(move || {
            libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
            let limit = libc::rlimit { rlim_cur: bytes, rlim_max: bytes };
            libc::setrlimit(libc::RLIMIT_FSIZE, &limit);
            Ok(())
        });
    }
    command.args(args).output().expect("the binary was built with the tests")
}

#[cfg(target_os = "linux")]
#[test]
fn a_disk_that_is_full_is_said_and_nothing_is_left_on_either_side() {
    let server = ProcessServer::start(&[]);
    server.user("alice");
    let backups = Backups::new();
    let data = server.folder().to_str().expect("a path").to_owned();
    let file = backups.file("b.tar").to_str().expect("a path").to_owned();
    let output = doorstep_on_a_full_disk(&["backup", &file, "--data", &data], 50_000);
    assert!(!output.status.success() && said(&output).contains("cannot be written"), "{}", said(&output));
    assert!(backups.names().is_empty(), "{:?}", backups.names());
    let full = std::fs::OpenOptions::new().write(true).open("/dev/full").expect("Linux has it");
    let piped = Command::new(env!("CARGO_BIN_EXE_doorstep"))
        .args(["backup", "-", "--data", &data])
        .stdout(full)
        .output();
    let piped = piped.expect("the binary was built with the tests");
    assert!(!piped.status.success() && said(&piped).contains("ended in the middle"), "{}", said(&piped));
    // The server's own disk.
    server.limit_files(50_000);
    let output = doorstep(&["backup", &file, "--data", &data]);
    assert!(!output.status.success() && said(&output).contains("disk"), "{}", said(&output));
    assert!(backups.names().is_empty(), "{:?}", backups.names());
    let left: Vec<_> = std::fs::read_dir(server.folder())
        .expect("a folder")
        .map(|e| e.expect("an entry").file_name())
        .collect();
    assert!(left.iter().all(|name| !name.to_string_lossy().contains("backup")), "{left:?}");
    server.let_files_grow(true);
    let output = doorstep(&["backup", &file, "--data", &data]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(backups.names(), ["b.tar"]);
    // Nor is anything left where there is no room to restore into.
    let into = backups.file("restored").to_str().expect("a path").to_owned();
    let output = doorstep_on_a_full_disk(&["restore", &file, "--data", &into], 50_000);
    assert!(!output.status.success() && said(&output).contains("cannot be written"), "{}", said(&output));
    assert_eq!(backups.names(), ["b.tar"]);
}

#[test]
fn a_backup_and_the_signing_key_are_given_to_the_operator_and_to_no_token() {
    let server = ProcessServer::start(&[]);
    let (admin, backups) = (server.user("alice"), Backups::new());
    let data = server.folder().to_str().expect("a path").to_owned();
    for path in ["backup", "signing_key"] {
        let (status, answer) = admin.request("GET", &format!("/_doorstep/admin/v1/{path}"), None);
        assert_eq!((status, &answer["errcode"]), (403, &json!("M_FORBIDDEN")), "{answer}");
    }
    let storage = admin.get("/_doorstep/admin/v1/storage");
    assert!(storage["database"]["bytes"].as_u64().is_some_and(|bytes| bytes > 0), "{storage}");
    let stats = doorstep(&["stats", "--data", &data]);
    assert!(stats.status.success() && said(&stats).contains("TABLE"), "{}", said(&stats));
    let key = backups.file("signing.key").to_str().expect("a path").to_owned();
    let output = doorstep(&["export-key", &key, "--data", &data]);
    assert!(output.status.success(), "{}", said(&output));
    let text = std::fs::read_to_string(&key).expect("a file");
    assert!(text.starts_with("ed25519 d_"), "a key as Synapse has it");
    // What is there already is no key to be lost, and no database to be written over.
    let other = backups.file("other").to_str().expect("a path").to_owned();
    std::fs::write(&other, "ed25519 a precious").expect("written");
    let database = format!("{data}/doorstep.db");
    for (command, file) in [("export-key", &other), ("backup", &other), ("backup", &database)] {
        let output = doorstep(&[command, file, "--data", &data]);
        assert!(!output.status.success() && said(&output).contains("is there"), "{}", said(&output));
    }
    assert_eq!(std::fs::read_to_string(&other).expect("a file"), "ed25519 a precious");
    assert!(doorstep(&["export-key", &key, "--data", &data]).status.success(), "the same again");
    for _ in 0..2 {
        let output = doorstep(&["backup", &format!("{other}.tar"), "--data", &data]);
        assert!(output.status.success(), "a backup of before is replaced: {}", said(&output));
    }
    // A new database, in which the server goes on under the same key.
    let into = backups.file("anew").to_str().expect("a path").to_owned();
    let output = doorstep(&["import-key", &key, "--name", server.name(), "--data", &into]);
    assert!(output.status.success(), "{}", said(&output));
    let output = doorstep(&["import-key", &key, "--name", "other.example", "--data", &into]);
    assert!(!output.status.success() && said(&output).contains("not of other.example"), "{}", said(&output));
    let again = doorstep(&["export-key", "-", "--data", &into]);
    assert_eq!(String::from_utf8_lossy(&again.stdout), text);
    let output = doorstep(&["vacuum", "--data", &into]);
    assert!(output.status.success(), "{}", said(&output));
    let output = doorstep(&["vacuum", "--data", &data]);
    assert!(!output.status.success() && said(&output).contains("in use"), "{}", said(&output));
}
