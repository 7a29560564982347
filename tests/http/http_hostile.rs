//! Hostile input on real sockets: whatever one connection does, it is answered or closed, the others are served, and
//! memory stays bounded. The connection layer is under test here, with a small service of its own behind it.

use std::collections::HashMap;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::fd::AsRawFd;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use doorstep::error::{ErrCode, Error};
use doorstep::internals::{
    Admission, BodyUse, Call, ConnectionLimits, ListenSpec, Outcome, Poll, Quota, Reply, Request, Server,
    Service,
};
use doorstep::protocol::UserId;

const MIB: usize = 1 << 20;
/// Longer than anything here takes on a busy machine; no test waits for it unless it fails.
const PATIENCE: Duration = Duration::from_secs(30);

// ----- the service -----

#[derive(Default)]
struct House {
    /// How often `/wake` was called, and whether everything stops.
    state: Mutex<(i64, bool)>,
    changed: Condvar,
    waiting: AtomicUsize,
    /// Where `/ask` asks on.
    neighbour: Mutex<Option<SocketAddr>>,
    /// What was handed on of bodies, in bytes, and how many bodies are under way.
    handed: Arc<(AtomicUsize, AtomicUsize)>,
}

/// A body that is under way.
struct UnderWay(Arc<(AtomicUsize, AtomicUsize)>);

impl UnderWay {
    fn begin(house: &House) -> Self {
        house.handed.1.fetch_add(1, Ordering::SeqCst);
        Self(house.handed.clone())
    }
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.0.1.fetch_sub(1, Ordering::SeqCst);
    }
}

impl House {
    fn answer(&self, request: &Request, poll: Poll) -> Outcome {
        let text = |text: &str| Outcome::Reply(Reply::bytes("text/plain", text.into()));
        match request.path() {
            "/echo" => Outcome::Reply(Reply::bytes("text/plain", request.body().to_vec())),
            "/unread" => text("not looked at"),
            "/panic" => panic!("this handler always panics"),
            "/big" => Outcome::Reply(Reply::bytes("text/plain", vec![b'x'; 64 * MIB])),
            "/big-and-quick" => {
                let file = io::repeat(b'x').take(64 << 20);
                Outcome::Reply(Reply::stream("text/plain", 64 << 20, Box::new(file)).taken_at(64 << 10))
            }
            "/header" => text(request.header("x-test").unwrap_or("none")),
            "/count" => text(&self.waiting.load(Ordering::SeqCst).to_string()),
            "/wake" => {
                self.state.lock().unwrap().0 += 1;
                self.changed.notify_all();
                text("woken")
            }
            "/wait" if poll == Poll::First => Outcome::Wait {
                user: UserId::parse("@a:b").unwrap(),
                after: self.state.lock().unwrap().0,
                until: request.received() + PATIENCE,
            },
            "/wait" => text(if poll == Poll::Again { "news" } else { "nothing" }),
            // A client's request that needs another server, which needs our keys before it answers.
            "/ask" => text(&self.ask_neighbour("/server")),
            "/server" => text(&self.ask_neighbour("/keys")),
            _ => text("hello"),
        }
    }
}

impl Service for House {
    fn admit(self: Arc<Self>, head: &mut Request) -> Result<Admission, Reply> {
        let quota = match head.path() {
            "/keys" => Quota::Uncounted,
            "/server" => Quota::Servers,
            _ => Quota::Clients,
        };
        let self_ = self.clone();
        let call: Call = Box::new(move |request, poll| self.answer(request, poll));
        match head.path() {
            "/secret" => Err(Reply::error(&Error::new(ErrCode::MissingToken, "no token"))),
            "/handed" => {
                let (under_way, mut left) = (UnderWay::begin(&self_), 20 * MIB);
                let sink = move |bytes: &[u8]| {
                    under_way.0.0.fetch_add(bytes.len(), Ordering::SeqCst);
                    left = left
                        .checked_sub(bytes.len())
                        .ok_or_else(|| Error::new(ErrCode::TooLarge, "enough"))?;
                    Ok(())
                };
                Ok(Admission { body: BodyUse::Handed(Box::new(sink)), quota, call })
            }
            "/small" => Ok(Admission { body: BodyUse::Whole(100), quota, call }),
            _ => Ok(Admission { body: BodyUse::Whole(8 * MIB), quota, call }),
        }
    }

    fn wait(&self, _user: &UserId, after: i64, until: Instant) -> Option<Poll> {
        self.waiting.fetch_add(1, Ordering::SeqCst);
        let mut state = self.state.lock().unwrap();
        while state.0 <= after && !state.1 && Instant::now() < until {
            let left = until.saturating_duration_since(Instant::now());
            state = self.changed.wait_timeout(state, left).unwrap().0;
        }
        self.waiting.fetch_sub(1, Ordering::SeqCst);
        match *state {
            (_, true) => Some(Poll::Last),
            (count, false) if count > after => Some(Poll::Again),
            _ => None,
        }
    }

    fn interrupt(&self) {
        self.state.lock().unwrap().1 = true;
        self.changed.notify_all();
    }
}

impl House {
    fn ask_neighbour(&self, path: &str) -> String {
        let address = self.neighbour.lock().unwrap().expect("a neighbour is set");
        String::from_utf8(get(address, path).body).unwrap()
    }
}

fn serve_house(house: &Arc<House>, limits: ConnectionLimits) -> Server {
    let listen = [ListenSpec::plain("127.0.0.1:0".parse().unwrap())];
    Server::serve(house.clone(), limits, &listen).unwrap()
}

fn serve(limits: ConnectionLimits) -> (Server, SocketAddr) {
    let server = serve_house(&Arc::default(), limits);
    let address = server.local_addrs()[0];
    (server, address)
}

// ----- the client -----

#[derive(Debug)]
struct Answer {
    status: u16,
    headers: HashMap<String, String>,
    body: Vec<u8>,
}

impl Answer {
    fn errcode(&self) -> String {
        let json: serde_json::Value = serde_json::from_slice(&self.body).expect("an error is Matrix JSON");
        assert!(json["error"].is_string());
        json["errcode"].as_str().expect("an error has an errcode").to_owned()
    }
}

struct Client {
    stream: TcpStream,
    reader: BufReader<TcpStream>,
}

impl Client {
    fn connect(address: SocketAddr) -> Self {
        let stream = TcpStream::connect(address).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
        let reader = BufReader::with_capacity(1024, stream.try_clone().unwrap());
        Self { stream, reader }
    }

    fn send(&mut self, bytes: impl AsRef<[u8]>) -> &mut Self {
        self.stream.write_all(bytes.as_ref()).unwrap();
        self
    }

    fn try_read(&mut self, is_head: bool) -> io::Result<Answer> {
        let mut line = String::new();
        self.reader.read_line(&mut line)?;
        let status = line.split(' ').nth(1).and_then(|s| s.parse().ok());
        let status = status.ok_or_else(|| io::Error::other(format!("no status line: {line:?}")))?;
        let mut headers = HashMap::new();
        loop {
            let mut line = String::new();
            self.reader.read_line(&mut line)?;
            let Some((name, value)) = line.trim_end().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_owned());
        }
        let length = headers.get("content-length").map_or(0, |l| l.parse().unwrap());
        let mut body = vec![0; if is_head { 0 } else { length }];
        self.reader.read_exact(&mut body)?;
        Ok(Answer { status, headers, body })
    }

    fn read(&mut self) -> Answer {
        self.try_read(false).unwrap()
    }

    /// Whether the server has closed, and said nothing more.
    fn is_closed(&mut self) -> bool {
        matches!(self.reader.read(&mut [0; 1]), Ok(0) | Err(_))
    }
}

fn get(address: SocketAddr, path: &str) -> Answer {
    Client::connect(address).send(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).read()
}

/// Others are served.
fn assert_serves(address: SocketAddr) {
    assert_eq!(get(address, "/hello").body, b"hello");
}

/// Polls for something that other threads bring about.
fn until(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < deadline, "never came: {what}");
        thread::park_timeout(Duration::from_millis(5));
    }
}

/// Sends these bytes and expects this error, Matrix JSON, and a close.
fn assert_refused(address: SocketAddr, bytes: &[u8], status: u16) {
    let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(120)]).into_owned();
    let mut client = Client::connect(address);
    client.send(bytes);
    let answer = client.try_read(false).unwrap_or_else(|e| panic!("{shown:?}: {e}"));
    assert_eq!(answer.status, status, "{shown:?}");
    assert!(answer.errcode().starts_with("M_"));
    assert_eq!(answer.headers["content-type"], "application/json");
    assert_eq!(answer.headers["connection"], "close", "{shown:?}");
    assert_eq!(answer.headers["access-control-allow-origin"], "*");
    assert!(client.is_closed(), "{shown:?}");
}

fn post(path: &str, headers: &str, body: &str) -> Vec<u8> {
    format!("POST {path} HTTP/1.1\r\nHost: x\r\n{headers}\r\n{body}").into_bytes()
}

// ----- framing -----

#[test]
fn a_body_of_absurd_length_is_refused_before_it_comes() {
    let (_server, address) = serve(ConnectionLimits::default());
    for length in
        ["1000000000000", "18446744073709551615", "18446744073709551616", "99999999999999999999999999"]
    {
        let request = post("/echo", &format!("Content-Length: {length}\r\n"), "");
        assert_refused(address, &request, 413);
    }
    assert_refused(address, &post("/small", "Content-Length: 101\r\n", ""), 413);
    assert_refused(address, &post("/echo", "Transfer-Encoding: chunked\r\n", "fffffffffffffff\r\nabc"), 413);
    assert_serves(address);
}

#[test]
fn framing_that_can_be_read_in_two_ways_is_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    for headers in [
        "Content-Length: 3\r\nContent-Length: 4\r\n",
        "Content-Length: +5\r\n",
        "Content-Length: -1\r\n",
        "Content-Length: 5 5\r\n",
        "Content-Length: 3, 3\r\n",
        "Content-Length: 0x3\r\n",
        "Content-Length: \r\n",
        "Content-Length: three\r\n",
        "Content-Length: 3\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: chunked\r\nContent-Length: 3\r\n",
        "Content-Length : 3\r\n",
        "Content-Length: 3\r\n folded\r\n",
        "Bad Header: x\r\n",
        ": x\r\n",
        "Host: y\r\n",
    ] {
        assert_refused(address, &post("/echo", headers, "abc"), 400);
    }
    for headers in [
        "Transfer-Encoding: identity\r\n",
        "Transfer-Encoding: gzip, chunked\r\n",
        "Transfer-Encoding: chunked, chunked\r\n",
        "Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked\r\n",
        "Transfer-Encoding: \r\n",
        "Transfer-Encoding: xchunked\r\n",
    ] {
        assert_refused(address, &post("/echo", headers, "3\r\nabc\r\n0\r\n\r\n"), 501);
    }
    assert_refused(address, b"POST /echo HTTP/1.0\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 400);
    // Twice the same length is one length.
    let mut client = Client::connect(address);
    client.send(post("/echo", "Content-Length: 3\r\nContent-Length: 3\r\n", "abc"));
    assert_eq!(client.read().body, b"abc");
}

#[test]
fn a_chunked_body_is_read_whole_and_a_broken_one_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    let chunked = |body: &str| post("/echo", "Transfer-Encoding: Chunked\r\n", body);
    let mut client = Client::connect(address);
    client.send(chunked("3\r\nabc\r\nA;ext=\"1\"\r\n0123456789\r\n000\r\nTrailer: x\r\n\r\n"));
    assert_eq!(client.read().body, b"abc0123456789");
    client.send(chunked("0\r\n\r\n"));
    assert_eq!(client.read().body, b"");
    for body in [
        "zz\r\nabc\r\n0\r\n\r\n",
        "\r\nabc\r\n0\r\n\r\n",
        "+3\r\nabc\r\n0\r\n\r\n",
        "-1\r\nabc\r\n0\r\n\r\n",
        "0x3\r\nabc\r\n0\r\n\r\n",
        "11111111111111111\r\nabc\r\n0\r\n\r\n",
        "3\r\nabcd\r\n0\r\n\r\n",
        "3\nabc\n0\n\n",
        &format!("3;{}\r\nabc\r\n0\r\n\r\n", "x".repeat(2000)),
        &format!("0\r\n{}\r\n", "Trailer: x\r\n".repeat(1000)),
    ] {
        assert_refused(address, &chunked(body), 400);
    }
}

#[test]
fn a_body_that_is_cut_off_is_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    for request in [
        post("/echo", "Content-Length: 10\r\n", "abc"),
        post("/echo", "Transfer-Encoding: chunked\r\n", "5\r\nabc"),
        post("/echo", "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n"),
        b"GET /hello HTTP/1.1\r\nHost: x\r\n".to_vec(),
    ] {
        let mut client = Client::connect(address);
        client.send(&request);
        client.stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read().status, 400);
    }
    assert_serves(address);
}

#[test]
fn a_body_that_nobody_looks_at_does_not_become_the_next_request() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut client = Client::connect(address);
    let smuggled = "GET /panic HTTP/1.1\r\nHost: x\r\n\r\n";
    let length = format!("Content-Length: {}\r\n", smuggled.len());
    client.send(post("/unread", &length, smuggled)).send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read().body, b"not looked at");
    assert_eq!(client.read().body, b"hello");
    let chunk = format!("{:x}\r\n{smuggled}\r\n0\r\n\r\n", smuggled.len());
    client.send(post("/unread", "Transfer-Encoding: chunked\r\n", &chunk));
    assert_eq!(client.read().body, b"not looked at");
    // Refused by its head: a small body is passed over, a large one costs the connection.
    client.send(post("/secret", &length, smuggled));
    assert_eq!(client.read().errcode(), "M_MISSING_TOKEN");
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read().body, b"hello");
    client.send(post("/secret", "Content-Length: 5000000\r\n", "abc"));
    let answer = client.read();
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (401, "close"));
    assert!(client.is_closed());
}

// ----- heads -----

#[test]
fn a_request_without_host_or_that_is_none_is_refused() {
    let (_server, address) = serve(ConnectionLimits::default());
    assert_refused(address, b"GET /hello HTTP/1.1\r\n\r\n", 400);
    assert_refused(address, b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n", 400);
    assert_refused(address, b"GET\r\n\r\n", 400);
    assert_refused(address, b"GET hello HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    assert_refused(address, b"GET /a?b=%ff HTTP/1.1\r\nHost: x\r\n\r\n", 400);
    assert_refused(address, b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505);
    assert_refused(address, b"GET / HTTP/1.1\r\nHost: x\r\nExpect: tea\r\n\r\n", 417);
    assert_serves(address);
}

#[test]
fn a_head_without_end_is_refused_while_it_comes() {
    let (_server, address) = serve(ConnectionLimits::default());
    let line = format!("GET /{} HTTP/1.1\r\n", "a".repeat(20_000));
    assert_refused(address, line.as_bytes(), 414);
    let many = "A: b\r\n".repeat(2000);
    assert_refused(address, format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes(), 431);
    let many = "A: b\r\n".repeat(100);
    assert_refused(address, format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n").as_bytes(), 431);
    let many = "A: b\r\n".repeat(99);
    let mut client = Client::connect(address);
    client.send(format!("GET / HTTP/1.1\r\nHost: x\r\n{many}\r\n"));
    assert_eq!(client.read().status, 200);
}

#[test]
fn enormous_heads_cost_no_memory_and_nobody_else_waits() {
    let house = ChildHouse::start(None);
    for filler in [b"x".as_slice(), b"A: b\r\n".as_slice()] {
        let mut client = Client::connect(house.address);
        client.send("GET / HTTP/1.1\r\nHost: x\r\nLong: ");
        let block = filler.repeat(MIB / filler.len());
        // 300 MB, or until the server has had enough of it.
        let sent = (0..300).take_while(|_| client.stream.write_all(&block).is_ok()).count();
        assert!(sent < 300, "the server took in all of it");
        assert_serves(house.address);
    }
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
}

#[test]
fn a_head_that_is_never_finished_is_answered_in_time_however_it_trickles() {
    let limits = ConnectionLimits { head_timeout: Duration::from_millis(500), ..ConnectionLimits::default() };
    let (_server, address) = serve(limits);
    let mut silent = Client::connect(address);
    silent.send("GET /hello HTTP/1.1\r\nHost:");
    let mut trickling = Client::connect(address);
    trickling.stream.set_nonblocking(true).unwrap();
    let mut seen = Vec::new();
    // A byte every now and then: the deadline is for the whole head, not for each byte.
    until("the trickling head is refused", || {
        let _ = trickling.stream.write(b"x");
        thread::park_timeout(Duration::from_millis(20));
        let mut buffer = [0; 1024];
        if let Ok(n) = trickling.stream.read(&mut buffer) {
            seen.extend_from_slice(&buffer[..n]);
        }
        seen.starts_with(b"HTTP/1.1 408 ")
    });
    assert_eq!(silent.read().status, 408);
    assert!(silent.is_closed());
    assert_serves(address);
}

#[test]
fn a_slow_body_is_given_up_and_does_not_delay_others() {
    let limits =
        ConnectionLimits { transfer_grace: Duration::from_millis(500), ..ConnectionLimits::default() };
    let (_server, address) = serve(limits);
    let mut slow: Vec<Client> = (0..300).map(|_| Client::connect(address)).collect();
    for client in &mut slow {
        client.send(post("/echo", "Content-Length: 1000000\r\n", "a"));
    }
    for _ in 0..20 {
        assert_serves(address);
    }
    for client in &mut slow {
        let answer = client.read();
        assert_eq!((answer.status, answer.errcode().as_str()), (408, "M_UNKNOWN"));
    }
}

#[test]
fn a_body_that_is_handed_on_takes_its_time_but_neither_memory_nor_patience_without_end() {
    let limits = ConnectionLimits {
        transfer_grace: Duration::from_millis(500),
        transfer_rate: MIB,
        body_memory: MIB,
        ..ConnectionLimits::default()
    };
    let house = Arc::new(House::default());
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    let (handed, under_way) =
        (|| house.handed.0.load(Ordering::SeqCst), || house.handed.1.load(Ordering::SeqCst));
    // Larger than all bodies that are kept may be together.
    let mut client = Client::connect(address);
    client.send(post("/handed", &format!("Content-Length: {}\r\n", 16 * MIB), ""));
    client.send(vec![b'x'; 16 * MIB]);
    assert_eq!((client.read().body, handed()), (b"hello".to_vec(), 16 * MIB));
    // The connection goes on, and so do chunks, and what is asked for first.
    client.send(post("/handed", "Transfer-Encoding: chunked\r\n", "3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"));
    assert_eq!((client.read().status, handed()), (200, 16 * MIB + 5));
    client.send(post("/handed", "Content-Length: 3\r\nExpect: 100-continue\r\n", ""));
    assert_eq!(client.read().status, 100);
    client.send("abc");
    assert_eq!((client.read().status, under_way()), (200, 0));
    // Whoever it is handed to has enough of it.
    let mut client = Client::connect(address);
    client.send(post("/handed", "Transfer-Encoding: chunked\r\n", ""));
    let chunk = format!("100000\r\n{}\r\n", "x".repeat(MIB));
    until("it is under way", || under_way() == 1);
    while client.stream.write_all(chunk.as_bytes()).is_ok() && under_way() > 0 {}
    let answer = client.read();
    assert_eq!((answer.status, answer.errcode().as_str(), under_way()), (413, "M_TOO_LARGE", 0));
    // Who trickles is given up; who is gone leaves nothing.
    let mut slow = Client::connect(address);
    slow.send(post("/handed", "Content-Length: 1000000\r\n", "a"));
    let mut gone = Client::connect(address);
    gone.send(post("/handed", "Content-Length: 1000000\r\n", "a"));
    until("both are under way", || under_way() == 2);
    drop(gone);
    let answer = slow.read();
    assert_eq!((answer.status, answer.errcode().as_str()), (408, "M_UNKNOWN"));
    until("nothing is under way", || under_way() == 0);
}

// ----- manners -----

#[test]
fn expectations_heads_and_http_1_0_work() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut client = Client::connect(address);
    client.send(post("/echo", "Content-Length: 3\r\nExpect: 100-Continue\r\n", ""));
    assert_eq!(client.read().status, 100);
    client.send("abc");
    assert_eq!(client.read().body, b"abc");
    // Refused before the body was asked for.
    client.send(post("/secret", "Content-Length: 3\r\nExpect: 100-continue\r\n", ""));
    let answer = client.read();
    assert_eq!((answer.status, answer.headers["connection"].as_str()), (401, "close"));

    let mut client = Client::connect(address);
    client.send("HEAD /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    let answer = client.try_read(true).unwrap();
    assert_eq!((answer.status, answer.headers["content-length"].as_str()), (200, "5"));
    client.send("GET /hello HTTP/1.1\r\nhost: x\r\nconnection: foo , Close\r\n\r\n");
    let answer = client.read();
    assert_eq!(
        (answer.body.as_slice(), answer.headers["connection"].as_str()),
        (b"hello".as_slice(), "close")
    );
    assert!(client.is_closed());

    let mut client = Client::connect(address);
    client.send("GET /hello HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n");
    assert_eq!(client.read().headers["connection"], "keep-alive");
    client.send("GET http://elsewhere.example/hello HTTP/1.0\r\n\r\n");
    let answer = client.read();
    assert_eq!(
        (answer.body.as_slice(), answer.headers["connection"].as_str()),
        (b"hello".as_slice(), "close")
    );
    assert!(client.is_closed());
}

#[test]
fn header_values_outside_ascii_are_read() {
    let (_server, address) = serve(ConnectionLimits::default());
    for (sent, read) in [("ké".as_bytes(), "ké"), (b"k\xe9", "ké"), (b"", ""), (b"\"a b\"", "\"a b\"")] {
        let mut client = Client::connect(address);
        client.send("GET /header HTTP/1.1\r\nHost: x\r\nX-Test: ").send(sent).send("\r\n\r\n");
        assert_eq!(String::from_utf8(client.read().body).unwrap(), read);
    }
}

#[test]
fn a_panic_in_a_handler_is_a_500_and_the_connection_lives() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut client = Client::connect(address);
    for _ in 0..20 {
        client.send("GET /panic HTTP/1.1\r\nHost: x\r\n\r\n");
        let answer = client.read();
        assert_eq!((answer.status, answer.errcode().as_str()), (500, "M_UNKNOWN"));
    }
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    assert_eq!(client.read().body, b"hello");
}

#[test]
fn a_reader_that_never_reads_its_reply_is_given_up() {
    let limits = ConnectionLimits {
        transfer_grace: Duration::from_millis(300),
        transfer_rate: 1 << 30,
        ..ConnectionLimits::default()
    };
    let (server, address) = serve(limits);
    let clients: Vec<Client> = (0..4)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send("GET /big HTTP/1.1\r\nHost: x\r\n\r\n");
            client
        })
        .collect();
    assert_serves(address);
    until("the connections are closed", || server.connections() == 0);
    drop(clients);
}

#[test]
fn who_has_read_much_has_earned_no_time_to_read_nothing() {
    // The same rate, that of the reply and that of all of them.
    for (path, transfer_rate) in [("/big-and-quick", 2048), ("/big", 64 << 10)] {
        let transfer_grace = Duration::from_millis(300);
        let limits = ConnectionLimits { transfer_grace, transfer_rate, ..ConnectionLimits::default() };
        let (server, address) = serve(limits);
        let mut connection = TcpStream::connect(address).expect("a connection");
        let head = format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        connection.write_all(head.as_bytes()).expect("sent");
        // All together this would be worth minutes.
        connection.read_exact(&mut vec![0; 16 * MIB]).expect("much of it");
        until("the connection is closed", || server.connections() == 0);
        let (mut got, mut buffer) = (16 * MIB, vec![0; MIB]);
        while let Ok(count @ 1..) = connection.read(&mut buffer) {
            got += count;
        }
        assert!(got < 64 * MIB, "{path} came whole");
    }
}

// ----- waiting -----

#[test]
fn requests_behind_a_waiting_one_are_served_after_it_and_others_at_once() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits::default());
    let address = server.local_addrs()[0];
    let mut client = Client::connect(address);
    client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n".repeat(4));
    until("the request waits", || house.waiting.load(Ordering::SeqCst) == 1);
    for _ in 0..8 {
        assert_serves(address);
    }
    assert_eq!(get(address, "/wake").status, 200);
    assert_eq!(client.read().body, b"news");
    for _ in 0..4 {
        assert_eq!(client.read().body, b"hello");
    }
}

#[test]
fn a_client_that_went_away_frees_its_waiting_thread() {
    let house = Arc::new(House::default());
    let limits =
        ConnectionLimits { hang_up_check_interval: Duration::from_millis(50), ..ConnectionLimits::default() };
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    let clients: Vec<Client> = (0..20)
        .map(|_| {
            let mut client = Client::connect(address);
            client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\nGET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
            client
        })
        .collect();
    until("all wait", || house.waiting.load(Ordering::SeqCst) == 20);
    drop(clients);
    until("nobody waits", || server.connections() == 0);
    // Who only closed the sending half gets an answer early.
    let mut client = Client::connect(address);
    client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    client.stream.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read().body, b"nothing");
}

#[test]
fn stopping_answers_who_waits_and_is_quick() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits::default());
    let address = server.local_addrs()[0];
    let mut waiting = Client::connect(address);
    waiting.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    let mut idle = Client::connect(address);
    idle.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n").read();
    let mut unfinished = Client::connect(address);
    unfinished.send("GET /he");
    until("the request waits", || house.waiting.load(Ordering::SeqCst) == 1);
    server.stop();
    assert_eq!(server.connections(), 0);
    assert_eq!(waiting.read().body, b"nothing");
    assert!(idle.is_closed() && unfinished.is_closed());
    assert!(TcpStream::connect(address).is_err() || Client::connect(address).is_closed());
}

// ----- crowds -----

#[test]
fn at_the_cap_the_longest_idle_connection_makes_room_and_no_working_one() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits { connections: 8, ..ConnectionLimits::default() });
    let address = server.local_addrs()[0];
    let mut working = Client::connect(address);
    working.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    until("the request waits", || house.waiting.load(Ordering::SeqCst) == 1);
    let mut idle: Vec<Client> = Vec::new();
    for _ in 0..40 {
        let mut client = Client::connect(address);
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.read().body, b"hello");
        idle.push(client);
    }
    assert!(server.connections() <= 8);
    assert!(idle[0].is_closed());
    get(address, "/wake");
    assert_eq!(working.read().body, b"news");
}

/// A connection that the server takes for one from this address.
fn connect_from(server: &Server, from: &str) -> Client {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::connect(listener.local_addr().unwrap());
    server
        .serve_connection(listener.accept().unwrap().0, SocketAddr::new(from.parse().unwrap(), 4711))
        .unwrap();
    client
}

#[test]
fn an_address_has_its_share_of_connections_and_a_proxy_on_this_machine_has_no_limit() {
    let house = Arc::new(House::default());
    let server = serve_house(&house, ConnectionLimits { per_address: 4, ..ConnectionLimits::default() });
    let wait = |from: &str| {
        let mut client = connect_from(&server, from);
        // It may be closed already.
        let _ = client.stream.write_all(b"GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
        client
    };
    // Of a /64 each: that is one host.
    let mut working: Vec<Client> = (1..5).map(|n| wait(&format!("2001:db8::{n}"))).collect();
    until("its share waits", || house.waiting.load(Ordering::SeqCst) == 4);
    assert!(wait("2001:db8::5").is_closed());
    // Every test of this file comes from loopback, and so do all the users of a reverse proxy.
    for from in ["127.0.0.1", "::1", "::ffff:127.0.0.1"] {
        working.extend((0..20).map(|_| wait(from)));
    }
    working.push(wait("192.0.2.1"));
    until("the others wait", || house.waiting.load(Ordering::SeqCst) == working.len());
    get(server.local_addrs()[0], "/wake");
    for client in &mut working {
        assert_eq!(client.read().body, b"news");
    }
}

#[test]
fn two_servers_that_ask_each_other_do_not_lock_each_other_up() {
    let limits = ConnectionLimits { in_flight: 1, quota_timeout: PATIENCE, ..ConnectionLimits::default() };
    let houses = [Arc::new(House::default()), Arc::new(House::default())];
    let servers = [serve_house(&houses[0], limits.clone()), serve_house(&houses[1], limits)];
    let [a, b] = [servers[0].local_addrs()[0], servers[1].local_addrs()[0]];
    *houses[0].neighbour.lock().unwrap() = Some(b);
    *houses[1].neighbour.lock().unwrap() = Some(a);
    thread::scope(|scope| {
        for n in 0..8 {
            let address = if n % 2 == 0 { a } else { b };
            scope.spawn(move || {
                for _ in 0..5 {
                    assert_eq!(get(address, "/ask").body, b"hello");
                }
            });
        }
    });
}

#[test]
fn a_crowd_whose_share_is_full_is_told_so_and_the_other_crowd_is_served() {
    let house = Arc::new(House::default());
    let limits = ConnectionLimits {
        in_flight: 2,
        quota_timeout: Duration::from_millis(20),
        ..ConnectionLimits::default()
    };
    let server = serve_house(&house, limits);
    let address = server.local_addrs()[0];
    *house.neighbour.lock().unwrap() = Some(address);
    let mut waiting = [Client::connect(address), Client::connect(address)];
    for client in &mut waiting {
        client.send("GET /wait HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    until("both wait", || house.waiting.load(Ordering::SeqCst) == 2);
    let answer = get(address, "/hello");
    assert_eq!((answer.status, answer.headers["retry-after"].as_str()), (503, "1"));
    assert_eq!(answer.errcode(), "M_LIMIT_EXCEEDED");
    assert_eq!(get(address, "/server").body, b"hello");
}

#[test]
fn large_bodies_beyond_their_memory_are_told_to_come_back() {
    let limits = ConnectionLimits { body_memory: 2 * MIB, ..ConnectionLimits::default() };
    let (server, address) = serve(limits);
    let mut first = Client::connect(address);
    first.send(post("/echo", "Content-Length: 2000000\r\n", &"a".repeat(1_900_000)));
    let mut second = Client::connect(address);
    until("the memory is nearly used up", || server.body_bytes() >= 1_900_000);
    let mut refused = Client::connect(address);
    // The rest of it may find the connection closed already.
    let _ = refused.stream.write_all(&post("/echo", "Content-Length: 500000\r\n", &"a".repeat(500_000)));
    let answer = refused.read();
    assert_eq!((answer.status, answer.errcode().as_str()), (503, "M_LIMIT_EXCEEDED"));
    // Small bodies have nothing to do with it, and a finished large one gives its memory back.
    second.send(post("/echo", "Content-Length: 3\r\n", "abc"));
    assert_eq!(second.read().body, b"abc");
    first.send("a".repeat(100_000));
    assert_eq!(first.read().body.len(), 2_000_000);
    until("the memory is given back", || server.body_bytes() == 0);
    second.send(post("/echo", "Content-Length: 500000\r\n", &"a".repeat(500_000)));
    assert_eq!(second.read().body.len(), 500_000);
}

#[test]
fn a_thousand_connections_that_stay_open_are_all_served() {
    let (_server, address) = serve(ConnectionLimits::default());
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::connect(address)).collect();
    for client in &mut clients {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    for client in &mut clients {
        assert_eq!(client.read().body, b"hello");
    }
    for client in clients.iter_mut().rev() {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
        assert_eq!(client.read().body, b"hello");
    }
}

#[test]
fn a_thousand_waiting_requests_fit_in_forty_megabytes_and_all_are_woken() {
    let house = ChildHouse::start(None);
    let mut clients: Vec<Client> = (0..1000).map(|_| Client::connect(house.address)).collect();
    for client in &mut clients {
        client.send("GET /wait HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer abcdefghijklmnop\r\n\r\n");
    }
    until("all wait", || get(house.address, "/count").body == b"1000");
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
    get(house.address, "/wake");
    for client in &mut clients {
        assert_eq!(client.read().body, b"news");
    }
}

#[test]
fn a_storm_of_connects_and_resets_leaves_the_server_serving() {
    let (server, address) = serve(ConnectionLimits::default());
    for n in 0..3000 {
        let Ok(mut stream) = TcpStream::connect(address) else { continue };
        if n % 3 > 0 {
            let _ =
                stream.write(if n % 3 == 1 { b"GET /he" } else { b"GET /hello HTTP/1.1\r\nHost: x\r\n\r\n" });
        }
        reset(&stream);
    }
    assert_serves(address);
    until("the books are even", || server.connections() == 0);
}

/// Makes the close of this socket a reset.
fn reset(stream: &TcpStream) {
    let linger = libc::linger { l_onoff: 1, l_linger: 0 };
    // SAFETY: the option's value is a live local of the size that is given.
    let done = unsafe {
        libc::setsockopt(
            stream.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_LINGER,
            (&raw const linger).cast(),
            size_of::<libc::linger>() as libc::socklen_t,
        )
    };
    assert_eq!(done, 0);
}

#[test]
fn a_million_pipelined_requests_are_answered_in_bounded_memory() {
    const REQUESTS: usize = 1_000_000;
    let house = ChildHouse::start(None);
    let mut client = Client::connect(house.address);
    client.send("GET / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n");
    let mut reply = Vec::new();
    client.reader.read_to_end(&mut reply).unwrap();
    let length = reply.len() - "Connection: close\r\n".len();
    let client = Client::connect(house.address);
    let mut sender = client.stream.try_clone().unwrap();
    let mut reader = client.stream;
    let done = AtomicUsize::new(0);
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
            for _ in 0..REQUESTS / 1000 {
                sender.write_all(&block).unwrap();
            }
            sender.shutdown(Shutdown::Write).unwrap();
        });
        let house = &house;
        let done = &done;
        scope.spawn(move || {
            while done.load(Ordering::SeqCst) == 0 {
                assert_serves(house.address);
                thread::park_timeout(Duration::from_millis(50));
            }
        });
        // All replies are of one length.
        let (mut received, mut buffer) = (0, vec![0; 256 << 10]);
        loop {
            let n = reader.read(&mut buffer).unwrap();
            if n == 0 {
                break;
            }
            received += n;
        }
        done.store(1, Ordering::SeqCst);
        assert_eq!(received, REQUESTS * length);
    });
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
}

#[test]
fn pipelined_requests_whose_replies_nobody_reads_are_not_collected() {
    let house = ChildHouse::start(None);
    let client = Client::connect(house.address);
    client.stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let block = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n".repeat(1000);
    // Until the kernel's buffers are full both ways: then the server waits for its reader and takes nothing more in.
    let sent = (0..2000).take_while(|_| (&client.stream).write_all(&block).is_ok()).count();
    assert!(sent < 2000, "the server took in everything");
    assert_serves(house.address);
    assert!(house.resident() < 40 * MIB, "{} bytes resident", house.resident());
}

#[test]
fn a_server_without_file_descriptors_recovers_when_there_are_some_again() {
    let mut house = ChildHouse::start(Some(200));
    assert_serves(house.address);
    house.command("exhaust");
    // Connections now stay in the kernel's queue, or take the place of an idle one.
    let mut clients: Vec<Client> = (0..60).map(|_| Client::connect(house.address)).collect();
    for client in &mut clients {
        client.send("GET /hello HTTP/1.1\r\nHost: x\r\n\r\n");
    }
    house.command("free");
    for client in &mut clients {
        assert_eq!(client.read().body, b"hello");
    }
    assert_serves(house.address);
}

// ----- a server in a process of its own, where memory and descriptors can be counted -----

struct ChildHouse {
    child: Child,
    address: SocketAddr,
    lines: BufReader<std::process::ChildStdout>,
}

impl ChildHouse {
    fn start(descriptors: Option<u32>) -> Self {
        let limit = descriptors.map_or(String::new(), |n| format!("ulimit -n {n}; "));
        let script =
            format!("{limit}exec \"$0\" --exact http_hostile::the_house_of_the_storms --ignored --nocapture");
        let mut child = Command::new("sh")
            .args(["-c", &script])
            .arg(std::env::current_exe().unwrap())
            .env("DOORSTEP_TEST_HOUSE", "1")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap());
        let mut house = Self { child, address: ([127, 0, 0, 1], 0).into(), lines };
        house.address = house.answer("listening on ").parse().unwrap();
        house
    }

    /// The rest of the next line that has this text in it.
    fn answer(&mut self, text: &str) -> String {
        let mut line = String::new();
        while self.lines.read_line(&mut line).unwrap() > 0 {
            if let Some((_, rest)) = line.split_once(text) {
                return rest.trim().to_owned();
            }
            line.clear();
        }
        panic!("the house ended without {text:?}");
    }

    fn command(&mut self, command: &str) {
        writeln!(self.child.stdin.as_mut().unwrap(), "{command}").unwrap();
        self.answer("done ");
    }

    fn status(&self, field: &str) -> usize {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.child.id())).unwrap();
        let line = status.lines().find_map(|l| l.strip_prefix(field)).unwrap();
        line.split_whitespace().next().unwrap().parse().unwrap()
    }

    /// Bytes of memory that are the process's own. (The pages of the test program itself are not counted.)
    fn resident(&self) -> usize {
        self.status("RssAnon:") * 1024
    }
}

impl Drop for ChildHouse {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

#[test]
#[ignore = "no test: what `ChildHouse` runs"]
fn the_house_of_the_storms() {
    if std::env::var_os("DOORSTEP_TEST_HOUSE").is_none() {
        return;
    }
    let server = serve_house(&Arc::default(), ConnectionLimits::default());
    let mut out = io::stdout();
    writeln!(out, "\nlistening on {}", server.local_addrs()[0]).unwrap();
    let mut hoard = Vec::new();
    for line in io::stdin().lines() {
        match line.unwrap().as_str() {
            "exhaust" => hoard.extend(std::iter::from_fn(|| std::fs::File::open("/dev/null").ok())),
            _ => hoard.clear(),
        }
        writeln!(out, "\ndone {}", hoard.len()).unwrap();
    }
}
