//! Hostile input on real sockets: whatever one connection does, it is answered or closed, the others are served, and
//! memory stays bounded. The connection layer is under test here, with a small service of its own behind it.
//!
//! - `framing`: heads and bodies that are wrong, or can be read in two ways.
//! - `slow`: who sends or reads slowly, or never.
//! - `shares`: waiting requests, and what each address and crowd has of the server.
//! - `storms`: connections and requests by the thousand, at a server in a process of its own whose memory and
//!   descriptors are counted.

mod framing;
mod shares;
mod slow;
mod storms;

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

/// A connection that the server takes for one from this address.
fn connect_from(server: &Server, from: &str) -> Client {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let client = Client::connect(listener.local_addr().unwrap());
    server
        .serve_connection(listener.accept().unwrap().0, SocketAddr::new(from.parse().unwrap(), 4711))
        .unwrap();
    client
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

struct ChildHouse {
    child: Child,
    address: SocketAddr,
    lines: BufReader<std::process::ChildStdout>,
}

impl ChildHouse {
    fn start(descriptors: Option<u32>) -> Self {
        let limit = descriptors.map_or(String::new(), |n| format!("ulimit -n {n}; "));
        let script = format!(
            "{limit}exec \"$0\" --exact hostile::storms::the_house_of_the_storms --ignored --nocapture"
        );
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
