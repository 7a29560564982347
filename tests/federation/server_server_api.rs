//! What other servers are answered when they ask for something: a table of questions, each with its status and error
//! code as the specification has them, and what they may see of a room's history.

use std::time::Duration;

use crate::common::peer::Peer;
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::internals::ROUTES;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

const V1: &str = "/_matrix/federation/v1";

/// A room of ours with a server in it.
struct Scene {
    server: TestServer,
    alice: TestUser,
    peer: Peer,
    room: String,
}

impl Scene {
    /// The peer's user enters once `before` was done.
    fn new(visibility: &str, before: impl FnOnce(&TestServer, &TestUser, &str)) -> Self {
        let (server, peer) = (TestServer::start(), Peer::start());
        let alice = server.user("alice");
        peer.take_transactions();
        let visible = json!({ "history_visibility": visibility });
        let room = alice.create_room_with(json!({
            "preset": "public_chat", "room_version": "11",
            "initial_state": [{ "type": "m.room.history_visibility", "state_key": "", "content": visible }],
        }));
        before(&server, &alice, &room);
        let eve = peer.user("eve");
        assert_eq!(peer.hand_in(server.name(), "join", &room, &eve).1.0, 200);
        Self { server, alice, peer, room }
    }

    fn get(&self, path: &str) -> (u16, Value) {
        self.peer.ask(self.server.name(), "GET", path, None)
    }
}

fn event_ids(alice: &TestUser, room: &str) -> Vec<(String, String)> {
    let path = format!("/_matrix/client/v3/rooms/{}/messages?dir=f&limit=100", segment(room));
    let page = alice.get(&path);
    let text = |event: &Value, key: &str| event[key].as_str().unwrap_or_default().to_owned();
    let chunk = page["chunk"].as_array().expect("a chunk");
    chunk.iter().map(|event| (text(event, "type"), text(event, "event_id"))).collect()
}

#[test]
fn every_question_has_the_answer_that_the_specification_gives_it() {
    let scene = Scene::new("shared", |_, _, _| {});
    let other_room = scene.alice.create_room();
    let (_, elsewhere) = event_ids(&scene.alice, &other_room).pop().expect("an event");
    let (_, known) = event_ids(&scene.alice, &scene.room).pop().expect("an event");
    let stranger = Peer::start();
    let (room, not_theirs) = (segment(&scene.room), segment(&other_room));
    let (known, elsewhere) = (segment(&known), segment(&elsewhere));
    let (nowhere, nothing) = (segment("!nowhere:example.org"), segment("$nothing"));
    let alice = segment(scene.alice.id());
    let of_room = |call: &str, rest: &str| format!("{call}/{room}{rest}");
    let mut table: Vec<(String, u16, &str)> = vec![
        (of_room("state", ""), 400, "M_MISSING_PARAM"),
        (of_room("state_ids", ""), 400, "M_MISSING_PARAM"),
        (of_room("backfill", "?limit=5"), 400, "M_MISSING_PARAM"),
        (of_room("backfill", &format!("?v={known}")), 400, "M_MISSING_PARAM"),
        (of_room("backfill", &format!("?v={known}&limit=-1")), 400, "M_INVALID_PARAM"),
        (of_room("backfill", &format!("?v={known}&limit=many")), 400, "M_INVALID_PARAM"),
        (of_room("backfill", "?v=nonsense&limit=5"), 400, "M_INVALID_PARAM"),
        (of_room("timestamp_to_event", "?dir=f"), 400, "M_MISSING_PARAM"),
        (of_room("timestamp_to_event", "?ts=0"), 400, "M_MISSING_PARAM"),
        (of_room("timestamp_to_event", "?ts=0&dir=x"), 400, "M_INVALID_PARAM"),
        (of_room("timestamp_to_event", "?ts=now&dir=f"), 400, "M_INVALID_PARAM"),
        (of_room("timestamp_to_event", "?ts=0&dir=b"), 404, "M_NOT_FOUND"),
        (of_room("hierarchy", "?suggested_only=perhaps"), 400, "M_INVALID_PARAM"),
        (format!("event/{nothing}"), 404, "M_NOT_FOUND"),
        (format!("event/{elsewhere}"), 403, "M_FORBIDDEN"),
        ("event/nonsense".into(), 400, "M_INVALID_PARAM"),
        ("query/directory".into(), 400, "M_MISSING_PARAM"),
        ("query/directory?room_alias=nonsense".into(), 400, "M_INVALID_PARAM"),
        (format!("query/directory?room_alias=%23none%3A{}", scene.server.name()), 404, "M_NOT_FOUND"),
        ("query/profile".into(), 400, "M_MISSING_PARAM"),
        ("query/profile?user_id=alice".into(), 400, "M_INVALID_PARAM"),
        (format!("query/profile?user_id={}", segment("@alice:example.org")), 400, "M_INVALID_PARAM"),
        (format!("query/profile?user_id=%40none%3A{}", scene.server.name()), 404, "M_NOT_FOUND"),
        ("query/weather".into(), 404, "M_UNRECOGNIZED"),
        ("publicRooms?since=nonsense".into(), 400, "M_INVALID_PARAM"),
        ("publicRooms?limit=few".into(), 400, "M_INVALID_PARAM"),
        ("openid/userinfo".into(), 401, "M_MISSING_TOKEN"),
        ("openid/userinfo?access_token=guess".into(), 401, "M_UNKNOWN_TOKEN"),
        ("media/download/abc".into(), 404, "M_NOT_FOUND"),
        ("media/thumbnail/abc?width=1&height=1".into(), 404, "M_NOT_FOUND"),
        ("media/thumbnail/abc?width=0&height=1".into(), 400, "M_INVALID_PARAM"),
        ("media/thumbnail/abc".into(), 400, "M_MISSING_PARAM"),
    ];
    for call in ["state", "state_ids"] {
        for (event, room, told) in [
            (&nothing, &room, (404, "M_NOT_FOUND")),
            (&elsewhere, &room, (404, "M_NOT_FOUND")),
            (&known, &nowhere, (404, "M_NOT_FOUND")),
            (&elsewhere, &not_theirs, (403, "M_FORBIDDEN")),
        ] {
            table.push((format!("{call}/{room}?event_id={event}"), told.0, told.1));
        }
    }
    for (call, told) in [
        (format!("event_auth/{room}/{nothing}"), (404, "M_NOT_FOUND")),
        (format!("event_auth/{room}/{elsewhere}"), (404, "M_NOT_FOUND")),
        (format!("event_auth/{nowhere}/{known}"), (404, "M_NOT_FOUND")),
        (format!("event_auth/{not_theirs}/{elsewhere}"), (403, "M_FORBIDDEN")),
        (format!("backfill/{nowhere}?v={known}&limit=5"), (404, "M_NOT_FOUND")),
        (format!("backfill/{not_theirs}?v={elsewhere}&limit=5"), (403, "M_FORBIDDEN")),
        (format!("timestamp_to_event/{not_theirs}?ts=0&dir=f"), (403, "M_FORBIDDEN")),
        (format!("hierarchy/{nowhere}"), (404, "M_NOT_FOUND")),
    ] {
        table.push((call, told.0, told.1));
    }
    for (call, status, errcode) in table {
        let (said, body) = scene.get(&format!("{V1}/{call}"));
        assert_eq!((said, body["errcode"].as_str()), (status, Some(errcode)), "{call}: {body}");
    }
    // A server that is not in the room gets nothing of it.
    for call in ["state", "state_ids"] {
        let path = format!("{V1}/{call}/{room}?event_id={known}");
        let (status, body) = stranger.ask(scene.server.name(), "GET", &path, None);
        assert_eq!((status, body["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{call}: {body}");
    }
    let (status, profile) = scene.get(&format!("{V1}/query/profile?user_id={alice}&field=displayname"));
    assert_eq!((status, profile.get("avatar_url")), (200, None), "{profile}");
}

#[test]
fn what_is_asked_with_a_body_has_the_answer_that_the_specification_gives_it() {
    let scene = Scene::new("shared", |_, _, _| {});
    let (room, not_theirs) = (segment(&scene.room), segment(&scene.alice.create_room()));
    let nowhere = segment("!nowhere:example.org");
    for (method, path, body, told) in [
        ("POST", format!("{V1}/get_missing_events/{room}"), json!({}), (400, "M_BAD_JSON")),
        (
            "POST",
            format!("{V1}/get_missing_events/{nowhere}"),
            json!({ "earliest_events": [], "latest_events": [] }),
            (404, "M_NOT_FOUND"),
        ),
        (
            "POST",
            format!("{V1}/get_missing_events/{not_theirs}"),
            json!({ "earliest_events": [], "latest_events": [] }),
            (403, "M_FORBIDDEN"),
        ),
        ("POST", format!("{V1}/publicRooms"), json!({ "limit": "few" }), (400, "M_BAD_JSON")),
        ("PUT", format!("{V1}/send/1"), json!({ "pdus": 5 }), (400, "M_BAD_JSON")),
        ("POST", "/_matrix/key/v2/query".into(), json!({}), (400, "M_MISSING_PARAM")),
        ("POST", "/_matrix/policy/v1/sign".into(), json!({}), (404, "M_UNRECOGNIZED")),
        ("PUT", format!("{V1}/state/{room}"), json!({}), (405, "M_UNRECOGNIZED")),
        ("PUT", format!("{V1}/3pid/onbind"), json!({ "mxid": "nobody" }), (400, "M_BAD_JSON")),
    ] {
        let (status, said) = scene.peer.ask(scene.server.name(), method, &path, Some(&body));
        assert_eq!((status, said["errcode"].as_str()), (told.0, Some(told.1)), "{path}: {said}");
    }
}

#[test]
fn nobody_is_answered_who_does_not_say_who_they_are() {
    let server = TestServer::start();
    let agent = crate::federation_keys::agent();
    let mut asked = 0;
    for route in ROUTES.iter().filter(|route| route.handler.who() == "another server") {
        let url = format!("https://{}{}", server.name(), route.path.replace(['{', '}'], ""));
        for authorization in
            [None, Some("X-Matrix origin=\"localhost:1\",key=\"ed25519:a\",sig=\"AAAA\""), Some("Bearer abc")]
        {
            let mut request = ureq::http::Request::builder().method(route.method.as_str()).uri(&url);
            if let Some(value) = authorization {
                request = request.header("Authorization", value);
            }
            let answer = match route.method.as_str() {
                "GET" => agent.run(request.body(()).expect("a request")),
                _ => agent.run(request.body("{}").expect("a request")),
            };
            let mut answer = answer.expect("an answer");
            let body: Value =
                serde_json::from_slice(&answer.body_mut().read_to_vec().expect("a body")).expect("JSON");
            let said = (answer.status().as_u16(), body["errcode"].as_str());
            assert_eq!(said, (401, Some("M_UNAUTHORIZED")), "{} {authorization:?}: {body}", route.path);
            asked += 1;
        }
    }
    assert!(asked > 60, "{asked}");
}

#[test]
fn history_that_a_servers_users_may_not_see_reaches_it_without_its_contents() {
    for (visibility, hides) in
        [("joined", true), ("invited", true), ("shared", false), ("world_readable", false)]
    {
        let scene = Scene::new(visibility, |server, alice, room| {
            server.advance(Duration::from_secs(60));
            alice.set_state(room, "m.room.topic", "", json!({ "topic": "an old secret" }));
            alice.send(room, "before");
            alice.set_state(room, "m.room.topic", "", json!({ "topic": "the topic of today" }));
            alice.set_state(room, "m.room.third_party_invite", "t", json!({ "public_key": "AAAA" }));
        });
        scene.alice.send(&scene.room, "after");
        let ids = event_ids(&scene.alice, &scene.room);
        let last = ids.last().expect("events").1.clone();
        let room = segment(&scene.room);
        let contents = |events: &Value| -> Vec<String> {
            let events = events.as_array().expect("a list").iter();
            let shown = events.filter(|e| {
                ["m.room.message", "m.room.topic", "m.room.third_party_invite"]
                    .iter()
                    .any(|t| e["type"] == *t)
            });
            shown
                .map(|e| {
                    let content = &e["content"];
                    [&content["body"], &content["topic"], &content["public_key"]]
                        .into_iter()
                        .find_map(Value::as_str)
                        .unwrap_or("(hidden)")
                        .to_owned()
                })
                .collect()
        };
        let old = |text: &'static str| if hides { "(hidden)" } else { text };
        let (status, page) = scene.get(&format!("{V1}/backfill/{room}?v={}&limit=50", segment(&last)));
        assert_eq!(status, 200, "{page}");
        assert_eq!(
            contents(&page["pdus"]),
            ["after", "AAAA", "the topic of today", old("before"), old("an old secret")],
            "{visibility}: what is current came with the join anyway"
        );
        assert_eq!(page["pdus"].as_array().map(Vec::len), Some(ids.len()), "every event has its place");
        let asked = json!({ "earliest_events": [], "latest_events": [last], "limit": 50 });
        let (_, missing) = scene.peer.ask(
            scene.server.name(),
            "POST",
            &format!("{V1}/get_missing_events/{room}"),
            Some(&asked),
        );
        assert_eq!(
            contents(&missing["events"]),
            [old("an old secret"), old("before"), "the topic of today", "AAAA"],
            "{visibility}: oldest first"
        );
        let message = ids.iter().find(|(kind, _)| kind == "m.room.message").expect("the first message");
        let (_, one) = scene.get(&format!("{V1}/event/{}", segment(&message.1)));
        assert_eq!(contents(&one["pdus"]), [old("before")], "{visibility}");
        // By date only what may be seen is found.
        let near = |ts: i64, dir: &str| {
            let (status, found) = scene.get(&format!("{V1}/timestamp_to_event/{room}?ts={ts}&dir={dir}"));
            assert_eq!(status, 200, "{found}");
            ids.iter().position(|(_, id)| found["event_id"] == id.as_str()).expect("an event of the room")
        };
        let path = format!("/_matrix/client/v3/rooms/{room}/event/{}", segment(&message.1));
        let then = scene.alice.get(&path)["origin_server_ts"].as_i64().expect("a time");
        // The peer's clock is not ours: by its time the join was before all that.
        let (kind, found) = &ids[near(then - 1000, "f")];
        assert_eq!(found == &last, hides, "{visibility}: {kind} of {ids:?}");
        assert_eq!(near(i64::from(u32::MAX) * 1000, "b"), ids.len() - 1, "{visibility}");
    }
}

#[test]
fn a_server_whose_last_user_left_reads_nothing_more() {
    let scene = Scene::new("shared", |_, _, _| {});
    let (_, known) = event_ids(&scene.alice, &scene.room).pop().expect("an event");
    let (room, known) = (segment(&scene.room), segment(&known));
    let path = format!("{V1}/backfill/{room}?v={known}&limit=5");
    assert_eq!(scene.get(&path).0, 200);
    let (_, (status, body)) =
        scene.peer.hand_in(scene.server.name(), "leave", &scene.room, &scene.peer.user("eve"));
    assert_eq!(status, 200, "{body}");
    wait_until("it has left", || {
        scene.alice.membership_of(&scene.room, scene.peer.user("eve").as_str()).as_deref() == Some("leave")
    });
    for call in [
        path,
        format!("{V1}/state_ids/{room}?event_id={known}"),
        format!("{V1}/state/{room}?event_id={known}"),
        format!("{V1}/event/{known}"),
        format!("{V1}/event_auth/{room}/{known}"),
        format!("{V1}/timestamp_to_event/{room}?ts=0&dir=f"),
    ] {
        let (status, body) = scene.get(&call);
        assert_eq!((status, body["errcode"].as_str()), (403, Some("M_FORBIDDEN")), "{call}: {body}");
    }
}
