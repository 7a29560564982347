//! Users of `example.org` on a server at `matrix.example.org`: what the README has the web server of the name say is all
//! that other servers and clients need.

use std::fs;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use doorstep::TestServer;
use doorstep::clock::Clock;
use doorstep::config::{Config, TlsFiles};
use doorstep::internals::{Client, ClientSettings, Detour, Names};
use doorstep::protocol::ServerName;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::testing::certificates;
use serde_json::Value;

use crate::common::client::join;
use crate::common::web_server::WebServer;

const APEX: &str = "doorstep.example";
const MACHINE: &str = "matrix.doorstep.example";

/// The JSON in the README that has this key, for our name.
fn body_of_readme(key: &str) -> String {
    let readme = fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/README.md")).expect("a file");
    let lines: Vec<&str> = readme.lines().filter(|line| line.starts_with(&format!("{{ \"{key}\""))).collect();
    assert_eq!(lines.len(), 1, "one line of the README begins with {key}");
    lines[0].replace("example.org", APEX)
}

/// A certificate of the authority of the tests for these names.
fn certificate(names: &[&str]) -> TlsFiles {
    certificates().issue(names, [2020, 2090])
}

fn apex_server(tls: TlsFiles) -> TestServer {
    TestServer::start_with(|config| {
        config.server_name = ServerName::parse(APEX).expect("a name");
        config.tls = Some(tls);
        config.public_url = format!("https://{MACHINE}");
    })
}

fn tls_address(server: &TestServer) -> SocketAddr {
    server.homeserver().config.listen_tls[0]
}

/// Names as they lead once DNS has them: the apex to its web server, the machine to the homeserver.
fn names(web: SocketAddr, homeserver: SocketAddr) -> Names {
    let detours = [format!("{APEX}:443={web}"), format!("{MACHINE}:443={homeserver}")];
    Names::new(detours.iter().map(|text| Detour::parse(text).expect(text)).collect(), None)
}

/// Another server finds it, lets its users in and hears from them; and a client finds it by the name alone.
fn is_found(server: &TestServer, names: &Names) {
    let elsewhere = TestServer::start_with(|config: &mut Config| config.names = names.clone());
    let (me, bob) = (local_user(server, "me"), elsewhere.user("bob"));
    assert_eq!(me.id(), format!("@me:{APEX}"));
    let room = me.create_room();
    bob.join_via(&room, &[APEX]);
    bob.send(&room, "who is there?");
    assert_eq!(me.next_message(&room), "who is there?");
    me.send(&room, "me");
    assert_eq!(bob.next_message(&room), "me");

    // What a client does (client-server API, "Server Discovery").
    let settings = ClientSettings {
        server_name: ServerName::parse("client.example").expect("a name"),
        trust_ca: vec![certificates().ca.clone()],
        allow_private_addresses: true,
        names: names.clone(),
        clock: Clock::new(),
    };
    let key = SigningKey::generate([1; 32], "none");
    let web = Client::new(settings, Arc::new(ArcSwap::from_pointee(key))).expect("a client");
    let get = |url: &str| {
        let page = web.look_at(url, Duration::from_secs(20)).unwrap_or_else(|e| panic!("{url}: {e}"));
        assert_eq!((page.status, page.allowed_origin.as_deref()), (200, Some("*")), "{url}");
        serde_json::from_slice::<Value>(&page.body).expect("JSON")
    };
    let found = get(&format!("https://{APEX}/.well-known/matrix/client"));
    let base = found["m.homeserver"]["base_url"].as_str().expect("an address");
    assert_eq!(base, format!("https://{MACHINE}"));
    assert!(get(&format!("{base}/_matrix/client/versions"))["versions"].is_array());
}

/// An account of it, by its plain listener: its public address is not this machine's.
fn local_user(server: &TestServer, localpart: &str) -> doorstep::testing::TestUser {
    let url = format!("http://{}", server.homeserver().config.listen[0]);
    doorstep::testing::TestUser::register(&url, localpart)
}

#[test]
fn the_two_bodies_of_the_readme_on_a_plain_web_server_lead_servers_and_clients_to_it() {
    let web = WebServer::start(&certificate(&[APEX]));
    web.put("/.well-known/matrix/server", "", &body_of_readme("m.server"));
    web.put("/.well-known/matrix/client", "Access-Control-Allow-Origin: *", &body_of_readme("m.homeserver"));
    let server = apex_server(certificate(&[MACHINE]));
    is_found(&server, &names(web.address(), tls_address(&server)));
}

#[test]
fn doorstep_itself_answers_for_the_apex_what_leads_servers_and_clients_to_it() {
    let server = apex_server(certificate(&[APEX, MACHINE]));
    let here = tls_address(&server);
    is_found(&server, &names(here, here));
}

#[test]
fn without_the_two_bodies_nobody_finds_it() {
    let web = WebServer::start(&certificate(&[APEX]));
    let server = apex_server(certificate(&[MACHINE]));
    let names = names(web.address(), tls_address(&server));
    let elsewhere = TestServer::start_with(|config: &mut Config| config.names = names);
    let room = local_user(&server, "me").create_room();
    let (status, answer) = join(&elsewhere.user("bob"), &room, Some(APEX));
    assert!(status >= 400, "{status} {answer}");
}
