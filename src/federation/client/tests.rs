//! The client against a peer on a real socket that does what peers should not do.

use std::io;
use std::net::IpAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use super::scripted_peer::{ScriptedAnswer, ScriptedPeer};
use super::*;
use crate::federation::calls::HandshakeKind;
use crate::federation::discovery::WellKnown;
use crate::federation::discovery::dns::Srv;
use crate::protocol::{EventId, RoomId, UserId};
use crate::testing::certificates;

/// A world in which every host is this one, and a few names are delegated.
#[derive(Default)]
struct Loopback {
    delegate: Option<(&'static str, String)>,
    srv: Option<(&'static str, u16)>,
}

impl Lookups for Loopback {
    fn well_known(&self, host: &str, _: Duration) -> WellKnown {
        match &self.delegate {
            Some((from, to)) if *from == host => WellKnown::Delegates { to: to.clone(), max_age: None },
            _ => WellKnown::Nothing,
        }
    }

    fn srv(&self, name: &str, _: Duration) -> io::Result<Vec<Srv>> {
        Ok(match self.srv {
            Some((of, port)) if of == name => {
                vec![Srv { priority: 0, weight: 0, port, target: "target.example".into(), ttl: 60 }]
            }
            _ => Vec::new(),
        })
    }

    fn addresses(&self, _: &str, _: Duration) -> io::Result<Vec<IpAddr>> {
        Ok(vec![IpAddr::from([127, 0, 0, 1])])
    }
}

fn name(text: &str) -> ServerName {
    ServerName::parse(text).expect("a server name")
}

fn settings(allow_private_addresses: bool) -> ClientSettings {
    ClientSettings {
        server_name: name("us.example"),
        trust_ca: vec![certificates().ca.clone()],
        allow_private_addresses,
        names: Default::default(),
        clock: Clock::new(),
    }
}

fn key() -> Arc<ArcSwap<SigningKey>> {
    Arc::new(ArcSwap::from_pointee(SigningKey::generate([1; 32], "k1")))
}

fn client() -> Client {
    Client::new(settings(true), key()).expect("a client")
}

fn client_in(world: Loopback) -> Client {
    let roots = roots("--trust-ca", &[certificates().ca.clone()], None).expect("roots");
    Client::with_lookups(settings(true), key(), roots, Box::new(world))
}

fn get<'a>(peer: &'a ServerName, path: &str) -> PeerRequest<'a> {
    PeerRequest {
        method: "GET",
        destination: peer,
        path_and_query: path.into(),
        body: None,
        timeout: Duration::from_secs(10),
        max_bytes: 10_000,
    }
}

fn without_success(error: CallError) -> CallError {
    match error {
        CallError::AfterSuccess(error) => *error,
        error => error,
    }
}

fn bad_answer(result: CallResult<Response>) -> String {
    match result.map_err(without_success) {
        Err(CallError::BadAnswer(why)) => why,
        Err(e) => panic!("another error: {e}"),
        Ok(r) => panic!("an answer: {}", String::from_utf8_lossy(&r.body)),
    }
}

fn unreachable(result: CallResult<Response>) -> String {
    match result.map_err(without_success) {
        Err(CallError::Unreachable(why) | CallError::Unconnected(why)) => why,
        Err(e) => panic!("another error: {e}"),
        Ok(r) => panic!("an answer: {}", String::from_utf8_lossy(&r.body)),
    }
}

#[test]
fn requests_are_signed_over_method_target_and_body() {
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Json(200, json!({})));
    let body = br#"{"b": 1, "a": [true]}"#;
    let request = PeerRequest { method: "PUT", body: Some(body), ..get(&peer.name, "/_matrix/x/%21a?b=c") };
    client().request(request).expect("an answer");
    let asked = &peer.asked()[0];
    assert_eq!((asked.method.as_str(), asked.target.as_str()), ("PUT", "/_matrix/x/%21a?b=c"));
    assert_eq!(asked.header("host"), Some(peer.name.as_str()));
    assert_eq!(asked.header("content-type"), Some("application/json"));
    assert_eq!(asked.body, body);
    let claim = x_matrix::parse(asked.header("authorization").expect("signed")).expect("X-Matrix");
    assert_eq!((claim.origin.as_str(), claim.key.as_str()), ("us.example", "ed25519:k1"));
    assert_eq!(claim.destination.as_ref(), Some(&peer.name));
    let public = SigningKey::generate([1; 32], "k1").verify_key();
    claim.verify("PUT", &asked.target, &peer.name, Some(&asked.body), &public).expect("the signature");
}

#[test]
fn connections_are_kept_and_a_closed_one_is_replaced_without_notice() {
    let count = AtomicUsize::new(0);
    let peer = ScriptedPeer::start(move |asked| match asked.target.as_str() {
        // Closes where the third answer should be, on the connection that served the first two.
        "/third" if count.fetch_add(1, Ordering::Relaxed) == 0 => ScriptedAnswer::HangUp,
        _ => ScriptedAnswer::Json(200, json!({})),
    });
    let client = client();
    for path in ["/first", "/second", "/third", "/fourth"] {
        client.request(get(&peer.name, path)).unwrap_or_else(|e| panic!("{path}: {e}"));
    }
    let connections: Vec<usize> = peer.asked().iter().map(|a| a.connection).collect();
    assert_eq!(connections, [0, 0, 0, 1, 1]);
}

#[test]
fn host_and_certificate_follow_the_delegated_name_and_the_signature_does_not() {
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Json(200, json!({})));
    let delegated = format!("localhost:{}", peer.address.port());
    let client = client_in(Loopback { delegate: Some(("matrix.example", delegated.clone())), srv: None });
    let server = name("matrix.example");
    client.request(get(&server, "/")).expect("an answer");
    let asked = &peer.asked()[0];
    assert_eq!(asked.header("host"), Some(delegated.as_str()));
    let claim = x_matrix::parse(asked.header("authorization").expect("signed")).expect("X-Matrix");
    assert_eq!(claim.destination, Some(server));
}

#[test]
fn an_srv_record_changes_the_port_but_not_the_name_of_the_certificate() {
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Json(200, json!({})));
    let srv = |service| Loopback { delegate: None, srv: Some((service, peer.address.port())) };
    let localhost = name("localhost");
    client_in(srv("_matrix-fed._tcp.localhost")).request(get(&localhost, "/")).expect("an answer");
    assert_eq!(peer.asked()[0].header("host"), Some("localhost"));

    // The peer's certificate is for localhost, whatever DNS says of another name.
    let other = name("other.example");
    let why = unreachable(client_in(srv("_matrix-fed._tcp.other.example")).request(get(&other, "/")));
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    assert_eq!(peer.asked().len(), 1);
}

#[test]
fn a_certificate_of_an_unknown_authority_is_refused() {
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Json(200, json!({})));
    let stranger =
        Client::new(ClientSettings { trust_ca: Vec::new(), ..settings(true) }, key()).expect("a client");
    let why = unreachable(stranger.request(get(&peer.name, "/")));
    assert!(why.to_lowercase().contains("certificate"), "{why}");
    assert!(peer.asked().is_empty(), "nothing may be sent before the peer is known");
}

#[test]
fn a_file_of_authorities_that_is_none_is_an_error_with_its_name() {
    let folder = crate::testing::temporary_folder("roots");
    let empty = folder.join("empty.pem");
    std::fs::write(&empty, "no certificate here").expect("written");
    for file in [empty, folder.join("missing.pem")] {
        let e = Client::new(ClientSettings { trust_ca: vec![file.clone()], ..settings(true) }, key())
            .err()
            .expect("an error");
        assert!(e.to_string().contains(&file.display().to_string()), "{e}");
    }
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn private_addresses_are_not_connected_to_unless_allowed() {
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Json(200, json!({})));
    let guarded = Client::new(settings(false), key()).expect("a client");
    for server in [peer.name.as_str(), &format!("127.0.0.1:{}", peer.address.port())] {
        let why = unreachable(guarded.request(get(&name(server), "/")));
        assert!(why.contains("may connect to"), "{why}");
    }
    assert!(peer.asked().is_empty());
}

#[test]
fn answers_that_are_too_long_are_refused_without_reading_them() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/length" => ScriptedAnswer::Endless(
            b"HTTP/1.1 200 OK\r\nContent-Length: 10000000000\r\n\r\n".into(),
            vec![b'x'; 4096],
        ),
        "/chunks" => ScriptedAnswer::Endless(
            b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n".into(),
            [b"1000\r\n", &[b'x'; 4096][..], b"\r\n"].concat(),
        ),
        "/until-close" => ScriptedAnswer::Endless(b"HTTP/1.1 200 OK\r\n\r\n".into(), vec![b'x'; 4096]),
        _ => ScriptedAnswer::Endless(b"HTTP/1.1 200 OK\r\n".into(), b"X-Header: again\r\n".into()),
    });
    let client = client();
    for path in ["/length", "/chunks", "/until-close", "/head"] {
        let answer = client.request(get(&peer.name, path));
        let said_yes = answer.as_ref().is_err_and(CallError::is_after_success);
        assert_eq!(said_yes, path != "/head", "{path}");
        let why = bad_answer(answer);
        assert!(path == "/head" || why.contains("longer than 10000"), "{path}: {why}");
    }
}

#[test]
fn slow_and_silent_peers_cost_no_more_than_the_time_given() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/silence" => ScriptedAnswer::Silence,
        "/slow-head" => {
            ScriptedAnswer::Drip([b"HTTP/1.1 200 OK\r\n".to_vec(), b"X: y\r\n".repeat(10_000)].concat())
        }
        _ => ScriptedAnswer::Drip(
            [b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n".to_vec(), vec![b' '; 9000]].concat(),
        ),
    });
    let client = client();
    for path in ["/silence", "/slow-head", "/slow-body"] {
        let request = PeerRequest { timeout: Duration::from_millis(700), ..get(&peer.name, path) };
        let why = unreachable(client.request(request));
        assert!(why.contains("in time"), "{path}: {why}");
    }
}

#[test]
fn nobody_there_is_unreachable() {
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    let answer = client().request(get(&name(&format!("localhost:{}", closed.port())), "/"));
    assert!(answer.as_ref().is_err_and(CallError::is_unconnected));
    unreachable(answer);
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::HangUp);
    unreachable(client().request(get(&peer.name, "/")));
    assert_eq!(peer.asked().len(), 2, "tried once more on a new connection");
}

#[test]
fn what_takes_something_away_is_asked_for_once_and_on_a_connection_of_its_own() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/first" => ScriptedAnswer::Json(200, json!({})),
        _ => ScriptedAnswer::HangUp,
    });
    let client = client();
    client.request(get(&peer.name, "/first")).expect("an answer");
    // The connection is kept, and might be closed by the peer just now: then nobody would know what it has done.
    unreachable(client.request_once(get(&peer.name, "/claim")));
    let asked = peer.asked();
    assert_eq!(asked.iter().filter(|asked| asked.target == "/claim").count(), 1);
    assert_ne!(asked[0].connection, asked[1].connection);
}

#[test]
fn an_answer_that_is_cut_off_is_not_an_answer() {
    let peer = ScriptedPeer::start(|asked| match asked.connection {
        0 | 1 => ScriptedAnswer::Endless(
            b"HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\n{\"half\":".into(),
            Vec::new(),
        ),
        _ => ScriptedAnswer::HangUp,
    });
    let short = PeerRequest { timeout: Duration::from_millis(700), ..get(&peer.name, "/") };
    unreachable(client().request(short));
}

#[test]
fn refusals_carry_the_peers_words_and_proxies_do_not_count_as_peers() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/forbidden" => {
            ScriptedAnswer::Json(403, json!({ "errcode": "M_FORBIDDEN", "error": "no\u{7} way" }))
        }
        "/version" => ScriptedAnswer::Json(
            400,
            json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "x", "room_version": "9", "admin": true }),
        ),
        "/unknown" => ScriptedAnswer::Json(404, json!({ "errcode": "M_UNRECOGNIZED" })),
        "/html404" => ScriptedAnswer::Raw(b"HTTP/1.1 404 X\r\nContent-Length: 6\r\n\r\n<html>".to_vec()),
        "/limit" => {
            ScriptedAnswer::Json(429, json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 1500 }))
        }
        "/token" => ScriptedAnswer::Json(401, json!({ "errcode": "M_UNKNOWN_TOKEN", "error": "x" })),
        "/gateway" => ScriptedAnswer::Raw(b"HTTP/1.1 502 X\r\nContent-Length: 6\r\n\r\n<html>".to_vec()),
        "/moved" => ScriptedAnswer::Raw(
            b"HTTP/1.1 302 X\r\nLocation: https://localhost/\r\nContent-Length: 0\r\n\r\n".to_vec(),
        ),
        _ => ScriptedAnswer::Json(500, json!({})),
    });
    let client = client();
    let error = |path: &str| client.request(get(&peer.name, path)).err().expect("an error");

    let e = error("/forbidden");
    assert_eq!((e.errcode(), e.is_transient()), (Some(ErrCode::Forbidden), false));
    let e = e.into_client_error(&peer.name);
    assert_eq!((e.status(), e.errcode(), e.message()), (403, ErrCode::Forbidden, "no way"));

    let e = error("/version").into_client_error(&peer.name);
    assert_eq!(
        e.to_json(),
        json!({ "errcode": "M_INCOMPATIBLE_ROOM_VERSION", "error": "x", "room_version": "9" })
    );

    assert!(error("/unknown").is_unrecognized() && error("/html404").is_unrecognized());
    assert!(!error("/forbidden").is_unrecognized());
    let e = error("/unknown").into_client_error(&peer.name);
    assert_eq!((e.status(), e.message()), (502, format!("{} knows no such request", peer.name).as_str()));
    assert_eq!(error("/limit").retry_after(), Some(Duration::from_millis(1500)));
    assert!(error("/limit").is_transient() && error("/other").is_transient());

    // What the peer thinks of us is not our client's business.
    let e = error("/token").into_client_error(&peer.name);
    assert_eq!((e.status(), e.errcode()), (502, ErrCode::Unknown));
    assert!(e.message().contains(peer.name.as_str()));

    assert!(matches!(error("/gateway"), CallError::Unreachable(_)));
    assert_eq!(error("/gateway").into_client_error(&peer.name).status(), 504);
    assert!(matches!(error("/moved"), CallError::BadAnswer(_)));
}

#[test]
fn html_and_other_nonsense_is_a_bad_answer_to_typed_calls() {
    let peer = ScriptedPeer::start(|_| {
        ScriptedAnswer::Raw(b"HTTP/1.1 200 OK\r\nContent-Length: 6\r\n\r\n<html>".to_vec())
    });
    let room = RoomId::parse("!r:localhost").expect("a room id");
    let user = UserId::parse("@u:us.example").expect("a user id");
    let within = Duration::from_secs(20);
    let asked = client().make_membership(&peer.name, HandshakeKind::Knock, &room, &user, &[], within);
    let e = asked.expect_err("an error");
    assert!(matches!(&e, CallError::BadAnswer(why) if why.contains("HTML")), "{e}");
}

#[test]
fn send_join_and_send_leave_fall_back_to_version_1() {
    let peer = ScriptedPeer::start(|asked| match &asked.target {
        t if t.contains("/v2/") => ScriptedAnswer::Json(404, json!({ "errcode": "M_UNRECOGNIZED" })),
        t if t.contains("send_join") => ScriptedAnswer::Json(
            200,
            json!([200, { "auth_chain": [], "state": [{ "type": "m.room.create" }] }]),
        ),
        _ => ScriptedAnswer::Json(200, json!([200, {}])),
    });
    let (room, event) = (RoomId::parse("!r:x").expect("room"), EventId::parse("$e:x").expect("event"));
    let client = client();
    let answer =
        client.send_join(&peer.name, &room, &event, b"{}", Duration::from_secs(60)).expect("an answer");
    assert_eq!(answer.read().expect("a room").state.len(), 1);
    client.send_leave(&peer.name, &room, &event, b"{}").expect("an answer");
    assert_eq!(peer.asked().len(), 4);
}

#[test]
fn templates_are_asked_for_with_our_versions() {
    let peer = ScriptedPeer::start(|_| {
        ScriptedAnswer::Json(200, json!({ "room_version": "9", "event": { "type": "m.room.member" } }))
    });
    let room = RoomId::parse("!r:localhost").expect("a room id");
    let user = UserId::parse("@u:us.example").expect("a user id");
    let versions: Vec<_> =
        ["7", "12"].iter().filter_map(|id| crate::protocol::room_version::room_version(id)).collect();
    let template = client()
        .make_membership(&peer.name, HandshakeKind::Knock, &room, &user, &versions, Duration::from_secs(20))
        .expect("a template");
    assert_eq!(template.room_version, "9");
    assert_eq!(
        peer.asked()[0].target,
        "/_matrix/federation/v1/make_knock/%21r%3Alocalhost/%40u%3Aus.example?ver=7&ver=12"
    );
}

#[test]
fn after_a_shutdown_requests_under_way_end_and_new_ones_fail() {
    let peer = ScriptedPeer::start(|_| ScriptedAnswer::Silence);
    let client = Arc::new(client());
    let (asking, of) = (client.clone(), peer.name.clone());
    let waiting = std::thread::spawn(move || asking.request(get(&of, "/")).is_err());
    peer.wait_for("/", 1);
    client.shutdown();
    assert!(waiting.join().expect("no panic"));
    unreachable(client.request(get(&peer.name, "/")));
}

mod well_known {
    use super::*;

    fn ask(
        script: impl Fn(&str) -> ScriptedAnswer + Send + Sync + 'static,
        allow_private: bool,
    ) -> (WellKnown, usize) {
        let peer = ScriptedPeer::start(move |asked| script(&asked.target));
        let roots = roots("--trust-ca", &[certificates().ca.clone()], None).expect("roots");
        let mut lookups =
            SystemLookups::new(roots, AddressGuard { allow_private }, &Names::default(), Clock::new());
        lookups.https_port = peer.address.port();
        let answer = lookups.well_known("localhost", Duration::from_secs(3));
        (answer, peer.asked().len())
    }

    fn raw(text: &str) -> ScriptedAnswer {
        ScriptedAnswer::Raw(text.replace('\n', "\r\n").into_bytes())
    }

    fn redirect(to: &str) -> ScriptedAnswer {
        raw(&format!("HTTP/1.1 302 Found\nLocation: {to}\nContent-Length: 0\n\n"))
    }

    #[test]
    fn a_delegation_is_read_with_its_age_whatever_its_content_type() {
        let (answer, _) = ask(
            |_| {
                raw(
                    "HTTP/1.1 200 OK\nCache-Control: max-age=77\nContent-Type: text/plain\nContent-Length: 23\n\n{\"m.server\":\"a.example\"}",
                )
            },
            true,
        );
        assert_eq!(answer, WellKnown::Nothing, "the body was cut by its length");
        let (answer, _) = ask(
            |_| {
                raw(
                    "HTTP/1.1 200 OK\nCache-Control: max-age=77\nContent-Type: text/plain\nContent-Length: 24\n\n{\"m.server\":\"a.example\"}",
                )
            },
            true,
        );
        assert_eq!(
            answer,
            WellKnown::Delegates { to: "a.example".into(), max_age: Some(Duration::from_secs(77)) }
        );
    }

    #[test]
    fn redirects_are_followed_but_not_in_circles_and_not_to_plain_http() {
        let (answer, asked) = ask(
            |target| match target {
                "/elsewhere" => ScriptedAnswer::Json(200, json!({ "m.server": "b.example" })),
                _ => redirect("/elsewhere"),
            },
            true,
        );
        assert_eq!(answer, WellKnown::Delegates { to: "b.example".into(), max_age: None });
        assert_eq!(asked, 2);

        let (answer, asked) = ask(|_| redirect("/.well-known/matrix/server"), true);
        assert_eq!(answer, WellKnown::Nothing);
        assert!(asked <= 11, "{asked} requests");

        assert_eq!(ask(|_| redirect("http://localhost/"), true).0, WellKnown::Nothing);
    }

    #[test]
    fn nonsense_delegates_nothing() {
        for said in ["[]", "{}", "{\"m.server\": 5}", "<html>", "{\"m.server\": \"a\"", ""] {
            let length = said.len();
            let (answer, _) =
                ask(move |_| raw(&format!("HTTP/1.1 200 OK\nContent-Length: {length}\n\n{said}")), true);
            assert_eq!(answer, WellKnown::Nothing, "{said}");
        }
        assert_eq!(ask(|_| ScriptedAnswer::Json(404, json!({})), true).0, WellKnown::Nothing);
        assert_eq!(ask(|_| ScriptedAnswer::Json(503, json!({})), true).0, WellKnown::Failed);
        assert_eq!(ask(|_| ScriptedAnswer::HangUp, true).0, WellKnown::Failed);
        let endless = |_: &str| ScriptedAnswer::Endless(b"HTTP/1.1 200 OK\r\n\r\n".into(), vec![b' '; 4096]);
        assert_eq!(ask(endless, true).0, WellKnown::Failed);
        assert_eq!(ask(|_| ScriptedAnswer::Silence, true).0, WellKnown::Failed);
    }

    #[test]
    fn it_is_not_asked_for_inside() {
        let (answer, asked) = ask(|_| ScriptedAnswer::Json(200, json!({ "m.server": "b.example" })), false);
        assert_eq!((answer, asked), (WellKnown::Failed, 0));
    }
}

#[test]
fn an_answer_that_breaks_off_after_its_head_was_a_yes_all_the_same_and_one_without_a_head_was_none() {
    let peer = ScriptedPeer::start(|asked| match asked.target.as_str() {
        "/cut" => ScriptedAnswer::CutOff(b"HTTP/1.1 200 OK\r\nContent-Length: 9000\r\n\r\n{".into()),
        "/cut-no" => {
            ScriptedAnswer::CutOff(b"HTTP/1.1 403 Forbidden\r\nContent-Length: 9000\r\n\r\n{".into())
        }
        "/cut-chunk" => {
            ScriptedAnswer::CutOff(b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1000\r\n{".into())
        }
        "/moved" => {
            ScriptedAnswer::CutOff(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 0\r\n\r\n".into())
        }
        _ => ScriptedAnswer::HangUp,
    });
    let client = client();
    for (path, said_yes) in
        [("/cut", true), ("/cut-chunk", true), ("/cut-no", false), ("/moved", false), ("/nothing", false)]
    {
        let answer = client.request(get(&peer.name, path));
        assert_eq!(answer.as_ref().is_err_and(CallError::is_after_success), said_yes, "{path}");
        assert_eq!(answer.as_ref().is_err_and(CallError::is_unreachable), said_yes || path == "/nothing");
    }
}
