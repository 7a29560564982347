//! The connection layer: any bytes on a socket, through the real reader, threads and writer.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use doorstep::internals::{
    Admission, BodyUse, ConnectionLimits, Outcome, Poll, Quota, Reply, Request, Server, Service,
};
use doorstep::protocol::UserId;
use serde_json::{Value, json};
use tiny_http::Method;

use super::source::Source;

/// The first byte says where the rest is cut into two writes. However it arrives, the replies are the same, each is
/// well-formed, and the connection comes to its end.
pub fn http_connection(data: &[u8]) {
    let mut source = Source::new(data);
    let cut = source.byte();
    // More than this does not fit into a socket's buffer while nobody reads the replies.
    let bytes = source.rest();
    let bytes = &bytes[..bytes.len().min(64 << 10)];
    let whole = replies(&exchange(&[bytes]));
    let (first, second) = bytes.split_at(bytes.len() * usize::from(cut) / 256);
    let in_two = replies(&exchange(&[first, second]));
    // Who has closed their sending half while a request of theirs waits gets no further replies.
    if !bytes.windows(5).any(|part| part == b"/wait") {
        assert_eq!(whole, in_two, "the replies depend on how the bytes arrive");
    }
}

/// Answers with what it was asked.
struct Echo;

impl Echo {
    fn answer(request: &Request, poll: Poll) -> Outcome {
        if request.path().starts_with("/wait") && poll == Poll::First {
            let user = UserId::parse("@a:a.example").expect("a user id");
            return Outcome::Wait { user, after: 0, until: Instant::now() };
        }
        assert!(request.body().len() <= 4096);
        let text = String::from_utf8_lossy(request.body());
        let reply =
            Reply::json(&json!({ "target": request.target(), "body": text, "token": request.token() }));
        Outcome::Reply(marked(reply, request))
    }
}

impl Service for Echo {
    fn admit(self: Arc<Self>, head: &mut Request) -> Result<Admission, Reply> {
        if head.path().starts_with("/refuse") {
            let body = json!({ "errcode": "M_FORBIDDEN", "error": "refused" });
            return Err(marked(Reply::json_status(403, &body), head));
        }
        let body = if head.path().starts_with("/small") { 10 } else { 4096 };
        Ok(Admission { body: BodyUse::Whole(body), quota: Quota::Clients, call: Box::new(Echo::answer) })
    }

    fn wait(&self, _user: &UserId, _after: i64, _until: Instant) -> Option<Poll> {
        None
    }

    fn interrupt(&self) {}
}

/// A reply to HEAD has the length of a body that does not follow; whoever reads it has to know.
fn marked(reply: Reply, request: &Request) -> Reply {
    if *request.method() == Method::Head { reply.with_header("X-No-Body", "1") } else { reply }
}

/// What comes back for these writes.
fn exchange(writes: &[&[u8]]) -> Vec<u8> {
    static SERVER: OnceLock<Server> = OnceLock::new();
    let server = SERVER
        .get_or_init(|| Server::serve(Arc::new(Echo), ConnectionLimits::default(), &[]).expect("a server"));
    let (ours, theirs) = UnixStream::pair().expect("a pair of sockets");
    let theirs = TcpStream::from(OwnedFd::from(theirs));
    server.serve_connection(theirs, SocketAddr::from((Ipv4Addr::LOCALHOST, 1))).expect("a place");
    let mut ours = ours;
    ours.set_read_timeout(Some(Duration::from_secs(8))).expect("a time-out");
    for part in writes {
        // The server may have refused and closed by now.
        if ours.write_all(part).is_err() {
            break;
        }
    }
    let _ = ours.shutdown(Shutdown::Write);
    let mut answer = Vec::new();
    match ours.read_to_end(&mut answer) {
        Err(e) if matches!(e.kind(), std::io::ErrorKind::WouldBlock | std::io::ErrorKind::TimedOut) => {
            panic!("the server neither answers nor closes")
        }
        _ => answer,
    }
}

/// Status and body of each reply, the interim ones left out.
fn replies(mut bytes: &[u8]) -> Vec<(u16, Vec<u8>)> {
    let mut found = Vec::new();
    while !bytes.is_empty() {
        let end = bytes.windows(4).position(|w| w == b"\r\n\r\n").expect("a reply has a head");
        let head = std::str::from_utf8(&bytes[..end]).expect("a head is text");
        bytes = &bytes[end + 4..];
        let mut lines = head.split("\r\n");
        let status = lines.next().expect("a status line");
        assert!(status.starts_with("HTTP/1.1 ") || status.starts_with("HTTP/1.0 "), "{status}");
        let status: u16 = status[9..12].parse().expect("a status");
        let headers: Vec<(&str, &str)> = lines.map(|l| l.split_once(": ").expect("a header")).collect();
        let header = |name: &str| headers.iter().find(|(n, _)| n.eq_ignore_ascii_case(name)).map(|(_, v)| *v);
        if status == 100 {
            continue;
        }
        assert!([200, 400, 403, 413, 414, 417, 431, 501, 505].contains(&status), "{status}");
        let length: usize = header("Content-Length").expect("a length").parse().expect("a number");
        let length = if header("X-No-Body").is_some() { 0 } else { length };
        let (body, rest) = bytes.split_at(length);
        bytes = rest;
        if length > 0 {
            let body: Value = serde_json::from_slice(body).expect("every reply is JSON");
            assert!(status == 200 || body["errcode"].is_string());
        }
        if header("Connection") == Some("close") {
            assert!(bytes.is_empty(), "nothing follows the last reply");
        }
        found.push((status, body.to_vec()));
    }
    found
}
