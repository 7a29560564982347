//! Rooms that are replaced by others: what the new one is like, what moves to it, and that there is all of it or nothing.

use std::time::Duration;

use crate::common::client::{V3, room_path};
use crate::common::process::ProcessServer;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn try_upgrade(user: &TestUser, room: &str, body: Value) -> (u16, Value) {
    user.request("POST", &room_path(room, "upgrade"), Some(body))
}

fn upgrade(user: &TestUser, room: &str, version: &str) -> String {
    let (status, answer) = try_upgrade(user, room, json!({"new_version": version}));
    assert_eq!(status, 200, "{room} to {version}: {answer}");
    answer["replacement_room"].as_str().expect("a room").to_owned()
}

fn state(user: &TestUser, room: &str, kind: &str) -> Value {
    user.state(room, kind, "").unwrap_or_else(|| panic!("{room} has no {kind}"))
}

fn refused(answer: &(u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

fn account_data(user: &TestUser, path: &str) -> (u16, Value) {
    user.request("GET", &format!("{V3}/user/{}/{path}", segment(user.id())), None)
}

fn set_account_data(user: &TestUser, path: &str, content: Value) {
    user.put(&format!("{V3}/user/{}/{path}", segment(user.id())), content);
}

#[test]
fn every_version_can_be_upgraded_to_every_other_and_the_moderators_keep_their_power() {
    let server = TestServer::start_with(|config| config.rate_limits = false);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for from in 1..=12 {
        for to in 1..=12 {
            let room = alice.create_room_with(
                json!({"room_version": from.to_string(), "name": "Pub", "invite": [bob.id()]}),
            );
            bob.join(&room);
            let mut levels = state(&alice, &room, "m.room.power_levels");
            levels["users"][bob.id()] = json!(50);
            alice.set_state(&room, "m.room.power_levels", "", levels);
            let new = upgrade(&alice, &room, &to.to_string());
            let what = format!("{from} to {to}");

            let tombstone = state(&alice, &room, "m.room.tombstone");
            assert_eq!(tombstone["replacement_room"], new, "{what}");
            let create = state(&alice, &new, "m.room.create");
            assert_eq!(create["room_version"], to.to_string(), "{what}");
            assert_eq!(create["predecessor"]["room_id"], room, "{what}");
            assert_eq!(create["predecessor"].get("event_id").is_some(), to < 12, "{what}");
            assert_eq!(create.get("creator").is_some(), to < 11, "{what}");
            assert_eq!(state(&alice, &new, "m.room.name")["name"], "Pub", "{what}");
            let levels = state(&alice, &new, "m.room.power_levels");
            assert_eq!(levels["users"][bob.id()], 50, "{what}");
            assert_eq!(levels["users"].get(alice.id()), (to < 12).then(|| json!(100)).as_ref(), "{what}");
            assert_eq!(levels["events"]["m.room.tombstone"], if to < 12 { 100 } else { 150 }, "{what}");
            // The old room is for those with a say.
            let old_levels = state(&alice, &room, "m.room.power_levels");
            assert_eq!(
                (&old_levels["events_default"], &old_levels["invite"]),
                (&json!(50), &json!(50)),
                "{what}"
            );
            // Who was in the old room can follow, where a version can say so; and has their power there.
            if to >= 8 {
                bob.join(&new);
                bob.set_state(&new, "m.room.topic", "", json!({"topic": "I may still do this"}));
            }
            // And it can be upgraded once more.
            upgrade(&alice, &new, &from.to_string());
        }
    }
}

#[test]
fn an_upgrade_takes_over_the_settings_the_bans_the_aliases_and_the_place_in_the_directory() {
    let server = TestServer::start();
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), server.user("eve"));
    let acl = json!({"allow": ["*"], "deny": ["evil.example"], "allow_ip_literals": true});
    let room = alice.create_room_with(json!({
        "room_version": "10", "visibility": "public", "room_alias_name": "pub", "name": "The Pub", "topic": "Beer",
        "creation_content": {"m.federate": false},
        "initial_state": [
            {"type": "m.room.encryption", "content": {"algorithm": "m.megolm.v1.aes-sha2"}},
            {"type": "m.room.server_acl", "content": acl},
            {"type": "m.room.avatar", "content": {"url": "mxc://a/b"}},
            {"type": "m.room.history_visibility", "content": {"history_visibility": "joined"}},
            {"type": "m.room.guest_access", "content": {"guest_access": "forbidden"}},
            {"type": "org.example.tap", "state_key": "1", "content": {"kind": "stout"}},
        ],
    }));
    let alias = format!("#pub:{}", server.name());
    let second = format!("#bar:{}", server.name());
    alice.put(&format!("{V3}/directory/room/{}", segment(&second)), json!({"room_id": room}));
    alice.set_state(&room, "m.room.canonical_alias", "", json!({"alias": alias, "alt_aliases": [second]}));
    alice.post(&room_path(&room, "ban"), json!({"user_id": eve.id(), "reason": "spam"}));
    bob.join(&room);

    let new = upgrade(&alice, &room, "11");
    for kind in [
        "m.room.encryption",
        "m.room.server_acl",
        "m.room.avatar",
        "m.room.history_visibility",
        "m.room.guest_access",
        "m.room.name",
        "m.room.topic",
        "m.room.join_rules",
    ] {
        assert_eq!(state(&alice, &new, kind), state(&alice, &room, kind), "{kind}");
    }
    assert!(
        alice.state(&new, "org.example.tap", "1").is_none(),
        "what may mean something by its sender is not moved"
    );
    assert_eq!(state(&alice, &new, "m.room.create")["m.federate"], false);
    let ban = alice.state(&new, "m.room.member", eve.id()).expect("a ban");
    assert_eq!((&ban["membership"], &ban["reason"]), (&json!("ban"), &json!("spam")));
    refused(&eve.request("POST", &room_path(&new, "join"), Some(json!({}))), 403, "M_FORBIDDEN");
    // Both aliases, and what each room shows of them.
    for name in [&alias, &second] {
        assert_eq!(bob.get(&format!("{V3}/directory/room/{}", segment(name)))["room_id"], new);
    }
    assert_eq!(
        state(&alice, &new, "m.room.canonical_alias"),
        json!({"alias": alias, "alt_aliases": [second]})
    );
    assert_eq!(state(&alice, &room, "m.room.canonical_alias"), json!({}));
    let listed = alice.get(&format!("{V3}/publicRooms"));
    let listed: Vec<&str> =
        listed["chunk"].as_array().unwrap().iter().filter_map(|r| r["room_id"].as_str()).collect();
    assert_eq!(listed, [new.as_str()]);
}

#[test]
fn tags_direct_chats_and_push_rules_follow_each_member_into_the_new_room_but_not_into_one_that_only_claims_to_be_it()
 {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice
        .create_room_with(json!({"preset": "trusted_private_chat", "invite": [bob.id()], "is_direct": true}));
    bob.join(&room);
    for (user, other) in [(&alice, &bob), (&bob, &alice)] {
        user.put(
            &format!("{V3}/user/{}/rooms/{}/tags/m.favourite", segment(user.id()), segment(&room)),
            json!({"order": 0.5}),
        );
        set_account_data(
            user,
            "account_data/m.direct",
            json!({ (other.id()): [room], "@else:where": ["!x:y"] }),
        );
    }
    let eve = server.user("eve");
    let claimed = eve.create_room_with(
        json!({"preset": "public_chat", "creation_content": {"predecessor": {"room_id": room}}}),
    );
    bob.join(&claimed);
    let tags_in = |user: &TestUser, room: &str| {
        user.get(&format!("{V3}/user/{}/rooms/{}/tags", segment(user.id()), segment(room)))["tags"].clone()
    };
    assert_eq!(tags_in(&bob, &claimed), json!({}));

    let new = upgrade(&alice, &room, "12");
    assert_eq!(tags_in(&bob, &new), json!({}), "who has not come yet has nothing there");
    bob.join(&new);
    for (user, other) in [(&alice, &bob), (&bob, &alice)] {
        assert_eq!(tags_in(user, &new), json!({"m.favourite": {"order": 0.5}}));
        let direct = account_data(user, "account_data/m.direct").1;
        assert_eq!(direct, json!({ (other.id()): [room, new], "@else:where": ["!x:y"] }));
    }
    // A rule that mutes the old room mutes the new one, and one that is switched off stays so.
    let rule = |kind: &str, id: &str| format!("{V3}/pushrules/global/{kind}/{}", segment(id));
    let dan = server.user("dan");
    alice.invite(&room, dan.id());
    dan.join(&room);
    dan.put(&rule("room", &room), json!({"actions": ["notify"]}));
    let mute = |of: &str| json!({"actions": [], "conditions": [{"kind": "event_match", "key": "room_id", "pattern": of}]});
    dan.put(&rule("override", &room), mute(&room));
    dan.put(&format!("{}/enabled", rule("override", &room)), json!({"enabled": false}));
    dan.put(&rule("underride", "loud"), mute(&room));
    dan.put(&rule("underride", "other"), mute("!other:x.example"));
    dan.join(&new);
    assert_eq!(dan.get(&rule("room", &new))["actions"], json!(["notify"]));
    let copied = dan.get(&rule("override", &new));
    assert_eq!((&copied["enabled"], &copied["conditions"]), (&json!(false), &mute(&new)["conditions"]));
    assert_eq!(dan.get(&rule("underride", &format!("loud-{new}")))["conditions"], mute(&new)["conditions"]);
    assert_eq!(dan.get(&rule("override", &room))["conditions"], mute(&room)["conditions"]);
    let all = dan.get(&format!("{V3}/pushrules/global/"));
    let own =
        |kind: &str| all[kind].as_array().unwrap().iter().filter(|rule| rule["default"] == false).count();
    assert_eq!((own("room"), own("override"), own("underride")), (2, 2, 3));
    // A tag of the new room itself is worth more.
    let carol = server.user("carol");
    alice.invite(&room, carol.id());
    carol.join(&room);
    let tag = |room: &str, order| {
        carol.put(
            &format!("{V3}/user/{}/rooms/{}/tags/u.work", segment(carol.id()), segment(room)),
            json!({"order": order}),
        );
    };
    tag(&room, 0.1);
    tag(&new, 0.9);
    carol.join(&new);
    assert_eq!(tags_in(&carol, &new), json!({"u.work": {"order": 0.9}}));
}

/// A room that a user makes by hand in the place of another; the old one does not say so yet.
fn replace_by_hand(user: &TestUser, room: &str) -> String {
    user.create_room_with(
        json!({"preset": "public_chat", "creation_content": {"predecessor": {"room_id": room}}}),
    )
}

fn is_muted(user: &TestUser, room: &str) -> bool {
    user.request("GET", &format!("{V3}/pushrules/global/room/{}", segment(room)), None).0 == 200
}

fn mute(user: &TestUser, room: &str) {
    user.put(&format!("{V3}/pushrules/global/room/{}", segment(room)), json!({"actions": []}));
}

#[test]
fn what_follows_a_room_follows_also_those_who_are_in_the_new_one_before_the_old_one_says_so() {
    let server = TestServer::start_with(|config| config.rate_limits = false);
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), server.user("eve"));
    let alias = format!("#hall:{}", server.name());
    let room = alice.create_room_with(
        json!({"preset": "public_chat", "room_alias_name": "hall", "visibility": "public"}),
    );
    bob.join(&room);
    let tags = |user: &TestUser, room: &str| {
        format!("{V3}/user/{}/rooms/{}/tags", segment(user.id()), segment(room))
    };
    for user in [&alice, &bob] {
        mute(user, &room);
        user.put(&format!("{}/m.favourite", tags(user, &room)), json!({"order": 0.5}));
        set_account_data(user, "account_data/m.direct", json!({ "@a:b": [room] }));
    }
    let new = replace_by_hand(&alice, &room);
    let claimed = replace_by_hand(&eve, &room);
    // Enough of them that some have to wait.
    let others: Vec<TestUser> = (0..45).map(|n| server.user(&format!("u{n}"))).collect();
    for other in &others {
        other.join(&new);
        mute(other, &room);
    }
    bob.join(&new);
    bob.join(&claimed);
    assert!(!is_muted(&bob, &new));
    let content = json!({"body": "over there", "replacement_room": new});
    alice.set_state(&room, "m.room.tombstone", "", content.clone());
    for user in [&alice, &bob] {
        assert!(is_muted(user, &new), "{}", user.id());
        assert_eq!(user.get(&tags(user, &new))["tags"], json!({"m.favourite": {"order": 0.5}}));
        assert_eq!(account_data(user, "account_data/m.direct").1, json!({ "@a:b": [room, new] }));
    }
    let directory = |path: &str| alice.get(&format!("{V3}/directory/{path}"));
    assert_eq!(directory(&format!("room/{}", segment(&alias)))["room_id"], json!(new));
    assert_eq!(directory(&format!("list/room/{}", segment(&new)))["visibility"], "public");
    assert_eq!(directory(&format!("list/room/{}", segment(&room)))["visibility"], "private");
    wait_until("it has followed all of them", || others.iter().all(|other| is_muted(other, &new)));
    assert!(!is_muted(&bob, &claimed), "the old room does not speak of that one");
    // It happens once: what somebody does about it stays.
    bob.request("DELETE", &format!("{V3}/pushrules/global/room/{}", segment(&new)), None);
    alice.send(&room, "really");
    assert!(!is_muted(&bob, &new));
}

#[test]
fn what_follows_a_room_of_another_server_follows_also_those_who_were_in_the_new_one_first() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let room = alice.create_room_with(json!({"preset": "public_chat"}));
    bob.join_via(&room, &[here.name()]);
    mute(&bob, &room);
    let new = replace_by_hand(&alice, &room);
    bob.join_via(&new, &[here.name()]);
    assert!(!is_muted(&bob, &new));
    alice.set_state(&room, "m.room.tombstone", "", json!({"body": "gone", "replacement_room": new}));
    wait_until("it has followed bob", || is_muted(&bob, &new));
}

#[test]
fn spaces_speak_of_the_new_room_where_the_user_may_have_them_do_so() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let space = |user: &TestUser| {
        user.create_room_with(json!({"creation_content": {"type": "m.space"}, "preset": "public_chat"}))
    };
    let (own, foreign) = (space(&alice), space(&bob));
    alice.join(&foreign);
    let room = alice.create_room_with(json!({"room_version": "10"}));
    let child = json!({"via": ["elsewhere.example"], "suggested": true, "order": "a"});
    alice.set_state(&own, "m.space.child", &room, child.clone());
    bob.set_state(&foreign, "m.space.child", &room, child.clone());
    alice.set_state(&room, "m.space.parent", &own, json!({"via": [server.name()], "canonical": true}));

    let new = upgrade(&alice, &room, "11");
    let here = server.name();
    assert_eq!(
        alice.state(&own, "m.space.child", &new),
        Some(json!({"via": [here], "suggested": true, "order": "a"}))
    );
    assert_eq!(alice.state(&own, "m.space.child", &room), Some(json!({"suggested": true, "order": "a"})));
    assert_eq!(bob.state(&foreign, "m.space.child", &room), Some(child), "alice has no power there");
    assert_eq!(bob.state(&foreign, "m.space.child", &new), None);
    assert_eq!(alice.state(&new, "m.space.parent", &own), Some(json!({"via": [here], "canonical": true})));

    // The space itself: its rooms go with it, and say so.
    alice.set_state(&own, "m.space.child", "!gone:x.example", json!({}));
    let new_space = upgrade(&alice, &own, "12");
    assert_eq!(state(&alice, &new_space, "m.room.create")["type"], "m.space");
    assert!(alice.state(&new_space, "m.space.child", &new).is_some());
    assert_eq!(alice.state(&new_space, "m.space.child", "!gone:x.example"), None);
    assert_eq!(alice.state(&new_space, "m.space.child", &room), None);
    assert_eq!(
        alice.state(&new, "m.space.parent", &new_space),
        Some(json!({"via": [here], "canonical": true}))
    );
    assert_eq!(alice.state(&new, "m.space.parent", &own), Some(json!({"canonical": true})));
}

#[test]
fn who_may_not_upgrade_is_refused_and_nothing_happens() {
    let server = TestServer::start();
    let (alice, bob, eve) = (server.user("alice"), server.user("bob"), server.user("eve"));
    let room = alice.create_room_with(json!({"preset": "public_chat", "room_version": "10"}));
    bob.join(&room);
    let to_11 = || json!({"new_version": "11"});
    refused(&try_upgrade(&bob, &room, to_11()), 403, "M_FORBIDDEN");
    refused(&try_upgrade(&eve, &room, to_11()), 403, "M_FORBIDDEN");
    refused(&try_upgrade(&alice, "!nowhere:x.example", to_11()), 404, "M_NOT_FOUND");
    for (body, errcode) in [
        (json!({"new_version": "99"}), "M_UNSUPPORTED_ROOM_VERSION"),
        (json!({"new_version": ""}), "M_UNSUPPORTED_ROOM_VERSION"),
        (json!({"new_version": "9".repeat(100_000)}), "M_UNSUPPORTED_ROOM_VERSION"),
        (json!({"new_version": 11}), "M_BAD_JSON"),
        (json!({"new_version": null}), "M_MISSING_PARAM"),
        (json!({}), "M_MISSING_PARAM"),
        (json!({"new_version": "12", "additional_creators": "@bob:x"}), "M_INVALID_PARAM"),
        (json!({"new_version": "12", "additional_creators": ["bob"]}), "M_INVALID_PARAM"),
        (json!({"new_version": "12", "additional_creators": vec![bob.id(); 101]}), "M_INVALID_PARAM"),
    ] {
        refused(&try_upgrade(&alice, &room, body), 400, errcode);
    }
    let own = room_path(&room, "state/m.room.tombstone/");
    let itself = json!({"body": "x", "replacement_room": room});
    refused(&alice.request("PUT", &own, Some(itself)), 400, "M_INVALID_PARAM");
    assert!(alice.state(&room, "m.room.tombstone", "").is_none());
    assert_eq!(alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([room]));
    // "When upgrading to a room version which doesn't support additional creators, this field is ignored."
    let (status, answer) =
        try_upgrade(&alice, &room, json!({"new_version": "11", "additional_creators": ["bob"]}));
    assert_eq!(status, 200, "{answer}");
    // What a repeat gets is what the first one got, and a moderator may yet do it anew to another version.
    assert_eq!(upgrade(&alice, &room, "11"), answer["replacement_room"]);
    assert_ne!(upgrade(&alice, &room, "12"), answer["replacement_room"]);
}

#[test]
fn two_moderators_who_upgrade_at_once_get_the_same_room() {
    let server = TestServer::start_with(|config| config.rate_limits = false);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for round in 0..10 {
        let room = alice.create_room_with(json!({"preset": "public_chat", "room_version": "10"}));
        bob.join(&room);
        let mut levels = state(&alice, &room, "m.room.power_levels");
        levels["users"][bob.id()] = json!(100);
        if round % 2 == 1 {
            // Then nothing of the old room changes but that it has a tombstone.
            (levels["events_default"], levels["invite"]) = (json!(50), json!(50));
        }
        alice.set_state(&room, "m.room.power_levels", "", levels);
        let joined = |user: &TestUser| {
            user.get(&format!("{V3}/joined_rooms"))["joined_rooms"].as_array().unwrap().len()
        };
        let before = joined(&alice) + joined(&bob);
        let answers: Vec<(u16, Value)> = std::thread::scope(|scope| {
            let asked = [&alice, &bob, &alice, &bob]
                .map(|user| scope.spawn(|| try_upgrade(user, &room, json!({"new_version": "11"}))));
            asked.map(|asked| asked.join().unwrap()).to_vec()
        });
        let new = state(&alice, &room, "m.room.tombstone")["replacement_room"].clone();
        // Who comes when all is done upgrades once more, and may; but nobody gets a room that is none.
        let rooms: std::collections::BTreeSet<&str> =
            answers.iter().filter_map(|(_, answer)| answer["replacement_room"].as_str()).collect();
        assert!(answers.iter().all(|(status, _)| *status == 200), "{answers:?}");
        assert!(rooms.contains(new.as_str().unwrap()), "{answers:?}");
        assert_eq!(
            joined(&alice) + joined(&bob),
            before + rooms.len(),
            "a room that nobody was told of: {answers:?}"
        );
    }
}

#[test]
fn an_upgrade_while_the_power_for_it_is_taken_away_is_done_whole_or_not_at_all() {
    let server = TestServer::start_with(|config| config.rate_limits = false);
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for _ in 0..10 {
        let room = alice.create_room_with(json!({"preset": "public_chat", "room_version": "10"}));
        bob.join(&room);
        let mut levels = state(&alice, &room, "m.room.power_levels");
        levels["users"][bob.id()] = json!(60);
        levels["events"]["m.room.tombstone"] = json!(60);
        alice.set_state(&room, "m.room.power_levels", "", levels.clone());
        levels["users"][bob.id()] = json!(0);
        let (status, answer) = std::thread::scope(|scope| {
            let upgraded = scope.spawn(|| try_upgrade(&bob, &room, json!({"new_version": "11"})));
            alice.set_state(&room, "m.room.power_levels", "", levels);
            upgraded.join().unwrap()
        });
        let tombstone = alice.state(&room, "m.room.tombstone", "");
        let rooms = bob.get(&format!("{V3}/joined_rooms"))["joined_rooms"].clone();
        match status {
            200 => {
                assert_eq!(tombstone.expect("a tombstone")["replacement_room"], answer["replacement_room"])
            }
            403 => {
                assert_eq!(tombstone, None);
                assert!(rooms.as_array().unwrap().iter().filter(|r| **r != json!(room)).all(|other| {
                    bob.state(other.as_str().unwrap(), "m.room.create", "").unwrap()["predecessor"]["room_id"]
                        != room
                }));
            }
            _ => panic!("{status} {answer}"),
        }
    }
}

#[test]
#[allow(clippy::disallowed_methods, reason = "when the kill comes is what the test varies")]
fn a_kill_in_the_middle_of_an_upgrade_leaves_all_of_it_or_nothing() {
    let mut server = ProcessServer::start(&[]);
    let alice = server.user("alice");
    let mut seen = (0, 0);
    for delay_ms in [0, 2, 4, 6, 9, 13, 20, 40] {
        let room = alice
            .create_room_with(json!({"room_version": "10", "room_alias_name": format!("pub{delay_ms}")}));
        std::thread::scope(|scope| {
            let asked = scope.spawn(|| try_upgrade(&alice, &room, json!({"new_version": "12"})));
            std::thread::sleep(Duration::from_millis(delay_ms));
            server.kill();
            // With an answer or without one.
            drop(asked.join());
        });
        server.resume();
        let named = format!("{V3}/directory/room/{}", segment(&format!("#pub{delay_ms}:{}", server.name())));
        let named = alice.get(&named)["room_id"].as_str().unwrap().to_owned();
        match alice.state(&room, "m.room.tombstone", "") {
            Some(tombstone) => {
                assert_eq!(tombstone["replacement_room"], named);
                assert!(alice.state(&named, "m.room.power_levels", "").is_some());
                assert_eq!(state(&alice, &room, "m.room.power_levels")["events_default"], 50);
                seen.0 += 1;
            }
            None => {
                assert_eq!(named, room);
                seen.1 += 1;
            }
        }
        let joined = alice.get(&format!("{V3}/joined_rooms"))["joined_rooms"].as_array().unwrap().len();
        assert_eq!(joined, 2 * seen.0 + seen.1, "{seen:?}");
    }
}
