//! What other servers answer to us: our users join, knock, are invited, look back and look around, and the server that is
//! asked says whatever the input says, from the first byte of its answer on. In memory, with the real client.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use doorstep::internals::{AnswerScript, ScriptedRequest};
use doorstep::protocol::UserId;
use doorstep::protocol::signatures::sign::SigningKey;
use doorstep::testing::segment;
use serde_json::{Map, Value, json};
use tiny_http::Method;

use super::body;
use super::house::{ALICE, Ask, AskerId, CAROL, DAVE, House, PEER, key};
use super::peer_room::{PeerRoom, honest, signed_again};
use super::router::{judged, parts, still_works};
use super::source::Source;

/// So many deeds of an input are done.
const MOST_DEEDS: usize = 3;
/// After so many inputs the homeserver is given up for a new one.
const INPUTS_OF_ONE: u32 = 40;
/// A server that is asked more often than that by one input is being asked in a circle.
const MOST_ASKED: usize = 4000;

/// One for each format of event ids and room ids, with each door.
const ROOMS: [(&str, &str); 4] = [("1", "public"), ("10", "knock"), ("11", "public"), ("12", "knock")];

/// The other server: its rooms, and what it is to answer next.
struct Play {
    rooms: Vec<PeerRoom>,
    key: SigningKey,
    answers: VecDeque<Vec<u8>>,
    asked: usize,
    transactions: usize,
}

impl Play {
    fn new() -> Self {
        let key = key();
        let rooms = ROOMS.map(|(version, rule)| PeerRoom::new(&key, version, rule)).into();
        Self { rooms, key, answers: VecDeque::new(), asked: 0, transactions: 0 }
    }
}

type Shared = Arc<Mutex<Play>>;

fn lock(play: &Shared) -> MutexGuard<'_, Play> {
    play.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Whatever other servers answer, our users get answers, and the homeserver still works afterwards.
pub fn peer_answers(data: &[u8]) {
    static HOUSE: Mutex<Option<(House, Shared, u32)>> = Mutex::new(None);
    let mut kept = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out, so that a homeserver that failed is not used again.
    let (mut house, play, inputs) = kept.take().unwrap_or_else(|| {
        let play = Arc::new(Mutex::new(Play::new()));
        let script: Arc<AnswerScript> = {
            let play = play.clone();
            Arc::new(move |asked: &ScriptedRequest| answer(&mut lock(&play), asked))
        };
        (House::scripted(script), play, 1)
    });
    let mut parts = parts(data).into_iter();
    let mut deeds = Source::new(parts.next().unwrap_or_default());
    {
        let mut play = lock(&play);
        play.answers = parts.map(<[u8]>::to_vec).collect();
        play.asked = 0;
    }
    for _ in 0..MOST_DEEDS {
        deed(&mut deeds, &mut house, &play);
        if deeds.is_empty() {
            break;
        }
    }
    // From here on it is honest.
    let asked = {
        let mut play = lock(&play);
        play.answers.clear();
        play.asked
    };
    assert!(asked <= MOST_ASKED, "{asked} requests for {}", data.escape_ascii());
    if still_works(&mut house) && inputs < INPUTS_OF_ONE {
        *kept = Some((house, play, inputs + 1));
    }
}

/// Has somebody here do something for which another server is asked.
fn deed(source: &mut Source<'_>, house: &mut House, play: &Shared) {
    let (room, alias, ours) = {
        let play = lock(play);
        let room = &play.rooms[source.below(play.rooms.len())];
        (
            segment(&room.id),
            segment(&room.alias),
            segment(house.rooms[source.below(4) % house.rooms.len()].id.as_str()),
        )
    };
    let client = |path: String| format!("/_matrix/client{path}");
    let (method, target, body) = match source.below(20) {
        0 => (Method::Post, client(format!("/v3/join/{room}?via={PEER}")), json!({})),
        1 => (Method::Post, client(format!("/v3/knock/{room}?via={PEER}")), json!({})),
        2 => (Method::Post, client(format!("/v3/join/{alias}")), json!({})),
        3 => (Method::Post, client(format!("/v3/rooms/{room}/leave")), json!({})),
        4 => (Method::Post, client(format!("/v3/rooms/{ours}/invite")), json!({ "user_id": DAVE })),
        5 => (Method::Get, client(format!("/v3/rooms/{room}/messages?dir=b&limit=50")), Value::Null),
        6 => (Method::Get, client(format!("/v3/profile/{}", segment(CAROL))), Value::Null),
        7 => (Method::Get, client(format!("/v3/directory/room/{alias}")), Value::Null),
        8 => (Method::Get, client(format!("/v3/publicRooms?server={PEER}")), Value::Null),
        9 => (
            Method::Post,
            client(format!("/v3/publicRooms?server={PEER}")),
            json!({ "filter": { "generic_search_term": "a" } }),
        ),
        10 => (Method::Get, client(format!("/v1/rooms/{room}/hierarchy")), Value::Null),
        11 => (Method::Get, client(format!("/v1/room_summary/{room}?via={PEER}")), Value::Null),
        12 => (
            Method::Get,
            client(format!("/v1/rooms/{room}/timestamp_to_event?ts=1700000000000&dir=f")),
            Value::Null,
        ),
        13 => (
            Method::Post,
            client(format!("/v3/rooms/{ours}/invite")),
            json!({ "id_server": "id.example", "id_access_token": "t", "medium": "email", "address": "c@e.example" }),
        ),
        14 => {
            // Whoever speaks from a server of whom no key is known has its keys fetched, and so has whoever is asked about.
            let other = source.pick(&["other.example", "third.example:1", PEER, "127.0.0.1"]);
            (
                Method::Get,
                format!("/_matrix/key/v2/query/{other}?minimum_valid_until_ts=4102444800000"),
                Value::Null,
            )
        }
        15 => return devices(house),
        16 => return invite(house, play, source),
        17 => (
            Method::Post,
            client("/v3/keys/query".to_owned()),
            json!({ "device_keys": { CAROL: if source.chance(128) { json!(["D"]) } else { json!([]) } } }),
        ),
        18 => (
            Method::Post,
            client("/v3/keys/claim".to_owned()),
            json!({ "one_time_keys": { CAROL: { "D": "signed_curve25519" } } }),
        ),
        _ => return transaction(house, play, source),
    };
    let who = if target.contains("/key/v2/") { AskerId::Nobody } else { AskerId::Alice };
    let what = format!("{method} {target}");
    let body = if body.is_null() { Vec::new() } else { body.to_string().into_bytes() };
    judged(house.ask(Ask { method, target, who, body }), &what);
}

fn as_peer(house: &mut House, target: String, body: &Value) {
    let body = body.to_string().into_bytes();
    let what = format!("{target}: {}", body.escape_ascii());
    judged(house.ask(Ask { method: Method::Put, target, who: AskerId::Peer, body }), &what);
}

/// The other server says that carol's devices have changed, but not how: her list is fetched.
fn devices(house: &mut House) {
    let update = json!({ "user_id": CAROL, "device_id": "D", "stream_id": 9, "prev_id": [8] });
    let edu = json!({ "edu_type": "m.device_list_update", "content": update });
    let body = json!({ "origin": PEER, "origin_server_ts": 1, "pdus": [], "edus": [edu] });
    as_peer(house, "/_matrix/federation/v1/send/devices".to_owned(), &body);
    house
        .homeserver()
        .devices()
        .fetch_device_list(&UserId::parse(CAROL).expect("a user id"))
        .expect("the database works");
}

/// Alice is invited into one of the other server's rooms.
fn invite(house: &mut House, play: &Shared, source: &mut Source<'_>) {
    let (target, body) = {
        let mut play = lock(play);
        let at = source.below(play.rooms.len());
        let room = &mut play.rooms[at];
        let draft = room.draft("m.room.member", CAROL, Some(ALICE), json!({ "membership": "invite" }));
        let Some((id, event)) = house.signed(&draft, room.version) else { return };
        room.take(&event);
        let shown: Vec<Value> =
            room.events.iter().take(1).map(|pdu| Value::Object(pdu.to_object())).collect();
        let body = json!({ "event": event, "room_version": room.version.id, "invite_room_state": shown });
        (format!("/_matrix/federation/v2/invite/{}/{}", segment(&room.id), segment(&id)), body)
    };
    as_peer(house, target, &body);
}

/// The other server sends an event that rests on others that we do not know.
fn transaction(house: &mut House, play: &Shared, source: &mut Source<'_>) {
    let (txn, body) = {
        let mut play = lock(play);
        play.transactions += 1;
        let room = &play.rooms[source.below(play.rooms.len())];
        let mut draft =
            room.draft("m.room.message", CAROL, None, json!({ "body": source.byte().to_string() }));
        if source.chance(128) {
            let unknown = json!("$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA");
            if let Some(prev) = draft.get_mut("prev_events").and_then(Value::as_array_mut) {
                prev.push(if room.version.id == "1" { json!([unknown, {}]) } else { unknown });
            }
        }
        let Some((_, event)) = house.signed(&draft, room.version) else { return };
        let body = json!({ "origin": PEER, "origin_server_ts": 1, "pdus": [event], "edus": [] });
        (play.transactions, body)
    };
    as_peer(house, format!("/_matrix/federation/v1/send/t{txn}"), &body);
}

/// All the bytes of an answer.
fn answer(play: &mut Play, asked: &ScriptedRequest) -> Vec<u8> {
    play.asked += 1;
    let next = play.answers.pop_front().unwrap_or_default();
    let mut source = Source::new(&next);
    let (status, mut body) = honest(asked, &play.rooms, &play.key);
    match source.below(8) {
        0..=3 => {
            for _ in 0..source.below(4) {
                bend(&mut source, &mut body, 0);
            }
            written(status, body.to_string().as_bytes())
        }
        4 => {
            if let Some(event) = an_event(&mut source, &mut body) {
                bend(&mut source, event, 0);
                let room = play.rooms.iter().find(|room| event.get("room_id") == Some(&json!(room.id)));
                let version = room.unwrap_or(&play.rooms[3]).version;
                if let Some(signed) = signed_again(event, &play.key, version) {
                    *event = signed;
                }
            }
            written(status, body.to_string().as_bytes())
        }
        5 => {
            let status = [200, 301, 400, 401, 403, 404, 405, 429, 500, 502, 504][source.below(11)];
            let errcode = source.word(
                "M_FORBIDDEN M_NOT_FOUND M_UNRECOGNIZED M_INCOMPATIBLE_ROOM_VERSION M_UNABLE_TO_AUTHORISE_JOIN M_UNKNOWN \
                 M_LIMIT_EXCEEDED M_UNABLE_TO_GRANT_JOIN x",
            );
            let mut body =
                json!({ "errcode": errcode, "error": "because", "room_version": "10", "retry_after_ms": 5 });
            bend(&mut source, &mut body, 0);
            written(status, body.to_string().as_bytes())
        }
        6 => written(200, &filled_in(source.rest(), play)),
        _ => source.rest().to_vec(),
    }
}

fn written(status: u16, body: &[u8]) -> Vec<u8> {
    let head = format!(
        "HTTP/1.1 {status} X\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        body.len()
    );
    [head.as_bytes(), body].concat()
}

/// The bytes as they are, but for the ids of the rooms.
fn filled_in(bytes: &[u8], play: &Play) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(bytes) else { return bytes.to_vec() };
    let mut text = text.to_owned();
    for (number, room) in play.rooms.iter().enumerate() {
        text = text.replace(&format!("<room{number}>"), &room.id);
    }
    text.into_bytes()
}

/// One of the events in an answer.
fn an_event<'v>(source: &mut Source<'_>, body: &'v mut Value) -> Option<&'v mut Value> {
    let lists = ["state", "auth_chain", "pdus", "events", "knock_room_state"];
    let list = lists.into_iter().find(|list| body[*list].as_array().is_some_and(|list| !list.is_empty()));
    match list {
        Some(list) => {
            let list = body[list].as_array_mut()?;
            let at = source.below(list.len());
            list.get_mut(at)
        }
        None => body.get_mut("event"),
    }
}

/// Changes something, here or further in.
fn bend(source: &mut Source<'_>, value: &mut Value, depth: usize) {
    let go_on = depth < 8 && source.chance(190);
    match value {
        Value::Object(object) if go_on && !object.is_empty() => {
            let key = object.keys().nth(source.below(object.len())).cloned().unwrap_or_default();
            if source.chance(24) {
                object.remove(&key);
            } else if let Some(inside) = object.get_mut(&key) {
                bend(source, inside, depth + 1);
            }
        }
        Value::Array(list) if go_on && !list.is_empty() => {
            let at = source.below(list.len());
            match source.below(8) {
                0 => drop(list.remove(at)),
                1 => list.push(list[at].clone()),
                2 => list.reverse(),
                _ => bend(source, &mut list[at], depth + 1),
            }
        }
        _ => *value = another(source, value),
    }
}

fn another(source: &mut Source<'_>, before: &Value) -> Value {
    match source.below(16) {
        0 => Value::Null,
        1 => json!(source.chance(128)),
        2 => json!(source.pick(&body::NUMBERS)),
        3 => json!(1.5),
        4 => json!([]),
        5 => json!({}),
        6 => json!([before]),
        7 => json!({ "a": before }),
        8 => json!(vec![before.clone(); if before.is_object() { 20 } else { 600 }]),
        9 => (0..200).map(|n| (format!("@{n}:{PEER}"), before.clone())).collect::<Map<_, _>>().into(),
        // Deeper than anything may be.
        10 => (0..110).fold(json!(1), |inside, _| json!([inside])),
        11 => json!("x".repeat(300 * source.below(256))),
        12 => json!(source.pick(&body::USERS)),
        13 => {
            json!(source.word(
                "join leave invite ban knock public restricted m.room.create m.room.member 1 10 11 12 99"
            ))
        }
        14 => json!(source.pick(&[
            "$x",
            "$AAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA",
            "!x:peer.example",
            "#x:peer.example"
        ])),
        _ => {
            let bytes: Vec<u8> = (0..source.below(24)).map(|_| source.byte()).collect();
            json!(String::from_utf8_lossy(&bytes))
        }
    }
}
