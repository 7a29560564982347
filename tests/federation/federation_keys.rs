//! The key and version endpoints between servers, over real TLS.

use std::io::{BufRead, BufReader, Write};
use std::net::TcpStream;
use std::process::Command;
use std::time::Duration;

use crate::common::ProcessServer;
use doorstep::TestServer;
use doorstep::testing::certificates;
use serde_json::{Value, json};

/// An agent that trusts the test authority, as another server would.
pub fn agent() -> ureq::Agent {
    let pem = std::fs::read(&certificates().ca).expect("the authority's certificate");
    let certificate = ureq::tls::Certificate::from_pem(&pem).expect("a certificate");
    let roots = ureq::tls::RootCerts::from(vec![certificate]);
    let provider = std::sync::Arc::new(rustls::crypto::ring::default_provider());
    let tls = ureq::tls::TlsConfig::builder().root_certs(roots).unversioned_rustls_crypto_provider(provider);
    ureq::Agent::config_builder()
        .http_status_as_error(false)
        .proxy(None)
        .timeout_global(Some(Duration::from_secs(60)))
        .tls_config(tls.build())
        .build()
        .into()
}

fn read(answer: Result<ureq::http::Response<ureq::Body>, ureq::Error>) -> (u16, Value) {
    let mut answer = answer.expect("an answer");
    let body = answer.body_mut().read_to_vec().expect("a body");
    (answer.status().as_u16(), serde_json::from_slice(&body).expect("JSON"))
}

fn get(server: &TestServer, path: &str) -> (u16, Value) {
    read(agent().get(format!("https://{}{path}", server.name())).call())
}

fn post(server: &TestServer, path: &str, body: &Value) -> (u16, Value) {
    read(agent().post(format!("https://{}{path}", server.name())).send(body.to_string()))
}

/// Whether a statement carries signatures of exactly these servers.
fn signers(statement: &Value) -> Vec<String> {
    statement["signatures"].as_object().expect("signatures").keys().cloned().collect()
}

#[test]
fn a_server_publishes_its_keys_and_its_version() {
    let server = TestServer::start();
    let (status, keys) = get(&server, "/_matrix/key/v2/server");
    assert_eq!(status, 200);
    assert_eq!(keys["server_name"], server.name());
    assert_eq!(signers(&keys), [server.name()]);
    assert_eq!(keys["verify_keys"].as_object().expect("keys").len(), 1);
    assert!(keys["old_verify_keys"].is_object());

    let (status, version) = get(&server, "/_matrix/federation/v1/version");
    assert_eq!((status, &version["server"]["name"]), (200, &json!("Doorstep")));
}

#[test]
fn a_server_is_a_notary_for_another_one_even_after_that_is_gone() {
    let (mut us, them) = TestServer::pair();
    let (notary, name) = (&them, us.name().to_owned());
    let path = format!("/_matrix/key/v2/query/{name}");
    let mut both = vec![name.clone(), notary.name().to_owned()];
    both.sort();
    let (status, answer) = get(notary, &path);
    assert_eq!(status, 200);
    let statements = answer["server_keys"].as_array().expect("statements");
    assert_eq!(statements.len(), 1);
    assert_eq!((statements[0]["server_name"].as_str(), signers(&statements[0])), (Some(name.as_str()), both));

    us.stop();
    let key = statements[0]["verify_keys"].as_object().expect("keys").keys().next().expect("a key").clone();
    let query = json!({ "server_keys": { &name: { key: {} } } });
    let (status, again) = post(notary, "/_matrix/key/v2/query", &query);
    assert_eq!(status, 200);
    assert_eq!(again["server_keys"].as_array().expect("statements").len(), 1);
}

#[test]
fn keys_are_given_by_the_paths_of_older_servers_too() {
    let (us, notary) = TestServer::pair();
    let (_, keys) = get(&us, "/_matrix/key/v2/server");
    let key = keys["verify_keys"].as_object().expect("keys").keys().next().expect("a key").clone();
    for wanted in [key.as_str(), "ed25519:another", "ed25519%3Aa%2Fb"] {
        let (status, named) = get(&us, &format!("/_matrix/key/v2/server/{wanted}"));
        assert_eq!((status, &named["verify_keys"]), (200, &keys["verify_keys"]), "{wanted}");
    }
    let of_us = |rest: &str| {
        let (status, answer) = get(&notary, &format!("/_matrix/key/v2/query/{}{rest}", us.name()));
        assert_eq!(status, 200, "{rest}: {answer}");
        answer["server_keys"].as_array().expect("statements").len()
    };
    assert_eq!(of_us(&format!("/{key}")), 1);
    assert_eq!(of_us(&format!("/{key}?minimum_valid_until_ts=1000")), 1);
    assert_eq!(of_us("/ed25519:another"), 0, "a key that the server does not have");
    assert_eq!(of_us(""), 1);
}

#[test]
fn a_notary_leaves_out_who_cannot_be_reached() {
    let server = TestServer::start();
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let query = json!({ "server_keys": { format!("localhost:{}", nobody.port()): {}, server.name(): {} } });
    let (status, answer) = post(&server, "/_matrix/key/v2/query", &query);
    assert_eq!(status, 200);
    let statements = answer["server_keys"].as_array().expect("statements");
    assert_eq!(statements.len(), 1);
    assert_eq!(statements[0]["server_name"], server.name());
}

#[test]
fn questions_to_the_notary_that_make_no_sense_are_refused() {
    let server = TestServer::start();
    let ask = |body: Value| {
        let (status, answer) = post(&server, "/_matrix/key/v2/query", &body);
        (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
    };
    let refused = |code: &str| (400, code.to_owned());
    assert_eq!(ask(json!({})), refused("M_MISSING_PARAM"));
    assert_eq!(ask(json!({ "server_keys": [] })), refused("M_BAD_JSON"));
    assert_eq!(ask(json!({ "server_keys": { "not a name": {} } })), refused("M_INVALID_PARAM"));
    assert_eq!(ask(json!({ "server_keys": { "a.example": { "ed25519:a": 5 } } })), refused("M_BAD_JSON"));
    let time = json!({ "minimum_valid_until_ts": "soon" });
    assert_eq!(ask(json!({ "server_keys": { "a.example": { "ed25519:a": time } } })), refused("M_BAD_JSON"));
    let many: serde_json::Map<String, Value> =
        (0..501).map(|n| (format!("s{n}.example"), json!({}))).collect();
    assert_eq!(ask(json!({ "server_keys": many })), refused("M_INVALID_PARAM"));
    let (status, answer) = get(&server, "/_matrix/key/v2/query/not%20a%20name");
    assert_eq!((status, answer["errcode"].as_str()), (400, Some("M_INVALID_PARAM")));
}

#[test]
fn after_a_rotation_old_events_stay_good_elsewhere_and_new_ones_are_good_too() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({ "preset": "public_chat" }));
    bob.join_via(&room, &[here.name()]);
    alice.send(&room, "signed with the first key");
    assert_eq!(bob.next_message(&room), "signed with the first key");
    let first = get(&here, "/_matrix/key/v2/server").1;

    here.homeserver().keys().rotate_signing_key().expect("a new key");
    let (_, keys) = get(&here, "/_matrix/key/v2/server");
    let old = first["verify_keys"].as_object().expect("keys").keys().next().expect("a key");
    assert_eq!(keys["old_verify_keys"][old]["key"], first["verify_keys"][old]["key"]);
    assert!(keys["verify_keys"].get(old).is_none());
    alice.send(&room, "signed with the second");
    assert_eq!(bob.next_message(&room), "signed with the second", "by a server that knew the first key only");

    // Who has never heard of us reads the whole room, signed with both.
    let third = TestServer::start();
    let carol = third.user("carol");
    carol.join_via(&room, &[there.name()]);
    let path =
        format!("/_matrix/client/v3/rooms/{}/messages?dir=b&limit=50", doorstep::testing::segment(&room));
    let page = carol.get(&path);
    let chunk = page["chunk"].as_array().expect("a chunk");
    let bodies: Vec<&str> = chunk.iter().filter_map(|e| e["content"]["body"].as_str()).collect();
    assert_eq!(bodies, ["signed with the second", "signed with the first key"]);
}

/// What `doorstep keys` says: whether it worked, and its output.
fn keys(folder: &std::path::Path, what: &str) -> (bool, String) {
    let mut command = Command::new(env!("CARGO_BIN_EXE_doorstep"));
    let output = command.args(["keys", "--data"]).arg(folder).arg(what).output().expect("it runs");
    (output.status.success(), String::from_utf8(output.stdout).expect("text"))
}

#[test]
fn the_operator_lists_and_rotates_the_keys_of_a_server_that_does_not_run() {
    let mut server = ProcessServer::start(&[]);
    let folder = server.folder().to_owned();
    assert!(!keys(&folder, "rotate").0, "it is running");
    server.kill();
    let (fine, before) = keys(&folder, "list");
    assert!(fine && before.lines().count() == 1, "{before}");
    let (fine, after) = keys(&folder, "rotate");
    assert!(fine && after.lines().count() == 2, "{after}");
    let id = |line: &str| line.split(' ').next().expect("an id").to_owned();
    assert_eq!(id(&before), id(&after), "the old one comes first");
    assert_eq!(keys(&folder, "list").1, after);
    server.resume();
    let url = format!("https://{}/_matrix/key/v2/server", server.name());
    let (_, published) = read(agent().get(url).call());
    let fresh = id(after.lines().last().expect("two lines"));
    assert!(
        published["verify_keys"].get(&fresh).is_some()
            && published["signatures"][server.name()].get(&fresh).is_some()
    );
    assert!(published["old_verify_keys"].get(id(&before)).is_some());
    let nowhere = folder.join("nowhere");
    assert!(!keys(&nowhere, "list").0);
    assert!(!nowhere.exists(), "nothing is made in a wrong folder");
}

#[test]
fn nothing_is_read_of_a_large_body_by_who_has_no_key() {
    let server = TestServer::start();
    let nobody =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let (name, signature) = (server.name(), "A".repeat(86));
    for length in ["Content-Length: 11000000", "Transfer-Encoding: chunked"] {
        let mut stream =
            TcpStream::connect(server.url().trim_start_matches("http://")).expect("a connection");
        stream.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
        write!(
            stream,
            "PUT /_matrix/federation/v1/send/1 HTTP/1.1\r\nHost: x\r\n{length}\r\nExpect: 100-continue\r\n\
             Authorization: X-Matrix origin=\"localhost:{}\",destination=\"{name}\",key=\"ed25519:a\",\
             sig=\"{signature}\"\r\n\r\n",
            nobody.port()
        )
        .expect("it is sent");
        let mut line = String::new();
        BufReader::new(stream).read_line(&mut line).expect("an answer");
        assert!(line.starts_with("HTTP/1.1 401 "), "{length}: {line}");
    }
}
