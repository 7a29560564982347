//! What a person at a terminal is told, and what an operator finds in the log: the real binary, its exit status and its
//! standard error.

use std::fs;
use std::io::{BufRead, BufReader, Read};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::common::ProcessServer;
use crate::common::browser::Browser;
use doorstep::testing::{TestUser, certificates, segment, temporary_folder};
use serde_json::json;

/// What no person at a terminal wants to read.
const NOISE: &[&str] = &[
    "M_",
    "400",
    "404",
    "500",
    "invalid_param",
    "os error",
    "panicked",
    "Unrecognized argument",
    "Internal server error",
];

pub fn doorstep(args: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
    command.args(args).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.env_remove("DOORSTEP_LOG").env_remove("JOURNAL_STREAM");
    command
}

/// Exit status, standard output and standard error of a command that is to end by itself.
pub fn outcome(command: &mut Command) -> (Option<i32>, String, String) {
    let mut child = command.spawn().expect("the binary was built with the tests");
    let started = Instant::now();
    while child.try_wait().expect("a child can be asked").is_none() {
        if started.elapsed() > Duration::from_secs(60) {
            child.kill().expect("a running child can be killed");
            panic!("{command:?} goes on and on");
        }
        std::thread::park_timeout(Duration::from_millis(5));
    }
    let ended = child.wait_with_output().expect("its output is short");
    let text = |bytes: Vec<u8>| String::from_utf8(bytes).expect("text");
    (ended.status.code(), text(ended.stdout), text(ended.stderr))
}

/// A folder that goes with the test.
pub struct Scratch(pub PathBuf);

impl Scratch {
    pub fn new() -> Self {
        let folder = temporary_folder("terminal");
        fs::create_dir_all(&folder).expect("a folder");
        Self(folder)
    }

    pub fn path(&self, name: &str) -> String {
        self.0.join(name).to_str().expect("a path of text").to_owned()
    }

    pub fn file(&self, name: &str, text: &str) -> String {
        fs::write(self.0.join(name), text).expect("a file");
        self.path(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.0);
    }
}

/// A server with its log, line by line.
pub struct Server {
    child: Child,
    log: Arc<Mutex<Vec<String>>>,
    url: String,
}

impl Server {
    pub fn start(folder: &Path, prepare: impl FnOnce(&mut Command)) -> Self {
        let folder = folder.to_str().expect("a path of text");
        let mut command = doorstep(&["serve", "--data", folder, "--listen", "0", "--registration", "open"]);
        command.args(["--no-rate-limits", "--allow-private-addresses"]);
        prepare(&mut command);
        let mut child = command.spawn().expect("the binary was built with the tests");
        let mut greeting = BufReader::new(child.stdout.take().expect("piped"));
        let url = loop {
            let mut line = String::new();
            assert!(greeting.read_line(&mut line).expect("text") > 0, "it ended");
            if line.trim().starts_with("http://") {
                break line.trim().to_owned();
            }
        };
        let log = Arc::<Mutex<Vec<String>>>::default();
        if let Some(stderr) = child.stderr.take() {
            let log = log.clone();
            std::thread::spawn(move || {
                for line in BufReader::new(stderr).lines().map_while(Result::ok) {
                    log.lock().expect("no panic").push(line);
                }
            });
        }
        std::thread::spawn(move || std::io::copy(&mut greeting, &mut std::io::sink()));
        Self { child, log, url }
    }

    pub fn log(&self) -> Vec<String> {
        self.log.lock().expect("no panic").clone()
    }

    fn get(&self, path: &str) -> u16 {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        agent.get(format!("{}{path}", self.url)).call().expect("an answer").status().as_u16()
    }

    /// Stops it; gives all that it logged.
    pub fn stop(mut self) -> Vec<String> {
        signal(self.child.id(), libc::SIGTERM);
        self.child.wait().expect("a child can be waited for");
        let started = Instant::now();
        while !self.log().iter().any(|line| line.contains("stopping")) && self.log().len() < 10_000 {
            assert!(started.elapsed() < Duration::from_secs(10), "no last line: {:?}", self.log());
            std::thread::yield_now();
        }
        self.log()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

pub fn signal(pid: u32, signal: libc::c_int) {
    let pid = libc::pid_t::try_from(pid).expect("a process id");
    // SAFETY: a plain system call; the child was not waited for, so its id is still its own.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0);
}

#[test]
fn what_cannot_be_meant_is_answered_with_what_may_be_and_status_2() {
    let scratch = Scratch::new();
    let not_toml = scratch.file("not.toml", "name: example.org\n");
    let wrong_type = scratch.file("type.toml", "listen = 8008\n");
    let unknown_key = scratch.file("key.toml", "listn = [\"8008\"]\n");
    let wrong_value = scratch.file("value.toml", "registration = \"opn\"\n");
    let twice = scratch.file("twice.toml", "name = \"a.example\"\nname = \"b.example\"\n");
    let missing = scratch.path("missing.toml");
    // As the package brings it.
    let unnamed = scratch.file("unnamed.toml", include_str!("../../packaging/doorstep.toml"));
    let cases: &[(&[&str], &[&str])] = &[
        (&[], &["doorstep serve", "doorstep --help"]),
        (&["sevre"], &["\"sevre\"", "did you mean doorstep serve?"]),
        (&["Serve"], &["did you mean doorstep serve?"]),
        (&["start"], &["\"start\"", "doorstep --help"]),
        (&["--verison"], &["did you mean --version?"]),
        (&["--listen", "8008"], &["did you mean doorstep serve --listen?"]),
        (&["serve", "--lisen", "x"], &["--lisen", "did you mean --listen?", "doorstep serve --help"]),
        (&["serve", "--tls-certificate", "x"], &["did you mean --tls-cert?"]),
        (&["serve", "stray"], &["\"stray\""]),
        (&["serve", "--name"], &["--name needs a value"]),
        (&["serve", "--name", "not a name"], &["--name \"not a name\"", "example.org"]),
        (&["serve", "--name", "a.example", "--name", "b.example"], &["--name is given twice"]),
        (&["serve", "--name", "Example.ORG"], &["--name \"Example.ORG\"", "write example.org"]),
        (&["serve", "--config", &unnamed], &["name = \"\"", "configuration file", "this server's name"]),
        (&["serve", "--acme", "--listen-tls", "0"], &["--acme", "localhost"]),
        (&["serve", "--trust-proxy", "10.0.0.0/40"], &["--trust-proxy", "172.18.0.0/16"]),
        (&["serve", "--listen", "127.0.0.1"], &["--listen", "127.0.0.1:8008"]),
        (&["serve", "--listen", "70000"], &["--listen", "65535"]),
        (&["serve", "--listen", "::1"], &["--listen", "[::1]:8008"]),
        (&["serve", "--listen-tls", "0"], &["--tls-cert", "--tls-key"]),
        (&["serve", "--max-connections", "many"], &["--max-connections \"many\"", "whole number"]),
        (&["serve", "--registration", "maybe"], &["open, token or closed"]),
        (&["serve", "--default-room-version", "13"], &["1 to 12"]),
        (&["serve", "--public-url", "example.org"], &["--public-url", "https://"]),
        (&["serve", "--notary", "https://x"], &["--notary", "server name"]),
        (&["serve", "--deny-server", "example.org:8448"], &["--deny-server", "write example.org"]),
        (&["serve", "--allow-server", ""], &["--allow-server \"\"", "*.example.org"]),
        (&["serve", "--config", &missing], &["missing.toml", "cannot be read"]),
        (&["serve", "--config", &not_toml], &["not.toml", "not TOML", "line 1"]),
        (&["serve", "--config", &wrong_type], &["type.toml", "listen", "list"]),
        (&["serve", "--config", &unknown_key], &["key.toml", "listn", "Did you mean listen?"]),
        (&["serve", "--config", &wrong_value], &["registration", "\"opn\"", "open, token or closed"]),
        (&["serve", "--config", &twice], &["twice.toml", "name"]),
        (&["fixture", "--user", "a"], &["did you mean --users?", "doorstep fixture --help"]),
        (&["fixture", "--users"], &["--users needs a value"]),
        (&["fixture", "--users", "a", "--users", "b"], &["--users is given twice"]),
        (&["fixture", "stray"], &["\"stray\""]),
        (&["fixture", "--port", "99999"], &["--port", "99999", "is too large"]),
        (&["fixture", "--port", "many"], &["--port", "should be a whole number"]),
        (&["token", "add", "--uses", "0"], &["--uses \"0\"", "from 1 on"]),
        (&["room", "list", "--by", "foo"], &["--by \"foo\"", "name, members"]),
        (&["media", "delete", "--days", "1", "--larger", "much"], &["--larger", "100M"]),
        (&["keys"], &["list or rotate", "doorstep keys --help"]),
        (&["keys", "rotat"], &["did you mean doorstep keys rotate?"]),
        (&["routes", "--markdwn"], &["did you mean --markdown?"]),
    ];
    for (args, told) in cases {
        let (status, stdout, stderr) = outcome(&mut doorstep(args));
        assert_eq!((status, stdout.as_str()), (Some(2), ""), "{args:?}: {stderr}");
        assert!(stderr.starts_with("doorstep: "), "{args:?}: {stderr}");
        told.iter()
            .for_each(|told| assert!(stderr.contains(told), "{args:?} should tell {told:?}: {stderr}"));
        NOISE.iter().for_each(|noise| assert!(!stderr.contains(noise), "{args:?} tells {noise:?}: {stderr}"));
    }
    let (status, _, stderr) = outcome(doorstep(&["routes"]).env("DOORSTEP_LOG", "debgu"));
    assert_eq!(status, Some(2), "{stderr}");
    assert!(stderr.contains("DOORSTEP_LOG") && stderr.contains("did you mean debug?"), "{stderr}");
}

#[test]
fn what_cannot_be_done_is_told_with_the_cause_once_and_what_to_do_and_status_1() {
    let scratch = Scratch::new();
    let file = scratch.file("a-file", "");
    let below_file = scratch.path("a-file/below");
    let fresh = scratch.path("fresh");
    let empty = scratch.path("empty");
    let keep = TcpListener::bind("127.0.0.1:0").expect("a free port");
    let in_use = keep.local_addr().expect("an address").to_string();
    let locked = scratch.path("locked");
    let server = Server::start(Path::new(&locked), |_| {});
    let other = rcgen::generate_simple_self_signed(vec!["localhost".into()]).expect("a certificate");
    let other_key = scratch.file("other.key", &other.signing_key.serialize_pem());
    let files = certificates();
    let cert = files.cert.to_str().expect("a path of text");
    let missing = scratch.path("missing.pem");
    let tls = |cert: &str, key: &str| -> Vec<String> {
        let args = ["serve", "--data", ":memory:", "--listen-tls", "0", "--tls-cert", cert, "--tls-key", key];
        args.map(str::to_owned).to_vec()
    };
    let plain = |args: &[&str]| -> Vec<String> { args.iter().map(|&arg| arg.to_owned()).collect() };
    let cases: Vec<(Vec<String>, &[&str])> = vec![
        (
            plain(&["serve", "--data", &fresh, "--listen", &in_use]),
            &["Cannot listen on", "another program", "another address"],
        ),
        (
            plain(&["serve", "--data", ":memory:", "--listen", "192.0.2.1:0"]),
            &["Cannot listen on 192.0.2.1", "no such address"],
        ),
        (plain(&["serve", "--data", &file]), &["a-file", "a file is in its way"]),
        (plain(&["serve", "--data", &below_file]), &["a-file", "a file is in its way"]),
        (plain(&["serve", "--data", "/proc/doorstep"]), &["/proc/doorstep"]),
        (plain(&["serve", "--data", &locked, "--listen", "0"]), &["in use by another Doorstep", "--data"]),
        (plain(&["keys", "--data", &locked, "rotate"]), &["in use by another Doorstep", "stop that one"]),
        (tls(&missing, &missing), &["certificate", "missing.pem", "cannot be read"]),
        (tls(cert, &missing), &["private key", "missing.pem", "cannot be read"]),
        (tls(&file, &other_key), &["no certificate", "a-file"]),
        (tls(cert, &file), &["no private key", "a-file"]),
        (tls(cert, &other_key), &["other.key does not belong to the certificate"]),
        (plain(&["serve", "--data", ":memory:", "--trust-ca", &missing]), &["--trust-ca", "missing.pem"]),
        (plain(&["keys", "--data", &empty, "list"]), &["empty/doorstep.db", "missing"]),
        (plain(&["user", "add", "--data", &empty, "carol"]), &["there is no server in"]),
    ];
    for (args, told) in cases {
        let args: Vec<&str> = args.iter().map(String::as_str).collect();
        let (status, _, stderr) = outcome(&mut doorstep(&args));
        assert_eq!(status, Some(1), "{args:?}: {stderr}");
        let complaint = stderr.lines().find(|line| line.starts_with("doorstep: ")).unwrap_or_default();
        told.iter()
            .for_each(|told| assert!(complaint.contains(told), "{args:?} should tell {told:?}: {stderr}"));
        // A port may have any digits.
        let words = complaint.replace(&in_use, "");
        NOISE.iter().for_each(|noise| assert!(!words.contains(noise), "{args:?} tells {noise:?}: {stderr}"));
        let once = complaint.matches("No such file").count() + complaint.matches("File exists").count();
        assert!(once <= 1, "the cause is told more than once: {complaint}");
    }
    server.stop();
}

#[test]
fn help_and_version_are_no_errors() {
    for args in [
        &["--help"][..],
        &["-h"],
        &["help"],
        &["serve", "--help"],
        &["help", "serve"],
        &["serve", "-h"],
        &["user", "-h"],
    ] {
        let (status, stdout, stderr) = outcome(&mut doorstep(args));
        assert_eq!((status, stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(stdout.starts_with("Usage: doorstep"), "{args:?}: {stdout}");
    }
    for args in ["--version", "version", "-V"] {
        let (status, stdout, _) = outcome(&mut doorstep(&[args]));
        assert_eq!((status, stdout.trim()), (Some(0), concat!("doorstep ", env!("CARGO_PKG_VERSION"))));
    }
    // Who reads only the first lines is no reason to complain.
    let mut child = doorstep(&["routes"]).spawn().expect("the binary was built with the tests");
    drop(child.stdout.take());
    let mut stderr = String::new();
    child.stderr.take().expect("piped").read_to_string(&mut stderr).expect("text");
    assert_eq!((child.wait().expect("an end").code(), stderr.as_str()), (Some(0), ""));
}

#[test]
fn a_port_alone_is_listened_on_at_this_machine_and_with_a_colon_everywhere() {
    let scratch = Scratch::new();
    for (given, shown) in [
        ("0", &["http://127.0.0.1:"][..]),
        (":0", &["http://[::1]:", "http://127.0.0.1:"]),
        ("0.0.0.0:0", &["http://127.0.0.1:"]),
        ("[::1]:0", &["http://[::1]:"]),
    ] {
        if given == "[::1]:0" && TcpListener::bind(given).is_err() {
            continue;
        }
        let folder = scratch.path(&format!("port-{}", given.replace(|c: char| !c.is_alphanumeric(), "_")));
        let mut child = doorstep(&["serve", "--data", &folder, "--listen", given]).spawn().expect("a binary");
        let mut lines = BufReader::new(child.stdout.take().expect("piped")).lines().map_while(Result::ok);
        let line = lines.find(|line| line.contains("://")).unwrap_or_default();
        // What is shown can be pasted into a client.
        let address = line.split_whitespace().next().unwrap_or_default().trim_start_matches("http://");
        let port: u16 = address.rsplit(':').next().and_then(|port| port.parse().ok()).unwrap_or_default();
        let reached = std::net::TcpStream::connect(address).is_ok()
            && (std::net::TcpStream::connect(("127.0.0.1", port)).is_ok() || given == "[::1]:0");
        child.kill().expect("a running child");
        child.wait().expect("an end");
        assert!(shown.iter().any(|shown| line.trim().starts_with(shown)), "{given}: {line:?}");
        assert!(reached, "{given}: {line:?}");
    }
}

#[test]
fn who_probes_a_server_fills_no_log() {
    let scratch = Scratch::new();
    let probe = |server: &Server| {
        for path in ["/wp-login.php", "/_matrix/client/v3/nothing", "/_matrix/client/v3/sync", "/.env"] {
            assert!(server.get(path) >= 400, "{path}");
        }
        // And one who does not even speak HTTP.
        let address = server.url.trim_start_matches("http://");
        let mut socket = std::net::TcpStream::connect(address).expect("a connection");
        std::io::Write::write_all(&mut socket, b"\x16\x03\x01 hello\r\n\r\n").expect("sent");
        let _ = socket.read_to_end(&mut Vec::new());
    };
    let server = Server::start(&scratch.0.join("quiet"), |_| {});
    probe(&server);
    let log = server.stop();
    assert!(!log.iter().any(|line| line.contains("/wp-login") || line.contains("refused")), "{log:#?}");
    let server = Server::start(&scratch.0.join("loud"), |command| {
        command.env("DOORSTEP_LOG", "debug");
    });
    probe(&server);
    let log = server.stop();
    assert!(log.iter().any(|line| line.starts_with("debug") && line.contains("/wp-login.php")), "{log:#?}");
}

#[test]
fn the_journal_is_told_priorities_and_no_time() {
    use std::os::unix::fs::MetadataExt;
    let scratch = Scratch::new();
    for is_journal in [true, false] {
        let path = scratch.file("journal", "");
        let file = fs::File::options().append(true).open(&path).expect("a file");
        let data = file.metadata().expect("its data");
        let stream = format!("{}:{}", data.dev(), data.ino() + u64::from(!is_journal));
        let server = Server::start(&scratch.0.join("data"), |command| {
            command.env("JOURNAL_STREAM", stream).stderr(file);
        });
        signal(server.child.id(), libc::SIGTERM);
        let mut server = server;
        server.child.wait().expect("an end");
        let log = fs::read_to_string(&path).expect("a log");
        let begin = if is_journal { "<6>info " } else { "info " };
        assert!(!log.is_empty() && log.lines().all(|line| line.starts_with(begin)), "{log}");
    }
}

#[test]
fn a_terminal_is_told_the_time() {
    let scratch = Scratch::new();
    let (mut main, mut side) = (0, 0);
    // SAFETY: two descriptors are written to where the pointers lead; no name, settings or size is asked for.
    let opened = unsafe {
        libc::openpty(&mut main, &mut side, std::ptr::null_mut(), std::ptr::null_mut(), std::ptr::null_mut())
    };
    assert_eq!(opened, 0, "{}", std::io::Error::last_os_error());
    // SAFETY: both were just opened and belong to nobody else.
    let (main, side) = unsafe {
        use std::os::fd::FromRawFd;
        (fs::File::from_raw_fd(main), fs::File::from_raw_fd(side))
    };
    let mut server = Server::start(&scratch.0.join("data"), |command| {
        command.stderr(side);
    });
    signal(server.child.id(), libc::SIGTERM);
    let mut line = String::new();
    BufReader::new(main).read_line(&mut line).expect("a line");
    server.child.wait().expect("an end");
    let shape: String = line.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    assert!(shape.starts_with("0000-00-00 00:00:00Z info "), "{line:?}");
}

/// A file size limit makes every write fail, as a full disk or a quota does.
#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_one_line_when_it_fills_and_one_when_it_is_over() {
    use std::os::unix::process::CommandExt;
    let scratch = Scratch::new();
    let server = Server::start(&scratch.0.join("data"), |command| {
        // SAFETY: the closure makes one system call that is safe between fork and exec.
        unsafe {
            command.pre_exec(|| {
                libc::signal(libc::SIGXFSZ, libc::SIG_IGN);
                Ok(())
            });
        }
    });
    let let_files_grow = |may: bool| {
        let pid = libc::pid_t::try_from(server.child.id()).expect("a process id");
        let most = if may { libc::RLIM_INFINITY } else { 0 };
        let limit = libc::rlimit { rlim_cur: most, rlim_max: libc::RLIM_INFINITY };
        // SAFETY: the kernel reads one live `rlimit`, and is asked to write none.
        let set = unsafe { libc::prlimit(pid, libc::RLIMIT_FSIZE, &limit, std::ptr::null_mut()) };
        assert_eq!(set, 0, "{}", std::io::Error::last_os_error());
    };
    let alice = TestUser::register(&server.url, "alice");
    let room = alice.create_room();
    let of_disk = || -> Vec<String> {
        let log = server.log().into_iter();
        log.filter(|line| ["disk", "Internal", "507", "500"].iter().any(|word| line.contains(word))).collect()
    };
    for round in 1..=2 {
        let_files_grow(false);
        for n in 0..30 {
            let path = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/{round}-{n}", segment(&room));
            let (status, answer) =
                alice.request("PUT", &path, Some(json!({ "msgtype": "m.text", "body": "x" })));
            assert_eq!(status, 507, "{answer}");
            let presence = format!("/_matrix/client/v3/presence/{}/status", segment(alice.id()));
            alice.request(
                "PUT",
                &presence,
                Some(json!({ "presence": "online", "status_msg": n.to_string() })),
            );
            let invite = format!("/_matrix/client/v3/rooms/{}/invite", segment(&room));
            alice.request("POST", &invite, Some(json!({ "user_id": "@bob:127.0.0.1:1" })));
        }
        let lines = of_disk();
        assert_eq!(lines.len(), 2 * round - 1, "{lines:#?}");
        assert!(
            lines[2 * round - 2].starts_with("error") && lines[2 * round - 2].contains("disk"),
            "{lines:#?}"
        );
        let_files_grow(true);
        let started = Instant::now();
        while of_disk().len() < 2 * round {
            assert!(
                started.elapsed() < Duration::from_secs(60),
                "it is never said to be over: {:#?}",
                server.log()
            );
            alice.send(&room, "after");
        }
        let lines = of_disk();
        assert_eq!(lines.len(), 2 * round, "{lines:#?}");
        assert!(
            lines[2 * round - 1].starts_with("error") && lines[2 * round - 1].contains("again"),
            "{lines:#?}"
        );
    }
    server.stop();
}

#[test]
fn administrators_are_shown_the_end_of_the_log_and_no_secrets_in_it() {
    let server = ProcessServer::start(&["--registration-secret", "the-registration-secret"]);
    let (admin, bob) = (server.user("admin"), server.user("bob-the-locked"));
    let path = format!("/_matrix/client/v1/admin/lock/{}", bob.id());
    admin.put(&path, json!({ "locked": true }));
    // What is refused may be told of, but never with what was sent.
    let guess = json!({ "type": "m.login.password", "password": "a-wrong-password",
        "identifier": { "type": "m.id.user", "user": "admin" } });
    let _ = admin.request("POST", "/_matrix/client/v3/login", Some(guess));
    let _ = admin.request("GET", "/_matrix/client/v3/sync?access_token=a-made-up-token", None);
    let mut browser = Browser::logged_in(&server.url(), "admin", "admin");
    let cookie = browser.cookies["doorstep"].clone();
    let page = browser.get("/page/server");
    let (_, log) = page.text.split_once("The last lines of the log").expect("a log");
    assert!(log.contains(&format!("{} has made {} locked: true", admin.id(), bob.id())), "{log}");
    for secret in [
        admin.token(),
        bob.token(),
        &cookie,
        "the-registration-secret",
        "a-wrong-password",
        "a-made-up-token",
    ] {
        assert!(!log.contains(secret), "{log}");
    }
}
