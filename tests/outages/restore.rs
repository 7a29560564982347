//! A server is made of a backup by the command: as it comes, once only, and whatever became of the one before.

use std::io::Write;
use std::path::Path;
use std::process::{Command, Output, Stdio};

use crate::backup::{Backups, doorstep, said};
use crate::common::ProcessServer;
use crate::common::wait::wait_until;

/// Restores what comes from standard input.
fn restored_from(bytes: &[u8], data: &Path) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
    command.args(["restore", "-", "--data"]).arg(data);
    command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
    let mut child = command.spawn().expect("it starts");
    // Who has seen enough reads no further.
    let _ = child.stdin.take().expect("a pipe").write_all(bytes);
    child.wait_with_output().expect("it ends")
}

#[test]
fn a_backup_is_restored_as_it_comes_and_one_that_breaks_off_leaves_nothing() {
    let server = ProcessServer::start(&[]);
    let room = server.user("alice").create_room();
    let backups = Backups::new();
    let (file, data) = (backups.file("b.tar"), backups.file("data"));
    // As somebody who was killed leaves it.
    std::fs::write(backups.file("b.tar.abcdefgh.new"), b"half").expect("written");
    let folder = server.folder().to_str().expect("a path");
    let output = doorstep(&["backup", file.to_str().expect("a path"), "--data", folder]);
    assert!(output.status.success(), "{}", said(&output));
    assert_eq!(backups.names(), ["b.tar"], "nothing stays of what was begun before");
    let whole = std::fs::read(&file).expect("a backup");
    let mut altered = whole.clone();
    let middle = whole.len() / 2;
    altered[middle] ^= 1;
    for bytes in [&whole[..0], &whole[..3000], &whole[..middle], &whole[..whole.len() - 1600], &altered] {
        let output = restored_from(bytes, &data);
        assert_eq!(output.status.code(), Some(1), "{}", said(&output));
        assert!(!data.exists(), "{} bytes of {}", bytes.len(), whole.len());
    }
    let output = restored_from(&whole, &data);
    assert!(output.status.success(), "{}", said(&output));
    let database = rusqlite::Connection::open(data.join("doorstep.db")).expect("it is a database");
    let rooms: String =
        database.query_row("SELECT room_id FROM rooms", [], |row| row.get(0)).expect("a room");
    assert_eq!(rooms, room);
    assert_eq!(restored_from(&whole, &data).status.code(), Some(1), "there is a server now");
}

/// Whether a restore has begun to write into its folder.
fn is_half_restored(data: &Path) -> bool {
    std::fs::metadata(data.join("restore.new/doorstep.db")).is_ok_and(|database| database.len() > 0)
}

#[test]
fn what_a_killed_restore_left_goes_with_the_next_one_and_nothing_else_does() {
    let server = ProcessServer::start(&[]);
    let room = server.user("alice").create_room();
    let backups = Backups::new();
    let (file, data) = (backups.file("b.tar"), backups.file("data"));
    let folder = server.folder().to_str().expect("a path");
    let output = doorstep(&["backup", file.to_str().expect("a path"), "--data", folder]);
    assert!(output.status.success(), "{}", said(&output));
    let whole = std::fs::read(&file).expect("a backup");
    let killed = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
        command.args(["restore", "-", "--data"]).arg(&data).stdin(Stdio::piped());
        let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("it starts");
        let mut pipe = child.stdin.take().expect("a pipe");
        pipe.write_all(&whole[..whole.len() / 2]).expect("it reads");
        wait_until("it has begun", || is_half_restored(&data));
        // Another one beside it does not take its folder away.
        let beside = restored_from(&whole, &data);
        assert!(!beside.status.success() && said(&beside).contains("in use"), "{}", said(&beside));
        child.kill().and_then(|()| child.wait()).expect("it is killed");
    };
    killed();
    assert!(is_half_restored(&data), "that is what a kill leaves");
    let data_text = data.to_str().expect("a path");
    let served =
        doorstep(&["serve", "--data", data_text, "--name", server.name(), "--listen", "127.0.0.1:0"]);
    assert!(!served.status.success(), "no new server is begun in it: {}", said(&served));
    // What somebody has put there is theirs.
    std::fs::write(data.join("letter"), b"precious").expect("written");
    let output = doorstep(&["restore", file.to_str().expect("a path"), "--data", data_text]);
    assert!(!output.status.success() && said(&output).contains("letter"), "{}", said(&output));
    assert!(is_half_restored(&data));
    std::fs::remove_file(data.join("letter")).expect("removed");
    // A folder of that name in one where no restore was begun is somebody's too.
    let other = backups.file("other");
    std::fs::create_dir_all(other.join("restore.new")).expect("a folder");
    let output = restored_from(&whole, &other);
    assert!(!output.status.success() && said(&output).contains("restore.new"), "{}", said(&output));
    // One that is damaged leaves an empty folder, and a whole one the server.
    let output = restored_from(&whole[..whole.len() - 1600], &data);
    assert_eq!(output.status.code(), Some(1), "{}", said(&output));
    assert_eq!(std::fs::read_dir(&data).expect("a folder").count(), 0);
    killed();
    let output = doorstep(&["restore", file.to_str().expect("a path"), "--data", data_text]);
    assert!(output.status.success(), "{}", said(&output));
    assert!(!data.join("restore.new").exists());
    let database = rusqlite::Connection::open(data.join("doorstep.db")).expect("it is a database");
    let rooms: String =
        database.query_row("SELECT room_id FROM rooms", [], |row| row.get(0)).expect("a room");
    assert_eq!(rooms, room);
}

#[test]
fn a_restore_takes_a_dash_for_standard_input_where_the_backup_is_named_and_nowhere_else() {
    for args in [
        &["restore", "-", "--data", "-"][..],
        &["restore", "--data", "-"],
        &["restore", "-", "--config", "-"],
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_doorstep"))
            .args(args)
            .stdin(Stdio::null())
            .output()
            .expect("the binary was built with the tests");
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", said(&output));
        assert!(!said(&output).contains("/dev/stdin"), "{args:?}: {}", said(&output));
    }
    assert!(!Path::new("-").exists());
}
