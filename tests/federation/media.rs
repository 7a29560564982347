//! Files across servers: ours as others are given them, and others' as our users are.

use std::thread;

use doorstep::TestServer;
use doorstep::internals::Reply;
use doorstep::testing::TestUser;
use serde_json::json;

use crate::common::media::{self, DOWNLOAD, RawAnswer, UPLOAD, exchange};
use crate::common::peer::Peer;
use crate::common::wait::Gate;

const FEDERATION: &str = "/_matrix/federation/v1/media/download/";

/// The media id of what the user has uploaded.
#[track_caller]
fn upload(user: &TestUser, content_type: &str, name: &str, bytes: &[u8]) -> String {
    let uri = media::upload(user, content_type, name, bytes);
    uri.rsplit('/').next().expect("an id").to_owned()
}

#[track_caller]
fn announce(user: &TestUser) -> String {
    let made = user.post("/_matrix/media/v1/create", json!({}));
    let uri = made["content_uri"].as_str().expect("a URI");
    uri.rsplit('/').next().expect("an id").to_owned()
}

fn put(user: &TestUser, server: &str, id: &str, bytes: &[u8]) -> RawAnswer {
    exchange(user, "PUT", &format!("{UPLOAD}/{server}/{id}"), "Content-Type: text/plain\r\n", bytes)
}

fn download(user: &TestUser, server: &str, id: &str, query: &str) -> RawAnswer {
    exchange(user, "GET", &format!("{DOWNLOAD}/{server}/{id}{query}"), "", b"")
}

/// The headers and the bytes of the second part of an answer in two parts.
#[track_caller]
fn second_part(answer: &[u8]) -> (String, Vec<u8>) {
    let text = String::from_utf8_lossy(answer).into_owned();
    let boundary = text.lines().next().expect("a boundary").to_owned();
    let before = format!("{boundary}\r\nContent-Type: application/json\r\n\r\n{{}}\r\n{boundary}\r\n");
    let rest = answer.strip_prefix(before.as_bytes()).unwrap_or_else(|| panic!("another first part: {text}"));
    let end = rest.windows(4).position(|w| w == b"\r\n\r\n").expect("the end of the headers");
    let after = format!("\r\n{boundary}--\r\n");
    let file = rest[end + 4..].strip_suffix(after.as_bytes()).expect("the last boundary");
    (String::from_utf8(rest[..end].to_vec()).expect("headers"), file.to_vec())
}

#[test]
fn a_file_is_given_to_other_servers_in_two_parts() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let file: Vec<u8> = (0..200_000u32).flat_map(u32::to_le_bytes).collect();
    let id = upload(&alice, "image/png", "grüße.png", &file);
    let (status, body) = peer.ask_for_bytes(server.name(), &format!("{FEDERATION}{id}"));
    assert_eq!(status, 200);
    let (headers, got) = second_part(&body);
    assert!(got == file);
    let named = "Content-Disposition: inline; filename*=utf-8''gr%C3%BC%C3%9Fe.png";
    assert_eq!(headers, format!("Content-Type: image/png\r\n{named}"));
    // What is not shown here is not shown there either.
    let id = upload(&alice, "text/html", "a.html", b"<script>");
    let (headers, _) = second_part(&peer.ask_for_bytes(server.name(), &format!("{FEDERATION}{id}")).1);
    assert!(headers.contains("Content-Disposition: attachment; filename=a.html"), "{headers}");
}

#[test]
fn other_servers_are_given_only_what_was_uploaded_here() {
    let (server, peer, other) = (TestServer::start(), Peer::start(), Peer::start());
    let alice = server.user("alice");
    peer.answer("/media/download/theirs", |_| in_parts("image/png", b"theirs"));
    assert_eq!(download(&alice, peer.name().as_str(), "theirs", "").body, b"theirs");
    for id in ["theirs", "nothing", "..%2F..%2Fetc%2Fpasswd", "a.b", "%00", "%C3%A4"] {
        let (status, body) = other.ask(server.name(), "GET", &format!("{FEDERATION}{id}"), None);
        assert!(matches!(status, 400 | 404), "{id}: {status} {body}");
    }
    let (status, body) = other.ask(server.name(), "GET", &format!("{FEDERATION}nothing"), None);
    assert_eq!((status, &body["errcode"]), (404, &json!("M_NOT_FOUND")));
    let id = upload(&alice, "image/png", "a.png", b"a picture");
    let unsigned = exchange(&alice, "GET", &format!("{FEDERATION}{id}"), "", b"");
    assert_eq!(unsigned.error(), (401, "M_UNAUTHORIZED".to_owned()));
    for wrong in ["?timeout_ms=-1", "?timeout_ms=x"] {
        let (status, body) = other.ask(server.name(), "GET", &format!("{FEDERATION}{id}{wrong}"), None);
        assert_eq!((status, &body["errcode"]), (400, &json!("M_INVALID_PARAM")), "{wrong}");
    }
}

#[test]
fn another_server_waits_for_an_upload() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    let id = announce(&alice);
    let path = format!("{FEDERATION}{id}");
    let (status, body) = peer.ask(server.name(), "GET", &format!("{path}?timeout_ms=0"), None);
    assert_eq!((status, &body["errcode"]), (504, &json!("M_NOT_YET_UPLOADED")));
    thread::scope(|scope| {
        let asking = scope.spawn(|| peer.ask_for_bytes(server.name(), &format!("{path}?timeout_ms=30000")));
        // Before or after the other has asked: both lead to the file.
        assert_eq!(put(&alice, server.name(), &id, b"late").status, 200);
        let (status, body) = asking.join().expect("no panic");
        assert_eq!((status, second_part(&body).1), (200, b"late".to_vec()));
    });
}

#[test]
fn what_was_fetched_once_is_there_without_its_server() {
    let (mut here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let file = vec![7; 300_000];
    let id = upload(&alice, "text/plain", "it's.txt", &file);
    let first = download(&bob, here.name(), &id, "");
    assert_eq!((first.status, first.header("content-type")), (200, "text/plain"));
    assert_eq!(first.header("content-disposition"), "inline; filename=it's.txt");
    assert!(first.body == file);
    here.stop();
    let again = download(&bob, here.name(), &id, "");
    assert_eq!((again.status, again.body == file), (200, true));
    let other = download(&bob, here.name(), "another", "");
    assert_eq!(other.status, 504, "{}", String::from_utf8_lossy(&other.body));
    here.resume();
}

#[test]
fn a_user_waits_for_an_upload_on_another_server() {
    let (here, there) = TestServer::pair();
    let (alice, bob) = (here.user("alice"), there.user("bob"));
    let id = announce(&alice);
    let early = download(&bob, here.name(), &id, "?timeout_ms=0");
    assert_eq!(early.error(), (504, "M_NOT_YET_UPLOADED".to_owned()));
    thread::scope(|scope| {
        let asking = scope.spawn(|| download(&bob, here.name(), &id, "?timeout_ms=30000"));
        assert_eq!(put(&alice, here.name(), &id, b"late").status, 200);
        assert_eq!(asking.join().expect("no panic").body, b"late");
    });
}

/// A file as another server gives it.
fn in_parts(content_type: &str, file: &[u8]) -> Reply {
    let head = format!(
        "\r\n--x\r\nContent-Type: application/json\r\n\r\n{{}}\r\n--x\r\nContent-Type: {content_type}\r\n\r\n"
    );
    Reply::bytes("multipart/mixed; boundary=\"x\"", [head.as_bytes(), file, b"\r\n--x--"].concat())
}

#[test]
fn a_client_is_told_what_is_wrong_with_a_file_in_our_words_and_is_given_no_page_in_its_place() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    peer.answer("download/page", |_| Reply::bytes("text/html", b"<h1>Welcome</h1>".to_vec()));
    peer.answer_json(
        "download/gone",
        404,
        json!({ "errcode": "M_NOT_FOUND", "error": "<b>their words</b>" }),
    );
    peer.answer_json("download/no", 403, json!({ "errcode": "M_FORBIDDEN", "error": "<b>their words</b>" }));
    peer.answer_json("download/often", 429, json!({ "errcode": "M_LIMIT_EXCEEDED", "retry_after_ms": 7000 }));
    peer.answer_json(
        "download/large",
        502,
        json!({ "errcode": "M_TOO_LARGE", "error": "<b>their words</b>" }),
    );
    for (id, status, errcode) in [
        ("page", 502, "M_UNKNOWN"),
        ("gone", 404, "M_NOT_FOUND"),
        ("no", 502, "M_UNKNOWN"),
        ("often", 429, "M_LIMIT_EXCEEDED"),
        ("large", 502, "M_TOO_LARGE"),
    ] {
        let told = download(&alice, peer.name().as_str(), id, "");
        assert_eq!(told.error(), (status, errcode.to_owned()), "{id}");
        let words = String::from_utf8_lossy(&told.body).into_owned();
        assert!(!words.contains("their words") && !words.contains("Welcome"), "{words}");
    }
    for uri in
        ["..%2f..%2fetc/passwd", "127.0.0.1/..%2F..%2Fetc%2Fpasswd", "127.0.0.1:1%2Fx/abc", "a%20b/abc"]
    {
        let told = exchange(&alice, "GET", &format!("{DOWNLOAD}/{uri}"), "", b"");
        assert!(matches!(told.status, 400 | 404), "{uri}: {told:?}");
    }
}

#[test]
fn an_older_server_is_asked_by_the_path_that_it_knows() {
    let (server, peer) = (TestServer::start(), Peer::start());
    let alice = server.user("alice");
    peer.answer_json("/federation/v1/media/", 404, json!({ "errcode": "M_UNRECOGNIZED", "error": "no" }));
    peer.answer("/_matrix/media/v3/download/", |_| {
        Reply::bytes("image/gif", b"GIF89a".to_vec())
            .with_header("Content-Disposition", "inline; filename=\"a b.gif\"")
    });
    let got = download(&alice, peer.name().as_str(), "abc", "");
    assert_eq!((got.status, got.body.as_slice()), (200, &b"GIF89a"[..]));
    assert_eq!(got.header("content-disposition"), "inline; filename*=utf-8''a%20b.gif");
    let asked = peer.asked("/_matrix/media/v3/download/");
    assert!(asked.len() == 1 && asked[0].target.contains("allow_remote=false"), "{}", asked[0].target);
}

#[test]
fn a_server_that_hangs_holds_up_nobody_else() {
    let (server, silent, good) = (TestServer::start(), Peer::start(), Peer::start());
    let users = ["alice", "bob"].map(|name| server.user(name));
    let carol = server.user("carol");
    let gate = Gate::default();
    silent.answer_behind(&gate, "/media/download/", 404, json!({ "errcode": "M_NOT_FOUND", "error": "no" }));
    good.answer("/media/download/", |_| in_parts("image/png", b"good"));
    thread::scope(|scope| {
        for n in 0..30 {
            let (user, silent) = (&users[n % 2], &silent);
            scope.spawn(move || download(user, silent.name().as_str(), &format!("m{n}"), ""));
        }
        silent.wait_for("/media/download/");
        let got = download(&carol, good.name().as_str(), "abc", "");
        assert_eq!((got.status, got.body.as_slice()), (200, &b"good"[..]));
        gate.open();
    });
}
