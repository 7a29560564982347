//! Those who make us ask servers that never answer, without a name or with one that they made up: what they may keep busy.

use std::io::{Read, Write};
use std::net::TcpStream;
use std::time::{Duration, Instant};

use crate::common::peer::Peer;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::segment;
use serde_json::{Value, json};

/// Servers without end that take every connection and never say anything: a name for each number.
fn black_hole() -> impl Fn(u16) -> String {
    let listener = std::net::TcpListener::bind("0.0.0.0:0").expect("a port");
    let port = listener.local_addr().expect("its address").port();
    std::thread::spawn(move || {
        let mut held = Vec::new();
        while let Ok((connection, _)) = listener.accept() {
            held.push(connection);
        }
    });
    move |n| format!("127.66.{}.{}:{port}", n / 250, n % 250 + 1)
}

/// Sends a request without waiting for the answer.
fn begin(server: &TestServer, head: &str, body: &str) -> TcpStream {
    let address = server.url().strip_prefix("http://").expect("plain HTTP");
    let mut connection = TcpStream::connect(address).expect("a connection");
    let length = body.len();
    write!(connection, "{head} HTTP/1.1\r\nHost: {address}\r\nContent-Length: {length}\r\n\r\n{body}")
        .expect("sent");
    connection
}

/// The status of the answer, and the answer.
fn answer(mut connection: TcpStream) -> (u16, String) {
    connection.set_read_timeout(Some(Duration::from_secs(60))).expect("a time-out");
    connection.shutdown(std::net::Shutdown::Write).expect("nothing more to say");
    let mut text = String::new();
    connection.read_to_string(&mut text).expect("an answer");
    let status = text.split(' ').nth(1).and_then(|status| status.parse().ok());
    (status.unwrap_or_else(|| panic!("no answer: {text:?}")), text)
}

/// Requests that need no name and make us ask such a server.
fn nameless(n: u16, hole: &str, user: &str) -> (String, String) {
    match n % 7 {
        0 => {
            let signed = json!({ "mxid": user, "token": "t", "signatures": {} });
            let invite = json!({ "room_id": format!("!r:{hole}"), "sender": format!("@eve:{hole}"), "signed": signed });
            let body = json!({ "medium": "email", "address": "a@b.c", "mxid": user, "invites": [invite] });
            ("PUT /_matrix/federation/v1/3pid/onbind".to_owned(), body.to_string())
        }
        1 => (format!("GET /_matrix/client/v3/profile/@eve:{hole}"), String::new()),
        2 => (format!("GET /_matrix/client/v3/directory/room/%23room:{hole}"), String::new()),
        3 => (format!("GET /_matrix/client/v3/publicRooms?server={hole}"), String::new()),
        4 => (format!("GET /_matrix/key/v2/query/{hole}"), String::new()),
        5 => {
            let port = hole.rsplit(':').next().expect("a port");
            let names = (0..50).map(|m| (format!("127.67.{}.{}:{port}", n % 250, m + 1), json!({})));
            let asked: serde_json::Map<String, Value> = names.collect();
            ("POST /_matrix/key/v2/query".to_owned(), json!({ "server_keys": asked }).to_string())
        }
        _ => (
            format!(
                "GET /_matrix/federation/v1/query/profile?user_id={user} HTTP/1.1\r\nX-Forwarded-For: 203.0.113.5\r\n\
                 Authorization: X-Matrix origin=\"{hole}\",key=\"ed25519:a\",sig=\"AAAA\"\r\nX-Rest:"
            ),
            String::new(),
        ),
    }
}

#[test]
fn hundreds_of_requests_that_lead_to_servers_that_never_answer_keep_nobody_from_federating() {
    let (server, elsewhere) = TestServer::pair();
    let (alice, bob) = (server.user("alice"), elsewhere.user("bob"));
    let room = bob.create_room_with(json!({ "preset": "public_chat", "room_alias_name": "open" }));
    let hole = black_hole();
    let flood = |from: u16| -> Vec<TcpStream> {
        let request = |n: u16| {
            let (head, body) = nameless(n, &hole(n), alice.id());
            begin(&server, &head, &body)
        };
        (from..from + 420).map(request).collect()
    };
    let began = Instant::now();
    let held = flood(0);
    // A server of which nothing is known, a join elsewhere by an alias, and a profile that one of us looks at.
    let stranger = Peer::start();
    let profile = format!("/_matrix/federation/v1/query/profile?user_id={}", segment(alice.id()));
    assert_eq!(stranger.ask(server.name(), "GET", &profile, None).0, 200);
    let alias = segment(&format!("#open:{}", elsewhere.name()));
    let (status, joined) =
        alice.request("POST", &format!("/_matrix/client/v3/join/{alias}"), Some(json!({})));
    assert_eq!((status, joined["room_id"].as_str()), (200, Some(room.as_str())));
    alice.get(&format!("/_matrix/client/v3/profile/{}", segment(bob.id())));
    bob.send(&room, "all is well");
    assert_eq!(alice.next_message(&room), "all is well");
    let took = began.elapsed();
    assert!(took < Duration::from_secs(8), "the honest were served after {took:?}");
    // Whoever found no place was told so, and when to come again; nobody was kept for long.
    let answers: Vec<(u16, String)> = held.into_iter().map(answer).collect();
    let refused = answers.iter().filter(|(status, _)| *status == 429).count();
    assert!(refused > 200, "{refused} of {} were refused", answers.len());
    for (status, text) in &answers {
        let told = text.contains("M_LIMIT_EXCEEDED") && text.contains("retry_after_ms");
        assert!(matches!(status, 200 | 401 | 502 | 504) || (*status == 429 && told), "{text}");
    }
    assert!(began.elapsed() < Duration::from_secs(45), "all were answered after {:?}", began.elapsed());
}

#[test]
fn who_hangs_up_leaves_the_line_to_others() {
    let server = TestServer::start();
    let (alice, hole) = (server.user("alice"), black_hole());
    let profile = |n: u16| begin(&server, &format!("GET /_matrix/client/v3/profile/@eve:{}", hole(n)), "");
    // As many as have a place at a time, and some who wait for one.
    let held: Vec<TcpStream> = (0..4).map(profile).collect();
    let first = (4..30).map(profile).collect::<Vec<_>>();
    drop(first);
    let began = Instant::now();
    // Whoever has a place is waited for, who is gone is not.
    drop(held);
    wait_until("there is a place again", || answer(profile(50)).0 == 504);
    assert!(began.elapsed() < Duration::from_secs(40), "after {:?}", began.elapsed());
    assert_eq!(alice.request("GET", &format!("/_matrix/client/v3/profile/{}", alice.id()), None).0, 200);
}

#[test]
fn requests_with_large_bodies_by_servers_that_nobody_knows_are_counted_before_anybody_is_asked_for_a_key() {
    let server = TestServer::start_with(|config| config.rate_limits = true);
    let announced = || {
        let address = server.url().strip_prefix("http://").expect("plain HTTP").to_owned();
        let mut connection = TcpStream::connect(address).expect("a connection");
        write!(
            connection,
            "PUT /_matrix/federation/v1/send/t HTTP/1.1\r\nHost: x\r\nX-Forwarded-For: 203.0.113.5\r\n\
             Content-Length: 70000\r\n\r\n"
        )
        .expect("sent");
        connection
    };
    let refused = (0..3000).map(|_| answer(announced()).0).find(|status| *status != 401);
    assert_eq!(refused, Some(429));
}

#[test]
fn what_reads_nothing_takes_no_body_and_who_logs_in_no_large_one() {
    let server = TestServer::start();
    let answered = |head: &str, length: usize| {
        let address = server.url().strip_prefix("http://").expect("plain HTTP");
        let mut connection = TcpStream::connect(address).expect("a connection");
        write!(connection, "{head} HTTP/1.1\r\nHost: x\r\nContent-Length: {length}\r\n\r\n").expect("sent");
        // What comes of a body that is refused may find the connection closed.
        let _ = connection.write_all(&vec![b' '; length]);
        answer(connection).0
    };
    for path in [
        "/health",
        "/_matrix/key/v2/server",
        "/.well-known/matrix/server",
        "/_matrix/federation/v1/version",
        "/_matrix/client/versions",
    ] {
        assert_eq!(
            (path, answered(&format!("GET {path}"), 2), answered(&format!("GET {path}"), 2000)),
            (path, 200, 413)
        );
    }
    for path in ["/_matrix/client/v3/login", "/_matrix/client/v3/register"] {
        assert_eq!(answered(&format!("POST {path}"), 70_000), 413, "{path}");
    }
}
