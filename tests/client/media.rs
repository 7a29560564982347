//! Media (client-server API, "Content repository"): files that are uploaded and downloaded, whole and in parts.

use std::io::Write;
use std::time::Duration;

use crate::common::media::{DOWNLOAD, RawAnswer, UPLOAD, begin, download, download_path, exchange, upload};
use crate::common::wait::wait_until;
use doorstep::TestServer;
use doorstep::testing::TestUser;
use serde_json::json;

const CREATE: &str = "/_matrix/media/v1/create";

fn not_found(answer: &RawAnswer) {
    assert_eq!(answer.error(), (404, "M_NOT_FOUND".to_owned()), "{answer:?}");
}

#[track_caller]
fn is_whole(answer: &RawAnswer, body: &[u8]) {
    assert_eq!((answer.status, answer.body.as_slice()), (200, body), "{answer:?}");
}

#[test]
fn what_is_uploaded_is_given_to_every_user_as_it_came_and_to_nobody_else() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let uri = upload(&alice, "image/png", "cat.png", b"\x89PNG not really");
    let id = uri.strip_prefix(&format!("mxc://{}/", server.name())).expect("a URI of this server");
    assert!(id.len() >= 18 && id.bytes().all(|b| b.is_ascii_alphanumeric()), "{id}");
    let answer = download(&bob, &uri, "");
    is_whole(&answer, b"\x89PNG not really");
    assert_eq!(answer.header("content-type"), "image/png");
    assert_eq!(answer.header("content-disposition"), "inline; filename=cat.png");
    let nobody = TestUser::new(server.url(), "@nobody:here", "");
    assert_eq!(download(&nobody, &uri, "").error(), (401, "M_MISSING_TOKEN".to_owned()));
    let stranger = TestUser::new(server.url(), "@nobody:here", "no-such-token");
    assert_eq!(download(&stranger, &uri, "").error(), (401, "M_UNKNOWN_TOKEN".to_owned()));
    for target in [UPLOAD, CREATE] {
        assert_eq!(exchange(&nobody, "POST", target, "", b"x").status, 401, "{target}");
    }
    // Another name, which the client chooses.
    let named = exchange(&bob, "GET", &format!("{}/my%20cat.png", download_path(&uri)), "", b"");
    is_whole(&named, b"\x89PNG not really");
    assert_eq!(named.header("content-disposition"), "inline; filename*=utf-8''my%20cat.png");
    // Without a name and a type: neither is made up.
    let bare = exchange(&alice, "POST", UPLOAD, "", b"anything").json()["content_uri"].clone();
    let answer = download(&bob, bare.as_str().expect("a URI"), "");
    assert_eq!(answer.header("content-type"), "application/octet-stream");
    assert_eq!(answer.header("content-disposition"), "attachment");
    // A file without a byte is one.
    let empty = upload(&alice, "text/plain", "empty", b"");
    is_whole(&download(&bob, &empty, ""), b"");
    for (id, _) in
        [("unknown", 0), ("..", 0), ("..%2f..%2fdoorstep.db", 0), ("%2e%2e", 0), ("a%00b", 0), ("", 0)]
    {
        let answer = exchange(&bob, "GET", &format!("{DOWNLOAD}/{}/{id}", server.name()), "", b"");
        assert_eq!(answer.status, 404, "{id}: {answer:?}");
    }
    for name in ["%2e%2e%2f%2e%2e", "example.org%2f..", "a%20b"] {
        not_found(&exchange(&bob, "GET", &format!("{DOWNLOAD}/{name}/abc"), "", b""));
    }
}

#[test]
fn no_file_runs_in_a_browser_whatever_its_type_is_called() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let script = b"<svg xmlns='http://www.w3.org/2000/svg'><script>alert(1)</script></svg>";
    for (content_type, told, disposition) in [
        ("image/svg+xml", "image/svg+xml", "attachment"),
        ("IMAGE/SVG+XML", "IMAGE/SVG+XML", "attachment"),
        ("text/html; charset=utf-8", "text/html; charset=utf-8", "attachment"),
        ("text/html;a=\"image/png\"", "text/html;a=\"image/png\"", "attachment"),
        ("application/xhtml+xml", "application/xhtml+xml", "attachment"),
        ("application/pdf", "application/pdf", "attachment"),
        // Browsers take the last of a list.
        ("image/png, text/html", "application/octet-stream", "attachment"),
        ("image/png; a=b, text/html", "application/octet-stream", "attachment"),
        ("image/png\ttext/html", "application/octet-stream", "attachment"),
        ("", "application/octet-stream", "attachment"),
        // A picture that is none is shown as a broken one, since no browser guesses.
        ("image/png", "image/png", "inline"),
        ("Image/PNG; a=b", "Image/PNG; a=b", "inline"),
        ("TEXT/PLAIN;CHARSET=UTF-8", "TEXT/PLAIN;CHARSET=UTF-8", "inline"),
    ] {
        let uri = upload(&alice, content_type, "", script);
        let etag = download(&alice, &uri, "").header("etag").to_owned();
        for more in
            ["", "Range: bytes=1-4\r\n", &format!("If-None-Match: {etag}\r\n"), "Range: bytes=999-\r\n"]
        {
            let answer = download(&alice, &uri, more);
            assert_eq!(answer.header("x-content-type-options"), "nosniff");
            let policy = answer.header("content-security-policy");
            assert!(policy.starts_with("sandbox; default-src 'none'; script-src 'none';"), "{policy}");
            assert_eq!(answer.header("cross-origin-resource-policy"), "cross-origin");
            assert_eq!(answer.header("referrer-policy"), "no-referrer");
            assert_eq!(answer.header("access-control-allow-origin"), "*");
            assert!(answer.header("x-robots-tag").contains("noindex"));
            if matches!(answer.status, 200 | 206) {
                assert_eq!(answer.header("content-disposition"), disposition, "{content_type}");
                assert_eq!(answer.header("content-type"), told);
            }
        }
    }
    let named = upload(&alice, "image/png", "a\"; filename=evil.html\r\nSet-Cookie: a=b", script);
    let answer = download(&alice, &named, "");
    assert_eq!(answer.header("set-cookie"), "");
    assert!(answer.header("content-disposition").starts_with("inline; filename*=utf-8''a%22%3B%20filename"));
    let long = format!("{UPLOAD}?filename={}", "x".repeat(1021));
    assert_eq!(exchange(&alice, "POST", &long, "", b"x").error(), (400, "M_INVALID_PARAM".to_owned()));
}

#[test]
fn a_part_of_a_file_is_a_part_and_what_is_no_range_is_ignored() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let uri = upload(&alice, "video/mp4", "v.mp4", b"0123456789");
    let whole = download(&alice, &uri, "");
    assert_eq!(whole.header("accept-ranges"), "bytes");
    let etag = whole.header("etag").to_owned();
    for (range, body, told) in [
        ("bytes=0-1", "01", "bytes 0-1/10"),
        ("bytes=0-", "0123456789", "bytes 0-9/10"),
        ("bytes=8-100", "89", "bytes 8-9/10"),
        ("bytes=-3", "789", "bytes 7-9/10"),
        ("bytes=-100", "0123456789", "bytes 0-9/10"),
    ] {
        let answer = download(&alice, &uri, &format!("Range: {range}\r\n"));
        assert_eq!((answer.status, answer.body.as_slice()), (206, body.as_bytes()), "{range}");
        assert_eq!(answer.header("content-range"), told);
        assert_eq!(answer.header("content-length"), body.len().to_string());
        assert_eq!(answer.header("content-type"), "video/mp4");
        assert_eq!(answer.header("etag"), etag);
    }
    for range in ["bytes=10-", "bytes=10-20", "bytes=-0", "bytes=99999999999999999999-"] {
        let answer = download(&alice, &uri, &format!("Range: {range}\r\n"));
        assert_eq!((answer.status, answer.header("content-range")), (416, "bytes */10"), "{range}");
        assert_eq!(answer.header("content-type"), "application/json");
        assert_eq!(
            (answer.header("cache-control"), answer.header("etag")),
            ("", ""),
            "an error is not the file"
        );
    }
    for range in ["bytes=5-3", "bytes=0-1,3-4", "lines=0-1", "bytes=x", "0-1"] {
        is_whole(&download(&alice, &uri, &format!("Range: {range}\r\n")), b"0123456789");
    }
    // A part only of the file that the client has the rest of.
    let if_range = |tag: &str| download(&alice, &uri, &format!("Range: bytes=0-1\r\nIf-Range: {tag}\r\n"));
    assert_eq!(if_range(&etag).status, 206);
    for other in ["\"other\"", &format!("W/{etag}"), "Sun, 29 Nov 2026 00:00:00 GMT"] {
        is_whole(&if_range(other), b"0123456789");
    }
    for more in ["", "Range: bytes=0-1\r\n"] {
        let head = exchange(&alice, "HEAD", &download_path(&uri), more, b"");
        assert_eq!((head.status, head.header("content-length"), head.body.len()), (200, "10", 0));
        assert_eq!((head.header("etag"), head.header("accept-ranges")), (etag.as_str(), "bytes"));
    }
}

#[test]
fn who_has_a_file_is_told_so_but_only_after_they_said_who_they_are() {
    let server = TestServer::start();
    let (alice, nobody) = (server.user("alice"), TestUser::new(server.url(), "@nobody:here", ""));
    let uri = upload(&alice, "image/png", "a.png", b"0123456789");
    let etag = download(&alice, &uri, "").header("etag").to_owned();
    for tag in [etag.clone(), format!("W/{etag}"), format!("\"x\", {etag}"), "*".to_owned()] {
        let line = format!("If-None-Match: {tag}\r\n");
        for more in [line.clone(), format!("{line}Range: bytes=0-1\r\n")] {
            let answer = download(&alice, &uri, &more);
            assert_eq!((answer.status, answer.body.len()), (304, 0), "{more}");
            assert_eq!(answer.header("etag"), etag);
            // What a whole answer would have, or nothing at all.
            assert_eq!(answer.header("content-length"), "10");
            assert!(answer.header("cache-control").starts_with("private, max-age="));
        }
        assert_eq!(download(&nobody, &uri, &line).status, 401);
    }
    is_whole(&download(&alice, &uri, "If-None-Match: \"other\"\r\n"), b"0123456789");
}

#[test]
fn what_is_announced_is_waited_for_and_uploaded_once_by_who_announced_it() {
    let server = TestServer::start();
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    let made = alice.post(CREATE, json!({}));
    let uri = made["content_uri"].as_str().expect("a URI").to_owned();
    let left = made["unused_expires_at"].as_i64().expect("a time") - server.homeserver().clock.now_ms();
    assert!((80_000_000..=86_400_000).contains(&left), "{left}");
    let path = format!("{UPLOAD}/{}", uri.strip_prefix("mxc://").expect("a URI"));
    let now = exchange(&bob, "GET", &format!("{}?timeout_ms=0", download_path(&uri)), "", b"");
    assert_eq!(now.error(), (504, "M_NOT_YET_UPLOADED".to_owned()));
    let soon = exchange(&bob, "GET", &format!("{}?timeout_ms=300", download_path(&uri)), "", b"");
    assert_eq!(soon.status, 504);
    let negative = exchange(&bob, "GET", &format!("{}?timeout_ms=-1", download_path(&uri)), "", b"");
    assert_eq!(negative.error(), (400, "M_INVALID_PARAM".to_owned()));

    std::thread::scope(|scope| {
        let waiting: Vec<_> = (0..3)
            .map(|_| {
                scope.spawn(|| {
                    exchange(&bob, "GET", &format!("{}?timeout_ms=60000", download_path(&uri)), "", b"")
                })
            })
            .collect();
        assert_eq!(exchange(&bob, "PUT", &path, "", b"not his").error(), (403, "M_FORBIDDEN".to_owned()));
        wait_until("they wait", || server.homeserver().notifier.waiting() >= 3);
        // News that is none of theirs ends nobody's wait.
        alice.create_room();
        let done = exchange(
            &alice,
            "PUT",
            &format!("{path}?filename=late.txt"),
            "Content-Type: text/plain\r\n",
            b"at last",
        );
        assert_eq!((done.status, done.json()), (200, json!({})));
        for waiting in waiting {
            let answer = waiting.join().expect("no panic");
            is_whole(&answer, b"at last");
            assert_eq!(answer.header("content-disposition"), "inline; filename=late.txt");
        }
    });
    let again = exchange(&alice, "PUT", &path, "", b"once more");
    assert_eq!(again.error(), (409, "M_CANNOT_OVERWRITE_MEDIA".to_owned()));
    is_whole(&download(&bob, &uri, ""), b"at last");
    // What was uploaded at once is nobody's to overwrite either.
    let at_once = upload(&alice, "text/plain", "", b"at once");
    let path = format!("{UPLOAD}/{}", at_once.strip_prefix("mxc://").expect("a URI"));
    assert_eq!(exchange(&alice, "PUT", &path, "", b"x").status, 409);
    for unknown in
        [format!("{}/never", server.name()), "elsewhere.example/abc".to_owned(), "..%2f/x".to_owned()]
    {
        not_found(&exchange(&alice, "PUT", &format!("{UPLOAD}/{unknown}"), "", b"x"));
    }
    // In time it is as if it had never been announced.
    let late = alice.post(CREATE, json!({}))["content_uri"].as_str().expect("a URI").to_owned();
    server.advance(Duration::from_secs(86_401));
    not_found(&download(&bob, &late, ""));
    not_found(&exchange(&alice, "PUT", &format!("{UPLOAD}/{}", &late[6..]), "", b"x"));
    for _ in 0..50 {
        alice.post(CREATE, json!({}));
    }
    let (status, answer) = alice.request("POST", CREATE, None);
    assert_eq!((status, &answer["errcode"]), (429, &json!("M_LIMIT_EXCEEDED")));
    assert!(answer["retry_after_ms"].is_u64());
}

#[test]
fn what_is_too_large_is_refused_before_it_is_read_and_leaves_nothing() {
    let server = TestServer::start_with(|config| {
        config.media_max_upload = 100_000;
        config.media_per_user = 250_000;
    });
    let (alice, bob) = (server.user("alice"), server.user("bob"));
    for path in ["/_matrix/client/v1/media/config", "/_matrix/media/v3/config", "/_matrix/media/r0/config"] {
        assert_eq!(alice.get(path), json!({ "m.upload.size": 100_000 }));
    }
    // It says how much it will be, and that is enough.
    let announced = begin(&alice, "POST", UPLOAD, "Content-Length: 100001\r\n");
    let answer = RawAnswer::read(announced).expect("an answer");
    assert_eq!(answer.error(), (413, "M_TOO_LARGE".to_owned()));
    assert!(answer.json()["error"].as_str().is_some_and(|error| error.contains("100000")), "{answer:?}");
    let expecting =
        begin(&alice, "POST", UPLOAD, "Content-Length: 9999999999999999999999\r\nExpect: 100-continue\r\n");
    assert_eq!(RawAnswer::read(expecting).expect("an answer").status, 413);
    // It does not say so, and is too large all the same.
    let mut chunked = begin(&alice, "POST", UPLOAD, "Transfer-Encoding: chunked\r\n");
    let chunk = format!("4000\r\n{}\r\n", "x".repeat(0x4000)).repeat(7);
    let _ = chunked.write_all(chunk.as_bytes());
    assert_eq!(RawAnswer::read(chunked).expect("an answer").error(), (413, "M_TOO_LARGE".to_owned()));
    let chunked = "2\r\nab\r\n3;x=y\r\ncde\r\n0\r\nTrailer: x\r\n\r\n";
    let uri = exchange(&alice, "POST", UPLOAD, "Transfer-Encoding: chunked\r\n", chunked.as_bytes()).json();
    is_whole(&download(&bob, uri["content_uri"].as_str().expect("a URI"), ""), b"abcde");

    upload(&alice, "", "", &[1; 100_000]);
    upload(&alice, "", "", &[2; 100_000]);
    let beyond = exchange(&alice, "POST", UPLOAD, "", &[3; 100_000]);
    assert_eq!(beyond.error(), (403, "M_FORBIDDEN".to_owned()));
    upload(&bob, "", "", &[3; 100_000]);
    assert_eq!(new_files(&server), 0);
}

/// How many files are being written.
fn new_files(server: &TestServer) -> usize {
    std::fs::read_dir(server.folder().join("media/new")).map_or(0, Iterator::count)
}

#[test]
fn an_upload_that_is_cut_off_leaves_nothing_and_is_never_taken_for_a_whole_one() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let heads = ["Content-Length: 1000\r\n", "Transfer-Encoding: chunked\r\n"];
    let parts = [
        "",
        "5\r\nhello",
        "5\r\nhello\r\n",
        "5\r\nhello\r\n0\r\n",
        "5\r\nhello\r\n0\r\nX: y\r\n",
        "zz\r\n",
        "5\r\nhelloX\r\n",
    ];
    for head in heads {
        for part in parts {
            let mut connection = begin(&alice, "POST", UPLOAD, head);
            connection.write_all(part.as_bytes()).expect("sent");
            let _ = connection.shutdown(std::net::Shutdown::Write);
            let answer = RawAnswer::read(connection).expect("an answer");
            assert_eq!(answer.status, 400, "{head} {part:?}: {answer:?}");
            // And one that is gone without a word.
            let mut connection = begin(&alice, "POST", UPLOAD, head);
            connection.write_all(part.as_bytes()).expect("sent");
        }
    }
    wait_until("nothing is left of them", || new_files(&server) == 0);
    let mut files = 0;
    for entry in std::fs::read_dir(server.folder().join("media")).into_iter().flatten().flatten() {
        files += usize::from(entry.file_name() != "new");
    }
    assert_eq!(files, 0, "there is a file of something that never came whole");
    // Their places are free again.
    upload(&alice, "text/plain", "", b"whole");
}

#[test]
fn without_a_token_nothing_is_to_be_had_by_the_old_paths() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let uri = upload(&alice, "image/png", "a.png", b"png");
    let path = uri.strip_prefix("mxc://").expect("a URI");
    for version in ["v3", "r0", "v1"] {
        for target in [
            format!("download/{path}"),
            format!("download/{path}/name.png"),
            format!("thumbnail/{path}?width=32&height=32"),
        ] {
            not_found(&exchange(&alice, "GET", &format!("/_matrix/media/{version}/{target}"), "", b""));
        }
        let answer =
            exchange(&alice, "POST", &format!("/_matrix/media/{version}/upload"), "", b"by an old path");
        let uri = answer.json()["content_uri"].as_str().expect("a URI").to_owned();
        is_whole(&download(&alice, &uri, ""), b"by an old path");
    }
}

#[test]
fn an_administrator_takes_a_file_from_everybody_and_it_cannot_come_again() {
    let server = TestServer::start();
    let (admin, bob) = (server.user("admin"), server.user("bob"));
    let (bad, same) = (upload(&bob, "image/png", "", b"bad"), upload(&admin, "image/gif", "", b"bad"));
    let good = upload(&bob, "image/png", "", b"good");
    let path = |verb: &str, uri: &str| format!("/_synapse/admin/v1/media/{verb}{}", &uri[6..]);
    assert_eq!(bob.request("POST", &path("quarantine/", &good), None).0, 403);
    admin.post(&path("quarantine/", &bad), json!({}));
    for user in [&admin, &bob] {
        for uri in [&bad, &same] {
            not_found(&download(user, uri, ""));
            not_found(&download(user, uri, "Range: bytes=0-1\r\n"));
            not_found(&download(user, uri, "If-None-Match: *\r\n"));
        }
        assert_eq!(exchange(user, "POST", UPLOAD, "", b"bad").error(), (403, "M_FORBIDDEN".to_owned()));
        is_whole(&download(user, &good, ""), b"good");
    }
    admin.post(&path("unquarantine/", &bad), json!({}));
    is_whole(&download(&bob, &same, ""), b"bad");
    assert_eq!(bob.request("DELETE", &path("", &good), None).0, 403);
    assert_eq!(admin.request("DELETE", &path("", &good), None).0, 200);
    not_found(&download(&bob, &good, ""));
    assert_eq!(admin.request("DELETE", &path("", &good), None).0, 404);
}

#[test]
fn who_closes_their_account_leaves_what_others_were_shown_and_announces_nothing_more() {
    let server = TestServer::start();
    let (alice, bob) = (TestUser::register(server.url(), "alice"), server.user("bob"));
    let uri = upload(&alice, "image/png", "", b"shown to others");
    let announced = alice.post(CREATE, json!({}))["content_uri"].as_str().expect("a URI").to_owned();
    let auth = json!({ "type": "m.login.password", "identifier": { "type": "m.id.user", "user": "alice" }, "password": "alice" });
    let mut under_way = begin(&alice, "POST", UPLOAD, "Content-Length: 5\r\n");
    under_way.write_all(b"he").expect("sent");
    wait_until("it is under way", || new_files(&server) == 1);
    alice.post("/_matrix/client/v3/account/deactivate", json!({ "auth": auth, "erase": true }));
    under_way.write_all(b"llo").expect("sent");
    let answer = RawAnswer::read(under_way).expect("an answer");
    assert_eq!(answer.error(), (401, "M_UNKNOWN_TOKEN".to_owned()), "{answer:?}");
    is_whole(&download(&bob, &uri, ""), b"shown to others");
    not_found(&download(&bob, &announced, ""));
    assert_eq!(new_files(&server), 0);
}

#[test]
fn nothing_is_uploaded_by_a_session_that_ended_before_its_last_byte() {
    let server = TestServer::start();
    let alice = server.user("alice");
    let announced = alice.post(CREATE, json!({}))["content_uri"].as_str().expect("a URI").to_owned();
    let place = announced.strip_prefix("mxc://").expect("a URI");
    for (method, path) in [("POST", UPLOAD.to_owned()), ("PUT", format!("{UPLOAD}/{place}"))] {
        let phone = server.device_of(&alice, "PHONE");
        let mut under_way = begin(&phone, method, &path, "Content-Length: 5\r\n");
        under_way.write_all(b"he").expect("sent");
        wait_until("it is under way", || new_files(&server) == 1);
        phone.post("/_matrix/client/v3/logout", json!({}));
        under_way.write_all(b"llo").expect("sent");
        let answer = RawAnswer::read(under_way).expect("an answer");
        assert_eq!(answer.error(), (401, "M_UNKNOWN_TOKEN".to_owned()), "{method}: {answer:?}");
        assert_eq!(new_files(&server), 0);
    }
}
