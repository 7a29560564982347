//! Joining a large room: a scripted resident with real signatures of many servers, all made before the clock starts, and
//! what the room costs afterwards.

use std::collections::HashMap;
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use doorstep::config::TlsFiles;
use doorstep::protocol::Pdu;
use doorstep::protocol::json::canonical_event;
use doorstep::protocol::signatures::sign::{self, KeyAt, SigningKey, VerifyKey};
use doorstep::protocol::signatures::verify;
use rayon::prelude::*;
use serde_json::{Map, Value, json};

use crate::common::crowd::{Crowd, Gone};
use crate::common::peer::{Peer, now_ms};
use crate::http::{self, Connection, encode};
use crate::{LargeJoin, Peering, Result, millis, process, quantile};

/// How often the quick questions are asked.
const TIMES: usize = 20;
/// Joins that are received, for their time and their bytes.
const JOINS: usize = 200;
/// Between two messages into the other room.
const PACE: Duration = Duration::from_millis(20);

/// A user of the server under test.
struct Client {
    authorization: String,
    connection: Connection<TcpStream>,
}

impl Client {
    fn new(given: &Peering, token: &str) -> Result<Self> {
        Ok(Self { authorization: format!("Bearer {token}"), connection: http::connect(&given.client)? })
    }

    /// A request, and how long it took.
    fn call(&mut self, method: &str, uri: &str, body: Option<&Value>) -> Result<(Duration, Vec<u8>)> {
        let body = body.map(|body| body.to_string().into_bytes());
        let begun = Instant::now();
        let answer = self.connection.call(method, uri, &self.authorization, body.as_deref())?;
        Ok((begun.elapsed(), answer))
    }

    fn say(&mut self, room: &str, number: usize) -> Result<Duration> {
        let uri = format!("/_matrix/client/v3/rooms/{}/send/m.room.message/l{number}", encode(room));
        let body = json!({ "msgtype": "m.text", "body": format!("message {number}") });
        Ok(self.call("PUT", &uri, Some(&body))?.0)
    }
}

/// Joins, then asks everything that a room may be asked.
pub fn answer(given: &Peering, join: &LargeJoin) -> Result<Value> {
    let tls = TlsFiles { cert: given.certificate.clone(), key: given.key.clone() };
    let peer = Peer::start_on(TcpListener::bind(("127.0.0.1", given.port))?, tls, given.ca.clone());
    let crowd = Crowd::new(&peer, &given.room_version, join.members, join.servers);
    crowd.serve(&peer);
    let mut figures = verification(&crowd, &peer)?;
    figures.insert("members".into(), join.members.into());
    figures.insert("answer_bytes".into(), crowd.join_answer().len().into());

    let (mut alice, mut bob) = (Client::new(given, &given.token)?, Client::new(given, &join.other_token)?);
    let elsewhere = bob.call("POST", "/_matrix/client/v3/createRoom", Some(&json!({})))?.1;
    let elsewhere: Value = serde_json::from_slice(&elsewhere)?;
    let elsewhere = elsewhere["room_id"].as_str().ok_or("no room was made")?.to_owned();
    let room = encode(crowd.room.id.as_str());
    let is_over = AtomicBool::new(false);
    let cpu = process::processor_time(given.pid)?;
    let (joined, waits) = std::thread::scope(|scope| -> Result<_> {
        let others = scope.spawn(|| -> Result<Vec<Duration>> {
            let mut waits = Vec::new();
            while !is_over.load(Ordering::Relaxed) {
                waits.push(bob.say(&elsewhere, waits.len())?);
                std::thread::sleep(PACE);
            }
            Ok(waits)
        });
        let uri = format!("/_matrix/client/v3/join/{room}?via={}", encode(peer.name().as_str()));
        let joined = alice.call("POST", &uri, Some(&json!({})));
        is_over.store(true, Ordering::Relaxed);
        let waits = others.join().unwrap_or_else(|_| Err("a panic".into()))?;
        Ok((joined?.0, waits))
    })?;
    figures.insert("join_ms".into(), millis(joined).into());
    figures.insert("join_cpu_ms".into(), millis(process::processor_time(given.pid)? - cpu).into());
    figures.insert("peak_kib".into(), process::peak_kib(given.pid)?.into());
    figures.insert("disk_bytes".into(), database_bytes(&join.data)?.into());
    let mut waits = waits;
    waits.sort();
    figures.insert("other_send_p50_ms".into(), quantile(&waits, 0.5).into());
    figures.insert("other_send_worst_ms".into(), quantile(&waits, 1.0).into());

    for (what, time) in reads(&mut alice, &room, join.members)? {
        figures.insert(format!("{what}_ms"), millis(time).into());
    }
    let mut sends = (0..TIMES).map(|n| alice.say(crowd.room.id.as_str(), n)).collect::<Result<Vec<_>>>()?;
    sends.sort();
    figures.insert("send_p50_ms".into(), quantile(&sends, 0.5).into());
    federated((given, join), &peer, &crowd, &mut figures)?;
    figures.insert("peak_after_all_kib".into(), process::peak_kib(given.pid)?.into());
    Ok(Value::Object(figures))
}

/// The time to verify all signatures that the join has to verify, on all processors: those of the members' events, and of
/// each server's statement of its keys its own and the notary's. With what it takes to know the signed bytes, and with
/// those at hand.
fn verification(crowd: &Crowd, peer: &Peer) -> Result<Map<String, Value>> {
    let known: HashMap<&str, KeyAt> = crowd
        .servers
        .iter()
        .map(|server| (server.name.as_str(), KeyAt::stated(server.key.verify_key(), i64::MAX)))
        .collect();
    let keys = |server: &str, _: &str| known.get(server).copied();
    let (notary, notary_key) = (peer.name().as_str(), peer.signing_key());
    let statements: Vec<_> = crowd.servers.iter().zip(crowd.statements(peer)).collect();
    let is_good = |(server, statement): &&(&Gone, Map<String, Value>)| {
        let verified = |by: &str, key: &SigningKey| {
            sign::verify_json(statement, by, key.key_id(), &key.verify_key()).is_ok()
        };
        verified(server.name.as_str(), &server.key) && verified(notary, notary_key)
    };
    let cpu = process::processor_time(std::process::id())?;
    let begun = Instant::now();
    let believed = statements.par_iter().filter(is_good).count();
    let good = crowd.members.par_iter().filter(|pdu| verify::verify_event(pdu, &keys).is_ok()).count();
    let whole = begun.elapsed();
    let cpu = process::processor_time(std::process::id())? - cpu;
    let mut prepared: Vec<(Vec<u8>, String, VerifyKey)> =
        crowd.members.par_iter().filter_map(|p| prepare(p, &keys)).collect();
    for (server, statement) in &statements {
        for (by, key) in [(server.name.as_str(), &server.key), (notary, notary_key)] {
            let signature = statement["signatures"][by][key.key_id()].as_str().unwrap_or_default();
            let bytes = canonical_event(statement, &["signatures", "unsigned"]);
            prepared.push((bytes, signature.to_owned(), key.verify_key()));
        }
    }
    let begun = Instant::now();
    let bare = prepared.par_iter().filter(|(bytes, signature, key)| key.verifies(bytes, signature)).count();
    let alone = begun.elapsed();
    let signatures = crowd.members.len() + 2 * crowd.servers.len();
    if good + 2 * believed != signatures || bare != signatures {
        return Err(format!("{good}, {believed} and {bare} of {signatures} signatures are good").into());
    }
    let figures = json!({
        "signatures": signatures, "verify_ms": millis(whole), "verify_cpu_ms": millis(cpu),
        "signatures_alone_ms": millis(alone),
    });
    Ok(figures.as_object().cloned().unwrap_or_default())
}

fn prepare(pdu: &Pdu, keys: &verify::KeyLookup<'_>) -> Option<(Vec<u8>, String, VerifyKey)> {
    let (event, server) = (pdu.canonical(), pdu.sender().server());
    let (id, signature) = event.signatures_of(server.as_str()).pop()?;
    let (signature, key) = (signature.into_owned(), keys(server.as_str(), &id)?);
    Some((event.essential_bytes(pdu.version()), signature, key.key))
}

/// What a client reads of the room.
fn reads(alice: &mut Client, room: &str, members: usize) -> Result<Vec<(&'static str, Duration)>> {
    let filter = json!({ "room": { "state": { "lazy_load_members": true } } }).to_string();
    let rooms = format!("/_matrix/client/v3/rooms/{room}");
    let (sync, _) =
        alice.call("GET", &format!("/_matrix/client/v3/sync?filter={}", encode(&filter)), None)?;
    let (listed, body) = alice.call("GET", &format!("{rooms}/members"), None)?;
    let body: Value = serde_json::from_slice(&body)?;
    let count = body["chunk"].as_array().map_or(0, Vec::len);
    if count != members + 2 {
        return Err(format!("{count} members of {}", members + 2).into());
    }
    let (joined, _) = alice.call("GET", &format!("{rooms}/joined_members"), None)?;
    let (state, _) = alice.call("GET", &format!("{rooms}/state"), None)?;
    Ok(vec![("lazy_sync", sync), ("members", listed), ("joined_members", joined), ("state", state)])
}

/// What another server asks of the room, and what it adds.
fn federated(
    (given, join): (&Peering, &LargeJoin),
    peer: &Peer,
    crowd: &Crowd,
    figures: &mut Map<String, Value>,
) -> Result<()> {
    let (room, version) = (encode(crowd.room.id.as_str()), crowd.room.version);
    let target = given.target.as_str();
    let ask = |method: &str, path: &str, body: Option<&Value>| {
        let begun = Instant::now();
        let (status, answer) = peer.ask(target, method, path, body);
        if status == 200 { Ok((begun.elapsed(), answer)) } else { Err(format!("{path}: {status} {answer}")) }
    };
    let template = |name: &str| {
        let user = encode(peer.user(name).as_str());
        let path = format!("/_matrix/federation/v1/make_join/{room}/{user}?ver={}", version.id);
        let template = ask("GET", &path, None)?.1["event"].take();
        template.as_object().cloned().ok_or_else(|| "no template".to_owned())
    };
    for (what, name, query) in
        [("send_join", "whole", ""), ("send_join_without_members", "reduced", "?omit_members=true")]
    {
        let event = peer.sign(template(name)?, version);
        let id = encode(event.event_id().as_str());
        let path = format!("/_matrix/federation/v2/send_join/{room}/{id}{query}");
        let took = ask("PUT", &path, Some(&Value::Object(event.to_object())))?.0;
        figures.insert(format!("{what}_ms"), millis(took).into());
        for what in ["state_ids", "state"] {
            let path = format!("/_matrix/federation/v1/{what}/{room}?event_id={id}");
            figures.insert(format!("{what}_asked_ms"), millis(ask("GET", &path, None)?.0).into());
        }
    }
    // For somebody who has not been in the room: its auth events are those of anybody new.
    let mut last = template("late")?;
    let before = database_bytes(&join.data)?;
    let mut times = Vec::new();
    for number in 0..JOINS {
        let user = peer.user(&format!("late{number}"));
        let mut event = last.clone();
        event.insert("sender".into(), json!(user));
        event.insert("state_key".into(), json!(user));
        let event = peer.sign(event, version);
        let body = json!({
            "origin": peer.name(), "origin_server_ts": now_ms(), "pdus": [event.to_object()],
        });
        let path = format!("/_matrix/federation/v1/send/late{number}");
        let (took, answer) = ask("PUT", &path, Some(&body))?;
        if answer["pdus"][event.event_id().as_str()] != json!({}) {
            return Err(format!("a join was not taken: {answer}").into());
        }
        times.push(took);
        last.insert("prev_events".into(), json!([event.event_id()]));
        last.insert("depth".into(), json!(event.depth() + 1));
    }
    times.sort();
    figures.insert("join_received_p50_ms".into(), quantile(&times, 0.5).into());
    figures
        .insert("join_received_bytes".into(), ((database_bytes(&join.data)? - before) / JOINS as i64).into());
    Ok(())
}

/// The size of the server's database, its log included.
fn database_bytes(folder: &Path) -> Result<i64> {
    let database = rusqlite::Connection::open(folder.join("doorstep.db"))?;
    let size = "SELECT page_count * page_size FROM pragma_page_count, pragma_page_size";
    Ok(database.query_row(size, [], |row| row.get(0))?)
}
