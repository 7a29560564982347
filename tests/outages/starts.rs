//! What a start is told and tells: a name that is not fixed before somebody is served by it, a database of another state, a clock
//! that was set back, a certificate that nobody takes, a disk for backups that is not there; and what the operator did stands in
//! the log.

use std::fs;
use std::io::{BufRead, BufReader};
use std::net::TcpListener;
use std::path::{Path, PathBuf};

use doorstep::testing::certificates;
use rusqlite::Connection;

use crate::common::wait::wait_until;
use crate::terminal::{Scratch, Server, doorstep, outcome};

/// Whose server a start with these flags is.
fn name_of(data: &str, flags: &[&str]) -> String {
    let mut command = doorstep(&["serve", "--data", data, "--listen", "0"]);
    let mut child = command.args(flags).spawn().expect("the binary was built with the tests");
    let lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
    let first = { lines }.next().unwrap_or_default();
    child.kill().expect("a running child");
    child.wait().expect("an end");
    first.rsplit(' ').next().unwrap_or_default().to_owned()
}

/// The database of a server that ran once.
fn served(folder: &str) -> PathBuf {
    Server::start(Path::new(folder), |_| {}).stop();
    Path::new(folder).join("doorstep.db")
}

#[track_caller]
fn refused(args: &[&str], told: &str) {
    let (status, _, stderr) = outcome(&mut doorstep(args));
    assert_eq!(status, Some(1), "{args:?}: {stderr}");
    assert!(stderr.contains(told), "{args:?} should tell {told:?}: {stderr}");
}

#[track_caller]
fn check_tells(data: &str, told: &str) {
    let (status, findings, _) = outcome(&mut doorstep(&["check", "--data", data]));
    assert_eq!(status, Some(1), "{findings}");
    assert!(findings.contains(told), "should tell {told:?}: {findings}");
}

#[test]
fn a_name_is_fixed_by_the_first_account_and_no_earlier_and_need_not_be_said_again() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let keep = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let taken = keep.local_addr().expect("an address").to_string();
    refused(&["serve", "--data", &data, "--name", "a.example", "--listen", &taken], "Cannot listen on");
    assert_eq!(name_of(&data, &["--name", "b.example"]), "b.example");
    assert_eq!(name_of(&data, &[]), "b.example");
    assert_eq!(name_of(&data, &["--name", "c.example"]), "c.example");
    let made = outcome(&mut doorstep(&["user", "add", "alice", "--generate", "--data", &data]));
    assert_eq!(made.0, Some(0), "{made:?}");
    let start = ["serve", "--data", &data, "--listen", "0", "--name", "d.example"];
    refused(&start, "belongs to the server c.example, not to d.example");
    refused(&start, "--name c.example");
    assert_eq!(name_of(&data, &[]), "c.example");
}

#[test]
fn a_database_with_other_tables_than_this_program_asks_is_refused_at_the_start_and_found_by_check() {
    let scratch = Scratch::new();
    for change in ["DROP TABLE registration_tokens", "CREATE TABLE another (one INTEGER) STRICT"] {
        let data = scratch.path(&change[..4]);
        let database = Connection::open(served(&data)).expect("a database");
        database.execute_batch(change).expect("a change");
        drop(database);
        let before = fs::read(format!("{data}/doorstep.db")).expect("a database");
        refused(&["serve", "--data", &data, "--listen", "0"], "made by another state of Doorstep");
        for command in [&["vacuum"][..], &["user", "list"], &["stats"]] {
            let told = outcome(doorstep(command).args(["--data", &data]));
            assert!(told.0 == Some(1) && told.2.contains("nothing was changed"), "{command:?}: {told:?}");
        }
        let after = fs::read(format!("{data}/doorstep.db")).expect("a database");
        assert!(before == after, "nothing was changed");
        check_tells(&data, "made by another state of Doorstep");
    }
}

#[test]
fn a_malformed_database_is_called_so_and_what_makes_a_new_one_is_named() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let path = served(&data);
    let mut bytes = fs::read(&path).expect("a database");
    bytes[100..4096].fill(0xff);
    fs::write(&path, bytes).expect("written");
    check_tells(&data, "malformed");
    check_tells(&data, "doorstep restore");
    refused(&["serve", "--data", &data, "--listen", "0"], "doorstep restore");
}

#[test]
fn a_clock_that_was_set_back_is_told_of_at_the_start() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let is_told = |log: &[String]| log.iter().any(|line| line.contains("the clock says"));
    let path = served(&data);
    let log = Server::start(Path::new(&data), |_| {}).stop();
    assert!(!is_told(&log), "{log:#?}");
    let database = Connection::open(path).expect("a database");
    database.execute("UPDATE signing_keys SET made_ms = 4000000000000", []).expect("a change");
    drop(database);
    let log = Server::start(Path::new(&data), |_| {}).stop();
    assert!(is_told(&log), "{log:#?}");
}

#[test]
fn a_certificate_that_nobody_takes_is_told_of_at_the_start() {
    let scratch = Scratch::new();
    for (number, (names, years, told)) in [
        (&["localhost"][..], [2020, 2090], None),
        (&["localhost"], [2020, 2021], Some("it has expired, on 2021-01-01")),
        (&["localhost"], [2089, 2090], Some("it is not good before 2089-01-01")),
        (&["other.example"], [2020, 2090], Some("it is for other.example and not for localhost")),
    ]
    .into_iter()
    .enumerate()
    {
        let tls = certificates().issue(names, years);
        let data = scratch.path(&format!("data{number}"));
        let log = Server::start(Path::new(&data), |command| {
            command
                .args(["--listen-tls", "127.0.0.1:0", "--tls-cert"])
                .arg(&tls.cert)
                .arg("--tls-key")
                .arg(&tls.key);
        })
        .stop();
        let complaints: Vec<_> =
            log.iter().filter(|line| line.contains("do not take the certificate")).collect();
        assert_eq!(complaints.len(), usize::from(told.is_some()), "{told:?}: {log:#?}");
        assert!(told.is_none_or(|told| complaints[0].contains(told)), "{told:?}: {complaints:?}");
    }
}

#[test]
fn backups_are_not_made_where_their_disk_is_missing_and_the_start_says_so() {
    let scratch = Scratch::new();
    let (data, disk) = (scratch.path("data"), scratch.path("disk"));
    let server = Server::start(Path::new(&data), |command| {
        command.args(["--backup-to", &format!("{disk}/backups")]);
    });
    wait_until("it is said", || {
        server.log().iter().any(|line| line.contains("see that its disk is mounted"))
    });
    server.stop();
    assert!(!Path::new(&disk).exists(), "what is missing stays so");
    fs::create_dir(&disk).expect("a folder");
    let server = Server::start(Path::new(&data), |command| {
        command.args(["--backup-to", &format!("{disk}/backups")]);
    });
    wait_until("one is made", || server.log().iter().any(|line| line.contains("a backup of")));
    server.stop();
}

#[test]
fn what_the_operator_does_stands_in_the_log() {
    let scratch = Scratch::new();
    let data = scratch.path("data");
    let server = Server::start(Path::new(&data), |_| {});
    for (args, told) in [
        (&["room", "block", "!x:a.example"][..], "the operator has blocked !x:a.example"),
        (&["room", "block", "--undo", "!x:a.example"], "the operator has unblocked !x:a.example"),
        (&["room", "delete", "--block", "!x:a.example"], "the operator deletes !x:a.example, and blocks it"),
        (
            &["media", "quarantine", "mxc://a.example/x"],
            "the operator has quarantined the file mxc://a.example/x",
        ),
        (&["media", "delete", "--days", "1", "--larger", "5M"], "the operator has deleted 0 files"),
        (&["media", "delete", "--days", "1", "--remote"], "the operator has let go of 0 files"),
    ] {
        let (status, _, stderr) = outcome(doorstep(args).args(["--data", &data]));
        assert_eq!(status, Some(0), "{args:?}: {stderr}");
        wait_until("it is in the log", || server.log().iter().any(|line| line.contains(told)));
    }
    server.stop();
}
