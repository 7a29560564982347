//! End-to-end keys: uploads of fifty one-time keys, queries of a hundred users, claims, and messages to a thousand devices
//! in one request. Signatures of one-time keys only look like some: servers leave it to clients to verify them.

use std::collections::HashSet;
use std::net::TcpStream;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use doorstep::protocol::json::{base64, canonical_object};
use doorstep::protocol::signatures::sign::SigningKey;
use serde_json::{Map, Value, json};

use crate::clock::Clock;
use crate::http::{self, Connection, encode};
use crate::{Result, tokens};

/// One-time keys of one upload, and users of one query, or of a claim that is for many.
const KEYS: usize = 50;
const USERS: usize = 100;
/// The name of the algorithm.
const ALGORITHM: &str = "signed_curve25519";

/// A device of a user of its own.
struct Device {
    user: String,
    device: String,
    authorization: String,
}

/// Asks all of it, one after the other.
pub fn answer(given: &crate::Keys) -> Result<Value> {
    let mut devices = Vec::new();
    for line in tokens(&given.devices)? {
        let mut words = line.split(' ').map(str::to_owned);
        let mut next = || words.next().ok_or("a line has a user, a device and a token");
        let (user, device, token) = (next()?, next()?, next()?);
        devices.push(Device { user, device, authorization: format!("Bearer {token}") });
    }
    if devices.len() < USERS {
        return Err(format!("{USERS} devices at least").into());
    }
    let mut connection = http::connect(&given.client)?;
    let upload = upload(given, &devices, &mut connection)?;
    let query = query(given, &devices, &mut connection)?;
    let claim_one = claim(given, &devices, 1, KEYS / 2)?;
    let claim_many = claim(given, &devices, USERS, KEYS / 2)?;
    let to_device = to_device(given, &devices, &mut connection)?;
    Ok(json!({
        "upload": upload, "query": query, "claim_one": claim_one, "claim_many": claim_many, "to_device": to_device,
    }))
}

/// Something that is unlike anything before, of so many bytes in base64.
fn unlike(number: usize, bytes: usize) -> String {
    let mut text = number.to_be_bytes().repeat(bytes.div_ceil(8));
    text.truncate(bytes);
    base64(&text)
}

/// Each device uploads its identity keys, and then, which is what is measured, fifty one-time keys.
fn upload(given: &crate::Keys, devices: &[Device], connection: &mut Connection<TcpStream>) -> Result<Value> {
    const PATH: &str = "/_matrix/client/v3/keys/upload";
    let mut bodies = Vec::new();
    for (number, device) in devices.iter().enumerate() {
        let body = json!({ "device_keys": identity(device, number) });
        connection.call("POST", PATH, &device.authorization, Some(body.to_string().as_bytes()))?;
        let keys: Map<String, Value> =
            (0..KEYS).map(|key| one_time_key(device, number * KEYS + key)).collect();
        bodies.push(json!({ "one_time_keys": keys }).to_string());
    }
    let clock = Clock::start(given.pid)?;
    let mut times = Vec::new();
    for (device, body) in devices.iter().zip(&bodies) {
        let begun = Instant::now();
        let answer = connection.call("POST", PATH, &device.authorization, Some(body.as_bytes()))?;
        times.push(begun.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        if answer["one_time_key_counts"][ALGORITHM] != KEYS {
            return Err(format!("not all were taken: {answer}").into());
        }
    }
    clock.stop(times)
}

fn identity(device: &Device, number: usize) -> Value {
    let key = SigningKey::generate([7; 32], "any");
    let mut object = json!({
        "algorithms": ["m.olm.v1.curve25519-aes-sha2", "m.megolm.v1.aes-sha2"],
        "device_id": device.device,
        "keys": {
            format!("curve25519:{}", device.device): unlike(number, 32),
            format!("ed25519:{}", device.device): key.public_base64(),
        },
        "user_id": device.user,
    });
    let signature = object.as_object().map(|object| key.sign_bytes(&canonical_object(object)));
    object["signatures"] =
        json!({ device.user.as_str(): { format!("ed25519:{}", device.device): signature } });
    object
}

fn one_time_key(device: &Device, number: usize) -> (String, Value) {
    let signature = json!({ format!("ed25519:{}", device.device): unlike(number, 64) });
    let key = json!({ "key": unlike(number, 32), "signatures": { device.user.as_str(): signature } });
    (format!("{ALGORITHM}:K{number}"), key)
}

/// One user asks for the devices of a hundred.
fn query(given: &crate::Keys, devices: &[Device], connection: &mut Connection<TcpStream>) -> Result<Value> {
    let (mut times, mut clock) = (Vec::new(), None);
    for number in 0..given.times + 5 {
        let first = number * 37 % (devices.len() - USERS + 1);
        let users: Map<String, Value> =
            devices[first..first + USERS].iter().map(|device| (device.user.clone(), json!([]))).collect();
        let body = json!({ "device_keys": users }).to_string();
        // The first ones warm what can be warm.
        if number == 5 {
            (times, clock) = (Vec::new(), Some(Clock::start(given.pid)?));
        }
        let begun = Instant::now();
        let answer = connection.call(
            "POST",
            "/_matrix/client/v3/keys/query",
            &devices[0].authorization,
            Some(body.as_bytes()),
        )?;
        times.push(begun.elapsed());
        let answer: Value = serde_json::from_slice(&answer)?;
        let told = answer["device_keys"].as_object().map_or(0, |users| {
            users.values().filter(|devices| devices.as_object().is_some_and(|some| some.len() == 1)).count()
        });
        if told != USERS {
            return Err(format!("the devices of {told} users").into());
        }
    }
    clock.ok_or("nothing was measured")?.stop(times)
}

/// Connections claim keys of so many devices a request, of one after the other, as long as there is time and there are keys
/// among `rounds`: that many of each device. No key is given out twice.
fn claim(given: &crate::Keys, devices: &[Device], at_once: usize, rounds: usize) -> Result<Value> {
    let (next, requests) = (AtomicUsize::new(0), devices.len() / at_once * rounds);
    let time = Duration::from_secs(given.seconds);
    let clock = Clock::start(given.pid)?;
    let begun = Instant::now();
    let claimed = std::thread::scope(|scope| -> Result<Vec<(Duration, Vec<String>)>> {
        let claim = || -> Result<Vec<(Duration, Vec<String>)>> {
            let mut connection = http::connect(&given.client)?;
            let mut claimed = Vec::new();
            while begun.elapsed() < time {
                let number = next.fetch_add(1, Ordering::Relaxed);
                if number >= requests {
                    break;
                }
                let first = number % (devices.len() / at_once) * at_once;
                claimed.push(claim_of(&mut connection, &devices[first..first + at_once])?);
            }
            Ok(claimed)
        };
        let running: Vec<_> = (0..given.connections).map(|_| scope.spawn(claim)).collect();
        let mut claimed = Vec::new();
        for thread in running {
            claimed.extend(thread.join().unwrap_or_else(|_| Err("a panic".into()))?);
        }
        Ok(claimed)
    })?;
    let spent = clock.spent()?;
    let keys: Vec<&String> = claimed.iter().flat_map(|(_, keys)| keys).collect();
    let different: HashSet<&&String> = keys.iter().collect();
    if different.len() != keys.len() {
        return Err(format!("{} keys, of which {} differ", keys.len(), different.len()).into());
    }
    let mut figures = spent.each(keys.len());
    let of_requests = spent.figures(claimed.iter().map(|(took, _)| *took).collect());
    for name in ["p50_ms", "p99_ms"] {
        figures[name] = of_requests[name].clone();
    }
    Ok(figures)
}

/// One request for a key of each of these devices: how long it took, and the ids of the keys.
fn claim_of(connection: &mut Connection<TcpStream>, devices: &[Device]) -> Result<(Duration, Vec<String>)> {
    let wanted: Map<String, Value> = devices
        .iter()
        .map(|device| (device.user.clone(), json!({ device.device.as_str(): ALGORITHM })))
        .collect();
    let body = json!({ "one_time_keys": wanted }).to_string();
    let begun = Instant::now();
    let answer = connection.call(
        "POST",
        "/_matrix/client/v3/keys/claim",
        &devices[0].authorization,
        Some(body.as_bytes()),
    )?;
    let took = begun.elapsed();
    let answer: Value = serde_json::from_slice(&answer)?;
    let keys = devices.iter().map(|of| {
        let keys = answer["one_time_keys"][of.user.as_str()][of.device.as_str()].as_object();
        keys.and_then(|keys| keys.keys().next().cloned())
            .ok_or_else(|| format!("no key of {}", of.user).into())
    });
    Ok((took, keys.collect::<Result<_>>()?))
}

/// One user writes to all devices in one request, as clients do with the key of a large room.
fn to_device(
    given: &crate::Keys,
    devices: &[Device],
    connection: &mut Connection<TcpStream>,
) -> Result<Value> {
    let content = json!({
        "algorithm": "m.olm.v1.curve25519-aes-sha2", "sender_key": unlike(1, 32),
        "ciphertext": { unlike(2, 32): { "type": 0, "body": unlike(3, 500) } },
    });
    let messages: Map<String, Value> = devices
        .iter()
        .map(|device| (device.user.clone(), json!({ device.device.as_str(): content })))
        .collect();
    let body = json!({ "messages": messages }).to_string();
    let clock = Clock::start(given.pid)?;
    let mut times = Vec::new();
    for number in 0..given.messages {
        let uri =
            format!("/_matrix/client/v3/sendToDevice/m.room.encrypted/k{}.{number}", std::process::id());
        let begun = Instant::now();
        connection.call("PUT", &uri, &devices[0].authorization, Some(body.as_bytes()))?;
        times.push(begun.elapsed());
    }
    let mut figures = clock.stop(times)?;
    figures["devices"] = devices.len().into();
    for device in [&devices[1], &devices[devices.len() - 1]] {
        let filter = encode(r#"{"room":{"rooms":[]}}"#);
        let uri = format!("/_matrix/client/v3/sync?filter={filter}");
        let answer = connection.call("GET", &uri, &device.authorization, None)?;
        let answer: Value = serde_json::from_slice(&answer)?;
        let came = answer["to_device"]["events"].as_array().map_or(0, Vec::len);
        if came != given.messages {
            return Err(format!("{came} messages of {} came to {}", given.messages, device.user).into());
        }
    }
    Ok(figures)
}
