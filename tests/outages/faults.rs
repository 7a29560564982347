//! What a test can let go wrong at its server: requests that fail, are limited, or take long; servers that are cut off
//! from each other; and the record of what was asked.

use std::time::{Duration, Instant};

use doorstep::TestServer;
use doorstep::testing::{SeenRequest, segment};
use serde_json::json;

const CREATE: &str = "/_matrix/client/v3/createRoom";

#[test]
fn the_next_request_of_a_kind_fails_and_no_other() {
    let server = TestServer::start();
    let alice = server.user("alice");
    server.fail_next("POST", "/createRoom", 500, "M_UNKNOWN");
    alice.get("/_matrix/client/v3/joined_rooms");
    alice.request("OPTIONS", CREATE, None);
    let (status, answer) = alice.request("POST", CREATE, Some(json!({})));
    assert_eq!((status, answer["errcode"].as_str()), (500, Some("M_UNKNOWN")), "{answer}");
    assert_eq!(alice.get("/_matrix/client/v3/joined_rooms")["joined_rooms"], json!([]), "nothing was done");
    alice.create_room();
}

#[test]
fn faults_of_one_kind_come_in_their_order_and_are_for_whoever_asks() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let room = alice.create_room();
    server.fail_next("put", "/rooms/*/send", 502, "M_BAD_GATEWAY");
    server.limit_next("*", "/rooms/{roomId}/send/m.room.message", 1500);
    let path = format!("/_matrix/client/v3/rooms/{room}/send/m.room.message/1");
    let send = || alice.request("PUT", &path, Some(json!({ "msgtype": "m.text", "body": "hi" })));
    assert_eq!(send().0, 502);
    let (status, limited) = send();
    assert_eq!((status, limited["errcode"].as_str()), (429, Some("M_LIMIT_EXCEEDED")));
    assert_eq!(limited["retry_after_ms"], 1500);
    assert_eq!(send().0, 200);
    // Also for who has no token, and the connection stays of use after a large body.
    server.fail_next("POST", "/media/v3/upload", 507, "ORG_EXAMPLE_FULL");
    let large = json!("x".repeat(3 << 20));
    let (status, answer) = alice.request("POST", "/_matrix/media/v3/upload", Some(large));
    assert_eq!((status, answer["errcode"].as_str()), (507, Some("ORG_EXAMPLE_FULL")));
    server.fail_next("GET", "/account/whoami", 418, "M_TEAPOT");
    server.clear_faults();
    alice.get("/_matrix/client/v3/account/whoami");
}

#[test]
fn what_is_delayed_is_done_later_and_a_stop_waits_for_nobody() {
    let mut server = TestServer::start();
    let alice = server.user("alice");
    server.delay("GET", "/account/whoami", Duration::from_millis(300));
    let began = Instant::now();
    alice.get("/_matrix/client/v3/account/whoami");
    assert!(began.elapsed() >= Duration::from_millis(300), "{:?}", began.elapsed());
    server.delay("GET", "/account/whoami", Duration::from_secs(600));
    let url = format!("{}/_matrix/client/v3/account/whoami", server.url());
    let waiting = std::thread::spawn(move || ureq::get(&url).call().is_ok());
    while server.requests().last().is_none_or(|seen| seen.status.is_some()) {
        std::thread::yield_now();
    }
    let began = Instant::now();
    server.restart();
    assert!(began.elapsed() < Duration::from_secs(60), "{:?}", began.elapsed());
    assert!(!waiting.join().expect("no panic"), "it had no token");
    server.delay("GET", "/account/whoami", Duration::ZERO);
    alice.get("/_matrix/client/v3/account/whoami");
}

#[test]
fn the_record_says_what_was_asked_and_how_it_was_answered_also_after_a_wait() {
    let mut server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let room = alice.create_room();
    bob.join(&room);
    alice.initial_sync();
    server.forget_requests();
    let sync = std::thread::scope(|scope| {
        let waiting = scope.spawn(|| alice.sync(Duration::from_secs(30)));
        while server.requests().is_empty() {
            std::thread::yield_now();
        }
        bob.send(&room, "news");
        waiting.join().expect("no panic")
    });
    assert!(sync["rooms"]["join"][&room]["timeline"].is_object(), "{sync}");
    let nobody = format!("/_matrix/client/v3/profile/{}", segment(&format!("@nobody:{}", server.name())));
    bob.request("GET", &format!("{nobody}?access_token=secret"), None);
    bob.request("POST", "/_matrix/client/v3/nothing", None);
    server.restart();
    let seen = |method: &str, path: &str, status| SeenRequest {
        method: method.to_owned(),
        path: path.to_owned(),
        status: Some(status),
    };
    let requests = server.requests();
    assert_eq!(requests.len(), 4, "{requests:?}");
    assert_eq!(requests[0], seen("GET", "/_matrix/client/v3/sync", 200));
    assert_eq!((requests[1].method.as_str(), requests[1].status), ("PUT", Some(200)));
    assert_eq!(requests[2], seen("GET", &nobody, 404));
    assert_eq!(requests[3], seen("POST", "/_matrix/client/v3/nothing", 404));
}

#[test]
fn servers_that_are_cut_off_do_not_reach_each_other_until_that_is_mended() {
    let (here, there) = TestServer::pair();
    let third = TestServer::start();
    let (alice, bob, carol) = (here.user("alice"), there.user("bob"), third.user("carol"));
    let room = alice.create_room();
    bob.join_via(&room, &[here.name()]);
    carol.join_via(&room, &[here.name()]);
    here.cut_off(&there);
    there.forget_requests();
    let sent = alice.send(&room, "who hears me?");
    carol.sync_until("the message", |answer| {
        let events = answer["rooms"]["join"][&room]["timeline"]["events"].as_array()?;
        events.iter().any(|event| event["event_id"] == sent.as_str()).then_some(())
    });
    let there_room = bob.create_room();
    let (status, answer) = alice.request(
        "POST",
        &format!("/_matrix/client/v3/join/{there_room}?via={}", there.name()),
        Some(json!({})),
    );
    assert_ne!(status, 200, "{answer}");
    let of_here = there.requests().into_iter().filter(|seen| seen.path.contains("/federation/"));
    let of_here: Vec<_> = of_here.filter(|seen| !seen.path.contains("/send/")).collect();
    assert_eq!(of_here, [], "nothing of what the first asked arrived");
    there.mend(&here);
    assert_eq!(bob.next_message(&room), "who hears me?");
    alice.join_via(&there_room, &[there.name()]);
}
