//! The commands of the operator: by the local socket of the server that runs, or without one. It is the same answer, and
//! nothing comes in between.

use std::fs::{self, Permissions};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use doorstep::testing::temporary_folder;
use serde_json::Value;

use crate::common::process::ProcessServer;

/// Whom nothing belongs to.
const NOBODY: u32 = 65_534;

fn command(folder: &Path, args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
    command.args(args).arg("--data").arg(folder).stdin(Stdio::null());
    command
}

fn told(output: &Output) -> String {
    format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr))
}

/// How many accounts the command finds.
fn accounts(folder: &Path) -> u64 {
    let output = command(folder, &["user", "list", "--json"]).output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
    answer["total"].as_u64().unwrap()
}

#[test]
fn a_command_reaches_the_server_that_runs_and_does_without_one_that_does_not() {
    let mut server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    let socket = folder.join("doorstep.sock");
    server.user("alice");
    let found = fs::metadata(&socket).unwrap();
    assert!(found.file_type().is_socket());
    assert_eq!(found.permissions().mode() & 0o777, 0o600);
    assert_eq!(accounts(&folder), 1);
    server.kill();
    assert!(socket.exists(), "who is killed cleans nothing up");
    assert_eq!(accounts(&folder), 1);
    server.resume();
    server.user("bob");
    assert_eq!(accounts(&folder), 2);
    server.terminate();
    assert!(server.wait_for_end(Duration::from_secs(20)));
    assert!(!socket.exists());
    assert_eq!(accounts(&folder), 2);
    let table = command(&folder, &["user", "list", "BO"]).output().unwrap();
    assert!(told(&table).contains("@bob:") && !told(&table).contains("@alice:"), "{}", told(&table));
}

#[test]
fn commands_that_come_at_once_or_while_the_server_starts_or_stops_are_all_answered() {
    let mut server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    server.user("alice");
    for _ in 0..3 {
        let ask = || {
            let mut command = command(&folder, &["user", "list", "--json"]);
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
        };
        server.terminate();
        let mut asked: Vec<_> = (0..4).map(|_| ask()).collect();
        assert!(server.wait_for_end(Duration::from_secs(20)));
        asked.extend((0..2).map(|_| ask()));
        for command in asked {
            let output = command.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", told(&output));
            let answer: Value = serde_json::from_slice(&output.stdout).unwrap();
            assert_eq!(answer["total"], 1, "{}", told(&output));
        }
        server.spawn();
        let asked: Vec<_> = (0..4).map(|_| ask()).collect();
        server.wait_until_ready();
        for command in asked {
            let output = command.wait_with_output().unwrap();
            assert!(output.status.success(), "{}", told(&output));
        }
    }
}

#[test]
fn another_user_of_the_machine_does_not_operate_the_server() {
    let server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    server.user("alice");
    // SAFETY: asks the kernel for a number, and touches no memory.
    let is_root = unsafe { libc::geteuid() } == 0;
    // Not root, who are nobody else: the mode of the socket is what there is to be seen.
    if !is_root {
        let mode = fs::metadata(folder.join("doorstep.sock")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
        return;
    }
    let program = temporary_folder("program");
    fs::set_permissions(&program, Permissions::from_mode(0o755)).unwrap();
    let program = program.join("doorstep");
    fs::copy(env!("CARGO_BIN_EXE_doorstep"), &program).unwrap();
    let ask_as_nobody = || {
        let mut command = Command::new(&program);
        command.args(["user", "list", "--data"]).arg(&folder).stdin(Stdio::null());
        command.uid(NOBODY).gid(NOBODY).current_dir("/").output().unwrap()
    };
    let (socket, open) = (folder.join("doorstep.sock"), Permissions::from_mode(0o777));
    // The folder is open to everybody, as somebody may have made it: then the socket itself is not.
    fs::set_permissions(&folder, open.clone()).unwrap();
    let refused = ask_as_nobody();
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(told(&refused).contains("not yours to open"), "{}", told(&refused));
    // And whoever opens it, however that came about, is looked at.
    fs::set_permissions(&socket, open).unwrap();
    let refused = ask_as_nobody();
    assert_eq!(refused.status.code(), Some(1), "{}", told(&refused));
    assert!(!told(&refused).contains("@alice"), "{}", told(&refused));
    assert_eq!(accounts(&folder), 1);
    fs::remove_dir_all(program.parent().unwrap()).unwrap();
}

#[test]
fn a_folder_whose_path_is_too_long_for_a_socket_is_served_and_reached_all_the_same() {
    let outer = temporary_folder("long");
    let folder = outer.join("x".repeat(200));
    let mut server = ProcessServer::start_in(folder.clone());
    server.user("alice");
    assert_eq!(accounts(&folder), 1);
    server.kill();
    assert_eq!(accounts(&folder), 1);
    drop(server);
    fs::remove_dir_all(&outer).unwrap();
}

#[test]
fn a_command_makes_no_server_where_there_is_none_and_says_what_was_wrong() {
    let empty = temporary_folder("empty");
    let there = empty.join("mistyped");
    for folder in [&empty, &there] {
        let output = command(folder, &["user", "list"]).output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert!(told(&output).contains("--data"), "{}", told(&output));
    }
    assert!(!there.exists());
    assert_eq!(fs::read_dir(&empty).unwrap().count(), 0);
    for (args, complaint) in [
        (&["user", "list", "--data"][..], "--data needs a value"),
        (&["user", "lst"], "did you mean doorstep user list?"),
        (&["user", "list", "--data", ":memory:"], "in memory"),
        (&["user", "list", "--config", "/nowhere.toml"], "/nowhere.toml"),
    ] {
        let output = Command::new(env!("CARGO_BIN_EXE_doorstep")).args(args).output().unwrap();
        assert_eq!(output.status.code(), Some(2), "{args:?}: {}", told(&output));
        assert!(told(&output).contains(complaint), "{args:?}: {}", told(&output));
    }
    fs::remove_dir_all(&empty).unwrap();
}
