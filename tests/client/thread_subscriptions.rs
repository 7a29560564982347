//! Threads that users subscribe to (MSC4306): what is answered, what it makes of notifications, and how a user's other devices
//! learn of it (MSC4308), by both dialects of sliding sync and by the pages behind it.

use crate::common::client::{V3, one_list, room_path, slide, sliding_path, sync};
use crate::common::gateway::Gateway;
use doorstep::TestServer;
use doorstep::internals::Administrator;
use doorstep::protocol::UserId;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const EXTENSION: &str = "io.element.msc4308.thread_subscriptions";
const PAGES: &str = "/_matrix/client/unstable/io.element.msc4308/thread_subscriptions";
const NOT_IN_THREAD: &str = "IO.ELEMENT.MSC4306.M_NOT_IN_THREAD";
const CONFLICT: &str = "IO.ELEMENT.MSC4306.M_CONFLICTING_UNSUBSCRIPTION";
const UNSUBSCRIBED_RULE: &str = ".io.element.msc4306.rule.unsubscribed_thread";
const SUBSCRIBED_RULE: &str = ".io.element.msc4306.rule.subscribed_thread";

fn subscription_path(room: &str, root: &str) -> String {
    let (room, root) = (segment(room), segment(root));
    format!("/_matrix/client/unstable/io.element.msc4306/rooms/{room}/thread/{root}/subscription")
}

/// The status of a request about a subscription, and its errcode if it has one.
fn ask(user: &TestUser, method: &str, (room, root): (&str, &str), body: Option<Value>) -> (u16, String) {
    let (status, answer) = user.request(method, &subscription_path(room, root), body);
    (status, answer["errcode"].as_str().unwrap_or_default().to_owned())
}

fn ok() -> (u16, String) {
    (200, String::new())
}

fn not_found() -> (u16, String) {
    (404, "M_NOT_FOUND".to_owned())
}

#[track_caller]
fn subscribe(user: &TestUser, thread: (&str, &str)) {
    assert_eq!(ask(user, "PUT", thread, Some(json!({}))), ok());
}

fn subscribe_because_of(user: &TestUser, thread: (&str, &str), cause: &str) -> (u16, String) {
    ask(user, "PUT", thread, Some(json!({ "automatic": cause })))
}

#[track_caller]
fn unsubscribe(user: &TestUser, thread: (&str, &str)) {
    assert_eq!(ask(user, "DELETE", thread, None), ok());
}

/// Whether a client subscribed by itself; none if nobody did.
#[track_caller]
fn automatic(user: &TestUser, (room, root): (&str, &str)) -> Option<bool> {
    let (status, answer) = user.request("GET", &subscription_path(room, root), None);
    match status {
        200 => Some(answer["automatic"].as_bool().expect("true or false")),
        404 => None,
        _ => panic!("{answer}"),
    }
}

fn say(user: &TestUser, room: &str, content: Value) -> String {
    user.send_event(room, "m.room.message", content)
}

fn reply_in(user: &TestUser, (room, root): (&str, &str), body: &str) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    say(user, room, json!({ "msgtype": "m.text", "body": body, "m.relates_to": relation }))
}

fn mention_in(user: &TestUser, (room, root): (&str, &str), whom: &TestUser) -> String {
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    let mentions = json!({ "user_ids": [whom.id()] });
    say(
        user,
        room,
        json!({ "msgtype": "m.text", "body": "you", "m.relates_to": relation, "m.mentions": mentions }),
    )
}

/// A room of three, so that it is no direct one, and a message of alice's in it.
fn scene(server: &TestServer) -> (TestUser, TestUser, TestUser, String, String) {
    let (alice, bob, carol) = (server.user("alice"), server.user("bob"), server.user("carol"));
    let room = alice.create_room();
    bob.join(&room);
    carol.join(&room);
    let root = alice.send(&room, "the root");
    (alice, bob, carol, room, root)
}

/// Notifications and highlights in a room with all its threads.
fn unread(user: &TestUser, room: &str) -> (u64, u64) {
    let counts = &sync(user, "")["rooms"]["join"][room]["unread_notifications"];
    let count = |name: &str| counts[name].as_u64().expect("a count");
    (count("notification_count"), count("highlight_count"))
}

fn with_extension(limit: Option<u64>) -> Value {
    let mut body = one_list(20, 1, &json!([]));
    body["extensions"][EXTENSION] = json!({ "enabled": true });
    if let Some(limit) = limit {
        body["extensions"][EXTENSION]["limit"] = limit.into();
    }
    body
}

/// The threads that an answer or a page tells of, by `subscribed` or `unsubscribed`.
fn told(changes: &Value, what: &str, room: &str) -> Vec<String> {
    changes[what][room].as_object().into_iter().flatten().map(|(root, _)| root.clone()).collect()
}

fn bump_stamp(changes: &Value, what: &str, (room, root): (&str, &str)) -> i64 {
    changes[what][room][root]["bump_stamp"].as_i64().expect("a bump stamp")
}

fn is_told(answer: &Value) -> bool {
    answer["extensions"].get(EXTENSION).is_some()
}

#[test]
fn a_thread_is_subscribed_to_read_back_and_unsubscribed_from_again_and_again() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    assert_eq!(ask(&bob, "GET", thread, None), not_found());
    for _ in 0..2 {
        unsubscribe(&bob, thread);
        for _ in 0..2 {
            subscribe(&bob, thread);
            assert_eq!(automatic(&bob, thread), Some(false));
        }
        unsubscribe(&bob, thread);
        assert_eq!(ask(&bob, "GET", thread, None), not_found());
    }
    assert_eq!(automatic(&alice, thread), None, "everybody for themselves");
    let versions = alice.get("/_matrix/client/versions");
    assert_eq!(versions["unstable_features"]["org.matrix.msc4306"], true);
}

#[test]
fn what_a_client_does_by_itself_never_undoes_what_its_user_wished() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    let first = mention_in(&alice, thread, &bob);
    assert_eq!(subscribe_because_of(&bob, thread, &first), ok());
    assert_eq!(automatic(&bob, thread), Some(true));
    subscribe(&bob, thread);
    assert_eq!(automatic(&bob, thread), Some(false));
    assert_eq!(subscribe_because_of(&bob, thread, &first), ok());
    assert_eq!(automatic(&bob, thread), Some(false), "as the user wished");
    // A device that was off comes with what the user has seen when they unsubscribed.
    unsubscribe(&bob, thread);
    assert_eq!(subscribe_because_of(&bob, thread, &first), (409, CONFLICT.to_owned()));
    assert_eq!(automatic(&bob, thread), None);
    // What comes after that is a new reason, and so is the user's wish.
    let later = mention_in(&alice, thread, &bob);
    assert_eq!(subscribe_because_of(&bob, thread, &later), ok());
    assert_eq!(automatic(&bob, thread), Some(true));
    unsubscribe(&bob, thread);
    subscribe(&bob, thread);
    assert_eq!(automatic(&bob, thread), Some(false));
}

#[test]
fn a_cause_is_an_event_of_the_thread_that_the_user_sees() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    let reply = reply_in(&alice, thread, "here");
    let beside = alice.send(&room, "beside it");
    let other = reply_in(&alice, (&room, &beside), "in another one");
    for cause in [&beside, &other, &root] {
        assert_eq!(subscribe_because_of(&bob, thread, cause), (400, NOT_IN_THREAD.to_owned()));
    }
    let elsewhere = alice.create_room();
    let secret = alice.send(&elsewhere, "of another room");
    for cause in ["$nobody-knows-it", &*secret] {
        assert_eq!(subscribe_because_of(&bob, thread, cause), not_found());
    }
    assert_eq!(subscribe_because_of(&bob, thread, "no id"), (400, "M_INVALID_PARAM".to_owned()));
    assert_eq!(ask(&bob, "PUT", thread, Some(json!({ "automatic": 7 }))), (400, "M_BAD_JSON".to_owned()));
    assert_eq!(automatic(&bob, thread), None);
    // An edit of a reply, which may mention somebody, is in its thread.
    let edit = json!({ "rel_type": "m.replace", "event_id": reply });
    let new = json!({ "msgtype": "m.text", "body": "here, bob" });
    let edit = json!({ "msgtype": "m.text", "body": "*", "m.new_content": new, "m.relates_to": edit });
    let edit = say(&alice, &room, edit);
    assert_eq!(subscribe_because_of(&bob, thread, &edit), ok());
}

#[test]
fn nobody_learns_by_a_subscription_what_they_may_not_see() {
    let server = TestServer::start();
    let (alice, bob, room) = (server.user("alice"), server.user("bob"), server.user("alice2").create_room());
    let hidden = alice.create_room_with(json!({ "preset": "private_chat" }));
    alice.set_state(&hidden, "m.room.history_visibility", "", json!({ "history_visibility": "joined" }));
    let early = alice.send(&hidden, "before bob");
    let thread = (&*hidden, &*early);
    let all = |user: &TestUser, thread: (&str, &str)| {
        ["GET", "PUT", "DELETE"].map(|method| {
            let body = (method == "PUT").then(|| json!({}));
            ask(user, method, thread, body)
        })
    };
    let nothing = [(); 3].map(|()| not_found());
    assert_eq!(all(&bob, thread), nothing, "not in the room");
    alice.invite(&hidden, bob.id());
    bob.join(&hidden);
    assert_eq!(all(&bob, thread), nothing, "from before they came");
    let late = alice.send(&hidden, "for bob");
    subscribe(&bob, (&hidden, &late));
    assert_eq!(all(&bob, (&hidden, "$nobody-knows-it")), nothing);
    assert_eq!(all(&bob, (&room, &late)), nothing, "of another room");
    assert_eq!(all(&bob, ("!nowhere:localhost", &late)), nothing);
    bob.leave(&hidden);
    assert_eq!(all(&bob, (&hidden, &late)), nothing, "not any more");
    let wrong = |path: &str| bob.request("GET", path, None);
    assert_eq!(wrong(&subscription_path(&room, "no id")).0, 400);
    assert_eq!(wrong(&subscription_path("no room", &late)).0, 400);
}

#[test]
fn a_reply_notifies_who_is_subscribed_and_none_of_the_others_who_follow_threads() {
    let server = TestServer::start();
    let (alice, bob, carol, room, root) = scene(&server);
    let dave = server.user("dave");
    dave.join(&room);
    let other_root = alice.send(&room, "another root");
    let thread = (&*room, &*root);
    subscribe(&bob, thread);
    subscribe(&carol, (&room, &other_root));
    let before = [&bob, &carol, &dave].map(|user| unread(user, &room));
    reply_in(&alice, thread, "to whom it may concern");
    let now = [&bob, &carol, &dave].map(|user| unread(user, &room));
    let more = |at: usize| (now[at].0 - before[at].0, now[at].1 - before[at].1);
    assert_eq!(more(0), (1, 0), "subscribed");
    assert_eq!(more(1), (0, 0), "subscribed to another one");
    assert_eq!(more(2), (1, 0), "dave's client knows no subscriptions, and tells as it always did");
    // Whoever is mentioned hears of it in any case.
    mention_in(&alice, thread, &carol);
    assert_eq!(unread(&carol, &room), (before[1].0 + 1, before[1].1 + 1));
    // So does a subscriber of a room that is silent, and nobody else.
    for user in [&bob, &carol, &dave] {
        user.put(
            &format!("{V3}/pushrules/global/room/{}", segment(&room)),
            json!({ "actions": ["dont_notify"] }),
        );
    }
    let before = [&bob, &carol, &dave].map(|user| unread(user, &room));
    reply_in(&alice, thread, "in silence");
    alice.send(&room, "not in a thread");
    let now = [&bob, &carol, &dave].map(|user| unread(user, &room));
    assert_eq!([0, 1, 2].map(|at| now[at].0 - before[at].0), [1, 0, 0]);
    // A notice is none, whoever is subscribed.
    let relation = json!({ "rel_type": "m.thread", "event_id": root });
    say(&alice, &room, json!({ "msgtype": "m.notice", "body": "I am a bot", "m.relates_to": relation }));
    assert_eq!(unread(&bob, &room), now[0]);
    unsubscribe(&bob, thread);
    reply_in(&alice, thread, "without them");
    assert_eq!(unread(&bob, &room), now[0]);
}

#[test]
fn a_gateway_hears_of_the_threads_that_the_user_is_subscribed_to_with_a_sound() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let gateway = Gateway::start();
    gateway.set_for(&bob, "phone", &json!({}));
    let other_root = alice.send(&room, "another root");
    gateway.wait_for(&other_root);
    subscribe(&bob, (&room, &root));
    let unheard = reply_in(&alice, (&room, &other_root), "for nobody");
    let heard = reply_in(&alice, (&room, &root), "for them");
    let sent = gateway.wait_for(&heard);
    assert_eq!(sent["devices"][0]["tweaks"], json!({ "sound": "default" }));
    assert!(!gateway.event_ids().contains(&unheard));
}

#[test]
fn the_rules_stand_between_those_for_content_and_those_for_rooms_and_are_the_servers() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let global = bob.get(&format!("{V3}/pushrules/global/"));
    let condition = |subscribed: bool| json!([{ "kind": "io.element.msc4306.thread_subscription", "subscribed": subscribed }]);
    let sound = json!(["notify", { "set_tweak": "sound", "value": "default" }]);
    let rule = |id: &str, subscribed: bool, actions: &Value| json!({ "rule_id": id, "default": true, "enabled": true, "conditions": condition(subscribed), "actions": actions });
    let expected = [rule(UNSUBSCRIBED_RULE, false, &json!([])), rule(SUBSCRIBED_RULE, true, &sound)];
    assert_eq!(global["postcontent"], json!(expected));
    let in_sync = sync(&bob, "");
    let data = in_sync["account_data"]["events"].as_array().expect("account data");
    let of_rules = data.iter().find(|event| event["type"] == "m.push_rules").expect("the rules");
    assert_eq!(of_rules["content"]["global"]["postcontent"], json!(expected));
    let path = |id: &str| format!("{V3}/pushrules/global/postcontent/{id}");
    assert_eq!(bob.get(&path(SUBSCRIBED_RULE)), expected[1]);
    // There are no others of this kind.
    let own = bob.request("PUT", &path("mine"), Some(json!({ "actions": [], "conditions": [] })));
    assert_eq!((own.0, &own.1["errcode"]), (400, &json!("M_INVALID_PARAM")));
    assert_eq!(bob.request("DELETE", &path(SUBSCRIBED_RULE), None).0, 404);
    // They are changed like the other predefined ones.
    subscribe(&bob, (&room, &alice.send(&room, "another root")));
    let before = unread(&bob, &room).0;
    reply_in(&alice, (&room, &root), "unheard");
    assert_eq!(unread(&bob, &room).0, before);
    bob.put(&format!("{}/enabled", path(UNSUBSCRIBED_RULE)), json!({ "enabled": false }));
    reply_in(&alice, (&room, &root), "heard");
    assert_eq!(unread(&bob, &room).0, before + 1);
    bob.put(&format!("{}/enabled", path(UNSUBSCRIBED_RULE)), json!({ "enabled": true }));
    bob.put(&format!("{}/actions", path(UNSUBSCRIBED_RULE)), json!({ "actions": sound }));
    reply_in(&alice, (&room, &root), "heard again");
    assert_eq!(unread(&bob, &room).0, before + 2);
    assert_eq!(bob.get(&path(UNSUBSCRIBED_RULE))["actions"], sound);
}

#[test]
fn a_rule_of_the_users_own_may_ask_for_a_subscription() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let condition = json!({ "kind": "io.element.msc4306.thread_subscription", "subscribed": true });
    bob.put(
        &format!("{V3}/pushrules/global/override/loud"),
        json!({ "conditions": [condition], "actions": ["notify", { "set_tweak": "highlight" }] }),
    );
    subscribe(&bob, (&room, &root));
    let before = unread(&bob, &room);
    reply_in(&alice, (&room, &root), "loud");
    assert_eq!(unread(&bob, &room), (before.0 + 1, before.1 + 1));
}

#[test]
fn the_other_phone_hears_at_once_and_once_and_of_the_last_change_only() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    let body = with_extension(None);
    let first = slide(&bob, None, &body);
    assert!(!is_told(&first), "nothing to tell");
    let second = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| bob.post(&sliding_path(Some(&first), 60_000), body.clone()));
        while server.homeserver().notifier.waiting() == 0 {
            std::thread::yield_now();
        }
        subscribe(&bob, thread);
        waiting.join().expect("an answer")
    });
    let changes = &second["extensions"][EXTENSION];
    assert_eq!(changes["subscribed"][&room][&root]["automatic"], false);
    assert!(changes.get("prev_batch").is_none());
    let subscribed_at = bump_stamp(changes, "subscribed", thread);
    // Again if the answer was lost; once if it was not.
    assert_eq!(slide(&bob, Some(&first), &body)["extensions"][EXTENSION], *changes);
    let third = slide(&bob, Some(&second), &body);
    assert!(!is_told(&third));
    unsubscribe(&bob, thread);
    subscribe(&bob, thread);
    unsubscribe(&bob, thread);
    let fourth = slide(&bob, Some(&third), &body);
    let changes = &fourth["extensions"][EXTENSION];
    assert_eq!(told(changes, "subscribed", &room), Vec::<String>::new());
    assert!(bump_stamp(changes, "unsubscribed", thread) > subscribed_at);
    // What changes nothing is no news, and what is another user's is none of bob's.
    unsubscribe(&bob, thread);
    subscribe(&alice, thread);
    assert!(!is_told(&slide(&bob, Some(&fourth), &body)));
}

#[test]
fn both_dialects_tell_who_asks_for_it_later_everything() {
    let server = TestServer::start();
    let (_, bob, _, room, root) = scene(&server);
    subscribe(&bob, (&room, &root));
    let plain = one_list(20, 1, &json!([]));
    let first = slide(&bob, None, &plain);
    assert!(!is_told(&first), "not asked for");
    let second = slide(&bob, Some(&first), &with_extension(None));
    assert_eq!(told(&second["extensions"][EXTENSION], "subscribed", &room), [&*root]);
    let third = slide(&bob, Some(&second), &with_extension(None));
    assert!(!is_told(&third));
    // Who has not asked for a while may have missed something.
    let fourth = slide(&bob, Some(&third), &plain);
    assert!(is_told(&slide(&bob, Some(&fourth), &with_extension(None))));
    let accepted = json!({ "extensions": { EXTENSION: { "enabled": true } } });
    let answer = bob.post("/_matrix/client/v4/sync", accepted);
    assert_eq!(told(&answer["extensions"][EXTENSION], "subscribed", &room), [&*root]);
    let off = json!({ "extensions": { EXTENSION: { "enabled": false } } });
    assert!(!is_told(&bob.post("/_matrix/client/v4/sync", off)));
}

/// Follows the pages behind an answer to their end: the roots of each page.
fn pages(user: &TestUser, room: &str, query: &str, first: Option<String>) -> Vec<Vec<String>> {
    let (mut pages, mut from) = (Vec::new(), first);
    loop {
        let from_part = from.as_ref().map(|from| format!("&from={}", segment(from))).unwrap_or_default();
        let page = user.get(&format!("{PAGES}?dir=b{query}{from_part}"));
        let mut roots = told(&page, "subscribed", room);
        roots.extend(told(&page, "unsubscribed", room));
        pages.push(roots);
        match page["end"].as_str() {
            Some(end) => from = Some(end.to_owned()),
            None => return pages,
        }
    }
}

#[test]
fn what_an_answer_has_no_room_for_is_caught_up_page_by_page_and_nothing_twice() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    subscribe(&bob, (&room, &root));
    let body = with_extension(Some(2));
    let before = slide(&bob, None, &body);
    assert!(before["extensions"][EXTENSION].get("prev_batch").is_none(), "that is all");
    let roots: Vec<String> = (0..7).map(|n| alice.send(&room, &n.to_string())).collect();
    roots.iter().for_each(|root| subscribe(&bob, (&room, root)));
    unsubscribe(&bob, (&room, &roots[0]));
    let answer = slide(&bob, Some(&before), &body);
    let changes = &answer["extensions"][EXTENSION];
    assert_eq!(told(changes, "subscribed", &room), [&*roots[6]]);
    assert_eq!(told(changes, "unsubscribed", &room), [&*roots[0]], "the last two");
    // As clients do: from where the answer ended to the `pos` of their request.
    let prev_batch = changes["prev_batch"].as_str().expect("there is more").to_owned();
    let to = segment(before["pos"].as_str().expect("a pos"));
    let rest = pages(&bob, &room, &format!("&limit=2&to={to}"), Some(prev_batch.clone()));
    assert_eq!(rest.iter().map(Vec::len).collect::<Vec<_>>(), [2, 2, 1]);
    let mut rest: Vec<String> = rest.concat();
    rest.sort();
    let mut expected = roots[1..6].to_vec();
    expected.sort();
    assert_eq!(rest, expected);
    // Without an end, all that there ever was; without a start, from now on.
    assert_eq!(pages(&bob, &room, "", Some(prev_batch)).concat().len(), 6);
    assert_eq!(pages(&bob, &room, "&limit=3", None).concat().len(), 8);
    assert!(!is_told(&slide(&bob, Some(&answer), &body)));
}

#[test]
fn a_page_is_asked_for_with_sense_and_has_both_lists_though_they_are_empty() {
    let server = TestServer::start();
    let bob = server.user("bob");
    assert_eq!(bob.get(&format!("{PAGES}?dir=b")), json!({ "subscribed": {}, "unsubscribed": {} }));
    for (query, errcode) in [
        ("", "M_MISSING_PARAM"),
        ("?dir=f", "M_INVALID_PARAM"),
        ("?dir=b&limit=0", "M_INVALID_PARAM"),
        ("?dir=b&limit=-1", "M_INVALID_PARAM"),
        ("?dir=b&from=x", "M_INVALID_PARAM"),
        ("?dir=b&to=x", "M_INVALID_PARAM"),
    ] {
        let (status, answer) = bob.request("GET", &format!("{PAGES}{query}"), None);
        assert_eq!((status, &answer["errcode"]), (400, &json!(errcode)), "{query}");
    }
}

#[test]
fn a_room_that_was_left_says_nothing_and_one_that_is_joined_again_everything() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    subscribe(&bob, thread);
    bob.leave(&room);
    let body = with_extension(None);
    let first = slide(&bob, None, &body);
    assert!(!is_told(&first));
    assert_eq!(pages(&bob, &room, "", None).concat(), Vec::<String>::new());
    bob.join(&room);
    let second = slide(&bob, Some(&first), &body);
    assert_eq!(told(&second["extensions"][EXTENSION], "subscribed", &room), [&*root]);
    assert!(!is_told(&slide(&bob, Some(&second), &body)));
    let before = unread(&bob, &room).0;
    reply_in(&alice, thread, "welcome back");
    assert_eq!(unread(&bob, &room).0, before + 1);
    // What the user wants to hear no more of is forgotten.
    bob.leave(&room);
    bob.post(&room_path(&room, "forget"), json!({}));
    bob.join(&room);
    assert_eq!(automatic(&bob, thread), None);
    assert!(!is_told(&slide(&bob, None, &body)));
}

#[test]
fn a_thread_whose_root_is_redacted_stays_subscribed() {
    let server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    subscribe(&bob, thread);
    alice.put(&room_path(&room, &format!("redact/{}/txn", segment(&root))), json!({}));
    assert_eq!(automatic(&bob, thread), Some(false));
    let before = unread(&bob, &room).0;
    reply_in(&alice, thread, "and still");
    assert_eq!(unread(&bob, &room).0, before + 1);
    unsubscribe(&bob, thread);
    assert_eq!(automatic(&bob, thread), None);
}

#[test]
fn subscriptions_and_connections_outlive_a_restart() {
    let mut server = TestServer::start();
    let (alice, bob, _, room, root) = scene(&server);
    let thread = (&*room, &*root);
    let cause = mention_in(&alice, thread, &bob);
    subscribe(&bob, thread);
    let body = with_extension(None);
    let first = slide(&bob, None, &body);
    unsubscribe(&bob, thread);
    let other_root = alice.send(&room, "another root");
    subscribe(&bob, (&room, &other_root));
    server.restart();
    let second = slide(&bob, Some(&first), &body);
    let changes = &second["extensions"][EXTENSION];
    assert_eq!(told(changes, "subscribed", &room), [&*other_root]);
    assert_eq!(told(changes, "unsubscribed", &room), [&*root]);
    assert_eq!(subscribe_because_of(&bob, thread, &cause), (409, CONFLICT.to_owned()));
    let before = unread(&bob, &room).0;
    reply_in(&alice, thread, "without them");
    reply_in(&alice, (&room, &other_root), "with them");
    assert_eq!(unread(&bob, &room).0, before + 1);
}

#[test]
fn of_a_user_who_is_gone_no_subscription_is_left() {
    let server = TestServer::start();
    let (_, bob, carol, room, root) = scene(&server);
    let hs = server.homeserver();
    let left = |user: &TestUser| {
        let user = UserId::parse(user.id()).expect("a user id");
        let changes = hs.store.read(|db| db.thread_subscription_changes(&user, (0, i64::MAX), 10));
        changes.expect("a database").len()
    };
    subscribe(&bob, (&room, &root));
    subscribe(&carol, (&room, &root));
    assert_eq!((left(&bob), left(&carol)), (1, 1));
    let id = UserId::parse(bob.id()).expect("a user id");
    hs.admin().reset_password(&Administrator::Operator, &id, "open sesame", false).expect("a password");
    let auth = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": bob.id() }, "password": "open sesame" });
    let (status, answer) = bob.request(
        "POST",
        &format!("{V3}/account/deactivate"),
        Some(json!({ "auth": auth, "erase": true })),
    );
    assert_eq!(status, 200, "{answer}");
    assert_eq!((left(&bob), left(&carol)), (0, 1));
}
