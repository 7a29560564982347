//! Keys and signatures against peers on real sockets.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use serde_json::{Map, Value, json};

use crate::clock::{Clock, Millis};
use crate::config::Config;
use crate::error::ErrCode;
use crate::federation::client::scripted_peer::{ScriptedAnswer, ScriptedPeer, statement};
use crate::protocol::ServerName;
use crate::protocol::json::parse_object;
use crate::protocol::room_version::room_version;
use crate::protocol::signatures::sign::{self, SigningKey};
use crate::protocol::signatures::verify::Proof;
use crate::protocol::signatures::{hash, x_matrix};
use crate::service::Homeserver;
use crate::service::keys::doubts::Doubts;
use crate::service::keys::notary::NotaryQuery;
use crate::service::keys::verify::Checked;
use crate::service::limits::request_permits::{Asker, AskerId};
use crate::testing::certificates;

const DAY_MS: Millis = 24 * 3_600_000;

pub(super) fn name(text: &str) -> ServerName {
    ServerName::parse(text).expect("a server name")
}

pub(super) fn homeserver_with(change: impl FnOnce(&mut Config)) -> (Arc<Homeserver>, Clock) {
    let mut config = Config::for_name(name("us.example"));
    config.trust_ca = vec![certificates().ca.clone()];
    config.allow_private_addresses = true;
    change(&mut config);
    let clock = Clock::new();
    (Homeserver::open(config, clock.clone()).expect("a homeserver"), clock)
}

pub(super) fn homeserver() -> (Arc<Homeserver>, Clock) {
    homeserver_with(|_| {})
}

pub(super) fn key(seed: u8, version: &str) -> SigningKey {
    SigningKey::generate([seed; 32], version)
}

/// Who makes the requests.
pub(super) fn asker() -> Asker {
    Asker::new(AskerId::Address([192, 0, 2, 1].into()))
}

fn now() -> Millis {
    Clock::new().now_ms()
}

/// A peer that states one key, valid for a day, as long as it is up.
fn peer_with_key(seed: u8) -> (ScriptedPeer, SigningKey, Arc<AtomicBool>) {
    let up = Arc::new(AtomicBool::new(true));
    let is_up = up.clone();
    let peer = ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        match asked.target.as_str() {
            "/_matrix/key/v2/server" if is_up.load(Ordering::Relaxed) => {
                ScriptedAnswer::Json(200, statement(&me, &key(seed, "1"), now() + DAY_MS).into())
            }
            _ => ScriptedAnswer::HangUp,
        }
    });
    (peer, key(seed, "1"), up)
}

/// A server that there is not.
fn nobody() -> ServerName {
    let closed =
        std::net::TcpListener::bind("127.0.0.1:0").expect("a port").local_addr().expect("its address");
    name(&format!("localhost:{}", closed.port()))
}

pub(super) fn signed_by(server: &ServerName, key: &SigningKey, to: &str, body: Option<&[u8]>) -> String {
    x_matrix::build("PUT", "/_matrix/x?y=z", server, &name(to), body, key).expect("signed")
}

pub(super) fn event(server: &ServerName, key: &SigningKey, version: &str, at: Millis) -> Map<String, Value> {
    let version = room_version(version).expect("a version");
    let event = json!({
        "type": "m.room.message", "room_id": "!room:us.example", "sender": format!("@user:{server}"),
        "origin_server_ts": at, "depth": 3, "prev_events": [], "auth_events": [], "content": { "body": "hello" },
    });
    let Value::Object(mut event) = event else { unreachable!("an object") };
    hash::add_content_hash(&mut event);
    sign::sign_event(&mut event, server, key, version);
    event
}

pub(super) fn bytes(event: &Map<String, Value>) -> Vec<u8> {
    serde_json::to_vec(event).expect("JSON")
}

#[test]
fn our_key_outlives_a_restart_and_a_rotation_keeps_the_old_one_published() {
    let folder = crate::testing::temporary_folder("keys");
    let open = || homeserver_with(|c| c.data = crate::config::Data::Folder(folder.clone())).0;
    let hs = open();
    let first = hs.key_ring.signing_key().key_id().to_owned();
    let first_public = hs.key_ring.signing_key().verify_key();
    drop(hs);
    let hs = open();
    assert_eq!(hs.key_ring.signing_key().key_id(), first);

    let second = hs.keys().rotate_signing_key().expect("a new key");
    assert_ne!(second, first);
    let check = |hs: &Homeserver| {
        let told = hs.key_ring.own_statement();
        let current: Vec<&String> = told["verify_keys"].as_object().expect("keys").keys().collect();
        assert_eq!(current, [&second]);
        assert_eq!(told["old_verify_keys"][&first]["key"], json!(first_public.to_base64()));
        assert!(told["old_verify_keys"][&first]["expired_ts"].as_i64().expect("a time") <= now());
        let public = hs.key_ring.signing_key().verify_key();
        sign::verify_json(&told, "us.example", &second, &public).expect("signed with the new key");
    };
    check(&hs);
    drop(hs);
    check(&open());
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn our_statement_is_renewed_long_before_it_ends() {
    let (hs, clock) = homeserver();
    let until = |hs: &Homeserver| hs.key_ring.own_statement()["valid_until_ts"].as_i64().expect("a time");
    let first = until(&hs);
    assert_eq!(until(&hs), first);
    for _ in 0..48 {
        clock.advance(Duration::from_secs(3600));
        assert!(until(&hs) - clock.now_ms() > 3_600_000);
    }
    assert!(until(&hs) > first);
}

#[test]
fn a_signed_request_names_its_sender_and_its_key_is_fetched_once() {
    let (hs, _) = homeserver();
    let (peer, key, _) = peer_with_key(5);
    for _ in 0..3 {
        let body = br#"{"a": 1}"#;
        let header = signed_by(&peer.name, &key, "us.example", Some(body));
        let origin = hs
            .keys()
            .verify_request(&header, "PUT", "/_matrix/x?y=z", Some(body), &asker())
            .expect("the sender");
        assert_eq!(origin, peer.name);
    }
    assert_eq!(peer.asked().len(), 1);
}

#[test]
fn a_request_with_a_wrong_signature_destination_or_sender_is_unauthorized() {
    let (hs, _) = homeserver();
    let (peer, key, _) = peer_with_key(5);
    let good = signed_by(&peer.name, &key, "us.example", None);
    let with_body = signed_by(&peer.name, &key, "us.example", Some(b"{}"));
    let verify = |header: &str, method, uri, body| {
        let e = hs.keys().verify_request(header, method, uri, body, &asker()).expect_err(header);
        assert_eq!((e.status(), e.errcode()), (401, ErrCode::Unauthorized), "{e}");
    };
    let uri = "/_matrix/x?y=z";
    verify(&good, "POST", uri, None);
    verify(&good, "PUT", "/_matrix/x?y=other", None);
    verify(&good, "PUT", uri, Some(b"{}"));
    verify(&with_body, "PUT", uri, Some(b"{\"a\":1}"));
    verify(&with_body, "PUT", uri, None);
    verify(&signed_by(&peer.name, &key, "other.example", None), "PUT", uri, None);
    verify(&signed_by(&name("us.example"), &hs.key_ring.signing_key(), "us.example", None), "PUT", uri, None);
    verify(&signed_by(&peer.name, &self::key(6, "1"), "us.example", None), "PUT", uri, None);
    verify(&signed_by(&peer.name, &self::key(6, "unknown"), "us.example", None), "PUT", uri, None);
    verify("Bearer abc", "PUT", uri, None);
    verify("X-Matrix", "PUT", uri, None);
    assert!(hs.keys().verify_request(&good, "PUT", uri, None, &asker()).is_ok());
}

#[test]
fn a_key_that_ended_is_asked_for_again_and_a_retired_one_signs_no_requests() {
    let (hs, clock) = homeserver();
    let retired = Arc::new(AtomicBool::new(false));
    let is_retired = retired.clone();
    let shown = clock.clone();
    let peer = ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        let mut told = statement(&me, &key(5, "1"), shown.now_ms() + DAY_MS);
        if is_retired.load(Ordering::Relaxed) {
            let mut fresh = statement(&me, &key(7, "2"), shown.now_ms() + DAY_MS);
            let old =
                json!({ "ed25519:1": { "key": key(5, "1").public_base64(), "expired_ts": shown.now_ms() } });
            fresh.insert("old_verify_keys".into(), old);
            fresh.remove("signatures");
            sign::sign_json(&mut fresh, &me, &key(7, "2"));
            told = fresh;
        }
        ScriptedAnswer::Json(200, told.into())
    });
    let ask = |key: &SigningKey| {
        let header = signed_by(&peer.name, key, "us.example", None);
        hs.keys().verify_request(&header, "PUT", "/_matrix/x?y=z", None, &asker())
    };
    ask(&key(5, "1")).expect("good");
    clock.advance(Duration::from_secs(2 * 24 * 3600));
    ask(&key(5, "1")).expect("asked again");
    assert_eq!(peer.asked().len(), 2);

    retired.store(true, Ordering::Relaxed);
    ask(&key(7, "2")).expect("the new key");
    ask(&key(5, "1")).expect_err("the old key");
    assert_eq!(peer.asked().len(), 3);
}

#[test]
fn many_who_want_the_same_key_make_one_request() {
    let (hs, _) = homeserver();
    let (peer, key, _) = peer_with_key(5);
    let header = signed_by(&peer.name, &key, "us.example", None);
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                hs.keys()
                    .verify_request(&header, "PUT", "/_matrix/x?y=z", None, &asker())
                    .expect("the sender")
            });
        }
    });
    assert_eq!(peer.asked().len(), 1);
}

#[test]
fn a_server_without_an_answer_is_asked_ever_more_seldom_but_soon_when_it_speaks() {
    let (hs, clock) = homeserver();
    let (peer, key, up) = peer_with_key(5);
    up.store(false, Ordering::Relaxed);
    // Each attempt is two requests: a connection that ends without an answer is tried once more.
    let attempts = || peer.asked().len() / 2;
    let version = room_version("11").expect("a version");
    let json = bytes(&event(&peer.name, &key, "11", now()));
    for _ in 0..5 {
        hs.keys().check_pdu(&json, version).expect_err("no key");
    }
    assert_eq!(attempts(), 1);
    for _ in 0..120 {
        clock.advance(Duration::from_secs(60));
        hs.keys().check_pdu(&json, version).expect_err("no key");
    }
    let asked = attempts();
    assert!((6..=13).contains(&asked), "{asked} attempts in two hours");

    let header = signed_by(&peer.name, &key, "us.example", None);
    up.store(true, Ordering::Relaxed);
    clock.advance(Duration::from_secs(16));
    hs.keys().verify_request(&header, "PUT", "/_matrix/x?y=z", None, &asker()).expect("now it answers");
    hs.keys().check_pdu(&json, version).expect("and its events are good");
}

#[test]
fn wrong_claims_in_a_servers_name_do_not_keep_us_from_its_new_key_for_long() {
    let (hs, clock) = homeserver();
    let rotated = Arc::new(AtomicBool::new(false));
    let is_rotated = rotated.clone();
    let peer = ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        let seed = if is_rotated.load(Ordering::Relaxed) { 6 } else { 5 };
        ScriptedAnswer::Json(200, statement(&me, &key(seed, &seed.to_string()), now() + DAY_MS).into())
    });
    for n in 0..50 {
        let claim = signed_by(&peer.name, &key(9, &format!("made_up_{n}")), "us.example", None);
        hs.keys().verify_request(&claim, "PUT", "/_matrix/x?y=z", None, &asker()).expect_err("a made-up key");
        clock.advance(Duration::from_secs(20));
    }
    rotated.store(true, Ordering::Relaxed);
    clock.advance(Duration::from_secs(60));
    let json = bytes(&event(&peer.name, &key(6, "6"), "11", now()));
    hs.keys().check_pdu(&json, room_version("11").expect("a version")).expect("the new key");
}

#[test]
fn events_are_checked_in_bulk_each_by_its_own_fault() {
    let (hs, _) = homeserver();
    let (peer, key, _) = peer_with_key(5);
    let version = room_version("11").expect("a version");
    let good = event(&peer.name, &key, "11", now());
    let mut edited = good.clone();
    edited.insert("content".into(), json!({ "body": "something else" }));
    let forged = event(&peer.name, &self::key(9, "1"), "11", now());
    let mut unsigned = good.clone();
    unsigned.remove("signatures");
    let elsewhere = event(&nobody(), &self::key(9, "1"), "11", now());
    let late = event(&peer.name, &key, "11", now() + 30 * DAY_MS);
    let all: Vec<Vec<u8>> = [&good, &edited, &forged, &unsigned, &elsewhere, &late].map(bytes).into();
    let mut all: Vec<&[u8]> = all.iter().map(Vec::as_slice).collect();
    all.push(b"{\"not\": \"an event\"}");
    let origin = hs.server_name().clone();
    let checked = hs.keys().check_received(&origin, &all, version, Duration::from_secs(30));
    let bodies: Vec<Option<String>> = checked
        .iter()
        .map(|checked| match checked {
            Checked::Passed(pdu) => Some(pdu.content_str("body").unwrap_or_default()),
            Checked::NoKey(..) | Checked::Dropped(_) => None,
        })
        .collect();
    // A wrong hash redacts, everything else is refused.
    assert_eq!(bodies, [Some("hello".into()), Some(String::new()), None, None, None, None, None]);
}

#[test]
fn before_room_version_5_the_end_of_a_key_does_not_matter() {
    let (hs, _) = homeserver();
    let (peer, key, _) = peer_with_key(5);
    let late = bytes(&event(&peer.name, &key, "4", now() + 30 * DAY_MS));
    hs.keys().check_pdu(&late, room_version("4").expect("a version")).expect("version 4 does not ask");
    hs.keys().check_pdu(&late, room_version("5").expect("a version")).expect_err("version 5 does");
}

/// A peer that has rotated: it signs with key 2, and states key 1 as old since `expired`, or not at all.
fn rotated_peer(expired: Option<Millis>) -> ScriptedPeer {
    ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        let mut told = statement(&me, &key(7, "2"), now() + DAY_MS);
        if let Some(expired) = expired {
            let old = json!({ "ed25519:1": { "key": key(5, "1").public_base64(), "expired_ts": expired } });
            told.insert("old_verify_keys".into(), old);
        }
        told.remove("signatures");
        sign::sign_json(&mut told, &me, &key(7, "2"));
        ScriptedAnswer::Json(200, told.into())
    })
}

#[test]
fn an_event_signed_with_a_key_that_expired_since_is_good_if_it_is_older_than_that() {
    let (hs, _) = homeserver();
    let expired = now() - DAY_MS;
    let peer = rotated_peer(Some(expired));
    let check = |seed: u8, id: &str, version: &str, at: Millis| {
        let json = bytes(&event(&peer.name, &key(seed, id), version, at));
        hs.keys().check_pdu(&json, room_version(version).expect("a version")).is_ok()
    };
    for version in ["5", "10", "11"] {
        assert!(check(5, "1", version, expired - 1000) && check(5, "1", version, expired));
        assert!(!check(5, "1", version, expired + 1), "{version}: signed with a key that was retired");
        assert!(check(7, "2", version, expired - 1000), "{version}: a key has an end and no beginning");
        assert!(!check(9, "1", version, expired - 1000), "{version}: another key of that name");
    }
    assert!(check(5, "1", "4", expired + 1), "version 4 does not ask");
    assert_eq!(peer.asked().len(), 1, "one statement says it all");
}

#[test]
fn a_key_that_its_server_no_longer_names_is_good_for_what_we_saw_it_valid_for() {
    let (hs, clock) = homeserver();
    let drops = Arc::new(AtomicBool::new(false));
    let dropped = drops.clone();
    let shown = clock.clone();
    let peer = ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        let (seed, id) = if dropped.load(Ordering::Relaxed) { (7, "2") } else { (5, "1") };
        ScriptedAnswer::Json(200, statement(&me, &key(seed, id), shown.now_ms() + DAY_MS).into())
    });
    let version = room_version("11").expect("a version");
    let check = |seed: u8, id: &str, at: Millis| {
        hs.keys().check_pdu(&bytes(&event(&peer.name, &key(seed, id), "11", at)), version).is_ok()
    };
    let start = clock.now_ms();
    assert!(check(5, "1", start));
    drops.store(true, Ordering::Relaxed);
    clock.advance(Duration::from_secs(2 * 24 * 3600));
    assert!(check(7, "2", clock.now_ms()));
    assert!(check(5, "1", start + 1000), "from the time for which it was stated");
    assert!(!check(5, "1", clock.now_ms() - 1000), "from after it");
    // Whoever never saw the old key cannot know it.
    let (stranger, _) = homeserver();
    let old = bytes(&event(&peer.name, &key(5, "1"), "11", start));
    assert!(stranger.keys().check_pdu(&old, version).is_err());
    let notary = notary(&peer.name, 5, |_| {});
    let (helped, _) = homeserver_with(|c| c.notaries = vec![notary.name.clone()]);
    helped.keys().check_pdu(&old, version).expect("but a notary may");
}

#[test]
fn our_own_events_are_verified_with_retired_keys_too() {
    let (hs, clock) = homeserver();
    let version = room_version("11").expect("a version");
    let old = bytes(&event(hs.server_name(), &hs.key_ring.signing_key(), "11", now()));
    clock.advance(Duration::from_secs(5));
    let old_key = hs.key_ring.signing_key();
    hs.keys().rotate_signing_key().expect("a new key");
    hs.keys().check_pdu(&old, version).expect("signed before the rotation");
    let later = bytes(&event(hs.server_name(), &old_key, "11", clock.now_ms() + 60_000));
    hs.keys().check_pdu(&later, version).expect_err("signed after it");
}

/// A notary that passes on the key of another server, or what `change` makes of it.
pub(super) fn notary(
    of: &ServerName,
    seed: u8,
    change: impl Fn(&mut Map<String, Value>) + Send + Sync + 'static,
) -> ScriptedPeer {
    let of = of.clone();
    ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        match asked.target.as_str() {
            "/_matrix/key/v2/server" => {
                ScriptedAnswer::Json(200, statement(&me, &key(77, "notary"), now() + DAY_MS).into())
            }
            "/_matrix/key/v2/query" => {
                assert!(asked.json()["server_keys"][of.as_str()].is_object(), "{}", asked.json());
                let mut told = statement(&of, &key(seed, "1"), now() + DAY_MS);
                sign::sign_json(&mut told, &me, &key(77, "notary"));
                change(&mut told);
                ScriptedAnswer::Json(200, json!({ "server_keys": [told, 5, {}] }))
            }
            _ => ScriptedAnswer::HangUp,
        }
    })
}

#[test]
fn keys_of_a_server_that_is_gone_come_from_a_notary_of_our_settings() {
    let gone = nobody();
    let notary = notary(&gone, 5, |_| {});
    let (hs, _) = homeserver_with(|c| c.notaries = vec![notary.name.clone()]);
    let json = bytes(&event(&gone, &key(5, "1"), "11", now()));
    hs.keys().check_pdu(&json, room_version("11").expect("a version")).expect("the notary knows");
    // It is remembered, and good for requests.
    assert_eq!(hs.store.read(|db| db.server_keys(&gone)).expect("read").len(), 1);
    let asked = notary.asked().len();
    hs.keys()
        .verify_request(
            &signed_by(&gone, &key(5, "1"), "us.example", None),
            "PUT",
            "/_matrix/x?y=z",
            None,
            &asker(),
        )
        .expect("good");
    assert_eq!(notary.asked().len(), asked);
}

#[test]
fn a_notary_is_not_believed_without_both_signatures() {
    let changes: [fn(&mut Map<String, Value>); 3] = [
        |told| {
            told.insert("valid_until_ts".into(), (now() + 2 * DAY_MS).into());
        },
        |told| {
            let signatures = told.get_mut("signatures").and_then(Value::as_object_mut).expect("signatures");
            signatures.retain(|_, of| of.get("ed25519:1").is_some());
        },
        |told| {
            let signatures = told.get_mut("signatures").and_then(Value::as_object_mut).expect("signatures");
            signatures.retain(|_, of| of.get("ed25519:1").is_none());
        },
    ];
    for change in changes {
        let gone = nobody();
        let notary = notary(&gone, 5, change);
        let (hs, _) = homeserver_with(|c| c.notaries = vec![notary.name.clone()]);
        let json = bytes(&event(&gone, &key(5, "1"), "11", now()));
        hs.keys().check_pdu(&json, room_version("11").expect("a version")).expect_err("not believed");
    }
}

#[test]
fn the_server_that_we_join_through_helps_with_the_rooms_state_and_with_nothing_else() {
    let gone = nobody();
    let resident = notary(&gone, 5, |_| {});
    let (hs, _) = homeserver();
    let version = room_version("11").expect("a version");
    let json = bytes(&event(&gone, &key(5, "1"), "11", now()));
    let found =
        hs.keys().keys_for(&[&json], version, std::slice::from_ref(&resident.name), Duration::from_secs(30));
    let checked = crate::service::keys::verify::check(&json, version, &found, &Doubts::default())
        .expect("the resident knows");
    assert_eq!(checked.proof(), Proof::Vouched, "and it is told apart");
    assert!(hs.store.read(|db| db.server_keys(&gone)).expect("read").is_empty(), "not remembered");
    hs.keys()
        .verify_request(
            &signed_by(&gone, &key(5, "1"), "us.example", None),
            "PUT",
            "/_matrix/x?y=z",
            None,
            &asker(),
        )
        .expect_err("not good for requests");

    hs.keys().check_pdu(&json, version).expect_err("nor for events that come later");
}

#[test]
fn the_server_that_we_join_through_cannot_replace_a_key_that_we_know() {
    let (hs, clock) = homeserver();
    let (peer, real, up) = peer_with_key(5);
    let version = room_version("11").expect("a version");
    let true_one = bytes(&event(&peer.name, &real, "11", now()));
    assert_eq!(hs.keys().check_pdu(&true_one, version).expect("good").proof(), Proof::Certain);
    up.store(false, Ordering::Relaxed);
    clock.advance(Duration::from_secs(2 * 24 * 3600));
    let liar = notary(&peer.name, 6, |_| {});
    let forged = bytes(&event(&peer.name, &key(6, "1"), "11", now() + 2 * DAY_MS - 1000));
    let found =
        hs.keys().keys_for(&[&forged], version, std::slice::from_ref(&liar.name), Duration::from_secs(30));
    crate::service::keys::verify::check(&forged, version, &found, &Doubts::default())
        .expect_err("a forged key");
    assert!(liar.asked().iter().any(|a| a.target.contains("query")), "it was asked");
}

#[test]
fn as_a_notary_we_ask_for_others_sign_and_keep_answering_when_they_are_gone() {
    let (hs, clock) = homeserver();
    let (peer, _, up) = peer_with_key(5);
    let query = |keys: &[(&str, Option<Millis>)]| NotaryQuery {
        server: peer.name.clone(),
        keys: keys.iter().map(|(id, at)| ((*id).to_owned(), *at)).collect(),
        valid_until: None,
    };
    let own = hs.key_ring.signing_key();
    let check = |answer: Vec<Vec<u8>>| {
        assert_eq!(answer.len(), 1);
        let told = &parse_object(&answer[0]).expect("an object");
        sign::verify_json(told, "us.example", own.key_id(), &own.verify_key()).expect("signed by us");
        let theirs = key(5, "1").verify_key();
        sign::verify_json(told, peer.name.as_str(), "ed25519:1", &theirs).expect("signed by them");
    };
    check(hs.keys().notarise(&asker(), &[query(&[])]).expect("an answer"));
    check(hs.keys().notarise(&asker(), &[query(&[("ed25519:1", None)])]).expect("an answer"));
    assert_eq!(peer.asked().len(), 1, "the second answer comes from what we keep");

    // Beyond half of its life the server is asked again, and more validity than we have is asked for.
    clock.advance(Duration::from_secs(13 * 3600));
    check(hs.keys().notarise(&asker(), &[query(&[])]).expect("an answer"));
    assert_eq!(peer.asked().len(), 2);
    up.store(false, Ordering::Relaxed);
    clock.advance(Duration::from_secs(30 * 24 * 3600));
    check(hs.keys().notarise(&asker(), &[query(&[("ed25519:1", None)])]).expect("what we have"));
    assert!(hs.keys().notarise(&asker(), &[query(&[("ed25519:none", None)])]).expect("an answer").is_empty());

    // Who was never known is left out; we know ourselves.
    let unknown = NotaryQuery { server: nobody(), keys: Vec::new(), valid_until: None };
    let us = NotaryQuery { server: name("us.example"), keys: Vec::new(), valid_until: None };
    let answer = hs.keys().notarise(&asker(), &[unknown, us]).expect("an answer");
    assert_eq!(answer.len(), 1);
    assert_eq!(parse_object(&answer[0]).expect("an object")["server_name"], json!("us.example"));
}
