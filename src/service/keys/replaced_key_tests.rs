//! Servers that replace a key by another of the same id, as who begins anew does.

use std::sync::Arc;
use std::sync::atomic::{AtomicU8, Ordering};
use std::time::Duration;

use serde_json::{Map, Value};

use super::tests::{asker, bytes, event, homeserver, homeserver_with, key, name, notary, signed_by};
use crate::clock::{Clock, Millis};
use crate::config::Data;
use crate::error::Result;
use crate::federation::client::scripted_peer::{ScriptedAnswer, ScriptedPeer, statement};
use crate::protocol::room_version::room_version;
use crate::protocol::signatures::verify::Proof;
use crate::protocol::{ServerName, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::keys::verify::Checked;
use crate::service::limits::request_permits::{Asker, AskerId};

const DAY_MS: Millis = 24 * 3_600_000;
/// Longer than who was just asked is left alone.
const A_WHILE: Duration = Duration::from_secs(6 * 60);

/// A peer that always calls its key the same; which it is, of which seed, can be changed. None at seed 0.
fn peer(clock: &Clock) -> (ScriptedPeer, Arc<AtomicU8>) {
    let seed = Arc::new(AtomicU8::new(5));
    let (at, clock) = (seed.clone(), clock.clone());
    let peer = ScriptedPeer::start(move |asked| {
        let me = name(asked.header("host").expect("a host"));
        match at.load(Ordering::Relaxed) {
            0 => ScriptedAnswer::HangUp,
            at => ScriptedAnswer::Json(200, statement(&me, &key(at, "auto"), clock.now_ms() + DAY_MS).into()),
        }
    });
    (peer, seed)
}

fn request(hs: &Homeserver, peer: &ScriptedPeer, seed: u8) -> Result<ServerName> {
    let header = signed_by(&peer.name, &key(seed, "auto"), "us.example", None);
    hs.keys().verify_request(&header, "PUT", "/_matrix/x?y=z", None, &asker())
}

fn signed(peer: &ScriptedPeer, seed: u8, version: &str, at: Millis) -> Map<String, Value> {
    event(&peer.name, &key(seed, "auto"), version, at)
}

fn check(hs: &Homeserver, event: &Map<String, Value>, version: &str) -> Result<VerifiedPdu> {
    hs.keys().check_pdu(&bytes(event), room_version(version).expect("a version"))
}

#[test]
fn who_begins_anew_under_the_same_key_id_is_known_again_by_one_question_to_them() {
    let (hs, clock) = homeserver();
    let (peer, seed) = peer(&clock);
    request(&hs, &peer, 5).expect("the first key");
    seed.store(6, Ordering::Relaxed);
    clock.advance(A_WHILE);
    assert_eq!(request(&hs, &peer, 6).expect("the second"), peer.name);
    assert_eq!(peer.asked().len(), 2);
    request(&hs, &peer, 6).expect("it holds from now on");
    assert_eq!(request(&hs, &peer, 5).expect_err("the first signs no requests any more").status(), 401);
    assert_eq!(peer.asked().len(), 2);
}

#[test]
fn who_begins_anew_is_known_again_although_our_clock_was_ahead_when_we_asked() {
    let (hs, clock) = homeserver();
    let (peer, seed) = peer(&clock);
    clock.set_wrong_by(3 * DAY_MS);
    request(&hs, &peer, 5).expect("the first key");
    clock.set_wrong_by(0);
    seed.store(6, Ordering::Relaxed);
    clock.advance(A_WHILE);
    request(&hs, &peer, 6).expect("the second");
    check(&hs, &signed(&peer, 9, "1", i64::MAX), "1").expect_err("of no time that there is");
}

#[test]
fn an_event_by_who_began_anew_is_good_although_somebody_else_passes_it_on() {
    let (hs, clock) = homeserver();
    let (peer, seed) = peer(&clock);
    let version = room_version("11").expect("a version");
    check(&hs, &signed(&peer, 5, "11", clock.now_ms()), "11").expect("the first key");
    let early = clock.now_ms() - 2 * 3_600_000;
    seed.store(6, Ordering::Relaxed);
    clock.advance(A_WHILE);
    // What is older than the statement that we have is not explained by what came later.
    check(&hs, &signed(&peer, 6, "11", early), "11").expect_err("wrong, for all that is known");
    assert_eq!(peer.asked().len(), 1);

    let fresh = bytes(&signed(&peer, 6, "11", clock.now_ms()));
    let forged = bytes(&signed(&peer, 9, "11", clock.now_ms()));
    let origin = name("relay.example");
    let checked = hs.keys().check_received(&origin, &[&fresh, &forged], version, Duration::from_secs(20));
    assert!(matches!(checked[..], [Checked::Passed(_), Checked::Dropped(_)]));
    assert_eq!(peer.asked().len(), 2);
    check(&hs, &signed(&peer, 6, "11", early), "11").expect("the clock of who made it is not ours");
}

#[test]
fn what_was_signed_before_a_key_was_replaced_stays_good_and_nothing_after_it() {
    let folder = crate::testing::temporary_folder("replaced");
    let open = || homeserver_with(|c| c.data = Data::Folder(folder.clone()));
    let (hs, clock) = open();
    let (peer, seed) = peer(&clock);
    let start = clock.now_ms();
    request(&hs, &peer, 5).expect("the first key");
    seed.store(6, Ordering::Relaxed);
    clock.advance(A_WHILE);
    request(&hs, &peer, 6).expect("the second");
    let replaced = clock.now_ms();
    let judge = |hs: &Homeserver| {
        // Whether a room asks for the validity of keys or not.
        for version in ["4", "11"] {
            let old = check(hs, &signed(&peer, 5, version, start), version).expect("from before");
            assert_eq!(old.proof(), Proof::Certain);
            check(hs, &signed(&peer, 5, version, replaced + 1), version).expect_err("from after");
            check(hs, &signed(&peer, 6, version, start), version).expect("a key has no beginning");
            check(hs, &signed(&peer, 9, version, start), version).expect_err("another key of that id");
        }
        assert_eq!(peer.asked().len(), 2, "all is known");
    };
    judge(&hs);
    drop(hs);
    let (again, later) = open();
    later.advance(A_WHILE);
    judge(&again);
    std::fs::remove_dir_all(folder).expect("removed");
}

#[test]
fn wrong_signatures_in_a_servers_name_have_it_asked_now_and_then_by_however_many_they_are_made() {
    let (hs, clock) = homeserver();
    let (peer, seed) = peer(&clock);
    request(&hs, &peer, 5).expect("the key");
    let claim = signed_by(&peer.name, &key(9, "auto"), "us.example", None);
    let version = room_version("11").expect("a version");
    let liars = |peer: &ScriptedPeer| {
        for n in 0..60 {
            clock.advance(Duration::from_secs(30));
            let from = Asker::new(AskerId::Address([192, 0, 2, n].into()));
            hs.keys().verify_request(&claim, "PUT", "/_matrix/x?y=z", None, &from).expect_err("a lie");
            let event = bytes(&signed(peer, 9, "11", clock.now_ms()));
            let origin = name(&format!("liar{n}.example"));
            let checked = hs.keys().check_received(&origin, &[&event], version, Duration::from_secs(5));
            assert!(matches!(checked[..], [Checked::Dropped(_)]));
        }
    };
    liars(&peer);
    let asked = peer.asked().len();
    assert!((2..=7).contains(&asked), "{asked} questions in half an hour");
    request(&hs, &peer, 5).expect("its own requests stay good");

    // Who does not answer is asked no more often than that, twice at a time, and its key holds.
    seed.store(0, Ordering::Relaxed);
    liars(&peer);
    let more = peer.asked().len() - asked;
    assert!((2..=12).contains(&more), "{more} questions in another half hour");
    request(&hs, &peer, 5).expect("its own requests stay good");
    // And they do not keep it from beginning anew.
    seed.store(6, Ordering::Relaxed);
    clock.advance(A_WHILE);
    request(&hs, &peer, 6).expect("the next key");
}

#[test]
fn no_notary_replaces_a_key() {
    let (peer, seed) = peer(&Clock::new());
    let notary = notary(&peer.name, 6, |_| {});
    let (hs, clock) = homeserver_with(|c| c.notaries = vec![notary.name.clone()]);
    request(&hs, &peer, 5).expect("the key");
    seed.store(0, Ordering::Relaxed);
    clock.advance(A_WHILE);
    request(&hs, &peer, 6).expect_err("nobody but the server itself may say so");
    assert!(notary.asked().is_empty());
    request(&hs, &peer, 5).expect("its key holds");
}
