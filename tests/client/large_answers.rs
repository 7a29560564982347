//! Answers that would be large, over a real socket: pages that end earlier, what is answered in its turn, and what one user may
//! keep that others would have to wait for.

use crate::common::client::{V3, filter, room_path};
use doorstep::TestServer;
use doorstep::testing::{TestUser, segment};
use serde_json::{Value, json};

/// What a page may be: its events end with the one that makes it 256 KiB.
const PAGE_BYTES: usize = (256 + 64 + 16) << 10;

/// A text of so many bytes.
fn text_of(bytes: usize) -> String {
    "y".repeat(bytes)
}

/// Follows a list from page to page, none of which may be large; gives the elements of all.
fn all_pages(user: &TestUser, path: &str, (list, token): (&str, &str)) -> Vec<Value> {
    let (mut all, mut from) = (Vec::new(), String::new());
    loop {
        let page = user.get(&format!("{path}{from}"));
        assert!(page.to_string().len() < PAGE_BYTES, "a page of {path} has {} bytes", page.to_string().len());
        all.extend(page[list].as_array().expect("a list").iter().cloned());
        match page[token].as_str() {
            Some(token) => from = format!("&from={}", segment(token)),
            None => return all,
        }
    }
}

#[test]
fn pages_of_large_events_end_before_they_are_large_and_go_on_behind() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.room_with(&[&bob], &["the root"]);
    let messages = alice.get(&room_path(&room, "messages?dir=b&limit=1"));
    let root = messages["chunk"][0]["event_id"].as_str().expect("an id").to_owned();
    let mut sent = Vec::new();
    for number in 0..12 {
        let content = json!({ "msgtype": "m.text", "body": format!("needle {number} bob"), "more": text_of(60_000),
            "m.mentions": { "user_ids": [bob.id()] }, "m.relates_to": { "rel_type": "org.example.part", "event_id": root } });
        sent.push(alice.send_event(&room, "m.room.message", content));
    }
    let ids = |events: &[Value]| -> Vec<String> {
        let with_text = events.iter().filter(|event| event["content"]["more"].is_string());
        with_text.map(|event| event["event_id"].as_str().expect("an id").to_owned()).collect()
    };
    let mut newest_first = sent.clone();
    newest_first.reverse();

    let forwards = all_pages(&bob, &room_path(&room, "messages?dir=f&limit=100"), ("chunk", "end"));
    assert_eq!(ids(&forwards), sent);
    let backwards = all_pages(&bob, &room_path(&room, "messages?dir=b&limit=100"), ("chunk", "end"));
    assert_eq!(ids(&backwards), newest_first);
    let path = format!("/_matrix/client/v1/rooms/{}/relations/{}?limit=100", segment(&room), segment(&root));
    assert_eq!(ids(&all_pages(&bob, &path, ("chunk", "next_batch"))), newest_first);
    let told = all_pages(&bob, &format!("{V3}/notifications?limit=100"), ("notifications", "next_token"));
    let told: Vec<Value> = told.into_iter().map(|told| told["event"].clone()).collect();
    assert_eq!(ids(&told), newest_first);
}

#[test]
fn a_search_whose_results_are_large_goes_on_where_its_page_ended() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let sent: Vec<String> = (0..30)
        .map(|number| {
            let content =
                json!({ "msgtype": "m.text", "body": format!("needle {number}"), "more": text_of(60_000) });
            alice.send_event(&room, "m.room.message", content)
        })
        .collect();
    let criteria = json!({ "search_term": "needle", "order_by": "recent", "filter": { "limit": 100 },
        "event_context": { "before_limit": 2, "after_limit": 2 },
        "groupings": { "group_by": [{ "key": "room_id" }] } });
    let (mut found, mut next, mut pages) = (Vec::new(), String::new(), 0);
    loop {
        let body = json!({ "search_categories": { "room_events": criteria } });
        let answer = alice.post(&format!("{V3}/search{next}"), body);
        assert!(answer.to_string().len() < 2 << 20, "a page has {} bytes", answer.to_string().len());
        let answer = &answer["search_categories"]["room_events"];
        let results = answer["results"].as_array().expect("results");
        let of_page: Vec<&Value> = results.iter().map(|result| &result["result"]["event_id"]).collect();
        let of_group: Vec<&Value> =
            answer["groups"]["room_id"][&room]["results"].as_array().expect("a group").iter().collect();
        assert_eq!(of_page, of_group);
        found.extend(of_page.iter().filter_map(|id| id.as_str().map(str::to_owned)));
        pages += 1;
        match answer["next_batch"].as_str() {
            Some(token) => next = format!("?next_batch={}", segment(token)),
            None => break,
        }
    }
    found.reverse();
    assert_eq!(found, sent);
    assert!(pages > 1, "all of it came at once");
}

#[test]
fn state_that_is_large_is_told_whole() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.room_with(&[&bob], &["hello"]);
    for number in 0..8 {
        alice.set_state(&room, "org.example.large", &format!("{number}"), json!({ "text": text_of(60_000) }));
    }
    let event = alice.send(&room, "behind it");
    let large = |events: &Value| {
        let events = events.as_array().expect("a list");
        events.iter().filter(|event| event["type"] == "org.example.large").count()
    };
    assert_eq!(large(&bob.get(&room_path(&room, "state"))), 8);
    assert_eq!(large(&bob.get(&room_path(&room, &format!("context/{}", segment(&event))))["state"]), 8);
    assert_eq!(large(&bob.get(&room_path(&room, "initialSync"))["state"]), 8);
    let members = bob.get(&room_path(&room, "members"));
    assert_eq!(members["chunk"].as_array().expect("members").len(), 2);
}

#[test]
fn account_data_has_a_bound_and_what_is_there_can_be_made_smaller() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let path = |number: usize| format!("{V3}/user/{}/account_data/org.example.{number}", segment(alice.id()));
    let mut taken = 0;
    let refused = loop {
        let (status, answer) = alice.request("PUT", &path(taken), Some(json!({ "text": text_of(250_000) })));
        match status {
            200 => taken += 1,
            status => break (status, answer["errcode"].clone()),
        }
        assert!(taken < 40, "there is no bound");
    };
    assert_eq!(refused, (413, json!("M_TOO_LARGE")));
    assert!(taken >= 32, "only {taken} entries were taken");
    // What is there may be replaced by as much or less, and then there is room again; reading goes on in any case.
    alice.put(&path(0), json!({ "text": text_of(250_000) }));
    alice.put(&path(1), json!({}));
    alice.put(&path(taken), json!({ "text": text_of(200_000) }));
    let room = alice.create_room();
    let event = alice.send(&room, "read this");
    let markers = json!({ "m.fully_read": event });
    assert_eq!(alice.request("POST", &room_path(&room, "read_markers"), Some(markers)).0, 200);
    let told = alice.initial_sync();
    assert_eq!(
        told["account_data"]["events"]
            .as_array()
            .expect("a list")
            .iter()
            .filter(|event| event["type"].as_str().is_some_and(|kind| kind.starts_with("org.example.")))
            .count(),
        taken + 1
    );
    bob.put(&format!("{V3}/user/{}/account_data/org.example", segment(bob.id())), json!({ "text": "small" }));
}

#[test]
fn filters_that_name_too_much_are_refused_wherever_they_are_given() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let types = |count: usize| -> Vec<String> { (0..count).map(|number| format!("*a*b{number}")).collect() };
    let refused = |(status, answer): (u16, Value)| (status, answer["errcode"].clone());
    let wrong = (400, json!("M_BAD_JSON"));

    let uploaded = format!("{V3}/user/{}/filter", segment(alice.id()));
    let of_types = |count: usize| json!({ "room": { "timeline": { "types": types(count) } } });
    assert_eq!(refused(alice.request("POST", &uploaded, Some(of_types(101)))), wrong);
    assert_eq!(alice.request("POST", &uploaded, Some(of_types(100))).0, 200);
    assert_eq!(refused(alice.request("GET", &format!("{V3}/sync?{}", filter(&of_types(101))), None)), wrong);
    let inline = segment(&json!({ "not_types": types(101) }).to_string());
    for path in [format!("messages?dir=b&filter={inline}"), format!("context/$none?filter={inline}")] {
        assert_eq!(refused(alice.request("GET", &room_path(&room, &path), None)), wrong, "{path}");
    }
    let criteria = json!({ "search_term": "a", "filter": { "types": types(101) } });
    let body = json!({ "search_categories": { "room_events": criteria } });
    assert_eq!(refused(alice.request("POST", &format!("{V3}/search"), Some(body))), wrong);
    let senders: Vec<String> = (0..1001).map(|number| format!("@u{number}:a.example")).collect();
    let of_senders = json!({ "room": { "timeline": { "not_senders": senders } } });
    assert_eq!(refused(alice.request("POST", &uploaded, Some(of_senders))), wrong);
}

#[test]
fn a_filter_of_many_types_looks_at_fewer_events_a_page_and_says_where_it_stopped() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    let wanted = alice.send_event(&room, "org.example.wanted", json!({}));
    for number in 0..700 {
        alice.send(&room, &format!("message {number}"));
    }
    let mut types: Vec<String> = (0..99).map(|number| format!("*a*b{number}")).collect();
    types.push("org.example.wanted".to_owned());
    let filter = segment(&json!({ "types": types }).to_string());
    let (mut pages, mut from) = (0, String::new());
    loop {
        let page = alice.get(&room_path(&room, &format!("messages?dir=b&limit=10&filter={filter}{from}")));
        pages += 1;
        if let Some(found) = page["chunk"].as_array().expect("a list").first() {
            assert_eq!(found["event_id"], wanted);
            break;
        }
        from = format!("&from={}", segment(page["end"].as_str().expect("where it goes on")));
    }
    assert!(pages > 1, "all of it was looked at for one page");
}
