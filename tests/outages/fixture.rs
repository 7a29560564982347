//! `doorstep fixture` as a test in another language has it: a process, its standard input, its standard output. However it
//! ends, nothing of it is left.

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::net::TcpListener;
use std::os::fd::AsRawFd;
use std::path::PathBuf;
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

use doorstep::testing::TestUser;
use serde_json::{Value, json};

use crate::common::process::free_port;
use crate::terminal::{Scratch, doorstep, outcome};

/// A fixture, with both ends of the pipe.
struct Fixture {
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: BufReader<ChildStdout>,
    /// Its first line.
    told: Value,
}

impl Fixture {
    fn start(args: &[&str]) -> Self {
        Self::of(doorstep(&["fixture"]).args(args))
    }

    fn of(command: &mut Command) -> Self {
        let mut child = command.stdin(Stdio::piped()).stderr(Stdio::null()).spawn().expect("the binary");
        let stdin = child.stdin.take();
        let stdout = BufReader::new(child.stdout.take().expect("a pipe"));
        let mut fixture = Self { child, stdin, stdout, told: Value::Null };
        fixture.told = fixture.line();
        fixture
    }

    fn line(&mut self) -> Value {
        let mut line = String::new();
        self.stdout.read_line(&mut line).expect("a line of text");
        serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line:?}"))
    }

    fn write(&mut self, text: &[u8]) {
        self.stdin.as_mut().expect("an open pipe").write_all(text).expect("somebody reads");
    }

    /// What a command is answered.
    fn order(&mut self, line: &str) -> Value {
        self.write(format!("{line}\n").as_bytes());
        self.line()
    }

    fn done(&mut self, line: &str) -> Value {
        let answer = self.order(line);
        assert_eq!(answer["ok"], true, "{line}: {answer}");
        answer
    }

    fn refused(&mut self, line: &str) -> String {
        let answer = self.order(line);
        assert_eq!(answer["ok"], false, "{line}: {answer}");
        answer["error"].as_str().expect("a sentence").to_owned()
    }

    /// An account of the server with this number from 0.
    fn user(&self, server: usize, name: &str) -> TestUser {
        let server = &self.told["servers"][server];
        user_of(server["url"].as_str().expect("an address"), &server["users"][name])
    }

    fn name(&self, server: usize) -> String {
        self.told["servers"][server]["name"].as_str().expect("a name").to_owned()
    }

    fn pid(&self) -> libc::pid_t {
        libc::pid_t::try_from(self.child.id()).expect("a process id")
    }
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.stdin = None;
        let _ = self.child.wait();
    }
}

fn user_of(url: &str, told: &Value) -> TestUser {
    let text = |key: &str| told[key].as_str().unwrap_or_else(|| panic!("no {key} in {told}"));
    TestUser::new(url, text("user_id"), text("access_token"))
}

fn send(pid: libc::pid_t, signal: libc::c_int) {
    // SAFETY: a plain system call, for a process that this test has started and not waited for.
    assert_eq!(unsafe { libc::kill(pid, signal) }, 0, "{}", std::io::Error::last_os_error());
}

fn until(what: &str, mut is_so: impl FnMut() -> bool) {
    let began = Instant::now();
    while !is_so() {
        assert!(began.elapsed() < Duration::from_secs(60), "{what}: not so after a minute");
        std::thread::yield_now();
    }
}

/// What a process of this id has on the disk, or in the memory that looks like one, under names of ours.
fn left_by(pid: libc::pid_t) -> Vec<PathBuf> {
    let folders = [std::env::temp_dir(), PathBuf::from("/dev/shm")];
    let entries = folders.iter().filter_map(|folder| fs::read_dir(folder).ok()).flatten().flatten();
    let ours = |name: &str| name.starts_with("doorstep-") && name.contains(&format!("-{pid}-"));
    entries.filter(|entry| entry.file_name().to_str().is_some_and(ours)).map(|entry| entry.path()).collect()
}

#[test]
fn nothing_is_left_of_a_fixture_however_it_ends() {
    type End = fn(&mut Fixture);
    let ends: [(&str, End); 5] = [
        ("its standard input closes", |fixture| fixture.stdin = None),
        ("it is told to quit", |fixture| fixture.write(b"quit\n")),
        ("SIGTERM", |fixture| send(fixture.pid(), libc::SIGTERM)),
        ("SIGINT", |fixture| send(fixture.pid(), libc::SIGINT)),
        ("SIGKILL", |fixture| send(fixture.pid(), libc::SIGKILL)),
    ];
    for (how, end) in ends {
        let mut fixture = Fixture::start(&["--users", "alice", "--servers", "2"]);
        let alice = fixture.user(0, "alice");
        alice.create_room();
        alice.request("POST", "/_matrix/media/v3/upload", Some(json!("a file")));
        assert_eq!(left_by(fixture.pid()), Vec::<PathBuf>::new(), "while it runs");
        end(&mut fixture);
        until(how, || fixture.child.try_wait().expect("a child can be asked").is_some());
        assert_eq!(left_by(fixture.pid()), Vec::<PathBuf>::new(), "{how}");
    }
}

#[test]
fn a_fixture_ends_with_the_process_that_started_it_also_if_that_is_killed() {
    let binary = env!("CARGO_BIN_EXE_doorstep");
    // With its standard input from who is killed; and from nobody, for ever.
    for script in ["sleep 600 | \"$0\" fixture & wait", "\"$0\" fixture --forever < /dev/null & wait"] {
        let mut shell = Command::new("sh");
        let mut shell = Fixture::of(shell.args(["-c", script, binary]).stdout(Stdio::piped()));
        let url = shell.told["url"].as_str().expect("an address").to_owned();
        let address = url.trim_start_matches("http://").to_owned();
        assert!(std::net::TcpStream::connect(&address).is_ok());
        let children = fs::read_to_string(format!("/proc/{0}/task/{0}/children", shell.pid()));
        send(shell.pid(), libc::SIGKILL);
        if script.starts_with("sleep") {
            // The pipe's other end is the sleeper's, which its parent took along in a real test.
            let pids = children.expect("children").split_whitespace().map(str::to_owned).collect::<Vec<_>>();
            let is_sleeper = |pid: &&String| {
                fs::read_to_string(format!("/proc/{pid}/comm")).is_ok_and(|name| name.trim() == "sleep")
            };
            let sleeper = pids.iter().find(is_sleeper).expect("the sleeper");
            send(sleeper.parse().expect("a process id"), libc::SIGKILL);
        }
        until(script, || std::net::TcpStream::connect(&address).is_err());
        shell.stdin = None;
    }
}

#[test]
fn a_fixture_whose_answers_nobody_reads_takes_no_more_orders_and_ends_all_the_same() {
    type End = fn(&mut Fixture);
    let ends: [(&str, End); 2] = [
        ("its standard input closes", |fixture| fixture.stdin = None),
        ("SIGTERM", |fixture| send(fixture.pid(), libc::SIGTERM)),
    ];
    for (how, end) in ends {
        let mut fixture = Fixture::start(&["--users", "alice"]);
        // The answers are far more than a pipe holds.
        fixture.write("help\n".repeat(500).as_bytes());
        let taken = taken_without_an_answer(&mut fixture);
        assert!(taken < 16 << 20, "{taken} bytes of orders are kept");
        end(&mut fixture);
        until(how, || fixture.child.try_wait().expect("a child can be asked").is_some());
        assert_eq!(left_by(fixture.pid()), Vec::<PathBuf>::new(), "{how}");
    }
    // Who reads late has all of it.
    let mut fixture = Fixture::start(&[]);
    fixture.write("help\n".repeat(500).as_bytes());
    for _ in 0..500 {
        assert_eq!(fixture.line()["ok"], true);
    }
    assert_eq!(fixture.done("info")["servers"].as_array().map(Vec::len), Some(1));
}

/// How many bytes of long orders are taken, up to 64 MiB, before no more are for a while.
fn taken_without_an_answer(fixture: &mut Fixture) -> usize {
    let line = format!("{}\n", "x".repeat(60_000));
    let stdin = fixture.stdin.as_mut().expect("an open pipe");
    // SAFETY: a flag of a descriptor that `stdin` keeps open.
    assert_eq!(unsafe { libc::fcntl(stdin.as_raw_fd(), libc::F_SETFL, libc::O_NONBLOCK) }, 0);
    let (mut taken, mut refused_since) = (0, None::<Instant>);
    while taken < 64 << 20 && refused_since.is_none_or(|since| since.elapsed() < Duration::from_secs(1)) {
        match stdin.write(&line.as_bytes()[taken % line.len()..]) {
            Ok(count) => (taken, refused_since) = (taken + count, None),
            Err(_) => drop(refused_since.get_or_insert_with(Instant::now)),
        }
        std::thread::yield_now();
    }
    taken
}

#[test]
fn servers_of_a_fixture_federate_and_are_cut_off_restarted_and_moved_in_time() {
    let mut fixture = Fixture::start(&["--users", "alice, bob", "--servers", "2"]);
    let (alice, bob) = (fixture.user(0, "alice"), fixture.user(1, "bob"));
    let (here, there) = (fixture.name(0), fixture.name(1));
    assert_ne!(here, there);
    assert_eq!(fixture.told["name"], here.as_str());
    assert!(fixture.told["ca"].as_str().expect("PEM").starts_with("-----BEGIN CERTIFICATE"));
    let device = &fixture.told["users"]["alice"]["device_id"];
    assert_eq!(*device, alice.device_id().as_str());
    let room = alice.create_room();
    bob.join_via(&room, &[&here]);

    fixture.done(&format!("cut 1 {there}"));
    alice.send(&room, "who hears me?");
    let other = bob.create_room();
    let path = format!("/_matrix/client/v3/join/{other}?via={there}");
    assert_ne!(alice.request("POST", &path, Some(json!({}))).0, 200);
    fixture.done("mend 2 1");
    assert_eq!(bob.next_message(&room), "who hears me?");

    fixture.done("restart");
    bob.initial_sync();
    assert_eq!(alice.send(&room, "after it").chars().next(), Some('$'));
    assert_eq!(bob.next_message(&room), "after it");
    fixture.done("stop 2");
    assert!(fixture.refused("user add carol on 2").contains("stopped"));
    fixture.done("start 2");
    bob.get("/_matrix/client/v3/account/whoami");

    let status = |user: &TestUser| user.request("GET", "/_matrix/client/v3/account/whoami", None).0;
    fixture.done("fail GET /whoami 503 M_BUSY");
    assert_eq!((status(&bob), status(&alice), status(&alice)), (200, 503, 200));
    fixture.done("limit * /account/whoami 1000 on 2");
    assert_eq!((status(&bob), status(&bob)), (429, 200));
    fixture.done(&format!("delay GET /nothing {}", u64::MAX));
    fixture.done("delay GET /whoami 1");
    fixture.done("clear");
    fixture.done("requests forget");
    status(&alice);
    let seen = &fixture.done("requests")["requests"];
    let asked = json!([{ "method": "GET", "path": "/_matrix/client/v3/account/whoami", "status": 200 }]);
    assert_eq!(*seen, asked);

    let file = alice.request("POST", "/_matrix/media/v3/upload", Some(json!("a file"))).1;
    let uri = file["content_uri"].as_str().expect("a file").trim_start_matches("mxc://").to_owned();
    fixture.done("restart");
    let (status, _) = alice.request("GET", &format!("/_matrix/client/v1/media/download/{uri}"), None);
    assert_eq!(status, 200, "files outlive a restart as on a disk");
    let sent = |user: &TestUser| user.get("/_matrix/client/v3/devices")["devices"][0]["last_seen_ts"].clone();
    let before = sent(&alice).as_i64().expect("a time");
    fixture.done("advance 86400");
    alice.get("/_matrix/client/v3/account/whoami");
    assert!(sent(&alice).as_i64().expect("a time") >= before + 86_000_000);
}

#[test]
fn who_mistypes_is_told_and_the_fixture_goes_on() {
    let mut fixture =
        Fixture::start(&["--closed", "--registration-secret", "s3cret", "--name", "example.test"]);
    assert_eq!(fixture.name(0), "example.test");
    let carol = fixture.done("user add carol")["user"].clone();
    let carol = user_of(fixture.told["url"].as_str().expect("an address"), &carol);
    assert_eq!(carol.id(), "@carol:example.test");
    assert!(fixture.refused("user add carol").contains("taken"));
    let admin = fixture.done("user add root pass admin")["user"].clone();
    assert_eq!(admin["password"], "pass");
    for (words, name, password) in [
        ("admin", "admin", "admin"),
        ("zoe admin ordinary", "zoe", "admin"),
        ("yan ordinary", "yan", "ordinary"),
        ("on 2 ordinary on 1", "on", "2"),
    ] {
        let user = fixture.done(&format!("user add {words}"))["user"].clone();
        assert_eq!(user["user_id"], format!("@{name}:example.test"));
        assert_eq!(user["password"], password);
        let user = user_of(carol.url(), &user);
        assert_eq!(user.request("GET", "/_synapse/admin/v2/users", None).0, 403, "{words}");
    }
    let root = user_of(carol.url(), &admin);
    assert_eq!(root.request("GET", "/_synapse/admin/v2/users", None).0, 200);
    let login = fixture.done("login carol PHONE")["user"].clone();
    assert_eq!(login["device_id"], "PHONE");
    for (wrong, told) in [
        ("bogus", "no command \"bogus\""),
        ("advance", "it goes: advance SECONDS"),
        ("advance -1", "negative"),
        ("advance nan", "hundred years"),
        ("advance 1e300", "hundred years"),
        ("advance inf", "hundred years"),
        ("advance 1e18", "hundred years"),
        ("fail GET", "it goes: fail"),
        ("fail GET /x 99", "200 to 599"),
        ("fail GET /x many", "number"),
        ("restart 7", "no server \"7\""),
        ("requests on 0", "no server \"0\""),
        ("cut 1 1", "itself"),
        ("user add", "it goes: user add"),
        ("user add UPPER?", ""),
        ("login nobody", "no account"),
        ("on 1", ""),
        ("\u{1F980}\0", "no command"),
    ] {
        let error = fixture.refused(wrong);
        assert!(error.contains(told) && !error.contains("M_"), "{wrong}: {error}");
    }
    let long = "x".repeat(200_000);
    assert!(fixture.refused(&long).contains("64 KiB"));
    fixture.write(b"\n  \n\xff\xfe\n");
    assert_eq!(fixture.line()["ok"], false);
    assert!(fixture.done("help")["commands"].as_array().is_some_and(|all| all.len() > 10));
    assert!(fixture.done("info")["users"]["carol"]["access_token"].is_string());
    let centuries = "advance 3162240000\n".repeat(3000);
    fixture.write(centuries.as_bytes());
    let moved = (0..3000).filter(|_| fixture.line()["ok"] == true).count();
    assert!((1_000..3_000).contains(&moved), "{moved} centuries");
    carol.create_room();
    let nonce = carol.get("/_synapse/admin/v1/register");
    assert!(nonce["nonce"].is_string(), "{nonce}");
    let body = json!({ "username": "x", "password": "y", "auth": { "type": "m.login.dummy" } });
    assert_ne!(carol.request("POST", "/_matrix/client/v3/register", Some(body)).0, 200);
    let dave = fixture.done("user add dave")["user"].clone();
    let body = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "dave" },
        "password": "dave" });
    let (status, answer) = carol.request("POST", "/_matrix/client/v3/login", Some(body));
    assert_eq!((status, &answer["user_id"]), (200, &dave["user_id"]), "{answer}");
}

#[test]
fn what_cannot_be_meant_is_said_and_a_port_that_is_taken_too() {
    let taken = TcpListener::bind("127.0.0.1:0").expect("a port");
    let port = taken.local_addr().expect("an address").port().to_string();
    for (args, status, told) in [
        (&["--servers", "0"][..], 2, "1 to 100"),
        (&["--servers", "two"], 2, "--servers"),
        (&["--name", "a,b", "--servers", "3"], 2, "2 names for 3 servers"),
        (&["--name", "no name"], 2, "no name"),
        (&["--name", "a,b,a"], 2, "a twice"),
        (&["--port", "65535", "--servers", "2"], 2, "--port"),
        (&["--homerunner", "--users", "alice"], 2, "--users"),
        (&["--name", "example.org:1"], 1, "example.org:1"),
        (&["--registration-secret", ""], 2, "--registration-secret"),
        (&["--port", &port], 1, &port),
        (&["--homerunner", "--port", &port], 1, &port),
        (&["--synapse-config", "/nowhere/at/all.yaml"], 2, "/nowhere/at/all.yaml"),
        (&["--users", "No Such Name"], 1, ""),
    ] {
        let (code, stdout, stderr) = outcome(doorstep(&["fixture"]).args(args));
        assert_eq!((code, stdout.as_str()), (Some(status), ""), "{args:?}: {stderr}");
        assert!(stderr.contains(told) && stderr.starts_with("doorstep: "), "{args:?}: {stderr}");
    }
}

#[test]
fn a_homeserver_yaml_says_what_a_fixture_is() {
    let folder = Scratch::new();
    let (port, _held) = free_port();
    let file = folder.file(
        "homeserver.yaml",
        &format!(
            "server_name: localhost\nlisteners:\n  - port: {port}\n    type: http\n    resources:\n      - names: [client]\n\
             registration_shared_secret: \"s3cret\"\nenable_registration: true\nenable_registration_without_verification: true\n\
             public_baseurl: http://elsewhere.example/\nmade_up: 1\n"
        ),
    );
    let fixture = Fixture::start(&["--synapse-config", &file, "--users", "alice"]);
    assert_eq!(fixture.name(0), "localhost");
    assert_eq!(fixture.told["url"], format!("http://127.0.0.1:{port}"));
    let alice = fixture.user(0, "alice");
    assert_eq!(alice.id(), "@alice:localhost");
    assert!(alice.get("/_synapse/admin/v1/register")["nonce"].is_string());
    let told = &alice.get("/.well-known/matrix/client")["m.homeserver"]["base_url"];
    assert!(told.as_str().is_some_and(|url| url.starts_with("http://elsewhere.example")), "{told}");
    TestUser::register(alice.url(), "bob");
    let (_, stdout, stderr) = outcome(&mut doorstep(&["fixture", "--synapse-config", &file, "--port", "0"]));
    assert!(stderr.contains("made_up is not known here"), "{stderr}");
    assert!(!stderr.contains("server_name"), "{stderr}");
    drop(stdout);
}

#[test]
fn homerunner_makes_homeservers_by_blueprints_and_ends_them() {
    let fixture = Fixture::start(&["--homerunner", "--port", "0"]);
    let url = fixture.told["homerunner"].as_str().expect("an address").to_owned();
    let homerunner = TestUser::new(&url, "", "");
    assert_eq!(homerunner.request("GET", "/health", None).0, 200);
    let create = |body: Value| homerunner.request("POST", "/create", Some(body));
    let federation =
        json!({ "base_image_uri": "complement-any", "blueprint_name": "federation_one_to_one_room" });
    let (status, made) = create(federation.clone());
    assert_eq!(status, 200, "{made}");
    assert!(made["expires"].as_str().is_some_and(|at| at.len() == 20 && at.ends_with('Z')), "{made}");
    let user = |server: &str, id: &str| {
        let told = &made["homeservers"][server];
        let text = |value: &Value| value.as_str().expect("text").to_owned();
        let user = TestUser::new(&text(&told["BaseURL"]), id, &text(&told["AccessTokens"][id]));
        assert_eq!(user.device_id(), text(&told["DeviceIDs"][id]));
        user
    };
    let (alice, bob) = (user("hs1", "@alice:hs1"), user("hs2", "@bob:hs2"));
    let rooms = alice.get("/_matrix/client/v3/joined_rooms")["joined_rooms"].clone();
    let room = rooms[0].as_str().expect("a room").to_owned();
    bob.initial_sync();
    alice.send(&room, "over to hs2");
    assert_eq!(bob.next_message(&room), "over to hs2");

    let again = create(federation);
    assert_eq!(again.0, 400, "{}", again.1);
    let inline = json!({ "blueprint": { "Name": "my own", "Homeservers": [
        { "Name": "hs1", "Users": [{ "Localpart": "@anon-1", "DisplayName": "Anon", "DeviceID": "D1" }],
          "Rooms": [{ "Creator": "@anon-1", "CreateRoom": { "name": "R" }, "Events": [
              { "Type": "m.room.topic", "StateKey": "", "Sender": "@anon-1:hs1", "Content": { "topic": "T" } }] }] }] } });
    let (status, own) = create(inline);
    assert_eq!(status, 200, "{own}");
    assert_eq!(own["homeservers"]["hs1"]["DeviceIDs"]["@anon-1:hs1"], "D1");
    for (wrong, told) in [
        (json!({}), "must be specified"),
        (json!({ "blueprint_name": "made up" }), "missing blueprint"),
        (json!({ "blueprint": { "Name": "x", "Homeservers": [{ "Name": "not a name" }] } }), "not a name"),
        (
            json!({ "blueprint": { "Name": "x", "Homeservers": [{ "Name": "hs1", "Rooms": [{ "Creator": "@no" }] }] } }),
            "@no:hs1",
        ),
        (json!({ "blueprint": 7 }), ""),
        (
            json!({ "blueprint": { "Name": "x", "Homeservers": [{ "Name": "hs1" }, { "Name": "hs1" }] } }),
            "two homeservers hs1",
        ),
    ] {
        let (status, answer) = create(wrong.clone());
        assert_eq!(status, 400, "{wrong}: {answer}");
        assert!(
            answer["message"].as_str().is_some_and(|message| message.contains(told)),
            "{wrong}: {answer}"
        );
    }
    let destroy =
        |name: &str| homerunner.request("POST", "/destroy", Some(json!({ "blueprint_name": name }))).0;
    assert_eq!((destroy("my own"), destroy("my own"), destroy("")), (200, 500, 400));
    assert_eq!(homerunner.request("GET", "/create", None).0, 405);
    assert_eq!(homerunner.request("GET", "/", None).0, 404);
    alice.get("/_matrix/client/v3/account/whoami");
    assert_eq!(destroy("federation_one_to_one_room"), 200);
    assert_eq!(left_by(fixture.pid()), Vec::<PathBuf>::new());
}

/// The figure: from the start of the process to its first line, with two users.
#[test]
#[ignore = "prints a figure; build for release"]
#[allow(clippy::print_stdout, reason = "the figure")]
fn how_long_a_fixture_of_two_users_takes() {
    for servers in ["1", "2", "10"] {
        let mut took: Vec<Duration> = (0..15)
            .map(|_| {
                let began = Instant::now();
                let _fixture = Fixture::start(&["--users", "alice,bob", "--servers", servers]);
                began.elapsed()
            })
            .collect();
        took.sort_unstable();
        println!("{servers} servers: {:?} to {:?}, median {:?}", took[0], took[14], took[7]);
    }
}
