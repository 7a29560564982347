//! The commands of the operator: by the local socket of the server that runs, or without one. It is the same answer, and
//! nothing comes in between.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use doorstep::testing::{TestUser, temporary_folder};
use serde_json::{Value, json};

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

/// A command that is given this on its standard input; what it says if it succeeds.
fn told_by(folder: &Path, args: &[&str], input: &str) -> String {
    let mut asked = command(folder, args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // Who reads nothing has ended by now, perhaps.
    let _ = asked.stdin.take().unwrap().write_all(input.as_bytes());
    let output = asked.wait_with_output().unwrap();
    assert!(output.status.success(), "{args:?}: {}", told(&output));
    told(&output)
}

fn log_in(server: &ProcessServer, name: &str, password: &str) -> (u16, Value) {
    let body = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": name }, "password": password });
    TestUser::new(&server.url(), "", "").request("POST", "/_matrix/client/v3/login", Some(body))
}

#[test]
fn accounts_and_tokens_are_made_and_changed_by_commands_with_and_without_a_server() {
    let mut server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    for runs in [true, false] {
        if !runs {
            server.kill();
        }
        let alice = format!("alice{}", u8::from(runs));
        let ask = |args: &[&str], input: &str| told_by(&folder, args, input);
        assert!(ask(&["user", "add", &alice, "--displayname", "Alice"], "pass word\n").contains("@alice"));
        let again = command(&folder, &["user", "add", &alice, "--generate"]).output().unwrap();
        assert!(!again.status.success() && told(&again).contains("taken"), "{}", told(&again));
        let made =
            ask(&["user", "add", &format!("bob{}", u8::from(runs)), "--admin", "--generate", "--json"], "");
        let made: Value = serde_json::from_str(&made).unwrap();
        assert_eq!(made["admin"], true);
        let listed = ask(&["user", "list"], "");
        assert!(listed.contains("Alice") && listed.contains("admin"), "{listed}");
        let token = ask(&["token", "add", "--expires", "7d", "--json"], "");
        let token: Value = serde_json::from_str(&token).unwrap();
        let name = token["name"].as_str().unwrap();
        let listed = ask(&["token", "list"], "");
        assert!(listed.contains(name) && !listed.contains(token["token"].as_str().unwrap()), "{listed}");
        ask(&["token", "revoke", name], "");
        assert!(!ask(&["token", "list"], "").contains(name));
        if !runs {
            server.resume();
        }
        let bob = made["name"].as_str().unwrap();
        assert_eq!(log_in(&server, bob, made["password"].as_str().unwrap()).0, 200);
        let (status, session) = log_in(&server, &alice, "pass word");
        assert_eq!(status, 200, "{session}");
        if !runs {
            server.kill();
        }
        let device = session["device_id"].as_str().unwrap();
        assert!(ask(&["user", "sessions", &alice], "").contains(device));
        ask(&["user", "logout", &alice, device], "");
        assert!(!ask(&["user", "sessions", &alice], "").contains(device));
        ask(&["user", "passwd", &alice, "--keep-sessions"], "another\r\n");
        ask(&["user", "admin", &alice], "");
        if !runs {
            ask(&["user", "admin", &alice, "--off"], "");
        }
        let asked = command(&folder, &["user", "deactivate", bob]).output().unwrap();
        assert_eq!(asked.status.code(), Some(2), "nobody was there to ask: {}", told(&asked));
        ask(&["user", "deactivate", bob, "--yes", "--erase"], "");
        if !runs {
            server.resume();
        }
        assert_eq!(log_in(&server, &alice, "another").0, 200);
        assert_eq!(log_in(&server, bob, made["password"].as_str().unwrap()).0, 403);
    }
}

#[test]
fn a_password_is_typed_at_a_terminal_that_does_not_show_it() {
    let server = ProcessServer::start(&[]);
    let (mut ours, mut theirs) = (-1, -1);
    let none = std::ptr::null_mut();
    // SAFETY: the kernel writes two descriptors to two live locals, and is given no name, no settings and no size.
    let opened = unsafe { libc::openpty(&raw mut ours, &raw mut theirs, none, none.cast(), none.cast()) };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both were just opened, and belong to nobody else.
    let (mut terminal, theirs) = unsafe { (File::from_raw_fd(ours), OwnedFd::from_raw_fd(theirs)) };
    let mut asked = command(server.folder(), &["user", "add", "alice"]);
    let mut asked = asked.stdin(theirs).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let mut errors = asked.stderr.take().unwrap();
    let mut wait_for = |prompt: &str| {
        let (mut seen, mut byte) = (Vec::new(), [0]);
        while !seen.ends_with(prompt.as_bytes()) {
            assert_eq!(errors.read(&mut byte).unwrap(), 1, "{}", String::from_utf8_lossy(&seen));
            seen.push(byte[0]);
        }
    };
    wait_for("Password for alice: ");
    terminal.write_all("geheim\u{fc}\u{7f}\r".as_bytes()).unwrap();
    wait_for("The same again: ");
    terminal.write_all(b"geheim\n").unwrap();
    let output = asked.wait_with_output().unwrap();
    assert!(output.status.success(), "{}", told(&output));
    assert_eq!(log_in(&server, "alice", "geheim").0, 200);
    // SAFETY: a plain system call on a descriptor that `terminal` keeps open.
    unsafe { libc::fcntl(terminal.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) };
    let mut shown = Vec::new();
    let _ = terminal.read_to_end(&mut shown);
    assert!(!String::from_utf8_lossy(&shown).contains("geheim"), "{shown:?}");
}

#[test]
fn a_command_says_soon_that_the_server_was_stopped_and_does_nothing() {
    let server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    server.user("alice");
    let pid = i32::try_from(server.pid().expect("it runs")).expect("a process");
    let signal = |signal| {
        // SAFETY: a signal to a child of ours that has not been waited for; touches no memory.
        assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
    };
    signal(libc::SIGSTOP);
    let backup = folder.join("b.tar");
    let asked = [
        &["user", "list"][..],
        &["user", "add", "bob", "--generate"],
        &["backup", backup.to_str().expect("a path")],
    ]
    .map(|args| {
        let mut command = command(&folder, args);
        command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap()
    });
    for asked in asked {
        let output = asked.wait_with_output().unwrap();
        assert_eq!(output.status.code(), Some(1), "{}", told(&output));
        assert!(told(&output).contains("SIGSTOP"), "{}", told(&output));
    }
    signal(libc::SIGCONT);
    assert_eq!(accounts(&folder), 1);
    assert!(!backup.exists());
}

#[test]
fn a_user_is_locked_suspended_and_logged_out_by_the_operator_who_is_told_what_was_done() {
    let server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    let _admin = server.user("admin");
    let bob = server.user("bob");
    let run = |args: &[&str]| command(&folder, args).output().expect("the command runs");
    let whoami = || bob.request("GET", "/_matrix/client/v3/account/whoami", None).0;
    for (verb, state) in [("lock", "locked"), ("suspend", "suspended")] {
        let done = run(&["user", verb, "bob"]);
        assert!(done.status.success() && told(&done).contains(&format!("is {state}\n")), "{}", told(&done));
        let list = told(&run(&["user", "list"]));
        assert!(list.lines().any(|line| line.contains("@bob:") && line.contains(state)), "{list}");
        assert_eq!(whoami(), if verb == "lock" { 401 } else { 200 });
        let undone = run(&["user", verb, "bob", "--off"]);
        assert!(told(&undone).contains(&format!("is {state} no more")), "{}", told(&undone));
        assert!(!told(&run(&["user", "list"])).contains(state));
    }
    let unknown = run(&["user", "logout", "bob", "NODEV"]);
    assert_eq!(unknown.status.code(), Some(1), "{}", told(&unknown));
    assert!(told(&unknown).contains("bob has no device NODEV"), "{}", told(&unknown));
    let nobody = run(&["user", "lock", "carol"]);
    assert_eq!(nobody.status.code(), Some(1), "{}", told(&nobody));
    assert!(told(&run(&["media", "list", "bob"])).contains("UPLOADED"));
    assert_eq!(run(&["media", "list", "carol"]).status.code(), Some(1));
    assert_eq!(whoami(), 200);
    let ended = run(&["user", "logout", "bob"]);
    assert!(told(&ended).contains("bob is logged out of 1 device"), "{}", told(&ended));
    assert_eq!(whoami(), 401);
}

#[test]
fn signing_keys_are_listed_beside_a_server_that_runs_and_replaced_without_one() {
    let mut server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    let run = |args: &[&str]| command(&folder, args).output().expect("the command runs");
    let listed = told(&run(&["keys", "list"]));
    assert!(listed.contains("ed25519:") && listed.contains("in use"), "{listed}");
    assert_eq!(run(&["keys", "rotate"]).status.code(), Some(1));
    server.kill();
    let rotated = told(&run(&["keys", "rotate"]));
    let of_keys = || rotated.lines().filter(|line| line.starts_with("ed25519:"));
    assert_eq!(of_keys().count(), 2, "{rotated}");
    assert_eq!(of_keys().filter(|line| line.ends_with("in use")).count(), 1, "{rotated}");
    assert!(of_keys().any(|line| line.contains(" 20") && line.ends_with('Z')), "with its date: {rotated}");
}
