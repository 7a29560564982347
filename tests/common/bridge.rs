//! An application service that answers exactly as a test says, over plain HTTP.

use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use doorstep::protocol::appservice::Registration;
use serde_json::{Value, json};

use super::wait::{Gate, wait_until};

/// What it was asked.
#[derive(Clone, Debug)]
pub struct BridgeRequest {
    /// The method.
    pub method: String,
    /// The path with the query.
    pub target: String,
    /// The `Authorization` header.
    pub authorization: String,
    /// The body; null if there is none.
    pub body: Value,
}

impl BridgeRequest {
    /// The id of the transaction, if it is one.
    pub fn txn_id(&self) -> Option<&str> {
        let path = self.target.split('?').next()?;
        path.rsplit_once("/transactions/").map(|(_, id)| id)
    }
}

/// What it answers.
#[derive(Clone)]
pub enum BridgeAnswer {
    /// A status with a body.
    Json(u16, Value),
    /// Nothing until the gate is open; then the same.
    Behind(Gate, u16, Value),
    /// The end of the connection.
    Silence,
}

type Script = Arc<Mutex<dyn FnMut(&BridgeRequest) -> BridgeAnswer + Send>>;

/// The service. It ends with the test.
pub struct Bridge {
    id: String,
    port: u16,
    script: Arc<Mutex<Script>>,
    asked: Arc<Mutex<Vec<BridgeRequest>>>,
}

impl Bridge {
    /// One that takes everything.
    pub fn start(id: &str) -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let good: Script = Arc::new(Mutex::new(|_: &BridgeRequest| BridgeAnswer::Json(200, json!({}))));
        let bridge =
            Self { id: id.to_owned(), port, script: Arc::new(Mutex::new(good)), asked: Arc::default() };
        let (script, asked) = (bridge.script.clone(), bridge.asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming().flatten() {
                let (script, asked) = (script.clone(), asked.clone());
                std::thread::spawn(move || serve(stream, &script, &asked));
            }
        });
        bridge
    }

    /// Its registration in YAML, with more lines. Its own user is `{id}bot`, and its tokens are `as_{id}` and `hs_{id}`.
    pub fn yaml(&self, more: &str) -> String {
        let Self { id, port, .. } = self;
        format!(
            "id: {id}\nurl: http://127.0.0.1:{port}\nas_token: as_{id}\nhs_token: hs_{id}\nsender_localpart: {id}bot\n\
             rate_limited: false\n{more}\n"
        )
    }

    /// The same, read.
    pub fn registration(&self, more: &str) -> Registration {
        Registration::parse(&self.yaml(more)).expect("a registration")
    }

    /// From now on it answers so.
    pub fn answer(&self, answer: BridgeAnswer) {
        self.answer_by(move |_| answer.clone());
    }

    /// From now on it answers by what it is asked.
    pub fn answer_by(&self, answer: impl FnMut(&BridgeRequest) -> BridgeAnswer + Send + 'static) {
        *self.script.lock().expect("no test panics here") = Arc::new(Mutex::new(answer));
    }

    /// Everything that it was asked so far, answered or not.
    pub fn asked(&self) -> Vec<BridgeRequest> {
        self.asked.lock().expect("no test panics here").clone()
    }

    /// The transactions among that.
    pub fn transactions(&self) -> Vec<BridgeRequest> {
        self.asked().into_iter().filter(|asked| asked.txn_id().is_some()).collect()
    }

    /// What the transactions have under a key, each of them once, however often it was sent.
    pub fn told(&self, key: &str) -> Vec<Value> {
        let mut known = std::collections::BTreeSet::new();
        let sent = self.transactions().into_iter();
        let once = sent.filter(|sent| known.insert(sent.txn_id().map(str::to_owned)));
        once.flat_map(|sent| sent.body[key].as_array().cloned().unwrap_or_default()).collect()
    }

    /// The bodies of the messages among the events.
    pub fn messages(&self) -> Vec<String> {
        let told = self.told("events").into_iter();
        told.filter_map(|event| Some(event["content"]["body"].as_str()?.to_owned())).collect()
    }

    /// Waits until it is told something of which this holds; what.
    #[track_caller]
    pub fn wait_for(&self, key: &str, what: &str, holds: impl Fn(&Value) -> bool) -> Value {
        let mut found = Value::Null;
        wait_until(&format!("the service {} is told {what}", self.id), || {
            let told = self.told(key).into_iter().find(|told| holds(told));
            found = told.clone().unwrap_or_default();
            told.is_some()
        });
        found
    }

    /// Waits until it is told of a message.
    #[track_caller]
    pub fn wait_for_message(&self, body: &str) -> Value {
        self.wait_for("events", body, |event| event["content"]["body"] == body)
    }
}

fn serve(stream: TcpStream, script: &Mutex<Script>, asked: &Mutex<Vec<BridgeRequest>>) {
    let Ok(mut out) = stream.try_clone() else { return };
    let mut input = BufReader::new(stream);
    while let Some(request) = read_request(&mut input) {
        // In this order: whoever has seen that it was asked changes only what comes later.
        let script = script.lock().expect("no test panics here").clone();
        asked.lock().expect("no test panics here").push(request.clone());
        let answer = (script.lock().expect("no test panics here"))(&request);
        let done = match answer {
            BridgeAnswer::Json(status, body) => write_json(&mut out, status, &body),
            BridgeAnswer::Behind(gate, status, body) => {
                gate.pass();
                write_json(&mut out, status, &body)
            }
            BridgeAnswer::Silence => return,
        };
        if done.is_err() {
            return;
        }
    }
}

fn read_request(input: &mut impl BufRead) -> Option<BridgeRequest> {
    let mut line = String::new();
    if input.read_line(&mut line).ok()? == 0 {
        return None;
    }
    let mut words = line.split_whitespace().map(str::to_owned);
    let (method, target) = (words.next()?, words.next()?);
    let (mut length, mut authorization) = (0, String::new());
    loop {
        let mut line = String::new();
        input.read_line(&mut line).ok()?;
        let Some((name, value)) = line.trim_end().split_once(':') else { break };
        match name.to_ascii_lowercase().as_str() {
            "content-length" => length = value.trim().parse().ok()?,
            "authorization" => authorization = value.trim().to_owned(),
            _ => {}
        }
    }
    let mut body = vec![0; length];
    input.read_exact(&mut body).ok()?;
    let body = if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).ok()? };
    Some(BridgeRequest { method, target, authorization, body })
}

fn write_json(out: &mut impl Write, status: u16, body: &Value) -> std::io::Result<()> {
    let body = body.to_string();
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    out.write_all(format!("{head}{body}").as_bytes())
}
