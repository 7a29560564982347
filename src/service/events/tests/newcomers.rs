//! Those who knock or come in at the same moment: the room is what resolving its forks comes to, whatever short way
//! led there, and in whatever order they came.

use serde_json::{Value, json};

use super::{
    Other, alice, assert_consistent, draft, homeserver, membership, only_extremity, room, there, user,
};
use crate::protocol::pdu::Membership;
use crate::protocol::state_res::{self, StateMap};
use crate::protocol::{EventId, Pdu, RoomId, UserId, VerifiedPdu};
use crate::service::Homeserver;
use crate::service::events::authorise::{AuthContext, Verdict, authorise};
use crate::service::events::resolve::ResolutionBudget;
use crate::store::rooms::append::Current;
use crate::store::{Db, Status};

const MEMBER: &str = "m.room.member";
const VERSIONS: [&str; 4] = ["7", "9", "11", "12"];

/// A room of Alice's that is knocked upon, its last event, and the server that the others are of.
fn scene(hs: &Homeserver, version: &str) -> (RoomId, Other) {
    let room = room(hs, version);
    let rules = json!({ "join_rule": "knock" });
    hs.events().send(draft(&room, &alice(), "m.room.join_rules", Some(""), rules)).unwrap();
    let other = Other::new(&room, version);
    (room, other)
}

fn guest(number: usize) -> UserId {
    user(&format!("@guest{number}:there.example"))
}

fn own(membership: &str, reason: &str) -> Value {
    json!({ "membership": membership, "reason": reason })
}

/// A member event of a user's own, after these.
fn by(other: &mut Other, hs: &Homeserver, after: &[&EventId], who: &UserId, membership: &str) -> VerifiedPdu {
    other.event(hs, after, who, (MEMBER, Some(who.as_str())), own(membership, ""))
}

/// Hands it in; whether it was let in.
fn hand_in(hs: &Homeserver, event: &VerifiedPdu) -> bool {
    let kind = event.membership().unwrap();
    match hs.events().accept_signed(event.clone(), &there(), kind) {
        Ok(accepted) => !accepted.already,
        Err(e) => {
            assert_eq!(e.status(), 403, "{}", e.message());
            false
        }
    }
}

/// What the event would make the room: the number of changes, if it is told as changes to the room as it is.
fn changes_to_the_room_as_it_is(hs: &Homeserver, event: &Pdu) -> Option<usize> {
    let verdict = hs.store.read(|db| authorise(db, event, AuthContext::fully(None, false))).unwrap();
    let Verdict::Decided(decision) = verdict else { panic!("no decision") };
    assert_eq!(decision.status, Status::Accepted);
    match &decision.current {
        Current::Resolved(state) => (Some(state.base) == decision.room.state).then_some(state.change.len()),
        other => panic!("{other:?}"),
    }
}

/// The current state is what the whole states after the forward extremities come to, resolved from nothing.
fn assert_resolved(hs: &Homeserver, room: &RoomId) {
    assert_consistent(hs, room);
    hs.store
        .read(|db| {
            let room = db.known_room(room)?;
            let extremities = db.forward_extremities(room.key)?;
            let sets: Vec<StateMap> =
                extremities.iter().map(|one| db.state_map_at(one.state_after).unwrap()).collect();
            let fetch = |id: &EventId| db.pdu(id).unwrap();
            let rejected = |id: &EventId| is_rejected(db, id);
            let resolved = state_res::resolve(room.version, &sets, &fetch, &rejected)?;
            assert_eq!(db.state_map_at(room.state.unwrap())?, resolved, "after {extremities:?}");
            Ok(())
        })
        .unwrap();
}

fn is_rejected(db: &Db<'_>, id: &EventId) -> bool {
    matches!(db.event_status(id).unwrap(), Some((Status::Rejected, _)))
}

#[test]
fn who_knocks_at_the_same_moment_is_added_to_the_room_as_it_is() {
    for version in VERSIONS {
        let hs = homeserver();
        let (room, mut other) = scene(&hs, version);
        let before = only_extremity(&hs, &room);
        let knocks: Vec<_> = (0..12).map(|n| by(&mut other, &hs, &[&before], &guest(n), "knock")).collect();
        for (n, knock) in knocks.iter().enumerate() {
            if n > 0 && version != "12" {
                assert_eq!(changes_to_the_room_as_it_is(&hs, knock), Some(1), "{n} in {version}");
            }
            assert!(hand_in(&hs, knock), "{n} in {version}");
            assert_resolved(&hs, &room);
        }
        // One who saw some of them, and one who saw all.
        for (n, after) in [(20, &knocks[..5]), (21, &knocks[..])] {
            let after: Vec<&EventId> = after.iter().map(|knock| knock.event_id()).collect();
            let knock = by(&mut other, &hs, &after, &guest(n), "knock");
            assert!(hand_in(&hs, &knock), "{n} in {version}");
            assert_resolved(&hs, &room);
        }
        let here = |n| membership(&hs, &room, &guest(n));
        assert!((0..12).chain(20..22).all(|n| here(n) == Some(Membership::Knock)), "{version}");
    }
}

#[test]
fn a_user_who_knocks_twice_in_one_millisecond_knocks() {
    for version in VERSIONS {
        let hs = homeserver();
        for others_first in [false, true] {
            let (room, mut other) = scene(&hs, version);
            let before = only_extremity(&hs, &room);
            let third = by(&mut other, &hs, &[&before], &guest(1), "knock");
            let time = other.time;
            let mut twice = Vec::new();
            for reason in ["please", "please!"] {
                other.time = time;
                let place = (MEMBER, Some("@guest0:there.example"));
                twice.push(other.event(&hs, &[&before], &guest(0), place, own("knock", reason)));
            }
            assert_eq!(twice[0].origin_server_ts(), twice[1].origin_server_ts());
            let mut all = vec![&twice[0], &twice[1]];
            all.insert(if others_first { 0 } else { 1 }, &third);
            for knock in all {
                hand_in(&hs, knock);
                assert_resolved(&hs, &room);
            }
            assert_eq!(membership(&hs, &room, &guest(0)), Some(Membership::Knock), "{version}");
            assert_eq!(membership(&hs, &room, &guest(1)), Some(Membership::Knock), "{version}");
        }
    }
}

/// Every order of so many.
fn orders(count: usize) -> Vec<Vec<usize>> {
    if count == 0 {
        return vec![Vec::new()];
    }
    let with_last = |order: Vec<usize>| {
        (0..count).map(move |at| {
            let mut order = order.clone();
            order.insert(at, count - 1);
            order
        })
    };
    orders(count - 1).into_iter().flat_map(with_last).collect()
}

#[test]
fn a_knock_beside_its_withdrawal_its_invite_a_ban_or_other_rules_is_what_resolving_comes_to_in_any_order() {
    type StateOf = fn(&UserId) -> (&'static str, String, Value);
    let beside: [(&str, &str, StateOf); 4] = [
        ("a withdrawal", "guest", |who| (MEMBER, who.to_string(), own("leave", ""))),
        ("an invite", "host", |who| (MEMBER, who.to_string(), own("invite", ""))),
        ("a ban", "host", |who| (MEMBER, who.to_string(), own("ban", ""))),
        ("other rules", "host", |_| ("m.room.join_rules", String::new(), json!({ "join_rule": "invite" }))),
    ];
    for version in ["11", "12"] {
        let hs = homeserver();
        for (what, by_whom, event) in beside {
            for order in orders(4) {
                let (room, mut other) = scene(&hs, version);
                // Somebody of theirs is a moderator, so that their server can do it all beside what happens here.
                let host = user("@host:there.example");
                hs.events()
                    .send(draft(&room, &alice(), MEMBER, Some(host.as_str()), own("invite", "")))
                    .unwrap();
                assert!(hand_in(&hs, &by(&mut other, &hs, &[&only_extremity(&hs, &room)], &host, "join")));
                let levels =
                    hs.store.read(|db| db.state_event(db.known_room(&room)?.key, "m.room.power_levels", ""));
                let mut levels = levels.unwrap().unwrap().content();
                levels["users"][host.as_str()] = 50.into();
                levels.insert("events".into(), json!({ "m.room.join_rules": 50 }));
                let levels = Value::Object(levels);
                hs.events().send(draft(&room, &alice(), "m.room.power_levels", Some(""), levels)).unwrap();

                let before = only_extremity(&hs, &room);
                let knock = by(&mut other, &hs, &[&before], &guest(0), "knock");
                assert!(hand_in(&hs, &knock), "{what} in {version}");
                let sender = if by_whom == "host" { &host } else { &guest(0) };
                let (event_type, state_key, content) = event(&guest(0));
                let place = (event_type, Some(state_key.as_str()));
                // After the knock, and beside three more, of whom one saw it.
                let answer = other.event(&hs, &[knock.event_id()], sender, place, content);
                let events = [
                    answer,
                    by(&mut other, &hs, &[&before], &guest(1), "knock"),
                    by(&mut other, &hs, &[&before], &guest(2), "knock"),
                    by(&mut other, &hs, &[knock.event_id()], &guest(3), "knock"),
                ];
                for at in order {
                    let event = &events[at];
                    if let Err(e) = hs.events().receive_pdu(&there(), event.clone()) {
                        assert_eq!(e.status(), 403, "{what} in {version}: {}", e.message());
                    }
                    assert_resolved(&hs, &room);
                }
            }
        }
    }
}

#[test]
fn newcomers_whose_events_are_large_take_no_more_of_the_writer_than_resolving_may() {
    for (number, is_little) in [(5, true), (25, false)] {
        let hs = homeserver();
        let (room, mut other) = scene(&hs, "11");
        let before = only_extremity(&hs, &room);
        let mut end = before.clone();
        for number in 0..number {
            let who = guest(number);
            let (place, content) = ((MEMBER, Some(who.as_str())), own("knock", &"x".repeat(60_000)));
            let knock = other.event(&hs, &[&end], &who, place, content);
            assert!(hand_in(&hs, &knock));
            end = knock.event_id().clone();
        }
        let knock = by(&mut other, &hs, &[&before], &guest(number), "knock");
        let event = knock.clone();
        let verdict = hs.store.write(move |tx| {
            let context =
                AuthContext { budget: ResolutionBudget::Bounded, ..AuthContext::fully(None, false) };
            authorise(tx, &event, context)
        });
        assert_eq!(matches!(verdict.unwrap(), Verdict::Decided(_)), is_little, "{number}");
        assert!(hand_in(&hs, &knock));
        assert_resolved(&hs, &room);
    }
}
