//! Users found by name, and the rooms that two have in common, over a real socket.

use crate::common::client::{V3, post, room_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn find(user: &TestUser, term: &str) -> Value {
    user.post(&format!("{V3}/user_directory/search"), json!({ "search_term": term }))
}

fn ids(answer: &Value) -> Vec<&str> {
    answer["results"]
        .as_array()
        .expect("results")
        .iter()
        .filter_map(|user| user["user_id"].as_str())
        .collect()
}

fn set_name(user: &TestUser, name: &str) {
    user.put(&format!("{V3}/profile/{}/displayname", segment(user.id())), json!({ "displayname": name }));
}

fn private_room(user: &TestUser, invited: &[&TestUser]) -> String {
    let ids: Vec<&str> = invited.iter().map(|user| user.id()).collect();
    let room = user.create_room_with(json!({ "preset": "private_chat", "invite": ids }));
    invited.iter().for_each(|user| drop(user.join(&room)));
    room
}

#[test]
fn users_are_found_by_who_shares_a_room_with_them_or_could_and_by_nobody_else() {
    let server = TestServer::start();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let dave = TestUser::register(server.url(), "dave");
    set_name(&bob, "Bóbby Tables");
    private_room(&alice, &[&bob]);
    for term in ["bob", "BOBBY", "tables", "@bob", bob.id(), "tab bob"] {
        let answer = find(&alice, term);
        assert_eq!(ids(&answer), [bob.id()], "{term}");
        assert_eq!(
            (&answer["results"][0]["display_name"], &answer["limited"]),
            (&json!("Bóbby Tables"), &json!(false))
        );
    }
    for nobody in ["ables", "carol", "alice", "", "@", "  "] {
        assert_eq!(ids(&find(&alice, nobody)), [""; 0], "{nobody}");
    }
    assert_eq!(ids(&find(&carol, "bob")), [""; 0], "no room is shared");
    let room = dave.create_room();
    bob.join(&room);
    assert_eq!(ids(&find(&carol, "bob")), [bob.id()], "in a public room");

    // Whom one ignores, who has left, and who is gone, is not found.
    let ignored = format!("{V3}/user/{}/account_data/m.ignored_user_list", segment(carol.id()));
    carol.put(&ignored, json!({ "ignored_users": { bob.id(): {} } }));
    assert_eq!(ids(&find(&carol, "bob")), [""; 0]);
    assert_eq!(ids(&find(&carol, "dave")), [dave.id()]);
    let (_, asked) = post(&dave, "account/deactivate", json!({}));
    let auth = json!({ "type": "m.login.password", "password": "dave", "session": asked["session"],
        "identifier": { "type": "m.id.user", "user": "dave" } });
    dave.post(&format!("{V3}/account/deactivate"), json!({ "auth": auth }));
    assert_eq!(ids(&find(&carol, "dave")), [""; 0]);
}

#[test]
fn everybody_is_found_where_the_settings_say_so_and_a_name_of_one_room_stays_there() {
    let server = TestServer::start_with(|config| config.user_directory_of_all = true);
    let [alice, bob] = ["alice", "bob"].map(|name| server.user(name));
    set_name(&bob, "Robert");
    assert_eq!(ids(&find(&alice, "rob")), [bob.id()]);
    let room = private_room(&bob, &[&alice]);
    bob.set_state(
        &room,
        "m.room.member",
        bob.id(),
        json!({ "membership": "join", "displayname": "Nightwing" }),
    );
    assert_eq!(ids(&find(&alice, "nightwing")), [""; 0]);
    assert_eq!(find(&alice, "robert")["results"][0]["display_name"], "Robert");
}

#[test]
fn users_are_found_by_names_that_are_written_otherwise_or_with_marks() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let bob = server.user("bob");
    private_room(&alice, &[&bob]);
    for (name, terms) in [
        ("Γιώργος Παππάς", &["ΓΙΩΡΓΟΣ", "γιωργος", "παππας"][..]),
        ("Jörg Weiß", &["weiss", "WEIẞ", "jorg weiß"]),
        ("İsmail Işık", &["ismail", "IŞIK", "ışık"]),
        ("Сергей Королёв", &["сергей", "королев", "КОРОЛЁВ"]),
        ("प्रिया (हिन्दी)", &["हिन्दी", "प्रिया", "हिन्"]),
        ("சுந்தர் பிச்சை", &["பிச்சை", "சுந்தர்"]),
    ] {
        set_name(&bob, name);
        for term in terms {
            assert_eq!(ids(&find(&alice, term)), [bob.id()], "{term}");
        }
    }
    set_name(&bob, "Сергей");
    assert_eq!(ids(&find(&alice, "сергеи")), [""; 0]);
}

#[test]
fn users_of_other_servers_are_found_as_their_rooms_know_them_and_answers_are_bounded() {
    let (here, there) = TestServer::pair();
    let (alice, zoe) = (here.user("alice"), there.user("zoe"));
    set_name(&zoe, "Zoë Far-Away");
    let room = alice.create_room();
    zoe.join_via(&room, &[here.name()]);
    alice.sync_until("the join", |_| {
        alice.membership_of(&room, zoe.id()).filter(|membership| membership == "join")
    });
    let answer = find(&alice, "zoe far");
    assert_eq!(answer["results"], json!([{ "user_id": zoe.id(), "display_name": "Zoë Far-Away" }]));

    for number in 0..60 {
        here.user(&format!("walrus{number}")).join(&room);
    }
    let limited = |limit: Value| {
        alice.post(&format!("{V3}/user_directory/search"), json!({ "search_term": "walrus", "limit": limit }))
    };
    for (limit, most) in [(json!(null), 10), (json!(5), 5), (json!(10_000), 50), (json!(u64::MAX), 50)] {
        let answer = limited(limit);
        assert_eq!((ids(&answer).len(), &answer["limited"]), (most, &json!(true)));
    }
    for (wrong, errcode) in [
        (json!({}), "M_BAD_JSON"),
        (json!({ "search_term": 7 }), "M_BAD_JSON"),
        (json!({ "search_term": "a", "limit": -1 }), "M_BAD_JSON"),
        (json!({ "search_term": "a".repeat(10_000) }), "M_INVALID_PARAM"),
    ] {
        let (status, answer) = post(&alice, "user_directory/search", wrong.clone());
        assert_eq!((status, answer["errcode"].as_str()), (400, Some(errcode)), "{wrong}");
    }
}

#[test]
fn the_rooms_that_two_users_share_are_told_a_portion_at_a_time() {
    let server = TestServer::start();
    let [alice, bob, carol] = ["alice", "bob", "carol"].map(|name| server.user(name));
    let path = |user: &str| format!("/_matrix/client/v1/mutual_rooms?user_id={}", segment(user));
    let old_path = format!(
        "/_matrix/client/unstable/uk.half-shot.msc2666/user/mutual_rooms?user_id={}",
        segment(bob.id())
    );
    let room = private_room(&alice, &[&bob]);
    alice.create_room();
    bob.create_room();
    let answer = alice.get(&path(bob.id()));
    assert_eq!(answer, json!({ "joined": [room], "count": 1 }));
    assert_eq!(alice.get(&old_path), answer);
    assert_eq!(alice.get(&path(carol.id())), json!({ "joined": [], "count": 0 }));
    assert_eq!(alice.get(&path("@nobody:elsewhere.example")), json!({ "joined": [], "count": 0 }));
    assert_eq!(
        server.user("dora").get(&path(bob.id()))["count"],
        0,
        "the rooms of others are none of theirs"
    );

    for _ in 0..104 {
        private_room(&alice, &[&bob]);
    }
    let first = alice.get(&path(bob.id()));
    let next = first["next_batch"].as_str().expect("more");
    assert_eq!((first["joined"].as_array().unwrap().len(), &first["count"]), (100, &json!(105)));
    let second = alice.get(&format!("{}&from={next}", path(bob.id())));
    assert_eq!((second["joined"].as_array().unwrap().len(), second.get("next_batch")), (5, None));
    let old = alice.get(&old_path);
    let second =
        alice.get(&format!("{old_path}&batch_token={}", old["next_batch_token"].as_str().expect("more")));
    assert_eq!(second["joined"].as_array().unwrap().len(), 5);

    for wrong in [
        path(alice.id()),
        path("bob"),
        path("@Bob:example.org"),
        "/_matrix/client/v1/mutual_rooms".to_owned(),
        format!("{}&from=-1", path(bob.id())),
        format!("{}&from=99999999999999999999", path(bob.id())),
        format!("{}&from=", path(bob.id())),
    ] {
        assert_eq!(alice.request("GET", &wrong, None).0, 400, "{wrong}");
    }
    bob.post(&room_path(&room, "leave"), json!({}));
    assert_eq!(alice.get(&path(bob.id()))["count"], 104);
}
