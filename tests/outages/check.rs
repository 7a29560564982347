//! What `doorstep check` finds: the real binary, beside a server that runs, without one, and of a server elsewhere; and each
//! fault that it is to find, made.

use std::collections::BTreeMap;
use std::fs;
use std::net::{TcpListener, UdpSocket};
use std::os::unix::fs::PermissionsExt;

use doorstep::TestServer;
use doorstep::config::TlsFiles;
use doorstep::protocol::ServerName;
use doorstep::testing::certificates;
use serde_json::Value;
use simple_dns::rdata::{A, RData, SRV};
use simple_dns::{CLASS, Name, Packet, PacketFlag, ResourceRecord, TYPE};

use crate::common::ProcessServer;
use crate::common::web_server::WebServer;
use crate::terminal::{Scratch, doorstep, outcome};

/// What was found: the exit status, and for each subject how it stands, what was found and what to do.
struct Found {
    status: Option<i32>,
    all: Vec<(String, String, String)>,
}

impl Found {
    fn by(args: &[&str]) -> Self {
        let args: Vec<&str> = [&["check", "--json"], args].concat();
        let (status, stdout, stderr) = outcome(&mut doorstep(&args));
        let json: Value = serde_json::from_str(&stdout).unwrap_or_else(|e| panic!("{e}: {stdout}{stderr}"));
        let text = |finding: &Value, key: &str| finding[key].as_str().unwrap_or_default().to_owned();
        let findings = json["findings"].as_array().expect("findings");
        let all: Vec<_> = findings
            .iter()
            .map(|f| {
                (text(f, "about"), text(f, "state"), format!("{} → {}", text(f, "found"), text(f, "advice")))
            })
            .collect();
        let any_wrong = all.iter().any(|(_, state, _)| state == "wrong");
        assert_eq!(
            (json["ok"].as_bool(), status),
            (Some(!any_wrong), Some(i32::from(any_wrong))),
            "{all:#?}"
        );
        for finding in findings.iter().filter(|finding| finding["state"] == "wrong") {
            assert!(finding["advice"].is_string(), "what to do: {finding}");
        }
        Self { status, all }
    }

    /// The findings of this subject stand so, and one of them says this.
    #[track_caller]
    fn has(&self, about: &str, state: &str, words: &str) {
        let found = self.all.iter().any(|(a, s, text)| a == about && s == state && text.contains(words));
        assert!(found, "no {state} {about} with {words:?} in {:#?}", self.all);
    }

    /// Nothing is wrong but these.
    #[track_caller]
    fn only_wrong(&self, subjects: &[&str]) {
        let wrong: std::collections::BTreeSet<&str> = self
            .all
            .iter()
            .filter(|(_, state, _)| state == "wrong")
            .map(|(about, ..)| about.as_str())
            .collect();
        assert_eq!(wrong.into_iter().collect::<Vec<_>>(), subjects, "{:#?}", self.all);
    }
}

#[test]
fn a_server_that_runs_is_well_and_is_found_by_others_and_without_it_nobody_is() {
    let mut server = ProcessServer::start(&[]);
    let args = server.settings();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let found = Found::by(&args);
    found.only_wrong(&[]);
    for (about, words) in [
        ("data", "a server is running on it"),
        ("port", "answers"),
        ("certificate", "days"),
        ("disk", "MiB are free"),
        ("database", "every page"),
        ("well-known for servers", "nobody asks"),
        ("SRV records", "nobody asks"),
        ("addresses", "127.0.0.1"),
        ("federation", "Doorstep"),
        ("keys", "ours, and signed"),
        ("clients", "answers"),
        ("proxy", "as they are"),
    ] {
        found.has(about, "ok", words);
    }
    // Its clock is compared with that of another server that is known, which tells whether it sees it.
    let other = TestServer::start();
    let seen = Found::by(&[&args[..], &["--notary", other.name()]].concat());
    seen.has("clock", "ok", other.name());
    seen.has("notary", "ok", &format!("{} sees it", other.name()));
    // Its name is pinned in its folder and need not be said.
    let without_name: Vec<&str> = args.iter().copied().skip_while(|arg| *arg != "--data").collect();
    Found::by(&without_name).only_wrong(&[]);
    // For people: a line for each, and what is wrong with what to do.
    let (status, lines, _) = outcome(&mut doorstep(&[&["check"][..], &args].concat()));
    assert_eq!(status, Some(0), "{lines}");
    assert!(lines.lines().any(|line| line.starts_with("ok     keys: ")), "{lines}");
    // Of another's server only what everybody sees.
    let name = server.name().to_owned();
    let ca = certificates().ca.to_str().expect("text");
    let elsewhere = Found::by(&[&name, "--allow-private-addresses", "--trust-ca", ca]);
    elsewhere.has("keys", "ok", "signed by itself");
    assert!(
        elsewhere.all.iter().all(|(about, ..)| !["data", "port", "disk", "database"].contains(&&**about))
    );

    server.kill();
    let found = Found::by(&args);
    found.has("data", "ok", "no server is running on it");
    found.has("port", "ok", "is free");
    found.has("database", "ok", "every page");
    found.has("certificate", "wrong", "cannot be connected to");
    found.has("clients", "wrong", "refused");
    // Who has never seen it does not see it now.
    let stranger = TestServer::start();
    let found = Found::by(&[&args[..], &["--notary", stranger.name()]].concat());
    found.has("notary", "wrong", &format!("{} does not see it", stranger.name()));
    // And looking at it has changed nothing: it starts.
    server.resume();
    Found::by(&args).only_wrong(&[]);
}

#[test]
fn a_private_key_that_everybody_may_read_is_found_before_anything_is_started() {
    let (scratch, tls) = (Scratch::new(), certificates().issue(&["localhost"], [2020, 2090]));
    fs::set_permissions(&tls.key, fs::Permissions::from_mode(0o644)).expect("permissions");
    let [cert, key] = [&tls.cert, &tls.key].map(|path| path.to_str().expect("text"));
    let data = scratch.path("data");
    let args = ["--data", &data, "--listen-tls", "127.0.0.1:0", "--tls-cert", cert, "--tls-key", key];
    let found = Found::by(&args);
    found.has("files", "wrong", "chmod o=");
    found.has("data", "wrong", "there is no folder");
    found.has("name", "note", "a name of this machine");
    let found = Found::by(&[&args[..6], &["--tls-key", cert]].concat());
    found.has("certificate", "wrong", "of no use");
}

#[test]
fn what_is_wrong_on_this_machine_is_found() {
    let mut server = ProcessServer::start(&[]);
    let args = server.settings();
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let database = server.folder().join("doorstep.db");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o644)).expect("permissions");
    let found = Found::by(&args);
    found.only_wrong(&["files"]);
    found.has("files", "wrong", "chmod go=");
    fs::set_permissions(&database, fs::Permissions::from_mode(0o600)).expect("permissions");
    // Another name, another folder, settings of another server.
    Found::by(&[&args[..], &["--listen", "127.0.0.1:9"]].concat()).has("port", "wrong", "127.0.0.1:9");
    let mut renamed = args.clone();
    renamed[1] = "localhost:1";
    Found::by(&renamed).has("data", "wrong", "is the database of");
    let none = [&args[..], &["--data", "/nowhere/at/all"]].concat();
    let none: Vec<&str> =
        none.iter().enumerate().filter(|(at, _)| ![2, 3].contains(at)).map(|(_, arg)| *arg).collect();
    Found::by(&none).has("data", "wrong", "there is no folder");

    server.kill();
    let port = args[5].rsplit(':').next().and_then(|port| port.parse().ok()).expect("a port");
    let other = TcpListener::bind(("127.0.0.1", port)).expect("it is free now");
    Found::by(&args).has("port", "wrong", "stop the program that listens there");
    drop(other);
    // Pages that are not what they were.
    let mut bytes = fs::read(&database).expect("a file");
    let pages = bytes.len() / 4096;
    for page in 3..pages {
        bytes[page * 4096..page * 4096 + 64].fill(0xa5);
    }
    fs::write(&database, bytes).expect("written");
    let found = Found::by(&args);
    assert!(
        found
            .all
            .iter()
            .any(|(about, state, _)| state == "wrong" && (about == "database" || about == "data")),
        "{:#?}",
        found.all
    );
    assert_eq!(found.status, Some(1));
}

#[test]
fn the_certificate_that_the_server_got_by_itself_is_judged_by_its_names_and_dates() {
    let server = ProcessServer::start(&[]);
    let args = server.settings();
    let own = args.chunks(2).filter(|pair| !pair[0].starts_with("--tls-")).flatten().map(String::as_str);
    let more = ["--acme", "--acme-name", "a.example", "--acme-name", "b.example"];
    let args: Vec<&str> = own.chain(more).collect();
    Found::by(&args).has("certificate", "note", "has not given one yet");
    let acme = server.folder().join("acme");
    fs::create_dir(&acme).expect("a folder");
    let put = |names: &[&str], years: [i32; 2]| {
        let files = certificates().issue(names, years);
        let text = [&files.key, &files.cert].map(|file| fs::read_to_string(file).expect("a file"));
        fs::write(acme.join("certificate.pem"), text.join("\n")).expect("written");
    };
    put(&["a.example", "b.example"], [2020, 2090]);
    let found = Found::by(&args);
    found.has("certificate", "ok", "for a.example, b.example");
    found.only_wrong(&[]);
    put(&["a.example"], [2020, 2090]);
    Found::by(&args).has("certificate", "wrong", "is for a.example, and not for a.example, b.example");
    put(&["a.example", "b.example"], [2020, 2021]);
    Found::by(&args).has("certificate", "wrong", "expired on 2021");
    fs::write(acme.join("certificate.pem"), "half").expect("written");
    Found::by(&args).has("certificate", "wrong", "is of no use");
}

const APEX: &str = "doorstep.example";
const MACHINE: &str = "matrix.doorstep.example";
const ORIGIN: &str = "Access-Control-Allow-Origin: *";

/// A server with the name of an apex, whose web server is the test's.
struct Setup {
    server: TestServer,
    web: WebServer,
    scratch: Scratch,
}

impl Setup {
    fn new(tls: TlsFiles) -> Self {
        let server = TestServer::start_with(|config| {
            config.server_name = ServerName::parse(APEX).expect("a name");
            config.tls = Some(tls);
            config.public_url = format!("https://{MACHINE}");
        });
        let web = WebServer::start(&certificates().issue(&[APEX], [2020, 2090]));
        web.put("/.well-known/matrix/server", "", &format!("{{\"m.server\": \"{MACHINE}:443\"}}"));
        let client = format!("{{\"m.homeserver\": {{\"base_url\": \"https://{MACHINE}\"}}}}");
        web.put("/.well-known/matrix/client", ORIGIN, &client);
        Self { server, web, scratch: Scratch::new() }
    }

    fn check(&self, extra: &[&str]) -> Found {
        let config = &self.server.homeserver().config;
        let (web, tls) = (self.web.address(), config.listen_tls[0]);
        let detours = [format!("{APEX}:443={web}"), format!("{MACHINE}:443={tls}")];
        let ca = certificates().ca.to_str().expect("text");
        let (data, listen) = (self.server.folder().to_str().expect("text"), config.listen[0].to_string());
        let own = ["--data", data, "--listen", &listen, "--public-url", &config.public_url];
        let ways = [
            "--connect-to",
            &detours[0],
            "--connect-to",
            &detours[1],
            "--allow-private-addresses",
            "--trust-ca",
            ca,
        ];
        Found::by(&[&own[..], &ways, extra].concat())
    }
}

fn good_certificate() -> TlsFiles {
    certificates().issue(&[MACHINE], [2020, 2090])
}

#[test]
fn what_others_are_told_by_well_knowns_is_judged() {
    let setup = Setup::new(good_certificate());
    let found = setup.check(&[]);
    found.only_wrong(&[]);
    found.has("well-known for servers", "ok", &format!("{MACHINE}:443"));
    found.has("well-known for clients", "ok", &format!("https://{MACHINE}"));
    found.has("keys", "ok", "ours");
    let server = "/.well-known/matrix/server";
    for (body, words) in [
        ("<html>welcome</html>", "HTML"),
        ("{\"m.server\": \"https://matrix.doorstep.example\"}", "no host"),
        ("{\"m.homeserver\": {}}", "no m.server"),
        ("", "not a JSON object"),
    ] {
        setup.web.put(server, "", body);
        setup.check(&[]).has("well-known for servers", "wrong", words);
    }
    setup.web.put(server, "", &format!("{{\"m.server\": \"{MACHINE}:443\"}}"));
    let client = "/.well-known/matrix/client";
    let body = format!("{{\"m.homeserver\": {{\"base_url\": \"https://{MACHINE}\"}}}}");
    // A header that is missing, and one that the proxy added to Doorstep's.
    for headers in ["", "Access-Control-Allow-Origin: *\nAccess-Control-Allow-Origin: *"] {
        setup.web.put(client, headers, &body);
        let found = setup.check(&[]);
        found.only_wrong(&["well-known for clients"]);
        found.has("well-known for clients", "wrong", "Access-Control-Allow-Origin");
    }
    setup.web.put(client, ORIGIN, &body.replace(MACHINE, APEX));
    setup.check(&[]).has("well-known for clients", "note", "--public-url is");
    setup.web.put(client, ORIGIN, "no JSON");
    setup.check(&[]).has("well-known for clients", "note", "not a JSON object");
}

#[test]
fn a_certificate_that_nobody_believes_is_told_with_the_reason() {
    let elsewhere = certificates().issue(&["elsewhere.example"], [2020, 2090]);
    let found = Setup::new(elsewhere).check(&[]);
    found.has("certificate", "wrong", &format!("it is not for {MACHINE}"));
    found.has("certificate", "wrong", "elsewhere.example");
    let expired = Setup::new(certificates().issue(&[MACHINE], [2020, 2021])).check(&[]);
    expired.has("certificate", "wrong", "expired");
    // Nobody knows its issuer.
    let setup = Setup::new(good_certificate());
    let config = &setup.server.homeserver().config;
    let [web, tls] =
        [(APEX, setup.web.address()), (MACHINE, config.listen_tls[0])].map(|(h, to)| format!("{h}:443={to}"));
    let found = Found::by(&[APEX, "--connect-to", &web, "--connect-to", &tls, "--allow-private-addresses"]);
    found.has("well-known for servers", "note", "cannot ask");
    found.has("clients", "wrong", MACHINE.split_once('.').map_or("", |(_, apex)| apex));
}

#[test]
fn a_key_that_is_not_ours_and_a_proxy_that_changes_addresses_are_found() {
    let setup = Setup::new(good_certificate());
    let other = Setup::new(good_certificate());
    let theirs = other.server.homeserver().config.listen_tls[0];
    let detour = format!("{MACHINE}:443={theirs}");
    // The first detour of a host counts.
    let data = setup.server.folder().to_str().expect("text");
    let ca = certificates().ca.to_str().expect("text");
    let web = format!("{APEX}:443={}", setup.web.address());
    let listen = setup.server.homeserver().config.listen[0].to_string();
    let public = format!("https://{MACHINE}");
    let args = [
        "--data",
        data,
        "--listen",
        &listen,
        "--public-url",
        &public,
        "--connect-to",
        &detour,
        "--connect-to",
        &web,
        "--allow-private-addresses",
        "--trust-ca",
        ca,
    ];
    let found = Found::by(&args);
    found.only_wrong(&["keys"]);
    found.has("keys", "wrong", "two servers have one name");

    // What answers for the machine is a web server that knows but some of its pages.
    let proxy = WebServer::start(&good_certificate());
    proxy.put("/_matrix/client/versions", ORIGIN, "{\"versions\": [\"v1.1\"]}");
    proxy.put("/_matrix/federation/v1/version", "", "<p>hello</p>");
    let detour = format!("{MACHINE}:443={}", proxy.address());
    let mut args = args;
    args[7] = &detour;
    let found = Found::by(&args);
    found.only_wrong(&["federation", "keys", "proxy"]);
    found.has("federation", "wrong", "HTML");
    found.has("keys", "wrong", "404");
    // Whatever it says of itself stays in its line, and is not without end.
    let name = format!("\\u001b[2J\\nok     keys: fine{}", "x".repeat(10_000));
    let version = format!("{{\"server\": {{\"name\": \"{name}\", \"version\": \"1\"}}}}");
    proxy.put("/_matrix/federation/v1/version", "", &version);
    let (_, lines, _) = outcome(&mut doorstep(&[&["check"][..], &args].concat()));
    assert!(!lines.contains('\u{1b}') && !lines.contains("\nok     keys: fine"), "{lines:?}");
    assert!(lines.contains("keys: fine") && lines.len() < 6000, "{lines}");
    // Of another's server its own clock is told.
    let date = |day: &str| format!("{ORIGIN}\nDate: {day} 08:49:37 GMT");
    for (day, words) in [("Sun, 06 Nov 1994", "s before that of"), ("Fri, 06 Nov 2093", "s behind that of")] {
        proxy.put("/_matrix/client/versions", &date(day), "{\"versions\": [\"v1.1\"]}");
        setup.web.put(
            "/.well-known/matrix/server",
            &date(day),
            &format!("{{\"m.server\": \"{MACHINE}:443\"}}"),
        );
        let client = format!("{{\"m.homeserver\": {{\"base_url\": \"https://{MACHINE}\"}}}}");
        setup.web.put("/.well-known/matrix/client", &date(day), &client);
        let ways =
            ["--connect-to", &detour, "--connect-to", &web, "--allow-private-addresses", "--trust-ca", ca];
        let found = Found::by(&[&[APEX][..], &ways].concat());
        found.has("clock", "wrong", words);
        found.has("clock", "wrong", "NTP");
    }
    drop(setup.scratch);
}

/// A name server that knows these SRV records, and one address for every host.
fn name_server(srv: BTreeMap<String, (String, u16)>) -> String {
    let socket = UdpSocket::bind("127.0.0.1:0").expect("a port");
    let address = socket.local_addr().expect("an address").to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let Ok(asked) = Packet::parse(&buffer[..n]) else { continue };
            let question = asked.questions[0].clone();
            let (name, kind) = (question.qname.to_string(), question.qtype);
            let mut answer = Packet::new_reply(asked.id());
            answer.set_flags(PacketFlag::RESPONSE);
            answer.questions.push(question.clone());
            let owner = question.qname.clone();
            let mut say = |data| answer.answers.push(ResourceRecord::new(owner.clone(), CLASS::IN, 60, data));
            if kind == TYPE::SRV.into() {
                if let Some((target, port)) = srv.get(&name) {
                    let target = Name::new(target).expect("a name").into_owned();
                    say(RData::SRV(SRV { priority: 10, weight: 0, port: *port, target }));
                }
            } else if kind == TYPE::A.into() {
                say(RData::A(A { address: u32::from(std::net::Ipv4Addr::LOCALHOST) }));
            }
            let bytes = answer.build_bytes_vec().expect("a packet");
            let _ = socket.send_to(&bytes, from);
        }
    });
    address
}

#[test]
fn srv_records_are_told_and_the_old_name_of_them_is_noted() {
    // The name has no well-known page: its web server does not know it.
    let server = TestServer::start_with(|config| {
        config.server_name = ServerName::parse(APEX).expect("a name");
        config.tls = Some(certificates().issue(&[APEX], [2020, 2090]));
        config.public_url = format!("https://{MACHINE}");
    });
    let web = WebServer::start(&certificates().issue(&[APEX], [2020, 2090]));
    let port = server.homeserver().config.listen_tls[0].port();
    let ca = certificates().ca.to_str().expect("text");
    let detour = format!("{APEX}:443={}", web.address());
    for (service, state, words) in [
        ("_matrix-fed._tcp", "ok", "leads to machine.doorstep.example"),
        ("_matrix._tcp", "note", "deprecated"),
    ] {
        let records = [(format!("{service}.{APEX}"), ("machine.doorstep.example".to_owned(), port))];
        let dns = name_server(records.into());
        let found = Found::by(&[
            APEX,
            "--dns",
            &dns,
            "--connect-to",
            &detour,
            "--allow-private-addresses",
            "--trust-ca",
            ca,
        ]);
        found.has("SRV records", state, words);
        found.has("addresses", "ok", &format!("127.0.0.1:{port}"));
        found.has("keys", "ok", "signed");
        found.has("federation", "ok", "Doorstep");
    }
    // To everybody else that address is nowhere.
    let dns = name_server(
        [(format!("_matrix-fed._tcp.{APEX}"), ("machine.doorstep.example".to_owned(), port))].into(),
    );
    let found = Found::by(&[APEX, "--dns", &dns, "--connect-to", &detour, "--trust-ca", ca]);
    found.has("addresses", "wrong", "connect");
    let refusing = name_server([(format!("_matrix-fed._tcp.{APEX}"), (".".to_owned(), 0))].into());
    let found = Found::by(&[
        APEX,
        "--dns",
        &refusing,
        "--connect-to",
        &detour,
        "--allow-private-addresses",
        "--trust-ca",
        ca,
    ]);
    found.has("SRV records", "wrong", "does not federate");
}

#[test]
fn what_cannot_be_meant_is_told_with_status_2() {
    for (args, words) in [
        (&["check", "--dns"][..], "--dns needs a value"),
        (&["check", "--dns", "nowhere at all"], "should be an address"),
        (&["check", "--connect-to", "a"], "should be like"),
        (&["check", "a.example", "b.example"], "belongs to no flag"),
        (&["check", "no name"], "no server name"),
        (&["check", "--jsno"], "there is no flag"),
    ] {
        let (status, _, told) = outcome(&mut doorstep(args));
        assert_eq!(status, Some(2), "{args:?}: {told}");
        assert!(told.contains(words), "{args:?}: {told}");
    }
    let (status, help, _) = outcome(&mut doorstep(&["check", "--help"]));
    assert!(status == Some(0) && help.contains("--connect-to") && help.contains("--dns"), "{help}");
}
