//! Requests to every endpoint of both APIs, through the real router and handlers on a real database. What no handler
//! sees, the reading of bytes from sockets, is `http_connection`.

use std::sync::{LazyLock, Mutex, PoisonError};

use doorstep::internals::ROUTES;
use doorstep::internals::{Handler, Reply, Route};
use doorstep::testing::segment;
use serde_json::{Value, json};
use tiny_http::Method;

use super::body::{self, USERS};
use super::house::{ALICE, Ask, AskerId, BOB, House, OWN, PEER};
use super::source::Source;

/// What stands between two requests of one input.
const NEXT: &[u8] = b"\n;\n";
/// So many requests of an input are made.
const MOST_REQUESTS: usize = 6;
/// After so many inputs the homeserver is given up for a new one: what earlier inputs left should not add up.
const INPUTS_OF_ONE: u32 = 60;

const QUERY: &str = "via server_name ver v limit dir from to since filter full_state timeout set_presence use_state_after \
     event_id ts kind at membership not_membership user_id room_alias field token username suggested_only \
     max_depth format omit_members minimum_valid_until_ts include_all_networks server access_token";

/// Which of them belong to which requests.
const EXPECTED: &[(&str, &str)] = &[
    ("/timestamp_to_event", "ts dir"),
    ("/openid/userinfo", "access_token"),
    ("/query/profile", "user_id field"),
    ("/query/directory", "room_alias"),
    ("/messages", "dir from limit"),
    ("/register/available", "username"),
    ("/validity", "token"),
    ("/federation/v1/state", "event_id"),
    ("/backfill/", "v limit"),
    ("/make_", "ver"),
    ("/sync", "since filter"),
];

/// Whatever is asked, by whomever, there is an answer and it is JSON, or a page; an error says its code and is not ours; and the
/// homeserver still works afterwards.
pub fn router(data: &[u8]) {
    static HOUSE: Mutex<Option<(House, u32)>> = Mutex::new(None);
    let mut kept = HOUSE.lock().unwrap_or_else(PoisonError::into_inner);
    // Taken out, so that a homeserver that failed is not used again.
    let (mut house, inputs) = kept.take().unwrap_or_else(|| (House::new(), 1));
    for part in parts(data).into_iter().take(MOST_REQUESTS) {
        let ask = request(&mut Source::new(part), &mut house);
        let what = format!("{:?}: {} {} {}", ask.who, ask.method, ask.target, ask.body.escape_ascii());
        let (_, body) = judged(house.ask(ask), &what);
        house.heard(&body);
    }
    if still_works(&mut house) && inputs < INPUTS_OF_ONE {
        *kept = Some((house, inputs + 1));
    }
}

/// The parts of an input, between which there is a line with a semicolon.
pub fn parts(data: &[u8]) -> Vec<&[u8]> {
    let (mut parts, mut rest) = (Vec::new(), data);
    while let Some(at) = rest.windows(NEXT.len()).position(|window| window == NEXT) {
        parts.push(&rest[..at]);
        rest = &rest[at + NEXT.len()..];
    }
    parts.push(rest);
    parts
}

/// The reply's status and body, once it is found to be in order.
pub fn judged(reply: Reply, what: &str) -> (u16, Value) {
    let status = reply.status();
    assert!((200..600).contains(&status) && status != 500, "{status} for {what}");
    let bytes = reply.into_bytes().unwrap_or_else(|e| panic!("{status} and half a body ({e}) for {what}"));
    // The page is for people, and sends them on without a word.
    if bytes.starts_with(b"<!DOCTYPE html>") || (status == 303 && bytes.is_empty()) {
        return (status, Value::Null);
    }
    let body: Value = serde_json::from_slice(&bytes)
        .unwrap_or_else(|e| panic!("{status} without JSON ({e}) for {what}: {}", bytes.escape_ascii()));
    if !(200..300).contains(&status) {
        // The first answer of interactive authentication is an error without a code.
        let says_why = body["errcode"].as_str().is_some_and(|code| code.starts_with("M_"));
        assert!(says_why || (status == 401 && body["flows"].is_array()), "{status} {body} for {what}");
    }
    (status, body)
}

/// Whether alice can go on; she may have logged out.
pub fn still_works(house: &mut House) -> bool {
    let target =
        "/_matrix/client/v3/sync?timeout=0&filter=%7B%22room%22:%7B%22timeline%22:%7B%22limit%22:1%7D%7D%7D"
            .to_owned();
    let reply = house.ask(Ask { method: Method::Get, target, who: AskerId::Alice, body: Vec::new() });
    let (status, body) = judged(reply, "alice's sync");
    assert!(status == 200 || status == 401, "alice cannot sync any more: {body}");
    status == 200
}

fn request(source: &mut Source<'_>, house: &mut House) -> Ask {
    let route = route(source);
    let mut method = route.method.clone();
    if source.chance(8) {
        method = [Method::Get, Method::Head, Method::Put, Method::Post, Method::Delete, Method::Options]
            [source.below(6)]
        .clone();
    }
    let who = match route.handler {
        _ if source.chance(24) => {
            source.pick(&[AskerId::Nobody, AskerId::WrongToken, AskerId::WrongSignature, AskerId::Peer])
        }
        Handler::Anyone(_) => AskerId::Nobody,
        Handler::Peer(_) => AskerId::Peer,
        _ => source.pick(&[AskerId::Alice, AskerId::Alice, AskerId::Bob]),
    };
    let has_body = matches!(method, Method::Put | Method::Post | Method::Delete);
    let is_written = has_body && source.chance(80);
    let (about, mut body) =
        if has_body && !is_written { content(source, house, route.path) } else { (None, Vec::new()) };
    let target = target(source, house, route.path, about.as_ref());
    if is_written {
        body = as_written(source.rest(), house);
    }
    Ask { method, target, who, body }
}

/// Each line of the table is drawn by its own text, so that inputs keep their meaning when others come and go: the line
/// with the highest lot wins.
fn route(source: &mut Source<'_>) -> &'static Route {
    static PLACES: LazyLock<Vec<u32>> = LazyLock::new(|| ROUTES.iter().map(place).collect());
    let wanted = u32::from(u16::from_be_bytes([source.byte(), source.byte()]));
    let lot =
        |place: u32| (place ^ wanted.wrapping_mul(0x9e37_79b1)).wrapping_mul(0x85eb_ca6b).rotate_left(13);
    let lots = PLACES.iter().map(|place| lot(lot(*place)));
    let (_, route) = lots.zip(ROUTES).max_by_key(|(lot, _)| *lot).expect("the table has lines");
    route
}

/// FNV-1a.
fn place(route: &Route) -> u32 {
    let text = route.method.as_str().bytes().chain(route.path.bytes());
    text.fold(0x811c_9dc5, |hash, byte| (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193))
}

/// The body; and the room and the event that it is about, which belong into the path.
fn content(source: &mut Source<'_>, house: &mut House, path: &str) -> (Option<(String, String)>, Vec<u8>) {
    let membership = ["join", "knock", "leave", "invite"].into_iter().find(|kind| {
        path.starts_with("/_matrix/federation/") && path.contains(&format!("{kind}/{{roomId}}/{{eventId}}"))
    });
    if let Some(membership) = membership {
        let (room, id, event) = body::peer_event(source, house, Some(membership));
        house.learn(id.clone());
        let state = json!([{ "type": "m.room.name", "state_key": "", "sender": "@carol:peer.example", "content": {} }]);
        let body = match path.contains("v2/invite") {
            true => json!({ "event": event, "room_version": room.version.id, "invite_room_state": state }),
            false => event,
        };
        return (Some((room.id.to_string(), id)), body.to_string().into_bytes());
    }
    if path.contains("/federation/v1/send/") {
        return (None, body::transaction(source, house).to_string().into_bytes());
    }
    (None, body::object(source, house, path).to_string().into_bytes())
}

/// The bytes as they are, but for the names of what differs from one homeserver to another.
fn as_written(bytes: &[u8], house: &House) -> Vec<u8> {
    let Ok(text) = std::str::from_utf8(bytes) else { return bytes.to_vec() };
    let mut text = text.to_owned();
    for (number, room) in house.rooms.iter().enumerate() {
        text = text.replace(&format!("<room{number}>"), room.id.as_str());
    }
    text.replace("<event>", &house.events[house.events.len() - 1]).into_bytes()
}

fn target(source: &mut Source<'_>, house: &House, path: &str, about: Option<&(String, String)>) -> String {
    let mut target = String::new();
    for part in path.split('/').skip(1) {
        target.push('/');
        match part.strip_prefix('{') {
            Some(name) => target += &parameter(name.trim_end_matches(['}', '?']), source, house, about),
            None => target += part,
        }
    }
    let mut sign = '?';
    let expected = EXPECTED.iter().find(|(part, _)| path.contains(part)).map_or("", |(_, names)| names);
    let expected = expected.split_whitespace().filter(|_| !source.chance(40)).collect::<Vec<_>>();
    let others = (0..source.below(4)).map(|_| source.word(QUERY)).collect::<Vec<_>>();
    for name in expected.into_iter().chain(others) {
        let value = match name {
            "ver" => source.pick(&["1", "10", "12", "11", ""]).to_owned(),
            "limit" | "ts" | "timeout" | "max_depth" | "minimum_valid_until_ts" if source.chance(200) => {
                source.pick(&body::NUMBERS).to_string()
            }
            "dir" => source.pick(&["f", "b", "x"]).to_owned(),
            "event_id" | "v" => body::event(source, house),
            "user_id" => source.pick(&USERS).to_owned(),
            "room_alias" => body::room(source, house).alias,
            "access_token" if source.chance(200) => house.given.get(name).cloned().unwrap_or_default(),
            "since" | "from" if source.chance(100) => {
                house.given.get("next_batch").cloned().unwrap_or_default()
            }
            "filter" if source.chance(128) => body::object(source, house, "/filter").to_string(),
            // As they are given out.
            "from" | "to" | "since" | "at" if source.chance(128) => format!("s{}", source.byte()),
            _ => body::text(source, house),
        };
        target.push(sign);
        target += &format!("{name}={}", segment(&value));
        sign = '&';
    }
    target
}

fn parameter(name: &str, source: &mut Source<'_>, house: &House, about: Option<&(String, String)>) -> String {
    if source.chance(20) {
        return segment(&body::text(source, house));
    }
    let text = match (name, about) {
        ("roomId", Some((room, _))) => room.clone(),
        ("eventId", Some((_, event))) => event.clone(),
        ("roomId" | "roomIdOrAlias", _) => body::room(source, house).id.to_string(),
        ("eventId", _) => body::event(source, house),
        ("roomAlias", _) => body::room(source, house).alias,
        ("userId", _) => source.pick(&USERS).to_owned(),
        ("serverName", _) => source.pick(&[OWN, PEER, "elsewhere.example"]).to_owned(),
        ("deviceId", _) => house.device.clone(),
        ("eventType" | "type", _) if source.chance(200) => source
            .word("m.room.topic m.room.power_levels m.room.join_rules m.room.member m.room.name m.tag")
            .to_owned(),
        ("stateKey", _) if source.chance(200) => source.pick(&["", "", ALICE, BOB]).to_owned(),
        ("keyName", _) => source.word("displayname avatar_url m.tz org.x").to_owned(),
        ("tag", _) => source.word("m.favourite u.x").to_owned(),
        ("kind", _) => source.word("override underride content room sender").to_owned(),
        ("ruleId", _) => source.word(".m.rule.master .m.rule.suppress_notices .m.rule.message x").to_owned(),
        ("filterId", _) => source.word("0 1 2").to_owned(),
        ("receiptType", _) => source.word("m.read m.read.private m.fully_read").to_owned(),
        ("txnId", _) => source.byte().to_string(),
        _ => body::text(source, house),
    };
    segment(&text)
}
