//! A push gateway that answers exactly as a test says, over plain HTTP: also with what no gateway would.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use doorstep::testing::TestUser;
use serde_json::{Value, json};

use super::wait::{Gate, wait_until};

/// What it answers.
#[derive(Clone)]
pub enum GatewayAnswer {
    /// A status with a JSON body.
    Json(u16, Value),
    /// These bytes, and the end of the connection.
    Raw(Vec<u8>),
    /// A body that does not end, of so many bytes at least that this is as good as true.
    Endless,
    /// Nothing until the gate is open; then that everything is well.
    Behind(Gate),
}

type Script = Arc<Mutex<dyn FnMut(&Value) -> GatewayAnswer + Send>>;

/// The gateway. It ends with the test.
pub struct Gateway {
    port: u16,
    script: Arc<Mutex<Script>>,
    taken: Arc<Mutex<Vec<Value>>>,
}

impl Gateway {
    /// One that takes everything.
    pub fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let good: Script =
            Arc::new(Mutex::new(|_: &Value| GatewayAnswer::Json(200, json!({ "rejected": [] }))));
        let gateway = Self { port, script: Arc::new(Mutex::new(good)), taken: Arc::default() };
        let (script, taken) = (gateway.script.clone(), gateway.taken.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, taken) = (script.clone(), taken.clone());
                std::thread::spawn(move || serve(stream, &script, &taken));
            }
        });
        gateway
    }

    /// Where it is.
    pub fn url(&self) -> String {
        format!("http://127.0.0.1:{}/_matrix/push/v1/notify", self.port)
    }

    /// From now on it answers so.
    pub fn answer(&self, answer: GatewayAnswer) {
        self.answer_by(move |_| answer.clone());
    }

    /// From now on it answers by what it is sent.
    pub fn answer_by(&self, answer: impl FnMut(&Value) -> GatewayAnswer + Send + 'static) {
        *self.script.lock().expect("no test panics here") = Arc::new(Mutex::new(answer));
    }

    /// Everything that it was sent so far, answered or not: what is in `notification`.
    pub fn sent(&self) -> Vec<Value> {
        self.taken.lock().expect("no test panics here").clone()
    }

    /// The notifications of events among that, by their ids.
    pub fn event_ids(&self) -> Vec<String> {
        let sent = self.sent();
        sent.iter().filter_map(|sent| Some(sent["event_id"].as_str()?.to_owned())).collect()
    }

    /// The numbers of unread messages that it was told without an event.
    pub fn badges(&self) -> Vec<i64> {
        let sent = self.sent();
        let badges = sent.iter().filter(|sent| sent.get("event_id").is_none());
        badges.map(|sent| sent["counts"]["unread"].as_i64().expect("a number")).collect()
    }

    /// Waits until it was sent something about this event; what.
    #[track_caller]
    pub fn wait_for(&self, event_id: &str) -> Value {
        let mut found = Value::Null;
        wait_until(&format!("the gateway hears of {event_id}"), || {
            let sent = self.sent();
            sent.iter().find(|sent| sent["event_id"] == event_id).is_some_and(|sent| {
                found = sent.clone();
                true
            })
        });
        found
    }

    /// Waits until the last number of unread messages that it was told is this.
    #[track_caller]
    pub fn wait_for_unread(&self, unread: i64) {
        wait_until(&format!("the gateway is told of {unread} unread messages"), || {
            let sent = self.sent();
            let mut told = sent.iter().rev().filter_map(|sent| sent["counts"]["unread"].as_i64());
            told.next() == Some(unread)
        });
    }

    /// A pusher for it, with further `data`, as clients set it.
    pub fn pusher(&self, pushkey: &str, data: &Value) -> Value {
        let mut pusher = json!({
            "kind": "http", "app_id": "org.example.app", "pushkey": pushkey, "lang": "en",
            "app_display_name": "App", "device_display_name": "Phone", "data": { "url": self.url() },
        });
        for (key, value) in data.as_object().into_iter().flatten() {
            pusher["data"][key] = value.clone();
        }
        pusher
    }

    /// Sets such a pusher.
    #[track_caller]
    pub fn set_for(&self, user: &TestUser, pushkey: &str, data: &Value) {
        user.post("/_matrix/client/v3/pushers/set", self.pusher(pushkey, data));
    }
}

/// Reads requests of one connection and answers them.
fn serve(stream: TcpStream, script: &Mutex<Script>, taken: &Mutex<Vec<Value>>) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    while let Some(body) = read_request(&mut input) {
        let notification = body["notification"].clone();
        taken.lock().expect("no test panics here").push(notification.clone());
        let script = script.lock().expect("no test panics here").clone();
        let answer = (script.lock().expect("no test panics here"))(&notification);
        let done = match answer {
            GatewayAnswer::Json(status, body) => write_json(&mut out, status, &body),
            GatewayAnswer::Raw(bytes) => return drop(out.write_all(&bytes)),
            GatewayAnswer::Endless => return write_endlessly(&mut out),
            GatewayAnswer::Behind(gate) => {
                gate.pass();
                write_json(&mut out, 200, &json!({ "rejected": [] }))
            }
        };
        if done.is_err() {
            return;
        }
    }
}

fn read_request(input: &mut impl BufRead) -> Option<Value> {
    let mut length = 0;
    loop {
        let mut line = String::new();
        if input.read_line(&mut line).ok()? == 0 {
            return None;
        }
        let line = line.trim_end().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().ok()?;
        }
        if line.is_empty() {
            break;
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    serde_json::from_slice(&body).ok()
}

fn write_json(out: &mut impl Write, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    out.write_all(format!("{head}{body}").as_bytes())
}

fn write_endlessly(out: &mut impl Write) {
    let head = "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n\r\n{\"rejected\":[\"";
    let mut more = out.write_all(head.as_bytes()).is_ok();
    while more {
        more = out.write_all(&[b'x'; 65536]).is_ok();
    }
}
