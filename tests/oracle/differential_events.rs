//! Events against ruma: canonical JSON, redaction, hashes, signatures and verification of generated events of room
//! versions 6 to 12 must come out the same in both implementations.
//!
//! The generator is deterministic, so a failure names the case by its number, and running again meets it again.

use doorstep::protocol::json::CanonicalObject;
use doorstep::protocol::room_version::{RoomVersion, all};
use doorstep::protocol::signatures::hash;
use doorstep::protocol::signatures::sign::{self, KeyAt, SigningKey};
use doorstep::protocol::signatures::verify;
use doorstep::protocol::{Pdu, ServerName, json, redact};
use ruma_common::room_version_rules::RoomVersionRules;
use ruma_common::{CanonicalJsonObject, RoomVersionId, canonical_json, serde::Base64};
use ruma_signatures::{Ed25519KeyPair, PublicKeyMap, PublicKeySet, Verified};
use serde_json::{Map, Value, json};

/// Fewer where the code is slow: signatures are most of the time.
const CASES_PER_VERSION: u64 = if cfg!(debug_assertions) { 400 } else { 4000 };

/// Marsaglia's xorshift64: small, repeatable, good enough to pick shapes.
struct Random(u64);

impl Random {
    fn new(seed: u64) -> Self {
        // Spread the seed's bits; the state must not be 0.
        Self(seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1)
    }

    fn next(&mut self) -> u64 {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        self.0
    }

    fn below(&mut self, limit: usize) -> usize {
        usize::try_from(self.next() >> 16).unwrap_or(0) % limit
    }

    fn chance(&mut self, in_ten: usize) -> bool {
        self.below(10) < in_ten
    }

    fn pick<'a, T>(&mut self, items: &'a [T]) -> &'a T {
        &items[self.below(items.len())]
    }

    fn text(&mut self) -> String {
        const PARTS: [&str; 24] = [
            "a",
            "Z",
            "0",
            " ",
            "\"",
            "\\",
            "/",
            "\u{0}",
            "\u{8}",
            "\t",
            "\n",
            "\u{b}",
            "\u{c}",
            "\r",
            "\u{1f}",
            "\u{7f}",
            "é",
            "\u{2028}",
            "日",
            "\u{d7ff}",
            "\u{e000}",
            "\u{ffff}",
            "😀",
            "\u{10ffff}",
        ];
        (0..self.below(6)).map(|_| *self.pick(&PARTS)).collect()
    }

    fn integer(&mut self) -> Value {
        let some = i64::try_from(self.next() >> 40).unwrap_or(0);
        json!(*self.pick(&[0, 1, -1, 50, 100, some, -some, json::INTEGER_MAX, -json::INTEGER_MAX]))
    }

    fn value(&mut self, depth: usize) -> Value {
        match self.below(if depth == 0 { 5 } else { 8 }) {
            0 => Value::Null,
            1 => json!(self.chance(5)),
            2 | 3 => self.integer(),
            4 | 5 => json!(self.text()),
            6 => (0..self.below(4)).map(|_| self.value(depth - 1)).collect(),
            _ => Value::Object((0..self.below(4)).map(|_| (self.text(), self.value(depth - 1))).collect()),
        }
    }
}

const SERVERS: [&str; 3] = ["one.example", "two.example:8448", "[2001:db8::3]"];
const TYPES: [&str; 11] = [
    "m.room.member",
    "m.room.create",
    "m.room.join_rules",
    "m.room.power_levels",
    "m.room.aliases",
    "m.room.history_visibility",
    "m.room.redaction",
    "m.room.third_party_invite",
    "m.room.server_acl",
    "m.room.message",
    "org.example.odd type",
];
/// Keys of content that some version's redaction keeps, and some that none does.
const KEYS: [&str; 24] = [
    "membership",
    "join_authorised_via_users_server",
    "creator",
    "room_version",
    "join_rule",
    "allow",
    "ban",
    "events",
    "events_default",
    "invite",
    "kick",
    "redact",
    "state_default",
    "users",
    "users_default",
    "notifications",
    "aliases",
    "history_visibility",
    "redacts",
    "body",
    "displayname",
    "additional_creators",
    "m.federate",
    "reason",
];
const TOP_LEVEL: [&str; 6] = ["origin", "membership", "prev_state", "redacts", "extra", "org.example.key"];

fn content(random: &mut Random, event_type: &str) -> Map<String, Value> {
    let mut content = Map::new();
    for _ in 0..random.below(8) {
        let key = *random.pick(&KEYS);
        content.insert(key.to_owned(), random.value(3));
    }
    if event_type == "m.room.member" {
        // Both implementations ask these of member events before they look at signatures.
        let membership = *random.pick(&["join", "invite", "leave", "ban", "knock", "odd"]);
        content.insert("membership".to_owned(), membership.into());
        content.remove("join_authorised_via_users_server");
        if membership == "join" && random.chance(3) {
            let user = format!("@x:{}", random.pick(&SERVERS));
            content.insert("join_authorised_via_users_server".to_owned(), user.into());
        }
        if random.chance(3) {
            // Always with `signed`: what stays of an invite without it is disputed (see the vectors).
            let invite = json!({"display_name": random.text(), "signed": random.value(2)});
            content.insert("third_party_invite".to_owned(), invite);
        }
    } else {
        // ruma looks for it in events of every type.
        content.remove("join_authorised_via_users_server");
    }
    for _ in 0..random.below(3) {
        content.insert(random.text(), random.value(3));
    }
    content
}

fn event(random: &mut Random, version: RoomVersion) -> Map<String, Value> {
    let event_type = *random.pick(&TYPES);
    let id = |random: &mut Random| {
        format!("${}", json::base64_url(&[u8::try_from(random.below(256)).unwrap_or(0); 32]))
    };
    let mut event = Map::from_iter([
        ("type".to_owned(), json!(event_type)),
        (
            "sender".to_owned(),
            json!(format!("@{}:{}", random.pick(&["a", "", "Ü /"]), random.pick(&SERVERS))),
        ),
        ("origin_server_ts".to_owned(), json!(random.below(1 << 41))),
        ("depth".to_owned(), json!(random.below(1 << 53))),
        ("prev_events".to_owned(), (0..random.below(4)).map(|_| id(random)).collect()),
        ("auth_events".to_owned(), (0..random.below(4)).map(|_| id(random)).collect()),
        ("content".to_owned(), Value::Object(content(random, event_type))),
    ]);
    if !version.room_id_is_create_hash {
        event.insert("room_id".to_owned(), json!("!room:one.example"));
    } else if event_type != "m.room.create" {
        event.insert("room_id".to_owned(), json!(id(random).replace('$', "!")));
    }
    if random.chance(6) {
        event.insert("state_key".to_owned(), json!(random.text()));
    }
    for _ in 0..random.below(3) {
        let key = *random.pick(&TOP_LEVEL);
        event.insert(key.to_owned(), random.value(2));
    }
    if random.chance(3) {
        event.insert("unsigned".to_owned(), json!({"age": random.integer(), "x": random.value(1)}));
    }
    event
}

fn to_ruma(object: &Map<String, Value>) -> CanonicalJsonObject {
    canonical_json::try_from_json_map(object.clone()).expect("strict JSON")
}

fn from_ruma(object: &CanonicalJsonObject) -> Value {
    serde_json::to_value(object).expect("JSON")
}

fn rules(version: RoomVersion) -> RoomVersionRules {
    RoomVersionId::try_from(version.id).expect("a version").rules().expect("known to ruma")
}

/// The same key for both sides, one for each server.
fn keys(server: &str) -> (SigningKey, Ed25519KeyPair) {
    let mut seed = [7; 32];
    seed[0] = u8::try_from(server.len()).expect("short");
    // PKCS #8 version 1: a fixed head and the seed.
    let mut der = vec![0x30, 0x2e, 2, 1, 0, 0x30, 5, 6, 3, 0x2b, 0x65, 0x70, 4, 0x22, 4, 0x20];
    der.extend_from_slice(&seed);
    (SigningKey::generate(seed, "k_1"), Ed25519KeyPair::from_der(&der, "k_1".to_owned()).expect("a key"))
}

fn versions() -> impl Iterator<Item = (RoomVersion, RoomVersionRules)> {
    all().iter().filter(|version| version.strict_canonical_json).map(|version| (version, rules(version)))
}

/// Runs a check on many generated events of every version that ruma speaks.
fn for_each_event(
    mut check: impl FnMut(&mut Random, &Map<String, Value>, RoomVersion, &RoomVersionRules, &str),
) {
    for (number, (version, rules)) in versions().enumerate() {
        for case in 0..CASES_PER_VERSION {
            let mut random = Random::new(u64::try_from(number).expect("small") * 1_000_003 + case);
            let event = event(&mut random, version);
            check(&mut random, &event, version, &rules, &format!("case {case} of version {}", version.id));
        }
    }
}

#[test]
fn canonical_json_is_the_same() {
    for case in 0..10_000 {
        let mut random = Random::new(case);
        let object: Map<String, Value> =
            (0..random.below(7)).map(|_| (random.text(), random.value(4))).collect();
        let theirs = serde_json::to_string(&to_ruma(&object)).expect("JSON");
        let ours = String::from_utf8(json::canonical_object(&object)).expect("UTF-8");
        assert_eq!(ours, theirs, "case {case}");
        // And from text that is not canonical.
        let pretty = serde_json::to_vec_pretty(&object).expect("JSON");
        assert_eq!(json::canonical_text(&pretty).expect("JSON"), ours.as_bytes(), "case {case}");
    }
}

fn redacted(event: &Map<String, Value>, version: RoomVersion) -> Value {
    let redacted = redact::redact(&CanonicalObject::of(event), version);
    serde_json::from_slice(redacted.as_bytes()).expect("JSON")
}

#[test]
fn redacted_events_are_the_same() {
    for_each_event(|_, event, version, rules, case| {
        let theirs = canonical_json::redact(to_ruma(event), &rules.redaction, None).expect("an event");
        assert_eq!(redacted(event, version), from_ruma(&theirs), "{case}");
    });
}

#[test]
fn hashes_are_the_same() {
    for_each_event(|_, event, version, rules, case| {
        let ruma = to_ruma(event);
        let content = ruma_signatures::content_hash(&ruma).expect("an event");
        assert_eq!(CanonicalObject::of(event).content_hash(), content.encode(), "{case}");
        let reference = ruma_signatures::reference_hash(&ruma, rules).expect("an event");
        assert_eq!(
            json::base64_url(&CanonicalObject::of(event).reference_hash(version)),
            reference,
            "{case}"
        );
    });
}

#[test]
fn signed_events_are_the_same() {
    for_each_event(|_, event, version, rules, case| {
        let sender = event["sender"].as_str().and_then(|s| s.split_once(':')).expect("a sender").1;
        let (our_key, their_key) = keys(sender);
        let mut theirs = to_ruma(event);
        ruma_signatures::hash_and_sign_event(sender, &their_key, &mut theirs, &rules.redaction)
            .expect("an event");
        let mut ours = event.clone();
        hash::add_content_hash(&mut ours);
        let server = ServerName::parse(sender).expect("a server");
        sign::sign_event(&mut ours, &server, &our_key, version);
        assert_eq!(Value::Object(ours), from_ruma(&theirs), "{case}");
    });
}

/// What verification can say.
#[derive(Debug, PartialEq)]
enum Verdict {
    Right,
    /// The signatures are right and the content hash is not.
    Redacted,
    Wrong,
}

/// Breaks a signed event in one of several ways, or not at all.
fn break_it(random: &mut Random, event: &mut Map<String, Value>) {
    let some_server = (*random.pick(&SERVERS)).to_owned();
    match random.below(9) {
        0 => {
            event.insert("unsigned".to_owned(), random.value(1));
        }
        1 => {
            event.insert("added".to_owned(), random.value(1));
        }
        2 => {
            event.insert("depth".to_owned(), json!(random.below(1000)));
        }
        3 => {
            if let Some(content) = event.get_mut("content").and_then(Value::as_object_mut) {
                content.insert(random.text(), random.value(1));
            }
        }
        4 => {
            event.insert("hashes".to_owned(), json!({"sha256": json::base64(&[1; 32])}));
        }
        5 => {
            event["signatures"].as_object_mut().expect("signed").remove(&some_server);
        }
        6 => {
            // The wrong bytes under the right name, where the server signed.
            if let Some(of_server) = event["signatures"].get_mut(&some_server) {
                of_server["ed25519:k_1"] = json!(json::base64(&[9; 64]));
            }
        }
        7 => {
            // A key that nobody knows, beside those that are known.
            let of_server = &mut event["signatures"][some_server.as_str()];
            if of_server.is_object() {
                of_server["ed25519:unknown"] = json!("AAAA");
            }
        }
        _ => {}
    }
}

#[test]
fn verification_says_the_same() {
    let mut theirs_known = PublicKeyMap::new();
    for server in SERVERS {
        let public = Base64::new(keys(server).1.public_key().to_vec());
        theirs_known.insert(server.to_owned(), PublicKeySet::from([("ed25519:k_1".to_owned(), public)]));
    }
    let ours_known = |server: &str, key_id: &str| {
        let known = SERVERS.contains(&server) && key_id == "ed25519:k_1";
        known.then(|| KeyAt::stated(keys(server).0.verify_key(), i64::MAX))
    };
    let mut seen = [0; 3];
    for_each_event(|random, event, version, rules, case| {
        let mut event = event.clone();
        hash::add_content_hash(&mut event);
        event.insert("signatures".to_owned(), json!({}));
        for server in SERVERS.into_iter().filter(|_| random.chance(8)) {
            sign::sign_event(&mut event, &ServerName::parse(server).expect("name"), &keys(server).0, version);
        }
        break_it(random, &mut event);
        let ask =
            |event: &Map<String, Value>| ruma_signatures::verify_event(&theirs_known, &to_ruma(event), rules);
        let theirs = match ask(&event) {
            Ok(Verified::All) => Verdict::Right,
            // They judge the event as it was sent, and we the form that is kept: they are asked about that as well.
            Ok(Verified::Signatures) => match redacted(&event, version) {
                Value::Object(kept) if ask(&kept).is_ok() => Verdict::Redacted,
                _ => Verdict::Wrong,
            },
            Err(_) => Verdict::Wrong,
        };
        let bytes = json::canonical_object(&event);
        let parsed = Pdu::parse(&bytes, version).unwrap_or_else(|e| panic!("{case}: {e}"));
        let ours = match verify::check_received(&bytes, version, &ours_known) {
            Ok(pdu) if pdu.json() == parsed.json() && pdu.canonical().content_hash_matches() => {
                Verdict::Right
            }
            Ok(pdu) => {
                assert_eq!(Value::Object(pdu.to_object()), redacted(&event, version), "{case}");
                Verdict::Redacted
            }
            Err(_) => Verdict::Wrong,
        };
        seen[match ours {
            Verdict::Right => 0,
            Verdict::Redacted => 1,
            Verdict::Wrong => 2,
        }] += 1;
        assert_eq!(ours, theirs, "{case}: {}", Value::Object(event));
    });
    assert!(seen.iter().all(|count| *count > 200), "the generator became one-sided: {seen:?}");
}
