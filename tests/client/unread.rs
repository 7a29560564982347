//! What is unread: what counts, for whom, and what takes it away again; and the push rules by which it is found.

use crate::common::client::{V3, filter, one_list, room_path, slide, sync};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// Notifications, and those of them that are highlighted.
type Counts = (u64, u64);

/// What is unread in a room with all its threads, as a first sync tells them.
fn unread(user: &TestUser, room: &str) -> Counts {
    of_room(&sync(user, "")["rooms"]["join"][room])
}

fn of_room(joined: &Value) -> Counts {
    counts(&joined["unread_notifications"])
}

fn counts(unread: &Value) -> Counts {
    let count = |name: &str| unread[name].as_u64().unwrap_or_else(|| panic!("no {name} in {unread}"));
    (count("notification_count"), count("highlight_count"))
}

/// The same for the main timeline, and for each thread that has any.
fn by_thread(user: &TestUser, room: &str) -> (Counts, Vec<(String, Counts)>) {
    let wanted = filter(&json!({"room": {"timeline": {"unread_thread_notifications": true}}}));
    let answer = sync(user, &wanted);
    let joined = &answer["rooms"]["join"][room];
    let threads = joined["unread_thread_notifications"].as_object().cloned().unwrap_or_default();
    let threads = threads.iter().map(|(root, unread)| (root.clone(), counts(unread))).collect();
    (of_room(joined), threads)
}

fn say(user: &TestUser, room: &str, content: Value) -> String {
    let txn = doorstep::random::letters(12);
    let path = room_path(room, &format!("send/m.room.message/{txn}"));
    user.put(&path, content)["event_id"].as_str().expect("an event id").to_owned()
}

fn mention(user: &TestUser, room: &str, whom: &TestUser) -> String {
    say(user, room, json!({"msgtype": "m.text", "body": "you", "m.mentions": {"user_ids": [whom.id()]}}))
}

fn reply_in(user: &TestUser, room: &str, root: &str, body: &str) -> String {
    let relation = json!({"rel_type": "m.thread", "event_id": root});
    say(user, room, json!({"msgtype": "m.text", "body": body, "m.relates_to": relation}))
}

fn receipt(user: &TestUser, room: &str, kind: &str, event: &str, body: Value) -> (u16, Value) {
    user.request("POST", &room_path(room, &format!("receipt/{kind}/{}", segment(event))), Some(body))
}

fn read(user: &TestUser, room: &str, event: &str) {
    assert_eq!(receipt(user, room, "m.read", event, json!({})).0, 200);
}

fn rule(user: &TestUser, kind: &str, id: &str, body: Value) {
    user.put(&format!("{V3}/pushrules/global/{kind}/{}", segment(id)), body);
}

fn redact(user: &TestUser, room: &str, event: &str) {
    user.put(
        &room_path(room, &format!("redact/{}/{}", segment(event), doorstep::random::letters(8))),
        json!({}),
    );
}

fn wait_until_waiting(server: &TestServer, clients: usize) {
    while server.homeserver().notifier.waiting() < clients {
        std::thread::yield_now();
    }
}

/// A room of three: alice speaks, bob listens, carol is there so that it is no direct one.
fn scene(server: &TestServer) -> (TestUser, TestUser, TestUser, String) {
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    bob.join(&room);
    carol.join(&room);
    (alice, bob, carol, room)
}

#[test]
fn what_others_say_counts_until_it_is_read_and_one_reads_by_speaking() {
    let server = TestServer::start();
    let (alice, bob, carol, room) = scene(&server);
    let before = unread(&bob, &room);
    assert_eq!(before, (0, 0), "what was before bob came, and who comes and goes");
    alice.send(&room, "one");
    let second = alice.send(&room, "two");
    mention(&alice, &room, &bob);
    say(&alice, &room, json!({"msgtype": "m.notice", "body": "I am a bot"}));
    assert_eq!((unread(&bob, &room), unread(&carol, &room), unread(&alice, &room)), ((3, 1), (3, 0), (0, 0)));
    read(&bob, &room, &second);
    assert_eq!((unread(&bob, &room), unread(&carol, &room)), ((1, 1), (3, 0)));
    carol.send(&room, "I have seen it");
    assert_eq!((unread(&bob, &room), unread(&carol, &room), unread(&alice, &room)), ((2, 1), (0, 0), (1, 0)));
}

#[test]
fn who_is_named_in_what_a_sender_says_that_knows_no_mentions_is_mentioned() {
    let server = TestServer::start();
    let (alice, bob, carol, room) = scene(&server);
    let name = |user: &TestUser, name: &str| {
        user.put(&format!("{V3}/profile/{}/displayname", segment(user.id())), json!({ "displayname": name }));
        let member = room_path(&room, &format!("state/m.room.member/{}", segment(user.id())));
        wait_until("the room to know the name", || user.get(&member)["displayname"] == name);
    };
    name(&carol, "Red Fox 🦊");
    // One who has rules of their own.
    rule(&carol, "content", "cake", json!({ "pattern": "cake", "actions": ["notify"] }));
    let says = |sender: &TestUser, content: Value, highlights: [u64; 2]| {
        let counts = || [&bob, &carol].map(|user| unread(user, &room));
        let before = counts();
        say(sender, &room, content.clone());
        let expected = [0, 1].map(|at| (before[at].0 + 1, before[at].1 + highlights[at]));
        assert_eq!(counts(), expected, "{content}");
    };
    let text = |body: &str| json!({ "msgtype": "m.text", "body": body });
    says(&alice, text("hello"), [0, 0]);
    says(&alice, text("BOB: and you?"), [1, 0]);
    says(&alice, text("bobby, carolling"), [0, 0]);
    says(&alice, text("ask red fox 🦊!"), [0, 1]);
    says(&alice, text("carol, bob"), [1, 1]);
    says(&alice, text("carol has cake"), [0, 0]);
    says(&alice, text("@room: tea"), [1, 1]);
    let mut quoted = text("@room: bob said to Red Fox 🦊");
    quoted["m.mentions"] = json!({});
    says(&alice, quoted.clone(), [0, 0]);
    quoted["m.mentions"] = json!({ "user_ids": [bob.id()] });
    says(&alice, quoted, [1, 0]);
    // By the name that they have by then.
    name(&bob, "Robert");
    says(&alice, text("robert?"), [1, 0]);
    name(&bob, "bob");
    says(&alice, text("robert?"), [0, 0]);
    // And only if they want to be.
    for (kind, id) in
        [("override", ".m.rule.contains_display_name"), ("content", ".m.rule.contains_user_name")]
    {
        bob.put(&format!("{V3}/pushrules/global/{kind}/{id}/enabled"), json!({ "enabled": false }));
    }
    says(&alice, text("bob?"), [0, 0]);
    // Of the room speaks who may.
    let (_, before) = (carol.send(&room, "@room, Alice"), unread(&alice, &room));
    assert_eq!(before, (1, 1));
    carol.send(&room, "@room");
    assert_eq!(unread(&alice, &room), (2, 1));
}

#[test]
fn whoever_comes_later_or_comes_back_begins_with_nothing() {
    let server = TestServer::start();
    let (alice, bob, _, room) = scene(&server);
    alice.send(&room, "before dave");
    let dave = server.user("dave");
    dave.join(&room);
    assert_eq!((unread(&dave, &room), unread(&bob, &room)), ((0, 0), (1, 0)));
    alice.send(&room, "for both");
    assert_eq!((unread(&dave, &room), unread(&bob, &room)), ((1, 0), (2, 0)));
    dave.leave(&room);
    alice.send(&room, "without dave");
    dave.join(&room);
    assert_eq!((unread(&dave, &room), unread(&bob, &room)), ((0, 0), (3, 0)));
}

#[test]
fn a_knock_rings_and_adds_nothing_to_what_is_unread_for_whoever_may_let_in() {
    let server = TestServer::start();
    let (alice, bob, dave) = (server.user("alice"), server.user("bob"), server.user("dave"));
    // Whoever is in may let in; in the other room only alice may.
    for invite in [0, 50] {
        let room = alice.create_room_with(json!({
            "preset": "private_chat", "power_level_content_override": { "invite": invite },
            "initial_state": [
                { "type": "m.room.join_rules", "state_key": "", "content": { "join_rule": "knock" } }],
        }));
        alice.invite(&room, bob.id());
        bob.join(&room);
        read(&alice, &room, &bob.send(&room, "I am in"));
        let since = sync(&alice, "")["next_batch"].as_str().expect("a token").to_owned();
        let told = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sync(&alice, &format!("since={since}&timeout=30000")));
            wait_until_waiting(&server, 1);
            dave.knock_via(&room, &[]);
            waiting.join().expect("no panic")
        });
        let joined = &told["rooms"]["join"][&room];
        let timeline = joined["timeline"]["events"].as_array().expect("events");
        assert!(timeline.iter().any(|event| event["content"]["membership"] == "knock"));
        assert_eq!((of_room(joined), unread(&bob, &room)), ((0, 0), (0, 0)));
        let slid = slide(&alice, None, &one_list(20, 5, &json!([])));
        assert_eq!(slid["rooms"][&room]["notification_count"], 0);
        // It is among what they were notified of all the same.
        let told = alice.get(&format!("{V3}/notifications"));
        let knocks = told["notifications"].as_array().expect("notifications").iter();
        let is_it = |n: &&Value| n["room_id"] == *room && n["event"]["content"]["membership"] == "knock";
        assert_eq!(knocks.filter(is_it).count(), 1);
        // What else is said counts as ever.
        bob.send(&room, "somebody is at the door");
        assert_eq!((unread(&alice, &room), unread(&bob, &room)), ((1, 0), (0, 0)));
        dave.leave(&room);
        assert_eq!(unread(&alice, &room), (1, 0));
    }
}

#[test]
fn what_is_redacted_does_not_count_any_more() {
    let server = TestServer::start();
    let (alice, bob, _, room) = scene(&server);
    let first = alice.send(&room, "one");
    let second = mention(&alice, &room, &bob);
    let root = alice.send(&room, "root");
    let in_thread = reply_in(&alice, &room, &root, "in a thread");
    let since = format!("since={}", sync(&bob, "")["next_batch"].as_str().expect("a token"));
    assert_eq!(unread(&bob, &room), (4, 1));
    redact(&alice, &room, &second);
    assert_eq!(of_room(&sync(&bob, &since)["rooms"]["join"][&room]), (3, 0), "told with the redaction");
    redact(&alice, &room, &first);
    redact(&alice, &room, &in_thread);
    assert_eq!(unread(&bob, &room), (1, 0));
    redact(&alice, &room, &first);
    assert_eq!(unread(&bob, &room), (1, 0), "and only once");
}

#[test]
fn threads_count_apart_and_are_read_apart() {
    let server = TestServer::start();
    let (alice, bob, _, room) = scene(&server);
    let root = alice.send(&room, "root");
    let last = reply_in(&alice, &room, &root, "one");
    let main = alice.send(&room, "main");
    // What relates to an event of a thread is in it.
    let reaction = json!({"rel_type": "m.annotation", "event_id": last, "key": "x"});
    let in_thread = say(&alice, &room, json!({"msgtype": "m.text", "body": "two", "m.relates_to": reaction}));
    let thread = |unread| vec![(root.clone(), unread)];
    assert_eq!(by_thread(&bob, &room), ((2, 0), thread((2, 0))));
    assert_eq!(unread(&bob, &room), (4, 0));
    for (event, of, status) in [
        (&main, &root[..], 400),
        (&last, "main", 400),
        (&last, "$other", 400),
        (&last, "", 400),
        (&main, "main", 200),
    ] {
        assert_eq!(receipt(&bob, &room, "m.read", event, json!({"thread_id": of})).0, status, "{event} {of}");
    }
    assert_eq!(receipt(&bob, &room, "m.fully_read", &main, json!({"thread_id": "main"})).0, 400);
    assert_eq!(by_thread(&bob, &room), ((0, 0), thread((2, 0))), "`main` is only the main timeline");
    assert_eq!(receipt(&bob, &room, "m.read", &last, json!({"thread_id": root})).0, 200);
    assert_eq!(by_thread(&bob, &room), ((0, 0), thread((1, 0))));
    alice.send(&room, "three");
    assert_eq!(by_thread(&bob, &room), ((1, 0), thread((1, 0))));
    reply_in(&bob, &room, &root, "mine");
    assert_eq!(by_thread(&bob, &room), ((1, 0), vec![]), "who speaks in a thread has read only that");
    let third = reply_in(&alice, &room, &root, "four");
    assert_eq!(by_thread(&bob, &room), ((1, 0), thread((1, 0))));
    read(&bob, &room, &third);
    assert_eq!(by_thread(&bob, &room), ((0, 0), vec![]), "a receipt without a thread is for all of them");
    assert_eq!(receipt(&bob, &room, "m.read", &in_thread, json!({"thread_id": root})).0, 200);
    assert_eq!(unread(&bob, &room), (0, 0), "and none goes back");
}

#[test]
fn what_relates_to_the_root_of_a_thread_is_read_with_the_thread_or_with_the_rest() {
    let server = TestServer::start();
    let (alice, bob, _, room) = scene(&server);
    let relate = |kind: &str, to: &str| {
        let relation = json!({"rel_type": kind, "event_id": to, "key": "x"});
        say(&alice, &room, json!({"msgtype": "m.text", "body": "re", "m.relates_to": relation}))
    };
    let (root, other) = (alice.send(&room, "root"), alice.send(&room, "another root"));
    let in_thread = reply_in(&alice, &room, &root, "one");
    let related = ["m.annotation", "m.replace", "m.reference"].map(|kind| relate(kind, &root));
    let second = relate("m.annotation", &related[2]);
    let third = relate("m.annotation", &second);
    let too_far = relate("m.annotation", &third);
    let elsewhere = relate("m.annotation", &other);
    let reaction_in_thread = relate("m.annotation", &in_thread);
    let marks = |event: &str, of: &str| receipt(&bob, &room, "m.read", event, json!({"thread_id": of})).0;
    for event in related.iter().chain([&second, &third]) {
        assert_eq!((marks(event, &root), marks(event, "main")), (200, 200), "{event}");
        assert_eq!(marks(event, &other), 400, "{event}");
    }
    assert_eq!((marks(&too_far, &root), marks(&too_far, "main")), (400, 200));
    assert_eq!((marks(&elsewhere, &root), marks(&elsewhere, &other)), (400, 200));
    assert_eq!(marks(&reaction_in_thread, "main"), 400);
    // What stands before it in the thread is read.
    reply_in(&alice, &room, &root, "two");
    let unread_in_thread = |count| vec![(root.clone(), (count, 0))];
    assert_eq!(by_thread(&bob, &room).1, unread_in_thread(2), "the reaction and the reply are behind");
    let last = relate("m.reference", &root);
    reply_in(&alice, &room, &root, "three");
    assert_eq!(marks(&last, &root), 200);
    assert_eq!(by_thread(&bob, &room).1, unread_in_thread(1));
}

#[test]
fn private_receipts_count_like_public_ones_and_nobody_else_hears_of_them() {
    let server = TestServer::start();
    let (alice, bob, carol, room) = scene(&server);
    let first = alice.send(&room, "one");
    let second = alice.send(&room, "two");
    let third = alice.send(&room, "three");
    let since =
        |user: &TestUser| format!("since={}", sync(user, "")["next_batch"].as_str().expect("a token"));
    let (of_bob, of_carol) = (since(&bob), since(&carol));
    assert_eq!(receipt(&bob, &room, "m.read.private", &second, json!({})).0, 200);
    let told = sync(&bob, &of_bob);
    let joined = &told["rooms"]["join"][&room];
    assert_eq!(of_room(joined), (1, 0));
    let content = &joined["ephemeral"]["events"][0]["content"];
    assert!(content[&second]["m.read.private"][bob.id()]["ts"].is_i64(), "{told}");
    assert!(sync(&carol, &of_carol).get("rooms").is_none());
    // The public one lags behind, which others may see; nothing is unread again.
    read(&bob, &room, &first);
    assert!(sync(&carol, &of_carol).to_string().contains(&first));
    assert_eq!(unread(&bob, &room), (1, 0));
    assert_eq!(receipt(&bob, &room, "m.read.private", &first, json!({})).0, 200, "it stays");
    assert_eq!(unread(&bob, &room), (1, 0));
    bob.post(&room_path(&room, "read_markers"), json!({"m.fully_read": first, "m.read.private": third}));
    assert_eq!(unread(&bob, &room), (0, 0));
    assert!(!sync(&carol, "").to_string().contains("private"));
}

#[test]
fn own_rules_make_more_or_less_of_an_event_and_ignored_users_nothing() {
    let server = TestServer::start();
    let (alice, bob, carol, room) = scene(&server);
    let highlight = json!(["notify", {"set_tweak": "highlight"}]);
    rule(&bob, "content", "cake", json!({"pattern": "cake", "actions": highlight}));
    alice.send(&room, "there is CAKE");
    alice.send(&room, "there is pancake");
    assert_eq!((unread(&bob, &room), unread(&carol, &room)), ((2, 1), (2, 0)));
    rule(&bob, "room", &room, json!({"actions": []}));
    alice.send(&room, "quiet");
    mention(&alice, &room, &bob);
    assert_eq!((unread(&bob, &room), unread(&carol, &room)), ((3, 2), (4, 0)), "only mentions");
    let of_room = json!([{"kind": "event_match", "key": "room_id", "pattern": room}]);
    rule(&bob, "override", &room, json!({"conditions": of_room, "actions": []}));
    mention(&alice, &room, &bob);
    assert_eq!((unread(&bob, &room), unread(&carol, &room)), ((3, 2), (5, 0)), "muted");
    let everything = json!({"enabled": true});
    carol.put(&format!("{V3}/pushrules/global/override/.m.rule.master/enabled"), everything);
    mention(&alice, &room, &carol);
    assert_eq!(unread(&carol, &room), (5, 0));
    carol.put(&format!("{V3}/pushrules/global/override/.m.rule.master/enabled"), json!({"enabled": false}));
    let list = json!({"ignored_users": {alice.id(): {}}});
    carol.put(&format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(carol.id())), list);
    alice.send(&room, "nobody hears me");
    bob.send(&room, "but me");
    assert_eq!((unread(&carol, &room), unread(&alice, &room)), ((1, 0), (1, 0)), "nor what she said before");
}

#[test]
fn whom_one_ignores_from_now_on_leaves_nothing_behind_that_cannot_be_read() {
    let server = TestServer::start();
    let (alice, bob, carol, room) = scene(&server);
    let root = alice.send(&room, "one");
    mention(&carol, &room, &bob);
    reply_in(&carol, &room, &root, "two");
    reply_in(&alice, &room, &root, "three");
    let latest = mention(&carol, &room, &bob);
    assert_eq!(unread(&bob, &room), (5, 2));
    let quiet = alice.create_room();
    bob.join(&quiet);
    alice.send(&quiet, "hello");
    let body = one_list(10, 1, &json!([]));
    let (before, first) = (sync(&bob, ""), slide(&bob, None, &body));
    assert_eq!(counts(&first["rooms"][&room]), (5, 2));
    let path = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(bob.id()));
    bob.put(&path, json!({ "ignored_users": { carol.id(): {} } }));
    // The clients that know of more are told so, once, and of no other room.
    let since = |answer: &Value| format!("since={}", answer["next_batch"].as_str().expect("a token"));
    let (after, second) = (sync(&bob, &since(&before)), slide(&bob, Some(&first), &body));
    let told = after["rooms"]["join"].as_object().expect("rooms");
    assert_eq!(told.keys().collect::<Vec<_>>(), [&room]);
    assert_eq!(of_room(&told[&room]), (2, 0));
    let told = second["rooms"].as_object().expect("rooms");
    assert_eq!(told.keys().collect::<Vec<_>>(), [&room]);
    assert_eq!(counts(&told[&room]), (2, 0));
    assert_eq!(sync(&bob, &since(&after)).get("rooms"), None);
    assert_eq!(slide(&bob, Some(&second), &body)["rooms"], json!({}));
    assert_eq!(by_thread(&bob, &room), ((1, 0), vec![(root, (1, 0))]));
    assert_eq!(unread(&alice, &room), (2, 0), "for the others it is what it was");
    // Taken back for everybody, it is not taken off once more.
    redact(&carol, &room, &latest);
    assert_eq!((unread(&bob, &room), unread(&alice, &room)), ((2, 0), (1, 0)));
}

#[test]
fn an_encrypted_message_counts_by_its_type_and_in_a_direct_room_too() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    let secret = json!({"algorithm": "m.megolm.v1.aes-sha2", "ciphertext": "x", "session_id": "y"});
    alice.put(&room_path(&room, "send/m.room.encrypted/1"), secret);
    let reaction = json!({"m.relates_to": {"rel_type": "m.annotation", "event_id": "$x", "key": "y"}});
    alice.put(&room_path(&room, "send/m.reaction/2"), reaction);
    assert_eq!(unread(&bob, &room), (1, 0));
}

#[test]
fn a_client_that_waits_is_woken_by_what_another_device_has_read() {
    let server = TestServer::start_with(|config| config.presence = false);
    let (alice, bob, _, room) = scene(&server);
    let phone = server.device_of(&bob, "PHONE");
    let said = alice.send(&room, "one");
    alice.send(&room, "two");
    let body = one_list(10, 1, &json!([]));
    let first = slide(&phone, None, &body);
    assert_eq!(counts(&first["rooms"][&room]), (2, 0));
    for kind in ["m.read", "m.read.private"] {
        let filter = filter(&json!({"room": {"ephemeral": {"not_types": ["m.receipt"]}}}));
        let event = if kind == "m.read" { said.clone() } else { alice.send(&room, "three") };
        let since = sync(&phone, "")["next_batch"].as_str().expect("a token").to_owned();
        let told = std::thread::scope(|scope| {
            let waiting = scope.spawn(|| sync(&phone, &format!("since={since}&timeout=20000&{filter}")));
            wait_until_waiting(&server, 1);
            assert_eq!(receipt(&bob, &room, kind, &event, json!({})).0, 200);
            waiting.join().expect("an answer")
        });
        let expected = if kind == "m.read" { (1, 0) } else { (0, 0) };
        assert_eq!(of_room(&told["rooms"]["join"][&room]), expected, "{kind}: {told}");
    }
    let second = slide(&phone, Some(&first), &body);
    assert_eq!(counts(&second["rooms"][&room]), (0, 0), "{second}");
    let third = slide(&phone, Some(&second), &body);
    assert_eq!(third["rooms"], json!({}), "told once");
}

#[test]
fn those_who_wait_are_told_their_own_counts_with_the_same_message() {
    // Who is there would be news too.
    let server = TestServer::start_with(|config| config.presence = false);
    let (alice, bob, carol, room) = scene(&server);
    let mut tokens: Vec<(TestUser, String)> = Vec::new();
    for user in [&bob, &carol] {
        let since = sync(user, "")["next_batch"].as_str().expect("a token").to_owned();
        tokens.push((TestUser::new(server.url(), user.id(), user.token()), since));
    }
    for round in 1..=4_u64 {
        let told: Vec<Value> = std::thread::scope(|scope| {
            let waiting: Vec<_> = tokens
                .iter()
                .map(|(user, since)| scope.spawn(move || sync(user, &format!("since={since}&timeout=20000"))))
                .collect();
            wait_until_waiting(&server, 2);
            mention(&alice, &room, &bob);
            waiting.into_iter().map(|one| one.join().expect("an answer")).collect()
        });
        let counted: Vec<_> = told.iter().map(|told| of_room(&told["rooms"]["join"][&room])).collect();
        assert_eq!(counted, [(round, round), (round, 0)]);
        for ((_, since), told) in tokens.iter_mut().zip(&told) {
            *since = told["next_batch"].as_str().expect("a token").to_owned();
        }
    }
}

#[test]
fn rules_are_put_where_they_are_wanted_and_both_syncs_tell_of_it() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let since = format!("since={}", sync(&alice, "")["next_batch"].as_str().expect("a token"));
    let path = |rest: &str| format!("{V3}/pushrules/global/{rest}");
    let status = |method: &str, rest: &str, body: Value| alice.request(method, &path(rest), Some(body)).0;
    rule(&alice, "override", "one", json!({"actions": ["notify"], "conditions": []}));
    alice.put(&path("override/two?after=one"), json!({"actions": ["notify", "dont_notify"]}));
    alice.put(&path("override/three?before=two&after=one"), json!({"actions": []}));
    let ids = |ruleset: &Value| -> Vec<String> {
        let rules = ruleset["override"].as_array().expect("a list");
        rules.iter().take(5).map(|rule| rule["rule_id"].as_str().expect("an id").to_owned()).collect()
    };
    let expected = [".m.rule.master", "one", "three", "two", ".m.rule.suppress_notices"];
    assert_eq!(ids(&alice.get(&format!("{V3}/pushrules/"))["global"]), expected);
    assert_eq!(alice.get(&path("override/two"))["actions"], json!(["notify"]));
    let told = sync(&alice, &since);
    let event = &told["account_data"]["events"][0];
    assert_eq!(
        (event["type"].as_str(), ids(&event["content"]["global"])),
        (Some("m.push_rules"), expected.map(str::to_owned).to_vec())
    );
    assert_eq!(told["account_data"]["events"].as_array().map(Vec::len), Some(1));
    let body = json!({"extensions": {"account_data": {"enabled": true}}});
    let first = slide(&alice, None, &body);
    alice.request("DELETE", &path("override/three"), None);
    let second = slide(&alice, Some(&first), &body);
    let data = &second["extensions"]["account_data"]["global"][0];
    assert_eq!(data["type"], "m.push_rules");
    assert_eq!(ids(&data["content"]["global"])[1..4], ["one", "two", ".m.rule.suppress_notices"]);
    for (method, rest, body, expected) in [
        ("PUT", "override/x?before=none", json!({"actions": []}), 400),
        ("PUT", "override/x?after=.m.rule.master", json!({"actions": []}), 400),
        ("PUT", "override/.mine", json!({"actions": []}), 400),
        ("PUT", "override/a%2Fb", json!({"actions": []}), 400),
        ("PUT", "sideways/x", json!({"actions": []}), 400),
        ("PUT", "override/x", json!({"actions": {}}), 400),
        ("PUT", "content/x", json!({"actions": []}), 400),
        ("PUT", "content/x", json!({"actions": [], "pattern": "x".repeat(2000)}), 413),
        ("PUT", "override/none/enabled", json!({"enabled": true}), 404),
        ("PUT", "override/one/enabled", json!({"enabled": "yes"}), 400),
        ("PUT", "override/none/actions", json!({"actions": []}), 404),
        ("DELETE", "override/none", json!({}), 404),
        ("DELETE", "override/.m.rule.master", json!({}), 404),
        ("PUT", "underride/.m.rule.message/actions", json!({"actions": []}), 200),
    ] {
        assert_eq!(status(method, rest, body), expected, "{method} {rest}");
    }
    assert_eq!(alice.get(&path("underride/.m.rule.message/actions"))["actions"], json!([]));
    let stored = alice.get(&format!("{V3}/user/{}/account_data/m.push_rules", segment(alice.id())));
    assert_eq!(stored, alice.get(&format!("{V3}/pushrules/")));
}

#[test]
fn the_rules_of_one_user_have_a_bound_beyond_which_they_only_become_fewer() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let path = |id: &str| format!("{V3}/pushrules/global/override/{id}");
    let body = json!({"actions": [], "conditions": [
        {"kind": "event_match", "key": "content.x", "pattern": "x".repeat(800)}]});
    let mut put = 0;
    let refused = loop {
        let (status, answer) = alice.request("PUT", &path(&format!("r{put}")), Some(body.clone()));
        if status != 200 {
            break (status, answer["errcode"].clone());
        }
        put += 1;
    };
    assert_eq!(refused, (403, json!("M_RESOURCE_LIMIT_EXCEEDED")));
    assert_eq!(alice.get(&path("r0"))["conditions"], body["conditions"], "those that were put are there");
    alice.put(&path("r0"), json!({"actions": [], "conditions": []}));
    alice.put(&path("more"), json!({"actions": [], "conditions": []}));
}

#[test]
fn whose_rules_take_too_long_hears_of_an_event_what_everybody_does_and_nobody_else_hears_less() {
    let server = TestServer::start();
    let (alice, bob, carol, room) = scene(&server);
    // Pieces that may stand anywhere, and never do.
    let pattern = format!("*{}b*", "?a".repeat(60));
    let conditions = json!([{"kind": "event_match", "key": "content.x", "pattern": pattern}]);
    for number in 0..20 {
        rule(&bob, "override", &format!("r{number}"), json!({"actions": [], "conditions": conditions}));
    }
    let body = json!({"actions": ["notify", {"set_tweak": "highlight"}], "pattern": "cake"});
    rule(&carol, "content", "cake", body.clone());
    rule(&bob, "content", "cake", body);
    let before = [&bob, &carol].map(|user| unread(user, &room));
    let content = json!({"msgtype": "m.text", "body": "cake", "x": "a".repeat(50_000)});
    say(&alice, &room, content);
    let [of_bob, of_carol] = [&bob, &carol].map(|user| unread(user, &room));
    assert_eq!(of_bob, (before[0].0 + 1, before[0].1), "as by the predefined rules");
    assert_eq!(of_carol, (before[1].0 + 1, before[1].1 + 1));
}

#[test]
fn rules_that_are_put_at_the_same_moment_are_all_there() {
    let server = TestServer::start();
    let alice = server.user("alice");
    std::thread::scope(|scope| {
        for number in 0..12 {
            let alice = &alice;
            scope.spawn(move || {
                let id = format!("rule{number}");
                rule(alice, "content", &id, json!({"actions": ["notify"], "pattern": id}));
                if number % 3 == 0 {
                    alice.request("DELETE", &format!("{V3}/pushrules/global/content/{id}"), None);
                }
            });
        }
    });
    let rules = alice.get(&format!("{V3}/pushrules/global/"));
    let own = rules["content"].as_array().expect("a list").iter().filter(|rule| rule["default"] == false);
    let mut ids: Vec<&str> = own.filter_map(|rule| rule["rule_id"].as_str()).collect();
    ids.sort_unstable();
    assert_eq!(ids, ["rule1", "rule10", "rule11", "rule2", "rule4", "rule5", "rule7", "rule8"]);
}
