//! Guests: how they come, what they may do, where they may be, and how one becomes a user.

use crate::common::client::{V3, knock, room_path};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::ROUTES;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

fn with_guests() -> TestServer {
    TestServer::start_with(|config| (config.guests, config.rate_limits) = (true, false))
}

fn register(server: &TestServer, query: &str, body: Value) -> (u16, Value) {
    TestUser::new(server.url(), "", "").request("POST", &format!("{V3}/register{query}"), Some(body))
}

fn guest(server: &TestServer) -> TestUser {
    let (status, answer) = register(server, "?kind=guest", json!({"initial_device_display_name": "a tab"}));
    assert_eq!(status, 200, "{answer}");
    TestUser::new(server.url(), answer["user_id"].as_str().unwrap(), answer["access_token"].as_str().unwrap())
}

fn room_for(user: &TestUser, access: &str) -> String {
    user.create_room_with(json!({"preset": "public_chat", "initial_state": [
        {"type": "m.room.guest_access", "content": {"guest_access": access}},
        {"type": "m.room.history_visibility", "content": {"history_visibility": "world_readable"}}]}))
}

#[test]
fn there_are_guests_only_where_they_are_wanted_and_none_of_them_administers_the_server() {
    let closed = TestServer::start();
    refused(register(&closed, "?kind=guest", json!({})), 403, "M_GUEST_ACCESS_FORBIDDEN");
    let server = with_guests();
    let first = guest(&server);
    let whoami = first.get(&format!("{V3}/account/whoami"));
    assert_eq!((&whoami["is_guest"], &whoami["user_id"]), (&json!(true), &json!(first.id())));
    refused(
        first.request("GET", &format!("/_matrix/client/v1/admin/lock/{}", segment(first.id())), None),
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
    // The first user is the administrator, whoever looked in before.
    let alice = server.user("alice");
    assert!(alice.get(&format!("{V3}/capabilities"))["capabilities"].get("m.account_moderation").is_some());
    assert_eq!(alice.get(&format!("{V3}/account/whoami"))["is_guest"], false);
    let login = json!({"type": "m.login.password", "identifier": {"type": "m.id.user", "user": first.id()}, "password": ""});
    refused(first.request("POST", &format!("{V3}/login"), Some(login)), 403, "M_FORBIDDEN");
}

/// "The following API endpoints are allowed to be accessed by guest accounts", and what stands beside them here:
/// joining by the path that clients use, delayed events (MSC4140), logging out, and what this server can do.
const FOR_GUESTS: [&str; 32] = [
    "GET /rooms/{roomId}/state",
    "GET /rooms/{roomId}/context/{eventId}",
    "GET /rooms/{roomId}/event/{eventId}",
    "GET /rooms/{roomId}/state/{eventType}/{stateKey?}",
    "GET /rooms/{roomId}/messages",
    "GET /rooms/{roomId}/members",
    "GET /rooms/{roomId}/initialSync",
    "GET /sync",
    "GET /events",
    "POST /rooms/{roomId}/join",
    "POST /rooms/{roomId}/leave",
    "PUT /rooms/{roomId}/send/{eventType}/{txnId}",
    "PUT /rooms/{roomId}/state/{eventType}/{stateKey?}",
    "PUT /sendToDevice/{eventType}/{txnId}",
    "PUT /profile/{userId}/{keyName}",
    "DELETE /profile/{userId}/{keyName}",
    "GET /devices",
    "GET /devices/{deviceId}",
    "PUT /devices/{deviceId}",
    "GET /account/whoami",
    "POST /keys/upload",
    "POST /keys/query",
    "POST /keys/claim",
    "GET /_matrix/client/v1/media/download/{serverName}/{mediaId}",
    "GET /_matrix/client/v1/media/download/{serverName}/{mediaId}/{fileName}",
    "GET /_matrix/client/v1/media/thumbnail/{serverName}/{mediaId}",
    "PUT /_matrix/client/unstable/org.matrix.msc4140/rooms/{roomId}/delayed_event/{eventType}/{txnId}",
    "GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events",
    "GET /_matrix/client/unstable/org.matrix.msc4140/delayed_events/{delayId}",
    "POST /join/{roomIdOrAlias}",
    "POST /logout",
    "GET /capabilities",
];

#[test]
fn guests_may_call_what_the_specification_lists_and_nothing_else() {
    let server = with_guests();
    let guest = guest(&server);
    for route in
        ROUTES.iter().filter(|route| route.handler.who() == "a user" || route.handler.who() == "an admin")
    {
        let method = route.method.as_str();
        let named = format!("{method} {}", route.path.trim_start_matches(V3));
        if FOR_GUESTS.contains(&named.as_str()) {
            assert!(route.guests, "{named} is for guests");
            continue;
        }
        let path: String = route
            .path
            .split('/')
            .map(|part| if part.starts_with('{') { "%21x%3Ay.example" } else { part })
            .collect::<Vec<_>>()
            .join("/");
        refused(
            guest.request(method, &path, Some(json!({})).filter(|_| method != "GET")),
            403,
            "M_GUEST_ACCESS_FORBIDDEN",
        );
    }
}

#[test]
fn guests_have_events_sent_later_and_look_after_them() {
    let server = with_guests();
    let (alice, guest) = (server.user("alice"), guest(&server));
    let room = room_for(&alice, "can_join");
    guest.join(&room);
    let delayed = "/_matrix/client/unstable/org.matrix.msc4140";
    let path = format!("{delayed}/rooms/{}/delayed_event/m.room.message/1", segment(&room));
    let body = json!({ "delay": 60_000, "content": { "msgtype": "m.text", "body": "gone" } });
    let id = guest.put(&path, body)["delay_id"].as_str().expect("an id").to_owned();
    assert_eq!(guest.get(&format!("{delayed}/delayed_events"))["delayed_events"][0]["delay_id"], id);
    assert_eq!(guest.get(&format!("{delayed}/delayed_events/{id}"))["type"], "m.room.message");
    guest.post(&format!("{delayed}/delayed_events/{id}/restart"), json!({}));
    guest.post(&format!("{delayed}/delayed_events/{id}"), json!({ "action": "send" }));
    alice.wait_for(&room, |event| event["sender"] == guest.id() && event["content"]["body"] == "gone");
}

#[test]
fn guests_come_into_rooms_that_let_them_in_and_go_when_these_do_no_more() {
    let (server, other) = (with_guests(), TestServer::start());
    let (alice, guest) = (server.user("alice"), guest(&server));
    let (open, closed, silent) =
        (room_for(&alice, "can_join"), room_for(&alice, "forbidden"), room_for(&alice, "sometimes"));
    for room in [&closed, &silent] {
        for path in [room_path(room, "join"), format!("{V3}/join/{}", segment(room))] {
            refused(guest.request("POST", &path, Some(json!({}))), 403, "M_GUEST_ACCESS_FORBIDDEN");
        }
        alice.invite(room, guest.id());
        let own = room_path(room, &format!("state/m.room.member/{}", segment(guest.id())));
        refused(
            guest.request("PUT", &own, Some(json!({"membership": "join"}))),
            403,
            "M_GUEST_ACCESS_FORBIDDEN",
        );
        // Looking in is another thing.
        guest.get(&room_path(room, "messages?dir=b"));
    }
    refused(knock(&guest, &closed, server.name()), 403, "M_GUEST_ACCESS_FORBIDDEN");
    let far = other.user("bob").create_room_with(json!({"preset": "public_chat"}));
    let path = format!("{V3}/join/{}?via={}", segment(&far), other.name());
    refused(guest.request("POST", &path, Some(json!({}))), 403, "M_GUEST_ACCESS_FORBIDDEN");

    guest.join(&open);
    let name = format!("{V3}/profile/{}", segment(guest.id()));
    guest.put(&format!("{name}/displayname"), json!({"displayname": "Somebody"}));
    refused(
        guest.request("PUT", &format!("{name}/avatar_url"), Some(json!({"avatar_url": "mxc://x/y"}))),
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
    guest.send(&open, "hello");
    let bob = server.user("bob");
    bob.join(&open);
    alice.set_state(&open, "m.room.guest_access", "", json!({"guest_access": "forbidden"}));
    wait_until("the guest is gone", || alice.membership_of(&open, guest.id()).as_deref() == Some("leave"));
    assert_eq!(alice.membership_of(&open, bob.id()).as_deref(), Some("join"));
    refused(
        guest.request("POST", &room_path(&open, "join"), Some(json!({}))),
        403,
        "M_GUEST_ACCESS_FORBIDDEN",
    );
}

#[test]
fn a_guest_becomes_a_user_with_their_name_and_their_rooms() {
    let server = with_guests();
    let (alice, guest) = (server.user("alice"), guest(&server));
    let room = room_for(&alice, "can_join");
    guest.join(&room);
    let localpart = guest.id()[1..].split(':').next().unwrap();
    let body = |name: &str, token: &str| {
        json!({"username": name, "password": "secret", "guest_access_token": token,
        "auth": {"type": "m.login.dummy"}})
    };
    refused(register(&server, "", body("another", guest.token())), 400, "M_INVALID_PARAM");
    refused(register(&server, "", body(localpart, "nonsense")), 403, "M_FORBIDDEN");
    refused(register(&server, "", body("alice", alice.token())), 403, "M_FORBIDDEN");
    refused(
        register(
            &server,
            "",
            json!({"username": localpart, "password": "x", "auth": {"type": "m.login.dummy"}}),
        ),
        400,
        "M_USER_IN_USE",
    );
    let (status, answer) = register(&server, "", body(localpart, guest.token()));
    assert_eq!((status, &answer["user_id"]), (200, &json!(guest.id())), "{answer}");
    let user = TestUser::new(server.url(), guest.id(), answer["access_token"].as_str().unwrap());
    assert_eq!(user.get(&format!("{V3}/account/whoami"))["is_guest"], false);
    assert_eq!(user.get(&format!("{V3}/joined_rooms"))["joined_rooms"], json!([room]));
    // No guest any more, for whom a room would be closed.
    alice.set_state(&room, "m.room.guest_access", "", json!({"guest_access": "forbidden"}));
    user.send(&room, "still here");
    refused(register(&server, "", body(localpart, user.token())), 403, "M_FORBIDDEN");
}

#[test]
fn a_guest_who_becomes_the_first_user_is_the_administrator_like_any_other_who_is_the_first() {
    let server = with_guests();
    let link =
        server.homeserver().accounts().ensure_first_token().unwrap().expect("a token for the first account");
    for is_first in [true, false] {
        let guest = guest(&server);
        let localpart = guest.id()[1..].split(':').next().unwrap();
        let body = json!({"username": localpart, "password": "secret", "guest_access_token": guest.token(),
            "auth": {"type": "m.login.dummy"}});
        let (status, answer) = register(&server, "", body);
        assert_eq!(status, 200, "{answer}");
        let user = TestUser::new(server.url(), guest.id(), answer["access_token"].as_str().unwrap());
        let (status, told) = user.request("GET", "/_synapse/admin/v2/users", None);
        assert_eq!(status, if is_first { 200 } else { 403 }, "{told}");
        assert!(!server.homeserver().accounts().registration_token_is_valid(&link).unwrap());
    }
}

#[test]
fn a_room_is_looked_into_in_one_answer() {
    let server = with_guests();
    let (alice, guest) = (server.user("alice"), guest(&server));
    let room = room_for(&alice, "can_join");
    let said: Vec<String> = (0..5).map(|n| alice.send(&room, &format!("message {n}"))).collect();
    let look = |user: &TestUser, query: &str| user.get(&room_path(&room, &format!("initialSync{query}")));
    let seen = look(&guest, "?limit=3");
    assert_eq!((&seen["room_id"], &seen["visibility"]), (&json!(room), &json!("private")));
    assert!(seen.get("membership").is_none());
    let ids = |seen: &Value| -> Vec<String> {
        seen["messages"]["chunk"]
            .as_array()
            .unwrap()
            .iter()
            .map(|e| e["event_id"].as_str().unwrap().to_owned())
            .collect()
    };
    assert_eq!(ids(&seen), said[2..]);
    assert!(seen["state"].as_array().unwrap().iter().any(|event| event["type"] == "m.room.create"));
    // Its tokens go on in both directions.
    let earlier = guest.get(&room_path(
        &room,
        &format!("messages?dir=b&limit=2&from={}", seen["messages"]["start"].as_str().unwrap()),
    ));
    assert_eq!(earlier["chunk"][0]["event_id"], said[1]);
    let new = alice.send(&room, "new");
    let from = seen["messages"]["end"].as_str().unwrap();
    let events = format!("{V3}/events?timeout=0&from={from}");
    let stream = guest.get(&format!("{events}&room_id={}", segment(&room)));
    assert_eq!(stream["chunk"][0]["event_id"], new);
    // "As used for room previews".
    refused(guest.request("GET", &events, None), 403, "M_GUEST_ACCESS_FORBIDDEN");
    let later = guest.get(&room_path(
        &room,
        &format!("messages?dir=f&from={}", seen["messages"]["end"].as_str().unwrap()),
    ));
    assert_eq!(later["chunk"][0]["event_id"], new);
    alice.put(
        &format!("{V3}/user/{}/rooms/{}/account_data/org.example", segment(alice.id()), segment(&room)),
        json!({"a": 1}),
    );
    let own = look(&alice, "");
    assert_eq!(
        (&own["membership"], &own["account_data"]),
        (&json!("join"), &json!([{"type": "org.example", "content": {"a": 1}}]))
    );
    let private = alice.create_room();
    refused(guest.request("GET", &room_path(&private, "initialSync"), None), 403, "M_FORBIDDEN");
}

#[test]
fn guests_without_end_take_the_place_of_those_who_were_not_heard_of_for_longest() {
    let server = with_guests();
    let alice = server.user("alice");
    let room = room_for(&alice, "can_join");
    let quiet = guest(&server);
    quiet.join(&room);
    server.advance(std::time::Duration::from_secs(3600));
    let lively = guest(&server);
    lively.join(&room);
    let hs = server.homeserver();
    let login = doorstep::internals::NewLogin::default();
    for _ in 0..1999 {
        server.advance(std::time::Duration::from_millis(1));
        hs.register_guest(&login).unwrap();
    }
    refused(quiet.request("GET", &format!("{V3}/sync"), None), 401, "M_UNKNOWN_TOKEN");
    assert_eq!(alice.membership_of(&room, quiet.id()).as_deref(), Some("leave"));
    lively.get(&format!("{V3}/account/whoami"));
    let kept = hs.store.read(|db| db.count_guests()).unwrap();
    assert_eq!(kept, 2000);
}

#[test]
fn a_guest_does_nothing_by_an_event_that_their_endpoints_refuse() {
    let server = with_guests();
    let (alice, bob, guest) = (server.user("alice"), server.user("bob"), guest(&server));
    let room = room_for(&alice, "can_join");
    guest.post(&room_path(&room, "join"), json!({}));
    let levels = room_path(&room, "state/m.room.power_levels");
    let mut content = alice.get(&levels);
    content["users"][guest.id()] = json!(50);
    alice.put(&levels, content);
    let put = |user: &TestUser, target: &str, query: &str, membership: &str| {
        let path = room_path(&room, &format!("state/m.room.member/{}{query}", segment(target)));
        user.request("PUT", &path, Some(json!({"membership": membership})))
    };
    for query in ["", "?org.matrix.msc4140.delay=1"] {
        for (target, membership) in
            [(bob.id(), "invite"), (bob.id(), "ban"), (bob.id(), "leave"), (guest.id(), "knock")]
        {
            refused(put(&guest, target, query, membership), 403, "M_GUEST_ACCESS_FORBIDDEN");
        }
    }
    assert!(server.user("carol").request("GET", &room_path(&room, "joined_members"), None).0 == 403);
    let profile = json!({"membership": "join", "displayname": "A guest"});
    let own = room_path(&room, &format!("state/m.room.member/{}", segment(guest.id())));
    assert_eq!(guest.request("PUT", &own, Some(profile)).0, 200);
    assert_eq!(put(&guest, guest.id(), "", "leave").0, 200);
    assert_eq!(put(&alice, bob.id(), "", "invite").0, 200);
}
