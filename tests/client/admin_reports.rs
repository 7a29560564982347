//! What users have reported, as administrators and their tools see it.

use crate::common::client::{V3, room_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};
use std::time::Duration;

const V1: &str = "/_synapse/admin/v1";
const OURS: &str = "/_doorstep/admin/v1";

#[track_caller]
fn refused(answer: (u16, Value), status: u16, errcode: &str) {
    assert_eq!((answer.0, answer.1["errcode"].as_str()), (status, Some(errcode)), "{answer:?}");
}

/// Reports, and gives the time a chance to go on.
#[track_caller]
fn report(server: &TestServer, reporter: &TestUser, path: &str, body: Value) {
    assert_eq!(reporter.request("POST", path, Some(body)), (200, json!({})), "{path}");
    server.advance(Duration::from_secs(1));
}

fn about_event(room: &str, event: &str) -> String {
    room_path(room, &format!("report/{}", segment(event)))
}

fn about_user(user: &str) -> String {
    format!("{V3}/users/{}/report", segment(user))
}

/// What a page has in this field of each of its reports, in their order.
fn each<'a>(page: &'a Value, list: &str, field: &str) -> Vec<&'a str> {
    let reports = page[list].as_array().expect("a list");
    reports.iter().map(|report| report[field].as_str().expect("text")).collect()
}

#[test]
fn reported_events_are_listed_page_by_page_picked_looked_at_and_put_away() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let hall = alice.create_room_with(json!({ "name": "Hall", "preset": "public_chat" }));
    let yard = bob.create_room_with(json!({ "preset": "public_chat" }));
    bob.join(&hall);
    alice.join(&yard);
    let (rude, ruder) = (alice.send(&hall, "rude"), bob.send(&yard, "ruder"));
    report(&server, &bob, &about_event(&hall, &rude), json!({ "reason": "it is rude", "score": -100 }));
    report(&server, &alice, &about_event(&yard, &ruder), json!({}));
    report(&server, &alice, &about_event(&hall, &rude), json!({ "reason": "by mistake" }));
    // Rooms and users are no events.
    report(&server, &bob, &room_path(&hall, "report"), json!({ "reason": "loud" }));
    report(&server, &bob, &about_user(alice.id()), json!({ "reason": "rude" }));
    let list = |query: &str| admin.get(&format!("{V1}/event_reports?{query}"));
    let all = list("");
    assert_eq!((&all["total"], all.get("next_token")), (&json!(3), None), "{all}");
    assert_eq!(each(&all, "event_reports", "event_id"), [&*rude, &*ruder, &*rude]);
    assert_eq!(each(&all, "event_reports", "user_id"), [alice.id(), alice.id(), bob.id()]);
    let last = &all["event_reports"][2];
    let expected = json!({ "id": last["id"], "received_ts": last["received_ts"], "room_id": hall, "event_id": rude,
        "user_id": bob.id(), "reason": "it is rude", "score": null, "sender": alice.id(), "canonical_alias": null,
        "name": "Hall" });
    assert_eq!(*last, expected);
    assert!(
        last["id"].is_i64() && last["received_ts"].as_i64() < all["event_reports"][0]["received_ts"].as_i64()
    );
    assert_eq!(all["event_reports"][1]["reason"], Value::Null);

    let page = list("limit=2");
    assert_eq!((page["event_reports"].as_array().map(Vec::len), &page["next_token"]), (Some(2), &json!(2)));
    let page = list("limit=2&from=2");
    assert_eq!((each(&page, "event_reports", "user_id"), page.get("next_token")), (vec![bob.id()], None));
    assert_eq!(each(&list("dir=f"), "event_reports", "user_id"), [bob.id(), alice.id(), alice.id()]);
    assert_eq!((&list("limit=0")["event_reports"], &list("from=7")["total"]), (&json!([]), &json!(3)));
    for (query, total) in [
        ("user_id=bob".to_owned(), 1),
        (format!("user_id={}", segment(alice.id())), 2),
        (format!("room_id={}", segment(&hall)), 2),
        (format!("event_sender_user_id={}", segment(bob.id())), 1),
        ("event_sender_user_id=bob".to_owned(), 0),
        ("user_id=%25".to_owned(), 0),
        (format!("user_id=alice&room_id={}", segment(&yard)), 1),
    ] {
        assert_eq!(list(&query)["total"], total, "{query}");
    }
    for query in ["from=-1", "limit=-1", "dir=up", "from=x"] {
        refused(admin.request("GET", &format!("{V1}/event_reports?{query}"), None), 400, "M_INVALID_PARAM");
    }

    let one = format!("{V1}/event_reports/{}", last["id"]);
    let mut looked_at = admin.get(&one);
    let event = looked_at.as_object_mut().and_then(|report| report.remove("event_json")).expect("the event");
    assert_eq!((&event["content"]["body"], &event["event_id"]), (&json!("rude"), &json!(rude)), "{event}");
    assert_eq!(looked_at, *last);
    for id in ["x", "-1", "1.5"] {
        refused(admin.request("GET", &format!("{V1}/event_reports/{id}"), None), 400, "M_INVALID_PARAM");
        refused(admin.request("DELETE", &format!("{V1}/event_reports/{id}"), None), 400, "M_INVALID_PARAM");
    }
    refused(admin.request("GET", &format!("{V1}/event_reports/77777"), None), 404, "M_NOT_FOUND");
    for path in [&one, &format!("{V1}/event_reports")] {
        refused(bob.request("GET", path, None), 403, "M_FORBIDDEN");
    }
    refused(bob.request("DELETE", &one, None), 403, "M_FORBIDDEN");
    assert_eq!(admin.request("DELETE", &one, None), (200, json!({})));
    refused(admin.request("DELETE", &one, None), 404, "M_NOT_FOUND");
    assert_eq!(list("")["total"], 2);

    // What was reported may be gone: that it was reported is not.
    let purged = admin.request("DELETE", &format!("{V1}/rooms/{}", segment(&yard)), Some(json!({})));
    assert_eq!(purged.0, 200, "{purged:?}");
    let left = list(&format!("room_id={}", segment(&yard)));
    assert_eq!((&left["total"], &left["event_reports"][0]["sender"]), (&json!(1), &Value::Null), "{left}");
    let left = admin.get(&format!("{V1}/event_reports/{}", left["event_reports"][0]["id"]));
    assert_eq!((&left["event_json"], &left["event_id"]), (&Value::Null, &json!(ruder)));
}

#[test]
fn reported_users_and_rooms_are_listed_and_put_away_too_each_where_it_belongs() {
    let server = TestServer::start();
    let (admin, alice, bob) = (server.user("admin"), server.user("alice"), server.user("bob"));
    let hall = alice.create_room_with(json!({ "name": "Hall", "preset": "public_chat" }));
    bob.join(&hall);
    let event = alice.send(&hall, "rude");
    report(&server, &bob, &about_event(&hall, &event), json!({ "reason": "an event" }));
    report(&server, &bob, &about_user(alice.id()), json!({ "reason": "a user" }));
    report(&server, &alice, &about_user("@eve:elsewhere.example"), json!({ "reason": "another" }));
    report(&server, &bob, &room_path(&hall, "report"), json!({ "reason": "a room" }));
    report(&server, &alice, &room_path("!gone:elsewhere.example", "report"), json!({ "reason": "not here" }));

    let users = admin.get(&format!("{V1}/user_reports"));
    assert_eq!(users["total"], 2, "{users}");
    let first = &users["user_reports"][1];
    assert_eq!(
        *first,
        json!({ "id": first["id"], "received_ts": first["received_ts"], "target_user_id": alice.id(),
            "user_id": bob.id(), "reason": "a user" })
    );
    for (query, total) in
        [("target_user_id=eve", 1), ("target_user_id=alice", 1), ("user_id=alice", 1), ("user_id=eve", 0)]
    {
        assert_eq!(admin.get(&format!("{V1}/user_reports?{query}"))["total"], total, "{query}");
    }
    let page = admin.get(&format!("{V1}/user_reports?limit=1&dir=f"));
    assert_eq!((each(&page, "user_reports", "user_id"), &page["next_token"]), (vec![bob.id()], &json!(1)));

    let rooms = admin.get(&format!("{OURS}/room_reports?dir=f"));
    assert_eq!(each(&rooms, "room_reports", "room_id"), [&*hall, "!gone:elsewhere.example"]);
    let first = &rooms["room_reports"][0];
    assert_eq!(
        *first,
        json!({ "id": first["id"], "received_ts": first["received_ts"], "room_id": hall, "user_id": bob.id(),
            "reason": "a room", "canonical_alias": null, "name": "Hall" })
    );
    assert_eq!(rooms["room_reports"][1]["name"], Value::Null);

    // A report is found where it is listed, and nowhere else.
    let events = admin.get(&format!("{V1}/event_reports"));
    let kinds = [
        (format!("{V1}/event_reports"), &events["event_reports"][0]["id"]),
        (format!("{V1}/user_reports"), &users["user_reports"][1]["id"]),
        (format!("{OURS}/room_reports"), &first["id"]),
    ];
    for (list, _) in &kinds {
        for (of, id) in &kinds {
            let path = format!("{list}/{id}");
            match list == of {
                true => assert_eq!(admin.get(&path)["id"], **id),
                false => {
                    refused(admin.request("GET", &path, None), 404, "M_NOT_FOUND");
                    refused(admin.request("DELETE", &path, None), 404, "M_NOT_FOUND");
                }
            }
        }
        refused(bob.request("GET", list, None), 403, "M_FORBIDDEN");
    }
    for (list, id) in &kinds {
        assert_eq!(admin.request("DELETE", &format!("{list}/{id}"), None), (200, json!({})));
    }
    assert_eq!(admin.get(&format!("{V1}/event_reports"))["total"], 0);
    assert_eq!(admin.get(&format!("{V1}/user_reports"))["total"], 1);
    assert_eq!(admin.get(&format!("{OURS}/room_reports"))["total"], 1);
}
